"""
Long work, in slices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime

__all__ = ["SlicedWork"]

# Maximum time for which one slice blocks the reactor, in seconds.
MAX_SLICE_SECONDS: Final = 0.005


class SlicedWork:
    """
    Work that consists of many small steps. After the time of a slice the work goes
    on in the next turn of the reactor, so that a million steps do not block
    everything else.

    A step may create more work, or make some unnecessary; the slice in progress
    goes on with the work that is left.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        step: Callable[[], bool],
        ended: Callable[[bool], object] = bool,
    ) -> None:
        """
        @param step: Does one step; returns C{False} if no step was left.
        @param ended: Called at the end of each slice. Its argument tells whether
            another slice follows in the next turn of the reactor.
        """
        self._reactor = reactor
        self._step = step
        self._ended = ended
        self._working = False
        self._call: IDelayedCall | None = None

    def now(self) -> None:
        """
        Begin a slice now.
        """
        if self._working:
            return
        self._working = True
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None
        step, seconds = self._step, self._reactor.seconds
        begun = seconds()
        isOver = False
        more = True
        try:
            while not isOver and step():
                # A clock that was set back ends the slice, too.
                isOver = not 0 <= seconds() - begun < MAX_SLICE_SECONDS
            more = isOver
        finally:
            # An error of one step does not affect the next.
            self._working = False
            if more:
                self.soon()
        self._ended(more)

    def soon(self) -> None:
        """
        Begin a slice in the next turn of the reactor.
        """
        if self._call is None and not self._working:
            self._call = self._reactor.callLater(0, self.now)

    def stop(self) -> None:
        """
        Cancel the scheduled slice.
        """
        call, self._call = self._call, None
        if call is not None and call.active():
            call.cancel()
