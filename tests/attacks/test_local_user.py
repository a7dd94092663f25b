"""A local user who may start the program with the capability gets no file content by it (C).

Threat: an account in the program's group, or any where the administrator widened its mode, starts
it with a configuration, environment, arguments, descriptors, limits, namespaces and a debugger of
his own. All that stands between him and every file is the program's own care, so each run has the
bait laid out: the request, the forwarded socket and a "borg" of his that prints a file of root's.
The control is the same run under a configuration of root's, which does print it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import processes
from tests.harness.builds import FROZEN_14
from tests.harness.fixtures import SiteMaker
from tests.harness.site import Site
from tests.harness.source import toml
from tests.harness.workplace import Account

pytestmark = pytest.mark.needs_root

CALLER = Path(__file__).with_name("hostile_caller.py")
NOBODY = 65534
CONTENT = "what only root may read"
NOTHING_GAINED = (CONTENT.encode(), b"the stand-in ran")
INFINITY = resource.RLIM_INFINITY


@pytest.fixture
def site(make_site: SiteMaker) -> Site:
    """One build is enough: which borg it would have been decides nothing here."""
    return make_site(FROZEN_14)


class Stranger:
    """An account of the source's that may start the program, and the bait laid out for it."""

    def __init__(self, site: Site, account: Account) -> None:
        self.site = site
        self.account = account
        self.program = site.source.programs.source
        self.own = self._directory("strangers")
        self.secrets = site.source.directory / "secrets"
        self.secrets.mkdir(mode=0o700)
        self.secret = self.secrets / "file"
        self.secret.write_text(CONTENT)
        self.secret.chmod(0o600)
        self.caller = site.source.directory / CALLER.name
        self.caller.write_text(CALLER.read_text())
        self._listening: socket.socket | None = None
        self._plans = 0

    def _directory(self, name: str) -> Path:
        path = self.site.source.directory / name
        path.mkdir(mode=0o700)
        os.chown(path, self.account.uid, self.account.gid)
        return path

    def listen(self) -> None:
        """As a forwarding would: the listener is above the program, so it is this session's. A run
        that is served removes the socket's file."""
        self.close()
        path = self.own / "x.sock"
        path.unlink(missing_ok=True)
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        os.chown(path, self.account.uid, self.account.gid)

    def close(self) -> None:
        if self._listening is not None:
            self._listening.close()

    def file(self, name: str, content: str = "", mode: int = 0o644) -> Path:
        """A file of his own."""
        path = self.own / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(mode)
        self._give(path)
        return path

    def _give(self, path: Path) -> None:
        while path != self.own:
            os.chown(path, self.account.uid, self.account.gid, follow_symlinks=False)
            path = path.parent

    def stand_in(self, path: Path, waits_for: Path | None = None) -> Path:
        """A "borg" at ``path`` that prints the secret, once the file ``waits_for`` is there."""
        wait = "" if waits_for is None else f"until [ -e {waits_for} ]; do sleep 0.02; done\n"
        path.write_text(f"#!/bin/sh\n{wait}echo the stand-in ran\nenv\nexec cat {self.secret}\n")
        path.chmod(0o755)
        return path

    def text(self, borg: Path) -> str:
        """A configuration that grants the secret."""
        return toml(
            {
                "runtime": {
                    "home": str(self.own),
                    "socket_dir": str(self.own),
                    "borg": str(borg),
                },
                "confine": {"landlock": "off"},
                "client": {"x": {"paths": [str(self.secrets)]}},
            }
        )

    def configuration(self) -> Path:
        """One of his own making."""
        stand_in = self.stand_in(self.own / "borg")
        self._give(stand_in)
        return self.file("config.toml", self.text(stand_in))

    def roots_configuration(self, waits_for: Path | None = None) -> Path:
        """The same, of root's making."""
        stand_in = self.stand_in(self.site.source.directory / "borg", waits_for)
        return self.site.source.write_configuration(self.text(stand_in), "config.toml")

    def plan(self, configuration: Path | str, **plan: object) -> dict[str, Any]:
        """What hostile_caller.py is to do: a whole honest run, but for what ``plan`` says."""
        environment = {
            "SSH_ORIGINAL_COMMAND": f"create /r a {self.secrets}",
            "SSH_CONNECTION": "127.0.0.1 1 127.0.0.1 22",
        }
        chosen = plan.pop("environment", {})
        assert isinstance(chosen, dict)
        return {
            "program": str(self.program),
            "arguments": ["borg-pull-source", str(configuration), "x"],
            "environment": environment | chosen,
            **plan,
        }

    def command(self, plan: dict[str, Any]) -> list[str]:
        """The command that carries out ``plan``."""
        self._plans += 1
        path = self.caller.with_name(f"plan{self._plans}")
        path.write_text(json.dumps(plan))
        return ["/usr/bin/python3", "-I", str(self.caller), str(path)]

    def run(
        self, plan: dict[str, Any], *, gid: int | None = None, stdin: int | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Carry out ``plan`` as him."""
        self.listen()
        return self.run_command(self.command(plan), gid=gid, stdin=stdin)

    def run_command(
        self,
        command: list[str],
        *,
        gid: int | None = None,
        stdin: int | None = None,
        environment: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            capture_output=True,
            env=environment or {"PATH": "/usr/bin:/bin"},
            user=self.account.uid,
            group=self.account.gid if gid is None else gid,
            extra_groups=[],
            timeout=60,
            check=False,
        )

    def assert_nothing_gained(self, done: subprocess.CompletedProcess[bytes]) -> None:
        """Neither what came out nor what he left anywhere holds the content."""
        left = [file for place in (self.own, *self._left_elsewhere()) for file in _files(place)]
        said = done.stdout + done.stderr + b"".join(file.read_bytes() for file in left)
        assert not any(gain in said for gain in NOTHING_GAINED), said
        assert self.secret.read_text() == CONTENT

    def _left_elsewhere(self) -> Iterator[Path]:
        for place in ("/tmp", "/var/tmp", "/dev/shm"):
            for entry in os.scandir(place):
                # Others of this machine's come and go there.
                with contextlib.suppress(FileNotFoundError):
                    if entry.stat(follow_symlinks=False).st_uid == self.account.uid:
                        yield Path(entry.path)


def _files(place: Path) -> list[Path]:
    """The regular files that are, or are below, ``place``, the stand-ins left out."""
    found = [path for path in (place, *place.rglob("*")) if path.is_file()]
    return [path for path in found if not path.is_symlink() and path.name != "borg"]


@pytest.fixture
def stranger(site: Site) -> Iterator[Stranger]:
    account = site.installations.take_account()
    made = Stranger(site, account)
    yield made
    made.close()
    assert not processes.of_account(account.uid)
    site.installations.return_account(account)


def test_control_a_configuration_of_roots_is_obeyed(stranger: Stranger) -> None:
    """So that what the other tests find refused is refused for its owner, and nothing else."""
    done = stranger.run(stranger.plan(stranger.roots_configuration()))
    assert (done.returncode, done.stderr) == (0, b"")
    assert all(gain in done.stdout for gain in NOTHING_GAINED)


def test_the_real_configuration_is_of_no_use_to_him(stranger: Stranger) -> None:
    """It names directories of the account's."""
    site = stranger.site
    site.source.write_whitelist({"x": {"paths": [str(stranger.secrets)]}})
    for path in (site.source.configuration, site.source.directory):
        path.chmod(path.stat().st_mode | 0o005)
    done = stranger.run(stranger.plan(site.source.configuration))
    assert done.returncode == 78
    assert f"{site.source.home} belongs to uid {site.account.uid}".encode() in done.stderr
    stranger.assert_nothing_gained(done)
    assert list(site.source.home.iterdir()) == []


def test_only_the_group_may_start_it(stranger: Stranger) -> None:
    done = stranger.run(stranger.plan(stranger.roots_configuration()), gid=NOBODY)
    assert done.returncode == 126
    stranger.assert_nothing_gained(done)


def _relative(stranger: Stranger) -> tuple[str, dict[str, Any]]:
    stranger.configuration()
    return "config.toml", {"directory": str(stranger.own)}


def _link(stranger: Stranger) -> tuple[str, dict[str, Any]]:
    link = stranger.own / "link"
    link.symlink_to(stranger.roots_configuration())
    return str(link), {}


def _roots_file_in_his_directory(stranger: Stranger) -> tuple[str, dict[str, Any]]:
    path = stranger.own / "roots.toml"
    path.write_text(stranger.roots_configuration().read_text())
    return str(path), {}


def _through_the_program_directory(stranger: Stranger) -> tuple[str, dict[str, Any]]:
    stranger.configuration()
    return f"{stranger.program.parent}/../{stranger.own.parent.name}/strangers/config.toml", {}


def _fifo(stranger: Stranger) -> tuple[str, dict[str, Any]]:
    os.mkfifo(stranger.own / "fifo")
    return str(stranger.own / "fifo"), {}


def _by_descriptor(path: str) -> Callable[[Stranger], tuple[str, dict[str, Any]]]:
    return lambda stranger: (path, {"descriptors": {"7": str(stranger.configuration())}})


CONFIGURATIONS = {
    "his own": lambda stranger: (str(stranger.configuration()), {}),
    "relative": _relative,
    "link to root's": _link,
    "root's file, his directory": _roots_file_in_his_directory,
    "with dots": _through_the_program_directory,
    "fifo": _fifo,
    "device": lambda stranger: ("/dev/zero", {}),
    "directory": lambda stranger: (str(stranger.own), {}),
    "standard input": lambda stranger: ("/dev/stdin", {}),
    "/dev/fd": _by_descriptor("/dev/fd/7"),
    "/proc/self/fd": _by_descriptor("/proc/self/fd/7"),
    "/proc/self/cmdline": lambda stranger: ("/proc/self/cmdline", {}),
    "through /proc/self/cwd": lambda stranger: (
        "/proc/self/cwd/config.toml",
        {"directory": str(stranger.configuration().parent)},
    ),
    "through /proc/self/root": lambda stranger: (
        f"/proc/self/root{stranger.configuration()}",
        {},
    ),
    "empty": lambda stranger: ("", {"directory": str(stranger.configuration().parent)}),
    "long": lambda stranger: (f"/{'a/' * 3000}config.toml", {}),
}


@pytest.mark.parametrize("made", CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())
def test_no_configuration_of_his_is_obeyed(
    stranger: Stranger, made: Callable[[Stranger], tuple[str, dict[str, Any]]]
) -> None:
    path, plan = made(stranger)
    with open(stranger.configuration(), "rb") as own:
        done = stranger.run(stranger.plan(path, **plan), stdin=own.fileno())
    assert done.returncode == 78
    assert done.stderr.startswith(b"borg-pull-source: ")
    assert done.stderr.count(b"\n") == 1
    stranger.assert_nothing_gained(done)


def test_a_relative_configuration_where_there_is_no_directory(stranger: Stranger) -> None:
    gone = stranger.own / "gone"
    gone.mkdir()
    os.chown(gone, stranger.account.uid, stranger.account.gid)
    plan = stranger.plan("config.toml", directory=str(gone), removed=True)
    done = stranger.run(plan)
    assert done.returncode == 78
    assert b"the working directory cannot be told" in done.stderr


@pytest.mark.parametrize("options", ["nosuid", "suid"])
def test_no_file_of_roots_where_accounts_mount(stranger: Stranger, options: str) -> None:
    """What accounts may mount (fuse, a stick) is mounted nosuid, and says of its files what the
    account likes. Control: the same file system as only root can mount it."""
    mounted = stranger.site.source.directory / "mounted"
    mounted.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"mode=0755,{options}", "none", mounted], check=True
    )
    try:
        configuration = mounted / "config.toml"
        configuration.write_text(stranger.roots_configuration().read_text())
        configuration.chmod(0o644)
        done = stranger.run(stranger.plan(configuration))
    finally:
        subprocess.run(["umount", mounted], check=True)
    if options == "suid":
        assert done.returncode == 0
        return
    assert done.returncode == 78
    assert b"is on a file system that accounts may have made" in done.stderr
    stranger.assert_nothing_gained(done)


