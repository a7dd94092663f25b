"""Running borg-pull in a test, in this process or in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from borg_pull.errors import BorgPullError
from borg_pull.pull.main import cli


@dataclass(frozen=True)
class Answer:
    """How a command ended."""

    exit: int
    stdout: str
    stderr: str


def run(*arguments: str | Path, typed: str | None = None) -> Answer:
    """Run a command in this process; ``typed`` is what a person types at its prompts."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], input=typed)
    if isinstance(result.exception, BorgPullError):
        return Answer(result.exception.exit_code, result.stdout, result.exception.line())
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Answer(result.exit_code, result.stdout, result.stderr)


def start(
    *arguments: str | Path,
    program: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Answer:
    """Run ``program``, else the one from source, as a process of its own."""
    done = subprocess.run(
        [*([sys.executable, "-m", "borg_pull.pull"] if program is None else [program]), *arguments],
        env=os.environ | dict(environment or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Answer(done.returncode, done.stdout, done.stderr)


def imported_by(script: str) -> set[str]:
    """Names of the modules that are loaded once an interpreter of its own has run ``script``."""
    shown = f"{script}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True)
    return set(done.stdout.split())
