"""``borg-pull-admin audit``: read the audit log, and verify its chain.

Verifying cuts the files into runs of lines that follow one another without a fault, which for an
intact log is one run a file, so that memory does not grow with the log. Only the runs are then
compared: the chain is walked from its end back to its start by the hashes, and where a hash leads
nowhere, position and number say what happened to the lines between.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import gzip
import hashlib
import json
import os
import re
import stat
import sys
import time
import zlib
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import IO, Any, cast

import click

from borg_pull.admin.host import audit_file
from borg_pull.audit import (
    GENESIS,
    MAX_LINE_BYTES,
    RESERVED,
    SIDECAR_BYTES,
    Head,
    parse_sidecar,
    sidecar_of,
    timestamp,
)
from borg_pull.errors import ConfigurationError, RequestError, printable
from borg_pull.output import print_line, print_table
from borg_pull.record import Record

FOLLOW_SECONDS = 0.25
"""How often a followed log is looked at: one stat and one read that find nothing."""

LOCK_SECONDS = 5.0
"""How long to wait for writers; after that the log is read without the lock."""

EXIT_TAMPERED = 1


# Reading


class Line(Record):
    """One line of a log file."""

    file: str
    number: int
    """Counted from 1."""
    content: bytes
    """Without its newline; cut at MAX_LINE_BYTES."""
    hash: str
    """Of the whole line without its newline."""
    ended: bool
    """Whether a newline follows."""
    record: dict[str, Any] | None
    """None when the line is no record."""


class Source(Record):
    """One open log file, and how much of it to read."""

    name: str
    stream: IO[bytes]
    size: int | None
    """Bytes to read; None for all (compressed files)."""


def record_of(content: bytes) -> dict[str, Any] | None:
    """The record a line holds; None when it is none."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    seq, prev = value.get("seq"), value.get("prev")
    if type(seq) is not int or seq < 1 or not isinstance(prev, str) or len(prev) != len(GENESIS):
        return None
    return value


def lines_of(source: Source) -> Iterator[Line]:
    """Every line of ``source``. Raises ConfigurationError when it cannot be read."""
    left = sys.maxsize if source.size is None else source.size
    number = 0
    try:
        source.stream.seek(0)
        while left > 0 and (content := source.stream.readline(min(left, MAX_LINE_BYTES))):
            number += 1
            left -= len(content)
            digest = hashlib.sha256(content.removesuffix(b"\n"))
            end = content
            while not end.endswith(b"\n") and left > 0:
                end = source.stream.readline(min(left, MAX_LINE_BYTES))
                if not end:
                    break
                left -= len(end)
                digest.update(end.removesuffix(b"\n"))
            yield Line(
                file=source.name,
                number=number,
                content=content.removesuffix(b"\n"),
                hash=digest.hexdigest(),
                ended=end.endswith(b"\n"),
                record=record_of(content) if end is content else None,
            )
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(source.name, error) from error


def open_log(path: str, stack: contextlib.ExitStack) -> IO[bytes]:
    """The log at ``path``, compressed or not, closed by ``stack``. Raises ConfigurationError."""
    plain = stack.enter_context(_open_file(path))
    if not path.endswith(".gz"):
        return plain
    return cast("IO[bytes]", stack.enter_context(gzip.GzipFile(fileobj=plain, mode="rb")))


def _open_file(path: str) -> IO[bytes]:
    try:
        # O_NONBLOCK: opening a FIFO must not wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise ConfigurationError(f"audit log {path}: not a regular file")
    except OSError as error:
        raise _unreadable(path, error) from error
    return os.fdopen(descriptor, "rb")


def _unreadable(path: str, error: Exception) -> ConfigurationError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    hint = None
    if isinstance(error, FileNotFoundError) and os.path.isdir(os.path.dirname(path) or "."):
        hint = "nothing was recorded there yet, or the log has another name (audit.file)"
    return ConfigurationError(f"audit log {path}: {reason.lower()}", hint)


def rotated_set(path: str) -> list[str]:
    """``path`` and what rotation made of its past (FILE.N, FILE.N.gz), oldest first."""
    directory, name = os.path.split(path)
    pattern = re.compile(re.escape(name) + r"\.([0-9]{1,6})(\.gz)?")
    found: dict[int, str] = {}
    try:
        with os.scandir(directory or ".") as entries:
            # A socket was planted: any key that may forward has sshd bind one of any name.
            names = sorted(entry.name for entry in entries if not _is_socket(entry))
    except OSError as error:
        raise _unreadable(directory or ".", error) from error
    for entry in names:
        match = pattern.fullmatch(entry)
        # Where an interrupted rotation left both, the uncompressed one, sorted first, is whole.
        if match is not None:
            found.setdefault(int(match[1]), os.path.join(directory, entry))
    past = [found[number] for number in sorted(found, reverse=True)]
    # Between two steps of a rotation there may be no current file.
    return [*past, path] if os.path.lexists(path) or not past else past


def _is_socket(entry: os.DirEntry[str]) -> bool:
    try:
        return stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


