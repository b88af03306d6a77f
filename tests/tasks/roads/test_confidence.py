"""The confidence of roads: features, a fit to a real network, and the commands that use it."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from default_tasks import road_task
from repository import SHARED
from satmap.cli import main
from satmap.data.own_chips import find_own_chips
from satmap.data.own_data import OwnData
from satmap.provenance.manifest import SubmissionManifest, read_manifest
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.routing import read_network
from satmap.submissions.roads_csv import read_roads_csv
from satmap.submissions.vector_maps import confidence_of, read_map
from satmap.tasks.calibration import CALIBRATION_FILE
from satmap.tasks.roads.measures import measure_roads, road_features
from satmap.tasks.roads.settings import JUNCTION, ROAD, ROAD_MAPS
from satmap.vectors.road_graph import RoadEdge, RoadGraph
from satmap.weights.members import find_weights
from satmap.weights.starters import PICTURES, starter_weights

DATA = SHARED / "data" / "roads_massachusetts"
EPFL = SHARED / "data" / "roads_epfl" / "AOI_90_Suburb_Train"
real = pytest.mark.skipif(not DATA.is_dir(), reason=f"no {DATA}")
PICTURE = PICTURES / "natick.tif"
CPU = ["--device", "cpu", "--workers", "0"]


def features(
    graph: RoadGraph, values: NDArray[np.uint8], names: tuple[str, ...]
) -> dict[str, list[float]]:
    maps = ProbabilityMaps(names, values, (1.0, 1.0))
    found = measure_roads(graph, maps)
    return dict(zip(road_features(names), found.T.tolist(), strict=True))


def test_features_of_roads_worked_out_by_hand() -> None:
    values = np.zeros((2, 100, 200), np.uint8)
    # A street with a gap of 10 m, and a straight road from its end to the image's edge.
    values[0, 48:53, 20:150] = 204
    values[0, 48:53, 80:90] = 26
    values[0, :53, 148:153] = 204
    values[1, 46:55, 146:155] = 128
    nodes = np.array([(20.5, 50.5), (150.5, 50.5), (150.5, 0.0), (190.0, 50.5)])
    lines = [nodes[[0, 1]], nodes[[1, 2]], np.array([(150.5, 50.5), (170, 70), (190, 50.5)])]
    edges = tuple(
        RoadEdge(ends, line, 1.0, 10.0, 0.5)
        for ends, line in zip([(0, 1), (1, 2), (1, 3)], lines, strict=True)
    )
    found = features(RoadGraph(nodes, edges), values, (ROAD, JUNCTION))
    assert found["length"][0] == pytest.approx(np.log(130))
    # 10 m of the first road are a gap; the other one has none.
    assert np.expm1(found["gap"][:2]) == pytest.approx([10, 0], abs=1)
    odds = [np.log(26 / 229), np.log(204 / 51)]
    assert found["lowest"][:2] == pytest.approx(odds, abs=0.01)
    mean = (120 * 204 + 10 * 26) / 130 / 255
    assert found["mean"][0] == pytest.approx(np.log(mean / (1 - mean)), abs=0.02)
    # The first ends freely in the image, the second leaves it, the third ends freely.
    assert found["dead_ends"] == [1, 0, 1]
    assert found["at_border"] == [0, 1, 0]
    assert np.expm1(found["turning"]) == pytest.approx([0, 0, 90], abs=1)
    assert found["straightness"][:2] == [1, 1] and 0.7 < found["straightness"][2] < 0.72
    assert found["junction"] == pytest.approx([128 / 255] * 3)
    assert len(set(found["image_mean"])) == 1
    empty = measure_roads(RoadGraph(), ProbabilityMaps((ROAD,), values[:1], (1.0, 1.0)))
    assert empty.shape == (0, len(road_features((ROAD,))))


def test_a_least_confidence_drops_roads_and_their_nodes() -> None:
    nodes = np.array([(0.0, 0.0), (10.0, 0.0), (20.0, 0.0), (20.0, 9.0)])
    edges = tuple(
        RoadEdge(ends, nodes[list(ends)], 10.0, 10.0, 0.5, confidence=confidence)
        for ends, confidence in (((0, 1), 0.2), ((1, 2), 0.5), ((2, 3), 0.9))
    )
    kept = RoadGraph(nodes, edges).keep_confident(0.5)
    assert kept.nodes.tolist() == nodes[1:].tolist()
    assert [(edge.nodes, edge.confidence) for edge in kept.edges] == [((0, 1), 0.5), ((1, 2), 0.9)]
    assert RoadGraph(nodes, edges).keep_confident(0.95).nodes.shape == (0, 2)


def run(capfd: pytest.CaptureFixture[str] | None, *arguments: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    printed = "" if capfd is None else "".join(capfd.readouterr())
    return int(ended.value.code or 0), printed


@dataclass(frozen=True)
class Place:
    """Real chips that the starter held out, with its network and what was fitted to them."""

    chips: Path
    weights: Path
    maps: Path
    fold: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("held-out")
    (file,) = find_weights(starter_weights("roads"))
    held_out = sorted(set(file.held_out or ()) & {path.stem for path in DATA.glob("images/*")})[:8]
    for folder in ("images", "masks"):
        (root / folder).mkdir()
        for path in (DATA / folder).iterdir():
            if path.stem in held_out:
                shutil.copy(path, root / folder)
    data = OwnData((str(root / "images"),), root / "masks", metres_per_pixel=1.0)
    found = find_own_chips(data, road_task(), 3, root / "cache").chips
    place = Place(found[0].image.path.parent, root / "weights", root / "maps", root / "fold.csv")
    place.weights.mkdir()
    shutil.copy(file.path, place.weights)
    assert run(
        None, "predict", place.chips, place.fold, "--out-of-fold", "--probabilities", place.maps,
        "--weights", place.weights, *CPU,
    )[0] == 0  # fmt: skip
    assert run(None, "confidence", place.fold, place.maps, "--weights", place.weights)[0] == 0
    return place


@pytest.fixture(scope="module")
def roads(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another real place, mapped with the calibrated network, in several formats."""
    output = tmp_path_factory.mktemp("mapped") / "roads.gpkg"
    exports = ["geojson", "graphml", "osm", "osm.pbf", "fgb", "parquet", "shp.zip"]
    more = [part for suffix in exports for part in ("--export", f"{output.parent}/roads.{suffix}")]
    assert run(
        None, "map", PICTURE, output, "--weights", place.weights, "--views", 1, *more, *CPU
    )[0] == 0  # fmt: skip
    return output