TITLED = """\
import ctypes, sys, time
text = open(sys.argv[1], "rb").read()
fields = open("/proc/self/stat").read().rpartition(")")[2].split()
start, end = int(fields[45]), int(fields[48])
ctypes.memset(start, 10, end - start)
ctypes.memmove(start, text, len(text))
print("ready", flush=True)
time.sleep(60)
"""


def test_no_words_of_a_process_of_roots(stranger: Stranger) -> None:
    """A set-user-ID program's /proc/PID is root's, and its title may be its caller's to choose."""
    text = stranger.roots_configuration()
    titled = subprocess.Popen(
        ["/usr/bin/python3", "-I", "-c", TITLED, text],
        env={"ROOM": "x" * 3000},
        stdout=subprocess.PIPE,
    )
    try:
        assert titled.stdout is not None
        assert titled.stdout.readline() == b"ready\n"
        path = Path(f"/proc/{titled.pid}/cmdline")
        # Control: it is root's, and word for word what root's own file holds.
        assert path.stat().st_uid == path.parent.stat().st_uid == 0
        assert path.read_text().strip() == text.read_text().strip()
        done = stranger.run(stranger.plan(path))
    finally:
        titled.kill()
        titled.communicate()
    assert done.returncode == 78
    assert b"is on a file system that accounts may have made" in done.stderr
    stranger.assert_nothing_gained(done)


