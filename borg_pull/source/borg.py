"""What borg is given and what its exit means. Pure: argv and environment are built from nothing."""

from __future__ import annotations

from borg_pull.digest import sha256
from borg_pull.errors import BORG_ERROR, BORG_SUCCESS, BORG_WARNING
from borg_pull.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from borg_pull.settings import Runtime
    from borg_pull.source.judge import Allowed
    from borg_pull.source.whitelist import ClientRules


class BorgCommand(Record):
    """One run of borg."""

    argv: tuple[str, ...]
    environment: dict[str, str]


def client_directory(runtime: Runtime, client: str) -> str:
    """Where the client's state directory is, under a name of its own."""
    return f"{runtime.home.rstrip('/')}/clients/{client}"


def lock_directory(runtime: Runtime, client: str) -> str:
    """Where the client's locks and reports are: out of the reach of a confined borg."""
    return f"{runtime.home.rstrip('/')}/locks/{client}"


def directories(runtime: Runtime, client: str) -> tuple[str, ...]:
    """The directories that must exist for the client, outer before inner."""
    own, locks = client_directory(runtime, client), lock_directory(runtime, client)
    return (own.rpartition("/")[0], locks.rpartition("/")[0], locks)


def socket_path(socket_dir: str, client: str, nonce: str | None) -> str:
    """Path of the forwarded socket: the client's, or with a nonce that of one run."""
    name = client if nonce is None else f"{client}.{nonce}"
    return f"{socket_dir.rstrip('/')}/{name}.sock"


def command(
    allowed: Allowed,
    client: str,
    rules: ClientRules,
    runtime: Runtime,
    socket_wrapper: str,
) -> BorgCommand:
    """The borg run for a judged request.

    The URL's host is the client's name: borg hands it to the socket wrapper, which ignores it,
    and shows it in messages. Variables are those of ``borg help`` (Environment Variables).
    """
    location = f"ssh://{client}{allowed.repository}"
    if allowed.archive is not None:
        location = f"{location}::{allowed.archive}"
    paths = tuple(grant.path for grant in allowed.grants)
    words = _WORDS.get(allowed.verb, (allowed.verb,))
    environment = base_environment()
    environment.update(
        BORG_RSH=_shell_word(socket_wrapper),
        BORGSOCKETWRAP_SOCKET_PATH=socket_path(runtime.socket_dir, client, allowed.nonce),
        BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=_answer(rules.allow_unknown_repository),
        BORG_RELOCATED_REPO_ACCESS_IS_OK=_answer(rules.allow_relocated_repository),
    )
    if allowed.verb == "create":
        # One files cache a set of paths: with one for all, each run would throw out the
        # entries of the other sets as unseen.
        digest = sha256("\0".join(sorted(paths)).encode("utf-8", "surrogateescape"))
        environment["BORG_FILES_CACHE_SUFFIX"] = digest.hexdigest()[:16]
    if allowed.verb in {"list", "info"}:
        # borg 1's JSON gives local time and does not say of which zone.
        environment["TZ"] = "UTC"
    return BorgCommand(
        argv=(
            runtime.borg,
            *words,
            *allowed.options,
            "--",
            location,
            *paths,
            *allowed.members,
        ),
        environment=environment,
    )


WITHOUT_CAPABILITY = ("break-lock", "change-passphrase")
"""Verbs that read nothing of this host but the client's own state."""

_WORDS = {"restore": ("extract",), "change-passphrase": ("key", "change-passphrase")}


def version_command(runtime: Runtime) -> BorgCommand:
    """The run that tells borg's version."""
    return BorgCommand(argv=(runtime.borg, "--version"), environment=base_environment())


def state_environment(state: str) -> dict[str, str]:
    """What tells borg of the client's state directory."""
    return {"BORG_BASE_DIR": state, "TMPDIR": state}


def base_environment() -> dict[str, str]:
    """The environment every borg gets; nothing of the caller's is in it."""
    return {
        "PATH": "/usr/bin:/bin",
        # What lies in a home is run: an interpreter's user site, a shell's profile. A borg that
        # was taken over can write in its state directory, so that is nobody's home.
        "HOME": "/nonexistent",
        "PYTHONNOUSERSITE": "1",
        # Names the holder of a lock in borg's cache, which is this host's own. By itself borg asks
        # the network cards, for which a confined one has no socket.
        "BORG_HOST_ID": "borg-pull",
        # borg records who made an archive. Looked up only at the end of a run, the name could
        # be out of reach: a replaced /etc/passwd is a file that no Landlock rule knows.
        "LOGNAME": "borg-pull",
        # Without a UTF-8 locale borg cannot name files outside ASCII.
        "LC_ALL": "C.UTF-8",
        "BORG_EXIT_CODES": "modern",
    }


def _shell_word(path: str) -> str:
    """``path`` as borg, which splits ``BORG_RSH`` like a shell, takes it for one word."""
    return "'" + path.replace("'", "'\"'\"'") + "'" if set(path) & set(" '\"\\") else path


def _answer(allowed: bool) -> str:
    return "yes" if allowed else "no"


# borg 1.4's modern codes (its docs, "Return codes"): warnings are 1 and 100 to 127, errors the
# rest below; 128 and more is a signal. Older borgs use 0, 1, 2 alone.
_FIRST_WARNING = 100
_LAST_WARNING = 127


def exit_of(borg_code: int) -> int:
    """0, 1 or 2 for borg's exit status; an end by a signal is an error."""
    if borg_code == 0:
        return BORG_SUCCESS
    if borg_code == 1 or _FIRST_WARNING <= borg_code <= _LAST_WARNING:
        return BORG_WARNING
    return BORG_ERROR
