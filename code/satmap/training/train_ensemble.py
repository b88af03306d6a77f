"""Train all members of a recipe, round by round, on the chips of directories."""

import contextlib
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from satmap.data.cache import Preparation, prepare_chips
from satmap.data.crops import CachedChip
from satmap.data.folds import duplicate_groups, split_chips
from satmap.data.judgement import JUDGEMENT
from satmap.data.labelled import find_labelled
from satmap.data.own_data import OwnData
from satmap.data.own_labels import labelled_files
from satmap.data.sources import find_sources
from satmap.data.unlabelled import Unlabelled, find_unlabelled
from satmap.data.view_angles import ViewAngle
from satmap.errors import SatmapError
from satmap.io.checksums import record_file
from satmap.io.files import exclusive_lock, remove_temporary_files, require_writable
from satmap.io.text import listing
from satmap.networks.encoders import require_encoder
from satmap.recipes.schema import Member, Recipe
from satmap.runtime.launched import local_processes
from satmap.runtime.ranks import Ranks
from satmap.runtime.resources import reuse_memory
from satmap.tasks.dense import DenseTask
from satmap.training.budget import allocate_time, assign_stages, round_work
from satmap.training.distributed import require_compiler
from satmap.training.job import Job
from satmap.training.loading import fit_shared_memory, member_seed
from satmap.training.rounds import (
    Lesson,
    TrainingRound,
    prepare_lesson,
    require_usable,
    rounds_of,
)
from satmap.training.run_context import RunContext
from satmap.training.train import train_member
from satmap.weights.members import WeightFile, require_starts
from satmap.weights.pretrained import find_encoder_file, how_to_get


@dataclass(frozen=True)
class TrainingOptions:
    """The user's options of a training, besides the recipe.

    Attributes:
        cache: directory of prepared chips.
        from_scratch: whether to start from random encoder weights instead of ImageNet weights.
        skip_unlabelled: whether to leave out images without labels instead of stopping.
        folds: train only the members of these folds; all if empty.
        time_limit: time limit of the whole training, seconds; None for the recipe's length.
        unlabelled: directories of images, or rasters, to learn from by pseudo-labels.
        view_angle: off-nadir angle, for images whose names lack it.
        audit: report of near-duplicates, which must share a fold.
        init: weight file or directory of trained networks that the members start from.
        own: the user's own images and labels, instead of a challenge's directories.
        judgement: directory of judged labels to use instead of the images' own.
    """

    cache: Path
    from_scratch: bool = False
    skip_unlabelled: bool = False
    folds: tuple[int, ...] = ()
    time_limit: float | None = None
    unlabelled: tuple[Path, ...] = ()
    view_angle: ViewAngle | None = None
    audit: Path | None = None
    init: Path | None = None
    own: OwnData | None = None
    judgement: Path | None = None


