"""
The server starts and stops in an order that loses no request.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from socket import AF_UNIX, SOCK_DGRAM, socket
from threading import Thread
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.logger import LogLevel
from twisted.python.failure import Failure
from zope.interface import implementer

from tsrv import OutcomeUnknown
from tsrv.asyncmodule import IPredictable
from tsrv.server.assembly import assemble, checkSettings
from tsrv.server.options import Options
from tsrv.server.process import handleSignals
from tsrv.startup import GraphError
from tsrv.web.site import Site

from .support import (
    Empty,
    Module,
    Refused,
    Result,
    RunningReactor,
    Trouble,
    resultOf,
)
from .websupport import (
    Answer,
    Peer,
    Teller,
    answersIn,
    ask,
    errorsIn,
    logged,
    passTime,
    textsOf,
)

SAY = b"GET /say HTTP/1.1\r\nHost: test\r\n\r\n"

OPERATIONS = ["/", "/livez", "/readyz", "/startup", "/metrics"]


class Port:
    """
    A port that closes when the test says so.
    """

    def __init__(self, number: int, steps: list[str]) -> None:
        self._number = number
        self._steps = steps
        self.closed: Deferred[None] = Deferred()

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", self._number)

    def stopListening(self) -> Deferred[None]:
        self._steps.append(f"close {self._number}")
        return self.closed


class Machine(RunningReactor):
    """
    A reactor in memory that records what is opened, with the sites by port number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[str] = []
        self.ports: dict[int, Port] = {}
        self.sites: dict[int, Site] = {}

    def listenTCP(
        self, port: int, factory: Any, backlog: int = 50, interface: str = ""
    ) -> Any:
        self.steps.append(f"open {port}")
        self.sites[port] = factory
        self.ports[port] = Port(port, self.steps)
        return self.ports[port]


class Slow(Teller):
    """
    A clock that records its life cycle, and closes when the test says so.
    """

    def __init__(self, steps: list[str]) -> None:
        super().__init__()
        self._steps = steps
        self.closing: Deferred[None] = Deferred()

    def initialize(self) -> Deferred[None]:
        self._steps.append("initialize")
        return super().initialize()

    def close(self) -> Deferred[None]:
        self._steps.append("close clock")
        return self.closing


class Parts:
    """
    A server on port 80, and its parts.
    """

    def __init__(
        self, machine: Machine, *arguments: str, notify: str = "", **fakes: object
    ) -> None:
        self.machine = machine
        self.steps = machine.steps
        self.clock = Slow(self.steps)
        options = Options({})
        options.parseOptions(["--listen=tcp:80", *arguments])
        self.operations = 81 if options["operations-listen"] else 80
        environment = {"NOTIFY_SOCKET": notify} if notify else {}
        replacements = {"clock": self.clock, "database": Empty(), **fakes}
        self.server = assemble(
            options,
            machine,
            replacements=replacements,
            environment=environment,
            ownsProcess=False,
        )

    def start(self) -> None:
        """
        Start the server as C{twistd} does.
        """
        self.server.privilegedStartService()
        self.server.startService()

    def startReady(self) -> None:
        self.start()
        self.clock.starting.callback(None)
        self.steps.clear()

    def stop(self) -> Result:
        """
        Stop the server, and let it check once for pending connections.
        """
        stopped = resultOf(self.server.stopService())
        self.machine.advance(0)
        return stopped

    def stopAtOnce(self) -> Result:
        """
        Stop the server; its ports and its clock close at once.
        """
        for port in self.machine.ports.values():
            port.closed.callback(None)
        self.clock.closing.callback(None)
        return self.stop()

    def connect(self, data: bytes = SAY, port: int = 80) -> Peer:
        """
        Connect, and send a request that waits for the clock.
        """
        peer = Peer(self.machine.sites[port], self.machine)
        peer.send(data)
        return peer

    def ask(self, path: str, port: int = 80) -> Answer:
        return ask(self.machine.sites[port].resource, path)

    def status(self, path: str, port: int) -> int:
        """
        @return: The status of a page, on a new connection.
        """
        peer = self.connect(
            f"HEAD {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode(), port
        )
        if path == "/say" and self.clock.answers:
            self.clock.answers.pop().callback("Something")
        (answer,) = answersIn(peer.received, bodies=False)
        peer.leave()
        return answer.status

    def askReady(self) -> Answer:
        return self.ask("/readyz", self.operations)


