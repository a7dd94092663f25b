"""Which archives a job's rules keep, by this host's own record of when they were pulled.

The rules are those of borg's prune (its docs, "borg prune"). They are not left to borg, because it
goes by what the repository says: a source that was taken over writes archives of any date there,
and they would take the place of those that are to be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from itertools import product

from borg_pull.pull.config import Retention

_HOURS = {"H": 1, "d": 24, "w": 24 * 7, "m": 24 * 31, "y": 24 * 365}
"""Of borg's units of an interval (its helpers/parseformat.py)."""
_LATE = timedelta(minutes=2)


@dataclass(frozen=True)
class Recorded:
    """An archive on record."""

    id: str
    name: str
    started: datetime
    """When the run began that made it, by this host's clock."""
    is_good: bool
    """Whether that run did not fail, and its archive is no smaller than may be."""


def _week(moment: datetime) -> tuple[float, ...]:
    return tuple(moment.isocalendar()[:2])


# In borg's order: what one rule keeps, the next ones do not count.
_PERIODS: tuple[tuple[str, Callable[[datetime], tuple[float, ...]]], ...] = (
    ("keep_last", lambda moment: (moment.timestamp(),)),
    ("keep_minutely", lambda moment: tuple(moment.timetuple()[:5])),
    ("keep_hourly", lambda moment: tuple(moment.timetuple()[:4])),
    ("keep_daily", lambda moment: tuple(moment.timetuple()[:3])),
    ("keep_weekly", _week),
    ("keep_monthly", lambda moment: tuple(moment.timetuple()[:2])),
    ("keep_yearly", lambda moment: tuple(moment.timetuple()[:1])),
)


def kept(
    archives: Sequence[Recorded],
    rules: Retention,
    *,
    now: datetime,
    zone: tzinfo | None = None,
    late: timedelta = timedelta(),
) -> set[str]:
    """The ids that ``rules`` keep of ``archives``, which stand in the order of their runs.

    ``zone`` is the one whose days are counted, local time without; ``late`` is added to all times.
    Those that are not good take the place of none: they stay until a good one follows. The last
    good one is always kept, whatever the clock said.
    """
    good = [one for one in archives if one.is_good]
    since = archives.index(good[-1]) if good else 0
    return _kept(good, rules, now, zone, late) | {one.id for one in archives[since:]}


def _kept(
    archives: Sequence[Recorded],
    rules: Retention,
    now: datetime,
    zone: tzinfo | None,
    late: timedelta,
) -> set[str]:
    # Of those of one moment, as a clock that was set back makes them, the later run's comes first.
    in_order = sorted(
        (one.started.astimezone(zone) + late, number, one.id) for number, one in enumerate(archives)
    )
    newest_first = [(moment, id_) for moment, _number, id_ in reversed(in_order)]
    found: set[str] = set()
    if rules.keep_within is not None:
        begin = _before(now, rules.keep_within)
        found.update(id_ for moment, id_ in newest_first if moment > begin)
    for rule, period_of in _PERIODS:
        most = getattr(rules, rule)
        if most is not None:
            found |= _one_a_period(newest_first, most, period_of, found)
    return found | {one.id for one in archives[-1:]}


def _before(now: datetime, interval: str) -> datetime:
    try:
        return now - timedelta(hours=int(interval[:-1]) * _HOURS[interval[-1]])
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)


def _one_a_period(
    newest_first: Iterable[tuple[datetime, str]],
    most: int,
    period_of: Callable[[datetime], tuple[float, ...]],
    done: set[str],
) -> set[str]:
    found: set[str] = set()
    last: tuple[float, ...] | None = None
    oldest: str | None = None
    for moment, id_ in newest_first:
        oldest = id_
        period = period_of(moment)
        if period == last:
            continue
        last = period
        if id_ not in done:
            found.add(id_)
            if len(found) == most:
                return found
    # Too few so far: the oldest is kept until there are enough.
    if oldest is not None and oldest not in done:
        found.add(oldest)
    return found


def surely_kept(archives: Sequence[Recorded], rules: Retention, *, now: datetime) -> set[str]:
    """The ids that ``rules`` keep wherever on earth, and up to two minutes later, they are read."""
    zones = [timezone(timedelta(minutes=minutes)) for minutes in range(-12 * 60, 14 * 60 + 1, 15)]
    found = {one.id for one in archives}
    for zone, late in product(zones, (timedelta(), _LATE)):
        found &= kept(archives, rules, now=now, zone=zone, late=late)
    return found
