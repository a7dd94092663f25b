"""``pull.toml``: sources, repositories and jobs, checked as a whole.

`load` reads the main file and every ``pull.d/*.toml`` beside it, and either returns a `Config` or
raises a `ConfigFaultsError` that names everything that is wrong at once, by file and key. The
JSON Schema and ``docs/pull-configuration.md`` are made from these models.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from borg_pull.pull.faults import Fault
from borg_pull.pull.fields import (
    AbsolutePath,
    Calendar,
    Command,
    Compression,
    Count,
    Duration,
    Host,
    Interval,
    Memory,
    MetricsFile,
    Name,
    NameReference,
    Operand,
    Pattern,
    PositiveDuration,
    Quota,
    RemoteDirectory,
    RepositoryPath,
    RuntimeDirectory,
    ShortDuration,
    Size,
    SourcePath,
    Umask,
    User,
    unique,
)
from borg_pull.values import MAX_PATHS, archive_parts

ENVIRONMENT = "BORG_PULL_CONFIG"
OF_USER = Path("~/.config/borg-pull/pull.toml")
OF_SYSTEM = Path("/etc/borg-pull/pull.toml")


def _default(value: str, description: str) -> Any:
    """A default as it would be written in the file."""
    return Field(default=value, validate_default=True, description=description)


class _Table(BaseModel):
    # Strict: a number in quotes is a mistake to tell of.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Settings(_Table):
    """``[settings]``: where things are kept on this host."""

    state_dir: AbsolutePath = _default(
        "~/.local/state/borg-pull", "Ledger, logs, keys and pinned host keys."
    )
    runtime_dir: RuntimeDirectory | None = Field(
        default=None,
        description="Private directories of running pulls. The default is `borg-pull` in "
        "`$XDG_RUNTIME_DIR`, else `run` in `state_dir`.",
    )
    jobs: int = Field(
        default=4, ge=1, le=256, description="Pulls at once when `--jobs` is not given."
    )
    watch: Calendar = Field(
        default="*:0/15",
        description="Calendar expression: when the timers' watch looks whether the backups are "
        "fine, tells people and writes the metrics.",
    )
    keep_logs: PositiveDuration = _default("90d", "How long logs of single runs are kept.")


class Storage(_Table):
    """``[storage.NAME]``: a disk, or whatever several repositories share."""

    max_runs: int = Field(
        default=1, ge=1, le=256, description="Runs at once on the repositories of this storage."
    )


class Source(_Table):
    """``[source.NAME]``: a machine that data is pulled from."""

    host: Host = Field(description="Host name or address.")
    user: User = Field(default="borg-pull", description="Account of the forced command there.")
    port: int = Field(default=22, ge=1, le=65535, description="Port of its sshd.")
    identity: AbsolutePath = Field(
        description="Private key file; `borg-pull keys generate` makes one a source."
    )
    client: NameReference | None = Field(
        default=None,
        description="This host's client name there. Only the original tool needs it, for it does "
        "not tell.",
    )
    protocol: Literal["auto", "borg-pull", "original"] = Field(
        default="auto",
        description="What runs there. `auto` asks with `hello`, and takes what does not answer "
        "for the original tool.",
    )
    socket_dir: RemoteDirectory | None = Field(
        default=None,
        description="Directory of the forwarded sockets there. The default is what `hello` tells.",
    )
    ciphers: Operand | None = Field(
        default=None, description="ssh's `Ciphers`, in place of those chosen for speed."
    )
    keep_alive: ShortDuration = _default(
        "15s", "Time between ssh's keep-alives; with three lost the run is over."
    )
    connect_timeout: ShortDuration = _default("30s", "How long to wait for a connection.")

    @model_validator(mode="after")
    def _original_needs_more(self) -> Source:
        if self.protocol == "original" and (self.client is None or self.socket_dir is None):
            raise ValueError("needs client and socket_dir: the original tool does not tell them")
        return self


class Repository(_Table):
    """``[repository.NAME]``: a borg repository on this host."""

    path: RepositoryPath = Field(description="Its directory.")
    storage: NameReference | None = Field(
        default=None, description="The `[storage.NAME]` that bounds its runs."
    )
    borg: AbsolutePath = _default("/usr/bin/borg", "The borg that serves it, 1.2 or 1.4.")
    quota: Quota | None = Field(default=None, description="`borg serve`'s storage quota.")
    umask: Umask = Field(default="0077", description="Of the files that borg makes.")
    memory: Memory = _default(
        "4 GiB",
        "What each borg on it may take. Its index alone has 50 bytes for each of its chunks, of "
        "2 MiB on average; `check` and `prune` hold it three times.",
    )
    lookup_deadline: PositiveDuration = _default(
        "30min", "When a borg is ended that lists archives or looks at one."
    )
    deadline: PositiveDuration = _default(
        "3d", "When any other borg of this host on it is ended: `check`, `prune`, `extract`."
    )
    passphrase_file: AbsolutePath | None = Field(
        default=None,
        description="File whose first line is the passphrase. Of root or the user, readable by "
        "no others.",
    )
    passphrase_command: Command | None = Field(
        default=None,
        description="Program and arguments; the first line it prints is the passphrase. Run "
        "without a shell.",
    )
    passphrase_credential: NameReference | None = Field(
        default=None,
        description="Name of a credential: in `$CREDENTIALS_DIRECTORY` (systemd's "
        "`LoadCredential=`), else of service `borg-pull` in the desktop's secret store.",
    )
    key_on: Literal["server", "source"] = Field(
        default="server",
        description="Who can read the repository. With `source` this host cannot, and asks the "
        "source about archives; see below.",
    )

    @model_validator(mode="after")
    def _one_passphrase(self) -> Repository:
        names = ("passphrase_file", "passphrase_command", "passphrase_credential")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"has {' and '.join(given)}; keep one of them")
        return self


class Retention(_Table):
    """``[job.NAME.retention]``: what prune keeps of this job's archives."""

    keep_within: Interval | None = Field(
        default=None, description="Keep all archives of this time: `7d`, and `H`, `w`, `m`, `y`."
    )
    keep_last: Count | None = Field(default=None, description="Keep the last archives.")
    keep_minutely: Count | None = Field(default=None, description="One archive a minute.")
    keep_hourly: Count | None = Field(default=None, description="One archive an hour.")
    keep_daily: Count | None = Field(default=None, description="One archive a day.")
    keep_weekly: Count | None = Field(default=None, description="One archive a week.")
    keep_monthly: Count | None = Field(default=None, description="One archive a month.")
    keep_yearly: Count | None = Field(default=None, description="One archive a year.")
    compact: bool = Field(default=True, description="Free the space after pruning.")
    check_before_compact: bool = Field(
        default=True,
        description="Free it only if borg finds all archives whole just before. What a source "
        "deletes of them cannot be had back afterwards.",
    )

    @model_validator(mode="after")
    def _keeps_something(self) -> Retention:
        if all(value is None for name, value in self if name.startswith("keep_")):
            raise ValueError("keeps nothing; give at least one of the keep_ keys")
        return self


