"""The modules. They do not know that calls are queued, and nothing of the web."""

from typing import Any

from twisted.internet.task import deferLater

from tsrv import Startup


class Rates:
    """Exchange rates. A real service fetches them, which takes a moment."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    async def initialize(self) -> None:
        """Fetch the rates."""
        await deferLater(self._reactor, 2.0)
        self._rates = {"EUR": 1.0, "USD": 1.25}

    async def rate(self, currency: str) -> float:
        """Return the price of a euro in a currency."""
        return self._rates[currency]


class Prices:
    """Prices of goods. The shop buys in dollars, so the prices need the rates."""

    def __init__(self, rates: Rates) -> None:
        self._rates = rates

    async def initialize(self) -> None:
        """Convert all prices once."""
        self._prices = {"tea": 5.0 / await self._rates.rate("USD")}

    async def price(self, item: str) -> float:
        """Return the price of an item in euros."""
        return self._prices[item]


def addModules(startup: Startup, reactor: Any) -> Prices:
    """Add both modules, and return the proxy of the prices."""
    rates = startup.add("rates", Rates(reactor)).proxy
    return startup.add("prices", Prices(rates), needs=["rates"]).proxy
