"""A borg that forks faster than it is killed is ended all the same, and costs no other client (D).

Threat: a borg that was taken over leaves chains of processes behind, each of which forks and
ends at once, so that who kills one finds another. They fill the table of processes, and the run
never ends. The kernel's limit on the account's processes is set low here, for the sake of the
machine; without that it is the program's own.
"""

from __future__ import annotations

import resource
import subprocess
from pathlib import Path

import pytest

from tests.harness.site import Site
from tests.harness.wait import until

pytestmark = [pytest.mark.needs_root, pytest.mark.builds("frozen")]

SOURCE = Path(__file__).with_name("fork_chains.c")
PROCESSES = 700


def compiled(program: Path, marker: Path, *, seconds: int, chains: int, pause: int = 0) -> Path:
    subprocess.run(
        [
            *("gcc", "-O2", "-static", f"-DSECONDS={seconds}", f"-DCHAINS={chains}"),
            f"-DPAUSE={pause}",
            *(f'-DMARKER="{marker}"', "-o", str(program), str(SOURCE)),
        ],
        check=True,
    )
    program.chmod(0o755)
    return program


def test_chains_of_forks_are_ended(site: Site) -> None:
    source = site.source
    data = source.tree()
    marker = source.state("luna") / "outlived"
    chains = compiled(source.directory / "borg", marker, seconds=120, chains=200)

    def allow(borg: Path) -> None:
        rules = {"paths": [str(data)], "allow_unknown_repository": True}
        source.write_whitelist({"luna": rules, "nova": rules}, runtime={"borg": str(borg)})

    allow(chains)
    command = f"ulimit -p {PROCESSES}; exec {source.programs.source} {source.configuration} luna"
    nova = site.peer("nova")
    own = nova.repository("nova")
    luna = site.peer(command=command)
    with luna.listening(site.repository()) as listener:
        result = luna.start(f"create /r a {data}", listener).wait()
    assert result.exit == 2, result.errors
    assert not marker.exists()
    source.assert_nothing_left("luna")
    assert [record["event"] for record in source.audit()] == ["start", "complete"]
    # Control: another client's pull, right after.
    allow(site.borg)
    result = nova.pull(f"create {own.path} b {data}", own)
    assert result.exit == 0, result.errors


def test_control_chains_that_nobody_ends_go_on(tmp_path: Path) -> None:
    marker = tmp_path / "outlived"
    # Nothing limits root's, and an init that reaps slowly would leave no number for a process.
    chains = compiled(tmp_path / "chains", marker, seconds=1, chains=2, pause=1000)
    assert subprocess.run([chains], check=False).returncode == 2
    until(marker.exists, seconds=20, what="the end of a chain")


def test_borg_may_not_take_all_processes_of_the_machine(site: Site) -> None:
    source = site.source
    data = source.tree()
    report = source.state("luna") / "limit"
    reporter = source.directory / "borg"
    reporter.write_text(f"#!/bin/sh\nulimit -p > {report}\n")
    reporter.chmod(0o755)
    source.write_whitelist({"luna": {"paths": [str(data)]}}, runtime={"borg": str(reporter)})
    site.pull(f"create /r a {data}", site.repository())
    most = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    allowed = 4096 if most == resource.RLIM_INFINITY else min(most, 4096)
    assert int(report.read_text()) == allowed
