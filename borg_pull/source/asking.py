"""What a request that the companion serves, or the whitelist alone answers, comes to.

Pure: `judge_ask` says what may be asked of the companion, `actions` what the whitelist holds for
the client. Imported for such requests only.
"""

from __future__ import annotations

from borg_pull.companion import REQUESTS, Ask, Session
from borg_pull.roles import is_admin, may_name_any_target
from borg_pull.source.judge import Refused, refused_by_role

TYPE_CHECKING = False
if TYPE_CHECKING:
    from borg_pull.aio_policy import Action, AioPolicy, Target
    from borg_pull.audit import Common, JSONValue
    from borg_pull.source.request import Request
    from borg_pull.source.whitelist import ClientRules

ANSWERED_HERE = ("actions", "lockdown-status")
"""Verbs that take no companion."""

_STREAMS = ("run", "aio")


def judge_ask(
    request: Request, client: str, rules: ClientRules, policy: AioPolicy, common: Common
) -> Ask | Refused:
    """The verdict on ``request``: what may be asked of the companion, names and flags alone."""
    refused = refused_by_role(request, client, rules, policy.features)
    if refused is not None:
        return refused
    refused = refused_by_policy(request, policy)
    if refused is not None:
        return refused
    named, _ = REQUESTS[request.verb]
    return Ask(
        request=request.verb,
        client=client,
        session=Session(
            session=common.session,
            key=common.key,
            address=common.address,
            port=common.port,
            pid=common.pid,
        ),
        action=request.name if named == "action" else None,
        job=request.name if named == "job" else None,
        target=request.name if named == "target" else None,
        detach=request.has("detach"),
        follow=request.has("follow"),
        start=int(request.value("from") or 1),
        check=request.has("check"),
        all=is_admin(rules.role, policy.features),
    )


def refused_by_policy(request: Request, policy: AioPolicy) -> Refused | None:
    """The refusal of an action or a target that the client may not name."""
    if request.verb in ANSWERED_HERE:
        return None
    reason = policy.refusal(request.verb, request.name)
    if reason is None:
        return None
    return Refused(reason=reason, hint=_allowed(request, policy), rule=_rule(request))


def is_stream(ask: Ask) -> bool:
    """Whether the answer tells what happens as it happens, and so takes as long as that."""
    return (ask.request in _STREAMS and not ask.detach) or ask.follow


def _rule(request: Request) -> str:
    return "actions" if request.verb == "run" else "aio_targets"


def _allowed(request: Request, policy: AioPolicy) -> str:
    """What to name instead; a client may know its own rules."""
    if request.verb == "run":
        names = [one.name for one in allowed_actions(policy)]
    else:
        names = list(allowed_targets(policy))
    return f"allowed are {', '.join(names) or 'none'}"


def allowed_actions(policy: AioPolicy) -> list[Action]:
    """Those that stand in the client's list, in its order."""
    listed = () if policy.client is None else policy.client.actions
    return [policy.actions[name] for name in listed if name in policy.actions]


def allowed_targets(policy: AioPolicy) -> dict[str, Target]:
    """Those that the client may name, by name."""
    if policy.client is None:
        return {}
    if may_name_any_target(policy.client.role, policy.features):
        return dict(policy.targets)
    listed = policy.client.aio_targets
    return {name: policy.targets[name] for name in listed if name in policy.targets}


def actions(policy: AioPolicy) -> JSONValue:
    """The answer to ``actions``."""
    return {
        "type": "actions",
        "version": 1,
        "actions": [
            {
                "name": action.name,
                "type": action.type,
                "description": action.description,
                "target": None if action.target is None else action.target.masked(),
            }
            for action in allowed_actions(policy)
        ],
        "targets": [
            {"name": name, "target": target.masked()}
            for name, target in allowed_targets(policy).items()
        ],
    }
