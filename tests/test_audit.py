"""Writing the audit log: nothing is lost, torn, forged or written where it should not be."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import sysconfig
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from borg_pull import audit as audit_module
from borg_pull.admin.audit import verify_files
from borg_pull.audit import (
    GENESIS,
    MAX_LINE_BYTES,
    MAX_RECORD_BYTES,
    AuditLog,
    Common,
    encode,
    new_session,
    sidecar_of,
    timestamp,
)
from borg_pull.errors import AuditError
from tests.harness.wait import until

WRITERS = 16
RECORDS_EACH = 1000


def common(session: str = "4b4d4b1e-0000-4000-8000-000000000001") -> Common:
    return Common(
        session=session,
        client="web1",
        key="SHA256:abc",
        address="192.0.2.7",
        port=51234,
        pid=os.getpid(),
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def append(path: Path, note: str = "x", *, sync: bool = False) -> str:
    return AuditLog(str(path), sync=sync).append("refused", common(), {"note": note})


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def sidecar(path: Path) -> Path:
    return Path(sidecar_of(str(path)))


def digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def assert_chain(lines: list[bytes], *, first: int = 1, prev: str = GENESIS) -> None:
    """An independent statement of the chain over whole records."""
    for number, line in enumerate(lines, first):
        record = json.loads(line)
        assert (record["seq"], record["prev"]) == (number, prev)
        prev = digest(line)


# The record


def test_keys_stand_in_the_documented_order(path: Path) -> None:
    AuditLog(str(path), sync=False).append("start", common(), {"verb": "create", "argv": ["borg"]})
    (line,) = path.read_bytes().splitlines()
    assert list(json.loads(line)) == [
        "time", "event", "seq", "session", "client", "key", "address", "port", "pid",
        "verb", "argv", "prev",
    ]  # fmt: skip


def test_append_returns_the_hash_of_the_line_and_the_next_record_carries_it(path: Path) -> None:
    first = append(path)
    append(path)
    lines = path.read_bytes().splitlines()
    assert first == digest(lines[0])
    assert_chain(lines)


def test_the_sidecar_holds_number_and_hash_of_the_last_record(path: Path) -> None:
    append(path)
    last = append(path)
    assert sidecar(path).read_text() == f"{2:020d} {last}\n"


def test_modes_do_not_depend_on_the_umask(path: Path) -> None:
    before = os.umask(0o077)
    try:
        append(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert stat.S_IMODE(sidecar(path).stat().st_mode) == 0o600


def test_an_event_cannot_set_a_key_of_the_record(path: Path) -> None:
    with pytest.raises(AuditError, match="must not set prev, seq"):
        AuditLog(str(path), sync=False).append("start", common(), {"seq": 7, "prev": "x"})
    assert not path.exists()


def test_a_record_may_be_one_mebibyte_long_and_no_longer(path: Path) -> None:
    append(path, "")
    room = MAX_RECORD_BYTES - len(path.read_bytes().splitlines()[0])
    append(path, "a" * room)
    with pytest.raises(AuditError, match="too long"):
        append(path, "a" * (room + 1))
    append(path, "after")
    lines = path.read_bytes().splitlines()
    assert [len(lines[1]), len(lines)] == [MAX_RECORD_BYTES, 3]
    assert_chain(lines)


def test_sync_writes_the_same_records(path: Path) -> None:
    append(path, sync=True)
    append(path, sync=True)
    assert_chain(path.read_bytes().splitlines())


def test_session_is_a_random_uuid() -> None:
    sessions = {new_session() for _ in range(100)}
    assert len(sessions) == 100
    for session in sessions:
        parsed = uuid.UUID(session)
        assert (str(parsed), parsed.version, parsed.variant) == (session, 4, uuid.RFC_4122)


@pytest.mark.parametrize(
    ("now", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (951782400.5, "2000-02-29T00:00:00.500Z"),
        (1795220228.125, "2026-11-21T00:17:08.125Z"),
        (1798761599.999, "2026-12-31T23:59:59.999Z"),
        (4102444800.0, "2100-01-01T00:00:00.000Z"),
    ],
)
def test_timestamp(now: float, text: str) -> None:
    assert timestamp(now) == text


# Encoding

# Text as it comes from bytes by surrogateescape: low surrogates only, so that no two of them can
# be read back as one character.
texts = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF),
        st.sampled_from('\n\r\0\x1b\x7f\x85\u2028\u202e"\\{}'),
    )
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=30,
)


@given(values)
def test_what_is_encoded_reads_back_the_same_from_one_ascii_line(value: Any) -> None:
    text = encode(value)
    assert text.isascii()
    assert text.isprintable()
    assert json.loads(text) == value


@given(st.binary())
def test_bytes_that_are_not_utf8_come_back_as_they_were(name: bytes) -> None:
    back: str = json.loads(encode(os.fsdecode(name)))
    assert os.fsencode(back) == name


@given(texts, texts, texts, st.dictionaries(texts, values, max_size=3))
def test_no_text_forges_a_line(event: str, client: str, key: str, fields: dict[str, Any]) -> None:
    """Whatever a request holds, it stays inside its own record, and the chain stays readable."""
    fields = {name: value for name, value in fields.items() if name not in audit_module.RESERVED}
    who = Common(session="s", client=client, key=key, address=None, port=None, pid=1)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "audit.jsonl"
        AuditLog(str(path), sync=False).append(event, who, fields)
        sidecar(path).unlink()  # so that the next writer has to read the number from the line
        AuditLog(str(path), sync=False).append("after", who, {})
        content = path.read_bytes()
    assert content.count(b"\n") == 2
    assert all(byte == 0x0A or 0x20 <= byte < 0x7F for byte in content)
    assert_chain(content.splitlines())
    record = json.loads(content.splitlines()[0])
    assert (record["event"], record["client"], record["key"]) == (event, client, key)


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def test_nesting_is_bounded() -> None:
    assert json.loads(encode(nested(audit_module.MAX_DEPTH))) == nested(audit_module.MAX_DEPTH)
    with pytest.raises(AuditError, match="nested"):
        encode(nested(audit_module.MAX_DEPTH + 1))


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, b"bytes", {1: 2}, {"a": {3}}, [object()]]
)
def test_what_json_cannot_hold_is_refused(value: Any) -> None:
    with pytest.raises(AuditError, match="audit record: "):
        encode(value)


# Many writers


def end_with(work: Callable[[], object]) -> NoReturn:
    """Do ``work`` and end this process, a child; nothing of it may reach pytest."""
    try:
        work()
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def in_children(count: int, work: Callable[[int], None]) -> list[int]:
    """Run ``work`` in ``count`` processes at once; their exit codes."""
    children = []
    for number in range(count):
        child = os.fork()
        if child == 0:
            end_with(partial(work, number))
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def test_sixteen_writers_lose_and_tear_nothing(path: Path) -> None:
    def write(writer: int) -> None:
        log = AuditLog(str(path), sync=False)
        who = common(session=str(writer))
        for number in range(RECORDS_EACH):
            log.append("start", who, {"number": number, "padding": "x" * (number * 7 % 9000)})

    assert in_children(WRITERS, write) == [0] * WRITERS
    lines = path.read_bytes().splitlines()
    assert_chain(lines)
    written = [(record["session"], record["number"]) for record in map(json.loads, lines)]
    assert len(written) == WRITERS * RECORDS_EACH
    for writer in range(WRITERS):
        assert [n for session, n in written if session == str(writer)] == [*range(RECORDS_EACH)]


def test_times_never_run_backwards_along_the_chain(path: Path) -> None:
    def write(_: int) -> None:
        for _ in range(100):
            append(path)

    assert in_children(4, write) == [0] * 4
    times = [record["time"] for record in records(path)]
    assert len(times) == 400
    assert times == sorted(times)


def test_a_stopped_writer_delays_the_others_no_longer_than_the_bound(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(path)
    monkeypatch.setattr(audit_module, "LOCK_SECONDS", 0.05)
    with sidecar(path).open() as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(AuditError, match="held the lock"):
            append(path)
    append(path)
    assert_chain(path.read_bytes().splitlines())


def test_a_writer_waits_its_turn_while_others_get_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long that is: 1,000 slow records before its own are no reason to give up."""
    append(path)
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with sidecar(path).open("rb") as opened:
        patience = audit_module._Patience(opened.fileno(), str(path))
        for _ in range(10):
            append(path)
            now += audit_module.LOCK_SECONDS * 2
            patience.check()
            now += audit_module.LOCK_SECONDS * 0.9
            patience.check()
        now += audit_module.LOCK_SECONDS * 0.2
        with pytest.raises(AuditError, match="held the lock for 30 seconds"):
            patience.check()


