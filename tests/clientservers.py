"""
Servers for those clients of C{examples/clients} that bring no server.

Run C{python clientservers.py lines PORT FILE} or C{http PORT FILE}. The file contains
everything that was acknowledged. The server writes C{listening}, and exits when its
standard input is closed.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from typing import Any, cast

from twisted.internet import reactor as theReactor
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.stdio import StandardIO
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

reactor: Any = theReactor


class Items:
    """
    Items in a file, one a line.
    """

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_RDWR)

    def add(self, item: str) -> None:
        # The file is unbuffered: everything that a killed process has written is in the
        # file.
        os.write(self._file, f"{item}\n".encode())

    def all(self) -> list[str]:
        size = os.fstat(self._file).st_size
        return os.pread(self._file, size, 0).decode().splitlines()


class LineServer(LineReceiver):
    """
    Answers lines of JSON.
    """

    factory: Factory

    def lineReceived(self, line: bytes) -> None:
        items: Items = self.factory.items  # type: ignore[attr-defined]
        name, *arguments = json.loads(line)
        if name == "add":
            items.add(*arguments)
        answer = items.all() if name == "items" else None
        self.sendLine(json.dumps(answer).encode())


class Api(Resource):
    """
    An HTTP API that answers only clients that have logged in since its start.
    """

    isLeaf = True

    def __init__(self, items: Items) -> None:
        super().__init__()
        self._items = items
        self._token = secrets.token_hex()

    def render(self, request: Request) -> bytes:
        given = request.getHeader("authorization")
        body = cast(Any, request.content).read()
        answer: object = None
        if request.path == b"/login":
            answer = self._token
        elif given != f"Bearer {self._token}":
            request.setResponseCode(401)
            answer = "log in first"
        elif request.method == b"POST":
            self._items.add(json.loads(body))
        elif request.path == b"/items":
            answer = self._items.all()
        return json.dumps(answer).encode()


class Watch(Protocol):
    """
    The standard input.
    """

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        reactor.stop()


def main(kind: str, port: str, path: str) -> None:
    """
    Serve until the standard input is closed.
    """
    items = Items(path)
    factory: Any = Factory.forProtocol(LineServer)
    factory.items = items
    if kind == "http":
        factory = Site(Api(items))
    reactor.listenTCP(int(port), factory, interface="127.0.0.1")
    StandardIO(Watch())
    sys.stderr.write("listening\n")
    sys.stderr.flush()
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
