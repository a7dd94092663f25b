"""The companion takes a client's name from the forced command, from nothing else of its account.

Threat: who has some key opens the companion's socket past the forced command, through sshd's own
forwarding (ssh -L), whose process is of the same account and not confined, and calls itself the
admin's client. The shipped settings of sshd refuse it, and so does what a key may do; where neither
is in force the companion knows sshd by its program. Control: the admin's key, through the forced
command, is served.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from borg_pull.audit import new_session
from tests.harness.builds import FROZEN_14
from tests.harness.fixtures import SiteMaker
from tests.harness.site import Site
from tests.harness.wait import until

pytestmark = pytest.mark.needs_root

FORWARDING = ("AllowStreamLocalForwarding yes", "AllowTcpForwarding yes", "PermitOpen any")
KEY_OPTIONS = "restrict,port-forwarding"


class Scene:
    """A source with a real companion, an admin's key and one that may only look."""

    def __init__(self, site: Site) -> None:
        self.site = site
        source = site.source
        source.directory.chmod(0o755)
        self.path = source.directory / "run-aio/companion.sock"
        source.write_whitelist(
            {"boss": {"role": "admin"}, "luna": {"role": "read"}},
            aio={"socket": str(self.path), "state_dir": str(source.directory / "aio-state")},
            features={"enable_admin": True},
        )
        self.lockdown = source.directory / "lockdown"
        self._log = (source.directory / "companion.log").open("ab")
        self._service = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL"),
                *(source.programs.aio, "--config", source.configuration, "serve"),
            ],
            stdin=subprocess.DEVNULL,
            stderr=self._log,
        )
        until(self.path.exists, seconds=20, what="the companion")

    def said(self) -> str:
        return (self.site.source.directory / "companion.log").read_text()

    @contextmanager
    def forwarded(self) -> Iterator[Path]:
        """luna's own end of the companion's socket, if sshd makes one."""
        peer = self.site.peer("luna")
        local = peer.directory / "c.sock"
        command = peer.command("", ("-N", "-L", f"{local}:{self.path}"))
        ssh = subprocess.Popen(command[:-2], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            until(local.exists, seconds=20, what="the forwarding")
            yield local
        finally:
            ssh.kill()
            ssh.communicate()

    def close(self) -> None:
        self._service.terminate()
        self._service.wait(20)
        self._log.close()


@contextmanager
def scene_with(make_site: SiteMaker, sshd: Sequence[str]) -> Iterator[Scene]:
    made = Scene(make_site(FROZEN_14, sshd=sshd))
    try:
        yield made
    finally:
        made.close()


def asked(path: Path, request: str, client: str = "boss") -> list[dict[str, Any]]:
    """What comes back for a request that names ``client``, sent through ``path``."""
    session = {"session": new_session(), "key": None, "address": None, "port": None, "pid": 1}
    fields = {"version": 1, "request": request, "client": client, "session": session}
    answer = b""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(path))
        try:
            # Who is refused is told so before that.
            with suppress(BrokenPipeError):
                connection.sendall(json.dumps(fields).encode() + b"\n")
            while block := connection.recv(65536):
                answer += block
        except ConnectionResetError:
            pass
    return [json.loads(line) for line in answer.splitlines()]


def test_past_the_forced_command_by_a_forwarding(
    make_site: SiteMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sshd and the key let it through: neither is set up as the documents say."""
    monkeypatch.setattr("tests.harness.peer.KEY_OPTIONS", KEY_OPTIONS)
    with scene_with(make_site, FORWARDING) as scene, scene.forwarded() as local:
        (end,) = asked(local, "lockdown-on")
        assert (end["type"], end["exit"]) == ("end", 77)
        assert "is no forced command" in end["error"]
        assert not scene.lockdown.exists()
        assert "refused: " in scene.said()


def test_sshd_as_it_ships_forwards_nothing_to_it(make_site: SiteMaker) -> None:
    with scene_with(make_site, ()) as scene, scene.forwarded() as local:
        assert asked(local, "lockdown-on") == []
        assert not scene.lockdown.exists()


def test_the_admins_key_locks_and_lifts(make_site: SiteMaker) -> None:
    """The control, through sshd, the forced command and the companion."""
    with scene_with(make_site, ()) as scene:
        boss, luna = scene.site.peer("boss"), scene.site.peer("luna")
        assert luna.pull("lockdown on").exit == 77
        assert luna.pull("jobs").exit == 0
        locked = boss.pull("lockdown on")
        assert (locked.exit, locked.errors) == (0, "")
        assert json.loads(locked.stdout)["changed"] is True
        assert luna.pull("jobs").exit == 75
        told = json.loads(boss.pull("lockdown status").stdout)
        assert (told["locked"], told["client"]) == (True, "boss")
        lifted = boss.pull("lockdown off")
        assert (lifted.exit, lifted.errors) == (0, "")
        assert luna.pull("jobs").exit == 0
        source = scene.site.source
        (on,), (off,) = source.audit(event="lockdown_on"), source.audit(event="lockdown_off")
        answered = {record["session"]: record["verb"] for record in source.audit(event="answered")}
        assert answered[on["session"]] == "lockdown-on"
        assert answered[off["session"]] == "lockdown-off"
        assert (on["client"], on["key"]) == ("boss", off["key"])
        source.assert_chain()
        assert source.audit_file.stat().st_uid == scene.site.account.uid
        assert os.stat(scene.path).st_uid == 0
