"""Fitting road settings: the search on synthetic scores, and complete fits on degraded masks."""

import multiprocessing
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from math import inf, sqrt
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from degraded_masks import METRES_PER_PIXEL, degraded_mask
from satmap.data.folds import assign_folds
from satmap.errors import CannotWriteError, SatmapError
from satmap.evaluation.metrics.apls import apls
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.recipes.schema import Recipe, load_recipe
from satmap.settings import Settings
from satmap.submissions.roads_csv import RoadRow, rows_of_graph, write_roads_csv
from satmap.tasks.roads import tuning as road_tuning
from satmap.tasks.roads.settings import ROAD, RoadSettings
from satmap.tasks.roads.tuning import MeanOverAreas
from satmap.tasks.roads.vectorizer.vectorize_roads import vectorize_roads
from satmap.tasks.tune import tune_recipe, tuned_text
from satmap.tuning import chips as fitting_masks
from satmap.tuning.chips import Tuning, TuningChip
from satmap.tuning.search import Fit, Gain, RecordTable, Trial, coordinate_descent

SPEED_MPS = 10.0
# Seeds of the degraded masks to fit to, most of which gain from short spurs.
MASKS = range(20, 28)

FEW = {"high": (0.4, 0.6, 0.9), "gap_m": (0.0, 18.0), "spur_m": (5.0, 40.0)}

Scorer = Callable[[int, RoadSettings], float]


# --- the search -----------------------------------------------------------------------------------


def table_of(
    score: Scorer, areas: Sequence[str], log: list[Trial[RoadSettings]] | None = None
) -> RecordTable[RoadSettings, float]:
    def run(tasks: Sequence[Trial[RoadSettings]]) -> Generator[Sequence[float]]:
        for chip, settings in tasks:
            if log is not None:
                log.append((chip, settings))
            yield [score(chip, each) for each in settings]

    return RecordTable(MeanOverAreas(areas), run)


def test_means_are_over_areas() -> None:
    table = table_of(lambda chip, settings: float(chip), ["a", "a", "a", "b"])
    chips = [0, 1, 2, 3]
    table.fill([RoadSettings()], chips)
    scores = table.records(RoadSettings(), chips)
    assert table.measure.score(scores, chips) == pytest.approx((1 + 3) / 2)
    assert table.measure.score(scores[:2], chips[:2]) == pytest.approx(0.5)
    # In one area the standard error is that of a mean.
    gain = table.measure.gain([0.0, 1.0, 0.0], [1.0, 3.0, 6.0], [0, 1, 2])
    assert gain.mean == pytest.approx(3)
    assert gain.error == pytest.approx(sqrt((4 + 1 + 9) / 2 / 3))
    assert gain.counts
    assert not Gain(0.0, 0.0).counts


def test_scores_are_computed_once() -> None:
    log: list[Trial[RoadSettings]] = []
    table = table_of(lambda chip, settings: settings.high, ["a"] * 3, log)
    one, other = RoadSettings(high=0.5), RoadSettings(high=0.7)
    assert table.fill([one], [0, 1])
    assert table.fill([one, other], [0, 1, 2])
    assert log == [(0, (one,)), (1, (one,)), (0, (other,)), (1, (other,)), (2, (one, other))]
    assert table.records(other, [2]) == [0.7]


def test_the_search_improves_and_keeps_irrelevant_settings() -> None:
    def score(chip: int, settings: RoadSettings) -> float:
        # The best gap depends on the threshold and shows only with the right one.
        right = settings.high == 0.6
        return (0.5 if right else 0.1) + (0.02 * settings.gap_m / 18 if right else 0) + chip / 100

    table = table_of(score, ["a"] * 4)
    start = RoadSettings(high=0.9, gap_m=1, spur_m=7)
    fit = coordinate_descent(table, start, {**FEW, "gap_m": (1, 18)}, range(4), inf, "test")
    assert fit.complete
    assert fit.settings == RoadSettings(high=0.6, gap_m=18, spur_m=7)


def test_random_differences_change_nothing() -> None:
    differences = {0: 0.3, 1: -0.2, 2: 0.1, 3: -0.1}
    table = table_of(lambda chip, s: differences[chip] * (s.high == 0.4), ["a"] * 4)
    fit = coordinate_descent(table, RoadSettings(high=0.6), FEW, range(4), inf, "test")
    assert fit.settings == RoadSettings(high=0.6)


