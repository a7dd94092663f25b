"""The documents say what is so: their commands run, links lead somewhere, samples load.

A fenced block marked ``console`` or ``sh`` holds commands. In a ``console`` block a line that
begins with a prompt (``source#``, ``backup$``, ``backup#``) is a command, up to the end of its
here-document; what follows is its output, ``...`` standing for any text, or alone on its line for
any lines. Every command of the quickstart, then of the operations chapter, is run, in order, both
hosts on this machine. Every other one, and those that cannot be, stand in ``EXCEPTIONS`` with a
reason.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from borg_pull import schema
from borg_pull.pull import config as pull_config
from borg_pull.source import whitelist
from tests.harness import processes
from tests.harness.builds import PROJECT, frozen_bundle
from tests.harness.site import Installations
from tests.harness.sshd import SshServer
from tests.harness.trees import differences
from tests.harness.wait import until
from tests.harness.workplace import Account, Workplace

DOCUMENTS = sorted((PROJECT / "docs").rglob("*.md")) + [PROJECT / "README.md"]
QUICKSTART = PROJECT / "docs/quickstart.md"
OPERATIONS = PROJECT / "docs/operations.md"
BLOCK = re.compile(r"^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
PROMPT = re.compile(r"(?P<prompt>source#|web1#|db1#|backup\$|backup#) (?P<command>.*)")
HERE_DOCUMENT = re.compile(r"<<'(\w+)'")
COMMAND_SECONDS = 120

EXCEPTIONS = {
    "make demo": "what it runs is run by tests/test_demo.py",
    "make test": "is what runs this test",
    "make frozen": "make test has done it; the bundle is the one under test",
    "packaging/install.sh": "run by the quickstart",
    "backup# git clone": "needs a network; the checkout under test stands in for it",
    "backup# cd borg-pull && make frozen": "make test has done it",
    "backup# cp -R dist/borg-pull": "install.sh has put the same bundle there",
    "backup# apt-get install": "changes this machine; make test installs the same packages",
    "source# apt-get install": "changes this machine; make test installs the same packages",
    "source# git clone": "needs a network; the checkout under test stands in for it",
    "source# cd borg-pull && make frozen": "make test has done it",
    "source# systemctl reload ssh": "starts a private sshd here, with the settings just written",
    "backup$ (crontab -l": "would change the crontab of this machine",
    "backup$ systemctl --user": "needs a running systemd",
    "backup$ borg-pull doctor": "run by tests/pull/test_doctor.py, of a source that is not sound",
    "backup$ borg-pull timers": "run by tests/pull/test_services.py, under a systemd of its own",
    "backup# loginctl enable-linger": "needs a running systemd",
}
FOLLOWED_ELSEWHERE = (
    "backup-server.md",  # tests/pull/test_chapter.py
    "nextcloud-aio.md",  # tests/aio/test_chapter.py
    "restore.md",  # tests/pull/test_restore.py
)
STARTS_SSHD = "source# systemctl reload ssh"


@dataclass
class Command:
    """One command of a document, and the output the document shows."""

    document: str
    prompt: str
    text: str
    section: str = ""
    """The heading it stands under."""
    output: list[str] = field(default_factory=list)

    @property
    def shown(self) -> str:
        return f"{self.prompt} {self.text}".strip()

    @property
    def exception(self) -> str | None:
        """The entry of ``EXCEPTIONS`` that it is."""
        return next((begin for begin in EXCEPTIONS if self.shown.startswith(begin)), None)


def blocks(document: Path, kinds: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(kind, text) of the fenced blocks of these kinds."""
    for block in BLOCK.finditer(document.read_text()):
        if block["kind"] in kinds:
            yield block["kind"], block["text"]


def commands(document: Path) -> list[Command]:
    found: list[Command] = []
    for section in re.split(r"^(?=## )", document.read_text(), flags=re.MULTILINE):
        heading = section.partition("\n")[0].removeprefix("## ")
        for block in BLOCK.finditer(section):
            if block["kind"] == "sh":
                lines = block["text"].splitlines()
                found += [Command(document.name, "", line, heading) for line in lines if line]
            elif block["kind"] == "console":
                found += console_commands(document.name, block["text"], heading)
    return found


def console_commands(document: str, text: str, section: str) -> Iterator[Command]:
    lines = iter(text.splitlines())
    command: Command | None = None
    for line in lines:
        prompted = PROMPT.fullmatch(line)
        if prompted is None:
            assert command is not None, f"{document}: a console block begins with {line!r}"
            command.output.append(line)
            continue
        if command is not None:
            yield command
        command = Command(document, prompted["prompt"], prompted["command"], section)
        here = HERE_DOCUMENT.search(line)
        while here is not None:
            following = next(lines)
            command.text += f"\n{following}"
            if following == here[1]:
                break
    if command is not None:
        yield command


