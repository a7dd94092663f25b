"""The whitelist: from TOML text to rules, with every error named at once.

Pure: it is given the text of the files and returns rules or raises. The main file may hold
clients as ``[client.NAME]``; ``clients.d/NAME.toml`` beside it holds the same keys without a
table header. A forced command is given the main file and its own client's file only, so the
cost of a request does not grow with the number of clients.
"""

from __future__ import annotations

from borg_pull.errors import ConfigurationError, RequestError
from borg_pull.record import Record
from borg_pull.source.request import (
    ENCRYPTION_MODES,
    VERBS,
    nonce_fault,
    quoted,
    split,
)
from borg_pull.toml import loads
from borg_pull.values import (
    compression_fault,
    exclude_fault,
    path_fault,
    repository_fault,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from borg_pull.source.positions import Positions


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


class LimitSettings(Record):
    """``[limits]``; what all clients together may have."""

    max_sessions: int


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
    restore_to: str | None
    allow_unknown_repository: bool
    allow_relocated_repository: bool
    refuse_empty: bool
    max_sessions: int
    requests_per_hour: int
    request_burst: int
    keys: tuple[str, ...]


class Settings(Record):
    """The part of the configuration that is not about one client."""

    runtime: Runtime
    audit: AuditSettings
    confine: ConfineSettings
    limits: LimitSettings


class Whitelist(Record):
    """Settings and the rules of the clients that were read."""

    settings: Settings
    clients: Mapping[str, ClientRules]


class Key(Record):
    """One key of the configuration: how it is checked and what the docs say of it."""

    name: str
    kind: str
    """TOML type for messages and the docs."""
    faults: Callable[[object], Wrong]
    default: object
    """Value when absent; ``REQUIRED`` when there is none."""
    default_text: str
    """The default as the docs show it."""
    doc: str


REQUIRED = object()

if TYPE_CHECKING:
    # What is wrong with a value: (position as in ``[2]``, empty for the whole value; message).
    Wrong = Sequence[tuple[str, str]]


def _string(what: str, fault: Callable[[str], str | None]) -> Callable[[object], Wrong]:
    def check(value: object) -> Wrong:
        if not isinstance(value, str):
            return [("", _wrong_type(what, value))]
        wrong = fault(value)
        return [] if wrong is None else [("", f"{quoted(value)} {wrong}")]

    return check


def _program_fault(path: str) -> str | None:
    fault = path_fault(path)
    if fault is None and (" " in path or not path.isprintable()):
        return "has a space or unprintable character"
    return fault


def _command_fault(command: str) -> str | None:
    if not command.isprintable():
        return "has unprintable characters"
    try:
        words = split(command)
    except RequestError as error:
        return f"cannot be split: {error.message.replace('the request', 'it')}"
    if not words or not words[0].startswith("/"):
        return "does not begin with an absolute path"
    return None


def _boolean(value: object) -> Wrong:
    return [] if isinstance(value, bool) else [("", _wrong_type("true or false", value))]


def _whole_number(least: int, most: int) -> Callable[[object], Wrong]:
    def check(value: object) -> Wrong:
        if isinstance(value, bool) or not isinstance(value, int):
            return [("", _wrong_type("a whole number", value))]
        if least <= value <= most:
            return []
        # A number of thousands of digits is not worth writing out, and Python refuses to.
        shown = str(value) if abs(value) < 10**18 else "the number"
        return [("", f"{shown} is not between {least} and {most}")]

    return check


def _each(what: str, fault: Callable[[str], str | None]) -> Callable[[object], Wrong]:
    def check(value: object) -> Wrong:
        if not isinstance(value, list):
            return [("", _wrong_type(f"an array of {what}", value))]
        wrong: list[tuple[str, str]] = []
        seen: set[str] = set()
        for position, item in enumerate(value):
            if not isinstance(item, str):
                wrong.append((f"[{position}]", _wrong_type("a string", item)))
                continue
            message = "stands there twice" if item in seen else fault(item)
            seen.add(item)
            if message is not None:
                wrong.append((f"[{position}]", f"{quoted(item)} {message}"))
        return wrong

    return check


_absolute_path = _string("an absolute path", path_fault)
_program = _string("an absolute path", _program_fault)
_command = _string("a command line", _command_fault)


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


def public_key_blob(line: str) -> bytes:
    """The key itself in a public key line, as its fingerprint is taken of.

    Raises ValueError when the Base64 is broken.
    """
    import binascii

    return binascii.a2b_base64(line.split(" ")[1], strict_mode=True)


def public_key_fault(line: str) -> str | None:
    """What makes ``line`` no public key line that sshd would let in, or None."""
    words = line.split(" ")
    known = ("ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-")
    if not line.isprintable() or len(words) < 2 or not words[0].startswith(known):
        return "is not a public key line (TYPE BASE64 [COMMENT])"
    if "-cert-" in words[0]:
        return "is a certificate, not a key"
    try:
        blob = public_key_blob(line)
    except ValueError:
        return "has a key that is not Base64, or is cut short"
    fields = _fields(blob)
    if fields is None or not fields or fields[0] != words[0].encode("utf-8"):
        return "has a key that is cut short or not of the type before it"
    return _field_fault(words[0], fields[1:])


def _fields(blob: bytes) -> list[bytes] | None:
    """The strings of a key, each behind its length (RFC 4253, 6.6); None when one is cut off."""
    fields = []
    at = 0
    while at < len(blob):
        end = at + 4 + int.from_bytes(blob[at : at + 4], "big")
        if at + 4 > len(blob) or end > len(blob):
            return None
        fields.append(blob[at + 4 : end])
        at = end
    return fields


_ED25519 = 32  # bytes, RFC 8709
_RSA_LEAST = 1024  # bits, sshd's RequiredRSASize
# Bytes of an uncompressed point (RFC 5656, 3.1; SEC 1, 2.3.3): 4, and two numbers of the field.
_POINTS = {"ecdsa-sha2-nistp256": 65, "ecdsa-sha2-nistp384": 97, "ecdsa-sha2-nistp521": 133}
# Made like these, with the application behind it (PROTOCOL.u2f of OpenSSH).
_ON_TOKENS = {
    "sk-ssh-ed25519@openssh.com": "ssh-ed25519",
    "sk-ecdsa-sha2-nistp256@openssh.com": "ecdsa-sha2-nistp256",
}


def _field_fault(kind: str, fields: list[bytes]) -> str | None:
    """What is wrong with what stands behind the type in a key; its fields are complete."""
    cut = f"has a key that is not whole: one of {kind} is made otherwise"
    if kind in _ON_TOKENS:
        if not fields or not fields.pop():
            return cut
        kind = _ON_TOKENS[kind]
    sizes = [len(field) for field in fields]
    if kind == "ssh-ed25519":
        return None if sizes == [_ED25519] else cut
    if kind in _POINTS:
        curve = kind.rpartition("-")[2].encode("utf-8")
        is_whole = sizes == [len(curve), _POINTS[kind]] and fields[0] == curve and fields[1][0] == 4
        return None if is_whole else cut
    if kind == "ssh-rsa":
        # Numbers of either sign; no key has one that is negative.
        if len(fields) != 2 or not all(field and field[0] < 0x80 for field in fields):
            return cut
        bits = int.from_bytes(fields[1], "big").bit_length()
        return None if bits >= _RSA_LEAST else f"has a key of {bits} bits; sshd refuses it"
    return "is of a type that sshd takes no more, or never did; make one with ssh-keygen -t ed25519"


def _wrong_type(expected: str, value: object) -> str:
    names = {
        bool: "a boolean",
        str: "a string",
        int: "a number",
        float: "a fraction",
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
        faults=_absolute_path,
        default=REQUIRED,
        default_text="required",
        doc="Directory of the forwarded sockets, `CLIENT.sock` and `CLIENT.NONCE.sock`. "
        "Owned by the account, mode 0700.",
    ),
    Key(
        name="home",
        kind="absolute path",
        faults=_absolute_path,
        default=REQUIRED,
        default_text="required",
        doc="State directory. Each client has borg's keys, cache and security data in it, in "
        "`clients/NAME/` and there in a directory whose name no other client can guess. Owned by "
        "the account.",
    ),
    Key(
        name="socket_wrapper",
        kind="absolute path",
        faults=_program,
        default=None,
        default_text="the `borg-pull-socket-wrap` beside the running program",
        doc="Program that borg starts in place of ssh. It is told the socket in "
        "`BORGSOCKETWRAP_SOCKET_PATH`; its arguments mean nothing.",
    ),
    Key(
        name="borg",
        kind="absolute path",
        faults=_program,
        default="/usr/bin/borg",
        default_text="`/usr/bin/borg`",
        doc="The borg program, 1.2 or 1.4.",
    ),
)

