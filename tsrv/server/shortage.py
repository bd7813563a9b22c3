"""
A short log when connections cannot be accepted.

If a process runs out of file descriptors, Twisted logs three lines for each connection
that it refuses, or one line for each attempt to accept. Under attack, these lines would
fill the disk. L{Shortage} replaces them with at most one line per second, with a count.
"""

from __future__ import annotations

import errno
import os
import resource
from collections import Counter
from typing import Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import LogEvent, Logger, LogLevel

__all__ = ["Shortage"]

_log = Logger("tsrv.server")

SUMMARY_SECONDS: Final = 1.0
"""
Time from the first refused connection to the log line with the count, in seconds.
"""

_REFUSED: Final = "EMFILE recovery: Closed socket from {address}"
_NOT_ACCEPTED: Final = "Could not accept new connection ({acceptError})"
_DETAILS: Final = (
    "EMFILE encountered; releasing reserved file descriptor.",
    "Re-reserving EMFILE recovery file descriptor.",
)


class Shortage:
    """
    A log observer that counts the connections that Twisted cannot accept. Register it
    before the observers that write the log.
    """

    def __init__(self, reactor: IReactorTime) -> None:
        """
        @param reactor: Provides the time.
        """
        self._reactor = reactor
        self._refused = 0
        self._failed: Counter[str] = Counter()
        self._timer: IDelayedCall | None = None

    def __call__(self, event: LogEvent) -> None:
        """
        Count an event of a listening port, and keep it out of the log. Other events do
        not change.
        """
        if not str(event.get("log_namespace")).startswith("twisted.internet."):
            return
        text = event.get("log_format")
        if text == _REFUSED:
            self._refused += 1
        elif text == _NOT_ACCEPTED:
            self._failed[event["acceptError"]] += 1
        elif text not in _DETAILS:
            return
        # An observer cannot stop an event, but an event without text is not written.
        event["log_format"] = None
        event["log_level"] = LogLevel.debug
        if self._timer is None and text not in _DETAILS:
            self._timer = self._reactor.callLater(SUMMARY_SECONDS, self._summarize)

    def flush(self) -> None:
        """
        Log the count since the last line now, and stop the timer.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._summarize()

    def _summarize(self) -> None:
        self._timer = None
        refused, failed = self._refused, self._failed.total()
        names = [*self._failed]
        if refused and "EMFILE" not in names:
            # Twisted refuses connections only for this reason.
            names.insert(0, "EMFILE")
        counts = []
        if refused:
            counts.append(f"{refused:,} refused")
        if failed:
            counts.append(f"{failed:,} attempts failed")
        self._refused = 0
        self._failed.clear()
        _log.warn(
            "Cannot accept connections: {reasons}; {counts} in the last second",
            reasons=", ".join(map(_describe, names)),
            counts=", ".join(counts),
            refused=refused,
            failed=failed,
        )


def _describe(name: str) -> str:
    """
    Return the meaning of an error number, such as C{EMFILE}.
    """
    if name == "EMFILE":
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return f"too many open files (limit {limit:,})"
    meaning = os.strerror(getattr(errno, name, 0))
    return f"{meaning[:1].lower()}{meaning[1:]}"
