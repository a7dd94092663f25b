"""A pull that stands still in the middle, for a fault to befall it, and what must hold after."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from borg_pull.pull.ledger import Run
from tests.harness import builds, processes
from tests.harness.peer import Repository
from tests.harness.proxy import Proxy
from tests.harness.source import toml
from tests.harness.wait import until
from tests.pull.conftest import BackupServer

DATA = 2 << 20  # bytes from the source: well into the data
SIZE = 8 << 20
SECONDS = 60.0


@dataclass
class Faulty:
    """A backup server with one job, whose pulls go through a network of ours."""

    server: BackupServer
    repository: Repository
    proxy: Proxy
    data: Path
    environment: dict[str, str] = field(default_factory=dict)

    def command(self, *arguments: str) -> list[str]:
        """``borg-pull`` with the configuration as it is now."""
        path = self.server.directory / "pull.toml"
        document = {"settings": {"state_dir": str(self.server.directory)}} | self.server.document
        path.write_text(toml(document))
        path.chmod(0o600)
        if self.server.site.build.programs == "frozen":
            program = [str(builds.frozen_bundle() / "borg-pull")]
        else:
            program = [sys.executable, "-m", "borg_pull.pull"]
        return [*program, "--config", str(path), *arguments]

    @contextmanager
    def held(self, at: int = DATA, *, words: tuple[str, ...] = ("run", "job")) -> Iterator[Pulling]:
        """A pull whose network stands still after ``at`` bytes from the source."""
        self.proxy.hold_after = at
        pulling = self.start(*words)
        try:
            self.proxy.held()
            yield pulling
        finally:
            self.proxy.release()
            pulling.process.kill()
            pulling.process.communicate()

    def start(self, *words: str) -> Pulling:
        """``borg-pull WORDS``, started."""
        return Pulling(
            subprocess.Popen(
                self.command(*words),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | self.environment,
                start_new_session=True,
            ),
            self,
        )

    def run(self, *, code: int, words: tuple[str, ...] = ("run", "job")) -> str:
        """Run to the end, which must be ``code``; what it said."""
        return self.start(*words).ended(code)

    def output(self, *words: str, code: int) -> str:
        """What ``borg-pull WORDS`` prints; it must end with ``code``."""
        pulling = self.start(*words)
        stdout, stderr = pulling.process.communicate(timeout=SECONDS)
        assert pulling.process.returncode == code, (stdout, stderr)
        return stdout

    def last(self) -> Run:
        """The job's last pull on record."""
        run = self.server.ledger.last("job")
        assert run is not None
        return run

    def assert_failed(self, *words: str, outcome: str = "failure") -> None:
        """The last pull is on record as one that failed, and why; nothing of it counts as done."""
        run = self.last()
        assert run.outcome == outcome, run
        assert run.archive_id is None
        assert run.error is not None
        for word in words:
            assert word in run.error, run.error
        assert "\n" not in run.error

    def assert_nothing_left(self, *, but_the_socket: bool = False) -> None:
        """No process, socket, directory or lock is left, here or at the source."""
        until(lambda: not self._ours(), seconds=SECONDS, what=f"the end of {self._ours()}")
        runtime = self.server.directory / "run"
        # A file there notes when people were told that nothing can be recorded.
        assert not runtime.exists() or all(one.is_file() for one in runtime.iterdir())
        assert not self.repository.locked()
        self.assert_nothing_left_at_the_source(but_the_socket=but_the_socket)

    def assert_nothing_left_at_the_source(self, *, but_the_socket: bool = False) -> None:
        """No process and no socket."""
        source = self.server.site.source
        source.assert_nothing_left("luna")
        assert but_the_socket or not list(source.socket_dir.glob("*.sock"))
        until(
            lambda: not processes.unreaped(self.server.site.account.uid),
            seconds=SECONDS,
            what="the killed processes to be reaped",
        )

    def _ours(self) -> list[processes.Process]:
        return [
            process
            for process in processes.snapshot()
            if process.pid != os.getpid()
            and (
                str(self.server.directory) in process.command
                or str(self.repository.path) in process.command
            )
        ]

    def assert_next_run_succeeds(self, archives: int = 1) -> None:
        """All is as if nothing had been: one more pull makes one more archive, and all is sound."""
        before = len(self.repository.archives())
        assert before == archives - 1
        said = self.run(code=0)
        run = self.last()
        assert (run.outcome, run.error) == ("success", None), said
        assert self.repository.archives()[-1] == run.archive
        assert len(self.repository.archives()) == archives
        self.repository.check()
        self.assert_nothing_left()


@dataclass
class Pulling:
    """A ``borg-pull`` that runs."""

    process: subprocess.Popen[str]
    faulty: Faulty

    def ended(self, code: int) -> str:
        """Wait for its end, which must be ``code``; what it said."""
        stdout, stderr = self.process.communicate(timeout=SECONDS)
        assert self.process.returncode == code, (self.process.returncode, stdout, stderr)
        assert "Traceback" not in stderr
        return stderr

    def child(self, wanted: Callable[[processes.Process], bool]) -> processes.Process:
        """The process below it that is wanted."""
        return until(
            lambda: next(filter(wanted, processes.descendants(self.process.pid)), None),
            seconds=SECONDS,
            what="a process of borg-pull's",
        )

    def kill(self, victim: str) -> None:
        """Kill -9 one of those that take part."""
        if victim == "borg-pull":
            self.process.send_signal(signal.SIGKILL)
        elif victim == "ssh":
            self.child(lambda one: one.name == "ssh").send(signal.SIGKILL)
        elif victim == "borg serve":
            self.child(lambda one: " serve " in one.command).send(signal.SIGKILL)
        else:
            borg = self.at_source(lambda one: " create " in one.command and "::" in one.command)
            parent = processes.read(borg.parent)
            assert parent is not None
            {"remote borg": borg, "forced command": parent}[victim].send(signal.SIGKILL)

    def at_source(self, wanted: Callable[[processes.Process], bool]) -> processes.Process:
        """The process at the source that is wanted."""
        source = self.faulty.server.site.source
        return until(
            lambda: next(filter(wanted, reversed(source.processes())), None),
            seconds=SECONDS,
            what="a process at the source",
        )
