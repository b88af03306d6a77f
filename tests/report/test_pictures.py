"""Pictures of the roads, buildings and masks of one image."""

import itertools
import math
from collections.abc import Sequence

import cv2
import numpy as np
import pytest
import shapely
from numpy.typing import NDArray

from satmap.report.panels import (
    CASING,
    PANEL_PX,
    Colour,
    Ground,
    Picture,
    Units,
    View,
    compose,
    draw_text,
    text_size,
)
from satmap.report.pictures import (
    FALSE,
    FOUND,
    MISSED,
    buildings_picture,
    mask_picture,
    road_errors_picture,
    roads_picture,
    score_line,
    speed_colour,
)
from satmap.submissions.buildings_csv import BuildingRow
from satmap.submissions.roads_csv import RoadRow
from satmap.vectors.speeds import MPS_PER_MPH

NOISE = np.random.default_rng(0).integers(0, 256, (350, 350, 3), dtype=np.uint8)


def roads(*lines: Sequence[tuple[float, float]], mph: float = math.nan) -> list[RoadRow]:
    return [
        RoadRow(np.array(line, np.float64), 100.0, 100.0 / (mph * MPS_PER_MPH)) for line in lines
    ]


def panel(picture: Picture, index: int = 0, captions: int = 1) -> Picture:
    """Return the drawing of a panel, below margin, captions and heading."""
    top, left = 12 + 28 * (captions + 1), 12 + index * (PANEL_PX + 12)
    return picture[top : top + PANEL_PX, left : left + PANEL_PX]


def has(picture: Picture, colour: Colour) -> bool:
    return bool((np.abs(picture.astype(int) - colour) <= 2).all(axis=2).any())


# --- colours --------------------------------------------------------------------------------------

# Machado, Oliveira and Fernandes 2009, "A Physiologically-based Model for Simulation of Color
# Vision Deficiency", at full severity, for linear RGB.
VISIONS: dict[str, list[list[float]]] = {
    "normal": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def seen(colours: Sequence[Colour], vision: str) -> NDArray[np.float64]:
    """Return CIELAB values (n, 3) of colours as seen with a colour vision."""
    s = np.array(colours) / 255
    linear = np.where(s <= 0.04045, s / 12.92, ((s + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ np.transpose(VISIONS[vision]), 0, 1)
    s = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    lab = cv2.cvtColor(s[None].astype(np.float32), cv2.COLOR_RGB2LAB)[0]
    return np.asarray(lab, np.float64)


@pytest.mark.parametrize("vision", VISIONS)
def test_colours_differ_for_every_colour_vision(vision: str) -> None:
    for one, other in itertools.combinations(seen([FOUND, MISSED, FALSE], vision), 2):
        # 2.3 is just noticeable.
        assert math.dist(one, other) > 30
    speeds = seen([speed_colour(kmh / 3.6) for kmh in (20, 40, 60, 80, 100)], vision)
    for one, other in itertools.pairwise(speeds):
        assert math.dist(one, other) > 15
    assert math.dist(speeds[0], speeds[-1]) > 60


@pytest.mark.parametrize("mph", [5, 10, 15, 25, 45, 65, 80, math.nan])
def test_every_speed_stands_out_from_its_casing(mph: float) -> None:
    assert max(speed_colour(mph * MPS_PER_MPH)) > 150


# --- views and texts ------------------------------------------------------------------------------


def test_view_reaches_round_numbers() -> None:
    assert View.around(np.array([[3.0, 8.0], [1296.0, 1300.1]])) == View(0, 0, 1300, 1300)
    assert View.around(np.array([[-312.0, 0.0], [-20.0, 190.0]])) == View(-320, 0, 300, 190)
    assert View.around(np.empty((0, 2))) == View(0, 0, 100, 100)
    # A straight road is shown with some ground beside it.
    flat = View.around(np.array([[0.0, 500.0], [900.0, 500.0]]))
    assert (flat.left, flat.width, flat.top, flat.height) == (0, 900, 350, 300)


def test_units() -> None:
    assert [Units.KMH.length(m) for m in (3.14, 17.2, 999.4, 1250)] == [
        "3.1 m", "17 m", "999 m", "1.25 km",
    ]  # fmt: skip
    assert [Units.MPH.length(m) for m in (30.48, 1609.344, 4000)] == ["100 ft", "1 mi", "2.49 mi"]
    assert Units.KMH.round_length(99) == 50
    assert Units.KMH.round_length(2500) == 2000
    assert Units.MPH.round_length(40) == pytest.approx(30.48)
    assert Units.MPH.round_length(2000) == pytest.approx(1609.344)


@pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 1, 1]), (8, [0, 1, 2])])
def test_images_of_any_number_of_bands_are_shown(channels: int, shown: list[int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, channels), dtype=np.uint8)
    panel = Ground.of_image(image).panel()
    assert np.array_equal(panel, Ground.of_image(image[..., shown]).panel())


