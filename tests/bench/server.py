"""The backup server's program, ``borg-pull``, beside what one would do by hand.

(h): whole pulls. (i): many sources. (j): memory. (l): the ciphers ssh may use.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from borg_pull.pull.ssh import CIPHERS
from tests.harness import processes
from tests.harness.peer import Peer, Repository
from tests.harness.source import Source, toml
from tests.harness.sshd import SshServer
from tests.harness.workplace import Workplace

from . import backup, data
from .backup import AT_OR_BELOW, COMPRESSION, SECONDS, Way
from .figures import Aim, Measure, Ratio, Section
from .forced import rollup

OURS = "borg-pull run"
BY_HAND = "ssh -R, socat and borg serve"
WORKERS = 8
DEFAULT_CIPHER = "chacha20-poly1305@openssh.com"
SAMPLE_SECONDS = 0.1

# REPOSITORY SOCKET SSH...: the backup server's half of a pull by hand.
HAND = """#!/bin/sh
repository=$1 socket=$2
shift 2
socat UNIX-LISTEN:"$socket",mode=600 \\
    EXEC:"{borg} serve --append-only --restrict-to-repository $repository" &
until [ -S "$socket" ]; do sleep 0.01; done
"$@"
code=$?
wait
exit $code
"""


@dataclass(frozen=True)
class Job:
    """One source's pull: who asks, into what, and what is pulled."""

    peer: Peer
    repository: Repository
    tree: Path


class BackupServer:
    """Our program with a configuration and a state of its own."""

    def __init__(self, workplace: Workplace, server: SshServer, source: Source) -> None:
        self.directory = workplace.directory("v", mode=0o700)
        self._configuration = self.directory / "pull.toml"
        self._source = source
        self._port = server.port
        state = self.directory / "state"
        state.mkdir(mode=0o700)
        (state / "known_hosts").write_text(server.known_hosts_line)

    def configure(self, jobs: Mapping[str, Job]) -> None:
        """Have these jobs, by name, and no others."""
        document: dict[str, Any] = {
            "settings": {
                "state_dir": str(self.directory / "state"),
                "runtime_dir": str(self.directory / "r"),
            },
            "source": {
                name: {
                    "host": "127.0.0.1",
                    "port": self._port,
                    "user": self._source.account.name,
                    "identity": str(job.peer.directory / "key"),
                }
                for name, job in jobs.items()
            },
            "repository": {
                name: {"path": str(job.repository.path), "borg": str(job.repository.borg)}
                for name, job in jobs.items()
            },
            "job": {
                name: {
                    "source": name,
                    "repository": name,
                    "paths": [str(job.tree)],
                    "compression": COMPRESSION,
                    # One job pulls trees of all sizes here.
                    "shrink_alarm": 0,
                }
                for name, job in jobs.items()
            },
        }
        self._configuration.write_text(toml(document))
        self._configuration.chmod(0o600)

    def forget(self) -> None:
        """Expect none of the archives so far: their repository is gone."""
        path = self.directory / "state" / "ledger.sqlite"
        if path.exists():
            with contextlib.closing(sqlite3.connect(path)) as ledger, ledger:
                ledger.execute("UPDATE run SET gone = started WHERE gone IS NULL")

    def start(self, *words: str) -> subprocess.Popen[str]:
        """``borg-pull WORDS``."""
        return subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "TERM", "--", str(self._source.programs.pull)),
                *("--config", str(self._configuration), *words),
            ],
            env={
                "PATH": "/usr/bin:/bin",
                "LC_ALL": "C.UTF-8",
                "HOME": str(self.directory),
                "BORG_BASE_DIR": str(self.directory / "borg"),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str) -> tuple[float, str]:
        """``borg-pull WORDS``: seconds from start to end, and its output."""
        started = time.monotonic()
        process = self.start(*words)
        stdout, stderr = process.communicate(timeout=SECONDS)
        seconds = time.monotonic() - started
        assert process.returncode == 0, f"borg-pull {words}: {stderr}{stdout[-2000:]}"
        return seconds, stdout


