"""``borg-pull-aio``: the companion, which drives Nextcloud AIO's own backup."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import click

from borg_pull import __version__
from borg_pull.aio import condition
from borg_pull.aio.configuration import AioConfiguration
from borg_pull.aio.engine import Engine
from borg_pull.aio.policy import USUAL_CONFIG, load_for
from borg_pull.aio.runs import Runs, Wanted, plan_of_action, set_target
from borg_pull.aio.service import Service
from borg_pull.audit import new_session
from borg_pull.command_line import run
from borg_pull.errors import (
    BORG_ERROR,
    BorgPullError,
    ConfigurationError,
    NotAllowedError,
    SystemRefusedError,
    printable,
)
from borg_pull.findings import many
from borg_pull.output import print_lines, put
from borg_pull.schema import WhitelistError

PROGRAM = "borg-pull-aio"


@click.group()
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
@click.option(
    "--config",
    default=USUAL_CONFIG,
    metavar="FILE",
    help=f"The whitelist.  [default: {USUAL_CONFIG}]",
)
@click.pass_context
def cli(context: click.Context, config: str) -> None:
    """Run the whitelist's actions on this host's Nextcloud AIO, or serve those who may ask for it.

    Run it as root. Exit codes of run: 0 the backup is made; 1 it is made, but something around it
    went wrong; 2 it failed, or is not known to be made; 69 the container engine does not answer; 75
    busy. Of all: 64 for a wrong command line, 70 for a fault of this program, 71 when the system
    refuses, 73 when there is no audit record, 77 for what is not in the whitelist, 78 when the
    configuration is wrong.
    """
    context.obj = os.path.abspath(config)


@cli.command(name="run", short_help="Run an action, and tell what happens.")
@click.argument("action")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, as over ssh.")
@click.pass_context
def run_action(context: click.Context, action: str, as_json: bool) -> None:
    """Run ACTION of the whitelist, and tell what happens until it is over.

    An interrupt ends the telling, not the run.
    """
    _check_root()
    policy = load_for(context.obj, None)
    found = policy.actions.get(action)
    if found is None:
        names = ", ".join(sorted(policy.actions)) or "none"
        raise NotAllowedError(f"there is no action {action}", f"the whitelist has: {names}")
    wanted = Wanted(
        plan=plan_of_action(found), action=action, target=None, common=_common_of_admin()
    )
    runs = Runs(policy)
    job = runs.start(wanted, lambda: None)
    if not as_json:
        put(f"job {job}\n")
    for event in runs.jobs.events(job, 1, follow=lambda: runs.is_alive(job)):
        put(json.dumps(event) + "\n" if as_json else _text(event))
        sys.stdout.flush()
    head = runs.jobs.head(job)
    if head is None or head["status"] != "finished":
        context.exit(BORG_ERROR)
    context.exit(int(head["exit"]))


@cli.command(short_help="Serve the forced command, on a Unix socket.")
@click.pass_context
def serve(context: click.Context) -> None:
    """Serve requests on the socket of the whitelist, or on that which systemd passes.

    Only the account of the forced command is listened to. At the start, and from then on, what a
    run has left that was killed is finished: its record, and AIO's target.
    """
    _check_root()
    Service(context.obj, lambda text: click.echo(f"{PROGRAM}: {printable(text)}", err=True)).run()


@cli.command(short_help="Show how AIO stands.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, as over ssh.")
@click.pass_context
def status(context: click.Context, as_json: bool) -> None:
    """Show AIO's containers, its target, its last backup, and the locks that a crash has left."""
    _check_root()
    policy = load_for(context.obj, None)
    found = condition.status(policy, Runs(policy))
    if as_json:
        put(json.dumps(found) + "\n")
        return
    print_lines(
        ((f"{label:<14}", "dim"), (printable(text), "")) for label, text in _status_lines(found)
    )


@cli.group(short_help="Show AIO's target, or have it be another.")
def target() -> None:
    """Show the target of AIO's backups, or have it be another one of the whitelist."""


@target.command(short_help="Show AIO's target.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, as over ssh.")
@click.pass_context
def show(context: click.Context, as_json: bool) -> None:
    """Show the target that AIO has now, and its name in the whitelist."""
    _check_root()
    found = condition.target(load_for(context.obj, None))
    if as_json:
        put(json.dumps(found) + "\n")
    else:
        put(f"{found['name'] or '-'}  {printable(found['target'] or 'none')}\n")


