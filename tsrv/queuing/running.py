"""
The commands that the module is working on, and their fate when it is lost.

While the module works there is not much to say: a command is L{started
<RunningCommands.start>}, the module answers, the command ends. The rest of this
module is about losses, of which two facts are unpleasant:

  - Many clients fail their calls first, and report the loss of the connection
    afterwards. So the failure of a command that is safe to run twice is kept for
    one turn of the reactor. If a loss is reported until then, the loss explains
    the failure and the command is queued again; otherwise the failure stands.

  - Others report the loss first, and answer their calls afterwards; or never. So
    a command that must not run twice gets one turn of the reactor, too, for the
    module's own answer. Then it ends with L{OutcomeUnknown}.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import CoroutineType

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from ..errors import OutcomeUnknown
from .command import (
    CANCELLING,
    ENDED,
    FAILED,
    LOST,
    RUNNING,
    WAITING,
    Command,
    CommandList,
)

__all__ = ["RunningCommands"]


class RunningCommands:
    """
    The commands in progress.

    @ivar count: The number of commands in progress.
    @ivar losses: The number of losses.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        *,
        losable: bool,
        queueAgain: Callable[[Command], None],
        endAll: Callable[[CommandList, Callable[[Command], None]], Deferred[None]],
        ended: Callable[[], object] | None,
    ) -> None:
        """
        @param losable: Whether the module can report a loss.
        @param endAll: Ends many commands, one after another, with a callable.
        @param ended: Called when a command in progress ends; L{None} if nobody
            needs to know.
        """
        self.count = 0
        self.losses = 0
        self._reactor = reactor
        self._losable = losable
        self._queueAgain = queueAgain
        self._endAll = endAll
        self._ended = ended
        self._running = CommandList()
        self._lost = CommandList()
        self._failed: deque[Command] = deque()
        self._settleCall: IDelayedCall | None = None

    def start(self, command: Command) -> None:
        """
        Hand a command to the module.
        """
        command.stage = RUNNING
        command.answer = None
        self._running.add(command)
        self.count += 1
        method, context = command.method, command.context
        if method.replay:
            command.run += 1
        run = command.run
        try:
            if command.keywords is None:
                result = context.run(method.target, *command.arguments)
            else:
                result = context.run(
                    method.target, *command.arguments, **command.keywords
                )
            if type(result) is CoroutineType:
                result = context.run(Deferred.fromCoroutine, result)
        except BaseException:
            # As a Deferred does with whatever its callbacks raise.
            result = Failure()
        if not isinstance(result, Deferred):
            self._answered(result, command, run)
        elif command.stage == ENDED:
            # The caller gave up while the module was being called.
            result.addErrback(lambda _: None)
            result.cancel()
        else:
            if command.stage != WAITING:
                command.answer = result
            result.addBoth(self._answered, command, run)

    def cancel(self, command: Command) -> None:
        """
        Give up a command in progress: cancel the module's own Deferred.
        """
        answer = command.answer
        if isinstance(answer, Deferred):
            if command.stage == RUNNING:
                command.stage = CANCELLING
            answer.cancel()
        else:
            self._end(command, Failure(CancelledError()))

    def failedDirectly(self, command: Command, failure: Failure) -> None:
        """
        A call that had been passed to the module directly has failed, and is safe
        to run twice: treat it as a command that has.
        """
        command.stage = RUNNING
        command.run = 1
        self._running.add(command)
        self.count += 1
        self._answered(failure, command, 1)

    def interrupt(self) -> None:
        """
        The module is lost. Queue the commands again that are safe to run twice, in
        order; the others wait for the module's answer until the next turn of the
        reactor.
        """
        for command in self._running:
            command.unlink()
            if command.method.replay and command.stage != CANCELLING:
                self._queueAgain(command)
                continue
            if command.stage == CANCELLING:
                command.answer = Failure(CancelledError())
            command.stage = LOST
            self._lost.add(command)
            self._settleSoon()
        self.count = 0
        self.losses += 1

    def abandon(self) -> Deferred[None]:
        """
        The module is closed: end what it has not answered.

        @return: A Deferred that fires when the last command has ended.
        """
        if self._settleCall is not None:
            self._settleCall.cancel()
            self._settle()
        return self._endAll(self._running.takeAll(), self._endUnanswered)

    def _answered(self, result: object, command: Command, run: int) -> None:
        stage = command.stage
        if run != command.run or not RUNNING <= stage <= LOST:
            # The answer of an earlier run, or to nobody.
            return
        if run and stage == RUNNING and self._losable and isinstance(result, Failure):
            command.stage = FAILED
            command.answer = result
            self._failed.append(command)
            self._settleSoon()
            return
        # This is _end(), written out because every command passes here.
        if stage != LOST:
            self.count -= 1
            if self._ended is not None:
                self._ended()
        command.end(result)

    def _end(self, command: Command, result: object) -> None:
        if command.stage != LOST:
            self.count -= 1
            if self._ended is not None:
                self._ended()
        command.end(result)

    def _endUnanswered(self, command: Command) -> None:
        if isinstance(command.answer, Failure):
            failure = command.answer
        elif command.stage == CANCELLING:
            failure = Failure(CancelledError())
        else:
            failure = Failure(OutcomeUnknown(command.method.name))
        self._end(command, failure)

    def _settleSoon(self) -> None:
        if self._settleCall is None:
            self._settleCall = self._reactor.callLater(0, self._settle)

    def _settle(self) -> None:
        # No loss has explained the failures, and nothing has answered the commands
        # in progress at a loss.
        self._settleCall = None
        while self._failed:
            command = self._failed.popleft()
            if command.stage == FAILED:
                self._end(command, command.answer)
        if self._lost:
            self._endAll(self._lost.takeAll(), self._endUnanswered)
