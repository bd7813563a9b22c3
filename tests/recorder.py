"""
A resource that records requests, and the parser of its responses.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from twisted.internet.defer import Deferred
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from .websupport import Answer

__all__ = ["Recorder", "Seen", "answersByMethod", "seenBy"]

Seen = tuple[str, str, bytes]
"""
Method, target and body of a request, as a resource saw them.
"""


class Recorder(Resource):
    """
    Answers any request, at any path, with its record of that request, as JSON: in the
    body, and in the header C{X-Seen}, which responses to HEAD have too.

    @ivar seen: The records, in order.
    @ivar headers: The headers of each request, in the order of their arrival.
    @ivar held: The requests under C{/held}; fire them in order to answer.
    """

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Seen] = []
        self.headers: list[dict[bytes, list[bytes]]] = []
        self.held: list[Deferred[None]] = []

    def render(self, request: Request) -> int:
        """
        Record and answer a request.
        """
        assert request.content is not None
        method, uri = request.method.decode("ascii"), request.uri.decode("latin-1")
        body = request.content.read()
        self.seen.append((method, uri, body))
        fields = request.requestHeaders.getAllRawHeaders()
        self.headers.append({name.lower(): list(values) for name, values in fields})

        def answer(_: object) -> None:
            data = json.dumps([method, uri, body.decode("latin-1")]).encode()
            request.setHeader(b"Content-Type", b"application/json")
            request.setHeader(b"Content-Length", b"%d" % len(data))
            request.setHeader(b"X-Seen", data)
            request.write(data)
            request.finish()

        if uri.startswith("/held"):
            held: Deferred[None] = Deferred()
            request.notifyFinish().addErrback(lambda _: None)
            self.held.append(held.addCallback(answer))
        else:
            answer(None)
        return NOT_DONE_YET


def seenBy(answer: Answer) -> Seen:
    """
    @return: The record in a response of the L{Recorder}.
    """
    if answer.body:
        assert answer.body == answer.headers["x-seen"].encode()
    method, uri, body = json.loads(answer.headers["x-seen"])
    return method, uri, body.encode("latin-1")


def answersByMethod(data: bytes, methods: Iterable[str]) -> list[Answer]:
    """
    @param data: The data that a server has sent.
    @param methods: The methods of the requests: a response to HEAD has no body.
    @return: The responses, interim ones among them.
    @raise ValueError: A response is incomplete.
    """
    remaining = iter(methods)
    answers: list[Answer] = []
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        version, status, *_ = head.split(b" ", 2)
        if not end or not version.startswith(b"HTTP/1.") or not status.isdigit():
            raise ValueError(f"not the head of a response: {head!r}")
        headers: dict[str, str] = {}
        for line in head.decode("latin-1").split("\r\n")[1:]:
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
        length = 0
        if int(status) >= 200 and next(remaining, "") != "HEAD":
            # Without a length the response ends with the connection.
            length = int(headers.get("content-length", len(data)))
        if len(data) < length:
            raise ValueError(f"{length - len(data)} bytes missing after {data!r}")
        answers.append(Answer(int(status), headers, data[:length]))
        data = data[length:]
    return answers