# The chain


class Run(Record):
    """Lines of one file that follow one another without a fault; or one line that is no record."""

    file: str
    first_line: int
    last_line: int
    first_seq: int | None
    """None for a line that is no record."""
    last_seq: int | None
    prev: str | None
    """What the first line holds as the hash of the line before it."""
    hash: str
    """Of the last line."""
    ended: bool
    """Whether the last line has its newline."""

    def first_place(self) -> str:
        return f"{self.file}:{self.first_line}"

    def last_place(self) -> str:
        return f"{self.file}:{self.last_line}"

    def is_torn(self) -> bool:
        """Whether it is a line that was not written to its end, and that nothing was added to."""
        return self.first_seq is None and not self.ended


class Finding(Record):
    """One thing verifying found."""

    kind: str
    """One of altered, removed, inserted, reordered, restarted, sidecar, head; or, of what is no
    tampering: torn, unconfirmed, behind, start, end."""
    file: str
    line: int | None
    last_line: int | None
    """Last of several lines; the same as ``line`` for one."""
    message: str
    tampering: bool

    def text(self) -> str:
        """One line for people."""
        place = self.file
        if self.line is not None:
            place += f":{self.line}"
            if self.last_line != self.line:
                place += f"-{self.last_line}"
        return printable(f"{place}: {self.kind}: {self.message}")


class Sidecar(Record):
    """What stands beside the log."""

    path: str
    head: Head | None
    fault: str | None
    """Why there is no head: missing, damaged, unreadable."""


class Verdict(Record):
    """What verifying found, and the end of the chain to note down elsewhere."""

    files: list[str]
    records: int
    first_seq: int | None
    last_seq: int | None
    head: str | None
    """Hash of the last record of the chain; None when there is none."""
    findings: list[Finding]
    torn_at_end: bool
    """Whether the very last line was not written to its end."""

    def intact(self) -> bool:
        return not any(finding.tampering for finding in self.findings)

    def older_records(self) -> int:
        """How many records of the chain stand before the first one given."""
        return 0 if self.first_seq is None else self.first_seq - 1


class _Tally:
    """What is counted and looked for while lines go by."""

    def __init__(self) -> None:
        self.records = 0
        self.expected: Line | None = None


def runs_of(
    lines: Iterator[Line], split_after: Collection[str], expect: str | None, tally: _Tally
) -> list[Run]:
    """Cut ``lines`` into runs, also after every line whose hash is in ``split_after``."""
    runs: list[Run] = []
    current: list[Line] = []

    def close() -> None:
        if current:
            first, last = current[0], current[-1]
            runs.append(
                Run(
                    file=first.file,
                    first_line=first.number,
                    last_line=last.number,
                    first_seq=None if first.record is None else first.record["seq"],
                    last_seq=None if last.record is None else last.record["seq"],
                    prev=None if first.record is None else first.record["prev"],
                    hash=last.hash,
                    ended=last.ended,
                )
            )
            current.clear()

    for line in lines:
        if line.record is not None:
            tally.records += 1
        if line.hash == expect:
            tally.expected = line
        if current and not (
            current[-1].file == line.file
            and current[-1].hash not in split_after
            and current[-1].record is not None
            and line.record is not None
            and line.record["prev"] == current[-1].hash
            and line.record["seq"] == current[-1].record["seq"] + 1
        ):
            close()
        # The first and the last line are all a run keeps.
        current[1:] = [line]
    close()
    return runs


def verify(sources: Sequence[Source], sidecar: Sidecar, expect: str | None) -> Verdict:
    """Check ``sources``, given oldest first, as one chain that ends where ``sidecar`` says.

    ``expect``: a head hash noted earlier, which must be among the records.
    Raises ConfigurationError when a file cannot be read.
    """

    def cut(split_after: Collection[str]) -> tuple[list[Run], _Tally]:
        tally = _Tally()
        lines = (line for source in sources for line in lines_of(source))
        return runs_of(lines, split_after, expect, tally), tally

    ends = set() if sidecar.head is None else {sidecar.head.hash}
    runs, tally = cut(ends)
    sought = {run.prev for run in runs if run.prev is not None} - {run.hash for run in runs}
    if sought - {GENESIS, runs[0].prev if runs else None}:
        # Some run goes on from a line in the middle of another, or from none. Seen again with
        # every such line as an end, runs are what can be inserted, moved or left out whole.
        runs, tally = cut(ends | sought)

    walk = _Walk(runs, sidecar)
    walk.run()
    findings = walk.findings
    if expect is not None:
        findings.append(_expected_head(expect, tally.expected, walk.head, sources[-1].name))
    records = [runs[index] for index in walk.chain if runs[index].first_seq is not None]
    return Verdict(
        files=[source.name for source in sources],
        records=tally.records,
        first_seq=records[0].first_seq if records else None,
        last_seq=records[-1].last_seq if records else None,
        head=records[-1].hash if records else None,
        findings=findings,
        torn_at_end=bool(runs) and runs[-1].is_torn(),
    )


