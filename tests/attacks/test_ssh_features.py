"""What ssh offers besides a request is closed (A), by sshd's settings and by the line of the key.

Threat: a client whose key leaked asks sshd for more than the forced command: connections to ports
and sockets of the source and its networks, ports of its own there, the backup server's agent and
display, a terminal, variables for the shell, the account's ``~/.ssh/rc``, a tunnel, many sessions.

Most attempts are made three times. Through ``settings``: those that ship, under an sshd that is set
as carelessly for all accounts as can be, with a key that may do everything. Through ``key``: the
line that ships, under an sshd that allows everything. And ``open``, without either: the control,
which shows that the attempt would be seen. The last test pulls a backup through ``settings``.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import socket
import stat
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.harness.builds import FROZEN_12
from tests.harness.fixtures import SiteMaker
from tests.harness.peer import Peer, Pull, Result
from tests.harness.site import Installations, Site
from tests.harness.sshd import SshServer, make_key
from tests.harness.wait import until
from tests.harness.workplace import ACCOUNT_PREFIX, Workplace

pytestmark = pytest.mark.needs_root

SECONDS = 60
SHORT = 3
"""Seconds after which a connection without a request is ended where that is tested; 60 ship."""

PROBE = """\
#!/usr/bin/python3 -I
import json, os
uid = str(os.getuid())
ports = []
for table in ("/proc/net/tcp", "/proc/net/tcp6"):
    for line in open(table):
        fields = line.split()
        if fields[3] == "0A" and fields[7] == uid:
            ports.append(int(fields[1].rpartition(":")[2], 16))
