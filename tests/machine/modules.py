"""
The modules: objects of several kinds that report each step to the world and let the
world decide.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from types import MethodType
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from tsrv.asyncmodule import ISettlesCalls

from .calls import Eventual, Run, waitFor

__all__ = ["Losable", "Modelled", "Settling"]


class looked:
    """
    A method that reports when it is looked up.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __get__(self, module: Modelled | None, owner: type) -> Any:
        if module is None:
            return self
        module._world.look()
        return MethodType(self._function, module)


class Modelled:
    """
    A module that cannot be lost.
    """

    def __init__(self, world: Any) -> None:
        self._world = world
        self.extra = self._later

    def __dir__(self) -> list[str]:
        self._world.look()
        return [*super().__dir__()]

    def initialize(self) -> Any:
        return self._world.initializing()

    def close(self) -> Any:
        return self._world.closing()

    def toggleExtra(self) -> bool:
        """
        Remove a method, or add it again.

        @return: Whether it is removed.
        """
        if vars(self).pop("extra", None) is None:
            self.extra = self._later
        return not self.hasExtra()

    def hasExtra(self) -> bool:
        return "extra" in vars(self)

    # The methods.

    @looked
    def read(self, number: int) -> Deferred[Any]:
        return self._later(number)

    def write(self, number: int) -> Deferred[Any]:
        return self._later(number)

    async def compute(self, number: int) -> Any:
        return await self._later(number)

    def plain(self, number: int) -> Coroutine[Any, Any, Any]:
        """
        Return a coroutine without being C{async def}.
        """
        return waitFor(self._later(number))

    @looked
    def eventual(self, number: int) -> Eventual:
        return Eventual(self._later(number))

    def shared(self, number: int) -> Any:
        """
        Return the same Deferred each time.
        """
        run = self._world.run(number)
        run.answer, run.answered = self._world.shared, True
        return self._world.shared

    def count(self, number: int) -> object:
        """
        Return a plain value.
        """
        return self._world.run(number).done

    def fail(self, number: int) -> object:
        run = self._world.run(number)
        run.raised = self._world.trouble("at once")
        raise run.raised

    def _later(self, number: int) -> Deferred[Any]:
        run: Run = self._world.run(number)
        return run.begin()


class Losable(Modelled):
    """
    A module that can be lost.
    """

    def whenLost(self) -> Any:
        return self._world.watching()


@implementer(ISettlesCalls)
class Settling(Losable):
    """
    A module that promises to end its calls itself.
    """
