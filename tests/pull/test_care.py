"""Retention: what is deleted, and that nothing is when archives on record have vanished.

Threat: a source that was taken over deletes archives through the connection it is given; a prune
afterwards would make that final, or thin out what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from borg_pull.errors import ConfigurationError
from borg_pull.pull import care
from borg_pull.pull.pull import Task
from borg_pull.pull.repository import LocalRepository, RepositoryError
from tests.harness.peer import PASSPHRASE, Repository
from tests.pull.conftest import BackupServer

pytestmark = pytest.mark.builds("frozen")

DAYS = 6


def _aged(server: BackupServer, made: Repository, job: str = "job") -> list[str]:
    """Archives of the last days, the job's by name, each on record; their names, oldest first."""
    data = server.directory / "data"
    data.mkdir(exist_ok=True)
    (data / "file").write_text("content")
    names = []
    for days in range(DAYS, 0, -1):
        moment = datetime.now(UTC) - timedelta(days=days)
        name = f"{job}-{moment:%Y-%m-%dT%H:%M:%S}"
        made.run(
            "create", "--timestamp", f"{moment:%Y-%m-%dT%H:%M:%S}", f"{made.path}::{name}", data
        )
        (info,) = _local(server).archives(name)
        run = server.ledger.begin(job, "source", "repository", log=None, started=moment)
        server.ledger.finish(run, "success", archive=name, archive_id=info.id)
        names.append(name)
    return names


def _local(server: BackupServer) -> LocalRepository:
    return LocalRepository(server.config().repository["repository"], PASSPHRASE.encode)


def _task(server: BackupServer) -> tuple[Task, str]:
    (task,) = server.tasks("job")
    return task, server.config().archive_glob("job")


@pytest.fixture
def aged(server: BackupServer) -> Callable[[], tuple[Repository, list[str]]]:
    def make() -> tuple[Repository, list[str]]:
        made = server.repository(encryption="repokey-blake2")
        server.job(paths=["/data"], retention={"keep_daily": 2})
        return made, _aged(server, made)

    return make


def test_what_retention_does_not_keep_is_deleted(
    server: BackupServer, aged: Callable[[], tuple[Repository, list[str]]]
) -> None:
    made, names = aged()
    task, glob = _task(server)
    plan = care.prune(task, _local(server), server.ledger, glob, {}, dry_run=True)
    assert [archive.name for archive in plan.deleted] == names[:-2]
    assert made.archives() == names, "a dry run deletes nothing"
    done = care.prune(task, _local(server), server.ledger, glob, {})
    assert done == plan
    assert made.archives() == names[-2:]
    assert sorted(server.ledger.kept("job").values()) == names[-2:]
    again = care.prune(task, _local(server), server.ledger, glob, {})
    assert again.deleted == []


def test_another_job_s_archives_are_not_touched(
    server: BackupServer, aged: Callable[[], tuple[Repository, list[str]]]
) -> None:
    made, names = aged()
    others = _aged(server, made, "other")
    task, glob = _task(server)
    care.prune(task, _local(server), server.ledger, glob, {})
    assert set(made.archives()) == set(names[-2:]) | set(others)


def test_nothing_is_deleted_while_archives_on_record_are_missing(
    server: BackupServer, aged: Callable[[], tuple[Repository, list[str]]]
) -> None:
    made, names = aged()
    made.run("delete", f"{made.path}::{names[3]}")
    task, glob = _task(server)
    with pytest.raises(care.MissingArchivesError, match=names[3]):
        care.prune(task, _local(server), server.ledger, glob, {})
    assert len(made.archives()) == DAYS - 1
    missing = care.missing(task, _local(server), server.ledger, glob)
    assert list(missing.values()) == [names[3]]


