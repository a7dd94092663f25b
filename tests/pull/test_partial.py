"""A file in pull.d that is wrong stops its own jobs, and nothing else but deletion.

Threat: somebody mistypes one line of one source, and none of fifty is pulled any more, unnoticed;
or what is then not known of the configuration makes retention delete another job's archives.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from borg_pull.pull import config
from borg_pull.pull.config import Config
from borg_pull.pull.faults import ConfigFaultsError
from tests.pull.conftest import BackupServer
from tests.pull.runs import run, start
from tests.pull.test_commands import Command, borg_pull, program
from tests.pull.test_loading import write
from tests.pull.test_retention_safety import told
from tests.pull.test_run import data_of

__all__ = ["borg_pull", "program", "told"]


def tables(name: str, job: str = "") -> str:
    """A source, its repository and a job of it, all of one name."""
    return f"""
[source.{name}]
host = "{name}.example.org"
identity = "/keys/{name}"

[repository.{name}]
path = "/srv/backup/{name}"

[job.{name}]
source = "{name}"
repository = "{name}"
paths = ["/srv"]
{job}
"""


def loaded(main: Path) -> Config:
    with pytest.raises(ConfigFaultsError):
        config.load(main)
    return config.load(main, whole=False)


def test_the_jobs_of_sound_files_are_left(tmp_path: Path) -> None:
    main = write(tmp_path / "pull.toml", tables("main"))
    write(tmp_path / "pull.d/good.toml", tables("good"))
    write(tmp_path / "pull.d/typo.toml", tables("typo", "excludes = []"))
    broken = write(tmp_path / "pull.d/broken.toml", "x =\n")
    found = loaded(main)
    assert list(found.job) == ["main", "good"]
    assert found.left_out == ("typo",)
    assert [fault.file for fault in found.faults] == [str(broken), str(broken.parent / "typo.toml")]
    for file in broken.parent.glob("[tb]*.toml"):
        file.unlink()
    assert config.load(main, whole=False).faults == ()


def test_what_needs_a_table_of_a_broken_file_is_left_out_alone(tmp_path: Path) -> None:
    more = '[job.more]\nsource = "other"\nrepository = "main"\npaths = ["/srv"]\n'
    main = write(tmp_path / "pull.toml", tables("main") + more)
    other = write(tmp_path / "pull.d/other.toml", tables("other", "x = 1"))
    for _ in range(2):
        found = loaded(main)
        assert list(found.job) == ["main"]
        assert "more" in found.left_out
        other.write_text("[")


@pytest.mark.parametrize("name", ["web", "web-db"])
def test_of_two_that_contradict_each_other_neither_is_used(tmp_path: Path, name: str) -> None:
    """One would prune the other's archives."""
    main = write(tmp_path / "pull.toml", tables("shared"))
    job = '[job.{0}]\nsource = "shared"\nrepository = "shared"\npaths = ["/srv"]\n'
    for one in ("web", "web-db"):
        text = job.format(one) if one == name else job.format(one) + 'archive = "web-{utcnow}"\n'
        write(tmp_path / f"pull.d/{one}.toml", text)
    assert list(loaded(main).job) == ["shared"]


def test_the_main_file_must_be_sound(tmp_path: Path) -> None:
    write(tmp_path / "pull.d/good.toml", tables("good"))
    main = write(tmp_path / "pull.toml", "[settings]\nx = 1\n")
    with pytest.raises(ConfigFaultsError):
        config.load(main, whole=False)
    write(main, '[job.a]\nsource = "none"\nrepository = "good"\npaths = ["/srv"]\n')
    with pytest.raises(ConfigFaultsError):
        config.load(main, whole=False)
    write(main, tables("good"))
    assert list(loaded(main).job) == ["good"], "the other file is the one in excess"
    main.parent.joinpath("pull.d").chmod(0o777)
    with pytest.raises(ConfigFaultsError):
        config.load(main, whole=False)


def test_what_changes_the_configuration_or_deletes_wants_it_whole(short_path: Path) -> None:
    state = f'[settings]\nstate_dir = "{short_path}/state"\n'
    main = write(short_path / "pull.toml", state + tables("main"))
    write(short_path / "pull.d/broken.toml", "x =\n")
    for words in (["prune", "main"], ["forget", "main"], ["accept", "main"], ["timers", "list"]):
        assert run(*words, "--config", main).exit == 78
    history = run("history", "--config", main)
    assert history.exit == 0
    assert "is not valid TOML" in history.stderr
    asked = start("run", "nobody", "--config", main)
    assert asked.exit == 78, "it may be a job of the file that cannot be read"


@pytest.mark.builds("frozen")
def test_jobs_run_nothing_is_pruned_and_people_are_told(
    server: BackupServer, borg_pull: Command, told: list[str]
) -> None:
    repository = server.repository()
    server.job(paths=[data_of(server)], retention={"keep_last": 1})
    borg_pull("run", "job")
    broken = write(server.directory / "pull.d/db1.toml", "x =\n")
    for words in (["run", "job"], ["run", "--all", "--quiet"]):
        assert f"{broken}: is not valid TOML" in borg_pull(*words, code=78).stderr
    assert len(repository.archives()) == 3
    (message,) = told
    assert message.startswith(f"the configuration is wrong: {broken}: is not valid TOML")
    shown = borg_pull("status", "--tell", code=78).stdout
    assert "job  ok " in shown
    assert f"configuration: {broken}: is not valid TOML" in shown
    (fault,) = json.loads(borg_pull("status", "--json", code=78).stdout)["configuration_faults"]
    assert fault.startswith(str(broken))
    assert str(broken) in borg_pull("doctor", code=78).stdout
    assert told == [message], "once"

    # The control: it is mended, and all is as before.
    broken.unlink()
    borg_pull("run", "job")
    assert len(repository.archives()) == 1
    assert told[1:] == ["the configuration is sound again"]
    borg_pull("status")
