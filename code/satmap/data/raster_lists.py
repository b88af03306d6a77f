"""Names of rasters in a file: a list of paths, or a STAC item collection.

Such a file may only name local files. satmap contacts no address that the user did not type, and
each raster still passes the checks of :mod:`satmap.data.allowed_rasters`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from satmap.errors import SatmapError
from satmap.io.files import refuse_pipe
from satmap.io.gdal import DRIVERS
from satmap.io.text import printable

#: Lower-case suffixes of lists (one path per line) and of STAC item collections.
LIST_SUFFIXES = (".txt",)
COLLECTION_SUFFIXES = (".json", ".geojson")

# Roles of STAC assets that are no imagery: https://github.com/radiantearth/stac-spec, best
# practices, "Asset Roles".
_OTHER_ROLES = {"thumbnail", "overview", "metadata", "date", "graphic"}
# Key of the asset that people look at, if an item has several rasters.
_VISUAL = "visual"


def is_raster_list(path: Path) -> bool:
    """Return whether the suffix of a file is that of a list or of a collection."""
    return path.suffix.lower() in (*LIST_SUFFIXES, *COLLECTION_SUFFIXES)


def read_raster_list(path: Path, faults: dict[str, str]) -> list[str]:
    """Return the rasters that a list or a collection names, without repetitions.

    Relative names are relative to the folder of the file.

    Args:
        path: a list (``.txt``): one path per line; empty lines and lines that begin with ``#`` are
            skipped. Or a STAC item collection (``.json``, ``.geojson``) or a single item: of each
            item the only raster, or the asset ``visual``.
        faults: gets the reason of each entry that names no usable raster, by name.

    Raises:
        SatmapError: the file cannot be read, is not a collection, or names nothing.
    """
    refuse_pipe(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise SatmapError(f"{printable(str(path))} cannot be read: {printable(error)}.") from error
    if path.suffix.lower() in LIST_SUFFIXES:
        lines = (line.strip() for line in text.splitlines())
        entries = [line for line in lines if line and not line.startswith("#")]
    else:
        entries = list(_hrefs(path, text, faults))
    names = []
    for entry in dict.fromkeys(entries):
        entry = entry.removeprefix("file://")
        if "://" in entry:
            faults[entry] = (
                f"{printable(str(path))} names an address. satmap only contacts addresses of the "
                "command line: give it there, or download the file."
            )
        else:
            names.append(str(path.parent / entry))
    if not names and not faults:
        raise SatmapError(f"{printable(str(path))} names no rasters.")
    return names


def _hrefs(path: Path, text: str, faults: dict[str, str]) -> Iterator[str]:
    """Yield the reference of one raster of each item of a STAC item collection."""
    try:
        content = json.loads(text)
        items = content["features"] if content["type"] == "FeatureCollection" else [content]
        named = [(str(item["id"]), item["assets"].items()) for item in items]
        rasters = [(name, _rasters(assets)) for name, assets in named]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise SatmapError(
            f"{printable(str(path))} is not a STAC item collection: items with `id` and `assets` "
            "in `features`. Give rasters, folders, or a list of paths (.txt)."
        ) from error
    for name, found in rasters:
        if len(found) == 1 or _VISUAL in found:
            yield found.get(_VISUAL) or next(iter(found.values()))
        else:
            reason = f"has several rasters ({', '.join(found)})" if found else "has no raster"
            faults[f"{path}#{name}"] = (
                f"this item {reason} that satmap can choose. Name its raster in a list (.txt)."
            )


def _rasters(assets: Any) -> dict[str, str]:
    """Return the references of the assets that are imagery, by key."""
    return {
        str(key): asset["href"]
        for key, asset in assets
        if Path(asset["href"]).suffix.lower() in DRIVERS
        and not _OTHER_ROLES.intersection(asset.get("roles") or ())
    }
