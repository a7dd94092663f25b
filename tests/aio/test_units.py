"""The units that ship, run by a real systemd: a backup works in their sandbox, and a restart of the
service ends none."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.aio.host import Answer, Host
from tests.aio.stand_in_aio import StandIn
from tests.harness.builds import PROJECT, frozen_bundle
from tests.harness.systemd import Systemd
from tests.harness.wait import until

pytestmark = pytest.mark.needs_root

SERVICE, SOCKET = "borg-pull-aio.service", "borg-pull-aio.socket"


@pytest.fixture
def manager() -> Iterator[Systemd]:
    with tempfile.TemporaryDirectory(prefix="bp-", dir="/var/tmp") as directory:
        made = Systemd(Path(directory) / "log")
        yield made
        made.stop()


def enter(manager: Systemd, name: str, text: str) -> None:
    """Have a unit of this content."""
    file = manager.log.with_name(name)
    file.write_text(text)
    assert manager.run("cp", file, f"/etc/systemd/system/{name}").returncode == 0


def test_backup_in_the_sandbox(aio: StandIn, manager: Systemd) -> None:
    host = Host(aio, frozen_bundle() / "borg-pull-aio")
    units = {name: (PROJECT / "contrib/systemd" / name).read_text() for name in (SERVICE, SOCKET)}
    start = f"{frozen_bundle()}/borg-pull-aio --config {host.config}"
    text = units[SERVICE].replace("/opt/borg-pull/borg-pull-aio", start)
    assert start in text
    enter(manager, SERVICE, text.replace("-/etc/borg-pull", f"-{host.config.parent}"))
    text = units[SOCKET].replace("/run/borg-pull-aio/companion.sock", str(host.socket))
    group = f"SocketGroup={host.account.gid}"
    enter(manager, SOCKET, text.replace("SocketGroup=borg-pull", group))
    assert manager.run("systemctl", "daemon-reload").returncode == 0
    started = manager.run("systemctl", "start", SOCKET)
    assert started.returncode == 0, started.stderr

    host.enter = tuple(manager.entering())
    aio.turn("hold")
    watcher = host.asking("run", action="away", detach=False)
    until(lambda: (host.journal() or {}).get("state") == "watch", seconds=30, what="the watch")
    log = manager.log.read_text()
    assert manager.property(SERVICE, "ActiveState") == "active", log
    pid = manager.property(SERVICE, "MainPID")
    status = manager.run("cat", f"/proc/{pid}/status").stdout
    assert "Seccomp:\t2" in status
    assert manager.run("systemctl", "restart", SERVICE).returncode == 0
    aio.release("hold")
    out, _ = watcher.communicate(timeout=60)
    answer = Answer([json.loads(line) for line in out.splitlines()])
    assert answer.exit == 0, (answer.lines, log)
    assert len(aio.archives("second")) == 1
    assert host.ask("aio-status").exit == 0
    assert host.log.stat().st_uid == host.account.uid
