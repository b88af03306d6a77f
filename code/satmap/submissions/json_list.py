"""Incremental reader of JSON lists of any length, with the line on which each value begins."""

import json
from collections.abc import Iterator
from typing import Any, TextIO

# Characters read at a time.
_PIECE_CHARACTERS = 1 << 20


class BrokenFileError(Exception):
    """The file is not valid JSON from this line on."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


class JsonList:
    """Reads the values of a JSON list one by one, with bounded memory."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text = ""
        self._place = 0
        self._line = 1  # of self._place
        self._ended = False
        self._decoder = json.JSONDecoder()

    def values(self) -> Iterator[tuple[int, Any]]:
        """Yield the values of the list, each after the line on which it begins.

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
        """Skip white space and return the next character; "" at the end of the file."""
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
                # A number at the end of the text may go on in the next piece.
                if end < len(self._text) or not self._more(wanted):
                    self._move(end)
                    return value
            except (ValueError, RecursionError) as error:
                # Doubling keeps the time linear if an error lies far from the end.
                wanted *= 2
                if not self._more(wanted):
                    message, place = "the nesting is too deep", self._place
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
        """Read more text and drop what was processed; False at the end of the file."""
        piece = "" if self._ended else self._file.read(characters)
        self._ended = not piece
        if not piece.isascii():
            # surrogateescape turns bytes that are not UTF-8 into lone surrogates.
            for place, char in enumerate(piece):
                if "\udc80" <= char <= "\udcff":
                    before = self._text.count("\n", self._place) + piece.count("\n", 0, place)
                    raise BrokenFileError(self._line + before, "the line is not UTF-8 text")
        if piece:
            self._text, self._place = self._text[self._place :] + piece, 0
        return bool(piece)
