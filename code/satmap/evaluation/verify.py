"""Verify that a submission comes from the weights and images that its manifest names.

The checksums are compared first. Then ``satmap predict`` recomputes the submission in a separate
process and a temporary directory. On the same kind of machine the result must be identical byte for
byte. On another kind of machine sums differ in their last bits, so the scores are compared.
"""

import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from satmap.data.chip import record_images
from satmap.errors import SatmapError
from satmap.evaluation.score import score_files
from satmap.io.checksums import (
    FileRecord,
    data_fingerprint,
    in_threads,
    record_file,
)
from satmap.io.files import is_temporary, write_text
from satmap.io.text import listing, printable
from satmap.provenance.machine import differences
from satmap.provenance.manifest import (
    CHIP_LISTS,
    SUFFIX,
    MapManifest,
    SubmissionManifest,
    WeightsManifest,
    read_manifest,
)
from satmap.recipes.schema import Recipe, parse_recipe
from satmap.submissions.formats import Format, detect
from satmap.weights.header import read_weights_metadata
from satmap.weights.members import WeightFile
from satmap.weights.tensor_file import read_tensors

#: Largest accepted difference between scores if the bytes differ.
TOLERANCE = 1e-3

# The scores to compare, whichever metric the submission has.
_FIGURES = ("apls_length", "apls_time", "f1", "ap50", "jaccard")


@dataclass(frozen=True)
class Sources:
    """Where to find the weights and images of a submission, and how to recompute it.

    Attributes:
        directories: directories of the images; empty for those that the manifest names.
        weights: directory of the weights; None for the one that the manifest names.
        truth: true map to score against; None to score the recomputation against the submission.
        device: compute device; ``auto`` is the kind the submission was made on, if available.
        processes: number of prediction processes; None for one per GPU.
        workers: number of vectorising processes; None for as many as the cores allow.
    """

    directories: tuple[Path, ...] = ()
    weights: Path | None = None
    truth: Path | None = None
    device: str = "auto"
    processes: int | None = None
    workers: int | None = None


