"""``borg-pull timers``: have systemd run the jobs when their schedules say."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from borg_pull.errors import (
    ConfigurationError,
    NotAllowedError,
    RequestError,
    SystemRefusedError,
    printable,
)
from borg_pull.output import print_table, put
from borg_pull.pull.host_keys import replace
from borg_pull.pull.invocation import Invocation, configured
from borg_pull.pull.places import Places
from borg_pull.pull.units import Owner, Scope, Setting, borg_directories, is_ours, mark, units

State = Literal["same", "missing", "different", "left over"]

OF_SYSTEM = Path("/etc/systemd/system")
_BOOTED = Path("/run/systemd/system")
"""Is there where systemd runs the machine (sd_booted(3))."""
_SYSTEMCTL_SECONDS = 60

_JSON = """
With --json: an object of type "timers", version 1, action, config, scope, directory, user, units
(a list of {name, state}), systemd (whether it was told) and todo (a list of commands to run).
"""


@dataclass(frozen=True)
class Where:
    """Which units are meant, and where they are."""

    setting: Setting
    directory: Path
    is_usual: bool
    """Whether systemd looks there by itself."""


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="One JSON object."),
        click.option(
            "--run-as", metavar="ACCOUNT", help="Account of system services.  [default: you]"
        ),
        click.option("--system", "scope", flag_value="system", help="Units of the system."),
        click.option("--user", "scope", flag_value="user", help="Units of your own account."),
        click.option(
            "--directory",
            metavar="DIR",
            type=click.Path(path_type=Path),
            help="Where the units are, or are to be, instead of where systemd looks.",
        ),
    ):
        command = option(command)
    return command


@click.group("timers", short_help="Have systemd run the jobs.")
def timers() -> None:
    """systemd timers and services: one pair for each job with a schedule, one that keeps watch."""


@timers.command("install", epilog=_JSON, short_help="Write and start them.")
@_options
@click.option("--dry-run", is_flag=True, help="Print what would be written, and write nothing.")
@configured
def install(
    invocation: Invocation,
    scope: Scope | None,
    run_as: str | None,
    directory: Path | None,
    *,
    as_json: bool,
    dry_run: bool,
) -> int:
    """Write the units that the configuration asks for, remove those of jobs that are gone, and
    start the timers. Run it again after each change of the configuration.

    As root they are the system's, else your own account's.
    """
    where = _where(invocation, scope, run_as, directory, prepare=not dry_run)
    _refuse_twice(where)
    wanted = units(where.setting)
    _check_calendars(where.setting)
    states = compare(where.directory, where.setting.main, wanted)
    _refuse_foreign(where, wanted)
    if dry_run:
        return _shown(where, wanted, states, as_json=as_json)
    where.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    told, todo = _apply(where, wanted, states)
    _tell("install", where, states, told=told, todo=todo, as_json=as_json)
    return 0


@timers.command("remove", epilog=_JSON, short_help="Stop and remove them.")
@_options
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@configured
def remove(
    invocation: Invocation,
    scope: Scope | None,
    run_as: str | None,
    directory: Path | None,
    *,
    as_json: bool,
    dry_run: bool,
) -> int:
    """Stop the timers, and remove all units that were made from this configuration.

    A job that is running goes on to its end.
    """
    where = _where(invocation, scope, run_as, directory, prepare=False)
    states = compare(where.directory, where.setting.main, {})
    if dry_run:
        return _shown(where, {}, states, as_json=as_json)
    told, todo = _apply(where, {}, states)
    _tell("remove", where, states, told=told, todo=todo, as_json=as_json)
    return 0


@timers.command("list", epilog=_JSON, short_help="Compare them with the configuration.")
@_options
@configured
def list_command(
    invocation: Invocation,
    scope: Scope | None,
    run_as: str | None,
    directory: Path | None,
    *,
    as_json: bool,
) -> int:
    """List the units, and tell whether they are what the configuration asks for.

    Units of the system that were made from this configuration are meant before your own.

    Exit code 0 when all are, else 1.
    """
    if scope is None and run_as is None and directory is None:
        run_as = _account_of(usual_directory("system"), invocation.path)
        scope = None if run_as is None else "system"
        if run_as == pwd.getpwuid(os.geteuid()).pw_name:
            # Its own account's places are where its environment says.
            run_as = None
    where = _where(invocation, scope, run_as, directory, prepare=False, writes=False)
    states = compare(where.directory, where.setting.main, units(where.setting))
    is_whole = all(state == "same" for state in states.values())
    todo = [] if is_whole else [command_to_install(where.setting, where.setting.scope)]
    _tell("list", where, states, told=_is_running(where), todo=todo, as_json=as_json)
    return 0 if is_whole else 1


def compare(directory: Path, main: Path, wanted: Mapping[str, str]) -> dict[str, State]:
    """How the units in ``directory`` differ from those that are wanted, by name.

    Units of other configurations, and those that are not ours, are left out.
    """
    states: dict[str, State] = {}
    for name, text in wanted.items():
        found = _content(directory / name)
        states[name] = "missing" if found is None else "same" if found == text else "different"
    for path in sorted(directory.glob("borg-pull-*")):
        if path.name not in wanted and _is_from(path, main):
            states[path.name] = "left over"
    return states


def installed(invocation: Invocation, scope: Scope) -> tuple[dict[str, State], str]:
    """What `compare` finds where systemd looks, for the account that the units there run as.

    With the command that makes them what they should be. Raises NotAllowedError where only root
    can be that account, and BorgPullError where it cannot have the units.
    """
    directory = usual_directory(scope)
    account = _account_of(directory, invocation.path) if scope == "system" else None
    if account == pwd.getpwuid(os.geteuid()).pw_name:
        account = None
    with _as_account(account):
        # Read anew: what begins with "~" is that account's.
        theirs = Invocation()
        theirs.chosen = invocation.path
        setting = setting_of(theirs, scope)
        return compare(directory, theirs.path, units(setting)), command_to_install(setting, scope)


def _account_of(directory: Path, main: Path) -> str | None:
    """Whom the services run as that were made from the configuration ``main``."""
    for path in sorted(directory.glob("borg-pull-*.service")):
        if _is_from(path, main):
            for line in (_content(path) or "").splitlines():
                if line.startswith("User="):
                    return line.removeprefix("User=")
    return None


def usual_directory(scope: Scope) -> Path:
    """Where systemd looks for units that an admin, or a user, has written."""
    if scope == "system":
        return OF_SYSTEM
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "systemd/user"


def setting_of(invocation: Invocation, scope: Scope) -> Setting:
    """What the units of the calling account depend on."""
    entry = pwd.getpwuid(os.geteuid())
    owner = Owner(entry.pw_name, entry.pw_uid, Path(os.path.expanduser("~")))
    settings = invocation.config.settings
    # Of a service, not of the shell that this runs in.
    runtime = settings.runtime_dir
    if runtime is None:
        of_user = Path(f"/run/user/{owner.uid}/borg-pull")
        runtime = of_user if scope == "user" else settings.state_dir / "run"
    return Setting(
        scope, invocation.path, invocation.config, Places(settings.state_dir, runtime), owner
    )


def _where(
    invocation: Invocation,
    scope: Scope | None,
    run_as: str | None,
    directory: Path | None,
    *,
    prepare: bool,
    writes: bool = True,
) -> Where:
    scope = scope or ("system" if os.geteuid() == 0 else "user")
    if run_as is not None and scope == "user":
        raise RequestError("--run-as is for units of the system", "give --system, too")
    usual = usual_directory(scope)
    with _as_account(run_as):
        setting = setting_of(invocation, scope)
        if prepare:
            _refuse_no_manager(setting)
            # A unit can give access to what is there alone.
            setting.places.prepare()
            for path in borg_directories(setting.owner):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if writes and scope == "system" and directory is None and os.geteuid() != 0:
        raise NotAllowedError(f"only root writes to {usual}", "run this as root, or give --user")
    chosen = usual if directory is None else directory.absolute()
    return Where(setting, chosen, is_usual=directory is None)


def _refuse_no_manager(setting: Setting) -> None:
    """Raise SystemRefusedError where there is no place for an account's own services to run."""
    name, place = setting.owner.name, Path(f"/run/user/{setting.owner.uid}")
    if setting.scope == "user" and place in setting.places.runtime_dir.parents:
        if place.is_dir():
            return
        raise SystemRefusedError(
            f"systemd keeps no {place} for {name}, who is not logged in (su is no login)",
            f"as root: loginctl enable-linger {name}, and run this again; or give {name} services "
            f"of the system, as root: {command_to_install(setting, 'system')}",
        )


