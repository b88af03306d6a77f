"""Cases of damaged and odd labels."""

import json
import random
from pathlib import Path
from typing import Any

from faults import harm
from faults.bench import DONE, FAILED, Bench
from faults.case import Case
from faults.harm import Harm

# Chip with roads whose label is damaged.
_VICTIM = 5

REFUSED, READ, LEFT_OUT = "refused", "read", "reported, trained on the others"


def label_cases() -> list[Case]:
    """Return all cases of labels."""
    road = [[-115.0, 36.0], [-115.0001, 36.0001], [-114.9999, 36.0002]]
    line = {"type": "LineString", "coordinates": road}
    cases = [_scored(name, damage, REFUSED) for name, damage in harm.ANY_FILE]
    cases += [
        _scored("truncated at random", harm.truncated, REFUSED),
        _scored("8 random bits flipped", harm.flipped(8), ""),
        _scored("200 random bits flipped", harm.flipped(200), REFUSED),
        _content("no feature at all", [], READ),
        _content("a feature without geometry", [None, line], READ),
        _content("an empty line", [{"type": "LineString", "coordinates": []}, line], READ),
        _content("a line of one point", [{"type": "LineString", "coordinates": road[:1]}, line],
                 READ),
        _content("a line through itself, there and back",
                 [{"type": "LineString", "coordinates": [*road, *road, *road[::-1]]}], READ),
        _content("collections within collections", [_nested(line, 20)], READ),
        _content("collections 5,000 deep", _deep_text(5_000), REFUSED),
        _content("brackets 200,000 deep", "[" * 200_000, REFUSED),
        _content("lines in three and four dimensions",
                 [{"type": "LineString", "coordinates": [[*p, 12.5, 3] for p in road]}], READ),
        _content("polygons, wound either way", [_polygon(road), _polygon(road[::-1]), line], READ),
        _content("huge coordinates", _line_text(1e300), REFUSED),
        _content("coordinates of NaN", _line_text(float("nan")), REFUSED),
        _content("coordinates of infinity", _line_text(float("inf")), REFUSED),
        _content("coordinates that are words", _line_text("west"), REFUSED),
        _content("coordinates that are null", _line_text(None), REFUSED),
        _content("metres without a crs", _line_text(4_000_000.0), REFUSED),
        _content("a crs that is a number", _with_crs(line, 7), READ),
        _content("a crs of nonsense", _with_crs(line, {"properties": {"name": "EPSG:99999999"}}),
                 READ),
        _content("a crs that points to a file", _with_crs(line, _file_crs()), READ),
        _content("properties that are a list",
                 json.dumps({"type": "FeatureCollection", "features": [
                     {"type": "Feature", "properties": [1], "geometry": line}]}), REFUSED),
        _content("numbers of 5,000 digits", _line_text(int("9" * 4_000)), REFUSED),
        _content("UTF-16", json.dumps(_collection([line])).encode("utf-16"), READ),
        _content("Latin-1 names", json.dumps(
            _collection([line], {"name": "Straße"}), ensure_ascii=False).encode("latin-1"),
            REFUSED),
        _content("a property of a million characters", json.dumps(
            _collection([line], {"name": "x" * 1_000_000})), READ),
        _trained("empty", harm.empty),
        _trained("truncated", harm.truncated),
        _trained("a pipe", harm.pipe, REFUSED),
        _trained("a link to nothing", harm.dangling),
        _trained("NaN", _written(_line_text(float("nan")))),
        _trained("roads of another city",
                 _written(json.dumps(_collection([line])))),
        _trained("speeds that are words, nothing and infinity", _speeds, READ),
        Case("labels", "training: missing", _missing),
        Case("labels", "training: all labels truncated", _all_cut),
        Case("labels", "training: a truncated image", _image_cut),
        Case("labels", "training: an image all black", _image_black),
        Case("labels", "training: one chip alone", _one_chip),
    ]  # fmt: skip
    return cases


def _scored(name: str, damage: Harm, outcome: str) -> Case:
    """Score a damaged GeoJSON of roads as the proposal."""

    def play(bench: Bench) -> str:
        bench.copy_train()
        truth = bench.label(_VICTIM)
        proposal = bench.directory / "proposal.geojson"
        proposal.write_bytes(truth.read_bytes())
        damage(proposal, bench.random)
        ended = bench.run("score", truth, proposal, "--json")
        if outcome == REFUSED:
            bench.must(ended.status == FAILED, f"status {ended.status}, not 1")
        if ended.status == FAILED:
            bench.must_say(ended, proposal.name)
            return REFUSED
        bench.must("apls_length" in ended.stdout, "no score")
        return READ

    return Case("labels", f"score: {name}", play)


def _content(name: str, content: Any, outcome: str) -> Case:
    """Score a GeoJSON with the given features or text as both truth and proposal."""

    def play(bench: Bench) -> str:
        path = bench.directory / "roads.geojson"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            text = content if isinstance(content, str) else json.dumps(_collection(content))
            path.write_text(text)
        bench.copy_train()
        ended = bench.run("score", path, path, "--json")
        if outcome == REFUSED:
            bench.must(ended.status == FAILED, f"status {ended.status}, not 1: {ended.stdout!r}")
            bench.must_say(ended, path.name)
        elif ended.status == FAILED:
            # Refusing a file without any road is also a clear answer.
            bench.must_say(ended, path.name)
            bench.must(
                name == "no feature at all" or name == "UTF-16", f"refused: {ended.stderr!r}"
            )
            return REFUSED
        return outcome

    return Case("labels", f"score: {name}", play)


