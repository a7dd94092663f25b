"""Pulls through the whole of it: real ssh, sshd, forced command, borg serve."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time

import pytest

from borg_pull.pull.ledger import Ledger
from borg_pull.pull.serve import Serving
from borg_pull.pull.stop import Stop
from tests.harness.sshd import make_key
from tests.harness.wait import until
from tests.pull.conftest import BackupServer

pytestmark = pytest.mark.builds("frozen")


def data_of(server: BackupServer, size: int = 1 << 20) -> str:
    """A tree on the source that may be pulled."""
    data = server.site.source.tree()
    server.site.source.file(data / "file", os.urandom(size))
    server.site.allow(paths=[str(data)])
    return str(data)


def last_error(server: BackupServer, job: str = "job") -> str:
    """What the ledger says went wrong in the last run."""
    run = server.ledger.last(job)
    assert run is not None
    assert run.outcome == "failure", run
    assert run.error is not None
    return run.error


def assert_clean(server: BackupServer) -> None:
    """Nothing of a run is left, here or there."""
    assert not list((server.directory / "runtime").iterdir())
    server.site.source.assert_nothing_left("luna")


def test_a_pull_succeeds_and_is_on_record(server: BackupServer) -> None:
    data = data_of(server)
    repository = server.repository()
    server.job(paths=[data])
    assert server.run() == "success", server.events
    run = server.ledger.last("job")
    assert run is not None
    assert (run.outcome, run.exit, run.borg_code, run.error) == ("success", 0, 0, None)
    assert [run.archive] == repository.archives()
    assert run.original_size is not None
    assert run.original_size >= 1 << 20
    assert run.files
    assert run.archive_id
    (complete,) = server.site.source.audit(event="complete", verb="create")
    assert run.session == complete["session"]
    assert_clean(server)


def test_what_hello_said_is_remembered(server: BackupServer) -> None:
    data = data_of(server)
    server.repository()
    server.job(paths=[data])
    assert server.run() == "success"
    assert server.run() == "success"
    assert len(server.site.source.audit(event="answered", verb="hello")) == 1


def test_a_source_that_changed_is_asked_again(server: BackupServer) -> None:
    data = data_of(server)
    server.repository()
    server.job(paths=[data])
    assert server.run() == "success"
    text = server.ledger.state("greeting:source")
    assert text is not None
    wrong = text.replace("luna", "nova")
    assert wrong != text
    server.ledger.set_state("greeting:source", wrong)
    assert server.run() == "success", server.events


def test_several_jobs_at_once_never_share_a_repository(server: BackupServer) -> None:
    data = data_of(server)
    server.repository("one")
    server.repository("two")
    for number in range(2):
        server.job(f"one-{number}", repository="one", paths=[data])
        server.job(f"two-{number}", repository="two", paths=[data])
    assert server.run() == "success", server.events
    running: set[str] = set()
    together = 0
    for event in server.events:
        repository = event["job"].partition("-")[0]
        if event["event"] == "run_start":
            assert repository not in running
            running.add(repository)
            together = max(together, len(running))
        elif event["event"] == "run_end":
            running.discard(repository)
    assert together == 2


def test_a_storage_group_bounds_what_runs_at_once(server: BackupServer) -> None:
    data = data_of(server)
    server.document["storage"] = {"disk": {"max_runs": 1}}
    for name in ("one", "two", "three"):
        server.repository(name, storage="disk")
        server.job(name, repository=name, paths=[data])
    assert server.run() == "success", server.events
    kinds = [event["event"] for event in server.events if event["event"] != "progress"]
    assert kinds == ["run_start", "run_end"] * 3


def test_a_refused_path_is_a_failure_in_the_source_s_words(server: BackupServer) -> None:
    data_of(server)
    server.repository()
    server.job(paths=["/etc/shadow"])
    assert server.run() == "failure"
    assert "/etc/shadow' is not allowed to client luna" in last_error(server)
    assert_clean(server)


def test_a_missing_path_is_a_failure(server: BackupServer) -> None:
    data = data_of(server)
    server.site.allow(paths=[data, f"{data}/gone"])
    server.repository()
    server.job(paths=[f"{data}/gone"])
    assert server.run() == "failure"
    assert "gone" in last_error(server)
    assert_clean(server)


def test_no_repository_is_a_failure(server: BackupServer) -> None:
    data = data_of(server)
    repository = server.repository()
    repository.path.rename(repository.path.with_name("moved"))
    server.job(paths=[data])
    assert server.run() == "failure"
    assert "does not exist" in last_error(server)
    repository.path.with_name("moved").rename(repository.path)
    assert server.run() == "success", server.events


def test_another_host_key_is_a_failure(server: BackupServer) -> None:
    data = data_of(server)
    server.repository()
    server.job(paths=[data])
    pins = server.directory / "known_hosts"
    honest = pins.read_text()
    kind, key, *_ = make_key(server.directory / "other").split()
    pins.write_text(f"{honest.split()[0]} {kind} {key}\n")
    assert server.run() == "failure"
    assert "THE HOST KEY OF SOURCE source HAS CHANGED" in last_error(server)
    pins.write_text(honest)
    assert server.run() == "success"


def test_an_unreachable_source_is_a_failure(server: BackupServer) -> None:
    data = data_of(server)
    server.repository()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        server.document["source"]["source"]["port"] = closed.getsockname()[1]
        server.job(paths=[data])
        assert server.run() == "failure"
    assert "refused" in last_error(server)


def test_the_deadline_ends_a_run(server: BackupServer) -> None:
    data = data_of(server)
    server.repository()
    slow = server.site.source.directory / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 1000\n")
    slow.chmod(0o755)
    whitelist = {"luna": {"paths": [data], "allow_unknown_repository": True}}
    server.site.source.write_whitelist(whitelist, runtime={"borg": str(slow)})
    server.document["source"]["source"] |= {
        "protocol": "original",
        "client": "luna",
        "socket_dir": str(server.site.source.socket_dir),
    }
    server.job(paths=[data], deadline="2s")
    assert server.run() == "failure"
    assert last_error(server) == "the deadline was reached"
    assert_clean(server)


def test_a_stop_ends_everything_and_the_next_run_succeeds(server: BackupServer) -> None:
    data = data_of(server, 64 << 20)
    repository = server.repository()
    server.repository("second")
    server.job(paths=[data])
    server.job("waiting", paths=[data])
    stop = Stop()
    batch = server.batch(stop)

    def end() -> None:
        until(
            lambda: any(event["event"] == "progress" for event in server.events),
            seconds=30,
            what="some progress",
        )
        stop.set("interrupted")
        batch.wake()

    ender = threading.Thread(target=end)
    ender.start()
    assert batch.run(server.tasks()) == "failure"
    ender.join()
    assert last_error(server) == "interrupted"
    assert last_error(server, "waiting") == "interrupted"
    assert not repository.locked()
    assert_clean(server)
    assert server.run() == "success", server.events


def test_a_busy_source_is_asked_again(
    server: BackupServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("borg_pull.pull.batch.FIRST_PAUSE", 0.2)
    data = data_of(server)
    repository = server.repository()
    peer = server.site.peer()
    server.job(paths=[data])
    with peer.listening(repository, hold_after=40) as listener:
        holder = peer.start(f"create {repository.path} held {data}", listener)
        listener.held()

        def free() -> None:
            until(
                lambda: any(event["event"] == "retry" for event in server.events),
                seconds=30,
                what="a retry",
            )
            listener.release()

        freeing = threading.Thread(target=free)
        freeing.start()
        assert server.run() == "success", server.events
        freeing.join()
        assert holder.wait().exit == 0
    retry = next(event for event in server.events if event["event"] == "retry")
    assert "another run for this repository is under way" in retry["reason"]
    assert len(repository.archives()) == 2


def test_a_repository_that_somebody_else_has_locked_is_waited_for(
    server: BackupServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("borg_pull.pull.batch.FIRST_PAUSE", 0.2)
    repository = server.repository()
    server.job(paths=[data_of(server)])
    holder = subprocess.Popen(
        [repository.borg, "with-lock", repository.path, "cat"],
        stdin=subprocess.PIPE,
        env=repository.environment(),
    )
    until(repository.locked, seconds=30, what="the lock")

    def free() -> None:
        until(
            lambda: any(event["event"] == "retry" for event in server.events),
            seconds=30,
            what="a retry",
        )
        holder.communicate()

    freeing = threading.Thread(target=free)
    freeing.start()
    assert server.run() == "success", server.events
    freeing.join()
    retry = next(event for event in server.events if event["event"] == "retry")
    assert f"repository {repository.path} is locked by " in retry["reason"]
    assert len(repository.archives()) == 1


def test_a_source_that_stays_busy_is_a_failure(
    server: BackupServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("borg_pull.pull.batch.FIRST_PAUSE", 0.2)
    data = data_of(server)
    repository = server.repository()
    peer = server.site.peer()
    server.job(paths=[data], retry_window="1s")
    with peer.listening(repository, hold_after=40) as listener:
        holder = peer.start(f"create {repository.path} held {data}", listener)
        listener.held()
        assert server.run() == "failure"
        assert "under way" in last_error(server)
        listener.release()
        assert holder.wait().exit == 0


def test_a_job_that_still_runs_is_skipped(server: BackupServer) -> None:
    data = data_of(server, 64 << 20)
    server.repository()
    server.job(paths=[data])
    first = server.batch()
    running = threading.Thread(target=lambda: None)
    stop = Stop()
    second = server.batch(stop)
    results: list[str] = []

    def overlap() -> None:
        until(
            lambda: any(event["event"] == "progress" for event in server.events),
            seconds=30,
            what="some progress",
        )
        # In life another process has it, with a connection of its own.
        second._ledger = Ledger(server.directory / "ledger.sqlite")
        results.append(second.run(server.tasks()))
        second._ledger.close()

    running = threading.Thread(target=overlap)
    running.start()
    assert first.run(server.tasks()) == "success"
    running.join()
    assert second.skipped == ["job"]
    assert [run.outcome for run in server.ledger.runs("job")] == ["skipped", "success"]


def test_an_archive_below_the_minimum_is_a_failure(server: BackupServer) -> None:
    data = data_of(server)
    server.repository()
    server.job(paths=[data], minimum_size="1 GiB")
    assert server.run() == "failure"
    assert "minimum_size" in last_error(server)


def test_a_shrunken_archive_is_a_warning(server: BackupServer) -> None:
    data = data_of(server)
    server.repository()
    server.job(paths=[data])
    assert server.run() == "success"
    os.truncate(f"{data}/file", 1000)
    assert server.run() == "warning"
    run = server.ledger.last("job")
    assert run is not None
    assert run.error is not None
    assert "shrank" in run.error


def test_only_the_ssh_it_started_may_connect(server: BackupServer) -> None:
    """Another process of the same user finds the socket: it is turned away, the pull goes on."""
    data = data_of(server)
    server.repository()
    server.job(paths=[data])
    turned_away = threading.Event()
    over = threading.Event()

    def intrude() -> None:
        runtime = server.directory / "runtime"
        while not over.is_set():
            for path in runtime.glob("run-*/s"):
                with socket.socket(socket.AF_UNIX) as intruder:
                    try:
                        intruder.connect(str(path))
                        intruder.settimeout(10)
                        if intruder.recv(1) == b"":
                            turned_away.set()
                            return
                    except OSError:
                        continue
            time.sleep(0.005)

    intruder = threading.Thread(target=intrude)
    intruder.start()
    assert server.run() == "success", server.events
    over.set()
    intruder.join()
    assert turned_away.is_set()


def test_borg_serve_is_confined_to_its_repository(server: BackupServer) -> None:
    """A borg serve that was taken over reads no other repository and writes nowhere else."""
    repository = server.repository()
    other = server.repository("other")
    evil = server.directory / "evil"
    evil.write_text(
        "#!/bin/sh\n"
        f"cat {other.path}/config && echo READ-OTHER\n"
        f"cat {repository.path}/config && echo READ-OWN\n"
        f"touch {other.path}/x && echo WROTE-OTHER\n"
        f"touch {repository.path}/x && echo WROTE-OWN\n"
    )
    evil.chmod(0o755)
    config = server.config()
    entry = config.repository["repository"].model_copy(update={"borg": evil})
    runtime = server.directory / "runtime"
    runtime.mkdir()
    with (
        (server.directory / "log").open("w+b") as log,
        Serving(entry, runtime, log, append_only=True) as serving,
        socket.socket(socket.AF_UNIX) as ssh,
    ):
        ssh.connect(str(serving.path))
        assert serving.accept(os.getpid())
        said = b""
        while block := ssh.recv(4096):
            said += block
    assert b"READ-OWN" in said
    assert b"WROTE-OWN" in said
    assert b"READ-OTHER" not in said
    assert b"WROTE-OTHER" not in said


def test_retention_and_check_follow_a_success(server: BackupServer) -> None:
    data = data_of(server)
    repository = server.repository()
    server.job(paths=[data], retention={"keep_last": 1}, check={"schedule": "yearly"})
    assert server.run() == "success", server.events
    assert server.run() == "success", server.events
    assert len(repository.archives()) == 1
    kinds = [run.kind for run in reversed(server.ledger.runs("job"))]
    assert kinds == ["create", "prune", "check", "create", "prune"]
    assert {run.outcome for run in server.ledger.runs("job")} == {"success"}


def test_a_vanished_archive_is_an_alarm_and_stops_retention(server: BackupServer) -> None:
    data = data_of(server)
    repository = server.repository()
    server.job(paths=[data], retention={"keep_last": 1})
    assert server.run() == "success", server.events
    (name,) = repository.archives()
    repository.run("delete", f"{repository.path}::{name}")
    assert server.run() == "failure"
    prune, create = server.ledger.runs("job", limit=2)
    assert (create.kind, create.outcome) == ("create", "success")
    assert (prune.kind, prune.outcome) == ("prune", "failure")
    assert prune.error is not None
    assert name in prune.error