AUDIT_KEYS = (
    Key(
        name="file",
        kind="absolute path",
        faults=_absolute_path,
        default=None,
        default_text="`audit.jsonl` in `runtime.home`",
        doc="The audit log. Its directory must be writable by the account.",
    ),
    Key(
        name="sync",
        kind="boolean",
        faults=_boolean,
        default=False,
        default_text="`false`",
        doc="Wait for the disk after each record, so that a power cut loses none.",
    ),
)

LANDLOCK_MODES = ("required", "auto", "off")


CONFINE_KEYS = (
    Key(
        name="landlock",
        kind="string",
        faults=_string("a string", _one_of(LANDLOCK_MODES)),
        default="auto",
        default_text='`"auto"`',
        doc="Whether the kernel confines borg to the paths asked for: `required` runs nothing "
        "where it cannot, `auto` runs and says so in the audit record, `off` does not ask, and "
        "filters no system calls either.",
    ),
    Key(
        name="also_readable",
        kind=_PATHS,
        faults=_each("absolute paths", path_fault),
        default=(),
        default_text="`[]`",
        doc="Further files and directories that borg or the socket wrapper must load, for "
        "programs installed outside the usual places.",
    ),
)

MOST_SESSIONS = 4096
_MOST_REQUESTS = 1_000_000