EVERY_COMMAND = [command for document in DOCUMENTS for command in commands(document)]


def test_every_command_is_run_or_says_why_not() -> None:
    followed = (QUICKSTART.name, OPERATIONS.name, *FOLLOWED_ELSEWHERE)
    outside = [command for command in EVERY_COMMAND if command.document not in followed]
    assert [command.shown for command in outside if command.exception is None] == []


def test_no_exception_is_stale() -> None:
    used = {command.exception for command in EVERY_COMMAND}
    assert sorted(EXCEPTIONS.keys() - used) == []


@pytest.mark.parametrize("target", ["demo", "test", "check", "frozen", "bench", "clean"])
def test_make_targets_exist(target: str) -> None:
    listed = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.search(rf"^ *{target} ", listed.stdout, re.MULTILINE)


def heading_anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as code forges make them."""
    text = BLOCK.sub("", document.read_text())
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_tests_that_are_named_exist(document: Path) -> None:
    """A promise that names its proof names one that is there."""
    for named in re.findall(r"`(tests/[a-z0-9_./]*)`", document.read_text()):
        assert (PROJECT / named).exists(), named


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_links_lead_somewhere(document: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", document.read_text())):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if not target.exists() or (anchor and anchor not in heading_anchors(target)):
            broken.append(link)
    assert broken == []


TOML = [
    pytest.param(text, id=f"{document.stem}-{number}")
    for document in DOCUMENTS
    for number, (_kind, text) in enumerate(blocks(document, ("toml",)))
]


@pytest.mark.parametrize("text", TOML)
def test_configurations_shown_are_sound(text: str, tmp_path: Path) -> None:
    """Whitelists of the source, and pull.toml of the backup server."""
    if any(line.startswith("[job.") for line in text.splitlines()):
        path = tmp_path / "pull.toml"
        path.write_text(text)
        path.chmod(0o600)
        assert pull_config.load(path).job
    else:
        loaded = whitelist.load(schema.SourceFile(name="shown", content=text.encode()), {})
        assert loaded.clients


JSON = [
    pytest.param(text, id=f"{document.stem}-{number}")
    for document in DOCUMENTS
    for number, (_kind, text) in enumerate(blocks(document, ("json",)))
]


@pytest.mark.parametrize("text", JSON)
def test_answers_shown_are_json(text: str) -> None:
    assert isinstance(json.loads(text), dict)


def test_log_of_the_quickstart_is_rotated() -> None:
    [log] = set(re.findall(r"/\S+/audit\.jsonl", QUICKSTART.read_text()))
    assert f"\n{log} {{\n" in (PROJECT / "contrib/logrotate.conf").read_text()


class PrivateSshd(SshServer):
    """An sshd that reads settings from a drop-in directory, as a distribution's does."""

    def __init__(self, workplace: Workplace, drop_ins: Path) -> None:
        super().__init__(workplace)
        self._drop_ins = drop_ins

    @property
    def configuration_file(self) -> Path:
        return self.directory / "sshd_config"

    @property
    def host_key(self) -> Path:
        return self.directory / "host_key.pub"

    def _configuration(self, port: int) -> str:
        return "\n".join(
            (
                f"Include {self._drop_ins}/*.conf",
                f"Port {port}",
                "ListenAddress 127.0.0.1",
                f"HostKey {self.directory}/host_key",
                "PidFile none",
                "UsePAM no",
                "PasswordAuthentication no",
                "",
            )
        )

    def write_configuration(self) -> None:
        """Write it as `start` will, for sshd -t."""
        self.configuration_file.write_text(self._configuration(1))


