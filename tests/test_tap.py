"""
The command line is understood or refused in one line, and the server starts and
stops in the order that loses nothing.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from socket import AF_UNIX, SO_REUSEADDR, SOCK_DGRAM, SOL_SOCKET, socket
from types import FrameType
from typing import Any

import pytest
from treq.client import HTTPClient
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogLevel, eventAsText
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool

from tsrv.server.optiontypes import SessionsAt
from tsrv.startup import GraphError
from tsrv.tap import (
    Options,
    _allowFiles,
    _checkSettings,
    _exitCleanly,
    assemble,
    makeService,
)
from tsrv.web.site import Site

from .support import Empty, Refused, Result, Trouble, resultOf
from .websupport import (
    Answer,
    Peer,
    Teller,
    Wire,
    answersIn,
    ask,
    asynchronous,
    errorsIn,
    logged,
    reservedPort,
    textsOf,
)

SAY = b"GET /say HTTP/1.1\r\nHost: test\r\n\r\n"


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The users of a server that is started are not to be left in the checkout.
    """
    monkeypatch.chdir(tmp_path)


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
        "operations-listen": [],
        "stay-up": False,
        "queue-limit": 10_000,
        "queue-timeout": 30.0,
        "drain-timeout": 30.0,
        "access-log": False,
        "database": None,
        "database-connections": 4,
        "statement-timeout": 10.0,
        "connect-timeout": 5.0,
        "config-url": None,
        "config-timeout": 10.0,
        "config-refresh": None,
        "config-copy": None,
        "sessions": None,
        "session-idle": 1800.0,
        "session-lifetime": 28_800.0,
        "session-keys": None,
        "trusted-proxy": [],
        "new-sessions": 6_000,
        "new-sessions-per-peer": 60,
        "development": False,
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
        (["--operations-listen", "tcp:0"], "operations-listen", ["tcp:0"]),
        (
            ["--operations-listen=tcp:0", "--operations-listen", "unix:/tmp/x"],
            "operations-listen",
            ["tcp:0", "unix:/tmp/x"],
        ),
        (["--stay-up"], "stay-up", True),
        (["--queue-limit", "0"], "queue-limit", 0),
        (["--queue-limit", "17"], "queue-limit", 17),
        (["--queue-timeout", "0.5"], "queue-timeout", 0.5),
        (["--drain-timeout", "0"], "drain-timeout", 0.0),
        (["--access-log", "on"], "access-log", True),
        (["--access-log", "on", "--access-log", "off"], "access-log", False),
        (["--database=sqlite:a/b c"], "database", "sqlite:a/b c"),
        (["--database=postgresql://u@h/n"], "database", "postgresql://u@h/n"),
        (["--database-connections=1"], "database-connections", 1),
        (["--statement-timeout=0.5"], "statement-timeout", 0.5),
        (["--connect-timeout=60"], "connect-timeout", 60.0),
        (["--config-url=https://h/c?a=b"], "config-url", "https://h/c?a=b"),
        (["--config-timeout=1"], "config-timeout", 1.0),
        (["--config-refresh=3600"], "config-refresh", 3600.0),
        (["--config-copy=/var/lib/c"], "config-copy", "/var/lib/c"),
        (
            ["--sessions=sqlite:a?table=visitors"],
            "sessions",
            SessionsAt("sqlite", "sqlite:a", "visitors"),
        ),
        (
            ["--sessions=postgresql://u@h/n?sslmode=require&table=t"],
            "sessions",
            SessionsAt("postgresql", "postgresql://u@h/n?sslmode=require", "t"),
        ),
        (
            ["--sessions=redis://h:1/2"],
            "sessions",
            SessionsAt("redis", "redis://h:1/2"),
        ),
        (["--session-idle=60"], "session-idle", 60.0),
        (["--session-lifetime=60"], "session-lifetime", 60.0),
        (
            ["--trusted-proxy=10.0.0.0/8", "--trusted-proxy=::1"],
            "trusted-proxy",
            ["10.0.0.0/8", "::1"],
        ),
        (["--trusted-proxy=unix"], "trusted-proxy", ["unix"]),
        (["--new-sessions=1"], "new-sessions", 1),
        (["--new-sessions-per-peer=1"], "new-sessions-per-peer", 1),
        (["--development"], "development", True),
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
            for name in (
                "delay",
                "queue-timeout",
                "drain-timeout",
                "statement-timeout",
                "connect-timeout",
                "config-timeout",
                "config-refresh",
            )
            for seconds in SECONDS
        ),
        *(
            ([f"--{name}=0"], f"--{name}: it has to be more than 0 seconds")
            for name in (
                "statement-timeout",
                "connect-timeout",
                "config-timeout",
                "config-refresh",
            )
        ),
        *(
            (
                [f"--database-connections={connections}"],
                f"--database-connections: {connections!r} is not a number of "
                "connections, at least 1",
            )
            for connections in ("", "few", "-1", "0")
        ),
        *(
            ([f"--database={url}"], "--database: the URL of a database is sqlite:PATH")
            for url in ("", "tsrv.db", "mysql://h/n", "sqlite:", "postgresql://[/n")
        ),
        (
            ["--database=postgresql://u:hush@h/n"],
            "--database: whoever can list the processes would see the password",
        ),
        (
            ["--database-file=/nonexistent"],
            "--database-file: '/nonexistent' cannot be read: No such file",
        ),
        (
            [f"--database-file={sys.executable}"],
            f"--database-file: {sys.executable!r} cannot be read: it is no text",
        ),
        *(
            (
                [f"--config-url={url}"],
                "--config-url: it must be http://HOST:PORT/PATH",
            )
            for url in ("", "config", "ftp://h/c", "file:///etc/passwd")
        ),
        (
            ["--config-copy="],
            "--config-copy: it has to be the path of a file",
        ),
        *(
            ([f"--sessions={url}"], "--sessions: the URL of sessions is redis://")
            for url in ("", "visitors", "mysql://u:hush@h/n")
        ),
        (
            ["--sessions=sqlite:a?tabel=b"],
            "--sessions: behind sqlite:PATH there may be ?table=NAME alone",
        ),
        *(
            ([f"--sessions={url}"], "--sessions: ")
            for url in ("redis://h:bad/1", "redis://h/0?table=x", "redis://")
        ),
        (
            ["--sessions=sqlite:a?table=a-b"],
            "--sessions: the name of a table has to be",
        ),
        *(
            (
                [f"--sessions={url}"],
                "--sessions: whoever can list the processes would see the password",
            )
            for url in ("redis://:hush@h/", "postgresql://u:hush@h/n")
        ),
        (
            ["--session-keys=/nonexistent"],
            "--session-keys: ",
        ),
        (
            ["--trusted-proxy=proxy"],
            "--trusted-proxy: 'proxy' is no address and no network",
        ),
        (
            ["--config-url=https://u:hush@h/c"],
            "--config-url: whoever can list the processes would see the password",
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
            ([f"{name}={endpoint}"], f"{name}: {endpoint!r} is not a Twisted end")
            for name in ("--listen", "--operations-listen")
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
            ([f"{name}={endpoint}"], f"{name}: {endpoint!r} has no port: 0 to")
            for name in ("--listen", "--operations-listen")
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
        (["--stay-up=yes"], "option --stay-up must not have an argument"),
        (["--operations-listen"], "option --operations-listen requires argument"),
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
    assert "hush" not in message
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
        "--operations-listen=",
        "--stay-up ",
        "--queue-limit=",
        "--queue-timeout=",
        "--drain-timeout=",
        "--access-log=",
        "--database=",
        "--database-file=",
        "--database-connections=",
        "--statement-timeout=",
        "--connect-timeout=",
        "--config-url=",
        "--config-timeout=",
        "--config-refresh=",
        "--config-copy=",
        "--sessions=",
        "--session-idle=",
        "--session-lifetime=",
        "--session-keys=",
        "--trusted-proxy=",
        "--new-sessions=",
        "--new-sessions-per-peer=",
        "--development ",
    ):
        assert option in shown
    assert " ".join(shown.split()).count("[default: ") == 19


