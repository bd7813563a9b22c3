"""
What callers hold in place of a module.

A proxy has two faces. While calls have to wait it is a L{WaitingProxy}, which
looks for the module's methods when they are asked for, and gives out callables
that queue. When the module is ready the proxy gets a class without
C{__getattr__}, made for that module, and the module's own bound methods as its
attributes: Python looks these up like any others, so that a call costs what a
direct call costs. A loss gives it its first face back.

A class without C{__getattr__} has just the names that it is given. So it is
given every name that the module, its class and its annotations have at the
moment when the module becomes ready. A module that makes up attributes itself,
by a C{__getattr__} or C{__getattribute__} of its own, keeps a C{__getattr__}
in front of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, NoReturn, SupportsIndex

from ..asyncmodule import NotInitialized
from .module import (
    ModuleMethod,
    announced,
    findMethod,
    makesUp,
)

__all__ = ["Faces"]


class Faces:
    """
    The two faces of one proxy, and the turning from one to the other.

    @ivar proxy: The proxy.
    @ivar module: The module.
    @ivar describe: Says in a few words what state it is in.
    """

    def __init__(
        self,
        module: object,
        *,
        withheld: frozenset[str],
        describe: Callable[[], str],
        methodWaiting: Callable[[str, ModuleMethod], ModuleMethod],
        methodReady: Callable[[str, ModuleMethod], ModuleMethod],
    ) -> None:
        """
        @param module: The module itself.
        @param withheld: Public names that are not proxied.
        @param describe: Says in a few words what state the module is in.
        @param methodWaiting: Takes the name of a public method and the
            module's own; answers what is called in its place while the module
            is not ready.
        @param methodReady: The same, while it is.
        """
        self.proxy = WaitingProxy(self)
        self.module = module
        self.describe = describe
        self._withheld = withheld
        self._methodWaiting = methodWaiting
        self._methodReady = methodReady
        self._shown: set[str] = set()

    def names(self) -> set[str]:
        """
        @return: The names that the module has now, and that are proxied.
        """
        return {name for name, _ in announced(self.module)} - self._withheld

    def announces(self, name: str) -> bool:
        """
        @return: Whether the module has this name, or makes up its own.
        """
        return name in self.names() or makesUp(type(self.module))

    def check(self, name: str) -> None:
        """
        @raise AttributeError: This name is not proxied.
        """
        if name.startswith("_"):
            raise AttributeError(f"{name!r} is private, and so not proxied")
        if name in self._withheld:
            raise AttributeError(f"{name!r} belongs to the wrapper, and is not proxied")

    def showWaitingMethod(self, name: str, method: ModuleMethod) -> ModuleMethod:
        """
        Give the proxy a method, that of a module that is not ready.
        """
        return self._show(name, self._methodWaiting(name, method))

    def showReadyMethod(self, name: str, method: ModuleMethod) -> ModuleMethod:
        """
        Give the proxy a method, that of a module that is ready.
        """
        return self._show(name, self._methodReady(name, method))

    def _show(self, name: str, method: ModuleMethod) -> ModuleMethod:
        # An attribute of the object is found without __getattr__.
        object.__setattr__(self.proxy, name, method)
        self._shown.add(name)
        return method

    def showReady(self) -> None:
        """
        Turn the face of a module that is ready: its own methods.
        """
        self._forget()
        face: dict[str, object] = {}
        if makesUp(type(self.module)):
            face["__getattr__"] = _getReady
        for name, method in announced(self.module):
            if name in self._withheld:
                continue
            if method is None:
                face[name] = _forwarded(name)
            else:
                self.showReadyMethod(name, method)
        _setClass(self.proxy, type("ReadyProxy", (_ReadyProxy,), face))

    def showWaiting(self) -> None:
        """
        Turn the face of a module that is not ready.
        """
        self._forget()
        _setClass(self.proxy, WaitingProxy)

    def _forget(self) -> None:
        for name in self._shown:
            object.__delattr__(self.proxy, name)
        self._shown.clear()


class _AnyProxy:
    """
    What both faces have in common.
    """

    _faces: Faces

    # isinstance() and zope.interface's providedBy() ask for it.
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._faces.module)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name!r} cannot be set here, but on the module itself")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{name!r} cannot be deleted here, but on the module")

    def __dir__(self) -> Iterable[str]:
        return self._faces.names()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("a proxy can be neither copied nor pickled")

    def __repr__(self) -> str:
        faces = self._faces
        return f"<proxy of {type(faces.module).__name__}: {faces.describe()}>"


class _NotReadable(NotInitialized, AttributeError):
    """
    A plain attribute was read before the module was ready. C{hasattr()} and
    the like expect any trouble with an attribute to be an C{AttributeError}.
    """


class WaitingProxy(_AnyProxy):
    """
    The face of a module that is not ready.
    """

    def __init__(self, faces: Faces) -> None:
        object.__setattr__(self, "_faces", faces)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{name!r} is private, and so not proxied")
        faces = self._faces
        faces.check(name)
        try:
            method = findMethod(faces.module, name)
        except AttributeError as error:
            raise AttributeError(f"{error} (it is {faces.describe()})") from None
        if method is None:
            raise _NotReadable(
                f"{type(faces.module).__name__}.{name} is not a method: it can be "
                f"read only while the module is ready, and it is {faces.describe()}"
            )
        return faces.showWaitingMethod(name, method)

    def __dir__(self) -> Iterable[str]:
        faces = self._faces
        methods = {name for name, method in announced(faces.module) if method}
        return methods & faces.names()


class _ReadyProxy(_AnyProxy):
    """
    The face of a module that is ready.
    """


def _getReady(proxy: _ReadyProxy, name: str) -> Any:
    """
    The C{__getattr__} in front of a module that has one itself.
    """
    faces = proxy._faces
    faces.check(name)
    module = faces.module
    method = findMethod(module, name)
    if method is None:
        return getattr(module, name)
    return faces.showReadyMethod(name, method)


def _forwarded(name: str) -> property:
    """
    @return: A property that reads the module's attribute.
    """

    def read(proxy: _ReadyProxy) -> Any:
        return getattr(proxy._faces.module, name)

    return property(read)


_setClass: Final[Callable[[object, type], None]] = object.__dict__["__class__"].__set__
