"""Damage to files: truncation, flipped bits, replacement by something else."""

import os
import random
from collections.abc import Callable
from pathlib import Path

#: Function that damages a file.
Harm = Callable[[Path, random.Random], None]


def empty(path: Path, draw: random.Random) -> None:
    """Empty the file."""
    path.write_bytes(b"")


def truncated(path: Path, draw: random.Random) -> None:
    """Truncate the file at a random position."""
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(1, len(content))])


def flipped(bits: int = 8, within: int | None = None) -> Harm:
    """Return a function that flips random bits, anywhere or in the first ``within`` bytes."""

    def harm(path: Path, draw: random.Random) -> None:
        content = bytearray(path.read_bytes())
        for _ in range(bits):
            place = draw.randrange(min(len(content), within or len(content)))
            content[place] ^= 1 << draw.randrange(8)
        path.write_bytes(content)

    return harm


def noise(path: Path, draw: random.Random) -> None:
    """Replace the content by noise of the same length."""
    path.write_bytes(draw.randbytes(path.stat().st_size))


def zeros(path: Path, draw: random.Random) -> None:
    """Replace the content by zeros of the same length, as after a power cut."""
    path.write_bytes(bytes(path.stat().st_size))


def text(path: Path, draw: random.Random) -> None:
    """Replace the content by a server's error page, as left by a careless download."""
    path.write_text("<html><body>404 Not Found</body></html>\n")


def directory(path: Path, draw: random.Random) -> None:
    """Replace the file by a directory."""
    path.unlink()
    path.mkdir()


def dangling(path: Path, draw: random.Random) -> None:
    """Replace the file by a dangling link."""
    path.unlink()
    path.symlink_to(path.with_name("nothing-here"))


def looped(path: Path, draw: random.Random) -> None:
    """Replace the file by a link to itself."""
    path.unlink()
    path.symlink_to(path.name)


def pipe(path: Path, draw: random.Random) -> None:
    """Replace the file by a pipe without a writer."""
    path.unlink()
    os.mkfifo(path)


#: Damage that applies to any file: description and function.
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
