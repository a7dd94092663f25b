"""Telling people: once when a job's state changes, again while it stays bad, and when it is good.

What was told is remembered in the ledger, so that it holds between calls. Apprise delivers; the
URLs it is given hold secrets and are in no message of ours.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Literal

from borg_pull.errors import BorgPullError, ConfigurationError, FailedError, printable
from borg_pull.pull import care, ssh
from borg_pull.pull.condition import Condition, rfc3339
from borg_pull.pull.due import is_ahead, next_after
from borg_pull.pull.faults import ConfigFaultsError, Fault
from borg_pull.pull.ledger import Ledger
from borg_pull.pull.said import sentence

PING_SECONDS = 15.0

ALARMS = (ssh.HAS_CHANGED, care.MISSING)
"""In errors that may be an attacker's doing."""

Told = Literal["fine", "warning", "shrunk", "failing", "stale"]
Kind = Literal["warning", "shrunk", "failing", "stale", "recovered", "reminder"]


@dataclass(frozen=True)
class Message:
    """One thing to tell."""

    job: str
    kind: Kind
    text: str


class NotifyError(FailedError):
    """Somebody who is to be told could not be."""


def news(
    found: Sequence[Condition],
    ledger: Ledger,
    now: datetime,
    repeat_every: timedelta,
    *,
    warnings: bool,
    faults: Sequence[Fault] = (),
) -> list[Message]:
    """What has to be told now; `settle` notes that it was.

    Without ``warnings`` those of a job that was fine are not told. One that was not is never told
    to be fine again while there is a warning.
    """
    messages = _of_configuration(faults, ledger, now, repeat_every)
    for one in found:
        try:
            message = _of_job(one, ledger, now, repeat_every, warnings=warnings)
        except BorgPullError:
            raise
        except Exception as error:  # noqa: BLE001 - one job's news must not keep back the others'
            reason = f"its news could not be told: unexpected {type(error).__name__}"
            message = Message(one.job, "failing", f"{one.job}: {reason}; see borg-pull status")
        if message is not None:
            messages.append(message)
    return messages


def _of_job(
    one: Condition, ledger: Ledger, now: datetime, repeat_every: timedelta, *, warnings: bool
) -> Message | None:
    before, told_at, alarm = _remembered(ledger, one.job, now)
    state = _told(one, ledger, now)
    if state == "warning" and before == "fine" and not warnings:
        return None
    if state != before:
        kind: Kind = "recovered" if state == "fine" else state
        return Message(one.job, kind, text(one, state))
    if _alarm(one) not in (None, alarm):
        # A job that fails already must not hide it.
        return Message(one.job, "failing", text(one, state))
    if state not in ("fine", "warning") and now - told_at >= repeat_every:
        return Message(one.job, "reminder", f"still: {text(one, state)}")
    return None


CONFIGURATION = "the configuration"
"""In place of a job's name, of which it is none."""


def _of_configuration(
    faults: Sequence[Fault], ledger: Ledger, now: datetime, repeat_every: timedelta
) -> list[Message]:
    before, told_at, _ = _remembered(ledger, CONFIGURATION, now)
    if not faults:
        text = f"{CONFIGURATION} is sound again"
        return [] if before == "fine" else [Message(CONFIGURATION, "recovered", text)]
    text = printable(
        f"{ConfigFaultsError(faults).line()}; until then the jobs of the files that are wrong are "
        "not pulled, and nothing is pruned"
    )
    if before == "fine":
        return [Message(CONFIGURATION, "failing", text)]
    if now - told_at >= repeat_every:
        return [Message(CONFIGURATION, "reminder", f"still: {text}")]
    return []


def settle(
    found: Sequence[Condition],
    told: Sequence[Message],
    ledger: Ledger,
    now: datetime,
    *,
    is_sound: bool = True,
) -> None:
    """Note that ``told`` have been delivered."""
    by_job = {message.job for message in told}
    if CONFIGURATION in by_job:
        state = "fine" if is_sound else "failing"
        known = json.dumps({"state": state, "at": now.timestamp()})
        ledger.set_state(f"told:{CONFIGURATION}", known)
    for one in found:
        if one.job in by_job:
            said = {"state": _told(one, ledger, now), "at": now.timestamp(), "alarm": _alarm(one)}
            ledger.set_state(f"told:{one.job}", json.dumps(said))


