"""The engine's API, by the calls of `borg_pull.aio.engine`, on a real engine."""

from __future__ import annotations

import time

import pytest

from borg_pull.aio.engine import Engine
from tests.aio.stand_in_aio import BACKUP, MASTER, StandIn

pytestmark = pytest.mark.needs_root


def test_script_runs_a_real_backup(aio: StandIn) -> None:
    engine = Engine(aio.daemon.address)
    assert MASTER in engine.running()
    assert engine.inspect(BACKUP) is None
    began = time.time()
    program = engine.start(MASTER, ["/daily-backup.sh"], {"DAILY_BACKUP": "1"})
    said = list(engine.stream(program))
    assert b"the script ends" in b"".join(data for _origin, data in said), said
    state = engine.exec_state(program)
    assert state is not None
    assert (state.running, state.exit_code) == (False, 0)
    found = engine.inspect(BACKUP)
    assert found is not None
    logs = engine.logs(found.id, since=began, stderr=False)
    assert found.exit_code == 0, "\n".join(engine.logs(found.id, since=began))
    assert logs[-1].startswith("Backup finished successfully on ")
    assert found.started_at is not None
    assert found.started_at > began
    assert len(aio.archives("first")) == 1
