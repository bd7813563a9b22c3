"""
The description of the server in OpenAPI 3.1.

The schemas are generated from the structs that validate requests, so the
description cannot differ from the checks.
"""

from __future__ import annotations

from functools import partial
from hashlib import blake2b
from typing import Any, Final

import msgspec
from msgspec import UNSET, Struct, UnsetType
from twisted.web.server import Request

from .. import __version__
from ..web.content import withETag
from ..web.responses import AsyncResource, Response
from .userroutes import MAX_BODY_BYTES, MAX_USERS_PER_PAGE, MERGE_PATCH, PageQuery
from .users import LARGEST_ID, NewUser, User, UserPatch

__all__ = ["Description", "describe"]

_Object = dict[str, Any]


class InvalidPart(Struct):
    """
    One error of a request: a JSON pointer or a parameter, and a reason.
    """

    detail: str
    pointer: str | UnsetType = UNSET
    parameter: str | UnsetType = UNSET


class Problem(Struct):
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


_HEADERS: Final = {
    "X-Request-ID": "The identifier of the request in the log.",
    "ETag": "The version of the resource.",
    "Link": "The next page.",
    "Location": "The path of the new user.",
    "Retry-After": "Seconds after which to retry.",
}

_PROBLEMS: Final = {
    400: "The request is invalid.",
    404: "No user has this identifier.",
    409: "The address is in use.",
    412: "The user does not have the expected entity tag.",
    413: f"The body is longer than {MAX_BODY_BYTES:,} bytes.",
    415: "The media type of the body is not supported.",
    500: "Internal error; the log has the details.",
    503: "The service is not available. With Retry-After the request was not carried "
    "out; without it, the request may have been carried out.",
}

_JSON: Final = "application/json"

_TEXT: Final = {"type": "string"}


def _ref(kind: str, name: str) -> _Object:
    return {"$ref": f"#/components/{kind}/{name}"}


def _content(schema: _Object, *mediaTypes: str) -> _Object:
    return {"content": {each: {"schema": schema} for each in mediaTypes}}


def _response(description: str, *headers: str) -> _Object:
    sent = {name: _ref("headers", name) for name in ("X-Request-ID", *headers)}
    return {"description": description, "headers": sent}


def _problem(status: int) -> _Object:
    response = _response(_PROBLEMS[status], *(["Retry-After"] if status == 503 else []))
    content = _content(_TEXT, "text/plain", "text/html")
    problem = _content(_ref("schemas", "Problem"), "application/problem+json")
    content["content"].update(problem["content"])
    return response | content


def _userResponse(description: str, *headers: str) -> _Object:
    links = {
        name: {"operationId": name, "parameters": {"id": "$response.body#/id"}}
        for name in ("getUser", "replaceUser", "changeUser", "deleteUser")
    }
    response = _response(description, "ETag", *headers)
    return response | _content(_ref("schemas", "User"), _JSON) | {"links": links}


_NOT_MODIFIED: Final = _response("The client has this version already.", "ETag")


def _operation(
    name: str,
    summary: str,
    responses: dict[int, _Object],
    problems: tuple[int, ...] = (),
    parameters: tuple[str, ...] = (),
    body: tuple[type[Struct], *tuple[str, ...]] | None = None,
) -> _Object:
    """
    Describe one method of a route.

    @param responses: The successful responses.
    @param problems: The problems, beside those of the body, 500 and 503.
    @param parameters: Names of parameters.
    @param body: The struct of the body, and its media types.
    """
    if body is not None:
        problems += (400, 409, 413, 415)
    shared = {each: _ref("responses", str(each)) for each in (*problems, 500, 503)}
    operation: _Object = {
        "operationId": name,
        "summary": summary,
        "parameters": [_ref("parameters", each) for each in parameters],
        "responses": {str(key): each for key, each in (responses | shared).items()},
    }
    if body is not None:
        struct, *types = body
        content = _content(_ref("schemas", struct.__name__), *types)
        operation["requestBody"] = {"required": True, **content}
    return operation


