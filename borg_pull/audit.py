"""The audit log: one JSON line per event, appended under a lock, each bound to the one before.

Beside the log lies a sidecar, ``FILE.chain``: the number and hash of the last record. It is the
lock of all writers, and it carries the chain over a rotation; it is never rotated itself.
``docs/audit.md`` holds the schema of every record and says what the chain proves.

This module stands on the start-up path of every backup, hence no ``json``, no ``hashlib``.
Reading and verifying stand in ``borg_pull.admin.audit``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time

from borg_pull.digest import sha256
from borg_pull.errors import SHORTAGES, AuditError
from borg_pull.record import Record
from borg_pull.trust import is_at, open_past_socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    JSONValue = None | bool | int | float | str | Sequence["JSONValue"] | Mapping[str, "JSONValue"]

GENESIS = "0" * 64
"""What the very first record of a chain carries as ``prev``."""

MAX_RECORD_BYTES = 1 << 20
"""Longest record, without its newline."""

MAX_LINE_BYTES = 16 << 20
"""Longest last line a writer continues after: a power cut may leave more than one record torn."""

MAX_DEPTH = 32
"""Deepest nesting of a value, so that no statistics of borg's can exhaust the stack."""

LOCK_SECONDS = 30.0
"""How long a writer waits while no other gets on before it gives up: a stopped one must not hang
it. While records are written it waits its turn, however many came before."""

ROTATION_SECONDS = 0.25
"""How long a writer leaves the making of a new log to what has just moved the old one away.

logrotate's ``create`` takes a file that is there already for a stray and moves it out of the
chain; with four busy writers that happened within 1,500 rotations.
"""

_SEQ_DIGITS = 20

SIDECAR_BYTES = _SEQ_DIGITS + 1 + 64 + 1
"""``SEQ`` in 20 digits, the first of them 0, a space, the hash, a newline."""

RESERVED = frozenset(
    ("time", "event", "seq", "session", "client", "key", "address", "port", "pid", "prev")
)
"""Keys of the record itself, which no event field may repeat."""

_TAIL_BYTES = 4096
_BLOCK = 1 << 20
_HEAD_BYTES = 150  # of a line: time, event, number and session, and nothing that a peer has chosen


class Common(Record):
    """What every record of one session carries."""

    session: str
    """UUID of the session, the same in all its records."""
    client: str | None
    """Client name from the forced command's arguments; None when they did not name a valid one."""
    key: str | None
    """Fingerprint of the key sshd accepted; None when sshd did not say."""
    address: str | None
    """Peer address, from sshd."""
    port: int | None
    """Peer TCP port, from sshd."""
    pid: int
    """Process that writes the record."""


class Head(Record):
    """The end of a chain: the number of its last record and the hash of that record's line."""

    seq: int
    hash: str


class AuditLog:
    """A log many processes append to. Nothing stays open between appends, so rotation is free.

    ``path``: the log file. ``sync``: have each record on the disk before ``append`` returns.
    """

    def __init__(self, path: str, *, sync: bool) -> None:
        self._path = path
        self._chain_path = sidecar_of(path)
        self._sync = sync

    def append(self, event: str, common: Common, fields: Mapping[str, JSONValue]) -> str:
        """Write one record and return the hash of its line.

        Raises AuditError when it could not be written whole; then the log ends as it did before,
        or, where even that is impossible, in a torn line that the next writer steps over.
        """
        try:
            body = _body(event, common, fields)
            chain = _open_locked(self._chain_path)
            try:
                remembered = _remembered(chain)
                log, created = _open_log(self._path, rotated=remembered is not None)
                try:
                    written = self._append(log, chain, remembered, body)
                finally:
                    os.close(log)
                if created and self._sync:
                    _sync_directory(self._path)
            finally:
                os.close(chain)
        except OSError as error:
            raise _refused(error, self._path) from error
        return written

    def holds(self, event: str, session: str) -> bool:
        """Whether the log, as far as it has not been rotated away, has this record.

        It reads all of the file: only for what happens rarely. Raises AuditError.
        """
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _refused(error, self._path) from error
        try:
            return is_among(lambda size: os.read(descriptor, size), event, session)
        except OSError as error:
            raise _refused(error, self._path) from error
        finally:
            os.close(descriptor)

    def _append(self, log: int, chain: int, remembered: Head | None, body: tuple[str, str]) -> str:
        size = os.fstat(log).st_size
        head, ended = _head(log, size, remembered, self._path)
        # The time is taken under the lock so that it never runs backwards along the chain
        # while the clock does not.
        line = (
            f'{{"time":"{timestamp(time.time())}",{body[0]},"seq":{head.seq + 1},'
            f'{body[1]},"prev":"{head.hash}"}}'
        ).encode("ascii")
        if len(line) > MAX_RECORD_BYTES:
            raise AuditError(
                f"audit log {self._path}: a record of {len(line)} bytes is too long",
                f"at most {MAX_RECORD_BYTES} bytes fit",
            )
        written = Head(seq=head.seq + 1, hash=sha256(line).hexdigest())
        try:
            _write(log, b"%s%s\n" % (b"" if ended else b"\n", line))
            if self._sync:
                # Before the sidecar, so that after a power cut a sidecar ahead of the log
                # always means that records were removed.
                os.fdatasync(log)
            _remember(chain, written, damaged=remembered is None)
        except OSError:
            _take_back(log, size)
            raise
        if self._sync:
            os.fdatasync(chain)
        return written.hash


