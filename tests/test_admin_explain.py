"""``borg-pull-admin explain``: what the forced command would do, told without doing any of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.admin_runs import Answer, run, start, write
from tests.harness.site import Installations
from tests.harness.workplace import IS_ROOT, Account

CONFIG = """\
[runtime]
socket_dir = "{directory}/run"
home = "{directory}/home"
borg = "{directory}/borg"
socket_wrapper = "{directory}/wrap"

[client.luna]
paths = [
    "/",
    "{directory}/data",
]
trees = ["{directory}/tree"]
allow = ["create", "init", "list", "info", "check", "prune"]
required_flags = ["one-file-system"]
compressions = ["lz4"]
encryption = ["repokey"]
repositories = ["/srv/repo"]
excludes = ["*.tmp"]
passphrase_stdin = true
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    for name in ("data", "tree"):
        (tmp_path / name).mkdir()
    return write(tmp_path / "config.toml", CONFIG)


def explain(config: Path, request: str, client: str = "luna") -> dict[str, Any]:
    """The JSON answer, whose exit code is that of the command."""
    answer = run("explain", config, client, request, "--json")
    report: dict[str, Any] = json.loads(answer.stdout)
    assert answer.exit == report["exit"]
    assert answer.stderr == ""
    return report


def rule(report: dict[str, Any]) -> tuple[str, str, int | None]:
    """The deciding rule of an answer."""
    (found,) = report["rules"]
    return found["rule"], found["origin"], found["line"]


def test_an_allowed_request(config: Path) -> None:
    directory = config.parent
    report = explain(
        config, f"-x -C lz4 create /srv/repo a {directory}/data '{directory}/tree/a b'"
    )
    assert (report["verdict"], report["exit"], report["reason"]) == ("allowed", 0, None)
    assert rule(report) == ("allow[0]", "file", 13)
    made = report["run"]
    assert made["argv"] == [
        f"{directory}/borg",
        "create",
        "--one-file-system",
        "--compression=lz4",
        "--exclude=*.tmp",
        "--",
        "ssh://luna/srv/repo::a",
        f"{directory}/data",
        f"{directory}/tree/a b",
    ]
    assert [
        (grant["path"], grant["rule"]["rule"], grant["rule"]["line"], grant["obstacle"])
        for grant in made["paths"]
    ] == [
        (f"{directory}/data", "paths[1]", 10, None),
        (f"{directory}/tree/a b", "trees[0]", 12, "does not exist now"),
    ]
    assert made["socket"] == f"{directory}/run/luna.sock"
    assert made["state_directory"].startswith(f"{directory}/home/clients/luna/(")
    assert made["passphrase_source"] == "first line of standard input"
    assert made["limits"] == {"max_sessions": 8, "requests_per_hour": 600, "request_burst": 60}
    assert made["confinement"]["capability"] is False
    assert made["confinement"]["no_new_privs"] is True
    assert made["environment"]["BORG_RSH"] == f"{directory}/wrap"


@pytest.mark.parametrize(
    ("request_", "exit_", "decided", "words"),
    [
        (
            "create /srv/repo a /",
            77,
            ("required_flags", "file", 14),
            "--one-file-system is required",
        ),
        ("create -x /srv/repo a /etc", 77, None, "path '/etc' is not allowed"),
        ("create -x -C zstd /srv/repo a /", 77, ("compressions", "file", 15), "'zstd'"),
        ("create -x -e x /srv/repo a /", 77, ("flags", "default", 7), "--exclude is not allowed"),
        ("create -x /srv/other a /", 77, ("repositories", "file", 17), "'/srv/other'"),
        ("init /srv/repo -e none", 77, ("encryption", "file", 16), "mode none is not allowed"),
        ("prune /srv/repo -d 1", 77, ("prune", "built-in", None), "--glob-archives"),
        ("delete /srv/repo", 64, None, "unknown verb 'delete'"),
        ("create /srv/repo", 64, None, "was given 1 operands"),
        ("create /srv/repo a /a/../b -x", 64, None, "has a component .."),
        ("", 64, None, "names no verb"),
        ("create 'x", 64, None, "a ' is not closed"),
        ("list\n/srv/repo", 64, None, "control character"),
    ],
)
def test_a_refused_request(
    config: Path, request_: str, exit_: int, decided: tuple[str, str, int] | None, words: str
) -> None:
    report = explain(config, request_)
    assert (report["verdict"], report["exit"], report["run"]) == ("refused", exit_, None)
    assert words in report["reason"]
    if decided is not None:
        assert rule(report) == decided


