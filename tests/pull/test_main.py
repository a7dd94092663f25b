"""``borg-pull`` as a program: its exit codes and its one line for every error."""

from __future__ import annotations

import pytest

from borg_pull import __version__
from tests.harness.builds import frozen_bundle
from tests.pull.runs import start


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