LIMIT_KEYS = (
    Key(
        name="max_sessions",
        kind="whole number",
        faults=_whole_number(1, MOST_SESSIONS),
        default=64,
        default_text="`64`",
        doc="Requests of all clients together that may be under way at one time.",
    ),
)

CLIENT_KEYS = (
    Key(
        name="paths",
        kind=_PATHS,
        faults=_each("absolute paths", path_fault),
        default=(),
        default_text="`[]`",
        doc="Paths the client may pull, compared verbatim: what lies below a listed path cannot "
        "be asked for by name (it is part of the backup of that path).",
    ),
    Key(
        name="trees",
        kind=_PATHS,
        faults=_each("absolute paths", _tree_fault),
        default=(),
        default_text="`[]`",
        doc="Directories of which the client may pull any part: the directory or any path below.",
    ),
    Key(
        name="allow",
        kind="array of verbs",
        faults=_each("verbs", _one_of(_GRANTABLE_VERBS)),
        default=("create",),
        default_text='`["create"]`',
        doc="Verbs the client may use, of "
        + ", ".join(f"`{name}`" for name in _GRANTABLE_VERBS)
        + ". `hello` is always answered.",
    ),
    Key(
        name="flags",
        kind="array of flags",
        faults=_each("flags", _one_of(CREATE_FLAGS)),
        default=_DEFAULT_FLAGS,
        default_text="all but `exclude`",
        doc="Flags of `create` the client may give, by long name without dashes: "
        + ", ".join(f"`{name}`" for name in CREATE_FLAGS)
        + ".",
    ),
    Key(
        name="required_flags",
        kind="array of flags",
        faults=_each("flags", _one_of(CREATE_FLAGS)),
        default=(),
        default_text="`[]`",
        doc="Flags of `create` without which a request is refused.",
    ),
    Key(
        name="compressions",
        kind=_NAMES,
        faults=_each("compression specifications", compression_fault),
        default=(),
        default_text="`[]`, any",
        doc="Compressions the client may ask for. `zstd` stands for every level, `zstd,3` for "
        "itself only.",
    ),
    Key(
        name="excludes",
        kind="array of patterns",
        faults=_each("patterns", exclude_fault),
        default=(),
        default_text="`[]`",
        doc="Patterns always given to `create` as `--exclude`, whatever the client asks.",
    ),
    Key(
        name="encryption",
        kind="array of modes",
        faults=_each("encryption modes", _one_of(ENCRYPTION_MODES)),
        default=(),
        default_text="`[]`, none",
        doc="Encryption modes the client may name with `init`: "
        + ", ".join(f"`{name}`" for name in ENCRYPTION_MODES)
        + ".",
    ),
    Key(
        name="repositories",
        kind=_PATHS,
        faults=_each("absolute paths", repository_fault),
        default=(),
        default_text="`[]`, any",
        doc="Repository paths (on the client) this source may be told to write to.",
    ),
    Key(
        name="passphrase_file",
        kind="absolute path",
        faults=_absolute_path,
        default=None,
        default_text="none",
        doc="File whose first line is the repository passphrase. Owned by root or the account, "
        "not readable by others: mode 0640 with the account's group, or 0600.",
    ),
    Key(
        name="passcommand",
        kind="string",
        faults=_command,
        default=None,
        default_text="none",
        doc="Command whose first line of output is the passphrase; split like a shell would, run "
        "without one, without the capability and without a home (`HOME` is `/nonexistent`). It is "
        "the admin's program: nothing else confines it.",
    ),
    Key(
        name="passphrase_stdin",
        kind="boolean",
        faults=_boolean,
        default=False,
        default_text="`false`",
        doc="Take the passphrase from the first line of standard input, so that no secret rests "
        "on the source.",
    ),
    Key(
        name="restore_to",
        kind="absolute path",
        faults=_absolute_path,
        default=None,
        default_text="none",
        doc="Directory in which the verb `restore` makes a new one for each run, to unpack files "
        "into. Owned by the account, mode 0700. Without it, and without `restore` in `allow`, "
        "nothing is restored here.",
    ),
    Key(
        name="allow_unknown_repository",
        kind="boolean",
        faults=_boolean,
        default=False,
        default_text="`false`",
        doc="Let borg use an unencrypted repository it has not seen before.",
    ),
    Key(
        name="allow_relocated_repository",
        kind="boolean",
        faults=_boolean,
        default=False,
        default_text="`false`",
        doc="Let borg use a known repository that now has another path.",
    ),
    Key(
        name="refuse_empty",
        kind="boolean",
        faults=_boolean,
        default=False,
        default_text="`false`",
        doc="Fail when a path asked for is an empty directory or file, such as a mount point "
        "without its mount.",
    ),
    Key(
        name="max_sessions",
        kind="whole number",
        faults=_whole_number(1, MOST_SESSIONS),
        default=8,
        default_text="`8`",
        doc="Requests of this client that may be under way at one time.",
    ),
    Key(
        name="requests_per_hour",
        kind="whole number",
        faults=_whole_number(1, _MOST_REQUESTS),
        default=600,
        default_text="`600`",
        doc="Requests of this client that are let in per hour, in the long run.",
    ),
    Key(
        name="request_burst",
        kind="whole number",
        faults=_whole_number(1, _MOST_REQUESTS),
        default=60,
        default_text="`60`",
        doc="Requests that may come at once after a quiet time, before `requests_per_hour` holds "
        "them back.",
    ),
    Key(
        name="keys",
        kind="array of public keys",
        faults=_each("public keys", public_key_fault),
        default=(),
        default_text="`[]`",
        doc="Public keys of the client, for `borg-pull-admin authorized-keys`.",
    ),
)

