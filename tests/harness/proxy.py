"""A network of ours between ssh and sshd: it can stand still, break, or be slow."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from types import TracebackType
from typing import Self

from .wait import until

BLOCK = 16384
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: a close sends RST


class Proxy:
    """Carries connections on ``port`` of loopback to another one. A context manager.

    The stream stands still after ``hold_after`` bytes from the far side, until ``release``: nothing
    is read any more in either direction, and nothing closed. ``bytes_per_second`` bounds what
    comes from the far side.
    """

    def __init__(self, port: int) -> None:
        self.hold_after: int | None = None
        self.bytes_per_second: int | None = None
        self.from_far = 0
        """Bytes that came from the far side, of the connection that carries them now."""
        self._far_port = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._holding = threading.Event()
        self._released = threading.Event()
        self._wake, self._waker = os.pipe()
        self._cut = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.write(self._waker, b".")
        self._released.set()
        self._cut.set()
        self._thread.join()
        self._listening.close()
        os.close(self._wake)
        os.close(self._waker)

    def held(self, seconds: float = 60) -> None:
        """Wait until the stream stands still at ``hold_after`` bytes."""
        until(self._holding.is_set, seconds=seconds, what="the stream to reach its hold point")

    def release(self) -> None:
        """Let a held stream flow on, and hold no other."""
        self.hold_after = None
        self._released.set()

    def cut(self) -> None:
        """Break the connection: both sides see a reset. Later ones are carried."""
        self._cut.set()
        until(lambda: not self._cut.is_set(), seconds=10, what="the connection to be cut")

    def _serve(self) -> None:
        """One connection at a time: a pull has no more."""
        while True:
            ready, _, _ = select.select([self._listening.fileno(), self._wake], [], [])
            if self._wake in ready:
                return
            near, _ = self._listening.accept()
            with near, socket.create_connection(("127.0.0.1", self._far_port)) as far:
                self.from_far = 0
                with contextlib.suppress(OSError):
                    self._carry(near, far)
                if self._cut.is_set():
                    for end in (near, far):
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self._cut.clear()

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        while not self._cut.is_set():
            room = None if self.hold_after is None else self.hold_after - self.from_far
            if room is not None and room <= 0:
                self._holding.set()
                self._released.wait(0.02)
                continue
            ready, _, _ = select.select([near, far], [], [], 0.02)
            for end in ready:
                block = end.recv(BLOCK if end is near or room is None else min(BLOCK, room))
                if not block:
                    return
                (far if end is near else near).sendall(block)
                if end is far:
                    self.from_far += len(block)
                    if self.bytes_per_second is not None:
                        time.sleep(len(block) / self.bytes_per_second)
