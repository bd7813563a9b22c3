"""
Many commands that end in the same way, one step at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from twisted.internet.defer import Deferred

from .command import (
    Chain,
    Command,
)

__all__ = ["Sweeps"]


@dataclass(eq=False, slots=True)
class _Sweep:
    """
    Commands that are to be ended.

    @ivar commands: Those that are left; they may also end without it.
    @ivar end: Ends one of them.
    @ivar done: Fires when none is left.
    """

    commands: Chain
    end: Callable[[Command], None]
    done: Deferred[None] = field(default_factory=Deferred)


class Sweeps:
    """
    What is to be ended, in the order in which that was decided.

    @ivar left: What is left to do.
    """

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left: deque[_Sweep] = deque()

    def add(self, commands: Chain, end: Callable[[Command], None]) -> Deferred[None]:
        """
        @param commands: Commands that are to be ended; nobody else's chain.
        @param end: Ends one of them.
        @return: A Deferred that fires when none is left.
        """
        sweep = _Sweep(commands, end)
        self.left.append(sweep)
        return sweep.done

    def step(self) -> None:
        """
        End one command, if there is one L{left}.
        """
        sweep = self.left[0]
        if sweep.commands:
            sweep.end(sweep.commands.root.next)
        else:
            self.left.popleft()
            sweep.done.callback(None)