def test_both_kinds_of_path_rule_decide_that_none_grants(config: Path) -> None:
    rules = explain(config, "create -x /srv/repo a /etc")["rules"]
    assert [(found["rule"], found["line"]) for found in rules] == [("paths", 8), ("trees", 12)]


def test_hello_needs_no_rule(config: Path) -> None:
    report = explain(config, "hello")
    assert report["verdict"] == "allowed"
    assert rule(report) == ("hello", "built-in", None)
    assert report["run"]["argv"] == [f"{config.parent}/borg", "--version"]


def test_rules_in_the_clients_own_file(config: Path) -> None:
    own = write(config.parent / "clients.d/vega.toml", '\npaths = ["/"]\n')
    report = explain(config, "create /r a /", "vega")
    assert [(found["rule"], found["origin"], found["file"]) for found in report["rules"]] == [
        ("allow[0]", "default", str(own))
    ]
    grant = report["run"]["paths"][0]["rule"]
    assert (grant["rule"], grant["file"], grant["line"]) == ("paths[0]", str(own), 2)


@pytest.mark.parametrize(
    ("client", "exit_", "reason"),
    [
        ("stella", 77, "client stella is not in the whitelist"),
        (
            "../luna",
            78,
            "'../luna' is no client name (letters, digits, '.', '_', '-', up to 64)",
        ),
    ],
)
def test_a_client_that_is_none(config: Path, client: str, exit_: int, reason: str) -> None:
    report = explain(config, "hello", client)
    assert (report["exit"], report["reason"]) == (exit_, reason)


def test_a_wrong_configuration_is_what_every_request_gets(config: Path) -> None:
    write(config, CONFIG + "paths = []\nx = 1\n")
    assert explain(config, "hello")["exit"] == 78
    write(config, CONFIG + "[client.other]\nx = 1\n")
    assert explain(config, "hello")["exit"] == 0, "another client's fault is none of luna's"
    assert explain(config, "hello", "other")["exit"] == 78
    config.unlink()
    assert explain(config, "hello")["exit"] == 78


@pytest.mark.parametrize(
    "request_",
    [
        "-x create /srv/repo --json a /",
        "-- -x create /srv/repo --help a /",
        "--one-file-system create /srv/repo a /",
        "--one-file-system -h --json=1 create",
        "--compression=lz4 -x create /srv/repo a /",
        "-",
        "-xh",
    ],
)
def test_a_request_that_begins_like_an_option(config: Path, request_: str) -> None:
    """All of it is the request, whatever of it looks like an option of this program."""
    report = explain(config, request_)
    assert report["request"] == request_
    if request_.endswith("create /srv/repo a /"):
        assert report["verdict"] == "allowed"


def test_bytes_that_are_not_text(config: Path) -> None:
    write(config, CONFIG.replace('"/",', '"/", "/caf\\u00e9",'))
    answer = start("explain", str(config), "luna", b"-x create /srv/repo a /caf\xff", "--json")
    report = json.loads(answer.stdout)
    assert report["exit"] == 64
    assert "'/caf\\udcff'" in report["reason"]
    assert answer.stdout.isascii()
    answer = start("explain", str(config), "luna", "-x create /srv/repo a /café".encode())
    assert answer.exit == 0
    assert "café" in answer.stdout


def test_a_host_that_is_locked_down_changes_no_verdict(config: Path) -> None:
    assert explain(config, "hello")["lockdown"] is None
    (config.parent / "lockdown").write_text("reason: moving house\n")
    report = explain(config, "hello")
    assert (report["verdict"], report["lockdown"]) == ("allowed", "locked down: moving house")
    assert (
        "but now     locked down: moving house"
        in run("explain", config, "luna", "hello").stdout.splitlines()
    )


def test_for_people(config: Path) -> None:
    answer = start(
        "explain", str(config), "luna", "-x create /srv/repo a /", environment={"COLUMNS": "20"}
    )
    assert answer.exit == 0
    lines = answer.stdout.splitlines()
    assert lines[0] == "verdict     allowed"
    assert lines[1] == f"rule        allow[0] at {config}:13"
    assert lines[2] == f"path        /  by paths[0] at {config}:9"
    assert (
        f"runs        {config.parent}/borg create --one-file-system '--exclude=*.tmp' -- "
        "ssh://luna/srv/repo::a /"
    ) in lines
    refused = start("explain", str(config), "luna", "list /srv/\x1b[2J")
    assert refused.exit == 64
    assert refused.stdout.splitlines()[0] == "verdict     refused, exit 64"
    assert all(line.isprintable() for line in refused.stdout.splitlines())


