"""``borg-pull-admin explain``: what the forced command would make of a request, and why.

Every answer comes from the functions the forced command calls; nothing is run, made or written.
With ``--json`` the answer is one `Report`.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from typing import Literal, TypedDict

import click

from borg_pull import aio_policy
from borg_pull.admin import host
from borg_pull.aio_policy import AioPolicy
from borg_pull.configuration_files import client_file, main_file
from borg_pull.credentials import masked_request
from borg_pull.errors import (
    BorgPullError,
    ConfigurationError,
    NotAllowedError,
    printable,
)
from borg_pull.lockdown import reason_of
from borg_pull.output import print_lines, put
from borg_pull.positions import Positions
from borg_pull.roles import NEEDS
from borg_pull.schema import SourceFile
from borg_pull.source import borg, confine
from borg_pull.source.asking import ANSWERED_HERE, refused_by_policy
from borg_pull.source.borg import WITHOUT_CAPABILITY
from borg_pull.source.installation import current_context, program_beside, socket_wrapper
from borg_pull.source.judge import Allowed, Refused, judge, refused_by_role
from borg_pull.source.request import VERBS, Request, parse
from borg_pull.source.state import find_own_directory
from borg_pull.source.state import places as state_places
from borg_pull.source.whitelist import CLIENT_KEYS, ClientRules, Settings, load
from borg_pull.trust import Trust
from borg_pull.values import client_name_fault, quoted


class Rule(TypedDict):
    """A rule that decided something."""

    rule: str
    """Key and item, as ``paths[0]``; a word for a rule that no configuration changes."""
    origin: Literal["file", "default", "built-in"]
    file: str | None
    line: int | None
    """Of the item; for a default, of the client's table."""


class PathGrant(TypedDict):
    """A path that borg would be given."""

    path: str
    rule: Rule
    obstacle: str | None
    """Why the path cannot be served as the host stands now; no part of the verdict."""


class Run(TypedDict):
    """What would run."""

    verb: str
    repository: str | None
    archive: str | None
    paths: list[PathGrant]
    argv: list[str]
    environment: dict[str, str]
    environment_at_run_time: dict[str, str]
    """Variables whose value only the run itself has, and what they hold."""
    confinement: dict[str, bool | int | None]
    """As the ``confinement`` of an audit record, for the installed forced command."""
    file_access: dict[str, str]
    """What Landlock lets borg do below each path; empty when it is not in force."""
    socket: str | None
    state_directory: str
    lock: str | None
    passphrase_source: str | None
    """Where it would come from; None where the rules name nothing."""
    limits: dict[str, int]
    """The client's own, by key of the configuration; whether they are reached is not looked at."""


class Ask(TypedDict):
    """What would be asked of the companion."""

    request: str
    name: str | None
    """Of an action or a target, or a job's ID."""
    target: str | None
    """Where the action or the target leads to, without credentials; None where it is AIO's own."""
    socket: str
    """The companion's."""


class Report(TypedDict):
    """The answer of ``explain --json``."""

    type: Literal["explain"]
    version: Literal[1]
    config: str
    client: str
    request: str
    verdict: Literal["allowed", "refused"]
    exit: int
    """0, or the code the request would get."""
    reason: str | None
    hint: str | None
    rules: list[Rule]
    """What decided, empty when the request or the configuration never came to be judged."""
    lockdown: str | None
    """Why the host serves nobody as it stands now; no part of the verdict."""
    run: Run | None
    """None when refused, and when no borg would run."""
    ask: Ask | None
    """What would be asked of the companion; None for every other request."""


_SCHEMA = """\
--json: an object of type "explain", version 1, config, client, request, verdict ("allowed" or
"refused"), exit, reason, hint, rules (each rule, origin, file, line), lockdown (null, or why nobody
is served now), ask (null, or what would be asked of the companion: request, name, target, socket)
and run: null, or verb, repository, archive, paths (each path, rule, obstacle), argv,
environment, environment_at_run_time, confinement, file_access, socket, state_directory, lock,
passphrase_source, limits.
"""


