"""What a doctor found, one thing each, and how people are told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from borg_pull.errors import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Level = Literal["ok", "warning", "error", "unchecked"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    code: str
    """Short name of what was looked at, behind its area and a dot; stable, for programs."""
    subject: str
    """What was looked at, for people: a keyword, a path, a name."""
    level: Level
    found: str
    """How it is."""
    needed: str | None
    """How it must be; None where ``found`` says so."""
    why: str | None
    remedy: str | None
    """What to do: a command, or a command in a few words."""

    @property
    def area(self) -> str:
        """The part of the host it is about, its doctor's."""
        return self.code.partition(".")[0]


@dataclass(kw_only=True)
class Findings:
    """All of them, in the order they are told."""

    found: list[Finding] = field(default_factory=list)

    def ok(self, code: str, subject: str, found: str) -> None:
        """Note that this is as it must be."""
        self._add("ok", code, subject, found, None, None, None)

    def wrong(
        self,
        level: Literal["warning", "error"],
        code: str,
        subject: str,
        found: str,
        *,
        needed: str | None = None,
        why: str | None = None,
        remedy: str | None = None,
    ) -> None:
        """Note that this is not."""
        self._add(level, code, subject, found, needed, why, remedy)

    def unchecked(
        self, code: str, subject: str, found: str, remedy: str | None = "run this as root"
    ) -> None:
        """Note that this could not be looked at."""
        self._add("unchecked", code, subject, found, None, None, remedy)

    def count(self, *levels: Level) -> int:
        """How many have one of these levels."""
        return sum(finding.level in levels for finding in self.found)

    def _add(
        self,
        level: Level,
        code: str,
        subject: str,
        found: str,
        needed: str | None,
        why: str | None,
        remedy: str | None,
    ) -> None:
        self.found.append(
            Finding(
                code=code,
                subject=subject,
                level=level,
                found=found,
                needed=needed,
                why=why,
                remedy=remedy,
            )
        )


# For people

_STYLES = {"ok": "green", "warning": "yellow", "error": "red", "unchecked": "yellow"}
_INDENT = " " * 12


def findings_lines(
    config: str, areas: Sequence[str], findings: Findings
) -> Iterator[tuple[tuple[str, str], ...]]:
    """What is amiss, area by area, and the verdict, as `output.print_lines` takes it."""
    for area in areas:
        of_area = [finding for finding in findings.found if finding.area == area]
        if of_area:
            yield from _area_lines(area, of_area)
    total = {level: findings.count(level) for level in get_args(Level)}
    verdict = "not ready" if total["error"] else "sound"
    counts = [many(total["error"], "error"), many(total["warning"], "warning")]
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


def many(number: int, what: str) -> str:
    """``1 error``, ``2 errors``."""
    return f"{number} {what}{'' if number == 1 else 's'}"
