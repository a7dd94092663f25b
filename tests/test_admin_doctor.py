"""``borg-pull-admin doctor``: a sound host is all ok, each mistake is named, and what it says to do
about it helps.

The host is an installation of its own, with an account, a frozen bundle and a real sshd on
loopback, under the names of this run. What would change the whole machine is done in a mount
namespace of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from borg_pull.accounts import Account
from borg_pull.admin.doctor import daemon, keys, sshd
from borg_pull.admin.doctor.command import AREAS
from borg_pull.admin.doctor.settings import SETTINGS
from borg_pull.admin.doctor.sshd import Remedies
from borg_pull.errors import ConfigurationError
from borg_pull.findings import Findings, findings_lines
from borg_pull.source.installation import program_beside
from tests.admin_runs import public_key
from tests.harness.builds import CAPABILITY, frozen_bundle
from tests.harness.companion import StandInCompanion
from tests.harness.site import Installations
from tests.harness.sshd import make_key, shipped_settings
from tests.harness.wait import until

pytestmark = pytest.mark.needs_root

SECONDS = 60
SSHD = "/usr/sbin/sshd"


@dataclass(frozen=True)
class Answer:
    exit: int
    report: dict[str, Any]
    stderr: str

    def amiss(self, *areas: str) -> dict[str, dict[str, Any]]:
        """Findings that are not ok, by code; of these areas if there are any."""
        return {
            found["code"]: found
            for found in self.report["findings"]
            if found["level"] != "ok" and (not areas or found["area"] in areas)
        }

    def the(self, code: str) -> dict[str, Any]:
        """The only finding with this code."""
        (found,) = [one for one in self.report["findings"] if one["code"] == code]
        assert isinstance(found, dict)
        return found


class Host:
    """An installation as the quickstart makes it, elsewhere."""

    def __init__(self, installations: Installations) -> None:
        workplace = installations.workplace
        self.root = workplace.directory("h")
        self.account = workplace._new_name()
        self.programs, self.etc = self.root / "opt", self.root / "etc"
        self.home, self.run = self.root / "home", self.root / "run"
        self.drop_ins = self.root / "sshd.d"
        self.keys = self.etc / "authorized_keys"
        self.config = self.etc / "config.toml"
        self.data = self.root / "data"
        self._sshd: subprocess.Popen[bytes] | None = None
        self.port = 0
        for directory in (self.etc, self.drop_ins, self.data):
            directory.mkdir()
            directory.chmod(0o755)
        subprocess.run(
            [
                *("useradd", "--system", "--user-group", "--no-create-home", "--password", "*"),
                *("--home-dir", str(self.home), "--shell", "/bin/sh", self.account),
            ],
            check=True,
        )
        entry = pwd.getpwnam(self.account)
        self.uid, self.gid = entry.pw_uid, entry.pw_gid
        for directory in (self.home, self.run):
            directory.mkdir(mode=0o700)
            os.chown(directory, self.uid, self.gid)
        self._install()
        self.write_config()
        self.write_keys()
        make_key(self.root / "host_key")
        self.write_drop_in()

    def _install(self) -> None:
        shutil.copytree(frozen_bundle(), self.programs, symlinks=True)
        for path in (self.programs, *self.programs.rglob("*")):
            os.chown(path, 0, 0, follow_symlinks=False)
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & ~0o022)
        self.programs.chmod(0o755)
        shipped = self.programs / "contrib/sshd/borg-pull.conf"
        shipped.parent.mkdir(parents=True)
        shipped.write_text(shipped_settings("borg-pull", str(self.keys)))
        self.grant()

    def grant(self) -> None:
        source = self.programs / "borg-pull-source"
        os.chown(source, 0, self.gid)
        source.chmod(0o750)
        subprocess.run(["setcap", CAPABILITY, source], check=True)

    def write_config(self, more: str = "", runtime: str = "") -> None:
        self.config.write_text(
            f"""\
