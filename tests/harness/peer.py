"""The backup server of a test: its key, its repositories, its listener, its ssh."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from borg_pull.admin.authorized_keys import KEY_OPTIONS

from . import processes
from .sink import Sink
from .source import Source
from .sshd import SshServer, make_key
from .wait import POLL_SECONDS, until
from .workplace import Workplace

PULL_SECONDS = 90.0
BLOCK = 65536
PASSPHRASE = "correct horse: battery 'staple' \"$x\" é"

FIRST_RUN_WORDS = (
    "previously unknown unencrypted repository",
    "yes (from BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK)",
    "The files cache can't be read. [[Errno 2] No such file or directory",
    "Continuing without files cache",
)


@dataclass(frozen=True)
class Result:
    """How one request ended, as the peer sees it; ``duration`` is in seconds."""

    exit: int
    stdout: bytes
    stderr: bytes
    duration: float

    @property
    def errors(self) -> str:
        """The human lines."""
        return self.stderr.decode(errors="backslashreplace")

    @property
    def complaints(self) -> str:
        """The human lines but what borg says of a first run: the question about an unencrypted
        repository, answered yes, and that there is no files cache yet."""
        return "".join(
            line
            for line in self.errors.splitlines(keepends=True)
            if not any(words in line for words in FIRST_RUN_WORDS)
        )


class Repository:
    """A repository of the backup server, and borg run on it directly."""

    def __init__(
        self, path: Path, borg: Path, base: Path, *, encryption: str, passphrase: str
    ) -> None:
        self.path = path
        self.borg = borg
        self.encryption = encryption
        self.passphrase = passphrase
        self._base = base

    def environment(self) -> dict[str, str]:
        """The environment of a borg of the backup server."""
        return {
            "PATH": "/usr/bin:/bin",
            "LC_ALL": "C.UTF-8",
            "HOME": str(self._base),
            "BORG_BASE_DIR": str(self._base),
            "BORG_PASSPHRASE": self.passphrase,
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }

    def run(self, *arguments: str | Path, cwd: Path | None = None) -> str:
        """Run borg with ``arguments``; its output. Raises AssertionError unless it exits 0."""
        done = subprocess.run(
            [self.borg, *arguments],
            env=self.environment(),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            check=False,
        )
        assert done.returncode == 0, f"borg {arguments} gave {done.returncode}: {done.stderr}"
        return done.stdout

    def init(self) -> None:
        """Make it."""
        self.run("init", "--encryption", self.encryption, self.path)

    def archives(self) -> list[str]:
        """The names of its archives, oldest first; it must not be locked."""
        return self.run("list", "--lock-wait", "5", "--format", "{archive}{NL}", self.path).split(
            "\n"
        )[:-1]

    def extract(self, archive: str, into: Path) -> Path:
        """Extract a whole archive to the new directory ``into``."""
        into.mkdir()
        self.run("extract", "--numeric-ids", f"{self.path}::{archive}", cwd=into)
        return into

    def check(self) -> None:
        """Let borg verify all of it."""
        self.run("check", "--verify-data", self.path)

    def locked(self) -> bool:
        """Whether some borg holds its lock, or died holding it."""
        return (self.path / "lock.exclusive").exists()


class Listener:
    """A private socket that serves one connection with ``borg serve`` on one repository.

    With ``hold_after`` the bytes travelling to the repository stop at that many, as on a link
    gone dead, until ``release``; ``held`` waits for that point, and ``let_through`` moves it, for a
    slow link. Connections after the first are counted and closed.
    """

    def __init__(
        self,
        directory: Path,
        repository: Repository,
        *,
        append_only: bool = False,
        hold_after: int | None = None,
    ) -> None:
        self.path = directory / "l.sock"
        self.connections = 0
        self.to_repository = 0
        self.from_repository = 0
        self._repository = repository
        self._append_only = append_only
        self._hold_after = hold_after
        self._holding = threading.Event()
        self._released = threading.Event()
        self._server: subprocess.Popen[bytes] | None = None
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(self.path))
        self._listening.listen(16)
        self._errors = (directory / "serve.log").open("ab")
        self._spawn(self._accept)

    def _spawn(self, target: object, *arguments: object) -> None:
        assert callable(target)
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            if self.connections > 1 or self._closed:
                connection.close()
            elif self._hold_after is None:
                with connection:
                    self._serve(connection)
            else:
                mine, theirs = socket.socketpair()
                with theirs:
                    self._serve(theirs)
                self._ends = [connection, mine]
                self._spawn(self._carry_to_repository, connection, mine)
                self._spawn(self._carry_from_repository, mine, connection)

    def _serve(self, stream: socket.socket) -> None:
        repository = self._repository
        command = [str(repository.borg), "serve", "--restrict-to-repository", str(repository.path)]
        if self._append_only:
            command.append("--append-only")
        self._server = subprocess.Popen(
            command,
            stdin=stream.fileno(),
            stdout=stream.fileno(),
            stderr=self._errors,
            env=repository.environment(),
            start_new_session=True,
        )

    def _carry_to_repository(self, peer: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                assert self._hold_after is not None
                room = self._hold_after - self.to_repository
                if room <= 0 and not self._released.is_set():
                    self._holding.set()
                    self._released.wait(POLL_SECONDS)
                    continue
                limit = BLOCK if self._released.is_set() else min(BLOCK, room)
                block = peer.recv(limit)
                if not block:
                    break
                self.to_repository += len(block)
                server.sendall(block)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_WR)

    def _carry_from_repository(self, server: socket.socket, peer: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while block := server.recv(BLOCK):
                self.from_repository += len(block)
                peer.sendall(block)
        with contextlib.suppress(OSError):
            peer.shutdown(socket.SHUT_WR)

    def held(self, seconds: float = 60) -> None:
        """Wait until the stream stands still at ``hold_after`` bytes."""
        until(self._holding.is_set, seconds=seconds, what="the stream to reach its hold point")

    def let_through(self, count: int) -> None:
        """Let so many more bytes of a held stream pass."""
        assert self._hold_after is not None
        self._hold_after += count

    def release(self) -> None:
        """Let a held stream flow on."""
        self._released.set()

    def server_ended(self, seconds: float = 20) -> int:
        """Wait for ``borg serve`` to end by itself; its exit code."""
        assert self._server is not None, "nobody connected"
        return self._server.wait(seconds)

    def close(self) -> None:
        """Close every end; ``borg serve`` gets its own time to see that and unlock."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.release()
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(20)
        for end in self._ends:
            end.close()
        if self._server is not None:
            try:
                self._server.wait(20)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
        self._errors.close()
        self.path.unlink(missing_ok=True)