_TABLES: dict[str, tuple[Key, ...]] = {
    "runtime": RUNTIME_KEYS,
    "audit": AUDIT_KEYS,
    "confine": CONFINE_KEYS,
    "limits": LIMIT_KEYS,
}
_CLIENTS = "client"


def client_name_fault(name: str) -> str | None:
    """What makes ``name`` unfit: it becomes part of a socket's and a directory's name and the host
    of borg's URL."""
    if not (
        0 < len(name) <= 64
        and name.isascii()
        and name[0].isalnum()
        and all(character.isalnum() or character in "._-" for character in name)
    ):
        return "is no client name (letters, digits, '.', '_', '-', up to 64)"
    other, _, nonce = name.rpartition(".")
    if other and nonce_fault(nonce) is None:
        return (
            f"is no client name: its socket could be that of one run of a client {other}; "
            "shorten what follows the last dot to 15 characters, or put a '-' or '_' in it"
        )
    return None


class Examined(Record):
    """All that was found in the configuration, sound or not."""

    settings: Settings | None
    """None when anything outside the clients' tables is wrong."""
    clients: Mapping[str, ClientRules]
    """Only those with nothing wrong."""
    faults: Sequence[Fault]


def load(
    main: SourceFile, client_files: Mapping[str, SourceFile], only: str | None = None
) -> Whitelist:
    """The rules in ``main`` and in the files of single clients (name to file).

    ``only`` limits the checking to that client. Raises WhitelistError with every fault found.
    """
    examined = examine(main, client_files, only)
    if examined.faults or examined.settings is None:
        raise WhitelistError(examined.faults)
    return Whitelist(settings=examined.settings, clients=examined.clients)


