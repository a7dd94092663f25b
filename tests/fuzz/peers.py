"""What comes with a session: sshd's word on the peer, the passphrase, the wrap's environment."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

from borg_pull.errors import RequestError
from borg_pull.source import passphrase, peer
from borg_pull.trust import Trust
from borg_pull.wrap import peer as wrap
from tests.properties.checks import check_line, rules_of

from .target import Target, parts, scratch

KEY = b"AAAAC3NzaC1lZDI1NTE5AAAAIIDk1HyEVCEqYYNHTi4RX5KEPeMHb4MuTdPhAtSs4Mhc"
# Whole messages: nothing of a secret is told.
REFUSALS = (
    "this client must send its passphrase; ",
    "the passphrase is longer than 4096 bytes; ",
    "the passphrase is not UTF-8 text; ",
    "the passphrase has a carriage return, which borg takes for a line end; ",
)
STDIN_RULES = rules_of("luna", {"passphrase_stdin": True})
TRUST = Trust(enforced=False, uid=os.getuid())


@functools.cache
def _file() -> Path:
    return scratch() / "user-auth"


def check_caller(data: bytes) -> str:
    """``SSH_CONNECTION``, then what stands in the file that ``SSH_USER_AUTH`` names."""
    connection, authentication = parts(data, 2)
    _file().write_bytes(authentication)
    environment = {b"SSH_CONNECTION": connection, b"SSH_USER_AUTH": os.fsencode(_file())}
    caller = peer.caller(environment)
    assert caller.key is None or re.fullmatch(r"SHA256:[A-Za-z0-9+/]{43}", caller.key)
    if caller.address is None:
        assert caller.port is None
    else:
        check_line(caller.address)
        assert " " not in caller.address
        assert caller.port is None or 0 <= caller.port <= 65535
    return "key" if caller.key else "address" if caller.address else "nothing"


CALLER = Target(
    name="caller",
    check=check_caller,
    reaches={"borg_pull.source.peer": ("caller", "_fingerprint")},
    weight=1,
    seeds=lambda: (
        b"192.0.2.1 50000 192.0.2.2 22\n--\npublickey ssh-ed25519 " + KEY + b"\n",
        b"2001:db8::1 50000 2001:db8::2 22\n--\nkeyboard-interactive\npublickey ssh-rsa AAAA\n",
        b"fe80::1%eth0 1 ::1 22",
    ),
    dictionary=(b"publickey ", b"ssh-ed25519 ", b"\n--\n", b"::1", b"%eth0", b"=", b"65536"),
    max_length=512,
)


@functools.cache
def _no_signals() -> int:
    """The reading end of a pipe in which no signal is ever noted."""
    return os.pipe()[0]  # the other end stays open, too


@contextlib.contextmanager
def _standard_input(content: bytes) -> Iterator[None]:
    before = os.dup(0)
    reader, writer = os.pipe()
    os.write(writer, content)
    os.close(writer)
    os.dup2(reader, 0)
    os.close(reader)
    try:
        yield
    finally:
        os.dup2(before, 0)
        os.close(before)


def check_passphrase(data: bytes) -> str:
    """Standard input: its first line is the passphrase, the rest is left alone."""
    line, _, rest = data.partition(b"\n")
    with _standard_input(data):
        try:
            found = passphrase.obtain(STDIN_RULES, TRUST, {}, _no_signals())
        except RequestError as error:
            check_line(error.line())
            if not error.line().startswith(REFUSALS):
                raise AssertionError(error.line()) from error
            return "refused"
        left = os.read(0, 65536)
    assert left == rest
    assert found == line.rstrip(b"\r")
    assert 0 < len(found) <= passphrase.MAX_PASSPHRASE
    # Borg opens the descriptor as a text file, and drops the line end we add.
    as_borg_reads_it = io.TextIOWrapper(io.BytesIO(found + b"\n"), encoding="utf-8").read()
    assert as_borg_reads_it.rstrip("\n") == found.decode("utf-8")
    return "accepted"


PASSPHRASE = Target(
    name="passphrase",
    check=check_passphrase,
    reaches={"borg_pull.source.passphrase": ("_line_of_standard_input", "_fault")},
    weight=1,
    seeds=lambda: (
        b"correct horse\n", "é\r\nrest".encode(), b"no end", b"\n", b"\xff\n", b"x" * 4097,
    ),
    dictionary=(b"\r", b"\n", b"\0", b"\xc3\xa9", b"x" * 64),
    max_length=8192,
)  # fmt: skip


def check_wrap(data: bytes) -> str:
    """What the forced command tells the wrap: the socket, and the processes of the session."""
    path, processes = parts(data, 2)
    environment = {wrap.SOCKET_PATH.encode(): path}
    if processes:
        environment[wrap.SESSION_PROCESSES.encode()] = processes
    try:
        endpoint = wrap.endpoint(environment)
    except RequestError as error:
        check_line(error.line())
        return "refused"
    assert endpoint.path == path
    assert 0 < len(path) <= 107
    told = endpoint.session_processes
    assert (told is None) is (not processes)
    if told is not None:
        assert b",".join(b"%d:%d" % entry for entry in told).replace(
            b"0", b""
        ) == processes.replace(b"0", b"")
    return "accepted"


WRAP = Target(
    name="wrap",
    check=check_wrap,
    reaches={"borg_pull.wrap.peer": ("endpoint", "_processes", "_is_number")},
    weight=1,
    seeds=lambda: (b"/run/x/luna.sock", b"/run/x/luna.sock\n--\n12:34,56:78", b"\n--\n1:2"),
    dictionary=(b"\n--\n", b":", b",", b"9" * 120),
    max_length=8192,
)
