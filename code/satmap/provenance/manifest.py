"""Manifests: JSON beside a result that says what it was made of, with what, and where.

``out.csv`` has ``out.csv.manifest.json``. It holds facts alone, never changes a byte of the result
itself, and suffices with the weights and the images to make it again (``satmap verify``).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import Field, TypeAdapter, ValidationError

from satmap.errors import SatmapError
from satmap.io.checksums import FileRecord, data_fingerprint, record_file
from satmap.io.files import write_text
from satmap.io.text import printable
from satmap.provenance.machine import Hardware, Software, this_hardware, this_software
from satmap.recipes.schema import Recipe
from satmap.settings import Settings

SUFFIX = ".manifest.json"

Kind = TypeVar("Kind", bound="Manifest")


class RecipeRecord(Settings):
    """A recipe.

    Attributes:
        name: its name.
        fingerprint: SHA-256 of all of it.
        training_fingerprint: of what a training depends on, as ``Recipe`` has it.
        content: all of it, where the result itself does not carry it.
    """

    name: str
    fingerprint: str
    training_fingerprint: str
    content: dict[str, Any] | None = None


class DataRecord(Settings):
    """A data set.

    Attributes:
        fingerprint: of all files, whatever their order and wherever they lie.
        chips: how many.
        bytes: of all files.
        list: the file that lists them, where the manifest itself does not.
    """

    fingerprint: str
    chips: int
    bytes: int
    list: str | None = None


class Run(Settings):
    """A process, or several that worked together, from start to end.

    Attributes:
        command: satmap's arguments as they were given; empty if it was called from Python.
        directory: what relative paths in them count from.
        started: when, in UTC.
        processes: how many worked together.
        software: what they ran; of the first of them, like ``hardware``.
        hardware: where.
    """

    command: tuple[str, ...]
    directory: str
    started: str
    processes: int
    software: Software
    hardware: Hardware


class TrainingRun(Run):
    """A run of a training, which may go on from where others were stopped.

    Attributes:
        deterministic: whether `--deterministic` was given.
        time_limit_s: seconds that the whole training might take; None for no limit.
        from_stage: where it began: the stage, counted from 1,
        from_epoch: how many of its epochs were done,
        from_step: and how many steps of the next.
    """

    deterministic: bool
    time_limit_s: float | None
    from_stage: int
    from_epoch: int
    from_step: int


class Manifest(Settings):
    """What all manifests say first.

    Attributes:
        manifest: number of the format, to be raised when its meaning changes.
        kind: what the file is.
        file: the file beside which the manifest lies.
        written: when, in UTC.
    """

    manifest: Literal[1] = 1
    kind: str
    file: FileRecord
    written: str


class SubmissionManifest(Manifest):
    """What a submission was made of.

    Attributes:
        recipe: with its content.
        seeds: prediction draws nothing at random; the recipe's seed deals the folds.
        out_of_fold: whether each image was predicted only by networks that had held it out.
        view_angle: of images whose names do not say from where they were taken, as ``--nadir``
            takes it.
        directories: of the images, as they were given.
        weights_directory: as it was given.
        weights: the networks of the ensemble, other files that hold one of these, and of buildings
            the confidence model with its manifest, if they were rated by one.
        data: of the images.
        images: id to product to file.
        skipped: id to the reason, for images that could not be predicted.
        run: the last run; earlier ones may have left it a part of the work.
    """

    kind: Literal["submission"] = "submission"
    recipe: RecipeRecord
    seeds: dict[str, int]
    out_of_fold: bool
    view_angle: str | None = None
    directories: tuple[str, ...]
    weights_directory: str
    weights: tuple[FileRecord, ...]
    data: DataRecord
    images: dict[str, dict[str, FileRecord]]
    skipped: dict[str, str]
    run: Run


class WeightsManifest(Manifest):
    """How weights were made.

    Attributes:
        recipe: without its content, which the weights carry.
        member: the recipe's member.
        seeds: of the recipe, of the network's first weights and of each stage's crops.
        stage: the stage, counted from 1,
        epoch: and the epoch of it after which they were kept.
        scores: what validation gave.
        data: the chips learned from and validated on.
        starts_from: files that the network began with: ImageNet weights; the networks that taught
            it; of averages and imported networks all that they were made of.
        skipped: id to the reason, for chips that could not be used.
        runs: the trainings, the first first.
    """

    kind: Literal["weights"] = "weights"
    recipe: RecipeRecord | None
    member: str | None
    seeds: dict[str, int]
    stage: int | None
    epoch: int | None
    scores: dict[str, float]
    data: DataRecord | None
    starts_from: tuple[FileRecord, ...]
    skipped: dict[str, str]
    runs: tuple[TrainingRun | Run, ...]


AnyManifest = Annotated[SubmissionManifest | WeightsManifest, Field(discriminator="kind")]
_ADAPTER: TypeAdapter[SubmissionManifest | WeightsManifest] = TypeAdapter(AnyManifest)


def manifest_path(path: Path) -> Path:
    """Where the manifest of a file lies."""
    return path.with_name(path.name + SUFFIX)


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def run_here(
    command: Sequence[str], device: torch.device, started: str | None = None, processes: int = 1
) -> Run:
    """This run, on this machine.

    Args:
        command: satmap's arguments.
        device: where networks run.
        started: when, in UTC; None for just now.
        processes: how many work together.
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
    """Write the manifest of a file that is complete.

    Args:
        path: the file.
        kind: which manifest.
        facts: its attributes but for those of ``Manifest``.

    Raises:
        SatmapError: the file cannot be read or the manifest not be written.
    """
    manifest = kind(file=record_file(path), written=now(), **facts)
    write_text(manifest_path(path), manifest.model_dump_json(indent=1) + "\n")
    return manifest


def read_manifest(path: Path) -> SubmissionManifest | WeightsManifest:
    """The manifest beside a file.

    Raises:
        SatmapError: there is none, or it cannot be read.
    """
    beside = manifest_path(path)
    try:
        return _ADAPTER.validate_json(beside.read_bytes())
    except FileNotFoundError as error:
        raise SatmapError(
            f"{path} has no manifest: {beside.name} should lie beside it. Only satmap train and "
            "satmap predict write one, and it must be copied along with the file."
        ) from error
    except OSError as error:
        raise SatmapError(f"{beside}: cannot be read ({error.strerror}).") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise SatmapError(
            f"{beside} is no manifest of this version of satmap: {printable(place, 80)}: "
            f"{printable(first['msg'], 200)}. Copy it again, or use the version that wrote it."
        ) from error


def record_recipe(recipe: Recipe, *, content: bool) -> RecipeRecord:
    """The recipe, with all of it if ``content``."""
    text = recipe.model_dump_json()
    return RecipeRecord(
        name=recipe.name,
        fingerprint=hashlib.sha256(text.encode()).hexdigest(),
        training_fingerprint=recipe.training_fingerprint,
        content=json.loads(text) if content else None,
    )


def record_data(chips: Mapping[str, Mapping[str, FileRecord]], listed: str | None) -> DataRecord:
    """The data set of these chips; ``listed`` names the file that lists them."""
    return DataRecord(
        fingerprint=data_fingerprint(chips),
        chips=len(chips),
        bytes=sum(record.bytes for files in chips.values() for record in files.values()),
        list=listed,
    )
