"""
Docstrings in epytext, the markup of Twisted's projects, for C{sphinx.ext.autodoc}.

Fields and inline markup become those of reStructuredText; blocks and lists are the same
in both. The target of each C{L{...}} must exist: in the class of the docstring, in its
module, or as a full path. Otherwise Sphinx warns.
"""

from __future__ import annotations

import builtins
import inspect
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any, Final

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.nodes import make_refnode
from sphinx.util.typing import ExtensionMetadata
from zope.interface.interface import InterfaceClass

_log = logging.getLogger(__name__)

_FIELD: Final = re.compile(r"^( *)@(param|return|raise|ivar|cvar)\b ?([^:]*):")
_INLINE: Final = re.compile(r"([BCILU])\{((?:[^{}]|\{[^{}]*\})*)\}", re.S)
_HEADING: Final = re.compile(r"^(.+)\n(?:=+|-+|~+)$", re.M)
_TITLED: Final = re.compile(r"(.*?)\s*<([\w.]+)>", re.S)
INTERFACE: Final = re.compile(r"<InterfaceClass ([\w.]+)>")
_MISSING: Final = object()
_TWISTED: Final = "https://docs.twisted.org/en/stable/api/"


def convert(
    app: Sphinx, what: str, name: str, described: Any, options: Any, lines: list[str]
) -> None:
    """
    Replace the lines of an epytext docstring with reStructuredText.
    """

    def path(target: str) -> str:
        found = resolve(target, name, described)
        if found is None:
            _log.warning("%s: %r in its docstring names nothing", name, target)
        return found or target

    def inline(found: re.Match[str]) -> str:
        kind, content = found[1], " ".join(found[2].split())
        if kind == "L":
            titled = _TITLED.fullmatch(content)
            title, target = (titled[1], titled[2]) if titled else (content, content)
            return f":py:obj:`{title} <{path(target)}>`"
        mark = {"B": "**", "C": "``", "I": "*", "U": ""}[kind]
        return f"{mark}{content}{mark}"

    def field(found: re.Match[str]) -> str:
        indentation, kind, argument = found.groups()
        separated = "" if fields else "\n"
        fields.append(kind)
        if kind == "raise":
            argument = path(argument)
        return f"{separated}{indentation}:{kind} {argument}".rstrip() + ":"

    aliases = _aliases(app.env)
    defined = _path(described)
    if defined and defined != name:
        aliases[defined] = name
    fields: list[str] = []
    text = _HEADING.sub(r"**\1**\n", _INLINE.sub(inline, "\n".join(lines)))
    lines[:] = "\n".join(_FIELD.sub(field, line) for line in text.split("\n")).split(
        "\n"
    )
    lines.append("")


def _aliases(environment: Any) -> dict[str, str]:
    """
    @return: The path under which each object is documented, by its path in the module
        that defines it.
    """
    if not hasattr(environment, "epytextAliases"):
        environment.epytextAliases = {}
    return environment.epytextAliases  # type: ignore[no-any-return]


def resolve(target: str, name: str, described: Any) -> str | None:
    """
    @param target: A name as in C{L{...}}: of the class, of the module, or a full path.
    @param name: The path under which an object is documented.
    @param described: This object.
    @return: The path of the target in the module that defines it.
    """
    for scope in _scopes(name, described):
        found = _find(scope, target.split("."))
        if found is not None:
            return found
    module, _, rest = target, "", ""
    while module:
        try:
            imported = import_module(module)
        except ImportError:
            module, _, last = module.rpartition(".")
            rest = f"{last}.{rest}" if rest else last
        else:
            return _find(imported, rest.split(".")) if rest else module
    return None


def _scopes(name: str, described: Any) -> Iterator[Any]:
    """
    @return: The places in which the docstring of an object looks up names.
    """
    parts = name.split(".")
    chain: list[Any] = [sys.modules[parts[0]]]
    for part in parts[1:]:
        if not hasattr(chain[-1], part):
            break
        chain.append(getattr(chain[-1], part))
    for scope in reversed([*chain, getattr(described, "fget", described)]):
        yield scope
        for defined in inspect.getmro(scope) if inspect.isclass(scope) else [scope]:
            if getattr(defined, "__module__", None) in sys.modules:
                yield sys.modules[defined.__module__]
    yield builtins


def _find(scope: Any, parts: list[str]) -> str | None:
    """
    @return: The path of an object in the module that defines it.
    """
    path = _path(scope)
    for part in parts:
        if isinstance(scope, InterfaceClass):
            scope = scope.get(part, _MISSING)
        elif part in getattr(scope, "__annotations__", {}):
            scope = getattr(scope, part, None)
        else:
            scope = getattr(scope, part, _MISSING)
        if scope is _MISSING:
            return None
        path = _path(scope) or f"{path}.{part}"
    return path


def _path(found: Any) -> str | None:
    if inspect.ismodule(found):
        return found.__name__
    if isinstance(found, InterfaceClass):
        return f"{found.__module__}.{found.__name__}"
    if hasattr(found, "__qualname__"):
        return f"{found.__module__}.{found.__qualname__}"
    return None


def link(
    app: Sphinx,
    environment: BuildEnvironment,
    node: pending_xref,
    content: nodes.TextElement,
) -> nodes.TextElement | None:
    """
    Link a name that autodoc does not know by this path: a member of a class that a
    package exports, or a name of Twisted. Other names that exist become plain text:
    those of other libraries, and of the inner parts of tsrv.
    """
    if node.get("refdomain") != "py":
        return None
    target = INTERFACE.sub(r"\1", node["reftarget"])
    if target.startswith("twisted."):
        return nodes.reference("", "", content, refuri=f"{_TWISTED}{target}.html")
    known = environment.domains.python_domain.objects
    owner, _, last = target.rpartition(".")
    path = _aliases(environment).get(target, target)
    if path not in known and owner in known:
        path = f"{known[owner].node_id}.{last}"
    if path in known:
        page, anchor = known[path].docname, known[path].node_id
        return make_refnode(app.builder, node["refdoc"], page, anchor, content, path)
    exists = not target.startswith("tsrv.") or resolve(target, "tsrv", None)
    return content if exists else None


def setup(app: Sphinx) -> ExtensionMetadata:
    """
    Called by Sphinx.
    """
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", convert)
    app.connect("missing-reference", link)
    return {"parallel_read_safe": False}
