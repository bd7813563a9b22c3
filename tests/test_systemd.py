"""
systemd gets each message once and in order, and never disturbs the program.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from configparser import RawConfigParser
from contextlib import suppress
from pathlib import Path
from socket import AF_UNIX, SOCK_DGRAM, socket
from typing import Any

import pytest
from twisted.internet.task import Clock

from tsrv.server.systemd import VARIABLES, Notifier, SystemdService
from tsrv.startup import Startup

from .support import Module, Trouble
from .websupport import errorsIn, logged, textsOf

UNITS = Path(__file__).parent.parent / "examples" / "systemd"

INSIDE = "no route to 192.0.2.1"


class Systemd:
    """
    systemd's end of the socket.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._socket = socket(AF_UNIX, SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(path.replace("@", "\0", 1))

    def received(self) -> list[str]:
        """
        @return: The messages since the last call.
        """
        messages = []
        while True:
            try:
                messages.append(self._socket.recv(65536).decode())
            except BlockingIOError:
                return messages

    def close(self) -> None:
        self._socket.close()

    def fill(self) -> None:
        with socket(AF_UNIX, SOCK_DGRAM) as sender:
            sender.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    sender.sendto(b"X=1", self.path)


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    """
    A socket that receives messages.
    """
    systemd = Systemd(str(tmp_path / "notify"))
    yield systemd
    systemd.close()


@pytest.fixture
def notifier(systemd: Systemd) -> Iterator[Notifier]:
    """
    A notifier that sends to this socket.
    """
    notifier = Notifier({"NOTIFY_SOCKET": systemd.path})
    yield notifier
    notifier.close()


class Program:
    """
    A start-up whose modules do what the test says, and its service for systemd.

    @ivar modules: The modules, by name.
    """

    def __init__(self, clock: Clock, systemd: Systemd, watchdog: str = "") -> None:
        self.systemd = systemd
        self.clock = clock
        self.startup = Startup(clock, stayUp=True)
        self.modules: dict[str, Module] = {}
        environment = {"NOTIFY_SOCKET": systemd.path}
        if watchdog:
            environment["WATCHDOG_USEC"] = watchdog
        self.service = SystemdService(self.startup, clock, Notifier(environment))

    def add(self, name: str, **options: Any) -> Module:
        """
        Add a module that is retried after a second.
        """
        module = self.modules[name] = Module()
        options.setdefault("retryPolicy", lambda attempts: 1.0)
        self.startup.add(name, module, fatal=ValueError, **options)
        return module

    def start(self) -> None:
        self.service.startService()
        self.startup.startService()

    def after(self, *seconds: float) -> list[str]:
        """
        @return: The messages that arrive within some time.
        """
        self.clock.pump(seconds)
        return self.systemd.received()

    def stop(self) -> None:
        """
        Stop both.
        """
        self.service.stopService()
        self.startup.stopService()
        # A module is closed after its dependents.
        for module in reversed(self.modules.values()):
            for closing in module.closings:
                if not closing.called:
                    closing.callback(None)


@pytest.fixture
def program(clock: Clock, systemd: Systemd) -> Iterator[Program]:
    """
    A program without modules; it is stopped after the test.
    """
    program = Program(clock, systemd)
    yield program
    program.stop()


@pytest.fixture
def watched(clock: Clock, systemd: Systemd) -> Iterator[Program]:
    """
    A program for whose keep-alives systemd waits ten seconds.
    """
    program = Program(clock, systemd, watchdog="10000000")
    yield program
    program.stop()


# Messages.


def test_a_message_is_one_datagram(systemd: Systemd, notifier: Notifier) -> None:
    """
    Assignments that are sent together arrive together, one on a line.
    """
    assert notifier.enabled
    assert notifier.send("READY=1", "STATUS=ready")
    assert notifier.send("WATCHDOG=1")
    assert systemd.received() == ["READY=1\nSTATUS=ready", "WATCHDOG=1"]


def test_the_address_may_be_abstract_or_long(tmp_path: Path) -> None:
    """
    A name that is in no file system is found, and a path may have 107 bytes.
    """
    path = str(tmp_path / "x")
    for address in (f"@tsrv-test-{os.getpid()}", path + "x" * (107 - len(path))):
        systemd = Systemd(address)
        notifier = Notifier({"NOTIFY_SOCKET": address})
        assert notifier.send("READY=1")
        assert systemd.received() == ["READY=1"]
        notifier.close()
        systemd.close()


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}])
def test_without_systemd_nothing_is_sent(environment: dict[str, str]) -> None:
    """
    A program that was not started by systemd ignores all of its variables.
    """
    with logged() as events:
        notifier = Notifier({**environment, "WATCHDOG_USEC": "nonsense"})
        assert notifier.send("READY=1")
        notifier.close()
    assert not notifier.enabled
    assert notifier.watchdogInterval is None
    assert events == []


