"""A companion that is killed, wherever it is: one end on record, and AIO's target put back.

It is killed just after the journal has a state, which is before the state's effect, and so also
after the effect of the one before.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from borg_pull.aio.flow import Pace
from borg_pull.aio.journal import Journal
from borg_pull.aio.policy import load_for
from borg_pull.aio.runs import Runs, Wanted, plan_of_action
from borg_pull.audit import new_session
from tests.aio.host import Host
from tests.aio.stand_in_aio import BACKUP
from tests.harness.disk import Disk
from tests.harness.wait import until

pytestmark = pytest.mark.needs_root

SINCE_1: dict[str, Any] = {"from": 1}
QUICK = Pace(poll=0.05, look=0.2, reach=2.0)


def common() -> dict[str, Any]:
    """A request of luna's."""
    asked = {"client": "luna", "key": None, "address": None, "port": None, "pid": os.getpid()}
    return asked | {"session": new_session()}


def wanted(host: Host, action: str = "away") -> tuple[Runs, Wanted]:
    policy = load_for(str(host.config), None)
    plan = plan_of_action(policy.actions[action])
    return Runs(policy, QUICK), Wanted(plan=plan, action=action, target=None, common=common())


def run_away(host: Host) -> None:
    runs, what = wanted(host)
    runs.run(what, lambda _job: None)


def die_when(
    host: Host,
    has: dict[str, Any],
    work: Callable[[Host], object] = run_away,
    *,
    must_run_script: bool = False,
) -> None:
    """Do it in a process that dies when the journal has all of this."""
    child = os.fork()
    if child == 0:
        write = Journal.write

        def write_and_die(self: Journal, entry: dict[str, Any]) -> None:
            write(self, entry)
            if all(entry.get(key) == value or value is ... for key, value in has.items()) and (
                has.keys() <= entry.keys()
            ):
                if must_run_script:
                    until(host.aio.calls, seconds=20, what="the script")
                os.kill(os.getpid(), signal.SIGKILL)

        Journal.write = write_and_die  # type: ignore[method-assign]
        try:
            work(host)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, "it has not come that far"


def settled(host: Host) -> None:
    """Have the next companion finish it, as its service does again and again."""
    runs = Runs(load_for(str(host.config), None), QUICK)
    until(runs.settle, seconds=30, what="the end of what was left")


@pytest.mark.parametrize(
    "has",
    [
        {"state": "preflight"},
        {"state": "switch-target"},
        {"state": "switch-target", "previous": ...},
        {"state": "run"},
        {"state": "run", "program": ...},
        {"state": "watch"},
        {"state": "verdict"},
        {"state": "health"},
        {"state": "restore-target"},
        {"state": "done"},
    ],
    ids=lambda has: "-".join(map(str, [has["state"], *list(has)[1:]])),
)
def test_killed(host: Host, has: dict[str, Any]) -> None:
    before = host.aio.read()
    die_when(host, has)
    assert host.records("action_complete") == []
    settled(host)
    (start,), (complete,) = host.records("action_start"), host.records("action_complete")
    assert complete["session"] == start["session"]
    assert (complete["client"], complete["job"]) == ("luna", start["job"])
    assert complete["result"] == "unknown"
    assert f"killed in the state {has['state']}" in complete["error"]
    assert host.aio.read() == before
    assert host.journal() is None
    head = Runs(load_for(str(host.config), None)).jobs.head(start["job"])
    assert head is not None
    assert (head["status"], head["result"]) == ("finished", "unknown")
    # The host is free for the next one.
    settled(host)
    assert len(host.records("action_complete")) == 1


def test_killed_before_anything_is_on_record(host: Host) -> None:
    die_when(host, {"state": "accepted"})
    settled(host)
    assert host.records() == []
    assert host.journal() is None


def test_killed_between_record_and_journal(host: Host) -> None:
    """The end is on record once, although the journal does not know of it."""
    die_when(host, {"completed": True})
    entry = host.journal()
    assert entry is not None
    Journal(str(host.state)).write(entry | {"completed": False})
    settled(host)
    (complete,) = host.records("action_complete")
    assert complete["result"] == "success"


def test_target_waits_for_the_script(host: Host) -> None:
    """AIO's script has not read its target yet, so the previous one is not put back before."""
    host.aio.turn("apache-down")
    die_when(host, {"state": "watch"}, must_run_script=True)
    runs = Runs(load_for(str(host.config), None), QUICK)
    assert not runs.settle()
    (complete,) = host.records("action_complete")
    assert complete["result"] == "unknown"
    assert host.aio.read()["borg_backup_host_location"] == f"{host.aio.root}/second"
    host.aio.release("apache-down")
    settled(host)
    assert host.aio.read()["borg_backup_host_location"] == f"{host.aio.root}/first"
    until(lambda: len(host.aio.archives("second")) == 1, seconds=20, what="its backup")
    assert len(host.records("action_complete")) == 1


