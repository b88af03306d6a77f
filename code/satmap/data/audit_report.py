"""Reading the report of ``satmap audit --json``, without image libraries."""

import json
from pathlib import Path

from satmap.errors import SatmapError
from satmap.io.files import refuse_pipe


def read_groups(path: Path) -> list[list[Path]]:
    """Read the groups of near-duplicates from a report of ``satmap audit --json``.

    Raises:
        SatmapError: the file cannot be read, or is not such a report.
    """
    refuse_pipe(path)
    try:
        groups = json.loads(path.read_bytes())["groups"]
        if not all(isinstance(name, str) for group in groups for name in group):
            raise TypeError("a group holds values that are not paths")
        # Invalid paths and circular links raise an error here.
        return [[Path(name).resolve() for name in group] for group in groups if group]
    except OSError as error:
        raise SatmapError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise SatmapError(
            f"{path}: not a report of near-duplicates ({type(error).__name__}: {error}). Write one "
            "with `satmap audit DIR... --json > audit.json`."
        ) from error