@click.command(
    context_settings={"ignore_unknown_options": True},
    epilog=_SCHEMA,
    short_help="Say what would become of a request.",
)
@click.argument("config", type=click.Path(readable=False))
@click.argument("client")
@click.argument("request")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def explain(context: click.Context, config: str, client: str, request: str, as_json: bool) -> None:
    """Say what would become of REQUEST from CLIENT under the whitelist CONFIG, and run nothing.

    REQUEST is one argument: what the client gives to ssh, such as
    'create /srv/repo web-{now} /var/www'. Shown are the verdict, the rule that decided and where
    it stands, and the argv, environment and confinement that borg would get.

    The verdict is about the rules. What the host lacks at the moment, such as a path, is told of
    beside it and does not change it. Exit code 0: allowed; else the one the request would get:
    64, 77 or 78.
    """
    report = explanation(host.absolute(config), client, request)
    if as_json:
        put(json.dumps(report) + "\n")
    else:
        print_lines(_lines(report))
    context.exit(report["exit"])


def explanation(config: str, client: str, request: str) -> Report:
    """What the forced command would make of ``request``."""
    report = Report(
        type="explain",
        version=1,
        config=config,
        client=client,
        request=masked_request(request),
        verdict="refused",
        exit=0,
        reason=None,
        hint=None,
        rules=[],
        lockdown=reason_of(config),
        run=None,
        ask=None,
    )
    try:
        _explain(report, os.fsencode(request))
    except BorgPullError as error:
        report["exit"] = error.exit_code
        report["reason"] = error.message
        report["hint"] = error.hint
    return report


def _explain(report: Report, command: bytes) -> None:
    """The forced command's own steps, up to where it would act. Raises BorgPullError."""
    client = report["client"]
    unfit = client_name_fault(client)
    if unfit is not None:
        raise ConfigurationError(f"{client!a} {unfit}", "see authorized_keys")
    program = program_beside("borg-pull-source")
    trust = Trust(enforced=host.has_capability(program), uid=os.geteuid())
    main = main_file(report["config"], trust)
    own = client_file(report["config"], client, trust)
    whitelist = load(main, {} if own is None else {client: own}, only=client)
    rules = whitelist.clients.get(client)
    if rules is None:
        raise NotAllowedError(f"client {client} is not in the whitelist")
    places = _Places(main, own, "" if own else f"client.{client}")
    request = parse(command)
    features = whitelist.settings.features
    if VERBS[request.verb].names is not None:
        refused = refused_by_role(request, client, rules, features)
        if refused is None:
            policy = aio_policy.load(main, own, client)
            refused = refused_by_policy(request, policy)
            report["ask"] = None if refused else _ask(request, policy)
        report["rules"] = _rules_of_ask(request, rules, refused, places)
        if refused is not None:
            raise NotAllowedError(refused.reason, refused.hint)
    elif request.verb == "hello":
        report["rules"] = [_built_in("hello")]
        report["run"] = _hello(client, rules, whitelist.settings, program)
    else:
        verdict = judge(request, client, rules, features, current_context())
        report["rules"] = [places.rule(name) for name in verdict.rule.split(", ")]
        if isinstance(verdict, Refused):
            raise NotAllowedError(verdict.reason, verdict.hint)
        report["run"] = _run(verdict, client, rules, whitelist.settings, program, places)
    report["verdict"] = "allowed"


class _Places:
    """Where the rules of one client stand."""

    def __init__(self, main: SourceFile, own: SourceFile | None, table: str) -> None:
        self._main = main
        self._file = own or main
        self._table = table

    def rule(self, name: str) -> Rule:
        """The place of the rule that `judge` names ``name``."""
        key = name.partition("[")[0]
        if key.startswith("features."):
            return self._place(self._main, name, name)
        if key not in (known.name for known in CLIENT_KEYS):
            return _built_in(name)
        return self._place(self._file, name, f"{self._table}.{name}" if self._table else name)

    def _place(self, file: SourceFile, name: str, whole: str) -> Rule:
        positions = Positions(file.content.decode("utf-8"))
        is_set = positions.has(whole.partition("[")[0])
        return Rule(
            rule=name,
            origin="file" if is_set else "default",
            file=file.name,
            line=positions.line(whole),
        )


def _built_in(name: str) -> Rule:
    return Rule(rule=name, origin="built-in", file=None, line=None)


