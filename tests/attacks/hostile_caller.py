"""Become a program as a hostile caller would start it. No test: tests run it as another account.

usage: python3 -I hostile_caller.py PLAN

PLAN is a JSON file; what it leaves out is left alone. All that it sets outlasts exec. Its
environment is the program's whole one unless it says that it ``adds`` to what there is.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

_NO_NEW_PRIVILEGES = 38  # linux/prctl.h
_NEW_USER_NAMESPACE = 0x10000000  # linux/sched.h

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _strings(values: list[str]) -> Any:
    """A C array; of no elements, too, which os.execve does not let through."""
    return (ctypes.c_char_p * (len(values) + 1))(*map(os.fsencode, values), None)


def _ignore(number: int) -> None:
    """By the kernel's own call: the C library's refuses the two signals that it needs itself."""
    call = {"x86_64": 13, "aarch64": 134}[os.uname().machine]  # rt_sigaction
    action = (ctypes.c_uint64 * 4)(1)  # SIG_IGN
    _checked(_libc.syscall(call, number, action, None, ctypes.c_size_t(8)))


def main(plan: dict[str, Any]) -> None:
    """Set all that ``plan`` names and become its program."""
    if "directory" in plan:
        os.chdir(plan["directory"])
    if plan.get("removed"):
        Path.cwd().rmdir()
    if "umask" in plan:
        os.umask(plan["umask"])
    for number, path in plan.get("descriptors", {}).items():
        opened = os.open(path, os.O_RDONLY)
        os.dup2(opened, int(number))
        os.set_inheritable(int(number), True)
    signal.pthread_sigmask(signal.SIG_BLOCK, plan.get("block", []))
    for number in plan.get("ignore", []):
        _ignore(number)
    if "timer" in plan:
        for which in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
            signal.setitimer(which, plan["timer"])
    if "personality" in plan:
        _checked(_libc.personality(plan["personality"]))
    if plan.get("no_new_privileges"):
        _checked(_libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    if "user_namespace" in plan:
        _checked(_libc.unshare(_NEW_USER_NAMESPACE))
        if plan["user_namespace"]:
            Path("/proc/self/uid_map").write_text(plan["user_namespace"])
    arguments = _strings(plan["arguments"])
    environment = {**(os.environ if plan.get("adds") else {}), **plan["environment"]}
    variables = _strings([f"{name}={value}" for name, value in environment.items()])
    program = os.fsencode(plan["program"])
    execve = _libc.execve
    for name, (soft, hard) in plan.get("limits", {}).items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (soft, hard))
    for number in plan.get("closed", []):
        os.close(number)
    execve(program, arguments, variables)
    os._exit(126)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
