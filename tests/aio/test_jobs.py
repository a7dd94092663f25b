"""Jobs: bounded in size, number and age, and readable whatever a crash has torn."""

from __future__ import annotations

import os
import threading
import time
import tracemalloc
from pathlib import Path

import pytest

from borg_pull.aio import jobs as jobs_module
from borg_pull.aio.jobs import Jobs
from borg_pull.audit import new_session


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "jobs").mkdir()
    return tmp_path


def run(
    jobs: Jobs, action: str = "nightly", client: str | None = "luna", result: str | None = "success"
) -> str:
    """A job that ran; None: and whose end is not told."""
    job = new_session()
    events = jobs.create(job, {"client": client, "action": action, "kind": "backup"})
    if result is not None:
        events.add("result", result=result, exit=0, error=None, duration=1.0)
    events.close()
    time.sleep(0.002)  # another millisecond
    return job


def made(state: Path, keep: int = 3) -> tuple[Jobs, list[str]]:
    jobs = Jobs(str(state), keep=keep, keep_days=10)
    return jobs, [run(jobs) for _ in range(5)]


def test_the_oldest_make_room(state: Path) -> None:
    jobs, ids = made(state)
    assert {job["job_id"] for job in jobs.all()} == set(ids[2:])
    assert jobs.head(ids[0]) is None


def test_the_old_go(state: Path) -> None:
    jobs, ids = made(state, keep=100)
    long_ago = time.time() - 11 * 86400
    os.utime(state / f"jobs/{ids[1]}.jsonl", (long_ago, long_ago))
    jobs.ask_to_cancel(ids[1], "luna")
    jobs.create(new_session(), {"client": None}).close()
    assert jobs.head(ids[1]) is None
    assert jobs.cancelled_by(ids[1]) is None
    assert len(jobs.all()) == 5


def test_runs_of_one_client_remove_no_others(state: Path) -> None:
    """Threat: somebody runs an action often, to have another's failure forgotten. The control is
    `test_the_oldest_make_room`."""
    jobs = Jobs(str(state), keep=3, keep_days=10)
    failed = run(jobs, "away", "bob", "fail")
    own = [run(jobs) for _ in range(10)]
    assert {job["job_id"] for job in jobs.all()} == {failed, *own[-3:]}
    # Not even the client that ran it, by running another.
    failed_too = run(jobs, "weekly", result="fail")
    own = [run(jobs) for _ in range(10)]
    assert {job["job_id"] for job in jobs.all()} == {failed, failed_too, *own[-3:]}
    # Once it has run again, whoever had it run, the one before may go.
    run(jobs, "weekly", "bob")
    run(jobs)
    assert jobs.head(failed_too) is None


def test_one_that_has_not_ended_is_no_last_one(state: Path) -> None:
    jobs = Jobs(str(state), keep=1, keep_days=10)
    failed = run(jobs, "away", result="fail")
    running = run(jobs, "away", "bob", None)
    run(jobs)
    assert {job["job_id"] for job in jobs.all()} >= {failed, running}


def test_old_jobs_go_whatever_they_were(state: Path) -> None:
    jobs = Jobs(str(state), keep=3, keep_days=10)
    failed = run(jobs, "away", "bob", "fail")
    long_ago = time.time() - 11 * 86400
    os.utime(state / f"jobs/{failed}.jsonl", (long_ago, long_ago))
    run(jobs)
    assert jobs.head(failed) is None


def test_job_that_nobody_works_on_is_over(state: Path) -> None:
    open_: set[str] = set()
    jobs = Jobs(str(state), keep=3, keep_days=10, is_open=open_.__contains__)
    job = run(jobs, result=None)
    open_.add(job)
    assert (jobs.head(job) or {})["status"] == "running"
    open_.clear()
    head = jobs.head(job)
    assert head is not None
    assert (head["status"], head["result"], head["exit"]) == ("finished", "unknown", 2)
    assert head["ended"] >= head["created"]
    assert (head["hint"], head["duration"] >= 0) == ("see the audit log", True)


