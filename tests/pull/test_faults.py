"""What can go wrong under way: each time the ledger says what happened, nothing is left anywhere, a
half archive is none, and the next run succeeds."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from borg_pull.pull.ledger import Ledger
from tests.harness.builds import Build
from tests.harness.clock import Clock
from tests.harness.disk import Disk
from tests.harness.fixtures import SiteMaker
from tests.harness.proxy import Proxy
from tests.harness.sshd import make_key
from tests.harness.wait import until
from tests.pull.conftest import BackupServer, backup_server
from tests.pull.faulty import DATA, SECONDS, SIZE, Faulty
from tests.pull.runs import run

pytestmark = pytest.mark.needs_root

# Only what is sshd's or borg's own differs from one build to the other.
ONE_BUILD = pytest.mark.builds("one")
YEAR = 366 * 24 * 3600
KEEP_ALIVE = ("ClientAliveInterval 1", "ClientAliveCountMax 2")


@pytest.fixture
def server(make_site: SiteMaker, build: Build, tmp_path: Path) -> Iterator[BackupServer]:
    """A backup server whose source notices within seconds that nobody answers."""
    with backup_server(make_site(build, sshd=KEEP_ALIVE), tmp_path) as made:
        yield made


@pytest.fixture
def faulty(server: BackupServer) -> Iterator[Faulty]:
    """One job with a good deal of data, through a network of ours."""
    source = server.site.source
    data = source.tree()
    source.file(data / "file", os.urandom(SIZE))
    server.site.allow(paths=[str(data)])
    repository = server.repository()
    server.job(paths=[str(data)])
    with Proxy(server.site.server.port) as proxy:
        server.document["source"]["source"]["port"] = proxy.port
        pins = server.directory / "known_hosts"
        pins.write_text(pins.read_text().replace(f":{server.site.server.port} ", f":{proxy.port} "))
        yield Faulty(server, repository, proxy, data)


MakeDisk = Callable[..., Disk]


@pytest.fixture
def make_disk(faulty: Faulty) -> Iterator[MakeDisk]:
    """Makes small disks of directories, which keep what is in them."""
    made: list[Disk] = []

    def make(place: Path, **sizes: int) -> Disk:
        aside = faulty.server.directory / f"aside{len(made)}"
        shutil.copytree(place, aside)
        made.append(Disk(place, inodes=1000, **sizes))
        shutil.copytree(aside, place, dirs_exist_ok=True)
        return made[-1]

    yield make
    for disk in made:
        disk.unmount()


KILLED = {
    "borg-pull": ("borg-pull was killed, or the machine went down",),
    "ssh": ("ssh was killed by SIGKILL",),
    "borg serve": ("borg serve was killed by SIGKILL",),
    "remote borg": ("borg was ended by signal 9",),
    "forced command": ("the source's command was killed by SIGKILL",),
}


@pytest.mark.builds("pairs")
@pytest.mark.parametrize("victim", KILLED)
def test_killed(faulty: Faulty, victim: str) -> None:
    """kill -9 in the middle of the data."""
    with faulty.held() as pulling:
        pulling.kill(victim)
        faulty.proxy.release()
        pulling.ended(-9 if victim == "borg-pull" else 2)
    if victim == "borg-pull":
        faulty.assert_nothing_left_at_the_source()
        assert "run 1 of job was interrupted" in faulty.run(code=0)
        faulty.assert_nothing_left()
        (run,) = [run for run in faulty.server.ledger.runs("job") if run.outcome == "interrupted"]
        assert run.error == "borg-pull was killed, or the machine went down"
        assert run.archive_id is None
        faulty.assert_next_run_succeeds(2)
        return
    faulty.assert_failed(*KILLED[victim])
    # Who would remove the socket is dead; the next run does.
    faulty.assert_nothing_left(but_the_socket=victim == "forced command")
    faulty.assert_next_run_succeeds()


# The network

POINTS = {"before the log-in": 500, "at the first messages": 8000, "in the data": DATA}


@ONE_BUILD
@pytest.mark.parametrize("point", POINTS)
def test_cut(faulty: Faulty, point: str) -> None:
    with faulty.held(POINTS[point]) as pulling:
        faulty.proxy.cut()
        faulty.proxy.release()
        pulling.ended(2)
    faulty.assert_failed("onnection")
    faulty.assert_nothing_left()
    faulty.assert_next_run_succeeds()


@ONE_BUILD
def test_stalled_for_longer_than_the_keep_alives(faulty: Faulty) -> None:
    """Takes the time of three lost keep-alives, here and at the source."""
    faulty.server.document["source"]["source"]["keep_alive"] = "1s"
    with faulty.held() as pulling:
        pulling.ended(2)
        # Nobody has told the source, but its own sshd.
        faulty.assert_failed("ssh: the connection was lost")
        faulty.assert_nothing_left()
    faulty.assert_next_run_succeeds()


@ONE_BUILD
def test_stalled_for_less_is_no_fault(faulty: Faulty) -> None:
    with faulty.held() as pulling:
        faulty.proxy.release()
        pulling.ended(0)
    assert faulty.last().outcome == "success"
    faulty.assert_next_run_succeeds(2)


@ONE_BUILD
def test_slow_is_no_fault(faulty: Faulty) -> None:
    """The keep-alives are answered, however long the queue before them is."""
    faulty.server.document["source"]["source"]["keep_alive"] = "1s"
    faulty.proxy.bytes_per_second = 2 << 20
    faulty.run(code=0)
    assert faulty.proxy.from_far > SIZE
    run = faulty.last()
    assert run.outcome == "success"
    assert run.duration is not None
    assert run.duration > 3
    faulty.assert_nothing_left()


@ONE_BUILD
def test_a_source_that_says_nothing_does_not_keep_us(faulty: Faulty) -> None:
    """It is asked who it is, and a signal ends the wait."""
    with faulty.held(0) as pulling:
        pulling.child(lambda one: one.name == "ssh")
        pulling.process.terminate()
        pulling.ended(2)
    faulty.assert_failed("ended by SIGTERM")
    faulty.assert_nothing_left()
    faulty.assert_next_run_succeeds()


@ONE_BUILD
def test_what_was_ended_is_not_tried_again(faulty: Faulty) -> None:
    faulty.run(code=0)
    (faulty.data / "file").write_bytes(os.urandom(SIZE))
    with faulty.held() as pulling:
        pulling.process.terminate()
        pulling.ended(2)
    faulty.assert_failed("ended by SIGTERM")
    faulty.assert_nothing_left()
    assert len(faulty.server.site.source.audit(event="start", verb="create")) == 2
    assert len(faulty.server.site.source.audit(event="answered", verb="hello")) == 1
    faulty.assert_next_run_succeeds(2)


# The repository


@ONE_BUILD
def test_its_disk_full(faulty: Faulty, make_disk: MakeDisk) -> None:
    disk = make_disk(faulty.repository.path, kibibytes=32 << 10)
    disk.fill(leave=DATA)
    faulty.run(code=2)
    faulty.assert_failed(
        f"the disk of repository {faulty.repository.path} on this host is full; free some space"
    )
    faulty.assert_nothing_left()
    disk.empty()
    faulty.assert_next_run_succeeds()


@ONE_BUILD
def test_locked_by_somebody_else(faulty: Faulty) -> None:
    path = faulty.repository.path
    holder = subprocess.Popen(
        [faulty.repository.borg, "with-lock", path, "cat"],
        stdin=subprocess.PIPE,
        env=faulty.repository.environment(),
    )
    until(faulty.repository.locked, seconds=30, what="the lock")
    lock = sorted((path / "lock.exclusive").iterdir())
    faulty.server.document["job"]["job"]["retry_window"] = "1s"
    faulty.run(code=2)
    faulty.assert_failed(f"repository {path} is locked by {lock[0].name}; if nothing uses it")
    assert faulty.last().attempt == 2
    assert sorted((path / "lock.exclusive").iterdir()) == lock, "it is not ours to break"
    holder.communicate()
    faulty.assert_nothing_left()
    faulty.assert_next_run_succeeds()


@ONE_BUILD
def test_moved(faulty: Faulty) -> None:
    path = faulty.repository.path
    moved = path.with_name("moved")
    path.rename(moved)
    faulty.run(code=2)
    faulty.assert_failed(f"{path} does not exist")
    faulty.assert_nothing_left()
    moved.rename(path)
    faulty.assert_next_run_succeeds()


@ONE_BUILD
def test_wrong_passphrase(faulty: Faulty) -> None:
    server = faulty.server
    faulty.repository = server.repository("encrypted", encryption="repokey-blake2")
    server.site.allow(paths=[str(faulty.data)], passphrase_stdin=True)
    server.job(repository="encrypted", paths=[str(faulty.data)])
    secret = server.directory / "passphrase"
    right = secret.read_text()
    secret.write_text("not the passphrase\n")
    faulty.run(code=2)
    faulty.assert_failed(
        f"the passphrase of {faulty.repository.path} is wrong, the one in {secret} on this host"
    )
    said = run("archives", "job", "--config", server.directory / "pull.toml")
    assert (said.exit, f"the one in {secret} on this host" in said.stderr) == (2, True)
    assert "not the passphrase" not in str(faulty.last().error)
    faulty.assert_nothing_left()
    secret.write_text(right)
    faulty.assert_next_run_succeeds()


# The source


@ONE_BUILD
def test_its_path_vanished(faulty: Faulty) -> None:
    gone = faulty.data.with_name("gone")
    faulty.data.rename(gone)
    faulty.run(code=2)
    faulty.assert_failed(str(faulty.data))
    faulty.assert_nothing_left()
    gone.rename(faulty.data)
    faulty.assert_next_run_succeeds()


@ONE_BUILD
def test_its_host_key_changed(faulty: Faulty) -> None:
    pins = faulty.server.directory / "known_hosts"
    honest = pins.read_text()
    kind, key, *_ = make_key(faulty.server.directory / "other").split()
    pins.write_text(f"{honest.split()[0]} {kind} {key}\n")
    faulty.run(code=2)
    faulty.assert_failed("THE HOST KEY OF SOURCE source HAS CHANGED", "borg-pull trust source")
    faulty.assert_nothing_left()
    pins.write_text(honest)
    faulty.assert_next_run_succeeds()


# The ledger


@pytest.fixture
def ledger_disk(faulty: Faulty, make_disk: MakeDisk) -> Disk:
    """The disk of the ledger, and of all else that must outlive a restart."""
    server = faulty.server
    state = server.directory / "state"
    state.mkdir(mode=0o700)
    shutil.copy(server.directory / "known_hosts", state)
    disk = make_disk(state, kibibytes=4 << 10)
    server.document["settings"] = {
        "state_dir": str(state),
        "runtime_dir": str(server.directory / "run"),
    }
    server.ledger.close()
    server.ledger = Ledger(state / "ledger.sqlite")
    return disk


@ONE_BUILD
def test_its_disk_full_from_the_start(faulty: Faulty, ledger_disk: Disk) -> None:
    """What could not be put on record is not run."""
    run = faulty.server.ledger.begin("job", "source", "repository", log=None)
    faulty.server.ledger.finish(run, "failure", error="as it was before")
    # While one process has it open another finds what it needs; it may be the only one.
    faulty.server.ledger.close()
    ledger_disk.fill()
    said = faulty.run(code=71)
    assert "free some space" in said.splitlines()[-1]
    assert faulty.server.site.source.audit(verb="create") == []
    for _ in range(2):
        assert "as it was before" in faulty.output("status", code=1)
        assert "as it was before" in faulty.output("history", code=0)
    faulty.server.ledger = Ledger(faulty.server.directory / "state/ledger.sqlite")
    faulty.assert_nothing_left()
    ledger_disk.empty()
    faulty.assert_next_run_succeeds()


@ONE_BUILD
def test_its_disk_full_under_way(faulty: Faulty, ledger_disk: Disk) -> None:
    """The end goes on record in the room that was set aside for it."""
    with faulty.held() as pulling:
        ledger_disk.fill()
        faulty.proxy.release()
        pulling.ended(0)
    run = faulty.last()
    assert run.outcome == "success"
    assert faulty.repository.archives() == [run.archive]
    faulty.assert_nothing_left()
    assert "free some space" in faulty.run(code=71)
    ledger_disk.empty()
    faulty.assert_next_run_succeeds(2)


# Processes and time


@ONE_BUILD
def test_many_at_once_from_nothing(faulty: Faulty) -> None:
    """They make the ledger together; the job runs in one of them at a time."""
    ledger = faulty.server.ledger
    ledger.close()
    for file in faulty.server.directory.glob("ledger.*"):
        file.unlink()
    started = [faulty.start("run", "job") for _ in range(4)]
    for pulling in started:
        pulling.ended(0)
    faulty.server.ledger = Ledger(faulty.server.directory / "ledger.sqlite")
    outcomes = [run.outcome for run in faulty.server.ledger.runs("job")]
    assert len(outcomes) == 4
    assert set(outcomes) <= {"success", "skipped"}
    assert outcomes.count("success") == len(faulty.repository.archives())
    faulty.assert_nothing_left()
    faulty.assert_next_run_succeeds(outcomes.count("success") + 1)


@ONE_BUILD
def test_the_clock_is_set_back(faulty: Faulty) -> None:
    """It was a year ahead: what was noted then hides nothing of what comes after."""
    clock = Clock(faulty.server.directory)
    faulty.environment = clock.environment
    faulty.server.document["job"]["job"]["schedule"] = "daily"
    clock.jump_to(YEAR)
    with faulty.held() as pulling:
        clock.jump_to(0)
        faulty.proxy.release()
        pulling.ended(0)
    first = faulty.last()
    assert first.finished is not None
    assert first.finished < first.started, "the control: it jumped"
    assert first.duration is not None
    assert 0 < first.duration < SECONDS
    gone = faulty.data.with_name("gone")
    faulty.data.rename(gone)
    faulty.run(code=2)
    faulty.assert_failed(str(faulty.data))
    assert "failing" in faulty.output("status", code=1)
    gone.rename(faulty.data)
    faulty.assert_next_run_succeeds(2)
    assert " ok " in faulty.output("status", code=0)


@ONE_BUILD
def test_the_clock_was_ahead_for_a_whole_run(faulty: Faulty) -> None:
    """The backup's date is then no proof of its being fresh: it is said, and made anew."""
    clock = Clock(faulty.server.directory)
    faulty.environment = clock.environment
    faulty.server.document["job"]["job"]["schedule"] = "daily"
    clock.jump_to(YEAR)
    faulty.run(code=0)
    assert " ok " in faulty.output("status", code=0), "the control: by that clock it is fresh"
    clock.jump_to(0)
    shown = faulty.output("status", code=1)
    assert "stale" in shown
    assert "in the future: this host's clock is wrong, or was" in shown
    faulty.run(words=("run", "--due"), code=0)
    assert len(faulty.repository.archives()) == 2
    assert " ok " in faulty.output("status", code=0)


@ONE_BUILD
def test_nobody_reads_what_it_says(faulty: Faulty) -> None:
    with faulty.held(words=("run", "job", "--json")) as pulling:
        assert pulling.process.stdout is not None
        pulling.process.stdout.close()
        faulty.proxy.release()
        assert pulling.process.wait(SECONDS) == 0
        pulling.process.stdout = None
    assert faulty.last().outcome == "success"
    faulty.assert_nothing_left()
    faulty.assert_next_run_succeeds(2)
