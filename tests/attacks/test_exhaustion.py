"""What runs out, comes back, and costs no more than the requests that met it.

Threat: a client (A) or a neighbour on the source (C) uses up the disk, the inodes, the descriptors,
the processes or the memory that a request needs, at whichever moment, or the clock jumps. Each time
the peer gets the documented exit code and one line that says what is missing, the audit log stays
sound, no run's end is lost, and the next request succeeds without anybody's help.
"""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from borg_pull.admin.audit import verify_files
from borg_pull.audit import AuditLog, Common
from borg_pull.errors import AuditError
from tests.harness import processes
from tests.harness.builds import FROZEN_14, SOURCE_14
from tests.harness.clock import Clock
from tests.harness.disk import Disk
from tests.harness.fixtures import SiteMaker
from tests.harness.peer import Pull, Repository, Result
from tests.harness.site import Site
from tests.harness.wait import until

pytestmark = pytest.mark.needs_root

HELD_AT = 500_000  # bytes to the repository: well into the data
SIZE = 2 << 20
SECONDS = 30.0

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


# Descriptors, processes, memory

LIMITED = """\
#!/usr/bin/python3 -I
import os, resource
kind, value = open({choice!r}).read().split()
limit = int(value)
if kind == "NPROC":
    # On top of what the account has by now; what is still to be reaped counts for the kernel,
    # so that there may be even less.
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            status = open(f"/proc/{{pid}}/status").read()
        except OSError:
            continue
        fields = dict(line.split(":", 1) for line in status.splitlines())
        if fields["Uid"].split()[0] == str(os.getuid()) and fields["State"].split()[0] != "Z":
            limit += int(fields["Threads"])
resource.setrlimit(getattr(resource, "RLIMIT_" + kind), (limit, limit))
os.execv({program!r}, [{program!r}, {configuration!r}, "luna"])
"""


