"""
The server: its options, and the one place where everything is put together.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

from twisted.internet.endpoints import serverFromString
from twisted.python.usage import Options as UsageOptions
from twisted.python.usage import UsageError

from .asyncmodule import AsyncModule
from .resources import makeRoot, putOperations
from .server import Server
from .startup import Startup
from .systemd import VARIABLES, Notifier, SystemdService
from .web.metrics import Traffic
from .web.rendering import AsyncResource
from .web.site import Site

__all__ = ["Options", "addModules", "assemble", "makeService"]

_LISTEN: Final = "tcp:8000:interface=127.0.0.1:backlog=1024"

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
        self["operations-listen"] = []
        self["stay-up"] = False
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
        self["listen"].append(_endpoint("--listen", endpoint))

    def opt_operations_listen(self, endpoint: str) -> None:
        """
        Where to serve the pages for who runs the server. [default: with all others]
        """
        self["operations-listen"].append(_endpoint("--operations-listen", endpoint))

    def opt_stay_up(self) -> None:
        """
        Go on, and report it, when a module has failed for good.
        """
        self["stay-up"] = True

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


def _endpoint(option: str, text: str) -> str:
    """
    Read the description of an endpoint.
    """
    try:
        # No reactor is needed to find out whether it can be understood.
        port = getattr(serverFromString(None, text), "_port", 0)
    except Exception as error:
        raise UsageError(
            f"{option}: {_short(text)!r} is not a Twisted endpoint: "
            f"{_short(str(error))}"
        ) from None
    if not 0 <= port < 65536:
        raise UsageError(f"{option}: {_short(text)!r} has no port: 0 to 65535")
    return text


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


def addModules(startup: Startup, reactor: Any, options: Options) -> None:
    """
    All modules of the server, and what each of them needs.

    @param startup: What they are added to.
    @param reactor: Provides the time.
    @param options: What was asked for.
    """
    startup.add(
        "clock",
        partial(AsyncModule, reactor, options["delay"]),
        limit=options["queue-limit"],
        queueTimeout=options["queue-timeout"],
    )


def assemble(
    options: Options,
    reactor: Any,
    environment: Mapping[str, str],
    replacements: Mapping[str, object] | None = None,
) -> Server:
    """
    Put the server together.

    @param options: What was asked for.
    @param reactor: The reactor.
    @param environment: What systemd has to say to the process.
    @param replacements: What takes the place of modules, for tests.
    @return: The server; it is not started.
    """
    startup = Startup(reactor, replacements=replacements, stayUp=options["stay-up"])
    addModules(startup, reactor, options)
    clock = startup.wrappers["clock"]

    traffic = Traffic(reactor)
    makeSite = partial(
        Site, reactor=reactor, accessLog=options["access-log"], traffic=traffic
    )
    root = makeRoot(clock.module if options["direct"] else clock.proxy)
    apart = bool(options["operations-listen"])
    operationsRoot = AsyncResource() if apart else root
    page = putOperations(operationsRoot, startup, reactor, traffic, apart)

    server = Server(
        reactor,
        startup,
        options["drain-timeout"],
        site=makeSite(root),
        operations=makeSite(operationsRoot) if apart else None,
        page=page,
        systemd=SystemdService(startup, reactor, Notifier(environment)),
    )
    server.listen(options["listen"] or [_LISTEN])
    if apart:
        server.listenForOperations(options["operations-listen"])
    return server


def makeService(options: Options) -> Server:
    """
    Put the server together, and make it the program of this process.

    @param options: What was asked for.
    @return: The server; it is not started.
    """
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    _allowFiles(_LIMITS)
    # It is not meant for what this process may start.
    environment = {
        name: os.environ.pop(name) for name in VARIABLES if name in os.environ
    }
    server = assemble(options, reactor, environment)
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
            server.announceStop()
            first()

    def terminate(*caught: object) -> None:
        reactor.callFromThread(stop, reactor.stop)

    def interrupt(*caught: object) -> None:
        reactor.callFromThread(stop, partial(interrupted, *caught))

    signal.signal(signal.SIGTERM, terminate)
    if callable(interrupted):
        # In the background of a shell it is ignored.
        signal.signal(signal.SIGINT, interrupt)
