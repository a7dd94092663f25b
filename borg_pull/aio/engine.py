"""The container engine, by the few calls that a proxy in front of it has to permit.

These are: list, inspect and logs of containers, and exec (create, start, inspect). Nothing here
starts, stops, changes or removes a container.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import docker
import requests
from docker.constants import DEFAULT_DOCKER_API_VERSION
from docker.utils import kwargs_from_env, version_lt

from borg_pull.aio.limit import limited
from borg_pull.errors import ConfigurationError, SocketError

if TYPE_CHECKING:
    from collections.abc import Callable

USUAL_ADDRESS = "unix:///var/run/docker.sock"
SECONDS = 30  # for one answer of the engine, which is slow while it removes images
_SCHEMES = ("unix://", "tcp://", "http://", "https://")
_MAX_LOG_BYTES = 1 << 20
_MAX_ANSWER = 8 << 20  # bytes
_PIECE = 1 << 16  # of an answer that lasts
_FRAME_HEADER = 8
_OK = 200
_FORBIDDEN = 403
# What is raised by an answer that is none of an engine's, by us and by the library.
_ODD = (
    *(KeyError, IndexError, TypeError, ValueError, AttributeError),
    *(RecursionError, OverflowError, struct.error),
)
_NEVER = "0001-01-01T00:00:00Z"  # Go's zero time

# What the backup container's environment may be asked for. The rest has passwords.
_TOLD = ("BORG_MODE", "BORG_REMOTE_REPO", "BORGBACKUP_HOST_LOCATION")


class EngineError(SocketError):
    """The engine cannot be reached, or refuses what is needed."""


@dataclass(frozen=True, kw_only=True)
class Container:
    """A container as the engine sees it now."""

    id: str
    name: str
    status: str
    """``created``, ``running``, ``restarting``, ``exited``, ``dead`` and so on."""
    running: bool
    started_at: float | None
    """Seconds since the epoch; None when it never started."""
    finished_at: float | None
    exit_code: int | None
    """None while it runs."""
    out_of_memory: bool
    health: str | None
    """``starting``, ``healthy``, ``unhealthy``; None when nobody looks."""
    told: Mapping[str, str]
    """What its environment says of mode and target of a backup."""

    @property
    def start(self) -> tuple[str, float | None]:
        """What tells this start of it from every other."""
        return self.id, self.started_at


@dataclass(frozen=True, kw_only=True)
class ExecState:
    """A program that was started inside a container."""

    running: bool
    exit_code: int | None


Origin = Literal["stdout", "stderr"]


class Engine:
    """One engine, by its API. Each call raises EngineError."""

    def __init__(self, address: str | None) -> None:
        """``address`` from the configuration; without one ``DOCKER_HOST`` or the usual socket."""
        self.address = address or os.environ.get("DOCKER_HOST") or USUAL_ADDRESS
        if not self.address.startswith(_SCHEMES):
            raise ConfigurationError(
                f"engine address {self.address}: not of a kind that is used",
                f"it begins with one of {' '.join(_SCHEMES)}",
            )
        self._client: Any = None

    def running(self) -> list[str]:
        """Names of the containers that run."""
        return sorted(self._call("list containers", lambda client: _names(client.containers())))

    def named(self, prefix: str) -> list[str]:
        """Names of all containers that begin with ``prefix``, running or not."""
        names = self._call("list containers", lambda client: _names(client.containers(all=True)))
        return sorted(name for name in names if name.startswith(prefix))

    def inspect(self, name: str) -> Container | None:
        """The container of that name, None when there is none."""
        found: Container | None = self._call(
            f"inspect {name}",
            lambda client: _container(client.inspect_container(name)),
            missing=None,
        )
        return found

    def start(self, container: str, command: list[str], environment: Mapping[str, str]) -> str:
        """Have ``command`` ready to run inside ``container``; its id."""
        made: str = self._call(
            f"exec in {container}",
            lambda client: _text(
                client.exec_create(
                    container, command, environment=dict(environment), stdin=False, tty=False
                )["Id"]
            ),
        )
        return made

    def stream(self, program: str) -> Iterator[tuple[Origin, bytes]]:
        """Start what `start` has made ready and hand out what it writes, until it ends.

        The end also comes when its container or the engine goes away.
        """
        frames = self._call(
            "start exec",
            lambda client: client.exec_start(program, stream=True, demux=True),
            lasts=True,
        )
        with contextlib.suppress(requests.RequestException, OSError, *_ODD):
            for out, err in frames:
                if out:
                    yield "stdout", out
                if err:
                    yield "stderr", err

    def detach(self, program: str) -> None:
        """Start what `start` has made ready, and leave it alone."""
        self._call("start exec", lambda client: client.exec_start(program, detach=True))

    def follow(self, container: str, *, since: float) -> Iterator[tuple[Origin, bytes]]:
        """What the container of this id has written since then, and writes until it ends."""
        what = f"logs of {container[:12]}"
        query = {"follow": 1, "stdout": 1, "stderr": 1, "since": int(since)}

        def ask(client: Any) -> tuple[bool, requests.Response]:
            is_tty = _truth(client.inspect_container(container)["Config"]["Tty"])
            url = f"{client.base_url}/containers/{container}/logs"
            answer = client.get(url, params=query, stream=True, timeout=SECONDS)
            if answer.status_code != _OK:
                answer.close()
                raise EngineError(f"engine: cannot {what}: status {answer.status_code}")
            return is_tty, answer

        answered = self._call(what, ask, missing=None, lasts=True)
        if answered is None:
            return
        is_tty, answer = answered
        with contextlib.suppress(requests.RequestException, OSError, *_ODD), answer:
            pieces = answer.iter_content(_PIECE)
            for piece in pieces if is_tty else _unframed(pieces):
                yield "stdout", piece

    def exec_state(self, program: str) -> ExecState | None:
        """How that program is; None when its container, and with it all trace of it, is gone."""
        found: ExecState | None = self._call(
            "inspect exec",
            lambda client: _exec_state(client.exec_inspect(program)),
            missing=None,
        )
        return found

    def logs(
        self, container: str, *, since: float, stderr: bool = True, tail: int = 1000
    ) -> list[str]:
        """The last lines that the container of this id has written since then."""
        content = self._call(
            f"logs of {container[:12]}",
            # The engine takes whole seconds for all of that second.
            lambda client: client.logs(container, since=int(since), stderr=stderr, tail=tail),
            missing=b"",
        )
        text: str = content[-_MAX_LOG_BYTES:].decode("utf-8", "backslashreplace")
        # No other character ends one: what a program writes over on a terminal is not a line.
        return text.removesuffix("\n").split("\n")

    def _call(
        self,
        what: str,
        call: Callable[[Any], Any],
        missing: object = EngineError,
        *,
        lasts: bool = False,
    ) -> Any:
        """``missing``: what the answer is when the engine does not know what is asked for.
        ``lasts``: what comes after the answer's beginning takes as long as it takes."""
        try:
            client = self._connected()
            with limited(SECONDS, _MAX_ANSWER) as limit:
                answer = call(client)
                if lasts:
                    limit.lift()
                return answer
        except docker.errors.NotFound as error:
            if missing is not EngineError:
                return missing
            raise EngineError(f"engine: cannot {what}: {error.explanation}") from error
        except docker.errors.APIError as error:
            status = error.response.status_code if error.response is not None else None
            if status == _FORBIDDEN:
                raise self._forbidden(what) from error
            raise EngineError(f"engine: cannot {what}: {error.explanation or error}") from error
        except (docker.errors.DockerException, requests.RequestException, OSError) as error:
            self._client = None
            raise EngineError(
                f"engine: {self.address} does not answer: {_cause(error)}",
                "start it, or set aio.engine (without that DOCKER_HOST) to its address",
            ) from error
        except _ODD as error:
            raise EngineError(
                f"engine: cannot {what}: {self.address} gives no answer of an engine's: "
                f"{type(error).__name__}",
                "set aio.engine (without that DOCKER_HOST) to the address of a container engine",
            ) from error

    def _forbidden(self, what: str) -> EngineError:
        return EngineError(
            f"engine: whatever stands before {self.address} does not permit to {what}",
            "have the proxy permit list, inspect, logs and exec",
        )

    def _connected(self) -> Any:
        if self._client is None:
            settings = {**kwargs_from_env(), "base_url": self.address, "timeout": SECONDS}
            client = _client(settings, DEFAULT_DOCKER_API_VERSION)
            # A proxy may permit neither /version nor /_ping. Every answer has the newest version
            # that the engine speaks, and a path without one is served by it.
            with limited(SECONDS, _MAX_ANSWER):
                answer = client.get(f"{client.base_url}/containers/json?limit=1", timeout=SECONDS)
            if answer.status_code == _FORBIDDEN:
                raise self._forbidden("list containers")
            offered = answer.headers.get("Api-Version", DEFAULT_DOCKER_API_VERSION)
            if version_lt(offered, DEFAULT_DOCKER_API_VERSION):
                client = _client(settings, offered)
            self._client = client
        return self._client