# What may be a secret.


def test_a_secret_comes_from_a_file(tmp_path: Path) -> None:
    """
    Other users of the machine can list its processes, but not read this file.
    """
    path = tmp_path / "url"
    path.write_text("  postgresql://u:hush@h/n \nmore\n")
    options = parsed(f"--database-file={path}")
    assert options["database"] == "postgresql://u:hush@h/n"
    path.write_text("mysql://u:hush@h/n")
    with pytest.raises(SystemExit, match="--database-file: the URL") as raised:
        parsed(f"--database-file={path}")
    assert "hush" not in str(raised.value)


def test_a_secret_comes_from_the_environment_and_is_not_left_there() -> None:
    """
    What this process may start is not to find the passwords.
    """
    options = parsed()
    environment = {
        "TSRV_DATABASE": "postgresql://u:hush@h/n",
        "TSRV_CONFIG_URL": "https://u:hush@h/c",
        "TSRV_SESSIONS": "redis://:hush@h/",
        "PATH": "/bin",
    }
    options.takeSecrets(environment)
    assert options["sessions"] == SessionsAt("redis", "redis://:hush@h/")
    assert "hush" not in repr(options["sessions"])
    assert options["database"] == "postgresql://u:hush@h/n"
    assert options["config-url"] == "https://u:hush@h/c"
    assert environment == {"PATH": "/bin"}


