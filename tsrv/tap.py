"""
The server: its options, and the one place where everything is put together.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

from twisted.application.service import MultiService
from twisted.application.strports import service as listeningService
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.usage import Options as UsageOptions
from twisted.python.usage import UsageError

from .asyncmodule import AsyncModule
from .resources import makeRoot
from .web.site import Site
from .wrapper import QueuingWrapper, Unavailable

__all__ = ["Options", "Server", "makeService"]

_LISTEN: Final = "tcp:8000:interface=127.0.0.1:backlog=1024"

_FLUSH: Final = 2.0
"""
How long the last responses may take to be sent, in seconds.
"""


_LONGEST: Final = 365 * 24 * 60 * 60
"""
The most that is a number of seconds, and not a mistake.
"""

# Not every system has limits.
_LIMITS: Final[Any] = import_module("resource") if find_spec("resource") else None


class Options(UsageOptions):
    """
    The options of C{twistd tsrv}.
    """

    synopsis = "[options]"
    longdesc = (
        "A web server that listens before its modules are ready. "
        "Requests that come too early are held, and answered in order."
    )

    def __init__(self) -> None:
        super().__init__()
        self["listen"] = []
        self["delay"] = 10.0
        self["direct"] = False
        self["queue-limit"] = 10_000
        self["queue-timeout"] = 30.0
        self["drain-timeout"] = 30.0
        self["access-log"] = False

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """
        Read the command line.

        @param options: The words of the command line.
        @raise SystemExit: It cannot be understood; the message is one line.
        """
        try:
            super().parseOptions(options)
        except UsageError as error:
            # What was typed may have lines, and come back in the message.
            line = " ".join(str(error).split())
            raise SystemExit(f"tsrv: {line} (see twistd tsrv --help)") from None

    def opt_listen(self, endpoint: str) -> None:
        """
        Where to listen: a Twisted endpoint; repeatable. [default: port 8000, loopback]
        """
        try:
            # No reactor is needed to find out whether it can be understood.
            port = getattr(serverFromString(None, endpoint), "_port", 0)
        except Exception as error:
            raise UsageError(
                f"--listen: {_short(endpoint)!r} is not a Twisted endpoint: "
                f"{_short(str(error))}"
            ) from None
        if not 0 <= port < 65536:
            raise UsageError(f"--listen: {_short(endpoint)!r} has no port: 0 to 65535")
        self["listen"].append(endpoint)

    def opt_delay(self, seconds: str) -> None:
        """
        How many seconds the clock takes to start. [default: 10]
        """
        self["delay"] = _seconds("--delay", seconds)

    def opt_direct(self) -> None:
        """
        Ask the clock without a queue in front of it, to see what that is like.
        """
        self["direct"] = True

    def opt_queue_limit(self, calls: str) -> None:
        """
        How many calls may wait for the clock. [default: 10000]
        """
        try:
            limit = int(calls)
        except ValueError:
            limit = -1
        if limit < 0:
            raise UsageError(
                f"--queue-limit: {_short(calls)!r} is not a number of calls"
            )
        self["queue-limit"] = limit

    def opt_queue_timeout(self, seconds: str) -> None:
        """
        How many seconds a call may wait for the clock. [default: 30]
        """
        self["queue-timeout"] = _seconds("--queue-timeout", seconds)

    def opt_drain_timeout(self, seconds: str) -> None:
        """
        How many seconds requests get to end when it stops. [default: 30]
        """
        self["drain-timeout"] = _seconds("--drain-timeout", seconds)

    def opt_access_log(self, switch: str) -> None:
        """
        Whether to log every request: on or off. [default: off]
        """
        if switch not in ("on", "off"):
            raise UsageError(f"--access-log: {_short(switch)!r} is neither on nor off")
        self["access-log"] = switch == "on"


def _seconds(option: str, text: str) -> float:
    """
    Read a number of seconds.
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _LONGEST:
        raise UsageError(
            f"{option}: {_short(text)!r} is not a number of seconds "
            f"from 0 to {_LONGEST}"
        )
    return seconds


def _short(text: str) -> str:
    """
    @return: As much of what was typed as fits into a line.
    """
    return text if len(text) <= 50 else f"{text[:47]}..."