def _expected_head(expect: str, line: Line | None, head: Run | None, log: str) -> Finding:
    if line is None or line.record is None:
        return Finding(
            kind="head",
            file=log,
            line=None,
            last_line=None,
            message=f"no record has the expected hash {expect}: that record, or one before it, "
            "was altered or removed, or its file was not given",
            tampering=True,
        )
    seq = line.record["seq"]
    after = (
        "" if head is None or head.last_seq is None else f", {head.last_seq - seq} before the end"
    )
    return Finding(
        kind="head",
        file=line.file,
        line=line.number,
        last_line=line.number,
        message=f"the expected hash is that of record {seq}{after}",
        tampering=False,
    )


class _Walk:
    """From the end of the chain back to its start, over runs in the order of the files."""

    def __init__(self, runs: list[Run], sidecar: Sidecar) -> None:
        self.runs = runs
        self.sidecar = sidecar
        self.findings: list[Finding] = []
        self.chain: list[int] = []
        """Indices of the runs of the chain, first to last, once ``run`` is through."""
        self.head: Run | None = None
        self._ending: dict[str, list[int]] = {}
        for index, run in enumerate(runs):
            self._ending.setdefault(run.hash, []).append(index)
        self._seen: set[int] = set()
        self._altered: set[int] = set()

    def run(self) -> None:
        """Fill ``findings``, in the order of the files, ``chain`` and ``head``."""
        start = self._start()
        self._check_end(start)
        if start is not None:
            at: int | None = start
            while at is not None:
                self._seen.add(at)
                self.chain.append(at)
                at = self._before(at)
            self.chain.reverse()
            self._after(start)
            self.head = self.runs[self.chain[-1]]
        self._reordered()
        self._strangers()
        order = {run.file: index for index, run in enumerate(self.runs)}
        self.findings.sort(
            key=lambda finding: (order.get(finding.file, len(self.runs)), finding.line or 0)
        )

    def _find(self, kind: str, run: Run, message: str, *, at_end: bool = False) -> None:
        line = run.last_line if at_end else run.first_line
        self._add(kind, run.file, line, line, message)

    def _add(
        self, kind: str, file: str, line: int | None, last_line: int | None, message: str
    ) -> None:
        tampering = kind not in ("torn", "unconfirmed", "behind", "start", "end")
        self.findings.append(
            Finding(
                kind=kind,
                file=file,
                line=line,
                last_line=last_line,
                message=message,
                tampering=tampering,
            )
        )

    def _start(self) -> int | None:
        """The run that ends the chain: the one the sidecar knows, else the last nothing follows."""
        if self.sidecar.head is not None:
            known = self._ending.get(self.sidecar.head.hash)
            if known is not None:
                return known[-1]
        records = [i for i, run in enumerate(self.runs) if run.last_seq is not None]
        if self.sidecar.head is not None:
            known_seq = self.sidecar.head.seq
            # Whatever took the place of the record it knows may bear any number.
            within = [i for i in records if cast("int", self.runs[i].last_seq) <= known_seq]
            records = within or records
        followed = {self.runs[i].prev for i in records}
        loose = [i for i in records if self.runs[i].hash not in followed]
        return loose[-1] if loose else records[-1] if records else None

    def _earlier(self, index: int) -> int | None:
        """The nearest run before ``index`` that the walk has not passed."""
        return next((i for i in range(index - 1, -1, -1) if i not in self._seen), None)

    def _linked(self, index: int) -> int | None:
        """The run whose end ``index`` names as the line before it."""
        prev = self.runs[index].prev
        found = [i for i in self._ending.get(prev or "", ()) if i not in self._seen]
        return max(found, key=lambda i: (i < index, i)) if found else None

    def _before(self, index: int) -> int | None:
        """The run before ``index`` in the chain, with what there is to say of the step."""
        run = self.runs[index]
        linked = self._linked(index)
        if linked is not None:
            if self.runs[linked].first_seq is None:
                return self._before_torn(linked, run)
            self._check_numbers(self.runs[linked], run)
            return linked
        if run.prev == GENESIS and run.first_seq == 1:
            return self._before_first(index)
        return self._before_break(index)

    def _before_torn(self, torn: int, after: Run) -> int | None:
        """Step over torn lines: the writer after them is bound to the torn line itself."""
        lines: list[int] = []
        at: int | None = torn
        while at is not None and self.runs[at].first_seq is None:
            self._seen.add(at)
            lines.append(at)
            at = self._earlier(at)
        before = None if at is None else self.runs[at].last_seq
        missing = 0 if before is None else cast("int", after.first_seq) - before - 1
        if not self._lost_in_torn(lines, missing, after) and at is not None:
            self._check_numbers(self.runs[at], after)
        return at

    def _lost_in_torn(self, lines: Sequence[int], missing: int, after: Run) -> bool:
        """Tell of torn ``lines``; whether they are all of the ``missing`` records before ``after``.

        A power cut can tear a record that the sidecar knows already: so each line may be one.
        """
        explained = 0 < missing <= len(lines)
        first = cast("int", after.first_seq) - missing
        for position, index in enumerate(sorted(lines)):
            is_known = explained and position < missing
            self._torn(index, first + position if is_known else None)
        return explained

    def _torn(self, index: int, seq: int | None = None) -> None:
        run = self.runs[index]
        which = "" if seq is None else f"record {seq}, "
        end = "" if index + 1 < len(self.runs) and run.ended else "the last line, "
        self._find("torn", run, f"{which}{end}not written to its end (power cut or full disk)")

    def _check_numbers(self, before: Run, after: Run) -> None:
        if before.last_seq is None or after.first_seq is None:
            return
        if after.first_seq > before.last_seq + 1:
            lost = _numbers(before.last_seq + 1, after.first_seq - 1)
            self._find("removed", after, f"{lost} had gone from the log's end when it was written")
        elif after.first_seq <= before.last_seq:
            self._find(
                "altered", after, f"number {after.first_seq} follows number {before.last_seq}"
            )

    def _before_first(self, index: int) -> int | None:
        """Before record 1: nothing, unless the chain was started anew."""
        run = self.runs[index]
        earlier = self._earlier(index)
        if earlier is None or run.first_line != 1:
            return None
        self._find(
            "restarted",
            run,
            "the chain starts anew here: both the log and its sidecar were gone",
        )
        return earlier

    def _before_break(self, index: int) -> int | None:
        """No line has the hash that ``index`` names: see what stands before it instead."""
        run = self.runs[index]
        expected = cast("int", run.first_seq) - 1
        suspects: list[int] = []
        torn: list[int] = []
        at = self._earlier(index)
        while at is not None:
            if self.runs[at].is_torn():
                self._seen.add(at)
                torn.append(at)
            elif self._out_of_place(at, expected):
                suspects.append(at)
            else:
                break
            at = self._earlier(at)
        if at is None:
            self._lost_in_torn(torn, 0, run)
            if not suspects:
                self._begin(run)
            self._replaced(suspects, min(len(suspects), expected), run)
            return None
        missing = expected - cast("int", self.runs[at].last_seq)
        if self._lost_in_torn(torn, 0 if suspects else missing, run):
            return at
        if missing == 0 and index not in self._altered:
            self._alter(at, self._mismatch(index))
        elif missing == 0:
            self._find(
                "unconfirmed",
                self.runs[at],
                "the record that held its hash was altered, so nothing vouches for it",
                at_end=True,
            )
        self._replaced(suspects, missing, run)
        return at

    def _mismatch(self, after: int) -> str:
        run = self.runs[after]
        text = f"its hash is not the one record {run.first_seq} holds of it"
        if len(self.chain) == 1 and run.first_line == run.last_line and self.sidecar.head is None:
            # Nothing vouches for the last record itself.
            text += ", unless that one was altered"
        return text

    def _out_of_place(self, index: int, expected: int) -> bool:
        run = self.runs[index]
        if run.last_seq is None or run.first_seq is None or run.last_seq > expected:
            return True
        linked = self._linked(index)
        before = None if linked is None else self.runs[linked].last_seq
        return before is not None and before >= run.first_seq

    def _replaced(self, suspects: list[int], missing: int, after: Run) -> None:
        """Lines where ``missing`` records should be: so many were altered, the rest inserted."""
        first = cast("int", after.first_seq) - missing
        for index in reversed(suspects):
            if missing == 0:
                break
            self._seen.add(index)
            self._alter(index, f"this is not record {first} as it was written")
            first += 1
            missing -= 1
        if missing > 0:
            lost = _numbers(first, first + missing - 1)
            self._find("removed", after, f"{lost} should stand before this line")

    def _alter(self, index: int, message: str) -> None:
        """The last line of a run was altered; where it is the only one, its ``prev`` may be too."""
        run = self.runs[index]
        if run.first_line == run.last_line:
            self._altered.add(index)
        self._find("altered", run, message, at_end=True)

    def _begin(self, run: Run) -> None:
        if run.first_seq == 1 or run.prev == GENESIS:
            self._find("altered", run, "no first record of a chain looks like this")
        else:
            self._find("start", run, f"begins at record {run.first_seq}; older files not given")

    def _after(self, start: int) -> None:
        """Records the sidecar does not know yet: its writer was stopped before telling it."""
        by_prev = {run.prev: i for i, run in enumerate(self.runs) if i not in self._seen}
        end = self.runs[start]
        known = cast("int", end.last_seq)
        while (at := by_prev.get(end.hash)) is not None and at not in self._seen:
            if self.runs[at].first_seq != cast("int", end.last_seq) + 1:
                break
            self._seen.add(at)
            self.chain.append(at)
            end = self.runs[at]
        behind = cast("int", end.last_seq) - known
        if behind > 0:
            self._find(
                "behind",
                end,
                f"the sidecar is {behind} behind the log: a writer was stopped half way, "
                "or something else than borg-pull appended",
                at_end=True,
            )

    def _check_end(self, start: int | None) -> None:
        """Compare the end of the chain with the sidecar."""
        known = self.sidecar.head
        if known is None:
            self._add(
                "end",
                self.sidecar.path,
                None,
                None,
                f"{self.sidecar.fault}: lines cut off the end would go unnoticed; "
                "compare the head with one noted elsewhere (--expect-head)",
            )
        elif start is None:
            self._add(
                "end",
                self.sidecar.path,
                None,
                None,
                f"no record in the files given; the chain stands at record {known.seq}",
            )
        else:
            self._compare(start, known)

    def _compare(self, start: int, known: Head) -> None:
        end = self.runs[start]
        seq = cast("int", end.last_seq)
        if end.hash == known.hash:
            if seq != known.seq:
                self._add(
                    "sidecar",
                    self.sidecar.path,
                    None,
                    None,
                    f"calls the last record {known.seq}, which is {seq} in the log",
                )
        elif seq < known.seq:
            self._replaced_end(start, seq + 1, known.seq)
        elif seq == known.seq:
            self._alter(start, "its hash is not the one the sidecar holds")
        else:
            self._add(
                "sidecar",
                self.sidecar.path,
                None,
                None,
                f"its hash of record {known.seq} is that of no record in the log",
            )

    def _replaced_end(self, start: int, first: int, last: int) -> None:
        """Records the sidecar knows are not there: altered where lines stand, else removed.

        Only one that is the torn last line itself is neither.
        """
        if first == last and start + 2 == len(self.runs) and self.runs[-1].is_torn():
            self._seen.add(start + 1)
            self._torn(start + 1, first)
            return
        for index in range(start + 1, len(self.runs)):
            run = self.runs[index]
            if first <= last and run.ended and run.first_line == run.last_line:
                self._seen.add(index)
                self._alter(index, f"this is not record {first} as it was written")
                first += 1
        if first <= last:
            lost = _numbers(first, last)
            self._find(
                "removed",
                self.runs[start],
                f"{lost} should follow; the sidecar knows of that",
                at_end=True,
            )

    def _reordered(self) -> None:
        """Runs of the chain that do not stand where the chain has them."""
        lengths = [1 + self.runs[i].last_line - self.runs[i].first_line for i in self.chain]
        rising = _heaviest_rising(self.chain, lengths)
        for index in self.chain:
            if index not in rising:
                run = self.runs[index]
                numbers = _numbers(cast("int", run.first_seq), cast("int", run.last_seq))
                self._add(
                    "reordered",
                    run.file,
                    run.first_line,
                    run.last_line,
                    f"{numbers} stands out of its place",
                )

    def _strangers(self) -> None:
        """Runs that are no part of the chain."""
        for index, run in enumerate(self.runs):
            if index in self._seen:
                continue
            last_of_file = index + 1 == len(self.runs) or self.runs[index + 1].file != run.file
            if not run.ended and last_of_file and run.first_line == run.last_line:
                self._torn(index)
                continue
            copied = [i for i in self._ending[run.hash] if i in self._seen]
            message = (
                f"a copy of {self.runs[copied[0]].last_place()}"
                if copied
                else "no part of the chain"
            )
            self._add("inserted", run.file, run.first_line, run.last_line, message)