@target.command(name="set", short_help="Have AIO's target be another.")
@click.argument("name")
@click.pass_context
def set_(context: click.Context, name: str) -> None:
    """Have AIO's target be the [aio.target.NAME] of the whitelist, from now on."""
    _check_root()
    policy = load_for(context.obj, None)
    wanted = policy.targets.get(name)
    if wanted is None:
        names = ", ".join(sorted(policy.targets)) or "none"
        raise NotAllowedError(f"there is no target {name}", f"the whitelist has: {names}")
    set_target(policy, wanted, _common_of_admin())
    put(f"{name}  {printable(wanted.masked())}\n")


@cli.command(short_help="Say what is wrong with the configuration.")
@click.pass_context
def check_config(context: click.Context) -> None:
    """Check what the whitelist says of AIO, and whether AIO and its engine are where it says."""
    _check_root()
    try:
        policy = load_for(context.obj, None)
    except WhitelistError as error:
        for wrong in error.faults:
            click.echo(printable(wrong.text()), err=True)
        count = len(error.faults)
        raise ConfigurationError(
            f"the configuration is wrong: {count} error{'' if count == 1 else 's'}"
        ) from error
    faults = []
    content = None
    try:
        content = AioConfiguration(policy.aio.configuration_file).read()
    except BorgPullError as error:
        faults.append(error.line())
    try:
        if Engine(policy.aio.engine).inspect(policy.aio.mastercontainer) is None:
            faults.append(f"there is no container {policy.aio.mastercontainer}")
    except BorgPullError as error:
        faults.append(error.line())
    if content is not None and not content.is_set_up:
        faults.append("Nextcloud AIO is not set up yet; finish that in its interface")
    for fault in faults:
        click.echo(fault, err=True)
    if faults:
        raise ConfigurationError("Nextcloud AIO cannot be driven from here yet")
    put(
        f"{printable(context.obj)}: sound: "
        f"{many(len(policy.actions), 'action')}, {many(len(policy.targets), 'target')}\n"
    )


def main() -> int:
    """Run one command; the exit code is one of ``docs/protocol.md``."""
    return run(cli, PROGRAM)


def _check_root() -> None:
    if os.geteuid() != 0:
        raise SystemRefusedError("only root may drive the container engine", "run this as root")


def _common_of_admin() -> dict[str, Any]:
    """What the records of what is done on the host itself carry."""
    return {
        "session": new_session(),
        "client": None,
        "key": None,
        "address": None,
        "port": None,
        "pid": os.getpid(),
    }


def _text(event: Mapping[str, Any]) -> str:
    """An event for people."""
    kind = event["event"]
    if kind == "output":
        text = f"{event['origin']}: {event['line']}"
    elif kind == "state":
        more = [f"{key}: {value}" for key, value in event.items() if key not in _OF_ALL]
        text = " ".join([event["state"], *more])
    elif kind == "container":
        words = (event["name"], event["status"], event.get("health"), event["error"])
        text = " ".join(filter(None, words))
    else:
        text = event["result"] + ("" if event["error"] is None else f": {event['error']}")
        text += "" if event["hint"] is None else f"; {event['hint']}"
    return f"{event['time'][11:19]} {kind:<9} {printable(text)}\n"


_OF_ALL = ("type", "job", "number", "time", "event", "state")


def _status_lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines = [
        ("set up", {True: "yes", False: "no", None: f"unknown: {found['error']}"}[found["set_up"]]),
        (
            "target",
            f"{found['target'] or 'none'} ({found['target_name'] or 'not in the whitelist'})",
        ),
        ("running", found["running"] or "nothing of ours"),
    ]
    last = found["last_backup"]
    lines.append(("last backup", "none" if last is None else f"{last['kind']}: {last['verdict']}"))
    job = found["last_job"]
    if job is not None:
        lines.append(("last job", f"{job['job_id']} {job['result'] or job['status']}"))
    lines += [("left behind", name) for name in found["lock_files"]]
    lines += [
        ("container", " ".join(filter(None, (one["name"], one["status"], one["health"]))))
        for one in found["containers"]
    ]
    return lines
