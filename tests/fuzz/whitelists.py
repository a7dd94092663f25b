"""The whitelist: TOML bytes to faults or rules, nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from random import Random

import tomli

from borg_pull.aio_policy import ACTION_KEYS, AIO_KEYS, TARGET_KEYS
from borg_pull.roles import FEATURE_KEYS
from borg_pull.settings import AUDIT_KEYS, RUNTIME_KEYS
from borg_pull.source.whitelist import CONFINE_KEYS
from tests.properties import checks, words
from tests.properties.toml_text import toml_string, toml_value

from .target import SEPARATOR, Target, parts

SAMPLES = Path(__file__).parents[1] / "samples"
CLIENT = "luna"
AIO = """
[features]
enable_admin = true
[aio]
keep_jobs = 5
[aio.target.vault]
remote_repo = "ssh://u@h:22/srv/x"
[action.nightly]
type = "nextcloud_aio_backup"
target = "vault"
restore_after = true
"""
RUNTIME = b'runtime = { socket_dir = "/s", home = "/h" }\n'


def check(data: bytes) -> str:
    """The main file and, behind the separator, the client's own."""
    main, own = parts(data, 2)
    files = {CLIENT: own} if own else {}
    whitelist = checks.loaded(main, files)
    of_one = checks.loaded(main, files, only=CLIENT)
    if whitelist is None:
        return "refused"
    # What is sound as a whole is sound for each client.
    assert of_one is not None
    assert of_one.settings == whitelist.settings
    assert of_one.clients.get(CLIENT) == whitelist.clients.get(CLIENT)
    document = tomli.loads(main.decode())
    checks.check_rules(whitelist, document)
    checks.check_policy(main, own, CLIENT, whitelist)
    if own:
        checks.check_client(whitelist.clients[CLIENT], tomli.loads(own.decode()))
    return "loaded"


def seeds() -> Iterable[bytes]:
    """The samples, good and bad, and a client's own file."""
    for path in sorted(SAMPLES.glob("*/*.toml")):
        yield path.read_bytes()
    yield RUNTIME + AIO.encode() + b'[client.luna]\nactions = ["nightly"]\nrole = "action"\n'
    yield RUNTIME + SEPARATOR + b'paths = ["/home"]\nallow = ["create", "list"]\n'


SOUND: dict[str, tuple[object, ...]] = {
    "paths": (["/home", "/var/www/"], ["/"], []),
    "trees": (["/srv/data"], ["/", "/etc"]),
    "allow": (["create"], ["create", "list", "prune"], ["init"]),
    "flags": (["exclude", "json"], ["compression"], []),
    "required_flags": (["compression"], ["json"]),
    "compressions": (["zstd", "auto,lzma,6"], ["obfuscate,110,zstd,3"]),
    "excludes": (["*.o", "sh:**/x"], ["pf:/a/b"]),
    "encryption": (["repokey"], ["none", "keyfile-blake2"]),
    "repositories": (["/srv/repo"], ["/srv/a", "/srv/b/"]),
    "passphrase_file": ("/etc/borg-pull/passphrase",),
    "passcommand": ("/usr/bin/cat '/etc/a b'", "/bin/x"),
    "passphrase_stdin": (True, False),
    "allow_unknown_repository": (True,),
    "allow_relocated_repository": (False,),
    "refuse_empty": (True,),
    "role": ("read", "action", "backup", "admin"),
    "actions": (["nightly"], []),
    "aio_targets": (["vault"], []),
    "keys": (["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIDk1HyEVCEqYYNHTi4RX5KEPeMHb4MuTdPhAtSs4Mhc"],),
}
OTHERS = tuple(
    key.name
    for keys in (
        *(RUNTIME_KEYS, AUDIT_KEYS, CONFINE_KEYS, FEATURE_KEYS),
        *(AIO_KEYS, TARGET_KEYS, ACTION_KEYS),
    )
    for key in keys
)
TEXTS = (
    *words.PATHS, *words.REPOSITORIES, *words.COMPRESSIONS, *words.EXCLUDES, *words.VERBS,
    "/usr/bin/cat '/etc/x'", "cat", "'", "exclude", "compression", "json", "repokey", "none",
    "required", "auto", "off", "ssh-ed25519 AAAA", "ssh-rsa-cert-v01@openssh.com AAAA",
)  # fmt: skip
LINES = (
    b"[runtime]", b"[audit]", b"[confine]", b"[client]", b"[client.luna]", b'[client."a.b"]',
    b"[[client]]", b"[client.luna.x]", b"[client.luna", b"# x", b"", b'"""', b"'''", SEPARATOR,
    b"[features]", b"enable_admin = true", b"[aio]", b"[aio.target.vault]", b"[action.nightly]",
    b'host_location = "/mnt/b"', b'remote_repo = "ssh://u@h:22/x"', b'target = "vault"',
    b'type = "nextcloud_aio_backup"', b"timeout = 60", b"daily_backup = false",
    b"x.y.z = 1", b"\xef\xbb\xbf", b"\xff", b"\x00",
)  # fmt: skip


def mutate(data: bytes, random: Random) -> bytes:
    """``data`` with a line or two of it changed, or a whitelist made anew."""
    if random.random() < 0.4:
        data = _made_anew(random)
    lines = data.split(b"\n")
    for _ in range(random.choice((0, 1, 1, 2))):
        place = random.randrange(len(lines))
        kind = random.randrange(5)
        if kind == 0:
            key = random.choice(list(SOUND) + list(OTHERS))
            lines.insert(place, f"{key} = {_value(random)}".encode())
        elif kind == 1:
            lines.insert(place, random.choice(LINES))
        elif kind == 2:
            lines.append(_sound(random.choice(list(SOUND)), random).encode())
        elif kind == 3:
            lines[place] = lines[place].partition(b"=")[0] + b"= " + _value(random).encode()
        elif len(lines) > 1:
            del lines[place]
    return b"\n".join(lines)


def _made_anew(random: Random) -> bytes:
    """A whitelist that is sound unless its keys contradict each other."""
    keys = [_sound(key, random) for key in SOUND if random.random() < 0.25]
    own = [_sound(key, random) for key in SOUND if random.random() < 0.1]
    aio = AIO if random.random() < 0.5 else ""
    text = "\n".join([RUNTIME.decode(), aio, f"[client.{random.choice((CLIENT, 'sol'))}]", *keys])
    return text.encode() + (SEPARATOR + "\n".join(own).encode() if own else b"")


def _sound(key: str, random: Random) -> str:
    return f"{key} = {toml_value(random.choice(SOUND[key]))}"


def _value(random: Random) -> str:
    kind = random.randrange(7)
    if kind < 2:
        return random.choice(("true", "false", "1", "-0.5", "1979-05-27", "nan", "{}", "[]", "0x1"))
    if kind < 4:
        return _text(random)
    return f"[{', '.join(_text(random) for _ in range(random.randrange(4)))}]"


def _text(random: Random) -> str:
    # A lone surrogate has no UTF-8.
    return toml_string(random.choice(TEXTS).encode("utf-8", "replace").decode())


TARGET = Target(
    name="whitelist",
    check=check,
    reaches={
        "borg_pull.source.whitelist": (),
        "borg_pull.aio_policy": (),
        "borg_pull.schema": (),
        "borg_pull.positions": (),
    },
    weight=3,
    seeds=seeds,
    mutate=mutate,
    max_length=4096,
)
