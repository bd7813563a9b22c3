"""
The last good copy of what was fetched, in a file.

All of this is for a thread: it waits for the disk.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from tempfile import mkstemp
from typing import Any, Final

__all__ = ["Kept", "KeptFile"]


@dataclass(frozen=True)
class Kept:
    """
    What was fetched.

    @ivar settings: The settings.
    @ivar etag: Their entity tag, if there was one.
    @ivar fetched: When, in seconds of the epoch.
    """

    settings: dict[str, Any]
    etag: str | None
    fetched: float


_END: Final = 253402300800.0
"""
When years have five digits, in seconds of the epoch.
"""


class KeptFile:
    """
    A file with a copy, which is for its owner alone: settings may be secrets.
    """

    def __init__(self, path: str, url: str, limit: int) -> None:
        """
        @param path: Where it is.
        @param url: Where the settings come from; the copy of others is none. Of
            the URL itself, which may be a secret, nothing is in the file.
        @param limit: How many bytes the settings may have.
        """
        self._path = os.path.abspath(path)
        self._source = sha256(url.encode("utf-8", "surrogatepass")).hexdigest()
        # JSON may be written at more length than it was sent.
        self._limit = 8 * limit + 1024

    def read(self) -> Kept | None:
        """
        @return: The copy, or L{None} if there is none.
        @raise OSError: It cannot be read.
        @raise ValueError: It is none.
        """
        try:
            with open(self._path, "rb") as file:
                data = file.read(self._limit + 1)
        except FileNotFoundError:
            return None
        if len(data) > self._limit:
            raise ValueError(f"{self._path} is too long")
        try:
            found = json.loads(data)
            source, fetched, etag = found["source"], found["fetched"], found["etag"]
            settings = found["settings"]
        except (ValueError, RecursionError, TypeError, KeyError):
            raise ValueError(f"{self._path} is damaged") from None
        if source != self._source:
            raise ValueError(f"{self._path} is that of another source")
        if (
            not isinstance(settings, dict)
            or type(fetched) not in (int, float)
            or not 0 <= fetched < _END
            or not isinstance(etag, str | None)
        ):
            raise ValueError(f"{self._path} is damaged")
        return Kept(settings, etag, fetched)

    def write(self, kept: Kept) -> None:
        """
        Replace the copy, or leave it as it was.

        @param kept: The new one.
        @raise OSError: It cannot be written.
        """
        copy = {
            "source": self._source,
            "fetched": kept.fetched,
            "etag": kept.etag,
            "settings": kept.settings,
        }
        directory, name = os.path.split(self._path)
        # It is made for nobody but its owner.
        number, temporary = mkstemp(prefix=f".{name}.", dir=directory)
        try:
            with os.fdopen(number, "w", encoding="ascii") as file:
                json.dump(copy, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