@pytest.fixture
def machine() -> Iterator[Machine]:
    """
    A reactor on which no call may be pending when the test ends.
    """
    machine = Machine()
    yield machine
    assert machine.getDelayedCalls() == []


@pytest.fixture
def parts(machine: Machine) -> Parts:
    """
    A server with one site.
    """
    return Parts(machine)


@pytest.fixture
def separate(machine: Machine) -> Parts:
    """
    A server with a separate site for operators, on port 81.
    """
    return Parts(machine, "--operations-listen=tcp:81")


# Starting.


def test_it_listens_before_it_initialises(separate: Parts) -> None:
    """
    All ports are open before a module is initialised. The log has the fixed lines
    around the table of the start-up.
    """
    with logged() as events:
        separate.server.privilegedStartService()
        assert separate.steps == ["open 80", "open 81"]
        separate.server.startService()
        assert separate.steps[2:] == ["initialize"]
        assert textsOf(events)[1:] == ["Started"]
        assert separate.askReady().status == 503
        separate.machine.advance(2.5)
        separate.clock.starting.callback(None)
    assert errorsIn(events) == []
    texts = textsOf(events)
    assert texts[1] == "Started"
    assert "Async module initialized" in texts
    assert "ready after 2.5" in max(texts, key=len)
    assert separate.stopAtOnce().value is None


def test_wrong_modules_are_found_before_it_listens(machine: Machine) -> None:
    """
    An error in the graph of modules ends the start before a port is open.
    """
    parts = Parts(machine, clok=Slow([]))
    with pytest.raises(GraphError, match="'clok' is replaced, but was never added"):
        parts.server.privilegedStartService()
    assert machine.steps == []


URL = "--config-url=http://127.0.0.1:9/"


@pytest.mark.parametrize(
    ("arguments", "database", "sessions"),
    [
        ([], [], ["database"]),
        ([URL], ["configuration"], ["database"]),
        ([URL, "--database=sqlite:d"], [], ["database"]),
        (["--sessions=sqlite:s?table=visitors"], [], []),
        (["--sessions=redis://127.0.0.1:1/"], [], []),
    ],
)
def test_modules_need_what_the_options_say(
    machine: Machine, arguments: list[str], database: list[str], sessions: list[str]
) -> None:
    """
    The database needs the settings only if they contain its URL, and only then are the
    settings required. The sessions need the database only if it contains them.
    """
    modules = Parts(machine, *arguments).server.startup.report()["modules"]
    optional = [module["name"] for module in modules if not module["required"]]
    hasSettings = any("config" in argument for argument in arguments)
    assert optional == (["configuration"] if hasSettings and not database else [])
    needs = {module["name"]: module["needs"] for module in modules}
    assert needs.pop("configuration", []) == []
    assert needs == {"clock": [], "database": database, "sessions": sessions}


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"database": "sqlite:d", "more": 1}, None),
        ({}, '"database" must be a database URL'),
        ({"database": 1}, '"database" must be a database URL'),
        ({"database": "mysql://u:hush@h/n"}, '"database": '),
    ],
)
def test_settings_must_name_the_database(
    settings: dict[str, object], problem: str | None
) -> None:
    """
    Settings without a database are refused, so they never replace good ones.
    """
    found = checkSettings(settings)
    assert (found is None) is (problem is None)
    assert (found or "").startswith(problem or "")
    assert "hush" not in (found or "")


def test_with_stay_up_a_failed_server_reports(machine: Machine) -> None:
    """
    With C{--stay-up} a server whose clock has failed continues to respond, and reports
    the failure.
    """
    parts = Parts(machine, "--stay-up")
    parts.start()
    waiting = parts.connect()
    with logged() as events:
        parts.server.startup.wrappers["clock"].fail(Refused("no way"))
    assert "Refused: no way" in textsOf(events)[0]
    assert events[-1]["log_level"] is LogLevel.critical
    assert [answer.status for answer in waiting.answers] == [503]
    assert parts.ask("/livez").status == 200
    assert b"clock" in parts.askReady().body
    assert parts.ask("/say").status == 503
    waiting.leave()
    assert parts.stopAtOnce().value is None


