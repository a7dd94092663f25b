"""``borg-pull-admin authorized-keys``: one line a key, which sshd reads as it was meant."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from borg_pull.admin.authorized_keys import fingerprint_of, forced_command
from borg_pull.admin.host import has_capability
from borg_pull.errors import ConfigurationError
from tests.admin_runs import RUNTIME, public_key, run, start, write
from tests.harness.builds import CAPABILITY, SOURCE_12
from tests.harness.fixtures import SiteMaker
from tests.harness.peer import Peer
from tests.harness.site import Installations, Site
from tests.harness.sshd import SshServer, make_key

OPTIONS = 'restrict,port-forwarding,permitopen="localhost:1",permitlisten="localhost:1"'


@pytest.fixture
def config(tmp_path: Path) -> Path:
    config = write(
        tmp_path / "config.toml",
        f"{RUNTIME}[client.luna]\nkeys = ['{public_key(1)} a comment', '{public_key(2)}']\n"
        "[client.none]\n",
    )
    write(tmp_path / "clients.d/vega.toml", f"keys = ['{public_key(3)} é\"']\n")
    return config


def test_one_line_a_key(config: Path) -> None:
    answer = start("authorized-keys", str(config), "--program", "/opt/p")
    assert answer.exit == 0
    assert answer.stderr == ""
    assert answer.stdout.splitlines() == [
        f'{OPTIONS},command="/opt/p {config} luna" {public_key(1)} a comment',
        f'{OPTIONS},command="/opt/p {config} luna" {public_key(2)}',
        f'{OPTIONS},command="/opt/p {config} vega" {public_key(3)} é"',
    ]


def test_a_role_without_borg_forwards_nothing(tmp_path: Path) -> None:
    roles = ("read", "action", "backup", "admin")
    clients = "".join(
        f"[client.{role}]\nrole = '{role}'\nkeys = ['{public_key(number)}']\n"
        for number, role in enumerate(roles, 1)
    )
    config = write(tmp_path / "config.toml", RUNTIME + clients)
    lines = run("authorized-keys", config).stdout.splitlines()
    options = [line.partition(",command=")[0] for line in lines]
    assert options == ["restrict", "restrict", OPTIONS, OPTIONS]


def test_the_configuration_is_named_from_the_root(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(config.parent)
    assert f" {config} luna" in run("authorized-keys", config.name).stdout
    assert f" {config} luna" in run("authorized-keys", f"./x/../{config.name}").stdout


def test_only_the_key_that_is_asked_for(config: Path) -> None:
    fingerprint = fingerprint_of(public_key(3))
    answer = run("authorized-keys", config, "--fingerprint", fingerprint)
    assert answer.exit == 0
    assert [line.split()[2] for line in answer.stdout.splitlines()] == ['vega"']
    unknown = run("authorized-keys", config, "--fingerprint", fingerprint_of(public_key(4)))
    assert (unknown.exit, unknown.stdout, unknown.stderr) == (0, "", "")


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_fingerprints_are_those_of_ssh_keygen(tmp_path: Path, kind: str) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", key], check=True)
    public = key.with_suffix(".pub")
    said = subprocess.run(
        ["ssh-keygen", "-l", "-f", public], check=True, capture_output=True, text=True
    )
    assert fingerprint_of(public.read_text().strip()) == said.stdout.split()[1]
    config = write(
        tmp_path / "config.toml", f"{RUNTIME}[client.luna]\nkeys = ['{public.read_text().strip()}']"
    )
    assert run("authorized-keys", config).stdout.endswith(public.read_text())


@pytest.mark.parametrize(
    "fault",
    [
        "paths = 1\n",
        "[client.x]\npaths = ['a']\n",
        f"[client.x]\nkeys = ['{public_key(1)}']\n",
        "[",
    ],
)
def test_with_any_fault_there_is_no_line(config: Path, fault: str) -> None:
    config.write_text(config.read_text() + fault)
    answer = start("authorized-keys", str(config))
    assert (answer.exit, answer.stdout) == (78, "")
    assert answer.stderr.startswith("borg-pull-admin: the configuration is wrong: ")
    assert answer.stderr.count("\n") == 1


def test_with_a_fault_in_a_clients_file_there_is_no_line(config: Path) -> None:
    broken = write(config.parent / "clients.d/broken.toml", "x = 1\n")
    assert start("authorized-keys", str(config)).exit == 78
    broken.unlink()
    broken.symlink_to(config)
    answer = start("authorized-keys", str(config))
    assert (answer.exit, answer.stdout) == (78, "")
    assert "broken.toml is a symbolic link" in answer.stderr


def test_without_keys_there_is_no_line(tmp_path: Path) -> None:
    answer = start("authorized-keys", str(write(tmp_path / "config.toml", RUNTIME)))
    assert (answer.exit, answer.stdout) == (0, "")
    assert answer.stderr == "borg-pull-admin: no client has keys\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--program", "borg-pull-source"),
        ("--fingerprint", "MD5:00"),
        ("--fingerprint", "SHA256:short"),
        ("--fingerprint", "SHA256:" + "A" * 43 + "\n"),
    ],
)
def test_a_wrong_command_line(config: Path, arguments: tuple[str, str]) -> None:
    answer = start("authorized-keys", str(config), *arguments)
    assert (answer.exit, answer.stdout) == (64, "")
    assert answer.stderr.startswith("borg-pull-admin: ")
    assert answer.stderr.count("\n") == 1


# Into a file


def test_output_is_what_is_printed_otherwise(config: Path, tmp_path: Path) -> None:
    printed = start("authorized-keys", str(config)).stdout
    output = tmp_path / "k/authorized_keys"
    output.parent.mkdir()
    for old in (None, "old\n"):
        if old is not None:
            output.write_text(old)
            output.chmod(0o600)
        before = os.umask(0o077)
        answer = start("authorized-keys", str(config), "--output", str(output))
        os.umask(before)
        assert (answer.exit, answer.stdout, answer.stderr) == (0, "", "")
        assert output.read_text() == printed
        assert (output.stat().st_mode & 0o7777, output.stat().st_uid) == (0o644, os.geteuid())
        assert [path.name for path in output.parent.iterdir()] == ["authorized_keys"]


@pytest.mark.parametrize(
    "fault", ["syntax", "rule", "cut key", "client's file", "no key", "absent"]
)
def test_output_stays_when_anything_is_wrong(config: Path, tmp_path: Path, fault: str) -> None:
    """What was written before lets everybody in on; an empty file would lock all out."""
    output = tmp_path / "authorized_keys"
    output.write_text("before\n")
    inode = output.stat().st_ino
    if fault == "client's file":
        write(config.parent / "clients.d/broken.toml", "path = []\n")
    elif fault == "absent":
        config.unlink()
    elif fault == "no key":
        (config.parent / "clients.d/vega.toml").unlink()
        write(config, f"{RUNTIME}[client.luna]\n")
    else:
        cut = f"keys = ['{public_key(9)[:60]}']\n"
        more = {"syntax": "[", "rule": "path = []\n", "cut key": f"[client.x]\n{cut}"}
        config.write_text(config.read_text() + more[fault])
    answer = start("authorized-keys", str(config), "--output", str(output))
    assert (answer.exit, answer.stdout) == (78, "")
    assert answer.stderr.count("\n") == 1
    assert (output.read_text(), output.stat().st_ino) == ("before\n", inode)


def test_output_that_cannot_be_written(config: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "no/such", config.parent):
        answer = start("authorized-keys", str(config), "--output", str(path))
        assert (answer.exit, answer.stdout) == (71, "")
        assert answer.stderr.startswith(f"borg-pull-admin: cannot write {path}: ")
    assert [path for path in tmp_path.parent.iterdir() if path.name.startswith(tmp_path.name)] == [
        tmp_path
    ]


def test_output_has_the_keys_of_all(config: Path, tmp_path: Path) -> None:
    fingerprint = fingerprint_of(public_key(1))
    output = tmp_path / "authorized_keys"
    answer = start(
        "authorized-keys", str(config), "--fingerprint", fingerprint, "--output", str(output)
    )
    assert (answer.exit, output.exists()) == (64, False)


def sshd_reads(value: bytes) -> bytes:
    """The value of a quoted option as sshd's opt_dequote takes it, which must end at its end."""
    line = b'"' + value + b'"'
    taken = b""
    at = 1
    while line[at : at + 1] != b'"':
        if line[at : at + 2] == b'\\"':
            at += 1
        taken += line[at : at + 1]
        at += 1
        assert at < len(line), "the quote is never closed"
    assert at == len(line) - 1, "the quote is closed too early"
    return taken


