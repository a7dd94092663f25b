"""A process of the program's own account learns nothing of a run but what ps shows (C, D).

Threat: whoever can act as the account (a command of the administrator's, another service that was
given the account, a borg that the kernel could not confine) shares its user id with every run. The
passphrase stands in the memory of the forced command and of borg, files' content in borg's and the
wrap's. The control is the shell that sshd starts, which has none of that and can be looked into.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.harness.builds import FROZEN_14
from tests.harness.fixtures import SiteMaker
from tests.harness.peer import PASSPHRASE
from tests.harness.site import Site

pytestmark = pytest.mark.needs_root

INTRUDER = """\
import ctypes, errno, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result
def attach(pid, path):
    checked(libc.ptrace(0x4206, pid, None, None))  # PTRACE_SEIZE; ends with this process
def take_descriptor(pid, path):
    checked(libc.syscall(438, os.pidfd_open(pid), 0, 0))  # pidfd_getfd
def opened(name):
    return lambda pid, path: os.close(os.open(path + name, os.O_RDONLY))
ATTEMPTS = {
    "mem": opened("/mem"),
    "environ": opened("/environ"),
    "maps": opened("/maps"),
    "auxv": opened("/auxv"),
    "fd": opened("/fd/2"),
    "fdinfo": opened("/fdinfo/0"),
    "map_files": lambda pid, path: os.listdir(path + "/map_files"),
    "exe": lambda pid, path: os.readlink(path + "/exe"),
    "cwd": lambda pid, path: os.readlink(path + "/cwd"),
    "root": lambda pid, path: os.readlink(path + "/root"),
    "pidfd_getfd": take_descriptor,
    "ptrace": attach,
}
def attempt(action, pid):
    try:
        action(pid, "/proc/%d" % pid)
        return "done"
    except OSError as error:
        return errno.errorcode[error.errno]
print(json.dumps({
    role: {what: attempt(action, pid) for what, action in ATTEMPTS.items()}
    for role, pid in json.loads(sys.argv[1]).items()
}))
"""


@pytest.fixture
def site(make_site: SiteMaker) -> Site:
    return make_site(FROZEN_14)


def _look(site: Site, pids: dict[str, int]) -> dict[str, dict[str, str]]:
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", INTRUDER, json.dumps(pids)],
        capture_output=True,
        text=True,
        user=site.account.uid,
        group=site.account.gid,
        extra_groups=[],
        check=True,
    )
    found: dict[str, dict[str, str]] = json.loads(done.stdout)
    return found


def test_nothing_of_a_run_can_be_looked_into(site: Site) -> None:
    data = site.source.tree()
    site.source.file(data / "file", os.urandom(1 << 20))
    site.allow(paths=[str(data)], passphrase_stdin=True)
    repository = site.repository(encryption="repokey")
    peer = site.peer()
    with peer.listening(repository, hold_after=300_000) as listener:
        pull = peer.start(
            f"create {repository.path} a {data}", listener, stdin=f"{PASSPHRASE}\n".encode()
        )
        listener.held()
        pids = {
            role: pull.running(name).pid
            for role, name in (
                ("shell", "sh -c"),
                ("forced command", "borg-pull-source"),
                ("borg", "::a"),
                ("wrap", "borg-pull-socket-wrap"),
            )
        }
        found = _look(site, pids)
        core = {_core_limit(pid) for role, pid in pids.items() if role != "shell"}
        listener.release()
        result = pull.wait()
    assert (result.exit, result.complaints) == (0, "")
    # Not 0: where a program takes core dumps, the kernel gives it those all the same.
    assert core == {("1", "1")}
    shell = found.pop("shell")
    assert {*shell.values()} == {"done"}, shell
    for role, attempts in found.items():
        assert {*attempts.values()} <= {"EACCES", "EPERM"}, (role, attempts)


def _core_limit(pid: int) -> tuple[str, ...]:
    for line in Path(f"/proc/{pid}/limits").read_text().splitlines():
        if line.startswith("Max core file size"):
            return tuple(line.split()[4:6])
    raise AssertionError(pid)
