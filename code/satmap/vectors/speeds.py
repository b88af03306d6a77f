"""Road speeds: the challenge's rule by road class, and the ten bins that networks predict.

Rules and bin edges are those of SpaceNet 5 and of selim_sef's third-place solution.
"""

import math
import re
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

MPS_PER_MPH = 0.44704

#: Upper edges of the speed bins, mph; a bin includes its upper edge.
BIN_EDGES_MPH = (10.0, 15.0, 18.75, 20.0, 25.0, 30.0, 35.0, 45.0, 55.0, 65.0)

#: Representative speed of each bin, mph.
BIN_SPEEDS_MPH = (7.5, 15.0, 18.75, 20.0, 25.0, 30.0, 35.0, 45.0, 55.0, 65.0)

SPEED_BINS = len(BIN_EDGES_MPH)

# Road class -> mph with at most two lanes, mph with three or more.
_CLASS_SPEEDS_MPH = {
    "motorway": (55.0, 65.0),
    "trunk": (55.0, 65.0),
    "primary": (45.0, 55.0),
    "secondary": (35.0, 45.0),
    "tertiary": (30.0, 35.0),
    "residential": (25.0, 30.0),
    "living_street": (25.0, 30.0),
    "unclassified": (20.0, 20.0),
    "service": (20.0, 20.0),
    "road": (20.0, 20.0),
    "track": (20.0, 20.0),
}

# SpaceNet 3's ``road_type`` codes -> SpaceNet 5's class names.
_SN3_ROAD_TYPES = {
    1: "motorway",
    2: "primary",
    3: "secondary",
    4: "tertiary",
    5: "residential",
    6: "unclassified",
    7: "track",
}

_UNPAVED_FACTOR = 0.75

_MAXSPEED = re.compile(r"(\d+(?:\.\d+)?)\s*(mph|km/h|kmh|kph|knots)?")
_MPH_PER_UNIT = {
    "mph": 1.0, "km/h": 0.621371, "kmh": 0.621371, "kph": 0.621371, "knots": 1.150779
}  # fmt: skip


def class_speed_mph(highway: str, lanes: int, paved: bool = True) -> float:
    """Return the speed of a road class, mph; unknown classes count as ``unclassified``."""
    base = highway.removesuffix("_link")
    slow, fast = _CLASS_SPEEDS_MPH.get(base, _CLASS_SPEEDS_MPH["unclassified"])
    return (fast if lanes >= 3 else slow) * (1.0 if paved else _UNPAVED_FACTOR)


def label_speed_mph(properties: Mapping[str, Any]) -> float:
    """Return the speed of one labelled road, mph, from SpaceNet 5 or SpaceNet 3 properties.

    A stated speed (``inferred_speed_mph``, ``speed_mph``, their metric counterparts or
    OpenStreetMap's ``maxspeed``) takes precedence. Without one, class, lanes and surface determine
    the speed.
    """
    for key, factor in (
        ("inferred_speed_mph", 1.0),
        ("speed_mph", 1.0),
        ("inferred_speed_mps", 1 / MPS_PER_MPH),
        ("speed_m/s", 1 / MPS_PER_MPH),
    ):
        stated = _number(properties.get(key))
        # Implausible values count as not stated.
        if stated is not None and 1 <= stated * factor <= 200:
            return stated * factor
    if (limit := maxspeed_mph(properties.get("maxspeed"))) is not None:
        return limit
    highway = properties.get("highway")
    if highway is None:
        kind = int(_number(properties.get("road_type")) or 0)
        highway = _SN3_ROAD_TYPES.get(kind, "unclassified")
    counts = (_number(properties.get(key)) for key in ("lanes", "lane_number", "lane_numbe"))
    lanes = next((count for count in counts if count is not None), 1)
    return class_speed_mph(str(highway).strip().lower(), int(lanes), _is_paved(properties))


def maxspeed_mph(text: Any) -> float | None:
    """Return OpenStreetMap's ``maxspeed`` in mph; None for ``none``, ``walk`` and other words.

    A number without a unit is in km/h. Source: https://wiki.openstreetmap.org/wiki/Key:maxspeed.
    """
    match = _MAXSPEED.fullmatch(str(text).split(";")[0].strip().lower())
    if match is None:
        return None
    mph = float(match[1]) * _MPH_PER_UNIT[match[2] or "km/h"]
    return mph if 1 <= mph <= 200 else None


def speed_bin(mph: float) -> int:
    """Return the index of the bin, 0..9; speeds above the last edge fall into the last bin."""
    return min(bisect_left(BIN_EDGES_MPH, mph), SPEED_BINS - 1)


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        # OpenStreetMap writes several lane counts as "2;3".
        value = value.split(";")[0].strip()
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _is_paved(properties: Mapping[str, Any]) -> bool:
    surface = properties.get("surface")
    if surface is not None:
        return str(surface).strip().lower() not in {
            "unpaved", "dirt", "earth", "ground", "gravel", "grass", "mud", "sand",
        }  # fmt: skip
    # SpaceNet 3: 1 paved, 2 unpaved, 3 unknown.
    return _number(properties.get("paved")) != 2
