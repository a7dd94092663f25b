"""(c): the socket wrap's throughput each way, beside socat's."""

from __future__ import annotations

import sys

from tests.harness import builds

from .figures import Aim, Measure, Ratio, Section
from .wrap_throughput import SOCAT, WAYS, measure

UNIT = "MiB/s"
# `measure` begins each round with another program, of three.
ROUNDS = 3
NAMES = {"socat_default": "socat", "socat_64k": "socat -b 65536"}
AIMS = {"socat_default": Aim(at_most=False, bound=2.5), "socat_64k": Aim(at_most=False, bound=0.95)}


def wraps(repeats: int, mebibytes: int) -> Section:
    """Both builds of the wrap; a repeat is the median of three rounds."""
    section = Section("c", "socket wrap: throughput each way, against socat")
    programs = {
        "frozen": [str(builds.frozen_bundle() / "borg-pull-socket-wrap")],
        "from source": [sys.executable, "-I", "-m", "borg_pull.wrap"],
    }
    for build, argv in programs.items():
        rounds = [measure(argv, ROUNDS, mebibytes) for _ in range(repeats)]
        for way in WAYS:

            def speeds(program: str, label: str, way: str = way) -> Measure:
                values = [each[f"{way}_{program}_mib_per_second"] for each in rounds]  # noqa: B023
                return Measure(label, UNIT, values)

            direction = way.replace("_", " ")
            ours = speeds("wrap", f"{build}, {direction}")
            section.measures.append(ours)
            for socat in SOCAT:
                theirs = speeds(socat, f"{NAMES[socat]}, {direction} ({build}'s rounds)")
                section.measures.append(theirs)
                section.ratios.append(
                    Ratio(f"{ours.name} / {NAMES[socat]}", ours, theirs, AIMS[socat], rate=True)
                )
    return section
