"""One run of AIO's daily backup: the states it goes through, one a method.

`Flow.run` is the story. Before each thing that has an effect, the journal has it, so that `settle`
can finish what a killed companion began. Nothing here ends a backup: a deadline ends our waiting.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar
from urllib.parse import urlsplit

from borg_pull.aio.configuration import (
    HOST_LOCATION,
    REMOTE_REPOSITORY,
    AioConfiguration,
    TargetKeys,
    is_same,
    keys_of,
    shown,
)
from borg_pull.aio.engine import Container, Engine, EngineError
from borg_pull.aio.jobs import MAX_LINE
from borg_pull.aio.places import modes
from borg_pull.aio.texts import MAX_TARGET, MAX_TEXT, Secrets, brief
from borg_pull.aio.verdict import (
    INITIALISED,
    REFUSED_TARGET,
    Kind,
    Result,
    Seen,
    Verdict,
    is_new,
    verdict,
)
from borg_pull.errors import (
    BORG_ERROR,
    BORG_SUCCESS,
    BORG_WARNING,
    BorgPullError,
    BusyError,
    FailedError,
    InternalError,
    SystemRefusedError,
)

if TYPE_CHECKING:
    from borg_pull.aio.engine import Origin
    from borg_pull.aio.jobs import Events
    from borg_pull.aio_policy import AioSettings, Target
    from borg_pull.audit import JSONValue

SCRIPT = "/daily-backup.sh"
PREFIX = "nextcloud-aio-"
LOCK_FILE = "daily_backup_running"
DUMP_LOCK_FILE = "backup-is-running"
REPOSITORY_LOCK_FILE = "aio-lockfile"
BACKUP_VOLUME = "nextcloud_aio_backupdir"
_REACH_SECONDS = 15
_MOST_ADDRESSES = 4  # of one name
_GREETING = b"SSH-"
_ASK_SECONDS = 20  # that a container may take to say what runs in it
_ASK_POLL = 0.05
_LOG_SECONDS = 5  # that the engine may take to tell the end of an ended container's log
_LATE_SECONDS = 30  # that a last look at all containers may take
_LOG_LINES = 50  # that the verdict looks at
_VERDICT_ATTEMPTS = 20
_MOST_LINES = 1000  # that wait to be told
_MAX_LINE_BYTES = 4 * MAX_LINE  # as many as its characters may take

Start = tuple[str, float | None]

State = Literal[
    "preflight", "switch-target", "run", "watch", "verdict", "health", "restore-target", "done"
]
CANCELLABLE: tuple[State, ...] = ("preflight", "switch-target", "health")
"""Where a run can be ended without leaving anything half done."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be run, of the whitelist's words alone."""

    kind: Kind
    target: Target | None
    """None: AIO's own stays."""
    restore_after: bool
    stop_containers: bool
    start_containers: bool
    automatic_updates: bool
    stop_timeout: int
    """Seconds after which a container that AIO is stopping is told of."""
    timeout: int
    """Seconds from the start of the script; then we stop waiting."""

    def environment(self) -> dict[str, str]:
        """What AIO's script reads, and all that it reads."""
        return {
            "DAILY_BACKUP": str(int(self.kind == "backup")),
            "CHECK_BACKUP": str(int(self.kind == "check")),
            "STOP_CONTAINERS": str(int(self.stop_containers)),
            "START_CONTAINERS": str(int(self.start_containers)),
            "AUTOMATIC_UPDATES": str(int(self.automatic_updates)),
        }


