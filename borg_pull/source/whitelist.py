"""The whitelist: from TOML text to rules, with every error named at once.

Pure: it is given the text of the files and returns rules or raises. The main file may hold
clients as ``[client.NAME]``; ``clients.d/NAME.toml`` beside it holds the same keys without a
table header. A forced command is given the main file and its own client's file only, so the
cost of a request does not grow with the number of clients.
"""

from __future__ import annotations

from borg_pull.errors import ConfigurationError
from borg_pull.record import Record
from borg_pull.source.request import (
    ENCRYPTION_MODES,
    VERBS,
    compression_fault,
    exclude_fault,
    path_fault,
    quoted,
    repository_fault,
)
from borg_pull.toml import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class SourceFile(Record):
    """One configuration file as read."""

    name: str
    """Path, for messages."""
    content: bytes


class Fault(Record):
    """One thing that is wrong with the configuration."""

    file: str
    line: int | None
    key: str
    """Dotted key path; empty for a fault of the whole file."""
    message: str

    def text(self) -> str:
        """``FILE:LINE: KEY: MESSAGE``"""
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.key}: {self.message}" if self.key else f"{place}: {self.message}"


class WhitelistError(ConfigurationError):
    """The configuration cannot be used; ``faults`` holds everything that is wrong with it."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        first = faults[0].text()
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        super().__init__(f"the configuration is wrong: {first}{more}", "see borg-pull-admin check")
        self.faults = tuple(faults)


class Runtime(Record):
    """``[runtime]``; directories and programs."""

    socket_wrapper: str | None
    socket_dir: str
    home: str
    borg: str


class AuditSettings(Record):
    """``[audit]``; where and how records are written."""

    file: str
    sync: bool


class ConfineSettings(Record):
    """``[confine]``; what the kernel is asked to enforce."""

    landlock: str
    also_readable: tuple[str, ...]


class ClientRules(Record):
    """What one client may do."""

    paths: tuple[str, ...]
    trees: tuple[str, ...]
    allow: tuple[str, ...]
    flags: tuple[str, ...]
    required_flags: tuple[str, ...]
    compressions: tuple[str, ...]
    excludes: tuple[str, ...]
    encryption: tuple[str, ...]
    repositories: tuple[str, ...]
    passphrase_file: str | None
    passcommand: str | None
    passphrase_stdin: bool
    allow_unknown_repository: bool
    allow_relocated_repository: bool
    refuse_empty: bool
    keys: tuple[str, ...]


class Settings(Record):
    """The part of the configuration that is not about one client."""

    runtime: Runtime
    audit: AuditSettings
    confine: ConfineSettings


class Whitelist(Record):
    """Settings and the rules of the clients that were read."""

    settings: Settings
    clients: Mapping[str, ClientRules]


class Key(Record):
    """One key of the configuration: how it is checked and what the docs say of it."""

    name: str
    kind: str
    """TOML type for messages and the docs."""
    fault: Callable[[object], str | None]
    default: object
    """Value when absent; ``REQUIRED`` when there is none."""
    default_text: str
    """The default as the docs show it."""
    doc: str


REQUIRED = object()


def _absolute_path(value: object) -> str | None:
    if not isinstance(value, str):
        return _wrong_type("an absolute path", value)
    fault = path_fault(value)
    return None if fault is None else f"{quoted(value)} {fault}"


def _program(value: object) -> str | None:
    fault = _absolute_path(value)
    if fault is None and (" " in str(value) or not str(value).isprintable()):
        return f"{quoted(str(value))} has a space or unprintable character"
    return fault


def _text(value: object) -> str | None:
    if not isinstance(value, str):
        return _wrong_type("a string", value)
    if not value or not value.isprintable():
        return f"{quoted(value)} is empty or has unprintable characters"
    return None


def _boolean(value: object) -> str | None:
    return None if isinstance(value, bool) else _wrong_type("true or false", value)


def _each(what: str, fault: Callable[[str], str | None]) -> Callable[[object], str | None]:
    def check(value: object) -> str | None:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            return _wrong_type(f"an array of {what}", value)
        for position, item in enumerate(value):
            wrong = fault(item)
            if wrong is not None:
                return f"item {position + 1}, {quoted(item)}, {wrong}"
            if item in value[:position]:
                return f"item {position + 1}, {quoted(item)}, stands there twice"
        return None

    return check


def _one_of(names: tuple[str, ...]) -> Callable[[str], str | None]:
    def check(item: str) -> str | None:
        if item in names:
            return None
        nearest = nearest_name(item, names)
        return f"is unknown{nearest}; known are {', '.join(names)}"

    return check


def _tree_fault(tree: str) -> str | None:
    fault = path_fault(tree)
    if fault is None and tree != "/" and tree.endswith("/"):
        return "ends in a slash; a tree is written without one"
    return fault


def _public_key_fault(line: str) -> str | None:
    words = line.split(" ")
    known = ("ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-")
    if not line.isprintable() or len(words) < 2 or not words[0].startswith(known):
        return "is not a public key line (TYPE BASE64 [COMMENT])"
    if not words[1].isascii() or not all(c.isalnum() or c in "+/=" for c in words[1]):
        return "has a key that is not Base64"
    return None


def _wrong_type(expected: str, value: object) -> str:
    names = {
        bool: "a boolean",
        str: "a string",
        int: "a number",
        list: "an array",
        dict: "a table",
    }
    return f"must be {expected}, not {names.get(type(value), type(value).__name__)}"


CREATE_FLAGS = tuple(option.name for option in VERBS["create"].options if option.name != "socket")
_DEFAULT_FLAGS = tuple(name for name in CREATE_FLAGS if name != "exclude")
_GRANTABLE_VERBS = tuple(name for name in VERBS if name != "hello")

_PATHS = "array of absolute paths"
_NAMES = "array of strings"

RUNTIME_KEYS = (
    Key(
        name="socket_dir",
        kind="absolute path",
        fault=_absolute_path,
        default=REQUIRED,
        default_text="required",
        doc="Directory of the forwarded sockets, `CLIENT.sock` and `CLIENT.NONCE.sock`. "
        "Owned by the account, mode 0700.",
    ),
    Key(
        name="home",
        kind="absolute path",
        fault=_absolute_path,
        default=REQUIRED,
        default_text="required",
        doc="State directory. Each client has `clients/NAME` in it: borg's keys, cache and "
        "security data, the lock. Owned by the account.",
    ),
    Key(
        name="socket_wrapper",
        kind="absolute path",
        fault=_program,
        default=None,
        default_text="the `borg-pull-socket-wrap` beside the running program",
        doc="Program that borg starts in place of ssh. It is told the socket in "
        "`BORGSOCKETWRAP_SOCKET_PATH`; its arguments mean nothing.",
    ),
    Key(
        name="borg",
        kind="absolute path",
        fault=_program,
        default="/usr/bin/borg",
        default_text="`/usr/bin/borg`",
        doc="The borg program, 1.2 or 1.4.",
    ),
)

AUDIT_KEYS = (
    Key(
        name="file",
        kind="absolute path",
        fault=_absolute_path,
        default=None,
        default_text="`audit.jsonl` in `runtime.home`",
        doc="The audit log. Its directory must be writable by the account.",
    ),
    Key(
        name="sync",
        kind="boolean",
        fault=_boolean,
        default=False,
        default_text="`false`",
        doc="Wait for the disk after each record, so that a power cut loses none.",
    ),
)

LANDLOCK_MODES = ("required", "auto", "off")


def _landlock_fault(value: object) -> str | None:
    if not isinstance(value, str):
        return _wrong_type("a string", value)
    fault = _one_of(LANDLOCK_MODES)(value)
    return None if fault is None else f"{quoted(value)} {fault}"


CONFINE_KEYS = (
    Key(
        name="landlock",
        kind="string",
        fault=_landlock_fault,
        default="auto",
        default_text='`"auto"`',
        doc="Whether the kernel confines borg to the paths asked for: `required` runs nothing "
        "where it cannot, `auto` runs and says so in the audit record, `off` does not ask.",
    ),
    Key(
        name="also_readable",
        kind=_PATHS,
        fault=_each("absolute paths", path_fault),
        default=(),
        default_text="`[]`",
        doc="Further files and directories that borg or the socket wrapper must load, for "
        "programs installed outside the usual places.",
    ),
)

CLIENT_KEYS = (
    Key(
        name="paths",
        kind=_PATHS,
        fault=_each("absolute paths", path_fault),
        default=(),
        default_text="`[]`",
        doc="Paths the client may pull, compared verbatim: what lies below a listed path cannot "
        "be asked for by name (it is part of the backup of that path).",
    ),
    Key(
        name="trees",
        kind=_PATHS,
        fault=_each("absolute paths", _tree_fault),
        default=(),
        default_text="`[]`",
        doc="Directories of which the client may pull any part: the directory or any path below.",
    ),
    Key(
        name="allow",
        kind="array of verbs",
        fault=_each("verbs", _one_of(_GRANTABLE_VERBS)),
        default=("create",),
        default_text='`["create"]`',
        doc="Verbs the client may use, of "
        + ", ".join(f"`{name}`" for name in _GRANTABLE_VERBS)
        + ". `hello` is always answered.",
    ),
    Key(
        name="flags",
        kind="array of flags",
        fault=_each("flags", _one_of(CREATE_FLAGS)),
        default=_DEFAULT_FLAGS,
        default_text="all but `exclude`",
        doc="Flags of `create` the client may give, by long name without dashes: "
        + ", ".join(f"`{name}`" for name in CREATE_FLAGS)
        + ".",
    ),
    Key(
        name="required_flags",
        kind="array of flags",
        fault=_each("flags", _one_of(CREATE_FLAGS)),
        default=(),
        default_text="`[]`",
        doc="Flags of `create` without which a request is refused.",
    ),
    Key(
        name="compressions",
        kind=_NAMES,
        fault=_each("compression specifications", compression_fault),
        default=(),
        default_text="`[]`, any",
        doc="Compressions the client may ask for. `zstd` stands for every level, `zstd,3` for "
        "itself only.",
    ),
    Key(
        name="excludes",
        kind="array of patterns",
        fault=_each("patterns", exclude_fault),
        default=(),
        default_text="`[]`",
        doc="Patterns always given to `create` as `--exclude`, whatever the client asks.",
    ),
    Key(
        name="encryption",
        kind="array of modes",
        fault=_each("encryption modes", _one_of(ENCRYPTION_MODES)),
        default=(),
        default_text="`[]`, none",
        doc="Encryption modes the client may name with `init`: "
        + ", ".join(f"`{name}`" for name in ENCRYPTION_MODES)
        + ".",
    ),
    Key(
        name="repositories",
        kind=_PATHS,
        fault=_each("absolute paths", repository_fault),
        default=(),
        default_text="`[]`, any",
        doc="Repository paths (on the client) this source may be told to write to.",
    ),
    Key(
        name="passphrase_file",
        kind="absolute path",
        fault=_absolute_path,
        default=None,
        default_text="none",
        doc="File whose first line is the repository passphrase. Owned by root or the account, "
        "readable by nobody else.",
    ),
    Key(
        name="passcommand",
        kind="string",
        fault=_text,
        default=None,
        default_text="none",
        doc="Command whose first line of output is the passphrase; split like a shell would, run "
        "without one and without the capability.",
    ),
    Key(
        name="passphrase_stdin",
        kind="boolean",
        fault=_boolean,
        default=False,
        default_text="`false`",
        doc="Take the passphrase from the first line of standard input, so that no secret rests "
        "on the source.",
    ),
    Key(
        name="allow_unknown_repository",
        kind="boolean",
        fault=_boolean,
        default=False,
        default_text="`false`",
        doc="Let borg use an unencrypted repository it has not seen before.",
    ),
    Key(
        name="allow_relocated_repository",
        kind="boolean",
        fault=_boolean,
        default=False,
        default_text="`false`",
        doc="Let borg use a known repository that now has another path.",
    ),
    Key(
        name="refuse_empty",
        kind="boolean",
        fault=_boolean,
        default=False,
        default_text="`false`",
        doc="Fail when a path asked for is an empty directory or file, such as a mount point "
        "without its mount.",
    ),
    Key(
        name="keys",
        kind="array of public keys",
        fault=_each("public keys", _public_key_fault),
        default=(),
        default_text="`[]`",
        doc="Public keys of the client, for `borg-pull-admin authorized-keys`.",
    ),
)

_TABLES: dict[str, tuple[Key, ...]] = {
    "runtime": RUNTIME_KEYS,
    "audit": AUDIT_KEYS,
    "confine": CONFINE_KEYS,
}
_CLIENTS = "client"


def is_client_name(name: str) -> bool:
    """Whether ``name`` fits: letters, digits and ``._-``, first a letter or digit, at most 64.

    The name becomes part of a socket's and a directory's name and the host of borg's URL.
    """
    return (
        0 < len(name) <= 64
        and name.isascii()
        and name[0].isalnum()
        and all(character.isalnum() or character in "._-" for character in name)
    )


def load(
    main: SourceFile, client_files: Mapping[str, SourceFile], only: str | None = None
) -> Whitelist:
    """The rules in ``main`` and in the files of single clients (name to file).

    ``only`` limits the checking of ``[client]`` tables to that client. Raises WhitelistError
    with every fault found.
    """
    faults: list[Fault] = []
    document = _document(main, faults)
    if document is None:
        raise WhitelistError(faults)
    check = _Check(main, faults)
    settings = _settings(check, document)
    clients: dict[str, ClientRules] = {}
    tables = document.get(_CLIENTS, {})
    if not isinstance(tables, dict):
        check.fault(_CLIENTS, _wrong_type("a table", tables))
        tables = {}
    for name in tables if only is None else [only] if only in tables else []:
        if name in client_files:
            check.fault(
                f"{_CLIENTS}.{name}",
                f"stands in {client_files[name].name} too; keep one of them",
            )
        clients[name] = _client(check, name, tables[name], f"{_CLIENTS}.{name}")
    for name, file in client_files.items():
        content = _document(file, faults)
        if content is not None:
            clients[name] = _client(_Check(file, faults), name, content, "")
    if faults or settings is None:
        raise WhitelistError(faults)
    return Whitelist(settings=settings, clients=clients)


def load_settings(main: SourceFile) -> Settings | None:
    """The settings alone, None unless they are sound: enough to record that the rest is not."""
    faults: list[Fault] = []
    document = _document(main, faults)
    settings = None if document is None else _settings(_Check(main, faults), document)
    return settings


def _document(file: SourceFile, faults: list[Fault]) -> dict[str, object] | None:
    try:
        return loads(file.content.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = file.content.count(b"\n", 0, error.start) + 1
        faults.append(Fault(file=file.name, line=line, key="", message="is not UTF-8 text"))
    except ValueError as error:
        faults.append(
            Fault(
                file=file.name,
                line=_line_of_error(str(error)),
                key="",
                message=str(error),
            )
        )
    except RecursionError:
        faults.append(Fault(file=file.name, line=None, key="", message="is nested too deeply"))
    return None


def _line_of_error(message: str) -> int | None:
    """tomli ends its messages in ``(at line L, column C)``."""
    digits = message.rpartition("(at line ")[2].partition(",")[0]
    return int(digits) if digits.isdigit() else None


class _Check:
    """Checks tables of one file against the key tables and collects the faults."""

    def __init__(self, file: SourceFile, faults: list[Fault]) -> None:
        self._file = file
        self._faults = faults

    def fault(self, key: str, message: str) -> None:
        line = line_of_key(self._file.content.decode("utf-8", "replace"), key)
        self._faults.append(Fault(file=self._file.name, line=line, key=key, message=message))

    def values(self, table: object, keys: tuple[Key, ...], prefix: str) -> dict[str, object] | None:
        """Value of every key, None if any is wrong."""
        if not isinstance(table, dict):
            self.fault(prefix, _wrong_type("a table", table))
            return None
        sound = True
        values: dict[str, object] = {}
        for key in keys:
            if key.name in table:
                value = table[key.name]
                wrong = key.fault(value)
                values[key.name] = tuple(value) if isinstance(value, list) else value
            else:
                wrong = "is missing" if key.default is REQUIRED else None
                values[key.name] = key.default
            if wrong is not None:
                sound = False
                self.fault(_joined(prefix, key.name), wrong)
        names = tuple(key.name for key in keys)
        for name in table:
            if name not in values:
                sound = False
                self.fault(_joined(prefix, name), f"is unknown{nearest_name(name, names)}")
        return values if sound else None


def _settings(check: _Check, document: dict[str, object]) -> Settings | None:
    known = (*_TABLES, _CLIENTS)
    sound = True
    for name in document:
        if name not in known:
            sound = False
            check.fault(name, f"is unknown{nearest_name(name, known)}")
    runtime = check.values(document.get("runtime", {}), RUNTIME_KEYS, "runtime")
    audit = check.values(document.get("audit", {}), AUDIT_KEYS, "audit")
    confine = check.values(document.get("confine", {}), CONFINE_KEYS, "confine")
    if runtime is None or audit is None or confine is None or not sound:
        return None
    if audit["file"] is None:
        audit["file"] = f"{str(runtime['home']).rstrip('/')}/audit.jsonl"
    return Settings(
        runtime=Runtime(**runtime),  # type: ignore[arg-type]
        audit=AuditSettings(**audit),  # type: ignore[arg-type]
        confine=ConfineSettings(**confine),  # type: ignore[arg-type]
    )


_NO_RULES = ClientRules(**{key.name: key.default for key in CLIENT_KEYS})  # type: ignore[arg-type]


def _client(check: _Check, name: str, table: object, prefix: str) -> ClientRules:
    """The client's rules; with a fault on record, the defaults, which nobody gets to use."""
    if not is_client_name(name):
        check.fault(
            prefix or name,
            "is no client name (letters, digits, '.', '_', '-', up to 64)",
        )
    values = check.values(table, CLIENT_KEYS, prefix)
    if values is None:
        return _NO_RULES
    rules = ClientRules(**values)  # type: ignore[arg-type]
    for key, message in _contradictions(rules):
        check.fault(_joined(prefix, key), message)
    return rules


