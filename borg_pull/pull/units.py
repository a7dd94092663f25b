"""systemd units that run the jobs: what stands in them. `timers` puts them in place.

A job's service may do what a pull needs and no more: write to its own repository and to where
borg-pull keeps its state, reach the network, and confine ``borg serve`` further. Everything is
derived from the configuration, so units are written anew when that changes.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from borg_pull.errors import ConfigurationError
from borg_pull.pull import confined
from borg_pull.pull.config import Config, Job
from borg_pull.pull.loading import directory_beside
from borg_pull.pull.places import Places

Scope = Literal["system", "user"]

JOB_PREFIX = "borg-pull-job-"
WATCH = "borg-pull-watch"
"""No job's unit can have this name: those have the prefix."""

_MARK = "# Made by borg-pull timers from "
_HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
"""What ProtectHome=tmpfs and PrivateTmp= put empty directories over."""

_CALENDAR = re.compile(r"[A-Za-z0-9*:/.,~ _+-]+")
_UNTOLD = re.compile(r"[\\\"':]")
"""What separates and quotes in a unit's lists of paths."""

# borg serve and ssh, started from Python. Landlock's calls are in no group of systemd 252.
_CALLS = (
    "SystemCallFilter=@system-service landlock_create_ruleset landlock_add_rule "
    "landlock_restrict_self",
    "SystemCallFilter=~@privileged @resources",
    # setpriv, which ties ssh and borg to their parent, sets even an empty set anew.
    "SystemCallFilter=capset",
    # For what they merely try: SQLite changes its files' owner when it runs as root.
    "SystemCallErrorNumber=EPERM",
    "SystemCallArchitectures=native",
)

# ProtectProc= is not here: whose run still goes on is told by the processes that are seen, those
# that a person started among them.
_SANDBOX = (
    "NoNewPrivileges=yes",
    "CapabilityBoundingSet=",
    "KeyringMode=private",
    "LockPersonality=yes",
    "MemoryDenyWriteExecute=yes",
    "PrivateDevices=yes",
    "PrivateMounts=yes",
    "PrivateTmp=yes",
    "PrivateUsers=yes",
    "ProcSubset=pid",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "ProtectHome=tmpfs",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "ProtectSystem=strict",
    "RemoveIPC=yes",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    *_CALLS,
    "UMask=0077",
)


@dataclass(frozen=True)
class Owner:
    """The account that the services run as."""

    name: str
    uid: int
    home: Path


@dataclass(frozen=True)
class Setting:
    """All that the units depend on."""

    scope: Scope
    main: Path
    """The configuration's main file, absolute."""
    config: Config
    places: Places
    owner: Owner


def program() -> list[str]:
    """How this program is started: absolute, and the same from any directory."""
    if getattr(sys, "frozen", False):
        return [sys.executable]
    return [sys.executable, "-m", "borg_pull.pull"]


def mark(main: Path) -> str:
    """The first line of each unit that is made from this configuration."""
    return f"{_MARK}{main}; change the configuration, or use systemctl edit."


def is_ours(text: str) -> bool:
    """Whether it is a unit of ours, whichever configuration it was made from."""
    return text.startswith(_MARK)


def job_unit(name: str) -> str:
    """The name of a job's units, without ``.timer`` and ``.service``."""
    return JOB_PREFIX + name


def units(setting: Setting) -> dict[str, str]:
    """The text of every unit file by its name: two for each job with a schedule, and for the watch.

    Raises ConfigurationError for what no unit can say.
    """
    if not str(setting.main).isprintable():
        raise ConfigurationError(f"{setting.main} is no name for a unit to have", "rename it")
    found: dict[str, str] = {}
    scheduled = {name: job for name, job in setting.config.job.items() if job.schedule is not None}
    for name, job in scheduled.items():
        stem = job_unit(name)
        found[f"{stem}.timer"] = _timer(
            setting,
            f"When borg-pull runs job {name}",
            str(job.schedule),
            int(job.randomized_delay.total_seconds()),
        )
        found[f"{stem}.service"] = _service(
            setting,
            f"borg-pull job {name}",
            ["run", name, "--quiet"],
            _job_writes(setting, job),
            [setting.config.repository[job.repository].path],
            # A warning is no failure: the archive is there.
            ["SuccessExitStatus=1"],
            credentials=(job.repository,),
        )
    if setting.config.job:
        found[f"{WATCH}.timer"] = _timer(
            setting,
            "When borg-pull looks whether the backups are fine",
            setting.config.settings.watch,
            60,
        )
        found[f"{WATCH}.service"] = _service(
            setting,
            "borg-pull: are the backups fine?",
            ["status", "--tell"],
            _state(setting),
            [],
            [],
            credentials=(),
        )
    return found


