"""Pull real backups through a private sshd on loopback, and show what happened (``make demo``).

usage: packaging/demo.py [--bundle DIRECTORY]

As root, source and backup server are two throw-away system accounts, and a file that only root can
read shows what the one capability is for. Otherwise both are the current user, and the demo says
what it leaves out. It checks everything it claims; nothing it made is left, however it ends.
Exit code 0: every check held; 1: one did not, or something failed; 130: interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import pwd
import random
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from borg_pull.errors import printable
from borg_pull.linux import process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

T = TypeVar("T")

PROJECT = Path(__file__).resolve().parent.parent
IS_ROOT = os.geteuid() == 0
CLIENT = "luna"
SECRET = "only root can read this\n"  # noqa: S105  # content of a demo file
PORT_TRIES = 10
START_SECONDS = 20.0
STEP_SECONDS = 100.0
END_SECONDS = 20.0
WIDTH = 100
CHECK_LINES = 12  # of check: every warning there can be here, and the verdict
# What of borg's --stats is worth a line.
STATISTICS = ("Number of files", "Original size", "This archive", "All archives")


class DemoError(Exception):
    """Something did not do what this demo claims."""


class Screen:
    """What the reader sees: numbered steps, commands, trimmed output, what was checked."""

    def __init__(self) -> None:
        self.replacements: dict[str, str] = {}
        """Long texts and what stands for them on the screen."""
        self._steps = 0
        self.checks = 0
        self._colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    def step(self, title: str) -> None:
        """Begin the next step."""
        self._steps += 1
        print()
        self._print(f"{self._steps}. {title}", "1")

    def note(self, text: str) -> None:
        """Say something about the step."""
        self._print(textwrap.fill(text, WIDTH, initial_indent="   ", subsequent_indent="   "))

    def command(self, where: str, text: str) -> None:
        """Show a command that is about to run ``where``."""
        self._print(f"   {where} {text}", "36")

    def output(self, text: str, limit: int, about: Sequence[str] = ("",)) -> None:
        """Show up to ``limit`` lines of a command's output, of those that hold an ``about``."""
        lines = [
            line.rstrip()
            for line in text.splitlines()
            if line.strip() and any(word in line for word in about)
        ]
        for line in lines[:limit]:
            self._print(f"      {printable(line)}", "2")
        if len(lines) > limit:
            self._print(f"      ... ({len(lines) - limit} more lines)", "2")

    def check(self, held: object, claim: str) -> None:
        """Count and show a claim that held. Raises DemoError for one that did not."""
        if not held:
            raise DemoError(f"this did not hold: {claim}")
        self.checks += 1
        self._print(f"   ok: {claim}", "32")

    def _print(self, text: str, style: str = "") -> None:
        for long, short in self.replacements.items():
            text = text.replace(long, short)
        print(f"\033[{style}m{text}\033[0m" if style and self._colour else text, flush=True)


@dataclass(frozen=True)
class Actor:
    """Whose commands a step runs: the account, and its prompt on the screen."""

    prompt: str
    uid: int
    gid: int
    home: Path

    def argv(self, command: Sequence[str]) -> list[str]:
        """``command`` as this account."""
        if self.uid == os.geteuid():
            return list(command)
        identity = (f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups")
        return [program("setpriv"), *identity, *command]

    def environment(self) -> dict[str, str]:
        """Nothing of the caller's environment: it must not decide how a demo ends."""
        return {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.home),
            "LC_ALL": "C.UTF-8",
            "COLUMNS": str(WIDTH),
            "BORG_BASE_DIR": str(self.home),
            "BORG_PASSCOMMAND": f"cat {self.home}/passphrase",
        }