@pytest.mark.parametrize("in_main_thread", [True, False])
def test_a_wait_for_the_lock_leaves_no_timer_behind(path: Path, in_main_thread: bool) -> None:
    append(path)
    before = signal.getsignal(signal.SIGALRM)
    with sidecar(path).open() as holder, concurrent.futures.ThreadPoolExecutor(2) as threads:
        fcntl.flock(holder, fcntl.LOCK_EX)
        if in_main_thread:
            threads.submit(_release_when_awaited, holder.fileno())
            append(path)
        else:
            waiting = threads.submit(append, path)
            assert concurrent.futures.wait([waiting], 0.2).not_done
            fcntl.flock(holder, fcntl.LOCK_UN)
            waiting.result(30)
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert_chain(path.read_bytes().splitlines())


def _release_when_awaited(descriptor: int) -> None:
    awaited = f":{os.fstat(descriptor).st_ino} "
    locks = Path("/proc/locks")
    until(
        lambda: any("->" in one and awaited in one for one in locks.read_text().splitlines()),
        seconds=20,
        what="somebody to wait in line for the lock",
    )
    fcntl.flock(descriptor, fcntl.LOCK_UN)


def test_writers_killed_at_any_moment_leave_a_log_that_goes_on(path: Path) -> None:
    parent = os.getpid()

    def write(_: int) -> None:
        log = AuditLog(str(path), sync=False)
        while os.getppid() == parent:
            log.append("start", common(), {"padding": "x" * 3000})

    append(path)
    for round_ in range(20):
        children = []
        for number in range(3):
            child = os.fork()
            if child == 0:
                end_with(partial(write, number))
            children.append(child)
        enough = path.stat().st_size + 20_000 + round_ * 1000
        until(lambda: path.stat().st_size > enough, seconds=30, what="some records")  # noqa: B023
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        append(path, "survivor")
    verdict = verify_files([str(path)], rotated=False, expect=None)
    assert verdict.intact()
    assert verdict.records > 20 * 6
    assert json.loads(path.read_bytes().splitlines()[-1])["note"] == "survivor"