WATCHED = """
import os, sys
FORBIDDEN = ("os.", "socket.", "subprocess.", "shutil.", "tempfile.", "signal.", "fcntl.")
READING = ("os.listdir", "os.scandir", "os.getxattr", "os.listxattr")
def watch(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            os.write(2, f"writes {path}\\n".encode())
            os._exit(99)
    elif event.startswith(FORBIDDEN) and event not in READING:
        os.write(2, f"{event} {arguments}\\n".encode())
        os._exit(99)
from borg_pull.admin.main import main
import rich.console, rich.text
sys.addaudithook(watch)
sys.exit(main())
"""


@pytest.mark.parametrize("mode", ["--json", None])
def test_it_does_nothing(config: Path, mode: str | None) -> None:
    """No file is opened for writing, nothing made, started, connected to; the interpreter tells
    of all of these."""
    before = sorted((path, path.lstat().st_mtime_ns) for path in config.parent.rglob("*"))
    directory = config.parent
    request = f"-x create /srv/repo a {directory}/data"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            WATCHED,
            "explain",
            config,
            "luna",
            request,
            *([mode] if mode else []),
        ],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "allowed" in done.stdout
    after = sorted((path, path.lstat().st_mtime_ns) for path in config.parent.rglob("*"))
    assert after == before


# What is explained is what happens.

FAKE_BORG = """\
#!/usr/bin/python3 -IS
import json, os, sys
with open(os.environ["BORG_BASE_DIR"] + "/seen", "w") as seen:
    json.dump([sys.argv, dict(os.environ)], seen)
"""


