"""Where forced commands are started over and over: an account, its files, compiled stand-ins."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.harness.builds import MissingPieceError
from tests.harness.source import toml
from tests.harness.workplace import IS_ROOT, Workplace

CLIENT = "luna"
REQUEST = "-C lz4 create /srv/repository archive /home"
# The original tool's example of a client.
CLIENT_RULES = {"paths": ["/", "/home", "/var/lib", "/var/www"]}
# One that may be started over and over.
EAGER_RULES = {**CLIENT_RULES, "requests_per_hour": 1_000_000, "request_burst": 1_000_000}
HERE = Path(__file__).resolve().parent
NANOSECONDS_PER_MS = 1e6
MICROSECONDS_PER_MS = 1e3


@dataclass(frozen=True)
class Started:
    """One start of a program, from just before it was started; all in milliseconds."""

    to_exec: float | None
    """Until the stand-in for borg ran; None when it never did."""
    to_exit: float
    cpu_to_exec: float | None
    """Processor time of the program and the child that became the stand-in, until it ran."""
    cpu_to_exit: float
    """Processor time of the program and all it waited for."""


class Stage:
    """An account with the directories of a source, and stand-ins for borg in ``binaries``."""

    def __init__(self, workplace: Workplace) -> None:
        self.account = workplace.account()
        self.directory = workplace.directory("b")
        self.home = self._own("home")
        self.sockets = self._own("run")
        self.binaries = self.directory / "bin"
        self.binaries.mkdir()
        self.launch = self._compile("launch")
        self.noop_borg = self._compile("noop_borg")
        self.waiting_borg = self._compile("waiting_borg")

    def _own(self, name: str) -> Path:
        path = self.directory / name
        path.mkdir(mode=0o700)
        if IS_ROOT:
            os.chown(path, self.account.uid, self.account.gid)
        return path

    def _compile(self, name: str) -> Path:
        program = self.binaries / name
        # Static, so that its own start is as near nothing as it can be.
        done = subprocess.run(
            ["gcc", "-O2", "-Wall", "-Wextra", "-static", "-o", program, HERE / f"{name}.c"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise MissingPieceError(f"gcc cannot compile {name}.c:\n{done.stderr}")
        program.chmod(0o755)
        return program

    def configuration(
        self, name: str, runtime: Mapping[str, object], clients: Mapping[str, object]
    ) -> Path:
        """A whitelist in a directory of its own, so that ``clients.d`` beside it is its own."""
        directory = self.directory / name
        directory.mkdir()
        path = directory / "whitelist.toml"
        tables: dict[str, object] = {"runtime": {**self._runtime(), **runtime}}
        if clients:
            tables["client"] = clients
        path.write_text(toml(tables))
        path.chmod(0o644)
        return path

    def _runtime(self) -> dict[str, object]:
        return {"socket_dir": str(self.sockets), "home": str(self.home)}

    def add_client_files(self, configuration: Path, clients: Mapping[str, object]) -> None:
        """``clients.d/NAME.toml`` beside ``configuration`` for each client."""
        directory = configuration.parent / "clients.d"
        directory.mkdir()
        for name, rules in clients.items():
            assert isinstance(rules, Mapping)
            (directory / f"{name}.toml").write_text(toml(rules))

    def start(self, argv: Sequence[str | Path], *, instead_of_borg: Path | None = None) -> Started:
        """Start ``argv`` once, with the request and a forwarded socket, and wait for its end.

        With ``instead_of_borg`` that program stands in for /usr/bin/borg in a mount namespace of
        its own (root only). Raises AssertionError when the program fails.
        """
        for stamp in self._stamps():
            stamp.unlink()
        with self.forwarded_socket():
            command: list[str | Path] = [
                *(self.launch, str(self.account.uid), str(self.account.gid)),
                *argv,
            ]
            if instead_of_borg is not None and IS_ROOT:
                mount = 'mount --bind "$0" /usr/bin/borg && exec "$@"'
                command = ["unshare", "--mount", "sh", "-c", mount, instead_of_borg, *command]
            done = subprocess.run(
                command,
                env=self.environment(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
        assert done.returncode == 0, f"{argv[0]}: {done.stderr}"
        started, ended, status, cpu = map(int, done.stdout.split()[-4:])
        assert status == 0, f"{argv[0]} ended with wait status {status}: {done.stderr}"
        at_exec = [tuple(map(int, stamp.read_text().split())) for stamp in self._stamps()]
        return Started(
            to_exec=(at_exec[0][0] - started) / NANOSECONDS_PER_MS if at_exec else None,
            to_exit=(ended - started) / NANOSECONDS_PER_MS,
            cpu_to_exec=at_exec[0][1] / NANOSECONDS_PER_MS if at_exec else None,
            cpu_to_exit=cpu / MICROSECONDS_PER_MS,
        )

    @contextlib.contextmanager
    def forwarded_socket(self) -> Iterator[None]:
        """A socket as sshd would have forwarded it; the forced command removes its file."""
        path = self.sockets / f"{CLIENT}.sock"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as forwarded:
            forwarded.bind(str(path))
            forwarded.listen()
            if IS_ROOT:
                os.chown(path, self.account.uid, self.account.gid)
            yield

    def _stamps(self) -> list[Path]:
        return [path for path in self.home.rglob("exec") if path.is_file()]

    def environment(self) -> dict[str, str]:
        """What sshd gives a forced command."""
        return {
            "PATH": f"{self.binaries}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.home),
            "USER": self.account.name,
            "LOGNAME": self.account.name,
            "SHELL": "/bin/sh",
            "SSH_CONNECTION": "127.0.0.1 40000 127.0.0.1 22",
            "SSH_CLIENT": "127.0.0.1 40000 22",
            "SSH_ORIGINAL_COMMAND": REQUEST,
        }