print(json.dumps({"environment": dict(os.environ), "terminal": os.isatty(0), "ports": ports}))
"""

CARELESS = """\
AllowTcpForwarding yes
AllowStreamLocalForwarding yes
GatewayPorts yes
PermitListen any
PermitOpen any
PermitTunnel yes
AllowAgentForwarding yes
X11Forwarding yes
PermitTTY yes
PermitUserRC yes
AcceptEnv *
MaxSessions 100
StreamLocalBindMask 0000
StreamLocalBindUnlink yes
Subsystem sftp internal-sftp
ForceCommand /bin/echo the one of all accounts
ChrootDirectory /var/empty
"""
ALLOWED = tuple(CARELESS.splitlines()[:-3])


class CarelessServer(SshServer):
    """An sshd that allows all accounts whatever it can; ``open`` has the settings for ours undone.

    Its CA's certificates let in, and its command for keys lets one more key in.
    """

    def __init__(self, workplace: Workplace, *, is_open: bool, idle_seconds: int = 60) -> None:
        self.things = workplace.directory("c")
        keys = [
            *(f"AuthorizedKeysCommand {self.things}/keys", "AuthorizedKeysCommandUser nobody"),
            f"TrustedUserCAKeys {self.things}/ca.pub",
        ]
        no_net = ["ForceCommand none", "ChrootDirectory none", "UnusedConnectionTimeout none"]
        kept = [f"UnusedConnectionTimeout {idle_seconds}"]
        super().__init__(workplace, first=[*ALLOWED, *keys, *no_net] if is_open else kept)
        make_key(self.things / "ca")
        self.more = make_key(self.things / "more")
        for name, text in (
            ("keys", f"#!/bin/sh\necho '{self.more}'\n"),
            # X11 forwarding wants one, and this machine need not have it.
            ("xauth", "#!/bin/sh\n"),
        ):
            (self.things / name).write_text(text)
            (self.things / name).chmod(0o755)
        lines = [*keys, f"XAuthLocation {self.things}/xauth"]
        if is_open:
            # Of this one, sshd takes the last and not the first.
            lines += [f"Match User {ACCOUNT_PREFIX}*", "StreamLocalBindMask 0000"]
        self._careless = CARELESS + "\n".join((*lines, ""))

    def _configuration(self, port: int) -> str:
        return super()._configuration(port) + self._careless


@pytest.fixture(scope="module")
def servers(installations: Installations) -> Iterator[dict[str, CarelessServer]]:
    """By name: under the settings that ship, and open."""
    made = {
        "settings": CarelessServer(installations.workplace, is_open=False),
        "open": CarelessServer(installations.workplace, is_open=True),
    }
    for server in made.values():
        server.start()
    yield made
    for server in made.values():
        server.stop()


class Ways:
    """The ways in to one source, each with a peer of its own whose forced command is the probe."""

    def __init__(self, site: Site, servers: Mapping[str, CarelessServer]) -> None:
        self.site = site
        self.servers = servers
        self._made: list[Peer] = []
        self._probe = self.program("probe", PROBE)
        self.peers = {way: self.peer(way, self._probe) for way in ("settings", "key", "open")}

    def program(self, name: str, text: str) -> str:
        """A forced command that stands in for ours."""
        path = self.site.source.directory / name
        path.write_text(text)
        path.chmod(0o755)
        return str(path)

    def server(self, way: str) -> CarelessServer:
        return self.servers["open" if way in ("key", "open") else "settings"]

    def peer(self, way: str, command: str | None, server: SshServer | None = None) -> Peer:
        """Another peer that comes in this way; ``whole`` is as it ships, settings and key.

        Without ``command`` a key as it ships has the forced command that ships, another none.
        """
        site = self.site
        server = server or self.server(way)
        peer = Peer(site.installations.workplace, server, site.source, "luna", site.borg)
        self._made.append(peer)
        if way in ("key", "whole"):
            peer.authorize(command)
        elif command is None:
            server.authorize(site.account, peer.public_key)
        else:
            server.authorize(site.account, f'command="{command}" {peer.public_key}')
        return peer

    def report(self, way: str, *options: str, **environment: str) -> dict[str, Any]:
        """What the probe finds on the source, for an ssh with these options."""
        pull = self.peers[way].start(
            "probe",
            options=["-oExitOnForwardFailure=no", *options],
            environment=environment,
        )
        result = pull.wait(SECONDS)
        assert result.exit == 0, result.errors
        report: dict[str, Any] = json.loads(result.stdout)
        return report

    def close(self) -> None:
        for peer in self._made:
            peer.remove()


@pytest.fixture
def site(make_site: SiteMaker) -> Site:
    return make_site(FROZEN_12)


@pytest.fixture
def ways(site: Site, servers: Mapping[str, CarelessServer]) -> Iterator[Ways]:
    made = Ways(site, servers)
    yield made
    made.close()


CLOSED_BY_BOTH = {"settings": False, "key": False, "open": True}
CLOSED_BY_SETTINGS = {"settings": False, "key": True, "open": True}


def seen(ways: Ways, attempt: Callable[[str], object]) -> dict[str, bool]:
    return {way: bool(attempt(way)) for way in ways.peers}


# What an ssh asks for beside its request.


def test_agent(ways: Ways) -> None:
    """``ssh -A``."""
    path = ways.servers["open"].things / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)
    try:
        until(path.is_socket, seconds=SECONDS, what="ssh-agent")

        def attempt(way: str) -> bool:
            report = ways.report(way, "-A", f"-oIdentityAgent={path}")
            return "SSH_AUTH_SOCK" in report["environment"]

        assert seen(ways, attempt) == CLOSED_BY_BOTH
    finally:
        agent.kill()
        agent.wait()
        path.unlink(missing_ok=True)


def test_display(ways: Ways) -> None:
    """``ssh -Y``; without a display to ask for a ticket, ``-X`` gives up before it asks sshd."""

    def attempt(way: str) -> bool:
        return "DISPLAY" in ways.report(way, "-Y", DISPLAY=":77")["environment"]

    assert seen(ways, attempt) == CLOSED_BY_BOTH


def test_terminal(ways: Ways) -> None:
    """``ssh -tt``, which gives up when it gets none."""

    def attempt(way: str) -> bool:
        result = ways.peers[way].start("probe", options=["-tt"]).wait(SECONDS)
        refused = "PTY allocation request failed" in result.errors
        assert refused or json.loads(result.stdout)["terminal"], result.errors
        return not refused

    assert seen(ways, attempt) == CLOSED_BY_BOTH


def test_variables(ways: Ways) -> None:
    """``ssh -o SetEnv=...``; no option of a key's line is about them."""

    def attempt(way: str) -> set[str]:
        sent = {"LD_PRELOAD": "/x.so", "BORG_RSH": "x", "LC_ALL": "x"}
        words = " ".join(f"{name}={value}" for name, value in sent.items())
        return sent.keys() & set(ways.report(way, f"-oSetEnv={words}")["environment"])

    assert seen(ways, attempt) == CLOSED_BY_SETTINGS


