"""
Makes the entries of the API reference easier to read.

  - Attributes follow parameters, and are called attributes.

  - C{**options: Unpack[...]} becomes C{**options}: the docstring explains the options.

  - The names of type variables lose their underscore, and a default value without a
    short name becomes C{...}.

  - A class with C{:class-doc-from: class} has no signature: programs get its objects,
    and do not make them.

  - An interface is called an interface.

  - A list that epytext indents is no quotation.
"""

from __future__ import annotations

import re
from typing import Any, Final

from docutils import nodes
from sphinx.addnodes import (
    desc_annotation,
    desc_name,
    desc_parameter,
    desc_sig_keyword,
    desc_sig_name,
    desc_sig_operator,
    desc_signature,
)
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

from .epytext import INTERFACE

_PRIVATE: Final = re.compile(r"_([A-Z]\w*)")
_INTERFACE_NAME: Final = re.compile(r"I[A-Z][a-z]")
_WITHOUT_NAME: Final = re.compile(r"lambda\b|_|MappingProxyType")


def shorten(
    app: Sphinx,
    what: str,
    name: str,
    described: Any,
    options: Any,
    signature: str | None,
    returned: str | None,
) -> tuple[str | None, str | None]:
    """
    Change a signature before Sphinx parses it. Interfaces of zope become their paths.
    """
    if what == "class" and options.class_doc_from == "class":
        return "", None
    return signature and _readable(signature), returned and _readable(returned)


def _readable(signature: str) -> str:
    return INTERFACE.sub(r"~\1", signature).replace("<factory>", "...")


def improve(app: Sphinx, document: nodes.document) -> None:
    """
    Improve the entries of a page.
    """
    for signature in document.findall(desc_signature):
        for parameter in list(signature.findall(desc_parameter)):
            _improveParameter(parameter)
        for text in list(signature.findall(nodes.Text)):
            private = _PRIVATE.fullmatch(text)
            if private:
                text.parent.replace(text, nodes.Text(private[1]))
        names = [str(node.astext()) for node in signature.findall(desc_name)]
        if names and _INTERFACE_NAME.match(names[0]):
            for annotation in signature.findall(desc_annotation):
                for keyword in annotation.findall(desc_sig_keyword):
                    keyword[:] = [nodes.Text("interface")]
    for quote in list(document.findall(nodes.block_quote)):
        if all(isinstance(child, nodes.Sequential) for child in quote):
            quote.parent.replace(quote, quote.children)
    for fields in document.findall(nodes.field_list):
        for label in list(fields.findall(nodes.field_name)):
            if label.astext() == "Variables":
                label[:] = [nodes.Text("Attributes")]
                field = label.parent
                fields.remove(field)
                fields.append(field)


def _improveParameter(parameter: desc_parameter) -> None:
    operators = [node for node in parameter if isinstance(node, desc_sig_operator)]
    if operators and operators[0].astext() == "**" and "Unpack[" in parameter.astext():
        name = next(node for node in parameter if isinstance(node, desc_sig_name))
        parameter[:] = [operators[0], name]
    for value in list(parameter.findall(nodes.inline)):
        if "default_value" in value["classes"] and _WITHOUT_NAME.match(value.astext()):
            value[:] = [nodes.Text("...")]


def setup(app: Sphinx) -> ExtensionMetadata:
    """
    Called by Sphinx.
    """
    app.connect("autodoc-process-signature", shorten)
    app.connect("doctree-read", improve)
    return {"parallel_read_safe": True}
