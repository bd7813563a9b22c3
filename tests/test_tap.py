"""
The command line is understood or refused in one line, and the server starts and
stops in the order that loses nothing.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from socket import SO_REUSEADDR, SOL_SOCKET, socket
from types import FrameType
from typing import Any

import pytest
from treq.client import HTTPClient
from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel, eventAsText
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool

from tsrv import Closed, InitializationFailed
from tsrv.resources import makeRoot
from tsrv.tap import Options, Server, _allowFiles, _exitCleanly, makeService
from tsrv.web.site import Site

from .support import Trouble, resultOf
from .websupport import (
    Peer,
    Teller,
    Wire,
    answersIn,
    asynchronous,
    errorsIn,
    logged,
    reservedPort,
    textsOf,
)

SAY = b"GET /say HTTP/1.1\r\nHost: test\r\n\r\n"


def parsed(*words: str) -> Options:
    """
    Read a command line.
    """
    options = Options()
    options.parseOptions(list(words))
    return options


# Options.


def test_the_defaults() -> None:
    """
    Without options the server is reachable from this machine alone, and holds
    longer than its module takes to start.
    """
    options = parsed()
    assert {**options} == {
        "listen": [],
        "delay": 10.0,
        "direct": False,
        "queue-limit": 10_000,
        "queue-timeout": 30.0,
        "drain-timeout": 30.0,
        "access-log": False,
    }


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--listen", "tcp:0"], "listen", ["tcp:0"]),
        (
            ["--listen=tcp:0", "--listen", "unix:/tmp/x"],
            "listen",
            ["tcp:0", "unix:/tmp/x"],
        ),
        (["--delay", "0"], "delay", 0.0),
        (["--delay=2.5"], "delay", 2.5),
        (["--direct"], "direct", True),
        (["--queue-limit", "0"], "queue-limit", 0),
        (["--queue-limit", "17"], "queue-limit", 17),
        (["--queue-timeout", "0.5"], "queue-timeout", 0.5),
        (["--drain-timeout", "0"], "drain-timeout", 0.0),
        (["--access-log", "on"], "access-log", True),
        (["--access-log", "on", "--access-log", "off"], "access-log", False),
    ],
)
def test_a_good_option_is_understood(
    words: list[str], name: str, value: object
) -> None:
    """
    Each option changes what it is meant to, and nothing else.
    """
    options = parsed(*words)
    assert options[name] == value
    expected = {**parsed(), name: value}
    assert {**options} == expected


MOST = "from 0 to 31536000"

ENDPOINT = "tcp:80:interface=" + "x" * 5000 + ":nonsense=1"

SECONDS = [
    "",
    "ten",
    "-1",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "1,5",
    "0x10",
    "31536001",
    "1e300",
]


@pytest.mark.parametrize(
    ("words", "about"),
    [
        *(
            (
                [f"--{name}={seconds}"],
                f"--{name}: {seconds!r} is not a number of seconds {MOST}",
            )
            for name in ("delay", "queue-timeout", "drain-timeout")
            for seconds in SECONDS
        ),
        *(
            ([f"--queue-limit={calls}"], f"--queue-limit: {calls!r} is not a number")
            for calls in ("", "many", "-1", "1.5", "inf")
        ),
        *(
            ([f"--access-log={switch}"], f"--access-log: {switch!r} is neither on")
            for switch in ("", "ON", "yes", "1")
        ),
        *(
            ([f"--listen={endpoint}"], f"--listen: {endpoint!r} is not a Twisted end")
            for endpoint in (
                "",
                "8000",
                "tcp",
                "tcp:",
                "tcp:http",
                "tcp:80:nonsense=1",
                "nonsense:80",
                "ssl:443:privateKey=/nonexistent",
                "a\nb",
            )
        ),
        *(
            ([f"--listen={endpoint}"], f"--listen: {endpoint!r} has no port: 0 to")
            for endpoint in ("tcp:65536", "tcp:-1:interface=127.0.0.1", "tcp6:99999")
        ),
        (["--queue-limit", "9" * 5000], f"--queue-limit: '{'9' * 47}...' is not"),
        (["--delay", "1" * 5000], f"--delay: '{'1' * 47}...' is not"),
        (["--access-log", "x" * 5000], f"--access-log: '{'x' * 47}...' is neither"),
        (["--listen", ENDPOINT], f"--listen: '{ENDPOINT[:47]}...' is not"),
        (["--listen", "x" * 5000], f"--listen: '{'x' * 47}...' is not"),
        (["--listen", "tcp:0", "--listen", "x"], "--listen: 'x' is not"),
        (["--delay"], "option --delay requires argument"),
        (["--direct=yes"], "option --direct must not have an argument"),
        (["--nonsense"], "option --nonsense not recognized"),
        (["-x"], "option -x not recognized"),
        (["extra"], "Wrong number of arguments"),
    ],
)
def test_a_bad_option_is_a_usage_error(words: list[str], about: str) -> None:
    """
    Who mistyped gets one line that says where, and not a traceback, or a server
    with an option that was not asked for.
    """
    with pytest.raises(SystemExit) as raised:
        parsed(*words)
    message = raised.value.code
    assert isinstance(message, str)
    assert message.startswith(f"tsrv: {about}")
    assert message.endswith("(see twistd tsrv --help)")
    assert "\n" not in message
    assert len(message) < 250
    assert raised.value.__suppress_context__


def test_help_tells_all_options(capsys: pytest.CaptureFixture[str]) -> None:
    """
    An option that is not told of is not there.
    """
    with pytest.raises(SystemExit) as raised:
        parsed("--help")
    assert not raised.value.code
    shown = capsys.readouterr().out
    for option in (
        "--listen=",
        "--delay=",
        "--direct ",
        "--queue-limit=",
        "--queue-timeout=",
        "--drain-timeout=",
        "--access-log=",
    ):
        assert option in shown
    assert shown.count("[default: ") == 6


# Starting and stopping, one step after another.


class Listening(Service):
    """
    What stands for a port: it tells when it is opened and closed.

    @ivar closed: Fires when the port is closed.
    """

    def __init__(self, steps: list[str]) -> None:
        self._steps = steps
        self.closed: Deferred[None] = Deferred()

    def privilegedStartService(self) -> None:
        self._steps.append("listen")

    def stopService(self) -> Deferred[None]:
        self._steps.append("listen no longer")
        return self.closed


@dataclass
class Parts:
    """
    A server and what it is made of.

    @ivar steps: What was done, in order.
    @ivar starting: The Deferred of the initialisation.
    @ivar closing: That of the closing.
    """

    clock: Clock
    drainTimeout: float = 30.0
    steps: list[str] = field(default_factory=list)
    starting: Deferred[None] = field(default_factory=Deferred)
    closing: Deferred[None] = field(default_factory=Deferred)

    def __post_init__(self) -> None:
        self.teller = Teller()
        self.site = Site(makeRoot(self.teller), self.clock)
        self.server = Server(
            self.site,
            lambda: self._step("initialize", self.starting),
            lambda: self._step("close", self.closing),
            self.drainTimeout,
        )
        self.listening = Listening(self.steps)
        self.listening.setServiceParent(self.server)

    def _step(self, name: str, result: Deferred[None]) -> Deferred[None]:
        self.steps.append(name)
        return result

    def start(self) -> None:
        """
        Start the server as C{twistd} does.
        """
        self.server.privilegedStartService()
        self.server.startService()

    def hold(self) -> Peer:
        """
        Make a request that is not answered yet.
        """
        peer = Peer(self.site, self.clock)
        peer.send(SAY)
        return peer


@pytest.fixture
def parts(clock: Clock) -> Parts:
    """
    A server.
    """
    return Parts(clock)


def test_it_listens_before_it_initialises(parts: Parts) -> None:
    """
    The order that gives the server its name, and the wire strings of the
    source in the log.
    """
    with logged() as events:
        parts.server.privilegedStartService()
        assert parts.steps == ["listen"]
        parts.server.startService()
        assert parts.steps == ["listen", "initialize"]
        assert textsOf(events) == ["Started"]
        parts.starting.callback(None)
        assert textsOf(events) == ["Started", "Async module initialized"]
    assert errorsIn(events) == []


@pytest.mark.parametrize("error", [InitializationFailed("no"), Closed("closed")])
def test_a_failed_start_is_not_logged_twice(parts: Parts, error: Exception) -> None:
    """
    The wrapper has logged why; and to be stopped while starting is no error.
    """
    with logged() as events:
        parts.start()
        parts.starting.errback(Failure(error))
    assert textsOf(events) == ["Started"]


def test_a_start_that_fails_without_a_wrapper_is_logged(
    parts: Parts, loggedFailures: list[LogEvent]
) -> None:
    """
    A server that never becomes ready and does not say why is the worst kind.
    """
    parts.start()
    parts.starting.errback(Failure(Trouble("no time")))
    assert parts.steps == ["listen", "initialize"]
    (event,) = loggedFailures
    loggedFailures.clear()
    assert (
        eventAsText(event).partition("\n")[0].endswith("Async module not initialized")
    )
    assert "no time" in eventAsText(event)


def test_it_stops_in_the_opposite_order(parts: Parts) -> None:
    """
    First nothing more is accepted, then what has been asked is answered, and
    the module is closed only when nobody needs it.
    """
    parts.start()
    parts.starting.callback(None)
    peer = parts.hold()
    parts.steps.clear()
    with logged() as events:
        stopped = resultOf(parts.server.stopService())
        assert parts.steps == ["listen no longer"]
        assert not parts.site.stopping
        parts.listening.closed.callback(None)
        assert parts.site.stopping
        assert parts.steps == ["listen no longer"]
        parts.clock.advance(20)
        parts.teller.answers[0].callback("Something")
        assert [answer.status for answer in peer.answers] == [200]
        assert peer.closed
        assert parts.steps == ["listen no longer", "close"]
        assert stopped.pending
        parts.closing.callback(None)
        assert stopped.value is None
    assert textsOf(events) == [
        "Stopped listening, letting requests in progress end",
        "Stopped",
    ]
    assert errorsIn(events) == []


def test_time_that_is_up_ends_the_wait(clock: Clock) -> None:
    """
    The wait for requests in progress is bounded; what the closing ends is still
    sent, and what it does not end is broken off.
    """
    parts = Parts(clock, drainTimeout=5.0)
    parts.listening.closed.callback(None)
    parts.start()
    parts.starting.callback(None)
    held, stuck = parts.hold(), parts.hold()
    with logged() as events:
        stopped = resultOf(parts.server.stopService())
        clock.advance(4.9)
        assert "close" not in parts.steps
        clock.advance(0.1)
        assert parts.steps[-1] == "close"
        # As a wrapper that is closed does with what still waits for it.
        parts.teller.answers[0].errback(Closed("closed"))
        parts.closing.callback(None)
        assert [answer.status for answer in held.answers] == [503]
        assert held.closed
        assert stopped.pending
        clock.advance(2)
        assert stopped.value is None
        assert stuck.closed
        assert stuck.transport.aborted
    (warning,) = errorsIn(events)
    assert "cannot be waited for" in eventAsText(warning)
    assert warning["log_level"] is LogLevel.warn


def test_who_hurries_does_not_wait(parts: Parts) -> None:
    """
    Who stops it may change his mind about how long to wait; that requests are
    answered rather than broken off does not change.
    """
    parts.listening.closed.callback(None)
    parts.start()
    parts.starting.callback(None)
    peer = parts.hold()
    # There is nothing to hurry yet.
    parts.server.hurry()
    stopped = resultOf(parts.server.stopService())
    assert "close" not in parts.steps
    parts.server.hurry()
    assert parts.steps[-1] == "close"
    # The closing itself is not hurried: it has a limit of its own.
    parts.server.hurry()
    assert stopped.pending
    parts.teller.answers[0].errback(Closed("closed"))
    parts.closing.callback(None)
    assert [answer.status for answer in peer.answers] == [503]
    assert peer.closed
    assert stopped.value is None


def test_a_closing_that_fails_does_not_keep_it_from_stopping(
    parts: Parts, loggedFailures: list[LogEvent]
) -> None:
    """
    A module that cannot be closed would otherwise leave clients, and who
    waits for the process to end, without an answer.
    """
    parts.listening.closed.callback(None)
    parts.start()
    parts.starting.callback(None)
    stopped = resultOf(parts.server.stopService())
    parts.closing.errback(Failure(Trouble("stuck")))
    assert stopped.value is None
    (event,) = loggedFailures
    loggedFailures.clear()
    assert event["log_failure"].check(Trouble)


def test_an_initialisation_in_progress_is_given_up(parts: Parts) -> None:
    """
    Without a wrapper nobody else would end it, and it would go on in a program
    that has stopped.
    """
    parts.listening.closed.callback(None)
    parts.closing.callback(None)
    parts.start()
    with logged() as events:
        assert resultOf(parts.server.stopService()).value is None
    assert parts.starting.called
    assert errorsIn(events) == []
    assert "Async module initialized" not in textsOf(events)


def test_what_was_never_started_can_be_stopped(parts: Parts) -> None:
    """
    When one service of a program fails to start, all are stopped.
    """
    parts.listening.closed.callback(None)
    parts.closing.callback(None)
    assert resultOf(parts.server.stopService()).value is None


# Signals.


@pytest.fixture
def signals() -> Iterator[None]:
    """
    Give the signals back to whom they belonged.
    """
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


class Loop:
    """
    What stands for the reactor: it is told to stop.
    """

    def __init__(self) -> None:
        self.stopped: list[str] = []
        self.fromThread: list[Callable[[], None]] = []

    def callFromThread(self, what: Callable[..., None], *arguments: object) -> None:
        self.fromThread.append(partial(what, *arguments))

    def stop(self) -> None:
        self.stopped.append("stop")

    def sigInt(self, number: int, frame: FrameType | None) -> None:
        self.stopped.append("sigInt")

    def turn(self) -> None:
        """
        Do what was asked for.
        """
        todo, self.fromThread = self.fromThread, []
        for what in todo:
            what()


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize(
    ("first", "done"), [(signal.SIGTERM, "stop"), (signal.SIGINT, "sigInt")]
)
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_and_a_second_one_hurries(
    parts: Parts, first: signal.Signals, done: str, second: signal.Signals
) -> None:
    """
    To stop the reactor twice is an error; who sends a signal again means that
    it takes too long. An interrupted program ends as the reactor has it end.
    """
    loop = Loop()
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, loop.sigInt)
    _exitCleanly(loop, parts.server)
    parts.listening.closed.callback(None)
    parts.closing.callback(None)
    parts.start()
    peer = parts.hold()
    signal.raise_signal(first)
    # In a signal handler nothing is safe but to ask for a turn.
    assert loop.stopped == []
    loop.turn()
    assert loop.stopped == [done]
    stopped = resultOf(parts.server.stopService())
    assert stopped.pending
    signal.raise_signal(second)
    loop.turn()
    assert loop.stopped == [done]
    assert "close" in parts.steps
    parts.teller.answers[0].errback(Closed("closed"))
    assert peer.closed
    assert stopped.value is None


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN])
def test_signals_are_left_alone_where_the_reactor_leaves_them(
    parts: Parts, handler: signal.Handlers
) -> None:
    """
    A program that runs the reactor without handlers has its reasons.
    """
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGTERM, handler)
    _exitCleanly(Loop(), parts.server)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("signals")
def test_an_ignored_interrupt_stays_ignored(parts: Parts) -> None:
    """
    A shell has its background programs ignore what is typed for others.
    """
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _exitCleanly(Loop(), parts.server)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.usefixtures("signals")
def test_a_service_takes_the_signals_of_a_running_reactor() -> None:
    """
    The reactor installs its own handlers when it begins to run; here it runs
    already.
    """
    before = signal.getsignal(signal.SIGTERM)
    makeService(parsed())
    assert signal.getsignal(signal.SIGTERM) is not before


# Limits.


class Limits:
    """
    What stands for the limits of a process, of which two are known.
    """

    RLIMIT_NOFILE = 7

    def __init__(self, error: Exception | None = None) -> None:
        self.files = (1024, 4096)
        self._error = error

    def getrlimit(self, which: int) -> tuple[int, int]:
        assert which == self.RLIMIT_NOFILE
        return self.files

    def setrlimit(self, which: int, limits: tuple[int, int]) -> None:
        assert which == self.RLIMIT_NOFILE
        if self._error is not None:
            raise self._error
        self.files = limits


def test_a_process_may_have_as_many_connections_as_it_can() -> None:
    """
    The soft limit of most systems is a tenth of the queue's own, and who comes
    after that is cut off without an answer.
    """
    limits = Limits()
    _allowFiles(limits)
    assert limits.files == (4096, 4096)


@pytest.mark.parametrize("limits", [Limits(ValueError()), Limits(OSError()), None])
def test_a_limit_that_cannot_be_raised_is_no_matter(limits: Limits | None) -> None:
    """
    The server works all the same, for fewer clients.
    """
    _allowFiles(limits)
    assert limits is None or limits.files == (1024, 4096)


@pytest.mark.usefixtures("signals")
def test_a_service_raises_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Nobody else would think of it before the limit is reached.
    """
    limits = Limits()
    monkeypatch.setattr("tsrv.tap._LIMITS", limits)
    makeService(parsed())
    assert limits.files == (4096, 4096)


