"""
C{/users}, and each of them.

A user has an entity tag, which is the version that the database counts. To
change one under a condition is to compare and swap: what the client takes it
for is checked, and then it is changed only if it still has that version. If it
has not, the condition is looked at again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from http import HTTPStatus
from typing import Any, Final, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.web.resource import Resource
from twisted.web.server import Request

from ..web.content import (
    Invalid,
    PreconditionFailed,
    matchesAny,
    readJSON,
)
from ..web.problems import HTTPError
from ..web.responses import (
    AsyncResource,
    Response,
    respond,
)
from .users import User

__all__ = [
    "EMAIL",
    "FIELDS",
    "LARGEST_ID",
    "MERGE_PATCH",
    "MOST_USERS",
    "NAME",
    "Field",
    "UserNotFound",
    "UserResource",
    "UserStore",
    "UsersResource",
]

MOST_USERS: Final = 1_000
"""
How many users come at once.
"""

LARGEST_ID: Final = 2**63 - 1
"""
No database has a greater number.
"""

_T = TypeVar("_T")

_JSON: Final = "application/json"

MERGE_PATCH: Final = "application/merge-patch+json"
"""
The media type of RFC 7396.
"""


class Field:
    """
    A member of a user.

    @ivar least: How many characters it has at least.
    @ivar most: How many it has at most.
    @ivar pattern: What it looks like, in what the regular expressions of Python
        and of ECMA have in common.
    @ivar meaning: The same in words.
    """

    def __init__(self, least: int, most: int, pattern: str, meaning: str) -> None:
        self.least = least
        self.most = most
        self.pattern = pattern
        self.meaning = meaning
        # To match all of it is what $ means to ECMA, and not to Python.
        self._matches = re.compile(pattern).fullmatch

    def wrong(self, value: object) -> str | None:
        """
        @param value: What a client has sent.
        @return: What is wrong with it, without a word of it.
        """
        if not isinstance(value, str):
            return "has to be a string"
        if not self.least <= len(value) <= self.most:
            return f"has to have {self.least} to {self.most} characters"
        if self._matches(value) is None:
            return self.meaning
        try:
            value.encode()
        except UnicodeEncodeError:
            return "has half of a character"
        return None


NAME: Final = Field(
    1,
    200,
    r"^[^\x00-\x1f\x7f-\x9f]*"
    r"[^\x00-\x20\x7f-\xa0\xad\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u2064"
    r"\u3000\u3164\ufeff]"
    r"[^\x00-\x1f\x7f-\x9f]*$",
    "has to have something to be seen, and no control characters",
)

EMAIL: Final = Field(
    3,
    254,
    r"^[^\x00-\x20\x7f-\xa0@]+@[^\x00-\x20\x7f-\xa0@]+$",
    "has to be two parts with an @ between them, and no spaces",
)

FIELDS: Final[Mapping[str, Field]] = {"name": NAME, "email": EMAIL}


class UserStore(Protocol):
    """
    What the resources need of a module; see L{tsrv.demo.users.Users}.
    """

    def get(self, number: int) -> Deferred[User | None]:
        """
        Find one.
        """

    def page(self, after: int, limit: int) -> Deferred[list[User]]:
        """
        List some.
        """

    def create(self, name: str, email: str) -> Deferred[User]:
        """
        Make one.
        """

    def change(
        self,
        number: int,
        name: str | None = None,
        email: str | None = None,
        version: int | None = None,
    ) -> Deferred[User | None]:
        """
        Change one.
        """

    def delete(self, number: int, version: int | None = None) -> Deferred[bool]:
        """
        Delete one.
        """


class UserNotFound(HTTPError):
    """
    There is no such user.
    """

    status = HTTPStatus.NOT_FOUND

    def __init__(self) -> None:
        super().__init__("User not found")


_encode: Final[Callable[[object], str]] = json.JSONEncoder(
    ensure_ascii=False, separators=(",", ":")
).encode


def _members(user: User) -> dict[str, object]:
    return {"id": user.id, "name": user.name, "email": user.email}


def _tagOf(user: User) -> str:
    return f'"{user.version}"'


def _shown(user: User) -> Response:
    return Response(
        _encode(_members(user)).encode(),
        b"application/json",
        headers=[(b"ETag", b'"%d"' % user.version)],
    )


def _created(user: User) -> Response:
    response = _shown(user)
    response.status = 201
    response.headers = [*response.headers, (b"Location", b"/users/%d" % user.id)]
    return response


def _fields(body: object, *, partly: bool) -> dict[str, str]:
    """
    @param body: What a client has sent.
    @param partly: Whether fields may be missing.
    @return: The fields of a user.
    @raise Invalid: That is not what it is.
    """
    sentence = "The user is not as it has to be"
    if not isinstance(body, dict):
        errors = [{"pointer": "", "detail": "has to be an object"}]
        raise Invalid(sentence, errors)
    errors = []
    for name, field in FIELDS.items():
        if name in body:
            wrong = field.wrong(body[name])
        else:
            wrong = None if partly else "has to be there"
        if wrong is not None:
            errors.append({"pointer": f"/{name}", "detail": wrong})
    if not body.keys() <= FIELDS.keys():
        # What they are called is what the client has sent.
        detail = f"has members other than {' and '.join(FIELDS)}"
        errors.append({"pointer": "", "detail": detail})
    if errors:
        raise Invalid(sentence, errors)
    return body


class _Listed(AsyncResource):
    """
    A resource that says what can be done with it.
    """

    accepts: tuple[tuple[bytes, bytes], ...] = ()

    def render_OPTIONS(self, request: Request) -> Response:
        """
        Say what can be done.
        """
        allowed = ", ".join(self._allowed()).encode("ascii")
        return Response(b"", b"", 204, [(b"Allow", allowed), *self.accepts])


class UsersResource(_Listed):
    """
    C{/users}: all of them, and the place for new ones.
    """

    accepts = ((b"Accept-Post", _JSON.encode()),)

    def __init__(self, users: UserStore) -> None:
        """
        @param users: The users.
        """
        super().__init__()
        self._users = users

    def render_GET(self, request: Request) -> Deferred[Response]:
        """
        List users, in the order of their numbers.
        """
        arguments: Mapping[bytes, list[bytes]] = request.args or {}
        errors: list[dict[str, str]] = []
        after = _number(arguments, b"after", 0, 0, LARGEST_ID, errors)
        limit = _number(arguments, b"limit", MOST_USERS, 1, MOST_USERS, errors)
        if errors:
            raise Invalid("The query cannot be understood", errors)
        # One more, to know whether there are more.
        users = self._users.page(after, limit + 1)
        return users.addCallback(_listed, limit, _conditions(request, _NONE_MATCH))

    def render_POST(self, request: Request) -> Deferred[Response]:
        """
        Make a user.
        """
        body = readJSON(request, [_JSON], b"Accept-Post")
        fields = _fields(body, partly=False)
        return self._users.create(fields["name"], fields["email"]).addCallback(_created)

    def getChild(self, path: bytes, request: Request) -> Resource:
        """
        @see: L{twisted.web.resource.Resource.getChild}
        """
        # Longer ones are no numbers that could be; nor are 07 and 0.
        if path.isdigit() and len(path) <= 19 and path[0] != ord("0"):
            number = int(path)
            if number <= LARGEST_ID:
                return UserResource(self._users, number)
        return _Nobody()


def _number(
    arguments: Mapping[bytes, list[bytes]],
    name: bytes,
    default: int,
    least: int,
    most: int,
    errors: list[dict[str, str]],
) -> int:
    """
    Read a parameter of the query.
    """
    values = arguments.get(name)
    if values is None:
        return default
    if len(values) == 1 and values[0].isdigit() and len(values[0]) <= 19:
        number = int(values[0])
        if least <= number <= most:
            return number
    errors.append(
        {
            "parameter": name.decode("ascii"),
            "detail": f"has to be one number from {least} to {most}",
        }
    )
    return default


def _listed(users: list[User], limit: int, known: Sequence[bytes]) -> Response:
    headers = []
    if len(users) > limit:
        users = users[:limit]
        link = f'</users?after={users[-1].id}&limit={limit}>; rel="next"'
        headers.append((b"Link", link.encode("ascii")))
    body = _encode([_members(user) for user in users]).encode()
    tag = f'"{blake2b(body, digest_size=12).hexdigest()}"'
    headers.append((b"ETag", tag.encode("ascii")))
    if known and matchesAny(known, tag, weakly=True):
        return Response(b"", b"", 304, headers)
    return Response(body, b"application/json", headers=headers)


_MATCH: Final = b"If-Match"
_NONE_MATCH: Final = b"If-None-Match"


def _conditions(request: Request, name: bytes) -> Sequence[bytes]:
    """
    @return: The headers of that name.
    """
    return request.requestHeaders.getRawHeaders(name) or []


class UserResource(_Listed):
    """
    C{/users/ID}: one of them.
    """

    route = "/users/{id}"

    accepts = ((b"Accept-Patch", f"{MERGE_PATCH}, {_JSON}".encode()),)

    def __init__(self, users: UserStore, number: int) -> None:
        """
        @param users: The users.
        @param number: The number of this one.
        """
        super().__init__()
        self._users = users
        self._number = number

    def render_GET(self, request: Request) -> Deferred[Response]:
        """
        Show the user.
        """
        return self._users.get(self._number).addCallback(_got, request)

    def render_PUT(self, request: Request) -> Deferred[Response]:
        """
        Replace what is known of the user.
        """
        fields = _fields(readJSON(request, [_JSON], b"Accept"), partly=False)
        return Deferred.fromCoroutine(self._change(request, fields))

    def render_PATCH(self, request: Request) -> Deferred[Response]:
        """
        Replace a part of it, as RFC 7396 has it.
        """
        body = readJSON(request, [MERGE_PATCH, _JSON], b"Accept-Patch")
        fields = _fields(body, partly=True)
        return Deferred.fromCoroutine(self._change(request, fields))

    def render_DELETE(self, request: Request) -> Deferred[Response]:
        """
        Delete the user.
        """
        return Deferred.fromCoroutine(self._delete(request))

    async def _change(self, request: Request, fields: Mapping[str, str]) -> Response:
        def change(version: int | None) -> Deferred[User | None]:
            if not fields:
                # There is nothing to be changed, but something to be shown.
                return self._users.get(self._number)
            return self._users.change(
                self._number, fields.get("name"), fields.get("email"), version
            )

        return _shown(await self._asWanted(request, change))

    async def _delete(self, request: Request) -> Response:
        await self._asWanted(request, partial(self._users.delete, self._number))
        return Response(b"", b"", 204)

    async def _asWanted(
        self, request: Request, change: Callable[[int | None], Awaitable[_T | None]]
    ) -> _T:
        """
        Change the user under the client's conditions.

        @param change: Does it, if the user has the version that it is given;
            and answers something that is true if it did.
        @return: What C{change} answered.
        """
        while True:
            version = await self._versionIf(request)
            changed = await change(version)
            if changed:
                return changed
            if version is None:
                raise UserNotFound
            # Somebody else has changed it meanwhile.

    async def _versionIf(self, request: Request) -> int | None:
        """
        Check the conditions under which the client wants the user changed.

        @return: The version that the user then must still have; L{None} if
            any will do.
        """
        match = _conditions(request, _MATCH)
        noneMatch = _conditions(request, _NONE_MATCH)
        if match == [b"*"] or not (match or noneMatch):
            # That it is there is found out when it is changed.
            return None
        user = await self._users.get(self._number)
        if user is None:
            raise UserNotFound
        _check(user, match, noneMatch)
        return user.version


def _check(user: User, match: Sequence[bytes], noneMatch: Sequence[bytes]) -> None:
    """
    @raise PreconditionFailed: The user is not what the client takes it for.
    """
    tag = _tagOf(user)
    if match:
        if not matchesAny(match, tag, weakly=False):
            raise PreconditionFailed
    elif noneMatch and matchesAny(noneMatch, tag, weakly=True):
        raise PreconditionFailed


def _got(user: User | None, request: Request) -> Response:
    if user is None:
        raise UserNotFound
    headers: Any = request.requestHeaders
    if headers.hasHeader(_MATCH):
        _check(user, _conditions(request, _MATCH), [])
    if headers.hasHeader(_NONE_MATCH):
        tag = _tagOf(user)
        if matchesAny(_conditions(request, _NONE_MATCH), tag, weakly=True):
            return Response(b"", b"", 304, [(b"ETag", tag.encode("ascii"))])
    return _shown(user)


class _Nobody(AsyncResource):
    """
    The user of a number that nobody can have.
    """

    route = "/users/{id}"

    def render(self, request: Request) -> int:
        """
        @see: L{twisted.web.resource.IResource.render}
        """
        return respond(request, self._refuse)

    def _refuse(self, request: Request) -> Response:
        raise UserNotFound
