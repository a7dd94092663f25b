"""One fuzzing process: libFuzzer makes inputs for one target. ``python -m tests.fuzz`` starts it.

usage: python -m tests.fuzz.engine TARGET STATISTICS PLANTED LIBFUZZER-ARGUMENT...

STATISTICS is a file that says, while the process runs and when it has ended, how many inputs were
taken for what. PLANTED names a bug to plant first, or is ``-``.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

import atheris

# What is imported here is instrumented; what was imported before would not be.
with atheris.instrument_imports(include=["borg_pull"]):
    from tests.fuzz.targets import TARGETS
from tests.fuzz.planted import PLANTED
from tests.fuzz.target import Target

EVERY_SECONDS = 0.5
PLAIN = 0.15
"""Part of the mutations that know nothing of structure."""


class Counted:
    """A target's check that counts what it said."""

    def __init__(self, target: Target, statistics: Path) -> None:
        self._check = target.check
        self._statistics = statistics
        self._counts: Counter[str] = Counter()
        self._due = 0.0

    def __call__(self, data: bytes) -> None:
        """Check one input."""
        self._counts[self._check(data)] += 1
        now = time.monotonic()
        if now >= self._due:
            self._due = now + EVERY_SECONDS
            draft = self._statistics.with_suffix(".new")
            draft.write_text(json.dumps(self._counts))
            draft.replace(self._statistics)


def mutation(target: Target) -> dict[str, object]:
    """The argument of atheris for the target's own mutator."""
    mutate = target.mutate
    if mutate is None:
        return {}

    def changed(data: bytes, max_size: int, seed: int) -> bytes:
        random = Random(seed)
        made = data if random.random() < PLAIN else mutate(data, random)
        if made == data or len(made) > max_size:
            made = atheris.Mutate(data, max_size)
        return bytes(made)

    return {"custom_mutator": changed}


def main() -> None:
    """Fuzz; does not return."""
    name, statistics, planted, *arguments = sys.argv[1:]
    target = TARGETS[name]
    if planted != "-":
        PLANTED[planted].plant()
    atheris.Setup([sys.argv[0], *arguments], Counted(target, Path(statistics)), **mutation(target))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
