"""Thinning, tracing and walks on networks, compared with plain implementations."""

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from satmap.tasks.roads.vectorizer.evidence import Evidence, samples
from satmap.tasks.roads.vectorizer.network import Network, follow_chains
from satmap.tasks.roads.vectorizer.skeleton import thin
from satmap.tasks.roads.vectorizer.trace import trace_skeleton


def masks() -> dict[str, NDArray[np.uint8]]:
    rng = np.random.default_rng(3)
    noise = rng.random((150, 211))
    soft = cv2.GaussianBlur(rng.random((150, 211)), (0, 0), 3)
    wide = np.zeros((70, 400), np.uint8)
    wide[10:60, 5:395] = 1
    ring = np.zeros((90, 90), np.uint8)
    cv2.circle(ring, (45, 45), 30, 1, 9)
    return {
        "noise": (noise < 0.5).astype(np.uint8),
        "labyrinth": (soft > 0.5).astype(np.uint8),
        "wide": wide,
        "ring": ring,
        "one pixel": np.pad(np.ones((1, 1), np.uint8), 3),
        "full": np.ones((65, 64), np.uint8),
    }


@pytest.mark.parametrize("name", list(masks()))
def test_thinning_keeps_the_topology_and_is_thin(name: str) -> None:
    mask = np.pad(masks()[name], 1)
    skeleton = np.zeros_like(mask)
    skeleton[thin(mask)[:2]] = 1
    assert not (skeleton & ~mask & 1).any()
    for inverse, connectivity in ((0, 8), (1, 4)):
        before = cv2.connectedComponents(mask ^ inverse, connectivity=connectivity)[0]
        after = cv2.connectedComponents(skeleton ^ inverse, connectivity=connectivity)[0]
        assert before == after
    # No pixel is surrounded by road.
    assert not cv2.erode(skeleton, np.ones((3, 3), np.uint8)).any()
    again = np.zeros_like(mask)
    again[thin(skeleton)[:2]] = 1
    np.testing.assert_array_equal(again, skeleton)


def test_thinning_across_machine_words() -> None:
    mask = np.zeros((40, 300), np.uint8)
    mask[12:25, 3:290] = 1
    rows, columns, _ = thin(mask)
    for shift in (1, 31, 63, 64):
        shifted, moved, _ = thin(np.pad(mask, ((0, 0), (shift, 0))))
        np.testing.assert_array_equal(shifted, rows)
        np.testing.assert_array_equal(moved, columns + shift)


def test_trace_covers_the_skeleton() -> None:
    rows, columns, _ = thin(masks()["labyrinth"])
    network = trace_skeleton(rows, columns)
    inner = {tuple(point) for point in network.points.tolist()}
    pixels = {(x + 0.5, y + 0.5) for x, y in zip(columns.tolist(), rows.tolist(), strict=True)}
    # Pixels of a junction become one node at their mean position. All others are points of a line,
    # except isolated ones.
    assert len(pixels - inner) <= 3 * (network.degrees >= 3).sum() + 20
    starts = network.points[network.starts]
    stops = network.points[network.starts + network.counts - 1]
    np.testing.assert_array_equal(starts, network.nodes[network.ends[:, 0]])
    np.testing.assert_array_equal(stops, network.nodes[network.ends[:, 1]])


def test_chains_hold_every_edge_once() -> None:
    rng = np.random.default_rng(4)
    ends = rng.integers(0, 300, (260, 2))
    halves, counts = follow_chains(300, ends)
    assert sorted((halves >> 1).tolist()) == list(range(260))
    origin = ends.reshape(-1)
    inner = np.ones(len(halves), np.bool_)
    inner[np.cumsum(counts) - 1] = False
    # Each half-edge ends where the next of its chain starts.
    np.testing.assert_array_equal(
        origin[halves ^ 1][inner], origin[halves][np.flatnonzero(inner) + 1]
    )


def test_places_and_samples_lie_along_roads() -> None:
    bent, straight = [[0.0, 0.0], [10.0, 0.0], [10.0, 10.0]], [[50.0, 5.0], [54.0, 5.0]]
    lines = [np.array(bent), np.array(straight)]
    nodes = np.array([[0.0, 0.0], [10.0, 10.0], [50.0, 5.0], [54.0, 5.0]])
    network = Network.of_lines(nodes, np.array([[0, 1], [2, 3]]), lines)
    np.testing.assert_allclose(network.lengths, np.array([20, 4]))
    roads, distances = np.array([0, 0, 0, 1, 1]), np.array([0.0, 12.0, 20.0, 0.0, 4.0])
    expected = np.array([[0, 0], [10, 2], [10, 10], [50, 5], [54, 5]])
    np.testing.assert_allclose(network.places(roads, distances), expected)
    owner, places = samples(network, np.array([1, 0]), 5.0, 0.0)
    assert owner.tolist() == [0, 1, 1, 1, 1]
    np.testing.assert_allclose(
        places, np.array([[52, 5], [2.5, 0], [7.5, 0], [10, 2.5], [10, 7.5]])
    )
    _, inner = samples(network, np.array([1]), 5.0, 100.0)
    np.testing.assert_allclose(inner, np.array([[52, 5]]))


def test_evidence_of_a_bridge_leaves_out_the_roads_it_joins() -> None:
    probability_map = np.zeros((100, 100), np.uint8)
    probability_map[:, :30] = probability_map[:, 70:] = 255
    probability_map[50:, 30:70] = 51
    evidence = Evidence(probability_map, np.ones(2), 0.3)
    starts, stops = np.array([[10.0, 20.0], [10.0, 80.0]]), np.array([[90.0, 20.0], [90.0, 80.0]])
    probability, unproven = evidence.between(starts, stops)
    np.testing.assert_allclose(probability, [0, 0.2])
    np.testing.assert_allclose(unproven, 40, atol=4)
