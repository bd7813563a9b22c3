"""
systemd gets each message once and in order, and cannot disturb the program.
"""

from __future__ import annotations

import json
import os
import resource
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
from twisted.web.client import HTTPConnectionPool

from tsrv.server.systemd import VARIABLES, SystemdService
from tsrv.startup import Startup

from .processes import ROOT, running
from .services import Service, pause
from .support import Module, Trouble
from .websupport import asynchronous, errorsIn, logged, textsOf

UNITS = ROOT / "examples" / "systemd"

INSIDE = "no route to 192.0.2.1"


EXTENSION = "EXTEND_TIMEOUT_USEC=30000000"


class Systemd:
    """
    systemd's end of the socket.

    @ivar extensions: The number of requests for more time to start.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.extensions = 0
        self._socket = socket(AF_UNIX, SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(address.replace("@", "\0", 1))

    def received(self) -> list[str]:
        """
        @return: The messages since the last call, except the requests for more time,
            which are counted.
        """
        messages = []
        with suppress(BlockingIOError):
            while True:
                lines = self._socket.recv(65536).decode().split("\n")
                self.extensions += EXTENSION in lines
                if others := [line for line in lines if line != EXTENSION]:
                    messages.append("\n".join(others))
        return messages

    def close(self) -> None:
        self._socket.close()

    def fill(self) -> None:
        with socket(AF_UNIX, SOCK_DGRAM) as sender, suppress(BlockingIOError):
            sender.setblocking(False)
            while True:
                sender.sendto(b"X=1", self.address)


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    """
    A socket that receives messages.
    """
    systemd = Systemd(str(tmp_path / "notify"))
    yield systemd
    systemd.close()


class Program:
    """
    A start-up whose modules the test controls, and its service for systemd.

    @ivar modules: The modules, by name.
    """

    def __init__(self, clock: Clock, systemd: Systemd, **variables: str) -> None:
        self.systemd = systemd
        self.clock = clock
        self.startup = Startup(clock, stayUp=True)
        self.modules: dict[str, Module] = {}
        environment = {"NOTIFY_SOCKET": systemd.address} | variables
        self.service = SystemdService(self.startup, clock, environment)

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
        @return: The messages that arrive within a time.
        """
        self.clock.pump(seconds)
        return self.systemd.received()

    def stop(self) -> None:
        """
        Stop the start-up and the service.
        """
        self.service.stopService()
        self.startup.stopService()
        # A module is closed after its dependents.
        for module in reversed(self.modules.values()):
            for closing in module.closings:
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
    A program with a watchdog of ten seconds.
    """
    program = Program(
        clock, systemd, WATCHDOG_USEC="10000000", WATCHDOG_PID=str(os.getpid())
    )
    yield program
    program.stop()


# The status of a program.


def test_a_program_from_start_to_stop(program: Program) -> None:
    """
    systemd learns once that the program is ready, and once that it stops; in between,
    the status says what the program waits for.
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
    program.service.stopService()
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
    A program that is stopped before it is ready never reports READY=1.
    """
    program.add("database")
    program.start()
    program.clock.advance(0.1)
    program.service.stopService()
    assert program.systemd.received() == [
        "STATUS=starting",
        "STATUS=waiting for database",
        "STOPPING=1\nSTATUS=stopping",
    ]


def test_a_failed_program_names_what_failed(program: Program) -> None:
    """
    The status names neither skipped modules nor errors. A failed program that is
    repaired is reported as ready.
    """
    database = program.add("database")
    program.add("users", needs=["database"])
    program.start()
    database.attempts[0].errback(ValueError(INSIDE))
    messages = program.after(0.1)
    assert messages == ["STATUS=starting", "STATUS=failed: database (failed)"]
    for name, module in program.modules.items():
        program.startup.wrappers[name].initialize()
        module.attempts[-1].callback(None)
    assert program.after(0.1)[-1] == "READY=1\nSTATUS=ready"


def test_a_storm_of_changes_is_a_few_messages(program: Program) -> None:
    """
    However often modules change, at most ten messages are sent in a second, and none
    for a change without effect on the status.
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
    for name in ("x" * 10_000, *(f"m{number}" for number in range(9))):
        program.add(name)
    program.start()
    assert program.after(0.1)[-1] == (
        f"STATUS=waiting for {'x' * 59}…, m0, m1, m2, m3 … and 5 more"
    )
    for module in [*program.modules.values()][:5]:
        module.attempts[0].callback(None)
    assert program.after(0.1)[-1] == "STATUS=waiting for m4, m5, m6, m7, m8"


