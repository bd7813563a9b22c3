"""
The URL of a database.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

from .interface import Kind

__all__ = ["Location"]


@dataclass(frozen=True)
class Location:
    """
    The location of a database. Its C{str} and C{repr} show no password.

    @ivar kind: The kind of the database.
    @ivar target: The path of SQLite's file, or the URL for PostgreSQL, which may
        contain a password.
    """

    kind: Kind
    target: str = field(repr=False)

    @classmethod
    def parse(cls, url: str) -> Location:
        """
        Parse the URL of a database.

        @param url: C{sqlite:PATH}, or a URL that libpq understands, such as
            C{postgresql://USER:PASSWORD@HOST:PORT/NAME}.
        @return: The location.
        @raise ValueError: The URL is invalid. The message does not repeat it.
        """
        scheme, _, rest = url.strip().partition(":")
        if scheme == "sqlite" and rest.removeprefix("//"):
            path = rest.removeprefix("//")
            if "\0" not in path and path != ":memory:":
                return cls("sqlite", path)
        elif scheme in ("postgresql", "postgres") and rest.startswith("//"):
            user, _, _ = rest[2:].rpartition("@")
            # libpq and urllib disagree about the end of such a password, so error
            # messages would show the rest of it.
            if "#" in rest or set(user) & set("/?@[]"):
                raise ValueError(
                    "special characters in the URL of a database must be written "
                    "as %XX: # as %23, / as %2F, ? as %3F, @ as %40"
                )
            try:
                urlsplit(url.strip())
            except ValueError:
                pass
            else:
                return cls("postgresql", f"postgresql:{rest}")
        raise ValueError(
            "the URL of a database is sqlite:PATH or "
            "postgresql://USER:PASSWORD@HOST:PORT/NAME"
        )

    @property
    def hasPassword(self) -> bool:
        """
        Whether the URL contains a password.
        """
        if self.kind == "sqlite":
            return False
        split = urlsplit(self.target)
        return ":" in split.netloc.rpartition("@")[0] or any(
            name in ("password", "sslpassword") for name, _ in parse_qsl(split.query)
        )

    def __str__(self) -> str:
        if self.kind == "sqlite":
            return f"sqlite:{self.target}"
        split = urlsplit(self.target)
        user, at, host = split.netloc.rpartition("@")
        return f"postgresql://{user.partition(':')[0]}{at}{host}{split.path}"
