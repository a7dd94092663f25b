"""``borg-pull-source CONFIG_FILE CLIENT_NAME``: the forced command.

`_serve` is the story: every step of a request, one a line.
"""

from __future__ import annotations

import os
import select
import sys
import time

from borg_pull import PROTOCOL_VERSION, __version__, configuration_files, lockdown, values
from borg_pull.audit import AuditLog, Common, encode, new_session, timestamp
from borg_pull.errors import (
    SHORTAGES,
    AuditError,
    BorgPullError,
    BusyError,
    ConfigurationError,
    EndedError,
    InternalError,
    LimitedError,
    NotAllowedError,
    RequestError,
    SystemRefusedError,
    printable,
)
from borg_pull.linux import capabilities, landlock, process
from borg_pull.linux.signals import check_endings, ignore_endings, watch_endings
from borg_pull.record import Record
from borg_pull.roles import NEEDS, USUAL_ROLE, is_admin, missing
from borg_pull.source import (
    borg,
    confine,
    installation,
    limits,
    peer,
    report,
    session,
    state,
    whitelist,
)
from borg_pull.source.judge import Refused, judge, refused_by_role
from borg_pull.source.request import VERBS, Request, parse, spelling
from borg_pull.source.trail import Outcome, Trail
from borg_pull.trust import Trust, check_directories, check_own_directory, check_program
from borg_pull.values import is_session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from borg_pull import schema
    from borg_pull.audit import JSONValue
    from borg_pull.source.judge import Allowed
    from borg_pull.source.outcome import Finding
    from borg_pull.source.session import Ending
    from borg_pull.source.staging import Staging
    from borg_pull.source.whitelist import ClientRules, Settings, Whitelist

PROGRAM = "borg-pull-source"
_VERSION_TIMEOUT = 60.0  # seconds; borg may have to be read from a slow disk
_LAST_WORDS = 2  # seconds a slow peer has to make room for what we say
# Two for each of the most paths a request can name, and then some.
_DESCRIPTORS = 2048
# Of the account. More than 1,000 connections at once have; a borg that was taken over and forks on
# and on leaves the machine the rest of its numbers for processes, of which it has 32,768 at least.
_PROCESSES = 4096


class Invocation(Record):
    """What sshd's configuration and sshd itself tell; only ``command`` is the peer's."""

    config: str
    """Absolute path."""
    client: str
    command: bytes | None
    caller: peer.Caller


class Admitted(Record):
    """A request that the limits have let in, and what it takes to serve it."""

    invocation: Invocation
    rules: ClientRules
    settings: Settings
    trust: Trust
    trail: Trail
    place: limits.Place
    watch: int
    """Where signals to this program are noted."""


def main() -> int:
    """Serve one request; the exit code is one of ``docs/protocol.md``."""
    try:
        return _serve(sys.argv, os.environb)
    except Exception as error:  # noqa: BLE001 - a traceback would go to the peer
        fault = _fault(error)
    finally:
        # An interpreter that is taken down gives signals their default effect back, and the exit
        # code that is on record must not change any more.
        ignore_endings()
    if not fault.is_recorded:
        _tell_the_system(fault)
    _say(fault.line())
    return fault.exit_code


def _serve(arguments: list[str], environment: Mapping[bytes, bytes]) -> int:
    watch = _settle_process()
    invocation = _invocation(arguments, environment)
    _leave_the_callers_place()
    trust = _trust()
    rules_file = _read_whitelist(invocation, trust)
    settings = rules_file.settings
    socket_dir = settings.runtime.socket_dir
    try:
        trail = _trail(settings, invocation, trust)
    except ConfigurationError as error:
        _remove_own_socket(invocation, socket_dir, error)
        raise
    try:
        rules = _rules_of(rules_file, invocation.client)
        place = _place(rules, settings, invocation, trust, trail)
        _check_lockdown(invocation, rules, settings)
        place.take_token(rules.requests_per_hour, rules.request_burst)
        trail.admit()
        request = parse(invocation.command)
        trail.knows(request.verb)
        admitted = Admitted(
            invocation=invocation,
            rules=rules,
            settings=settings,
            trust=trust,
            trail=trail,
            place=place,
            watch=watch,
        )
        return _serve_verb(request, admitted)
    except Exception as error:
        fault = _end(error, invocation)
        try:
            trail.fail(fault)
        finally:
            _remove_own_socket(invocation, socket_dir, fault)
        raise fault from error


