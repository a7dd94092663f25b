"""Starting a run in a process of its own, and finishing what one that was killed has begun.

The process that runs AIO's backup is a child of nobody: neither the end of a connection nor a
restart of the service ends it.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from borg_pull.aio.configuration import AioConfiguration, is_same, shown
from borg_pull.aio.engine import Engine
from borg_pull.aio.flow import (
    Flow,
    Outcome,
    Pace,
    Plan,
    check_idle,
    is_unread,
    keys_of_target,
    restored,
    waiting,
)
from borg_pull.aio.jobs import RESULT, Jobs
from borg_pull.aio.journal import Journal, prepare
from borg_pull.aio.texts import MAX_TARGET, brief
from borg_pull.aio.trail import COMPLETE, START, ActionTrail
from borg_pull.audit import new_session
from borg_pull.errors import (
    BORG_ERROR,
    BORG_SUCCESS,
    AuditError,
    BorgPullError,
    BusyError,
    ConfigurationError,
    InternalError,
    SystemRefusedError,
)

if TYPE_CHECKING:
    from borg_pull.aio.jobs import Events
    from borg_pull.aio_policy import Action, AioPolicy, Target

TARGET_SET = "target-set"
_TIMEOUT_OF_TARGET = 21_600
_STOP_TIMEOUT_OF_TARGET = 60


class BusyWithError(BusyError):
    """Another run is under way: ``job`` is its id."""

    job: str | None = None


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A run that was granted to somebody."""

    plan: Plan
    action: str | None
    """Name of the action, None when a target was named instead."""
    target: str | None
    """Name of that target."""
    common: Mapping[str, Any]
    """Who asks: fields of the audit record's `Common`."""

    def told(self) -> dict[str, Any]:
        """What job and records say of it."""
        target = self.plan.target
        return {
            "action": self.action,
            "kind": self.plan.kind,
            "target_name": self.target if target is None else target.name,
            "target": None if target is None else brief(target.masked(), MAX_TARGET),
        }


def plan_of_action(action: Action) -> Plan:
    """The plan of an action of the whitelist."""
    return Plan(
        kind="check" if action.check_backup else "backup",
        target=action.target,
        restore_after=action.restore_after,
        stop_containers=action.stop_containers,
        start_containers=action.start_containers,
        automatic_updates=action.automatic_updates,
        stop_timeout=action.stop_timeout,
        timeout=action.timeout,
    )


def plan_of_target(target: Target, *, check: bool) -> Plan:
    """A plain backup to ``target``, or a check of it; AIO's own target stays in the end."""
    return Plan(
        kind="check" if check else "backup",
        target=target,
        restore_after=True,
        stop_containers=not check,
        start_containers=True,
        automatic_updates=False,
        stop_timeout=_STOP_TIMEOUT_OF_TARGET,
        timeout=_TIMEOUT_OF_TARGET,
    )


