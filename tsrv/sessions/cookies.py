"""
The cookie in which a browser carries the identifier of its session.

Over TLS its name begins with C{__Host-}: a browser takes such a cookie only from
the host itself, over TLS, and for all of its paths, so that neither a sister site
nor somebody on the way can put in another one. Browsers drop it over plain HTTP
without a word; there, it is plain, and only where nobody but this machine has to
do with it, for development.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.server import Request

from ..web.origin import (
    Proxies,
    isForwarded,
    isLocal,
    peerOf,
)
from .signing import SigningKeys

__all__ = ["Cookies"]

_LONGEST: Final = 16 * 1024
"""
How many bytes of cookies are looked through.
"""

_SILENCE: Final = 60.0
"""
How many seconds pass before the same complaint is made again.
"""

_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
"""
A token of RFC 9110, of a length that nobody minds.
"""

_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")

_VALUE: Final = re.compile(rb"([A-Za-z0-9_-]{1,128})(?:\.([A-Za-z0-9_-]{43}))?")
"""
An identifier, and perhaps its signature.
"""

_EXPIRED: Final = b"; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT"


class Cookies:
    """
    How visitors of a site carry the identifiers of their sessions.

    @ivar proxies: The proxies whose word is taken for what they were asked.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        *,
        name: str = "session",
        sameSite: str = "Lax",
        trustedProxies: Sequence[str] = (),
        keys: SigningKeys | None = None,
    ) -> None:
        """
        @param clock: Provides the time.
        @param name: The name of the cookie, without a prefix.
        @param sameSite: With which requests of other sites a browser sends it:
            C{Strict} for with none, C{Lax} for with links, C{None} for with all.
        @param trustedProxies: From whom C{X-Forwarded-Proto} is believed, see
            L{Proxies}.
        @param keys: Sign identifiers, and refuse those that are not signed. With
            L{None} they are sent as they are, which is as safe as they are
            hard to guess.
        @raise ValueError: An option is none of these.
        """
        if _NAME.fullmatch(name) is None:
            raise ValueError(f"the name of a cookie must be a token, not {name!r}")
        if name.startswith("__"):
            # Browsers know some of these, in whatever case, and drop cookies that
            # do not fit.
            raise ValueError(f"the name of a cookie must not begin with __: {name!r}")
        if sameSite not in ("Strict", "Lax", "None"):
            raise ValueError(f"sameSite must be Strict, Lax or None, not {sameSite!r}")
        self.proxies = Proxies(trustedProxies)
        self._clock = clock
        self._name = name
        self._keys = keys
        plain = name.encode("ascii")
        prefixed = b"__Host-" + plain
        # None is only for cookies that are secure.
        lax = b"Lax" if sameSite == "None" else sameSite.encode("ascii")
        self._attributes = {
            prefixed: b"; Path=/; Secure; HttpOnly; SameSite="
            + sameSite.encode("ascii"),
            plain: b"; Path=/; HttpOnly; SameSite=" + lax,
        }
        self._prefixed, self._plain = prefixed, plain
        self._found = {each: _finderOf(each) for each in (prefixed, plain)}
        self._complained: float | None = None
        self._withheld = 0

    def read(self, request: Request) -> str | None:
        """
        @param request: A request, whose client is still there.
        @return: The identifier that came with it; L{None} if there is none, or if
            anything about it is not as it was given out.
        """
        name = self._nameFor(request)
        headers = request.requestHeaders.getRawHeaders(b"Cookie")
        if name is None or headers is None or sum(map(len, headers)) > _LONGEST:
            return None
        # With HTTP/2, each cookie may come in a header of its own.
        values = self._found[name].findall(b";".join(headers))
        if len(values) != 1:
            # Of two, somebody else has made one.
            return None
        match = _VALUE.fullmatch(values[0])
        if match is None:
            return None
        identifier = match[1].decode("ascii")
        signature = match[2]
        if self._keys is None:
            return identifier if signature is None else None
        if signature is None or not self._keys.verify(
            self._signed(identifier), signature.decode("ascii")
        ):
            return None
        return identifier

    def canWrite(self, request: Request) -> bool:
        """
        @param request: A request.
        @return: Whether the response to it can still have a cookie that the
            browser would keep.
        """
        return not request.startedWriting and self._nameFor(request) is not None

    def write(self, request: Request, identifier: str) -> bool:
        """
        Have the browser keep an identifier, in place of all that this was told to
        do with the same response before.

        Where no browser would keep it, that is logged as an error, at most once a
        minute.

        @param request: A request.
        @param identifier: The identifier: letters and digits, C{-} and C{_}.
        @return: Whether it is in the response.
        @raise ValueError: It is no identifier.
        """
        name = self._nameFor(request)
        if name is None:
            if not _isOver(request):
                self._complain(request)
            return False
        if _IDENTIFIER.fullmatch(identifier) is None:
            raise ValueError("an identifier has 1 to 128 letters, digits, - and _")
        value = identifier
        if self._keys is not None:
            value += f".{self._keys.sign(self._signed(identifier))}"
        return self._set(request, name, value.encode("ascii"), b"")

    def expire(self, request: Request) -> bool:
        """
        Have the browser forget its identifier, in place of all that this was told
        to do with the same response before.

        @param request: A request.
        @return: Whether that is in the response.
        """
        name = self._nameFor(request)
        return name is not None and self._set(request, name, b"", _EXPIRED)

    def _set(self, request: Request, name: bytes, value: bytes, more: bytes) -> bool:
        if request.startedWriting:
            # The headers have gone.
            return False
        begin = name + b"="
        request.cookies[:] = [
            cookie for cookie in request.cookies if not cookie.startswith(begin)
        ]
        request.cookies.append(begin + value + self._attributes[name] + more)
        return True

    def _nameFor(self, request: Request) -> bytes | None:
        """
        @return: What the cookie is called in an exchange; L{None} if it can have
            none.
        """
        if _isOver(request):
            # What it came over cannot be asked any more.
            return None
        if self.proxies.isSecure(request):
            return self._prefixed
        return self._plain if isLocal(request) and not isForwarded(request) else None

    def _signed(self, identifier: str) -> str:
        """
        @return: What is signed: with the name of the cookie, so that nothing that
            was signed for something else is of use here.
        """
        return f"{self._name}={identifier}"

    def _complain(self, request: Request) -> None:
        self._withheld += 1
        now = self._clock.seconds()
        # A clock may be set back.
        if self._complained is not None and 0 <= now - self._complained < _SILENCE:
            return
        self._complained = now
        withheld, self._withheld = self._withheld, 0
        self._log.error(
            "No session cookie was sent with {count} response(s), the last one to "
            "{peer}: browsers would drop it, since this is not TLS. Listen with "
            "TLS; or, if this is behind a proxy that does, let it set "
            "X-Forwarded-Proto, and name its address among the trusted proxies. "
            "Plain HTTP is only for development, on localhost.",
            count=withheld,
            peer=peerOf(request) or "a UNIX socket",
        )


def _isOver(request: Request) -> bool:
    """
    @return: Whether a response has ended, or will not reach anybody any more.
    """
    return bool(request.finished) or getattr(request, "channel", request) is None


def _finderOf(name: bytes) -> re.Pattern[bytes]:
    """
    @return: What finds the values of a cookie. The blanks before it are those that
        may be there, and no others that look like them.
    """
    return re.compile(rb"(?:\A|;)[ \t]*+" + re.escape(name) + rb"=([^;]*)")
