"""Commands that find routes in road networks."""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from satmap.cli.commands import Commands, Parser, report_warnings
from satmap.cli.options import add_least_confidence
from satmap.errors import SatmapError
from satmap.io.files import require_writable, write_text

# Arguments such as -71.3,42.3 are places, not options.
_PLACE = re.compile(r"^-\d+(\.\d*)?,-?\d+(\.\d*)?$")

# Metres to the nearest road beyond which the commands warn, and beyond which they fail.
_FAR_M, _TOO_FAR_M = 100.0, 10_000.0


def add_route(commands: Commands) -> None:
    """Add ``route``."""
    route = commands.add("route", _route)
    _add_network(route)
    route.value("end TO", _place, "where the route ends: LON,LAT")
    _add_output(route)


def _route(options: argparse.Namespace) -> int:
    """Find the fastest route between two places in a road network.

    NETWORK is a vector file of roads: an export of `satmap map` or `predict`, or OpenStreetMap
    data. Both places are moved to the nearest road. Prints a GeoJSON feature: the line, with its
    length in metres, its time in seconds, and its turns. The exit status is 1 if there is no route.

    Examples:
      satmap route roads.gpkg -71.345,42.325 -71.332,42.331
      satmap route roads.gpkg 2.35,48.85 2.36,48.86 --output route.geojson
    """
    network = _read(options)
    from satmap.routing import find_route, route_as_geojson

    start, end = (_snapped(network, options.network, at) for at in (options.start, options.end))
    route = find_route(network, start, end)
    if route is None:
        raise SatmapError(
            f"{options.network}: no route leads from {_text(options.start)} to "
            f"{_text(options.end)}. The roads there are not connected, or one-way."
        )
    _write(options.output, route_as_geojson(route))
    return 0


def add_reach(commands: Commands) -> None:
    """Add ``reach``."""
    reach = commands.add("reach", _reach)
    _add_network(reach)
    reach.value(
        "--minutes M,...",
        _minutes,
        "minutes, separated by commas (default: 5,10,15)",
        default=(5.0, 10.0, 15.0),
    )
    _add_output(reach)


def _reach(options: argparse.Namespace) -> int:
    """Find the roads that can be reached from a place in given times.

    NETWORK is as for `satmap route`. Prints a GeoJSON collection with one feature per time, the
    longest first: the roads that can be reached, with their total length in metres.

    Examples:
      satmap reach roads.gpkg -71.345,42.325
      satmap reach roads.gpkg -71.345,42.325 --minutes 2,4 --output reach.geojson
    """
    network = _read(options)
    from satmap.routing import reach_as_geojson

    start = _snapped(network, options.network, options.start)
    _write(options.output, reach_as_geojson(network, start, options.minutes))
    return 0


def _add_network(sub: Parser) -> None:
    # argparse takes other arguments that begin with a hyphen for options.
    sub._negative_number_matcher = _PLACE
    sub.value("network NETWORK", Path, "vector file of roads")
    sub.value("start FROM", _place, "where to start: LON,LAT, in degrees")
    add_least_confidence(sub)


def _add_output(sub: Parser) -> None:
    sub.value("--output OUT.geojson", Path, "file to write (default: standard output)")


def _read(options: argparse.Namespace) -> Any:
    from satmap.cli.checks import require_existing

    require_existing(options.network)
    if options.output:
        require_writable(options.output)
    from satmap.routing import read_network

    network = read_network(options.network, options.least_confidence)
    if network.assumed:
        report_warnings(
            [f"{network.assumed} roads state no speed; they get that of their class, or 20 mph"]
        )
    return network


def _snapped(network: Any, path: Path, place: tuple[float, float]) -> Any:
    """Return the nearest position on a road."""
    position = network.snap(*place)
    if position.distance_m > _TOO_FAR_M:
        raise SatmapError(
            f"{_text(place)} is {position.distance_m / 1000:.0f} km from the roads of {path}. Give "
            "LON,LAT in degrees, the longitude first."
        )
    if position.distance_m > _FAR_M:
        report_warnings(
            [f"{_text(place)} is {position.distance_m:.0f} m from the nearest road of {path}"]
        )
    return position


def _write(output: Path | None, content: dict[str, Any]) -> None:
    text = json.dumps(content) + "\n"
    if output is None:
        sys.stdout.write(text)
    else:
        write_text(output, text)


def _place(text: str) -> tuple[float, float]:
    parts = text.split(",")
    try:
        longitude, latitude = map(float, parts)
        if not (-180 <= longitude <= 180 and -90 <= latitude <= 90):
            raise ValueError
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not LON,LAT in degrees, such as -71.34,42.33"
        ) from error
    return longitude, latitude


def _minutes(text: str) -> tuple[float, ...]:
    try:
        found = tuple(map(float, text.split(",")))
        if not all(0 < each <= 1e6 for each in found):
            raise ValueError
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of minutes above 0, such as 5,10,15"
        ) from error
    return found


def _text(place: tuple[float, float]) -> str:
    return f"{place[0]:g},{place[1]:g}"
