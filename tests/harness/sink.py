"""A private socket of a peer's that takes what comes and counts it; nobody speaks borg there."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from typing import Self


class Sink:
    """Reads every connection to its end; as a context it is closed with all of them.

    ``mood``: it ``reads``; it is ``silent``, accepts but reads nothing; or ``deaf``, listens but
    accepts nothing. With ``hold_after`` the reading stops at that many bytes until ``release``.
    """

    def __init__(self, path: Path, *, mood: str = "reads", hold_after: int | None = None) -> None:
        self.path = path
        self.received = 0
        self._mood = mood
        self._hold_after = hold_after
        self._released = threading.Event()
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen(16)
        if mood != "deaf":
            self._spawn(self._accept)

    def _spawn(self, target: object, *arguments: object) -> None:
        assert callable(target)
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self._ends.append(connection)
                if self._mood == "reads":
                    self._spawn(self._read, connection)

    def _read(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while block := connection.recv(1 << 16):
                self.received += len(block)
                if self._hold_after is not None and self.received >= self._hold_after:
                    self._released.wait()
            connection.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """Let a held reading go on."""
        self._released.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        for end in (self._listening, *self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(20)
        for end in (self._listening, *self._ends):
            end.close()
        self.path.unlink(missing_ok=True)
