"""One line to the companion, from whoever gets as far as its socket."""

from __future__ import annotations

import json
import re

from borg_pull.audit import new_session
from borg_pull.companion import (
    MAX_REQUEST,
    REQUESTS,
    Ask,
    Session,
    parse_request,
    request_line,
)
from borg_pull.errors import RequestError
from tests.properties.checks import check_line

from .target import Target

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def check(data: bytes) -> str:
    """What is taken is what the forced command writes: names that are names, and nothing more."""
    try:
        ask = parse_request(data)
    except RequestError as error:
        check_line(error.line())
        return "refused"
    assert len(data) <= MAX_REQUEST
    assert NAME.fullmatch(ask.client)
    assert UUID.fullmatch(ask.session.session)
    for text in (ask.session.key, ask.session.address):
        assert text is None or not CONTROL.search(text)
    named, may_hold = REQUESTS[ask.request]
    for kind, form in (("action", NAME), ("target", NAME), ("job", UUID)):
        name = getattr(ask, kind)
        assert (name is not None) == (named == kind)
        assert name is None or form.fullmatch(name)
    assert ask.start == 1 or "from" in may_hold
    for flag in ("detach", "follow", "check", "all"):
        assert not getattr(ask, flag) or flag in may_hold
    assert parse_request(request_line(ask)) == ask
    return "taken"


def _lines() -> list[bytes]:
    session = Session(
        session=new_session(), key="SHA256:x", address="192.0.2.1", port=50000, pid=4711
    )
    return [
        request_line(
            Ask(
                request=request,
                client="luna",
                session=session,
                action="nightly",
                job=new_session(),
                target="disk",
                detach=True,
                follow=True,
                start=12,
                check=True,
                all=True,
            )
        )
        for request in REQUESTS
    ]


TARGET = Target(
    name="companion",
    check=check,
    reaches={"borg_pull.companion": ("parse_request", "_distinct", "_session", "_text", "_flag")},
    weight=1,
    seeds=_lines,
    dictionary=(
        *(f'"{name}"'.encode() for name in (*REQUESTS, *Ask.__slots__, *Session.__slots__, "from")),
        b'"version":1',
        b"true",
        b"null",
        b"1e3",
        b"\\ud800",
        json.dumps({"env": "x"}).encode(),
    ),
    max_length=MAX_REQUEST + 64,
    honest=_lines,
)
