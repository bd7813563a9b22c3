"""
What can be found out about a module, whatever it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property
from inspect import get_annotations, getattr_static
from types import MemberDescriptorType
from typing import Any, Final, NamedTuple

from ..asyncmodule import (
    IHasNote,
    IPredictable,
)

__all__ = [
    "LifecycleMethod",
    "ModuleMethod",
    "announced",
    "findMethod",
    "lifecycleMethod",
    "makesUp",
    "noteOf",
    "secondsLeft",
]

ModuleMethod = Callable[..., Any]

_LAZY: Final = (property, cached_property)
"""
What would be evaluated if it were read.
"""


def makesUp(moduleType: type) -> bool:
    """
    @return: Whether a module may have attributes that nothing announces.
    """
    plain: object = object.__getattribute__
    return (
        hasattr(moduleType, "__getattr__") or moduleType.__getattribute__ is not plain
    )


def findMethod(module: object, name: str) -> ModuleMethod | None:
    """
    Find a method without evaluating a property, which might rely on what has
    not been initialised yet.

    @return: The method, or L{None} if the name is one of a plain attribute.
    @raise AttributeError: The module has no such attribute.
    """
    static = getattr_static(type(module), name, None)
    if isinstance(static, _LAZY):
        return None
    try:
        value = getattr(module, name)
    except AttributeError:
        if isinstance(static, MemberDescriptorType) or name in _annotated(type(module)):
            return None
        raise
    # A class, say that of an error, is not what callers mean by a method.
    return value if callable(value) and not isinstance(value, type) else None


def announced(module: object) -> Iterator[tuple[str, ModuleMethod | None]]:
    """
    @return: The public names that a module has, and its methods; L{None} where
        an attribute is none, or cannot be read now.
    """
    try:
        listed = dir(module)
    except Exception:
        listed = dir(type(module))
    for name in sorted({*listed, *_annotated(type(module))}, key=str):
        if isinstance(name, str) and not name.startswith("_"):
            try:
                yield name, findMethod(module, name)
            except Exception:
                # Whoever reads the attribute gets this error.
                yield name, None


def _annotated(moduleType: type) -> set[str]:
    """
    @return: The names of the attributes that a class announces.
    """
    names: set[str] = set()
    for each in moduleType.__mro__:
        # From Python 3.14 on they are evaluated, and may rely on what only a
        # type checker imports.
        with suppress(Exception):
            names.update(get_annotations(each))
    return names


def secondsLeft(module: object) -> float | None:
    """
    @return: The seconds that the initialisation in progress will still take,
        where the module knows.
    """
    if not IPredictable.providedBy(module):
        return None
    try:
        seconds = IPredictable(module).secondsUntilInitialized()
        return None if seconds is None else max(0.0, float(seconds))
    except Exception:
        # It is only a hint, and an error must not get lost over it.
        return None


_LONGEST_NOTE: Final = 200
"""
How many characters of a note are shown.
"""


def noteOf(module: object) -> str | None:
    """
    @return: What there is to know of a module that is ready, where it says so;
        in one line.
    """
    if not IHasNote.providedBy(module):
        return None
    try:
        note = IHasNote(module).note()
        return None if note is None else " ".join(note.split())[:_LONGEST_NOTE]
    except Exception:
        # A report must not get lost over it.
        return None


class LifecycleMethod(NamedTuple):
    """
    What initialises, closes or watches the module.

    @ivar call: What to call, if there is anything.
    @ivar names: The names of the module's methods that are the same.
    """

    call: Callable[[], object] | None
    names: frozenset[str]


def lifecycleMethod(
    module: object, name: str, given: Callable[[], object] | None
) -> LifecycleMethod:
    """
    Find what initialises, closes or watches a module.

    @param name: The method that does, unless another was given.
    @param given: What was given.
    """
    if given is not None:
        same = frozenset(each for each, method in announced(module) if method == given)
        return LifecycleMethod(given, same)
    # What the module really has, and does not just make up for any name.
    if getattr_static(module, name, None) is not None:
        own = getattr(module, name)
        if callable(own):
            return LifecycleMethod(own, frozenset({name}))
    return LifecycleMethod(None, frozenset())
