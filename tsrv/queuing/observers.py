"""
Callables that are notified of every change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, ParamSpec

from twisted.logger import Logger

__all__ = ["Observers"]

_log = Logger("tsrv.wrapper")

_News = ParamSpec("_News")


class Observers(Generic[_News]):
    """
    Callables that are called one after another. An error of an observer is
    logged, and does not affect the others.
    """

    def __init__(self) -> None:
        self._observers: dict[Callable[_News, object], None] = {}

    def add(self, observer: Callable[_News, object]) -> None:
        """
        Register an observer. Registering it twice has no effect.
        """
        self._observers[observer] = None

    def remove(self, observer: Callable[_News, object]) -> None:
        """
        Unregister an observer. An unknown one is ignored.
        """
        self._observers.pop(observer, None)

    def notify(self, *news: _News.args, **moreNews: _News.kwargs) -> None:
        """
        Call all observers with these arguments.
        """
        for observer in list(self._observers):
            # An observer may have removed another one.
            if observer in self._observers:
                try:
                    observer(*news, **moreNews)
                except BaseException:
                    # A Deferred catches all errors of its callbacks, too.
                    _log.failure("An observer failed: {observer}", observer=observer)
