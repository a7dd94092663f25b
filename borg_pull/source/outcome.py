"""From how borg ended to what the peer and the audit log are told. Pure."""

from __future__ import annotations

from _json import encode_basestring_ascii

from borg_pull.credentials import masked
from borg_pull.errors import BORG_ERROR, BORG_SUCCESS, BORG_WARNING, SocketError
from borg_pull.last_words import last_words
from borg_pull.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from borg_pull.source.judge import Allowed
    from borg_pull.source.report import WrapReport
    from borg_pull.source.session import Ending
    from borg_pull.source.whitelist import ClientRules


MAX_WORDS = 500  # characters of borg's own that are recorded

_LOCK = b"Failed to create/acquire the lock"
_TIMEOUT = b"(timeout)"

# Ends of borg's that happen to everybody, in the words of both versions.
_KNOWN_ENDS = (
    (b"assphrase supplied in", "the passphrase is wrong"),
    (
        b"newer than repository",
        "the repository is older than what this source has seen of it: it was put back from a "
        "copy, or somebody plays an old one to it; if it was you, have the source forget the "
        'repository, as docs/restore.md says under "A repository put back from a copy"',
    ),
)


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
    lockdown: str | None,
) -> Finding:
    """What the run amounts to.

    ``lost_roots`` are paths no longer in place at the end of it; ``lockdown`` tells of the one in
    force, if there is one.
    """
    if ending.cause is not None:
        why = "" if lockdown is None else f"; {lockdown}"
        return _failed(f"the run was ended: {ending.cause}{why}", result="killed")
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
    failure = None if report is None else report.failure
    if report is not None and failure is not None and report.bytes_from_peer == 0:
        code, message = failure
        if report.connected and code == SocketError.exit_code:
            message = (
                "nobody serves the forwarded socket; start the listener on the backup server, "
                "it may take one connection only"
            )
        return Finding(exit=code, result="error", error=message, message=message)
    for variable, fault, key in _QUESTIONS:
        if variable in ending.stderr_tail and not getattr(rules, key):
            return _failed(
                f"{fault}; if that is as it should be, then in the whitelist on the source, below "
                f"[client.{client}], for one run: {key} = true"
            )
    for marker, message in _KNOWN_ENDS:
        if marker in ending.stderr_tail:
            return _failed(message)
    error = _last_words(ending.stderr_tail)
    if _LOCK in ending.stderr_tail:
        if _TIMEOUT in ending.stderr_tail:
            return _failed(
                "the repository, or borg's cache of it, is locked by another run or by one that "
                "died; once nothing uses the repository, run borg break-lock on it on the backup "
                "server"
            )
        reason = (error or "").rstrip(".")
        return _failed(
            f"the repository, or borg's cache of it, could not be locked, and is not: {reason}; "
            "see owner, mode and room where that stands"
        )
    if b"self test failed" in ending.stderr_tail:
        return _failed(
            f"borg's test of itself failed ({error}); "
            "see that there is room on the disk of runtime.home, and memory"
        )
    if failure is not None:
        return Finding(
            exit=BORG_ERROR,
            result="error",
            error=f"{failure[1]} (borg: {error})",
            message=failure[1],
        )
    return Finding(exit=BORG_ERROR, result="error", error=error, message=None)


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


def _last_words(tail: bytes) -> str | None:
    lines = tail.replace(b"\r", b"\n").decode("utf-8", "replace").splitlines()
    found = last_words([line for one in lines for line in _spoken(one)])
    return None if found is None else masked(found)[:MAX_WORDS]


def _spoken(line: str) -> list[str]:
    """The lines for people in a line of borg's, which with ``--log-json`` is an object."""
    if not line.startswith("{"):
        return [line]
    import json

    try:
        message = json.loads(line)["message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    return message.splitlines() if isinstance(message, str) else []
