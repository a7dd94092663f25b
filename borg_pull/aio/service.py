"""The companion's service: one request a connection, each in a process of its own.

A request holds names alone. They are looked up in the whitelist as it stands now, so that a forced
command can have the companion do nothing that the whitelist does not grant its client.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import selectors
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from borg_pull import lockdown, locking_down
from borg_pull.accounts import acting_as, forced_command_account
from borg_pull.aio import condition, identity
from borg_pull.aio.cancelling import cancel
from borg_pull.aio.following import Place
from borg_pull.aio.journal import Journal, prepare
from borg_pull.aio.policy import load_for
from borg_pull.aio.runs import (
    BusyWithError,
    Runs,
    Wanted,
    plan_of_action,
    plan_of_target,
    set_target,
)
from borg_pull.audit import AuditLog, Common, encode
from borg_pull.companion import MAX_ANSWER_LINE, MAX_REQUEST, end_line, parse_request
from borg_pull.errors import (
    BORG_ERROR,
    BORG_SUCCESS,
    BORG_WARNING,
    BorgPullError,
    BusyError,
    InternalError,
    NotAllowedError,
    RequestError,
    SystemRefusedError,
)
from borg_pull.lockdown import MAX_NAME
from borg_pull.roles import is_admin
from borg_pull.trust import Trust, check_directories

if TYPE_CHECKING:
    from borg_pull.aio_policy import AioPolicy
    from borg_pull.audit import JSONValue
    from borg_pull.companion import Ask

MAX_CONNECTIONS = 64
REQUEST_SECONDS = 10.0
LOST_SECONDS = 0.2
SETTLE_SECONDS = 5
ANSWER_SECONDS = 60  # that a peer may leave an answer unread
_FIRST_PASSED = 3  # systemd's SD_LISTEN_FDS_START
_BACKLOG = 64


class Service:
    """Listens for the account of the forced command alone."""

    def __init__(self, config: str, say: Callable[[str], None]) -> None:
        self._config = config
        self._say = say
        self._policy = load_for(config, None)
        self._account = forced_command_account(self._policy.runtime, None)
        self._children: set[int] = set()
        self._settler: int | None = None
        self._is_ending = False
        self._refusals = _Sparing(say, "refused")
        self._losses = _Sparing(say, "connections lost")

    def run(self) -> None:
        """Serve until told to end. What runs then goes on. Raises BorgPullError."""
        prepare(self._policy.aio.state_dir)
        listener, is_ours = self._listener()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writer)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        selector = selectors.DefaultSelector()
        selector.register(listener, selectors.EVENT_READ)
        selector.register(reader, selectors.EVENT_READ)
        self._say(f"serving {self._account.name} on {self._policy.aio.socket}")
        settled = 0.0
        while not self._is_ending:
            if time.monotonic() - settled >= SETTLE_SECONDS:
                settled = time.monotonic()
                self._settle(listener)
            for key, _events in selector.select(SETTLE_SECONDS):
                if key.fileobj is listener:
                    self._accept(listener)
                else:
                    with contextlib.suppress(BlockingIOError):
                        os.read(reader, 4096)
            self._reap()
        listener.close()
        if is_ours:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._policy.aio.socket)

    def _end(self, *_signal: object) -> None:
        self._is_ending = True

    def _listener(self) -> tuple[socket.socket, bool]:
        """systemd's socket, or one of our own; whether it is ours to remove."""
        if os.environ.get("LISTEN_PID") == str(os.getpid()):
            if os.environ.get("LISTEN_FDS") != "1":
                raise SystemRefusedError("systemd passes other than one socket", "see its unit")
            return socket.socket(fileno=_FIRST_PASSED), False
        path = self._policy.aio.socket
        try:
            os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
            # Who could change one could put a link in the socket's place.
            check_directories(path, Trust(enforced=True, uid=os.geteuid()), own=True)
            with _alone(os.path.dirname(path)):
                listener = _bound(path)
                os.lchown(path, 0, self._account.gid)
                listener.listen(_BACKLOG)
        except OSError as error:
            raise SystemRefusedError.because(f"cannot listen on {path}", error) from error
        return listener, True

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError as error:
            # Without descriptors it would wait there still, and this be said without end.
            self._losses.say(f"a connection is lost: {error.strerror}")
            time.sleep(LOST_SECONDS)
            return
        with connection:
            # Before it costs a process or a place: who may not ask can connect without end.
            try:
                identity.check(connection, self._account.uid)
                if len(self._children) >= MAX_CONNECTIONS:
                    raise BusyError("the companion is busy", "try again later")
                self._fork(lambda: self._serve(connection), listener)
            except NotAllowedError as error:
                self._refusals.say(f"refused: {error.line()}")
                _end_at_once(connection, error)
            except BorgPullError as error:
                _end_at_once(connection, error)
            except OSError as error:
                self._losses.say(f"a connection is lost: {error.strerror}")

    def _settle(self, listener: socket.socket) -> None:
        """Finish what a run has left that was killed, or has a target still to be put back."""
        self._refusals.catch_up()
        self._losses.catch_up()
        if self._settler is not None:
            return
        try:
            policy = load_for(self._config, None)
            journal = Journal(policy.aio.state_dir)
            if journal.read() is None or journal.is_held():
                return
            self._settler = self._fork(lambda: self._settle_in_child(policy), listener)
        except BorgPullError as error:
            self._say(error.line())
        except Exception as error:  # noqa: BLE001 - what cannot be settled keeps nobody from asking
            self._say(f"unexpected {type(error).__name__}: {error}")

    def _settle_in_child(self, policy: AioPolicy) -> None:
        try:
            if Runs(policy).settle():
                self._say("what an earlier run had left is settled")
        except BorgPullError as error:
            self._say(f"what an earlier run has left: {error.line()}")

    def _fork(self, work: Callable[[], None], listener: socket.socket) -> int:
        """Raises BusyError when there is no room for one more process."""
        try:
            child = os.fork()
        except OSError as error:
            self._say(f"no process for a request: {error.strerror}")
            raise BusyError("the companion's host has no room", "try again later") from error
        if child:
            self._children.add(child)
            return child
        code = 1
        try:
            listener.close()
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            work()
            code = 0
        except Exception as error:  # noqa: BLE001 - the service goes on, and its log has it
            self._say(f"unexpected {type(error).__name__}: {error}")
        finally:
            os._exit(code)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                self._children.discard(ended)
                if ended == self._settler:
                    self._settler = None

    def _serve(self, connection: socket.socket) -> None:
        """Answer one request. In a process of its own, which ends with this."""
        try:
            answer = _Answer(self._config, connection)
            code, error, hint = answer.give(parse_request(_line(connection, REQUEST_SECONDS)))
        except BrokenPipeError:
            return
        except BorgPullError as fault:
            if isinstance(fault, NotAllowedError):
                self._say(f"refused: {fault.line()}")
            code, error, hint = fault.exit_code, fault.message, fault.hint
        except OSError as fault:
            self._say(f"a request is lost: {fault.strerror or fault}")
            code, error, hint = SystemRefusedError.exit_code, str(fault.strerror or fault), None
        except Exception as fault:  # noqa: BLE001 - told in one line to whoever asks
            error = f"unexpected {type(fault).__name__}: {fault}"
            self._say(error)
            code, hint = InternalError.exit_code, "please report it"
        with contextlib.suppress(OSError):
            connection.sendall(end_line(code, error, hint))


