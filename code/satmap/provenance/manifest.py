"""Manifests: JSON files that record the inputs, software and hardware of a result.

The manifest of ``out.csv`` is ``out.csv.manifest.json``. It does not change the result itself.
Together with the weights and the images, it suffices to reproduce the result (``satmap verify``).
"""

import contextlib
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import Field, TypeAdapter, ValidationError, field_validator

from satmap.errors import SatmapError
from satmap.io.checksums import ChipRecords, FileRecord, data_fingerprint, record_file
from satmap.io.files import write_text
from satmap.io.text import public_address
from satmap.provenance.machine import Hardware, Software, this_hardware, this_software
from satmap.recipes.schema import Recipe
from satmap.settings import Settings, first_fault
from satmap.weights.header import CONTENT_KEY, read_metadata, read_weights_metadata
from satmap.weights.members import LEARNING_KEY, WeightFile

SUFFIX = ".manifest.json"

Kind = TypeVar("Kind", bound="Manifest")

#: Whether networks have learned from unlabelled test images (transductive) or not (inductive).
Learning = Literal["inductive", "transductive"]


class RecipeRecord(Settings):
    """Record of a recipe.

    Attributes:
        fingerprint: SHA-256 of the whole recipe.
        training_fingerprint: fingerprint of the settings that training depends on, as in
            ``Recipe``.
        content: the whole recipe; None if the result itself contains it.
    """

    name: str
    fingerprint: str
    training_fingerprint: str
    content: dict[str, Any] | None = None


class DataRecord(Settings):
    """Record of a data set.

    Attributes:
        fingerprint: SHA-256 over all files, independent of their order and directories.
        bytes: total size of all files.
        list: name of the file that lists the chips; None if the manifest itself lists them.
    """

    fingerprint: str
    chips: int
    bytes: int
    list: str | None = None


class Run(Settings):
    """Record of a run of one process, or of several that work together.

    Attributes:
        command: satmap's arguments, with addresses without secrets; empty if it was called from
            Python.
        directory: working directory, the base of relative paths in the arguments.
        started: start time in UTC.
        software, hardware: of the first process.
    """

    command: tuple[str, ...]
    directory: str
    started: str
    processes: int
    software: Software
    hardware: Hardware

    @field_validator("command")
    @classmethod
    def _without_secrets(cls, command: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(public_address, command))


class TrainingRun(Run):
    """Record of a training run, which may resume an earlier one.

    Attributes:
        deterministic: whether `--deterministic` was given.
        time_limit_s: time limit of the whole training in seconds; None for no limit.
        from_stage: stage where the run began, counted from 1.
        from_epoch: number of epochs of this stage that were complete at the start.
        from_step: number of steps of the next epoch that were complete at the start.
    """

    deterministic: bool
    time_limit_s: float | None
    from_stage: int
    from_epoch: int
    from_step: int


class Manifest(Settings):
    """Common fields of all manifests.

    Attributes:
        manifest: format number, to be increased when the meaning of a field changes.
        file: the file that the manifest describes.
        written: time of writing in UTC.
    """

    manifest: Literal[1] = 1
    kind: str
    file: FileRecord
    written: str


class SubmissionManifest(Manifest):
    """Manifest of a submission.

    Attributes:
        recipe: the recipe with its content.
        seeds: seeds by name. Prediction is not random; the recipe's seed assigns the folds.
        out_of_fold: whether each image was predicted only by networks that had held it out.
        view_angle: off-nadir angle of images whose names lack it, as given with ``--nadir``.
        least_confidence: objects with a lower confidence were left out; None if none were.
        directories: directories of the images, as given.
        weights: the networks of the ensemble, duplicate files of them, and the models of
            `satmap confidence` with their manifests, if there were any.
        images: file by image id and product.
        skipped: reason by image id, for images that could not be predicted.
        learning: whether a network has learned from test images or from these images, without
            labels; None if not known.
        run: the last run; it may have resumed the work of earlier ones.
    """

    kind: Literal["submission"] = "submission"
    recipe: RecipeRecord
    seeds: dict[str, int]
    out_of_fold: bool
    view_angle: str | None = None
    least_confidence: float | None = None
    directories: tuple[str, ...]
    weights_directory: str
    weights: tuple[FileRecord, ...]
    data: DataRecord
    images: dict[str, dict[str, FileRecord]]
    skipped: dict[str, str]
    learning: Learning | None = None
    run: Run


