"""What is told of past runs, and how it looks on terminals: nothing is cut, and nothing left out
without being said."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from borg_pull.errors import FailedError
from borg_pull.pull.ledger import Ledger
from borg_pull.pull.log import Log, foreign, note
from tests.harness.builds import PROJECT
from tests.pull.runs import run

ERROR = (
    "source web1: ssh: connect to host web1.example.org port 22: Connection refused; nothing there "
    "was asked yet; run: borg-pull doctor web1"
)
WIDTHS = (40, 60, 80, 100, 120, 200)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration with one job, which failed after it had succeeded and been verified."""
    path = tmp_path / "pull.toml"
    path.write_text(
        f'[settings]\nstate_dir = "{tmp_path}/state"\nruntime_dir = "{tmp_path}/run"\n'
        f'[source.web1]\nhost = "web1.example.org"\nidentity = "{tmp_path}/key"\n'
        f'[repository.web1]\npath = "{tmp_path}/web1"\n'
        '[job.web1]\nsource = "web1"\nrepository = "web1"\npaths = ["/srv"]\nschedule = "daily"\n'
    )
    path.chmod(0o600)
    (tmp_path / "state").mkdir(mode=0o700)
    ledger = Ledger(tmp_path / "state/ledger.sqlite")
    good = ledger.begin("web1", "web1", "web1", kind="create", log=None)
    sizes = {"files": 570412, "original_size": 63_858_278, "new_size": 4404, "duration": 240.2}
    ledger.finish(good, "success", archive="web1-1", archive_id="a" * 64, **sizes)
    ledger.finish(ledger.begin("web1", "web1", "web1", kind="verify", log=None), "success")
    bad = ledger.begin("web1", "web1", "web1", kind="create", log=None)
    ledger.finish(bad, "failure", error=ERROR, duration=0.2)
    ledger.close()
    return path


def on_a_terminal(width: int, *words: object) -> list[str]:
    """The lines that a command prints on a terminal of that width, without colours."""
    ours, theirs = os.openpty()
    chunks: list[bytes] = []

    def read() -> None:
        try:
            while chunk := os.read(ours, 65536):
                chunks.append(chunk)
        except OSError:
            return  # nobody has the terminal open any more

    reader = threading.Thread(target=read)
    reader.start()
    subprocess.run(
        [sys.executable, "-m", "borg_pull.pull", *map(str, words)],
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        cwd=PROJECT,
        env={"PATH": os.environ["PATH"], "TERM": "xterm", "COLUMNS": str(width)},
    )
    os.close(theirs)
    reader.join()
    os.close(ours)
    return re.sub(r"\x1b\[[0-9;]*m", "", b"".join(chunks).decode()).splitlines()


def headings_of(lines: list[str]) -> list[str]:
    return re.split(r"\s{2,}", lines[0].strip())


def left_out(lines: list[str]) -> list[str]:
    """The columns that are said not to be there."""
    said = [line for line in lines if line.startswith("(not shown at this width: ")]
    return said[0].partition(": ")[2].rstrip(")").split(", ") if said else []


@pytest.mark.parametrize("width", WIDTHS)
def test_history_on_a_terminal(config: Path, width: int) -> None:
    lines = on_a_terminal(width, "--config", config, "history")
    text = "\n".join(lines)
    assert "…" not in text
    assert ERROR in " ".join(text.split()), "whole, on lines of its own if need be"
    cells = {"NEW": "4.3 KiB", "FILES": "570412", "TOOK": "240.2 s", "SIZE": "60.9 MiB"}
    gone = left_out(lines)
    assert gone == list(cells)[: len(gone)], "in this order"
    for heading, cell in cells.items():
        assert (cell in text, heading in headings_of(lines)) == (heading not in gone,) * 2
    assert {"RUN", "JOB", "KIND", "STARTED", "OUTCOME"} <= set(headings_of(lines))
    assert max(map(len, (line for line in lines if ERROR not in line))) <= max(width, 60)
    assert (width >= 100) == (gone == [])


@pytest.mark.parametrize("width", WIDTHS)
def test_status_on_a_terminal(config: Path, width: int) -> None:
    lines = on_a_terminal(width, "--config", config, "status")
    gone = left_out(lines)
    assert gone == ["TREND", "NEXT", "SIZE", "AGE"][: len(gone)], "in this order"
    assert ("60.9 MiB" in lines[1]) == ("SIZE" not in gone)
    headings = set(headings_of(lines))
    assert {"JOB", "STATE", "LAST BACKUP", "VERIFIED"} <= headings
    assert headings.isdisjoint(gone)
    assert len(re.findall(r"20..-..-..T..:..:..Z", lines[1])) == 3 - ("NEXT" in gone)
    assert any(line.startswith(f"web1: {ERROR}") for line in lines), "which the terminal wraps"
    assert (width >= 120) == (gone == [])


