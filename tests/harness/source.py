"""The source of a test: whose account logs in, its whitelist, its state, its audit log."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import processes
from .builds import Programs
from .wait import until
from .workplace import IS_ROOT, Account, Workplace

GENESIS = "0" * 64
GONE_SECONDS = 20.0


class Source:
    """One source machine's worth of files, laid out and owned as the documents demand."""

    def __init__(
        self, workplace: Workplace, account: Account, programs: Programs, borg: Path
    ) -> None:
        self.account = account
        self.programs = programs
        self.borg = borg
        self.directory = workplace.directory("s")
        self.configuration = self.directory / "whitelist.toml"
        self.home = self._own("home")
        self.socket_dir = self._own("run")
        self.audit_file = self.home / "audit.jsonl"

    def _own(self, name: str) -> Path:
        path = self.directory / name
        path.mkdir(mode=0o700)
        self.give(path)
        return path

    def give(self, path: Path) -> None:
        """Make ``path`` the account's own."""
        if IS_ROOT:
            os.chown(path, self.account.uid, self.account.gid, follow_symlinks=False)

    def tree(self, name: str = "data") -> Path:
        """A new empty directory to back up, the account's own and readable by it."""
        path = self.directory / name
        path.mkdir(mode=0o755)
        self.give(path)
        return path

    def file(self, path: Path, content: bytes | str, mode: int = 0o644) -> Path:
        """Write a file of the account's own."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(mode)
        self.give(path)
        return path

    def secret(self, name: str, content: str) -> Path:
        """A file beside the whitelist that only root may write and the account may read."""
        path = self.directory / name
        path.write_text(content)
        path.chmod(0o640)
        if IS_ROOT:
            os.chown(path, 0, self.account.gid)
        return path

    def runtime(self, **overrides: object) -> dict[str, object]:
        """The ``[runtime]`` table of this source; an override of None leaves the key out."""
        table: dict[str, object] = {
            "socket_dir": str(self.socket_dir),
            "home": str(self.home),
            "socket_wrapper": str(self.programs.wrap),
            "borg": str(self.borg),
        } | overrides
        return {key: value for key, value in table.items() if value is not None}

    def write_whitelist(
        self,
        clients: Mapping[str, Mapping[str, object]],
        *,
        runtime: Mapping[str, object] | None = None,
        **tables: Mapping[str, object],
    ) -> None:
        """Write the whitelist file: ``clients`` by name, and any further top-level tables."""
        document = {
            "runtime": self.runtime(**(runtime or {})),
            "confine": {"also_readable": [str(path) for path in self.programs.loads]},
            **tables,
            "client": clients,
        }
        self.write_configuration(toml(document))

    def write_configuration(self, text: str, name: str = "whitelist.toml") -> Path:
        """Write a configuration file as it stands, root's and unreadable to strangers."""
        path = self.directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o640)
        if IS_ROOT:
            os.chown(path, 0, self.account.gid)
        return path

    def socket(self, client: str) -> Path:
        """Where ``client``'s reverse-forwarded socket stands."""
        return self.socket_dir / f"{client}.sock"

    def state(self, client: str) -> Path:
        """``client``'s state directory, made if no run has."""
        outer = self.home / "clients"
        for directory in (outer, outer / client):
            self._ensure(directory)
        found = [path for path in (outer / client).iterdir() if path.is_dir()]
        state = found[0] if found else outer / client / secrets.token_hex(16)
        self._ensure(state)
        return state

    def _ensure(self, directory: Path) -> None:
        if not directory.exists():
            directory.mkdir(mode=0o700)
            self.give(directory)

    def admin(self, *arguments: str) -> subprocess.Popen[str]:
        """The admin's program on this source's whitelist, run as root if the tests are.

        The first of ``arguments`` is the command, which the whitelist follows.
        """
        command, *rest = arguments
        return subprocess.Popen(
            [self.programs.admin, command, self.configuration, *rest],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
        )

    def audit(self, **wanted: object) -> list[dict[str, Any]]:
        """All audit records, oldest first, or those whose fields equal ``wanted``."""
        if not self.audit_file.exists():
            return []
        records = [json.loads(line) for line in self.audit_file.read_bytes().splitlines()]
        return [
            record
            for record in records
            if all(record.get(field) == value for field, value in wanted.items())
        ]

    def assert_chain(self) -> None:
        """Recompute the hash chain, without the product's own code."""
        previous, sequence = GENESIS, 1
        for line in self.audit_file.read_bytes().splitlines():
            record = json.loads(line)
            assert record["prev"] == previous, f"the chain breaks at record {sequence}"
            assert record["seq"] == sequence, f"record {sequence} calls itself {record['seq']}"
            previous, sequence = hashlib.sha256(line).hexdigest(), sequence + 1

    def processes(self) -> list[processes.Process]:
        """Everything that runs for this source, sshd's unprivileged session process included."""
        if self.account.disposable:
            return processes.of_account(self.account.uid)
        # Without an account to go by: what a session of this run's sshd started names the run in
        # its environment or arguments, and the backup server's side are children of this process.
        marker = str(self.directory.parent)
        return [
            process
            for process in processes.of_account(self.account.uid)
            if process.parent != os.getpid() and processes.mentions(process, marker)
        ]

    def assert_nothing_left(self, client: str | None = None) -> None:
        """Wait until no process of the source is left, nor ``client``'s socket."""

        def gone() -> bool:
            return not self.processes()

        try:
            until(gone, seconds=GONE_SECONDS, what="the end of the source's processes")
        except AssertionError as error:
            left = "\n".join(map(str, self.processes()))
            raise AssertionError(f"{error}\n{left}") from None
        if client is not None:
            assert not self.socket(client).exists(), "the forwarded socket is left"

    def remove(self) -> None:
        """Remove all files of this source."""
        shutil.rmtree(self.directory, ignore_errors=True)


def toml(document: Mapping[str, object]) -> str:
    """``document`` as TOML; values are strings, numbers, booleans and lists of them."""
    return "\n".join(_tables(document, ())) + "\n"


def _tables(table: Mapping[str, object], at: tuple[str, ...]) -> Iterable[str]:
    if at and any(not isinstance(value, Mapping) for value in table.values() or [None]):
        yield "[" + ".".join(json.dumps(part) for part in at) + "]"
    for key, value in table.items():
        if not isinstance(value, Mapping):
            yield f"{json.dumps(key)} = {json.dumps(value)}"
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _tables(value, (*at, key))
