"""
The commands that were at work when something went wrong, and of which the next
turn of the reactor will tell what became of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from ..errors import OutcomeUnknown
from .command import (
    HELD,
    LEAVING,
    UNCERTAIN,
    Chain,
    Command,
)

__all__ = ["Unsettled", "unanswered"]


class Unsettled:
    """
    Commands that were failed, which may turn out to be the beginning of a loss;
    and commands in progress at a loss, which the module may still answer.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        finish: Callable[[Command, object], None],
        sweep: Callable[[Chain], object],
    ) -> None:
        """
        @param reactor: Provides the time.
        @param finish: Ends a command with a result.
        @param sweep: Ends many commands as L{unanswered} says.
        """
        self._reactor = reactor
        self._finish = finish
        self._sweep = sweep
        self._failed: deque[Command] = deque()
        self._uncertain = Chain()
        self._call: IDelayedCall | None = None

    def failed(self, command: Command, failure: Failure) -> None:
        """
        The module has failed a command that may be run again. Many clients do
        so first, and report the loss of the connection afterwards.
        """
        command.stage = HELD
        command.answer = failure
        self._failed.append(command)
        self._soon()

    def lost(self, command: Command) -> None:
        """
        The module was lost while it was at work on a command.
        """
        if command.stage == LEAVING:
            command.answer = Failure(CancelledError())
        command.stage = UNCERTAIN
        self._uncertain.append(command)
        self._soon()

    def explained(self) -> None:
        """
        A loss has explained the failures.
        """
        self._failed.clear()

    def settleNow(self) -> None:
        """
        There will be no next turn.
        """
        if self._call is not None:
            self._call.cancel()
            self._settle()

    def _soon(self) -> None:
        if self._call is None:
            self._call = self._reactor.callLater(0, self._settle)

    def _settle(self) -> None:
        """
        No loss has explained the failures: they stand. No answer has come to
        what was in progress at a loss: none will.
        """
        self._call = None
        while self._failed:
            command = self._failed.popleft()
            if command.stage == HELD:
                self._finish(command, command.answer)
        if self._uncertain:
            self._sweep(self._uncertain.takeAll())


def unanswered(command: Command) -> Failure:
    """
    @return: What to end a command with that the module will not answer any
        more.
    """
    if isinstance(command.answer, Failure):
        return command.answer
    if command.stage == LEAVING:
        return Failure(CancelledError())
    return Failure(OutcomeUnknown(command.method.name))