def test_service_settles_at_its_start_and_refuses_meanwhile(host: Host) -> None:
    host.aio.turn("apache-down")
    die_when(host, {"state": "watch"}, must_run_script=True)
    host.start()
    until(lambda: host.records("action_complete"), seconds=20, what="the end on record")
    busy = host.ask("run", action="nightly", detach=False)
    assert busy.exit == 75
    host.aio.release("apache-down")
    until(lambda: host.journal() is None, seconds=30, what="the target to be put back")
    assert host.aio.read()["borg_backup_host_location"] == f"{host.aio.root}/first"


def test_runner_killed_under_the_service(host: Host) -> None:
    """Whoever follows it is told; the service finishes it by itself."""
    host.start()
    host.aio.turn("hold")
    watcher = host.asking("run", action="away", detach=False)
    until(
        lambda: host.aio.daemon.client.containers(filters={"name": BACKUP}),
        seconds=20,
        what="the backup container",
    )
    runner = host.runner()
    assert runner is not None
    runner.send(signal.SIGKILL)
    out, _ = watcher.communicate(timeout=20)
    assert b'"exit":2' in out.splitlines()[-1]
    until(lambda: host.journal() is None, seconds=20, what="the service to settle it")
    (complete,) = host.records("action_complete")
    assert complete["result"] == "unknown"
    assert host.aio.read()["borg_backup_host_location"] == f"{host.aio.root}/first"
    # The backup itself goes on.
    host.aio.release("hold")
    until(lambda: len(host.aio.archives("second")) == 1, seconds=20, what="its backup")


def test_reboot(host: Host) -> None:
    """Nothing runs any more; the target is put back although the engine is not there yet."""
    die_when(host, {"state": "restore-target"})
    host.aio.daemon.remove_containers()
    settled(host)
    assert host.aio.read()["borg_backup_host_location"] == f"{host.aio.root}/first"


def test_end_that_could_not_be_recorded(host: Host) -> None:
    """It is recorded by the next companion, with what is known of it."""
    host.aio.turn("hold")
    host.start()
    answer = host.ask("run", action="nightly", detach=True)
    job = answer.only("job")["job_id"]
    until(lambda: (host.journal() or {}).get("state") == "watch", seconds=20, what="the watch")
    kept = host.log.rename(host.log.with_suffix(".kept"))
    host.log.mkdir()
    host.aio.release("hold")
    told = host.ask("job", job=job, follow=True, **SINCE_1)
    assert told.exit == 73
    host.log.rmdir()
    kept.rename(host.log)
    until(lambda: host.journal() is None, seconds=20, what="the record")
    (complete,) = host.records("action_complete")
    assert (complete["job"], complete["result"]) == (job, "success")


def test_disk_full_during_a_run(host: Host) -> None:
    """The journal and the job's file cannot grow; the run goes on, and its end is on record."""
    host.state.mkdir(mode=0o700)
    disk = Disk(host.state)
    try:
        host.start()
        host.aio.turn("hold")
        assert host.ask("run", action="away", detach=True).exit == 0
        until(
            lambda: host.aio.daemon.client.containers(filters={"name": BACKUP}),
            seconds=20,
            what="the backup container",
        )
        disk.fill()
        host.aio.release("hold")
        until(lambda: host.journal() is None, seconds=40, what="the end")
        (complete,) = host.records("action_complete")
        assert (complete["result"], complete["target_restored"]) == ("success", True)
        assert host.aio.read()["borg_backup_host_location"] == f"{host.aio.root}/first"
        refused = host.ask("run", action="away", detach=False)
        assert (refused.exit, "free some space" in refused.end["hint"]) == (71, True)
        assert len(host.records("action_start")) == 1
    finally:
        host.stop(signal.SIGKILL)
        disk.unmount()


def test_journal_that_cannot_be_read(host: Host) -> None:
    """Nobody can know what was begun: nothing runs until an admin has looked."""
    host.state.mkdir(mode=0o700)
    (host.state / "journal.json").write_text("{")
    done = host.run("run", "nightly")
    assert (done.returncode, "then remove the file" in done.stderr) == (78, True)
    assert host.aio.calls() == []
