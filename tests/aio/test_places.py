"""Looking at a file system that answers nothing, as one whose host is gone."""

from __future__ import annotations

import ctypes
import fcntl
import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from borg_pull.aio.journal import flock
from borg_pull.aio.places import modes, place_of

pytestmark = pytest.mark.needs_root


@contextmanager
def dead(place: Path) -> Iterator[None]:
    """A file system of FUSE at ``place`` whose server reads nothing."""
    server = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        if libc.mount(b"dead", bytes(place), b"fuse", 0, options) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        yield
    finally:
        # Without its server all that wait for it are told so.
        os.close(server)
        subprocess.run(["/usr/bin/umount", "--lazy", place], check=False, capture_output=True)


def test_what_is_there(tmp_path: Path) -> None:
    odd = tmp_path / "a b\n%c"
    odd.write_text("x")
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "nowhere").symlink_to("/nowhere/at all")
    paths = [str(path) for path in (tmp_path, odd, tmp_path / "link", tmp_path / "nowhere")]
    found = modes([*paths, str(tmp_path / "none")], str(tmp_path), 20)
    assert [*found] == paths[:3]
    assert stat.S_ISDIR(found[paths[0]])
    assert stat.S_ISREG(found[paths[1]])
    assert stat.S_ISDIR(found[paths[2]])


@pytest.mark.parametrize("path", ["/a\0b", "/\ud800", "/" + "x" * 200_000])
def test_what_is_no_path(tmp_path: Path, path: str) -> None:
    with pytest.raises(OSError, match=r"it is no path|Argument list too long"):
        modes([path], str(tmp_path), 20)
    assert modes([str(tmp_path)], str(tmp_path), 20)


@pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="the kernel has no FUSE")
def test_what_does_not_answer_holds_nobody(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with dead(place):
        with pytest.raises(TimeoutError, match="no answer in"):
            modes([f"{place}/borg"], str(tmp_path), 0.5)
        # With a thread that waits there this would never come back.
        os.setgroups(os.getgroups())
    assert modes([str(tmp_path)], str(tmp_path), 20)


def test_one_looks_at_a_place_at_a_time(tmp_path: Path) -> None:
    """One that can neither be ended nor answer has the lock: no further one is left to wait, and
    whoever looks elsewhere is not kept waiting by it."""
    with (tmp_path / "looking").open("w") as held:
        lock = flock(fcntl.F_WRLCK, place_of(str(tmp_path)), 1)
        fcntl.fcntl(held, fcntl.F_OFD_SETLK, lock)
        with pytest.raises(TimeoutError, match="one who looked before waits still"):
            modes([str(tmp_path)], str(tmp_path), 0.2)
        assert modes(["/"], str(tmp_path), 20)
    assert modes([str(tmp_path)], str(tmp_path), 20)
