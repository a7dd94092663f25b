"""``borg-pull``: the backup server's program."""

from __future__ import annotations

import os
import sys
from importlib import import_module

import click

from borg_pull import __version__
from borg_pull.command_line import run
from borg_pull.pull.invocation import config_option

PROGRAM = "borg-pull"

COMMANDS = {
    "accept": "repositories:accept",
    "add-source": "add_source:add_source",
    "adopt": "repositories:adopt",
    "archives": "repositories:archives",
    "browse": "extract:browse",
    "check": "repositories:check",
    "check-config": "check_config:check_config",
    "config": "check_config:config_group",
    "doctor": "doctor:doctor",
    "extract": "extract:extract",
    "forget": "repositories:forget",
    "history": "status:history",
    "init": "repositories:init",
    "keys": "identities:keys",
    "logs": "status:logs",
    "mount": "extract:mount",
    "notify": "notify_test:notify_group",
    "prune": "repositories:prune",
    "restore": "restore:restore",
    "run": "run:run",
    "status": "status:status",
    "timers": "timers:timers",
    "trust": "host_keys:trust",
    "umount": "extract:umount",
    "verify": "verify:verify",
}
"""Each command's module in this package, and its name there."""


class _Commands(click.Group):
    """The commands, each with what it imports when it is asked for: no call needs them all."""

    def list_commands(self, _context: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, attribute = COMMANDS[name].split(":")
        command = getattr(import_module(f"borg_pull.pull.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
@config_option
def cli() -> None:
    """Pull Borg backups from the sources that pull.toml names."""


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
