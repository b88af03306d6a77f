"""Roads of the blocks of a map become one network, as if there were no blocks."""

import math
import random
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import shapely

from decoded_blocks import decode_blocks
from drawn_roads import SCALE, Points, draw, graph_of, total_m
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.rasters.scene import Box
from satmap.tasks.roads.join_blocks import join_blocks
from satmap.tasks.roads.settings import ROAD, RoadSettings
from satmap.tasks.roads.tiles import RoadDecoder
from satmap.vectors.road_graph import RoadEdge, RoadGraph, line_length_m

METRES = (0.5, 0.5)
LEFT, RIGHT = Box(0, 0, 100, 100), Box(100, 0, 100, 100)
UPPER_LEFT, UPPER_RIGHT = Box(0, 0, 100, 100), Box(100, 0, 100, 100)
LOWER_LEFT, LOWER_RIGHT = Box(0, 100, 100, 100), Box(100, 100, 100, 100)


def graph(*lines: Points, speed: float = 10, probability: float = 0.5) -> RoadGraph:
    """Return a graph of lines that meet where they end at the same place."""
    nodes: dict[tuple[float, float], int] = {}
    edges = []
    for line in lines:
        ends = [nodes.setdefault((x, y), len(nodes)) for x, y in (line[0], line[-1])]
        points = np.array(line, float)
        length = line_length_m(points, METRES)
        edges.append(RoadEdge((ends[0], ends[1]), points, length, speed, probability))
    return RoadGraph(np.array([*nodes], float).reshape(-1, 2), tuple(edges))


def shape(graph: RoadGraph) -> tuple[int, int, list[int]]:
    """Return the numbers of components and edges, and the sorted degrees."""
    network = nx.MultiGraph([edge.nodes for edge in graph.edges])
    degrees = sorted(degree for _, degree in network.degree())
    return nx.number_connected_components(network), len(graph.edges), degrees


# --- two and four blocks --------------------------------------------------------------------------


def test_a_road_across_a_seam_becomes_one() -> None:
    left = graph([(10, 50), (100, 50)], speed=10, probability=0.4)
    right = graph([(0.1, 50.3), (45, 50.3)], speed=20, probability=1)
    found = join_blocks([(LEFT, left), (RIGHT, right)], METRES)
    (edge,) = found.edges
    assert found.nodes.tolist() == [[10, 50], [145, 50.3]]
    assert edge.line.tolist() == [[10, 50], [100, 50.2], [145, 50.3]]
    assert edge.length_m == pytest.approx(67.5, abs=0.01)
    # Travel times add up, and confidence is the mean by length.
    assert edge.travel_time_s == pytest.approx(45 / 10 + 22.45 / 20, rel=1e-3)
    assert edge.mean_probability == pytest.approx((45 * 0.4 + 22.45) / 67.45, rel=1e-3)


def test_the_order_of_the_blocks_does_not_matter() -> None:
    blocks = [
        (UPPER_LEFT, graph([(20, 100), (20, 50), (100, 50)], [(60, 30), (100, 40)])),
        (UPPER_RIGHT, graph([(0, 50.2), (60, 70), (70, 100)], [(0, 40.1), (30, 10)])),
        (LOWER_LEFT, graph([(20.2, 0), (40, 60), (100, 60)])),
        (LOWER_RIGHT, graph([(0, 60), (50, 50), (70.2, 0)])),
    ]
    first = join_blocks(blocks, METRES)
    for seed in range(4):
        random.Random(seed).shuffle(blocks)
        again = join_blocks(blocks, METRES)
        assert again.nodes.tolist() == first.nodes.tolist()
        assert [(e.nodes, e.line.tolist()) for e in again.edges] == [
            (e.nodes, e.line.tolist()) for e in first.edges
        ]
    # A ring through all four blocks, and a road.
    assert shape(first) == (2, 2, [1, 1, 2])
    ring = next(edge for edge in first.edges if edge.nodes[0] == edge.nodes[1])
    assert ring.line[0].tolist() == ring.line[-1].tolist()


def test_ends_within_a_block_and_far_from_each_other_stay() -> None:
    left = graph([(10, 50), (95, 50)], [(10, 20), (100, 20)])
    right = graph([(5, 50), (60, 50)], [(0, 30), (60, 30)])
    # 5 m lie between the ends on the seam, and 10 px between those within the blocks.
    assert shape(join_blocks([(LEFT, left), (RIGHT, right)], METRES))[0] == 4


def test_each_end_is_joined_once_to_the_nearest() -> None:
    left = graph([(10, 50), (100, 50)], [(10, 56), (100, 56)])
    right = graph([(0, 51), (60, 51)], [(0, 55), (60, 70)])
    found = join_blocks([(LEFT, left), (RIGHT, right)], METRES)
    assert shape(found) == (2, 2, [1] * 4)
    assert {tuple(edge.line[-1]) for edge in found.edges} == {(160, 51), (160, 70)}


def test_an_end_meets_a_road_along_the_seam_of_the_other_block() -> None:
    left = graph([(10, 50), (100, 50)])
    right = graph([(2, 10), (2, 90)])
    found = join_blocks([(LEFT, left), (RIGHT, right)], METRES)
    assert shape(found) == (1, 3, [1, 1, 1, 3])
    assert total_m(found) == pytest.approx((92 + 80) / 2)
    # At its node, no road is split.
    crossing = graph([(2, 10), (2, 50.4)], [(2, 50.4), (2, 90)])
    assert shape(join_blocks([(LEFT, left), (RIGHT, crossing)], METRES)) == (1, 3, [1, 1, 1, 3])
    # Two roads meet the same one.
    two = graph([(10, 50), (100, 50)], [(10, 70), (100, 70)])
    assert shape(join_blocks([(LEFT, two), (RIGHT, right)], METRES)) == (1, 5, [1, 1, 1, 1, 3, 3])


