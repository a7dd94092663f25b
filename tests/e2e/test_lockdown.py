"""The admin sees what runs, ends it in order, and has every further request refused.

Threat: a client's key leaked (A). From the moment the admin has locked the host down nothing of it
is served, whatever was just starting; and locking down costs an honest client no more than the run
that was under way.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.harness.builds import FROZEN_14
from tests.harness.fixtures import SiteMaker
from tests.harness.peer import Result
from tests.harness.site import Site
from tests.harness.wait import until

SIZE = 24 << 20
HELD_AT = 2 << 20
SLOWLY = 64 << 10  # bytes each PAUSE: 7 seconds for all of it
PAUSE = 0.02
REASON = "luna's key has leaked"


@pytest.fixture
def frozen(make_site: SiteMaker) -> Site:
    """A site for what no build and no borg makes a difference to."""
    return make_site(FROZEN_14)


def admin(site: Site, *arguments: str, expect: int = 0) -> tuple[str, str]:
    """Output and error messages of the admin's program."""
    return ended(site.source.admin(*arguments), expect)


def ended(program: subprocess.Popen[str], expect: int = 0) -> tuple[str, str]:
    stdout, stderr = program.communicate(timeout=60)
    assert program.returncode == expect, (stdout, stderr)
    return stdout, stderr


def sessions(site: Site) -> list[dict[str, Any]]:
    said: list[dict[str, Any]] = json.loads(admin(site, "sessions", "--json")[0])["sessions"]
    return said


def big(site: Site) -> Path:
    data = site.source.tree()
    site.source.file(data / "file", os.urandom(SIZE))
    site.allow(paths=[str(data)])
    return data


def test_a_run_is_seen_and_ended_in_order(site: Site) -> None:
    data = big(site)
    repository = site.repository()
    peer = site.peer()
    with peer.listening(repository, hold_after=HELD_AT) as listener:
        pull = peer.start(f"create {repository.path} cut {data}", listener)
        listener.held()
        (one,) = sessions(site)
        assert (one["client"], one["verb"]) == ("luna", "create")
        (start,) = site.source.audit()
        assert (one["session"], one["pid"]) == (start["session"], start["pid"])
        # The wrap tells of its bytes every five seconds.
        until(
            lambda: (sessions(site)[0]["bytes_to_peer"] or 0) >= HELD_AT,
            seconds=20,
            what="the bytes to be told of",
        )
        locking = site.source.admin("lockdown", "on", "--kill", "--reason", REASON, "--by", "ann")
        while locking.poll() is None and not pull.has_ended():
            listener.let_through(SLOWLY)
            time.sleep(PAUSE)
        stdout, stderr = ended(locking)
        listener.release()
        result = pull.wait()
    assert "ended       1\n" in stdout
    assert stderr.startswith("under way: 1, after 0 s\n")
    assert (result.exit, result.stdout) == (2, b"")
    assert f"by ann: {REASON}" in result.errors
    site.source.assert_nothing_left("luna")
    start, locked, complete = site.source.audit()
    assert [one["event"] for one in (start, locked, complete)] == [
        *("start", "lockdown_on", "complete")
    ]
    assert (locked["by"], locked["reason"], locked["kill"]) == ("ann", REASON, True)
    assert (complete["session"], complete["result"]) == (start["session"], "killed")
    assert complete["error"].endswith(f"by ann: {REASON}")
    # In order: borg was not killed, and has closed its transaction.
    assert complete["signal"] is None
    assert not repository.locked()
    assert repository.archives() == []
    repository.check()
    refused_while_locked_down(site, repository_path=repository.path, data=data)
    admin(site, "lockdown", "off")
    result = site.pull(f"create {repository.path} next {data}", repository)
    assert (result.exit, result.complaints) == (0, "")
    assert repository.archives() == ["next"]
    site.source.assert_chain()


def refused_while_locked_down(site: Site, *, repository_path: Path, data: Path) -> None:
    for request in ("hello", f"create {repository_path} a {data}", "nonsense"):
        result = site.pull(request)
        assert (result.exit, result.stdout) == (75, b"")
        assert result.errors.count("\n") == 1
        assert f"by ann: {REASON}" in result.errors
        refused = site.source.audit()[-1]
        assert (refused["event"], refused["exit"]) == ("refused", 75)
        assert refused["request"] == request
        assert refused["reason"].endswith(f"by ann: {REASON}")


def test_one_that_awaits_its_passphrase_is_ended_and_on_record(frozen: Site) -> None:
    frozen.allow(paths=["/etc/hostname"], passphrase_stdin=True)
    repository = frozen.repository()
    peer = frozen.peer()
    with peer.listening(repository) as listener:
        pull = peer.start(
            f"create {repository.path} a /etc/hostname", listener, stdin=b"", stdin_stays_open=True
        )
        until(
            lambda: [one["verb"] for one in sessions(frozen)] == ["create"], seconds=20, what="it"
        )
        admin(frozen, "lockdown", "on", "--kill", "--reason", REASON)
        assert sessions(frozen) == []
        result = pull.wait()
    assert result.exit not in (0, 255), result.errors
    locked, refused = frozen.source.audit()
    assert (locked["event"], refused["event"]) == ("lockdown_on", "refused")
    assert refused["exit"] == result.exit
    frozen.source.assert_nothing_left("luna")


