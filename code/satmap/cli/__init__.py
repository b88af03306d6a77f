"""The command line. No other package reads ``sys.argv``."""

import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import satmap
from satmap.cli import data, labels, prediction, results, routes, training, viewing, weights
from satmap.cli.commands import Command, Commands, Parser
from satmap.errors import PeerError, RestartError, SatmapError
from satmap.io.text import printable
from satmap.runtime.launched import is_rank
from satmap.runtime.resources import MEMORY_REMEDY, is_memory_short
from satmap.runtime.termination import (
    PEER_FAILED,
    RESTART,
    Terminated,
    exit_process,
    raising_terminated,
)

_PEER_FIRST_S = 1.5

# File descriptor of standard error, the highest of the three standard streams.
_STDERR = 2

# satmap's own messages may have several lines.
_LINE_END = "\n"

# Commands import heavy modules only when they run: torch alone takes seconds, and `satmap check`
# does not need it.


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and end the process with its exit status.

    0: success. 1: failure; the message on stderr gives the reason. 2: wrong arguments. 130, 129,
    143: stopped by Ctrl-C, SIGHUP or SIGTERM; the work is saved. 70 and 75 are for one of several
    processes, see ``satmap.runtime.termination``.
    """
    # By default torch's threads spin while they wait for each other. If other programs run on the
    # machine, a step then takes several times as long. torch reads this when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # GDAL's block cache, megabytes. The default is 5 % of the machine's memory.
    os.environ.setdefault("GDAL_CACHEMAX", "512")
    _open_streams()
    options = _parser().parse_args(arguments)
    options.arguments = list(sys.argv[1:] if arguments is None else arguments)
    command: Command = options.command
    try:
        _require_working_directory()
        with raising_terminated():
            status = command(options)
        # Writing to a closed pipe (`satmap score ... | head`) fails only when output is flushed.
        sys.stdout.flush()
    except SatmapError as error:
        if options.debug:
            _show_traceback()
        print(f"satmap: {printable(error, keep=_LINE_END)}", file=sys.stderr)
        status = RESTART if isinstance(error, RestartError) else 1
    except PeerError:
        if options.debug:
            traceback.print_exc()
        # The launcher stops all processes after the first has ended. Wait, so that the process with
        # the cause ends first.
        time.sleep(_PEER_FIRST_S)
        status = PEER_FAILED
    except KeyboardInterrupt:
        print("satmap: interrupted", file=sys.stderr)
        status = 130
    except Terminated as error:
        if str(error):
            print(f"satmap: {error}", file=sys.stderr)
        status = error.status
    except BrokenPipeError:
        print("satmap: stopped, because the reader of the output has ended", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except Exception as error:
        if options.debug:
            _show_traceback()
        print(f"satmap: {_unexpected(error)}", file=sys.stderr)
        status = 1
    exit_process(status)


def _show_traceback() -> None:
    """Raise the current exception again, so that Python shows it and debuggers can catch it.

    One of several processes must not end like that (see ``satmap.runtime.termination``); it prints
    the traceback.
    """
    if not is_rank():
        raise
    traceback.print_exc()


def _open_streams() -> None:
    """Open closed standard streams as ``/dev/null``.

    Otherwise the first opened files would get their descriptors, and messages of libraries would be
    written into these files.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        os.set_inheritable(number, True)
    os.close(number)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


def _unexpected(error: Exception) -> str:
    text = printable(error, keep=_LINE_END)
    if is_memory_short(error):
        return f"{MEMORY_REMEDY} ({text})" if text else MEMORY_REMEDY
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return (
            f"{printable(place)}{error.strerror}. Check free space, permissions and limits there."
        )
    return (
        f"{type(error).__name__}: {text}. This is an error in satmap or of the machine; --debug "
        "shows where."
    )


def _require_working_directory() -> None:
    """Check that the current directory exists; without it libraries fail or end the process."""
    try:
        Path.cwd()
    except OSError as error:
        raise SatmapError(
            f"the current directory cannot be used ({error.strerror}). It may have been deleted: "
            "`cd` to one that exists."
        ) from error


def _parser() -> Parser:
    parser = Parser(
        prog="satmap",
        description="Turn satellite and aerial images into road graphs and building footprints.",
    )
    parser.add_argument("--version", action="version", version=f"satmap {satmap.__version__}")
    commands = Commands(parser)
    # In the order of the help.
    for add in (
        training.add_train,
        prediction.add_map,
        prediction.add_predict,
        prediction.add_vectorize,
        training.add_tune,
        training.add_confidence,
        labels.add_labels_actions,
        weights.add_weights_actions,
        weights.add_export,
        results.add_score,
        prediction.add_verify,
        results.add_check,
        data.add_inventory,
        data.add_audit,
        results.add_overlay,
        viewing.add_view,
        routes.add_route,
        routes.add_reach,
        results.add_convert,
        data.add_make_city,
        data.add_demo,
    ):
        add(commands)
    return parser