class Pull:
    """One running request: the peer's ssh, and what runs for it on the source."""

    def __init__(
        self,
        command: Sequence[str | bytes | Path],
        source: Source,
        server: SshServer,
        *,
        stdin: bytes | None,
        stdin_stays_open: bool,
        environment: Mapping[str, str],
    ) -> None:
        self._source = source
        self._server = server
        self._started = time.monotonic()
        self.ssh = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"}
            | dict(environment),
            start_new_session=True,
        )
        if stdin is not None:
            # A test's input fits the pipe, so this cannot block; the end of input comes at once.
            assert self.ssh.stdin is not None
            self.ssh.stdin.write(stdin)
            self.ssh.stdin.flush()
            if not stdin_stays_open:
                self.ssh.stdin.close()
                self.ssh.stdin = None

    def sessions(self) -> list[processes.Process]:
        """sshd's processes for this session, the privileged one first."""
        return self._server.sessions(self._source.account)

    def source_processes(self) -> list[processes.Process]:
        """What the session runs on the source, sshd left out."""
        return [
            process for process in self._source.processes() if not process.name.startswith("sshd")
        ]

    def running(self, name: str, seconds: float = 30) -> processes.Process:
        """Wait until a process with ``name`` in its command line runs on the source."""

        def found() -> processes.Process | None:
            assert self.ssh.poll() is None, f"the request ended: {self.wait()}"
            matching = [one for one in self.source_processes() if name in one.command]
            return matching[-1] if matching else None

        return until(found, seconds=seconds, what=f"{name} to run on the source")

    def wait(self, seconds: float = PULL_SECONDS) -> Result:
        """Its end. Raises AssertionError, with all that runs, when it does not come."""
        try:
            stdout, stderr = self.ssh.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            running = "\n".join(map(str, self._source.processes()))
            self.ssh.kill()
            stdout, stderr = self.ssh.communicate()
            raise AssertionError(
                f"the request still ran after {seconds:g} s\n{running}\n{stdout!r}\n{stderr!r}"
            ) from None
        return Result(self.ssh.returncode, stdout, stderr, time.monotonic() - self._started)

    def has_ended(self) -> bool:
        """Whether the peer's ssh has."""
        return self.ssh.poll() is not None

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal the peer's ssh."""
        self.ssh.send_signal(number)


