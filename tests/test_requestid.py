"""
Each request has an id, which is in its response and in the log.
"""

from __future__ import annotations

import json
from typing import cast

import pytest
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.logger import (
    ILogObserver,
    LogEvent,
    Logger,
    LogPublisher,
    eventAsText,
    globalLogPublisher,
)
from twisted.web.http_headers import Headers
from twisted.web.resource import Resource
from twisted.web.server import Request
from twisted.web.server import Site as TwistedSite
from zope.interface import implementer

from tsrv import QueuingWrapper
from tsrv.web.requestid import (
    addRequestId,
    currentRequestId,
    requestIdFor,
    withRequestId,
)
from tsrv.web.responses import AsyncResource, Response, text
from tsrv.web.site import Site

from .support import Trouble
from .websupport import Peer, Rendered, answersTo, ask, logged, textsOf

ID = "X-Request-ID"


def request(requestId: bytes, path: bytes = b"/", method: bytes = b"GET") -> bytes:
    """
    @return: A request with an id.
    """
    lines = [method + b" " + path + b" HTTP/1.1", b"Host: test", b"X-Request-ID: "]
    return b"\r\n".join(lines) + requestId + b"\r\n\r\n"


@implementer(ILogObserver)
class Lines:
    """
    Records log events behind L{addRequestId}.
    """

    def __init__(self) -> None:
        self.events: list[LogEvent] = []
        self.log = Logger("speaker", observer=LogPublisher(self))

    def __call__(self, event: LogEvent) -> None:
        addRequestId(event)
        self.events.append(event)

    @property
    def lines(self) -> list[str]:
        return [eventAsText(event, includeTimestamp=False) for event in self.events]


class Speaker:
    """
    A module that logs its steps.
    """

    def __init__(self, log: Logger) -> None:
        self._log = log
        self.ready: Deferred[None] = Deferred()

    def initialize(self) -> Deferred[None]:
        return self.ready

    def speak(self) -> str:
        self._log.info("I speak")
        return "spoken"


@pytest.mark.parametrize(
    "requestId",
    [
        "a",
        "7d1f6a2e-22f0-4a75-9c2f-1d3f3b1a0c11",
        "Root=1-67891233-abcdef012345678912345678",
        "A.b_c~d+e/f=g:h",
        "x" * 128,
    ],
)
def test_a_client_may_choose_the_id(requestId: str) -> None:
    """
    A client that calls several servers may choose one id, and finds its request by this
    id in each log.
    """
    answer = ask(AsyncResource(), headers={ID: requestId})
    assert answer.headers["x-request-id"] == requestId
    assert json.loads(answer.body)["requestId"] == requestId


@pytest.mark.parametrize(
    "sent",
    [
        *([""], ["a b"], ["a,b"], ["a\tb"], ['"a"'], ["{a}"], ["%0a"], ["a\x1b[2J"]),
        *(["\xe9"], ["x" * 129], ["a", "b"]),
    ],
)
def test_an_invalid_id_is_replaced(sent: list[str]) -> None:
    """
    An invalid id is replaced by a new, unique one, so that an id in the log cannot be
    taken for anything else.
    """
    headers = Headers({ID.encode(): [each.encode() for each in sent]})
    made = [requestIdFor(headers) for _ in range(2)]
    assert all(len(each) == 24 and int(each, 16) for each in made)
    assert made[0] != made[1]


HEAD = request(b"mine")[:-2]


@pytest.mark.parametrize(
    ("status", "data", "requestId"),
    [
        (200, HEAD + b"\r\n", "mine"),
        (200, b"HEAD" + HEAD[3:] + b"\r\n", "mine"),
        (304, request(b"mine", b"/304"), "mine"),
        (405, request(b"mine", method=b"PUT"), "mine"),
        (200, request(b"mine", b"*", b"OPTIONS"), "mine"),
        (413, HEAD + b"Content-Length: 11\r\n\r\n", "mine"),
        (431, HEAD + b"A: b\r\nX: " + b"x" * 20_000, "mine"),
        (400, HEAD + b"Host: other\r\n\r\n", "mine"),
        (400, b"nonsense\r\n", None),
        (414, b"GET " + b"x" * 20_000, None),
    ],
    ids=range(10),
)
def test_every_response_has_an_id(
    status: int, data: bytes, requestId: str | None
) -> None:
    """
    Every response has an id, also of a refused request: the client's own id, if it is
    known.
    """

    answers = Rendered(
        lambda request: Response(b"", b"", 304 if request.path == b"/304" else 200)
    )
    (answer,) = answersTo(answers, data, maxBodyBytes=10)
    assert answer.status == status
    found = answer.headers["x-request-id"]
    assert found == requestId or (requestId is None and len(found) == 24)
    if answer.body:
        assert json.loads(answer.body)["requestId"] == found


