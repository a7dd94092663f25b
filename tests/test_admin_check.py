"""``borg-pull-admin check``: all errors at once, each with its place, then what is risky."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from borg_pull.admin.check import MANY_CLIENTS
from tests.admin_runs import RUNTIME, Answer, public_key, run, start, write
from tests.harness.site import Installations
from tests.harness.workplace import Account


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


def test_a_sound_configuration(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    config = write(
        tmp_path / "config.toml", RUNTIME + '[client.luna]\npaths = ["{directory}/data"]\n'
    )
    answer = run("check", config, "--user", "daemon", "--json")
    assert answer.exit == 0
    report = json.loads(answer.stdout)
    assert report["ok"] is True
    assert report["clients"] == ["luna"]
    assert report["files"] == [str(config)]
    assert report["errors"] == []


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
        ("paths = ['/home/']", "trailing-slash", "paths[0]"),
        ("paths = []", "no-path", "paths"),
        ("flags = ['exclude']", "exclude", "flags"),
        ("allow = ['prune']", "prune", "allow[0]"),
        ("allow = ['init']\nencryption = ['none']", "unencrypted", "encryption[0]"),
        ("allow = ['init']\nencryption = ['repokey']", "no-passphrase", "encryption"),
        ("allow_unknown_repository = true", "unknown-repository", "allow_unknown_repository"),
        ("allow_relocated_repository = true", "relocated-repository", "allow_relocated_repository"),
        ("passcommand = '/no/such/program x'", "passcommand", "passcommand"),
        ("paths = ['/no/such/path']", "path", "paths[0]"),
    ],
)
def test_warns_of_a_risky_rule(tmp_path: Path, rules: str, code: str, key: str) -> None:
    config = write(tmp_path / "config.toml", f"{RUNTIME}[client.luna]\n{rules}\n")
    answer = run("check", config, "--json")
    assert answer.exit == 0
    assert codes(answer).get(code) == f"client.luna.{key}"


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


def test_warns_of_a_socket_name_that_two_clients_could_use(tmp_path: Path) -> None:
    nonce = "a" * 16
    clients = f'[client.luna]\n[client."luna.{nonce}"]\n[client."luna.{nonce[1:]}"]\n'
    answer = run("check", write(tmp_path / "config.toml", RUNTIME + clients), "--json")
    assert codes(answer)["socket-name-clash"] == f"client.luna.{nonce}"


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

    def warnings(self, *arguments: str) -> list[dict[str, Any]]:
        """What check warns of, in a process of its own."""
        answer = start("check", str(self.config), "--json", *arguments)
        assert answer.exit == 0, answer
        report = json.loads(answer.stdout)
        assert report["account"] == self.account.name
        found: list[dict[str, Any]] = report["warnings"]
        return found


@pytest.fixture
def source(installations: Installations) -> Iterator[Host]:
    account = installations.take_account()
    yield Host(installations, account)
    installations.return_account(account)


@pytest.mark.needs_root
def test_a_sound_host_is_not_warned_of(source: Host) -> None:
    """The control of all that follows; the account is known by who owns home."""
    assert source.warnings() == []


@pytest.mark.needs_root
@pytest.mark.parametrize(
    ("break_it", "code", "key", "words"),
    [
        ("passphrase-world-readable", "passphrase-file", "client.luna.passphrase_file", "others"),
        ("passphrase-missing", "passphrase-file", "client.luna.passphrase_file", "No such file"),
        ("passphrase-empty", "passphrase-file", "client.luna.passphrase_file", "no passphrase"),
        ("passphrase-foreign", "passphrase-file", "client.luna.passphrase_file", "denied"),
        ("socket-dir-writable", "socket-dir", "runtime.socket_dir", "written by others"),
        ("socket-dir-readable", "socket-dir", "runtime.socket_dir", "open to others"),
        ("socket-dir-missing", "socket-dir", "runtime.socket_dir", "No such file"),
        ("socket-dir-foreign", "socket-dir", "runtime.socket_dir", "does not belong"),
        ("home-writable", "home", "runtime.home", "written by others"),
        ("config-foreign", "configuration-file", "", "not to root"),
        ("config-writable", "configuration-file", "", "written by others"),
        ("config-unreadable", "configuration-file", "", "denied"),
        ("directory-writable", "configuration-file", "", "written by others"),
        ("wrapper-foreign", "socket-wrapper", "runtime.socket_wrapper", "not to root"),
        ("wrapper-missing", "socket-wrapper", "runtime.socket_wrapper", "No such file"),
        ("wrapper-not-executable", "socket-wrapper", "runtime.socket_wrapper", "not an executable"),
        ("audit-directory-read-only", "audit-file", "audit.file", "not writable"),
        ("audit-file-foreign", "audit-file", "audit.file", "not writable"),
        ("audit-file-link", "audit-file", "audit.file", "not a regular file"),
        ("audit-directory-missing", "audit-file", "audit.file", "not a directory"),
    ],
)
def test_warns_of_what_the_forced_command_would_refuse(
    source: Host, break_it: str, code: str, key: str, words: str
) -> None:
    directory = source.directory
    log = directory / "log"
    breaks = {
        "passphrase-world-readable": lambda: source.secret.chmod(0o644),
        "passphrase-missing": source.secret.unlink,
        "passphrase-empty": lambda: source.secret.write_text("\nsecret"),
        "passphrase-foreign": lambda: os.chown(source.secret, 0, 0),
        "socket-dir-writable": lambda: (directory / "run").chmod(0o770),
        "socket-dir-readable": lambda: (directory / "run").chmod(0o755),
        "socket-dir-missing": (directory / "run").rmdir,
        "socket-dir-foreign": lambda: os.chown(directory / "run", 0, 0),
        "home-writable": lambda: (directory / "home").chmod(0o777),
        "config-foreign": lambda: os.chown(source.config, source.account.uid, 0),
        "config-writable": lambda: source.config.chmod(0o660),
        "config-unreadable": lambda: source.config.chmod(0o600),
        "directory-writable": lambda: directory.chmod(0o1777),
        "wrapper-foreign": lambda: os.chown(source.program, source.account.uid, 0),
        "wrapper-missing": source.program.unlink,
        "wrapper-not-executable": lambda: source.program.chmod(0o644),
        "audit-directory-read-only": lambda: log.chmod(0o500),
        "audit-file-foreign": lambda: (log / "audit.jsonl").touch(0o644),
        "audit-file-link": lambda: (log / "audit.jsonl").symlink_to("x"),
        "audit-directory-missing": log.rmdir,
    }
    breaks[break_it]()
    found = source.warnings("--user", source.account.name)
    assert (code, key) in [(entry["code"], entry["key"]) for entry in found]
    message = next(entry["message"] for entry in found if entry["code"] == code)
    assert words in message
    assert (code == "configuration-file") == ("config.toml" in str(found[0]["file"]) and not key)


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
    assert "passphrase-file" not in found, "what cannot be seen is not called wrong"


@pytest.mark.needs_root
def test_warns_of_a_home_of_roots(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    answer = run("check", write(tmp_path / "config.toml", RUNTIME), "--json")
    assert codes(answer)["root-account"] == "runtime.home"


def test_an_account_that_does_not_exist(tmp_path: Path) -> None:
    answer = run("check", write(tmp_path / "config.toml", RUNTIME), "--user", "no-such-account")
    assert answer.exit == 64
    assert answer.stderr == "there is no account no-such-account; name another with --user"