class Demo:
    """The accounts, directories and processes of one demo."""

    def __init__(self, screen: Screen, bundle: Path, cleanup: contextlib.ExitStack) -> None:
        self.screen = screen
        self.cleanup = cleanup
        self.root = self._directory()
        print(f"Everything stands below D={self.root}; it goes when the demo ends.")
        screen.replacements[str(self.root)] = "$D"
        self.admin = Actor("admin#" if IS_ROOT else "admin$", os.geteuid(), os.getegid(), self.root)
        # Last in, first out: the processes end before their accounts and directories go.
        if IS_ROOT and not Path("/run/sshd").exists():
            Path("/run/sshd").mkdir(mode=0o755)  # its package makes it at boot only
            cleanup.callback(Path("/run/sshd").rmdir)
        self.source = self._actor("source$", "source")
        self.backup = self._actor("backup$", "backup")
        cleanup.callback(end_descendants)
        self.bundle = self._installed(bundle)
        self.data = self.root / "source/data"
        self.whitelist = self.root / "source/whitelist.toml"
        self.audit_log = self.source.home / "audit.jsonl"
        self.repository = self.backup.home / "repository"
        self.remote_socket = self.source.home / f"run/{CLIENT}.sock"
        self.local_socket = self.backup.home / "listener.sock"
        self.ssh_config = self.backup.home / "ssh_config"

    @property
    def programs(self) -> Path:
        """Directory of the three programs."""
        return self.bundle

    def _directory(self) -> Path:
        # A program that starts with a capability takes no orders from below a directory that
        # others can write, and /tmp is one.
        base = "/var/lib" if IS_ROOT else None
        root = Path(tempfile.mkdtemp(prefix="borg-pull-demo-", dir=base))
        self.cleanup.callback(shutil.rmtree, root)
        root.chmod(0o755)
        (root / "source").mkdir(mode=0o755)
        return root

    def _actor(self, prompt: str, role: str) -> Actor:
        home = self.root / "source/home" if role == "source" else self.root / role
        home.mkdir(mode=0o700)
        if not IS_ROOT:
            return Actor(prompt, os.geteuid(), os.getegid(), home)
        name = f"bpdemo-{secrets.token_hex(3)}"
        self.screen.replacements[name] = f"demo-{role}"
        # '*' and not '!': without PAM, sshd takes the latter for a locked account.
        options = ("--system", "--user-group", "--no-create-home", "--password", "*")
        quietly(
            [program("useradd"), *options, "--home-dir", str(home), "--shell", "/bin/sh", name],
            tries=5,
        )
        self.cleanup.callback(quietly, [program("userdel"), name], tries=5)
        account = pwd.getpwnam(name)
        os.chown(home, account.pw_uid, account.pw_gid)
        return Actor(prompt, account.pw_uid, account.pw_gid, home)

    def _installed(self, bundle: Path) -> Path:
        if not (bundle / "borg-pull-source").exists():
            raise DemoError(f"no frozen bundle at {bundle}; make frozen builds it")
        if not IS_ROOT:
            if not os.access(bundle / "borg-pull-source", os.X_OK):
                raise DemoError(f"you may not start {bundle}/borg-pull-source; freeze your own")
            print(f"The programs are in B={bundle}.")
            self.screen.replacements[str(bundle)] = "$B"
            return bundle
        copy = self.root / "bundle"
        shutil.copytree(bundle, copy, symlinks=True)
        for path in (copy, *copy.rglob("*")):
            os.chown(path, 0, 0, follow_symlinks=False)
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & ~0o022)
        return copy

    def login(self) -> str:
        """Name of the account the backup server logs in to."""
        return pwd.getpwuid(self.source.uid).pw_name

    def run(
        self,
        actor: Actor,
        command: Sequence[str],
        *,
        expect: int = 0,
        limit: int = 0,
        about: Sequence[str] = ("",),
        stdin: Path | None = None,
        shown: str | None = None,
    ) -> str:
        """Show and run one command; its output and errors. Raises DemoError for a wrong exit."""
        text = shlex.join(command) + (f" < {stdin}" if stdin else "")
        self.screen.command(actor.prompt, shown or text)
        with contextlib.ExitStack() as files:
            source = files.enter_context(stdin.open("rb")) if stdin else subprocess.DEVNULL
            done = subprocess.run(
                actor.argv(command),
                env=actor.environment(),
                cwd=actor.home,
                stdin=source,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=STEP_SECONDS,
                # Ctrl-C is for the demo, which then ends what it started in order.
                start_new_session=True,
                check=False,
            )
        output = done.stdout.decode("utf-8", "replace")
        if done.returncode == expect:
            self.screen.output(output, limit, about)
        else:
            self.screen.output(output, len(output))
            raise DemoError(f"exit code {done.returncode} instead of {expect} of: {text}")
        return output

    def start(self, actor: Actor, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Show a command and start it in the background."""
        self.screen.command(actor.prompt, f"{shlex.join(command)} &")
        return subprocess.Popen(
            # Should the demo itself be killed, its daemons go with it.
            [program("setpriv"), "--pdeathsig", "KILL", *actor.argv(command)],
            env=actor.environment(),
            cwd=actor.home,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def write(self, path: Path, text: str, owner: Actor, mode: int) -> None:
        """Write a file of ``owner``'s."""
        path.write_text(text)
        path.chmod(mode)
        os.chown(path, owner.uid, owner.gid)


def main(arguments: Sequence[str]) -> int:
    """Run the demo; the exit code."""
    parser = argparse.ArgumentParser(description="Pull real backups on loopback, and show it.")
    parser.add_argument("--bundle", type=Path, default=PROJECT / "dist/borg-pull")
    bundle = parser.parse_args(arguments).bundle.resolve()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    process.become_subreaper()  # so that whatever is orphaned is found and ended with the rest
    screen = Screen()
    started = time.monotonic()
    cleanup = contextlib.ExitStack()
    try:
        try:
            with undisturbed():
                demo = Demo(screen, bundle, cleanup)
            show(demo)
        finally:
            with undisturbed(), cleanup:
                print("\nremoving everything this demo made", flush=True)
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    except (DemoError, OSError, subprocess.SubprocessError) as error:
        print(f"demo: {printable(str(error))}", file=sys.stderr)
        return 1
    print(f"{screen.checks} checks held, in {time.monotonic() - started:.0f} seconds.")
    return 0


def show(demo: Demo) -> None:
    """The demo, a step a line."""
    prepare_source(demo)
    allow_the_client(demo)
    start_sshd(demo)
    make_repository(demo)
    first = pull(demo, "first", "The first backup")
    change_data(demo)
    second = pull(demo, "second", "The second backup: what the repository has is not sent again")
    compare_runs(demo, first, second)
    be_refused(demo)
    compare_trees(demo)
    read_audit_log(demo)


def prepare_source(demo: Demo) -> None:
    """Data to back up, and the forced command with its capability."""
    demo.screen.step("The source: data to back up, and the programs")
    fill(demo.data)
    if not IS_ROOT:
        demo.screen.note(
            "Not root, so left out: accounts of their own for source and backup server, the "
            "capability of borg-pull-source, and a file that only root can read. Source and "
            "backup server are you; borg reads what you can read."
        )
        return
    target = demo.programs / "borg-pull-source"
    secret = demo.data / "root-only.txt"
    secret.write_text(SECRET)
    demo.run(demo.admin, ["chmod", "0600", str(secret)])
    demo.run(demo.admin, ["chgrp", demo.login(), str(target)])
    demo.run(demo.admin, ["chmod", "0750", str(target)])
    demo.run(demo.admin, ["setcap", "cap_dac_read_search=ep", str(target)])
    demo.run(demo.admin, ["ls", "-l", str(secret), str(target)], limit=2)
    demo.run(demo.source, ["cat", str(secret)], expect=1, limit=1)
    demo.screen.check(True, "the account itself cannot read root's file")


def fill(data: Path) -> None:
    """Some 30 MB in 600 files, half of it compressible."""
    generator = random.Random(1)  # noqa: S311  # sample data
    words = generator.randbytes(1024).hex().encode()
    for number in range(600):
        directory = data / f"documents/{number // 100}"
        directory.mkdir(parents=True, exist_ok=True)
        content = generator.randbytes(24 * 1024) + words * 12
        (directory / f"{number}.dat").write_bytes(content)
    (data / "a name with spaces.txt").write_text("quoted on its way to borg\n")
    (data / "a link").symlink_to("a name with spaces.txt")


def allow_the_client(demo: Demo) -> None:
    """The whitelist, checked, and the key that may log in."""
    demo.screen.step("The source: what the client may do")
    run = demo.source.home / "run"
    run.mkdir(mode=0o700)
    os.chown(run, demo.source.uid, demo.source.gid)
    key = demo.backup.home / "key"
    keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", CLIENT, "-f", str(key)]
    demo.run(demo.backup, keygen)
    public = key.with_suffix(".pub").read_text().strip()
    text = f"""\
[runtime]
socket_dir = "{run}"
home = "{demo.source.home}"

[client.{CLIENT}]
paths = ["{demo.data}"]
allow = ["create"]
passphrase_stdin = true    # no secret rests on the source
refuse_empty = true
keys = ["{public}"]
"""
    demo.write(demo.whitelist, text, demo.admin, 0o644)
    demo.screen.replacements[public] = f"ssh-ed25519 AAAA... {CLIENT}"
    demo.run(demo.admin, ["cat", str(demo.whitelist)], limit=20)
    admin = str(demo.programs / "borg-pull-admin")
    demo.run(demo.admin, [admin, "check", str(demo.whitelist)], limit=CHECK_LINES)
    lines = demo.run(demo.admin, [admin, "authorized-keys", str(demo.whitelist)], limit=2)
    demo.screen.check(
        lines.startswith("restrict,port-forwarding,permitopen=") and public.split()[1] in lines,
        "the key may run the forced command and forward sockets, nothing else",
    )
    demo.write(demo.root / "source/authorized_keys", lines, demo.admin, 0o644)


def start_sshd(demo: Demo) -> None:
    """A private sshd, and the client's way to it."""
    demo.screen.step("The source: a private sshd on loopback")
    directory = demo.root / "source"
    host_key = directory / "host_key"
    quietly(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(host_key)])
    config = directory / "sshd_config"
    for _ in range(PORT_TRIES):
        port = free_port()
        config.write_text(sshd_config(demo, port))
        log = ("-E", str(directory / "sshd.log"))
        daemon = demo.start(demo.admin, [program("sshd"), "-D", *log, "-f", str(config)])
        if until(functools.partial(answers, daemon, port), "sshd to answer") == "yes":
            break
    else:
        raise DemoError("sshd does not start")
    demo.screen.check(daemon.poll() is None, f"sshd accepts connections on 127.0.0.1 port {port}")
    kind, host_public, *_ = host_key.with_suffix(".pub").read_text().split()
    known_hosts = demo.backup.home / "known_hosts"
    demo.write(known_hosts, f"[127.0.0.1]:{port} {kind} {host_public}\n", demo.backup, 0o644)
    demo.write(demo.ssh_config, ssh_config(demo, port, known_hosts), demo.backup, 0o644)