@pytest.mark.parametrize("metres", [None, 0.001, 0.3, 100])
@pytest.mark.parametrize("units", Units)
def test_scale_bar_is_as_long_as_it_says(metres: float | None, units: Units) -> None:
    view = View(0, 0, 650, 500)
    bar = (view.scale_bar(metres, units)[18] < 60).all(axis=1)
    # The line at its foot, without the text beside it.
    length_px = int(np.argmin(bar[5:])) + 5
    assert 60 < length_px <= 0.26 * PANEL_PX
    if metres is None:
        return
    length = length_px / view.scale * metres / (1 if units is Units.KMH else 0.3048)
    longer = 5280 if length > 5000 and units is Units.MPH else 1
    mantissa = length / longer / 10 ** math.floor(math.log10(length / longer) + 0.02)
    assert min(abs(mantissa / step - 1) for step in (1, 2, 5)) < 0.06


@pytest.mark.parametrize("size", [(20, 20), (300, 300), (60, 900), (3000, 2000), (9, 4000)])
def test_panels_have_one_size_and_readable_texts(size: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), np.uint8)
    ground = Ground.of_image(image, 0.5)
    picture = roads_picture([], ground=ground, caption=["x" * 5000, "é"])
    assert max(ground.panel().shape) == PANEL_PX
    assert 880 <= picture.shape[1] < 2000
    assert text_size("x", 14)[1] >= 18


def test_texts_at_the_border_do_not_fail() -> None:
    picture = np.zeros((30, 30, 3), np.uint8)
    for place in ((25, 25), (40, 2), (2, 40), (2, 2)):
        draw_text(picture, "long text", place, FOUND, casing=True)
    assert picture.any()


def test_labels_do_not_cover_each_other() -> None:
    view = View(0, 0, 100, 100)
    panel = np.full((PANEL_PX, PANEL_PX, 3), 255, np.uint8)
    points = [np.array([50.0, 50.0])] * 3
    view.draw_labels(panel, [(point, "0.5", FOUND) for point in points])
    rows = np.flatnonzero((panel != 255).any(axis=(1, 2)))
    assert np.ptp(rows) > 2.5 * text_size("0.5", 14)[1] - 14


def test_an_image_keeps_its_contrast() -> None:
    """Only lines and their casing change it."""
    image = cv2.resize(NOISE, (PANEL_PX, PANEL_PX), interpolation=cv2.INTER_NEAREST)
    ground = Ground.of_image(np.asarray(image, np.uint8))
    picture = roads_picture(roads([(100, 300), (700, 300)], mph=25), ground=ground, caption=["x"])
    drawn = panel(picture)
    assert np.array_equal(panel(picture, 1), image)
    changed = (drawn != image).any(axis=2)
    assert changed[297:303, 150:650].mean() > 0.99
    assert not changed[:290].any() and not changed[310:].any()
    assert np.abs(drawn[299:301, 400] - np.array(speed_colour(25 * MPS_PER_MPH))).max() <= 2
    assert np.abs(drawn[[296, 303], 400].astype(int) - CASING).max() <= 90
    # Dots where the road ends.
    assert drawn[299, [99, 699]].tolist() == [[255] * 3] * 2


