"""The commands as a person or a timer calls them, from source and from the frozen bundle."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from borg_pull.pull.ledger import Kind
from tests.harness import builds
from tests.harness.peer import Repository
from tests.harness.source import toml
from tests.harness.wait import until
from tests.pull.conftest import BackupServer
from tests.pull.test_run import data_of

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def program(server: BackupServer) -> list[str]:
    """The program of the build under test."""
    if server.site.build.programs == "frozen":
        return [str(builds.frozen_bundle() / "borg-pull")]
    return [sys.executable, "-m", "borg_pull.pull"]


@pytest.fixture
def borg_pull(server: BackupServer, program: list[str]) -> Command:
    """Run a command with the server's configuration as it is now."""

    def run(*arguments: str, code: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*program, "--config", str(configuration(server)), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            **options,
        )
        assert done.returncode == code, (done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done

    return run


def configuration(server: BackupServer) -> Path:
    """The configuration as a file."""
    path = server.directory / "pull.toml"
    document = server.document | {"settings": {"state_dir": str(server.directory)}}
    path.write_text(toml(document))
    path.chmod(0o600)
    return path


def test_from_nothing_to_a_pull(server: BackupServer, borg_pull: Command) -> None:
    data = data_of(server)
    server.document["repository"]["fresh"] = {
        "path": str(server.directory / "fresh"),
        "borg": str(server.site.borg),
    }
    server.job("www", repository="fresh", paths=[data], schedule="daily")
    borg_pull("status", code=1)
    assert "has no passphrase" in borg_pull("init", "fresh", code=64).stderr
    borg_pull("init", "fresh", "--encryption", "none")
    ran = borg_pull("run", "--due")
    assert "www: success: www-" in ran.stderr
    assert borg_pull("run", "--due").stderr == "", "it is not due any more"
    state = json.loads(borg_pull("status", "--json").stdout)["jobs"][0]
    assert (state["job"], state["state"], state["last_outcome"]) == ("www", "ok", "success")
    assert state["next_due"] > state["last_success"]
    shown = borg_pull("status").stdout
    assert "www" in shown
    assert "ok" in shown
    (run,) = map(json.loads, borg_pull("history", "--json").stdout.splitlines())
    assert (run["job"], run["outcome"], run["kind"]) == ("www", "success", "create")
    assert run["archive"] in borg_pull("archives", "www").stdout
    borg_pull("logs", str(run["id"]))


@pytest.mark.builds("frozen")
def test_times_of_archives_are_utc_in_any_zone(server: BackupServer, borg_pull: Command) -> None:
    server.repository()
    server.job(paths=[data_of(server)])
    before = datetime.now(UTC).replace(microsecond=0)
    zone = os.environ | {"TZ": "Pacific/Kiritimati"}
    borg_pull("run", "job", env=zone)
    archive = json.loads(borg_pull("archives", "job", "--json", env=zone).stdout)
    assert before <= datetime.fromisoformat(archive["time"]) <= datetime.now(UTC)


@pytest.mark.builds("frozen")
def test_events_are_json_lines(server: BackupServer, borg_pull: Command) -> None:
    data = data_of(server)
    server.repository()
    server.job(paths=[data])
    events = [json.loads(line) for line in borg_pull("run", "job", "--json").stdout.splitlines()]
    kinds = [event["event"] for event in events if event["event"] != "progress"]
    assert kinds == ["run_start", "run_end"]
    assert events[-1]["outcome"] == "success"
    assert {event["job"] for event in events} == {"job"}


@pytest.mark.builds("frozen")
def test_a_failure_is_told_and_is_the_exit_code(server: BackupServer, borg_pull: Command) -> None:
    data_of(server)
    server.repository()
    server.job(paths=["/etc/shadow"])
    failed = borg_pull("run", "--all", "--quiet", code=2)
    assert "job: failure:" in failed.stderr
    assert "/etc/shadow" in failed.stderr
    shown = borg_pull("status", code=1)
    assert "see borg-pull logs 1" in shown.stdout
    assert "not allowed" in borg_pull("logs", "1").stdout


@pytest.mark.builds("frozen")
def test_wrong_words(server: BackupServer, borg_pull: Command) -> None:
    data = data_of(server)
    server.repository()
    server.job("nightly", paths=[data])
    assert "nightly" in borg_pull("run", "nighty", code=64).stderr
    assert "name jobs, or give --all or --due" in borg_pull("run", code=64).stderr
    assert "there is no run 9" in borg_pull("logs", "9", code=64).stderr


@contextmanager
def in_the_data(server: BackupServer, program: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A run of the job, under way."""
    with subprocess.Popen(
        [*program, "--config", str(configuration(server)), "run", "job", "--json"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as running:
        assert running.stdout is not None
        said = iter(running.stdout.readline, b"")
        assert any(b'"progress"' in line for line in said), "it ended before that"
        yield running


@pytest.mark.builds("frozen")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order(
    server: BackupServer, program: list[str], borg_pull: Command, number: signal.Signals
) -> None:
    data = data_of(server, 64 << 20)
    repository = server.repository()
    server.job(paths=[data])
    with in_the_data(server, program) as running:
        running.send_signal(number)
        assert running.wait(30) == 2
    assert not repository.locked()
    server.site.source.assert_nothing_left("luna")
    (run,) = server.ledger.runs()
    assert run.outcome == "failure"
    assert run.error == f"ended by {number.name}"
    borg_pull("run", "job")


HELD = """\
#!{interpreter}
# borg itself, which stops in the midst of its work, the repository locked.
import os, time
import borg.repository
from borg.archiver import main
work = borg.repository.Repository.{method}
def held(self, *arguments, **options):
    assert os.path.exists(os.path.join(self.path, "lock.exclusive"))
    open({begun!r}, "w").write(str(os.getpid()))
    time.sleep(1000)
if not os.path.exists({begun!r}):
    borg.repository.Repository.{method} = held
main()
"""


def hold_borg(server: BackupServer, method: str) -> Path:
    """Have the next borg here stop in a method of its repository; the file with its pid."""
    interpreter = server.site.borg.read_text().splitlines()[0].removeprefix("#!")
    held, begun = server.directory / "held", server.directory / "begun"
    begun.unlink(missing_ok=True)
    held.write_text(HELD.format(interpreter=interpreter, method=method, begun=str(begun)))
    held.chmod(0o755)
    server.document["repository"]["repository"]["borg"] = str(held)
    return begun


@pytest.mark.builds("frozen")
@pytest.mark.parametrize(
    ("words", "method", "kind"),
    [
        (("check", "job"), "check", "check"),
        (("prune", "job"), "delete", "prune"),
        (("prune", "job"), "compact_segments", "prune"),
        (("run", "job"), "check", "check"),
    ],
    ids=["check", "prune", "compact", "check after a run"],
)
def test_a_signal_ends_borg_here_in_order(
    server: BackupServer,
    program: list[str],
    borg_pull: Command,
    words: tuple[str, ...],
    method: str,
    kind: Kind,
) -> None:
    """As ^C does, which goes to all of the terminal's foreground; and as systemd does."""
    data = data_of(server)
    repository = server.repository()
    for name in ("job-1", "job-2"):
        repository.run("create", f"{repository.path}::{name}", data)
    server.job(paths=[data], retention={"keep_last": 1}, check={})
    borg_pull("adopt", "job", "--yes")
    begun = hold_borg(server, method)
    with subprocess.Popen(
        [*program, "--config", str(configuration(server)), *words],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as running:
        until(lambda: begun.exists() and begun.read_text(), seconds=30, what="borg's work")
        os.killpg(running.pid, signal.SIGINT if words[0] == "prune" else signal.SIGTERM)
        _, said = running.communicate(timeout=30)
    assert running.returncode == 2, said
    assert not Path("/proc", begun.read_text()).exists(), "it was waited for"
    assert not repository.locked()
    run = server.ledger.last("job", kind=kind)
    assert run is not None
    assert run.outcome == "failure"
    assert "ended by SIG" in (run.error or "")
    server.document["repository"]["repository"]["borg"] = str(server.site.borg)
    borg_pull(*words)
    assert len(repository.archives()) == (2 if words[0] == "check" else 1)


@pytest.mark.builds("frozen")
def test_kill_9_leaves_nothing_and_is_recorded(
    server: BackupServer, program: list[str], borg_pull: Command
) -> None:
    """Nothing of ours goes on without us, and the next call says what happened."""
    data = data_of(server, 64 << 20)
    repository = server.repository()
    server.job(paths=[data])
    with in_the_data(server, program) as running:
        running.kill()
    server.site.source.assert_nothing_left("luna")

    def gone() -> bool:
        listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
        return str(repository.path) not in listing.stdout

    until(gone, seconds=30, what="our ssh and borg serve to end")
    assert not repository.locked()
    again = borg_pull("run", "job")
    assert "run 1 of job was interrupted" in again.stderr
    assert [run.outcome for run in server.ledger.runs()] == ["success", "interrupted"]


@pytest.mark.builds("frozen")
def test_two_at_once(server: BackupServer, program: list[str]) -> None:
    """The second skips the job that runs, and waits with another on the same repository."""
    data = data_of(server, 16 << 20)
    server.repository()
    server.job("one", paths=[data])
    server.job("two", paths=[data])
    path = str(configuration(server))
    argv = [*program, "--config", path, "run", "--all", "--json"]
    first = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert first.stdout is not None
    assert b'"run_start"' in first.stdout.readline()
    second = subprocess.run(argv, capture_output=True, check=False, timeout=120)
    first.communicate(timeout=120)
    assert (first.returncode, second.returncode) == (0, 0), second
    outcomes = sorted((run.job, str(run.outcome)) for run in server.ledger.runs())
    assert ("one", "success") in outcomes
    assert ("two", "success") in outcomes
    assert len(outcomes) == 4
    assert "skipped" in {outcome for _, outcome in outcomes}


@pytest.mark.builds("frozen")
def test_a_hole_in_the_archives_is_accepted_by_hand_alone(
    server: BackupServer, borg_pull: Command
) -> None:
    data = data_of(server)
    repository = server.repository()
    server.job(paths=[data], retention={"keep_last": 1})
    borg_pull("run", "job")
    (name,) = repository.archives()
    repository.run("delete", f"{repository.path}::{name}")
    assert "missing from the repository" in borg_pull("prune", "job", code=2).stderr
    assert "nobody answers; give --yes if they were" in borg_pull("forget", "job", code=64).stderr
    assert name in borg_pull("forget", "job", "--yes").stdout
    borg_pull("prune", "job")
    borg_pull("run", "job")


@pytest.mark.builds("frozen")
def test_a_passphrase_that_the_source_is_given(server: BackupServer, borg_pull: Command) -> None:
    data = data_of(server)
    server.repository(encryption="repokey-blake2")
    server.site.allow(paths=[data], passphrase_stdin=True)
    server.job(paths=[data])
    borg_pull("run", "job")
    wrong = server.directory / "wrong"
    wrong.write_text("not the passphrase\n")
    wrong.chmod(0o600)
    server.document["repository"]["repository"]["passphrase_file"] = str(wrong)
    assert "assphrase" in borg_pull("run", "job", code=2).stderr
    os.chmod(wrong, 0o644)
    assert "chmod" in borg_pull("run", "job", code=2).stderr


@pytest.mark.builds("one")
def test_each_run_has_a_log_that_says_why(server: BackupServer, borg_pull: Command) -> None:
    data = data_of(server)
    repository = server.repository()
    server.job(paths=[data], check={"schedule": "yearly"})
    pins = server.directory / "known_hosts"
    honest = pins.read_text()

    def log_of_last() -> list[str]:
        newest = json.loads(borg_pull("history", "--limit", "1", "--json").stdout)
        lines = borg_pull("logs", str(newest["id"])).stdout.splitlines()
        assert re.match("borg-pull: 20..-..-..T..:..:..Z job: ", lines[-1])
        assert newest["error"] is None or newest["error"] in lines[-1]
        return lines

    pins.write_text("")
    borg_pull("run", "job", code=2)
    lines = log_of_last()
    assert "Host key verification failed." in lines, "ssh's own words, of hello too"
    assert "no host key pinned" in lines[-1]
    pins.write_text(honest)

    server.document["repository"]["repository"]["passphrase_file"] = "/nonexistent"
    borg_pull("run", "job", code=2)
    assert "/nonexistent does not exist; put it back" in log_of_last()[-1]
    server.document["repository"]["repository"]["passphrase_file"] = str(
        server.directory / "passphrase"
    )

    borg_pull("run", "job")
    lines = log_of_last()
    assert any(line.startswith("source: success, session ") for line in lines)
    assert "job: success: job-" in lines[-1]
    borg_pull("check", "job")
    assert log_of_last()[-1].endswith("job: check: success")

    damage(repository)
    said = borg_pull("check", "job", code=2).stderr
    assert "[segment " in said.splitlines()[-1], "where, not merely that there is something"
    lines = log_of_last()
    assert any(line.startswith("Finished full repository check, errors") for line in lines)
    assert "borg check found damage in" in lines[-1]
    assert "[segment " in lines[-1]


def damage(repository: Repository) -> None:
    """Change a byte in the middle of the largest segment."""
    segments = [path for path in (repository.path / "data").rglob("*") if path.is_file()]
    largest = max(segments, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 255
    largest.write_bytes(content)
