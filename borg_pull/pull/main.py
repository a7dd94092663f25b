"""``borg-pull``: the backup server's program."""

from __future__ import annotations

import click

from borg_pull import __version__
from borg_pull.command_line import run

PROGRAM = "borg-pull"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
def cli() -> None:
    """Pull Borg backups from the sources that pull.toml names."""


def main() -> int:
    """Run one command; the exit code is one of ``docs/protocol.md``."""
    return run(cli, PROGRAM)
