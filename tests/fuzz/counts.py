"""What the account's own files say of the requests under way and of how many there have been."""

from __future__ import annotations

from collections.abc import Iterable

from borg_pull.source import limits, places
from borg_pull.source.request import VERBS
from tests.properties.checks import check_line

from .target import SEPARATOR, Target, parts

HOME = "/var/lib/x"
PID = 12
SESSION = b"3b241101-e2bb-4255-8caf-4136c566a962"
NOW = 1_795_222_312_000
RATES = ((600, 60), (1, 1), (1_000_000, 1_000_000))
TOKEN = 3_600_000


def check(data: bytes) -> str:
    """A client's bucket, then a place in the table of sessions."""
    bucket, place = parts(data, 2)
    for rate, burst in RATES:
        content, wait = limits.draw(bucket, NOW, rate, burst)
        assert len(content) == limits.BUCKET_BYTES
        assert content[21:] == b"%020d\n" % NOW
        credit = int(content[:20])
        assert 0 <= credit <= burst * TOKEN
        # Never longer than one token takes, and then it is there, however the bucket was damaged.
        assert 0 <= wait <= -(-TOKEN // rate)
        assert wait == 0 or limits.draw(content, NOW + wait, rate, burst)[1] == 0
    told = places._told(place, PID, HOME)
    if told is None:
        return "nothing"
    # The admin's program, as root, prints it and opens the report.
    for text in (told.client, told.since, told.session, told.report or ""):
        check_line(text)
    assert told.pid == PID
    assert told.verb is None or told.verb in VERBS
    if told.report is None:
        return "session"
    directory, _, name = told.report.rpartition("/")
    assert directory == f"{HOME}/locks/{told.client}"
    assert name not in ("", ".", "..")
    return "run"


def seeds() -> Iterable[bytes]:
    """Places and buckets as they are."""
    bucket = b"%020d %020d\n" % (5 * TOKEN, NOW - 1000)
    place = b"12 luna create 2026-11-21T00:00:00Z " + SESSION
    yield SEPARATOR.join((bucket, place + b" /var/lib/x/locks/luna/0123456789abcdef.report \n"))
    yield SEPARATOR.join((bucket, place.replace(b"create", b"-") + b" -  \n"))
    yield SEPARATOR.join((b"%020d %020d\n" % (0, NOW * 2), place))
    yield b"9" * 20 + b" " + b"9" * 20 + b"\n"


TARGET = Target(
    name="limits",
    check=check,
    reaches={"borg_pull.source.limits": ("draw", "_parse"), "borg_pull.source.places": ("_told",)},
    weight=1,
    seeds=seeds,
    dictionary=(
        b" - ", b" create ", b" hello ", b"/var/lib/x/locks/luna/", b"/../", b"/./", b"\n",
        b"\xc2\x9b", b"0" * 20, b"9" * 20,
    ),
    max_length=1024,
)  # fmt: skip