def _end_at_once(connection: socket.socket, error: BorgPullError) -> None:
    """Tell it without waiting for anything of the peer's."""
    connection.setblocking(False)
    with contextlib.suppress(OSError):
        connection.send(end_line(error.exit_code, error.message, error.hint))


class _Sparing:
    """Says one line a second at most, and how many more there were."""

    def __init__(self, say: Callable[[str], None], what: str) -> None:
        self._say = say
        self._what = what
        self._said = 0.0
        self._kept_back = 0

    def say(self, line: str) -> None:
        """Say it, or count it."""
        if time.monotonic() - self._said < 1:
            self._kept_back += 1
            return
        self.catch_up()
        self._said = time.monotonic()
        self._say(line)

    def catch_up(self) -> None:
        """Say how many there were."""
        if self._kept_back:
            self._say(f"{self._what}: {self._kept_back} more")
            self._kept_back = 0


@contextlib.contextmanager
def _alone(directory: str) -> Iterator[None]:
    """One companion at a time looks for another one, and takes the place of one that is gone."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _bound(path: str) -> socket.socket:
    """A socket at ``path``, in place of one that nobody listens on any more. Raises OSError,
    BusyError when somebody does."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    mask = os.umask(0o117)
    try:
        try:
            listener.bind(path)
        except OSError:
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
                try:
                    other.connect(path)
                except ConnectionRefusedError:
                    os.unlink(path)
                else:
                    raise BusyError(f"another companion listens on {path}", "stop it") from None
            listener.bind(path)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(mask)
    return listener