def _serve_verb(request: Request, admitted: Admitted) -> int:
    if request.verb == "hello":
        return _answer_hello(admitted)
    if VERBS[request.verb].names is not None:
        return _ask_companion(request, admitted)
    return _run_borg(request, admitted)


def _run_borg(request: Request, admitted: Admitted) -> int:
    client, rules, trail = admitted.invocation.client, admitted.rules, admitted.trail
    settings, runtime = admitted.settings, admitted.settings.runtime
    allowed = _judged(request, client, rules, settings)
    _check_runtime(settings, admitted.trust)
    state.prepare(borg.directories(runtime, client), admitted.trust)
    own = state.own_directory(borg.client_directory(runtime, client), admitted.trust)
    locks = borg.lock_directory(runtime, client)
    held = state.claim(locks, allowed.repository)
    run: session.Run | None = None
    stage: Staging | None = None
    is_settled = False
    try:
        admitted.place.tell(allowed.verb, held.report_path)
        _record_interrupted(held, trail)
        is_settled = True
        state.note(held, _lock_note(allowed, trail))
        roots = confine.open_roots(allowed.grants, refuse_empty=rules.refuse_empty)
        path = borg.socket_path(runtime.socket_dir, client, allowed.nonce)
        forwarded = peer.forwarded_socket(path)
        confinement = _confinement(allowed, settings)
        secret = _passphrase(admitted, own)
        command = borg.command(
            allowed, client, rules, runtime, installation.socket_wrapper(settings)
        )
        command.environment.update(borg.state_environment(own))
        command.environment.update(_wrap_environment(forwarded, held))
        command.environment.update(_new_passphrase(allowed, admitted))
        rules_of_kernel = confine.allowances(allowed, client, settings, own)
        fence = confine.ruleset(confinement, roots, rules_of_kernel, forwarded.evidence)
        check_endings(admitted.watch)
        if allowed.staging is not None:
            stage = _stage(allowed.staging, request, admitted, fence)
        _record_start(trail, command, allowed, confinement, _of_restore(request, stage))
        run = session.start(
            command,
            confinement,
            fence,
            passphrase=secret,
            keep_stdout=allowed.json and allowed.verb == "create",
            watch=admitted.watch,
            directory=None if stage is None else stage.descriptor,
        )
        from borg_pull.source.outcome import finding  # while borg starts, not before

        ending = run.wait()
        reported = report.take(held.report_path)
        lost = [root.path for root in roots if not root.is_in_place()]
        why = _lockdown(admitted.invocation) if ending.is_by_signal() else None
        found = finding(ending, reported, allowed, client, rules, lost, why)
        _record_end(trail, ending, found, reported)
        _clean_up(forwarded, found, reported)
    except Exception as error:
        fault = _end(error, admitted.invocation)
        if run is None:
            trail.fail(fault)
        else:
            trail.fail(fault, "killed" if run.abandon() else "error")
        raise fault from error
    finally:
        # With no end on record, the note stays for the next run to record it.
        state.release(held, ended=is_settled and not trail.is_started)
        if stage is not None:
            # The only directories of ours that a borg which unpacks can open, and so change.
            os.chmod(own, 0o700)
        if stage is not None and stage.remove_if_empty():
            stage = None
    _tell(found, ending, allowed, trail, stage)
    return found.exit