class Peer:
    """One ``[client.NAME]``: a backup server that may log in to the source's account."""

    def __init__(
        self, workplace: Workplace, server: SshServer, source: Source, name: str, borg: Path
    ) -> None:
        self.name = name
        self.directory = workplace.directory("p", mode=0o700)
        self._server = server
        self._source = source
        self._borg = borg
        self._templates = workplace.root / "templates" / str(borg).replace("/", "_")
        self._templates.mkdir(parents=True, exist_ok=True)
        self._key = self.directory / "key"
        self.public_key = make_key(self._key)
        self._known_hosts = self.directory / "known_hosts"
        self._known_hosts.write_text(server.known_hosts_line)
        self._base = self.directory / "borg"
        self._base.mkdir()
        self._counter = 0

    def authorize(self, command: str | None = None) -> None:
        """Let the key in with the forced command; ``command`` stands in for another one."""
        if command is None:
            source = self._source
            command = f"{source.programs.source} {source.configuration} {self.name}"
        quoted = command.replace('"', '\\"')
        self._server.authorize(
            self._source.account, f'{KEY_OPTIONS},command="{quoted}" {self.public_key}'
        )

    def repository(
        self,
        name: str = "repository",
        *,
        encryption: str = "none",
        passphrase: str = PASSPHRASE,
        initialised: bool = True,
    ) -> Repository:
        """A new repository; ``initialised=False`` leaves its making to the request.

        Those of one kind are copies of one, id included: making one costs half a second.
        """
        repository = self._repository(self.directory / name, encryption, passphrase)
        if not initialised:
            return repository
        if passphrase != PASSPHRASE or encryption.startswith("keyfile"):
            repository.init()
            return repository
        template = self._templates / encryption
        if not template.exists():
            self._repository(template, encryption, passphrase).init()
        shutil.copytree(template, repository.path)
        return repository

    def _repository(self, path: Path, encryption: str, passphrase: str) -> Repository:
        return Repository(
            path, self._borg, self._base, encryption=encryption, passphrase=passphrase
        )

    @contextlib.contextmanager
    def listening(
        self,
        repository: Repository,
        *,
        append_only: bool = False,
        hold_after: int | None = None,
    ) -> Iterator[Listener]:
        """A listener on ``repository`` for one request."""
        self._counter += 1
        directory = self.directory / f"l{self._counter}"
        directory.mkdir(mode=0o700)
        listener = Listener(directory, repository, append_only=append_only, hold_after=hold_after)
        try:
            yield listener
        finally:
            listener.close()

    def command(
        self, request: str | bytes, options: Sequence[str] = ()
    ) -> list[str | bytes | Path]:
        """What sends ``request``; ``options`` stand first, where they override the others."""
        return [
            # The peer must not outlive a killed test run.
            *("/usr/bin/setpriv", "--pdeathsig", "KILL"),
            *("/usr/bin/ssh", "-F", "none", *options),
            *("-p", str(self._server.port), "-i", self._key),
            *("-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", "BatchMode=yes"),
            *("-o", "StrictHostKeyChecking=yes", "-o", f"UserKnownHostsFile={self._known_hosts}"),
            *("-o", "GlobalKnownHostsFile=/dev/null", "-o", "ExitOnForwardFailure=yes"),
            *("-o", "LogLevel=ERROR", f"{self._source.account.name}@127.0.0.1", "--"),
            os.fsencode(request),
        ]

    def start(
        self,
        request: str | bytes,
        listener: Listener | Sink | None = None,
        *,
        stdin: bytes | None = None,
        stdin_stays_open: bool = False,
        remote_socket: Path | None = None,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Pull:
        """Send ``request``, forwarding ``listener`` when there is one.

        ``options`` stand first on ssh's command line, where they override the others;
        ``environment`` is set for ssh besides its own.
        """
        if listener is not None:
            remote = remote_socket or self._source.socket(self.name)
            options = [*options, "-R", f"{remote}:{listener.path}"]
        return Pull(
            self.command(request, options),
            self._source,
            self._server,
            stdin=stdin,
            stdin_stays_open=stdin_stays_open,
            environment=environment or {},
        )

    def pull(
        self,
        request: str | bytes,
        repository: Repository | None = None,
        *,
        stdin: bytes | None = None,
        append_only: bool = False,
        remote_socket: Path | None = None,
        timeout: float = PULL_SECONDS,
    ) -> Result:
        """Send ``request`` and wait; ``repository`` is served when there is one."""
        if repository is None:
            return self.start(request, stdin=stdin).wait(timeout)
        with self.listening(repository, append_only=append_only) as listener:
            return self.start(request, listener, stdin=stdin, remote_socket=remote_socket).wait(
                timeout
            )

    def remove(self) -> None:
        """Remove all files of this peer."""
        shutil.rmtree(self.directory, ignore_errors=True)
