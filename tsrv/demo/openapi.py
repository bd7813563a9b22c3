"""
The description of what clients can ask for, in OpenAPI 3.1.

It is made of the limits by which requests are checked, so that the two cannot
differ.
"""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import Any, Final

from twisted.web.server import Request

from .. import __version__
from ..web.content import matchesAny
from ..web.responses import (
    AsyncResource,
    Response,
)
from .usersresource import (
    FIELDS,
    LARGEST_ID,
    MERGE_PATCH,
    MOST_USERS,
)

__all__ = ["Description", "describe"]

_Object = dict[str, Any]

_PROBLEM_TYPES: Final = ("application/problem+json", "text/plain", "text/html")


def _ref(kind: str, name: str) -> _Object:
    return {"$ref": f"#/components/{kind}/{name}"}


def _json(schema: _Object) -> _Object:
    return {"application/json": {"schema": schema}}


def _headers(*names: str) -> _Object:
    return {name: _ref("headers", name) for name in ("X-Request-ID", *names)}


def _problem(description: str, *headers: str) -> _Object:
    content: _Object = {
        kind: {"schema": {"type": "string"}} for kind in _PROBLEM_TYPES[1:]
    }
    content[_PROBLEM_TYPES[0]] = {"schema": _ref("schemas", "Problem")}
    return {
        "description": description,
        "headers": _headers(*headers),
        "content": content,
    }


_PROBLEMS: Final[_Object] = {
    "400": _problem("What was sent is not as it has to be."),
    "404": _problem("There is no such user."),
    "409": _problem("The address is in use."),
    "412": _problem("The user is not what the client takes it for."),
    "413": _problem("The body is too long."),
    "415": _problem("The body is of a type that is not understood here."),
    "500": _problem("Something went wrong; the log knows more."),
    "503": _problem(
        "Not now. With Retry-After the request has not been carried out; without it, "
        "it may have been.",
        "Retry-After",
    ),
}


def _responses(*statuses: str, **others: _Object) -> _Object:
    """
    @param statuses: Which problems there may be, beside those that there may
        always be.
    @param others: What else there may be, as C{status_200} and so on.
    """
    responses = {
        name.removeprefix("status_"): response for name, response in others.items()
    }
    for status in (*statuses, "500", "503"):
        responses[status] = _ref("responses", status)
    return dict(sorted(responses.items()))


def _user(description: str, *headers: str) -> _Object:
    return {
        "description": description,
        "headers": _headers("ETag", *headers),
        "content": _json(_ref("schemas", "User")),
        "links": {
            name: {"operationId": name, "parameters": {"id": "$response.body#/id"}}
            for name in ("getUser", "replaceUser", "changeUser", "deleteUser")
        },
    }


_NOT_MODIFIED: Final[_Object] = {
    "description": "It is what the client has already.",
    "headers": _headers("ETag"),
}

_IF_MATCH: Final = _ref("parameters", "If-Match")
_IF_NONE_MATCH: Final = _ref("parameters", "If-None-Match")


def _body(*kinds: str, schema: str) -> _Object:
    return {
        "required": True,
        "content": {kind: {"schema": _ref("schemas", schema)} for kind in kinds},
    }


_USERS: Final[_Object] = {
    "get": {
        "operationId": "listUsers",
        "summary": "List users, in the order of their numbers.",
        "parameters": [
            _ref("parameters", "after"),
            _ref("parameters", "limit"),
            _IF_NONE_MATCH,
        ],
        "responses": _responses(
            "400",
            status_200={
                "description": "Users; the header Link says where the next are.",
                "headers": _headers("ETag", "Link"),
                "content": _json(
                    {
                        "type": "array",
                        "maxItems": MOST_USERS,
                        "items": _ref("schemas", "User"),
                    }
                ),
            },
            status_304=_NOT_MODIFIED,
        ),
    },
    "post": {
        "operationId": "createUser",
        "summary": "Make a user.",
        "requestBody": _body("application/json", schema="NewUser"),
        "responses": _responses(
            "400",
            "409",
            "413",
            "415",
            status_201=_user("The new user.", "Location"),
        ),
    },
}

_CHANGED: Final = ("400", "404", "409", "412", "413", "415")

_USER: Final[_Object] = {
    "parameters": [_ref("parameters", "id")],
    "get": {
        "operationId": "getUser",
        "summary": "Show a user.",
        "parameters": [_IF_MATCH, _IF_NONE_MATCH],
        "responses": _responses(
            "404", "412", status_200=_user("The user."), status_304=_NOT_MODIFIED
        ),
    },
    "put": {
        "operationId": "replaceUser",
        "summary": "Replace what is known of a user.",
        "parameters": [_IF_MATCH, _IF_NONE_MATCH],
        "requestBody": _body("application/json", schema="NewUser"),
        "responses": _responses(*_CHANGED, status_200=_user("The user as it is now.")),
    },
    "patch": {
        "operationId": "changeUser",
        "summary": "Replace a part of it, as RFC 7396 has it.",
        "parameters": [_IF_MATCH, _IF_NONE_MATCH],
        "requestBody": _body(MERGE_PATCH, "application/json", schema="UserPatch"),
        "responses": _responses(*_CHANGED, status_200=_user("The user as it is now.")),
    },
    "delete": {
        "operationId": "deleteUser",
        "summary": "Delete a user.",
        "parameters": [_IF_MATCH, _IF_NONE_MATCH],
        "responses": _responses(
            "404",
            "412",
            status_204={"description": "It is deleted.", "headers": _headers()},
        ),
    },
}