def _ask(request: Request, policy: AioPolicy) -> Ask | None:
    if request.verb in ANSWERED_HERE:
        return None
    target = policy.targets.get(request.name or "")
    if request.verb == "run":
        target = policy.actions[request.name or ""].target
    return Ask(
        request=request.verb,
        name=request.name,
        target=None if target is None else target.masked(),
        socket=policy.aio.socket,
    )


def _rules_of_ask(
    request: Request, rules: ClientRules, refused: Refused | None, places: _Places
) -> list[Rule]:
    """What decided; for what is allowed, all that had to allow it."""
    if refused is not None:
        return [places.rule(refused.rule)]
    needs = NEEDS[request.verb]
    decided = [places.rule("role"), *(places.rule(f"features.{name}") for name in needs.switches)]
    if needs.listed is not None:
        names: tuple[str, ...] = getattr(rules, needs.listed)
        if request.name in names:
            decided.append(places.rule(f"{needs.listed}[{names.index(request.name)}]"))
        else:
            decided.append(places.rule("features.enable_arbitrary_targets"))
    return decided


def _hello(client: str, rules: ClientRules, settings: Settings, program: str) -> Run:
    command = borg.version_command(settings.runtime)
    return Run(
        verb="hello",
        repository=None,
        archive=None,
        paths=[],
        argv=list(command.argv),
        environment=command.environment,
        environment_at_run_time={},
        confinement=_confinement(program, settings),
        file_access={},
        socket=None,
        state_directory=_state(settings, client),
        lock=None,
        passphrase_source=None,
        limits=_limits(rules),
    )


def _run(
    allowed: Allowed,
    client: str,
    rules: ClientRules,
    settings: Settings,
    program: str,
    places: _Places,
) -> Run:
    runtime = settings.runtime
    command = borg.command(allowed, client, rules, runtime, socket_wrapper(settings))
    state = _state(settings, client)
    lock, report = state_places(borg.lock_directory(runtime, client), allowed.repository)
    source = _passphrase_source(rules)
    # Whatever is unpacked belongs to the account, so it can be read without.
    is_without = allowed.staging is not None or allowed.verb in WITHOUT_CAPABILITY
    without = {"capability": False} if is_without else {}
    at_run_time = {
        **borg.state_environment(state),
        "BORG_PULL_SESSION_PROCESSES": "sshd's processes of the session",
        "BORG_PULL_WRAP_REPORT": report,
    }
    if allowed.verb == "change-passphrase":
        at_run_time |= {"BORG_NEW_PASSPHRASE": "second line of standard input"}
    if source is not None:
        at_run_time |= {"BORG_PASSPHRASE_FD": "descriptor of a pipe with the passphrase"}
    return Run(
        verb=allowed.verb,
        repository=allowed.repository,
        archive=allowed.archive,
        paths=[
            PathGrant(
                path=grant.path,
                rule=places.rule(grant.rule),
                obstacle=_obstacle(grant.path, rules),
            )
            for grant in allowed.grants
        ],
        argv=list(command.argv),
        environment=command.environment,
        environment_at_run_time=at_run_time,
        confinement=_confinement(program, settings) | without,
        file_access=_file_access(allowed, client, settings, state),
        socket=borg.socket_path(runtime.socket_dir, client, allowed.nonce),
        state_directory=state,
        lock=lock,
        passphrase_source=source,
        limits=_limits(rules),
    )


def _limits(rules: ClientRules) -> dict[str, int]:
    return {
        "max_sessions": rules.max_sessions,
        "requests_per_hour": rules.requests_per_hour,
        "request_burst": rules.request_burst,
    }


def _obstacle(path: str, rules: ClientRules) -> str | None:
    try:
        return host.path_obstacle(path, refuse_empty=rules.refuse_empty)
    except PermissionError:
        return "cannot be looked at by this user"


def _passphrase_source(rules: ClientRules) -> str | None:
    if rules.passphrase_file is not None:
        return f"first line of {rules.passphrase_file}"
    if rules.passcommand is not None:
        return f"first line that {masked_request(rules.passcommand)} prints"
    return "first line of standard input" if rules.passphrase_stdin else None


def _confinement(program: str, settings: Settings) -> dict[str, bool | int | None]:
    """That of the forced command beside this program, whatever privilege this one has."""
    planned = confine.planned(settings.confine.landlock)
    return {**planned.as_fields(), "capability": host.has_capability(program)}


