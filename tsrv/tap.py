"""
The server: its options, and the one place where everything is put together.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final, cast

from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, Logger, globalLogPublisher
from twisted.python.usage import Options as UsageOptions
from twisted.python.usage import UsageError

from ._words import (
    configurationOf,
    countOf,
    databaseOf,
    endpointOf,
    firstLineOf,
    positiveSecondsOf,
    secondsOf,
    shortened,
)
from .asyncmodule import AsyncModule
from .modules._fetching import Source
from .modules.database import Database, DatabaseRefused, Location, Settings
from .modules.users import SCHEMA, Users
from .resources import makeRoot, putOperations
from .server import Server
from .startup import Startup
from .systemd import VARIABLES, Notifier, SystemdService
from .web._requestid import addRequestId
from .web.metrics import Traffic
from .web.rendering import AsyncResource
from .web.site import Site
from .wrapper import jitteredBackoff

__all__ = ["Options", "addModules", "assemble", "makeService"]

_LISTEN: Final = "tcp:8000:interface=127.0.0.1:backlog=1024"

_DATABASE: Final = "sqlite:tsrv.db"

_SECRETS: Final = ("TSRV_DATABASE", "TSRV_CONFIG_URL")
"""
What may be said in the environment, where other users cannot read it, in place
of the command line, where they can.
"""

_LONGEST_DELAY: Final = 4.0
"""
The most seconds between two attempts to reach the database.
"""

_DRAINED: Final = 1_000
"""
How many calls to the database may be in progress while what was held is run.
"""

_GARBAGE: Final = 50_000
"""
After how many objects more than were freed the collector looks for garbage.
"""

_BODY: Final = 1024 * 1024
"""
How many bytes a user may have, as a client sends it.
"""

_log = Logger()

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
        self["database"] = None
        self["database-connections"] = 4
        self["statement-timeout"] = 10.0
        self["connect-timeout"] = 5.0
        self["config-url"] = None
        self["config-timeout"] = 10.0
        self["config-refresh"] = None
        self["config-copy"] = None
        self["development"] = False

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
        self["listen"].append(endpointOf("--listen", endpoint))

    def opt_operations_listen(self, endpoint: str) -> None:
        """
        Where to serve the pages for who runs the server. [default: with all others]
        """
        self["operations-listen"].append(endpointOf("--operations-listen", endpoint))

    def opt_stay_up(self) -> None:
        """
        Go on, and report it, when a module has failed for good.
        """
        self["stay-up"] = True

    def opt_delay(self, seconds: str) -> None:
        """
        How many seconds the clock takes to start. [default: 10]
        """
        self["delay"] = secondsOf("--delay", seconds)

    def opt_direct(self) -> None:
        """
        Ask the modules without queues in front of them, to see what that is like.
        """
        self["direct"] = True

    def opt_queue_limit(self, calls: str) -> None:
        """
        How many calls may wait for each module. [default: 10000]
        """
        self["queue-limit"] = countOf("--queue-limit", calls, "calls", 0)

    def opt_queue_timeout(self, seconds: str) -> None:
        """
        How many seconds a call may wait for its module. [default: 30]
        """
        self["queue-timeout"] = secondsOf("--queue-timeout", seconds)

    def opt_drain_timeout(self, seconds: str) -> None:
        """
        How many seconds requests get to end when it stops. [default: 30]
        """
        self["drain-timeout"] = secondsOf("--drain-timeout", seconds)

    def opt_access_log(self, switch: str) -> None:
        """
        Whether to log every request: on or off. [default: off]
        """
        if switch not in ("on", "off"):
            raise UsageError(
                f"--access-log: {shortened(switch)!r} is neither on nor off"
            )
        self["access-log"] = switch == "on"

    def opt_database(self, url: str) -> None:
        """
        sqlite:PATH or postgresql://USER@HOST/NAME. [default: sqlite:tsrv.db]
        """
        self["database"] = databaseOf("--database", url)
        if Location.parse(url).hasPassword:
            raise UsageError(
                "--database: whoever can list the processes would see the password: "
                "put the URL into the environment as TSRV_DATABASE, or into a file "
                "(--database-file)"
            )

    def opt_database_file(self, path: str) -> None:
        """
        A file whose first line is that; or say it in TSRV_DATABASE.
        """
        self["database"] = databaseOf("--database-file", firstLineOf(path))

    def opt_database_connections(self, connections: str) -> None:
        """
        How many connections there may be to the database. [default: 4]
        """
        self["database-connections"] = countOf(
            "--database-connections", connections, "connections", 1
        )

    def opt_statement_timeout(self, seconds: str) -> None:
        """
        How many seconds one statement may take. [default: 10]
        """
        self["statement-timeout"] = positiveSecondsOf("--statement-timeout", seconds)

    def opt_connect_timeout(self, seconds: str) -> None:
        """
        How many seconds to wait for the database's connections. [default: 5]
        """
        self["connect-timeout"] = positiveSecondsOf("--connect-timeout", seconds)

    def opt_config_url(self, url: str) -> None:
        """
        Where settings are fetched, as JSON; or say it in TSRV_CONFIG_URL.
        """
        self["config-url"] = configurationOf("--config-url", url)
        if Source.parse(url).user is not None:
            raise UsageError(
                "--config-url: whoever can list the processes would see the "
                "password: put the URL into the environment as TSRV_CONFIG_URL"
            )

    def opt_config_timeout(self, seconds: str) -> None:
        """
        How many seconds it may take to fetch the settings. [default: 10]
        """
        self["config-timeout"] = positiveSecondsOf("--config-timeout", seconds)

    def opt_config_refresh(self, seconds: str) -> None:
        """
        Fetch the settings again, every so many seconds. [default: never]
        """
        self["config-refresh"] = positiveSecondsOf("--config-refresh", seconds)

    def opt_config_copy(self, path: str) -> None:
        """
        A file for the last good copy of the settings. [default: none is kept]
        """
        if not path:
            raise UsageError("--config-copy: it has to be the path of a file")
        self["config-copy"] = path

    def opt_development(self) -> None:
        """
        Show tracebacks to clients. Never where others can reach the server.
        """
        self["development"] = True

    def takeSecrets(self, environment: MutableMapping[str, str]) -> None:
        """
        Read, and remove, what the environment says in place of options. Options
        come first.

        @param environment: The environment of the process.
        @raise SystemExit: It cannot be understood; the message is one line.
        """
        # One that is empty was put there by a template that knows nothing for it.
        database, configuration = (environment.pop(name, "") for name in _SECRETS)
        try:
            if database and self["database"] is None:
                self["database"] = databaseOf("TSRV_DATABASE", database)
            if configuration and self["config-url"] is None:
                self["config-url"] = configurationOf("TSRV_CONFIG_URL", configuration)
        except UsageError as error:
            raise SystemExit(f"tsrv: {error}") from None


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


def _checkSettings(settings: Mapping[str, Any]) -> str | None:
    """
    @return: What is wrong with settings from which the database is to be learnt.
    """
    url = settings.get("database")
    if not isinstance(url, str):
        return "database has to be the URL of one"
    try:
        Location.parse(url)
    except ValueError as error:
        return f"database: {error}"
    return None


def addModules(startup: Startup, reactor: Any, options: Options) -> None:
    """
    All modules of the server, and what each of them needs.

    @param startup: What they are added to.
    @param reactor: Provides the time.
    @param options: What was asked for.
    """
    add = partial(
        startup.add,
        limit=options["queue-limit"],
        queueTimeout=options["queue-timeout"],
    )
    add("clock", partial(AsyncModule, reactor, options["delay"]))

    url: str | Callable[[], Deferred[str]] = options["database"] or _DATABASE
    needs = []
    fatal: list[type[Exception]] = [DatabaseRefused]
    if options["config-url"] is not None:
        # An HTTP client is not what every server needs.
        from .modules.remoteconfig import ConfigurationRefused, RemoteConfig

        isNeeded = options["database"] is None
        configuration = add(
            "configuration",
            partial(
                RemoteConfig,
                reactor,
                options["config-url"],
                timeout=options["config-timeout"],
                refresh=options["config-refresh"],
                copy=options["config-copy"],
                check=_checkSettings if isNeeded else lambda settings: None,
            ),
            fatal=ConfigurationRefused,
            required=isNeeded,
        )
        if isNeeded:
            url = partial(configuration.proxy.text, "database")
            needs = ["configuration"]
            # What is not there will not be there when it is asked for again.
            fatal.append(ConfigurationRefused)
    settings = Settings(
        connections=options["database-connections"],
        statementTimeout=options["statement-timeout"],
        connectTimeout=options["connect-timeout"],
        limit=max(options["queue-limit"], _DRAINED),
    )
    add(
        "database",
        partial(Database, reactor, url, [SCHEMA], settings),
        needs=needs,
        fatal=fatal,
        replay=["read"],
        concurrency=_DRAINED,
        retryPolicy=jitteredBackoff(maxDelay=_LONGEST_DELAY),
        # Statements in progress may go on to their limit, and a little beyond.
        closeTimeout=options["statement-timeout"] + 5,
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
    modules = {
        name: wrapper.module if options["direct"] else wrapper.proxy
        for name, wrapper in startup.wrappers.items()
    }

    traffic = Traffic(reactor)
    makeSite = partial(
        Site,
        reactor=reactor,
        accessLog=options["access-log"],
        mostContent=_BODY,
        traffic=traffic,
        development=options["development"],
    )
    root = makeRoot(modules["clock"], Users(modules["database"]))
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
    # What a request leaves behind has no cycles; to look for them after each ten
    # requests costs a twentieth of them.
    gc.set_threshold(_GARBAGE)
    # It is not meant for what this process may start.
    environment = {
        name: os.environ.pop(name) for name in VARIABLES if name in os.environ
    }
    options.takeSecrets(os.environ)
    # Before all that writes the log.
    globalLogPublisher.addObserver(cast(ILogObserver, addRequestId))
    if options["development"]:
        _log.warn("DEVELOPMENT: clients are shown tracebacks (--development)")
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
