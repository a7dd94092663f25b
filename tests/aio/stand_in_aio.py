"""A stand-in for Nextcloud AIO: its containers, its configuration and its script."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.aio.daemon import Daemon

MASTER = "nextcloud-aio-mastercontainer"
BACKUP = "nextcloud-aio-borgbackup"
WATCHTOWER = "nextcloud-aio-watchtower"
APPS = ("nextcloud-aio-apache", "nextcloud-aio-database", "nextcloud-aio-nextcloud")
SCRIPTS = Path(__file__).parent / "stand_in"
WWW_DATA = 33


class StandIn:
    """Set up and running. A test takes its ``knobs`` to have it misbehave."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.root = Path(tempfile.mkdtemp(prefix="aio", dir=daemon.place))
        self.data = self.root / "volume/data"
        self.data.mkdir(parents=True)
        self.knobs = self.root / "knobs"
        for place in ("knobs", "dump", "cache", "elsewhere", "far", "first", "second", "scripts"):
            (self.root / place).mkdir()
        # The place of the project may be one that only root reaches.
        shutil.copytree(SCRIPTS, self.root / "scripts", dirs_exist_ok=True)
        self.configuration = self.data / "configuration.json"
        self.write(
            {
                "AIO_VERSION": "12",
                "wasStartButtonClicked": True,
                "secrets": {"BORGBACKUP_PASSWORD": "of-aio-itself"},
                "timezone": "Europe/Zürich",
                "empty": [],
                "borg_backup_host_location": str(self.root / "first"),
                "borg_remote_repo": "",
                "backup-mode": "backup",
            }
        )
        self.environment = {
            "AIO_ROOT": str(self.root),
            "AIO_SCRIPTS": str(self.root / "scripts"),
            "DOCKER_HOST": daemon.address,
            "ENGINE": str(daemon.place),
        }
        # The first process of a container names this test run, by which a later one clears it away.
        self.idle = ["sh", "-c", "while sleep 3600; do :; done", str(self.root)]
        for name in APPS:
            self.container(name, self.idle)
        self.watchtower()
        self.mastercontainer()

    def write(self, content: dict[str, Any]) -> None:
        """Have AIO's configuration be this."""
        self.configuration.write_text(json.dumps(content, indent=4))
        for path in (self.data, self.configuration):
            os.chown(path, WWW_DATA, 0)
        self.configuration.chmod(0o640)

    def read(self) -> dict[str, Any]:
        """AIO's configuration."""
        found: dict[str, Any] = json.loads(self.configuration.read_text())
        return found

    def change(self, **values: Any) -> None:
        """Alter some of its keys."""
        self.write(self.read() | values)

    def turn(self, knob: str, text: str = "") -> None:
        """Have the stand-in misbehave that way."""
        (self.knobs / knob).write_text(text)

    def release(self, knob: str) -> None:
        """Have that end."""
        (self.knobs / knob).unlink()

    def calls(self) -> list[str]:
        """How the script was called: number of arguments, the arguments, its five switches."""
        file = self.knobs / "calls"
        return file.read_text().splitlines() if file.exists() else []

    def container(self, name: str, command: list[str], **options: Any) -> str:
        """Start a container of the stand-in's."""
        binds = ["/usr:/usr:ro", f"{self.root}/knobs:/knobs", f"{self.root}/scripts:/scripts:ro"]
        binds += [f"{self.daemon.place}:{self.daemon.place}"]
        return self.daemon.run(
            name, command, host={"binds": binds}, environment=self.environment, **options
        )

    def watchtower(self) -> None:
        """Have the updater there, stopped."""
        made = self.daemon.client.create_container(
            "stand-in",
            ["sh", "/scripts/watchtower.sh", str(self.root)],
            name=WATCHTOWER,
            environment=self.environment,
            host_config=self.daemon.client.create_host_config(
                network_mode="none",
                binds=[
                    "/usr:/usr:ro",
                    f"{self.root}/knobs:/knobs",
                    f"{self.root}/scripts:/scripts:ro",
                    f"{self.daemon.place}:{self.daemon.place}",
                ],
            ),
        )
        assert made["Id"]

    def mastercontainer(self) -> None:
        """Make it anew."""
        subprocess.run(
            [self.root / "scripts/mastercontainer.sh"],
            env={"PATH": "/usr/bin"} | self.environment,
            check=True,
            capture_output=True,
        )

    def archives(self, target: str) -> list[str]:
        """Names of the archives in the repository of ``first``, ``second`` or ``far``."""
        repository = self.root / target / "borg"
        if not repository.exists():
            return []
        done = subprocess.run(
            ["/usr/bin/borg", "list", "--short", repository],
            env={
                "PATH": "/usr/bin",
                "BORG_PASSPHRASE": "of-aio-itself",
                "BORG_BASE_DIR": str(self.root / "looking"),
                "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
            },
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.split()

    def close(self) -> None:
        """Away with it."""
        self.daemon.remove_containers()
        shutil.rmtree(self.root)
