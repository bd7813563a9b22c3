"""
Tests that every session store must pass, for authors of further stores.

Subclass L{SessionStoreTests}, implement how to make the store and how to damage one of
its sessions, and run the class. With L{twisted.trial}::

    class MyStoreTests(SessionStoreTests, twisted.trial.unittest.TestCase):
        async def makeStore(self, limits, clock):
            return MyStore(clock, self.mktemp(), limits)

        async def damage(self, store, identifier):
            ...

All tests are C{async def}. Trial runs such methods as they are. pytest needs a plugin
for that, and most plugins need a decorator on each test: the class applies C{decorate}
to each of its tests. With pytest-twisted::

    class TestMyStore(SessionStoreTests, decorate=pytest_twisted.ensureDeferred):
        ...

C{pytest.register_assert_rewrite("tsrv.testing")} in C{conftest.py} makes pytest show
the compared values.

The tests of a store that uses the real time instead of C{clock} set C{tick} to 0.1 s,
for example, and wait in C{letPass}::

    tick = 0.1

    async def letPass(self, clock, seconds):
        await deferLater(reactor, seconds)
"""

from __future__ import annotations

from .content import ContentTests
from .lifetime import LifetimeTests
from .sharing import SharingTests

__all__ = ["SessionStoreTests", "SharedSessionStoreTests"]


class SessionStoreTests(ContentTests, LifetimeTests):
    """
    The tests of any L{ISessionStore<tsrv.sessions.ISessionStore>}. A subclass
    implements C{makeStore} and C{damage}, and may override the others.

    @cvar tick: The unit of time of the tests, in seconds. Sessions live for 10 to 30
        ticks, and all tests together wait for about 100.
    @cvar expiresByItself: Whether the database removes expired sessions, so that
        C{cleanup()} finds none.
    """


class SharedSessionStoreTests(SessionStoreTests, SharingTests):
    """
    The tests of a store that several processes can share, in addition to
    L{SessionStoreTests}. All stores that C{makeStore} makes in one test have the same
    sessions.
    """
