"""The flow on a real engine, against every way in which AIO's daily backup is odd."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from borg_pull.aio import flow
from borg_pull.aio.engine import Engine, Origin
from borg_pull.aio.flow import Flow, Outcome, Pace, Plan, _lines
from borg_pull.aio.jobs import Jobs
from borg_pull.aio.journal import prepare
from borg_pull.aio.texts import Secrets
from borg_pull.aio_policy import AioSettings, Target
from borg_pull.audit import new_session
from tests.aio.proxy import EXEC, INSPECT, LIST, LOGS, Proxy
from tests.aio.stand_in_aio import BACKUP, MASTER, WWW_DATA, StandIn
from tests.harness.disk import Disk
from tests.harness.wait import until

pytestmark = pytest.mark.needs_root

QUICK = Pace(poll=0.05, look=0.2, reach=2.0)


class Bench:
    """Runs flows against a stand-in, and keeps what they told."""

    def __init__(self, aio: StandIn) -> None:
        self.aio = aio
        self.state = aio.root / "state"
        prepare(str(self.state))
        self.jobs = Jobs(str(self.state), keep=10, keep_days=10)
        self.journal: dict[str, Any] = {}
        self.job = new_session()
        self.cancelled: str | None = None

    def target(self, place: str) -> Target:
        return Target(name=place, remote_repo=None, host_location=str(self.aio.root / place))

    def run(self, **changed: Any) -> Outcome:
        limit = changed.pop("health_timeout", 5)
        engine = changed.pop("engine", self.aio.daemon.address)
        configuration = changed.pop("configuration", self.aio.configuration)
        plan: dict[str, Any] = {
            "kind": "backup",
            "target": None,
            "restore_after": False,
            "stop_containers": True,
            "start_containers": True,
            "automatic_updates": False,
            "stop_timeout": 10,
            "timeout": 30,
        }
        settings = AioSettings(
            mastercontainer=MASTER,
            borgbackup_container=BACKUP,
            watchtower_container="nextcloud-aio-watchtower",
            apache_container="nextcloud-aio-apache",
            configuration_file=str(configuration),
            database_dump_dir=str(self.aio.root / "dump"),
            engine=engine,
            socket="/nowhere",
            state_dir=str(self.state),
            health_timeout=limit,
            keep_jobs=10,
            keep_days=10,
        )
        events = self.jobs.create(self.job, {"client": None})
        under_test = Flow(
            Plan(**(plan | changed)),
            settings,
            Engine(engine),
            events,
            self.journal.update,
            lambda: self.cancelled,
            QUICK,
        )
        return under_test.run()

    @contextmanager
    def running(self, **changed: Any) -> Iterator[Callable[[], Outcome]]:
        """A run in the background; what is handed out waits for its outcome."""
        outcomes: list[Outcome] = []
        thread = threading.Thread(target=lambda: outcomes.append(self.run(**changed)))
        thread.start()

        def end() -> Outcome:
            thread.join(60)
            return outcomes[0]

        try:
            yield end
        finally:
            for knob in self.aio.knobs.iterdir():
                knob.unlink()
            thread.join(60)

    def wait_for_output(self, text: str) -> None:
        until(
            lambda: (
                self.jobs.head(self.job) is not None
                and any(text in event["line"] for event in self.events("output"))
            ),
            seconds=20,
            what=text,
        )

    def events(self, kind: str) -> list[dict[str, Any]]:
        if self.jobs.head(self.job) is None:
            return []  # it has not begun
        found = self.jobs.events(self.job, 1, follow=None)
        return [event for event in found if event["event"] == kind]

    def states(self) -> list[str]:
        told = [event["state"] for event in self.events("state")]
        return [state for place, state in enumerate(told) if told[place - 1 : place] != [state]]

    def output(self, origin: str) -> list[str]:
        return [event["line"] for event in self.events("output") if event["origin"] == origin]


def as_aio_writes(text: bytes) -> bytes:
    return json.dumps(json.loads(text), indent=4).encode()


@pytest.fixture
def bench(aio: StandIn) -> Bench:
    return Bench(aio)


def test_backup(bench: Bench) -> None:
    outcome = bench.run()
    assert (outcome.result, outcome.exit, outcome.error) == ("success", 0, None)
    assert len(bench.aio.archives("first")) == 1
    # No argument: with "stop" it would only have stopped everything.
    assert bench.aio.calls() == ["0 |10|110"]
    assert bench.states() == [
        "preflight", "switch-target", "run", "watch", "verdict", "health", "done",
    ]  # fmt: skip
    assert "making the backup" in bench.output("daily-backup.sh")
    assert any(line.startswith("Backup finished") for line in bench.output(BACKUP))
    told = {event["name"] for event in bench.events("container")}
    assert {MASTER, BACKUP, "nextcloud-aio-apache"} <= told


def test_not_set_up(bench: Bench) -> None:
    """AIO's script would end with 0 and have done nothing."""
    bench.aio.change(wasStartButtonClicked=False)
    outcome = bench.run()
    assert (outcome.result, outcome.exit) == ("fail", 2)
    assert "not set up" in str(outcome.error)
    assert bench.aio.calls() == []