[runtime]
socket_dir = "{self.run}"
home = "{self.home}"
{runtime}
[client.luna]
paths = ["{self.data}"]
keys = ["{public_key(1)} luna"]
{more}
"""
        )
        os.chown(self.config, 0, self.gid)
        self.config.chmod(0o640)

    def write_keys(self) -> None:
        admin = self.programs / "borg-pull-admin"
        with self.keys.open("wb") as file:
            subprocess.run([admin, "authorized-keys", self.config], stdout=file, check=True)
        self.keys.chmod(0o644)

    def write_drop_in(self) -> None:
        """sshd's settings as they ship."""
        text = shipped_settings(self.account, str(self.keys))
        (self.drop_ins / "00-borg-pull.conf").write_text(text)

    def start_sshd(self, *options: str, prefix: Sequence[str] = (), more: str = "") -> None:
        """Start, or start again."""
        self.stop_sshd()
        with contextlib.closing(__import__("socket").socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        (self.root / "sshd_config").write_text(
            f"Include {self.drop_ins}/*.conf\nPort {self.port}\nListenAddress 127.0.0.1\n"
            f"HostKey {self.root}/host_key\nPidFile {self.root}/sshd.pid\nUsePAM no\n{more}"
        )
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        log = self.root / "sshd.log"
        self._sshd = subprocess.Popen(
            [
                *("/usr/bin/setpriv", "--pdeathsig", "KILL", *prefix),
                *(SSHD, "-D", "-f", str(self.root / "sshd_config"), "-E", str(log), *options),
            ],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        until(self.reads_pid, seconds=SECONDS, what="sshd")

    def reads_pid(self) -> bool:
        """Whether sshd has written its pid file, which it does once it listens."""
        assert self._sshd is not None
        assert self._sshd.poll() is None, (self.root / "sshd.log").read_text()
        path = self.root / "sshd.pid"
        return path.exists() and path.read_text().strip() == str(self._sshd.pid)

    def reload_sshd(self) -> None:
        assert self._sshd is not None
        (self.root / "sshd.pid").unlink()
        self._sshd.send_signal(signal.SIGHUP)
        until(self.reads_pid, seconds=SECONDS, what="sshd to read its files")

    def stop_sshd(self) -> None:
        if self._sshd is not None:
            self._sshd.kill()
            self._sshd.wait()
            self._sshd = None

    def doctor(self, *arguments: str, prefix: Sequence[str] = (), port: bool = True) -> Answer:
        done = subprocess.run(
            [
                *(*prefix, str(self.programs / "borg-pull-admin"), "doctor", str(self.config)),
                *(("--port", str(self.port)) if port else ()),
                *("--json", *arguments),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        assert "Traceback" not in done.stderr, done.stderr
        report = json.loads(done.stdout) if done.stdout else {"findings": []}
        return Answer(done.returncode, report, done.stderr)

    def do(self, remedy: str) -> None:
        """What doctor says to do."""
        subprocess.run(
            ["/bin/sh", "-euc", remedy],
            check=True,
            cwd="/",
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            stdout=subprocess.DEVNULL,
        )


@pytest.fixture(scope="module")
def host(installations: Installations) -> Iterator[Host]:
    made = Host(installations)
    made.start_sshd()
    yield made
    made.stop_sshd()


# What depends on the machine these tests run on, and is tested by itself.
OF_THE_MACHINE = {"kernel.landlock", "storage.room", "kernel.hardlinks"}


def test_a_sound_installation_is_all_ok(host: Host) -> None:
    answer = host.doctor()
    assert answer.amiss().keys() - OF_THE_MACHINE == set(), answer.amiss()
    assert answer.exit == 0, answer.stderr
    assert answer.report["ok"] is True
    assert answer.report["account"] == host.account
    assert answer.report["sshd"]["configuration"] == str(host.root / "sshd_config")
    assert {found["area"] for found in answer.report["findings"]} == {
        *("sshd", "keys", "account", "configuration"),
        *("programs", "kernel", "storage", "audit"),
    }


def test_the_json_answer_has_its_stated_schema(host: Host) -> None:
    report = host.doctor().report
    assert list(report) == ["type", "version", "config", "ok", "account", "sshd", "findings"]
    assert (report["type"], report["version"]) == ("doctor", 1)
    assert list(report["sshd"]) == ["pid", "program", "configuration", "options", "ports"]
    for found in report["findings"]:
        keys_of_it = ["area", "code", "subject", "level", "found", "needed", "why", "remedy"]
        assert list(found) == keys_of_it
        assert found["code"].startswith(f"{found['area']}.")


# sshd's settings

WRONG = {
    "PubkeyAuthentication": "no",
    "AuthenticationMethods": "password",
    "TrustedUserCAKeys": "/etc/ca",
    "ForceCommand": "/bin/false",
    "ChrootDirectory": "/var/empty",
    "ExposeAuthInfo": "no",
    "AcceptEnv": "LC_*",
    "PermitTTY": "yes",
    "PermitUserRC": "yes",
    "Banner": "/etc/issue",
    "DisableForwarding": "yes",
    "AllowStreamLocalForwarding": "yes",
    "AllowTcpForwarding": "yes",
    "PermitListen": "any",
    "PermitOpen": "any",
    "StreamLocalBindMask": "0000",
    "StreamLocalBindUnlink": "yes",
    "AllowAgentForwarding": "yes",
    "X11Forwarding": "yes",
    "PermitTunnel": "yes",
    "MaxSessions": "10",
    "UnusedConnectionTimeout": "none",
    "ClientAliveInterval": "0",
    "ClientAliveCountMax": "0",
    "LogLevel": "INFO",
}
OTHERWISE = {
    "StreamLocalBindMask": "0077",
    "UnusedConnectionTimeout": "300",
    "ClientAliveInterval": "60",
    "ClientAliveCountMax": "5",
    "LogLevel": "DEBUG2",
}
JUDGED_WITH_KEYS = {"AuthorizedKeysFile", "AuthorizedKeysCommand"}


@contextlib.contextmanager
def drop_in(host: Host, name: str, text: str) -> Iterator[Path]:
    path = host.drop_ins / name
    path.write_text(text)
    try:
        yield path
    finally:
        path.unlink()


def settings_text(host: Host, values: dict[str, str]) -> str:
    lines = [f"{keyword} {value}" for keyword, value in values.items()]
    return "\n".join((f"Match User {host.account}", *lines, ""))


def test_each_setting_that_is_wrong_is_named_with_its_place(host: Host) -> None:
    """A Match that is read before ours wins, but for one keyword, of which the last wins."""
    assert WRONG.keys() == {one.keyword for one in SETTINGS} - JUDGED_WITH_KEYS
    last = {"StreamLocalBindMask": WRONG["StreamLocalBindMask"]}
    with (
        drop_in(host, "0-first.conf", settings_text(host, WRONG)) as first,
        drop_in(host, "99-last.conf", settings_text(host, last)),
    ):
        answer = host.doctor()
    assert answer.exit == 78
    found = answer.amiss("sshd")
    for number, setting in enumerate((one for one in SETTINGS if one.keyword in WRONG), 2):
        one = found.pop(f"sshd.{setting.keyword}")
        assert (one["level"], one["needed"]) == (setting.severity, setting.value)
        assert one["why"] == setting.risk
        assert setting.keyword in one["remedy"]
        assert f"{first}:{number}" in one["remedy"]
    assert found.keys() == {"sshd.files"}, "and that the files have changed"


def test_values_that_will_do_as_well(host: Host) -> None:
    with drop_in(host, "0-first.conf", settings_text(host, OTHERWISE)):
        last = {"StreamLocalBindMask": OTHERWISE["StreamLocalBindMask"]}
        with drop_in(host, "99-last.conf", settings_text(host, last)):
            answer = host.doctor()
    for keyword, value in OTHERWISE.items():
        one = answer.the(f"sshd.{keyword}")
        assert (one["level"], one["found"].lstrip("0")) == ("ok", value.lstrip("0"))


def test_settings_that_were_never_installed(host: Host) -> None:
    """Doing what doctor says makes it all ok, with the sshd that runs."""
    (host.drop_ins / "00-borg-pull.conf").unlink()
    host.reload_sshd()
    found = host.doctor().amiss("sshd")
    # What sshd does by itself, without any setting.
    assert found.keys() >= {f"sshd.{name}" for name in ("AllowTcpForwarding", "PermitTTY")}
    (remedy,) = {one["remedy"] for one in found.values()}
    assert remedy.startswith("sed "), "the account has another name than the one that ships"
    host.do(remedy)
    assert host.doctor().amiss("sshd", "keys") == {}


def test_settings_with_no_directory_to_install_them_in(host: Host) -> None:
    configuration = host.root / "sshd_config"
    lines = configuration.read_text().splitlines(keepends=True)
    configuration.write_text("".join(lines[1:]))
    host.reload_sshd()
    (remedy,) = {one["remedy"] for one in host.doctor().amiss("sshd").values()}
    assert f" >> {configuration} && " in remedy
    host.do(remedy)
    assert host.doctor().amiss("sshd", "keys") == {}
    host.start_sshd()


def test_settings_that_hold_for_all_accounts(host: Host) -> None:
    wrong = {
        "PermitUserEnvironment": "yes",
        "StrictModes": "no",
        "ChannelTimeout": "session:*=5m",
        "DenyUsers": f"x {host.account}@192.0.2.7",
        "DenyGroups": "x bpt-*",
        "AllowUsers": "root x?",
        "AllowGroups": "root",
    }
    text = "".join(f"{keyword} {value}\n" for keyword, value in wrong.items())
    with drop_in(host, "zz.conf", text) as path:
        found = host.doctor().amiss("sshd")
    for number, keyword in enumerate(wrong, 1):
        one = found[f"sshd.{keyword}"]
        assert f"{path}:{number}" in one["remedy"]
    errors = {code for code, one in found.items() if one["level"] == "error"}
    assert errors == {f"sshd.{keyword}" for keyword in ("DenyGroups", "AllowUsers", "AllowGroups")}


def test_settings_that_are_no_matter(host: Host) -> None:
    """The control of those above."""
    text = f"""\
ChannelTimeout x11-connection=5m session:command=0
DenyUsers x
DenyGroups y?
AllowUsers root {host.account}
AllowGroups *
"""
    with drop_in(host, "zz.conf", text):
        assert host.doctor().amiss("sshd").keys() == {"sshd.files"}


def test_settings_of_the_command_line(host: Host) -> None:
    host.start_sshd("-oPermitUserEnvironment=yes", "-o", "StrictModes no", "-4")
    answer = host.doctor()
    assert answer.report["sshd"]["options"] == [
        *("-f", str(host.root / "sshd_config")),
        *("-o", "PermitUserEnvironment=yes", "-o", "StrictModes no", "-4"),
    ]
    assert answer.amiss("sshd").keys() == {"sshd.PermitUserEnvironment", "sshd.StrictModes"}
    host.start_sshd()


def test_files_that_have_changed_since_sshd_read_them(host: Host) -> None:
    with drop_in(host, "zz.conf", "# nothing\n") as path:
        found = host.doctor().amiss("sshd")
        assert found.keys() == {"sshd.files"}
        assert found["sshd.files"]["subject"] in (str(path), str(host.drop_ins))
        (host.root / "sshd.pid").unlink()
        host.do(found["sshd.files"]["remedy"])
        until(host.reads_pid, seconds=SECONDS, what="sshd to read its files")
        assert host.doctor().amiss("sshd") == {}
        pid_file = (host.root / "sshd.pid").rename(host.root / "away")
        found = host.doctor().amiss("sshd")
        assert "cannot be seen" in found["sshd.files"]["found"]
        pid_file.rename(host.root / "sshd.pid")
    assert host.doctor().amiss("sshd").keys() == {"sshd.files"}, "one was removed"
    host.reload_sshd()


def test_configuration_that_sshd_refuses(host: Host) -> None:
    with drop_in(host, "zz.conf", "NoSuchKeyword yes\n"):
        answer = host.doctor()
        found = answer.amiss()
        assert answer.exit == 78
        assert "NoSuchKeyword" in found["sshd.says"]["found"]
        assert found["keys.files"]["level"] == "unchecked"


def test_an_sshd_on_another_port(host: Host) -> None:
    """Nothing is said of the settings of another, or of those the next one would have."""
    answer = host.doctor("--port", "1", port=False)
    assert (answer.exit, answer.report["sshd"]) == (78, None)
    found = answer.amiss("sshd", "keys")
    assert found.keys() == {"sshd.daemon", "keys.files"}
    one = found["sshd.daemon"]
    assert one["level"] == "error"
    assert f"port {host.port} (process " in one["found"]
    assert f"{host.root}/sshd_config)" in one["found"]
    assert "--port" in one["remedy"]
    assert (found["keys.files"]["level"], found["keys.files"]["remedy"]) == ("unchecked", None)


def listener(pid: int, *ports: int) -> daemon.Daemon:
    return daemon.Daemon(
        pid=pid,
        program=SSHD,
        is_replaced=False,
        command=("/usr/sbin/sshd", "-f", f"/etc/ssh/{pid}"),
        ports=ports,
        started=0.0,
        capabilities=0,
        no_new_privs=False,
        unit=None,
    )


@pytest.mark.parametrize(
    ("running", "port", "pid"),
    [
        (((1, 22), (2, 2222)), None, 1),
        (((1, 22), (2, 2222)), 2222, 2),
        (((2, 2222),), None, 2),
        (((3, 2022, 2223),), 2223, 3),
        ((), None, None),
        ((), 22, None),
    ],
)
def test_which_sshd_is_meant(
    monkeypatch: pytest.MonkeyPatch,
    running: tuple[tuple[int, ...], ...],
    port: int | None,
    pid: int | None,
) -> None:
    monkeypatch.setattr(daemon, "running", lambda: [listener(*one) for one in running])
    chosen = sshd._chosen(port)
    assert (None if chosen is None else chosen.pid) == pid


@pytest.mark.parametrize("port", [None, 22])
def test_several_of_which_none_is_meant(monkeypatch: pytest.MonkeyPatch, port: int | None) -> None:
    monkeypatch.setattr(daemon, "running", lambda: [listener(2, 2022, 2023), listener(1, 2021)])
    with pytest.raises(sshd._UnknownError) as caught:
        sshd._chosen(port)
    assert caught.value.found == (
        "none listens on port 22; these run: port 2021 (process 1, /etc/ssh/1); "
        "port 2022, 2023 (process 2, /etc/ssh/2)"
    )
    assert "--port 2021" in caught.value.remedy


def test_an_address_of_which_a_match_is(host: Host) -> None:
    text = "Match Address 198.51.100.0/24\nAllowTcpForwarding yes\n"
    with drop_in(host, "0-first.conf", text):
        assert "sshd.AllowTcpForwarding" not in host.doctor().amiss()
        found = host.doctor("--address", "198.51.100.7").amiss()
        assert found["sshd.AllowTcpForwarding"]["found"] == "yes"


@pytest.mark.parametrize(
    ("account", "patterns", "command"),
    [
        ("borg-pull", ("/d/*.conf",), "install -m 0644 SHIPPED /d/00-borg-pull.conf"),
        ("borg-pull", ("/d/one.conf",), "cat SHIPPED >> /etc/ssh/sshd_config"),
        (
            "other",
            ("/d/*",),
            "sed 's/^Match User .*/Match User other/' SHIPPED > /d/00-borg-pull.conf",
        ),
    ],
)
def test_how_settings_are_installed(account: str, patterns: tuple[str, ...], command: str) -> None:
    files = daemon.Files(lines=(), paths=("/etc/ssh/sshd_config",), patterns=patterns)
    shipped = program_beside("contrib/sshd/borg-pull.conf")
    told = Remedies(files, None, account).for_account("PermitTTY", "no")
    assert told == f"{command.replace('SHIPPED', shipped)} && sshd -t"


@pytest.mark.parametrize(
    ("words", "passed"),
    [
        ("sshd -D", ()),
        ("sshd -D -f /x -E /y", ("-f", "/x")),
        ("sshd -Df/x -p22", ("-f", "/x", "-p", "22")),
        ("sshd -o Banner none -oPermitTTY no -D", ("-o", "Banner none", "-o", "PermitTTY no")),
        ("sshd -4 -u 0 -h /a b -D", ("-4", "-u", "0", "-h", "/a b")),
    ],
)
def test_options_of_a_title(words: str, passed: tuple[str, ...]) -> None:
    assert daemon._passed(words.split()[1:]) == passed


# Keys


def test_lines_that_let_more_in_than_they_should(host: Host) -> None:
    before = host.keys.read_text()
    (sound,) = before.splitlines()
    options, _, key = sound.partition(" ssh-ed25519 ")
    other = public_key(2)
    source = f"{host.programs}/borg-pull-source"
    lines = {
        "error: no forced command": f"restrict,port-forwarding {other}",
        "error: another forced command": f'command="/bin/sh" {other}',
        "warning: another whitelist": f'command="{source} /x luna" {other}',
        "warning: no client": f'command="{source} {host.config} vega" {other}',
        "warning: gives more than": f"{options},pty {other}",
        "warning: lacks permitopen": f'restrict,command="{source} {host.config} luna" {other}',
        "warning: does not list": f"{options} {other}",
        "warning: no line that sshd": "ssh-ed25519",
        "warning: line that sshd": f"restrict,no-such-option {other}",
        "warning: cut short": f"{options} {other[:60]}",
        "warning: not as it would be printed": f"{options},no-pty ssh-ed25519 {key}",
    }
    try:
        host.keys.write_text("# comment\n\n" + "\n".join((sound, *lines.values())) + "\n")
        found = {
            one["subject"]: one
            for one in host.doctor().report["findings"]
            if one["code"] == "keys.line"
        }
    finally:
        host.keys.write_text(before)
    assert found.pop(f"{host.keys}:3")["level"] == "ok"
    for number, expected in enumerate(lines, 4):
        level, words = expected.split(": ")
        one = found.pop(f"{host.keys}:{number}")
        assert one["level"] == level, one
        assert words in one["found"], one
    assert found == {}


def test_key_that_runs_for_another_client(host: Host) -> None:
    before = host.keys.read_text()
    host.write_config(f"[client.vega]\nkeys = ['{public_key(3)}']\n")
    try:
        host.keys.write_text(before.replace(' luna"', ' vega"'))
        found = host.doctor().amiss("keys")
        assert found["keys.client"]["subject"] == "luna"
        one = found["keys.line"]
        assert (one["level"], "of client luna" in one["found"]) == ("error", True)
        host.do(one["remedy"])
        assert host.doctor().amiss("keys") == {}
    finally:
        host.write_config()
        host.write_keys()


def test_key_that_has_no_line_yet(host: Host) -> None:
    """An error where it is the only one of its client."""
    host.write_config(f"[client.vega]\nkeys = ['{public_key(3)}', '{public_key(4)}']\n")
    try:
        found = host.doctor().amiss("keys")
        assert found.keys() == {"keys.client"}
        one = found["keys.client"]
        assert (one["level"], one["subject"]) == ("error", "vega")
        host.do(one["remedy"])
        assert host.doctor().amiss("keys") == {}
        lines = host.keys.read_text().splitlines(keepends=True)
        host.keys.write_text("".join(lines[:-1]))
        found = host.doctor().amiss("keys")
        assert found.keys() == {"keys.missing"}
        assert (found["keys.missing"]["level"], found["keys.missing"]["subject"]) == (
            "warning",
            "vega",
        )
        host.do(found["keys.missing"]["remedy"])
        assert host.doctor().amiss("keys") == {}
    finally:
        host.write_config()
        host.write_keys()


def test_client_without_a_key(host: Host) -> None:
    host.write_config("[client.vega]\n")
    try:
        answer = host.doctor()
    finally:
        host.write_config()
    found = answer.amiss("keys")
    assert answer.exit == 78
    assert found.keys() == {"keys.client"}
    assert found["keys.client"]["remedy"].startswith("list its public key in keys, in ")


SLIPS: dict[str, Callable[[str], str]] = {
    "empty": lambda text: "",
    "comment": lambda text: f"# {text}",
    "smart quotes": lambda text: text.replace('command="', "command=\u201c").replace(
        'luna"', "luna\u201d"
    ),
    "wrapped": lambda text: text.replace("/config.toml ", "/config.toml\n"),
    "wrapped in the key": lambda text: text.replace("AAAAC3", "AAAA\nC3"),
    "cut": lambda text: text[: text.index("AAAA") + 30] + "\n",
    "cut by four": lambda text: text[: text.rindex(" luna") - 4] + " luna\n",
}


@pytest.mark.parametrize("slip", SLIPS)
def test_file_of_keys_by_which_nobody_can_log_in(host: Host, slip: str) -> None:
    """As sshd sees it, too."""
    before = host.keys.read_text()
    try:
        host.keys.write_text(SLIPS[slip](before))
        answer = host.doctor()
        assert answer.exit == 78
        one = answer.the("keys.client")
        assert (one["level"], one["subject"]) == ("error", "luna")
        host.do(one["remedy"])
        assert host.keys.read_text() == before
        assert host.doctor().amiss("keys") == {}
    finally:
        host.write_keys()


def test_keys_are_not_compared_with_a_whitelist_that_is_not_sound(host: Host) -> None:
    """Nor does any remedy make the file that lets everybody in an empty one."""
    before = host.keys.read_text()
    host.config.write_text(host.config.read_text().replace("paths =", "path ="))
    try:
        answer = host.doctor()
        found = answer.amiss("keys")
        assert answer.exit == 78
        assert found.keys() == {"keys.clients"}
        assert found["keys.clients"]["level"] == "unchecked"
        assert answer.amiss("configuration").keys() == {"configuration.wrong"}
        host.keys.write_text(f"{before}{public_key(2)}\n")
        one = host.doctor().amiss("keys")["keys.line"]
        assert (one["level"], one["found"]) == ("error", "has no forced command")
        with pytest.raises(subprocess.CalledProcessError):
            host.do(one["remedy"].rpartition("then run ")[2])
        assert host.keys.read_text() == f"{before}{public_key(2)}\n"
    finally:
        host.write_config()
        host.write_keys()
    assert host.doctor().amiss("keys") == {}


@pytest.mark.parametrize("fault", ["absent", "of the account", "for all to write", "unreadable"])
def test_file_of_keys(host: Host, fault: str) -> None:
    if fault == "absent":
        host.keys.unlink()
    elif fault == "of the account":
        os.chown(host.keys, host.uid, host.gid)
    else:
        host.keys.chmod(0o666 if fault == "for all to write" else 0o600)
    try:
        one = host.doctor().amiss("keys")["keys.file"]
        assert (one["level"], one["subject"]) == ("error", str(host.keys))
        if fault != "of the account":
            host.do(one["remedy"].partition(", and")[0].removeprefix("run "))
            host.keys.chmod(0o644) if fault == "absent" else None
            assert host.doctor().amiss("keys") == {}
    finally:
        host.keys.unlink(missing_ok=True)
        host.write_keys()


@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        ("/etc/borg-pull/authorized_keys", "chown root /etc/borg-pull"),
        ("/srv/keys", "AuthorizedKeysFile stands at "),
    ],
)
def test_what_to_do_about_keys_in_a_directory_of_the_account(
    monkeypatch: pytest.MonkeyPatch, path: str, remedy: str
) -> None:
    """Not to name the file that is named."""

    def refuse(*_: object, **__: object) -> bytes:
        raise ConfigurationError(f"{os.path.dirname(path)} belongs to uid 999, not to root")

    monkeypatch.setattr(keys, "read_file", refuse)
    line = ("/etc/ssh/sshd_config", 12, "authorizedkeysfile", path)
    match = ("/etc/ssh/sshd_config", 11, "match", "User borg-pull")
    files = daemon.Files(lines=(match, line), paths=("/etc/ssh/sshd_config",), patterns=())
    asked = sshd.Asked(
        daemon=None,
        effective={"authorizedkeysfile": (path,)},
        remedies=Remedies(files, None, "borg-pull"),
    )
    findings = Findings()
    account = Account(name="borg-pull", uid=999, gid=999)
    keys.look(findings, account, "/etc/borg-pull/config.toml", {}, asked)
    (one,) = findings.found
    assert (one.code, one.level) == ("keys.file", "error")
    assert one.remedy is not None
    assert one.remedy.startswith(remedy)


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ("AuthorizedKeysFile .ssh/authorized_keys", "keys.file"),
        ("AuthorizedKeysFile %h/keys/%u", "keys.file"),
        ("AuthorizedKeysFile none", "keys.none"),
        ("AuthorizedKeysCommand /bin/echo %u\nAuthorizedKeysCommandUser nobody", "keys.command"),
        (
            "AuthorizedKeysFile none\nAuthorizedKeysCommand OURS\nAuthorizedKeysCommandUser WHO",
            None,
        ),
    ],
)
def test_where_keys_come_from(host: Host, settings: str, code: str | None) -> None:
    ours = f"{host.programs}/borg-pull-admin authorized-keys --fingerprint %f {host.config}"
    settings = settings.replace("OURS", ours).replace("WHO", host.account)
    ssh = host.home / ".ssh"
    ssh.mkdir(mode=0o700)
    (ssh / "authorized_keys").write_text(host.keys.read_text())
    for path in (ssh, ssh / "authorized_keys"):
        os.chown(path, host.uid, host.gid)
    try:
        with drop_in(host, "0-first.conf", f"Match User {host.account}\n{settings}\n"):
            found = host.doctor().amiss("keys")
        assert list(found) == ([] if code is None else [code])
        assert all(one["level"] == "error" for one in found.values())
    finally:
        shutil.rmtree(ssh)


