"""
A response that is held until something has been done.
"""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionDone
from twisted.logger import LogEvent
from twisted.python.failure import Failure

from tsrv.sessions.deferredresponse import Hold

from .exchanges import exchange
from .support import Trouble
from .websupport import logged, textsOf


class Held:
    """
    A response that is held.

    @ivar doing: What is being done.
    @ivar happened: What was called.
    """

    def __init__(self) -> None:
        self.request: Any = exchange(secure=True)
        self.doing: list[Deferred[None]] = []
        self.happened: list[str] = []
        self.slow = True
        self.aborted = 0
        self.hold = Hold(
            self.request,
            self.do,
            lambda: self.happened.append("begin"),
            lambda: self.happened.append("end"),
        )

        def abort() -> None:
            self.aborted += 1

        transport: Any = self.request.transport
        transport.abortConnection = abort
        self.request.setHeader(b"Content-Length", b"3")

    def do(self) -> Deferred[None] | None:
        """
        Do it once.
        """
        if not self.slow:
            return None
        self.slow = False
        self.doing.append(Deferred())
        return self.doing[-1]

    @property
    def sent(self) -> bytes:
        """
        What was sent of the body.
        """
        whole: bytes = self.request.transport.value()
        return whole.partition(b"\r\n\r\n")[2]


@pytest.fixture
def held() -> Held:
    """
    A response.
    """
    return Held()


def test_nothing_is_sent_before_it_is_done(held: Held) -> None:
    """
    A browser that follows at once has to find it.
    """
    held.request.write(b"one")
    held.request.finish()
    assert (held.sent, held.happened) == (b"", [])
    held.doing[0].callback(None)
    assert (held.sent, held.happened) == (b"one", ["begin", "end"])
    assert "write" not in vars(held.request)


def test_what_is_changed_meanwhile_is_done_too(held: Held) -> None:
    """
    Before the next byte.
    """
    held.request.write(b"one")
    held.slow = True
    held.doing[0].callback(None)
    assert held.sent == b""
    held.request.finish()
    held.doing[1].callback(None)
    assert (held.sent, len(held.doing)) == (b"one", 2)


def test_who_has_left_is_sent_nothing(held: Held) -> None:
    """
    What was begun goes on; if it fails, somebody has to know.
    """
    held.request.write(b"one")
    held.request.connectionLost(Failure(ConnectionDone()))
    assert held.happened == ["end"]
    held.request.write(b"two")
    held.request.finish()
    with logged() as events:
        held.doing[0].errback(Trouble("the disk is full"))
    (text,) = textsOf(events)
    assert "was not saved: the disk is full" in text
    assert held.sent == b""


def test_who_has_left_and_what_was_done(held: Held) -> None:
    """
    Nothing is begun for nobody.
    """
    held.request.write(b"one")
    held.request.connectionLost(Failure(ConnectionDone()))
    held.slow = True
    held.doing[0].callback(None)
    assert (held.sent, len(held.doing)) == (b"", 1)


def test_only_so_much_is_held(held: Held, loggedFailures: list[LogEvent]) -> None:
    """
    A store that does not answer is no reason to run out of memory.
    """
    piece = b"x" * (1024 * 1024)
    for _ in range(64):
        held.request.write(piece)
    assert held.aborted == 0
    held.request.write(b"x")
    assert held.aborted == 1
    assert loggedFailures.pop()["log_failure"].check(MemoryError)
    held.doing[0].callback(None)
    assert held.sent == b""


def test_a_response_that_cannot_be_sent_is_broken_off(
    held: Held, loggedFailures: list[LogEvent]
) -> None:
    """
    Else its client would wait for ever.
    """
    held.request.write(b"one")

    def refuse(data: bytes) -> None:
        raise Trouble("no")

    held.hold._write = refuse
    held.doing[0].callback(None)
    assert held.aborted == 1
    assert loggedFailures.pop()["log_failure"].check(Trouble)


def test_what_fails_in_the_middle_ends_the_connection(
    held: Held, loggedFailures: list[LogEvent]
) -> None:
    """
    A part of it is there already, and must not be taken for the whole.
    """
    held.slow = False
    held.request.write(b"on")
    assert held.sent == b"on"
    held.slow = True
    held.request.write(b"e")
    held.doing[0].errback(Trouble("no"))
    assert (held.sent, held.aborted) == (b"on", 1)
    assert loggedFailures.pop()["log_failure"].check(Trouble)


def test_what_fails_at_once_is_the_response(
    held: Held, loggedFailures: list[LogEvent]
) -> None:
    """
    And what the resource goes on to write is thrown away.
    """
    held.hold._before = lambda: fail(Trouble("no"))
    held.request.write(b"one")
    held.request.write(b"two")
    held.request.finish()
    assert b"500 Internal" in held.request.transport.value()
    assert b"one" not in held.request.transport.value()
    assert loggedFailures.pop()["log_failure"].check(Trouble)
