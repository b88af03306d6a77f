"""The command line. Everything else is importable and never reads ``sys.argv``."""

import argparse
import inspect
import json
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import satmap
from satmap.errors import SatmapError

# The commands import what they need themselves: torch alone takes seconds, and `satmap check`
# needs none of it.


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and end the process with its status.

    0: the work was done. 1: it could not be, the message on stderr says why. 2: wrong arguments.
    130: interrupted.
    """
    # torch's threads wait for each other by spinning; where anything else runs on the machine, a
    # step then takes several times as long. Read when torch is first imported, so set here.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        status = command(options)
        # A reader that went away (`satmap score ... | head`) shows only when output is flushed.
        if sys.stdout is not None:
            sys.stdout.flush()
    except SatmapError as error:
        if options.debug:
            raise
        print(f"satmap: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("satmap: interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        print("satmap: stopped, for nobody reads the output any more", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except Exception as error:
        if options.debug:
            raise
        print(
            f"satmap: {type(error).__name__}: {error}. This is a fault of satmap's or of the "
            "machine; --debug shows where.",
            file=sys.stderr,
        )
        status = 1
    sys.exit(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="satmap", description="Satellite and aerial images into maps: roads with travel times."
    )
    parser.add_argument("--version", action="version", version=f"satmap {satmap.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--debug", action="store_true", help="show tracebacks")

    def add(name: str, command: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        text = inspect.cleandoc(command.__doc__ or "")
        sub = commands.add_parser(
            name,
            help=text.splitlines()[0],
            description=text,
            parents=[shared],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(command=command)
        return sub

    def add_networks(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--weights",
            type=Path,
            default=_default_weights(),
            metavar="DIR",
            help="directory of weights (default: $WEIGHTS_DIR or %(default)s)",
        )
        sub.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")

    train = add("train", _train)
    train.add_argument("directories", type=Path, nargs="+", metavar="DIR")
    train.add_argument(
        "--recipe", default="sn5-roads", help="name or .yaml file (default: %(default)s)"
    )
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
        default=_default_workers(),
        metavar="N",
        help="processes that cut crops (default: %(default)s)",
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

    predict = add("predict", _predict)
    predict.add_argument("directories", type=Path, nargs="+", metavar="DIR")
    predict.add_argument("output", type=Path, metavar="OUT.csv")
    predict.add_argument("--recipe", help="name or file (default: that of the weights)")
    add_networks(predict)

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
    score.add_argument("truth", type=Path, metavar="TRUTH.csv")
    score.add_argument("proposal", type=Path, metavar="PROPOSAL.csv")
    score.add_argument("--json", action="store_true", help="print one JSON object")
    score.add_argument("--images", action="store_true", help="list every image in the table")
    score.add_argument(
        "--metres-per-pixel",
        type=_pixel_size,
        default=0.31,
        metavar="M",
        help="pixel size (default: %(default)s, the official scorer's)",
    )

    check = add("check", _check)
    check.add_argument("submission", type=Path, metavar="OUT.csv")
    check.add_argument("directories", type=Path, nargs="*", metavar="DIR")

    inventory = add("inventory", _inventory)
    inventory.add_argument("directories", type=Path, nargs="+", metavar="DIR")

    overlay = add("overlay", _overlay)
    overlay.add_argument("submission", type=Path, metavar="OUT.csv")
    overlay.add_argument("pictures", type=Path, metavar="PICTURE_DIR")
    overlay.add_argument("directories", type=Path, nargs="+", metavar="DIR")
    overlay.add_argument("--truth", type=Path, metavar="TRUTH.csv", help="drawn beside")

    city = add("make-city", _make_city)
    city.add_argument("directory", type=Path, metavar="DIR")
    city.add_argument("--chips", type=int, default=24, help="for training (default: %(default)s)")
    city.add_argument("--test-chips", type=int, default=6, help="default: %(default)s")
    city.add_argument("--size", type=int, default=512, help="pixels a side (default: %(default)s)")
    city.add_argument("--seed", type=int, default=0, help="another seed, another city")

    demo = add("demo", _demo)
    demo.add_argument("directory", type=Path, metavar="DIR")
    return parser


def _train(options: argparse.Namespace) -> int:
    """Train a recipe's networks on the chips of one or more directories.

    Finds images and labels, makes folds and targets, runs the stages and keeps the best
    checkpoints. Started again after an interruption it goes on from the last epoch.
    """
    from satmap.data.preparation import default_cache
    from satmap.device import pick_device
    from satmap.recipe import load_recipe
    from satmap.training.ensemble import TrainingOptions, train
    from satmap.training.loop import Workplace

    place = Workplace(
        weights=options.weights,
        device=pick_device(options.device),
        workers=options.workers,
        restart=options.restart,
    )
    training = TrainingOptions(
        cache=options.cache or default_cache(),
        from_scratch=options.from_scratch,
        skip_unlabelled=options.skip_unlabelled,
        folds=tuple(options.fold or ()),
    )
    faults = train(options.directories, load_recipe(options.recipe), place, training)
    _report_faults(faults, "left out of the training")
    return 0


def _predict(options: argparse.Namespace) -> int:
    """Predict the roads of every image and write the submission.

    All checkpoints of the recipe in the weights directory are averaged. An image that cannot be
    read has an empty row and is reported at the end. Started again after an interruption the run
    goes on with the next image.
    """
    from satmap.device import pick_device
    from satmap.inference.prediction import predict

    device = pick_device(options.device)
    done = predict(options.directories, options.output, options.weights, device, options.recipe)
    for warning in done.warnings:
        print(f"satmap: {warning}", file=sys.stderr)
    _report_faults(done.faults, "written as empty")
    roads = sum(len(rows) for rows in done.images.values())
    print(f"{options.output}: {len(done.images)} images, {roads} roads")
    return 0 if len(done.faults) < len(done.images) else 1


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
    """Score a road submission against the truth: APLS by length and by travel time."""
    from satmap.metrics.apls import score_roads
    from satmap.report.table import score_table
    from satmap.submissions.roads_csv import read_roads_csv

    truth, proposal = read_roads_csv(options.truth), read_roads_csv(options.proposal)
    if not truth.keys() & proposal.keys():
        raise SatmapError(
            f"{options.truth} and {options.proposal} have no image in common, for example "
            f"{next(iter(truth), 'none')} and {next(iter(proposal), 'none')}. "
            "Check that they belong together and whether one keeps the challenge's prefix."
        )
    report = score_roads(truth, proposal, metres_per_pixel=options.metres_per_pixel)
    print(
        json.dumps(report.to_json(), indent=1)
        if options.json
        else score_table(report, images=options.images)
    )
    return 0


def _check(options: argparse.Namespace) -> int:
    """Would the organisers accept the file? Names every fault with its line.

    With directories, every image in them must appear and no other. Status 1 if there is a fault.
    """
    from satmap.submissions.roads_csv import check_roads_csv

    expected: list[Collection[str] | None] = [None]
    if options.directories:
        from satmap.data.spacenet_roads import scan

        # Ids with the challenge's prefix are as good as those without, but not both in one file.
        ids = scan(options.directories).long_ids
        expected = [ids.keys(), ids.values()]
    faults = min((check_roads_csv(options.submission, images) for images in expected), key=len)
    for fault in faults:
        place = f":{fault.line}" if fault.line is not None else ""
        print(f"{options.submission}{place}: {fault.message}")
    print(f"{options.submission}: {len(faults)} faults" if faults else f"{options.submission}: ok")
    return 1 if faults else 0


def _inventory(options: argparse.Namespace) -> int:
    """List what the directories hold: areas, images, labels, bands, sizes, what is missing."""
    from satmap.data.spacenet_roads import scan

    print(scan(options.directories).summary())
    return 0


def _overlay(options: argparse.Namespace) -> int:
    """Draw a submission over its images, roads coloured by speed, the truth beside it."""
    from satmap.report.overlay import write_overlays

    pictures = write_overlays(
        options.submission, options.directories, options.pictures, options.truth
    )
    print(f"{len(pictures)} pictures in {options.pictures}")
    return 0


def _make_city(options: argparse.Namespace) -> int:
    """Make a city: images, labels and truth in the layout of SpaceNet 5.

    Writes DIR/train and DIR/test, with the held-out truth in DIR/test_truth.csv.
    """
    from satmap.data.city import make_city

    make_city(
        options.directory,
        chips=options.chips,
        test_chips=options.test_chips,
        seed=options.seed,
        size=options.size,
    )
    print(f"{options.directory}: {options.chips} training chips, {options.test_chips} test chips")
    return 0


def _demo(options: argparse.Namespace) -> int:
    """The whole way on a made city, with score and pictures, in minutes on two CPU cores."""
    from satmap.demo import run_demo

    print(run_demo(options.directory))
    return 0


def _pixel_size(text: str) -> float:
    """Argument type: metres, between a millimetre and a kilometre."""
    value = float(text)
    if not 1e-3 <= value <= 1e3:
        raise argparse.ArgumentTypeError(f"{text} is no size of a pixel in metres")
    return value


def _count(text: str) -> int:
    """Argument type: a whole number from 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def _report_faults(faults: Mapping[str, str], outcome: str) -> None:
    if faults:
        print(f"satmap: {len(faults)} images were {outcome}:", file=sys.stderr)
    for image_id, fault in faults.items():
        print(f"  {image_id}: {fault}", file=sys.stderr)


def _default_weights() -> Path:
    return Path(os.environ.get("WEIGHTS_DIR", "weights"))


def _default_workers() -> int:
    # With two cores a second process takes from the network what it gives in crops.
    cores = len(os.sched_getaffinity(0))
    return min(8, cores - 1) if cores > 2 else 0