@dataclass(frozen=True, kw_only=True)
class Outcome(Verdict):
    """How a run ended."""

    exit: int
    """Of the request that asked for it."""
    exit_code: int | None
    """Of AIO's script, which proves nothing; None when it is not known."""
    target_restored: bool | None
    """None when none was to be put back, or still is."""
    is_settled: bool = True
    """False while a target is still to be put back."""

    def __post_init__(self) -> None:
        """Cut what others have worded: an end that is too long for the audit log has no record."""
        error, hint = (text if text is None else brief(text) for text in (self.error, self.hint))
        evidence = {
            key: brief(value) if isinstance(value, str) else value
            for key, value in self.evidence.items()
        }
        for name, value in (("error", error), ("hint", hint), ("evidence", evidence)):
            object.__setattr__(self, name, value)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds between two looks."""

    poll: float = 0.5
    look: float = 3.0
    reach: float = _REACH_SECONDS


class _DeadlineError(Exception):
    """A state has taken longer than it may."""


class _CancelledError(Exception):
    """Somebody who may has asked for the end, where it is safe."""


@dataclass(frozen=True, kw_only=True)
class _Watched:
    """How the script ended."""

    exit_code: int | None
    is_replaced: bool
    """The mastercontainer is another one than at the start, or gone."""


class Flow:
    """A run. ``note`` writes what it is given into the journal, and raises when it cannot."""

    def __init__(
        self,
        plan: Plan,
        settings: AioSettings,
        engine: Engine,
        events: Events,
        note: Callable[[Mapping[str, Any]], None],
        cancelled_by: Callable[[], str | None],
        pace: Pace | None = None,
    ) -> None:
        self._plan = plan
        self._settings = settings
        self._engine = engine
        self._configuration = AioConfiguration(settings.configuration_file)
        self._events = events
        self._note = note
        self._cancelled_by = cancelled_by
        self._pace = pace or Pace()
        self._secrets = Secrets({})
        self._target: TargetKeys = {}
        self._previous: TargetKeys | None = None
        self._before: Container | None = None
        self._master: Container | None = None
        self._expected: list[str] = []
        self._began = 0.0
        self._steady = 0.0
        self._earliest = 0.0
        self._deadline = 0.0
        self._known: dict[str, tuple[str, str | None]] = {}
        self._lines: queue.Queue[tuple[str, str] | None] = queue.Queue(_MOST_LINES)
        self._stopping_since: float | None = None
        self._slow: set[str] = set()
        self._read_start: tuple[str, float | None] | None = None
        self._log_reader: threading.Thread | None = None
        self._exit_code: int | None = None

    def run(self) -> Outcome:
        """All of it. What goes wrong is in the outcome."""
        try:
            outcome = self._backup()
        except BorgPullError as error:
            outcome = self._failed(error)
        except _CancelledError as error:
            outcome = self._failed(FailedError(str(error)))
        except Exception as error:  # noqa: BLE001 - a target is to be put back, whatever happened
            message = f"unexpected {type(error).__name__}: {error}"
            outcome = self._failed(InternalError(message, "please report it"))
        outcome = self._restored(outcome)
        self._enter_anyway("done")
        return outcome

    def _backup(self) -> Outcome:
        self._enter("preflight")
        self._preflight()
        self._enter("switch-target")
        self._switch_target()
        try:
            ended = self._run_script()
            if ended.is_replaced and self._plan.automatic_updates:
                self._wait_for_mastercontainer()
                ended = self._run_script()
            self._exit_code = ended.exit_code
            self._wait_for_backup()
        except _DeadlineError:
            return self._late()
        self._enter_anyway("verdict")
        outcome = self._verdict()
        if self._plan.start_containers or self._plan.automatic_updates:
            self._enter_anyway("health")
            outcome = self._healthy(outcome)
        return outcome

    def _enter(self, state: State) -> None:
        self._note({"state": state})
        self._events.add("state", state=state)

    def _enter_anyway(self, state: State) -> None:
        """The journal may find no room; from the script's start on it has all that it needs."""
        with contextlib.suppress(SystemRefusedError):
            self._note({"state": state})
        self._events.add("state", state=state)

    # preflight

    def _preflight(self) -> None:
        """Raises BorgPullError for what would make a backup fail, or harm one that runs."""
        settings = self._settings
        self._master = self._engine.inspect(settings.mastercontainer)
        if self._master is None:
            raise FailedError(
                f"there is no container {settings.mastercontainer}",
                "is Nextcloud AIO installed, and aio.mastercontainer its name?",
            )
        if not self._master.running:
            raise FailedError(
                f"the container {settings.mastercontainer} does not run", "start Nextcloud AIO"
            )
        content = self._configuration.read()
        self._secrets = Secrets(content.values)
        if not content.is_set_up:
            raise FailedError(
                "Nextcloud AIO is not set up: its script would do nothing and end with 0",
                "finish the set-up in AIO's interface",
            )
        running = self._engine.running()
        self._before = self._engine.inspect(settings.borgbackup_container)
        check_idle(self._engine, settings, running, is_restore=content.is_restore)
        self._target = content.target
        if self._plan.target is not None:
            self._target = keys_of_target(self._plan.target)
        if shown(self._target) is None:
            raise FailedError(
                "AIO has no backup target", "set one in its interface, or name one in the action"
            )
        self._check_location()
        self._check_reachable()
        own = (
            settings.mastercontainer,
            settings.borgbackup_container,
            settings.watchtower_container,
        )
        others = {name for name in running if name.startswith(PREFIX)}
        self._expected = sorted({*others, settings.apache_container} - set(own))
        self._check_cancelled()

    def _check_location(self) -> None:
        """AIO would have made what is missing there, on whatever file system it is."""
        where = shown(self._target)
        try:
            left = self._look_at_location()
        except OSError as error:
            raise FailedError(
                f"target {where} or a lock file of AIO's cannot be looked at: "
                f"{error.strerror or error}",
                "is it a path, and does its file system still answer?",
            ) from error
        for name, path in left.items():
            if name == REPOSITORY_LOCK_FILE:
                raise FailedError(
                    f"{path} makes AIO refuse",
                    "it is for scripts that work on the repository; remove it when none does",
                )
            # AIO's script does not mind; people should know of the crash.
            self._events.add("state", state="preflight", left_behind=name)

    def _look_at_location(self) -> dict[str, str]:
        """AIO's lock files. Raises FailedError for a target that is not where it should be."""
        location = _location(self._settings, self._target)
        # The engine makes the volume, and mounts what it may be bound to while it is used.
        is_volume = self._target.get(HOST_LOCATION) == BACKUP_VOLUME
        if location is not None and not is_volume and not self._target.get(REMOTE_REPOSITORY):
            repository = f"{location}/borg"
            config = f"{repository}/config"
            found = modes((location, config), self._settings.state_dir, self._pace.reach)
            if not stat.S_ISDIR(found.get(location, 0)):
                raise FailedError(
                    f"{brief(location, MAX_TARGET)} is not there; is its disk mounted?",
                    "nothing was stopped or changed",
                )
            if self._configuration.has_beside(INITIALISED) and config not in found:
                raise FailedError(
                    f"no repository in {brief(repository, MAX_TARGET)}; is its disk mounted?",
                    REFUSED_TARGET,
                )
        return lock_files(self._settings, self._target, self._pace.reach)

    def _check_reachable(self) -> None:
        remote = self._target.get(REMOTE_REPOSITORY)
        if not isinstance(remote, str) or not remote.startswith("ssh://"):
            return
        target = shown(self._target)
        try:
            url = urlsplit(remote)
            where = (url.hostname or "", url.port or 22)
        except ValueError as error:
            raise FailedError(f"target {target} is no URL: {error}") from error
        try:
            # The name may take its part of it, too.
            greeting = _in_time(2 * self._pace.reach, lambda: _greeting(where, self._pace.reach))
        except OSError as error:
            raise FailedError(
                f"target {target}: port {where[1]} of {where[0]} does not answer: "
                f"{error.strerror or error}",
                "is the host up, and the port that of its sshd?",
            ) from error
        except ValueError as error:
            raise FailedError(f"target {target} names no host: {error}") from error
        if greeting != _GREETING:
            raise FailedError(f"target {target}: what answers is no sshd")

    # switch-target

    def _switch_target(self) -> None:
        self._check_cancelled()
        now = self._configuration.read().target
        if self._plan.target is None or is_same(now, self._target):
            self._target = now
            return
        # On record before the write: whatever comes between, the way back is known.
        self._note({"previous": now, "ours": self._target, "restore": self._plan.restore_after})
        self._previous = now
        if not self._configuration.replace_target(now, self._target):
            raise BusyError("AIO's target was changed meanwhile", "try again")
        self._events.add("state", state="switch-target", target=shown(self._target))

    # run and watch

    def _run_script(self) -> _Watched:
        self._check_cancelled()
        self._enter("run")
        # Once more: who asked before the journal had this state was told that it would be heeded.
        self._check_cancelled()
        if not is_same(self._configuration.read().target, self._target):
            raise BusyError("AIO's target was changed meanwhile", "try again")
        settings = self._settings
        program = self._engine.start(settings.mastercontainer, [SCRIPT], self._plan.environment())
        # The one that the script is to run in; it may be another than that of preflight.
        self._master = self._engine.inspect(settings.mastercontainer)
        began = self._began
        if not began:
            self._before = self._engine.inspect(settings.borgbackup_container)
            began = time.time()
        self._note({"program": program, "began": began, "before": self._last_start()})
        if not self._began:
            self._began = self._earliest = began
            self._steady = time.monotonic()
            self._deadline = self._steady + self._plan.timeout
        self._read_in_background(self._engine.stream(program), script=True)
        self._enter_anyway("watch")
        return self._watch(program)

    def _read_in_background(
        self, stream: Iterator[tuple[Origin, bytes]], *, script: bool
    ) -> threading.Thread:
        """Have its lines queued, and None after the last one of the script's."""

        def read() -> None:
            try:
                for origin, line in _lines(stream):
                    name = self._settings.borgbackup_container
                    if script:
                        name = "daily-backup.sh" if origin == "stdout" else "stderr"
                    self._lines.put((name, line))
            except EngineError as error:
                self._lines.put(("stderr", error.line()))
            finally:
                if script:
                    self._lines.put(None)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        return thread

    def _watch(self, program: str) -> _Watched:
        """Until the script has ended, or cannot be seen any more. Raises _DeadlineError."""
        is_open = True
        for _ in self._looks():
            is_open = is_open and not self._hand_on()
            if not is_open:
                ended = self._ended(program)
                if ended is not None:
                    return ended
        raise _DeadlineError

    def _looks(self) -> Iterator[None]:
        """Look at the containers again and again, until the deadline; other work may be done
        between."""
        looked = 0.0
        while time.monotonic() < self._deadline:
            self._look_at_clock()
            if time.monotonic() - looked >= self._pace.look:
                self._look()
                looked = time.monotonic()
            yield

    def _hand_on(self) -> bool:
        """Tell what was written, and wait a little for more; True at the end of the script's."""
        with contextlib.suppress(queue.Empty):
            # Not without end: a script that writes on and on must not outrun the deadline.
            for count in range(_MOST_LINES):
                entry = self._lines.get(timeout=0 if count else self._pace.poll)
                if entry is None:
                    return True
                origin, line = entry
                if not self._events.is_full:
                    self._events.output(origin, self._secrets.masked(line))
        return False

    def _ended(self, program: str) -> _Watched | None:
        """How the script ended; None when it has not. An engine that does not answer leaves that
        open."""
        self._hand_on()
        before = self._master
        try:
            state = self._engine.exec_state(program)
            master = self._engine.inspect(self._settings.mastercontainer)
            is_replaced = (
                master is None
                or before is None
                or not master.running
                or master.start != before.start
            )
            is_running = state is not None and state.running
            if state is None and not is_replaced:
                # The engine was started anew and has forgotten; the script may have lived on.
                is_running = script_runs(self._engine, self._settings.mastercontainer)
            if is_running and not is_replaced:
                return None
        except EngineError:
            return None
        return _Watched(
            exit_code=None if state is None else state.exit_code, is_replaced=is_replaced
        )

    def _look(self) -> None:
        """Tell which containers are in another state than before, and read a new backup's log."""
        settings = self._settings
        names = {*self._expected, settings.mastercontainer, settings.watchtower_container}
        try:
            for name in sorted(names):
                if time.monotonic() > self._deadline:
                    return
                self._tell(name, self._engine.inspect(name))
            found = self._engine.inspect(settings.borgbackup_container)
            self._tell(settings.borgbackup_container, found)
        except EngineError as error:
            self._tell_state("engine", "gone", None, brief(error.line()))
            return
        self._tell_state("engine", "answers", None, None)
        self._tell_of_slow_ones(found)
        if found is not None and self._is_ours(found) and found.start != self._read_start:
            self._read_start = found.start
            log = self._engine.follow(found.id, since=self._since(found))
            self._log_reader = self._read_in_background(log, script=False)

    def _tell(self, name: str, container: Container | None) -> None:
        status = "absent" if container is None else container.status
        self._tell_state(name, status, None if container is None else container.health, None)

    def _tell_state(self, name: str, status: str, health: str | None, error: str | None) -> None:
        before = self._known.get(name)
        if before == (status, health):
            return
        self._known[name] = (status, health)
        if before is not None or (name, status) != ("engine", "answers"):
            self._events.add("container", name=name, status=status, health=health, error=error)

    def _tell_of_slow_ones(self, backup: Container | None) -> None:
        """Tell which containers AIO does not get stopped, once: its backup waits for them."""
        running = [name for name in self._expected if self._known[name][0] == "running"]
        is_stopping = 0 < len(running) < len(self._expected)
        if not is_stopping or (backup is not None and self._is_ours(backup)):
            self._stopping_since = None
            return
        if self._stopping_since is None:
            self._stopping_since = time.monotonic()
        elif time.monotonic() - self._stopping_since > self._plan.stop_timeout:
            error = f"not stopped after {self._plan.stop_timeout} s"
            for name in running:
                if name not in self._slow:
                    self._slow.add(name)
                    self._events.add("container", name=name, status="running", error=error)

    def _look_at_clock(self) -> None:
        """One that is set back has what comes later begin before our start."""
        by_now = time.time() - (time.monotonic() - self._steady)
        self._earliest = min(self._earliest, by_now)

    def _last_start(self) -> Start | None:
        return None if self._before is None else self._before.start

    def _is_ours(self, container: Container) -> bool:
        """Whether the backup container was started since the script was. No clock tells that."""
        return is_new(container, self._last_start())

    def _wait_for_mastercontainer(self) -> None:
        """Until AIO's update of itself is over. Raises _DeadlineError."""
        settings = self._settings
        self._events.add("state", state="watch", mastercontainer="replaced")
        for _ in self._looks():
            self._check_cancelled()
            with contextlib.suppress(EngineError):
                running = self._engine.running()
                master = self._engine.inspect(settings.mastercontainer)
                if (
                    settings.watchtower_container not in running
                    and master is not None
                    and master.running
                    and master.health in (None, "healthy")
                ):
                    return
            time.sleep(self._pace.poll)
        raise _DeadlineError

    def _wait_for_backup(self) -> None:
        """Until the backup container has ended: a check outlives the script that starts it.

        Raises _DeadlineError.
        """
        for _ in self._looks():
            with contextlib.suppress(EngineError):
                found = self._engine.inspect(self._settings.borgbackup_container)
                if found is None or not self._is_ours(found) or not found.running:
                    break
            self._hand_on()
        else:
            raise _DeadlineError
        self._look()
        if self._log_reader is not None:
            self._log_reader.join(_LOG_SECONDS)
        # Not for ever: what is written faster than it is told has no end.
        end = time.monotonic() + _LOG_SECONDS
        while not self._lines.empty():
            if time.monotonic() > end:
                self._events.output(self._settings.borgbackup_container, "[the rest is not told]")
                break
            self._hand_on()

    # verdict and health

    def _verdict(self) -> Outcome:
        name = self._settings.borgbackup_container
        self._look_at_clock()
        for attempt in range(_VERDICT_ATTEMPTS):
            try:
                found = self._engine.inspect(name)
                is_ours = found is not None and self._is_ours(found)
                log = self._log_of(found, stderr=False) if is_ours else []
                both = self._log_of(found, stderr=True) if is_ours else []
                break
            except EngineError as error:
                if attempt == _VERDICT_ATTEMPTS - 1:
                    return self._outcome("unknown", error.message, error.hint, {})
                time.sleep(self._pace.look)
        judged = verdict(
            Seen(
                kind=self._plan.kind,
                began=self._earliest,
                before=self._last_start(),
                name=name,
                container=found,
                has_run=self._read_start is not None,
                log=log,
                errors=[self._secrets.masked(line) for line in both],
                target=self._target,
                has_initialised=self._configuration.has_beside(INITIALISED),
            )
        )
        evidence = dict(judged.evidence) | {"script_exit_code": self._exit_code}
        return self._outcome(judged.result, judged.error, judged.hint, evidence)

    def _log_of(self, container: Container | None, *, stderr: bool) -> list[str]:
        if container is None:
            return []
        since = self._since(container)
        return self._engine.logs(container.id, since=since, stderr=stderr, tail=_LOG_LINES)

    def _since(self, container: Container) -> float:
        """When the lines of its log begin that can be ours. One that is started anew keeps what it
        wrote before."""
        is_same_one = self._before is not None and self._before.id == container.id
        return self._began if is_same_one else self._earliest

    def _healthy(self, outcome: Outcome) -> Outcome:
        """``outcome``, and what became of the containers that were to be up again."""
        deadline = time.monotonic() + self._settings.health_timeout
        amiss: list[str] = []
        while True:
            with contextlib.suppress(EngineError):
                amiss = self._amiss(deadline)
                if not amiss:
                    return outcome
            if self._cancelled_by() is not None:
                why = "nobody waited for it: cancelled"
                break
            if time.monotonic() > deadline:
                why = f"after {self._settings.health_timeout} s"
                break
            time.sleep(self._pace.poll)
        error = f"not up and healthy: {', '.join(amiss) or 'the engine'} ({why})"
        return _worse(outcome, error)

    def _amiss(self, deadline: float) -> list[str]:
        amiss = []
        for name in self._expected:
            if time.monotonic() > deadline + _LATE_SECONDS:
                amiss.append(name)
                continue
            found = self._engine.inspect(name)
            self._tell(name, found)
            if found is None or not found.running or found.health not in (None, "healthy"):
                amiss.append(name)
        return amiss

    # ends

    def _late(self) -> Outcome:
        """The deadline has passed: what still runs is told, and left alone."""
        still = ["nobody knows what: the engine does not answer"]
        with contextlib.suppress(EngineError):
            running = self._engine.running()
            others = (self._settings.borgbackup_container, self._settings.watchtower_container)
            found = [name for name in others if name in running]
            if script_runs(self._engine, self._settings.mastercontainer):
                found.insert(0, "AIO's script")
            still = found
        what = f"still running, and left alone: {', '.join(still)}" if still else "nothing runs"
        error = f"not over after {self._plan.timeout} s; {what}"
        return self._outcome("timeout", error, "see AIO's interface for how it ends", {})

    def _failed(self, error: BorgPullError) -> Outcome:
        outcome = self._outcome("fail", error.message, error.hint, {})
        if self._began:
            return replace(outcome, result="unknown")
        return replace(outcome, exit=error.exit_code)

    def _outcome(
        self, result: Result, error: str | None, hint: str | None, evidence: Mapping[str, JSONValue]
    ) -> Outcome:
        return Outcome(
            result=result,
            error=error,
            hint=hint,
            evidence=evidence,
            exit=BORG_SUCCESS if result == "success" else BORG_ERROR,
            exit_code=self._exit_code,
            target_restored=None,
        )

    def _restored(self, outcome: Outcome) -> Outcome:
        """``outcome``, once the previous target is back, if that was asked for."""
        if self._previous is None or not self._plan.restore_after:
            return outcome
        try:
            self._enter_anyway("restore-target")
            if self._began and is_unread(self._engine, self._settings, self._last_start()):
                later = "AIO's previous target is put back once its script has ended"
                return replace(_worse(outcome, later), is_settled=False)
            return restored(outcome, self._configuration, self._previous, self._target)
        except Exception as error:  # noqa: BLE001 - whatever it is, the target still waits
            return waiting(outcome, self._previous, error)

    def _check_cancelled(self) -> None:
        who = self._cancelled_by()
        if who is not None:
            raise _CancelledError(f"cancelled by {who}")


