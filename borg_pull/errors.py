"""Every error class of the programs, each with its one exit code.

The table of exit codes in ``docs/protocol.md`` is generated from this module, and
``make check`` fails when two classes claim one code.
"""

from __future__ import annotations

import errno

from borg_pull.credentials import masked

# Exit codes of a borg that ran.
BORG_SUCCESS = 0
BORG_WARNING = 1
BORG_ERROR = 2


class BorgPullError(Exception):
    """Base of all errors: ``message`` is one line for people, ``hint`` says what to do.

    Both are masked here, because errors end in logs, on terminals and in the audit log alike.
    """

    exit_code: int
    meaning: str
    is_recorded = False
    """Whether the audit log has it."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        self.message = masked(message)
        self.hint = None if hint is None else masked(hint)
        super().__init__(self.message)

    def line(self) -> str:
        """One printable line: the message, then the hint."""
        # What borg says ends in a full stop.
        text = self.message
        if self.hint is not None:
            text = f"{text.removesuffix('.')}; {self.hint}"
        return printable(text)


class FailedError(BorgPullError):
    exit_code = BORG_ERROR
    meaning = "borg ran: error"


class RequestError(BorgPullError):
    exit_code = 64
    meaning = "the request does not parse"


class SocketError(BorgPullError):
    exit_code = 69
    meaning = "no usable reverse-forwarded socket; no companion, or no container engine"


class InternalError(BorgPullError):
    exit_code = 70
    meaning = "a fault of ours"


class SystemRefusedError(BorgPullError):
    exit_code = 71
    meaning = "the system refused (fork, exec, capability), or something has run out"

    @classmethod
    def because(cls, what: str, error: OSError) -> SystemRefusedError:
        """That ``what`` failed with ``error``, and what to do where something has run out."""
        return cls(f"{what}: {error.strerror}", SHORTAGES.get(error.errno or 0))


class AuditError(BorgPullError):
    exit_code = 73
    meaning = (
        "the audit record could not be written, so nothing was run "
        "(or its end could not be, as the message then says)"
    )


class BusyError(BorgPullError):
    exit_code = 75
    meaning = "busy, limited, locked down or told to end: try later"


class LimitedError(BusyError):
    """A limit or a lockdown is in the way, not another run of the same repository."""


class EndedError(LimitedError):
    """A signal told this program to end before borg ran."""


class NotAllowedError(BorgPullError):
    exit_code = 77
    meaning = "not allowed"


class ConfigurationError(BorgPullError):
    exit_code = 78
    meaning = "the configuration is wrong or not trustworthy"


SHORTAGES = {
    errno.ENOSPC: "free some space on its file system, or inodes",
    errno.EDQUOT: "the account's quota is used up",
    errno.EFBIG: "a file size limit stands in the way (ulimit -f)",
    errno.EMFILE: "too many files are open in this process (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine",
    errno.EAGAIN: "the account may have no more processes (ulimit -u, TasksMax)",
    errno.ENOMEM: "memory has run out, or a limit on it stands in the way",
}
"""What to do where something has run out. All of it passes: the next request needs no mending."""


def printable(text: str) -> str:
    """``text`` with everything a terminal could act on escaped, so it stays one harmless line."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in text
    )
