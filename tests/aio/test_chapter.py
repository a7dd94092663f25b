"""docs/nextcloud-aio.md, done command by command: real ssh, engine and borg, and a stand-in AIO."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from borg_pull.errors import BORG_ERROR
from tests.aio import node_red
from tests.aio.stand_in_aio import StandIn
from tests.harness.site import Installations
from tests.harness.wait import until
from tests.harness.workplace import Workplace
from tests.test_docs import (
    QUICKSTART,
    STARTS_SSHD,
    Command,
    TwoHosts,
    assert_as_shown,
    blocks,
    commands,
    follow,
)

pytestmark = pytest.mark.needs_root

CHAPTER = QUICKSTART.with_name("nextcloud-aio.md")
PROTOCOL = QUICKSTART.with_name("protocol.md")
OF_THE_COMPANION = ("jobs", "event", "aio-status", "health", "target", "metrics")
INSTALLS = ("2. Source: the programs", "4. Source: sshd")
PROGRAM = re.compile(r"(?<![\w/.-])borg-pull (?=[\w.-])")
_UNITS = "/etc/systemd/system"


class NextcloudHost(TwoHosts):
    """The chapter's hosts on this machine.

    What stands for what, beside what stands so in `TwoHosts`:

    ================================  =================================================
    chapter                           here
    ================================  =================================================
    Nextcloud AIO                     the stand-in, on an engine of the tests' own
    /var/run/docker.sock, /mnt/backup the engine's socket, a directory of the stand-in
    systemctl enable --now            the command of the unit, started here
    SHA256:...                        the fingerprint that is read just before
    ================================  =================================================
    """

    more_places = ("/run/borg-pull-aio", "/var/lib/borg-pull-aio")

    def __init__(self, workplace: Workplace, aio: StandIn) -> None:
        super().__init__(workplace)
        self.aio = aio
        self._companion: subprocess.Popen[bytes] | None = None
        self._log = self.root / "companion.log"
        self.fingerprint = ""
        self.answers: list[dict[str, Any]] = []
        """What came back as JSON."""
        volumes = "/var/lib/docker/volumes"
        self._known |= {
            "unix:///var/run/docker.sock": aio.daemon.address,
            f"{volumes}/nextcloud_aio_mastercontainer/_data/data/configuration.json": str(
                aio.configuration
            ),
            f"{volumes}/nextcloud_aio_database_dump/_data": str(aio.root / "dump"),
            "/mnt/backup": str(aio.root / "second"),
        }
        steps = [step for step in commands(QUICKSTART) if step.section in INSTALLS]
        steps = [step for step in steps if step.shown != STARTS_SSHD and "doctor" not in step.text]
        follow(self, [step for step in steps if step.prompt == "source#"])
        self.sshd.stop()
        self.sshd.start()

    def here(self, command: Command, text: str) -> str:
        """``text`` of the chapter, with what stands here for what is in it."""
        text = text.replace(
            "--host source.example.org",
            f"--host 127.0.0.1 --port {self.sshd.port} --user {self.account}",
        )
        text = text.replace("--accept SHA256:...", f"--accept {self.fingerprint}")
        public = self.home / ".local/state/borg-pull/keys/nextcloud.pub"
        if public.exists():
            text = text.replace(
                "ssh-ed25519 AAAA... borg-pull-vega-nextcloud", public.read_text().strip()
            )
        text = self.with_config(text)
        text = text.replace("~/restored/mnt/backup", f"~/restored{self.path('/mnt/backup')}")
        text = text.replace("the passphrase of AIO", "of-aio-itself")
        if command.prompt == "backup$":
            # The program's name is no account's.
            text = PROGRAM.sub("\0", text)
        return self.translated(text).replace("\0", "borg-pull ")

    def with_config(self, text: str) -> str:
        """The companion's program finds the whitelist where it usually is."""
        where = f"--config {self.path('/etc/borg-pull')}/config.toml"
        return re.sub(r"/borg-pull-aio (?=\w)", f"/borg-pull-aio {where} ", text)

    def do(self, command: Command) -> None:
        """Do as the chapter says, and see what it shows."""
        if command.text.startswith("systemctl enable --now borg-pull-aio"):
            self._serve()
            return
        said = self.run(command, text=self.here(command, command.text))
        self.answers += [json.loads(line) for line in said.splitlines() if line.startswith("{")]
        assert_as_shown(command, said, lambda text: self.here(command, text))
        if found := re.search(r"SHA256:\S+", said):
            self.fingerprint = found[0]
        if command.text.startswith("cat > ~/.ssh/config"):
            # Stands for comparing the fingerprint.
            known_hosts = self.home / ".ssh/known_hosts"
            known_hosts.write_text(self.sshd.known_hosts_line)
            known_hosts.chmod(0o644)

    def _serve(self) -> None:
        """What systemd does with the units; tests/aio/test_units.py has a real one do it."""
        unit = (self.path(_UNITS) / "borg-pull-aio.service").read_text()
        [start] = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
        with self._log.open("ab") as log:
            self._companion = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self.with_config(start).split()],
                stdin=subprocess.DEVNULL,
                stderr=log,
            )
        socket = self.path("/run/borg-pull-aio") / "companion.sock"
        until(socket.is_socket, seconds=20, what="the companion")

    def stop(self) -> None:
        """End what was started."""
        self.sshd.stop()
        if self._companion is not None:
            self._companion.kill()
            self._companion.wait()