def test_without_queues_the_clock_is_called_directly(machine: Machine) -> None:
    """
    With C{--direct} a request reaches the clock although it is not ready.
    """
    parts = Parts(machine, "--direct")
    parts.start()
    peer = parts.connect()
    parts.clock.answers[0].callback("Something")
    assert [answer.body for answer in peer.answers] == [b"I say: Something"]
    peer.leave()
    assert parts.stopAtOnce().value is None


@pytest.mark.parametrize("option", ["--queue-timeout=5", "--queue-limit=0"])
def test_a_request_that_cannot_wait_fails(machine: Machine, option: str) -> None:
    """
    If the queue is full, or at the queue timeout, a request fails, and the response
    says when to retry.
    """
    parts = Parts(machine, option)
    parts.start()
    peer = parts.connect()
    machine.advance(5)
    assert [answer.status for answer in peer.answers] == [503]
    assert int(peer.answers[0].headers["retry-after"]) > 0
    peer.leave()
    assert parts.stopAtOnce().value is None


class Store(Module):
    """
    A session store whose calls the test answers.
    """

    def get(self, key: str) -> Deferred[Any]:
        return self.read(f"get {key}")

    def all(self) -> Deferred[Any]:
        return self.read("all")

    def length(self) -> Deferred[Any]:
        return self.read("length")

    def destroy(self, key: str) -> Deferred[Any]:
        return self.read(f"destroy {key}")


def test_reads_of_sessions_are_repeated_after_a_loss(machine: Machine) -> None:
    """
    After a loss of the session store, only calls that read are repeated.
    """
    store = Store()
    parts = Parts(machine, "--sessions=redis://127.0.0.1:1/", sessions=store)
    parts.start()
    store.attempts[0].callback(None)
    proxy = parts.server.startup.wrappers["sessions"].proxy
    reads = [resultOf(call) for call in (proxy.get("a"), proxy.all(), proxy.length())]
    change = resultOf(proxy.destroy("a"))
    store.watches[0].callback(None)
    machine.advance(4)
    store.attempts[1].callback(None)
    repeated = [call for _, call in store.calls[4:]]
    assert repeated == ["get a", "all", "length"]
    for answer in store.answers[4:]:
        answer.callback(1)
    assert [read.value for read in reads] == [1, 1, 1]
    assert isinstance(change.error, OutcomeUnknown)
    stopped = parts.stopAtOnce()
    store.closings[0].callback(None)
    assert stopped.value is None


# Limits for requests.


@pytest.mark.parametrize("port", [80, 81])
def test_an_idle_connection_stays_open_for_a_while(machine: Machine, port: int) -> None:
    """
    On both sites, an idle connection stays open for C{--keep-alive} seconds.
    """
    parts = Parts(machine, "--operations-listen=tcp:81", "--keep-alive=3")
    parts.startReady()
    peer = parts.connect(b"GET /none HTTP/1.1\r\nHost: test\r\n\r\n", port)
    passTime(machine, 3)
    assert not peer.closed
    passTime(machine, 1)
    assert peer.closed
    parts.stopAtOnce()


@pytest.mark.parametrize("port", [80, 81])
def test_a_request_has_to_arrive_in_time(machine: Machine, port: int) -> None:
    """
    On both sites, head and body must arrive within C{--request-timeout}.
    """
    parts = Parts(machine, "--operations-listen=tcp:81", "--request-timeout=3")
    parts.startReady()
    head = parts.connect(SAY[:20], port)
    body = parts.connect(
        b"PUT / HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\n", port
    )
    for _ in range(5):
        machine.advance(0.5)
        body.send(b"x")
    assert head.received == body.received == b""
    passTime(machine, 1.5)
    assert [peer.answers[0].status for peer in (head, body)] == [408, 408]
    head.leave()
    body.leave()
    parts.stopAtOnce()


