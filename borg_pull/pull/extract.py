"""``extract``, ``browse``, ``mount`` and ``umount``: archives on this host."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import click

from borg_pull.errors import FailedError, RequestError, SystemRefusedError, printable
from borg_pull.findings import many
from borg_pull.output import abandon_output, print_error, put
from borg_pull.pull import contents
from borg_pull.pull.by_hand import unchanged
from borg_pull.pull.contents import Item
from borg_pull.pull.invocation import Invocation, tolerant
from borg_pull.pull.ledger import Ledger
from borg_pull.pull.progress import counting, size
from borg_pull.pull.repositories import local
from borg_pull.pull.repository import RepositoryError
from borg_pull.pull.run import task
from borg_pull.pull.stop import failing_by_signals

FUSE_DEVICE = Path("/dev/fuse")
FUSE_HINT = "on Debian: apt-get install fuse3 python3-llfuse; or take borg-pull extract"


@click.command(short_help="Get files back, on this host.")
@click.argument("name", metavar="JOB")
@click.argument("archive", metavar="ARCHIVE")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option(
    "--to",
    "directory",
    required=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="New or empty directory to unpack into.",
)
@click.option("--dry-run", is_flag=True, help="Say how much it is, and unpack nothing.")
@click.option(
    "--attributes",
    "with_attributes",
    is_flag=True,
    help="ACLs, extended attributes and file flags, too.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@tolerant
def extract(
    invocation: Invocation,
    name: str,
    archive: str,
    paths: tuple[str, ...],
    directory: Path,
    *,
    dry_run: bool,
    with_attributes: bool,
    as_json: bool,
) -> int:
    """Unpack paths of a job's archive into a directory of this host.

    ARCHIVE may be "latest". A PATH is as the source has it, "/" is everything.
    """
    config = invocation.config
    job = task(config, name)
    contents.readable_here(job, f"{printable(archive)} PATH...")
    patterns = contents.members(paths)
    repository = local(config, job.repository_name)
    with unchanged(job, invocation.places):
        found = contents.chosen(
            repository, config.archive_glob(name), archive, lambda: _on_record(invocation, name)
        )
        with failing_by_signals(), counting(found.name) as show:
            done = contents.extract(
                repository,
                found.name,
                patterns,
                directory.absolute(),
                dry_run=dry_run,
                with_attributes=with_attributes,
                show=show,
            )
    if as_json:
        report = {
            "job": name,
            "archive": found.name,
            "archive_id": found.id,
            "directory": str(directory.absolute()),
            "dry_run": dry_run,
            "items": done.items,
            "size": done.size,
            "warnings": done.warnings,
        }
        put(json.dumps(report, separators=(",", ":")) + "\n")
    else:
        word = "would unpack" if dry_run else "unpacked"
        put(
            f"{word} {many(done.items, 'item')}, {size(done.size)}, of {printable(found.name)} "
            f"into {printable(str(directory.absolute()))}\n"
        )
        for warning in done.warnings:
            print_error(warning, "yellow")
    return 1 if done.warnings else 0


def _on_record(invocation: Invocation, name: str) -> list[str]:
    """The ids of the job's archives in the order of their runs; none without a ledger: files are
    wanted back also where nothing else is left."""
    try:
        with closing(Ledger(invocation.places.ledger)) as ledger:
            return [one.id for one in ledger.recorded(name)]
    except SystemRefusedError as error:
        print_error(f"{error.message}; which is the latest, the archives themselves say", "yellow")
        return []


@click.command(short_help="List what an archive holds.")
@click.argument("name", metavar="JOB")
@click.argument("archive", metavar="[ARCHIVE]", default=contents.LATEST)
@click.argument("path", metavar="[PATH]", default="/")
@click.option("--json", "as_json", is_flag=True, help="One JSON object an item and line.")
@tolerant
def browse(invocation: Invocation, name: str, archive: str, path: str, *, as_json: bool) -> int:
    """List what a job's archive, the latest unless named, holds at and below a path."""
    config = invocation.config
    job = task(config, name)
    contents.readable_here(job, f"{printable(archive)} PATH...")
    patterns = contents.members((path,))
    repository = local(config, job.repository_name)
    found = contents.chosen(
        repository, config.archive_glob(name), archive, lambda: _on_record(invocation, name)
    )
    listed = contents.items(repository, found.name, patterns)
    line = _json_line if as_json else _text_line
    is_empty = True
    try:
        for item in listed:
            is_empty = False
            sys.stdout.write(line(item))
        sys.stdout.flush()
    except BrokenPipeError:
        abandon_output()
        return 0
    if is_empty and patterns:
        raise RequestError(f"archive {printable(found.name)} holds no {printable(path)}")
    return 0


def _json_line(item: Item) -> str:
    told = {
        "path": f"/{item.path}",
        "mode": item.mode,
        "user": item.user,
        "group": item.group,
        "size": item.size,
        "mtime": item.mtime,
        "target": item.target or None,
    }
    return json.dumps(told, separators=(",", ":")) + "\n"


def _text_line(item: Item) -> str:
    owner = f"{item.user}:{item.group}"
    target = f" -> {item.target}" if item.target else ""
    mtime = f"{item.mtime[:19]}Z" if item.mtime else "-"
    text = f"{item.mode} {owner:<17} {size(item.size):>10} {mtime} /{item.path}{target}"
    return printable(text) + "\n"


@click.command(short_help="Mount a job's archives.")
@click.argument("name", metavar="JOB")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@tolerant
def mount(invocation: Invocation, name: str, directory: Path) -> int:
    """Mount a job's archives, each a directory, until borg-pull umount."""
    config = invocation.config
    job = task(config, name)
    contents.readable_here(job, "ARCHIVE PATH...")
    if _unmounter() is None or not FUSE_DEVICE.exists():
        raise SystemRefusedError("this host cannot mount archives: it has no FUSE", FUSE_HINT)
    if not directory.is_dir() or os.listdir(directory):
        raise RequestError(f"{directory} is not an empty directory")
    repository = local(config, job.repository_name)
    words = ["mount", "--glob-archives", config.archive_glob(name)]
    try:
        repository.run([*words, str(repository.repository.path), str(directory.absolute())])
    except RepositoryError as error:
        if "FUSE" in error.message:
            raise SystemRefusedError("this borg cannot mount archives", FUSE_HINT) from error
        raise
    put(f"mounted; when done: borg-pull umount {printable(str(directory))}\n")
    return 0


@click.command(short_help="End borg-pull mount.")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
def umount(directory: Path) -> int:
    """Unmount what borg-pull mount has mounted."""
    program = _unmounter()
    if program is None:
        raise SystemRefusedError("this host has no fusermount, so nothing is mounted", FUSE_HINT)
    done = subprocess.run(
        [program, "-u", str(directory.absolute())],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise FailedError(printable(done.stderr.strip() or f"{program}: exit {done.returncode}"))
    return 0


def _unmounter() -> str | None:
    return shutil.which("fusermount3") or shutil.which("fusermount")
