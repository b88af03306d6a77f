"""Levels of roads, from the properties of labels and maps: which of two crossing roads is above."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

# Values of ``bridge`` and ``tunnel`` that say that there is none.
_NO = frozenset({"", "no", "building_passage", "none", "null", "nan", "false", "0", "0.0"})

# SpaceNet 3: 1 bridge, 2 not a bridge, 3 unknown. Shapefiles cut the name.
_BRIDGE_CODES = ("bridge_type", "bridge_typ")


def road_level(properties: Mapping[str, Any]) -> float:
    """Return the level of a road: 0 on the ground, higher above it, negative below.

    ``layer`` decides if it is a number (OpenStreetMap's key, also in satmap's exports). Otherwise a
    ``bridge`` is at level 1 and a ``tunnel`` at -1; a road that is both, or neither, is at 0.
    SpaceNet 3's ``bridge_type`` 1 is a bridge. A ``building_passage`` is on the ground. As in
    OpenStreetMap, a road without these properties is on the ground. Source:
    https://wiki.openstreetmap.org/wiki/Key:layer.
    """
    try:
        layer = float(properties.get("layer", "nan"))
    except (TypeError, ValueError):
        layer = float("nan")
    if isfinite(layer):
        return layer
    is_bridge = _is_set(properties.get("bridge")) or any(
        str(properties.get(key)).strip() in ("1", "1.0") for key in _BRIDGE_CODES
    )
    return float(is_bridge) - float(_is_set(properties.get("tunnel")))


def _is_set(value: Any) -> bool:
    return str(value).strip().lower() not in _NO
