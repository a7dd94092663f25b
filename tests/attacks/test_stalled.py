"""A source that holds its connection does not hold the storage for long (A).

Threat: a source was broken into. It takes the request, and then neither says nor sends anything
until the job's deadline, twelve hours. Meanwhile no other job of that storage can run. The controls
are slow sources of which something is heard, or seen at `borg serve`: these are waited for.

What stays: a source that does say something now and then, which is what the deadline is for.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from borg_pull.pull.pull import Conversation
from borg_pull.pull.serve import Serving, bytes_moved
from tests.attacks.hostile_source import Hostile, run_all
from tests.harness.builds import Build
from tests.harness.fixtures import SiteMaker
from tests.harness.wait import until
from tests.pull.conftest import backup_server

STALL = 1.0  # seconds


class Served:
    """What stands for ``borg serve``: it moves as it is told."""

    is_connected = False

    def __init__(self, *, moves: bool) -> None:
        self.listener, self._other = socket.socketpair()
        self._moves = moves
        self._count = 0

    def moved(self) -> object:
        """As `Serving.moved`."""
        self._count += self._moves
        return self._count


def talk(script: str, *, moves: bool = False) -> Conversation:
    """A conversation with ``script`` in place of ssh."""
    served = Served(moves=moves)
    with served.listener, served._other:
        made = Conversation(
            cast("Serving", served), None, time.monotonic() + 120, None, stall=STALL
        )
        made.pull(["sh", "-c", script], None)
    return made


def test_silence_is_ended() -> None:
    said = talk("echo begun >&2; exec sleep 100")
    assert said.given_up == "nothing has moved for 1 s, its stall_timeout"
    assert said.transcript.complaints == ["begun"]


def test_silence_with_closed_output_is_ended() -> None:
    said = talk("exec >&- 2>&-; exec sleep 100")
    assert said.given_up == "nothing has moved for 1 s, its stall_timeout"


def test_who_says_something_is_waited_for() -> None:
    # Far more often than it must, for a machine that is busy.
    said = talk("for i in $(seq 30); do echo a >&2; sleep 0.1; done; exit 3")
    assert (said.given_up, said.exit) == (None, 3)


def test_who_sends_something_is_waited_for() -> None:
    said = talk("sleep 3; exit 3", moves=True)
    assert (said.given_up, said.exit) == (None, 3)


def test_what_is_read_and_written_is_seen_below_a_process_too() -> None:
    with subprocess.Popen(
        ["sh", "-c", "cat; exit"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        until(lambda: len(bytes_moved(process.pid)) == 4, seconds=30, what="the child")
        process.stdin.write(b"a")
        process.stdin.flush()
        os.read(process.stdout.fileno(), 1)
        before = bytes_moved(process.pid)
        assert bytes_moved(process.pid) == before, "control: nothing has moved"
        process.stdin.write(b"b")
        process.stdin.flush()
        os.read(process.stdout.fileno(), 1)
        assert bytes_moved(process.pid) != before
    assert bytes_moved(process.pid) == []


@pytest.fixture
def hostile(make_site: SiteMaker, build: Build, tmp_path: Path) -> Iterator[Hostile]:
    """A hostile source beside an honest one, with a storage for one run in all."""
    with backup_server(make_site(build), tmp_path) as server:
        source = server.site.source
        data = source.tree()
        source.file(data / "file", os.urandom(1000))
        server.site.allow(paths=[str(data)])
        server.document["storage"] = {"disk": {}}
        server.repository(storage="disk")
        server.repository("other", storage="disk")
        server.job("honest", paths=[str(data)])
        yield Hostile(server)


@pytest.mark.needs_root
@pytest.mark.builds("one")
def test_the_storage_is_free_again(hostile: Hostile) -> None:
    server = hostile.server
    # Long enough to be ended first, and not much longer: nobody ends it at the source.
    hostile.waits("silent", 20)
    server.job("silent", source="evil", paths=["/srv"], stall_timeout=2)
    answer, _metrics = run_all(server)
    assert answer.exit == 2, answer
    ends = {run.job: (run.outcome, run.error) for run in server.ledger.runs()}
    assert ends["silent"] == ("failure", "nothing has moved for 2 s, its stall_timeout")
    assert ends["honest"] == ("success", None)
