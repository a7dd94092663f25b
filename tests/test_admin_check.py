"""``borg-pull-admin check``: all errors at once, each with its place, then what is risky."""

from __future__ import annotations

import grp
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from borg_pull import accounts
from borg_pull.admin.check import MANY_CLIENTS
from tests.admin_runs import RUNTIME, Answer, public_key, run, start, write
from tests.harness.builds import Build
from tests.harness.site import Installations
from tests.harness.workplace import Account


@pytest.fixture(autouse=True)
def no_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether borg-pull is installed on this machine must not matter."""
    monkeypatch.setattr(accounts, "USUAL_ACCOUNT", "no-such-account")


def warnings(answer: Answer) -> list[str]:
    return [line for line in answer.stdout.splitlines() if ": warning: " in line]


def codes(answer: Answer) -> dict[str, str]:
    """Key of each warning of a JSON answer, by code."""
    return {found["code"]: found["key"] for found in json.loads(answer.stdout)["warnings"]}


def test_all_errors_of_all_files_at_once(tmp_path: Path) -> None:
    config = write(
        tmp_path / "config.toml",
        """\
[runtime]
socket_dir = "run"
hom = "/x"
[client.luna]
paths = ["/a", "b", "/a", "c/"]
required_flags = ["exclude"]
pathes = []
[client.stella]
refuse_empty = 1
""",
    )
    write(tmp_path / "clients.d/vega.toml", 'paths = ["/"]\ntree = []\n')
    write(tmp_path / "clients.d/mars.toml", "paths = [\n")
    write(tmp_path / "clients.d/stella.toml", "")
    answer = run("check", config)
    assert answer.exit == 78
    clients = tmp_path / "clients.d"
    assert answer.stdout.splitlines() == [
        f"{config}:1: runtime.home: is missing",
        f"{config}:2: runtime.socket_dir: 'run' is not absolute",
        f"{config}:3: runtime.hom: is unknown; did you mean home?",
        f"{config}:5: client.luna.paths[1]: 'b' is not absolute",
        f"{config}:5: client.luna.paths[2]: '/a' stands there twice",
        f"{config}:5: client.luna.paths[3]: 'c/' is not absolute",
        f"{config}:6: client.luna.required_flags[0]: requires exclude, which flags does not allow",
        f"{config}:7: client.luna.pathes: is unknown; did you mean paths?",
        f"{config}:8: client.stella: stands in {clients}/stella.toml too; keep one of them",
        f"{config}:9: client.stella.refuse_empty: must be true or false, not a number",
        f"{clients}/mars.toml:1: is not valid TOML: Invalid value (at end of document)",
        f"{clients}/vega.toml:2: tree: is unknown; did you mean trees?",
        f"{clients}/stella.toml: warning: paths: there is neither a path nor a tree to create "
        "an archive of",
    ]
    assert answer.stderr == "the configuration is wrong: 12 errors"


def test_a_configuration_with_nothing_wrong_in_it(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    config = write(
        tmp_path / "config.toml", RUNTIME + '[client.luna]\npaths = ["{directory}/data"]\n'
    )
    answer = run("check", config, "--json")
    assert answer.exit == 0
    report = json.loads(answer.stdout)
    assert report["ok"] is True
    assert report["clients"] == ["luna"]
    assert report["files"] == [str(config)]
    assert report["errors"] == []


@pytest.mark.parametrize(
    ("most", "other", "warned"),
    [(9, True, True), (8, True, True), (10, True, False), (9, False, False)],
)
def test_a_client_that_could_take_all_places(
    tmp_path: Path, most: int, other: bool, warned: bool
) -> None:
    text = f"[limits]\nmax_sessions = {most}\n[client.luna]\nmax_sessions = 9\n"
    nova = "[client.nova]\nmax_sessions = 1\n" if other else ""
    config = write(tmp_path / "config.toml", RUNTIME + text + nova)
    told = [line for line in warnings(run("check", config)) if "all others out" in line]
    start = f"{config}:9: warning: client.luna.max_sessions: 9 is not below the {most} of all"
    assert [line.startswith(start) for line in told] == [True] * warned


def test_the_json_answer_has_its_stated_schema(tmp_path: Path) -> None:
    config = write(tmp_path / "config.toml", RUNTIME + "[client.luna]\ntrees = ['/']\npath = 1\n")
    write(tmp_path / "clients.d/stella.toml", "trees = ['/']\n")
    answer = run("check", config, "--json")
    assert answer.exit == 78
    report = json.loads(answer.stdout)
    assert list(report) == [
        "type",
        "version",
        "config",
        "ok",
        "account",
        "files",
        "clients",
        "errors",
        "warnings",
    ]
    assert (report["type"], report["version"], report["ok"]) == ("check", 1, False)
    # What is sound is looked at in spite of what is not.
    assert report["clients"] == ["stella"]
    assert report["errors"] == [
        {
            "code": "wrong",
            "file": str(config),
            "line": 8,
            "key": "client.luna.path",
            "message": "is unknown; did you mean paths?",
        }
    ]
    whole = next(found for found in report["warnings"] if found["code"] == "whole-system")
    assert whole == {
        "code": "whole-system",
        "file": f"{tmp_path}/clients.d/stella.toml",
        "line": 1,
        "key": "trees[0]",
        "message": "'/' grants every path of the system",
    }


@pytest.mark.parametrize(
    ("rules", "code", "key"),
    [
        ("trees = ['/srv', '/']", "whole-system", "trees[1]"),
        ("paths = ['/srv', '/']", "whole-system", "paths[1]"),
        ("paths = ['/srv', '/home/*']", "pattern", "paths[1]"),
        ("paths = ['/srv/?']", "pattern", "paths[0]"),
        ("trees = ['/srv/[ab]']", "pattern", "trees[0]"),
        ("paths = ['/home/']", "trailing-slash", "paths[0]"),
        ("paths = []", "no-path", "paths"),
        ("flags = ['exclude']", "exclude", "flags"),
        ("allow = ['prune']", "prune", "allow[0]"),
        ("allow = ['init']\nencryption = ['none']", "unencrypted", "encryption[0]"),
        ("allow = ['init']\nencryption = ['repokey']", "no-passphrase", "encryption"),
        ("allow_unknown_repository = true", "unknown-repository", "allow_unknown_repository"),
        ("allow_relocated_repository = true", "relocated-repository", "allow_relocated_repository"),
        ("allow = ['create', 'restore']", "restore", "allow[1]"),
        ("restore_to = '/srv/restored'", "restore", "restore_to"),
        ("passcommand = '/no/such/program x'", "passcommand", "passcommand"),
        ("paths = ['/no/such/path']", "path", "paths[0]"),
    ],
)
def test_warns_of_a_risky_rule(tmp_path: Path, rules: str, code: str, key: str) -> None:
    config = write(tmp_path / "config.toml", f"{RUNTIME}[client.luna]\n{rules}\n")
    answer = run("check", config, "--json")
    assert answer.exit == 0
    assert codes(answer).get(code) == f"client.luna.{key}"


@pytest.mark.parametrize(
    ("features", "rules", "code", "key"),
    [
        ("", "role = 'admin'", "role", "role"),
        ("enable_admin = true", "role = 'admin'", "admin", "role"),
        ("", "role = 'read'\nactions = ['a']", "role", "actions"),
        ("", "role = 'action'\naio_targets = ['t']", "role", "aio_targets"),
    ],
)
def test_warns_of_a_role(tmp_path: Path, features: str, rules: str, code: str, key: str) -> None:
    config = write(
        tmp_path / "config.toml",
        f"{RUNTIME}[features]\n{features}\n[aio.target.t]\nhost_location = '/b'\n"
        f"[action.a]\ntype = 'nextcloud_aio_backup'\n[client.luna]\n{rules}\n",
    )
    answer = run("check", config, "--json")
    assert answer.exit == 0
    found = codes(answer)
    assert found[code] == f"client.luna.{key}"
    # Without `backup` there is nothing to miss a path for.
    assert ("no-path" in found) is ("admin" in rules)


def test_a_careful_rule_is_not_warned_of(tmp_path: Path) -> None:
    """The control of the warnings above."""
    (tmp_path / "data").mkdir()
    rules = """\
