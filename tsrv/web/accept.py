"""
Finds the media type that a client prefers: RFC 9110, 12.5.1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from twisted.web.server import Request

__all__ = ["preferredType", "prefersHTML"]

_MAX_HEADER_BYTES: Final = 1024

_QUALITY: Final = re.compile(r"0(\.\d*)?|1(\.0*)?", re.ASCII)


class _MediaRange(NamedTuple):
    type: str
    subtype: str
    parameters: dict[str, str]


def preferredType(
    headers: Sequence[bytes] | None, offered: Sequence[str]
) -> str | None:
    """
    Negotiate the type of a response. The most specific range that includes a type
    decides its quality. Among types of the same quality, the type with the most
    specific range wins; among several such types, the last one.

    @param headers: The values of C{Accept}; L{None} if the request has no such header.
    @param offered: The media types, in lower case. A parameter, as in
        C{text/plain;version=1}, excludes ranges that ask for another value.
    @return: The preferred type; L{None} if the headers accept none of the types, are
        missing or malformed, or have more than 1024 bytes.
    """
    accept = b",".join(headers or ())
    if len(accept) > _MAX_HEADER_BYTES:
        return None
    texts = filter(str.strip, accept.decode("latin-1").lower().split(","))
    try:
        ranges = [_parse(each) for each in texts]
    except ValueError:
        return None
    ranked = [(_rank(_parse(each), ranges), n) for n, each in enumerate(offered)]
    (quality, _), last = max(ranked)
    return offered[last] if quality > 0 else None


def prefersHTML(request: Request) -> bool:
    """
    Return whether a client prefers a page to JSON, as browsers do.

    @param request: The request of the client.
    """
    accept = request.requestHeaders.getRawHeaders(b"Accept")
    return preferredType(accept, ["text/html", "application/json"]) == "text/html"


def _parse(text: str) -> _MediaRange:
    name, *parameters = text.split(";")
    # URLConnection in Java sends a single star.
    mainType, subtype = ("*/*" if name.strip() == "*" else name).split("/")
    pairs = (each.partition("=") for each in parameters)
    values = {key.strip(): value.strip().strip('"') for key, _, value in pairs}
    return _MediaRange(mainType.strip(), subtype.strip(), values)


def _rank(offered: _MediaRange, ranges: Sequence[_MediaRange]) -> tuple[float, object]:
    best = ((False, False, 0), 0.0)
    for each in ranges:
        shared = each.parameters.keys() & offered.parameters.keys()
        if (
            each.type in ("*", offered.type)
            and each.subtype in ("*", offered.subtype)
            and all(each.parameters[p] == offered.parameters[p] for p in shared)
        ):
            specificity = (each.type != "*", each.subtype != "*", len(shared))
            text = each.parameters.get("q", "")
            quality = float(text) if _QUALITY.fullmatch(text) else 1.0
            best = max(best, (specificity, quality))
    return best[1], best[0]
