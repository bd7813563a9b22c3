"""
Thousands of calls at once. No event may make them block the reactor for long.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Clock

from tests.support import Trouble
from tsrv import QueuingWrapper, State

__all__ = ["EVENTS", "sufferWithACrowd"]

# The events that end, start or move all calls.
EVENTS: Final = ["lose", "reset", "close", "fail", "expire", "drain"]

CROWD: Final = 12_000

# Maximum number of Python functions that one turn of the reactor calls. It stands for
# about 10 ms, independent of the speed of the machine. Calls that expire need more.
MAX_FUNCTIONS: Final = 28_000
MAX_FUNCTIONS_TO_EXPIRE: Final = 45_000

# The time that reading the clock takes, in seconds.
TICK: Final = 1e-5


class CountedTurns(Clock):
    """
    A clock that counts the functions that are called in each turn of the reactor.

    @ivar most: The number in the longest turn.
    """

    def __init__(self) -> None:
        super().__init__()
        self.most = self.count = 0

    def seconds(self) -> float:
        self.rightNow += TICK
        return self.rightNow

    def callLater(
        self,
        delay: float,
        callable: Callable[..., object],  # noqa: A002
        *args: object,
        **kw: object,
    ) -> IDelayedCall:
        return super().callLater(delay, self._begin, callable, args, kw)

    def _begin(self, function: Callable[..., object], args: Any, keywords: Any) -> None:
        self.count = 0
        function(*args, **keywords)

    def _profile(self, frame: object, event: str, _: object) -> None:
        if event == "call":
            self.count += 1
            self.most = max(self.most, self.count)

    def measure(self, step: Callable[[], object]) -> None:
        """
        Count the functions that a step calls, in this turn and in the following ones.
        """
        self.count = 0
        sys.setprofile(self._profile)
        try:
            step()
            self.advance(0.0)
        finally:
            sys.setprofile(None)


class Busy:
    """
    A module that answers no call.
    """

    def __init__(self) -> None:
        self.lost: Deferred[None] = Deferred()

    def initialize(self) -> None:
        pass

    def whenLost(self) -> Deferred[None]:
        self.lost = Deferred()
        return self.lost

    def close(self) -> None:
        pass

    def read(self) -> Deferred[None]:
        return Deferred()

    def write(self) -> Deferred[None]:
        return Deferred()


def sufferWithACrowd(method: str, event: str) -> None:
    """
    Apply an event to thousands of calls. All of them must end, and every turn of the
    reactor must be short.

    @param method: The method that they call; C{"read"} is safe to run twice.
    """
    clock, module = CountedTurns(), Busy()
    wrapper = QueuingWrapper(
        module,
        clock,
        replay=["read"],
        limit=CROWD,
        timeout=50.0,
        retryPolicy=lambda attempts: 0.0,
    )
    ended: list[object] = []
    if event in ("lose", "reset", "close"):
        wrapper.initialize()
    for _ in range(CROWD):
        call: Deferred[None] = getattr(wrapper.proxy, method)()
        call.addBoth(ended.append)
    steps: dict[str, Callable[[], object]] = {
        "lose": lambda: module.lost.callback(None),
        "reset": lambda: wrapper.reset(Trouble()),
        "close": wrapper.close,
        "fail": lambda: wrapper.fail(Trouble()),
        "expire": lambda: clock.advance(50.0),
        "drain": wrapper.initialize,
    }
    clock.measure(steps[event])
    isOver = event in ("close", "fail", "expire")
    isOver = isOver or (event != "drain" and method == "write")
    assert len(ended) == CROWD * isOver
    assert wrapper.pending == 0
    clock.measure(wrapper.close)
    assert wrapper.state is State.CLOSED
    assert len(ended) == CROWD
    isExpiry = event == "expire"
    assert clock.most < (MAX_FUNCTIONS_TO_EXPIRE if isExpiry else MAX_FUNCTIONS)
