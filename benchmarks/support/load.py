"""
The load: many connections to a server, in a process of its own.

The sockets block, and the process reads them one after the other while all others have
a request in progress: this costs the machine least. The process reads commands from its
standard input, and writes a line of JSON for each. It exits when its standard input is
closed, or when its time limit is reached.
"""

from __future__ import annotations

import json
import signal
import socket
import struct
import sys
from collections.abc import Callable
from random import Random
from time import monotonic, sleep
from typing import Any, Final, Protocol

from benchmarks.support.processes import MAX_PROCESS_SECONDS

__all__ = ["Get", "connect", "obey"]

# Closing resets the connection, so that its port can be used again at once.
_RESET: Final = struct.pack("ii", 1, 0)


def connect(port: int, bufferBytes: int = 0) -> socket.socket:
    """
    Connect to a server.

    @param bufferBytes: Size of the system's receive buffer; 0 for its own choice.
    """
    connection = socket.socket()
    if bufferBytes:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, bufferBytes)
    connection.settimeout(MAX_PROCESS_SECONDS)
    connection.connect(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    return connection


def _receive(connection: socket.socket) -> tuple[bytes, bytes]:
    """
    Return the head and the body of one response.
    """
    response = connection.recv(65536)
    while True:
        head, end, body = response.partition(b"\r\n\r\n")
        if end:
            _, _, length = head.lower().partition(b"content-length:")
            if len(body) >= int(length.split(b"\r\n", 1)[0]):
                return head, body
        received = connection.recv(65536)
        if not received:
            raise ConnectionError(f"the connection was closed after {response!r}")
        response += received


class _Client(Protocol):
    """
    Sends requests on one connection, and checks the responses.
    """

    def send(self, connection: socket.socket) -> None:
        """
        Send one request.
        """

    def receive(self, connection: socket.socket) -> None:
        """
        Receive one response.

        @raise ValueError: The response is not the expected one.
        """


class Get:
    """
    Sends the same request each time.
    """

    def __init__(self, path: bytes, expected: bytes) -> None:
        self._request = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path
        self._expected = expected

    def send(self, connection: socket.socket) -> None:
        """
        Send the request.
        """
        connection.sendall(self._request)

    def receive(self, connection: socket.socket) -> None:
        """
        Receive the response, and check how it begins.
        """
        head, body = _receive(connection)
        if not (head.startswith(b"HTTP/1.1 200 ") and body.startswith(self._expected)):
            raise ValueError(f"unexpected response: {head!r} {body!r}")


_SAY: Final = Get(b"/say", b"I say: ")


class _NewUser:
    """
    Creates another user each time.
    """

    def __init__(self) -> None:
        self._number = 0

    def send(self, connection: socket.socket) -> None:
        self._number += 1
        body = b'{"name":"Ada Lovelace","email":"ada.%d@example.org"}' % self._number
        connection.sendall(
            b"POST /users HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
            % (len(body), body)
        )

    def receive(self, connection: socket.socket) -> None:
        head, body = _receive(connection)
        if not head.startswith(b"HTTP/1.1 201 "):
            raise ValueError(f"unexpected response: {head!r} {body!r}")


class _Visitor:
    """
    A visitor with a session. The visitor counts the visits, too.

    @ivar visits: Number of visits with a response.
    """

    def __init__(self) -> None:
        self.visits = 0
        self._cookies: dict[bytes, bytes] = {}
        self._prepareRequest()

    def _prepareRequest(self) -> None:
        cookies = b"; ".join(b"%s=%s" % pair for pair in self._cookies.items())
        line = b"Cookie: %s\r\n" % cookies if cookies else b""
        self._request = b"GET /visits HTTP/1.1\r\nHost: localhost\r\n%s\r\n" % line

    def send(self, connection: socket.socket) -> None:
        connection.sendall(self._request)

    def receive(self, connection: socket.socket) -> None:
        head, body = _receive(connection)
        self.visits += 1
        expected = {"visits": self.visits}
        if not head.startswith(b"HTTP/1.1 200 ") or json.loads(body) != expected:
            raise ValueError(f"this is not visit {self.visits}: {head!r} {body!r}")
        if b"\r\nset-cookie:" in head.lower():
            for line in head.split(b"\r\n"):
                name, _, value = line.partition(b":")
                if name.lower() == b"set-cookie":
                    cookie, _, content = value.partition(b";")[0].partition(b"=")
                    self._cookies[cookie.strip()] = content
            self._prepareRequest()


def _run(clients: list[_Client], port: int, requests: int) -> float:
    """
    Keep one connection for each client busy, and return the total seconds.
    """
    pairs = [(client, connect(port)) for client in clients]
    begun = monotonic()
    for client, connection in pairs:
        client.send(connection)
    for number in range(requests):
        client, connection = pairs[number % len(pairs)]
        client.receive(connection)
        if number < requests - len(pairs):
            client.send(connection)
    seconds = monotonic() - begun
    for _, connection in pairs:
        connection.close()
    return seconds


class _Load:
    """
    The commands, as methods; their arguments are integers.
    """

    def __init__(self) -> None:
        self._held: list[socket.socket] = []
        self._newUser = _NewUser()
        self._visitors: dict[int, list[_Visitor]] = {}

    def say(self, port: int, connections: int, requests: int) -> dict[str, Any]:
        """
        Send requests for C{/say}.
        """
        return {"seconds": _run([_SAY] * connections, port, requests)}

    def get(self, port: int, connections: int, requests: int) -> dict[str, Any]:
        """
        Send requests for a user.
        """
        clients: list[_Client] = [Get(b"/users/3", b"{")] * connections
        return {"seconds": _run(clients, port, requests)}

    def post(self, port: int, connections: int, requests: int) -> dict[str, Any]:
        """
        Create users.
        """
        return {"seconds": _run([self._newUser] * connections, port, requests)}

    def visit(self, port: int, connections: int, requests: int) -> dict[str, Any]:
        """
        Send requests for C{/visits}, and return the visits of each visitor.
        """
        visitors = self._visitors.setdefault(port, [])
        visitors += [_Visitor() for _ in range(connections - len(visitors))]
        seconds = _run([*visitors], port, requests)
        return {"seconds": seconds, "visits": [each.visits for each in visitors]}

    def scrape(self, port: int) -> dict[str, Any]:
        """
        Send one request for the metrics.
        """
        return {"seconds": _run([Get(b"/metrics", b"# HELP ")], port, 1)}

    def probe(self, port: int, requests: int, rate: int) -> dict[str, Any]:
        """
        Send requests for C{/say} at random times, on one connection.

        @return: The seconds that each response took.
        """
        random = Random(port)  # noqa: S311
        seconds = []
        with connect(port) as connection:
            following = monotonic()
            for _ in range(requests):
                following = max(following + random.expovariate(rate), monotonic())
                sleep(max(0.0, following - monotonic()))
                begun = monotonic()
                _SAY.send(connection)
                _SAY.receive(connection)
                seconds.append(monotonic() - begun)
        return {"seconds": seconds}

    def hold(self, port: int, connections: int) -> dict[str, Any]:
        """
        Send a request on each of further connections.
        """
        for _ in range(connections):
            connection = connect(port)
            self._held.append(connection)
            _SAY.send(connection)
        return {"held": len(self._held)}

    def collect(self) -> dict[str, Any]:
        """
        Receive all responses, and return the time of the last.
        """
        for connection in self._held:
            _SAY.receive(connection)
        last = monotonic()
        for connection in self._held:
            connection.close()
        self._held.clear()
        return {"last": last}


def obey(load: object) -> None:
    """
    Carry out the commands on the standard input.

    @param load: Has a method for each command.
    """
    signal.alarm(MAX_PROCESS_SECONDS)
    for line in sys.stdin:
        command, *arguments = line.split()
        method: Callable[..., dict[str, Any]] = getattr(load, command)
        print(json.dumps(method(*map(int, arguments))), flush=True)


if __name__ == "__main__":
    obey(_Load())