def test_a_variable_that_is_empty_says_nothing() -> None:
    """
    A template of a unit has it there whether there is something to say or not.
    """
    options = parsed()
    environment = {"TSRV_DATABASE": "", "TSRV_CONFIG_URL": "", "TSRV_SESSIONS": ""}
    options.takeSecrets(environment)
    assert (options["database"], options["config-url"]) == (None, None)
    assert environment == {}


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({"database": "sqlite:d", "more": 1}, None),
        ({}, "database has to be the URL of one"),
        ({"database": 1}, "database has to be the URL of one"),
        ({"database": "mysql://u:hush@h/n"}, "database: the URL of a database is "),
    ],
)
def test_settings_have_to_say_where_the_database_is(
    settings: dict[str, object], wrong: str | None
) -> None:
    """
    Else any page would replace the last good copy.
    """
    found = _checkSettings(settings)
    if wrong is None:
        assert found is None
    else:
        assert found is not None
        assert found.startswith(wrong)
        assert "hush" not in found


def test_what_is_typed_comes_before_the_environment() -> None:
    """
    Who tries something out must not find that another database was meant.
    """
    options = parsed("--database=sqlite:here", "--config-url=http://h/here")
    environment = {"TSRV_DATABASE": "sqlite:there", "TSRV_CONFIG_URL": "http://there"}
    options.takeSecrets(environment)
    assert options["database"] == "sqlite:here"
    assert options["config-url"] == "http://h/here"
    assert environment == {}


@pytest.mark.parametrize("name", ["TSRV_DATABASE", "TSRV_CONFIG_URL"])
def test_a_bad_secret_is_refused_and_not_repeated(name: str) -> None:
    """
    It may be nearly right, and then it is nearly the password.
    """
    with pytest.raises(SystemExit) as raised:
        parsed().takeSecrets({name: "hush"})
    assert str(raised.value.code).startswith(f"tsrv: {name}: ")
    assert "hush" not in str(raised.value.code)


def test_the_database_waits_for_its_url(machine: Machine) -> None:
    """
    Where the URL is a setting, the one needs the other by the graph alone; where
    it is said, it does not.
    """

    def needs(*words: str) -> dict[str, list[str]]:
        options = parsed("--listen=tcp:80", *words)
        server = assemble(options, machine, {}, {"clock": Slow([])})
        server.privilegedStartService()
        modules = server._startup.report()["modules"]
        return {module["name"]: module["needs"] for module in modules}

    url = "--config-url=http://127.0.0.1:9/"
    assert needs() == {"clock": [], "database": [], "sessions": ["database"]}
    assert needs(url) == {
        "clock": [],
        "configuration": [],
        "database": ["configuration"],
        "sessions": ["database"],
    }
    # What nothing needs keeps nothing from starting.
    said = needs(url, "--database=sqlite:d")
    assert said == {
        "clock": [],
        "configuration": [],
        "database": [],
        "sessions": ["database"],
    }
    apart = needs("--sessions=sqlite:s?table=visitors")
    assert apart == {"clock": [], "database": [], "sessions": []}
    redis = needs("--sessions=redis://127.0.0.1:1/")
    assert redis == {"clock": [], "database": [], "sessions": []}


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """
    How often garbage is collected is the server's business, and not the tests'.
    """
    threshold = gc.get_threshold()
    yield
    gc.set_threshold(*threshold)


@pytest.mark.usefixtures("signals")
def test_garbage_is_looked_for_now_and_then() -> None:
    """
    To look for it after each ten requests would cost a part of them all.
    """
    makeService(parsed())
    assert gc.get_threshold()[0] == 50_000


@pytest.mark.usefixtures("signals")
def test_development_is_said_loudly() -> None:
    """
    Who has left it on by mistake finds a warning at the head of the log.
    """
    with logged() as events:
        makeService(parsed("--development"))
    (event,) = events
    assert event["log_level"] is LogLevel.warn
    assert textsOf(events)[0].startswith("DEVELOPMENT: ")


# Starting and stopping, one step after another.