class Hand:
    """The pipeline by hand for one client."""

    def __init__(self, source: Source, peer: Peer) -> None:
        self._source = source
        self._peer = peer
        self._number = itertools.count()
        self._script = peer.directory / "pull"
        self._script.write_text(HAND.format(borg=source.borg))
        self._script.chmod(0o700)

    def start(self, job: Job, archive: str) -> subprocess.Popen[str]:
        """A pull of ``job`` as ``archive``."""
        local = self._peer.directory / f"s{next(self._number)}"
        request = f"-C {COMPRESSION} create {job.repository.path} {archive} {job.tree}"
        remote = self._source.socket(self._peer.name)
        ssh = self._peer.command(request, ["-R", f"{remote}:{local}"])
        return subprocess.Popen(
            [self._script, job.repository.path, local, *ssh],
            env=job.repository.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def pull(self, job: Job, archive: str) -> float:
        """The same, to its end; seconds. Raises AssertionError unless it succeeds."""
        started = time.monotonic()
        process = self.start(job, archive)
        _, errors = process.communicate(timeout=SECONDS)
        seconds = time.monotonic() - started
        assert process.returncode == 0, f"{BY_HAND}: {errors}"
        return seconds


class _Ours(Way):
    def __init__(self, server: BackupServer, peer: Peer, state: Path) -> None:
        super().__init__(OURS)
        self._server = server
        self._peer = peer
        self._state = state

    def repository(self, number: int) -> Repository:
        self._server.forget()
        return _new_repository(self._peer, self._state, number)

    def save(self, tree: Path, repository: Repository, _archive: str) -> float:
        self._server.configure({"luna": Job(self._peer, repository, tree)})
        return self._server.run("run", "luna", "--quiet")[0]


class _ByHand(Way):
    def __init__(self, source: Source, peer: Peer, state: Path) -> None:
        super().__init__(BY_HAND)
        self._peer = peer
        self._state = state
        self._hand = Hand(source, peer)

    def repository(self, number: int) -> Repository:
        return _new_repository(self._peer, self._state, number)

    def save(self, tree: Path, repository: Repository, archive: str) -> float:
        return self._hand.pull(Job(self._peer, repository, tree), archive)


def _new_repository(peer: Peer, state: Path, number: int) -> Repository:
    backup.empty(state)
    repository = peer.repository(f"r{number}", initialised=False)
    repository.init()
    return repository


def _rules(source: Source) -> dict[str, object]:
    return {
        "trees": [str(source.directory)],
        "allow_unknown_repository": True,
        "allow_relocated_repository": True,
    }


@contextlib.contextmanager
def _both(workplace: Workplace, borg: Path) -> Iterator[tuple[Source, list[Way]]]:
    with backup.running_source(workplace, borg) as (server, source):
        ours = Peer(workplace, server, source, "luna", borg)
        ours.authorize()
        source.write_whitelist({"luna": _rules(source)})
        theirs, state = backup.by_hand(workplace, server, source, "hand")
        ways: list[Way] = [
            _Ours(BackupServer(workplace, server, source), ours, source.state("luna")),
            _ByHand(source, theirs, state),
        ]
        yield source, ways


def pulls(
    workplace: Workplace,
    borg: Path,
    *,
    first_repeats: int,
    first_mebibytes: int,
    second_repeats: int,
    second_files: int,
) -> Section:
    """(h) a first pull, and more of many files of which none has changed."""
    section = Section(
        "h", f"borg-pull run: {first_mebibytes} MiB first; {second_files:,} unchanged files after"
    )
    with _both(workplace, borg) as (source, ways):
        tree = source.tree("mixed")
        data.mixed(tree, first_mebibytes)
        first = backup.in_turn(source, ways, tree, first_repeats, warm_up=False)
        shutil.rmtree(tree)
        tree = source.tree("many")
        data.many(tree, second_files)
        data.give(tree, source.account.uid, source.account.gid)
        second: dict[str, list[float]] = {way.name: [] for way in ways}
        repositories = {way.name: way.repository(first_repeats) for way in ways}
        for turn in range(-1, second_repeats):
            for way in ways[:: 1 if turn % 2 else -1]:
                os.sync()
                seconds = way.save(tree, repositories[way.name], f"pull-{turn + 1}")
                if turn >= 0:
                    second[way.name].append(seconds)
    for label, found in (("first", first), ("no change", second)):
        ours, theirs = (Measure(f"{label}, {name}", "s", values) for name, values in found.items())
        section.measures += [ours, theirs]
        section.ratios.append(Ratio(f"{label}, {OURS} / by hand", ours, theirs, AT_OR_BELOW))
        if found is first:
            section.measures += [
                Measure(
                    f"throughput, {one.name}",
                    "MiB/s",
                    [first_mebibytes / seconds for seconds in one.values],
                )
                for one in (ours, theirs)
            ]
    section.notes.append(
        "the time of borg-pull run holds its own start, the look for the archive in the repository "
        "and its records; by hand nothing is looked for"
    )
    return section


class _Fleet:
    """Many sources on one host: for each a client of ours and one by hand, with the same data."""

    def __init__(
        self, workplace: Workplace, server: SshServer, source: Source, trees: Sequence[Path]
    ) -> None:
        names = [f"c{number}" for number in range(len(trees))]
        source.write_whitelist({name: _rules(source) for name in names})
        self.server = BackupServer(workplace, server, source)
        self.ours: dict[str, Job] = {}
        self.by_hand: list[tuple[Hand, Job]] = []
        for name, tree in zip(names, trees, strict=True):
            peer = Peer(workplace, server, source, name, source.borg)
            peer.authorize()
            self.ours[name] = Job(peer, peer.repository(initialised=False), tree)
            peer, _state = backup.by_hand(workplace, server, source, f"h{name}")
            job = Job(peer, peer.repository(initialised=False), tree)
            self.by_hand.append((Hand(source, peer), job))
        self.server.configure(self.ours)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            jobs = [*self.ours.values(), *(job for _hand, job in self.by_hand)]
            list(pool.map(lambda job: job.repository.init(), jobs))

    def run(self) -> tuple[float, float]:
        """All pulls by ``borg-pull``: seconds, and seconds that they took, added up."""
        seconds, events = self.server.run("run", "--all", "--jobs", str(WORKERS), "--json")
        ends = [one for one in map(json.loads, events.splitlines()) if one["event"] == "run_end"]
        assert len(ends) == len(self.ours)
        return seconds, sum(end["duration"] for end in ends)

    def queue(self, archive: str) -> float:
        """All pulls by hand, as many at once as ``borg-pull`` may; seconds."""
        started = time.monotonic()
        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(lambda pair: pair[0].pull(pair[1], archive), self.by_hand))
        return time.monotonic() - started


