"""What the whitelist may say of Nextcloud AIO, and what of it is refused."""

from __future__ import annotations

import pytest

from borg_pull.aio_policy import (
    TABLES,
    AioPolicy,
    engine_fault,
    host_location_fault,
    load,
    remote_repo_fault,
)
from borg_pull.roles import NEEDS, ROLES
from borg_pull.schema import SourceFile, WhitelistError
from borg_pull.source import whitelist

RUNTIME = '[runtime]\nsocket_dir = "/run/x"\nhome = "/var/x"\n'
ACTION = 'type = "nextcloud_aio_backup"\n'
REMOTE = "ssh://borg@backup.example.org:22/srv/borg/aio"


def loaded(text: str, client: str | None = None, own: str | None = None) -> AioPolicy:
    file = SourceFile(name="main.toml", content=(RUNTIME + text).encode())
    return load(
        file,
        None if own is None else SourceFile(name="own.toml", content=own.encode()),
        client,
    )


def faults(text: str, client: str | None = None, own: str | None = None) -> list[str]:
    with pytest.raises(WhitelistError) as caught:
        loaded(text, client, own)
    return [fault.text() for fault in caught.value.faults]


class TestDefaults:
    def test_of_an_empty_file(self) -> None:
        policy = loaded("")
        assert policy.aio.mastercontainer == "nextcloud-aio-mastercontainer"
        assert policy.aio.socket == "/run/borg-pull-aio/companion.sock"
        assert policy.aio.engine is None
        assert policy.actions == {}
        assert policy.client is None
        assert policy.audit.file == "/var/x/audit.jsonl"
        assert not any(getattr(policy.features, name) for name in policy.features.__slots__)

    def test_of_an_action_are_the_predecessors(self) -> None:
        action = loaded(f"[action.nightly]\n{ACTION}").actions["nightly"]
        assert action.target is None
        assert action.restore_after is False
        assert action.daily_backup is True
        assert action.check_backup is False
        assert action.stop_containers is True
        assert action.start_containers is True
        assert action.automatic_updates is False
        assert action.stop_timeout == 60
        assert action.timeout == 21600


class TestTargets:
    def test_of_an_action(self) -> None:
        policy = loaded(
            f'[aio.target.far]\nremote_repo = "{REMOTE}"\n'
            '[aio.target.near]\nhost_location = "/mnt/backup"\n'
            f'[action.a]\n{ACTION}target = "far"\n'
            f'[action.b]\n{ACTION}host_location = "nextcloud_aio_backupdir"\n'
        )
        assert policy.actions["a"].target == policy.targets["far"]
        own = policy.actions["b"].target
        assert own is not None
        assert (own.name, own.host_location) == (None, "nextcloud_aio_backupdir")
        assert policy.targets["far"].masked() == "ssh://***@backup.example.org:22/srv/borg/aio"
        assert policy.targets["near"].masked() == "/mnt/backup"

    @pytest.mark.parametrize(
        "url",
        [
            REMOTE,
            "ssh://u@192.0.2.1:2222//volume1/homes/u/borg",
            "ssh://u@[2001:db8::1]:22/srv/borg",
            "ssh://u@host:22/./relative/borg",
            "ssh://u@host:22/~/borg",
        ],
    )
    def test_sound_urls(self, url: str) -> None:
        assert remote_repo_fault(url) is None

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "borg@host:repo",
            "ssh://host:22/srv",
            "ssh://@host:22/srv",
            "ssh://u@host/srv",
            "ssh://u@host:/srv",
            "ssh://u@host:0/srv",
            "ssh://u@host:65536/srv",
            "ssh://u@host:22x/srv",
            "ssh://u@:22/srv",
            "ssh://u@host:22",
            "ssh://u@host:22/",
            "ssh://u@host:22//",
            "ssh://u:secret@host:22/srv",
            "ssh://u@-oProxyCommand=x:22/srv",
            "ssh://-l@host:22/srv",
            "ssh://u@host:22/srv/../etc",
            "ssh://u@host:22/srv/{now}",
            "ssh://u@host:22/srv::archive",
            "ssh://u@host:22/srv borg",
            "ssh://u@host:22/srv\n",
            "ssh://u@hóst:22/srv",
            "http://u@host:22/srv",
            "ssh://u@host:22/" + "a/" * 600,
        ],
    )
    def test_unsound_urls(self, url: str) -> None:
        assert remote_repo_fault(url) is not None

    @pytest.mark.parametrize("location", ["/mnt/backup", "nextcloud_aio_backupdir", "/a b"])
    def test_sound_locations(self, location: str) -> None:
        assert host_location_fault(location) is None

    @pytest.mark.parametrize(
        "location",
        ["", "/", "/mnt/", "mnt", "nextcloud_aio_nextcloud", "/a:/b", "/a/../b", "/a//b", "/a\n"],
    )
    def test_unsound_locations(self, location: str) -> None:
        assert host_location_fault(location) is not None

    @pytest.mark.parametrize(
        "address", ["unix:///var/run/docker.sock", "tcp://127.0.0.1:2375", "tcp://[::1]:2375"]
    )
    def test_sound_engines(self, address: str) -> None:
        assert engine_fault(address) is None

    @pytest.mark.parametrize(
        "address",
        ["", "/var/run/docker.sock", "unix://run", "tcp://host", "tcp://u@h:1", "ssh://h:22"],
    )
    def test_unsound_engines(self, address: str) -> None:
        assert engine_fault(address) is not None