def _settle_process() -> int:
    """Nothing in force that a later step does not ask for, and streams that exist.

    Returns where signals that end this program are noted from now on.
    """
    if os.geteuid() == 0:
        raise SystemRefusedError(
            "this program must not run as root", "give it an account of its own"
        )
    process.hide_from_debuggers()
    capabilities.make_effective(None)
    process.forbid_core_dumps()
    process.close_descriptors()
    process.raise_descriptor_limit(_DESCRIPTORS)
    process.limit_processes(_PROCESSES)
    os.umask(0o027)
    while (descriptor := os.open("/dev/null", os.O_RDWR)) < 3:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    watch = watch_endings()
    # Only now, because those that the caller had blocked arrive here.
    process.forget_signals()
    return watch


def _invocation(arguments: list[str], environment: Mapping[bytes, bytes]) -> Invocation:
    if len(arguments) != 3:
        raise ConfigurationError(
            f"{len(arguments) - 1} arguments instead of 2",
            f"usage, in authorized_keys: {PROGRAM} CONFIG_FILE CLIENT_NAME",
        )
    _, config, client = arguments
    unfit = values.client_name_fault(client)
    if unfit is not None:
        raise ConfigurationError(f"{client!a} {unfit}", "see authorized_keys")
    return Invocation(
        config=config if config.startswith("/") else f"{_working_directory()}/{config}",
        client=client,
        command=environment.get(b"SSH_ORIGINAL_COMMAND"),
        caller=peer.caller(environment),
    )


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError as error:
        raise ConfigurationError(
            f"the working directory cannot be told: {error.strerror}",
            "name the configuration by its absolute path in authorized_keys",
        ) from error


def _leave_the_callers_place() -> None:
    """Nothing from here on depends on the caller's directory, time zone or other variables."""
    os.chdir("/")
    had_time_zone = "TZ" in os.environ
    os.environ.clear()
    if had_time_zone:
        time.tzset()


def _trust() -> Trust:
    enforced = process.is_secure_execution() or capabilities.current().permitted != 0
    return Trust(enforced=enforced, uid=os.geteuid())


def _read_whitelist(invocation: Invocation, trust: Trust) -> Whitelist:
    """The settings and this client's rules; a fault in them is recorded if at all possible."""
    config = invocation.config
    main_file = configuration_files.main_file(config, trust)
    try:
        own = configuration_files.client_file(config, invocation.client, trust)
        files = {} if own is None else {invocation.client: own}
        return whitelist.load(main_file, files, only=invocation.client)
    except ConfigurationError as error:
        try:
            settings = whitelist.load_settings(main_file)
            if settings is not None:
                _trail(settings, invocation, trust).refused(error)
        finally:
            # Root's own file says where, whatever else is wrong with it.
            socket_dir = whitelist.load_socket_dir(main_file)
            if socket_dir is not None:
                _remove_own_socket(invocation, socket_dir, error)
        raise


def _configuration(
    invocation: Invocation, trust: Trust
) -> tuple[schema.SourceFile, schema.SourceFile | None]:
    """The files once more, for the tables that few requests need."""
    config = invocation.config
    return (
        configuration_files.main_file(config, trust),
        configuration_files.client_file(config, invocation.client, trust),
    )


def _trail(settings: Settings, invocation: Invocation, trust: Trust) -> Trail:
    # A directory that is missing is the audit log's to report, and then nothing runs either.
    if trust.enforced and os.path.isdir(os.path.dirname(settings.audit.file)):
        check_directories(settings.audit.file, trust, own=True)
    common = Common(
        session=new_session(),
        client=invocation.client,
        key=invocation.caller.key,
        address=invocation.caller.address,
        port=invocation.caller.port,
        pid=os.getpid(),
    )
    log = AuditLog(settings.audit.file, sync=settings.audit.sync)
    return Trail(log, common, invocation.command)


def _rules_of(rules_file: Whitelist, client: str) -> ClientRules:
    rules = rules_file.clients.get(client)
    if rules is None:
        raise NotAllowedError(f"client {client} is not in the whitelist")
    return rules


