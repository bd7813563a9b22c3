"""
What is typed on a command line, or said in its place, becomes what is meant.

What cannot be understood is told in one line; secrets are not repeated in it.
"""

from __future__ import annotations

from typing import Final

from twisted.internet.endpoints import serverFromString
from twisted.python.usage import UsageError

from .modules._fetching import Source
from .modules.database import Location

__all__ = [
    "configurationOf",
    "countOf",
    "databaseOf",
    "endpointOf",
    "firstLineOf",
    "positiveSecondsOf",
    "secondsOf",
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


def shortened(text: str) -> str:
    """
    @return: As much of what was typed as fits into a line.
    """
    return text if len(text) <= 50 else f"{text[:47]}..."
