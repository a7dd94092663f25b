"""The verdict: success with all of the evidence, and with nothing less."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from borg_pull.aio.configuration import keys_of
from borg_pull.aio.engine import Container
from borg_pull.aio.verdict import Seen, verdict

SUCCESS = "Backup finished successfully on 01.01.2026 - 00:00:00 (00 hours 00 minutes 01 seconds)."
CONTAINER = Container(
    id="c" * 64,
    name="nextcloud-aio-borgbackup",
    status="exited",
    running=False,
    started_at=101.0,
    finished_at=110.0,
    exit_code=0,
    out_of_memory=False,
    health=None,
    told={"BORG_MODE": "backup", "BORG_REMOTE_REPO": "", "BORGBACKUP_HOST_LOCATION": "/backup"},
)
SEEN = Seen(
    kind="backup",
    began=100.0,
    before=("b" * 64, 50.0),
    name="nextcloud-aio-borgbackup",
    has_run=True,
    container=CONTAINER,
    log=["Compacting", SUCCESS, ""],
    errors=["Compacting", SUCCESS, ""],
    target=keys_of(host_location="/backup", remote_repo=None),
    has_initialised=True,
)


def test_all_of_the_evidence() -> None:
    found = verdict(SEEN)
    assert (found.result, found.error, found.hint) == ("success", None, None)
    assert found.evidence["success_line"] is True
    assert found.evidence["target"] == "/backup"


@pytest.mark.parametrize(
    ("container", "result", "said"),
    [
        (None, "unknown", "vanished before it had told how it ended"),
        ({"started_at": None}, "unknown", "vanished"),
        ({"started_at": 99.0}, "unknown", "started before AIO's script was, by the clock"),
        ({"id": "b" * 64, "started_at": 50.0}, "unknown", "vanished"),
        ({"running": True, "finished_at": None, "exit_code": None}, "unknown", "has not ended"),
        ({"exit_code": 1}, "fail", "exit code 1"),
        ({"exit_code": 137, "out_of_memory": True}, "fail", "ran out of memory"),
        ({"exit_code": 137}, "fail", "code 137, killed by signal 9 (out of memory?): Backup"),
        ({"exit_code": 143}, "fail", "exit code 143, killed by signal 15: Backup"),
        ({"told": {}}, "unknown", "does not say what it did, or where"),
        ({"told": {"BORG_MODE": "backup"}}, "unknown", "does not say what it did, or where"),
        (
            {"told": {"BORGBACKUP_HOST_LOCATION": "/backup"}},
            "unknown",
            "does not say what it did, or where",
        ),
        ({"told": {"BORG_MODE": "check"}}, "fail", "no backup but a check"),
        ({"told": {"BORG_MODE": "restore"}}, "fail", "no backup but a restore"),
        (
            {"told": {"BORGBACKUP_HOST_LOCATION": "/other"}},
            "fail",
            "went to /other, not to /backup",
        ),
        ({"told": {"BORG_REMOTE_REPO": "ssh://a@b:22/c"}}, "fail", "went to ssh://***@b:22/c"),
    ],
)
def test_less_is_no_success(container: dict[str, Any] | None, result: str, said: str) -> None:
    changed = None if container is None else replace(CONTAINER, **container)
    found = verdict(replace(SEEN, container=changed))
    assert found.result == result
    assert said in str(found.error)


@pytest.mark.parametrize(
    "log", [[], [""], ["Starting the backup..."], [SUCCESS, "However a Nextcloud update failed."]]
)
def test_log_that_does_not_end_with_success(log: list[str]) -> None:
    found = verdict(replace(SEEN, log=log))
    assert (found.result, found.evidence["success_line"]) == ("unknown", False)


@pytest.mark.parametrize(
    ("container", "said"),
    [
        (None, "AIO started no backup: there is no container nextcloud-aio-borgbackup"),
        ({"started_at": None}, "AIO started no backup"),
        ({"id": "b" * 64, "started_at": 50.0}, "AIO started no backup"),
    ],
)
def test_none_was_started(container: dict[str, Any] | None, said: str) -> None:
    changed = None if container is None else replace(CONTAINER, **container)
    found = verdict(replace(SEEN, container=changed, has_run=False))
    assert (found.result, found.error) == ("fail", said)


def test_failure_without_a_word() -> None:
    failed = replace(CONTAINER, exit_code=137)
    found = verdict(replace(SEEN, container=failed, log=[], errors=["", " "]))
    error = "the backup failed: exit code 137, killed by signal 9 (out of memory?)"
    assert (found.result, found.error) == ("fail", error)


def test_refused_target_asks_for_its_disk_first() -> None:
    failed = replace(CONTAINER, exit_code=1)
    found = verdict(replace(SEEN, container=failed, errors=["delete borg.config to ..."]))
    assert str(found.hint).startswith("is the target's disk mounted")
