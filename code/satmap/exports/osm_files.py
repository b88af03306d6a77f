"""Write OpenStreetMap files (XML and PBF) for JOSM and other editors.

Objects are new, so their ids are negative. A review must come before an upload, so the XML asks
JOSM not to upload it. https://wiki.openstreetmap.org/wiki/OSM_XML and .../JOSM_file_format.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.errors import CannotWriteError
from satmap.exports.gis_files import DECIMALS, rounded_degrees
from satmap.io.files import atomic_path

# OpenStreetMap's servers refuse longer ways.
_MOST_NODES = 2000

#: Tag of the probability that a road or building is right.
CONFIDENCE_TAG = "satmap:confidence"

Tags = Mapping[str, str]


@dataclass
class OsmData:
    """Nodes, ways and multipolygons, numbered from 0; their ids are -1, -2, ...

    Attributes:
        places: longitude and latitude of each node.
        ways: nodes and tags of each way.
        relations: members (way, role) and tags of each multipolygon.
    """

    places: list[tuple[float, float]] = field(default_factory=list)
    ways: list[tuple[list[int], Tags]] = field(default_factory=list)
    relations: list[tuple[list[tuple[int, str]], Tags]] = field(default_factory=list)

    def add_nodes(self, lon_lat: NDArray[np.float64]) -> range:
        """Add nodes at places (n, 2) and return their numbers."""
        first = len(self.places)
        self.places += [(x, y) for x, y in rounded_degrees(lon_lat).tolist()]
        return range(first, len(self.places))

    def add_line(self, line: NDArray[np.float64], start: int, end: int, tags: Tags) -> None:
        """Add a way along a line (n, 2) from the existing node ``start`` to ``end``."""
        inner = rounded_degrees(line[1:-1])
        # Vertices closer than the grid would be nodes on top of each other.
        before = np.vstack([[self.places[start]], inner[:-1]]) if len(inner) else inner
        fresh = (inner != before).any(axis=1) & (inner != self.places[end]).any(axis=1)
        nodes = [start, *self.add_nodes(inner[fresh]), end]
        step = _MOST_NODES - 1
        for first in range(0, len(nodes) - 1, step):
            self.ways.append((nodes[first : first + step + 1], tags))

    def add_area(self, polygon: shapely.Polygon, tags: Tags) -> None:
        """Add a closed way, or a multipolygon if there are holes or several parts."""
        parts = shapely.get_parts(polygon).tolist()
        rings = [("outer", part.exterior) for part in parts]
        rings += [("inner", ring) for part in parts for ring in part.interiors]
        simple = len(rings) == 1
        members = []
        for role, ring in rings:
            nodes = self.add_nodes(shapely.get_coordinates(ring)[:-1])
            members.append((len(self.ways), role))
            self.ways.append(([*nodes, nodes[0]], tags if simple else {}))
        if not simple and rings:
            self.relations.append((members, {"type": "multipolygon", **tags}))


def confidence_tags(confidence: float | None) -> dict[str, str]:
    """Return the tag of a calibrated confidence; none if it is not calibrated."""
    return {} if confidence is None else {CONFIDENCE_TAG: f"{confidence:.3f}"}


def write_osm(path: Path, data: OsmData) -> None:
    """Write OpenStreetMap data, atomically: PBF if the suffix is ``.pbf``, else XML.

    Raises:
        CannotWriteError: ``path`` cannot be written.
    """
    with atomic_path(path) as temporary:
        if path.suffix.lower() == ".pbf":
            _write_pbf(temporary, path, data)
        else:
            with temporary.open("w", encoding="utf-8", newline="") as file:
                file.writelines(_xml(data))


def _xml(data: OsmData) -> Iterable[str]:
    yield '<?xml version="1.0" encoding="UTF-8"?>\n'
    yield '<osm version="0.6" generator="satmap" upload="false">\n'
    for number, (lon, lat) in enumerate(data.places, 1):
        place = f'lat="{lat:.{DECIMALS}f}" lon="{lon:.{DECIMALS}f}"'
        yield f'  <node id="-{number}" visible="true" {place}/>\n'
    for number, (nodes, tags) in enumerate(data.ways, 1):
        yield f'  <way id="-{number}" visible="true">\n'
        yield "".join(f'    <nd ref="-{node + 1}"/>\n' for node in nodes)
        yield _xml_tags(tags) + "  </way>\n"
    for number, (members, tags) in enumerate(data.relations, 1):
        yield f'  <relation id="-{number}" visible="true">\n'
        for way, role in members:
            yield f'    <member type="way" ref="-{way + 1}" role="{role}"/>\n'
        yield _xml_tags(tags) + "  </relation>\n"
    yield "</osm>\n"


def _xml_tags(tags: Tags) -> str:
    return "".join(
        f"    <tag k={quoteattr(key)} v={quoteattr(value)}/>\n" for key, value in tags.items()
    )


def _write_pbf(temporary: Path, path: Path, data: OsmData) -> None:
    import osmium
    from osmium.osm import mutable

    # Its writer ends the process if the disk is full, so make sure that there is space: these many
    # bytes suffice without compression.
    references = sum(len(nodes) for nodes, _ in data.ways)
    temporary.write_bytes(
        bytes(12 * len(data.places) + 5 * references + 80 * len(data.ways) + 8192)
    )

    def ids(numbers: Sequence[int]) -> list[int]:
        return [-number - 1 for number in numbers]

    try:
        header = osmium.io.Header()
        header.set("generator", "satmap")
        file = osmium.io.File(str(temporary), "pbf")
        with osmium.SimpleWriter(file, header=header, overwrite=True) as writer:
            for number, place in enumerate(data.places, 1):
                writer.add_node(mutable.Node(id=-number, location=place))
            for number, (nodes, tags) in enumerate(data.ways, 1):
                writer.add_way(mutable.Way(id=-number, nodes=ids(nodes), tags=dict(tags)))
            for number, (members, tags) in enumerate(data.relations, 1):
                parts: list[Any] = [("w", -way - 1, role) for way, role in members]
                writer.add_relation(mutable.Relation(id=-number, members=parts, tags=dict(tags)))
    except RuntimeError as error:
        raise CannotWriteError(
            f"cannot write {path}: {error}. "
            "Check that the directory exists, is writable and has space."
        ) from error
