"""``borg-pull-admin lockdown``: have the host refuse every request, and serve them again.

The record is written as the forced command's account, whose log it is. With ``--json`` the answer
is one `Report`.
"""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal, TypedDict

import click

from borg_pull import accounts
from borg_pull.admin import host
from borg_pull.admin.sessions import Session, end_all
from borg_pull.audit import AuditLog, Common, new_session
from borg_pull.errors import (
    BorgPullError,
    BusyError,
    ConfigurationError,
    RequestError,
    printable,
)
from borg_pull.lockdown import MAX_NAME, MAX_REASON, read
from borg_pull.locking_down import lock, unlock
from borg_pull.output import print_lines, put

if TYPE_CHECKING:
    from borg_pull.audit import JSONValue

Action = Literal["on", "off", "status"]


class Report(TypedDict):
    """The answer of ``lockdown --json``."""

    type: Literal["lockdown"]
    version: Literal[1]
    config: str
    locked: bool
    """Whether requests are refused now."""
    since: str | None
    """RFC 3339; null when not locked, or unknown."""
    by: str | None
    reason: str | None
    client: str | None
    """Who asked for it over ssh, and may lift it, too; null for this host's admin."""
    fault: str | None
    """Why the four above are not known although the host is locked."""
    changed: bool
    """Whether this command locked the host, or unlocked it."""
    ended: int | None
    """How many requests under way have ended; null without ``--kill``."""
    left: list[Session] | None
    """Those that have not."""


_SCHEMA = """\
--json: an object of type "lockdown", version 1, config, locked, since, by, reason, client (who
asked for it over ssh), fault (why those four are unknown), changed (whether this command did it),
and with --kill ended (a number) and left (sessions, as of the command sessions), else null.
"""


