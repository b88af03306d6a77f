"""The command line. Everything else is importable and never reads ``sys.argv``."""

import argparse
import inspect
import json
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import satmap
from satmap.errors import PeerError, SatmapError, TryAgainError
from satmap.files import require_writable
from satmap.runtime.cores import available_cores
from satmap.runtime.launched import is_first_rank, is_rank, is_started_again, local_processes
from satmap.runtime.memory import REMEDY, is_memory_short
from satmap.runtime.shared_memory import can_share_locks
from satmap.runtime.termination import LEFT_ALONE, TRY_AGAIN, Terminated, end, raising_terminated
from satmap.text import printable

if TYPE_CHECKING:
    from satmap.data.looks import Look

#: Where sub-commands are added.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_PEER_FIRST_S = 1.5

# Standard input, output and error are the files numbered up to this one.
_STDERR = 2

# Characters of a long value that are printed.
_SHOWN = 100

# What messages of our own may hold: several lines.
_LINE_END = "\n"

# The commands import what they need themselves: torch alone takes seconds, and `satmap check`
# needs none of it.


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and end the process with its status.

    0: the work was done. 1: it could not be, the message on stderr says why. 2: wrong arguments.
    130, 129, 143: asked to end by Ctrl-C, SIGHUP, SIGTERM, the work is saved. 70 and 75 are for
    one of several processes, see ``satmap.runtime.termination``.
    """
    # torch's threads wait for each other by spinning; where anything else runs on the machine, a
    # step then takes several times as long. Read when torch is first imported, so set here.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Megabytes of decoded blocks that GDAL keeps; by default a twentieth of the machine's memory.
    os.environ.setdefault("GDAL_CACHEMAX", "512")
    _open_streams()
    options = _parser().parse_args(arguments)
    options.arguments = list(sys.argv[1:] if arguments is None else arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        _require_place()
        with raising_terminated():
            status = command(options)
        # A reader that went away (`satmap score ... | head`) shows only when output is flushed.
        sys.stdout.flush()
    except SatmapError as error:
        if options.debug:
            _show_traceback()
        print(f"satmap: {printable(error, keep=_LINE_END)}", file=sys.stderr)
        status = TRY_AGAIN if isinstance(error, TryAgainError) else 1
    except PeerError:
        if options.debug:
            traceback.print_exc()
        # The launcher ends the rest as soon as one process has: let it be the one that knows why.
        time.sleep(_PEER_FIRST_S)
        status = LEFT_ALONE
    except KeyboardInterrupt:
        print("satmap: interrupted", file=sys.stderr)
        status = 130
    except Terminated as error:
        if str(error):
            print(f"satmap: {error}", file=sys.stderr)
        status = error.status
    except BrokenPipeError:
        print("satmap: stopped, for nobody reads the output any more", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except Exception as error:
        if options.debug:
            _show_traceback()
        print(f"satmap: {_unforeseen(error)}", file=sys.stderr)
        status = 1
    end(status)


def _show_traceback() -> None:
    """Raise the exception at hand to the interpreter, which shows it and is open to debuggers.

    A rank cannot end in that way (``satmap.runtime.termination``): it prints where it comes from.
    """
    if not is_rank():
        raise
    traceback.print_exc()


def _open_streams() -> None:
    """Let closed standard streams lead nowhere: else the first files that are opened take their
    numbers, and libraries' messages go into those."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        os.set_inheritable(number, True)
    os.close(number)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


def _unforeseen(error: Exception) -> str:
    said = printable(error, keep=_LINE_END)
    if is_memory_short(error):
        return f"{REMEDY} ({said})" if said else REMEDY
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return f"{printable(place)}{error.strerror}. Check the place's space, rights and limits."
    return (
        f"{type(error).__name__}: {said}. This is a fault of satmap's or of the machine; --debug "
        "shows where."
    )