# All of it put together.


def theReactor() -> Any:
    """
    @return: The real reactor.
    """
    from twisted.internet import reactor

    return reactor


def request(url: str) -> Deferred[Any]:
    """
    Ask, on a connection of its own.
    """
    pool = HTTPConnectionPool(theReactor(), persistent=False)
    asked: Deferred[Any] = HTTPClient(Agent(theReactor(), pool=pool)).get(url)
    return asked


@pytest.fixture
def port() -> Iterator[int]:
    """
    A free port.
    """
    with reservedPort() as port:
        yield port


@pytest.mark.usefixtures("signals")
def test_by_default_it_listens_on_loopback_only() -> None:
    """
    What is started to try it out must not be open to the world; a burst of
    connections must not be refused by the operating system.
    """
    (listening,) = makeService(parsed())
    endpoint: Any = listening.endpoint
    assert (endpoint._port, endpoint._interface) == (8000, "127.0.0.1")
    assert endpoint._backlog >= 1024


@pytest.mark.usefixtures("signals")
@asynchronous
async def test_a_service_holds_and_answers() -> None:
    """
    The options reach what they are about, and the parts fit together; on more
    than one port.
    """
    with reservedPort() as port, reservedPort() as other, logged() as events:
        ports = [port, other]
        words = [f"--listen=tcp:{port}:interface=127.0.0.1" for port in ports]
        server = makeService(
            parsed(*words, "--delay=0.1", "--queue-limit=1", "--access-log=on")
        )
        server.privilegedStartService()
        server.startService()
        responses = await gatherResults(
            [request(f"http://127.0.0.1:{port}/say") for port in ports]
        )
        assert sorted(response.code for response in responses) == [200, 503]
        await server.stopService()
    assert errorsIn(events) == []
    seen = "\n".join(textsOf(events))
    assert seen.count('"GET /say HTTP/1.1" ') == 2
    assert seen.index("Started") < seen.index("Async module initialized")


