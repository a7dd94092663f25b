"""``timers``: what stands in the units, and which files are touched."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from borg_pull.errors import ConfigurationError
from borg_pull.findings import Finding, Findings
from borg_pull.pull import doctor, obstacles, timers, units
from borg_pull.pull.config import load
from borg_pull.pull.invocation import Invocation
from borg_pull.pull.places import Places
from tests.harness.source import toml
from tests.pull.runs import run, start

LEAST_EXPOSURE = 2.0
JOB_FILES = ("borg-pull-job-www.timer", "borg-pull-job-www.service")
WATCH_FILES = ("borg-pull-watch.timer", "borg-pull-watch.service")


class Host:
    """A backup server's files, with two jobs of which one has a schedule."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.units = root / "units"
        self.main = root / "pull.toml"
        self.document: dict[str, Any] = {
            "settings": {"state_dir": str(root / "state")},
            "source": {"web": {"host": "web.example.org", "identity": "/etc/borg-pull/key"}},
            "repository": {"web": {"path": "/srv/backup/web"}},
            "job": {
                "www": self.job(schedule="*-*-* 02:00", randomized_delay="90s"),
                "by-hand": self.job(archive="by-hand/{utcnow}".replace("/", "_")),
            },
        }

    @staticmethod
    def job(**keys: Any) -> dict[str, Any]:
        return {"source": "web", "repository": "web", "paths": ["/srv"], **keys}

    def timers(self, *arguments: str, code: int = 0) -> str:
        """Run ``timers``; what it says."""
        self.main.write_text(toml(self.document))
        self.main.chmod(0o600)
        answer = run("timers", *arguments, "--config", self.main, "--directory", self.units)
        assert answer.exit == code, answer
        return answer.stdout + answer.stderr

    def files(self) -> dict[str, str]:
        """All files among the units."""
        return {path.name: path.read_text() for path in sorted(self.units.iterdir())}

    def values(self, name: str) -> list[str]:
        """The lines of one unit."""
        return self.files()[name].splitlines()


@pytest.fixture
def host(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setenv("HOME", str(short_path / "home"))
    return Host(short_path)


def verify(host: Host, scope: str) -> str:
    """What ``systemd-analyze verify`` has to say of the units; nothing, when all is well."""
    paths = sorted(host.units.iterdir())
    done = subprocess.run(
        ["systemd-analyze", "verify", f"--{scope}", "--man=no", *paths],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"XDG_RUNTIME_DIR": str(host.root)},
    )
    return done.stderr if done.returncode == 0 else f"{done.returncode}: {done.stderr}"


def exposures(host: Host) -> list[float]:
    """What ``systemd-analyze security`` gives each service."""
    found = []
    for path in sorted(host.units.glob("*.service")):
        done = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", "--no-pager", path],
            capture_output=True,
            text=True,
            check=True,
        )
        overall = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
        assert overall, done.stdout
        found.append(float(overall[1]))
    return found


def test_a_pair_for_each_schedule_and_one_that_watches(host: Host) -> None:
    said = host.timers("install", "--system")
    assert "systemd was not told" in said
    assert sorted(host.files()) == sorted((*JOB_FILES, *WATCH_FILES))
    timer = host.values("borg-pull-job-www.timer")
    assert timer[0].startswith(f"# Made by borg-pull timers from {host.main}")
    assert {
        "OnCalendar=*-*-* 02:00",
        "RandomizedDelaySec=90",
        "Persistent=true",
        "WantedBy=timers.target",
    } <= set(timer)
    service = host.values("borg-pull-job-www.service")
    (started,) = [line for line in service if line.startswith("ExecStart=")]
    assert started.endswith(f"--config {host.main} run www --quiet")
    assert "ReadWritePaths=-/srv/backup/web" in service
    watch = host.values("borg-pull-watch.service")
    assert any(line.endswith("status --tell") for line in watch)
    assert not any("/srv/backup" in line for line in watch), "it has no repository"
    assert "OnCalendar=*:0/15" in host.values("borg-pull-watch.timer")
    host.document["settings"]["watch"] = "hourly"
    host.timers("install", "--system")
    assert "OnCalendar=hourly" in host.values("borg-pull-watch.timer")
    assert (host.units / "borg-pull-job-www.timer").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("scope", ["system", "user"])