def test_no_casing_cuts_through_another_road() -> None:
    rows = [*roads([(10, 30), (70, 30)], mph=25), *roads([(40, 5), (40, 55)], mph=60)]
    ground = Ground.of_image(np.zeros((80, 80, 3), np.uint8))
    for order in (rows, rows[::-1]):
        drawn = panel(roads_picture(order, ground=ground, caption=["x"]))
        assert (drawn[337, 130:780].max(axis=1) > 150).all()


# --- roads ----------------------------------------------------------------------------------------


def test_roads_picture_shows_what_is_missed_and_false() -> None:
    # A road of both maps, from the top to the bottom of a view of 350 x 350 px.
    common = [(0.0, 0.0), (0.0, 350.0)]
    truth, proposal = roads(common, [(0, 100), (350, 100)]), roads(common, [(0, 250), (350, 250)])
    for ground in (None, Ground.of_image(np.zeros((350, 350, 3), np.uint8), 0.5)):
        picture = road_errors_picture(truth, proposal, caption=["chip", "0.5"], ground=ground)
        errors, routes = (panel(picture, i, captions=2) for i in range(2))
        scale = PANEL_PX / 350
        assert errors[round(100 * scale), 450].tolist() == list(MISSED)
        assert errors[round(250 * scale), 450].tolist() == list(FALSE)
        assert errors[round(300 * scale), 1].tolist() == list(FOUND)
        assert errors[50, 50].tolist() == [255 if ground is None else 0] * 3
        assert has(routes, MISSED)  # nodes that are not found
    picture = road_errors_picture(truth, truth, caption=["chip", "1"])
    assert not has(panel(picture, captions=2), MISSED)


def test_roads_picture_shows_crossings_and_false_turns() -> None:
    across, left, right = [(0, 175), (350, 175)], [(90, 0), (90, 350)], [(260, 0), (260, 350)]
    truth = roads(across, left, right)
    proposal = roads([(0, 175), (260, 175), (350, 175)], left, [(260, 0), (260, 175), (260, 350)])
    ground = Ground.of_image(np.zeros((350, 350, 3), np.uint8), 0.31)
    for proposed, seen, unseen in ((truth, FOUND, MISSED), (proposal, MISSED, None)):
        picture = road_errors_picture(
            truth, proposed, caption=["chip", "1"], ground=ground, with_crossings=True
        )
        drawn = panel(picture, 2, captions=2)
        place = drawn[:, 450 + 100 :]
        assert has(place, seen)
        assert unseen is None or not has(place, unseen)
    assert has(place, FALSE)  # false turns
    assert not has(drawn[:, :450], MISSED)


def test_roads_picture_of_any_roads() -> None:
    far = roads([(-1e6, 5), (1e6, 5)], [(4, 4), (4, 4)])
    for truth, proposal in (
        ([], []),
        (roads([(-720.5, -31), (-700, -30.5)]), []),
        (roads([(0, 0), (0, 0)]), roads([(0, 0), (90_000, 0)])),
        (far, roads([(0, 0), (9, 4)])),
    ):
        picture = road_errors_picture(truth, proposal, caption=["x" * 300])
        assert picture.dtype == np.uint8
        assert 400 < picture.shape[0] < 1200


def test_the_legend_has_the_users_units(monkeypatch: pytest.MonkeyPatch) -> None:
    legends: list[list[str]] = []

    def composed(caption: Sequence[str], panels: Sequence[object]) -> Picture:
        legends.extend([key.text for key in panel.keys] for panel in panels)  # type: ignore[attr-defined]
        return compose(caption, panels)  # type: ignore[arg-type]

    monkeypatch.setattr("satmap.report.pictures.compose", composed)
    ground = Ground.of_image(NOISE)
    for units in Units:
        roads_picture(roads([(0, 0), (9, 9)]), ground=ground, caption=["x"], units=units)
    assert legends[0] == ["20", "40", "60", "80", "100 km/h", "unknown"]
    assert legends[2] == ["10", "20", "30", "40", "50", "60 mph", "unknown"]


