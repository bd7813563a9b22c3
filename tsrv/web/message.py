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
    A response with its whole body. L{AsyncResource<tsrv.web.responses.AsyncResource>}
    sends it.

    @ivar body: The body.
    @ivar contentType: The C{Content-Type} of the body.
    @ivar status: The HTTP status.
    @ivar headers: Names and values of further headers.
    """

    body: bytes
    contentType: bytes
    status: int = 200
    headers: Sequence[tuple[bytes, bytes]] = ()


def text(
    body: str, status: int = 200, headers: Sequence[tuple[bytes, bytes]] = ()
) -> Response:
    """
    Make a response of the type C{text/plain}, in UTF-8.

    @param body: The text.
    @param status: The HTTP status.
    @param headers: Names and values of further headers.
    @return: The response.
    """
    return Response(body.encode(), b"text/plain; charset=utf-8", status, headers)