def test_the_best_settings_so_far_are_kept_when_time_runs_out() -> None:
    end = time.monotonic() + 3600

    def score(chip: int, settings: RoadSettings) -> float:
        return float(settings.high == 0.6) + chip / 100

    table = table_of(score, ["a"] * 4)
    start = RoadSettings(high=0.9)
    fit = coordinate_descent(table, start, FEW, range(4), time.monotonic() - 1, "test")
    assert fit == (start, False)
    assert coordinate_descent(table, start, FEW, range(4), end, "test") == (
        RoadSettings(high=0.6),
        True,
    )


# --- complete fits --------------------------------------------------------------------------------


def write_masks(
    directory: Path, seeds: Sequence[int], size: int = 500, *, timed: bool = True
) -> tuple[Path, Path]:
    """Write degraded masks and their truth; timed roads have the default speed."""
    rows: dict[str, list[RoadRow]] = {}
    (directory / "masks").mkdir(parents=True)
    for seed in seeds:
        made = degraded_mask(seed, size)
        assert cv2.imwrite(str(directory / "masks" / f"made{seed}.png"), made.road)
        rows[f"made{seed}"] = [
            RoadRow(row.line, row.length_m, row.length_m / SPEED_MPS) for row in made.truth
        ]
    truth = directory / "truth.csv"
    write_roads_csv(truth, rows)
    if not timed:
        lines = truth.read_text().splitlines()
        truth.write_text("".join(f"{line.rpartition(',')[0]}\n" for line in lines))
    return directory / "masks", truth


def recipe_with(**roads: float) -> Recipe:
    return with_settings(load_recipe("small-roads"), RoadSettings(**roads))


def with_settings(recipe: Recipe, settings: Settings) -> Recipe:
    task = recipe.task.model_copy(update={"vectorizer": settings})
    return recipe.model_copy(update={"task": task})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Masks and a truth without times; tests must not change them."""
    return write_masks(tmp_path_factory.mktemp("made"), MASKS, timed=False)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(road_tuning, "GRIDS", FEW)


def tune(made: tuple[Path, Path], output: Path, recipe: Recipe, **options: float) -> Tuning:
    options = {"metres_per_pixel": METRES_PER_PIXEL, "minutes": 60} | options
    return tune_recipe(*made, output, recipe, **options)  # type: ignore[arg-type]


def fit(
    made: tuple[Path, Path], output: Path, recipe: Recipe, **options: float
) -> Fit[RoadSettings]:
    return tune(made, output, recipe, **options).fits[""]


def mean_apls(seeds: Sequence[int], settings: RoadSettings) -> float:
    """Return the challenge's APLS length, computed independently of the fit."""
    scores = []
    for seed in seeds:
        made = degraded_mask(seed, 500)
        maps = ProbabilityMaps((ROAD,), made.road[None], (METRES_PER_PIXEL, METRES_PER_PIXEL))
        rows = rows_of_graph(vectorize_roads(maps, settings))
        scores.append(apls(made.truth, rows, metres_per_pixel=METRES_PER_PIXEL).length.score)
    return float(np.mean(scores))