def _numbers(first: int, last: int) -> str:
    return f"record {first}" if first == last else f"records {first} to {last}"


def _heaviest_rising(values: Sequence[int], weights: Sequence[int]) -> set[int]:
    """The members of a rising subsequence of distinct ``values`` with the greatest weight."""
    # By last value, the best subsequences so far: a greater value is kept for its greater weight.
    ends: list[int] = []
    totals: list[int] = []
    before: dict[int, int | None] = {}
    for value, weight in zip(values, weights, strict=True):
        at = bisect_left(ends, value)
        before[value] = ends[at - 1] if at else None
        total = weight + (totals[at - 1] if at else 0)
        worse = at
        while worse < len(ends) and totals[worse] <= total:
            worse += 1
        ends[at:worse] = [value]
        totals[at:worse] = [total]
    members = set()
    last = ends[-1] if ends else None
    while last is not None:
        members.add(last)
        last = before[last]
    return members


# Opening a set that is being written to


@contextlib.contextmanager
def opened(paths: Sequence[str], *, rotated: bool) -> Iterator[tuple[list[Source], Sidecar]]:
    """The log files as they stand at one moment, and the sidecar of the last of ``paths``.

    ``rotated``: also what rotation made of the one path given. Writers are held off just long
    enough to see how far the log goes. Raises ConfigurationError.
    """
    log = paths[-1]
    with contextlib.ExitStack() as stack:
        descriptor, sidecar = _open_sidecar(log, stack)
        while True:
            names = rotated_set(log) if rotated else list(paths)
            with contextlib.ExitStack() as files:
                streams = [open_log(name, files) for name in names]
                # A rotation does not ask for the lock.
                if not rotated or (
                    names == rotated_set(log) and all(map(_still_there, streams, names))
                ):
                    stack.push(files.pop_all())
                    break
        sources = [
            Source(
                name=name,
                stream=stream,
                size=None if name.endswith(".gz") else os.fstat(stream.fileno()).st_size,
            )
            for name, stream in zip(names, streams, strict=True)
        ]
        if descriptor is not None:
            sidecar = _read_sidecar(descriptor, sidecar.path)
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        yield sources, sidecar