def digest_is_due(ledger: Ledger, expression: str, now: datetime) -> bool:
    """Whether the digest's moment has come since the last one."""
    at = ledger.state("digest")
    if at is None:
        ledger.set_state("digest", str(now.timestamp()))
        return False
    last = datetime.fromtimestamp(float(at), tz=now.tzinfo)
    due = next_after(expression, last, now)
    return due is not None and due <= now


def digest(found: Sequence[Condition], now: datetime) -> str:
    """All jobs, the bad ones first, a line each."""
    ordered = sorted(found, key=lambda one: (one.is_fine, one.job))
    bad = sum(not one.is_fine for one in found)
    head = f"{len(found)} jobs at {rfc3339(now)}: " + (f"{bad} not fine" if bad else "all fine")
    lines = [f"{one.job}: {one.state}, last backup {_last(one)}" for one in ordered]
    return "\n".join([head, *map(printable, lines)])


def text(one: Condition, state: Told) -> str:
    """One line on a job's state."""
    if state == "fine":
        return printable(f"{one.job} is fine again: last backup {_last(one)}")
    if state in ("warning", "shrunk") and one.last_success is not None:
        reason = one.last_success.error or "no reason known"
        return printable(
            f"{one.job} made a backup, but: {sentence(reason)}; last backup {_last(one)}"
        )
    alarm = _alarm(one)
    if alarm is not None:
        return printable(f"{one.job} fails: {sentence(alarm)}; last backup {_last(one)}")
    if state == "stale":
        return printable(f"{one.job} is stale: last backup {_last(one)}")
    error = next((run.error for run in one.failures if run.error), "no reason known")
    return printable(f"{one.job} fails: {sentence(error)}; last backup {_last(one)}")


def _alarm(one: Condition) -> str | None:
    """What may be an attacker's doing, in the words on record."""
    runs = [run for run in (one.last, *one.failed_care) if run is not None]
    errors = [run.error for run in runs if run.error is not None]
    return next((error for error in errors if any(word in error for word in ALARMS)), None)


def _last(one: Condition) -> str:
    if one.last_success is None:
        return "never"
    started = rfc3339(one.last_success.started)
    return f"dated {started}, in the future" if one.is_ahead else started


def _told(one: Condition, ledger: Ledger, now: datetime) -> Told:
    if one.state == "failing":
        return "failing"
    if one.state == "stale":
        return "stale"
    if one.state == "never":
        if one.last is not None:
            return "failing"
        return "stale" if now - _first_seen(ledger, one.job, now) > one.stale_after else "fine"
    if one.is_shrunk:
        return "shrunk"
    return "warning" if one.state == "warning" else "fine"


def _first_seen(ledger: Ledger, job: str, now: datetime) -> datetime:
    """A job that never ran is not stale before it has had its time."""
    at = ledger.state(f"seen:{job}")
    seen = None if at is None else datetime.fromtimestamp(float(at), tz=now.tzinfo)
    if seen is None or is_ahead(seen, now):
        ledger.set_state(f"seen:{job}", str(now.timestamp()))
        return now
    return seen


def _remembered(ledger: Ledger, job: str, now: datetime) -> tuple[Told, datetime, str | None]:
    """What was told last, when, and of which alarm."""
    said = ledger.state(f"told:{job}")
    if said is None:
        return "fine", now, None
    known = json.loads(said)
    at = datetime.fromtimestamp(known["at"], tz=now.tzinfo)
    if at > now:
        # The clock was set back: from here on the time until a reminder is counted anew.
        at = now
        ledger.set_state(f"told:{job}", json.dumps(known | {"at": now.timestamp()}))
    return known["state"], at, known.get("alarm")