# The time limit of a start.


def test_a_program_that_starts_asks_for_more_time(program: Program) -> None:
    """
    While modules start, systemd is asked for more time three times in each period that
    it grants; afterwards never, whatever happens to the modules.
    """
    database = program.add("database")

    def extensions(seconds: int) -> int:
        before = program.systemd.extensions
        program.systemd.received()
        for _ in range(seconds):
            program.after(1)
        return program.systemd.extensions - before

    program.start()
    assert extensions(0) == 1
    assert extensions(600) == 60
    program.systemd.fill()
    program.clock.advance(10)
    program.systemd.received()
    assert extensions(1) == 1
    program.systemd.fill()
    program.clock.pump([1.0] * 10)
    database.attempts[0].callback(None)
    program.systemd.received()
    before = program.systemd.extensions
    assert program.after(1) == ["READY=1\nSTATUS=ready"]
    database.watches[0].callback(None)
    assert extensions(600) == 0
    assert program.systemd.extensions == before


def test_a_program_that_stops_asks_for_no_more_time(program: Program) -> None:
    """
    During a stop, systemd is not asked for more time, since a stop has a time limit of
    its own.
    """
    program.add("database")
    program.start()
    program.systemd.received()
    program.systemd.fill()
    program.clock.advance(10)
    program.service.stopping()
    program.systemd.received()
    program.after(*[1.0] * 60)
    assert program.systemd.extensions == 1


# The watchdog.


def test_keep_alives_are_sent_twice_in_each_interval(watched: Program) -> None:
    """
    Keep-alives are sent twice in each watchdog interval, from the start to the end,
    whatever the modules do. A keep-alive that cannot be sent is repeated soon, since
    the next one would be too late.
    """
    watched.service.startService()
    assert watched.after(4.9) == ["WATCHDOG=1", "STATUS=starting"]
    assert watched.after(0.1) == ["WATCHDOG=1"]
    watched.systemd.fill()
    assert "WATCHDOG=1" not in watched.after(5)
    assert watched.after(1) == ["WATCHDOG=1"]
    watched.service.stopping()
    assert watched.after(4) == ["STOPPING=1\nSTATUS=stopping", "WATCHDOG=1"]
    watched.service.stopService()
    assert watched.after(100) == []


@pytest.mark.parametrize(("microseconds", "pid"), [("1000000", "1"), ("soon", "")])
def test_a_watchdog_watches_one_process(
    clock: Clock, systemd: Systemd, microseconds: str, pid: str
) -> None:
    """
    A child process that inherits the variables sends no keep-alive for its parent, and
    an invalid interval is ignored.
    """
    variables = {"WATCHDOG_USEC": microseconds, "WATCHDOG_PID": pid}
    program = Program(clock, systemd, **variables)
    program.start()
    assert "WATCHDOG=1" not in program.after(60)
    program.stop()


# The socket.


def test_the_address_may_be_abstract_or_long(clock: Clock, tmp_path: Path) -> None:
    """
    The address may be an abstract name, or a path of 107 bytes.
    """
    path = str(tmp_path / "x")
    for address in (f"@tsrv-test-{os.getpid()}", path + "x" * (107 - len(path))):
        systemd = Systemd(address)
        program = Program(clock, systemd)
        program.service.startService()
        assert systemd.received() == ["STATUS=starting"]
        program.stop()
        systemd.close()


def test_a_message_is_sent_until_it_arrives(program: Program) -> None:
    """
    A message is repeated until it arrives, since systemd would end a working service
    whose READY=1 is lost. A full socket is not logged as a warning.
    """
    database = program.add("database")
    program.start()
    program.systemd.fill()
    with logged() as events:
        database.attempts[0].callback(None)
        assert "READY=1" not in "".join(program.after(0.1))
        assert program.after(1) == ["READY=1\nSTATUS=ready"]
    assert errorsIn(events) == []
    assert program.after(10) == []