def _contradictions(rules: ClientRules) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    sources = [
        key
        for key, value in (
            ("passphrase_file", rules.passphrase_file),
            ("passcommand", rules.passcommand),
            ("passphrase_stdin", rules.passphrase_stdin),
        )
        if value
    ]
    if len(sources) > 1:
        found.append((sources[1], f"stands beside {sources[0]}; keep one of them"))
    found.extend(
        ("required_flags", f"requires {flag}, which flags does not allow")
        for flag in rules.required_flags
        if flag not in rules.flags
    )
    if "init" in rules.allow and not rules.encryption:
        found.append(("encryption", "must name at least one mode when allow has init"))
    return found


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def nearest_name(name: str, known: tuple[str, ...]) -> str:
    """``"; did you mean X?"``, empty when nothing is near."""
    # Costs `re`; imported only once something is wrong already.
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def line_of_key(text: str, key: str) -> int | None:
    """Line on which ``key`` (dotted) is set or its table begins; None when not found.

    tomli keeps no positions, so this reads headers and assignments again, after a fault.
    """
    table = ""
    header_line: int | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if stripped.startswith("["):
            table = _plain_key(stripped.strip("[ \t").partition("]")[0])
            if table == key or key.startswith(f"{table}."):
                header_line = number
            continue
        name, equals, _ = stripped.partition("=")
        if equals and _joined(table, _plain_key(name)) == key:
            return number
    return header_line


def _plain_key(text: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in text.split("."))