def _trained(name: str, damage: Harm, outcome: str = LEFT_OUT) -> Case:
    """Damage one of twelve labels: the training leaves it out, reports it and continues."""

    def play(bench: Bench) -> str:
        bench.copy_train()
        label = bench.label(_VICTIM)
        damage(label, bench.random)
        ended = train(bench)
        if outcome == REFUSED:
            bench.must(ended == FAILED, f"status {ended}, not 1")
            return REFUSED
        bench.must(ended == DONE, f"status {ended}, not 0")
        bench.must(any(bench.weights.glob("*.last.safetensors")), "no weights")
        message = bench.last_stderr
        if outcome == LEFT_OUT:
            bench.must(label.name in message, f"does not name {label.name}: {message!r}")
        else:
            bench.must(label.name not in message, f"left out: {message!r}")
        return outcome

    return Case("labels", f"training: {name}", play, 200)


def train(bench: Bench, *options: object) -> int:
    """Train with the short recipe and return the exit status."""
    return bench.run(
        "train", bench.train, "--recipe", bench.material.short, "--weights", bench.weights,
        "--cache", bench.cache, "--device", "cpu", "--workers", 0, *options,
    ).status  # fmt: skip


def _collection(geometries: list[Any], properties: dict[str, Any] | None = None) -> dict[str, Any]:
    features = [
        {"type": "Feature", "properties": properties or {}, "geometry": geometry}
        for geometry in geometries
    ]
    return {"type": "FeatureCollection", "features": features}


def _nested(geometry: Any, depth: int) -> Any:
    for _ in range(depth):
        geometry = {"type": "GeometryCollection", "geometries": [geometry]}
    return geometry


def _deep_text(depth: int) -> str:
    # json.dumps cannot nest this deep.
    head = '{"type": "GeometryCollection", "geometries": [' * depth
    inner = '{"type": "LineString", "coordinates": [[-115, 36], [-115.001, 36.001]]}'
    geometry = f"{head}{inner}{']}' * depth}"
    return (
        '{"type": "FeatureCollection", "features": [{"type": "Feature", "properties": {}, '
        f'"geometry": {geometry}}}]}}'
    )


def _polygon(ring: list[list[float]]) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}


def _line_text(value: Any) -> str:
    # NaN and Infinity are not valid JSON, but Python and JavaScript programs write them.
    line = {"type": "LineString", "coordinates": [[-115.0, 36.0], [value, 36.0]]}
    return json.dumps(_collection([line])).replace('"VALUE"', str(value))


def _with_crs(line: Any, crs: Any) -> str:
    return json.dumps({**_collection([line]), "crs": crs})


def _file_crs() -> Any:
    return {"type": "name", "properties": {"name": "/etc/passwd"}}


def _written(text: str) -> Harm:
    def damage(path: Path, draw: random.Random) -> None:
        path.write_text(text)

    return damage


def _speeds(path: Path, draw: Any) -> None:
    document = json.loads(path.read_text())
    values: list[Any] = ["fast", None, "", 1e400, float("nan"), -3, 0, [], {}, True, "25 mph"]
    for index, feature in enumerate(document["features"]):
        value = values[index % len(values)]
        feature["properties"].update(
            inferred_speed_mph=value, inferred_speed_mps=value, lanes=value, highway=value
        )
    path.write_text(json.dumps(document))


def _refused_training(bench: Bench, *texts: str) -> str:
    status = train(bench)
    bench.must(status == FAILED, f"status {status}, not 1")
    for text in texts:
        bench.must(
            text in bench.last_stderr, f"does not say {text!r}: {bench.last_stderr[-300:]!r}"
        )
    return REFUSED


def _missing(bench: Bench) -> str:
    bench.copy_train()
    bench.label(_VICTIM).unlink()
    return _refused_training(bench, f"chip{_VICTIM}", "no label", "--skip-unlabelled")


def _all_cut(bench: Bench) -> str:
    bench.copy_train()
    for path in bench.label(_VICTIM).parent.iterdir():
        path.write_bytes(path.read_bytes()[: bench.random.randrange(1, 60)])
    return _refused_training(bench, "chips cannot be used", ".geojson")


def _image(bench: Bench) -> Path:
    return bench.train / "PS-MS" / f"SN5_roads_train_AOI_99_Made_PS-MS_chip{_VICTIM}.tif"


def _without_rgb(bench: Bench) -> None:
    for path in (bench.train / "PS-RGB").iterdir():
        path.unlink()


def _trained_without_it(bench: Bench) -> str:
    status = train(bench)
    bench.must(status == DONE, f"status {status}: {bench.last_stderr[-300:]!r}")
    bench.must(_image(bench).name in bench.last_stderr, f"does not name it: {bench.last_stderr!r}")
    return LEFT_OUT


def _image_cut(bench: Bench) -> str:
    bench.copy_train()
    _without_rgb(bench)
    harm.truncated(_image(bench), bench.random)
    return _trained_without_it(bench)


def _image_black(bench: Bench) -> str:
    import numpy as np
    import rasterio

    bench.copy_train()
    _without_rgb(bench)
    with rasterio.open(_image(bench), "r+") as image:
        image.write(np.zeros((8, image.height, image.width), np.uint16))
    return _trained_without_it(bench)


def _one_chip(bench: Bench) -> str:
    bench.copy_train()
    for path in bench.train.rglob("*chip*"):
        if f"chip{_VICTIM}." not in path.name:
            path.unlink()
    status = train(bench)
    bench.must(status == DONE, f"status {status}: {bench.last_stderr[-300:]!r}")
    return READ
