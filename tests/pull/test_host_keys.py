"""Host keys: shown, compared, pinned; a source whose key is not the pinned one is not talked to.

Threat: somebody in between answers for a source, and gets its backup and, where it is sent, the
passphrase. Control: what is pinned is the key that ssh then accepts.
"""

from __future__ import annotations

import socket
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from borg_pull.pull import host_keys, ssh
from borg_pull.pull.config import Source
from borg_pull.pull.host_keys import HostKey
from borg_pull.pull.places import Places
from borg_pull.pull.pull import hello
from tests.harness.builds import frozen_bundle
from tests.harness.site import Installations
from tests.harness.sshd import SshServer, make_key
from tests.pull.runs import Answer, run, start


@pytest.fixture
def server(installations: Installations) -> SshServer:
    return installations.server()


class Setup:
    """A configuration with one source on this sshd."""

    def __init__(self, directory: Path, port: int) -> None:
        self.path = directory / "pull.toml"
        self.places = Places(directory / "state", directory / "run")
        self.key = directory / "key"
        make_key(self.key)
        self.path.write_text(
            f'[settings]\nstate_dir = "{self.places.state_dir}"\n'
            f'runtime_dir = "{self.places.runtime_dir}"\n'
            f'[source.web1]\nhost = "127.0.0.1"\nport = {port}\nidentity = "{self.key}"\n'
        )
        self.path.chmod(0o600)
        self.source = Source.model_validate(
            {"host": "127.0.0.1", "port": port, "identity": str(self.key)}
        )

    def trust(self, *words: str, typed: str | None = None) -> Answer:
        return run("trust", "web1", "--config", self.path, *words, typed=typed)

    def known(self) -> str:
        return self.places.known_hosts.read_text() if self.places.known_hosts.exists() else ""

    def is_verified(self) -> bool:
        """Whether a run's ssh gets past the host key: nobody knows our key here."""
        done = subprocess.run(
            ssh.command(self.source, self.places.known_hosts, "hello", None),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == ssh.CONNECTION_FAILED
        if "Permission denied" in done.stderr:
            return True
        assert "Host key verification failed" in done.stderr
        return False


@pytest.fixture
def setup(tmp_path: Path, server: SshServer) -> Setup:
    return Setup(tmp_path, server.port)


def fingerprint(server: SshServer) -> str:
    """As the source itself says it."""
    shown = subprocess.run(
        ["ssh-keygen", "-l", "-f", server.directory / "host_key.pub"],
        capture_output=True,
        text=True,
        check=True,
    )
    return shown.stdout.split()[1]


def test_it_is_pinned_once_confirmed(setup: Setup, server: SshServer) -> None:
    assert not setup.is_verified()
    answer = setup.trust(typed="y\n")
    assert answer.exit == 0, answer
    assert f"  {fingerprint(server)} (ed25519)\n" in answer.stdout
    assert "ssh-keygen -l -f /etc/ssh/ssh_host_ed25519_key.pub" in answer.stdout
    assert setup.known() == server.known_hosts_line
    assert stat.S_IMODE(setup.places.known_hosts.stat().st_mode) == 0o600
    assert setup.is_verified()


WHY_NOT = {
    "not pinned": "source web1 has no host key pinned; compare it with ",
    "changed": "THE HOST KEY OF SOURCE web1 HAS CHANGED: it shows SHA256:... now; its system was ",
    "another kind": "THE HOST KEY OF SOURCE web1 HAS CHANGED: it shows SHA256:... now; its ",
    "revoked": "THE HOST KEY OF SOURCE web1 IS MARKED AS REVOKED in known_hosts: somebody else ",
}


@pytest.mark.parametrize("case", WHY_NOT)
def test_why_it_is_not_accepted_is_said(setup: Setup, server: SshServer, case: str) -> None:
    """A changed key reads like no other fault: it may be an attack."""
    name, kind, blob = server.known_hosts_line.split()
    other = make_key(setup.path.parent / "other").split()[1]
    ecdsa = setup.path.parent / "ecdsa"
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", ecdsa], check=True)
    of_another_kind = " ".join(ecdsa.with_suffix(".pub").read_text().split()[:2])
    pins = {
        "not pinned": "",
        "changed": f"{name} {kind} {other}\n",
        "another kind": f"{name} {of_another_kind}\n",
        "revoked": f"@revoked * {kind} {blob}\n{server.known_hosts_line}",
    }
    setup.places.prepare()
    setup.places.known_hosts.write_text(pins[case])
    with pytest.raises(ssh.HostKeyError) as told:
        hello(setup.source, "web1", setup.places.known_hosts)
    line = told.value.line().replace(fingerprint(server), "SHA256:...")
    assert line.startswith(WHY_NOT[case])
    assert line.endswith("borg-pull trust web1")
    setup.places.known_hosts.write_text(server.known_hosts_line)
    assert setup.is_verified(), "control: the pinned key is accepted"


def test_only_an_ssh_that_failed_tells_of_a_host_key() -> None:
    """What comes from a source whose key was accepted, such as a file of such a name, is no word
    of ssh's."""
    said = ["REMOTE HOST IDENTIFICATION HAS CHANGED", "Host key verification failed."]
    assert ssh.host_key_fault("web1", 1, said) is None
    assert ssh.host_key_fault("web1", 255, ["Connection refused"]) is None
    assert ssh.host_key_fault("web1", 255, said) is not None


@pytest.mark.parametrize("typed", ["n\n", "\n"])
def test_it_is_not_pinned_unless_confirmed(setup: Setup, typed: str) -> None:
    answer = setup.trust(typed=typed)
    assert (answer.exit, setup.known()) == (77, "")
    assert not setup.is_verified()


def test_nobody_to_ask(setup: Setup) -> None:
    answer = setup.trust()
    assert (answer.exit, setup.known()) == (64, "")
    assert answer.stderr == "nobody answers; give --accept FINGERPRINT"


def test_a_fingerprint_is_accepted_without_asking(setup: Setup, server: SshServer) -> None:
    answer = setup.trust("--accept", fingerprint(server))
    assert answer.exit == 0, answer
    assert setup.known() == server.known_hosts_line
    again = setup.trust("--accept", fingerprint(server))
    assert (again.exit, again.stdout.count("which is pinned")) == (0, 1)


def test_a_fingerprint_that_it_does_not_have(setup: Setup, server: SshServer) -> None:
    other = "SHA256:" + "A" * 43
    answer = setup.trust("--accept", other)
    assert (answer.exit, setup.known()) == (77, "")
    assert f"shows no host key {other}, but {fingerprint(server)}" in answer.stderr
    assert "somebody is in between" in answer.stderr


def test_a_key_that_has_changed_is_told_of_and_not_talked_to(
    setup: Setup, server: SshServer, tmp_path: Path
) -> None:
    setup.places.prepare()
    make_key(tmp_path / "other")
    kind, blob, *_ = (tmp_path / "other.pub").read_text().split()
    host_keys.pin(setup.places, setup.source, HostKey(kind, blob))
    before = setup.known()
    assert not setup.is_verified()
    declined = setup.trust(typed="n\n")
    assert (declined.exit, setup.known()) == (77, before)
    assert "THE HOST KEY OF SOURCE web1 HAS CHANGED" in declined.stdout
    assert HostKey(kind, blob).fingerprint in declined.stdout
    assert not setup.is_verified()
    assert setup.trust(typed="y\n").exit == 0
    assert setup.known() == server.known_hosts_line
    assert setup.is_verified()


def test_other_sources_keys_stay_as_they_are(setup: Setup, server: SshServer) -> None:
    setup.places.prepare()
    others = (
        "# by hand\nother.example.org ssh-ed25519 AAAA\n"
        f"@revoked * ssh-rsa AAAA\n127.0.0.1 ssh-rsa AAAA\n"
        f"[127.0.0.1]:{server.port}0 ssh-rsa AAAA\n"
    )
    setup.places.known_hosts.write_text(others)
    assert setup.trust(typed="y\n").exit == 0
    assert setup.known() == others + server.known_hosts_line


def test_a_source_that_does_not_answer(tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # and does not listen
        setup = Setup(tmp_path, held.getsockname()[1])
        answer = setup.trust(typed="y\n")
    assert (answer.exit, setup.known()) == (2, "")
    assert "shows no host key" in answer.stderr


@pytest.fixture
def chatterbox() -> Iterator[int]:
    """The port of something that answers a scan with what could end up in a file or a terminal."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                connection.sendall(b"SSH-2.0-x\x1b[2J ssh-ed25519 AAAA\r\nnonsense\n")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listening.getsockname()[1]
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join()


def test_a_source_that_answers_nonsense(tmp_path: Path, chatterbox: int) -> None:
    setup = Setup(tmp_path, chatterbox)
    answer = setup.trust(typed="y\n")
    assert (answer.exit, setup.known()) == (2, "")
    assert answer.stderr.isprintable()


@pytest.mark.parametrize(
    ("host", "port", "name"),
    [
        ("Web1.Example.ORG", 22, "web1.example.org"),
        ("web1", 2222, "[web1]:2222"),
        ("2001:db8::1", 22, "2001:db8::1"),
        ("2001:db8::1", 2222, "[2001:db8::1]:2222"),
    ],
)
def test_names_are_as_ssh_looks_them_up(tmp_path: Path, host: str, port: int, name: str) -> None:
    source = Source.model_validate({"host": host, "port": port, "identity": "/k"})
    assert host_keys.known_name(source) == name
    make_key(tmp_path / "key")
    kind, blob, *_ = (tmp_path / "key.pub").read_text().split()
    (tmp_path / "known").write_text(f"{name} {kind} {blob}\n")
    looked_up = f"[{host}]:{port}" if port != 22 else host
    argv = ["ssh-keygen", "-F", looked_up, "-f", str(tmp_path / "known")]
    assert subprocess.run(argv, capture_output=True, check=False).returncode == 0


def test_a_source_that_nobody_configured(setup: Setup) -> None:
    answer = run("trust", "web2", "--config", setup.path)
    assert (answer.exit, answer.stderr) == (64, "there is no source web2; did you mean web1?")


def test_programs_do_not_get_our_libraries(setup: Setup, tmp_path: Path) -> None:
    """ssh and borg load the system's, of the version that they were built for."""
    (tmp_path / "bin").mkdir()
    spy = tmp_path / "bin/ssh-keyscan"
    spy.write_text(f"#!/bin/sh\nenv > {tmp_path}/environment\n")
    spy.chmod(0o755)
    words = ("trust", "web1", "--config", str(setup.path))
    environment = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "LD_LIBRARY_PATH": "/own/libraries"}
    answer = start(*words, program=frozen_bundle() / "borg-pull", environment=environment)
    assert answer.exit == 2, answer
    lines = (tmp_path / "environment").read_text().splitlines()
    assert [line for line in lines if line.startswith("PATH=")], "the control"
    assert [line for line in lines if line.startswith("LD_LIBRARY_PATH")] == []
