"""
The entry point of C{twistd}: one server for the process, on the real reactor.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from socket import SO_REUSEADDR, SOL_SOCKET, socket

import pytest
from treq.client import HTTPClient
from twisted.internet.defer import gatherResults
from twisted.logger import LogLevel
from twisted.web.client import Agent, HTTPConnectionPool

from tsrv.server import Server
from tsrv.tap import Options, makeService

from .websupport import asynchronous, errorsIn, logged, reservedPort, textsOf


@pytest.fixture(autouse=True)
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """
    Restore everything that a server changes in its process.
    """
    monkeypatch.chdir(tmp_path)
    signals = (signal.SIGTERM, signal.SIGINT)
    handlers = [signal.getsignal(each) for each in signals]
    threshold = gc.get_threshold()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    for each, handler in zip(signals, handlers, strict=True):
        signal.signal(each, handler)
    gc.set_threshold(*threshold)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def make(*arguments: str) -> Server:
    """
    Make the server for a command line.
    """
    options = Options()
    options.parseOptions(arguments)
    return makeService(options)


def test_a_service_prepares_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The server raises the limit of open files to the maximum, collects garbage rarely,
    and hides the variables of systemd from child processes.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1024) - 1, hard))
    variables = {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}
    for name in variables:
        monkeypatch.setenv(name, "")
    with logged() as events:
        make()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    assert gc.get_threshold()[0] == 50_000
    assert not variables & set(os.environ)
    assert events == []


def test_development_is_logged_as_a_warning() -> None:
    """
    C{--development} is logged as a warning, in case an operator uses it by mistake.
    """
    with logged() as events:
        make("--development")
    assert events[0]["log_level"] is LogLevel.warn
    assert textsOf(events)[0].startswith("DEVELOPMENT: ")


@asynchronous
async def test_a_service_queues_and_answers() -> None:
    """
    The options reach the modules and the sites, on several ports; the names in the log
    are public.
    """
    from twisted.internet import reactor

    pool = HTTPConnectionPool(reactor, persistent=False)
    client = HTTPClient(Agent(reactor, pool=pool))
    with reservedPort() as first, reservedPort() as second, logged() as events:
        ports = [first, second]
        server = make(
            *(f"--listen=tcp:{port}:interface=127.0.0.1" for port in ports),
            "--delay=0.1",
            "--access-log=on",
        )
        server.privilegedStartService()
        server.startService()
        urls = [f"http://127.0.0.1:{port}/say" for port in ports]
        responses = await gatherResults(map(client.get, urls))
        assert [response.code for response in responses] == [200, 200]
        wrappers = server.startup.wrappers.values()
        await gatherResults([wrapper.whenInitialized() for wrapper in wrappers])
        await server.startup.whenReady()
        await server.stopService()
    assert errorsIn(events) == []
    assert {"tsrv.server", "tsrv.startup", "tsrv.databases"} <= {
        event["log_namespace"] for event in events
    }
    seen = "\n".join(textsOf(events))
    assert seen.count('"GET /say HTTP/1.1" ') == 2
    assert seen.index("Started") < seen.index("Async module initialized")


# Twisted 24.11 leaves it to the garbage collector to close a socket that cannot listen.
@pytest.mark.filterwarnings("ignore:.*socket:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("method", ["privilegedStartService", "startService"])
@asynchronous
async def test_a_port_in_use_ends_the_start(method: str) -> None:
    """
    A server that cannot open all of its ports opens none. C{twistd} calls both methods,
    C{twist} only the second one.
    """
    with reservedPort() as port, socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        server = make(
            f"--listen=tcp:{port}:interface=127.0.0.1",
            f"--listen=tcp:{taken}:interface=127.0.0.1",
            "--operations-listen=tcp:0:interface=127.0.0.1",
        )
        with pytest.raises(SystemExit) as raised:
            getattr(server, method)()
        # twistd cleans up a daemon only after an Exception.
        assert isinstance(raised.value, Exception)
        message = str(raised.value.code)
        assert message.startswith(f"tsrv: cannot listen on tcp:{taken}:")
        assert "\n" not in message
        await server.stopService()
        with socket() as again:
            again.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", port))
            again.listen()


# Twisted does not close a socket that it could not bind; the garbage collector does.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.filterwarnings(
    "ignore:.*unclosed <socket:pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize(
    ("endpoint", "about"),
    [
        ("tcp:65536", "65535"),
        ("tcp:0:backlog=99999999999", "int"),
        ("tcp:0:interface=\0", "null"),
    ],
)
def test_an_unusable_endpoint_ends_the_start(endpoint: str, about: str) -> None:
    """
    An endpoint that is valid but unusable is reported in one line.
    """
    server = make("--listen", endpoint)
    with pytest.raises(SystemExit) as raised:
        server.privilegedStartService()
    message = str(raised.value.code)
    assert message.startswith("tsrv: cannot listen on tcp:")
    assert about in message
    assert "\n" not in message