def _still_there(stream: IO[bytes], name: str) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.stat(name))
    except FileNotFoundError:
        return False


def _open_sidecar(log: str, stack: contextlib.ExitStack) -> tuple[int | None, Sidecar]:
    path = sidecar_of(log)
    try:
        descriptor = os.open(
            path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        )
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        fault = "there is no sidecar" if missing else f"cannot be read ({error.strerror})"
        return None, Sidecar(path=path, head=None, fault=fault)
    stack.callback(os.close, descriptor)
    deadline = time.monotonic() + LOCK_SECONDS
    while time.monotonic() < deadline:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            time.sleep(0.001)
    return descriptor, Sidecar(path=path, head=None, fault=None)


def _read_sidecar(descriptor: int, path: str) -> Sidecar:
    try:
        head = parse_sidecar(os.pread(descriptor, SIDECAR_BYTES + 1, 0))
    except OSError as error:
        return Sidecar(path=path, head=None, fault=f"cannot be read ({error.strerror})")
    return Sidecar(path=path, head=head, fault="damaged" if head is None else None)


def verify_files(paths: Sequence[str], *, rotated: bool, expect: str | None) -> Verdict:
    """Verify the logs at ``paths``, oldest first. Raises ConfigurationError."""
    with opened(paths, rotated=rotated) as (sources, sidecar):
        return verify(sources, sidecar, expect)


