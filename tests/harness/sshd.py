"""A real sshd of our own on loopback."""

from __future__ import annotations

import getpass
import re
import secrets
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from . import processes
from .builds import PROJECT
from .wait import until
from .workplace import ACCOUNT_PREFIX, IS_ROOT, Account, Workplace

SHIPPED_SETTINGS = PROJECT / "contrib/sshd/borg-pull.conf"
PORT_TRIES = 20


def shipped_settings(user: str, keys: str) -> str:
    """The drop-in that ships, for the accounts that ``user`` matches and with ``keys`` for the
    file of their keys; all else in it is as it ships."""
    text = SHIPPED_SETTINGS.read_text()
    for shipped, ours in (
        ("Match User borg-pull\n", f"Match User {user}\n"),
        ("AuthorizedKeysFile /etc/borg-pull/authorized_keys\n", f"AuthorizedKeysFile {keys}\n"),
    ):
        assert text.count(shipped) == 1, f"{SHIPPED_SETTINGS} has no line {shipped!r}"
        text = text.replace(shipped, ours)
    return text


class SshServer:
    """One sshd under the settings that ship, started by ``start`` and ended with all its sessions
    by ``stop``.

    ``first`` are settings that stand before those that ship, and so take their place. ``under`` is
    a command that runs the command its arguments are.
    """

    def __init__(
        self,
        workplace: Workplace,
        *,
        first: Sequence[str] = (),
        under: Sequence[str | Path] = (),
    ) -> None:
        self.directory = workplace.directory("sshd")
        self._keys = self.directory / "keys"
        self._keys.mkdir()
        self._keys.chmod(0o755)
        self._host_key = self.directory / "host_key"
        self._drop_ins = self.directory / "sshd_config.d"
        self._drop_ins.mkdir()
        self._first = first
        self._under = under
        self._daemon: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.log = self.directory / "log"
        make_key(self._host_key)

    @property
    def known_hosts_line(self) -> str:
        """The line that lets a client trust this sshd and no other."""
        kind, key, *_ = self._host_key.with_suffix(".pub").read_text().split()
        return f"[127.0.0.1]:{self.port} {kind} {key}\n"

    @property
    def daemon_pid(self) -> int:
        """The listening process."""
        assert self._daemon is not None, "not started"
        return self._daemon.pid

    def start(self) -> None:
        """Start on a free port. Raises AssertionError with sshd's log when it will not."""
        if IS_ROOT:
            # Its package makes it at boot only; without it sshd refuses to start.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        for _ in range(PORT_TRIES):
            if self._started_on(_free_port()):
                return
        raise AssertionError(f"sshd does not start:\n{self.log.read_text(errors='replace')}")

    def _started_on(self, port: int) -> bool:
        configuration = self.directory / "sshd_config"
        configuration.write_text(self._configuration(port))
        sshd = _program("sshd")
        # An end of the test run by SIGKILL must end sshd too.
        daemon = subprocess.Popen(
            [
                *(_program("setpriv"), "--pdeathsig", "KILL"),
                *self._under,
                *(sshd, "-D", "-f", str(configuration), "-E", str(self.log)),
            ],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

        def answers() -> str | None:
            if daemon.poll() is not None:
                return "ended"
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
                    return "accepts" if connection.recv(4) == b"SSH-" else None
            except OSError:
                return None

        if until(answers, seconds=20, what="sshd to accept") == "ended":
            return False
        self._daemon, self.port = daemon, port
        return True

    def _configuration(self, port: int) -> str:
        # Accounts of this run and of others; without root sshd lets in the current user alone.
        user = f"{ACCOUNT_PREFIX}*" if IS_ROOT else getpass.getuser()
        drop_ins = {
            "first.conf": "\n".join((f"Match User {user}", *self._first, "")),
            "borg-pull.conf": shipped_settings(user, f"{self._keys}/%u"),
        }
        for name, text in drop_ins.items():
            (self._drop_ins / name).write_text(text)
        lines = [
            *(f"Include {self._drop_ins}/{name}" for name in drop_ins),
            f"Port {port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {self._host_key}",
            "PidFile none",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            # Without root the directories above the keys are the user's or /tmp, which it refuses.
            f"StrictModes {'yes' if IS_ROOT else 'no'}",
            f"SetEnv BORG_PULL_TEST_RUN={self.directory.parent}",
            "MaxStartups 1000",
            "LoginGraceTime 60",
            "UseDNS no",
            "PrintMotd no",
            # What ships raises it for the account.
            "LogLevel INFO",
        ]
        if _openssh_version() >= (9, 8):
            lines.append("PerSourcePenalties no")
        return "\n".join(lines) + "\n"

    def authorize(self, account: Account, line: str) -> None:
        """Add one authorized_keys line for ``account``; sshd reads the file at each login."""
        path = self._keys / account.name
        before = path.read_text() if path.exists() else ""
        draft = self._keys / f".{secrets.token_hex(4)}"
        draft.write_text(before + line.rstrip("\n") + "\n")
        draft.chmod(0o644)
        draft.replace(path)

    def sessions(self, account: Account) -> list[processes.Process]:
        """The sshd processes of ``account``'s sessions, the privileged one of a pair first."""
        if self._daemon is None:
            return []
        return [
            process
            for process in processes.descendants(self._daemon.pid)
            if process.name.startswith("sshd") and account.name in process.command
        ]

    def stop(self) -> None:
        """Kill sshd, its sessions and all they run."""
        if self._daemon is None:
            return
        for process in processes.descendants(self._daemon.pid):
            process.send(signal.SIGKILL)
        self._daemon.kill()
        self._daemon.wait()
        self._daemon = None


def make_key(path: Path) -> str:
    """Make an ed25519 key pair at ``path``; the public line."""
    subprocess.run(
        [_program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", path],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    return path.with_suffix(".pub").read_text().strip()


def _program(name: str) -> str:
    for directory in ("/usr/sbin", "/usr/bin", "/sbin", "/bin"):
        if (Path(directory) / name).exists():
            return f"{directory}/{name}"
    raise AssertionError(f"{name} is not installed")


def _openssh_version() -> tuple[int, int]:
    said = subprocess.run([_program("ssh"), "-V"], capture_output=True, text=True, check=True)
    found = re.search(r"OpenSSH_(\d+)\.(\d+)", said.stderr)
    assert found, said.stderr
    return int(found[1]), int(found[2])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
