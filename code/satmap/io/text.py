"""Make text from files and servers safe to print, sort and write as CSV."""

import re
import unicodedata
from collections.abc import Sequence

_NOT_PLAIN = re.compile(r'^#|[,"\r\n\0]')


def printable(text: object, longest: int | None = None, keep: str = "") -> str:
    """Escape control characters of a text, so that it cannot affect the terminal or start a line.

    File names, answers of servers and image ids may contain any character. Control and format
    characters, line ends and lone surrogates become escapes such as ``\\x1b``, except those in
    ``keep``. After ``longest`` characters the text is cut, marked by three dots.
    """
    shown = "".join(
        char
        if char in keep or not unicodedata.category(char).startswith(("C", "Zl", "Zp"))
        else char.encode("unicode_escape").decode()
        for char in str(text)
    )
    return shown if longest is None or len(shown) <= longest else f"{shown[:longest]}..."


def listing(names: Sequence[str]) -> str:
    """Join names with commas; those beyond the first five are only counted."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, in the plural if needed, as in ``2 chips``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def padded(rows: Sequence[Sequence[str]], right: bool = False) -> list[list[str]]:
    """Pad the cells of a table to their columns; ``right`` aligns all but the first column."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        [
            cell.rjust(width) if right and number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]


def natural_key(text: str) -> tuple[list[str], str]:
    """Return a sort key that puts ``chip2`` before ``chip10``."""
    # Splitting by a group alternates text and digits. Numbers are compared by their length first
    # instead of as integers, because Python refuses to parse thousands of digits.
    parts = re.split(r"([0-9]+)", text)
    digits = [part.lstrip("0") for part in parts]
    return [
        f"{len(digits[i]):09d}{digits[i]}" if i % 2 else parts[i] for i in range(len(parts))
    ], text


def require_plain_id(image_id: str) -> None:
    """Raise ValueError unless an image id can be written to a CSV unquoted and read back unchanged.

    It must not be empty, start like a comment, need quoting or hold unprintable characters.
    """
    plain = image_id and image_id == image_id.strip() and image_id.isprintable()
    if not plain or _NOT_PLAIN.search(image_id):
        raise ValueError(f"image id {image_id!r} cannot be written to a CSV")


def public_address(name: str) -> str:
    """Return an address without what may be secret: user, query and fragment.

    Presigned addresses of S3 and Azure hold their signature in the query. Other names stay as they
    are.
    """
    scheme, separator, rest = name.partition("://")
    if not separator:
        return name
    host, slash, path = re.split("[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