def test_score_line() -> None:
    assert score_line({"apls_length": 0.5, "apls_time": None}) == "APLS by length 0.500"
    assert score_line({"f1": 0.8, "precision": 1.0, "tp": 3}) == "F1 0.800, precision 1.000"
    assert score_line({}) == ""


# --- buildings and masks --------------------------------------------------------------------------


def test_buildings_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def house(x: float, y: float) -> shapely.Polygon:
        whole = shapely.box(x, y, x + 100, y + 100)
        return whole.difference(shapely.box(x + 40, y + 40, x + 60, y + 60))

    polygons = [house(0, 0), house(200, 0), shapely.MultiPolygon([house(400, 0)]), house(0, 400)]
    truth = [BuildingRow(polygon) for polygon in polygons]
    polygons = [house(5, 5), house(200, 200), shapely.Polygon(), house(40, 440)]
    proposal = [BuildingRow(polygon) for polygon in polygons]
    texts: list[str] = []
    labels = View.draw_labels

    def spy(view: View, drawn: Picture, found: Sequence[tuple[object, str, Colour]]) -> None:
        texts.extend(text for _, text, _ in found)
        labels(view, drawn, found)  # type: ignore[arg-type]

    monkeypatch.setattr(View, "draw_labels", spy)
    ground = Ground.of_image(np.full((900, 900, 3), 128, np.uint8))
    picture = buildings_picture(proposal, truth, caption=["chip"], ground=ground)
    drawn = panel(picture)
    # Outlines, also of the holes; the image inside them keeps its colour.
    assert drawn[4:6, 50].tolist() == [list(FOUND)] * 2
    assert drawn[45, 50].tolist() == list(FOUND)
    assert drawn[50, 299].tolist() == drawn[50, 499].tolist() == list(MISSED)
    assert drawn[250, 299].tolist() == list(FALSE)
    assert [drawn[y, x].tolist() for x, y in ((20, 25), (220, 20), (220, 220))] == [[128] * 3] * 3
    assert (panel(picture, 1) == 128).all()
    # Intersection over union of the first and the last; the second has no overlap.
    shared = [95 * 95 - 2 * 400 + 15 * 15, 60 * 60 - 2 * 400]
    assert texts == [f"{area / (2 * 9600 - area):.2f}"[1:] for area in shared]
    assert buildings_picture([], [], caption=["none"]).shape[2] == 3
    assert buildings_picture(proposal, caption=["no truth"], ground=ground).shape == picture.shape


def test_mask_picture() -> None:
    truth, proposal = np.zeros((2, 70, 70), np.bool_)
    truth[:, :40] = True
    proposal[:, 20:60] = True
    drawn = panel(mask_picture(truth, proposal, caption=["chip"]))
    colours = [drawn[450, x].tolist() for x in (128, 385, 640, 850)]
    assert colours == [list(MISSED), list(FOUND), list(FALSE), [35, 35, 35]]
    # Reduced by 4: each pixel is the mean of the pixels that it covers.
    truth = np.zeros((3600, 3600), np.bool_)
    truth[::2] = True
    drawn = panel(mask_picture(truth, np.zeros_like(truth), caption=["chip"]))
    assert drawn[450, 450].tolist() == pytest.approx([142.5, 55, 27.5], abs=1)
    with pytest.raises(ValueError, match="same shape"):
        mask_picture(truth, proposal, caption=["chip"])


def test_masks_over_an_image_have_outlines() -> None:
    truth, proposal = np.zeros((2, 90, 90), np.bool_)
    truth[20:40, 20:40] = True
    proposal[60:80, 60:80] = True
    ground = Ground.of_image(np.full((90, 90, 3), 128, np.uint8))
    drawn = panel(mask_picture(truth, proposal, caption=["chip"], ground=ground))
    assert drawn[300, 205].tolist() == list(MISSED)
    assert drawn[700, 605].tolist() == list(FALSE)
    assert drawn[300, 300].tolist() == drawn[700, 700].tolist() == [128] * 3
