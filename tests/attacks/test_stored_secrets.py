"""No passphrase and no credential of a URL is left anywhere, nor shown to anybody, on the source.

Threat: a passphrase that stands in an argument list or an environment is read by every local user,
or by every process of the account; one in a log, an audit record, a note or a report is read by
whoever reads those, for years. Peers also write credentials where none belong: into a URL in place
of a repository's path, an assignment before the verb, an option. Here all of this happens under the
eyes of a thread that reads what /proc tells of each process of the account, over and over; then
every file of the source is searched, sshd's log and syslog, and all that came back to the peer.

What a peer writes into its request does stand in SSH_ORIGINAL_COMMAND of the shell that sshd starts
and of the forced command, which is sshd's doing. It goes no further.
"""

from __future__ import annotations

import base64
import os
import secrets
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.harness import processes
from tests.harness.builds import FROZEN_14
from tests.harness.fixtures import SiteMaker
from tests.harness.peer import Repository, Result
from tests.harness.site import Site
from tests.harness.syslog import Syslog
from tests.harness.wait import until

pytestmark = pytest.mark.needs_root

REQUEST = b"SSH_ORIGINAL_COMMAND"


@pytest.fixture
def site(make_site: SiteMaker) -> Site:
    return make_site(FROZEN_14)


@pytest.fixture
def syslog(site: Site) -> Iterator[Syslog]:
    made = Syslog(site.source.directory / "syslog")
    yield made
    made.close()


def _secret() -> str:
    return f"hunter{secrets.token_hex(8)}"


class Sampler:
    """Reads arguments and environment of every process of the account, over and over."""

    def __init__(self, uid: int) -> None:
        self._uid = uid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.seen: dict[tuple[int, bytes], dict[bytes, bytes]] = {}
        """Environment of each process by pid and arguments: exec changes both."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit():
                    self._look_at(entry)

    def _look_at(self, entry: Path) -> None:
        try:
            if entry.stat().st_uid != self._uid:
                return
            arguments = (entry / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return
        pid = int(entry.name)
        if arguments:
            self.seen.setdefault((pid, arguments), {}).update(processes.environment(pid))

    def has_seen(self, name: str) -> bool:
        """Whether a process with ``name`` among its arguments was there."""
        return any(name.encode() in arguments for _, arguments in [*self.seen])

    def found(self, secret: str) -> list[str]:
        """Where the secret stood."""
        found = []
        for (pid, arguments), environment in self.seen.items():
            if secret.encode() in arguments:
                found.append(f"arguments of {pid}: {arguments!r}")
            is_ours = b"BORG_EXIT_CODES" in environment
            for name, value in environment.items():
                if secret.encode() in value and (is_ours or name != REQUEST):
                    found.append(f"environment of {pid}, {name!r}: {arguments!r}")
        return found


def _forms(secret: str) -> list[bytes]:
    """The secret as it may be written down."""
    plain = secret.encode()
    encoded = [base64.b64encode(b"x" * shift + plain)[4:-4] for shift in range(3)]
    return [plain, plain.hex().encode(), *encoded]


def _files_with(secret: str, places: list[Path], besides: list[Path]) -> list[Path]:
    files = [file for place in places for file in (place, *place.rglob("*"))]
    contents = {
        file: file.read_bytes()
        for file in files
        if file.is_file() and not file.is_symlink() and file not in besides
    }
    return [
        file
        for file, content in contents.items()
        if any(form in content for form in _forms(secret))
    ]


class Scene:
    """A source that gets its three clients' passphrases in the three ways there are."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.data = site.source.tree()
        site.source.file(self.data / "file", "content")
        self.stored = {name: site.source.secret(f"of-{name}", "") for name in ("luna", "nova")}
        rules = {"paths": [str(self.data)], "allow": ["create", "init", "list"]}
        rules |= {"encryption": ["repokey", "keyfile-blake2"]}
        command = f"/bin/sh -c 'sleep 0.5; cat {self.stored['nova']}'"
        site.source.write_whitelist(
            {
                "luna": rules | {"passphrase_file": str(self.stored["luna"])},
                "nova": rules | {"passcommand": command},
                "vega": rules | {"passphrase_stdin": True},
            }
        )

    def pull(self, client: str, request: str, repository: Repository, passphrase: str) -> Result:
        """A request whose passphrase is where this client's rules look for it."""
        stdin = None
        if client in self.stored:
            self.stored[client].write_text(f"{passphrase}\n")
        else:
            stdin = f"{passphrase}\n".encode()
        return self.site.peer(client).pull(request, repository, stdin=stdin)


def _use_passphrases(
    scene: Scene, client: str, encryption: str, verbs: str
) -> tuple[list[str], list[Result]]:
    """Make a repository, pull into it, and pull with a wrong passphrase."""
    right, wrong = _secret(), _secret()
    repository = scene.site.peer(client).repository(
        encryption=encryption, passphrase=right, initialised="init" not in verbs
    )
    requests = {
        "init": (f"init -e {encryption} {repository.path}", right, 0),
        "create": (f"create {repository.path} a {scene.data}", right, 0),
        "fail": (f"create {repository.path} b {scene.data}", wrong, 2),
    }
    results = []
    for verb in verbs.split():
        request, passphrase, expected = requests[verb]
        results.append(scene.pull(client, request, repository, passphrase))
        assert results[-1].exit == expected, results[-1]
    return [right, wrong], results


