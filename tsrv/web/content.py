"""
What a client sends: a body in JSON, and conditions on what is there already.

Errors say what is wrong and where, and never repeat what was sent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from math import isinf
from typing import Any, Final, NoReturn

from twisted.web.server import Request

from .problems import HTTPError

__all__ = [
    "EncodedContent",
    "Invalid",
    "NotJSON",
    "PreconditionFailed",
    "UnsupportedMediaType",
    "matchesAny",
    "readJSON",
]


class UnsupportedMediaType(HTTPError):
    """
    The body is of a kind that is not understood here.
    """

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE

    def __init__(self, header: bytes, accepted: Sequence[str]) -> None:
        """
        @param header: The name of the header that says what is accepted.
        @param accepted: The media types that are.
        """
        listed = ", ".join(accepted)
        super().__init__(f"The body has to be {' or '.join(accepted)}, in UTF-8")
        self.headers = [(header, listed.encode("ascii"))]


class EncodedContent(HTTPError):
    """
    The body is compressed, or encoded in another way.
    """

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    headers = ((b"Accept-Encoding", b"identity"),)

    def __init__(self) -> None:
        super().__init__("The body must not be encoded")


class NotJSON(HTTPError):
    """
    The body cannot be read.
    """

    status = HTTPStatus.BAD_REQUEST

    def __init__(self, why: str) -> None:
        """
        @param why: What is wrong with it.
        """
        super().__init__(f"The body is not JSON: {why}")


class Invalid(HTTPError):
    """
    Parts of what was sent are not as they have to be.
    """

    status = HTTPStatus.BAD_REQUEST

    def __init__(self, sentence: str, errors: Iterable[Mapping[str, str]]) -> None:
        """
        @param sentence: What it is about.
        @param errors: For each part a JSON pointer (RFC 6901) or the name of a
            parameter, and what is wrong.
        """
        super().__init__(sentence)
        self.members = {"errors": list(errors)}


class PreconditionFailed(HTTPError):
    """
    What is there is not what the client takes it for.
    """

    status = HTTPStatus.PRECONDITION_FAILED

    def __init__(self) -> None:
        super().__init__("It has been changed since")


_CHARSETS: Final = ("utf-8", "utf8")

_LENGTH: Final = 256
"""
How long a C{Content-Type} may be that is worth reading.
"""


class _Twice(ValueError):
    """
    A member is there twice.
    """


class _NoNumber(ValueError):
    """
    What only looks like a number.
    """


class _TooLarge(ValueError):
    """
    A number would be infinite.
    """


def readJSON(request: Request, accepted: Sequence[str], header: bytes) -> Any:
    """
    Read the body of a request, which does not keep it any longer.

    @param request: The request.
    @param accepted: The media types that are accepted.
    @param header: The header that tells these to who has sent another:
        C{Accept-Post}, C{Accept-Patch} or C{Accept}.
    @return: What JSON makes of it.
    @raise UnsupportedMediaType: It is of another type.
    @raise EncodedContent: It is compressed.
    @raise NotJSON: It cannot be read.
    """
    headers = request.requestHeaders
    types = headers.getRawHeaders(b"Content-Type", [])
    if len(types) != 1 or not _isAccepted(types[0], accepted):
        raise UnsupportedMediaType(header, accepted)
    encodings = headers.getRawHeaders(b"Content-Encoding", [])
    if any(each.strip().lower() not in (b"", b"identity") for each in encodings):
        raise EncodedContent
    content = request.content
    assert content is not None
    data = content.read()
    content.close()
    try:
        return _DECODER.decode(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise NotJSON("it is not UTF-8") from None
    except _Twice:
        raise NotJSON("an object has two members of one name") from None
    except _NoNumber:
        raise NotJSON("NaN and Infinity are no numbers") from None
    except _TooLarge:
        raise NotJSON("a number is too large") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise NotJSON(f"it cannot be understood at {where}") from None
    except RecursionError:
        raise NotJSON("it is nested too deeply") from None
    except ValueError:
        # Python reads no integers of thousands of digits.
        raise NotJSON("a number is too long") from None


def _isAccepted(contentType: bytes, accepted: Sequence[str]) -> bool:
    if contentType == b"application/json":
        return "application/json" in accepted
    if len(contentType) > _LENGTH:
        return False
    kind, *parameters = contentType.decode("latin-1").lower().split(";")
    for parameter in parameters:
        name, _, value = parameter.strip().partition("=")
        if name == "charset" and value.strip('"') not in _CHARSETS:
            return False
    return kind.strip() in accepted


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _Twice
    return members


def _noNumber(name: str) -> NoReturn:
    raise _NoNumber


def _finite(digits: str) -> float:
    number = float(digits)
    if isinf(number):
        raise _TooLarge
    return number


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_once, parse_constant=_noNumber, parse_float=_finite
)

# A list may have empty members, which mean nothing.
_TAGS: Final = re.compile(r'[ \t,]*(W/)?("[\x21\x23-\x7e\x80-\xff]*")[ \t]*(?:,|\Z)')

_MOST_TAGS: Final = 4096
"""
How long a list of tags may be that is worth reading.
"""


def matchesAny(conditions: Sequence[bytes], tag: str, *, weakly: bool) -> bool:
    """
    Compare the tag of what is there with those that a client has named, as RFC
    9110, 8.8.3.2, has it.

    @param conditions: The headers C{If-Match} or C{If-None-Match}.
    @param tag: The entity tag of what is there; with its quotes, and not weak.
    @param weakly: Whether a weak tag of the client matches too.
    @return: Whether it is among them. What cannot be understood matches
        nothing.
    """
    listed = b",".join(conditions).decode("latin-1").strip()
    if listed == "*":
        return True
    if listed == tag:
        return True
    if len(listed) > _MOST_TAGS:
        return False
    at = 0
    while at < len(listed):
        found = _TAGS.match(listed, at)
        if found is None:
            return False
        if found[2] == tag and (weakly or not found[1]):
            return True
        at = found.end()
    return False
