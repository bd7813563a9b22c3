"""
Asyncio loops with a time of their own, on which no test waits and none is late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from selectors import SelectorKey, SelectSelector
from typing import Any

__all__ = ["LeapingLoop", "TurningLoop"]


class _Selector(SelectSelector):
    """
    A selector that notices when the loop is idle, and does not block.
    """

    idle: Callable[[float | None], None]

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        if timeout is None or timeout > 0:
            self.idle(timeout)
        return super().select(0)


class LeapingLoop(asyncio.SelectorEventLoop):
    """
    A loop that does not wait for a timer: when it is idle, its time leaps to the next
    one. Threads and connections take real time, and need another loop.
    """

    def __init__(self) -> None:
        self._now = 0.0
        selector = _Selector()
        selector.idle = self._leap
        super().__init__(selector)

    def time(self) -> float:
        return self._now

    def _leap(self, timeout: float | None) -> None:
        assert timeout is not None, "the test waits for something that nothing ends"
        self._now += timeout


class TurningLoop(asyncio.SelectorEventLoop):
    """
    A loop that runs until it is idle.

    @ivar problems: The reports to the exception handler.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._next: float | None = None
        selector = _Selector()
        selector.idle = self._idle
        super().__init__(selector)
        self.problems: list[Mapping[str, Any]] = []
        self.set_exception_handler(lambda _, problem: self.problems.append(problem))

    def time(self) -> float:
        return self._now

    def _idle(self, timeout: float | None) -> None:
        self._next = timeout
        self.stop()

    def turn(self, function: Callable[[], object] = bool) -> None:
        """
        Call a function in a turn, and run until the loop is idle.
        """
        self.call_soon(function)
        self.run_forever()

    def advance(self, seconds: float) -> None:
        """
        Advance the time, and run each call when it is due.
        """
        end = self._now + seconds
        self.turn()
        while self._next is not None and self._now + self._next <= end:
            self._now += self._next
            self.turn()
        self._now = end

    @property
    def isEmpty(self) -> bool:
        """
        Whether the loop has neither work nor timers.
        """
        self.turn()
        return self._next is None