def restored(
    outcome: Outcome, configuration: AioConfiguration, previous: TargetKeys, ours: TargetKeys
) -> Outcome:
    """``outcome``, once ``previous`` is AIO's target again; what is not ``ours`` stays. Raises
    BorgPullError when neither can be told or done: then it is to be tried again."""
    settled = replace(outcome, is_settled=True)
    if configuration.replace_target(ours, previous) or is_same(
        configuration.read().target, previous
    ):
        return replace(settled, target_restored=True)
    error = "AIO's target was changed by somebody else, and stays as it is"
    return _worse(replace(settled, target_restored=False), error)


def waiting(outcome: Outcome, previous: TargetKeys, error: Exception) -> Outcome:
    """``outcome`` of a run whose ``previous`` target could not be put back, but will be."""
    why, hint = f"unexpected {type(error).__name__}: {error}", outcome.hint
    if isinstance(error, BorgPullError):
        why, hint = error.message, hint or error.hint
    waits = f"AIO's previous target {shown(previous)} is not put back yet: {why}"
    return replace(_worse(outcome, waits), hint=hint, target_restored=None, is_settled=False)


def _worse(outcome: Outcome, error: str) -> Outcome:
    """``outcome`` with something else that went wrong around it."""
    if outcome.error is not None:
        more = f"; {brief(error, MAX_TEXT // 2)}"
        error = brief(outcome.error, MAX_TEXT - len(more)) + more
    return replace(outcome, error=error, exit=outcome.exit or BORG_WARNING)