class Port:
    """
    What stands for a port: it tells when it is closed.

    @ivar closed: Fires when the port is closed.
    """

    def __init__(self, number: int, steps: list[str]) -> None:
        self._number = number
        self._steps = steps
        self.closed: Deferred[None] = Deferred()

    def stopListening(self) -> Deferred[None]:
        self._steps.append(f"listen on {self._number} no longer")
        return self.closed


class Machine(MemoryReactorClock):
    """
    What stands for the reactor: its ports tell when they are opened.

    @ivar steps: What was done, in order.
    @ivar ports: The ports, by their numbers.
    @ivar sites: The sites that they belong to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.running = True
        self.steps: list[str] = []
        self.ports: dict[int, Port] = {}
        self.sites: dict[int, Site] = {}

    def listenTCP(
        self, port: int, factory: Any, backlog: int = 50, interface: str = ""
    ) -> Any:
        self.steps.append(f"listen on {port}")
        self.sites[port] = factory
        self.ports[port] = Port(port, self.steps)
        return self.ports[port]


class Slow(Teller):
    """
    A module that tells what is done to it.

    @ivar closing: The Deferred of C{close()}.
    """

    def __init__(self, steps: list[str]) -> None:
        super().__init__()
        self._steps = steps
        self.closing: Deferred[None] = Deferred()

    def initialize(self) -> Deferred[None]:
        self._steps.append("initialize")
        return super().initialize()

    def close(self) -> Deferred[None]:
        self._steps.append("close")
        return self.closing


class Parts:
    """
    A server and what it is made of.

    @ivar steps: What was done, in order.
    @ivar module: What takes the place of the clock.
    @ivar apart: Whether the operations pages have a site of their own.
    """

    def __init__(self, machine: Machine, *words: str, notify: str = "") -> None:
        self.machine = machine
        self.steps = machine.steps
        self.module = Slow(self.steps)
        options = parsed("--listen=tcp:80", *words)
        self.apart = bool(options["operations-listen"])
        environment = {"NOTIFY_SOCKET": notify} if notify else {}
        replacements = {"clock": self.module, "database": Empty()}
        self.server = assemble(options, machine, environment, replacements)

    @property
    def wrapper(self) -> Any:
        """
        The wrapper of the module.
        """
        return self.server._startup.wrappers["clock"]

    def start(self) -> None:
        """
        Start the server as C{twistd} does.
        """
        self.server.privilegedStartService()
        self.server.startService()

    def startReady(self) -> None:
        """
        Start it, and have the module be ready.
        """
        self.start()
        self.module.starting.callback(None)
        self.steps.clear()

    def stop(self) -> Result:
        """
        Stop it, and let it look once whether somebody is at the door.
        """
        stopped = resultOf(self.server.stopService())
        self.machine.advance(0)
        return stopped

    def closeAtOnce(self) -> None:
        """
        Let all that is closed be closed without delay.
        """
        for port in self.machine.ports.values():
            port.closed.callback(None)
        self.module.closing.callback(None)

    def connect(self, data: bytes, port: int = 80) -> Peer:
        """
        Make a connection, and send something.
        """
        peer = Peer(self.machine.sites[port], self.machine)
        peer.send(data)
        return peer

    def hold(self) -> Peer:
        """
        Make a request that is not answered yet.
        """
        return self.connect(SAY)

    def ask(self, path: str, port: int = 80) -> Answer:
        """
        Ask a site, whether or not it still listens.
        """
        return ask(self.machine.sites[port].resource, path)

    def askReady(self) -> Answer:
        """
        Ask whether the server is ready.
        """
        return self.ask("/readyz", 81 if self.apart else 80)


@pytest.fixture
def machine() -> Iterator[Machine]:
    """
    A reactor on which no call may be left when the test ends.
    """
    machine = Machine()
    yield machine
    assert machine.getDelayedCalls() == []


@pytest.fixture
def parts(machine: Machine) -> Parts:
    """
    A server.
    """
    return Parts(machine)


@pytest.fixture
def apart(machine: Machine) -> Parts:
    """
    A server whose operations pages have a port of their own.
    """
    return Parts(machine, "--operations-listen=tcp:81")


def stopAtOnce(parts: Parts) -> None:
    """
    Stop a server to which nothing else is to be done.
    """
    parts.closeAtOnce()
    assert parts.stop().value is None


def test_it_listens_before_it_initialises(parts: Parts) -> None:
    """
    The order that gives the server its name, and the wire strings of the
    source in the log, around one table.
    """
    with logged() as events:
        parts.server.privilegedStartService()
        assert parts.steps == ["listen on 80"]
        parts.server.startService()
        assert parts.steps == ["listen on 80", "initialize"]
        assert textsOf(events) == ["Started"]
        parts.machine.advance(2.5)
        parts.module.starting.callback(None)
    begun, *others = textsOf(events)
    assert begun == "Started"
    assert len(others) == 2
    others.remove("Async module initialized")
    ((first, _, row, *more, path),) = [table.splitlines() for table in others]
    assert "ready" in first
    assert "2.5" in first
    assert row.split()[:3] == ["*", "clock", "ready"]
    ready = [["database", "ready"], ["sessions", "ready"]]
    assert [other.split()[:2] for other in more] == ready
    assert path == "* critical path: clock"
    assert errorsIn(events) == []
    stopAtOnce(parts)


def test_all_sites_listen_before_it_initialises(apart: Parts) -> None:
    """
    Who watches the start needs the operations pages the most.
    """
    apart.start()
    assert apart.steps == ["listen on 80", "listen on 81", "initialize"]
    assert apart.askReady().status == 503
    stopAtOnce(apart)


def test_modules_that_cannot_be_are_found_before_it_listens(machine: Machine) -> None:
    """
    A mistake in what needs what is one in the program: it is told before
    anybody outside can see of it.
    """
    modules = [Slow(machine.steps), Slow(machine.steps), Empty()]
    replacements = dict(zip(["clock", "clok", "database"], modules, strict=True))
    server = assemble(parsed("--listen=tcp:80"), machine, {}, replacements)
    with pytest.raises(GraphError, match="'clok' is replaced, but was never added"):
        server.privilegedStartService()
    assert machine.steps == []


def test_a_module_that_is_replaced_is_never_made(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A test that wants a fake one must not pay for, or connect, the real one.
    """

    def neverMade(*arguments: object) -> None:
        raise AssertionError("it was made")

    monkeypatch.setattr("tsrv.tap.AsyncModule", neverMade)
    parts = Parts(machine)
    assert parts.wrapper.module is parts.module
    with pytest.raises(AssertionError, match="it was made"):
        assemble(parsed("--listen=tcp:80"), machine, {})


