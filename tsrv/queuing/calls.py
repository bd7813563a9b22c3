"""
What callers call: while a module is ready, and while it is not.

This is the upper half of the queue, in a module of its own: what each call costs
is here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context, copy_context
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from .callables import (
    introduce,
    isAsync,
)
from .command import (
    RUNNING,
    WAITING,
    Chain,
    Command,
    Method,
)

__all__ = ["Calls"]


class Calls:
    """
    The calls of a module's methods, which become commands where that is needed.

    @ivar pending: How many commands wait.
    """

    pending: int
    _answering: bool
    _inProgress: int
    _losses: int
    _passing: bool
    _reactor: IReactorTime
    _refusal: Callable[[], Exception] | None
    _returned: Command | None
    _room: int
    _running: Chain
    _waiting: Chain

    if TYPE_CHECKING:
        # The other half has them.

        def _makeRoom(self) -> bool: ...

        def _reject(self) -> Deferred[Any]: ...

        def _start(self, command: Command) -> None: ...

        def answeredRun(self, command: Command, result: object) -> None:
            """
            End a run of a command.
            """

        def _putBack(self, command: Command) -> None: ...

    def connect(self, method: Method, own: Callable[..., Any]) -> None:
        """
        @param method: A method.
        @param own: The module's own, which is to be called.
        """
        method.target = own
        if method.replay:
            make = self._makeWatch if self._answering else self._makeGuard
            method.direct = make(method)
        elif isAsync(own):
            method.direct = self._makeAdapter(method)
        else:
            method.direct = own

    def _makeHolder(self, method: Method) -> Callable[..., Any]:
        """
        @param method: The method that is called.
        @return: A callable that does what is right at the time of each call:
            queue it, hand it on, or refuse it.
        """
        # All that a queued call costs is here; so it is written out.
        root = self._waiting.root
        seconds = self._reactor.seconds

        def call(*arguments: object, **keywords: object) -> object:
            pending = self.pending
            if pending >= self._room and not self._makeRoom():
                if self._passing:
                    return method.direct(*arguments, **keywords)
                return self._reject()
            command = Command()
            command.method = method
            command.arguments = arguments
            if keywords:
                command.keywords = keywords
            command.context = copy_context()
            command.since = seconds()
            last = root.previous
            command.previous = last
            command.next = root
            last.next = root.previous = command
            self.pending = pending + 1
            return command

        return call

    def _makeAdapter(self, method: Method) -> Callable[..., Any]:
        """
        @param method: A method that is C{async def}.
        @return: A callable that answers its calls with Deferreds. After a loss
            it queues, like any other.
        """
        hold = method.hold

        def call(*arguments: object, **keywords: object) -> object:
            if not self._passing:
                return hold(*arguments, **keywords)
            result = method.target(*arguments, **keywords)
            if type(result) is CoroutineType:
                return Deferred.fromCoroutine(result)
            return result

        return introduce(call, method.target)

    def _makeGuard(self, method: Method) -> Callable[..., Any]:
        """
        @param method: A method whose calls may be run again after a loss.
        @return: A callable that runs a call at once, but remembers it until it
            has been answered. After a loss it queues, like any other.
        """
        hold = method.hold

        def call(*arguments: object, **keywords: object) -> object:
            if not self._passing:
                return hold(*arguments, **keywords)
            command = Command()
            command.method = method
            command.arguments = arguments
            if keywords:
                command.keywords = keywords
            command.context = copy_context()
            command.since = None
            self._start(command)
            return command

        return introduce(call, method.target)

    def _makeWatch(self, method: Method) -> Callable[..., Any]:
        """
        @param method: A method whose calls may be run again after a loss, of a
            module that answers them all.
        @return: A callable that runs a call at once, and remembers it only if it
            fails. After a loss it queues, like any other.
        """
        hold, target = method.hold, method.target

        def call(*arguments: object, **keywords: object) -> object:
            if not self._passing:
                return hold(*arguments, **keywords)
            try:
                result = target(*arguments, **keywords)
            except BaseException:
                result = fail(Failure())
            if type(result) is CoroutineType:
                result = Deferred.fromCoroutine(result)
            elif not isinstance(result, Deferred):
                return succeed(result)
            return result.addErrback(
                failed, arguments, keywords, copy_context(), self._losses
            )

        def failed(
            failure: Failure,
            arguments: tuple[object, ...],
            keywords: dict[str, object],
            context: Context,
            losses: int,
        ) -> object:
            lost = losses != self._losses
            if failure.check(CancelledError) or not (lost or self._passing):
                return failure
            if lost and self._passing:
                # It has healed meanwhile.
                return context.run(call, *arguments, **keywords)
            if self._refusal is not None:
                return failure
            command = Command()
            command.method = method
            command.arguments = arguments
            command.keywords = keywords or None
            command.context = context
            command.since = command.answer = None
            command.stage = RUNNING
            command.run = 1
            self._running.append(command)
            self._inProgress += 1
            if lost:
                self._return(command)
            else:
                # As of a module that does not report its loss first.
                self.answeredRun(command, failure)
            return command

        return introduce(call, target)

    def _return(self, command: Command) -> None:
        """
        Put a command in front of those that came after the loss, and behind those
        that were in progress at it like itself.
        """
        command.unlink()
        self._inProgress -= 1
        before = self._returned
        self._putBack(command)
        if before is not None and before.stage == WAITING:
            command.unlink()
            following = before.next
            command.previous = before
            command.next = following
            before.next = following.previous = command
        self._returned = command