def _state(settings: Settings, client: str) -> str:
    """The client's state directory, whose name is chosen at random when it is made."""
    directory = borg.client_directory(settings.runtime, client)
    return find_own_directory(directory) or f"{directory}/(a name that cannot be guessed)"


def _file_access(allowed: Allowed, client: str, settings: Settings, state: str) -> dict[str, str]:
    if confine.planned(settings.confine.landlock).landlock is None:
        return {}
    allowances = confine.allowances(allowed, client, settings, state)
    # The first rule for a path is the widest for it: what is granted comes before what is listed.
    present = [rule for rule in allowances if os.path.lexists(rule.path)]
    access = {rule.path: rule.access for rule in reversed(present)}
    if allowed.staging is not None and "--dry-run" not in allowed.options:
        access[f"{allowed.staging.rstrip('/')}/(a new directory)"] = "unpack"
    return access


# For people


def _lines(report: Report) -> Iterator[tuple[tuple[str, str], ...]]:
    style = "green" if report["verdict"] == "allowed" else "red"
    outcome = "" if report["exit"] == 0 else f", exit {report['exit']}"
    yield _labelled("verdict", f"{report['verdict']}{outcome}", f"bold {style}")
    for label in ("reason", "hint"):
        text = report[label]
        if text is not None:
            yield _labelled(label, text)
    for rule in report["rules"]:
        yield _labelled("rule", _rule_text(rule))
    if report["lockdown"] is not None:
        yield _labelled(_BUT_NOW, report["lockdown"], "yellow")
    if report["ask"] is not None:
        ask = report["ask"]
        yield _labelled("asks", f"{ask['request']} {ask['name'] or ''}".rstrip())
        if ask["target"] is not None:
            yield _labelled("target", ask["target"])
        yield _labelled("companion", ask["socket"])
    if report["run"] is not None:
        for label, text in _run_lines(report["run"]):
            yield _labelled(label, text, "yellow" if label == _BUT_NOW else "")


_BUT_NOW = "but now"


def _labelled(label: str, text: str, style: str = "") -> tuple[tuple[str, str], ...]:
    return ((f"{label:<12}", "dim"), (printable(text), style))


def _run_lines(run: Run) -> Iterator[tuple[str, str]]:
    for grant in run["paths"]:
        yield "path", f"{_path_text(grant['path'])}  by {_rule_text(grant['rule'])}"
        if grant["obstacle"] is not None:
            yield _BUT_NOW, f"{_path_text(grant['path'])} {grant['obstacle']}"
    yield "runs", shlex.join(run["argv"])
    for name, value in sorted(run["environment"].items()):
        yield "environment", f"{name}={value}"
    for name, value in sorted(run["environment_at_run_time"].items()):
        yield "environment", f"{name}: {value}"
    yield "confinement", ", ".join(_confinement_words(run["confinement"]))
    for access in dict.fromkeys(run["file_access"].values()):
        paths = [path for path, granted in run["file_access"].items() if granted == access]
        yield "landlock", f"{access}: {' '.join(map(_path_text, paths))}"
    yield "socket", run["socket"] or "none"
    yield "state", run["state_directory"]
    yield "lock", run["lock"] or "none"
    yield "passphrase", run["passphrase_source"] or "none"
    limits = ", ".join(f"{name.replace('_', ' ')}: {most}" for name, most in run["limits"].items())
    yield "limits", limits


def _confinement_words(confinement: dict[str, bool | int | None]) -> Iterator[str]:
    for name, value in confinement.items():
        shown = "none" if value is None else str(value)
        if isinstance(value, bool):
            shown = "yes" if value else "no"
        yield f"{name.replace('_', ' ')}: {shown}"


def _path_text(path: str) -> str:
    return path if path.isprintable() and " " not in path else quoted(path)


def _rule_text(rule: Rule) -> str:
    if rule["origin"] == "built-in":
        return f"{rule['rule']} (built in)"
    place = rule["file"] if rule["line"] is None else f"{rule['file']}:{rule['line']}"
    default = " (default)" if rule["origin"] == "default" else ""
    return f"{rule['rule']}{default} at {place}"
