"""Whose keys sshd lets in as the account, and what each may do there."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from borg_pull import accounts
from borg_pull.admin.authorized_keys import fingerprint_of, forced_command, key_options
from borg_pull.admin.doctor.sshd import Asked
from borg_pull.errors import ConfigurationError
from borg_pull.findings import Findings
from borg_pull.source.installation import program_beside
from borg_pull.source.whitelist import ClientRules, public_key_fault
from borg_pull.trust import Trust, read_file

_MAX_FILE = 16 * 1024 * 1024  # bytes
_KEY_TYPE = re.compile(r"(?:ssh|ecdsa|sk)-[a-z0-9@.-]+")
_GRANTS = ("agent-forwarding", "cert-authority", "environment", "pty", "user-rc", "x11-forwarding")
"""Options that give back what the line as it ships does not."""

_USUAL_FILE = "/etc/borg-pull/authorized_keys"
_FOREIGN = re.compile(r"(?P<path>/.*) belongs to uid \d+, not to root")

NO_FILE = ("none",)
NO_COMMAND = "none"


def look(
    findings: Findings,
    account: accounts.Account,
    config: str,
    clients: Mapping[str, ClientRules] | None,
    asked: Asked | None,
) -> None:
    """Look at every file of keys that sshd would read, or the command it would run.

    ``clients`` are None where the whitelist is not sound: then nothing is compared with them.
    """
    if asked is None:
        findings.unchecked(
            "keys.files",
            "keys",
            "which files sshd reads for the account is not known",
            "run this as root" if os.geteuid() != 0 else None,
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

    def has_known_options(self) -> bool:
        """Whether sshd takes them all."""
        if not self.options:
            return True
        return (
            _OPTIONS.fullmatch(self.options) is not None and self.option_values().keys() <= _KNOWN
        )

    def option_values(self) -> dict[str, str]:
        """Options by name in lower case; empty text for those that have no value."""
        values: dict[str, str] = {}
        for match in re.finditer(r'([\w-]+)(?:="((?:[^"\\]|\\.)*)")?', self.options):
            value = re.sub(r'\\"', '"', match[2] or "")
            values.setdefault(match[1].lower(), value)
        return values

    def command_words(self) -> list[str]:
        """The words of the forced command; none where there is none or it cannot be split."""
        try:
            return shlex.split(self.option_values().get("command", ""))
        except ValueError:
            return []


_LINE = re.compile(
    r'\s*(?:(?P<options>(?:[^\s"]|"(?:[^"\\]|\\.)*")+)\s+)??'
    rf"(?P<kind>{_KEY_TYPE.pattern})\s+(?P<blob>[A-Za-z0-9+/=]+)(?:\s+(?P<comment>.*))?\s*"
)


_OPTION = r'(?:[A-Za-z0-9-]+)(?:="(?:[^"\\]|\\.)*")?'
_OPTIONS = re.compile(rf"{_OPTION}(?:,{_OPTION})*")
_FLAGS = ("agent-forwarding", "port-forwarding", "pty", "user-rc", "x11-forwarding")
_KNOWN = frozenset(
    (
        *(*_FLAGS, *(f"no-{flag}" for flag in _FLAGS), "restrict", "cert-authority", "principals"),
        *("command", "environment", "expiry-time", "from", "permitlisten", "permitopen", "tunnel"),
        *("no-touch-required", "verify-required"),
    )
)
"""sshd(8); with any other sshd passes over the line."""


def lines_of(text: str) -> Iterator[Line | int]:
    """The lines of a file of keys; the number of one that is none."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            yield number
            continue
        line_of_key = Line(
            number=number,
            options=match["options"] or "",
            key=f"{match['kind']} {match['blob']}",
            comment=match["comment"] or "",
        )
        yield line_of_key if line_of_key.has_known_options() else number


