"""
C{/users}: what clients can do with it, and what it does not let them do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.internet.task import Clock

from tsrv.databases import (
    ConstraintViolated,
    Database,
    UniqueViolated,
)
from tsrv.demo.users import (
    SCHEMA,
    User,
    Users,
)
from tsrv.resources import makeRoot
from tsrv.web.site import Site

from .support import Empty
from .websupport import Answer, Peer, Teller, ask, asynchronous

JSON = "application/json"

ADA = {"name": "Ada", "email": "ada@example.org"}


class Memory:
    """
    Users in memory.

    @ivar users: All of them, by their numbers.
    @ivar meanwhile: Called when one was found, before it is answered.
    """

    def __init__(self, count: int = 0) -> None:
        self.users: dict[int, User] = {}
        self.meanwhile: Any = None
        for number in range(1, count + 1):
            self.create(f"User {number}", f"{number}@example.org")

    def get(self, number: int) -> Deferred[User | None]:
        user = self.users.get(number)
        if self.meanwhile is not None:
            self.meanwhile()
        return succeed(user)

    def page(self, after: int, limit: int) -> Deferred[list[User]]:
        numbers = sorted(number for number in self.users if number > after)
        return succeed([self.users[number] for number in numbers[:limit]])

    def create(self, name: str, email: str) -> Deferred[User]:
        return maybeDeferred(self._put, User(len(self.users) + 1, name, email, 1))

    def _put(self, user: User) -> User:
        for each in self.users.values():
            if each.email == user.email and each.id != user.id:
                raise UniqueViolated("no", "23505")
        self.users[user.id] = user
        return user

    def change(
        self,
        number: int,
        name: str | None = None,
        email: str | None = None,
        version: int | None = None,
    ) -> Deferred[User | None]:
        user = self.users.get(number)
        if user is None or version not in (None, user.version):
            return succeed(None)
        changed = replace(
            user,
            name=name or user.name,
            email=email or user.email,
            version=user.version + 1,
        )
        return maybeDeferred(self._put, changed)

    def delete(self, number: int, version: int | None = None) -> Deferred[bool]:
        user = self.users.get(number)
        if user is None or version not in (None, user.version):
            return succeed(False)
        del self.users[number]
        return succeed(True)


class Client:
    """
    Someone who uses it.
    """

    def __init__(self, users: Any) -> None:
        self._root = makeRoot(Teller(), users)

    def __call__(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        contentType: str = JSON,
    ) -> Answer:
        sent = {**(headers or {})}
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            sent["Content-Type"] = contentType
        return ask(self._root, path, method, sent, data)


@pytest.fixture
def memory() -> Memory:
    """
    Three users.
    """
    return Memory(3)


@pytest.fixture
def client(memory: Memory) -> Client:
    """
    Who uses these.
    """
    return Client(memory)


def errorsIn(answer: Answer) -> list[dict[str, str]]:
    """
    @return: What is said to be wrong.
    """
    assert answer.status == 400
    errors: list[dict[str, str]] = json.loads(answer.body)["errors"]
    return errors


# What is there.


def test_a_user_is_shown(client: Client) -> None:
    """
    The three members of the source, and nothing of what is behind them.
    """
    answer = client("GET", "/users/2")
    assert answer.status == 200
    assert answer.headers["content-type"] == JSON
    assert answer.body == b'{"id":2,"name":"User 2","email":"2@example.org"}'
    assert answer.headers["etag"] == '"1"'


def test_users_are_listed_in_order(client: Client) -> None:
    """
    An answer that differs from time to time is compared in vain.
    """
    answer = client("GET", "/users")
    assert [user["id"] for user in json.loads(answer.body)] == [1, 2, 3]
    assert "link" not in answer.headers
    assert client("GET", "/users").headers["etag"] == answer.headers["etag"]


def test_many_users_come_one_page_after_the_other() -> None:
    """
    A million users must fit neither into one answer nor into memory; and who
    follows the links sees each of them once.
    """
    client = Client(Memory(2_500))
    seen: list[int] = []
    lengths = []
    path: str | None = "/users"
    while path is not None:
        answer = client("GET", path)
        users = json.loads(answer.body)
        lengths.append(len(users))
        seen += [user["id"] for user in users]
        link = answer.headers.get("link")
        path = None
        if link is not None:
            assert link.endswith('>; rel="next"')
            path = link[1:].partition(">")[0]
    assert lengths == [1_000, 1_000, 500]
    assert seen == list(range(1, 2_501))


def test_a_page_may_be_shorter(client: Client) -> None:
    """
    Who shows ten need not fetch a thousand; a page that is just full is the
    last one if there are no more.
    """
    answer = client("GET", "/users?limit=1&after=1")
    assert [user["id"] for user in json.loads(answer.body)] == [2]
    assert answer.headers["link"] == '</users?after=2&limit=1>; rel="next"'
    answer = client("GET", "/users?limit=2&after=1")
    assert "link" not in answer.headers


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=-1",
        "limit=1.0",
        "limit=%2B1",
        "limit=",
        "limit=secret",
        "limit=1&limit=2",
        "limit=" + "9" * 5000,
        "limit=%D9%A1",
        "after=-1",
        "after=9223372036854775808",
        "after=secret",
    ],
    ids=lambda query: query[:20],
)
def test_a_query_that_makes_no_sense_is_refused(query: str, client: Client) -> None:
    """
    Who mistyped must not get another page than was meant.
    """
    answer = client("GET", f"/users?{query}")
    (error,) = errorsIn(answer)
    assert error["parameter"] == query.partition("=")[0]
    assert error["detail"].startswith("has to be one number from ")
    assert b"secret" not in answer.body


@pytest.mark.parametrize(
    "number",
    [
        "4",
        "0",
        "00",
        "01",
        "-1",
        "+1",
        "1.0",
        "1e0",
        "x",
        "%31%20",
        "9223372036854775807",
        "9223372036854775808",
        "9" * 5000,
        "%D9%A1",
        "%00",
    ],
    ids=lambda number: number[:20],
)
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_who_is_not_there_is_not_found(
    number: str, method: str, client: Client
) -> None:
    """
    A number that nobody can have is told from one that nobody has by nothing.
    """
    answer = client(method, f"/users/{number}")
    assert answer.status == 404
    assert json.loads(answer.body)["error"] == "User not found"


@pytest.mark.parametrize(
    "path", ["/users/1/", "/users/1/x", "/users/", "/users/x/y", "/openapi"]
)
def test_what_is_no_route_is_told_apart(path: str, client: Client) -> None:
    """
    A mistake in a program is not a user who has left.
    """
    answer = client("GET", path)
    assert answer.status == 404
    expected = "User not found" if path == "/users/" else "Route not found"
    assert json.loads(answer.body)["error"] == expected


# What can be changed.


def test_a_user_is_made(client: Client, memory: Memory) -> None:
    """
    As the source answers, and where the new one is.
    """
    answer = client("POST", "/users", ADA)
    assert answer.status == 201
    assert json.loads(answer.body) == {"id": 4, **ADA}
    assert answer.headers["location"] == "/users/4"
    assert answer.headers["etag"] == '"1"'
    assert client("GET", "/users/4").body == answer.body


def test_text_stays_what_it_is(client: Client) -> None:
    """
    Names are written in all scripts.
    """
    name = "Åda \N{SNOWMAN} \N{GRINNING FACE} \u2028 <b>"
    answer = client("POST", "/users", {"name": name, "email": "ä@bücher.example"})
    assert json.loads(answer.body)["name"] == name
    assert name.encode() in answer.body


def test_an_address_is_used_once(client: Client) -> None:
    """
    The wire string of the source, whichever way it comes to it.
    """
    taken = {"name": "Ada", "email": "1@example.org"}
    for method, path in [
        ("POST", "/users"),
        ("PUT", "/users/2"),
        ("PATCH", "/users/2"),
    ]:
        answer = client(method, path, taken)
        assert answer.status == 409
        assert json.loads(answer.body)["error"] == "Resource already exists"


def test_a_user_is_replaced(client: Client) -> None:
    """
    All of it, and its tag with it.
    """
    answer = client("PUT", "/users/2", ADA)
    assert (answer.status, answer.headers["etag"]) == (200, '"2"')
    assert json.loads(answer.body) == {"id": 2, **ADA}
    assert client("PUT", "/users/9", ADA).status == 404


@pytest.mark.parametrize("contentType", [JSON, "application/merge-patch+json"])
def test_a_part_of_a_user_is_replaced(contentType: str, client: Client) -> None:
    """
    What is not named stays.
    """
    answer = client("PATCH", "/users/2", {"name": "Ada"}, contentType=contentType)
    assert json.loads(answer.body) == {"id": 2, "name": "Ada", "email": "2@example.org"}
    assert answer.headers["etag"] == '"2"'
    assert client("PATCH", "/users/9", {"name": "Ada"}).status == 404


def test_to_replace_nothing_changes_nothing(client: Client) -> None:
    """
    A patch with nothing in it is a patch; others must not find a new version.
    """
    answer = client("PATCH", "/users/2", {})
    assert (answer.status, answer.headers["etag"]) == (200, '"1"')
    assert client("PATCH", "/users/9", {}).status == 404


def test_a_user_is_deleted(client: Client) -> None:
    """
    Once.
    """
    answer = client("DELETE", "/users/2")
    assert (answer.status, answer.body) == (204, b"")
    assert client("DELETE", "/users/2").status == 404
    assert client("GET", "/users/2").status == 404


# What is no user.


@pytest.mark.parametrize(
    ("body", "errors"),
    [
        ([], {"": "has to be an object"}),
        ("secret", {"": "has to be an object"}),
        (
            {},
            {"/name": "has to be there", "/email": "has to be there"},
        ),
        (
            {"name": 1, "email": None},
            {"/name": "has to be a string", "/email": "has to be a string"},
        ),
        (
            {"name": "", "email": "a@"},
            {
                "/name": "has to have 1 to 200 characters",
                "/email": "has to have 3 to 254 characters",
            },
        ),
        (
            {"name": "x" * 201, "email": "a@" + "b" * 253},
            {
                "/name": "has to have 1 to 200 characters",
                "/email": "has to have 3 to 254 characters",
            },
        ),
        (
            {**ADA, "secret": 1, "id": 7},
            {"": "has members other than name and email"},
        ),
        *(
            (
                {**ADA, "name": name},
                {"/name": "has to have something to be seen, and no control char"},
            )
            for name in (
                " ",
                "\u200b \ufeff",
                "a\0",
                "a\nb",
                "a\n",
                "\x7f",
                "\x85",
                "\xa0",
            )
        ),
        *(
            (
                {**ADA, "email": email},
                {"/email": "has to be two parts with an @ between them"},
            )
            for email in ("abc", "a@@b", "a@b@c", "@ab", "ab@", "a @b", "a@b\n")
        ),
        ({**ADA, "name": "\ud800x"}, {"/name": "has half of a character"}),
    ],
)
@pytest.mark.parametrize(("method", "path"), [("POST", "/users"), ("PUT", "/users/1")])
def test_what_is_no_user_is_refused_with_all_that_is_wrong(
    method: str, path: str, body: Any, errors: dict[str, str], client: Client
) -> None:
    """
    Who corrects one thing must not learn of the next only then; and nothing of
    what was sent comes back.
    """
    answer = client(method, path, body)
    found = {error["pointer"]: error["detail"] for error in errorsIn(answer)}
    assert found.keys() == errors.keys()
    for pointer, detail in errors.items():
        assert found[pointer].startswith(detail)
    assert b"secret" not in answer.body


def test_the_longest_user_is_one(client: Client) -> None:
    """
    What is said to be allowed is.
    """
    user = {"name": "\N{GRINNING FACE}" * 200, "email": "a@" + "b" * 252}
    assert client("POST", "/users", user).status == 201
    user = {"name": "x", "email": "a@b"}
    assert client("POST", "/users", user).status == 201


def test_nothing_can_be_removed_from_a_user(client: Client) -> None:
    """
    null is how a merge patch removes what has to be there.
    """
    (error,) = errorsIn(client("PATCH", "/users/1", {"name": None}))
    assert error == {"pointer": "/name", "detail": "has to be a string"}


@pytest.mark.parametrize(
    ("method", "path", "header"),
    [
        ("POST", "/users", "accept-post"),
        ("PUT", "/users/1", "accept"),
        ("PATCH", "/users/1", "accept-patch"),
    ],
)
def test_another_type_is_refused(
    method: str, path: str, header: str, client: Client
) -> None:
    """
    With the types that are not.
    """
    answer = client(method, path, ADA, contentType="text/plain")
    assert answer.status == 415
    assert JSON in answer.headers[header]


# Conditions.


def test_what_is_known_is_not_sent_again(client: Client) -> None:
    """
    It costs a client nothing to look whether anything has changed.
    """
    for path in ("/users/1", "/users", "/openapi.json"):
        tag = client("GET", path).headers["etag"]
        for method in ("GET", "HEAD"):
            answer = client(method, path, headers={"If-None-Match": f'"x", W/{tag}'})
            assert (answer.status, answer.body) == (304, b"")
            assert answer.headers["etag"] == tag
        answer = client("GET", path, headers={"If-None-Match": '"x"'})
        assert answer.status == 200


@pytest.mark.parametrize(
    ("method", "body"), [("PUT", ADA), ("PATCH", ADA), ("PATCH", {}), ("DELETE", None)]
)
@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ({"If-Match": '"1"'}, True),
        ({"If-Match": "*"}, True),
        ({"If-None-Match": '"2"'}, True),
        ({"If-Match": '"1"', "If-None-Match": '"1"'}, True),
        ({"If-Match": '"2"'}, False),
        ({"If-Match": 'W/"1"'}, False),
        ({"If-Match": "nonsense"}, False),
        ({"If-None-Match": '"1"'}, False),
        ({"If-None-Match": "*"}, False),
    ],
    ids=str,
)
def test_a_change_may_have_a_condition(
    method: str,
    body: object,
    headers: dict[str, str],
    passes: bool,
    client: Client,
    memory: Memory,
) -> None:
    """
    Of two people who change what they have seen, the second is told.
    """
    before = memory.users[1]
    answer = client(method, "/users/1", body, headers)
    if passes:
        assert answer.status in (200, 204)
    else:
        assert answer.status == 412
        assert json.loads(answer.body)["error"] == "It has been changed since"
        assert memory.users[1] == before
    # That there is nobody comes first.
    assert client(method, "/users/9", body, headers).status == 404


@pytest.mark.parametrize(("method", "body"), [("PUT", ADA), ("DELETE", None)])
@pytest.mark.parametrize("gone", [True, False])
def test_a_condition_holds_until_it_is_done(
    method: str, body: object, gone: bool, client: Client, memory: Memory
) -> None:
    """
    Between the look and the change somebody else may have been there.
    """

    def meanwhile() -> None:
        memory.meanwhile = None
        if gone:
            del memory.users[1]
        else:
            memory.users[1] = replace(memory.users[1], version=2)

    memory.meanwhile = meanwhile
    answer = client(method, "/users/1", body, {"If-Match": '"1"'})
    assert answer.status == (404 if gone else 412)
    assert gone or memory.users[1].name == "User 1"


@pytest.mark.parametrize(("method", "body"), [("PUT", ADA), ("DELETE", None)])
@pytest.mark.parametrize(
    "headers", [{"If-Match": "*"}, {"If-Match": '"1", "2"'}, {"If-None-Match": '"7"'}]
)
def test_a_condition_that_still_holds_is_enough(
    method: str,
    body: object,
    headers: dict[str, str],
    client: Client,
    memory: Memory,
) -> None:
    """
    Who does not name one version does not mind that somebody else was there.
    """

    def meanwhile() -> None:
        memory.meanwhile = None
        memory.users[1] = replace(memory.users[1], version=2)

    memory.meanwhile = meanwhile
    assert client(method, "/users/1", body, headers).status in (200, 204)


def test_a_look_may_have_a_condition_too(client: Client) -> None:
    """
    As RFC 9110 has it.
    """
    assert client("GET", "/users/1", headers={"If-Match": '"1"'}).status == 200
    assert client("GET", "/users/1", headers={"If-Match": '"2"'}).status == 412


# What else there is to be asked.


@pytest.mark.parametrize(
    ("path", "allowed", "more"),
    [
        ("/users", {"GET", "HEAD", "OPTIONS", "POST"}, ("accept-post", JSON)),
        (
            "/users/1",
            {"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "PUT"},
            ("accept-patch", "application/merge-patch+json, application/json"),
        ),
    ],
)
def test_it_says_what_can_be_done(
    path: str, allowed: set[str], more: tuple[str, str], client: Client
) -> None:
    """
    To who asks, and to who has tried something else.
    """
    answer = client("OPTIONS", path)
    assert (answer.status, answer.body) == (204, b"")
    assert set(answer.headers["allow"].split(", ")) == allowed
    assert answer.headers[more[0]] == more[1]
    answer = client("TRACE", path)
    assert answer.status == 405
    assert set(answer.headers["allow"].split(", ")) == allowed


def test_who_leaves_gives_the_question_up(clock: Clock) -> None:
    """
    The database need not look for what nobody waits for.
    """
    asked: list[Deferred[list[object]]] = []

    class Slow(Empty):
        def read(self, *statement: object) -> Deferred[list[object]]:
            asked.append(Deferred())
            return asked[-1]

    peer = Peer(Site(makeRoot(Teller(), Users(Slow())), clock), clock)  # type: ignore[arg-type]
    peer.send(b"GET /users/1 HTTP/1.1\r\nHost: test\r\n\r\n")
    peer.leave()
    (question,) = asked
    seen: list[object] = []
    question.addErrback(lambda failure: seen.append(failure.type))
    assert question.called


# The real thing.


@asynchronous
async def test_it_is_all_in_the_database(tmp_path: Path) -> None:
    """
    What the resources promise is what the statements do.
    """
    from twisted.internet import reactor

    database = Database(reactor, f"sqlite:{tmp_path}/d", [SCHEMA])
    await database.initialize()
    users = Users(database)
    ada = await users.create("Ada", "a@b")
    assert ada == User(1, "Ada", "a@b", 1)
    bob = await users.create("Bob", "b@b")
    with pytest.raises(ConstraintViolated) as caught:
        await users.create("Eve", "a@b")
    assert isinstance(caught.value, UniqueViolated)
    assert await users.page(0, 10) == [ada, bob]
    assert await users.page(1, 10) == [bob]
    assert await users.page(0, 1) == [ada]
    assert await users.get(3) is None

    changed = await users.change(1, "Ida")
    assert changed == User(1, "Ida", "a@b", 2) == await users.get(1)
    assert await users.change(1, None, "c@b", 1) is None
    assert await users.change(1, None, "c@b", 2) == User(1, "Ida", "c@b", 3)
    assert await users.change(9, "Eve") is None
    with pytest.raises(ConstraintViolated):
        await users.change(1, None, "b@b")

    assert not await users.delete(1, 2)
    assert await users.delete(1, 3)
    assert not await users.delete(1)
    assert await users.delete(2)
    # A number is not used again: it may stand in somebody's links.
    assert (await users.create("Eve", "e@b")).id == 3
    await database.close()


def test_cancelling_is_passed_on() -> None:
    """
    The question is the database's own.
    """
    asked: Deferred[list[object]] = Deferred()

    class Slow(Empty):
        def read(self, *statement: object) -> Deferred[list[object]]:
            return asked

    getting = Users(Slow()).get(1)  # type: ignore[arg-type]
    getting.addErrback(lambda failure: failure.trap(CancelledError))
    getting.cancel()
    assert asked.called
