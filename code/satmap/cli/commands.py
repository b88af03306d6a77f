"""Commands of the command line, and commands of commands."""

import argparse
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence

from satmap.io.text import printable

#: Does the work and gives the process's status; its docstring is the command's help.
Command = Callable[[argparse.Namespace], int]


class Commands:
    """Where commands are added."""

    def __init__(self, parser: argparse.ArgumentParser, metavar: str = "COMMAND") -> None:
        """None yet.

        Args:
            parser: that they are commands of.
            metavar: what the help calls them.
        """
        self._parsers = parser.add_subparsers(required=True, metavar=metavar)
        self._shared = argparse.ArgumentParser(add_help=False)
        self._shared.add_argument("--debug", action="store_true", help="show tracebacks")

    def add(self, name: str, command: Command) -> argparse.ArgumentParser:
        """Add a command; its arguments are for the caller to add."""
        text = inspect.cleandoc(command.__doc__ or "")
        parser = self._parsers.add_parser(
            name,
            help=text.splitlines()[0],
            description=text,
            parents=[self._shared],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.set_defaults(command=command)
        return parser

    def group(self, name: str, text: str) -> "Commands":
        """Add a command that has actions."""
        return Commands(self._parsers.add_parser(name, help=text, description=text), "ACTION")


def report_warnings(warnings: Sequence[str]) -> None:
    """Say what the user should know."""
    for warning in warnings:
        print(f"satmap: {printable(warning)}", file=sys.stderr)


def report_faults(faults: Mapping[str, str], outcome: str) -> None:
    """Name the images that could not be worked on, what was wrong, and what became of them."""
    if faults:
        print(f"satmap: {len(faults)} images were {outcome}:", file=sys.stderr)
    for image_id, fault in faults.items():
        print(f"  {printable(image_id)}: {printable(fault)}", file=sys.stderr)