def sh_splits(command: bytes) -> list[bytes]:
    """The words a shell makes of ``command``."""
    said = subprocess.run(
        ["/bin/sh", "-c", b"set -- " + command + b'; printf "%s\\0" "$@"'],
        check=True,
        capture_output=True,
    )
    return said.stdout.split(b"\0")[:-1]


HOSTILE = [
    "/a b",
    "/it's",
    '/a"b',
    '/\\"',
    "/a\\",
    "/$(id)`id`$HOME",
    "/*?[a]~",
    "/é",
    "/\\'\"'",
    "/;#",
]


@pytest.mark.parametrize("path", HOSTILE)
def test_odd_paths_reach_the_program_whole(path: str) -> None:
    value = forced_command(path, f"{path}/config.toml", "luna")
    words = [path.encode(), f"{path}/config.toml".encode(), b"luna"]
    assert sh_splits(sshd_reads(value)) == words


@given(st.text(st.characters(codec="utf-8", min_codepoint=32, exclude_characters="\x7f")))
def test_any_path_reaches_the_shell_whole(path: str) -> None:
    read = sshd_reads(forced_command(f"/{path}", "/c", "luna"))
    # shlex is Python's own statement of what a POSIX shell makes of quotes.
    import shlex

    assert shlex.split(read.decode()) == [f"/{path}", "/c", "luna"]


