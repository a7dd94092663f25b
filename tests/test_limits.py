"""Places among the sessions under way, and buckets of tokens: who gets one and who does not."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from borg_pull.audit import new_session
from borg_pull.errors import LimitedError, SystemRefusedError
from borg_pull.source import limits
from borg_pull.source.limits import RECORD_BYTES, draw
from borg_pull.source.places import LiveSession, live
from tests.harness.wait import until

SESSION = "0b0f2a5e-9a57-4a39-8a4e-0f0d3c1b7a11"
HOUR = 3_600_000
NOW = 1_795_219_200_000
SECONDS = 20


# The bucket, with the time given


def drawn(content: bytes, now: int, count: int, per_hour: int = 60, burst: int = 5) -> bytes:
    """The bucket after ``count`` requests that are all let in."""
    for _ in range(count):
        content, wait = draw(content, now, per_hour, burst)
        assert wait == 0
    return content


def empty(now: int = NOW, per_hour: int = 60, burst: int = 5) -> bytes:
    content = drawn(b"", now, burst, per_hour, burst)
    assert draw(content, now, per_hour, burst)[1] > 0
    return content


def test_a_new_bucket_is_full_and_then_empty() -> None:
    _, wait = draw(empty(), NOW, 60, 5)
    assert wait == HOUR // 60


def test_time_puts_back_exactly_what_it_should() -> None:
    content = empty()
    _, wait = draw(content, NOW + 59_999, 60, 5)
    assert wait == 1
    content = drawn(content, NOW + 60_000, 1)
    assert draw(content, NOW + 60_000, 60, 5)[1] == 60_000


@pytest.mark.parametrize("per_hour", [1, 7, 600, 3599, 1_000_000])
def test_refused_requests_cost_nothing_and_lose_no_time(per_hour: int) -> None:
    """However often a client asks in between, it gets what the rate says and no more."""
    content, now, let_in = empty(per_hour=per_hour), NOW, 0
    step = max(1, HOUR // per_hour // 50 + 1)
    while now < NOW + 20 * HOUR // per_hour:
        now += step
        content, wait = draw(content, now, per_hour, 5)
        let_in += wait == 0
    assert let_in in (19, 20)


def test_the_time_that_is_told_is_the_time_it_takes() -> None:
    for per_hour in (1, 7, 60, 3599, 1_000_000):
        content = empty(per_hour=per_hour)
        _, wait = draw(content, NOW, per_hour, 5)
        assert draw(content, NOW + wait - 1, per_hour, 5)[1] == 1
        assert draw(content, NOW + wait, per_hour, 5)[1] == 0


def test_a_bucket_holds_no_more_than_the_burst() -> None:
    content = drawn(empty(), NOW + 1000 * HOUR, 5)
    assert draw(content, NOW + 1000 * HOUR, 60, 5)[1] > 0


def test_a_clock_that_jumps_forward_fills_the_burst_at_most() -> None:
    content = drawn(empty(), NOW * 100, 5)
    assert draw(content, NOW * 100, 60, 5)[1] > 0


@pytest.mark.parametrize("back", [1, HOUR, NOW])
def test_a_clock_that_jumps_back_gives_nothing_and_locks_nobody_out(back: int) -> None:
    content, wait = draw(empty(), NOW - back, 60, 5)
    assert wait == HOUR // 60
    # It fills from the new time on, and does not wait for the old.
    drawn(content, NOW - back + wait, 1)


def test_a_clock_that_jumps_back_takes_nothing_away() -> None:
    content = drawn(b"", NOW, 2)
    content = drawn(content, NOW - HOUR, 3)
    assert draw(content, NOW - HOUR, 60, 5)[1] == HOUR // 60


def test_a_clock_that_jumps_to_and_fro_by_seconds_gives_nothing_but_those() -> None:
    content = empty()
    let_in = 0
    for _ in range(100):
        for now in (NOW, NOW + 1000):
            content, wait = draw(content, now, 60, 5)
            let_in += wait == 0
    assert let_in <= 100 * 1000 * 60 // HOUR + 1


DAMAGED = [
    b"\n",
    b"x",
    b"\0" * 42,
    empty()[:-1],
    empty()[1:],
    b"%019d %020d\n" % (0, 0),
    b"-%019d %020d\n" % (1, 0),
    b"+%019d %020d\n" % (1, 1),
    " ٣".encode() * 14,
    b"9" * 42,
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_bucket_is_empty_and_recovers(content: bytes) -> None:
    content, wait = draw(content, NOW, 60, 5)
    assert wait == HOUR // 60
    drawn(content, NOW + wait, 1)


def test_numbers_without_measure_are_held_to_it() -> None:
    """Well-formed, but not what this program writes: no more than a burst comes of it."""
    content = drawn(b"%020d %020d\n" % (10**20 - 1, 10**20 - 1), NOW, 5)
    assert draw(content, NOW, 60, 5)[1] == HOUR // 60


def test_a_lower_burst_holds_at_once() -> None:
    content = drawn(drawn(b"", NOW, 1, burst=60), NOW, 3, burst=3)
    assert draw(content, NOW, 60, 3)[1] > 0


# Places and buckets in files


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "limits").mkdir(mode=0o700)
    return tmp_path


def claim(home: Path, client: str = "luna", *, most: int = 64, own: int = 8) -> limits.Place:
    return limits.claim(str(home), client, SESSION, most=most, most_of_client=own)


# Claims in processes of their own: locks of one process do not exclude each other.
HOLDER = """
import sys, time
from borg_pull.errors import BorgPullError
from borg_pull.source import limits
home, client, session, most, own, verb, report = sys.argv[1:]
try:
    place = limits.claim(home, client, session, most=int(most), most_of_client=int(own))