# Showing


class Filter(Record):
    """Which records to show; empty means all."""

    clients: frozenset[str]
    events: frozenset[str]
    since: str
    """Earliest ``time``, in the log's own form, which sorts as text."""

    def wants(self, record: Mapping[str, Any] | None) -> bool:
        """Whether to show ``record``; None stands for a line that is none."""
        if record is None:
            return not self.clients and not self.events
        return (
            (not self.clients or record.get("client") in self.clients)
            and (not self.events or record.get("event") in self.events)
            and str(record.get("time")) >= self.since
        )


_DURATION = re.compile(r"([0-9]{1,9})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def since_of(text: str, now: float) -> str:
    """The moment ``text`` means, as the log writes it: RFC 3339, or so long before ``now``.

    Raises RequestError.
    """
    match = _DURATION.fullmatch(text)
    if match is not None:
        return timestamp(max(0.0, now - int(match[1]) * _SECONDS[match[2]]))
    try:
        moment = datetime.datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.UTC)
        return timestamp(moment.timestamp())
    except (ValueError, OverflowError):
        raise RequestError(
            f"--since {text}: neither a time nor a duration",
            "write 2026-11-21T00:00:00Z or 30m, 2h, 7d, 4w",
        ) from None


_LARGEST = 1 << 80


def size_text(size: int) -> str:
    """``size`` in bytes, for people, in IEC units."""
    # Whoever writes as the account can put down a number of any length.
    value = float(max(0, min(size, _LARGEST)))
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} PiB"


def duration_text(seconds: float) -> str:
    """``seconds``, for people."""
    if not 0 <= seconds < _LARGEST:
        return "an impossible time"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _detail(record: Mapping[str, Any]) -> str:
    """What happened, in one line."""
    event = record.get("event")
    if event == "refused":
        more = " [cut]" if record.get("request_truncated") else ""
        return (
            f"exit {_plain(record.get('exit'))}: {_plain(record.get('reason'))}: "
            f"{_plain(record.get('request'))}{more}"
        )
    if event == "start":
        target = _plain(record.get("repository") or "")
        if record.get("archive"):
            target += f"::{_plain(record['archive'])}"
        paths = record.get("paths") or []
        words = [_plain(record.get("verb")), target]
        words += map(_plain, paths if isinstance(paths, list) else [paths])
        return " ".join(word for word in words if word)
    if event == "complete":
        return ", ".join(
            (f"{_plain(record.get('verb'))} {_plain(record.get('result'))}", *_outcome(record))
        )
    if event == "answered":
        return ", ".join((_plain(record.get("verb")), *_outcome(record)))
    if event in ("lockdown_on", "lockdown_off"):
        reason = "" if record.get("reason") is None else f": {_plain(record['reason'])}"
        return f"by {_plain(record.get('by'))}{reason}"
    if event in ("action_start", "action_complete"):
        values = (record.get(key) for key in ("action", "kind", "target", "result"))
        told = " ".join(_plain(value) for value in values if value)
        return ", ".join((told, *_outcome(record)))
    return " ".join(
        f"{key}={_plain(value)}" for key, value in record.items() if key not in RESERVED
    )


