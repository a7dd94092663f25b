"""``pull.toml``: sources, repositories and jobs, checked as a whole.

`load` reads the main file and every ``pull.d/*.toml`` beside it, and either returns a `Config` or
raises a `ConfigFaultsError` that names everything that is wrong at once, by file and key.
Durations are written as systemd does (``90s``, ``60min``, ``36h``, ``2d``, ``1h 30min``),
sizes with IEC or SI units (``500 GiB``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    model_validator,
)

from borg_pull.errors import ConfigurationError

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"

_UNITS = {
    "": 1,
    "s": 1,
    "sec": 1,
    "second": 1,
    "seconds": 1,
    "m": 60,
    "min": 60,
    "minute": 60,
    "minutes": 60,
    "h": 3600,
    "hr": 3600,
    "hour": 3600,
    "hours": 3600,
    "d": 86400,
    "day": 86400,
    "days": 86400,
    "w": 604800,
    "week": 604800,
    "weeks": 604800,
}
_SPAN = re.compile(r"\s*(\d+)\s*([a-z]*)")


def duration(value: object) -> timedelta:
    """The time span in ``value`` (systemd.time(7), "PARSING TIME SPANS"); a number is seconds.

    Raises ValueError.
    """
    if isinstance(value, timedelta):
        return value
    text = str(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else ""
    seconds = at = 0
    while match := _SPAN.match(text, at):
        if match[2] not in _UNITS:
            raise ValueError(f"{match[2]!r} is no unit of time; use s, min, h, d or w")
        seconds += int(match[1]) * _UNITS[match[2]]
        at = match.end()
    if at == 0 or text[at:].strip():
        raise ValueError("must be a time span such as 36h or 1h 30min")
    return timedelta(seconds=seconds)


def _calendar(value: str) -> str:
    from oncalendar import OnCalendar, OnCalendarError

    try:
        OnCalendar(value, datetime.now(UTC))
    except OnCalendarError as error:
        raise ValueError(f"{value!r} is no calendar expression: {error}") from error
    return value


def _absolute(path: Path) -> Path:
    path = path.expanduser()
    if not path.is_absolute():
        raise ValueError("must be an absolute path")
    return path


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("has unprintable characters")
    return value


def _no_leading_dash(value: str) -> str:
    if value.startswith("-"):
        raise ValueError("cannot begin with a dash")
    return value


Text = Annotated[str, Field(min_length=1), AfterValidator(_printable)]
Operand = Annotated[Text, AfterValidator(_no_leading_dash)]
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
Duration = Annotated[timedelta, BeforeValidator(duration)]
Calendar = Annotated[Text, AfterValidator(_calendar)]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Command = Annotated[list[Text], Field(min_length=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Settings(_Table):
    """``[settings]``: where things are kept on this host."""

    state_dir: AbsolutePath = Field(
        default=Path("~/.local/state/borg-pull"),
        validate_default=True,
        description="Ledger, logs and pinned host keys.",
    )
    runtime_dir: AbsolutePath | None = Field(
        default=None,
        description="Private directories of running pulls; default: under XDG_RUNTIME_DIR, "
        "else in state_dir.",
    )
    jobs: int = Field(
        default=4, ge=1, le=256, description="Pulls at once when --jobs is not given."
    )
    keep_logs: Duration = Field(
        default=timedelta(days=90), description="How long logs of single runs are kept."
    )


class Storage(_Table):
    """``[storage.NAME]``: a disk, or whatever several repositories share."""

    max_runs: int = Field(default=1, ge=1, le=256, description="Runs at once on this storage.")


class Source(_Table):
    """``[source.NAME]``: a machine that data is pulled from."""

    host: Operand = Field(description="Host name or address.")
    user: Operand = Field(default="borg-pull", description="Account of the forced command.")
    port: int = Field(default=22, ge=1, le=65535)
    identity: AbsolutePath = Field(description="Private key file; one key a source.")
    client: Name | None = Field(
        default=None,
        description="Our client name there; needed only for the original tool, which has no hello.",
    )
    protocol: Literal["auto", "borg-pull", "original"] = Field(
        default="auto", description="auto asks with hello, and falls back to the original tool's."
    )
    socket_dir: AbsolutePath | None = Field(
        default=None, description="Directory of forwarded sockets there; default: what hello says."
    )
    ciphers: Text | None = Field(default=None, description="ssh's Ciphers, if not our choice.")
    keep_alive: Duration = Field(
        default=timedelta(seconds=15),
        description="Seconds between ssh's keep-alives; three lost end it.",
    )
    connect_timeout: Duration = Field(default=timedelta(seconds=30))


class Repository(_Table):
    """``[repository.NAME]``: a borg repository on this host."""

    path: AbsolutePath
    storage: Name | None = Field(default=None, description="Storage group that bounds its runs.")
    borg: AbsolutePath = Field(default=Path("/usr/bin/borg"))
    quota: ByteSize | None = Field(default=None, description="borg serve's storage quota.")
    umask: str = Field(default="0077", pattern=r"^0?[0-7]{3}$")
    passphrase_file: AbsolutePath | None = None
    passphrase_command: Command | None = Field(
        default=None, description="Program and arguments that print the passphrase."
    )
    passphrase_credential: Name | None = Field(
        default=None,
        description="Name of a credential: systemd's (LoadCredential), else the desktop store's.",
    )
    key_on: Literal["server", "source"] = Field(
        default="server",
        description="Who can read the repository. With source, archives are looked up through it.",
    )

    @model_validator(mode="after")
    def _one_passphrase(self) -> Repository:
        given = [self.passphrase_file, self.passphrase_command, self.passphrase_credential]
        if sum(value is not None for value in given) > 1:
            raise ValueError("has more than one source of its passphrase")
        return self


class Retention(_Table):
    """``[job.NAME.retention]``: what prune keeps of this job's archives."""

    keep_within: str | None = Field(default=None, pattern=r"^[1-9][0-9]*[Hdwmy]$")
    keep_last: int | None = Field(default=None, ge=1)
    keep_minutely: int | None = Field(default=None, ge=1)
    keep_hourly: int | None = Field(default=None, ge=1)
    keep_daily: int | None = Field(default=None, ge=1)
    keep_weekly: int | None = Field(default=None, ge=1)
    keep_monthly: int | None = Field(default=None, ge=1)
    keep_yearly: int | None = Field(default=None, ge=1)
    compact: bool = True

    @model_validator(mode="after")
    def _keeps_something(self) -> Retention:
        if all(value is None for name, value in self if name.startswith("keep_")):
            raise ValueError("keeps nothing: give at least one keep_ rule")
        return self


