import pytest

from satmap.vectors.speeds import class_speed_mph, label_speed_mph, speed_bin


@pytest.mark.parametrize(
    ("properties", "mph"),
    [
        ({"inferred_speed_mph": 35.0, "highway": "motorway"}, 35),
        ({"inferred_speed_mps": 11.176}, 25),
        ({"speed_mph": 20, "road_type": "1"}, 20),
        ({"speed_m/s": 8.9408}, 20),
        ({"highway": "motorway", "lanes": "3"}, 65),
        ({"highway": "motorway_link", "lanes": "1"}, 55),
        ({"highway": "residential", "lanes": "2;3"}, 25),
        ({"highway": "residential", "lanes": None, "surface": "unpaved"}, 18.75),
        ({"highway": "track", "surface": "gravel"}, 15),
        ({"highway": "no such class"}, 20),
        ({"road_type": "2", "lane_number": "4"}, 55),
        ({"road_type": 5, "lane_numbe": 2, "paved": "2"}, 18.75),
        ({"road_type": 5, "paved": "3"}, 25),
        ({"inferred_speed_mph": "nonsense", "highway": "tertiary"}, 30),
        ({"inferred_speed_mph": 5e-324, "highway": "tertiary"}, 30),
        ({"inferred_speed_mph": 1e9, "highway": "tertiary"}, 30),
        ({}, 20),
    ],
)
def test_speed_of_labels(properties: dict[str, object], mph: float) -> None:
    assert label_speed_mph(properties) == pytest.approx(mph)


def test_three_lanes_are_faster_than_two() -> None:
    assert class_speed_mph("primary", 2) < class_speed_mph("primary", 3)


@pytest.mark.parametrize(
    ("mph", "index"), [(7.5, 0), (10, 0), (10.1, 1), (18.75, 2), (25, 4), (65, 9), (90, 9)]
)
def test_a_speed_on_an_edge_belongs_to_the_bin_it_closes(mph: float, index: int) -> None:
    assert speed_bin(mph) == index
