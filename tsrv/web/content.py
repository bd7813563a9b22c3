"""
Reads the input of clients: JSON bodies, forms, queries and conditions.

A L{msgspec.Struct} defines the fields of a body or a query. The same struct
validates the input here and describes it in an OpenAPI document. An error names the
JSON pointer or the parameter, and the reason; it never repeats the input.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from http import HTTPStatus
from typing import Any, Final, TypeVar, cast

from twisted.web.http import parse_qs
from twisted.web.server import Request

from ..extras import needs
from .message import Response
from .problems import HTTPError

with needs("server"):
    import msgspec

__all__ = [
    "FORM",
    "Invalid",
    "PreconditionFailed",
    "matchesAny",
    "mediaTypeOf",
    "readBody",
    "readQuery",
    "validate",
    "withETag",
]

_T = TypeVar("_T")

FORM: Final = "application/x-www-form-urlencoded"
"""
The media type of forms.
"""

MAX_CONTENT_TYPE_BYTES: Final = 256

MAX_CONDITION_BYTES: Final = 4096
"""
Maximum length of an C{If-Match} or C{If-None-Match} header.
"""


class Invalid(HTTPError):
    """
    A part of the request has an invalid value.

    @ivar reason: The reason, in a few words.
    """

    status = HTTPStatus.BAD_REQUEST

    def __init__(self, title: str, part: str, place: str, reason: str) -> None:
        """
        @param title: The title of the error, such as C{Invalid user}.
        @param part: C{"pointer"} or C{"parameter"}.
        @param place: The JSON pointer (RFC 6901), or the name of the parameter.
        @param reason: The reason, in a few words.
        """
        super().__init__(title)
        self.reason = reason
        self.members = {"errors": [{part: place, "detail": reason}]}


class PreconditionFailed(HTTPError):
    """
    The resource does not have the entity tag that the request expects.
    """

    status = HTTPStatus.PRECONDITION_FAILED

    def __init__(self) -> None:
        super().__init__("The resource has been changed in the meantime")


def readBody(
    request: Request,
    struct: type[_T],
    title: str,
    accepted: Sequence[str],
    header: bytes,
) -> _T:
    """
    Read and validate the body of a request, and release its memory.

    An example::

        class NewUser(msgspec.Struct, forbid_unknown_fields=True):
            name: str

        types = ["application/json"]
        user = readBody(request, NewUser, "Invalid user", types, b"Accept-Post")

    @param request: The request.
    @param struct: The type of the body, a L{msgspec.Struct}.
    @param title: The title of the error if the body is invalid.
    @param accepted: The accepted media types: L{FORM}, or types of JSON.
    @param header: The name of the header that lists the types in a 415 response:
        C{Accept-Post}, C{Accept-Patch} or C{Accept}.
    @return: The body as an instance of the struct, without unknown fields of a form.
    @raise HTTPError: The body has another media type, is compressed, or is not
        JSON.
    @raise Invalid: The body does not match the struct.
    """
    headers = request.requestHeaders
    types = headers.getRawHeaders(b"Content-Type", [])
    mediaType = mediaTypeOf(types[0], accepted) if len(types) == 1 else None
    if mediaType is None:
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
    if mediaType == FORM:
        fields = parse_qs(data, keep_blank_values=True)
        return _readArguments(fields, struct, title, "pointer")
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
    @param struct: The type of the parameters, a L{msgspec.Struct}. Unknown parameters
        are ignored.
    @return: The parameters as an instance of the struct.
    @raise Invalid: A parameter is repeated or has an invalid value.
    """
    return _readArguments(request.args or {}, struct, "Invalid query", "parameter")


def _readArguments(
    arguments: Mapping[bytes, Sequence[bytes]], struct: type[_T], title: str, part: str
) -> _T:
    fields: dict[str, str] = {}
    start = "/" if part == "pointer" else ""
    for name in _fieldNames(struct):
        values = arguments.get(name.encode("ascii"), [])
        if len(values) > 1:
            raise Invalid(title, part, start + name, "is repeated")
        if values:
            try:
                fields[name] = values[0].decode("utf-8")
            except UnicodeDecodeError:
                raise Invalid(title, part, start + name, "is not UTF-8") from None
    return validate(fields, struct, title, part, strict=False)


def validate(
    fields: Mapping[str, object],
    struct: type[_T],
    title: str,
    part: str = "pointer",
    strict: bool = True,
) -> _T:
    """
    Validate the values of fields.

    @param fields: Names and values of the fields.
    @param struct: The types of the fields, a L{msgspec.Struct}.
    @param title: The title of the error if a field is invalid.
    @param part: C{"pointer"} or C{"parameter"}.
    @param strict: Whether to refuse texts such as C{"1"} for numbers.
    @return: The fields as an instance of the struct.
    @raise Invalid: The fields do not match the struct.
    """
    try:
        return msgspec.convert(fields, struct, strict=strict)
    except msgspec.ValidationError as error:
        raise _invalid(struct, error, title, part) from None


