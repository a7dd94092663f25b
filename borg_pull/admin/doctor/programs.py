"""The installed programs, borg, and whether the one with the capability can get it from sshd."""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
from collections.abc import Iterator

from borg_pull import accounts
from borg_pull.admin.doctor.daemon import Daemon
from borg_pull.errors import ConfigurationError
from borg_pull.findings import Findings
from borg_pull.linux.capabilities import DAC_READ_SEARCH
from borg_pull.source.borg import version_command
from borg_pull.source.installation import program_beside, socket_wrapper
from borg_pull.source.whitelist import Settings
from borg_pull.trust import Trust, check_directories, check_program

_VERSIONS = ("1.2", "1.4")
_VERSION_SECONDS = 20
_CAPABILITY = "cap_dac_read_search=ep"
_SOURCE = "borg-pull-source"
_MANY = 3
"""Files named of those that others can change; one command is for all of them."""


def look(
    findings: Findings, account: accounts.Account | None, settings: Settings, daemon: Daemon | None
) -> None:
    """Look at the bundle, its capability, borg's version and what the running sshd passes on."""
    source = program_beside(_SOURCE)
    bundle = os.path.dirname(source)
    if not os.path.exists(source):
        findings.wrong(
            "error",
            "programs.source",
            source,
            "does not exist",
            remedy="packaging/install.sh",
        )
    else:
        _look_at_capability(findings, source)
        _look_at_mode(findings, source, account)
        _look_at_mount(findings, source)
        _look_at_bundle(findings, bundle)
    if daemon is not None:
        _look_at_inheritance(findings, daemon)
    _look_at_wrapper(findings, socket_wrapper(settings))
    _look_at_borg(findings, account, settings)


def _look_at_capability(findings: Findings, source: str) -> None:
    text, is_right = _capability(source)
    if is_right:
        findings.ok("programs.capability", source, _CAPABILITY)
        return
    with open(source, "rb") as file:
        is_script = file.read(2) == b"#!"
    remedy = f"setcap {_CAPABILITY} {shlex.quote(source)}"
    if is_script:
        remedy = "make frozen && packaging/install.sh (a script cannot carry it)"
    findings.wrong(
        "error",
        "programs.capability",
        source,
        text,
        needed=_CAPABILITY,
        why="borg reads what the account can read, no more",
        remedy=remedy,
    )


def _capability(program: str) -> tuple[str, bool]:
    """What the file's capabilities are, in few words, and whether they are as they must be."""
    try:
        value = os.getxattr(program, "security.capability")
    except OSError:
        return "has no capability", False
    # struct vfs_cap_data of linux/capability.h: revision and the flag "effective", then permitted
    # and inheritable sets, lower halves before upper ones, all little-endian.
    effective = value[0] & 1
    numbers = [int.from_bytes(value[at : at + 4], "little") for at in range(4, len(value), 4)]
    permitted = numbers[0] | (numbers[2] << 32 if len(numbers) > 3 else 0)
    inheritable = numbers[1] | (numbers[3] << 32 if len(numbers) > 3 else 0)
    wanted = 1 << DAC_READ_SEARCH
    if permitted == wanted and effective and not inheritable:
        return _CAPABILITY, True
    if not permitted & wanted:
        return "has other capabilities, but not this one", False
    if not effective:
        return "has it, but not in force", False
    return "has more capabilities than this one", False


def _look_at_mode(findings: Findings, source: str, account: accounts.Account | None) -> None:
    status = os.stat(source)
    quoted = shlex.quote(source)
    mode = f"{stat.S_IMODE(status.st_mode):04o}"
    if status.st_mode & stat.S_IRWXO:
        findings.wrong(
            "error",
            "programs.mode",
            source,
            f"has mode {mode}",
            needed="0750",
            why="every local user may start it",
            remedy=f"chmod 0750 {quoted}",
        )
        return
    if account is None:
        findings.unchecked(
            "programs.mode",
            source,
            "who must be able to start it is not known",
            "name the account with --user",
        )
        return
    groups = set(os.getgrouplist(account.name, account.gid))
    starts = status.st_uid == account.uid or (
        status.st_gid in groups and status.st_mode & stat.S_IXGRP
    )
    if starts:
        findings.ok("programs.mode", source, f"mode {mode}, group {account.group}")
        return
    # chown and chgrp take capabilities away.
    give = f"chgrp {account.group} {quoted} && chmod 0750 {quoted} && setcap {_CAPABILITY} {quoted}"
    findings.wrong(
        "error",
        "programs.mode",
        source,
        f"cannot be started by {account.name}: mode {mode}, gid {status.st_gid}",
        needed=f"0750, group {account.group}",
        remedy=give,
    )