@pytest.mark.parametrize(
    ("route", "limit"),
    [
        ("/users", 16 * 1024),
        ("/users/3", 16 * 1024),
        ("/login", 4 * 1024),
        ("/logout", 4 * 1024),
        ("/visits", 4 * 1024),
        ("/say", 64 * 1024),
        ("/nonexistent", 64 * 1024),
    ],
)
def test_a_route_limits_its_body(parts: Parts, route: str, limit: int) -> None:
    """
    A body that is longer than its route allows is refused before it arrives.
    """
    parts.startReady()
    head = "PUT {} HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n"
    allowed = parts.connect(head.format(route, limit).encode())
    assert allowed.received == b""
    refused = parts.connect(head.format(route, limit + 1).encode())
    assert refused.answers[0].status == 413
    allowed.leave()
    refused.leave()
    parts.stopAtOnce()


def test_a_hostile_client_writes_nothing_into_the_log(parts: Parts) -> None:
    """
    Refused, slow, idle and abandoned requests have no line in the log.
    """
    head = b"POST /users HTTP/1.1\r\nHost: test\r\n"
    parts.startReady()
    with logged() as events:
        peers = [
            parts.connect(data)
            for data in (
                b"",
                b"\x16\x03\x01\x02\x00",
                b"GET /say HT",
                b"GET /say HTTP/1.1\r\n\r\n",
                b"GET /" + b"x" * 20_000,
                head + b"Content-Length: x\r\n\r\n",
                head + b"Content-Length: 20000\r\n\r\n",
                head + b"Content-Length: 200\r\n\r\nx",
                head
                + b"Content-Length: 3\r\nContent-Type: application/json\r\n\r\nxxx",
                head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
            )
        ]
        gone = parts.connect()
        gone.leave()
        passTime(parts.machine, 80)
    assert all(peer.closed for peer in peers)
    assert textsOf(events) == []
    parts.stopAtOnce()


# Stopping.


def test_it_stops_in_the_opposite_order(parts: Parts) -> None:
    """
    First the port is closed, then requests in progress finish, and the clock is closed
    when no request needs it.
    """
    parts.startReady()
    assert parts.askReady().status == 200
    peer = parts.connect()
    with logged() as events:
        stopped = parts.stop()
        assert parts.steps == ["close 80"]
        assert parts.askReady().status == 503
        parts.machine.ports[80].closed.callback(None)
        parts.machine.advance(20)
        assert parts.steps == ["close 80"]
        parts.clock.answers[0].callback("Something")
        assert [answer.status for answer in peer.answers] == [200]
        assert peer.closed
        assert parts.steps == ["close 80", "close clock"]
        assert stopped.pending
        parts.clock.closing.callback(None)
        assert stopped.value is None
    assert textsOf(events) == [
        "Stopped listening, finishing 1 request in progress: 25 s left, "
        "press Ctrl-C again to stop now",
        "Waiting for 1 request in progress: 5 s left, press Ctrl-C again to stop now",
        "Stopped",
    ]
    assert errorsIn(events) == []


def test_queued_requests_are_answered_during_shutdown(parts: Parts) -> None:
    """
    A server that stops during its start finishes the initialisation for its queued
    requests.
    """
    parts.start()
    peer = parts.connect()
    stopped = parts.stopAtOnce()
    parts.clock.starting.callback(None)
    parts.clock.answers[0].callback("Something")
    assert [answer.status for answer in peer.answers] == [200]
    assert parts.askReady().status == 503
    assert peer.closed
    assert stopped.value is None


def test_the_drain_timeout_ends_the_wait(machine: Machine) -> None:
    """
    At the drain timeout queued requests get 503, and connections that are still open
    are aborted.
    """
    parts = Parts(machine, "--drain-timeout=5")
    parts.start()
    waiting = parts.connect()
    parts.machine.ports[80].closed.callback(None)
    incomplete = parts.connect(SAY[:-2] + b"Content-Length: 9\r\n\r\n")
    with logged() as events:
        stopped = parts.stop()
        machine.advance(4.9)
        assert "close clock" not in parts.steps
        machine.advance(0.1)
        assert parts.steps[-1] == "close clock"
        assert [answer.status for answer in waiting.answers] == [503]
        assert waiting.closed
        parts.clock.closing.callback(None)
        assert stopped.pending
        machine.advance(2)
        assert stopped.value is None
        assert incomplete.closed
        assert incomplete.transport.aborted
    assert textsOf(errorsIn(events)) == [
        "Drain timeout reached: aborting 2 requests in progress."
    ]