@pytest.mark.usefixtures("signals")
@asynchronous
async def test_a_service_gives_up_after_the_queue_timeout(port: int) -> None:
    """
    What is held is not held for ever; and a service that is stopped while it
    starts leaves no timer.
    """
    server = makeService(
        parsed(
            f"--listen=tcp:{port}:interface=127.0.0.1",
            "--delay=3600",
            "--queue-timeout=0.05",
        )
    )
    server.privilegedStartService()
    server.startService()
    response = await request(f"http://127.0.0.1:{port}/say")
    assert response.code == 503
    assert response.headers.getRawHeaders("Retry-After") == ["3600"]
    assert "did not become ready" in await response.text()
    await server.stopService()


@pytest.mark.usefixtures("signals")
@asynchronous
async def test_a_service_waits_no_longer_than_the_drain_timeout(port: int) -> None:
    """
    What is held when the service is stopped is told that it was stopped, and
    not, much later, that it has waited too long.
    """
    server = makeService(
        parsed(
            f"--listen=tcp:{port}:interface=127.0.0.1",
            "--delay=3600",
            "--queue-timeout=2",
            "--drain-timeout=0.05",
        )
    )
    server.privilegedStartService()
    server.startService()
    endpoint = TCP4ClientEndpoint(theReactor(), "127.0.0.1", port)
    wire: Wire = await connectProtocol(endpoint, Wire())
    wire.send(SAY[:-2] + b"Expect: 100-continue\r\n\r\n")
    await wire.whenReceived(b"100 Continue\r\n\r\n")
    await server.stopService()
    _, answer = answersIn(await wire.whenClosed())
    assert answer.status == 503
    assert b"The service is shutting down" in answer.body


