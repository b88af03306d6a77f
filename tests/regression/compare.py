"""Compare satmap's results with the frozen results in ``baseline/``.

    python tests/regression/compare.py check     # run the commands and compare their results
    python tests/regression/compare.py freeze    # run the commands and write a new baseline

Both run the commands of the tables below in a temporary directory. The directory holds a copy of
``baseline/inputs`` as ``inputs`` and of this directory's YAML files as ``recipes``. When an option
or a recipe key gets a new name, edit the tables and the YAML files. Do not freeze again for that.
"""

import argparse
import hashlib
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
BASELINE = HERE / "baseline"
# Masks of real images, which not every machine has.
REAL_MASKS = HERE.parents[2] / "shared" / "fixtures" / "masks"
REAL_CHIPS = ("chip0", "chip5")


@dataclass(frozen=True)
class Step:
    """A command and the results that are compared.

    Attributes:
        name: its name in reports and in the baseline.
        command: what follows ``python -m satmap``.
        results: ``kind path`` of each result; see ``READERS``. ``stdout`` is the command's output.
        training: the training whose weights the results depend on, if any.
    """

    name: str
    command: str
    results: tuple[str, ...] = ()
    training: str | None = None


TRAIN = "--cache cache --device cpu --workers 0 --deterministic"
PREDICT = "--device cpu --workers 0"
ROADS_TRUTH = (
    "inputs/roads/train/AOI_99_Made_Train/"
    "SN5_roads_train_AOI_99_Made_geojson_roads_speed_wkt_weighted_simp.csv"
)
BUILDINGS_TRUTH = (
    "inputs/buildings/train/AOI_99_Made_Train/summaryData/AOI_99_Made_Train_Building_Solutions.csv"
)
ROAD_NETWORK = "weights-roads/fold0-resnet18-3band-light.last.safetensors"
BUILDING_NETWORK = "weights-buildings/fold0-resnet18-3band-light"
COCO_NETWORK = "weights-coco/fold0-resnet18-3band-light.last.safetensors"

