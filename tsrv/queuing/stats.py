"""
The counters of calls.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Stats"]


@dataclass
class Stats:
    """
    Counters of the calls of one module. Except for C{unknown}, they count only calls
    that were queued or refused. A call that is made again after a loss is queued again.

    @ivar started: Queued calls that were started.
    @ivar rejected: Calls that failed at once: the queue was full, or the module had
        failed for good, or was closed.
    @ivar expired: Queued calls that failed with L{QueueTimeout<tsrv.QueueTimeout>}.
    @ivar cancelled: Queued calls that were cancelled.
    @ivar failed: Calls that were queued when the module failed for good or was closed.
    @ivar pending: Calls that are queued now.
    @ivar unknown: Calls that ended with L{OutcomeUnknown<tsrv.OutcomeUnknown>}.
    """

    started: int = 0
    rejected: int = 0
    expired: int = 0
    cancelled: int = 0
    failed: int = 0
    pending: int = 0
    unknown: int = 0

    @property
    def submitted(self) -> int:
        """
        The number of calls that were queued or refused.
        """
        notStarted = self.rejected + self.expired + self.cancelled + self.failed
        return self.started + notStarted + self.pending