@pytest.mark.parametrize(
    ("line", "options"),
    [
        (public_key(1), ""),
        (f"restrict {public_key(1)}", "restrict"),
        (f'command="a b",pty {public_key(1)} me', 'command="a b",pty'),
        (
            f'command="a \\"b ssh-rsa AAAA\\" c" {public_key(1)}',
            'command="a \\"b ssh-rsa AAAA\\" c"',
        ),
        (f"  restrict\t{public_key(1)}  me too", "restrict"),
    ],
)
def test_lines_are_read_as_sshd_reads_them(tmp_path: Path, line: str, options: str) -> None:
    (found,) = keys.lines_of(f"# x\n\n{line}\n")
    assert isinstance(found, keys.Line)
    assert (found.options, found.key, found.number) == (options, public_key(1), 3)
    (tmp_path / "keys").write_text(line + "\n")
    listed = subprocess.run(
        ["ssh-keygen", "-l", "-f", tmp_path / "keys"], check=True, capture_output=True, text=True
    )
    assert listed.stdout.count("SHA256:") == 1


def test_values_of_options() -> None:
    text = f'restrict,Command="a \\"b\\" \\c",permitopen="x:1" {public_key(1)}'
    (found,) = keys.lines_of(text)
    assert isinstance(found, keys.Line)
    assert found.option_values() == {
        "restrict": "",
        "command": 'a "b" \\c',
        "permitopen": "x:1",
    }