@pytest.mark.parametrize(
    ("path", "about"),
    [
        ("relative/path", "NOTIFY_SOCKET is neither a path nor an abstract name"),
        ("vsock:2:1234", "NOTIFY_SOCKET is neither a path nor an abstract name"),
        ("/" + "x" * 107, "NOTIFY_SOCKET is too long"),
        ("/\ud800", "surrogates not allowed"),
    ],
)
def test_a_bad_address_is_ignored_with_one_warning(path: str, about: str) -> None:
    """
    A mistake in the environment does not affect the program.
    """
    with logged() as events:
        notifier = Notifier({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "nonsense"})
        assert notifier.send("READY=1")
    assert not notifier.enabled
    (text,) = textsOf(errorsIn(events))
    assert text.startswith("Invalid variable of systemd: ")
    assert text.endswith(about)


def test_a_bad_watchdog_is_ignored_with_one_warning(systemd: Systemd) -> None:
    """
    An interval that is not a number of microseconds starts no timer.
    """
    for text in ("", "0", "-1", "1.5", "1e6", "\u0661", str(2**64 - 1), "9" * 5000):
        with logged() as events:
            notifier = Notifier({"NOTIFY_SOCKET": systemd.path, "WATCHDOG_USEC": text})
        assert notifier.watchdogInterval is None
        assert notifier.enabled
        assert len(errorsIn(events)) == 1


@pytest.mark.parametrize(
    ("pid", "interval"),
    [(None, 30.0), ("own", 30.0), ("1", None), ("x", None)],
)
def test_a_watchdog_watches_one_process(
    systemd: Systemd, pid: str | None, interval: float | None
) -> None:
    """
    A child process that inherits the variables does not answer for its parent.
    """
    environment = {"NOTIFY_SOCKET": systemd.path, "WATCHDOG_USEC": "30000000"}
    if pid is not None:
        environment["WATCHDOG_PID"] = pid.replace("own", str(os.getpid()))
    assert Notifier(environment).watchdogInterval == interval


def test_a_full_socket_does_not_block(systemd: Systemd, notifier: Notifier) -> None:
    """
    A message for which there is no room is reported as unsent, without a warning.
    """
    systemd.fill()
    with logged() as events:
        assert not notifier.send("READY=1")
        assert "READY=1" not in systemd.received()
        assert notifier.send("READY=1")
    assert systemd.received() == ["READY=1"]
    assert events == []


def test_a_vanished_socket_is_logged_once(systemd: Systemd, notifier: Notifier) -> None:
    """
    Unsent messages are logged once; later messages reach a socket that is back.
    """
    assert notifier.send("STATUS=a")
    systemd.close()
    with logged() as events:
        assert not notifier.send("STATUS=b")
        os.unlink(systemd.path)
        assert not notifier.send("STATUS=c")
        returned = Systemd(systemd.path)
        assert notifier.send("STATUS=d")
    assert returned.received() == ["STATUS=d"]
    returned.close()
    (text,) = textsOf(errorsIn(events))
    assert text.startswith("Cannot notify systemd: ")


# The status of a program.


def test_a_program_from_start_to_stop(program: Program) -> None:
    """
    systemd learns once that the program is ready and that it stops, and in between what
    it waits for.
    """
    database = program.add("database")
    users = program.add("users", needs=["database"])
    cache = program.add("cache", required=False)
    program.start()
    program.clock.advance(0.1)
    database.attempts[0].errback(Trouble(INSIDE))
    cache.attempts[0].errback(ValueError(INSIDE))
    program.clock.pump([0.1, 0.9, 0.1])
    database.attempts[1].callback(None)
    program.clock.advance(0.1)
    users.attempts[0].callback(None)
    program.clock.advance(0.1)
    users.watches[0].callback(None)
    program.clock.pump([0.1, 1.0, 0.1])
    users.attempts[1].callback(None)
    program.clock.advance(0.1)
    program.service.stopping()
    program.service.stopping()
    assert program.systemd.received() == [
        "STATUS=starting",
        "STATUS=waiting for database, users",
        "STATUS=waiting for database (retrying, attempt 1), users",
        "STATUS=waiting for database (initializing, attempt 2), users",
        "STATUS=waiting for users",
        "READY=1\nSTATUS=degraded: cache (failed)",
        "STATUS=not ready, waiting for users (lost)",
        "STATUS=not ready, waiting for users (initializing, attempt 2)",
        "STATUS=degraded: cache (failed)",
        "STOPPING=1\nSTATUS=stopping",
    ]
    program.stop()
    assert program.after(60) == []


