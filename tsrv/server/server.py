"""
A server: sites that listen before the modules behind them are ready.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from twisted.application.service import MultiService, Service
from twisted.application.strports import service as listeningService
from twisted.internet.defer import (
    Deferred,
    DeferredList,
    gatherResults,
    maybeDeferred,
    succeed,
)
from twisted.internet.error import CannotListenError
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..startup import Startup
from ..web.site import Site
from .systemd import SystemdService

__all__ = ["Server"]

_FLUSH: Final = 2.0
"""
How long the last responses may take to be sent, in seconds.
"""

_TURNS: Final = 20
"""
For how many turns of the reactor those are let in who are at the door. Each
turn accepts more than the one before, so that twenty make thousands.
"""


class Server(MultiService):
    """
    Listens first, and initialises then; stops in the opposite order. Who watches
    over it can do so until the end.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        startup: Startup,
        drainTimeout: float,
        *,
        site: Site,
        operations: Site | None = None,
        systemd: SystemdService,
    ) -> None:
        """
        @param reactor: The reactor.
        @param startup: The modules.
        @param drainTimeout: How long requests in progress may take to end when
            the service is stopped, in seconds.
        @param site: The site.
        @param operations: The site of who runs the server, if it is another one.
        @param systemd: Tells systemd.
        """
        super().__init__()
        self._reactor = reactor
        self._startup = startup
        self._drainTimeout = drainTimeout
        self._site = site
        self._operations = operations
        self._systemd = systemd
        self._announced = False
        self._hurried = False
        self._draining: Deferred[int] = succeed(0)
        self._stopped: Deferred[None] | None = None
        self._ports = MultiService()
        self._ports.setServiceParent(self)
        self._operationsPorts = MultiService()
        self._operationsPorts.setServiceParent(self)

    def listen(self, endpoints: Iterable[str]) -> None:
        """
        Say where the site is served.

        @param endpoints: The endpoints, as Twisted describes them.
        """
        for endpoint in endpoints:
            port = listeningService(endpoint, self._site, self._reactor)
            port.setServiceParent(self._ports)

    def listenForOperations(self, endpoints: Iterable[str]) -> None:
        """
        Say where the site of who runs the server is.

        @param endpoints: The endpoints, as Twisted describes them.
        """
        assert self._operations is not None
        for endpoint in endpoints:
            port = listeningService(endpoint, self._operations, self._reactor)
            port.setServiceParent(self._operationsPorts)

    def privilegedStartService(self) -> None:
        """
        Listen.

        @raise SystemExit: It is not possible; the message says where and why.
        """
        self._startup.check()
        _listen(super().privilegedStartService)

    def startService(self) -> None:
        """
        Initialise; listen before, where nobody had this done with privileges,
        as C{twist} has not.

        @raise SystemExit: It is not possible to listen.
        """
        _listen(super().startService)
        # Before the reactor runs it does not look after signals: who says that it
        # has started must be ready to be told to stop.
        self._reactor.callWhenRunning(self._begin)

    def _begin(self) -> None:
        """
        Initialise.
        """
        self._log.info("Started")
        # What is held is waited for even by a server that is to stop, and so is
        # this.
        waiting = [each.whenInitialized() for each in self._startup.wrappers.values()]
        gatherResults(waiting, consumeErrors=True).addCallbacks(
            self._initialized, _told
        )
        self._systemd.startService()
        self._startup.startService()

    def announceStop(self) -> None:
        """
        Tell whoever asks that the server is going to stop.
        """
        self._announced = True
        self._startup.announceStop()
        self._systemd.stopping()

    def stopService(self) -> Deferred[None]:
        """
        Accept no more connections, let the requests in progress end, answer
        what is still waiting, close. It may be called again.

        @return: A Deferred that fires when all this is done. Cancelling it gives
            up the waiting alone.
        """
        if self._stopped is None:
            self._stopped = Deferred.fromCoroutine(self._stop())
        stopped: Deferred[None] = Deferred()
        self._stopped.addBoth(_passOn, stopped)
        return stopped

    def hurry(self) -> None:
        """
        Wait no longer for requests in progress.
        """
        self._hurried = self._announced
        self._draining.cancel()

    async def _stop(self) -> None:
        Service.stopService(self)
        self.announceStop()
        await self._letIn()
        await _close(self._ports)
        self._log.info("Stopped listening, letting requests in progress end")
        patience = 0.0 if self._hurried else self._drainTimeout
        if await self._drain(self._site, patience):
            self._log.warn("There are requests that cannot be waited for any longer")
        # Each wrapper has logged what went wrong with its module.
        await self._startup.stopService().addErrback(_told)
        await self._drain(self._site, _FLUSH)
        self._site.abort()
        if self._operations is not None:
            await _close(self._operationsPorts)
            await self._drain(self._operations, _FLUSH)
            self._operations.abort()
        self._systemd.stopService()
        self._log.info("Stopped")

    async def _letIn(self) -> None:
        """
        Let in who is at the door: the system has accepted these connections,
        and would reset them when the port is closed.
        """
        # Where they never cease to come, those who are in wait to be let out.
        for _ in range(_TURNS):
            before = self._site.connectionsAccepted
            await deferLater(self._reactor, 0)
            if self._site.connectionsAccepted == before:
                break

    async def _drain(self, site: Site, timeout: float) -> int:
        """
        Wait for the connections of a site to end.

        @return: The number of those that have not.
        """
        self._draining = site.stop(timeout)
        return await self._draining

    def _initialized(self, result: object) -> None:
        self._log.info("Async module initialized")


async def _close(ports: MultiService) -> None:
    """
    Close ports; those that were never opened need not be, and cannot.
    """
    closing = [maybeDeferred(port.stopService) for port in ports]
    await DeferredList(closing, consumeErrors=True)


def _passOn(result: None, waiting: Deferred[None]) -> None:
    """
    Tell one of those who wait for the end.
    """
    waiting.callback(result)


def _told(failure: Failure) -> None:
    """
    The start-up has logged why it has come to nothing.
    """


class _NotStarted(SystemExit, Exception):
    """
    The server cannot listen. To leave is all there is to do; but C{twistd}
    removes its file, and tells who waits for the daemon, only on what is an
    C{Exception} too.
    """


def _listen(start: Callable[[], None]) -> None:
    """
    Start what listens, or end the process with one line.
    """
    try:
        start()
    except (
        CannotListenError,
        OSError,
        OverflowError,
        TypeError,
        ValueError,
    ) as error:
        line = " ".join(str(error).split())
        raise _NotStarted(f"tsrv: {line}") from None
