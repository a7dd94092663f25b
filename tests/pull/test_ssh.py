"""No configuration of the user or of the system says how our ssh goes about a pull.

Threat: a line that somebody once wrote into ~/.ssh/config for other purposes runs a command,
forwards an agent, joins a connection that stands already, or accepts any host key, in a program
that runs each night.
"""

from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path

import pytest

from borg_pull.pull.config import Source
from borg_pull.pull.ssh import Forwarding, command
from tests.harness.site import Installations

pytestmark = pytest.mark.needs_root

HOSTILE = """\
Match exec "touch {marker}"
    User mallory
Host *
    AddKeysToAgent yes
    AddressFamily inet6
    BatchMode no
    CertificateFile {home}/certificate
    CheckHostIP yes
    Ciphers aes256-cbc
    ClearAllForwardings yes
    Compression yes
    ConnectionAttempts 99
    ControlMaster auto
    ControlPath {home}/control
    ControlPersist yes
    DynamicForward 1080
    EnableEscapeCommandline yes
    EscapeChar ~
    ExitOnForwardFailure no
    ForkAfterAuthentication yes
    ForwardAgent yes
    ForwardX11 yes
    ForwardX11Trusted yes
    GatewayPorts yes
    GSSAPIAuthentication yes
    GSSAPIDelegateCredentials yes
    HostbasedAuthentication yes
    HostKeyAlias elsewhere
    HostName elsewhere.example.org
    IdentityAgent SSH_AUTH_SOCK
    IdentityFile {home}/other
    IPQoS none
    KbdInteractiveAuthentication yes
    KnownHostsCommand /bin/touch {marker}
    LocalCommand touch {marker}
    LocalForward 8080 localhost:80
    LogLevel DEBUG3
    LogVerbose *:*:*
    NumberOfPasswordPrompts 9
    PasswordAuthentication yes
    PermitLocalCommand yes
    Port 2222
    ProxyCommand touch {marker}
    RekeyLimit 1M
    RemoteCommand touch {marker}
    RemoteForward 8081 localhost:81
    RequestTTY force
    SendEnv *
    ServerAliveCountMax 1000
    ServerAliveInterval 0
    SessionType none
    SetEnv BORG_PASSPHRASE=secret
    StdinNull yes
    StreamLocalBindUnlink no
    StrictHostKeyChecking no
    SyslogFacility USER
    TCPKeepAlive no
    Tunnel yes
    UpdateHostKeys yes
    User mallory
    UserKnownHostsFile /dev/null
    VerifyHostKeyDNS yes
    VisualHostKey yes
"""


class User:
    """An account, and what its ssh makes of an argument list (ssh -G, which connects nowhere)."""

    def __init__(self, installations: Installations) -> None:
        self.home = installations.workplace.directory("home", 0o700)
        name = installations.workplace._new_name()
        subprocess.run(
            ["useradd", "--system", "--no-create-home", "--home-dir", str(self.home), name],
            check=True,
            stderr=subprocess.DEVNULL,
        )
        entry = pwd.getpwnam(name)
        os.chown(self.home, entry.pw_uid, entry.pw_gid)
        self.marker = self.home / "marker"
        self._identity = ("setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}")

    def is_hostile(self) -> None:
        """Write a configuration that sets all that ours must not be moved by."""
        directory = self.home / ".ssh"
        directory.mkdir()
        (directory / "config").write_text(HOSTILE.format(home=self.home, marker=self.marker))

    def understands(self, argv: list[str]) -> str:
        done = subprocess.run(
            [*self._identity, "--clear-groups", "ssh", "-G", *argv],
            env={
                "PATH": "/usr/bin:/bin",
                "HOME": str(self.home),
                "SSH_AUTH_SOCK": "/tmp/agent",
                "DISPLAY": ":0",
            },
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout


@pytest.fixture
def user(installations: Installations) -> User:
    return User(installations)


def options_of(user: User, forwarding: Forwarding | None) -> list[str]:
    source = Source(host="web1.example.org", identity=user.home / "key")
    argv = command(source, user.home / "known_hosts", "hello", forwarding)
    return argv[argv.index("ssh") + 1 :]


@pytest.mark.parametrize("forwards", [False, True])
def test_nothing_of_a_user_s_configuration_counts(user: User, forwards: bool) -> None:
    forwarding = Forwarding("/run/borg-pull/x.sock", Path("/run/here.sock")) if forwards else None
    options = options_of(user, forwarding)
    before = user.understands(options)
    user.is_hostile()
    assert user.understands(options) == before
    assert not user.marker.exists()
    settings = dict(line.split(" ", 1) for line in before.splitlines() if " " in line)
    assert settings["hostname"] == "web1.example.org"
    assert settings["stricthostkeychecking"] in ("true", "yes")
    assert settings["batchmode"] == "yes"
    assert settings["forwardagent"] == "no"
    assert ("remoteforward" in settings) == forwards
    assert "sendenv" not in settings


def test_control_the_same_configuration_moves_an_ssh_that_reads_it(user: User) -> None:
    plain = user.understands(["web1.example.org"])
    user.is_hostile()
    moved = user.understands(["web1.example.org"])
    assert user.marker.exists()
    assert "hostname elsewhere.example.org" in moved
    assert len(set(moved.splitlines()) - set(plain.splitlines())) > 40
