"""
A RabbitMQ server for tests, which they can start and kill.

Import the fixture by name, C{from .rabbitmq_server import ownRabbit as ownRabbit}. A
start takes seconds, so a test should start the server as seldom as possible.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from socket import create_connection
from time import monotonic, sleep

import pytest

from .serverprocess import MAX_SECONDS, ServerProcess, required
from .websupport import reservedPort

__all__ = ["Rabbit", "ownRabbit"]

_SCRIPTS = "/usr/lib/rabbitmq/bin"
"""
Debian's own scripts in C{/usr/sbin} work only for the users root and rabbitmq.
"""


class Rabbit(ServerProcess):
    """
    A server on the loopback interface, with an C{epmd} of its own.
    """

    def __init__(self, port: int, epmdPort: int, peerPort: int) -> None:
        """
        @param epmdPort: A free port for C{epmd}, which knows the ports of all nodes.
        @param peerPort: A free port for other nodes.
        """
        self._program = required("RabbitMQ", "rabbitmq-server", _SCRIPTS)
        self._epmd = required("RabbitMQ", "epmd")
        super().__init__("RabbitMQ", port)
        self._epmdPort = str(epmdPort)
        self._peerPort = str(peerPort)

    @property
    def url(self) -> str:
        """
        The URL for clients.
        """
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    def start(self) -> None:
        directory = str(self.directory)
        configuration = self.directory / "rabbitmq.conf"
        configuration.write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            "log.file = false\n"
            "log.console = true\n"
            "log.console.level = warning\n"
        )
        self.run(
            [self._epmd, "-address", "127.0.0.1", "-port", self._epmdPort],
            [self._program, "-noinput"],
            HOME=directory,
            ERL_EPMD_ADDRESS="127.0.0.1",
            ERL_EPMD_PORT=self._epmdPort,
            # The script is replaced by the server, and does not wait for it.
            RABBITMQ_ALLOW_INPUT="true",
            RABBITMQ_CONFIG_FILE=str(configuration),
            RABBITMQ_CONF_ENV_FILE="/dev/null",
            RABBITMQ_DIST_PORT=self._peerPort,
            RABBITMQ_ENABLED_PLUGINS_FILE=f"{directory}/plugins",
            RABBITMQ_LOG_BASE=directory,
            RABBITMQ_MNESIA_BASE=f"{directory}/data",
            RABBITMQ_NODENAME="tsrv@localhost",
            RABBITMQ_PID_FILE=f"{directory}/pid",
            RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=(
                "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}"
            ),
        )

    def kill(self) -> None:
        """
        Kill the server, if it runs, once it has written its queues to a file.

        RabbitMQ confirms a durable queue up to 2 s before Mnesia writes it. A kill in
        this time removes the queue with all its confirmed messages.
        """
        if self._processes and self._processes[-1].poll() is None:
            deadline = monotonic() + MAX_SECONDS
            while not self._hasWritten(b"items"):
                assert monotonic() < deadline, "RabbitMQ has not written its queue"
                sleep(0.01)
        super().kill()

    def remove(self) -> None:
        # A test that failed early may have made no queue.
        super().kill()
        super().remove()

    def _hasWritten(self, name: bytes) -> bool:
        tables = self.directory.glob("data/*/rabbit_durable_queue.DC?")
        logs = self.directory.glob("data/*/LATEST.LOG")
        # Mnesia removes a file when it has copied it into another one.
        with suppress(FileNotFoundError):
            return any(name in each.read_bytes() for each in [*tables, *logs])
        return False

    def answers(self) -> bool:
        with create_connection(("127.0.0.1", self.port), MAX_SECONDS) as connection:
            connection.sendall(b"AMQP\0\0\x09\x01")
            return connection.recv(1) == b"\1"


@pytest.fixture
def ownRabbit() -> Iterator[Rabbit]:
    """
    A stopped server for one test.
    """
    with reservedPort() as port, reservedPort() as epmd, reservedPort() as peer:
        server = Rabbit(port, epmd, peer)
        yield server
        server.remove()
