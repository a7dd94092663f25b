"""What the forced command and the companion say to each other through the companion's socket.

The forced command sends one line, a request, and reads lines until the one of type ``end``. A
request holds names alone, which the companion looks up in the whitelist itself: no path, no URL,
no parameter.

Pure, and imported by the forced command only for a request that is the companion's.
"""

from __future__ import annotations

from borg_pull.audit import encode as json_text
from borg_pull.errors import RequestError
from borg_pull.record import Record
from borg_pull.values import action_name_fault, client_name_fault, is_control, is_session, job_fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeGuard

    from borg_pull.audit import JSONValue

VERSION = 1
MAX_REQUEST = 4096  # bytes, with the newline
MAX_ANSWER_LINE = 64 * 1024  # bytes, with the newline
MAX_NUMBER = 10**12  # of an event
MAX_TEXT = 300  # characters of what sshd tells of the peer
END = "end"
"""Type of the last line of every answer."""


class Session(Record):
    """Who asks: the ssh session, as its records name it."""

    session: str
    """UUID."""
    key: str | None
    address: str | None
    port: int | None
    pid: int


class Ask(Record):
    """One request to the companion."""

    request: str
    """One of `REQUESTS`; the verb that the client's role is judged by."""
    client: str
    session: Session
    action: str | None
    """Name of ``run``'s."""
    job: str | None
    """UUID of ``job``'s and ``cancel``'s."""
    target: str | None
    """Name of ``aio``'s and ``target-set``'s."""
    detach: bool
    follow: bool
    start: int
    """Number of the first event that ``job`` is to tell; on the wire it is ``from``."""
    check: bool
    all: bool
    """The client may see and cancel the jobs of all clients."""


REQUESTS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "run": ("action", ("detach",)),
    "aio": ("target", ("check", "detach")),
    "jobs": (None, ("all",)),
    "job": ("job", ("follow", "from", "all")),
    "cancel": ("job", ("all",)),
    "aio-status": (None, ()),
    "health": (None, ()),
    "metrics": (None, ()),
    "target-show": (None, ()),
    "target-set": ("target", ()),
    "lockdown-on": (None, ()),
    "lockdown-off": (None, ()),
}
"""By request: the one name it holds, and what else it may hold."""


def request_line(ask: Ask) -> bytes:
    """The line that asks for it."""
    named, may_hold = REQUESTS[ask.request]
    fields: dict[str, JSONValue] = {
        "version": VERSION,
        "request": ask.request,
        "client": ask.client,
        "session": {name: getattr(ask.session, name) for name in Session.__slots__},
    }
    if named is not None:
        fields[named] = getattr(ask, named)
    for name in may_hold:
        fields[name] = ask.start if name == "from" else getattr(ask, name)
    return json_text(fields).encode("ascii") + b"\n"


def parse_request(line: bytes) -> Ask:
    """What the line asks for. Raises RequestError for one that `request_line` does not write."""
    import json

    if len(line) > MAX_REQUEST:
        raise RequestError(f"the request is longer than {MAX_REQUEST} bytes")
    try:
        fields = json.loads(line.decode("utf-8"), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise RequestError("the request is not one line of JSON") from error
    if not isinstance(fields, dict):
        raise RequestError("the request is no object")
    version = fields.pop("version", None)
    if not _is_number(version) or version != VERSION:
        raise RequestError(f"the request is not of version {VERSION}")
    request = fields.pop("request", None)
    if not isinstance(request, str) or request not in REQUESTS:
        raise RequestError("the request is unknown")
    named, may_hold = REQUESTS[request]
    ask = Ask(
        request=request,
        client=_text(fields, "client", client_name_fault),
        session=_session(fields.pop("session", None)),
        action=_text(fields, "action", action_name_fault) if named == "action" else None,
        job=_text(fields, "job", job_fault) if named == "job" else None,
        target=_text(fields, "target", action_name_fault) if named == "target" else None,
        detach=_flag(fields, "detach", may_hold),
        follow=_flag(fields, "follow", may_hold),
        start=_number(fields, "from", may_hold),
        check=_flag(fields, "check", may_hold),
        all=_flag(fields, "all", may_hold),
    )
    if fields:
        raise RequestError(f"the request holds what {request} does not: {min(fields)!a}")
    return ask


def end_line(exit_code: int, error: str | None, hint: str | None) -> bytes:
    """The last line of an answer."""
    fields: dict[str, JSONValue] = {"type": END, "exit": exit_code, "error": error, "hint": hint}
    return json_text(fields).encode("ascii") + b"\n"


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _session(fields: object) -> Session:
    if not isinstance(fields, dict) or set(fields) != set(Session.__slots__):
        raise RequestError("the request names no session")
    session, pid, port = fields["session"], fields["pid"], fields["port"]
    if not isinstance(session, str) or not is_session(session):
        raise RequestError("the request's session is no UUID")
    if not _is_number(pid) or not (port is None or _is_number(port)):
        raise RequestError("the request's session has a number that is none")
    return Session(
        session=session,
        key=_optional_text(fields["key"]),
        address=_optional_text(fields["address"]),
        port=port,
        pid=pid,
    )


def _optional_text(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > MAX_TEXT or not all(map(_is_harmless, value)):
        raise RequestError("the request's session has a text that is none")
    return value


def _is_harmless(character: str) -> bool:
    return not is_control(character) and not "\ud800" <= character <= "\udfff"


def _text(fields: dict[str, object], name: str, fault: Callable[[str], str | None]) -> str:
    value = fields.pop(name, None)
    if not isinstance(value, str) or fault(value) is not None:
        raise RequestError(f"the request's {name} is not one")
    return value


def _flag(fields: dict[str, object], name: str, may_hold: tuple[str, ...]) -> bool:
    value = fields.pop(name, False) if name in may_hold else False
    if not isinstance(value, bool):
        raise RequestError(f"the request's {name} is neither true nor false")
    return value


def _number(fields: dict[str, object], name: str, may_hold: tuple[str, ...]) -> int:
    value = fields.pop(name, 1) if name in may_hold else 1
    if not _is_number(value) or value < 1:
        raise RequestError(f"the request's {name} is no number of an event")
    return value


def _is_number(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_NUMBER
