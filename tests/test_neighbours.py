import numpy as np
from affine import Affine

from satmap.data.georeference import Georeference
from satmap.data.neighbours import Footprint, Neighbour, find_neighbours

SIZE = 3e-6


def chip(column: float, row: float, crs: str = "EPSG:4326", size: float = SIZE) -> Footprint:
    """A chip of 100 x 80 pixels whose first pixel lies there on a common grid."""
    transform = Affine(size, 0, 10 + column * SIZE, 0, -size, 50 - row * SIZE)
    return Footprint(Georeference(crs, transform, (0.3, 0.3)), 100, 80)


def test_offsets_of_those_within_the_margin() -> None:
    chips = [chip(0, 0), chip(100, 0), chip(-100.3, 80), chip(0, 95), chip(0, 300)]
    found = find_neighbours(chips, (20, 20))
    assert found[0] == [Neighbour(3, 0, 95), Neighbour(1, 100, 0), Neighbour(2, -100, 80)]
    assert found[1] == [Neighbour(0, -100, 0), Neighbour(3, -100, 95)]
    assert found[4] == []
    # A margin of 10 pixels does not reach over a gap of 15.
    assert 3 not in {n.image for n in find_neighbours(chips, (10, 10))[0]}


def test_unlike_grids_are_no_neighbours() -> None:
    turned = Footprint(
        Georeference("EPSG:4326", Affine.rotation(3) @ Affine.scale(SIZE), (0.3, 0.3)), 100, 80
    )
    others = [chip(100, 0, crs="EPSG:32631"), chip(100, 0, size=2 * SIZE), turned]
    assert find_neighbours([chip(0, 0), *others, Footprint(None, 9, 9)], (20, 20)) == [[]] * 5


def test_many_chips() -> None:
    chips = [chip(100 * x, 80 * y) for y in range(12) for x in range(9)]
    counts = np.array([len(found) for found in find_neighbours(chips, (5, 5))]).reshape(12, 9)
    assert (counts[1:-1, 1:-1] == 8).all()
    assert counts[0, 0] == counts[-1, -1] == 3