# Steps run in this order; later ones use files of earlier ones.
STEPS = (
    Step(
        "make-city roads",
        "make-city city-roads --chips 1 --test-chips 1 --size 96 --seed 1",
        ("city city-roads",),
    ),
    Step(
        "make-city spacenet2",
        "make-city city-2 --layout spacenet2 --chips 1 --test-chips 1 --size 96 --seed 1",
        ("city city-2",),
    ),
    Step(
        "make-city spacenet4",
        "make-city city-4 --layout spacenet4 --chips 1 --test-chips 1 --size 96 --looks 2 --seed 1",
        ("city city-4",),
    ),
    Step(
        "make-city coco",
        "make-city city-coco --layout coco --chips 1 --test-chips 1 --size 96 --seed 1",
        ("city city-coco",),
    ),
    Step("inventory roads", "inventory inputs/roads", ("numbers stdout",)),
    Step(
        "inventory buildings",
        "inventory inputs/buildings --task buildings",
        ("numbers stdout",),
    ),
    Step("inventory coco", "inventory inputs/coco --task buildings", ("numbers stdout",)),
    Step("audit", "audit copies --validation inputs/coco/val --turned --json", ("tree stdout",)),
    # Masks that do not depend on a training of this run.
    Step(
        "vectorize roads", "vectorize inputs/road-masks roads.csv --workers 0", ("text roads.csv",)
    ),
    Step(
        "vectorize roads by recipe",
        "vectorize inputs/road-masks roads-recipe.gpkg --recipe recipes/roads.yaml --workers 0",
        ("features roads-recipe.gpkg",),
    ),
    Step(
        "vectorize lines",
        "vectorize inputs/line-masks lines.graphml --metres-per-pixel 0.4 --workers 0",
        ("text lines.graphml",),
    ),
    Step(
        "vectorize real masks",
        "vectorize real-masks real.csv --workers 0",
        ("text real.csv",),
    ),
    Step(
        "vectorize buildings",
        "vectorize inputs/building-masks buildings.csv --task buildings --workers 0",
        ("text buildings.csv",),
    ),
    Step(
        "vectorize buildings by recipe",
        "vectorize inputs/building-masks buildings-recipe.geojson --task buildings"
        " --recipe recipes/buildings.yaml --workers 0",
        ("text buildings-recipe.geojson",),
    ),
    Step(
        "vectorize coco",
        "vectorize inputs/coco-masks masks.json --task buildings --workers 0"
        " --recipe recipes/coco.yaml",
        ("text masks.json",),
    ),
    Step(
        "tune roads",
        f"tune inputs/line-masks {ROADS_TRUTH} tuned-roads.yaml --recipe recipes/roads.yaml"
        " --minutes 30 --workers 0",
        ("tree tuned-roads.yaml",),
    ),
    Step(
        "tune buildings",
        f"tune inputs/building-masks {BUILDINGS_TRUTH} tuned-buildings.yaml"
        " --recipe recipes/buildings.yaml --minutes 30 --workers 0",
        ("tree tuned-buildings.yaml",),
    ),
    Step(
        "score roads",
        "score inputs/roads/test_truth.csv inputs/submissions/roads.csv --topo --json",
        ("tree stdout",),
    ),
    Step("score many roads", f"score {ROADS_TRUTH} roads.csv --topo --json", ("tree stdout",)),
    Step(
        "score buildings",
        "score inputs/buildings/test_truth.csv inputs/submissions/buildings.csv --json",
        ("tree stdout",),
    ),
    Step("score many buildings", f"score {BUILDINGS_TRUTH} buildings.csv --json", ("tree stdout",)),
    Step(
        "score coco",
        "score inputs/coco/test_annotation.json inputs/submissions/coco.json --json",
        ("tree stdout",),
    ),
    Step("check roads", "check inputs/submissions/roads.csv inputs/roads/test"),
    Step("check buildings", "check inputs/submissions/buildings.csv inputs/buildings/test"),
    Step("check coco", "check inputs/submissions/coco.json inputs/coco/test_images"),
    Step("check faulty roads", "check bad/faulty.csv", ("lines stdout",)),
    Step(
        "overlay roads",
        "overlay inputs/submissions/roads.csv overlay-roads inputs/roads/test"
        " --truth inputs/roads/test_truth.csv",
        ("pictures overlay-roads",),
    ),
    Step(
        "overlay buildings",
        "overlay inputs/submissions/buildings.csv overlay-buildings inputs/buildings/test"
        " --truth inputs/buildings/test_truth.csv",
        ("pictures overlay-buildings",),
    ),
    # Trainings, and what their networks predict.
    Step(
        "train roads",
        f"train inputs/roads/train --recipe recipes/roads.yaml --weights weights-roads {TRAIN}",
        ("weights weights-roads", "log weights-roads"),
        "train roads",
    ),
    Step(
        "train buildings",
        "train inputs/buildings/train --recipe recipes/buildings.yaml"
        f" --weights weights-buildings {TRAIN}",
        ("weights weights-buildings", "log weights-buildings"),
        "train buildings",
    ),
    Step(
        "train coco",
        f"train inputs/coco/train --recipe recipes/coco.yaml --weights weights-coco {TRAIN}",
        ("weights weights-coco", "log weights-coco"),
        "train coco",
    ),
    Step(
        "predict roads",
        f"predict inputs/roads/test predicted-roads.csv --weights weights-roads {PREDICT}"
        " --probabilities probabilities-roads --export predicted-roads.geojson"
        " --export predicted-roads.gpkg --export predicted-roads.graphml",
        (
            "text predicted-roads.csv",
            "rasters probabilities-roads",
            "text predicted-roads.geojson",
            "features predicted-roads.gpkg",
            "text predicted-roads.graphml",
        ),
        "train roads",
    ),
    Step(
        "predict roads out of fold",
        f"predict inputs/roads/train held-out-roads.csv --weights weights-roads {PREDICT}"
        " --out-of-fold",
        ("text held-out-roads.csv",),
        "train roads",
    ),
    Step(
        "predict buildings",
        f"predict inputs/buildings/test predicted-buildings.csv --weights weights-buildings"
        f" {PREDICT} --probabilities probabilities-buildings --export predicted-buildings.geojson"
        " --export predicted-buildings.gpkg",
        (
            "text predicted-buildings.csv",
            "rasters probabilities-buildings",
            "text predicted-buildings.geojson",
            "features predicted-buildings.gpkg",
        ),
        "train buildings",
    ),
    Step(
        "predict buildings out of fold",
        "predict inputs/buildings/train held-out-buildings.csv --weights weights-buildings"
        f" {PREDICT} --out-of-fold --probabilities probabilities-held-out",
        ("text held-out-buildings.csv", "rasters probabilities-held-out"),
        "train buildings",
    ),
    Step(
        "confidence",
        "confidence held-out-buildings.csv probabilities-held-out --weights weights-buildings",
        ("digest weights-buildings/building-selection.txt",),
        "train buildings",
    ),
    Step(
        "predict buildings with confidence",
        "predict inputs/buildings/test confident.csv --weights weights-buildings"
        f" --recipe recipes/buildings.yaml {PREDICT}",
        ("text confident.csv",),
        "train buildings",
    ),
    Step(
        "predict coco",
        f"predict inputs/coco/test_images predicted.json --weights weights-coco {PREDICT}"
        " --probabilities probabilities-coco",
        ("text predicted.json", "rasters probabilities-coco"),
        "train coco",
    ),
    Step("verify weights", "verify weights-coco"),
    Step("verify submission", "verify predicted.json --device cpu --workers 0"),
    Step("weights show", f"weights show {COCO_NETWORK}", ("output stdout",), "train coco"),
    Step(
        "weights average",
        f"weights average averaged/mean.safetensors {BUILDING_NETWORK}.last.safetensors"
        f" {BUILDING_NETWORK}.best_dice.safetensors",
        ("weights averaged",),
        "train buildings",
    ),
    Step(
        "export",
        f"export {ROAD_NETWORK} network.onnx",
        ("onnx network.onnx",),
        "train roads",
    ),
)

