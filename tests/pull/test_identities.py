"""Keys to log in with: one a source, replaced without a gap, and never without saying so."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from borg_pull import schema, values
from borg_pull.admin.authorized_keys import KEY_OPTIONS
from borg_pull.errors import BorgPullError, ConfigurationError
from borg_pull.pull import identities
from borg_pull.pull.config import Source
from borg_pull.pull.pull import hello
from borg_pull.source import whitelist
from tests.harness.builds import SOURCE_12
from tests.harness.fixtures import SiteMaker
from tests.harness.site import Site
from tests.pull.runs import Answer, run


def blob(line: str) -> str:
    return line.split()[1]


def configuration(directory: Path, **sources: dict[str, object]) -> Path:
    path = directory / "pull.toml"
    text = f'[settings]\nstate_dir = "{directory}/state"\nruntime_dir = "{directory}/run"\n'
    for name, table in sources.items():
        keys = {"host": "127.0.0.1", "identity": f"{directory}/keys/{name}", "client": "luna"}
        lines = [f"{key} = {json.dumps(value)}\n" for key, value in (keys | table).items()]
        text += f"[source.{name}]\n{''.join(lines)}"
    path.write_text(text)
    path.chmod(0o600)
    return path


class TestGenerate:
    def test_a_key_that_the_source_can_be_told_of(self, tmp_path: Path) -> None:
        path = configuration(tmp_path, web1={})
        answer = run("keys", "generate", "web1", "--config", path)
        assert answer.exit == 0, answer
        identity = tmp_path / "keys/web1"
        assert stat.S_IMODE(identity.stat().st_mode) == 0o600
        assert stat.S_IMODE(identity.parent.stat().st_mode) == 0o700
        line = identity.with_suffix(".pub").read_text().strip()
        assert f'    "{line}",\n' in answer.stdout
        assert "[client.luna]" in answer.stdout
        shown = answer.stdout.partition("keys = ")[2].partition("]\n")[0] + "]\n"
        text = f'[runtime]\nsocket_dir = "/s"\nhome = "/h"\n[client.luna]\nkeys = {shown}'
        loaded = whitelist.load(schema.SourceFile(name="shown", content=text.encode()), {})
        assert loaded.clients["luna"].keys == (line,)

    @pytest.mark.parametrize("name", ["web1", "web1.pub"])
    def test_one_that_exists_is_left_alone(self, tmp_path: Path, name: str) -> None:
        path = configuration(tmp_path, web1={})
        (tmp_path / "keys").mkdir()
        (tmp_path / "keys" / name).write_text("precious")
        answer = run("keys", "generate", "web1", "--config", path)
        assert (answer.exit, "exists" in answer.stderr) == (78, True)
        assert (tmp_path / "keys" / name).read_text() == "precious"

    def test_the_way_out_of_a_lost_private_key(self, tmp_path: Path) -> None:
        """Each message leads on to the next step, and the last to a new key."""
        path = configuration(tmp_path, web1={})
        assert run("keys", "generate", "web1", "--config", path).exit == 0
        private, public = tmp_path / "keys/web1", tmp_path / "keys/web1.pub"
        again = run("keys", "generate", "web1", "--config", path).stderr
        assert again.endswith(
            "exists; it is left as it is; to have another one, run: borg-pull keys rotate web1"
        )
        private.unlink()
        with pytest.raises(ConfigurationError) as told:
            identities.public_line("web1", private)
        step = f"rm {public}, since its private half is lost, and then borg-pull keys generate web1"
        assert told.value.line().endswith(step)
        stuck = run("keys", "generate", "web1", "--config", path)
        assert (stuck.exit, f"if it is lost, rm {public}, and run this" in stuck.stderr) == (
            78,
            True,
        )
        public.unlink()
        assert run("keys", "generate", "web1", "--config", path).exit == 0
        assert identities.public_line("web1", private)


@pytest.mark.parametrize("fault", ["missing", "open"])
def test_a_key_that_ssh_cannot_use_is_not_blamed_on_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """It is found before anything is started."""
    source = Source.model_validate({"host": "127.0.0.1", "identity": str(tmp_path / "web1")})
    identities.generate("web1", source.identity, "x")
    if fault == "open":
        source.identity.chmod(0o644)
    else:
        source.identity.unlink()
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(ConfigurationError) as told:
        hello(source, "web1", tmp_path / "known_hosts")
    wanted = {
        "missing": "does not exist; put the key of source web1 back, or make a new one: rm ",
        "open": f"is open to others (mode 0644), and ssh refuses it; chmod 600 {source.identity}",
    }
    assert f"{source.identity} {wanted[fault]}" in told.value.line()


@pytest.fixture
def site(make_site: SiteMaker) -> Site:
    return make_site(SOURCE_12)


class Rotation:
    """A source of the harness that our key may log in to."""

    def __init__(self, site: Site, directory: Path) -> None:
        self.site = site
        self.identity = directory / "keys/web1"
        self.path = configuration(
            directory, web1={"port": site.server.port, "user": site.account.name}
        )
        assert run("keys", "generate", "web1", "--config", self.path).exit == 0
        site.allow()
        self.old = self.line()
        self.authorize(self.old)
        known = directory / "state/known_hosts"
        known.parent.mkdir(mode=0o700)
        known.write_text(site.server.known_hosts_line)

    def line(self, suffix: str = "") -> str:
        return self.identity.with_name(f"web1{suffix}.pub").read_text().strip()

    def authorize(self, line: str) -> None:
        source = self.site.source
        command = f"{source.programs.source} {source.configuration} luna"
        self.site.server.authorize(self.site.account, f'{KEY_OPTIONS},command="{command}" {line}')

    def rotate(self) -> Answer:
        return run("keys", "rotate", "web1", "--config", self.path)


class TestRotate:
    def test_the_old_one_stays_until_the_new_one_works(self, site: Site, tmp_path: Path) -> None:
        rotation = Rotation(site, tmp_path)
        first = rotation.rotate()
        assert first.exit == 75, first
        assert "does not know the new key yet; run this again" in first.stderr
        assert rotation.line() == rotation.old
        new = rotation.line(".new")
        assert [f'"{line}",' in first.stdout for line in (rotation.old, new)] == [True, True]
        second = rotation.rotate()
        assert (second.exit, rotation.line(".new")) == (75, new)
        listed = json.loads(run("keys", "list", "--json", "--config", rotation.path).stdout)
        assert [key["is_rotating"] for key in listed["keys"]] == [True]

        rotation.authorize(new)
        third = rotation.rotate()
        assert third.exit == 0, third
        assert rotation.line() == new
        assert blob(identities.public_line("web1", rotation.identity)) == blob(new)
        assert rotation.old in third.stdout
        assert sorted(os.listdir(tmp_path / "keys")) == ["web1", "web1.pub"]

    def test_a_source_whose_host_key_is_not_pinned(self, site: Site, tmp_path: Path) -> None:
        """Whoever answers in its place could say that the key is fine."""
        rotation = Rotation(site, tmp_path)
        (tmp_path / "state/known_hosts").unlink()
        assert rotation.rotate().exit == 2
        rotation.authorize(rotation.line(".new"))
        answer = rotation.rotate()
        assert (answer.exit, "pin it: borg-pull trust web1" in answer.stderr) == (2, True)
        assert rotation.line() == rotation.old


CRASHES = ("before", "without public half", "with the old public half gone", "half", "after")


@pytest.mark.parametrize("crash", CRASHES)
def test_a_crash_while_keys_are_replaced_leaves_a_whole_pair(tmp_path: Path, crash: str) -> None:
    """After each step that replacing is made of; the next call does the rest."""
    identity = tmp_path / "web1"
    old = identities.generate("web1", identity, "old")
    new = identities.generate("web1", identity.with_name("web1.new"), "new")
    steps: list[Callable[[], None]] = [
        lambda: (tmp_path / "web1.pub").unlink(),
        lambda: os.replace(tmp_path / "web1.new", identity),
        lambda: os.replace(tmp_path / "web1.new.pub", tmp_path / "web1.pub"),
    ]
    for step in steps[: CRASHES.index(crash)]:
        step()
    public = tmp_path / "web1.pub"
    if public.exists():
        assert blob(public.read_text()) == blob(identities.public_line("web1", identity))
    assert blob(identities.public_line("web1", identity)) in (blob(old), blob(new))
    identities.replace(identity)
    assert blob(identities.public_line("web1", identity)) == blob(public.read_text()) == blob(new)
    assert sorted(os.listdir(tmp_path)) == ["web1", "web1.pub"]


class TestList:
    def test_states(self, tmp_path: Path) -> None:
        keys = tmp_path / "keys"
        path = configuration(
            tmp_path,
            good={},
            other={"identity": f"{keys}/good"},
            missing={},
            open={},
            locked={},
            nonsense={},
        )
        line = identities.generate("good", keys / "good", "good")
        identities.generate("open", keys / "open", "open")
        (keys / "open").chmod(0o640)
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "typed", "-f", keys / "locked"], check=True
        )
        (keys / "nonsense").write_text("nonsense\n")
        (keys / "nonsense").chmod(0o600)
        answer = run("keys", "list", "--json", "--config", path)
        listed = {key["source"]: key for key in json.loads(answer.stdout)["keys"]}
        states = {name: key["state"] for name, key in listed.items()}
        unfit = "is no private key, or has a passphrase, which nobody types at night"
        assert states == {
            "good": "ready",
            "other": "ready",
            "missing": "does not exist",
            "open": "is open to others (mode 0640), and ssh refuses it",
            "locked": unfit,
            "nonsense": unfit,
        }
        shown = subprocess.run(
            ["ssh-keygen", "-l", "-f", keys / "good.pub"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert listed["good"]["fingerprint"] == shown.stdout.split()[1]
        assert listed["good"]["shared_with"] == ["other"]
        assert blob(line) not in answer.stdout
        table = run("keys", "list", "--config", path).stdout
        assert "also that of other" in table
        assert len(table.splitlines()) == 7

    def test_a_key_that_is_missing_cannot_be_rotated(self, tmp_path: Path) -> None:
        path = configuration(tmp_path, web1={})
        answer = run("keys", "rotate", "web1", "--config", path)
        assert (answer.exit, "borg-pull keys generate web1" in answer.stderr) == (78, True)
        assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize(
    ("host", "client"),
    [
        ("luna", "luna"),
        ("luna.example.org", "luna"),
        ("-x_y!z", "x_yz"),
        ("(none)", "none"),
        ("...", "backup"),
    ],
)
def test_this_hosts_name(monkeypatch: pytest.MonkeyPatch, host: str, client: str) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: host)
    assert identities.this_host() == client
    assert values.client_name_fault(client) is None


def test_a_host_without_ssh_keygen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BorgPullError, match="cannot run ssh-keygen") as caught:
        identities.generate("web1", tmp_path / "key", "x")
    assert caught.value.exit_code == 71
