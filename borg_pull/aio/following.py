"""Who may wait for a job to go on: a wait takes a process here for as long as a run lasts.

A place is a lock on one byte of a file, so that it is free again however its process ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

from borg_pull.aio.journal import flock
from borg_pull.errors import BusyError, SystemRefusedError

MOST = 48
"""Of all clients; the service's other connections stay free for what is short."""
MOST_OF_CLIENT = 16

_ALL = ".all"  # no client's name begins with a dot


class Place:
    """A place among those of all clients, and among those of ``client``.

    Raises BusyError when none is free, SystemRefusedError.
    """

    def __init__(self, state_dir: str, client: str) -> None:
        self._descriptors: list[int] = []
        try:
            for name, most in ((client, MOST_OF_CLIENT), (_ALL, MOST)):
                self._take(f"{state_dir}/followers", name, most)
        except BaseException:
            self.close()
            raise

    def _take(self, directory: str, name: str, most: int) -> None:
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(directory, 0o700)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(f"{directory}/{name}", flags, 0o600)
        except OSError as error:
            message = f"{directory}/{name} cannot be opened"
            raise SystemRefusedError.because(message, error) from error
        self._descriptors.append(descriptor)
        for place in range(most):
            with contextlib.suppress(BlockingIOError):
                fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, flock(fcntl.F_WRLCK, place, 1))
                return
        who = "all clients" if name == _ALL else f"client {name}"
        raise BusyError(
            f"{most} requests of {who} wait for jobs already", "end one, or run with --detach"
        )

    def close(self) -> None:
        """Give it back."""
        while self._descriptors:
            os.close(self._descriptors.pop())
