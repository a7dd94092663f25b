"""Sockets that nobody has any more go with anybody's next run; live ones stay, whoever's they are.

Threat: files pile up in the socket directory until it is full, and keep names from whose they are
(A, F). Removing by name alone would be the other threat: of a live socket of B, or of one whose
run is about to begin.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.harness.site import Site

NONCE = "0123456789abcdef"
DESERTED = (f"luna.{NONCE}.sock", f"mars.{NONCE}.sock", "mars.sock", "of nobody")


@contextmanager
def _sockets(site: Site) -> Iterator[list[Path]]:
    """Deserted ones in the socket directory, and the paths of living ones beside them."""
    with ExitStack() as living:
        for name in DESERTED:
            _bound(site, name).close()
        listening = living.enter_context(_bound(site, f"luna.{NONCE}1.sock"))
        listening.listen()
        living.enter_context(_bound(site, f"luna.{NONCE}2.sock"))
        yield [site.source.socket(f"luna.{NONCE}{number}") for number in (1, 2)]
        # What was asked of the kernel cost the listener no connection.
        listening.setblocking(False)
        try:
            listening.accept()
        except BlockingIOError:
            return
        raise AssertionError("the listener was connected to")


def _bound(site: Site, name: str) -> socket.socket:
    path = site.source.socket_dir / name
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    site.source.give(path)
    return made


def test_a_run_removes_what_nobody_has(site: Site) -> None:
    data = site.source.tree()
    site.allow(paths=[str(data)])
    repository = site.repository()
    with _sockets(site) as living:
        assert site.pull(f"create {repository.path} a {data}", repository).exit == 0
        assert sorted(site.source.socket_dir.iterdir()) == living
    for path in living:
        path.unlink()


def test_hello_frees_a_name_that_ssh_could_not_forward_to(site: Site) -> None:
    """With ExitOnForwardFailure ssh gives up before any request, so no run can free the name."""
    data = site.source.tree()
    site.allow(paths=[str(data)])
    repository = site.repository()
    _bound(site, "luna.sock").close()
    request = f"create {repository.path} a {data}"
    result = site.pull(request, repository)
    assert (result.exit, "remote port forwarding failed" in result.errors) == (255, True)
    with _sockets(site) as living:
        assert site.pull("hello").exit == 0
        assert sorted(site.source.socket_dir.iterdir()) == living
    for path in living:
        path.unlink()
    assert site.pull(request, repository).exit == 0
