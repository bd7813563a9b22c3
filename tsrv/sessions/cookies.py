"""
The cookie that carries the identifier of a session.

Over TLS its name begins with C{__Host-}: a browser accepts such a cookie only from the
host itself, over TLS, and for all of its paths. So neither a sister site nor an
attacker on the network can set another one. Over plain HTTP, browsers silently drop
such a cookie. There the cookie has a plain name, and only localhost gets it, for
development.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from twisted.logger import Logger
from twisted.web.server import Request

from ..asyncmodule import ReactorTime
from ..web.origin import Proxies, isLocal, peerOf

__all__ = ["Cookies"]

_log = Logger("tsrv.sessions")

MAX_HEADER_BYTES: Final = 16 * 1024
"""
Maximum number of bytes of C{Cookie} headers that are searched.
"""

COMPLAINT_INTERVAL_SECONDS: Final = 60.0
"""
Minimum number of seconds between two log lines about cookies that cannot be sent.
"""

_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")

_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")

_EXPIRED: Final = b"; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT"


class Cookies:
    """
    Reads and writes the session cookie of a site.

    @ivar proxies: The trusted proxies.
    """

    def __init__(
        self,
        clock: ReactorTime,
        *,
        name: str = "session",
        sameSite: str = "Lax",
        trustedProxies: Sequence[str] = (),
    ) -> None:
        """
        @param clock: Provides the time.
        @param name: The name of the cookie, without a prefix.
        @param sameSite: The requests from other sites that carry the cookie: C{Strict}
            for none, C{Lax} for links, C{None} for all.
        @param trustedProxies: See L{Proxies<tsrv.web.origin.Proxies>}.
        @raise ValueError: An option is invalid.
        """
        if _NAME.fullmatch(name) is None:
            raise ValueError(f"the name of a cookie must be a token, not {name!r}")
        if name.startswith("__"):
            # Browsers drop cookies whose prefix does not fit.
            raise ValueError(f"the name of a cookie must not begin with __: {name!r}")
        if sameSite not in ("Strict", "Lax", "None"):
            raise ValueError(f"sameSite must be Strict, Lax or None, not {sameSite!r}")
        self.proxies = Proxies(trustedProxies)
        self._clock = clock
        self._complainedAt: float | None = None
        self._plain = name.encode("ascii")
        self._prefixed = b"__Host-" + self._plain
        # Browsers accept None for secure cookies only.
        lax = "Lax" if sameSite == "None" else sameSite
        self._attributes = {
            self._prefixed: f"; Path=/; Secure; HttpOnly; SameSite={sameSite}".encode(),
            self._plain: f"; Path=/; HttpOnly; SameSite={lax}".encode(),
        }
        # Only spaces and tabs may stand before a cookie.
        self._patterns = {
            each: re.compile(rb"(?:\A|;)[ \t]*+" + re.escape(each) + rb"=([^;]*)")
            for each in self._attributes
        }

    def read(self, request: Request) -> str | None:
        """
        Read the identifier that the browser has sent.

        @param request: The request.
        @return: The identifier; L{None} without a cookie that this class could have
            written, or if the client has disconnected.
        """
        name = self._nameFor(request)
        headers = request.requestHeaders.getRawHeaders(b"Cookie")
        if name is None or not headers or sum(map(len, headers)) > MAX_HEADER_BYTES:
            return None
        # HTTP/2 may send each cookie in a header of its own.
        values = self._patterns[name].findall(b";".join(headers))
        # If there are two cookies of this name, another site has set one of them.
        if len(values) != 1:
            return None
        value: str = values[0].decode("latin-1")
        return value if _IDENTIFIER.fullmatch(value) else None

    def canWrite(self, request: Request) -> bool:
        """
        Find out whether the browser would receive a cookie in the response and keep
        it. If the browser would drop the cookie, log that, at most once a minute.

        @param request: The request.
        @return: Whether the browser would receive and keep the cookie.
        """
        isOpen = not (request.startedWriting or _isOver(request))
        if isOpen and self._nameFor(request) is None:
            self._complain(request)
            return False
        return isOpen

    def write(self, request: Request, identifier: str) -> bool:
        """
        Set the cookie. It replaces a session cookie that is already in the response.

        @param request: The request.
        @param identifier: 1 to 128 letters, digits, C{-} and C{_}.
        @return: Whether the cookie is in the response.
        @raise ValueError: The identifier is something else.
        """
        if _IDENTIFIER.fullmatch(identifier) is None:
            raise ValueError("an identifier has 1 to 128 letters, digits, - and _")
        return self._set(request, identifier.encode("ascii"))

    def expire(self, request: Request) -> bool:
        """
        Remove the cookie from the browser.

        @param request: The request.
        @return: Whether the removal is in the response.
        """
        return self._set(request, b"", _EXPIRED)

    def _set(self, request: Request, value: bytes, attributes: bytes = b"") -> bool:
        name = self._nameFor(request)
        if name is None or request.startedWriting:
            return False
        begin = name + b"="
        others = [each for each in request.cookies if not each.startswith(begin)]
        cookie = begin + value + self._attributes[name] + attributes
        request.cookies[:] = [*others, cookie]
        return True

    def _nameFor(self, request: Request) -> bytes | None:
        # None: the browser would drop the cookie, or has disconnected.
        if _isOver(request):
            return None
        if self.proxies.isSecure(request):
            return self._prefixed
        return self._plain if isLocal(request) else None

    def _complain(self, request: Request) -> None:
        now, last = self._clock.seconds(), self._complainedAt
        # A clock may be set back.
        if last is not None and 0 <= now - last < COMPLAINT_INTERVAL_SECONDS:
            return
        self._complainedAt = now
        _log.error(
            "No session cookie was sent to {peer}: browsers drop it without TLS. "
            "Listen with TLS; behind a proxy that terminates TLS, let the proxy set "
            "X-Forwarded-Proto, and name its address among the trusted proxies. Plain "
            "HTTP works on localhost alone, for development.",
            peer=peerOf(request) or "a UNIX socket",
        )


def _isOver(request: Request) -> bool:
    # Without a channel, the client has disconnected.
    return bool(request.finished or request.channel is None)