def _paths() -> _Object:
    user = _ref("schemas", "User")
    users = {"type": "array", "maxItems": MAX_USERS_PER_PAGE, "items": user}
    page = _response(
        "A page of users. The header Link names the next page.", "ETag", "Link"
    )
    said = _response("What the clock says.") | _content(_TEXT, "text/plain")
    description = _response("The description.", "ETag")
    changed = {200: _userResponse("The changed user.")}
    shown = {200: _userResponse("The user."), 304: _NOT_MODIFIED}
    deleted = {204: _response("The user is deleted.")}
    conditions = ("If-Match", "If-None-Match")
    ofUser = partial(_operation, problems=(404, 412), parameters=conditions)
    return {
        "/say": {
            "get": _operation(
                "say", "Ask the clock. It may have to start.", {200: said}
            )
        },
        "/users": {
            "get": _operation(
                "listUsers",
                "List users, in the order of their identifiers.",
                {200: page | _content(users, _JSON), 304: _NOT_MODIFIED},
                (400,),
                (*PageQuery.__struct_fields__, "If-None-Match"),
            ),
            "post": _operation(
                "createUser",
                "Add a user.",
                {201: _userResponse("The new user.", "Location")},
                body=(NewUser, _JSON),
            ),
        },
        "/users/{id}": {
            "parameters": [_ref("parameters", "id")],
            "get": ofUser("getUser", "Show a user.", shown),
            "put": ofUser(
                "replaceUser", "Replace all fields.", changed, body=(NewUser, _JSON)
            ),
            "patch": ofUser(
                "changeUser",
                "Replace some fields (RFC 7396).",
                changed,
                body=(UserPatch, MERGE_PATCH, _JSON),
            ),
            "delete": ofUser("deleteUser", "Delete a user.", deleted),
        },
        "/openapi.json": {
            "get": _operation(
                "describe",
                "This description.",
                {
                    200: description | _content({"type": "object"}, _JSON),
                    304: _NOT_MODIFIED,
                },
                parameters=("If-None-Match",),
            )
        },
    }


def _parameters() -> _Object:
    id_ = {"type": "integer", "format": "int64", "minimum": 1, "maximum": LARGEST_ID}
    tags = {"type": "string", "examples": ['"1"', "*"]}
    query = msgspec.json.schema(PageQuery)["$defs"]["PageQuery"]["properties"]
    described: _Object = {
        "id": {"in": "path", "required": True, "schema": id_},
        "If-Match": {
            "in": "header",
            "description": "The user must have one of these entity tags.",
            "schema": tags,
        },
        "If-None-Match": {
            "in": "header",
            "description": "The resource must have none of these entity tags.",
            "schema": tags,
        },
    }
    for name, schema in query.items():
        description = schema.pop("description")
        described[name] = {"in": "query", "description": description, "schema": schema}
    return {name: {"name": name, **each} for name, each in described.items()}


def _header(name: str, description: str) -> _Object:
    kind = {"type": "integer"} if name == "Retry-After" else _TEXT
    required = name == "X-Request-ID"
    return {"description": description, "schema": kind, "required": required}


def describe() -> _Object:
    """
    Return the description.
    """
    _, schemas = msgspec.json.schema_components(
        [User, NewUser, UserPatch, Problem], ref_template="#/components/schemas/{name}"
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tsrv",
            "version": __version__,
            "description": "A server that holds early requests until it is ready.",
        },
        "paths": _paths(),
        "components": {
            "schemas": schemas,
            "parameters": _parameters(),
            "headers": {name: _header(name, each) for name, each in _HEADERS.items()},
            "responses": {str(status): _problem(status) for status in _PROBLEMS},
        },
    }


class Description(AsyncResource):
    """
    C{/openapi.json}.
    """

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        encoded = msgspec.json.encode(describe(), order="deterministic")
        self._body = msgspec.json.format(encoded, indent=1)
        self._tag = f'"{blake2b(self._body, digest_size=12).hexdigest()}"'

    def render_GET(self, request: Request) -> Response:
        """
        Show the description.
        """
        return withETag(request, self._tag, Response(self._body, _JSON.encode()))
