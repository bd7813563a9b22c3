"""
What a store of sessions has to do, as tests that the author of another one can
run.

With L{twisted.trial}::

    class MyStoreTests(SessionStoreTests, twisted.trial.unittest.TestCase):
        async def makeStore(self, limits, clock):
            return MyStore(clock, self.mktemp(), limits)

        async def damage(self, store, identifier):
            ...

With pytest, whose plugins have to be told which functions are coroutines, here
pytest-twisted::

    class TestMyStore(SessionStoreTests, decorate=pytest_twisted.ensureDeferred):
        ...

C{pytest.register_assert_rewrite("tsrv.testing")} in a C{conftest.py} makes pytest
show what was compared.

A store that goes by real time sets C{tick} to something like 0.1, and lets that
pass in C{letPass}. That nothing is left on the clock is looked at here; what is
left on the reactor trial finds by itself.
"""

from __future__ import annotations

from .changing import Changing
from .ending import Ending
from .making import Making
from .sharing import Sharing

__all__ = ["SessionStoreTests", "SharedSessionStoreTests"]


class SessionStoreTests(Making, Changing, Ending):
    """
    What every L{ISessionStore<tsrv.sessions.ISessionStore>} does.
    """


class SharedSessionStoreTests(SessionStoreTests, Sharing):
    """
    What one does that several processes can use. All stores that C{makeStore} has
    made in one test have the same sessions.
    """
