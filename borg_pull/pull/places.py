"""Where things are kept on this host: all of it in directories of mode 0700."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from borg_pull.errors import ConfigurationError
from borg_pull.pull.config import Settings
from borg_pull.pull.fields import runtime_dir_fault


@dataclass(frozen=True)
class Places:
    """The directories of one configuration and what lies in them."""

    state_dir: Path
    """What must outlive a restart of the machine."""
    runtime_dir: Path
    """What running pulls need: private directories, sockets."""

    @classmethod
    def of(cls, settings: Settings) -> Places:
        """The places that ``settings`` name."""
        runtime = settings.runtime_dir
        if runtime is None:
            session = os.environ.get("XDG_RUNTIME_DIR")
            runtime = Path(session) / "borg-pull" if session else settings.state_dir / "run"
        return cls(settings.state_dir, runtime)

    @property
    def ledger(self) -> Path:
        """The data base of all runs."""
        return self.state_dir / "ledger.sqlite"

    @property
    def logs(self) -> Path:
        """Directory of the logs of single runs."""
        return self.state_dir / "logs"

    @property
    def locks(self) -> Path:
        """Directory of the files that processes lock against each other."""
        return self.state_dir / "locks"

    @property
    def keys(self) -> Path:
        """Directory of the private keys, one a source."""
        return self.state_dir / "keys"

    @property
    def known_hosts(self) -> Path:
        """The pinned host keys of the sources (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT")."""
        return self.state_dir / "known_hosts"

    def prepare(self) -> None:
        """Make the directories that are missing, and check those that are there.

        Raises ConfigurationError for one that others could look into, OSError.
        """
        fault = runtime_dir_fault(self.runtime_dir)
        if fault is not None:
            raise ConfigurationError(
                f"{self.runtime_dir} {fault}", "set settings.runtime_dir to a shorter one"
            )
        for place in (self.state_dir, self.runtime_dir, self.logs, self.locks, self.keys):
            private_directory(place)


def private_directory(path: Path) -> None:
    """Make ``path`` unless it is there; then it must be this user's alone.

    Raises ConfigurationError, OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir(mode=0o700)
        # mkdir's mode is subject to the umask, which may be stricter than works.
        path.chmod(0o700)
    except FileExistsError:
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode):
            raise ConfigurationError(f"{path} is not a directory") from None
        if status.st_uid != os.geteuid():
            raise ConfigurationError(
                f"{path} belongs to uid {status.st_uid}, not to this user",
                "run borg-pull as the user that owns it",
            ) from None
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigurationError(
                f"{path} is open to others", f"run chmod 0700 {path}"
            ) from None
