"""(a) and (b): from the start of the forced command to the exec of borg. (e): its memory."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.harness import builds, processes
from tests.harness.wait import until
from tests.harness.workplace import IS_ROOT, Workplace

from .figures import Aim, Limit, Measure, Ratio, Section
from .stage import CLIENT, CLIENT_RULES, EAGER_RULES, Stage, Started

# The version the bundle is frozen from: a version manager's python3 may be another.
INTERPRETER = "/usr/bin/python3.11"
FLEET = 10_000
KIB_PER_MIB = 1024


@dataclass(frozen=True)
class Runner:
    """One thing that is started: how it is called in the results, and how to start it once."""

    name: str
    start: Callable[[], Started]


def interleaved(runners: Sequence[Runner], repeats: int) -> dict[str, list[Started]]:
    """Start each ``repeats`` times, one of each in turn, each turn beginning with another one.

    What disturbs the machine then disturbs all of them alike. Two turns before are thrown away:
    they bring files into memory and make the state directories.
    """
    found: dict[str, list[Started]] = {runner.name: [] for runner in runners}
    for turn in range(-2, repeats):
        for position in range(len(runners)):
            runner = runners[(turn + position) % len(runners)]
            started = runner.start()
            if turn >= 0:
                found[runner.name].append(started)
    return found


def _fleet() -> dict[str, Mapping[str, object]]:
    return {f"client-{number:05}": CLIENT_RULES for number in range(FLEET)}


def _measure(
    name: str, what: str, found: Sequence[Started], value: Callable[[Started], float | None]
) -> Measure:
    values = [value(one) for one in found]
    assert None not in values, f"{name} did not start borg"
    return Measure(f"{name}, {what}", "ms", [value for value in values if value is not None])


def _to_exec(name: str, found: Mapping[str, Sequence[Started]]) -> Measure:
    return _measure(name, "to exec", found[name], lambda one: one.to_exec)


def _to_exit(name: str, found: Mapping[str, Sequence[Started]]) -> Measure:
    return _measure(name, "to exit", found[name], lambda one: one.to_exit)


def _cpu_to_exec(name: str, found: Mapping[str, Sequence[Started]]) -> Measure:
    return _measure(name, "processor time to exec", found[name], lambda one: one.cpu_to_exec)


def _cpu_to_exit(name: str, found: Mapping[str, Sequence[Started]]) -> Measure:
    return _measure(name, "processor time to exit", found[name], lambda one: one.cpu_to_exit)


class _Programs:
    """The forced commands under test on one stage."""

    def __init__(self, workplace: Workplace, peer: Path | None) -> None:
        self.stage = Stage(workplace)
        self.plain = builds.install("frozen", workplace, capable=False).source
        self.plain.chmod(0o755)  # the bundle's own mode lets only its group start it
        self.capable = builds.install("frozen", workplace, capable=True).source if IS_ROOT else None
        self.peer = peer

    def ours(self, name: str, program: Path, configuration: Path) -> Runner:
        """A runner of our program, told the stand-in by the configuration."""
        return Runner(name, lambda: self.stage.start([program, configuration, CLIENT]))

    def peers(self, name: str, configuration: Path) -> Runner:
        """A runner of the other program, which cannot be told where borg is."""
        peer, stage = self.peer, self.stage
        assert peer is not None
        return Runner(
            name,
            lambda: stage.start([peer, configuration, CLIENT], instead_of_borg=stage.noop_borg),
        )

    def runtime(self) -> dict[str, object]:
        """The keys of ``[runtime]`` that make the stand-in borg."""
        return {"borg": str(self.stage.noop_borg)}

    def runtime_of_peer(self) -> dict[str, object]:
        """The original tool's remaining key; it finds borg by itself."""
        shutil.copy(self.stage.noop_borg, self.stage.binaries / "borg")
        return {"socket_wrapper": "/bin/false"}


def overhead(workplace: Workplace, repeats: int, peer: Path | None) -> Section:
    """(a) against the bare interpreter."""
    programs = _Programs(workplace, peer)
    stage = programs.stage
    configuration = stage.configuration("a", programs.runtime(), {CLIENT: EAGER_RULES})
    bare = "bare interpreter"
    runners = [
        Runner(bare, lambda: stage.start([INTERPRETER, "-I", "-S", "-c", "pass"])),
        programs.ours("frozen", programs.plain, configuration),
    ]
    if programs.capable is not None:
        runners.append(programs.ours("frozen, with capability", programs.capable, configuration))
    if peer is not None:
        theirs = stage.configuration("p", programs.runtime_of_peer(), {CLIENT: CLIENT_RULES})
        runners.append(programs.peers(peer.name, theirs))
    found = interleaved(runners, repeats)
    section = Section("a", "forced command: start to exec of a no-op borg")
    reference = _to_exit(bare, found)
    cpu_reference = _cpu_to_exit(bare, found)
    section.measures += [reference, cpu_reference]
    aim = Aim(at_most=True, bound=2.0)
    for runner in runners[1:]:
        is_ours = runner.name.startswith("frozen")
        whole = _to_exit(runner.name, found)
        if is_ours or found[runner.name][0].to_exec is not None:
            ours = _to_exec(runner.name, found)
            section.measures.append(ours)
            section.ratios.append(
                Ratio(f"{ours.name} / {bare}", ours, reference, aim if is_ours else None)
            )
        else:
            section.notes.append(f"{runner.name} never started the stand-in for borg")
        section.measures.append(whole)
        section.ratios.append(Ratio(f"{whole.name} / {bare}", whole, reference, None))
        if is_ours:
            cpu = _cpu_to_exec(runner.name, found)
            section.measures.append(cpu)
            section.ratios.append(Ratio(f"{cpu.name} / {bare}", cpu, cpu_reference, None))
    if programs.capable is None:
        section.notes.append("not root: the program with its file capability is left out")
    return section


