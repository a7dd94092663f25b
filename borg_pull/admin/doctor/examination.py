"""The whole examination of a source, and its `Report`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Literal, TypedDict

from borg_pull import accounts
from borg_pull.admin import host
from borg_pull.admin.check import check_configuration
from borg_pull.admin.doctor import account, companion, kernel, keys, programs, sshd, storage
from borg_pull.admin.doctor.sshd import Asked
from borg_pull.configuration_files import main_file
from borg_pull.errors import ConfigurationError
from borg_pull.findings import Finding, Findings, Level
from borg_pull.lockdown import reason_of
from borg_pull.source.installation import program_beside
from borg_pull.source.whitelist import ClientRules, Settings, examine


class FindingObject(TypedDict):
    """A finding in a `Report`; the fields are those of `Finding`, with its area."""

    area: str
    code: str
    subject: str
    level: Level
    found: str
    needed: str | None
    why: str | None
    remedy: str | None


class DaemonObject(TypedDict):
    """The sshd that was asked."""

    pid: int
    program: str
    configuration: str
    options: list[str]
    ports: list[int]


class Report(TypedDict):
    """The answer of ``doctor --json``."""

    type: Literal["doctor"]
    version: Literal[1]
    config: str
    """Absolute path of the main file."""
    ok: bool
    """Whether there is no error."""
    account: str | None
    """The forced command's; null when unknown."""
    sshd: DaemonObject | None
    """Null when none runs, or the caller is not root."""
    findings: list[FindingObject]


def examination(
    config: str, user: str | None, port: int | None, address: str
) -> tuple[Report, Findings]:
    """Everything there is to say about this host. Raises RequestError, ConfigurationError."""
    findings = Findings()
    settings, clients, is_sound = _rules(config)
    who = _account(settings, user)
    asked = None
    if who is None:
        findings.wrong(
            "error",
            "account.entry",
            settings.runtime.home,
            "does not tell whose account the forced command runs as",
            remedy="name it with --user, or give it the directory",
        )
    else:
        asked = sshd.look(findings, who, port, address)
        keys.look(findings, who, config, clients if is_sound else None, asked)
        effective = None if asked is None else asked.effective
        account.look(findings, who, settings, effective)
    _look_at_configuration(findings, config, user)
    daemon = None if asked is None else asked.daemon
    programs.look(findings, who, settings, daemon)
    kernel.look(findings, who, settings.confine.landlock)
    storage.look(findings, who, settings, clients)
    companion.look(findings, who, config, settings, clients)
    report = Report(
        type="doctor",
        version=1,
        config=config,
        ok=not findings.count("error"),
        account=None if who is None else who.name,
        sshd=_daemon_object(asked),
        findings=[_object(finding) for finding in findings.found],
    )
    return report, findings


def _rules(config: str) -> tuple[Settings, Mapping[str, ClientRules], bool]:
    """The settings, the rules of the clients that are sound, and whether all is; what is not,
    `check` tells.

    Raises ConfigurationError when there are no settings.
    """
    try:
        main = main_file(config, host.UNCHECKED)
    except ConfigurationError as error:
        if isinstance(error.__cause__, PermissionError):
            raise ConfigurationError(error.message, "run this as root") from error
        raise
    found = host.client_files(config, host.UNCHECKED)
    examined = examine(main, found.files)
    if examined.settings is None:
        raise ConfigurationError(
            f"{config} is wrong", "put that right first; borg-pull-admin check says what it is"
        )
    return examined.settings, examined.clients, not (examined.faults or found.unusable)


def _account(settings: Settings, user: str | None) -> accounts.Account | None:
    """The forced command's; None when nobody but root is in sight."""
    if user is not None:
        return accounts.account_named(user)
    found = accounts.account_behind(settings.runtime.home, settings.runtime.socket_dir)
    return None if found is None or found.uid == 0 else found


_UNCHECKED_CODES = ("no-account", "partial-view")
"""Codes of `check` that say what it could not look at."""


def _look_at_configuration(findings: Findings, config: str, user: str | None) -> None:
    """What `check` has to say of it, owners and modes included; and whether it is in force."""
    checked = check_configuration(config, user)
    for found in checked.findings:
        code = f"configuration.{found.code}"
        place = found.file if found.line is None else f"{found.file}:{found.line}"
        subject = f"{place}: {found.key}" if found.key else place
        if found.code in _UNCHECKED_CODES:
            findings.unchecked(code, subject, found.message)
        else:
            findings.wrong(found.severity, code, subject, found.message)
    if not checked.findings:
        number = len(checked.clients)
        findings.ok("configuration.sound", config, f"is sound; clients: {number}")
    reason = reason_of(config)
    if reason is None:
        findings.ok("configuration.lockdown", config, "is not locked down")
        return
    findings.wrong(
        "warning",
        "configuration.lockdown",
        config,
        reason,
        why="every request is refused",
        remedy=shlex.join([program_beside("borg-pull-admin"), "lockdown", config, "off"]),
    )


def _daemon_object(asked: Asked | None) -> DaemonObject | None:
    daemon = None if asked is None else asked.daemon
    if daemon is None:
        return None
    return DaemonObject(
        pid=daemon.pid,
        program=daemon.program,
        configuration=daemon.configuration,
        options=list(daemon.options),
        ports=list(daemon.ports),
    )


def _object(finding: Finding) -> FindingObject:
    return FindingObject(
        area=finding.area,
        code=finding.code,
        subject=finding.subject,
        level=finding.level,
        found=finding.found,
        needed=finding.needed,
        why=finding.why,
        remedy=finding.remedy,
    )