def sshd_config(demo: Demo, port: int) -> str:
    """The settings that ship, for this account and for a daemon of our own."""
    keys = f"{demo.root}/source/authorized_keys"
    settings = (PROJECT / "contrib/sshd/borg-pull.conf").read_text()
    settings = settings.replace("Match User borg-pull", f"Match User {demo.login()}")
    settings = settings.replace("/etc/borg-pull/authorized_keys", keys)
    return f"""\
ListenAddress 127.0.0.1:{port}
HostKey {demo.root}/source/host_key
PidFile none
UsePAM no
StrictModes {"yes" if IS_ROOT else "no"}
AllowUsers {demo.login()}
LogLevel ERROR
{settings}"""


def ssh_config(demo: Demo, port: int, known_hosts: Path) -> str:
    """What makes ``ssh source`` reach the private sshd and trust nobody else."""
    return f"""\
Host source
HostName 127.0.0.1
Port {port}
User {demo.login()}
IdentityFile {demo.backup.home}/key
IdentitiesOnly yes
IdentityAgent none
BatchMode yes
StrictHostKeyChecking yes
UserKnownHostsFile {known_hosts}
GlobalKnownHostsFile /dev/null
ExitOnForwardFailure yes
LogLevel ERROR
"""


def make_repository(demo: Demo) -> None:
    """An encrypted repository; its passphrase stays with the backup server."""
    demo.screen.step("The backup server: a repository of its own")
    passphrase = demo.backup.home / "passphrase"
    demo.write(passphrase, secrets.token_urlsafe(24) + "\n", demo.backup, 0o600)
    demo.screen.note(f"For borg here, BORG_PASSCOMMAND is set to: cat {passphrase}")
    demo.run(
        demo.backup,
        ["borg", "init", "--encryption=repokey-blake2", str(demo.repository)],
    )
    if IS_ROOT:
        demo.run(demo.source, ["ls", str(demo.repository)], expect=2, limit=1)
        demo.screen.check(True, "the source's account has no access to the repository")