def _look_at_mount(findings: Findings, source: str) -> None:
    flags = os.statvfs(source).f_flag
    options = [
        name for name, flag in (("nosuid", os.ST_NOSUID), ("noexec", os.ST_NOEXEC)) if flags & flag
    ]
    if not options:
        findings.ok("programs.mount", source, "its file system allows capabilities")
        return
    findings.wrong(
        "error",
        "programs.mount",
        source,
        f"lies on a file system mounted {','.join(options)}",
        why="the capability has no effect there",
        remedy="packaging/install.sh --prefix DIRECTORY, on another file system",
    )


def _look_at_bundle(findings: Findings, bundle: str) -> None:
    """A program with a capability loads its modules from beside itself."""
    try:
        check_directories(f"{bundle}/x", Trust(enforced=True, uid=0), own=False)
    except ConfigurationError as error:
        findings.wrong(
            "error",
            "programs.directories",
            bundle,
            error.message,
            why="who can change it changes what runs with the capability",
            remedy=error.hint or "install it elsewhere: packaging/install.sh --prefix DIRECTORY",
        )
        return
    if _is_script(f"{bundle}/{_SOURCE}"):
        findings.ok("programs.directories", bundle, "is root's alone to change")
        return
    foreign = list(_changeable(bundle))
    if not foreign:
        findings.ok("programs.directories", bundle, "all in it is root's alone to change")
        return
    named = ", ".join(foreign[:_MANY]) + (", ..." if len(foreign) > _MANY else "")
    findings.wrong(
        "error",
        "programs.directories",
        bundle,
        f"{len(foreign)} in it can be changed by others: {named}",
        why="who can change it changes what runs with the capability",
        remedy="packaging/install.sh",
    )


def _is_script(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"#!"


def _changeable(directory: str) -> Iterator[str]:
    """What in or below ``directory`` somebody but root can change."""
    for base, directories, files in os.walk(directory):
        for name in (*directories, *files):
            path = os.path.join(base, name)
            status = os.lstat(path)
            is_link = stat.S_ISLNK(status.st_mode)
            writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            if status.st_uid != 0 or (writable and not is_link):
                yield path


def _look_at_inheritance(findings: Findings, daemon: Daemon) -> None:
    subject = f"process {daemon.pid}"
    faults = []
    if not daemon.capabilities >> DAC_READ_SEARCH & 1:
        faults.append(
            ("its bounding set lacks CAP_DAC_READ_SEARCH", "CapabilityBoundingSet, --cap-add")
        )
    if daemon.no_new_privs:
        faults.append(("it has no_new_privs set", "NoNewPrivileges, --security-opt"))
    for found, settings in faults:
        findings.wrong(
            "error",
            "programs.inheritance",
            f"sshd, {subject}",
            found,
            why="nothing it starts can have the capability",
            remedy=f"see what starts it: {settings} of its unit or its container",
        )
    if not faults:
        findings.ok("programs.inheritance", f"sshd, {subject}", "what it starts can get it")


def _look_at_wrapper(findings: Findings, wrapper: str) -> None:
    ours = program_beside("borg-pull-socket-wrap")
    if wrapper == ours:
        findings.ok("programs.wrapper", wrapper, "verifies who listens")
        return
    findings.wrong(
        "warning",
        "programs.wrapper",
        wrapper,
        "is another program in place of ours",
        needed=ours,
        why="ours verifies that this session's sshd listens on the socket",
        remedy="take socket_wrapper out of the whitelist",
    )


def _look_at_borg(findings: Findings, account: accounts.Account | None, settings: Settings) -> None:
    borg = settings.runtime.borg
    try:
        check_program(borg, Trust(enforced=os.geteuid() == 0, uid=0))
    except ConfigurationError:
        # `check` has said so; nobody runs a program here that others can change.
        findings.unchecked("programs.borg", borg, "its version was not asked", "see above")
        return
    is_root = os.geteuid() == 0
    if is_root and account is None:
        findings.unchecked(
            "programs.borg",
            borg,
            "its version was not asked: root does not run it",
            "name the account with --user",
        )
        return
    identity = account if is_root else None
    command = version_command(settings.runtime)
    try:
        said = subprocess.run(
            command.argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_VERSION_SECONDS,
            check=False,
            env=command.environment,
            cwd="/",
            user=None if identity is None else identity.uid,
            group=None if identity is None else identity.gid,
            extra_groups=None if identity is None else [],
        )
        words = said.stdout.decode("ascii", "replace").split()
    except (OSError, subprocess.TimeoutExpired) as error:
        words = [str(error)]
    version = re.fullmatch(r"(\d+\.\d+)\.\S+", words[-1] if words else "")
    if version is not None and version[1] in _VERSIONS:
        findings.ok("programs.borg", borg, f"version {words[-1]}")
        return
    findings.wrong(
        "error",
        "programs.borg",
        borg,
        f"says {' '.join(words) or 'nothing'}" if version is None else f"is version {words[-1]}",
        needed=f"version {' or '.join(_VERSIONS)}",
        why="its options and exit codes are known",
        remedy="apt-get install borgbackup, or name another in runtime.borg",
    )
