"""A client whose key leaked sends whatever it likes: it gets its own verbs on its own paths.

Threat: every input class that has split, widened or redirected a forced command somewhere. Each
line of the corpus must end with its exit code before anything runs; the honest requests at its head
show that the refusals are not for nothing.
"""

from __future__ import annotations

import time
from collections import Counter

import pytest

from borg_pull.errors import NotAllowedError, RequestError
from borg_pull.source import borg
from borg_pull.source.judge import Allowed, Context, Refused, judge
from borg_pull.source.request import parse
from borg_pull.source.whitelist import SourceFile, load
from tests.properties import restatement
from tests.properties.toml_text import toml_table

from .request_lines import LINES

RULES = {
    "paths": ["/var/www", "/home/a b"],
    "trees": ["/srv/data"],
    "repositories": ["/srv/repo"],
    "allow": ["create", "list", "prune"],
}
WHITELIST = load(
    SourceFile(
        name="w",
        content=(
            'runtime = { socket_dir = "/run/sockets", home = "/var/lib/home" }\n'
            + toml_table("[client.luna]", RULES)
        ).encode(),
    ),
    {},
)
EPOCH = 1_795_222_312.0
CONTEXT = Context(
    hostname="source-1", local_time=time.localtime(EPOCH), utc_time=time.gmtime(EPOCH)
)


def verdict_of(command: bytes) -> tuple[str, str]:
    """The exit code before anything runs, and what the peer is told."""
    try:
        request = parse(command)
    except RequestError as error:
        return str(error.exit_code), error.line()
    if request.verb == "hello":
        return "ok", ""
    judged = judge(request, "luna", WHITELIST.clients["luna"], CONTEXT)
    if isinstance(judged, Refused):
        refusal = NotAllowedError(judged.reason, judged.hint)
        return str(refusal.exit_code), refusal.line()
    return "ok", ""


@pytest.mark.parametrize(
    ("kind", "expected", "command"), LINES, ids=[ascii(command)[2:-1][:60] for *_, command in LINES]
)
def test_ends_as_it_must(kind: str, expected: str, command: bytes) -> None:
    found, line = verdict_of(command)
    assert found == expected, (kind, line)
    assert line.isprintable()
    assert (line == "") is (found == "ok")


@pytest.mark.parametrize(
    "command",
    [command for _, expected, command in LINES if expected == "ok" and command != b"hello"],
)
def test_what_runs_is_what_was_asked_for(command: bytes) -> None:
    judged = judge(parse(command), "luna", WHITELIST.clients["luna"], CONTEXT)
    assert isinstance(judged, Allowed)
    asked = restatement.asked(command)
    restatement.check_syntax(asked)
    made = borg.command(
        judged, "luna", WHITELIST.clients["luna"], WHITELIST.settings.runtime, "/usr/bin/wrap"
    )
    socket = made.environment["BORGSOCKETWRAP_SOCKET_PATH"]
    restatement.check_verdict(
        asked,
        "luna",
        RULES,
        socket.removeprefix("/run/sockets/"),
        [grant.path for grant in judged.grants],
    )
    restatement.check_command(asked, "luna", RULES, judged.archive, made.argv)


def test_the_corpus_is_whole() -> None:
    """A file cut short would pass unnoticed."""
    verdicts = Counter(verdict for _, verdict, _ in LINES)
    assert set(verdicts) == {"ok", "64", "77"}
    assert min(verdicts["ok"], verdicts["77"]) >= 20
    assert verdicts["64"] >= 150
    assert len({kind for kind, *_ in LINES}) >= 15
    commands = [command for *_, command in LINES]
    assert len(set(commands)) == len(commands)


@pytest.mark.parametrize("size", [65_537, 128 * 1024, 10 * 1024 * 1024])
@pytest.mark.parametrize("filler", [b"a", b" ", b"'", b"\\", b"-", b"\xff", b"/a "])
def test_size_is_no_way_in(size: int, filler: bytes) -> None:
    command = (b"create /srv/repo a " + filler * size)[:size]
    started = time.monotonic()
    assert verdict_of(command)[0] == "64"
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    "filler", [b"a", b" ", b"'x'", b"\\x", b"-p ", b"\xc3\xa9", b"/a ", b'"" ']
)
def test_the_largest_request_is_answered_soon(filler: bytes) -> None:
    command = (b"create /srv/repo a " + filler * 65_536)[:65_536]
    started = time.monotonic()
    assert verdict_of(command)[0] in ("64", "77")
    assert time.monotonic() - started < 2