class TwoHosts:
    """Both hosts of the quickstart on this machine.

    What stands for what:

    ==============================  =======================================================
    quickstart                      here
    ==============================  =======================================================
    /opt, /etc, /var, /run, /srv    directories of this test (only what the quickstart names)
    account and group borg-pull     a throw-away account, made by install.sh itself
    user backup                     a throw-away account with a home of its own
    source.example.org              127.0.0.1 and the port of a private sshd
    ssh-ed25519 AAAA... luna        the public key made by the first step
    host key compared by eye        known_hosts written beforehand
    checkout                        install.sh and what it installs, with the names above
    ==============================  =======================================================
    """

    more_places: tuple[str, ...] = ()
    """What another chapter names besides."""

    def __init__(self, workplace: Workplace) -> None:
        self.root = workplace.directory("q")
        self.account = workplace._new_name()
        self._known = {"borg-pull": self.account}
        for number, path in enumerate(
            (
                *("/opt/borg-pull", "/etc/borg-pull", "/var/lib/borg-pull", "/root"),
                *("/run/borg-pull", "/etc/tmpfiles.d", "/etc/logrotate.d"),
                *("/etc/ssh/sshd_config.d", "/etc/systemd/system", "/srv/www", "/srv/db"),
                *self.more_places,
            )
        ):
            # Short, for a socket's path has 107 bytes; the last component as it is in output.
            self._known[path] = f"{self.root}/{number}/{path.rpartition('/')[2]}"
            Path(self._known[path]).parent.mkdir()
        self.directories = [path for path in self._known if path.startswith("/")]
        for made_by_the_system in (
            "/etc/logrotate.d",
            "/etc/ssh/sshd_config.d",
            "/etc/systemd/system",
            "/srv/www",
            "/srv/db",
            "/root",
        ):
            self.path(made_by_the_system).mkdir()
        self.sshd = PrivateSshd(workplace, self.path("/etc/ssh/sshd_config.d"))
        self.sshd.write_configuration()
        self._known["/etc/ssh/ssh_host_ed25519_key.pub"] = str(self.sshd.host_key)
        self._known["sshd -t"] = f"/usr/sbin/sshd -t -f {self.sshd.configuration_file}"
        self.backup = self._backup_account(workplace)
        self.home = Path(pwd.getpwnam(self.backup.name).pw_dir)
        self.checkout = self.root / "checkout"
        self._make_checkout()
        self._fill(self.path("/srv/www"))
        self._fill(self.path("/srv/db"))
        self._exports: list[str] = []

    def path(self, quickstart: str) -> Path:
        """Where a path of the quickstart is here."""
        return Path(self._known[quickstart])

    def _backup_account(self, workplace: Workplace) -> Account:
        name = workplace._new_name()
        home = self.root / "backup"
        home.mkdir(mode=0o700)
        subprocess.run(
            [
                *("useradd", "--system", "--user-group", "--no-create-home", "--password", "*"),
                *("--home-dir", str(home), "--shell", "/bin/sh", name),
            ],
            check=True,
        )
        entry = pwd.getpwnam(name)
        os.chown(home, entry.pw_uid, entry.pw_gid)
        return Account(name, entry.pw_uid, entry.pw_gid, disposable=True)

    def _make_checkout(self) -> None:
        for name in (
            *("packaging/install.sh", "packaging/grant.sh"),
            *("contrib/logrotate.conf", "contrib/sshd/borg-pull.conf"),
            *("contrib/systemd/borg-pull-aio.socket", "contrib/systemd/borg-pull-aio.service"),
        ):
            copy = self.checkout / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(self.translated((PROJECT / name).read_text()))
            shutil.copymode(PROJECT / name, copy)
        (self.checkout / "dist").mkdir()
        (self.checkout / "dist/borg-pull").symlink_to(frozen_bundle())

    def _fill(self, www: Path) -> None:
        (www / "site").mkdir()
        (www / "site/index.html").write_text("hello\n")
        secret = www / "secret"
        secret.write_text("only root can read this\n")
        secret.chmod(0o600)

    def translated(self, text: str) -> str:
        """``text`` of the quickstart, with what stands here for what is in it."""
        names = sorted(self._known, key=len, reverse=True)
        pattern = re.compile(r"(?<![\w/.~-])(" + "|".join(map(re.escape, names)) + r")(?![\w.-])")
        text = pattern.sub(lambda found: self._known[found[1]], text)
        text = text.replace(
            "HostName source.example.org", f"HostName 127.0.0.1\n    Port {self.sshd.port}"
        )
        # Other tests have an sshd, too.
        text = text.replace(
            "borg-pull-admin doctor ", f"borg-pull-admin doctor --port {self.sshd.port} "
        )
        key = self.root / "backup/.ssh/borg-pull.pub"
        return text.replace(
            "ssh-ed25519 AAAA... luna", key.read_text().strip() if key.exists() else ""
        )

    def reload_sshd(self) -> None:
        """What a reload of the machine's sshd is."""
        self.sshd.stop()
        self.sshd.start()
        known_hosts = self.home / ".ssh/known_hosts"
        known_hosts.write_text(self.sshd.known_hosts_line)
        known_hosts.chmod(0o644)

    def run(self, command: Command, expect: int = 0, text: str | None = None) -> str:
        """Run one command as on its host, or ``text`` in its place; its output."""
        text = self.translated(command.text) if text is None else text
        argv = ["bash", "-c", "\n".join((*self._exports, text))]
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
        if command.prompt.endswith("#"):
            where = self.checkout
            environment["HOME"] = str(self.path("/root"))
        else:
            where = self.home
            environment["HOME"] = str(self.home)
            identity = (f"--reuid={self.backup.uid}", f"--regid={self.backup.gid}")
            argv = ["setpriv", *identity, "--clear-groups", *argv]
        if text.startswith("export "):
            self._exports.append(text)
        # A file, for a process left in the background would keep a pipe open.
        with (self.root / "output").open("w+") as output:
            done = subprocess.run(
                argv,
                env=environment,
                cwd=where,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=COMMAND_SECONDS,
                check=False,
                # Nothing the quickstart makes may depend on it; so the strictest in use.
                umask=0o077 if command.prompt.endswith("#") else -1,
            )
            output.seek(0)
            said = output.read()
        assert done.returncode == expect, f"{command.shown}\n{text}\n{said}"
        if text.endswith(" &"):
            listening = re.search(r"UNIX-LISTEN:([^, ]+)", text)
            assert listening, text
            listener = Path(listening[1].replace("$HOME", str(self.home)))
            until(listener.is_socket, seconds=20, what="the listener")
        return said

    def processes(self) -> list[processes.Process]:
        """Everything that runs for either account."""
        uids = [pwd.getpwnam(name).pw_uid for name in (self.account, self.backup.name)]
        return [process for uid in uids for process in processes.of_account(uid)]


