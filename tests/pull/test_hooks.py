"""Hooks: programs of this host, before and after a pull."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from borg_pull.pull.ledger import Run
from borg_pull.pull.stop import Stop
from tests.harness.builds import FROZEN_14
from tests.harness.fixtures import SiteMaker
from tests.harness.wait import until
from tests.pull.conftest import BackupServer, backup_server
from tests.pull.test_run import assert_clean, data_of

Script = Callable[[str, str], list[str]]


@pytest.fixture
def server(make_site: SiteMaker, tmp_path: Path) -> Iterator[BackupServer]:
    """A backup server; which borg it has is all the same to hooks."""
    with backup_server(make_site(FROZEN_14), tmp_path) as made:
        yield made


@pytest.fixture
def script(server: BackupServer) -> Script:
    """Writes a hook; its command."""

    def write(name: str, body: str) -> list[str]:
        path = server.directory / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return [str(path), "an argument; echo $HOME"]

    return write


def ran(server: BackupServer) -> Run:
    """The last run on record."""
    run = server.ledger.last("job")
    assert run is not None
    return run


def log_of(run: Run) -> str:
    """Its log."""
    assert run.log is not None
    return Path(run.log).read_text()


def test_both_are_run_and_told_what_happens(
    server: BackupServer, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BORG_PASSPHRASE", "not for hooks")
    monkeypatch.setenv("TZ", "UTC")
    dump = 'echo "hook: $1"; env -0 >"{}"'
    told = {which: server.directory / f"{which}.env" for which in ("before", "after")}
    hooks = {which: script(which, dump.format(path)) for which, path in told.items()}
    data = data_of(server)
    repository = server.repository()
    server.job(paths=[data], hooks=hooks, retention={"keep_last": 5})
    assert server.run() == "success", server.events
    run = ran(server)
    common = {
        "BORG_PULL_JOB": "job",
        "BORG_PULL_SOURCE": "source",
        "BORG_PULL_REPOSITORY": "repository",
        "BORG_PULL_REPOSITORY_PATH": str(repository.path),
        "BORG_PULL_RUN": str(run.id),
    }
    assert variables(told["before"]) == common | {"BORG_PULL_HOOK": "before"}
    assert variables(told["after"]) == common | {
        "BORG_PULL_HOOK": "after",
        "BORG_PULL_OUTCOME": "success",
        "BORG_PULL_ERROR": "",
        "BORG_PULL_ARCHIVE": run.archive,
    }
    log = log_of(run)
    assert log.count("hook: an argument; echo $HOME\n") == 2, "no shell has seen it"
    first, *_, last, _end = log.splitlines()
    assert first.startswith("borg-pull: hook before: ")
    assert last == "borg-pull: hook after: done"


def variables(file: Path) -> dict[str, str]:
    """Ours of the environment that a hook noted; of the others nothing is there but what must."""
    found = dict(entry.split("=", 1) for entry in file.read_text().split("\0") if entry)
    ours = {name: value for name, value in found.items() if name.startswith("BORG_PULL_")}
    must = {"PATH", "LC_ALL", "HOME", "LOGNAME", "USER", "TZ", "XDG_RUNTIME_DIR", "PWD", "_"}
    assert found.keys() - ours.keys() <= must | {"OLDPWD", "SHLVL"}
    return ours


def test_a_before_that_fails_is_a_failure_without_a_pull(
    server: BackupServer, script: Script
) -> None:
    told = server.directory / "after.env"
    hooks = {
        "before": script("before", "echo the disk is not there >&2; exit 3"),
        "after": script("after", f'env -0 >"{told}"'),
    }
    data = data_of(server)
    repository = server.repository()
    server.job(paths=[data], hooks=hooks, check={})
    assert server.run() == "failure"
    run = ran(server)
    assert run.error == "hook before failed with 3; its output is in the log of the run"
    assert "the disk is not there" in log_of(run)
    assert server.site.source.audit() == [], "nothing was asked of the source"
    assert repository.archives() == []
    assert server.ledger.last("job", kind="check") is None
    noted = variables(told)
    assert (noted["BORG_PULL_OUTCOME"], noted["BORG_PULL_ERROR"]) == ("failure", run.error)
    # The control.
    server.document["job"]["job"]["hooks"]["before"] = script("before", "exit 0")
    assert server.run() == "success", server.events


def test_an_after_that_fails_is_a_warning(server: BackupServer, script: Script) -> None:
    data = data_of(server)
    server.repository()
    server.job(paths=[data], hooks={"after": script("after", "kill -KILL $$")})
    assert server.run() == "warning"
    run = ran(server)
    assert run.outcome == "warning"
    assert run.error is not None
    assert run.error.startswith("hook after was ended by SIGKILL")
    assert server.ledger.kept("job") == {run.archive_id: run.archive}, "the backup counts"


def test_an_after_that_fails_does_not_hide_a_failure(server: BackupServer, script: Script) -> None:
    data_of(server)
    server.repository()
    server.job(paths=["/etc/shadow"], hooks={"after": script("after", "exit 1")})
    assert server.run() == "failure"
    error = ran(server).error
    assert error is not None
    assert "/etc/shadow" in error
    assert "hook after: failed with 1" in log_of(ran(server))


@pytest.mark.parametrize("obeys", [True, False], ids=["obeys", "resists"])
def test_a_hook_that_takes_too_long_is_ended_with_all_it_started(
    server: BackupServer, script: Script, monkeypatch: pytest.MonkeyPatch, obeys: bool
) -> None:
    monkeypatch.setattr("borg_pull.pull.hooks.TERM_SECONDS", 0.5)
    pids = server.directory / "pids"
    ignore = "" if obeys else "trap '' TERM"
    body = f'{ignore}\nsleep 1000 & echo $$ $! >"{pids}"\nwait; sleep 1000'
    data = data_of(server)
    server.repository()
    server.job(paths=[data], hooks={"before": script("before", body), "timeout": "1s"})
    assert server.run() == "failure"
    error = ran(server).error
    assert error is not None
    assert "hook before was ended after 1 s" in error
    processes = [Path("/proc", pid) for pid in pids.read_text().split()]
    until(lambda: not any(one.exists() for one in processes), seconds=10, what="their end")


def test_a_timeout_of_more_milliseconds_than_an_int_has(
    server: BackupServer, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """poll(2) would take 25 days for an overflow; and one that is cut up is waited for to its
    end."""
    data = data_of(server)
    server.repository()
    before = script("before", "exec sleep 0.5")
    server.job(paths=[data], hooks={"before": before, "timeout": "2000w"})
    monkeypatch.setattr("borg_pull.pull.stop._LONGEST_POLL", 0.1)
    assert server.run() == "success", server.events
    server.document["job"]["job"]["hooks"]["timeout"] = "1s"
    server.document["job"]["job"]["hooks"]["before"] = script("before", "exec sleep 1000")
    assert server.run() == "failure"
    assert "hook before was ended after 1 s" in (ran(server).error or "")


def test_a_hook_that_is_not_there(server: BackupServer) -> None:
    data = data_of(server)
    server.repository()
    server.job(paths=[data], hooks={"before": ["/nonexistent/hook"]})
    assert server.run() == "failure"
    error = ran(server).error
    assert error is not None
    assert "hook before cannot be run: it is not there" in error


def test_a_hook_of_the_home(
    server: BackupServer, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(server.directory))
    path = script("before", "exit 3")[0]
    data = data_of(server)
    server.repository()
    server.job(paths=[data], hooks={"before": [f"~/{Path(path).relative_to(server.directory)}"]})
    assert server.run() == "failure"
    assert "hook before failed with 3" in str(ran(server).error)


def test_a_stop_ends_before_at_once_and_after_still_runs(
    server: BackupServer, script: Script
) -> None:
    begun, ended = server.directory / "begun", server.directory / "ended"
    hooks = {
        "before": script("before", f'touch "{begun}"; exec sleep 1000'),
        "after": script("after", f'touch "{ended}"'),
    }
    data = data_of(server)
    server.repository()
    server.job(paths=[data], hooks=hooks)
    stop = Stop()
    batch = server.batch(stop)

    def end() -> None:
        until(begun.exists, seconds=30, what="the hook")
        stop.set("ended by SIGTERM")
        batch.wake()

    ender = threading.Thread(target=end)
    ender.start()
    assert batch.run(server.tasks()) == "failure"
    ender.join()
    assert ended.exists()
    error = ran(server).error
    assert error is not None
    assert "ended by SIGTERM" in error


def test_once_a_run_however_often_a_busy_source_is_asked(
    server: BackupServer, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("borg_pull.pull.batch.FIRST_PAUSE", 0.2)
    counted = server.directory / "counted"
    hooks = {which: script(which, f'echo {which} >>"{counted}"') for which in ("before", "after")}
    data = data_of(server)
    repository = server.repository()
    peer = server.site.peer()
    server.job(paths=[data], hooks=hooks, retry_window="1s")
    with peer.listening(repository, hold_after=40) as listener:
        holder = peer.start(f"create {repository.path} held {data}", listener)
        listener.held()
        assert server.run() == "failure"
        listener.release()
        assert holder.wait().exit == 0
    assert ran(server).attempt > 1
    assert counted.read_text().split() == ["before", "after"]
    assert_clean(server)
