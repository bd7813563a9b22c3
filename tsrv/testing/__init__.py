"""
Tests that every store of sessions must pass, for authors of further stores.

Subclass L{SessionStoreTests}, implement how to make the store and how to damage one of
its sessions, and run the class. With L{twisted.trial}::

    class MyStoreTests(SessionStoreTests, twisted.trial.unittest.TestCase):
        async def makeStore(self, limits, clock):
            return MyStore(clock, self.mktemp(), limits)

        async def damage(self, store, identifier):
            ...

All tests are C{async def}. Trial runs such methods as they are. pytest needs a plugin
for that, and most plugins need a decorator on each function: C{decorate} names the
decorator, and the class applies it to each of its tests. With pytest-twisted::

    class TestMyStore(SessionStoreTests, decorate=pytest_twisted.ensureDeferred):
        ...

C{pytest.register_assert_rewrite("tsrv.testing")} in C{conftest.py} makes pytest show
the compared values.

A store that uses the real time instead of C{clock} sets C{tick} to something like
0.1, and waits in C{letPass}.
"""

from __future__ import annotations

from .content import ContentTests
from .lifetime import LifetimeTests
from .sharing import SharingTests

__all__ = ["SessionStoreTests", "SharedSessionStoreTests"]


class SessionStoreTests(ContentTests, LifetimeTests):
    """
    Tests of any L{ISessionStore<tsrv.sessions.ISessionStore>}.
    """


class SharedSessionStoreTests(SessionStoreTests, SharingTests):
    """
    Tests of a store that several processes can use. All stores that C{makeStore}
    makes in one test have the same sessions.
    """
