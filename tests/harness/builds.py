"""What is under test: a build of the programs, and the borg they run.

Frozen bundle: ``BORG_PULL_FROZEN``, else ``dist/borg-pull``. Borg 1.2: ``BORG_PULL_BORG12``, else
Debian's. Borg 1.4: ``BORG_PULL_BORG14``, else what ``packaging/borg14.sh`` builds and prints.
A missing piece fails the test that needs it; it never skips.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from .workplace import IS_ROOT, Workplace

PROJECT = Path(__file__).resolve().parents[2]
PROGRAMS = {
    "borg-pull-source": "borg_pull.source.main",
    "borg-pull-socket-wrap": "borg_pull.wrap.main",
    "borg-pull-admin": "borg_pull.admin.main",
    "borg-pull-aio": "borg_pull.aio.main",
    "borg-pull": "borg_pull.pull.main",
}
CAPABILITY = "cap_dac_read_search=ep"


class MissingPieceError(AssertionError):
    """Something the tests need has not been built or installed."""


@dataclass(frozen=True)
class Build:
    """One way the programs are built, and one version of borg: ``source`` or ``frozen``."""

    programs: str
    borg: str

    @property
    def name(self) -> str:
        """Its name in test ids."""
        return f"{self.programs}-borg{self.borg}"


SOURCE_12 = Build("source", "1.2")
SOURCE_14 = Build("source", "1.4")
FROZEN_12 = Build("frozen", "1.2")
FROZEN_14 = Build("frozen", "1.4")
EVERY = (SOURCE_12, SOURCE_14, FROZEN_12, FROZEN_14)
# Both builds and both borgs, once each: for behaviour that does not depend on the pairing.
PAIRS = (SOURCE_12, FROZEN_14)
FROZEN = (FROZEN_12, FROZEN_14)


@dataclass(frozen=True)
class Programs:
    """The programs of one build, where the source's account can start them."""

    directory: Path
    capable: bool
    loads: tuple[Path, ...]
    """What the wrap loads from outside the places that confined programs may read anyway."""

    @property
    def source(self) -> Path:
        """The forced command."""
        return self.directory / "borg-pull-source"

    @property
    def wrap(self) -> Path:
        """The socket wrap."""
        return self.directory / "borg-pull-socket-wrap"

    @property
    def admin(self) -> Path:
        """The admin's program."""
        return self.directory / "borg-pull-admin"

    @property
    def aio(self) -> Path:
        """The companion."""
        return self.directory / "borg-pull-aio"

    @property
    def pull(self) -> Path:
        """The backup server's program."""
        return self.directory / "borg-pull"


@functools.cache
def borg(version: str) -> Path:
    """The borg program of ``version``. Raises MissingPieceError when there is none."""
    if version == "1.2":
        path = Path(os.environ.get("BORG_PULL_BORG12", "/usr/bin/borg"))
    else:
        path = _borg14()
    if not path.exists():
        raise MissingPieceError(f"no borg {version} at {path}")
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    if said.returncode != 0 or not said.stdout.startswith(f"borg {version}."):
        raise MissingPieceError(f"{path} is not borg {version}: {said.stdout}{said.stderr}")
    return path


def _borg14() -> Path:
    chosen = os.environ.get("BORG_PULL_BORG14")
    if chosen:
        return Path(chosen)
    script = PROJECT / "packaging/borg14.sh"
    if not script.exists():
        raise MissingPieceError("set BORG_PULL_BORG14 to a borg 1.4")
    built = subprocess.run(
        [script], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if built.returncode != 0:
        raise MissingPieceError(f"{script.name} failed:\n{built.stderr[-2000:]}")
    return Path(built.stdout.strip().splitlines()[-1])


def frozen_bundle() -> Path:
    """The frozen bundle as it was built. Raises MissingPieceError when there is none."""
    bundle = Path(os.environ.get("BORG_PULL_FROZEN", PROJECT / "dist/borg-pull"))
    if not (bundle / "borg-pull-source").exists():
        raise MissingPieceError(f"no frozen bundle at {bundle}; `make frozen` builds it")
    return bundle


def install(programs: str, workplace: Workplace, *, capable: bool) -> Programs:
    """A copy of one build below ``workplace``, owned as on a real source.

    ``capable`` grants the frozen forced command its file capability; a Python script cannot
    carry one, and without root none can be granted.
    """
    if programs == "frozen":
        return _install_frozen(workplace, capable=capable)
    if capable:
        raise ValueError("a script cannot carry a file capability")
    return _install_from_source(workplace)


def _install_frozen(workplace: Workplace, *, capable: bool) -> Programs:
    directory = workplace.directory("frozen")
    bundle = frozen_bundle()
    shutil.copytree(bundle, directory, symlinks=True, dirs_exist_ok=True)
    if IS_ROOT:
        for path in [directory, *directory.rglob("*")]:
            os.chown(path, 0, 0, follow_symlinks=False)
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & ~0o022)
    program = directory / "borg-pull-source"
    program.chmod(0o755)
    if capable:
        shutil.chown(program, group=workplace.group)
        program.chmod(0o750)
        done = subprocess.run(
            ["setcap", CAPABILITY, program], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise MissingPieceError(f"setcap failed: {done.stderr.strip()}")
    return Programs(directory, capable=capable, loads=())


def _install_from_source(workplace: Workplace) -> Programs:
    """The package copied, so that other accounts reach it wherever the project lies."""
    directory = workplace.directory("source")
    library = directory / "lib"
    shutil.copytree(
        PROJECT / "borg_pull",
        library / "borg_pull",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for program, module in PROGRAMS.items():
        launcher = directory / program
        launcher.write_text(
            f"#!{sys.executable} -I\n"
            "import sys\n"
            f"sys.path.insert(0, {str(library)!r})\n"
            f"from {module} import main\n"
            "sys.exit(main())\n"
        )
        launcher.chmod(0o755)
    return Programs(directory, capable=False, loads=(directory, Path(sys.prefix)))
