"""What runs out, comes back, and costs no more than the requests that met it.

Threat: a client (A) or a neighbour on the source (C) uses up the disk, the inodes, the descriptors,
the processes or the memory that a request needs, at whichever moment, or the clock jumps. Each time
the peer gets the documented exit code and one line that says what is missing, the audit log stays
sound, no run's end is lost, and the next request succeeds without anybody's help.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import processes
from tests.harness.builds import FROZEN_14
from tests.harness.disk import Disk
from tests.harness.fixtures import SiteMaker
from tests.harness.peer import Pull, Repository
from tests.harness.site import Site
from tests.harness.wait import until

pytestmark = pytest.mark.needs_root

HELD_AT = 500_000  # bytes to the repository: well into the data
SIZE = 2 << 20

MakeDisk = Callable[..., Disk]


@pytest.fixture
def site(make_site: SiteMaker) -> Site:
    return make_site(FROZEN_14)


@pytest.fixture
def make_disk(site: Site) -> Iterator[MakeDisk]:
    """Makes disks, which go before the site does."""
    made: list[Disk] = []

    def make(place: Path, **sizes: int) -> Disk:
        assert site.source.directory in place.parents
        made.append(Disk(place, **sizes))
        return made[-1]

    yield make
    for disk in made:
        disk.unmount()


def _data(site: Site) -> Path:
    data = site.source.tree()
    site.source.file(data / "file", os.urandom(SIZE))
    return data


def _allow(site: Site, data: Path, **rules: object) -> None:
    """The audit log stands outside the home, so that either can be on a disk of its own."""
    log = site.source.directory / "log"
    if not log.exists():
        log.mkdir(mode=0o700)
        site.source.give(log)
    site.source.audit_file = log / "audit.jsonl"
    site.source.write_whitelist(
        {"luna": {"paths": [str(data)], "allow_unknown_repository": True} | rules},
        audit={"file": str(site.source.audit_file)},
    )


def _succeeds(site: Site, repository: Repository, data: Path, archive: str) -> None:
    """The control, and the proof that nobody had to mend anything."""
    result = site.pull(f"create {repository.path} {archive} {data}", repository)
    assert (result.exit, result.complaints) == (0, "")
    assert archive in repository.archives()
    site.source.assert_nothing_left("luna")
    site.source.assert_chain()


def _events(site: Site) -> list[tuple[str, object]]:
    """Event and result, or exit code, of each record that a request left."""
    return [
        (record["event"], record.get("result", record.get("exit")))
        for record in site.source.audit()
        if record["event"] != "filling"
    ]


class TestDiskOfTheLogFull:
    def test_before_the_start(self, site: Site, make_disk: MakeDisk) -> None:
        data = _data(site)
        _allow(site, data)
        disk = make_disk(site.source.audit_file.parent)
        repository = site.repository()
        _succeeds(site, repository, data, "control")
        disk.fill_with_records(site.source.audit_file)
        result = site.pull(f"create {repository.path} full {data}", repository)
        assert (result.exit, result.stdout) == (73, b"")
        assert result.errors == (
            f"borg-pull-source: audit log {site.source.audit_file}: no space left on device; "
            "free some space on its file system, or inodes\n"
        )
        assert repository.archives() == ["control"]
        assert site.pull("nonsense").exit == 73
        answer = site.pull("hello")
        assert (answer.exit, answer.stdout) == (73, b"")
        disk.empty()
        _succeeds(site, repository, data, "after")
        assert site.pull("hello").exit == 0
        runs = [("start", None), ("complete", "success")]
        assert _events(site) == [*runs, *runs, ("answered", 0)]

    def test_between_start_and_end(self, site: Site, make_disk: MakeDisk) -> None:
        """The archive is made, the peer is told what is missing, the next run records the end."""
        data = _data(site)
        _allow(site, data)
        disk = make_disk(site.source.audit_file.parent)
        repository = site.repository()
        with site.peer().listening(repository, hold_after=HELD_AT) as listener:
            pull = site.peer().start(f"create {repository.path} full {data}", listener)
            listener.held()
            disk.fill_with_records(site.source.audit_file)
            listener.release()
            result = pull.wait()
        assert result.exit == 73
        assert "borg ended with success, but its end could not be recorded" in result.errors
        assert repository.archives() == ["full"]
        site.source.assert_nothing_left("luna")
        # What still cannot be recorded is not forgotten over the next attempts.
        assert site.pull(f"create {repository.path} no {data}", repository).exit == 73
        disk.empty()
        _succeeds(site, repository, data, "after")
        first, second, *others = site.source.audit(event="complete")
        assert (first["session"], first["result"]) == (
            site.source.audit(event="start")[0]["session"],
            "interrupted",
        )
        assert (second["result"], others) == ("success", [])

    def test_without_inodes_for_a_new_log(self, site: Site, make_disk: MakeDisk) -> None:
        data = _data(site)
        _allow(site, data)
        disk = make_disk(site.source.audit_file.parent, inodes=8)
        disk.take_inodes()
        result = site.pull("nonsense")
        assert result.exit == 73
        assert "no space left on device; free some space on its file system, or inodes" in (
            result.errors
        )
        disk.empty()
        _succeeds(site, site.repository(), data, "after")


class TestDiskOfTheStateFull:
    def test_for_the_first_run(self, site: Site, make_disk: MakeDisk) -> None:
        data = _data(site)
        _allow(site, data)
        disk = make_disk(site.source.home, kibibytes=8192)
        repository = site.repository()
        for take in (disk.take_inodes, disk.fill):
            take()
            result = site.pull(f"create {repository.path} full {data}", repository)
            assert result.exit == 71
            assert "No space left on device; free some space on its file system, or inodes" in (
                result.errors
            )
            site.source.assert_nothing_left("luna")
            disk.empty()
        assert repository.archives() == []
        assert _events(site) == [("refused", 71), ("refused", 71)]
        _succeeds(site, repository, data, "after")

    @pytest.mark.parametrize("when", ["before borg starts", "amid the data"])
    def test_while_borg_runs(self, site: Site, make_disk: MakeDisk, when: str) -> None:
        """borg cannot pass its self-test, or keep its cache; the wrap cannot report."""
        data = _data(site)
        _allow(site, data)
        disk = make_disk(site.source.home, kibibytes=8192)
        repository = site.repository()
        if when == "before borg starts":
            # Room for what we ourselves make.
            disk.fill(leave=16 * 1024)
        with site.peer().listening(repository, hold_after=HELD_AT) as listener:
            pull = site.peer().start(f"create {repository.path} full {data}", listener)
            if when == "amid the data":
                listener.held()
                disk.fill()
                listener.release()
            result = pull.wait()
        assert result.exit == 2, result.errors
        assert _events(site) == [("start", None), ("complete", "error")]
        error = site.source.audit()[-1]["error"]
        assert "OSError: [Errno 28] No space left on device" in error
        if when == "before borg starts":
            assert result.errors.endswith(f"borg-pull-source: {error}\n")
        disk.empty()
        assert not repository.locked()
        _succeeds(site, repository, data, "after")
        repository.check()

    def test_an_end_that_is_still_to_be_recorded_outlives_it(
        self, site: Site, make_disk: MakeDisk
    ) -> None:
        """Killed, then no room to record it, then none for anything: recorded once, at last."""
        data = _data(site)
        _allow(site, data)
        log = make_disk(site.source.audit_file.parent)
        state = make_disk(site.source.home, kibibytes=8192)
        repository = site.repository()
        with site.peer().listening(repository, hold_after=HELD_AT) as listener:
            pull = site.peer().start(f"create {repository.path} killed {data}", listener)
            listener.held()
            _forced_command(pull).send(signal.SIGKILL)
            until(lambda: not pull.source_processes(), seconds=30, what="the end of the run")
            listener.release()
            pull.wait()
        site.source.socket("luna").unlink(missing_ok=True)
        log.fill_with_records(site.source.audit_file)
        assert site.pull(f"create {repository.path} a {data}", repository).exit == 73
        log.empty()
        state.fill()
        assert site.pull(f"create {repository.path} b {data}", repository).exit == 2
        state.empty()
        until(
            lambda: not processes.unreaped(site.account.uid),
            seconds=20,
            what="the killed processes to be reaped",
        )
        result = site.pull(f"create {repository.path} after {data}", repository)
        assert result.exit == 0, result.errors
        killed = site.source.audit(event="start")[0]["session"]
        (ended,) = site.source.audit(event="complete", session=killed)
        assert ended["result"] == "interrupted"
        site.source.assert_chain()


def _forced_command(pull: Pull) -> processes.Process:
    borg = pull.running("::killed")
    parent = processes.read(borg.parent)
    assert parent is not None
    return parent


def test_no_room_in_the_socket_directory(site: Site, make_disk: MakeDisk) -> None:
    """sshd cannot forward: ssh says so and ends, or the request finds no socket."""
    data = _data(site)
    _allow(site, data)
    disk = make_disk(site.source.socket_dir, inodes=8)
    repository = site.repository()
    disk.take_inodes()
    request = f"create {repository.path} full {data}"
    refused = site.pull(request, repository)
    assert refused.exit == 255
    assert "remote port forwarding failed" in refused.errors
    assert site.source.audit() == []
    with site.peer().listening(repository) as listener:
        careless = ("-o", "ExitOnForwardFailure=no")
        result = site.peer().start(request, listener, options=careless).wait()
    assert result.exit == 69
    assert _events(site) == [("refused", 69)]
    assert json.dumps(str(site.source.socket("luna")))[1:-1] in site.source.audit()[0]["reason"]
    disk.empty()
    _succeeds(site, repository, data, "after")
