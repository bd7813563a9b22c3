"""
A command: one call, from the queue to its result.

A L{Command} I{is} the Deferred that its caller holds, and also a link of its
L{CommandList}. So a queued call costs one object, and any command can be removed from
its list in constant time.

A command is always in one of these stages::

    WAITING     in the queue
    RUNNING     in progress: handed to the module, which has not answered yet
    CANCELLING  in progress, but the caller has cancelled it, and so tsrv has cancelled
                the module's own Deferred
    LOST        the module was lost, but may still answer until the next turn of the
                reactor
    FAILED      the module failed it, and it is safe to run twice: if a loss is reported
                by the next turn, the command is queued again
    ENDED       fired

When the module is lost, a command that is safe to run twice goes back from RUNNING or
FAILED to WAITING, and every other command goes on to LOST. Each stage leads to ENDED.

A caller that fires the Deferred itself cancels the call, too: the call is not started,
or the module's answer is dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final

from twisted.internet.defer import AlreadyCalledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from .answer import Answer
from .foreign import checkThread

__all__ = ["Command", "CommandList", "Method"]

_log = Logger("tsrv.wrapper")

# The value of C{since} for a command that was handed to the module at once.
NOT_QUEUED: Final = -inf

# Replaces the caller's context in an ended command.
_NO_CONTEXT: Final = Context()

# Plain numbers, because every queued call compares them several times.
WAITING: Final = 0
RUNNING: Final = 1
CANCELLING: Final = 2
LOST: Final = 3
FAILED: Final = 4
ENDED: Final = 5


@dataclass(eq=False, slots=True)
class Method:
    """
    One public method of a module.

    @ivar name: The name of the method.
    @ivar replay: Whether a call in progress at a loss is made again.
    @ivar cancel: Cancels one of its commands.
    @ivar target: The module's own method.
    @ivar enqueue: Queues, passes or refuses a call, depending on the state.
    @ivar direct: Makes a call while the module is ready.
    """

    name: str
    replay: bool
    cancel: Callable[[Command], None]
    target: Callable[..., Any]
    enqueue: Callable[..., Any] = field(init=False)
    direct: Callable[..., Any] = field(init=False)


class Command(Answer):
    """
    One call, and its caller's Deferred.

    @ivar since: The time at which the call was queued, by the reactor; C{NOT_QUEUED} if
        it was handed to the module at once.
    @ivar run: Number of times the command was handed to the module, if its method is
        safe to run twice.
    @ivar answer: The module's Deferred while the call is in progress; or the failure
        with which the command ends if the module does not answer.
    @ivar lossReason: The reason of the loss, if it is known.
    """

    # A command has no __init__, so that it costs what a Deferred costs: its creator
    # sets the attributes. Attributes that most commands never set have a default
    # here in place of a slot.
    __slots__ = (
        "answer",
        "arguments",
        "context",
        "method",
        "next",
        "previous",
        "since",
    )

    answer: Deferred[object] | Failure | None
    arguments: tuple[object, ...]
    context: Context
    keywords: dict[str, object] | None = None
    lossReason: BaseException | None = None
    method: Method
    next: Command
    previous: Command
    run: int = 0
    since: float
    stage: int = WAITING

    def cancel(self) -> None:
        """
        Cancel the call. A queued call is never started; for a call in progress, the
        module's own Deferred is cancelled.
        """
        if self.called:
            super().cancel()
        else:
            checkThread("cancel")
            self.method.cancel(self)

    def end(self, result: object) -> None:
        """
        Fire, and drop all references: a caller that keeps the Deferred must not keep
        the module, the arguments or other commands alive.
        """
        self.stage = ENDED
        method = self.method
        previous, following = self.previous, self.next
        previous.next = following
        following.previous = previous
        del self.previous, self.next, self.method
        self.answer = None
        self.context = _NO_CONTEXT
        self.arguments = ()
        if self.keywords is not None:
            self.keywords = None
        try:
            self.callback(result)
        except AlreadyCalledError:
            _log.error(
                "the caller of {name}() has fired its Deferred, so the result is lost",
                name=method.name,
            )

    def unlink(self) -> None:
        """
        Remove the command from its list.
        """
        self.previous.next = self.next
        self.next.previous = self.previous


class CommandList:
    """
    Commands in order. Commands can be removed at any position.

    @ivar root: The end mark; the first command is C{root.next}.
    """

    def __init__(self) -> None:
        self.root = root = Command()
        root.next = root.previous = root

    def __bool__(self) -> bool:
        return self.root.next is not self.root

    def add(self, command: Command, after: Command | None = None) -> None:
        """
        Add a command behind another one, by default at the end. C{after=root} makes
        it the first.
        """
        if after is None:
            after = self.root.previous
        following = after.next
        command.previous = after
        command.next = following
        after.next = following.previous = command

    def takeAll(self) -> CommandList:
        """
        Move all commands into a new list.
        """
        taken = CommandList()
        if self:
            root, new = self.root, taken.root
            new.next, new.previous = root.next, root.previous
            new.next.previous = new.previous.next = new
            root.next = root.previous = root
        return taken
