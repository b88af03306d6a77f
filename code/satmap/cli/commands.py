"""Registration of commands and of groups of commands."""

import argparse
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from satmap.io.text import printable

#: Runs a command and returns the exit status. Its docstring is the command's help text.
Command = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """Argument parser with short methods for the usual options: with a value, and flags."""

    def value(self, name: str, kind: Callable[[str], Any], meaning: str, **others: Any) -> None:
        """Add an argument with a value, named as in the help: ``--cache DIR``."""
        argument, _, metavar = name.partition(" ")
        self.add_argument(argument, type=kind, metavar=metavar or None, help=meaning, **others)

    def flag(self, name: str, meaning: str) -> None:
        """Add an option without a value."""
        self.add_argument(name, action="store_true", help=meaning)


class Commands:
    """The commands of a parser, with ``metavar`` as their placeholder in the help."""

    def __init__(self, parser: Parser, metavar: str = "COMMAND") -> None:
        """Start without commands."""
        self._parsers = parser.add_subparsers(required=True, metavar=metavar, parser_class=Parser)
        self._shared = Parser(add_help=False)
        self._shared.flag("--debug", "show tracebacks")

    def add(self, name: str, command: Command) -> Parser:
        """Add a command and return its parser, to which the caller adds arguments."""
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
        """Add a command with subcommands."""
        return Commands(self._parsers.add_parser(name, help=text, description=text), "ACTION")


def report_warnings(warnings: Sequence[str]) -> None:
    """Print warnings on stderr."""
    for warning in warnings:
        print(f"satmap: {printable(warning)}", file=sys.stderr)


def report_faults(faults: Mapping[str, str], outcome: str, things: str = "images") -> None:
    """Print the faulty images on stderr, with the fault of each and the outcome for all."""
    if faults:
        print(f"satmap: {len(faults)} {things} were {outcome}:", file=sys.stderr)
    for image_id, fault in faults.items():
        print(f"  {printable(image_id)}: {printable(fault)}", file=sys.stderr)
