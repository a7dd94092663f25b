"""A container engine of the tests' own: no network, and nothing shared with the machine's."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import docker

from tests.harness.wait import until
from tests.harness.workplace import Workplace

DOCKERD = "/usr/sbin/dockerd"
CONTAINERD = "/usr/bin/containerd"
BUSYBOX = "/bin/busybox"
IMAGE = "stand-in"


class Daemon:
    """One engine; ``socket`` is where it listens, in the directory ``place``."""

    def __init__(self, workplace: Workplace) -> None:
        self.workplace = workplace
        self.place = workplace.directory("engine", mode=0o700)
        self.socket = self.place / "api.sock"
        self.address = f"unix://{self.socket}"
        self._log = (self.place / "log").open("ab")
        self._containerd_socket = self.place / "containerd.sock"
        self._containerd = self._start_containerd()
        self._process: subprocess.Popen[bytes] | None = None
        self.start()
        self.client = docker.APIClient(base_url=self.address, version="1.41")
        self.client.import_image_from_data(_image(), repository=IMAGE)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._process = self._started(
            *(DOCKERD, "--iptables=false", "--bridge=none", "--live-restore"),
            *("--data-root", self.place / "data", "--exec-root", self.place / "exec"),
            *("--pidfile", self.place / "pid", "--host", self.address),
            *("--containerd", self._containerd_socket, "--shutdown-timeout", "1"),
        )
        until(self._answers, seconds=30, what=f"the engine; see {self.place}/log")

    def _start_containerd(self) -> subprocess.Popen[bytes]:
        """Apart from dockerd, so that the latter can be killed and its containers live on."""
        config = self.place / "containerd.toml"
        config.write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
        process = self._started(
            *(CONTAINERD, "--config", config, "--address", self._containerd_socket),
            *("--root", self.place / "containerd", "--state", self.place / "state"),
        )
        until(self._containerd_socket.exists, seconds=30, what="containerd")
        return process

    def _started(self, *command: str | Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.place / "log").read_text()[-2000:]
        done = subprocess.run(
            ["/usr/bin/docker", "--host", self.address, "ps"], capture_output=True, check=False
        )
        return done.returncode == 0

    def kill(self) -> None:
        """End it as a crash would; its containers live on."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def remove_containers(self) -> None:
        """Away with all of them."""
        for found in self.client.containers(all=True):
            self.client.remove_container(found["Id"], force=True, v=True)

    def run(self, name: str, command: list[str], **options: Any) -> str:
        """Start a container; ``command`` names a path of this test run, so that it is cleared."""
        limits = self.client.create_host_config(network_mode="none", **options.pop("host", {}))
        made = self.client.create_container(
            IMAGE, command, name=name, host_config=limits, **options
        )
        self.client.start(made["Id"])
        return str(made["Id"])

    def close(self) -> None:
        """Stop it and all it runs."""
        self.remove_containers()
        self.client.close()
        assert self._process is not None
        self._process.terminate()
        self._process.wait(timeout=30)
        self._containerd.terminate()
        self._containerd.wait(timeout=30)
        self._log.close()


def _image() -> bytes:
    """busybox, and links to what is mounted into each container from the machine itself."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.add(os.path.realpath(BUSYBOX), "busybox/busybox")
        for place in ("etc", "proc", "root", "tmp", "usr"):
            entry = tarfile.TarInfo(place)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for name in ("bin", "lib", "lib64", "sbin"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, f"usr/{name}"
            archive.addfile(entry)
        passwd = b"root:x:0:0:root:/root:/bin/sh\n"
        entry = tarfile.TarInfo("etc/passwd")
        entry.size = len(passwd)
        archive.addfile(entry, io.BytesIO(passwd))
    return content.getvalue()
