"""The audit records of one request: at least one, and exactly one `complete` for each `start`."""

from __future__ import annotations

import os

from borg_pull.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from borg_pull.audit import AuditLog, Common, JSONValue
    from borg_pull.errors import BorgPullError

_MAX_REQUEST_RECORDED = 8 * 1024  # characters


class Outcome(Record):
    """How a started request ended."""

    result: str
    """``success``, ``warning``, ``error``, ``killed`` or ``not_run``."""
    borg_code: int | None
    exit: int
    signal: int | None
    duration: float
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
        self._verb: str | None = None
        self.is_started = False

    @property
    def session(self) -> str:
        """The session's id, which all its records carry."""
        return self._common.session

    def knows(self, verb: str) -> None:
        """Note the verb, once the request has been parsed."""
        self._verb = verb

    def refused(self, error: BorgPullError) -> None:
        """Record that nothing was run. Raises AuditError."""
        request = os.fsdecode(self._command or b"")
        self._log.append(
            "refused",
            self._common,
            {
                "reason": error.message,
                "exit": error.exit_code,
                "verb": self._verb,
                "request": request[:_MAX_REQUEST_RECORDED],
                "request_truncated": len(request) > _MAX_REQUEST_RECORDED,
            },
        )

    def start(
        self,
        argv: Sequence[str],
        repository: str | None,
        archive: str | None,
        paths: Sequence[str],
        confinement: Mapping[str, JSONValue],
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
            },
        )
        self.is_started = True

    def complete(self, outcome: Outcome) -> None:
        """Record how the run ended. Raises AuditError."""
        fields: dict[str, JSONValue] = {"verb": self._verb}
        fields.update((name, getattr(outcome, name)) for name in Outcome.__slots__)
        self._log.append("complete", self._common, fields)
        self.is_started = False

    def fail(self, error: BorgPullError) -> None:
        """Record ``error`` as the end of this request, whichever step it had reached."""
        if not self.is_started:
            self.refused(error)
            return
        self.complete(
            Outcome(
                result="not_run",
                borg_code=None,
                exit=error.exit_code,
                signal=None,
                duration=0.0,
                bytes_to_peer=None,
                bytes_from_peer=None,
                archive_stats=None,
                error=error.line(),
            )
        )
