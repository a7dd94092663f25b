"""The tables of the configuration that several programs read: directories, programs, audit log.

Pure, and part of the start-up path.
"""

from __future__ import annotations

from borg_pull.record import Record
from borg_pull.schema import REQUIRED, Key, absolute_path, boolean, string
from borg_pull.values import path_fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from borg_pull.schema import Check


class Runtime(Record):
    """``[runtime]``; directories and programs."""

    socket_wrapper: str | None
    socket_dir: str
    home: str
    borg: str


class AuditSettings(Record):
    """``[audit]``; where and how records are written."""

    file: str
    sync: bool


def _program_fault(path: str) -> str | None:
    fault = path_fault(path)
    if fault is None and (" " in path or not path.isprintable()):
        return "has a space or unprintable character"
    return fault


_program = string("an absolute path", _program_fault)

RUNTIME_KEYS = (
    Key(
        name="socket_dir",
        kind="absolute path",
        faults=absolute_path,
        default=REQUIRED,
        default_text="required",
        doc="Directory of the forwarded sockets, `CLIENT.sock` and `CLIENT.NONCE.sock`. "
        "Owned by the account, mode 0700.",
    ),
    Key(
        name="home",
        kind="absolute path",
        faults=absolute_path,
        default=REQUIRED,
        default_text="required",
        doc="State directory. Each client has borg's keys, cache and security data in it, in "
        "`clients/NAME/` and there in a directory whose name no other client can guess. Owned by "
        "the account.",
    ),
    Key(
        name="socket_wrapper",
        kind="absolute path",
        faults=_program,
        default=None,
        default_text="the `borg-pull-socket-wrap` beside the running program",
        doc="Program that borg starts in place of ssh. It is told the socket in "
        "`BORGSOCKETWRAP_SOCKET_PATH`; its arguments mean nothing.",
    ),
    Key(
        name="borg",
        kind="absolute path",
        faults=_program,
        default="/usr/bin/borg",
        default_text="`/usr/bin/borg`",
        doc="The borg program, 1.2 or 1.4.",
    ),
)

AUDIT_KEYS = (
    Key(
        name="file",
        kind="absolute path",
        faults=absolute_path,
        default=None,
        default_text="`audit.jsonl` in `runtime.home`",
        doc="The audit log. Its directory must be writable by the account.",
    ),
    Key(
        name="sync",
        kind="boolean",
        faults=boolean,
        default=False,
        default_text="`false`",
        doc="Wait for the disk after each record, so that a power cut loses none.",
    ),
)


def runtime_of(check: Check, document: dict[str, object]) -> Runtime | None:
    """``[runtime]`` of ``document``, None when ``check`` has noted a fault in it."""
    checked = check.values(document.get("runtime", {}), RUNTIME_KEYS, "runtime")
    if checked is None or checked[1]:
        return None
    return Runtime(**checked[0])  # type: ignore[arg-type]


def audit_of(
    check: Check, document: dict[str, object], runtime: Runtime | None
) -> AuditSettings | None:
    """``[audit]`` of ``document``, None when ``check`` has noted a fault in it or ``runtime``."""
    checked = check.values(document.get("audit", {}), AUDIT_KEYS, "audit")
    if checked is None or checked[1] or runtime is None:
        return None
    values, _ = checked
    if values["file"] is None:
        values["file"] = f"{runtime.home.rstrip('/')}/audit.jsonl"
    return AuditSettings(**values)  # type: ignore[arg-type]