def _require_place() -> None:
    """Fail where the current directory was deleted: libraries then fail, or end the process.

    Raises:
        SatmapError: it was.
    """
    try:
        Path.cwd()
    except OSError as error:
        raise SatmapError(
            f"the current directory cannot be used ({error.strerror}). It may have been deleted: "
            "`cd` to one that is there."
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="satmap", description="Satellite and aerial images into maps: roads with travel times."
    )
    parser.add_argument("--version", action="version", version=f"satmap {satmap.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--debug", action="store_true", help="show tracebacks")

    def add(
        name: str, command: Callable[[argparse.Namespace], int], parent: Commands = commands
    ) -> argparse.ArgumentParser:
        text = inspect.cleandoc(command.__doc__ or "")
        sub = parent.add_parser(
            name,
            help=text.splitlines()[0],
            description=text,
            parents=[shared],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(command=command)
        return sub

    def add_weights(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--weights",
            type=Path,
            default=_default_weights(),
            metavar="DIR",
            help="directory of weights (default: $WEIGHTS_DIR or %(default)s)",
        )

    def add_networks(sub: argparse.ArgumentParser) -> None:
        add_weights(sub)
        sub.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")

    def add_recipe(sub: argparse.ArgumentParser, meaning: str = "name or .yaml file") -> None:
        sub.add_argument("--recipe", default="sn5-roads", help=f"{meaning} (default: %(default)s)")

    def add_images(sub: argparse.ArgumentParser, meaning: str) -> None:
        sub.add_argument("--images", type=Path, nargs="+", default=[], metavar="DIR", help=meaning)

    def add_look(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--nadir",
            type=_look,
            metavar="LOOK",
            help="from where images look whose names do not say it, for recipes with a head by "
            "look: degrees off nadir, with the side if need be, such as 32 or 32south",
        )

    def add_masks(sub: argparse.ArgumentParser, *tasks: str, default: str | None = "roads") -> None:
        sub.add_argument(
            "--task",
            choices=tasks,
            default=default,
            help=f"what masks show (default: {default or 'what the recipe is for'})",
        )
        sub.add_argument(
            "--metres-per-pixel",
            type=_pixel_size,
            metavar="M",
            help="pixel size of masks without georeference (default: the recipe's, 0.3)",
        )
        sub.add_argument(
            "--workers",
            type=_count,
            default=available_cores() if available_cores() > 1 else 0,
            metavar="N",
            help="processes that vectorise; 0 works in the main one (default: %(default)s)",
        )

    train = add("train", _train)
    train.add_argument("directories", type=Path, nargs="+", metavar="DIR")
    add_recipe(train)
    add_networks(train)
    train.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="prepared chips (default: $SATMAP_CACHE, /wdata/satmap-cache or ~/.cache/satmap)",
    )
    train.add_argument(
        "--fold", type=int, action="append", help="train only this fold's members; repeatable"
    )
    train.add_argument(
        "--workers",
        type=_count,
        metavar="N",
        help="processes that cut crops for a network (default: by the machine's cores)",
    )
    train.add_argument(
        "--from-scratch", action="store_true", help="do not start from ImageNet weights"
    )
    train.add_argument(
        "--skip-unlabelled",
        action="store_true",
        help="leave out images without labels instead of stopping",
    )
    train.add_argument(
        "--restart",
        action="store_true",
        help="forget what an earlier training left in the weights directory",
    )

    train.add_argument(
        "--processes",
        type=_positive,
        metavar="N",
        help="processes that share the work, a GPU each (default: one for every GPU)",
    )
    train.add_argument(
        "--time-limit",
        type=_duration,
        metavar="TIME",
        help="fit the recipe's length to a time, such as 40h, 90m or 1h30m",
    )
    train.add_argument(
        "--save-minutes",
        type=_minutes,
        default=10.0,
        metavar="M",
        help="within long epochs save so often (default: %(default)g)",
    )
    train.add_argument(
        "--teacher",
        type=Path,
        metavar="DIR",
        help="weights of the ensemble that a recipe such as sn5-roads-single learns from",
    )
    add_look(train)
    train.add_argument(
        "--audit",
        type=Path,
        metavar="AUDIT.json",
        help="report of `audit --json`: near-duplicates share a fold",
    )
    train.add_argument("--compile", action="store_true", help="run networks by torch.compile")
    train.add_argument(
        "--deterministic",
        action="store_true",
        help="end with the same weights every time on the same machine; slower on a GPU",
    )
    train.add_argument(
        "--tensorboard", type=Path, metavar="DIR", help="write TensorBoard's event files"
    )

    predict = add("predict", _predict)
    predict.add_argument("directories", type=Path, nargs="+", metavar="DIR")
    predict.add_argument("output", type=Path, metavar="OUT")
    predict.add_argument("--recipe", help="name or file (default: that of the weights)")
    add_networks(predict)
    predict.add_argument(
        "--planes",
        type=Path,
        metavar="DIR",
        help="write the averaged planes too, a GeoTIFF an image, for vectorize and tune",
    )
    predict.add_argument(
        "--export",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="write the roads as .geojson, .gpkg or .graphml too, buildings as .geojson or .gpkg; "
        "repeatable",
    )
    predict.add_argument(
        "--workers",
        type=_count,
        metavar="N",
        help="processes that vectorise, for each that predicts; 0 works in the main one "
        "(default: by the cores)",
    )
    predict.add_argument(
        "--processes",
        type=_count,
        metavar="N",
        help="that predict (default: one a visible GPU; without, one)",
    )
    predict.add_argument(
        "--out-of-fold",
        action="store_true",
        help="predict training images, each by the networks that did not train with it",
    )

    add_look(predict)

    vectorize = add("vectorize", _vectorize)
    vectorize.add_argument("masks", type=Path, metavar="MASK_DIR")
    vectorize.add_argument("output", type=Path, metavar="OUT")
    add_masks(vectorize, "roads", "buildings")
    vectorize.add_argument(
        "--recipe", help="name or file whose vectoriser's settings count (default: the defaults)"
    )

    tune = add("tune", _tune)
    tune.add_argument("masks", type=Path, metavar="MASK_DIR")
    tune.add_argument("truth", type=Path, metavar="TRUTH")
    tune.add_argument("output", type=Path, metavar="OUT.yaml")
    add_masks(tune, "roads", "buildings", default=None)
    add_recipe(tune, "name or file to start from, that of the weights")
    add_look(tune)
    tune.add_argument(
        "--minutes", type=_minutes, default=5.0, metavar="M", help="at most (default: %(default)g)"
    )

    confidence = add("confidence", _confidence)
    confidence.add_argument("submission", type=Path, metavar="OUT.csv")
    confidence.add_argument("planes", type=Path, metavar="PLANE_DIR")
    add_weights(confidence)
    add_images(confidence, "images and labels (default: where the manifest of OUT.csv says)")

    text = "Import, average or show weight files, fetch the encoders' ImageNet weights."
    weights = commands.add_parser("weights", help=text, description=text)
    actions = weights.add_subparsers(required=True, metavar="ACTION")
    import_ = add("import", _weights_import, actions)
    import_.add_argument("file", type=Path, metavar="FILE")
    import_.add_argument("output", type=Path, metavar="OUT")
    add_recipe(import_, "what a network is to predict with")
    fetch = add("fetch", _weights_fetch, actions)
    add_recipe(fetch)
    add_weights(fetch)
    average = add("average", _weights_average, actions)
    average.add_argument("output", type=Path, metavar="OUT.safetensors")
    average.add_argument("files", type=Path, nargs="+", metavar="FILE")
    show = add("show", _weights_show, actions)
    show.add_argument("file", type=Path, metavar="FILE")

    export = add("export", _export)
    export.add_argument("network", type=Path, metavar="WEIGHTS.safetensors")
    export.add_argument("output", type=Path, metavar="OUT.onnx|OUT.pt2")
    export.add_argument(
        "--size",
        type=_count,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="for single images of this size in pixels (default: batches of any size)",
    )

    score = add("score", _score)
    score.add_argument("truth", type=Path, metavar="TRUTH")
    score.add_argument("proposal", type=Path, metavar="PROPOSAL")
    score.add_argument("--json", action="store_true", help="print one JSON object")
    score.add_argument("--images", action="store_true", help="list every image in the table")
    score.add_argument(
        "--topo", action="store_true", help="score roads by TOPO too, a second opinion"
    )
    score.add_argument(
        "--plot", type=Path, metavar="DIR", help="write pictures of what the worst images miss"
    )
    score.add_argument(
        "--plots", type=_count, default=10, metavar="N", help="how many (default: %(default)s)"
    )
    score.add_argument(
        "--metres-per-pixel",
        type=_pixel_size,
        default=0.31,
        metavar="M",
        help="pixel size (default: %(default)s, the official road scorer's)",
    )

    verify = add("verify", _verify)
    verify.add_argument("file", type=Path, metavar="OUT.csv|WEIGHTS")
    add_images(verify, "the submission's images (default: where its manifest says)")
    verify.add_argument(
        "--weights", type=Path, metavar="DIR", help="its weights (default: likewise)"
    )
    verify.add_argument(
        "--truth",
        type=Path,
        metavar="TRUTH",
        help="compare scores by it, where bytes cannot be the same",
    )
    verify.add_argument(
        "--device", default="auto", help="auto (what it was made on), cpu, cuda, cuda:1, ..."
    )
    for option in ("--processes", "--workers"):
        verify.add_argument(option, type=_count, metavar="N", help="as predict takes them")
    verify.add_argument("--json", action="store_true", help="print one JSON object")

    check = add("check", _check)
    check.add_argument("submission", type=Path, metavar="OUT")
    check.add_argument("directories", type=Path, nargs="*", metavar="DIR")

    inventory = add("inventory", _inventory)
    inventory.add_argument("directories", type=Path, nargs="+", metavar="DIR")
    inventory.add_argument(
        "--task",
        choices=["roads", "buildings"],
        default="roads",
        help="what they are for (default: roads)",
    )

    audit = add("audit", _audit)
    audit.add_argument("directories", type=Path, nargs="+", metavar="DIR")
    audit.add_argument(
        "--validation",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="directory of validation images; repeatable",
    )
    audit.add_argument(
        "--bits",
        type=int,
        choices=range(4),
        default=3,
        help="in which hashes of near-duplicates differ at most (default: %(default)s)",
    )
    audit.add_argument(
        "--turned", action="store_true", help="turned and mirrored images are duplicates, too"
    )
    audit.add_argument("--json", action="store_true", help="print one JSON object with all paths")

    overlay = add("overlay", _overlay)
    overlay.add_argument("submission", type=Path, metavar="OUT.csv")
    overlay.add_argument("pictures", type=Path, metavar="PICTURE_DIR")
    overlay.add_argument("directories", type=Path, nargs="+", metavar="DIR")
    overlay.add_argument("--truth", type=Path, metavar="TRUTH.csv", help="drawn beside")

    city = add("make-city", _make_city)
    city.add_argument("directory", type=Path, metavar="DIR")
    city.add_argument(
        "--layout",
        choices=("spacenet5", "spacenet4", "spacenet2", "coco"),
        default="spacenet5",
        help="roads, oblique looks at buildings, buildings from above (default: %(default)s)",
    )
    city.add_argument(
        "--chips", type=int, help="for training (default: by layout 24, 4, 24 and 48)"
    )
    city.add_argument("--test-chips", type=int, help="default: by layout 6, 1, 6 and 12")
    city.add_argument("--size", type=int, help="pixels a side (default: 512, 900, 650 and 300)")
    city.add_argument("--looks", type=int, help="how many of SpaceNet 4's looks (default: all 27)")
    city.add_argument("--seed", type=int, default=0, help="another seed, another city")

    demo = add("demo", _demo)
    demo.add_argument("directory", type=Path, metavar="DIR")
    return parser


