"""``borg-pull-admin check``: everything that is wrong with a whitelist, and what is risky.

Errors are what the forced command refuses: faults of the text itself, and, where the account it
runs as is known and its view can be taken, what it would refuse on this host as it stands. Warnings
are legal: a rule that gives much away, a path that is not there now. What would be refused as far
as can be seen, without that view, is a warning too. With ``--json`` the answer is one `Report`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypedDict

import click

from borg_pull import accounts
from borg_pull.admin import host
from borg_pull.audit import sidecar_of
from borg_pull.configuration_files import client_directory, main_file
from borg_pull.errors import ConfigurationError, printable
from borg_pull.output import print_lines, put
from borg_pull.positions import Positions
from borg_pull.roles import NEEDS, ROLES, Features, missing
from borg_pull.schema import Fault, SourceFile
from borg_pull.source import staging
from borg_pull.source.installation import program_beside, socket_wrapper
from borg_pull.source.request import ENCRYPTION_MODES, spelling, split
from borg_pull.source.whitelist import ClientRules, Settings, examine
from borg_pull.trust import (
    Trust,
    check_directories,
    check_own_directory,
    check_program,
    read_file,
)
from borg_pull.values import quoted

MANY_CLIENTS = 200
"""Clients in the main file from which on every request pays noticeably for parsing all of them."""

Severity = Literal["error", "warning"]

MAX_PASSPHRASE_FILE = 4096  # bytes, as source.passphrase reads


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One error or warning."""

    severity: Severity
    code: str
    """Short name of the kind of finding; stable, for programs."""
    file: str
    line: int | None
    key: str
    """Dotted key path; empty for a finding about the whole file."""
    message: str

    def text(self) -> str:
        """``FILE:LINE: KEY: MESSAGE``, warnings marked as such."""
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        mark = "warning: " if self.severity == "warning" else ""
        key = f"{self.key}: " if self.key else ""
        return printable(f"{place}: {mark}{key}{self.message}")


class FindingObject(TypedDict):
    """A finding in a `Report`; the fields are those of `Finding`."""

    code: str
    file: str
    line: int | None
    key: str
    message: str


class Report(TypedDict):
    """The answer of ``check --json``."""

    type: Literal["check"]
    version: Literal[1]
    config: str
    """Absolute path of the main file."""
    ok: bool
    """Whether there is no error."""
    account: str | None
    """Whose view of the host was taken; null when unknown."""
    files: list[str]
    """All files read, the main file first."""
    clients: list[str]
    """Names of the clients that are sound."""
    errors: list[FindingObject]
    warnings: list[FindingObject]


_SCHEMA = """\
--json: an object of type "check", version 1, config, ok, account, files, clients, and errors and
warnings, each a list of objects with code, file, line, key, message.
"""