def keys_of_target(target: Target) -> TargetKeys:
    """What AIO's configuration says for ``target``."""
    return keys_of(host_location=target.host_location, remote_repo=target.remote_repo)


def is_unread(engine: Engine, settings: AioSettings, before: Start | None) -> bool:
    """Whether AIO's script may still read the target: it runs, and has started no backup since
    ``before``. So it may for all that is known while the engine does not answer."""
    try:
        backup = engine.inspect(settings.borgbackup_container)
        if backup is not None and is_new(backup, before):
            return False
        master = engine.inspect(settings.mastercontainer)
        is_there = master is not None and master.running
        return is_there and script_runs(engine, settings.mastercontainer)
    except EngineError:
        return True


def script_runs(engine: Engine, mastercontainer: str) -> bool:
    """Whether AIO's script runs in there, whoever started it. Raises EngineError."""
    program = engine.start(mastercontainer, ["pgrep", "-f", f"^(/[^ ]*/)?[a-z]*sh {SCRIPT}$"], {})
    engine.detach(program)
    deadline = time.monotonic() + _ASK_SECONDS
    while time.monotonic() < deadline:
        state = engine.exec_state(program)
        if state is None or not state.running:
            return state is not None and state.exit_code == 0
        time.sleep(_ASK_POLL)
    raise EngineError(f"engine: {mastercontainer} does not say what runs in it")


