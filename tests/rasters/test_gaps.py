import numpy as np
import pytest

from satmap.rasters.gaps import mirror_into_gaps

ROWS, COLUMNS = np.mgrid[0:40, 0:50]
PIXELS = np.stack([ROWS + 1, COLUMNS + 1, ROWS + COLUMNS + 1], axis=2).astype(np.uint8)


@pytest.mark.parametrize("width", [1, 4, 15])
def test_a_gap_at_the_edge_shows_the_mirrored_image(width: int) -> None:
    pixels = PIXELS.copy()
    pixels[:, :width] = 0
    filled = mirror_into_gaps(pixels)
    assert np.array_equal(filled[:, width:], PIXELS[:, width:])
    # The first column with data is the mirror.
    assert np.array_equal(filled[:, :width], PIXELS[:, width + 1 : 2 * width + 1][:, ::-1])
    assert not pixels[:, :width].any()


def test_wedges_of_a_rotated_image_are_filled() -> None:
    covered = np.abs(ROWS - 20) + np.abs(COLUMNS - 25) < 18
    filled = mirror_into_gaps(np.where(covered[..., None], PIXELS, 0).astype(np.uint8))
    assert filled.any(axis=2).all()
    assert np.array_equal(filled[covered], PIXELS[covered])
    # Every filled pixel is one of the image.
    colours = {tuple(pixel) for pixel in PIXELS[covered].tolist()}
    assert {tuple(pixel) for pixel in filled[~covered].tolist()} <= colours


def test_dark_pixels_and_images_without_data_stay() -> None:
    pixels = PIXELS.copy()
    pixels[10, 10:20] = pixels[30:32, 30:32] = 0
    assert np.array_equal(mirror_into_gaps(pixels), pixels)
    nothing = np.zeros_like(PIXELS)
    assert not mirror_into_gaps(nothing).any()
    assert mirror_into_gaps(PIXELS) is PIXELS