def test_no_target(bench: Bench) -> None:
    bench.aio.change(borg_backup_host_location="")
    outcome = bench.run()
    assert (outcome.result, outcome.error) == ("fail", "AIO has no backup target")


def test_mastercontainer_stopped(bench: Bench) -> None:
    bench.aio.daemon.client.stop(MASTER, timeout=0)
    outcome = bench.run()
    assert (outcome.result, outcome.error) == ("fail", f"the container {MASTER} does not run")


@pytest.mark.parametrize(
    ("mode", "what"), [("restore", "a restore"), ("backup", "a backup or check")]
)
def test_backup_container_runs_already(bench: Bench, mode: str, what: str) -> None:
    bench.aio.change(**{"backup-mode": mode})
    bench.aio.container(BACKUP, bench.aio.idle)
    outcome = bench.run(target=bench.target("second"), restore_after=True)
    assert (outcome.result, outcome.exit) == ("fail", 75)
    assert outcome.error == f"AIO runs {what} of its own"
    assert bench.aio.daemon.client.inspect_container(BACKUP)["State"]["Running"]
    assert bench.aio.calls() == []


def test_script_runs_already(bench: Bench) -> None:
    bench.aio.turn("apache-down")
    client = bench.aio.daemon.client
    program = client.exec_create(MASTER, ["/daily-backup.sh"], environment=["DAILY_BACKUP=1"])
    client.exec_start(program["Id"], detach=True)
    until(bench.aio.calls, seconds=10, what="AIO's own run")
    outcome = bench.run()
    assert (outcome.exit, outcome.error) == (75, "AIO's daily backup runs already")
    assert len(bench.aio.calls()) == 1


def test_exit_0_with_failed_backup(bench: Bench) -> None:
    bench.aio.turn("fail")
    outcome = bench.run()
    assert (outcome.result, outcome.exit, outcome.exit_code) == ("fail", 2, 0)
    assert outcome.error == "the backup failed: exit code 1: Backup failed!"
    assert outcome.evidence["exit_code"] == 1


def test_backup_container_never_started(bench: Bench) -> None:
    bench.aio.turn("never-started")
    # One of yesterday's must not be taken for tonight's.
    bench.aio.container(BACKUP, ["sh", "-c", "echo Backup finished successfully on yesterday"])
    bench.aio.daemon.client.wait(BACKUP, timeout=20)
    outcome = bench.run()
    assert (outcome.result, outcome.exit_code) == ("fail", 0)
    assert outcome.error == "AIO started no backup"


def test_success_line_missing(bench: Bench) -> None:
    bench.aio.turn("mute")
    outcome = bench.run()
    assert (outcome.result, outcome.exit) == ("unknown", 2)


def test_exit_code_of_the_script_proves_nothing(bench: Bench) -> None:
    bench.aio.turn("exit", "3")
    outcome = bench.run()
    assert (outcome.result, outcome.exit, outcome.exit_code) == ("success", 0, 3)


def test_mastercontainer_replaced_by_an_update(bench: Bench) -> None:
    """The script dies with it, and is run once more with the same settings."""
    bench.aio.turn("update")
    outcome = bench.run(automatic_updates=True)
    assert (outcome.result, outcome.error) == ("success", None)
    assert bench.aio.calls() == ["0 |10|111"] * 2
    assert len(bench.aio.archives("first")) == 1
    assert bench.states().count("run") == 2


