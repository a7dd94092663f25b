"""Reading and verifying the audit log: whoever alters it is found, and honest mishaps are not."""

from __future__ import annotations

import contextlib
import grp
import gzip
import hashlib
import json
import os
import pwd
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from borg_pull.admin.audit import (
    Finding,
    Verdict,
    duration_text,
    rotated_set,
    since_of,
    size_text,
    verify_files,
)
from borg_pull.admin.main import main
from borg_pull.audit import AuditLog, Common, sidecar_of, timestamp
from borg_pull.errors import RequestError
from borg_pull.source.trail import Trail
from tests.harness.wait import until

LOGROTATE = "/usr/sbin/logrotate"
SHIPPED = Path(__file__).parents[1] / "contrib" / "logrotate.conf"
SHIPPED_LOG = "/var/lib/borg-pull/audit.jsonl"


def common(**changed: Any) -> Common:
    fields: dict[str, Any] = {
        "session": "4b4d4b1e-0000-4000-8000-000000000001",
        "client": "web1",
        "key": "SHA256:abc",
        "address": "192.0.2.7",
        "port": 51234,
        "pid": 4711,
    }
    return Common(**fields | changed)


def append(path: Path, count: int = 1) -> None:
    log = AuditLog(str(path), sync=False)
    for number in range(count):
        log.append("start", common(), {"number": number, "verb": "create"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def sidecar(path: Path) -> Path:
    return Path(sidecar_of(str(path)))


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines()


def rewrite(path: Path, content: Sequence[bytes]) -> None:
    path.write_bytes(b"".join(line + b"\n" for line in content))


def digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def changed(line: bytes, **fields: Any) -> bytes:
    return json.dumps(json.loads(line) | fields, separators=(",", ":")).encode()


def verdict(*paths: Path, rotated: bool = False, expect: str | None = None) -> Verdict:
    return verify_files([str(path) for path in paths], rotated=rotated, expect=expect)


def found(result: Verdict) -> list[tuple[str, str, int | None]]:
    """Kind, file name and line of each finding."""
    return [(f.kind, os.path.basename(f.file), f.line) for f in result.findings]


def tampering(result: Verdict) -> list[Finding]:
    return [finding for finding in result.findings if finding.tampering]


# Tampering, one kind at a time

RECORDS = 9
LOG = "audit.jsonl"


@pytest.fixture
def log(path: Path) -> Path:
    append(path, RECORDS)
    return path


def test_an_honest_log_is_intact(log: Path) -> None:
    result = verdict(log)
    assert (result.findings, result.records, result.first_seq, result.last_seq) == ([], 9, 1, 9)
    assert result.head == digest(lines(log)[-1])
    assert result.head in sidecar(log).read_text()


@pytest.mark.parametrize("number", range(1, RECORDS + 1))
@pytest.mark.parametrize(
    "alter",
    [
        lambda line: line.replace(b'"web1"', b'"web2"'),
        lambda line: line.replace(b'"verb":', b'"verb": '),
        lambda line: changed(line, prev="1" * 64),
        lambda line: changed(line, seq=77),
        lambda line: b"no record at all",
        lambda line: b"",
    ],
    ids=["content", "spelling", "prev", "seq", "text", "empty"],
)
def test_an_altered_record_is_named(
    log: Path, number: int, alter: Callable[[bytes], bytes]
) -> None:
    content = lines(log)
    content[number - 1] = alter(content[number - 1])
    rewrite(log, content)
    assert ("altered", LOG, number) in found(verdict(log))
    assert {(f.kind, f.line) for f in tampering(verdict(log))} == {("altered", number)}


@pytest.mark.parametrize("number", range(1, RECORDS - 1))
def test_two_neighbours_altered(log: Path, number: int) -> None:
    content = lines(log)
    for index in (number - 1, number):
        content[index] = content[index].replace(b'"web1"', b'"web2"')
    rewrite(log, content)
    assert [entry for entry in found(verdict(log)) if entry[0] != "start"] == [
        ("unconfirmed", LOG, number),
        ("altered", LOG, number + 1),
    ]


@pytest.mark.parametrize("number", range(2, RECORDS + 1))
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_removed_record_is_named(log: Path, number: int, count: int) -> None:
    content = lines(log)
    gone = min(count, RECORDS + 1 - number)
    del content[number - 1 : number - 1 + gone]
    rewrite(log, content)
    (finding,) = tampering(verdict(log))
    at_end = number + gone > RECORDS
    assert (finding.kind, finding.line) == ("removed", number - 1 if at_end else number)
    numbers = f"record {number} " if gone == 1 else f"records {number} to {number + gone - 1} "
    assert finding.message.startswith(numbers)


def test_everything_removed_but_the_rotated_past(log: Path) -> None:
    log.rename(f"{log}.1")
    append(log, 3)
    log.write_bytes(b"")
    (finding,) = tampering(verdict(log, rotated=True))
    assert (finding.kind, finding.file) == ("removed", f"{log}.1")
    assert finding.message.startswith("records 10 to 12 ")


def forged(content: list[bytes], after: int) -> bytes:
    """A record that names the line it is put after, as if it came next."""
    line = content[after - 1]
    return changed(line, seq=after + 1, prev=digest(line), verb="check")


@pytest.mark.parametrize("after", range(1, RECORDS + 1))
@pytest.mark.parametrize(
    "make",
    [
        forged,
        lambda content, after: changed(content[after - 1], prev="1" * 64),
        lambda content, after: changed(content[after - 1], seq=99),
        lambda content, after: content[2],
        lambda content, after: b"no record at all",
        lambda content, after: b"",
    ],
    ids=["bound", "unbound", "far number", "copy", "text", "empty"],
)
def test_an_inserted_record_is_named(
    log: Path, after: int, make: Callable[[list[bytes], int], bytes], request: pytest.FixtureRequest
) -> None:
    content = lines(log)
    content.insert(after, make(content, after))
    rewrite(log, content)
    kinds = [(f.kind, f.line) for f in verdict(log).findings]
    if after == RECORDS and "bound" in request.node.callspec.id.split("-"):
        # Nothing vouches for the last record but the sidecar, which is behind it after a crash too.
        assert kinds == [("behind", after + 1)]
    else:
        # Of two equal lines that stand together, either is the copy.
        assert kinds in ([("inserted", after + 1)], [("inserted", after)])


def test_a_chain_of_inserted_records(log: Path) -> None:
    content = lines(log)
    first = forged(content, 4)
    second = changed(first, seq=6, prev=digest(first))
    content[4:4] = [first, second]
    rewrite(log, content)
    (finding,) = verdict(log).findings
    assert (finding.kind, finding.line, finding.last_line) == ("inserted", 5, 6)


@pytest.mark.parametrize("number", range(1, RECORDS))
def test_neighbours_swapped(log: Path, number: int) -> None:
    content = lines(log)
    content[number - 1], content[number] = content[number], content[number - 1]
    rewrite(log, content)
    (finding,) = verdict(log).findings
    assert finding.kind == "reordered"
    assert finding.line in {number, number + 1}


@pytest.mark.parametrize(("source", "target"), [(1, 9), (9, 1), (2, 7), (7, 2), (5, 9)])
def test_a_record_moved_far(log: Path, source: int, target: int) -> None:
    content = lines(log)
    content.insert(target - 1, content.pop(source - 1))
    rewrite(log, content)
    (finding,) = verdict(log).findings
    assert (finding.kind, finding.line) == ("reordered", target)


@pytest.mark.parametrize("number", range(1, RECORDS))
def test_without_a_sidecar_all_but_the_end_is_still_found(log: Path, number: int) -> None:
    sidecar(log).unlink()
    content = lines(log)
    content[number - 1] = content[number - 1].replace(b'"web1"', b'"web2"')
    rewrite(log, content)
    assert [(f.kind, f.line) for f in tampering(verdict(log))] == [("altered", number)]


def test_a_chain_started_anew_is_found(log: Path) -> None:
    log.rename(f"{log}.1")
    sidecar(log).unlink()
    append(log, 2)
    (finding,) = tampering(verdict(log, rotated=True))
    assert (finding.kind, finding.file, finding.line) == ("restarted", str(log), 1)


def test_cutting_the_end_off_is_found_also_after_more_was_written(log: Path) -> None:
    rewrite(log, lines(log)[:5])
    append(log, 2)
    (finding,) = tampering(verdict(log))
    assert (finding.kind, finding.line) == ("removed", 6)
    assert finding.message.startswith("records 6 to 9 ")


def test_a_sidecar_that_fits_no_record_is_found(log: Path) -> None:
    content = sidecar(log).read_bytes()
    sidecar(log).write_bytes(b"%020d" % 3 + content[20:])
    assert [f.kind for f in tampering(verdict(log))] == ["sidecar"]
    sidecar(log).write_bytes(b"%020d %s\n" % (3, b"1" * 64))
    assert [f.kind for f in tampering(verdict(log))] == ["sidecar"]


some_edits = st.lists(
    st.tuples(
        st.sampled_from(["alter", "remove", "copy", "swap", "forge", "junk", "cut"]),
        st.integers(0, 19),
        st.integers(0, 19),
    ),
    min_size=1,
    max_size=4,
)


def edited(content: list[bytes], kind: str, first: int, second: int) -> list[bytes]:
    if not content:
        return content
    content = list(content)
    at, other = first % len(content), second % len(content)
    match kind:
        case "alter":
            content[at] = content[at].replace(b"create", b"cheats")
        case "remove":
            del content[at]
        case "copy":
            content.insert(at, content[other])
        case "swap":
            content[at], content[other] = content[other], content[at]
        case "forge":
            content.insert(at, changed(content[other], seq=at + 1, prev=digest(content[at - 1])))
        case "junk":
            content.insert(at, b'{"time":"')
        case "cut":
            del content[max(1, at) :]
    return content


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=3), some_edits)
def test_no_mix_of_edits_goes_unnoticed_or_breaks_the_verifier(
    sizes: list[int], edits: list[tuple[str, int, int]]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / LOG
        append(path)
        for index, size in enumerate(reversed(sizes)):
            append(path, size)
            if index + 1 < len(sizes):
                path.rename(f"{path}.{len(sizes) - index - 1}")
                path.write_bytes(b"")
        files = rotated_set(str(path))
        whole = b"".join(Path(file).read_bytes() for file in files)
        assert verdict(path, rotated=True).findings == []
        target = Path(files[edits[0][1] % len(files)])
        content = lines(target)
        for kind, first, second in edits:
            if all(line.startswith(b"{") and line.endswith(b"}") for line in content):
                content = edited(content, kind, first, second)
        rewrite(target, content)
        now = b"".join(Path(file).read_bytes() for file in files)
        result = verdict(path, rotated=True)
        # What is missing from the very beginning cannot be told from files rotated away.
        missing_start = whole.endswith(now)
        assert result.intact() == missing_start


# Honest mishaps


def tear(path: Path, text: bytes = b'{"time":"2026-11-21T00:17') -> None:
    with path.open("ab") as log:
        log.write(text)


def test_a_torn_last_line_is_reported_as_that(log: Path) -> None:
    tear(log)
    result = verdict(log)
    assert found(result) == [("torn", LOG, 10)]
    assert result.intact()
    assert result.head == digest(lines(log)[8])


def test_a_torn_line_that_the_next_writer_stepped_over(log: Path) -> None:
    tear(log)
    append(log, 2)
    result = verdict(log)
    assert found(result) == [("torn", LOG, 10)]
    assert (result.intact(), result.records, result.last_seq) == (True, 11, 11)


def cut(path: Path, count: int) -> None:
    """What a power cut leaves of a log: its end is missing, the sidecar has it."""
    with path.open("ab") as log:
        log.truncate(path.stat().st_size - count)


LAST_RECORD = 200
"""Bytes: fewer than a record has, more than its newline."""


@pytest.mark.parametrize("length", [2, 10, LAST_RECORD])
def test_a_power_cut_that_tore_the_record_the_sidecar_knows(
    run: Run, log: Path, length: int
) -> None:
    whole = lines(log)
    cut(log, length)
    result = verdict(log)
    assert found(result) == [("torn", LOG, 9)]
    assert result.findings[0].message.startswith("record 9, the last line, not written to its end")
    assert (result.intact(), result.torn_at_end, result.last_seq) == (True, True, 8)
    ran = run("verify", log)
    assert (ran.code, ran.out.splitlines()[1:]) == (
        0,
        [
            "torn at its end, intact before that: 8 records (1 to 8), files: 1",
            f"head: {digest(whole[7])}",
        ],
    )
    assert json.loads(run("verify", "--json", log).out)["torn_at_end"] is True


@pytest.mark.parametrize("length", [2, LAST_RECORD])
@pytest.mark.parametrize("rotates", [False, True])
def test_a_torn_record_the_sidecar_knew_when_the_next_writer_came(
    run: Run, log: Path, length: int, rotates: bool
) -> None:
    cut(log, length)
    if rotates:
        log.rename(f"{log}.1")
    append(log, 2)
    result = verdict(log, rotated=rotates)
    assert found(result) == [("torn", f"{LOG}.1" if rotates else LOG, 9)]
    assert result.findings[0].message.startswith("record 9, ")
    assert (result.intact(), result.torn_at_end, result.last_seq) == (True, False, 11)
    ran = run("verify", "--rotated", log)
    assert (ran.code, "\nintact: 10 records (1 to 11)" in ran.out) == (0, True)


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_torn_line_does_not_excuse_a_second_record_that_is_missing(
    log: Path, goes_on: bool
) -> None:
    cut(log, len(lines(log)[-1]) + LAST_RECORD)
    if goes_on:
        append(log)
    result = verdict(log)
    [removed] = tampering(result)
    assert (removed.kind, removed.message.split(" ")[:4]) == (
        "removed",
        ["records", "8", "to", "9"],
    )


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_record_cut_off_whole_is_removed_not_torn(log: Path, goes_on: bool) -> None:
    cut(log, len(lines(log)[-1]) + 1)
    if goes_on:
        append(log)
    assert [finding.kind for finding in tampering(verdict(log))] == ["removed"]


def test_torn_by_two_power_cuts_after_the_sidecar_was_written(log: Path) -> None:
    cut(log, 10)
    append(log)
    cut(log, 10)
    append(log)
    result = verdict(log)
    assert found(result) == [("torn", LOG, 9), ("torn", LOG, 10)]
    assert (result.intact(), result.last_seq) == (True, 11)


def test_torn_twice_in_a_row(log: Path) -> None:
    tear(log)
    tear(log, b'\n{"time":"2026')
    append(log)
    assert found(verdict(log)) == [("torn", LOG, 10), ("torn", LOG, 11)]


def test_a_torn_line_at_the_end_of_a_rotated_file(log: Path) -> None:
    tear(log)
    log.rename(f"{log}.1")
    append(log, 2)
    result = verdict(log, rotated=True)
    assert found(result) == [("torn", "audit.jsonl.1", 10)]
    assert (result.intact(), result.last_seq) == (True, 11)


def test_a_whole_record_without_its_newline_at_the_end_of_a_rotated_file(log: Path) -> None:
    saved = sidecar(log).read_bytes()
    append(log)
    log.write_bytes(log.read_bytes()[:-1])
    sidecar(log).write_bytes(saved)
    log.rename(f"{log}.1")
    append(log, 2)
    assert found(verdict(log, rotated=True)) == [("torn", "audit.jsonl.1", 10)]


def test_altering_the_record_before_a_torn_line_is_still_found(log: Path) -> None:
    content = lines(log)
    tear(log)
    append(log)
    content = lines(log)
    content[4] = content[4].replace(b"create", b"cheats")
    rewrite(log, content)
    assert found(verdict(log)) == [("altered", LOG, 5), ("torn", LOG, 10)]


def test_a_sidecar_one_behind_is_no_tampering(log: Path) -> None:
    saved = sidecar(log).read_bytes()
    append(log)
    sidecar(log).write_bytes(saved)
    result = verdict(log)
    assert found(result) == [("behind", LOG, 10)]
    assert (result.intact(), result.last_seq) == (True, 10)


@pytest.mark.parametrize("content", [None, b"", b"garbage"])
def test_without_a_sound_sidecar_the_end_is_said_to_be_unchecked(
    log: Path, content: bytes | None
) -> None:
    if content is None:
        sidecar(log).unlink()
    else:
        sidecar(log).write_bytes(content)
    result = verdict(log)
    assert found(result) == [("end", "audit.jsonl.chain", None)]
    assert (result.intact(), result.last_seq) == (True, 9)


def test_an_empty_log_just_rotated(log: Path) -> None:
    log.rename(f"{log}.1")
    log.write_bytes(b"")
    assert verdict(log, rotated=True).findings == []
    assert found(verdict(log)) == [("end", "audit.jsonl.chain", None)]


def test_an_overlong_line_does_not_take_the_memory(log: Path) -> None:
    with log.open("ab") as file:
        file.truncate(1 << 30)
    assert [f.kind for f in verdict(log).findings] == ["torn"]


def test_much_junk_does_not_make_verifying_slow(log: Path) -> None:
    content = lines(log)
    junk = [b"junk %d" % number for number in range(50_000)]
    rewrite(log, [*content[:4], *junk, *content[5:]])
    started = time.process_time()
    kinds = {f.kind for f in verdict(log).findings}
    assert kinds == {"altered", "inserted"}
    assert time.process_time() - started < 10


# Sets of files


@pytest.fixture
def rotated(path: Path) -> Path:
    """Twelve records over three files, the oldest compressed."""
    append(path, 4)
    past = path.read_bytes()
    path.unlink()
    Path(f"{path}.2.gz").write_bytes(gzip.compress(past))
    append(path, 4)
    path.rename(f"{path}.1")
    append(path, 4)
    return path


def test_a_rotated_set_is_one_chain(rotated: Path) -> None:
    assert [os.path.basename(name) for name in rotated_set(str(rotated))] == [
        "audit.jsonl.2.gz", "audit.jsonl.1", "audit.jsonl",
    ]  # fmt: skip
    result = verdict(rotated, rotated=True)
    assert (result.findings, result.records, result.last_seq) == ([], 12, 12)
    named = verdict(Path(f"{rotated}.2.gz"), Path(f"{rotated}.1"), rotated)
    assert named == result


def test_numbers_of_rotated_files_are_numbers(tmp_path: Path) -> None:
    for name in ("a.10.gz", "a.9", "a.2", "a.2.gz", "a.chain", "a.1.bak", "ab.3", "a"):
        (tmp_path / name).touch()
    assert [os.path.basename(name) for name in rotated_set(str(tmp_path / "a"))] == [
        "a.10.gz", "a.9", "a.2", "a",
    ]  # fmt: skip


def test_a_missing_file_of_the_set_is_found(rotated: Path) -> None:
    Path(f"{rotated}.1").unlink()
    (finding,) = verdict(rotated, rotated=True).findings
    assert (finding.kind, finding.file, finding.line) == ("removed", str(rotated), 1)
    assert finding.message.startswith("records 5 to 8 ")


def test_the_oldest_files_may_be_gone(rotated: Path) -> None:
    Path(f"{rotated}.2.gz").unlink()
    result = verdict(rotated, rotated=True)
    assert found(result) == [("start", "audit.jsonl.1", 1)]
    assert (result.intact(), result.first_seq) == (True, 5)


def test_sockets_among_the_rotated_files_are_none_of_them(rotated: Path) -> None:
    """sshd binds one of any name for any key that may forward; no rotation makes one."""
    for name in (".2", ".1.gz", ".3", ".7.gz"):
        with socket.socket(socket.AF_UNIX) as planted, contextlib.chdir(rotated.parent):
            planted.bind(rotated.name + name)
    result = verdict(rotated, rotated=True)
    assert (result.findings, result.records) == ([], 12)


def test_altering_the_last_record_of_a_compressed_file_is_found(rotated: Path) -> None:
    old = Path(f"{rotated}.2.gz")
    old.write_bytes(gzip.compress(gzip.decompress(old.read_bytes()).replace(b'r":3', b'r":7')))
    (finding,) = verdict(rotated, rotated=True).findings
    assert (finding.kind, finding.file, finding.line) == ("altered", str(old), 4)


def test_files_in_the_wrong_order_are_out_of_place(rotated: Path) -> None:
    result = verdict(Path(f"{rotated}.1"), Path(f"{rotated}.2.gz"), rotated)
    assert {f.kind for f in result.findings} == {"reordered"}


def test_the_chain_holds_while_writers_write_and_logs_rotate(path: Path) -> None:
    parent = os.getpid()
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            while os.getppid() == parent:
                append(path)
                time.sleep(0.001)  # or the log grows faster than it is verified
            os._exit(0)
        children.append(child)
    try:
        until(path.exists, seconds=10, what="the first record")
        for number in range(15, 0, -1):
            result = verdict(path, rotated=True)
            assert result.findings == []
            path.rename(f"{path}.{number}")
            until(path.exists, seconds=10, what="a record in a new log")
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert verdict(path, rotated=True).intact()


@pytest.mark.parametrize("compressed_after", [1, 3])
def test_logrotate_keeps_the_chain(path: Path, tmp_path: Path, compressed_after: int) -> None:
    """The usual tool, with the shipped configuration."""
    account = pwd.getpwuid(os.getuid()).pw_name
    group = grp.getgrgid(os.getgid()).gr_name
    shipped = SHIPPED.read_text()
    assert shipped.count(SHIPPED_LOG + " {") == 1
    configuration = tmp_path / "logrotate.conf"
    configuration.write_text(
        shipped.replace(SHIPPED_LOG, str(path))
        .replace(f"{os.path.dirname(SHIPPED_LOG)} ", f"{path.parent} ")
        .replace("borg-pull borg-pull", f"{account} {group}")
    )
    configuration.chmod(0o600)
    # What a client can put in the way, see tests/attacks/test_planted_sockets.py.
    planted = [tmp_path / f"audit.jsonl.{name}" for name in ("1", "2.gz", "24.gz")]
    for name in planted:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(name))
    command = [LOGROTATE, "--force", "--state", str(tmp_path / "state"), str(configuration)]
    for _ in range(compressed_after):
        append(path, 5)
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (ran.returncode, ran.stderr) == (0, "")
        status = path.stat()
        assert (status.st_size, status.st_mode & 0o777) == (0, 0o640)
    append(path, 5)
    names = sorted(entry.name for entry in tmp_path.glob("audit.jsonl*"))
    expected = ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.chain"]
    assert names == sorted(
        expected + [f"audit.jsonl.{n}.gz" for n in range(2, compressed_after + 1)]
    )
    result = verdict(path, rotated=True)
    assert (result.findings, result.records) == ([], 5 * (compressed_after + 1))


