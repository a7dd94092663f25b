"""A socket proxy before the engine, as people put one there: some calls pass, the rest get 403."""

from __future__ import annotations

import re
import select
import socket
import threading
from collections.abc import Callable
from pathlib import Path

LIST = r"GET /containers/json"
INSPECT = r"GET /containers/[^/]+/json"
LOGS = r"GET /containers/[^/]+/logs"
EXEC = r"POST /containers/[^/]+/exec|POST /exec/[^/]+/start|GET /exec/[^/]+/json"


Lie = Callable[[str, socket.socket], bool]


class Proxy:
    """Passes what one of ``permitted`` matches; ``calls`` has what was asked for.

    ``lie`` may answer a call in the engine's place, and says whether it has.
    """

    def __init__(
        self, path: Path, engine: Path, permitted: tuple[str, ...], lie: Lie | None = None
    ) -> None:
        self.address = f"unix://{path}"
        self.lie = lie
        self.calls: list[str] = []
        self._engine = engine
        self._permitted = re.compile("|".join(permitted))
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass, args=(connection,), daemon=True).start()

    def _pass(self, peer: socket.socket) -> None:
        with peer, socket.socket(socket.AF_UNIX) as engine:
            try:
                engine.connect(str(self._engine))
                self._relay(peer, engine)
            except OSError:
                return

    def _relay(self, peer: socket.socket, engine: socket.socket) -> None:
        is_raw = False
        while True:
            ready, _, _ = select.select([peer, engine], [], [])
            if engine in ready:
                data = engine.recv(65536)
                if not data:
                    return
                peer.sendall(data)
            if peer in ready:
                data = peer.recv(65536)
                if not data:
                    return
                line = data.partition(b"\r\n")[0].decode("ascii", "replace")
                if not is_raw and line.endswith("HTTP/1.1"):
                    verb, path, _ = line.split()
                    call = f"{verb} {re.sub(r'^/v[0-9.]+', '', path).partition('?')[0]}"
                    self.calls.append(call)
                    if not self._permitted.fullmatch(call):
                        peer.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                        continue
                    if self.lie is not None and self.lie(call, peer):
                        return
                    is_raw = call.endswith("/start")
                engine.sendall(data)


def answer(peer: socket.socket, body: bytes, status: str = "200 OK", *more: str) -> None:
    """Answer a call with ``body``, and ``more`` lines of header."""
    lines = (
        *(f"HTTP/1.1 {status}", "Content-Type: application/json", "Api-Version: 1.41"),
        *(f"Content-Length: {len(body)}", *more),
    )
    peer.sendall("\r\n".join((*lines, "", "")).encode("ascii") + body)
