"""The benchmarks run, at sizes that say nothing of speed, and write the documented JSON."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bench.figures import SCHEMA, Aim, Limit, Measure, Ratio, Section
from tests.harness.builds import PROJECT
from tests.harness.wait import until
from tests.harness.workplace import BASE

DOCUMENT = {"schema", "started", "duration", "scale", "peer", "machine", "sections"}
SECTION = {"title", "measures", "ratios", "limits", "notes"}
MEASURE = {"name", "unit", "repeats", "minimum", "median", "maximum"}
RATIO = {"name", "ours", "reference", "of_medians", "of_best", "aim", "met"}
LIMIT = {"measure", "aim", "met"}

# A forced command of somebody else's, for --peer: it finds borg by PATH and trusts everyone.
OTHER = r"""#!/bin/sh
set -e
key() { sed -n "s/^\"$1\" = \"\(.*\)\"$/\1/p" "$config"; }
config=$1
BORGSOCKETWRAP_SOCKET_PATH=$(key socket_dir)/$2.sock
BORG_RSH=$(key socket_wrapper)
BORG_BASE_DIR=$(key home)
export BORGSOCKETWRAP_SOCKET_PATH BORG_RSH BORG_BASE_DIR
set -- $SSH_ORIGINAL_COMMAND
exec borg create "$1" "$2" "ssh://c$4::$5" "$6"
"""


def _bench(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.bench", "--tiny", "--json", tmp_path / "out.json", *options],
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def _owner(path: Path) -> int | None:
    try:
        return int(path.read_text().split()[0])
    except (FileNotFoundError, IndexError):
        return None


def _document(tmp_path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((tmp_path / "out.json").read_text())
    return document


def _check_section(section: dict[str, Any]) -> None:
    assert section.keys() == SECTION
    assert section["measures"]
    names = {measure["name"] for measure in section["measures"]}
    assert len(names) == len(section["measures"]), "two measures have one name"
    for measure in section["measures"]:
        assert measure.keys() == MEASURE
        assert measure["repeats"] >= 1
        assert 0 < measure["minimum"] <= measure["median"] <= measure["maximum"]
    for ratio in section["ratios"]:
        assert ratio.keys() == RATIO
        assert {ratio["ours"], ratio["reference"]} <= names
        assert ratio["of_medians"] > 0
        assert (ratio["aim"] is None) == (ratio["met"] is None)
    for limit in section["limits"]:
        assert limit.keys() == LIMIT
        assert limit["measure"] in names


def test_every_part_runs_and_writes_the_documented_json(tmp_path: Path) -> None:
    done = _bench(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    document = _document(tmp_path)
    assert document.keys() == DOCUMENT
    assert (document["schema"], document["scale"]) == (SCHEMA, "tiny")
    assert sorted(document["sections"]) == list("abcdefghijkl")
    for section in document["sections"].values():
        _check_section(section)
    aims = {
        letter: {ratio["aim"] for ratio in section["ratios"]} - {None}
        for letter, section in document["sections"].items()
    }
    assert aims["a"] == {"<= 2"}
    assert aims["b"] == {"<= 1.02"}
    assert aims["c"] == {">= 2.5", ">= 0.95"}
    assert aims["d"] == {"<= 1"}
    assert aims["g"] == {"<= 1.02"}
    assert aims["h"] == {"<= 1"}
    assert aims["i"] == {"<= 1.1"}
    assert aims["l"] == {">= 1"}
    assert {limit["aim"] for limit in document["sections"]["e"]["limits"]} == {"<= 12"}
    assert {limit["aim"] for limit in document["sections"]["k"]["limits"]} == {"<= 0.5"}
    for letter in "abcdefghijkl":
        assert f"({letter}) " in done.stdout


@pytest.mark.needs_root
def test_another_forced_command_is_timed_beside_ours(tmp_path: Path) -> None:
    # In the tests' own directory below /var/lib an account may start it; in pytest's it may not.
    program = Path("/usr/local/lib") / f"borg-pull-other-{tmp_path.name}-{id(tmp_path)}"
    program.write_text(OTHER)
    program.chmod(0o755)
    try:
        done = _bench(tmp_path, "--only", "a,b,d", "--peer", str(program))
    finally:
        program.unlink()
    assert done.returncode == 0, done.stdout + done.stderr
    document = _document(tmp_path)
    assert document["peer"] == program.name
    for letter in "abd":
        section = document["sections"][letter]
        _check_section(section)
        assert any(program.name in measure["name"] for measure in section["measures"])


@pytest.mark.parametrize(
    "options", [("--only", "a,x"), ("--peer", "/nonexistent"), ("--quick",), ("--what",)]
)
def test_wrong_options_are_refused_before_anything_runs(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    done = _bench(tmp_path, *options)
    assert done.returncode == 2
    assert "error:" in done.stderr
    assert not (tmp_path / "out.json").exists()


def test_a_part_that_fails_is_told_and_does_not_cost_the_others(tmp_path: Path) -> None:
    done = _bench(tmp_path, "--only", "d,f", "--borg", "/bin/false")
    assert done.returncode == 1
    assert "part (d) could not be measured" in done.stderr
    assert list(_document(tmp_path)["sections"]) == ["f"]


def test_nothing_is_left_of_a_run_that_is_ended_early() -> None:
    bench = subprocess.Popen(
        [sys.executable, "-m", "tests.bench", "--only", "d"],
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def mine() -> list[Path]:
        owners = BASE.glob("*/owner")
        return [path.parent for path in owners if _owner(path) == bench.pid]

    try:
        (place,) = until(mine, seconds=60, what="the benchmark to make its directory")
        until(lambda: any(place.rglob("mixed")), seconds=60, what="it to make its data")
        bench.terminate()
        assert bench.wait(60) == 128 + signal.SIGTERM
    finally:
        bench.kill()
        bench.wait()
    assert not place.exists()


def test_figures_compare_like_with_like() -> None:
    ours = Measure("ours", "ms", [3.0, 1.0, 2.0])
    reference = Measure("reference", "ms", [4.0, 1.0, 10.0])
    cost = Ratio("cost", ours, reference, Aim(at_most=True, bound=0.5))
    assert (cost.of_medians, cost.of_best) == (0.5, 1.0)
    assert cost.as_json()["met"] is True
    rate = Ratio("rate", ours, reference, Aim(at_most=False, bound=0.95), rate=True)
    assert (rate.of_medians, rate.of_best) == (0.5, 0.3)
    assert rate.as_json()["met"] is False
    assert Limit(ours, Aim(at_most=True, bound=2)).as_json()["met"] is True
    table = Section("x", "title", [ours, reference], [cost, rate]).table()
    assert "MISSED" in table
    assert "(x) title" in table