def _train(options: argparse.Namespace) -> int:
    """Train a recipe's networks on the chips of one or more directories.

    Finds images and labels, makes folds and targets, runs the stages and keeps the best
    checkpoints. Started again after an interruption it goes on from where it was. On a machine with
    several GPUs it starts itself on each; under torchrun, on one or many machines, it is one of
    the processes.
    """
    from satmap.recipe import load_recipe
    from satmap.runtime.determinism import be_deterministic
    from satmap.runtime.launcher import launch, processes_for

    recipe = load_recipe(options.recipe)
    if options.deterministic:
        if options.time_limit is not None:
            raise SatmapError(
                "with --time-limit a training is as long as the clock makes it, so it cannot be "
                "--deterministic; leave one of them out."
            )
        be_deterministic()
    if options.tensorboard:
        from satmap.training.watching import require_tensorboard

        require_tensorboard()
    processes = processes_for(options.device, options.processes)
    if processes > 1:
        return launch(options.arguments, processes)
    # Seconds of imports, which are the ranks' to do and not their launcher's.
    from satmap.data.preparation import default_cache
    from satmap.runtime.device import pick_device
    from satmap.runtime.ranks import joined
    from satmap.training.ensemble import TrainingOptions, train
    from satmap.training.interruption import stop_requests
    from satmap.training.workplace import Circumstances, Workplace

    training = TrainingOptions(
        cache=options.cache or default_cache(),
        from_scratch=options.from_scratch,
        skip_unlabelled=options.skip_unlabelled,
        folds=tuple(options.fold or ()),
        time_limit=options.time_limit,
        teacher=options.teacher,
        look=options.nadir,
        audit=options.audit,
    )
    device = pick_device(options.device)
    workers = options.workers
    with stop_requests() as stop, joined(device) as ranks:
        place = Workplace(
            weights=options.weights,
            device=device,
            workers=_default_workers(local_processes()) if workers is None else workers,
            restart=options.restart and not is_started_again(),
            compile=options.compile,
            save_minutes=options.save_minutes,
            tensorboard=options.tensorboard,
            ranks=ranks,
            stop=stop,
            circumstances=Circumstances(command=tuple(options.arguments)),
        )
        faults = train(options.directories, recipe, place, training)
        first = ranks.first
    if first:
        _report_faults(faults, "left out of the training")
    return 0


