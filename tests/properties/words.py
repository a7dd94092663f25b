"""Words of requests: sound ones, and those that somebody somewhere got past a forced command."""

from __future__ import annotations

import shlex

CLIENTS = ("luna", "web-1", "a.b_c")
NONCE = "0123456789abcdefABCDEF"

# What no rule allows, beside what rules commonly allow.
PATHS = (
    "/", "/home", "/home/", "/home/a b", "/home/ü", "/srv/data", "/srv/data/x/y", "/home/a",
    "/home/é", "/homes", "/srv", "/etc", "/etc/shadow", "//", "//home", "/home//a", "/home/.",
    "/home/..", "/home/../etc", "/etc/./hostname", "/./home", "home", "-", "--", "/home/\x00",
    "/home/\n", "/a" * 200, "/" + "n" * 255, "/" + "n" * 256, "/" + "n/" * 2047,
    "/" + "n/" * 2048, "/home/\udcff", "/home/\u2028", "/home/\u202eb", "/home/*", "/home/'",
    '/home/"', "/home/\\", "/home/$(id)", "/home/`id`", "/home/::", "/home/{now}",
)  # fmt: skip
REPOSITORIES = (
    "/srv/repo", "/srv/repo/", "/re:po", "/srv/repo2", "/repo:", "/re::po", "/repo/..",
    "/~/repo", "/", "/r p", "/ré", "/r{now}", "/r\udcff", "/r\u202e", "repo", "ssh://x/repo",
    "/@repo", "/repo#?%41", "/:22/repo",
)  # fmt: skip
ARCHIVES = (
    "a", "web-{now}", "{now:%Y-%m-%d}", "{utcnow:%H:%M}", "{hostname}-{now:%s}", "x{now:%}",
    "{now:%D}", "{now:%f}", "{now:{pid}}", "{now:{pid.__class__.__name__}}", "{pid}",
    "{pid:>3000000000}", "{{now}}", "{now", "now}", "{}", "{hostname:x}", "{now!r}", "{now.x}",
    "{now[0]}", "a::b", ":a", "a:", "x{now:::}", "x{now: }", "x{now:.checkpoint}",
    "a.check{now:point}", "a.checkpoint", "a.checkpoint.1", "a/b", "a\\b", " a", "a ", "", "é",
    "²", "\u202e", "a" * 200, "a" * 201, "-a", "{user}", "{fqdn}", "{now:%T}", "{now:%%}",
    "{now:T%RZ}",
)  # fmt: skip
COMPRESSIONS = (
    "lz4", "zstd", "zstd,3", "zstd,22", "zstd,23", "zstd,0", "zstd,²", "zstd,３", "zlib,0",
    "zlib,10", "lzma,9", "none", "none,1", "lz4,1", "auto,zstd,3", "auto", "auto,auto,lz4",
    "obfuscate,1,lz4", "obfuscate,7,lz4", "obfuscate,110,auto,zstd", "obfuscate,250,lz4",
    "obfuscate,1", "ZSTD", "zstd,", ",", "zstd,-1", "zstd,+3", "zstd, 3", "zstd,1_0",
    "zstd,0000000003",
)  # fmt: skip
EXCLUDES = (
    "*.o", "sh:**/x", "fm:*", "pp:/a", "pf:/a/b", "re:.*", "r2:x", "²²:x", "fm:", "ab:c", "a:b",
    "R /etc", "+ /etc", "{now}", "-x", "x\u2028",
)  # fmt: skip
COMMENTS = ("x", "a comment", "{now}", "-", "--rsh=sh", "é", "\u202e", "c" * 1024, "c" * 1025, "")
COUNTS = (
    "1",
    "7",
    "0",
    "-1",
    "1000000",
    "1000001",
    "²",
    "٣",
    "７",
    "1_0",
    "+1",
    " 1",
    "1e3",
    "0x1",
    "00000001",
    "0000001",
)
INTERVALS = (
    "1H",
    "2d",
    "3w",
    "4m",
    "5y",
    "1M",
    "1S",
    "0d",
    "d",
    "²d",
    "1",
    "1dd",
    "100001y",
    "-1d",
)
GLOBS = (
    "web-*",
    "web",
    "*",
    "?",
    "[a]",
    "{now}*",
    "w" * 200,
    "w" * 201,
    "é*",
    "a[!b]*",
    "sh:*",
    "",
)
VALUES = {
    "--compression": COMPRESSIONS, "-C": COMPRESSIONS, "--comment": COMMENTS,
    "--exclude": EXCLUDES,
    "-e": EXCLUDES + ("repokey", "none", "repokey-blake2", "authenticated"),
    "--encryption": ("repokey", "none", "keyfile", "repokey-aes-ocb", ""),
    "--glob-archives": GLOBS, "-a": GLOBS, "--first": COUNTS, "--last": COUNTS,
    "--max-duration": COUNTS, "--keep-within": INTERVALS, "--keep-last": COUNTS,
    "--keep-minutely": COUNTS, "--keep-hourly": COUNTS, "-H": COUNTS, "--keep-daily": COUNTS,
    "-d": COUNTS, "-w": COUNTS, "--keep-weekly": COUNTS, "-m": COUNTS, "-y": COUNTS,
    "--keep-yearly": COUNTS,
    "--from": COUNTS,
    "--socket": (NONCE, "short", "x" * 65, "../../x" * 3, "é" * 20, "²" * 20),
}  # fmt: skip
SWITCHES = (
    "-p", "--progress", "-x", "--one-file-system", "--json", "--log-json", "--stats", "-s", "-n",
    "--dry-run", "--list", "--repository-only", "--archives-only", "--verify-data",
)  # fmt: skip
HOSTILE = (
    "--rsh=sh", "--rsh", "--remote-path=x", "--paths-from-stdin", "--paths-from-com",
    "--content-from-c", "--rs", "--pattern", "R /etc", "--patterns-from=/etc/passwd",
    "--comp=lz4", "-pC", "-Clz4", "-C=lz4", "---", "--=", "-", "--", "--progress=1",
    "--restrict-to-repository=/", "BORG_RSH=sh", "() { :; } ; id", ";", "&&", "|", "$(id)",
    "`id`", "serve", "delete", "Create", "create\u200b", "--read-special", "--umask=0", "-CC",
    "--socket", "--json=", "−p", "—json",
)  # fmt: skip
VERBS = (
    "create", "create", "create", "init", "list", "info", "check", "prune", "restore", "hello",
    "break-lock", "change-passphrase", "run", "job", "cancel", "aio", "jobs", "actions",
    "target set", "target show", "lockdown on", "lockdown off", "target", "lockdown",
)  # fmt: skip
NAMES = (
    "nightly", "a_b-9", "x" * 64, "x" * 65, "", "-x", "_x", "a.b", "a b", "../a", "é", "ssh://h/x",
    "0b0f2a5e-0000-4000-8000-0123456789ab", "0B0F2A5E-0000-4000-8000-0123456789AB", "0-0-0-0-0",
)  # fmt: skip

