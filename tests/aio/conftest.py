"""One engine for each worker, and a stand-in AIO on it for each test."""

from collections.abc import Iterator

import pytest

from tests.aio.daemon import Daemon
from tests.aio.host import Host
from tests.aio.stand_in_aio import StandIn
from tests.harness.workplace import Workplace


@pytest.fixture(scope="session")
def daemon() -> Iterator[Daemon]:
    workplace = Workplace()
    made = Daemon(workplace)
    yield made
    made.close()
    workplace.close()


@pytest.fixture
def aio(daemon: Daemon) -> Iterator[StandIn]:
    made = StandIn(daemon)
    yield made
    made.close()


@pytest.fixture
def host(aio: StandIn) -> Iterator[Host]:
    made = Host(aio)
    yield made
    made.close()
