"""A sample of the last backup, restored and compared with the source as it is now."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tests.pull.conftest import BackupServer
from tests.pull.test_commands import Command, borg_pull, program
from tests.pull.test_run import data_of

__all__ = ["borg_pull", "program"]  # fixtures


def told(borg_pull: Command, *options: str) -> dict[str, Any]:
    """What a verification that finds nothing wrong says."""
    answer: dict[str, Any] = json.loads(borg_pull("verify", "job", "--json", *options).stdout)
    return answer


def files_below(data: Path) -> list[Path]:
    """The regular files that have content."""
    found = [Path(place, name) for place, _, names in os.walk(data) for name in names]
    return [path for path in found if path.is_file() and path.stat().st_size]


def test_a_sample_is_compared_with_the_source(server: BackupServer, borg_pull: Command) -> None:
    data = server.site.source.tree()
    for number in range(5):
        server.site.source.file(data / f"d/file {number}", os.urandom(1000))
    server.site.allow(trees=[str(data)])
    repository = server.repository()
    server.job(paths=[str(data)])
    borg_pull("run", "job")
    kept = repository.archives()
    assert "never" in borg_pull("status").stdout
    whole = told(borg_pull)
    assert (whole["files"], whole["identical"], whole["changed"]) == (5, 5, 0)
    assert whole["compared_with_source"]
    assert repository.archives() == kept, "what was made for the comparison is gone"
    (state,) = json.loads(borg_pull("status", "--json").stdout)["jobs"]
    assert state["last_verified"] is not None
    assert told(borg_pull, "--files", "2")["files"] == 2

    server.site.source.file(data / "d/file 0", b"changed")
    (data / "d/file 1").unlink()
    changed = told(borg_pull)
    assert (changed["identical"], changed["changed"]) == (3, 2)

    # Other content of the same size and time: what a failing disk does, or who hides something.
    victim = data / "d/file 2"
    times = victim.stat()
    victim.write_bytes(os.urandom(1000))
    os.utime(victim, ns=(times.st_atime_ns, times.st_mtime_ns))
    failed = borg_pull("verify", "job", code=2)
    assert f"{victim} has another content on the source" in failed.stderr
    assert repository.archives() == kept
    shown = borg_pull("status", code=1)
    assert "job: verify failed:" in shown.stdout
    assert [run.kind for run in server.ledger.runs(limit=1)] == ["verify"]


def test_files_that_may_not_be_asked_for_by_name(server: BackupServer, borg_pull: Command) -> None:
    """What is restored is checked all the same, and nothing is said of the source."""
    data = data_of(server)
    repository = server.repository()
    server.job(paths=[data])
    assert "no backup yet" in borg_pull("verify", "job", code=64).stderr
    borg_pull("run", "job")
    kept = repository.archives()
    found = told(borg_pull)
    assert found["files"] == min(20, len(files_below(Path(data))))
    assert (found["compared_with_source"], found["identical"]) == (False, 0)
    assert repository.archives() == kept
    assert "not compared with the source" in borg_pull("verify", "job").stdout
    (state,) = json.loads(borg_pull("status", "--json").stdout)["jobs"]
    assert state["last_verified"] is None, "a source cannot have itself taken for verified"
    assert state["last_restored"] is not None
    assert "(checksums)" in borg_pull("status").stdout


def test_damage_in_the_repository_is_found(server: BackupServer, borg_pull: Command) -> None:
    data = data_of(server, 1 << 20)
    repository = server.repository()
    server.job(paths=[data])
    borg_pull("run", "job")
    largest = max((repository.path / "data").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 1
    largest.write_bytes(content)
    failed = borg_pull("verify", "job", "--files", "500", code=2)
    assert "borg extract of job-" in failed.stderr
    assert str(server.directory) not in failed.stderr, "what was unpacked is not kept"
    (run,) = server.ledger.runs(limit=1)
    assert (run.kind, run.outcome) == ("verify", "failure")
    borg_pull("status", code=1)
