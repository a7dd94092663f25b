"""What rules keep is what borg's own prune would keep, if it could believe the dates."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from borg_pull.pull.config import Retention
from borg_pull.pull.retention import Recorded, kept, surely_kept
from tests.harness.made_archive import INTERPRETER

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)

# As borg's do_prune goes about it, with its own functions.
BORGS = """\
import json, sys, types
from datetime import datetime, timezone
from borg.helpers import interval, prune_split, prune_within, PRUNING_PATTERNS
import borg.helpers.misc as misc
for line in sys.stdin:
    now, times, rules = json.loads(line)
    class Clock(datetime):
        @classmethod
        def now(cls, zone=None):
            return datetime.fromtimestamp(now, zone)
    misc.datetime = Clock
    archives = [
        types.SimpleNamespace(id=number, ts=datetime.fromtimestamp(moment, timezone.utc))
        for number, moment in enumerate(times)
    ]
    archives.sort(key=lambda one: one.ts, reverse=True)
    because = {}
    if "keep_within" in rules:
        prune_within(archives, interval(rules["keep_within"]), because)
    rules["keep_secondly"] = rules.get("keep_last")
    for rule in PRUNING_PATTERNS:
        most = rules.get(f"keep_{rule}")
        if most is not None:
            prune_split(archives, rule, most, because)
    print(json.dumps(sorted(because)), flush=True)
"""


@pytest.fixture(scope="module", params=["UTC", "Europe/Berlin", "Pacific/Kiritimati"])
def borg(request: pytest.FixtureRequest) -> Iterator[tuple[ZoneInfo, Any]]:
    """A time zone, and what borg keeps of times by rules there."""
    environment = {"TZ": request.param, "HOME": "/nonexistent", "LC_ALL": "C.UTF-8"}
    with subprocess.Popen(
        [INTERPRETER, "-I", "-c", BORGS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(times: list[int], rules: dict[str, Any]) -> set[int]:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps([NOW.timestamp(), times, rules]) + "\n")
            process.stdin.flush()
            return set(json.loads(process.stdout.readline()))

        yield ZoneInfo(request.param), ask
        process.stdin.close()
        assert process.wait(20) == 0


COUNTS = ("last", "minutely", "hourly", "daily", "weekly", "monthly", "yearly")
RULES = st.fixed_dictionaries(
    {},
    optional={
        **{f"keep_{name}": st.integers(1, 9) for name in COUNTS},
        "keep_within": st.builds("{}{}".format, st.integers(1, 60), st.sampled_from("Hdwmy")),
    },
).filter(bool)
TIMES = st.lists(
    st.one_of(
        st.integers(0, 3 * 365 * 86400),
        st.integers(0, 200).map(lambda days: days * 86400 + 1),
        st.integers(0, 500).map(lambda hours: hours * 3600),
    ).map(lambda ago: int(NOW.timestamp()) - ago),
    unique=True,
    max_size=60,
).map(sorted)


def test_the_rules_are_borgs(borg: tuple[ZoneInfo, Any]) -> None:
    zone, ask = borg

    @settings(max_examples=150, deadline=None)
    @given(TIMES, RULES)
    @example([int(NOW.timestamp()) - 86400 * day for day in range(40)][::-1], {"keep_daily": 7})
    def same(times: list[int], rules: dict[str, Any]) -> None:
        archives = recorded(times)
        ours = kept(archives, Retention(**rules), now=NOW, zone=zone)
        assert ours == {str(number) for number in ask(times, rules)} | {
            one.id for one in archives[-1:]
        }

    same()


def recorded(times: list[int], *, is_good: bool = True) -> list[Recorded]:
    return [
        Recorded(str(number), f"a-{number}", datetime.fromtimestamp(moment, UTC), is_good=is_good)
        for number, moment in enumerate(times)
    ]


def test_the_last_run_s_archive_stays_whatever_the_clock_said() -> None:
    ago = [10, 20, 30, 4000]
    archives = recorded([int(NOW.timestamp()) - 86400 * days for days in ago])
    assert kept(archives, Retention(keep_daily=2), now=NOW, zone=UTC) == {"0", "1", "3"}


def test_those_of_failed_runs_take_no_place() -> None:
    good = recorded([int(NOW.timestamp()) - 86400 * day for day in (9, 8, 7)])
    bad = [
        Recorded(f"bad-{day}", "b", NOW - timedelta(days=day), is_good=False)
        for day in range(6, 0, -1)
    ]
    rules = Retention(keep_daily=2)
    waiting = {one.id for one in bad}
    assert kept([*good, *bad], rules, now=NOW, zone=UTC) == {"1", "2"} | waiting
    assert kept(bad, rules, now=NOW, zone=UTC) == waiting
    new = Recorded("new", "n", NOW, is_good=True)
    assert kept([*good, *bad, new], rules, now=NOW, zone=UTC) == {"2", "new"}


def test_an_interval_beyond_all_time_keeps_all() -> None:
    archives = recorded([0, 1000])
    assert len(kept(archives, Retention(keep_within="100000y"), now=NOW)) == 2


def test_what_is_surely_kept_is_kept_anywhere() -> None:
    times = [int(NOW.timestamp()) - 3600 * hours for hours in range(200)][::-1]
    archives, rules = recorded(times), Retention(keep_daily=3, keep_weekly=2)
    sure = surely_kept(archives, rules, now=NOW)
    assert archives[-1].id in sure
    for name in ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu"):
        assert sure <= kept(archives, rules, now=NOW, zone=ZoneInfo(name))
    once_a_day = recorded([int(NOW.timestamp()) - 86400 * day for day in range(30)][::-1])
    assert len(surely_kept(once_a_day, Retention(keep_daily=7), now=NOW)) == 7
