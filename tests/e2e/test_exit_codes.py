"""Each documented exit code, from a request or a fault that a real site can have.

70, a fault of the program's own, has no honest cause; 0, 1 and 2 of borg's are shown by the tests
of creating and of paths as well.
"""

from __future__ import annotations

import os
import re
import socket

import pytest

from tests.harness.site import Site

MALFORMED = (
    "",
    "--",
    "crate {repository} a {data}",
    "create {repository} a",
    "create {repository} a {data} --paths-from-command x",
    "create {repository} a {data} --comp lz4",
    "create {repository} '' {data}",
    "create {repository} a '{data}",
    "create {repository} a {data}\\",
    "create {repository} a {data}\nlist {repository}",
    "create {repository} a {data}\x1b[2J",
    "create {repository} a -",
    "create {repository} a relative",
    "create {repository} a {data}/../other",
    "create {repository} a {data}//sub",
    "create {repository} a {data} {data}",
    "create {repository} {{pid}} {data}",
    "create {repository} a::b {data}",
    "create {repository}::x a {data}",
    "create -C lz4 -C zstd {repository} a {data}",
    "create -C lz5 {repository} a {data}",
    "create -C {repository} a {data}",
    "BORG_RSH=x create {repository} a {data}",
    "init {repository} -e rot13",
    "hello there",
)


@pytest.mark.parametrize("request_text", MALFORMED)
def test_64_for_what_does_not_parse(site: Site, request_text: str) -> None:
    data = site.source.tree()
    site.allow(paths=[str(data)], allow=["create", "init"], encryption=["none"])
    repository = site.peer().directory / "repository"
    text = request_text.format(repository=repository, data=data)
    result = site.pull(text)
    assert (result.exit, result.stdout) == (64, b"")
    assert result.errors.startswith("borg-pull-source: ")
    assert result.errors.count("\n") == 1
    assert result.errors.rstrip("\n").isprintable()
    (refused,) = site.source.audit()
    assert (refused["event"], refused["exit"]) == ("refused", 64)
    assert refused["request"] == text


def test_64_for_a_request_too_large_to_be_one(site: Site) -> None:
    site.allow(paths=["/data"])
    result = site.pull("create /r a " + "/data" * 20_000)
    assert result.exit == 64
    (refused,) = site.source.audit()
    assert refused["request_truncated"] is True
    assert len(refused["request"]) <= 8192


def test_64_without_a_request(site: Site) -> None:
    """A login for a shell gets none."""
    site.allow(paths=["/data"])
    result = site.pull("")
    assert result.exit == 64
    assert site.source.audit()[0]["request"] == ""


def test_69_without_a_socket(site: Site) -> None:
    data = site.source.tree()
    site.allow(paths=[str(data)])
    result = site.pull(f"create /r a {data}")
    assert result.exit == 69
    assert f"no forwarded socket at {site.source.socket('luna')}" in result.errors
    assert site.source.audit(event="refused", exit=69)


def test_69_with_a_file_in_place_of_the_socket(site: Site) -> None:
    data = site.source.tree()
    site.allow(paths=[str(data)])
    site.source.file(site.source.socket("luna"), "")
    result = site.pull(f"create /r a {data}")
    assert result.exit == 69
    assert "is not a socket" in result.errors


def test_69_with_a_socket_nobody_listens_on(site: Site) -> None:
    """What an earlier session left: refused once, and out of the way of the next."""
    data = site.source.tree()
    site.allow(paths=[str(data)])
    remote = site.source.socket("luna")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(remote))
    site.source.give(remote)
    repository = site.repository()
    assert site.pull(f"create {repository.path} a {data}").exit == 69
    assert not remote.exists()
    assert site.pull(f"create {repository.path} a {data}", repository).exit == 0


def test_71_when_borg_cannot_be_executed(site: Site) -> None:
    data = site.source.tree()
    fake = site.source.directory / "borg"
    fake.write_text("#!/nonexistent/interpreter\n")
    fake.chmod(0o755)
    site.source.write_whitelist({"luna": {"paths": [str(data)]}}, runtime={"borg": str(fake)})
    repository = site.repository()
    result = site.pull(f"create {repository.path} a {data}", repository)
    assert result.exit == 71
    assert "borg was not started" in result.errors
    assert [record["event"] for record in site.source.audit()] == ["start", "complete"]
    assert site.source.audit()[1]["result"] == "not_run"


