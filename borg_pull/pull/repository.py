"""A repository of this host and borg run here on it, with an environment made from nothing."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from borg_pull.errors import BorgPullError, FailedError
from borg_pull.last_words import last_words
from borg_pull.pull import confined, obstacles, preload
from borg_pull.pull.bounds import limited
from borg_pull.pull.config import Repository
from borg_pull.pull.log import LogFile, foreign
from borg_pull.pull.said import sentence
from borg_pull.pull.source import escaped
from borg_pull.pull.ssh import tied
from borg_pull.pull.stop import Stop

_CHECKPOINT = re.compile(r"\.checkpoint(\.[0-9]+)?$")
"""As borg names them (its archive.py)."""

LOCK_WAIT = 60
"""Seconds a borg of ours waits for somebody else's lock."""

_LOOKUPS = ("list", "info")
_KILL_SECONDS = 30.0
"""What a borg that was told to end gets for it."""
_MOST_OUTPUT = 64 << 20
_LONGEST_LINE = 1 << 20


class RepositoryError(FailedError):
    """borg could not do what was asked of it here."""


@dataclass(frozen=True)
class Archive:
    """One archive, as borg lists it."""

    id: str
    name: str
    time: datetime
    """When it was made, UTC."""


@dataclass(frozen=True)
class Cell:
    """What a confined borg can change: these directories, which must be there, and nothing else."""

    directory: Path
    """Where it is started."""
    own: Path
    """For what it keeps for itself."""
    largest: int | None = None
    """Bytes of the largest file it makes."""


@dataclass(frozen=True)
class Answer:
    """How one borg ended."""

    code: int
    """borg's modern code."""
    stdout: bytes
    stderr: str


class Archives:
    """A repository, and whatever can be asked about its archives: this host's borg, or a source."""

    repository: Repository
    stop: Stop | None
    """What ends in order whatever is run here, if anything does."""
    log: LogFile | None
    """Of the run that this is for, if it has one: what borg says goes there."""

    def run(
        self, words: Sequence[str], *, on_line: Callable[[bytes], None] | None = None
    ) -> Answer:
        """Run ``borg WORDS``; warnings pass. Raises BorgPullError for an error of borg's.

        ``on_line`` is given each line of standard error as it comes.
        """
        raise NotImplementedError

    def prepare(self) -> None:
        """Raise BorgPullError for what can already be known to keep archives from being read."""

    def expect(self, glob: str) -> None:
        """Be ready for `archives` to be asked for those of ``glob``, opened."""

    def dismiss(self) -> None:
        """End what `expect` has started, if that was not needed."""

    def archives(self, glob: str | None = None, *, opened: bool = False) -> list[Archive]:
        """Its archives, oldest first, of those whose names match ``glob``.

        The order is borg's, which knows more of a second than it tells. With ``opened`` each must
        be one that can be opened: a list alone is but what somebody wrote into it.
        Raises BorgPullError.
        """
        answer = self.run(self._listing(glob, opened=opened))
        return [_archive(entry) for entry in json.loads(answer.stdout)["archives"]]

    def _listing(self, glob: str | None, *, opened: bool) -> list[str]:  # noqa: ARG002
        which = ["--consider-checkpoints"] if glob is None else ["--glob-archives", glob]
        return ["list", "--json", *which, str(self.repository.path)]

    def checkpoints(self, glob: str) -> list[Archive]:
        """What interrupted runs have left of archives that match ``glob``. Raises BorgPullError."""
        raise NotImplementedError

    def archive(self, name: str) -> Archive | None:
        """The one of that very name."""
        return self.named(name, self.archives(escaped(name)))

    def named(self, name: str, listed: Sequence[Archive]) -> Archive | None:
        """The one of that very name, of those that `archives` has ``listed``."""
        return next((one for one in listed if one.name == name), None)

    def info(self, archive: str) -> dict[str, Any]:
        """What ``borg info --json`` says of one archive."""
        answer = self.run(["info", "--json", f"{self.repository.path}::{archive}"])
        found: dict[str, Any] = json.loads(answer.stdout)["archives"][0]
        return found