def urls(file: Path) -> list[str]:
    """The URLs in ``file``, one a line, ``#`` for comments.

    They hold secrets: others must not be able to read the file. Raises ConfigurationError.
    """
    try:
        status = file.stat()
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} cannot be read: {error}") from error
    if status.st_mode & 0o077:
        raise ConfigurationError(f"{file} can be read by others", f"run chmod go-rwx {file}")
    lines = [line.strip() for line in content.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def check(addresses: Sequence[str]) -> None:
    """Raise ConfigurationError for none, and for one that cannot be sent to; nothing is sent."""
    import apprise

    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
    if not addresses:
        raise ConfigurationError("there is no URL in it", "add one a line")
    for number, address in enumerate(addresses, start=1):
        if not apprise.Apprise().add(address):
            raise _unknown(number)


def _unknown(number: int) -> ConfigurationError:
    return ConfigurationError(
        f"URL {number} of the notification URLs is none that Apprise knows",
        "its documentation lists them",
    )


def deliver(addresses: Sequence[str], title: str, body: str, *, is_bad: bool) -> None:
    """Send one message to everybody. Raises ConfigurationError, NotifyError."""
    failed = []
    unknown: ConfigurationError | None = None
    for number, address in enumerate(addresses, start=1):
        try:
            reason = send_to(address, number, title, body, is_bad=is_bad)
        except ConfigurationError as error:
            # The others are told all the same.
            unknown = unknown or error
        else:
            if reason is not None:
                failed.append(f"{named(number, address)}: {reason}")
    if unknown is not None:
        raise unknown
    if failed:
        raise NotifyError(
            f"not everybody was notified: {'; '.join(failed)}", "try it: borg-pull notify test"
        )


def named(number: int, address: str) -> str:
    """Which URL it is, without what is secret of it."""
    scheme, colon, _ = address.partition("://")
    return f"URL {number} ({printable(scheme)})" if colon else f"URL {number}"


def send_to(address: str, number: int, title: str, body: str, *, is_bad: bool) -> str | None:
    """Send one message to one URL; why that failed, if it did. Raises ConfigurationError."""
    import apprise

    heard: list[str] = []
    logger = logging.getLogger("apprise")
    listener = logging.Handler(logging.WARNING)
    listener.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    # Its log lines name URLs, secrets included: they are for `_reason` alone.
    logger.handlers, logger.propagate = [listener], False
    logger.setLevel(logging.WARNING)
    try:
        service = apprise.Apprise()
        if not service.add(address):
            raise _unknown(number)
        for one in service:
            if one.overflow_mode == apprise.OverflowMode.UPSTREAM:
                # What is too long for a service would be lost, all of it.
                one.overflow_mode = apprise.OverflowMode.SPLIT
        kind = apprise.NotifyType.FAILURE if is_bad else apprise.NotifyType.SUCCESS
        # A source's words are text, for mail, too, which Apprise else takes for HTML.
        text = apprise.NotifyFormat.TEXT
        sent = service.notify(body=body, title=title, notify_type=kind, body_format=text)
        return None if sent else _reason(heard)
    finally:
        logger.handlers = []
        logger.setLevel(logging.CRITICAL + 1)


def _reason(heard: Sequence[str]) -> str:
    """What can be told of what Apprise has logged: of its words none, for they name the URL."""
    text = "\n".join(heard)
    status = re.search(r"\berror=([1-5][0-9][0-9])\b", text)
    if status is not None:
        code = int(status[1])
        phrase = HTTPStatus(code).phrase if code in set(HTTPStatus) else ""
        return f"the service answered {code} {phrase}".rstrip()
    if "onnection error" in text or "onnection Error" in text:
        return "the service was not reached, or broke off: are its host and port right?"
    return "the service did not take it"


def ping(file: Path) -> None:
    """Tell the dead-man's switch whose URL is in ``file`` that a job has made its backup.

    Raises ConfigurationError, NotifyError.
    """
    import requests

    addresses = urls(file)
    if len(addresses) != 1 or not addresses[0].startswith(("https://", "http://")):
        raise ConfigurationError(f"{file} must hold one http or https URL")
    try:
        requests.get(addresses[0], timeout=PING_SECONDS, allow_redirects=False).raise_for_status()
    except requests.RequestException as error:
        # Its text would name the URL.
        raise NotifyError(f"the ping of {file} failed: {type(error).__name__}") from None


def tell(
    found: Sequence[Condition],
    ledger: Ledger,
    addresses: Sequence[str],
    now: datetime,
    *,
    repeat_every: timedelta,
    warnings: bool,
    digest_at: str | None,
    faults: Sequence[Fault] = (),
    send: Callable[..., None] = deliver,
) -> list[Message]:
    """Deliver all news, and the digest when it is due; what was delivered.

    What cannot be delivered is news again next time. Raises NotifyError, ConfigurationError.
    """
    messages = news(found, ledger, now, repeat_every, warnings=warnings, faults=faults)
    if messages:
        bad = any(message.kind != "recovered" for message in messages)
        title = f"borg-pull: {', '.join(sorted({message.job for message in messages}))}"
        send(addresses, title, "\n".join(message.text for message in messages), is_bad=bad)
        settle(found, messages, ledger, now, is_sound=not faults)
    if digest_at is not None and digest_is_due(ledger, digest_at, now):
        bad = any(not one.is_fine for one in found)
        send(addresses, "borg-pull: digest", digest(found, now), is_bad=bad)
        ledger.set_state("digest", str(now.timestamp()))
    return messages