def _client(settings: dict[str, Any], version: str) -> Any:
    client = _Client(version=version, **settings)
    client.trust_env = False  # no proxy for what is local
    return client


class _Client(docker.APIClient):  # type: ignore[misc]
    """Takes an answer from nobody but who was asked, and unpacks none: a small one may be huge."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Nowhere."""

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Raises requests.RequestException."""
        is_stream = options.get("stream", False)
        answer: requests.Response = super().send(request, **(options | {"stream": True}))
        if answer.is_redirect or "Content-Encoding" in answer.headers:
            answer.close()
            raise requests.RequestException("it answers with a redirect, or with what is packed")
        if not is_stream:
            _ = answer.content
        return answer


def _unframed(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """What stands in the frames, each of which has its length before it."""
    header, left = b"", 0
    for data in pieces:
        place = 0
        while place < len(data):
            if left == 0:
                part = data[place : place + _FRAME_HEADER - len(header)]
                header += part
                if len(header) == _FRAME_HEADER:
                    left, header = int.from_bytes(header[4:], "big"), b""
            else:
                part = data[place : place + left]
                left -= len(part)
                yield part
            place += len(part)


def _names(listed: Any) -> list[str]:
    return [_text(name).lstrip("/") for entry in listed for name in entry["Names"][:1]]


def _exec_state(found: Any) -> ExecState:
    return ExecState(running=_truth(found["Running"]), exit_code=_code(found["ExitCode"]))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _code(value: object) -> int | None:
    if value is not None and not isinstance(value, int):
        raise TypeError
    return value


def _container(found: Any) -> Container:
    state = found["State"]
    running = _truth(state["Running"])
    started_at, finished_at = _seconds(state["StartedAt"]), _seconds(state["FinishedAt"])
    environment = dict(
        _text(entry).partition("=")[::2] for entry in found["Config"].get("Env") or ()
    )
    return Container(
        id=_text(found["Id"]),
        name=_text(found["Name"]).lstrip("/"),
        status=_text(state["Status"]),
        running=running,
        started_at=started_at,
        finished_at=None if running else finished_at,
        exit_code=None if running or started_at is None else _code(state["ExitCode"]),
        out_of_memory=bool(state.get("OOMKilled")),
        health=_text((state.get("Health") or {}).get("Status") or "") or None,
        told={name: environment[name] for name in _TOLD if name in environment},
    )


def _seconds(text: str) -> float | None:
    """Seconds since the epoch of the engine's times, which have nanoseconds."""
    if not text or text == _NEVER:
        return None
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _cause(error: BaseException) -> str:
    """The innermost reason, without the library's layers around it."""
    while True:
        inner = error.__cause__ or error.__context__
        reason = getattr(error, "reason", None)
        if isinstance(reason, BaseException):
            inner = reason
        if inner is None:
            break
        error = inner
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error)