def test_update_that_replaces_nothing(bench: Bench) -> None:
    outcome = bench.run(automatic_updates=True)
    assert outcome.result == "success"
    assert len(bench.aio.calls()) == 1


def test_mastercontainer_dies_without_an_update(bench: Bench) -> None:
    """The backup it began goes on, and counts; nobody starts Nextcloud again, which is said."""
    bench.aio.turn("hold")
    with bench.running(health_timeout=1) as end:
        bench.wait_for_output("waiting for the backup")
        bench.aio.daemon.client.remove_container(MASTER, force=True)
        bench.aio.release("hold")
        outcome = end()
    assert (outcome.result, outcome.exit) == ("success", 1)
    assert "not up and healthy: nextcloud-aio-apache" in str(outcome.error)
    assert bench.states().count("run") == 1


def test_mastercontainer_replaced_before_the_script(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not that one which goes: the script ends by itself, and is not run again."""
    switch = Flow._switch_target

    def replaced(self: Flow) -> None:
        switch(self)
        bench.aio.daemon.client.remove_container(MASTER, force=True)
        bench.aio.mastercontainer()

    monkeypatch.setattr(Flow, "_switch_target", replaced)
    outcome = bench.run(automatic_updates=True)
    assert (outcome.result, outcome.error) == ("success", None)
    assert len(bench.aio.calls()) == 1
    assert len(bench.aio.archives("first")) == 1


@contextmanager
def clock_set_back(monkeypatch: pytest.MonkeyPatch, seconds: float) -> Iterator[Callable[[], None]]:
    """Ours is ahead of the engine's until what is handed out sets it back."""
    ahead = [seconds]
    plain = time.time
    with monkeypatch.context() as patch:
        patch.setattr("borg_pull.aio.flow.time.time", lambda: plain() + ahead[0])
        yield lambda: ahead.__setitem__(0, 0.0)


@pytest.mark.parametrize("is_set_back", [True, False])
def test_clock_set_back_in_a_run(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, is_set_back: bool
) -> None:
    """The backup is waited for, and is one; when only the engine's clock is another, nobody can
    tell by it, and there is no success."""
    bench.aio.turn("hold")
    with clock_set_back(monkeypatch, 3600) as set_back, bench.running() as end:
        bench.wait_for_output("waiting for the backup")
        if is_set_back:
            set_back()
        time.sleep(1)
        assert bench.states()[-1] == "watch"
        bench.aio.release("hold")
        outcome = end()
    error = None
    if not is_set_back:
        error = "the container of the backup ended with 0, but its output not with success"
    assert (outcome.result, outcome.error) == ("success" if is_set_back else "unknown", error)


def test_clock_set_back_makes_no_success_of_an_older_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.aio.turn("never-started")
    bench.aio.container(BACKUP, ["sh", "-c", "echo Backup finished successfully on yesterday"])
    bench.aio.daemon.client.wait(BACKUP, timeout=20)
    with clock_set_back(monkeypatch, 3600) as set_back, bench.running() as end:
        bench.wait_for_output("the script begins")
        set_back()
        outcome = end()
    assert (outcome.result, outcome.error) == ("fail", "AIO started no backup")


@pytest.mark.parametrize("was_seen", [True, False])
def test_backup_container_that_is_not_there(bench: Bench, was_seen: bool) -> None:
    """One that was removed in mid-run may have made a backup; none of that name has made none."""
    bench.aio.turn("hold" if was_seen else "never-started")
    with bench.running() as end:
        if was_seen:
            until(
                lambda: any(
                    (event["name"], event["status"]) == (BACKUP, "running")
                    for event in bench.events("container")
                ),
                seconds=20,
                what="the backup container",
            )
            bench.aio.daemon.client.remove_container(BACKUP, force=True)
        outcome = end()
    if was_seen:
        error = "the container of the backup vanished before it had told how it ended"
        assert (outcome.result, outcome.error) == ("unknown", error)
    else:
        error = f"AIO started no backup: there is no container {BACKUP}"
        assert (outcome.result, outcome.error) == ("fail", error)
        assert "aio.borgbackup_container" in str(outcome.hint)


def test_no_such_mastercontainer(bench: Bench) -> None:
    bench.aio.daemon.client.remove_container(MASTER, force=True)
    outcome = bench.run()
    assert (outcome.result, outcome.error) == ("fail", f"there is no container {MASTER}")
    assert "aio.mastercontainer" in str(outcome.hint)


def test_engine_gone_at_the_start_of_the_script(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing has run, so that is no unknown end, and nothing waits for AIO's script."""
    switch = Flow._switch_target

    def gone(self: Flow) -> None:
        switch(self)
        self._engine = Engine("unix:///nowhere/docker.sock")

    monkeypatch.setattr(Flow, "_switch_target", gone)
    outcome = bench.run(target=bench.target("second"), restore_after=True)
    assert (outcome.result, outcome.exit, outcome.target_restored) == ("fail", 69, True)
    assert bench.aio.calls() == []


def test_check_is_followed_to_its_end(bench: Bench) -> None:
    """AIO's script returns while it still runs."""
    assert bench.run().result == "success"
    bench.job = new_session()
    bench.aio.turn("hold")
    with bench.running(kind="check") as end:
        bench.wait_for_output("the script ends")
        assert bench.aio.daemon.client.inspect_container(BACKUP)["State"]["Running"]
        time.sleep(0.5)
        assert bench.states()[-1] == "watch"
        bench.aio.release("hold")
        outcome = end()
    assert (outcome.result, outcome.error) == ("success", None)


def test_check_that_finds_errors(bench: Bench) -> None:
    assert bench.run().result == "success"
    bench.job = new_session()
    segment = max(
        (bench.aio.root / "first/borg/data/0").iterdir(), key=lambda path: path.stat().st_size
    )
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 0xFF
    segment.write_bytes(content)
    outcome = bench.run(kind="check")
    assert (outcome.result, outcome.evidence["exit_code"]) == ("fail", 1)
    assert "errors were found" in str(outcome.error)


def test_apache_never_up(bench: Bench) -> None:
    """AIO's script waits for ever; we do not. The target is put back only when it has ended: until
    then it would read what is put back."""
    bench.aio.turn("apache-down")
    outcome = bench.run(timeout=2, target=bench.target("second"), restore_after=True)
    assert (outcome.result, outcome.exit, outcome.is_settled) == ("timeout", 2, False)
    assert "still running, and left alone: AIO's script" in str(outcome.error)
    assert bench.aio.read()["borg_backup_host_location"] == str(bench.aio.root / "second")


def test_deadline_kills_no_backup(bench: Bench) -> None:
    bench.aio.turn("hold")
    outcome = bench.run(timeout=3, target=bench.target("second"), restore_after=True)
    assert (outcome.result, outcome.is_settled, outcome.target_restored) == ("timeout", True, True)
    assert f"AIO's script, {BACKUP}" in str(outcome.error)
    bench.aio.release("hold")
    client = bench.aio.daemon.client
    assert client.wait(BACKUP, timeout=20)["StatusCode"] == 0
    # It went where it was to go, although AIO has its own target again.
    assert len(bench.aio.archives("second")) == 1
    assert bench.aio.read()["borg_backup_host_location"] == str(bench.aio.root / "first")


def test_output_without_end_does_not_outrun_the_deadline(bench: Bench) -> None:
    bench.aio.turn("flood")
    began = time.monotonic()
    outcome = bench.run(timeout=2)
    assert outcome.result == "timeout"
    assert time.monotonic() - began < 15
    assert (bench.state / f"jobs/{bench.job}.jsonl").stat().st_size < 9 << 20


def test_log_without_end_is_not_told_without_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the backup container has written is not told for ever; what is not kept costs little."""
    masked: list[str] = []
    mask = Secrets.masked

    def counted(self: Secrets, line: str) -> str:
        masked.append(line)
        return mask(self, line)

    def endless(*_: object, **__: object) -> Iterator[tuple[Origin, bytes]]:
        while True:
            yield "stdout", b"x" * 50 + b"\n"

    monkeypatch.setattr(Engine, "follow", endless)
    monkeypatch.setattr(Secrets, "masked", counted)
    monkeypatch.setattr("borg_pull.aio.flow._LOG_SECONDS", 1)
    monkeypatch.setattr("borg_pull.aio.jobs.MAX_OUTPUT_BYTES", 20_000)
    outcome = bench.run(health_timeout=1)
    assert outcome.result == "success", outcome
    assert masked.count("x" * 50) < 200
    assert any("not kept" in line for line in bench.output(BACKUP))


def test_containers_that_do_not_come_back(bench: Bench) -> None:
    bench.aio.turn("apache-dies")
    outcome = bench.run(health_timeout=1)
    assert (outcome.result, outcome.exit) == ("success", 1)
    assert outcome.error == "not up and healthy: nextcloud-aio-apache (after 1 s)"


def test_lock_files_that_a_crash_left(bench: Bench) -> None:
    (bench.aio.data / "daily_backup_running").touch()
    (bench.aio.root / "dump/backup-is-running").touch()
    outcome = bench.run()
    assert outcome.result == "success"
    left = [event["left_behind"] for event in bench.events("state") if "left_behind" in event]
    assert left == ["daily_backup_running", "backup-is-running"]


def test_repository_that_a_script_has_locked(bench: Bench) -> None:
    (bench.aio.root / "first/borg").mkdir()
    (bench.aio.root / "first/borg/aio-lockfile").touch()
    outcome = bench.run()
    assert outcome.result == "fail"
    assert "aio-lockfile makes AIO refuse" in str(outcome.error)
    assert (bench.aio.root / "first/borg/aio-lockfile").exists()
    assert bench.aio.calls() == []


def test_target_of_the_action(bench: Bench) -> None:
    """Switched for the run, and put back; nothing else in the file is another afterwards."""
    before, status = bench.aio.configuration.read_bytes(), bench.aio.configuration.stat()
    bench.aio.turn("hold")
    with bench.running(target=bench.target("second"), restore_after=True) as end:
        bench.wait_for_output("waiting for the backup")
        assert bench.aio.read()["borg_backup_host_location"] == str(bench.aio.root / "second")
        bench.aio.release("hold")
        outcome = end()
    assert (outcome.result, outcome.exit, outcome.target_restored) == ("success", 0, True)
    assert len(bench.aio.archives("second")) == 1
    assert bench.aio.archives("first") == []
    assert bench.aio.configuration.read_bytes() == as_aio_writes(before)
    now = bench.aio.configuration.stat()
    assert (now.st_uid, now.st_gid, now.st_mode) == (status.st_uid, status.st_gid, status.st_mode)
    assert now.st_uid == WWW_DATA


def test_target_that_stays(bench: Bench) -> None:
    outcome = bench.run(target=bench.target("second"))
    assert (outcome.result, outcome.target_restored) == ("success", None)
    assert bench.aio.read()["borg_backup_host_location"] == str(bench.aio.root / "second")


def test_target_is_put_back_after_a_failure(bench: Bench) -> None:
    bench.aio.turn("fail")
    outcome = bench.run(target=bench.target("second"), restore_after=True)
    assert (outcome.result, outcome.target_restored) == ("fail", True)
    assert bench.aio.read()["borg_backup_host_location"] == str(bench.aio.root / "first")


@pytest.mark.parametrize("is_there", [True, False])
def test_disk_that_is_not_mounted(bench: Bench, is_there: bool) -> None:
    """The engine would make the directory, and AIO a repository in it, on whatever disk that is;
    with the same target on its disk for a control."""
    place = bench.aio.root / "second"
    if not is_there:
        place.rmdir()
    outcome = bench.run(target=bench.target("second"), restore_after=True)
    if is_there:
        assert (outcome.result, outcome.error) == ("success", None)
        return
    assert (outcome.result, outcome.exit) == ("fail", 2)
    assert outcome.error == f"{place} is not there; is its disk mounted?"
    assert not place.exists()
    assert bench.aio.calls() == []
    assert bench.aio.read()["borg_backup_host_location"] == str(bench.aio.root / "first")


def test_repository_that_is_not_there(bench: Bench) -> None:
    """AIO, which has made one, makes no second one; nothing is stopped for that, or deleted."""
    assert bench.run().result == "success"
    assert (bench.aio.data / "borg.config").exists()
    bench.job = new_session()
    outcome = bench.run(target=bench.target("second"), restore_after=True)
    assert (outcome.result, outcome.exit) == ("fail", 2)
    error = f"no repository in {bench.aio.root}/second/borg; is its disk mounted?"
    assert outcome.error == error
    assert str(outcome.hint).startswith("is the target's disk mounted")
    assert len(bench.aio.calls()) == 1
    assert (bench.aio.data / "borg.config").exists()
    # With its disk it is there again.
    bench.job = new_session()
    assert bench.run().result == "success"


def test_target_that_aio_refuses(bench: Bench) -> None:
    """A second repository is not initialised while borg.config is there; nothing is deleted."""
    (bench.aio.data / "borg.config").touch()
    (bench.aio.root / "far/borg").mkdir()
    with listening(b"SSH-2.0-test\r\n") as port:
        url = f"ssh://borg@127.0.0.1:{port}/far/borg"
        target = Target(name="far", remote_repo=url, host_location=None)
        outcome = bench.run(target=target, restore_after=True)
    assert outcome.result == "fail"
    assert "delete borg.config" in str(outcome.hint)
    assert (bench.aio.data / "borg.config").exists()
    assert outcome.target_restored is True


def test_other_keys_rewritten_meanwhile(bench: Bench) -> None:
    bench.aio.turn("hold")
    with bench.running(target=bench.target("second"), restore_after=True) as end:
        bench.wait_for_output("waiting for the backup")
        bench.aio.change(timezone="UTC", added={"by": "AIO"})
        bench.aio.release("hold")
        outcome = end()
    assert (outcome.result, outcome.target_restored) == ("success", True)
    now = bench.aio.read()
    assert (now["timezone"], now["added"]) == ("UTC", {"by": "AIO"})
    assert now["borg_backup_host_location"] == str(bench.aio.root / "first")


def test_target_changed_meanwhile(bench: Bench) -> None:
    """A backup that went elsewhere is no success, and what somebody else has set stays."""
    third = bench.aio.root / "elsewhere"
    changed = bench.aio.read() | {"borg_backup_host_location": str(third)}
    bench.aio.turn("rewritten", json.dumps(changed, indent=4))
    outcome = bench.run(target=bench.target("second"), restore_after=True)
    assert (outcome.result, outcome.target_restored) == ("fail", False)
    assert f"it went to {third}, not to {bench.aio.root}/second" in str(outcome.error)
    assert "changed by somebody else, and stays" in str(outcome.error)
    assert bench.aio.read()["borg_backup_host_location"] == str(third)


def test_disk_full_while_switching(bench: Bench) -> None:
    place = bench.aio.root / "small"
    place.mkdir()
    disk = Disk(place)
    try:
        copy = place / "configuration.json"
        copy.write_bytes(bench.aio.configuration.read_bytes())
        disk.fill()
        before = copy.read_bytes()
        outcome = bench.run(configuration=copy, target=bench.target("second"), restore_after=True)
        assert (outcome.result, outcome.exit) == ("fail", 71)
        assert "No space left on device" in str(outcome.error)
        assert copy.read_bytes() == before
        assert sorted(path.name for path in place.iterdir()) == ["ballast", "configuration.json"]
        assert bench.aio.calls() == []
        assert outcome.target_restored is True
    finally:
        disk.unmount()


@contextmanager
def listening(greeting: bytes) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            try:
                while True:
                    connection, _ = listener.accept()
                    connection.sendall(greeting)
                    connection.close()
            except OSError:
                return

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def test_remote_target(bench: Bench) -> None:
    with listening(b"SSH-2.0-test\r\n") as port:
        url = f"ssh://borg@127.0.0.1:{port}/far/borg"
        target = Target(name="far", remote_repo=url, host_location=None)
        outcome = bench.run(target=target, restore_after=True)
    assert (outcome.result, outcome.error) == ("success", None)
    assert len(bench.aio.archives("far")) == 1
    assert outcome.evidence["target"] == f"ssh://***@127.0.0.1:{port}/far/borg"
    assert bench.aio.read()["borg_remote_repo"] == ""


@pytest.mark.parametrize("greeting", [None, b"HTTP"])
def test_remote_target_out_of_reach(bench: Bench, greeting: bytes | None) -> None:
    with listening(greeting or b"") as port:
        url = f"ssh://borg@127.0.0.1:{port if greeting else 1}/far/borg"
        target = Target(name="far", remote_repo=url, host_location=None)
        before = bench.aio.configuration.read_bytes()
        outcome = bench.run(target=target, restore_after=True)
    assert (outcome.result, outcome.exit) == ("fail", 2)
    assert "does not answer" in str(outcome.error) or "no sshd" in str(outcome.error)
    assert bench.aio.configuration.read_bytes() == before
    assert bench.aio.calls() == []


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "a..example", ".example"])
def test_name_that_cannot_be_one(bench: Bench, host: str) -> None:
    target = Target(name="far", remote_repo=f"ssh://borg@{host}:22/x", host_location=None)
    outcome = bench.run(target=target, restore_after=True)
    assert (outcome.result, outcome.exit) == ("fail", 2)
    assert bench.aio.calls() == []


def test_name_of_very_many_addresses(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them answers; the run waits for the first few, and for all of them together."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        with contextlib.ExitStack() as full:
            for _ in range(4):  # so that what comes after them is not taken any more
                waiting = full.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(address)
            one = (socket.AF_INET, socket.SOCK_STREAM, 6, "", address)
            monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [one] * 4000)
            url = "ssh://borg@far.example:22/x"
            target = Target(name="far", remote_repo=url, host_location=None)
            began = time.monotonic()
            outcome = bench.run(target=target, restore_after=True)
    assert time.monotonic() - began < 10
    assert (outcome.result, outcome.exit) == ("fail", 2)
    assert "port 22 of far.example does not answer" in str(outcome.error)
    assert bench.aio.calls() == []


def test_second_address_is_tried_when_the_first_is_out_of_reach(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where a name has an IPv6 address, and the network no IPv6."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as full,
        socket.create_server(("127.0.0.1", 0)) as answers,
        contextlib.ExitStack() as waiting,
    ):
        for _ in range(4):
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        places = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", server.getsockname())
            for server in (full, answers)
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: places)

        def greet() -> None:
            connection, _ = answers.accept()
            with connection:
                connection.sendall(b"SSH-2.0-x\r\n")

        threading.Thread(target=greet, daemon=True).start()
        assert flow._greeting(("far.example", 22), 4) == b"SSH-"


def test_volume_that_the_engine_mounts_when_it_is_used(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of its content is to be seen before; that is no missing repository."""
    assert bench.run().result == "success"
    assert (bench.aio.data / "borg.config").exists()
    place = bench.aio.root / "nextcloud_aio_backupdir/_data"
    place.mkdir(parents=True)
    monkeypatch.setattr(flow, "_volume_beside", lambda *_: str(place))
    target = Target(name="volume", remote_repo=None, host_location=flow.BACKUP_VOLUME)
    bench.job = new_session()
    bench.run(target=target, restore_after=True)
    assert len(bench.aio.calls()) == 2, "AIO's script was asked"


def test_name_server_that_does_not_answer(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    is_over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: is_over.wait(60) and [])
    target = Target(name="far", remote_repo="ssh://borg@far.example:22/x", host_location=None)
    outcome = bench.run(target=target, restore_after=True)
    is_over.set()
    assert "port 22 of far.example does not answer: no answer in 4 s" in str(outcome.error)


def test_engine_gone_and_back(bench: Bench) -> None:
    bench.aio.turn("hold")
    with bench.running() as end:
        bench.wait_for_output("waiting for the backup")
        bench.aio.daemon.kill()
        until(
            lambda: any(event["status"] == "gone" for event in bench.events("container")),
            seconds=10,
            what="the engine to be missed",
        )
        bench.aio.daemon.start()
        bench.aio.release("hold")
        outcome = end()
    assert outcome.result == "success", outcome


def test_engine_not_there(bench: Bench) -> None:
    outcome = bench.run(engine="unix:///nowhere/docker.sock")
    assert (outcome.result, outcome.exit) == ("fail", 69)
    assert "unix:///nowhere/docker.sock does not answer: no such file" in str(outcome.error)


def test_engine_that_hangs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes connections and answers none; nothing waits for it without end."""
    monkeypatch.setattr("borg_pull.aio.engine.SECONDS", 1)
    path = bench.aio.root / "hangs.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(8)
        outcome = bench.run(engine=f"unix://{path}")
    assert (outcome.result, outcome.exit) == ("fail", 69)
    assert "does not answer: " in str(outcome.error)
    assert bench.aio.calls() == []


def test_proxy_that_permits_what_is_needed(bench: Bench) -> None:
    proxy = Proxy(
        bench.aio.root / "proxy.sock", bench.aio.daemon.socket, (LIST, INSPECT, LOGS, EXEC)
    )
    outcome = bench.run(engine=proxy.address)
    proxy.close()
    assert (outcome.result, outcome.error) == ("success", None)
    assert any(line.startswith("Backup finished") for line in bench.output(BACKUP))


@pytest.mark.parametrize(
    ("permitted", "refused"), [((LIST, INSPECT, LOGS), "exec in"), ((INSPECT, EXEC), "list")]
)
def test_proxy_that_refuses(bench: Bench, permitted: tuple[str, ...], refused: str) -> None:
    proxy = Proxy(bench.aio.root / "proxy.sock", bench.aio.daemon.socket, permitted)
    outcome = bench.run(engine=proxy.address, target=bench.target("second"), restore_after=True)
    proxy.close()
    assert (outcome.result, outcome.exit) == ("fail", 69)
    assert f"does not permit to {refused}" in str(outcome.error)
    assert "permit list, inspect, logs and exec" in str(outcome.hint)
    assert bench.aio.read()["borg_backup_host_location"] == str(bench.aio.root / "first")


def test_output_is_told_with_its_origin_and_without_secrets(bench: Bench) -> None:
    lines = ("the password is of-aio-itself", "ssh://borg:word@host/x", "\x1b[31mred", "x" * 5000)
    bench.aio.turn("stderr", "\n".join(lines))
    assert bench.run().result == "success"
    first, second, third, fourth = bench.output("stderr")
    assert first == "the password is ***"
    assert "word" not in second
    assert third == "\\x1b[31mred"
    assert fourth == "x" * 2000


def test_lines_are_whole_wherever_they_were_cut_up() -> None:
    stream: list[tuple[Origin, bytes]] = [
        ("stdout", b"on"),
        ("stderr", b"two\nthr"),
        ("stdout", b"e\r\n" + b"x" * 6000),
        ("stdout", b"x" * 6000),
        ("stdout", b"x\n\nlast"),
        ("stderr", b"ee\xff"),
    ]
    assert list(_lines(iter(stream))) == [
        ("stderr", "two"),
        ("stdout", "one"),
        ("stdout", "x" * 8000),
        ("stdout", ""),
        ("stdout", "last"),
        ("stderr", "three\\xff"),
    ]


def test_cancelled_before_anything_happened(bench: Bench) -> None:
    bench.cancelled = "client luna"
    outcome = bench.run(target=bench.target("second"), restore_after=True)
    assert (outcome.result, outcome.error) == ("fail", "cancelled by client luna")
    assert bench.aio.calls() == []


def test_cancelled_just_before_the_script_starts(bench: Bench) -> None:
    """The word comes while the state is still one that can be cancelled; the disk is slow."""

    class Slow(dict[str, Any]):
        def update(self, *noted: Any, **_more: Any) -> None:
            if {"state": "run"} in noted:
                bench.cancelled = "client luna"
            super().update(*noted)

    bench.journal = Slow()
    outcome = bench.run(target=bench.target("second"), restore_after=True)
    assert (outcome.result, outcome.error) == ("fail", "cancelled by client luna")
    assert outcome.target_restored is True
    assert bench.aio.calls() == []
    # The control is the same without a word.
    bench.cancelled, bench.job, bench.journal = None, new_session(), {}
    assert bench.run(target=bench.target("second"), restore_after=True).result == "success"


def test_cancelled_while_containers_come_up(bench: Bench) -> None:
    bench.aio.turn("apache-dies")
    with bench.running(health_timeout=60) as end:
        until(lambda: bench.states()[-1:] == ["health"], seconds=20, what="the state health")
        bench.cancelled = "client luna"
        outcome = end()
    assert (outcome.result, outcome.exit) == ("success", 1)


def test_container_that_does_not_stop_is_told_of(bench: Bench) -> None:
    bench.aio.turn("apache-down")
    with bench.running(stop_timeout=1) as end:
        bench.wait_for_output("waiting for apache")
        bench.aio.daemon.client.stop("nextcloud-aio-database", timeout=0)
        until(
            lambda: any(
                "not stopped" in str(event["error"]) for event in bench.events("container")
            ),
            seconds=10,
            what="word of those that still run",
        )
        bench.aio.release("apache-down")
        assert end().result == "success"
    slow = [event["name"] for event in bench.events("container") if event["error"] is not None]
    assert slow == ["nextcloud-aio-apache", "nextcloud-aio-nextcloud"]
