"""One client cannot take the place of another on the same account (A against B).

Threat: nova knows luna's client name. It binds luna's socket name first, through an ssh of its
own, so that luna's backup stream comes to it while luna's run reports success.
"""

from __future__ import annotations

import os

from tests.harness.site import Site
from tests.harness.wait import until


def _two_clients(site: Site) -> str:
    data = site.source.tree()
    site.source.file(data / "file", os.urandom(1 << 20))
    rules = {"paths": [str(data)], "allow_unknown_repository": True}
    site.source.write_whitelist({"luna": rules, "nova": rules})
    return str(data)


def test_a_socket_of_another_session_is_not_used(site: Site) -> None:
    data = _two_clients(site)
    luna, nova = site.peer("luna"), site.peer("nova")
    stolen = nova.repository()
    with nova.listening(stolen, hold_after=0) as trap:
        # -N: a session that forwards and asks for nothing runs no forced command.
        holding = nova.start("", trap, remote_socket=site.source.socket("luna"), options=["-N"])
        until(site.source.socket("luna").exists, seconds=20, what="the socket to be bound")
        result = luna.pull(f"create {stolen.path} stolen {data}")
        assert result.exit == 69, result.errors
        assert "a foreign session holds" in result.errors
        assert result.duration < 10
        assert trap.to_repository == 0
        holding.kill()
        holding.wait()
    assert stolen.archives() == []
    assert site.source.audit(client="luna", exit=69)


def test_an_honest_run_succeeds_beside_another_s(site: Site) -> None:
    """The control: both at once, each with its own socket and repository."""
    data = _two_clients(site)
    luna, nova = site.peer("luna"), site.peer("nova")
    first, second = luna.repository(), nova.repository()
    with luna.listening(first, hold_after=500_000) as slow:
        waiting = luna.start(f"create {first.path} a {data}", slow)
        slow.held()
        result = nova.pull(f"create {second.path} b {data}", second)
        assert (result.exit, result.complaints) == (0, "")
        slow.release()
        result = waiting.wait()
    assert (result.exit, result.complaints) == (0, "")
    assert (first.archives(), second.archives()) == (["a"], ["b"])
