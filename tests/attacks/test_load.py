"""A client that sends very many requests at once gets its answers, and nobody else waits for it.

Threat: a leaked key (A) floods the source. Each of its requests is served, refused or told to come
back, and is on record; another client's backups (B) go on meanwhile.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from borg_pull.admin.audit import verify_files
from borg_pull.audit import AuditLog, Common

WRITERS = 1000
# Forked from an interpreter that has loaded little: 1,000 copies of a test runner are dear.
CROWD = """
import fcntl, os, sys, time
from borg_pull.audit import AuditLog, Common

path, writers, sync = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "sync"
log = AuditLog(path, sync=sync)
holder = os.open(path + ".chain", os.O_RDWR)
fcntl.flock(holder, fcntl.LOCK_EX)
ready_reader, ready_writer = os.pipe()
children = []
for number in range(writers):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(holder)
            common = Common(session=str(number), client="luna", key=None, address=None, port=None,
                            pid=os.getpid())
            os.write(ready_writer, b".")
            log.append("refused", common, {"reason": "too many"})
            status = 0
        finally:
            os._exit(status)
    children.append(child)
ready = 0
while ready < writers:
    ready += len(os.read(ready_reader, 65536))
started = time.monotonic()
os.close(holder)
failed = sum(os.waitpid(child, 0)[1] != 0 for child in children)
print(failed, time.monotonic() - started)
"""


@pytest.mark.parametrize("sync", ["no sync", "sync"])
def test_a_thousand_writers_of_the_audit_log_all_get_their_turn(tmp_path: Path, sync: str) -> None:
    """When each of them tried again and again, with sync nine in ten gave up after 30 seconds."""
    path = tmp_path / "audit.jsonl"
    nobody = Common(session="0", client=None, key=None, address=None, port=None, pid=0)
    AuditLog(str(path), sync=False).append("refused", nobody, {})
    done = subprocess.run(
        [sys.executable, "-c", CROWD, path, str(WRITERS), sync],
        capture_output=True,
        text=True,
        check=True,
    )
    failed, seconds = done.stdout.split()
    assert (failed, done.stderr) == ("0", "")
    assert float(seconds) < 60
    records = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert sorted(int(record["session"]) for record in records[1:]) == [*range(WRITERS)]
    assert verify_files([str(path)], rotated=False, expect=None).findings == []