@pytest.mark.usefixtures("signals")
@asynchronous
async def test_a_direct_service_shows_the_problem(port: int) -> None:
    """
    C{--direct} is there to be seen failing, in the words of the source.
    """
    server = makeService(
        parsed(f"--listen=tcp:{port}:interface=127.0.0.1", "--direct", "--delay=3600")
    )
    server.privilegedStartService()
    server.startService()
    with logged() as events:
        response = await request(f"http://127.0.0.1:{port}/say")
        assert response.code == 500
        assert await response.text() == "Error:I don't have anything to say right now"
        await server.stopService()
    assert errorsIn(events) == []


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("method", ["privilegedStartService", "startService"])
@asynchronous
async def test_a_port_that_is_taken_ends_the_start(port: int, method: str) -> None:
    """
    A server that listens on none, or not on all, of its ports must not look as
    if it did; C{twistd} calls both methods, C{twist} only the second.
    """
    with socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        server = makeService(
            parsed(
                f"--listen=tcp:{port}:interface=127.0.0.1",
                f"--listen=tcp:{taken}:interface=127.0.0.1",
            )
        )
        with pytest.raises(SystemExit) as raised:
            getattr(server, method)()
        # What twistd does for a daemon, it does for no SystemExit alone.
        assert isinstance(raised.value, Exception)
        message = str(raised.value.code)
        assert message.startswith(f"tsrv: Couldn't listen on 127.0.0.1:{taken}: ")
        assert "in use" in message
        assert "\n" not in message
        # The other port is free again afterwards.
        await server.stopService()
        with socket() as again:
            again.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", port))
            again.listen()


# Twisted leaves the socket to which it could not bind to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.filterwarnings(
    "ignore:.*unclosed <socket:pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize(
    ("endpoint", "about"),
    [
        ("tcp:0:backlog=99999999999", "int"),
        ("tcp:0:interface=\xe4..b", "encod"),
        ("tcp:0:interface=\0", "null"),
        ("tcp:0:interface=192.0.2.1", "Couldn't listen on 192.0.2.1:0"),
        ("unix:/nonexistent/socket", "No such file or directory"),
        ("unix:/" + "x" * 200, "Couldn't listen on "),
    ],
)
def test_an_endpoint_that_cannot_be_used_ends_the_start(
    endpoint: str, about: str
) -> None:
    """
    An endpoint can be understood and be wrong all the same: that is one line
    too.
    """
    server = makeService(parsed("--listen", endpoint))
    with pytest.raises(SystemExit) as raised:
        server.privilegedStartService()
    message = str(raised.value.code)
    assert message.startswith("tsrv: ")
    assert about in message
    assert "\n" not in message
