"""Fuzz every target for a while: ``make fuzz``.

First the planted bugs must be found, which shows that the fuzzer finds any; then each target runs
in a process of its own. What made a check fail stays in ``tests/fuzz/crashes``, where the next test
run picks it up. What was learnt on the way stays in ``build/fuzz`` for the next time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from . import inputs
from .planted import PLANTED
from .reached import fewest, reached
from .target import Target
from .targets import TARGETS

PROJECT = Path(__file__).resolve().parents[2]
LEARNT = PROJECT / "build/fuzz"
PLANTED_SECONDS = 120
"""On an idle machine they are found within five."""
SAY_EVERY = 15.0  # seconds
HANGS = 60  # seconds for one input
MEMORY = 1024  # MiB
CRASHED = 77
"""What libFuzzer exits with when an input has failed."""


@dataclass(frozen=True)
class Outcome:
    """How one fuzzing process ended."""

    exit: int
    seconds: float
    counts: dict[str, int]
    said: str
    """All that the process wrote."""
    kept: tuple[Path, ...]
    """Files of inputs that failed."""

    def reason(self) -> str:
        """The part of what it wrote that tells of the failure."""
        lines = self.said.splitlines()
        start = next((i for i, line in enumerate(lines) if line.startswith(" === ")), -20)
        return "\n".join(line[:1000] for line in lines[start:][:40])


def main() -> int:
    """Fuzz; 0 when nothing failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="for all targets together")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once")
    parser.add_argument(
        "--minimise", action="store_true", help="instead, rewrite the corpus from what was learnt"
    )
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}; default: all")
    asked = parser.parse_args()
    unknown = set(asked.targets) - set(TARGETS)
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    chosen = [TARGETS[name] for name in asked.targets or TARGETS]
    if asked.minimise:
        return _minimise(chosen)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ThreadPoolExecutor(asked.jobs) as pool:
        try:
            return 0 if _all_sound(pool, chosen, asked.seconds * asked.jobs) else 1
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in [*RUNNING]:
                process.kill()
            return 130


RUNNING: set[subprocess.Popen[bytes]] = set()


def _all_sound(pool: ThreadPoolExecutor, chosen: list[Target], seconds: float) -> bool:
    """Whether all that is planted is found and nothing fails in ``seconds`` of one processor."""
    names = {target.name for target in chosen}
    planted = [what for what, one in PLANTED.items() if one.target in names]
    if not all([*pool.map(_finds, planted)]):
        return False
    share = seconds / sum(target.weight for target in chosen)
    # The longest first, so that no processor is idle at the end.
    chosen.sort(key=lambda target: -target.weight)
    return all([*pool.map(lambda target: _fuzz(target, share * target.weight), chosen)])


def _finds(what: str) -> bool:
    """Whether a planted bug is found, from honest requests alone."""
    with tempfile.TemporaryDirectory() as place:
        target = TARGETS[PLANTED[what].target]
        honest = target.honest()
        run = Run(target, Path(place), Path(place), planted=what)
        outcome = run.fuzz(PLANTED_SECONDS, honest)
    found = outcome.exit == CRASHED and bool(re.search(PLANTED[what].found_as, outcome.said))
    took = f"{outcome.seconds:.1f} s, {sum(outcome.counts.values()):,} inputs or more"
    if found:
        _say(f"planted: {what}: found ({took})")
        return True
    _say(f"planted: {what}: NOT FOUND ({took})\n{outcome.reason()}")
    return False


def _fuzz(target: Target, seconds: float) -> bool:
    """Whether nothing failed."""
    learnt = LEARNT / target.name
    learnt.mkdir(parents=True, exist_ok=True)
    kept = inputs.CRASHES / target.name
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        run = Run(target, Path(place), kept, learnt=learnt)
        outcome = run.fuzz(seconds, [*target.seeds(), *inputs.corpus(target.name)])
    if not any(kept.iterdir()):
        kept.rmdir()
    if outcome.exit != 0:
        _say(f"{target.name}: FAILED with exit code {outcome.exit}\n{outcome.reason()}")
        for path in outcome.kept:
            _say(f"{target.name}: the input is kept in {path.relative_to(PROJECT)}")
        return False
    _say(f"{target.name}: nothing failed in {outcome.seconds:.0f} s: {_shares(outcome.counts)}")
    known = [*target.seeds(), *inputs.corpus(target.name), *inputs.files(learnt)]
    for module in reached(target.reaches, target.check, known):
        _say(f"{target.name}: reached {module.text()}")
    return True


