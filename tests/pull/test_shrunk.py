"""An archive that lacks most of the data must not cost the whole ones.

Threat: a disk on the source is not mounted, or files were deleted there; each pull makes a small
archive, and retention would keep these in place of the last good ones, while nobody is told.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from borg_pull.pull.ledger import Ledger
from borg_pull.pull.outcome import Evidence, judge
from borg_pull.pull.said import Result, Sentence, Transcript
from tests.harness.peer import Repository
from tests.pull.conftest import BackupServer
from tests.pull.test_commands import Command, borg_pull, program
from tests.pull.test_retention_safety import told
from tests.pull.test_run import data_of

__all__ = ["borg_pull", "program", "told"]

pytestmark = pytest.mark.builds("frozen")


def shrunken(server: BackupServer, borg_pull: Command) -> tuple[Repository, Path]:
    """A repository whose job keeps two archives, and the file that was emptied after two."""
    file = Path(data_of(server)) / "file"
    repository = server.repository()
    server.job(paths=[str(file.parent)], retention={"keep_last": 2})
    borg_pull("run", "job")
    borg_pull("run", "job")
    os.truncate(file, 1000)
    return repository, file


def test_retention_waits_and_people_are_told_until_one_accepts(
    server: BackupServer, borg_pull: Command, told: list[str]
) -> None:
    repository, _ = shrunken(server, borg_pull)
    good = repository.archives()
    for _ in range(2):
        ran = borg_pull("run", "job", code=1)
        assert "the archive shrank to" in ran.stderr
        assert "borg-pull accept job" in ran.stderr
    assert repository.archives()[:2] == good
    (message,) = told
    assert message.startswith("job made a backup, but: the archive shrank to")
    shown = borg_pull("status", code=1).stdout
    assert "job: the archive shrank to" in shown
    (job,) = json.loads(borg_pull("status", "--json", code=1).stdout)["jobs"]
    assert (job["state"], job["shrunk"]) == ("warning", True)
    assert "borg-pull accept job" in borg_pull("prune", "job", code=2).stderr
    assert len(repository.archives()) == 4

    # The control: a person says that it is right, and all goes on.
    assert repository.archives()[-1] in borg_pull("accept", "job").stdout
    assert told[1:] == [told[-1]]
    assert told[-1].startswith("job is fine again")
    assert " ok " in borg_pull("status").stdout
    borg_pull("run", "job")
    assert len(repository.archives()) == 2
    assert "not much smaller" in borg_pull("accept", "job").stdout


def test_an_archive_of_the_usual_size_ends_it(server: BackupServer, borg_pull: Command) -> None:
    repository, file = shrunken(server, borg_pull)
    borg_pull("run", "job", code=1)
    file.write_bytes(os.urandom(1 << 20))
    borg_pull("run", "job")
    assert len(repository.archives()) == 2


def test_a_warning_of_borg_s_does_not_hide_it() -> None:
    """What cannot be read any more is missing, too, and borg warns of it."""
    error = Sentence("/data/file: Permission denied")
    said = Transcript(result=Result(None, 107, error, None))
    evidence = Evidence(
        ssh_exit=1,
        given_up=None,
        connected=True,
        serve_signal=None,
        transcript=said,
        ssh_said="",
        archive_id="id",
        lookup_error=None,
        original_size=1,
        minimum_size=0,
        usual_size=1000,
        shrink_alarm=0.5,
    )
    outcome = judge(evidence)
    assert (outcome.verdict, outcome.shrunk) == ("warning", True)
    assert outcome.error is not None
    assert outcome.error.endswith("; /data/file: Permission denied")
    assert not judge(replace(evidence, original_size=600)).shrunk


def test_small_archives_never_become_usual_by_themselves(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")

    def made(size: int, shrunk: str | None = None) -> int:
        run = ledger.begin("job", "s", "r", log=None)
        ledger.finish(run, "warning" if shrunk else "success", original_size=size, shrunk=shrunk)
        return run

    for size in (90, 100, 110):
        made(size)
    for _ in range(20):
        last = made(1, "held")
    assert ledger.usual_sizes("job", 5) == [110, 100, 90]
    assert ledger.held("job") is not None
    ledger.accept(last)
    assert ledger.usual_sizes("job", 5) == [1]
    assert ledger.held("job") is None
