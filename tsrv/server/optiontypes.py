"""
What is typed on a command line, or said in its place, becomes what is meant.

What cannot be understood is told in one line; secrets are not repeated in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Final, Literal
from urllib.parse import parse_qsl, urlencode

from twisted.internet.endpoints import serverFromString
from twisted.python.usage import UsageError

from ..databases import Location
from ..sessions.redislocation import Location as RedisLocation
from ..sessions.signing import SigningKeys
from ..sessions.store import checkTable
from ..settings import Source

__all__ = [
    "SessionsAt",
    "configurationOf",
    "countOf",
    "databaseOf",
    "endpointOf",
    "firstLineOf",
    "keysOf",
    "networkOf",
    "positiveSecondsOf",
    "secondsOf",
    "sessionsOf",
    "shortened",
]

_LONGEST_LINE: Final = 64 * 1024

_LONGEST: Final = 365 * 24 * 60 * 60
"""
The most that is a number of seconds, and not a mistake.
"""


def endpointOf(option: str, text: str) -> str:
    """
    Read the description of an endpoint.
    """
    try:
        # No reactor is needed to find out whether it can be understood.
        port = getattr(serverFromString(None, text), "_port", 0)
    except Exception as error:
        raise UsageError(
            f"{option}: {shortened(text)!r} is not a Twisted endpoint: "
            f"{shortened(str(error))}"
        ) from None
    if not 0 <= port < 65536:
        raise UsageError(f"{option}: {shortened(text)!r} has no port: 0 to 65535")
    return text


def secondsOf(option: str, text: str) -> float:
    """
    Read a number of seconds.
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _LONGEST:
        raise UsageError(
            f"{option}: {shortened(text)!r} is not a number of seconds "
            f"from 0 to {_LONGEST}"
        )
    return seconds


def positiveSecondsOf(option: str, text: str) -> float:
    """
    Read a number of seconds that is not none.
    """
    seconds = secondsOf(option, text)
    if not seconds:
        raise UsageError(f"{option}: it has to be more than 0 seconds")
    return seconds


def countOf(option: str, text: str, what: str, least: int) -> int:
    """
    Read a number of things.
    """
    try:
        count = int(text)
    except ValueError:
        count = -1
    if count < least:
        raise UsageError(
            f"{option}: {shortened(text)!r} is not a number of {what}"
            + (f", at least {least}" if least else "")
        )
    return count


def databaseOf(option: str, url: str) -> str:
    """
    Read the URL of a database, which may be a secret, so that no error shows it.
    """
    try:
        Location.parse(url)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None
    return url


@dataclass(frozen=True)
class SessionsAt:
    """
    Where sessions are. What it looks like has no password in it.

    @ivar kind: In what kind of store.
    @ivar url: Where that is.
    @ivar table: The name of the table, where it has tables.
    """

    kind: Literal["sqlite", "postgresql", "redis"]
    url: str = field(repr=False)
    table: str = "sessions"

    @property
    def hasPassword(self) -> bool:
        """
        Whether the URL is a secret.
        """
        if self.kind == "redis":
            return "@" in self.url
        return Location.parse(self.url).hasPassword


def sessionsOf(option: str, url: str) -> SessionsAt:
    """
    Read where the sessions are, which may be a secret too.
    """
    if url.startswith("redis://"):
        try:
            RedisLocation.parse(url)
        except ValueError as error:
            raise UsageError(f"{option}: {error}") from None
        return SessionsAt("redis", url)
    place, _, query = url.partition("?")
    parameters = dict(parse_qsl(query, keep_blank_values=True))
    table = parameters.pop("table", "sessions")
    rest = f"{place}?{urlencode(parameters)}" if parameters else place
    try:
        checkTable(table)
        location = Location.parse(rest)
        if location.kind == "sqlite" and parameters:
            raise ValueError("behind sqlite:PATH there may be ?table=NAME alone")
    except ValueError as error:
        what = str(error).replace("of a database is", "of sessions is redis://…, or")
        raise UsageError(f"{option}: {what}") from None
    return SessionsAt(location.kind, rest, table)


def configurationOf(option: str, url: str) -> str:
    """
    Read the URL of the settings, which may be a secret too.
    """
    try:
        Source.parse(url)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None
    return url


def firstLineOf(path: str) -> str:
    """
    Read the first line of a file.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return file.readline(_LONGEST_LINE).strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise UsageError(
            f"--database-file: {shortened(path)!r} cannot be read: {reason}"
        ) from None


def networkOf(option: str, text: str) -> str:
    """
    Read an address, a network of them, or C{unix} for all that come over a UNIX
    socket.
    """
    if text == "unix":
        return text
    try:
        ip_network(text)
    except ValueError:
        raise UsageError(
            f"{option}: {shortened(text)!r} is no address and no network"
        ) from None
    return text


def keysOf(option: str, path: str) -> SigningKeys:
    """
    Read the keys with which cookies are signed.
    """
    try:
        return SigningKeys.fromFile(path)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


def shortened(text: str) -> str:
    """
    @return: As much of what was typed as fits into a line.
    """
    return text if len(text) <= 50 else f"{text[:47]}..."