@pytest.mark.usefixtures("few")
def test_a_bad_setting_is_repaired(made: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = recipe_with(spur_m=40, gap_m=0)
    output = tmp_path / "fitted.yaml"
    tuning = tune(made, output, recipe)
    assert tuning.score == "APLS length"
    assert tuning.settings == tuning.fits[""].settings
    done = tuning.fits[""]
    assert done.kept
    assert done.complete
    assert done.chips == 8
    assert done.changes["spur_m"] == (40.0, 5.0)
    assert done.before == pytest.approx(mean_apls(MASKS, recipe.task.vectorizer), abs=1e-3)
    assert done.after == pytest.approx(mean_apls(MASKS, done.settings), abs=1e-3)
    assert done.after > done.before + 0.03
    assert done.unseen.mean > 0.03
    # It also improves masks that were not fitted to.
    assert (
        mean_apls(range(30, 34), done.settings)
        > mean_apls(range(30, 34), recipe.task.vectorizer) + 0.03
    )

    # The file is the same recipe except for its road settings, and suits the same weights.
    written = load_recipe(str(output))
    assert written == with_settings(recipe, done.settings)
    assert written.training_fingerprint == recipe.training_fingerprint
    comment = [line for line in output.read_text().splitlines() if line.startswith("#")]
    assert f"APLS length of 8 chips: {done.before:.4f} before" in "\n".join(comment)
    assert "#   spur_m: 40 -> 5" in comment


@pytest.mark.usefixtures("few")
def test_fits_are_reproducible_across_processes(made: tuple[Path, Path], tmp_path: Path) -> None:
    outputs = [tmp_path / name for name in ("a.yaml", "b.yaml", "c.yml")]
    results = [
        fit(made, output, recipe_with(spur_m=40), workers=workers)
        for output, workers in zip(outputs, (0, 0, 2), strict=True)
    ]
    assert results[0] == results[1] == results[2]
    assert len({output.read_bytes() for output in outputs}) == 1
    assert multiprocessing.active_children() == []


@pytest.mark.usefixtures("few")
def test_settings_stay_without_a_gain(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(road_tuning, "GRIDS", {"spur_m": (5.0, 40.0), "simplify_m": (0.6, 20.0)})
    done = fit(made, tmp_path / "out.yaml", recipe_with())
    assert not done.kept
    assert done.settings == RoadSettings()
    assert done.unseen == (0.0, 0.0)
    assert "the settings stay as they were" in "".join(done.summary(""))
    assert load_recipe(str(tmp_path / "out.yaml")) == recipe_with()


def test_a_fit_that_fails_on_unseen_chips_is_not_kept(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(road_tuning, "GRIDS", {"high": (0.3, 0.7)})
    numbers = sorted(f"made{seed}" for seed in MASKS)
    halves = assign_folds([(name, "") for name in numbers], 2, seed=0)

    # Each half has its own favourite, useless for the other; one is stronger in the mean.
    def score(
        timed: bool, chip: TuningChip, maps: ProbabilityMaps, settings: RoadSettings
    ) -> float:
        half = halves[chip.image_id]
        worth = {0.3: (0.3, -0.2), 0.7: (-0.2, 0.2), 0.6: (0.0, 0.0)}
        return 0.5 + worth[settings.high][half]

    monkeypatch.setattr(road_tuning, "_score", score)
    done = fit(made, tmp_path / "out.yaml", recipe_with())
    assert done.unseen.mean == pytest.approx(-0.2)
    assert not done.kept
    assert done.settings == RoadSettings()


@pytest.mark.usefixtures("few")
def test_times_count_if_the_truth_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(road_tuning, "GRIDS", {"default_speed_mph": (10.0, 22.369, 60.0)})
    made = write_masks(tmp_path / "made", range(4))
    tuning = tune(made, tmp_path / "out.yaml", recipe_with(default_speed_mph=60))
    assert tuning.score == "APLS time"
    done = tuning.fits[""]
    # 10 metres per second.
    assert done.changes == {"default_speed_mph": (60.0, 22.369)}
    assert done.kept


@pytest.mark.usefixtures("few")
def test_a_fit_without_time_changes_nothing(made: tuple[Path, Path], tmp_path: Path) -> None:
    done = fit(made, tmp_path / "out.yaml", recipe_with(spur_m=40), minutes=1e-6)
    assert not done.complete
    assert not done.kept
    assert done.settings.spur_m == 40
    assert "time ran out" in "".join(done.summary(""))


@pytest.mark.usefixtures("few")
def test_partly_matching_masks_and_truth(tmp_path: Path) -> None:
    masks, truth = write_masks(tmp_path / "made", range(0, 12, 2), 300)
    (masks / "made10.png").write_text("no mask")
    (masks / "made8.png").rename(masks / "other.png")
    truth.write_text(truth.read_text() + "more1,LINESTRING EMPTY,0,0\n")
    done = tune((masks, truth), tmp_path / "out.yaml", recipe_with())
    assert done.fits[""].chips == 4
    assert list(done.faults) == ["made10"]
    assert str(masks / "made10.png") in done.faults["made10"]
    assert done.warnings == (
        "1 images without a truth are left out",
        "2 images without a probability raster are left out",
    )


def test_a_subset_of_many_chips_covers_all_areas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting_masks, "MAX_CHIPS", 4)
    monkeypatch.setattr(road_tuning, "GRIDS", {"high": (0.5,)})
    masks, truth = write_masks(tmp_path / "made", range(1), 200)
    mask, lines = masks / "made0.png", truth.read_text().splitlines()
    rows = {}
    for area in ("AOI_1_A", "AOI_2_B"):
        for number in range(5):
            image_id = f"{area}_chip{number}"
            (masks / f"{image_id}.png").write_bytes(mask.read_bytes())
            rows[image_id] = list(degraded_mask(0, 200).truth)
    mask.unlink()
    truth.write_text(
        "\n".join(
            [lines[0], *(f"{name},{li.partition(',')[2]}" for name in rows for li in lines[1:])]
        )
    )
    seen: list[str] = []
    original = road_tuning._score

    def counted(
        timed: bool, chip: TuningChip, maps: ProbabilityMaps, settings: RoadSettings
    ) -> float:
        seen.append(chip.image_id)
        return original(timed, chip, maps, settings)

    monkeypatch.setattr(road_tuning, "_score", counted)
    done = tune((masks, truth), tmp_path / "out.yaml", recipe_with())
    assert done.fits[""].chips == len(set(seen)) == 4
    assert sorted(name[:7] for name in set(seen)) == ["AOI_1_A"] * 2 + ["AOI_2_B"] * 2
    assert "the fit uses 4 of 10 images, spread over all areas" in done.warnings[0]


def _no_common_ids(masks: Path, truth: Path) -> None:
    truth.write_text(truth.read_text().replace("\nmade", "\nSN5_made"))


def _one_chip(masks: Path, truth: Path) -> None:
    for number in (1, 2, 3):
        (masks / f"made{number}.png").unlink()


def _empty_masks(masks: Path, truth: Path) -> None:
    for path in masks.iterdir():
        assert cv2.imwrite(str(path), np.zeros((200, 200), np.uint8))


def _empty_truth(masks: Path, truth: Path) -> None:
    write_roads_csv(truth, {f"made{number}": [] for number in range(4)})


def _unreadable(masks: Path, truth: Path) -> None:
    for path in masks.iterdir():
        path.write_text("no mask")


BAD: Mapping[str, tuple[Callable[[Path, Path], None], str]] = {
    "ids": (_no_common_ids, r"no image in common, for example made0 and SN5_made0"),
    "one": (_one_chip, r"1 probability rasters with truth, but a fit needs 4 or more"),
    "masks": (_empty_masks, r"all 4 probability rasters are empty"),
    "truth": (_empty_truth, r"the truth has no road in any of the 4"),
    "unreadable": (
        _unreadable,
        r"0 probability rasters with truth \(4 more cannot be read: .*made0\.png",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_explained(tmp_path: Path, name: str) -> None:
    made = write_masks(tmp_path / "made", range(4), 200)
    spoil, message = BAD[name]
    spoil(*made)
    with pytest.raises(SatmapError, match=message):
        fit(made, tmp_path / "out.yaml", recipe_with())
    assert not (tmp_path / "out.yaml").exists()


def test_invalid_outputs_are_refused_before_the_work(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere", tmp_path / "nowhere.csv"
    with pytest.raises(
        SatmapError, match=r"out\.csv: the name of a recipe must end in \.yaml or \.yml"
    ):
        fit(nowhere, tmp_path / "out.csv", recipe_with())
    (tmp_path / "out.yaml").mkdir()
    with pytest.raises(CannotWriteError):
        fit(nowhere, tmp_path / "out.yaml", recipe_with())
    with pytest.raises(ValueError, match="minutes"):
        fit(nowhere, tmp_path / "a.yaml", recipe_with(), minutes=0)


def test_comments_stay_comments(made: tuple[Path, Path]) -> None:
    recipe = recipe_with()
    none = Fit(recipe.task.vectorizer, {}, 4, 0.1, 0.1, Gain(0, 0), True)
    result = Tuning(recipe.task.vectorizer, "APLS time", {"": none}, {}, ())
    text = tuned_text(recipe, result, Path("a\nname: other"), Path("b: #\r\n- x"))
    assert yaml.safe_load(text)["name"] == "small-roads"
