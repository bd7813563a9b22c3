"""
The description of the server in OpenAPI 3.1.

The schemas are generated from the structs that validate requests and encode
responses, so the two cannot differ. The description has the routes of its own site, and
those for operators. If these are on another endpoint, they name its address.
"""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any, Final

import msgspec
from msgspec import Struct
from twisted.web.resource import Resource
from twisted.web.server import Request

from .. import __version__
from ..starting.report import Report
from ..web.content import FORM, entityTagOf, withETag
from ..web.responses import AsyncResource, Response
from .descriptions import (
    HTML,
    JSON,
    NOT_MODIFIED,
    SEE_OTHER,
    TEXT,
    Module,
    NotReady,
    Object,
    Problem,
    contentOf,
    describeComponents,
    describeOperation,
    describeProblem,
    describeResponse,
    describeSchemas,
    refer,
    schemaOf,
)
from .userroutes import MAX_USERS_PER_PAGE, MERGE_PATCH, PageQuery
from .users import NewUser, User, UserPatch
from .visitors import LoggedIn, LoginBody, Token, VisitCount, Visitor

__all__ = ["Description", "describe"]

_SESSION: Final[list[Object]] = [{"session": []}, {"localSession": []}, {}]
"""
Either cookie, or no cookie: every visitor may have a session.
"""

_CONDITIONS: Final = ("If-Match", "If-None-Match")

_ELSEWHERE: Final = [
    {
        "url": "http://{operations}",
        "description": "The endpoint for operators (--operations-listen).",
        "variables": {"operations": {"default": "localhost:8001"}},
    }
]


def _userResponse(description: str, *headers: str) -> Object:
    links = {
        name: {"operationId": name, "parameters": {"id": "$response.body#/id"}}
        for name in ("getUser", "replaceUser", "changeUser", "deleteUser")
    }
    content = contentOf(schemaOf(User), JSON)
    response = describeResponse(description, "ETag", *headers, content=content)
    return response | {"links": links}


def _visitorResponse(description: str, struct: type[Struct], *types: str) -> Object:
    content = contentOf(schemaOf(struct), JSON) | contentOf(TEXT, *types)
    return describeResponse(description, "Set-Cookie", content=content)


def _visitorOperation(name: str, *described: Any, **more: Any) -> Object:
    if name in ("logIn", "logOut"):
        more |= {"problems": (403,), "parameters": ("Origin", "X-CSRF-Token")}
    more["problems"] = (429, *more.get("problems", ()))
    return describeOperation(name, *described, **more) | {"security": _SESSION}


def _page(name: str, summary: str, mediaType: str) -> Object:
    """
    Describe a page that the server sends only to clients that do not have it.
    """
    schema = {"type": "object"} if mediaType == JSON else TEXT
    found = describeResponse(summary, "ETag", content=contentOf(schema, mediaType))
    responses = {200: found, 304: NOT_MODIFIED}
    return {"get": describeOperation(name, summary, responses, (412,), _CONDITIONS)}


def _clock() -> Object:
    said = describeResponse(
        "The current time, as text.", content=contentOf(TEXT, "text/plain")
    )
    summary = "Get the time. The request waits until the clock is ready."
    return {
        "/say": {"get": describeOperation("say", summary, {200: said})},
        "/openapi.json": _page("describe", "This description.", JSON),
    }


def _users() -> Object:
    users = {"type": "array", "maxItems": MAX_USERS_PER_PAGE, "items": schemaOf(User)}
    page = describeResponse(
        "A page of users. The header Link names the next page.",
        *("ETag", "Link"),
        content=contentOf(users, JSON),
    )
    changed = {200: _userResponse("The changed user.")}
    shown = {200: _userResponse("The user."), 304: NOT_MODIFIED}
    deleted = {204: describeResponse("The user is deleted.")}
    ofUser = partial(describeOperation, parameters=_CONDITIONS)
    return {
        "/users": {
            "get": describeOperation(
                "listUsers",
                "List users, in the order of their identifiers.",
                {200: page, 304: NOT_MODIFIED},
                (400, 412),
                (*PageQuery.__struct_fields__, *_CONDITIONS),
            ),
            "post": describeOperation(
                "createUser",
                "Add a user.",
                {201: _userResponse("The new user.", "Location")},
                (409,),
                body=(NewUser, JSON),
            ),
        },
        "/users/{id}": {
            "parameters": [refer("parameters", "id")],
            "get": ofUser("getUser", "Show a user.", shown, (404, 412)),
            "put": ofUser(
                "replaceUser",
                "Replace all fields of a user.",
                changed,
                (404, 409, 412),
                body=(NewUser, JSON),
            ),
            "patch": ofUser(
                "changeUser",
                "Replace some fields of a user (RFC 7396).",
                changed,
                (404, 409, 412),
                body=(UserPatch, MERGE_PATCH, JSON),
            ),
            "delete": ofUser("deleteUser", "Delete a user.", deleted, (404, 412)),
        },
    }


