"""Texts of other people's making, fit for a terminal."""

import re
import unicodedata


def printable(text: object, longest: int | None = None, keep: str = "") -> str:
    """``text`` without anything that could move a cursor, colour a line or begin a new one.

    Names in files, answers of servers and ids of images are whatever somebody wrote there.
    Control and format characters, line ends and lone surrogates become escapes such as ``\\x1b``.

    Args:
        text: any object; its ``str`` is taken.
        longest: cut after so many characters, with three dots.
        keep: control characters that stay, such as line ends of a message of our own.
    """
    shown = "".join(
        char
        if char in keep or not unicodedata.category(char).startswith(("C", "Zl", "Zp"))
        else char.encode("unicode_escape").decode()
        for char in str(text)
    )
    return shown if longest is None or len(shown) <= longest else f"{shown[:longest]}..."


def natural_key(text: str) -> tuple[list[str], str]:
    """Sort key that puts ``chip2`` before ``chip10``."""
    # Splitting by a group alternates text and digits. Numbers go by their length first, so that
    # they need not become integers, of which Python refuses those of thousands of digits.
    parts = re.split(r"([0-9]+)", text)
    digits = [part.lstrip("0") for part in parts]
    return [
        f"{len(digits[i]):09d}{digits[i]}" if i % 2 else parts[i] for i in range(len(parts))
    ], text