# Only the exit status of these calls is compared. See make_bad_inputs for the files.
CALLS = {
    "version": "--version",
    "no command": "",
    "unknown command": "digitise inputs/roads",
    "inventory: no arguments": "inventory",
    "inventory: missing directory": "inventory no-such-directory",
    "inventory: file, not directory": "inventory recipes/roads.yaml",
    "inventory: directory without images": "inventory bad/empty",
    "inventory: mixed challenges": "inventory inputs/buildings inputs/coco --task buildings",
    "inventory: unknown task": "inventory inputs/roads --task trees",
    "audit: missing directory": "audit no-such-directory",
    "audit: too many bits": "audit inputs/coco/train --bits 9",
    "audit: truncated images": "audit bad/truncated",
    "make-city: no chips": "make-city bad/city --chips 0",
    "make-city: looks of another layout": "make-city bad/city --looks 3",
    "make-city: unknown layout": "make-city bad/city --layout spacenet9",
    "make-city: other city there": "make-city inputs/roads --chips 2 --test-chips 1 --size 96",
    "train: unknown recipe": "train inputs/roads/train --recipe no-such-recipe",
    "train: unknown recipe key": "train inputs/roads/train --recipe bad/unknown-key.yaml",
    "train: bad recipe value": "train inputs/roads/train --recipe bad/bad-value.yaml",
    "train: recipe is no YAML": "train inputs/roads/train --recipe bad/not-yaml.yaml",
    "train: recipe is a directory": "train inputs/roads/train --recipe bad/directory.yaml",
    "train: negative workers": "train inputs/roads/train --workers -1",
    "train: bad time limit": "train inputs/roads/train --time-limit 5x",
    "train: time limit and deterministic": "train inputs/roads/train --time-limit 5m"
    " --deterministic",
    "train: missing directory": "train no-such-directory --recipe recipes/roads.yaml"
    f" --weights bad/w {TRAIN}",
    "train: missing labels": "train inputs/roads/test --recipe recipes/roads.yaml"
    f" --weights bad/w {TRAIN}",
    "train: missing ImageNet weights": "train inputs/roads/train --recipe sn5-roads"
    f" --weights bad/w {TRAIN}",
    "train: roads by a recipe for buildings": "train inputs/roads/train"
    f" --recipe recipes/buildings.yaml --weights bad/w {TRAIN}",
    "train: mixed challenges": "train inputs/coco/train inputs/buildings/train"
    f" --recipe recipes/buildings.yaml --weights bad/w {TRAIN}",
    "train: truncated images": "train bad/truncated --skip-unlabelled"
    f" --recipe recipes/roads.yaml --weights bad/w {TRAIN}",
    "train: missing audit": "train inputs/roads/train --audit no-such.json"
    f" --recipe recipes/roads.yaml --weights bad/w {TRAIN}",
    "predict: no output": "predict inputs/roads/test",
    "predict: missing weights": f"predict inputs/roads/test bad/out.csv --weights bad/no {PREDICT}",
    "predict: missing directory": "predict no-such-directory bad/out.csv"
    f" --weights weights-roads {PREDICT}",
    "predict: other challenge": "predict inputs/coco/test_images bad/out.csv"
    f" --weights weights-roads {PREDICT}",
    "predict: wrong suffix for export": "predict inputs/roads/test bad/out.csv"
    f" --weights weights-roads --export bad/out.shp {PREDICT}",
    "predict: output below a file": "predict inputs/roads/test recipes/roads.yaml/out.csv"
    f" --weights weights-roads {PREDICT}",
    "predict: recipe of another task": "predict inputs/roads/test bad/out.csv"
    f" --weights weights-roads --recipe recipes/buildings.yaml {PREDICT}",
    "predict: unknown device": "predict inputs/roads/test bad/out.csv"
    " --weights weights-roads --device abacus",
    "predict: truncated weights": "predict inputs/roads/test bad/out.csv"
    f" --weights bad/weights {PREDICT}",
    "predict: all images truncated": "predict bad/truncated bad/truncated.csv"
    f" --weights weights-roads {PREDICT}",
    "predict: one image truncated": "predict bad/one-truncated bad/one-truncated.csv"
    f" --weights weights-roads {PREDICT}",
    "predict: unknown images out of fold": "predict inputs/coco/test_images bad/out.json"
    f" --weights weights-coco --out-of-fold {PREDICT}",
    "predict: GeoPackage as output": "predict inputs/coco/test_images bad/out.gpkg"
    f" --weights weights-coco {PREDICT}",
    "vectorize: missing directory": "vectorize no-such-directory bad/out.csv",
    "vectorize: file, not directory": "vectorize recipes/roads.yaml bad/out.csv",
    "vectorize: directory without masks": "vectorize bad/empty bad/out.csv",
    "vectorize: wrong suffix": "vectorize inputs/road-masks bad/out.shp",
    "vectorize: buildings as GraphML": "vectorize inputs/building-masks bad/out.graphml"
    " --task buildings",
    "vectorize: roads of building masks": "vectorize inputs/building-masks bad/out.csv --workers 0",
    "vectorize: no georeference": "vectorize inputs/line-masks bad/out.gpkg --workers 0",
    "vectorize: truncated mask": "vectorize bad/masks bad/out.csv --workers 0",
    "vectorize: bad pixel size": "vectorize inputs/road-masks bad/out.csv --metres-per-pixel 0",
    "tune: missing truth": "tune inputs/line-masks no-such.csv bad/out.yaml"
    " --recipe recipes/roads.yaml",
    "tune: other task": f"tune inputs/line-masks {ROADS_TRUTH} bad/out.yaml --task buildings"
    " --recipe recipes/roads.yaml",
    "tune: too few masks": f"tune inputs/road-masks {ROADS_TRUTH} bad/out.yaml --workers 0"
    " --recipe recipes/roads.yaml",
    "confidence: submission of roads": "confidence predicted-roads.csv probabilities-roads"
    " --weights weights-buildings",
    "confidence: missing submission": "confidence no-such.csv probabilities-held-out"
    " --weights weights-buildings",
    "weights show: missing file": "weights show no-such.safetensors",
    "weights show: directory": "weights show weights-roads",
    "weights show: truncated file": "weights show bad/weights/fold0.last.safetensors",
    "weights average: wrong suffix": f"weights average bad/out.pt {ROAD_NETWORK}",
    "weights average: different networks": "weights average bad/out.safetensors"
    f" {ROAD_NETWORK} {COCO_NETWORK}",
    "weights import: not a weight file": "weights import recipes/roads.yaml bad/w",
    "weights fetch: nothing to fetch": "weights fetch --recipe recipes/roads.yaml --weights bad/w",
    "export: wrong suffix": f"export {ROAD_NETWORK} bad/out.tflite",
    "export: missing network": "export no-such.safetensors bad/out.onnx",
    "score: missing truth": "score no-such.csv inputs/submissions/roads.csv",
    "score: mixed challenges": "score inputs/roads/test_truth.csv inputs/submissions/buildings.csv",
    "score: empty file": "score inputs/roads/test_truth.csv bad/empty.csv",
    "score: directory, not file": "score inputs/roads/test_truth.csv inputs/submissions",
    "check: missing file": "check no-such.csv",
    "check: images of another challenge": "check inputs/submissions/roads.csv inputs/coco",
    "check: missing images": "check inputs/submissions/roads.csv inputs/roads/train",
    "check: truth as submission": f"check {BUILDINGS_TRUTH}",
    "verify: missing file": "verify no-such.csv",
    "verify: no manifest": "verify inputs/submissions/roads.csv",
    "verify: altered submission": "verify bad/altered.json --device cpu --workers 0",
    "verify: directory without weights": "verify bad/empty",
    "overlay: missing submission": "overlay no-such.csv bad/pictures inputs/roads/test",
    "overlay: missing directory": "overlay inputs/submissions/roads.csv bad/pictures no-such",
    "overlay: missing truth": "overlay inputs/submissions/roads.csv bad/pictures inputs/roads/test"
    " --truth no-such.csv",
    "demo: below a file": "demo recipes/roads.yaml/demo",
}

