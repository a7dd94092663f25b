"""``borg-pull doctor``: what stands between this host and its backups, and what to do about it."""

from __future__ import annotations

import json
import os
import secrets
import socket
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import click

from borg_pull import __version__
from borg_pull.errors import BorgPullError, ConfigurationError, NotAllowedError, printable
from borg_pull.findings import Finding, Findings, findings_lines, many
from borg_pull.output import print_lines, put
from borg_pull.pull import identities, notify, secret, ssh
from borg_pull.pull.condition import rfc3339
from borg_pull.pull.config import Config, Repository, Source
from borg_pull.pull.host_keys import KINDS, known_name, named_source, offered, pinned
from borg_pull.pull.invocation import Invocation, tolerant
from borg_pull.pull.ledger import Ledger, is_damage
from borg_pull.pull.metrics import segments_size
from borg_pull.pull.obstacles import access_fault, holders, is_alive
from borg_pull.pull.outcome import BUSY
from borg_pull.pull.places import Places
from borg_pull.pull.progress import size
from borg_pull.pull.pull import Conversation
from borg_pull.pull.repository import LocalRepository
from borg_pull.pull.said import PROTOCOL, Greeting, Sentence, clock, greeting, sentence
from borg_pull.pull.source import archive_name, create
from borg_pull.pull.timers import installed, usual_directory
from borg_pull.pull.units import Scope

AREAS = ("configuration", "source", "repository", "storage", "ledger", "timers")
"""In the order they are told."""

BORG_VERSIONS = ("1.2", "1.4")
LOGIN_SECONDS = 60.0
_LITTLE_BYTES = 1 << 30
_NO_BYTES = 16 << 20
_NEARLY_FULL = 0.9
_SKEW_SECONDS = 30.0
_NO_SOCKET = 69
"""How a source ends a request that it would take, but for the socket."""
_BORG_SECONDS = 120.0

_SCHEMA = """\
--json: an object of type "doctor", version 1, config, ok (no error), sources (those looked at), and
findings, a list of objects with area, code, subject, level (ok, warning, error, unchecked), found,
needed, why, remedy.
"""


