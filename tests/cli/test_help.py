"""Help texts of all commands."""

import argparse
import re
import shlex
from collections.abc import Iterator

import pytest

from satmap.cli import _parser


def leaves(
    parser: argparse.ArgumentParser, words: tuple[str, ...] = ()
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield every command that can be run, with its words."""
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not groups:
        yield " ".join(words), parser
    for group in groups:
        for name, command in group.choices.items():
            yield from leaves(command, (*words, name))


COMMANDS = dict(leaves(_parser()))


def test_all_commands_are_found() -> None:
    assert {"train", "map", "score", "overlay", "weights import"} <= COMMANDS.keys()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_that_parse_and_a_line_for_every_argument(command: str) -> None:
    parser = COMMANDS[command]
    text = parser.description or ""
    _, found, after = text.partition("\nExamples:\n")
    assert found, "add a block `Examples:` to the docstring"
    examples = re.findall(r"^  satmap (.+)$", after, re.MULTILINE)
    assert examples
    for example in examples:
        assert example.startswith(f"{command} ")
        # Wrong arguments end the program.
        _parser().parse_args(shlex.split(example.partition(" > ")[0]))
    for action in parser._actions:
        assert action.help, f"{action.dest} has no help"
    assert parser.format_help()