# Item to the reason why it may differ.
ALLOWED = {
    "weights show: output stdout": "keys and wording may change",
}

# How much weights and network outputs may differ on another processor, relative to their size.
TOLERANCE = 1e-4

# One thread and no GPU: sums then have one order.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "GDAL_CACHEMAX": "512",
    "CUDA_VISIBLE_DEVICES": "",
    "SATMAP_CACHE": "cache",
}


def main() -> None:
    """Freeze or check the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("action", choices=("freeze", "check"))
    parser.add_argument(
        "--tolerant",
        action="store_true",
        help="accept other predictions of networks whose weights are close but not equal",
    )
    parser.add_argument("--keep", action="store_true", help="keep the temporary directory")
    options = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    os.environ.pop("WEIGHTS_DIR", None)
    warnings.filterwarnings("ignore", message="Dataset has no geotransform")
    started = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="satmap-compare-"))
    try:
        prepare(work)
        print(f"satmap: {installed(work)}", flush=True)
        results = run_all(work)
        passed = freeze(results) if options.action == "freeze" else check(results, options.tolerant)
    finally:
        if options.keep:
            print(f"kept: {work}")
        else:
            shutil.rmtree(work)
    print(f"{time.monotonic() - started:.0f} s")
    sys.exit(0 if passed else 1)


# ---------------------------------------------------------------------------- running commands


@dataclass(frozen=True)
class Result:
    """A result of a command.

    Attributes:
        item: its name.
        kind: how it was read, and how it is compared.
        value: what is compared; JSON, or bytes of the kind ``text``.
        training: the training that it depends on.
    """

    item: str
    kind: str
    value: Any
    training: str | None = None


def prepare(work: Path) -> None:
    """Fill the directory that the commands run in."""
    shutil.copytree(BASELINE / "inputs", work / "inputs")
    (work / "recipes").mkdir()
    for recipe in HERE.glob("*.yaml"):
        shutil.copy(recipe, work / "recipes")
    shutil.copytree(work / "inputs/coco/train/images", work / "copies")
    shutil.copy(work / "copies/000000000001.jpg", work / "copies/000000000101.jpg")
    make_bad_inputs(work)
    if REAL_MASKS.is_dir():
        (work / "real-masks").mkdir()
        for chip in REAL_CHIPS:
            for mask in REAL_MASKS.glob(f"*_{chip}.png"):
                shutil.copy(mask, work / "real-masks")


def make_bad_inputs(work: Path) -> None:
    """Make the inputs of bad calls that need no trained network."""
    bad = work / "bad"
    for name in ("empty", "directory.yaml", "masks", "weights"):
        (bad / name).mkdir(parents=True)
    recipe = (work / "recipes/roads.yaml").read_text(encoding="utf-8")
    texts = {
        "unknown-key.yaml": recipe + "\nno_such_key: 1\n",
        "bad-value.yaml": re.sub(r"^seed: .*$", "seed: -1", recipe, flags=re.MULTILINE),
        "not-yaml.yaml": "name: [roads\n",
        "empty.csv": "",
    }
    for name, text in texts.items():
        (bad / name).write_text(text, encoding="utf-8")
    lines = (work / "inputs/submissions/roads.csv").read_text(encoding="utf-8").splitlines()
    lines[3] = lines[3].replace("LINESTRING", "LINE")
    lines[5] = lines[5].rsplit(",", 1)[0]
    (bad / "faulty.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, count in (("truncated", 2), ("one-truncated", 1)):
        shutil.copytree(work / "inputs/roads/test", bad / name)
        for image in sorted((bad / name).rglob("*.tif"))[:count]:
            cut_in_half(image)
    mask = Path("AOI_99_Made_chip1.tif")
    shutil.copy(work / "inputs/road-masks" / mask, bad / "masks")
    cut_in_half(bad / "masks" / mask)


def make_bad_results(work: Path) -> None:
    """Make the inputs of bad calls from what the steps wrote."""
    weights = work / "bad/weights/fold0.last.safetensors"
    shutil.copy(work / COCO_NETWORK, weights)
    cut_in_half(weights)
    for suffix in ("", ".manifest.json"):
        shutil.copy(work / f"predicted.json{suffix}", work / f"bad/altered.json{suffix}")
    altered = work / "bad/altered.json"
    altered.write_bytes(altered.read_bytes() + b"\n")


def cut_in_half(path: Path) -> None:
    """Drop the second half of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def installed(work: Path) -> str:
    """Where the satmap that is compared lies."""
    command = [sys.executable, "-c", "import satmap; print(satmap.__file__)"]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def run_all(work: Path) -> Iterator[Result]:
    """Run all commands and read their results."""
    # A copy of a process with these modules starts at once.
    for module in ("torch", "torchvision", "timm", "lightgbm", "skimage.morphology", "rasterio"):
        __import__(module)
    for step in STEPS:
        if is_skipped(step.name):
            print(f"skipped: {step.name}: there is no ../shared/fixtures/masks", flush=True)
            continue
        # What trains or predicts gets a new process, so that nothing can change its sums.
        run = run_new if step.training else run_copy
        status = run(shlex.split(step.command), work)
        if status and step.name != "check faulty roads":
            errors = (work / "stderr").read_text(encoding="utf-8", errors="replace")
            print(f"{step.name}: status {status}: {errors.strip()[-500:]}")
        yield Result(f"{step.name}: status", "status", status)
        for wanted in step.results:
            kind, name = wanted.split()
            yield Result(f"{step.name}: {wanted}", kind, read(kind, work / name), step.training)
    make_bad_results(work)
    for name, line in CALLS.items():
        yield Result(f"call {name}", "status", run_copy(shlex.split(line), work))