def _predict(options: argparse.Namespace) -> int:
    """Predict the roads or buildings of every image and write the submission.

    Buildings go into SpaceNet's CSV, and into a list of COCO results where OUT ends in .json. All
    checkpoints of the recipe in the weights directory are averaged. An image that cannot be read
    has an empty row and is reported at the end. Started again after an interruption the run goes on
    with the next image. All visible GPUs are used, one process each; on several machines start it
    with torchrun. The file is the same however many processes and workers there are.
    """
    from satmap.runtime.device import visible_gpus

    processes = 1 if is_rank() else options.processes or visible_gpus(options.device) or 1
    if processes > 1:
        from satmap.runtime.launcher import launch

        return launch(options.arguments, processes)
    # Seconds of imports, which are the ranks' to do and not their launcher's.
    from satmap.inference.prediction import predict

    workers = options.workers
    if workers is None:
        workers = _default_vectorizers(local_processes())
    done = predict(
        options.directories,
        options.output,
        options.weights,
        options.device,
        options.recipe,
        planes=options.planes,
        exports=options.export,
        out_of_fold=options.out_of_fold,
        workers=workers,
        command=options.arguments,
        look=options.nadir,
    )
    if not is_first_rank():
        return 0
    _report_warnings(done.warnings)
    _report_faults(done.faults, "written as empty")
    found = sum(done.images.values())
    print(f"{options.output}: {len(done.images)} images, {found} {done.noun}")
    return 0 if len(done.faults) < len(done.images) else 1


