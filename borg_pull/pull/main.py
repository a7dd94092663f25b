"""``borg-pull``: the backup server's program."""

from __future__ import annotations

import os
import sys

import click

from borg_pull import __version__
from borg_pull.command_line import run
from borg_pull.pull.add_source import add_source
from borg_pull.pull.check_config import check_config, config_group
from borg_pull.pull.host_keys import trust
from borg_pull.pull.identities import keys
from borg_pull.pull.invocation import config_option
from borg_pull.pull.repositories import archives, check, forget, init, prune
from borg_pull.pull.run import run as run_command
from borg_pull.pull.status import history, logs, status

PROGRAM = "borg-pull"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
@config_option
def cli() -> None:
    """Pull Borg backups from the sources that pull.toml names."""


cli.add_command(add_source)
cli.add_command(archives)
cli.add_command(check)
cli.add_command(check_config)
cli.add_command(config_group)
cli.add_command(forget)
cli.add_command(history)
cli.add_command(init)
cli.add_command(keys)
cli.add_command(logs)
cli.add_command(prune)
cli.add_command(run_command)
cli.add_command(status)
cli.add_command(trust)


def _give_back_environment() -> None:
    """Undo what the frozen program's start added to the environment.

    ssh and borg must not load the libraries that were bundled for this program.
    """
    bundled = getattr(sys, "_MEIPASS", None)
    if bundled is None:
        return
    before = os.environ.pop("LD_LIBRARY_PATH_ORIG", None)
    os.environ.pop("LD_LIBRARY_PATH", None)
    if before is not None:
        os.environ["LD_LIBRARY_PATH"] = before


def main() -> int:
    """Run one command; the exit code is one of ``docs/protocol.md``."""
    _give_back_environment()
    return run(cli, PROGRAM)