class MapManifest(Manifest):
    """Manifest of a map.

    Attributes:
        recipe: the recipe with its content.
        least_confidence: as in :class:`SubmissionManifest`.
        weights: as in :class:`SubmissionManifest`.
        sources: record of each file that was mapped, by name.
        addresses: URLs that were mapped.
        maps: reference system, transform, size and stretches of each map, by id.
        skipped: reason by name, for rasters and blocks that are not in the map.
        learning: as in :class:`SubmissionManifest`.
        run: the last run; it may have resumed the work of earlier ones.
    """

    kind: Literal["map"] = "map"
    recipe: RecipeRecord
    least_confidence: float | None = None
    weights: tuple[FileRecord, ...]
    sources: dict[str, FileRecord]
    addresses: tuple[str, ...]
    maps: dict[str, dict[str, Any]]
    skipped: dict[str, str]
    learning: Learning | None = None
    run: Run


class WeightsManifest(Manifest):
    """Manifest of a weight file.

    Attributes:
        recipe: the recipe without its content, which the weight file contains; None for imported
            or averaged weights whose recipe this version of satmap cannot read.
        seeds: seeds of the recipe, of the initial weights and of each stage's crops.
        stage: stage of the checkpoint, counted from 1.
        epoch: epoch of the stage after which the checkpoint was saved.
        data: training and validation chips.
        unlabelled: chips that the network learned from by pseudo-labels; None for none.
        learning: whether these, or those of an earlier round, are test images; None if not known.
        starts_from: files that the network was made from. For trained networks: ImageNet weights or
            the network that it started from, and the networks that made pseudo-labels; for
            averaged and imported ones: all source files.
        skipped: reason by image id, for chips that could not be used.
        judgement: ``judgement.json`` of the labels; None for the images' own labels.
        runs: the training runs in their order.
    """

    kind: Literal["weights"] = "weights"
    recipe: RecipeRecord | None
    member: str | None
    seeds: dict[str, int]
    stage: int | None
    epoch: int | None
    scores: dict[str, float]
    data: DataRecord | None
    unlabelled: DataRecord | None = None
    learning: Learning | None = None
    starts_from: tuple[FileRecord, ...]
    skipped: dict[str, str]
    judgement: FileRecord | None = None
    runs: tuple[TrainingRun | Run, ...]


#: Reads the lists of data that trainings write beside weights.
CHIP_LISTS: TypeAdapter[ChipRecords] = TypeAdapter(ChipRecords)

_ANY: TypeAdapter[SubmissionManifest | MapManifest | WeightsManifest] = TypeAdapter(
    Annotated[SubmissionManifest | MapManifest | WeightsManifest, Field(discriminator="kind")]
)


def manifest_path(path: Path) -> Path:
    """Return the path of a file's manifest."""
    return path.with_name(path.name + SUFFIX)