def test_a_second_signal_is_not_logged_as_a_timeout(parts: Parts) -> None:
    """
    After a second signal, the log does not report a timeout.
    """
    parts.start()
    peer = parts.connect()
    parts.machine.ports[80].closed.callback(None)
    with logged() as events:
        parts.server.stopNow()
        parts.stop()
        parts.machine.advance(0)
    parts.clock.closing.callback(None)
    assert peer.closed
    assert textsOf(errorsIn(events)) == [
        "Told to stop now: aborting 1 request in progress."
    ]


def test_a_second_signal_leaves_time_to_send_responses(parts: Parts) -> None:
    """
    After a second signal, a queued request gets 503 before its connection is closed.
    """
    parts.start()
    peer = Peer(parts.machine.sites[80], parts.machine, isReading=False)
    peer.send(SAY)
    parts.server.stopNow()
    with logged() as events:
        stopped = parts.stopAtOnce()
    assert len(errorsIn(events)) == 1
    assert not peer.transport.aborted
    peer.read()
    assert [answer.status for answer in peer.answers] == [503]
    parts.machine.advance(0.1)
    assert stopped.value is None


def test_a_stopping_server_waits_for_load_balancers(machine: Machine) -> None:
    """
    For C{--shutdown-delay} seconds C{/readyz} is 503, while new connections are still
    accepted and served. Each response closes its connection.
    """
    parts = Parts(machine, "--shutdown-delay=5")
    parts.startReady()
    with logged() as events:
        stopped = parts.stop()
        machine.advance(4.9)
        assert parts.status("/readyz", 80) == 503
        peer = parts.connect()
        parts.clock.answers.pop().callback("Something")
        (answer,) = peer.answers
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert peer.closed
        assert parts.steps == []
        machine.advance(0.1)
        machine.advance(0)
        assert parts.steps == ["close 80"]
        parts.machine.ports[80].closed.callback(None)
        parts.clock.closing.callback(None)
        assert stopped.value is None
    assert textsOf(events) == [
        "Still accepting connections for 5 s, so that load balancers notice; "
        "press Ctrl-C again to stop now",
        "Stopped listening",
        "Stopped",
    ]


def test_a_second_signal_ends_the_wait_for_load_balancers(machine: Machine) -> None:
    """
    A second signal also ends the wait for load balancers.
    """
    parts = Parts(machine, "--shutdown-delay=5")
    parts.startReady()
    stopped = parts.stop()
    parts.server.stopNow()
    machine.advance(0)
    assert parts.steps == ["close 80"]
    parts.machine.ports[80].closed.callback(None)
    parts.clock.closing.callback(None)
    assert stopped.value is None


def test_a_server_that_never_listened_waits_for_no_load_balancer(
    machine: Machine,
) -> None:
    """
    A server that never listened does not wait for load balancers, since nobody can have
    sent requests to it.
    """
    parts = Parts(machine, "--shutdown-delay=5")
    assert parts.stop().value is None


def test_the_log_counts_the_requests_that_a_stop_waits_for(parts: Parts) -> None:
    """
    During a stop, the log says every five seconds how many requests are in progress,
    for how long at most, and how to skip the wait.
    """
    parts.startReady()
    peers = [parts.connect(), parts.connect()]
    with logged() as events:
        stopped = parts.stop()
        parts.machine.ports[80].closed.callback(None)
        passTime(parts.machine, 6)
        parts.clock.answers.pop().callback("Something")
        passTime(parts.machine, 6)
        parts.clock.answers.pop().callback("Something")
        parts.clock.closing.callback(None)
        passTime(parts.machine, 30)
        assert stopped.value is None
    assert [answer.status for peer in peers for answer in peer.answers] == [200, 200]
    hint = "press Ctrl-C again to stop now"
    assert textsOf(events) == [
        f"Stopped listening, finishing 2 requests in progress: 25 s left, {hint}",
        f"Waiting for 2 requests in progress: 20 s left, {hint}",
        f"Waiting for 1 request in progress: 15 s left, {hint}",
        "Stopped",
    ]


