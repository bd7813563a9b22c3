"""
What a client says that it accepts.
"""

from __future__ import annotations

import re
from typing import Final

from mimeparse import MimeTypeParseException, best_match
from twisted.web.server import Request

__all__ = ["mediaRanges", "prefersHTML", "refusedTypes"]

_LONGEST: Final = 1024
"""
How many bytes an C{Accept} header may have: a longer one is not worth the time
to read it.
"""

_REFUSED: Final = re.compile(r";\s*q\s*=\s*0(\.0*)?\s*(;|\Z)")
"""
What is not accepted at all. mimeparse takes it for what is accepted gladly.
"""


def mediaRanges(accept: bytes | None) -> list[str]:
    """
    @param accept: An C{Accept} header.
    @return: The media ranges in it that are accepted, in lower case; none where
        there are none, or too many.
    """
    return [each for each in _listed(accept) if not _REFUSED.search(each)]


def refusedTypes(accept: bytes | None) -> set[str]:
    """
    @param accept: An C{Accept} header.
    @return: The media types that it says are not accepted at all, though it may
        accept what they are a part of.
    """
    refused = filter(_REFUSED.search, _listed(accept))
    return {each.partition(";")[0].strip() for each in refused}


def prefersHTML(request: Request) -> bool:
    """
    @return: Whether a client likes a page better than JSON, as browsers do.
    """
    accept = b",".join(request.requestHeaders.getRawHeaders(b"Accept", []))
    try:
        offered = ["text/html", "application/json"]
        return bool(best_match(offered, ",".join(mediaRanges(accept))) == offered[0])
    except MimeTypeParseException:
        return False


def _listed(accept: bytes | None) -> list[str]:
    if accept is None or len(accept) > _LONGEST:
        return []
    ranges = accept.decode("latin-1").lower().split(",")
    return [each for each in ranges if each.strip()]
