"""
A server that listens before its modules are ready, and stops without losing requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from twisted.application.service import MultiService, Service
from twisted.application.strports import service as makePort
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
from .steadytime import SteadyTime
from .systemd import SystemdService

if TYPE_CHECKING:
    # It needs an extra, and options are parsed without.
    from ..web.site import Site

__all__ = ["Listener", "Server"]

_log = Logger("tsrv.server")

FLUSH_SECONDS: Final = 2.0
"""
Time to send the last responses, in seconds.
"""

MAX_ACCEPT_TURNS: Final = 20
"""
Maximum number of reactor turns in which a stopping server still accepts connections.
Each turn accepts more than the one before, so that twenty make thousands.
"""


class Listener(MultiService):
    """
    A site and the ports on which it listens.

    @ivar site: The site.
    """

    def __init__(self, site: Site, endpoints: Iterable[str], reactor: Any) -> None:
        """
        @param site: The site.
        @param endpoints: The endpoints, as
            L{serverFromString<twisted.internet.endpoints.serverFromString>} takes them.
        @param reactor: The reactor.
        """
        super().__init__()
        self.site = site
        for endpoint in endpoints:
            makePort(endpoint, site, reactor).setServiceParent(self)

    async def close(self) -> None:
        """
        Close all ports.
        """
        # A port that was never opened cannot be closed.
        closing = [maybeDeferred(port.stopService) for port in self]
        await DeferredList(closing, consumeErrors=True)


class Server(MultiService):
    """
    Listens first and initialises the modules second; stops in the opposite order. A
    separate site for operators is served until the end.

    @ivar startup: The modules.
    """

    def __init__(
        self,
        reactor: Any,
        startup: Startup,
        drainTimeout: float,
        listener: Listener,
        operations: Listener | None,
        systemd: SystemdService,
    ) -> None:
        """
        @param reactor: The reactor.
        @param startup: The modules.
        @param drainTimeout: Time for requests in progress to finish during a graceful
            shutdown, in seconds.
        @param listener: The site and its ports.
        @param operations: A separate site for operators.
        @param systemd: Notifies systemd.
        """
        super().__init__()
        self.startup = startup
        self._reactor = reactor
        self._time = SteadyTime(reactor)
        self._time.setServiceParent(self)
        self._drainTimeout = drainTimeout
        self._site = listener.site
        self._listeners = [listener] if operations is None else [listener, operations]
        for each in self._listeners:
            each.setServiceParent(self)
        self._systemd = systemd
        self._draining: Deferred[int] = succeed(0)
        self._stopped: Deferred[BaseException | None] | None = None

    def privilegedStartService(self) -> None:
        """
        Listen.

        @raise SystemExit: An endpoint cannot be used; the message says which and why.
        """
        self.startup.check()
        _orExit(super().privilegedStartService)

    def startService(self) -> None:
        """
        Listen, unless L{privilegedStartService} has (C{twist} does not call it), and
        initialise the modules when the reactor runs.

        @raise SystemExit: An endpoint cannot be used.
        """
        _orExit(super().startService)
        # Before it runs, the reactor does not handle the signal that stops the server.
        self._reactor.callWhenRunning(self._initialize)

    def announceStop(self) -> None:
        """
        Report to clients and systemd that the server is about to stop.
        """
        self.startup.announceStop()
        self._systemd.stopping()

    def skipDrain(self) -> None:
        """
        End the wait for requests in progress, or do not begin it.
        """
        self._drainTimeout = 0.0
        self._draining.cancel()

    def stopService(self) -> Deferred[None]:
        """
        Stop accepting connections, finish requests in progress, close the modules.

        @return: A Deferred that fires when the server has stopped. Repeated calls wait
            for the same shutdown, and get the same error; cancelling a wait does not
            affect it.
        """
        if self._stopped is None:
            stopping = Deferred.fromCoroutine(self._stop())
            self._stopped = stopping.addErrback(_errorOf)
        stopped: Deferred[None] = Deferred()

        def settle(error: BaseException | None) -> BaseException | None:
            if error is None:
                stopped.callback(None)
            else:
                stopped.errback(error)
            return error

        self._stopped.addCallback(settle)
        return stopped

    def _initialize(self) -> None:
        _log.info("Started")
        # A server that is asked to stop while requests wait still becomes initialised.
        waiting = [each.whenInitialized() for each in self.startup.wrappers.values()]
        gatherResults(waiting, consumeErrors=True).addCallbacks(
            lambda _: _log.info("Async module initialized"), _ignoreResult
        )
        self._systemd.startService()
        self.startup.startService()

    async def _stop(self) -> None:
        Service.stopService(self)
        self.announceStop()
        await self._acceptPending()
        await self._listeners[0].close()
        _log.info("Stopped listening, finishing requests in progress")
        if count := await self._drain(self._site, self._drainTimeout):
            _log.warn(
                "Drain timeout reached: aborting {count} requests in progress.",
                count=count,
            )
        # Each wrapper has logged the errors of its module.
        await self.startup.stopService().addErrback(_ignoreResult)
        for listener in self._listeners:
            await listener.close()
            await self._drain(listener.site, FLUSH_SECONDS)
            listener.site.abort()
        self._systemd.stopService()
        self._time.stopService()
        _log.info("Stopped")

    async def _acceptPending(self) -> None:
        # Closing the port would reset connections that only the kernel has accepted.
        for _ in range(MAX_ACCEPT_TURNS):
            before = self._site.connections.accepted
            await deferLater(self._reactor, 0)
            if self._site.connections.accepted == before:
                break

    async def _drain(self, site: Site, timeout: float) -> int:
        self._draining = site.stop(timeout)
        return await self._draining


def _errorOf(failure: Failure) -> BaseException:
    assert failure.value is not None
    return failure.value


def _ignoreResult(result: object) -> None: ...


class _CannotListen(SystemExit, Exception):
    """
    Ends the process. Only after an L{Exception} does C{twistd} remove its pid file and
    report to the parent of a daemon.
    """


def _orExit(start: Callable[[], None]) -> None:
    try:
        start()
    except (CannotListenError, OSError, OverflowError, TypeError, ValueError) as error:
        line = " ".join(str(error).split())
        raise _CannotListen(f"tsrv: {line}") from None
