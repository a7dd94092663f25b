"""``borg-pull-admin`` as a program: its exit codes, its one line for every error, its manners."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import pytest

from borg_pull import __version__
from borg_pull.admin import main as program
from tests.admin_runs import RUNTIME, run, start, write
from tests.harness.builds import PROJECT, Build
from tests.harness.site import Installations

CONFIGURATION = str(Path(__file__).parent / "samples/good/smallest.toml")
COMMANDS = (
    "check",
    "explain",
    "authorized-keys",
    "audit",
    "audit show",
    "audit verify",
    "lockdown",
    "sessions",
)


def test_version() -> None:
    assert start("--version").stdout == f"borg-pull-admin {__version__}\n"


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(command: str) -> None:
    answer = start(*command.split(), "--help")
    assert (answer.exit, answer.stderr) == (0, "")
    assert answer.stdout.startswith(f"Usage: borg-pull-admin {command}".rstrip())
    assert "\\b" not in answer.stdout


def test_help_states_which_settings_of_sshd_change() -> None:
    text = start("authorized-keys", "--help").stdout
    shipped = (PROJECT / "contrib/sshd/borg-pull.conf").read_text()
    for keyword in ("AuthorizedKeysFile", "AuthorizedKeysCommand"):
        assert f"\n  {keyword} " in text
        assert f"\n    {keyword} " in shipped
    assert "contrib/sshd/borg-pull.conf" in text


def test_without_a_command_it_shows_its_help() -> None:
    answer = start()
    assert (answer.exit, answer.stdout) == (64, "")
    assert "authorized-keys" in answer.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["--nonsense"],
        ["check"],
        ["check", "a", "b"],
        ["check", "--nonsense", "a"],
        ["explain", "a", "b"],
        ["check", CONFIGURATION, "--user", "no\x1b[2Jbody"],
        ["authorized-keys", "a", "--program"],
        ["audit", "show"],
        ["audit", "show", "a", "--config", "b"],
        ["audit", "verify"],
        ["lockdown", CONFIGURATION],
        ["sessions"],
        ["lockdown", CONFIGURATION, "o\x1b[2Jff"],
    ],
)
def test_a_wrong_command_line(arguments: list[str]) -> None:
    answer = start(*arguments)
    assert (answer.exit, answer.stderr.count("\n")) == (64, 1)
    assert answer.stderr.startswith("borg-pull-admin: ")
    assert answer.stderr.rstrip("\n").isprintable()


def test_a_fault_of_ours_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(**_options: object) -> None:
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr(program.cli, "main", broken)
    assert program.main() == 70
    said = capsys.readouterr().err
    assert said.startswith("borg-pull-admin: unexpected ZeroDivisionError: by\\nzero at test_admin")
    assert said.endswith("; please report it\n")
    assert said.count("\n") == 1


def test_an_interrupt_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(program.cli, "main", interrupted)
    assert program.main() == 128 + signal.SIGINT


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write(tmp_path / "config.toml", RUNTIME + "[client.luna]\npaths = ['/é', '/no/such']\n")


ARGUMENTS = (["check"], ["check", "--json"], ["authorized-keys"])


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=" ".join)
def test_output_that_cannot_be_written(config: Path, arguments: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = _run([*arguments, str(config)], stdout=full)
    if arguments == ["authorized-keys"]:
        assert done.returncode == 0, "there is no key, so nothing to write"
        return
    assert done.returncode == 71
    assert done.stderr == b"borg-pull-admin: No space left on device\n"


@pytest.mark.parametrize("arguments", [*ARGUMENTS, ["--help"]], ids=" ".join)
def test_a_reader_that_has_gone(config: Path, arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = _run([*arguments, *([] if arguments == ["--help"] else [str(config)])], stdout=writer)
    os.close(writer)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr


def test_the_verdict_stands_even_when_nobody_reads_it(config: Path) -> None:
    config.write_text(config.read_text() + "x = 1\n")
    reader, writer = os.pipe()
    os.close(reader)
    assert _run(["check", str(config)], stdout=writer).returncode == 78
    os.close(writer)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_character_set_will_do(config: Path, encoding: str) -> None:
    done = _run(["check", str(config)], environment={"PYTHONIOENCODING": encoding})
    assert done.returncode == 0
    assert "does not exist now" in done.stdout.decode(encoding)


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
    ],
)
def test_colours_on_a_terminal_alone(
    config: Path, environment: Mapping[str, str], coloured: bool
) -> None:
    master, slave = pty.openpty()
    done = _run(["check", str(config)], stdout=slave, environment=environment)
    os.close(slave)
    shown = os.read(master, 65536)
    os.close(master)
    assert done.returncode == 0
    assert (b"\x1b[33m" in shown) is coloured
    assert b"/no/such" in shown


def test_the_audit_log_of_a_configuration(config: Path) -> None:
    missing = run("audit", "show", "--config", config)
    assert missing.exit == 78
    assert f"{config.parent}/home/audit.jsonl" in missing.stderr
    log = write(config.parent / "home/audit.jsonl", "")
    assert run("audit", "show", "--config", config, "--json").exit == 0
    assert str(log) in run("audit", "verify", "--config", config, "--json").stdout
    config.write_text("x = 1")
    assert run("audit", "show", "--config", config).exit == 78


def _run(
    arguments: list[str],
    *,
    stdout: int | IO[bytes] = subprocess.PIPE,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "borg_pull.admin", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"} | dict(environment or {}),
        check=False,
    )


def test_every_build_answers_alike(installations: Installations, build: Build) -> None:
    """The frozen program brings all it needs, and finds the others beside it."""
    programs = installations.programs(build, capable=False)
    sample = CONFIGURATION.replace("smallest", "every-key")

    def answer(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [programs.admin, *arguments], capture_output=True, text=True, check=False, env={}
        )

    assert answer("--version").stdout == f"borg-pull-admin {__version__}\n"
    checked = answer("check", sample)
    assert (checked.returncode, checked.stderr) == (0, "")
    wrong = answer("check", CONFIGURATION.replace("good/smallest", "bad/misspelt-client-key"))
    assert wrong.returncode == 78
    assert "did you mean paths?" in wrong.stdout
    explained = answer("explain", sample, "luna", "list /srv/borg/web1")
    assert explained.returncode == 0
    assert "verdict     allowed" in explained.stdout
    (line,) = answer("authorized-keys", sample).stdout.splitlines()
    assert f' {sample} luna" ssh-ed25519 ' in line
    if build.programs == "frozen":
        assert f'command="{programs.source} ' in line
