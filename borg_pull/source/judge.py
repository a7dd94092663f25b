"""Judgement: a request against one client's rules. Pure; it can act on nothing.

The answer carries everything that execution may use, or the reason for the refusal.
"""

from __future__ import annotations

import time

from borg_pull.record import Record
from borg_pull.roles import NEEDS, missing
from borg_pull.source.request import spelling
from borg_pull.values import archive_fault, archive_parts, quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from borg_pull.roles import Features
    from borg_pull.source.request import Request
    from borg_pull.source.whitelist import ClientRules


class Context(Record):
    """What placeholders in archive names stand for."""

    hostname: str
    local_time: time.struct_time
    utc_time: time.struct_time


class Grant(Record):
    """One path the request may read, and the rule that grants it."""

    path: str
    rule: str


class Allowed(Record):
    """A judged request: all that execution may use."""

    verb: str
    repository: str
    archive: str | None
    """Name with its placeholders expanded."""
    grants: tuple[Grant, ...]
    members: tuple[str, ...]
    """What `restore` takes out of the archive, as borg's patterns; empty for all of it."""
    staging: str | None
    """The directory in which `restore` makes its own; None for every other verb."""
    options: tuple[str, ...]
    """Arguments for borg behind the verb, operands excluded, each one word."""
    nonce: str | None
    """What sets this run's socket apart from the client's others."""
    json: bool
    log_json: bool
    rule: str
    """The rule that allows the verb."""


class Refused(Record):
    """A request that may not run."""

    reason: str
    hint: str | None
    rule: str
    """The rule that decided."""


def refused_by_role(
    request: Request, client: str, rules: ClientRules, features: Features
) -> Refused | None:
    """The refusal of a verb that the client's role and the switches do not give it."""
    lacking = missing(request.verb, rules.role, features)
    if lacking is None:
        return None
    kind, needed = lacking
    if kind == "role":
        return Refused(
            reason=f"client {client} has the role {rules.role}, and "
            f"{spelling(request.verb)} takes {needed}",
            hint=f"it would have to stand in client.{client}.role",
            rule="role",
        )
    return Refused(
        reason=f"verb {spelling(request.verb)} is switched off",
        hint=f"it takes {needed} = true in [features]",
        rule=f"features.{needed}",
    )


def judge(
    request: Request, client: str, rules: ClientRules, features: Features, context: Context
) -> Allowed | Refused:
    """The verdict on a ``request`` that runs borg. ``hello`` needs none and is not judged here."""
    refused = refused_by_role(request, client, rules, features)
    if refused is not None:
        return refused
    if NEEDS[request.verb].listed == "allow" and request.verb not in rules.allow:
        return Refused(
            reason=f"verb {request.verb} is not allowed to client {client}",
            hint=f"allowed are {', '.join((*rules.allow, 'hello'))}",
            rule="allow",
        )
    repository = request.repository
    if repository is None:
        return Refused(reason="the request names no repository", hint=None, rule="request")
    if rules.repositories and _plain(repository) not in map(_plain, rules.repositories):
        return Refused(
            reason=f"repository {quoted(repository)} is not allowed to client {client}",
            hint=None,
            rule="repositories",
        )
    refused = _VERB_RULES.get(request.verb, _nothing_more)(request, client, rules)
    if refused is not None:
        return refused
    grants: list[Grant] = []
    for path in () if request.verb == "restore" else request.paths:
        rule = _granting_rule(path, rules)
        if rule is None:
            return Refused(
                reason=f"path {quoted(path)} is not allowed to client {client}",
                hint=_allowed_instead(path, rules),
                rule="paths, trees",
            )
        grants.append(Grant(path=path, rule=rule))
    archive = None if request.archive is None else expand(request.archive, context)
    # Once more, because literal text in a time format may have completed what was split in two.
    fault = None if archive is None else archive_fault(archive)
    if archive is not None and fault is not None:
        return Refused(reason=f"archive name {quoted(archive)} {fault}", hint=None, rule="request")
    return Allowed(
        verb=request.verb,
        repository=repository,
        archive=archive,
        grants=tuple(grants),
        members=_members(request) if request.verb == "restore" else (),
        staging=rules.restore_to if request.verb == "restore" else None,
        options=_borg_options(request, rules),
        nonce=request.value("socket"),
        json=request.has("json"),
        log_json=request.has("log-json"),
        rule=_allowing_rule(request.verb, rules),
    )


def _allowing_rule(verb: str, rules: ClientRules) -> str:
    needs = NEEDS[verb]
    if needs.listed == "allow":
        return f"allow[{rules.allow.index(verb)}]"
    return ", ".join(["role", *(f"features.{switch}" for switch in needs.switches)])


def _members(request: Request) -> tuple[str, ...]:
    """Archives hold paths without the leading slash; a prefix stands for itself and all below."""
    if "/" in request.paths:
        return ()
    return tuple(f"pp:{path.strip('/')}" for path in request.paths)


def expand(name: str, context: Context) -> str:
    """The archive name with its placeholders replaced, so that borg finds no brace in it."""
    expanded: list[str] = []
    for literal, placeholder in archive_parts(name):
        expanded.append(literal)
        if placeholder is None:
            continue
        kind, _, time_format = placeholder.partition(":")
        if kind == "hostname":
            expanded.append(context.hostname)
        else:
            expanded.append(_formatted(time_format or "%Y-%m-%dT%H:%M:%S", kind, context))
    return "".join(expanded)


