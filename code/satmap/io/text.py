"""Texts of other people's making, fit for a terminal."""

import re
import unicodedata

_NOT_PLAIN = re.compile(r'^#|[,"\r\n\0]')


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


def require_plain_id(image_id: str) -> None:
    """Make sure that an id can be written as it is and read back the same.

    Raises:
        ValueError: it is empty, begins like a comment, would need quoting, or cannot be printed.
    """
    plain = image_id and image_id == image_id.strip() and image_id.isprintable()
    if not plain or _NOT_PLAIN.search(image_id):
        raise ValueError(f"image id {image_id!r} cannot stand in a CSV")
