"""Throughput of a socket wrap each way, beside socat's, in one run.

The ends do as little as they can, so that what is measured is the wrap: data comes from pages
that sendfile(2) hands over uncopied, and what leaves the wrap by its standard output is spliced to
/dev/null. Only what arrives at a socket has to be copied once, into one small buffer.
"""

from __future__ import annotations

import os
import socket
import stat
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

SOCKET_PATH = "BORGSOCKETWRAP_SOCKET_PATH"
MEBIBYTE = 1 << 20
SECONDS = 60.0
WRAP = "wrap"
SOCAT = {
    "socat_default": ("socat", "-", "UNIX-CONNECT:{path}"),
    "socat_64k": ("socat", "-b", "65536", "-", "UNIX-CONNECT:{path}"),
}
WAYS = ("to_peer", "from_peer")


def measure(wrap_argv: list[str], repeats: int, mebibytes: int) -> dict[str, float]:
    """Carry ``mebibytes`` MiB each way ``repeats`` times through the wrap and through socat.

    Keys ``WAY_vs_SOCAT`` (``to_peer_vs_socat_default``, ``to_peer_vs_socat_64k``, ...) hold how
    many times as fast as that socat the wrap is: the median over the rounds, each of which runs
    all programs one after the other. Keys ``WAY_PROGRAM_mib_per_second`` hold the median speeds.
    Start-up is not counted. Raises RuntimeError when a program loses data.
    """
    programs = {WRAP: tuple(wrap_argv)} | SOCAT
    speeds: dict[tuple[str, str], list[float]] = {
        (way, program): [] for way in WAYS for program in programs
    }
    with tempfile.TemporaryDirectory(prefix="borg-pull-bench-") as directory:
        for number in range(repeats):
            path = Path(directory) / f"{number}.sock"
            for way in WAYS:
                # No program always runs in the wake of the same other one.
                order = list(programs)[number % 3 :] + list(programs)[: number % 3]
                for program in order:
                    argv = [word.format(path=path) for word in programs[program]]
                    speeds[way, program].append(_speed(argv, path, way, mebibytes))
    result = {}
    for way in WAYS:
        for socat in SOCAT:
            rounds = zip(speeds[way, WRAP], speeds[way, socat], strict=True)
            result[f"{way}_vs_{socat}"] = statistics.median(ours / its for ours, its in rounds)
        for program in programs:
            median = statistics.median(speeds[way, program])
            result[f"{way}_{program}_mib_per_second"] = median
    return result


def _speed(argv: list[str], path: Path, way: str, mebibytes: int) -> float:
    """MiB a second through one run of ``argv`` that connects to ``path``."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        listener.settimeout(SECONDS)
        with subprocess.Popen(
            argv,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={SOCKET_PATH: str(path), "PATH": os.environ["PATH"]},
        ) as process:
            try:
                peer, _ = listener.accept()
                with peer:
                    # A timeout of its own would make the descriptor non-blocking.
                    peer.settimeout(None)
                    assert process.stdin is not None
                    assert process.stdout is not None
                    if way == "to_peer":
                        ends = (process.stdin.fileno(), peer.fileno())
                    else:
                        ends = (peer.fileno(), process.stdout.fileno())
                    speed = mebibytes / _seconds(*ends, mebibytes * MEBIBYTE)
                    process.stdin.close()
                    peer.recv(1)  # the end
                process.wait(SECONDS)
                return speed
            finally:
                process.kill()
                path.unlink()


def _seconds(sink: int, source: int, size: int) -> float:
    """Seconds from the first byte written to ``sink`` to the last read from ``source``."""
    # One byte first, so that the program is up and the connection stands.
    os.write(sink, b"\0")
    if os.read(source, 1) != b"\0":
        raise RuntimeError("the program carried nothing")
    started = time.perf_counter()
    feeder = os.fork()
    if feeder == 0:
        _feed(sink, size)
    got = _drain(source, size)
    ended = time.perf_counter()
    os.waitpid(feeder, 0)
    if got != size:
        raise RuntimeError(f"{size - got} of {size} bytes were lost")
    return ended - started


def _feed(sink: int, size: int) -> None:
    code = 1
    try:
        pages = os.memfd_create("pages")
        os.write(pages, bytes(MEBIBYTE))
        left = size
        while left:
            left -= os.sendfile(sink, pages, 0, min(left, MEBIBYTE))
        code = 0
    finally:
        os._exit(code)


def _drain(source: int, size: int) -> int:
    """Bytes read, ``size`` unless the end comes first."""
    got = 0
    block = bytearray(64 * 1024)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        is_pipe = stat.S_ISFIFO(os.fstat(source).st_mode)
        while got < size:
            count = os.splice(source, null, MEBIBYTE) if is_pipe else os.readv(source, [block])
            if count == 0:
                break
            got += count
    finally:
        os.close(null)
    return got
