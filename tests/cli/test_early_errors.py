"""Wrong arguments are reported before heavy libraries are imported."""

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from satmap import cli
from satmap.recipes.schema import load_recipe

# Runs commands in one process in which the heavy libraries cannot be imported.
SCRIPT = """
import contextlib, io, json, sys
sys.modules |= dict.fromkeys(["torch", "torchvision", "timm", "cv2"])
import satmap.cli
satmap.cli.exit_process = sys.exit
messages = []
for arguments in json.load(sys.stdin):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            satmap.cli.main(arguments)
        except SystemExit as ended:
            messages.append(f"{ended.code} {said.getvalue()}")
print(json.dumps(messages))
"""

CASES = [
    ("predict nowhere out.csv", "nowhere does not exist"),
    ("predict images out.csv --weights images", "no weights"),
    ("predict images out.csv --probabilities file/maps", "/file/maps/maps.tif: Not a directory"),
    ("predict images out.json --weights roads", "'.json' is none of .csv."),
    ("predict images out.gpkg --weights roads", "add --export"),
    ("predict images o.csv --weights houses --export x.graphml", "'.graphml' is none of .geojson"),
    ("predict images out.csv --weights odd", "the decoder 'odd'"),
    ("predict images out.csv --weights broken", "broken metadata: maps: Invalid JSON"),
    ("predict file out.csv", "`satmap map` reads any images"),
    ("train nowhere", "nowhere does not exist"),
    ("train file", "file is a single image: give its labels, too, with --labels."),
    ("train images --recipe no-such-recipe", "no recipe is called"),
    ("train images --shift 1,2", "--shift is for your own images: give --labels, too."),
    ("inventory images --source-crs EPSG:4326", "--source-crs is for your own images"),
    ("train images --fold 9", "no member of fold 9. Its folds are: 0, 1, 2, 3"),
    ("train images --cache file/cache", "/file/cache/weights.safetensors: Not a directory"),
    ("train images --unlabelled images", "has no round that learns from unlabelled images"),
    ("train images --audit nowhere.json", "nowhere.json: cannot be read"),
    ("train images --audit file", "file: not a report of near-duplicates"),
    ("train images --init nowhere", "--init: nowhere does not exist"),
    ("train images --init images", "no weights"),
    ("train images --init file", "not a whole safetensors file"),
    ("train images --init roads --from-scratch", "exclude each other"),
    ("train images --init roads --weights roads", "would overwrite roads"),
    ("train images --recipe small-buildings --init roads", "it was trained for roads, and recipe"),
    ("train images --recipe small-roads --init roads/a.last.safetensors", "encoder is resnet18,"),
    ("train images --recipe quick-roads --init eight", "it reads 8 bands, and the recipe has 3."),
    (
        "train images --recipe quick-roads --init roads",
        "its decoder is plain with the widths [16, 16,",
    ),
    ("vectorize nowhere out.csv", "nowhere does not exist"),
    ("vectorize images out.shp", "'.shp' is none of .csv, .geojson, .gpkg,"),
    ("vectorize images out.graphml --task buildings", "'.graphml' is none of .csv, .json"),
    ("tune nowhere file out.yaml", "nowhere does not exist"),
    ("tune images nowhere.csv out.yaml", "nowhere.csv does not exist"),
    ("tune images file out.csv", "must end in .yaml or .yml"),
    ("tune images file file/out.yaml", "/file/out.yaml: File exists"),
    ("confidence nowhere.csv images --weights houses", "nowhere.csv does not exist"),
    ("confidence file nowhere --weights houses", "nowhere does not exist"),
    ("confidence file images --weights nowhere", "no weights"),
    ("weights average out.safetensors file", "give two or more"),
    ("weights average out.safetensors odd/a.last.safetensors file", "the decoder 'odd'"),
    ("export nowhere.safetensors out.onnx", "no weight file nowhere.safetensors"),
    ("export roads/a.last.safetensors out.txt", "must end in .pt2 or .onnx"),
    ("export broken/a.last.safetensors out.pt2", "broken metadata: maps: Invalid JSON"),
    ("export later/a.last.safetensors out.pt2", "a.last.safetensors has the format number 2"),
    ("predict images o.csv --weights later", "reads weights of format 1. Use the version"),
    ("score nowhere.csv file", "nowhere.csv does not exist"),
    ("score file file --images images", "--plot DIR, which is missing"),
    ("score file file --plot p --images nowhere", "nowhere does not exist"),
    ("check nowhere.csv", "nowhere.csv does not exist"),
    ("overlay nowhere.csv pictures images", "nowhere.csv does not exist"),
    ("view nowhere.gpkg", "nowhere.gpkg does not exist"),
    ("view file --images nowhere", "nowhere does not exist"),
    ("view file file --truth file", "give one RESULT"),
    ("view file --html file/map.html", "/file/map.html: File exists"),
]


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Status and message of each command."""
    place = tmp_path_factory.mktemp("early")
    (place / "images").mkdir()
    (place / "file").write_text("neither image nor report")
    widths = [16, 16, 16, 16]
    right = json.dumps({"kind": "plain", "widths": widths})
    for name, recipe, decoder, maps in (
        ("roads", "demo", right, '["road"]'),
        ("houses", "sn4-buildings", right, '["building"]'),
        ("odd", "demo", json.dumps({"kind": "odd", "widths": widths}), '["road"]'),
        ("broken", "demo", right, '["road"'),
        ("later", "demo", right, '["road"]'),
        ("eight", "demo", right, '["road"]'),
    ):
        metadata = {
            "architecture": "resnet18", "in_channels": "3", "decoder": decoder, "maps": maps,
            "recipe": load_recipe(recipe).model_dump_json(),
        }  # fmt: skip
        if name == "later":
            metadata["format"] = "2"
        if name == "eight":
            metadata["in_channels"] = "8"
        (place / name).mkdir()
        save_file({"x": np.zeros(1)}, place / name / "a.last.safetensors", metadata)
    commands = [command.split() for command, _ in CASES]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=json.dumps(commands),
        capture_output=True, text=True, timeout=120, cwd=place, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(zip((command for command, _ in CASES), json.loads(done.stdout), strict=True))


@pytest.mark.parametrize(("command", "message"), CASES)
def test_wrong_calls_fail_before_heavy_imports(
    command: str, message: str, messages: dict[str, str]
) -> None:
    assert messages[command].startswith("1 satmap: ")
    assert message in messages[command]


def test_reference_systems_of_sources_stay_as_named() -> None:
    options = cli._parser().parse_args(["map", "a.tif", "o.gpkg", "--source-crs", " EPSG:4326"])
    assert options.source_crs == "EPSG:4326"


@pytest.mark.parametrize("command", ["map town.tif o.gpkg", "train a --labels b", "inventory a"])
def test_reference_systems_of_sources_are_checked_with_the_arguments(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([*command.split(), "--source-crs", "EPSG:nowhere"])
    assert caught.value.code == 2
    assert "--source-crs: 'EPSG:nowhere' is not a" in capsys.readouterr().err
