"""
The parts of the description in OpenAPI. Docstrings of structs appear in it.
"""

from __future__ import annotations

import re
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import UNSET, Struct, UnsetType

from . import userroutes, visitors
from .userroutes import PageQuery
from .users import LARGEST_ID

__all__ = [
    "HTML",
    "JSON",
    "NOT_MODIFIED",
    "SEE_OTHER",
    "TEXT",
    "Module",
    "NotReady",
    "Object",
    "Problem",
    "contentOf",
    "describeComponents",
    "describeOperation",
    "describeProblem",
    "describeResponse",
    "describeSchemas",
    "refer",
    "schemaOf",
]

Object: TypeAlias = dict[str, Any]
"""
A JSON object.
"""

_MEMBER: Final = re.compile(r" @ivar (\w+): ")
_MARKUP: Final = re.compile(r"\b[CL]\{([^}<]*)[^}]*\}")


class InvalidPart(Struct):
    """
    One error of a request: the reason, and the JSON pointer or the parameter.
    """

    detail: str
    pointer: str | UnsetType = UNSET
    parameter: str | UnsetType = UNSET


class Problem(Struct, kw_only=True):
    """
    Problem details (RFC 9457), with the member C{error} for simpler clients.
    """

    type: str
    title: str
    status: int
    detail: str
    error: str
    requestId: str
    errors: list[InvalidPart] | UnsetType = UNSET


class MissingModule(Struct):
    """
    A module that is not ready.
    """

    module: str
    state: str
    reason: str | None
    seconds: float


class NotReady(Problem, kw_only=True):
    """
    Problem details of a program that is not ready, with the modules that are missing.
    """

    state: str
    missing: list[MissingModule]


class Module(Struct):
    """
    A module after the action of an operator.
    """

    module: str
    status: str
    paused: bool
    queued: int
    inProgress: int


_HEADERS: Final = {
    "X-Request-ID": "The identifier of the request in the log.",
    "ETag": "The version of the resource.",
    "Link": "The next page of users.",
    "Location": "The path of the new user, or of the next page.",
    "Retry-After": "Number of seconds after which to retry.",
    "Set-Cookie": "The session, if it is new or has ended.",
}

_PROBLEMS: Final = {
    400: "The request is invalid.",
    403: "The request may come from another site, or a login does not use HTTPS.",
    404: "The user or the module does not exist.",
    409: "The address is in use, or the state of the module forbids the action.",
    412: "The resource does not have the expected entity tag.",
    413: f"The body is longer than {userroutes.MAX_BODY_BYTES:,} bytes (users) or "
    f"{visitors.MAX_BODY_BYTES:,} bytes (visitors).",
    415: "The media type of the body is not supported.",
    429: "There are too many new sessions.",
    500: "Internal error. The log has the details.",
    503: "The server cannot carry out the request now. With Retry-After, it has not "
    "carried out the request; without, it may have.",
}

JSON: Final = "application/json"

HTML: Final = "text/html"

TEXT: Final = {"type": "string"}

_SECURITY: Final = {
    name: {"type": "apiKey", "in": "cookie", "name": cookie, "description": text}
    for name, cookie, text in (
        ("session", "__Host-session", "The session of a visitor, over TLS."),
        ("localSession", "session", "The session on localhost, without TLS."),
    )
}


def refer(kind: str, name: str) -> Object:
    """
    Refer to a component.
    """
    return {"$ref": f"#/components/{kind}/{name}"}


def schemaOf(struct: type[Any]) -> Object:
    """
    Return the schema of a struct.
    """
    return refer("schemas", struct.__name__)


def describeSchemas(schemas: Object) -> Object:
    """
    Turn the docstrings of structs into plain descriptions of schemas and properties.

    @param schemas: The schemas of msgspec, by name.
    """
    for schema in schemas.values():
        text = " ".join(schema["description"].replace("L{None}", "null").split())
        schema["description"], *members = _MEMBER.split(_MARKUP.sub(r"\1", text))
        for name, meaning in zip(members[::2], members[1::2], strict=True):
            schema["properties"][name]["description"] = meaning
    return schemas


