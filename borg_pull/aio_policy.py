"""What the whitelist says of Nextcloud AIO: settings, targets, actions, and who may name them.

Pure, and imported only where it is needed: by the companion, by the admin's program, and by the
forced command for a request that is the companion's. All of them load the same files through
`load`, so that the companion allows nothing that the forced command would refuse.
"""

from __future__ import annotations

from borg_pull.credentials import has_url_credentials, masked
from borg_pull.record import Record
from borg_pull.roles import (
    GRANT_KEYS,
    Features,
    features_of,
    may_name_any_target,
    missing,
)
from borg_pull.schema import (
    REQUIRED,
    Check,
    Fault,
    Key,
    WhitelistError,
    absolute_path,
    boolean,
    joined,
    nearest_name,
    one_of,
    parsed,
    string,
    unknown_key,
    whole_number,
    wrong_type,
)
from borg_pull.settings import AuditSettings, Runtime, audit_of, runtime_of
from borg_pull.values import action_name_fault, path_fault, quoted, repository_fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from borg_pull.schema import SourceFile

ACTION_TYPES = ("nextcloud_aio_backup",)
BACKUP_VOLUME = "nextcloud_aio_backupdir"
"""The one host location that is no path (AIO's documentation, "How to create a backup")."""

_VOLUMES = "/var/lib/docker/volumes"
MOST_DESCRIPTION = 200  # characters
_MOST_URL = 1024  # characters


class AioSettings(Record):
    """``[aio]``; where AIO and the companion are."""

    mastercontainer: str
    borgbackup_container: str
    watchtower_container: str
    apache_container: str
    configuration_file: str
    """On the host."""
    database_dump_dir: str
    """On the host."""
    engine: str | None
    """``unix://PATH`` or ``tcp://HOST:PORT``; None: what ``DOCKER_HOST`` says, else the default."""
    socket: str
    """The companion's."""
    state_dir: str
    """The companion's."""
    health_timeout: int
    """Seconds."""
    keep_jobs: int
    keep_days: int


class Target(Record):
    """``[aio.target.NAME]``, or the target that an action names itself."""

    name: str | None
    """None for one that only an action has."""
    remote_repo: str | None
    host_location: str | None
    """Exactly one of the two is set."""

    def masked(self) -> str:
        """The target for people, without what could be a credential."""
        return masked(self.remote_repo or self.host_location or "")


class Action(Record):
    """``[action.NAME]``"""

    name: str
    description: str
    type: str
    target: Target | None
    """None: AIO's own stays."""
    restore_after: bool
    daily_backup: bool
    check_backup: bool
    stop_containers: bool
    start_containers: bool
    automatic_updates: bool
    stop_timeout: int
    """Seconds."""
    timeout: int
    """Seconds."""


class Grants(Record):
    """What one client may name."""

    client: str
    role: str
    actions: tuple[str, ...]
    aio_targets: tuple[str, ...]


class AioPolicy(Record):
    """All of it."""

    runtime: Runtime
    audit: AuditSettings
    aio: AioSettings
    targets: Mapping[str, Target]
    actions: Mapping[str, Action]
    features: Features
    client: Grants | None
    """Of the client that was asked for; None when there is none of that name."""

    def refusal(self, verb: str, name: str | None) -> str | None:
        """Why the client may not have ``verb`` done with the action or target ``name``; None when
        it may."""
        if self.client is None:
            return "the client is not in the whitelist"
        client, role = self.client.client, self.client.role
        lacking = missing(verb, role, self.features)
        if lacking is not None:
            kind, needed = lacking
            if kind == "role":
                return f"client {client} has the role {role}; {verb} needs {needed}"
            return f"{verb} is off: features.{needed} is not true"
        if verb == "run" and (name not in self.client.actions or name not in self.actions):
            return f"action {name} is not allowed to client {client}"
        if verb in ("aio", "target-set") and (
            name not in self.targets
            or not (name in self.client.aio_targets or may_name_any_target(role, self.features))
        ):
            return f"target {name} is not allowed to client {client}"
        return None


def _container_fault(name: str) -> str | None:
    if (
        0 < len(name) <= 128
        and name.isascii()
        and name[0].isalnum()
        and all(character.isalnum() or character in "_.-" for character in name)
    ):
        return None
    return "is no name of a container"