class Source:
    """A source whose borg writes down what it was given."""

    def __init__(self, installations: Installations, account: Account) -> None:
        self.account = account
        self.directory = installations.workplace.directory("a")
        for name in ("run", "home", "data", "tree"):
            (self.directory / name).mkdir(mode=0o755)
            if IS_ROOT:
                os.chown(self.directory / name, account.uid, account.gid)
        for name, text in (("borg", FAKE_BORG), ("wrap", "#!/bin/sh\n")):
            write(self.directory / name, text).chmod(0o755)
        self.config = write(self.directory / "config.toml", CONFIG)

    def serve(self, request: str) -> Answer:
        """Let the real forced command serve ``request``."""
        with socket.socket(socket.AF_UNIX) as listening:
            path = self.directory / "run/luna.sock"
            listening.bind(str(path))
            listening.listen()
            identity: dict[str, Any] = {}
            if IS_ROOT:
                os.chown(path, self.account.uid, self.account.gid)
                identity = {
                    "user": self.account.uid,
                    "group": self.account.gid,
                    "extra_groups": [],
                }
            done = subprocess.run(
                [sys.executable, "-m", "borg_pull.source", self.config, "luna"],
                env={"SSH_ORIGINAL_COMMAND": request, "PATH": "/usr/bin:/bin"},
                input="secret\n",
                capture_output=True,
                text=True,
                check=False,
                **identity,
            )
            path.unlink(missing_ok=True)
        return Answer(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def source(installations: Installations) -> Iterator[Source]:
    account = installations.take_account()
    yield Source(installations, account)
    installations.return_account(account)


@pytest.mark.parametrize(
    "request_",
    [
        "-x -C lz4 create /srv/repo at-{hostname} {directory}/data {directory}/tree",
        "list /srv/repo",
        "prune /srv/repo -a x* -d 7",
        "init /srv/repo/ -e repokey",
    ],
)
def test_what_is_explained_is_what_runs(source: Source, request_: str) -> None:
    request_ = request_.replace("{directory}", str(source.directory))
    told = explain(source.config, request_)["run"]
    served = source.serve(request_)
    assert served.exit == 0, served.stderr
    (seen,) = (source.directory / "home/clients/luna").glob("*/seen")
    argv, environment = json.loads(seen.read_text())
    assert argv == told["argv"]
    at_run_time = told["environment_at_run_time"]
    assert environment.keys() == told["environment"].keys() | at_run_time.keys()
    assert {key: environment[key] for key in told["environment"]} == told["environment"]
    told_now = explain(source.config, request_)["run"]
    assert told_now["state_directory"] == environment["BORG_BASE_DIR"] == str(seen.parent)
    assert told_now["environment_at_run_time"]["TMPDIR"] == environment["TMPDIR"]
    assert environment["BORG_PULL_WRAP_REPORT"] == at_run_time["BORG_PULL_WRAP_REPORT"]
    locks = list((source.directory / "home/locks/luna").glob("*.lock"))
    assert [str(lock) for lock in locks] == [told["lock"]]
    records = [json.loads(line) for line in (source.directory / "home/audit.jsonl").open()]
    (begun,) = (record for record in records if record["event"] == "start")
    assert begun["confinement"] == told["confinement"]
    assert begun["archive"] == told["archive"]


@pytest.mark.parametrize(
    "request_",
    ["create -x /srv/repo a /etc", "list", "nonsense", "list /other", "create /srv/repo a /"],
)
def test_what_is_refused_is_refused_in_the_same_words(source: Source, request_: str) -> None:
    told = explain(source.config, request_)
    served = source.serve(request_)
    assert served.exit == told["exit"]
    assert told["reason"] in served.stderr


def test_credentials_are_masked(config: Path) -> None:
    """Of the request, and of what the configuration names."""
    text = config.read_text().replace(
        "passphrase_stdin = true",
        'passcommand = "/usr/bin/curl --token hunter2 https://u:hunter2@vault/x"',
    )
    write(config, text)
    report = explain(config, "-x create /srv/repo a /")
    assert report["run"]["passphrase_source"] == (
        "first line that /usr/bin/curl --token *** https://***@vault/x prints"
    )
    report = explain(config, "create ssh://u:hunter2@host/r a /")
    assert report["request"] == "create ssh://***@host/r a /"
    assert "hunter2" not in json.dumps(report)


AIO = """
role = "admin"
actions = ["nightly"]
aio_targets = ["vault"]

[features]
enable_admin = true
enable_config_write = true
enable_break_lock = true

[aio.target.vault]
remote_repo = "ssh://borg@vault.example.org:22/srv/aio"

[aio.target.disk]
host_location = "/mnt/backup"

[action.nightly]
type = "nextcloud_aio_backup"
target = "vault"
"""


def rules_of(report: dict[str, Any]) -> list[str]:
    return [f"{one['rule']} {one['origin']}" for one in report["rules"]]


def test_what_would_be_asked_of_the_companion(config: Path) -> None:
    write(config, config.read_text() + AIO)
    report = explain(config, "run nightly --detach")
    assert (report["verdict"], report["run"]) == ("allowed", None)
    assert report["ask"] == {
        "request": "run",
        "name": "nightly",
        "target": "ssh://***@vault.example.org:22/srv/aio",
        "socket": "/run/borg-pull-aio/companion.sock",
    }
    assert rules_of(report) == ["role file", "actions[0] file"]
    report = explain(config, "target set vault")
    assert rules_of(report)[1:] == [
        "features.enable_admin file",
        "features.enable_config_write file",
        "aio_targets[0] file",
    ]
    assert explain(config, "actions")["ask"] is None
    shown = run("explain", config, "luna", "run nightly").stdout
    assert "asks        run nightly\n" in shown
    assert "target      ssh://***@vault.example.org:22/srv/aio\n" in shown
    report = explain(config, "break-lock /srv/repo")
    assert report["run"]["confinement"]["capability"] is False
    assert rules_of(report) == [
        "role file",
        "features.enable_admin file",
        "features.enable_break_lock file",
    ]


@pytest.mark.parametrize(
    ("request_", "deciding"),
    [
        ("run other", "actions file"),
        ("target set disk", "aio_targets file"),
        ("change-passphrase /srv/repo", "features.enable_passphrase_change default"),
    ],
)
def test_what_would_not(config: Path, request_: str, deciding: str) -> None:
    write(config, config.read_text() + AIO)
    report = explain(config, request_)
    assert (report["verdict"], report["exit"], report["ask"]) == ("refused", 77, None)
    assert rules_of(report) == [deciding]


def test_a_role_that_is_too_little(config: Path) -> None:
    write(config, config.read_text() + AIO.replace('"admin"', '"read"'))
    for request_ in ("run nightly", "list /srv/repo", "lockdown on"):
        report = explain(config, request_)
        assert (report["exit"], rules_of(report)) == (77, ["role file"])
    assert explain(config, "jobs")["verdict"] == "allowed"