def _weights_import(options: argparse.Namespace) -> int:
    """Read a published weight file and write satmap's own, without running what is in it.

    FILE: a network of SpaceNet 5's third place, or an encoder's ImageNet weights as
    pretrainedmodels, torchvision (ResNets, DenseNets) or timm publish them.
    OUT: the directory of weights, or the .safetensors file to write.
    """
    from satmap.importing import import_weights
    from satmap.recipe import load_recipe
    from satmap.verification.made_weights import write_made_manifest

    path = import_weights(options.file, options.output, load_recipe(options.recipe))
    write_made_manifest(path, [options.file], options.arguments)
    print(path)
    return 0


def _weights_fetch(options: argparse.Namespace) -> int:
    """Download the ImageNet weights that a recipe's trainings start from.

    They go to imagenet/ in the directory of weights, each checked against its publisher's SHA-256.
    What is there already is verified and left. Nothing else in satmap touches the network.
    """
    from satmap.models.fetch import fetch_encoder
    from satmap.models.pretrained import encoder_file
    from satmap.recipe import load_recipe

    recipe = load_recipe(options.recipe)
    encoders = dict.fromkeys(member.encoder for member in recipe.members if member.pretrained)
    for name in encoders:
        outcome = fetch_encoder(options.weights, name)
        print(f"{encoder_file(options.weights, name)}: {outcome}", flush=True)
    if not encoders:
        print(f"recipe {recipe.name} trains from scratch and needs no weights")
    return 0


def _weights_average(options: argparse.Namespace) -> int:
    """Average the weights of networks of one kind into one network.

    Checkpoints of one training are such networks. Images count as held out where all held them out.
    `satmap predict` takes OUT from a directory of its own if it is named like a checkpoint,
    soup.last.safetensors.
    """
    from satmap.models.soup import average_weights
    from satmap.verification.made_weights import write_made_manifest

    if options.output.suffix != ".safetensors":
        raise SatmapError(f"{options.output}: give a name that ends in .safetensors.")
    average_weights(options.output, options.files)
    write_made_manifest(options.output, options.files, options.arguments)
    print(f"{options.output}: the mean of {len(options.files)} networks")
    return 0


def _weights_show(options: argparse.Namespace) -> int:
    """Print what a weight file says of itself, and check it against its checksum."""
    from satmap.models.tensor_file import read_metadata, read_tensors, require_file

    require_file(options.file, "Give the name of a .safetensors file.")
    tensors = read_tensors(options.file)
    for key, value in read_metadata(options.file).items():
        # A whole recipe is in there.
        print(f"{printable(key, _SHOWN)}: {printable(value, _SHOWN)}")
    print(f"{len(tensors)} tensors of {sum(value.numel() for value in tensors.values())} numbers")
    return 0