@click.command(epilog=_SCHEMA, short_help="Refuse all requests, or serve them again.")
@click.argument("config", type=click.Path(readable=False))
@click.argument("action", type=click.Choice(("on", "off", "status")))
@click.option("--kill", is_flag=True, help="End the requests under way, too, in order.")
@click.option("--reason", metavar="TEXT", help="Why: told to all who are refused, and recorded.")
@click.option("--by", metavar="NAME", help="Who does it.  [default: who logged in]")
@click.option(
    "--user",
    metavar="ACCOUNT",
    help="Account of the forced command.  [default: the owner of home or socket_dir]",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def lockdown(
    context: click.Context,
    config: str,
    action: Action,
    kill: bool,
    reason: str | None,
    by: str | None,
    user: str | None,
    as_json: bool,
) -> None:
    """Have every request under the whitelist CONFIG refused with exit code 75, or end that.

    The lockdown is the file `lockdown` beside CONFIG, so it holds for every whitelist in that
    directory, and across a restart. Both ends of it stand in the audit log. With --kill, borg is
    interrupted, so that it closes its transaction, and waited for.

    Exit code of status: 0 when requests are served, 75 when the host is locked down. Of on and
    off: 0 done, or so already; 71 not done; 73 locked down, but that, or its end, could not be
    recorded; 75 locked down, but with --kill some requests have not ended in time.
    """
    config = _existing(host.absolute(config))
    if action == "status":
        _refuse_options(action, {"--kill": kill, "--reason": reason, "--by": by, "--user": user})
        report = _report(config)
        _show(report, as_json=as_json)
        context.exit(BusyError.exit_code if report["locked"] else 0)
    name = _checked("--by", by, MAX_NAME) or _who()
    reason = _checked("--reason", reason, MAX_REASON)
    faults: list[BorgPullError] = []
    ended = None

    def record(event: str, fields: Mapping[str, JSONValue]) -> None:
        _record(config, user, event, fields)

    if action == "on":
        changed = lock(
            config,
            by=name,
            client=None,
            reason=reason,
            kill=kill,
            record=record,
            faults=faults,
        )
        # What cannot be recorded is ended all the same.
        if kill:
            ended = _end(config, user, faults)
    else:
        _refuse_options(action, {"--kill": kill, "--reason": reason})
        changed = unlock(config, by=name, client=None, record=record, faults=faults)
    _show(_report(config, changed=changed, ended=ended), as_json=as_json)
    for fault in faults[1:]:
        click.echo(f"borg-pull-admin: {fault.line()}", err=True)
    if faults:
        raise faults[0]


def _refuse_options(action: Action, given: Mapping[str, object]) -> None:
    """Raises RequestError for an option that says nothing to ``action``."""
    for option, value in given.items():
        if value:
            raise RequestError(f"{option} is no option of lockdown {action}", "see --help")


def _existing(config: str) -> str:
    """``config``, if there is something: locking down some other directory helps nobody."""
    try:
        os.stat(config)
    except OSError as error:
        raise ConfigurationError(f"{config} cannot be used: {error.strerror}") from error
    return config


def _checked(option: str, text: str | None, limit: int) -> str | None:
    """``text``, if it is one line that a terminal can show. Raises RequestError."""
    if text is None:
        return None
    if not text.strip() or len(text) > limit or not text.isprintable():
        raise RequestError(
            f"{option} {text[:limit]}: not usable", f"write one line of 1 to {limit} characters"
        )
    return text.strip()


def _who() -> str:
    """Who runs this: before sudo, or who logged in, or the user."""
    name = os.environ.get("SUDO_USER")
    if not name:
        try:
            name = os.getlogin()
        except OSError:
            name = _name_of(os.getuid())
    return printable(name)[:MAX_NAME]


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _report(
    config: str, *, changed: bool = False, ended: tuple[int, list[Session]] | None = None
) -> Report:
    found = read(config)
    return Report(
        type="lockdown",
        version=1,
        config=config,
        locked=found is not None,
        since=None if found is None else found.since,
        by=None if found is None else found.by,
        reason=None if found is None else found.reason,
        client=None if found is None else found.client,
        fault=None if found is None else found.fault,
        changed=changed,
        ended=None if ended is None else ended[0],
        left=None if ended is None else ended[1],
    )


def _end(
    config: str, user: str | None, faults: list[BorgPullError]
) -> tuple[int, list[Session]] | None:
    """End what is under way; None when that cannot be told. ``faults``: what went wrong."""
    try:
        settings = host.settings_of(config)
        account = accounts.forced_command_account(settings.runtime, user)
        ended, left = end_all(settings.runtime.home, account, _tell)
    except BorgPullError as error:
        error.message = f"locked down, but who is served now cannot be told: {error.message}"
        faults.append(error)
        return None
    if left:
        pids = " ".join(str(one["pid"]) for one in left if one["pid"] is not None)
        hint = "what holds their places cannot be named from here; lslocks may know"
        if pids:
            hint = f"look at them, and end them with kill -KILL {pids}"
        message = f"locked down, but {len(left)} of the requests under way have not ended"
        faults.append(BusyError(message, hint))
    return ended, left


def _tell(left: int, seconds: float) -> None:
    click.echo(f"under way: {left}, after {seconds:.0f} s", err=True)


def _record(config: str, user: str | None, event: str, fields: Mapping[str, JSONValue]) -> None:
    """Append to the audit log as the account it belongs to. Raises BorgPullError.

    A log or sidecar that root made would shut the account out.
    """
    common = Common(
        session=new_session(), client=None, key=None, address=None, port=None, pid=os.getpid()
    )
    settings = host.settings_of(config)
    log = AuditLog(settings.audit.file, sync=settings.audit.sync)
    with accounts.acting_as(accounts.forced_command_account(settings.runtime, user)):
        log.append(event, common, fields)


def _show(report: Report, *, as_json: bool) -> None:
    if as_json:
        put(json.dumps(report) + "\n")
    else:
        print_lines(_lines(report))


def _lines(report: Report) -> Iterator[tuple[tuple[str, str], ...]]:
    """For people."""
    if not report["locked"]:
        state = "no longer" if report["changed"] else "not"
        yield ((f"{state} locked down: requests are served", "green"),)
        return
    yield (("locked down: every request is refused", "bold yellow"),)
    for label in ("since", "by", "client", "reason", "fault"):
        text = report[label]
        if text is not None:
            yield _labelled(label, printable(text))
    if report["ended"] is not None:
        yield _labelled("ended", str(report["ended"]))
    for one in report["left"] or ():
        words = (one["client"] or "-", one["verb"] or "-", "since", one["since"] or "-")
        yield _labelled("left", f"pid {one['pid'] or '-'}: {printable(' '.join(words))}")


def _labelled(label: str, text: str) -> tuple[tuple[str, str], ...]:
    return (f"{label:<12}", "dim"), (text, "")