class Server(MultiService):
    """
    Listens first, and initialises then; stops in the opposite order.
    """

    _log = Logger()

    def __init__(
        self,
        site: Site,
        initialize: Callable[[], Deferred[None]],
        close: Callable[[], Deferred[None]],
        drainTimeout: float,
    ) -> None:
        """
        @param site: What the children of this service serve.
        @param initialize: Initialises what the site works with.
        @param close: Ends what still waits for it, and closes it.
        @param drainTimeout: How long requests in progress may take to end when
            the service is stopped, in seconds.
        """
        super().__init__()
        self._site = site
        self._initialize = initialize
        self._close = close
        self._drainTimeout = drainTimeout
        self._draining: Deferred[int] = succeed(0)
        self._initializing: Deferred[None] = succeed(None)

    def privilegedStartService(self) -> None:
        """
        Listen.

        @raise SystemExit: It is not possible; the message says where and why.
        """
        _listen(super().privilegedStartService)

    def startService(self) -> None:
        """
        Initialise; listen before, where nobody had this done with privileges,
        as C{twist} has not.

        @raise SystemExit: It is not possible to listen.
        """
        _listen(super().startService)
        self._log.info("Started")
        self._initializing = self._initialize()
        self._initializing.addCallback(self._initialized)
        self._initializing.addErrback(self._uninitialized)

    def stopService(self) -> Deferred[None]:
        """
        Accept no more connections, let the requests in progress end, answer
        what is still waiting, close.

        @return: A Deferred that fires when all this is done.
        """
        return Deferred.fromCoroutine(self._stop())

    def hurry(self) -> None:
        """
        Wait no longer for requests in progress.
        """
        self._draining.cancel()

    async def _stop(self) -> None:
        await maybeDeferred(super().stopService)
        self._log.info("Stopped listening, letting requests in progress end")
        if await self._drain(self._drainTimeout):
            self._log.warn("There are requests that cannot be waited for any longer")
        try:
            await self._close()
        except Exception:
            self._log.failure("Closing failed")
        # Where there is no wrapper, nothing has ended it yet.
        self._initializing.cancel()
        await self._drain(_FLUSH)
        self._site.abort()
        self._log.info("Stopped")

    async def _drain(self, timeout: float) -> int:
        """
        Wait for the connections to end.

        @return: The number of those that have not.
        """
        self._draining = self._site.stop(timeout)
        return await self._draining

    def _initialized(self, result: object) -> None:
        self._log.info("Async module initialized")

    def _uninitialized(self, failure: Failure) -> None:
        # A wrapper has logged why; to be closed while starting is no error.
        if not failure.check(Unavailable, CancelledError):
            self._log.failure("Async module not initialized", failure=failure)


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


def _allowFiles(limits: Any) -> None:
    """
    Let this process have as many connections as it may.

    @param limits: What the module C{resource} is, where there is one.
    """
    if limits is None:
        return
    hard = limits.getrlimit(limits.RLIMIT_NOFILE)[1]
    # Some systems know of a lower limit that they do not tell.
    with suppress(OSError, ValueError):
        limits.setrlimit(limits.RLIMIT_NOFILE, (hard, hard))


def makeService(options: Options) -> Server:
    """
    Put the server together.

    @param options: What was asked for.
    @return: The server; it is not started.
    """
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    _allowFiles(_LIMITS)
    module = AsyncModule(reactor, options["delay"])
    speaker, initialize = module, module.initialize
    close: Callable[[], Deferred[None]] = partial(succeed, None)
    if not options["direct"]:
        wrapper = QueuingWrapper(
            module,
            reactor,
            limit=options["queue-limit"],
            timeout=options["queue-timeout"],
        )
        speaker, initialize, close = wrapper.proxy, wrapper.initialize, wrapper.close
    site = Site(makeRoot(speaker), reactor, accessLog=options["access-log"])
    server = Server(site, initialize, close, options["drain-timeout"])
    for endpoint in options["listen"] or [_LISTEN]:
        listeningService(endpoint, site, reactor).setServiceParent(server)
    reactor.callWhenRunning(_exitCleanly, reactor, server)
    return server


def _exitCleanly(reactor: Any, server: Server) -> None:
    """
    Make SIGTERM the ordinary way to stop: the exit status is that of a program
    that has done all it was asked for, and not that of one that was killed,
    which is what the reactor's own way to handle it comes to. SIGINT stays with
    the reactor. A second signal is for who does not want to wait.
    """
    if signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, signal.SIG_IGN, None):
        # The reactor was told to leave signals alone.
        return
    interrupted: Any = signal.getsignal(signal.SIGINT)
    stopping = False

    def stop(first: Callable[[], None]) -> None:
        nonlocal stopping
        if stopping:
            server.hurry()
        else:
            stopping = True
            first()

    def terminate(*caught: object) -> None:
        reactor.callFromThread(stop, reactor.stop)

    def interrupt(*caught: object) -> None:
        reactor.callFromThread(stop, partial(interrupted, *caught))

    signal.signal(signal.SIGTERM, terminate)
    if callable(interrupted):
        # In the background of a shell it is ignored.
        signal.signal(signal.SIGINT, interrupt)
