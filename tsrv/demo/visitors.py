"""
The pages of visitors: C{/visits} counts, C{/login} and C{/logout} give and end a name,
C{/me} shows it. Browsers get pages, programs get JSON.
"""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from html import escape
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qs

from msgspec import Struct
from msgspec.json import encode
from twisted.web.server import Request

from ..sessions import Session, Sessions
from ..web.accept import prefersHTML
from ..web.content import Invalid, readJSON
from ..web.origin import checkOrigin
from ..web.responses import AsyncResource, Response

__all__ = ["Login", "Logout", "Me", "Visits"]

_JSON: Final = "application/json"

MAX_NAME_LENGTH: Final = 100
"""
Maximum length of a name, in characters.
"""

MAX_FORM_FIELDS: Final = 10
"""
Maximum number of fields in a form.
"""

_SCRIPT: Final = """
addEventListener("pagehide", () => document.documentElement.replaceChildren());
addEventListener("pageshow", (event) => event.persisted && location.reload());
"""
"""
Browsers may keep a page for their Back button even if it says C{no-store}. This script
empties the page when the visitor leaves it, and reloads it when he comes back, since
he may have logged out meanwhile.
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


class LoginBody(Struct):
    """
    The body of a program's request to C{/login}.
    """

    name: str


def _jsonResponse(members: object) -> Response:
    return Response(encode(members), _JSON.encode(), headers=[_VARY])


def _page(title: str, body: str) -> Response:
    page = _PAGE.format(title=escape(title), script=_SCRIPT, body=body)
    data = page.encode("utf-8", "backslashreplace")
    return Response(data, b"text/html; charset=utf-8", headers=_HEADERS)


def _redirect(path: bytes) -> Response:
    headers = [(b"Location", path), _VARY]
    return Response(b"", b"text/plain", HTTPStatus.SEE_OTHER, headers)


def _tokenOf(session: Session) -> str | None:
    # Reading the token of a new session would have it stored.
    return None if session.isNew else session.token


def _isForm(request: Request) -> bool:
    contentType = request.getHeader(b"Content-Type") or b""
    kind = contentType.partition(b";")[0].strip().lower()
    return kind == b"application/x-www-form-urlencoded"


def _nameFrom(request: Request) -> str:
    """
    Read a name from a form or a JSON body.
    """
    if _isForm(request):
        assert request.content is not None
        data = request.content.read().decode("utf-8", "replace")
        try:
            fields = parse_qs(data, max_num_fields=MAX_FORM_FIELDS)
        except ValueError:
            detail = f"has more than {MAX_FORM_FIELDS} fields"
            raise Invalid("Invalid form", "pointer", "", detail) from None
        name = str(fields.get("name", [""])[0])
    else:
        body = readJSON(request, LoginBody, "Invalid name", [_JSON], b"Accept-Post")
        name = body.name
    name = name.strip()
    if not (0 < len(name) <= MAX_NAME_LENGTH and name.isprintable()):
        detail = f"must have 1 to {MAX_NAME_LENGTH} visible characters"
        raise Invalid("Invalid name", "pointer", "/name", detail)
    return name


class _SessionResource(AsyncResource):
    """
    A resource that uses the session of its visitor.
    """

    def __init__(self, sessions: Sessions) -> None:
        super().__init__()
        self._sessions = sessions

    async def _checkedSession(self, request: Request) -> Session:
        """
        Return the session of a visitor who posts from the site itself.
        """
        session = await self._sessions.get(request)
        isSecure = self._sessions.cookies.proxies.isSecure(request)
        checkOrigin(request, isSecure, _tokenOf(session))
        return session


class Visits(_SessionResource):
    """
    C{/visits} counts the visits of a visitor.
    """

    async def render_GET(self, request: Request) -> Response:
        """
        Count a visit.
        """
        session = await self._sessions.get(request)
        return _jsonResponse({"visits": await session.add("visits")})


class Me(_SessionResource):
    """
    C{/me} shows the visitor.
    """

    async def render_GET(self, request: Request) -> Response:
        """
        Show the name and the visits. Programs also get the token that they have to
        send with what they post.
        """
        session = await self._sessions.get(request)
        name, visits = session.get("name"), session.get("visits", 0)
        if not prefersHTML(request):
            members = {"name": name, "visits": visits, "token": _tokenOf(session)}
            return _jsonResponse(members)
        if name is None:
            return _redirect(b"/login")
        return _page(f"Hello, {name}", _FORM_OUT.format(visits=escape(str(visits))))


class Login(_SessionResource):
    """
    C{/login} gives the visitor a name.
    """

    async def render_GET(self, request: Request) -> Response:
        """
        Show a form. Programs get the token that they have to send with the name.
        """
        if prefersHTML(request):
            return _page("Log in", _FORM_IN)
        session = await self._sessions.get(request)
        return _jsonResponse({"token": session.token})

    async def render_POST(self, request: Request) -> Response:
        """
        Log in. The session gets another identifier.
        """
        session = await self._checkedSession(request)
        name = _nameFrom(request)
        session.regenerate()
        session["name"] = name
        return _redirect(b"/me") if _isForm(request) else _jsonResponse({"name": name})


class Logout(_SessionResource):
    """
    C{/logout} ends the session.
    """

    async def render_POST(self, request: Request) -> Response:
        """
        Log out.
        """
        session = await self._checkedSession(request)
        session.destroy()
        if _isForm(request):
            return _redirect(b"/login")
        return _jsonResponse({"name": None})
