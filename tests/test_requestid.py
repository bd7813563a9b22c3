"""
Each request has a name, which its response and the log know.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.internet.defer import Deferred
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
from tsrv.web.responses import (
    AsyncResource,
    Response,
    text,
)
from tsrv.web.site import Site

from .support import Trouble
from .websupport import Peer, answersIn, ask, logged, textsOf

ID = "X-Request-ID"


class Lines:
    """
    A log whose lines are kept; it is told of requests before.
    """

    def __init__(self) -> None:
        self.events: list[LogEvent] = []
        publisher = LogPublisher(_Named(), self)  # type: ignore[arg-type]
        self.log = Logger("speaker", observer=publisher)

    def __call__(self, event: LogEvent) -> None:
        self.events.append(event)

    @property
    def lines(self) -> list[str]:
        """
        The lines, without their times.
        """
        return [eventAsText(event, includeTimestamp=False) for event in self.events]


@implementer(ILogObserver)
class _Named:
    def __call__(self, event: LogEvent) -> None:
        addRequestId(event)


def request(number: bytes, path: bytes = b"/") -> bytes:
    """
    @return: A request of that name.
    """
    return (
        b"GET " + path + b" HTTP/1.1\r\nHost: test\r\nX-Request-ID: " + number + b"\r\n"
        b"\r\n"
    )


# What it is.


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "7d1f6a2e-22f0-4a75-9c2f-1d3f3b1a0c11",
        "Root=1-67891233-abcdef012345678912345678",
        "A.b_c~d+e/f=g:h",
        "x" * 128,
    ],
)
def test_a_client_may_name_its_request(name: str) -> None:
    """
    Who asks several servers finds all that they have done for it by one name.
    """
    answer = ask(AsyncResource(), headers={ID: name})
    assert answer.headers["x-request-id"] == name
    assert json.loads(answer.body)["requestId"] == name


@pytest.mark.parametrize(
    "names",
    [
        [""],
        ["a b"],
        ["a,b"],
        ["a\tb"],
        ['"a"'],
        ["{a}"],
        ["%0a"],
        ["a\x1b[2J"],
        ["\N{LATIN SMALL LETTER E WITH ACUTE}"],
        ["x" * 129],
        ["a", "b"],
    ],
)
def test_what_makes_no_sense_as_a_name_is_none(names: list[str]) -> None:
    """
    It stands in the log, where it must not be taken for anything else.
    """
    headers = Headers({ID.encode(): [name.encode() for name in names]})
    made = [requestIdFor(headers) for _ in range(2)]
    assert all(len(each) == 24 and int(each, 16) for each in made)
    assert made[0] != made[1]


def test_every_response_has_it(clock: Clock) -> None:
    """
    Also those that are refused before anybody has looked for a resource.
    """

    class Answers(AsyncResource):
        isLeaf = True

        def render_GET(self, request: Request) -> Response:
            if request.path == b"/304":
                return Response(b"", b"", 304)
            return text("found")

    site = Site(Answers(), clock, maxBodyBytes=10)
    head = b"Host: test\r\nX-Request-ID: mine\r\n"
    for data, status in [
        (b"GET / HTTP/1.1\r\n" + head + b"\r\n", 200),
        (b"GET /304 HTTP/1.1\r\n" + head + b"\r\n", 304),
        (b"PUT / HTTP/1.1\r\n" + head + b"\r\n", 405),
        (b"PUT / HTTP/1.1\r\n" + head + b"Content-Length: 11\r\n\r\n", 413),
    ]:
        peer = Peer(site, clock)
        peer.send(data)
        (answer,) = peer.answers
        assert (answer.status, answer.headers["x-request-id"]) == (status, "mine")
        peer.leave()
    for data, status in [
        (b"GET / HTTP/1.1\r\n" + head + b"A: b\r\nX: " + b"x" * 20_000, 431),
        (b"GET / HTTP/1.1\r\n" + head + b"Host: other\r\n\r\n", 400),
        (b"GET * HTTP/1.1\r\n" + head + b"\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\n" + head + b"\r\n", 200),
        (b"GET " + b"x" * 20_000, 414),
    ]:
        peer = Peer(site, clock)
        peer.send(data)
        (answer,) = peer.answers
        assert answer.status == status
        if status == 414:
            assert len(answer.headers["x-request-id"]) == 24
        else:
            assert answer.headers["x-request-id"] == "mine"
        peer.leave()
    peer = Peer(site, clock)
    peer.send(b"HEAD / HTTP/1.1\r\n" + head + b"\r\n")
    (answer,) = answersIn(peer.received, bodies=False)
    assert answer.headers["x-request-id"] == "mine"
    peer.leave()
    peer = Peer(site, clock)
    peer.send(b"nonsense\r\n")
    (answer,) = peer.answers
    assert (answer.status, len(answer.headers["x-request-id"])) == (400, 24)
    assert answer.headers["x-request-id"] == json.loads(answer.body)["requestId"]
    peer.leave()
    clock.advance(10)


def test_a_refusal_is_in_the_form_that_is_asked_for(clock: Clock) -> None:
    """
    What is known of the request by then is respected.
    """
    peer = Peer(Site(AsyncResource(), clock, maxBodyBytes=10), clock)
    peer.send(
        b"PUT / HTTP/1.1\r\nHost: test\r\nAccept: text/plain\r\n"
        b"Content-Length: 11\r\n\r\n"
    )
    (answer,) = peer.answers
    said = f"The body is too long\n(request {answer.headers['x-request-id']})"
    assert (answer.status, answer.body) == (413, said.encode())
    assert answer.headers["vary"] == "Accept"
    peer.leave()


def test_a_resource_may_be_on_another_site(clock: Clock) -> None:
    """
    The parts of tsrv are used without its site too.
    """
    root = Resource()
    root.putChild(b"", AsyncResource())
    peer = Peer(TwistedSite(root, reactor=clock), clock)  # type: ignore[arg-type]
    peer.send(request(b"mine"))
    (answer,) = peer.answers
    assert answer.headers["x-request-id"] == "mine"
    assert json.loads(answer.body)["requestId"] == "mine"
    peer.leave()


# Where it is.


class Speaker:
    """
    A module that logs what it does.
    """

    def __init__(self, log: Logger) -> None:
        self._log = log
        self.ready: Deferred[None] = Deferred()

    def initialize(self) -> Deferred[None]:
        return self.ready

    def speak(self) -> str:
        self._log.info("I speak")
        return "spoken"


class Speech(AsyncResource):
    """
    A resource that has a module speak, and speaks itself.
    """

    isLeaf = True

    def __init__(self, speaker: Any, log: Logger) -> None:
        super().__init__()
        self._speaker = speaker
        self._log = log

    async def render_GET(self, request: Request) -> Response:
        self._log.info("asked")
        said = await self._speaker.speak()
        self._log.info("answered")
        return text(said)


def test_a_command_that_was_queued_logs_for_its_request(clock: Clock) -> None:
    """
    What is done later, in somebody else's turn, is done for who has asked.
    """
    lines = Lines()
    speaker = Speaker(lines.log)
    wrapper = QueuingWrapper(speaker, clock)
    wrapper.initialize()
    site = Site(Speech(wrapper.proxy, lines.log), clock)
    peers = [Peer(site, clock) for _ in range(2)]
    for number, peer in enumerate(peers):
        peer.send(request(b"r%d" % number))
    lines.log.info("nobody's")
    speaker.ready.callback(None)
    assert lines.lines == [
        "[speaker#info,r0] asked",
        "[speaker#info,r1] asked",
        "[speaker#info] nobody's",
        "[speaker#info,r0] I speak",
        "[speaker#info,r0] answered",
        "[speaker#info,r1] I speak",
        "[speaker#info,r1] answered",
    ]
    assert [event.get("requestId") for event in lines.events][2:4] == [None, "r0"]
    assert currentRequestId.get() is None
    for peer in peers:
        peer.leave()


class Failing(AsyncResource):
    """
    A resource that fails when it is told to.
    """

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[Deferred[Response]] = []

    def render_GET(self, request: Request) -> Deferred[Response]:
        self.answers.append(Deferred())
        if request.path == b"/begun":
            request.write(b"begun")
        return self.answers[-1]


@pytest.mark.parametrize("path", [b"/", b"/begun"])
def test_an_error_is_logged_for_its_own_request(
    path: bytes, clock: Clock, loggedFailures: list[LogEvent]
) -> None:
    """
    Whoever makes it known has a turn of its own, with another name or none.
    """
    named: list[str | None] = []

    @implementer(ILogObserver)
    class Look:
        def __call__(self, event: LogEvent) -> None:
            named.append(currentRequestId.get())

    failing, look = Failing(), Look()
    peer = Peer(Site(failing, clock), clock)
    peer.send(request(b"mine", path))
    globalLogPublisher.addObserver(look)
    try:
        with withRequestId("another's"):
            failing.answers[0].errback(Trouble("no"))
    finally:
        globalLogPublisher.removeObserver(look)
    assert named == ["mine"]
    loggedFailures.clear()
    peer.leave()
    clock.advance(0)


def test_what_is_given_up_is_logged_for_who_has_left(clock: Clock) -> None:
    """
    It is the loss of the connection in whose turn that is done.
    """
    lines = Lines()

    class Waiting(AsyncResource):
        isLeaf = True

        def render_GET(self, request: Request) -> Deferred[Response]:
            def giveUp(answer: Deferred[Response]) -> None:
                lines.log.info("given up")
                answer.errback(Trouble("halfway"))

            return Deferred(giveUp)

    peers = [Peer(Site(Waiting(), clock), clock) for _ in range(2)]
    for number, peer in enumerate(peers):
        peer.send(request(b"r%d" % number))
    with logged() as events:
        for peer in peers:
            peer.leave()
    assert lines.lines == [
        "[speaker#info,r0] given up",
        "[speaker#info,r1] given up",
    ]
    assert [text for text in textsOf(events) if "left" in text] == [
        "After the client left: Trouble: halfway"
    ] * 2
    assert currentRequestId.get() is None


def test_requests_of_one_connection_are_told_apart(clock: Clock) -> None:
    """
    One begins in the turn in which the one before it ends.
    """
    lines = Lines()
    speaker = Speaker(lines.log)
    wrapper = QueuingWrapper(speaker, clock)
    wrapper.initialize()
    peer = Peer(Site(Speech(wrapper.proxy, lines.log), clock), clock)
    peer.send(request(b"r0") + request(b"r1"))
    peer.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
    speaker.ready.callback(None)
    answers = peer.answers
    made = answers[2].headers["x-request-id"]
    assert [answer.headers["x-request-id"] for answer in answers[:2]] == ["r0", "r1"]
    assert len(made) == 24
    assert [event["requestId"] for event in lines.events] == [
        name for name in ("r0", "r1", made) for _ in range(3)
    ]
    assert currentRequestId.get() is None
    peer.leave()


def test_the_access_log_names_the_request(clock: Clock) -> None:
    """
    It is where a search begins; also for what was refused.
    """
    site = Site(AsyncResource(), clock, accessLog=True)
    peer = Peer(site, clock)
    with logged() as events:
        peer.send(request(b"r0"))
        peer.send(b"GET /x HTTP/1.1\r\nX-Request-ID: r1\r\n\r\n")
    assert [text.rpartition(" ")[2] for text in textsOf(events)] == ["r0", "r1"]
    assert [event["requestId"] for event in events] == ["r0", "r1"]
    peer.leave()


@pytest.mark.parametrize(
    ("event", "system"),
    [
        ({"log_namespace": "a"}, "a#-,mine"),
        ({}, "-#-,mine"),
        ({"log_system": "HTTPChannel,1"}, "HTTPChannel,1,mine"),
    ],
)
def test_what_others_log_is_named_too(event: LogEvent, system: str) -> None:
    """
    What was there before stays readable.
    """
    with withRequestId("mine"):
        addRequestId(event)
    assert event["log_system"] == system
    assert event["requestId"] == "mine"


def test_who_names_a_request_is_believed() -> None:
    """
    A line of the access log is written when the request is over.
    """
    event: LogEvent = {"requestId": "theirs", "log_namespace": "a"}
    addRequestId(event)
    assert event["log_system"] == "a#-,theirs"
    nothing: LogEvent = {}
    addRequestId(nothing)
    assert nothing == {}