def check_idle(
    engine: Engine, settings: AioSettings, running: list[str], *, is_restore: bool
) -> None:
    """Raises BusyError while AIO works on its own, EngineError."""
    if settings.borgbackup_container in running:
        what = "a restore" if is_restore else "a backup or check"
        raise BusyError(f"AIO runs {what} of its own", "try again when that is over")
    if settings.watchtower_container in running:
        raise BusyError("AIO is being updated", "try again when that is over")
    if settings.mastercontainer in running and script_runs(engine, settings.mastercontainer):
        raise BusyError("AIO's daily backup runs already", "try again when that is over")


def lock_files(
    settings: AioSettings, target: TargetKeys, seconds: float = _REACH_SECONDS
) -> dict[str, str]:
    """AIO's lock files that are there, by name. While nothing runs a crash has left them.

    Raises TimeoutError when the target's file system has not answered in ``seconds``, OSError.
    """
    paths = {
        LOCK_FILE: f"{os.path.dirname(settings.configuration_file)}/{LOCK_FILE}",
        DUMP_LOCK_FILE: f"{settings.database_dump_dir}/{DUMP_LOCK_FILE}",
    }
    found = {name: path for name, path in paths.items() if os.path.lexists(path)}
    location = _location(settings, target)
    if location is not None:
        path = f"{location}/borg/{REPOSITORY_LOCK_FILE}"
        if path in modes((location, path), settings.state_dir, seconds):
            found[REPOSITORY_LOCK_FILE] = path
    return found


