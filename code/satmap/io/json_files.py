"""Read JSON files from other sources."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from satmap.errors import SatmapError


def read_json(path: Path, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Read a JSON file at once.

    Args:
        path: the file, with or without a byte order mark.
        object_hook: function applied to every object, as in ``json.loads``.

    Raises:
        SatmapError: the file cannot be read or is not JSON; the message names the file and line.
    """
    try:
        return json.loads(path.read_bytes(), object_hook=object_hook)
    except OSError as error:
        raise SatmapError(f"cannot read {path}: {error.strerror or error}.") from error
    except json.JSONDecodeError as error:
        raise SatmapError(f"{path}, line {error.lineno}: not JSON: {error.msg}.") from error
    # The bytes are not text, or the brackets are nested too deeply for Python.
    except (ValueError, RecursionError) as error:
        raise SatmapError(f"{path}: not JSON: {error}.") from error
