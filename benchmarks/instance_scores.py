"""Compare buildings as instances with probability maps, at equal time, with several seeds.

    .venv/bin/python benchmarks/instance_scores.py train ../shared/data WORK [--systems NAME...]
    .venv/bin/python benchmarks/instance_scores.py table WORK

``train`` trains each system on each place with each seed for the same time, on one thread, and
finds the buildings of held-out images with one view. WORK keeps every result, so that the same
command goes on where it stopped. ``table`` scores them.

The systems: ``mnc`` is `small-mnc`, ``cascade`` is `small-cascade`, ``maps`` is one network of
`small-buildings`, and ``joint`` is `small-cascade` with probability maps, whose candidates a
second-level model pools. All have the same encoder, ImageNet weights and images. ``joint`` is also
scored without the model: its cascade alone and its maps alone. ``cascade`` is also scored without
`overlap`. The other names of systems leave out one part of ``cascade``.

The places: `buildings_barnarp`; `buildings_openaerialmap` at 0.2 m, by place; and a synthetic city
in SpaceNet 2's layout, scored on another city. Of real images a fifth is held out.

The held-out images of a place are divided into four groups. The least score, and the second-level
model, are chosen on three groups for the fourth.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import torch
import yaml
from numpy.typing import NDArray

from real_chips import train_for
from satmap.data.cache import prepare_chips
from satmap.data.crops import CachedChip
from satmap.data.folds import split_chips
from satmap.data.imagery import RGB, ImageInfo
from satmap.data.own_chips import find_own_chips
from satmap.data.own_data import OwnData
from satmap.evaluation.metrics.building_f1 import match_buildings, precision_recall_f1
from satmap.evaluation.metrics.coco_ap import ImageMatches, average_precision
from satmap.evaluation.metrics.figures import Counts
from satmap.evaluation.metrics.polygons import PolygonScore, score_polygons
from satmap.networks.ensemble import EnsembleMember
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.recipes.schema import Recipe, parse_recipe
from satmap.report.panels import write_picture
from satmap.runtime.resources import reuse_memory
from satmap.submissions.buildings_csv import BuildingRow
from satmap.tasks.base import PreparedImage, Task, task_of
from satmap.tasks.building_instances.merge import InstanceDecoder, Instances
from satmap.tasks.building_instances.task import BuildingInstanceTask
from satmap.tasks.buildings.outputs import BuildingOutputs, BuildingScore, true_buildings
from satmap.tasks.buildings.selection import CandidateSample, fit_selection
from satmap.tasks.buildings.selection import sample as sample_of
from satmap.tasks.buildings.targets import draw_instances
from satmap.tasks.buildings.vectorizer.vectorize_buildings import vectorize_buildings
from satmap.tasks.result_decoders import FittedModels
from satmap.vectors.buildings import Building
from synthcity.layouts import BuildingLayout, make_building_city

_CPU = torch.device("cpu")
_FOLDS = 5
_GROUPS = 4
_CITY_PX = 448
# Candidates for the least score, or for the least mean probability of probability maps.
_LEAST = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
# Bounds of the sizes of buildings, pixels of the image.
_SIZES = (200.0, 1024.0)
# A building is L-shaped, or of another shape that is not a rectangle, if it covers less than this
# part of its smallest rectangle.
_FULL = 0.8

_MAPS: dict[str, Any] = {
    "building": {"dice": 1, "bce": 1},
    "border": {"dice": 0.5, "bce": 0.5},
}

# Systems by name: the recipe, and what differs in the network and the vectoriser.
_Change = dict[str, Any]
SYSTEMS: dict[str, tuple[str, _Change, _Change]] = {
    "mnc": ("small-mnc", {}, {}),
    "cascade": ("small-cascade", {}, {}),
    "maps": ("small-buildings", {}, {}),
    "joint": ("small-cascade", {"maps": ["building", "border"]}, {}),
    "without quality": ("small-cascade", {"quality": False}, {}),
    "without refinement": ("small-cascade", {"refine": False}, {}),
    "one round": ("small-cascade", {"rounds": 1}, {}),
    "dense masks of 21 px": (
        "small-cascade",
        {"mask": "dense", "mask_px": 21, "refine": False},
        {},
    ),
    "the reference's sampling of proposals": (
        "small-cascade",
        {"proposals": {"train": [300, 150], "test": [300, 150], "least_px": 2}},
        {},
    ),
    "without pyramid": (
        "small-cascade",
        {"pyramid": None, "anchors": [[16, 32, 64, 128]], "refine": False},
        {},
    ),
}
_MAIN = ("mnc", "cascade", "maps", "joint")

# Found buildings by least score, then by image.
_Found = dict[str, dict[str, list[BuildingRow]]]


@dataclass(frozen=True)
class Place:
    """Images to learn from and to score.

    Attributes:
        training: chips.
        held_out: chips.
    """

    training: Sequence[CachedChip]
    held_out: Sequence[CachedChip]


def main() -> None:
    """Train all systems, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("train")
    run.add_argument("data", type=Path)
    run.add_argument("work", type=Path)
    run.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(_MAIN))
    run.add_argument("--places", nargs="+", choices=_PLACES, default=list(_PLACES))
    run.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    run.add_argument("--seconds", type=float, default=240.0, help="of each training")
    table = commands.add_parser("table")
    table.add_argument("work", type=Path)
    options = parser.parse_args()
    if options.command == "table":
        _print_tables(options.work)
        return
    torch.set_num_threads(1)
    reuse_memory()
    for seed in options.seeds:
        for place in options.places:
            for system in options.systems:
                _run(options.data, options.work, place, system, seed, options.seconds)