def _formatted(time_format: str, kind: str, context: Context) -> str:
    if kind == "now":
        return time.strftime(time_format, context.local_time)
    # The C library calls it GMT, borg UTC.
    pieces = [piece.replace("%Z", "UTC") for piece in time_format.split("%%")]
    return time.strftime("%%".join(pieces), context.utc_time)


def _granting_rule(path: str, rules: ClientRules) -> str | None:
    if path in rules.paths:
        return f"paths[{rules.paths.index(path)}]"
    plain = _plain(path)
    for position, tree in enumerate(rules.trees):
        if plain == tree or tree == "/" or plain.startswith(f"{tree}/"):
            return f"trees[{position}]"
    return None


def _allowed_instead(path: str, rules: ClientRules) -> str:
    """What to ask for; a client may know its own rules."""
    for listed in rules.paths:
        if _plain(listed) == _plain(path):
            return f"paths are compared verbatim: {quoted(listed)} is"
    named = [quoted(listed) for listed in rules.paths]
    named += [f"all below {quoted(tree)}" for tree in rules.trees]
    if len(named) > _MAX_NAMED:
        named[_MAX_NAMED:] = [f"{len(named) - _MAX_NAMED} more"]
    return f"paths are compared verbatim: allowed are {', '.join(named) or 'none'}"


_MAX_NAMED = 8


def _plain(path: str) -> str:
    return path.rstrip("/") or "/"


def _create_refused(request: Request, client: str, rules: ClientRules) -> Refused | None:
    for name, _ in request.options:
        if name != "socket" and name not in rules.flags:
            return Refused(
                reason=f"flag --{name} is not allowed to client {client}",
                hint=f"it would have to stand in client.{client}.flags",
                rule="flags",
            )
    for name in rules.required_flags:
        if not request.has(name):
            return Refused(
                reason=f"flag --{name} is required of client {client}",
                hint=None,
                rule="required_flags",
            )
    compression = request.value("compression")
    if (
        compression is not None
        and rules.compressions
        and compression not in rules.compressions
        and compression.partition(",")[0] not in rules.compressions
    ):
        return Refused(
            reason=f"compression {quoted(compression)} is not allowed to client {client}",
            hint=f"allowed are {', '.join(rules.compressions)}",
            rule="compressions",
        )
    return None


def _init_refused(request: Request, client: str, rules: ClientRules) -> Refused | None:
    mode = request.value("encryption")
    allowed = f"allowed are {', '.join(rules.encryption)}"
    if mode is None:
        return Refused(reason="init needs --encryption", hint=allowed, rule="encryption")
    if mode not in rules.encryption:
        return Refused(
            reason=f"encryption mode {mode} is not allowed to client {client}",
            hint=allowed,
            rule="encryption",
        )
    return None


def _prune_refused(request: Request, _client: str, _rules: ClientRules) -> Refused | None:
    if not request.has("glob-archives"):
        return Refused(
            reason="prune needs --glob-archives",
            hint="without a filter it would delete other clients' archives",
            rule="prune",
        )
    if not any(name.startswith("keep-") for name, _ in request.options):
        return Refused(
            reason="prune needs at least one --keep option",
            hint="without one it would keep nothing",
            rule="prune",
        )
    return None


def _check_refused(request: Request, _client: str, _rules: ClientRules) -> Refused | None:
    repository_only = request.has("repository-only")
    if repository_only and (request.has("archives-only") or request.has("verify-data")):
        return Refused(
            reason="--repository-only excludes --archives-only and --verify-data",
            hint=None,
            rule="check",
        )
    if request.has("max-duration") and not repository_only:
        return Refused(reason="--max-duration needs --repository-only", hint=None, rule="check")
    return None


def _list_refused(request: Request, _client: str, _rules: ClientRules) -> Refused | None:
    if request.has("first") and request.has("last"):
        return Refused(reason="--first excludes --last", hint=None, rule="list")
    return None


def _restore_refused(_request: Request, client: str, rules: ClientRules) -> Refused | None:
    if rules.restore_to is None:
        return Refused(
            reason=f"client {client} has no directory to restore to",
            hint=f"it would have to stand in client.{client}.restore_to",
            rule="restore_to",
        )
    return None


def _nothing_more(_request: Request, _client: str, _rules: ClientRules) -> Refused | None:
    return None


def _passphrase_refused(_request: Request, client: str, rules: ClientRules) -> Refused | None:
    # Where the passphrase rests here, the client is not to know it: not even by choosing it.
    if not rules.passphrase_stdin:
        return Refused(
            reason=f"client {client} does not send the passphrase, so it cannot change it",
            hint=f"it takes client.{client}.passphrase_stdin = true",
            rule="passphrase_stdin",
        )
    return None


_VERB_RULES = {
    "change-passphrase": _passphrase_refused,
    "create": _create_refused,
    "init": _init_refused,
    "prune": _prune_refused,
    "check": _check_refused,
    "list": _list_refused,
    "restore": _restore_refused,
}

# Query verbs answer with one JSON object, asked for or not.
_ALWAYS_JSON = ("list", "info")


def _borg_options(request: Request, rules: ClientRules) -> tuple[str, ...]:
    """Joined with ``=`` so that no value can be read as an option."""
    options = [
        f"--{name}" if value is None else f"--{name}={value}"
        for name, value in request.options
        if name != "socket"
    ]
    if request.verb in _ALWAYS_JSON and not request.has("json"):
        options.append("--json")
    if request.verb == "create":
        options.extend(f"--exclude={pattern}" for pattern in rules.excludes)
    return tuple(options)