@click.command(epilog=_SCHEMA, short_help="Look for what is amiss, here and at the sources.")
@click.argument("name", metavar="[SOURCE]", required=False)
@click.option("--strict", is_flag=True, help="Exit 78 for warnings and what is unchecked, too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@tolerant
def doctor(invocation: Invocation, name: str | None, *, strict: bool, as_json: bool) -> None:
    """Look at everything that the backups of SOURCE rely on; without it, of all sources.

    At the source: whether it is reached, its host key, our key, the forced command, forwarding,
    versions, its clock. Here: repositories, room, the files' modes, the ledger, the timers. Says
    of each fault what is, what is needed, why, and what to do. Backs nothing up, and mends nothing.

    Exit code 0: no error, perhaps warnings; 78: errors.
    """
    config = invocation.config
    names = list(config.source) if name is None else [name]
    for one in names:
        named_source(config, one)
    findings = examination(invocation, names)
    if as_json:
        report = {
            "type": "doctor",
            "version": 1,
            "config": str(invocation.path),
            "ok": not findings.count("error"),
            "sources": names,
            "findings": [_object(finding) for finding in findings.found],
        }
        put(json.dumps(report) + "\n")
    else:
        print_lines(findings_lines(str(invocation.path), AREAS, findings))
    errors, doubts = findings.count("error"), findings.count("warning", "unchecked")
    if errors:
        raise ConfigurationError(f"not all is ready: {many(errors, 'error')}")
    if doubts and strict:
        raise ConfigurationError(f"{many(doubts, 'warning')} with --strict")


def examination(invocation: Invocation, names: list[str]) -> Findings:
    """Everything there is to say about these sources and this host."""
    findings = Findings()
    config = invocation.config
    for fault in config.faults:
        findings.wrong(
            "error",
            "configuration.sound",
            f"{fault.file}: {fault.key}" if fault.key else fault.file,
            fault.message,
            why="what is in this file is left out, and nothing is pruned",
            remedy="borg-pull check-config",
        )
    if not config.faults:
        findings.ok("configuration.sound", str(invocation.path), "is sound")
    try:
        places = invocation.places
    except BorgPullError as error:
        findings.wrong(
            "error", "configuration.places", "settings", error.message, remedy=error.hint
        )
        return findings
    looks: list[tuple[str, str, Callable[[], None]]] = [
        ("configuration.secret", "secrets", lambda: _look_at_secrets(findings, config))
    ]
    for name in names:
        look = partial(_look_at_source, findings, config, name, places)
        looks.append(("source.reached", name, look))
    jobs = [job for job in config.job.values() if job.source in names]
    for name in dict.fromkeys(job.repository for job in jobs):
        look = partial(_look_at_repository, findings, name, config.repository[name])
        looks.append(("repository.present", name, look))
    state = partial(_look_at_room, findings, "settings.state_dir", places.state_dir)
    looks += [
        ("storage.room", "settings.state_dir", state),
        ("ledger.sound", str(places.ledger), lambda: _look_at_ledger(findings, places)),
        ("timers.installed", "timers", lambda: _look_at_timers(findings, invocation)),
    ]
    for code, subject, look_at in looks:
        try:
            look_at()
        except (BorgPullError, OSError) as error:
            # One thing that cannot be looked at must not hide the others.
            text = error.line() if isinstance(error, BorgPullError) else _os_text(error)
            findings.wrong("error", code, subject, text)
    return findings


def _os_text(error: OSError) -> str:
    what = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    return f"{what}{error.strerror or error}"


def _object(finding: Finding) -> dict[str, Any]:
    return {"area": finding.area, **asdict(finding)}


# Here


def _look_at_secrets(findings: Findings, config: Config) -> None:
    """Files of secrets: there, and closed to others."""
    files = {f"job.{name}.ping_url_file": job.ping_url_file for name, job in config.job.items()}
    urls = config.notify.urls_file
    if urls is not None and _tried(
        findings,
        "configuration.secret",
        "notify.urls_file",
        partial(secret.lines, urls),
        f"give {urls} to this account, with mode 0600",
    ):
        _tried(
            findings,
            "configuration.notify",
            f"notify.urls_file ({urls})",
            lambda: notify.check(secret.lines(urls)),
            "mend it: nobody is told of anything else",
        )
    for key, path in files.items():
        if path is not None:
            _tried(
                findings,
                "configuration.secret",
                key,
                partial(secret.lines, path),
                f"give {path} to this account, with mode 0600",
            )


def _tried(
    findings: Findings, code: str, subject: str, act: Callable[[], object], remedy: str
) -> bool:
    """Do something that raises when it is not as it must be, with ``remedy`` where that has no
    hint; whether it was."""
    try:
        act()
    except BorgPullError as error:
        findings.wrong("error", code, subject, error.message, remedy=error.hint or remedy)
        return False
    findings.ok(code, subject, "can be used")
    return True


def _look_at_repository(findings: Findings, name: str, repository: Repository) -> None:
    subject = f"{name} ({repository.path})"
    _look_at_borg(findings, name, repository)
    barred = access_fault(repository.path)
    if barred is not None:
        findings.wrong("error", "repository.writable", subject, barred.message, remedy=barred.hint)
        return
    if not (repository.path / "config").is_file():
        findings.wrong(
            "error",
            "repository.present",
            subject,
            "there is no repository here that this account can see",
            why="nothing can be pulled into it",
            remedy=f"mount its disk, or give {repository.path} to this account; else, to make a "
            f"new one: borg-pull init {name}",
        )
        return
    findings.ok("repository.present", subject, "is there")
    findings.ok("repository.writable", subject, "can be written")
    # A process that is there uses it.
    found = [one for one in holders(repository.path) if not is_alive(one)]
    if found:
        findings.wrong(
            "warning",
            "repository.lock",
            subject,
            f"is locked by {', '.join(found)}",
            why="while it is, nothing can be pulled into it",
            remedy=f"if nothing uses it any more: borg break-lock {repository.path}",
        )
    _look_at_key(findings, name, repository, subject)
    _look_at_room(findings, f"repository.{name}", repository.path)
    _look_at_quota(findings, subject, repository)


def _look_at_key(findings: Findings, name: str, repository: Repository, subject: str) -> None:
    if repository.key_on == "source":
        findings.ok("repository.opens", subject, "is opened by its source alone")
        return
    local = LocalRepository(repository, lambda: secret.passphrase(name, repository))
    # A run that holds the lock must not make this wait.
    words = ["list", "--bypass-lock", "--json", "--last", "1", str(repository.path)]
    _tried(
        findings,
        "repository.opens",
        subject,
        lambda: local.run(words, timeout=_BORG_SECONDS),
        f"see what borg list {repository.path} says to this account with this passphrase",
    )


def _look_at_borg(findings: Findings, name: str, repository: Repository) -> None:
    subject = f"{name} ({repository.borg})"
    try:
        said = subprocess.run(
            [repository.borg, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_BORG_SECONDS,
        ).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        findings.wrong(
            "error",
            "repository.borg",
            subject,
            f"cannot be run: {getattr(error, 'strerror', None) or 'it does not end'}",
            remedy=f"install borgbackup, or set borg in [repository.{name}]",
        )
        return
    _judge_borg(findings, "repository.borg", subject, said.rpartition(" ")[2])


def _judge_borg(findings: Findings, code: str, subject: str, version: str) -> None:
    if version.startswith(tuple(f"{known}." for known in BORG_VERSIONS)):
        findings.ok(code, subject, f"borg {version}")
    else:
        findings.wrong(
            "warning",
            code,
            subject,
            f"borg {printable(version) or 'of no known version'}",
            needed=" or ".join(BORG_VERSIONS),
            why="no other is tested",
            remedy="install one of these",
        )


def _look_at_room(findings: Findings, key: str, path: Path) -> None:
    try:
        status = os.statvfs(path)
    except OSError as error:
        findings.unchecked("storage.room", key, f"cannot be looked at: {error.strerror}")
        return
    left = status.f_bavail * status.f_frsize
    if left >= _LITTLE_BYTES:
        findings.ok("storage.room", key, f"{size(left)} left on {path}")
        return
    findings.wrong(
        "error" if left < _NO_BYTES else "warning",
        "storage.room",
        key,
        f"{size(left)} left on {path}",
        needed=size(_LITTLE_BYTES),
        why="borg ends in an error when the disk is full",
        remedy="free some, or prune; see df -h",
    )


def _look_at_quota(findings: Findings, subject: str, repository: Repository) -> None:
    if repository.quota is None:
        return
    try:
        used = segments_size(repository.path)
    except OSError as error:
        findings.unchecked("storage.quota", subject, f"cannot be measured: {error.strerror}")
        return
    text = f"{size(used)} of {size(int(repository.quota))} used"
    if used < _NEARLY_FULL * repository.quota:
        findings.ok("storage.quota", subject, text)
        return
    findings.wrong(
        "error" if used >= repository.quota else "warning",
        "storage.quota",
        subject,
        text,
        why="borg serve refuses what is beyond its quota",
        remedy="raise the quota, or keep fewer archives",
    )


def _look_at_ledger(findings: Findings, places: Places) -> None:
    subject = str(places.ledger)
    if not places.ledger.exists():
        findings.ok("ledger.sound", subject, "has no run yet")
        return
    try:
        database = sqlite3.connect(f"{places.ledger.as_uri()}?mode=ro", uri=True)
        try:
            (said,) = database.execute("PRAGMA quick_check(1)").fetchone()
        finally:
            database.close()
    except sqlite3.Error as error:
        if not is_damage(error):
            _tell_unreadable(findings, subject, error)
            return
        said = str(error)
    if said != "ok":
        said = said.strip().splitlines()[-1]
        findings.wrong(
            "error",
            "ledger.sound",
            subject,
            f"is damaged: {printable(said)}",
            why="no run can be recorded",
            remedy=f"move it away, {subject}-wal and -shm with it: that loses the history and what "
            "archives must be there, but no archive",
        )
        return
    ledger = Ledger(places.ledger)
    try:
        newest = ledger.runs(limit=1)
    finally:
        ledger.close()
    now = datetime.now(UTC)
    if newest and (newest[0].started - now).total_seconds() > _SKEW_SECONDS:
        findings.wrong(
            "warning",
            "ledger.clock",
            "clock",
            f"{rfc3339(now)} is before the last run, {rfc3339(newest[0].started)}",
            why="this host's clock was set back, or was wrong then",
            remedy="timedatectl set-ntp true",
        )
    findings.ok("ledger.sound", subject, "is sound")


def _tell_unreadable(findings: Findings, subject: str, error: sqlite3.Error) -> None:
    findings.wrong(
        "error",
        "ledger.sound",
        subject,
        f"cannot be looked at: {printable(str(error))}",
        why="no run can be recorded; that alone damages nothing in it",
        remedy=f"leave it where it is; is there room on its disk (df -h, df -i), and may this "
        f"account write to {os.path.dirname(subject)}?",
    )


def _look_at_timers(findings: Findings, invocation: Invocation) -> None:
    scheduled = [job for job in invocation.config.job.values() if job.schedule is not None]
    if not scheduled:
        findings.ok("timers.installed", "timers", "no job has a schedule")
        return
    scopes: tuple[Scope, ...] = ("system", "user")
    for scope in scopes:
        directory = usual_directory(scope)
        try:
            states, command = installed(invocation, scope)
        except NotAllowedError:
            findings.unchecked(
                "timers.installed", str(directory), "the services run as another account"
            )
            return
        except BorgPullError as error:
            findings.wrong(
                "warning", "timers.installed", "timers", error.message, remedy=error.hint
            )
            return
        if all(state == "missing" for state in states.values()):
            continue
        amiss = [name for name, state in states.items() if state != "same"]
        if not amiss:
            findings.ok("timers.installed", str(directory), f"{many(len(scheduled), 'job')}")
            return
        findings.wrong(
            "warning",
            "timers.installed",
            str(directory),
            f"not as configured: {', '.join(amiss)}",
            remedy=f"as root: {command}" if scope == "system" else command,
        )
        return
    findings.wrong(
        "warning",
        "timers.installed",
        "timers",
        f"{many(len(scheduled), 'job')} with a schedule, and no timer",
        why="nothing starts them, unless cron does",
        remedy="borg-pull timers install, or see crontab in docs/schedules.md",
    )


# At the source


@dataclass(frozen=True)
class _Said:
    """How one ssh ended."""

    code: int
    stdout: bytes
    last: Sentence
    """Of its words for people, else its exit code."""


def _look_at_source(findings: Findings, config: Config, name: str, places: Places) -> None:
    """Step by step, as far as each lets the next be looked at."""
    source = config.source[name]
    if not _is_reached(findings, name, source):
        return
    if not _has_pinned_key(findings, name, source, places):
        return
    if not _tried(
        findings,
        "source.identity",
        f"{name} ({source.identity})",
        lambda: identities.public_line(name, source.identity),
        f"give {source.identity} to this account",
    ):
        return
    if source.protocol == "original":
        findings.unchecked(
            "source.command",
            name,
            "the original tool has no hello",
            remedy=f"borg-pull run a job of {name}, and see",
        )
        return
    answer = _greeted(findings, name, source, places)
    if answer is not None:
        _look_at_forwarding(findings, name, source, places, answer)
        _look_at_clock(findings, name, source, places)
        for job_name, job in config.job.items():
            if job.source == name and "create" in answer.verbs:
                _look_at_request(findings, config, job_name, places, answer)


def _is_reached(findings: Findings, name: str, source: Source) -> bool:
    subject = f"{name} ({known_name(source)})"
    try:
        socket.create_connection(
            (source.host, source.port), timeout=source.connect_timeout.total_seconds()
        ).close()
    except OSError as error:
        findings.wrong(
            "error",
            "source.reached",
            subject,
            f"is not reached: {error.strerror or error}",
            remedy=f"is it on, does its sshd run, and are host and port of [source.{name}] right?",
        )
        return False
    findings.ok("source.reached", subject, "is reached")
    return True


def _has_pinned_key(findings: Findings, name: str, source: Source, places: Places) -> bool:
    known = pinned(places.known_hosts, source)
    remedy = f"borg-pull trust {name}"
    if not known:
        findings.wrong(
            "error",
            "source.host-key",
            name,
            "has no host key pinned",
            why="nothing is pulled from a source that could be anybody",
            remedy=remedy,
        )
        return False
    shown = offered(source)
    matching = [key for key in known if key in shown]
    if matching:
        key = matching[0]
        findings.ok("source.host-key", name, f"{key.fingerprint} ({KINDS[key.kind]})")
        return True
    findings.wrong(
        "error",
        "source.host-key",
        name,
        f"shows {', '.join(key.fingerprint for key in shown) or 'no host key'}",
        needed=known[0].fingerprint,
        why="its system was installed anew, or somebody is in between",
        remedy=f"find out which; if it is the former, {remedy}",
    )
    return False


def _asked(
    source: Source,
    places: Places,
    forwarding: ssh.Forwarding | None = None,
    request: str = "hello",
) -> _Said | None:
    """Ask, with hello unless told otherwise; None for no answer in time. Raises OSError."""
    deadline = time.monotonic() + source.connect_timeout.total_seconds() + LOGIN_SECONDS
    # Of what a hostile source says it keeps so much, and no more.
    asked = Conversation(None, None, deadline, None)
    asked.pull(ssh.command(source, places.known_hosts, request, forwarding), None)
    if asked.given_up is not None or asked.exit is None:
        return None
    last = asked.transcript.complaints[-1:] or [sentence(f"exit {asked.exit}")]
    return _Said(asked.exit, asked.answer, last[0])


def _greeted(findings: Findings, name: str, source: Source, places: Places) -> Greeting | None:
    """Look at our key, the forced command and what it says of itself."""
    said = _asked(source, places)
    if said is None:
        findings.wrong(
            "error", "source.key", name, "does not answer", remedy="see sshd's log there"
        )
        return None
    if said.code == ssh.CONNECTION_FAILED:
        findings.wrong(
            "error",
            "source.key",
            name,
            said.last,
            why="its sshd does not let us in",
            remedy=f"on the source, add to keys of this client, and print authorized_keys anew: "
            f"{identities.public_line(name, source.identity)}",
        )
        return None
    findings.ok("source.key", name, "lets our key in")
    try:
        answer = greeting(said.stdout) if said.code == 0 else None
        fault = said.last
    except ValueError as error:
        answer, fault = None, sentence(str(error))
    if answer is None:
        findings.wrong(
            "error",
            "source.command",
            name,
            fault,
            needed="an answer to hello",
            why="the forced command refuses, or is another one",
            remedy="on the source: borg-pull-admin doctor /etc/borg-pull/config.toml",
        )
        return None
    findings.ok("source.command", name, f"knows us as {answer.client}")
    if "create" in answer.verbs:
        findings.ok("source.verbs", name, f"allows {', '.join(answer.verbs)}")
    else:
        findings.wrong(
            "error",
            "source.verbs",
            name,
            f"allows {', '.join(answer.verbs)}",
            needed="create",
            remedy=f"on the source, add it to allow in [client.{answer.client}]",
        )
    text = f"borg-pull {answer.version} there, {__version__} here, protocol {PROTOCOL}"
    if answer.version == __version__:
        findings.ok("source.version", name, text)
    else:
        findings.wrong(
            "warning",
            "source.version",
            name,
            text,
            why="they understand each other, but one lacks what the other has mended",
            remedy="bring the older one up to date",
        )
    _judge_borg(findings, "source.borg", name, answer.borg or "")
    return answer


def _look_at_forwarding(
    findings: Findings, name: str, source: Source, places: Places, answer: Greeting
) -> None:
    """Have a socket forwarded as a run does, to one that nobody serves."""
    directory = str(source.socket_dir or answer.socket_directory).rstrip("/")
    remote = f"{directory}/{answer.client}.{secrets.token_hex(16)}.sock"
    with tempfile.TemporaryDirectory(prefix="doctor-", dir=places.runtime_dir) as local:
        said = _asked(source, places, ssh.Forwarding(remote=remote, local=Path(local) / "s"))
    if said is not None and said.code == 0:
        findings.ok("source.forwarding", name, f"forwards sockets in {directory}")
        return
    findings.wrong(
        "error",
        "source.forwarding",
        name,
        "does not answer" if said is None else said.last,
        why="borg on the source reaches the repository through that alone",
        remedy="on the source: borg-pull-admin doctor /etc/borg-pull/config.toml",
    )


def _look_at_request(
    findings: Findings, config: Config, name: str, places: Places, answer: Greeting
) -> None:
    """Send what the job will send, but with no socket: all that the source can refuse it refuses
    before it looks for that."""
    job = config.job[name]
    source, repository = config.source[job.source], config.repository[job.repository]
    subject = f"job {name}"
    try:
        archive = archive_name(job.archive, name, job.source, datetime.now(UTC))
        asked = create(answer, source, job, repository.path, archive)
    except (BorgPullError, ValueError) as error:
        findings.wrong(
            "error", "source.request", subject, str(error), remedy=f"see [job.{name}] here"
        )
        return
    said = _asked(source, places, request=asked.line.replace("create ", "create --dry-run ", 1))
    if said is None or said.code == _NO_SOCKET:
        if said is None:
            findings.unchecked("source.request", subject, "does not answer", remedy="try again")
        else:
            findings.ok("source.request", subject, "would be taken")
        return
    fault = said.last.removeprefix("borg-pull-source: ")
    if said.code == BUSY:
        findings.unchecked("source.request", subject, fault, remedy="try again later")
        return
    findings.wrong(
        "error",
        "source.request",
        subject,
        fault,
        why="the source refuses what this job asks for",
        remedy=f"in the whitelist on the source, below [client.{answer.client}], allow it, or "
        f"change [job.{name}] here",
    )


def _look_at_clock(findings: Findings, name: str, source: Source, places: Places) -> None:
    """Compare the clocks; this last hello also removes the socket that was just forwarded."""
    before = time.time()
    said = _asked(source, places)
    after = time.time()
    moment = None if said is None else clock(said.stdout)
    if moment is None:
        findings.unchecked(
            "source.clock", name, "does not tell its time", remedy="bring it up to date"
        )
        return
    # It was asked somewhere in between.
    skew = moment - after if moment > after else min(0.0, moment - before)
    if abs(skew) <= _SKEW_SECONDS:
        findings.ok("source.clock", name, f"agrees within {max(1, round(after - before))} s")
        return
    findings.wrong(
        "warning",
        "source.clock",
        name,
        f"is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} this host's",
        why="names and times of archives mislead, and retention goes by them",
        remedy="timedatectl set-ntp true, on whichever is wrong",
    )