@pytest.fixture
def hosts(installations: Installations) -> Iterator[TwoHosts]:
    made = TwoHosts(installations.workplace)
    yield made
    made.sshd.stop()


def pattern_of(lines: list[str], translated: Callable[[str], str]) -> re.Pattern[str]:
    """What matches the output that a document shows."""
    parts = []
    for line in lines:
        if line == "...":
            parts.append(r"(?:.*\n)*?")
        else:
            parts.append(re.escape(translated(line)).replace(r"\.\.\.", ".*") + r" *\n")
    return re.compile("".join(parts))


UNINSTALL = "Uninstall"


@pytest.mark.needs_root
def test_quickstart(hosts: TwoHosts) -> None:
    steps = commands(QUICKSTART)
    follow(hosts, [command for command in steps if command.section != UNINSTALL])
    assert_forwards_nothing_else(hosts)
    www = hosts.path("/srv/www")
    restored = hosts.home / "borg-pull/restored" / www.relative_to("/")
    assert (restored / "secret").read_text() == "only root can read this\n"
    for path in (restored, *restored.rglob("*")):
        os.chown(path, 0, 0)
    assert differences(www, restored) == []
    until(lambda: not hosts.processes(), seconds=20, what="the end of all that was started")
    follow(hosts, commands(OPERATIONS))
    follow(hosts, [command for command in steps if command.section == UNINSTALL])
    assert_nothing_is_left(hosts)


def follow(hosts: TwoHosts, steps: list[Command]) -> None:
    """Do as the document says."""
    for command in steps:
        if command.shown == STARTS_SSHD:
            hosts.reload_sshd()
        if command.exception is not None:
            continue
        said = hosts.run(command)
        assert_as_shown(command, said, hosts.translated)
        if command.text == "ssh source hello":
            assert_hello_as_documented(json.loads(said))


def assert_as_shown(command: Command, said: str, translated: Callable[[str], str]) -> None:
    """The output is that of the document, as far as the document shows any."""
    if command.output:
        expected = pattern_of(command.output, translated)
        assert expected.fullmatch(said), f"{command.shown} said\n{said}"


def assert_nothing_is_left(hosts: TwoHosts) -> None:
    """Of all that was installed on the source; the copy of the audit log is the admin's."""
    kept = ("/root", "/srv/www", "/srv/db")
    shared = (
        *("/etc/logrotate.d", "/etc/tmpfiles.d"),
        *("/etc/ssh/sshd_config.d", "/etc/systemd/system"),
    )
    for known in hosts.directories:
        if known in kept + shared:
            continue
        assert not hosts.path(known).exists(), known
    for directory in shared:
        assert list(hosts.path(directory).iterdir()) == [], directory
    assert (hosts.path("/root") / "audit.jsonl").stat().st_size > 0
    with pytest.raises(KeyError):
        pwd.getpwnam(hosts.account)
    with pytest.raises(KeyError):
        grp.getgrnam(hosts.account)
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run(["ssh-keygen", "-y", "-f", hosts.home / ".ssh/borg-pull"], check=True)


