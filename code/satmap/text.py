"""Texts of other people's making, fit for a terminal."""

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
