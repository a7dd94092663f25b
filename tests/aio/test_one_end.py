"""Threat: an action on record without its end, or with several.

Whoever can have the companion killed, fill its disk or have the log rotated would so leave a record
that contradicts what was done. The control is the same with nothing in the way, in test_service.py
and test_flow.py.
"""

from __future__ import annotations

import gzip
import json
import os
import signal
from typing import Any

import pytest

from borg_pull.aio.configuration import AioConfiguration, TargetKeys
from borg_pull.aio.journal import Journal
from borg_pull.aio.policy import load_for
from borg_pull.aio.runs import Runs, set_target
from borg_pull.errors import AuditError
from tests.aio.host import Host
from tests.aio.test_crash import QUICK, common, die_when, settled
from tests.harness.disk import Disk
from tests.harness.wait import until

pytestmark = pytest.mark.needs_root


def set_second(host: Host) -> None:
    policy = load_for(str(host.config), None)
    set_target(policy, policy.targets["second"], common())


def target_of(host: Host) -> str:
    return str(host.aio.read()["borg_backup_host_location"]).rpartition("/")[2]


def after_the_change(monkeypatch: pytest.MonkeyPatch, do: Any) -> None:
    """Have that done as soon as AIO has another target."""
    change = AioConfiguration.replace_target

    def changed(self: AioConfiguration, expected: TargetKeys, wanted: TargetKeys) -> bool:
        is_done = change(self, expected, wanted)
        do()
        return is_done

    monkeypatch.setattr(AioConfiguration, "replace_target", changed)


# target-set


def test_target_set_killed_before_its_start_is_on_record(host: Host) -> None:
    die_when(host, {"state": "set-target"}, set_second)
    settled(host)
    assert (host.records(), host.journal(), target_of(host)) == ([], None, "first")


@pytest.mark.parametrize(
    ("has", "target", "result", "error"),
    [
        ({"recorded": True}, "first", "fail", "AIO's target is as before"),
        ({"outcome": ...}, "second", "success", None),
        ({"completed": True}, "second", "success", None),
    ],
    ids=["before", "after", "recorded"],
)
def test_target_set_killed(
    host: Host, has: dict[str, Any], target: str, result: str, error: str | None
) -> None:
    if has == {"completed": True}:
        die_when(host, {"outcome": ...}, set_second)
        settled_but_not_noted(host)
    else:
        die_when(host, has, set_second)
        assert host.records("action_complete") == []
    assert target_of(host) == target
    settled(host)
    (start,), (complete,) = host.records("action_start"), host.records("action_complete")
    assert (complete["session"], complete["kind"]) == (start["session"], "target-set")
    assert complete["result"] == result
    assert complete["error"] is None if error is None else error in complete["error"]
    assert host.journal() is None


def settled_but_not_noted(host: Host) -> None:
    entry = host.journal()
    assert entry is not None
    settled(host)
    Journal(str(host.state)).write(entry)


def test_target_set_killed_when_the_target_is_changed(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service finishes it by itself; meanwhile nothing else is refused for good."""
    child = os.fork()
    if child == 0:
        try:
            after_the_change(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGKILL))
            set_second(host)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    host.start()
    until(lambda: host.journal() is None, seconds=10, what="the end of what was left")
    (complete,) = host.records("action_complete")
    assert (complete["result"], complete["exit"]) == ("success", 0)
    assert (
        complete["error"] == "the companion was killed in the state set-target; AIO has the target"
    )
    assert host.ask("aio-status").only("aio-status")["running"] is None


def test_target_set_whose_end_cannot_be_recorded(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = host.log.with_suffix(".kept")

    def break_log() -> None:
        host.log.rename(kept)
        host.log.mkdir()

    with monkeypatch.context() as patch:
        after_the_change(patch, break_log)
        with pytest.raises(AuditError, match="the target is changed, but there is no record of"):
            set_second(host)
    assert target_of(host) == "second"
    host.log.rmdir()
    kept.rename(host.log)
    set_second(host)  # as the next request does, it settles what is left
    assert [record["result"] for record in host.records("action_complete")] == ["success"] * 2
    sessions = [record["session"] for record in host.records("action_complete")]
    assert sessions == [record["session"] for record in host.records("action_start")]


# A full disk


@pytest.mark.parametrize("what", ["blocks", "inodes"])
def test_full_disk(host: Host, what: str) -> None:
    """One end, however often it is tried; the target is put back while the disk is still full."""
    host.state.mkdir(mode=0o700)
    disk = Disk(host.state)
    try:
        host.aio.turn("apache-down")
        die_when(host, {"state": "watch"}, must_run_script=True)
        (job,) = (path for path in (host.state / "jobs").iterdir())
        with job.open("a") as file:
            file.write('{"type":"event","num')
        disk.fill() if what == "blocks" else disk.take_inodes()
        runs = Runs(load_for(str(host.config), None), QUICK)
        assert [runs.settle() for _ in range(3)] == [False] * 3
        (complete,) = host.records("action_complete")
        assert complete["result"] == "unknown"
        assert target_of(host) == "second"
        host.aio.release("apache-down")
        settled(host)
        assert (target_of(host), host.journal()) == ("first", None)
        assert len(host.records("action_complete")) == 1
    finally:
        disk.unmount()


def test_end_that_waits_is_worded_once(host: Host) -> None:
    """However often it is tried while the volume of AIO's configuration is away."""
    die_when(host, {"state": "restore-target"})
    kept = host.aio.data.rename(host.aio.data.with_name("away"))
    runs = Runs(load_for(str(host.config), None), QUICK)
    assert [runs.settle() for _ in range(3)] == [False] * 3
    entry = host.journal()
    assert entry is not None
    assert entry["outcome"]["error"].count("not put back yet") == 1
    kept.rename(host.aio.data)
    settled(host)
    assert (target_of(host), len(host.records("action_complete"))) == ("first", 1)


# Rotation


def rotate(host: Host, name: str) -> list[dict[str, Any]]:
    """As logrotate does; what the log had."""
    records = host.records()
    if name.endswith(".gz"):
        host.log.with_name(f"{host.log.name}.{name}").write_bytes(
            gzip.compress(host.log.read_bytes())
        )
        host.log.unlink()
    else:
        host.log.rename(host.log.with_name(f"{host.log.name}.{name}"))
    return records


@pytest.mark.parametrize("name", ["1", "2.gz"])
def test_end_that_was_rotated_away(host: Host, name: str) -> None:
    die_when(host, {"completed": True})
    entry = host.journal()
    assert entry is not None
    Journal(str(host.state)).write(entry | {"completed": False})
    assert [record["event"] for record in rotate(host, name)] == ["action_start", "action_complete"]
    settled(host)
    assert (host.records(), host.journal()) == ([], None)


@pytest.mark.parametrize("name", ["1", "2.gz"])
def test_start_that_was_rotated_away(host: Host, name: str) -> None:
    die_when(host, {"recorded": True})
    entry = host.journal()
    assert entry is not None
    Journal(str(host.state)).write(entry | {"recorded": False})
    (start,) = rotate(host, name)
    # What cannot be read, or is no file, is no record.
    host.log.with_name(f"{host.log.name}.3.gz").write_bytes(b"\x1f\x8b torn")
    host.log.with_name(f"{host.log.name}.4").mkdir()
    settled(host)
    (complete,) = host.records()
    assert (complete["event"], complete["session"]) == ("action_complete", start["session"])
    head = Runs(load_for(str(host.config), None)).jobs.head(start["job"])
    assert json.dumps(head and head["result"]) == '"unknown"'