class Check(_Table):
    """``[job.NAME.check]``: when and how the repository is verified."""

    schedule: Calendar = Field(
        default="weekly", description="Calendar expression, as systemd.time(7) has it."
    )
    max_duration: PositiveDuration | None = Field(
        default=None,
        description="Verify for so long, and go on from there the next time. Then borg looks at "
        "the repository alone, not at the archives.",
    )
    verify_data: bool = Field(
        default=False, description="Read and decrypt every byte; takes as long as that takes."
    )

    @model_validator(mode="after")
    def _whole_or_in_slices(self) -> Check:
        if self.verify_data and self.max_duration is not None:
            raise ValueError("has verify_data, which cannot be cut into slices, and max_duration")
        return self


class Hooks(_Table):
    """``[job.NAME.hooks]``: programs on this host, run without a shell."""

    before: Command | None = Field(
        default=None,
        description="Run before the pull; if it fails, so does the run, without a pull.",
    )
    after: Command | None = Field(
        default=None,
        description="Run after the pull, whatever came of it; if it fails, that is a warning.",
    )
    timeout: PositiveDuration = _default("5min", "When a hook is ended.")


class Job(_Table):
    """``[job.NAME]``: paths of one source, pulled into one repository."""

    source: NameReference = Field(description="The `[source.NAME]` it pulls from.")
    repository: NameReference = Field(description="The `[repository.NAME]` it pulls into.")
    paths: Annotated[
        list[SourcePath], Field(min_length=1, max_length=MAX_PATHS), AfterValidator(unique)
    ] = Field(description="What to back up; each must stand in the source's whitelist.")
    archive: Operand = Field(
        default="{job}-{utcnow:%Y-%m-%dT%H:%M:%S}",
        description="Archive name. `{job}`, `{source}`, `{now}`, `{utcnow}` (also with a strftime "
        "format) and `{hostname}` are filled in. What stands before the first but `{job}` and "
        "`{source}` must be this job's own in the repository: retention goes by it.",
    )
    compression: Compression | None = Field(
        default=None, description="As borg has it: `lz4`, `zstd,3`, `auto,zstd`."
    )
    exclude: list[Pattern] = Field(
        default=[], description="Patterns to leave out (`borg help patterns`)."
    )
    one_file_system: bool = Field(default=False, description="Stay on the paths' file systems.")
    schedule: Calendar | None = Field(
        default=None,
        description="Calendar expression, as systemd.time(7) has it, for timers and `--due`.",
    )
    randomized_delay: Duration = _default("0", "Start a timer's run later, by up to this.")
    stale_after: PositiveDuration = _default(
        "36h", "The job counts as stale when its last success is older."
    )
    minimum_size: Size = _default("0", "A smaller archive is a failure.")
    shrink_alarm: float = Field(
        default=0.5,
        ge=0,
        lt=1,
        description="Warn when an archive is smaller than this part of the median of the last "
        "ones, and prune nothing then; 0 never does.",
    )
    deadline: PositiveDuration = _default("12h", "When a run is ended.")
    stall_timeout: PositiveDuration = _default(
        "1h",
        "A run is ended when for so long the source says nothing and `borg serve` reads and "
        "writes nothing. Not with the original tool, which tells of no progress.",
    )
    retry_window: Duration = _default(
        "60min", "How long a busy source, or a locked repository, is tried again."
    )
    append_only: bool = Field(
        default=True,
        description="Have `borg serve` only append, so that what the source deletes can be had "
        "back.",
    )
    retention: Retention | None = Field(default=None, description="See below; none keeps all.")
    check: Check | None = Field(default=None, description="See below; none never verifies.")
    hooks: Hooks = Field(default_factory=Hooks, description="See below.")
    ping_url_file: AbsolutePath | None = Field(
        default=None,
        description="File with the URL of a dead-man's switch, asked for after each success.",
    )


