"""Widths of roads: measured in the road map, and kept until the export."""

from dataclasses import replace

import numpy as np
import pytest

from drawn_roads import SCALE, draw, graph_of
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.rasters.scene import Box
from satmap.tasks.base import default_task
from satmap.tasks.roads.join_blocks import join_blocks
from satmap.tasks.roads.settings import ROAD, SPEED_MAPS
from satmap.tasks.roads.vectorizer.vectorize_roads import vectorize_roads
from satmap.vectors.road_graph import ImageRoads


@pytest.mark.parametrize(("width", "metres"), [(10, 3.0), (20, 6.0), (40, 12.0)])
def test_widths_are_those_of_the_road_map(width: int, metres: float) -> None:
    graph = graph_of(draw([(0, 200), (400, 200)], width=width))
    (edge,) = graph.edges
    assert edge.width_m == pytest.approx(metres, abs=0.5)
    # This map has no speeds.
    assert edge.speed_source == "default"


def test_each_road_has_its_own_width() -> None:
    wide, narrow = (draw(line, width=width) for line, width in (
        ([(0, 100), (400, 100)], 30), ([(200, 100), (200, 400)], 12),
    ))  # fmt: skip
    graph = graph_of(np.maximum(wide, narrow))
    widths = sorted(edge.width_m or 0 for edge in graph.edges)
    assert widths == pytest.approx([3.6, 9, 9], abs=0.6)


def test_speeds_of_speed_maps_are_estimated() -> None:
    road = draw([(0, 200), (400, 200)])
    values = np.stack([road, *(road if name == "speed4" else road * 0 for name in SPEED_MAPS)])
    (edge,) = vectorize_roads(ProbabilityMaps((ROAD, *SPEED_MAPS), values, SCALE)).edges
    assert edge.speed_source == "estimated"
    assert edge.width_m == pytest.approx(14 * 0.3, abs=0.5)


def test_widths_survive_the_journal_and_the_joining_of_blocks() -> None:
    graph = graph_of(draw([(0, 200), (400, 200)], width=20))
    task = default_task("roads")
    back = task.from_json(task.as_json(ImageRoads("a", graph)))
    assert (back.graph.edges[0].width_m, back.graph.edges[0].speed_source) == (
        graph.edges[0].width_m, "default",
    )  # fmt: skip
    blocks = [(Box(0, 0, 400, 400), graph), (Box(400, 0, 400, 400), graph)]
    (edge,) = join_blocks(blocks, SCALE).edges
    assert edge.width_m == pytest.approx(6, abs=0.5)
    unknown = replace(graph, edges=tuple(replace(e, width_m=None) for e in graph.edges))
    (edge,) = join_blocks([blocks[0], (blocks[1][0], unknown)], SCALE).edges
    assert edge.width_m is None or edge.width_m == pytest.approx(6, abs=0.5)
