"""``borg-pull-admin``: the admin's side of the source; none of it runs borg."""

from __future__ import annotations

import click

from borg_pull import __version__
from borg_pull.admin.audit import audit
from borg_pull.admin.authorized_keys import authorized_keys
from borg_pull.admin.check import check
from borg_pull.admin.doctor.command import doctor
from borg_pull.admin.explain import explain
from borg_pull.admin.lockdown import lockdown
from borg_pull.admin.sessions import sessions
from borg_pull.command_line import run

PROGRAM = "borg-pull-admin"


# No -h: explain takes a request that may begin with a dash, where it would be found in any word.
@click.group()
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
def cli() -> None:
    """Check and explain the whitelist of a source, look for what is amiss on the host, print the
    keys that may log in, read the audit log, and lock the host down.

    Nothing here makes a backup, and nothing but lockdown and authorized-keys --output changes
    anything. Exit codes: 0, or 64 for a wrong command line, 70 for a fault of this program, 71 when
    the system refuses, 78 when the configuration is wrong.
    """


cli.add_command(audit)
cli.add_command(authorized_keys)
cli.add_command(check)
cli.add_command(doctor)
cli.add_command(explain)
cli.add_command(lockdown)
cli.add_command(sessions)


def main() -> int:
    """Run one command; the exit code is one of ``docs/protocol.md``."""
    return run(cli, PROGRAM)