def engine_fault(address: str) -> str | None:
    """What makes ``address`` unfit as that of a container engine, or None."""
    scheme, found, rest = address.partition("://")
    if found and scheme == "unix":
        return path_fault(rest)
    if found and scheme == "tcp":
        host, _, port = rest.rpartition(":")
        if _is_host(host) and _is_port(port):
            return None
    return "is not unix:///PATH or tcp://HOST:PORT"


def remote_repo_fault(url: str) -> str | None:
    """What makes ``url`` unfit as AIO's remote repository, or None.

    AIO demands a user; borg takes what follows a second slash for an absolute path, as it does
    what follows the first one.
    """
    form = "ssh://USER@HOST:PORT/PATH"
    if len(url) > _MOST_URL or not url.isascii() or not url.isprintable() or " " in url:
        return "is too long, or has a space or characters outside printable ASCII"
    if not url.startswith("ssh://"):
        return f"is not {form}"
    location, slash, path = url.removeprefix("ssh://").partition("/")
    user, at, host_and_port = location.rpartition("@")
    host, colon, port = host_and_port.rpartition(":")
    if ":" in user:
        return "has a password; AIO logs in with a key of its own"
    if not (slash and at and colon and _is_user(user) and _is_host(host) and _is_port(port)):
        return f"is not {form}"
    return repository_fault(f"/{path.removeprefix('/').removeprefix('./').removeprefix('~/')}")


def _is_user(user: str) -> bool:
    return (
        0 < len(user) <= 64
        and user[0] != "-"
        and all(character.isalnum() or character in "._-" for character in user)
    )


def _is_host(host: str) -> bool:
    if host.startswith("[") and host.endswith("]"):
        address = host[1:-1]
        return ":" in address and not address.strip("0123456789abcdefABCDEF:.")
    return (
        0 < len(host) <= 253
        and host[0].isalnum()
        and host.isascii()
        and all(character.isalnum() or character in ".-_" for character in host)
    )


def _is_port(port: str) -> bool:
    return port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) <= 65535


def host_location_fault(location: str) -> str | None:
    """What makes ``location`` unfit as AIO's host location, or None."""
    if location == BACKUP_VOLUME:
        return None
    fault = path_fault(location)
    if fault is not None:
        return f"{fault}; it is an absolute path, or {BACKUP_VOLUME}"
    if location == "/":
        return "is the root directory"
    if location.endswith("/"):
        return "ends in a slash, which AIO refuses"
    if ":" in location or not location.isprintable():
        return "has a colon or unprintable character; the engine could not mount it"
    return None


def _description_fault(text: str) -> str | None:
    if len(text) > MOST_DESCRIPTION:
        return f"is longer than {MOST_DESCRIPTION} characters"
    if not text.isprintable():
        return "has characters that are not printable text"
    if has_url_credentials(text):
        return "has a URL with credentials"
    return None


_container = string("a string", _container_fault)
_remote_repo = string("a string", remote_repo_fault)
_host_location = string("a string", host_location_fault)
_name = string("a string", action_name_fault)


def _container_key(name: str, default: str, doc: str) -> Key:
    return Key(
        name=name,
        kind="string",
        faults=_container,
        default=default,
        default_text=f'`"{default}"`',
        doc=doc,
    )


def _path_key(name: str, default: str, doc: str) -> Key:
    return Key(
        name=name,
        kind="absolute path",
        faults=absolute_path,
        default=default,
        default_text=f'`"{default}"`',
        doc=doc,
    )


def _number_key(name: str, least: int, most: int, default: int, doc: str) -> Key:
    return Key(
        name=name,
        kind="whole number",
        faults=whole_number(least, most),
        default=default,
        default_text=f"`{default}`",
        doc=f"{doc} {least} to {most}.",
    )


def _boolean_key(name: str, doc: str, *, default: bool) -> Key:
    return Key(
        name=name,
        kind="boolean",
        faults=boolean,
        default=default,
        default_text=f"`{str(default).lower()}`",
        doc=doc,
    )


