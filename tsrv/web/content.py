"""
What clients send: JSON bodies, queries and conditions.

A L{msgspec.Struct} says what a body or a query looks like. The same struct
validates it here and describes it in an OpenAPI document. An error names the
JSON pointer or the parameter and the reason; it never repeats what was sent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final, TypeVar, cast

import msgspec
from twisted.web.server import Request

from .message import Response
from .problems import HTTPError

__all__ = [
    "Invalid",
    "matchesAny",
    "readJSON",
    "readQuery",
    "validate",
    "withETag",
]

_T = TypeVar("_T")

MAX_CONTENT_TYPE_BYTES: Final = 256

MAX_CONDITION_BYTES: Final = 4096
"""
Maximum length of an C{If-Match} or C{If-None-Match} header.
"""


class Invalid(HTTPError):
    """
    A part of the request has an invalid value.

    @ivar reason: What is wrong with it.
    """

    status = HTTPStatus.BAD_REQUEST

    def __init__(self, title: str, part: str, place: str, reason: str) -> None:
        """
        @param title: What is invalid, in a few words: C{Invalid user}.
        @param part: C{"pointer"} or C{"parameter"}.
        @param place: The JSON pointer (RFC 6901), or the name of the parameter.
        @param reason: What is wrong there.
        """
        super().__init__(title)
        self.reason = reason
        self.members = {"errors": [{part: place, "detail": reason}]}


def readJSON(
    request: Request,
    struct: type[_T],
    title: str,
    accepted: Sequence[str],
    header: bytes,
) -> _T:
    """
    Read and validate the body of a request, and release its memory.

    @param request: The request.
    @param struct: The type of the body, a L{msgspec.Struct}.
    @param title: The title of the error if the body is invalid.
    @param accepted: The accepted media types.
    @param header: The name of the header that lists them in a 415 response:
        C{Accept-Post}, C{Accept-Patch} or C{Accept}.
    @return: The body.
    @raise HTTPError: The body has another media type, is compressed, or is not
        JSON.
    @raise Invalid: The body does not match the struct.
    """
    headers = request.requestHeaders
    types = headers.getRawHeaders(b"Content-Type", [])
    if len(types) != 1 or not _isAccepted(types[0], accepted):
        raise HTTPError(
            f"The body must be {' or '.join(accepted)}, in UTF-8",
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            [(header, ", ".join(accepted).encode("ascii"))],
        )
    encodings = headers.getRawHeaders(b"Content-Encoding", [])
    if any(each.strip().lower() not in (b"", b"identity") for each in encodings):
        raise HTTPError(
            "The body must not be encoded",
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            [(b"Accept-Encoding", b"identity")],
        )
    content = request.content
    assert content is not None
    data = content.read()
    content.close()
    try:
        return cast(_T, _decoderOf(cast(Any, struct)).decode(data))
    except msgspec.ValidationError as error:
        raise _invalid(struct, error, title) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _notJSON(_jsonError(str(error))) from None
    except RecursionError:
        raise _notJSON("it is nested too deeply") from None


def readQuery(request: Request, struct: type[_T]) -> _T:
    """
    Read and validate the parameters in the query of a request.

    @param request: The request.
    @param struct: The parameters, a L{msgspec.Struct}. Others are ignored.
    @return: The parameters.
    @raise Invalid: A parameter is repeated or has an invalid value.
    """
    query: dict[str, str] = {}
    arguments: dict[bytes, list[bytes]] = request.args or {}
    for name in _fieldNames(struct):
        values = arguments.get(name.encode("ascii"), [])
        if len(values) > 1:
            raise Invalid("Invalid query", "parameter", name, "is repeated")
        if values:
            query[name] = values[0].decode("utf-8", "replace")
    try:
        return msgspec.convert(query, struct, strict=False)
    except msgspec.ValidationError as error:
        place, reason = _explain(struct, str(error))
        parameter = place.removeprefix("/")
        raise Invalid("Invalid query", "parameter", parameter, reason) from None


def validate(fields: Mapping[str, object], struct: type[_T], title: str) -> _T:
    """
    Validate the fields of a form.

    @param fields: The fields.
    @param struct: The type of the form, a L{msgspec.Struct}.
    @param title: The title of the error if the form is invalid.
    @raise Invalid: The fields do not match the struct.
    """
    try:
        return msgspec.convert(fields, struct)
    except msgspec.ValidationError as error:
        raise _invalid(struct, error, title) from None


# A decoder is expensive to make.
_decoderOf: Final = lru_cache(maxsize=64)(msgspec.json.Decoder)


def _fieldNames(struct: Any) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(struct)]


_PATH: Final = re.compile(r" - at .*`\$(.*)`\Z")

_STEP: Final = re.compile(r"\.(\w+)|\[(\w+)\]|\[\.\.\.\]")

_MISSING: Final = re.compile(r"Object missing required field `(\w+)`")

_POSITION: Final = re.compile(r".*: ([a-z0-9 -]+) \(byte (\d+)\)\Z")

_JSON_TYPES: Final = {"int": "integer", "str": "string", "bool": "boolean"}


def _invalid(struct: type[Any], error: Exception, title: str) -> Invalid:
    place, reason = _explain(struct, str(error))
    return Invalid(title, "pointer", place, reason)


def _explain(struct: type[Any], message: str) -> tuple[str, str]:
    # A pointer and a reason from a message of msgspec, without what was sent.
    found = _PATH.search(message)
    pointer = "" if found is None else _pointerFrom(found[1])
    message = _PATH.sub("", message)
    if (missing := _MISSING.match(message)) is not None:
        return f"{pointer}/{missing[1]}", "is missing"
    if "unknown field" in message:
        if pointer:
            return pointer, "has an unknown member"
        return pointer, f"has members other than {' and '.join(_fieldNames(struct))}"
    if "matching regex" in message:
        return pointer, _descriptionOf(struct, pointer)
    if message.startswith("Expected") or message.endswith("out of range"):
        words = (_JSON_TYPES.get(word, word) for word in re.split(r"`|\b", message))
        return pointer, "".join(words)
    return pointer, "is invalid"


def _pointerFrom(path: str) -> str:
    pointer = ""
    for name, index in _STEP.findall(path):
        if not (name or index):
            # A member of a mapping, whose name the client chose.
            break
        pointer += f"/{name or index}"
    return pointer


def _descriptionOf(struct: type[Any], pointer: str) -> str:
    # The description of a field says in words what its pattern is.
    schema = msgspec.json.schema(struct)
    name = schema.get("$ref", "").rpartition("/")[2]
    properties = schema.get("$defs", {}).get(name, {}).get("properties", {})
    description = properties.get(pointer.removeprefix("/"), {}).get("description")
    return "is invalid" if description is None else f"Expected {description}"


def _notJSON(reason: str) -> HTTPError:
    return HTTPError(f"The body is not JSON: {reason}", HTTPStatus.BAD_REQUEST)


def _jsonError(message: str) -> str:
    if (found := _POSITION.match(message)) is not None:
        return f"{found[1]} at byte {found[2]}"
    return "it is truncated" if "truncated" in message else "it is not UTF-8"


def _isAccepted(contentType: bytes, accepted: Sequence[str]) -> bool:
    if contentType == b"application/json":
        return "application/json" in accepted
    if len(contentType) > MAX_CONTENT_TYPE_BYTES:
        return False
    kind, *parameters = contentType.decode("latin-1").lower().split(";")
    for parameter in parameters:
        name, _, value = parameter.strip().partition("=")
        if name == "charset" and value.strip('"') not in ("utf-8", "utf8"):
            return False
    return kind.strip() in accepted


# A list may have empty members, which mean nothing.
_TAGS: Final = re.compile(r'[ \t,]*(W/)?("[\x21\x23-\x7e\x80-\xff]*")[ \t]*(?:,|\Z)')


def matchesAny(conditions: Sequence[bytes], tag: str, *, weakly: bool) -> bool:
    """
    Compare an entity tag with those of a condition (RFC 9110, 8.8.3.2).

    @param conditions: The values of C{If-Match} or C{If-None-Match}.
    @param tag: The strong entity tag of the resource, with its quotes.
    @param weakly: Whether a weak tag of the client matches too.
    @return: Whether the tag is listed. Malformed conditions match nothing.
    """
    listed = b",".join(conditions).decode("latin-1").strip()
    if listed in ("*", tag):
        return True
    if len(listed) > MAX_CONDITION_BYTES:
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


def withETag(request: Request, tag: str, response: Response) -> Response:
    """
    Return a response with an entity tag; without its body and with status 304 if
    the client has the current representation already.

    @param request: A GET or HEAD request.
    @param tag: The strong entity tag of the resource, with its quotes.
    """
    headers = [*response.headers, (b"ETag", tag.encode("ascii"))]
    known = request.requestHeaders.getRawHeaders(b"If-None-Match")
    if known and matchesAny(known, tag, weakly=True):
        return Response(b"", b"", HTTPStatus.NOT_MODIFIED, headers)
    response.headers = headers
    return response
