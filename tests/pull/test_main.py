"""``borg-pull`` as a program: its exit codes and its one line for every error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from borg_pull import __version__
from borg_pull.pull import main
from borg_pull.pull.check_config import json_schema
from tests.harness.builds import PROJECT, frozen_bundle
from tests.pull.runs import run, start


def test_version() -> None:
    for program in (None, frozen_bundle() / "borg-pull"):
        answer = start("--version", program=program)
        assert (answer.exit, answer.stdout) == (0, f"borg-pull {__version__}\n")


def test_without_a_command_it_shows_its_help() -> None:
    answer = start()
    assert (answer.exit, answer.stdout) == (64, "")
    assert "Usage: borg-pull" in answer.stderr


@pytest.mark.parametrize("arguments", [["nonsense"], ["--nonsense"]])
def test_a_wrong_command_line(arguments: list[str]) -> None:
    answer = start(*arguments)
    assert (answer.exit, answer.stderr.count("\n")) == (64, 1)
    assert answer.stderr.startswith("borg-pull: ")


def commands(group: click.Group, prefix: str = "") -> Iterator[str]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")
        yield f"{prefix}{name}"


@pytest.mark.parametrize("command", ["", *commands(main.cli)])
def test_help(command: str) -> None:
    answer = run(*command.split(), "--help")
    assert (answer.exit, answer.stderr) == (0, "")
    assert "\\b" not in answer.stdout
    assert answer.stdout.partition("\n\n")[2].strip()


def test_the_frozen_program_knows_the_whole_configuration(tmp_path: Path) -> None:
    """Calendar expressions, the models and the schema, without a Python beside it."""
    copy = tmp_path / "pull.toml"
    shutil.copyfile(PROJECT / "contrib/pull.example.toml", copy)
    copy.chmod(0o600)
    program = frozen_bundle() / "borg-pull"
    answer = start("check-config", "--config", copy, program=program)
    assert (answer.exit, answer.stderr) == (0, "")
    assert answer.stdout == f"{copy}: sound: 2 sources, 2 repositories, 2 jobs in 1 file\n"
    answer = start("config", "schema", program=program)
    assert json.loads(answer.stdout) == json_schema()
