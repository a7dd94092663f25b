"""``borg-pull-aio``: the companion, which drives Nextcloud AIO's own backup."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click

from borg_pull import __version__
from borg_pull.aio import condition, wording
from borg_pull.aio.cancelling import cancel
from borg_pull.aio.examination import faults_of_clients, faults_of_host
from borg_pull.aio.policy import USUAL_CONFIG, load_for
from borg_pull.aio.runs import Runs, Wanted, plan_of_action, set_target
from borg_pull.aio.service import Service
from borg_pull.audit import new_session
from borg_pull.command_line import EXIT_INTERRUPTED, run
from borg_pull.errors import (
    BORG_ERROR,
    BORG_SUCCESS,
    BORG_WARNING,
    ConfigurationError,
    NotAllowedError,
    RequestError,
    SystemRefusedError,
    printable,
)
from borg_pull.findings import many
from borg_pull.output import print_lines, print_table, put
from borg_pull.replacing import replace
from borg_pull.schema import WhitelistError
from borg_pull.values import is_session

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
    context.exit(_follow(runs, job, 1, as_json=as_json))


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
    """Show AIO's containers, its target, its last backup, and the locks that a crash has left.

    Exit code 1 when something is amiss, which standard error then says: AIO is not set up, its
    configuration cannot be read, a container of it is not up and healthy, or a lock file is left.
    While a backup runs its containers may be down.
    """
    _check_root()
    policy = load_for(context.obj, None)
    found = condition.status(policy, Runs(policy))
    if as_json:
        put(json.dumps(found) + "\n")
    else:
        _print_labelled(wording.status_lines(found))
    _exit_amiss(context, condition.amiss(policy, found))


@cli.command(short_help="Tell whether AIO is up and healthy.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, as over ssh.")
@click.pass_context
def health(context: click.Context, as_json: bool) -> None:
    """Tell which of AIO's containers are up and healthy. Exit code 1 when one is not."""
    _check_root()
    found = condition.health(load_for(context.obj, None))
    if as_json:
        put(json.dumps(found) + "\n")
    else:
        rows = [
            (one["name"], one["status"], one["health"] or "-", "yes" if one["ok"] else "no")
            for one in found["containers"]
        ]
        print_table(("CONTAINER", "STATUS", "HEALTH", "OK"), [(row, "") for row in rows])
    down = ", ".join(found["amiss"])
    _exit_amiss(context, [f"not up and healthy: {down}"] if down else [])


@cli.command(short_help="Print metrics for Prometheus.")
@click.option("--output", metavar="FILE", help="Put them there in one step, mode 0644.")
@click.pass_context
def metrics(context: click.Context, output: str | None) -> None:
    """Print metrics in Prometheus' text format, for the node exporter's textfile directory."""
    _check_root()
    policy = load_for(context.obj, None)
    text = condition.metrics(policy, Runs(policy))["text"]
    if output is None:
        put(text)
    else:
        replace(_replaceable(output), text.encode("utf-8"))


@cli.command(short_help="List jobs, the newest first.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, as over ssh.")
@click.pass_context
def jobs(context: click.Context, as_json: bool) -> None:
    """List the jobs of all clients and of this host, the newest first."""
    _check_root()
    found = Runs(load_for(context.obj, None)).jobs.all()
    if as_json:
        put(json.dumps({"type": "jobs", "version": 1, "jobs": found, "more": 0}) + "\n")
    else:
        print_table(wording.JOB_HEADINGS, [(wording.job_cells(one), "") for one in found])


