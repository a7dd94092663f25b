"""One attempt at one job: listener, ssh, wait, look the archive up, judge.

`attempt` is the story. It runs in a thread of its own and is told to stop through a `Stop`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from borg_pull.errors import BorgPullError, ConfigurationError, FailedError
from borg_pull.pull import obstacles, outcome, said, source, ssh
from borg_pull.pull.config import Job, Repository, Source, archive_prefix
from borg_pull.pull.ledger import Run
from borg_pull.pull.log import LogFile, foreign
from borg_pull.pull.outcome import Evidence, Outcome
from borg_pull.pull.places import Places
from borg_pull.pull.repository import Archive, Archives
from borg_pull.pull.said import Greeting, Progress, Transcript
from borg_pull.pull.serve import Serving
from borg_pull.pull.source import Request
from borg_pull.pull.stop import Stop

HELLO_SECONDS = 60.0
_NOT_RUN = (126, 127)
"""How a shell, or setpriv, says that it could not execute what it was told to."""
_REFUSALS = (1, 2)
"""How the original tool, a script of Python's, ends with a word that it does not know."""
_STDOUT_LIMIT = 1024 * 1024
_LONGEST_WAIT = 3600.0
"""Seconds; poll(2) counts milliseconds in an int."""
_LINE_LIMIT = 256 * 1024
_SSH_TERM_SECONDS = 5.0
_PROGRESS_SECONDS = 0.5
USUAL_RUNS = 5
_SHRUNK_ADVICE = (
    "until one is of the usual size nothing is pruned; if it is right: borg-pull accept"
)

Emit = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Task:
    """A job with everything it names, resolved."""

    name: str
    job: Job
    source_name: str
    source: Source
    repository_name: str
    repository: Repository


@dataclass
class Attempt:
    """What an attempt came to, with the figures for the ledger."""

    outcome: Outcome
    busy: bool = False
    """Whether it may go better later: the source is busy, or somebody has locked the repository."""
    doubtful: bool = False
    """Whether it may have failed because the source is not what it once said it was."""
    session: str | None = None
    exit: int | None = None
    archive: str | None = None
    archive_id: str | None = None
    files: int | None = None
    original_size: int | None = None
    new_size: int | None = None
    duration: float = 0.0
    complaints: list[str] = field(default_factory=list)
    listed: frozenset[str] | None = None
    """The ids of the job's archives in the repository; None where nobody looked."""


class UnreachableError(FailedError):
    """The source could not be talked to at all."""


def attempt(
    task: Task,
    greeting: Greeting,
    places: Places,
    *,
    archives: Archives,
    passphrase: Callable[[], bytes | None],
    earlier: Sequence[Run],
    usual_sizes: Sequence[int],
    on_record: Collection[str],
    log: LogFile,
    emit: Emit,
    stop: Stop,
    deadline: float,
) -> Attempt:
    """Pull ``task`` once; never raises for what the source or the network does.

    ``earlier`` are the job's last runs that succeeded, ``usual_sizes`` what its archives hold if
    all is well, ``on_record`` the ids of all it has; ``deadline`` is of time.monotonic(). Raises
    BorgPullError for what keeps the pull from being tried at all.
    """
    started = time.monotonic()
    barred = obstacles.access_fault(task.repository.path)
    if barred is not None:
        raise barred
    archives.prepare()
    # All the job's at once: one look finds the new archive, and what is missing of the others.
    glob = f"{archive_prefix(task.name, task.job)}*"
    name = _archive_name(task, {run.archive for run in earlier}, stop)
    request = source.create(greeting, task.source, task.job, task.repository.path, name)
    secret = sent_secret(task, greeting, passphrase)
    try:
        with Serving(
            task.repository, places.runtime_dir, log, append_only=task.job.append_only
        ) as serving:
            ready = partial(archives.expect, glob)
            run = Conversation(
                serving,
                stop,
                deadline,
                log,
                emit=emit,
                on_finishing=ready,
                stall=stall_of(task, greeting),
            )
            run.pull(ssh_command(task, places, request, serving), secret)
        look = _looked_up(archives, run, name, glob, on_record)
    finally:
        archives.dismiss()
    archive, statistics_ = look.archive, look.statistics
    original_size = statistics_.get("original_size")
    evidence = Evidence(
        ssh_exit=run.exit,
        given_up=run.given_up,
        connected=serving.is_connected,
        serve_signal=serving.killed_by,
        transcript=run.transcript,
        ssh_said=run.ssh_said,
        archive_id=None if archive is None else archive.id,
        lookup_error=look.error,
        original_size=original_size,
        minimum_size=int(task.job.minimum_size),
        usual_size=int(statistics.median(usual_sizes)) if usual_sizes else None,
        shrink_alarm=task.job.shrink_alarm,
    )
    result = run.transcript.result
    verdict = outcome.judge(evidence)
    if serving.config_fault is not None:
        verdict = replace(verdict, verdict="failure", error=serving.config_fault)
    refused = run.host_key_fault(task.source_name)
    error = source.with_advice(verdict.error, greeting) if refused is None else refused.line()
    locked = None
    is_tampered = serving.config_fault is not None
    if verdict.verdict == "failure" and run.given_up is None and not is_tampered:
        locked = obstacles.lock_fault(task.repository.path, run.transcript.complaints or ())
    known: FailedError | None = locked
    if verdict.verdict == "failure" and error is not None and known is None:
        known = obstacles.space_fault(
            task.repository.path, error, run.transcript.complaints
        ) or obstacles.passphrase_fault(task.repository, error, is_sent=greeting.passphrase_stdin)
    if known is not None:
        error = known.line()
    if verdict.shrunk:
        error = f"{error}; {_SHRUNK_ADVICE} {task.name}"
    return Attempt(
        outcome=replace(verdict, error=error),
        busy=(outcome.is_busy(evidence) or locked is not None) and not is_tampered,
        doubtful=outcome.is_doubtful(evidence),
        session=None if result is None else result.session,
        exit=run.exit,
        archive=name if archive is None else archive.name,
        archive_id=None if archive is None else archive.id,
        files=statistics_.get("nfiles"),
        original_size=original_size,
        new_size=statistics_.get("deduplicated_size"),
        duration=round(time.monotonic() - started, 3),
        complaints=[*run.transcript.complaints],
        listed=look.listed,
    )


