"""A client that sends very many requests at once gets its answers, and nobody else waits for it.

Threat: a leaked key (A) floods the source. Each of its requests is served, refused or told to come
back, and is on record; another client's backups (B) go on meanwhile.
"""

from __future__ import annotations

import collections
import fcntl
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from borg_pull.admin.audit import verify_files
from borg_pull.audit import AuditLog, Common
from tests.harness.builds import FROZEN_14
from tests.harness.fixtures import SiteMaker
from tests.harness.peer import Peer, Result
from tests.harness.site import Site
from tests.harness.wait import until

CONNECTIONS = 1000
OF_OTHERS = 4
LOGGING_IN = 150
"""At one time: sshd lets nobody take longer than a minute over it."""
NICE = 19
"""What the crowd and its sshd give way by to the tests beside this one."""
CONNECT_SECONDS = 240.0
SERVE_SECONDS = 240.0
# The key exchange that ssh would choose costs more than all that is tested here.
CHEAP = ("-o", "KexAlgorithms=curve25519-sha256")

WRITERS = 1000
# Forked from an interpreter that has loaded little: 1,000 copies of a test runner are dear.
CROWD = """
import fcntl, os, sys, time
from borg_pull.audit import AuditLog, Common

path, writers, sync = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "sync"
log = AuditLog(path, sync=sync)
holder = os.open(path + ".chain", os.O_RDWR)
fcntl.flock(holder, fcntl.LOCK_EX)
ready_reader, ready_writer = os.pipe()
children = []
for number in range(writers):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(holder)
            common = Common(session=str(number), client="luna", key=None, address=None, port=None,
                            pid=os.getpid())
            os.write(ready_writer, b".")
            log.append("refused", common, {"reason": "too many"})
            status = 0
        finally:
            os._exit(status)
    children.append(child)
ready = 0
while ready < writers:
    ready += len(os.read(ready_reader, 65536))
started = time.monotonic()
os.close(holder)
failed = sum(os.waitpid(child, 0)[1] != 0 for child in children)
print(failed, time.monotonic() - started)
"""


@pytest.mark.parametrize("sync", ["no sync", "sync"])
def test_a_thousand_writers_of_the_audit_log_all_get_their_turn(tmp_path: Path, sync: str) -> None:
    """When each of them tried again and again, with sync nine in ten gave up after 30 seconds."""
    path = tmp_path / "audit.jsonl"
    nobody = Common(session="0", client=None, key=None, address=None, port=None, pid=0)
    AuditLog(str(path), sync=False).append("refused", nobody, {})
    done = subprocess.run(
        [sys.executable, "-c", CROWD, path, str(WRITERS), sync],
        capture_output=True,
        text=True,
        check=True,
    )
    failed, seconds = done.stdout.split()
    assert (failed, done.stderr) == ("0", "")
    assert float(seconds) < 60
    records = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert sorted(int(record["session"]) for record in records[1:]) == [*range(WRITERS)]
    assert verify_files([str(path)], rotated=False, expect=None).findings == []


class Crowd:
    """Clients that have all logged in before the first one asks for anything."""

    def __init__(self, peer: Peer, place: Path) -> None:
        place.mkdir()
        self._peer = peer
        self._place = place
        self._ready = place / "ready"
        self._ready.touch()
        self._gate = (place / "gate").open("w")
        fcntl.flock(self._gate, fcntl.LOCK_EX)
        self.clients: list[subprocess.Popen[bytes]] = []

    def log_in(self, request: str) -> None:
        """One more connection, which will send ``request`` once the gate is opened."""
        # ssh runs this when it has logged in, and goes on when it has ended.
        wait = f"printf . >>{self._ready}; exec 9<{self._gate.name}; exec flock -s 9"
        options = (*CHEAP, "-o", "PermitLocalCommand=yes", "-o", f"LocalCommand={wait}")
        with (self._place / f"{len(self.clients)}").open("wb") as errors:
            self.clients.append(
                subprocess.Popen(
                    ["/usr/bin/nice", "-n", str(NICE), *self._peer.command(request, options)],
                    env={"PATH": "/usr/bin:/bin", "SHELL": "/bin/sh"},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                )
            )

    def wait_until(self, most: int) -> None:
        """Wait until so many have logged in."""
        until(
            lambda: self._ready.stat().st_size >= most,
            seconds=CONNECT_SECONDS,
            what=f"{most} connections to be there",
        )

    def open_gate(self) -> None:
        """Let all of them ask at once."""
        self._gate.close()

    def exits(self) -> list[int]:
        """Wait for all; their exit codes. Raises AssertionError for one that lasts."""
        deadline = time.monotonic() + SERVE_SECONDS
        return [client.wait(max(0.1, deadline - time.monotonic())) for client in self.clients]

    def errors(self, number: int) -> str:
        """What the client of this number was told."""
        return (self._place / f"{number}").read_text(errors="replace")

    def close(self) -> None:
        """End what still runs."""
        for client in self.clients:
            client.kill()
            client.wait()


