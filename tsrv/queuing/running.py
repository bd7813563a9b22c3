"""
The commands in progress, and their end when the module is lost.

Without a loss this is simple: a command is L{started <RunningCommands.start>}, the
module answers, the command ends. Losses have two difficulties:

  - Many clients fail their calls first, and report the loss of the connection
    afterwards. So the failure of a command that is safe to run twice is kept for
    one turn of the reactor. If a loss is reported by then, it explains the failure
    and the command is queued again; otherwise the command fails. A client that is
    pinged never reports a loss, so the failure is kept until the end of a ping that
    began after the failure.
  - Other clients report the loss first, and answer their calls afterwards, or never.
    So a command that must not run twice gets one turn of the reactor, too, for the
    module's own answer. Then it ends with L{OutcomeUnknown}.

A million commands may be in progress at a loss, so most of them are handled in slices.
Until then a command counts as in progress, and no other one is started.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from ..errors import OutcomeUnknown
from .answer import Answer
from .command import (
    CANCELLING,
    ENDED,
    FAILED,
    LOST,
    NOT_QUEUED,
    RUNNING,
    WAITING,
    Command,
    CommandList,
    Method,
)
from .foreign import (
    abandon,
    abandonCoroutine,
    asDeferred,
    cancelForeign,
    isEnterable,
    readResult,
    takeFailure,
)
from .slices import SlicedWork
from .waiters import Waiters

__all__ = ["RunningCommands"]

# Maximum number of commands that are handled at once at a loss.
MAX_INTERRUPTED_AT_ONCE: Final = 1500

# Maximum number of Deferreds that wait for the last command to end.
MAX_IDLE_WAITERS: Final = 10_000


class RunningCommands:
    """
    The commands in progress.

    @ivar count: The number of commands in progress.
    @ivar interruptions: The number of losses, plus one if the module was closed.
    @ivar interrupting: The number of losses that are still being handled.
    @ivar unknown: The number of commands whose outcome is unknown.
    @ivar suspect: To be called when a call has failed, which may be due to a loss;
        L{None} for a module that is not pinged.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        *,
        losable: bool,
        lossReason: Callable[[], BaseException | None],
        suspect: Callable[..., bool] | None,
        makeOutcomeUnknown: Callable[[str, BaseException | None], OutcomeUnknown],
        queueAgain: Callable[[Command], None],
        endAll: Callable[[CommandList, Callable[[Command], None]], Deferred[None]],
        ended: Callable[[], object] | None,
    ) -> None:
        """
        @param losable: Whether the module can report a loss.
        @param lossReason: Returns the reason of the last loss.
        @param suspect: Pings the module. Returns whether it will call its argument, if
            any, when the ping has succeeded. L{None} for a module that is not pinged.
        @param endAll: Calls a callable, which ends one command, for many commands.
        @param ended: Called when a command in progress has ended.
        """
        self.count = 0
        self.interruptions = 0
        self.unknown = 0
        self._losable = losable
        self._lossReason = lossReason
        self.suspect = suspect
        self._makeOutcomeUnknown = makeOutcomeUnknown
        self._queueAgain = queueAgain
        self._endAll = endAll
        self._ended = ended
        # Whether changes of the number of commands in progress are reported.
        self._observed = ended is not None
        self._idleWaiters = Waiters(MAX_IDLE_WAITERS, "for the calls in progress")
        self._running = CommandList()
        self._lost = CommandList()
        self._failed: deque[Command] = deque()
        self._settling = SlicedWork(reactor, self._settle)
        self.interrupting = 0

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
            if type(result) is not Deferred:
                answer = None
                if isEnterable(result):
                    command.isEnterable = True
                else:
                    answer = context.run(asDeferred, result)
                if answer is None:
                    self._answered(result, command, run)
                    return
                result = answer
        except BaseException:
            # A Deferred catches all errors of its callbacks, too.
            self._answered(Failure(), command, run)
            return
        if command.stage == ENDED:
            # The caller cancelled the call while the module was being called.
            abandon(result)
            return
        if run == command.run:
            command.answer = result
        self._observe(command, result, run)
        if run and (run != command.run or command.stage == WAITING):
            # The module was lost while it was being called: the call is made again.
            abandonCoroutine(result)

    def follow(
        self,
        method: Method,
        arguments: tuple[object, ...],
        keywords: dict[str, object],
        answer: Deferred[Any],
        interruptions: int,
    ) -> Command:
        """
        Track a call that was passed to the module directly.

        @param answer: The module's answer.
        @param interruptions: L{interruptions} before the module was called.
        """
        # Every tracked call runs this code, so everything is written out.
        command = Command()
        command.method = method
        if method.replay:
            command.arguments = arguments
            if keywords:
                command.keywords = keywords
            command.context = copy_context()
            command.run = 1
        command.since = NOT_QUEUED
        command.stage = RUNNING
        command.answer = answer
        root = self._running.root
        last = root.previous
        command.previous = last
        command.next = root
        last.next = root.previous = command
        self.count += 1
        run = command.run
        if interruptions != self.interruptions:
            # The module was lost or closed while it was being called.
            self._interrupt(command, self._lossReason())
        if answer.called:
            self._observe(command, answer, run)
        else:
            answer.addBoth(self._fired, answer, command, run)
        return command

    def cancel(self, command: Command) -> None:
        """
        Cancel a command in progress: cancel the module's own Deferred.
        """
        answer = command.answer
        if isinstance(answer, Deferred):
            if command.stage == RUNNING:
                command.stage = CANCELLING
            if cancelForeign(answer) or command.stage not in (CANCELLING, LOST):
                return
        self._end(command, Failure(CancelledError()))

    def interrupt(self, reason: BaseException | None) -> None:
        """
        The module is lost. Commands that are safe to run twice are queued again, in
        order; the others wait for the module's answer until the next turn of the
        reactor.

        @param reason: The reason of the loss, if it is known.
        """
        self.interruptions += 1
        interrupt = partial(self._interrupt, reason=reason)
        commands = self._running.takeAll()
        for _ in range(MAX_INTERRUPTED_AT_ONCE):
            if not commands:
                return
            interrupt(commands.root.next)
        self.interrupting += 1
        self._endAll(commands, interrupt).addCallback(self._interrupted)

    def abandon(self) -> Deferred[None]:
        """
        The module is closed: end the commands that it has not answered.

        @return: A Deferred that fires when the last command has ended.
        """
        self.interruptions += 1
        self._settling.stop()
        self._endAll(self._lost.takeAll(), self._endUnanswered)
        return self._endAll(self._running.takeAll(), self._endUnanswered)

    def whenIdle(self) -> Deferred[None]:
        """
        @return: A Deferred that fires when no command is in progress.
        """
        if not self.count:
            return succeed(None)
        self._observed = True
        return self._idleWaiters.wait()

    def _observe(self, command: Command, answer: Deferred[Any], run: int) -> None:
        if answer.called and not answer.paused:
            if isinstance(answer, Answer):
                command.isEnterable = answer.isEnterable
            self._answered(readResult(answer), command, run)
        else:
            answer.addBoth(self._fired, answer, command, run)

    def _fired(
        self, result: object, answer: Deferred[Any], command: Command, run: int
    ) -> object:
        isFailure = isinstance(result, Failure)
        if isFailure or command.stage != RUNNING or run != command.run:
            if isFailure:
                takeFailure(answer)
            self._answered(result, command, run)
            return result
        if type(answer) is not Deferred and isinstance(answer, Answer):
            # The module is a wrapper's proxy.
            command.isEnterable = answer.isEnterable
        # This is _end(), written out because nearly every command passes here.
        self.count -= 1
        command.end(result)
        if self._observed:
            self._countChanged()
        return result

    def _answered(self, result: object, command: Command, run: int) -> None:
        stage = command.stage
        if run != command.run or not RUNNING <= stage <= LOST:
            # The answer belongs to an earlier run, or the command has ended.
            return
        if stage == RUNNING and self._losable and isinstance(result, Failure):
            if run:
                command.stage = FAILED
                command.answer = result
                explain = partial(self._explain, command)
                if self.suspect is None or not self.suspect(explain):
                    explain()
                return
            if self.suspect is not None:
                # Ping now, to notice a loss before more calls fail because of it.
                self.suspect()
        self._end(command, result)

    def _explain(self, command: Command) -> None:
        # The command fails if no loss is reported by the next turn.
        self._failed.append(command)
        self._settling.soon()

    def _end(self, command: Command, result: object) -> None:
        self.count -= 1
        command.end(result)
        if self._observed:
            self._countChanged()

    def _endUnanswered(self, command: Command) -> None:
        answer = command.answer
        if isinstance(command.answer, Failure):
            failure = command.answer
        elif command.stage == CANCELLING:
            failure = Failure(CancelledError())
        else:
            self.unknown += 1
            name, cause = command.method.name, command.lossReason
            failure = Failure(self._makeOutcomeUnknown(name, cause))
        self._end(command, failure)
        abandonCoroutine(answer)

    def _countChanged(self) -> None:
        if self._ended is not None:
            self._ended()
        if not self.count:
            self._observed = self._ended is not None
            self._idleWaiters.takeAll().succeed()

    def _interrupt(self, command: Command, reason: BaseException | None) -> None:
        command.unlink()
        isGivenUp = command.stage == CANCELLING or command.called
        if command.stage == FAILED:
            command.answer = None
        if command.method.replay and not isGivenUp:
            self.count -= 1
            answer = command.answer
            self._queueAgain(command)
            if self._observed:
                self._countChanged()
            abandonCoroutine(answer)
            return
        if isGivenUp:
            command.answer = Failure(CancelledError())
        command.stage = LOST
        if reason is not None:
            command.lossReason = reason
        self._lost.add(command)
        self._settling.soon()

    def _interrupted(self, _: object) -> None:
        self.interrupting -= 1
        self._settling.soon()

    def _settle(self) -> bool:
        # No loss explains the failures, and the module has not answered the commands
        # that were in progress at a loss.
        if self.interrupting:
            return False
        if self._failed:
            command = self._failed.popleft()
            if command.stage == FAILED:
                self._end(command, command.answer)
            return True
        if self._lost:
            self._endAll(self._lost.takeAll(), self._endUnanswered)
        return False