# Where each variable would have a program look, below a directory of his.
ENVIRONMENTS = {
    "loader": {
        "LD_PRELOAD": "{own}/lib.so",
        "LD_AUDIT": "{own}/lib.so",
        "LD_LIBRARY_PATH": "{own}",
        "LD_LIBRARY_PATH_ORIG": "{own}",
        "LD_DEBUG": "all",
        "LD_DEBUG_OUTPUT": "{own}/ld",
        "LD_ORIGIN_PATH": "{own}",
        "LD_BIND_NOW": "1",
        "GLIBC_TUNABLES": "glibc.malloc.check=3:glibc.rtld.nns=9",
    },
    "bootloader": {
        "_PYI_ARCHIVE_FILE": "{own}/borg-pull-source",
        "_PYI_APPLICATION_HOME_DIR": "{own}/_internal",
        "_PYI_PARENT_PROCESS_LEVEL": "1",
        "_PYI_LINUX_PROCESS_NAME": "x",
        "_PYI_SPLASH_IPC": "0",
        "PYINSTALLER_RESET_ENVIRONMENT": "0",
        "PYINSTALLER_SUPPRESS_SPLASH_SCREEN": "0",
        "PYINSTALLER_STRICT_UNPACK_MODE": "0",
        "_MEIPASS2": "{own}/_internal",
    },
    "interpreter": {
        "PYTHONHOME": "{own}",
        "PYTHONPATH": "{own}",
        "PYTHONSTARTUP": "{own}/start.py",
        "PYTHONUSERBASE": "{own}",
        "PYTHONPYCACHEPREFIX": "{own}",
        "PYTHONINSPECT": "1",
        "PYTHONVERBOSE": "2",
        "PYTHONDUMPREFS": "1",
        "PYTHONDUMPREFSFILE": "{own}/refs",
        "PYTHONMALLOC": "debug",
        "PYTHONMALLOCSTATS": "1",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONIOENCODING": "utf-16",
        "PYTHONUTF8": "0",
        "PYTHONBREAKPOINT": "os.abort",
        "PYTHONWARNINGS": "error",
        "PYTHONTRACEMALLOC": "1",
        "PYTHONPLATLIBDIR": "../..{own}",
        "PYTHON_PRESITE": "start",
    },
    "C library": {
        "GCONV_PATH": "{own}",
        "LOCPATH": "{own}",
        "NLSPATH": "{own}/%N",
        "LANG": "xx_XX.UTF-16",
        "LC_ALL": "xx_XX.UTF-16",
        "LANGUAGE": "../..{own}",
        "OUTPUT_CHARSET": "X//",
        "MALLOC_TRACE": "{own}/trace",
        "MALLOC_CHECK_": "3",
        "MALLOC_PERTURB_": "165",
        "HOSTALIASES": "{own}/hosts",
        "RES_OPTIONS": "debug",
        "LOCALDOMAIN": "x",
        "NIS_PATH": "{own}",
        "TMPDIR": "{own}",
        "TZDIR": "{own}",
        "POSIXLY_CORRECT": "1",
    },
    "time zone": {"TZ": ":{secret}"},
    "time zone with dots": {"TZ": ":../../..{secret}"},
    "other programs": {
        "OPENSSL_CONF": "{own}/openssl.cnf",
        "TERMINFO": "{own}",
        "TERM": "../../..{own}/x",
        "HOME": "{own}",
        "XDG_CONFIG_HOME": "{own}",
        "XDG_CACHE_HOME": "{own}",
        "XDG_RUNTIME_DIR": "{own}",
        "BASH_ENV": "{own}/start.sh",
        "ENV": "{own}/start.sh",
        "SHELLOPTS": "xtrace",
        "IFS": "/",
        "PATH": "{own}",
        "BORG_LOGGING_CONF": "{own}/logging",
        "BORG_RSH": "{own}/program",
        "BORG_BASE_DIR": "{own}",
        "BORG_PASSCOMMAND": "{own}/program",
        "BORG_PULL_WRAP_REPORT": "{own}/report",
        "BORGSOCKETWRAP_SOCKET_PATH": "{own}/other.sock",
        "SSH_USER_AUTH": "{secret}",
    },
}