# The account


def shell(host: Host, text: str) -> Callable[[], None]:
    return lambda: host.do(text)


@pytest.mark.parametrize(
    ("mistake", "code", "level"),
    [
        ("usermod --shell /usr/sbin/nologin NAME", "account.shell", "error"),
        ("usermod --shell /no/such NAME", "account.shell", "error"),
        ("usermod --shell /bin/bash NAME", "account.shell", "warning"),
        ("usermod --password '!' NAME", "account.password", "error"),
        ("usermod --password '!*' NAME", "account.password", "error"),
        ("usermod --password '$y$j9T$x$y' NAME", "account.password", "warning"),
        ("passwd --quiet --delete NAME", "account.password", "error"),
        ("usermod --expiredate 2001-01-01 NAME", "account.age", "error"),
        ("chage --lastday 0 NAME", "account.age", "error"),
        ("chage --lastday 2001-01-01 --maxdays 30 NAME", "account.age", "error"),
        ("gpasswd --add NAME games", "account.groups", "warning"),
        ("gpasswd --add nobody NAME", "account.members", "warning"),
        ("usermod --home HOME/clients/luna NAME", "account.home", "error"),
        ("usermod --home /no/such NAME", "account.home", "warning"),
        ("chmod 0777 HOME", "account.home", "error"),
    ],
)
def test_mistakes_of_the_account(host: Host, mistake: str, code: str, level: str) -> None:
    host.do(mistake.replace("NAME", host.account).replace("HOME", str(host.home)))
    found = host.doctor().amiss("account")
    assert found.keys() == {code}
    assert found[code]["level"] == level
    host.do(found[code]["remedy"])
    assert host.doctor().amiss("account") == {}


