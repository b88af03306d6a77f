"""Files of JSON that others have written, small enough to be read at once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from satmap.errors import SatmapError


def read_json(path: Path, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """What a file holds.

    Args:
        path: the file, with or without a byte order mark.
        object_hook: what becomes of every object, as ``json.loads`` takes it.

    Raises:
        SatmapError: it cannot be read or is not JSON; the message names the file and the place.
    """
    try:
        return json.loads(path.read_bytes(), object_hook=object_hook)
    except OSError as error:
        raise SatmapError(f"cannot read {path}: {error.strerror or error}.") from error
    except json.JSONDecodeError as error:
        raise SatmapError(f"{path}, line {error.lineno}: not JSON: {error.msg}.") from error
    # Bytes that are no text, or more brackets within each other than Python has room for.
    except (ValueError, RecursionError) as error:
        raise SatmapError(f"{path}: not JSON: {error}.") from error