class Runs:
    """The runs of one host, by its policy."""

    def __init__(self, policy: AioPolicy, pace: Pace | None = None) -> None:
        self._policy = policy
        self._pace = pace or Pace()
        aio = policy.aio
        prepare(aio.state_dir)
        self._journal = Journal(aio.state_dir)
        self.jobs = Jobs(
            aio.state_dir, keep=aio.keep_jobs, keep_days=aio.keep_days, is_open=self._is_open
        )

    def under_way(self) -> str | None:
        """Id of the job that is under way, or not settled."""
        entry = self._journal.read()
        return None if entry is None or entry["job"] is None else str(entry["job"])

    def _is_open(self, job: str) -> bool:
        try:
            return self.under_way() == job
        except ConfigurationError:
            return True  # nobody knows

    def is_alive(self, job: str) -> bool:
        """Whether a process works on that job."""
        return self._journal.is_held() and self.under_way() == job

    def state_of(self, job: str) -> str | None:
        """State of the job that is under way, None when it is not."""
        entry = self._journal.read()
        if entry is None or entry["job"] != job or not self._journal.is_held():
            return None
        return str(entry["state"])

    def start(self, wanted: Wanted, leave: Callable[[], None]) -> str:
        """Have it run in a process of its own; its job's id.

        ``leave`` closes, in that process, what belongs to the caller's peer. Raises BorgPullError,
        of which AuditError and BusyWithError say that nothing has happened.
        """
        reader, writer = os.pipe2(os.O_CLOEXEC)
        child = os.fork()
        if child == 0:
            _become_nobodys_child()
            os.close(reader)
            leave()
            _quietly(lambda: self.run(wanted, lambda job: _tell(writer, {"job": job})), writer)
        os.close(writer)
        os.waitpid(child, 0)
        with open(reader, "rb") as pipe:
            said = json.loads(pipe.readline() or b'{"exit": 70, "message": "the run has died"}')
        if "job" in said and "exit" not in said:
            return str(said["job"])
        raise _raised(said)

    def run(self, wanted: Wanted, accepted: Callable[[str], None]) -> Outcome:
        """All of it, in this process; ``accepted`` is told the job's id once that is certain.

        Raises BorgPullError when nothing has happened.
        """
        with self._journal.held() as is_ours:
            if not is_ours:
                raise self._busy()
            self._settle()
            if self._journal.read() is not None:
                raise self._left()
            engine = Engine(self._policy.aio.engine)
            job = new_session()
            entry: dict[str, Any] = {
                "job": job,
                "state": "accepted",
                "common": dict(wanted.common) | {"pid": os.getpid()},
                "told": wanted.told(),
                "started": time.time(),
                "recorded": False,
            }
            trail = ActionTrail(self._policy)
            # Before the job's file, so that no job without a result is unknown to the journal.
            self._note(entry, {})
            try:
                events = self.jobs.create(job, {"client": wanted.common["client"], **wanted.told()})
            except SystemRefusedError:
                self._journal.clear()
                raise
            try:
                trail.start(entry["common"], {"job": job, **wanted.told()})
            except AuditError as error:
                _conclude(events, _not_run(error), 0.0)
                self._journal.clear()
                raise
            self._note_anyway(entry, {"recorded": True})
            accepted(job)
            flow = Flow(
                wanted.plan,
                self._policy.aio,
                engine,
                events,
                lambda more: self._note(entry, more),
                lambda: self.jobs.cancelled_by(job),
                self._pace,
            )
            return self._finish(entry, events, flow.run())

    def set_target(self, target: Target, common: Mapping[str, Any]) -> None:
        """Have AIO keep ``target``. Raises BorgPullError."""
        with self._journal.held() as is_ours:
            if is_ours:
                self._settle()
            if not is_ours or self._journal.read() is not None:
                raise BusyError(
                    "a run of AIO is under way, which may change the target itself",
                    "try again when it has ended",
                )
            configuration = AioConfiguration(self._policy.aio.configuration_file)
            content = configuration.read()
            before = content.target
            engine = Engine(self._policy.aio.engine)
            # What runs may not have read its target yet.
            is_restore = content.is_restore
            check_idle(engine, self._policy.aio, engine.running(), is_restore=is_restore)
            told = {
                "action": None,
                "kind": TARGET_SET,
                "target_name": target.name,
                "target": brief(target.masked(), MAX_TARGET),
            }
            entry: dict[str, Any] = {
                "job": None,
                "state": "set-target",
                "common": dict(common) | {"pid": os.getpid()},
                "told": told,
                "started": time.time(),
                "recorded": False,
                "previous": before,
                "ours": keys_of_target(target),
            }
            trail = ActionTrail(self._policy)
            self._note(entry, {})
            try:
                start = {"job": None, **told, "previous": shown(before)}
                trail.start(entry["common"], start)
            except AuditError:
                self._journal.clear()
                raise
            self._note_anyway(entry, {"recorded": True})
            fault: BorgPullError | None = None
            try:
                if not configuration.replace_target(before, entry["ours"]):
                    fault = BusyError("AIO's target was changed meanwhile", "try again")
            except BorgPullError as error:
                fault = error
            self._note_end(entry, _is_set() if fault is None else _not_run(fault))
            try:
                self._record_end(entry)
            except AuditError as error:
                what = "is changed" if fault is None else f"is not changed: {fault.message}"
                raise AuditError(
                    f"the target {what}, but there is no record of that yet: {error.message}",
                    error.hint,
                ) from error
            self._journal.clear()
            if fault is not None:
                raise fault

    def settle(self) -> bool:
        """Finish what a run that was killed has left, and put back what waits for it; False when
        something is still under way. Raises BorgPullError."""
        with self._journal.held() as is_ours:
            if not is_ours:
                return False
            self._settle()
            return self._journal.read() is None

    def _busy(self) -> BusyWithError:
        job = self.under_way()
        error = BusyWithError(
            f"another run of AIO is under way: job {job or 'that is about to begin'}",
            "try again when it has ended",
        )
        error.job = job
        return error

    def _left(self) -> BusyWithError:
        job = self.under_way()
        error = BusyWithError(
            f"AIO's target from before job {job} is still to be put back, which is tried on and on",
            "what is in the way is the error of that job",
        )
        error.job = job
        return error

    def _note(self, entry: dict[str, Any], more: Mapping[str, Any]) -> None:
        entry.update(more)
        self._journal.write(entry)

    def _note_anyway(self, entry: dict[str, Any], more: Mapping[str, Any]) -> None:
        """A full disk must keep no end from its record."""
        with contextlib.suppress(SystemRefusedError):
            self._note(entry, more)

    def _finish(self, entry: dict[str, Any], events: Events, outcome: Outcome) -> Outcome:
        """Record the end, tell it, and forget the run unless it still has something to settle."""
        self._note_end(entry, outcome)
        try:
            self._record_end(entry)
        except AuditError as error:
            outcome = replace(outcome, exit=error.exit_code, error=error.line())
            _conclude(events, outcome, entry["ended"] - entry["started"])
            return outcome
        self._note_anyway(entry, {"completed": True})
        _conclude(events, outcome, entry["ended"] - entry["started"])
        if outcome.is_settled:
            self._journal.clear()
        return outcome

    def _record_end(self, entry: Mapping[str, Any]) -> None:
        outcome = entry["outcome"]
        ActionTrail(self._policy).complete(
            entry["common"] | {"pid": os.getpid()},
            {
                "job": entry["job"],
                **entry["told"],
                "result": outcome["result"],
                "exit": outcome["exit"],
                "exit_code": outcome["exit_code"],
                "duration": round(entry["ended"] - entry["started"], 3),
                "error": outcome["error"],
                "target_restored": outcome["target_restored"],
            },
        )

    def _settle(self) -> None:
        """What the journal still has to be done. The lock is ours, so nobody works on it."""
        entry = self._journal.read()
        if entry is None:
            return
        trail = ActionTrail(self._policy)
        has_begun = entry["recorded"] or "outcome" in entry
        if not has_begun and not trail.has(START, entry["common"], entry["started"]):
            # Nothing has happened, and no record says so.
            if entry["job"] is not None:
                self.jobs.remove(entry["job"])
            self._journal.clear()
        elif entry["told"]["kind"] == TARGET_SET:
            if "outcome" not in entry:
                self._note_end(entry, self._found(entry))
            self._complete(entry, trail)
            self._journal.clear()
        else:
            events = self.jobs.resume(entry["job"])
            try:
                self._settle_run(entry, trail, events)
            finally:
                events.close()

    def _settle_run(self, entry: dict[str, Any], trail: ActionTrail, events: Events) -> None:
        """Nothing here needs room on the disk of the journal: a full one must neither keep a
        target from being put back nor have an end recorded twice."""
        head = self.jobs.head(entry["job"])
        is_told = head is not None and head["status"] == "finished"
        if "outcome" in entry:
            outcome = Outcome(**entry["outcome"])
        else:
            outcome = replace(_killed(entry["state"]), is_settled=False)
        if not outcome.is_settled:
            tried = self._restore(entry, outcome)
            if tried.is_settled or "outcome" not in entry:
                outcome = tried  # else it says already why it waits
            if outcome.is_settled:
                is_back = outcome.target_restored
                why = outcome.error if is_back is False else None
                more = {} if is_back is None else {"target_restored": is_back, "error": why}
                events.add("state", state="restore-target", **more)
        if entry.get("outcome") != asdict(outcome):
            self._note_end(entry, outcome)
        self._complete(entry, trail)
        if not is_told:
            _conclude(events, outcome, entry["ended"] - entry["started"])
        if outcome.is_settled:
            self._journal.clear()

    def _note_end(self, entry: dict[str, Any], outcome: Outcome) -> None:
        ended = entry.get("ended", time.time())
        self._note_anyway(entry, {"outcome": asdict(outcome), "ended": ended})

    def _complete(self, entry: dict[str, Any], trail: ActionTrail) -> None:
        """Have the end on record, once. Raises AuditError."""
        if not entry.get("completed"):
            # The journal may not know of it: its disk may have been full.
            if not trail.has(COMPLETE, entry["common"], entry["started"]):
                self._record_end(entry)
            self._note_anyway(entry, {"completed": True})

    def _found(self, entry: Mapping[str, Any]) -> Outcome:
        """How a `target-set` ended that was killed."""
        killed = replace(_killed(entry["state"]), hint=None)
        try:
            now = AioConfiguration(self._policy.aio.configuration_file).read().target
        except BorgPullError as error:
            return replace(killed, error=f"{killed.error}; {error.message}")
        if is_same(now, entry["ours"]):
            has = f"{killed.error}; AIO has the target"
            return replace(killed, result="success", exit=BORG_SUCCESS, error=has)
        if is_same(now, entry["previous"]):
            before = f"{killed.error}; AIO's target is as before"
            return replace(killed, result="fail", error=before)
        return replace(killed, error=f"{killed.error}; AIO's target is another by now")

    def _restore(self, entry: Mapping[str, Any], outcome: Outcome) -> Outcome:
        """``outcome``, once the previous target is back; not settled while AIO might still read
        what stands there now."""
        previous = entry.get("previous")
        if previous is None or not entry.get("restore"):
            return replace(outcome, is_settled=True)
        try:
            aio = self._policy.aio
            before = tuple(entry.get("before") or ()) or None
            if "began" in entry and is_unread(Engine(aio.engine), aio, before):
                return replace(outcome, is_settled=False)
            configuration = AioConfiguration(aio.configuration_file)
            return restored(outcome, configuration, previous, entry["ours"])
        except Exception as error:  # noqa: BLE001 - whatever it is, the target still waits
            return waiting(outcome, previous, error)