@click.command(epilog=_SCHEMA, short_help="Check a whitelist.")
@click.argument("config", type=click.Path(readable=False))
@click.option(
    "--user",
    metavar="ACCOUNT",
    help="Account of the forced command.  [default: the owner of home or socket_dir]",
)
@click.option("--strict", is_flag=True, help="Exit 78 for warnings, too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def check(config: str, user: str | None, strict: bool, as_json: bool) -> None:
    """Check the whitelist CONFIG and every file of clients.d beside it.

    Prints all errors, as FILE:LINE: KEY: MESSAGE, then warnings of what is legal but risky. Run it
    as root: only root can see the host as the forced command's account does, and so tell whether
    that may read and owns what it must.

    Exit code 0: sound, perhaps with warnings; 78: not.
    """
    checked = check_configuration(host.absolute(config), user)
    if as_json:
        put(json.dumps(checked.report()) + "\n")
    else:
        print_lines(_lines(checked))
    errors, warnings = (len(checked.of(severity)) for severity in ("error", "warning"))
    if errors:
        raise ConfigurationError(f"the configuration is wrong: {_count(errors, 'error')}")
    if warnings and strict:
        raise ConfigurationError(f"{_count(warnings, 'warning')} with --strict")


@dataclass(kw_only=True)
class Checked:
    """The findings about one configuration, in the order they are told."""

    config: str
    account: accounts.Account | None = None
    files: list[str] = field(default_factory=list)
    clients: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def of(self, severity: Severity | str) -> list[Finding]:
        """The findings of one severity."""
        return [finding for finding in self.findings if finding.severity == severity]

    def report(self) -> Report:
        """What ``--json`` prints."""
        return Report(
            type="check",
            version=1,
            config=self.config,
            ok=not self.of("error"),
            account=None if self.account is None else self.account.name,
            files=self.files,
            clients=self.clients,
            errors=[_object(finding) for finding in self.of("error")],
            warnings=[_object(finding) for finding in self.of("warning")],
        )


def check_configuration(config: str, user: str | None) -> Checked:
    """Everything there is to say about the configuration at ``config``.

    ``user`` names the forced command's account, None for the owner of home. Raises RequestError
    when there is no such account.
    """
    checked = Checked(config=config)
    main = _main_file(checked)
    if main is None:
        return checked
    found = host.client_files(config, host.UNCHECKED)
    checked.files = [main.name, *(file.name for file in found.files.values())]
    for path, error in found.unusable:
        checked.findings.append(_whole_file("error", "unreadable", path, error.line()))
    examined = examine(main, found.files)
    contents = {file.name: file.content for file in (main, *found.files.values())}
    order = {name: position for position, name in enumerate(checked.files)}
    checked.findings += sorted(
        (
            Finding(
                severity="error",
                code="wrong",
                file=fault.file,
                line=fault.line,
                key=fault.key,
                message=fault.message + _toml_hint(fault, contents),
            )
            for fault in examined.faults
        ),
        key=lambda finding: (order[finding.file], finding.line or 0),
    )
    checked.clients = list(examined.clients)
    checked.account = _account(user, examined.settings)
    notes = _Notes(main, found.files)
    for path in found.ignored:
        notes.add_whole("ignored-file", path, "is not NAME.toml; no forced command reads it")
    clients = examined.clients
    _look_at_rules(notes, config, clients, in_main=len(clients.keys() - found.files.keys()))
    if examined.settings is not None:
        _look_at_roles(notes, clients, examined.settings.features)
    if examined.settings is not None:
        files = (main, *found.files.values())
        _look_at_limits(notes, examined.settings.limits.max_sessions, clients)
        _look_at_host(notes, checked.account, examined.settings, files, clients)
    _look_at_paths(notes, clients)
    # The errors first, each kind in the order found.
    checked.findings += sorted(notes.found, key=lambda finding: finding.severity)
    return checked


def _main_file(checked: Checked) -> SourceFile | None:
    try:
        return main_file(checked.config, host.UNCHECKED)
    except ConfigurationError as error:
        message = error.line().removeprefix(f"{checked.config} ")
        if isinstance(error.__cause__, PermissionError) and os.geteuid() != 0:
            message += "; run this as root"
        checked.findings.append(_whole_file("error", "unreadable", checked.config, message))
        return None


def _account(user: str | None, settings: Settings | None) -> accounts.Account | None:
    if user is not None:
        return accounts.account_named(user)
    if settings is None:
        return None
    return accounts.account_behind(settings.runtime.home, settings.runtime.socket_dir)


_PLACE = re.compile(r"Invalid value \(at line (?P<line>\d+), column (?P<column>\d+)\)$")
_BARE_WORD = re.compile(r"[/~A-Za-z][^\s,\]}#]*")
_TRUTHS = ("yes", "no", "on", "off")


def _toml_hint(fault: Fault, contents: Mapping[str, bytes]) -> str:
    """What a fault of TOML's grammar most likely is, for who does not know it; may be empty."""
    if not fault.message.startswith("is not valid TOML") or fault.line is None:
        return ""
    lines = contents[fault.file].decode("utf-8").split("\n")
    line = lines[fault.line - 1] if fault.line <= len(lines) else ""
    outside = re.sub(r"""(["']).*?\1""", "", line).partition("#")[0]
    if '"' in outside or "'" in outside:
        return "; is a closing quote missing?"
    place = _PLACE.search(fault.message)
    word = None if place is None else _BARE_WORD.match(line, int(place["column"]) - 1)
    if word is None:
        return ""
    lower = word[0].lower()
    if lower in ("true", "false"):
        return f"; write {lower}, in lower case"
    return "; write true or false" if lower in _TRUTHS else "; text stands in quotes"


def _whole_file(severity: Severity, code: str, path: str, message: str) -> Finding:
    return Finding(
        severity=severity,
        code=code,
        file=path,
        line=None,
        key="",
        message=message.removeprefix(f"{path} "),
    )


class _Notes:
    """Collects findings, each with the place in the configuration it is about."""

    def __init__(self, main: SourceFile, client_files: dict[str, SourceFile]) -> None:
        self.found: list[Finding] = []
        self._main = main
        self._client_files = client_files
        self._positions: dict[str, Positions] = {}

    def add_whole(self, code: str, path: str, message: str, severity: Severity = "warning") -> None:
        """A finding about a whole file."""
        self.found.append(_whole_file(severity, code, path, message))

    def add(
        self,
        code: str,
        key: str,
        message: str,
        client: str | None = None,
        severity: Severity = "warning",
    ) -> None:
        """A finding about ``key``, which is relative to the table of ``client`` if there is one."""
        file = self._main
        if client is not None:
            if client in self._client_files:
                file = self._client_files[client]
            else:
                key = f"client.{client}.{key}" if key else f"client.{client}"
        if file.name not in self._positions:
            self._positions[file.name] = Positions(file.content.decode("utf-8"))
        self.found.append(
            Finding(
                severity=severity,
                code=code,
                file=file.name,
                line=self._positions[file.name].line(key),
                key=key,
                message=message,
            )
        )


def _look_at_rules(
    notes: _Notes, config: str, clients: Mapping[str, ClientRules], in_main: int
) -> None:
    """Rules that give much away, or cannot work, by the text alone."""
    if in_main >= MANY_CLIENTS:
        notes.add(
            "many-clients",
            "client",
            f"{in_main} clients in one file, all parsed for every request; a forced command "
            f"reads only its own of {client_directory(config)}/NAME.toml",
        )
    for name, rules in clients.items():
        for code, key, message in _risks(rules):
            notes.add(code, key, message, name)


def _look_at_roles(notes: _Notes, clients: Mapping[str, ClientRules], features: Features) -> None:
    """Roles that are more, or less, than they seem."""
    for name, rules in clients.items():
        for code, key, message in _role_risks(rules, features):
            notes.add(code, key, message, name)


def _role_risks(rules: ClientRules, features: Features) -> Iterator[tuple[str, str, str]]:
    if rules.role == "admin":
        if not features.enable_admin:
            yield "role", "role", "means no more than backup: features.enable_admin is not true"
            return
        may = [verb for verb, needs in NEEDS.items() if needs.switches]
        granted = [spelling(verb) for verb in may if missing(verb, rules.role, features) is None]
        yield "admin", "role", f"whoever holds the client's key may ask for {', '.join(granted)}"
        return
    rank = ROLES.index(rules.role)
    for key, least in (("actions", "action"), ("aio_targets", "backup")):
        if getattr(rules, key) and rank < ROLES.index(least):
            message = f"mean nothing with the role {rules.role}; they take {least}"
            yield "role", key, message


class _HostView:
    """What the forced command, run by ``account``, would refuse as the host stands.

    Without an account, only what must be root's is looked at.
    """

    def __init__(self, notes: _Notes, settings: Settings, account: accounts.Account | None) -> None:
        self._notes = notes
        self._settings = settings
        self._account = account
        self._sees = account is not None and accounts.can_act_as(account)
        """Whether the account's own view of the host can be taken."""
        program = program_beside("borg-pull-source")
        self._capable = host.has_capability(program) or not os.path.exists(program)
        """Whether the forced command refuses today what it must refuse with its capability."""
        self._is_root = os.geteuid() == 0
        self._told: set[str] = set()

    def look(self, files: Iterable[SourceFile], clients: Mapping[str, ClientRules]) -> None:
        """Look at everything but the paths to back up."""
        account = self._account
        if account is None:
            self._look_at_files_and_programs(files, clients)
            return
        if not self._sees:
            self._notes.add(
                "partial-view",
                "",
                f"ownership was not checked as {account.name} sees it; run this as root",
            )
        with accounts.acting_as(account):
            self._look_at_files_and_programs(files, clients)
            self._look_at_own(account)
            for name, rules in clients.items():
                self._look_at_passphrase_file(name, rules.passphrase_file)
                self._look_at_staging(account, name, rules.restore_to)

    def _look_at_files_and_programs(
        self, files: Iterable[SourceFile], clients: Mapping[str, ClientRules]
    ) -> None:
        for file in files:
            self._look_at_file(file)
        programs = (
            ("borg", self._settings.runtime.borg),
            ("socket_wrapper", socket_wrapper(self._settings)),
        )
        for key, program in programs:
            self._look_at_program(key.replace("_", "-"), f"runtime.{key}", program)
        for client, rules in clients.items():
            if rules.passcommand is not None:
                program = split(rules.passcommand)[0]
                self._look_at_program("passcommand", "passcommand", program, client)

    def _look_at_program(
        self, code: str, key: str, program: str, client: str | None = None
    ) -> None:
        absent = f"install it, or name another in {key.removeprefix('runtime.')}"
        self._try(code, key, lambda trust: check_program(program, trust), client, absent=absent)

    def _look_at_own(self, account: accounts.Account) -> None:
        """What must belong to the account itself."""
        runtime = self._settings.runtime
        self._look_at_directory("home", "runtime.home", runtime.home, account)
        socket_dir = runtime.socket_dir.rstrip("/") or "/"
        key = "runtime.socket_dir"
        is_sound = self._look_at_directory("socket-dir", key, socket_dir, account)
        if is_sound and os.lstat(socket_dir).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            message = f"{socket_dir} is open to others; run chmod 0700 {socket_dir}"
            self._notes.add("socket-dir", key, message)
        self._look_at_audit(self._settings.audit.file, account)

    def _refusal(
        self, attempt: Callable[[Trust], object], absent: str | None = None
    ) -> tuple[Severity, str] | None:
        """What the forced command's own check says, first without, then with its capability.

        ``absent``: what to do about something that does not exist.
        """
        account = self._account
        for enforced in (False, True):
            try:
                attempt(Trust(enforced=enforced, uid=0 if account is None else account.uid))
            except ConfigurationError as error:
                if isinstance(error.__cause__, PermissionError) and not self._sees:
                    return None
                remedy = _remedy(error, account, absent)
                told = error.message if remedy is None else f"{error.message}; {remedy}"
                name = "" if account is None else f", run as {account.name},"
                when = ", once it holds its capability" if enforced and not self._capable else ""
                severity = self._severity(only_with_capability=enforced)
                return severity, f"{told} (the forced command{name} refuses this{when})"
        return None

    def _severity(self, *, only_with_capability: bool = False) -> Severity:
        """Error for what is refused today; root looks after an installation with the capability."""
        if not self._sees:
            return "warning"
        refused = not only_with_capability or self._capable or self._is_root
        return "error" if refused else "warning"

    def _try(
        self,
        code: str,
        key: str,
        attempt: Callable[[Trust], object],
        client: str | None = None,
        absent: str | None = None,
    ) -> bool:
        """Note the refusal if there is one; whether there is none."""
        refusal = self._refusal(attempt, absent)
        if refusal is not None:
            severity, message = refusal
            self._notes.add(code, key, message, client, severity)
        return refusal is None

    def _look_at_file(self, file: SourceFile) -> None:
        size = len(file.content)
        refusal = self._refusal(
            lambda trust: read_file(file.name, trust, limit=size, own=False, secret=False)
        )
        # One directory above them spoils all files; that is told once.
        if refusal is not None and refusal[1] not in self._told:
            severity, message = refusal
            self._told.add(message)
            self._notes.add_whole("configuration-file", file.name, message, severity)

    def _look_at_directory(self, code: str, key: str, path: str, account: accounts.Account) -> bool:
        plain = path.rstrip("/") or "/"
        name = shlex.quote(plain)
        absent = f"run install -d -o {account.name} -g {account.group} -m 0700 {name}"
        is_sound = self._try(
            code, key, lambda trust: check_own_directory(plain, trust), absent=absent
        )
        if (
            is_sound
            and self._sees
            and not os.access(plain, os.R_OK | os.W_OK | os.X_OK, effective_ids=True)
        ):
            message = f"{plain} is not writable by {account.name}; run chmod 0700 {name}"
            self._notes.add(code, key, message, severity="error")
            return False
        return is_sound

    def _look_at_staging(
        self, account: accounts.Account, client: str, directory: str | None
    ) -> None:
        if directory is None:
            return
        name = shlex.quote(directory)
        make = f"run install -d -o {account.name} -g {account.group} -m 0700 {name}"

        def attempt(_trust: Trust) -> None:
            try:
                os.close(staging.open_parent(directory))
            except ConfigurationError as error:
                # Of all that can be wrong with it that makes it right, not just readable.
                cause = error.__cause__ if not self._sees else None
                raise ConfigurationError(error.message, make) from cause

        self._try("restore", "restore_to", attempt, client)

    def _look_at_audit(self, path: str, account: accounts.Account) -> None:
        is_sound = self._try("audit-file", "audit.file", lambda trust: _check_parents(path, trust))
        if is_sound and self._sees:
            fault = _audit_fault(path, account)
            if fault is not None:
                message = f"{fault}, so nothing would run"
                self._notes.add("audit-file", "audit.file", message, severity="error")

    def _look_at_passphrase_file(self, client: str, path: str | None) -> None:
        if path is not None:
            self._try(
                "passphrase-file",
                "passphrase_file",
                lambda trust: _check_passphrase_file(path, trust),
                client,
            )


_FOREIGN = re.compile(
    r"(?P<path>/.*) (?:belongs to uid \d+, not to (?P<owners>.*)|does not belong .*)"
)


def _remedy(
    error: ConfigurationError, account: accounts.Account | None, absent: str | None
) -> str | None:
    """The command that puts right what ``error`` says, else the error's own hint."""
    cause = error.__cause__
    if isinstance(cause, FileNotFoundError) and absent is not None:
        return absent
    if isinstance(cause, PermissionError) and account is not None:
        return _opening(os.fsdecode(cause.filename), account)
    foreign = _FOREIGN.fullmatch(error.message)
    if foreign is None:
        return error.hint
    path = foreign["path"]
    owner = "root"
    if account is not None and (foreign["owners"] is None or not os.path.isdir(path)):
        owner = "root" if foreign["owners"] == "root" else account.name
    return f"run chown {owner} {shlex.quote(path)}"


def _opening(path: str, account: accounts.Account) -> str:
    """How to let ``account``, which is looking now, read ``path``, and nobody else."""
    barred = host.barred_directory(path)
    mode = "0640" if barred is None else "0750"
    what = shlex.quote(barred or path)
    owner = accounts.owner_of(barred or path)
    # The configuration must be root's; where it is not, one round should do.
    give = "chgrp " if owner is None or owner.uid == 0 else "chown root:"
    commands = f"run {give}{account.group} {what} and chmod {mode} {what}"
    return f"so {account.name} cannot read it; {commands}"


def _audit_fault(path: str, account: accounts.Account) -> str | None:
    """Why no record could be written, as the account that is looking now."""
    directory = os.path.dirname(path)
    if not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
        return (
            f"{directory} is not writable by {account.name}; run chown {account.name} {directory}"
        )
    for file in (path, sidecar_of(path)):
        try:
            status = os.lstat(file)
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            return f"{file} is not a regular file with one name; move it away"
        if not os.access(file, os.R_OK | os.W_OK, effective_ids=True):
            return f"{file} is not writable by {account.name}; run chown {account.name} {file}"
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f"{file} can be written by others; run chmod go-w {file}"
    return None


def _look_at_host(
    notes: _Notes,
    account: accounts.Account | None,
    settings: Settings,
    files: Iterable[SourceFile],
    clients: Mapping[str, ClientRules],
) -> None:
    if account is None:
        message = (
            f"ownership was not checked: {settings.runtime.home} cannot be seen; name the forced "
            "command's account with --user"
        )
        notes.add("no-account", "runtime.home", message)
    elif account.uid == 0:
        message = (
            "the forced command refuses to run as root; give it an account of its own and run "
            f"chown ACCOUNT {settings.runtime.home}"
        )
        severity: Severity = "error" if accounts.can_act_as(account) else "warning"
        notes.add("root-account", "runtime.home", message, severity=severity)
        account = None
    _HostView(notes, settings, account).look(files, clients)


def _look_at_limits(notes: _Notes, most: int, clients: Mapping[str, ClientRules]) -> None:
    if len(clients) == 1:
        return
    for name, rules in clients.items():
        if rules.max_sessions >= most:
            message = (
                f"{rules.max_sessions} is not below the {most} of all clients together "
                "([limits] max_sessions): this client alone can keep all others out"
            )
            notes.add("max-sessions", "max_sessions", message, name)


def _look_at_paths(notes: _Notes, clients: Mapping[str, ClientRules]) -> None:
    """Paths to back up, as whoever runs this sees them: the forced command reads everything."""
    for client, rules in clients.items():
        for key, paths in (("paths", rules.paths), ("trees", rules.trees)):
            refuse_empty = rules.refuse_empty and key == "paths"
            for position, path in enumerate(paths):
                try:
                    message = host.path_obstacle(path, refuse_empty=refuse_empty)
                except PermissionError:
                    message = "cannot be looked at by this user; run this as root"
                if message is not None:
                    where = f"{key}[{position}]"
                    notes.add("path", where, f"{quoted(path)} {message}", client)


def _check_parents(path: str, trust: Trust) -> None:
    if trust.enforced:
        check_directories(path, trust, own=True)
    elif not os.path.isdir(os.path.dirname(path)):
        raise ConfigurationError(f"{os.path.dirname(path)} is not a directory")


def _check_passphrase_file(path: str, trust: Trust) -> None:
    content = read_file(path, trust, limit=MAX_PASSPHRASE_FILE, own=True, secret=True)
    if not content.partition(b"\n")[0].rstrip(b"\r"):
        raise ConfigurationError(f"{path} yields no passphrase", "its first line is empty")


def _risks(rules: ClientRules) -> Iterator[tuple[str, str, str]]:
    """(code, key, message) of what is legal but risky in one client's rules."""
    for position, tree in enumerate(rules.trees):
        if tree == "/":
            yield "whole-system", f"trees[{position}]", "'/' grants every path of the system"
    for key, paths in (("paths", rules.paths), ("trees", rules.trees)):
        for position, path in enumerate(paths):
            found = [character for character in "*?[" if character in path]
            if found:
                message = f"{quoted(path)} has {' and '.join(found)}: no pattern; taken literally"
                yield "pattern", f"{key}[{position}]", message
    for position, path in enumerate(rules.paths):
        if path == "/":
            yield "whole-system", f"paths[{position}]", "'/' is the whole file system"
        if path != "/" and path.endswith("/"):
            yield (
                "trailing-slash",
                f"paths[{position}]",
                f"{quoted(path)} ends in a slash and is compared verbatim: a request must end "
                "in one too",
            )
    makes_archives = "create" in rules.allow and rules.role in ("backup", "admin")
    is_of_aio = rules.actions or rules.aio_targets
    if makes_archives and not rules.paths and not rules.trees and not is_of_aio:
        yield "no-path", "paths", "there is neither a path nor a tree to create an archive of"
    if "exclude" in rules.flags:
        yield (
            "exclude",
            "flags",
            "exclude lets whoever holds the client's key leave files out of a backup unnoticed",
        )
    if "prune" in rules.allow:
        yield (
            "prune",
            f"allow[{rules.allow.index('prune')}]",
            "prune lets whoever holds the client's key delete archives",
        )
    if "init" in rules.allow and "none" in rules.encryption:
        yield (
            "unencrypted",
            f"encryption[{rules.encryption.index('none')}]",
            "none lets the client make a repository that anyone who gets at it can read",
        )
    if rules.allow_unknown_repository:
        yield (
            "unknown-repository",
            "allow_unknown_repository",
            "borg writes in the clear to any unencrypted repository the client presents",
        )
    if rules.allow_relocated_repository:
        yield (
            "relocated-repository",
            "allow_relocated_repository",
            "borg accepts a repository that was moved, or put in another's place",
        )
    yield from _restore_risks(rules)
    yield from _passphrase_risks(rules)


def _restore_risks(rules: ClientRules) -> Iterator[tuple[str, str, str]]:
    if "restore" in rules.allow and rules.restore_to is None:
        yield (
            "restore",
            f"allow[{rules.allow.index('restore')}]",
            "restore is refused without restore_to, the directory it may put files into",
        )
    if "restore" not in rules.allow and rules.restore_to is not None:
        yield "restore", "restore_to", "nothing is restored there: restore is not in allow"


_NEEDS_PASSPHRASE = tuple(mode for mode in ENCRYPTION_MODES if mode != "none")


def _passphrase_risks(rules: ClientRules) -> Iterator[tuple[str, str, str]]:
    has_source = bool(rules.passphrase_file or rules.passcommand or rules.passphrase_stdin)
    if not has_source and any(mode in _NEEDS_PASSPHRASE for mode in rules.encryption):
        yield (
            "no-passphrase",
            "encryption",
            "these modes need a passphrase; set passphrase_file, passcommand or passphrase_stdin",
        )


def _object(finding: Finding) -> FindingObject:
    return FindingObject(
        code=finding.code,
        file=finding.file,
        line=finding.line,
        key=finding.key,
        message=finding.message,
    )


_STYLES = {"error": "red", "warning": "yellow"}


def _lines(checked: Checked) -> Iterator[tuple[tuple[str, str], ...]]:
    for finding in checked.findings:
        yield ((finding.text(), _STYLES[finding.severity]),)
    if not checked.of("error"):
        warnings = len(checked.of("warning"))
        text = (
            f"{printable(checked.config)}: sound: {_count(len(checked.clients), 'client')} in "
            f"{_count(len(checked.files), 'file')}, {_count(warnings, 'warning')}"
        )
        yield ((text, "" if warnings else "green"),)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