def is_skipped(step: str) -> bool:
    """Whether a step needs files that this machine does not have."""
    return step == "vectorize real masks" and not REAL_MASKS.is_dir()


def run_new(arguments: Sequence[str], work: Path) -> int:
    """Run ``python -m satmap`` in a new process; its exit status."""
    command = [sys.executable, "-m", "satmap", *arguments]
    with (work / "stdout").open("wb") as output, (work / "stderr").open("wb") as errors:
        return subprocess.run(command, cwd=work, stdout=output, stderr=errors).returncode


def run_copy(arguments: Sequence[str], work: Path) -> int:
    """Run the same in a copy of this process, which has its slow imports behind it."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 70
    try:
        os.chdir(work)
        new = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        for stream, file in enumerate((os.devnull, "stdout", "stderr")):
            os.dup2(os.open(file, new if stream else os.O_RDONLY), stream)
        sys.argv = ["satmap", *arguments]
        sys.path[0] = str(work)
        runpy.run_module("satmap", run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    finally:
        for written in (sys.stdout, sys.stderr):
            written.flush()
        os._exit(status)


# ---------------------------------------------------------------------------- reading results


def read(kind: str, path: Path) -> Any:
    """Read a result; text that starts with ``cannot be read`` if there is none."""
    try:
        return READERS[kind](path)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        return f"cannot be read: {type(error).__name__}"


def digest(content: bytes) -> str:
    """The start of its SHA-256."""
    return hashlib.sha256(content).hexdigest()[:24]


def read_text(path: Path) -> bytes:
    """The bytes of a file."""
    return path.read_bytes()


def read_digest(path: Path) -> str:
    """The digest of the numbers in a long text."""
    return digest(" ".join(numbers_in(path.read_text(encoding="utf-8"))).encode())


def read_output(path: Path) -> str:
    """The lines of a text."""
    return path.read_text(encoding="utf-8")


def read_numbers(path: Path) -> list[str]:
    """The numbers in a text whose words may change."""
    return numbers_in(path.read_text(encoding="utf-8"))


def numbers_in(text: str) -> list[str]:
    """All numbers in order."""
    return re.findall(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?", text)


def read_lines(path: Path) -> list[str]:
    """The numbers of the lines that faults are reported for."""
    return re.findall(r"^[^\s:]+:(\d+):", path.read_text(encoding="utf-8"), flags=re.MULTILINE)


def read_tree(path: Path) -> Any:
    """The content of a JSON or YAML file, as JSON has it."""
    return json.loads(json.dumps(yaml.safe_load(path.read_text(encoding="utf-8")), default=str))


def read_raster(path: Path) -> dict[str, Any]:
    """Pixels, names of bands and place of an image."""
    import rasterio

    with rasterio.open(path) as source:
        pixels = source.read()
        return {
            "shape": list(pixels.shape),
            "type": str(pixels.dtype),
            "pixels": digest(pixels.tobytes()),
            "bands": list(source.descriptions),
            "crs": str(source.crs),
            "transform": list(source.transform)[:6],
        }


def read_rasters(path: Path) -> dict[str, Any]:
    """All GeoTIFFs of a directory."""
    return {file.name: read_raster(file) for file in files_of(path, ".tif")}


def read_pictures(path: Path) -> dict[str, Any]:
    """All PNGs of a directory."""
    return {file.name: read_raster(file) for file in files_of(path, ".png")}


def read_city(path: Path) -> dict[str, Any]:
    """Images, labels and truth of a synthetic city."""
    found: dict[str, Any] = {}
    for file in files_of(path, ""):
        name = str(file.relative_to(path))
        if file.suffix in (".tif", ".jpg", ".png"):
            found[name] = read_raster(file)
        elif file.suffix in (".json", ".geojson"):
            content = json.loads(file.read_text(encoding="utf-8"))
            found[name] = digest(json.dumps(content, sort_keys=True).encode())
        else:
            found[name] = digest(file.read_bytes())
    return found


def files_of(path: Path, suffix: str) -> list[Path]:
    """All files below a directory whose names end with a suffix."""
    found = sorted(f for f in path.rglob("*") if f.is_file() and f.name.endswith(suffix))
    if not found:
        raise FileNotFoundError(path)
    return found


def read_features(path: Path) -> dict[str, Any]:
    """Fields and geometries of all layers of a GeoPackage."""
    import pyogrio

    layers: dict[str, Any] = {}
    for name, kind in pyogrio.list_layers(path):
        about, _, shapes, columns = pyogrio.raw.read(path, layer=name)
        layers[str(name)] = {
            "kind": str(kind),
            "crs": about["crs"],
            "fields": list(map(str, about["fields"])),
            "features": len(shapes) if shapes is not None else 0,
            "geometry": digest(b"".join(shapes) if shapes is not None else b""),
            "values": digest(repr([column.tolist() for column in columns]).encode()),
        }
    return layers


def read_log(path: Path) -> dict[str, Any]:
    """Logs of a training, without its times."""
    logs = {}
    for file in files_of(path, ".log.csv"):
        header, *rows = (line.split(",") for line in file.read_text(encoding="utf-8").split())
        logs[file.name] = [
            [value for name, value in zip(header, row, strict=True) if not TIMES.search(name)]
            for row in rows
        ]
    return logs


TIMES = re.compile("second|ms_|minute|hour")


def read_weights(path: Path) -> dict[str, Any]:
    """For every weight file: name, shape, digest, sum, norm and four values of each tensor."""
    from safetensors.numpy import load_file

    return {
        file.name: {name: about_tensor(value) for name, value in sorted(load_file(file).items())}
        for file in files_of(path, ".safetensors")
    }


def about_tensor(values: NDArray[Any]) -> list[Any]:
    """Shape, digest, sum, norm and four values."""
    exact = values.astype(np.float64).ravel()
    places = np.linspace(0, exact.size - 1, 4).astype(np.int64)
    return [
        list(values.shape),
        digest(values.tobytes())[:16],
        *(float(f"{value:.9g}") for value in (exact.sum(), np.linalg.norm(exact))),
        *(float(f"{value:.9g}") for value in exact[places]),
    ]


def read_onnx(path: Path) -> dict[str, list[float]]:
    """What an exported network gives for a fixed image: mean and four values of each plane."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 96, 96), dtype=np.uint8)
    (planes,) = session.run(None, {session.get_inputs()[0].name: image})
    return {
        str(number): [float(f"{v:.9g}") for v in (plane.mean(), *plane[::31, ::31].ravel()[:4])]
        for number, plane in enumerate(planes[0])
    }