# Four ways to write one word.
QUOTINGS = (
    shlex.quote,
    lambda word: '"' + "".join(f"\\{c}" if c in '$`"\\' else c for c in word) + '"',
    lambda word: "".join(f"\\{c}" for c in word) or "''",
    lambda word: word,
)


# The operands and options of each verb, so that most of what is drawn belongs together.
OPERANDS_OF = {
    "create": ("REPO", "ARCHIVE", "PATH"),
    "init": ("REPO",),
    "list": ("REPO",),
    "info": ("REPO", "ARCHIVE"),
    "check": ("REPO",),
    "prune": ("REPO",),
    "restore": ("REPO", "ARCHIVE", "PATH"),
    "break-lock": ("REPO",),
    "change-passphrase": ("REPO",),
    "hello": (),
}
OPTIONS_OF = {
    "create": ("-C", "--compression", "--comment", "--exclude", "-e", "--socket"),
    "init": ("--socket", "-e"),
    "list": ("-a", "--first", "--last", "--socket"),
    "info": ("--socket",),
    "check": ("--max-duration", "--socket"),
    "prune": ("--keep-within", "--keep-last", "--keep-daily", "-H", "-y", "--socket"),
    "restore": ("--socket",),
    "break-lock": ("--socket",),
    "change-passphrase": ("--socket",),
    "hello": ("--socket",),
    "job": ("--from",),
}
SWITCHES_OF = {
    "create": ("-p", "-x", "--json", "--log-json", "--stats", "-n"),
    "init": ("--log-json",),
    "list": ("--json", "--log-json"),
    "info": ("--json", "--log-json"),
    "check": ("-p", "--repository-only", "--archives-only", "--verify-data"),
    "prune": ("-p", "--list", "-s", "-n"),
    "restore": ("-p", "-n", "--list", "--log-json"),
    "break-lock": ("--log-json",),
    "change-passphrase": ("--log-json",),
    "hello": ("--json",),
    "run": ("--detach",),
    "aio": ("--detach", "--check"),
    "job": ("--follow",),
}
