"""
What can be said of a callable that somebody else has made.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import iscoroutinefunction, signature, unwrap
from typing import Any, TypeVar

__all__ = ["introduce", "isAsync"]

_Callable = TypeVar("_Callable", bound=Callable[..., Any])

_NAMES = ("__module__", "__name__", "__qualname__", "__doc__")


def introduce(stand: _Callable, own: Callable[..., Any]) -> _Callable:
    """
    Give a function the name, the documentation and the signature of what it
    stands for. Unlike L{functools.update_wrapper} it takes nothing else along
    and keeps nothing alive, and takes no harm from a callable that answers
    anything to any question.

    @return: C{stand}
    """
    for name in _NAMES:
        try:
            value = getattr(own, name, None)
        except Exception:
            value = None
        if isinstance(value, str):
            setattr(stand, name, value)
    try:
        setattr(stand, "__signature__", signature(own))  # noqa: B010
    except Exception:
        # Built-in functions have none, and others cannot tell.
        return stand
    return stand


def isAsync(own: Callable[..., Any]) -> bool:
    """
    @return: Whether a callable is C{async def}, if only below decorators that
        say so, or as the C{__call__} of an object.
    """
    try:
        inner = unwrap(own)
        return iscoroutinefunction(inner) or iscoroutinefunction(type(inner).__call__)
    except Exception:
        return False
