"""
Visitors: many connections to one server, each with a session of its own, in a
process of their own.

It is told what to do by lines on its standard input, and answers each with a line
of JSON, as L{benchmarks._load} does.
"""

from __future__ import annotations

import json
import signal
import sys
from socket import socket
from time import monotonic

from benchmarks._load import _connect
from benchmarks._processes import LONGEST

__all__: list[str] = []


class _Visitor:
    """
    One who comes again and again, and counts along.

    @ivar visits: How many visits were answered.
    """

    def __init__(self) -> None:
        self.visits = 0
        self._cookies: dict[bytes, bytes] = {}
        self._request = b""
        self._prepare()

    def _prepare(self) -> None:
        cookies = b"; ".join(b"%s=%s" % pair for pair in self._cookies.items())
        line = b"Cookie: %s\r\n" % cookies if cookies else b""
        self._request = b"GET /visits HTTP/1.1\r\nHost: localhost\r\n%s\r\n" % line

    def ask(self, connection: socket) -> None:
        """
        Visit once more.
        """
        connection.sendall(self._request)

    def read(self, connection: socket) -> None:
        """
        Read the answer.

        @raise ValueError: It is not the number of the visits.
        """
        response = b""
        while True:
            received = connection.recv(65536)
            if not received:
                raise ConnectionError(f"the connection was closed after {response!r}")
            response += received
            head, end, body = response.partition(b"\r\n\r\n")
            if end:
                low = head.lower()
                _, _, length = low.partition(b"content-length:")
                if len(body) >= int(length.split(b"\r\n", 1)[0]):
                    break
        self.visits += 1
        if not head.startswith(b"HTTP/1.1 200 ") or json.loads(body) != {
            "visits": self.visits
        }:
            raise ValueError(f"not visit {self.visits}: {response!r}")
        if b"\r\nset-cookie:" in low:
            self._keep(head)

    def _keep(self, head: bytes) -> None:
        """
        Take the cookies that a response has set.
        """
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"set-cookie":
                cookie, _, content = value.partition(b";")[0].strip().partition(b"=")
                self._cookies[cookie] = content
        self._prepare()


def _visit(
    visitors: list[_Visitor], port: int, connections: int, requests: int
) -> dict[str, float | list[int]]:
    """
    Keep several connections busy.

    @param visitors: Those who have been there, to whom new ones are added.
    @return: How long it took, in seconds, and how often each has been there.
    """
    visitors += [_Visitor() for _ in range(connections - len(visitors))]
    opened = [_connect(port) for _ in range(connections)]
    pairs = list(zip(visitors, opened, strict=True))
    begun = monotonic()
    for visitor, connection in pairs:
        visitor.ask(connection)
    for number in range(requests):
        visitor, connection = pairs[number % connections]
        visitor.read(connection)
        if number < requests - connections:
            visitor.ask(connection)
    seconds = monotonic() - begun
    for connection in opened:
        connection.close()
    return {"seconds": seconds, "visits": [each.visits for each in visitors]}


def _main() -> None:
    signal.alarm(LONGEST)
    known: dict[int, list[_Visitor]] = {}
    for line in sys.stdin:
        port, connections, requests = map(int, line.split()[1:])
        visitors = known.setdefault(port, [])
        answer = _visit(visitors, port, connections, requests)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _main()