except BorgPullError as error:
    print(error.exit_code, error.line(), flush=True)
    sys.exit()
if verb != "-":
    place.tell(verb, report)
print("held", flush=True)
time.sleep(1000)
"""

Hold = Callable[..., "Holder"]


class Holder:
    def __init__(self, process: subprocess.Popen[str], session: str) -> None:
        self.process = process
        self.session = session
        assert process.stdout is not None
        self.said = process.stdout.readline().rstrip("\n")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture
def hold(home: Path) -> Iterator[Hold]:
    holders: list[Holder] = []

    def start(
        client: str = "luna", *, most: int = 64, own: int = 8, verb: str = "-", report: str = "-"
    ) -> Holder:
        session = new_session()
        numbers = (str(most), str(own))
        arguments = [str(home), client, session, *numbers, verb, report]
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, *arguments], stdout=subprocess.PIPE, text=True
        )
        holders.append(Holder(process, session))
        return holders[-1]

    yield start
    for holder in holders:
        holder.kill()


def sessions(home: Path) -> list[LiveSession]:
    return live(str(home))


def test_a_place_is_a_lock_and_a_line(home: Path, hold: Hold) -> None:
    report = f"{home}/locks/luna/0123.report"
    first, second = hold(), hold("nova", verb="create", report=report.replace("luna", "nova"))
    found = {one.pid: one for one in sessions(home)}
    assert set(found) == {first.process.pid, second.process.pid}
    one, other = found[first.process.pid], found[second.process.pid]
    assert (one.client, one.verb, one.session, one.report) == ("luna", None, first.session, None)
    assert (other.client, other.verb) == ("nova", "create")
    assert other.report == f"{home}/locks/nova/0123.report"
    since = time.mktime(time.strptime(one.since, "%Y-%m-%dT%H:%M:%SZ")) - time.timezone
    assert abs(time.time() - since) < 60
    content = (home / "limits/sessions").read_bytes()
    assert len(content) == 2 * RECORD_BYTES
    assert content[RECORD_BYTES - 1 :: RECORD_BYTES] == b"\n\n"
    assert content[:RECORD_BYTES].rstrip(b" \n").endswith(f"{first.session} -".encode())


def test_where_nobody_has_been_nobody_is(tmp_path: Path) -> None:
    assert sessions(tmp_path) == []


def test_a_place_is_free_again_after_kill_9_and_taken_by_the_next(home: Path, hold: Hold) -> None:
    holders = [hold(own=2), hold(own=2)]
    refused = hold(own=2)
    assert refused.said.startswith("75 client luna has 2 sessions under way, which is all")
    holders[0].kill()
    assert [one.session for one in sessions(home)] == [holders[1].session]
    again = hold(own=2)
    assert again.said == "held"
    assert (home / "limits/sessions").stat().st_size == 2 * RECORD_BYTES
    assert {one.session for one in sessions(home)} == {holders[1].session, again.session}


def test_the_refusal_says_since_when_and_when_to_come_back(home: Path, hold: Hold) -> None:
    hold(own=1)
    (since,) = (one.since for one in sessions(home))
    hold("nova")
    assert hold(own=1).said == (
        "75 client luna has 1 session under way, which is all it may have "
        f"(the longest since {since}); try again in 60 seconds"
    )


def test_all_places_of_the_host_are_taken(hold: Hold) -> None:
    held = [hold(name, most=2) for name in ("luna", "nova")]
    assert [one.said for one in held] == ["held", "held"]
    # Of others it tells nothing.
    assert hold("vega", most=2).said == (
        "75 this host has 2 sessions under way, which is all it may have; try again in 60 seconds"
    )
    held[0].kill()
    assert hold("vega", most=2).said == "held"


def test_one_client_cannot_take_the_places_of_others(hold: Hold) -> None:
    flood = [hold(own=2, most=3) for _ in range(5)]
    assert [one.said[:2] for one in flood] == ["he", "he", "75", "75", "75"]
    assert hold("nova", own=2, most=3).said == "held"


def test_who_is_refused_by_the_host_gives_its_own_place_back(home: Path, hold: Hold) -> None:
    other = hold("nova", most=1)
    with pytest.raises(LimitedError):
        claim(home, most=1, own=1)
    other.kill()
    assert hold(most=1, own=1).said == "held"


def test_a_client_called_as_the_table(home: Path, hold: Hold) -> None:
    assert hold("sessions").said == hold("sessions.limits").said == "held"
    assert [one.client for one in sessions(home)] == ["sessions", "sessions.limits"]


def test_a_holder_that_has_not_told_yet_is_not_missed(home: Path) -> None:
    """Between the lock and the line: with the line of an earlier one there, and with none."""
    path = home / "limits/sessions"
    path.write_bytes(f"1 nova create 2026-11-21T00:00:00Z {SESSION} -".encode())
    script = (
        "import fcntl, sys, time\n"
        "file = open(sys.argv[1], 'r+')\n"
        "for place in (0, 7): fcntl.lockf(file, fcntl.LOCK_EX, 1, place * 512)\n"
        "print(flush=True)\n"
        "time.sleep(1000)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        found = sessions(home)
        holder.kill()
    assert [(one.pid, one.client, one.session) for one in found] == [(holder.pid, "-", "-")] * 2


FORGED = [
    f"PID luna create 2026-11-21T00:00:00Z {SESSION}",
    f"PID lu/na create 2026-11-21T00:00:00Z {SESSION} -",
    f"PID luna \x1b[2J 2026-11-21T00:00:00Z {SESSION} -",
    f"PID luna create yesterday {SESSION} -",
    "PID luna create 2026-11-21T00:00:00Z session -",
    f"1 luna create 2026-11-21T00:00:00Z {SESSION} -",
]


@pytest.mark.parametrize("line", FORGED)
def test_what_was_written_by_another_program_is_not_shown(
    home: Path, hold: Hold, line: str
) -> None:
    pid = hold().process.pid
    forged = line.replace("PID", str(pid)).encode()
    with (home / "limits/sessions").open("r+b") as file:
        file.write(forged.ljust(RECORD_BYTES - 1) + b"\n")
    (shown,) = sessions(home)
    assert (shown.pid, shown.client, shown.verb, shown.report) == (pid, "-", None, None)


@pytest.mark.parametrize("report", ["/etc/shadow", "{home}/locks/nova/x", "{home}/locks/luna/\x1b"])
def test_a_report_is_one_of_the_client_s_own(home: Path, hold: Hold, report: str) -> None:
    hold(verb="create", report=report.format(home=home))
    (shown,) = sessions(home)
    assert (shown.verb, shown.report) == ("create", None)


def test_a_report_too_long_to_be_told(home: Path, hold: Hold) -> None:
    assert hold(verb="create", report=f"{home}/locks/luna/{'x' * 500}").said == "held"
    (shown,) = sessions(home)
    assert (shown.client, shown.verb, shown.report) == ("luna", "create", None)


def test_many_places(home: Path) -> None:
    """Gaps, and far more locks than a range of the kernel's answers at once."""
    script = (
        "import fcntl, sys, time\n"
        "file = open(sys.argv[1], 'w')\n"
        "for place in range(0, 3000, 3): fcntl.lockf(file, fcntl.LOCK_EX, 1, place * 512)\n"
        "fcntl.lockf(file, fcntl.LOCK_EX, 100, 5000 * 512)\n"
        "print(flush=True)\n"
        "time.sleep(1000)\n"
    )
    path = home / "limits/sessions"
    with subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        found = sessions(home)
        holder.kill()
    assert len(found) == 1000


