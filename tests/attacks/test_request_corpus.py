"""A client whose key leaked sends whatever it likes: it gets its own verbs on its own paths.

Threat: every input class that has split, widened or redirected a forced command somewhere. Each
line of the corpus must end with its exit code before anything runs; the honest requests at its head
show that the refusals are not for nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

import pytest

from borg_pull.errors import NotAllowedError, RequestError
from borg_pull.source.judge import Refused, judge, refused_by_role
from borg_pull.source.request import parse
from tests.properties import checks, restatement, seen_by_borg
from tests.properties.borg_parsers import VERSIONS, BorgParser

from .request_lines import LINES, Line

TABLE = {
    "paths": ["/var/www", "/home/a b", "/home/é"],
    "trees": ["/srv/data"],
    "repositories": ["/srv/repo"],
    "allow": ["create", "list", "prune"],
}
RULES = checks.rules_of("luna", TABLE)
TAKEN = [line for line in LINES if line.expected == "ok" and line.command != b"hello"]


def named(line: Line) -> str:
    return ascii(line.command)[2:-1][:60]


@pytest.fixture(scope="module", params=VERSIONS)
def parser(request: pytest.FixtureRequest) -> Iterator[BorgParser]:
    made = BorgParser(request.param, "UTC")
    yield made
    made.close()


def verdict_of(command: bytes) -> tuple[str, str]:
    """The exit code before anything runs, and what the peer is told."""
    try:
        request = parse(command)
    except RequestError as error:
        return str(error.exit_code), error.line()
    if request.verb == "hello":
        return "ok", ""
    if request.verb in restatement.NAMES:
        refused = refused_by_role(request, "luna", RULES, checks.EVERY_FEATURE)
        assert refused is not None
        refusal = NotAllowedError(refused.reason, refused.hint)
        return str(refusal.exit_code), refusal.line()
    judged = judge(request, "luna", RULES, checks.EVERY_FEATURE, checks.context())
    if isinstance(judged, Refused):
        refusal = NotAllowedError(judged.reason, judged.hint)
        return str(refusal.exit_code), refusal.line()
    return "ok", ""


@pytest.mark.parametrize("line", LINES, ids=named)
def test_ends_as_it_must_and_for_the_reason_it_must(line: Line) -> None:
    found, said = verdict_of(line.command)
    assert found == line.expected, (line.kind, said)
    assert said.isprintable()
    assert (said == "") is (found == "ok")
    assert found == "ok" or any(reason in said for reason in line.reasons), (line.kind, said)


@pytest.mark.parametrize("line", TAKEN, ids=named)
def test_what_runs_is_what_was_asked_for(line: Line, parser: BorgParser) -> None:
    """By the rules written down a second time, and by what borg's own parser makes of it."""
    request = checks.parsed(line.command)
    assert request is not None
    judged = checks.verdict(line.command, request, "luna", TABLE, RULES)
    assert not isinstance(judged, Refused)
    allowed, made = judged
    asked = restatement.asked(line.command)
    seen_by_borg.check(parser, asked, "luna", TABLE, allowed.archive, made.argv[1:])


def test_the_corpus_is_whole() -> None:
    """A file cut short would pass unnoticed."""
    verdicts = Counter(line.expected for line in LINES)
    assert set(verdicts) == {"ok", "64", "77"}
    assert min(verdicts["ok"], verdicts["77"]) >= 45
    assert verdicts["64"] >= 280
    assert len({line.kind for line in LINES}) >= 25
    commands = [line.command for line in LINES]
    assert len(set(commands)) == len(commands)
    # Each reason is needed, and so is each class's list of them.
    for line in LINES:
        assert line.expected == "ok" or line.reasons
    for kind in {line.kind for line in LINES}:
        said = [verdict_of(line.command)[1] for line in LINES if line.kind == kind]
        reasons = next(line.reasons for line in LINES if line.kind == kind)
        assert [reason for reason in reasons if not any(reason in one for one in said)] == []


@pytest.mark.parametrize("size", [65_537, 128 * 1024, 10 * 1024 * 1024])
@pytest.mark.parametrize("filler", [b"a", b" ", b"'", b"\\", b"-", b"\xff", b"/a "])
def test_size_is_no_way_in(size: int, filler: bytes) -> None:
    command = (b"create /srv/repo a " + filler * size)[:size]
    started = time.process_time()
    assert verdict_of(command)[0] == "64"
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    "filler", [b"a", b" ", b"'x'", b"\\x", b"-p ", b"\xc3\xa9", b"/a ", b'"" ']
)
def test_the_largest_request_is_answered_soon(filler: bytes) -> None:
    command = (b"create /srv/repo a " + filler * 65_536)[:65_536]
    started = time.process_time()
    assert verdict_of(command)[0] in ("64", "77")
    assert time.process_time() - started < 2
