"""JSON lists of any length, value by value, each with the line on which it begins."""

import json
from collections.abc import Iterator
from typing import Any, TextIO

# Characters read at a time.
_PIECE_CHARACTERS = 1 << 20


class BrokenFileError(Exception):
    """Nothing after this place of the file can be understood."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


class JsonList:
    """Values of a JSON list one by one with their lines, while the file is read piece by piece."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text = ""
        self._place = 0
        self._line = 1  # of self._place
        self._ended = False
        self._decoder = json.JSONDecoder()

    def values(self) -> Iterator[tuple[int, Any]]:
        """Line on which a value begins, and the value.

        Raises:
            BrokenFileError: the file is not a JSON list.
        """
        if self._next() != "[":
            what = "is an object" if self._next() == "{" else "does not begin with ["
            raise BrokenFileError(self._line, f"the file {what}; it must be a list of results")
        self._move(self._place + 1)
        closed = self._next() == "]"
        while not closed:
            self._next()
            line = self._line
            value = self._value()
            yield line, value
            closed = self._next() == "]"
            if not closed:
                if self._next() != ",":
                    what = "ends within the list" if not self._next() else "lacks a comma or ]"
                    raise BrokenFileError(
                        self._line, f"not JSON: the file {what} after the entry on line {line}"
                    )
                self._move(self._place + 1)
        self._move(self._place + 1)
        if self._next():
            raise BrokenFileError(self._line, "not JSON: something follows the end of the list")

    def _next(self) -> str:
        """Go to the next character that is not white space; "" at the end of the file."""
        while True:
            rest = self._text[self._place : self._place + 64]
            blanks = len(rest) - len(rest.lstrip(" \t\r\n"))
            self._move(self._place + blanks)
            if blanks < len(rest):
                return self._text[self._place]
            if self._place == len(self._text) and not self._more(_PIECE_CHARACTERS):
                return ""

    def _value(self) -> Any:
        wanted = _PIECE_CHARACTERS
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._place)
                # What the piece cuts off may belong to a number.
                if end < len(self._text) or not self._more(wanted):
                    self._move(end)
                    return value
            except (ValueError, RecursionError) as error:
                # Twice as much every time, or a fault far from the end would cost its square.
                wanted *= 2
                if not self._more(wanted):
                    message, place = "lists within lists too deep", self._place
                    if isinstance(error, json.JSONDecodeError):
                        message, place = error.msg, error.pos
                    elif isinstance(error, ValueError):
                        message = str(error)
                    begin = self._line
                    self._move(place)
                    raise BrokenFileError(
                        self._line, f"not JSON: {message}, in the entry that begins on line {begin}"
                    ) from error

    def _move(self, place: int) -> None:
        self._line += self._text.count("\n", self._place, place)
        self._place = place

    def _more(self, characters: int) -> bool:
        """Read on, forget what is done; False at the end of the file."""
        piece = "" if self._ended else self._file.read(characters)
        self._ended = not piece
        if not piece.isascii():
            # Bytes that are not UTF-8 were read as lone surrogates.
            for place, letter in enumerate(piece):
                if "\udc80" <= letter <= "\udcff":
                    before = self._text.count("\n", self._place) + piece.count("\n", 0, place)
                    raise BrokenFileError(self._line + before, "the line is not UTF-8 text")
        if piece:
            self._text, self._place = self._text[self._place :] + piece, 0
        return bool(piece)
