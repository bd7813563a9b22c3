"""
A server for any root resource, on top of any modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from klein import Klein
from twisted.internet import endpoints
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import (
    IStreamServerEndpoint,
    IStreamServerEndpointStringParser,
)
from twisted.logger import LogEvent
from twisted.plugin import IPlugin
from twisted.web.resource import Resource
from twisted.web.server import Request
from zope.interface import implementer

from tsrv import Startup, State
from tsrv.server import Server
from tsrv.startup import GraphError

from .support import RunningReactor, Trouble, resultOf
from .websupport import Answer, Peer, Teller, logged, passTime, textsOf

FORM = b"name=Ada&name=Bob"

POST = (
    b"POST /form HTTP/1.1\r\nHost: test\r\nContent-Length: 17\r\n"
    b"Content-Type: application/x-www-form-urlencoded\r\n\r\n" + FORM
)


@pytest.fixture
def machine() -> Iterator[RunningReactor]:
    """
    A reactor on which no call may be left when the test ends.
    """
    machine = RunningReactor()
    yield machine
    assert machine.getDelayedCalls() == []


class Form(Resource):
    """
    A resource of twisted.web that shows the fields of a form.
    """

    isLeaf = True

    def render_POST(self, request: Request) -> bytes:
        assert request.content is not None
        names = request.args.get(b"name", [])
        return b"%d names, %d bytes" % (len(names), len(request.content.read()))


def makeServer(
    machine: RunningReactor,
    startup: Startup | None = None,
    root: Any = None,
    endpoints: list[str] | None = None,
    **options: Any,
) -> Server:
    """
    Make a server that does not affect the process of the tests.
    """
    return Server(
        machine,
        startup or Startup(machine),
        root or Form(),
        endpoints or ["tcp:80"],
        ownsProcess=False,
        **{"environment": {}, **options},
    )


def connect(machine: RunningReactor, data: bytes, port: int = 80) -> Peer:
    """
    Connect, and send something.
    """
    factories: Any = [each[1] for each in machine.tcpServers if each[0] == port]
    peer = Peer(factories[0], machine)
    peer.send(data)
    return peer


def ask(machine: RunningReactor, data: bytes, port: int = 80) -> Answer:
    """
    @return: The response to one request.
    """
    peer = connect(machine, data, port)
    (answer,) = peer.answers
    peer.leave()
    return answer


def stop(machine: RunningReactor, server: Server) -> None:
    """
    Stop a server on which no request waits.
    """
    stopped = resultOf(server.stopService())
    passTime(machine, 3)
    assert stopped.value is None


@pytest.mark.parametrize(
    ("options", "body"),
    [({}, b"2 names, 17 bytes"), ({"parsePOSTFormSubmission": False}, b"0 names, 17")],
)
def test_forms_are_parsed_as_by_twisted(
    machine: RunningReactor, options: dict[str, Any], body: bytes
) -> None:
    """
    The fields of a form are in C{request.args}, unless the option turns this off.
    """
    server = makeServer(machine, **options)
    server.startService()
    assert ask(machine, POST).body.startswith(body)
    stop(machine, server)


def test_the_root_may_be_that_of_klein(machine: RunningReactor) -> None:
    """
    A request to a Klein application waits for a module.
    """
    app, clock, startup = Klein(), Teller(), Startup(machine)
    proxy = startup.add("clock", clock).proxy

    @app.route("/say")
    def say(request: Request) -> Deferred[str]:
        return proxy.tellMeSomething()

    server = makeServer(machine, startup, app.resource())
    server.startService()
    peer = connect(machine, b"GET /say HTTP/1.1\r\nHost: test\r\n\r\n")
    assert peer.answers == []
    clock.starting.callback(None)
    clock.answers.pop().callback("Something")
    assert peer.answers[0].body == b"Something"
    peer.leave()
    stop(machine, server)


def test_operators_have_a_site_of_their_own(machine: RunningReactor) -> None:
    """
    The site for operators shows the name and the version of the program.
    """
    server = makeServer(machine, operations=["tcp:81"], program="shop", version="1.2.3")
    server.startService()
    page = ask(machine, b"GET / HTTP/1.1\r\nHost: test\r\n\r\n", 81).body
    assert b"shop" in page
    assert b"1.2.3" in page
    metrics = ask(machine, b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n", 81).body
    assert b'name="shop",version="1.2.3"' in metrics
    stop(machine, server)


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("tcp:80", "http://localhost:80/"),
        ("tcp:80:interface=\\:\\:1", "http://[::1]:80/"),
        ("unix:/run/shop.socket", "unix:/run/shop.socket"),
    ],
)
def test_the_log_says_where_it_listens(
    machine: RunningReactor, endpoint: str, url: str
) -> None:
    """
    The log has the URL at the start, and again when the server is ready.
    """
    clock, startup = Teller(), Startup(machine)
    startup.add("clock", clock)
    server = makeServer(machine, startup, endpoints=[endpoint], program="shop")
    with logged() as events:
        server.startService()
        assert f"shop: listening on {url}" in textsOf(events)
        machine.advance(1.5)
        clock.starting.callback(None)
        assert textsOf(events)[-1] == f"shop: ready on {url}"
    stop(machine, server)


def test_a_malformed_endpoint_is_refused(machine: RunningReactor) -> None:
    """
    A malformed endpoint is reported before anything starts.
    """
    with pytest.raises(ValueError, match="nonsense"):
        makeServer(machine, endpoints=["nonsense:80"])


@implementer(IPlugin, IStreamServerEndpointStringParser, IStreamServerEndpoint)
class Plugin:
    """
    An endpoint of a plugin, C{plugin}.

    @ivar act: Listens.
    """

    prefix = "plugin"

    def __init__(self, act: Callable[[], Any]) -> None:
        self.act = act

    def parseStreamServer(self, reactor: Any, *args: object, **kwargs: object) -> Any:
        return self

    def listen(self, factory: object) -> Any:
        return self.act()


@pytest.fixture
def usePlugin(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], None]:
    """
    Let Twisted find an endpoint that acts in this way.
    """

    def use(act: Callable[[], Any]) -> None:
        monkeypatch.setattr(endpoints, "getPlugins", lambda _: [Plugin(act)])

    return use


def test_an_endpoint_that_raises_an_error_is_reported(
    machine: RunningReactor, usePlugin: Callable[[Callable[[], Any]], None]
) -> None:
    """
    An error that an endpoint raises is reported like one with which its Deferred fails.
    """

    def listen() -> None:
        raise Trouble("no network")

    usePlugin(listen)
    server = makeServer(machine, endpoints=["plugin"], program="shop")
    with pytest.raises(SystemExit, match="shop: cannot listen on plugin: no network"):
        server.startService()


def test_the_host_of_an_endpoint_may_be_a_name(
    machine: RunningReactor, usePlugin: Callable[[Callable[[], Any]], None]
) -> None:
    """
    The address of a port may have the name of a host, as in the network I2P.
    """

    class Port:
        def getHost(self) -> IPv4Address:
            return IPv4Address("TCP", "shop.b32.i2p", 80)

        def stopListening(self) -> None: ...

    usePlugin(lambda: succeed(Port()))
    startup = Startup(machine)
    wrapper = startup.add("clock", Teller())
    server = makeServer(machine, startup, endpoints=["plugin"], program="shop")
    with logged() as events:
        server.startService()
    assert "shop: listening on http://shop.b32.i2p:80/" in textsOf(events)
    assert wrapper.state is State.INITIALIZING
    stop(machine, server)


def test_an_endpoint_that_cannot_be_cancelled_does_not_prevent_the_stop(
    machine: RunningReactor,
    usePlugin: Callable[[Callable[[], Any]], None],
    loggedFailures: list[LogEvent],
) -> None:
    """
    A server may stop while an endpoint is still opening its port. If the canceller of
    the endpoint raises an error, the error is logged, and the modules are closed.
    """

    def cancel(_: object) -> None:
        raise Trouble("uncancellable")

    usePlugin(lambda: Deferred(cancel))
    startup = Startup(machine)
    clock = Teller()
    clock.starting.callback(None)
    wrapper = startup.add("clock", clock)
    server = makeServer(machine, startup, endpoints=["tcp:80", "plugin"])
    server.startService()
    stop(machine, server)
    assert wrapper.state is State.CLOSED
    assert loggedFailures.pop()["log_failure"].check(Trouble)


def test_wrong_modules_are_found_before_it_listens(machine: RunningReactor) -> None:
    """
    Errors in the modules are reported before the server listens, so no client connects
    to a server that cannot start.
    """
    startup = Startup(machine)
    startup.add("users", Teller(), needs=["database"])
    server = makeServer(machine, startup)
    with pytest.raises(GraphError, match="database"):
        server.startService()
    assert machine.tcpServers == []


def test_variables_of_systemd_are_not_inherited(machine: RunningReactor) -> None:
    """
    The server hides the variables of systemd from child processes, which must not speak
    to systemd in its name.
    """
    environment = {"NOTIFY_SOCKET": "", "WATCHDOG_USEC": "1", "HOME": "/"}
    makeServer(machine, environment=environment)
    assert environment == {"HOME": "/"}


def test_it_runs_without_a_parent(machine: RunningReactor) -> None:
    """
    C{run()} starts the server. Its Deferred fires when the reactor stops and the server
    has stopped.
    """
    server = makeServer(machine)
    ended = resultOf(server.run())
    assert len(machine.tcpServers) == 1
    machine.triggers["before"]["shutdown"][0][0]()
    passTime(machine, 3)
    assert ended.value is None
    assert resultOf(server.whenStopped()).value is None