def test_a_resource_may_be_on_another_site(clock: Clock) -> None:
    """
    The resources of tsrv work on a plain site of Twisted, too.
    """
    root = Resource()
    root.putChild(b"", AsyncResource())
    peer = Peer(TwistedSite(root, reactor=clock), clock)
    peer.send(request(b"mine"))
    (answer,) = peer.answers
    assert answer.headers["x-request-id"] == "mine"
    assert json.loads(answer.body)["requestId"] == "mine"
    peer.leave()


# The context.


def test_a_queued_call_logs_with_the_id_of_its_request(clock: Clock) -> None:
    """
    A call keeps the context of its request, also if it runs much later. Requests on one
    connection have different ids.
    """
    lines = Lines()
    speaker = Speaker(lines.log)
    wrapper = QueuingWrapper(speaker, clock)
    wrapper.initialize()

    async def speech(request: Request) -> Response:
        lines.log.info("asked")
        said = await maybeDeferred(wrapper.proxy.speak)
        lines.log.info("answered")
        return text(said)

    site = Site(Rendered(speech), clock)
    peers = [Peer(site, clock) for _ in range(2)]
    peers[0].send(request(b"r0"))
    peers[1].send(request(b"r1") + request(b"r2"))
    lines.log.info("no request")
    speaker.ready.callback(None)
    clock.pump([0, 0])
    assert lines.lines == [
        "[speaker#info,r0] asked",
        "[speaker#info,r1] asked",
        "[speaker#info] no request",
        "[speaker#info,r0] I speak",
        "[speaker#info,r0] answered",
        "[speaker#info,r1] I speak",
        "[speaker#info,r1] answered",
        "[speaker#info,r2] asked",
        "[speaker#info,r2] I speak",
        "[speaker#info,r2] answered",
    ]
    assert [event.get("requestId") for event in lines.events][2:4] == [None, "r0"]
    assert currentRequestId.get() is None
    for peer in peers:
        peer.leave()


def test_an_error_is_logged_with_the_id_of_its_request(
    clock: Clock, loggedFailures: list[LogEvent]
) -> None:
    """
    An error is logged with the id of its request, whatever the context of the code that
    fires the Deferred.
    """
    answer: Deferred[Response] = Deferred()

    def render(request: Request) -> Deferred[Response]:
        request.write(b"begun")
        return answer

    peer = Peer(Site(Rendered(render), clock), clock)
    peer.send(request(b"mine"))
    observe = cast(ILogObserver, addRequestId)
    globalLogPublisher.addObserver(observe)
    with withRequestId("another"):
        answer.errback(Trouble("no"))
    globalLogPublisher.removeObserver(observe)
    assert loggedFailures.pop()["requestId"] == "mine"
    peer.leave()
    clock.advance(0)


def test_cancelled_work_is_logged_with_the_id_of_its_request(clock: Clock) -> None:
    """
    Work that is cancelled because the connection is lost is logged with the id of its
    request.
    """
    lines = Lines()

    def cancel(answer: Deferred[Response]) -> None:
        lines.log.info("cancelled")
        answer.errback(Trouble("halfway"))

    peer = Peer(Site(Rendered(lambda request: Deferred(cancel)), clock), clock)
    peer.send(request(b"mine"))
    with logged() as events:
        peer.leave()
    assert lines.lines == ["[speaker#info,mine] cancelled"]
    assert "After the client disconnected: Trouble: halfway" in textsOf(events)
    assert currentRequestId.get() is None


# The log.


@pytest.mark.parametrize(
    ("event", "system"),
    [
        ({"log_namespace": "a"}, "a#-,mine"),
        ({}, "-#-,mine"),
        ({"log_system": "HTTPChannel,1"}, "HTTPChannel,1,mine"),
        ({"requestId": "theirs"}, "-#-,theirs"),
    ],
)
def test_log_lines_show_the_id(event: LogEvent, system: str) -> None:
    """
    The id follows the text of the line. An event that has an id keeps it.
    """
    with withRequestId("mine"):
        addRequestId(event)
    assert event["log_system"] == system
    assert event["requestId"] == system.rpartition(",")[2]
