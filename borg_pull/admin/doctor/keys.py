"""Whose keys sshd lets in as the account, and what each may do there."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from borg_pull.admin import host
from borg_pull.admin.authorized_keys import KEY_OPTIONS, fingerprint_of, forced_command
from borg_pull.admin.doctor.findings import Findings
from borg_pull.admin.doctor.sshd import Asked
from borg_pull.errors import ConfigurationError
from borg_pull.source.installation import program_beside
from borg_pull.source.whitelist import ClientRules
from borg_pull.trust import Trust, read_file

_MAX_FILE = 16 * 1024 * 1024  # bytes
_KEY_TYPE = re.compile(r"(?:ssh|ecdsa|sk)-[a-z0-9@.-]+")
_GRANTS = ("agent-forwarding", "cert-authority", "environment", "pty", "user-rc", "x11-forwarding")
"""Options that give back what the line as it ships does not."""

NO_FILE = ("none",)
NO_COMMAND = "none"


def look(
    findings: Findings,
    account: host.Account,
    config: str,
    clients: Mapping[str, ClientRules],
    asked: Asked | None,
) -> None:
    """Look at every file of keys that sshd would read, or the command it would run."""
    if asked is None:
        findings.unchecked(
            "keys.files", "keys", "which files sshd reads for the account is not known"
        )
        return
    _Keys(findings, account, config, clients, asked).look()


@dataclass(frozen=True, kw_only=True)
class Line:
    """One key that may log in."""

    number: int
    options: str
    key: str
    """Type and Base64."""
    comment: str

    def option_values(self) -> dict[str, str]:
        """Options by name in lower case; empty text for those that have no value."""
        values: dict[str, str] = {}
        for match in re.finditer(r'([\w-]+)(?:="((?:[^"\\]|\\.)*)")?', self.options):
            value = re.sub(r'\\"', '"', match[2] or "")
            values.setdefault(match[1].lower(), value)
        return values


_LINE = re.compile(
    r'\s*(?:(?P<options>(?:[^\s"]|"(?:[^"\\]|\\.)*")+)\s+)??'
    rf"(?P<kind>{_KEY_TYPE.pattern})\s+(?P<blob>[A-Za-z0-9+/=]+)(?:\s+(?P<comment>.*))?\s*"
)


def lines_of(text: str) -> Iterator[Line | int]:
    """The lines of a file of keys; the number of one that is none."""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            yield number
            continue
        yield Line(
            number=number,
            options=match["options"] or "",
            key=f"{match['kind']} {match['blob']}",
            comment=match["comment"] or "",
        )


class _Keys:
    def __init__(
        self,
        findings: Findings,
        account: host.Account,
        config: str,
        clients: Mapping[str, ClientRules],
        asked: Asked,
    ) -> None:
        self._findings = findings
        self._account = account
        self._config = config
        self._clients = clients
        self._asked = asked
        self._admin = program_beside("borg-pull-admin")
        self._source = program_beside("borg-pull-source")
        self._expected = {
            " ".join(key.split()[:2]): (client, self._options(client))
            for client, rules in clients.items()
            for key in rules.keys
        }
        self._seen: set[str] = set()

    def _options(self, client: str) -> str:
        command = os.fsdecode(forced_command(self._source, self._config, client))
        return f'{KEY_OPTIONS},command="{command}"'

    def look(self) -> None:
        effective = self._asked.effective
        files = " ".join(effective.get("authorizedkeysfile", NO_FILE)).split()
        command = " ".join(effective.get("authorizedkeyscommand", (NO_COMMAND,)))
        user = " ".join(effective.get("authorizedkeyscommanduser", ("none",)))
        files = [self._expanded(file) for file in files if file not in NO_FILE]
        if command != NO_COMMAND:
            self._look_at_command(command, user)
        if not files and command == NO_COMMAND:
            self._findings.wrong(
                "error",
                "keys.none",
                "AuthorizedKeysFile",
                "none",
                why="no key can log in",
                remedy=self._asked.remedies.for_account(
                    "AuthorizedKeysFile", "/etc/borg-pull/authorized_keys"
                ),
            )
        for file in files:
            self._look_at_file(file, is_only=len(files) == 1 and command == NO_COMMAND)

    def _expanded(self, file: str) -> str:
        """As sshd fills in %h, %u and %U, and completes what does not begin with a slash."""
        try:
            home = host.home_of(self._account)
        except KeyError:
            home = "/"
        values = {"%": "%", "h": home, "u": self._account.name, "U": str(self._account.uid)}
        path = re.sub(r"%([%huU])", lambda found: values[found[1]], file)
        return path if path.startswith("/") else f"{home}/{path}"

    def _look_at_command(self, command: str, user: str) -> None:
        words = command.split()
        ours = words[:2] == [self._admin, "authorized-keys"] and self._config in words
        if ours and user not in ("root", "none"):
            self._findings.ok("keys.command", "AuthorizedKeysCommand", command)
            return
        self._findings.wrong(
            "error",
            "keys.command",
            "AuthorizedKeysCommand",
            f"{command} as {user}" if ours else command,
            needed="none, or ours, run as the account",
            why="what it prints can log in, with or without a forced command",
            remedy=self._asked.remedies.for_account("AuthorizedKeysCommand", "none"),
        )

    def _look_at_file(self, path: str, *, is_only: bool) -> None:
        write = (
            f"{shlex.join([self._admin, 'authorized-keys', self._config])} > {shlex.quote(path)}"
        )
        try:
            content = read_file(
                path, Trust(enforced=True, uid=0), limit=_MAX_FILE, own=False, secret=False
            )
        except ConfigurationError as error:
            self._refused(path, error, write, is_only=is_only)
            return
        with host.acting_as(self._account):
            is_readable = os.access(path, os.R_OK)
        if is_readable:
            self._findings.ok("keys.file", path, "is root's, and sshd can read it")
        else:
            self._findings.wrong(
                "error",
                "keys.file",
                path,
                f"cannot be read by {self._account.name}",
                why="sshd reads it as the account, so no key can log in",
                remedy=f"chmod 0644 {shlex.quote(path)}, and see that its directory can be entered",
            )
        for line in lines_of(content.decode("utf-8", "replace")):
            self._look_at_line(path, line, write)
        if not is_only:
            return
        for key, (client, _) in self._expected.items():
            if key not in self._seen:
                self._findings.wrong(
                    "warning",
                    "keys.missing",
                    path,
                    f"has no line for the key {fingerprint_of(key)} of client {client}",
                    why="that client cannot log in with it",
                    remedy=write,
                )

    def _refused(self, path: str, error: ConfigurationError, write: str, *, is_only: bool) -> None:
        if isinstance(error.__cause__, FileNotFoundError):
            if is_only:
                self._findings.wrong(
                    "error",
                    "keys.file",
                    path,
                    "does not exist",
                    why="no key can log in",
                    remedy=write,
                )
            return
        self._findings.wrong(
            "error",
            "keys.file",
            path,
            error.message.removeprefix(f"{path} "),
            needed="a file that only root can change, in directories that only root can change",
            why="who can write it lets keys in, without a forced command",
            remedy=error.hint
            or self._asked.remedies.for_account(
                "AuthorizedKeysFile", "/etc/borg-pull/authorized_keys"
            ),
        )

    def _look_at_line(self, path: str, line: Line | int, write: str) -> None:
        if isinstance(line, int):
            self._findings.wrong(
                "warning",
                "keys.line",
                f"{path}:{line}",
                "is no line that sshd understands",
                remedy=write,
            )
            return
        self._seen.add(line.key)
        place = f"{path}:{line.number}"
        expected = self._expected.get(line.key)
        if expected is not None and line.options == expected[1]:
            self._findings.ok("keys.line", place, f"a key of client {expected[0]}")
            return
        level, found, why = self._fault(line)
        self._findings.wrong(
            "error" if level == "error" else "warning",
            "keys.line",
            place,
            found,
            needed=None if expected is None else "the line that authorized-keys prints",
            why=why,
            remedy=write,
        )

    def _fault(self, line: Line) -> tuple[str, str, str | None]:
        """(level, what is, why) of a line that is not as it would be printed."""
        options = line.option_values()
        command = options.get("command")
        if command is None:
            return "error", "has no forced command", "its holder can run anything as the account"
        try:
            words = shlex.split(command)
        except ValueError:
            words = []
        if len(words) != 3 or words[0] != self._source:
            return "error", f"has another forced command: {command}", "it is not judged here"
        if words[1] != self._config:
            return "warning", f"is for another whitelist, {words[1]}", None
        if words[2] not in self._clients:
            return "warning", f"is for {words[2]}, who is no client of the whitelist", None
        expected = self._expected.get(line.key)
        if expected is not None and expected[0] != words[2]:
            why = "its requests are judged, and recorded, as another's"
            return "error", f"is for {words[2]}, but the key is of client {expected[0]}", why
        given = [name for name in _GRANTS if name in options]
        if given:
            return "warning", f"gives more than is needed: {', '.join(given)}", None
        narrow = ("restrict", "permitopen", "permitlisten")
        lacking = [name for name in narrow if name not in options]
        if lacking:
            why = "sshd's settings alone keep it from more than that"
            return "warning", f"lacks {', '.join(lacking)}", why
        if expected is None:
            return "warning", f"is for a key that client {words[2]} does not list in keys", None
        return "warning", "is not as it would be printed now", None
