"""
The routes of visitors: C{/visits} counts visits, C{/login} sets a name, C{/me} shows
the name, and C{/logout} ends the session. Browsers get pages, programs get JSON.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from msgspec import Struct
from msgspec.json import encode
from twisted.web.server import Request

from ..sessions import Session, Sessions
from ..web.accept import prefersHTML
from ..web.content import FORM, Invalid, mediaTypeOf, readBody
from ..web.origin import checkOrigin
from ..web.problems import HTTPError
from ..web.responses import AsyncResource, Response
from .names import LoginName, normalize
from .pages import Pages

__all__ = [
    "LoggedIn",
    "Login",
    "LoginBody",
    "Logout",
    "Me",
    "Token",
    "VisitCount",
    "Visitor",
    "Visits",
]

_JSON: Final = "application/json"

_INVALID: Final = "Invalid name"

MAX_BODY_BYTES: Final = 4 * 1024
"""
Maximum length of a body, in bytes. The longest name takes 1,200 bytes if every
character is escaped.
"""

_VARY: Final = (b"Vary", b"Accept")


class LoginBody(Struct):
    """
    The name of a visitor who logs in.
    """

    name: LoginName


class LoggedIn(Struct):
    """
    The name after a login or a logout.
    """

    name: str | None


class VisitCount(Struct):
    """
    The number of visits.
    """

    visits: int


class Visitor(Struct):
    """
    A visitor. The token is null if no session is stored.
    """

    name: str | None
    visits: int
    token: str | None


class Token(Struct):
    """
    The token that a program sends as C{X-CSRF-Token}.
    """

    token: str


def _jsonResponse(members: Struct) -> Response:
    return Response(encode(members), _JSON.encode(), headers=[_VARY])


def _redirect(path: bytes) -> Response:
    headers = [(b"Location", path), _VARY]
    return Response(b"", b"text/plain", HTTPStatus.SEE_OTHER, headers)


def _tokenOf(session: Session) -> str | None:
    # Reading the token of a new session would store the session.
    return None if session.isNew else session.token


def _isForm(request: Request) -> bool:
    return mediaTypeOf(request.getHeader(b"Content-Type") or b"", [FORM]) is not None


def _nameFrom(request: Request) -> str:
    body = readBody(request, LoginBody, _INVALID, [_JSON, FORM], b"Accept-Post")
    return normalize(body, _INVALID).name.strip()


class _SessionResource(AsyncResource):
    """
    A resource that uses the session of its visitor.
    """

    maxBodyBytes = MAX_BODY_BYTES

    def __init__(self, sessions: Sessions, pages: Pages) -> None:
        super().__init__()
        self._sessions = sessions
        self._pages = pages

    async def _checkedSession(self, request: Request) -> Session:
        """
        Return the session of the visitor; refuse posts from other sites.
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
        visits = int(await session.add("visits"))
        if prefersHTML(request):
            return self._pages.page("/visits", "Visits", visits=visits)
        return _jsonResponse(VisitCount(visits))


class Me(_SessionResource):
    """
    C{/me} shows the visitor.
    """

    async def render_GET(self, request: Request) -> Response:
        """
        Show the name and the visits. Programs also get the token for their posts.
        """
        session = await self._sessions.get(request)
        name, visits = session.get("name"), session.get("visits", 0)
        if not prefersHTML(request):
            return _jsonResponse(Visitor(name, visits, _tokenOf(session)))
        if name is None:
            return _redirect(b"/login")
        return self._pages.page("/me", f"Hello, {name}", visits=visits)


class Login(_SessionResource):
    """
    C{/login} gives the visitor a name.
    """

    async def render_GET(self, request: Request) -> Response:
        """
        Show the form. Programs get the token for their posts.
        """
        if prefersHTML(request):
            return self._form()
        session = await self._sessions.get(request)
        return _jsonResponse(Token(session.token))

    async def render_POST(self, request: Request) -> Response:
        """
        Log in. The session gets a new identifier.
        """
        if not self._sessions.cookies.canWrite(request):
            raise HTTPError(
                "A login needs HTTPS: over plain HTTP, the cookie works only on "
                "localhost",
                HTTPStatus.FORBIDDEN,
            )
        session = await self._checkedSession(request)
        try:
            name = _nameFrom(request)
        except Invalid as error:
            if _isForm(request) and prefersHTML(request):
                return self._form(error.status, error.reason)
            raise
        session.regenerate()
        session["name"] = name
        return _redirect(b"/me") if _isForm(request) else _jsonResponse(LoggedIn(name))

    def _form(self, status: int = 200, error: str | None = None) -> Response:
        return self._pages.page("/login", "Log in", status, error=error)


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
        return _jsonResponse(LoggedIn(None))
