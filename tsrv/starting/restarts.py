"""
Restarts: a module whose state lives in the connection of another one is closed and
initialised again when the other one was lost and has recovered.

At the loss, the calls of the module are held, and so are those of all modules that
restart with it in turn. When the lost module is ready again, the held one is reset:
it counts as lost, is closed, and is initialised. Then its hold is released. So none
of the calls that were queued since the loss meets the old state.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from twisted.internet.interfaces import IReactorTime

from ..queuing.modulelog import Consequence
from ..queuing.slices import SlicedWork
from ..wrapper import State
from .launcher import Launcher
from .member import Member
from .program import Restarted

__all__ = ["Restarts"]

# Holds the calls of modules that are going to be restarted.
HOLDER: Final = Consequence()

# What has no state yet, or has none any more, need not be restarted.
_RESETTABLE_STATES: Final = (
    State.INITIALIZING,
    State.RETRYING,
    State.DRAINING,
    State.READY,
    State.PAUSED,
    State.LOST,
)


class Restarts:
    """
    Holds and restarts modules after the loss of a module that they restart with.
    """

    def __init__(self, reactor: IReactorTime, launcher: Launcher) -> None:
        self._launcher = launcher
        # Held modules, each with the one that has recovered or failed.
        self._queue: deque[tuple[Member, Member]] = deque()
        self._stopped = False
        self._work = SlicedWork(reactor, self._step)

    def stop(self) -> None:
        """
        Hold and restart nothing any more.
        """
        self._stopped = True

    def work(self) -> None:
        """
        Restart what is due, in slices.
        """
        if self._queue:
            self._work.now()

    def update(self, member: Member) -> None:
        """
        A module has changed its state: hold or restart those that restart with it.
        """
        if self._stopped or not member.restarters:
            return
        lossCount = member.wrapper.history.losses.count
        if lossCount > member.lossCount:
            member.lossCount = lossCount
            self._hold(member)
        if member.ready or member.failed:
            for each in member.restarters:
                if member in each.heldFor:
                    if member.ready:
                        del each.heldFor[member]
                    self._queue.append((each, member))

    def _hold(self, lost: Member) -> None:
        held: list[Member] = []
        reached = deque([lost])
        while reached:
            member = reached.popleft()
            for each in member.restarters:
                if each.wrapper.state in _RESETTABLE_STATES:
                    each.heldFor[member] = None
                    if not each.isHeld:
                        each.isHeld = True
                        held.append(each)
                        reached.append(each)
        for each in held:
            # An observer of one may have ended the hold of another.
            if each.isHeld:
                each.wrapper.pause(by=HOLDER).addErrback(lambda failure: None)

    def _step(self) -> bool:
        if self._stopped or not self._queue:
            return False
        member, cause = self._queue.popleft()
        if member.isHeld:
            failed = next((each for each in member.heldFor if each.failed), None)
            if failed is not None:
                member.heldFor.clear()
                self._launcher.skip(member, failed)
            elif member.heldFor:
                # Another one has not recovered, or this one was lost again.
                return True
            elif member.wrapper.state in _RESETTABLE_STATES:
                member.wrapper.reset(Restarted(member.name, cause.name))
            # The module may have been lost again meanwhile.
            if not member.heldFor:
                member.isHeld = False
                member.wrapper.resume(by=HOLDER)
        return True