READERS: dict[str, Callable[[Path], Any]] = {
    "text": read_text,
    "digest": read_digest,
    "output": read_output,
    "numbers": read_numbers,
    "lines": read_lines,
    "tree": read_tree,
    "rasters": read_rasters,
    "pictures": read_pictures,
    "city": read_city,
    "features": read_features,
    "log": read_log,
    "weights": read_weights,
    "onnx": read_onnx,
}


# ---------------------------------------------------------------------------- the baseline


def freeze(results: Iterator[Result]) -> bool:
    """Write the baseline."""
    texts, values, weights = {}, {}, {}
    for result in results:
        print(f"frozen: {result.item}", flush=True)
        if isinstance(result.value, bytes):
            texts[text_file(result.item)] = result.value
            values[result.item] = {"file": text_file(result.item)}
        elif result.kind == "weights":
            weights[result.item] = result.value
        else:
            values[result.item] = result.value
    shutil.rmtree(BASELINE / "outputs", ignore_errors=True)
    (BASELINE / "outputs").mkdir()
    for name, content in texts.items():
        (BASELINE / "outputs" / name).write_bytes(content)
    write_json(BASELINE / "results.json", values)
    write_json(BASELINE / "weights.json", weights)
    return True


def text_file(item: str) -> str:
    """The name of the file that holds the frozen text of an item."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", item)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write JSON with a line for every value that is not a long mapping."""
    path.write_text(lines_of(values, 0) + "\n", encoding="utf-8")


