"""The demo: map two real places; then train, predict, check, score and draw on a synthetic city."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from satmap.errors import SatmapError
from satmap.evaluation.check import check_files
from satmap.evaluation.score import score_files
from satmap.prediction.map import MapRequest, map_sources
from satmap.prediction.run import predict
from satmap.recipes.schema import load_recipe
from satmap.report.overlay import write_overlays
from satmap.runtime.device import pick_device
from satmap.training.run_context import RunContext
from satmap.training.train_ensemble import TrainingOptions, train
from satmap.viewer.data import read_results
from satmap.viewer.imagery import Imagery
from satmap.viewer.page import write_page
from satmap.weights.starters import PICTURES, starter_weights
from synthcity import CityError, make_city

_CHIPS, _TEST_CHIPS, _SIZE = 24, 6, 512

#: Pictures of real places, by the task of the starter network that maps them.
PLACES = {"roads": PICTURES / "natick.tif", "buildings": PICTURES / "nairobi.tif"}
# Each is drawn in one picture.
_PLACE_M = 2000


def run_demo(directory: Path) -> str:
    """Map two real places by the starter networks, then do a whole challenge on a synthetic city.

    The challenge: train two networks, predict, check, score and draw. Files of an earlier demo in
    the directory are used again, so a second run trains nothing and ends in seconds. Returns a
    table of times, scores and paths. A failed step raises SatmapError.
    """
    city, weights = directory / "city", directory / "weights"
    output, pictures = directory / "out.csv", directory / "pictures"
    real = directory / "real"
    recipe = load_recipe("demo")
    context = RunContext(weights=weights, device=pick_device())
    seconds: dict[str, float] = {}
    pages: list[Path] = []

    with _step("mapping two real places", seconds):
        for task, image in PLACES.items():
            result = real / f"{image.stem}-{task}.gpkg"
            map_sources(
                MapRequest(
                    directories=(),
                    output=result,
                    weights=starter_weights(task),
                    device=str(context.device),
                    sources=(str(image),),
                )
            )
            write_overlays(result, [image], real, part_m=_PLACE_M)
            pages.append(result.with_suffix(".html"))
            write_page(pages[-1], read_results([result]), Imagery([image]))
    with _step("making a synthetic city", seconds):
        try:
            make_city(city, chips=_CHIPS, test_chips=_TEST_CHIPS, size=_SIZE)
        except CityError as error:
            raise SatmapError(str(error)) from error
    with _step("training two networks", seconds):
        train([city / "train"], recipe, context, TrainingOptions(cache=directory / "cache"))
    with _step("predicting", seconds):
        done = predict([city / "test"], output, weights, context.device)
    with _step("checking, scoring, drawing", seconds):
        faults = check_files(output, [city / "test"])
        if faults or done.faults:
            raise SatmapError(f"the demo's submission has faults: {faults} {done.faults}")
        apls = score_files(city / "test_truth.csv", output).report.total
        write_overlays(output, [city / "test"], pictures, city / "test_truth.csv")

    rows = [(name, f"{spent:6.1f} s") for name, spent in seconds.items()]
    rows.append(("all", f"{sum(seconds.values()):6.1f} s"))
    rows += [(f"APLS {name}", f"{apls[f'fair_apls_{name}']:.3f}") for name in ("length", "time")]
    made = {
        "real maps": real,
        "city": city,
        "weights": weights,
        "submission": output,
        "pictures": pictures,
    }
    rows += [(name, str(path)) for name, path in made.items()]
    rows += [("open in a browser", str(page)) for page in pages]
    return "\n" + "\n".join(f"{name:<28}{value}" for name, value in rows)


@contextmanager
def _step(name: str, seconds: dict[str, float]) -> Iterator[None]:
    print(f"== {name}", flush=True)
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started
