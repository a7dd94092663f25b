"""What worked with the original tool works unchanged: its configuration, requests, wrappers."""

from __future__ import annotations

import os
import socket
import subprocess

import pytest

from tests.harness.builds import PROJECT
from tests.harness.site import Site
from tests.harness.wait import until

EXAMPLE = """\
[runtime]
socket_wrapper = "{wrapper}"
socket_dir = "{socket_dir}"
home = "{home}"

[client.luna]
paths = ["/", "/home", "/var/lib", "/var/www"]
"""


def _example(site: Site) -> str:
    source = site.source
    return EXAMPLE.format(
        wrapper=source.programs.wrap, socket_dir=source.socket_dir, home=source.home
    )


def test_the_example_configuration_loads_as_it_is(site: Site) -> None:
    site.source.write_configuration(_example(site))
    # 69: all is allowed and in place but the socket.
    for path in ("/", "/home", "/var/lib"):
        assert site.pull(f"-C lz4 -p -x create /r a {path}").exit == 69, path
    # Listed verbatim, not as a tree.
    below = site.pull("create /r a /var/lib/dpkg")
    assert below.exit == 77
    assert "compared verbatim" in below.errors
    assert site.pull("list /r").exit == 77


@pytest.mark.builds("frozen")  # built from source, the wrap must load what no default names
def test_the_example_configuration_serves(site: Site) -> None:
    """With nothing changed but the place of ``/var/www``, which this machine may not have, and
    the borg under test. What the original tool left to a hanging question is told by name."""
    www = site.source.tree("www")
    site.source.file(www / "index", "content")
    text = (
        _example(site)
        .replace("/var/www", str(www))
        .replace("\n[client", f'borg = "{site.borg}"\n[client')
    )
    site.source.write_configuration(text)
    repository = site.repository()
    unknown = site.pull(f"-C lz4 create {repository.path} a {www}", repository)
    assert unknown.exit == 2
    told = "below [client.luna], for one run: allow_unknown_repository = true"
    assert told in unknown.errors
    site.source.write_configuration(text + "allow_unknown_repository = true\n")
    result = site.pull(f"-C lz4 create {repository.path} a {www}", repository)
    assert (result.exit, result.complaints) == (0, "")
    assert repository.archives() == ["a"]


@pytest.mark.parametrize(
    "form",
    [
        "-C lz4 -p -x create {repository} ARCHIVE {data}",
        "-- -C lz4 create {repository} ARCHIVE {data}",
        "--compression lz4 --progress --one-file-system create {repository} ARCHIVE {data}",
        "create {repository}/ ARCHIVE {data}",
        "create {repository} ARCHIVE {data}/",
        "  create   {repository}  ARCHIVE  {data}  ",
    ],
)
def test_requests_of_the_original_tool(site: Site, form: str) -> None:
    data = site.source.tree()
    site.source.file(data / "file", "content")
    site.allow(paths=[str(data), f"{data}/"])
    repository = site.repository()
    result = site.pull(form.format(repository=repository.path, data=data), repository)
    assert result.exit == 0, result.errors
    assert repository.archives() == ["ARCHIVE"]
    assert f"{data}/file"[1:] in repository.run("list", "--short", f"{repository.path}::ARCHIVE")


def test_a_slash_at_the_end_is_compared_verbatim_too(site: Site) -> None:
    data = site.source.tree()
    site.allow(paths=[str(data)])
    assert site.pull(f"create /r a {data}/").exit == 77


WRAPPER = """\
#!/bin/sh
# As the original tool documents: any program that joins its streams to the socket.
exec socat -t 100000 STDIO "UNIX-CONNECT:$BORGSOCKETWRAP_SOCKET_PATH"
"""


@pytest.mark.parametrize("which", ["shipped", "own"])
def test_a_wrapper_of_socat(site: Site, which: str) -> None:
    """contrib/socket-wrap.sh, or any program that reads ``BORGSOCKETWRAP_SOCKET_PATH``."""
    text = WRAPPER if which == "own" else (PROJECT / "contrib/socket-wrap.sh").read_text()
    wrapper = site.source.directory / "socket-wrap.sh"
    wrapper.write_text(text)
    wrapper.chmod(0o755)
    data = site.source.tree()
    site.source.file(data / "file", os.urandom(1 << 20))
    site.source.write_whitelist(
        {"luna": {"paths": [str(data)], "allow_unknown_repository": True}},
        runtime={"socket_wrapper": str(wrapper)},
    )
    repository = site.repository()
    for archive in ("first", "second"):
        result = site.pull(f"create {repository.path} {archive} {data}", repository)
        assert (result.exit, result.complaints) == (0, "")
    assert repository.archives() == ["first", "second"]
    site.source.assert_nothing_left("luna")


@pytest.mark.builds("frozen")
def test_the_wrapper_beside_the_program_is_the_default(site: Site) -> None:
    data = site.source.tree()
    site.source.write_whitelist(
        {"luna": {"paths": [str(data)], "allow_unknown_repository": True}},
        runtime={"socket_wrapper": None},
    )
    repository = site.repository()
    result = site.pull(f"create {repository.path} a {data}", repository)
    assert (result.exit, result.complaints) == (0, "")


def test_a_client_in_a_file_of_its_own(site: Site) -> None:
    data = site.source.tree()
    site.source.write_whitelist({})
    site.source.write_configuration(
        f'paths = ["{data}"]\nallow_unknown_repository = true\n', "clients.d/luna.toml"
    )
    # Somebody else's file, broken: no business of this request's.
    site.source.write_configuration("paths = nonsense", "clients.d/other.toml")
    (site.source.directory / "clients.d").chmod(0o755)
    repository = site.repository()
    result = site.pull(f"create {repository.path} a {data}", repository)
    assert (result.exit, result.complaints) == (0, "")


def test_the_socket_path_alone_tells_the_wrap_where_to_go(site: Site) -> None:
    """The wrap as a program of its own, with the one variable the original tool sets."""
    with socket.socket(socket.AF_UNIX) as listening:
        path = site.source.directory / "l.sock"
        listening.bind(str(path))
        listening.listen()
        wrap = subprocess.Popen(
            [site.source.programs.wrap, "any", "arguments"],
            env={"BORGSOCKETWRAP_SOCKET_PATH": str(path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        connection, _ = listening.accept()
        with connection:
            assert wrap.stdin is not None
            wrap.stdin.write(b"up")
            wrap.stdin.close()
            wrap.stdin = None
            assert until(lambda: connection.recv(16), seconds=10, what="the bytes") == b"up"
            assert connection.recv(16) == b""
            connection.sendall(b"down")
        out, _ = wrap.communicate(timeout=20)
    assert (wrap.returncode, out) == (0, b"down")