def lines_of(value: Any, depth: int) -> str:
    """JSON whose inner mappings and lists are one line each."""
    flat = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    if not isinstance(value, dict) or len(flat) <= 400:
        return flat
    indent = "\n" + " " * (depth + 1)
    items = (f"{json.dumps(key)}:{lines_of(inner, depth + 1)}" for key, inner in value.items())
    return "{" + indent + f",{indent}".join(items) + "}"


def frozen_values() -> dict[str, Any]:
    """All values of the baseline but texts."""
    values: dict[str, Any] = {}
    for name in ("results.json", "weights.json"):
        values |= json.loads((BASELINE / name).read_text(encoding="utf-8"))
    return values


# ---------------------------------------------------------------------------- comparing

SAME, DIFFERS, ALLOWED_DIFFERENCE = "same", "differs", "allowed difference"


def check(results: Iterator[Result], tolerant: bool) -> bool:
    """Compare with the baseline and print a line for each item; whether nothing differs."""
    frozen = frozen_values()
    counts = dict.fromkeys((SAME, DIFFERS, ALLOWED_DIFFERENCE), 0)
    close_trainings: set[str | None] = set()
    seen = set()
    for result in results:
        seen.add(result.item)
        before = frozen.get(result.item)
        if isinstance(result.value, bytes):
            before = before and (BASELINE / "outputs" / before["file"]).read_bytes()
        verdict, why = compare(result.kind, before, result.value)
        if result.kind == "weights" and verdict == SAME and why:
            close_trainings.add(result.training)
        if verdict == DIFFERS and result.item in ALLOWED:
            verdict, why = ALLOWED_DIFFERENCE, ALLOWED[result.item]
        elif verdict == DIFFERS and tolerant and result.training in close_trainings:
            verdict = ALLOWED_DIFFERENCE
            why = f"the weights of {result.training!r} are close but not equal ({why})"
        counts[verdict] += 1
        print(f"{verdict}: {result.item}" + (f": {why}" if why else ""), flush=True)
    for item in frozen:
        if item in seen or is_skipped(item.split(":")[0]):
            continue
        counts[DIFFERS] += 1
        print(f"differs: {item}: no command makes it any more")
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return not counts[DIFFERS]


