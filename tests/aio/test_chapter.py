"""docs/nextcloud-aio.md, done command by command: real ssh, engine and borg, and a stand-in AIO."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from borg_pull.errors import BORG_ERROR
from borg_pull.pull.config import load
from borg_pull.pull.places import Places
from borg_pull.pull.units import Owner, Setting, units
from tests.aio import node_red
from tests.aio.stand_in_aio import BACKUP, StandIn
from tests.harness import processes
from tests.harness.site import Installations
from tests.harness.source import toml
from tests.harness.systemd import Systemd
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

    more_places = (
        *("/run/borg-pull-aio", "/var/lib/borg-pull-aio"),
        "/var/lib/prometheus/node-exporter",
    )

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
        self.path("/var/lib/prometheus/node-exporter").mkdir()
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

    def lose_the_answers(self) -> bool:
        """Have those processes of the companion end that answer somebody, not it and no run;
        whether there was one."""
        assert self._companion is not None
        answering = processes.descendants(self._companion.pid)
        for one in answering:
            one.send(signal.SIGKILL)
        return bool(answering)

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


def text_of(name: str) -> str:
    """The file ``name`` as the chapter has it written."""
    [text] = [one.text for one in commands(CHAPTER) if f"> {name} <<" in one.text]
    return text.partition("\n")[2].removesuffix("END")


def the_script_sees_it_through(host: NextcloudHost) -> None:
    """Two lost connections, one by the network and one by the companion: no event is lost or told
    twice, and a success is silent."""
    host.run(Command("", "backup$", "sed -i 's/^pause=.*/pause=0.2/' ~/bin/aio-run"))
    host.aio.turn("hold")
    begin = "(~/bin/aio-run nightly >~/out 2>~/errors; echo $? >~/code) & true"
    host.run(Command("", "backup$", begin))
    out, code = host.home / "out", host.home / "code"

    def follower(other_than: int = 0) -> processes.Process | None:
        for one in processes.of_account(host.backup.uid):
            if one.name == "ssh" and "--follow" in one.command and one.pid != other_than:
                return one
        return None

    until(
        lambda: out.exists() and BACKUP in out.read_text(), seconds=30, what="the backup container"
    )
    first = until(follower, seconds=10, what="who follows")
    first.send(signal.SIGKILL)
    second = until(lambda: follower(first.pid), seconds=20, what="who follows again")
    until(host.lose_the_answers, seconds=20, what="an answer to lose")
    until(lambda: follower(second.pid), seconds=20, what="who follows once more")
    host.aio.release("hold")
    until(code.exists, seconds=60, what="the verdict")
    assert (code.read_text(), (host.home / "errors").read_text()) == ("0\n", "")
    started, *events = [json.loads(line) for line in out.read_text().splitlines()]
    assert started["type"] == "job"
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["result"] == "success"


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


@pytest.mark.needs_root
def test_the_chapter(host: NextcloudHost) -> None:
    for command in commands(CHAPTER):
        if command.exception is None:
            host.do(command)
    host.do(Command("", "backup$", "ssh nextcloud metrics"))
    assert_answers_as_documented(host.answers)
    verify = "XDG_RUNTIME_DIR=~ systemd-analyze --user verify ~/.config/systemd/user/*.*[!d]"
    host.run(Command("", "backup$", verify))
    the_script_sees_it_through(host)
    the_flows_of_node_red(host)
    until(lambda: not host.processes(), seconds=20, what="the end of all that was started")


EVENT = '{"type":"event","job":"j","number":%d,"event":"state","state":"run"}\n'
RESULT = (
    '{"type":"event","job":"j","number":2,"event":"result","result":"success","exit":%d,'
    '"error":"left \\"event\\":"}\n'
)
LOST = (EVENT % 1 + '{"type":"ev', "Connection reset", 255)
STARTED = ('{"type":"job","job_id":"j","status":"started"}\n', "", 0)
"""What ssh says on both its outputs, and its exit code."""


@pytest.mark.parametrize(
    ("answers", "arguments", "code", "told", "numbers"),
    [
        pytest.param([("", "refused", 77)], [], 77, "refused", [], id="refused"),
        pytest.param([STARTED, ("", "reset", 255)], [], 255, "reset", [], id="out of reach"),
        pytest.param([STARTED, ("", "no such job", 77)], [], 77, "no such job", [], id="revoked"),
        pytest.param(
            [STARTED, LOST, ("", "reset", 255), (RESULT % 0, "", 0)], [], 0, "", [1, 2], id="lost"
        ),
        pytest.param(
            [STARTED, (EVENT % 1, "ended", 69), (RESULT % 1, "x", 1)],
            [],
            1,
            'aio-run: success, exit code 1: left "event":',
            [1, 2],
            id="the companion is restarted",
        ),
        pytest.param(
            [STARTED, (RESULT % 1, "x", 1)],
            ["--pull"],
            0,
            'aio-run: success, exit code 1: left "event":',
            [2],
            id="there is one to pull",
        ),
    ],
)
def test_what_the_script_makes_of_what_ssh_says(
    tmp_path: Path,
    answers: list[tuple[str, str, int]],
    arguments: list[str],
    code: int,
    told: str,
    numbers: list[int],
) -> None:
    """Of the last answer there is no end."""
    script = text_of("~/bin/aio-run").replace("attempts=60", "attempts=3")
    (tmp_path / "aio-run").write_text(script.replace("pause=60", "pause=0.01"))
    for number, (out, errors, ended) in enumerate(answers):
        (tmp_path / f"{number}.out").write_text(out)
        (tmp_path / f"{number}.errors").write_text(errors)
        (tmp_path / f"{number}.code").write_text(str(ended))
    (tmp_path / "ssh").write_text(
        f"""#!/bin/sh