class LocalRepository(Archives):
    """A repository and the secret that opens it, got when it is first needed."""

    def __init__(
        self,
        repository: Repository,
        passphrase: Callable[[], bytes | None],
        stop: Stop | None = None,
        log: LogFile | None = None,
    ) -> None:
        self.repository = repository
        self.passphrase = passphrase
        self.stop = stop
        self.log = log
        self._expected: tuple[list[str], subprocess.Popen[bytes]] | None = None

    def _listing(self, glob: str | None, *, opened: bool) -> list[str]:
        *words, path = super()._listing(glob, opened=opened)
        # What is asked for beyond the usual stands in the archive itself.
        return [*words, *(["--format", "{archive}{id}{time}{end}"] if opened else []), path]

    def checkpoints(self, glob: str) -> list[Archive]:
        words = ["list", "--json", "--consider-checkpoints", "--glob-archives", glob]
        answer = self.run([*words, str(self.repository.path)])
        found = [_archive(entry) for entry in json.loads(answer.stdout)["archives"]]
        return [one for one in found if _CHECKPOINT.search(one.name)]

    def expect(self, glob: str) -> None:
        words = self._listing(glob, opened=True)
        # What is wrong is told when it is asked in earnest.
        with contextlib.suppress(BorgPullError, OSError):
            waiting = preload.command(self._argv(words), preload.AT_A_BYTE)
            if waiting is not None:
                self._expected = words, self._start(words[0], waiting, stdin=subprocess.PIPE)

    def dismiss(self) -> None:
        if self._expected is not None:
            _, process = self._expected
            self._expected = None
            # It reads the end of its input, and what it says is nobody's concern.
            process.communicate()

    def _expected_or_new(self, words: Sequence[str], cwd: Path | None) -> subprocess.Popen[bytes]:
        if self._expected is None or self._expected[0] != [*words]:
            return self.start(words, cwd=cwd)
        _, process = self._expected
        self._expected = None
        assert process.stdin is not None
        # One that has ended has said why.
        with contextlib.suppress(BrokenPipeError), process.stdin as word:
            word.write(b"\n")
        return process

    def run(
        self,
        words: Sequence[str],
        *,
        cwd: Path | None = None,
        on_line: Callable[[bytes], None] | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Run ``borg WORDS``; warnings pass. Raises RepositoryError for an error of borg's.

        ``on_line`` is given each line of standard error as it comes.
        """
        process = self._expected_or_new(words, cwd)
        log = self.log

        def hear(line: bytes) -> None:
            if log is not None:
                log.write(foreign(line.rstrip(b"\n")) + b"\n")
            if on_line is not None:
                on_line(line)

        with self.bounded(words[0], process, timeout):
            stdout, stderr = _output(process, hear, self.stop)
        answer = Answer(process.returncode, stdout, stderr)
        self.check(words[0], answer.code, stderr)
        return answer

    def stream(self, words: Sequence[str]) -> Iterator[bytes]:
        """The lines that ``borg WORDS`` prints, as they come. Raises like `run`, at the end."""
        with tempfile.TemporaryFile() as said:
            process = self.start(words, stderr=said)
            assert process.stdout is not None
            with self.bounded(words[0], process):
                while line := process.stdout.readline(_LONGEST_LINE):
                    if len(line) == _LONGEST_LINE:
                        raise RepositoryError(f"borg {words[0]} says a line of {len(line)} bytes")
                    yield line
                process.stdout.close()
            said.seek(max(0, said.seek(0, os.SEEK_END) - _LONGEST_LINE))
            told = said.read().decode("utf-8", "replace")
            self.check(words[0], process.returncode, told)

    @contextmanager
    def bounded(
        self, verb: str, process: subprocess.Popen[bytes], seconds: float | None = None
    ) -> Iterator[None]:
        """Have borg end by itself within this, but not after ``seconds``, else its deadline.

        Where this is cut short, borg ends in order, and is waited for. Raises RepositoryError at
        the deadline.
        """
        if seconds is None:
            is_lookup = verb in _LOOKUPS
            deadline = self.repository.lookup_deadline if is_lookup else self.repository.deadline
            seconds = deadline.total_seconds()
        watch = _Watch(process, seconds)
        try:
            yield
            process.wait()
        except BaseException as error:
            process.terminate()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
            process.wait()
            if not (watch.is_over and isinstance(error, BorgPullError)):
                raise
        finally:
            watch.stop()
        if watch.is_over:
            raise RepositoryError(
                f"borg {verb} on {self.repository.path} did not end within {seconds:.0f} s",
                "is what the source has written there what it seems? if so, give the repository "
                "another deadline or lookup_deadline",
            )

    def check(self, verb: str, code: int, stderr: str) -> None:
        """Raise RepositoryError, AccessError, LockedError if that is how a failed borg ends."""
        if not is_done(code):
            if self.stop is not None and self.stop.reason is not None:
                raise RepositoryError(f"borg {verb}: {self.stop.reason}")
            if "MemoryError" in stderr:
                raise RepositoryError(
                    f"borg {verb} on {self.repository.path} wants more memory than "
                    f"{self.repository.memory.human_readable()}",
                    "is what the source has written there what it seems? if so, give the "
                    "repository more memory",
                )
            lines = stderr.splitlines()
            fault = obstacles.access_fault(self.repository.path) or obstacles.lock_fault(
                self.repository.path, lines
            )
            if fault is not None:
                raise fault
            hint = next((hint for words, hint in _KNOWN_ENDS if words in stderr), None)
            last = sentence(last_words(lines) or "no message")
            wrong = obstacles.passphrase_fault(self.repository, last, is_sent=True)
            if wrong is not None:
                raise wrong
            if "No space left on device" in last:
                hint = f"on this host: see df {self.repository.path}, and df ~ for borg's cache"
            raise RepositoryError(f"borg {verb} on {self.repository.path}: {last}", hint)

    def start(
        self,
        words: Sequence[str],
        *,
        cwd: Path | None = None,
        stdout: int | IO[bytes] = subprocess.PIPE,
        stderr: int | IO[bytes] = subprocess.PIPE,
        confined_to: Cell | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start ``borg WORDS``; it ends when the thread that starts it does.

        One that is confined can only read the repository: it takes no lock.
        """
        return self._start(
            words[0],
            self._argv(words),
            cwd=cwd,
            stdout=stdout,
            stderr=stderr,
            confined_to=confined_to,
        )

    def _argv(self, words: Sequence[str]) -> list[str]:
        return [str(self.repository.borg), words[0], "--lock-wait", str(LOCK_WAIT), *words[1:]]

    def _start(
        self,
        verb: str,
        argv: list[str],
        *,
        cwd: Path | None = None,
        stdin: int = subprocess.DEVNULL,
        stdout: int | IO[bytes] = subprocess.PIPE,
        stderr: int | IO[bytes] = subprocess.PIPE,
        confined_to: Cell | None = None,
    ) -> subprocess.Popen[bytes]:
        passphrase = self.passphrase()
        environment = self._environment()
        if verb in {"list", "info"}:
            # borg 1's JSON gives local time and does not say of which zone.
            environment["TZ"] = "UTC"
        reader: int | None = None
        if passphrase is not None:
            reader, writer = os.pipe()
            # Fits the pipe: a passphrase is short, and nobody reads yet.
            os.write(writer, passphrase + b"\n")
            os.close(writer)
            environment["BORG_PASSPHRASE_FD"] = str(reader)
        largest = None
        if confined_to is not None:
            largest = confined_to.largest
            argv = confined.command(self._order(argv, environment, confined_to))
        try:
            return subprocess.Popen(
                tied(limited(argv, self.repository, largest)),
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=() if reader is None else (reader,),
                env=environment,
                cwd=cwd or "/",
                # A terminal's ^C is for us to pass on: two signals would disturb borg's own end.
                start_new_session=True,
            )
        except OSError as error:
            raise RepositoryError(f"cannot run {argv[0]}: {error.strerror}") from error
        finally:
            if reader is not None:
                os.close(reader)

    def _order(self, argv: list[str], environment: dict[str, str], cell: Cell) -> confined.Order:
        keys = _config_directory(environment) / "keys"
        own = str(cell.own)
        return confined.Order(
            argv=[*argv[:2], "--bypass-lock", *argv[2:]],
            environment={
                name: value for name, value in environment.items() if not name.startswith("XDG_")
            }
            | {"TMPDIR": own, "BORG_BASE_DIR": own, "BORG_KEYS_DIR": str(keys)},
            loaded=confined.places_of(self.repository.borg),
            writable=[str(cell.directory), own],
            readable=[str(self.repository.path), str(keys)],
            umask=0o077,
            is_sealed=True,
            directory=str(cell.directory),
            is_connected=False,
        )

    def _environment(self) -> dict[str, str]:
        environment = {
            "PATH": "/usr/bin:/bin",
            "LC_ALL": "C.UTF-8",
            "PYTHONNOUSERSITE": "1",
            "BORG_EXIT_CODES": "modern",
            # The path is the configuration's: nobody but the admin can have moved or made it.
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }
        # borg's keys, cache and security data are those of whoever else uses borg as this user.
        for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "TMPDIR", "BORG_BASE_DIR"):
            if name in os.environ:
                environment[name] = os.environ[name]
        return environment


