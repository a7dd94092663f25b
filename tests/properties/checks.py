"""What must hold of any request and any whitelist, whoever made them up: hypothesis or a fuzzer."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

from borg_pull import aio_policy
from borg_pull.errors import RequestError, printable
from borg_pull.roles import Features
from borg_pull.schema import SourceFile, WhitelistError
from borg_pull.settings import Runtime
from borg_pull.source import borg
from borg_pull.source.judge import Allowed, Context, Refused, judge
from borg_pull.source.request import Request, parse
from borg_pull.source.whitelist import CLIENT_KEYS, ClientRules, Whitelist, load, load_settings

from . import restatement
from .toml_text import toml_table

EPOCH = 1_795_222_312.0
HOSTNAME = "source-1"
RUNTIME = Runtime(
    socket_wrapper=None, socket_dir="/run/sockets", home="/var/lib/x/", borg="/usr/bin/borg"
)
ENVIRONMENT = {
    "PATH", "HOME", "PYTHONNOUSERSITE", "BORG_HOST_ID", "LOGNAME", "LC_ALL",
    "BORG_EXIT_CODES", "BORG_RSH",
    "BORGSOCKETWRAP_SOCKET_PATH", "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK",
    "BORG_RELOCATED_REPO_ACCESS_IS_OK",
}  # fmt: skip
TABLES = {"runtime", "audit", "confine", "limits", "features", "aio", "action", "client"}
EVERY_FEATURE = Features(**dict.fromkeys(Features.__slots__, True))  # type: ignore[arg-type]
ADDED = {"create": {"BORG_FILES_CACHE_SUFFIX"}, "list": {"TZ"}, "info": {"TZ"}}


def context(epoch: float = EPOCH) -> Context:
    """The moment and the host that placeholders stand for, in the time zone of now."""
    return Context(hostname=HOSTNAME, local_time=time.localtime(epoch), utc_time=time.gmtime(epoch))


def rules_of(client: str, table: dict[str, Any]) -> ClientRules:
    """The rules that a client's table without a fault amounts to."""
    text = '[runtime]\nsocket_dir = "/run/sockets"\nhome = "/var/lib/x/"\n'
    text += toml_table(f'[client."{client}"]', table)
    return load(SourceFile(name="w", content=text.encode()), {}).clients[client]


def check_line(line: str) -> None:
    """That ``line`` can be told to a peer: one line, harmless, not too long."""
    assert line.isprintable(), line
    assert printable(line) == line
    assert len(line) < 2000


def parsed(command: bytes) -> Request | None:
    """The request, None when it is refused; what parses keeps to the grammar written twice."""
    try:
        request = parse(command)
    except RequestError as error:
        check_line(error.line())
        return None
    again = restatement.asked(command)
    restatement.check_syntax(again)
    assert request.verb == again.verb
    assert list(request.options) == again.options
    if again.verb in restatement.NAMES:
        assert (request.repository, request.archive, request.paths) == (None, None, ())
        assert request.name == next(iter(again.operands), None)
        return request
    assert request.name is None
    assert [request.repository, request.archive, *request.paths] == (again.operands + [None, None])[
        : max(2, len(again.operands))
    ]
    return request


def verdict(
    command: bytes, request: Request, client: str, table: dict[str, Any], rules: ClientRules
) -> tuple[Allowed, borg.BorgCommand] | Refused:
    """The verdict and the command it comes to, checked against the rules written down twice.

    ``rules`` are those of ``table``.
    """
    judged = judge(request, client, rules, EVERY_FEATURE, context())
    if isinstance(judged, Refused):
        assert judged.rule
        check_line(f"{judged.reason}; {judged.hint}")
        return judged
    again = restatement.asked(command)
    assert again.verb not in restatement.NAMES
    grants = [grant.path for grant in judged.grants]
    made = borg.command(judged, client, rules, RUNTIME, "/usr/bin/wrap")
    socket = made.environment["BORGSOCKETWRAP_SOCKET_PATH"]
    assert socket.startswith("/run/sockets/")
    restatement.check_verdict(again, client, table, socket.removeprefix("/run/sockets/"), grants)
    if len(again.operands) > 1:
        assert judged.archive == restatement.expanded(again.operands[1], EPOCH, HOSTNAME)
        restatement.check_archive(judged.archive)
    else:
        assert judged.archive is None
    assert judged.verb == again.verb
    assert judged.repository == again.operands[0]
    assert made.argv[0] == "/usr/bin/borg"
    restatement.check_command(again, client, table, judged.archive, made.argv)
    assert set(made.environment) == ENVIRONMENT | ADDED.get(judged.verb, set())
    return judged, made


