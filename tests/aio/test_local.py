"""The host's admin, with the program itself: what runs, how it went, how AIO stands."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest

from borg_pull.command_line import EXIT_INTERRUPTED
from tests.aio.host import Host
from tests.aio.stand_in_aio import BACKUP, MASTER
from tests.harness.builds import PROJECT
from tests.harness.wait import until

pytestmark = pytest.mark.needs_root

CHECK = """
[action.check]
type = "nextcloud_aio_backup"
daily_backup = false
check_backup = true
"""


def test_a_run_that_is_looked_at(host: Host) -> None:
    """Without a service. An interrupt ends the looking, in one line; the run is found again."""
    host.aio.turn("hold")
    (host.aio.data / "daily_backup_running").touch()
    looking = subprocess.Popen(
        host.command("run", "nightly"),
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(
        lambda: bool(host.aio.daemon.client.containers(filters={"name": BACKUP})),
        seconds=20,
        what="the backup container",
    )
    (job,) = json.loads(host.run("jobs", "--json").stdout)["jobs"]
    name = job["job_id"]
    assert f"{name}  nightly  backup  (this host)  running: watch" in host.run("jobs").stdout
    stands = host.run("status")
    assert (stands.returncode, stands.stderr) == (0, ""), "what it stops may be down meanwhile"
    assert "in use        daily_backup_running" in stands.stdout
    refused = host.run("cancel", name)
    assert (refused.returncode, "wait for its end" in refused.stderr) == (75, True)
    looking.send_signal(signal.SIGINT)
    out, errors = looking.communicate(timeout=10)
    assert looking.returncode == EXIT_INTERRUPTED
    assert errors == f"borg-pull-aio: the job goes on: borg-pull-aio job {name} --follow\n"
    first, second, *_ = out.splitlines()
    assert first == f"job {name}"
    assert second.split("Z ")[0] + "Z" == f"{job['created'][:10]} {job['created'][11:19]}Z"
    host.aio.release("hold")
    followed = host.run("job", "--follow")
    assert followed.returncode == 0, followed.stderr
    assert followed.stdout.splitlines()[-1].endswith("result    success")
    shown = host.run("job", name, "--from", "2")
    assert "result        success" in shown.stdout
    assert "\n20" in shown.stdout, "its events"
    events = host.run("job", name, "--from", "2", "--json").stdout.splitlines()
    assert [json.loads(line)["number"] for line in events[1:3]] == [2, 3]
    for gone in (host.run("cancel", name), host.run("job", "nonsense")):
        assert (gone.returncode, gone.stdout) == (77, "")


def test_how_aio_stands(host: Host) -> None:
    host.configure(actions=CHECK)
    host.state.mkdir(mode=0o755)
    assert host.run("job").returncode == 77
    assert host.state.stat().st_mode & 0o777 == 0o700
    assert host.run("run", "nightly").returncode == 0
    assert host.run("run", "check").returncode == 0
    sound = host.run("status")
    assert (sound.returncode, sound.stderr) == (0, "")
    for line in ("last backup   success, 20", "last check    success, 20", "AIO's last    check: "):
        assert line in sound.stdout
    assert host.run("health").returncode == 0
    place = host.place / "textfile"
    place.mkdir()
    assert host.run("metrics", "--output", str(place / "aio.prom")).returncode == 0
    pipe, link = place / "pipe", place / "link"
    os.mkfifo(pipe)
    link.symlink_to(place / "aio.prom")
    for other in (str(pipe), str(link), str(place), ""):
        refused = host.run("metrics", "--output", other)
        assert (refused.returncode, "is no regular file" in refused.stderr) == (64, True)
    assert pipe.is_fifo()
    assert link.is_symlink()
    pipe.unlink()
    link.unlink()
    assert (place / "aio.prom").read_text() == host.run("metrics").stdout
    assert [path.name for path in place.iterdir()] == ["aio.prom"]

    host.aio.turn("fail")
    assert host.run("run", "nightly").returncode == 2
    after = host.run("status").stdout
    assert "last backup   fail, 20" in after
    assert "; last success 20" in after
    assert ": fail: the backup failed: exit code 1: " in after

    host.aio.daemon.client.stop("nextcloud-aio-apache", timeout=0)
    for command in ("status", "health"):
        down = host.run(command)
        assert (down.returncode, down.stderr) == (
            1,
            "borg-pull-aio: not up and healthy: nextcloud-aio-apache\n",
        )
    told = json.loads(host.run("health", "--json").stdout)
    ok = {one["name"]: one["ok"] for one in told["containers"]}
    assert ok == {name: name != "nextcloud-aio-apache" for name in ok}
    host.aio.change(wasStartButtonClicked=False)
    host.aio.daemon.client.stop(MASTER, timeout=0)
    wrong = host.run("status")
    assert wrong.returncode == 1
    assert "Nextcloud AIO is not set up\n" in wrong.stderr
    assert f"{MASTER} does not run\n" in wrong.stderr
    host.aio.configuration.write_text("[")
    unknown = host.run("status")
    assert (unknown.returncode, "is not JSON" in unknown.stderr) == (1, True)
    assert "target        unknown\n" in unknown.stdout
