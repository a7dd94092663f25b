"""Every cell of the table of roles in docs/configuration.md, walked through real ssh.

Threat: a key does more than its role and the switches give it. The document is what is tested: a
cell that says yes is asked with every switch off, one that says no with every switch on, and one
that names switches with just these on, and with each of them off while all others are on. What is
allowed gets as far as the companion, or to looking for a forwarded socket; what is not, ends with
77 before either.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from borg_pull.roles import FEATURE_KEYS
from tests.harness.builds import FROZEN_14
from tests.harness.companion import StandInCompanion
from tests.harness.fixtures import SiteMaker
from tests.harness.peer import Peer
from tests.harness.site import Site

pytestmark = pytest.mark.needs_root

DOCUMENT = Path(__file__).parents[2] / "docs/configuration.md"
JOB = "0b0f2a5e-0000-4000-8000-0123456789ab"
SWITCHES = frozenset(key.name for key in FEATURE_KEYS)
REQUESTS = {
    "run": "run nightly",
    "job": f"job {JOB}",
    "cancel": f"cancel {JOB}",
    "aio": "aio vault",
    "target set": "target set vault",
    "create": "create /srv/repo a /srv",
    "init": "init /srv/repo -e none",
    "list": "list /srv/repo",
    "info": "info /srv/repo",
    "check": "check /srv/repo",
    "prune": "prune /srv/repo -a x* -d 1",
    "restore": "restore /srv/repo a /srv",
    "break-lock": "break-lock /srv/repo",
    "change-passphrase": "change-passphrase /srv/repo",
}
"""What is sent for a verb that does not stand alone."""
AT_ONCE = 6


@dataclass(frozen=True)
class Cell:
    """One cell of the table."""

    verb: str
    role: str
    switches: frozenset[str] | None
    """None: not with any."""


def cells() -> list[Cell]:
    """The table as it stands in the document."""
    text = DOCUMENT.read_text()
    section = re.search(r"<!-- generated: roles -->\n(.*?)<!-- end", text, re.DOTALL)
    assert section
    header, _, *rows = [
        [cell.strip() for cell in row.strip("|").split("|")] for row in section[1].splitlines()
    ]
    roles = [name.strip("`") for name in header[2:]]
    found = []
    for verb, _listed, *values in rows:
        for role, value in zip(roles, values, strict=True):
            names = frozenset(re.findall("`(.*?)`", value))
            assert value in ("yes", "no") or (names and names <= SWITCHES), value
            switches = None if value == "no" else names
            found.append(Cell(verb=verb.strip("`"), role=role, switches=switches))
    return found


@dataclass(frozen=True)
class Walk:
    """One request that a cell is judged by."""

    cell: Cell
    on: frozenset[str]
    is_allowed: bool

    def request(self) -> str:
        return REQUESTS.get(self.cell.verb, self.cell.verb)


def walks(cell: Cell) -> Iterator[Walk]:
    if cell.switches is None:
        yield Walk(cell=cell, on=SWITCHES, is_allowed=False)
        return
    yield Walk(cell=cell, on=cell.switches, is_allowed=True)
    for switch in sorted(cell.switches):
        yield Walk(cell=cell, on=SWITCHES - {switch}, is_allowed=False)


CLIENT = {
    "paths": ["/srv"],
    "allow": ["create", "init", "list", "info", "check", "prune", "restore"],
    "encryption": ["none"],
    "restore_to": "/srv/restored",
    "passphrase_stdin": True,
    "actions": ["nightly"],
    "aio_targets": ["vault"],
    "request_burst": 1000,
    "max_sessions": 50,
}


class Scene:
    """A source with one whitelist for each set of switches, and a key for each role in each."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._peers: dict[tuple[frozenset[str], str], Peer] = {}
        self._files = itertools.count()
        self._paths: dict[frozenset[str], str] = {}
        site.source.directory.chmod(0o755)
        socket = site.source.directory / "companion.sock"
        self.companion = StandInCompanion(socket)
        self._tables: dict[str, Mapping[str, object]] = {
            "aio": {"socket": str(socket), "target": {"vault": {"host_location": "/mnt/b"}}},
            "action": {"nightly": {"type": "nextcloud_aio_backup"}},
        }

    def peer(self, role: str, on: frozenset[str]) -> Peer:
        """Who logs in with that role where these switches are on."""
        if (on, role) not in self._peers:
            name = f"{role}-{len(self._peers)}"
            peer = self._site.peer(name, self._command(name, role, on))
            self._peers[on, role] = peer
        return self._peers[on, role]

    def _command(self, name: str, role: str, on: frozenset[str]) -> str:
        source = self._site.source
        source.write_whitelist(
            {name: CLIENT | {"role": role}},
            **self._tables,
            features=dict.fromkeys(sorted(on), True),
        )
        path = source.configuration.with_name(f"{name}.toml")
        source.configuration.rename(path)
        return f"{source.programs.source} {path} {name}"


