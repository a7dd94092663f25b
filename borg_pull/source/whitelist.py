"""The whitelist: from TOML text to rules, with every error named at once.

Pure: it is given the text of the files and returns rules or raises. The main file may hold
clients as ``[client.NAME]``; ``clients.d/NAME.toml`` beside it holds the same keys without a
table header. A forced command is given the main file and its own client's file only, so the
cost of a request does not grow with the number of clients.
"""

from __future__ import annotations

from borg_pull.errors import RequestError
from borg_pull.record import Record
from borg_pull.roles import FEATURE_KEYS, GRANT_KEYS, NEEDS, Features, features_of
from borg_pull.schema import (
    Check,
    Fault,
    Key,
    WhitelistError,
    absolute_path,
    boolean,
    each,
    joined,
    nearest_name,
    one_of,
    parsed,
    string,
    whole_number,
    wrong_type,
)
from borg_pull.settings import (
    AUDIT_KEYS,
    RUNTIME_KEYS,
    AuditSettings,
    Runtime,
    audit_of,
    runtime_of,
)
from borg_pull.source.request import ENCRYPTION_MODES, VERBS, split
from borg_pull.values import (
    client_name_fault,
    compression_fault,
    exclude_fault,
    path_fault,
    repository_fault,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from borg_pull.schema import SourceFile


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
    role: str
    actions: tuple[str, ...]
    aio_targets: tuple[str, ...]
    keys: tuple[str, ...]


class Settings(Record):
    """The part of the configuration that is not about one client."""

    runtime: Runtime
    audit: AuditSettings
    confine: ConfineSettings
    limits: LimitSettings
    features: Features


class Whitelist(Record):
    """Settings and the rules of the clients that were read."""

    settings: Settings
    clients: Mapping[str, ClientRules]


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


_command = string("a command line", _command_fault)


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


CREATE_FLAGS = tuple(option.name for option in VERBS["create"].options if option.name != "socket")
_DEFAULT_FLAGS = tuple(name for name in CREATE_FLAGS if name != "exclude")
_GRANTABLE_VERBS = tuple(name for name, needs in NEEDS.items() if needs.listed == "allow")

_PATHS = "array of absolute paths"
_NAMES = "array of strings"

LANDLOCK_MODES = ("required", "auto", "off")


CONFINE_KEYS = (
    Key(
        name="landlock",
        kind="string",
        faults=string("a string", one_of(LANDLOCK_MODES)),
        default="auto",
        default_text='`"auto"`',
        doc="Whether the kernel confines borg to the paths asked for: `required` runs nothing "
        "where it cannot, `auto` runs and says so in the audit record, `off` does not ask, and "
        "filters no system calls either.",
    ),
    Key(
        name="also_readable",
        kind=_PATHS,
        faults=each("absolute paths", path_fault),
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
        faults=whole_number(1, MOST_SESSIONS),
        default=64,
        default_text="`64`",
        doc="Requests of all clients together that may be under way at one time.",
    ),
)

CLIENT_KEYS = (
    Key(
        name="paths",
        kind=_PATHS,
        faults=each("absolute paths", path_fault),
        default=(),
        default_text="`[]`",
        doc="Paths the client may pull, compared verbatim: what lies below a listed path cannot "
        "be asked for by name (it is part of the backup of that path).",
    ),
    Key(
        name="trees",
        kind=_PATHS,
        faults=each("absolute paths", _tree_fault),
        default=(),
        default_text="`[]`",
        doc="Directories of which the client may pull any part: the directory or any path below.",
    ),
    Key(
        name="allow",
        kind="array of verbs",
        faults=each("verbs", one_of(_GRANTABLE_VERBS)),
        default=("create",),
        default_text='`["create"]`',
        doc="Verbs the client may use, of "
        + ", ".join(f"`{name}`" for name in _GRANTABLE_VERBS)
        + ". `hello` is always answered.",
    ),
    Key(
        name="flags",
        kind="array of flags",
        faults=each("flags", one_of(CREATE_FLAGS)),
        default=_DEFAULT_FLAGS,
        default_text="all but `exclude`",
        doc="Flags of `create` the client may give, by long name without dashes: "
        + ", ".join(f"`{name}`" for name in CREATE_FLAGS)
        + ".",
    ),
    Key(
        name="required_flags",
        kind="array of flags",
        faults=each("flags", one_of(CREATE_FLAGS)),
        default=(),
        default_text="`[]`",
        doc="Flags of `create` without which a request is refused.",
    ),
    Key(
        name="compressions",
        kind=_NAMES,
        faults=each("compression specifications", compression_fault),
        default=(),
        default_text="`[]`, any",
        doc="Compressions the client may ask for. `zstd` stands for every level, `zstd,3` for "
        "itself only.",
    ),
    Key(
        name="excludes",
        kind="array of patterns",
        faults=each("patterns", exclude_fault),
        default=(),
        default_text="`[]`",
        doc="Patterns always given to `create` as `--exclude`, whatever the client asks.",
    ),
    Key(
        name="encryption",
        kind="array of modes",
        faults=each("encryption modes", one_of(ENCRYPTION_MODES)),
        default=(),
        default_text="`[]`, none",
        doc="Encryption modes the client may name with `init`: "
        + ", ".join(f"`{name}`" for name in ENCRYPTION_MODES)
        + ".",
    ),
    Key(
        name="repositories",
        kind=_PATHS,
        faults=each("absolute paths", repository_fault),
        default=(),
        default_text="`[]`, any",
        doc="Repository paths (on the client) this source may be told to write to.",
    ),
    Key(
        name="passphrase_file",
        kind="absolute path",
        faults=absolute_path,
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
        faults=boolean,
        default=False,
        default_text="`false`",
        doc="Take the passphrase from the first line of standard input, so that no secret rests "
        "on the source.",
    ),
    Key(
        name="restore_to",
        kind="absolute path",
        faults=absolute_path,
        default=None,
        default_text="none",
        doc="Directory in which the verb `restore` makes a new one for each run, to unpack files "
        "into. Owned by the account, mode 0700. Without it, and without `restore` in `allow`, "
        "nothing is restored here.",
    ),
    Key(
        name="allow_unknown_repository",
        kind="boolean",
        faults=boolean,
        default=False,
        default_text="`false`",
        doc="Let borg use an unencrypted repository it has not seen before.",
    ),
    Key(
        name="allow_relocated_repository",
        kind="boolean",
        faults=boolean,
        default=False,
        default_text="`false`",
        doc="Let borg use a known repository that now has another path.",
    ),
    Key(
        name="refuse_empty",
        kind="boolean",
        faults=boolean,
        default=False,
        default_text="`false`",
        doc="Fail when a path asked for is an empty directory or file, such as a mount point "
        "without its mount.",
    ),
    Key(
        name="max_sessions",
        kind="whole number",
        faults=whole_number(1, MOST_SESSIONS),
        default=8,
        default_text="`8`",
        doc="Requests of this client that may be under way at one time.",
    ),
    Key(
        name="requests_per_hour",
        kind="whole number",
        faults=whole_number(1, _MOST_REQUESTS),
        default=600,
        default_text="`600`",
        doc="Requests of this client that are let in per hour, in the long run.",
    ),
    Key(
        name="request_burst",
        kind="whole number",
        faults=whole_number(1, _MOST_REQUESTS),
        default=60,
        default_text="`60`",
        doc="Requests that may come at once after a quiet time, before `requests_per_hour` holds "
        "them back.",
    ),
    *GRANT_KEYS,
    Key(
        name="keys",
        kind="array of public keys",
        faults=each("public keys", public_key_fault),
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
    "features": FEATURE_KEYS,
}
_CLIENTS = "client"
_OF_AIO = ("aio", "action")


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
    checks: dict[str, tuple[Check, str]] = {}
    document = parsed(main, faults)
    if document is not None:
        check = Check(main, faults, _unknown)
        settings = _settings(check, document)
        tables = document.get(_CLIENTS, {})
        if not isinstance(tables, dict):
            check.fault(_CLIENTS, wrong_type("a table", tables))
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
        content = parsed(file, faults)
        if content is not None:
            check = Check(file, faults, _unknown)
            rules = _client(check, name, content, "")
            if rules is not None:
                clients[name] = rules
                checks[name] = check, ""
    if only is None:
        _check_keys_are_distinct(clients, checks)
        if document is not None:
            _check_names(clients, checks, Check(main, faults, _unknown), document)
    return Examined(settings=settings, clients=clients, faults=faults)


def _check_keys_are_distinct(
    clients: Mapping[str, ClientRules], checks: Mapping[str, tuple[Check, str]]
) -> None:
    """One key stands for one client: sshd takes the first line that fits a key."""
    owners: dict[bytes, str] = {}
    for name, rules in clients.items():
        for position, line in enumerate(rules.keys):
            owner = owners.setdefault(public_key_blob(line), f"{name}.keys[{position}]")
            if owner != f"{name}.keys[{position}]":
                check, prefix = checks[name]
                check.fault(
                    joined(prefix, f"keys[{position}]"),
                    f"is the key of {owner} too; a key stands for one client",
                )


def _check_names(
    clients: Mapping[str, ClientRules],
    checks: Mapping[str, tuple[Check, str]],
    main: Check,
    document: dict[str, object],
) -> None:
    """What a client may name is there; a forced command looks at neither for a backup's sake."""
    from borg_pull.aio_policy import names

    actions, targets = names(main, document)
    for name, rules in clients.items():
        check, prefix = checks[name]
        for key, listed, known, table in (
            ("actions", rules.actions, actions, "action.NAME"),
            ("aio_targets", rules.aio_targets, targets, "aio.target.NAME"),
        ):
            for position, item in enumerate(listed):
                if item not in known:
                    near = nearest_name(item, tuple(known))
                    check.fault(
                        joined(prefix, f"{key}[{position}]"), f"{item!r} is no [{table}]{near}"
                    )


def load_settings(main: SourceFile) -> Settings | None:
    """The settings alone, None unless they are sound: enough to record that the rest is not."""
    faults: list[Fault] = []
    document = parsed(main, faults)
    settings = None if document is None else _settings(Check(main, faults, _unknown), document)
    return settings


def load_socket_dir(main: SourceFile) -> str | None:
    """``runtime.socket_dir`` alone, None unless it is sound: where there is a name to be freed."""
    document = parsed(main, [])
    runtime = None if document is None else document.get("runtime")
    value = runtime.get("socket_dir") if isinstance(runtime, dict) else None
    return value if isinstance(value, str) and path_fault(value) is None else None


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


def _settings(check: Check, document: dict[str, object]) -> Settings | None:
    known = (*_TABLES, _CLIENTS, *_OF_AIO)
    sound = True
    for name, value in document.items():
        if name not in known:
            sound = False
            check.fault(name, _unknown(name, value, "", known))
    runtime = runtime_of(check, document)
    audit = audit_of(check, document, runtime)
    confine = check.values(document.get("confine", {}), CONFINE_KEYS, "confine")
    limits = check.values(document.get("limits", {}), LIMIT_KEYS, "limits")
    features = features_of(check, document)
    if runtime is None or audit is None or confine is None or limits is None or features is None:
        return None
    if not sound or confine[1] or limits[1]:
        return None
    return Settings(
        runtime=runtime,
        audit=audit,
        confine=ConfineSettings(**confine[0]),  # type: ignore[arg-type]
        limits=LimitSettings(**limits[0]),  # type: ignore[arg-type]
        features=features,
    )


def _client(check: Check, name: str, table: object, prefix: str) -> ClientRules | None:
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
        check.fault(joined(prefix, key), message)
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
