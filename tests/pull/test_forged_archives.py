"""Retention and reports against a source that writes into the repository as it likes.

Threat: a source that was taken over holds the repository's key and a connection that may append.
It makes archives of its own, of any name and date, deletes what archives consist of, and writes
archives into the list that are none. None of this may have this host delete an archive that a run
on record made, make a deletion final, or call a run a success.
"""

from __future__ import annotations

import re
import subprocess
from datetime import UTC, datetime, timedelta

import pytest

from borg_pull.pull import care
from borg_pull.pull.outcome import Evidence, judge
from borg_pull.pull.repository import LocalRepository, RepositoryError
from borg_pull.pull.said import Transcript
from tests.harness import made_archive
from tests.harness.peer import Repository
from tests.pull.conftest import BackupServer
from tests.pull.test_commands import Command, borg_pull, program
from tests.pull.test_run import data_of

__all__ = ["borg_pull", "program"]

pytestmark = pytest.mark.builds("one")

KEEP = {"keep_daily": 3}


def pulled(server: BackupServer, days: int, job: str = "job", **keys: object) -> Repository:
    """A repository with an archive on record for each of the last days, and a job of that name."""
    first = not server.document["repository"]
    made = server.repository() if first else None
    repository = server.__dict__.setdefault("_made", made)
    assert isinstance(repository, Repository)
    server.job(job, paths=[data_of(server) if first else "/x"], **keys)
    local = local_of(server)
    for day in range(days, 0, -1):
        moment = datetime.now(UTC) - timedelta(days=day)
        name = f"{job}-{moment:%Y-%m-%dT%H:%M:%S}"
        written(server, repository, name, moment, f"of day {day} of {job}")
        (found,) = local.archives(name)
        run = server.ledger.begin(job, "source", "repository", log=None, started=moment)
        server.ledger.finish(run, "success", archive=name, archive_id=found.id)
    return repository


def local_of(server: BackupServer) -> LocalRepository:
    return LocalRepository(server.config().repository["repository"], lambda: None)


def written(
    server: BackupServer, repository: Repository, name: str, moment: datetime, content: str
) -> None:
    """An archive of that date, whoever makes it."""
    data = server.directory / "forged"
    data.mkdir(exist_ok=True)
    (data / "file").write_text(content)
    date = f"{moment:%Y-%m-%dT%H:%M:%S}"
    repository.run("create", "--timestamp", date, f"{repository.path}::{name}", data)


def fakes(server: BackupServer, repository: Repository, job: str = "job") -> list[str]:
    """Archives that would take the place of those of the last week."""
    names = []
    for day in range(8):
        moment = datetime.now(UTC).replace(hour=23, minute=59) - timedelta(days=day)
        names.append(f"{job}-x{day}")
        written(server, repository, names[-1], moment, "")
    return names


def pruned(server: BackupServer, job: str = "job") -> care.Pruned:
    (task,) = server.tasks(job)
    config = server.config()
    glob, beside = config.archive_glob(job), config.beside(job)
    return care.prune(task, local_of(server), server.ledger, glob, beside)


def test_archives_of_no_run_take_no_place(server: BackupServer, borg_pull: Command) -> None:
    repository = pulled(server, 5, retention=KEEP)
    genuine = repository.archives()
    forged = fakes(server, repository)
    said = borg_pull("prune", "job")
    assert set(repository.archives()) == {*genuine[-3:], *forged}
    assert f"{len(forged)} archives of this name were made by no run of job job" in said.stderr
    borg_pull("run", "job")
    (kept,) = {*repository.archives()} - {*genuine, *forged}
    assert {*genuine[-2:], kept} <= {*repository.archives()}, "the run's own, and the last ones"
    # The control: a person knows them, and they count from then on.
    assert len(borg_pull("adopt", "job", "--yes").stdout.splitlines()) == len(forged) + 1
    assert borg_pull("adopt", "job").stdout == "all archives are on record\n"
    borg_pull("prune", "job")
    assert len(repository.archives()) < len(forged)