def _visitors() -> Object:
    count = _visitorResponse("The number of visits.", VisitCount, HTML)
    me = _visitorResponse("The visitor.", Visitor, HTML)
    form = _visitorResponse("The form for browsers, or a token.", Token, HTML)
    name = _visitorResponse("The name; null after the logout.", LoggedIn)
    operation = _visitorOperation
    return {
        "/visits": {"get": operation("visit", "Count a visit.", {200: count})},
        "/me": {
            "get": operation("showMe", "Show the visitor.", {200: me, 303: SEE_OTHER})
        },
        "/login": {
            "get": operation("showLogin", "Get the login form.", {200: form}),
            "post": operation(
                "logIn",
                "Log in with a name, without a password.",
                {200: name, 303: SEE_OTHER},
                body=(LoginBody, JSON, FORM),
            ),
        },
        "/logout": {
            "post": operation("logOut", "End the session.", {200: name, 303: SEE_OTHER})
        },
    }


def _operators() -> Object:
    plain = partial(contentOf, TEXT)
    alive = describeResponse("The process is alive.", content=plain("text/plain"))
    ready = describeResponse("The program is ready.", content=plain("text/plain"))
    formats = plain("text/plain", "application/openmetrics-text")
    report = describeResponse(
        "The report of the start-up.", content=contentOf(schemaOf(Report), JSON)
    )
    changed = contentOf(schemaOf(Module), JSON)
    actions = {
        "pause": "Hold the calls of a module.",
        "resume": "Run the held calls of a module.",
        "reset": "Close a module and initialise it again.",
    }
    routes = {
        f"/modules/{{name}}/{action}": {
            "parameters": [refer("parameters", "name")],
            "post": describeOperation(
                f"{action}Module",
                f"{summary} Only with --operations-listen.",
                {
                    200: describeResponse("The action is complete.", content=changed),
                    202: describeResponse("The action continues.", content=changed),
                    303: SEE_OTHER,
                },
                (*([400] if action == "pause" else []), 403, 404, 409),
                ("Origin", *(["wait"] if action == "pause" else [])),
            ),
        }
        for action, summary in actions.items()
    }
    return {
        "/": _page("showStatus", "The status page.", HTML),
        "/status": _page("showFragment", "The part of the page that changes.", HTML),
        "/status.css": _page("showStyle", "The style of the page.", "text/css"),
        "/status.js": _page("showScript", "The script of the page.", "text/javascript"),
        "/status.svg": _page("showIcon", "The icon of the page.", "image/svg+xml"),
        "/livez": {
            "get": describeOperation(
                "live", "Check that the reactor runs.", {200: alive}
            )
        },
        "/readyz": {
            "get": describeOperation(
                "ready",
                "Check that every required module is ready.",
                {
                    200: ready,
                    503: describeProblem("The program is not ready.", 503, NotReady),
                },
            )
        },
        "/startup": {
            "get": describeOperation(
                "report", "Get the report of the start-up.", {200: report}
            )
        },
        "/metrics": {
            "get": describeOperation(
                "measure",
                "Get the metrics for Prometheus.",
                {200: describeResponse("The metrics.", content=formats)},
            )
        },
        **routes,
    }


_TAGS: Final = {
    "clock": _clock,
    "users": _users,
    "visitors": _visitors,
    "operators": _operators,
}


def _pathsOf(root: Resource) -> Object:
    paths: Object = {}
    areOperatorsElsewhere = b"livez" not in root.children
    for tag, describeRoutes in _TAGS.items():
        for path, item in describeRoutes().items():
            isHere = path.split("/")[1].encode("ascii") in root.children
            isElsewhere = tag == "operators" and areOperatorsElsewhere
            if isHere or isElsewhere:
                methods = {
                    key: each if key == "parameters" else {"tags": [tag], **each}
                    for key, each in item.items()
                }
                paths[path] = methods | ({} if isHere else {"servers": _ELSEWHERE})
    return paths


def describe(root: Resource) -> Object:
    """
    Describe the server.

    @param root: The root of the site.
    """
    _, schemas = msgspec.json.schema_components(
        [
            *(User, NewUser, UserPatch, VisitCount, Visitor, Token, LoggedIn),
            *(LoginBody, Problem, NotReady, Report, Module),
        ],
        ref_template="#/components/schemas/{name}",
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tsrv",
            "version": __version__,
            "description": "A server that holds early requests until its modules are "
            "ready. It refuses malformed, slow and too long requests with 400, 408, "
            "413, 414, 431 or 503, and problem details.",
        },
        "tags": [{"name": each} for each in _TAGS],
        "paths": _pathsOf(root),
        "components": describeComponents(describeSchemas(schemas)),
    }


class Description(AsyncResource):
    """
    C{/openapi.json}. The first request makes the description.
    """

    def __init__(self, root: Resource) -> None:
        """
        @param root: The root of the site.
        """
        super().__init__()
        self._root = root

    @cached_property
    def _body(self) -> bytes:
        encoded = msgspec.json.encode(describe(self._root), order="deterministic")
        return msgspec.json.format(encoded, indent=1)

    @cached_property
    def _tag(self) -> str:
        return entityTagOf(self._body)

    def render_GET(self, request: Request) -> Response:
        """
        Show the description.
        """
        return withETag(request, self._tag, Response(self._body, JSON.encode()))
