"""The line that the forced command sends to the companion: what it holds, and what it cannot."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from borg_pull.audit import new_session
from borg_pull.companion import (
    MAX_REQUEST,
    REQUESTS,
    Ask,
    Session,
    end_line,
    parse_request,
    request_line,
)
from borg_pull.errors import RequestError
from borg_pull.roles import NEEDS
from borg_pull.values import action_name_fault, job_fault

SESSION = Session(session=new_session(), key="SHA256:x", address="192.0.2.1", port=22, pid=7)
JOB = new_session()


def ask(request: str, **given: Any) -> Ask:
    named, _ = REQUESTS[request]
    fields: dict[str, Any] = {
        "request": request,
        "client": "luna",
        "session": SESSION,
        "action": "nightly" if named == "action" else None,
        "target": "far" if named == "target" else None,
        "job": JOB if named == "job" else None,
        "detach": False,
        "follow": False,
        "start": 1,
        "check": False,
        "all": False,
    }
    return Ask(**(fields | given))


def line(of: str = "run", **changed: object) -> bytes:
    fields = json.loads(request_line(ask(of))) | changed
    return json.dumps({key: value for key, value in fields.items() if value is not ...}).encode()


@pytest.mark.parametrize("request_name", REQUESTS)
def test_what_is_asked_arrives(request_name: str) -> None:
    wanted = ask(request_name)
    assert parse_request(request_line(wanted)) == wanted
    assert request_name in NEEDS


@pytest.mark.parametrize(
    ("request_name", "given"),
    [
        ("run", {"detach": True}),
        ("aio", {"check": True, "detach": True}),
        ("job", {"follow": True, "start": 12, "all": True}),
        ("cancel", {"all": True}),
    ],
)
def test_flags_arrive(request_name: str, given: dict[str, object]) -> None:
    wanted = ask(request_name, **given)
    assert parse_request(request_line(wanted)) == wanted


def test_the_longest_request_fits() -> None:
    session = Session(
        session=new_session(), key="k" * 300, address="\ue000" * 300, port=65535, pid=10**12
    )
    wanted = ask("run", client="c" * 64, action="a" * 64, detach=True, session=session)
    encoded = request_line(wanted)
    assert len(encoded) <= MAX_REQUEST
    assert parse_request(encoded) == wanted


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 4000,
        b" " * (MAX_REQUEST + 1),
        line(version=2),
        line(version=...),
        line(version=True),
        line(version=1.0),
        line(request="shell"),
        line(request=...),
        line(request=["run"]),
        line(client="../x"),
        line(client=...),
        line(session=None),
        line(session={**json.loads(line())["session"], "more": 1}),
        line(session={**json.loads(line())["session"], "session": "x"}),
        line(session={**json.loads(line())["session"], "pid": True}),
        line(session={**json.loads(line())["session"], "key": "a\n"}),
        line(session={**json.loads(line())["session"], "key": "\ud800"}),
        line(session={**json.loads(line())["session"], "address": "a" * 301}),
        line(action="a b"),
        line(action="/etc"),
        line(action=...),
        line(action=1),
        line(target="far"),
        line(command="id"),
        line(env={}),
        line(detach=1),
        line(check=True),
        line("aio", target="ssh://u@h:22/x"),
        line("job", job="x"),
        line("job", **{"from": 0}),
        line("job", **{"from": -1}),
        line("job", **{"from": 1.5}),
        line("job", **{"from": 10**13}),
        line("jobs", job=JOB),
        line("lockdown-on", reason="x"),
        line()[:-1] + b', "action": "other"}',
    ],
)
def test_nothing_else_passes(bad: bytes) -> None:
    with pytest.raises(RequestError):
        parse_request(bad)


def test_the_last_line() -> None:
    assert json.loads(end_line(75, "busy", None)) == {
        "type": "end",
        "exit": 75,
        "error": "busy",
        "hint": None,
    }


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_line_is_a_request_or_refused(data: st.DataObject) -> None:
    """What is taken is what `request_line` writes, word for word."""
    fields = json.loads(request_line(ask(data.draw(st.sampled_from(sorted(REQUESTS))))))
    texts = st.sampled_from(("nightly", "x y", "/etc", "a" * 65, JOB, "", "luna", "\n", "\u202e"))
    values = st.one_of(texts, st.booleans(), st.integers(), st.none(), st.just({}), st.just([]))
    names = st.sampled_from((*fields, "action", "target", "job", "from", "all", "env", "detach"))
    for name in data.draw(st.lists(names, max_size=2)):
        fields[name] = data.draw(values)
    encoded = json.dumps(fields).encode()
    place = data.draw(st.integers(-len(encoded), len(encoded)))
    if data.draw(st.booleans()):
        encoded = encoded[:place] + data.draw(st.binary(max_size=3)) + encoded[place + 1 :]
    try:
        taken = parse_request(encoded)
    except RequestError:
        return
    assert parse_request(request_line(taken)) == taken
    named, _ = REQUESTS[taken.request]
    for kind, fault in (
        ("action", action_name_fault),
        ("target", action_name_fault),
        ("job", job_fault),
    ):
        value = getattr(taken, kind)
        assert (value is None) is (kind != named)
        assert value is None or fault(value) is None