def test_a_failed_start_is_told_once(machine: Machine) -> None:
    """
    The one line that says which module it was must not be lost among others;
    who is told to stay up goes on, and tells it.
    """
    parts = Parts(machine, "--stay-up")
    parts.start()
    held = parts.hold()
    with logged() as events:
        parts.wrapper.fail(Refused("no way"))
    assert textsOf(events) == [
        "clock failed to initialize, and will not be tried again: Refused: no way",
        "clock is required, and failed; staying up to report it",
    ]
    assert events[-1]["log_level"] is LogLevel.critical
    assert [answer.status for answer in held.answers] == [503]
    assert parts.ask("/livez").status == 200
    assert "failed: clock (failed for good (Refused))" in parts.askReady().body.decode()
    assert parts.ask("/say").status == 503
    held.leave()
    stopAtOnce(parts)


def test_it_stops_in_the_opposite_order(parts: Parts) -> None:
    """
    First nothing more is accepted, then what has been asked is answered, and
    the module is closed only when nobody needs it.
    """
    parts.startReady()
    assert parts.askReady().status == 200
    peer = parts.hold()
    with logged() as events:
        stopped = parts.stop()
        assert parts.steps == ["listen on 80 no longer"]
        site = parts.machine.sites[80]
        assert not site.stopping
        # Who asks now is told that others are to be asked.
        assert parts.askReady().status == 503
        parts.machine.ports[80].closed.callback(None)
        assert site.stopping
        assert parts.steps == ["listen on 80 no longer"]
        parts.machine.advance(20)
        parts.module.answers[0].callback("Something")
        assert [answer.status for answer in peer.answers] == [200]
        assert peer.closed
        assert parts.steps == ["listen on 80 no longer", "close"]
        assert stopped.pending
        parts.module.closing.callback(None)
        assert stopped.value is None
    assert textsOf(events) == [
        "Stopped listening, letting requests in progress end",
        "Stopped",
    ]
    assert errorsIn(events) == []


