"""The capability is really needed, and nothing beyond it is really there.

Threat: a repository server that takes borg over (D), and a local user who hopes that the forced
command hands out more than reading (C). A stand-in for borg tries what an intruder would, as root
would succeed; the control is that it can read root's file.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.harness import processes
from tests.harness.builds import Build
from tests.harness.fixtures import SiteMaker
from tests.harness.site import Site

pytestmark = [pytest.mark.needs_root, pytest.mark.builds("frozen")]

DAC_READ_SEARCH = 1 << 2
FOREIGN_VARIABLES = (
    "BORG_LOGGING_CONF=/x BORG_REPO=/x LD_PRELOAD=/x.so LD_LIBRARY_PATH=/x PYTHONPATH=/x "
    "PYTHONINSPECT=1 _PYI_ARCHIVE_FILE=/x LC_CTYPE=x BORG_PASSPHRASE=x"
)
# A careless admin's line, in spite of the settings that ship: nothing of it may reach borg.
ACCEPTED = "AcceptEnv BORG_* LD_* PYTHON* _PYI_* TMPDIR LC_*"

INTRUDER = """\
#!/usr/bin/python3 -I
import ctypes, json, os, signal, socket, sys
state = os.environ["BORG_BASE_DIR"]
secret, private, root_pid = {secret!r}, {private!r}, {root_pid}
def attempt(action):
    try:
        return repr(action())
    except OSError as error:
        return os.strerror(error.errno)
def connect():
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(private)
libc = ctypes.CDLL(None, use_errno=True)
def mount():
    if libc.mount(b"none", state.encode(), b"tmpfs", 0, None):
        raise OSError(ctypes.get_errno(), "")
links = {{}}
for name in os.listdir("/proc/self/fd"):
    try:
        links[name] = os.readlink("/proc/self/fd/" + name)
    except OSError:
        pass
report = {{
    "argv": sys.argv,
    "environment": dict(os.environ),
    "descriptors": links,
    "status": dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines()),
    "ids": [os.getresuid(), os.getresgid(), os.getgroups()],
    "session leader": os.getsid(0) == os.getpid(),
    "read": attempt(lambda: open(secret).read()),
    "write": attempt(lambda: open(secret, "a")),
    "replace": attempt(lambda: os.rename(secret, secret + ".moved")),
    "create": attempt(lambda: open(os.path.dirname(secret) + "/new", "w")),
    "chown": attempt(lambda: os.chown(secret, os.getuid(), -1)),
    "chmod": attempt(lambda: os.chmod(secret, 0o666)),
    "connect": attempt(connect),
    "kill": attempt(lambda: os.kill(root_pid, signal.SIGCONT)),
    "setuid": attempt(lambda: os.setuid(0)),
    "mount": attempt(mount),
    "device": attempt(lambda: os.mknod(state + "/device", 0o20600, os.makedev(1, 3))),
    "raw socket": attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)),
    "su": attempt(lambda: os.spawnv(os.P_WAIT, "/bin/su", ["su", "-c", "true"])),
}}
with open(state + "/report.json", "w") as file:
    json.dump(report, file)