@pytest.fixture
def host(installations: Installations, aio: StandIn) -> Iterator[NextcloudHost]:
    made = NextcloudHost(installations.workplace, aio)
    yield made
    made.stop()


def the_flows_of_node_red(host: NextcloudHost) -> None:
    """What their exec nodes start, by the chapter's user and ssh, while AIO's backups fail."""
    flows = node_red.nodes()
    runs = {node["name"]: node for node in flows if node["type"] == "exec"}

    def lines_of(name: str, payload: str = "", *, code: int) -> list[dict[str, Any]]:
        command = shlex.join(node_red.argv(runs[name], payload))
        said = host.run(Command("", "backup$", f"{command} 2>/dev/null"), expect=code)
        return [json.loads(line) for line in said.splitlines()]

    host.aio.turn("fail")
    told = lines_of("run nightly", code=BORG_ERROR)
    assert [told[0]["type"], told[-1]["type"], told[-1]["exit"]] == ["job", "end", BORG_ERROR]
    assert node_red.after_exit(flows, runs["run nightly"], BORG_ERROR)["name"] == "failed"
    [job] = lines_of("run nightly --detach", code=0)
    told = lines_of("job ID --from N --follow", f"{job['job_id']} --from 3", code=BORG_ERROR)
    numbers = [one["number"] for one in told if one["type"] == "event"]
    assert numbers == list(range(3, numbers[-1] + 1))
    assert told[-1]["error"] == "the backup failed: exit code 1: Backup failed!"


def assert_answers_as_documented(answers: list[dict[str, Any]]) -> None:
    """Each answer that docs/protocol.md shows has come, with these keys in this order."""
    shown = [json.loads(text) for _kind, text in blocks(PROTOCOL, ("json",))]
    shown = [one for one in shown if one["type"] in OF_THE_COMPANION]
    assert len(shown) == 9
    for one in shown:
        alike = [all_keys(two) for two in answers if names(two) == names(one)]
        assert all_keys(one) in alike, (one, alike[:1])


def names(answer: dict[str, Any]) -> tuple[object, object]:
    """What kind of answer it is."""
    return answer["type"], answer.get("event")


def all_keys(answer: object) -> list[object]:
    """Its keys, and those of the first of each array."""
    if isinstance(answer, list):
        return all_keys(answer[0]) if answer else []
    if not isinstance(answer, dict):
        return []
    return [(key, all_keys(value)) for key, value in answer.items() if key != "last_job"]


def test_the_chapter(host: NextcloudHost) -> None:
    for command in commands(CHAPTER):
        if command.exception is None:
            host.do(command)
    host.do(Command("", "backup$", "ssh nextcloud metrics"))
    assert_answers_as_documented(host.answers)
    verify = "XDG_RUNTIME_DIR=~ systemd-analyze --user verify ~/.config/systemd/user/*"
    host.run(Command("", "backup$", verify))
    the_flows_of_node_red(host)
    until(lambda: not host.processes(), seconds=20, what="the end of all that was started")
