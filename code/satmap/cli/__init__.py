"""The command line. Everything else is importable and never reads ``sys.argv``."""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import satmap
from satmap.cli import data, prediction, results, training, weights
from satmap.cli.commands import Command, Commands
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

# Standard input, output and error are the files numbered up to this one.
_STDERR = 2

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
    command: Command = options.command
    try:
        _require_working_directory()
        with raising_terminated():
            status = command(options)
        # A reader that went away (`satmap score ... | head`) shows only when output is flushed.
        sys.stdout.flush()
    except SatmapError as error:
        if options.debug:
            _show_traceback()
        print(f"satmap: {printable(error, keep=_LINE_END)}", file=sys.stderr)
        status = RESTART if isinstance(error, RestartError) else 1
    except PeerError:
        if options.debug:
            traceback.print_exc()
        # The launcher ends the rest as soon as one process has: let it be the one that knows why.
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
        print("satmap: stopped, for nobody reads the output any more", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except Exception as error:
        if options.debug:
            _show_traceback()
        print(f"satmap: {_unexpected(error)}", file=sys.stderr)
        status = 1
    exit_process(status)


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


def _unexpected(error: Exception) -> str:
    said = printable(error, keep=_LINE_END)
    if is_memory_short(error):
        return f"{MEMORY_REMEDY} ({said})" if said else MEMORY_REMEDY
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return f"{printable(place)}{error.strerror}. Check the place's space, rights and limits."
    return (
        f"{type(error).__name__}: {said}. This is a fault of satmap's or of the machine; --debug "
        "shows where."
    )


def _require_working_directory() -> None:
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
    commands = Commands(parser)
    # As the help lists them.
    for add in (
        training.add_train,
        prediction.add_predict,
        prediction.add_vectorize,
        training.add_tune,
        training.add_confidence,
        weights.add_weights_actions,
        weights.add_export,
        results.add_score,
        prediction.add_verify,
        results.add_check,
        data.add_inventory,
        data.add_audit,
        results.add_overlay,
        data.add_make_city,
        data.add_demo,
    ):
        add(commands)
    return parser