# The commands


class Ran:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


Run = Callable[..., Ran]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs ``borg-pull-admin audit ARGUMENTS`` in this process."""

    def call(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["borg-pull-admin", "audit", *map(str, arguments)])
        code = main()
        sys.stdout.flush()
        return Ran(code, *capfd.readouterr())

    return call


def test_verify_prints_the_head_and_says_intact(run: Run, log: Path) -> None:
    ran = run("verify", log)
    head = digest(lines(log)[-1])
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"intact: 9 records (1 to 9), files: 1\nhead: {head}\n"


@pytest.mark.parametrize(
    ("given", "older"),
    [(1, "8 older records were"), (8, "1 older record was"), (9, None)],
)
def test_verify_says_when_older_records_were_not_given(
    run: Run, log: Path, given: int, older: str | None
) -> None:
    rewrite(log, lines(log)[-given:])
    first = 10 - given
    state = "intact" if older is None else f"intact from record {first} on; {older} not given"
    ran = run("verify", log)
    assert ran.code == 0
    assert f"{state}: {given} records ({first} to 9), files: 1" in ran.out.splitlines()


def test_verify_names_file_and_line(run: Run, log: Path) -> None:
    content = lines(log)
    content[4] = content[4].replace(b"create", b"cheats")
    rewrite(log, content)
    ran = run("verify", log)
    assert ran.code == 1
    assert ran.out.splitlines()[0] == (
        f"{log}:5: altered: its hash is not the one record 6 holds of it"
    )
    assert "TAMPERED WITH: 9 records" in ran.out


def test_verify_json(run: Run, rotated: Path) -> None:
    head = digest(lines(rotated)[-1])
    answer = json.loads(run("verify", "--rotated", "--json", rotated).out)
    assert answer == {
        "intact": True,
        "torn_at_end": False,
        "files": [f"{rotated}.2.gz", f"{rotated}.1", str(rotated)],
        "records": 12,
        "first_seq": 1,
        "last_seq": 12,
        "head": head,
        "findings": [],
    }
    rewrite(rotated, lines(rotated)[:2])
    ran = run("verify", "--rotated", "--json", rotated)
    assert ran.code == 1
    answer = json.loads(ran.out)
    assert answer["intact"] is False
    (finding,) = answer["findings"]
    assert finding["message"].startswith("records 11 to 12 ")
    assert {key: finding[key] for key in ("kind", "file", "line", "last_line", "tampering")} == {
        "kind": "removed", "file": str(rotated), "line": 2, "last_line": 2, "tampering": True,
    }  # fmt: skip


def test_a_remembered_head_is_found_again(run: Run, log: Path) -> None:
    head = digest(lines(log)[-1])
    append(log, 2)
    ran = run("verify", "--expect-head", head, log)
    assert ran.code == 0
    assert f"{log}:9: head: the expected hash is that of record 9, 2 before the end" in ran.out


def test_a_rebuilt_chain_is_found_by_a_remembered_head(run: Run, log: Path) -> None:
    """Whoever can write the log as its account can make a new, sound chain; not the old hash."""
    head = digest(lines(log)[-1])
    content = lines(log)
    log.unlink()
    sidecar(log).unlink()
    append(log, 3)
    assert run("verify", log).code == 0
    ran = run("verify", "--expect-head", head, log)
    assert ran.code == 1
    assert f"{log}: head: no record has the expected hash {head}" in ran.out
    assert len(content) == 9


def test_wrong_uses_have_the_usage_code(run: Run, log: Path) -> None:
    for arguments in (
        ("verify",),
        ("verify", "--nonsense", log),
        ("verify", "--rotated", log, log),
        ("verify", "--expect-head", "abc", log),
        ("verify", "--expect-head", "G" * 64, log),
        ("show",),
        ("show", "--since", "yesterday", log),
        ("show", "--follow", f"{log}.1.gz"),
    ):
        ran = run(*arguments)
        assert (ran.code, ran.out) == (64, ""), arguments
        assert ran.err.count("\n") == 1, arguments


def test_what_cannot_be_read_has_its_code(run: Run, tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "broken.gz").write_bytes(b"not compressed")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"x" * 1000)[:-12])
    for name in ("missing", "directory", "fifo", "broken.gz", "cut.gz", "no/such"):
        for command in ("show", "verify"):
            ran = run(command, tmp_path / name)
            assert ran.code == 78, (command, name)
            assert ran.err.startswith(f"borg-pull-admin: audit log {tmp_path / name}: ")
            assert ("nothing was recorded" in ran.err) == (name == "missing")
            assert ran.err.count("\n") == 1


# Showing


@pytest.fixture
def told(path: Path) -> Path:
    """A log with one of each event, and with everything a peer may try on a terminal."""
    log = AuditLog(str(path), sync=False)
    log.append(
        "refused",
        common(client="evil", address="2001:db8::1"),
        {
            "reason": "not allowed",
            "exit": 77,
            "verb": None,
            "request": "create \x1b]0;owned\x07 [red]x[/red] :smile: \n2026 line\udcff\u202e",
            "request_truncated": True,
        },
    )
    log.append(
        "start",
        common(),
        {
            "verb": "create",
            "argv": ["borg"],
            "repository": "/srv/repo",
            "archive": "a-1",
            "paths": ["/etc", "/with space"],
            "confinement": {"capability": True, "no_new_privs": True, "landlock": 6},
        },
    )
    log.append(
        "complete",
        common(),
        {
            "verb": "create",
            "result": "success",
            "borg_code": 0,
            "exit": 0,
            "signal": None,
            "duration": 12.25,
            "bytes_to_peer": 3 << 30,
            "bytes_from_peer": 1536,
            "archive_stats": None,
            "error": None,
        },
    )
    fields = {"job": None, "action": "nightly", "kind": "backup", "target": "/mnt/backup"}
    log.append("action_start", common(client=None), fields)
    return path


def test_the_table(run: Run, told: Path) -> None:
    ran = run("show", told)
    assert (ran.code, ran.err) == (0, "")
    heading, refused, start, complete, action = (
        re.split(r"  +", line.strip()) for line in ran.out.splitlines()
    )
    assert heading == ["time (UTC)", "client", "event", "session", "from", "what"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", start[0])
    assert refused[1:] == [
        "evil",
        "refused",
        "4b4d4b1e",
        "2001:db8::1",
        "exit 77: not allowed: create \\x1b]0;owned\\x07 [red]x[/red] :smile: "
        "\\n2026 line\\udcff\\u202e [cut]",
    ]
    assert start[1:] == [
        "web1", "start", "4b4d4b1e", "192.0.2.7", "create /srv/repo::a-1 /etc /with space",
    ]  # fmt: skip
    assert complete[5] == ("create success, borg 0, exit 0, 12.2 s, sent 3.0 GiB, received 1.5 KiB")
    assert action[1:] == [
        "-", "action_start", "4b4d4b1e", "192.0.2.7", "nightly backup /mnt/backup",
    ]  # fmt: skip


def test_an_answer_in_the_table(run: Run, path: Path) -> None:
    argv = ["/usr/bin/borg", "--version"]
    fields: dict[str, Any] = {"verb": "hello", "argv": argv, "exit": 0, "duration": 0.25}
    AuditLog(str(path), sync=False).append("answered", common(), fields)
    assert run("show", path).out.splitlines()[1].endswith("  hello, exit 0, 0.2 s")


def test_the_end_of_an_action_in_the_table(run: Run, path: Path) -> None:
    told = {"job": None, "action": "nightly", "kind": "backup", "target": None, "result": "fail"}
    fields: dict[str, Any] = told | {"exit": 2, "duration": 61.0, "error": "AIO started no backup"}
    AuditLog(str(path), sync=False).append("action_complete", common(), fields)
    line = run("show", path).out.splitlines()[1]
    assert line.endswith("  nightly backup fail, exit 2, 1 min 1 s, AIO started no backup")


@pytest.mark.parametrize("columns", [None, "80"])
def test_no_line_of_the_table_ends_in_blanks(run: Run, told: Path, columns: str | None) -> None:
    if columns is None:
        shown = run("show", told).out
    else:
        shown = on_a_terminal("show", told, COLUMNS=columns)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
    assert len(plain) > 4
    assert [line for line in plain if line.endswith(" ")] == []
    assert max(map(len, plain)) > min(map(len, plain))


@pytest.mark.parametrize("options", [(), ("--json",), ("--client", "luna")])
@pytest.mark.parametrize("content", [b"root:x:0:0\n", b"\0" * 70_000, b'{"a": 1}\n[]\n'])
def test_a_file_that_is_no_audit_log(
    run: Run, tmp_path: Path, options: tuple[str, ...], content: bytes
) -> None:
    other = tmp_path / "passwd"
    other.write_bytes(content)
    ran = run("show", *options, other)
    assert (ran.code, ran.out) == (78, "")
    assert ran.err == f"borg-pull-admin: {other} is not an audit log\n"


def test_an_empty_log_is_one(run: Run, tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    ran = run("show", tmp_path / "new")
    assert (ran.code, ran.out) == (0, "time (UTC)  client  event  session  from  what\n")


def test_lines_that_are_no_records_are_shown_safely(run: Run, told: Path) -> None:
    tear(told, b"\x1b[2Jgarbage \xff\n[1, 2]\n")
    rows = run("show", told).out.splitlines()[-2:]
    assert rows[0].strip().endswith("line 5: \\x1b[2Jgarbage \\udcff")
    assert rows[1].strip().endswith("line 6: [1, 2]")


def test_json_gives_the_raw_records(run: Run, told: Path) -> None:
    raw = told.read_text()
    assert run("show", "--json", told).out == raw
    tear(told, b"\x1b[2Jgarbage\n")
    ran = run("show", "--json", told)
    assert ran.out == raw
    assert ran.err == f"borg-pull-admin: {told}:5: not a record; see audit verify\n"


def test_json_of_a_record_that_someone_planted_is_safe_too(run: Run, told: Path) -> None:
    planted = {"seq": 9, "prev": "0" * 64, "event": "\x7f\x9b2J\u202e"}
    told.write_text(json.dumps(planted, ensure_ascii=False) + "\n")
    ran = run("show", "--json", told)
    assert ran.out.strip().isascii()
    assert ran.out.strip().isprintable()
    assert json.loads(ran.out) == planted


@pytest.mark.parametrize(
    ("options", "events"),
    [
        (["--client", "web1"], ["start", "complete"]),
        (["--client", "web1", "--client", "evil"], ["refused", "start", "complete"]),
        (["--event", "refused"], ["refused"]),
        (["--event", "start", "--event", "complete", "--client", "web1"], ["start", "complete"]),
        (["--client", "nobody"], []),
        (["--since", "2h"], ["refused", "start", "complete", "action_start"]),
        (["--since", "2999-01-01T00:00:00Z"], []),
    ],
)
def test_filters(run: Run, told: Path, options: list[str], events: list[str]) -> None:
    tear(told, b"no record\n")
    out = run("show", "--json", *options, told).out
    assert [json.loads(line)["event"] for line in out.splitlines()] == events


def test_compressed_logs_can_be_shown(run: Run, told: Path) -> None:
    packed = Path(f"{told}.2.gz")
    packed.write_bytes(gzip.compress(told.read_bytes()))
    assert run("show", "--json", packed).out == told.read_text()


NOW = 1795220228.0  # 2026-11-21T00:17:08Z


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("90s", "2026-11-21T00:15:38.000Z"),
        ("30m", "2026-11-20T23:47:08.000Z"),
        ("2h", "2026-11-20T22:17:08.000Z"),
        ("7d", "2026-11-14T00:17:08.000Z"),
        ("4w", "2026-10-24T00:17:08.000Z"),
        ("999999999w", "1970-01-01T00:00:00.000Z"),
        ("2026-11-21T00:17:08Z", "2026-11-21T00:17:08.000Z"),
        ("2026-11-21T02:17:08.5+02:00", "2026-11-21T00:17:08.500Z"),
        ("2026-11-21", "2026-11-21T00:00:00.000Z"),
    ],
)
def test_since(text: str, moment: str) -> None:
    assert since_of(text, NOW) == moment


@given(st.text(max_size=30))
def test_since_takes_a_moment_or_refuses(text: str) -> None:
    moment = ""
    with contextlib.suppress(RequestError):
        moment = since_of(text, NOW)
    assert re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z)?", moment)


def test_numbers_of_any_length_are_shown() -> None:
    """A borg that was taken over cannot write the log; whoever has the account can."""
    assert size_text(10**4000).endswith(" PiB")
    assert size_text(-5) == "-5 B"
    for seconds in (float("inf"), float("nan"), -1.0, 10**4000):
        assert duration_text(seconds) == "an impossible time"


def test_sizes_and_durations_for_people() -> None:
    assert [size_text(n) for n in (0, 1023, 1024, 1 << 20, 3 << 39, 1 << 50, 1 << 62)] == [
        "0 B", "1023 B", "1.0 KiB", "1.0 MiB", "1.5 TiB", "1.0 PiB", "4096.0 PiB",
    ]  # fmt: skip
    assert [duration_text(s) for s in (0.04, 59.9, 60, 3599.7, 90061)] == [
        "0.0 s", "59.9 s", "1 min 0 s", "1 h 0 min", "25 h 1 min",
    ]  # fmt: skip


ROOT = Path(__file__).parents[1]
PROGRAM = [sys.executable, "-m", "borg_pull.admin", "audit"]


def on_a_terminal(*arguments: object, **environment: str) -> str:
    """What a command prints on a terminal of 200 columns."""
    controller, terminal = os.openpty()
    chunks: list[bytes] = []

    def read() -> None:
        try:
            while chunk := os.read(controller, 65536):
                chunks.append(chunk)
        except OSError:
            return  # nobody has the terminal open any more

    reader = threading.Thread(target=read)
    reader.start()
    base = {"PATH": os.environ["PATH"], "TERM": "xterm", "COLUMNS": "200"}
    subprocess.run(
        [*PROGRAM, *map(str, arguments)],
        check=True,
        stdout=terminal,
        cwd=ROOT,
        env=base | environment,
    )
    os.close(terminal)
    reader.join()
    os.close(controller)
    return b"".join(chunks).decode()


def test_colour_on_a_terminal_unless_no_color_is_set(told: Path) -> None:
    coloured = on_a_terminal("show", told)
    assert "\x1b[31m" in coloured
    assert "\x1b]" not in coloured
    plain = on_a_terminal("show", told, NO_COLOR="1")
    assert re.search(r"\x1b\[[0-9;]*3[0-9]", plain) is None
    assert "[red]x[/red]" in plain


def test_a_reader_that_leaves_early_is_no_fault(path: Path) -> None:
    append(path, 3000)
    for options in ([], ["--json"]):
        shown = subprocess.Popen(
            [*PROGRAM, "show", *options, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
        )
        assert shown.stdout is not None
        assert shown.stderr is not None
        shown.stdout.read(100)
        shown.stdout.close()
        assert (shown.wait(30), shown.stderr.read()) == (0, b"")
        shown.stderr.close()


# Following


class Follower:
    """``audit show --follow`` in a process of its own, and the lines it has printed so far."""

    def __init__(self, path: Path, *options: str) -> None:
        self.lines: list[str] = []
        # A worker of pytest-xdist ignores Ctrl-C, and what it starts would, too.
        interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)
        try:
            self.process = subprocess.Popen(
                [*PROGRAM, "show", "--follow", *options, str(path)],
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
        finally:
            signal.signal(signal.SIGINT, interrupt)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def wait_for(self, count: int) -> None:
        until(lambda: len(self.lines) >= count, seconds=30, what=f"{count} lines")

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(30)
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@pytest.fixture
def follow() -> Iterator[Callable[..., Follower]]:
    started: list[Follower] = []

    def start(path: Path, *options: str) -> Follower:
        started.append(Follower(path, *options))
        return started[-1]

    yield start
    for follower in started:
        if follower.process.poll() is None:
            follower.process.kill()
            follower.end()


def test_following_shows_what_comes_over_rotations(
    path: Path, follow: Callable[..., Follower]
) -> None:
    append(path, 2)
    follower = follow(path, "--json")
    follower.wait_for(2)
    for number in (4, 3, 2, 1):
        append(path, 3)
        path.rename(f"{path}.{number}")
        # A writer that opened the log before it was renamed.
        with Path(f"{path}.{number}").open("rb") as old:
            assert old.read(1) == b"{"
        append(path, 2)
        shown = 2 + 5 * (5 - number)
        follower.wait_for(shown)
    assert follower.end() == 0
    assert [json.loads(line)["seq"] for line in follower.lines] == [*range(1, 23)]


def test_following_shows_what_a_late_writer_put_into_the_renamed_log(
    path: Path, follow: Callable[..., Follower]
) -> None:
    append(path)
    follower = follow(path, "--json")
    follower.wait_for(1)
    with path.open("ab") as late:
        path.rename(f"{path}.1")
        path.touch(0o640)
        late.write(lines(Path(f"{path}.1"))[0].replace(b'"number":0', b'"number":77') + b"\n")
    append(path)
    follower.wait_for(3)
    assert [json.loads(line)["number"] for line in follower.lines] == [0, 77, 0]


def test_following_prints_rows_and_waits_without_work(
    told: Path, follow: Callable[..., Follower]
) -> None:
    follower = follow(told)
    follower.wait_for(5)
    ticks = os.sysconf("SC_CLK_TCK")

    def busy_seconds() -> float:
        fields = Path(f"/proc/{follower.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / ticks

    before, since = busy_seconds(), time.monotonic()
    for count in range(6, 10):
        append(told)
        follower.wait_for(count)
    assert busy_seconds() - before < (time.monotonic() - since) / 2
    assert follower.lines[0].split() == [
        "time",
        "(UTC)",
        "client",
        "event",
        "session",
        "from",
        "what",
    ]
    assert "\\x1b]0;owned" in follower.lines[1]
    assert follower.end() == 0


def test_times_sort_as_text() -> None:
    moments = [0.0, 1.001, 999_999_999.0, 1_000_000_000.0, NOW, NOW + 0.001]
    assert sorted(map(timestamp, reversed(moments))) == [*map(timestamp, moments)]


# The documentation

DOCUMENT = (ROOT / "docs" / "audit.md").read_text()


def test_the_example_in_the_documentation_is_a_sound_chain(path: Path) -> None:
    example = DOCUMENT.partition("```jsonl\n")[2].partition("```")[0]
    path.write_text(example)
    result = verdict(path)
    assert [(f.kind, f.line) for f in result.findings] == [("end", None)]
    assert [json.loads(line)["event"] for line in lines(path)] == ["refused", "start", "complete"]


def documented(heading: str) -> list[str]:
    """First column of the table under ``heading``."""
    section = DOCUMENT.partition(f"{heading}\n")[2].partition("\n#")[0]
    return re.findall(r"^\| `([a-z_]+)` \|", section, re.MULTILINE)


def test_every_key_is_documented_in_its_order(path: Path) -> None:
    """The records as the forced command writes them."""
    trail = Trail(AuditLog(str(path), sync=False), common(), b"create")
    trail.refused(RequestError("no"))
    # A restore's: other runs leave out the last two.
    trail.start(["borg"], None, None, (), {}, {"members": [], "directory": None})
    trail.fail(RequestError("no"))
    shared = documented("## Records")
    for line in lines(path):
        record = json.loads(line)
        own = documented(f"### {record['event']}")
        assert own
        assert list(record) == [*shared[:-1], *own, shared[-1]]


def test_every_kind_of_finding_is_documented() -> None:
    source = (ROOT / "borg_pull" / "admin" / "audit.py").read_text()
    kinds = set(re.findall(r'(?:_find|_add)\(\s*"([a-z]+)"|kind="([a-z]+)"', source))
    assert {first or second for first, second in kinds} == set(documented("## Verifying"))