# Rotation, torn lines, and the sidecar


def test_the_chain_goes_on_after_the_log_is_moved_away(path: Path) -> None:
    last = append(path)
    path.rename(path.with_suffix(".1"))
    append(path)
    assert_chain(path.read_bytes().splitlines(), first=2, prev=last)


def test_a_log_just_moved_away_is_left_to_be_made_by_who_moved_it(path: Path) -> None:
    """logrotate's `create` takes a log that is there already out of the chain."""
    last = append(path)
    path.rename(path.with_suffix(".1"))
    child = os.fork()
    if child == 0:
        end_with(lambda: append(path))
    while True:  # until the writer holds the lock and looks for the log
        with sidecar(path).open() as probe:
            try:
                fcntl.flock(probe, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                break
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640)
    os.close(descriptor)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert_chain(path.read_bytes().splitlines(), first=2, prev=last)


def test_a_torn_last_line_is_left_as_it_is_and_bound_to(path: Path) -> None:
    append(path)
    with path.open("ab") as log:
        log.write(b'{"time":"2026-11-21T00:17:08.123Z","event":"start","seq":2,"sess')
    append(path)
    first, torn, last = path.read_bytes().splitlines()
    assert_chain([first])
    assert_chain([last], first=2, prev=digest(torn))


def test_a_last_record_that_lacks_only_its_newline_counts(path: Path) -> None:
    append(path)
    saved = sidecar(path).read_bytes()
    append(path)
    path.write_bytes(path.read_bytes()[:-1])
    sidecar(path).write_bytes(saved)
    append(path)
    assert_chain(path.read_bytes().splitlines())
    assert len(records(path)) == 3


