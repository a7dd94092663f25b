"""``borg-pull-admin sessions``: the requests under way on this host, and the ending of them.

What is listed are the places that forced commands hold in the table of ``source.limits``. Their
files are the account's, so they are read, and signals are sent, as the account. With ``--json``
the answer is one `Report`.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Literal, TypedDict

import click

from borg_pull import accounts
from borg_pull.admin import host
from borg_pull.admin.audit import duration_text, size_text
from borg_pull.errors import printable
from borg_pull.lockdown import read
from borg_pull.output import print_table, put
from borg_pull.source import places, report
from borg_pull.source.places import LiveSession
from borg_pull.source.session import GRACE

END_SECONDS = GRACE + 10.0
"""How long sessions are waited for: borg's grace, then its output handed over and its end
recorded."""

_UNKNOWN = "-"  # in place of the name and the number of one that has not told them
_LOOK_SECONDS = 0.1
_TELL_SECONDS = 5.0
_AT_ONCE = 256  # descriptors of processes; 1,024 of all kinds are the usual limit


class Session(TypedDict):
    """A request under way, in a `Report`."""

    client: str | None
    """Null, like verb, since and session, for one that has only just come."""
    verb: str | None
    since: str | None
    """RFC 3339."""
    age: int | None
    """Seconds."""
    bytes_to_peer: int | None
    """So far, as of the last five seconds; null as long as borg has no connection. By the word of
    borg's side of it."""
    bytes_from_peer: int | None
    pid: int | None
    """Null where the kernel cannot name it: of another pid namespace, or no forced command."""
    session: str | None
    """As in the audit records."""


class Report(TypedDict):
    """The answer of ``sessions --json``."""

    type: Literal["sessions"]
    version: Literal[1]
    config: str
    locked: bool
    """Whether the host is locked down, so that nothing is added."""
    sessions: list[Session]


_SCHEMA = """\
--json: an object of type "sessions", version 1, config, locked, and sessions, a list of objects
with client, verb, since, age (seconds), bytes_to_peer, bytes_from_peer, pid, session.
"""


@click.command(epilog=_SCHEMA, short_help="Show the requests under way.")
@click.argument("config", type=click.Path(readable=False))
@click.option(
    "--user",
    metavar="ACCOUNT",
    help="Account of the forced command.  [default: the owner of home or socket_dir]",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def sessions(config: str, user: str | None, as_json: bool) -> None:
    """Show the requests under way under the whitelist CONFIG, the oldest first.

    Shown are client, verb, since when, bytes sent to and received from the backup server, the
    forced command's pid, and the session's number in the audit log. Run it as root or as the forced
    command's account.
    """
    config = host.absolute(config)
    settings = host.settings_of(config)
    found = under_way(
        settings.runtime.home, accounts.forced_command_account(settings.runtime, user)
    )
    if as_json:
        locked = read(config) is not None
        answer = Report(type="sessions", version=1, config=config, locked=locked, sessions=found)
        put(json.dumps(answer) + "\n")
    elif found:
        print_sessions(found)
    else:
        put("no request is under way\n")


def under_way(home: str, account: accounts.Account) -> list[Session]:
    """The requests that hold a place. Raises SystemRefusedError."""
    now = datetime.datetime.now(datetime.UTC)
    with accounts.acting_as(account):
        return [_described(one, now) for one in places.live(home)]


def _described(one: LiveSession, now: datetime.datetime) -> Session:
    reported = None if one.report is None else report.look_at(one.report)
    has_told = one.session != _UNKNOWN
    return Session(
        client=one.client if has_told else None,
        verb=one.verb,
        since=one.since if has_told else None,
        age=_age(one.since, now) if has_told else None,
        bytes_to_peer=None if reported is None else reported.bytes_to_peer,
        bytes_from_peer=None if reported is None else reported.bytes_from_peer,
        pid=one.pid or None,
        session=one.session if has_told else None,
    )


def _age(since: str, now: datetime.datetime) -> int | None:
    try:
        began = datetime.datetime.fromisoformat(since)
    except ValueError:
        # It has the form of a time, but the account can write any digits.
        return None
    return max(0, int((now - began).total_seconds()))


_HEADINGS = ("client", "verb", "since (UTC)", "age", "sent", "received", "pid", "session")


def print_sessions(found: Sequence[Session]) -> None:
    """A table for people."""
    print_table(_HEADINGS, ((_row(one), "") for one in found))


def _row(one: Session) -> tuple[str, ...]:
    since = one["since"]
    cells = (
        one["client"],
        one["verb"],
        None if since is None else since.rstrip("Z").replace("T", " "),
        None if one["age"] is None else duration_text(one["age"]),
        *(None if size is None else size_text(size) for size in _sizes(one)),
        None if one["pid"] is None else str(one["pid"]),
        one["session"],
    )
    return tuple("-" if cell is None else printable(cell) for cell in cells)


def _sizes(one: Session) -> tuple[int | None, int | None]:
    return one["bytes_to_peer"], one["bytes_from_peer"]


# Ending them


Tell = Callable[[int, float], None]
"""Told of how many sessions are left, and after how many seconds."""


def end_all(home: str, account: accounts.Account, tell: Tell) -> tuple[int, list[Session]]:
    """Have every request under way end in order: how many did in time, and those that did not.

    borg gets SIGINT from its forced command, closes its transaction and is killed only after
    GRACE. Raises SystemRefusedError.
    """
    started = told = time.monotonic()
    pids = [one.pid for one in _live(home, account) if one.pid]
    asked = left = set(pids)
    tell(len(left), 0.0)
    for start in range(0, len(pids), _AT_ONCE):
        _interrupt(pids[start : start + _AT_ONCE], home, account)
    while left and (now := time.monotonic()) - started < END_SECONDS:
        time.sleep(_LOOK_SECONDS)
        before, left = left, asked & {one.pid for one in _live(home, account)}
        if left != before or now - told >= _TELL_SECONDS:
            told = now
            tell(len(left), now - started)
    # Those that came meanwhile are being refused.
    remaining = [one for one in under_way(home, account) if one["pid"] in {None, *left}]
    return len(asked - left), remaining


def _live(home: str, account: accounts.Account) -> list[LiveSession]:
    with accounts.acting_as(account):
        return places.live(home)


def _interrupt(pids: Sequence[int], home: str, account: accounts.Account) -> None:
    """Send SIGINT to those of ``pids`` that hold a place, and to nothing that came after them."""
    with contextlib.ExitStack() as stack:
        processes = dict(_opened(pids, stack))
        # A descriptor stays with its process, so one whose pid holds a place now is the holder.
        holders = {one.pid for one in _live(home, account)}
        with accounts.acting_as(account, signalling=True):
            for pid in holders & processes.keys():
                # Gone by now, or not the account's: then it stays and is told of.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    signal.pidfd_send_signal(processes[pid], signal.SIGINT)


def _opened(pids: Collection[int], stack: contextlib.ExitStack) -> Iterator[tuple[int, int]]:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            stack.callback(os.close, descriptor)
            yield pid, descriptor
