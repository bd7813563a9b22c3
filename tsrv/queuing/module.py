"""
Looking up the methods of a module, which may be any object.

A module is foreign code: its attributes, properties and descriptors may do
anything when they are read. The functions here do not fail because of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property
from inspect import (
    get_annotations,
    getattr_static,
    iscoroutinefunction,
    signature,
    unwrap,
)
from math import isfinite
from types import MemberDescriptorType
from typing import Any, Final, TypeVar

from zope.interface.interface import InterfaceClass

from ..asyncmodule import IHasNote, IPredictable
from .options import checkArguments

__all__ = [
    "ModuleMethod",
    "copySignature",
    "findMethod",
    "hasDynamicAttributes",
    "isAsync",
    "lifecycleMethod",
    "namedMethod",
    "noteOf",
    "provides",
    "publicMethods",
    "secondsLeft",
]

ModuleMethod = Callable[..., Any]

# Maximum length of a note in the report, in characters.
MAX_NOTE_LENGTH: Final = 200

_Callable = TypeVar("_Callable", bound=Callable[..., Any])


def hasDynamicAttributes(moduleType: type) -> bool:
    """
    @return: Whether a module may have attributes that C{dir()} does not list.
    """
    default: object = object.__getattribute__
    return (
        hasattr(moduleType, "__getattr__") or moduleType.__getattribute__ is not default
    )


def findMethod(module: object, name: str) -> ModuleMethod | None:
    """
    Find a method without evaluating a property, which might use something that
    has not been initialised yet.

    @return: The method, or L{None} if the attribute is not a method.
    @raise AttributeError: The module has no such attribute.
    """
    static = getattr_static(type(module), name, None)
    if isinstance(static, (property, cached_property)):
        return None
    try:
        value = getattr(module, name)
    except AttributeError:
        if isinstance(static, MemberDescriptorType) or name in _annotated(type(module)):
            return None
        raise
    # A class, such as an error, is callable, but not a method.
    return value if callable(value) and not isinstance(value, type) else None


def publicMethods(module: object) -> Iterator[tuple[str, ModuleMethod | None]]:
    """
    @return: The public names of a module, each with its method; with L{None} if
        the attribute is not a method, or cannot be read now.
    """
    try:
        listed = dir(module)
    except BaseException:
        listed = dir(type(module))
    for name in sorted({*listed, *_annotated(type(module))}, key=str):
        if isinstance(name, str) and not name.startswith("_"):
            try:
                yield name, findMethod(module, name)
            except BaseException:
                # Reading the attribute raises this error again.
                yield name, None


def _annotated(moduleType: type) -> set[str]:
    names: set[str] = set()
    for each in moduleType.__mro__:
        # Since Python 3.14 annotations are evaluated here, and may use names that
        # only a type checker imports.
        with suppress(BaseException):
            names.update(get_annotations(each))
    return names


def isAsync(method: ModuleMethod) -> bool:
    """
    @return: Whether a method is C{async def}; also below decorators that use
        L{functools.wraps}, or as the C{__call__} of an object.
    """
    try:
        inner = unwrap(method)
        return iscoroutinefunction(inner) or iscoroutinefunction(type(inner).__call__)
    except BaseException:
        return False


def copySignature(function: _Callable, method: ModuleMethod) -> _Callable:
    """
    Give a function the name, the documentation and the signature of a method. Unlike
    L{functools.update_wrapper} it copies nothing else and keeps nothing alive.

    @return: C{function}
    """
    for name in ("__module__", "__name__", "__qualname__", "__doc__"):
        with suppress(BaseException):
            value = getattr(method, name)
            if isinstance(value, str):
                setattr(function, name, value)
    with suppress(BaseException):
        # Built-in functions, for example, have no signature.
        vars(function)["__signature__"] = signature(method)
    return function


def provides(module: object, interface: InterfaceClass) -> bool:
    """
    @return: Whether a module provides an interface.
    """
    # The first check keeps the second from asking the module itself, which may have a
    # method for every name.
    return interface.implementedBy(module.__class__) or interface.providedBy(module)


def secondsLeft(module: object) -> float | None:
    """
    @return: The seconds that the initialisation in progress will still take, if
        the module can tell.
    """
    if not provides(module, IPredictable):
        return None
    try:
        seconds = IPredictable(module).secondsUntilInitialized()
        if seconds is None or not isfinite(seconds):
            return None
        return max(0.0, float(seconds))
    except BaseException:
        # This is only a hint: the error that contains it must still be reported.
        return None


def noteOf(module: object) -> str | None:
    """
    @return: The note of a module for the report, in one line, if it has one.
    """
    if not provides(module, IHasNote):
        return None
    try:
        note = IHasNote(module).note()
        return None if note is None else " ".join(note.split())[:MAX_NOTE_LENGTH]
    except BaseException:
        # A broken note must not break the report.
        return None


def namedMethod(module: object, given: Any) -> Any:
    """
    @return: An option; if it is a name, the method of the module with this name.
    @raise TypeError: The module has no such method.
    """
    if not isinstance(given, str):
        return given
    if not hasattr(module, given):
        raise TypeError(f"{module.__class__.__name__} has no {given}()")
    return getattr(module, given)


def lifecycleMethod(
    module: object, name: str, given: Callable[[], object] | str | None
) -> tuple[Callable[[], object] | None, frozenset[str]]:
    """
    Find the callable that initialises, closes or watches a module.

    @param name: The name of the module's own method.
    @param given: The callable to use instead, or its name, if there is one.
    @return: The callable, if there is one, and the names under which the module
        itself has it.
    @raise TypeError: The callable does not exist, or needs arguments.
    """
    chosen = namedMethod(module, given)
    if chosen is not None:
        checkArguments(name, chosen, 0)
        same = (each for each, method in publicMethods(module) if method == chosen)
        return chosen, frozenset(same)
    # A module that makes up attributes would make up this one, too.
    static = getattr_static(module, name, None)
    if static is None:
        return None, frozenset()
    own = None if isinstance(static, property) else getattr(module, name)
    if callable(own):
        checkArguments(f"{module.__class__.__name__}.{name}", own, 0)
        return own, frozenset({name})
    if name.startswith("when"):
        # whenLost and whenIdle are names for methods alone.
        raise TypeError(f"{module.__class__.__name__}.{name} is not a method")
    return None, frozenset()
