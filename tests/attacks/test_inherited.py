"""What a caller leaves in force reaches neither borg nor the record of the run (C).

Threat: exec keeps ignored and blocked signals, timers, limits, the mask for new files, the working
directory, open descriptors and the environment. An account's shell, sshd's settings or a local user
who acts as the account may have set any of them; one of them could end a run half-way, write a
file's content where others read it, or hand borg a descriptor that was not granted. The control is
the same caller starting the reporting program itself.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.harness.builds import FROZEN_14
from tests.harness.fixtures import SiteMaker
from tests.harness.site import Site

pytestmark = pytest.mark.needs_root

CALLER = Path(__file__).with_name("hostile_caller.py")
INFINITY = resource.RLIM_INFINITY
NO_RANDOM_ADDRESSES = 0x0040000  # linux/personality.h: ADDR_NO_RANDOMIZE
# What Python itself ignores.
OF_PYTHON = 1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1
IGNORED = (
    *(signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP, signal.SIGUSR1, signal.SIGALRM),
    *(signal.SIGTSTP, signal.SIGXCPU, signal.SIGRTMIN),
    # The C library's own two, which only a raw call of the kernel sets (nptl(7)).
    *(32, 33),
)
BLOCKED = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGUSR2)

REPORTER = """\
#!/usr/bin/python3 -I
import json, os, resource, signal, sys
umask = os.umask(0)
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines())
report = {{
    "umask": umask,
    "directory": os.getcwd(),
    "ignored": int(status["SigIgn"], 16),
    "blocked": int(status["SigBlk"], 16),
    "timers": [signal.getitimer(which)[0] for which in (0, 1, 2)],
    "core": resource.getrlimit(resource.RLIMIT_CORE),
    "descriptors": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    "open": [int(name) for name in os.listdir("/proc/self/fd")],
    "environment": sorted(os.environ),
    "personality": open("/proc/self/personality").read().strip(),
}}
# Listing them took one more.
report["open"] = [one for one in report["open"] if os.path.exists("/proc/self/fd/%d" % one)]
with open({report!r}, "w") as file:
    json.dump(report, file)
"""


@pytest.fixture
def site(make_site: SiteMaker) -> Site:
    return make_site(FROZEN_14)


class Scene:
    """A source whose "borg" reports what it was left with, and a caller that leaves it all."""

    def __init__(self, site: Site) -> None:
        self.site = site
        source = site.source
        self.data = source.tree()
        self.secret = source.file(self.data / "file", "content")
        self.report = source.state("luna") / "report.json"
        self.reporter = source.directory / "borg"
        self.reporter.write_text(REPORTER.format(report=str(self.report)))
        self.reporter.chmod(0o755)
        self.caller = source.directory / CALLER.name
        self.caller.write_text(CALLER.read_text())
        source.write_whitelist(
            {"luna": {"paths": [str(self.data)]}},
            runtime={"borg": str(self.reporter)},
            confine={"landlock": "off"},
        )

    def command(self, program: Path, *arguments: str | Path) -> list[str]:
        """A caller that leaves in force whatever exec keeps, and becomes ``program``."""
        plan = {
            "program": str(program),
            "arguments": [str(program), *map(str, arguments)],
            "environment": {"MARK": "the caller's"},
            "adds": True,
            "directory": str(self.site.source.home),
            "umask": 0,
            "descriptors": {str(number): str(self.secret) for number in (3, 5, 77, 900)},
            "ignore": IGNORED,
            "block": BLOCKED,
            "timer": 3600,
            "personality": NO_RANDOM_ADDRESSES,
            "limits": {"CORE": [INFINITY, INFINITY], "NOFILE": [950, 4096]},
        }
        path = self.site.source.write_configuration(json.dumps(plan), f"plan-{program.name}")
        return ["/usr/bin/python3", "-I", str(self.caller), str(path)]

    def reported(self) -> dict[str, Any]:
        """What the reporter was left with."""
        report: dict[str, Any] = json.loads(self.report.read_text())
        self.report.unlink()
        return report


def test_borg_gets_nothing_that_a_caller_left(site: Site) -> None:
    scene = Scene(site)
    source = site.source
    command = scene.command(source.programs.source, source.configuration, "luna")
    peer = site.peer(command=" ".join(command))
    with peer.listening(site.repository()) as listener:
        result = peer.start(f"create /r a {scene.data}", listener).wait()
    assert (result.exit, result.errors) == (0, "")
    report = scene.reported()
    assert report.pop("descriptors") == 2048
    environment = report.pop("environment")
    assert "MARK" not in environment
    assert not any(name.startswith("SSH_") for name in environment)
    assert report == {
        "umask": 0o027,
        "directory": "/",
        "ignored": OF_PYTHON,
        "blocked": 0,
        "timers": [0, 0, 0],
        "core": [1, 1],
        "open": [0, 1, 2],
        "personality": "00000000",
    }
    assert [record["event"] for record in source.audit()] == ["start", "complete"]
    # Control: started by that caller itself, the reporter is left with all of it.
    done = subprocess.run(
        scene.command(scene.reporter),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        user=site.account.uid,
        group=site.account.gid,
        extra_groups=[],
        check=True,
    )
    assert done.stderr == b""
    report = scene.reported()
    assert all(left > 3000 for left in report.pop("timers"))
    assert report.pop("ignored") == OF_PYTHON | sum(1 << number - 1 for number in IGNORED)
    assert report.pop("blocked") == sum(1 << number - 1 for number in BLOCKED)
    assert {3, 5, 77, 900} <= {*report.pop("open")}
    assert "MARK" in report.pop("environment")
    assert report == {
        "umask": 0,
        "directory": str(source.home),
        "core": [-1, -1],
        "descriptors": 950,
        "personality": f"{NO_RANDOM_ADDRESSES:08x}",
    }