def _place(
    rules: ClientRules, settings: Settings, invocation: Invocation, trust: Trust, trail: Trail
) -> limits.Place:
    """This request's place among those under way. Raises LimitedError when there is none."""
    home = settings.runtime.home.rstrip("/") or "/"
    check_own_directory(home, trust)
    state.prepare((limits.directory(home),), trust)
    return limits.claim(
        home,
        invocation.client,
        trail.session,
        most=settings.limits.max_sessions,
        most_of_client=rules.max_sessions,
    )


def _lockdown(invocation: Invocation) -> str | None:
    """What is told of the lockdown of this host, None when there is none."""
    reason = lockdown.reason_of(invocation.config)
    return None if reason is None else f"this host is {reason}"


def _check_lockdown(invocation: Invocation, rules: ClientRules, settings: Settings) -> None:
    # After the place is taken: whoever locks down and then looks who is there misses nobody.
    reason = _lockdown(invocation)
    if reason is not None and not _is_about_lockdown(invocation, rules, settings):
        raise LimitedError(reason, "try again when that is over")


def _is_about_lockdown(invocation: Invocation, rules: ClientRules, settings: Settings) -> bool:
    """Whether this is a request of an admin's key to look at the lockdown or lift it: the one that
    a lockdown must let through."""
    if not is_admin(rules.role, settings.features):
        return False
    try:
        return parse(invocation.command).verb in ("lockdown-off", "lockdown-status")
    except RequestError:
        return False


def _end(error: Exception, invocation: Invocation) -> BorgPullError:
    """The fault that ended this request; that of a signal names the lockdown it may be due to."""
    fault = _fault(error)
    if isinstance(fault, EndedError):
        fault.hint = _lockdown(invocation) or "try again later"
    return fault


def _remove_own_socket(invocation: Invocation, socket_dir: str, fault: BorgPullError) -> None:
    """Have the name free for the client's next request, which ssh would not make otherwise."""
    try:
        nonce = parse(invocation.command).value("socket")
    except RequestError:
        nonce = None
    # The client's plain name serves the run under way when another is why this one is busy.
    is_in_use = isinstance(fault, BusyError) and not isinstance(fault, LimitedError)
    if nonce is not None or not is_in_use:
        _remove_unless_foreign(borg.socket_path(socket_dir, invocation.client, nonce))


def _judged(request: Request, client: str, rules: ClientRules, settings: Settings) -> Allowed:
    context = installation.current_context()
    verdict = judge(request, client, rules, settings.features, context)
    if isinstance(verdict, Refused):
        raise NotAllowedError(verdict.reason, verdict.hint)
    return verdict


def _check_runtime(settings: Settings, trust: Trust) -> None:
    check_program(settings.runtime.borg, trust)
    check_program(installation.socket_wrapper(settings), trust)
    check_own_directory(settings.runtime.socket_dir.rstrip("/") or "/", trust)


def _passphrase(admitted: Admitted, own: str) -> bytes | None:
    rules = admitted.rules
    if not (rules.passphrase_file or rules.passcommand or rules.passphrase_stdin):
        return None
    from borg_pull.source.passphrase import obtain

    environment = borg.base_environment() | borg.state_environment(own)
    return obtain(rules, admitted.trust, environment, admitted.watch)


def _new_passphrase(allowed: Allowed, admitted: Admitted) -> dict[str, str]:
    """What tells borg of the passphrase to come; it has no other way than its environment."""
    if allowed.verb != "change-passphrase":
        return {}
    from borg_pull.source.passphrase import obtain_new

    return {"BORG_NEW_PASSPHRASE": obtain_new(admitted.watch).decode("utf-8")}


