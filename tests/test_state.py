"""A client's own directory: who may hold a lock, and what is left behind by whom."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from borg_pull.errors import BusyError, ConfigurationError, SystemRefusedError
from borg_pull.source.state import (
    Claim,
    claim,
    find_own_directory,
    note,
    own_directory,
    places,
    prepare,
    release,
)
from borg_pull.trust import Trust
from tests.harness.wait import until

TRUST = Trust(enforced=False, uid=os.getuid())
NOTE = "create since 2026-11-21T00:00:00Z, pid 1, session s"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    directory = tmp_path / "home/locks/luna"
    (tmp_path / "home").mkdir(mode=0o700)
    prepare(_to(directory), TRUST)
    return directory


def _to(directory: Path) -> list[str]:
    return [str(directory.parent), str(directory)]


def held(state: Path, repository: str = "/r", text: str = NOTE) -> Claim:
    found = claim(str(state), repository)
    try:
        note(found, text)
    except SystemRefusedError:
        os.close(found.descriptor)
        raise
    return found


def test_what_is_missing_is_made_for_the_account_alone(state: Path) -> None:
    for directory in (state.parent, state):
        assert directory.stat().st_mode & 0o7777 == 0o700
    prepare(_to(state), TRUST)


def test_a_home_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SystemRefusedError, match=r"cannot create .*: No such file"):
        prepare(_to(tmp_path / "home/locks/luna"), TRUST)


@pytest.mark.parametrize("name", ["locks", "locks/luna"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_stands_in_the_way_is_named(tmp_path: Path, name: str, kind: str) -> None:
    home = tmp_path / "home"
    path = home / name
    path.parent.mkdir(parents=True)
    if kind == "file":
        path.touch()
    else:
        (tmp_path / "elsewhere").mkdir()
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match=f"{name} is not a directory"):
        prepare(_to(home / "locks/luna"), TRUST)


def _bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as planted, contextlib.chdir(path.parent):
        planted.bind(path.name)


def test_a_socket_bound_in_the_way_goes(tmp_path: Path) -> None:
    """sshd binds one wherever a client that may forward says, before its victim's first run."""
    (tmp_path / "locks").mkdir()
    _bind(tmp_path / "locks/luna")
    prepare(_to(tmp_path / "locks/luna"), TRUST)
    lock, report = map(Path, places(str(tmp_path / "locks/luna"), "/r"))
    _bind(lock)
    _bind(report)
    release(held(tmp_path / "locks/luna"), ended=True)
    assert lock.is_file()
    assert not report.exists()


class TestOwnDirectory:
    """`own_directory`, whose name no other client can know."""

    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        (tmp_path / "clients").mkdir(mode=0o700)
        return tmp_path / "clients/luna"

    def test_it_is_made_once(self, directory: Path) -> None:
        assert find_own_directory(str(directory)) is None
        made = own_directory(str(directory), TRUST)
        assert own_directory(str(directory), TRUST) == made
        assert find_own_directory(str(directory)) == made
        assert re.fullmatch(f"{re.escape(str(directory))}/[0-9a-f]{{32}}", made)
        for path in (directory, Path(made)):
            assert path.stat().st_mode & 0o7777 == 0o700
        assert os.listdir(directory.parent) == ["luna"]

    def test_each_has_another_name(self, directory: Path) -> None:
        names = {
            Path(own_directory(str(directory.parent / client), TRUST)).name
            for client in ("luna", "nova")
        }
        assert len(names) == 2

    def test_what_was_planted_is_not_taken_for_it(self, directory: Path) -> None:
        _bind(directory)
        made = Path(own_directory(str(directory), TRUST))
        assert made.is_dir()
        # A name before all others, of the right form.
        _bind(directory / ("0" * 32))
        assert own_directory(str(directory), TRUST) == str(made)

    def test_in_a_directory_that_is_there_already(self, directory: Path) -> None:
        directory.mkdir(mode=0o700)
        _bind(directory / ("0" * 32))
        made = Path(own_directory(str(directory), TRUST))
        assert made.parent == directory
        assert own_directory(str(directory), TRUST) == str(made)

    def test_first_requests_at_once_find_the_same(self, directory: Path) -> None:
        at_once = threading.Barrier(8)

        def found(_: int) -> str:
            at_once.wait()
            return own_directory(str(directory), TRUST)

        with ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(found, range(8)))) == 1
        assert len(os.listdir(directory)) == 1
        assert os.listdir(directory.parent) == ["luna"]

    @pytest.mark.parametrize("kind", ["file", "link"])
    def test_what_stands_in_the_way_is_named(self, directory: Path, kind: str) -> None:
        if kind == "file":
            directory.touch()
        else:
            directory.symlink_to(directory.parent)
        with pytest.raises(ConfigurationError, match="luna is not a directory"):
            own_directory(str(directory), TRUST)

    def test_without_a_place_for_it(self, tmp_path: Path) -> None:
        with pytest.raises(SystemRefusedError, match=r"cannot create .*: No such file"):
            own_directory(str(tmp_path / "clients/luna"), TRUST)


def test_one_holder_at_a_time(state: Path) -> None:
    first = held(state)
    with pytest.raises(BusyError, match=r"under way \(create since .* pid 1") as caught:
        held(state)
    assert caught.value.exit_code == 75
    release(first, ended=True)
    release(held(state), ended=True)


