"""
A NATS server for tests, which they can start, kill and pause.

Import the fixture by name, C{from .nats_server import ownNats as ownNats}.
"""

from __future__ import annotations

from collections.abc import Iterator
from socket import create_connection

import pytest

from .serverprocess import MAX_SECONDS, ServerProcess, required
from .websupport import reservedPort

__all__ = ["Nats", "ownNats"]


class Nats(ServerProcess):
    """
    A server on the loopback interface.
    """

    def __init__(self, port: int) -> None:
        self._program = required("NATS", "nats-server")
        super().__init__("NATS", port)

    @property
    def url(self) -> str:
        """
        The URL for clients.
        """
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.run([self._program, "--addr", "127.0.0.1", "--port", str(self.port)])

    def answers(self) -> bool:
        with create_connection(("127.0.0.1", self.port), MAX_SECONDS) as connection:
            return connection.recv(4) == b"INFO"


@pytest.fixture
def ownNats() -> Iterator[Nats]:
    """
    A stopped server for one test.
    """
    with reservedPort() as port:
        server = Nats(port)
        yield server
        server.remove()