[client.luna]
paths = ["{directory}/data"]
allow = ["create", "init", "list", "info", "check"]
encryption = ["repokey-blake2"]
passphrase_stdin = true
"""
    config = write(tmp_path / "config.toml", RUNTIME + rules)
    write(tmp_path / "home/x", "")
    answer = run("check", config, "--json")
    assert not [key for key in codes(answer).values() if key.startswith("client.")]


def test_a_client_of_nextcloud_aio_needs_no_path(tmp_path: Path) -> None:
    config = write(
        tmp_path / "config.toml",
        f"{RUNTIME}[aio.target.t]\nhost_location = '/b'\n[client.luna]\naio_targets = ['t']\n",
    )
    answer = run("check", config, "--json")
    assert not [key for key in codes(answer).values() if key.startswith("client.")]


def test_says_what_an_admins_key_may_ask_for(tmp_path: Path) -> None:
    rules = "[features]\nenable_admin = true\n[client.luna]\nrole = 'admin'\n"
    answer = run("check", write(tmp_path / "config.toml", RUNTIME + rules))
    assert "whoever holds the client's key may ask for lockdown " in answer.stdout


def test_warnings_of_paths_that_would_be_refused(tmp_path: Path) -> None:
    write(tmp_path / "data/file", "")
    (tmp_path / "link").symlink_to("data")
    (tmp_path / "empty").mkdir()
    config = write(
        tmp_path / "config.toml",
        RUNTIME + "[client.luna]\nrefuse_empty = true\n"
        "paths = ['{directory}/link', '{directory}/data/file',\n"
        "'{directory}/link/file', '{directory}/data', '{directory}/empty']\n"
        "trees = ['{directory}/gone', '{directory}/empty']\n",
    )
    found = [line for line in warnings(run("check", config)) if "client.luna" in line]
    to = f"is or leads through a symbolic link, to {tmp_path}/data"
    assert [line.partition(": warning: client.luna.")[2] for line in found] == [
        f"paths[0]: '{tmp_path}/link' {to}",
        f"paths[1]: '{tmp_path}/data/file' is empty, which refuse_empty refuses",
        f"paths[2]: '{tmp_path}/link/file' {to}/file",
        f"paths[4]: '{tmp_path}/empty' is empty, which refuse_empty refuses",
        f"trees[0]: '{tmp_path}/gone' does not exist now",
    ]
    assert found[2].startswith(f"{config}:9: "), "each item has its own line"


def test_one_key_stands_for_one_client(tmp_path: Path) -> None:
    config = write(
        tmp_path / "config.toml",
        f"{RUNTIME}[client.luna]\nkeys = [\n'{public_key(1)} a',\n'{public_key(1)} b',\n]\n",
    )
    write(tmp_path / "clients.d/vega.toml", f"keys = ['{public_key(2)}', '{public_key(1)}']")
    answer = run("check", config)
    assert answer.exit == 78
    errors = [line for line in answer.stdout.splitlines() if ": warning: " not in line]
    assert errors == [
        f"{config}:9: client.luna.keys[1]: is the key of luna.keys[0] too; a key stands for one "
        "client",
        f"{tmp_path}/clients.d/vega.toml:1: keys[1]: is the key of luna.keys[0] too; a key stands "
        "for one client",
    ]


def test_warns_of_many_clients_in_the_main_file(tmp_path: Path) -> None:
    def configured(count: int) -> Answer:
        clients = "".join(f"[client.c{number}]\npaths = ['/']\n" for number in range(count))
        return run("check", write(tmp_path / "config.toml", RUNTIME + clients), "--json")

    assert codes(configured(MANY_CLIENTS))["many-clients"] == "client"
    assert "many-clients" not in codes(configured(MANY_CLIENTS - 1))


def test_tells_what_in_clients_d_nobody_reads(tmp_path: Path) -> None:
    config = write(tmp_path / "config.toml", RUNTIME)
    for name in ("luna.toml~", ".luna.toml.swp", ".toml", "README"):
        write(tmp_path / "clients.d" / name, "")
    answer = run("check", config)
    assert answer.exit == 0
    ignored = [line for line in warnings(answer) if "no forced command reads it" in line]
    assert len(ignored) == 4


def test_strict_makes_warnings_fail(tmp_path: Path) -> None:
    config = write(tmp_path / "config.toml", RUNTIME + "[client.luna]\npaths = ['/no/such']\n")
    assert run("check", config).exit == 0
    assert run("check", config, "--strict").exit == 78


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ('paths = ["/srv]', "; is a closing quote missing?"),
        ("passphrase_file = '/etc/x", "; is a closing quote missing?"),
        ("refuse_empty = True", "; write true, in lower case"),
        ("refuse_empty = FALSE  # or true", "; write false, in lower case"),
        ("paths = [/srv]", "; text stands in quotes"),
        ("passphrase_file = /etc/x", "; text stands in quotes"),
        ("passphrase_stdin = yes", "; write true or false"),
        ("passphrase_stdin = Off  # 'a'", "; write true or false"),
        ('paths = ["/srv", /b]', "; text stands in quotes"),
        ("[client.vega", ""),
        ("paths =", ""),
        ("= true", ""),
        ('paths = ["a" "b"]', ""),
    ],
)
def test_faults_of_the_grammar_are_explained(tmp_path: Path, line: str, hint: str) -> None:
    config = write(tmp_path / "config.toml", f"{RUNTIME}[client.luna]\n{line}\n")
    answer = run("check", config)
    assert answer.exit == 78
    [error] = [text for text in answer.stdout.splitlines() if "not valid TOML" in text]
    assert error.startswith(f"{config}:7: is not valid TOML: ")
    assert error.rpartition(")")[2] == hint


@pytest.mark.parametrize("make", ["absent", "directory", "link", "fifo"])
def test_a_main_file_that_is_none(tmp_path: Path, make: str) -> None:
    config = tmp_path / "config.toml"
    if make == "directory":
        config.mkdir()
    elif make == "link":
        config.symlink_to(write(tmp_path / "real.toml", RUNTIME))
    elif make == "fifo":
        os.mkfifo(config)
    answer = start("check", str(config))
    assert answer.exit == 78
    assert answer.stdout.startswith(f"{config}: ")
    assert ("quickstart" in answer.stdout) == (make == "absent"), "what to do where there is none"
    assert answer.stderr == "borg-pull-admin: the configuration is wrong: 1 error\n"


def test_a_client_file_that_is_none(tmp_path: Path) -> None:
    config = write(tmp_path / "config.toml", RUNTIME)
    (tmp_path / "clients.d").mkdir()
    (tmp_path / "clients.d/luna.toml").symlink_to(config)
    answer = run("check", config)
    assert answer.exit == 78
    assert f"{tmp_path}/clients.d/luna.toml: is a symbolic link" in answer.stdout


def test_untrusted_text_cannot_reach_the_terminal(tmp_path: Path) -> None:
    escape = r"\u001b[31m\nline"
    config = write(
        tmp_path / "config.toml",
        f'{RUNTIME}[client.luna]\n"k{escape}" = 1\npaths = ["{escape}", "/\\u202e"]\n',
    )
    hostile = tmp_path / "clients.d" / os.fsdecode(b"x\x1b[2J\xff.toml")
    write(hostile, "")
    answer = start("check", str(config))
    assert answer.exit == 78
    for text in (answer.stdout, answer.stderr):
        assert all(line.isprintable() for line in text.splitlines()), text
    assert "\\x1b" in answer.stdout
    assert start("check", str(config), "--json").stdout.isascii()


def test_plain_and_uncut_in_a_pipe(tmp_path: Path) -> None:
    """A pipe has no width, whatever the environment says."""
    path = "/no/such/" + "x" * 200
    config = write(tmp_path / "config.toml", f"{RUNTIME}[client.luna]\npaths = ['{path}']\n")
    answer = start("check", str(config), environment={"COLUMNS": "40", "TERM": "xterm-256color"})
    assert any(
        line.endswith("does not exist now") and path[:150] in line for line in warnings(answer)
    )
    assert "\x1b" not in answer.stdout


# What only root can set up: an account's own view of the host.


PASSPHRASE = "client.luna.passphrase_file"
SOCKETS = "runtime.socket_dir"
HOME = "runtime.home"
WRAPPER = "runtime.socket_wrapper"
AUDIT = "audit.file"
INSTALL_RUN = "run install -d -o {a} -g {g} -m 0700 {d}/run"


def group_name(account: Account) -> str:
    return grp.getgrgid(account.gid).gr_name


class Host:
    """A source as the documents demand it, of which a test breaks one thing."""

    def __init__(self, installations: Installations, account: Account) -> None:
        self.account = account
        self.directory = installations.workplace.directory("a")
        for name in ("run", "home", "log"):
            (self.directory / name).mkdir(mode=0o700)
            os.chown(self.directory / name, account.uid, account.gid)
        (self.directory / "data").mkdir()
        self.secret = self.own("passphrase", "secret\n", 0o600)
        self.program = self.own("program", "#!/bin/sh\n", 0o755)
        os.chown(self.program, 0, 0)
        self.config = write(
            self.directory / "config.toml",
            f"""\