SSH_THAT_HOLDS_ON = """\
#!/bin/sh
for word; do
    case $word in
        /*:/*) exec socat -u "UNIX-CONNECT:${word#*:}" - ;;
    esac
done
"""
TERMINATED = 143


def pull_script() -> str:
    [script] = [
        command.text
        for command in commands(QUICKSTART)
        if "> ~/borg-pull/pull-web1 <<" in command.text
    ]
    return script.partition("\n")[2].removesuffix("END")


@pytest.mark.parametrize("missing", ["passphrase", "socat", "temporary"])
def test_the_pull_script_tells_what_it_lacks_from_what_borg_says(
    tmp_path: Path, missing: str
) -> None:
    (tmp_path / "pull").write_text(pull_script())
    (tmp_path / "borg-pull").mkdir()
    if missing != "passphrase":
        (tmp_path / "borg-pull/web1.passphrase").write_text("secret\n")
    if missing != "temporary":
        (tmp_path / "tmp").mkdir()
    (tmp_path / "bin").mkdir()
    for name in ("mktemp", "rm", "sleep"):
        (tmp_path / "bin" / name).symlink_to(f"/usr/bin/{name}")
    done = subprocess.run(
        ["/bin/sh", tmp_path / "pull"],
        env={
            "HOME": str(tmp_path),
            "TMPDIR": str(tmp_path / "tmp"),
            "PATH": str(tmp_path / "bin"),
        },
        capture_output=True,
        check=False,
    )
    assert done.returncode == 254, done
    assert done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_pull_script_ends_what_it_started_when_it_is_ended(
    tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "pull").write_text(pull_script())
    (tmp_path / "borg-pull").mkdir()
    (tmp_path / "borg-pull/web1.passphrase").write_text("secret\n")
    subprocess.run(
        ["borg", "init", "--encryption=none", tmp_path / "borg-pull/web1"],
        check=True,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ssh").write_text(SSH_THAT_HOLDS_ON)
    (tmp_path / "bin/ssh").chmod(0o755)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = {"HOME": str(tmp_path), "TMPDIR": str(temporary)}
    pull = subprocess.Popen(
        ["/bin/sh", tmp_path / "pull"],
        env=environment | {"PATH": f"{tmp_path}/bin:/usr/bin:/bin"},
    )

    def started() -> list[processes.Process]:
        return [one for one in processes.snapshot() if processes.mentions(one, str(tmp_path))]

    def serves() -> bool:
        listener = "UNIX-LISTEN"  # names borg serve in its own command line
        return any(" serve " in one.command and listener not in one.command for one in started())

    try:
        until(serves, seconds=20, what="a borg serve that is connected")
        pull.send_signal(number)
        assert pull.wait(timeout=20) == TERMINATED
        until(lambda: not started(), seconds=20, what="the end of what the script started")
        assert list(temporary.iterdir()) == []
    finally:
        for one in started():
            one.send(signal.SIGKILL)
        pull.wait()


def assert_forwards_nothing_else(hosts: TwoHosts) -> None:
    """sshd's settings leave only what a pull needs: a Unix socket, from the peer to the source."""
    port = hosts.sshd.port
    service = hosts.root / "service.sock"
    listening = socket.socket(socket.AF_UNIX)
    with listening:
        listening.bind(str(service))
        service.chmod(0o777)
        listening.listen()
        for attempt in (
            "ssh -R 0:127.0.0.1:1 source hello",
            f"ssh -W 127.0.0.1:{port} source",
            f"""ssh -N -L ~/l.sock:{service} source & ssh=$!; trap 'kill $ssh' EXIT
            until [ -S ~/l.sock ]; do kill -0 $ssh && sleep 0.1; done
            socat -u UNIX-CONNECT:$HOME/l.sock - | grep -q . || exit 255""",
        ):
            said = hosts.run(Command("", "backup$", attempt), expect=255)
            assert "open failed" in said or "forwarding failed" in said, said
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.accept()


def assert_hello_as_documented(answer: dict[str, object]) -> None:
    shown = [
        json.loads(text)
        for _kind, text in blocks(PROJECT / "docs/protocol.md", ("json",))
        if '"hello"' in text
    ]
    assert [list(one) for one in shown] == [list(answer)]
    confinement = answer["confinement"]
    assert isinstance(confinement, dict)
    assert list(shown[0]["confinement"]) == list(confinement)
    assert confinement["capability"] is True