def _timer(setting: Setting, description: str, calendar: str, delay: int) -> str:
    # Its grammar has nothing that a unit file would take for something else; this makes sure.
    if not _CALENDAR.fullmatch(calendar):
        raise ConfigurationError(f"{calendar!a} is no calendar expression that a unit can have")
    lines = [
        mark(setting.main),
        "[Unit]",
        f"Description={description}",
        "",
        "[Timer]",
        f"OnCalendar={calendar}",
        f"RandomizedDelaySec={delay}",
        "Persistent=true",
        "",
        "[Install]",
        "WantedBy=timers.target",
    ]
    return "\n".join(lines) + "\n"


def _service(
    setting: Setting,
    description: str,
    words: Sequence[str],
    writes: Iterable[Path],
    mounts: Iterable[Path],
    more: Sequence[str],
    *,
    credentials: Iterable[str],
) -> str:
    is_system = setting.scope == "system"
    command = [*program(), "--config", str(setting.main), *words]
    # The colon keeps systemd from taking "$" for a variable.
    words_quoted = " ".join([_word(f":{command[0]}"), *map(_word, command[1:])])
    lines = [mark(setting.main), "[Unit]", f"Description={description}"]
    if is_system:
        lines += ["Wants=network-online.target", "After=network-online.target"]
    for path in (setting.places.state_dir, *mounts):
        lines.append(f"RequiresMountsFor={_path(path)}")
    lines += ["", "[Service]", "Type=oneshot", f"ExecStart={words_quoted}", *more]
    lines += [
        # Only the program itself is told to end: it ends ssh and borg in order.
        "KillMode=mixed",
        "TimeoutStopSec=90",
    ]
    for name in credentials:
        credential = setting.config.repository[name].passphrase_credential
        if credential is not None:
            lines.append(f"LoadCredential={credential}")
    lines.append("")
    if is_system:
        lines.append(f"User={setting.owner.name}")
    lines += _SANDBOX
    written = list(writes)
    lines += _access("BindPaths", "ReadWritePaths", written)
    lines += _access("BindReadOnlyPaths", None, _reads(setting), but=written)
    return "\n".join(lines) + "\n"


def _state(setting: Setting) -> list[Path]:
    found = [setting.places.state_dir, setting.places.runtime_dir]
    if setting.config.metrics.textfile is not None:
        found.append(setting.config.metrics.textfile.parent)
    return found


def borg_directories(owner: Owner) -> list[Path]:
    """What borg keeps of each repository it has opened, and its keys, for this account."""
    return [owner.home / ".cache/borg", owner.home / ".config/borg"]


def _job_writes(setting: Setting, job: Job) -> list[Path]:
    repository = setting.config.repository[job.repository].path
    return [*_state(setting), repository, *borg_directories(setting.owner)]


def _reads(setting: Setting) -> list[Path]:
    """What the configuration names, as far as it may lie in a hidden directory."""
    config = setting.config
    found = [setting.main, directory_beside(setting.main)]
    for source in config.source.values():
        found += [source.identity, source.identity.with_name(f"{source.identity.name}.pub")]
    for repository in config.repository.values():
        found.append(repository.path)
        found += map(Path, confined.places_of(repository.borg))
        if repository.passphrase_file is not None:
            found.append(repository.passphrase_file)
        if repository.passphrase_command is not None:
            found.append(Path(repository.passphrase_command[0]))
    for job in config.job.values():
        if job.ping_url_file is not None:
            found.append(job.ping_url_file)
        found += [Path(hook[0]) for hook in (job.hooks.before, job.hooks.after) if hook]
    if config.notify.urls_file is not None:
        found.append(config.notify.urls_file)
    return [*found, *_our_own()]


def _our_own() -> list[Path]:
    """Where this program lies."""
    executable = Path(sys.executable)
    if getattr(sys, "frozen", False):
        return [executable.parent, executable.resolve().parent]
    package = Path(__file__).parent.parent
    return [Path(sys.prefix), Path(sysconfig.get_path("purelib")), executable.resolve(), package]


def _access(
    if_hidden: str, else_: str | None, paths: Iterable[Path], but: Sequence[Path] = ()
) -> list[str]:
    """The lines that give access to ``paths``; none of them needs to exist.

    Where a path is a link, what it leads to is given as well.
    """
    both = [name for path in paths for name in (path, path.resolve())]
    lines = []
    for path in dict.fromkeys(both):
        if any(path.is_relative_to(given) for given in but):
            continue
        hidden = any(path.is_relative_to(top) for top in _HIDDEN)
        directive = if_hidden if hidden else else_
        if directive is not None:
            lines.append(f"{directive}={_path(path, '-')}")
    return lines


def _path(path: Path, prefix: str = "") -> str:
    text = str(path)
    if _UNTOLD.search(text):
        raise ConfigurationError(f"{text} has a character that no unit can name", "rename it")
    return _word(prefix + text)


def _word(text: str) -> str:
    """One word of a unit's value, nothing in it expanded (systemd.syntax(7))."""
    if not text.isprintable():
        raise ConfigurationError(f"{text!a} is not printable text", "no unit can have it")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"' if re.search(r"[^A-Za-z0-9_./:@%+=,-]", text) else escaped
