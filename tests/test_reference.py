"""
The API reference has every public name, and every name in it has a docstring.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
from zope.interface.interface import InterfaceClass

from tsrv import QueuingWrapper
from tsrv.starting.options import WrapperOptions

from .processes import ROOT

PUBLIC_MODULES = [
    "tsrv",
    "tsrv.aio",
    "tsrv.asyncmodule",
    "tsrv.clients",
    "tsrv.databases",
    "tsrv.errors",
    "tsrv.failures",
    "tsrv.server",
    "tsrv.sessions",
    "tsrv.sessions.klein",
    "tsrv.sessions.redis",
    "tsrv.settings",
    "tsrv.startup",
    "tsrv.testing",
    "tsrv.wrapper",
]

DIRECTIVE = re.compile(
    r"^\.\. (auto\w+|currentmodule):: ([\w.]+)\n((?:   :[\w-]+:.*\n)*)", re.M
)


def named(options: str, option: str) -> list[str]:
    """
    @return: The names that an option of a directive lists.
    """
    found = re.search(rf":{option}: *(.*)", options)
    return [name.strip() for name in found[1].split(",")] if found and found[1] else []


def documented() -> Iterator[tuple[str, Any]]:
    """
    @return: The path and the object of each entry of the API reference.
    """
    for page in sorted((ROOT / "docs" / "reference" / "api").glob("*.md")):
        current = "tsrv"
        for kind, path, options in DIRECTIVE.findall(page.read_text()):
            if kind == "currentmodule":
                current = path
            elif kind == "automodule":
                if ":members:" not in options:
                    continue
                module = import_module(path)
                names = named(options, "members") or module.__all__
                for name in sorted(set(names) - set(named(options, "exclude-members"))):
                    if not isinstance(getattr(module, name), InterfaceClass):
                        yield f"{path}.{name}", getattr(module, name)
            else:
                full = path if "." in path else f"{current}.{path}"
                home, _, name = full.rpartition(".")
                yield full, getattr(import_module(home), name)


@pytest.mark.parametrize("module", PUBLIC_MODULES)
def test_every_public_name_has_an_entry(module: str) -> None:
    """
    A name that a public module exports has an entry, under this or another public path.
    """
    entries = [found for _, found in documented()]
    exported = import_module(module)
    missing = [
        name
        for name in exported.__all__
        if not any(found is getattr(exported, name) for found in entries)
    ]
    assert missing == []


def test_an_entry_stands_once() -> None:
    """
    No name has two entries.
    """
    paths = [path for path, _ in documented()]
    assert len(paths) == len(set(paths)) > 100


def test_every_entry_has_a_docstring() -> None:
    """
    Classes, their public methods, functions and interfaces have docstrings.
    """
    bare = []
    for path, found in documented():
        if inspect.isclass(found) or isinstance(found, InterfaceClass):
            own = (
                found.__dict__
                if inspect.isclass(found)
                else dict(found.namesAndDescriptions())
            )
            members = {
                f"{path}.{name}": member
                for name, member in own.items()
                if not name.startswith("_")
                and (callable(member) or isinstance(member, property))
            }
        elif inspect.isroutine(found):
            members = {}
        else:
            continue
        for name, member in {path: found, **members}.items():
            if not inspect.getdoc(member):
                bare.append(name)
    assert bare == []


def functions(path: str, found: Any) -> Iterator[tuple[str, Any, str]]:
    """
    @return: The path, the function and the docstrings of an entry and of those of its
        methods that no other library describes.
    """
    if inspect.isfunction(found):
        yield path, found, inspect.getdoc(found) or ""
    elif inspect.isclass(found) and not issubclass(found, BaseException):
        for name, member in found.__dict__.items():
            known = [base for base in found.__mro__[1:] if name in base.__dict__]
            if not inspect.isfunction(member):
                continue
            if name == "__init__":
                docstrings = f"{inspect.getdoc(found)}\n{inspect.getdoc(member)}"
                yield f"{path}.{name}", member, docstrings
            elif not name.startswith(("_", "render")) and not known:
                yield f"{path}.{name}", member, inspect.getdoc(member) or ""


def test_every_parameter_is_described() -> None:
    """
    The docstrings of functions, methods and classes describe each parameter.
    """
    missing = [
        f"{name}({parameter})"
        for path, entry in documented()
        if not path.startswith("tsrv.queuing.")
        for name, function, docstring in functions(path, entry)
        for parameter in inspect.signature(function).parameters
        if parameter != "self" and not parameter.startswith("_")
        if not re.search(rf"@(param|ivar) {parameter}:", docstring)
    ]
    assert missing == []


def test_a_module_of_a_program_takes_the_options_of_the_wrapper() -> None:
    """
    Every option of the wrapper is one of C{Startup.add} too; C{timeout} has another
    name there, and C{name}, C{lazy} and C{attemptSlots} are C{Startup}'s own.
    """
    wrapped = {
        name
        for name, each in inspect.signature(QueuingWrapper).parameters.items()
        if each.kind is each.KEYWORD_ONLY
    }
    expected = wrapped - {"name", "timeout", "attemptSlots", "lazy"} | {"queueTimeout"}
    assert set(WrapperOptions.__annotations__) == expected
