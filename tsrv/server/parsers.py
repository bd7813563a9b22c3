"""
Parsers for the values of options.

Each one takes the text that an operator typed and returns the value, or raises
L{ValueError} with a message of one line. A URL may hold a password, so no message
repeats a URL.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Final, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit

from twisted.internet.endpoints import serverFromString

from ..databases import Location
from ..sessions.redislocation import Location as RedisLocation
from ..sessions.store import checkTable

__all__ = [
    "SessionLocation",
    "count",
    "database",
    "databaseFile",
    "endpoint",
    "hasPassword",
    "network",
    "positiveSeconds",
    "seconds",
    "sessions",
    "settings",
    "switch",
]

MAX_SECONDS: Final = 365 * 24 * 60 * 60
"""
Longest duration, in seconds: a year. A longer one is a mistake.
"""

MAX_URL_CHARACTERS: Final = 64 * 1024

MAX_QUOTED_CHARACTERS: Final = 50
"""
Maximum number of characters of a value that a message repeats.
"""


def endpoint(text: str) -> str:
    """
    Check the description of a server endpoint of Twisted.
    """
    try:
        # Parsing needs no reactor.
        port = getattr(serverFromString(None, text), "_port", 0)
    except Exception as error:
        reason = str(error)[:MAX_QUOTED_CHARACTERS]
        raise ValueError(
            f"{_quote(text)} is not a Twisted endpoint: {reason}"
        ) from None
    if not 0 <= port < 65536:
        raise ValueError(f"{_quote(text)} has no port from 0 to 65535")
    return text


def seconds(text: str) -> float:
    """
    Parse a duration, in seconds.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= MAX_SECONDS:
        raise ValueError(f"{_quote(text)} is not a number from 0 to {MAX_SECONDS}")
    return value


def positiveSeconds(text: str) -> float:
    """
    Parse a duration of more than 0 seconds.
    """
    value = seconds(text)
    if not value:
        raise ValueError("must be more than 0 seconds")
    return value


def count(minimum: int) -> Callable[[str], int]:
    """
    @return: A parser for a whole number of at least C{minimum}.
    """

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum:
            raise ValueError(f"{_quote(text)} is not a whole number from {minimum} on")
        return value

    return parse


def switch(text: str) -> bool:
    """
    Parse C{on} or C{off}.
    """
    if text not in ("on", "off"):
        raise ValueError(f"{_quote(text)} is neither on nor off")
    return text == "on"


def network(text: str) -> str:
    """
    Check an IP address, a network, or C{unix} for the clients of UNIX sockets.
    """
    try:
        text == "unix" or ip_network(text)
    except ValueError:
        raise ValueError(f"{_quote(text)} is neither address nor network") from None
    return text


def database(url: str) -> str:
    """
    Check the URL of a database.
    """
    Location.parse(url)
    return url


def databaseFile(path: str) -> str:
    """
    Read the URL of a database from the first line of a file.
    """
    try:
        with open(path, encoding="utf-8") as file:
            url = file.readline(MAX_URL_CHARACTERS).strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "the file is not text"
        raise ValueError(f"cannot read {_quote(path)}: {reason}") from None
    return database(url)


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


def sessions(url: str) -> SessionLocation:
    """
    Parse the URL of a session store.
    """
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
        raise ValueError("sqlite:PATH takes no parameter but ?table=NAME")
    return SessionLocation(kind, rest, table)


def settings(url: str) -> str:
    """
    Check the URL of the settings.
    """
    # It needs the extra "server", which the options require before.
    from ..settings import Source

    Source.parse(url)
    return url


def hasPassword(url: str) -> bool:
    """
    @param url: A valid URL of a database, a session store or the settings.
    @return: Whether it holds a password. The user of an HTTP URL may be a token.
    """
    split = urlsplit(url)
    if split.scheme in ("http", "https"):
        return split.username is not None
    if split.scheme in ("redis", "rediss", "unix"):
        return split.password is not None
    return Location.parse(url).hasPassword


def _quote(text: str) -> str:
    if len(text) > MAX_QUOTED_CHARACTERS:
        text = f"{text[: MAX_QUOTED_CHARACTERS - 3]}..."
    return repr(text)
