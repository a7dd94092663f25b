"""A source that runs the original tool is pulled from all the same, with what that can do.

The tool itself is not here: ``original_tool.py`` stands in for it, and says where it ends.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from borg_pull.pull.ledger import Run
from borg_pull.pull.pull import UnreachableError, hello
from borg_pull.pull.source import ORIGINAL
from borg_pull.pull.ssh import HostKeyError
from tests.harness.builds import FROZEN_12
from tests.harness.fixtures import SiteMaker
from tests.harness.sshd import make_key
from tests.pull import original_tool
from tests.pull.conftest import BackupServer, backup_server

WRAPPER = """\
#!/bin/sh
exec socat -t 100000 STDIO "UNIX-CONNECT:$BORGSOCKETWRAP_SOCKET_PATH"
"""

Maker = Callable[..., BackupServer]


@pytest.fixture
def make_original(make_site: SiteMaker, tmp_path: Path) -> Iterator[Maker]:
    """Makes the backup server of such a source; ``sshd`` are settings of sshd there."""
    with ExitStack() as made:

        def make(*sshd: str) -> BackupServer:
            site = make_site(FROZEN_12, sshd=sshd)
            server = made.enter_context(backup_server(site, tmp_path))
            source = site.source
            program = source.directory / "original_tool.py"
            program.write_text(Path(original_tool.__file__).read_text())
            wrapper = source.directory / "wrapper.sh"
            wrapper.write_text(WRAPPER)
            wrapper.chmod(0o755)
            command = f"/usr/bin/python3 {program} {source.configuration} luna"
            peer = site.peer("original", command)
            server.document["source"]["source"] |= {
                "protocol": "original",
                "client": "luna",
                "socket_dir": str(source.socket_dir),
                "identity": str(peer._key),
            }
            return server

        yield make


@pytest.fixture
def original(make_original: Maker) -> BackupServer:
    """Where sshd removes what the tool leaves behind."""
    return make_original("StreamLocalBindUnlink yes")


def data_of(server: BackupServer, **runtime: Any) -> Path:
    """A tree on the source that may be pulled."""
    source = server.site.source
    tree = source.tree()
    source.file(tree / "file", os.urandom(1 << 20))
    source.write_whitelist(
        {"luna": {"paths": [str(tree)]}},
        runtime={"socket_wrapper": str(source.directory / "wrapper.sh"), **runtime},
    )
    return tree


def requests(server: BackupServer) -> list[str]:
    """What was asked of the source."""
    noted = server.site.source.home / "requests"
    return noted.read_text().splitlines() if noted.exists() else []


def last(server: BackupServer, job: str = "job") -> Run:
    """The last pull on record."""
    run = server.ledger.last(job)
    assert run is not None
    return run


def test_a_pull(original: BackupServer) -> None:
    server, data = original, data_of(original)
    repository = server.repository()
    server.job(
        paths=[str(data)],
        compression="zstd,3",
        one_file_system=True,
        minimum_size="1 MB",
        retention={"keep_last": 1},
        check={},
    )
    assert server.run() == "success", server.events
    assert server.run() == "success", server.events
    run = last(server)
    assert repository.archives() == [run.archive]
    assert requests(server)[-1] == (f"-C zstd,3 -x create {repository.path} {run.archive} {data}")
    # It tells nothing: what is known is read from the repository.
    assert run.session is None
    assert run.original_size is not None
    assert run.original_size >= 1 << 20
    assert run.files == 1
    # So the alarms work.
    os.truncate(data / "file", 1000)
    server.document["job"]["job"]["minimum_size"] = "0"
    assert server.run() == "warning"
    assert "shrank" in str(last(server).error)
    server.document["job"]["job"]["minimum_size"] = "1 MB"
    assert server.run() == "failure"
    assert "minimum_size" in str(last(server).error)


def test_auto_finds_out_and_remembers(original: BackupServer) -> None:
    server, data = original, data_of(original)
    server.repository()
    server.job(paths=[str(data)])
    source = server.document["source"]["source"]
    source["protocol"] = "auto"
    assert server.run() == "success", server.events
    assert server.run() == "success", server.events
    assert [line.split()[0] for line in requests(server)] == ["hello", "create", "create"]
    # Without what it does not tell there is no way.
    server.ledger.set_state("greeting:source", None)
    del source["client"]
    assert server.run() == "failure"
    error = str(last(server).error)
    assert "source source does not know hello (it said: original-tool: " in error
    assert "give client and socket_dir in [source.source]" in error


def test_what_is_no_answer_is_not_taken_for_it(
    original: BackupServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``auto``, and all known that the tool would need: what went wrong is said instead."""
    server = original
    source = server.document["source"]["source"] | {"protocol": "auto"}
    pins = server.directory / "known_hosts"

    def said(**changes: object) -> str:
        server.document["source"]["source"] = source | changes
        (task,) = server.tasks()
        with pytest.raises(UnreachableError) as failed:
            hello(task.source, "source", pins)
        return failed.value.line()

    server.repository()
    server.job(paths=["/srv"])
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        told = said(port=closed.getsockname()[1])
    assert "Connection refused" in told
    assert told.endswith("nothing there was asked yet; run: borg-pull doctor source")
    assert "Could not resolve" in said(host="source.invalid")
    honest = pins.read_text()
    pins.write_text("")
    with pytest.raises(HostKeyError):
        said()
    pins.write_text(honest)
    make_key(server.directory / "other")
    told = said(identity=str(server.directory / "other"))
    assert "it does not let our key in" in told
    gone = server.site.peer("gone", "/no/such/program")
    assert "its forced command cannot be run there" in said(identity=str(gone._key))
    killed = server.site.peer("killed", "kill -9 $$")
    assert "exit 255; the command there was killed, or the connection cut" in said(
        identity=str(killed._key)
    )
    tools = server.directory / "bin"
    tools.mkdir()
    (tools / "setpriv").symlink_to("/usr/bin/setpriv")
    monkeypatch.setenv("PATH", str(tools))
    assert "no ssh here" in said()
    (tools / "setpriv").unlink()
    assert "cannot run ssh: No such file" in said()
    monkeypatch.undo()
    server.document["source"]["source"] = source
    (task,) = server.tasks()
    assert hello(task.source, "source", pins).protocol == ORIGINAL, "the control"


