"""
C{/users}: reading and changing users, conditions, and refused requests.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock

from tsrv.databases import Database, IDatabase, Row, Statement, UniqueViolated
from tsrv.demo.users import SCHEMA, NewUser, User, UserPatch, Users, VersionedUser
from tsrv.resources import makeRoot
from tsrv.web.site import Site

from .websupport import Answer, Peer, Teller, ask, asynchronous

JSON = "application/json"

ADA = {"name": "Ada", "email": "ada@example.org"}


class MemoryDatabase:
    """
    A database in memory that carries out every statement at once.

    @ivar afterRead: Called once, after the next statement that reads.
    """

    def __init__(self) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        self.afterRead: Callable[[], object] | None = None
        for step in SCHEMA.versions["sqlite"]:
            for statement in step:
                self.connection.execute(statement)

    def add(self, count: int) -> None:
        """
        Add users.
        """
        numbers = range(1, count + 1)
        rows = [(f"User {number}", f"{number}@example.org") for number in numbers]
        self.connection.executemany(
            "INSERT INTO users (name, email) VALUES (?, ?)", rows
        )

    def rows(self) -> list[Row]:
        return self.connection.execute("SELECT * FROM users").fetchall()

    def read(self, statement: Statement, *parameters: Any) -> Deferred[list[Row]]:
        rows = maybeDeferred(self._run, statement, parameters)
        afterRead, self.afterRead = self.afterRead, None
        if afterRead is not None:
            afterRead()
        return rows

    def write(self, statement: Statement, *parameters: Any) -> Deferred[list[Row]]:
        return maybeDeferred(self._run, statement, parameters)

    def _run(self, statement: Statement, parameters: Any) -> list[Row]:
        try:
            return self.connection.execute(statement.sql, parameters).fetchall()
        except sqlite3.IntegrityError as error:
            raise UniqueViolated("users.email", "23505") from error


class Client:
    """
    A client of a server with three users.
    """

    def __init__(self) -> None:
        self.database = MemoryDatabase()
        self.database.add(3)
        self._root = makeRoot(Teller(), Users(cast(IDatabase, self.database)))

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
def client() -> Iterator[Client]:
    """
    A client of a server with three users.
    """
    client = Client()
    yield client
    client.database.connection.close()


def errorIn(answer: Answer) -> str:
    """
    Return the member C{error} of a problem.
    """
    error: str = json.loads(answer.body)["error"]
    return error


# Reading.


def test_a_user_is_shown(client: Client) -> None:
    """
    A user has an identifier, a name and an address; its tag is its version.
    """
    answer = client("GET", "/users/2")
    assert (answer.status, answer.headers["content-type"]) == (200, JSON)
    assert answer.body == b'{"id":2,"name":"User 2","email":"2@example.org"}'
    assert answer.headers["etag"] == '"1"'


def test_a_user_of_an_older_version_is_shown(client: Client) -> None:
    """
    A stored name that would be refused today is shown, and can be replaced.
    """
    client.database.connection.execute("UPDATE users SET name = '\u2800' WHERE id = 2")
    assert json.loads(client("GET", "/users/2").body)["name"] == "\u2800"
    assert client("PATCH", "/users/2", {"email": "a@b"}).status == 200
    schemas = json.loads(client("GET", "/openapi.json").body)["components"]["schemas"]
    assert "pattern" not in schemas["User"]["properties"]["name"]


def test_users_are_listed_in_pages(client: Client) -> None:
    """
    Following the links shows each user once, ordered by identifier.
    """
    client.database.connection.execute("DELETE FROM users")
    client.database.add(1_500)
    path, pages = "/users", []
    while path:
        answer = client("GET", path)
        pages.append([user["id"] for user in json.loads(answer.body)])
        path = answer.headers.get("link", " ")[1:].partition('>; rel="next"')[0]
    assert pages == [list(range(4, 1_004)), list(range(1_004, 1_504))]


@pytest.mark.parametrize(
    ("query", "numbers", "link"),
    [
        ("", [1, 2, 3], None),
        ("?limit=1&after=1", [2], '</users?after=2&limit=1>; rel="next"'),
        ("?limit=2&after=1", [2, 3], None),
        ("?after=9223372036854775807", [], None),
    ],
)
def test_a_page_has_a_limit_and_a_beginning(
    query: str, numbers: list[int], link: str | None, client: Client
) -> None:
    """
    The last page has no link, even if it is full.
    """
    answer = client("GET", f"/users{query}")
    assert [user["id"] for user in json.loads(answer.body)] == numbers
    assert answer.headers.get("link") == link


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "after=-1", "after=9223372036854775808"]
)
def test_an_invalid_page_is_refused(query: str, client: Client) -> None:
    """
    The error names the parameter that is out of range.
    """
    answer = client("GET", f"/users?{query}")
    (error,) = json.loads(answer.body)["errors"]
    assert (answer.status, error["parameter"]) == (400, query.partition("=")[0])


@pytest.mark.parametrize(
    "number",
    [
        *("4", "0", "00", "01", "-1", "+1", "1.0", "x", "%31%20", "%D9%A1", "%00"),
        *("9223372036854775807", "9223372036854775808", "9" * 5000),
    ],
    ids=lambda number: number[:20],
)
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_missing_user_is_not_found(number: str, method: str, client: Client) -> None:
    """
    An impossible identifier gets the same response as an unused one.
    """
    answer = client(method, f"/users/{number}")
    assert (answer.status, errorIn(answer)) == (404, "User not found")


def test_an_unknown_route_is_not_a_missing_user(client: Client) -> None:
    """
    A mistyped route has its own error.
    """
    for path in ("/users/1/", "/users/1/x", "/users/x/y", "/openapi.json/x"):
        answer = client("GET", path)
        assert (answer.status, errorIn(answer)) == (404, "Route not found")
    assert errorIn(client("GET", "/users/")) == "User not found"


# Writing.


def test_a_user_is_created(client: Client) -> None:
    """
    The response has the user, its location and its tag.
    """
    answer = client("POST", "/users", ADA)
    assert answer.status == 201
    assert json.loads(answer.body) == {"id": 4, **ADA}
    assert answer.headers["location"] == "/users/4"
    assert answer.headers["etag"] == '"1"'
    assert client("GET", "/users/4").body == answer.body


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/users"), ("PUT", "/users/2"), ("PATCH", "/users/2")]
)
def test_an_address_is_used_once(method: str, path: str, client: Client) -> None:
    """
    A second user with the same address is a conflict.
    """
    answer = client(method, path, {"name": "Ada", "email": "1@example.org"})
    assert (answer.status, errorIn(answer)) == (409, "Resource already exists")


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/users"), ("PUT", "/users/2"), ("PATCH", "/users/2")]
)
def test_texts_have_one_form(method: str, path: str, client: Client) -> None:
    """
    Names and addresses are stored in NFC, so that equal addresses conflict, however
    they were typed. A text that is too long in NFC is refused.
    """
    composed = {"name": "Jos\u00e9", "email": "jos\u00e9@example.org"}
    decomposed = {"name": "Jose\u0301", "email": "jose\u0301@example.org"}
    answer = client(method, path, decomposed)
    assert {**composed, "id": 0} == {**json.loads(answer.body), "id": 0}
    assert client("POST", "/users", composed).status == 409
    answer = client(method, path, {"name": "\u0958" * 150, "email": "a@b"})
    (error,) = json.loads(answer.body)["errors"]
    assert (answer.status, error["pointer"]) == (400, "/name")


def test_a_user_is_replaced(client: Client) -> None:
    """
    PUT replaces all fields and makes a new version.
    """
    answer = client("PUT", "/users/2", ADA)
    assert (answer.status, answer.headers["etag"]) == (200, '"2"')
    assert json.loads(answer.body) == {"id": 2, **ADA}
    assert client("PUT", "/users/9", ADA).status == 404


@pytest.mark.parametrize("contentType", [JSON, "application/merge-patch+json"])
def test_a_part_of_a_user_is_replaced(contentType: str, client: Client) -> None:
    """
    PATCH keeps the fields that it does not name.
    """
    answer = client("PATCH", "/users/2", {"name": "Ada"}, contentType=contentType)
    assert json.loads(answer.body) == {"id": 2, "name": "Ada", "email": "2@example.org"}
    assert answer.headers["etag"] == '"2"'
    assert client("PATCH", "/users/9", {"name": "Ada"}).status == 404


def test_an_empty_patch_changes_nothing(client: Client) -> None:
    """
    An empty patch makes no new version. Null is refused, since all fields are required.
    """
    assert client("PATCH", "/users/1", {"name": None}).status == 400
    answer = client("PATCH", "/users/2", {})
    assert (answer.status, answer.headers["etag"]) == (200, '"1"')
    assert client("PATCH", "/users/9", {}).status == 404


def test_a_user_is_deleted_once(client: Client) -> None:
    """
    A deleted user does not exist.
    """
    answer = client("DELETE", "/users/2")
    assert (answer.status, answer.body) == (204, b"")
    assert client("DELETE", "/users/2").status == 404
    assert client("GET", "/users/2").status == 404


@pytest.mark.parametrize(
    ("body", "pointer", "detail"),
    [
        ([], "", "Expected object, got array"),
        ({}, "/name", "is missing"),
        ({"name": "Ada"}, "/email", "is missing"),
        ({**ADA, "email": None}, "/email", "Expected string, got null"),
        ({**ADA, "name": ""}, "/name", "Expected string of length >= 1"),
        ({**ADA, "name": "x" * 201}, "/name", "Expected string of length <= 200"),
        ({**ADA, "email": "a@"}, "/email", "Expected string of length >= 3"),
        (
            {**ADA, "email": "a@" + "b" * 253},
            "/email",
            "Expected string of length <= 254",
        ),
        ({**ADA, "secret": 1}, "", "has members other than name and email"),
        *(
            ({**ADA, "name": name}, "/name", "Expected at least one visible")
            for name in (" ", "\u200b \ufeff", "a\0", "a\nb", "a\n", "\u2066", "\xa0")
        ),
        *(
            ({**ADA, "email": email}, "/email", "Expected two parts with an @")
            for email in (
                "abc",
                "a@@b",
                "a@b@c",
                "@ab",
                "ab@",
                "a @b",
                "a@b\n",
                "a\u3000@b",
            )
        ),
    ],
)
@pytest.mark.parametrize(("method", "path"), [("POST", "/users"), ("PUT", "/users/1")])
def test_an_invalid_user_is_refused(
    method: str, path: str, body: Any, pointer: str, detail: str, client: Client
) -> None:
    """
    The error names the JSON pointer and the reason, and does not repeat the value.
    """
    answer = client(method, path, body)
    (error,) = json.loads(answer.body)["errors"]
    assert (answer.status, errorIn(answer)) == (400, "Invalid user")
    assert error["pointer"] == pointer
    assert error["detail"].startswith(detail)
    assert b"secret" not in answer.body


@pytest.mark.parametrize(
    ("name", "email"),
    [
        ("\N{GRINNING FACE}" * 200, "a@" + "b" * 252),
        ("x", "a@b"),
        ("Åda \N{SNOWMAN} \u3000 <b>", "ä@bücher.example"),
    ],
)
def test_the_limits_are_allowed(name: str, email: str, client: Client) -> None:
    """
    The shortest and the longest values are accepted in any script, and are shown in
    UTF-8 as they were sent.
    """
    answer = client("POST", "/users", {"name": name, "email": email})
    assert json.loads(answer.body) == {"id": 4, "name": name, "email": email}
    assert name.encode() in answer.body


@pytest.mark.parametrize(
    ("method", "path", "header"),
    [
        ("POST", "/users", "accept-post"),
        ("PUT", "/users/1", "accept"),
        ("PATCH", "/users/1", "accept-patch"),
    ],
)
def test_another_media_type_is_refused(
    method: str, path: str, header: str, client: Client
) -> None:
    """
    A 415 lists the accepted media types.
    """
    answer = client(method, path, ADA, contentType="text/plain")
    assert answer.status == 415
    assert JSON in answer.headers[header]


# Conditions.


@pytest.mark.parametrize("path", ["/users/1", "/users", "/openapi.json"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_another_version_is_not_shown(method: str, path: str, client: Client) -> None:
    """
    If-Match with another version refuses the request.
    """
    tag = client("GET", path).headers["etag"]
    for wanted, status in ((tag, 200), ("*", 200), ('"x"', 412), (f"W/{tag}", 412)):
        answer = client(method, path, headers={"If-Match": wanted})
        assert answer.status == status


@pytest.mark.parametrize("path", ["/users/1", "/users", "/openapi.json"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_known_version_is_not_sent_again(
    method: str, path: str, client: Client
) -> None:
    """
    A client that names the current tag gets 304 without a body.
    """
    tag = client("GET", path).headers["etag"]
    answer = client(method, path, headers={"If-None-Match": f'"x", W/{tag}'})
    assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", tag)
    assert client(method, path, headers={"If-None-Match": '"x"'}).status == 200


@pytest.mark.parametrize(
    ("method", "body"),
    [("GET", None), ("PUT", ADA), ("PATCH", ADA), ("PATCH", {}), ("DELETE", None)],
)
@pytest.mark.parametrize(
    ("headers", "holds"),
    [
        ({"If-Match": '"1"'}, True),
        ({"If-Match": "*"}, True),
        ({"If-None-Match": '"2"'}, True),
        ({"If-Match": '"2"'}, False),
        ({"If-Match": 'W/"1"'}, False),
        ({"If-Match": "nonsense"}, False),
        ({"If-None-Match": '"1"'}, False),
        ({"If-None-Match": "*"}, False),
    ],
    ids=str,
)
def test_a_request_may_have_a_condition(
    method: str,
    body: object,
    headers: dict[str, str],
    holds: bool,
    client: Client,
) -> None:
    """
    If a condition does not hold, the request is refused, and nothing is changed.
    """
    before = client.database.rows()
    answer = client(method, "/users/1", body, headers)
    if holds:
        assert answer.status in (200, 204)
    else:
        refused = 304 if (method == "GET" and "If-None-Match" in headers) else 412
        assert answer.status == refused
        assert client.database.rows() == before
    assert client(method, "/users/9", body, headers).status == 404


@pytest.mark.parametrize("header", ["If-Match", "If-None-Match"])
@pytest.mark.parametrize("condition", ["nonsense", '"1" "2"', '"a", ' * 1000])
def test_nothing_changes_under_an_unreadable_condition(
    header: str, condition: str, client: Client
) -> None:
    """
    A condition that is malformed or too long does not hold; a GET still shows the user.
    """
    before = client.database.rows()
    for method, body in (("PUT", ADA), ("PATCH", ADA), ("DELETE", None)):
        assert client(method, "/users/1", body, {header: condition}).status == 412
    assert client.database.rows() == before
    status = 200 if header == "If-None-Match" else 412
    assert client("GET", "/users/1", headers={header: condition}).status == status


def test_if_match_precedes_if_none_match(client: Client) -> None:
    """
    If-None-Match is ignored for a change that has If-Match (RFC 9110, 13.2.2).
    """
    headers = {"If-Match": '"1"', "If-None-Match": '"1"'}
    assert client("PUT", "/users/1", ADA, headers).status == 200


@pytest.mark.parametrize(("method", "body"), [("PUT", ADA), ("DELETE", None)])
@pytest.mark.parametrize(
    ("change", "condition", "statuses"),
    [
        ("DELETE FROM users WHERE id = 1", '"1"', {404}),
        ("UPDATE users SET version = 2 WHERE id = 1", '"1"', {412}),
        ("UPDATE users SET version = 2 WHERE id = 1", '"1", "2"', {200, 204}),
        ("UPDATE users SET version = 2 WHERE id = 1", "*", {200, 204}),
    ],
)
def test_a_condition_holds_until_the_change(
    method: str,
    body: object,
    change: str,
    condition: str,
    statuses: set[int],
    client: Client,
) -> None:
    """
    If another client changes the user after the check, the condition is checked again.
    """
    client.database.afterRead = lambda: client.database.connection.execute(change)
    answer = client(method, "/users/1", body, {"If-Match": condition})
    assert answer.status in statuses


@pytest.mark.parametrize(
    ("path", "allowed", "header", "accepts"),
    [
        ("/users", "GET HEAD OPTIONS POST", "accept-post", JSON),
        (
            "/users/1",
            "DELETE GET HEAD OPTIONS PATCH PUT",
            "accept-patch",
            "application/merge-patch+json, application/json",
        ),
    ],
)
def test_the_methods_are_listed(
    path: str, allowed: str, header: str, accepts: str, client: Client
) -> None:
    """
    OPTIONS, and the 405 for any other method, list the allowed methods.
    """
    answer, refused = client("OPTIONS", path), client("TRACE", path)
    assert (answer.status, answer.body, answer.headers[header]) == (204, b"", accepts)
    assert refused.status == 405
    for each in (answer, refused):
        assert sorted(each.headers["allow"].split(", ")) == allowed.split()


def test_a_client_that_disconnects_cancels_its_statement(clock: Clock) -> None:
    """
    When a client disconnects, the Deferred of the database is cancelled.
    """
    cancelled: list[object] = []
    waiting: Deferred[list[Row]] = Deferred(cancelled.append)

    class SlowDatabase:
        def read(self, *statement: object) -> Deferred[list[Row]]:
            return waiting

    users = Users(cast(IDatabase, SlowDatabase()))
    peer = Peer(Site(makeRoot(Teller(), users), clock), clock)
    peer.send(b"GET /users/1 HTTP/1.1\r\nHost: test\r\n\r\n")
    assert cancelled == []
    peer.leave()
    assert cancelled == [waiting]


@asynchronous
async def test_users_are_kept_in_a_database(tmp_path: Path) -> None:
    """
    The statements of the table work in a real database.
    """
    from twisted.internet import reactor

    database = Database(reactor, f"sqlite:{tmp_path}/d", [SCHEMA])
    await database.initialize()
    users = Users(database)
    ada = await users.create(NewUser("Ada", "a@b"))
    assert ada == VersionedUser(User(1, "Ada", "a@b"), 1)
    bob = await users.create(NewUser("Bob", "b@b"))
    with pytest.raises(UniqueViolated):
        await users.create(NewUser("Eve", "a@b"))
    assert await users.page(0, 10) == [ada.user, bob.user]
    assert await users.page(1, 10) == [bob.user]
    assert await users.page(0, 1) == [ada.user]
    assert await users.get(3) is None

    changed = await users.change(1, UserPatch(name="Ida"))
    assert changed == VersionedUser(User(1, "Ida", "a@b"), 2) == await users.get(1)
    assert await users.change(1, UserPatch(email="c@b"), 1) is None
    assert (await users.change(1, UserPatch(email="c@b"), 2)) is not None
    assert await users.change(9, UserPatch(name="Eve")) is None
    with pytest.raises(UniqueViolated):
        await users.change(1, UserPatch(email="b@b"))

    assert not await users.delete(1, 2)
    assert await users.delete(1, 3)
    assert not await users.delete(1)
    assert await users.delete(2)
    # Links of clients may contain the old identifiers.
    assert (await users.create(NewUser("Eve", "e@b"))).user.id == 3
    await database.close()
