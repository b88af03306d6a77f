"""Damage to files: cut off, bits turned, something else in their place."""

import os
import random
from collections.abc import Callable
from pathlib import Path

#: What is done to a file.
Harm = Callable[[Path, random.Random], None]


def empty(path: Path, draw: random.Random) -> None:
    """Leave nothing of it."""
    path.write_bytes(b"")


def truncated(path: Path, draw: random.Random) -> None:
    """Cut it off anywhere."""
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(1, len(content))])


def flipped(bits: int = 8, within: int | None = None) -> Harm:
    """Turn some bits anywhere, or in the first so many bytes."""

    def harm(path: Path, draw: random.Random) -> None:
        content = bytearray(path.read_bytes())
        for _ in range(bits):
            place = draw.randrange(min(len(content), within or len(content)))
            content[place] ^= 1 << draw.randrange(8)
        path.write_bytes(content)

    return harm


def noise(path: Path, draw: random.Random) -> None:
    """As many bytes of noise."""
    path.write_bytes(draw.randbytes(path.stat().st_size))


def zeros(path: Path, draw: random.Random) -> None:
    """As many zero bytes, as file systems leave after a power cut."""
    path.write_bytes(bytes(path.stat().st_size))


def text(path: Path, draw: random.Random) -> None:
    """An error page of a server, as a careless download leaves it."""
    path.write_text("<html><body>404 Not Found</body></html>\n")


def directory(path: Path, draw: random.Random) -> None:
    """A directory in its place."""
    path.unlink()
    path.mkdir()


def dangling(path: Path, draw: random.Random) -> None:
    """A link to nothing in its place."""
    path.unlink()
    path.symlink_to(path.with_name("nothing-here"))


def looped(path: Path, draw: random.Random) -> None:
    """A link to itself in its place."""
    path.unlink()
    path.symlink_to(path.name)


def pipe(path: Path, draw: random.Random) -> None:
    """A pipe that nobody writes in its place."""
    path.unlink()
    os.mkfifo(path)


#: Whatever the file: what is done, and how.
ANY_FILE: tuple[tuple[str, Harm], ...] = (
    ("empty", empty),
    ("noise", noise),
    ("zeros", zeros),
    ("a server's error page", text),
    ("a directory in its place", directory),
    ("a link to nothing", dangling),
    ("a link to itself", looped),
    ("a pipe", pipe),
)
