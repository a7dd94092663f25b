"""``borg-pull-admin doctor``: everything on this host that a pull relies on, and what is amiss."""

from __future__ import annotations

import json

import click

from borg_pull.admin import host
from borg_pull.errors import ConfigurationError
from borg_pull.findings import findings_lines, many
from borg_pull.output import print_lines, put

AREAS = (
    *("sshd", "keys", "account", "configuration"),
    *("programs", "kernel", "storage", "companion", "audit"),
)
"""In the order they are told."""

ANY_ADDRESS = "192.0.2.1"
"""An address that is nobody's (RFC 5737)."""


_SCHEMA = """\
--json: an object of type "doctor", version 1, config, ok (no error), account, sshd (null, or an
object with pid, program, configuration, options, ports), and findings, a list of objects with
area, code, subject, level (ok, warning, error, unchecked), found, needed, why, remedy.
"""


@click.command(epilog=_SCHEMA, short_help="Look for what is amiss on this host.")
@click.argument("config", type=click.Path(readable=False))
@click.option(
    "--user",
    metavar="ACCOUNT",
    help="Account of the forced command.  [default: the owner of home or socket_dir]",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help="Port of the sshd that is meant.  [default: 22, or the only one]",
)
@click.option(
    "--address",
    metavar="ADDRESS",
    default=ANY_ADDRESS,
    help="Address of a backup server, for sshd's Match.  [default: one that is nobody's]",
)
@click.option("--strict", is_flag=True, help="Exit 78 for warnings and what is unchecked, too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def doctor(
    config: str, user: str | None, port: int | None, address: str, strict: bool, as_json: bool
) -> None:
    """Compare this host with what pulls under the whitelist CONFIG need.

    Looks at what the running sshd does for the account, at the keys it lets in, the account, the
    whitelist (as check does), the programs, the kernel, the disks and the audit log. Says of each
    difference what is, what is needed, why, and what to do. Run it as root: anybody else is told
    what could not be looked at. Changes nothing, and runs nothing but sshd -T and borg --version.

    Exit code 0: no error, perhaps warnings; 78: errors.
    """
    # Not for the other commands, of which sshd may run one at each login.
    from borg_pull.admin.doctor.examination import examination

    report, findings = examination(host.absolute(config), user, port, address)
    if as_json:
        put(json.dumps(report) + "\n")
    else:
        print_lines(findings_lines(report["config"], AREAS, findings))
    errors, doubts = findings.count("error"), findings.count("warning", "unchecked")
    if errors:
        raise ConfigurationError(f"this host is not ready: {many(errors, 'error')}")
    if doubts and strict:
        raise ConfigurationError(f"{many(doubts, 'warning')} with --strict")
