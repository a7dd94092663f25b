"""The frozen bundle: what it grants, what it needs, and that it can be built again."""

from __future__ import annotations

import grp
import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.harness.builds import CAPABILITY, PROGRAMS, PROJECT, frozen_bundle

# security.capability, version 2 with the effective bit: CAP_DAC_READ_SEARCH is bit 2 of the
# permitted set (capabilities(7), include/uapi/linux/capability.h).
GRANTED = bytes.fromhex("0100000204000000000000000000000000000000")


def _capability(path: Path) -> bytes | None:
    try:
        return os.getxattr(path, "security.capability")
    except OSError:
        return None


@pytest.mark.needs_root
def test_the_capability_is_on_the_forced_command_alone() -> None:
    bundle = frozen_bundle()
    files = [path for path in bundle.rglob("*") if path.is_file() and not path.is_symlink()]
    assert [path.name for path in files if _capability(path) is not None] == ["borg-pull-source"]
    program = bundle / "borg-pull-source"
    assert _capability(program) == GRANTED, CAPABILITY
    status = program.stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o750)
    assert grp.getgrgid(status.st_gid).gr_name == "borg-pull"


@pytest.mark.needs_root
def test_nobody_else_can_change_a_file_of_it() -> None:
    bundle = frozen_bundle()
    for path in [bundle, *bundle.rglob("*")]:
        status = path.lstat()
        assert status.st_uid == 0, path
        assert path.is_symlink() or not status.st_mode & 0o022, path


@pytest.mark.needs_root
def test_it_runs_without_network_compiler_or_environment() -> None:
    """Control: the same command with a program that does need the path."""
    alone = ["unshare", "--net", "env", "-i", "PATH=/nonexistent"]
    admin = [str(frozen_bundle() / "borg-pull-admin"), "--version"]
    done = subprocess.run([*alone, *admin], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    wrap = [str(frozen_bundle() / "borg-pull-socket-wrap")]
    done = subprocess.run([*alone, *wrap], capture_output=True, text=True, check=False)
    assert done.returncode == 64
    assert "BORGSOCKETWRAP_SOCKET_PATH is not set" in done.stderr
    control = subprocess.run([*alone, "gcc", "--version"], capture_output=True, check=False)
    assert control.returncode == 127


def test_every_program_is_in_it() -> None:
    bundle = frozen_bundle()
    assert sorted(path.name for path in bundle.iterdir() if path.is_file()) == sorted(PROGRAMS)


def test_the_pure_form_of_tomli_is_frozen() -> None:
    """The compiled one would import ``re`` for every request, and the shim could not stop it."""
    compiled = [path for path in frozen_bundle().rglob("*.so*") if "mypyc" in path.name]
    assert compiled == []


@pytest.mark.needs_root
def test_two_builds_are_the_same(tmp_path: Path) -> None:
    """Of the committed state, as ``docs/building.md`` promises; no file is excepted."""
    done = subprocess.run(
        [PROJECT / "packaging/compare-builds.sh", tmp_path],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={name: value for name, value in os.environ.items() if name != "MAKEFLAGS"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the two builds are the same" in done.stdout


def test_an_unserved_request_loads_no_slow_module(tmp_path: Path) -> None:
    """The start-up budget: what costs milliseconds is not loaded before it is needed.

    Measured from source, where the interpreter can be asked; the frozen programs hold the same
    modules.
    """
    script = (
        "import json, sys\n"
        "before = set(sys.modules)\n"
        "import borg_pull.source.main\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))\n"
    )
    loaded = _loaded_by(script, tmp_path)
    slow = {"re", "typing", "enum", "json", "datetime", "subprocess", "logging", "socket", "signal"}
    slow |= {"dataclasses", "inspect", "hashlib", "shlex", "pathlib", "functools", "collections"}
    assert loaded & slow == set()
    assert "borg_pull.source.judge" in loaded


# What is in the bundle for the backup server's program alone (PULL_NEEDS in the spec).
FOR_ONE_PROGRAM = {"_ssl", "asyncio", "ctypes", "sqlite3", "ssl", "typing_extensions", "xml"}


def test_what_the_backup_server_needs_costs_the_admins_program_nothing(tmp_path: Path) -> None:
    """The control: what does import one of them is seen to."""
    script = (
        "import json, sys\n"
        "from click.testing import CliRunner\n"
        "from borg_pull.admin.main import cli\n"
        f"config = {str(PROJECT / 'tests/samples/good/every-key.toml')!r}\n"
        "for command in (['check', config], ['explain', config, 'luna', 'hello'],\n"
        "                ['audit', 'show', '/dev/null'], ['authorized-keys', config]):\n"
        "    CliRunner().invoke(cli, command)\n"
        "print(json.dumps(sorted(sys.modules)))\n"
    )
    loaded = _loaded_by(script, tmp_path)
    assert loaded & FOR_ONE_PROGRAM == set()
    assert "borg_pull.admin.audit" in loaded
    assert "sqlite3" in _loaded_by(f"import sqlite3\n{script}", tmp_path)


def test_the_frozen_notification_library_finds_its_services() -> None:
    """It looks for files; a service whose module has no such file is unknown to it."""
    plugins = frozen_bundle() / "_internal/apprise/plugins"
    modules = {path.stem for path in plugins.glob("*.pyc")} - {"__init__", "base"}
    assert {"discord", "ntfy"} <= modules
    assert modules <= {path.name for path in plugins.iterdir() if not path.suffix}
    assert (plugins / "matrix").is_dir()


def _loaded_by(script: str, cwd: Path) -> set[str]:
    """The list of names that ``script`` prints."""
    done = subprocess.run(
        [
            PROJECT / ".venv/bin/python",
            "-I",
            "-S",
            "-c",
            f"import sys; sys.path[:0] = {_path()}\n{script}",
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=cwd,
    )
    return set(json.loads(done.stdout))


def _path() -> list[str]:
    site = subprocess.run(
        [
            PROJECT / ".venv/bin/python",
            "-c",
            "import sysconfig; print(sysconfig.get_path('purelib'))",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return [str(PROJECT), site.stdout.strip()]