@pytest.mark.parametrize("obstacle", ["directory", "link", "missing directory"])
def test_73_when_it_cannot_be_recorded_nothing_runs(site: Site, obstacle: str) -> None:
    data = site.source.tree()
    file = site.source.home / "log/audit.jsonl"
    if obstacle != "missing directory":
        file.parent.mkdir()
        site.source.give(file.parent)
    if obstacle == "directory":
        file.mkdir()
    elif obstacle == "link":
        file.symlink_to("/dev/null")
    site.source.write_whitelist(
        {"luna": {"paths": [str(data)], "allow_unknown_repository": True}},
        audit={"file": str(file)},
    )
    repository = site.repository()
    result = site.pull(f"create {repository.path} a {data}", repository)
    assert result.exit == 73
    assert result.errors.startswith("borg-pull-source: ")
    assert repository.archives() == []
    assert site.pull("nonsense").exit == 73


def test_73_when_the_end_cannot_be_recorded_the_next_run_records_it(site: Site) -> None:
    data = site.source.tree()
    site.source.file(data / "file", os.urandom(2 << 20))
    site.allow(paths=[str(data)])
    repository = site.repository()
    peer = site.peer()
    log = site.source.audit_file
    with peer.listening(repository, hold_after=500_000) as listener:
        pull = peer.start(f"create {repository.path} a {data}", listener)
        listener.held()
        log.rename(log.with_name("moved"))
        log.symlink_to("/dev/null")
        listener.release()
        result = pull.wait()
    assert result.exit == 73
    assert "borg ended with success, but its end could not be recorded" in result.errors
    assert repository.archives() == ["a"]
    log.unlink()
    log.with_name("moved").rename(log)
    assert site.pull(f"create {repository.path} b {data}", repository).exit == 0
    lost, ended, started, complete = site.source.audit()
    assert [record["event"] for record in (lost, ended, started, complete)] == [
        "start",
        "complete",
        "start",
        "complete",
    ]
    assert (ended["session"], ended["result"]) == (lost["session"], "interrupted")
    assert (complete["session"], complete["result"]) == (started["session"], "success")
    site.source.assert_chain()


def test_69_when_nobody_serves_the_socket(site: Site) -> None:
    data = site.source.tree()
    site.allow(paths=[str(data)])
    repository = site.repository()
    peer = site.peer()
    with peer.listening(repository) as listener:
        listener.close()
        result = peer.start(f"create {repository.path} a {data}", listener).wait()
    assert result.exit == 69
    assert "nobody serves the forwarded socket; start the listener" in result.errors
    assert site.source.audit(event="complete")[0]["exit"] == 69
    assert site.pull(f"create {repository.path} a {data}", repository).exit == 0


def test_75_while_another_run_is_under_way(site: Site) -> None:
    data = site.source.tree()
    site.source.file(data / "file", os.urandom(2 << 20))
    site.allow(paths=[str(data)])
    repository = site.repository()
    peer = site.peer()
    with peer.listening(repository, hold_after=500_000) as listener:
        pull = peer.start(f"create {repository.path} a {data}", listener)
        listener.held()
        second = peer.pull(
            f"create {repository.path} b {data}",
            repository,
            remote_socket=site.source.socket_dir / "other.sock",
        )
        assert second.exit == 75
        (start,) = site.source.audit(event="start")
        told = re.fullmatch(
            r"borg-pull-source: another run for this repository is under way \(create since "
            r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)Z, pid \d+, session (.+)\); try again later\n",
            second.errors,
        )
        assert told is not None, second.errors
        assert told[1] <= start["time"]
        assert told[2] == start["session"]
        listener.release()
        first = pull.wait()
    assert (first.exit, first.complaints) == (0, "")
    assert repository.archives() == ["a"]
    assert site.pull(f"create {repository.path} c {data}", repository).exit == 0