def _run(data: Path, work: Path, place: str, system: str, seed: int, seconds: float) -> None:
    """Train a system on a place and write what it finds, unless already done."""
    name = f"{place}-{system.replace(' ', '-')}-{seed}"
    path = work / "results" / f"{name}.json"
    if path.exists():
        return
    recipe = _recipe(system, seed)
    task = task_of(recipe)
    chips = _PLACES[place](data, work, task)
    network, steps, used = train_for(task, chips.training, work / "weights" / name, seconds)
    started = time.process_time()
    found = _find(task, network, chips.held_out, work / "models" / name)
    content = {
        "steps": steps,
        "train_seconds": used,
        "find_seconds": (time.process_time() - started) / len(chips.held_out),
        "images": len(chips.training),
        "truth": {chip.image_id: _packed(true_buildings(chip)) for chip in chips.held_out},
        "areas": {chip.image_id: chip.aoi for chip in chips.held_out},
        "found": {
            variant: {
                least: {image: _packed(rows) for image, rows in of_images.items()}
                for least, of_images in of_least.items()
            }
            for variant, of_least in found.items()
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content))
    temporary.rename(path)
    if seed == 0:
        _draw(task, chips.held_out, found, work / "pictures" / name)
    print(f"{name}: {steps} steps, {used:.0f} s", flush=True)


def _recipe(system: str, seed: int) -> Recipe:
    """Return the recipe of a system with one network for all chips."""
    base, network, vectorizer = SYSTEMS[system]
    content = yaml.safe_load(files("satmap.recipes").joinpath(f"{base}.yaml").read_text())
    member = content["members"][0] | {"fold": None}
    if isinstance(content["task"], dict):
        content["task"]["network"] |= network
        content["task"]["vectorizer"] |= {"least_score": _LEAST[0], **vectorizer}
    if network.get("maps"):
        member["losses"] = {"maps": _MAPS}
        member["decoder"] = {"kind": "light", "widths": [128, 96, 64, 32]}
    content |= {"name": system.replace(" ", "-"), "seed": seed, "members": [member]}
    content["inference"] |= {"tta": 1, "checkpoints": ["last"]}
    return parse_recipe(yaml.safe_dump(content), system)


# Places


def _barnarp(data: Path, work: Path, task: Task) -> Place:
    images = data / "buildings_barnarp"
    own = OwnData((str(images / "images"),), images / "masks", metres_per_pixel=0.16)
    return _split([own], work, task)


def _openaerialmap(data: Path, work: Path, task: Task) -> Place:
    shifts = {"place1": (0.0, 0.0), "place3": (0.0, 0.0), "place5": (-1.0, 1.2)}
    root = data / "buildings_openaerialmap"
    own = [
        OwnData((str(root / name / "tiles"),), root / name / "labels", gsd=0.2, shift=shift)
        for name, shift in shifts.items()
    ]
    return _split(own, work, task)


def _split(sources: Sequence[OwnData], work: Path, task: Task) -> Place:
    """Prepare the chips of sources and hold out a fifth of each."""
    training: list[CachedChip] = []
    held_out: list[CachedChip] = []
    for number, own in enumerate(sources):
        inventory = find_own_chips(own, task, 3, work / "cache")
        found = [replace(chip, aoi=f"place{number}") for chip in inventory.chips]
        folds = split_chips(found, None, _FOLDS, 0, inventory.duplicates)
        chips = prepare_chips(found, 3, work / "cache", task.recipe.stretch, task).chips
        for chip in chips:
            (training if folds[chip.image_id] else held_out).append(chip)
    return Place(training, held_out)


