"""
The load: many connections to one server, in a process of its own.

Blocking sockets, read one after the other while all the others have a request
on its way, cost the machine least. It is told what to do by lines on its
standard input; it answers each with a line of JSON. It ends when its standard
input does, and of itself when it is too old.
"""

from __future__ import annotations

import json
import signal
import socket
import struct
import sys
from time import monotonic

from benchmarks._processes import LONGEST

__all__: list[str] = []

_REQUEST = b"GET /say HTTP/1.1\r\nHost: localhost\r\n\r\n"

_SCRAPE = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"

# To close resets the connection, so that no port is kept from being used again.
_RESET = struct.pack("ii", 1, 0)


def _connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), LONGEST)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    return connection


def _read(connection: socket.socket, expected: bytes = b"I say: ") -> None:
    """
    Read one response.

    @param expected: How its body has to begin.
    """
    response = b""
    while True:
        received = connection.recv(65536)
        if not received:
            raise ConnectionError(f"the connection was closed after {response!r}")
        response += received
        head, end, body = response.partition(b"\r\n\r\n")
        if end:
            _, _, length = head.lower().partition(b"content-length:")
            if len(body) >= int(length.split(b"\r\n", 1)[0]):
                break
    if not (response.startswith(b"HTTP/1.1 200 ") and body.startswith(expected)):
        raise ValueError(f"not what it should say: {response!r}")


def _ask(port: int, connections: int, requests: int) -> dict[str, float]:
    """
    Keep several connections busy.

    @return: How long it took, in seconds.
    """
    opened = [_connect(port) for _ in range(connections)]
    begun = monotonic()
    for connection in opened:
        connection.sendall(_REQUEST)
    for number in range(requests):
        connection = opened[number % connections]
        _read(connection)
        if number < requests - connections:
            connection.sendall(_REQUEST)
    seconds = monotonic() - begun
    for connection in opened:
        connection.close()
    return {"seconds": seconds}


def _scrape(port: int) -> dict[str, float]:
    """
    Ask for the metrics once.

    @return: How long it took, in seconds.
    """
    begun = monotonic()
    with _connect(port) as connection:
        connection.sendall(_SCRAPE)
        _read(connection, b"# HELP ")
    return {"seconds": monotonic() - begun}


class _Held:
    """
    Connections whose requests are not answered yet.
    """

    def __init__(self) -> None:
        self._opened: list[socket.socket] = []

    def hold(self, port: int, connections: int) -> dict[str, float]:
        """
        Ask something on each of so many more.

        @return: How many there are.
        """
        for _ in range(connections):
            connection = _connect(port)
            self._opened.append(connection)
            connection.sendall(_REQUEST)
        return {"held": len(self._opened)}

    def collect(self) -> dict[str, float]:
        """
        Read all answers.

        @return: When the last one was there.
        """
        for connection in self._opened:
            _read(connection)
        last = monotonic()
        for connection in self._opened:
            connection.close()
        self._opened.clear()
        return {"last": last}


def _main() -> None:
    signal.alarm(LONGEST)
    held = _Held()
    for line in sys.stdin:
        word, *rest = line.split()
        numbers = map(int, rest)
        if word == "ask":
            answer = _ask(*numbers)
        elif word == "scrape":
            answer = _scrape(*numbers)
        elif word == "hold":
            answer = held.hold(*numbers)
        else:
            answer = held.collect()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _main()