def packing(workplace: Workplace, borg: Path, *, repeats: int, sources: int, files: int) -> Section:
    """(i) all of many sources at once, against pipelines that a work queue keeps busy.

    Before what is measured each is pulled once: what is measured are pulls without a change.
    """
    section = Section("i", f"{sources} sources with --jobs {WORKERS}")
    together: list[float] = []
    packed: list[float] = []
    queued: list[float] = []
    with backup.running_source(workplace, borg) as (server, source):
        trees = []
        for number in range(sources):
            tree = source.tree(f"t{number}")
            # From many files to few: what is begun last is then short, by hand too.
            data.many(tree, max(1, files * 2 * (sources - number) // (sources + 1)))
            data.give(tree, source.account.uid, source.account.gid)
            trees.append(tree)
        fleet = _Fleet(workplace, server, source, trees)
        fleet.run()
        fleet.queue("before")
        for turn in range(repeats):
            for is_ours in (turn % 2 == 0, turn % 2 != 0):
                os.sync()
                if is_ours:
                    seconds, pulled = fleet.run()
                    together.append(seconds)
                    packed.append(pulled / WORKERS)
                else:
                    queued.append(fleet.queue(f"turn-{turn}"))
    whole = Measure(f"borg-pull run --all --jobs {WORKERS}", "s", together)
    perfect = Measure(f"its pulls' durations / {WORKERS}", "s", packed)
    queue = Measure(f"{WORKERS} pipelines by hand, kept busy", "s", queued)
    section.measures += [whole, perfect, queue]
    aim = Aim(at_most=True, bound=1.1)
    section.ratios += [
        Ratio("borg-pull run / perfect packing of its pulls", whole, perfect, aim),
        Ratio("borg-pull run / pipelines by hand", whole, queue, aim),
    ]
    return section


def memory(workplace: Workplace, borg: Path, *, mebibytes: int, pulls: int) -> Section:
    """(j) what the backup server's processes hold while pulls run, at their most."""
    section = Section("j", "memory of the backup server while pulls run: PSS at its most")
    with backup.running_source(workplace, borg) as (server, source):
        tree = source.tree("mixed")
        data.mixed(tree, mebibytes)
        data.give(tree, source.account.uid, source.account.gid)
        fleet = _Fleet(workplace, server, source, [tree] * (pulls + 1))
        one = _at_most(fleet.server.start("run", "c0", "--quiet"))
        fleet.server.configure({name: job for name, job in fleet.ours.items() if name != "c0"})
        many = _at_most(fleet.server.start("run", "--all", "--jobs", str(pulls), "--quiet"))
        hand, job = fleet.by_hand[0]
        alone = _at_most(hand.start(job, "archive"))
    for label, found in (
        (f"one pull, {OURS}", one),
        (f"{pulls} pulls, {OURS}", many),
        (f"one pull, {BY_HAND}", alone),
    ):
        section.measures += [
            Measure(f"{label}: {program}", "MiB", [held]) for program, held in found.items()
        ]
    further = Measure(f"a further pull, {OURS}", "MiB", [(many["all"] - one["all"]) / (pulls - 1)])
    section.measures.append(further)
    measures = {measure.name: measure for measure in section.measures}
    by_hand = measures[f"one pull, {BY_HAND}: all"]
    section.ratios += [
        Ratio(f"{ours.name} / by hand", ours, by_hand, None)
        for ours in (measures[f"one pull, {OURS}: all"], further)
    ]
    return section


def _at_most(process: subprocess.Popen[str]) -> dict[str, float]:
    """MiB by program of ``process`` and all below it, when together they held most."""
    said: list[tuple[str, str]] = []
    reader = threading.Thread(target=lambda: said.append(process.communicate()))
    reader.start()
    most = {"all": 0.0}
    while reader.is_alive():
        found: dict[str, float] = {}
        for one in (processes.read(process.pid), *processes.descendants(process.pid)):
            # It may end while it is looked at.
            with contextlib.suppress(OSError, KeyError):
                if one is not None:
                    kind = _kind(one)
                    found[kind] = found.get(kind, 0.0) + rollup(one.pid)["Pss"]
        total = sum(found.values())
        if total > most["all"]:
            most = {"all": total, **found}
        reader.join(SAMPLE_SECONDS)
    assert process.returncode == 0, said
    return most


def _kind(process: processes.Process) -> str:
    words = process.command.split()
    if "serve" in words:
        return "borg serve"
    return "before borg serve" if "--confined" in words else process.name


def ciphers(workplace: Workplace, borg: Path, *, repeats: int, mebibytes: int) -> Section:
    """(l) what ssh carries with each cipher that a pull may use."""
    section = Section("l", "ssh: throughput by cipher, from the source to the backup server")
    names = CIPHERS.split(",")
    found: dict[str, list[float]] = {name: [] for name in names}
    with backup.running_source(workplace, borg) as (server, source):
        peer = Peer(workplace, server, source, "luna", borg)
        peer.authorize(f"head -c {mebibytes}M /dev/zero")
        for turn in range(-1, repeats):
            for position in range(len(names)):
                name = names[(turn + position) % len(names)]
                speed = mebibytes / _carried(peer.command("data", ["-o", f"Ciphers={name}"]))
                if turn >= 0:
                    found[name].append(speed)
    measures = {name: Measure(name, "MiB/s", speeds) for name, speeds in found.items()}
    section.measures += measures.values()
    first = measures[names[0]]
    section.ratios += [
        Ratio(
            f"{names[0]} / {name}",
            first,
            measures[name],
            Aim(at_most=False, bound=1.0) if name == DEFAULT_CIPHER else None,
            rate=True,
        )
        for name in names[1:]
    ]
    return section


def _carried(command: Sequence[str | bytes | Path]) -> float:
    """Seconds from the first byte that comes to the last."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as ssh:
            assert ssh.stdout is not None
            os.read(ssh.stdout.fileno(), 1)
            started = time.monotonic()
            while os.splice(ssh.stdout.fileno(), null, 1 << 20):
                pass
            seconds = time.monotonic() - started
        assert ssh.returncode == 0
    finally:
        os.close(null)
    return seconds