def test_no_passphrase_is_left_or_shown(site: Site) -> None:
    scene = Scene(site)
    given: list[str] = []
    results: list[Result] = []
    with Sampler(site.account.uid) as sampler:
        for client, encryption, verbs in (
            ("luna", "repokey", "init create fail"),
            ("nova", "repokey", "create"),
            ("vega", "keyfile-blake2", "init create fail"),
        ):
            passphrases, ended = _use_passphrases(scene, client, encryption, verbs)
            given, results = given + passphrases, results + ended
        planted = _plant(scene, sampler)
    # What is to be searched is there.
    assert all(sampler.has_seen(name) for name in ("::a", "socket-wrap", "cat", "borg-pull-source"))
    assert len(site.source.audit(event="complete", result="error")) == 2
    places = [site.source.directory, site.server.directory]
    stored = [*scene.stored.values()]
    said = b"".join(result.stdout + result.stderr for result in results)
    for secret in given:
        assert sampler.found(secret) == []
        assert _files_with(secret, places, stored) == []
        assert not any(form in said for form in _forms(secret))
    # Control: what is there is found, whichever way it is written.
    assert {"arguments", "environment"} == {found.split()[0] for found in sampler.found(planted)}
    assert len(_files_with(planted, places, stored)) == 3
    assert _files_with(scene.stored["luna"].read_text().strip(), places, []) == [stored[0]]


CARELESS = (
    "create ssh://borg:{secret}@host/./r a {data}",
    "create borg:{secret}@host:/r a {data}",
    "create --comment https://u:{secret}@host/ /r a {data}",
    "create --exclude ftp://u:{secret}@host/ /r a {data}",
    "create /r a {data} --rsh 'ssh -o Password={secret}'",
    "create --password {secret} /r a {data}",
    "BORG_PASSPHRASE={secret} create /r a {data}",
    "BORG_PASSPHRASE='{secret} and more' create /r a {data}",
    "create 'ssh://borg:{secret}@host/r a {data}",
    # So that the record is cut amid the secret.
    f"create /r {'x' * (8192 - len('create /r  ssh://borg:hun'))} ssh://borg:{{secret}}@host/r",
)


def _run(syslog: Syslog, site: Site, *arguments: str | Path, request: str) -> Result:
    """The forced command, or another program of the account's, with a syslog of ours."""
    account = site.account
    done = subprocess.run(
        syslog.command(arguments, uid=account.uid, gid=account.gid),
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", REQUEST.decode(): request},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr, 0)


def test_no_credential_of_a_request_is_left_or_shown(site: Site, syslog: Syslog) -> None:
    """Neither in the log, nor where there is none to write to, nor by the admin's program."""
    scene = Scene(site)
    source = site.source
    program, admin = source.programs.source, source.programs.admin
    unwritable = source.write_configuration(
        source.configuration.read_text() + '[audit]\nfile = "/nonexistent/log"\n', "unwritable.toml"
    )
    results, given = [], []
    for text in CARELESS:
        given.append(_secret())
        request = text.format(secret=given[-1], data=scene.data)
        refused = _run(syslog, site, program, source.configuration, "luna", request=request)
        assert refused.exit == 64
        unrecorded = _run(syslog, site, program, unwritable, "luna", request=request)
        assert unrecorded.exit == 73
        explained = _run(
            syslog,
            site,
            admin,
            "explain",
            "--json",
            source.configuration,
            "luna",
            request,
            request="",
        )
        assert explained.exit == 64
        results += [refused, unrecorded, explained]
    shown = _run(syslog, site, admin, "audit", "show", "--json", source.audit_file, request="")
    results.append(shown)
    logged = syslog.messages()
    # What is to be searched is there, and says what the peer did all the same.
    assert len(logged) == len(CARELESS)
    assert all("borg-pull-source" in message for message in logged)
    records = source.audit(event="refused", exit=64)
    assert [record["request_truncated"] for record in records].count(True) == 1
    assert records[0]["request"] == f"create ssh://***@host/./r a {scene.data}"
    assert records[0]["reason"] == "repository 'ssh://***@host/./r' is not absolute"
    said = b"".join(result.stdout + result.stderr for result in results) + "".join(logged).encode()
    for secret in given:
        assert _files_with(secret, [source.directory], []) == []
        assert secret[:6].encode() not in said


def test_control_what_is_no_credential_stands_on_record_as_sent(site: Site, syslog: Syslog) -> None:
    scene = Scene(site)
    mark = _secret()
    configuration = site.source.configuration
    request = f"create /srv/{mark} a {scene.data}/{mark} --option-{mark}"
    result = _run(syslog, site, site.source.programs.source, configuration, "luna", request=request)
    assert mark in result.errors
    (record,) = site.source.audit()
    assert record["request"] == request
    assert _files_with(mark, [site.source.directory], []) == [site.source.audit_file]


def _plant(scene: Scene, sampler: Sampler) -> str:
    """A secret in an argument list, in an environment, and in three files."""
    planted = _secret()
    account = scene.site.account
    home = scene.site.source.home
    for number, form in enumerate((_forms(planted)[0], _forms(planted)[1], _forms(planted)[3])):
        scene.site.source.file(home / f"planted{number}", b"before " + form + b" behind")
    with subprocess.Popen(
        ["/bin/sh", "-c", "sleep 30; true", planted],
        env={"PLANTED": planted},
        user=account.uid,
        group=account.gid,
        extra_groups=[],
        start_new_session=True,
    ) as process:
        until(lambda: len(sampler.found(planted)) > 1, seconds=10, what="both to be seen")
        os.killpg(process.pid, signal.SIGKILL)
    return planted