@pytest.mark.parametrize("character", ["\n", "\r", "\0", "\x1b", "\x7f"])
def test_a_path_that_would_end_the_line_is_refused(character: str) -> None:
    with pytest.raises(ConfigurationError):
        forced_command("/p", f"/a{character}b", "luna")


# With sshd itself


@pytest.fixture
def site(make_site: SiteMaker) -> Site:
    return make_site(SOURCE_12, capable=False)


def test_sshd_runs_the_program_that_was_named(installations: Installations, site: Site) -> None:
    directory = installations.workplace.directory("k") / "a \"b\" 'c' $HOME \\"
    directory.mkdir()
    directory.chmod(0o755)
    program = write(directory / "pro gram", '#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    peer = Peer(installations.workplace, site.server, site.source, "luna", site.borg)
    config = write(
        directory / 'con"fig.toml',
        "runtime = { socket_dir = '/run', home = '/home' }\n"
        f"[client.luna]\nkeys = ['{peer.public_key}']",
    )
    answer = run("authorized-keys", config, "--program", program)
    site.server.authorize(site.account, answer.stdout)
    result = peer.pull("whatever; the client asks")
    assert result.exit == 0, result.errors
    assert result.stdout.decode().splitlines() == [str(config), "luna"]
    peer.remove()


@pytest.fixture
def asking(installations: Installations, site: Site) -> Iterator[SshServer]:
    """An sshd that asks this program for keys at each login."""
    programs = site.source.programs
    command = (
        f"{programs.admin} authorized-keys --program {programs.source} "
        f"--fingerprint %f {site.source.configuration}"
    )
    server = SshServer(
        installations.workplace,
        first=[
            "AuthorizedKeysFile none",
            f"AuthorizedKeysCommand {command}",
            f"AuthorizedKeysCommandUser {site.account.name}",
        ],
    )
    server.start()
    yield server
    server.stop()


@pytest.mark.needs_root
def test_sshd_asks_at_each_login(
    installations: Installations, site: Site, asking: SshServer, tmp_path: Path
) -> None:
    """In by the whitelist, out when the key is gone from it or anything in it is wrong."""
    peer = Peer(installations.workplace, asking, site.source, "vega", site.borg)
    other = make_key(tmp_path / "other")
    clients = {"luna": {"keys": [other]}, "vega": {"keys": [peer.public_key]}}
    site.source.write_whitelist(clients)
    result = peer.pull("hello")
    assert result.exit == 0, result.errors + asking.log.read_text()
    assert json.loads(result.stdout)["client"] == "vega"
    site.source.write_whitelist({"luna": {"keys": [other]}, "vega": {}})
    assert peer.pull("hello").exit == 255
    site.source.write_whitelist(clients | {"broken": {"path": []}})
    assert peer.pull("hello").exit == 255
    site.source.write_whitelist(clients)
    assert peer.pull("hello").exit == 0, "the control: it was the whitelist that kept it out"
    peer.remove()


@pytest.mark.needs_root
def test_a_key_without_borg_leaves_no_socket(
    installations: Installations, site: Site, asking: SshServer
) -> None:
    """Control: the key of a client that backs up does."""
    peer = Peer(installations.workplace, asking, site.source, "vega", site.borg)
    left = site.source.socket_dir / "left.sock"
    forwarding = ("-R", f"{left}:{peer.directory}/nobody")
    for role, code, is_left in (("action", 255, False), ("backup", 0, True)):
        site.source.write_whitelist({"vega": {"keys": [peer.public_key], "role": role}})
        assert peer.pull("actions").exit == 0, role
        result = peer.start("actions", options=forwarding).wait()
        assert (result.exit, left.exists()) == (code, is_left), result.errors
    peer.remove()


@pytest.mark.needs_root
def test_a_program_with_the_capability_obeys_roots_configuration_alone(
    installations: Installations, tmp_path: Path
) -> None:
    """What the forced command would refuse lets nobody in either."""
    directory = installations.workplace.directory("k")
    program = directory / "program"
    shutil.copy("/bin/true", program)
    config = write(directory / "config.toml", f"{RUNTIME}[client.luna]\nkeys = ['{public_key(1)}']")
    others = write(tmp_path / "config.toml", config.read_text())

    def exits() -> list[int]:
        return [
            run("authorized-keys", file, "--program", program).exit for file in (config, others)
        ]

    tmp_path.chmod(0o777)
    assert not has_capability(str(program))
    assert exits() == [0, 0]
    subprocess.run(["setcap", CAPABILITY, program], check=True)
    assert has_capability(str(program))
    assert exits() == [0, 78]
    config.chmod(0o664)
    assert exits() == [78, 78]
    subprocess.run(["setcap", "cap_chown=ep", program], check=True)
    assert not has_capability(str(program))
