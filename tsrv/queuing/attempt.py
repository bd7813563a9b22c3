"""
One attempt to initialise a module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from .foreign import cancelForeign

__all__ = ["PROGRAMMING_ERRORS", "OneAttempt"]

# Errors that show a mistake in the program, rather than trouble outside of it.
PROGRAMMING_ERRORS: Final = (
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    TypeError,
)


@dataclass(eq=False)
class OneAttempt:
    """
    One attempt, and, if it succeeds, the time for which the module is then ready.

    @ivar turn: Fires when the attempt may begin; L{None} once it has begun.
    @ivar release: Lets another attempt begin, if their number is limited.
    @ivar answer: The Deferred of the module's C{initialize()}, until it fires.
    @ivar timer: Ends an attempt that hangs.
    """

    turn: Deferred[Any] | None = None
    release: Callable[[], object] | None = None
    answer: Deferred[Any] | None = None
    timer: IDelayedCall | None = None

    def end(self) -> None:
        """
        Cancel the attempt, or clean up after it.
        """
        turn, self.turn = self.turn, None
        release, self.release = self.release, None
        answer, self.answer = self.answer, None
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if turn is not None:
            turn.cancel()
        if release is not None:
            release()
        if answer is not None:
            cancelForeign(answer)
