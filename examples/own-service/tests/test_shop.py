"""The tests need no server and no real time."""

from shop.modules import addModules
from twisted.internet.defer import ensureDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tsrv import Startup


class ModulesTests(SynchronousTestCase):
    """The modules, behind their queues."""

    def test_aPriceWaitsForTheRates(self) -> None:
        """A call before the start waits until both modules are ready."""
        clock = Clock()
        startup = Startup(clock)
        price = ensureDeferred(addModules(startup, clock).price("tea"))
        startup.startService()
        self.assertNoResult(price)
        clock.advance(2.0)
        assert self.successResultOf(price) == 4.0
        self.successResultOf(startup.stopService())
