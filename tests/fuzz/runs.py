"""What a run leaves to be read: borg's words, its statistics, the wrap's report, the lock's note.

A borg that was taken over by its repository's server writes the first three as it likes.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from borg_pull.audit import MAX_RECORD_BYTES, encode
from borg_pull.errors import BusyError, printable
from borg_pull.source import main, report, state
from borg_pull.source.judge import Allowed, Grant
from borg_pull.source.outcome import finding
from borg_pull.source.relay import Relay
from borg_pull.source.request import VERBS
from borg_pull.source.session import Ending
from tests.properties.checks import check_line, rules_of

from .target import SEPARATOR, Target, parts, scratch

if TYPE_CHECKING:
    from borg_pull.source.trail import Trail

PATHS = ("/home", "/srv/a b")
ALLOWED = Allowed(
    verb="create",
    repository="/r",
    archive="a",
    grants=tuple(Grant(path=path, rule="trees[0]") for path in PATHS),
    members=(),
    staging=None,
    options=(),
    nonce=None,
    json=True,
    log_json=True,
    rule="allow[0]",
)
RULES = rules_of("luna", {"trees": ["/"]})
KEPT = 64
EXITS = {"success": {0}, "warning": {1}, "error": {2, 64, 69, 70, 71}, "killed": {2}}


def check_run(data: bytes) -> str:
    """The first byte is borg's code or, from 200 on, the signal that ended it; then its standard
    error, its standard output, the report."""
    number = data[0] if data else 0
    stderr, stdout, told = parts(data[1:], 3)
    ending = Ending(
        borg_code=None if number >= 200 else number,
        signal=number - 199 if number >= 200 else None,
        cause="the connection closed" if number == 199 else None,
        duration=1.0,
        stdout=stdout,
        stderr_tail=stderr,
    )
    reported = report.parse(told.decode("utf-8", "replace"))
    if reported is not None:
        assert 0 <= reported.bytes_to_peer < 2**63
        assert 0 <= reported.bytes_from_peer < 2**63
    locked = "locked down since yesterday" if ending.cause else None
    found = finding(ending, reported, ALLOWED, "luna", RULES, [], locked)
    assert found.exit in EXITS[found.result]
    assert found.result == "error" or number in (0, 1, *range(100, 128), *range(199, 256))
    if found.message is not None:
        check_line(printable(found.message))
    _check_record(main._outcome(ending, found, reported))
    _check_relay(stderr)
    return found.result


def _check_record(outcome: object) -> None:
    fields = {name: getattr(outcome, name) for name in type(outcome).__slots__}  # type: ignore[attr-defined]
    text = encode(fields)
    assert text.isascii()
    assert text.isprintable()
    assert len(text) < 32 * 1024 < MAX_RECORD_BYTES


def _check_relay(said: bytes) -> None:
    """What the peer's terminal gets of borg's words acts on nothing, however it is cut."""
    reader, writer = os.pipe()
    passed, target = os.pipe()
    relay = Relay(reader, target, KEPT)
    half = len(said) // 2
    for block in (said[:half], said[half:]):
        if block:
            os.write(writer, block)
            relay.receive()
    os.close(writer)
    relay.receive()
    heard = b""
    while not relay.is_done():
        relay.send()
        heard += os.read(passed, 8192)
    os.close(passed)
    os.close(target)
    assert len(heard) == len(said)
    assert relay.tail() == said[-KEPT:]
    assert relay.whole() == (said if len(said) <= KEPT else None)
    text = heard.decode("utf-8", "replace")
    assert not [c for c in text if (c < " " and c not in "\n\r\t") or "\x7f" <= c <= "\x9f"]


def run_seeds() -> Iterable[bytes]:
    """Ends of runs as they are."""
    connected = b"12 connected 0 0 0\n12 progress 5 6 0\n12 end 500 600 0 \n"
    stats = (
        b'{"archive": {"id": "00ff", "stats": {"original_size": 1, "compressed_size": 2,'
        b' "deduplicated_size": 3, "nfiles": 4}}}'
    )
    yield SEPARATOR.join((b"\x00", stats, connected))
    yield SEPARATOR.join((b"\x01/home: stat: [Errno 2] No such file", b"", connected))
    yield SEPARATOR.join((b'\x6b{"message": "/home: [Errno 2]"}', b"{}", connected))
    yield SEPARATOR.join((b"\x02Connection closed by remote host", b"", b"12 end 0 0 69 gone\n"))
    yield b"\x02Traceback (most recent call last):\n  x\nValueError: \xc2\x9b2J\n\nPlatform: Linux"
    yield b"\x02BORG_RELOCATED_REPO_ACCESS_IS_OK"
    yield b"\xd0killed"


RUN = Target(
    name="run",
    check=check_run,
    reaches={
        "borg_pull.source.outcome": (),
        "borg_pull.source.report": ("parse", "_is_number"),
        "borg_pull.source.relay": (),
        "borg_pull.source.main": ("_archive_stats",),
    },
    weight=2,
    seeds=run_seeds,
    dictionary=(
        SEPARATOR, b" connected ", b" end ", b" progress ", b" 69 ", b" 70 ", b" 71 ", b" 64 ",
        b"999999999999999999", b"/home: ", b"[Errno 2]", b'"message": "/home: ', b"Remote: ",
        b"Borg server: ", b"Traceback (most recent call last):", b"Local Exception", b"passphrase",
        b"BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", b"BORG_RELOCATED_REPO_ACCESS_IS_OK",
        b"Failed to create/acquire the lock", b"passphrase supplied in", b'"stats"', b'"id"',
        b'"archive"', b'"nfiles"', b"1e999", b"NaN", b"[" * 60, b'{"archive":', b"\xc2\x9b",
        b"\x1b[", b"\xe2\x80\xa8",
    ),
)  # fmt: skip


class _Log:
    """A trail that notes what would pass into the log."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, str]] = []

    def complete_interrupted(self, session: str, verb: str) -> None:
        self.ended.append((session, verb))


