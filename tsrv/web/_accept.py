"""
What a client says that it accepts.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["mediaRanges"]

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
    if accept is None or len(accept) > _LONGEST:
        return []
    ranges = accept.decode("latin-1").lower().split(",")
    return [each for each in ranges if each.strip() and not _REFUSED.search(each)]