def _variables(stranger: Stranger, name: str) -> dict[str, str]:
    places = {"own": stranger.own / "planted", "secret": stranger.secret}
    return {key: value.format(**places) for key, value in ENVIRONMENTS[name].items()}


def _plant(stranger: Stranger) -> Path:
    """Something to find at each place that a variable names."""
    for name in (
        *("lib.so", "libc.so.6", "start.py", "start.sh", "program", "hosts", "openssl.cnf"),
        *("logging", "locale", "gconv-modules", "borg-pull-source", "encodings/__init__.py"),
        *("_internal/base_library.zip", "_internal/borg-pull-source.pack", "start/__init__.py"),
        *("_internal/libpython3.11.so.1.0", "lib/python3.11/encodings/__init__.py", "os.py"),
        *("xx_XX.UTF-16/LC_CTYPE", "borg_pull/__init__.py", "sitecustomize.py", "ls", "cat"),
    ):
        stranger.file(f"planted/{name}", "#!/bin/sh\necho the planted file ran\n", 0o755)
    return stranger.own / "planted"


class Watch:
    """What is opened, made or read in a directory and all below it, or of one file (inotify(7))."""

    _ACCESS, _OPEN, _CREATE = 0x1, 0x20, 0x100

    def __init__(self, *places: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._names: dict[int, Path] = {}
        mask = self._ACCESS | self._OPEN | self._CREATE
        for place in places:
            below = [path for path in place.rglob("*") if path.is_dir()] if place.is_dir() else []
            for path in (place, *below):
                number = libc.inotify_add_watch(self._descriptor, os.fsencode(path), mask)
                assert number > 0
                self._names[number] = path

    def seen(self) -> list[str]:
        """Path of each thing touched since the last call, as often as it was."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while events := os.read(self._descriptor, 65536):
                while events:
                    number, _mask, _cookie, length = struct.unpack_from("iIII", events)
                    name = events[16 : 16 + length].rstrip(b"\0").decode()
                    found.append(str(self._names[number] / name))
                    events = events[16 + length :]
        return sorted(found)

    def close(self) -> None:
        os.close(self._descriptor)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_nothing_is_looked_for_where_his_environment_says(stranger: Stranger, name: str) -> None:
    """Under root's configuration, so that the whole run comes to feel his variables."""
    configuration = stranger.roots_configuration()
    planted = _plant(stranger)
    watch = Watch(planted, stranger.secret)
    plain = stranger.run(stranger.plan(configuration))
    seen_without = watch.seen()
    variables = _variables(stranger, name)
    done = stranger.run(stranger.plan(configuration, environment=variables))
    seen = watch.seen()
    watch.close()
    assert seen == seen_without
    assert set(seen) == {str(stranger.secret)}, "which the stand-in prints"
    assert (done.returncode, done.stderr) == (0, b"")
    assert _without_pids(done.stdout) == _without_pids(plain.stdout)


def _without_pids(output: bytes) -> list[bytes]:
    """What the stand-in printed, but for the numbers of the processes above it."""
    lines = output.splitlines()
    return [line for line in lines if not line.startswith(b"BORG_PULL_SESSION_PROCESSES=")]


# A program without privilege that goes by each of the groups.
LOOKS_THERE = {
    "loader": ["/bin/true"],
    "interpreter": ["/usr/bin/python3", "-c", ""],
    "C library": ["/usr/bin/python3", "-I", "-c", "import locale; locale.setlocale(0, '')"],
    "time zone": ["/usr/bin/python3", "-I", "-c", "import time; time.tzset()"],
    "other programs": ["/bin/bash", "-c", "ls"],
}


@pytest.mark.parametrize("name", LOOKS_THERE)
def test_control_programs_without_privilege_do_look_there(stranger: Stranger, name: str) -> None:
    planted = _plant(stranger)
    stranger.secret.parent.chmod(0o755)
    stranger.secret.chmod(0o644)
    watch = Watch(planted, stranger.secret)
    stranger.run_command(LOOKS_THERE[name], environment=_variables(stranger, name))
    seen = watch.seen()
    watch.close()
    assert seen


ARGUMENTS: dict[str, list[str]] = {
    "none at all": [],
    "empty": [""],
    "no name": ["", "{own}/config.toml", "x"],
    "another program's name": ["borg-pull-admin", "{own}/config.toml", "x"],
    "a path of his": ["{own}/borg-pull-source", "{own}/config.toml", "x"],
    "an option": ["-c", "-c", "import os; os.abort()"],
    "the interpreter's": ["python3", "-m", "site"],
    "the bootloader's": ["--multiprocessing-fork", "{own}/config.toml", "x"],
    "too many": ["borg-pull-source", "{own}/config.toml", "x", "y"],
    "another client's name": ["borg-pull-source", "{own}/config.toml", "../x"],
    "not text": ["borg-pull-source", "{own}/config.toml", "\udcff"],
    "long": ["borg-pull-source", "{own}/config.toml", "x" * 100_000],
}


@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS.keys())
def test_no_arguments_help_him(stranger: Stranger, arguments: list[str]) -> None:
    stranger.configuration()
    stranger.file("_internal/borg-pull-source.pack", "planted")
    given = [word.format(own=stranger.own) for word in arguments]
    done = stranger.run(stranger.plan("", arguments=given))
    assert done.returncode == 78
    assert done.stderr.startswith(b"borg-pull-source: ")
    assert done.stderr.count(b"\n") == 1
    stranger.assert_nothing_gained(done)