def test_an_unreachable_socket_is_logged_once(program: Program) -> None:
    """
    Of all messages that cannot be sent, one is logged. When the socket exists again,
    the last status is sent.
    """
    program.add("database")
    program.systemd.close()
    with logged() as events:
        program.start()
        program.clock.advance(1)
    (text,) = textsOf(errorsIn(events))
    assert text.startswith("Cannot notify systemd: ")
    os.unlink(program.systemd.address)
    program.systemd = Systemd(program.systemd.address)
    assert program.after(1) == ["STATUS=waiting for database"]
    program.systemd.close()


def test_a_program_starts_although_it_cannot_have_a_socket(program: Program) -> None:
    """
    If the process cannot have a socket, the log has one warning, and the program starts
    and stops without systemd.
    """
    program.add("database")
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with logged() as events:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            program.start()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    assert program.modules["database"].attempts
    (event,) = errorsIn(events)
    assert "Cannot notify systemd" in textsOf([event])[0]
    assert program.after(30) == []


def test_a_stopping_program_is_not_ready_any_more(program: Program) -> None:
    """
    An unsent READY=1 is dropped when the program stops.
    """
    database = program.add("database")
    program.start()
    program.systemd.fill()
    database.attempts[0].callback(None)
    program.clock.advance(0.1)
    program.service.stopping()
    program.systemd.received()
    assert program.after(1) == ["STOPPING=1\nSTATUS=stopping"]


def test_unsent_messages_end_with_the_service(watched: Program) -> None:
    """
    A stopped service leaves no timer, even if messages could not be sent.
    """
    watched.service.startService()
    watched.systemd.fill()
    watched.clock.advance(7)
    watched.service.stopService()
    assert watched.clock.getDelayedCalls() == []


def test_without_systemd_a_service_does_nothing(clock: Clock) -> None:
    """
    A program that systemd has not started ignores the variables of systemd.
    """
    variables = {"NOTIFY_SOCKET": "", "WATCHDOG_USEC": "1000000"}
    service = SystemdService(Startup(clock), clock, variables)
    with logged() as events:
        service.startService()
        assert clock.getDelayedCalls() == []
        service.stopping()
        service.stopService()
    assert events == []


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
    names = ["tsrv@.service", "tsrv.socket"]
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
    # The tool also reports problems of the machine's own units.
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
    timeouts fit the timeouts of systemd.
    """
    service, activation = unit("tsrv@.service"), unit("tsrv.socket")
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
    # A statement may be in progress when the drain ends.
    closing = options["statement-timeout"] + 5
    stopping = options["shutdown-delay"] + options["drain-timeout"] + closing
    assert stopping < float(service["TimeoutStopSec"])
    assert service["Type"] == "notify"
    # Every process has the same socket, the same user, and thus the same files.
    assert service["Sockets"] == "tsrv.socket"
    assert service["User"] == service["StateDirectory"] == "tsrv"
    assert activation["Service"] == "tsrv@1.service"


@asynchronous
async def test_a_process_of_the_example(
    tmp_path: Path, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The command of the service, started as systemd does it, asks for time, reports
    readiness, keep-alives and the stop, and serves the socket that it inherits.
    """
    from twisted.internet import reactor

    _, *arguments = shlex.split(unit("tsrv@.service")["ExecStart"])
    monkeypatch.setenv("NOTIFY_SOCKET", systemd.address)
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    messages: list[str] = []

    async def until(message: str) -> None:
        while message not in messages:
            await pause(0.02)
            messages.extend("\n".join(systemd.received()).splitlines())

    with socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        words = [*arguments, "--delay=0.3"]
        async with running(tmp_path, *words, listening=listening) as process:
            await until("STATUS=waiting for clock")
            pool = HTTPConnectionPool(reactor, persistent=False)
            port = listening.getsockname()[1]
            client = Service(process, f"http://127.0.0.1:{port}", pool)
            assert (await client.ask("GET", "/say")).status == 200
            await until("READY=1")
            messages.clear()
            await until("WATCHDOG=1")
            process.terminate()
            await until("STOPPING=1")
            assert await process.ended == 0
    assert systemd.extensions >= 1