def pull(demo: Demo, archive: str, title: str) -> int:
    """One pull: a listener that serves the repository, and ssh that forwards it; bytes sent."""
    demo.screen.step(title)
    listener = listen(demo)
    started = time.monotonic()
    demo.run(
        demo.backup,
        [
            *("ssh", "-F", str(demo.ssh_config), "-R", f"{demo.remote_socket}:{demo.local_socket}"),
            *("source", "--", "--stats", "create", str(demo.repository), archive, str(demo.data)),
        ],
        stdin=demo.backup.home / "passphrase",
        limit=20,
        about=STATISTICS,
    )
    seconds = time.monotonic() - started
    if listener.wait(END_SECONDS) != 0:
        raise DemoError(f"the listener ended with exit code {listener.returncode}")
    record = audit_records(demo)[-1]
    demo.screen.check(
        record["event"] == "complete" and record["result"] == "success",
        f"borg made archive {archive} in {seconds:.1f} s",
    )
    if not isinstance(sent := record["bytes_to_peer"], int):
        raise DemoError("the audit record does not say how much was sent")
    demo.screen.check(not demo.remote_socket.exists(), "the forwarded socket is gone again")
    return sent


def listen(demo: Demo) -> subprocess.Popen[bytes]:
    """Serve the repository on a private socket, to one connection, for appending only."""
    serve = ["borg", "serve", "--append-only", "--restrict-to-repository", str(demo.repository)]
    listener = demo.start(
        demo.backup,
        # 64 KiB blocks; a minute for borg serve to end in order once the source has.
        [
            *("socat", "-b65536", "-t60"),
            *(f"UNIX-LISTEN:{demo.local_socket},umask=077", f"EXEC:{shlex.join(serve)}"),
        ],
    )
    until(
        lambda: demo.local_socket.is_socket() or listener.poll() is not None,
        "the listener's socket",
    )
    return listener