def _outcome(record: Mapping[str, Any]) -> Iterator[str]:
    for key, words in (("borg_code", "borg"), ("signal", "signal"), ("exit", "exit")):
        if record.get(key) is not None:
            yield f"{words} {_plain(record[key])}"
    if isinstance(duration := record.get("duration"), int | float):
        yield duration_text(duration)
    for key, words in (("bytes_to_peer", "sent"), ("bytes_from_peer", "received")):
        if type(size := record.get(key)) is int:
            yield f"{words} {size_text(size)}"
    if record.get("error"):
        yield _plain(record["error"])


def row_of(line: Line) -> tuple[str, ...]:
    """The cells of one line of the table: every one safe for a terminal."""
    record = line.record
    if record is None:
        return ("", "", "no record", "", "", f"line {line.number}: " + _excerpt(line.content))
    moment = _plain(record.get("time"))
    address = record.get("address")
    return tuple(
        printable(cell)
        for cell in (
            moment[:19].replace("T", " ") if moment.endswith("Z") else moment,
            _plain(record.get("client") or "-"),
            _plain(record.get("event")),
            _plain(record.get("session"))[:8],
            "-" if address is None else _plain(address),
            _detail(record),
        )
    )


def _excerpt(content: bytes) -> str:
    return printable(content[:80].decode("utf-8", "surrogateescape"))


_HEADINGS = ("time (UTC)", "client", "event", "session", "from", "what")
_WIDTHS = (19, 12, 12, 8, 15, 0)


def _style(row: Sequence[str]) -> str:
    """Colour of a row: what went wrong stands out."""
    if row[2] in ("refused", "no record"):
        return "red"
    if row[2] == "lockdown_on":
        return "yellow"
    if row[2] == "complete" and " success" not in row[5].partition(",")[0]:
        return "yellow"
    return ""


def row_printer() -> Callable[[Line], None]:
    """A function that prints one line of the table at once, for a log being followed."""

    def put(row: Sequence[str], style: str) -> None:
        cells = (cell.ljust(width) for cell, width in zip(row, _WIDTHS, strict=True))
        print_line("  ".join(cells), style)

    put(_HEADINGS, "bold")
    return lambda line: put(row := row_of(line), _style(row))


def print_json(line: Line) -> None:
    """The record as it stands in the log; a line that is none is told of on standard error."""
    if line.record is None:
        place = printable(f"{line.file}:{line.number}")
        click.echo(f"borg-pull-admin: {place}: not a record; see audit verify", err=True)
    elif line.content.isascii() and line.content.decode("ascii").isprintable():
        click.echo(line.content)
    else:
        # Not as borg-pull writes it: nothing of it may reach a terminal raw.
        click.echo(json.dumps(line.record, separators=(",", ":")))
    sys.stdout.flush()


def follow(path: str) -> Iterator[Line]:
    """Every line of the log at ``path``, then each as it comes, over rotations; never ends.

    Raises RequestError for a compressed log, ConfigurationError when it cannot be opened.
    """
    if path.endswith(".gz"):
        raise RequestError("--follow: nothing is ever added to a compressed log")
    return _follow(path, _open_file(path))


def _follow(path: str, stream: IO[bytes]) -> Iterator[Line]:
    number = 0
    pending = b""
    while True:
        successor = _successor(stream, path)
        if successor is not None:
            # A writer that had opened the old file before it was moved may still write to it.
            time.sleep(FOLLOW_SECONDS)
        elif os.fstat(stream.fileno()).st_size < stream.tell():
            stream.seek(0)
            number, pending = 0, b""
        while piece := stream.readline(MAX_LINE_BYTES):
            pending += piece
            if pending.endswith(b"\n") or len(pending) >= MAX_LINE_BYTES:
                number += 1
                yield _followed(path, number, pending)
                pending = b""
        if successor is None:
            time.sleep(FOLLOW_SECONDS)
            continue
        if pending:
            yield _followed(path, number + 1, pending)
        stream.close()
        stream, number, pending = successor, 0, b""


def _successor(stream: IO[bytes], path: str) -> IO[bytes] | None:
    """The file that has taken the place of ``stream``, once there is one."""
    if _still_there(stream, path) or not os.path.lexists(path):
        return None
    return _open_file(path)


def _followed(path: str, number: int, content: bytes) -> Line:
    text = content.removesuffix(b"\n")
    return Line(
        file=path,
        number=number,
        content=text,
        hash=hashlib.sha256(text).hexdigest(),
        ended=content.endswith(b"\n"),
        record=record_of(text),
    )


# Commands


@click.group()
def audit() -> None:
    """Read the audit log, and verify that nobody altered it."""


_CONFIG_OPTION = click.option(
    "--config",
    metavar="CONFIG",
    type=click.Path(readable=False),
    help="The log of this whitelist, not FILE.",
)