def loaded(main: bytes, files: dict[str, bytes], only: str | None = None) -> Whitelist | None:
    """The whitelist, None when it is refused; either way it keeps its promises."""
    main_file = SourceFile(name="main.toml", content=main)
    client_files = {
        name: SourceFile(name=f"clients.d/{name}.toml", content=content)
        for name, content in files.items()
    }
    settings_alone = load_settings(main_file)
    try:
        whitelist = load(main_file, client_files, only)
    except WhitelistError as error:
        _check_faults(
            error, {"main.toml": main, **{f.name: f.content for f in client_files.values()}}
        )
        return None
    assert settings_alone == whitelist.settings
    return whitelist


def _check_faults(error: WhitelistError, contents: dict[str, bytes]) -> None:
    assert error.faults
    assert error.exit_code == 78
    assert error.line().isprintable()
    for fault in error.faults:
        assert fault.message
        if fault.line is not None:
            assert 1 <= fault.line <= contents[fault.file].count(b"\n") + 1


def check_rules(whitelist: Whitelist, document: dict[str, object]) -> None:
    """That the rules say what the document says, by types and values."""
    assert set(document) <= TABLES
    runtime = document["runtime"]
    assert isinstance(runtime, dict)
    for name in ("socket_dir", "home"):
        restatement.check_path(runtime[name])
        assert getattr(whitelist.settings.runtime, name) == runtime[name]
    clients = document.get("client", {})
    assert isinstance(clients, dict)
    for name, table in clients.items():
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name)
        check_client(whitelist.clients[name], table)


def check_policy(main: bytes, own: bytes, client: str, whitelist: Whitelist) -> None:
    """That what is sound to the forced command and the admin is so to the companion, and grants the
    same by other words."""
    policy = aio_policy.load(
        SourceFile(name="main.toml", content=main),
        SourceFile(name="own.toml", content=own) if own else None,
        client,
    )
    assert policy.features == whitelist.settings.features
    assert policy.runtime == whitelist.settings.runtime
    assert policy.audit == whitelist.settings.audit
    rules = whitelist.clients.get(client)
    assert (policy.client is None) is (rules is None)
    for target in (*policy.targets.values(), *(one.target for one in policy.actions.values())):
        if target is not None:
            assert (target.remote_repo is None) is not (target.host_location is None)
            assert target.remote_repo is None or target.masked().startswith("ssh://***@")
    if rules is None or policy.client is None:
        return
    for name in ("role", "actions", "aio_targets"):
        assert getattr(policy.client, name) == getattr(rules, name)
    assert set(rules.actions) <= set(policy.actions)
    assert set(rules.aio_targets) <= set(policy.targets)
    rank = ("read", "action", "backup", "admin").index(rules.role)
    for name in (*policy.actions, "other"):
        assert (policy.refusal("run", name) is None) is (rank > 0 and name in rules.actions)


def check_client(rules: ClientRules, table: dict[str, Any]) -> None:
    """That a client's rules say what its table says, and keep to what rules must be."""
    for key in CLIENT_KEYS:
        value = table.get(key.name, key.default)
        assert getattr(rules, key.name) == (tuple(value) if isinstance(value, list) else value)
    assert set(table) <= {key.name for key in CLIENT_KEYS}
    for path in (*rules.paths, *rules.trees, *rules.repositories):
        restatement.check_path(path)
    assert all(tree == "/" or not tree.endswith("/") for tree in rules.trees)
    assert set(rules.required_flags) <= set(rules.flags)
    assert len(list(_passphrase_sources(rules))) <= 1


def _passphrase_sources(rules: ClientRules) -> Iterator[object]:
    for source in (rules.passphrase_file, rules.passcommand, rules.passphrase_stdin):
        if source:
            yield source