@implementer(IPredictable)
class Foreseeing(Slow):
    """
    A clock that predicts the time of its initialisation.
    """

    def __init__(self, steps: list[str], seconds: float) -> None:
        super().__init__(steps)
        self.seconds = seconds

    def secondsUntilInitialized(self) -> float | None:
        return self.seconds


@pytest.mark.parametrize("seconds", [24.0, 57.0])
def test_what_cannot_become_ready_in_time_is_given_up(
    machine: Machine, seconds: float
) -> None:
    """
    A request whose module needs more time than the drain has left gets 503 at once, and
    the stop does not wait for it; any other request is answered.
    """
    clock = Foreseeing(machine.steps, seconds)
    parts = Parts(machine, clock=clock)
    parts.start()
    peer = parts.connect()
    parts.machine.ports[80].closed.callback(None)
    clock.closing.callback(None)
    stopped = parts.stop()
    if seconds < 25:
        assert stopped.pending
        assert peer.answers == []
        clock.starting.callback(None)
        clock.answers.pop().callback("Something")
    (answer,) = peer.answers
    assert answer.status == (200 if seconds < 25 else 503)
    assert stopped.value is None


def test_a_clock_that_does_not_close_is_left_behind(parts: Parts) -> None:
    """
    If closing a module fails, the shutdown continues.
    """
    parts.startReady()
    parts.machine.ports[80].closed.callback(None)
    with logged() as events:
        stopped = parts.stop()
        parts.clock.closing.errback(Failure(Trouble("stuck")))
        assert stopped.value is None
    (text,) = textsOf(errorsIn(events))
    assert "clock: failed to close (Trouble: stuck)" in text


def test_an_initialisation_without_requests_is_given_up(parts: Parts) -> None:
    """
    A server that stops during its start, without queued requests, stops at once.
    """
    parts.start()
    with logged() as events:
        assert parts.stopAtOnce().value is None
    assert parts.clock.starting.called
    assert errorsIn(events) == []
    assert "Async module initialized" not in textsOf(events)


def test_a_server_that_was_never_started_can_be_stopped(parts: Parts) -> None:
    """
    A server that was never started can be stopped: if one service of a program fails to
    start, Twisted stops all of them.
    """
    assert parts.stop().value is None
    assert parts.steps == []


def test_a_server_is_started_only_once(parts: Parts) -> None:
    """
    A second start is refused, also after the stop: no port opens for modules that are
    closed.
    """
    parts.start()
    with pytest.raises(RuntimeError, match="a server is started only once"):
        parts.server.startService()
    parts.stopAtOnce()
    with pytest.raises(RuntimeError, match="a server is started only once"):
        parts.server.startService()
    assert parts.steps.count("open 80") == 1


def test_a_stopped_server_opens_no_port(parts: Parts) -> None:
    """
    A server that was stopped before its start stays stopped.
    """
    parts.server.stopService()
    with pytest.raises(RuntimeError, match="a server is started only once"):
        parts.server.startService()
    assert parts.steps.count("open 80") == 0