def train(
    directories: Sequence[Path], recipe: Recipe, context: RunContext, options: TrainingOptions
) -> dict[str, str]:
    """Train the recipe's members on the chips found in the directories, or on own data.

    With several processes, each process trains different members. In stages with
    ``sync_batch_norm`` all processes train one member after the other together.

    Returns:
        Image id to the reason, for the chips that were left out.

    Raises:
        SatmapError: there are no usable chips, labels are missing, or a directory cannot be
            written.
    """
    started = time.monotonic()
    if context.device.type == "cpu":
        reuse_memory()
    recipe.require_unlabelled(bool(options.unlabelled))
    rounds = rounds_of(recipe, context, options.folds)
    starts = [_init_of(each, options) for each in rounds]
    preparation, folds = context.ranks.on_first_of_machine(
        lambda: _prepare(directories, rounds, context, options)
    )
    unlabelled = context.ranks.on_first_of_machine(
        lambda: _find_unlabelled(directories, rounds[-1], preparation.chips, options)
    )
    _require_shared_weights(context)
    rounds = [_with_chips(each, preparation.chips) for each in rounds]
    faults = preparation.faults | unlabelled.faults
    if context.restart:
        # Delete the states only once: each later phase must resume the phase before it.
        context.ranks.on_first(lambda: _forget(rounds))
    info = replace(
        context.info,
        time_limit_s=options.time_limit,
        skipped=faults,
        judgement=record_file(options.judgement / JUDGEMENT) if options.judgement else None,
    )
    rounds = [
        replace(each, context=replace(each.context, info=info, restart=False)) for each in rounds
    ]
    counts = [
        {member.name: len(_split(member, preparation.chips, folds)[0]) for member in each.members}
        for each in rounds
    ]
    work = [
        round_work(each.recipe, each.members, of) for each, of in zip(rounds, counts, strict=True)
    ]
    left = options.time_limit
    before, last = None, started
    for number, (each, init) in enumerate(zip(rounds, starts, strict=True)):
        lesson = prepare_lesson(each, before, preparation.chips, unlabelled)
        seconds: Mapping[str, Sequence[float]] = {}
        if left is not None:
            # Preparation and pseudo-labels shorten the training after them. All processes plan with
            # the clock of the first.
            left = context.ranks.gather(max(left - (time.monotonic() - last), 1.0))[0]
            mine = left * work[number] / sum(work[number:])
            seconds = allocate_time(each.members, context.ranks.world, mine, counts[number])
            left -= mine
        _train_round(each, lesson, lesson.starts or init, folds, unlabelled, options, seconds)
        before, last = each, time.monotonic()
    return faults


def _train_round(
    this: TrainingRound,
    lesson: Lesson,
    starts: Mapping[str, WeightFile],
    folds: Mapping[str, int],
    unlabelled: Unlabelled,
    options: TrainingOptions,
    seconds: Mapping[str, Sequence[float]],
) -> None:
    """Train the members of a round, or resume them."""
    task, members = this.task, this.members
    context = fit_shared_memory(this.context, task, lesson.chips[0], members, local_processes())
    for phase in _phases(members, context.ranks):
        team = context if phase.shared else replace(context, ranks=context.ranks.alone())
        for member in phase.members:
            job = Job(
                task,
                member,
                *_split(member, lesson.chips, folds),
                team,
                starts.get(member.name),
                lesson.unlabelled,
                this.settings,
                this.learning(unlabelled),
            )
            _train(job, this, lesson.teacher, options, phase.until, seconds)
        if not phase.shared:
            # The next phase resumes the states that all processes have saved.
            context.ranks.wait()


@dataclass(frozen=True)
class Phase:
    """One phase of a process's work: train members one after the other, up to stage ``until``.

    All processes train the members of a ``shared`` phase together.
    """

    members: Sequence[Member]
    until: int
    shared: bool = False


def _phases(members: Sequence[Member], ranks: Ranks) -> list[Phase]:
    """Return the phases of one process. Shared phases have the same positions in all processes."""
    if ranks.world == 1:
        return [Phase(members, max(len(member.stages) for member in members))]
    phases = []
    for index, (own, shared) in enumerate(assign_stages(members, ranks.world)):
        phases += [Phase(own[ranks.rank], index + 1), Phase(shared, index + 1, shared=True)]
    return phases


def _init_of(this: TrainingRound, options: TrainingOptions) -> dict[str, WeightFile]:
    """Return the networks of ``--init`` that the members of a round start from, by their names."""
    if options.init is None or this.starts_from_previous:
        return {}
    return require_starts(options.init, this.recipe, this.context.weights)


def _find_unlabelled(
    directories: Sequence[Path],
    this: TrainingRound,
    chips: Sequence[CachedChip],
    options: TrainingOptions,
) -> Unlabelled:
    """Find the unlabelled images of all rounds; ``this`` is the last."""
    if not options.unlabelled:
        return Unlabelled()
    task, own = this.task, options.own
    assert isinstance(task, DenseTask), "rounds need probability maps"
    files: list[Path] = []
    if own is not None:
        images = find_sources(own.sources, crs=own.source_crs, zoom=own.zoom).sources
        files = labelled_files(images, own.labels)
    elif task.recipe.tiles is not None:
        scenes = {chip.scene for chip in chips}
        whole = task.find_images(directories, options.view_angle)
        files = [chip.image.path for chip in whole.chips if chip.image_id in scenes]
    found = find_unlabelled(
        options.unlabelled,
        task,
        task.recipe.bands,
        options.cache,
        chips,
        files,
        options.view_angle,
    )
    require_usable(task.recipe, found)
    this.context.ranks.say(found.summary())
    return found


