"""
The clients of users: many connections to one server, in a process of their own.

It is told what to do by lines on its standard input, and answers each with a line
of JSON, as L{benchmarks._load} does.
"""

from __future__ import annotations

import json
import signal
import sys
from random import Random
from socket import socket
from time import monotonic, sleep
from typing import Final

from benchmarks._load import _connect
from benchmarks._processes import LONGEST

__all__: list[str] = []

_SAY: Final = b"GET /say HTTP/1.1\r\nHost: localhost\r\n\r\n"

_GET: Final = b"GET /users/3 HTTP/1.1\r\nHost: localhost\r\n\r\n"

_POST: Final = (
    b"POST /users HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s"
)


class _Posts:
    """
    Requests for users whom nobody has asked for before.
    """

    def __init__(self) -> None:
        self._number = 0

    def __call__(self) -> bytes:
        self._number += 1
        body = b'{"name":"Ada Lovelace","email":"ada.%d@example.org"}' % self._number
        return _POST % (len(body), body)


_post = _Posts()


def _read(connection: socket, status: bytes) -> None:
    """
    Read one response.
    """
    response = connection.recv(65536)
    while True:
        head, end, body = response.partition(b"\r\n\r\n")
        if end:
            _, _, length = head.lower().partition(b"content-length:")
            if len(body) >= int(length.split(b"\r\n", 1)[0]):
                break
        received = connection.recv(65536)
        if not received:
            raise ConnectionError(f"the connection was closed after {response!r}")
        response += received
    if not response.startswith(b"HTTP/1.1 " + status):
        raise ValueError(f"not what it should say: {response!r}")


def _ask(kind: str, port: int, connections: int, requests: int) -> dict[str, float]:
    """
    Keep several connections busy.

    @return: How long it took, in seconds.
    """
    status = b"201" if kind == "post" else b"200"
    others = {"get": _GET, "say": _SAY}
    opened = [_connect(port) for _ in range(connections)]
    begun = monotonic()
    for connection in opened:
        connection.sendall(others.get(kind) or _post())
    for number in range(requests):
        connection = opened[number % connections]
        _read(connection, status)
        if number < requests - connections:
            connection.sendall(others.get(kind) or _post())
    seconds = monotonic() - begun
    for connection in opened:
        connection.close()
    return {"seconds": seconds}


def _probe(port: int, requests: int, rate: int) -> dict[str, list[float]]:
    """
    Ask C{/say} now and then, on one connection.

    @return: How long each answer took, in seconds.
    """
    random = Random(port)  # noqa: S311
    taken = []
    with _connect(port) as connection:
        following = monotonic()
        for _ in range(requests):
            following = max(following + random.expovariate(rate), monotonic())
            sleep(max(0.0, following - monotonic()))
            begun = monotonic()
            connection.sendall(_SAY)
            _read(connection, b"200")
            taken.append(monotonic() - begun)
    return {"taken": taken}


def _main() -> None:
    signal.alarm(LONGEST)
    for line in sys.stdin:
        word, *rest = line.split()
        numbers = list(map(int, rest))
        answer: dict[str, float] | dict[str, list[float]]
        answer = _probe(*numbers) if word == "probe" else _ask(word, *numbers)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _main()
