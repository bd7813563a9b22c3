"""
Makes the demo server that the options describe: its modules, sites and sessions.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from .. import __version__
from ..asyncmodule import AsyncModule
from ..databases import Database, DatabaseRefused, Location, Settings
from ..demo.pages import LINKS
from ..demo.users import SCHEMA, Users
from ..queuing.retry import jitteredBackoff
from ..resources import KNOWN_ERRORS, makeRoot
from ..sessions import Cookies, Limits, Quota, Sessions, SQLSessionStore, schemaOf
from ..startup import Startup
from ..web.operations import Operations
from ..web.traffic import Traffic
from ..wrapper import QueuingWrapper
from .options import Options
from .server import Server

__all__ = ["assemble", "checkSettings"]

MAX_RETRY_SECONDS: Final = 4.0
"""
Maximum delay between two attempts to connect, in seconds.
"""

DRAIN_CONCURRENCY: Final = 1_000
"""
Maximum number of calls to a database in progress while its queue is drained.
"""


def checkSettings(settings: Mapping[str, Any]) -> str | None:
    """
    Check that settings name a database.

    @return: The problem, if there is one.
    """
    try:
        Location.parse(settings["database"])
    except ValueError as error:
        return f'"database": {error}'
    except (KeyError, TypeError, AttributeError):
        return '"database" must be a database URL'
    return None


def _addModules(
    startup: Startup, reactor: Any, options: Options, limits: Limits
) -> None:
    add = partial(
        startup.add, limit=options["queue-limit"], queueTimeout=options["queue-timeout"]
    )
    addDatabase = partial(
        add,
        concurrency=DRAIN_CONCURRENCY,
        retryPolicy=jitteredBackoff(maxDelay=MAX_RETRY_SECONDS),
        # A statement may use its whole timeout, and reporting the error takes longer.
        closeTimeout=options["statement-timeout"] + 5,
    )
    settings = Settings(
        connections=options["database-connections"],
        statementTimeout=options["statement-timeout"],
        connectTimeout=options["connect-timeout"],
        limit=max(options["queue-limit"], DRAIN_CONCURRENCY),
    )
    add("clock", partial(AsyncModule, reactor, options["delay"]))
    url: Any = options["database"]
    needs = []
    if options["config-url"] is not None:
        # Import an HTTP client only if the server needs one.
        from ..settings import RemoteSettings, SettingsRefused

        isRequired = url is None
        configuration = add(
            "configuration",
            partial(
                RemoteSettings,
                reactor,
                options["config-url"],
                timeout=options["config-timeout"],
                refresh=options["config-refresh"],
                copy=options["config-copy"],
                check=checkSettings if isRequired else lambda settings: None,
            ),
            fatal=SettingsRefused,
            required=isRequired,
        )
        if isRequired:
            url = partial(configuration.proxy.value, "database")
            needs = ["configuration"]
    location = options["sessions"]
    schemas = [SCHEMA, schemaOf()] if location is None else [SCHEMA]
    database = addDatabase(
        "database",
        partial(Database, reactor, url, schemas, settings),
        needs=needs,
        fatal=DatabaseRefused,
        replay=["read"],
    )
    if location is None:
        # The store replays no calls, because its database does.
        users = _moduleOf(database, options)
        addDatabase(
            "sessions",
            partial(SQLSessionStore, reactor, users, limits=limits, owned=False),
            needs=["database"],
        )
        return
    addSessions = partial(
        addDatabase, "sessions", replay=["get", "wasRenewed", "length", "all"]
    )
    if location.kind == "redis":
        from ..sessions.redis import RedisSessionStore, SessionsRefused

        addSessions(
            partial(RedisSessionStore, reactor, location.url, limits=limits),
            fatal=SessionsRefused,
        )
    else:
        # The store closes this database.
        own = Database(
            reactor, location.url, [schemaOf(location.table)], settings, name="sessions"
        )
        addSessions(
            partial(SQLSessionStore, reactor, own, location.table, limits),
            fatal=DatabaseRefused,
        )


def assemble(
    options: Options,
    reactor: Any,
    *,
    replacements: Mapping[str, object] | None = None,
    **process: Any,
) -> Server:
    """
    Make the demo server.

    @param options: The options.
    @param reactor: The reactor.
    @param replacements: Fakes that replace modules, by name, in tests.
    @param process: The parameters C{ownsProcess} and C{environment} of L{Server}.
    @return: The server; it has not been started.
    """
    startup = Startup(reactor, replacements=replacements, stayUp=options["stay-up"])
    limits = Limits(options["session-idle"], options["session-lifetime"])
    _addModules(startup, reactor, options, limits)
    clock, database, store = (
        _moduleOf(startup.wrappers[name], options)
        for name in ("clock", "database", "sessions")
    )
    cookies = Cookies(reactor, trustedProxies=options["trusted-proxy"])
    quota = Quota(
        reactor,
        options["new-sessions-per-peer"],
        options["new-sessions"],
        60.0,
        peerOf=cookies.proxies.peerOf,
    )
    sessions = Sessions(reactor, store, cookies, limits=limits, quota=quota)
    traffic = Traffic(reactor)

    root = makeRoot(clock, Users(database), sessions)
    if not options["operations-listen"]:
        Operations(
            startup,
            reactor,
            traffic=traffic,
            links=LINKS,
            version=__version__,
        ).putOn(root)
    return Server(
        reactor,
        startup,
        root,
        options["listen"],
        operations=options["operations-listen"],
        program="tsrv",
        version=__version__,
        drainTimeout=options["drain-timeout"],
        shutdownDelay=options["shutdown-delay"],
        accessLog=options["access-log"],
        keepAlive=options["keep-alive"],
        requestTimeout=options["request-timeout"],
        parsePOSTFormSubmission=False,
        traffic=traffic,
        proxies=cookies.proxies,
        hstsSeconds=options["hsts"],
        development=options["development"],
        knownErrors=KNOWN_ERRORS,
        **process,
    )


def _moduleOf(wrapper: QueuingWrapper[Any], options: Options) -> Any:
    return wrapper.module if options["direct"] else wrapper.proxy
