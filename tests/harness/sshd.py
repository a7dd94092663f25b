"""A real sshd of our own on loopback."""

from __future__ import annotations

import re
import secrets
import signal
import socket
import subprocess
from pathlib import Path

from . import processes
from .wait import until
from .workplace import IS_ROOT, Account, Workplace

PORT_TRIES = 20
KEEP_ALIVE_MISSES = 2


class SshServer:
    """One sshd, started by ``start`` and ended with all its sessions by ``stop``.

    ``client_alive_interval`` is in seconds; 0 never asks a silent client whether it lives.
    """

    def __init__(
        self,
        workplace: Workplace,
        *,
        client_alive_interval: int = 0,
        stream_local_bind_unlink: bool = False,
    ) -> None:
        self.directory = workplace.directory("sshd")
        self._keys = self.directory / "keys"
        self._keys.mkdir()
        self._keys.chmod(0o755)
        self._host_key = self.directory / "host_key"
        self._client_alive_interval = client_alive_interval
        self._stream_local_bind_unlink = stream_local_bind_unlink
        self._daemon: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.log = self.directory / "log"
        make_key(self._host_key)

    @property
    def known_hosts_line(self) -> str:
        """The line that lets a client trust this sshd and no other."""
        kind, key, *_ = self._host_key.with_suffix(".pub").read_text().split()
        return f"[127.0.0.1]:{self.port} {kind} {key}\n"

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
        lines = [
            f"Port {port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {self._host_key}",
            "PidFile none",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PubkeyAuthentication yes",
            f"AuthorizedKeysFile {self._keys}/%u",
            # Without root the directories above are the user's or /tmp, which it refuses.
            f"StrictModes {'yes' if IS_ROOT else 'no'}",
            "ExposeAuthInfo yes",
            "AllowStreamLocalForwarding remote",
            # With "no" it refuses to forward Unix sockets too, whatever the line above says.
            "AllowTcpForwarding remote",
            "PermitListen none",
            "PermitOpen none",
            "AllowAgentForwarding no",
            "X11Forwarding no",
            "PermitTTY no",
            # A careless admin's line: nothing of it may reach borg.
            "AcceptEnv BORG_* LD_* PYTHON* _PYI_* TMPDIR LC_*",
            "PermitUserRC no",
            "PermitTunnel no",
            f"StreamLocalBindUnlink {'yes' if self._stream_local_bind_unlink else 'no'}",
            f"ClientAliveInterval {self._client_alive_interval}",
            f"ClientAliveCountMax {KEEP_ALIVE_MISSES}",
            "MaxStartups 1000",
            "LoginGraceTime 60",
            "UseDNS no",
            "PrintMotd no",
            "LogLevel VERBOSE",
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
