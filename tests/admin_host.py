"""A source's files for tests of the admin's commands, and stand-ins for its forced commands."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from typing import Any

from borg_pull.audit import new_session
from borg_pull.lockdown import Lockdown, read
from borg_pull.source import limits
from tests.admin_runs import RUNTIME, Answer, run, write
from tests.harness.site import Installations
from tests.harness.workplace import IS_ROOT, Account


class Host:
    """A source's files, owned as the documents demand; ``close`` ends the stand-ins."""

    def __init__(self, installations: Installations, account: Account) -> None:
        self.account = account
        self.directory = installations.workplace.directory("k")
        self.config = write(self.directory / "config.toml", RUNTIME + "[client.luna]\n")
        self.file = self.directory / "lockdown"
        for name in ("home", "run", "home/limits"):
            (self.directory / name).mkdir(mode=0o700)
            os.chown(self.directory / name, account.uid, account.gid)
        self._holders: list[int] = []
        self.log = self.directory / "home/audit.jsonl"

    def lockdown(self, *arguments: str) -> Answer:
        return run("lockdown", self.config, *arguments)

    def status(self) -> dict[str, Any]:
        answer = self.lockdown("status", "--json")
        said: dict[str, Any] = json.loads(answer.stdout)
        assert answer.exit == (75 if said["locked"] else 0)
        return said

    def records(self) -> list[dict[str, Any]]:
        if not self.log.exists():
            return []
        return [json.loads(line) for line in self.log.read_bytes().splitlines()]

    def events(self) -> list[str]:
        return [record["event"] for record in self.records()]

    def found(self) -> Lockdown | None:
        return read(str(self.config))

    def hold(
        self,
        client: str = "luna",
        verb: str | None = "create",
        *,
        report: str | None = None,
        ignores: bool = False,
        as_root: bool = False,
    ) -> int:
        """A process that holds a place until SIGINT, which it may ignore; its pid."""
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                signal.signal(signal.SIGINT, signal.SIG_IGN if ignores else signal.SIG_DFL)
                if IS_ROOT and not as_root:
                    os.setgroups([])
                    os.setgid(self.account.gid)
                    os.setuid(self.account.uid)
                home = str(self.directory / "home")
                place = limits.claim(home, client, new_session(), most=64, most_of_client=64)
                place.tell(verb, report)
                os.write(writer, b".")
                while True:
                    signal.pause()
            finally:
                os._exit(1)
        os.close(writer)
        said = os.read(reader, 1)
        os.close(reader)
        self._holders.append(pid)
        assert said == b".", "the stand-in got no place"
        return pid

    def ended(self, pid: int) -> int | None:
        """The signal that ended a stand-in, None while it runs."""
        done, status = os.waitpid(pid, os.WNOHANG)
        if done == 0:
            return None
        self._holders.remove(pid)
        return os.WTERMSIG(status)

    def close(self) -> None:
        while self._holders:
            pid = self._holders.pop()
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