@dataclass(frozen=True)
class Verification:
    """Comparison of a submission with its manifest and with a recomputation.

    Attributes:
        subject: the submission.
        faults: deviations from the manifest; if there are any, nothing is recomputed.
        identical: whether the recomputation is identical byte for byte; None without one.
        differences: differing properties of the machines and their software: name to (value in the
            manifest, value here).
        scores: figure to (submission, recomputation); empty if they are identical.
        gap: largest difference between the scores; infinite if they cannot be compared.
    """

    subject: Path
    faults: tuple[str, ...] = ()
    identical: bool | None = None
    differences: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    scores: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    gap: float = math.inf

    @property
    def passed(self) -> bool:
        """Whether the submission matches its manifest, as far as this machine can tell."""
        return bool(self.identical or (self.differences and self.gap <= TOLERANCE))

    def report(self) -> str:
        """Return the result as text for people."""
        lines = [f"{self.subject}: {printable(fault)}" for fault in self.faults]
        if self.identical:
            lines.append("recomputed: identical, byte for byte")
        elif self.identical is False:
            kind = "another kind of machine" if self.differences else "the same kind of machine"
            lines.append(f"recomputed: different bytes, on {kind}")
        lines += [
            f"  {name}: {printable(recorded)} in the manifest, {printable(current)} here"
            for name, (recorded, current) in self.differences.items()
        ]
        lines += [
            f"  {name}: {submitted:.5f} submitted, {recomputed:.5f} recomputed"
            for name, (submitted, recomputed) in self.scores.items()
        ]
        if self.identical is False and not self.scores:
            lines.append("  no scores: give the COCO annotations with --truth")
        elif self.identical is False:
            what = "within" if self.gap <= TOLERANCE else "more than"
            lines.append(f"  scores differ by {self.gap:.5f}, {what} {TOLERANCE}")
        lines.append(f"{self.subject}: {'verified' if self.passed else 'NOT verified'}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return the result as a JSON object, with null for what was not compared."""
        compared = self.identical is not None
        return {
            "subject": str(self.subject),
            "verified": self.passed,
            "faults": self.faults,
            "identical": self.identical,
            "differences": self.differences if compared else None,
            "scores": self.scores if compared else None,
            "gap": self.gap if math.isfinite(self.gap) else None,
        }


def verify_submission(output: Path, sources: Sources) -> Verification:
    """Check a submission against its manifest, and recompute it in ``$TMPDIR``.

    Raises:
        SatmapError: there is no manifest, weights or images cannot be found, or the submission
            cannot be recomputed.
    """
    manifest = _submission_manifest(output)
    began_in = Path(manifest.run.directory)
    directories = sources.directories or tuple(began_in / name for name in manifest.directories)
    weights = sources.weights or began_in / manifest.weights_directory
    _require_there([weights], "--weights")
    _require_there(directories, "--images")
    # Tiles are cut from scenes by the prediction, so their records are compared afterwards.
    shows_tiles = manifest.out_of_fold and _recipe(manifest).tiles is not None
    faults = [
        *compare_file(record_file(output), manifest.file),
        *_weights_faults(manifest, weights),
        *([] if shows_tiles else _image_faults(manifest, directories)),
    ]
    if faults:
        return Verification(output, tuple(faults))
    with tempfile.TemporaryDirectory(prefix="satmap-verify-") as scratch:
        again = _recompute(manifest, directories, weights, Path(scratch), sources)
        remade = _submission_manifest(again)
        if shows_tiles and (faults := _differences(manifest, remade.images, remade.skipped)):
            return Verification(output, tuple(faults))
        return compare(output, manifest, again, sources.truth)


def _submission_manifest(output: Path) -> SubmissionManifest:
    manifest = read_manifest(output)
    if isinstance(manifest, MapManifest):
        raise SatmapError(
            f"{output} is a map of `satmap map`, and maps are not computed again. Its manifest "
            "names the sources, networks and settings. To check it, run the recorded command with "
            "another output and compare the files."
        )
    if not isinstance(manifest, SubmissionManifest):
        raise SatmapError(
            f"{output} is not a submission: its manifest is that of a {manifest.kind} file."
        )
    return manifest


def compare_file(found: FileRecord, recorded: FileRecord) -> list[str]:
    """Return one line if a file differs from its record, nothing if it is unchanged."""
    if found.sha256 == recorded.sha256:
        return []
    return [
        f"altered since it was written: SHA-256 {found.sha256} ({found.bytes} bytes) instead of "
        f"{recorded.sha256} ({recorded.bytes} bytes)"
    ]


def _require_there(directories: Sequence[Path], option: str) -> None:
    for directory in directories:
        if not directory.is_dir():
            raise SatmapError(
                f"{directory} is not a directory on this machine. Give the right one with "
                f"{option}; the default is the directory named in the manifest."
            )


def _weights_faults(manifest: SubmissionManifest, directory: Path) -> list[str]:
    there = [record for record in manifest.weights if (directory / record.name).is_file()]
    current = in_threads(record_file, [directory / record.name for record in there])
    pairs = zip(there, current, strict=True)
    altered = [record.name for record, now in pairs if now.sha256 != record.sha256]
    missing = [record.name for record in manifest.weights if record not in there]
    return [
        *_named("weight files", f"missing in {directory}", missing),
        *_named("weight files", "altered", altered),
    ]


def _image_faults(manifest: SubmissionManifest, directories: Sequence[Path]) -> list[str]:
    recipe = _recipe(manifest)
    bands = max(member.bands for member in recipe.ensemble)
    inventory = recipe.task.find_images(directories, bands)
    chips = list(inventory.chips)
    if manifest.out_of_fold:
        # An out-of-fold submission leaves the other chips out on purpose.
        chips = [chip for chip in chips if chip.image_id in manifest.images]
    records = in_threads(record_images, chips)
    found = {chip.image_id: files for chip, files in zip(chips, records, strict=True)}
    return _differences(manifest, found, () if manifest.out_of_fold else inventory.faults)


def _differences(
    manifest: SubmissionManifest,
    found: Mapping[str, Mapping[str, FileRecord]],
    unreadable: Iterable[str],
) -> list[str]:
    """Return the differences between the images of a manifest and those that are found."""
    missing, altered = [], []
    for image_id, files in manifest.images.items():
        if image_id not in found or not files.keys() <= found[image_id].keys():
            missing.append(image_id)
        elif files != found[image_id]:
            altered.append(image_id)
    known = manifest.images.keys() | manifest.skipped.keys()
    unknown = {*found, *unreadable} - known
    return [
        *_named("images", "missing or unreadable", missing),
        *_named("images", "altered", altered),
        *_named("images", "not in the manifest", sorted(unknown)),
    ]


def _recipe(manifest: SubmissionManifest) -> Recipe:
    return parse_recipe(yaml.safe_dump(manifest.recipe.content), "of the manifest")


def _named(what: str, fault: str, names: Sequence[str]) -> list[str]:
    return [f"{len(names)} {what} {fault}: {listing(names)}"] if names else []


def _recompute(
    manifest: SubmissionManifest,
    directories: Sequence[Path],
    weights: Path,
    scratch: Path,
    sources: Sources,
) -> Path:
    """Recompute the submission under ``scratch``; return its file, which also has a manifest."""
    # The suffix selects the format.
    output, recipe = scratch / f"out{Path(manifest.file.name).suffix}", scratch / "recipe.yaml"
    _recipe(manifest)
    write_text(recipe, yaml.safe_dump(manifest.recipe.content, sort_keys=False))
    # Link only the ensemble's files: other weights in the directory must not take part.
    ensemble = scratch / "weights"
    ensemble.mkdir()
    for record in manifest.weights:
        (ensemble / record.name).symlink_to((weights / record.name).resolve())
    hardware = manifest.run.hardware
    on_cpu = sources.device == "auto" and hardware.device == "cpu"
    device = "cpu" if on_cpu else sources.device
    least = manifest.least_confidence
    command = [
        *("predict", *(str(directory.resolve()) for directory in directories), str(output)),
        *("--recipe", str(recipe), "--weights", str(ensemble), "--device", device),
        *([] if sources.processes is None else ["--processes", str(sources.processes)]),
        *([] if sources.workers is None else ["--workers", str(sources.workers)]),
        # Tiles are cut again, because those in the user's cache may have been altered.
        *(["--out-of-fold", "--cache", str(scratch / "cache")] if manifest.out_of_fold else []),
        *(["--nadir", manifest.view_angle] if manifest.view_angle else []),
        *([] if least is None else ["--least-confidence", str(least)]),
    ]  # fmt: skip
    environment = dict(os.environ)
    if device == "cpu" or not torch.cuda.is_available():
        # Sums depend on the number of threads, not on the number of cores.
        environment["OMP_NUM_THREADS"] = str(hardware.threads)
    # Send its output to stderr: stdout is for the result of this process.
    done = subprocess.run(
        [sys.executable, "-m", "satmap", *command], stdout=sys.stderr, env=environment, check=False
    )
    if not output.exists():
        raise SatmapError(
            f"the submission could not be recomputed: satmap predict ended with status "
            f"{done.returncode}; its messages above say why."
        )
    return output


def compare(
    output: Path, manifest: SubmissionManifest, again: Path, truth: Path | None
) -> Verification:
    """Compare a submission with its recomputation ``again``, which has its own manifest.

    If the bytes differ, both are scored against the truth. Without one, ``again`` is scored against
    the submission.

    Raises:
        SatmapError: a file cannot be read or scored.
    """
    remade = _submission_manifest(again)
    found = differences(
        (manifest.run.software, manifest.run.hardware),
        (remade.run.software, remade.run.hardware),
    )
    if remade.file.sha256 == manifest.file.sha256:
        return Verification(output, (), True, found, {}, 0.0)
    if truth is None and detect(output) is Format.COCO_RESULTS:
        # Average precision needs annotations as truth; results cannot take their place.
        return Verification(output, (), False, found)
    if truth is None:
        mutual = _figures(output, again)
        scores = {f"{name} by the submission": (1.0, value) for name, value in mutual.items()}
    else:
        # With a truth its scores decide: the maps may differ where both are wrong.
        submitted, recomputed = _figures(truth, output), _figures(truth, again)
        scores = {name: (submitted[name], recomputed.get(name, 0.0)) for name in submitted}
    gap = max((abs(first - second) for first, second in scores.values()), default=math.inf)
    gap = gap if math.isfinite(gap) else math.inf
    return Verification(output, (), False, found, scores, gap)


def _figures(truth: Path, proposal: Path) -> dict[str, float]:
    total = score_files(truth, proposal).report.total
    return {name: float(value) for name in _FIGURES if (value := total.get(name)) is not None}


_WEIGHTS = ".safetensors"


def verify_weights(path: Path) -> dict[Path, list[str]]:
    """Return the problems of a weight file, or of all weight files directly in a directory.

    The file must match the checksum in its manifest and the one in its own header. Recipe, member,
    stage and epoch must agree in both. The data list must have the recorded fingerprint.

    Raises:
        SatmapError: there is no such file, or no weights in the directory.
    """
    if not path.is_dir():
        if not path.exists():
            raise SatmapError(
                f"{path} does not exist. Give a submission, a weight file or a directory."
            )
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
    """List the values that differ between the manifest and the file's own header."""
    file = WeightFile(path, read_weights_metadata(path))
    values = {name: getattr(manifest, name) for name in ("member", "stage", "epoch")}
    pairs = {
        name: (None if recorded is None else str(recorded), file.metadata.get(name))
        for name, recorded in values.items()
    }
    if manifest.recipe is not None:
        inside = file.recipe.training_fingerprint
        pairs["recipe"] = manifest.recipe.training_fingerprint, inside
    return [
        f"its {what} is {inside} in the file but {recorded} in the manifest"
        for what, (recorded, inside) in pairs.items()
        if recorded != inside
    ]


def _data_faults(path: Path, manifest: WeightsManifest) -> list[str]:
    data = manifest.data
    if data is None or data.list is None:
        return []
    try:
        chips = CHIP_LISTS.validate_json(path.with_name(data.list).read_bytes())
    except OSError as error:
        return [f"its data list {data.list} cannot be read ({error.strerror})"]
    except ValueError:
        return [f"its data list {data.list} is damaged"]
    if data_fingerprint(chips) != data.fingerprint:
        return [f"its data list {data.list} was altered"]
    return []
