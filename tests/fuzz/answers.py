"""What a source answers its backup server: values that anything can take, or nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from borg_pull.pull import said

from .target import SEPARATOR, Target, parts

HELLO = json.dumps(
    {
        "type": "hello", "protocol": 1, "version": "0.1.0", "borg": "1.2.4", "client": "luna",
        "verbs": ["create", "hello"], "socket_directory": "/run/borg-pull",
        "passphrase_stdin": True, "time": "2026-11-21T02:00:01.250Z",
    }
).encode()  # fmt: skip
RESULT = json.dumps(
    {
        "type": "borg_pull_result", "session": "0b0f2a5e-1111-4222-8333-444455556666",
        "borg_code": 2, "error": "the disk is on fire", "directory": "/restored",
    }
).encode()  # fmt: skip
WARNING = b'{"type":"log_message","levelname":"WARNING","message":"a"}'
PROGRESS = b'{"type":"archive_progress","nfiles":1,"original_size":2,"deduplicated_size":1}'
MADE = b'{"archive":{"name":"a","id":"00","stats":{"original_size":1}}}'


def _holds(text: str, most: int) -> None:
    """A terminal, the ledger, mail and a hook's environment can take it."""
    assert text.isprintable(), text
    assert len(text) <= most, len(text)
    text.encode()


def check(data: bytes) -> str:
    """An answer to hello or to create, and what is said on the way."""
    answer, transcript = parts(data, 2)
    _check_transcript(transcript)
    made = said.made(answer)
    for text in (made.name, made.id):
        _holds(text or "", 500)
    for number in (made.statistics or {}).values():
        assert type(number) is int
        assert 0 <= number < 2**63
    assert isinstance(said.clock(answer), float | None)
    try:
        greeting = said.greeting(answer)
    except ValueError as error:
        _holds(str(error), 500)
        return "made" if made != said.Made(None, None, None) else "refused"
    assert said.remembered(greeting.to_json()) == greeting
    assert re.fullmatch("[A-Za-z0-9._-]{1,64}", greeting.client)
    assert re.fullmatch("/[A-Za-z0-9/._-]{1,106}", greeting.socket_directory)
    assert "/../" not in f"{greeting.socket_directory}/"
    assert all(re.fullmatch("[a-z0-9_-]{1,32}", verb) for verb in greeting.verbs)
    for version in (greeting.version, greeting.borg):
        _holds(version or "", 64)
    return "hello"


def _check_transcript(lines: bytes) -> None:
    transcript = said.Transcript()
    for line in lines.split(b"\n"):
        transcript.take(line)
        _holds(said.message(line) or "", 10 * len(line))
    for text in transcript.complaints:
        _holds(text, 500)
    progress, result = transcript.progress, transcript.result
    for number in () if progress is None else (progress.files, progress.read_bytes):
        assert 0 <= number < 2**63
    if result is not None:
        _holds(result.error or "", 500)
        _holds(result.directory or "", 10 * 4096)
        assert re.fullmatch("[0-9a-f-]{36}", result.session or "0" * 36)
        assert 0 <= (result.borg_code or 0) <= 255


def seeds() -> Iterable[bytes]:
    """Honest answers, and one that is none."""
    yield SEPARATOR.join((HELLO, RESULT))
    yield SEPARATOR.join((MADE, b"\n".join((WARNING, PROGRESS, RESULT, b"words"))))
    yield b"not allowed"


TARGET = Target(
    name="answers",
    check=check,
    reaches={"borg_pull.pull.said": ()},
    weight=1,
    seeds=seeds,
    honest=seeds,
    dictionary=(
        SEPARATOR, b'"type":"hello"', b'"error":"', b'"message":"', b'"\\ud800"', b"\\u0000",
        b"[" * 40, b'{"a":' * 20, b"${HOME}", b"%u", b"/../", b"9" * 20, b"-1", b"1e400", b"true",
        b"null", b"[]", b"{}", b'"finished":true', b'"levelname":"ERROR"',
    ),
    max_length=4096,
)  # fmt: skip