def _line(connection: socket.socket, seconds: float) -> bytes:
    deadline = time.monotonic() + seconds
    line = b""
    while b"\n" not in line:
        connection.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            received = connection.recv(MAX_REQUEST + 1 - len(line))
        except TimeoutError as error:
            raise RequestError(f"no request came in {seconds:g} s") from error
        line += received
        if not received or len(line) > MAX_REQUEST:
            break
    connection.settimeout(ANSWER_SECONDS)
    return line


_CHANGES = ("run", "aio", "target-set")

End = tuple[int, str | None, str | None]
"""Exit code, error and hint of an answer."""


class _Answer:
    """The answer to one request."""

    def __init__(self, config: str, connection: socket.socket) -> None:
        self._config = config
        self._connection = connection

    def give(self, ask: Ask) -> End:
        """Do what is asked for. Raises BorgPullError."""
        policy = load_for(self._config, ask.client)
        if ask.request in _CHANGES:
            self._check_lockdown()
        refusal = policy.refusal(ask.request, ask.action or ask.target)
        if refusal is not None:
            raise NotAllowedError(refusal)
        answers: dict[str, Callable[[AioPolicy, Ask], End]] = {
            "run": self._run,
            "aio": self._run,
            "jobs": self._jobs,
            "job": self._job,
            "cancel": self._cancel,
            "aio-status": self._status,
            "health": self._health,
            "metrics": lambda policy, _ask: self._one(condition.metrics(policy, Runs(policy))),
            "target-show": lambda policy, _ask: self._one(condition.target(policy)),
            "target-set": self._set_target,
            "lockdown-on": self._lock_down,
            "lockdown-off": self._lift,
        }
        return answers[ask.request](policy, ask)

    def _check_lockdown(self) -> None:
        # The forced command has looked, but it may have been locked down since.
        reason = lockdown.reason_of(self._config)
        if reason is not None:
            raise BusyError(f"this host is {reason}", "try again when that is over")

    def _send(self, fields: Mapping[str, JSONValue]) -> None:
        line = encode(fields).encode("ascii") + b"\n"
        if len(line) > MAX_ANSWER_LINE:
            raise InternalError(f"an answer of {len(line)} bytes is too long")
        try:
            self._connection.sendall(line)
        except OSError as error:
            # Nobody reads any more; what runs goes on.
            raise BrokenPipeError from error

    def _wait_for_more(self, seconds: float) -> None:
        """Raises BrokenPipeError when the peer is gone; nothing may be sent to it for hours."""
        poll = select.poll()
        poll.register(self._connection, 0)
        if poll.poll(seconds * 1000):
            raise BrokenPipeError

    def _one(self, fields: Mapping[str, JSONValue]) -> End:
        self._send(fields)
        return BORG_SUCCESS, None, None

    def _run(self, policy: AioPolicy, ask: Ask) -> End:
        if ask.action is not None:
            plan = plan_of_action(policy.actions[ask.action])
        else:
            plan = plan_of_target(policy.targets[str(ask.target)], check=ask.check)
        wanted = Wanted(plan=plan, action=ask.action, target=ask.target, common=_common(ask))
        runs = Runs(policy)
        place = None if ask.detach else Place(policy.aio.state_dir, ask.client)

        def leave() -> None:
            self._connection.close()
            if place is not None:
                place.close()

        try:
            job = runs.start(wanted, leave)
        except BusyWithError as error:
            self._send({"type": "busy", "job_id": error.job})
            raise
        self._send({"type": "job", "job_id": job, **wanted.told(), "status": "started"})
        return (BORG_SUCCESS, None, None) if ask.detach else self._follow(runs, job, 1)

    def _follow(self, runs: Runs, job: str, start: int) -> End:
        alive = partial(runs.is_alive, job)
        for event in runs.jobs.events(job, start, follow=alive, pause=self._wait_for_more):
            self._send(event)
        head = runs.jobs.head(job)
        if head is None or head["status"] != "finished":
            return BORG_ERROR, "the run was killed", "its end will be told by job"
        return int(head["exit"]), head["error"], head["hint"]

    def _jobs(self, policy: AioPolicy, ask: Ask) -> End:
        runs = Runs(policy)
        found = [job for job in runs.jobs.all() if self._may_see(policy, ask, job)]
        answer: dict[str, Any] = {"type": "jobs", "version": 1, "jobs": [], "more": 0}
        size = 200
        for job in found:
            size += len(encode(job)) + 1
            if size > MAX_ANSWER_LINE:
                answer["more"] += 1
            else:
                answer["jobs"].append(job)
        return self._one(answer)

    def _job(self, policy: AioPolicy, ask: Ask) -> End:
        runs = Runs(policy)
        head = self._head(policy, ask, runs)
        self._send(head)
        job = str(ask.job)
        if not ask.follow and ask.start == 1:
            return BORG_SUCCESS, None, None
        # Also what is read without waiting may be read slowly.
        with contextlib.closing(Place(policy.aio.state_dir, ask.client)):
            if ask.follow:
                return self._follow(runs, job, ask.start)
            for event in runs.jobs.events(job, ask.start):
                self._send(event)
        return BORG_SUCCESS, None, None

    def _head(self, policy: AioPolicy, ask: Ask, runs: Runs) -> dict[str, Any]:
        head = runs.jobs.head(str(ask.job))
        if head is None or not self._may_see(policy, ask, head):
            raise NotAllowedError("no such job")
        return head

    def _may_see(self, policy: AioPolicy, ask: Ask, head: Mapping[str, Any]) -> bool:
        if head["client"] == ask.client:
            return True
        grants = policy.client
        return ask.all and grants is not None and is_admin(grants.role, policy.features)

    def _cancel(self, policy: AioPolicy, ask: Ask) -> End:
        runs = Runs(policy)
        head = self._head(policy, ask, runs)
        cancel(runs, str(ask.job), f"client {ask.client}")
        return self._one(head | {"status": "cancelling"})

    def _status(self, policy: AioPolicy, ask: Ask) -> End:
        answer = condition.status(policy, Runs(policy))
        last = answer["last_job"]
        if last is not None and not self._may_see(policy, ask, last):
            answer["last_job"] = {key: last[key] for key in ("job_id", "result", "status")}
        return self._one(answer)

    def _health(self, policy: AioPolicy, _ask: Ask) -> End:
        answer = condition.health(policy)
        self._send(answer)
        if answer["healthy"]:
            return BORG_SUCCESS, None, None
        return BORG_WARNING, f"not up and healthy: {', '.join(answer['amiss'])}", None

    def _set_target(self, policy: AioPolicy, ask: Ask) -> End:
        set_target(policy, policy.targets[str(ask.target)], _common(ask))
        return self._one(condition.target(policy))

    def _lock_down(self, policy: AioPolicy, ask: Ask) -> End:
        faults: list[BorgPullError] = []
        changed = locking_down.lock(
            self._config,
            by=f"client {ask.client}"[:MAX_NAME],
            client=ask.client,
            reason=None,
            kill=False,
            record=_recorder(policy, ask),
            faults=faults,
        )
        return self._locked(changed, faults)

    def _lift(self, policy: AioPolicy, ask: Ask) -> End:
        faults: list[BorgPullError] = []
        changed = locking_down.unlock(
            self._config,
            by=f"client {ask.client}"[:MAX_NAME],
            client=ask.client,
            record=_recorder(policy, ask),
            faults=faults,
        )
        return self._locked(changed, faults)

    def _locked(self, changed: bool, faults: list[BorgPullError]) -> End:
        if faults:
            raise faults[0]
        return self._one({"type": "lockdown", "version": 1, "changed": changed})


def _common(ask: Ask) -> dict[str, Any]:
    """What the records of the request carry; its pid is that of who writes them."""
    session = ask.session
    return {
        "session": session.session,
        "client": ask.client,
        "key": session.key,
        "address": session.address,
        "port": session.port,
        "pid": os.getpid(),
    }


def _recorder(policy: AioPolicy, ask: Ask) -> Callable[[str, Mapping[str, JSONValue]], None]:
    log = AuditLog(policy.audit.file, sync=policy.audit.sync)

    def record(event: str, fields: Mapping[str, JSONValue]) -> None:
        with acting_as(forced_command_account(policy.runtime, None)):
            log.append(event, Common(**_common(ask)), fields)

    return record
