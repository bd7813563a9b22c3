"""
The bodies of all requests together, which somebody has to keep in bounds.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any, Protocol

__all__ = ["Body"]


class _Site(Protocol):
    """
    What keeps count.

    @ivar contents: How many bytes all bodies have.
    """

    contents: int


class Body(BytesIO):
    """
    The body of a request, of which the site knows how long it is until it is
    closed.
    """

    _length = 0

    def __init__(self, site: _Site) -> None:
        """
        @param site: The site.
        """
        super().__init__()
        self._site = site

    def write(self, data: Any) -> int:
        """
        @see: L{BytesIO.write}
        """
        written = super().write(data)
        self._length += written
        self._site.contents += written
        return written

    def close(self) -> None:
        """
        @see: L{BytesIO.close}
        """
        self._site.contents -= self._length
        self._length = 0
        super().close()