@pytest.fixture
def scene(make_site: SiteMaker) -> Iterator[Scene]:
    made = Scene(make_site(FROZEN_14))
    yield made
    made.companion.close()


def test_every_cell(scene: Scene) -> None:
    table = cells()
    every = [walk for cell in table for walk in walks(cell)]
    assert len(every) > len(table) > 90
    for walk in every:
        scene.peer(walk.cell.role, walk.on)

    def wrong(walk: Walk) -> str | None:
        result = scene.peer(walk.cell.role, walk.on).pull(walk.request(), stdin=b"")
        said = (
            f"{walk.cell.role} with {sorted(walk.on)}: {walk.request()}: "
            f"{result.exit} {result.errors}"
        )
        if not walk.is_allowed:
            return None if result.exit == 77 else said
        is_looking = result.exit == 69 and "no forwarded socket" in result.errors
        return None if result.exit == 0 or is_looking else said

    with ThreadPoolExecutor(AT_ONCE) as pool:
        faults = [said for said in pool.map(wrong, every) if said is not None]
    assert faults == []
    # What was refused never came to the companion; what it was asked is what was allowed.
    asked = sorted((ask.request, ask.client.partition("-")[0]) for ask in scene.companion.asked)
    answered_by_it = {ask.request for ask in scene.companion.asked}
    assert asked == sorted(
        (walk.cell.verb.replace(" ", "-"), walk.cell.role)
        for walk in every
        if walk.is_allowed and walk.cell.verb.replace(" ", "-") in answered_by_it
    )
    assert {"run", "aio", "target-set", "cancel", "lockdown-on"} <= answered_by_it


READ = {"hello", "actions", "jobs", "job", "aio-status", "health", "metrics", "target show"}
ACTION = READ | {"run", "cancel"}
BACKUP = ACTION | {"create", "init", "list", "info", "check", "prune", "restore", "aio"}


@pytest.mark.parametrize(("role", "may"), [("read", READ), ("action", ACTION), ("backup", BACKUP)])
def test_the_table_gives_a_role_what_it_is_for(role: str, may: set[str]) -> None:
    """The control: table and program, which are made of the same, are not wide open both."""
    table = cells()
    assert {one.verb for one in table if one.role == role and one.switches is not None} == may
    assert {one.role for one in table if one.switches} == {"admin"}
    admin = [one for one in table if one.role == "admin"]
    assert {one.verb for one in admin if one.switches == frozenset()} == BACKUP


PAYLOADS = (
    "run other", "run nightly extra", "run nightly --timeout 60", "run nightly --env=A=B",
    "run nightly DAILY_BACKUP=1", "run /bin/sh", "run 'nightly;id'", "run $(id)", "run -- --detach",
    "aio vault", "aio ssh://u@h:22/x", "aio /mnt/b", "target set vault", "target set ssh://u@h:22/x",
    "break-lock /srv/repo", "change-passphrase /srv/repo", "lockdown on", "lockdown off",
    "lockdown status", "create /srv/repo a /srv", "list /srv/repo", "restore /srv/repo a /srv",
)  # fmt: skip


def test_a_key_for_actions_alone(scene: Scene) -> None:
    """Threat: a key of the role action leaks. Control: its own action runs."""
    peer = scene.peer("action", SWITCHES)
    for request in PAYLOADS:
        result = peer.pull(request, stdin=b"x\ny\n")
        assert result.exit in (64, 77), (request, result)
    assert scene.companion.asked == []
    assert peer.pull("run nightly").exit == 0
    (ask,) = scene.companion.asked
    assert (ask.request, ask.action, ask.all) == ("run", "nightly", False)