class _Keys:
    def __init__(
        self,
        findings: Findings,
        account: accounts.Account,
        config: str,
        clients: Mapping[str, ClientRules] | None,
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
            " ".join(key.split()[:2]): (client, self._options(client, rules))
            for client, rules in (clients or {}).items()
            for key in rules.keys
        }
        self._seen: set[str] = set()
        self._served: set[str] = set()
        """The clients that some key's line runs the forced command for."""
        self._is_all_known = True
        """Whether each line that sshd would find was seen."""

    def _options(self, client: str, rules: ClientRules) -> str:
        command = os.fsdecode(forced_command(self._source, self._config, client))
        return f'{key_options(rules)},command="{command}"'

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
                remedy=self._asked.remedies.for_account("AuthorizedKeysFile", _USUAL_FILE),
            )
            return
        if self._clients is None:
            self._findings.unchecked(
                "keys.clients",
                self._config,
                "is not sound, so no key was compared with its clients",
                f"put it right first; {shlex.join([self._admin, 'check', self._config])} says how",
            )
        writes = [
            self._look_at_file(file, is_only=len(files) == 1 and command == NO_COMMAND)
            for file in files
        ]
        if self._is_all_known:
            self._look_for_clients(writes[0] if writes else None)

    def _look_for_clients(self, write: str | None) -> None:
        """Whether each client of the whitelist can log in, and with each of its keys."""
        for client, rules in (self._clients or {}).items():
            if client not in self._served:
                list_it = f"list its public key in keys, in {self._config}"
                then = list_it if write is None else f"{list_it}, then run {write}"
                self._findings.wrong(
                    "error",
                    "keys.client",
                    client,
                    "no key's line runs the forced command for it",
                    why="it cannot pull",
                    remedy=write if rules.keys else then,
                )
                continue
            for key in (" ".join(line.split()[:2]) for line in rules.keys):
                if key not in self._seen:
                    self._findings.wrong(
                        "warning",
                        "keys.missing",
                        client,
                        f"no line has its key {fingerprint_of(key)}",
                        why="it cannot log in with that one",
                        remedy=write,
                    )

    def _expanded(self, file: str) -> str:
        """As sshd fills in %h, %u and %U, and completes what does not begin with a slash."""
        try:
            home = accounts.home_of(self._account)
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
            self._served |= {client for client, _ in self._expected.values()}
            self._seen |= self._expected.keys()
            return
        self._is_all_known = False
        self._findings.wrong(
            "error",
            "keys.command",
            "AuthorizedKeysCommand",
            f"{command} as {user}" if ours else command,
            needed="none, or ours, run as the account",
            why="what it prints can log in, with or without a forced command",
            remedy=self._asked.remedies.for_account("AuthorizedKeysCommand", "none"),
        )

    def _look_at_file(self, path: str, *, is_only: bool) -> str:
        """Returns the command that writes the file anew."""
        write = shlex.join([self._admin, "authorized-keys", self._config, "--output", path])
        if self._clients is None:
            write = f"put the whitelist right, then run {write}"
        try:
            content = read_file(
                path, Trust(enforced=True, uid=0), limit=_MAX_FILE, own=False, secret=False
            )
        except ConfigurationError as error:
            if is_only or not isinstance(error.__cause__, FileNotFoundError):
                self._is_all_known = False
            self._refused(path, error, write, is_only=is_only)
            return write
        with accounts.acting_as(self._account):
            is_readable = os.access(path, os.R_OK, effective_ids=True)
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
        return write

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
            remedy=error.hint or self._elsewhere(path, error),
        )

    def _elsewhere(self, path: str, error: ConfigurationError) -> str | None:
        """What to do about a file in a wrong place, or in the right one that is not root's."""
        if path != _USUAL_FILE:
            return self._asked.remedies.for_account("AuthorizedKeysFile", _USUAL_FILE)
        foreign = _FOREIGN.fullmatch(error.message)
        return None if foreign is None else f"chown root {shlex.quote(foreign['path'])}"

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
        place = f"{path}:{line.number}"
        wrong = public_key_fault(line.key)
        if wrong is not None:
            self._findings.wrong(
                "warning",
                "keys.line",
                place,
                wrong,
                why="sshd passes over the line",
                remedy=write,
            )
            return
        is_first = line.key not in self._seen
        self._seen.add(line.key)
        words = line.command_words()
        if is_first and words[:2] == [self._source, self._config]:
            # sshd takes the first line that has the key.
            self._served.update(words[2:])
        expected = self._expected.get(line.key)
        if expected is not None and line.options == expected[1]:
            self._findings.ok("keys.line", place, f"a key of client {expected[0]}")
            return
        fault = self._fault(line)
        if fault is None:
            return
        level, found, why = fault
        self._findings.wrong(
            "error" if level == "error" else "warning",
            "keys.line",
            place,
            found,
            needed=None if expected is None else "the line that authorized-keys prints",
            why=why,
            remedy=write,
        )

    def _fault(self, line: Line) -> tuple[str, str, str | None] | None:
        """(level, what is, why) of a line that is not as it would be printed; None when that
        cannot be told."""
        options = line.option_values()
        command = options.get("command")
        if command is None:
            return "error", "has no forced command", "its holder can run anything as the account"
        words = line.command_words()
        if len(words) != 3 or words[0] != self._source:
            return "error", f"has another forced command: {command}", "it is not judged here"
        if words[1] != self._config:
            return "warning", f"is for another whitelist, {words[1]}", None
        expected = self._expected.get(line.key)
        if self._clients is not None:
            if words[2] not in self._clients:
                return "warning", f"is for {words[2]}, who is no client of the whitelist", None
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
        if self._clients is None:
            return None
        if expected is None:
            return "warning", f"is for a key that client {words[2]} does not list in keys", None
        return "warning", "is not as it would be printed now", None