def test_a_service_may_be_started_after_the_start_up(program: Program) -> None:
    """
    A program that is ready already is reported at once.
    """
    database = program.add("database")
    program.startup.startService()
    database.attempts[0].callback(None)
    program.service.startService()
    assert program.after(1) == ["READY=1\nSTATUS=ready"]


def test_a_program_that_stops_while_it_starts(program: Program) -> None:
    """
    A program that is stopped before it is ready never reports that it is.
    """
    program.service.startService()
    program.add("database")
    program.startup.startService()
    program.clock.advance(0.1)
    program.stop()
    assert program.systemd.received() == [
        "STATUS=starting",
        "STATUS=waiting for database",
        "STOPPING=1\nSTATUS=stopping",
    ]


def test_a_failed_program_names_what_failed(program: Program) -> None:
    """
    Modules that are skipped because of a failed one are not named, and no error is
    shown. A failed program that is repaired is ready.
    """
    database = program.add("database")
    users = program.add("users", needs=["database"])
    program.start()
    database.attempts[0].errback(ValueError(INSIDE))
    messages = program.after(0.1)
    assert messages == ["STATUS=starting", "STATUS=failed: database (failed)"]
    for name, module in program.modules.items():
        program.startup.wrappers[name].initialize()
        module.attempts[-1].callback(None)
    assert len(users.attempts) == 1
    assert program.after(0.1)[-1] == "READY=1\nSTATUS=ready"


def test_a_storm_of_changes_is_a_few_messages(program: Program) -> None:
    """
    However often modules change, there are at most ten messages in a second, and none
    for a change that makes no difference.
    """
    database = program.add("database", retryPolicy=lambda attempts: 0.0)
    cache = program.add("cache", required=False)
    program.start()
    program.after(0.1)
    for _ in range(1000):
        database.attempts[-1].errback(Trouble())
        program.clock.advance(0.001)
    assert 9 <= len(program.after(0.1)) <= 10
    cache.attempts[0].errback(Trouble())
    assert program.after(0.1) == []


def test_of_many_modules_five_are_named(program: Program) -> None:
    """
    A status names the first five modules, and shortens long names.
    """
    for name in ("x" * 10_000, *(f"m{number}" for number in range(999))):
        program.add(name)
    program.start()
    assert program.after(0.1)[-1] == (
        f"STATUS=waiting for {'x' * 59}…, m0, m1, m2, m3 … and 995 more"
    )
    for module in [*program.modules.values()][:995]:
        module.attempts[0].callback(None)
    assert program.after(0.1)[-1] == "STATUS=waiting for m994, m995, m996, m997, m998"


# The watchdog.


def test_the_watchdog_hears_twice_as_often_as_it_asks(watched: Program) -> None:
    """
    Keep-alive messages are sent from the start to the end, whatever the modules do.
    """
    watched.add("database")
    watched.service.startService()
    assert watched.after(4.9) == ["WATCHDOG=1", "STATUS=starting"]
    assert watched.after(0.1) == ["WATCHDOG=1"]
    watched.service.stopping()
    assert watched.after(5) == ["STOPPING=1\nSTATUS=stopping", "WATCHDOG=1"]
    watched.service.stopService()
    assert watched.after(100) == []


def test_an_unsent_keep_alive_is_sent_soon(watched: Program) -> None:
    """
    After an unsent keep-alive the next regular one would come too late.
    """
    watched.service.startService()
    watched.systemd.fill()
    watched.after(5)
    assert watched.after(1) == ["WATCHDOG=1"]


def test_a_watchdog_without_patience_is_no_load(clock: Clock, systemd: Systemd) -> None:
    """
    However short the interval, there are at most a hundred keep-alives in a second.
    """
    program = Program(clock, systemd, watchdog="1")
    program.service.startService()
    program.systemd.received()
    assert len(program.after(*[0.001] * 105)) == 10
    program.stop()


# Messages that cannot be sent, and other orders.


def test_a_message_is_sent_until_it_arrives(program: Program) -> None:
    """
    systemd would end a working service whose READY=1 is lost.
    """
    database = program.add("database")
    program.start()
    program.systemd.fill()
    database.attempts[0].callback(None)
    assert "READY=1" not in "".join(program.after(1, 1, 1))
    assert program.after(1) == ["READY=1\nSTATUS=ready"]
    assert program.after(10) == []


