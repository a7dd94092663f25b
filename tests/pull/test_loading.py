"""Where a configuration is looked for, what its files may be, and how several become one."""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from borg_pull.pull import config, fields
from borg_pull.pull.config import Config
from borg_pull.pull.faults import ConfigFaultsError
from tests.pull.runs import run

MAIN = """\
[source.web1]
host = "web1.example.org"
identity = "/keys/web1"
"""
JOB = """\
[repository.web1]
path = "/srv/backup/web1"

[job.web1]
source = "web1"
repository = "web1"
paths = ["/srv/www"]
"""


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def faults(path: Path) -> list[str]:
    with pytest.raises(ConfigFaultsError) as caught:
        config.load(path)
    return [fault.text() for fault in caught.value.faults]


def test_files_beside_the_main_one_belong_to_it(tmp_path: Path) -> None:
    main = write(tmp_path / "pull.toml", MAIN)
    write(tmp_path / "pull.d/web1.toml", JOB)
    write(tmp_path / "pull.d/web1.toml.bak", "not TOML")
    write(tmp_path / "pull.d/.web2.toml", "not TOML")
    loaded = config.load(main)
    assert (list(loaded.source), list(loaded.job)) == (["web1"], ["web1"])
    answer = run("check-config", "--config", main)
    assert answer.stdout == f"{main}: sound: 1 source, 1 repository, 1 job in 2 files\n"


def test_a_name_stands_in_one_file(tmp_path: Path) -> None:
    main = write(tmp_path / "pull.toml", MAIN)
    other = write(tmp_path / "pull.d/web1.toml", MAIN)
    assert faults(main) == [f"{other}: source.web1: stands in {main} too"]


def test_what_there_is_one_of_stands_in_the_main_file(tmp_path: Path) -> None:
    main = write(tmp_path / "pull.toml", "[settings]\njobs = 2\n")
    other = write(tmp_path / "pull.d/jobs.toml", "[settings]\njobs = 3\n")
    assert faults(main) == [f"{other}: settings: belongs in the main file"]


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    main = write(tmp_path / "pull.toml", MAIN.replace("host", "hots") + "prt = 22\n")
    job = write(tmp_path / "pull.d/a.toml", JOB.replace("srv/www", "srv/../www"))
    write(tmp_path / "pull.d/b.toml", "[")
    found = faults(main)
    assert found == [
        f"{main}: source.web1.host: is missing",
        f"{main}: source.web1.hots: is unknown; did you mean host?",
        f"{main}: source.web1.prt: is unknown; did you mean port?",
        f"{job}: job.web1.paths[0]: has a component ..",
        found[-1],
    ]
    assert found[-1].startswith(f"{tmp_path}/pull.d/b.toml: is not valid TOML: ")
    with pytest.raises(ConfigFaultsError) as caught:
        config.load(main)
    assert caught.value.line() == (
        f"the configuration is wrong: {found[0]} (and 4 more); see borg-pull check-config"
    )


def test_what_is_wrong_by_itself_is_known_to_what_refers_to_it(tmp_path: Path) -> None:
    main = write(tmp_path / "pull.toml", MAIN.replace("host", "hots") + JOB)
    assert [fault for fault in faults(main) if "job" in fault] == []


def test_check_config_answers_in_json(tmp_path: Path) -> None:
    main = write(tmp_path / "pull.toml", MAIN + JOB)
    answer = run("check-config", "--json", "--config", main)
    assert json.loads(answer.stdout) == {
        "type": "check-config",
        "version": 1,
        "config": str(main),
        "ok": True,
        "files": [str(main)],
        "sources": ["web1"],
        "repositories": ["web1"],
        "jobs": ["web1"],
        "errors": [],
    }
    write(main, JOB)
    answer = run("check-config", "--json", "--config", main)
    assert (answer.exit, json.loads(answer.stdout)["ok"]) == (78, False)
    assert json.loads(answer.stdout)["errors"] == [
        {
            "file": str(main),
            "key": "job.web1.source",
            "message": "there is no [source.web1]",
        }
    ]


def test_a_terminal_cannot_be_acted_on(tmp_path: Path) -> None:
    main = write(tmp_path / "pull.toml", '"\\u001b[2J" = 1\n')
    answer = run("check-config", "--config", main)
    assert answer.stdout.rstrip("\n").isprintable()


