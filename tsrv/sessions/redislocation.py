"""
Where Redis is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote, urlsplit

__all__ = ["Location"]

_URL: Final = (
    "the URL of Redis is redis://[USER:PASSWORD@]HOST[:PORT][/NUMBER], with "
    "special characters of the password written as %XX"
)


@dataclass(frozen=True)
class Location:
    """
    Where Redis is. What it looks like has no password in it.

    @ivar host: The name or the address of the host.
    @ivar port: The TCP port.
    @ivar number: Which of its databases.
    @ivar user: The name of the user; empty for the one that has none.
    @ivar password: The password, if there is one.
    """

    host: str
    port: int = 6379
    number: int = 0
    user: str = ""
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> Location:
        """
        @param url: C{redis://[USER:PASSWORD@]HOST[:PORT][/NUMBER]}. The user may
            be empty.
        @return: The location.
        @raise ValueError: It is none. The message does not repeat it.
        """
        try:
            split = urlsplit(url.strip())
            host, port = split.hostname, split.port
            url.encode()
        except ValueError:
            raise ValueError(_URL) from None
        login, at, _ = split.netloc.rpartition("@")
        user, colon, password = login.partition(":")
        number = split.path.removeprefix("/")
        if (
            split.scheme != "redis"
            or not host
            or port == 0
            or split.query
            or split.fragment
            or not re.fullmatch(r"[0-9]{0,9}", number)
            or (at and not (colon and password))
            or set(login) & set("@[]")
        ):
            raise ValueError(_URL)
        return cls(
            host,
            port or 6379,
            int(number or 0),
            unquote(user),
            unquote(password) if at else None,
        )

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = f"{self.user}@" if self.user else ""
        return f"redis://{user}{host}:{self.port}/{self.number}"