@pytest.mark.parametrize("closed", [[0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]], ids=str)
def test_closed_streams(stranger: Stranger, closed: list[int]) -> None:
    """What the program opens never stands where its output would go."""
    done = stranger.run(stranger.plan(stranger.configuration(), closed=closed))
    assert done.returncode == 78
    assert (done.stderr == b"") is (2 in closed)
    stranger.assert_nothing_gained(done)
    # The loader opens what is closed to a program with privilege so that nothing can be written.
    done = stranger.run(stranger.plan(stranger.roots_configuration(), closed=closed))
    assert done.returncode in (0, 1, 2)
    assert (CONTENT.encode() in done.stdout) is (1 not in closed)
    records = [json.loads(line) for line in (stranger.own / "audit.jsonl").open()]
    assert [record["event"] for record in records] == ["start", "complete"]


LIMITS = {
    "NOFILE": (0, 1, 3, 4, 5, 8),
    # Between what the loader and what the programs need, an interpreter short of memory may also
    # spin for ever.
    "AS": (0, 1 << 20, 4 << 20, 32 << 20),
    "DATA": (0, 1 << 16, 1 << 20),
    "STACK": (0, 1 << 12, 1 << 16, 1 << 18),
    "FSIZE": (0, 1, 100),
    "CPU": (0,),
    "NPROC": (0, 1),
    "CORE": (INFINITY,),
}
LIMITED = [(name, limit) for name, limits in LIMITS.items() for limit in limits]


