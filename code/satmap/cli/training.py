"""Commands that learn from labels: train, tune and confidence."""

import argparse
from pathlib import Path

from satmap.cli.commands import Commands, report_faults, report_warnings
from satmap.cli.options import (
    add_cache,
    add_images,
    add_judgement,
    add_maps,
    add_networks,
    add_recipe,
    add_sources,
    add_view_angle,
    add_weights,
    count,
    duration,
    minutes,
    own_data,
    positive,
    require_task,
)
from satmap.errors import SatmapError
from satmap.io.files import require_writable
from satmap.io.walk import require_directories
from satmap.runtime.launched import is_started_again, local_processes
from satmap.runtime.resources import available_cores


def add_train(commands: Commands) -> None:
    """Add ``train``."""
    train = commands.add("train", _train)
    add_sources(train)
    add_recipe(train)
    add_networks(train)
    train.value(
        "--cache DIR",
        Path,
        "directory of prepared chips (default: $SATMAP_CACHE, /wdata/satmap-cache or "
        "~/.cache/satmap)",
    )
    train.value("--fold", int, "train only this fold's members; repeatable", action="append")
    train.value(
        "--workers N",
        count,
        "processes that cut crops, per process that trains (default: by the number of cores)",
    )
    train.flag("--from-scratch", "start from random weights instead of ImageNet weights")
    train.value(
        "--init WEIGHTS",
        Path,
        "weight file or directory of trained networks to start from (fine-tuning), for recipes "
        "such as finetune-roads",
    )
    train.flag("--skip-unlabelled", "leave out images without labels instead of stopping")
    train.flag("--restart", "train again from the beginning instead of resuming")

    train.value(
        "--processes N",
        positive,
        "processes that train, one GPU each (default: one per visible GPU, without GPUs one)",
    )
    train.value(
        "--time-limit TIME",
        duration,
        "shorten or extend the training to this time, such as 40h, 90m or 1h30m",
    )
    train.value(
        "--save-minutes M",
        minutes,
        "minutes between two saved states within a long epoch (default: %(default)g)",
        default=10.0,
    )
    train.value(
        "--unlabelled DIR",
        Path,
        "directory of unlabelled images, a challenge's or any rasters, for recipes whose rounds "
        "learn from them; repeatable",
        action="append",
        default=[],
    )
    add_view_angle(train)
    train.value(
        "--audit AUDIT.json", Path, "output of `audit --json`; keeps near-duplicates in one fold"
    )
    add_judgement(train)
    train.flag("--compile", "compile networks by torch.compile")
    train.flag(
        "--deterministic", "make the weights reproducible on the same machine; slower on a GPU"
    )
    train.value("--tensorboard DIR", Path, "write TensorBoard's event files to DIR")


def _train(options: argparse.Namespace) -> int:
    """Train a recipe's networks on a challenge's images, or on your own images and labels.

    Finds images and labels, assigns folds, prepares targets, runs the stages and keeps the best
    checkpoints. After an interruption the same command resumes. With several GPUs it starts one
    process per GPU; on several machines use torchrun.

    With --labels, images and labels may have any names. Images are cut into chips. Pixels without
    data, large white or black parts and everything outside --area are ignored. `satmap inventory`
    with the same options shows what the training would use. Give a --recipe: small-roads or
    small-buildings for your own data.

    A recipe may have `rounds`, in which networks learn from the predictions of earlier ones, on
    labelled images or on those of --unlabelled.

    Examples:
      satmap train SpaceNet5/ --recipe sn5-roads --time-limit 40h
      satmap train town.tif --labels osm.gpkg --area surveyed.geojson --recipe small-roads
      satmap train images/ --labels masks/ --recipe small-buildings
      satmap train few/ --recipe finetune-roads --init trained --weights new
      satmap train few/ --recipe rounds.yaml --unlabelled many/
      satmap train train_tier_1/ train_tier_2/ --recipe open-cities-best --judgement judged
    """
    from satmap.cli.checks import require_existing, require_folds, require_tensorboard
    from satmap.data.folds import read_groups
    from satmap.recipes.schema import load_recipe
    from satmap.weights.members import require_starts

    if options.tensorboard:
        require_tensorboard()
    recipe = load_recipe(options.recipe)
    if options.deterministic and options.time_limit is not None:
        raise SatmapError(
            "--time-limit and --deterministic exclude each other: with a time limit the number of "
            "steps depends on the clock. Leave one of them out."
        )
    require_folds(recipe, options.fold or ())
    own = own_data(options)
    if options.judgement:
        from satmap.data.judgement import read_judgement

        read_judgement(options.judgement)
    for place in filter(None, (options.weights, options.cache)):
        require_writable(place / "weights.safetensors")
    recipe.require_unlabelled(bool(options.unlabelled))
    for place in options.unlabelled:
        require_existing(place)
    if options.init:
        if options.from_scratch:
            raise SatmapError(
                "--init and --from-scratch exclude each other. Leave one of them out."
            )
        require_starts(options.init, recipe.up_to_round(0), options.weights)
    if options.audit:
        read_groups(options.audit)
    from satmap.runtime.device import be_deterministic
    from satmap.runtime.launcher import launch, processes_for

    if options.deterministic:
        be_deterministic()
    processes = processes_for(options.device, options.processes)
    if processes > 1:
        return launch(options.arguments, processes)
    # These imports take seconds; a launching process does not need them.
    from satmap.data.cache import default_cache
    from satmap.runtime.device import pick_device
    from satmap.runtime.ranks import joined
    from satmap.training.run_context import RunContext, RunInfo, stop_requests
    from satmap.training.train_ensemble import TrainingOptions, train

    training = TrainingOptions(
        cache=options.cache or default_cache(),
        from_scratch=options.from_scratch,
        skip_unlabelled=options.skip_unlabelled,
        folds=tuple(options.fold or ()),
        time_limit=options.time_limit,
        unlabelled=tuple(options.unlabelled),
        view_angle=options.nadir,
        audit=options.audit,
        init=options.init,
        own=own,
        judgement=options.judgement,
    )
    device = pick_device(options.device)
    workers = options.workers
    with stop_requests() as stop, joined(device) as ranks:
        context = RunContext(
            weights=options.weights,
            device=device,
            workers=_default_workers(local_processes()) if workers is None else workers,
            restart=options.restart and not is_started_again(),
            compile=options.compile,
            save_minutes=options.save_minutes,
            tensorboard=options.tensorboard,
            ranks=ranks,
            stop=stop,
            info=RunInfo(command=tuple(options.arguments)),
        )
        faults = train([Path(source) for source in options.sources], recipe, context, training)
        first = ranks.first
    if first:
        report_faults(faults, "left out of the training")
    return 0


