"""
A command: one call that waits for its module.

A L{Command} I{is} the Deferred that its caller holds, and at the same time a
link in the L{Chain} of commands that wait. So a queued call costs one object,
is removed from anywhere in the queue in constant time, and leaves nothing
behind.

A command goes through these stages::

    WAITING    in the queue
    RUNNING    handed to the module, which has not answered yet
    LEAVING    the same, and its caller has given up: the module's own
               Deferred has been cancelled
    HELD       the module failed it, and it may be run again: the next turn
               of the reactor will tell whether that was a loss
    UNCERTAIN  the module was lost while at work on it; the next turn ends it
    ENDED      fired

A call that may be run twice goes from RUNNING or HELD back to WAITING when the
module is lost, every other one on to UNCERTAIN. From each stage there is a way
to ENDED.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

__all__ = [
    "ENDED",
    "HELD",
    "LEAVING",
    "RUNNING",
    "UNCERTAIN",
    "WAITING",
    "Chain",
    "Command",
    "Method",
    "Owner",
]

WAITING: Final = 0
RUNNING: Final = 1
LEAVING: Final = 2
HELD: Final = 3
UNCERTAIN: Final = 4
ENDED: Final = 5


class Owner(Protocol):
    """
    Who starts and ends commands.
    """

    def cancel(self, command: Command) -> None:
        """
        The caller of a command gives up.
        """

    def answeredRun(self, command: Command, result: object) -> None:
        """
        The module has answered the latest run of a command.
        """

    def finish(self, command: Command, result: object) -> None:
        """
        End a command.
        """


@dataclass(eq=False, slots=True)
class Method:
    """
    One public method of a module, as its commands need it.

    @ivar name: Its name.
    @ivar replay: Whether a call in progress at a loss may be run again.
    @ivar owner: Starts and ends its calls.
    @ivar hold: What callers call while the module is not ready.
    @ivar direct: What they call while it is.
    @ivar target: The module's own method, which runs the commands.
    """

    name: str
    replay: bool
    owner: Owner
    hold: Callable[..., Any] = field(init=False)
    direct: Callable[..., Any] = field(init=False)
    target: Callable[..., Any] = field(init=False)


class Command(Deferred[Any]):
    """
    One call that waits, and its caller's Deferred.
    """

    # It has no __init__ of its own, so that it costs what a Deferred costs: who
    # creates one fills the slots. What most commands never need, or not while
    # they wait, has no slot, but a default.
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
    method: Method
    next: Command
    previous: Command
    run: int = 0
    since: float | None
    stage: int = WAITING

    def cancel(self) -> None:
        """
        Give up the call. If it is waiting it will never run; if the module is
        at work on it, the module's own Deferred is cancelled.
        """
        if self.called:
            super().cancel()
        else:
            self.method.owner.cancel(self)

    def answered(self, result: object) -> None:
        """
        The module's Deferred has fired, with a result or a L{Failure}.
        """
        if self.stage != ENDED:
            self.method.owner.finish(self, result)

    def answeredRun(self, result: object, run: int) -> None:
        """
        The same, of a command that may run more than once: only the answer to
        its latest run counts.
        """
        if run == self.run and self.stage != ENDED:
            self.method.owner.answeredRun(self, result)

    def unlink(self) -> None:
        """
        Leave the chain.
        """
        previous, following = self.previous, self.next
        previous.next = following
        following.previous = previous


class Chain:
    """
    Commands in order, with removal from anywhere in constant time.
    """

    __slots__ = ("root",)

    def __init__(self) -> None:
        self.root = root = Command()
        root.next = root.previous = root

    def __bool__(self) -> bool:
        return self.root.next is not self.root

    def __iter__(self) -> Iterator[Command]:
        """
        Iterate from the oldest to the youngest. The command given out last may
        leave meanwhile; no other may, so this is not for loops in which
        callbacks run.
        """
        command = self.root.next
        while command is not self.root:
            following = command.next
            yield command
            command = following

    def append(self, command: Command) -> None:
        """
        Add a command behind all others.
        """
        root = self.root
        last = root.previous
        command.previous = last
        command.next = root
        last.next = root.previous = command

    def prepend(self, command: Command) -> None:
        """
        Put a command before all others.
        """
        root = self.root
        first = root.next
        command.previous = root
        command.next = first
        root.next = first.previous = command

    def oldest(self) -> float | None:
        """
        @return: The earliest time at which one of them began to wait.
        """
        earliest: float | None = None
        for command in self:
            since = command.since
            assert since is not None
            earliest = since if earliest is None else min(since, earliest)
            if command.run == 0:
                # Those that were put back at the head began later than it; all
                # behind it did too.
                break
        return earliest

    def takeAll(self) -> Chain:
        """
        Move all commands to a new chain.
        """
        taken = Chain()
        if self:
            root, new = self.root, taken.root
            new.next, new.previous = root.next, root.previous
            new.next.previous = new.previous.next = new
            root.next = root.previous = root
        return taken
