"""The corpus of requests, read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.inputs import unescaped

CORPUS = Path(__file__).with_name("request_corpus.txt")


@dataclass(frozen=True)
class Line:
    """One request of the corpus."""

    kind: str
    """The class it is of."""
    reasons: tuple[str, ...]
    """One of these stands in what a request of the class is refused with."""
    expected: str
    """The exit code it ends with before anything runs, or ``ok``."""
    command: bytes


def _lines() -> list[Line]:
    found: list[Line] = []
    kind = ""
    reasons: tuple[str, ...] = ()
    for line in CORPUS.read_text(encoding="ascii").splitlines():
        if line.startswith("## "):
            kind, reasons = line.removeprefix("## "), ()
        elif line.startswith("#= "):
            reasons = tuple(line.removeprefix("#= ").split(" | "))
        elif line and not line.startswith("#"):
            expected, _, command = line.partition(" ")
            found.append(Line(kind, reasons, expected, unescaped(command)))
    return found


LINES = _lines()