def test_time_that_is_up_ends_the_wait(machine: Machine) -> None:
    """
    The wait for requests in progress is bounded; what the closing ends is still
    sent, and what it does not end is broken off.
    """
    parts = Parts(machine, "--drain-timeout=5")
    parts.start()
    held = parts.hold()
    parts.machine.ports[80].closed.callback(None)
    # Of its request there is more to come.
    stuck = parts.connect(SAY[:-2] + b"Content-Length: 9\r\n\r\n")
    with logged() as events:
        stopped = parts.stop()
        machine.advance(4.9)
        assert "close" not in parts.steps
        machine.advance(0.1)
        assert parts.steps[-1] == "close"
        assert [answer.status for answer in held.answers] == [503]
        assert held.closed
        parts.module.closing.callback(None)
        assert stopped.pending
        machine.advance(2)
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
    parts.start()
    parts.machine.ports[80].closed.callback(None)
    peer = parts.hold()
    # There is nothing to hurry yet.
    parts.server.hurry()
    stopped = parts.stop()
    assert "close" not in parts.steps
    parts.server.hurry()
    assert parts.steps[-1] == "close"
    # The closing itself is not hurried: it has a limit of its own.
    parts.server.hurry()
    assert stopped.pending
    parts.module.closing.callback(None)
    assert [answer.status for answer in peer.answers] == [503]
    assert peer.closed
    assert stopped.value is None


def test_what_is_held_when_it_stops_may_still_be_answered(parts: Parts) -> None:
    """
    Whoever was taken in is waited for, whatever is said of being ready; so the
    initialisation goes on until nobody needs it.
    """
    parts.start()
    parts.closeAtOnce()
    peer = parts.hold()
    assert parts.askReady().status == 503
    stopped = parts.stop()
    assert parts.askReady().status == 503
    parts.module.starting.callback(None)
    parts.module.answers[0].callback("Something")
    assert [answer.status for answer in peer.answers] == [200]
    assert parts.askReady().status == 503
    assert peer.closed
    assert stopped.value is None


def test_who_hurries_early_does_not_wait_either(parts: Parts) -> None:
    """
    A second signal counts from the first one on, and not only when the ports
    are closed.
    """
    parts.start()
    peer = parts.hold()
    stopped = parts.stop()
    parts.server.hurry()
    assert "close" not in parts.steps
    parts.machine.ports[80].closed.callback(None)
    parts.machine.advance(0)
    assert "close" in parts.steps
    parts.module.closing.callback(None)
    assert peer.answers[0].status == 503
    assert peer.closed
    assert stopped.value is None


def test_those_at_the_door_are_let_in(parts: Parts) -> None:
    """
    While more are coming in the port is not closed; but at last it is, however
    many there are, since those who are in wait to be let out.
    """
    parts.startReady()
    peers: list[Peer] = []

    def come() -> None:
        parts.steps.append("somebody comes")
        peers.append(parts.connect(b""))
        if len(peers) < 40:
            parts.machine.callLater(0, come)

    parts.machine.callLater(0, come)
    stopped = parts.stop()
    assert parts.steps[:19] == ["somebody comes"] * 19
    assert "listen on 80 no longer" in parts.steps[19:22]
    parts.closeAtOnce()
    parts.machine.advance(1)
    assert all(peer.closed for peer in peers)
    assert stopped.value is None


@pytest.mark.parametrize("error", [Trouble("stuck"), SystemExit(3)])
def test_a_closing_that_fails_does_not_keep_it_from_stopping(
    apart: Parts, error: BaseException
) -> None:
    """
    A module that cannot be closed would otherwise leave clients, and who
    waits for the process to end, without an answer.
    """
    apart.startReady()
    for port in apart.machine.ports.values():
        port.closed.callback(None)
    with logged() as events:
        stopped = apart.stop()
        apart.module.closing.errback(Failure(error))
    assert stopped.value is None
    assert apart.steps[-1] == "listen on 81 no longer"
    (told,) = errorsIn(events)
    assert eventAsText(told).endswith(
        f"clock failed to close: {type(error).__name__}: {error}"
    )


def test_a_closing_that_hangs_does_not_keep_it_from_stopping(parts: Parts) -> None:
    """
    How long a module may take is a limit of its wrapper.
    """
    parts.startReady()
    parts.machine.ports[80].closed.callback(None)
    with logged() as events:
        stopped = parts.stop()
        parts.machine.advance(9.9)
        assert stopped.pending
        parts.machine.advance(0.1)
        assert stopped.value is None
    (told,) = errorsIn(events)
    assert "clock failed to close: TimeoutError" in eventAsText(told)


def test_an_initialisation_in_progress_is_given_up(parts: Parts) -> None:
    """
    Nobody else would end it, and it would go on in a program that has stopped.
    """
    parts.start()
    with logged() as events:
        stopAtOnce(parts)
    assert parts.module.starting.called
    assert errorsIn(events) == []
    assert "Async module initialized" not in textsOf(events)