def fleet(workplace: Workplace, repeats: int, peer: Path | None) -> Section:
    """(b) with 10,000 clients configured, against one."""
    programs = _Programs(workplace, peer)
    stage = programs.stage
    one = stage.configuration("one", programs.runtime(), {})
    stage.add_client_files(one, {CLIENT: EAGER_RULES})
    many = stage.configuration("many", programs.runtime(), {})
    stage.add_client_files(many, {**_fleet(), CLIENT: EAGER_RULES})
    table = stage.configuration("file", programs.runtime(), {**_fleet(), CLIENT: EAGER_RULES})
    names = ("1 client", f"{FLEET:,} in clients.d", f"{FLEET:,} in one file")
    found = interleaved(
        [
            programs.ours(name, programs.plain, configuration)
            for name, configuration in zip(names[:2], (one, many), strict=True)
        ],
        repeats,
    )
    found |= interleaved([programs.ours(names[2], programs.plain, table)], max(3, repeats // 20))
    section = Section("b", "forced command: cost of the number of clients")
    measures = [_to_exec(name, found) for name in names]
    section.measures += measures
    section.ratios += [
        Ratio(f"{names[1]} / 1", measures[1], measures[0], Aim(at_most=True, bound=1.02)),
        Ratio(f"{names[2]} / 1", measures[2], measures[0], None),
    ]
    if peer is not None:
        _fleet_of_peer(section, programs, peer, max(3, repeats // 20))
    return section


def _fleet_of_peer(section: Section, programs: _Programs, peer: Path, repeats: int) -> None:
    stage = programs.stage
    runtime = programs.runtime_of_peer()
    one = stage.configuration("p1", runtime, {CLIENT: CLIENT_RULES})
    many = stage.configuration("p2", runtime, {**_fleet(), CLIENT: CLIENT_RULES})
    names = (f"{peer.name}, 1 client", f"{peer.name}, {FLEET:,}")
    found = interleaved(
        [programs.peers(names[0], one), programs.peers(names[1], many)],
        repeats,
    )
    measures = [_to_exit(name, found) for name in names]
    section.measures += measures
    section.ratios.append(Ratio(f"{peer.name}, {FLEET:,} / 1", measures[1], measures[0], None))


def memory(workplace: Workplace, repeats: int) -> Section:
    """(e) what the forced command holds while borg runs."""
    programs = _Programs(workplace, None)
    stage = programs.stage
    configuration = stage.configuration(
        "e", {"borg": str(stage.waiting_borg)}, {CLIENT: EAGER_RULES}
    )
    section = Section("e", "memory of the waiting forced command")
    variants = {"frozen": programs.plain}
    if programs.capable is not None:
        variants["frozen, with capability"] = programs.capable
    for name, program in variants.items():
        seen = [_waiting_memory(stage, program, configuration) for _ in range(repeats)]
        for kind in seen[0]:
            measure = Measure(f"{name}, {kind}", "MiB", [one[kind] for one in seen])
            section.measures.append(measure)
            if kind == "Rss":
                # Rss counts shared pages in full, so it is the strictest of the three.
                section.limits.append(Limit(measure, Aim(at_most=True, bound=12)))
    return section


def _waiting_memory(stage: Stage, program: Path, configuration: Path) -> dict[str, float]:
    # The state directory's own name is chosen at random when the first run makes it.
    directory = stage.home / "clients" / CLIENT
    for path in (*directory.glob("*/waiting"), *directory.glob("*/end")):
        path.unlink()
    with stage.forwarded_socket():
        command: list[str | Path] = [
            *(stage.launch, str(stage.account.uid), str(stage.account.gid)),
            *(program, configuration, CLIENT),
        ]
        launched = subprocess.Popen(
            command,
            env=stage.environment(),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            until(
                lambda: list(directory.glob("*/waiting")),
                seconds=30,
                what="the stand-in for borg to run",
            )
            waiting = next(
                process
                for process in processes.descendants(launched.pid)
                if process.parent == launched.pid
            )
            until(lambda: _sleeps(waiting.pid), seconds=30, what="the forced command to wait")
            return rollup(waiting.pid)
        finally:
            for state in directory.glob("*"):
                (state / "end").touch()
            _, errors = launched.communicate(timeout=90)
            if errors:
                print(errors.decode(errors="replace"), file=sys.stderr)


def _sleeps(pid: int) -> bool:
    process = processes.read(pid)
    return process is not None and process.state == "S"


def rollup(pid: int) -> dict[str, float]:
    """Rss, Pss and Private of a process in MiB (proc_pid_smaps(5)); only root may see the last
    two of a program that forbids tracing."""
    if not IS_ROOT:
        status = Path(f"/proc/{pid}/status").read_text()
        return {"Rss": int(status.partition("VmRSS:")[2].split()[0]) / KIB_PER_MIB}
    kibibytes: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value, *_ = line.split()
        kibibytes[name.rstrip(":")] = int(value)
    kibibytes["Private"] = kibibytes["Private_Clean"] + kibibytes["Private_Dirty"]
    return {name: kibibytes[name] / KIB_PER_MIB for name in ("Rss", "Pss", "Private")}
