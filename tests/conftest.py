"""
What every test has to leave behind: nothing.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogBeginner, globalLogPublisher

from .support import Failures


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """
    Mark the tests that need a browser.
    """
    for item in items:
        if "browse" in item.fixturenames:
            item.add_marker("browser")


def pytest_collection_finish() -> None:
    """
    What is there by now stays: collecting garbage after each test need not
    look through it again. And until logging has begun events are kept, with
    all that they came from, which is then no garbage.
    """
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)
    gc.collect()
    gc.freeze()


@pytest.fixture
def clock() -> Iterator[Clock]:
    """
    A clock on which no call may be left when the test ends.
    """
    clock = Clock()
    yield clock
    assert clock.getDelayedCalls() == []


@pytest.fixture
def loggedFailures() -> list[LogEvent]:
    """
    The failures that were logged. A test takes out those that it expects; any
    other makes it fail.
    """
    return []


@pytest.fixture(autouse=True)
def nothingLeftBehind(loggedFailures: list[LogEvent]) -> Iterator[None]:
    """
    Fail a test for an error that nobody handled, for a failure that was
    logged, and for a delayed call on the real reactor.
    """

    observe = Failures(loggedFailures)
    globalLogPublisher.addObserver(observe)
    reactor = sys.modules.get("twisted.internet.reactor")
    before = set(reactor.getDelayedCalls()) if reactor is not None else set()
    try:
        yield
        # Errors in Deferreds are reported when these are collected.
        gc.collect()
    finally:
        globalLogPublisher.removeObserver(observe)
    assert observe.all == []
    if reactor is not None:
        assert set(reactor.getDelayedCalls()) - before == set()