def test_a_stopping_program_is_not_ready_any_more(program: Program) -> None:
    """
    An unsent READY=1 is dropped when the program stops.
    """
    database = program.add("database")
    program.start()
    program.systemd.fill()
    database.attempts[0].callback(None)
    program.service.stopping()
    program.systemd.received()
    assert program.after(1) == ["STOPPING=1\nSTATUS=stopping"]


def test_unsent_messages_end_with_the_service(watched: Program) -> None:
    """
    A stopped service leaves no timer, and does not send old messages when it is started
    again.
    """
    watched.service.startService()
    watched.systemd.fill()
    watched.clock.advance(7)
    watched.service.stopService()
    assert watched.clock.getDelayedCalls() == []
    watched.systemd.received()
    watched.service.startService()
    assert watched.systemd.received() == ["WATCHDOG=1"]


def test_without_systemd_a_service_does_nothing(clock: Clock) -> None:
    """
    A service that systemd has not started has no timer and no observer.
    """
    startup = Startup(clock)
    startup.add("database", module := Module())
    service = SystemdService(startup, clock, Notifier({}))
    service.startService()
    startup.startService()
    assert clock.getDelayedCalls() == []
    service.stopping()
    service.stopService()
    startup.stopService()
    module.closings[0].callback(None)


def test_a_stop_before_the_start_is_sent(program: Program) -> None:
    """
    A signal may arrive before the service is started.
    """
    program.service.stopping()
    program.service.stopService()
    assert program.systemd.received() == ["STOPPING=1\nSTATUS=stopping"]


def test_a_service_may_be_started_again(program: Program) -> None:
    """
    A service that is started again sends the current status, but READY=1 only once.
    """
    database = program.add("database")
    program.start()
    database.attempts[0].callback(None)
    program.service.stopService()
    program.systemd.received()
    database.watches[0].callback(None)
    program.service.startService()
    messages = ["STATUS=not ready, waiting for database (lost)"]
    assert program.systemd.received() == messages
    program.clock.advance(1)
    database.attempts[1].callback(None)
    assert program.after(0.1)[-1] == "STATUS=ready"


# The examples.


def unit(name: str) -> Mapping[str, str]:
    """
    @return: The options of a unit file.
    """
    parser = RawConfigParser()
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((UNITS / name).read_text().replace("\\\n", " "))
    return parser[name.partition(".")[2].capitalize()]


def test_the_examples_are_valid(tmp_path: Path) -> None:
    """
    systemd accepts both unit files.
    """
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    names = ["tsrv.service", "tsrv.socket"]
    for name in names:
        text = (UNITS / name).read_text()
        text = text.replace("/opt/tsrv/.venv/bin/twistd", sys.executable)
        (tmp_path / name).write_text(text)
    verified = subprocess.run(  # noqa: S603
        [analyze, "verify", "--man=no", *names],
        cwd=tmp_path,
        capture_output=True,
        check=False,
        text=True,
    )
    # It reports problems of the machine's own units too.
    assert [line for line in verified.stderr.splitlines() if "tsrv" in line] == []
    assert verified.returncode == 0, verified.stderr


PARSE = """
import json, os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
from twisted.scripts.twistd import ServerOptions
options = ServerOptions()
options.parseOptions(sys.argv[1:])
print(json.dumps([options[name] for name in ("nodaemon", "pidfile", "logfile")]))
print(json.dumps({**options.subOptions}))
"""


def test_the_example_starts_a_server_on_the_socket_of_systemd() -> None:
    """
    The command line of the service is valid with the socket of the other file, and its
    timeouts fit those of systemd.
    """
    service, activation = unit("tsrv.service"), unit("tsrv.socket")
    _, *arguments = shlex.split(service["ExecStart"])
    environment = {name: os.environ[name] for name in os.environ.keys() - VARIABLES}
    environment["LISTEN_FDS"] = "1"
    environment["LISTEN_FDNAMES"] = activation["FileDescriptorName"]
    parsed = subprocess.run(  # noqa: S603
        [sys.executable, "-c", PARSE, *arguments],
        env=environment,
        capture_output=True,
        check=False,
        text=True,
    )
    assert parsed.returncode == 0, parsed.stderr
    first, second = parsed.stdout.splitlines()
    assert json.loads(first) == [True, "", None]
    options = json.loads(second)
    assert options["listen"] == ["systemd:domain=INET:name=http"]
    assert activation["ListenStream"] == "127.0.0.1:8000"
    assert options["drain-timeout"] < float(service["TimeoutStopSec"])
    assert service["Type"] == "notify"
