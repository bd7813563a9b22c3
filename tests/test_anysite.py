"""
Any site of twisted.web can use the connections of tsrv, with all its resources, over
every kind of connection.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from klein import Klein
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    UNIXClientEndpoint,
    connectProtocol,
    serverFromString,
    wrapClientTLS,
)
from twisted.internet.ssl import Certificate, optionsForClientTLS
from twisted.internet.task import deferLater
from twisted.web.resource import EncodingResourceWrapper, Resource
from twisted.web.server import NOT_DONE_YET, GzipEncoderFactory, Request
from twisted.web.server import Site as TwistedSite
from twisted.web.util import DeferredResource, Redirect

from tsrv.web.connections import Connections

from .certificates import certified
from .websupport import (
    Answer,
    Data,
    File,
    Plain,
    Wire,
    answersIn,
    asynchronous,
    plainSite,
)

KINDS = ["tcp", "tls", "unix", "proxy"]

PROXY_LINE = b"PROXY TCP4 203.0.113.5 192.0.2.9 40000 80\r\n"

pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL")


@dataclass
class Listening:
    """
    A site that listens, and its clients.
    """

    kind: str
    site: TwistedSite
    connections: Connections
    endpoint: Any
    wires: list[Wire] = field(default_factory=list)

    async def connect(self, *data: bytes) -> Wire:
        """
        @param data: Data that is sent at once.
        """
        wire: Wire = await connectProtocol(self.endpoint, Wire())
        self.wires.append(wire)
        if self.kind == "proxy":
            wire.send(PROXY_LINE)
        for each in data:
            wire.send(each)
        return wire

    async def ask(
        self, method: str, path: str, *lines: str, body: bytes | None = None
    ) -> Answer:
        """
        Make a request on a new connection.
        """
        head = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close"]
        if body is not None:
            head.append(f"Content-Length: {len(body)}")
        data = "\r\n".join([*head, *lines, "", ""]).encode() + (body or b"")
        wire = await self.connect(data)
        received = await wire.whenClosed()
        (answer,) = answersIn(received, bodies=method != "HEAD")
        return answer


Listen = Callable[..., Any]


@pytest.fixture(params=KINDS)
def listen(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Listen:
    """
    Serve a resource at an endpoint of each kind.
    """
    # The path of a UNIX socket must be short.
    return partial(listening, request.param, tmp_path_factory.mktemp("s"))


@asynccontextmanager
async def listening(
    kind: str, directory: Path, resource: Any, **options: Any
) -> AsyncIterator[Listening]:
    """
    Listen; close all connections at the end.

    @param options: Options of the connections.
    """
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    site, connections = plainSite(resource, reactor, **options)
    path, pem = directory / "socket", directory / "key.pem"
    description = "tcp:0:interface=127.0.0.1"
    if kind == "tls":
        pem.write_bytes(certified())
        description = f"ssl:0:interface=127.0.0.1:privateKey={pem}:certKey={pem}"
    elif kind == "unix":
        description = f"unix:{path}"
    elif kind == "proxy":
        description = f"haproxy:{description}"
    port = await serverFromString(reactor, description).listen(site)
    endpoint: Any
    if kind == "unix":
        endpoint = UNIXClientEndpoint(reactor, str(path))
    else:
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
    if kind == "tls":
        trusted = Certificate.loadPEM(pem.read_bytes())
        endpoint = wrapClientTLS(optionsForClientTLS("localhost", trusted), endpoint)
    served = Listening(kind, site, connections, endpoint)
    try:
        yield served
    finally:
        await port.stopListening()
        closed = [wire.whenClosed() for wire in served.wires]
        for wire in served.wires:
            wire.leave()
        await gatherResults(closed)
        connections.abort()
        assert await connections.stop(60) == 0
        assert connections.bodyBytes == 0
        for session in list(site.sessions.values()):
            session.expire()
        await deferLater(reactor, 0)


def get(path: str, *lines: str) -> bytes:
    """
    @return: A request.
    """
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: test", *lines, "", ""]).encode()


# Resources of twisted.web.

CONTENT = bytes(range(256)) * 8000


@asynchronous
async def test_files_are_served(listen: Listen, tmp_path: Path) -> None:
    """
    Files are served whole, in part, or not at all if they have not changed.
    """
    (tmp_path / "file.bin").write_bytes(CONTENT)
    (tmp_path / "empty.txt").write_bytes(b"")
    async with listen(File(str(tmp_path))) as served:
        whole = await served.ask("GET", "/file.bin")
        assert (whole.status, whole.body) == (200, CONTENT)
        assert whole.headers["content-type"] == "application/octet-stream"
        head = await served.ask("HEAD", "/file.bin")
        assert (head.status, head.headers["content-length"]) == (200, str(len(CONTENT)))
        part = await served.ask("GET", "/file.bin", "Range: bytes=300-309")
        assert (part.status, part.body) == (206, CONTENT[300:310])
        parts = await served.ask("GET", "/file.bin", "Range: bytes=0-1,256-259")
        assert parts.status == 206
        assert parts.headers["content-type"].startswith("multipart/byteranges")
        assert CONTENT[256:260] in parts.body
        changed = f"If-Modified-Since: {whole.headers['last-modified']}"
        same = await served.ask("GET", "/file.bin", changed)
        assert (same.status, same.body) == (304, b"")
        empty = await served.ask("GET", "/empty.txt")
        assert (empty.status, empty.body) == (200, b"")
        assert (await served.ask("GET", "/nothing")).status == 404


@asynchronous
async def test_a_connection_carries_several_files(
    listen: Listen, tmp_path: Path
) -> None:
    """
    One connection carries several files: their producers take turns, and the next
    requests wait.
    """
    for number in range(5):
        (tmp_path / f"{number}.bin").write_bytes(b"%d" % number * 300_000)
    async with listen(File(str(tmp_path))) as served:
        paths = [f"/{number % 5}.bin" for number in range(15)]
        wire = await served.connect(b"".join(get(path) for path in paths))
        wire.send(get("/end", "Connection: close"))
        answers = answersIn(await wire.whenClosed())
    bodies = [answer.body for answer in answers[:-1]]
    assert bodies == [b"%d" % (number % 5) * 300_000 for number in range(15)]
    assert answers[-1].status == 404


class Form(Resource):
    """
    A resource that shows the fields of a form.
    """

    isLeaf = True

    def render_POST(self, request: Request) -> bytes:
        assert request.content is not None
        length = len(request.content.read())
        return repr((sorted((request.args or {}).items()), length)).encode()


MULTIPART = (
    b'--limit\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'
    b'--limit\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n'
    b"Content-Type: text/plain\r\n\r\n%s\r\n--limit--\r\n"
)


@asynchronous
async def test_forms_are_parsed(listen: Listen) -> None:
    """
    Fields of the query and of the body are parsed, with a length or in chunks. A
    malformed form is answered with 400.
    """
    urlencoded = "Content-Type: application/x-www-form-urlencoded"
    multipart = "Content-Type: multipart/form-data; boundary=limit"
    async with listen(Form()) as served:
        answer = await served.ask("POST", "/?q=0", urlencoded, body=b"a=1&a=2&b=%C3%A9")
        fields = [(b"a", [b"1", b"2"]), (b"b", [b"\xc3\xa9"]), (b"q", [b"0"])]
        assert answer.body == repr((fields, 16)).encode()
        answer = await served.ask("POST", "/", multipart, body=MULTIPART % b"text")
        assert b"(b'a', [b'1']), (b'file', [b'text'])" in answer.body
        wrong = await served.ask(
            "POST", "/", "Content-Type: multipart/form-data", body=b"x"
        )
        assert wrong.status == 400
        wire = await served.connect(
            b"POST / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n",
            f"{urlencoded}\r\nTransfer-Encoding: chunked\r\n\r\n".encode(),
            b"3\r\na=1\r\n",
            b"4;x=y\r\n&b=2\r\n0\r\n\r\n",
        )
        (answer,) = answersIn(await wire.whenClosed())
        assert answer.body == repr(([(b"a", [b"1"]), (b"b", [b"2"])], 7)).encode()


@asynchronous
async def test_long_bodies_are_read(listen: Listen) -> None:
    """
    A body may be of any length that the site allows.
    """
    body = CONTENT[:1_500_000]
    seen: list[bytes] = []

    def read(request: Request) -> bytes:
        assert request.content is not None
        seen.append(request.content.read())
        return b"read"

    async with listen(Plain(read), maxBodyBytes=2_000_000) as served:
        assert (await served.ask("PUT", "/", body=body)).body == b"read"
    assert seen == [body]


class Parts(Resource):
    """
    A resource that responds later, in parts.
    """

    isLeaf = True

    def render_GET(self, request: Request) -> int:
        self._write(request, 3)
        return NOT_DONE_YET

    def _write(self, request: Request, count: int) -> None:
        from twisted.internet import reactor

        if count:
            request.write(b"part %d;" % count)
            cast(Any, reactor).callLater(0, self._write, request, count - 1)
        else:
            request.finish()


@asynchronous
async def test_responses_may_come_later(listen: Listen) -> None:
    """
    A response may come later: C{NOT_DONE_YET}, a Deferred of a resource, a redirection,
    or a compressed response.
    """
    root = Resource()
    root.putChild(b"data", Data(b"plain text", "text/plain"))
    root.putChild(b"parts", Parts())
    root.putChild(b"redirect", Redirect(b"/data"))
    found: Deferred[Resource] = Deferred()
    root.putChild(b"deferred", DeferredResource(found))
    long = b"compress me " * 1000
    packed = EncodingResourceWrapper(Data(long, "text/plain"), [GzipEncoderFactory()])
    root.putChild(b"packed", packed)
    async with listen(root) as served:
        assert (await served.ask("GET", "/data")).body == b"plain text"
        parts = await served.ask("GET", "/parts")
        assert parts.body == b"part 3;part 2;part 1;"
        assert parts.headers["transfer-encoding"] == "chunked"
        moved = await served.ask("GET", "/redirect")
        assert (moved.status, moved.headers["location"]) == (302, "/data")
        waiting = served.ask("GET", "/deferred")
        found.callback(Data(b"found", "text/plain"))
        assert (await waiting).body == b"found"
        answer = await served.ask("GET", "/packed", "Accept-Encoding: gzip")
        assert answer.headers["content-encoding"] == "gzip"
        assert gzip.decompress(answer.body) == long
        assert (await served.ask("GET", "/packed")).body == long


@asynchronous
async def test_sessions_are_kept(listen: Listen) -> None:
    """
    A visitor is recognised by the cookie of Twisted's session.
    """

    def count(request: Request) -> bytes:
        session: Any = request.getSession()
        session.visits = getattr(session, "visits", 0) + 1
        return b"%d" % session.visits

    async with listen(Plain(count)) as served:
        first = await served.ask("GET", "/")
        (cookie,) = re.findall(r"TWISTED\w*SESSION=\w+", first.headers["set-cookie"])
        again = await served.ask("GET", "/", f"Cookie: {cookie}")
        other = await served.ask("GET", "/")
    assert [each.body for each in (first, again, other)] == [b"1", b"2", b"1"]


def makeApp() -> Any:
    """
    @return: An application of Klein.
    """
    app: Any = Klein()

    def item(request: Request, number: int) -> str:
        return f"item {number}"

    async def add(request: Request) -> str:
        from twisted.internet import reactor

        assert request.content is not None
        content = request.content.read()
        await deferLater(cast(Any, reactor), 0)
        request.setResponseCode(201)
        return f"added {content.decode()}"

    def fail(request: Request) -> None:
        raise ValueError

    def explain(request: Request, failure: object) -> str:
        request.setResponseCode(422)
        return "explained"

    def files(request: Request) -> Any:
        return Plain(lambda request: b"from a resource")

    app.route("/items/<int:number>", methods=["GET"])(item)
    app.route("/items", methods=["POST"])(add)
    app.route("/fail")(fail)
    app.handle_errors(ValueError)(explain)
    app.route("/files/", branch=True)(files)
    return app


@asynchronous
async def test_a_klein_application_is_served(listen: Listen) -> None:
    """
    Routes, coroutines and error handlers of Klein work as on Twisted's own connections.
    """
    async with listen(makeApp().resource()) as served:
        asked = [
            await served.ask("GET", "/items/42"),
            await served.ask("POST", "/items", body=b"it"),
            await served.ask("GET", "/fail"),
            await served.ask("GET", "/files/x"),
            await served.ask("GET", "/nothing"),
            await served.ask("DELETE", "/items"),
        ]
    seen = [(each.status, each.body) for each in asked]
    assert seen[:4] == [
        (200, b"item 42"),
        (201, b"added it"),
        (422, b"explained"),
        (200, b"from a resource"),
    ]
    assert [each.status for each in asked[4:]] == [404, 405]


# Kinds of connections.


@asynchronous
async def test_requests_know_their_connection(listen: Listen) -> None:
    """
    A request knows the addresses of its connection, also through a PROXY protocol, and
    whether it is secure.
    """

    def tell(request: Request) -> bytes:
        client: Any = request.getClientAddress()
        host = getattr(client, "host", None)
        return repr((host, request.isSecure(), request.getRequestHostname())).encode()

    async with listen(Plain(tell)) as served:
        answer = await served.ask("GET", "/")
    host = {"unix": None, "proxy": "203.0.113.5"}.get(served.kind, "127.0.0.1")
    expected = repr((host, served.kind == "tls", b"localhost"))
    assert answer.body == expected.encode()


@asynchronous
async def test_pipelined_requests_are_answered_in_order(listen: Listen) -> None:
    """
    Pipelined requests are answered in order, however the data are cut into segments.
    """
    data = b"".join(get(f"/{number}") for number in range(500))
    data += get("/last", "Connection: close")
    async with listen(Plain(lambda request: request.uri)) as served:
        wire = await served.connect(
            *(data[n : n + 777] for n in range(0, len(data), 777))
        )
        answers = answersIn(await wire.whenClosed())
    expected = [b"/%d" % number for number in range(500)] + [b"/last"]
    assert [answer.body for answer in answers] == expected


@asynchronous
async def test_more_pipelined_data_than_fit_are_all_answered(listen: Listen) -> None:
    """
    If more pipelined data arrive than are kept, the connection is read again as
    requests are answered.
    """
    count = 8000
    async with listen(Plain(lambda request: b"x" * 100)) as served:
        wire = await served.connect(get("/") * count + get("/", "Connection: close"))
        received = await wire.whenClosed()
    assert received.count(b"HTTP/1.1 200 OK\r\n") == count + 1


class Holding(Resource):
    """
    A resource that holds each request to C{/}, and answers others at once.

    @ivar whenHeld: Fires with the first one.
    @ivar whenGone: Fires when it ends.
    """

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.whenHeld: Deferred[Request] = Deferred()
        self.whenGone: Deferred[None] = Deferred()

    def render_GET(self, request: Request) -> Any:
        if request.path != b"/":
            return b"not held"
        request.notifyFinish().addBoth(lambda _: self.whenGone.callback(None))
        self.whenHeld.callback(request)
        return NOT_DONE_YET


@pytest.mark.parametrize(
    ("ahead", "begun"),
    [
        (b"", False),
        (b"", True),
        (get("/next") * 10, False),
        (get("/next") * 20_000, True),
    ],
    ids=range(4),
)
@asynchronous
async def test_a_client_that_disconnects_is_noticed(
    ahead: bytes, begun: bool, listen: Listen
) -> None:
    """
    A client that disconnects is noticed while its request is held, whatever the client
    has sent ahead.
    """
    holding = Holding()
    async with listen(holding) as served:
        wire = await served.connect(get("/"))
        request = await holding.whenHeld
        if begun:
            request.write(b"begun")
            await wire.whenReceived(b"begun")
        wire.send(ahead)
        wire.finish()
        await holding.whenGone
        await wire.whenClosed()


@asynchronous
async def test_a_stop_is_graceful(listen: Listen) -> None:
    """
    At a stop, the response of a request in progress arrives in full before its
    connection is closed; an idle connection is closed at once.
    """
    holding = Holding()
    async with listen(holding) as served:
        idle, busy = [await served.connect(get(path)) for path in ("/idle", "/")]
        await idle.whenReceived(b"not held")
        request = await holding.whenHeld
        stopping = served.connections.stop(30)
        await idle.whenClosed()
        request.write(b"x" * 2_000_000)
        request.finish()
        (answer,) = answersIn(await busy.whenClosed())
        assert (len(answer.body), answer.headers["connection"]) == (2_000_000, "close")
        assert await stopping == 0


@asynchronous
async def test_a_refused_client_receives_the_response(listen: Listen) -> None:
    """
    A refused client receives the response, also while it is still sending.
    """
    async with listen(Plain(lambda request: b"")) as served:
        for head, status in [
            (b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 9999999\r\n\r\n", 413),
            (b"nonsense\r\n\r\n", 400),
        ]:
            wire = await served.connect(head, b"x" * 1_000_000)
            received = await wire.whenReceived(b"}")
            (answer,) = answersIn(received)
            assert answer.status == status
            assert answer.headers["connection"] == "close"
            wire.finish()
            await wire.whenClosed()


@asynchronous
async def test_a_client_that_does_not_read_stops_its_requests(listen: Listen) -> None:
    """
    No request starts while the send buffer is full. When the client reads, it gets all
    responses.
    """
    started = 0
    response = b"x" * 20_000

    def render(request: Request) -> bytes:
        nonlocal started
        started += request.uri == b"/"
        return response

    async with listen(Plain(render)) as served:
        wire = await served.connect(get("/other"))
        await wire.whenReceived(response)
        transport: Any = wire.transport
        transport.pauseProducing()
        wire.send(get("/") * 700 + get("/", "Connection: close"))
        last, settled = -1, 0
        while settled < 20:
            await served.ask("GET", "/other")
            settled = settled + 1 if started == last else 0
            last = started
        assert 1 <= started < 600
        transport.resumeProducing()
        received = await wire.whenClosed()
    assert started == 701
    assert received.count(b"HTTP/1.1 200 OK\r\n") == 702


@asynchronous
async def test_the_log_of_the_site_has_a_line_for_each_response(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """
    Twisted's access log has a line for each response.
    """
    log = tmp_path / "access.log"
    async with listening(
        "tcp", tmp_path_factory.mktemp("s"), Plain(lambda request: b"logged")
    ) as served:
        served.site.logFile = served.site._openLogFile(str(log))
        await served.ask("GET", "/x?y", "User-Agent: tests")
    (line,) = log.read_text().splitlines()
    assert '"GET /x?y HTTP/1.1" 200 6 "-" "tests"' in line