def test_a_server_may_be_stopped_before_the_reactor_runs(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A server that is stopped before the reactor runs stays stopped.
    """
    whenRunning: list[Callable[[], object]] = []
    monkeypatch.setattr(parts.machine, "callWhenRunning", whenRunning.append)
    parts.start()
    assert parts.stopAtOnce().value is None
    with logged() as events:
        for call in whenRunning:
            call()
    assert textsOf(events) == []
    assert "initialize" not in parts.steps


def test_repeated_stops_wait_for_one_shutdown(separate: Parts) -> None:
    """
    A repeated stop waits for the same shutdown; cancelling the wait does not affect the
    shutdown.
    """
    separate.startReady()
    with logged() as events:
        first, second = separate.stop(), separate.server.stopService()
        cancelled = resultOf(second)
        second.cancel()
        assert not cancelled.pending
        for port in separate.machine.ports.values():
            port.closed.callback(None)
        separate.clock.closing.callback(None)
        assert first.value is None
        assert separate.stop().value is None
    assert separate.steps == ["close 80", "close clock", "close 81"]
    assert textsOf(events).count("Stopped") == 1


def drain(systemd: socket) -> list[bytes]:
    """
    @return: The received messages.
    """
    received = []
    with suppress(BlockingIOError):
        while True:
            received.append(systemd.recv(4096))
    return received


def test_systemd_is_notified(machine: Machine, tmp_path: Path) -> None:
    """
    systemd is notified of readiness only when the server is ready, and of the stop as
    soon as it is announced.
    """
    path = str(tmp_path / "notify")
    with socket(AF_UNIX, SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.setblocking(False)
        parts = Parts(machine, notify=path)
        parts.start()
        machine.advance(1)
        assert b"STATUS=waiting for clock" in drain(systemd)
        parts.clock.starting.callback(None)
        machine.advance(1)
        assert b"READY=1\nSTATUS=ready" in drain(systemd)
        parts.server.announceStop()
        assert drain(systemd)[0].startswith(b"STOPPING=1\nSTATUS=stopping")
        assert parts.stopAtOnce().value is None


# The pages for operators.


def test_by_default_all_pages_are_on_one_site(parts: Parts) -> None:
    """
    Without C{--operations-listen} all pages are on the same port, and the status page
    links to them.
    """
    parts.startReady()
    page = parts.ask("/").body.decode()
    for path in ("/say", *OPERATIONS):
        assert parts.status(path, 80) == 200, path
        assert path == "/" or f">{path.lstrip('/')}</a>" in page
    for path in ("/visits", "/me", "/login"):
        assert f'<a href="{path}">' in page
    assert parts.stopAtOnce().value is None


def test_a_separate_site_has_the_pages_for_operators(separate: Parts) -> None:
    """
    With C{--operations-listen} each page is on one of the two ports, and the same
    metrics count both.
    """
    separate.startReady()
    for path in OPERATIONS:
        statuses = separate.status(path, 80), separate.status(path, 81)
        assert statuses == (404, 200), path
    assert (separate.status("/say", 80), separate.status("/say", 81)) == (200, 404)
    page = separate.ask("/", 81).body
    assert b'"/say"' not in page
    assert b'"livez"' in page
    metrics = separate.ask("/metrics", 81).body
    assert b'route="(unknown)"' in metrics
    assert b'route="/livez"' in metrics
    assert separate.stopAtOnce().value is None


def test_a_separate_site_is_served_until_the_end(separate: Parts) -> None:
    """
    During a stop the operator pages are served. An operator's connection that stays
    open delays the end by two seconds only.
    """
    separate.startReady()
    peer = separate.connect()
    head = b"GET /livez HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\n"
    incomplete = separate.connect(head, 81)
    stopped = separate.stop()
    separate.machine.ports[80].closed.callback(None)
    assert [separate.status(path, 81) for path in ("/livez", "/readyz")] == [200, 503]
    separate.clock.answers[0].callback("Something")
    assert peer.closed
    assert separate.steps == ["close 80", "close clock"]
    separate.clock.closing.callback(None)
    assert separate.steps[2:] == ["close 81"]
    separate.machine.ports[81].closed.callback(None)
    assert stopped.pending
    assert not incomplete.closed
    separate.machine.advance(2)
    assert incomplete.transport.aborted
    assert incomplete.closed
    assert stopped.value is None


@pytest.mark.parametrize("arguments", [[], ["--operations-listen=tcp:81"]])
def test_messages_of_errors_are_for_operators(
    machine: Machine, arguments: list[str]
) -> None:
    """
    The message of an error may contain a password, so only the separate site shows it;
    every site shows the type of the error.
    """
    parts = Parts(machine, *arguments)
    parts.start()
    port = parts.operations
    parts.clock.starting.errback(Failure(Trouble("password hush refused")))
    machine.advance(0.25)
    bodies = {path: parts.ask(path, port).body for path in OPERATIONS}
    shown = {path for path, body in bodies.items() if b"hush" in body}
    assert shown == ({"/", "/startup"} if port == 81 else set())
    for path in ("/", "/readyz", "/startup"):
        assert b"Trouble" in bodies[path]
    assert json.loads(bodies["/startup"])["modules"][0]["name"] == "clock"
    assert parts.stopAtOnce().value is None


# Signals.


@pytest.fixture
def signals() -> Iterator[None]:
    """
    Restore the signal handlers after a test.
    """
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


class Loop:
    """
    A reactor that records calls of its stop(), and has handlers of signals.
    """

    def __init__(self) -> None:
        self.stopped: list[str] = []
        self._calls: list[Callable[[], None]] = []

    def sigTerm(self, number: int, frame: object) -> None: ...

    def sigInt(self, number: int, frame: object) -> None: ...

    def callFromThread(self, call: Callable[..., None], *arguments: object) -> None:
        self._calls.append(partial(call, *arguments))

    def stop(self) -> None:
        self.stopped.append("stop")

    def turn(self) -> None:
        while self._calls:
            self._calls.pop(0)()


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize(
    ("first", "second"),
    [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)],
)
@pytest.mark.parametrize("isEarly", [True, False])
def test_a_second_signal_skips_the_drain(
    parts: Parts, first: signal.Signals, second: signal.Signals, isEarly: bool
) -> None:
    """
    The first signal stops the reactor once and makes the server unready at once. The
    second one, at any time of the shutdown, ends the wait for requests in progress, but
    not the wait for modules to close.
    """
    loop = Loop()
    signal.signal(signal.SIGTERM, loop.sigTerm)
    signal.signal(signal.SIGINT, loop.sigInt)
    handleSignals(loop, parts.server.announceStop, parts.server.stopNow)
    parts.start()
    peer = parts.connect()
    signal.raise_signal(first)
    # Inside a signal handler only scheduling a call is safe.
    assert loop.stopped == []
    assert b"stopping" not in parts.askReady().body
    loop.turn()
    assert b"stopping" in parts.askReady().body
    if isEarly:
        signal.raise_signal(second)
        loop.turn()
    parts.machine.ports[80].closed.callback(None)
    stopped = parts.stop()
    if not isEarly:
        assert "close clock" not in parts.steps
        signal.raise_signal(second)
        loop.turn()
    parts.machine.advance(0)
    assert parts.steps[-1] == "close clock"
    assert loop.stopped == ["stop"]
    assert stopped.pending
    parts.clock.closing.callback(None)
    assert [answer.status for answer in peer.answers] == [503]
    assert peer.closed
    assert stopped.value is None


def handleNothing(*_: object) -> None:
    """
    Handle a signal as a program may do.
    """


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize(
    "handler",
    [signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler, handleNothing],
)
@pytest.mark.parametrize("kept", [signal.SIGTERM, signal.SIGINT])
def test_signals_that_are_not_the_reactors_keep_their_handlers(
    parts: Parts, kept: signal.Signals, handler: Any
) -> None:
    """
    A signal that the program ignores or handles itself keeps its handler. A shell makes
    its background programs ignore SIGINT, for example.
    """
    loop = Loop()
    signal.signal(signal.SIGTERM, loop.sigTerm)
    signal.signal(signal.SIGINT, loop.sigInt)
    signal.signal(kept, handler)
    handleSignals(loop, parts.server.announceStop, parts.server.stopNow)
    assert signal.getsignal(kept) is handler
    (other,) = {signal.SIGTERM, signal.SIGINT} - {kept}
    assert signal.getsignal(other) not in (loop.sigTerm, loop.sigInt)


@pytest.mark.usefixtures("signals")
def test_a_reactor_in_another_thread_leaves_signals_alone(parts: Parts) -> None:
    """
    If the reactor runs in another thread, the program handles all signals itself: only
    its main thread may set handlers.
    """
    signal.signal(signal.SIGTERM, handleNothing)
    errors: list[Exception] = []

    def run() -> None:
        try:
            handleSignals(Loop(), parts.server.announceStop, parts.server.stopNow)
        except Exception as error:
            errors.append(error)

    thread = Thread(target=run)
    thread.start()
    thread.join()
    assert errors == []
    assert signal.getsignal(signal.SIGTERM) is handleNothing
