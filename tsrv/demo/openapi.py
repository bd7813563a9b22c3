"""
The description of the server in OpenAPI 3.1.

The schemas are generated from the structs that validate requests, so the
description cannot differ from the checks.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Final

import msgspec
from msgspec import UNSET, Struct, UnsetType
from twisted.web.server import Request

from .. import __version__
from ..web.content import isNotModified
from ..web.responses import AsyncResource, Response
from .userroutes import MAX_USERS_PER_PAGE, MERGE_PATCH, PageQuery
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


def _ref(kind: str, name: str) -> _Object:
    return {"$ref": f"#/components/{kind}/{name}"}


def _headers(*names: str) -> _Object:
    return {name: _ref("headers", name) for name in ("X-Request-ID", *names)}


def _response(
    description: str, schema: _Object | None = None, *headers: str
) -> _Object:
    response: _Object = {"description": description, "headers": _headers(*headers)}
    if schema is not None:
        response["content"] = {"application/json": {"schema": schema}}
    return response


def _problem(description: str, *headers: str) -> _Object:
    response = _response(description, None, *headers)
    text = {"schema": {"type": "string"}}
    response["content"] = {
        "application/problem+json": {"schema": _ref("schemas", "Problem")},
        "text/plain": text,
        "text/html": text,
    }
    return response


_PROBLEMS: Final = {
    400: _problem("The request is invalid."),
    404: _problem("No user has this identifier."),
    409: _problem("The address is in use."),
    412: _problem("The user does not have the expected entity tag."),
    413: _problem("The body is too long."),
    415: _problem("The media type of the body is not supported."),
    500: _problem("Internal error; the log has the details."),
    503: _problem(
        "The service is not available. With Retry-After the request was not carried "
        "out; without it, the request may have been carried out.",
        "Retry-After",
    ),
}

_INVALID_BODY: Final = (400, 409, 413, 415)


def _operation(
    name: str,
    summary: str,
    responses: dict[int, _Object],
    problems: tuple[int, ...] = (),
    parameters: tuple[str, ...] = (),
    body: tuple[type[Struct], tuple[str, ...]] | None = None,
) -> _Object:
    """
    Describe one method of a route.

    @param responses: The successful responses.
    @param problems: The problems, beside 500 and 503.
    @param parameters: Names of parameters.
    @param body: The struct of the body, and its media types.
    """
    listed = {
        **responses,
        **{status: _ref("responses", str(status)) for status in (*problems, 500, 503)},
    }
    operation: _Object = {
        "operationId": name,
        "summary": summary,
        "parameters": [_ref("parameters", each) for each in parameters],
        "responses": {str(status): listed[status] for status in sorted(listed)},
    }
    if body is not None:
        struct, types = body
        schema = {"schema": _ref("schemas", struct.__name__)}
        content = dict.fromkeys(types, schema)
        operation["requestBody"] = {"required": True, "content": content}
    return operation


_NOT_MODIFIED: Final = _response("The client has this version already.", None, "ETag")

_CONDITIONS: Final = ("If-Match", "If-None-Match")

_JSON: Final = ("application/json",)


def _userResponse(description: str, *headers: str) -> _Object:
    response = _response(description, _ref("schemas", "User"), "ETag", *headers)
    response["links"] = {
        name: {"operationId": name, "parameters": {"id": "$response.body#/id"}}
        for name in ("getUser", "replaceUser", "changeUser", "deleteUser")
    }
    return response


def _paths() -> _Object:
    users = {
        "type": "array",
        "maxItems": MAX_USERS_PER_PAGE,
        "items": _ref("schemas", "User"),
    }
    spoken = _response("What the clock says.")
    spoken["content"] = {"text/plain": {"schema": {"type": "string"}}}
    changed = {200: _userResponse("The changed user.")}
    conflicts = (404, 412, *_INVALID_BODY)
    return {
        "/say": {
            "get": _operation(
                "say", "Ask the clock. It may have to start.", {200: spoken}
            )
        },
        "/users": {
            "get": _operation(
                "listUsers",
                "List users, in the order of their identifiers.",
                {
                    200: _response(
                        "A page of users. The header Link names the next page.",
                        users,
                        "ETag",
                        "Link",
                    ),
                    304: _NOT_MODIFIED,
                },
                (400,),
                (*PageQuery.__struct_fields__, "If-None-Match"),
            ),
            "post": _operation(
                "createUser",
                "Add a user.",
                {201: _userResponse("The new user.", "Location")},
                _INVALID_BODY,
                body=(NewUser, _JSON),
            ),
        },
        "/users/{id}": {
            "parameters": [_ref("parameters", "id")],
            "get": _operation(
                "getUser",
                "Show a user.",
                {200: _userResponse("The user."), 304: _NOT_MODIFIED},
                (404, 412),
                _CONDITIONS,
            ),
            "put": _operation(
                "replaceUser",
                "Replace the fields of a user.",
                changed,
                conflicts,
                _CONDITIONS,
                (NewUser, _JSON),
            ),
            "patch": _operation(
                "changeUser",
                "Replace some fields of a user (RFC 7396).",
                changed,
                conflicts,
                _CONDITIONS,
                (UserPatch, (MERGE_PATCH, *_JSON)),
            ),
            "delete": _operation(
                "deleteUser",
                "Delete a user.",
                {204: _response("The user is deleted.")},
                (404, 412),
                _CONDITIONS,
            ),
        },
        "/openapi.json": {
            "get": _operation(
                "describe",
                "This description.",
                {
                    200: _response("The description.", {"type": "object"}, "ETag"),
                    304: _NOT_MODIFIED,
                },
                (),
                ("If-None-Match",),
            )
        },
    }


def _parameters() -> _Object:
    def parameter(name: str, place: str, schema: _Object) -> _Object:
        described: _Object = {"name": name, "in": place, "schema": schema}
        if "description" in schema:
            described["description"] = schema.pop("description")
        return described

    query = msgspec.json.schema(PageQuery)["$defs"]["PageQuery"]["properties"]
    tags = {"type": "string", "examples": ['"1"', "*"]}
    number = {"type": "integer", "format": "int64", "minimum": 1, "maximum": LARGEST_ID}
    return {
        "id": parameter("id", "path", number) | {"required": True},
        **{name: parameter(name, "query", schema) for name, schema in query.items()},
        "If-Match": parameter(
            "If-Match",
            "header",
            tags | {"description": "The user must have one of these entity tags."},
        ),
        "If-None-Match": parameter(
            "If-None-Match",
            "header",
            tags | {"description": "The resource must have none of these entity tags."},
        ),
    }


_HEADERS: Final = {
    "X-Request-ID": "The identifier of the request in the log.",
    "ETag": "The version of the resource.",
    "Link": "The next page.",
    "Location": "The path of the new user.",
    "Retry-After": "Seconds after which to retry.",
}


def describe() -> _Object:
    """
    Return the description.
    """
    structs = [User, NewUser, UserPatch, Problem]
    _, schemas = msgspec.json.schema_components(
        structs, ref_template="#/components/schemas/{name}"
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
            "headers": {
                name: {
                    "description": description,
                    "schema": {
                        "type": "integer" if name == "Retry-After" else "string"
                    },
                    "required": name == "X-Request-ID",
                }
                for name, description in _HEADERS.items()
            },
            "responses": {str(status): each for status, each in _PROBLEMS.items()},
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
        headers = [(b"ETag", self._tag.encode("ascii"))]
        if isNotModified(request, self._tag):
            return Response(b"", b"", 304, headers)
        return Response(self._body, b"application/json", headers=headers)