def test_a_junction_on_a_seam_is_one() -> None:
    left = graph([(10, 50), (100, 50)], [(40, 10), (100, 50)])
    right = graph([(0.1, 50.2), (60, 50)], [(0.1, 50.2), (60, 90)])
    found = join_blocks([(LEFT, left), (RIGHT, right)], METRES)
    assert shape(found) == (1, 4, [1, 1, 1, 1, 4])
    # And where four blocks meet, one after the other.
    corners = [
        (UPPER_LEFT, graph([(10, 100), (100, 100)], [(100, 10), (100, 100)])),
        (UPPER_RIGHT, graph([(0, 100), (50, 100)])),
        (LOWER_LEFT, graph()),
        (LOWER_RIGHT, graph([(0, 0), (0, 90)])),
    ]
    assert shape(join_blocks(corners, METRES))[0] == 1


def test_leftovers_at_a_seam_are_dropped_and_dead_ends_kept() -> None:
    left = graph([(10, 50), (40, 50)], [(95, 80), (100, 80)], [(70, 20), (100, 20)])
    found = join_blocks([(LEFT, left), (RIGHT, graph())], METRES)
    assert [edge.line.tolist() for edge in found.edges] == [[[10, 50], [40, 50]],
                                                            [[70, 20], [100, 20]]]  # fmt: skip
    # Nothing is at a seam in a map of one block but the edges of the map.
    assert shape(join_blocks([(LEFT, graph([(95, 80), (100, 80)]))], METRES))[1] in (0, 1)
    assert not join_blocks([], METRES).edges
    assert not join_blocks([(LEFT, graph())], METRES).edges


def test_a_road_that_ends_twice_at_the_same_place_of_a_seam() -> None:
    # Like the letter U, whose ends are near each other: they are not joined with each other.
    left = graph([(100, 48), (50, 48), (50, 52), (100, 52)])
    right = graph([(0, 50), (50, 50)])
    found = join_blocks([(LEFT, left), (RIGHT, right)], METRES)
    assert shape(found)[0] == 1
    assert total_m(found) >= (104 + 50) / 2 - 1


# --- drawn roads, vectorised in blocks ------------------------------------------------------------


def city(seed: int, size: int) -> list[Points]:
    """Return streets at an odd angle, with a ring and a curve."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, math.pi)
    along, across = np.array([math.cos(angle), math.sin(angle)]), np.array(
        [-math.sin(angle), math.cos(angle)]
    )  # fmt: skip
    middle = np.array([size / 2, size / 2])
    lines: list[Points] = []
    for step in np.arange(-size, size, size / 5):
        for one, other in ((along, across), (across, along)):
            offset = middle + other * (step + rng.uniform(-8, 8))
            lines.append([tuple(offset - one * size), tuple(offset + one * size)])
    turns = np.linspace(0, 2 * math.pi, 40)
    lines.append([(size * (0.5 + 0.3 * math.cos(t)), size * (0.5 + 0.3 * math.sin(t)))
                  for t in turns])  # fmt: skip
    return lines


@pytest.mark.parametrize(("seed", "side"), [(0, 150), (1, 200)])
def test_a_town_in_blocks_is_the_town_as_a_whole(tmp_path: Path, seed: int, side: int) -> None:
    mask = draw(*city(seed, 600), shape=(600, 600), width=12)
    maps = ProbabilityMaps((ROAD,), mask[None], SCALE)
    expected = graph_of(mask)
    blocks = decode_blocks(maps, RoadDecoder(RoadSettings(), SCALE[0]), side, tmp_path)
    found = join_blocks(blocks, SCALE)
    assert shape(found)[0] == shape(expected)[0]
    assert total_m(found) == pytest.approx(total_m(expected), rel=0.01)
    crossings, wanted = (
        sum(degree >= 3 for degree in shape(each)[2]) for each in (found, expected)
    )
    assert abs(crossings - wanted) <= 0.05 * wanted + 1
    # The lines lie where they should, and none is drawn twice.
    lines, others = (
        shapely.union_all([shapely.LineString(edge.line) for edge in each.edges])
        for each in (found, expected)
    )
    assert lines.difference(others.buffer(4)).length < 0.01 * others.length
    assert others.difference(lines.buffer(4)).length < 0.01 * others.length
    for edge in found.edges:
        assert edge.line[0].tolist() == found.nodes[edge.nodes[0]].tolist()
        assert edge.line[-1].tolist() == found.nodes[edge.nodes[1]].tolist()


@pytest.mark.parametrize("y", [148, 149.5, 150, 150.5])
def test_a_road_along_a_seam_stays_one(tmp_path: Path, y: float) -> None:
    mask = draw([(0, y), (300, y + 2)], [(80, 20), (80, 280)], shape=(300, 300))
    maps = ProbabilityMaps((ROAD,), mask[None], SCALE)
    blocks = decode_blocks(maps, RoadDecoder(RoadSettings(), SCALE[0]), 150, tmp_path)
    found = join_blocks(blocks, SCALE)
    assert shape(found) == shape(graph_of(mask))
    assert total_m(found) == pytest.approx(total_m(graph_of(mask)), rel=0.02)
