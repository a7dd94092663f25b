"""Many jobs: who may run beside whom, who comes back later, and how it went as a whole.

One thread an attempt, all decisions and all records in the thread that calls `Batch.run`.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from borg_pull.errors import BorgPullError, FailedError, InternalError, SystemRefusedError
from borg_pull.pull import care, hooks
from borg_pull.pull.config import Config
from borg_pull.pull.due import next_after
from borg_pull.pull.ledger import HELD, Ledger, Run
from borg_pull.pull.locks import of_job, of_repository, take
from borg_pull.pull.log import Log, note
from borg_pull.pull.outcome import ORDER, Outcome, Verdict
from borg_pull.pull.places import Places
from borg_pull.pull.progress import log_line
from borg_pull.pull.pull import (
    USUAL_RUNS,
    Attempt,
    Emit,
    Task,
    UnreachableError,
    attempt,
    hello,
)
from borg_pull.pull.repository import Archives, LocalRepository
from borg_pull.pull.said import Greeting, remembered
from borg_pull.pull.source import ORIGINAL
from borg_pull.pull.source_repository import SourceRepository
from borg_pull.pull.stop import Stop

FIRST_PAUSE = 15.0
LONGEST_PAUSE = 300.0
LOCK_PAUSE = 1.0
"""Seconds between two looks whether another process has given a repository free."""
GREETING_DAYS = 1


@dataclass
class _Pending:
    task: Task
    usual_duration: float
    not_before: float = 0.0
    attempts: int = 0
    give_up_at: float | None = None
    """When a busy source is not asked any more."""
    run: int | None = None
    log: Path | None = None
    began: float = 0.0


@dataclass
class _Done:
    pending: _Pending
    locks: ExitStack
    greeting: Greeting | None
    asked_anew: bool
    attempt: Attempt | None = None
    error: BorgPullError | None = None
    kept: dict[str, str] = field(default_factory=dict)
    """The archives that were on record before, id to name."""
    care: list[Verdict] = field(default_factory=list)
    """How retention and check went, as far as it was their turn."""
    is_to_be_tried_again: bool = False

    @property
    def is_good(self) -> bool:
        """Whether there is a new archive."""
        result = self.attempt
        return self.error is None and result is not None and result.outcome.verdict != "failure"

    @property
    def may_prune(self) -> bool:
        """Whether the new archive can stand for older ones: one that lacks most of the data would
        be kept in their place."""
        return self.is_good and self.attempt is not None and not self.attempt.outcome.shrunk


@dataclass(frozen=True)
class _Past:
    """What a pull must know of those before."""

    earlier: list[Run]
    """The last that made an archive."""
    usual_sizes: list[int]
    """Of the last archives that did not shrink."""


@dataclass(frozen=True)
class _End:
    """The end of a run that the ledger has not taken yet."""

    run: int
    outcome: str
    fields: dict[str, Any]


class Batch:
    """One call of ``borg-pull run``."""

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        places: Places,
        *,
        workers: int,
        passphrase: Callable[[Task], bytes | None],
        emit: Emit,
        stop: Stop,
    ) -> None:
        self._config = config
        self._ledger = ledger
        self._places = places
        self._workers = workers
        self._passphrase = passphrase
        self._emit_line = emit
        self._stop = stop
        self._messages: queue.SimpleQueue[dict[str, Any] | _Done | None] = queue.SimpleQueue()
        self._running: list[_Pending] = []
        self.verdicts: dict[str, Verdict] = {}
        """By job, as far as they have ended."""
        self.skipped: list[str] = []
        """Jobs that still ran in another process."""
        self.faults: list[BorgPullError] = []
        """What the ledger, or this host, did not let us do: it may lack some of what was done."""
        self._unrecorded: list[_End] = []

    def run(self, tasks: Iterable[Task]) -> Verdict:
        """Run them all; the worst verdict. Nothing runs any more then, also if it raises."""
        try:
            self._run(tasks)
        except BaseException:
            # What runs must not go on with nobody to record it.
            self._stop.set("borg-pull itself has failed")
            while self._running:
                message = self._messages.get()
                if isinstance(message, _Done):
                    self._abandon(message)
            raise
        self._record_the_rest()
        return max(self.verdicts.values(), key=ORDER.index, default="success")

    def _run(self, tasks: Iterable[Task]) -> None:
        pending = sorted(map(self._pending, tasks), key=lambda one: -one.usual_duration)
        while pending or self._running:
            if self._stop.reason is not None:
                for one in pending:
                    self._give_up(one, self._stop.reason)
                pending = []
            else:
                for one in self._startable(pending):
                    pending.remove(one)
                    if not self._start(one):
                        pending.append(one)
            if self._running or pending:
                pending += self._listen(pending)

    def wake(self) -> None:
        """Have `run` look around; after `Stop.set`, from any thread or signal."""
        self._messages.put(None)

    def _pending(self, task: Task) -> _Pending:
        last = self._ledger.successes(task.name, 1)
        duration = last[0].duration if last else None
        # What is not known is taken for long: started late it would end last.
        return _Pending(task, float("inf") if duration is None else duration)

    def _startable(self, pending: list[_Pending]) -> list[_Pending]:
        """Those that may start now, with what runs and with each other."""
        now = time.monotonic()
        taken = {one.task.repository.path for one in self._running}
        storages = Counter(one.task.repository.storage for one in self._running)
        free = self._workers - len(self._running)
        chosen: list[_Pending] = []
        for one in pending:
            repository = one.task.repository
            if len(chosen) >= free:
                break
            if one.not_before > now:
                continue
            one.not_before = 0.0
            if repository.path in taken:
                continue
            if repository.storage is not None:
                if (
                    storages[repository.storage]
                    >= self._config.storage[repository.storage].max_runs
                ):
                    continue
                storages[repository.storage] += 1
            taken.add(repository.path)
            chosen.append(one)
        return chosen

    def _start(self, one: _Pending) -> bool:
        """Start an attempt, or end the job; False when it must wait for another process."""
        locks = ExitStack()
        try:
            return self._start_with(locks, one)
        except (BorgPullError, OSError, RuntimeError) as error:
            # RuntimeError: there is no further thread to be had.
            if one in self._running:
                self._running.remove(one)
            locks.close()
            self._fail(one, our_fault(error))
            self.wake()
            return True

    def _start_with(self, locks: ExitStack, one: _Pending) -> bool:
        task = one.task
        if not self._locked(locks, of_job(task.name)):
            self._skip(one)
            return True
        if not self._has_resources(locks, task):
            locks.close()
            return self._is_waited_out(one)
        if one.run is None:
            self._begin(one)
        one.attempts += 1
        self._running.append(one)
        greeting = self._remembered(task)
        earlier = self._ledger.successes(task.name, USUAL_RUNS)
        usual = self._ledger.usual_sizes(task.name, USUAL_RUNS)
        threading.Thread(
            target=self._attempt, args=(one, greeting, _Past(earlier, usual), locks), name=task.name
        ).start()
        return True

    def _is_waited_out(self, one: _Pending) -> bool:
        """Have it wait for another process of ours; true when it has waited long enough."""
        if not self._overdue(one):
            one.not_before = time.monotonic() + LOCK_PAUSE
            return False
        reason = "another borg-pull has used its repository or storage all the time"
        self._give_up(one, reason)
        self.wake()
        return True

    def _has_resources(self, locks: ExitStack, task: Task) -> bool:
        if not self._locked(locks, of_repository(task.repository.path)):
            return False
        storage = task.repository.storage
        if storage is None:
            return True
        slots = range(self._config.storage[storage].max_runs)
        return any(self._locked(locks, f"storage-{storage}-{slot}") for slot in slots)

    def _locked(self, locks: ExitStack, name: str) -> bool:
        """Take the lock of this name among all processes of this state directory."""
        return take(locks, self._places.locks, name)

    def _begin(self, one: _Pending) -> None:
        task = one.task
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        one.log = self._places.logs / f"{task.name}-{stamp}.log"
        one.began = time.monotonic()
        one.log.touch(mode=0o600)
        one.run = self._ledger.begin(
            task.name, task.source_name, task.repository_name, kind="create", log=str(one.log)
        )
        self._emit(one, {"event": "run_start", "log": str(one.log)})

    def _attempt(
        self, one: _Pending, greeting: Greeting | None, past: _Past, locks: ExitStack
    ) -> None:
        """In a thread of its own: one attempt, and whatever comes of it as one message."""
        done = _Done(one, locks, greeting, asked_anew=greeting is None)
        assert one.log is not None
        try:
            with _noted(done), Log(one.log) as log:
                with _noted(done):
                    if one.attempts == 1:
                        hooks.run(one.task, "before", {"RUN": str(one.run)}, log, self._stop)
                    self._tend(done, past, log)
                if not done.is_to_be_tried_again:
                    self._run_after(done, log)
        finally:
            self._messages.put(done)

    def _tend(self, done: _Done, past: _Past, log: Log) -> None:
        """Pull, then what is due of retention and check."""
        one, task = done.pending, done.pending.task
        try:
            self._pull(done, past, log)
        finally:
            result = done.attempt
            is_busy = result is not None and result.busy and self._stop.reason is None
            done.is_to_be_tried_again = is_busy and not self._overdue(one)
            # What this host has it can verify whatever came of the pull; a source is not asked
            # again that has not even answered.
            can_care = result is not None or _reads_itself(task)
            if can_care and not done.is_to_be_tried_again:
                archives = self._archives(task, done.greeting, log, self._stop)
                done.care = self._care(one, archives, log, prunes=done.may_prune)
                done.care += self._look(done)

    def _pull(self, done: _Done, past: _Past, log: Log) -> None:
        one, task = done.pending, done.pending.task
        done.kept = self._ledger.kept(task.name)
        deadline = one.began + task.job.deadline.total_seconds()
        while True:
            greeting = done.greeting or hello(
                task.source, task.source_name, self._places.known_hosts, self._stop, log
            )
            done.greeting = greeting
            with self._alone(task, greeting, deadline):
                result = attempt(
                    task,
                    greeting,
                    self._places,
                    archives=self._archives(task, greeting, log),
                    passphrase=lambda: self._passphrase(task),
                    earlier=past.earlier,
                    usual_sizes=past.usual_sizes,
                    on_record=self._ledger.known(task.name),
                    log=log,
                    emit=lambda event: self._messages.put({"pending": one, **event}),
                    stop=self._stop,
                    deadline=deadline,
                )
            done.attempt = result
            if result.archive_id is not None and one.run is not None:
                # Before retention looks: by then it must be one of those on record.
                self._ledger.update(one.run, archive=result.archive, archive_id=result.archive_id)
            if done.asked_anew or not result.doubtful:
                return
            # What was remembered of the source may be out of date.
            done.greeting, done.asked_anew, done.attempt = None, True, None

    def _archives(
        self, task: Task, greeting: Greeting | None, log: Log, stop: Stop | None = None
    ) -> Archives:
        """The task's repository, by whoever has its key.

        ``stop`` ends a borg that runs here; without it one may end its look at a new archive.
        """
        if _reads_itself(task):
            return LocalRepository(task.repository, lambda: self._passphrase(task), stop, log)
        return SourceRepository(
            task,
            self._places,
            greeting=greeting,
            passphrase=lambda: self._passphrase(task),
            log=log,
            stop=self._stop,
        )

    @contextmanager
    def _alone(self, task: Task, greeting: Greeting, deadline: float) -> Iterator[None]:
        """The original tool has one name for the sockets of all runs: they go one by one."""
        with ExitStack() as locks:
            while greeting.protocol == ORIGINAL:
                if self._locked(locks, f"source-{task.source_name}"):
                    break
                if self._stop.wait(LOCK_PAUSE) or time.monotonic() >= deadline:
                    reason = self._stop.reason or "another run used the source all the time"
                    raise UnreachableError(reason)
            yield

    def _run_after(self, done: _Done, log: Log) -> None:
        """The hook behind it all; if that fails, a success is one with a warning."""
        result = done.attempt
        verdicts: list[Verdict] = [
            *done.care,
            *([] if result is None else [result.outcome.verdict]),
        ]
        error = done.error.line() if done.error is not None else None
        if result is not None and error is None:
            error = result.outcome.error
        facts = {
            "RUN": str(done.pending.run),
            "OUTCOME": "failure"
            if done.error
            else max(verdicts, key=ORDER.index, default="failure"),
            "ERROR": error or "",
            "ARCHIVE": (result.archive if result is not None and done.is_good else None) or "",
        }
        try:
            hooks.run(done.pending.task, "after", facts, log, self._stop)
        except hooks.HookError as fault:
            if result is not None and result.outcome.verdict == "success":
                outcome = replace(result.outcome, verdict="warning", error=fault.line())
                done.attempt = replace(result, outcome=outcome)

    def _care(self, one: _Pending, archives: Archives, log: Log, *, prunes: bool) -> list[Verdict]:
        """Prune and check, while the job's locks are held; each is a run of its own on record."""
        task, job = one.task, one.task.job
        verdicts: list[Verdict] = []
        # What is not known of the configuration may have archives that this would delete.
        prunes = prunes and not self._config.faults
        if prunes and job.retention is not None and self._stop.reason is None:
            glob = self._config.archive_glob(task.name)
            beside = self._config.beside(task.name)

            def prune() -> None:
                done = care.prune(task, archives, self._ledger, glob, beside)
                if done.unrecorded:
                    log.write(f"borg-pull: {done.remark(task.name)}\n".encode())

            verdicts.append(self._cared(one, "prune", prune))
        if job.check is not None and self._stop.reason is None:
            last = self._ledger.last(task.name, kind="check")
            now = datetime.now(UTC)
            due = next_after(job.check.schedule, None if last is None else last.started, now)
            if due is not None and due <= now:
                verdicts.append(self._cared(one, "check", lambda: care.check(task, archives)))
        return verdicts

    def _look(self, done: _Done) -> list[Verdict]:
        """Where nothing is pruned, look for the archives on record in the list that was had anyway.

        On record is that something is missing, and that nothing is any more.
        """
        one, task, result = done.pending, done.pending.task, done.attempt
        if task.job.retention is not None or result is None or result.listed is None:
            return []
        lost = care.unlisted(done.kept, result.listed, self._config.archive_glob(task.name))
        last = self._ledger.last(task.name, kind="lookup")
        if not lost and (last is None or last.outcome == "success"):
            return []

        def act() -> None:
            if lost:
                raise care.MissingArchivesError(task.name, [*lost.values()], care.NOTHING_DONE)

        return [self._cared(one, "lookup", act)]

    def _cared(self, one: _Pending, kind: str, act: Callable[[], object]) -> Verdict:
        task = one.task
        started = time.monotonic()
        run: int | None = None
        if kind != "lookup":
            self._messages.put({"pending": one, "event": f"{kind}_start"})
        verdict: Verdict = "success"
        error: str | None = None
        try:
            run = self._ledger.begin(
                task.name, task.source_name, task.repository_name, kind=kind, log=str(one.log)
            )
            act()
        except Exception as fault:  # noqa: BLE001 - it is the pull's end that must not be lost
            verdict, error = "failure", our_fault(fault).line()
        fields = {"error": error, "duration": round(time.monotonic() - started, 3)}
        if run is not None:
            self._record(_End(run, verdict, fields))
        event = {"pending": one, "event": f"{kind}_end", "outcome": verdict, **fields}
        self._messages.put(event)
        return verdict

    def _listen(self, pending: list[_Pending]) -> list[_Pending]:
        """Wait for one message and act on it; what is to be tried again."""
        try:
            message = self._messages.get(timeout=self._patience(pending))
        except queue.Empty:
            return []
        if message is None:
            return []
        if isinstance(message, _Done):
            return self._end(message)
        one = message.pop("pending")
        self._emit(one, message)
        return []

    def _patience(self, pending: list[_Pending]) -> float | None:
        now = time.monotonic()
        moments = [one.not_before for one in pending if one.not_before > 0.0]
        return max(0.0, min(moments) - now) if moments else None

    def _end(self, done: _Done) -> list[_Pending]:
        one = done.pending
        self._running.remove(one)
        done.locks.close()
        result = done.attempt
        again: list[_Pending] = []
        if result is None:
            error = done.error.line() if done.error else "no result"
            self._finish(one, Attempt(Outcome("failure", error, None)))
        elif done.is_to_be_tried_again:
            self._pause(one, result)
            again.append(one)
        else:
            self._finish(one, result)
            if done.error is not None:
                self.faults.append(done.error)
            worst = max((self.verdicts[one.task.name], *done.care), key=ORDER.index)
            self.verdicts[one.task.name] = worst
        if done.asked_anew:
            self._remember(one.task, done.greeting)
        return again

    def _abandon(self, done: _Done) -> None:
        """End a run on record as far as that still can be done."""
        self._running.remove(done.pending)
        done.locks.close()
        if done.pending.run is not None:
            error = self._stop.reason
            if done.pending.log is not None:
                note(done.pending.log, f"failure: {error}")
            self._record(_End(done.pending.run, "failure", {"error": error}))

    def _overdue(self, one: _Pending) -> bool:
        """Whether the retry window is over; opens it at the first call."""
        now = time.monotonic()
        if one.give_up_at is None:
            one.give_up_at = now + one.task.job.retry_window.total_seconds()
        return now >= one.give_up_at

    def _pause(self, one: _Pending, result: Attempt) -> None:
        assert one.give_up_at is not None
        pause = min(FIRST_PAUSE * 2 ** (one.attempts - 1), LONGEST_PAUSE)
        one.not_before = min(time.monotonic() + pause, one.give_up_at)
        self._emit(
            one,
            {
                "event": "retry",
                "attempt": one.attempts,
                "seconds": round(max(0.0, one.not_before - time.monotonic()), 1),
                "reason": result.outcome.error,
            },
        )

    def _skip(self, one: _Pending) -> None:
        task = one.task
        self.wake()  # What it was to take, another may now.
        reason = "the job is still running in another borg-pull"
        one.run = one.run or self._ledger.begin(
            task.name, task.source_name, task.repository_name, kind="create", log=None
        )
        self._record(_End(one.run, "skipped", {"error": reason}))
        self.skipped.append(task.name)
        self._emit(one, {"event": "run_end", "outcome": "skipped", "error": reason})

    def _give_up(self, one: _Pending, reason: str) -> None:
        """End a job that never started, or that waited for another try."""
        try:
            if one.run is None:
                self._begin(one)
        except (BorgPullError, OSError) as error:
            self._fail(one, our_fault(error))
            return
        if one.attempts > 0 and one.log is not None:
            done = _Done(one, ExitStack(), None, asked_anew=False, error=FailedError(reason))
            with _noted(done), Log(one.log) as log:
                self._run_after(done, log)
        self._finish(one, Attempt(Outcome("failure", reason, None)))

    def _fail(self, one: _Pending, error: BorgPullError) -> None:
        """End a job that this host does not let us run."""
        self.faults.append(error)
        if one.run is not None:
            self._finish(one, Attempt(Outcome("failure", error.line(), None)))
            return
        self.verdicts[one.task.name] = "failure"
        self._emit(one, {"event": "run_end", "outcome": "failure", "error": error.line()})

    def _finish(self, one: _Pending, result: Attempt) -> None:
        assert one.run is not None
        verdict = result.outcome
        fields: dict[str, Any] = {
            "attempt": one.attempts,
            "exit": result.exit,
            "borg_code": verdict.borg_code,
            "session": result.session,
            "archive": result.archive,
            "archive_id": result.archive_id,
            "files": result.files,
            "original_size": result.original_size,
            "new_size": result.new_size,
            "duration": round(time.monotonic() - one.began, 3),
            "error": verdict.error,
            "shrunk": HELD if verdict.shrunk else None,
        }
        self._record(_End(one.run, verdict.verdict, fields))
        self.verdicts[one.task.name] = verdict.verdict
        self._emit(one, {"event": "run_end", "outcome": verdict.verdict, **fields})

    def _record(self, end: _End) -> None:
        """Have the ledger take the end of a run; one that it does not take is tried again last."""
        try:
            self._ledger.finish(end.run, end.outcome, **end.fields)
        except Exception:  # noqa: BLE001 - whatever is wrong with one record, the others go on
            self._unrecorded.append(end)

    def _record_the_rest(self) -> None:
        for end in self._unrecorded:
            try:
                self._ledger.finish(end.run, end.outcome, **end.fields)
            except Exception as error:  # noqa: BLE001 - as above
                self._record_at_least(end, our_fault(error))
        self._unrecorded = []

    def _record_at_least(self, end: _End, fault: BorgPullError) -> None:
        """A run whose end the ledger does not take as it is has failed, and that is why."""
        self.faults.append(fault)
        # The next start finds it unfinished, if not even this is to be had.
        with suppress(BorgPullError):
            self._ledger.finish(end.run, "failure", error=fault.line())

    def _remembered(self, task: Task) -> Greeting | None:
        text = self._ledger.state(f"greeting:{task.source_name}")
        if text is None:
            return None
        day, _, said = text.partition(" ")
        today = datetime.now(UTC).date().toordinal()
        is_fresh = day.isdigit() and 0 <= today - int(day) <= GREETING_DAYS
        return remembered(said) if is_fresh else None

    def _remember(self, task: Task, greeting: Greeting | None) -> None:
        today = datetime.now(UTC).date().toordinal()
        text = None if greeting is None else f"{today} {greeting.to_json()}"
        # It is asked again when this cannot be kept.
        with suppress(BorgPullError):
            self._ledger.set_state(f"greeting:{task.source_name}", text)

    def _emit(self, one: _Pending, event: dict[str, Any]) -> None:
        line = log_line(event | {"job": one.task.name})
        if one.log is not None and line is not None:
            note(one.log, line)
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        try:
            self._emit_line(
                {
                    "event": event.pop("event"),
                    "time": now.replace("+00:00", "Z"),
                    "job": one.task.name,
                    "run": one.run,
                    **event,
                }
            )
        except Exception as error:  # noqa: BLE001 - what cannot be shown of one ends no other
            self.faults.append(our_fault(error))


def _reads_itself(task: Task) -> bool:
    """Whether this host can read the task's repository."""
    return task.repository.key_on == "server"


@contextmanager
def _noted(done: _Done) -> Iterator[None]:
    """Whatever goes wrong within is what goes wrong with the run: it must not end the others."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever it is
        done.error = our_fault(error)


def our_fault(error: Exception) -> BorgPullError:
    """What to say of an error that no source and no network can have caused, if it is none of
    ours already."""
    if isinstance(error, BorgPullError):
        return error
    if isinstance(error, OSError):
        return SystemRefusedError.because(os.fsdecode(error.filename or "a system call"), error)
    return InternalError(f"unexpected {type(error).__name__}: {error}", "please report it")
