"""sshd's settings for the account, by what the sshd that runs says of them."""

from __future__ import annotations

import datetime
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from borg_pull import accounts
from borg_pull.admin.doctor import daemon
from borg_pull.admin.doctor.daemon import Daemon, Effective, Files, NotAskedError
from borg_pull.admin.doctor.settings import SETTINGS, Setting
from borg_pull.findings import Findings
from borg_pull.source.installation import program_beside

DROP_IN = "00-borg-pull.conf"
_JUDGED_WITH_KEYS = ("AuthorizedKeysFile", "AuthorizedKeysCommand")


class Remedies:
    """What to do about a setting."""

    def __init__(self, files: Files, running: Daemon | None, account: str) -> None:
        self._files = files
        self._running = running
        self._account = account
        self._has_match = files.has_match(account)

    def places(self, keyword: str) -> str:
        """Where it stands."""
        return ", ".join(self._files.places(keyword)) or f"sshd's command line ({keyword})"

    def reload(self) -> str:
        return "sshd -t" if self._running is None else self._running.reload()

    def for_account(self, keyword: str, value: str) -> str:
        """For what can stand below a ``Match``."""
        if not self._has_match:
            return f"{self._install()} && {self.reload()}"
        places = self._files.places(keyword)
        if not places:
            return (
                f"have the Match of {self._account} say {keyword} {value}, or take the -o out of "
                f"sshd's command line, then run {self.reload()}"
            )
        return (
            f"{keyword} stands at {', '.join(places)}, and the first Match that fits wins: make it "
            f"{value} there, then run {self.reload()}"
        )

    def for_all(self, keyword: str, value: str) -> str:
        """For what only holds for all accounts."""
        places = self._files.places(keyword)
        where = f"change it at {', '.join(places)}" if places else f"set {keyword} {value}"
        return f"{where}, then run {self.reload()}"

    def _install(self) -> str:
        shipped = program_beside("contrib/sshd/borg-pull.conf")
        directory = self._files.drop_in_directory()
        if directory is None:
            main = self._files.paths[0] if self._files.paths else daemon.CONFIGURATION
            return f"{self._for_the_account(shipped)} >> {shlex.quote(main)}"
        path = shlex.quote(f"{directory}/{DROP_IN}")
        if self._account == accounts.USUAL_ACCOUNT:
            return f"install -m 0644 {shlex.quote(shipped)} {path}"
        return f"{self._for_the_account(shipped)} > {path}"

    def _for_the_account(self, shipped: str) -> str:
        """The command that prints what ships, with the name of this account."""
        if self._account == accounts.USUAL_ACCOUNT:
            return f"cat {shlex.quote(shipped)}"
        script = f"s/^Match User .*/Match User {self._account}/"
        return f"sed {shlex.quote(script)} {shlex.quote(shipped)}"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """An sshd and what it says."""

    daemon: Daemon | None
    """None where none runs: then it is what the next one would do."""
    effective: Effective
    """For the account."""
    remedies: Remedies


def look(
    findings: Findings, account: accounts.Account, port: int | None, address: str
) -> Asked | None:
    """Everything but the keys; None when nothing is in force that could be told."""
    if os.geteuid() != 0:
        findings.unchecked(
            "sshd.settings", "sshd", "only root can ask sshd what is in force for the account"
        )
        return None
    try:
        running = _chosen(port)
    except _UnknownError as error:
        findings.wrong(
            "error",
            "sshd.daemon",
            "sshd",
            error.found,
            why="what holds for one says nothing of another",
            remedy=error.remedy,
        )
        return None
    if running is None:
        findings.wrong(
            "warning",
            "sshd.daemon",
            "sshd",
            "none runs; looked at is what the next one would do",
            remedy="systemctl start ssh, unless a socket unit starts one for each connection",
        )
    else:
        ports = ", ".join(map(str, running.ports))
        findings.ok("sshd.daemon", "sshd", f"runs as process {running.pid}, on port {ports}")
    program = daemon.PROGRAM if running is None else running.program
    options = () if running is None else running.options
    configuration = daemon.CONFIGURATION if running is None else running.configuration
    try:
        at = 22 if running is None else running.ports[0]
        effective = daemon.in_force(program, options, account.name, address, at)
        for_all = daemon.in_force(program, options)
    except NotAskedError as error:
        findings.wrong(
            "error",
            "sshd.says",
            program,
            f"does not say what is in force: {error}",
            remedy=f"put that right; {shlex.join([program, '-t', *options])} says whether it is",
        )
        return None
    files = daemon.files_of(configuration)
    remedies = Remedies(files, running, account.name)
    if running is not None:
        _look_at_daemon(findings, running, effective, files)
    for setting in SETTINGS:
        if setting.keyword not in _JUDGED_WITH_KEYS:
            _look_at(findings, setting, effective, remedies)
    _look_at_all_accounts(findings, effective, for_all, remedies)
    _look_at_admission(findings, account, effective, remedies)
    return Asked(daemon=running, effective=effective, remedies=remedies)


class _UnknownError(Exception):
    """Some run, and none is the one that is meant."""

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(found)
        self.found = found
        self.remedy = remedy


def _chosen(port: int | None) -> Daemon | None:
    """The running sshd that is meant; None when none runs. Raises _UnknownError."""
    found = sorted(daemon.running(), key=lambda one: one.ports)
    wanted = [one for one in found if (22 if port is None else port) in one.ports]
    if port is None and len(found) == 1:
        wanted = found
    if wanted or not found:
        return wanted[0] if wanted else None
    others = "; ".join(
        f"port {', '.join(map(str, one.ports))} (process {one.pid}, {one.configuration})"
        for one in found
    )
    raise _UnknownError(
        f"none listens on port {22 if port is None else port}; these run: {others}",
        f"name the one that is meant with --port {found[0].ports[0]} or the like",
    )


