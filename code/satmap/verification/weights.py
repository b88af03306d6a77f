"""Are weight files what their manifests say?"""

import json
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from satmap.errors import SatmapError
from satmap.files import is_temporary
from satmap.inference.weights import WeightFile
from satmap.models.tensor_file import read_tensors
from satmap.models.weights import read_weights_metadata
from satmap.provenance.checksums import FileRecord, data_fingerprint, record_file
from satmap.provenance.manifest import SUFFIX, WeightsManifest, read_manifest
from satmap.verification.submissions import compare_file

_WEIGHTS = ".safetensors"

_LISTS: TypeAdapter[dict[str, dict[str, FileRecord]]] = TypeAdapter(
    dict[str, dict[str, FileRecord]]
)


def verify_weights(path: Path) -> dict[Path, list[str]]:
    """Check a weight file, or all that lie directly in a directory, against their manifests.

    Each has the bytes that its manifest names and the checksum that it carries itself; recipe,
    member, stage and epoch stand alike in both; the list of the data has the fingerprint noted.

    Returns:
        File to what is wrong with it, nothing where all is well.

    Raises:
        SatmapError: there is no such file, or no weights in the directory.
    """
    if not path.is_dir():
        if not path.exists():
            raise SatmapError(f"no file {path}. Give a submission, a weight file or a directory.")
        return {path: _faults(path)}
    files = [file for file in sorted(path.glob(f"*{_WEIGHTS}")) if not is_temporary(file)]
    if not files:
        raise SatmapError(f"no weights (*{_WEIGHTS}) in {path}.")
    found = {file: _faults(file) for file in files}
    for manifest in sorted(path.glob(f"*{_WEIGHTS}{SUFFIX}")):
        file = manifest.with_name(manifest.name.removesuffix(SUFFIX))
        if file not in found and not is_temporary(file):
            found[file] = ["missing, though its manifest is there"]
    return found


def _faults(path: Path) -> list[str]:
    try:
        manifest = read_manifest(path)
        if not isinstance(manifest, WeightsManifest):
            return [f"its manifest is that of a {manifest.kind}"]
        faults = compare_file(record_file(path), manifest.file)
        read_tensors(path)
        return faults + _disagreements(path, manifest) + _data_faults(path, manifest)
    except SatmapError as error:
        return [str(error)]


def _disagreements(path: Path, manifest: WeightsManifest) -> list[str]:
    """What the manifest says otherwise than the file's own header."""
    file = WeightFile(path, read_weights_metadata(path))
    pairs = {
        "member": (manifest.member, file.metadata.get("member")),
        "stage": (_text(manifest.stage), file.metadata.get("stage")),
        "epoch": (_text(manifest.epoch), file.metadata.get("epoch")),
    }
    if manifest.recipe is not None:
        inside = file.recipe.training_fingerprint
        pairs["recipe"] = manifest.recipe.training_fingerprint, inside
    return [
        f"its {what} is {inside} by itself and {said} by its manifest"
        for what, (said, inside) in pairs.items()
        if said != inside
    ]


def _data_faults(path: Path, manifest: WeightsManifest) -> list[str]:
    data = manifest.data
    if data is None or data.list is None:
        return []
    listed = path.with_name(data.list)
    try:
        chips = _LISTS.validate_python(json.loads(listed.read_bytes()))
    except OSError as error:
        return [f"the list of its data, {data.list}, cannot be read ({error.strerror})"]
    except (ValidationError, ValueError):
        return [f"the list of its data, {data.list}, is damaged"]
    if data_fingerprint(chips) != data.fingerprint:
        return [f"the list of its data, {data.list}, was altered"]
    return []


def _text(number: int | None) -> str | None:
    return None if number is None else str(number)