def hello(
    source_: Source,
    name: str,
    known_hosts: Path,
    stop: Stop | None = None,
    log: LogFile | None = None,
) -> Greeting:
    """Ask the source who it is. Raises UnreachableError, HostKeyError, ConfigurationError.

    The original tool refuses the word; that, and nothing else, is taken for it: no failure of ssh,
    here or on the way, and none of a command that is not there or was killed.
    """
    if source_.protocol == "original":
        return source.original_greeting(name, source_)
    unusable = ssh.key_fault(name, source_.identity)
    if unusable is not None:
        raise unusable
    argv = ssh.command(source_, known_hosts, "hello", None)
    run = Conversation(None, stop, time.monotonic() + HELLO_SECONDS, log)
    try:
        run.pull(argv, None)
    except OSError as error:
        raise UnreachableError(f"cannot run {argv[0]}: {error.strerror}") from error
    if run.given_up is not None:
        why = (stop and stop.reason) or f"it did not answer within {HELLO_SECONDS:.0f} s"
        raise UnreachableError(f"source {name}: {why}")
    if run.exit == 0:
        try:
            return said.greeting(run.answer)
        except ValueError as error:
            raise UnreachableError(f"source {name}: {error}") from error
    refused = run.host_key_fault(name)
    if refused is not None:
        raise refused
    lines = run.transcript.complaints
    ours = any(line.startswith("borg-pull-source: ") for line in lines)
    last = lines[-1] if lines else f"exit {run.exit}"
    if run.exit == ssh.CONNECTION_FAILED:
        raise UnreachableError(f"source {name}: {last}", ssh.remedy(name, lines))
    if run.exit in _NOT_RUN:
        raise UnreachableError(
            f"source {name}: {last}",
            "its forced command cannot be run there, or no ssh here; look whether it is installed",
        )
    if run.exit is not None and run.exit < 0:
        raise UnreachableError(f"ssh to source {name} was killed by signal {-run.exit}")
    if source_.protocol == "auto" and run.exit in _REFUSALS and not ours:
        return source.original_greeting(name, source_, last)
    raise UnreachableError(f"source {name}: {last}")


def _archive_name(task: Task, taken: Collection[str | None], stop: Stop) -> str:
    """The archive's name; where it counts seconds, one that no run of this second has taken."""

    def at(moment: datetime) -> str:
        return source.archive_name(task.job.archive, task.name, task.source_name, moment)

    now = datetime.now(UTC)
    next_second = now.replace(microsecond=0) + timedelta(seconds=1)
    try:
        name, later = at(now), at(next_second)
    except ValueError as error:
        raise ConfigurationError(f"job.{task.name}.archive {error}") from error
    if name not in taken or later == name:
        return name
    stop.wait((next_second - now).total_seconds())
    return later


