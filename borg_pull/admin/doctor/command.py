"""``borg-pull-admin doctor``: everything on this host that a pull relies on, and what is amiss."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import get_args

import click

from borg_pull.admin import host
from borg_pull.admin.doctor.findings import AREAS, Finding, Findings, Level
from borg_pull.errors import ConfigurationError, printable
from borg_pull.output import print_lines, put

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
        print_lines(_lines(report["config"], findings))
    errors, doubts = findings.count("error"), findings.count("warning", "unchecked")
    if errors:
        raise ConfigurationError(f"this host is not ready: {_count(errors, 'error')}")
    if doubts and strict:
        raise ConfigurationError(f"{_count(doubts, 'warning')} with --strict")


# For people

_STYLES = {"ok": "green", "warning": "yellow", "error": "red", "unchecked": "yellow"}
_INDENT = " " * 12


def _lines(config: str, findings: Findings) -> Iterator[tuple[tuple[str, str], ...]]:
    for area in AREAS:
        of_area = [finding for finding in findings.found if finding.area == area]
        if of_area:
            yield from _area_lines(area, of_area)
    total = {level: findings.count(level) for level in get_args(Level)}
    verdict = "not ready" if total["error"] else "sound"
    counts = [_count(total["error"], "error"), _count(total["warning"], "warning")]
    if total["unchecked"]:
        counts.append(f"{total['unchecked']} unchecked")
    style = "red" if total["error"] else "green" if total["ok"] == len(findings.found) else ""
    yield ((f"{printable(config)}: {verdict}: {total['ok']} ok, {', '.join(counts)}", style),)


def _area_lines(area: str, found: Sequence[Finding]) -> Iterator[tuple[tuple[str, str], ...]]:
    """What is amiss in one area, each followed by what to do, which several may share."""
    sound = sum(finding.level == "ok" for finding in found)
    yield ((f"{area}: {sound} of {len(found)} ok", "bold"),)
    amiss = [finding for finding in found if finding.level != "ok"]
    for position, finding in enumerate(amiss):
        needed = "" if finding.needed is None else f"; needed: {finding.needed}"
        why = "" if finding.why is None else f" ({finding.why})"
        text = f"{finding.subject}: {finding.found}{needed}{why}"
        yield (f"  {finding.level:<10}", _STYLES[finding.level]), (printable(text), "")
        following = amiss[position + 1].remedy if position + 1 < len(amiss) else None
        if finding.remedy is not None and finding.remedy != following:
            yield ((f"{_INDENT}do: {printable(finding.remedy)}", "bold"),)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
