"""The corpus of requests, read."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.inputs import unescaped

CORPUS = Path(__file__).with_name("request_corpus.txt")


def _lines() -> list[tuple[str, str, bytes]]:
    """(class, verdict, command) of every line."""
    found: list[tuple[str, str, bytes]] = []
    name = ""
    for line in CORPUS.read_text(encoding="ascii").splitlines():
        if line.startswith("## "):
            name = line.removeprefix("## ")
        elif line and not line.startswith("#"):
            verdict, _, command = line.partition(" ")
            found.append((name, verdict, unescaped(command)))
    return found


LINES = _lines()
