"""
What became of calls.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Stats"]


@dataclass(frozen=True)
class Stats:
    """
    What became of the calls that went through the queue.

    C{submitted = started + rejected + expired + cancelled + failed + pending}
    holds at every instant.

    @ivar submitted: Calls made while the module was not ready.
    @ivar started: Commands that were handed to the module.
    @ivar rejected: Calls that failed at once: the queue was full, or the
        module failed for good, or closed.
    @ivar expired: Commands that waited as long as C{timeout} allows.
    @ivar cancelled: Commands whose caller gave up while they waited.
    @ivar failed: Commands that waited when the module failed for good or was
        closed.
    @ivar pending: Commands that wait now.
    """

    submitted: int
    started: int
    rejected: int
    expired: int
    cancelled: int
    failed: int
    pending: int