class TestFaults:
    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("[[aio]]\n", "aio: must be a table, not an array"),
            ("[aio]\ntarget = 1\n", "main.toml:5: aio.target: must be a table, not a number"),
            ("[aio]\nmasterkontainer = 'x'\n", "did you mean mastercontainer?"),
            ("[aio]\nmastercontainer = 'a b'\n", "'a b' is no name of a container"),
            ("[aio]\nkeep_jobs = 0\n", "main.toml:5: aio.keep_jobs: 0 is not between 1 and 10000"),
            ("[aio.target.x]\n", "aio.target.x: needs exactly one of remote_repo and"),
            (
                f"[aio.target.x]\nremote_repo='{REMOTE}'\nhost_location='/a'\n",
                "aio.target.x: needs exactly one of remote_repo and",
            ),
            ("[aio.target.'a/b']\nhost_location='/a'\n", "'a/b' is no name"),
            ("[aio.target.'..']\nhost_location='/a'\n", "'..' is no name"),
            ("[aio.target.x]\nhost_location='/a/'\n", "'/a/' ends in a slash"),
            ("[action.x]\n", "action.x.type: is missing"),
            ("[action.x]\ntype = 'shell'\n", "action.x.type: 'shell' is unknown"),
            (f"[action.'-x']\n{ACTION}", "'-x' is no name"),
            (f"[action.x]\n{ACTION}timeout = 59\n", "action.x.timeout: 59 is not between 60"),
            (f"[action.x]\n{ACTION}timeout = 86401\n", "86401 is not between 60 and 86400"),
            (f"[action.x]\n{ACTION}stop_timeout = 9\n", "9 is not between 10 and 300"),
            (f"[action.x]\n{ACTION}stop_timeout = 301\n", "301 is not between 10 and 300"),
            (f"[action.x]\n{ACTION}check_backup = true\n", "stands beside daily_backup"),
            (f"[action.x]\n{ACTION}daily_backup = false\n", "action.x: does nothing"),
            (f"[action.x]\n{ACTION}restore_after = true\n", "has nothing to put back"),
            (f"[action.x]\n{ACTION}target = 'y'\n", "'y' is no [aio.target.NAME]"),
            (
                f"[action.x]\n{ACTION}remote_repo='{REMOTE}'\nhost_location='/a'\n",
                "main.toml:7: action.x.host_location: stands beside remote_repo",
            ),
            (f"[action.x]\n{ACTION}description = 'a\\u001b'\n", None),
            (f"[action.x]\n{ACTION}env = {{A = '1'}}\n", "action.x.env: is unknown"),
            ("[features]\nenable_admn = true\n", "did you mean enable_admin?"),
            ("[features]\nenable_admin = 1\n", "must be true or false, not a number"),
        ],
    )
    def test_are_named(self, text: str, said: str | None) -> None:
        if said is None:
            text, said = text.replace("'a\\u001b'", '"a\\u001b"'), "not printable text"
        assert any(said in found for found in faults(text)), faults(text)

    def test_all_at_once(self) -> None:
        said = faults(
            "[aio]\nkeep_days = 0\n[aio.target.a]\n[action.b]\n[features]\nx = 1\n"
            "[client.luna]\nrole = 'root'\nactions = ['x y']\n",
            "luna",
        )
        assert len(said) == 6, said

    def test_of_a_document_that_is_none(self) -> None:
        assert faults("[") == [
            "main.toml:4: is not valid TOML: " + faults("[")[0].split(": ", 2)[2]
        ]