# A decoder is expensive to make.
_decoderOf: Final = lru_cache(maxsize=64)(msgspec.json.Decoder)


def _fieldNames(struct: Any) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(struct)]


_PATH: Final = re.compile(r" - at .*`\$(.*)`\Z")

_STEP: Final = re.compile(r"\.(\w+)|\[(\w+)\]|\[\.\.\.\]")

_MISSING: Final = re.compile(r"Object missing required field `(\w+)`")

_POSITION: Final = re.compile(r".*: ([a-z0-9 -]+) \(byte (\d+)\)\Z")

_JSON_TYPES: Final = {"int": "integer", "str": "string", "bool": "boolean"}


def _invalid(
    struct: type[Any], error: Exception, title: str, part: str = "pointer"
) -> Invalid:
    place, reason = _explain(struct, str(error))
    return Invalid(title, part, place if part == "pointer" else place[1:], reason)


def _explain(struct: type[Any], message: str) -> tuple[str, str]:
    # Make a pointer and a reason from a message of msgspec, without the client's input.
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
            # The client chose the name of this member of a mapping.
            break
        pointer += f"/{name or index}"
    return pointer


def _descriptionOf(struct: type[Any], pointer: str) -> str:
    # The description of a field explains its pattern in words.
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


def mediaTypeOf(contentType: bytes, accepted: Sequence[str]) -> str | None:
    """
    Find the media type of a body.

    @param contentType: The value of C{Content-Type}.
    @param accepted: The accepted media types, in lower case.
    @return: The media type, in lower case; L{None} if it is not accepted, or if the
        charset is not UTF-8.
    """
    text = contentType.decode("latin-1")
    if text in accepted:
        return text
    if len(text) > MAX_CONTENT_TYPE_BYTES:
        return None
    mediaType, *parameters = text.lower().split(";")
    for parameter in parameters:
        name, _, value = parameter.strip().partition("=")
        if name == "charset" and value.strip('"') not in ("utf-8", "utf8"):
            return None
    mediaType = mediaType.strip()
    return mediaType if mediaType in accepted else None


# A list may have empty members, which are ignored.
_TAGS: Final = re.compile(r'[ \t,]*(W/)?("[\x21\x23-\x7e\x80-\xff]*")[ \t]*(?:,|\Z)')


def matchesAny(
    conditions: Sequence[bytes], tag: str, *, weakly: bool, unreadable: bool = False
) -> bool:
    """
    Compare an entity tag with the tags in a condition (RFC 9110, 8.8.3.2).

    @param conditions: The values of C{If-Match} or C{If-None-Match}.
    @param tag: The strong entity tag of the resource, with its quotes.
    @param weakly: Whether a weak tag of the client matches too.
    @param unreadable: The result for conditions that are malformed or too long.
    @return: Whether the tag is listed.
    """
    listed = b",".join(conditions).decode("latin-1").strip()
    if listed in ("*", tag):
        return True
    if len(listed) > MAX_CONDITION_BYTES:
        return unreadable
    at = 0
    while at < len(listed):
        found = _TAGS.match(listed, at)
        if found is None:
            return unreadable
        if found[2] == tag and (weakly or not found[1]):
            return True
        at = found.end()
    return False


def entityTagOf(body: bytes) -> str:
    """
    @param body: The body of a response.
    @return: A strong entity tag that is the same for the same body, with its quotes.
    """
    return f'"{blake2b(body, digest_size=12).hexdigest()}"'


def withETag(request: Request, tag: str, response: Response) -> Response:
    """
    Add an entity tag to a response. If the client already has the current
    representation, the response becomes one with status 304 and without a body.

    @param request: A GET or HEAD request.
    @param tag: The strong entity tag of the resource, with its quotes.
    @param response: The response with the current representation.
    @return: The response to send.
    @raise PreconditionFailed: C{If-Match} names only other representations.
    """
    conditions = request.requestHeaders
    wanted = conditions.getRawHeaders(b"If-Match")
    if wanted is not None and not matchesAny(wanted, tag, weakly=False):
        raise PreconditionFailed
    headers = [*response.headers, (b"ETag", tag.encode("ascii"))]
    known = conditions.getRawHeaders(b"If-None-Match")
    if known and matchesAny(known, tag, weakly=True):
        return Response(b"", b"", HTTPStatus.NOT_MODIFIED, headers)
    response.headers = headers
    return response
