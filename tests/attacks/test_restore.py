"""A hostile repository writes nothing outside the directory of the restore (D, E).

Threat: `restore` unpacks what the backup server has, with the rights of an account that owns its
state, its audit log and its sockets. Archives hold links that lead out, then files through them,
paths with ".." and absolute ones, hard links to files elsewhere; worse, a borg that was taken over
writes where it likes. The controls: the same borg unconfined does write through the link, and what
is honest in the very same archives is restored.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.harness import made_archive
from tests.harness.site import Site

pytestmark = [pytest.mark.needs_root, pytest.mark.builds("frozen")]

HONEST = {"path": "honest", "content": "honest"}
# OUT stands for a directory outside that the account owns.
HOSTILE: dict[str, list[dict[str, Any]]] = {
    "a new file through a link": [
        {"path": "out", "target": "OUT"},
        {"path": "out/planted", "content": "planted"},
    ],
    "an old file through a link": [
        {"path": "out", "target": "OUT"},
        {"path": "out/kept", "content": "planted"},
    ],
    "a link through a link": [
        {"path": "out", "target": "OUT"},
        {"path": "out/planted", "target": "/etc"},
    ],
    "a mode through a link": [
        {"path": "out", "target": "OUT/.."},
        {"path": "out/outside", "mode": 0o777},
    ],
    "a removal through a link": [
        {"path": "out", "target": "OUT"},
        {"path": "out/empty", "target": "/etc"},
    ],
    "a hard link to outside": [{"path": "taken", "same_as": "OUT/kept"}],
    "upwards": [{"path": "../planted", "content": "planted"}],
    "upwards from below": [{"path": "a/../../planted", "content": "planted"}],
    "an absolute path": [{"path": "OUT/planted", "content": "planted"}],
    "by the descriptors of the process": [
        {"path": "out", "target": "/proc/self/root/OUT"},
        {"path": "out/planted", "content": "planted"},
    ],
}


def outside_of(site: Site) -> Path:
    """A directory of the account's with something in it."""
    outside = site.source.tree("outside")
    outside.chmod(0o750)
    site.source.file(outside / "kept", b"kept", mode=0o600)
    (outside / "empty").mkdir(mode=0o700)
    site.source.give(outside / "empty")
    return outside


