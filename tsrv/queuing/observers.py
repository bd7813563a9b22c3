"""
Those who want to know when something has changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, ParamSpec

from twisted.logger import Logger

__all__ = ["Observers"]

_Told = ParamSpec("_Told")


class Observers(Generic[_Told]):
    """
    Callables that are called one after another. What one of them raises
    concerns no other.
    """

    __slots__ = ("_observers",)

    _log = Logger()

    def __init__(self) -> None:
        self._observers: dict[Callable[_Told, object], None] = {}

    def add(self, observer: Callable[_Told, object]) -> None:
        """
        Have one more called; one that is there already is not called twice.
        """
        self._observers[observer] = None

    def remove(self, observer: Callable[_Told, object]) -> None:
        """
        Have it called no more.
        """
        self._observers.pop(observer, None)

    def tell(self, *what: _Told.args, **more: _Told.kwargs) -> None:
        """
        Call them all.
        """
        for observer in list(self._observers):
            # One of them may have taken out another.
            if observer in self._observers:
                try:
                    observer(*what, **more)
                except BaseException:
                    # As a Deferred does with whatever its callbacks raise.
                    self._log.failure(
                        "An observer failed: {observer}", observer=observer
                    )
