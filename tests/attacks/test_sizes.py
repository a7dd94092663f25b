"""What a peer can make large ends at a bound, and takes nothing with it.

Threat: a leaked key (A), or a repository server that took borg over (D), sends more than anybody
needs: requests, options, passphrases, messages, numbers, statistics. Each is refused with the
documented code, cut, or made to wait; memory, records and what borg is given stay small. The table
of docs/protocol.md is made from the same constants. Requests as such are in test_request_corpus.py,
sessions in test_limits.py, the locks of many repositories in test_many_repositories.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from borg_pull.audit import MAX_RECORD_BYTES, AuditLog, Common
from borg_pull.errors import RequestError
from borg_pull.source import borg, peer, report
from borg_pull.source.judge import Allowed, judge
from borg_pull.source.relay import MAX_PENDING, Relay
from borg_pull.source.request import MAX_COMMENT, MAX_OPTIONS, MAX_REQUEST, parse
from borg_pull.source.session import STDERR_KEPT, STDOUT_KEPT
from borg_pull.source.trail import MAX_REQUEST_RECORDED, Trail
from borg_pull.values import MAX_ARCHIVE_NAME, MAX_NAME, MAX_PATH, MAX_PATHS, MAX_PATTERN
from tests.harness.builds import FROZEN_14
from tests.harness.fixtures import SiteMaker
from tests.harness.site import Site
from tests.properties import checks

RULES = checks.rules_of("luna", {"trees": ["/"], "flags": ["exclude", "comment"]})
COMMON = Common(
    session="3b241101-e2bb-4255-8caf-4136c566a962",
    client="luna",
    key=None,
    address="192.0.2.1",
    port=22,
    pid=1,
)


def deep(length: int) -> str:
    """A path of ``length`` bytes, of as long components as there may be."""
    components, rest = divmod(length, MAX_NAME + 1)
    return ("/" + "n" * MAX_NAME) * components + ("/" + "n" * (rest - 1) if rest else "")


SIZES: dict[str, tuple[Callable[[int], str], int]] = {
    "a path": (lambda size: f"create /r a {deep(size)}", MAX_PATH),
    "a component of a path": (lambda size: f"create /r a /x/{'n' * size}/y", MAX_NAME),
    "a component in other letters": (lambda size: f"create /r a /{'é' * (size // 2)}", MAX_NAME),
    "the repository": (lambda size: f"create {deep(size)} a /x", MAX_PATH),
    "paths": (lambda size: f"create /r a {' '.join(f'/{n}' for n in range(size))}", MAX_PATHS),
    "the archive's name": (lambda size: f"create /r {'a' * size} /x", MAX_ARCHIVE_NAME),
    "a glob": (lambda size: f"prune /r --keep-last 1 -a {'a' * size}", MAX_ARCHIVE_NAME),
    "a comment": (lambda size: f"create --comment {'c' * size} /r a /x", MAX_COMMENT),
    "an exclude": (lambda size: f"create --exclude {'e' * size} /r a /x", MAX_PATTERN),
    "excludes": (lambda size: f"create {'-e x ' * size} /r a /x", MAX_OPTIONS),
    "a nonce": (lambda size: f"create --socket {'a' * size} /r a /x", 64),
}


@pytest.mark.parametrize("what", SIZES)
def test_each_part_of_a_request_has_its_bound(what: str) -> None:
    """The control: what is at the bound is taken."""
    made, most = SIZES[what]
    assert parse(made(most).encode()).verb in ("create", "prune")
    with pytest.raises(RequestError) as caught:
        # Two more, for letters of two bytes.
        parse(made(most + 2).encode())
    assert caught.value.exit_code == 64
    assert len(caught.value.line()) < 1000


def largest() -> bytes:
    """The request whose records and argv are the largest: each of its letters is two bytes here,
    six in a record, and a path stands in argv and among the paths."""
    words = ["create", "/r", "a"]
    while True:
        words.append(f"/{len(words)}{'é' * 120}")
        command = " ".join(words).encode()
        if len(command) > MAX_REQUEST or len(words) - 3 > MAX_PATHS:
            return " ".join(words[:-1]).encode()


def test_the_records_of_the_largest_request_are_written_and_read(tmp_path: Path) -> None:
    command = largest()
    assert MAX_REQUEST - 300 < len(command) <= MAX_REQUEST
    judged = judge(parse(command), "luna", RULES, checks.EVERY_FEATURE, checks.context())
    assert isinstance(judged, Allowed)
    argv = borg.command(judged, "luna", RULES, checks.RUNTIME, "/w").argv
    path = tmp_path / "audit.jsonl"
    trail = Trail(AuditLog(str(path), sync=False), COMMON, command)
    trail.admit()
    trail.start(argv, judged.repository, judged.archive, [g.path for g in judged.grants], {})
    trail.refused(RequestError("no"))
    start, refused = path.read_bytes().splitlines()
    assert MAX_RECORD_BYTES / 4 < len(start) < MAX_RECORD_BYTES / 2
    assert json.loads(start)["argv"] == list(argv)
    assert len(json.loads(refused)["request"]) == MAX_REQUEST_RECORDED
    assert len(refused) < 6 * MAX_REQUEST_RECORDED + 1000


def test_a_record_of_any_request_fits(tmp_path: Path) -> None:
    """Of bytes that are no text, which take six times their room, and of signs that take twelve."""
    for filler in (b"\xff", "\U0010ffff".encode(), b"\\", b'"'):
        path = tmp_path / filler.hex()
        trail = Trail(AuditLog(str(path), sync=False), COMMON, filler * 65536)
        trail.admit()
        trail.refused(RequestError("no"))
        assert len(path.read_bytes()) < 12 * MAX_REQUEST_RECORDED + 1000


def test_borg_can_be_started_with_the_largest_request() -> None:
    judged = judge(parse(largest()), "luna", RULES, checks.EVERY_FEATURE, checks.context())
    assert isinstance(judged, Allowed)
    argv = borg.command(judged, "luna", RULES, checks.RUNTIME, "/w").argv
    done = subprocess.run(["/bin/true", *argv], check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("keep", [STDERR_KEPT, STDOUT_KEPT])
def test_what_a_borg_says_without_end_waits_for_the_peer(keep: int) -> None:
    """A peer that never reads, and a borg that writes as fast as it can."""
    reader, writer = os.pipe()
    passed, full = os.pipe()
    relay = Relay(reader, full, keep)
    block = b"x" * 65536
    read = 0
    while relay.reader_events():
        os.write(writer, block)
        relay.receive()
        read += len(block)
        assert len(relay._pending) <= MAX_PENDING
        assert len(relay.tail()) <= keep
    assert read <= MAX_PENDING
    # The peer reads again: all of it comes, and more can follow.
    heard = 0
    while heard < 40 * len(block):
        if relay.reader_events():
            os.write(writer, block)
            relay.receive()
        relay.send()
        heard += len(os.read(passed, len(block)))
        assert len(relay._pending) <= MAX_PENDING
        assert len(relay.tail()) <= keep
    assert relay.tail() == b"x" * keep
    assert relay.whole() is None
    for descriptor in (reader, writer, passed, full):
        os.close(descriptor)


def test_a_report_without_end_is_read_in_part(tmp_path: Path) -> None:
    path = tmp_path / "report"
    line = b"7 progress 999999999999999999 999999999999999999 0\n"
    with path.open("wb") as file:
        file.write(b"1 connected 0 0 0\n")
        for pid in range(200_000):
            file.write(b"%d %s" % (pid, line.partition(b" ")[2]))
        file.write(b"3 end 5 6 69 " + b"m" * 100_000 + b"\n")
        file.truncate(10 * 1024**3)  # and a hole of gigabytes
    started = time.monotonic()
    found = report.take(str(path))
    assert time.monotonic() - started < 5
    assert not path.exists()
    assert found is not None
    assert found.connected
    assert found.bytes_to_peer < 2**63


@pytest.mark.parametrize("size", [peer.MAX_USER_AUTH, peer.MAX_USER_AUTH + 1])
def test_no_half_of_a_key_is_taken_for_one(tmp_path: Path, size: int) -> None:
    path = tmp_path / "auth"
    start = b"publickey ssh-rsa "
    path.write_bytes((start + b"A" * 60_000).ljust(size, b"\n"))
    found = peer.caller({b"SSH_USER_AUTH": os.fsencode(path)})
    assert (found.key is None) is (size > peer.MAX_USER_AUTH)


SHELL_MOST = 128 * 1024 - len("SSH_ORIGINAL_COMMAND=") - 1
"""Bytes of a request for which Linux makes a variable (MAX_ARG_STRLEN in linux/binfmts.h)."""


def sent(site: Site, size: int) -> tuple[int, str, str]:
    """A request of ``size`` bytes: its exit code, the peer's last words, what sshd logged."""
    request = "create /r a /data".ljust(size, "x")
    file = site.peer().directory / "options"
    # ssh takes a command line as long as that from a file alone.
    file.write_text(f"RemoteCommand {request}\n")
    before = len(site.server.log.read_bytes())
    done = site.peer().start("", options=("-F", str(file))).wait()
    said = done.errors.strip().splitlines()
    logged = site.server.log.read_bytes()[before:].decode(errors="replace")
    return done.exit, said[-1] if said else "", logged


def test_a_request_that_the_forced_command_never_sees(make_site: SiteMaker) -> None:
    """Between 64 KiB and 128 KiB it is refused by us; beyond, by the shell or by sshd, whose log
    is then the only record."""
    site = make_site(FROZEN_14)
    site.allow(paths=["/data"])
    for size in (MAX_REQUEST + 1, SHELL_MOST):
        code, said, logged = sent(site, size)
        assert code == 64
        assert said == f"borg-pull-source: the request has {size} bytes; the limit is {MAX_REQUEST}"
        assert "Starting session: forced-command" in logged
    assert len(site.source.audit(event="refused", exit=64)) == 2
    code, said, logged = sent(site, SHELL_MOST + 1)
    assert code == 1
    assert said.endswith("Argument list too long")
    assert "Starting session: forced-command" in logged
    assert f"luna' for {site.account.name}" in logged
    for size in (300_000, 10 * 1024**2):
        code, said, logged = sent(site, size)
        assert code == 255
        assert "Bad packet length" in logged
        assert "Starting session" not in logged
    assert len(site.source.audit()) == 2
    # The control: nothing of it lasts.
    assert site.pull("hello").exit == 0