def test_what_was_never_started_can_be_stopped(parts: Parts) -> None:
    """
    When one service of a program fails to start, all are stopped.
    """
    assert parts.stop().value is None
    assert parts.steps == []


def test_to_stop_twice_is_to_stop_once(apart: Parts) -> None:
    """
    Whoever stops it a second time waits for the same end, and disturbs nothing.
    """
    apart.startReady()
    with logged() as events:
        first = apart.stop()
        second = apart.stop()
        apart.closeAtOnce()
        assert (first.value, second.value) == (None, None)
        assert apart.stop().value is None
    assert apart.steps == [
        "listen on 80 no longer",
        "close",
        "listen on 81 no longer",
    ]
    assert textsOf(events).count("Stopped") == 1


# What systemd is told.


@pytest.fixture
def told(tmp_path: Path) -> Iterator[socket]:
    """
    What stands for systemd: the socket that messages are sent to.
    """
    with socket(AF_UNIX, SOCK_DGRAM) as receiving:
        receiving.bind(str(tmp_path / "notify"))
        receiving.setblocking(False)
        yield receiving


def received(receiving: socket) -> list[str]:
    """
    @return: What systemd was told since this was asked last.
    """
    messages = []
    while True:
        try:
            messages.append(receiving.recv(4096).decode())
        except BlockingIOError:
            return messages


def test_systemd_is_told_what_becomes_of_it(
    machine: Machine, told: socket, tmp_path: Path
) -> None:
    """
    It starts what needs the server when the server is ready, and not before;
    that it stops is the first thing that is said then.
    """
    parts = Parts(machine, notify=str(tmp_path / "notify"))
    parts.start()
    assert received(told) == ["STATUS=starting"]
    machine.advance(1)
    assert received(told) == ["STATUS=waiting for clock"]
    parts.module.starting.callback(None)
    machine.advance(1)
    assert received(told) == ["READY=1\nSTATUS=ready"]
    parts.server.announceStop()
    assert received(told) == ["STOPPING=1\nSTATUS=stopping"]
    assert parts.steps == ["listen on 80", "initialize"]
    assert parts.askReady().status == 503
    stopAtOnce(parts)
    assert received(told) == []


def test_systemd_is_told_of_a_stop_that_nobody_announced(
    machine: Machine, told: socket, tmp_path: Path
) -> None:
    """
    A program may stop for other reasons than a signal.
    """
    parts = Parts(machine, notify=str(tmp_path / "notify"))
    parts.startReady()
    machine.advance(1)
    received(told)
    stopped = parts.stop()
    assert received(told) == ["STOPPING=1\nSTATUS=stopping"]
    parts.closeAtOnce()
    assert stopped.value is None