def _look_at_daemon(
    findings: Findings, running: Daemon, effective: Effective, files: Files
) -> None:
    if running.command is None:
        findings.wrong(
            "warning",
            "sshd.command-line",
            "sshd",
            f"process {running.pid} does not show its command line; looked at is "
            f"{running.configuration}, without options",
            remedy="restart it, without a title that is cut off (it has as much room as its "
            "command line and environment)",
        )
    restart = (
        "systemctl restart ssh" if running.unit is None else f"systemctl restart {running.unit}"
    )
    if running.is_replaced:
        findings.wrong(
            "warning",
            "sshd.program",
            running.program,
            f"is another file than the one that runs as process {running.pid}",
            why="what it says of its settings is the new one's word",
            remedy=restart,
        )
    read, is_certain = daemon.last_read(running, effective)
    changed, path = files.changed()
    if changed <= read:
        findings.ok("sshd.files", running.configuration, f"read {_time(read)}, not changed since")
        return
    doubt = "" if is_certain else " (a reload since then cannot be seen: it has no PidFile)"
    findings.wrong(
        "warning",
        "sshd.files",
        path,
        f"changed {_time(changed)}, after sshd began or was reloaded, {_time(read)}{doubt}",
        why="the sshd that runs may do something else than is told here",
        remedy=running.reload(),
    )


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _look_at(
    findings: Findings, setting: Setting, effective: Effective, remedies: Remedies
) -> None:
    code = f"sshd.{setting.keyword}"
    value = " ".join(effective.get(setting.keyword.lower(), ()))
    if setting.fits(value):
        findings.ok(code, setting.keyword, value or "not set")
        return
    findings.wrong(
        setting.severity,
        code,
        setting.keyword,
        value or "not known to this sshd",
        needed=setting.value,
        why=setting.risk,
        remedy=remedies.for_account(setting.keyword, setting.value),
    )


_CHANNELS_OF_A_PULL = ("session:command", "forwarded-streamlocal@openssh.com")


def _cuts_a_pull(timeout: str) -> bool:
    """Whether a ``TYPE=INTERVAL`` is one that ends a request or its stream when it is silent."""
    kind, _, interval = timeout.partition("=")
    ends = re.fullmatch(r"0*[smhdw]?", interval) is None
    return ends and any(_fits(channel, kind) for channel in _CHANNELS_OF_A_PULL)


def _look_at_all_accounts(
    findings: Findings, effective: Effective, for_all: Effective, remedies: Remedies
) -> None:
    """What sshd takes for all accounts or for none."""
    for keyword, value, why in (
        ("PermitUserEnvironment", "no", "~/.ssh/environment reaches the account's shell"),
        ("StrictModes", "yes", "sshd would use a file of keys that others can write"),
    ):
        found = " ".join(effective.get(keyword.lower(), ()))
        if found == value:
            findings.ok(f"sshd.{keyword}", keyword, found)
        else:
            findings.wrong(
                "warning",
                f"sshd.{keyword}",
                keyword,
                found,
                needed=value,
                why=why,
                remedy=remedies.for_all(keyword, value),
            )
    # A Match does not undo those that are set for all (OpenSSH 9.2), so both are looked at.
    timeouts = {
        word
        for said in (effective, for_all)
        for line in said.get("channeltimeout", ())
        for word in line.split()
    }
    cutting = sorted(filter(_cuts_a_pull, timeouts))
    if not cutting:
        findings.ok("sshd.ChannelTimeout", "ChannelTimeout", "none")
        return
    findings.wrong(
        "warning",
        "sshd.ChannelTimeout",
        "ChannelTimeout",
        " ".join(cutting),
        needed="none",
        why="a backup that is silent for so long is cut",
        remedy=remedies.for_all("ChannelTimeout", "none"),
    )


def _look_at_admission(
    findings: Findings, account: accounts.Account, effective: Effective, remedies: Remedies
) -> None:
    """Whether the lists of who may log in at all let the account in."""
    groups = account.groups
    for keyword, names in (
        ("DenyUsers", (account.name,)),
        ("DenyGroups", groups),
        ("AllowUsers", (account.name,)),
        ("AllowGroups", groups),
    ):
        patterns = " ".join(effective.get(keyword.lower(), ())).split()
        listing = _listing(names, patterns)
        admits = keyword.startswith("Allow")
        if not patterns or bool(listing) == admits:
            findings.ok(f"sshd.{keyword}", keyword, " ".join(patterns) or "not set")
            continue
        # A pattern with a host in it denies those who come from there alone.
        somewhere = listing and all("@" in pattern for pattern in listing)
        change = f"add {names[0]}" if admits else f"take {' '.join(listing)} out"
        findings.wrong(
            "warning" if somewhere else "error",
            f"sshd.{keyword}",
            keyword,
            " ".join(patterns),
            needed=f"an entry for {account.name}" if admits else f"none for {account.name}",
            why="it cannot log in" + (" from there" if somewhere else ""),
            remedy=f"{change} at {remedies.places(keyword)}, then run {remedies.reload()}",
        )


def _listing(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Those of ``patterns`` that are for one of ``names``, wherever they log in from."""
    return [
        pattern
        for pattern in patterns
        if any(_fits(name, pattern.partition("@")[0]) for name in names)
    ]


def _fits(name: str, pattern: str) -> bool:
    """As sshd compares: ``*`` and ``?`` alone mean something."""
    parts = (
        ".*" if character == "*" else "." if character == "?" else re.escape(character)
        for character in pattern
    )
    return re.fullmatch("".join(parts), name) is not None