def examine(
    main: SourceFile, client_files: Mapping[str, SourceFile], only: str | None = None
) -> Examined:
    """Like `load`, but returns the faults and with them what is sound in spite of them."""
    faults: list[Fault] = []
    settings = None
    clients: dict[str, ClientRules] = {}
    checks: dict[str, tuple[_Check, str]] = {}
    document = _document(main, faults)
    if document is not None:
        check = _Check(main, faults)
        settings = _settings(check, document)
        tables = document.get(_CLIENTS, {})
        if not isinstance(tables, dict):
            check.fault(_CLIENTS, _wrong_type("a table", tables))
            tables = {}
        for name in tables if only is None else [only] if only in tables else []:
            prefix = f"{_CLIENTS}.{name}"
            rules = _client(check, name, tables[name], prefix)
            if name in client_files:
                check.fault(prefix, f"stands in {client_files[name].name} too; keep one of them")
            elif rules is not None:
                clients[name] = rules
                checks[name] = check, prefix
    for name, file in client_files.items():
        content = _document(file, faults)
        if content is not None:
            check = _Check(file, faults)
            rules = _client(check, name, content, "")
            if rules is not None:
                clients[name] = rules
                checks[name] = check, ""
    if only is None:
        _check_keys_are_distinct(clients, checks)
    return Examined(settings=settings, clients=clients, faults=faults)


def _check_keys_are_distinct(
    clients: Mapping[str, ClientRules], checks: Mapping[str, tuple[_Check, str]]
) -> None:
    """One key stands for one client: sshd takes the first line that fits a key."""
    owners: dict[bytes, str] = {}
    for name, rules in clients.items():
        for position, line in enumerate(rules.keys):
            owner = owners.setdefault(public_key_blob(line), f"{name}.keys[{position}]")
            if owner != f"{name}.keys[{position}]":
                check, prefix = checks[name]
                check.fault(
                    _joined(prefix, f"keys[{position}]"),
                    f"is the key of {owner} too; a key stands for one client",
                )


def load_settings(main: SourceFile) -> Settings | None:
    """The settings alone, None unless they are sound: enough to record that the rest is not."""
    faults: list[Fault] = []
    document = _document(main, faults)
    settings = None if document is None else _settings(_Check(main, faults), document)
    return settings


def load_socket_dir(main: SourceFile) -> str | None:
    """``runtime.socket_dir`` alone, None unless it is sound: where there is a name to be freed."""
    document = _document(main, [])
    runtime = None if document is None else document.get("runtime")
    value = runtime.get("socket_dir") if isinstance(runtime, dict) else None
    return value if isinstance(value, str) and path_fault(value) is None else None


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
                line=_line_of_error(str(error), file.content),
                key="",
                message=f"is not valid TOML: {error}",
            )
        )
    except RecursionError:
        faults.append(Fault(file=file.name, line=None, key="", message="is nested too deeply"))
    return None


def _line_of_error(message: str, content: bytes) -> int | None:
    """tomli ends its messages in ``(at line L, column C)`` or ``(at end of document)``."""
    if message.endswith("(at end of document)"):
        return content.rstrip().count(b"\n") + 1
    digits = message.rpartition("(at line ")[2].partition(",")[0]
    return int(digits) if digits.isdigit() else None


class _Check:
    """Checks tables of one file against the key tables and collects the faults."""

    def __init__(self, file: SourceFile, faults: list[Fault]) -> None:
        self._file = file
        self._faults = faults
        self._positions: Positions | None = None

    def fault(self, key: str, message: str) -> None:
        if self._positions is None:
            from borg_pull.source.positions import Positions

            self._positions = Positions(self._file.content.decode("utf-8"))
        line = self._positions.line(key)
        self._faults.append(Fault(file=self._file.name, line=line, key=key, message=message))

    def values(
        self, table: object, keys: tuple[Key, ...], prefix: str
    ) -> tuple[dict[str, object], frozenset[str]] | None:
        """Value of every key, the default for one that is wrong, and the names of what is wrong;
        None when there is no table."""
        if not isinstance(table, dict):
            self.fault(prefix, _wrong_type("a table", table))
            return None
        wrong: set[str] = set()
        values: dict[str, object] = {}
        for key in keys:
            values[key.name] = key.default
            if key.name not in table:
                faults: Wrong = [("", "is missing")] if key.default is REQUIRED else []
            else:
                value = table[key.name]
                faults = key.faults(value)
                if not faults:
                    values[key.name] = tuple(value) if isinstance(value, list) else value
            for position, message in faults:
                wrong.add(key.name)
                self.fault(f"{_joined(prefix, key.name)}{position}", message)
        for name, value in table.items():
            if name not in values:
                wrong.add(name)
                self.fault(_joined(prefix, name), _unknown(name, value, prefix, tuple(values)))
        return values, frozenset(wrong)


