"""What --help says."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from raystage.cli.main import main


@pytest.mark.parametrize("group", [[], ["store"]])
def test_the_help_tells_of_commands_in_whole_sentences(group: list[str]) -> None:
    listed = CliRunner().invoke(main, [*group, "--help"]).output.split("Commands:")[1]
    assert "..." not in listed
    assert " ".join(listed.split()).count(".") >= 3


def _commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from _commands(command, (*path, name))


@pytest.mark.parametrize("command", list(_commands(main)), ids=" ".join)
def test_every_command_has_an_example(command: tuple[str, ...]) -> None:
    said = CliRunner().invoke(main, [*command, "--help"]).output
    assert f" raystage {command[0]}" in said.split("Example:\n")[1]
    assert "jobs/" not in said  # an installed package has no such folder: `raystage init` brings the examples
