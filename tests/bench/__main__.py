"""``python -m tests.bench``: measure, print a table, write JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.harness.workplace import Workplace

from . import appends, backup, forced, server, status, throughput
from .figures import SCHEMA, Section

LETTERS = "abcdefghijkl"


@dataclass(frozen=True)
class Scale:
    """How much is measured: repeats of each part, and sizes."""

    starts: int
    fleet_starts: int
    memory: int
    throughput: int
    throughput_mebibytes: int
    pulls: int
    first_mebibytes: int
    second_files: int
    appends: int
    records: int
    confined_pulls: int
    runs: int
    fleet: int
    fleet_files: int
    fleet_runs: int
    held_mebibytes: int
    held_pulls: int
    statuses: int
    status_jobs: int
    status_rows: int
    ciphers: int


FULL = Scale(
    starts=250,
    fleet_starts=400,
    memory=5,
    throughput=3,
    throughput_mebibytes=512,
    pulls=3,
    first_mebibytes=1024,
    second_files=50_000,
    appends=5,
    records=8000,
    confined_pulls=3,
    runs=7,
    fleet=50,
    fleet_files=600,
    fleet_runs=2,
    held_mebibytes=256,
    held_pulls=8,
    statuses=9,
    status_jobs=1000,
    status_rows=1_000_000,
    ciphers=3,
)
QUICK = Scale(
    starts=30,
    fleet_starts=40,
    memory=2,
    throughput=1,
    throughput_mebibytes=256,
    pulls=1,
    first_mebibytes=128,
    second_files=5_000,
    appends=2,
    records=1600,
    confined_pulls=2,
    runs=2,
    fleet=12,
    fleet_files=200,
    fleet_runs=1,
    held_mebibytes=64,
    held_pulls=4,
    statuses=3,
    status_jobs=1000,
    status_rows=100_000,
    ciphers=1,
)
# For the test of this program: everything runs, nothing is worth reading.
TINY = Scale(
    starts=2,
    fleet_starts=2,
    memory=1,
    throughput=1,
    throughput_mebibytes=4,
    pulls=1,
    first_mebibytes=2,
    second_files=50,
    appends=1,
    records=64,
    confined_pulls=1,
    runs=1,
    fleet=3,
    fleet_files=5,
    fleet_runs=1,
    held_mebibytes=2,
    held_pulls=2,
    statuses=1,
    status_jobs=10,
    status_rows=100,
    ciphers=1,
)


def main(arguments: Sequence[str]) -> int:
    """Run the parts asked for; 0 when all could be measured, whether or not aims were met."""
    options = _options(arguments)
    # An end by SIGTERM must remove what was made, like any other.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sections: dict[str, Section] = {}
    failed = []
    started = time.time()
    print(_heading(options), flush=True)
    workplace = Workplace()
    try:
        for letter, part in _parts(options).items():
            if letter not in options.only:
                continue
            try:
                sections[letter] = part(workplace)
            except Exception:  # noqa: BLE001 - one part that fails must not cost the others
                traceback.print_exc()
                failed.append(letter)
            else:
                print("\n" + sections[letter].table(), flush=True)
    finally:
        workplace.close()
    if options.json is not None:
        options.json.write_text(json.dumps(_document(options, started, sections), indent=2) + "\n")
    for letter in failed:
        print(f"bench: part ({letter}) could not be measured, see above", file=sys.stderr)
    return 1 if failed else 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "--only",
        type=lambda text: text.replace(",", " ").split(),
        default=list(LETTERS),
        metavar="a,b,...",
        help="parts to run, see docs/benchmarks.md",
    )
    scales = parser.add_mutually_exclusive_group()
    scales.add_argument(
        "--quick", dest="scale", action="store_const", const=QUICK, help="smaller, in two minutes"
    )
    scales.add_argument(
        "--tiny", dest="scale", action="store_const", const=TINY, help="only to see that it runs"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument(
        "--peer",
        type=lambda text: Path(text).resolve(),
        metavar="PROGRAM",
        help="another forced command to time on (a), (b) and (d)",
    )
    parser.add_argument(
        "--borg",
        type=Path,
        default=Path("/usr/bin/borg"),
        metavar="PROGRAM",
        help="the borg of (d); Debian's when not given",
    )
    parser.set_defaults(scale=FULL)
    options = parser.parse_args(arguments)
    unknown = set(options.only) - set(LETTERS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if options.peer is not None and not os.access(options.peer, os.X_OK):
        parser.error(f"{options.peer} is not a program")
    return options


def _parts(options: argparse.Namespace) -> dict[str, Callable[[Workplace], Section]]:
    scale: Scale = options.scale
    peer: Path | None = options.peer
    return {
        "a": lambda workplace: forced.overhead(workplace, scale.starts, peer),
        "b": lambda workplace: forced.fleet(workplace, scale.fleet_starts, peer),
        "c": lambda _workplace: throughput.wraps(scale.throughput, scale.throughput_mebibytes),
        "d": lambda workplace: backup.pulls(
            workplace,
            options.borg,
            peer,
            repeats=scale.pulls,
            first_mebibytes=scale.first_mebibytes,
            second_files=scale.second_files,
        ),
        "e": lambda workplace: forced.memory(workplace, scale.memory),
        "f": lambda workplace: appends.appends(workplace, scale.appends, scale.records),
        "g": lambda workplace: backup.confinement(
            workplace, options.borg, repeats=scale.confined_pulls, files=scale.second_files
        ),
        "h": lambda workplace: server.pulls(
            workplace,
            options.borg,
            first_repeats=scale.pulls,
            first_mebibytes=scale.first_mebibytes,
            second_repeats=scale.runs,
            second_files=scale.second_files,
        ),
        "i": lambda workplace: server.packing(
            workplace,
            options.borg,
            repeats=scale.fleet_runs,
            sources=scale.fleet,
            files=scale.fleet_files,
        ),
        "j": lambda workplace: server.memory(
            workplace,
            options.borg,
            mebibytes=scale.held_mebibytes,
            pulls=scale.held_pulls,
        ),
        "k": lambda workplace: status.answers(
            workplace, repeats=scale.statuses, jobs=scale.status_jobs, rows=scale.status_rows
        ),
        "l": lambda workplace: server.ciphers(
            workplace, options.borg, repeats=scale.ciphers, mebibytes=scale.first_mebibytes
        ),
    }


def _machine(options: argparse.Namespace) -> dict[str, Any]:
    said = subprocess.run(
        [options.borg, "--version"], capture_output=True, text=True, check=False
    ).stdout
    return {
        "processors": os.cpu_count(),
        "kernel": platform.release(),
        "interpreter": subprocess.run(
            [forced.INTERPRETER, "--version"], capture_output=True, text=True, check=False
        ).stdout.strip(),
        "borg": said.strip(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "root": os.geteuid() == 0,
    }


def _heading(options: argparse.Namespace) -> str:
    machine = _machine(options)
    return (
        f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC, {machine['processors']} processors,"
        f" Linux {machine['kernel']}, {machine['interpreter']}, {machine['borg']},"
        f" load {machine['load_at_start']}"
    )


def _document(
    options: argparse.Namespace, started: float, sections: dict[str, Section]
) -> dict[str, Any]:
    scales = {id(FULL): "full", id(QUICK): "quick", id(TINY): "tiny"}
    return {
        "schema": SCHEMA,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "duration": round(time.time() - started, 1),
        "scale": scales[id(options.scale)],
        "peer": None if options.peer is None else options.peer.name,
        "machine": _machine(options),
        "sections": {letter: section.as_json() for letter, section in sections.items()},
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
