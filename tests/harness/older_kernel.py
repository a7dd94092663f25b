"""Runs a command as on a kernel whose Landlock is of an older level, or that has none.

usage, as root: older_kernel.py LEVEL COMMAND [ARGUMENT...]    (LEVEL 0: none)

All that the command starts is told the older level, and is refused by it what that level does not
know, as landlock_create_ruleset(2) says. What it knows is left to this kernel. A filter of system
calls hands each such call to this process (seccomp_unotify(2)), which stays as long as the command.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import sys

CREATE_RULESET = 444
TELL_LEVEL = 1
LOAD, IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # of a BPF program
ALLOW, NOTIFY = 0x7FFF0000, 0x7FC00000
SET_FILTER, NEW_LISTENER = 1, 1 << 3
RECEIVE, ANSWER = 0xC0502100, 0xC0182101
CONTINUE = 1
LIBC = ctypes.CDLL(None, use_errno=True)
SECCOMP = {"x86_64": 317, "aarch64": 277}[os.uname().machine]


def attributes(level: int) -> tuple[int, int, int]:
    """What the fields of a ruleset may hold at ``level``: accesses to files, to ports, scopes."""
    files = 13 if level < 2 else 14 if level < 3 else 15 if level < 5 else 16
    return (1 << files) - 1, 3 if level >= 4 else 0, 3 if level >= 6 else 0


def fault(level: int, given: bytes) -> int:
    """Error number for a ruleset's attributes, 0 for those that ``level`` knows."""
    known = attributes(level)
    size = 8 * (1 if level < 4 else 2 if level < 6 else 3)
    if given[size:].strip(b"\0"):
        return errno.E2BIG
    fields = struct.unpack("QQQ", given[:24].ljust(24, b"\0"))
    wrong = any(field & ~may for field, may in zip(fields, known, strict=True))
    return errno.EINVAL if wrong else 0


def install() -> int:
    """Have this process and all it starts ask about rulesets; the descriptor they are asked by."""
    program = b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in (
            (LOAD, 0, 0, 0),
            (IF_EQUAL, 0, 1, CREATE_RULESET),
            (RETURN, 0, 0, NOTIFY),
            (RETURN, 0, 0, ALLOW),
        )
    )
    code = ctypes.create_string_buffer(program)
    filter_ = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    listener: int = LIBC.syscall(SECCOMP, SET_FILTER, NEW_LISTENER, filter_)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "cannot filter system calls")
    return listener


def answer(listener: int, level: int) -> None:
    """Answer one call."""
    asked = bytearray(80)
    fcntl.ioctl(listener, RECEIVE, asked)
    identifier, pid = struct.unpack_from("QI", asked)
    pointer, size, flags = struct.unpack_from("QQQ", asked, 32)
    value, error, onward = 0, 0, 0
    if level == 0:
        error = -errno.ENOSYS
    elif flags == TELL_LEVEL:
        value = level
    else:
        with open(f"/proc/{pid}/mem", "rb") as memory:
            memory.seek(pointer)
            error = -fault(level, memory.read(size))
        onward = CONTINUE if error == 0 else 0
    fcntl.ioctl(listener, ANSWER, bytearray(struct.pack("QqiI", identifier, value, error, onward)))


def main() -> int:
    level, command = int(sys.argv[1]), sys.argv[2:]
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        with theirs:
            socket.send_fds(theirs, [b"x"], [install()])
        ours.close()
        os.execv(command[0], command)
    theirs.close()
    _, (listener,), _, _ = socket.recv_fds(ours, 1, 1)
    ended = os.pidfd_open(child)
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    poll.register(ended, select.POLLIN)
    while True:
        ready = dict(poll.poll())
        if ended in ready:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        try:
            answer(listener, level)
        except (FileNotFoundError, ProcessLookupError):
            continue  # whoever asked is gone


if __name__ == "__main__":
    sys.exit(main())