def seen(top: Path) -> dict[str, tuple[int, int, int, int, bytes | None]]:
    """Everything about everything at and below ``top`` that could be changed."""
    found = {}
    for path in (top, *top.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else None
        found[str(path)] = (
            status.st_mode,
            status.st_uid,
            status.st_nlink,
            status.st_mtime_ns,
            content,
        )
    return found


def filled(items: list[dict[str, Any]], outside: Path) -> list[dict[str, Any]]:
    """``items`` behind an honest one, with the directory put in."""
    text = json.dumps(items).replace("OUT", str(outside)).replace("root//", "root/")
    return [HONEST, *json.loads(text)]


def test_no_archive_leads_out(site: Site) -> None:
    outside = outside_of(site)
    staging = site.source.tree("staging")
    site.allow(allow=["restore"], restore_to=str(staging), requests_per_hour=1000)
    repository = site.repository()
    before = seen(outside)
    for number, (name, items) in enumerate(HOSTILE.items()):
        made_archive.make(str(repository.path), f"a{number}", filled(items, outside))
        result = site.pull(f"restore {repository.path} a{number} /", repository)
        assert result.exit in (0, 1, 2), (name, result.errors)
        assert seen(outside) == before, name
        directories = [path for path in staging.iterdir() if path.is_dir()]
        assert len(directories) == number + 1, "nothing beside the runs' own directories"
        assert len(os.listdir(staging)) == number + 1, name
        (made,) = [path for path in directories if (path / "honest").exists()][number:]
        assert not (made / "taken").exists()


def test_control_an_unconfined_borg_follows_the_link(site: Site) -> None:
    """Debian's does; later ones look for themselves, and must not be what this depends on."""
    outside = outside_of(site)
    place = site.source.tree("place")
    repository = site.repository()
    items = filled(HOSTILE["a new file through a link"], outside)
    made_archive.make(str(repository.path), "a", items)
    subprocess.run(
        ["/usr/bin/borg", "extract", f"{repository.path}::a"],
        cwd=place,
        env=repository.environment(),
        capture_output=True,
        check=True,
    )
    assert (outside / "planted").read_text() == "planted"


TAKEN_OVER = """#!/usr/bin/python3
import json, os, sys
if "--version" in sys.argv:
    print("borg 1.2.4")
    sys.exit(0)
done = {}
def attempt(name, act):
    try:
        act()
        done[name] = "done"
    except OSError as error:
        done[name] = error.strerror
attempt("make here", lambda: open("made", "w").close())
attempt("make a directory here", lambda: os.mkdir("directory"))
attempt("make a link here", lambda: os.symlink("/etc", "link"))
attempt("execute here", lambda: (
    open("program", "w").write("#!/bin/true"), os.execv("program", ["program"])
))
attempt("make a socket here", lambda: __import__("socket").socket(1).bind("socket"))
attempt("read what is granted", lambda: open("{data}/file").read())
attempt("list what is granted", lambda: os.listdir("{data}"))
attempt("read elsewhere", lambda: open("{outside}/kept").read())
attempt("make elsewhere", lambda: open("{outside}/made", "w").close())
attempt("link elsewhere", lambda: os.link("made", "{outside}/made"))
attempt("take from elsewhere", lambda: os.rename("{outside}/kept", "kept"))
attempt("make beside", lambda: open("../made", "w").close())
attempt("look beside", lambda: os.listdir(".."))
attempt("mode of what is here", lambda: os.fchmod(os.open("made", os.O_RDWR), 0o640))
attempt("time of what is here", lambda: os.utime(os.open("made", os.O_RDWR), (1, 1)))
attempt("identity, in appearance", lambda: os.fchmod(os.open("made", os.O_RDWR), 0o6755))
attempt("mode of this directory", lambda: os.fchmod(os.open(".", os.O_RDONLY), 0o777))
attempt("mode elsewhere", lambda: os.fchmod(os.open("{outside}", os.O_RDONLY), 0o777))
attempt("mode by a bare place", lambda: os.fchmod(os.open("{outside}", os.O_PATH), 0o777))
attempt("time by a bare place", lambda: os.utime(os.open("{outside}", os.O_PATH), (1, 1)))
attempt("time by name", lambda: os.utime("{outside}", (1, 1)))
attempt("mode of the state", lambda: os.fchmod(
    os.open(os.environ["BORG_BASE_DIR"], os.O_RDONLY), 0o777
))
os.chmod("{outside}", 0o777)
sys.stderr.write(json.dumps(done) + chr(10))
"""
ALLOWED = {
    "make here",
    "make a directory here",
    "make a link here",
    "mode of what is here",
    "time of what is here",
    "identity, in appearance",
    "mode of the state",
}


def test_a_taken_over_borg_is_confined_to_its_directory(site: Site) -> None:
    """Not even what is granted for backups can be read in a restore."""
    outside = outside_of(site)
    data = site.source.tree()
    site.source.file(data / "file", b"granted")
    staging = site.source.tree("staging")
    program = site.source.directory / "taken-over"
    text = TAKEN_OVER.replace("{data}", str(data)).replace("{outside}", str(outside))
    program.write_text(text)
    program.chmod(0o755)
    rules = {"paths": [str(data)], "allow": ["restore"], "restore_to": str(staging)}
    site.source.write_whitelist({"luna": rules}, runtime={"borg": str(program)})
    repository = site.repository()
    before = seen(outside)
    result = site.pull(f"restore {repository.path} a /", repository)
    assert result.exit == 0, result.errors
    done = json.loads(next(line for line in result.errors.splitlines() if line.startswith("{")))
    assert {name for name, came in done.items() if came == "done"} == ALLOWED, done
    assert seen(outside) == before
    (made,) = staging.iterdir()
    status = (made / "made").stat()
    assert (status.st_mode & 0o7777, status.st_mtime) == (0o640, 1)
    assert made.stat().st_mode & 0o777 == 0o700
    (state,) = (site.source.home / "clients/luna").iterdir()
    assert state.stat().st_mode & 0o777 == 0o700, "it is closed again"


def test_without_landlock_nothing_is_restored(site: Site) -> None:
    staging = site.source.tree("staging")
    rules = {"allow": ["restore"], "restore_to": str(staging)}
    site.source.write_whitelist({"luna": rules}, confine={"landlock": "off"})
    repository = site.repository()
    refused = site.pull(f"restore {repository.path} a /", repository)
    assert refused.exit == 71
    assert "Landlock is not in force" in refused.errors
    assert os.listdir(staging) == []