class Memory:
    """The most memory that the account's processes took that were not there before, in bytes:
    their proportional shares, added up, a few times a second."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._before = {process.pid for process in site.source.processes()}
        self._over = threading.Event()
        self.most = 0
        self.most_of_one = 0
        self.most_processes = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            shares = list(self._shares())
            self.most = max(self.most, sum(shares))
            self.most_of_one = max(self.most_of_one, *shares, 0)
            self.most_processes = max(self.most_processes, len(shares))

    def _shares(self) -> Iterator[int]:
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            if pid in self._before:
                continue
            try:
                command = Path(f"/proc/{pid}/comm").read_text()
                if not command.startswith("borg-pull-sour"):
                    continue
                found = re.search(
                    r"^Pss: +(\d+) kB$", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE
                )
            except OSError:
                continue
            if found:
                yield int(found[1]) * 1024

    def stop(self) -> None:
        """No more looking."""
        self._over.set()
        self._thread.join()


def test_a_thousand_connections_at_once(make_site: SiteMaker) -> None:
    """All of luna's ask at one moment. One backup of nova's goes on, and others are made."""
    site = make_site(FROZEN_14, sshd=["UnusedConnectionTimeout none"])
    data = site.source.tree()
    site.source.file(data / "file", os.urandom(1 << 20))
    rules = {"paths": [str(data)], "allow_unknown_repository": True}
    site.source.write_whitelist({"luna": rules, "nova": rules})
    requests = ["hello", "nonsense", "create /r a /elsewhere", f"create /r a {data}"]
    random.Random(3).shuffle(order := [requests[number % 4] for number in range(CONNECTIONS)])
    nova = site.peer("nova")
    under_way, repository = nova.repository("under-way"), nova.repository(initialised=False)
    # Not a copy of the same template: borg has one cache, and one lock on it, for both.
    repository.init()
    crowd = Crowd(site.peer("luna"), site.source.directory / "crowd")
    os.setpriority(os.PRIO_PROCESS, site.server.daemon_pid, NICE)
    try:
        for number, request in enumerate(order):
            crowd.log_in(request)
            crowd.wait_until(number + 1 - LOGGING_IN)
        crowd.wait_until(CONNECTIONS)
        with nova.listening(under_way, hold_after=1 << 19) as listener:
            pull = nova.start(f"create {under_way.path} a {data}", listener)
            listener.held()
            memory = Memory(site)
            crowd.open_gate()
            others = []
            for number in range(OF_OTHERS):
                nonce = f"{number:016}"
                remote = site.source.socket_dir / f"nova.{nonce}.sock"
                request = f"create --socket {nonce} {repository.path} a{number} {data}"
                others.append(nova.pull(request, repository, remote_socket=remote))
            exits = crowd.exits()
            memory.stop()
            listener.release()
            assert pull.wait().exit == 0
    finally:
        crowd.close()
    _check(site, crowd, exits, others)
    assert memory.most_of_one < 12 << 20
    assert memory.most < CONNECTIONS * 5 << 20


def _check(site: Site, crowd: Crowd, exits: list[int], others: list[Result]) -> None:
    wrong = [number for number, code in enumerate(exits) if code not in (0, 64, 69, 75, 77)]
    assert not wrong, [(exits[number], crowd.errors(number)) for number in wrong[:5]]
    # Each client was told one line, unless it was served.
    assert all(crowd.errors(number).count("\n") == 1 for number, code in enumerate(exits) if code)
    answers = collections.Counter(
        (record["event"], record["exit"]) for record in site.source.audit(client="luna")
    )
    told = collections.Counter(("refused" if code else "answered", code) for code in exits)
    assert answers == told
    sessions = [record["session"] for record in site.source.audit(client="luna")]
    assert len(set(sessions)) == CONNECTIONS
    assert set(exits) == {0, 64, 69, 75, 77}
    assert [result.exit for result in others] == [0] * OF_OTHERS
    assert max(result.duration for result in others) < 60
    (first, *between, last) = site.source.audit(client="nova")
    assert first["session"] == last["session"]
    assert [record["event"] for record in between] == ["start", "complete"] * OF_OTHERS
    assert verify_files([str(site.source.audit_file)], rotated=False, expect=None).intact()
    site.source.assert_chain()
