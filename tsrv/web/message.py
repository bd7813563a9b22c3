"""
A response as a value: its body, headers and status.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Response", "text"]


@dataclass(slots=True)
class Response:
    """
    A response whose whole body is known.

    @ivar body: The body.
    @ivar contentType: The C{Content-Type} of the body.
    @ivar status: The status.
    @ivar headers: Further headers.
    """

    body: bytes
    contentType: bytes
    status: int = 200
    headers: Sequence[tuple[bytes, bytes]] = ()


def text(
    body: str, status: int = 200, headers: Sequence[tuple[bytes, bytes]] = ()
) -> Response:
    """
    @return: A C{text/plain} response.
    """
    return Response(body.encode(), b"text/plain; charset=utf-8", status, headers)
