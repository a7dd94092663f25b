"""``borg-pull``: the backup server's program."""

from __future__ import annotations

import click

from borg_pull import __version__
from borg_pull.command_line import run
from borg_pull.pull.check_config import check_config, config_group
from borg_pull.pull.invocation import config_option

PROGRAM = "borg-pull"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
@config_option
def cli() -> None:
    """Pull Borg backups from the sources that pull.toml names."""


cli.add_command(check_config)
cli.add_command(config_group)


def main() -> int:
    """Run one command; the exit code is one of ``docs/protocol.md``."""
    return run(cli, PROGRAM)
