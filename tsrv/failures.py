"""
Failed calls of a ready module: counted by code, and logged at a limited rate.

While a table is locked or a disk is full, every call fails. Then one log line in ten
seconds says why, and the metrics have the numbers. A module that implements
L{ICountsFailures} has a L{Failures} object, and C{failures} is its C{counts}.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from .asyncmodule import ICountsFailures
from .queuing.history import oneLine
from .queuing.module import provides

__all__ = ["MAX_CODES", "OTHER", "Failures", "failuresOf"]

MAX_CODES: Final = 32
"""
Maximum number of codes; failures with further codes count as L{OTHER}.
"""

OTHER: Final = "other"
"""
The code of failures after the first L{MAX_CODES} codes.
"""

REPEAT_SECONDS: Final = 10.0  # Minimum time between two lines about one code.


class Failures:
    """
    Counts and logs the failures of one module.

    @ivar counts: The number of failures by code. The numbers only grow.
    """

    def __init__(self, reactor: IReactorTime, log: Logger, what: str) -> None:
        """
        @param reactor: Provides the time.
        @param log: The logger of the module.
        @param what: The beginning of each log line, for example
            C{"database: a statement failed"}.
        """
        self.counts: dict[str, int] = {}
        self._reactor = reactor
        self._log = log
        self._what = what
        # By code: the time of the last line, and the count at that time.
        self._lines: dict[str, tuple[float, int]] = {}

    def add(self, code: str, reason: object) -> None:
        """
        Count a failure. Log it, unless its code was logged within the last ten seconds.
        Call this in the context of the request: the line has the id of the request.

        @param code: The kind of failure: an SQLSTATE, for example.
        @param reason: The reason, for the log. It must contain no secrets.
        """
        if code not in self.counts and len(self.counts) >= MAX_CODES:
            code = OTHER
        count = self.counts[code] = self.counts.get(code, 0) + 1
        now = self._reactor.seconds()
        last, counted = self._lines.get(code, (-REPEAT_SECONDS, count - 1))
        # The system's clock may be set back.
        if 0 <= now - last < REPEAT_SECONDS:
            return
        self._lines[code] = now, count
        suppressed = count - counted - 1
        self._log.warn(
            "{what}: {error}{more}",
            what=self._what,
            error=oneLine(str(reason)),
            more=f"; {suppressed:,} more since the last such line" * bool(suppressed),
            code=code,
            suppressed=suppressed,
        )


def failuresOf(module: object) -> Mapping[str, int]:
    """
    Return the number of failures of a module by code, with at most one code more than
    L{MAX_CODES}. The result is empty if the module does not count failures.

    @param module: Any module.
    """
    if not provides(module, ICountsFailures):
        return {}
    try:
        found = islice(ICountsFailures(module).failures.items(), MAX_CODES + 1)
        return {str(code): int(count) for code, count in found}
    except BaseException:
        # An error of one module must not break the other metrics.
        return {}
