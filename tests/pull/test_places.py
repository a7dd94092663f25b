"""Directories of state: made when missing, and nobody else's business."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from borg_pull.errors import ConfigurationError
from borg_pull.pull.config import Settings
from borg_pull.pull.fields import LONGEST_RUNTIME_DIR
from borg_pull.pull.places import Places


def test_they_are_made_for_this_user_alone(tmp_path: Path) -> None:
    places = Places(tmp_path / "above/state", tmp_path / "run")
    old = os.umask(0o277)
    try:
        places.prepare()
    finally:
        os.umask(old)
    places.prepare()
    for place in (places.state_dir, places.runtime_dir, places.logs, places.locks, places.keys):
        assert stat.S_IMODE(place.stat().st_mode) == 0o700, place


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o770])
def test_one_that_is_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(mode)
    with pytest.raises(ConfigurationError, match="is open to others") as caught:
        Places(tmp_path / "state", tmp_path / "run").prepare()
    assert caught.value.hint == f"run chmod 0700 {tmp_path}/state"


@pytest.mark.needs_root
def test_one_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    os.chown(tmp_path / "state", 12345, 12345)
    with pytest.raises(ConfigurationError, match="belongs to uid 12345"):
        Places(tmp_path / "state", tmp_path / "run").prepare()


def test_a_link_or_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "state").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="is not a directory"):
        Places(tmp_path / "state", tmp_path / "run").prepare()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_directory_too_long_for_sockets_is_refused(tmp_path: Path) -> None:
    room = LONGEST_RUNTIME_DIR - len(str(tmp_path)) - 1
    fits, too_long = tmp_path / ("r" * room), tmp_path / ("r" * (room + 1))
    Places(tmp_path / "state", fits).prepare()
    with pytest.raises(ConfigurationError, match="too long for a directory of sockets"):
        Places(tmp_path / "state", too_long).prepare()
    assert not too_long.exists()


def test_where_running_pulls_keep_things(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings.model_validate({"state_dir": "/srv/state"})
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert Places.of(settings).runtime_dir == Path("/run/user/1000/borg-pull")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert Places.of(settings).runtime_dir == Path("/srv/state/run")
    chosen = Settings.model_validate({"state_dir": "/srv/state", "runtime_dir": "/run/pulls"})
    assert Places.of(chosen).runtime_dir == Path("/run/pulls")
