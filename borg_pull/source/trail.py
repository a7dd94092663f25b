"""The audit records of one request: at least one, and exactly one `complete` for each `start`.

`refused` and `answered` stand alone."""

from __future__ import annotations

import os

from borg_pull.audit import Common
from borg_pull.credentials import masked_request
from borg_pull.errors import AuditError
from borg_pull.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from borg_pull.audit import AuditLog, JSONValue
    from borg_pull.errors import BorgPullError

MAX_REQUEST_RECORDED = 8 * 1024  # characters
_MAX_UNLIMITED_RECORDED = 256  # characters; a flood is to fill the disk slowly
# Characters behind those, by which a password that the cut falls into is known for one.
_BEHIND_THE_CUT = 4 * 1024
_RESERVE = 3  # descriptors: sidecar and log, and the directory of a new log that is synced


class Outcome(Record):
    """How a started request ended."""

    result: str
    """``success``, ``warning``, ``error``, ``killed``, ``not_run`` or ``interrupted``."""
    borg_code: int | None
    exit: int | None
    """None when nobody was there to give one."""
    signal: int | None
    duration: float | None
    """Seconds."""
    bytes_to_peer: int | None
    bytes_from_peer: int | None
    archive_stats: JSONValue
    error: str | None


class Trail:
    """Writes the records of one request."""

    def __init__(self, log: AuditLog, common: Common, command: bytes | None) -> None:
        self._log = log
        self._common = common
        self._command = command
        self._recorded = _MAX_UNLIMITED_RECORDED
        self._verb: str | None = None
        self.is_started = False
        self._has_ended = False
        # So that what fails for want of descriptors can be recorded.
        self._reserve = [os.dup(0) for _ in range(_RESERVE)]

    @property
    def common(self) -> Common:
        """What all records of the session carry."""
        return self._common

    @property
    def session(self) -> str:
        """The session's id, which all its records carry."""
        return self._common.session

    def admit(self) -> None:
        """Note that the request has passed the limits, which bound how many such there can be:
        until then a record holds only the beginning of a request."""
        self._recorded = MAX_REQUEST_RECORDED

    def knows(self, verb: str) -> None:
        """Note the verb, once the request has been parsed."""
        self._verb = verb

    def refused(self, error: BorgPullError) -> None:
        """Record that nothing was run. Raises AuditError."""
        request = os.fsdecode(self._command or b"")
        masked = masked_request(request[: self._recorded + _BEHIND_THE_CUT])
        self._log.append(
            "refused",
            self._common,
            {
                "reason": error.message,
                "exit": error.exit_code,
                "verb": self._verb,
                "request": masked[: self._recorded],
                "request_truncated": len(request) > self._recorded,
            },
        )
        error.is_recorded = True

    def answered(
        self,
        argv: Sequence[str],
        duration: float,
        *,
        name: str | None = None,
        exit_code: int = 0,
        error: str | None = None,
    ) -> None:
        """Record that a question was answered, with what ``argv`` told. Raises AuditError.

        One record, of what has happened: a start would stay open where the end found no room.
        ``name`` is what was named to the companion, the rest what came of it.
        """
        fields: dict[str, JSONValue] = {"verb": self._verb, "argv": list(argv)}
        if not argv:
            fields["name"] = name
        fields |= {"exit": exit_code, "duration": duration}
        if error is not None:
            fields["error"] = error
        self._log.append("answered", self._common, fields)
        self._has_ended = True

    def start(
        self,
        argv: Sequence[str],
        repository: str | None,
        archive: str | None,
        paths: Sequence[str],
        confinement: Mapping[str, JSONValue],
        more: Mapping[str, JSONValue] | None = None,
    ) -> None:
        """Record that borg is about to run. Raises AuditError; then it must not."""
        self._log.append(
            "start",
            self._common,
            {
                "verb": self._verb,
                "argv": list(argv),
                "repository": repository,
                "archive": archive,
                "paths": list(paths),
                "confinement": dict(confinement),
                **(more or {}),
            },
        )
        self.is_started = True

    def complete(self, outcome: Outcome) -> None:
        """Record how the run ended. Raises AuditError."""
        self._complete(self._common, self._verb, outcome)
        self.is_started = False
        self._has_ended = True

    def complete_interrupted(self, session: str, verb: str) -> None:
        """Record the end of an earlier run that was killed before it could. Raises AuditError."""
        if self._log.holds("complete", session):
            # It was killed just after that, before it could take its note away.
            return
        outcome = _nothing_known("interrupted", None, "the forced command was killed")
        self._complete(_common_of(self._common, session), verb, outcome)

    def fail(self, error: BorgPullError, result: str = "not_run") -> None:
        """Record ``error`` as the end of this request, whichever step it had reached, once.

        ``result`` is that of a request that had started.
        """
        if self._has_ended:
            return
        self._has_ended = True
        for descriptor in self._reserve:
            os.close(descriptor)
        if self.is_started and isinstance(error, AuditError):
            # The run's end is what could not be recorded; its next run does that.
            return
        if self.is_started:
            self.complete(_nothing_known(result, error.exit_code, error.line()))
            error.is_recorded = True
        else:
            self.refused(error)

    def _complete(self, common: Common, verb: str | None, outcome: Outcome) -> None:
        fields: dict[str, JSONValue] = {"verb": verb}
        fields.update((name, getattr(outcome, name)) for name in Outcome.__slots__)
        self._log.append("complete", common, fields)


def _nothing_known(result: str, exit_code: int | None, error: str) -> Outcome:
    return Outcome(
        result=result,
        borg_code=None,
        exit=exit_code,
        signal=None,
        duration=None,
        bytes_to_peer=None,
        bytes_from_peer=None,
        archive_stats=None,
        error=error,
    )


def _common_of(recorder: Common, session: str) -> Common:
    """Fields of another session of the same client; who called then is in its start record."""
    return Common(
        session=session,
        client=recorder.client,
        key=None,
        address=None,
        port=None,
        pid=recorder.pid,
    )