def _vectorize(options: argparse.Namespace) -> int:
    """Turn probability rasters into roads or buildings, whatever network they are from.

    A mask is a PNG or GeoTIFF named like its image, with one band, the road, or the twelve planes
    of `predict --planes`: uint8, 0..255, or float, 0..1. OUT's suffix is the format: .csv (the
    challenge's), .geojson, .gpkg or .graphml. A mask that cannot be vectorised is empty in OUT and
    is reported at the end.

    With --task buildings a mask has one to three bands: the body, the border, the ground between
    two; OUT is SpaceNet's CSV, .geojson or .gpkg, or COCO results where it ends in .json and masks
    have numbers as names.
    """
    from satmap.buildings.settings import BuildingSettings
    from satmap.recipe import Inference, load_recipe
    from satmap.roads.vectorize import RoadSettings
    from satmap.vectorize_buildings import vectorize_buildings
    from satmap.vectorizing import vectorize_directory

    recipe = load_recipe(options.recipe) if options.recipe else None
    if options.task == "buildings":
        buildings = recipe.buildings if recipe else BuildingSettings()
        found = vectorize_buildings(options.masks, options.output, buildings, options.workers)
        _report_faults(found.faults, "left empty")
        count = sum(found.images.values())
        print(f"{options.output}: {len(found.images)} images, {count} buildings")
        return 0 if len(found.faults) < len(found.images) else 1
    roads = recipe.roads if recipe else RoadSettings()
    inference = recipe.inference if recipe else Inference()
    done = vectorize_directory(
        options.masks,
        options.output,
        roads,
        metres_per_pixel=options.metres_per_pixel or inference.default_metres_per_pixel,
        workers=options.workers,
        neighbours=inference.neighbours,
    )
    _report_warnings(done.warnings)
    _report_faults(done.faults, "left empty")
    print(f"{options.output}: {len(done.images)} images, {done.roads} roads")
    return 0 if len(done.faults) < len(done.images) else 1


def _tune(options: argparse.Namespace) -> int:
    """Fit the vectoriser's settings to a network's planes, and write the recipe with them.

    MASK_DIR holds planes of images that the network was not trained with (`predict --out-of-fold
    --planes MASK_DIR`), TRUTH their true roads as CSV, or by a recipe of buildings their true
    buildings as SpaceNet's CSV or COCO annotations. The fit is judged by two-fold
    cross-validation; if it gains nothing on images that it has not seen, the settings stay as they
    are. Where the recipe has heads for categories of looks, each is fitted by itself. Pass OUT.yaml
    to `predict --recipe`.
    """
    from satmap.fitting.tuning import tune_recipe
    from satmap.recipe import load_recipe

    recipe = load_recipe(options.recipe)
    if options.task not in (None, recipe.task):
        raise SatmapError(
            f"recipe {recipe.name} is for {recipe.task}, not for {options.task}. Give that of the "
            "weights with --recipe."
        )
    tuning = tune_recipe(
        options.masks,
        options.truth,
        options.output,
        recipe,
        metres_per_pixel=options.metres_per_pixel or recipe.inference.default_metres_per_pixel,
        minutes=options.minutes,
        workers=options.workers,
        look=options.nadir,
    )
    _report_warnings(tuning.warnings)
    _report_faults(tuning.faults, "left out of the fit")
    print(f"{tuning.summary()}\n{options.output}: recipe {recipe.name}")
    return 0


def _confidence(options: argparse.Namespace) -> int:
    """Fit the model that chooses and rates buildings, to planes that were predicted out of fold.

    OUT.csv and PLANE_DIR are of one run, `predict DIR... OUT.csv --out-of-fold --planes PLANE_DIR`,
    of training images. The model (LightGBM, as text) comes to lie beside the networks, and
    `predict` uses it from then on; without one buildings are rated by mean probability x square
    root of area.
    """
    from satmap.fitting.confidence import fit_to_prediction

    done = fit_to_prediction(
        options.submission, options.planes, options.weights, options.images, options.arguments
    )
    _report_faults(done.faults, "left out of the fit")
    print(f"{done.path}: {done.summary()}")
    return 0