class TestWhichOne:
    """The one named, else the environment's, else the user's, else the system's."""

    @pytest.fixture(autouse=True)
    def home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.delenv(config.ENVIRONMENT, raising=False)

    def test_the_systems(self) -> None:
        assert config.default_path() == Path("/etc/borg-pull/pull.toml")

    def test_the_users(self, tmp_path: Path) -> None:
        mine = write(tmp_path / ".config/borg-pull/pull.toml", "")
        assert config.default_path() == mine
        assert run("check-config").stdout.startswith(f"{mine}: sound: ")

    def test_the_environments(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path / ".config/borg-pull/pull.toml", "")
        chosen = write(tmp_path / "chosen.toml", "")
        monkeypatch.setenv(config.ENVIRONMENT, str(chosen))
        assert run("check-config").stdout.startswith(f"{chosen}: sound: ")

    @pytest.mark.parametrize("is_before", [True, False])
    def test_the_one_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_before: bool
    ) -> None:
        monkeypatch.setenv(config.ENVIRONMENT, "/nonexistent")
        monkeypatch.chdir(tmp_path)
        write(tmp_path / "named.toml", "")
        words = ["--config", "named.toml", "check-config"]
        words = words if is_before else [words[2], *words[:2]]
        assert run(*words).stdout.startswith(f"{tmp_path}/named.toml: sound: ")


class TestWhoseFile:
    """It names programs to run: nobody else may have written it."""

    @pytest.mark.parametrize("mode", [0o660, 0o602, 0o666])
    def test_one_that_others_can_write(self, tmp_path: Path, mode: int) -> None:
        main = write(tmp_path / "pull.toml", MAIN, mode)
        assert faults(main) == [f"{main}: can be written by others; run chmod go-w on it"]
        main.chmod(mode & ~0o022)
        assert list(config.load(main).source) == ["web1"]

    def test_a_directory_that_others_can_write(self, tmp_path: Path) -> None:
        main = write(tmp_path / "pull.toml", MAIN)
        write(tmp_path / "pull.d/job.toml", JOB)
        (tmp_path / "pull.d").chmod(0o777)
        found = faults(main)
        assert found == [f"{tmp_path}/pull.d: can be written by others; run chmod go-w on it"]

    @pytest.mark.needs_root
    def test_one_of_another_user(self, tmp_path: Path) -> None:
        main = write(tmp_path / "pull.toml", MAIN)
        os.chown(main, 12345, 12345)
        assert faults(main) == [f"{main}: belongs to uid 12345, not to root or this user"]

    def test_what_is_no_file(self, tmp_path: Path) -> None:
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        assert faults(fifo) == [f"{fifo}: is not a regular file"]
        assert faults(tmp_path) == [f"{tmp_path}: is not a regular file"]

    def test_one_that_is_not_there(self, tmp_path: Path) -> None:
        [fault] = faults(tmp_path / "pull.toml")
        assert fault.startswith(f"{tmp_path}/pull.toml: does not exist; ")

    def test_one_that_is_not_text(self, tmp_path: Path) -> None:
        main = tmp_path / "pull.toml"
        main.write_bytes(b"# \n\n# \xff\n")
        main.chmod(0o600)
        assert faults(main) == [f"{main}: is not UTF-8 text (at line 3)"]

    def test_one_that_is_nested_without_end(self, tmp_path: Path) -> None:
        main = write(tmp_path / "pull.toml", "a = " + "[" * 100_000)
        [fault] = faults(main)
        assert fault.startswith(f"{main}: is ")


def loaded(tmp_path: Path, text: str) -> Config:
    return config.load(write(tmp_path / "pull.toml", text))


def test_archives_of_a_job_are_told_by_their_prefix(tmp_path: Path) -> None:
    job = 'source = "web1"\nrepository = "web1"\npaths = ["/etc"]\n'
    jobs = "[job.a]\n" + job + 'archive = "{source}+{job}-x{now}-{job}"\n'
    both = loaded(tmp_path, MAIN + JOB + jobs)
    assert both.archive_glob("web1") == "web1-*"
    assert both.archive_glob("a") == "web1+a-x*"


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("90", 90),
        (90, 90),
        ("90s", 90),
        ("1h 30min", 5400),
        ("1h30m", 5400),
        (" 2 days ", 172800),
        ("1w 1d 1sec", 691201),
        ("0", 0),
    ],
)
def test_durations(written: object, seconds: int) -> None:
    assert fields.duration(written) == timedelta(seconds=seconds)


@pytest.mark.parametrize("written", ["", "h", "1.5h", "-1h", "1h,", "1 h m", 1.5, None, []])
def test_what_is_no_duration(written: object) -> None:
    with pytest.raises(ValueError, match=r"must be a time span|has the unit"):
        fields.duration(written)


def test_a_thousand_jobs_load_in_a_blink(tmp_path: Path) -> None:
    """By counting, not by the clock: nothing is compared with everything."""
    text = "".join(
        f'[source.s{n}]\nhost = "h{n}"\nidentity = "/keys/{n}"\n'
        f'[repository.r{n}]\npath = "/srv/{n}/repository"\n'
        f'[job.j{n:04}]\nsource = "s{n}"\nrepository = "r0"\npaths = ["/etc"]\n'
        for n in range(1000)
    )
    main = write(tmp_path / "pull.toml", text)
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        loaded = config.load(main)
    finally:
        sys.setprofile(None)
    assert len(loaded.job) == 1000
    assert calls < 500_000