def test_user_rc(ways: Ways, installations: Installations) -> None:
    """``~/.ssh/rc``, should the account ever come to have one."""
    home = installations.workplace.root / "nobodys-home"
    marks = ways.site.source.tree("marks")
    (home / ".ssh").mkdir()
    try:
        (home / ".ssh/rc").write_text(f"touch {marks}/$LOGNAME\n")

        def attempt(way: str) -> list[Path]:
            ways.report(way)
            ran = list(marks.iterdir())
            for mark in ran:
                mark.unlink()
            return ran

        assert seen(ways, attempt) == CLOSED_BY_BOTH
    finally:
        shutil.rmtree(home / ".ssh")


@pytest.mark.parametrize("forward", ["FREE:127.0.0.1:1", "127.0.0.1:0:127.0.0.1:1", "0", "*:0"])
def test_port_of_the_source(ways: Ways, forward: str) -> None:
    """``ssh -R`` of a TCP port, to one place or (without one) to wherever is asked for."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        forward = forward.replace("FREE", f"127.0.0.1:{taken.getsockname()[1]}")
    assert seen(ways, lambda way: ways.report(way, "-R", forward)["ports"]) == CLOSED_BY_BOTH


# Connections from the source.


class Service:
    """Something on the source that says hello to whoever connects."""

    def __init__(self, listening: socket.socket) -> None:
        self.connections = 0
        self._listening = listening
        self._listening.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            with connection:
                connection.sendall(b"hello")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(SECONDS)


@pytest.fixture
def port() -> Iterator[tuple[int, Service]]:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    service = Service(listening)
    yield listening.getsockname()[1], service
    service.close()


@pytest.fixture
def engine(site: Site) -> Iterator[tuple[Path, Service]]:
    """A Unix socket that the account may connect to, as a container engine's to its group."""
    path = site.source.directory / "engine.sock"
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    path.chmod(0o777)
    service = Service(listening)
    yield path, service
    service.close()


def said_through(peer: Peer, *options: str, first: bytes = b"") -> bytes:
    """What comes through a local socket (``LOCAL`` in the options) once ``first`` is sent to it."""
    local = peer.directory / "local.sock"
    ssh = peer.start(
        "", options=["-N", *(option.replace("LOCAL", str(local)) for option in options)]
    )
    try:
        until(lambda: local.is_socket() or ssh.ssh.poll(), seconds=SECONDS, what="ssh's socket")
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(SECONDS)
            connection.connect(str(local))
            connection.sendall(first)
            received = b""
            while block := connection.recv(1024):
                received += block
            return received
    finally:
        ssh.kill()
        ssh.wait(SECONDS)
        local.unlink(missing_ok=True)


def assert_reached_only_when_open(
    ways: Ways, service: Service, attempt: Callable[[Peer], bytes]
) -> None:
    heard = {way: attempt(peer).endswith(b"hello") for way, peer in ways.peers.items()}
    assert heard == CLOSED_BY_BOTH
    assert service.connections == 1


def test_forward_to_a_port(ways: Ways, port: tuple[int, Service]) -> None:
    """``ssh -L`` to a port."""
    number, service = port
    assert_reached_only_when_open(
        ways, service, lambda peer: said_through(peer, "-L", f"LOCAL:127.0.0.1:{number}")
    )


def test_forward_to_a_socket(ways: Ways, engine: tuple[Path, Service]) -> None:
    """``ssh -L`` to a Unix socket."""
    path, service = engine
    assert_reached_only_when_open(
        ways, service, lambda peer: said_through(peer, "-L", f"LOCAL:{path}")
    )