"""


@pytest.fixture
def site(make_site: SiteMaker, build: Build) -> Site:
    """A site whose sshd hands on variables that should do harm."""
    return make_site(build, sshd=(ACCEPTED,))


def _run_intruder(site: Site, **client: object) -> dict[str, Any]:
    """What the stand-in for borg found out and could do."""
    secrets = site.source.directory / "secrets"
    secrets.mkdir(mode=0o700)
    secret = secrets / "file"
    secret.write_text("of root's")
    secret.chmod(0o600)
    intruder = site.source.directory / "borg"
    with socket.socket(socket.AF_UNIX) as private:
        path = site.source.directory / "private.sock"
        private.bind(str(path))
        private.listen()
        path.chmod(0o600)
        intruder.write_text(
            INTRUDER.format(secret=str(secret), private=str(path), root_pid=os.getpid())
        )
        intruder.chmod(0o755)
        site.source.write_whitelist(
            {"luna": {"paths": [str(secrets)], **client}},
            runtime={"borg": str(intruder)},
            # What the capability alone allows; Landlock is tests/attacks/test_confinement.py's.
            confine={"landlock": "off"},
        )
        peer = site.peer()
        with peer.listening(site.repository()) as listener:
            result = peer.start(
                f"create /r a {secrets}",
                listener,
                options=[f"-oSetEnv={FOREIGN_VARIABLES}"],
            ).wait()
    assert result.exit == 0, result.errors
    assert secret.read_text() == "of root's"
    assert os.listdir(secrets) == ["file"]
    report: dict[str, Any] = json.loads((site.source.state("luna") / "report.json").read_text())
    return report


def test_reading_is_all_it_can(site: Site) -> None:
    report = _run_intruder(site)
    assert report["read"] == repr("of root's")
    denied = "Permission denied"
    for action in ("write", "replace", "create", "connect"):
        assert report[action] == denied, action
    for action in ("chown", "chmod", "kill", "setuid", "mount", "device", "raw socket"):
        assert report[action] == "Operation not permitted", action
    assert report["su"] != "0"


def test_exactly_one_capability_and_no_new_privileges(site: Site) -> None:
    report = _run_intruder(site)
    status = report["status"]
    for which in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(status[which], 16) == DAC_READ_SEARCH, which
    assert status["NoNewPrivs"].strip() == "1"
    uid, gid = site.account.uid, site.account.gid
    assert report["ids"][:2] == [[uid] * 3, [gid] * 3]
    assert report["session leader"] is True


def test_without_the_capability_root_s_file_stays_unread(
    make_site: SiteMaker, build: Build
) -> None:
    """The control of the control: the very same run of a bundle to which none was granted."""
    site = make_site(build, capable=False)
    data = site.source.tree()
    site.source.file(data / "of root's", "content", 0o600)
    os.chown(data / "of root's", 0, 0)
    site.allow(paths=[str(data)])
    repository = site.repository()
    result = site.pull(f"create {repository.path} a {data}", repository)
    assert result.exit == 1
    assert "of root's" in result.errors
    assert "of root's" not in repository.run("list", "--short", f"{repository.path}::a")
    (start,) = site.source.audit(event="start")
    assert start["confinement"]["capability"] is False

    with_it = make_site(build)
    with_it.allow(paths=[str(data)])
    repository = with_it.repository()
    result = with_it.pull(f"create {repository.path} a {data}", repository)
    assert (result.exit, result.complaints) == (0, "")
    assert "of root's" in repository.run("list", "--short", f"{repository.path}::a")
    (start,) = with_it.source.audit(event="start")
    assert start["confinement"]["capability"] is True
    assert start["confinement"]["no_new_privs"] is True


def test_environment_and_descriptors_are_exactly_these(site: Site) -> None:
    passphrase = site.source.secret("passphrase", "secret\n")
    report = _run_intruder(site, passphrase_file=str(passphrase))
    environment = report["environment"]
    secret = environment["BORG_PASSPHRASE_FD"]
    state = str(site.source.state("luna"))
    suffix = environment.pop("BORG_FILES_CACHE_SUFFIX")
    assert suffix.isalnum()
    processes_above = environment.pop("BORG_PULL_SESSION_PROCESSES")
    assert processes_above
    report_file = environment.pop("BORG_PULL_WRAP_REPORT")
    assert Path(report_file).parent == site.source.home / "locks/luna"
    assert environment == {
        "PATH": "/usr/bin:/bin",
        "HOME": "/nonexistent",
        "PYTHONNOUSERSITE": "1",
        "BORG_HOST_ID": "borg-pull",
        "TMPDIR": state,
        "LOGNAME": "borg-pull",
        "LC_ALL": "C.UTF-8",
        "BORG_BASE_DIR": state,
        "BORG_EXIT_CODES": "modern",
        "BORG_RSH": str(site.source.programs.wrap),
        "BORGSOCKETWRAP_SOCKET_PATH": str(site.source.socket("luna")),
        "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "no",
        "BORG_RELOCATED_REPO_ACCESS_IS_OK": "no",
        "BORG_PASSPHRASE_FD": secret,
    }
    assert set(report["descriptors"]) == {"0", "1", "2", secret}
    assert report["descriptors"]["0"] == "/dev/null"


def _capabilities(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    pairs = (line.split(":\t", 1) for line in lines if line.startswith("Cap"))
    return {name: int(value, 16) for name, value in pairs if name != "CapBnd"}


def test_only_borg_keeps_it(site: Site) -> None:
    """While data flows: the forced command waits without it, the wrap has dropped it."""
    data = site.source.tree()
    site.source.file(data / "file", os.urandom(2 << 20))
    site.allow(paths=[str(data)])
    repository = site.repository()
    peer = site.peer()
    with peer.listening(repository, hold_after=500_000) as listener:
        pull = peer.start(f"create {repository.path} a {data}", listener)
        listener.held()
        running = pull.source_processes()
        none = dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapAmb"), 0)
        kept = dict.fromkeys(none, DAC_READ_SEARCH)
        found = {_role(process): _capabilities(process.pid) for process in running}
        assert found == {"shell": none, "forced": none, "borg": kept, "wrap": none}
        listener.release()
        result = pull.wait()
    assert (result.exit, result.complaints) == (0, "")


def _role(process: processes.Process) -> str:
    if "::a" in process.command:
        return "borg"
    if "borg-pull-socket-wrap" in process.command.split(" ")[0]:
        return "wrap"
    return "shell" if process.command.startswith("sh ") else "forced"


@pytest.mark.parametrize(
    "mode", [pytest.param(0o750, id="as shipped"), pytest.param(0o755, id="careless")]
)
def test_a_local_user_gains_nothing_by_running_it(site: Site, mode: int) -> None:
    """Another account runs the program with a whitelist of its own making."""
    stranger = site.installations.take_account()
    own = site.source.directory / "strangers"
    own.mkdir()
    os.chown(own, stranger.uid, stranger.gid)
    configuration = own / "whitelist.toml"
    configuration.write_text(
        f'[runtime]\nhome = "{own}"\nsocket_dir = "{own}"\n[client.x]\npaths = ["/root"]\n'
    )
    os.chown(configuration, stranger.uid, stranger.gid)
    program = site.source.programs.source
    # In the group, as shipped; not in it, where the mode lets it in all the same.
    group = stranger.gid if mode == 0o750 else 65534
    program.chmod(mode)
    try:
        done = subprocess.run(
            [program, configuration, "x"],
            env={"SSH_ORIGINAL_COMMAND": "create /r a /root"},
            user=stranger.uid,
            group=group,
            extra_groups=[],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        program.chmod(0o750)
    assert done.returncode == 78
    assert f"belongs to uid {stranger.uid}" in done.stderr
    assert list(own.iterdir()) == [configuration]
    site.installations.return_account(stranger)


def test_it_does_not_run_as_root(site: Site) -> None:
    site.allow(paths=["/root"])
    done = subprocess.run(
        [site.source.programs.source, site.source.configuration, "luna"],
        env={"SSH_ORIGINAL_COMMAND": "hello"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 71
    assert "must not run as root" in done.stderr