AIO_KEYS = (
    _path_key(
        "configuration_file",
        f"{_VOLUMES}/nextcloud_aio_mastercontainer/_data/data/configuration.json",
        "AIO's configuration, on the host: in the volume `nextcloud_aio_mastercontainer`.",
    ),
    _path_key(
        "database_dump_dir",
        f"{_VOLUMES}/nextcloud_aio_database_dump/_data",
        "Directory of AIO's database dump, on the host; its lock file `backup-is-running` is "
        "there.",
    ),
    Key(
        name="engine",
        kind="string",
        faults=string("a string", engine_fault),
        default=None,
        default_text="`DOCKER_HOST` of the companion, else `unix:///var/run/docker.sock`",
        doc="Address of the container engine's API, or of a proxy before it: `unix:///PATH` or "
        "`tcp://HOST:PORT`.",
    ),
    _path_key(
        "socket",
        "/run/borg-pull-aio/companion.sock",
        "Socket of the companion; `borg-pull-aio.socket` has the same.",
    ),
    _path_key(
        "state_dir",
        "/var/lib/borg-pull-aio",
        "Directory of the companion's jobs and journal. Root's, mode 0700.",
    ),
    _container_key(
        "mastercontainer",
        "nextcloud-aio-mastercontainer",
        "Container in which AIO's daily backup is started.",
    ),
    _container_key(
        "borgbackup_container",
        "nextcloud-aio-borgbackup",
        "Container that runs borg for AIO; how it ended is the verdict.",
    ),
    _container_key(
        "watchtower_container",
        "nextcloud-aio-watchtower",
        "Container that replaces the mastercontainer in an update.",
    ),
    _container_key(
        "apache_container",
        "nextcloud-aio-apache",
        "Container that must be up and healthy once containers have been started.",
    ),
    _number_key(
        "health_timeout",
        30,
        86_400,
        900,
        "Seconds that the containers have to become healthy after a backup.",
    ),
    _number_key(
        "keep_jobs",
        1,
        10_000,
        200,
        "Jobs that are kept of each client: the newest, and the last of each action and target.",
    ),
    _number_key("keep_days", 1, 3650, 90, "Days for which a job is kept after its end."),
)

TARGET_KEYS = (
    Key(
        name="remote_repo",
        kind="string",
        faults=_remote_repo,
        default=None,
        default_text="none",
        doc="A repository on another host, `ssh://USER@HOST:PORT/PATH`, reached by AIO with its "
        "own key. No password.",
    ),
    Key(
        name="host_location",
        kind="string",
        faults=_host_location,
        default=None,
        default_text="none",
        doc="A directory of this host, an absolute path without a slash at its end, or the volume "
        f"`{BACKUP_VOLUME}`.",
    ),
)

ACTION_KEYS = (
    Key(
        name="type",
        kind="string",
        faults=string("a string", one_of(ACTION_TYPES)),
        default=REQUIRED,
        default_text="required",
        doc=f'What it does: `"{ACTION_TYPES[0]}"`.',
    ),
    Key(
        name="description",
        kind="string",
        faults=string("a string", _description_fault),
        default="",
        default_text='`""`',
        doc=f"One line for people, at most {MOST_DESCRIPTION} characters.",
    ),
    Key(
        name="target",
        kind="name",
        faults=_name,
        default=None,
        default_text="none",
        doc="Where to, by the name of an `[aio.target.NAME]`.",
    ),
    *TARGET_KEYS,
    _boolean_key(
        "restore_after",
        "Put AIO's previous target back afterwards, whatever came of it.",
        default=False,
    ),
    _boolean_key("daily_backup", "Make a backup.", default=True),
    _boolean_key(
        "check_backup",
        "Check the repository instead; then `daily_backup` is `false`.",
        default=False,
    ),
    _boolean_key("stop_containers", "Stop Nextcloud's containers before.", default=True),
    _boolean_key("start_containers", "Start them afterwards.", default=True),
    _boolean_key("automatic_updates", "Let AIO update itself and its containers.", default=False),
    _number_key(
        "stop_timeout",
        10,
        300,
        60,
        "Seconds after which a container that AIO is stopping, and that still runs, is told of.",
    ),
    _number_key(
        "timeout",
        60,
        86_400,
        21_600,
        "Seconds after which the outcome is `timeout`; the backup itself is never killed.",
    ),
)