def take(home: Path, client: str = "luna", per_hour: int = 1, burst: int = 3) -> None:
    claim(home, client).take_token(per_hour, burst)


def test_tokens_are_counted_and_told_of(home: Path) -> None:
    for _ in range(3):
        take(home)
    with pytest.raises(LimitedError) as caught:
        take(home)
    assert caught.value.exit_code == 75
    seconds = int(caught.value.line().rpartition(" in ")[2].removesuffix(" seconds"))
    assert 3500 < seconds <= 3600
    assert caught.value.message == (
        "client luna has made too many requests (1 an hour are let in, 3 at once)"
    )
    take(home, "nova")


def test_one_second_is_one_second(home: Path) -> None:
    take(home, per_hour=3600, burst=1)
    with pytest.raises(LimitedError) as caught:
        take(home, per_hour=3600, burst=1)
    assert caught.value.hint == "try again in 1 second"


def _bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as planted, contextlib.chdir(path.parent):
        planted.bind(path.name)


def test_a_socket_planted_in_place_of_a_file_goes(home: Path) -> None:
    _bind(home / "limits/luna.limits")
    _bind(home / "limits/sessions")
    take(home)
    assert (home / "limits/luna.limits").is_file()
    assert (home / "limits/luna.limits").stat().st_mode & 0o777 == 0o600
    assert (home / "limits/sessions").is_file()


