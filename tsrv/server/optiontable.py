"""
The table of all options: their names, meanings, defaults and parsers.

A parser takes the text that an operator typed and returns the value, or raises
L{ValueError} with a message of one line. A URL may hold a password, so no message
repeats a URL.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_network
from math import nan
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit

from ..databases import Location
from ..sessions.redislocation import Location as RedisLocation
from ..sessions.store import checkTable
from .endpoints import parseEndpoint, quote

__all__ = ["OPTIONS", "Option", "SessionLocation", "hasPassword"]

# One year, and one billion: a larger number is a mistake.
MAX_SECONDS: Final = 365 * 24 * 60 * 60
MAX_COUNT: Final = 1_000_000_000


def _endpoint(text: str) -> str:
    parseEndpoint(text)
    return text


def _number(
    kind: type[int] | type[float], minimum: float, maximum: float
) -> Callable[[str], float]:
    name = "whole number" if kind is int else "number"

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = nan
        if not minimum <= value <= maximum:
            about = f"is not a {name} from {minimum} to {maximum}"
            raise ValueError(f"{quote(text)} {about}")
        return value

    return parse


_seconds: Final = _number(float, 0, MAX_SECONDS)
_positiveSeconds: Final = _number(float, 0.001, MAX_SECONDS)
_count: Final = _number(int, 0, MAX_COUNT)
_positiveCount: Final = _number(int, 1, MAX_COUNT)


def _logFormat(text: str) -> str:
    if text not in ("text", "json"):
        raise ValueError(f"{quote(text)} is neither text nor json")
    return text


def _switch(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError(f"{quote(text)} is neither on nor off")
    return text == "on"


def _network(text: str) -> str:
    try:
        text == "unix" or ip_network(text)
    except ValueError:
        raise ValueError(f"{quote(text)} is neither an address nor a network") from None
    return text


def _database(url: str) -> str:
    Location.parse(url)
    return url


def _databaseFile(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            url = file.readline().strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "the file is not text"
        raise ValueError(f"cannot read {quote(path)}: {reason}") from None
    return _database(url)


@dataclass(frozen=True)
class SessionLocation:
    """
    Location of a session store. Its representation does not show the URL.

    @ivar kind: Kind of the store.
    @ivar url: URL of the database or of Redis.
    @ivar table: Name of the table, in a database.
    """

    kind: Literal["sqlite", "postgresql", "redis"]
    url: str = field(repr=False)
    table: str = "sessions"


def _sessions(url: str) -> SessionLocation:
    if url.startswith(("redis://", "rediss://", "unix:")):
        RedisLocation.parse(url)
        return SessionLocation("redis", url)
    base, _, query = url.partition("?")
    parameters = dict(parse_qsl(query, keep_blank_values=True))
    table = checkTable(parameters.pop("table", "sessions"))
    rest = f"{base}?{urlencode(parameters)}" if parameters else base
    try:
        kind = Location.parse(rest).kind
    except ValueError as error:
        raise ValueError(f"{error}; the URL of Redis is redis://HOST:PORT/DB") from None
    if kind == "sqlite" and parameters:
        raise ValueError("sqlite:PATH has no parameter except ?table=NAME")
    return SessionLocation(kind, rest, table)


def _settings(url: str) -> str:
    # The import needs the extra "server", which the options check before.
    from ..settings import Source

    Source(url)
    return url


def hasPassword(url: str) -> bool:
    """
    @param url: A valid URL of a database, a session store or the settings.
    @return: Whether the URL holds a password. The user of an HTTP URL may be a token.
    """
    split = urlsplit(url)
    if split.scheme in ("http", "https"):
        return split.username is not None
    if split.scheme in ("redis", "rediss", "unix"):
        return split.password is not None
    return Location.parse(url).hasPassword


@dataclass(frozen=True)
class Option:
    """
    One option.

    @ivar name: Name, without dashes.
    @ivar help: Meaning, in Markdown.
    @ivar parse: Parser of the value; L{None} for a flag.
    @ivar default: Default value, as an operator would type it.
    @ivar shownDefault: Description of the default, if there is no default value.
    @ivar variable: Environment variable that replaces a missing option. The value of
        such an option may hold a password.
    @ivar repeatable: Whether the option may be given several times.
    @ivar key: Name of the option whose value this one sets, if not its own.
    """

    name: str
    help: str
    parse: Callable[[str], Any] | None = None
    default: str = ""
    shownDefault: str = ""
    variable: str = ""
    repeatable: bool = False
    key: str = ""

    @property
    def meaning(self) -> str:
        """
        The help, with the environment variable.
        """
        return self.help + (self.variable and f" Environment: `{self.variable}`.")


OPTIONS: Final = (
    Option(
        "listen",
        "[Twisted endpoint](https://docs.twisted.org/en/stable/core/howto/endpoints"
        ".html#servers) to serve on. Repeatable.",
        _endpoint,
        "tcp:8000:interface=127.0.0.1:backlog=1024",
        repeatable=True,
    ),
    Option(
        "operations-listen",
        "Endpoint for the operator pages (health, metrics, status). Repeatable.",
        _endpoint,
        shownDefault="same as --listen",
        repeatable=True,
    ),
    Option("delay", "Seconds that the clock takes to start.", _seconds, "10"),
    Option("direct", "Call the modules without queues, to see the difference."),
    Option(
        "queue-limit", "Maximum number of queued calls per module.", _count, "10000"
    ),
    Option("queue-timeout", "Seconds that a call may wait in a queue.", _seconds, "30"),
    Option(
        "database",
        "Database of the users: `sqlite:PATH` or `postgresql://USER@HOST:PORT/NAME` "
        "([libpq URL](https://www.postgresql.org/docs/current/libpq-connect.html"
        "#LIBPQ-CONNSTRING-URIS)). With `--config-url`, the default is the setting "
        "`database`.",
        _database,
        "sqlite:tsrv.db",
        variable="TSRV_DATABASE",
    ),
    Option(
        "database-file",
        "File whose first line is the URL of the database.",
        _databaseFile,
        key="database",
    ),
    Option(
        "database-connections",
        "Maximum number of connections to the database.",
        _positiveCount,
        "4",
    ),
    Option(
        "statement-timeout",
        "Seconds that one statement may take.",
        _positiveSeconds,
        "10",
    ),
    Option(
        "connect-timeout",
        "Seconds to connect, to notice that an idle connection is lost, or to wait for "
        "another process that has locked the SQLite file.",
        _positiveSeconds,
        "5",
    ),
    Option(
        "config-url",
        "URL of the settings: a JSON object that is fetched before the modules that "
        "need it start.",
        _settings,
        variable="TSRV_CONFIG_URL",
    ),
    Option("config-timeout", "Seconds to fetch the settings.", _positiveSeconds, "10"),
    Option(
        "config-refresh",
        "Seconds after which the settings are fetched again.",
        _positiveSeconds,
        shownDefault="never",
    ),
    Option(
        "config-copy",
        "File for the last good copy of the settings, for when they cannot be fetched.",
        str,
        shownDefault="no copy",
    ),
    Option(
        "sessions",
        "Session store: `sqlite:PATH`, `postgresql://…` (both with `?table=NAME`) or "
        "`redis://HOST:PORT/DB` (also `rediss://` and `unix://PATH`).",
        _sessions,
        shownDefault="same as --database",
        variable="TSRV_SESSIONS",
    ),
    Option(
        "session-idle",
        "Seconds after which an unused session expires.",
        _positiveSeconds,
        "1800",
    ),
    Option(
        "session-lifetime",
        "Seconds after which every session expires.",
        _positiveSeconds,
        "28800",
    ),
    Option(
        "trusted-proxy",
        "Address or network of a proxy whose `X-Forwarded-Proto` and `X-Forwarded-For` "
        "are trusted; `unix` for UNIX sockets. Repeatable.",
        _network,
        repeatable=True,
    ),
    Option(
        "hsts",
        "Seconds for which browsers use only TLS for this host, after a response over "
        "TLS (`Strict-Transport-Security`). 0: not sent.",
        _seconds,
        "31536000",
    ),
    Option(
        "new-sessions",
        "New sessions per minute, for all clients together; further clients get 429.",
        _positiveCount,
        "6000",
    ),
    Option(
        "new-sessions-per-peer",
        "New sessions per minute and client address.",
        _positiveCount,
        "60",
    ),
    Option("stay-up", "Keep running when a required module has failed for good."),
    Option(
        "keep-alive",
        "Seconds after which an idle connection is closed. Must be more than the idle "
        "time of a load balancer in front; AWS has 60.",
        _positiveSeconds,
        "75",
    ),
    Option(
        "request-timeout",
        "Seconds for a client to send a request, head and body.",
        _positiveSeconds,
        "30",
    ),
    Option(
        "shutdown-delay",
        "Seconds for which a stopping server still accepts connections, while "
        "`/readyz` is 503, so that load balancers notice. Kubernetes needs about 5.",
        _seconds,
        "0",
    ),
    Option(
        "drain-timeout",
        "Seconds for requests in progress to finish during a graceful shutdown.",
        _seconds,
        "25",
    ),
    Option(
        "access-log",
        "Log every request, with its client and duration: `on` or `off`.",
        _switch,
        "off",
    ),
    Option(
        "log-format",
        "Format of the log: `text`, or `json` with one object on each line.",
        _logFormat,
        shownDefault="text, or the format of twist",
    ),
    Option("development", "Show tracebacks to clients."),
)
"""
All options, in the order of C{--help}.
"""