def _confinement(allowed: Allowed, settings: Settings) -> confine.Confinement:
    """What binds this run. Raises SystemRefusedError where that is not enough for it."""
    confinement = confine.planned(settings.confine.landlock)
    if allowed.verb == "change-passphrase" and confinement.landlock is None:
        # The kernel shows a process's environment to others of the account; Landlock has every
        # other borg see none but its own.
        raise SystemRefusedError(
            "a passphrase is not changed where the kernel does not keep runs of borg apart",
            "it takes Landlock, and confine.landlock other than off",
        )
    if allowed.staging is not None or allowed.verb in borg.WITHOUT_CAPABILITY:
        return confinement.without_capability()
    return confinement


def _lock_note(allowed: Allowed, trail: Trail) -> str:
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return f"{allowed.verb} since {started}, pid {os.getpid()}, session {trail.session}"


def _record_interrupted(held: state.Claim, trail: Trail) -> None:
    """End the record of the lock's last holder, if it was killed before it could."""
    if held.interrupted is None:
        return
    verb, _, rest = held.interrupted.partition(" ")
    session_id = rest.rpartition("session ")[2]
    # A borg that was taken over could have written the note: nothing else may pass into the log.
    if verb in VERBS and is_session(session_id):
        trail.complete_interrupted(session_id, verb)


def _wrap_environment(forwarded: peer.ForwardedSocket, held: state.Claim) -> dict[str, str]:
    return {
        "BORG_PULL_SESSION_PROCESSES": forwarded.session_text(),
        "BORG_PULL_WRAP_REPORT": held.report_path,
    }


def _clean_up(
    forwarded: peer.ForwardedSocket, found: Finding, reported: report.WrapReport | None
) -> None:
    """Remove the socket's file, unless it serves another session, and what others left."""
    served = reported.connected if reported is not None else found.exit in (0, 1)
    if served:
        peer.remove_socket(forwarded)
    else:
        _remove_unless_foreign(forwarded.path)
    peer.remove_deserted(os.path.dirname(forwarded.path))


def _remove_unless_foreign(path: str) -> None:
    try:
        peer.remove_unless_foreign(path)
    except OSError:
        # No descriptor to ask with, which changes nothing about this request's end. The next one
        # removes what is left.
        return


def _record_start(
    trail: Trail,
    command: borg.BorgCommand,
    allowed: Allowed,
    confinement: confine.Confinement,
    more: Mapping[str, JSONValue] | None,
) -> None:
    trail.start(
        command.argv,
        allowed.repository,
        allowed.archive,
        [grant.path for grant in allowed.grants],
        confinement.as_fields(),
        more,
    )


def _stage(
    directory: str, request: Request, admitted: Admitted, fence: landlock.Ruleset | None
) -> Staging | None:
    """Where a restore goes, allowed to it and nothing else; None for a dry run."""
    from borg_pull.source import staging

    if fence is None:
        raise SystemRefusedError(
            "a restore runs only where the kernel confines it, and Landlock is not in force",
            "see confine.landlock in the configuration",
        )
    if request.has("dry-run"):
        os.close(staging.open_parent(directory))
        return None
    made = staging.make(directory, f"{admitted.invocation.client}-{admitted.trail.session}")
    fence.allow(made.descriptor, landlock.UNPACK)
    return made


def _of_restore(request: Request, stage: Staging | None) -> Mapping[str, JSONValue] | None:
    """What the record of a restore has beyond that of other runs."""
    if request.verb != "restore":
        return None
    return {
        "members": list(request.paths),
        "directory": None if stage is None else stage.path,
    }


def _record_end(
    trail: Trail, ending: Ending, found: Finding, reported: report.WrapReport | None
) -> None:
    try:
        trail.complete(_outcome(ending, found, reported))
    except AuditError as error:
        raise AuditError(
            f"borg ended with {found.result}, but its end could not be recorded: {error.message}",
            error.hint,
        ) from error


def _outcome(ending: Ending, found: Finding, reported: report.WrapReport | None) -> Outcome:
    return Outcome(
        result=found.result,
        borg_code=ending.borg_code,
        exit=found.exit,
        signal=ending.signal,
        duration=ending.duration,
        bytes_to_peer=None if reported is None else reported.bytes_to_peer,
        bytes_from_peer=None if reported is None else reported.bytes_from_peer,
        archive_stats=_archive_stats(ending.stdout),
        error=found.error,
    )