@pytest.mark.parametrize("name", ["luna.limits", "sessions"])
@pytest.mark.parametrize("kind", ["link", "directory", "fifo"])
def test_what_cannot_be_counted_is_refused(home: Path, name: str, kind: str) -> None:
    path = home / "limits" / name
    target = home / "target"
    target.write_text("untouched")
    if kind == "link":
        path.symlink_to(target)
    elif kind == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(SystemRefusedError, match=f"cannot use .*{name}: ") as caught:
        claim(home)
    assert caught.value.exit_code == 71
    if name == "sessions" and kind == "link":
        with pytest.raises(SystemRefusedError):
            sessions(home)
    assert target.read_text() == "untouched"


def test_no_room_for_the_table_or_the_bucket(home: Path) -> None:
    """A full disk shows as a write that fails; here a limit on file sizes does the same."""
    place = claim(home)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(SystemRefusedError, match=r"cannot use .*luna\.limits: File too large"):
            place.take_token(1, 1)
        with pytest.raises(SystemRefusedError, match=r"cannot use .*sessions: File too large"):
            claim(home)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    place.take_token(1, 1)


def test_a_bucket_somebody_sits_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LOCK_SECONDS", 0.05)
    place = claim(home)
    path = home / "limits/luna.limits"
    script = (
        "import fcntl, sys, time\n"
        "file = open(sys.argv[1], 'r+')\n"
        "fcntl.lockf(file, fcntl.LOCK_EX, 1)\n"
        "print(flush=True)\n"
        "time.sleep(1000)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(SystemRefusedError, match="cannot use"):
            place.take_token(1, 1)
        holder.kill()
    until(lambda: _is_free(path), seconds=SECONDS, what="the lock to be free")
    place.take_token(1, 1)


def _is_free(path: Path) -> bool:
    with path.open("r+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        except BlockingIOError:
            return False
    return True


DRAWERS = """
import sys
from borg_pull.errors import LimitedError
from borg_pull.source import limits
place = limits.claim(sys.argv[1], "luna", sys.argv[2], most=64, most_of_client=64)
print(flush=True)
sys.stdin.readline()
taken = 0
for _ in range(50):
    try:
        place.take_token(1, 100)
        taken += 1
    except LimitedError:
        pass
print(taken)
"""


def test_many_at_once_get_no_more_than_one_after_the_other(home: Path) -> None:
    drawers = [
        subprocess.Popen(
            [sys.executable, "-c", DRAWERS, str(home), SESSION],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    for drawer in drawers:
        assert drawer.stdout is not None
        assert drawer.stdout.readline() == "\n"
    taken = [int(drawer.communicate("\n")[0]) for drawer in drawers]
    assert sum(taken) == 100
