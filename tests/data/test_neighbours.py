import numpy as np
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from satmap.data.neighbours import ImageFootprint, Neighbour, find_neighbours
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.tasks.roads.settings import ROAD
from satmap.tasks.roads.tiles import find_surroundings
from satmap.vectors.georeference import Georeference
from surroundings import with_surroundings

SIZE = 3e-6


def chip(column: float, row: float, crs: str = "EPSG:4326", size: float = SIZE) -> ImageFootprint:
    """Return a chip of 100 x 80 pixels with its first pixel at (column, row) of a common grid."""
    transform = Affine(size, 0, 10 + column * SIZE, 0, -size, 50 - row * SIZE)
    return ImageFootprint(Georeference(crs, transform, (0.3, 0.3)), 100, 80)


def test_offsets_of_neighbours_within_the_margin() -> None:
    chips = [chip(0, 0), chip(100, 0), chip(-100.3, 80), chip(0, 95), chip(0, 300)]
    found = find_neighbours(chips, (20, 20))
    assert found[0] == [Neighbour(3, 0, 95), Neighbour(1, 100, 0), Neighbour(2, -100, 80)]
    assert found[1] == [Neighbour(0, -100, 0), Neighbour(3, -100, 95)]
    assert found[4] == []
    # A margin of 10 pixels does not bridge a gap of 15.
    assert 3 not in {n.image for n in find_neighbours(chips, (10, 10))[0]}


def test_images_on_different_grids_are_no_neighbours() -> None:
    turned = ImageFootprint(
        Georeference("EPSG:4326", Affine.rotation(3) @ Affine.scale(SIZE), (0.3, 0.3)), 100, 80
    )
    others = [chip(100, 0, crs="EPSG:32631"), chip(100, 0, size=2 * SIZE), turned]
    assert find_neighbours([chip(0, 0), *others, ImageFootprint(None, 9, 9)], (20, 20)) == [[]] * 5


def test_many_chips() -> None:
    chips = [chip(100 * x, 80 * y) for y in range(12) for x in range(9)]
    counts = np.array([len(found) for found in find_neighbours(chips, (5, 5))]).reshape(12, 9)
    assert (counts[1:-1, 1:-1] == 8).all()
    assert counts[0, 0] == counts[-1, -1] == 3


def test_only_images_visible_in_a_margin_are_kept() -> None:
    # The margin is 220 pixels. The second touches the first; the third is 15 pixels below.
    chips = [chip(0, 0), chip(100, 0), chip(0, 95), ImageFootprint(None, 9, 9)]
    assert find_surroundings(chips) == [[Neighbour(1, 100, 0)], [Neighbour(0, -100, 0)], [], []]
    assert find_surroundings([ImageFootprint(None, 9, 9)]) == [[]]
    # A small chip opens the first one's margin to the right, where another, which touches none, is
    # visible.
    small = chip(100, 0)._replace(width=10, height=20)
    assert find_surroundings([chip(0, 0), small, chip(115, 60)]) == [
        [Neighbour(1, 100, 0), Neighbour(2, 115, 60)],
        [Neighbour(0, -100, 0)],
        [Neighbour(0, -115, -60)],
    ]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(*2 * [st.integers(-25, 25)], *2 * [st.integers(3, 20)]), min_size=2, max_size=6
    )
)
def test_all_images_visible_around_an_image_are_listed(boxes: list[tuple[int, ...]]) -> None:
    # With such large pixels the margin is 6 pixels.
    scale = (11.0, 11.0)
    chips = [
        ImageFootprint(
            Georeference("EPSG:32631", Affine(11, 0, 11 * x, 0, -11, -11 * y), scale), w, h
        )
        for x, y, w, h in boxes
    ]
    maps = [
        ProbabilityMaps((ROAD,), np.full((1, h, w), 10 + number, np.uint8), scale)
        for number, (_, _, w, h) in enumerate(boxes)
    ]
    for index, found in enumerate(find_surroundings(chips)):
        # All chips lie within 999 pixels.
        everybody = find_neighbours(chips, (999, 999))[index]
        seen, expected = (
            with_surroundings(maps[index], [(maps[n.image], n.column, n.row) for n in its])
            for its in (found, everybody)
        )
        assert seen[1] == expected[1]
        np.testing.assert_array_equal(seen[0][ROAD], expected[0][ROAD])


def test_the_margin_of_tiny_images_is_limited_by_their_size() -> None:
    """Otherwise each of thousands would be vectorised together with hundreds of others."""
    chips = [chip(100 * x, 80 * y) for y in range(12) for x in range(9)]
    counts = [len(found) for found in find_neighbours(chips, (1000, 1000))]
    # Two rings of neighbours: an image that touches the margin counts.
    assert max(counts) == 24
    large = chip(-600, 0)._replace(width=500)
    found = find_neighbours([large, chip(0, 0)], (300, 300))
    assert [len(others) for others in found] == [1, 1]


@given(st.lists(st.tuples(*[st.integers(-300, 300)] * 2, *[st.integers(1, 120)] * 2), max_size=12))
@settings(deadline=None)
def test_neighbours_equal_those_of_a_plain_search(places: list[tuple[int, int, int, int]]) -> None:
    margin = 40
    chips = [chip(x, y)._replace(width=w, height=h) for x, y, w, h in places]
    found = find_neighbours(chips, (margin, margin))

    def reach(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
        (x, y, w, h), (u, v, s, t) = one, other
        gap_x, gap_y = max(u - x - w, x - u - s), max(v - y - h, y - v - t)
        return gap_x < min(margin, w) and gap_y < min(margin, h)

    def touch(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
        (x, y, w, h), (u, v, s, t) = one, other
        gap_x, gap_y = max(u - x - w, x - u - s), max(v - y - h, y - v - t)
        return gap_x == min(margin, w) or gap_y == min(margin, h)

    for index, one in enumerate(places):
        there = {n.image: (n.column, n.row) for n in found[index]}
        for number, other in enumerate(places):
            # Rounding decides on which side coinciding borders lie.
            if number == index or touch(one, other) or touch(other, one):
                continue
            assert (number in there) == (reach(one, other) or reach(other, one))
            if number in there:
                assert there[number] == (other[0] - one[0], other[1] - one[1])
        assert [n.image for n in found[index]] == sorted(
            there, key=lambda n: (there[n][0] ** 2 + there[n][1] ** 2, n)
        )