_AIO = "aio"
_TARGETS = "target"
_ACTIONS = "action"
_CLIENTS = "client"


def load(
    main: SourceFile, client_file: SourceFile | None = None, client: str | None = None
) -> AioPolicy:
    """The policy in ``main``, with what ``client`` may name, be it there or in its own file.

    Of the other tables it looks at ``[runtime]`` and ``[audit]`` alone, and of the client's at what
    it may name. Raises WhitelistError with every fault found.
    """
    faults: list[Fault] = []
    document = parsed(main, faults)
    if document is None:
        raise WhitelistError(faults)
    check = Check(main, faults, unknown_key)
    runtime = runtime_of(check, document)
    audit = audit_of(check, document, runtime)
    features = features_of(check, document)
    aio, targets, actions = _tables(check, document)
    grants = None if client is None else _grants(check, document, client_file, client, faults)
    if faults or runtime is None or audit is None or features is None or aio is None:
        raise WhitelistError(faults)
    return AioPolicy(
        runtime=runtime,
        audit=audit,
        aio=aio,
        targets=targets,
        actions=actions,
        features=features,
        client=grants,
    )


TABLES = ("runtime", "audit", "confine", "limits", "features", _CLIENTS, _AIO, _ACTIONS)
"""All that a main file may have at its top."""


def faults_of_grants(main: SourceFile, client_files: Mapping[str, SourceFile]) -> list[Fault]:
    """What is wrong with what each client may name, and with the names of tables in ``main``."""
    faults: list[Fault] = []
    document = parsed(main, faults)
    if document is None:
        return faults
    check = Check(main, faults, unknown_key)
    for name, table in document.items():
        if name not in TABLES:
            check.fault(name, unknown_key(name, table, "", TABLES))
    known = names(Check(main, [], unknown_key), document)
    clients = document.get(_CLIENTS, {})
    inside = clients if isinstance(clients, dict) else {}
    for client in dict.fromkeys((*inside, *client_files)):
        own = client_files.get(client)
        grants = _grants(check, document, own, client, faults)
        if grants is None:
            continue
        place = check if own is None else Check(own, faults, unknown_key)
        prefix = f"{_CLIENTS}.{client}" if own is None else ""
        lists = (("actions", grants.actions), ("aio_targets", grants.aio_targets))
        for (key, listed), there in zip(lists, known, strict=True):
            for position, item in enumerate(listed):
                if item not in there:
                    table = "aio.target" if key == "aio_targets" else _ACTIONS
                    near = nearest_name(item, tuple(there))
                    place.fault(
                        joined(prefix, f"{key}[{position}]"),
                        f"{quoted(item)} is no [{table}.NAME]{near}",
                    )
    return faults


def names(check: Check, document: dict[str, object]) -> tuple[frozenset[str], frozenset[str]]:
    """Names of the actions and of the targets in ``document``, sound ones or not; ``check`` notes
    what is wrong with them."""
    _tables(check, document)
    aio, actions = document.get(_AIO, {}), document.get(_ACTIONS, {})
    targets = aio.get(_TARGETS, {}) if isinstance(aio, dict) else {}
    return (
        frozenset(actions if isinstance(actions, dict) else ()),
        frozenset(targets if isinstance(targets, dict) else ()),
    )


def _tables(
    check: Check, document: dict[str, object]
) -> tuple[AioSettings | None, dict[str, Target], dict[str, Action]]:
    """Settings, and the targets and actions that are sound."""
    aio = document.get(_AIO, {})
    tables = aio.get(_TARGETS, {}) if isinstance(aio, dict) else {}
    rest = (
        {key: value for key, value in aio.items() if key != _TARGETS}
        if isinstance(aio, dict)
        else aio
    )
    checked = check.values(rest, AIO_KEYS, _AIO)
    settings = None
    if checked is not None and not checked[1]:
        settings = AioSettings(**checked[0])  # type: ignore[arg-type]
    targets: dict[str, Target] = {}
    for name, table, prefix in _named(check, tables, f"{_AIO}.{_TARGETS}"):
        target = _target(check, name, table, prefix)
        if target is not None:
            targets[name] = target
    actions: dict[str, Action] = {}
    for name, table, prefix in _named(check, document.get(_ACTIONS, {}), _ACTIONS):
        action = _action(check, name, table, prefix, targets, tables)
        if action is not None:
            actions[name] = action
    return settings, targets, actions