def sent_secret(
    task: Task, greeting: Greeting, passphrase: Callable[[], bytes | None]
) -> bytes | None:
    """The passphrase to send with a request, if the source wants one. Raises ConfigurationError."""
    secret = passphrase() if greeting.passphrase_stdin else None
    if greeting.passphrase_stdin and secret is None:
        raise ConfigurationError(
            f"source {task.source_name} wants the passphrase with each request, "
            f"and repository {task.repository_name} has none",
            "give passphrase_file, passphrase_command or passphrase_credential",
        )
    return secret


def stall_of(task: Task, greeting: Greeting) -> float | None:
    """Seconds without any movement after which a conversation is over.

    The original tool says nothing for as long as it reads what it has backed up before.
    """
    if greeting.protocol == source.ORIGINAL:
        return None
    return task.job.stall_timeout.total_seconds()


def ssh_command(task: Task, places: Places, request: Request, serving: Serving) -> list[str]:
    """The argv that sends ``request`` to the task's source, with the socket that is served.

    Raises ConfigurationError for a key that ssh could not use.
    """
    unusable = ssh.key_fault(task.source_name, task.source.identity)
    if unusable is not None:
        raise unusable
    forwarding = ssh.Forwarding(remote=request.socket, local=serving.path)
    return ssh.command(task.source, places.known_hosts, request.line, forwarding)


class Conversation:
    """The ssh of one request, from start to end.

    With ``serving``, the one that its socket is for. ``on_line`` is given each line of standard
    error that tells of no progress. ``on_finishing`` is called once borg has read all it will read.
    It is ended when nothing has moved for ``stall`` seconds: neither words nor ``borg serve``.
    """

    def __init__(
        self,
        serving: Serving | None,
        stop: Stop | None,
        deadline: float,
        log: LogFile | None,
        *,
        emit: Emit | None = None,
        on_line: Callable[[bytes], None] | None = None,
        on_finishing: Callable[[], None] | None = None,
        answer_limit: int = _STDOUT_LIMIT,
        stall: float | None = None,
    ) -> None:
        self.transcript = Transcript()
        self.exit: int | None = None
        self.given_up: str | None = None
        self.ssh_said = ""
        self._serving = serving
        self._stop = stop
        self._deadline = deadline
        self._log = log
        self._emit = emit
        self._on_line = on_line
        self._on_finishing = on_finishing
        self._answer_limit = answer_limit
        self._stdout = bytearray()
        self._line = bytearray()
        self._started = time.monotonic()
        self._stall = stall
        self._moved_at = self._started
        self._served: object = None
        """What `Serving.moved` gave last."""
        self._shown = 0.0
        self._kill_at: float | None = None

    @property
    def answer(self) -> bytes:
        """What came on standard output."""
        return bytes(self._stdout)

    def host_key_fault(self, name: str) -> ssh.HostKeyError | None:
        """What was wrong with the host key of the source ``name``, if that ended it."""
        if self._serving is not None and self._serving.is_connected:
            return None
        return ssh.host_key_fault(name, self.exit, self.transcript.complaints)

    def pull(self, argv: list[str], secret: bytes | None) -> None:
        """Run ``argv``; ``secret`` is its input's only line. Nothing of it runs on, come what may.

        Raises OSError.
        """
        with subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL if secret is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ssh.environment(),
            start_new_session=True,
        ) as self._process:
            try:
                if secret is not None:
                    assert self._process.stdin is not None
                    with contextlib.suppress(BrokenPipeError), self._process.stdin as stream:
                        stream.write(secret + b"\n")
                self._listen()
                self._reap()
            except BaseException:
                self._process.kill()
                raise
        self._hear(b"\n")

    def _listen(self) -> None:
        """Until all it said has been read, which is when it ends."""
        stdout, stderr = self._process.stdout, self._process.stderr
        assert stdout is not None
        assert stderr is not None
        poll = select.poll()
        open_streams = {stdout.fileno(), stderr.fileno()}
        for descriptor in open_streams:
            poll.register(descriptor, select.POLLIN)
        if self._stop is not None:
            poll.register(self._stop.fileno(), select.POLLIN)
        listening = -1
        if self._serving is not None:
            listening = self._serving.listener.fileno()
            poll.register(listening, select.POLLIN)
        while open_streams:
            for descriptor, _events in poll.poll(self._patience() * 1000):
                if descriptor == listening:
                    assert self._serving is not None
                    if self._serving.accept(self._process.pid):
                        self._moved_at = time.monotonic()
                        poll.unregister(listening)
                        listening = -1
                elif descriptor in open_streams:
                    block = os.read(descriptor, 65536)
                    if not block:
                        open_streams.discard(descriptor)
                        poll.unregister(descriptor)
                        continue
                    self._moved_at = time.monotonic()
                    if descriptor == stdout.fileno():
                        self._stdout += block[: self._answer_limit - len(self._stdout)]
                    else:
                        self._hear(block)
                else:
                    poll.unregister(descriptor)
            self._keep_deadline()

    def _reap(self) -> None:
        """It has closed its output; should it not end, it is made to at the deadline."""
        while self.exit is None:
            try:
                self.exit = self._process.wait(self._patience())
            except subprocess.TimeoutExpired:
                self._keep_deadline()

    def _patience(self) -> float:
        until = self._deadline if self.given_up is None else (self._kill_at or 0.0)
        longest = _LONGEST_WAIT if self._stall is None else min(_LONGEST_WAIT, self._stall / 4)
        return min(max(0.0, until - time.monotonic()) + 0.001, longest)

    def _keep_deadline(self) -> None:
        now = time.monotonic()
        if self.given_up is None and self._stop is not None and self._stop.reason is not None:
            self._give_up(self._stop.reason)
        elif self.given_up is None and now >= self._deadline:
            self._give_up("the deadline was reached")
        elif self.given_up is None and self._stall is not None and self._has_stalled(now):
            self._give_up(f"nothing has moved for {self._stall:g} s, its stall_timeout")
        elif self._kill_at is not None and now >= self._kill_at:
            self._kill_at = now + _SSH_TERM_SECONDS
            self._process.kill()

    def _has_stalled(self, now: float) -> bool:
        assert self._stall is not None
        if self._serving is not None and now - self._moved_at >= self._stall / 4:
            served = self._serving.moved()
            if served != self._served:
                self._served, self._moved_at = served, now
        return now - self._moved_at >= self._stall

    def _give_up(self, reason: str) -> None:
        self.given_up = reason
        self._kill_at = time.monotonic() + _SSH_TERM_SECONDS
        # ssh's end is what the source notices, and what closes the connection of borg serve.
        self._process.send_signal(signal.SIGTERM)

    def _hear(self, block: bytes) -> None:
        self._line += block
        *lines, rest = self._line.split(b"\n")
        self._line = bytearray(rest[-_LINE_LIMIT:])
        for line in lines:
            progress = self.transcript.take(bytes(line))
            if self.transcript.is_finishing and self._on_finishing is not None:
                self._on_finishing()
                self._on_finishing = None
            if progress is not None:
                self._show(progress)
            elif line:
                if self._log is not None:
                    self._log.write(foreign(bytes(line)) + b"\n")
                if self._on_line is not None:
                    self._on_line(bytes(line))
                if not line.startswith(b"{"):
                    self.ssh_said = said.sentence(line.decode("utf-8", "replace").strip())

    def _show(self, progress: Progress) -> None:
        now = time.monotonic()
        if self._emit is not None and now - self._shown >= _PROGRESS_SECONDS:
            self._shown = now
            self._emit(
                {
                    "event": "progress",
                    "files": progress.files,
                    "read_bytes": progress.read_bytes,
                    "new_bytes": progress.new_bytes,
                    "elapsed": round(now - self._started, 1),
                }
            )


