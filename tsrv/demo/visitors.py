"""
Who visits: a counter of visits, and a name that somebody logs in with.
"""

from __future__ import annotations

import json
from base64 import b64encode
from hashlib import sha256
from html import escape
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qs

from twisted.internet.defer import Deferred
from twisted.web.server import Request

from ..sessions import (
    Session,
    Sessions,
)
from ..web.accept import prefersHTML
from ..web.content import (
    Invalid,
    readJSON,
)
from ..web.origin import checkOrigin
from ..web.responses import (
    AsyncResource,
    Response,
)

__all__ = ["Login", "Logout", "Me", "Visits"]

_JSON: Final = "application/json"
_FORM: Final = "application/x-www-form-urlencoded"

_LONGEST: Final = 100
"""
How many characters a name may have.
"""

_SCRIPT: Final = """
addEventListener("pagehide", () => document.documentElement.replaceChildren());
addEventListener("pageshow", (event) => event.persisted && location.reload());
"""
"""
Browsers may keep a whole page for their Back button, even one that says C{no-store}.
Nothing is left in it then, and it is asked for again when somebody comes back, who
may have logged out meanwhile.
"""

_HASH: Final = b64encode(sha256(_SCRIPT.encode()).digest())

_PAGE: Final = """\
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<script>{script}</script>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 1.1rem/1.5 system-ui, sans-serif; max-width: 30rem; margin: 15vh auto;
    padding: 0 1rem; overflow-wrap: anywhere; }}
form {{ display: flex; flex-wrap: wrap; gap: .8em; align-items: end; }}
label {{ flex: 1 1 12em; }}
input, button {{ font: inherit; box-sizing: border-box; min-height: 2.75rem;
    padding: .2em .8em; }}
input {{ display: block; width: 100%; }}
</style>
<main>
<h1>{title}</h1>
{body}</main>
"""

_FORM_IN: Final = """\
<form method="post" action="/login">
<label>Name <input name="name" required maxlength="100" autocomplete="username"></label>
<button>Log in</button>
</form>
"""

_FORM_OUT: Final = """\
<p>Visits: <output id="visits">{visits}</output></p>
<form method="post" action="/logout">
<button>Log out</button>
</form>
"""

_VARY: Final = (b"Vary", b"Accept")

_HEADERS: Final = [
    _VARY,
    (b"X-Content-Type-Options", b"nosniff"),
    (
        b"Content-Security-Policy",
        b"default-src 'none'; script-src 'sha256-%s'; style-src 'unsafe-inline'; "
        b"form-action 'self'; frame-ancestors 'none'; base-uri 'none'" % _HASH,
    ),
]


def _answer(members: object) -> Response:
    body = json.dumps(members).encode()
    return Response(body, _JSON.encode(), headers=[_VARY])


def _page(title: str, body: str) -> Response:
    page = _PAGE.format(title=escape(title), script=_SCRIPT, body=body)
    return Response(
        page.encode("utf-8", "backslashreplace"),
        b"text/html; charset=utf-8",
        headers=_HEADERS,
    )


def _goTo(path: bytes) -> Response:
    return Response(
        b"", b"text/plain", HTTPStatus.SEE_OTHER, [(b"Location", path), _VARY]
    )


class _Visitor(AsyncResource):
    """
    A resource that knows who asks.
    """

    def __init__(self, sessions: Sessions) -> None:
        """
        @param sessions: The sessions of the site.
        """
        super().__init__()
        self._sessions = sessions

    async def _fields(self, request: Request) -> tuple[Session, dict[str, str], bool]:
        """
        Read what was posted, if it comes from a page of ours.

        @return: The session, what was posted, and whether it is a form.
        """
        session = await self._sessions.get(request)
        isSecure = self._sessions.cookies.proxies.isSecure(request)
        checkOrigin(request, isSecure, session.knownToken)
        types = request.requestHeaders.getRawHeaders(b"Content-Type", [b""])
        isForm = types[0].partition(b";")[0].strip().lower() == _FORM.encode()
        fields: dict[str, str] = {}
        if isForm:
            assert request.content is not None
            data = request.content.read().decode("utf-8", "replace")
            try:
                parsed = parse_qs(data, keep_blank_values=True, max_num_fields=10)
            except ValueError:
                detail = "has more than 10 fields"
                raise Invalid("Invalid form", "pointer", "", detail) from None
            fields = {name: values[0] for name, values in parsed.items()}
        elif types != [b""]:
            body = readJSON(
                request, dict[str, object], "Invalid body", [_JSON], b"Accept-Post"
            )
            fields = {k: v for k, v in body.items() if isinstance(v, str)}
        return session, fields, isForm


class Visits(_Visitor):
    """
    C{/visits}: how often a visitor has been here.
    """

    def render_GET(self, request: Request) -> Deferred[Response]:
        """
        Count one more.
        """
        return Deferred.fromCoroutine(self._visit(request))

    async def _visit(self, request: Request) -> Response:
        session = await self._sessions.get(request)
        return _answer({"visits": await session.add("visits")})


class Me(_Visitor):
    """
    C{/me}: who asks.
    """

    def render_GET(self, request: Request) -> Deferred[Response]:
        """
        Show the name, the visits, and to programs the token for what they post.
        """
        return Deferred.fromCoroutine(self._show(request))

    async def _show(self, request: Request) -> Response:
        session = await self._sessions.get(request)
        name, visits = session.get("name"), session.get("visits", 0)
        if not prefersHTML(request):
            token = None if session.isNew else session.token
            return _answer({"name": name, "visits": visits, "token": token})
        if name is None:
            return _goTo(b"/login")
        body = _FORM_OUT.format(visits=escape(str(visits)))
        return _page(f"Hello, {name}", body)


class Login(_Visitor):
    """
    C{/login}: who gives a name is known by it.
    """

    def render_GET(self, request: Request) -> Deferred[Response]:
        """
        Show a form, or to programs the token that they have to post with it.
        """
        return Deferred.fromCoroutine(self._show(request))

    async def _show(self, request: Request) -> Response:
        if prefersHTML(request):
            return _page("Log in", _FORM_IN)
        session = await self._sessions.get(request)
        return _answer({"token": session.token})

    def render_POST(self, request: Request) -> Deferred[Response]:
        """
        Log in: from now on the visitor has another identifier.
        """
        return Deferred.fromCoroutine(self._login(request))

    async def _login(self, request: Request) -> Response:
        session, fields, isForm = await self._fields(request)
        name = fields.get("name", "").strip()
        if not (0 < len(name) <= _LONGEST and name.isprintable()):
            detail = f"must have 1 to {_LONGEST} visible characters"
            raise Invalid("Invalid name", "pointer", "/name", detail)
        session.regenerate()
        session["name"] = name
        return _goTo(b"/me") if isForm else _answer({"name": name})


class Logout(_Visitor):
    """
    C{/logout}: the session ends.
    """

    def render_POST(self, request: Request) -> Deferred[Response]:
        """
        Log out.
        """
        return Deferred.fromCoroutine(self._logout(request))

    async def _logout(self, request: Request) -> Response:
        session, _, isForm = await self._fields(request)
        session.destroy()
        return _goTo(b"/login") if isForm else _answer({"name": None})
