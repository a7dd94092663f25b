"""Running borg-pull-admin in a test, in this process or in one of its own."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from borg_pull.admin.main import cli
from borg_pull.errors import BorgPullError

RUNTIME = """\
[runtime]
socket_dir = "{directory}/run"
home = "{directory}/home"
borg = "/bin/true"
socket_wrapper = "/bin/true"
"""


@dataclass(frozen=True)
class Answer:
    """How a command ended."""

    exit: int
    stdout: str
    stderr: str


def run(*arguments: str | Path) -> Answer:
    """Run a command in this process."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if isinstance(result.exception, BorgPullError):
        said = result.stderr + result.exception.line()
        return Answer(result.exception.exit_code, result.stdout, said)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Answer(result.exit_code, result.stdout, result.stderr)


def start(
    *arguments: str | Path | bytes,
    environment: Mapping[str, str] | None = None,
    uid: int | None = None,
) -> Answer:
    """Run the program as a process of its own, perhaps as another user."""
    done = subprocess.run(
        [sys.executable, "-m", "borg_pull.admin", *arguments],
        env=os.environ | dict(environment or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        user=uid,
        group=uid,
        extra_groups=None if uid is None else [],
    )
    stdout, stderr = (
        text.decode("utf-8", "surrogateescape") for text in (done.stdout, done.stderr)
    )
    assert "Traceback" not in stderr, stderr
    return Answer(done.returncode, stdout, stderr)


def write(path: Path, text: str) -> Path:
    """A file with ``text``, in which {directory} stands for its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace("{directory}", str(path.parent)))
    return path


def public_key(number: int, kind: str = "ssh-ed25519") -> str:
    """A well-formed public key, a different one for each number."""
    parts = (kind.encode(), number.to_bytes(32, "big"))
    blob = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return f"{kind} {base64.b64encode(blob).decode()}"