def test_zeros_that_a_power_cut_left_do_not_stop_the_next_writer(path: Path) -> None:
    append(path)
    with path.open("ab") as log:
        log.write(bytes(3 * MAX_RECORD_BYTES))
    append(path)
    _, torn, last = path.read_bytes().split(b"\n")[:3]
    assert_chain([last], first=2, prev=digest(torn))


def test_an_endless_last_line_is_refused(path: Path) -> None:
    append(path)
    with path.open("ab") as log:
        log.truncate(9 * MAX_LINE_BYTES)
    with pytest.raises(AuditError, match="longer than"):
        append(path)


def test_a_missing_sidecar_is_made_from_the_log(path: Path) -> None:
    append(path)
    append(path)
    sidecar(path).unlink()
    last = append(path)
    assert_chain(path.read_bytes().splitlines())
    assert sidecar(path).read_text() == f"{3:020d} {last}\n"


GARBAGE = [
    b"",
    b"\0" * 86,
    b"garbage\n",
    b"x" * 5000,
    b"%020d %s" % (7, b"0" * 64),
    b"%020d %s\n" % (7, b"G" * 64),
    b"%020d-%s\n" % (7, b"0" * 64),
    b"-%019d %s\n" % (7, b"0" * 64),
]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_a_damaged_sidecar_is_made_from_the_log(path: Path, garbage: bytes) -> None:
    append(path)
    sidecar(path).write_bytes(garbage)
    last = append(path)
    assert_chain(path.read_bytes().splitlines())
    assert sidecar(path).read_text() == f"{2:020d} {last}\n"


@pytest.mark.parametrize("garbage", GARBAGE)
def test_a_damaged_sidecar_and_a_torn_line_at_once(path: Path, garbage: bytes) -> None:
    append(path)
    append(path)
    with path.open("ab") as log:
        log.write(b'{"time":"20')
    sidecar(path).write_bytes(garbage)
    append(path)
    assert_chain(path.read_bytes().splitlines()[3:], first=3, prev=digest(b'{"time":"20'))


def test_without_log_and_sidecar_a_new_chain_starts(path: Path) -> None:
    append(path)
    path.unlink()
    sidecar(path).unlink()
    append(path)
    assert_chain(path.read_bytes().splitlines())


def test_a_sidecar_behind_the_log_does_not_matter(path: Path) -> None:
    append(path)
    saved = sidecar(path).read_bytes()
    append(path)
    sidecar(path).write_bytes(saved)
    append(path)
    assert_chain(path.read_bytes().splitlines())


def test_records_cut_off_the_end_leave_a_gap_in_the_numbers_for_ever(path: Path) -> None:
    for _ in range(5):
        append(path)
    kept = path.read_bytes().splitlines(keepends=True)[:2]
    path.write_bytes(b"".join(kept))
    append(path)
    assert [record["seq"] for record in records(path)] == [1, 2, 6]


def test_a_sidecar_replaced_while_waiting_is_opened_anew(path: Path) -> None:
    append(path)
    child: int
    with sidecar(path).open() as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        child = os.fork()
        if child == 0:
            # Of the lock this would be another holder, which waits for itself.
            holder.close()
            end_with(lambda: append(path))
        copy = path.with_suffix(".copy")
        copy.write_bytes(sidecar(path).read_bytes())
        copy.chmod(0o600)
        copy.rename(sidecar(path))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    append(path)
    assert_chain(path.read_bytes().splitlines())
    assert len(records(path)) == 3


# What must not be opened


def plant_symlink(at: Path) -> None:
    target = at.with_suffix(".target")
    target.write_bytes(b"")
    at.symlink_to(target)


def plant_dangling(at: Path) -> None:
    at.symlink_to(at.with_suffix(".nowhere"))


def plant_fifo(at: Path) -> None:
    os.mkfifo(at)


def plant_directory(at: Path) -> None:
    at.mkdir()