_ARCHIVE_STATS = ("original_size", "compressed_size", "deduplicated_size", "nfiles")


def _archive_stats(stdout: bytes | None) -> dict[str, int | str] | None:
    """id, duration-free numbers of borg's ``create --json`` (its docs, "JSON output")."""
    if not stdout:
        return None
    import json

    try:
        archive = json.loads(stdout)["archive"]
        stats = {name: int(archive["stats"][name]) for name in _ARCHIVE_STATS}
        identifier = str(archive["id"])
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
        return None
    # A borg that was taken over may say anything.
    if len(identifier) > 64 or not all(0 <= value < 2**63 for value in stats.values()):
        return None
    return {"id": identifier, **stats}


def _tell(
    found: Finding, ending: Ending, allowed: Allowed, trail: Trail, stage: Staging | None
) -> None:
    """Our own words behind borg's, and the exact code for whoever reads JSON lines."""
    if ending.cause == "the connection closed":
        return
    if found.message is not None:
        _say(printable(found.message))
    if stage is not None and not allowed.log_json:
        _say(printable(f"what was restored is in {stage.path}"))
    if allowed.log_json:
        result: dict[str, JSONValue] = {
            "type": "borg_pull_result",
            "session": trail.session,
            "result": found.result,
            "exit": found.exit,
            "borg_code": ending.borg_code,
            "signal": ending.signal,
            "error": found.error,
        }
        if allowed.staging is not None:
            result["directory"] = None if stage is None else stage.path
        _write(2, encode(result))


def _ask_companion(request: Request, admitted: Admitted) -> int:
    """Serve what borg has no part in: no process is started, and no capability is needed."""
    from borg_pull import aio_policy
    from borg_pull.source import asking

    capabilities.drop_all()
    started = time.monotonic()
    invocation, rules, trail = admitted.invocation, admitted.rules, admitted.trail
    admitted.place.tell(request.verb, None)
    main_file, own = _configuration(invocation, admitted.trust)
    policy = aio_policy.load(main_file, own, invocation.client)
    if request.verb in asking.ANSWERED_HERE:
        refused = refused_by_role(request, invocation.client, rules, policy.features)
        if refused is not None:
            raise NotAllowedError(refused.reason, refused.hint)
        answer = (
            asking.actions(policy) if request.verb == "actions" else _lockdown_answer(invocation)
        )
        trail.answered((), round(time.monotonic() - started, 3))
        _write(1, encode(answer))
        return 0
    verdict = asking.judge_ask(request, invocation.client, rules, policy, trail.common)
    if isinstance(verdict, Refused):
        raise NotAllowedError(verdict.reason, verdict.hint)
    from borg_pull.source.conversation import ask

    check_endings(admitted.watch)
    is_stream = asking.is_stream(verdict)
    ended = ask(policy.aio.socket, verdict, admitted.watch, is_stream=is_stream)
    trail.answered(
        (),
        round(time.monotonic() - started, 3),
        name=request.name,
        exit_code=ended.exit,
        error=ended.error,
    )
    if ended.error is not None and not ended.is_peer_gone:
        _say(printable(ended.error if ended.hint is None else f"{ended.error}; {ended.hint}"))
    return ended.exit


def _lockdown_answer(invocation: Invocation) -> JSONValue:
    found = lockdown.read(invocation.config)
    names = ("since", "by", "reason", "client")
    told = {name: None if found is None else getattr(found, name) for name in names}
    return {"type": "lockdown", "version": 1, "locked": found is not None, **told}


