"""
tsrv's log lines in L{logging}.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import cast

from twisted.logger import (
    ILogObserver,
    LogEvent,
    LogLevel,
    formatEvent,
    globalLogBeginner,
)

__all__ = ["logWithLogging"]

_LEVELS = {
    LogLevel.debug: logging.DEBUG,
    LogLevel.info: logging.INFO,
    LogLevel.warn: logging.WARNING,
    LogLevel.error: logging.ERROR,
    LogLevel.critical: logging.CRITICAL,
}

# The logger for the unhandled error of a Deferred that is garbage-collected.
_UNHANDLED = "twisted.internet.defer"


@cache
def logWithLogging() -> None:
    """
    Pass the log on to the loggers of L{logging} with the same names, such as
    C{tsrv.wrapper}. A second call has no effect.
    """
    observers = [cast(ILogObserver, _pass)]
    globalLogBeginner.beginLoggingTo(observers, redirectStandardIO=False)


def _pass(event: LogEvent) -> None:
    logger = logging.getLogger(event.get("log_namespace") or "twisted")
    failure = event.get("log_failure")
    text = formatEvent(event)
    if logger.name == _UNHANDLED:
        # Twisted logs two events: an introduction, and the error.
        if failure is None:
            return
        text = "an error was never awaited"
    info = None
    if failure is not None:
        info = (failure.type, failure.value, failure.getTracebackObject())
    # The text is an argument, since logging would format a message again.
    level = _LEVELS.get(event["log_level"], logging.INFO)
    logger.log(level, "%s", text, exc_info=info)