def _location(settings: AioSettings, target: TargetKeys) -> str | None:
    """The directory of a target on this host; None when it has none, or none that is known."""
    location = target.get(HOST_LOCATION)
    if location == BACKUP_VOLUME:
        return _volume_beside(settings.configuration_file, BACKUP_VOLUME)
    return location if isinstance(location, str) and location.startswith("/") else None


def _volume_beside(configuration_file: str, volume: str) -> str | None:
    """The directory of another volume than that of AIO's configuration."""
    volumes, found, _ = configuration_file.partition("/nextcloud_aio_mastercontainer/_data/")
    return f"{volumes}/{volume}/_data" if found else None


T = TypeVar("T")


def _in_time(seconds: float, look: Callable[[], T]) -> T:
    """What ``look`` returns or raises; TimeoutError when it has not by then. No name server can be
    told how long it may take. Not for file systems: see `places`."""
    found: queue.SimpleQueue[Callable[[], T]] = queue.SimpleQueue()

    def work() -> None:
        try:
            value = look()
        except Exception as error:  # noqa: BLE001 - raised to who waits
            found.put(partial(_raise, error))
        else:
            found.put(lambda: value)

    threading.Thread(target=work, daemon=True).start()
    try:
        told = found.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer in {seconds:g} s") from None
    return told()


