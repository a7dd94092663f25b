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


def made(state: Path, keep: int = 3) -> tuple[Jobs, list[str]]:
    jobs = Jobs(str(state), keep=keep, keep_days=10)
    ids = []
    for number in range(5):
        ids.append(new_session())
        events = jobs.create(ids[-1], {"client": "luna", "action": str(number)})
        events.add("result", result="success", exit=0, error=None, duration=1.0)
        events.close()
        os.utime(state / f"jobs/{ids[-1]}.jsonl", (time.time() + number, time.time() + number))
    return jobs, ids


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