_KNOWN_ENDS = (
    (
        "newer than repository",
        "it was put back from a copy, or somebody plays an old one to this host; if it was you, "
        'docs/restore.md says what to do under "A repository put back from a copy"',
    ),
)
"""Ends of borg's that happen to everybody, in the words of both versions, and what to do."""


def _config_directory(environment: dict[str, str]) -> Path:
    """Where borg keeps its keys (its docs, "Environment Variables")."""
    base = environment.get("BORG_BASE_DIR")
    home = base or environment.get("HOME") or str(Path("~").expanduser())
    config = f"{home}/.config"
    if base is None:
        config = environment.get("XDG_CONFIG_HOME", config)
    return Path(config) / "borg"


def is_done(code: int) -> bool:
    """Whether borg's exit code, modern or not, is success or a warning."""
    return code in (0, 1) or 100 <= code <= 127


class _Watch:
    """Tells borg to end after ``seconds``, and kills it should it not."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        self.is_over = False
        self._process = process
        self._start(seconds, self._end)

    def _start(self, seconds: float, action: Callable[[], None]) -> None:
        self._timer = threading.Timer(seconds, action)
        self._timer.daemon = True
        self._timer.start()

    def _end(self) -> None:
        self.is_over = True
        self._process.terminate()
        self._start(_KILL_SECONDS, self._process.kill)

    def stop(self) -> None:
        self._timer.cancel()


def _output(
    process: subprocess.Popen[bytes], on_line: Callable[[bytes], None], stop: Stop | None
) -> tuple[bytes, str]:
    """All it says; told to end at ``stop``, which borg does in order. Raises RepositoryError."""
    assert process.stdout is not None
    assert process.stderr is not None
    stdout, stderr, heard = bytearray(), bytearray(), 0
    open_streams = {process.stdout.fileno(): stdout, process.stderr.fileno(): stderr}
    poll = select.poll()
    for descriptor in open_streams:
        poll.register(descriptor, select.POLLIN)
    if stop is not None:
        poll.register(stop.fileno(), select.POLLIN)
    while open_streams:
        for descriptor, _events in poll.poll():
            if descriptor not in open_streams:
                poll.unregister(descriptor)
                process.terminate()
                continue
            block = os.read(descriptor, 65536)
            open_streams[descriptor].extend(block)
            if len(open_streams[descriptor]) > _MOST_OUTPUT:
                raise RepositoryError(f"borg says more than {_MOST_OUTPUT >> 20} MB")
            if not block:
                poll.unregister(descriptor)
                del open_streams[descriptor]
            elif open_streams[descriptor] is stderr:
                while (end := stderr.find(b"\n", heard) + 1) > 0:
                    on_line(bytes(stderr[heard:end]))
                    heard = end
    if heard < len(stderr):
        on_line(bytes(stderr[heard:]))
    process.stdout.close()
    process.stderr.close()
    return bytes(stdout), stderr.decode("utf-8", "replace")


def _archive(entry: dict[str, Any]) -> Archive:
    moment = datetime.fromisoformat(entry["time"]).replace(tzinfo=UTC)
    return Archive(id=entry["id"], name=entry["archive"], time=moment)
