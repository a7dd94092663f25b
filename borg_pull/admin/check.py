"""``borg-pull-admin check``: everything that is wrong with a whitelist, and what is risky.

Errors are what the text itself gets wrong; with one, requests end with exit code 78. Warnings are
legal: a rule that gives much away, or something on this host that the forced command would refuse
as it stands now. With ``--json`` the answer is one `Report`.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypedDict

import click

from borg_pull.admin import host
from borg_pull.admin.output import print_lines, put
from borg_pull.audit import sidecar_of
from borg_pull.errors import ConfigurationError, printable
from borg_pull.source.installation import client_directory, main_file, socket_wrapper
from borg_pull.source.positions import Positions
from borg_pull.source.request import ENCRYPTION_MODES, quoted, split
from borg_pull.source.whitelist import (
    ClientRules,
    Settings,
    SourceFile,
    examine,
)
from borg_pull.trust import (
    Trust,
    check_directories,
    check_own_directory,
    check_program,
    read_file,
)

MANY_CLIENTS = 200
"""Clients in the main file from which on every request pays noticeably for parsing all of them."""

MAX_PASSPHRASE_FILE = 4096  # bytes, as source.passphrase reads


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One error or warning."""

    severity: Literal["error", "warning"]
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
@click.argument("config", type=click.Path())
@click.option(
    "--user", metavar="ACCOUNT", help="Account of the forced command.  [default: the owner of home]"
)
@click.option("--strict", is_flag=True, help="Exit 78 for warnings, too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def check(config: str, user: str | None, strict: bool, as_json: bool) -> None:
    """Check the whitelist CONFIG and every file of clients.d beside it.

    Prints all errors, as FILE:LINE: KEY: MESSAGE, then warnings of what is legal but risky or
    would be refused on this host as it stands. Run it as root: only root can see the host as the
    forced command's account does.

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
    account: host.Account | None = None
    files: list[str] = field(default_factory=list)
    clients: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def of(self, severity: Literal["error", "warning"] | str) -> list[Finding]:
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
    order = {name: position for position, name in enumerate(checked.files)}
    checked.findings += sorted(
        (
            Finding(
                severity="error",
                code="wrong",
                file=fault.file,
                line=fault.line,
                key=fault.key,
                message=fault.message,
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
        files = (main, *found.files.values())
        _look_at_host(notes, checked.account, examined.settings, files, clients)
    _look_at_paths(notes, clients)
    checked.findings += notes.found
    return checked


def _main_file(checked: Checked) -> SourceFile | None:
    try:
        return main_file(checked.config, host.UNCHECKED)
    except ConfigurationError as error:
        message = error.line().removeprefix(f"{checked.config} ")
        checked.findings.append(_whole_file("error", "unreadable", checked.config, message))
        return None


def _account(user: str | None, settings: Settings | None) -> host.Account | None:
    if user is not None:
        return host.account_named(user)
    return None if settings is None else host.owner_of(settings.runtime.home)


def _whole_file(
    severity: Literal["error", "warning"], code: str, path: str, message: str
) -> Finding:
    return Finding(
        severity=severity,
        code=code,
        file=path,
        line=None,
        key="",
        message=message.removeprefix(f"{path} "),
    )


class _Notes:
    """Collects warnings, each with the place in the configuration it is about."""

    def __init__(self, main: SourceFile, client_files: dict[str, SourceFile]) -> None:
        self.found: list[Finding] = []
        self._main = main
        self._client_files = client_files
        self._positions: dict[str, Positions] = {}

    def add_whole(self, code: str, path: str, message: str) -> None:
        """A warning about a whole file."""
        self.found.append(_whole_file("warning", code, path, message))

    def add(self, code: str, key: str, message: str, client: str | None = None) -> None:
        """A warning about ``key``, which is relative to the table of ``client`` if there is one."""
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
                severity="warning",
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
        owner = _socket_name_owner(name)
        if owner in clients:
            message = f"client {owner} can ask for the socket name that is this client's"
            notes.add("socket-name-clash", "", message, name)


class _HostView:
    """What the forced command, run by ``account``, would refuse as the host stands.

    Without an account, only what must be root's is looked at.
    """

    def __init__(self, notes: _Notes, settings: Settings, account: host.Account | None) -> None:
        self._notes = notes
        self._settings = settings
        self._account = account
        self._told: set[str] = set()

    def look(self, files: Iterable[SourceFile], clients: Mapping[str, ClientRules]) -> None:
        """Look at everything but the paths to back up."""
        account = self._account
        if account is None:
            self._look_at_files_and_programs(files, clients)
            return
        if not host.can_act_as(account):
            self._notes.add(
                "partial-view", "", f"run this as root to see all that {account.name} sees"
            )
        with host.acting_as(account):
            self._look_at_files_and_programs(files, clients)
            self._look_at_own(account)
            for name, rules in clients.items():
                self._look_at_passphrase_file(name, rules.passphrase_file)

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
        self._try(code, key, lambda trust: check_program(program, trust), client)

    def _look_at_own(self, account: host.Account) -> None:
        """What must belong to the account itself."""
        runtime = self._settings.runtime
        self._look_at_directory("home", "runtime.home", runtime.home)
        socket_dir = runtime.socket_dir.rstrip("/") or "/"
        key = "runtime.socket_dir"
        is_sound = self._look_at_directory("socket-dir", key, socket_dir)
        if is_sound and os.lstat(socket_dir).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            message = f"{socket_dir} is open to others; run chmod 0700 {socket_dir}"
            self._notes.add("socket-dir", key, message)
        self._look_at_audit(self._settings.audit.file, account)

    def _refusal(self, attempt: Callable[[Trust], object]) -> str | None:
        """What the forced command's own check says, first without, then with its capability."""
        account = self._account
        for enforced in (False, True):
            try:
                attempt(Trust(enforced=enforced, uid=0 if account is None else account.uid))
            except ConfigurationError as error:
                unseen = isinstance(error.__cause__, PermissionError)
                if unseen and not (account and host.can_act_as(account)):
                    return None
                when = ", once it holds its capability" if enforced else ""
                return f"{error.line()} (the forced command refuses this{when})"
        return None

    def _try(
        self, code: str, key: str, attempt: Callable[[Trust], object], client: str | None = None
    ) -> bool:
        """Note the refusal if there is one; whether there is none."""
        message = self._refusal(attempt)
        if message is not None:
            self._notes.add(code, key, message, client)
        return message is None

    def _look_at_file(self, file: SourceFile) -> None:
        size = len(file.content)
        message = self._refusal(
            lambda trust: read_file(file.name, trust, limit=size, own=False, secret=False)
        )
        # One directory above them spoils all files; that is told once.
        if message is not None and message not in self._told:
            self._told.add(message)
            self._notes.add_whole("configuration-file", file.name, message)

    def _look_at_directory(self, code: str, key: str, path: str) -> bool:
        plain = path.rstrip("/") or "/"
        return self._try(code, key, lambda trust: check_own_directory(plain, trust))

    def _look_at_audit(self, path: str, account: host.Account) -> None:
        is_sound = self._try("audit-file", "audit.file", lambda trust: _check_parents(path, trust))
        if not is_sound or not host.can_act_as(account):
            return
        unwritable = f"is not writable by {account.name}, so nothing would run"
        if not os.access(os.path.dirname(path), os.W_OK | os.X_OK):
            self._notes.add("audit-file", "audit.file", f"{os.path.dirname(path)} {unwritable}")
            return
        for file in (path, sidecar_of(path)):
            try:
                status = os.lstat(file)
            except FileNotFoundError:
                continue
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                message = f"{file} is not a regular file with one name"
                self._notes.add("audit-file", "audit.file", message)
            elif not os.access(file, os.W_OK):
                self._notes.add("audit-file", "audit.file", f"{file} {unwritable}")

    def _look_at_passphrase_file(self, client: str, path: str | None) -> None:
        if path is not None:
            self._try(
                "passphrase-file",
                "passphrase_file",
                lambda trust: _check_passphrase_file(path, trust),
                client,
            )


def _look_at_host(
    notes: _Notes,
    account: host.Account | None,
    settings: Settings,
    files: Iterable[SourceFile],
    clients: Mapping[str, ClientRules],
) -> None:
    if account is None:
        message = (
            f"{settings.runtime.home} cannot be seen, so what must be the account's own was not "
            "checked; name the forced command's account with --user"
        )
        notes.add("no-account", "runtime.home", message)
    elif account.uid == 0:
        message = "the forced command refuses to run as root; give it an account of its own"
        notes.add("root-account", "runtime.home", message)
        account = None
    _HostView(notes, settings, account).look(files, clients)


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


def _socket_name_owner(client: str) -> str | None:
    """The client that could name ``CLIENT.sock`` as its own ``NAME.NONCE.sock``."""
    name, _, nonce = client.rpartition(".")
    fits = name and 16 <= len(nonce) <= 64 and nonce.isalnum()
    return name if fits else None


def _risks(rules: ClientRules) -> Iterator[tuple[str, str, str]]:
    """(code, key, message) of what is legal but risky in one client's rules."""
    for position, tree in enumerate(rules.trees):
        if tree == "/":
            yield "whole-system", f"trees[{position}]", "'/' grants every path of the system"
    for position, path in enumerate(rules.paths):
        if path != "/" and path.endswith("/"):
            yield (
                "trailing-slash",
                f"paths[{position}]",
                f"{quoted(path)} ends in a slash and is compared verbatim: a request must end "
                "in one too",
            )
    if "create" in rules.allow and not rules.paths and not rules.trees:
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
    yield from _passphrase_risks(rules)


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
