"""
Clients that cost a server more than they should, and a client that suffers from them.

The process reads commands from its standard input, as L{benchmarks.support.load} does.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from random import Random
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector
from time import monotonic, sleep
from typing import Any, Final

from benchmarks.support.load import Get, connect, obey

__all__: list[str] = []

_PIPELINED_BYTES: Final = 64 * 1024

# The buffer of a client that reads nothing is soon full.
_SMALL_BUFFER_BYTES: Final = 4096

_LIVEZ: Final = Get(b"/livez", b"alive")


def _pipelined(path: bytes) -> tuple[int, bytes]:
    """
    Return as many requests as fit into 64 KiB, and their number.
    """
    request = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path
    number = _PIPELINED_BYTES // len(request)
    return number, number * request


def _checkBegin(response: bytes) -> None:
    if not b"HTTP/1.1 200 ".startswith(response[:13]):
        raise ValueError(f"unexpected response: {response!r}")


class _Flooder:
    """
    One connection that sends pipelined requests, reads the responses, and begins
    again. No body contains the end of a head.

    @ivar answered: Number of responses.
    """

    def __init__(self, path: bytes) -> None:
        self.answered = 0
        self._number, self._requests = _pipelined(path)

    def open(self, port: int) -> socket.socket:
        """
        Connect.
        """
        self._unsent = memoryview(self._requests)
        self._unanswered = self._number
        self._tail = b""
        connection = connect(port)
        connection.setblocking(False)
        return connection

    def use(self, connection: socket.socket, events: int) -> bool:
        """
        Send and receive what is possible.

        @return: Whether the connection is still open.
        @raise ValueError: The response is not the expected one.
        """
        try:
            if events & EVENT_WRITE and self._unsent:
                self._unsent = self._unsent[connection.send(self._unsent) :]
            if events & EVENT_READ:
                received = self._tail + connection.recv(65536)
                if received == self._tail:
                    return False
                if not self._tail:
                    _checkBegin(received)
                heads = received.count(b"\r\n\r\n")
                self.answered += heads
                self._unanswered -= heads
                self._tail = received[-3:]
        except ConnectionError:
            return False
        if self._unanswered <= 0:
            self._unsent = memoryview(self._requests)
            self._unanswered = self._number
        return True

    @property
    def awaited(self) -> int:
        """
        The awaited events.
        """
        return EVENT_READ | EVENT_WRITE if self._unsent else EVENT_READ


class _FloodLoad:
    """
    The commands, as methods; their arguments are integers.
    """

    def __init__(self) -> None:
        self._opened: list[socket.socket] = []

    def watch(self, port: int, rate: int, seconds: int) -> dict[str, Any]:
        """
        Send requests for C{/livez} at random times, on one connection.

        @return: The seconds that each response took. A missing response took at least
            as long as the client has waited for it.
        """
        random = Random(port)  # noqa: S311
        times = []
        with connect(port) as connection:
            following = monotonic()
            end = following + seconds
            while following < end:
                sleep(max(0.0, following - monotonic()))
                begun = monotonic()
                connection.settimeout(max(1.0, end - begun))
                try:
                    _LIVEZ.send(connection)
                    _LIVEZ.receive(connection)
                except TimeoutError:
                    following = end
                times.append(monotonic() - begun)
                following = max(following + random.expovariate(rate), monotonic())
        return {"seconds": times}

    def flood(self, port: int, connections: int, seconds: int) -> dict[str, Any]:
        """
        Send pipelined requests for the metrics on many connections.

        @return: Number of responses.
        """
        selector = DefaultSelector()

        def begin(flooder: _Flooder) -> None:
            selector.register(flooder.open(port), flooder.awaited, flooder)

        flooders = [_Flooder(b"/metrics") for _ in range(connections)]
        for each in flooders:
            begin(each)
        end = monotonic() + seconds
        while (left := end - monotonic()) > 0:
            for key, events in selector.select(left):
                connection: Any = key.fileobj
                if key.data.use(connection, events):
                    selector.modify(connection, key.data.awaited, key.data)
                else:
                    selector.unregister(connection)
                    connection.close()
                    begin(key.data)
        for key in list(selector.get_map().values()):
            connection = key.fileobj
            connection.close()
        selector.close()
        return {"answered": sum(each.answered for each in flooders)}

    def ignore(self, port: int, connections: int) -> dict[str, Any]:
        """
        Send pipelined requests for all users on further connections, and read
        nothing.
        """
        _, requests = _pipelined(b"/users")
        for _ in range(connections):
            connection = connect(port, _SMALL_BUFFER_BYTES)
            connection.sendall(requests)
            self._opened.append(connection)
        return {"opened": len(self._opened)}

    def peek(self) -> dict[str, Any]:
        """
        Check how the responses that nobody reads begin.

        @return: Number of connections with a response.
        """
        begun = 0
        for connection in self._opened:
            connection.setblocking(False)
            with suppress(BlockingIOError):
                _checkBegin(connection.recv(13, socket.MSG_PEEK))
                begun += 1
        return {"begun": begun}

    def open(self, port: int, connections: int) -> dict[str, Any]:
        """
        Open further connections, and wait until the server has accepted them. It
        accepts connections in their order.
        """
        self._opened += [connect(port) for _ in range(connections)]
        with connect(port) as last:
            _LIVEZ.send(last)
            _LIVEZ.receive(last)
        return {"opened": len(self._opened)}

    def use(self) -> dict[str, Any]:
        """
        Send one request on each open connection.
        """
        for connection in self._opened:
            _LIVEZ.send(connection)
            _LIVEZ.receive(connection)
        return {"opened": len(self._opened)}


if __name__ == "__main__":
    obey(_FloodLoad())
