"""Threat: what is told of jobs is not what became of them.

Somebody who may run an action has others' failures forgotten, or leaves jobs that run for ever.
"""

from __future__ import annotations

import os
import signal

import pytest

from borg_pull.aio import condition
from borg_pull.aio.cancelling import cancel
from borg_pull.aio.policy import load_for
from borg_pull.aio.runs import Runs
from borg_pull.aio.trail import ActionTrail
from borg_pull.audit import new_session
from borg_pull.errors import BusyError, SystemRefusedError
from tests.aio.host import Host
from tests.aio.test_crash import die_when, settled, wanted
from tests.harness.disk import Disk

pytestmark = pytest.mark.needs_root


def runs_of(host: Host) -> Runs:
    return Runs(load_for(str(host.config), None))


def test_quick_runs_hide_no_failure_of_another(host: Host) -> None:
    host.configure(aio="keep_jobs = 2")
    policy = load_for(str(host.config), None)
    events = Runs(policy).jobs.create(
        new_session(), {"client": "bob", "action": "away", "kind": "backup"}
    )
    events.add("result", result="fail", exit=2, error="no", duration=1.0)
    failure = 'borg_pull_aio_last_run_success{kind="backup",name="away"} 0.0'
    assert failure in condition.metrics(policy, Runs(policy))["text"]
    host.aio.change(wasStartButtonClicked=False)
    for _ in range(4):
        runs, what = wanted(host, "nightly")
        assert runs.run(what, lambda _job: None).result == "fail"
    assert failure in condition.metrics(policy, Runs(policy))["text"]
    clients = [job["client"] for job in Runs(policy).jobs.all()]
    assert clients == ["luna", "luna", "bob"]
    # The control: what it says is of the last run.
    host.aio.change(wasStartButtonClicked=True)
    runs, what = wanted(host)
    assert runs.run(what, lambda _job: None).result == "success"
    assert failure not in condition.metrics(policy, Runs(policy))["text"]


@pytest.mark.parametrize("room", [0, 4096, 8192])
def test_no_room_to_begin(host: Host, room: int) -> None:
    host.state.mkdir(mode=0o700)
    disk = Disk(host.state)
    try:
        runs, what = wanted(host)
        disk.fill(leave=room)
        try:
            assert runs.run(what, lambda _job: None).exit == SystemRefusedError.exit_code
        except SystemRefusedError:
            assert host.records() == []
        assert [job for job in runs.jobs.all() if job["status"] != "finished"] == []
        assert len(host.records("action_complete")) == len(host.records("action_start"))
        assert (host.journal(), host.aio.calls()) == (None, [])
        disk.empty()
        runs, what = wanted(host)
        assert runs.run(what, lambda _job: None).result == "success"
    finally:
        disk.unmount()


def test_killed_before_its_start_is_on_record(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    child = os.fork()
    if child == 0:
        try:
            monkeypatch.setattr(
                ActionTrail, "start", lambda *_all: os.kill(os.getpid(), signal.SIGKILL)
            )
            runs, what = wanted(host)
            runs.run(what, lambda _job: None)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert [job["status"] for job in runs_of(host).jobs.all()] == ["running"]
    settled(host)
    assert (runs_of(host).jobs.all(), host.records(), host.journal()) == ([], [], None)


@pytest.mark.parametrize("then", ["preflight", "run", "watch", None])
def test_cancelled_while_it_goes_on(
    host: Host, monkeypatch: pytest.MonkeyPatch, then: str | None
) -> None:
    """Whoever is told that a run is being cancelled has left word before the run looks for it."""
    runs, job = runs_of(host), new_session()
    states = iter(["switch-target", then])
    monkeypatch.setattr(runs, "state_of", lambda _job: next(states))
    if then in ("run", "watch"):
        with pytest.raises(BusyError, match=f"in the state {then}, which nothing may end"):
            cancel(runs, job, "client luna")
        # And the run does not take it for one that is meant for a later state.
        assert runs.jobs.cancelled_by(job) is None
    else:
        cancel(runs, job, "client luna")
        assert runs.jobs.cancelled_by(job) == "client luna"


def test_end_that_found_no_room_in_its_file(host: Host) -> None:
    """It is in the audit log, and the job says so rather than that it runs."""
    host.state.mkdir(mode=0o700)
    disk = Disk(host.state)
    try:
        die_when(host, {"state": "done", "outcome": ...})
        assert [job["status"] for job in runs_of(host).jobs.all()] == ["running"]
        (path,) = (host.state / "jobs").iterdir()
        disk.fill()
        with path.open("ab", buffering=0) as file:
            while True:
                try:
                    file.write(b"\n")
                except OSError:
                    break
        settled(host)
        (complete,) = host.records("action_complete")
        (job,) = runs_of(host).jobs.all()
        assert (complete["result"], complete["job"]) == ("success", job["job_id"])
        assert (job["status"], job["result"]) == ("finished", "unknown")
        assert job["hint"] == "see the audit log"
        shown = host.run("jobs")
        assert (shown.returncode, "could not be written" in shown.stdout) == (0, True)
        assert host.run("job", job["job_id"]).stderr == ""
    finally:
        disk.unmount()