def _city(data: Path, work: Path, task: Task) -> Place:
    chips = []
    for seed, count in ((11, 40), (12, 12)):
        directory = work / f"city{seed}"
        if not directory.exists():
            made = directory.with_name(directory.name + ".tmp")
            make_building_city(
                made, BuildingLayout.SPACENET2, chips=count, test_chips=0, seed=seed, size=_CITY_PX
            )
            made.rename(directory)
        found = task.find_images([directory / "train" / "AOI_99_Made_Train"]).chips
        recipe = task.recipe
        chips.append(prepare_chips(found, 3, work / "cache", recipe.stretch, task).chips)
    return Place(*chips)


_PLACES: dict[str, Callable[[Path, Path, Task], Place]] = {
    "barnarp": _barnarp,
    "openaerialmap": _openaerialmap,
    "city": _city,
}


# Training and prediction


def _find(
    task: Task, network: torch.nn.Module, chips: Sequence[CachedChip], models: Path
) -> dict[str, _Found]:
    """Find the buildings of the held-out chips, for every least score, by variant."""
    if not isinstance(task, BuildingInstanceTask):
        maps = {chip.image_id: _predicted(task, network, chip).get() for chip in chips}
        return {"": _of_maps(maps, task.recipe.task.vectorizer.of(None))}
    task_settings = task.recipe.task.vectorizer
    found = {chip.image_id: _predicted(task, network, chip).get() for chip in chips}
    variants = {"": _of_cascade(task, chips, found)}
    if task.recipe.name == "cascade":
        changed = task_settings.model_copy(update={"overlap": 1.0})
        settings = task.recipe.task.model_copy(update={"vectorizer": changed})
        other = BuildingInstanceTask(task.recipe.model_copy(update={"task": settings}))
        again = {chip.image_id: _predicted(other, network, chip).get() for chip in chips}
        variants["without overlap"] = _of_cascade(other, chips, again)
    if task.map_names:
        of_maps = {image: each.maps for image, each in found.items()}
        variants = {"cascade": variants[""], "maps": _of_maps(of_maps, task_settings.watershed)}
        variants[""] = _pooled(task, chips, found, variants["cascade"][str(_LEAST[0])], models)
    return variants


def _predicted(task: Task, network: torch.nn.Module, chip: CachedChip) -> Any:
    pixels = chip.read_image(3, slice(None), slice(None)).transpose(1, 2, 0)
    height, width = chip.size
    info = ImageInfo(chip.path, RGB, width, height, 3, "uint8", None)
    members = [EnsembleMember(network)]
    return task.predict(PreparedImage(info, pixels, members, chip.metres_per_pixel, ()), _CPU)


def _of_maps(maps: Mapping[str, ProbabilityMaps], settings: Any) -> _Found:
    found: dict[str, list[Building]] = {
        image: vectorize_buildings(each, settings) for image, each in maps.items()
    }
    return {
        str(least): {
            image: _rows(
                b for b in each if b.mean_probability is None or b.mean_probability >= least
            )
            for image, each in found.items()
        }
        for least in _LEAST
    }


def _of_cascade(
    task: BuildingInstanceTask, chips: Sequence[CachedChip], found: Mapping[str, Any]
) -> _Found:
    settings = task.recipe.task.vectorizer.of("")
    result: _Found = {}
    for least in _LEAST:
        changed = settings.model_copy(update={"least_score": least})
        result[str(least)] = {
            chip.image_id: _rows(
                InstanceDecoder(changed, chip.size, chip.metres_per_pixel).decode(
                    found[chip.image_id]
                )
            )
            for chip in chips
        }
    return result


