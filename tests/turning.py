"""
An asyncio loop whose time stands still unless a test lets it pass.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from selectors import SelectorKey, SelectSelector
from typing import Any

__all__ = ["TurningLoop"]


class _Selector(SelectSelector):
    """
    Tells when the loop has nothing to do, in place of waiting.
    """

    idle: Callable[[float | None], None]

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        if timeout is None or timeout > 0:
            self.idle(timeout)
        return super().select(0)


class TurningLoop(asyncio.SelectorEventLoop):
    """
    A loop that runs until it has nothing to do.

    @ivar problems: What has been reported to the exception handler.
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
        Call a function in a turn, and run until nothing is to be done.
        """
        self.call_soon(function)
        self.run_forever()

    def advance(self, seconds: float) -> None:
        """
        Let time pass, and call what is due at its time.
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
        Whether nothing is to be done, not even later.
        """
        self.turn()
        return self._next is None
