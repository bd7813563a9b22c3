"""
The server: the one place where everything is put together.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final, cast

from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, Logger, globalLogPublisher

from .asyncmodule import AsyncModule
from .databases import (
    Database,
    DatabaseRefused,
    Location,
    Settings,
)
from .demo.users import (
    SCHEMA,
    Users,
)
from .resources import (
    KNOWN_ERRORS,
    makeRoot,
    putOperations,
)
from .server.options import Options
from .server.optiontypes import SessionsAt
from .server.server import Server
from .server.systemd import (
    VARIABLES,
    Notifier,
    SystemdService,
)
from .sessions import (
    Cookies,
    Limits,
    Quota,
    Sessions,
    SQLSessionStore,
    schemaOf,
)
from .startup import Startup
from .web.metrics import Traffic
from .web.requestid import addRequestId
from .web.responses import AsyncResource
from .web.site import Site
from .wrapper import jitteredBackoff

__all__ = ["Options", "addModules", "assemble", "makeService"]

_LISTEN: Final = "tcp:8000:interface=127.0.0.1:backlog=1024"

_DATABASE: Final = "sqlite:tsrv.db"

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
        from .settings import (
            RemoteSettings,
            SettingsRefused,
        )

        isNeeded = options["database"] is None
        configuration = add(
            "configuration",
            partial(
                RemoteSettings,
                reactor,
                options["config-url"],
                timeout=options["config-timeout"],
                refresh=options["config-refresh"],
                copy=options["config-copy"],
                check=_checkSettings if isNeeded else lambda settings: None,
            ),
            fatal=SettingsRefused,
            required=isNeeded,
        )
        if isNeeded:
            url = partial(configuration.proxy.value, "database")
            needs = ["configuration"]
            # What is not there will not be there when it is asked for again.
            fatal.append(SettingsRefused)
    place: SessionsAt | None = options["sessions"]
    schemas = [SCHEMA]
    if place is None:
        schemas.append(schemaOf())
    settings = Settings(
        connections=options["database-connections"],
        statementTimeout=options["statement-timeout"],
        connectTimeout=options["connect-timeout"],
        limit=max(options["queue-limit"], _DRAINED),
    )
    addStore = partial(
        add,
        concurrency=_DRAINED,
        retryPolicy=jitteredBackoff(maxDelay=_LONGEST_DELAY),
        # Statements in progress may go on to their limit, and a little beyond.
        closeTimeout=options["statement-timeout"] + 5,
    )
    database = addStore(
        "database",
        partial(Database, reactor, url, schemas, settings),
        needs=needs,
        fatal=fatal,
        replay=["read"],
    )
    addSessions = partial(addStore, "sessions", replay=["get", "length", "all"])
    limits = _limitsOf(options)
    if place is None:
        # They are not lost: the database is, and carries reads out again.
        addStore(
            "sessions",
            partial(
                SQLSessionStore,
                reactor,
                database.module if options["direct"] else database.proxy,
                limits=limits,
                owned=False,
            ),
            needs=["database"],
        )
    elif place.kind == "redis":
        from .sessions.redis import (
            RedisSessionStore,
            SessionsRefused,
        )

        addSessions(
            partial(RedisSessionStore, reactor, place.url, limits=limits),
            fatal=SessionsRefused,
        )
    else:
        # It is closed with the sessions.
        own = Database(reactor, place.url, [schemaOf(place.table)], settings)
        addSessions(
            partial(SQLSessionStore, reactor, own, place.table, limits),
            fatal=DatabaseRefused,
        )


def _limitsOf(options: Options) -> Limits:
    return Limits(options["session-idle"], options["session-lifetime"])


def _makeSessions(reactor: Any, store: Any, options: Options) -> Sessions:
    """
    @return: The sessions of visitors, in a store.
    """
    cookies = Cookies(
        reactor,
        trustedProxies=options["trusted-proxy"],
        keys=options["session-keys"],
    )
    return Sessions(
        reactor,
        store,
        cookies,
        limits=_limitsOf(options),
        quota=Quota(
            reactor,
            options["new-sessions-per-peer"],
            options["new-sessions"],
            60.0,
            peerOf=cookies.proxies.peerOf,
        ),
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
        maxBodyBytes=_BODY,
        traffic=traffic,
        development=options["development"],
        knownErrors=KNOWN_ERRORS,
    )
    root = makeRoot(
        modules["clock"],
        Users(modules["database"]),
        _makeSessions(reactor, modules["sessions"], options),
    )
    apart = bool(options["operations-listen"])
    operationsRoot = AsyncResource() if apart else root
    putOperations(operationsRoot, startup, reactor, traffic, apart)

    server = Server(
        reactor,
        startup,
        options["drain-timeout"],
        site=makeSite(root),
        operations=makeSite(operationsRoot) if apart else None,
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