def test_systemd_finds_no_fault(host: Host, scope: str) -> None:
    """With every key of the configuration that the units depend on."""
    root = host.root
    for name in ("passphrase", "urls"):
        (root / name).write_text("x\n")
        (root / name).chmod(0o600)
    host.document["repository"]["web"] |= {"passphrase_file": str(root / "passphrase")}
    host.document["repository"]["other"] = {
        "path": "/home/backup/with space %h $HOME",
        "passphrase_command": ["/usr/bin/printf", "x"],
    }
    host.document["repository"]["third"] = {"path": "/srv/3", "passphrase_credential": "third"}
    host.document["notify"] = {"urls_file": str(root / "urls")}
    host.document["metrics"] = {"textfile": "/var/lib/node/borg.prom"}
    host.document["job"]["other.one"] = host.job(
        repository="other", schedule="Mon..Fri *-*-* 02:00:00 Europe/Riga"
    )
    host.document["job"]["third"] = host.job(repository="third", schedule="daily")
    host.timers("install", f"--{scope}")
    assert verify(host, scope) == ""
    if scope == "system":
        found = exposures(host)
        assert len(found) == 4
        assert max(found) <= LEAST_EXPOSURE
    lines = host.values("borg-pull-job-other.one.service")
    assert 'BindPaths="-/home/backup/with space %%h $HOME"' in lines
    assert 'RequiresMountsFor="/home/backup/with space %%h $HOME"' in lines
    assert "ReadWritePaths=-/var/lib/node" in lines
    assert "LoadCredential=third" in host.values("borg-pull-job-third.service")


def test_a_fault_is_seen(host: Host) -> None:
    """The control of the test above."""
    host.timers("install")
    path = host.units / "borg-pull-job-www.service"
    path.write_text(path.read_text().replace("ProtectSystem=strict", "ProtectSystem=strickt"))
    assert "strickt" in verify(host, "system")
    path.write_text("[Service]\nExecStart=/bin/true\n")
    assert max(exposures(host)) > LEAST_EXPOSURE


def test_again_changes_nothing(host: Host) -> None:
    host.timers("install")
    before = {path: path.stat().st_mtime_ns for path in host.units.iterdir()}
    assert "written" not in host.timers("install")
    assert {path: path.stat().st_mtime_ns for path in host.units.iterdir()} == before
    assert "out of date" not in host.timers("list")


def test_what_has_changed_and_what_is_gone(host: Host) -> None:
    host.timers("install")
    host.document["job"]["new"] = host.job(schedule="hourly", archive="new-{utcnow}")
    host.document["job"]["www"]["schedule"] = "weekly"
    assert "out of date" in host.timers("list")
    answer = json.loads(host.timers("install", "--json"))
    states = {unit["name"]: unit["state"] for unit in answer["units"]}
    assert states["borg-pull-job-www.timer"] == "different"
    assert states["borg-pull-job-www.service"] == "same"
    assert states["borg-pull-job-new.timer"] == "missing"
    assert "OnCalendar=weekly" in host.values("borg-pull-job-www.timer")
    del host.document["job"]["www"]
    assert "of a job that is gone" in host.timers("list")
    words = ("timers", "list", "--config", host.main, "--directory", host.units)
    assert start(*words).exit == 1
    host.timers("install")
    assert start(*words).exit == 0
    assert not [name for name in host.files() if "www" in name]


def test_foreign_files_stay(host: Host) -> None:
    host.units.mkdir()
    foreign = host.units / "borg-pull-job-www.service"
    foreign.write_text("[Service]\nExecStart=/bin/true\n")
    mine = host.units / "borg-pull-job-mine.service"
    mine.write_text("# my own\n")
    before = host.files()
    assert "is not ours; move it away" in host.timers("install", code=78)
    assert host.files() == before, "nothing was written"
    foreign.unlink()
    foreign.symlink_to("/dev/null")
    assert "is not ours" in host.timers("install", code=78)
    foreign.unlink()
    host.timers("install")
    host.timers("remove")
    assert list(host.files()) == [mine.name]


def test_units_of_another_configuration_stay(host: Host) -> None:
    host.timers("install")
    before = host.files()
    host.main = host.root / "another.toml"
    assert "is of another configuration" in host.timers("install", code=78)
    assert "no units of ours" in host.timers("remove")
    assert host.files() == before


def test_a_dry_run_writes_nothing(host: Host) -> None:
    said = host.timers("install", "--dry-run")
    assert "OnCalendar=*-*-* 02:00" in said
    assert not host.units.exists()
    assert not (host.root / "state").exists()
    host.timers("install")
    assert "would remove" in host.timers("remove", "--dry-run")
    assert len(host.files()) == 4