def plant_hard_link(at: Path) -> None:
    other = at.with_suffix(".other")
    other.write_bytes(b"")
    os.link(other, at)


def plant_socket(at: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", "import socket,sys; socket.socket(1).bind(sys.argv[1])", at],
        check=True,
    )


def plant_group_writable(at: Path) -> None:
    at.write_bytes(b"")
    at.chmod(0o660)


PLANTS = [
    plant_symlink,
    plant_dangling,
    plant_fifo,
    plant_directory,
    plant_hard_link,
    plant_group_writable,
]


@pytest.mark.parametrize("place", ["log", "sidecar"])
def test_a_planted_socket_goes(path: Path, place: str) -> None:
    """sshd binds one in the log's place for any client that may forward; no log is a socket."""
    at = path if place == "log" else sidecar(path)
    plant_socket(at)
    append(path)
    assert at.is_file()


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("place", ["log", "sidecar"])
def test_a_planted_file_is_refused_and_named(
    path: Path, plant: Callable[[Path], None], place: str
) -> None:
    at = path if place == "log" else sidecar(path)
    plant(at)
    with pytest.raises(AuditError) as caught:
        append(path)
    line = caught.value.line()
    assert str(at) in line
    assert caught.value.hint
    assert line.isprintable()
    target = at.with_suffix(".target")
    assert not target.exists() or target.read_bytes() == b""
    assert not at.with_suffix(".nowhere").exists()


@pytest.mark.needs_root
def test_a_device_is_refused(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    with pytest.raises(AuditError, match="not a regular file"):
        append(path)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="no such file") as caught:
        append(tmp_path / "nowhere" / "audit.jsonl")
    assert "nowhere/audit.jsonl.chain" in caught.value.line()


def test_no_descriptor_stays_open(path: Path, tmp_path: Path) -> None:
    append(path)
    for plant in PLANTS:
        other = tmp_path / plant.__name__
        plant(other)
        with pytest.raises(AuditError):
            append(other)
    assert list(open_below(tmp_path)) == []
    with path.open():
        assert list(open_below(tmp_path)) == [str(path)], "they are found"


def open_below(directory: Path) -> Iterator[str]:
    """The files of ``directory`` that this process has open; others come and go with its tests."""
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            file = os.readlink(f"/proc/self/fd/{number}")
            if Path(file).is_relative_to(directory):
                yield file


def test_without_descriptors_it_is_an_audit_error(path: Path) -> None:
    append(path)
    before = path.read_bytes()

    def write(_: int) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = max(map(int, os.listdir("/proc/self/fd")))
        for room in (0, 1):
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + room, hard))
            while True:  # until no number below the limit is free but `room`
                try:
                    spare = os.dup(0)
                except OSError:
                    break
            if room:
                os.close(spare)
            with pytest.raises(AuditError, match="too many open files"):
                append(path)

    assert in_children(1, write) == [0]
    assert path.read_bytes() == before


# Looking for a record


def test_a_record_is_found_by_event_and_session(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_module, "_BLOCK", 700)  # so that lines lie across blocks
    log = AuditLog(str(path), sync=False)
    sessions = [new_session() for _ in range(20)]
    assert not log.holds("complete", sessions[0])
    for number, session in enumerate(sessions):
        log.append("start", common(session), {"padding": "x" * number * 97})
        if number % 2:
            log.append("complete", common(session), {})
    with path.open("ab") as file:
        file.write(
            b'{"time":"2026-11-21T00:17:08.123Z","event":"complete","seq":41,"session":"torn",'
        )
    assert [log.holds("complete", session) for session in sessions] == [False, True] * 10
    assert all(log.holds("start", session) for session in sessions)
    assert not log.holds("complete", "torn")


@given(text=st.text(max_size=200))
def test_nothing_that_a_peer_sends_passes_for_another_record(text: str) -> None:
    session = new_session()
    forged = f'","event":"complete","seq":1,"session":"{session}",{text}'
    with tempfile.TemporaryDirectory() as directory:
        log = AuditLog(f"{directory}/audit.jsonl", sync=False)
        fields: dict[str, Any] = {"request": forged, forged: 1}
        log.append("refused", common(), fields)
        assert not log.holds("complete", session)