[runtime]
socket_dir = "{{directory}}/run"
home = "{{directory}}/home"
borg = "/bin/true"
socket_wrapper = "{self.program}"
[audit]
file = "{{directory}}/log/audit.jsonl"
[client.luna]
paths = ["{{directory}}/data"]
passphrase_file = "{self.secret}"
""",
        )
        self.config.chmod(0o640)
        os.chown(self.config, 0, account.gid)

    def own(self, name: str, content: str, mode: int) -> Path:
        """A file of the account's."""
        path = self.directory / name
        path.write_text(content)
        path.chmod(mode)
        os.chown(path, self.account.uid, self.account.gid)
        return path

    def findings(self, *arguments: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Errors and warnings of check, in a process of its own."""
        answer = start("check", str(self.config), "--json", *arguments)
        report = json.loads(answer.stdout)
        assert answer.exit == (78 if report["errors"] else 0), answer
        assert report["account"] == self.account.name
        return report["errors"], report["warnings"]


@pytest.fixture
def source(installations: Installations) -> Iterator[Host]:
    account = installations.take_account()
    yield Host(installations, account)
    installations.return_account(account)


@pytest.mark.needs_root
def test_a_sound_host_is_not_warned_of(source: Host) -> None:
    """The control of all that follows; the account is known by who owns home."""
    assert source.findings() == ([], [])


@pytest.mark.needs_root
@pytest.mark.parametrize(
    ("break_it", "code", "key", "words", "remedy"),
    [
        ("passphrase-world-readable", "passphrase-file", PASSPHRASE, "others", "chmod o-rwx {p}"),
        ("passphrase-missing", "passphrase-file", PASSPHRASE, "No such file", ""),
        ("passphrase-empty", "passphrase-file", PASSPHRASE, "no passphrase", ""),
        (
            "passphrase-foreign",
            "passphrase-file",
            PASSPHRASE,
            "denied",
            "chgrp {g} {p} and chmod 0640 {p}",
        ),
        ("socket-dir-writable", "socket-dir", SOCKETS, "written by others", "chmod go-w {d}/run"),
        ("socket-dir-missing", "socket-dir", SOCKETS, "No such file", INSTALL_RUN),
        ("socket-dir-foreign", "socket-dir", SOCKETS, "does not belong", "chown {a} {d}/run"),
        ("home-writable", "home", HOME, "written by others", "chmod go-w {d}/home"),
        ("home-read-only", "home", HOME, "not writable", "chmod 0700 {d}/home"),
        ("config-foreign", "configuration-file", "", "not to root", "chown root {c}"),
        ("config-writable", "configuration-file", "", "written by others", "chmod go-w {c}"),
        ("config-all-writable", "configuration-file", "", "written by others", "chmod go-w {c}"),
        (
            "config-roots-alone",
            "configuration-file",
            "",
            "denied",
            "chgrp {g} {c} and chmod 0640 {c}",
        ),
        (
            "config-anothers",
            "configuration-file",
            "",
            "denied",
            "chown root:{g} {c} and chmod 0640 {c}",
        ),
        ("directory-writable", "configuration-file", "", "written by others", "elsewhere"),
        (
            "directory-roots-alone",
            "configuration-file",
            "",
            "denied",
            "chgrp {g} {d} and chmod 0750 {d}",
        ),
        ("wrapper-foreign", "socket-wrapper", WRAPPER, "not to root", "chown root {w}"),
        (
            "wrapper-missing",
            "socket-wrapper",
            WRAPPER,
            "No such file",
            "or name another in socket_wrapper",
        ),
        ("wrapper-not-executable", "socket-wrapper", WRAPPER, "not an executable", ""),
        (
            "borg-missing",
            "borg",
            "runtime.borg",
            "No such file",
            "install it, or name another in borg",
        ),
        ("audit-directory-read-only", "audit-file", AUDIT, "not writable", "chown {a} {d}/log"),
        (
            "audit-file-foreign",
            "audit-file",
            AUDIT,
            "not writable",
            "chown {a} {d}/log/audit.jsonl",
        ),
        ("audit-file-writable", "audit-file", AUDIT, "by others", "chmod go-w {d}/log/audit.jsonl"),
        ("audit-file-link", "audit-file", AUDIT, "not a regular file", "move it away"),
        ("audit-directory-missing", "audit-file", AUDIT, "not a directory", ""),
    ],
)
def test_what_the_forced_command_will_refuse_is_an_error(
    source: Host, break_it: str, code: str, key: str, words: str, remedy: str
) -> None:
    """For root, who sees what the account sees; each line names the account and the remedy."""
    directory = source.directory
    log = directory / "log"

    def log_writable_by_all() -> None:
        source.own("log/audit.jsonl", "", 0o666)

    def borg_missing() -> None:
        source.config.write_text(source.config.read_text().replace("/bin/true", "/no/borg"))

    def config_anothers() -> None:
        os.chown(source.config, 65534, 65534)
        source.config.chmod(0o600)

    breaks = {
        "passphrase-world-readable": lambda: source.secret.chmod(0o644),
        "passphrase-missing": source.secret.unlink,
        "passphrase-empty": lambda: source.secret.write_text("\nsecret"),
        "passphrase-foreign": lambda: os.chown(source.secret, 0, 0),
        "socket-dir-writable": lambda: (directory / "run").chmod(0o770),
        "socket-dir-missing": (directory / "run").rmdir,
        "socket-dir-foreign": lambda: os.chown(directory / "run", 0, 0),
        "home-writable": lambda: (directory / "home").chmod(0o777),
        "home-read-only": lambda: (directory / "home").chmod(0o500),
        "config-foreign": lambda: os.chown(source.config, source.account.uid, 0),
        "config-writable": lambda: source.config.chmod(0o660),
        "config-all-writable": lambda: source.config.chmod(0o666),
        "config-roots-alone": lambda: source.config.chmod(0o600),
        "config-anothers": config_anothers,
        "directory-writable": lambda: directory.chmod(0o1777),
        "directory-roots-alone": lambda: directory.chmod(0o700),
        "wrapper-foreign": lambda: os.chown(source.program, source.account.uid, 0),
        "wrapper-missing": source.program.unlink,
        "wrapper-not-executable": lambda: source.program.chmod(0o644),
        "borg-missing": borg_missing,
        "audit-directory-read-only": lambda: log.chmod(0o500),
        "audit-file-foreign": lambda: (log / "audit.jsonl").touch(0o644),
        "audit-file-writable": log_writable_by_all,
        "audit-file-link": lambda: (log / "audit.jsonl").symlink_to("x"),
        "audit-directory-missing": log.rmdir,
    }
    breaks[break_it]()
    errors, _warnings = source.findings("--user", source.account.name)
    assert (code, key) in [(entry["code"], entry["key"]) for entry in errors]
    message = next(entry["message"] for entry in errors if entry["code"] == code)
    assert words in message
    assert source.account.name in message or code == "audit-file"
    places = {"a": source.account.name, "g": group_name(source.account), "d": directory}
    files = {"p": source.secret, "c": source.config, "w": source.program}
    assert remedy.format(**places, **files) in message
    assert (code == "configuration-file") == ("config.toml" in str(errors[0]["file"]) and not key)


@pytest.mark.needs_root
def test_where_files_are_restored_to(source: Host) -> None:
    staging = source.directory / "restored"
    text = source.config.read_text()
    source.config.write_text(f'{text}allow = ["create", "restore"]\nrestore_to = "{staging}"\n')
    told = "client.luna.restore_to"
    ([error], warnings) = source.findings()
    assert (error["code"], error["key"], warnings) == ("restore", told, [])
    name, group = source.account.name, group_name(source.account)
    assert f"run install -d -o {name} -g {group} -m 0700 {staging}" in error["message"]
    staging.mkdir(mode=0o700)
    ([error], _) = source.findings()
    assert f"cannot be used: Permission denied; run install -d -o {name}" in error["message"]
    staging.chmod(0o755)
    ([error], _) = source.findings()
    assert "belongs to uid 0, not to this account; run install -d" in error["message"]
    staging.chmod(0o700)
    os.chown(staging, source.account.uid, source.account.gid)
    assert source.findings() == ([], []), "the control"
    staging.chmod(0o770)
    ([error], _) = source.findings()
    assert "can be written by others" in error["message"]


@pytest.mark.needs_root
@pytest.mark.parametrize("command", ["check", "explain", "authorized-keys"])
def test_a_whitelist_that_this_user_cannot_read(source: Host, command: str) -> None:
    """A fault of the configuration, not of the command line."""
    source.config.chmod(0o600)
    words = ["luna", "hello"] if command == "explain" else []
    answer = start(command, str(source.config), *words, uid=source.account.uid)
    assert answer.exit == 78, answer
    assert "cannot be used: Permission denied" in answer.stdout + answer.stderr
    source.config.chmod(0o640)
    assert "Permission" not in start(command, str(source.config), *words, uid=0).stderr


@pytest.mark.needs_root
def test_a_socket_directory_others_can_read_is_only_a_risk(source: Host) -> None:
    (source.directory / "run").chmod(0o755)
    errors, [warning] = source.findings()
    assert (errors, warning["code"]) == ([], "socket-dir")
    assert "open to others" in warning["message"]


@pytest.mark.needs_root
@pytest.mark.parametrize("directory", ["home", "run"])
@pytest.mark.parametrize("owner", [0, 65534])
def test_a_directory_of_the_wrong_owner_is_found_without_naming_the_account(
    source: Host, monkeypatch: pytest.MonkeyPatch, directory: str, owner: int
) -> None:
    monkeypatch.setattr(accounts, "USUAL_ACCOUNT", source.account.name)
    os.chown(source.directory / directory, owner, owner)
    answer = run("check", source.config)
    assert answer.exit == 78
    assert f"; run chown {source.account.name} {source.directory}/{directory} " in answer.stdout


@pytest.mark.needs_root
def test_a_missing_home_is_an_error_where_borg_pull_is_installed(
    source: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "USUAL_ACCOUNT", source.account.name)
    for name in ("home", "run"):
        (source.directory / name).rmdir()
    answer = run("check", source.config)
    assert answer.exit == 78
    assert f"run install -d -o {source.account.name} -g " in answer.stdout


@pytest.mark.needs_root
def test_the_account_itself_sees_errors_too(source: Host) -> None:
    source.config.chmod(0o644)
    assert start("check", str(source.config), uid=source.account.uid).exit == 0
    source.program.unlink()
    answer = start("check", str(source.config), uid=source.account.uid)
    assert answer.exit == 78
    assert "runtime.socket_wrapper: " in answer.stdout


@pytest.mark.needs_root
def test_without_the_capability_the_account_may_own_its_whitelist(source: Host) -> None:
    """What would be refused with the capability is a warning where the program has none."""
    os.chown(source.config, source.account.uid, source.account.gid)
    answer = start("check", str(source.config), "--json", uid=source.account.uid)
    assert answer.exit == 0
    [warning] = json.loads(answer.stdout)["warnings"]
    assert warning["code"] == "configuration-file"
    assert "once it holds its capability" in warning["message"]


@pytest.mark.needs_root
@pytest.mark.parametrize("mode", [0o640, 0o600, 0o666])
def test_check_and_the_forced_command_agree(
    installations: Installations, source: Host, mode: int
) -> None:
    programs = installations.programs(Build("frozen", "1.2"), capable=True)
    text = source.config.read_text().replace(str(source.program), str(programs.wrap))
    source.config.write_text(text)
    source.config.chmod(mode)
    uid = ("setpriv", f"--reuid={source.account.uid}", f"--regid={source.account.gid}")
    group = f"--groups={installations.workplace.group},{source.account.gid}"
    served = subprocess.run(
        [*uid, group, programs.source, source.config, "luna"],
        env={"SSH_ORIGINAL_COMMAND": "hello"},
        capture_output=True,
        text=True,
        check=False,
    )
    checked = subprocess.run(
        [programs.admin, "check", source.config],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == served.returncode, (checked, served)
    assert served.returncode == (0 if mode == 0o640 else 78), served


@pytest.mark.needs_root
def test_looking_leaves_no_trace_and_no_change_of_identity(source: Host) -> None:
    before = sorted((path, path.lstat().st_mtime_ns) for path in source.directory.rglob("*"))
    identity = os.getresuid(), os.getresgid(), os.getgroups()
    assert run("check", source.config).exit == 0
    assert (os.getresuid(), os.getresgid(), os.getgroups()) == identity
    after = sorted((path, path.lstat().st_mtime_ns) for path in source.directory.rglob("*"))
    assert after == before


@pytest.mark.needs_root
def test_another_user_is_told_that_it_cannot_see_all(source: Host) -> None:
    source.config.chmod(0o644)
    nobody = 65534
    answer = start("check", str(source.config), "--json", uid=nobody)
    assert answer.exit == 0, answer
    found = codes(answer)
    assert found.get("partial-view") == ""
    assert "ownership was not checked" in answer.stdout
    assert "passphrase-file" not in found, "what cannot be seen is not called wrong"


@pytest.mark.needs_root
def test_a_home_of_roots_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    answer = run("check", write(tmp_path / "config.toml", RUNTIME), "--json")
    assert answer.exit == 78
    [error] = json.loads(answer.stdout)["errors"]
    assert (error["code"], error["key"]) == ("root-account", "runtime.home")
    assert f"chown ACCOUNT {tmp_path}/home" in error["message"]


def test_an_account_that_does_not_exist(tmp_path: Path) -> None:
    answer = run("check", write(tmp_path / "config.toml", RUNTIME), "--user", "no-such-account")
    assert answer.exit == 64
    assert answer.stderr == "there is no account no-such-account; name another with --user"