_SAY: Final[_Object] = {
    "get": {
        "operationId": "say",
        "summary": "Ask the clock, which may have to start first.",
        "responses": _responses(
            status_200={
                "description": "What it has to say.",
                "headers": _headers(),
                "content": {"text/plain": {"schema": {"type": "string"}}},
            }
        ),
    }
}

_DESCRIPTION: Final[_Object] = {
    "get": {
        "operationId": "describe",
        "summary": "This description.",
        "parameters": [_IF_NONE_MATCH],
        "responses": {
            "200": {
                "description": "The description.",
                "headers": _headers("ETag"),
                "content": _json({"type": "object"}),
            },
            "304": _NOT_MODIFIED,
        },
    }
}


def _fields() -> _Object:
    examples = {"name": "Ada", "email": "ada@example.org"}
    return {
        name: {
            "type": "string",
            "minLength": field.least,
            "maxLength": field.most,
            "pattern": field.pattern,
            "examples": [examples[name]],
        }
        for name, field in FIELDS.items()
    }


_ID: Final[_Object] = {
    "type": "integer",
    "format": "int64",
    "minimum": 1,
    "maximum": LARGEST_ID,
}


def _schemas() -> _Object:
    strings = {"type": "string"}
    return {
        "User": {
            "type": "object",
            "properties": {"id": _ID, **_fields()},
            "required": ["id", *FIELDS],
            "additionalProperties": False,
        },
        "NewUser": {
            "type": "object",
            "properties": _fields(),
            "required": list(FIELDS),
            "additionalProperties": False,
        },
        "UserPatch": {
            "type": "object",
            "properties": _fields(),
            "additionalProperties": False,
        },
        "Problem": {
            "description": "RFC 9457, with the member error for simpler clients.",
            "type": "object",
            "properties": {
                "type": strings,
                "title": strings,
                "status": {"type": "integer"},
                "detail": strings,
                "error": strings,
                "requestId": strings,
                "errors": {
                    "description": "What is wrong where, as JSON pointers.",
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {
                            "pointer": strings,
                            "parameter": strings,
                            "detail": strings,
                        },
                        "required": ["detail"],
                    },
                },
            },
            "required": ["type", "title", "status", "detail", "error", "requestId"],
        },
    }


def _parameters() -> _Object:
    number = {**_ID, "minimum": 0}
    tags = {"type": "string", "examples": ['"1"', "*"]}
    return {
        "id": {"name": "id", "in": "path", "required": True, "schema": _ID},
        "after": {
            "name": "after",
            "in": "query",
            "description": "The number of the user behind whom to begin.",
            "schema": {**number, "default": 0},
        },
        "limit": {
            "name": "limit",
            "in": "query",
            "description": "How many users there may be.",
            "schema": {
                "type": "integer",
                "minimum": 1,
                "maximum": MOST_USERS,
                "default": MOST_USERS,
            },
        },
        "If-Match": {
            "name": "If-Match",
            "in": "header",
            "description": "Only if it still has one of these entity tags.",
            "schema": tags,
        },
        "If-None-Match": {
            "name": "If-None-Match",
            "in": "header",
            "description": "Only if it has none of these entity tags.",
            "schema": tags,
        },
    }


def _headerObjects() -> _Object:
    meanings = {
        "X-Request-ID": "What the request is called in the log.",
        "ETag": "The version of what is answered.",
        "Link": "Where the next users are.",
        "Location": "Where the new user is.",
        "Retry-After": "After how many seconds to try again.",
    }
    return {
        name: {
            "description": meaning,
            "schema": {"type": "integer" if name == "Retry-After" else "string"},
            "required": name == "X-Request-ID",
        }
        for name, meaning in meanings.items()
    }


def describe() -> _Object:
    """
    @return: The description.
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tsrv",
            "version": __version__,
            "description": "A server that answers what comes too early when it can.",
        },
        "paths": {
            "/say": _SAY,
            "/users": _USERS,
            "/users/{id}": _USER,
            "/openapi.json": _DESCRIPTION,
        },
        "components": {
            "schemas": _schemas(),
            "parameters": _parameters(),
            "headers": _headerObjects(),
            "responses": _PROBLEMS,
        },
    }


class Description(AsyncResource):
    """
    C{/openapi.json}.
    """

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self._body = json.dumps(describe(), indent=1).encode()
        self._tag = f'"{blake2b(self._body, digest_size=12).hexdigest()}"'

    def render_GET(self, request: Request) -> Response:
        """
        Show the description.
        """
        headers = [(b"ETag", self._tag.encode("ascii"))]
        known = request.requestHeaders.getRawHeaders(b"If-None-Match") or []
        if known and matchesAny(known, self._tag, weakly=True):
            return Response(b"", b"", 304, headers)
        return Response(self._body, b"application/json", headers=headers)
