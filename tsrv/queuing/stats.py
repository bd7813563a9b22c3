"""
The counters of a queue.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Stats"]


@dataclass
class Stats:
    """
    Counters of the calls that went through the queue.

    @ivar started: Commands that were handed to the module.
    @ivar rejected: Calls that failed at once: the queue was full, or the
        module had failed for good, or was closed.
    @ivar expired: Commands that waited in the queue until their C{timeout}.
    @ivar cancelled: Commands whose caller gave up while they waited.
    @ivar failed: Commands that waited when the module failed for good or was
        closed.
    @ivar pending: Commands that wait now.
    @ivar unknown: Calls that ended with
        L{OutcomeUnknown<tsrv.OutcomeUnknown>}, whether they were queued or not.
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
        Calls made while the module was not ready.
        """
        notStarted = self.rejected + self.expired + self.cancelled + self.failed
        return self.started + notStarted + self.pending
