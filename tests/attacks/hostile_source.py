"""A source that was broken into: it answers its backup server with whatever it likes."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from tests.harness.source import toml
from tests.harness.sshd import make_key
from tests.pull.conftest import BackupServer
from tests.pull.runs import Answer, start

HELLO: dict[str, Any] = {
    "type": "hello",
    "protocol": 1,
    "version": "0.1.0",
    "borg": "1.2.4",
    "client": "luna",
    "verbs": ["create", "hello", "target-set"],
    "socket_directory": "/var/lib/borg-pull/run",
    "passphrase_stdin": False,
    "time": "2026-11-21T02:00:01.250Z",
}


def hello(**changes: Any) -> bytes:
    """An answer as an honest source gives it, but for ``changes``."""
    return json.dumps(HELLO | changes).encode()


class Hostile:
    """A source ``evil`` on the host of the honest one, that answers as it is told."""

    def __init__(self, server: BackupServer) -> None:
        self.server = server
        self._directory = server.site.source.directory / "evil"
        self._directory.mkdir(mode=0o755)
        self._script = self._directory / "answer"
        key = server.directory / "evil-key"
        line = make_key(key)
        options = f'restrict,port-forwarding,command="/bin/sh {self._script}"'
        server.site.server.authorize(server.site.account, f"{options} {line}")
        server.document["source"]["evil"] = server.document["source"]["source"] | {
            "identity": str(key)
        }
        self._cases: list[str] = []
        self.greets(hello(socket_directory=str(server.site.source.socket_dir)))

    def greets(self, answer: bytes) -> None:
        """What it answers to hello."""
        self._answer("hello", f"cat {self._file(answer)}")

    def says(self, job: str, text: bytes, *, code: int = 2) -> None:
        """What it says to a request for an archive of ``job``, which there is then."""
        self._answer(f"*{job}-*", f"cat {self._file(text)} >&2; exit {code}")
        self.server.job(job, source="evil", paths=["/srv"], retry_window="0")

    def waits(self, job: str, seconds: int) -> None:
        """It holds the connection of a request for an archive of ``job``, and says nothing."""
        self._answer(f"*{job}-*", f"exec sleep {seconds}")

    def _file(self, content: bytes) -> str:
        path = self._directory / str(len(list(self._directory.iterdir())))
        path.write_bytes(content)
        path.chmod(0o644)
        return shlex.quote(str(path))

    def _answer(self, pattern: str, commands: str) -> None:
        self._cases.insert(0, f"{pattern}) {commands};;\n")
        cases = "".join(self._cases)
        self._script.write_text(f'case "$SSH_ORIGINAL_COMMAND" in\n{cases}esac\n')
        self._script.chmod(0o644)


def run_all(server: BackupServer, **environment: str) -> tuple[Answer, str]:
    """``borg-pull run --all``, and the metrics it leaves."""
    metrics: Path = server.directory / "borg.prom"
    path = server.directory / "pull.toml"
    settings = {"settings": {"state_dir": str(server.directory)}}
    for name, job in server.document["job"].items():
        job["repository"] = "repository" if name == "honest" else "other"
    path.write_text(toml(settings | {"metrics": {"textfile": str(metrics)}} | server.document))
    path.chmod(0o600)
    answer = start("--config", path, "run", "--all", environment=environment)
    return answer, metrics.read_text()
