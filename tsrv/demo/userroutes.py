"""
C{/users} and C{/users/ID}.

The entity tag of a user is its version, which the database counts. A conditional
change is a compare and swap: the server checks the condition, then changes the user
if it still has the checked version. If the version is another one, the server checks
the condition again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from http import HTTPStatus
from typing import Annotated, Final, TypeVar

from msgspec import Meta, Struct
from msgspec.json import Encoder
from twisted.internet.defer import Deferred
from twisted.web.resource import Resource
from twisted.web.server import Request

from ..web.content import (
    PreconditionFailed,
    entityTagOf,
    matchesAny,
    readBody,
    readQuery,
    withETag,
)
from ..web.problems import HTTPError
from ..web.responses import AsyncResource, Response
from .names import normalize
from .users import LARGEST_ID, NewUser, User, UserPatch, Users, VersionedUser

__all__ = ["MAX_USERS_PER_PAGE", "MERGE_PATCH", "PageQuery", "UsersResource"]

_T = TypeVar("_T")

_Fields = TypeVar("_Fields", bound=Struct)

MAX_USERS_PER_PAGE: Final = 1_000
"""
Maximum number of users in one response.
"""

MAX_BODY_BYTES: Final = 16 * 1024
"""
Maximum length of the JSON of a user, in bytes. The longest user takes 5 KiB if every
character is escaped.
"""

MERGE_PATCH: Final = "application/merge-patch+json"
"""
The media type of RFC 7396.
"""

_JSON: Final = "application/json"

_INVALID: Final = "Invalid user"


class PageQuery(Struct, frozen=True):
    """
    The query of C{/users}.
    """

    after: Annotated[
        int,
        Meta(
            ge=0,
            le=LARGEST_ID,
            description="The identifier before the first user.",
            extra_json_schema={"format": "int64"},
        ),
    ] = 0
    limit: Annotated[
        int, Meta(ge=1, le=MAX_USERS_PER_PAGE, description="Maximum number of users.")
    ] = MAX_USERS_PER_PAGE


_userNotFound: Final = partial(HTTPError, "User not found", HTTPStatus.NOT_FOUND)

_encode: Final = Encoder().encode


def _userResponse(found: VersionedUser) -> Response:
    headers = [(b"ETag", _tagOf(found).encode("ascii"))]
    return Response(_encode(found.user), b"application/json", headers=headers)


def _createdResponse(created: VersionedUser) -> Response:
    response = _userResponse(created)
    response.status = HTTPStatus.CREATED
    location = b"/users/%d" % created.user.id
    response.headers = [*response.headers, (b"Location", location)]
    return response


def _readUser(
    request: Request, struct: type[_Fields], accepted: Sequence[str], header: bytes
) -> _Fields:
    return normalize(readBody(request, struct, _INVALID, accepted, header), _INVALID)


def _tagOf(found: VersionedUser) -> str:
    return f'"{found.version}"'


class _DescribedResource(AsyncResource):
    """
    A resource whose response to OPTIONS lists its methods and media types.
    """

    accepts: tuple[bytes, bytes]

    maxBodyBytes = MAX_BODY_BYTES

    def render_OPTIONS(self, request: Request) -> Response:
        """
        List the methods and the accepted media types.
        """
        allowed = ", ".join(self.supportedMethods()).encode("ascii")
        return Response(b"", b"", 204, [(b"Allow", allowed), self.accepts])


class UsersResource(_DescribedResource):
    """
    C{/users}: all users.
    """

    accepts = (b"Accept-Post", _JSON.encode())

    def __init__(self, users: Users) -> None:
        super().__init__()
        self._users = users

    def render_GET(self, request: Request) -> Deferred[Response]:
        """
        List users, in the order of their identifiers.
        """
        query = readQuery(request, PageQuery)
        # The query finds one more user if another page follows.
        users = self._users.page(query.after, query.limit + 1)
        return users.addCallback(_pageResponse, query.limit, request)

    def render_POST(self, request: Request) -> Deferred[Response]:
        """
        Add a user.
        """
        user = _readUser(request, NewUser, [_JSON], b"Accept-Post")
        return self._users.create(user).addCallback(_createdResponse)

    def getChild(self, path: bytes, request: Request) -> Resource:
        """
        Return the resource of one user.
        """
        # At most 19 digits, without leading zeros. No user has the identifier 0.
        isNumber = path.isdigit() and len(path) <= 19 and path[0] != ord("0")
        number = int(path) if isNumber else 0
        return UserResource(self._users, number if number <= LARGEST_ID else 0)


def _pageResponse(users: list[User], limit: int, request: Request) -> Response:
    headers = []
    if len(users) > limit:
        users = users[:limit]
        link = b'</users?after=%d&limit=%d>; rel="next"' % (users[-1].id, limit)
        headers.append((b"Link", link))
    body = _encode(users)
    response = Response(body, b"application/json", headers=headers)
    return withETag(request, entityTagOf(body), response)


class UserResource(_DescribedResource):
    """
    C{/users/ID}: one user.
    """

    route = "/users/{id}"

    accepts = (b"Accept-Patch", f"{MERGE_PATCH}, {_JSON}".encode())

    def __init__(self, users: Users, number: int) -> None:
        """
        @param number: The identifier of the user.
        """
        super().__init__()
        self._users = users
        self._number = number

    def render_GET(self, request: Request) -> Deferred[Response]:
        """
        Show the user.
        """
        return self._users.get(self._number).addCallback(_foundResponse, request)

    def render_PUT(self, request: Request) -> Deferred[Response]:
        """
        Replace the fields of the user.
        """
        user = _readUser(request, NewUser, [_JSON], b"Accept")
        return self._change(request, UserPatch(user.name, user.email))

    def render_PATCH(self, request: Request) -> Deferred[Response]:
        """
        Replace some fields of the user, as RFC 7396 describes.
        """
        accepted = [MERGE_PATCH, _JSON]
        patch = _readUser(request, UserPatch, accepted, b"Accept-Patch")
        return self._change(request, patch)

    def render_DELETE(self, request: Request) -> Deferred[Response]:
        """
        Delete the user.
        """
        delete = partial(self._users.delete, self._number)
        deleted = Deferred.fromCoroutine(self._ifConditionsHold(request, delete))
        return deleted.addCallback(lambda _: Response(b"", b"", 204))

    def _change(self, request: Request, patch: UserPatch) -> Deferred[Response]:
        def change(version: int | None) -> Deferred[VersionedUser | None]:
            if patch == UserPatch():
                # An empty patch must not create a new version.
                return self._users.get(self._number)
            return self._users.change(self._number, patch, version)

        changed = Deferred.fromCoroutine(self._ifConditionsHold(request, change))
        return changed.addCallback(_userResponse)

    async def _ifConditionsHold(
        self, request: Request, change: Callable[[int | None], Awaitable[_T | None]]
    ) -> _T:
        """
        @param change: Changes the user if it has the given version, and returns
            a true value in this case.
        @return: The result of C{change}.
        """
        while True:
            version = await self._versionToChange(request)
            changed = await change(version)
            if changed:
                return changed
            if version is None:
                raise _userNotFound()
            # Another client changed the user after the check of the conditions.

    async def _versionToChange(self, request: Request) -> int | None:
        """
        @return: The version that meets the conditions; L{None} for any version.
        """
        match = _conditions(request, b"If-Match")
        noneMatch = _conditions(request, b"If-None-Match")
        if match == [b"*"] or not (match or noneMatch):
            return None
        found = await self._users.get(self._number)
        if found is None:
            raise _userNotFound()
        tag = _tagOf(found)
        if match:
            holds = matchesAny(match, tag, weakly=False)
        else:
            # A malformed condition does not hold, so nothing changes.
            holds = not matchesAny(noneMatch, tag, weakly=True, unreadable=True)
        if not holds:
            raise PreconditionFailed
        return found.version


def _conditions(request: Request, name: bytes) -> Sequence[bytes]:
    return request.requestHeaders.getRawHeaders(name, [])


def _foundResponse(found: VersionedUser | None, request: Request) -> Response:
    if found is None:
        raise _userNotFound()
    response = Response(_encode(found.user), b"application/json")
    return withETag(request, _tagOf(found), response)