def compare(kind: str, before: Any, now: Any) -> tuple[str, str]:
    """Compare a result with the frozen one; the verdict and the reason."""
    if before is None:
        return DIFFERS, "it is not in the baseline"
    if before == now:
        return SAME, ""
    if type(before) is not type(now):
        return DIFFERS, str(now)[:200]
    if kind in ("weights", "onnx"):
        return compare_numbers(kind, before, now)
    if kind == "tree":
        old, new = list(leaves(before)), list(leaves(now))
        if old == new or sorted(map(repr, old)) == sorted(map(repr, new)):
            return ALLOWED_DIFFERENCE, "the values are the same, keys have other names"
        return DIFFERS, first_difference(list(map(repr, old)), list(map(repr, new)))
    if kind == "text":
        return DIFFERS, first_difference(*(v.decode().splitlines() for v in (before, now)))
    if isinstance(before, dict):
        names = [n for n in before.keys() | now.keys() if before.get(n) != now.get(n)]
        return DIFFERS, f"in {', '.join(sorted(names))}"[:300]
    return DIFFERS, f"{before!s:.100} before, {now!s:.100} now"


def leaves(value: Any) -> Iterator[Any]:
    """The values of a tree in order, without keys."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from leaves(inner)
    else:
        yield value


def first_difference(before: Sequence[str], now: Sequence[str]) -> str:
    """Where two lists of lines start to differ."""
    for number, (old, new) in enumerate(zip(before, now, strict=False), 1):
        if old != new:
            return f"line {number}: {old[:100]!r} before, {new[:100]!r} now"
    return f"{len(before)} lines before, {len(now)} now"


def compare_numbers(kind: str, before: dict[str, Any], now: dict[str, Any]) -> tuple[str, str]:
    """Compare weights of networks, or their outputs, with a tolerance."""
    if before.keys() != now.keys():
        return DIFFERS, f"files {sorted(before.keys() ^ now.keys())}"
    worst = 0.0
    for name, old in before.items():
        new = now[name]
        if kind == "onnx":
            worst = max(worst, float(np.max(np.abs(np.subtract(old, new)))))
            continue
        if old.keys() != new.keys():
            return DIFFERS, f"tensors of {name}: {sorted(old.keys() ^ new.keys())[:4]}"
        for tensor, row in old.items():
            if row[0] != new[tensor][0]:
                return DIFFERS, f"{tensor} of {name} has another shape"
            worst = max(worst, tensor_difference(row, new[tensor]))
    if worst > TOLERANCE:
        return DIFFERS, f"by {worst:.2g}, relative to their size"
    return SAME, f"within {worst:.2g}, not exactly"


def tensor_difference(before: Sequence[Any], now: Sequence[Any]) -> float:
    """The largest difference of two tensors' numbers, relative to the numbers' usual size."""
    if before[1] == now[1]:
        return 0.0
    total, norm, *values = before[2:]
    size = max(1, int(np.prod(before[0])))
    scale = max(norm / size**0.5, 1e-12)
    # A sum of n numbers of either sign is about the square root of n times as large as each.
    sizes = [max(abs(total), norm), max(norm, 1e-12), *(max(abs(v), scale) for v in values)]
    differences = np.abs(np.subtract(before[2:], now[2:])) / np.maximum(sizes, 1e-12)
    return float(np.max(differences))


if __name__ == "__main__":
    main()
