"""(d): whole backups: pulled through us, pushed by plain ssh, pulled by hand with socat.

All three run the same borg on the same data over the same private sshd on loopback, into fresh
repositories without encryption, with lz4.

(g): what the kernel's confinement of borg costs a whole pull.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.harness import builds
from tests.harness.peer import Peer, Repository
from tests.harness.source import Source, toml
from tests.harness.sshd import SshServer, make_key
from tests.harness.workplace import IS_ROOT, Account, Workplace

from . import data
from .figures import Aim, Measure, Ratio, Section

SECONDS = 900.0
COMPRESSION = "lz4"
OURS = "borg-pull"
PUSH = "push by ssh"
BY_HAND = "ssh -R, socat and a script"
AT_OR_BELOW = Aim(at_most=True, bound=1.0)
CONFINED = "confined"
UNCONFINED = "not confined"
UNCHANGED_PULLS = 4  # after each of new files


class Way:
    """One way to make a backup of a tree into a repository; ``name`` as in the results."""

    def __init__(self, name: str) -> None:
        self.name = name

    def repository(self, number: int) -> Repository:
        """A new repository, empty, and nothing known of it at the source."""
        raise NotImplementedError

    def save(self, tree: Path, repository: Repository, archive: str) -> float:
        """Make one backup; seconds from start to end. Raises AssertionError unless it succeeds."""
        raise NotImplementedError


class Pulled(Way):
    """Pulled through a forced command: ours, the peer's, or the script made by hand."""

    def __init__(
        self, name: str, peer: Peer, state: Path, socket: Path, options: Sequence[str] = ()
    ) -> None:
        super().__init__(name)
        self._peer = peer
        self._state = state
        self._socket = socket
        self._options = options

    def repository(self, number: int) -> Repository:
        empty(self._state)
        repository = self._peer.repository(f"r{number}", initialised=False)
        # Not a copy of a template: borg tells repositories apart by their id.
        repository.init()
        return repository

    def save(self, tree: Path, repository: Repository, archive: str) -> float:
        # Not every forced command removes it, and a second forwarding to it would fail.
        self._socket.unlink(missing_ok=True)
        request = f"-C {COMPRESSION} create {repository.path} {archive} {tree}"
        with self._peer.listening(repository) as listener:
            pull = self._peer.start(request, listener, options=self._options)
            result = pull.wait(SECONDS)
        assert result.exit == 0, f"{self.name}: {result.errors}"
        return result.duration


