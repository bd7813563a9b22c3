"""
Checks that each test leaves nothing behind: no unhandled error, no logged failure, no
delayed call.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest
from coverage import Coverage
from hypothesis import settings
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogBeginner, globalLogPublisher

from .browsing import browse as browse
from .channels import served as served
from .channels import server as server
from .support import Failures
from .websupport import leaveAll

# No test asserts a time, so hypothesis must not either.
settings.register_profile("tsrv", deadline=None)
settings.load_profile("tsrv")


UNMEASURED = {
    "tests.test_aiomachine",
    "tests.test_framing",
    "tests.test_logformat",
    "tests.test_machine",
    "tests.test_pipelining",
    "tests.test_programs",
}
"""
Modules that run the same lines many times. Coverage doubles the time of a line, and
other tests run these lines, too.
"""


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """
    Mark the tests that need a browser.
    """
    for item in items:
        if "browse" in item.fixturenames:
            item.add_marker("browser")


def pytest_collection_finish() -> None:
    """
    Exclude everything that exists by now from garbage collections.
    """
    # Until logging has begun, Twisted keeps events, and everything that they refer to.
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)
    gc.collect()
    gc.freeze()


@pytest.fixture
def clock() -> Iterator[Clock]:
    """
    A clock on which no call may be pending when the test ends.
    """
    clock = Clock()
    yield clock
    leaveAll(clock)
    assert clock.getDelayedCalls() == []


@pytest.fixture
def loggedFailures() -> list[LogEvent]:
    """
    The logged failures. A test removes the failures that it expects; any other failure
    makes the test fail.
    """
    return []


@pytest.fixture(autouse=True)
def nothingLeftBehind(loggedFailures: list[LogEvent]) -> Iterator[None]:
    """
    Fail a test for an unhandled error, for a logged failure, and for a delayed call on
    the real reactor.
    """

    observe = Failures(loggedFailures)
    globalLogPublisher.addObserver(observe)
    reactor = sys.modules.get("twisted.internet.reactor")
    before = set(reactor.getDelayedCalls()) if reactor is not None else set()
    try:
        yield
        # A Deferred reports an unhandled error when it is collected. Objects that a
        # test leaves behind are young; collecting everything would take several times
        # as long.
        gc.collect(1)
    finally:
        globalLogPublisher.removeObserver(observe)
    assert observe.all == []
    if reactor is not None:
        assert set(reactor.getDelayedCalls()) - before == set()


@pytest.fixture(autouse=True, scope="module")
def withoutCoverage(request: pytest.FixtureRequest) -> Iterator[None]:
    """
    Do not measure the coverage of some tests.
    """
    measuring = Coverage.current() if request.module.__name__ in UNMEASURED else None
    if measuring is not None:
        measuring.stop()
    yield
    if measuring is not None:
        measuring.start()


@pytest.fixture(autouse=True, scope="module")
def nothingLeftBehindByAnyTest() -> Iterator[None]:
    """
    Fail the last test of a file for an unhandled error that the collections above did
    not find.
    """
    yield
    observe = Failures()
    globalLogPublisher.addObserver(observe)
    gc.collect()
    globalLogPublisher.removeObserver(observe)
    assert observe.all == []
