"""A companion that does nothing: it takes requests as the real one does, and says as it is told."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from borg_pull.companion import Ask, end_line, parse_request
from borg_pull.errors import RequestError

Answer = Callable[[Ask], Sequence[bytes]]


def agreeing(ask: Ask) -> Sequence[bytes]:
    """One line that says what was asked, and a good end."""
    return [line({"type": ask.request}), end_line(0, None, None)]


def line(fields: dict[str, Any]) -> bytes:
    """A line of an answer."""
    return json.dumps(fields).encode() + b"\n"


class StandInCompanion:
    """Listens at ``path``, which any account may connect to; ``asked`` is all that came."""

    def __init__(self, path: Path, answer: Answer = agreeing) -> None:
        self.asked: list[Ask] = []
        self.answer = answer
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        path.chmod(0o666)
        self._listening.listen(64)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, RequestError):
            ask = parse_request(connection.makefile("rb").readline())
            self.asked.append(ask)
            for one in self.answer(ask):
                connection.sendall(one)

    def close(self) -> None:
        """Take no more requests."""
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(10)