class Pushed(Way):
    """``borg create ssh://...`` on the source, ``borg serve`` by forced command on the server."""

    def __init__(
        self, workplace: Workplace, server: SshServer, source: Source, receiver: Account
    ) -> None:
        super().__init__(PUSH)
        self._source = source
        self._receiver = receiver
        self._port = server.port
        self._borg = source.borg
        self._directory = workplace.directory("q")
        self._state = self._owned("state", source.account)
        self._repositories = self._owned("repositories", receiver)
        self._server_state = self._owned("server", receiver)
        key = self._directory / "key"
        public = make_key(key)
        _give(key, source.account)
        known_hosts = self._directory / "known_hosts"
        known_hosts.write_text(server.known_hosts_line)
        self._ssh = (
            f"ssh -F none -i {key} -o IdentitiesOnly=yes -o BatchMode=yes"
            f" -o StrictHostKeyChecking=yes -o UserKnownHostsFile={known_hosts}"
            " -o GlobalKnownHostsFile=/dev/null -o LogLevel=ERROR"
        )
        serve = (
            f"env BORG_BASE_DIR={self._server_state} LC_ALL=C.UTF-8 {self._borg} serve"
            f" --restrict-to-path {self._repositories}"
        )
        server.authorize(receiver, f'restrict,command="{serve}" {public}')

    def _owned(self, name: str, account: Account) -> Path:
        path = self._directory / name
        path.mkdir(mode=0o700)
        _give(path, account)
        return path

    def repository(self, number: int) -> Repository:
        empty(self._state)
        path = self._repositories / f"r{number}"
        repository = Repository(
            path, self._borg, self._server_state, encryption="none", passphrase=""
        )
        self._run_as(
            self._receiver, [self._borg, "init", "-e", "none", path], repository.environment()
        )
        return repository

    def save(self, tree: Path, repository: Repository, archive: str) -> float:
        url = f"ssh://{self._receiver.name}@127.0.0.1:{self._port}{repository.path}::{archive}"
        environment = {
            "PATH": "/usr/bin:/bin",
            "LC_ALL": "C.UTF-8",
            "HOME": str(self._state),
            "BORG_BASE_DIR": str(self._state),
            "BORG_RSH": self._ssh,
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }
        started = time.monotonic()
        self._run_as(
            self._source.account, [self._borg, "create", "-C", COMPRESSION, url, tree], environment
        )
        return time.monotonic() - started

    @staticmethod
    def _run_as(
        account: Account, command: Sequence[str | Path], environment: Mapping[str, str]
    ) -> None:
        become = ["setpriv", "--pdeathsig", "KILL"]
        if IS_ROOT:
            become += ["--reuid", str(account.uid), "--regid", str(account.gid), "--clear-groups"]
        done = subprocess.run(
            [*become, *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{command[1]}: {done.stderr}"


def pulls(
    workplace: Workplace,
    borg: Path,
    peer: Path | None,
    *,
    repeats: int,
    first_mebibytes: int,
    second_files: int,
) -> Section:
    """A whole first backup, and a second one of many files of which none has changed."""
    section = Section(
        "d", f"whole backups: {first_mebibytes} MiB first; {second_files:,} unchanged files second"
    )
    with _ways(workplace, borg, peer) as (source, ways):
        tree = source.tree("mixed")
        data.mixed(tree, first_mebibytes)
        first = in_turn(source, ways, tree, repeats, warm_up=False)
        shutil.rmtree(tree)
        tree = source.tree("many")
        data.many(tree, second_files)
        second = in_turn(source, ways, tree, repeats, warm_up=True)
    for label, found in (("first", first), ("second", second)):
        measures = {
            name: Measure(f"{label}, {name}", "s", values) for name, values in found.items()
        }
        section.measures += measures.values()
        section.ratios += [
            Ratio(f"{label}, {OURS} / {name}", measures[OURS], measures[name], AT_OR_BELOW)
            for name in (PUSH, BY_HAND)
        ]
        if peer is not None:
            section.ratios.append(
                Ratio(f"{label}, {OURS} / {peer.name}", measures[OURS], measures[peer.name], None)
            )
    return section


def confinement(workplace: Workplace, borg: Path, *, repeats: int, files: int) -> Section:
    """Pulls of many files into a new repository, and then of the same ones, unchanged."""
    section = Section("g", f"whole pulls of {files:,} files, confined and not")
    with running_source(workplace, borg) as (server, source):
        ways = [
            _confined(workplace, server, source, name, landlock)
            for name, landlock in ((CONFINED, "required"), (UNCONFINED, "off"))
        ]
        tree = source.tree("many")
        data.many(tree, files)
        data.give(tree, source.account.uid, source.account.gid)
        found: dict[tuple[str, str], list[float]] = {}
        for turn in range(repeats):
            repositories = {way.name: way.repository(turn) for way in ways}
            for pull in range(1 + UNCHANGED_PULLS):
                files_are = "unchanged" if pull else "new"
                for way in (ways, ways[::-1])[(turn + pull) % 2]:
                    os.sync()
                    seconds = way.save(tree, repositories[way.name], f"measured-{pull}")
                    found.setdefault((files_are, way.name), []).append(seconds)
                    cpu = found.setdefault((f"{files_are}, processor time", way.name), [])
                    cpu.append(way.processor_time())
            for repository in repositories.values():
                shutil.rmtree(repository.path)
    for label in dict.fromkeys(label for label, _ in found):
        ours, reference = (
            Measure(f"{label}, {name}", "s", found[label, name]) for name in (CONFINED, UNCONFINED)
        )
        section.measures += [ours, reference]
        aim = Aim(at_most=True, bound=1.02)
        section.ratios.append(Ratio(f"{label}, {CONFINED} / {UNCONFINED}", ours, reference, aim))
    return section


class Confined(Pulled):
    """A pull of ours, with the processor time that the forced command and borg took."""

    def __init__(self, name: str, peer: Peer, source: Source, landlock: str, times: Path) -> None:
        super().__init__(name, peer, source.state(landlock), source.socket(landlock))
        self._times = times

    def processor_time(self) -> float:
        """Seconds, of the last run and all it waited for."""
        # Of the shell and of its children: user and system time, each as 0m0.000s.
        words = self._times.read_text().split()
        return sum(
            60 * int(minutes) + float(seconds.rstrip("s"))
            for minutes, _, seconds in (word.partition("m") for word in words)
        )


def _confined(
    workplace: Workplace, server: SshServer, source: Source, name: str, landlock: str
) -> Confined:
    """Our pull with ``confine.landlock`` as given, by a client and a configuration of its own."""
    client = Peer(workplace, server, source, landlock, source.borg)
    document = {
        "runtime": source.runtime(),
        "confine": {"landlock": landlock},
        "client": {landlock: {"trees": [str(source.directory)], "allow_unknown_repository": True}},
    }
    configuration = source.write_configuration(toml(document), f"{landlock}.toml")
    times = source.home / f"{landlock}.times"
    client.authorize(
        f"{source.programs.source} {configuration} {landlock}; code=$?; times >{times}; exit $code"
    )
    return Confined(name, client, source, landlock, times)


@contextlib.contextmanager
def _ways(
    workplace: Workplace, borg: Path, peer: Path | None
) -> Iterator[tuple[Source, list[Way]]]:
    with running_source(workplace, borg) as (server, source):
        ways: list[Way] = [
            _ours(workplace, server, source),
            Pushed(workplace, server, source, workplace.account()),
            _by_hand(workplace, server, source),
        ]
        if peer is not None:
            ways.append(_other(workplace, server, source, peer))
        yield source, ways


@contextlib.contextmanager
def running_source(workplace: Workplace, borg: Path) -> Iterator[tuple[SshServer, Source]]:
    """A source with our programs, and its sshd, which runs."""
    # For the answers of `_other`.
    server = SshServer(workplace, first=["AcceptEnv BORG_*"])
    server.start()
    try:
        programs = builds.install("frozen", workplace, capable=IS_ROOT)
        yield server, Source(workplace, workplace.account(), programs, borg)
    finally:
        server.stop()


def _ours(workplace: Workplace, server: SshServer, source: Source) -> Way:
    client = Peer(workplace, server, source, "luna", source.borg)
    client.authorize()
    rules = {
        "trees": [str(source.directory)],
        "allow_unknown_repository": True,
        "allow_relocated_repository": True,
    }
    source.write_whitelist({"luna": rules})
    return Pulled(OURS, client, source.state("luna"), source.socket("luna"))


def _by_hand(workplace: Workplace, server: SshServer, source: Source) -> Way:
    client, state = by_hand(workplace, server, source, "hand")
    return Pulled(BY_HAND, client, state, source.socket("hand"))


def by_hand(
    workplace: Workplace, server: SshServer, source: Source, name: str
) -> tuple[Peer, Path]:
    """A client of what one would write in five minutes, and its state: it checks nothing."""
    client = Peer(workplace, server, source, name, source.borg)
    state = source.home / f"by-{name}"
    state.mkdir()
    source.give(state)
    wrapper = source.file(
        source.directory / f"{name}-rsh",
        f"#!/bin/sh\nexec socat - UNIX-CONNECT:{source.socket(name)}\n",
        mode=0o755,
    )
    script = source.file(
        source.directory / f"{name}-backup",
        "#!/bin/sh\n"
        # The words of the request; the data's paths here have nothing to quote.
        "set -- $SSH_ORIGINAL_COMMAND\n"
        f"rm_socket() {{ rm -f {source.socket(name)}; }}\n"
        "trap rm_socket EXIT\n"
        f"export BORG_BASE_DIR={state} BORG_RSH={wrapper} LC_ALL=C.UTF-8\n"
        "export BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes\n"
        "export BORG_RELOCATED_REPO_ACCESS_IS_OK=yes\n"
        f'{source.borg} create "$1" "$2" "ssh://hand$4::$5" "$6"\n',
        mode=0o755,
    )
    client.authorize(str(script))
    return client, state


def _other(workplace: Workplace, server: SshServer, source: Source, program: Path) -> Way:
    client = Peer(workplace, server, source, "other", source.borg)
    home = source.directory / "other-home"
    home.mkdir(mode=0o700)
    source.give(home)
    configuration = source.directory / "other.toml"
    wrapper = source.directory / "other-rsh"
    shutil.copy(builds.PROJECT / "contrib/socket-wrap.sh", wrapper)
    document = {
        "runtime": {
            "socket_wrapper": str(wrapper),
            "socket_dir": str(source.socket_dir),
            "home": str(home),
        },
        "client": {
            "other": {"paths": [str(source.directory / name) for name in ("mixed", "many")]}
        },
    }
    configuration.write_text(toml(document))
    configuration.chmod(0o644)
    client.authorize(f"{program} {configuration} other")
    # It may leave borg's questions unanswered, which sshd can be asked to answer for it.
    answers = " ".join(
        f"BORG_{question}_REPO_ACCESS_IS_OK=yes"
        for question in ("UNKNOWN_UNENCRYPTED", "RELOCATED")
    )
    return Pulled(program.name, client, home, source.socket("other"), ("-o", f"SetEnv={answers}"))


def in_turn(
    source: Source, ways: Sequence[Way], tree: Path, repeats: int, *, warm_up: bool
) -> dict[str, list[float]]:
    """Seconds of each way, one after the other in each turn, each turn beginning with another.

    With ``warm_up`` each repository gets a first backup, and what is measured is the second.
    """
    data.give(tree, source.account.uid, source.account.gid)
    found: dict[str, list[float]] = {way.name: [] for way in ways}
    for turn in range(repeats):
        for position in range(len(ways)):
            way = ways[(turn + position) % len(ways)]
            repository = way.repository(turn)
            if warm_up:
                way.save(tree, repository, "before")
            # What the run before left to be written must not slow this one.
            os.sync()
            found[way.name].append(way.save(tree, repository, "measured"))
            shutil.rmtree(repository.path)
    return found


def empty(directory: Path) -> None:
    """Remove what is in ``directory``, if it is there."""
    if not directory.is_dir():
        return
    for entry in directory.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _give(path: Path, account: Account) -> None:
    if IS_ROOT:
        os.chown(path, account.uid, account.gid)