def _prepare(
    directories: Sequence[Path],
    rounds: Sequence[TrainingRound],
    context: RunContext,
    options: TrainingOptions,
) -> tuple[Preparation, dict[str, int]]:
    """Check everything that could stop the training later, and fill the cache.

    Returns the usable chips with the faults of the others, and image id to fold.
    """
    task = rounds[-1].task
    recipe = task.recipe
    require_writable(options.cache / "chip.safetensors")
    for each in rounds:
        weights = each.context.weights
        require_writable(weights / "weights.safetensors")
        if not each.members:
            raise SatmapError(f"recipe {recipe.name} has no member of fold {list(options.folds)}.")
        for member in each.members:
            require_encoder(member.encoder)
            _encoder_file(member, each, options)
        remove_temporary_files(weights)
    if context.compile:
        require_compiler(context.device)
    remove_temporary_files(options.cache)
    bands = recipe.bands
    inventory = find_labelled(
        directories, options.own, task, options.cache, options.judgement, options.view_angle
    )
    groups: Sequence[Sequence[str]] = inventory.duplicates
    if options.audit:
        groups = duplicate_groups(options.audit, inventory.chips)
    context.ranks.say(inventory.summary())
    labelled = [chip for chip in inventory.chips if chip.label is not None]
    if not options.skip_unlabelled or not labelled:
        inventory.require_labels()
    prepared = prepare_chips(labelled, bands, options.cache, recipe.stretch, task)
    preparation = Preparation(prepared.chips, inventory.faults | prepared.faults)
    preparation.require_enough()
    chips = preparation.chips
    if all(chip.is_empty for chip in chips):
        raise SatmapError(
            f"none of the {len(chips)} chips has a {task.label_noun} in its label, so there is "
            f"nothing to learn. Check that these are {task.label_noun} labels."
        )
    if repaired := sum(chip.repaired for chip in chips):
        context.ranks.say(f"{repaired} invalid polygons of the labels were repaired")
    # All images of one place are in the same fold, because they show the same ground.
    folds = split_chips(chips, recipe.folds_by, recipe.folds, recipe.seed, groups)
    if left_out := [chip.image_id for chip in chips if chip.image_id not in folds]:
        context.ranks.say(
            f"left out, because their scenes have fewer tiles than folds: {listing(left_out)}"
        )
        kept = tuple(chip for chip in chips if chip.image_id in folds)
        preparation = replace(preparation, chips=kept)
    if options.audit:
        context.ranks.say(
            f"{len(groups)} groups of near-duplicates with {sum(map(len, groups))} chips or "
            "places: each group is kept in one fold"
        )
    return preparation, folds


def _train(
    job: Job,
    this: TrainingRound,
    teacher: Sequence[WeightFile],
    options: TrainingOptions,
    until: int,
    seconds: Mapping[str, Sequence[float]],
) -> None:
    """Train a member up to stage ``until``."""
    member, context = job.member, job.context
    if job.training is job.validation:
        context.ranks.say(f"{member.name}: too few chips for folds; validation sees training chips")
    validated = f"validated on {len(job.validation)}" if job.validation else "not validated"
    context.ranks.say(f"{member.name}: {len(job.training)} chips, {validated}")
    # Each member has its own seed, so the result does not depend on what was trained before.
    torch.manual_seed(member_seed(job.recipe, member, 0))
    network = job.task.build_network(member)
    file = _encoder_file(member, this, options)
    if file is not None:
        job.task.load_encoder(network, file)
    if job.start is not None:
        file = job.start.path
        untrained = job.task.load_start(network, file)
        context.ranks.say(f"{member.name}: starts from {file}")
        if untrained:
            context.ranks.say(f"{member.name}: {file.name} has no {', '.join(untrained)}")
    if seen := [chip for chip in job.validation if chip.image_id in job.seen]:
        context.ranks.say(
            f"{member.name}: {len(seen)} of the {len(job.validation)} validation chips were "
            "training chips of that network, so its scores are too high"
        )
    sources = [*([file] if file else []), *(each.path for each in teacher)]
    with contextlib.ExitStack() as stack:
        context.ranks.on_first(lambda: stack.enter_context(_exclusive_lock(context, member)))
        train_member(
            network,
            job,
            pretrained=file is not None,
            until=min(until, len(member.stages)),
            seconds=seconds.get(member.name),
            starts_from=[record_file(source) for source in sources],
        )