def _pooled(
    task: BuildingInstanceTask,
    chips: Sequence[CachedChip],
    found: Mapping[str, Instances],
    of_cascade: Mapping[str, Sequence[BuildingRow]],
    models: Path,
) -> _Found:
    """Choose among the candidates of cascade and maps by models of the other groups of images."""
    settings = task.recipe.task.vectorizer.of("")
    models.mkdir(parents=True, exist_ok=True)
    samples: list[CandidateSample] = []
    for number, chip in enumerate(chips):
        rows = of_cascade[chip.image_id]
        drawn = draw_instances(np.array([row.polygon for row in rows], np.object_), chip.size)
        truth = np.array([row.polygon for row in true_buildings(chip)], np.object_)
        maps = found[chip.image_id].maps
        assert maps is not None
        scores = np.array([row.score for row in rows])
        samples.append(
            sample_of(
                maps, draw_instances(truth, chip.size), number % _GROUPS, settings.watershed,
                (drawn, scores),
            )
        )  # fmt: skip
    for group in range(_GROUPS):
        others = [each for each in samples if each.fold != group and len(each.ious)]
        (models / f"{group}.txt").write_text(fit_selection(others).model.text)
    result: _Found = {}
    for least in _LEAST:
        changed = settings.model_copy(update={"least_iou": least})
        result[str(least)] = {
            chip.image_id: _rows(
                InstanceDecoder(
                    changed,
                    chip.size,
                    chip.metres_per_pixel,
                    FittedModels(models / f"{number % _GROUPS}.txt"),
                ).decode(found[chip.image_id])
            )
            for number, chip in enumerate(chips)
        }
    return result


def _rows(buildings: Any) -> list[BuildingRow]:
    return [BuildingRow(each.polygon, each.score) for each in buildings]


def _packed(rows: Sequence[BuildingRow]) -> list[list[Any]]:
    return [[shapely.to_wkt(row.polygon, rounding_precision=2), row.score] for row in rows]


def _unpacked(rows: Sequence[Sequence[Any]]) -> list[BuildingRow]:
    return [BuildingRow(shapely.from_wkt(text), score) for text, score in rows]