def contentOf(schema: Object, *mediaTypes: str) -> Object:
    """
    Describe a body of one of several media types.
    """
    return {each: {"schema": schema} for each in mediaTypes}


def describeResponse(
    description: str, *headers: str, content: Object | None = None
) -> Object:
    """
    Describe a response.

    @param headers: Names of headers, besides C{X-Request-ID}.
    """
    sent = {name: refer("headers", name) for name in ("X-Request-ID", *headers)}
    response: Object = {"description": description, "headers": sent}
    return response | ({"content": content} if content else {})


def describeProblem(
    description: str, status: int, kind: type[Problem] = Problem
) -> Object:
    """
    Describe an error.

    @param kind: The struct of its problem details.
    """
    content = contentOf(TEXT, "text/plain", HTML)
    content |= contentOf(schemaOf(kind), "application/problem+json")
    headers = ["Retry-After"] if status in (429, 503) else []
    return describeResponse(description, *headers, content=content)


NOT_MODIFIED: Final = describeResponse("The client has this version already.", "ETag")

SEE_OTHER: Final = describeResponse(
    "Redirects a browser to another page.", "Location", "Set-Cookie"
)


def describeOperation(
    name: str,
    summary: str,
    responses: dict[int, Object],
    problems: tuple[int, ...] = (),
    parameters: tuple[str, ...] = (),
    body: tuple[type[Struct], *tuple[str, ...]] | None = None,
) -> Object:
    """
    Describe one method of a route.

    @param responses: The responses that only this operation has.
    @param problems: The statuses of errors, except 500, 503 and errors of the body.
    @param parameters: Names of parameters.
    @param body: The struct of the body, and its media types.
    """
    if body is not None:
        problems += (400, 413, 415)
    shared = {each: refer("responses", str(each)) for each in (*problems, 500, 503)}
    operation: Object = {
        "operationId": name,
        "summary": summary,
        "parameters": [refer("parameters", each) for each in parameters],
        "responses": {str(key): each for key, each in (shared | responses).items()},
    }
    if body is not None:
        struct, *types = body
        content = contentOf(schemaOf(struct), *types)
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _parameters() -> Object:
    id_ = {"type": "integer", "format": "int64", "minimum": 1, "maximum": LARGEST_ID}
    tags = {"type": "string", "examples": ['"1"', "*"]}
    query = msgspec.json.schema(PageQuery)["$defs"]["PageQuery"]["properties"]
    described: Object = {
        "id": {"in": "path", "required": True, "schema": id_},
        "name": {"in": "path", "required": True, "schema": TEXT},
        "wait": {
            "in": "query",
            "description": "Maximum number of seconds to wait for calls in progress.",
            "schema": {"type": "integer", "minimum": 0, "maximum": 300},
        },
    }
    for name, schema, text in (
        ("If-Match", tags, "The resource must have one of these entity tags."),
        ("If-None-Match", tags, "The resource must have none of these entity tags."),
        ("Origin", TEXT, "The origin of this site. Browsers send it."),
        ("X-CSRF-Token", TEXT, "The token of the session, instead of Origin."),
    ):
        described[name] = {"in": "header", "description": text, "schema": schema}
    for name, schema in query.items():
        description = schema.pop("description")
        described[name] = {"in": "query", "description": description, "schema": schema}
    return {name: {"name": name, **each} for name, each in described.items()}


def _header(name: str, description: str) -> Object:
    kind = {"type": "integer"} if name == "Retry-After" else TEXT
    required = name == "X-Request-ID"
    return {"description": description, "schema": kind, "required": required}


def describeComponents(schemas: Object) -> Object:
    """
    Return the components that operations refer to.
    """
    return {
        "schemas": schemas,
        "parameters": _parameters(),
        "headers": {name: _header(name, each) for name, each in _HEADERS.items()},
        "responses": {
            str(status): describeProblem(text, status)
            for status, text in _PROBLEMS.items()
        },
        "securitySchemes": _SECURITY,
    }
