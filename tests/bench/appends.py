"""(f): what appending an audit record costs, alone and among 16 writers."""

from __future__ import annotations

import fcntl
import functools
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from borg_pull.audit import AuditLog, Common, new_session
from tests.harness.workplace import Workplace

from .figures import Measure, Ratio, Section

if TYPE_CHECKING:
    from borg_pull.audit import JSONValue

WRITERS = 16
# Of one backup's start record; the plain writers write the line it makes.
_FIELDS: dict[str, JSONValue] = {
    "verb": "create",
    "argv": ["/usr/bin/borg", "create", "--", "ssh://luna/srv/repository::archive", "/home"],
    "repository": "/srv/repository",
    "archive": "archive",
    "paths": ["/home"],
    "confinement": {"capability": True, "no_new_privs": True, "landlock": 7},
}


def appends(workplace: Workplace, repeats: int, records: int) -> Section:
    """``records`` are written in each repeat, shared out among the writers."""
    section = Section("f", "audit: appending a record, against write under flock")
    for writers in (1, WRITERS):
        ours: list[float] = []
        bare: list[float] = []
        for _ in range(repeats):
            directory = workplace.directory("f")
            log = directory / "audit.jsonl"
            ours.append(_rate(writers, records // writers, functools.partial(_audit_writer, log)))
            line = log.read_bytes().splitlines(keepends=True)[-1]
            plain = directory / "plain"
            plain.touch()
            writer = functools.partial(_plain_writer, plain, line)
            bare.append(_rate(writers, records // writers, writer))
        name = "1 writer" if writers == 1 else f"{writers} writers"
        append = Measure(f"append, {name}", "records/s", ours)
        write = Measure(f"flock and write, {name}", "records/s", bare)
        each = Measure(f"append, {name}, a record", "us", [1e6 / rate for rate in ours])
        section.measures += [append, write, each]
        section.ratios.append(Ratio(f"append / write, {name}", append, write, None, rate=True))
    return section


def _audit_writer(path: Path) -> Callable[[], None]:
    log = AuditLog(str(path), sync=False)
    common = Common(
        session=new_session(),
        client="luna",
        key="SHA256:" + 43 * "k",
        address="192.0.2.7",
        port=40000,
        pid=os.getpid(),
    )

    def append() -> None:
        log.append("start", common, _FIELDS)

    return append


def _plain_writer(path: Path, line: bytes) -> Callable[[], None]:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def write() -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, line)
        fcntl.flock(descriptor, fcntl.LOCK_UN)

    return write


def _rate(writers: int, each: int, prepare: Callable[[], Callable[[], None]]) -> float:
    """Records a second of ``writers`` processes that write ``each`` records, all together."""
    start_reader, start_writer = os.pipe()
    ready_reader, ready_writer = os.pipe()
    pids = []
    for _ in range(writers):
        pid = os.fork()
        if pid == 0:
            _write_when_told(start_reader, start_writer, ready_writer, each, prepare)
        pids.append(pid)
    os.close(start_reader)
    for _ in range(writers):
        os.read(ready_reader, 1)
    started = time.monotonic()
    os.close(start_writer)
    statuses = [os.waitpid(pid, 0)[1] for pid in pids]
    elapsed = time.monotonic() - started
    for descriptor in (ready_reader, ready_writer):
        os.close(descriptor)
    assert not any(statuses), "a writer failed"
    return writers * each / elapsed


def _write_when_told(
    start_reader: int,
    start_writer: int,
    ready_writer: int,
    each: int,
    prepare: Callable[[], Callable[[], None]],
) -> None:
    """The child's life: the end of the start pipe is the signal all begin at. Never returns."""
    status = 1
    try:
        os.close(start_writer)
        write = prepare()
        os.write(ready_writer, b".")
        os.read(start_reader, 1)
        for _ in range(each):
            write()
        status = 0
    except BaseException:  # noqa: BLE001 - whatever it is, this process ends here
        traceback.print_exc()
    finally:
        os._exit(status)