def _named(check: Check, tables: object, prefix: str) -> list[tuple[str, object, str]]:
    """(name, table, its key) of the tables below ``prefix`` whose names are sound."""
    if not isinstance(tables, dict):
        check.fault(prefix, wrong_type("a table", tables))
        return []
    found = []
    for name, table in tables.items():
        unfit = action_name_fault(name)
        if unfit is not None:
            check.fault(f"{prefix}.{name}", f"{quoted(name)} {unfit}")
        else:
            found.append((name, table, f"{prefix}.{name}"))
    return found


def _target(check: Check, name: str, table: object, prefix: str) -> Target | None:
    checked = check.values(table, TARGET_KEYS, prefix)
    if checked is None or checked[1]:
        return None
    values = checked[0]
    if (values["remote_repo"] is None) is (values["host_location"] is None):
        check.fault(prefix, "needs exactly one of remote_repo and host_location")
        return None
    return Target(name=name, **values)  # type: ignore[arg-type]


def _action(
    check: Check,
    name: str,
    table: object,
    prefix: str,
    targets: Mapping[str, Target],
    known: Mapping[str, object],
) -> Action | None:
    """``targets`` are the sound ones, ``known`` all of them."""
    checked = check.values(table, ACTION_KEYS, prefix)
    if checked is None or checked[1]:
        return None
    values = checked[0]
    contradictions = _contradictions(values, known)
    for key, message in contradictions:
        check.fault(joined(prefix, key) if key else prefix, message)
    if contradictions:
        return None
    own = {key: values.pop(key) for key in ("remote_repo", "host_location")}
    named = values.pop("target")
    target = None
    if named is not None:
        target = targets.get(str(named))
        if target is None:
            return None  # what is wrong with it has been noted
    elif any(own.values()):
        target = Target(name=None, **own)  # type: ignore[arg-type]
    return Action(name=name, target=target, **values)  # type: ignore[arg-type]


def _contradictions(
    values: Mapping[str, object], targets: Mapping[str, object]
) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    places = [key for key in ("target", "remote_repo", "host_location") if values[key] is not None]
    found.extend((key, f"stands beside {places[0]}; keep one of them") for key in places[1:])
    target = values["target"]
    if target is not None and target not in targets:
        near = nearest_name(str(target), tuple(targets))
        found.append(("target", f"{quoted(str(target))} is no [{_AIO}.{_TARGETS}.NAME]{near}"))
    if values["restore_after"] and not places:
        found.append(("restore_after", "has nothing to put back: the action names no target"))
    if values["daily_backup"] and values["check_backup"]:
        found.append(
            ("check_backup", "stands beside daily_backup, which AIO refuses; one is false")
        )
    if not values["daily_backup"] and not values["check_backup"]:
        found.append(("", "does nothing: neither daily_backup nor check_backup is true"))
    return found


def _grants(
    check: Check,
    document: dict[str, object],
    client_file: SourceFile | None,
    client: str,
    faults: list[Fault],
) -> Grants | None:
    clients = document.get(_CLIENTS, {})
    if not isinstance(clients, dict):
        check.fault(_CLIENTS, wrong_type("a table", clients))
        return None
    table: object = clients.get(client)
    prefix = f"{_CLIENTS}.{client}"
    if client_file is not None:
        if table is not None:
            check.fault(prefix, f"stands in {client_file.name} too; keep one of them")
            return None
        table, prefix = parsed(client_file, faults), ""
        check = Check(client_file, faults, unknown_key)
    if table is None:
        return None
    if isinstance(table, dict):
        known = [key.name for key in GRANT_KEYS]
        table = {key: value for key, value in table.items() if key in known}
    checked = check.values(table, GRANT_KEYS, prefix)
    if checked is None or checked[1]:
        return None
    return Grants(client=client, **checked[0])  # type: ignore[arg-type]