def test_locked_account_with_pam(host: Host) -> None:
    host.do(f"usermod --password '!' {host.account}")
    with drop_in(host, "0-first.conf", "UsePAM yes\n"):
        one = host.doctor().amiss("account")["account.password"]
    assert one["level"] == "warning"
    host.do(one["remedy"])


# The programs


@pytest.mark.parametrize(
    ("mistake", "code"),
    [
        ("setcap -r SOURCE", "programs.capability"),
        ("setcap cap_chown=ep SOURCE", "programs.capability"),
        ("setcap cap_dac_read_search=p SOURCE", "programs.capability"),
        ("setcap cap_dac_read_search,cap_chown=ep SOURCE", "programs.capability"),
        ("chmod 0755 SOURCE", "programs.mode"),
        ("chgrp root SOURCE && setcap cap_dac_read_search=ep SOURCE", "programs.mode"),
        ("chmod 0700 SOURCE", "programs.mode"),
        ("chmod o+w OPT", "programs.directories"),
        ("chmod g+w OPT/_internal", "programs.directories"),
        ("chown nobody OPT/_internal/borg_pull/errors.pyc", "programs.directories"),
    ],
)
def test_mistakes_of_the_programs(host: Host, mistake: str, code: str) -> None:
    source = host.programs / "borg-pull-source"
    mistake = mistake.replace("SOURCE", str(source)).replace("OPT", str(host.programs))
    try:
        host.do(mistake)
        found = host.doctor().amiss("programs")
        assert found.keys() == {code}
        assert found[code]["level"] == "error"
        if "packaging/" not in found[code]["remedy"]:
            host.do(found[code]["remedy"].removeprefix("run "))
            assert host.doctor().amiss("programs") == {}
    finally:
        host.programs.chmod(0o755)
        (host.programs / "_internal").chmod(0o755)
        os.chown(host.programs / "_internal/borg_pull/errors.pyc", 0, 0)
        host.grant()


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        (("--bounding-set=-dac_read_search",), "bounding set"),
        (("--no-new-privs",), "no_new_privs"),
    ],
)
def test_sshd_that_cannot_pass_the_capability_on(
    host: Host, prefix: tuple[str, ...], words: str
) -> None:
    host.start_sshd(prefix=prefix)
    found = host.doctor().amiss("programs")
    host.start_sshd()
    assert found.keys() == {"programs.inheritance"}
    assert words in found["programs.inheritance"]["found"]