def _export(options: argparse.Namespace) -> int:
    """Write a trained network for other programs, as ONNX or as torch.export's .pt2.

    The graph takes the image's bytes as satmap stretches them, uint8 (batch, bands, height,
    width), and gives the probabilities of the planes, float32 (batch, planes, height, width).
    Their names and the recipe are in the file's metadata.
    """
    from satmap.models.export import export_network, require_exportable
    from satmap.models.weights import load_weights

    require_exportable(options.output)
    network, metadata = load_weights(options.network)
    export_network(network, options.output, metadata, options.size and tuple(options.size))
    planes = ", ".join(network.plane_names)
    print(f"{options.output}: {network.encoder.in_channels} bands to {planes}")
    return 0


def _score(options: argparse.Namespace) -> int:
    """Score a submission against the truth, by the metric of its challenge.

    Roads (CSV, GeoJSON): APLS by length and by travel time. Buildings (CSV, GeoJSON): SpaceNet's
    F1. COCO results against COCO annotations: average precision. Two directories of mask rasters:
    Jaccard index. The files say which; GeoJSON may be a directory with one file an image.
    """
    from satmap.report.misses import write_misses
    from satmap.report.table import score_table
    from satmap.scoring import score_files

    if options.plot:
        require_writable(options.plot / "picture.png")
    scoring = score_files(
        options.truth,
        options.proposal,
        metres_per_pixel=options.metres_per_pixel,
        with_topo=options.topo,
    )
    _report_warnings(scoring.warnings)
    print(
        json.dumps(scoring.report.to_json(), indent=1)
        if options.json
        else score_table(scoring.report, images=options.images)
    )
    if options.plot:
        written = write_misses(
            options.plot, scoring.report.images, scoring.rank_by, scoring.draw, options.plots
        )
        print(f"{len(written)} pictures in {options.plot}", file=sys.stderr)
    return 0


def _verify(options: argparse.Namespace) -> int:
    """Does a file come from what its manifest names? Makes a submission again to find out.

    OUT.csv: the checksums of submission, weights and images, then the prediction once more, into a
    temporary directory. On the same kind of machine it must give the same bytes, on another scores
    within 0.001. WEIGHTS: a weight file or a directory of them, by checksum and manifest. Status 1
    if not.
    """
    if options.file.is_dir() or options.file.suffix == ".safetensors":
        from satmap.verification.weights import verify_weights

        files = verify_weights(options.file)
        if options.json:
            print(json.dumps({str(file): faults for file, faults in files.items()}, indent=1))
        else:
            for file, faults in files.items():
                print("\n".join(f"{file}: {printable(fault)}" for fault in faults or ["verified"]))
        return 1 if any(files.values()) else 0

    from satmap.verification.submissions import Sources, verify_submission

    sources = Sources(
        directories=tuple(options.images),
        weights=options.weights,
        truth=options.truth,
        device=options.device,
        processes=options.processes,
        workers=options.workers,
    )
    found = verify_submission(options.file, sources)
    print(json.dumps(found.to_json(), indent=1) if options.json else found.report())
    return 0 if found.passed else 1


def _check(options: argparse.Namespace) -> int:
    """Would the organisers accept the file? Names every fault with its line.

    Takes the submissions of all challenges: roads CSV, buildings CSV, COCO results, a directory of
    mask rasters. With directories, every image in them must appear and no other. Status 1 if there
    is a fault.
    """
    from satmap.checking import check_files

    faults = check_files(options.submission, options.directories)
    for fault in faults:
        place = f":{fault.line}" if fault.line is not None else ""
        print(f"{options.submission}{place}: {printable(fault.message)}")
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    print(f"{options.submission}: {count if faults else 'ok'}")
    return 1 if faults else 0


def _inventory(options: argparse.Namespace) -> int:
    """List what the directories hold: areas, images, labels, bands, sizes, what is missing."""
    from satmap.data.buildings import scan_buildings
    from satmap.data.spacenet_roads import scan

    look_for = scan if options.task == "roads" else scan_buildings
    print(look_for(options.directories).summary())
    return 0


def _audit(options: argparse.Namespace) -> int:
    """Find near-duplicate images within training and between training and validation.

    Images under DIR are for training unless they lie under a directory of --validation. They are
    compared by perceptual hashes, so that compression, scaling and brightness make no difference.
    What --json prints `train --audit` takes, which then keeps near-duplicates in one fold.
    """
    from satmap.data.audit import audit_images

    audit = audit_images(
        options.directories, options.validation, most_bits=options.bits, turned=options.turned
    )
    print(json.dumps(audit.to_json(), indent=1) if options.json else audit.summary())
    faults = {str(path): fault for path, fault in audit.faults.items()}
    _report_faults(faults, "left out of the comparison")
    return 0 if len(faults) < audit.training + audit.validation else 1


