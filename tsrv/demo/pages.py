"""
The pages of visitors, and the links between them. They need no JavaScript.
"""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from typing import Final

from jinja2 import Environment, StrictUndefined
from twisted.web.resource import Resource

from ..web.responses import Response

__all__ = ["LINKS", "Pages"]

LINKS: Final = (
    ("/say", "say"),
    ("/visits", "visits"),
    ("/me", "me"),
    ("/login", "log in"),
)
"""
The path and the name of each page of the demo.
"""


def _read(name: str) -> str:
    return (files(__package__) / "templates" / name).read_text("utf-8")


def _hash(text: str) -> bytes:
    return b"'sha256-%s'" % b64encode(sha256(text.encode()).digest())


_SCRIPT: Final = _read("visitor.js")

_STYLE: Final = _read("visitor.css")

_TEMPLATE: Final = Environment(
    undefined=StrictUndefined, autoescape=True, trim_blocks=True
).from_string(_read("visitor.html"))

_HEADERS: Final = [
    (b"Vary", b"Accept"),
    (
        b"Content-Security-Policy",
        b"default-src 'none'; img-src data:; script-src %s; style-src %s; "
        b"form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
        % (_hash(_SCRIPT), _hash(_STYLE)),
    ),
]


class Pages:
    """
    Makes the pages of a site.
    """

    def __init__(self, root: Resource) -> None:
        """
        @param root: The root of the site. Pages link only to its children, because the
            status page may be on another endpoint.
        """
        self._root = root

    def page(
        self, path: str, title: str, status: int = 200, **values: object
    ) -> Response:
        """
        Return a page.

        @param path: The path of the page.
        @param values: The values for the template.
        """
        links = [
            (each, name)
            for each, name in (("/", "status"), *LINKS)
            if each[1:].encode("ascii") in self._root.children
        ]
        page = _TEMPLATE.render(
            path=path, title=title, links=links, script=_SCRIPT, style=_STYLE, **values
        )
        data = page.encode("utf-8", "backslashreplace")
        return Response(data, b"text/html; charset=utf-8", status, _HEADERS)
