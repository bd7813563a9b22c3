"""
The directive C{autointerface}: an interface of C{zope.interface}, with its members.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata
from zope.interface.interface import InterfaceClass, Method

from .epytext import convert


class _AutoInterface(SphinxDirective):
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        path = self.arguments[0]
        module, _, name = path.rpartition(".")
        interface = getattr(import_module(module), name)
        lines = [
            f".. py:class:: {path}",
            f"   :canonical: {interface.__module__}.{interface.__name__}",
            "",
            *self._described(path, interface, interface.__doc__, 1),
        ]
        for member, described in interface.namesAndDescriptions():
            is_method = isinstance(described, Method)
            kind = "method" if is_method else "attribute"
            signature = described.getSignatureString() if is_method else ""
            lines += [
                f"   .. py:{kind}:: {member}{signature}",
                "",
                *self._described(f"{path}.{member}", interface, described.__doc__, 2),
            ]
        return self.parse_content_to_nodes_from(lines)

    def parse_content_to_nodes_from(self, lines: list[str]) -> list[nodes.Node]:
        """
        @return: The nodes of reStructuredText.
        """
        node = nodes.Element()
        self.state.nested_parse(StringList(lines, "interface"), 0, node)
        return list(node.children)

    def _described(
        self, path: str, interface: InterfaceClass, text: str | None, level: int
    ) -> list[str]:
        lines = inspect.cleandoc(text or "").split("\n")
        convert(self.env.app, "class", path, interface, None, lines)
        return [("   " * level + line).rstrip() for line in lines]


def _skip(app: Sphinx, what: str, name: str, found: Any, *_: Any) -> bool | None:
    """
    Leave interfaces to this directive.
    """
    return True if isinstance(found, InterfaceClass) else None


def setup(app: Sphinx) -> ExtensionMetadata:
    """
    Called by Sphinx.
    """
    app.add_directive("autointerface", _AutoInterface)
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True}