CLIENTS = ("luna", "nova", "sol", "vega")


def test_nothing_runs_and_nothing_starts_however_much_is_starting(site: Site) -> None:
    """Requests at every step of their way at the moment of the lockdown."""
    data = site.source.tree()
    site.source.file(data / "file", os.urandom(1 << 20))
    rules = {"paths": [str(data)], "allow_unknown_repository": True}
    site.source.write_whitelist(dict.fromkeys(CLIENTS, rules))
    repositories = {name: site.peer(name).repository() for name in CLIENTS}
    results: list[Result] = []

    def ask_until_refused(name: str) -> None:
        repository = repositories[name]
        for number in range(200):
            request = f"create {repository.path} {name}{number} {data}"
            result = site.peer(name).pull(request, repository)
            results.append(result)
            if result.exit == 75:
                return

    threads = [threading.Thread(target=ask_until_refused, args=(name,)) for name in CLIENTS]
    for thread in threads:
        thread.start()
    until(lambda: len(results) >= len(CLIENTS), seconds=60, what="some runs to have succeeded")
    answer = json.loads(admin(site, "lockdown", "on", "--kill", "--json")[0])
    records_then = len(site.source.audit())
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert answer["left"] == []
    assert 0 in {result.exit for result in results}
    assert {result.exit for result in results} <= {0, 2, 75}, results
    site.source.assert_nothing_left()
    records = site.source.audit()
    assert {record["event"] for record in records[records_then:]} <= {"refused"}
    started = [record["session"] for record in records if record["event"] == "start"]
    completed = [record["session"] for record in records if record["event"] == "complete"]
    assert sorted(started) == sorted(completed)
    site.source.assert_chain()
    for repository in repositories.values():
        assert not repository.locked()
        repository.check()
    admin(site, "lockdown", "off")
    after = site.peer("vega").pull(
        f"create {repositories['vega'].path} after {data}", repositories["vega"]
    )
    assert after.exit == 0, after.errors


HAND_MADE: dict[str, tuple[bytes | None, str]] = {
    "a directory": (
        None,
        "this host is locked down for a reason that cannot be read: is a directory",
    ),
    "empty": (b"", "this host is locked down"),
    "hostile": (
        b"reason: \x1b[2J\rroot# \xe2\x80\xae\x00\n",
        "this host is locked down: \\x1b[2J\\rroot# \\u202e\\x00",
    ),
    "endless": (b"x" * 5_000_000, "this host is locked down"),
}


def test_whatever_stands_there_locks(frozen: Site) -> None:
    frozen.allow(paths=["/data"])
    file = frozen.source.directory / "lockdown"
    for content, reason in HAND_MADE.values():
        if content is None:
            file.mkdir()
        else:
            file.write_bytes(content)
        result = frozen.pull("hello")
        assert (result.exit, result.stdout) == (75, b"")
        assert result.errors.startswith(f"borg-pull-source: {reason}")
        assert result.errors.rstrip("\n").isprintable()
        assert frozen.source.audit()[-1]["reason"] == reason
        (file.rmdir if content is None else file.unlink)()
    assert frozen.pull("hello").exit == 0


@pytest.mark.needs_root
def test_what_the_account_may_not_read_locks(frozen: Site) -> None:
    frozen.allow(paths=["/data"])
    admin(frozen, "lockdown", "on", "--reason", REASON)
    (frozen.source.directory / "lockdown").chmod(0)
    result = frozen.pull("hello")
    assert result.exit == 75
    assert "cannot be read: permission denied" in result.errors


@pytest.mark.needs_root
def test_the_account_cannot_lift_it(frozen: Site) -> None:
    """Threat: a client binds a socket in the file's place, or the account's programs remove it."""
    frozen.allow(paths=["/data"])
    file = frozen.source.directory / "lockdown"
    peer = frozen.peer()
    with peer.listening(frozen.repository()) as listener:
        pull = peer.start("hello", listener, remote_socket=file)
        assert pull.wait().exit == 255
        assert not file.exists()
        admin(frozen, "lockdown", "on")
        assert peer.start("hello", listener, remote_socket=file).wait().exit == 255
    identity = (f"--reuid={frozen.account.uid}", f"--regid={frozen.account.gid}", "--clear-groups")
    done = subprocess.run(
        [
            *("setpriv", *identity, str(frozen.source.programs.admin)),
            *("lockdown", str(frozen.source.configuration), "off"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 71, done.stderr
    assert done.stderr.endswith("permission denied; run this as root\n")
    assert frozen.pull("hello").exit == 75
    assert [record["event"] for record in frozen.source.audit()] == ["lockdown_on", "refused"]