def _refuse_twice(where: Where) -> None:
    """Raise ConfigurationError where own units would run what the system's units run already."""
    setting = where.setting
    if setting.scope == "user" and where.is_usual:
        account = _account_of(usual_directory("system"), setting.main)
        if account is not None:
            raise ConfigurationError(
                f"the system has timers of this configuration already, which run as {account}: "
                "every job would run twice",
                f"keep those (borg-pull timers list); or, as root: borg-pull timers remove "
                f"--system --config {setting.main}",
            )


@contextlib.contextmanager
def _as_account(name: str | None) -> Iterator[None]:
    """Be another account for a while: its ``~``, its files. Raises RequestError."""
    if name is None:
        yield
        return
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise RequestError(f"there is no account {name}") from None
    if os.geteuid() != 0:
        if entry.pw_uid != os.geteuid():
            raise NotAllowedError("only root can give services to another account")
        yield
        return
    before = (os.environ.get("HOME"), os.getgroups())
    os.environ["HOME"] = entry.pw_dir
    os.setgroups(os.getgrouplist(name, entry.pw_gid))
    os.setegid(entry.pw_gid)
    os.seteuid(entry.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(before[1])
        del os.environ["HOME"]
        if before[0] is not None:
            os.environ["HOME"] = before[0]


def _check_calendars(setting: Setting) -> None:
    """Ask systemd, where there is one, about the schedules. Raises ConfigurationError."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        return
    config = setting.config
    named = {f"job.{name}.schedule": job.schedule for name, job in config.job.items()}
    for key, calendar in {"settings.watch": config.settings.watch, **named}.items():
        if calendar is None:
            continue
        done = _run([analyze, "calendar", "--", calendar])
        if done.returncode != 0:
            raise ConfigurationError(
                f"{key}: systemd does not understand {calendar!a}",
                "see systemd-analyze calendar",
            )


def _content(path: Path) -> str | None:
    """The text of a regular file, None where there is nothing at all; "" for anything else."""
    if not os.path.lexists(path):
        return None
    if path.is_symlink() or not path.is_file():
        return ""
    return path.read_text(encoding="utf-8", errors="replace")


def _is_from(path: Path, main: Path) -> bool:
    return (_content(path) or "").partition("\n")[0] == mark(main)


def _refuse_foreign(where: Where, wanted: Mapping[str, str]) -> None:
    for name in wanted:
        path = where.directory / name
        found = _content(path)
        if found is None or _is_from(path, where.setting.main):
            continue
        whose = "is of another configuration" if is_ours(found) else "is not ours"
        raise ConfigurationError(f"{path} exists and {whose}", "move it away")


def _apply(
    where: Where, wanted: Mapping[str, str], states: Mapping[str, State]
) -> tuple[bool, list[str]]:
    """Make it so; whether systemd was told, and what is left to do by hand."""
    told = _is_running(where)
    gone = [name for name, state in states.items() if state == "left over"]
    changed = [name for name, state in states.items() if state in ("missing", "different")]
    gone_timers = [name for name in gone if name.endswith(".timer")]
    if told and gone_timers:
        _systemctl(where, "disable", "--now", *gone_timers)
    for name in gone:
        (where.directory / name).unlink()
    for name in changed:
        path = where.directory / name
        replace(path, wanted[name])
        path.chmod(0o644)
    kept = [name for name in wanted if name.endswith(".timer")]
    steps: list[list[str]] = []
    if changed or gone:
        steps.append(["daemon-reload"])
    if kept:
        steps.append(["enable", "--now", *kept])
        anew = [name for name in kept if states[name] == "different"]
        if anew:
            steps.append(["restart", *anew])
    if told:
        for step in steps:
            _systemctl(where, *step)
        return True, []
    if not where.is_usual:
        return False, []
    flags = ["--user"] if where.setting.scope == "user" else []
    return False, [" ".join(["systemctl", *flags, *step]) for step in steps]


def _is_running(where: Where) -> bool:
    """Whether there is a systemd to tell."""
    if not where.is_usual or shutil.which("systemctl") is None or not _BOOTED.is_dir():
        return False
    if where.setting.scope == "system":
        return True
    return Path(f"/run/user/{os.geteuid()}/systemd/private").exists()


def _systemctl(where: Where, *words: str) -> None:
    flags = ["--user"] if where.setting.scope == "user" else []
    done = _run(["systemctl", *flags, "--no-ask-password", *words])
    if done.returncode != 0:
        said = printable((done.stderr.strip().splitlines() or ["no message"])[-1])
        raise SystemRefusedError(f"systemctl {words[0]}: {said}", "the units are written")


def _run(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_SYSTEMCTL_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise SystemRefusedError(f"{argv[0]} does not end") from None


# What is said of it

_WORDS = {
    "list": {
        "same": "as configured",
        "missing": "missing",
        "different": "out of date",
        "left over": "of a job that is gone",
    },
    "install": {
        "same": "unchanged",
        "missing": "written",
        "different": "written anew",
        "left over": "removed",
    },
}


def _tell(
    action: str,
    where: Where,
    states: Mapping[str, State],
    *,
    told: bool,
    todo: Sequence[str],
    as_json: bool,
) -> None:
    words = _WORDS.get(action, _WORDS["install"])
    if as_json:
        put(json.dumps(_answer(action, where, states, told=told, todo=todo)) + "\n")
        return
    if not states:
        put(f"{printable(str(where.directory))} has no units of ours\n")
    else:
        print_table(("UNIT", "STATE"), [((name, words[one]), "") for name, one in states.items()])
    if todo:
        put("".join(f"run: {command}\n" for command in todo))
    elif action != "list" and not told:
        put(f"systemd was not told of {printable(str(where.directory))}\n")


def _shown(
    where: Where, wanted: Mapping[str, str], states: Mapping[str, State], *, as_json: bool
) -> int:
    """The answer of a dry run."""
    if as_json:
        put(json.dumps(_answer("dry-run", where, states, told=False, todo=[])) + "\n")
        return 0
    for name, state in states.items():
        path = printable(str(where.directory / name))
        if state == "left over":
            put(f"would remove {path}\n")
        elif state == "same":
            put(f"unchanged is {path}\n")
        else:
            put(f"would write {path}:\n{wanted[name]}\n")
    return 0


def _answer(
    action: str,
    where: Where,
    states: Mapping[str, State],
    *,
    told: bool,
    todo: Sequence[str],
) -> dict[str, Any]:
    return {
        "type": "timers",
        "version": 1,
        "action": action,
        "config": str(where.setting.main),
        "scope": where.setting.scope,
        "directory": str(where.directory),
        "user": where.setting.owner.name,
        "units": [{"name": name, "state": state} for name, state in states.items()],
        "systemd": told,
        "todo": list(todo),
    }


def command_to_install(setting: Setting, scope: Scope) -> str:
    """What writes the units of ``scope`` for the account of the setting; of the system, as root."""
    if scope == "user":
        return "borg-pull timers install --user"
    account = "" if setting.owner.uid == 0 else f" --run-as {setting.owner.name}"
    # Root has another default.
    return f"borg-pull timers install --system{account} --config {setting.main}"