def test_forward_to_wherever_the_peer_says(ways: Ways, port: tuple[int, Service]) -> None:
    """``ssh -D``, asked by SOCKS 4 (its request is complete by itself) for a port."""
    number, service = port
    connect = struct.pack("!BBH4sB", 4, 1, number, socket.inet_aton("127.0.0.1"), 0)
    assert_reached_only_when_open(
        ways, service, lambda peer: said_through(peer, "-D", "LOCAL", first=connect)
    )


def test_forward_of_standard_input(ways: Ways, port: tuple[int, Service]) -> None:
    """``ssh -W`` to a port."""
    number, service = port

    def attempt(peer: Peer) -> bytes:
        return peer.start("", options=["-W", f"127.0.0.1:{number}"]).wait(SECONDS).stdout

    assert_reached_only_when_open(ways, service, attempt)


# A tunnel.


@pytest.mark.skipif(
    not os.access("/dev/net/tun", os.R_OK | os.W_OK),
    reason="ssh asks for a tunnel once it has its own end, and here is no /dev/net/tun",
)
def test_tunnel(ways: Ways) -> None:
    """``ssh -w``: sshd says that it has refused, where it otherwise tries to open the device."""
    heard = {}
    for way in ("settings", "open"):
        options = ["-oLogLevel=DEBUG1", "-oExitOnForwardFailure=no", "-w", "any:any"]
        errors = ways.peers[way].start("probe", options=options).wait(SECONDS).errors
        assert "Requesting tun" in errors, errors
        heard[way] = "Server has rejected tunnel device forwarding" in errors
    assert heard == {"settings": True, "open": False}


# Who comes in, and what runs then.


def test_subsystem(ways: Ways) -> None:
    """``ssh -s sftp``: the forced command runs in its place, and takes its name for a request."""
    ways.site.allow()
    hello = b"\0\0\0\5\1\0\0\0\3"

    def answer(way: str) -> tuple[bytes, int]:
        peer = ways.peer(way, None)
        pull = peer.start("sftp", options=["-s"], stdin=hello, stdin_stays_open=True)
        assert pull.ssh.stdout is not None
        return pull.ssh.stdout.read(5)[4:], pull.wait(SECONDS).exit

    assert answer("whole") == (b"", 64)
    (record,) = ways.site.source.audit()
    assert (record["event"], record["request"]) == ("refused", "internal-sftp")
    version = b"\2"
    assert answer("open") == (version, 0)


def _account_of(ways: Ways, way: str, key: Path) -> str | None:
    """What ``id -un`` says to who logs in with ``key``; None when nobody gets in."""
    options = [f"-oIdentityFile={key}"]
    peer = ways.peer(way, None)
    (peer.directory / "key").unlink()
    result = peer.start("id -un", options=options).wait(SECONDS)
    if result.exit == 255:
        assert "Permission denied (publickey)" in result.errors, result.errors
        return None
    return result.stdout.decode().strip()


def test_certificate(ways: Ways) -> None:
    """Of a CA that is set for all accounts: it would run anything."""
    name = ways.site.account.name
    found = {}
    for way in ("settings", "open"):
        key = ways.peers[way].directory / "certified"
        make_key(key)
        authority = ways.server(way).things / "ca"
        sign = ["ssh-keygen", "-q", "-s", str(authority), "-I", "x", "-n", name]
        subprocess.run([*sign, str(key.with_suffix(".pub"))], check=True)
        found[way] = _account_of(ways, way, key)
    assert found == {"settings": None, "open": name}


def test_key_from_a_command(ways: Ways) -> None:
    """That is set for all accounts: it would run anything."""
    found = {
        way: _account_of(ways, way, ways.server(way).things / "more")
        for way in ("settings", "open")
    }
    assert found == {"settings": None, "open": ways.site.account.name}


# How much of it.