def add_tune(commands: Commands) -> None:
    """Add ``tune``."""
    tune = commands.add("tune", _tune)
    tune.value(
        "maps MAPS",
        Path,
        "directory of probability rasters, from `predict --out-of-fold --probabilities`; for "
        "instances the submission of `predict --out-of-fold`",
    )
    tune.value("truth TRUTH", Path, "truth of the images: CSV, for buildings also COCO annotations")
    tune.value("output OUT.yaml", Path, "recipe file to write")
    add_maps(tune, "that of the recipe")
    add_recipe(tune, "recipe of the weights, a name or .yaml file")
    add_view_angle(tune)
    tune.value("--minutes M", minutes, "time limit in minutes (default: %(default)g)", default=5.0)


def _tune(options: argparse.Namespace) -> int:
    """Fit the vectoriser's settings to probability maps and write a recipe with them.

    MAPS holds probability maps of images that the networks were not trained with (`predict
    --out-of-fold --probabilities MAPS`). TRUTH holds their true roads as CSV, or their true
    buildings as SpaceNet's CSV or COCO annotations. The fit is judged by two-fold cross-validation.
    If it does not improve the score of unseen images, the settings stay as they are. If the recipe
    has a head per view angle category, each category is fitted separately. Use the result with
    `predict --recipe OUT.yaml`.

    For the task instances MAPS is the submission of `predict --out-of-fold` instead. It needs many
    uncertain buildings: predict with `vectorizer: {least_score: 0.05, least_px: 0}` in the recipe.
    Every area gets its own least score and size.

    Examples:
      satmap tune maps/ truth.csv tuned.yaml --recipe small-roads
    """
    from satmap.cli.checks import require_existing
    from satmap.recipes.schema import load_recipe
    from satmap.submissions.output_checks import require_recipe_output

    recipe = require_task(load_recipe(options.recipe), options.task)
    if recipe.map_names:
        require_directories([options.maps])
    require_existing(options.maps, options.truth)
    require_recipe_output(options.output)
    from satmap.tasks.tune import tune_recipe

    tuning = tune_recipe(
        options.maps,
        options.truth,
        options.output,
        recipe,
        metres_per_pixel=options.metres_per_pixel,
        minutes=options.minutes,
        workers=options.workers,
        view_angle=options.nadir,
    )
    report_warnings(tuning.warnings)
    report_faults(tuning.faults, "left out of the fit")
    print(f"{tuning.summary()}\n{options.output}: recipe {recipe.name}")
    return 0


def add_confidence(commands: Commands) -> None:
    """Add ``confidence``."""
    confidence = commands.add("confidence", _confidence)
    confidence.value("submission OUT.csv", Path, "submission of `predict --out-of-fold`")
    confidence.value(
        "maps MAPS",
        Path,
        "directory of the probability maps of that run; cascades without maps need none",
        nargs="?",
    )
    add_weights(confidence)
    add_images(
        confidence, "directories of images and labels (default: those in the manifest of OUT.csv)"
    )
    add_cache(confidence, "with a recipe with tiles")
    add_judgement(confidence)
    confidence.flag("--forest", "select buildings by a random forest instead of boosted trees")
    confidence.flag(
        "--no-selection", "only calibrate: keep the buildings that predict finds without a model"
    )


def _confidence(options: argparse.Namespace) -> int:
    """Fit the probability that a road or building is right, to an out-of-fold prediction.

    OUT.csv and MAPS come from one run on training images: `predict DIR... OUT.csv --out-of-fold
    --probabilities MAPS`. The calibration (confidence.json) is written beside the networks, and
    `predict` and `map` use it from then on. Without it, roads and buildings are uncalibrated.
    For buildings, a model that selects among their candidates (LightGBM, as text) is fitted first.

    Examples:
      satmap confidence fold.csv maps/ --weights weights
      satmap confidence fold.csv maps/ --weights weights --no-selection
    """
    from satmap.cli.checks import require_existing
    from satmap.weights.members import find_weights

    if options.maps:
        require_directories([options.maps])
    require_existing(options.submission)
    find_weights(options.weights)
    from satmap.tasks.confidence_fit import fit_to_prediction

    fit = fit_to_prediction(
        options.submission, options.maps, options.weights, options.images, options.arguments,
        options.cache, options.judgement, options.forest, not options.no_selection,
    )  # fmt: skip
    report_faults(fit.faults, "left out of the fit")
    print("\n".join(fit.lines))
    return 0


def _default_workers(processes: int) -> int:
    """Return the number of crop workers per training process."""
    # With two cores a worker would take more time from the network than it saves.
    cores = available_cores() // processes
    return min(8, cores - 1) if cores > 2 else 0
