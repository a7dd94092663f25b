"""One run of borg: fork, confine, wait, pass signals on, and say how it ended."""

from __future__ import annotations

import os
import select
import time

from borg_pull.errors import BORG_ERROR, SystemRefusedError
from borg_pull.linux import capabilities, process
from borg_pull.linux.signals import (
    ENDING,
    SIG_DFL,
    SIGINT,
    SIGKILL,
    SIGPIPE,
    SIGTERM,
    SIGXFSZ,
    signal,
)
from borg_pull.record import Record
from borg_pull.source import confine
from borg_pull.source.borg import exit_of
from borg_pull.source.relay import Relay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from borg_pull.linux.landlock import Ruleset
    from borg_pull.source.borg import BorgCommand
    from borg_pull.source.confine import Confinement

LEAVE = 2.0  # seconds borg is left to notice by itself that its peer is gone
GRACE = 15.0  # seconds between asking borg to end and killing it
_DRAIN = 5.0  # seconds to hand the last output to a slow peer
STDERR_KEPT = 16 * 1024  # bytes, the last ones
STDOUT_KEPT = 1024 * 1024  # bytes; of more, none


class Ending(Record):
    """How a run ended."""

    borg_code: int | None
    """borg's exit status, None if a signal ended it."""
    signal: int | None
    """The signal that ended borg."""
    cause: str | None
    """Why we ended it, None if it ended by itself."""
    duration: float
    """Seconds."""
    stdout: bytes | None
    """What borg wrote there, if that was asked for and not too long."""
    stderr_tail: bytes

    def is_by_signal(self) -> bool:
        """Whether it was a signal to us that ended the run."""
        return self.cause is not None and self.cause.startswith("signal")

    def exit(self) -> int:
        """0, 1 or 2."""
        if self.borg_code is None or self.cause is not None:
            return BORG_ERROR
        return exit_of(self.borg_code)


class Run:
    """A borg process that has been started."""

    def __init__(self, pid: int, relays: list[Relay], watch: int, started: float) -> None:
        self._pid = pid
        self._relays = relays
        self._watch = watch
        self._started = started
        self._has_ended = False
        self._cause: str | None = None
        self._ask_at: float | None = None
        self._kill_at: float | None = None
        self._give_up_at: float | None = None

    def wait(self) -> Ending:
        """Wait for borg to end, passing on signals; a closed connection ends it too."""
        process_descriptor = os.pidfd_open(self._pid)
        status: int | None = None
        while status is None or not all(relay.is_done() for relay in self._relays):
            ready = self._poll(process_descriptor if status is None else None)
            self._pass_signals_on(ready)
            self._pass_output_on(ready)
            if ready.get(process_descriptor):
                _, status = os.waitpid(self._pid, 0)
                self._has_ended = True
                process.end_descendants()
                self._give_up_at = time.monotonic() + _DRAIN
            self._keep_deadlines()
        os.close(process_descriptor)
        return self._ending(status)

    def abandon(self) -> bool:
        """Kill borg and all it started, since who was to wait for it cannot; False if it has
        ended by itself."""
        if self._has_ended:
            return False
        self._send(SIGKILL)
        try:
            process.end_descendants()
        except (OSError, SystemRefusedError):
            # What is left of it dies with this process.
            return True
        return True

    def _poll(self, process_descriptor: int | None) -> dict[int, int]:
        poll = select.poll()
        poll.register(self._watch, select.POLLIN)
        if process_descriptor is not None:
            poll.register(process_descriptor, select.POLLIN)
        # Standard output and error are watched even when nothing is to be written: an error or
        # hang-up there is how a closed connection shows.
        targets = {1: 0, 2: 0} if self._cause is None else {}
        for relay in self._relays:
            if relay.is_open:
                poll.register(relay.reader, relay.reader_events())
            if relay.target_events():
                targets[relay.target] = relay.target_events()
        for target, events in targets.items():
            poll.register(target, events)
        deadlines = [at for at in (self._ask_at, self._kill_at, self._give_up_at) if at is not None]
        timeout = max(0.0, min(deadlines) - time.monotonic()) * 1000 + 1 if deadlines else None
        return dict(poll.poll(timeout))

    def _pass_signals_on(self, ready: dict[int, int]) -> None:
        if not ready.get(self._watch):
            return
        for number in os.read(self._watch, 64):
            if number in ENDING:
                # At SIGINT borg writes a checkpoint first.
                self._end(f"signal {number}", SIGINT if number == SIGINT else SIGTERM)

    def _pass_output_on(self, ready: dict[int, int]) -> None:
        for relay in self._relays:
            if relay.is_open and ready.get(relay.reader):
                relay.receive()
        gone = select.POLLERR | select.POLLHUP | select.POLLNVAL
        lost = any(ready.get(target, 0) & gone for target in (1, 2))
        for relay in self._relays:
            if not lost and ready.get(relay.target, 0) & select.POLLOUT:
                try:
                    relay.send()
                except OSError:
                    lost = True
        if lost:
            for relay in self._relays:
                relay.discard()
            # Its own end lets borg free its locks; SIGTERM amid that would interrupt it.
            self._end("the connection closed", SIGTERM, LEAVE)

    def _end(self, cause: str, signal_number: int, leave: float = 0.0) -> None:
        if self._cause is None:
            self._cause = cause
            self._kill_at = time.monotonic() + leave + GRACE
            if leave:
                self._ask_at = time.monotonic() + leave
        if not leave:
            self._send(signal_number)

    def _keep_deadlines(self) -> None:
        now = time.monotonic()
        if self._ask_at is not None and now >= self._ask_at:
            self._ask_at = None
            self._send(SIGTERM)
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at = None
            self._send(SIGKILL)
        if self._give_up_at is not None and now >= self._give_up_at:
            for relay in self._relays:
                relay.is_open = False
                relay.discard()

    def _send(self, signal_number: int) -> None:
        try:
            # The group: borg, and what it started that did not leave it.
            os.killpg(self._pid, signal_number)
        except ProcessLookupError:
            return

    def _ending(self, status: int) -> Ending:
        code = os.waitstatus_to_exitcode(status)
        *stdout, stderr = self._relays
        return Ending(
            borg_code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            cause=self._cause,
            duration=round(time.monotonic() - self._started, 3),
            stdout=stdout[0].whole() if stdout else None,
            stderr_tail=stderr.tail(),
        )