@pytest.mark.parametrize(
    ("request_text", "reason"),
    [
        ("create /r a /elsewhere", "path '/elsewhere' is not allowed"),
        ("create /r a {data}/below", "is not allowed"),
        ("create /r a {data} /etc", "path '/etc' is not allowed"),
        ("create --exclude x /r a {data}", "flag --exclude is not allowed"),
        ("create -C lzma /r a {data}", "compression 'lzma' is not allowed"),
        ("list /r", "verb list is not allowed"),
    ],
)
def test_77_for_what_is_not_allowed(site: Site, request_text: str, reason: str) -> None:
    data = site.source.tree()
    (data / "below").mkdir()
    site.allow(paths=[str(data)], compressions=["zstd", "lz4"])
    result = site.pull(request_text.format(data=data))
    assert result.exit == 77
    assert reason in result.errors
    assert site.source.audit()[0]["exit"] == 77


def test_77_for_a_client_not_on_the_list(site: Site) -> None:
    site.allow("other", paths=["/data"])
    assert site.pull("create /r a /data").exit == 77
    assert site.source.audit()[0]["client"] == "luna"


FAULTY = {
    "syntax": ("[client.luna\n", "whitelist.toml:"),
    "unknown key": ('[client.luna]\npahts = ["/x"]\n', "pahts: is unknown; did you mean paths?"),
    "wrong type": ('[client.luna]\npaths = "/x"\n', "must be an array of absolute paths"),
    "unknown setting": ("borgg = 1\n", "borgg: is unknown; did you mean borg?"),
    "relative path": ('[client.luna]\npaths = ["x"]\n', "is not absolute"),
    "not text": ("[client.luna]\n# caf\udce9\n", "is not UTF-8 text"),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_78_for_a_wrong_configuration(site: Site, fault: str) -> None:
    text, reason = FAULTY[fault]
    runtime = f'[runtime]\nhome = "{site.source.home}"\nsocket_dir = "{site.source.socket_dir}"\n'
    path = site.source.write_configuration("")
    path.write_bytes((runtime + text).encode(errors="surrogateescape"))
    result = site.pull("create /r a /x", site.repository())
    assert result.exit == 78
    assert result.errors.startswith("borg-pull-source: the configuration is wrong: ")
    assert result.errors.count("\n") == 1
    assert reason in result.errors
    left = [path.name for path in site.source.socket_dir.iterdir()]
    if fault in ("syntax", "not text"):
        # Which directory it is is not known.
        assert left == ["luna.sock"]
        return
    if fault != "unknown setting":
        assert site.source.audit()[0]["exit"] == 78
    assert left == [], "the name is free for the next request"


def test_78_for_a_missing_configuration(site: Site) -> None:
    result = site.pull("hello")
    assert result.exit == 78
    assert "whitelist.toml" in result.errors


@pytest.mark.needs_root
@pytest.mark.builds("frozen")
@pytest.mark.parametrize("what", ["file", "directory", "owner", "link", "wrapper", "home"])
def test_78_for_a_configuration_others_could_have_written(site: Site, what: str) -> None:
    """A program with a capability takes no orders from what its caller may have written."""
    data = site.source.tree()
    site.allow(paths=[str(data)])
    source = site.source
    if what == "file":
        source.configuration.chmod(0o662)
    elif what == "directory":
        source.directory.chmod(0o777)
    elif what == "owner":
        source.give(source.configuration)
    elif what == "link":
        moved = source.configuration.rename(source.directory / "moved")
        source.configuration.symlink_to(moved)
    elif what == "home":
        source.home.chmod(0o770)
    else:
        wrapper = source.file(source.directory / "wrapper", "#!/bin/sh\n", 0o755)
        source.write_whitelist(
            {"luna": {"paths": [str(data)]}}, runtime={"socket_wrapper": str(wrapper)}
        )
    repository = site.repository()
    result = site.pull(f"create {repository.path} a {data}", repository)
    source.directory.chmod(0o755)
    assert result.exit == 78, result.errors
    assert repository.archives() == []
    # No directory that such a configuration names is looked into.
    is_obeyed = what in ("wrapper", "home")
    assert [path.name for path in source.socket_dir.iterdir()] == (
        [] if is_obeyed else ["luna.sock"]
    )
