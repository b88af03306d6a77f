"""What may be replaced by a file of roads or buildings: nothing but such a file."""

from pathlib import Path

from satmap.errors import CannotWriteError
from satmap.files import require_writable

# Format by suffix -> what stands near the start of every file of it, in small letters.
_MARKS = {
    ".csv": b"imageid",
    ".geojson": b"featurecollection",
    ".gpkg": b"sqlite format 3",
    ".graphml": b"graphml",
    # COCO results, of buildings, are a list.
    ".json": b"[",
}

# So much of a file is looked at.
_START = 512


def require_road_output(path: Path) -> None:
    """Make sure, before the work, that a map can be written and nothing else is lost by it.

    A forgotten last argument must not cost an image or anybody's notes.

    Args:
        path: the file; its suffix names its format, an unknown one that of a CSV.

    Raises:
        CannotWriteError: it cannot be written, or exists and holds something else.
    """
    require_writable(path)
    if not path.is_file() or not path.stat().st_size:
        return
    suffix = path.suffix.lower() if path.suffix.lower() in _MARKS else ".csv"
    with path.open("rb") as file:
        start = file.read(_START)
    if _MARKS[suffix] not in start.lower():
        raise CannotWriteError(
            f"{path} exists and holds no map in the format of {suffix} files, so it is not "
            "replaced. Give another name, or remove it."
        )
