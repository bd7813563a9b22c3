"""
One module of a program: its wrapper and its place in the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.interfaces import IDelayedCall

from ..queuing.options import checkSeconds
from ..wrapper import QueuingWrapper, State
from .graph import checkGraph
from .program import Skipped

__all__ = ["Member", "checkMembers", "connect"]


@dataclass(eq=False, slots=True, repr=False)
class Member:
    """
    One module of a program.

    @ivar needs: The names of the modules that it needs, with C{restartWith}.
    @ivar after: The names of the modules that it starts after, if they exist.
    @ivar restartWith: The names of the modules that it restarts with.
    @ivar required: Whether the program is not ready without the module.
    @ivar timeout: Seconds within which it must become ready.
    @ivar lazy: Whether its first call initialises it.

    @ivar dependencies: The modules that it needs, set by L{connect}.
    @ivar dependents: The modules that need it, likewise.
    @ivar predecessors: The modules that it starts after but does not need.
    @ivar followers: The modules that start after it but do not need it.
    @ivar restarters: The dependents that restart with it.

    @ivar unavailableDependencies: Number of dependencies that are not available.
    @ivar unsettledPredecessors: Number of predecessors that are not settled.
    @ivar openDependents: Number of dependents and followers that are not closed,
        during the shutdown.
    @ivar isWanted: Whether it is initialised as soon as its needs are ready: a
        lazy module only after its first call.
    @ivar started: Whether the start-up has initialised it.
    @ivar startsAnew: Whether it failed before the start-up began, so that the
        start-up initialises it again.
    @ivar waitedFor: The last dependency or predecessor for which it waited.
    @ivar isTimed: Whether C{timeout} limits it now.
    @ivar timer: The timer of C{timeout}, once an attempt has begun.

    @ivar ready: Whether its last known state was ready.
    @ivar available: Whether the program and its dependents can go on without
        waiting: it is ready, or lazy and was never ready.
    @ivar failed: Whether its last known state was failed or closed.

    @ivar lossCount: Number of its known losses, if others restart with it.
    @ivar isHeld: Whether it is paused until it has been restarted.
    @ivar heldFor: The modules that it waits for before it is restarted.
    """

    name: str
    wrapper: QueuingWrapper[Any]
    needs: Sequence[str] = ()
    after: Sequence[str] = ()
    restartWith: Sequence[str] = ()
    required: bool = True
    timeout: float | None = None
    lazy: bool = False

    dependencies: list[Member] = field(default_factory=list)
    dependents: list[Member] = field(default_factory=list)
    predecessors: list[Member] = field(default_factory=list)
    followers: list[Member] = field(default_factory=list)
    restarters: list[Member] = field(default_factory=list)

    unavailableDependencies: int = 0
    unsettledPredecessors: int = 0
    openDependents: int = 0
    isWanted: bool = True
    started: bool = False
    startsAnew: bool = False
    waitedFor: Member | None = None
    isTimed: bool = False
    timer: IDelayedCall | None = None

    ready: bool = False
    available: bool = False
    failed: bool = False

    lossCount: int = 0
    isHeld: bool = False
    heldFor: dict[Member, None] = field(default_factory=dict)

    closeError: BaseException | None = None

    def __post_init__(self) -> None:
        """
        @raise TypeError: C{timeout} is not a number.
        @raise ValueError: C{timeout} is negative.
        """
        checkSeconds("timeout", self.timeout)
        self.isWanted = not self.lazy
        self.available = self.lazy

    @property
    def settled(self) -> bool:
        """
        Whether the modules that start after this one can start.
        """
        return self.available or self.failed

    @property
    def skipped(self) -> Skipped | None:
        """
        The reason why it was skipped; L{None} if it was not.
        """
        if self.wrapper.state is not State.FAILED:
            return None
        error = self.wrapper.lastError
        return error if isinstance(error, Skipped) else None

    def stopTimer(self) -> None:
        """
        Stop the timer of C{timeout}.
        """
        self.isTimed = False
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


def checkMembers(members: Mapping[str, Member]) -> None:
    """
    Check that every module can start, as L{checkGraph} does.
    """
    checkGraph(
        {name: each.needs for name, each in members.items()},
        {name: each.after for name, each in members.items() if each.after},
    )


def connect(members: Mapping[str, Member]) -> None:
    """
    Connect all members with the members that they need, start after or restart with.

    @param members: All members, by name.
    """
    for member in members.values():
        for name in member.needs:
            needed = members[name]
            member.dependencies.append(needed)
            needed.dependents.append(member)
            member.unavailableDependencies += not needed.available
        for name in member.restartWith:
            named = members[name]
            named.restarters.append(member)
            named.lossCount = named.wrapper.history.losses.count
        for name in member.after:
            # A module in C{after} need not exist.
            if name in members and name not in member.needs:
                predecessor = members[name]
                member.predecessors.append(predecessor)
                predecessor.followers.append(member)
                member.unsettledPredecessors += not predecessor.settled