def now() -> str:
    """Return the current time in UTC, to the second, in ISO format."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def run_here(
    command: Sequence[str], device: torch.device, started: str | None = None, processes: int = 1
) -> Run:
    """Record this run and this machine.

    ``command`` holds satmap's arguments. ``device`` is the networks' device. ``started`` is the
    start time in UTC, by default now.
    """
    return Run(
        command=tuple(command),
        directory=str(Path.cwd()),
        started=started or now(),
        processes=processes,
        software=this_software(),
        hardware=this_hardware(device),
    )


def write_manifest(path: Path, kind: type[Kind], facts: Mapping[str, Any]) -> Kind:
    """Write the manifest of a complete file.

    The facts are the attributes of the class ``kind``, without those of ``Manifest``.

    Raises:
        SatmapError: the file cannot be read, or the manifest cannot be written.
    """
    manifest = kind(file=record_file(path), written=now(), **facts)
    write_text(manifest_path(path), manifest.model_dump_json(indent=1) + "\n")
    return manifest


def read_manifest(path: Path) -> SubmissionManifest | MapManifest | WeightsManifest:
    """Read the manifest of a file.

    Raises:
        SatmapError: there is no manifest, or it cannot be read.
    """
    beside = manifest_path(path)
    try:
        return _ANY.validate_json(beside.read_bytes())
    except FileNotFoundError as error:
        raise SatmapError(
            f"{path} has no manifest: {beside.name} should lie beside it. Only satmap train and "
            "satmap predict write one, and it must be copied along with the file."
        ) from error
    except OSError as error:
        raise SatmapError(f"{beside}: cannot be read ({error.strerror}).") from error
    except ValidationError as error:
        raise SatmapError(
            f"{beside} is not a manifest of this version of satmap: {first_fault(error)}. Copy it "
            "again, or use the version that wrote it."
        ) from error


def learned_images(file: WeightFile) -> frozenset[str]:
    """Return the SHA-256 of the images that a network was trained with, labelled or not.

    They are in the lists of data beside the file's manifest. Without one, or for averaged and
    imported networks, the result is empty.
    """
    try:
        manifest = read_manifest(file.path)
    except SatmapError:
        return frozenset()
    if not isinstance(manifest, WeightsManifest):
        return frozenset()
    held_out = file.held_out or frozenset()
    return _images(file, manifest.data, held_out) | _images(file, manifest.unlabelled)


def learning_of(files: Sequence[WeightFile], images: Collection[str] = ()) -> Learning | None:
    """Return whether networks have learned from test images, or from images that they predict.

    Args:
        files: the networks.
        images: SHA-256 of the images that they predict.
    """
    stated = {file.metadata.get(LEARNING_KEY) for file in files}
    if "transductive" in stated:
        return "transductive"
    for file in files:
        with contextlib.suppress(SatmapError):
            manifest = read_manifest(file.path)
            unlabelled = getattr(manifest, "unlabelled", None)
            if not _images(file, unlabelled).isdisjoint(images):
                return "transductive"
    return "inductive" if stated == {"inductive"} else None


def _images(
    file: WeightFile, data: DataRecord | None, left_out: Collection[str] = ()
) -> frozenset[str]:
    """Return the SHA-256 of the images in a list of data beside a weight file, if there is one."""
    try:
        if data is None or data.list is None:
            return frozenset()
        chips = CHIP_LISTS.validate_json(file.path.with_name(data.list).read_bytes())
    except (OSError, ValueError):
        return frozenset()
    return frozenset(
        record.sha256
        for image_id, files in chips.items()
        for kind, record in files.items()
        if image_id not in left_out and kind != "label"
    )


def write_derived_manifest(path: Path, sources: Sequence[Path], command: Sequence[str]) -> None:
    """Write the manifest of a weight file that was imported or averaged from ``sources``.

    ImageNet weights of an encoder get no manifest: they are not a result of satmap, and their
    metadata name the source. ``command`` holds satmap's arguments.

    Raises:
        SatmapError: a file cannot be read, or the manifest cannot be written.
    """
    if read_metadata(path).get(CONTENT_KEY) == "encoder":
        return
    file = WeightFile(path, read_weights_metadata(path))
    numbers = {key: file.metadata.get(key, "") for key in ("stage", "epoch")}
    try:
        recipe = record_recipe(file.recipe, content=False)
    except SatmapError:
        recipe = None
    facts: dict[str, Any] = {
        "recipe": recipe,
        "member": file.metadata.get("member"),
        "seeds": {},
        **{key: int(text) if text.isdecimal() else None for key, text in numbers.items()},
        "scores": {},
        "data": None,
        "learning": file.metadata.get(LEARNING_KEY),
        "starts_from": [record_file(source) for source in sources],
        "skipped": {},
        "runs": [run_here(command, torch.device("cpu"))],
    }
    write_manifest(path, WeightsManifest, facts)


def record_recipe(recipe: Recipe, *, content: bool) -> RecipeRecord:
    """Record a recipe, with or without its content."""
    text = recipe.model_dump_json()
    return RecipeRecord(
        name=recipe.name,
        fingerprint=hashlib.sha256(text.encode()).hexdigest(),
        training_fingerprint=recipe.training_fingerprint,
        content=json.loads(text) if content else None,
    )


def record_data(chips: Mapping[str, Mapping[str, FileRecord]], listed: str | None) -> DataRecord:
    """Record a data set, given as files by image id and kind; ``listed`` is ``DataRecord.list``."""
    return DataRecord(
        fingerprint=data_fingerprint(chips),
        chips=len(chips),
        bytes=sum(record.bytes for files in chips.values() for record in files.values()),
        list=listed,
    )
