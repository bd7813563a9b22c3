"""The pages of the shop."""

from http import HTTPStatus

from twisted.web.server import Request

from tsrv.web.problems import HTTPError
from tsrv.web.responses import AsyncResource, Response, text

from .modules import Prices


class Price(AsyncResource):
    """C{/price?item=tea}: the price of an item."""

    def __init__(self, prices: Prices) -> None:
        super().__init__()
        self._prices = prices

    async def render_GET(self, request: Request) -> Response:
        """Return the price."""
        try:
            price = await self._prices.price(request.args[b"item"][0].decode())
        except (KeyError, UnicodeDecodeError):
            raise HTTPError("Unknown item", HTTPStatus.NOT_FOUND) from None
        return text(f"{price:.2f} EUR\n")
