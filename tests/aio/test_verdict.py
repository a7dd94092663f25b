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
        (None, "fail", "started no backup"),
        ({"started_at": None}, "fail", "started no backup"),
        ({"started_at": 99.0}, "fail", "started no backup"),
        ({"id": "b" * 64, "started_at": 50.0}, "fail", "started no backup"),
        ({"running": True, "finished_at": None, "exit_code": None}, "unknown", "has not ended"),
        ({"exit_code": 1}, "fail", "exit code 1"),
        ({"exit_code": 137, "out_of_memory": True}, "fail", "ran out of memory"),
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


def test_environment_that_says_nothing_is_no_evidence_against() -> None:
    """Another version of AIO may name its variables otherwise."""
    found = verdict(replace(SEEN, container=replace(CONTAINER, told={})))
    assert (found.result, found.evidence["target"]) == ("success", None)