def test_the_outcome_goes_by_the_archive(original: BackupServer) -> None:
    """Its 1 is a refusal or borg's warning, and even a 0 proves nothing."""
    server, data = original, data_of(original)
    repository = server.repository()
    server.job(paths=[str(data / "below")])
    assert server.run() == "failure"
    assert last(server).error == (
        f"original-tool: path not allowed: {data}/below; the archive is not in the repository"
    )
    server.job(paths=[str(data)])
    server.site.source.file(data / "secret", "unreadable").chmod(0)
    assert server.run() == "warning"
    assert "secret" in str(last(server).error)
    assert repository.archives() == [last(server).archive]
    (data / "secret").unlink()
    server.site.source.write_whitelist(
        {"luna": {"paths": [str(data)]}}, runtime={"borg": "/bin/true"}
    )
    assert server.run() == "failure"
    assert last(server).error == (
        "the source reported success, but the archive is not in the repository"
    )


def test_runs_of_one_source_go_one_by_one(original: BackupServer) -> None:
    """There is one name for all sockets: the second run would take the first one's away."""
    server, data = original, data_of(original)
    for name in ("one", "two", "three"):
        server.repository(name)
        server.job(name, repository=name, paths=[str(data)])
    assert server.run() == "success", server.events


def test_a_socket_left_behind_is_told_of(make_original: Maker) -> None:
    server = make_original()
    data = data_of(server)
    server.repository()
    server.job(paths=[str(data)])
    assert server.run() == "success", server.events
    assert server.run() == "failure"
    assert last(server).error == (
        "ssh: Error: remote port forwarding failed for listen path "
        f"{server.site.source.socket('luna')}; the original tool leaves its socket behind: remove "
        "it at the source, or set StreamLocalBindUnlink yes in its sshd_config"
    )
    server.site.source.socket("luna").unlink()
    assert server.run() == "success", server.events
    server.site.source.socket("luna").unlink()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"exclude": ["*.tmp"]}, "knows no exclude"),
        ({"paths": ["/a", "/b"]}, "backs up one path"),
        ({"archive": "job-{hostname}-{utcnow}"}, "does not tell what it named an archive"),
    ],
    ids=["exclude", "paths", "hostname"],
)
def test_what_it_cannot_do_is_not_asked(
    original: BackupServer, keys: dict[str, Any], words: str
) -> None:
    data = data_of(original)
    original.repository()
    original.job(**({"paths": [str(data)]} | keys))
    assert original.run() == "failure"
    assert words in str(last(original).error)
    assert requests(original) == []


def test_it_cannot_look_for_an_archive(original: BackupServer) -> None:
    """With the key on the source alone nobody could: nothing is pulled."""
    data = data_of(original)
    original.repository(key_on="source")
    original.job(paths=[str(data)])
    assert original.run() == "failure"
    assert "runs the original tool, which knows no list" in str(last(original).error)
    assert requests(original) == []
