"""A real systemd, process 1 of namespaces of its own, on a machine that need not run one.

It shares this machine's files and network, but for ``/run``, ``/etc/systemd/system`` and
``/var/lib/systemd``, which are its own and empty. It sees no units but those a test puts there:
the machine's own would do to shared files what is meant for a boot.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from . import processes
from .wait import until

_UNITS = "/etc/systemd/system"

_OUTSIDE = """
set -eu
mount --make-rprivate /
umount -R /sys/fs/cgroup 2>/dev/null || true
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir "/sys/fs/cgroup/$1"
echo $$ >"/sys/fs/cgroup/$1/cgroup.procs"
exec unshare --fork --kill-child=KILL --pid --mount --uts --ipc --cgroup bash -c "$2" inside "$3"
"""

_INSIDE = f"""
set -eu
for place in /run /var/lib/systemd {_UNITS}; do mount -t tmpfs -o mode=755 tmpfs $place; done
mount -t proc proc /proc
umount /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /run/lock {_UNITS}/service.d {_UNITS}/timer.d
for target in sysinit basic timers shutdown network-online; do
    printf '[Unit]\\nDefaultDependencies=no\\n' >{_UNITS}/$target.target
done
printf '[Unit]\\nDefaultDependencies=no\\nWants=timers.target\\n' >{_UNITS}/test.target
printf '[Service]\\nStandardOutput=append:%s\\nStandardError=inherit\\n' "$1" \\
    >{_UNITS}/service.d/log.conf
printf '[Timer]\\nAccuracySec=1us\\n' >{_UNITS}/timer.d/accuracy.conf
export container=test SYSTEMD_UNIT_PATH={_UNITS}
exec /lib/systemd/systemd --system --unit=test.target --log-target=null --show-status=no
"""


class Systemd:
    """Started at once; `stop` ends it and all it runs. What services say is in ``log``."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._group = f"borg-pull-test-{os.getpid()}"
        # An end of the test run by SIGKILL must end it too.
        self._process = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", "unshare", "--mount"),
                *("bash", "-c", _OUTSIDE, "outside", self._group, _INSIDE, str(log)),
            ],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        until(self._answers, seconds=30, what="systemd to be up")

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            assert self._process.stderr is not None
            raise AssertionError(f"systemd does not start here: {self._process.stderr.read()}")
        inside = processes.descendants(self._process.pid)
        if not any(one.name == "systemd" for one in inside):
            return False
        return self.run("systemctl", "show", "--property=Version").returncode == 0

    @property
    def _first(self) -> int:
        """Process 1, as it is seen from here."""
        return next(
            one.pid for one in processes.descendants(self._process.pid) if one.name == "systemd"
        )

    def run(self, *argv: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command as somebody who has logged in there."""
        return subprocess.run(
            [*self.entering(), *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def entering(self) -> list[str]:
        """What stands before a command that is run there."""
        into = [f"--target={self._first}", "--mount", "--pid", "--cgroup", "--uts", "--ipc"]
        return ["nsenter", *into, "--"]

    def property(self, unit: str, name: str) -> str:
        """What ``systemctl show`` says."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()

    def stop(self) -> None:
        """End everything and leave no control group."""
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()
        # A process that was killed leaves its group a moment later.
        clean = (
            "mount -t cgroup2 cgroup2 /mnt && cd /mnt && "
            'until find "$1" -depth -type d -exec rmdir {} + 2>/dev/null; do sleep 0.1; done'
        )
        subprocess.run(
            ["timeout", "20", "unshare", "--mount", "sh", "-c", clean, "sh", self._group],
            stdin=subprocess.DEVNULL,
            check=True,
        )