def start(
    command: BorgCommand,
    confinement: Confinement,
    rules: Ruleset | None,
    *,
    passphrase: bytes | None,
    keep_stdout: bool,
    watch: int,
    directory: int | None = None,
) -> Run:
    """Fork and become borg in the child; the parent gives its own capability up.

    ``keep_stdout`` has standard output pass through us; ``watch`` is where signals are noted;
    ``directory`` a descriptor of where borg is started, else that is where we are.
    Raises SystemRefusedError when the system refuses any step, the exec included: then nothing ran.
    """
    started = time.monotonic()
    environment = dict(command.environment)
    try:
        pipes = [(os.pipe2(os.O_CLOEXEC), target) for target in ([1, 2] if keep_stdout else [2])]
        fault_reader, fault_writer = os.pipe2(os.O_CLOEXEC)
        secret = None if passphrase is None else _pipe_with(passphrase)
        if secret is not None:
            environment["BORG_PASSPHRASE_FD"] = str(secret)
        process.become_subreaper()
        parent = os.getpid()
        pid = os.fork()
    except OSError as error:
        raise SystemRefusedError.because("cannot start borg", error) from error
    if pid == 0:
        streams = {target: writer for (_, writer), target in pipes}
        _become(
            command.argv,
            environment,
            confinement,
            rules,
            parent,
            streams,
            secret,
            fault_writer,
            directory,
        )
    capabilities.drop_all()
    for (_, writer), _target in pipes:
        os.close(writer)
    if secret is not None:
        os.close(secret)
    os.close(fault_writer)
    fault = os.read(fault_reader, 1024)
    os.close(fault_reader)
    if fault:
        os.waitpid(pid, 0)
        raise SystemRefusedError(f"borg was not started: {fault.decode('utf-8', 'replace')}")
    kept = {1: STDOUT_KEPT, 2: STDERR_KEPT}
    relays = [Relay(reader, target, kept[target]) for (reader, _), target in pipes]
    return Run(pid, relays, watch, started)


def _become(
    argv: tuple[str, ...],
    environment: dict[str, str],
    confinement: Confinement,
    rules: Ruleset | None,
    parent: int,
    streams: dict[int, int],
    secret: int | None,
    fault_writer: int,
    directory: int | None,
) -> None:
    """Replace the forked process by borg; tells a fault through the pipe and never returns."""
    try:
        os.setsid()
        if directory is not None:
            os.fchdir(directory)
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(null, 0)
        for target, writer in streams.items():
            os.dup2(writer, target)
        if secret is not None:
            os.set_inheritable(secret, True)
        kept = (fault_writer, secret, None if rules is None else rules.descriptor)
        process.close_descriptors([number for number in kept if number is not None])
        for number in (*ENDING, SIGPIPE, SIGXFSZ):
            signal(number, SIG_DFL)
        confine.enter(confinement, rules, parent, unpacks=directory is not None)
        os.execve(argv[0], [os.fsencode(word) for word in argv], environment)
    except SystemRefusedError as error:
        os.write(fault_writer, error.line().encode())
    except OSError as error:
        os.write(fault_writer, f"{argv[0]}: {error.strerror}".encode())
    finally:
        os._exit(127)


def _pipe_with(content: bytes) -> int:
    """The reading end of a pipe that holds ``content``, which fits its buffer."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    os.write(writer, content + b"\n")
    os.close(writer)
    return reader