def test_borg_and_wrapper(host: Host) -> None:
    borg = host.root / "borg"
    borg.write_text('#!/bin/sh\nid -u > /dev/stderr\necho "borg 1.1.18"\n')
    borg.chmod(0o755)
    try:
        host.write_config(runtime=f'borg = "{borg}"\nsocket_wrapper = "/bin/true"')
        found = host.doctor().amiss("programs")
        assert found.keys() == {"programs.borg", "programs.wrapper"}
        assert "1.1.18" in found["programs.borg"]["found"]
        assert found["programs.borg"]["level"] == "error"
        # Nobody runs here what others can change.
        borg.write_text(f"#!/bin/sh\ntouch {host.root}/it-ran\n")
        borg.chmod(0o777)
        assert host.doctor().the("programs.borg")["level"] == "unchecked"
        assert not (host.root / "it-ran").exists()
    finally:
        host.write_config()


# What a mount namespace of its own can stand for


def in_namespace(*commands: str) -> list[str]:
    """A prefix that runs the rest where ``commands`` have been done, unseen by all others."""
    script = " && ".join(("mount --make-rprivate /", *commands, 'exec "$@"'))
    return ["unshare", "--mount", "--", "/bin/sh", "-euc", script, "sh"]


def test_file_system_that_takes_capabilities_away(host: Host) -> None:
    path = host.programs
    prefix = in_namespace(f"mount --bind {path} {path}", f"mount -o remount,bind,nosuid {path}")
    one = host.doctor(prefix=prefix).amiss("programs")["programs.mount"]
    assert (one["level"], "nosuid" in one["found"]) == ("error", True)