def _draw(
    task: Task, chips: Sequence[CachedChip], found: Mapping[str, _Found], directory: Path
) -> None:
    """Draw the first held-out images with every variant, at a middling least score."""
    assert isinstance(task, BuildingOutputs)
    directory.mkdir(parents=True, exist_ok=True)
    for variant, of_least in found.items():
        for chip in chips[:: max(len(chips) // 6, 1)][:6]:
            rows = of_least["0.4"][chip.image_id]
            score = BuildingScore(match_buildings(true_buildings(chip), rows).counts, rows)
            picture = task.draw(chip, score)
            write_picture(directory / f"{variant or 'whole'}-{chip.image_id}.png", picture)


# Scores


@dataclass(frozen=True)
class _Score:
    """Scores of one network on one place.

    Attributes:
        figures: by name, in the order of the table.
    """

    figures: dict[str, float | None]


def _scores(content: Mapping[str, Any], variant: str) -> dict[str, _Score]:
    """Return the scores of a variant by area and in all, the least score chosen on other groups."""
    truth = {image: _unpacked(rows) for image, rows in content["truth"].items()}
    names = list(truth)
    of_least = {
        least: {image: _unpacked(rows) for image, rows in of_images.items()}
        for least, of_images in content["found"][variant].items()
    }
    counts = {
        least: {image: match_buildings(truth[image], rows[image]).counts for image in names}
        for least, rows in of_least.items()
    }
    chosen: dict[str, list[BuildingRow]] = {}
    for group in range(_GROUPS):
        others = [name for number, name in enumerate(names) if number % _GROUPS != group]

        def f1(least: str, others: Sequence[str] = others) -> float:
            return precision_recall_f1(sum((counts[least][i] for i in others), Counts()))[2]

        best = max(of_least, key=f1)
        chosen |= {name: of_least[best][name] for name in names[group::_GROUPS]}
    areas = sorted(set(content["areas"].values()))
    groups = {"all": names}
    if len(areas) > 1:
        groups |= {area: [n for n in names if content["areas"][n] == area] for area in areas}
    lowest = of_least[min(of_least, key=float)]
    return {
        group: _score([truth[i] for i in of], [chosen[i] for i in of], [lowest[i] for i in of])
        for group, of in groups.items()
    }


_Rows = Sequence[Sequence[BuildingRow]]


def _score(truth: _Rows, found: _Rows, all_found: _Rows) -> _Score:
    counts = Counts()
    by_size = [Counts(), Counts(), Counts()]
    shaped, shaped_found = 0, 0
    polygons = PolygonScore()
    ranked: list[ImageMatches] = []
    for true, rows, every in zip(truth, found, all_found, strict=True):
        matches = match_buildings(true, rows)
        counts += matches.counts
        taken = set(matches.taken[matches.taken >= 0].tolist())
        for index, row in enumerate(true):
            if matches.counted_truth[index]:
                hit = index in taken
                by_size[_size(row)] += Counts(int(hit), 0, int(not hit))
                if row.polygon.area < _FULL * row.polygon.minimum_rotated_rectangle.area:
                    shaped, shaped_found = shaped + 1, shaped_found + hit
        for index in np.flatnonzero((matches.taken < 0) & matches.counted).tolist():
            by_size[_size(rows[index])] += Counts(0, 1, 0)
        polygons += score_polygons(true, rows)
        ranked.append(_ranked(true, every))
    precision, recall, f1 = precision_recall_f1(counts)
    outlines = polygons.figures
    return _Score(
        {
            "F1": f1, "precision": precision, "recall": recall, "AP": average_precision(ranked),
            **{
                f"F1 {name}": precision_recall_f1(each)[2] if each.tp + each.fn else None
                for name, each in zip(("small", "middle", "large"), by_size, strict=True)
            },
            "found L": shaped_found / shaped if shaped else None,
            **{
                name: None if outlines[key] is None else float(outlines[key])  # type: ignore[arg-type]
                for name, key in (
                    ("IoU", "iou"), ("C-IoU", "c_iou"), ("N-ratio", "n_ratio"), ("MTA", "mta"),
                    ("PoLiS", "polis"), ("boundary AP", "boundary_ap"),
                )
            },
        }
    )  # fmt: skip


def _ranked(true: Sequence[BuildingRow], rows: Sequence[BuildingRow]) -> ImageMatches:
    ordered = sorted(rows, key=lambda row: -row.score)
    matches = match_buildings(true, ordered)
    scores: NDArray[np.float64] = np.array([row.score for row in ordered])
    counted = matches.counted
    right = matches.taken >= 0
    return ImageMatches(scores[counted], right[counted], int(matches.counted_truth.sum()))


def _size(row: BuildingRow) -> int:
    return int(np.searchsorted(_SIZES, row.polygon.area))


def _print_tables(work: Path) -> None:
    """Print mean and spread over the seeds, and paired differences to ``cascade``."""
    results: dict[tuple[str, str], dict[int, Path]] = {}
    for path in sorted((work / "results").glob("*.json")):
        place, rest = path.stem.split("-", 1)
        system, seed = rest.rsplit("-", 1)
        results.setdefault((place, system), {})[int(seed)] = path
    scores: dict[tuple[str, str, str], dict[int, _Score]] = {}
    facts: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for (place, system), of_seed in results.items():
        for number, path in of_seed.items():
            content = json.loads(path.read_text())
            facts.setdefault((place, system), []).append(content)
            for variant in content["found"]:
                name = f"{system}: {variant}" if variant else system
                for area, score in _scores(content, variant).items():
                    where = place if area == "all" else f"{place} {area}"
                    scores.setdefault((where, name, system), {})[number] = score
    columns = list(next(iter(next(iter(scores.values())).values())).figures)
    print(f"| place | system | steps | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 3)}")
    for (where, name, system), of_seeds in sorted(scores.items()):
        place = where.split()[0]
        steps = round(statistics.mean(each["steps"] for each in facts[place, system]))
        cells = [_mean_and_spread([s.figures[c] for s in of_seeds.values()]) for c in columns]
        print(f"| {where} | {name} | {steps} | {' | '.join(cells)} |")
    print("\nPaired differences to `cascade`:\n")
    for (where, name, _), of_seeds in sorted(scores.items()):
        base = scores.get((where, "cascade", "cascade"))
        if base is None or name == "cascade":
            continue
        seeds = sorted(set(base) & set(of_seeds))
        cells = [
            f"{c} {_mean_and_spread([_gap(of_seeds[s], base[s], c) for s in seeds], '+')}"
            for c in ("F1", "AP", "F1 small", "F1 middle", "F1 large", "found L")
        ]
        print(f"- {where}, {name} minus cascade: {', '.join(cells)}")
    for (place, system), each in sorted(facts.items()):
        find = statistics.mean(content["find_seconds"] for content in each)
        train = statistics.mean(content["train_seconds"] for content in each)
        buildings = sum(len(rows) for rows in each[0]["truth"].values())
        print(
            f"- {place}, {system}: {len(each)} seeds, {each[0]['images']} images to learn from, "
            f"{len(each[0]['truth'])} held out with {buildings} buildings; training {train:.0f} s "
            f"and {find:.2f} s per held-out image of CPU time"
        )


def _gap(one: _Score, other: _Score, name: str) -> float | None:
    a, b = one.figures[name], other.figures[name]
    return None if a is None or b is None else a - b


def _mean_and_spread(values: Sequence[float | None], sign: str = "") -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    spread = f" ({statistics.stdev(known):.3f})" if len(known) > 1 else ""
    return f"{statistics.mean(known):{sign}.3f}{spread}"


if __name__ == "__main__":
    main()