def test_an_archive_of_the_same_name_is_not_the_one_on_record(
    server: BackupServer, aged: Callable[[], tuple[Repository, list[str]]]
) -> None:
    """A hostile source replaces an archive by an empty one with its name."""
    made, names = aged()
    empty = server.directory / "empty"
    empty.mkdir()
    made.run("delete", f"{made.path}::{names[0]}")
    made.run("create", f"{made.path}::{names[0]}", empty)
    task, glob = _task(server)
    with pytest.raises(care.MissingArchivesError, match=names[0]):
        care.prune(task, _local(server), server.ledger, glob, {})


def test_without_retention_nothing_is_pruned(server: BackupServer) -> None:
    server.repository()
    server.job(paths=["/data"])
    task, glob = _task(server)
    with pytest.raises(ConfigurationError, match="has no retention"):
        care.prune(task, _local(server), server.ledger, glob, {})


def test_a_sound_repository_passes_its_check(
    server: BackupServer, aged: Callable[[], tuple[Repository, list[str]]]
) -> None:
    aged()
    server.document["job"]["job"]["check"] = {"verify_data": True}
    task, _ = _task(server)
    assert care.check(task, _local(server)).segment is None
    server.document["job"]["job"]["check"] = {"max_duration": "1h"}
    task, _ = _task(server)
    assert care.check(task, _local(server)).segment is None


def test_a_damaged_repository_fails_its_check(
    server: BackupServer, aged: Callable[[], tuple[Repository, list[str]]]
) -> None:
    made, _ = aged()
    segment = max((made.path / "data" / "0").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 0xFF
    segment.write_bytes(content)
    server.document["job"]["job"]["check"] = {"verify_data": True}
    task, _ = _task(server)
    with pytest.raises(RepositoryError, match="found damage"):
        care.check(task, _local(server))


HASTY = """\
#!{interpreter}
# borg itself, whose clock in the repository's code runs ahead 0.4 s at each look.
import itertools, time, types
import borg.repository
from borg.archiver import main
clock = itertools.count(0.0, 0.4)
ahead = types.SimpleNamespace(**vars(time))
ahead.monotonic = lambda: next(clock)
borg.repository.time = ahead
main()
"""


def _hasty(server: BackupServer) -> None:
    """Have checks run by a borg for which time flies, so that slices are small."""
    interpreter = server.site.borg.read_text().splitlines()[0].removeprefix("#!")
    program = server.directory / "hasty"
    program.write_text(HASTY.format(interpreter=interpreter))
    program.chmod(0o755)
    server.document["repository"]["repository"]["borg"] = str(program)


def _slices(server: BackupServer) -> Iterator[int]:
    """Where each check leaves off, until one has reached the end."""
    task, _ = _task(server)
    while (segment := care.check(task, _local(server)).segment) is not None:
        yield segment


def test_slices_go_on_where_the_last_one_left_off_and_cover_the_whole(
    server: BackupServer, aged: Callable[[], tuple[Repository, list[str]]]
) -> None:
    made, _ = aged()
    segments = sorted(int(path.name) for path in (made.path / "data").glob("*/*"))
    server.document["job"]["job"]["check"] = {"max_duration": "1s"}
    _hasty(server)
    ends = [*_slices(server)]
    assert ends == sorted(set(ends))
    assert len(ends) > 2, "it takes several"
    assert set(ends) <= set(segments)
    assert [*_slices(server)] == ends, "and begins again"


def test_damage_is_found_by_the_slice_it_lies_in(
    server: BackupServer, aged: Callable[[], tuple[Repository, list[str]]]
) -> None:
    made, _ = aged()
    server.document["job"]["job"]["check"] = {"max_duration": "1s"}
    _hasty(server)
    sound = [*_slices(server)]
    late = sorted((made.path / "data").glob("*/*"), key=lambda path: int(path.name))[-8:]
    damaged = max(late, key=lambda path: path.stat().st_size)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 0xFF
    damaged.write_bytes(content)
    before = [segment for segment in sound if segment < int(damaged.name)]
    slices = _slices(server)
    assert [next(slices) for _ in before] == before
    with pytest.raises(RepositoryError, match="found damage"):
        next(slices)