def _answer_hello(admitted: Admitted) -> int:
    from borg_pull.source.capture import output_of

    client, rules, trail = admitted.invocation.client, admitted.rules, admitted.trail
    settings, runtime = admitted.settings, admitted.settings.runtime
    _check_runtime(settings, admitted.trust)
    admitted.place.tell("hello", None)
    command = borg.version_command(runtime)
    confinement = confine.planned(settings.confine.landlock)
    # To tell its version borg needs no capability, and nothing but itself to read.
    narrower = confinement.without_capability()
    fence = confine.ruleset(narrower, (), confine.to_load(settings), ())
    started = time.monotonic()
    check_endings(admitted.watch)
    version = output_of(
        command.argv,
        command.environment,
        confinement=narrower,
        rules=fence,
        timeout=_VERSION_TIMEOUT,
        limit=1024,
        watch=admitted.watch,
    )
    trail.answered(command.argv, round(time.monotonic() - started, 3))
    socket_dir = runtime.socket_dir.rstrip("/") or "/"
    answer: JSONValue = {
        "type": "hello",
        "program": PROGRAM,
        "version": __version__,
        "protocol": PROTOCOL_VERSION,
        "borg": version.decode("ascii", "replace").strip().rpartition(" ")[2],
        "client": client,
        "verbs": _verbs(rules, settings),
        "role": rules.role,
        "socket_directory": socket_dir,
        "socket": f"{socket_dir}/{client}.sock",
        "passphrase_stdin": rules.passphrase_stdin,
        "time": timestamp(time.time()),
        "confinement": {
            **confinement.as_fields(),
            "landlock_abi": landlock.abi(),
        },
    }
    _write(1, encode(answer))
    # A name that ssh could not forward to reaches us in no other request. Where no socket belongs,
    # those that a client had bound take up names and inodes all the same.
    for directory in (
        socket_dir,
        runtime.home,
        limits.directory(runtime.home),
        borg.client_directory(runtime, client),
        *borg.directories(runtime, client),
    ):
        peer.remove_deserted(directory)
    return 0


def _verbs(rules: ClientRules, settings: Settings) -> list[str]:
    """What the client may ask for; what only the companion serves, where the rules speak of it."""
    is_of_aio = rules.actions or rules.aio_targets or rules.role != USUAL_ROLE
    found = [verb for verb in rules.allow if missing(verb, rules.role, settings.features) is None]
    found.append("hello")
    for verb, needs in NEEDS.items():
        is_listed = needs.listed is None or (
            needs.listed != "allow" and getattr(rules, needs.listed)
        )
        if (
            verb not in found
            and is_listed
            and missing(verb, rules.role, settings.features) is None
            and (is_of_aio or VERBS[verb].names is None)
        ):
            found.append(spelling(verb))
    return found


def _tell_the_system(fault: BorgPullError) -> None:
    """For the admin of this host: what found no place in the audit log."""
    import syslog

    syslog.openlog(PROGRAM, syslog.LOG_PID, syslog.LOG_AUTH)
    syslog.syslog(syslog.LOG_ERR, fault.line())


def _fault(error: Exception) -> BorgPullError:
    """``error`` itself if it is one of ours, else that it was not foreseen, and where."""
    if isinstance(error, BorgPullError):
        return error
    if isinstance(error, MemoryError):
        return SystemRefusedError("out of memory", "look for a limit on this account (ulimit -v)")
    if isinstance(error, OSError) and error.errno in SHORTAGES:
        return SystemRefusedError.because("the system refused", error)
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = (
        ""
        if trace is None
        else (f" at {os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}")
    )
    return InternalError(f"unexpected {type(error).__name__}: {error}{place}", "please report it")


def _say(line: str) -> None:
    _write(2, f"{PROGRAM}: {line}")


def _write(descriptor: int, line: str) -> None:
    data = line.encode("ascii", "backslashreplace") + b"\n"
    room = select.poll()
    room.register(descriptor, select.POLLOUT)
    try:
        # A peer that reads nothing must not keep this process for ever.
        while data and room.poll(_LAST_WORDS * 1000):
            data = data[os.write(descriptor, data[: select.PIPE_BUF]) :]
    except OSError:
        # The peer is gone; the audit log has it all.
        return