def _with_chips(this: TrainingRound, chips: Sequence[CachedChip]) -> TrainingRound:
    """Leave out the members whose area of interest has no chips.

    Raises:
        SatmapError: no member is left.
    """
    areas = {chip.aoi for chip in chips}
    known = [member for member in this.members if member.area in (None, *areas)]
    others = [str(member.area) for member in this.members if member not in known]
    if not known:
        raise SatmapError(
            f"recipe {this.recipe.name} has networks for the areas {', '.join(others)}, but the "
            f"chips are of {', '.join(sorted(areas))}. Change `area` of the recipe's members."
        )
    if others:
        this.context.ranks.say(f"no chips of {', '.join(others)}: their networks are left out")
    return replace(this, members=known)


def _split(
    member: Member, chips: Sequence[CachedChip], folds: Mapping[str, int]
) -> tuple[Sequence[CachedChip], Sequence[CachedChip]]:
    """Return the chips that a member learns from, and those that it is validated on."""
    if member.area:
        chips = [chip for chip in chips if chip.aoi == member.area]
    held_out = [chip for chip in chips if folds[chip.image_id] == member.fold]
    others = [chip for chip in chips if folds[chip.image_id] != member.fold]
    # If all chips are in the member's fold, train and validate on the same chips.
    return others or held_out, held_out


def _require_shared_weights(context: RunContext) -> None:
    """Check that all processes share the directory of weights.

    They resume members that other processes have trained, so all must see the saved states.
    """
    token = context.weights / f".ranks-{uuid.uuid4().hex[:8]}.token"
    token = context.ranks.gather(token)[0]
    context.ranks.on_first(token.touch)
    missing = not token.exists()
    context.ranks.wait()
    context.ranks.on_first(lambda: token.unlink(missing_ok=True))
    cause = SatmapError(
        f"process {context.ranks.rank} does not see what process 0 writes to {context.weights}. "
        "Give a --weights directory that all machines share."
    )
    context.ranks.raise_on_all(cause if missing else None)


def _forget(rounds: Sequence[TrainingRound]) -> None:
    for each in rounds:
        for member in each.members:
            with _exclusive_lock(each.context, member):
                each.context.state_file(member).unlink(missing_ok=True)


def _exclusive_lock(context: RunContext, member: Member) -> contextlib.AbstractContextManager[None]:
    """Lock a member's files, so that weights and state cannot come from different runs."""
    refusal = (
        f"another run is training {member.name} in {context.weights}. Wait for it, or give "
        "another --weights directory."
    )
    return exclusive_lock(context.weights / member.name, SatmapError(refusal))


def _encoder_file(member: Member, this: TrainingRound, options: TrainingOptions) -> Path | None:
    """Return the file with the member's ImageNet weights; None if it does not need them."""
    starts_from_network = options.init or this.starts_from_previous
    if starts_from_network or options.from_scratch or not member.pretrained:
        return None
    file = find_encoder_file(this.encoders, member.encoder)
    if file.exists():
        return file
    if this.context.state_file(member).exists() and not this.context.restart:
        # The saved state holds the whole network. train_member checks that it matches.
        return None
    raise SatmapError(
        f"recipe member {member.name} starts from ImageNet weights, but {file} does not exist. "
        f"{how_to_get(member.encoder)}"
    )