def test_limits_of_his_choosing(stranger: Stranger) -> None:
    """However early the program fails for want of something, it fails closed."""
    configuration = stranger.configuration()
    for name, limit in LIMITED:
        done = stranger.run(stranger.plan(configuration, limits={name: (limit, limit)}))
        assert done.returncode != 0, (name, limit)
        stranger.assert_nothing_gained(done)


def test_in_a_user_namespace_of_his(stranger: Stranger) -> None:
    """There the capability is over what is his, and root's files are nobody's."""
    uid = stranger.account.uid
    for mapping in ("", f"{uid} {uid} 1", f"0 {uid} 1"):
        plan = stranger.plan(stranger.roots_configuration(), user_namespace=mapping)
        done = stranger.run(plan)
        assert done.returncode in (71, 78), done.stderr
        stranger.assert_nothing_gained(done)


def test_without_the_means_to_gain_privilege(stranger: Stranger) -> None:
    """The program then has no capability, and reads nothing that he could not."""
    for configuration in (stranger.configuration(), stranger.roots_configuration()):
        done = stranger.run(stranger.plan(configuration, no_new_privileges=True))
        stranger.assert_nothing_gained(done)
    assert done.returncode == 71
    assert b"cannot be read: Permission denied" in done.stderr


@pytest.mark.parametrize("how", ["link", "copy", "symbolic link"])
def test_started_from_elsewhere(stranger: Stranger, how: str) -> None:
    """Beside the program in his directory stands a runtime of his."""
    elsewhere = stranger.own / "borg-pull-source"
    stranger.file("_internal/borg-pull-source.pack", "planted")
    stranger.file("_internal/libpython3.11.so.1.0", "planted")
    make = {"link": ["ln"], "copy": ["cp"], "symbolic link": ["ln", "-s"]}[how]
    made = stranger.run_command([*make, str(stranger.program), str(elsewhere)])
    if how == "link":
        # packaging/install.sh insists on it: the link would find the runtime beside itself.
        assert Path("/proc/sys/fs/protected_hardlinks").read_text().strip() == "1"
        assert made.returncode == 1
        assert b"Operation not permitted" in made.stderr
        return
    assert made.returncode == 0
    plan = stranger.plan(stranger.configuration(), program=str(elsewhere))
    done = stranger.run(plan)
    assert done.returncode == (78 if how == "symbolic link" else 255)
    stranger.assert_nothing_gained(done)


def test_the_other_programs_of_the_bundle(stranger: Stranger) -> None:
    """They have no privilege to lend."""
    own, secret = str(stranger.configuration()), str(stranger.secret)
    programs = stranger.site.source.programs
    for arguments in (
        ["check", own],
        ["check", secret],
        ["explain", own, "x", f"create /r a {stranger.secrets}"],
        ["authorized-keys", secret],
        ["audit", "show", secret],
        ["audit", "verify", secret],
    ):
        done = stranger.run_command([str(programs.admin), *arguments])
        stranger.assert_nothing_gained(done)
    for variable in ("BORGSOCKETWRAP_SOCKET_PATH", "BORG_PULL_WRAP_REPORT"):
        environment = {"BORGSOCKETWRAP_SOCKET_PATH": str(stranger.own / "x.sock"), variable: secret}
        done = stranger.run_command([str(programs.wrap)], environment=environment)
        assert done.returncode in (69, 71)
        stranger.assert_nothing_gained(done)