NOTE = "create since 2026-11-21T00:00:00Z, pid 1, session 3b241101-e2bb-4255-8caf-4136c566a962"


@functools.cache
def _locks() -> str:
    directory = scratch() / "locks"
    directory.mkdir()
    return str(directory)


def check_note(data: bytes) -> str:
    """What a lock file holds when its holder died, or was made to say something else."""
    path = Path(state.places(_locks(), "/r")[0])
    path.write_bytes(data)
    held = state.claim(_locks(), "/r")
    state.note(held, NOTE)
    try:
        try:
            state.claim(_locks(), "/r")
        except BusyError as error:
            told = error.line()
        else:
            raise AssertionError("two holders of one lock")
        check_line(told)
        assert NOTE in told
        assert Path(held.report_path).read_bytes() == b""
        log = _Log()
        main._record_interrupted(held, cast("Trail", log))
    finally:
        state.release(held, ended=True)
    assert not path.read_bytes().partition(b"\n")[0]
    if held.interrupted is None:
        assert data[:1] in (b"", b"\n")
        return "none"
    assert len(held.interrupted) <= 200
    for session, verb in log.ended:
        assert verb in VERBS
        assert len(session) == 36
        assert not session.replace("-", "").strip("0123456789abcdef")
    return "recorded" if log.ended else "ignored"


LOCK_NOTE = Target(
    name="lock_note",
    check=check_note,
    reaches={
        "borg_pull.source.state": ("_note", "_lock", "_write_note"),
        "borg_pull.source.main": ("_record_interrupted",),
        "borg_pull.audit": ("is_session",),
    },
    weight=1,
    seeds=lambda: (NOTE.encode() + b"\n", b"\n" + NOTE.encode(), b""),
    dictionary=(b" session ", b"create ", b"prune ", b"-0000-", b"\n", b"\xff"),
    max_length=512,
)