def set_target(policy: AioPolicy, target: Target, common: Mapping[str, Any]) -> None:
    """Have AIO keep ``target``. Raises BorgPullError."""
    Runs(policy).set_target(target, common)


def _conclude(events: Events, outcome: Outcome, duration: float) -> None:
    events.add(
        RESULT,
        result=outcome.result,
        exit=outcome.exit,
        exit_code=outcome.exit_code,
        duration=round(duration, 3),
        error=outcome.error,
        hint=outcome.hint,
        evidence=outcome.evidence,
        target_restored=outcome.target_restored,
    )


def _is_set() -> Outcome:
    return Outcome(
        result="success",
        error=None,
        hint=None,
        evidence={},
        exit=BORG_SUCCESS,
        exit_code=None,
        target_restored=None,
    )


def _not_run(error: BorgPullError) -> Outcome:
    return Outcome(
        result="fail",
        error=error.message,
        hint=error.hint,
        evidence={},
        exit=error.exit_code,
        exit_code=None,
        target_restored=None,
    )


def _killed(state: str) -> Outcome:
    return Outcome(
        result="unknown",
        error=f"the companion was killed in the state {state}",
        hint="see AIO's interface for how the backup ended",
        evidence={},
        exit=BORG_ERROR,
        exit_code=None,
        target_restored=None,
    )


