"""An archive of items that no honest borg would put into one, made with borg 1.2's own library.

Run by the interpreter that has it: ``made_archive.py REPOSITORY ARCHIVE < ITEMS``. Items are a JSON
array of objects: path, and one of content (text), target (of a symbolic link), same_as (path of the
file that this is a hard link to), or none (a directory); mode for permissions, size for what it
claims to have. Paths are stored as they stand.
"""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import time
from typing import Any

INTERPRETER = "/usr/bin/python3"


def make(repository: str, archive: str, items: list[dict[str, Any]]) -> None:
    """Make it, in an unencrypted repository."""
    subprocess.run(
        [INTERPRETER, __file__, repository, archive],
        input=json.dumps(items).encode(),
        check=True,
        capture_output=True,
        env={
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
            "HOME": "/nonexistent",
            "BORG_BASE_DIR": f"{repository}/../hostile-base",
        },
    )


def _main() -> None:
    # Not in this project's environment, so without types.
    from borg.archive import Archive  # type: ignore[import-not-found]
    from borg.cache import Cache  # type: ignore[import-not-found]
    from borg.helpers import Manifest  # type: ignore[import-not-found]
    from borg.item import Item  # type: ignore[import-not-found]
    from borg.logger import setup_logging  # type: ignore[import-not-found]
    from borg.repository import Repository  # type: ignore[import-not-found]

    _, path, name = sys.argv
    setup_logging()
    with Repository(path, exclusive=True) as repository:
        manifest, key = Manifest.load(repository, Manifest.NO_OPERATION_CHECK)
        with Cache(repository, key, manifest, lock_wait=5) as cache:
            archive = Archive(repository, key, manifest, name, cache=cache, create=True)
            for wanted in json.load(sys.stdin):
                now = time.time_ns()
                item = Item(path=wanted["path"], mtime=now, uid=0, gid=0, user="root", group="root")
                if "content" in wanted:
                    content = wanted["content"].encode()
                    item.mode = stat.S_IFREG | wanted.get("mode", 0o644)
                    item.chunks = [cache.add_chunk(key.id_hash(content), content, archive.stats)]
                    item.size = wanted.get("size", len(content))
                elif "same_as" in wanted:
                    item.mode = stat.S_IFREG | 0o644
                    item.source = wanted["same_as"]
                elif "target" in wanted:
                    item.mode = stat.S_IFLNK | 0o777
                    item.source = wanted["target"]
                else:
                    item.mode = stat.S_IFDIR | wanted.get("mode", 0o755)
                archive.add_item(item)
            archive.save()


if __name__ == "__main__":
    _main()