def is_among(read: Callable[[int], bytes], event: str, session: str) -> bool:
    """Whether the lines that ``read`` hands out have this record."""
    # Of a record's own making up to here, and so of nobody else's.
    marks = f',"event":{_text(event)},"seq":'.encode(), f',"session":{_text(session)},'.encode()
    rest = b""
    while block := read(_BLOCK):
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            if all(mark in line[:_HEAD_BYTES] for mark in marks):
                return True
        rest = rest[:_HEAD_BYTES]
    return False


def sidecar_of(path: str) -> str:
    """Path of the sidecar of the log at ``path``."""
    return path + ".chain"


def new_session() -> str:
    """A random UUID (version 4)."""
    raw = bytearray(os.urandom(16))
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    digits = raw.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def timestamp(now: float) -> str:
    """RFC 3339 in UTC with milliseconds, of seconds since the epoch."""
    seconds, milliseconds = divmod(int(now * 1000), 1000)
    year, month, day, hour, minute, second, *_ = time.gmtime(seconds)
    return (
        f"{year:04d}-{month:02d}-{day:02d}T{hour:02d}:{minute:02d}:{second:02d}.{milliseconds:03d}Z"
    )


def encode(value: JSONValue) -> str:
    r"""``value`` as compact JSON in ASCII on one line.

    Bytes that are not UTF-8, decoded with surrogateescape, come out as ``\udcXX``.
    Raises AuditError for what JSON cannot hold: NaN, infinities, other types, keys that are not
    text, nesting deeper than MAX_DEPTH.
    """
    return _encode(value, 0)