@pytest.mark.usefixtures("signals")
def test_a_service_keeps_what_systemd_says_to_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    What this process starts would otherwise speak in its name.
    """
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.setenv(name, "")
    makeService(parsed())
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ)


# The operations pages.

OPERATIONS = [
    "/",
    "/livez",
    "/readyz",
    "/startup",
    "/metrics",
    "/status/events",
    "/status.css",
    "/status.js",
    "/status.svg",
]


@pytest.mark.parametrize("path", OPERATIONS)
def test_operations_pages_are_found_on_one_site_only(path: str, apart: Parts) -> None:
    """
    Who gives them an endpoint of their own means that nobody else sees them.
    """
    head = f"HEAD {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode()
    apart.startReady()
    found = []
    for port in (80, 81):
        peer = apart.connect(head, port)
        (answer,) = answersIn(peer.received, bodies=False)
        found.append(answer.status)
        peer.leave()
    assert found == [404, 200]
    stopAtOnce(apart)


@pytest.mark.parametrize("path", ["/say", *OPERATIONS])
def test_by_default_all_pages_are_on_one_site(path: str, parts: Parts) -> None:
    """
    Who starts it to try it out finds everything in one place.
    """
    parts.startReady()
    peer = parts.connect(f"HEAD {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
    if path == "/say":
        parts.module.answers[0].callback("Something")
    (answer,) = answersIn(peer.received, bodies=False)
    assert answer.status == 200
    peer.leave()
    stopAtOnce(parts)


def test_the_public_pages_are_not_on_the_operations_site(apart: Parts) -> None:
    """
    The status page would otherwise send people where there is nothing.
    """
    apart.startReady()
    assert apart.ask("/say", 81).status == 404
    assert b'"/say"' not in apart.ask("/", 81).body
    assert b'"/livez"' in apart.ask("/", 81).body
    stopAtOnce(apart)


def test_the_status_page_leads_to_all_others(parts: Parts) -> None:
    """
    Nobody knows the addresses by heart.
    """
    parts.startReady()
    page = parts.ask("/").body.decode()
    for path in ("/say", "/livez", "/readyz", "/startup", "/metrics"):
        assert f'href="{path}"' in page
    stopAtOnce(parts)


def test_the_operations_site_is_there_until_the_end(apart: Parts) -> None:
    """
    How long it takes to stop, and why, is asked while it stops.
    """
    apart.startReady()
    held = apart.hold()
    stopped = apart.stop()
    apart.machine.ports[80].closed.callback(None)
    assert apart.steps == ["listen on 80 no longer"]
    for path, status in (("/livez", 200), ("/readyz", 503), ("/startup", 200)):
        peer = apart.connect(
            f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode(), port=81
        )
        assert [answer.status for answer in peer.answers] == [status]
        peer.leave()
    apart.module.answers[0].callback("Something")
    assert held.closed
    assert apart.steps == ["listen on 80 no longer", "close"]
    assert apart.askReady().status == 503
    apart.module.closing.callback(None)
    assert apart.steps[2:] == ["listen on 81 no longer"]
    apart.machine.ports[81].closed.callback(None)
    assert stopped.value is None
    apart.machine.advance(2)


def test_the_operations_site_keeps_nobody_waiting_for_long(apart: Parts) -> None:
    """
    A client that does not go away is no reason to stay.
    """
    apart.startReady()
    stuck = apart.connect(b"GET /livez HTTP/1.1\r\n", 81)
    apart.closeAtOnce()
    stopped = apart.stop()
    assert stopped.pending
    apart.machine.advance(2)
    assert stuck.closed
    assert stopped.value is None


def test_requests_of_both_sites_are_counted(apart: Parts) -> None:
    """
    There is one page for the metrics, and it is about the whole server.
    """
    apart.startReady()
    for path, port in (("/nowhere", 80), ("/livez", 81)):
        get = f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode()
        apart.connect(get, port).leave()
    metrics = apart.ask("/metrics", 81).body.decode()
    assert 'route="(unknown)"' in metrics
    assert 'route="/livez"' in metrics
    stopAtOnce(apart)


SECRET = "hunter2"  # noqa: S105


@pytest.mark.parametrize("words", [[], ["--operations-listen=tcp:81"]])
def test_what_errors_say_is_for_who_runs_it(machine: Machine, words: list[str]) -> None:
    """
    An error may hold a password. The type of it helps everybody, what it says is
    shown on a site of its own alone, and to be ready is asked for by machines.
    """
    parts = Parts(machine, "--listen=tcp:8080", *words)
    parts.start()
    port = 81 if parts.apart else 80
    parts.module.starting.errback(Failure(Trouble(f"password {SECRET} refused")))
    held = parts.hold()
    machine.advance(0.25)
    bodies = {path: parts.ask(path, port).body for path in OPERATIONS[:5]}
    for path, asked in (("/readyz", port), ("/nowhere", 80), ("/say", port)):
        peer = parts.connect(
            f"GET {path} HTTP/1.1\r\nHost: test\r\nAccept: text/plain\r\n\r\n".encode(),
            asked,
        )
        bodies[f"{path} as text"] = peer.received
        peer.leave()
    tell = {path for path, body in bodies.items() if SECRET.encode() in body}
    assert tell == ({"/", "/startup"} if parts.apart else set())
    for path in ("/", "/readyz", "/startup"):
        assert b"Trouble" in bodies[path]
    parts.closeAtOnce()
    stopped = parts.stop()
    parts.server.hurry()
    machine.advance(0)
    assert stopped.value is None
    assert SECRET.encode() not in held.received


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
    parts.start()
    parts.closeAtOnce()
    peer = parts.hold()
    signal.raise_signal(first)
    # In a signal handler nothing is safe but to ask for a turn.
    assert loop.stopped == []
    assert parts.askReady().status == 503
    assert "stopping" not in parts.askReady().body.decode()
    loop.turn()
    assert loop.stopped == [done]
    # Nothing has been stopped yet, but it is known that it will be.
    assert "stopping" in parts.askReady().body.decode()
    stopped = parts.stop()
    assert stopped.pending
    signal.raise_signal(second)
    loop.turn()
    assert loop.stopped == [done]
    assert "close" in parts.steps
    assert [answer.status for answer in peer.answers] == [503]
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
    (listening,), operations = makeService(parsed())
    assert list(operations) == []
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
                "--operations-listen=tcp:0:interface=127.0.0.1",
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