class Notify(_Table):
    """``[notify]``: who is told."""

    urls_file: AbsolutePath | None = Field(
        default=None,
        description="File with one Apprise URL a line. They hold secrets: readable by no others.",
    )
    repeat_every: PositiveDuration = _default("24h", "When to tell again of what still holds.")
    warnings: bool = Field(
        default=True,
        description="Tell of warnings, too, once. That an archive shrank is told without it.",
    )
    digest: Calendar | None = Field(
        default=None, description="Calendar expression of a summary of all jobs."
    )


class Metrics(_Table):
    """``[metrics]``: Prometheus' textfile collector."""

    textfile: MetricsFile | None = Field(
        default=None, description="File to write after each run, in the collector's directory."
    )


def _tables(description: str) -> Any:
    return Field(
        default_factory=dict,
        description=description,
        json_schema_extra={"additionalProperties": False},
    )


class Config(_Table):
    """Everything, with all references resolved."""

    settings: Settings = Field(
        default_factory=Settings, description="Where things are kept on this host."
    )
    storage: dict[Name, Storage] = _tables("Disks, or whatever several repositories share.")
    source: dict[Name, Source] = _tables("Machines that data is pulled from.")
    repository: dict[Name, Repository] = _tables("Borg repositories on this host.")
    job: dict[Name, Job] = _tables("Paths of one source, pulled into one repository.")
    notify: Notify = Field(default_factory=Notify, description="Who is told.")
    metrics: Metrics = Field(default_factory=Metrics, description="Prometheus' textfile collector.")

    _faults: tuple[Fault, ...] = PrivateAttr(default=())
    _left_out: tuple[str, ...] = PrivateAttr(default=())

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What is wrong with the files that this leaves out."""
        return self._faults

    @property
    def left_out(self) -> tuple[str, ...]:
        """The jobs that are therefore left out, as far as their names are known."""
        return self._left_out

    def without(self, faults: Iterable[Fault], left_out: Iterable[str]) -> Config:
        """This, which is what was left without files that are wrong."""
        self._faults, self._left_out = tuple(faults), tuple(left_out)
        return self

    def archive_prefix(self, job: str) -> str:
        """What the names of the job's archives begin with, and those of no other job there."""
        return archive_prefix(job, self.job[job])

    def beside(self, job: str) -> dict[str, str]:
        """The other jobs whose archives are in the same repository: name to glob."""
        path = self.repository[self.job[job].repository].path
        return {
            name: self.archive_glob(name)
            for name, other in self.job.items()
            if name != job and self.repository[other.repository].path == path
        }

    def archive_glob(self, job: str) -> str:
        """The pattern that selects the job's archives in its repository, and no others."""
        return f"{self.archive_prefix(job)}*"


def archive_prefix(name: str, job: Job) -> str:
    """The part of the job's archive names that is always the same."""
    literal, _placeholder = next(archive_parts(filled_archive(name, job)))
    return literal


def filled_archive(name: str, job: Job) -> str:
    """The job's archive name with what this host alone knows, else as borg would have it."""
    return job.archive.replace("{job}", name).replace("{source}", job.source)


def default_path() -> Path:
    """The configuration to use when none is named."""
    chosen = os.environ.get(ENVIRONMENT)
    if chosen:
        return Path(chosen)
    of_user = OF_USER.expanduser()
    return of_user if of_user.exists() else OF_SYSTEM


def path_to_make() -> Path:
    """Where to begin a configuration when there is none yet."""
    chosen = default_path()
    # On a source the directory is closed to others. What a user may not even look for is not his.
    is_others = chosen == OF_SYSTEM and os.geteuid() != 0 and not os.access(chosen, os.F_OK)
    return OF_USER.expanduser() if is_others else chosen


def load(path: Path, *, whole: bool = True) -> Config:
    """The configuration of ``path`` and the files beside it.

    Unless it must be ``whole``, without those of them that are wrong, and what refers to them.
    Raises ConfigFaultsError.
    """
    from borg_pull.pull.loading import examine  # which needs the models

    reading = examine(path)
    return reading.config() if whole or not reading.faults else reading.sound_part()