def test_a_trailing_slash_is_the_same_repository_and_another_name_is_not(state: Path) -> None:
    first = held(state, "/r")
    with pytest.raises(BusyError):
        held(state, "/r/")
    others = [held(state, "/r2"), held(state, "/é"), held(state, "/r/2")]
    for one in (first, *others):
        release(one, ended=True)


def test_a_holder_without_a_note_yet(state: Path) -> None:
    first = held(state)
    os.ftruncate(first.descriptor, 0)
    with pytest.raises(BusyError, match="just starting"):
        held(state)
    release(first, ended=True)


def test_released_means_no_note_and_no_report(state: Path) -> None:
    first = held(state)
    assert first.interrupted is None
    assert Path(first.report_path).stat().st_mode & 0o777 == 0o600
    assert Path(first.report_path).stat().st_size == 0
    release(first, ended=True)
    assert not Path(first.report_path).exists()
    again = held(state)
    assert again.interrupted is None
    release(again, ended=True)


def test_released_after_the_report_was_taken(state: Path) -> None:
    first = held(state)
    Path(first.report_path).unlink()
    release(first, ended=True)
    release(held(state), ended=True)


def test_the_report_is_a_new_file_each_time(state: Path) -> None:
    """A wrap that outlived its run must not write into the next one's."""
    first = held(state)
    old = os.open(first.report_path, os.O_WRONLY)
    os.close(first.descriptor)  # as if killed
    again = held(state)
    os.write(old, b"late\n")
    os.close(old)
    assert Path(again.report_path).read_bytes() == b""
    release(again, ended=True)


def test_a_planted_report_is_replaced(state: Path, tmp_path: Path) -> None:
    first = held(state)
    path = Path(first.report_path)
    release(first, ended=True)
    target = tmp_path / "target"
    target.write_text("untouched")
    path.symlink_to(target)
    again = held(state)
    assert path.is_file()
    assert not path.is_symlink()
    assert target.read_text() == "untouched"
    release(again, ended=True)


HOLDER = """
import os, sys, time
from borg_pull.source.state import claim, note
held = claim(sys.argv[1], "/r")
note(held, sys.argv[2])
print("held", flush=True)
time.sleep(1000)
"""


@pytest.fixture
def holder(state: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(state), NOTE], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_killed_holder_gives_the_lock_back_and_leaves_its_note(
    state: Path, holder: subprocess.Popen[str]
) -> None:
    with pytest.raises(BusyError):
        held(state)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    found = held(state)
    assert found.interrupted == NOTE
    release(found, ended=True)


def _locks(pid: int) -> list[Path]:
    found: list[Path] = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.append(link.readlink())
    return [target for target in found if target.suffix == ".lock"]


def test_the_lock_is_not_inherited(state: Path) -> None:
    first = held(state)
    child = subprocess.Popen(["/bin/sleep", "1000"], close_fds=False)
    try:
        # The parent may go on a moment before the kernel closes what is closed on exec.
        until(
            lambda: (
                Path(f"/proc/{child.pid}/comm").read_text() == "sleep\n" and not _locks(child.pid)
            ),
            seconds=10,
            what="the child to be sleep and to have nothing of ours",
        )
        release(first, ended=True)
        release(held(state), ended=True)
    finally:
        child.kill()
        child.wait()


def test_a_lock_that_is_a_link(state: Path, tmp_path: Path) -> None:
    first = held(state)
    release(first, ended=True)
    (lock,) = state.glob("*.lock")
    lock.unlink()
    target = tmp_path / "target"
    target.write_text("untouched")
    lock.symlink_to(target)
    with pytest.raises(ConfigurationError, match="is a symbolic link") as caught:
        held(state)
    assert caught.value.exit_code == 78
    assert target.read_text() == "untouched"


@pytest.mark.parametrize("kind", ["directory", "fifo"])
def test_a_lock_that_is_no_file(state: Path, kind: str) -> None:
    release(held(state), ended=True)
    (lock,) = state.glob("*.lock")
    lock.unlink()
    if kind == "directory":
        lock.mkdir()
    else:
        os.mkfifo(lock)
    with pytest.raises(SystemRefusedError, match=r"Is a directory|Illegal seek"):
        held(state)


def test_no_room_for_the_note(state: Path) -> None:
    """A full disk shows as a write that fails; here a limit on file sizes does the same."""
    os.close(held(state).descriptor)  # as if killed
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(SystemRefusedError, match="cannot write to"):
            held(state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    # The lock is free again, and that the earlier run was killed is not forgotten.
    found = held(state)
    assert found.interrupted == NOTE
    release(found, ended=True)


def test_a_shorter_note_leaves_nothing_of_a_longer_one(state: Path) -> None:
    os.close(held(state, text=NOTE * 3).descriptor)
    os.close(held(state, text="short").descriptor)
    found = held(state)
    assert found.interrupted == "short"
    release(found, ended=True)


def test_a_claim_that_fails_gives_the_lock_back(state: Path) -> None:
    first = held(state)
    report = Path(first.report_path)
    release(first, ended=True)
    report.mkdir()
    with pytest.raises(SystemRefusedError, match="cannot write to"):
        held(state)
    report.rmdir()
    (lock,) = state.glob("*.lock")
    with lock.open("r+") as file:

        def free() -> bool:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        until(free, seconds=5, what="the lock to be free")
