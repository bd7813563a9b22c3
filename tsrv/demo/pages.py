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

_SCRIPT: Final = (files(__package__) / "templates" / "visitor.js").read_text("utf-8")

_HASH: Final = b64encode(sha256(_SCRIPT.encode()).digest())

_TEMPLATE: Final = Environment(
    undefined=StrictUndefined, autoescape=True, trim_blocks=True
).from_string((files(__package__) / "templates" / "visitor.html").read_text("utf-8"))

_HEADERS: Final = [
    (b"Vary", b"Accept"),
    (
        b"Content-Security-Policy",
        b"default-src 'none'; script-src 'sha256-%s'; style-src 'unsafe-inline'; "
        b"form-action 'self'; frame-ancestors 'none'; base-uri 'none'" % _HASH,
    ),
]


class Pages:
    """
    Makes the pages of a site.
    """

    def __init__(self, root: Resource) -> None:
        """
        @param root: The root of the site. Pages link only to what it has: the status
            page may be on another endpoint.
        """
        self._root = root

    def page(
        self, path: str, title: str, status: int = 200, **values: object
    ) -> Response:
        """
        Return a page.

        @param path: The path of the page.
        @param values: What the page shows.
        """
        links = [
            (each, name)
            for each, name in (("/", "status"), *LINKS)
            if each[1:].encode("ascii") in self._root.children
        ]
        page = _TEMPLATE.render(
            path=path, title=title, links=links, script=_SCRIPT, **values
        )
        data = page.encode("utf-8", "backslashreplace")
        return Response(data, b"text/html; charset=utf-8", status, _HEADERS)
