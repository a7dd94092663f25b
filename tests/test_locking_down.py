"""Who may lift which lockdown: a client its own, the host's admin every one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from borg_pull.errors import AuditError, BorgPullError, NotAllowedError
from borg_pull.lockdown import read
from borg_pull.locking_down import lock, unlock


class Host:
    def __init__(self, directory: Path) -> None:
        self.config = str(directory / "config.toml")
        self.records: list[tuple[str, Mapping[str, object]]] = []
        self.faults: list[BorgPullError] = []
        self.is_log_full = False

    def record(self, event: str, fields: Mapping[str, object]) -> None:
        if self.is_log_full:
            raise AuditError("full")
        self.records.append((event, fields))

    def lock(self, client: str | None, reason: str | None = "why") -> bool:
        return lock(
            self.config,
            by=client or "ann",
            client=client,
            reason=reason,
            kill=False,
            record=self.record,
            faults=self.faults,
        )

    def unlock(self, client: str | None) -> bool:
        by = client or "ann"
        return unlock(self.config, by=by, client=client, record=self.record, faults=self.faults)

    def owner(self) -> str | None:
        found = read(self.config)
        assert found is not None
        return found.client


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_client_lifts_its_own(host: Host) -> None:
    assert host.lock("luna")
    assert host.owner() == "luna"
    assert host.unlock("luna")
    assert read(host.config) is None
    assert [event for event, _ in host.records] == ["lockdown_on", "lockdown_off"]
    assert not host.faults


@pytest.mark.parametrize("locker", [None, "stella"])
def test_but_no_other(host: Host, locker: str | None) -> None:
    host.lock(locker)
    with pytest.raises(NotAllowedError):
        host.unlock("luna")
    assert host.owner() == locker
    assert len(host.records) == 1


def test_nor_does_it_take_one_over(host: Host) -> None:
    host.lock(None, "the admin's")
    assert not host.lock("luna", "another")
    found = read(host.config)
    assert found is not None
    assert (found.client, found.reason) == (None, "the admin's")
    with pytest.raises(NotAllowedError):
        host.unlock("luna")


def test_the_admin_takes_it_over_and_lifts_it(host: Host) -> None:
    host.lock("luna")
    assert not host.lock(None, None)
    found = read(host.config)
    assert found is not None
    assert (found.client, found.reason) == (None, "why")
    with pytest.raises(NotAllowedError):
        host.unlock("luna")
    assert host.unlock(None)


def test_the_admin_lifts_a_clients(host: Host) -> None:
    host.lock("luna")
    assert host.unlock(None)


def test_no_record_no_lifting(host: Host) -> None:
    host.lock("luna")
    host.is_log_full = True
    assert not host.unlock("luna")
    assert host.owner() == "luna"
    assert [type(fault) for fault in host.faults] == [AuditError]


def test_one_that_cannot_be_read_is_the_admins(host: Host, tmp_path: Path) -> None:
    (tmp_path / "lockdown").mkdir()
    with pytest.raises(NotAllowedError):
        host.unlock("luna")
