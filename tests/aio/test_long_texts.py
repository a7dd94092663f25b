"""Threat: a text that AIO, the engine or a container chose is too long for the audit log.

The end of the run would then never be on record, and nobody could run anything any more. The
control is the next run, to a target of its own, which succeeds.
"""

from __future__ import annotations

import pytest

from borg_pull.aio.flow import Outcome, _worse
from borg_pull.aio.journal import Journal
from borg_pull.aio.policy import load_for
from borg_pull.aio.runs import Runs, set_target
from borg_pull.aio.texts import MAX_TARGET, MAX_TEXT, brief
from tests.aio.host import Host
from tests.aio.test_crash import common, die_when, settled, wanted

TOO_LONG = "x" * 1_200_000


@pytest.mark.needs_root
@pytest.mark.parametrize("host_name", ["127.0.0.1", TOO_LONG], ids=["path", "host"])
def test_target_of_aio(host: Host, host_name: str) -> None:
    host.aio.change(
        borg_remote_repo=f"ssh://u@{host_name}:1/{TOO_LONG}", borg_backup_host_location=""
    )
    runs, what = wanted(host, "nightly")
    assert runs.run(what, lambda _job: None).result == "fail"
    (complete,) = host.records("action_complete")
    assert complete["error"].startswith(f"target ssh://***@{host_name[:100]}")
    assert len(complete["error"]) <= MAX_TEXT
    assert host.journal() is None
    # It is the previous target of another run, and of target-set, too.
    for_set = host.aio.read()
    runs, what = wanted(host)
    outcome = runs.run(what, lambda _job: None)
    assert (outcome.result, outcome.target_restored) == ("success", True)
    assert host.aio.read() == for_set
    policy = load_for(str(host.config), None)
    set_target(policy, policy.targets["first"], common())
    assert len(host.records("action_start")[-1]["previous"]) == MAX_TARGET
    assert len(host.records("action_complete")) == 3
    assert host.journal() is None


@pytest.mark.needs_root
def test_journal_that_has_one(host: Host) -> None:
    """It was written before texts were bounded."""
    die_when(host, {"state": "done", "outcome": ...})
    entry = host.journal()
    assert entry is not None
    entry["outcome"] |= {"error": TOO_LONG, "hint": TOO_LONG}
    entry["told"]["target"] = TOO_LONG
    Journal(str(host.state)).write(entry)
    settled(host)
    (complete,) = host.records("action_complete")
    assert complete["error"] == "x" * (MAX_TEXT - 3) + "..."
    assert len(complete["target"]) == MAX_TEXT
    head = Runs(load_for(str(host.config), None)).jobs.head(entry["job"])
    assert head is not None
    assert (head["status"], len(head["error"])) == ("finished", MAX_TEXT)


def test_outcome_is_bounded() -> None:
    outcome = Outcome(
        result="fail",
        error=f"engine: {TOO_LONG}",
        hint=TOO_LONG,
        evidence={"target": TOO_LONG, "exit_code": 0},
        exit=2,
        exit_code=None,
        target_restored=None,
    )
    assert (len(str(outcome.error)), len(str(outcome.hint))) == (MAX_TEXT, MAX_TEXT)
    assert (len(str(outcome.evidence["target"])), outcome.evidence["exit_code"]) == (MAX_TEXT, 0)
    # What goes wrong afterwards is told all the same.
    worse = _worse(outcome, "the target is not put back")
    assert len(str(worse.error)) == MAX_TEXT
    assert str(worse.error).endswith("...; the target is not put back")


def test_brief_is_one_printable_line() -> None:
    assert brief("as it is, Zürich") == "as it is, Zürich"
    assert brief("a\nb\x1b[2J\ud800") == "a\\nb\\x1b[2J\\ud800"
    assert len(brief("\n" * 100, 10)) == 10
