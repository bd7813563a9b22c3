"""
The proxy: callers hold it in place of the module.

A proxy changes its class. While calls are queued it is a L{WaitingProxy}. Its
C{__getattr__} looks up the module's methods on first use and returns callables
that queue. As soon as the module is ready, the proxy gets a class without
C{__getattr__}, made for this module, and the module's own bound methods as
attributes: Python finds them like any other attributes, so that a call costs what
a direct call costs. After a loss the proxy is a L{WaitingProxy} again.

A proxy without C{__getattr__} has only the names that tsrv gives to it: all names
that the module, its class and its annotations have when the module becomes ready.
A module may make up attributes, with a C{__getattr__} or C{__getattribute__} of its
own: its proxy keeps a C{__getattr__} even while the module is ready.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, NoReturn, SupportsIndex

from ..asyncmodule import NotInitialized
from .module import ModuleMethod, findMethod, hasDynamicAttributes, publicMethods

__all__ = ["ProxySwitch"]


class ProxySwitch:
    """
    Switches one proxy between its two classes.

    @ivar proxy: The proxy.
    @ivar module: The module.
    @ivar hidden: Public names that the proxy does not have.
    @ivar describe: Describes the state of the module in a few words.
    @ivar whileWaiting: Makes the proxy's callable for a method while the module is
        not ready.
    @ivar whileReady: Makes the callable while the module is ready.
    """

    def __init__(
        self,
        module: object,
        *,
        hidden: frozenset[str],
        describe: Callable[[], str],
        whileWaiting: Callable[[str, ModuleMethod], ModuleMethod],
        whileReady: Callable[[str, ModuleMethod], ModuleMethod],
    ) -> None:
        """
        @param hidden: Public names that the proxy does not have.
        @param whileWaiting: Takes the name of a public method and the module's own
            method; returns the proxy's callable while the module is not ready.
        @param whileReady: Takes the same; returns the callable while the module is
            ready.
        """
        self.proxy = WaitingProxy(self)
        self.module = module
        self.describe = describe
        self.hidden = hidden
        self.whileWaiting = whileWaiting
        self.whileReady = whileReady
        self._added: set[str] = set()

    def names(self) -> set[str]:
        """
        Return the public names that the module has now.
        """
        return {name for name, _ in publicMethods(self.module)} - self.hidden

    def mayHave(self, name: str) -> bool:
        """
        Return whether the module has this name, or may make it up.
        """
        return name in self.names() or hasDynamicAttributes(type(self.module))

    def check(self, name: str) -> None:
        """
        @raise AttributeError: The proxy does not have this name.
        """
        if name.startswith("_"):
            raise AttributeError(f"{name!r} is private, and so not proxied")
        if name in self.hidden:
            raise AttributeError(f"{name!r} belongs to the wrapper, and is not proxied")

    def addMethod(self, name: str, method: ModuleMethod) -> None:
        """
        Give the proxy a method until its next switch.
        """
        # Python finds an attribute of the object itself without __getattr__.
        object.__setattr__(self.proxy, name, method)
        self._added.add(name)

    def prepare(self) -> Callable[[], None]:
        """
        Look up all names that the proxy has while the module is ready. This runs
        foreign code, which may change the wrapper.

        @return: A callable that gives the names to the proxy. It runs no foreign code.
        """
        attributes: dict[str, object] = {}
        methods: dict[str, ModuleMethod] = {}
        if hasDynamicAttributes(type(self.module)):
            attributes["__getattr__"] = _getReadyAttribute
        for name, method in publicMethods(self.module):
            if name in self.hidden:
                continue
            if method is None:
                attributes[name] = _forwarded(name)
            else:
                methods[name] = self.whileReady(name, method)
        readyClass = type("ReadyProxy", (_Proxy,), attributes)

        def toReady() -> None:
            self._clear()
            for name, method in methods.items():
                self.addMethod(name, method)
            _setClass(self.proxy, readyClass)

        return toReady

    def toWaiting(self) -> None:
        """
        The module is not ready: let the proxy queue calls.
        """
        self._clear()
        _setClass(self.proxy, WaitingProxy)

    def _clear(self) -> None:
        for name in self._added:
            object.__delattr__(self.proxy, name)
        self._added.clear()


class _Proxy:
    _switch: ProxySwitch

    # isinstance() and zope.interface's providedBy() read this.
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return self._switch.module.__class__

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name!r} cannot be set on a proxy: set it on the module")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{name!r} cannot be deleted from a proxy")

    def __dir__(self) -> Iterable[str]:
        return self._switch.names()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        # A copy would not follow its module.
        raise TypeError("a proxy can be neither copied nor pickled")

    def __repr__(self) -> str:
        switch = self._switch
        return f"<proxy of {switch.module.__class__.__name__}: {switch.describe()}>"


class _NotReadable(NotInitialized, AttributeError):
    # hasattr() and getattr() with a default expect an AttributeError.
    pass


class WaitingProxy(_Proxy):
    """
    The class of a proxy whose module is not ready.
    """

    def __init__(self, switch: ProxySwitch) -> None:
        object.__setattr__(self, "_switch", switch)

    def __getattr__(self, name: str) -> Any:
        switch = self._switch
        switch.check(name)
        try:
            method = findMethod(switch.module, name)
        except AttributeError as error:
            raise AttributeError(f"{error} (it is {switch.describe()})") from None
        if method is None:
            raise _NotReadable(
                f"{switch.module.__class__.__name__}.{name} is not a method: it can be "
                f"read only while the module is ready, and it is {switch.describe()}"
            )
        waiting = switch.whileWaiting(name, method)
        # Looking up the method may have made the module ready.
        if type(self) is WaitingProxy:
            switch.addMethod(name, waiting)
        return waiting

    def __dir__(self) -> Iterable[str]:
        switch = self._switch
        methods = {name for name, method in publicMethods(switch.module) if method}
        return methods - switch.hidden


def _getReadyAttribute(proxy: _Proxy, name: str) -> Any:
    """
    The C{__getattr__} in front of a module that makes up attributes.
    """
    switch, kind = proxy._switch, type(proxy)
    switch.check(name)
    method = findMethod(switch.module, name)
    if method is None:
        return getattr(switch.module, name)
    ready = switch.whileReady(name, method)
    if type(proxy) is not kind:
        # The module has been lost since Python called this function.
        return getattr(proxy, name)
    switch.addMethod(name, ready)
    return ready


def _forwarded(name: str) -> property:
    return property(lambda proxy: getattr(proxy._switch.module, name))


# An assignment to proxy.__class__ would use the property above.
_setClass: Final[Callable[[object, type], None]] = object.__dict__["__class__"].__set__
