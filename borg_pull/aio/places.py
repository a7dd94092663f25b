"""What is there at a place whose file system may have no host any more.

A process that looks at such a place cannot be ended, and a thread of ours that does keeps this
process from all that takes every thread, such as acting as another account. So another program
looks, one at a time at each place, and is left to itself when it does not answer.
"""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import time
import zlib
from collections.abc import Sequence

from borg_pull.aio.journal import flock

_POLL = 0.02
_PLACES = 4096


def modes(paths: Sequence[str], state_dir: str, seconds: float) -> dict[str, int]:
    """The modes (st_mode) of those of ``paths`` that are there, links followed. The first is the
    place that all lie in.

    Raises TimeoutError when there is no answer within ``seconds``, OSError.
    """
    deadline = time.monotonic() + seconds
    lock = os.open(f"{state_dir}/looking", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _wait_for(lock, place_of(paths[0]), deadline, seconds)
        # The program keeps the lock for as long as it lives, which may be longer than we wait.
        looking = subprocess.Popen(
            ["/usr/bin/stat", "--dereference", "--printf=%f %n\\0", "--", *paths],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"LC_ALL": "C"},
            pass_fds=(lock,),
        )
    except ValueError as error:
        # Whoever writes AIO's configuration may name what is no path at all.
        raise OSError(errno.EINVAL, "it is no path") from error
    finally:
        os.close(lock)
    try:
        told, _ = looking.communicate(timeout=max(0.01, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        looking.kill()
        raise TimeoutError(f"no answer in {seconds:g} s") from None
    found = (os.fsdecode(entry).partition(" ") for entry in told.split(b"\0") if entry)
    return {name: int(mode, 16) for mode, _, name in found}


def place_of(path: str) -> int:
    """The byte of the lock file that stands for it: there are few, and no more files for it."""
    return zlib.crc32(path.encode("utf-8", "surrogatepass")) % _PLACES


def _wait_for(lock: int, place: int, deadline: float, seconds: float) -> None:
    while True:
        try:
            fcntl.fcntl(lock, fcntl.F_OFD_SETLK, flock(fcntl.F_WRLCK, place, 1))
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"no answer in {seconds:g} s; one who looked before waits still"
                ) from None
            time.sleep(_POLL)
        else:
            return