class Check(_Table):
    """``[job.NAME.check]``: when and how the repository is verified."""

    schedule: Calendar = "weekly"
    max_duration: Duration | None = Field(
        default=None,
        description="A slice of the repository check; the next one goes on from there.",
    )
    verify_data: bool = False


class Hooks(_Table):
    """``[job.NAME.hooks]``: programs on this host, run without a shell."""

    before: Command | None = None
    after: Command | None = None
    timeout: Duration = timedelta(minutes=5)


class Job(_Table):
    """``[job.NAME]``: paths of one source, pulled into one repository."""

    source: Name
    repository: Name
    paths: Annotated[list[Operand], Field(min_length=1, max_length=500)]
    archive: Operand = Field(
        default="{job}-{utcnow:%Y-%m-%dT%H:%M:%S}",
        description="Archive name; {job} and {source} are put in here, borg's placeholders there.",
    )
    compression: Operand | None = None
    exclude: list[Operand] = []
    one_file_system: bool = False
    schedule: Calendar | None = Field(default=None, description="systemd.time(7), calendar event.")
    randomized_delay: Duration = timedelta(0)
    stale_after: Duration = timedelta(hours=36)
    minimum_size: ByteSize = Field(
        default=ByteSize(0), description="A smaller archive is a failure."
    )
    shrink_alarm: float = Field(
        default=0.5,
        ge=0,
        lt=1,
        description="Warn when an archive is smaller than this part of the median of the last "
        "ones; 0 never does.",
    )
    deadline: Duration = Field(default=timedelta(hours=12), description="A run is ended then.")
    retry_window: Duration = Field(
        default=timedelta(minutes=60), description="How long a busy source is asked again."
    )
    append_only: bool = True
    retention: Retention | None = None
    check: Check | None = None
    hooks: Hooks = Hooks()
    ping_url_file: AbsolutePath | None = Field(
        default=None, description="File with the URL of a dead-man's switch for this job."
    )


class Notify(_Table):
    """``[notify]``: who is told."""

    urls_file: AbsolutePath | None = Field(
        default=None, description="File with one Apprise URL a line; it holds secrets."
    )
    repeat_every: Duration = timedelta(hours=24)
    digest: Calendar | None = None


class Metrics(_Table):
    """``[metrics]``: Prometheus' textfile collector."""

    textfile: AbsolutePath | None = None


class Config(_Table):
    """Everything, with all references resolved."""

    settings: Settings = Settings()
    storage: dict[Name, Storage] = {}
    source: dict[Name, Source] = {}
    repository: dict[Name, Repository] = {}
    job: dict[Name, Job] = {}
    notify: Notify = Notify()
    metrics: Metrics = Metrics()


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong."""

    file: str
    key: str
    """Dotted path; empty for the whole file."""
    message: str

    def text(self) -> str:
        """``FILE: KEY: MESSAGE``"""
        return (
            f"{self.file}: {self.key}: {self.message}"
            if self.key
            else f"{self.file}: {self.message}"
        )


class ConfigFaultsError(ConfigurationError):
    """The configuration cannot be used; ``faults`` holds everything that is wrong with it."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        super().__init__(f"{faults[0].text()}{more}", "see borg-pull check-config")
        self.faults = tuple(faults)