@real
def test_a_fit_is_written_beside_the_networks(
    place: Place, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    content = json.loads((place.weights / CALIBRATION_FILE).read_text())
    assert (content["format"], content["task"]) == (1, "roads")
    assert tuple(content["features"]) == road_features(ROAD_MAPS)
    out = tmp_path / "out.csv"
    command = ["predict", place.chips, out, "--weights", place.weights, *CPU]
    status, printed = run(capfd, *command, "--least-confidence", 0.3)
    assert status == 0 and f"confidence: calibrated by {CALIBRATION_FILE}" in printed
    manifest = read_manifest(out)
    assert isinstance(manifest, SubmissionManifest)
    assert manifest.least_confidence == 0.3
    assert CALIBRATION_FILE in [record.name for record in manifest.weights]
    sure = {name: len(rows) for name, rows in read_roads_csv(out).items()}
    everything = {name: len(rows) for name, rows in read_roads_csv(place.fold).items()}
    assert 0 < sum(sure.values()) < sum(everything.values())
    assert sure.keys() == everything.keys()
    status, printed = run(capfd, *command, "--out-of-fold", "--least-confidence", 0.3)
    assert status == 1 and "out of fold, roads and buildings are uncalibrated" in printed
    # Probability maps on disk give the same confidences.
    status, printed = run(
        capfd, "vectorize", place.maps, tmp_path / "sure.csv", "--recipe", "starter-roads",
        "--metres-per-pixel", 1, "--confidence", place.weights / CALIBRATION_FILE,
        "--least-confidence", 0.3, "--workers", 0,
    )  # fmt: skip
    assert status == 0
    assert {n: len(rows) for n, rows in read_roads_csv(tmp_path / "sure.csv").items()} == sure


@real
def test_every_format_holds_the_confidence(roads: Path) -> None:
    expected = sorted(confidence_of(line.properties) for line in read_map(roads).lines)
    assert len(expected) > 50 and 0 <= expected[0] < expected[-1] <= 1
    for suffix in ("geojson", "fgb", "parquet", "shp.zip"):
        lines = read_map(roads.with_name(f"roads.{suffix}")).lines
        assert sorted(confidence_of(each.properties) for each in lines) == pytest.approx(expected)
        assert {each.properties["calibration"] for each in lines} == {"calibrated"}
    for suffix in ("osm", "osm.pbf"):
        # A road that crosses another one is cut into ways.
        lines = read_map(roads.with_name(f"roads.{suffix}")).lines
        found = {round(confidence_of(each.properties), 3) for each in lines}
        assert found == {round(each, 3) for each in expected}
    assert '<data key="edge-confidence">' in roads.with_name("roads.graphml").read_text()


@real
def test_commands_leave_out_what_is_less_certain(
    place: Place, roads: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    values = np.array([confidence_of(line.properties) for line in read_map(roads).lines])
    least = float(np.median(values))
    kept = int((values >= least).sum())
    sure = tmp_path / "sure.gpkg"
    mapping = ["map", PICTURE, sure, "--weights", place.weights, "--views", 1, *CPU]
    status, printed = run(capfd, *mapping, "--least-confidence", least)
    # The exported confidences are rounded.
    assert status == 0 and len(read_map(sure).lines) == pytest.approx(kept, abs=2)
    assert read_map(roads, least).geometries == kept

    status, printed = run(capfd, "score", roads, roads, "--json", "--least-confidence", least)
    report = json.loads(printed)["confidence"]
    assert status == 0 and report["count"] == kept
    assert report["error"] == pytest.approx(1 - values[values >= least].mean(), abs=1e-6)
    assert {"under 50 m", "class residential"} <= report["groups"].keys()
    pictures = tmp_path / "pictures"
    status, printed = run(capfd, "score", roads, roads, "--plot", pictures)
    assert status == 0 and "calibration error" in printed and "least confidence" in printed
    assert (pictures / "reliability.png").stat().st_size > 5000
    for command in (
        ["overlay", roads, tmp_path / "over", PICTURE, "--part", 5000],
        ["view", roads, "--html", tmp_path / "map.html"],
    ):
        assert run(capfd, *command, "--least-confidence", least)[0] == 0
    page = (tmp_path / "map.html").stat().st_size
    assert run(capfd, "view", roads, "--html", tmp_path / "map.html")[0] == 0
    assert (tmp_path / "map.html").stat().st_size > page


@pytest.mark.skipif(not EPFL.is_dir(), reason=f"no {EPFL}")
def test_maps_of_other_programs_are_filtered_by_their_confidence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    image = EPFL / "PS-RGB" / "SN5_roads_train_AOI_90_Suburb_PS-RGB_chip0.tif"
    (label,) = (EPFL / "geojson_roads_speed").glob("*_chip0.geojson")
    (tmp_path / "images").mkdir()
    (tmp_path / "maps").mkdir()
    shutil.copy(image, tmp_path / "images")
    content = json.loads(label.read_text())
    for number, each in enumerate(content["features"]):
        each["properties"]["confidence"] = (number % 4) / 4
    path = tmp_path / "maps" / label.name
    path.write_text(json.dumps(content))
    counts = []
    for least in (0, 0.5):
        out = tmp_path / "out.csv"
        command = ["convert", tmp_path / "maps", out, tmp_path / "images"]
        assert run(capfd, *command, "--least-confidence", least)[0] == 0
        counts.append(sum(len(rows) for rows in read_roads_csv(out).values()))
        network = read_network(path, least)
        lengths = [line.length for line in network.lines]
        counts.append(sum(lengths))
    assert counts[0] > counts[2] > 0 and counts[1] > counts[3] > 0


@real
def test_uncalibrated_results_say_so(
    place: Place, roads: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(place.weights, weights, ignore=shutil.ignore_patterns("confidence*"))
    output = tmp_path / "roads.geojson"
    mapping = ["map", PICTURE, output, "--weights", weights, "--views", 1, *CPU]
    status, printed = run(capfd, *mapping, "--least-confidence", 0.5)
    assert status == 1 and "are uncalibrated; there is no confidence.json" in printed
    status, printed = run(capfd, *mapping)
    assert status == 0 and "confidence: uncalibrated" in printed
    (properties, *_) = [line.properties for line in read_map(output).lines]
    assert properties["confidence"] is None and properties["calibration"] == "uncalibrated"
    status, printed = run(capfd, "score", roads, output)
    assert status == 0 and printed.rstrip().endswith("confidence: uncalibrated")
    for command in (
        ["score", roads, output],
        ["overlay", output, tmp_path / "over", PICTURE],
        ["view", output, "--html", tmp_path / "map.html"],
        ["convert", output, tmp_path / "out.csv", place.chips],
        ["route", output, "-71.34,42.33", "-71.33,42.33"],
    ):
        status, printed = run(capfd, *command, "--least-confidence", 0.5)
        assert status == 1 and "roads and buildings in" in printed and "uncalibrated" in printed
    for command in (["score", place.fold, place.fold], ["overlay", place.fold, tmp_path, PICTURE]):
        status, printed = run(capfd, *command, "--least-confidence", 0.5)
        assert status == 1 and "is a roads CSV, which is uncalibrated" in printed
    status, printed = run(
        capfd, "vectorize", place.maps, tmp_path / "out.csv", "--least-confidence", 0.5
    )
    assert status == 1 and "roads and buildings are uncalibrated" in printed


@real
def test_a_calibration_of_another_task_is_refused(
    place: Place, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    buildings = tmp_path / "buildings"
    shutil.copytree(starter_weights("buildings"), buildings)
    for path in place.weights.glob("confidence*"):
        shutil.copy(path, buildings)
    output = tmp_path / "out.gpkg"
    status, printed = run(capfd, "map", PICTURE, output, "--weights", buildings, *CPU)
    assert status == 1 and "is for the task roads with the features" in printed