def test_the_latest_is_that_of_the_last_run(server: BackupServer, borg_pull: Command) -> None:
    repository = pulled(server, 1)
    written(server, repository, "job-x", datetime.now(UTC) + timedelta(days=1), "planted")
    to = server.directory / "to"
    borg_pull("extract", "job", "latest", "/", "--to", str(to))
    (file,) = to.rglob("file")
    assert file.read_text() == "of day 1 of job"


def delete_content(repository: Repository, name: str) -> None:
    """Delete an object that the archive consists of, and no archive."""
    dump = repository.run("debug", "dump-archive", f"{repository.path}::{name}", "-")
    after = dump[dump.index('"chunks"') :]
    found = re.search(r"u007f([0-9a-f]{64})", after)
    assert found is not None
    object_id = found[1]
    repository.run("debug", "delete-obj", str(repository.path), object_id)


def test_content_that_was_deleted_is_not_freed(server: BackupServer) -> None:
    repository = pulled(server, 5, retention=KEEP)
    delete_content(repository, repository.archives()[-1])
    before = {
        path: path.read_bytes() for path in (repository.path / "data").rglob("*") if path.is_file()
    }
    with pytest.raises(care.DamagedArchivesError, match="not whole"):
        pruned(server)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_control_whole_archives_are_freed(server: BackupServer) -> None:
    repository = pulled(server, 5, retention=KEEP)
    before = {path for path in (repository.path / "data").rglob("*") if path.is_file()}
    pruned(server)
    assert any(not path.exists() for path in before)


def test_what_another_job_has_lost_is_not_freed(server: BackupServer) -> None:
    repository = pulled(server, 5, retention=KEEP)
    before = [*repository.archives()]
    pulled(server, 2, "other")
    other = [name for name in repository.archives() if name.startswith("other-")]
    repository.run("delete", f"{repository.path}::{other[0]}")
    with pytest.raises(care.MissingArchivesError, match=f"job other: 1 .*{other[0]}"):
        pruned(server)
    assert {*before} <= {*repository.archives()}
    # The control: a person says that it is all right.
    server.ledger.mark_gone(
        "other",
        [
            *care.unlisted(
                server.ledger.kept("other"),
                {one.id for one in local_of(server).archives()},
                "other-*",
            )
        ],
    )
    assert len(pruned(server).deleted) == 2


FORGE = """\
import os, sys
from borg.helpers import Manifest
from borg.logger import setup_logging
from borg.repository import Repository
from datetime import datetime
setup_logging()
with Repository(sys.argv[1], exclusive=True) as repository:
    manifest, key = Manifest.load(repository, Manifest.NO_OPERATION_CHECK)
    manifest.archives[sys.argv[2]] = (os.urandom(32), datetime.utcnow())
    manifest.write()
    repository.commit(compact=False)
"""


def test_an_entry_in_the_list_is_no_archive(server: BackupServer) -> None:
    repository = pulled(server, 1)
    local = local_of(server)
    before = local.archives("job-*")
    assert local.archives("job-*", opened=True) == before, "the control"
    subprocess.run(
        [made_archive.INTERPRETER, "-c", FORGE, str(repository.path), "job-forged"],
        check=True,
        env=repository.environment(),
    )
    assert len(local.archives("job-*")) == len(before) + 1
    with pytest.raises(RepositoryError):
        local.archives("job-*", opened=True)


def test_a_size_that_nobody_told_is_no_size() -> None:
    """See outcome.judge; how a source withholds it is of no matter."""

    def verdict(size: int | None, least: int) -> str:
        evidence = Evidence(
            ssh_exit=0, given_up=None, connected=True, serve_signal=None, transcript=Transcript(),
            ssh_said="", archive_id="0" * 64, lookup_error=None, original_size=size,
            minimum_size=least, usual_size=None, shrink_alarm=0.5,
        )  # fmt: skip
        return judge(evidence).verdict

    assert verdict(None, 1) == "failure"
    assert verdict(None, 0) == "success"
    assert verdict(1, 1) == "success"
