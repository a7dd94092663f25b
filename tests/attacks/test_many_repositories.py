"""A client that thinks up ever new repositories leaves a bounded number of files behind.

Threat: a leaked key (A) sends one request after another, each naming a repository of its own. Each
takes a lock, and a lock is a file. The files that nobody needs are removed once there are many, and
that must never let two requests run on one repository: the lock of a run under way stays, and who
opened a lock just before it was removed does not take what it holds for the lock.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from borg_pull.errors import BusyError
from borg_pull.source import state
from borg_pull.source.state import MAX_LOCKS, Claim, claim, note, release
from tests.harness.site import Site

NOTE = "create since 2026-11-21T00:00:00Z, pid 1, session s"


def taken(directory: str, repository: str) -> Claim:
    held = claim(directory, repository)
    note(held, NOTE)
    return held


def ran(directory: Path, repository: str) -> None:
    release(taken(str(directory), repository), ended=True)


def locks(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir() if path.suffix == ".lock"}


def lock_of(directory: Path, repository: str) -> str:
    return Path(state.places(str(directory), repository)[0]).name


def test_the_number_of_locks_is_bounded(tmp_path: Path) -> None:
    most = 0
    for number in range(3 * MAX_LOCKS):
        ran(tmp_path, f"/r{number}")
        most = max(most, len(locks(tmp_path)))
    assert most == MAX_LOCKS
    assert {path.suffix for path in tmp_path.iterdir()} == {".lock"}


def test_what_somebody_needs_stays(tmp_path: Path) -> None:
    """A run under way, and the note of one that was killed: the next one is to record its end."""
    held = taken(str(tmp_path), "/held")
    killed = taken(str(tmp_path), "/killed")
    os.close(killed.descriptor)
    for number in range(2 * MAX_LOCKS):
        ran(tmp_path, f"/r{number}")
    assert {lock_of(tmp_path, "/held"), lock_of(tmp_path, "/killed")} <= locks(tmp_path)
    assert Path(held.report_path).exists()
    assert Path(killed.report_path).exists()
    with pytest.raises(BusyError):
        taken(str(tmp_path), "/held")
    again = taken(str(tmp_path), "/killed")
    assert again.interrupted == NOTE
    release(again, ended=True)
    release(held, ended=True)


def test_few_locks_are_let_be(tmp_path: Path) -> None:
    """The control: a client with honest repositories loses none."""
    for number in range(MAX_LOCKS):
        ran(tmp_path, f"/r{number}")
    before = locks(tmp_path)
    for number in range(MAX_LOCKS):
        ran(tmp_path, f"/r{number}")
    assert locks(tmp_path) == before


def test_what_was_planted_beside_them_hurts_nobody(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("")
    directory = tmp_path / "locks"
    directory.mkdir()
    (directory / "a.lock").mkdir()
    (directory / "b.lock").symlink_to(elsewhere)
    os.mkfifo(directory / "c.lock")
    for number in range(2 * MAX_LOCKS):
        ran(directory, f"/r{number}")
    assert elsewhere.exists()
    assert (directory / "a.lock").is_dir()
    assert len(locks(directory)) <= MAX_LOCKS


def test_a_lock_removed_between_opening_and_locking_is_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran(tmp_path, "/r")
    path = state.places(str(tmp_path), "/r")[0]
    real, removals = fcntl.flock, [state._remove_unless_held]

    def flock(descriptor: int, operation: int) -> None:
        if removals:
            # Another request makes room at this very moment.
            removals.pop()(path)
            assert not os.path.exists(path)
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    held = taken(str(tmp_path), "/r")
    assert not removals
    assert os.fstat(held.descriptor).st_ino == os.stat(path).st_ino
    with pytest.raises(BusyError):
        taken(str(tmp_path), "/r")
    release(held, ended=True)


def test_who_removes_a_lock_keeps_it_until_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran(tmp_path, "/r")
    path = state.places(str(tmp_path), "/r")[0]
    real = os.unlink
    tried: list[Claim | None] = []

    def unlink(target: str) -> None:
        if target == path and not tried:
            tried.append(None)
            with pytest.raises(BusyError):
                taken(str(tmp_path), "/r")
        real(target)

    monkeypatch.setattr(os, "unlink", unlink)
    state._remove_unless_held(path)
    assert tried
    assert not os.path.exists(path)


# Each holds one of a few locks for a moment and leaves a mark there that only one may leave.
CROWD = """
import os, random, sys
from borg_pull.errors import BusyError
from borg_pull.source import state

directory, rounds, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
state.MAX_LOCKS = 2
random = random.Random(seed)
held = 0
for _ in range(rounds):
    name = str(random.randrange(5))
    try:
        claim = state.claim(directory + "/locks", "/" + name)
        state.note(claim, "create since x")
    except BusyError:
        continue
    held += 1
    mark = os.open(directory + "/" + name, os.O_CREAT | os.O_EXCL)
    os.close(mark)
    os.unlink(directory + "/" + name)
    state.release(claim, ended=True)
print(held)
"""


def test_a_crowd_that_makes_room_all_the_time_never_shares_a_lock(tmp_path: Path) -> None:
    (tmp_path / "locks").mkdir()
    rounds = 1500
    crowd = [
        subprocess.Popen(
            [sys.executable, "-c", CROWD, str(tmp_path), str(rounds), str(seed)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(3)
    ]
    for process in crowd:
        said, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        # The control: most get the lock they ask for.
        assert int(said) > rounds / 2
    assert len(locks(tmp_path / "locks")) <= 5


@pytest.mark.builds("pairs")
def test_through_a_real_source_each_request_is_answered(site: Site) -> None:
    """With the directory full of other repositories' locks a backup runs as ever."""
    data = site.source.tree()
    site.allow(paths=[str(data)])
    repository = site.repository()
    assert site.pull(f"create {repository.path} a {data}", repository).exit == 0
    directory = site.source.home / "locks/luna"
    (kept,) = directory.glob("*.lock")
    for number in range(MAX_LOCKS):
        lock = directory / f"{number:016x}.lock"
        lock.write_text("\n")
        site.source.give(lock)
    # Not a copy of the first, which borg would take for it.
    other = site.peer().repository("other", initialised=False)
    other.init()
    assert site.pull(f"create {other.path} a {data}", other).exit == 0
    assert len(list(directory.iterdir())) == 1
    assert not kept.exists()
    assert site.pull(f"create {repository.path} b {data}", repository).exit == 0