def test_processes_that_the_account_cannot_see(host: Host) -> None:
    prefix = in_namespace("mount -t proc -o hidepid=invisible proc /proc")
    answer = host.doctor(prefix=prefix)
    assert answer.the("kernel.proc")["level"] == "error"
    assert host.doctor().the("kernel.proc")["level"] == "ok"
    group = f"hidepid=invisible,gid={host.gid}"
    prefix = in_namespace(f"mount -t proc -o {group} proc /proc")
    assert host.doctor(prefix=prefix).the("kernel.proc")["level"] == "ok", "the remedy"


def test_links_that_are_not_protected(host: Host) -> None:
    path = "/proc/sys/fs/protected_hardlinks"
    zero = host.root / "zero"
    for value, level in (("0", "error"), ("1", "ok")):
        zero.write_text(f"{value}\n")
        prefix = in_namespace(f"mount --bind {zero} {path}")
        assert host.doctor(prefix=prefix).the("kernel.hardlinks")["level"] == level


@pytest.mark.parametrize(
    ("options", "level"),
    [
        ("size=8m", "error"),
        ("size=64m", "warning"),
        ("size=2g,nr_inodes=50", "error"),
        ("size=2g,nr_inodes=5k", "warning"),
        ("size=2g,nr_inodes=1m", "ok"),
    ],
)
def test_disks_that_are_full(host: Host, options: str, level: str) -> None:
    owner = f"uid={host.uid},gid={host.gid},mode=0700"
    prefix = in_namespace(f"mount -t tmpfs -o {options},{owner} none {host.home}")
    assert host.doctor(prefix=prefix).the("storage.room")["level"] == level


def test_home_that_does_not_exist(host: Host) -> None:
    """Root is not told to become root."""
    missing = host.root / "hoem"
    host.config.write_text(host.config.read_text().replace(str(host.home), str(missing)))
    try:
        answer = host.doctor("--user", host.account)
        assert answer.exit == 78
        for code in ("storage.room", "audit.head"):
            found = [one for one in answer.report["findings"] if one["code"] == code]
            one = found[0]
            assert one["level"] == "unchecked"
            assert "does not exist" in one["found"]
            assert one["remedy"].startswith(f"install -d -o {host.account} ")
        assert "run this as root" not in json.dumps(answer.report)
        host.do(answer.the("audit.head")["remedy"].partition(", or ")[0])
        assert host.doctor().amiss("storage", "audit").keys() <= OF_THE_MACHINE
        missing.rmdir()
    finally:
        host.write_config()


def test_socket_directory_that_will_be_gone(host: Host) -> None:
    """Until tmpfiles.d is told to make it."""
    owner = f"uid={host.uid},gid={host.gid},mode=0700"
    mounts = [f"mount -t tmpfs -o {owner} none {host.run}", "mount -t tmpfs none /etc/tmpfiles.d"]
    one = host.doctor(prefix=in_namespace(*mounts)).the("storage.sockets")
    assert one["level"] == "warning"
    prefix = in_namespace(*mounts, one["remedy"])
    assert host.doctor(prefix=prefix).the("storage.sockets")["level"] == "ok"


def test_socket_directory_with_too_long_a_name(host: Host) -> None:
    levels = {}
    base = str(host.root)
    for length in (60, 88, 106):
        directory = f"{base}/{'x' * (length - len(base) - 1)}"
        host.write_config()
        host.config.write_text(host.config.read_text().replace(str(host.run), directory))
        levels[length] = host.doctor().the("storage.names")["level"]
    host.write_config()
    assert levels == {60: "ok", 88: "warning", 106: "error"}


# The kernel

WITHOUT_LANDLOCK = """\
import ctypes, os, struct, sys
ERRNO, ALLOW = 0x00050000 | 95, 0x7FFF0000
LANDLOCK_CREATE_RULESET = 444
code = [(0x20, 0, 0, 0), (0x15, 0, 1, LANDLOCK_CREATE_RULESET), (6, 0, 0, ERRNO), (6, 0, 0, ALLOW)]
lines = b"".join(struct.pack("HBBI", *one) for one in code)
buffer = ctypes.create_string_buffer(lines)
program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(buffer))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(22, 2, program, 0, 0) == 0, os.strerror(ctypes.get_errno())
os.execv(sys.argv[1], sys.argv[1:])
"""
"""As the kernel answers where Landlock is switched off: EOPNOTSUPP."""


@pytest.mark.parametrize(
    ("mode", "level"), [("required", "error"), ("auto", "warning"), ("off", "warning")]
)
def test_kernel_without_landlock(host: Host, mode: str, level: str) -> None:
    host.write_config(f'[confine]\nlandlock = "{mode}"\n')
    try:
        prefix = [sys.executable, "-c", WITHOUT_LANDLOCK]
        one = host.doctor(prefix=prefix).the("kernel.landlock")
        assert one["level"] == level
        assert one["remedy"]
    finally:
        host.write_config()


# The audit log


