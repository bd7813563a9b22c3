"""
Checks of options that are numbers, callables or types of errors.
"""

from __future__ import annotations

from collections.abc import Iterable
from inspect import signature
from math import isfinite
from types import FunctionType, MethodType

__all__ = [
    "checkArguments",
    "checkCount",
    "checkInterval",
    "checkNames",
    "checkSeconds",
    "checkType",
    "errorTypes",
]


def checkCount(name: str, count: object, minimum: int) -> None:
    """
    @raise ValueError: The option is not an integer of at least C{minimum}.
    """
    if not (isinstance(count, int) and count >= minimum):
        raise ValueError(f"{name} must be at least {minimum}, not {count!r}")


def checkSeconds(name: str, seconds: object) -> None:
    """
    @raise TypeError: The option is neither a number nor L{None}.
    @raise ValueError: It is negative or infinite.
    """
    if seconds is None:
        return
    if not isinstance(seconds, (int, float)):
        raise TypeError(f"{name} must be seconds or None, not {seconds!r}")
    if not (isfinite(seconds) and seconds >= 0):
        raise ValueError(f"{name} must be seconds >= 0 or None, not {seconds!r}")


def checkInterval(name: str, seconds: object) -> None:
    """
    @raise TypeError: The option is not a number.
    @raise ValueError: It is not positive, or infinite.
    """
    if not isinstance(seconds, (int, float)):
        raise TypeError(f"{name} must be seconds, not {seconds!r}")
    if not (isfinite(seconds) and seconds > 0):
        raise ValueError(f"{name} must be seconds > 0, not {seconds!r}")


def checkArguments(name: str, function: object, count: int) -> None:
    """
    @raise TypeError: This is not a callable with this number of arguments.
    """
    if not callable(function):
        raise TypeError(f"{name} must be callable, not {function!r}")
    if _isPlain(function, count):
        return
    try:
        parameters = signature(function)
    except Exception:
        # Built-in functions, for example, have no signature.
        return
    try:
        parameters.bind(*[None] * count)
    except TypeError as error:
        takes = f"{count} argument" if count == 1 else "no arguments"
        raise TypeError(f"{name} must take {takes}: {error}") from None


def _isPlain(function: object, count: int) -> bool:
    # Most callables are functions and methods with exactly these parameters. This check
    # takes a fraction of the time of signature().
    if type(function) is MethodType:
        function, count = function.__func__, count + 1
    if type(function) is not FunctionType:
        return False
    code = function.__code__
    return code.co_argcount == count and not code.co_kwonlyargcount


def checkNames(name: str, given: Iterable[str]) -> list[str]:
    """
    @return: The names, each of them once.
    @raise TypeError: The option is one string, or a member is not a string.
    """
    if isinstance(given, str):
        raise TypeError(f"{name} must be a collection of names, not one name")
    try:
        names = list(dict.fromkeys(given))
    except TypeError as error:
        raise TypeError(f"{name} must be names: {error}") from None
    for each in names:
        if not isinstance(each, str):
            raise TypeError(f"{name} must be names, not {each!r}")
    return names


def checkType(name: str, given: object, *types: type) -> None:
    """
    @raise TypeError: The option has none of these types.
    """
    if not isinstance(given, types):
        expected = " or ".join(each.__name__ for each in types)
        raise TypeError(f"{name} must be {expected}, not {given!r}")


def errorTypes(
    name: str, given: type[BaseException] | Iterable[type[BaseException]]
) -> tuple[type[BaseException], ...]:
    """
    @return: The types of errors that the option names.
    @raise TypeError: The option contains something else.
    """
    types = (given,) if isinstance(given, type) else tuple(given)
    for each in types:
        if not (isinstance(each, type) and issubclass(each, BaseException)):
            raise TypeError(f"{name} must be types of exceptions, not {each!r}")
    return types
