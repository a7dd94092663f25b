"""The audit log: a damaged one is continued, and any text is one line in it."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from borg_pull.admin import audit as reading
from borg_pull.audit import GENESIS, AuditLog, Common, parse_sidecar
from tests.properties.checks import check_line

from .target import SEPARATOR, Target, parts, scratch

COMMON = Common(
    session="3b241101-e2bb-4255-8caf-4136c566a962",
    client="luna",
    key=None,
    address="192.0.2.1",
    port=22,
    pid=1,
)


@functools.cache
def _log() -> Path:
    return scratch() / "audit.jsonl"


def check(data: bytes) -> str:
    """The text of a request, the sidecar, and the log as they were found."""
    text, sidecar, content = parts(data, 3)
    log, chain = _log(), _log().with_name("audit.jsonl.chain")
    log.write_bytes(content)
    chain.write_bytes(sidecar)
    known = parse_sidecar(sidecar)
    request = os.fsdecode(text)
    written = AuditLog(str(log), sync=False).append("refused", COMMON, {"request": request})
    after = log.read_bytes()
    torn = bool(content) and not content.endswith(b"\n")
    assert after.startswith(content + (b"\n" if torn else b""))
    line = after[len(content) + torn :]
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    assert line[:-1].decode("ascii").isprintable()
    record = json.loads(line)
    assert record["request"] == request
    last = content.removesuffix(b"\n").rpartition(b"\n")[2]
    if content:
        assert record["prev"] == hashlib.sha256(last).hexdigest()
    else:
        assert record["prev"] == (known.hash if known else GENESIS)
    assert record["seq"] > (known.seq if known else 0)
    assert written == hashlib.sha256(line[:-1]).hexdigest()
    head = parse_sidecar(chain.read_bytes())
    # The one number that leaves no room for another; a sidecar beyond it is made anew.
    assert record["seq"] <= 10**19
    if record["seq"] < 10**19:
        assert head is not None
        assert (head.seq, head.hash) == (record["seq"], written)
    _check_reading(str(log), after)
    return "empty" if not content else "torn" if torn else "continued"


def _check_reading(path: str, content: bytes) -> None:
    """The admin's program shows and verifies whatever stands there."""
    verdict = reading.verify_files([path], rotated=False, expect=None)
    json.dumps(reading.verdict_object(verdict))
    for text in reading.verdict_lines(verdict):
        for part in text.splitlines():
            check_line(part)
    with open(path, "rb") as stream:
        lines = list(reading.lines_of(reading.Source(name=path, stream=stream, size=None)))
        rows = [reading.row_of(line) for line in lines]
    assert len(rows) == content.count(b"\n")
    for row in rows:
        assert all(cell.isprintable() for cell in row), row


def seeds() -> Iterable[bytes]:
    """A log of two records, whole, torn and with a wrong sidecar."""
    log, chain = scratch() / "seed.jsonl", scratch() / "seed.jsonl.chain"
    for number in range(2):
        AuditLog(str(log), sync=False).append("refused", COMMON, {"request": f"hello {number}"})
    content, sidecar = log.read_bytes(), chain.read_bytes()
    log.unlink()
    chain.unlink()
    yield SEPARATOR.join((b"hello", sidecar, content))
    yield SEPARATOR.join((b"\xff\x1b", sidecar, content[:-20]))
    yield SEPARATOR.join((b"", b"", content))
    yield SEPARATOR.join((b"", sidecar, b""))
    yield SEPARATOR.join((b"", b"9" * 20 + b" " + b"a" * 64 + b"\n", content))


TARGET = Target(
    name="audit",
    check=check,
    reaches={
        "borg_pull.audit": (
            "_append", "_head", "_last_line", "_last_sequence", "_sequence_of", "parse_sidecar",
            "_text", "_members", "_body", "_remembered", "_remember",
        )
    },
    weight=2,
    seeds=seeds,
    dictionary=(
        SEPARATOR, b'{"time":"', b',"seq":', b',"prev":"', b'"}\n', b'"event":', b"0" * 64,
        b"9" * 20, b"\n", b"[" * 40, b"{", b"\xed\xa0\x80", b"\\ud800", b'"complete"', b'"start"',
        b'"duration":', b'"bytes_to_peer":', b'"argv":', b'"session":', b"1e400", b"-1",
    ),
    max_length=4096,
)  # fmt: skip