def _become_nobodys_child() -> None:
    os.setsid()
    if os.fork():
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(null)


def _quietly(run: Callable[[], object], writer: int) -> None:
    """Run it and end this process; what is raised is told through ``writer``."""
    code = 1
    try:
        run()
        code = 0
    except BorgPullError as error:
        said = {"exit": error.exit_code, "message": error.message, "hint": error.hint}
        _tell(writer, said | {"job": getattr(error, "job", None)})
    except BaseException as error:  # noqa: BLE001 - a child of nobody has nobody to raise to
        fault = f"unexpected {type(error).__name__}: {error}"
        _tell(writer, {"exit": InternalError.exit_code, "message": fault, "hint": None})
    finally:
        os._exit(code)


def _tell(writer: int, said: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):
        os.write(writer, json.dumps(said).encode("ascii") + b"\n")


def _raised(said: Mapping[str, Any]) -> BorgPullError:
    if said["exit"] == BusyError.exit_code:
        error: BorgPullError = BusyWithError(said["message"], said.get("hint"))
        error.job = said.get("job")  # type: ignore[attr-defined]
        return error
    for kind in _all_errors(BorgPullError):
        if getattr(kind, "exit_code", None) == said["exit"]:
            return kind(said["message"], said.get("hint"))
    return InternalError(said["message"], said.get("hint"))


def _all_errors(kind: type[BorgPullError]) -> list[type[BorgPullError]]:
    return [found for sub in kind.__subclasses__() for found in (sub, *_all_errors(sub))]