def _overlay(options: argparse.Namespace) -> int:
    """Draw a submission over its images: roads by speed, the truth beside them, or buildings.

    Of buildings (CSV, COCO results) a truth tells apart what is found, missed and false.
    """
    from satmap.report.building_overlay import write_building_overlays
    from satmap.report.overlay import write_overlays
    from satmap.submissions.formats import Format, detect

    buildings = detect(options.submission) in (Format.BUILDINGS_CSV, Format.COCO_RESULTS)
    write = write_building_overlays if buildings else write_overlays
    pictures = write(options.submission, options.directories, options.pictures, options.truth)
    print(f"{len(pictures)} pictures in {options.pictures}")
    return 0


def _make_city(options: argparse.Namespace) -> int:
    """Make a city: images, labels and truth in the layout of a challenge.

    Roads as SpaceNet 5 has them; buildings as SpaceNet 4 has them, each tile from up to 27 angles,
    as SpaceNet 2 or as the Mapping Challenge. Writes DIR/train and DIR/test, with the held-out
    truth in DIR/test_truth.csv.
    """
    from satmap.data.city import BuildingLayout, make_building_city, make_city

    given = {
        key: value
        for key in ("chips", "test_chips", "size", "looks")
        if (value := getattr(options, key)) is not None
    }
    if "looks" in given and options.layout != BuildingLayout.SPACENET4:
        raise SatmapError(
            f"--looks is for --layout spacenet4; {options.layout} has one look at each place."
        )
    if options.layout == "spacenet5":
        make_city(options.directory, seed=options.seed, **given)
    else:
        layout = BuildingLayout(options.layout)
        make_building_city(options.directory, layout, seed=options.seed, **given)
    print(f"{options.directory}: a made city in the layout of {options.layout}")
    return 0


def _demo(options: argparse.Namespace) -> int:
    """The whole way on a made city, with score and pictures, in minutes on two CPU cores."""
    from satmap.demo import run_demo

    print(run_demo(options.directory))
    return 0


def _pixel_size(text: str) -> float:
    """Argument type: metres, between a millimetre and a hundred metres."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1e-3 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text} is no size of a pixel in metres")
    return value


def _count(text: str) -> int:
    """Argument type: a whole number from 0."""
    if not text.isdecimal() or not text.isascii():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0")
    return int(text)


def _positive(text: str) -> int:
    """Argument type: a whole number from 1."""
    value = _count(text)
    if value == 0:
        raise argparse.ArgumentTypeError("0 is too few")
    return value


def _look(text: str) -> "Look":
    """Argument type: from where an image looks at the ground."""
    from satmap.data.looks import parse_look

    try:
        return parse_look(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _duration(text: str) -> float:
    """Argument type: a time in seconds, written in hours, minutes and seconds: 1h30m."""
    found = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s)?", text)
    try:
        hours, minutes, seconds = (
            (float(part or 0) for part in found.groups()) if found else 3 * [0]
        )
    except ValueError:
        hours = minutes = seconds = 0
    value = 3600 * hours + 60 * minutes + seconds
    if not value:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 40h, 90m, 30s or 1h30m")
    return value


def _minutes(text: str) -> float:
    """Argument type: a time above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number of minutes")
    return value


def _report_warnings(warnings: Sequence[str]) -> None:
    for warning in warnings:
        print(f"satmap: {printable(warning)}", file=sys.stderr)


def _report_faults(faults: Mapping[str, str], outcome: str) -> None:
    if faults:
        print(f"satmap: {len(faults)} images were {outcome}:", file=sys.stderr)
    for image_id, fault in faults.items():
        print(f"  {printable(image_id)}: {printable(fault)}", file=sys.stderr)


def _default_weights() -> Path:
    return Path(os.environ.get("WEIGHTS_DIR", "weights"))


def _default_vectorizers(processes: int) -> int:
    """Processes that vectorise for each of several that predict, which have a core themselves."""
    workers = min(8, max(available_cores() // processes - 1, 0))
    return workers if can_share_locks(workers) else 0


def _default_workers(processes: int) -> int:
    """Processes that cut crops for each of several that train."""
    # With two cores a second process takes from the network what it gives in crops.
    cores = available_cores() // processes
    return min(8, cores - 1) if cores > 2 else 0
