"""
A server that listens before its modules are ready, and stops without losing requests.

How it works
============

The ports are open before the first module is initialised, so early requests wait in
the queues of the modules. A stop takes these steps:

  1. The server announces the stop: C{/readyz} responds with 503, and each response
     closes its connection. The server accepts connections for another C{shutdownDelay}
     seconds, so that load balancers notice and send requests elsewhere.
  2. The server closes the ports. Requests in progress finish within C{drainTimeout}
     seconds. Calls fail at once if they wait for a module that cannot become ready
     within that time.
  3. The server closes the modules, then the site for operators.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, MutableMapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import IResource, Resource

from ..queuing.history import count
from ..queuing.waiters import Waiters
from ..startup import Startup
from .draining import closeLate
from .listener import Listener
from .process import handleSignals, prepareProcess
from .steadytime import SteadyTime
from .systemd import VARIABLES, SystemdService

if TYPE_CHECKING:
    from typing import Unpack

    # The import needs an extra, but parsing the options does not.
    from ..web.site import SiteOptions

__all__ = ["Server"]

_Result = TypeVar("_Result")

_log = Logger("tsrv.server")

FLUSH_SECONDS: Final = 2.0
HURRIED_FLUSH_SECONDS: Final = 0.1
"""
Time to send the last responses, in seconds; the second one after L{Server.stopNow}.
"""

WATCH_SECONDS: Final = 1.0
"""
Time between two checks of the modules that requests in progress need, in seconds.
"""

PROGRESS_SECONDS: Final = 5.0
"""
Time between two lines in the log while requests in progress finish, in seconds.
"""

MAX_WAITERS: Final = 1_000
"""
Maximum number of callers that wait for the server to stop.
"""

_HINT: Final = "press Ctrl-C again to stop now"


class Server(Service):
    """
    A service that listens, starts the modules of a site, and shuts both down
    gracefully::

        def makeServer(reactor):
            startup = Startup(reactor)
            prices = startup.add("prices", Prices(reactor)).proxy
            return Server(reactor, startup, PricesPage(prices), ["tcp:8000"])

    It is the service that a plugin of C{twistd} or C{twist} returns, or a child of the
    application in a C{.tac} file. A program of its own calls C{react(lambda reactor:
    makeServer(reactor).run())}. The exit status is 0 after a graceful shutdown, and 1
    if a required module has failed for good.

    @ivar startup: The modules.
    """

    def __init__(
        self,
        reactor: Any,
        startup: Startup,
        root: IResource | Resource,
        endpoints: Iterable[str],
        *,
        operations: Iterable[str] = (),
        program: str = "server",
        version: str = "",
        drainTimeout: float = 25.0,
        shutdownDelay: float = 0.0,
        ownsProcess: bool = True,
        environment: MutableMapping[str, str] = os.environ,
        **options: Unpack[SiteOptions],
    ) -> None:
        """
        @param reactor: Provides time, signals, threads and sockets.
        @param startup: The modules. The server starts and stops them.
        @param root: The root of the site: any resource of twisted.web.
        @param endpoints: The endpoints to serve on, as
            L{serverFromString<twisted.internet.endpoints.serverFromString>} takes them.
        @param operations: The endpoints of a separate site for operators. Without them,
            mount L{Operations<tsrv.web.operations.Operations>} yourself.
        @param program: The name of the program, for log, status page and metrics.
        @param version: The version of the program, for status page and metrics.
        @param drainTimeout: Time for requests in progress to finish during a graceful
            shutdown, in seconds.
        @param shutdownDelay: Time for which a stopping server still accepts
            connections, in seconds. Meanwhile C{/readyz} responds with 503.
        @param ownsProcess: Whether the server may prepare the process (see
            L{prepareProcess} and L{handleSignals}), and make the time of the reactor
            steady (see L{SteadyTime}).
        @param environment: The environment of the process. The server removes the
            variables of systemd, so that no child process notifies in its place.
        @param options: Options of L{Site<tsrv.web.site.Site>}, such as C{accessLog}.
        @raise ValueError: An endpoint is invalid; the message says why.
        """
        from ..web.operations import Operations
        from ..web.site import Site
        from ..web.traffic import Traffic

        self.startup = startup
        self._reactor = reactor
        self._program = program
        self._drainTimeout = drainTimeout
        self._shutdownDelay = shutdownDelay
        self._ownsProcess = ownsProcess
        traffic = options.get("traffic") or Traffic(reactor)
        options["traffic"] = traffic
        self._site = Site(root, reactor, **options)
        self._listeners = [Listener(self._site, endpoints, reactor)]
        if separate := list(operations):
            pages = Operations(
                startup,
                reactor,
                traffic=traffic,
                name=program,
                version=version,
                operatorsOnly=True,
                proxies=options.get("proxies"),
            )
            site = Site(pages, reactor, **options)
            self._listeners.append(Listener(site, separate, reactor))
        variables = {key: environment.pop(key, "") for key in VARIABLES}
        self._systemd = SystemdService(startup, reactor, variables)
        self._time = SteadyTime(reactor)
        self._waiting: Deferred[Any] = succeed(None)
        self._hurries = False
        self._isStopping = False
        self._hasStopped = False
        self._stopWaiters = Waiters(MAX_WAITERS, "for the server to stop")
        if ownsProcess:
            prepareProcess(reactor)

    def privilegedStartService(self) -> None:
        """
        Check the relations of the modules, and listen.

        @raise tsrv.startup.GraphError: A relation is wrong, such as a cycle.
        @raise SystemExit: An endpoint cannot be used; the message says which and why.
        """
        self.startup.check()
        try:
            for listener in self._listeners:
                listener.listen()
        except ValueError as error:
            raise _CannotListen(f"{self._program}: {error}") from None

    def startService(self) -> None:
        """
        Listen, if nobody has called L{privilegedStartService}: C{twistd} calls it,
        C{twist} does not. Initialise the modules when the reactor runs.

        @raise tsrv.startup.GraphError: As for L{privilegedStartService}.
        @raise SystemExit: As for L{privilegedStartService}.
        @raise RuntimeError: The server was started or stopped before.
        """
        if self.running or self._isStopping:
            raise RuntimeError("a server is started only once")
        self.privilegedStartService()
        super().startService()
        if self._ownsProcess:
            self._time.startService()
        # Only a running reactor handles the signal that stops the server.
        self._reactor.callWhenRunning(self._initialize)

    def run(self) -> Deferred[None]:
        """
        Start the server, and stop it when the reactor stops. Use this method with
        L{twisted.internet.task.react}, and in programs that run the reactor themselves.

        @return: As for L{whenStopped}.
        @raise tsrv.startup.GraphError: As for L{privilegedStartService}.
        @raise SystemExit: As for L{privilegedStartService}.
        @raise RuntimeError: As for L{startService}.
        """
        self.startService()
        stop = self.stopService
        self._reactor.addSystemEventTrigger("before", "shutdown", stop)
        return self.whenStopped()

    def announceStop(self) -> None:
        """
        Tell clients, load balancers and systemd that the server is about to stop.
        """
        self.startup.announceStop()
        for listener in self._listeners:
            listener.site.announceStop()
        self._systemd.stopping()

    def stopNow(self) -> None:
        """
        Do not wait in the graceful shutdown, neither for load balancers nor for
        requests in progress. This method does not start the shutdown.
        """
        self._hurries = True
        self._waiting.cancel()

    def stopService(self) -> Deferred[None]:
        """
        Stop accepting connections, finish requests in progress, close the modules.
        Repeated calls wait for the same shutdown.

        @return: As for L{whenStopped}.
        """
        stopped = self.whenStopped()
        if not self._isStopping:
            self._isStopping = True
            stopping = Deferred.fromCoroutine(self._stop())
            stopping.addBoth(self._ended)
        return stopped

    def whenStopped(self) -> Deferred[None]:
        """
        Wait for the end of the shutdown.

        @return: A Deferred that fires when the server has stopped. Cancelling it does
            not affect the shutdown.
        """
        return succeed(None) if self._hasStopped else self._stopWaiters.wait()

    def _initialize(self) -> None:
        if self._isStopping:
            return
        if self._ownsProcess:
            handleSignals(self._reactor, self.announceStop, self.stopNow)
        urls = ", ".join(url for each in self._listeners for url in each.urls)
        _log.info("{program}: listening on {urls}", program=self._program, urls=urls)
        _log.info("Started")
        # Not startup.whenReady(): it fails when the server stops, but modules may still
        # become ready for the requests that wait.
        waiting = [each.whenInitialized() for each in self.startup.wrappers.values()]
        gatherResults(waiting, consumeErrors=True).addCallbacks(
            lambda _: _log.info("Async module initialized"), _ignoreResult
        )
        self.startup.whenReady().addCallbacks(self._becameReady, _ignoreResult)
        self._systemd.startService()
        self.startup.startService()

    def _becameReady(self, _: None) -> None:
        _log.info(
            "{program}: ready on {urls}",
            program=self._program,
            urls=", ".join(self._listeners[0].urls),
        )

    async def _stop(self) -> None:
        super().stopService()
        self.announceStop()
        if self._shutdownDelay and self._listeners[0].urls:
            _log.info(
                "Still accepting connections for {seconds:g} s, so that load balancers "
                "notice; {hint}",
                seconds=self._shutdownDelay,
                hint=_HINT,
            )
            delay: Deferred[None] = deferLater(self._reactor, self._shutdownDelay)
            await self._waitFor(delay.addErrback(_ignoreResult))
        await self._listeners[0].close()
        await self._drain()
        # Each wrapper has logged the errors of its module.
        await self.startup.stopService().addErrback(_ignoreResult)
        for listener in self._listeners:
            await listener.close()
            flush = HURRIED_FLUSH_SECONDS if self._hurries else FLUSH_SECONDS
            await listener.site.stop(flush)
            listener.site.abort()
        self._systemd.stopService()
        self._time.stopService()
        _log.info("Stopped")

    async def _drain(self) -> None:
        end: float = self._reactor.seconds() + self._drainTimeout
        connections = self._site.connections

        def left() -> float:
            return max(0.0, end - float(self._reactor.seconds()))

        def report(text: str) -> None:
            _log.info(
                text + " {requests} in progress: {seconds:.0f} s left, {hint}",
                requests=count(connections.inProgress, "request"),
                seconds=left(),
                hint=_HINT,
            )

        if connections.inProgress:
            report("Stopped listening, finishing")
        else:
            _log.info("Stopped listening")
        draining = self._waitFor(self._site.stop(self._drainTimeout))
        watches = [
            self._repeat(WATCH_SECONDS, lambda: closeLate(self.startup, left())),
            self._repeat(PROGRESS_SECONDS, lambda: report("Waiting for"), now=False),
        ]
        aborted = await draining
        for watch in watches:
            watch.stop()
        if aborted:
            _log.warn(
                "{why}: aborting {requests} in progress.",
                why="Told to stop now" if self._hurries else "Drain timeout reached",
                requests=count(aborted, "request"),
            )

    def _repeat(
        self, seconds: float, look: Callable[[], object], now: bool = True
    ) -> LoopingCall:
        call = LoopingCall(look)
        call.clock = self._reactor
        call.start(seconds, now)
        return call

    def _waitFor(self, waiting: Deferred[_Result]) -> Deferred[_Result]:
        self._waiting = waiting
        if self._hurries:
            waiting.cancel()
        return waiting

    def _ended(self, result: Failure | None) -> None:
        if result is not None:
            _log.failure("The shutdown failed", result)
        self._hasStopped = True
        self._stopWaiters.succeed()


def _ignoreResult(result: object) -> None: ...


class _CannotListen(SystemExit, Exception):
    """
    Ends the process with a message. It is an L{Exception}, too: otherwise C{twistd}
    would neither remove its pid file nor report to the parent of a daemon.
    """

    # The parent shows 100 characters of the error. Python adds the name of the module
    # to the text, unless it is this one.
    __module__ = "builtins"
