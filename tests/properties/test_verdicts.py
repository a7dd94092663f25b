"""What is judged Allowed keeps to the rules, and what keeps to the rules is allowed."""

from __future__ import annotations

import time
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from borg_pull.errors import RequestError
from borg_pull.source import borg
from borg_pull.source.judge import Allowed, Context, Refused, judge
from borg_pull.source.request import parse
from borg_pull.source.whitelist import ClientRules, Runtime, SourceFile, load

from . import restatement, strategies

EPOCH = 1_795_222_312.0
HOSTNAME = "source-1"
CONTEXT = Context(hostname=HOSTNAME, local_time=time.localtime(EPOCH), utc_time=time.gmtime(EPOCH))
RUNTIME = Runtime(
    socket_wrapper=None, socket_dir="/run/sockets", home="/var/lib/x/", borg="/usr/bin/borg"
)
ENVIRONMENT = {
    "PATH", "HOME", "PYTHONNOUSERSITE", "BORG_HOST_ID", "LOGNAME", "LC_ALL",
    "BORG_EXIT_CODES", "BORG_RSH",
    "BORGSOCKETWRAP_SOCKET_PATH", "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK",
    "BORG_RELOCATED_REPO_ACCESS_IS_OK",
}  # fmt: skip


def rules_of(client: str, table: dict[str, Any]) -> ClientRules:
    text = '[runtime]\nsocket_dir = "/run/sockets"\nhome = "/var/lib/x/"\n'
    text += strategies.toml_table(f'[client."{client}"]', table)
    return load(SourceFile(name="w", content=text.encode()), {}).clients[client]


def verdict(command: bytes, client: str, table: dict[str, Any]) -> Allowed | Refused | None:
    """The verdict, checked against the rules written down twice; None for hello and no request."""
    try:
        request = parse(command)
    except RequestError:
        return None
    if request.verb == "hello":
        return None
    rules = rules_of(client, table)
    judged = judge(request, client, rules, CONTEXT)
    if isinstance(judged, Refused):
        assert judged.reason
        assert judged.rule
        return judged
    again = restatement.asked(command)
    restatement.check_syntax(again)
    grants = [grant.path for grant in judged.grants]
    command_line = borg.command(judged, client, rules, RUNTIME, "/usr/bin/wrap")
    socket = command_line.environment["BORGSOCKETWRAP_SOCKET_PATH"]
    assert socket.startswith("/run/sockets/")
    socket_name = socket.removeprefix("/run/sockets/")
    restatement.check_verdict(again, client, table, socket_name, grants)
    if len(again.operands) > 1:
        assert judged.archive == restatement.expanded(again.operands[1], EPOCH, HOSTNAME)
        restatement.check_archive(judged.archive)
    else:
        assert judged.archive is None
    assert judged.verb == again.verb
    assert judged.repository == again.operands[0]
    assert command_line.argv[0] == "/usr/bin/borg"
    restatement.check_command(again, client, table, judged.archive, command_line.argv)
    suffix = {"BORG_FILES_CACHE_SUFFIX"} if judged.verb == "create" else set()
    assert set(command_line.environment) == ENVIRONMENT | suffix
    return judged


WIDE: dict[str, Any] = {
    "trees": ["/"],
    "allow": ["create", "init", "list", "info", "check", "prune"],
    "encryption": ["repokey", "none"],
    "flags": sorted(restatement.DEFAULT_FLAGS | {"exclude"}),
}


def test_what_is_allowed_keeps_to_the_rules() -> None:
    seen: set[tuple[str, str]] = set()

    @settings(max_examples=800, deadline=None)
    @given(
        strategies.requests(),
        st.sampled_from(strategies.CLIENTS),
        st.one_of(st.just(WIDE), strategies.client_tables()),
    )
    @example(b"create /srv/repo x{now:.checkpoint} /home", "luna", WIDE)
    @example(b"create /srv/repo x{now:::} /home", "luna", WIDE)
    @example(b"create /srv/repo {now:%D} /home", "luna", WIDE)
    @example(b"create /repo: a /home", "luna", WIDE)
    def keeps(command: bytes, client: str, table: dict[str, Any]) -> None:
        judged = verdict(command, client, table)
        if judged is not None:
            seen.add((type(judged).__name__, parse(command).verb))

    keeps()
    # Otherwise it would hold of nothing.
    assert {verb for name, verb in seen if name == "Allowed"} == set(WIDE["allow"])
    assert {"create", "init", "prune"} <= {verb for name, verb in seen if name == "Refused"}


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_what_keeps_to_the_rules_is_allowed(data: st.DataObject) -> None:
    table = {
        "paths": ["/home/a b", "/var/www/", "/ü"],
        "trees": data.draw(st.sampled_from(([], ["/"], ["/srv/data", "/home"]))),
        "repositories": data.draw(st.sampled_from(([], ["/srv/repo/"]))),
        "excludes": data.draw(st.sampled_from(([], ["*.tmp"]))),
    }
    command = data.draw(strategies.honest_requests(table))
    judged = verdict(command, "luna", table)
    assert isinstance(judged, Allowed), (command, judged)
