"""From how borg ended to what the peer and the audit log are told. Pure."""

from __future__ import annotations

from _json import encode_basestring_ascii

from borg_pull.errors import BORG_ERROR, BORG_SUCCESS, BORG_WARNING
from borg_pull.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from borg_pull.source.judge import Allowed
    from borg_pull.source.report import WrapReport
    from borg_pull.source.session import Ending
    from borg_pull.source.whitelist import ClientRules


class Finding(Record):
    """Exit code, result and the one line that explains them."""

    exit: int
    result: str
    error: str | None
    """What went wrong, for the audit record."""
    message: str | None
    """What we say to the peer beyond borg's own words."""


_RESULTS = {BORG_SUCCESS: "success", BORG_WARNING: "warning"}

# borg names the variable whose answer it took, here "no".
_QUESTIONS = (
    (
        b"BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK",
        "the repository is unencrypted and unknown to this source",
        "allow_unknown_repository",
    ),
    (
        b"BORG_RELOCATED_REPO_ACCESS_IS_OK",
        "the repository has moved since this source last used it",
        "allow_relocated_repository",
    ),
)


def finding(
    ending: Ending,
    report: WrapReport | None,
    allowed: Allowed,
    client: str,
    rules: ClientRules,
    lost_roots: Sequence[str],
) -> Finding:
    """What the run amounts to. ``lost_roots`` are paths no longer in place at the end of it."""
    if ending.cause is not None:
        return _failed(f"the run was ended: {ending.cause}", result="killed")
    if ending.signal is not None:
        return _failed(f"borg was ended by signal {ending.signal}", result="killed")
    exit_code = ending.exit()
    if exit_code == BORG_ERROR:
        return _borg_failed(ending, report, client, rules)
    lost = [*lost_roots]
    if exit_code == BORG_WARNING:
        lost += [path for path in _paths_borg_missed(ending, allowed) if path not in lost]
    if lost:
        return _failed(
            f"path {lost[0]!a} was not there for the whole run; "
            f"archive {allowed.archive} is incomplete"
        )
    return Finding(exit=exit_code, result=_RESULTS[exit_code], error=None, message=None)


def _failed(message: str, result: str = "error") -> Finding:
    return Finding(exit=BORG_ERROR, result=result, error=message, message=message)


def _borg_failed(
    ending: Ending, report: WrapReport | None, client: str, rules: ClientRules
) -> Finding:
    if report is not None and report.failure is not None and not report.connected:
        code, message = report.failure
        return Finding(exit=code, result="error", error=message, message=message)
    for variable, fault, key in _QUESTIONS:
        if variable in ending.stderr_tail and not getattr(rules, key):
            message = f"{fault}; if that is as it should be, set client.{client}.{key} = true"
            return _failed(message)
    return Finding(
        exit=BORG_ERROR,
        result="error",
        error=_last_line(ending.stderr_tail),
        message=None,
    )


def _paths_borg_missed(ending: Ending, allowed: Allowed) -> list[str]:
    """Granted paths that borg itself could not open, by its warnings.

    Both borgs save an archive all the same: 1.2 exits 1, 1.4 with the code of the one kind of
    warning there was (107 for a file not found). A file that vanishes below a path gives the
    same codes and is an ordinary warning, so the line decides.
    """
    missed: list[str] = []
    for line in ending.stderr_tail.splitlines():
        if b"[Errno " not in line:
            continue
        for grant in allowed.grants:
            path = grant.path.rstrip("/") or "/"
            plain = f"{path}: ".encode()
            in_json = f'"message": {encode_basestring_ascii(path)[:-1]}: '.encode("ascii")
            if (line.startswith(plain) or in_json in line) and grant.path not in missed:
                missed.append(grant.path)
    return missed


def _last_line(tail: bytes) -> str | None:
    lines = [line for line in tail.replace(b"\r", b"\n").splitlines() if line.strip()]
    return lines[-1].decode("utf-8", "replace")[:500] if lines else None
