"""Sockets that killed runs left behind go with the client's next run; others' and live ones stay.

Threat: files pile up in the socket directory until it is full (A, F). Removing by name alone would
be the other threat: of a live socket of B, or of one whose run is about to begin.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from tests.harness.site import Site

NONCE = "0123456789abcdef"
TWO_HOURS = 7200


def _socket(
    site: Site, name: str, *, age: int, listening: bool = False
) -> tuple[Path, socket.socket]:
    path = site.source.socket_dir / name
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(str(path))
    if listening:
        bound.listen()
    else:
        bound.close()
    site.source.give(path)
    then = time.time() - age
    os.utime(path, (then, then))
    return path, bound


def test_a_run_removes_its_client_s_deserted_sockets(site: Site) -> None:
    data = site.source.tree()
    site.allow(paths=[str(data)])
    repository = site.repository()
    stale, _ = _socket(site, f"luna.{NONCE}.sock", age=TWO_HOURS)
    young, _ = _socket(site, f"luna.{NONCE}1.sock", age=0)
    others, _ = _socket(site, f"mars.{NONCE}.sock", age=TWO_HOURS)
    live, listener = _socket(site, f"luna.{NONCE}2.sock", age=TWO_HOURS, listening=True)
    no_nonce, _ = _socket(site, "luna.notanonce.sock", age=TWO_HOURS)
    with listener:
        assert site.pull(f"create {repository.path} a {data}", repository).exit == 0
    assert not stale.exists()
    assert [path.exists() for path in (young, others, live, no_nonce)] == [True] * 4
    for path in (young, others, live, no_nonce):
        path.unlink()
