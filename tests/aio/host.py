"""A host with the companion: its configuration, its account, and who asks it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from borg_pull.audit import new_session
from tests.aio.stand_in_aio import StandIn
from tests.harness import processes
from tests.harness.builds import PROJECT
from tests.harness.wait import until

CLIENT = "luna"

# Run as the account, as the forced command is; argv: socket, request. Prints what comes.
_ASK = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
try:
    s.sendall(sys.argv[2].encode() + b"\\n")
    s.shutdown(socket.SHUT_WR)
except OSError:
    pass  # refused already, which can still be read
while True:
    data = s.recv(65536)
    if not data:
        break
    sys.stdout.buffer.write(data)
    sys.stdout.flush()
"""


@dataclass(frozen=True)
class Answer:
    """What came back on one connection."""

    lines: list[dict[str, Any]]

    @property
    def end(self) -> dict[str, Any]:
        assert self.lines, "no answer"
        assert self.lines[-1]["type"] == "end", self.lines
        return self.lines[-1]

    @property
    def exit(self) -> int:
        return int(self.end["exit"])

    def only(self, kind: str) -> dict[str, Any]:
        (found,) = [line for line in self.lines if line["type"] == kind]
        return found

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line.get("event") == kind]


class Host:
    """``aio`` with a companion beside it, from source or as ``program``."""

    def __init__(self, aio: StandIn, program: Path | None = None) -> None:
        self.aio = aio
        self.account = aio.daemon.workplace.account()
        self.place = aio.daemon.workplace.directory("host")
        self.home = self.place / "home"
        self.home.mkdir(mode=0o700)
        self.sockets = self.place / "sockets"
        self.sockets.mkdir(mode=0o700)
        for path in (self.home, self.sockets):
            os.chown(path, self.account.uid, self.account.gid)
        (self.place / "etc").mkdir()
        self.config = self.place / "etc/config.toml"
        self.socket = self.place / "run/companion.sock"
        self.state = self.place / "state"
        self.log = self.home / "audit.jsonl"
        self._is_frozen = program is not None
        self._program = (
            [sys.executable, "-m", "borg_pull.aio"] if program is None else [str(program)]
        )
        self.enter: tuple[str, ...] = ()
        """What starts the peer where the service runs, if that is elsewhere."""
        self._service: subprocess.Popen[bytes] | None = None
        self.configure()

    def configure(
        self, *, client: str = "", actions: str = "", aio: str = "", more: str = ""
    ) -> None:
        """Write the whitelist."""
        first, second = self.aio.root / "first", self.aio.root / "second"
        self.config.write_text(f"""
[runtime]
home = "{self.home}"
socket_dir = "{self.sockets}"

[aio]
engine = "{self.aio.daemon.address}"
configuration_file = "{self.aio.configuration}"
database_dump_dir = "{self.aio.root}/dump"
socket = "{self.socket}"
state_dir = "{self.state}"
health_timeout = 30
{aio}

[aio.target.first]
host_location = "{first}"

[aio.target.second]
host_location = "{second}"

[action.nightly]
type = "nextcloud_aio_backup"
description = "every night"

[action.away]
type = "nextcloud_aio_backup"
target = "second"
restore_after = true

{actions}

[client.{CLIENT}]
actions = ["nightly", "away"]
aio_targets = ["second"]
{client}

{more}
""")
        self.config.chmod(0o644)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The program with these arguments."""
        return subprocess.run(
            self.command(*arguments), capture_output=True, text=True, check=False, cwd=PROJECT
        )

    def command(self, *arguments: str) -> list[str]:
        return [*self._program, "--config", str(self.config), *arguments]

    def start(self) -> None:
        """Start the service, and wait until it listens."""
        self._service = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *self.command("serve")],
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            stderr=(self.place / "service.log").open("ab"),
        )
        until(self._listens, seconds=20, what="the companion")

    def _listens(self) -> bool:
        assert self._service is not None
        assert self._service.poll() is None, self.said()
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(self.socket))
        except OSError:
            return False
        return True

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End the service, not what it has begun; how it ended."""
        assert self._service is not None
        self._service.send_signal(number)
        code = self._service.wait(timeout=10)
        self._service = None
        return code

    @property
    def service(self) -> int | None:
        """Its process."""
        return None if self._service is None else self._service.pid

    def said(self) -> str:
        """The service's log."""
        return (self.place / "service.log").read_text()

    def asking(
        self, request: str, *, prefix: tuple[str, ...] = (), client: str = CLIENT, **fields: Any
    ) -> subprocess.Popen[bytes]:
        """One request, by a process of the account."""
        session = {
            "session": new_session(),
            "key": "SHA256:of-luna",
            "address": "192.0.2.7",
            "port": 50_000,
            "pid": os.getpid(),
        }
        line = json.dumps(
            {"version": 1, "request": request, "client": client, "session": session, **fields}
        )
        return self.sending(line, prefix=prefix)

    def sending(self, line: str, prefix: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        """Any line at all. Root sends it where the account's own would have to come from the
        frozen forced command."""
        account = (f"--reuid={self.account.uid}", f"--regid={self.account.gid}", "--clear-groups")
        return subprocess.Popen(
            [
                *(*self.enter, "setpriv", *(() if self._is_frozen else account), *prefix),
                *("/usr/bin/python3", "-c", _ASK),
                *(str(self.socket), line),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def ask(self, request: str, **fields: Any) -> Answer:
        """One request, to its end."""
        out, _ = self.asking(request, **fields).communicate(timeout=60)
        return Answer([json.loads(line) for line in out.splitlines()])

    def records(self, event: str | None = None) -> list[dict[str, Any]]:
        """What is on record."""
        if not self.log.exists():
            return []
        found = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [record for record in found if event in (None, record["event"])]

    def runner(self) -> processes.Process | None:
        """The process of the run that is under way."""
        entry = self.journal()
        return None if entry is None else processes.read(int(entry["common"]["pid"]))

    def journal(self) -> dict[str, Any] | None:
        """What has been begun and not finished."""
        try:
            entry: dict[str, Any] = json.loads((self.state / "journal.json").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return entry

    def close(self) -> None:
        """End everything."""
        if self._service is not None:
            self.stop(signal.SIGKILL)
        runner = self.runner()
        # A run of a test's own process is that.
        if runner is not None and runner.pid != os.getpid():
            runner.send(signal.SIGKILL)