@audit.command()
@click.argument("file", type=click.Path(), required=False)
@_CONFIG_OPTION
@click.option("--client", "clients", multiple=True, help="Only this client (repeatable).")
@click.option("--event", "events", multiple=True, help="Only this event (repeatable).")
@click.option("--since", help="Only from this time on: RFC 3339, or 30m, 2h, 7d, 4w ago.")
@click.option("--json", "as_json", is_flag=True, help="The raw records, one a line.")
@click.option("--follow", "following", is_flag=True, help="Wait for more; survives rotation.")
def show(
    file: str | None,
    config: str | None,
    clients: tuple[str, ...],
    events: tuple[str, ...],
    since: str | None,
    as_json: bool,
    following: bool,
) -> None:
    """Show the records of the audit log FILE (plain or .gz)."""
    wanted = Filter(
        clients=frozenset(clients),
        events=frozenset(events),
        since="" if since is None else since_of(since, time.time()),
    )
    (file,) = _named((() if file is None else (file,)), config)
    with _quiet_end(), contextlib.ExitStack() as stack:
        if following:
            lines = follow(file)
        else:
            lines = _records_and_strays(Source(name=file, stream=open_log(file, stack), size=None))
        chosen = (line for line in lines if wanted.wants(line.record))
        if not as_json and not following:
            rows = (row_of(line) for line in chosen)
            print_table(_HEADINGS, ((row, _style(row)) for row in rows))
            return
        put = print_json if as_json else row_printer()
        for line in chosen:
            put(line)


def _records_and_strays(source: Source) -> Iterator[Line]:
    """Every line of ``source``. Raises ConfigurationError when there are some but no record."""
    line = None
    for line in lines_of(source):
        if line.record is not None:
            break
    else:
        if line is not None:
            raise ConfigurationError(f"{source.name} is not an audit log")
    return lines_of(source)


def _named(files: tuple[str, ...], config: str | None) -> tuple[str, ...]:
    """The log files to read. Raises RequestError unless exactly one way names them."""
    if bool(files) == (config is not None):
        raise RequestError("the log is not named, or twice", "give FILE, or --config CONFIG")
    return files if config is None else (audit_file(config),)


@contextlib.contextmanager
def _quiet_end() -> Iterator[None]:
    """Ctrl-C and a reader that has seen enough are ordinary ends of reading."""
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        return
    except BrokenPipeError:
        # What is still buffered must not fail once more when the interpreter flushes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@audit.command("verify")
@click.argument("files", nargs=-1, type=click.Path())
@_CONFIG_OPTION
@click.option("--rotated", is_flag=True, help="Also the rotated FILE.N and FILE.N.gz.")
@click.option("--expect-head", metavar="HASH", help="A head noted earlier must be in the chain.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def verify_command(
    context: click.Context,
    files: tuple[str, ...],
    config: str | None,
    rotated: bool,
    expect_head: str | None,
    as_json: bool,
) -> None:
    """Check the audit log FILES, given oldest first, as one chain.

    Exit code 0: intact, or torn at its end by a power cut or a full disk; 1: records were altered,
    removed, inserted or reordered; 78: unreadable.
    """
    files = _named(files, config)
    if rotated and len(files) != 1:
        raise RequestError("--rotated finds the other files itself", "name the current file alone")
    if expect_head is not None and re.fullmatch("[0-9a-f]{64}", expect_head) is None:
        raise RequestError(
            f"--expect-head {expect_head}: not a hash", "it is 64 hexadecimal digits, lower case"
        )
    verdict = verify_files(files, rotated=rotated, expect=expect_head)
    with _quiet_end():
        if as_json:
            click.echo(json.dumps(verdict_object(verdict)))
        else:
            for text in verdict_lines(verdict):
                click.echo(text)
    context.exit(0 if verdict.intact() else EXIT_TAMPERED)


def verdict_object(verdict: Verdict) -> dict[str, Any]:
    """The verdict for ``--json``."""
    return {
        "intact": verdict.intact(),
        "torn_at_end": verdict.torn_at_end,
        "files": verdict.files,
        "records": verdict.records,
        "first_seq": verdict.first_seq,
        "last_seq": verdict.last_seq,
        "head": verdict.head,
        "findings": [
            {name: getattr(finding, name) for name in Finding.__slots__}
            for finding in verdict.findings
        ],
    }


def verdict_lines(verdict: Verdict) -> Iterator[str]:
    """The verdict for people: what was found, then the sum of it."""
    for finding in verdict.findings:
        yield finding.text()
    span = "" if verdict.first_seq is None else f" ({verdict.first_seq} to {verdict.last_seq})"
    yield f"{_state(verdict)}: {verdict.records} records{span}, files: {len(verdict.files)}"
    if verdict.head is not None:
        yield f"head: {verdict.head}"


def _state(verdict: Verdict) -> str:
    if not verdict.intact():
        return "TAMPERED WITH"
    state = "torn at its end, intact" if verdict.torn_at_end else "intact"
    older = verdict.older_records()
    if older == 0:
        return f"{state} before that" if verdict.torn_at_end else state
    were = "1 older record was" if older == 1 else f"{older} older records were"
    return f"{state} from record {verdict.first_seq} on; {were} not given"
