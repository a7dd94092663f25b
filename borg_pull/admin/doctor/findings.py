"""What the doctor found, one thing each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Level = Literal["ok", "warning", "error", "unchecked"]
AREAS = (
    *("sshd", "keys", "account", "configuration"),
    *("programs", "kernel", "storage", "audit"),
)
"""In the order they are told."""


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
        """The part of the host it is about, one of `AREAS`."""
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