def test_without_systemd_it_says_what_to_run(
    host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(timers, "OF_SYSTEM", host.units)
    monkeypatch.setattr(timers, "_BOOTED", tmp_path / "not-there")
    host.main.write_text(toml(host.document))
    host.main.chmod(0o600)
    answer = run("timers", "install", "--system", "--config", host.main)
    assert answer.exit == 0, answer
    assert "run: systemctl daemon-reload\n" in answer.stdout
    assert (
        "run: systemctl enable --now borg-pull-job-www.timer borg-pull-watch.timer\n"
        in answer.stdout
    )


def test_units_of_an_account(host: Host) -> None:
    host.timers("install", "--user")
    lines = host.values("borg-pull-job-www.service")
    assert not [line for line in lines if line.startswith("User=")]
    uid = os.geteuid()
    assert f"BindPaths=-/run/user/{uid}/borg-pull" in lines
    assert "RestrictNamespaces=yes" in lines


@pytest.mark.needs_root
def test_services_of_another_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its home, not root's, is what ``~`` means."""
    account = pwd.getpwnam("games")
    monkeypatch.setenv("HOME", "/root")
    # pytest's own directories are closed to others.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        host = Host(Path(directory))
        host.root.chmod(0o755)
        host.document["settings"]["state_dir"] = "~/borg-pull-of-test"
        host.timers("remove")
        shutil.chown(host.main, account.pw_name)
        words = ("--config", host.main, "--directory", host.units, "--dry-run", "--run-as")
        said = run("timers", "install", *words, account.pw_name)
        assert f"User={account.pw_name}\n" in said.stdout, said
        assert f"{account.pw_dir}/borg-pull-of-test" in said.stdout
        assert (os.geteuid(), os.environ["HOME"]) == (0, "/root")
        assert run("timers", "install", *words, "nobody-here").exit == 64


@pytest.mark.needs_root
def test_the_doctor_knows_whose_services_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root asks, and they are compared with what their account is to have."""
    account = pwd.getpwnam("games")
    monkeypatch.setenv("HOME", "/root")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        host = Host(Path(directory))
        host.root.chmod(0o755)
        host.document["settings"]["state_dir"] = "~/borg-pull-of-test"
        host.timers("remove")
        host.main.chmod(0o644)
        monkeypatch.setattr(timers, "OF_SYSTEM", host.units)
        invocation, theirs = Invocation(), Invocation()
        invocation.chosen = theirs.chosen = host.main
        with timers._as_account(account.pw_name):
            wanted = units.units(timers.setting_of(theirs, "system"))
        assert wanted != units.units(timers.setting_of(invocation, "system")), "the control"
        host.units.mkdir(exist_ok=True)
        for name, text in wanted.items():
            (host.units / name).write_text(text)

        def told() -> Finding:
            findings = Findings()
            doctor._look_at_timers(findings, invocation)
            (found,) = findings.found
            return found

        assert told().level == "ok"
        (host.units / JOB_FILES[0]).unlink()
        assert told().found == f"not as configured: {JOB_FILES[0]}"
        command = f"borg-pull timers install --system --run-as games --config {host.main}"
        assert told().remedy == f"as root: {command}"
        os.seteuid(65534)
        try:
            assert told().level == "unchecked"
        finally:
            os.seteuid(0)


def test_a_user_gives_no_services_away(host: Host) -> None:
    assert "--run-as is for units of the system" in host.timers(
        "install", "--user", "--run-as", "games", code=64
    )


# What would be more than a value in a unit.


@pytest.mark.parametrize(
    "calendar", ["daily\nExecStart=/bin/sh", "daily %n", "daily \\", "daily;", "daily #x", "[Unit]"]
)
def test_a_calendar_is_nothing_else(host: Host, calendar: str) -> None:
    host.document["job"]["www"]["schedule"] = calendar
    host.timers("install", code=78)
    assert not host.units.exists()


@pytest.mark.parametrize("calendar", ["daily\nExecStart=/bin/sh", "%n", "daily\\", "a;b", "\u2028"])
def test_nor_does_the_unit_s_writer_take_one(calendar: str, host: Host) -> None:
    """Should a later grammar let it pass."""
    host.timers("install", "--dry-run")
    config = load(host.main)
    jobs = {"www": config.job["www"].model_copy(update={"schedule": calendar})}
    setting = units.Setting(
        "system",
        host.main,
        config.model_copy(update={"job": jobs}),
        Places(host.root, host.root),
        units.Owner("root", 0, Path("/root")),
    )
    with pytest.raises(ConfigurationError):
        units.units(setting)


@pytest.mark.parametrize("name", ["a\nb", "a b", "a/b", "a%n", "../x", "a;b", "-x", ""])
def test_a_job_s_name_is_nothing_else(host: Host, name: str) -> None:
    host.document["job"] = {name: host.job(schedule="daily")}
    host.main.write_text(
        toml({k: v for k, v in host.document.items() if k != "job"})
        + f"\n[job.{json.dumps(name)}]\nsource = 'web'\nrepository = 'web'\npaths = ['/srv']\n"
        "schedule = 'daily'\n"
    )
    host.main.chmod(0o600)
    answer = run("timers", "install", "--config", host.main, "--directory", host.units)
    assert answer.exit == 78, answer
    assert not host.units.exists()


@pytest.mark.parametrize("path", ["/srv/a'b", '/srv/a"b', "/srv/a\\b", "/srv/a:b"])
def test_a_path_that_no_unit_can_name(host: Host, path: str) -> None:
    host.document["repository"]["web"]["path"] = path
    said = host.timers("install", code=78)
    assert "that no unit can name" in said or "repository.web.path" in said
    assert not host.units.exists()


@pytest.mark.parametrize("name", ["a\nExecStart=x.toml", "a\u2028.toml"])
def test_a_configuration_that_no_unit_can_name(host: Host, name: str) -> None:
    host.main = host.root / name
    host.timers("install", code=78)
    assert not host.units.exists()


def test_specifiers_and_variables_in_paths_stay_what_they_are(host: Host) -> None:
    """systemd's own reader of the unit says which words it found."""
    host.main = host.root / "a %n $HOME.toml"
    host.timers("install", "--system")
    assert verify(host, "system") == ""
    service = "\n".join(host.values("borg-pull-job-www.service"))
    assert f'--config "{host.root}/a %%n $HOME.toml" run www' in service
    assert "ExecStart=:" in service


class TestAnAccount:
    """What an account that is not root is told; here of root, whom the checks ask no rights of."""

    @pytest.fixture
    def system(self, host: Host, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The directory of the system's units, which is not the host's own."""
        directory = host.root / "system"
        directory.mkdir()
        monkeypatch.setattr(timers, "OF_SYSTEM", directory)
        monkeypatch.setattr(timers, "_BOOTED", host.root / "not booted")
        host.main.write_text(toml(host.document))
        host.main.chmod(0o600)
        return directory

    def test_without_a_login(
        self, host: Host, system: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Nobody:
            pw_name, pw_uid, pw_dir = "backup", 4_000_000_000, str(host.root)

        monkeypatch.setattr(pwd, "getpwuid", lambda _uid: Nobody)
        said = run("timers", "install", "--user", "--config", host.main)
        assert said.exit == 71
        assert said.stderr == (
            "systemd keeps no /run/user/4000000000 for backup, who is not logged in (su is no "
            "login); as root: loginctl enable-linger backup, and run this again; or give backup "
            "services of the system, as root: borg-pull timers install --system --run-as backup "
            f"--config {host.main}"
        )
        assert list(system.iterdir()) == []

    @pytest.mark.usefixtures("system")
    def test_no_job_runs_twice(self, host: Host) -> None:
        host.document["settings"]["runtime_dir"] = str(host.root / "run")
        host.main.write_text(toml(host.document))
        assert run("timers", "install", "--user", "--config", host.main).exit == 0, "the control"
        assert run("timers", "remove", "--user", "--config", host.main).exit == 0
        assert run("timers", "install", "--system", "--config", host.main).exit == 0
        again = run("timers", "install", "--user", "--config", host.main)
        assert (again.exit, "every job would run twice" in again.stderr) == (78, True)
        shown = run("timers", "list", "--config", host.main).stdout
        assert "missing" not in shown, "the system's are meant"
        host.document["job"]["www"]["schedule"] = "daily"
        host.main.write_text(toml(host.document))
        shown = run("timers", "list", "--config", host.main).stdout
        assert f"run: borg-pull timers install --system --config {host.main}\n" in shown


def test_a_service_that_cannot_see_its_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert obstacles.access_fault(tmp_path / "moved") is None
    monkeypatch.setenv("INVOCATION_ID", "0" * 32)
    fault = obstacles.access_fault(tmp_path / "moved")
    assert fault is not None
    assert "before you run borg-pull timers install again" in fault.line()