def test_a_pipe_has_all(config: Path) -> None:
    for command in ("history", "status"):
        done = subprocess.run(
            [sys.executable, "-m", "borg_pull.pull", "--config", config, command],
            capture_output=True,
            text=True,
            check=False,
            cwd=PROJECT,
            env={"PATH": os.environ["PATH"], "COLUMNS": "40"},
        )
        assert "60.9 MiB" in done.stdout
        assert "not shown" not in done.stdout
        assert not any(line.endswith(" ") for line in done.stdout.splitlines())


def test_a_log_for_people_and_for_programs(config: Path, tmp_path: Path) -> None:
    """Threat: a source writes lines that look like this program's own verdict."""
    log = tmp_path / "log"
    forged = "borg-pull: 2026-11-21T02:00:00Z web1: success"
    said = [
        '{"type": "archive_progress", "nfiles": 1}',
        '{"type": "log_message", "levelname": "WARNING", "message": "changed\\n' + forged + '"}',
        '{"type": "odd", "message": "' + forged + '"}',
        '{"type": "borg_pull_result", "result": "failure", "session": "s", "error": "no"}',
        f"one\u2028{forged}",
        "{not JSON",
        forged,
    ]
    with Log(log) as stream:
        for line in said:
            stream.write(foreign(line.encode()) + b"\n")
    note(log, "web1: failure: it failed")
    ledger = Ledger(tmp_path / "state/ledger.sqlite")
    run_id = ledger.begin("web1", "web1", "web1", kind="create", log=str(log))
    ledger.finish(run_id, "failure", error="it failed")
    ledger.close()
    shown = run("logs", str(run_id), "--config", config).stdout.splitlines()
    assert shown[:3] == ["source: WARNING: changed", f"source: WARNING: {forged}"] + [
        f"source: {forged}"
    ]
    assert shown[3:7] == [
        "source: failure, session s: no",
        f"one\\u2028{forged}",
        "{not JSON",
        f"? {forged}",
    ]
    (ours,) = [line for line in shown if line.startswith("borg-pull: ")]
    assert ours.endswith("Z web1: failure: it failed")
    told = json.loads(run("logs", str(run_id), "--json", "--config", config).stdout)
    assert (told["id"], told["error"], len(told["lines"])) == (run_id, "it failed", 8)
    assert told["lines"][0] == said[0]
    assert run("logs", "1", "--config", config).stderr == "run 1 has no log; it was success"


def test_a_job_that_nobody_knows_has_no_history(config: Path, tmp_path: Path) -> None:
    for options in ((), ("--json",)):
        said = run("history", "web2", *options, "--config", config)
        assert (said.exit, said.stdout) == (64, "")
        assert "there is no job web2, did you mean web1" in said.stderr.replace(";", ",")
    ledger = Ledger(tmp_path / "state/ledger.sqlite")
    ledger.finish(ledger.begin("gone", "web1", "web1", kind="create", log=None), "success")
    ledger.close()
    said = run("history", "gone", "--config", config)
    assert (said.exit, "gone" in said.stdout) == (0, True), "one of the past is known"


def test_care_without_rules_is_no_run(config: Path, tmp_path: Path) -> None:
    for command, table in (("check", "[job.web1.check]"), ("prune", "[job.web1.retention]")):
        said = run(command, "web1", "--config", config)
        assert (said.exit, f"add a table {table}" in said.stderr) == (78, True)
    ledger = Ledger(tmp_path / "state/ledger.sqlite")
    assert {one.kind for one in ledger.runs()} == {"create", "verify"}
    ledger.close()


def test_where_to_look_is_said_once(config: Path, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "state/ledger.sqlite")
    run_id = ledger.begin("web1", "web1", "web1", kind="verify", log=None)
    ledger.finish(run_id, "failure", error=f"it failed; see borg-pull logs {run_id}, and more")
    ledger.close()
    shown = run("status", "--config", config).stdout
    assert shown.count(f"see borg-pull logs {run_id}") == 1
    assert FailedError("It is full.", "do this").line() == "It is full; do this"


def test_choosing_jobs_in_two_ways(config: Path) -> None:
    said = run("run", "web1", "--all", "--config", config)
    assert (said.exit, said.stderr) == (64, "name jobs, or give --all or --due; one of them alone")
