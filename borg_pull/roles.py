"""Who may ask for what: the roles, the switches, and the least of both that each verb takes.

Pure, and part of the start-up path.
"""

from __future__ import annotations

from borg_pull.record import Record
from borg_pull.schema import Key, boolean, each, one_of, string
from borg_pull.values import action_name_fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from borg_pull.schema import Check

ROLES = ("read", "action", "backup", "admin")
"""Each may what those before it may."""

USUAL_ROLE = "backup"
"""That of a client whose rules name none."""


class Features(Record):
    """``[features]``; switches of what is dangerous, for the role admin alone."""

    enable_admin: bool
    enable_config_write: bool
    enable_break_lock: bool
    enable_passphrase_change: bool
    enable_arbitrary_targets: bool


def _switch(name: str, doc: str) -> Key:
    return Key(
        name=name,
        kind="boolean",
        faults=boolean,
        default=False,
        default_text="`false`",
        doc=doc,
    )


FEATURE_KEYS = (
    _switch(
        "enable_admin",
        "The role `admin` may do more than `backup`: lock the host down, see and cancel the jobs "
        "of all clients, and what the switches below add. Without it they mean nothing.",
    ),
    _switch(
        "enable_config_write",
        "`target set`: have Nextcloud AIO keep another target, one of the client's `aio_targets`.",
    ),
    _switch("enable_break_lock", "`break-lock`: remove the lock of a repository by force."),
    _switch(
        "enable_passphrase_change",
        "`change-passphrase`: give the key of a repository another passphrase.",
    ),
    _switch(
        "enable_arbitrary_targets",
        "An admin's `aio` and `target set` may name every `[aio.target.NAME]`, listed in its "
        "`aio_targets` or not. Never one that is not in the whitelist: no request holds a "
        "location.",
    ),
)

GRANT_KEYS = (
    Key(
        name="role",
        kind="string",
        faults=string("a string", one_of(ROLES)),
        default=USUAL_ROLE,
        default_text=f'`"{USUAL_ROLE}"`',
        doc="What the client may ask for at all: `read`, `action`, `backup` or `admin`, each of "
        "which may what the one before it may. See [Roles](#roles).",
    ),
    Key(
        name="actions",
        kind="array of names",
        faults=each("names of actions", action_name_fault),
        default=(),
        default_text="`[]`",
        doc="Actions the client may `run`, each an `[action.NAME]`.",
    ),
    Key(
        name="aio_targets",
        kind="array of names",
        faults=each("names of targets", action_name_fault),
        default=(),
        default_text="`[]`",
        doc="Targets the client may name with `aio` and `target set`, each an `[aio.target.NAME]`.",
    ),
)


def features_of(check: Check, document: dict[str, object]) -> Features | None:
    """``[features]`` of ``document``, None when ``check`` has noted a fault in it."""
    checked = check.values(document.get("features", {}), FEATURE_KEYS, "features")
    if checked is None or checked[1]:
        return None
    return Features(**checked[0])  # type: ignore[arg-type]


class Needs(Record):
    """What a verb takes."""

    role: str
    """The least role."""
    switches: tuple[str, ...]
    """Keys of ``[features]`` that must all be on."""
    listed: str | None
    """Key of the client's rules in which it must stand besides, if any."""


def _needs(role: str, *switches: str, listed: str | None = None) -> Needs:
    return Needs(role=role, switches=switches, listed=listed)


_BORG = _needs("backup", listed="allow")
_READ = _needs("read")
_LOCKDOWN = _needs("admin", "enable_admin")

NEEDS: dict[str, Needs] = {
    "hello": _READ,
    "actions": _READ,
    "jobs": _READ,
    "job": _READ,
    "aio-status": _READ,
    "health": _READ,
    "metrics": _READ,
    "target-show": _READ,
    "run": _needs("action", listed="actions"),
    "cancel": _needs("action"),
    "create": _BORG,
    "init": _BORG,
    "list": _BORG,
    "info": _BORG,
    "check": _BORG,
    "prune": _BORG,
    "restore": _BORG,
    "aio": _needs("backup", listed="aio_targets"),
    "target-set": _needs("admin", "enable_admin", "enable_config_write", listed="aio_targets"),
    "break-lock": _needs("admin", "enable_admin", "enable_break_lock"),
    "change-passphrase": _needs("admin", "enable_admin", "enable_passphrase_change"),
    "lockdown-status": _LOCKDOWN,
    "lockdown-on": _LOCKDOWN,
    "lockdown-off": _LOCKDOWN,
}
"""By verb. A verb that is not here is nobody's."""


def missing(verb: str, role: str, features: Features) -> tuple[str, str] | None:
    """What ``verb`` needs that is not given: (``role`` or ``features``, its name); else None."""
    needs = NEEDS[verb]
    if ROLES.index(role) < ROLES.index(needs.role):
        return "role", needs.role
    for switch in needs.switches:
        if not getattr(features, switch):
            return "features", switch
    return None


def is_admin(role: str, features: Features) -> bool:
    """Whether a client of that role is one who sees and cancels the jobs of all."""
    return role == "admin" and features.enable_admin


def may_name_any_target(role: str, features: Features) -> bool:
    """Whether a client of that role may name targets that its rules do not list."""
    return is_admin(role, features) and features.enable_arbitrary_targets