def change_data(demo: Demo) -> None:
    """What happens to data between two backups."""
    (demo.data / "documents/3/300.dat").write_bytes(b"changed\n" * 4096)
    (demo.data / "documents/new.txt").write_text("new\n")
    (demo.data / "documents/5/599.dat").unlink()


def compare_runs(demo: Demo, first: int, second: int) -> None:
    """The second run sends a small part of the first."""
    demo.screen.check(
        second * 20 < first,
        f"{first / 1000:.0f} kB went through the socket, then {second / 1000:.0f} kB: "
        "one file is new, one has changed, one is gone",
    )


def be_refused(demo: Demo) -> None:
    """What the whitelist does not name does not run."""
    demo.screen.step("Refused requests: one line, one exit code, nothing run")
    ssh = ["ssh", "-F", str(demo.ssh_config), "source", "--"]
    for request, code, claim in (
        ("create /r stolen /etc/shadow", 77, "a path that is not on the list is refused"),
        ("prune /r --keep-last 1 --glob-archives f*", 77, "so is a verb"),
        ("cat /etc/shadow", 64, "and what is no request at all"),
    ):
        output = demo.run(demo.backup, [*ssh, *request.split()], expect=code, limit=3)
        record = audit_records(demo)[-1]
        demo.screen.check(
            output.count("\n") == 1 and record["event"] == "refused" and record["exit"] == code,
            f"{claim}: exit code {code}, and on record",
        )
    demo.screen.note("The admin can ask beforehand what would become of a request:")
    explain = (str(demo.programs / "borg-pull-admin"), "explain", str(demo.whitelist), CLIENT)
    demo.run(demo.admin, [*explain, "create /r stolen /etc/shadow"], expect=77, limit=5)


def compare_trees(demo: Demo) -> None:
    """The archive, extracted, equals the original."""
    demo.screen.step("The backup server: list, extract, compare")
    listing = demo.run(demo.backup, ["borg", "list", str(demo.repository)], limit=4)
    names = [line.split()[0] for line in listing.splitlines()]
    demo.screen.check(names == ["first", "second"], "both archives are there")
    restored = demo.backup.home / "restored"
    restored.mkdir(mode=0o700)
    os.chown(restored, demo.backup.uid, demo.backup.gid)
    extract = ["borg", "extract", f"{demo.repository}::second"]
    demo.run(
        demo.backup,
        ["sh", "-c", f"cd {shlex.quote(str(restored))} && {shlex.join(extract)}"],
        shown=f"cd {restored} && {shlex.join(extract)}",
    )
    copy = restored / demo.data.relative_to("/")
    demo.run(demo.admin, ["diff", "--recursive", "--no-dereference", str(demo.data), str(copy)])
    demo.screen.check(
        properties(demo.data) == properties(copy),
        f"content, modes and times of all {len(properties(copy))} files and directories are equal",
    )
    if IS_ROOT:
        output = demo.run(demo.backup, ["cat", str(copy / "root-only.txt")], limit=1)
        demo.screen.check(output == SECRET, "root's file was pulled, by the capability alone")


def properties(root: Path) -> list[tuple[str, int, int]]:
    """(name, mode, time of modification in ns) of all below ``root``."""
    return sorted(
        (str(path.relative_to(root)), path.lstat().st_mode, path.lstat().st_mtime_ns)
        for path in root.rglob("*")
    )