# Run by him. Follows a program from its start, or looks into it again and again as it runs, and
# makes a file to mark that it did.
DEBUGGER = """\
import ctypes, errno, json, os, signal, sys, time
libc = ctypes.CDLL(None, use_errno=True)
TRACE_ME, CONTINUE, ATTACH, DETACH, SEIZE = 0, 7, 16, 17, 0x4206
how, mark, *command = sys.argv[1:]
def ptrace(request, pid):
    if libc.ptrace(request, pid, None, None) != 0:
        raise OSError(ctypes.get_errno(), "")
def attached(request, pid):
    ptrace(request, pid)
    os.kill(pid, signal.SIGSTOP)
    os.waitpid(pid, 0)
    ptrace(DETACH, pid)
    os.kill(pid, signal.SIGCONT)
def read(path):
    os.close(os.open(path, os.O_RDONLY))
def memory(pid, _path):
    local = ctypes.create_string_buffer(8)
    class Span(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
    here = Span(ctypes.cast(local, ctypes.c_void_p), 8)
    if libc.process_vm_readv(pid, ctypes.byref(here), 1, ctypes.byref(here), 1, 0) < 0:
        raise OSError(ctypes.get_errno(), "")
ATTEMPTS = {
    "attach": lambda pid, path: attached(ATTACH, pid),
    "seize": lambda pid, path: attached(SEIZE, pid),
    "vm": memory,
    "mem": lambda pid, path: read(path + "/mem"),
    "environ": lambda pid, path: read(path + "/environ"),
    "maps": lambda pid, path: read(path + "/maps"),
    "auxv": lambda pid, path: read(path + "/auxv"),
    "fd": lambda pid, path: os.readlink(path + "/fd/0"),
    "fdinfo": lambda pid, path: read(path + "/fdinfo/0"),
    "map_files": lambda pid, path: os.listdir(path + "/map_files"),
    "cwd": lambda pid, path: os.readlink(path + "/cwd"),
    "exe": lambda pid, path: os.readlink(path + "/exe"),
}
def attempt(name, pid):
    try:
        ATTEMPTS[name](pid, "/proc/%d" % pid)
        result = "done"
    except OSError as error:
        result = errno.errorcode[error.errno]
    # Of one that is about to end there is nothing left to see, and no secret about that.
    deadline = time.monotonic() + (5 if how == "look" and result not in ("EPERM", "EACCES") else 0)
    while not ended(pid):
        if time.monotonic() > deadline:
            return result
    return "ended"
def ended(pid):
    try:
        return open("/proc/%d/stat" % pid).read().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True
child = os.fork()
if child == 0:
    if how == "follow":
        ptrace(TRACE_ME, 0)
    os.execv(command[0], command)
if how == "follow":
    while True:
        _, status = os.waitpid(child, 0)
        if not os.WIFSTOPPED(status):
            break
        if "borg-pull-sourc" in open("/proc/%d/comm" % child).read():
            lines = open("/proc/%d/status" % child).read().splitlines()
            print([line for line in lines if line.startswith("CapPrm")], file=sys.stderr)
        ptrace(CONTINUE, child)
else:
    found = {}
    try:
        while not os.waitpid(child, os.WNOHANG)[0]:
            name = open("/proc/%d/comm" % child).read().strip()
            if name in ("borg-pull-sourc", "sleep"):
                for what in ATTEMPTS:
                    found.setdefault(what, set()).add(attempt(what, child))
                open(mark, "w").close()
                if how == "look once":
                    os.kill(child, signal.SIGKILL)
                    break
    except (ChildProcessError, ProcessLookupError):
        pass  # it has ended
    print(json.dumps({what: sorted(results) for what, results in found.items()}), file=sys.stderr)
"""


def _debug(stranger: Stranger, how: str, command: list[str]) -> subprocess.CompletedProcess[bytes]:
    mark = str(stranger.own / "looked")
    return stranger.run_command(["/usr/bin/python3", "-I", "-c", DEBUGGER, how, mark, *command])


def test_followed_by_a_debugger(stranger: Stranger) -> None:
    """The kernel then starts it without the capability."""
    stranger.listen()
    plan = stranger.plan(stranger.roots_configuration())
    done = _debug(stranger, "follow", stranger.command(plan))
    assert b"CapPrm:\\t0000000000000000" in done.stderr
    assert b"CapPrm:\\t0000000000000004" not in done.stderr
    assert b"cannot be read: Permission denied" in done.stderr
    stranger.assert_nothing_gained(done)


