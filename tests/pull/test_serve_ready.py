"""What becomes ``borg serve`` has borg loaded before there is a connection, whatever borg is."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from borg_pull.pull import confined
from tests.harness.wait import until

SECONDS = 30
# Says on its connection what it is called with, and whether it was loaded before.
SCRIPT = """#!{interpreter}
import os, sys
loaded = "borg.archiver" in sys.modules
sys.stdout.write(f"{{sys.argv}} {{loaded}} {{sys.path[0]}} {{os.getcwd()}}\\n")
sys.stdout.flush()
sys.exit(len(sys.stdin.readline()))
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "borg").mkdir()
    (tmp_path / "borg/__init__.py").write_text("")
    (tmp_path / "borg/archiver.py").write_text(f"open({str(tmp_path / 'loaded')!r}, 'w').close()")
    return tmp_path


def program(place: Path, text: str) -> Path:
    path = place / "program"
    path.write_text(text)
    path.chmod(0o755)
    return path


@contextmanager
def waiting(program: Path, place: Path) -> Iterator[tuple[socket.socket, subprocess.Popen[bytes]]]:
    order = confined.Order(
        argv=[str(program), "serve", "--umask", "0077"],
        environment={"PATH": "/usr/bin:/bin"},
        loaded=[str(place), sys.prefix],
        writable=[str(place)],
        umask=0o077,
    )
    door, theirs = socket.socketpair()
    with door, theirs:
        process = subprocess.Popen(
            confined.command(order), stdin=theirs.fileno(), stdout=subprocess.DEVNULL
        )
        theirs.close()
        try:
            yield door, process
        finally:
            process.kill()
            process.wait()


def served(door: socket.socket) -> tuple[bytes, socket.socket]:
    """What the program says on its connection, and our end of that."""
    ours, theirs = socket.socketpair()
    ours.settimeout(SECONDS)
    with theirs:
        confined.hand_over(door, theirs)
    return ours.makefile("rb").readline(), ours


def test_a_script_is_run_with_borg_loaded_while_nobody_had_connected(place: Path) -> None:
    borg = program(place, SCRIPT.format(interpreter=sys.executable))
    with waiting(borg, place) as (door, process):
        until((place / "loaded").exists, seconds=SECONDS, what="borg to be loaded")
        said, ours = served(door)
        argv = [str(borg), "serve", "--umask", "0077"]
        assert said.decode() == f"{argv} True {place} /\n"
        with ours:
            ours.sendall(b"seven\n")
            assert process.wait(SECONDS) == len("seven\n")


@pytest.mark.parametrize("first_line", ["#!/bin/sh", "#!/usr/bin/env -S sh"])
def test_anything_else_is_executed(place: Path, first_line: str) -> None:
    borg = program(place, f'{first_line}\necho "$@"\nread line\nexit 7\n')
    with waiting(borg, place) as (door, process):
        said, ours = served(door)
        assert said == b"serve --umask 0077\n"
        with ours:
            ours.sendall(b"\n")
            assert process.wait(SECONDS) == 7
    assert not (place / "loaded").exists()


def test_a_borg_that_cannot_be_loaded_says_so_itself(place: Path) -> None:
    (place / "borg/archiver.py").write_text("raise SystemError('broken')")
    borg = program(place, f"#!{sys.executable}\nprint('ran')\nimport borg.archiver\n")
    with waiting(borg, place) as (door, process):
        said, ours = served(door)
        assert said == b"ran\n"
        ours.close()
        assert process.wait(SECONDS) == 1


@pytest.mark.parametrize("first_line", [f"#!{sys.executable}", "#!/bin/sh"])
def test_without_a_connection_it_ends_and_runs_nothing(place: Path, first_line: str) -> None:
    borg = program(place, f"{first_line}\nexit(7)\n")
    with waiting(borg, place) as (door, process):
        door.close()
        assert process.wait(SECONDS) == 0