@dataclass(frozen=True)
class _Look:
    """What a look into the repository after a run has found."""

    archive: Archive | None = None
    statistics: dict[str, int] = field(default_factory=dict)
    """The archive's, as borg gave them."""
    listed: frozenset[str] | None = None
    """The ids of all that match."""
    error: str | None = None
    """Why the archive is not known."""


def _looked_up(
    archives: Archives, run: Conversation, name: str, glob: str, on_record: Collection[str]
) -> _Look:
    """What is in the repository of those that match ``glob``, and of the archive ``name``.

    Only for a run that may have made one: a failure needs no look. What the source says of the
    archive is not believed where it can be checked: it must be the one that was asked for, and
    none of an earlier run.
    """
    if run.given_up is not None or run.exit not in (0, 1):
        return _Look()
    claimed = said.made(run.answer)
    made = name if claimed.name is None else claimed.name
    if not source.is_named(made, name):
        return _Look(error=f"the source made {made}, not the archive {name}")
    try:
        found = archives.archives(glob, opened=True)
        listed = frozenset(one.id for one in found)
        archive = archives.named(made, found)
        if archive is None:
            return _Look(listed=listed)
        stats = claimed.statistics or said.statistics(archives.info(made).get("stats"))
    except (BorgPullError, ValueError, LookupError) as error:
        return _Look(error=error.line() if isinstance(error, BorgPullError) else str(error))
    if archive.id in on_record or claimed.id not in (None, archive.id):
        return _Look(listed=listed, error=f"the archive {made} is another one than the run made")
    return _Look(archive, stats, listed)
