"""Fingerprints, records of machine and software, and manifests of weights."""

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import satmap
from repository import ROOT
from satmap.cli import main
from satmap.data.cache import prepare_chips
from satmap.data.layouts.spacenet_roads import scan_roads
from satmap.errors import SatmapError
from satmap.evaluation.verify import verify_weights
from satmap.io.checksums import FileRecord, data_fingerprint, record_file
from satmap.networks.unet import build_network
from satmap.provenance.machine import differences, this_hardware, this_software
from satmap.provenance.manifest import manifest_path
from satmap.recipes.schema import load_recipe
from satmap.tasks.base import task_of
from satmap.tasks.roads.settings import ROAD_MAPS
from satmap.weights.network_files import save_weights

names = st.text("abc", min_size=1, max_size=3)
records = st.builds(FileRecord, name=names, bytes=st.integers(0, 9), sha256=names)
data_sets = st.dictionaries(names, st.dictionaries(st.sampled_from(["PS-MS", "label"]), records))


def test_a_file_is_recorded_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    # Example of FIPS 180-2.
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert record_file(path) == FileRecord(name="abc", bytes=3, sha256=known)
    with pytest.raises(SatmapError, match="No such file"):
        record_file(tmp_path / "none")


@given(data_sets, data_sets, st.randoms())
def test_a_fingerprint_depends_on_the_data_set_but_not_on_its_order(  # type: ignore[no-untyped-def]
    data: dict[str, dict[str, FileRecord]], other: dict[str, dict[str, FileRecord]], random
) -> None:
    shuffled = list(data.items())
    random.shuffle(shuffled)
    assert data_fingerprint(dict(shuffled)) == data_fingerprint(data)
    # Chips without files have no fingerprint.
    sets = [{(i, k): r for i, files in side.items() for k, r in files.items()}
            for side in (data, other)]  # fmt: skip
    assert (data_fingerprint(data) == data_fingerprint(other)) == (sets[0] == sets[1])


def test_prepared_chips_record_their_sources(city: Path, tmp_path: Path) -> None:
    recipe = load_recipe("demo")
    task = task_of(recipe)
    chips = scan_roads([city / "train"]).chips
    for _ in ("made", "read"):
        prepared = prepare_chips(chips, 8, tmp_path, recipe.stretch, task).chips
        assert len(prepared) == 6
        for chip, source in zip(prepared, chips, strict=True):
            paths = {"PS-MS": source.image.path, "label": source.label}
            assert {kind: (r.name, r.sha256) for kind, r in chip.sources.items()} == {
                kind: (path.name, hashlib.sha256(path.read_bytes()).hexdigest())
                for kind, path in paths.items()
                if path is not None
            }


def test_the_recorded_software_is_the_installed_one() -> None:
    software = this_software()
    assert software.satmap == satmap.__version__
    lock = (ROOT / "requirements.lock").read_bytes()
    assert software.lock == hashlib.sha256(lock).hexdigest()
    assert {"numpy", "rasterio", "torch"} <= software.packages.keys()
    assert "pytest" not in software.packages
    if (ROOT / ".git").exists():
        asked = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert software.commit == asked.stdout.strip()


def test_machines_differ_by_what_affects_rounding() -> None:
    here = this_software(), this_hardware(torch.device("cpu"))
    assert differences(here, here) == {}
    cores = here[1].model_copy(update={"cores": 99, "system": "another"})
    assert differences(here, (here[0], cores)) == {}
    threads = here[1].model_copy(update={"threads": 99})
    assert differences(here, (here[0], threads)) == {"threads": (str(here[1].threads), "99")}
    gpu = here[1].model_copy(update={"device": "cuda", "gpu": "A", "capability": "9.0"})
    other = gpu.model_copy(update={"gpu": "B", "threads": 99, "gpus": ("B", "B")})
    assert differences((here[0], gpu), (here[0], other)) == {"gpu": ("A", "B")}
    newer = here[0].model_copy(update={"packages": {**here[0].packages, "numpy": "9"}})
    assert differences(here, (newer, here[1])) == {"numpy": (here[0].packages["numpy"], "9")}


def averaged(directory: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Average two networks by the command line, which writes a manifest."""
    sources = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = build_network("resnet18", 3, ROAD_MAPS, (16, 16, 16, 16))
        sources.append(directory / "sources" / f"{seed}.safetensors")
        recipe = load_recipe("demo").model_dump_json()
        metadata = {"recipe": recipe, "member": "a", "stage": "1", "epoch": "2"}
        save_weights(sources[-1], network, metadata)
    output = directory / "soup" / "a.last.safetensors"
    with pytest.raises(SystemExit) as ended:
        main(["weights", "average", str(output), *map(str, sources)])
    assert ended.value.code == 0
    capsys.readouterr()
    return output


def verify(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int | str | None, str]:
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(path)])
    return ended.value.code, capsys.readouterr().out


def test_weights_are_verified_by_manifest_and_header(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = averaged(tmp_path, capsys)
    facts = json.loads(manifest_path(path).read_text())
    assert [record["name"] for record in facts["starts_from"]] == ["0.safetensors", "1.safetensors"]
    assert facts["runs"][0]["command"][:2] == ["weights", "average"]
    assert verify(path, capsys) == verify(path.parent, capsys) == (0, f"{path}: verified\n")
    manifest_path(path).write_text(json.dumps(facts | {"epoch": 3, "member": "b"}))
    status, printed = verify(path, capsys)
    assert status == 1
    assert "its epoch is 2 in the file but 3 in the manifest" in printed
    assert "its member is a in the file but b in the manifest" in printed
    manifest_path(path).write_text(json.dumps(facts))
    lost = path.with_name("lost.safetensors")
    manifest_path(lost).write_text(json.dumps(facts))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    found = verify_weights(path.parent)
    assert found[lost] == ["missing, though its manifest is there"]
    assert len(found) == 2
    status, printed = verify(path, capsys)
    assert status == 1 and "is damaged" in printed
    manifest_path(path).unlink()
    status, printed = verify(path, capsys)
    assert status == 1 and "has no manifest" in printed
    for place, message in ((tmp_path, "no weights"), (tmp_path / "none", "does not exist")):
        with pytest.raises(SatmapError, match=message):
            verify_weights(place)