def _raise(error: Exception) -> NoReturn:
    raise error


def _greeting(where: tuple[str, int], seconds: float) -> bytes:
    """The first bytes that whoever answers there says. Raises OSError, ValueError."""
    fault: OSError = TimeoutError("its name has no address")
    found = socket.getaddrinfo(*where, type=socket.SOCK_STREAM)[:_MOST_ADDRESSES]
    for family, kind, protocol, _, address in found:
        # Each its part: the first may be one that this network does not reach.
        deadline = time.monotonic() + seconds / len(found)
        said = b""
        try:
            with socket.socket(family, kind, protocol) as connection:
                connection.settimeout(max(0.01, deadline - time.monotonic()))
                connection.connect(address)
                while len(said) < len(_GREETING):
                    connection.settimeout(max(0.01, deadline - time.monotonic()))
                    received = connection.recv(len(_GREETING) - len(said))
                    if not received:
                        break
                    said += received
        except OSError as error:
            fault = error
            continue
        return said
    raise fault


def _lines(stream: Iterator[tuple[Origin, bytes]]) -> Iterator[tuple[Origin, str]]:
    """Whole lines of each origin. Of a long one the beginning is kept, wherever it was cut up."""
    rests: dict[Origin, bytes] = {"stdout": b"", "stderr": b""}
    for origin, data in stream:
        *lines, rest = data.split(b"\n")
        for line in lines:
            yield origin, _text(rests[origin] + line)
            rests[origin] = b""
        rests[origin] = (rests[origin] + rest)[:_MAX_LINE_BYTES]
    for origin, rest in rests.items():
        if rest:
            yield origin, _text(rest)


def _text(line: bytes) -> str:
    return line[:_MAX_LINE_BYTES].decode("utf-8", "backslashreplace").rstrip("\r")
