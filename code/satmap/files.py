"""Writing files so that a crash never leaves half of one behind."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from satmap.errors import SatmapError


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` when the block succeeds.

    Readers see the old file or the whole new one, never a part. When the block raises, the
    temporary file is removed and ``path`` is left as it was.

    Raises:
        SatmapError: the directory cannot be made or written to.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.stem[:40]}-", suffix=path.suffix
        )
        os.close(descriptor)
        temporary = Path(name)
        # mkstemp makes private files; the result should follow the user's umask like any other.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise SatmapError(
            f"cannot write {path}: {error.strerror or error}. "
            "Check that the directory exists, is writable and has space."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 with unchanged line ends, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode())


def require_writable(path: Path) -> None:
    """Fail before hours of work rather than after them when ``path`` cannot be written.

    Raises:
        SatmapError: ``path`` is a directory, or its directory cannot be written to.
    """
    if path.is_dir():
        raise SatmapError(f"{path} is a directory; give the name of a file to write.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise SatmapError(
            f"cannot write {path}: {error.strerror or error}. "
            "Choose another place for the output or change the directory's permissions."
        ) from error