def test_looked_into_as_it_runs(stranger: Stranger) -> None:
    """At every moment of its run it has, or once had, what he has not."""
    stranger.listen()
    configuration = stranger.roots_configuration(waits_for=stranger.own / "looked")
    plan = stranger.plan(configuration)
    done = _debug(stranger, "look", stranger.command(plan))
    assert CONTENT.encode() in done.stdout
    found = json.loads(done.stderr.splitlines()[-1])
    assert len(found) == 12
    for what, results in found.items():
        denied = {*results} - {"ended"}
        assert denied, what
        assert denied <= {"EPERM", "EACCES"}, (what, results)


def test_control_a_program_without_privilege_can_be_looked_into(stranger: Stranger) -> None:
    done = _debug(stranger, "look once", ["/bin/sleep", "60"])
    found = json.loads(done.stderr.splitlines()[-1])
    # The address asked for in its memory is of another program's: reading may fail, may it or not.
    assert {*found.pop("vm")} - {"EPERM"}
    assert all("done" in results for results in found.values()), found


def _assert_nothing_half_done(stranger: Stranger, configuration: Path) -> None:
    """The next run is served, and each one that was begun has its end on record."""
    done = stranger.run(stranger.plan(configuration))
    assert (done.returncode, done.stderr) == (0, b"")
    log = stranger.own / "audit.jsonl"
    verified = stranger.run_command(
        [str(stranger.site.source.programs.admin), "audit", "verify", str(log)]
    )
    assert verified.returncode == 0, verified.stdout
    records = [json.loads(line) for line in log.open()]
    begun = {record["session"] for record in records if record["event"] == "start"}
    ended = {record["session"]: record for record in records if record["event"] == "complete"}
    assert len(ended) == [record["event"] for record in records].count("complete")
    assert begun <= {*ended}
    # Killed between taking the lock and its first record, a request has this one alone.
    assert {ended[one]["result"] for one in {*ended} - begun} <= {"interrupted"}


def test_limits_leave_nothing_half_done(stranger: Stranger) -> None:
    """What `docs/local-use.md` says of each, under a configuration that lets him run."""
    configuration = stranger.roots_configuration()
    for (name, limit), exits in OUTCOMES.items():
        done = stranger.run(stranger.plan(configuration, limits={name: (limit, limit)}))
        assert done.returncode in exits, (name, limit, done)
        if done.returncode in (71, 73, 78):
            assert done.stderr.startswith(b"borg-pull-source: "), (name, limit, done)
            assert done.stderr.count(b"\n") == 1
    _assert_nothing_half_done(stranger, configuration)


# By limit, the exit codes that may come of it; negative is a signal.
OUTCOMES = {
    # Of the loader, before any of our code.
    ("NOFILE", 3): {127},
    ("AS", 1 << 20): {127},
    ("AS", 4 << 20): {255},
    ("STACK", 1 << 12): {-signal.SIGSEGV, -signal.SIGKILL},
    # By what it was for that there was no descriptor.
    ("NOFILE", 5): {71, 73, 78},
    ("NOFILE", 12): {71, 73, 78},
    ("NOFILE", 64): {0},
    ("FSIZE", 0): {73},
    ("FSIZE", 300): {73},
    ("FSIZE", 1 << 20): {0},
    ("NPROC", 1): {71},
    ("STACK", 1 << 18): {0},
    ("MEMLOCK", 0): {0},
    ("CORE", INFINITY): {0},
}


def test_ended_or_stopped_at_any_moment(stranger: Stranger) -> None:
    """He may signal what runs as him. The program holds locks that others wait for."""
    configuration = stranger.roots_configuration()
    unlimited = {"CORE": [INFINITY, INFINITY]}
    plan = stranger.plan(configuration, directory=str(stranger.own), limits=unlimited)
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGSEGV):
        for delay in range(0, 90, 8):
            stranger.listen()
            with subprocess.Popen(
                stranger.command(plan),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                user=stranger.account.uid,
                group=stranger.account.gid,
                extra_groups=[],
            ) as process:
                time.sleep(delay / 1000)
                process.send_signal(number)
                if number == signal.SIGSTOP:
                    process.send_signal(signal.SIGCONT)
                process.wait(30)
    _assert_nothing_half_done(stranger, configuration)
    # At its very start the program may leave a core dump, before it has read anything.
    assert not any(CONTENT.encode() in path.read_bytes() for path in _files(stranger.own))
