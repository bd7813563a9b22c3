"""
Checks of options that are numbers, callables or types of errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import isfinite

__all__ = ["checkCallable", "checkCount", "checkSeconds", "errorTypes"]


def checkCount(name: str, count: object, minimum: int) -> None:
    """
    @raise ValueError: The option is not an integer of at least C{minimum}.
    """
    if not (isinstance(count, int) and count >= minimum):
        raise ValueError(f"{name} must be at least {minimum}, not {count!r}")


def checkSeconds(name: str, seconds: float | None) -> None:
    """
    @raise ValueError: The option is neither a number of seconds nor L{None}.
    """
    if seconds is not None and not (isfinite(seconds) and seconds >= 0):
        raise ValueError(f"{name} must be seconds >= 0 or None, not {seconds!r}")


def checkCallable(name: str, given: Callable[..., object] | None) -> None:
    """
    @raise TypeError: The option is neither a callable nor L{None}.
    """
    if given is not None and not callable(given):
        raise TypeError(f"{name} must be callable, not {given!r}")


def errorTypes(
    name: str, given: type[BaseException] | Iterable[type[BaseException]]
) -> tuple[type[BaseException], ...]:
    """
    @return: The types of errors that the option names.
    @raise TypeError: The option names something else.
    """
    types = (given,) if isinstance(given, type) else tuple(given)
    for each in types:
        if not (isinstance(each, type) and issubclass(each, BaseException)):
            raise TypeError(f"{name} must be types of exceptions, not {each!r}")
    return types