def test_job_that_ends_while_it_is_looked_at(state: Path) -> None:
    def ends(job: str) -> bool:
        jobs.resume(job).add("result", result="success", exit=0, error=None, duration=1.0)
        return False

    jobs = Jobs(str(state), keep=3, keep_days=10, is_open=ends)
    assert (jobs.head(run(jobs, result=None)) or {})["result"] == "success"


def test_file_without_a_head_makes_room(state: Path) -> None:
    jobs = Jobs(str(state), keep=3, keep_days=10)
    for content in ("", "{", '{"type":"event","number":1}\n'):
        (state / f"jobs/{new_session()}.jsonl").write_text(content)
    assert jobs.all() == []
    job = run(jobs)
    assert [path.stem for path in (state / "jobs").iterdir()] == [job]


def test_a_clock_that_was_ahead_hides_no_later_job(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, ids = Jobs(str(state), keep=9, keep_days=10), [new_session(), new_session()]
    now = time.time()
    for job, ahead, result in zip(ids, (365 * 86400, 0), ("success", "fail"), strict=True):
        monkeypatch.setattr("time.time", lambda ahead=ahead: now + ahead)
        events = jobs.create(job, {"client": "luna", "action": "a"})
        events.add("result", result=result, exit=0, error=None, duration=1.0)
        events.close()
    assert [one["result"] for one in jobs.all()] == ["fail", "success"]


def test_size_is_bounded_and_the_result_is_kept(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "MAX_OUTPUT_BYTES", 100_000)
    jobs, job = Jobs(str(state), keep=3, keep_days=10), new_session()
    events = jobs.create(job, {"client": None})
    for _ in range(1000):
        events.output("stderr", "x" * 5000)
    events.add("result", result="fail", exit=2, error="e", duration=1.0)
    assert (state / f"jobs/{job}.jsonl").stat().st_size < 110_000
    told = list(jobs.events(job, 1, follow=None))
    assert told[-2]["line"] == "[further output is not kept]"
    assert told[-1]["event"] == "result"
    head = jobs.head(job)
    assert head is not None
    assert (head["status"], head["error"]) == ("finished", "e")


def test_a_long_one_is_read_line_by_line(state: Path) -> None:
    """One process reads for each request that follows, and there may be many."""
    jobs, job = Jobs(str(state), keep=3, keep_days=10), new_session()
    events = jobs.create(job, {"client": None})
    for _ in range(3000):
        events.output("stderr", "x" * 2000)
    events.close()
    assert (state / f"jobs/{job}.jsonl").stat().st_size > 6_000_000
    tracemalloc.start()
    try:
        assert list(jobs.events(job, 10**6)) == []
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 1_000_000
    assert sum(1 for _ in jobs.events(job, 1)) == 3000


def test_torn_line(state: Path) -> None:
    jobs, job = Jobs(str(state), keep=3, keep_days=10), new_session()
    events = jobs.create(job, {"client": None})
    events.add("state", state="watch")
    events.close()
    with (state / f"jobs/{job}.jsonl").open("a") as file:
        file.write('{"type":"event","number":2,')
    events = jobs.resume(job)
    events.add("result", result="unknown", exit=2, error=None, duration=1.0)
    assert [event["number"] for event in jobs.events(job, 1, follow=None)] == [1, 2]
    assert (jobs.head(job) or {})["state"] == "watch"


def test_followed_until_nobody_works_on_it(state: Path) -> None:
    jobs, job = Jobs(str(state), keep=3, keep_days=10), new_session()
    events = jobs.create(job, {"client": None})
    alive = threading.Event()
    alive.set()
    told = jobs.events(job, 2, follow=alive.is_set, poll=0.01)
    events.add("state", state="preflight")
    events.add("state", state="run")
    assert next(told)["state"] == "run"
    alive.clear()
    assert list(told) == []


def test_file_of_another_name_is_no_job(state: Path) -> None:
    jobs = Jobs(str(state), keep=3, keep_days=10)
    with pytest.raises(ValueError, match="no job"):
        jobs.head("../../etc/passwd")
