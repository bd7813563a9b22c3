"""
Restarts. The state of a module may live in the connection of another module. After a
loss of this connection, the module must be closed and initialised again.

At the loss, tsrv pauses the dependent module, and all modules that restart with it in
turn. As soon as the lost module is ready again, tsrv resets the dependent one: it
counts as lost, is closed, and is initialised. Then it is resumed. So no call that was
queued since the loss uses the old state.
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

# Pauses modules until they are restarted.
HOLDER: Final = Consequence()

# A module in any other state has no old state, and need not be restarted.
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
    Pauses and restarts modules after the loss of a module that they restart with.
    """

    def __init__(self, reactor: IReactorTime, launcher: Launcher) -> None:
        self._launcher = launcher
        # Paused modules, each with the module that has recovered or failed.
        self._queue: deque[tuple[Member, Member]] = deque()
        self._stopped = False
        self._work = SlicedWork(reactor, self._step)

    def stop(self) -> None:
        """
        Pause and restart no further modules.
        """
        self._stopped = True

    def work(self) -> None:
        """
        Restart the modules that are due, in slices.
        """
        if self._queue:
            self._work.now()

    def update(self, member: Member) -> None:
        """
        A module has changed its state: pause or restart its restarters.
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
            # An observer of one module may have ended the hold of another one.
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
                # A module that this one waits for has not recovered, or was lost again.
                return True
            elif member.wrapper.state in _RESETTABLE_STATES:
                member.wrapper.reset(Restarted(member.name, cause.name))
            # reset() may have caused another loss.
            if not member.heldFor:
                member.isHeld = False
                member.wrapper.resume(by=HOLDER)
        return True