def _encode(value: JSONValue, depth: int) -> str:
    if isinstance(value, str):
        return _text(value)
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        if value - value != 0.0:
            raise AuditError(f"audit record: JSON has no number {value!r}")
        return float.__repr__(value)
    if depth == MAX_DEPTH:
        raise AuditError(f"audit record: a value is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, (list, tuple)):
        return f"[{','.join([_encode(item, depth + 1) for item in value])}]"
    if isinstance(value, dict):
        return f"{{{_members(value, depth + 1)}}}"
    raise AuditError(f"audit record: JSON has no {type(value).__name__}")


def _text(text: str) -> str:
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    # Debian's is a shared library: 0.2 ms to load, which most requests need not spend.
    from _json import encode_basestring_ascii

    return encode_basestring_ascii(text)


def _members(fields: Mapping[str, JSONValue], depth: int) -> str:
    members = []
    for key, value in fields.items():
        if not isinstance(key, str):
            raise AuditError(f"audit record: a key must be text, not {key!r}")
        members.append(f"{_text(key)}:{_encode(value, depth)}")
    return ",".join(members)


def _body(event: str, common: Common, fields: Mapping[str, JSONValue]) -> tuple[str, str]:
    """What can be said of a record before its place in the chain: up to ``seq``, and from there."""
    if not RESERVED.isdisjoint(fields):
        taken = ", ".join(sorted(RESERVED.intersection(fields)))
        raise AuditError(f"audit record: the event {event} must not set {taken}")
    rest = _members({name: getattr(common, name) for name in common.__slots__}, 0)
    if fields:
        rest = f"{rest},{_members(fields, 0)}"
    return f'"event":{_text(event)}', rest


def _open_locked(path: str) -> int:
    """The sidecar, open and locked for this writer alone; made when missing."""
    while True:
        descriptor = open_past_socket(
            path,
            os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC,
        )
        try:
            _check(descriptor, path)
            _lock(descriptor, path)
            # Someone may have put another file in its place while this writer waited; whoever
            # comes next would then lock that one.
            if is_at(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, path: str) -> None:
    if not _try_lock(descriptor):
        _wait_in_line(descriptor, _Patience(descriptor, path))


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class _Patience:
    """How long to wait for the lock: as long as those who hold it write records."""

    def __init__(self, descriptor: int, path: str) -> None:
        self._descriptor = descriptor
        self._path = path
        self._seen = b""
        self._since = time.monotonic()
        self.is_over = False

    def check(self, *_signal: object) -> None:
        """Raises AuditError when nothing has been written for LOCK_SECONDS."""
        now = time.monotonic()
        content = os.pread(self._descriptor, SIDECAR_BYTES, 0)
        if content != self._seen:
            self._seen, self._since = content, now
        elif now - self._since > LOCK_SECONDS and not self.is_over:
            raise AuditError(
                f"audit log {self._path}: another process has held the lock for "
                f"{LOCK_SECONDS:g} seconds",
                "look for a stopped borg-pull process with: fuser -v on this file",
            )


def _wait_in_line(descriptor: int, patience: _Patience) -> None:
    """Wait in the kernel, which serves those who wait in the order they came.

    Trying again and again instead took all processor time among 1,000 writers, and with
    ``sync`` nine in ten of them gave up.
    """
    from borg_pull.linux.signals import ITIMER_REAL, SIGALRM, setitimer, signal

    tick = LOCK_SECONDS / 30
    try:
        before = signal(SIGALRM, patience.check)
    except ValueError:  # signals are the main thread's
        while not _try_lock(descriptor):
            patience.check()
            time.sleep(tick / 50)
        return
    try:
        # Repeated, for one signal could come just before the wait begins.
        setitimer(ITIMER_REAL, tick, tick)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        patience.is_over = True
    finally:
        setitimer(ITIMER_REAL, 0)
        signal(SIGALRM, before)


def _open_log(path: str, *, rotated: bool) -> tuple[int, bool]:
    """The log, open for reading and appending, and whether it was made just now.

    ``rotated``: the chain has records, so that a missing log is one that was just moved away.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    deadline = time.monotonic() + ROTATION_SECONDS
    while True:
        created = False
        try:
            descriptor = open_past_socket(path, flags)
        except FileNotFoundError:
            if rotated and time.monotonic() < deadline:
                time.sleep(0.001)
                continue
            try:
                descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o640)
            except FileExistsError:
                continue
            created = True
        try:
            if created:
                # The group reads the log whatever umask sshd gave this session.
                os.fchmod(descriptor, 0o640)
            _check(descriptor, path)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor, created


def _check(descriptor: int, path: str) -> None:
    """Refuse what someone may have planted, or may alter from elsewhere."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise AuditError(f"audit log {path}: not a regular file", "move it away")
    if status.st_nlink > 1:
        raise AuditError(
            f"audit log {path}: the file has {status.st_nlink} hard links",
            "remove the others, or copy it to a file of its own",
        )
    if status.st_mode & 0o022:
        raise AuditError(
            f"audit log {path}: group or others may write it", "take that away: chmod go-w"
        )


def _head(log: int, size: int, remembered: Head | None, path: str) -> tuple[Head, bool]:
    """The end of the chain, and whether the log ends in a newline (or is empty)."""
    if size == 0:
        return remembered or Head(seq=0, hash=GENESIS), True
    line, ended = _last_line(log, size, path)
    digest = sha256(line).hexdigest()
    if remembered is not None and remembered.hash == digest:
        return remembered, ended
    # The log's own last line is what the next record is bound to. The number never falls behind
    # the sidecar's: records cut off the end leave a gap in it that verifying finds for ever.
    seq = max(_last_sequence(log, size), 0 if remembered is None else remembered.seq)
    return Head(seq=seq, hash=digest), ended


def _last_line(log: int, size: int, path: str) -> tuple[bytes, bool]:
    window = _TAIL_BYTES
    while True:
        start = max(0, size - window)
        block = os.pread(log, size - start, start)
        ended = block.endswith(b"\n")
        line = block[:-1] if ended else block
        cut = line.rfind(b"\n")
        if cut >= 0 or start == 0:
            return line[cut + 1 :], ended
        if window >= MAX_LINE_BYTES:
            raise AuditError(
                f"audit log {path}: the last line is longer than {MAX_LINE_BYTES} bytes",
                "this is no audit log of ours; move it away",
            )
        window *= 8


def _last_sequence(log: int, size: int) -> int:
    """Number of the last whole record near the end; 0 when there is none."""
    start = max(0, size - MAX_LINE_BYTES)
    for line in reversed(os.pread(log, size - start, start).split(b"\n")):
        seq = _sequence_of(line)
        if seq > 0:
            return seq
    return 0


def _sequence_of(line: bytes) -> int:
    """``seq`` of a whole record as ``append`` writes it, else 0.

    No string inside a record can hold the marks looked for: its quotes are escaped.
    """
    if not line.startswith(b'{"time":"') or line[-75:-66] != b',"prev":"' or line[-2:] != b'"}':
        return 0
    digits = line.partition(b',"seq":')[2].partition(b",")[0]
    return int(digits) if digits.isdigit() and len(digits) < _SEQ_DIGITS else 0


def parse_sidecar(content: bytes) -> Head | None:
    """The head a sidecar remembers; None when it is empty or damaged."""
    digits, digest = content[:20], content[21:85]
    if (
        len(content) != SIDECAR_BYTES
        or not digits.isdigit()
        # The next number must fit, too; no chain of ours ever came that far.
        or digits[:1] != b"0"
        or content[20:21] != b" "
        or digest.strip(b"0123456789abcdef")
        or content[85:] != b"\n"
    ):
        return None
    return Head(seq=int(digits), hash=digest.decode("ascii"))


def _remembered(chain: int) -> Head | None:
    return parse_sidecar(os.pread(chain, SIDECAR_BYTES + 1, 0))


def _remember(chain: int, head: Head, *, damaged: bool) -> None:
    content = b"%020d %s\n" % (head.seq, head.hash.encode("ascii"))
    if os.pwrite(chain, content, 0) != len(content):
        # No kernel splits so few bytes but for want of space; a damaged sidecar is made anew
        # from the log.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if damaged:
        os.ftruncate(chain, len(content))


def _write(log: int, data: bytes) -> None:
    """One write; where the kernel takes only a part, the next one names the reason."""
    while data:
        data = data[os.write(log, data) :]


def _take_back(log: int, size: int) -> None:
    """Cut a half-written record off again."""
    try:
        os.ftruncate(log, size)
    except OSError:
        # An append-only file cannot be cut (chattr +a). What stands there is then a torn line,
        # which the next writer steps over and verifying reports as torn.
        return


def _sync_directory(path: str) -> None:
    descriptor = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refused(error: OSError, path: str) -> AuditError:
    named = path if error.filename is None else os.fsdecode(error.filename)
    number = error.errno or 0
    return AuditError(f"audit log {named}: {os.strerror(number).lower()}", _HINTS.get(number))


_HINTS = SHORTAGES | {
    errno.EACCES: "the account this runs as must be able to read and write it",
    errno.EPERM: "the account this runs as must be able to read and write it",
    errno.ENOENT: "make the directory, owned by the account this runs as",
    errno.ENOTDIR: "the path leads through something that is no directory",
    errno.ELOOP: "it must not be a symbolic link; name the file itself",
    errno.ENXIO: "it must be a regular file; move this away",
    errno.EISDIR: "it must be a regular file, not a directory",
    errno.EROFS: "its file system is mounted read-only",
}