def _unknown(name: str, value: object, prefix: str, names: tuple[str, ...]) -> str:
    """What is wrong with a key that is not in ``names``, and what may have been meant."""
    if prefix.startswith(f"{_CLIENTS}.") and isinstance(value, dict):
        parts = [prefix.partition(".")[2], name]
        while len(value) == 1 and isinstance(inner := next(iter(value.values())), dict):
            parts.extend(value)
            value = inner
        quoted_name = f'[{_CLIENTS}."{".".join(parts)}"]'
        return f"is unknown; if it is part of the client's name, write {quoted_name}"
    if not prefix and name == _CLIENTS:
        return "is unknown; the keys of a client's own file stand in no table"
    near = nearest_name(name, names)
    if near:
        return f"is unknown{near}"
    for table, keys in (*_TABLES.items(), (f"{_CLIENTS}.NAME", CLIENT_KEYS)):
        if any(key.name == name for key in keys):
            return f"is unknown here; it belongs in [{table}]"
    if name in (*_TABLES, _CLIENTS):
        table = f"{name}.NAME" if name == _CLIENTS else name
        return f"is unknown here; it is a table of its own, [{table}]"
    return f"is unknown; known are {', '.join(names)}"


def _settings(check: _Check, document: dict[str, object]) -> Settings | None:
    known = (*_TABLES, _CLIENTS)
    sound = True
    for name, value in document.items():
        if name not in known:
            sound = False
            check.fault(name, _unknown(name, value, "", known))
    runtime = check.values(document.get("runtime", {}), RUNTIME_KEYS, "runtime")
    audit = check.values(document.get("audit", {}), AUDIT_KEYS, "audit")
    confine = check.values(document.get("confine", {}), CONFINE_KEYS, "confine")
    limits = check.values(document.get("limits", {}), LIMIT_KEYS, "limits")
    if runtime is None or audit is None or confine is None or limits is None or not sound:
        return None
    if runtime[1] or audit[1] or confine[1] or limits[1]:
        return None
    if audit[0]["file"] is None:
        audit[0]["file"] = f"{str(runtime[0]['home']).rstrip('/')}/audit.jsonl"
    return Settings(
        runtime=Runtime(**runtime[0]),  # type: ignore[arg-type]
        audit=AuditSettings(**audit[0]),  # type: ignore[arg-type]
        confine=ConfineSettings(**confine[0]),  # type: ignore[arg-type]
        limits=LimitSettings(**limits[0]),  # type: ignore[arg-type]
    )


def _client(check: _Check, name: str, table: object, prefix: str) -> ClientRules | None:
    """The client's rules, None when anything is wrong with them."""
    unfit = client_name_fault(name)
    if unfit is not None:
        check.fault(prefix or name, unfit)
    checked = check.values(table, CLIENT_KEYS, prefix)
    if checked is None:
        return None
    values, wrong = checked
    rules = ClientRules(**values)  # type: ignore[arg-type]
    contradictions = _contradictions(rules, wrong)
    for key, message in contradictions:
        check.fault(_joined(prefix, key), message)
    return rules if unfit is None and not wrong and not contradictions else None


def _contradictions(rules: ClientRules, wrong: frozenset[str]) -> list[tuple[str, str]]:
    """What does not fit together; keys that are ``wrong`` stand at their default and are spared."""
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
    found.extend(
        (source, f"stands beside {sources[0]}; keep one of them") for source in sources[1:]
    )
    if "flags" not in wrong:
        found.extend(
            (f"required_flags[{position}]", f"requires {flag}, which flags does not allow")
            for position, flag in enumerate(rules.required_flags)
            if flag not in rules.flags
        )
    if "init" in rules.allow and not rules.encryption and "encryption" not in wrong:
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