def test_second_request_on_a_connection(ways: Ways) -> None:
    """``ssh -S`` while the first runs."""
    command = ways.program(
        "stays", '#!/bin/sh\n[ "$SSH_ORIGINAL_COMMAND" = stay ] && exec cat\necho ran\n'
    )
    found = {}
    for way in ("settings", "open"):
        peer = ways.peer(way, command)
        master = peer.directory / "master"
        first = peer.start(
            "stay", options=["-M", "-S", str(master)], stdin=b"", stdin_stays_open=True
        )
        until(master.is_socket, seconds=SECONDS, what="the first connection")
        # Without the last, ssh makes a connection of its own when it is refused.
        options = ["-S", str(master), "-oProxyCommand=false"]
        found[way] = peer.start("another", options=options).wait(SECONDS).stdout
        first.kill()
        first.wait(SECONDS)
    assert found == {"settings": b"", "open": b"ran\n"}


def test_connection_without_a_request(ways: Ways, installations: Installations) -> None:
    """``ssh -N`` with a socket: ended, and nobody listens on the socket any more."""
    server = CarelessServer(installations.workplace, is_open=False, idle_seconds=SHORT)
    server.start()
    peers = {"idle": ways.peer("settings", None, server), "control": ways.peer("open", None)}
    paths = {name: ways.site.source.socket_dir / f"{name}.sock" for name in peers}

    def bound(name: str) -> Pull | None:
        ssh = peers[name].start("", options=["-N", "-R", f"{paths[name]}:/x"])
        until(
            lambda: paths[name].is_socket() or ssh.ssh.poll() is not None,
            seconds=SECONDS,
            what="the socket",
        )
        if paths[name].is_socket():
            return ssh
        # A busy machine may not come to bind it in so short a time.
        ssh.wait(SECONDS)
        return None

    try:
        ssh = {
            name: until(functools.partial(bound, name), seconds=SECONDS, what="a socket")
            for name in peers
        }
        assert "closed by remote host" in ssh["idle"].wait(SECONDS).errors
        assert {name: _answers(path) for name, path in paths.items()} == {
            "idle": False,
            "control": True,
        }
        ssh["control"].kill()
        ssh["control"].wait(SECONDS)
    finally:
        server.stop()


def test_the_same_connection_with_a_request(ways: Ways, installations: Installations) -> None:
    """The control of the one above: a request that takes its time is not cut."""
    server = CarelessServer(installations.workplace, is_open=False, idle_seconds=SHORT)
    server.start()
    command = ways.program("slow", f"#!/bin/sh\necho begun\nsleep {SHORT + 2}\n")
    try:
        peer = ways.peer("settings", command, server)

        def begun() -> Result | None:
            result = peer.pull("whatever", timeout=SECONDS)
            # A busy machine may not come to ask in so short a time.
            return result if result.stdout else None

        assert until(begun, seconds=SECONDS, what="a request").exit == 0
    finally:
        server.stop()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(str(path)) == 0


def test_socket_of_another(ways: Ways) -> None:
    """Its name is not taken over, and nobody but the account can connect to it."""
    found = {}
    for way in ("settings", "open"):
        path = ways.site.source.socket_dir / f"{way}.sock"
        first, second = (ways.peer(way, None) for _ in range(2))
        holder = first.start("", options=["-N", "-R", f"{path}:/x"])
        until(path.is_socket, seconds=SECONDS, what="the socket")
        before = path.stat()
        options = ["-oExitOnForwardFailure=no", "-R", f"{path}:/y"]
        assert second.start("true", options=options).wait(SECONDS).exit == 0
        taken = path.stat().st_ino != before.st_ino
        found[way] = (oct(stat.S_IMODE(before.st_mode)), taken)
        holder.kill()
        holder.wait(SECONDS)
    assert found == {"settings": ("0o600", False), "open": ("0o777", True)}


# And yet.


def test_a_pull_succeeds_as_it_ships(ways: Ways) -> None:
    site = ways.site
    data = site.source.tree()
    site.source.file(data / "file", os.urandom(1 << 20))
    site.allow(paths=[str(data)])
    peer = ways.peer("whole", None)
    repository = peer.repository()
    result = peer.pull(f"create {repository.path} a {data}", repository)
    assert (result.exit, result.complaints) == (0, "")
    assert repository.archives() == ["a"]
    (record,) = site.source.audit(event="complete")
    assert record["key"].startswith("SHA256:")
