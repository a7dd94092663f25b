"""The services that ``timers install`` writes, run by a real systemd: a pull works in their
sandbox, and the sandbox is in force."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from borg_pull.pull.ledger import Run
from tests.harness import builds
from tests.harness.builds import PROJECT, Build
from tests.harness.site import Installations
from tests.harness.systemd import Systemd
from tests.harness.wait import until
from tests.pull.conftest import BackupServer
from tests.pull.test_commands import configuration
from tests.pull.test_run import data_of
from tests.test_docs import blocks, commands, pattern_of

pytestmark = [pytest.mark.needs_root, pytest.mark.builds("frozen")]

# What a service may do, seen from within: it is asked for the passphrase.
PROBE = """\
#!/bin/sh
exec 3>&1 >STATE/probe
grep -E '^(CapBnd|NoNewPrivs|Seccomp):' /proc/self/status
id -un
for place in /usr /etc OTHER REPOSITORY STATE /home /root; do
    if (: >$place/of-a-test) 2>/dev/null; then rm $place/of-a-test; echo writes $place; fi
done
unshare --user true 2>/dev/null && echo makes namespaces
mount -t tmpfs tmpfs /mnt 2>/dev/null && echo mounts
cat STATE/passphrase >&3
"""


@pytest.fixture
def manager() -> Iterator[Systemd]:
    with tempfile.TemporaryDirectory(prefix="bp-", dir="/var/tmp") as directory:
        made = Systemd(Path(directory) / "log")
        yield made
        made.stop()


@dataclass
class Admin:
    """The admin of the machine whose systemd it is, and the account that the services run as."""

    server: BackupServer
    manager: Systemd
    account: str
    directory: Path
    """Reached by all."""

    def borg_pull(self, *arguments: str, code: int = 0) -> str:
        """Run a command as root; its output."""
        path = configuration(self.server)
        shutil.chown(path, self.account)
        program = builds.frozen_bundle() / "borg-pull"
        done = self.manager.run(program, "--config", path, *arguments)
        assert done.returncode == code, (done.stdout, done.stderr)
        return done.stdout


@pytest.fixture
def admin(
    server: BackupServer, manager: Systemd, installations: Installations, build: Build
) -> Admin:
    """With one borg the services are root's, with the other an account's."""
    directory = installations.workplace.directory("served")
    if build.borg == "1.2":
        base = f"[Service]\nEnvironment=BORG_BASE_DIR={server.directory}/base\n"
        drop_in = server.directory / "base.conf"
        drop_in.write_text(base)
        manager.run("cp", drop_in, "/etc/systemd/system/service.d/base.conf")
        return Admin(server, manager, "root", directory)
    account = installations.workplace.account().name
    home = server.directory / "home"
    home.mkdir()
    subprocess.run(["usermod", "--home", home, account], check=True)
    return Admin(server, manager, account, directory)


def successes(admin: Admin) -> list[Run]:
    """The runs that made a backup; none may fail."""
    errors = [run.error for run in admin.server.ledger.runs() if run.outcome == "failure"]
    assert not errors, (errors, admin.manager.log.read_text())
    return admin.server.ledger.successes("www", 1)


def test_a_timer_pulls_in_its_sandbox(admin: Admin) -> None:
    server, manager = admin.server, admin.manager
    data = data_of(server)
    repository = server.repository(encryption="repokey-blake2")
    # To where the account can reach it, too.
    place = admin.directory / "repository"
    repository.path = repository.path.rename(place)
    server.site.allow(paths=[data], passphrase_stdin=True)
    other = repository.path.with_name("other")
    other.mkdir()
    probe = server.directory / "probe.sh"
    text = PROBE
    for word, path in (
        ("STATE", server.directory),
        ("REPOSITORY", repository.path),
        ("OTHER", other),
    ):
        text = text.replace(word, str(path))
    probe.write_text(text)
    probe.chmod(0o700)
    keys = server.document["repository"]["repository"]
    del keys["passphrase_file"]
    keys |= {"path": str(repository.path), "passphrase_command": [str(probe)]}
    server.job("www", paths=[data], schedule="*:*:0/2")
    source = server.document["source"]["source"]
    source["identity"] = shutil.copy(source["identity"], f"{server.directory}/key")
    for path in (server.directory, repository.path, other):
        subprocess.run(["chown", "-R", admin.account, path], check=True)
    install = ("timers", "install", "--system", "--run-as", admin.account)

    installed = admin.borg_pull(*install)
    assert "borg-pull-job-www.timer    written" in installed
    assert "run:" not in installed
    good = until(lambda: successes(admin), seconds=60, what="a pull by the timer")
    assert "unchanged" in admin.borg_pull(*install)
    admin.borg_pull("timers", "list", "--run-as", admin.account)
    watched = manager.run("systemctl", "start", "borg-pull-watch.service")
    assert watched.returncode == 0, manager.log.read_text()
    assert "www" in manager.log.read_text()

    server.job("www", paths=[data])
    assert "borg-pull-job-www.timer    removed" in admin.borg_pull(*install)
    assert manager.property("borg-pull-job-www.timer", "ActiveState") == "inactive"
    admin.borg_pull("timers", "remove", "--run-as", admin.account)
    assert manager.property("borg-pull-watch.timer", "LoadState") == "not-found"
    assert manager.run("sh", "-c", "! ls /etc/systemd/system/borg-pull-*").returncode == 0

    def ended() -> bool:
        state = manager.property("borg-pull-job-www.service", "ActiveState")
        return state in ("inactive", "failed")

    until(ended, seconds=30, what="the service to end")
    assert good[0].archive in repository.archives()
    seen = (server.directory / "probe").read_text().splitlines()
    assert seen == [
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        admin.account,
        f"writes {repository.path}",
        f"writes {server.directory}",
        *seen[6:],
    ]
    # The homes are empty ones of its own, but for what it was given.
    assert set(seen[6:]) <= {"writes /home", "writes /root"}


def test_the_document(manager: Systemd, short_path: Path) -> None:
    """Every command of docs/schedules.md, and its lines for cron."""
    document = PROJECT / "docs/schedules.md"
    ((_kind, text),) = blocks(document, ("toml",))
    main = short_path / "pull.toml"
    main.write_text(text)
    main.chmod(0o600)
    program = builds.frozen_bundle() / "borg-pull"
    names = (
        f"HOME={short_path}",
        f"BORG_PULL_CONFIG={main}",
        f"PATH={program.parent}:/usr/bin:/bin",
    )

    def run(command: str, *codes: int) -> str:
        done = manager.run("env", *names, "sh", "-c", command)
        assert done.returncode in codes, (command, done)
        return done.stdout

    for command in commands(document):
        said = run(command.text, 0)
        if command.output:
            assert pattern_of(command.output, str).fullmatch(said), said
    lines = re.findall(r"^\*/\d+ \* \* \* \* (.*)$", document.read_text(), re.MULTILINE)
    assert len(lines) == 2
    # No such source: the job that is due fails, and the watch says that there is no backup.
    assert [run(line, 1, 2) for line in lines] == ["", ""]