cd {tmp_path}
echo "$*" >>asked
n=$(($(wc -l <asked) - 1))
[ $n -lt {len(answers)} ] || n={len(answers) - 1}
cat $n.out
cat $n.errors >&2
exit $(cat $n.code)
"""
    )
    (tmp_path / "ssh").chmod(0o755)
    (tmp_path / "tmp").mkdir()
    done = subprocess.run(
        ["/bin/sh", tmp_path / "aio-run", "nightly", *arguments],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "TMPDIR": str(tmp_path / "tmp")},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (code, f"{told}\n" if told else "")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["number"] for event in events if event["type"] == "event"] == numbers
    _started, *asked = (tmp_path / "asked").read_text().splitlines()
    assert len(asked) <= len(answers) + 2
    assert [line.split()[-1] for line in asked if "ConnectTimeout" not in line] == []
    if numbers == [1, 2]:
        assert asked[-1].endswith("job j --follow --from 2")
    assert list((tmp_path / "tmp").iterdir()) == []


# In place of the script: what it needs of the home besides itself. 1 is a warning to the service.
PROBE = """#!/bin/sh
cd /
ssh -G nextcloud | grep -x 'hostname source.example.org' || exit 9
ssh-keygen -y -f ~/.ssh/borg-pull || exit 9
ssh-keygen -F source.example.org || exit 9
"""


@pytest.mark.needs_root
def test_the_drop_in_lets_the_hook_work(tmp_path: Path, installations: Installations) -> None:
    """In the sandbox of the job's service, which hides the home. Control: not without it."""
    account = installations.workplace.account()
    home = Path("/home") / account.name
    subprocess.run(["usermod", "--home", home, account.name], check=True)
    main = home / "pull.toml"
    (tmp_path / "pull.toml").write_text(
        toml(
            {
                "source": {"nextcloud": {"host": "source.example.org", "identity": "/etc/key"}},
                "repository": {"nextcloud": {"path": "/srv/backup"}},
                "job": {
                    "nextcloud": {
                        "source": "nextcloud",
                        "repository": "nextcloud",
                        "paths": ["/mnt/backup/borg"],
                        "schedule": "daily",
                        "hooks": {"before": [f"{home}/bin/aio-run", "nightly", "--pull"]},
                    }
                },
            }
        )
    )
    (tmp_path / "pull.toml").chmod(0o600)
    name = "borg-pull-job-nextcloud.service"
    setting = Setting(
        "user",
        main,
        load(tmp_path / "pull.toml"),
        Places(home / "state", home / "run"),
        Owner(account.name, account.uid, home),
    )
    unit, exchanged = re.subn(
        r"^ExecStart=.*$",
        f"User={account.name}\nEnvironment=HOME={home}\nExecStart={home}/bin/aio-run",
        units(setting)[name],
        flags=re.MULTILINE,
    )
    assert exchanged == 1
    (tmp_path / name).write_text(unit)
    drop_in = text_of(f"~/.config/systemd/user/{name}.d/hooks.conf")
    # systemd's %h is the home of who runs it, and root runs this one.
    (tmp_path / "hooks.conf").write_text(drop_in.replace("%h", str(home)))
    (tmp_path / "config").write_text(text_of("~/.ssh/config"))
    (tmp_path / "known_hosts").write_text("source.example.org ssh-ed25519 AAAA\n")
    subprocess.run(["ssh-keygen", "-q", "-N", "", "-f", tmp_path / "borg-pull"], check=True)
    (tmp_path / "aio-run").write_text(PROBE)
    (tmp_path / "aio-run").chmod(0o755)
    manager = Systemd(tmp_path / "log")

    def do(command: str, expect: int = 0) -> None:
        done = manager.run("sh", "-c", f"cd {tmp_path} && {command}")
        assert done.returncode == expect, (command, done, manager.log.read_text())

    try:
        do("mount -t tmpfs -o mode=755 tmpfs /home")
        do(f"mkdir -p {home}/.ssh {home}/bin {home}/state {home}/run && cp aio-run {home}/bin")
        do(f"cp config known_hosts borg-pull borg-pull.pub {home}/.ssh")
        do(f"chown -R {account.name} {home} && cp {name} /etc/systemd/system")
        do(f"systemctl daemon-reload && ! systemctl start {name}")
        do(f"mkdir /etc/systemd/system/{name}.d && cp hooks.conf /etc/systemd/system/{name}.d")
        do(f"systemctl daemon-reload && systemctl start {name}")
    finally:
        manager.stop()
    assert "hostname source.example.org" in manager.log.read_text()