class Limited:
    """A forced command under a limit that the test chooses for each request."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.data = _data(site)
        _allow(site, self.data, request_burst=1000)
        source = site.source
        self._choice = source.directory / "limit"
        program = source.directory / "limited"
        program.write_text(
            LIMITED.format(
                choice=str(self._choice),
                program=str(source.programs.source),
                configuration=str(source.configuration),
            )
        )
        program.chmod(0o755)
        site.peer("luna", str(program))
        self.repository = site.repository()
        self._number = 0

    def pull(self, kind: str, value: int, request: str = "create") -> tuple[Result, list[str]]:
        """A request under the limit ``value`` of ``kind``, and the events it left."""
        self._choice.write_text(f"{kind} {value}")
        self._number += 1
        before = len(self.site.source.audit())
        repository = None
        if request == "create":
            request = f"create {self.repository.path} a{self._number} {self.data}"
            repository = self.repository
        result = self.site.pull(request, repository)
        self.site.source.assert_nothing_left("luna" if repository else None)
        return result, [record["event"] for record in self.site.source.audit()[before:]]

    def succeeds_without(self) -> None:
        """The control: with room, the very next request succeeds, and nothing was damaged."""
        result, events = self.pull("NOFILE", 1024)
        assert (result.exit, events) == (0, ["start", "complete"]), result.errors
        assert f"a{self._number}" in self.repository.archives()
        self.site.source.assert_chain()


WHOLE = (["refused"], ["start", "complete"], ["answered"])
"""What one request may leave in the log."""


@pytest.fixture
def limited(site: Site) -> Limited:
    return Limited(site)


def test_descriptors_run_out(limited: Limited) -> None:
    """At each number of them some other step is the first to have none."""
    found = set()
    for most in range(8, 38, 3):
        result, events = limited.pull("NOFILE", most)
        assert events in WHOLE, (most, result.errors)
        if result.exit != 0:
            assert result.exit in (2, 71, 73, 75), (most, result.errors)
            assert "too many open files" in result.errors.lower(), (most, result.errors)
            assert "Traceback" not in result.errors or result.exit == 2
        found.add(result.exit)
    assert {0, 71} <= found
    # Fewer do not suffice to record anything; the linker is the first to say so.
    for most, code in ((3, 127), (4, 71), (6, 71)):
        result, events = limited.pull("NOFILE", most, "nonsense")
        assert (result.exit, events) == (code, []), result.errors
    limited.succeeds_without()


def test_a_machine_without_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENFILE: to bring it about for real would hit the whole machine."""

    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    log = AuditLog(str(tmp_path / "audit.jsonl"), sync=False)
    common = Common(session="0", client=None, key=None, address=None, port=None, pid=0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(AuditError, match="too many open files in system") as caught:
            log.append("refused", common, {})
    assert caught.value.hint == "too many files are open on this machine"
    log.append("refused", common, {})


def test_processes_run_out(limited: Limited) -> None:
    """No process for borg, none for the wrap, none for its threads."""
    found = []
    for more in range(40):
        result, events = limited.pull("NPROC", more)
        assert events == ["start", "complete"], (more, result.errors)
        found.append(result.exit)
        assert result.exit in (0, 2, 71), (more, result.errors)
        if result.exit != 0:
            said = ("Resource temporarily unavailable", "can't start new thread")
            assert any(words in result.errors for words in said), (more, result.errors)
        if found[-1] == 0 and more >= 5:
            break
    assert found[0] == 71
    assert found[-1] == 0
    result, events = limited.pull("NPROC", 0, "hello")
    assert (result.exit, events) == (71, ["refused"])
    limited.succeeds_without()


def test_sshd_has_no_process_for_the_request(site: Site) -> None:
    """Nothing of ours has started, so nothing of ours is on record; sshd's log has it."""
    data = _data(site)
    _allow(site, data)
    repository = site.repository()
    daemon = site.server.daemon_pid
    before = resource.prlimit(daemon, resource.RLIMIT_NPROC)
    # sshd itself is root's, to whom the limit does not apply.
    resource.prlimit(daemon, resource.RLIMIT_NPROC, (1, before[1]))
    try:
        result = site.pull(f"create {repository.path} a {data}", repository)
    finally:
        resource.prlimit(daemon, resource.RLIMIT_NPROC, before)
    assert result.exit in (254, 255), result.errors
    assert site.source.audit() == []
    # Its sshd had bound the socket before, and left it.
    assert site.source.socket("luna").exists()
    assert site.pull("hello").exit == 0
    _succeeds(site, repository, data, "after")


def test_memory_runs_out(limited: Limited) -> None:
    """In MB of address space: too few for the program, for borg to load, for its self-test."""
    found = []
    # Between 5 and 15 the interpreter fails before anything of ours has run, in many ways.
    for megabytes in (5, 15, 15.5, 16, 100):
        result, events = limited.pull("AS", int(megabytes * 1_000_000), "nonsense")
        found.append(result.exit)
        assert events == (["refused"] if result.exit == 64 else []), (megabytes, result.errors)
        assert "Traceback" not in result.errors
        # 255 is that of what loads the interpreter.
        assert result.errors.count("\n") == 1 or result.exit == 255
    assert (found[0], found[-1]) == (255, 64)
    assert set(found) == {255, 71, 64}
    for megabytes in (40, 80, 400):
        result, events = limited.pull("AS", megabytes * 1_000_000)
        assert events == ["start", "complete"], (megabytes, result.errors)
        assert result.exit == (0 if megabytes == 400 else 2), (megabytes, result.errors)
        if result.exit == 2:
            assert "MemoryError" in limited.site.source.audit()[-1]["error"]
    limited.succeeds_without()


# Peers that take their time, and ends at any moment

TALKER = """\
#!/usr/bin/python3 -I
import os, time
os.set_blocking(2, False)
last = time.monotonic()
while time.monotonic() < last + 1:
    try:
        os.write(2, b"x" * 4096)
        last = time.monotonic()
    except BlockingIOError:
        time.sleep(0.01)
raise SystemExit(2)
"""


def test_a_peer_that_reads_nothing_keeps_no_process(site: Site) -> None:
    """Its ssh lives on, so nothing tells that nobody reads; borg's words and ours are given up."""
    data = _data(site)
    talker = site.source.directory / "talker"
    talker.write_text(TALKER)
    talker.chmod(0o755)
    site.source.write_whitelist({"luna": {"paths": [str(data)]}}, runtime={"borg": str(talker)})
    repository = site.repository()
    peer = site.peer()
    with peer.listening(repository) as listener:
        pull = peer.start(f"create --log-json {repository.path} a {data}", listener)
        until(lambda: site.source.audit(event="complete"), seconds=60, what="the end on record")
        until(lambda: not pull.source_processes(), seconds=SECONDS, what="the end of the processes")
        assert pull.ssh.poll() is None, "the control: the peer was there all the time"
        pull.kill()
        pull.wait()
    (complete,) = site.source.audit(event="complete")
    assert (complete["result"], complete["exit"]) == ("error", 2)
    _allow(site, data)
    _succeeds(site, repository, data, "after")


def test_ended_at_any_moment(site: Site) -> None:
    """By SIGTERM in order, by SIGKILL not: either way each start has one end at last, and the log
    is whole. A signal amid a record does not tear it."""
    data = site.source.tree()
    (data / "file").touch()
    rules = {"paths": [str(data)], "request_burst": 1000}
    site.source.write_whitelist({"luna": rules}, runtime={"borg": "/usr/bin/true"})
    source, chance = site.source, random.Random(5)
    become = ["--reuid", str(site.account.uid), "--regid", str(site.account.gid), "--clear-groups"]

    def request(number: signal.Signals | None) -> int:
        source.socket("luna").unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as forwarded:
            forwarded.bind(str(source.socket("luna")))
            forwarded.listen()
            source.give(source.socket("luna"))
            program = subprocess.Popen(
                ["setpriv", *become, source.programs.source, source.configuration, "luna"],
                env={"SSH_ORIGINAL_COMMAND": f"create /r a {data}"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            if number is not None:
                time.sleep(chance.uniform(0.005, 0.08))
                program.send_signal(number)
            return program.wait(SECONDS)

    assert request(None) == 0
    ends = [request(number) for _ in range(25) for number in (signal.SIGTERM, signal.SIGKILL)]
    assert request(None) == 0, "the control"
    assert set(ends) <= {0, 2, 75, -signal.SIGKILL, -signal.SIGTERM}
    events: dict[str, list[str]] = {}
    for record in source.audit():
        events.setdefault(record["session"], []).append(record["event"])
    assert [found for found in events.values() if found not in (*WHOLE, ["complete"])] == []
    assert verify_files([str(source.audit_file)], rotated=False, expect=None).intact()


def test_killed_between_the_record_of_its_end_and_its_note(site: Site) -> None:
    """The note then speaks of a run whose end is known; the control is one whose end is not."""
    data = _data(site)
    _allow(site, data)
    repository = site.repository()
    _succeeds(site, repository, data, "a")
    known = site.source.audit()[0]["session"]
    (lock,) = (site.source.home / "locks/luna").glob("*.lock")
    for session in (known, "0b0f2a5e-9a57-4a39-8a4e-0f0d3c1b7a11"):
        lock.write_text(f"create since 2026-11-21T00:00:00Z, pid 1, session {session}\n")
        _succeeds(site, repository, data, f"after-{session}")
    ends = [(end["session"], end["result"]) for end in site.source.audit(event="complete")]
    assert ends.count((known, "success")) == 1
    assert [end for end in ends if end[1] == "interrupted"] == [
        ("0b0f2a5e-9a57-4a39-8a4e-0f0d3c1b7a11", "interrupted")
    ]


# The clock

HOUR = 3600
YEAR = 366 * 24 * HOUR


def _clock(site: Site) -> Clock:
    """That of forced commands of luna's, without a capability; the machine's own stays."""
    clock = Clock(site.source.directory)
    source = site.source
    words = [*clock.words(), source.programs.source, source.configuration, "luna"]
    site.peer("luna", " ".join(map(str, words)))
    return clock


def _year(record: dict[str, str]) -> int:
    return int(record["time"][:4])


@pytest.mark.parametrize("jump", [YEAR, -YEAR], ids=["forward", "back"])
def test_the_clock_jumps_while_a_run_is_under_way(make_site: SiteMaker, jump: int) -> None:
    site = make_site(SOURCE_14)
    data = _data(site)
    _allow(site, data)
    clock = _clock(site)
    repository = site.repository()
    with site.peer().listening(repository, hold_after=HELD_AT) as listener:
        pull = site.peer().start(f"create {repository.path} a {data}", listener)
        listener.held()
        clock.jump_to(jump)
        listener.release()
        assert pull.wait().exit == 0
    start, complete = site.source.audit()
    assert _year(complete) - _year(start) == (1 if jump > 0 else -1), "the control: it jumped"
    assert (complete["result"], complete["seq"]) == ("success", start["seq"] + 1)
    assert 0 < complete["duration"] < SECONDS
    _succeeds(site, repository, data, "in-between")
    clock.jump_to(0)
    _succeeds(site, repository, data, "after")
    assert verify_files([str(site.source.audit_file)], rotated=False, expect=None).intact()


def test_the_clock_jumps_between_requests(make_site: SiteMaker) -> None:
    """Setting it back neither fills the bucket of tokens nor locks a client out."""
    site = make_site(SOURCE_14)
    _allow(site, site.source.tree(), request_burst=2, requests_per_hour=2)
    clock = _clock(site)

    def codes(number: int) -> list[int]:
        return [site.pull("nonsense").exit for _ in range(number)]

    assert codes(3) == [64, 64, 75]
    clock.jump_to(-YEAR)
    assert codes(2) == [75, 75]
    clock.jump_to(-YEAR + HOUR)
    assert codes(3) == [64, 64, 75]
    clock.jump_to(YEAR)
    assert codes(3) == [64, 64, 75]
    clock.jump_to(0)
    assert codes(1) == [75]
    clock.jump_to(HOUR)
    assert codes(1) == [64]
    site.source.assert_chain()
