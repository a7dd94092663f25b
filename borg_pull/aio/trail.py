"""The audit records of an action: `action_start` before anything happens, and its one end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from borg_pull.accounts import acting_as, forced_command_account
from borg_pull.aio.texts import brief
from borg_pull.audit import AuditLog, Common

if TYPE_CHECKING:
    from borg_pull.aio_policy import AioPolicy
    from borg_pull.audit import JSONValue

START = "action_start"
COMPLETE = "action_complete"


class ActionTrail:
    """Writes them as the account of the log: one that root made would shut the account out."""

    def __init__(self, policy: AioPolicy) -> None:
        self._account = forced_command_account(policy.runtime, None)
        self._log = AuditLog(policy.audit.file, sync=policy.audit.sync)

    def start(self, common: Mapping[str, Any], fields: Mapping[str, JSONValue]) -> None:
        """Raises AuditError; then nothing may happen."""
        with acting_as(self._account):
            self._log.append(START, _common(common), _brief(fields))

    def complete(self, common: Mapping[str, Any], fields: Mapping[str, JSONValue]) -> None:
        """Record the end. Raises AuditError."""
        with acting_as(self._account):
            self._log.append(COMPLETE, _common(common), _brief(fields))

    def has(self, event: str, common: Mapping[str, Any]) -> bool:
        """Whether such a record is there, as far as the log has not been rotated away.

        Raises AuditError.
        """
        with acting_as(self._account):
            return self._log.holds(event, str(common["session"]))


def _common(fields: Mapping[str, Any]) -> Common:
    return Common(**fields)


def _brief(fields: Mapping[str, JSONValue]) -> dict[str, JSONValue]:
    """A text that is too long is recorded shortened rather than never."""
    return {
        name: brief(value) if isinstance(value, str) else value for name, value in fields.items()
    }