def read_audit_log(demo: Demo) -> None:
    """Who took what, and that nobody altered it; then that somebody did."""
    demo.screen.step("The source: the audit log")
    admin = str(demo.programs / "borg-pull-admin")
    demo.run(demo.admin, [admin, "audit", "show", str(demo.audit_log)], limit=30)
    demo.run(demo.admin, [admin, "audit", "verify", str(demo.audit_log)], limit=4)
    records = audit_records(demo)
    demo.screen.check(
        [record["event"] for record in records] == ["start", "complete"] * 2 + ["refused"] * 3,
        "every request is on record, and the chain of hashes is whole",
    )
    fingerprint = demo.run(
        demo.backup, ["ssh-keygen", "-l", "-f", str(demo.backup.home / "key.pub")], limit=1
    ).split()[1]
    demo.screen.check(
        all(record["key"] == fingerprint for record in records), "each record names the key"
    )
    confinement = records[0]["confinement"]
    demo.screen.note(f"Confinement of borg, from the log: {json.dumps(confinement)}")
    demo.screen.check(
        isinstance(confinement, dict)
        and confinement["no_new_privs"]
        and confinement["capability"] is IS_ROOT,
        "borg ran with CAP_DAC_READ_SEARCH and could gain nothing more"
        if IS_ROOT
        else "borg ran without any capability and could gain none",
    )
    demo.screen.note("The same with a copy of the log in which one word is another:")
    altered = demo.root / "source/altered.jsonl"
    demo.run(
        demo.admin,
        ["sh", "-c", f"sed '5s/shadow/passwd/' {demo.audit_log} > {altered}"],
        shown=f"sed '5s/shadow/passwd/' {demo.audit_log} > {altered}",
    )
    demo.run(demo.admin, [admin, "audit", "verify", str(altered)], expect=1, limit=1)
    demo.screen.check(True, "an altered record is found")


def audit_records(demo: Demo) -> list[dict[str, object]]:
    """All records, oldest first."""
    return [json.loads(line) for line in demo.audit_log.read_text().splitlines()]


def program(name: str) -> str:
    """Full path of a system program; sbin is not on everyone's PATH. Raises DemoError."""
    found = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if found is None:
        raise DemoError(f"{name} is not installed")
    return found


def quietly(command: Sequence[str], tries: int = 1) -> None:
    """Run a command nobody needs to see; others may hold the account database. Raises DemoError."""
    for attempt in range(1, tries + 1):
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            start_new_session=True,
            check=False,
        )
        if done.returncode == 0:
            return
        if attempt < tries:
            time.sleep(1)
    raise DemoError(f"{command[0]} failed: {done.stderr.strip()}")


def free_port() -> int:
    """A port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(daemon: subprocess.Popen[bytes], port: int) -> str | None:
    """``yes`` once sshd greets, ``no`` when it has ended, else None."""
    if daemon.poll() is not None:
        return "no"
    with (
        contextlib.suppress(OSError),
        socket.create_connection(("127.0.0.1", port), timeout=2) as connection,
    ):
        return "yes" if connection.recv(4) == b"SSH-" else None
    return None


def until(condition: Callable[[], T | None], what: str) -> T:
    """The first truthy answer of ``condition``. Raises DemoError when none comes in time."""
    deadline = time.monotonic() + START_SECONDS
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise DemoError(f"waited {START_SECONDS:.0f} seconds in vain for {what}")
        time.sleep(0.02)
    return answer


def end_descendants() -> None:
    """End every process below this one, and wait until none is left. Raises DemoError."""
    deadline = time.monotonic() + END_SECONDS
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        left = list(descendants(os.getpid()))
        if not left:
            return
        if time.monotonic() > deadline:
            raise DemoError(f"processes {left} do not end")
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def descendants(ancestor: int) -> Iterator[int]:
    """Pids of all processes below ``ancestor``."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    waiting = [ancestor]
    while waiting:
        found = children.get(waiting.pop(), [])
        yield from found
        waiting += found


def interrupted(_number: int, _frame: object) -> NoReturn:
    """SIGTERM and SIGHUP end the demo like Ctrl-C: in order."""
    raise KeyboardInterrupt


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Put signals off until the block has ended: what it makes and removes is made or removed
    whole. Raises KeyboardInterrupt then."""
    noted: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _frame: noted.append(number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if noted:
        raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