@pytest.fixture
def log(host: Host) -> Iterator[Path]:
    """With the records of two requests."""
    for _ in range(2):
        subprocess.run(
            [
                *as_user(host.uid, host.gid),
                *(str(host.programs / "borg-pull-source"), str(host.config), "luna"),
            ],
            env={"SSH_ORIGINAL_COMMAND": "hello", "PATH": "/usr/bin:/bin"},
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd="/",
        )
    path = host.home / "audit.jsonl"
    assert host.doctor().amiss("audit") == {}
    yield path
    for file in host.home.glob("audit.jsonl*"):
        file.unlink()


def test_log_that_was_cut_or_altered(host: Host, log: Path) -> None:
    whole = log.read_bytes()
    for content, level in (
        (whole[: whole.index(b"\n") + 1], "error"),
        (whole.replace(b'"hello"', b'"hallo"'), "error"),
        (whole[:-10], "warning"),
        (whole, "ok"),
    ):
        log.write_bytes(content)
        one = host.doctor().the("audit.head")
        assert one["level"] == level, content
        assert level == "ok" or "audit verify" in one["remedy"]
    chain = log.with_name("audit.jsonl.chain").rename(log.with_name("away"))
    assert host.doctor().the("audit.head")["level"] == "warning"
    chain.unlink()
    log.unlink()
    assert host.doctor().the("audit.head")["level"] == "ok", "none yet"


def test_clock_that_went_back(host: Host, log: Path) -> None:
    lines = log.read_text().splitlines()
    year = time.gmtime().tm_year
    lines[-1] = lines[-1].replace(f'"time":"{year}-', f'"time":"{year + 1}-')
    log.write_text("\n".join(lines) + "\n")
    assert host.doctor().the("audit.clock")["level"] == "warning"


# The rest


def test_what_check_says_is_in_it(host: Host) -> None:
    try:
        host.config.chmod(0o666)
        host_data = host.data.rename(host.root / "gone")
        found = host.doctor().amiss("configuration")
        assert found["configuration.configuration-file"]["level"] == "error"
        assert found["configuration.path"]["level"] == "warning"
        host_data.rename(host.data)
    finally:
        host.write_config()


def test_lockdown_is_told(host: Host) -> None:
    subprocess.run(
        [host.programs / "borg-pull-admin", "lockdown", host.config, "on", "--reason", "a test"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    one = host.doctor().the("configuration.lockdown")
    assert (one["level"], "a test" in one["found"]) == ("warning", True)
    host.do(f"{one['remedy']} > {host.root}/output")
    assert host.doctor().the("configuration.lockdown")["level"] == "ok"
    for file in host.home.glob("audit.jsonl*"):
        file.unlink()


def as_user(uid: int, gid: int) -> list[str]:
    return ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]


def test_without_root_it_says_what_it_could_not_look_at(host: Host) -> None:
    answer = host.doctor(prefix=as_user(host.uid, host.gid))
    assert answer.exit == 0, answer.stderr
    unchecked = {code for code, found in answer.amiss().items() if found["level"] == "unchecked"}
    assert unchecked == {"sshd.settings", "keys.files", "account.password"}
    assert answer.amiss().keys() - OF_THE_MACHINE == unchecked
    assert host.doctor("--strict", prefix=as_user(host.uid, host.gid)).exit == 78


def test_who_may_not_read_the_whitelist_is_told(host: Host) -> None:
    nobody = pwd.getpwnam("nobody")
    answer = host.doctor(prefix=as_user(nobody.pw_uid, nobody.pw_gid))
    assert (answer.exit, answer.report["findings"]) == (78, []), answer.stderr
    assert "root" in answer.stderr


def test_companion(host: Host) -> None:
    """Looked for only where some client may ask for what it does."""
    path = host.root / "companion.sock"
    assert host.doctor().amiss("companion") == {}
    host.write_config(
        f'actions = ["a"]\n[action.a]\ntype = "nextcloud_aio_backup"\n[aio]\nsocket = "{path}"\n'
    )
    try:
        missing = host.doctor().amiss("companion")["companion.socket"]
        assert (missing["level"], "nobody is there" in missing["found"]) == ("error", True)
        assert missing["why"].endswith("refused with 69: luna")
        companion = StandInCompanion(path)
        try:
            assert host.doctor().amiss("companion") == {}
            path.chmod(0o600)
            closed = host.doctor().amiss("companion")["companion.access"]
            assert (closed["level"], closed["found"]) == ("error", f"is closed to {host.account}")
        finally:
            companion.close()
    finally:
        host.write_config()


def test_wrong_whitelist(host: Host) -> None:
    host.config.write_text("[runtime]\n")
    answer = host.doctor()
    host.write_config()
    assert answer.exit == 78
    assert "borg-pull-admin check" in answer.stderr


def test_the_text_says_all_of_it(host: Host) -> None:
    """In order, with a remedy that several share told once."""
    with drop_in(host, "0-first.conf", settings_text(host, {"PermitTTY": "yes"})):
        done = subprocess.run(
            [host.programs / "borg-pull-admin", "doctor", host.config, "--port", str(host.port)],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 78
    assert done.stderr == "borg-pull-admin: this host is not ready: 1 error\n"
    lines = done.stdout.splitlines()
    at = lines.index("  error     PermitTTY: yes; needed: no (the peer gets a terminal)")
    assert lines[at + 1].startswith("            do: PermitTTY stands at ")
    assert lines[-1].startswith(f"{host.config}: not ready: ")
    assert "\x1b" not in done.stdout


def test_all_levels_stand_in_one_column() -> None:
    findings = Findings()
    findings.wrong("error", "keys.a", "subject", "found")
    findings.wrong("warning", "keys.b", "subject", "found")
    findings.unchecked("keys.c", "subject", "found")
    _, *lines, _ = (
        "".join(text for text, _ in line) for line in findings_lines("/c", AREAS, findings)
    )
    assert {line.index("subject") for line in lines if "subject" in line} == {12}
    assert lines[-1] == "            do: run this as root"
