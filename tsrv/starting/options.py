"""
The options of a module of a program, and the wrapper that is made with them.

A replacement for a module, in a test, gets the options of the original module.
Options for methods that the replacement lacks are dropped: a fake without
C{initialize()}, or a mock that makes one up, is ready at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import partial
from inspect import getattr_static
from types import CoroutineType, FunctionType, MethodType
from typing import Any, Final, TypedDict, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from ..asyncmodule import ISettlesCalls
from ..queuing.module import namedMethod, provides
from ..queuing.options import checkNames, checkSeconds
from ..wrapper import QueuingWrapper

__all__ = ["CommonOptions", "ModuleOptions", "WrapperOptions", "wrapModule"]

_FACTORY_TYPES: Final = (type, FunctionType, MethodType, partial)

# Options that are methods of the module, or their names.
_METHOD_OPTIONS: Final = ("initialize", "close", "whenLost", "whenIdle", "ping")


class CommonOptions(TypedDict, total=False):
    """
    The options that are the same for a module of a program and for a wrapper alone.
    """

    limit: int
    retryPolicy: Callable[[int], float] | None
    fatal: type[BaseException] | Iterable[type[BaseException]]
    replay: Iterable[str]
    concurrency: int | None
    attemptTimeout: float | None
    closeTimeout: float | None
    initialize: Callable[[], object] | str | None
    close: Callable[[], object] | str | None
    whenLost: Callable[[], object] | str | None
    whenIdle: Callable[[], object] | str | None
    ping: Callable[[], object] | str | None
    pingInterval: float
    settles: bool | None
    alwaysDeferred: bool


class WrapperOptions(CommonOptions, total=False):
    """
    The options of L{QueuingWrapper} for a module of a program.
    """

    queueTimeout: float | None


class ModuleOptions(WrapperOptions, total=False):
    """
    All options of a module of a program; see L{tsrv.Startup.add}.
    """

    needs: Iterable[str]
    after: Iterable[str]
    restartWith: Iterable[str]
    required: bool
    lazy: bool
    timeout: float | None


def wrapModule(
    reactor: IReactorTime,
    name: str,
    module: object,
    options: WrapperOptions,
    *,
    isReplacement: bool,
    isRestarted: bool,
    **moreOptions: Any,
) -> QueuingWrapper[Any]:
    """
    Make the wrapper of a module.

    @param module: The module, or its factory.
    @param isReplacement: Whether the module replaces the one with these options.
    @param isRestarted: Whether it restarts with another module, and so can be lost.
    @param moreOptions: Options that the program itself gives to the wrapper.
    @raise TypeError: The name or an option has the wrong type.
    @raise ValueError: The name or an option has an invalid value.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a module must be a string, not {name!r}")
    if not (name and name == name.strip() and name.isprintable()):
        raise ValueError(
            "the name of a module must be printable, without spaces around it, "
            f"not {name!r}"
        )
    if isinstance(module, _FACTORY_TYPES):
        module = cast(Callable[[], object], module)()
    wrapperOptions: dict[str, Any] = {**options}
    if "queueTimeout" in wrapperOptions:
        timeout = wrapperOptions["timeout"] = wrapperOptions.pop("queueTimeout")
        # The wrapper's own error would name "timeout", which is another option here.
        checkSeconds("queueTimeout", timeout)
    if isReplacement:
        _adaptToReplacement(module, wrapperOptions)
    if isRestarted and not provides(module, ISettlesCalls):
        # A restart ends the calls in progress, so they are tracked.
        wrapperOptions.setdefault("settles", False)
    return QueuingWrapper(module, reactor, name=name, **wrapperOptions, **moreOptions)


# Replacements.


def _adaptToReplacement(module: object, options: dict[str, Any]) -> None:
    for option in _METHOD_OPTIONS:
        given = options.get(option)
        # A callable, unlike a name, belongs to the replaced module.
        if callable(given) or (given is not None and not _findCallable(module, given)):
            del options[option]
    if "replay" in options:
        names = checkNames("replay", options["replay"])
        options["replay"] = [each for each in names if _findCallable(module, each)]
    if options.get("initialize") is None:
        initialize = _findOwn(module, "initialize")
        options["initialize"] = initialize or (lambda: None)
    named = namedMethod(module, options.get("whenLost"))
    whenLost = named or _findOwn(module, "whenLost")
    if whenLost is not None and _isMock(whenLost):
        options["whenLost"] = partial(_watchMock, whenLost)


def _findCallable(module: object, name: str) -> Callable[[], object] | None:
    try:
        method = getattr(module, name)
    except Exception:
        return None
    return method if callable(method) else None


def _findOwn(module: object, name: str) -> Callable[[], object] | None:
    """
    Find a method that an object really has. Methods that a mock makes up count, too:
    a test may check whether they were called.
    """
    if _isMock(module) or getattr_static(module, name, None) is not None:
        return _findCallable(module, name)
    return None


def _isMock(value: object) -> bool:
    mock = sys.modules.get("unittest.mock")
    return mock is not None and isinstance(value, mock.NonCallableMock)


def _watchMock(whenLost: Callable[[], object]) -> Deferred[Any]:
    """
    Call C{whenLost()} of a mock. Unless it returns a Deferred, the mock is never lost.
    """
    result = whenLost()
    if type(result) is CoroutineType:
        result.close()
    return result if isinstance(result, Deferred) else Deferred()
