"""The pytest fixtures of the harness; ``tests/conftest.py`` makes them known."""

from __future__ import annotations

import inspect
import signal
from collections.abc import Callable, Iterator

import pytest

from .builds import EVERY, FROZEN, FROZEN_14, PAIRS, Build
from .child import said_by_child
from .site import Installations, Site
from .workplace import IS_ROOT

MATRICES = {"every": EVERY, "pairs": PAIRS, "frozen": FROZEN, "one": (FROZEN_14,)}
NEEDS_ROOT = "needs root: makes accounts, capabilities or devices"


def pytest_configure(config: pytest.Config) -> None:
    """Make the markers of the harness known, and signals do what they do at a terminal."""
    # A shell ignores these two for what it runs in the background, and all below would, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    config.addinivalue_line("markers", f"needs_root: {NEEDS_ROOT}")
    config.addinivalue_line(
        "markers",
        "builds(matrix): run for 'every' build with every borg, only the 'frozen' build with "
        "every borg, 'one' build with one borg, or (without the marker) in 'pairs': each build "
        "and each borg once",
    )
    config.addinivalue_line(
        "markers", "own_process: the test ends children, and not those of the tests around it"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> object | None:
    """Call a test of the marker ``own_process`` in a child, which has no children but its own."""
    if pyfuncitem.get_closest_marker("own_process") is None:
        return None
    wanted = inspect.signature(pyfuncitem.obj).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in wanted}
    said = said_by_child(lambda: pyfuncitem.obj(**arguments))
    if said:
        pytest.fail(said, pytrace=False)
    return True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Report as skipped what needs root, where there is none."""
    if IS_ROOT:
        return
    for item in items:
        if item.get_closest_marker("needs_root"):
            item.add_marker(pytest.mark.skip(reason=NEEDS_ROOT))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for ``build`` once for each build of its matrix."""
    if "build" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("builds")
        matrix = MATRICES[marker.args[0] if marker else "pairs"]
        metafunc.parametrize("build", matrix, ids=lambda build: build.name, scope="function")


@pytest.fixture(scope="session")
def installations() -> Iterator[Installations]:
    """Builds, daemons and accounts of this worker."""
    made = Installations()
    yield made
    made.close()


SiteMaker = Callable[..., Site]


@pytest.fixture
def make_site(installations: Installations) -> Iterator[SiteMaker]:
    """Makes sites, with the arguments of ``Site`` after its first; nothing may outlive the test."""
    sites: list[Site] = []

    def make(build: Build, **options: object) -> Site:
        site = Site(installations, build, **options)  # type: ignore[arg-type]
        sites.append(site)
        return site

    yield make
    for site in sites:
        site.close()


@pytest.fixture
def site(make_site: SiteMaker, build: Build) -> Site:
    """A site of the build under test."""
    return make_site(build)