class Run:
    """One fuzzing process. ``kept`` takes inputs that fail, ``learnt`` those that reach more."""

    def __init__(
        self,
        target: Target,
        place: Path,
        kept: Path,
        *,
        learnt: Path | None = None,
        planted: str = "-",
    ) -> None:
        self._target = target
        self._planted = planted
        self._place = place
        self._kept = kept
        self._learnt = learnt or self._new("learnt")
        self._seeds = self._new("seeds")
        self._statistics = place / "statistics"

    def _new(self, name: str) -> Path:
        path = self._place / name
        path.mkdir()
        return path

    def fuzz(self, seconds: float, seeds: Iterable[bytes]) -> Outcome:
        """Let it run for ``seconds`` unless an input fails sooner, and say how it goes."""
        for number, data in enumerate(seeds):
            (self._seeds / str(number)).write_bytes(data)
        before = set(self._kept.iterdir())
        started = time.monotonic()
        log = self._place / "log"
        with log.open("wb") as said:
            process = subprocess.Popen(
                self._command(seconds),
                cwd=PROJECT,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TMPDIR": str(self._new("scratch"))},
            )
            RUNNING.add(process)
            try:
                self._follow(process, started)
            finally:
                RUNNING.discard(process)
                process.kill()
                process.wait()
        return Outcome(
            exit=process.returncode,
            seconds=time.monotonic() - started,
            counts=self._counts(),
            said=log.read_text(errors="backslashreplace"),
            kept=tuple(sorted(p for p in set(self._kept.iterdir()) - before if p.is_file())),
        )

    def _command(self, seconds: float) -> list[str]:
        target = self._target
        flags = [
            f"-max_total_time={max(1, round(seconds))}",
            f"-max_len={target.max_length}",
            f"-timeout={HANGS}",
            f"-rss_limit_mb={MEMORY}",
            f"-artifact_prefix={self._kept}/",
        ]
        if target.mutate is not None:
            # One change at a time; with the usual five in a row little is accepted.
            flags.append("-mutate_depth=1")
        if target.dictionary:
            words = "".join(f'"{_quoted(word)}"\n' for word in target.dictionary)
            (self._place / "dictionary").write_text(words)
            flags.append(f"-dict={self._place}/dictionary")
        return [
            # It must not outlive this one, however that ends.
            *("/usr/bin/setpriv", "--pdeathsig", "KILL"),
            *(sys.executable, "-m", "tests.fuzz.engine", target.name, str(self._statistics)),
            *(self._planted, *flags, str(self._learnt), str(self._seeds)),
        ]

    def _follow(self, process: subprocess.Popen[bytes], started: float) -> None:
        due = started + SAY_EVERY
        while process.poll() is None:
            time.sleep(0.05)
            if time.monotonic() >= due and self._planted == "-":
                due += SAY_EVERY
                passed = time.monotonic() - started
                _say(f"{self._target.name}: {passed:.0f} s, {_shares(self._counts())}")

    def _counts(self) -> dict[str, int]:
        try:
            counts: dict[str, int] = json.loads(self._statistics.read_text())
        except FileNotFoundError:
            return {}
        return counts


def _quoted(word: bytes) -> str:
    return "".join(f"\\x{byte:02X}" for byte in word)


def _shares(counts: dict[str, int]) -> str:
    total = sum(counts.values())
    shares = (
        f"{count / total:.0%} {what}"
        for what, count in sorted(counts.items(), key=lambda item: -item[1])
    )
    return f"{total:,} inputs ({', '.join(shares)})"


def _minimise(targets: list[Target]) -> int:
    """Keep of each target's inputs the few that together reach as much as all do."""
    for target in targets:
        known = [*inputs.corpus(target.name), *inputs.files(LEARNT / target.name)]
        kept = fewest(target.reaches, target.check, known)
        inputs.write_corpus(target.name, kept)
        _say(f"{target.name}: {len(kept)} of {len(known)} inputs, {sum(map(len, kept)):,} bytes")
    return 0


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