class TestClients:
    CLIENT = "role = 'action'\nactions = ['nightly']\npaths = 1\n"

    def test_in_the_main_file(self) -> None:
        policy = loaded(f"[client.luna]\n{self.CLIENT}", "luna")
        assert policy.client is not None
        assert policy.client.role == "action"
        assert policy.client.actions == ("nightly",)

    def test_in_a_file_of_its_own(self) -> None:
        policy = loaded("", "luna", self.CLIENT)
        assert policy.client is not None
        assert policy.client.actions == ("nightly",)

    def test_in_both(self) -> None:
        (said,) = faults(f"[client.luna]\n{self.CLIENT}", "luna", self.CLIENT)
        assert "stands in own.toml too" in said

    def test_nowhere(self) -> None:
        assert loaded(f"[client.luna]\n{self.CLIENT}", "stella").client is None

    def test_default_role_means_what_it_meant(self) -> None:
        policy = loaded("[client.luna]\n", "luna")
        assert policy.client is not None
        assert policy.client.role == "backup"


class TestRefusals:
    TABLES = (
        f'[aio.target.own]\nremote_repo = "{REMOTE}"\n[aio.target.other]\nhost_location = "/b"\n'
        f"[action.own]\n{ACTION}[action.other]\n{ACTION}"
    )

    def policy(self, role: str, *switches: str) -> AioPolicy:
        features = "".join(f"{name} = true\n" for name in switches)
        return loaded(
            f"{self.TABLES}[features]\n{features}[client.luna]\nrole = '{role}'\n"
            "actions = ['own', 'gone']\naio_targets = ['own', 'gone']\n",
            "luna",
        )

    @pytest.mark.parametrize("role", ROLES)
    def test_by_role(self, role: str) -> None:
        policy = self.policy(role)
        rank = ROLES.index(role)
        assert policy.refusal("jobs", None) is None
        assert (policy.refusal("run", "own") is None) is (rank >= 1)
        assert (policy.refusal("aio", "own") is None) is (rank >= 2)
        for verb, needs in NEEDS.items():
            if needs.switches:
                assert policy.refusal(verb, "own") is not None

    def test_what_is_not_listed_or_not_there(self) -> None:
        policy = self.policy("backup")
        for name in ("other", "gone", "unheard-of", ""):
            assert policy.refusal("run", name) is not None
            assert policy.refusal("aio", name) is not None

    def test_switches(self) -> None:
        switches = ("enable_admin", "enable_config_write")
        assert self.policy("admin", *switches).refusal("target-set", "own") is None
        for one in switches:
            assert self.policy("admin", one).refusal("target-set", "own") is not None
        assert self.policy("backup", *switches).refusal("target-set", "own") is not None
        assert self.policy("admin", *switches).refusal("target-set", "other") is not None

    def test_any_target_is_one_of_the_whitelist(self) -> None:
        switches = ("enable_admin", "enable_config_write", "enable_arbitrary_targets")
        policy = self.policy("admin", *switches)
        assert policy.refusal("target-set", "other") is None
        assert policy.refusal("aio", "other") is None
        assert policy.refusal("aio", "gone") is not None
        assert policy.refusal("run", "other") is not None
        assert self.policy("backup", *switches).refusal("aio", "other") is not None
        assert self.policy("admin", *switches[1:]).refusal("aio", "other") is not None

    def test_of_a_client_that_is_none(self) -> None:
        assert loaded(self.TABLES, "luna").refusal("jobs", None) is not None


def test_tables_are_those_of_the_whitelist() -> None:
    assert set(TABLES) == {*whitelist._TABLES, whitelist._CLIENTS, *whitelist._OF_AIO}
