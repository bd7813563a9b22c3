"""
The location of Redis. This module needs no client of Redis, so that options can be
parsed without one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from os import fsencode
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from twisted.internet.endpoints import (
    HostnameEndpoint,
    UNIXClientEndpoint,
    wrapClientTLS,
)

__all__ = ["Location"]

_URL: Final = (
    "the URL of Redis is redis://[USER:PASSWORD@]HOST[:PORT][/NUMBER], the same with "
    "rediss:// for TLS, or unix://[USER:PASSWORD@]/PATH[?db=NUMBER]; write special "
    "characters of the password as %XX"
)


MAX_PATH_BYTES: Final = 107
"""
Maximum length of the path of a UNIX socket, on Linux.
"""


@dataclass(frozen=True)
class Location:
    """
    The location of Redis. Its C{str} and C{repr} do not show the password.

    @ivar host: The name or address of the host; empty for a UNIX socket.
    @ivar port: The TCP port.
    @ivar path: The path of the UNIX socket.
    @ivar tls: Whether the connection is encrypted. The server's certificate must be
        valid for the host; C{SSL_CERT_FILE} replaces the authorities of the system.
    @ivar number: The number of the database.
    @ivar user: The name of the user; empty for the default one.
    @ivar password: The password; empty if Redis needs none.
    """

    host: str = ""
    port: int = 6379
    path: str = ""
    tls: bool = False
    number: int = 0
    user: str = ""
    password: str = field(default="", repr=False)

    @classmethod
    def parse(cls, url: str) -> Location:
        """
        @param url: C{redis://[USER:PASSWORD@]HOST[:PORT][/NUMBER]}, the same with
            C{rediss:}, or C{unix://[USER:PASSWORD@]/PATH[?db=NUMBER]}. The user may
            be empty.
        @return: The location.
        @raise ValueError: The URL is something else. The message does not repeat it.
        """
        try:
            return cls._parse(url)
        except ValueError:
            raise ValueError(_URL) from None

    @classmethod
    def _parse(cls, url: str) -> Location:
        url.encode()
        split = urlsplit(url.strip())
        host, port = split.hostname or "", split.port
        query = dict(parse_qsl(split.query, strict_parsing=bool(split.query)))
        path, number = "", split.path.removeprefix("/")
        isUNIX = split.scheme == "unix"
        if isUNIX:
            path, number = unquote(split.path), query.pop("db", "")
        if (
            split.scheme not in ("redis", "rediss", "unix")
            or bool(host) is isUNIX
            or (len(path) > 1) is not isUNIX
            or port == 0
            or query
            or split.fragment
            or ("@" in split.netloc and not split.password)
        ):
            raise ValueError("not a URL of Redis")
        return cls(
            host,
            port or 6379,
            path,
            split.scheme == "rediss",
            int(number or 0),
            unquote(split.username or ""),
            unquote(split.password or ""),
        )

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        if self.path:
            return f"unix://{user}{self.path}?db={self.number}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        scheme = "rediss" if self.tls else "redis"
        return f"{scheme}://{user}{host}:{self.port}/{self.number}"

    def endpoint(self, reactor: Any, timeout: float) -> Any:
        """
        @param reactor: Provides connections.
        @param timeout: Seconds that connecting may take.
        @return: The client endpoint.
        @raise ImportError: C{twisted[tls]}, which TLS needs, is not installed.
        @raise ValueError: The path of the socket is too long, or TLS cannot use the
            name of the host.
        """
        if self.path:
            if len(fsencode(self.path)) > MAX_PATH_BYTES:
                # The reactor would log a traceback, and report nothing.
                raise ValueError(f"a path has at most {MAX_PATH_BYTES} bytes")
            return UNIXClientEndpoint(reactor, self.path, timeout)
        endpoint = HostnameEndpoint(reactor, self.host, self.port, timeout)
        if not self.tls:
            return endpoint
        from twisted.internet.ssl import optionsForClientTLS

        return wrapClientTLS(optionsForClientTLS(self.host), endpoint)