@pytest.mark.parametrize("obstacle", ["directory", "link"])
def test_where_nothing_can_be_looked_for(path: Path, obstacle: str) -> None:
    if obstacle == "directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/null")
    with pytest.raises(AuditError):
        AuditLog(str(path), sync=False).holds("complete", new_session())


# A full disk


def fill_until_refused(path: Path) -> AuditError:
    log = AuditLog(str(path), sync=False)
    for _ in range(10_000):
        try:
            log.append("start", common(), {"padding": "x" * 700})
        except AuditError as error:
            return error
    raise AssertionError("the disk never filled")


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(
        ["/usr/bin/mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "audit-test", place],
        check=True,
    )
    try:
        yield place
    finally:
        subprocess.run(["/usr/bin/umount", place], check=True)


@pytest.mark.needs_root
@pytest.mark.parametrize("sync", [False, True])
def test_a_full_disk_leaves_no_half_record(tiny_disk: Path, sync: bool) -> None:
    path = tiny_disk / "audit.jsonl"
    append(path, sync=sync)
    ballast = tiny_disk / "ballast"
    ballast.write_bytes(b"x" * 20_000)
    error = fill_until_refused(path)
    assert error.line() == (
        f"audit log {path}: no space left on device; free some space on its file system, or inodes"
    )
    lines = path.read_bytes().splitlines(keepends=True)
    assert lines[-1].endswith(b'"}\n')
    ballast.unlink()
    append(path, "after", sync=sync)
    assert_chain(path.read_bytes().splitlines())
    assert len(records(path)) == len(lines) + 1


@pytest.mark.needs_root
def test_a_disk_too_full_for_the_sidecar_leaves_no_record(tiny_disk: Path) -> None:
    path = tiny_disk / "audit.jsonl"
    path.write_bytes(b"")
    path.chmod(0o640)
    ballast = tiny_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass
    os.truncate(ballast, ballast.stat().st_size - 4096)  # one block: for the log alone
    with pytest.raises(AuditError, match="no space left"):
        append(path)
    assert path.read_bytes() == b""
    ballast.unlink()
    append(path)
    assert_chain(path.read_bytes().splitlines())


def test_a_file_size_limit_leaves_no_half_record(path: Path) -> None:
    append(path)

    def write(_: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
        error = fill_until_refused(path)
        assert "file too large; a file size limit" in error.line()

    assert in_children(1, write) == [0]
    written = path.read_bytes()
    assert 9_000 < len(written) < 10_000
    assert written.endswith(b'"}\n')
    append(path, "after")
    assert_chain(path.read_bytes().splitlines())


def test_where_a_half_record_cannot_be_cut_off_the_torn_rule_holds(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an append-only file (chattr +a), which the account cannot truncate."""
    append(path)

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    def write_half(log: int, data: bytes) -> None:
        os.write(log, data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", refuse)
        patch.setattr(audit_module, "_write", write_half)
        with pytest.raises(AuditError, match="no space left"):
            append(path)
    append(path)
    first, torn, last = path.read_bytes().splitlines()
    assert_chain([first])
    assert len(torn) == 100
    assert_chain([last], first=2, prev=digest(torn))


def test_a_failed_sync_takes_the_record_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append(path, sync=True)
    before = path.read_bytes()

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(AuditError, match="input/output error"):
            append(path, sync=True)
    assert path.read_bytes() == before
    append(path, sync=True)
    assert_chain(path.read_bytes().splitlines())


# The cost of starting


def test_importing_it_brings_in_nothing_slow() -> None:
    code = "import borg_pull.audit, sys; print('\\n'.join(sys.modules))"
    # The second for the compiled module of borg_pull.linux.
    roots = [str(Path(audit_module.__file__).parents[1]), sysconfig.get_path("platlib")]
    run = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            f"import sys; sys.path[:0] = {roots!r}; {code}",
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    slow = re.compile("json|re|enum|typing|datetime|hashlib|dataclasses|collections|functools")
    loaded = run.stdout.split()
    assert "borg_pull.audit" in loaded
    assert [name for name in loaded if slow.fullmatch(name)] == []