@cli.command(name="job", short_help="Show one job, or follow it.")
@click.argument("name", metavar="[ID]", default="")
@click.option("--follow", is_flag=True, help="Tell its events, until it is over.")
@click.option(
    "--from", "start", type=click.IntRange(1), metavar="N", help="Tell its events from that number."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, as over ssh.")
@click.pass_context
def job_(context: click.Context, name: str, follow: bool, start: int | None, as_json: bool) -> None:
    """Show the job ID, or the newest one.

    With --follow the exit code is the job's verdict, as that of run is. An interrupt ends the
    telling, not the run.
    """
    _check_root()
    runs = Runs(load_for(context.obj, None))
    head = _head(runs, name)
    if as_json:
        put(json.dumps(head) + "\n")
    else:
        _print_labelled(wording.job_lines(head))
    if follow:
        context.exit(_follow(runs, head["job_id"], start or 1, as_json=as_json))
    if start is not None:
        for event in runs.jobs.events(head["job_id"], start, follow=None):
            put(json.dumps(event) + "\n" if as_json else wording.event(event))


@cli.command(name="cancel", short_help="End a job, where that is safe.")
@click.argument("name", metavar="ID")
@click.pass_context
def cancel_job(context: click.Context, name: str) -> None:
    """End the job ID, before AIO's script is started or while only health is waited for.

    In between nothing may end it (75).
    """
    _check_root()
    runs = Runs(load_for(context.obj, None))
    head = _head(runs, name)
    cancel(runs, head["job_id"], "the host's admin")
    put(f"{head['job_id']}  cancelling\n")


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
    """Check what the whitelist says of AIO, and whether AIO and its engine are where it says.

    What clients may name is looked at, too. The rest of the whitelist is borg-pull-admin check's;
    whether a companion serves aio.socket is borg-pull-admin doctor's.
    """
    _check_root()
    faults = []
    policy = None
    try:
        policy = load_for(context.obj, None)
    except WhitelistError as error:
        faults = [wrong.text() for wrong in error.faults]
    faults += [wrong for wrong in faults_of_clients(context.obj) if wrong not in faults]
    if policy is None or faults:
        _tell_all(faults)
        raise ConfigurationError(f"the configuration is wrong: {many(len(faults), 'error')}")
    faults = list(faults_of_host(policy))
    if faults:
        _tell_all(faults)
        raise ConfigurationError("Nextcloud AIO cannot be driven from here yet")
    put(
        f"{printable(context.obj)}: sound for the companion: "
        f"{many(len(policy.actions), 'action')}, {many(len(policy.targets), 'target')}\n"
    )


def _tell_all(faults: Iterable[str]) -> None:
    for fault in faults:
        click.echo(printable(fault), err=True)


def _replaceable(path: str) -> str:
    """The absolute path of what may be replaced. Raises RequestError for a device, a link and the
    like, and for no name at all."""
    path = os.path.abspath(path) if path else path
    if not path or (os.path.lexists(path) and (os.path.islink(path) or not os.path.isfile(path))):
        raise RequestError(f"--output {printable(path)!r} is no regular file", "name another")
    return path


def main() -> int:
    """Run one command; the exit code is one of ``docs/protocol.md``."""
    return run(cli, PROGRAM)


def _head(runs: Runs, job: str) -> dict[str, Any]:
    """The job of that id, without one the newest. Raises NotAllowedError."""
    if not job:
        newest = next(iter(runs.jobs.all()), None)
        if newest is None:
            raise NotAllowedError("there is no job yet")
        return newest
    head = runs.jobs.head(job) if is_session(job) else None
    if head is None:
        raise NotAllowedError(f"there is no job {job}", f"see {PROGRAM} jobs")
    return head


def _follow(runs: Runs, job: str, start: int, *, as_json: bool) -> int:
    """Tell the job's events until it is over; its exit code, or that of an interrupt."""
    try:
        for event in runs.jobs.events(job, start, follow=lambda: runs.is_alive(job)):
            put(json.dumps(event) + "\n" if as_json else wording.event(event))
            sys.stdout.flush()
    except KeyboardInterrupt:
        click.echo(f"{PROGRAM}: the job goes on: {PROGRAM} job {job} --follow", err=True)
        return EXIT_INTERRUPTED
    head = runs.jobs.head(job)
    if head is None or head["status"] != "finished":
        click.echo(f"{PROGRAM}: the run was killed; the service tells its end in job", err=True)
        return BORG_ERROR
    return int(head["exit"])


def _print_labelled(lines: Iterable[tuple[str, str]]) -> None:
    print_lines(((f"{label:<14}", "dim"), (printable(text), "")) for label, text in lines)


def _exit_amiss(context: click.Context, faults: Sequence[str]) -> None:
    for fault in faults:
        click.echo(f"{PROGRAM}: {printable(fault)}", err=True)
    context.exit(BORG_WARNING if faults else BORG_SUCCESS)


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
