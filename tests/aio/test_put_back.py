"""AIO's previous target waits for as long as it cannot be put back, and no other run passes it.

Threat: a fault that passes (a full disk, a volume that is not mounted yet) or an answer that no
engine gives leaves the backups of AIO going to a target that was meant for one night, or a run
without an end on record.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from borg_pull.aio.configuration import AioConfiguration, keys_of
from borg_pull.aio.flow import Flow, Outcome, restored
from borg_pull.aio.policy import load_for
from borg_pull.aio.runs import BusyWithError, Runs
from borg_pull.errors import BORG_WARNING, SystemRefusedError
from tests.aio.host import Host
from tests.aio.proxy import EXEC, INSPECT, LIST, LOGS, Proxy, answer
from tests.aio.test_crash import QUICK, die_when, settled, wanted
from tests.harness.disk import Disk

pytestmark = pytest.mark.needs_root

FIRST = keys_of(host_location="/backup/first", remote_repo=None)
SECOND = keys_of(host_location="/backup/second", remote_repo=None)
THIRD = keys_of(host_location="/backup/third", remote_repo=None)
ENDED = Outcome(
    result="success",
    error=None,
    hint=None,
    evidence={},
    exit=0,
    exit_code=0,
    target_restored=None,
    is_settled=False,
)


def target(host: Host) -> str:
    return Path(host.aio.read()["borg_backup_host_location"]).name


def settle(host: Host) -> bool:
    return Runs(load_for(str(host.config), None), QUICK).settle()


def while_restoring(
    monkeypatch: pytest.MonkeyPatch, before: Callable[[], object], after: Callable[[], object]
) -> None:
    restore = Flow._restored

    def during(self: Flow, outcome: Outcome) -> Outcome:
        before()
        try:
            return restore(self, outcome)
        finally:
            after()

    monkeypatch.setattr(Flow, "_restored", during)


def test_full_disk(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    try:
        path = tmp_path / "configuration.json"
        path.write_text(json.dumps(SECOND))
        configuration = AioConfiguration(str(path))
        disk.fill()
        with pytest.raises(SystemRefusedError):
            restored(ENDED, configuration, FIRST, SECOND)
        disk.empty()
        outcome = restored(ENDED, configuration, FIRST, SECOND)
        assert (outcome.target_restored, outcome.is_settled, outcome.exit) == (True, True, 0)
        assert configuration.read().target == FIRST
        path.write_text(json.dumps(THIRD))
        outcome = restored(ENDED, configuration, FIRST, SECOND)
        assert (outcome.target_restored, outcome.is_settled) == (False, True)
        assert configuration.read().target == THIRD
    finally:
        disk.unmount()


def test_volume_away_for_a_moment(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    data, aside = host.aio.data, host.aio.data.with_name("aside")
    while_restoring(monkeypatch, lambda: data.rename(aside), lambda: aside.rename(data))
    runs, what = wanted(host)
    outcome = runs.run(what, lambda _job: None)
    assert (outcome.result, outcome.exit) == ("success", BORG_WARNING)
    assert outcome.target_restored is None
    assert "first is not put back yet: " in str(outcome.error)
    assert "is Nextcloud AIO installed" in str(outcome.hint)
    (complete,) = host.records("action_complete")
    assert (complete["target_restored"], complete["error"]) == (None, outcome.error)
    assert target(host) == "second"
    settled(host)
    assert target(host) == "first"
    assert len(host.records("action_complete")) == 1


def test_killed_and_settled_before_the_volume_is_there(host: Host) -> None:
    """As at the start of a host. Until it is, no run begins, which says why."""
    die_when(host, {"state": "restore-target"})
    data, aside = host.aio.data, host.aio.data.with_name("aside")
    data.rename(aside)
    assert not settle(host)
    (complete,) = host.records("action_complete")
    assert "killed in the state restore-target; AIO's previous target" in complete["error"]
    runs, what = wanted(host)
    with pytest.raises(BusyWithError, match="still to be put back"):
        runs.run(what, lambda _job: None)
    aside.rename(data)
    assert settle(host)
    assert target(host) == "first"
    assert len(host.records("action_complete")) == 1


@pytest.mark.parametrize("text", ["1e999", "{}"])
def test_aio_writes_what_is_no_configuration(host: Host, text: str) -> None:
    """With the honest value for a control."""
    second = {"borg_backup_host_location": f"{host.aio.root}/second"}
    changed = json.dumps(host.aio.read() | second, indent=4)
    host.aio.turn("rewritten", changed.replace('"12"', text))
    runs, what = wanted(host)
    outcome = runs.run(what, lambda _job: None)
    is_refused = text == "1e999"
    assert (outcome.result, outcome.is_settled) == ("success", not is_refused)
    assert len(host.records("action_complete")) == 1
    assert settle(host) is not is_refused
    if is_refused:
        host.aio.configuration.write_text(changed)
        assert settle(host)
    assert target(host) == "first"
    assert host.journal() is None


def odd(host: Host, body: bytes, pattern: str) -> Proxy:
    """An engine that gives ``body`` for an answer once the run has come to its end."""

    def lie(call: str, peer: socket.socket) -> bool:
        state = (host.journal() or {}).get("state")
        if state not in ("restore-target", "done") or pattern not in call:
            return False
        answer(peer, body)
        return True

    address = host.place / "odd.sock"
    proxy = Proxy(address, host.aio.daemon.socket, (LIST, INSPECT, LOGS, EXEC), lie)
    text = host.config.read_text()
    host.config.write_text(text.replace(host.aio.daemon.address, proxy.address))
    return proxy


@pytest.mark.parametrize(
    ("body", "pattern"),
    [
        (b"{}", "GET /containers/"),
        (b"[]", "GET /containers/"),
        (b"null", "GET /containers/"),
        (b'{"State": {"Running": true, "StartedAt": "yesterday"}}', "GET /containers/"),
        (b"[" * 100_000, "GET /containers/"),
        (b"", "nothing"),
    ],
    ids=["object", "list", "null", "date", "deep", "control"],
)
def test_engine_that_answers_oddly(host: Host, body: bytes, pattern: str) -> None:
    proxy = odd(host, body, pattern)
    try:
        runs, what = wanted(host)
        outcome = runs.run(what, lambda _job: None)
        is_control = pattern == "nothing"
        assert (outcome.result, outcome.is_settled) == ("success", is_control), outcome
        assert len(host.records("action_complete")) == 1
        assert settle(host) is is_control
        proxy.lie = None
        settled(host)
        assert target(host) == "first"
        assert runs.run(what, lambda _job: None).result == "success"
    finally:
        proxy.close()


def test_fault_of_ours(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody has thought of keeps no end from its record, and no target from its place."""

    def fail(*_: object) -> bool:
        raise KeyError("Id")

    with monkeypatch.context() as patch:
        patch.setattr(AioConfiguration, "has_beside", lambda *_: False)
        patch.setattr("borg_pull.aio.flow.is_unread", fail)
        patch.setattr("borg_pull.aio.runs.is_unread", fail)
        runs, what = wanted(host)
        outcome = runs.run(what, lambda _job: None)
        assert "not put back yet: unexpected KeyError: 'Id'" in str(outcome.error)
        assert len(host.records("action_complete")) == 1
        assert not settle(host)
    assert settle(host)
    assert target(host) == "first"
    assert os.listdir(host.aio.data).count("configuration.json") == 1
