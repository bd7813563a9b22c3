"""
systemd is told what it has to know, once, in order, and at no cost for the
program: not when it does not listen, and not when there is much to tell.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from configparser import ConfigParser
from contextlib import suppress
from enum import Enum
from pathlib import Path
from socket import AF_UNIX, SOCK_DGRAM, socket

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent

from tsrv.server.systemd import (
    VARIABLES,
    Notifier,
    SystemdService,
)
from tsrv.starting.report import ModuleReport
from tsrv.startup import Startup

from .support import Module, Trouble
from .websupport import errorsIn, logged, textsOf

UNITS = Path(__file__).parent.parent / "examples" / "systemd"

INSIDE = "no route to 192.0.2.1"


class Systemd:
    """
    The other end: a socket that receives.

    @ivar path: Where it is.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._socket = socket(AF_UNIX, SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(path.replace("@", "\0", 1))

    def received(self) -> list[str]:
        """
        Take out what has been received: one text for each message.
        """
        messages = []
        while True:
            try:
                messages.append(self._socket.recv(65536).decode())
            except BlockingIOError:
                return messages

    def close(self) -> None:
        """
        Receive no more.
        """
        self._socket.close()

    def fill(self) -> None:
        """
        Send until there is no more room.
        """
        with socket(AF_UNIX, SOCK_DGRAM) as sender:
            sender.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    sender.sendto(b"X=1", self.path)


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    """
    A systemd that listens.
    """
    systemd = Systemd(str(tmp_path / "notify"))
    yield systemd
    systemd.close()


@pytest.fixture
def notifier(systemd: Systemd) -> Iterator[Notifier]:
    """
    What sends messages to it.
    """
    notifier = Notifier({"NOTIFY_SOCKET": systemd.path})
    yield notifier
    notifier.close()


class Status(Enum):
    """
    The states of a program.
    """

    NEW = "new"
    STARTING = "starting"
    READY = "ready"
    DEGRADED = "degraded"
    UNREADY = "unready"
    FAILED = "failed"
    STOPPING = "stopping"
    STOPPED = "stopped"


class Program:
    """
    A start-up whose every step the test decides.

    @ivar observers: Who is told of changes.
    @ivar waiting: The Deferreds of C{whenReady()}.
    @ivar asked: The names of the modules that were looked at one by one.
    """

    def __init__(self, *names: str) -> None:
        """
        @param names: The modules; those in brackets are optional.
        """
        self.status: Status = Status.NEW
        self.observers: list[Callable[[str], object]] = []
        self.waiting: list[Deferred[None]] = []
        self.asked: list[str] = []
        self._modules: dict[str, ModuleReport] = {}
        for name in names:
            self.put(name.strip("()"), required=not name.startswith("("))

    def put(self, name: str, *, required: bool = True) -> None:
        """
        Add a module.
        """
        self._modules[name] = {
            "name": name,
            "required": required,
            "needs": [],
            "status": "new",
            "ready": False,
            "since": None,
            "reason": INSIDE,
            "note": None,
            "begun": None,
            "becameReady": None,
            "waitedFor": None,
            "attempts": [{"begun": 0, "ended": 1, "kind": INSIDE, "error": INSIDE}],
            "attemptCount": 0,
            "nextAttempt": None,
            "losses": [],
            "lossCount": 0,
            "closed": None,
            "closeError": INSIDE,
        }

    def change(self, name: str, status: str, attempts: int = 1) -> None:
        """
        Something happens to a module.
        """
        module = self._modules[name]
        module["status"] = status
        module["ready"] = status in ("ready", "draining")
        module["attemptCount"] = attempts
        self._tell(name)

    def become(self, status: Status) -> None:
        """
        Something happens to the program.
        """
        self.status = status
        self._tell("")

    def ready(self) -> None:
        """
        The program is ready.
        """
        self.become(Status.READY)
        for each in self.waiting:
            each.callback(None)

    def _tell(self, name: str) -> None:
        for observer in list(self.observers):
            observer(name)

    def whenReady(self) -> Deferred[None]:
        waiting: Deferred[None] = Deferred()
        self.waiting.append(waiting)
        return waiting

    @property
    def wrappers(self) -> list[str]:
        """
        The names of the modules.
        """
        return list(self._modules)

    def reportModule(self, name: str) -> ModuleReport:
        self.asked.append(name)
        return self._modules[name]

    def addObserver(self, observer: Callable[[str], object]) -> None:
        self.observers.append(observer)

    def removeObserver(self, observer: Callable[[str], object]) -> None:
        self.observers.remove(observer)


def told(
    program: Program, clock: Clock, systemd: Systemd, **more: str
) -> SystemdService:
    """
    Start to tell of a program.
    """
    notifier = Notifier({"NOTIFY_SOCKET": systemd.path, **more})
    service = SystemdService(program, clock, notifier)
    service.startService()
    return service


# The messages.


def test_a_message_is_one_datagram_of_lines(
    systemd: Systemd, notifier: Notifier
) -> None:
    """
    What belongs together arrives together, as sd_notify(3) has it.
    """
    assert notifier.enabled
    assert notifier.send("READY=1", "STATUS=ready")
    assert notifier.send("WATCHDOG=1")
    assert systemd.received() == ["READY=1\nSTATUS=ready", "WATCHDOG=1"]


def test_an_abstract_socket_is_found() -> None:
    """
    In a container the socket may have a name that is in no file system.
    """
    systemd = Systemd(f"@tsrv-test-{os.getpid()}")
    notifier = Notifier({"NOTIFY_SOCKET": systemd.path})
    try:
        assert notifier.send("READY=1")
        assert systemd.received() == ["READY=1"]
    finally:
        notifier.close()
        systemd.close()


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}])
def test_without_systemd_there_is_silence(environment: dict[str, str]) -> None:
    """
    Who starts it by hand sees nothing of all this, not even if a watchdog is
    asked for by a variable that was left behind.
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
        ("@" + "x" * 107, "NOTIFY_SOCKET is too long"),
        ("/" + "x" * 100_000, "NOTIFY_SOCKET is too long"),
        ("/\ud800", "surrogates not allowed"),
    ],
)
def test_a_bad_address_is_ignored_with_one_warning(path: str, about: str) -> None:
    """
    The program is not worse off for what somebody has written into a unit file.
    """
    with logged() as events:
        notifier = Notifier({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "nonsense"})
        assert notifier.send("READY=1")
    assert not notifier.enabled
    (text,) = textsOf(errorsIn(events))
    assert text.startswith("What systemd asks for is ignored: ")
    assert text.endswith(about)


def test_the_longest_address_is_taken(tmp_path: Path) -> None:
    """
    What the system allows is not refused.
    """
    path = str(tmp_path / "x")
    path += "x" * (107 - len(path))
    systemd = Systemd(path)
    notifier = Notifier({"NOTIFY_SOCKET": path})
    try:
        assert notifier.send("READY=1")
        assert systemd.received() == ["READY=1"]
    finally:
        notifier.close()
        systemd.close()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "-1",
        "1.5",
        "1e6",
        "many",
        "\u0661",
        str(2**64 - 1),
        "9" * 5000,
    ],
)
def test_a_bad_watchdog_is_ignored_with_one_warning(
    systemd: Systemd, text: str
) -> None:
    """
    A time that is none sets no timer, and the rest works.
    """
    with logged() as events:
        notifier = Notifier({"NOTIFY_SOCKET": systemd.path, "WATCHDOG_USEC": text})
    assert notifier.watchdogInterval is None
    assert notifier.enabled
    assert len(errorsIn(events)) == 1


@pytest.mark.parametrize(
    ("environment", "interval"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "17"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "18"}, None),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "x"}, None),
        ({"WATCHDOG_PID": "17"}, None),
    ],
)
def test_a_watchdog_is_for_one_process(
    systemd: Systemd, environment: dict[str, str], interval: float | None
) -> None:
    """
    A child that has inherited the variables does not answer for its parent.
    """
    notifier = Notifier({"NOTIFY_SOCKET": systemd.path, **environment}, pid=17)
    assert notifier.watchdogInterval == interval


def test_the_process_is_this_one(systemd: Systemd) -> None:
    """
    Nobody has to say which process it is.
    """
    environment = {"NOTIFY_SOCKET": systemd.path, "WATCHDOG_USEC": "2000000"}
    environment["WATCHDOG_PID"] = str(os.getpid())
    assert Notifier(environment).watchdogInterval == 2.0


@pytest.mark.parametrize(
    ("text", "arrives"),
    [
        ("a\nREADY=1", "a READY=1"),
        ("a\r\nb\x00c\x1b[31md\u2028e", "a b c [31md e"),
        ("a  \t b  ", "a b"),
        ("x\udc80y", "x y"),
        ("Grüße …", "Grüße …"),
        ("x" * 100_000, "x" * 492 + "…"),
        ("€" * 100_000, "€" * 492 + "…"),
    ],
)
def test_a_text_makes_no_further_assignments(
    systemd: Systemd, notifier: Notifier, text: str, arrives: str
) -> None:
    """
    Nobody becomes ready by the name of a module, or makes a message that
    systemd throws away because it is too long, or no text.
    """
    assert notifier.send(f"STATUS={text}")
    (message,) = systemd.received()
    assert message == f"STATUS={arrives}"
    assert len(message.encode()) < 4096 // 2


# Nobody there.


def test_a_full_socket_blocks_nothing(systemd: Systemd, notifier: Notifier) -> None:
    """
    A systemd that is at work on something else does not stop the reactor; it
    is told later, and this is nothing to tell of.
    """
    systemd.fill()
    with logged() as events:
        assert not notifier.send("READY=1")
        assert "READY=1" not in systemd.received()
        assert notifier.send("READY=1")
    assert systemd.received() == ["READY=1"]
    assert events == []


def test_a_vanished_socket_disturbs_nothing(
    systemd: Systemd, notifier: Notifier
) -> None:
    """
    Whether it refuses or is not to be found at all, one line in the log is
    enough; and when it comes back it is told.
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
    assert text.startswith("systemd cannot be told: ")


def test_a_closed_notifier_opens_again(systemd: Systemd, notifier: Notifier) -> None:
    """
    A service that is started a second time is heard as the first time.
    """
    notifier.close()
    notifier.close()
    assert notifier.send("STATUS=a")
    assert systemd.received() == ["STATUS=a"]


# What is told of a program.


def test_a_program_is_told_from_start_to_stop(clock: Clock, systemd: Systemd) -> None:
    """
    The whole story, as "systemctl status" shows it.
    """
    program = Program("database", "users", "(cache)")
    service = told(program, clock, systemd)
    assert systemd.received() == ["STATUS=starting"]
    program.become(Status.STARTING)
    program.change("database", "initializing")
    program.change("users", "waiting")
    clock.advance(0.1)
    assert systemd.received() == ["STATUS=waiting for database, users"]
    program.change("database", "retrying", 3)
    clock.advance(0.1)
    assert systemd.received() == [
        "STATUS=waiting for database (retrying, attempt 3), users"
    ]
    program.change("database", "initializing", 4)
    clock.advance(0.1)
    assert systemd.received() == [
        "STATUS=waiting for database (initializing, attempt 4), users"
    ]
    program.change("database", "ready", 4)
    program.change("cache", "failed")
    program.change("users", "ready")
    program.ready()
    assert systemd.received() == ["READY=1\nSTATUS=ready"]
    program.become(Status.DEGRADED)
    clock.advance(0.1)
    assert systemd.received() == ["STATUS=degraded: cache (failed)"]
    service.stopping()
    assert systemd.received() == ["STOPPING=1\nSTATUS=stopping"]
    program.become(Status.STOPPING)
    program.change("users", "closed")
    service.stopService()
    clock.advance(60)
    assert systemd.received() == []
    assert program.observers == []


def test_a_loss_is_told_and_ready_is_not_repeated(
    clock: Clock, systemd: Systemd
) -> None:
    """
    systemd knows only one beginning; what comes later is for people.
    """
    program = Program("database")
    service = told(program, clock, systemd)
    program.change("database", "ready")
    program.ready()
    assert systemd.received()[-1] == "READY=1\nSTATUS=ready"
    program.become(Status.UNREADY)
    program.change("database", "lost")
    clock.advance(0.1)
    assert systemd.received() == ["STATUS=not ready, waiting for database (lost)"]
    program.change("database", "ready")
    program.become(Status.READY)
    clock.advance(0.1)
    assert systemd.received() == ["STATUS=ready"]
    service.stopService()


def test_a_program_that_is_ready_already_is_told_at_once(
    clock: Clock, systemd: Systemd
) -> None:
    """
    It does not matter which of the two services is started first.
    """
    program = Program("database")
    program.change("database", "ready")
    program.become(Status.READY)
    service = told(program, clock, systemd)
    program.ready()
    clock.advance(1)
    assert systemd.received() == ["READY=1\nSTATUS=ready"]
    service.stopService()


def test_a_program_that_is_lost_at_once_was_ready(
    clock: Clock, systemd: Systemd
) -> None:
    """
    What was ready for a moment has been started, and systemd need not wait any
    longer.
    """
    program = Program("database")
    program.become(Status.UNREADY)
    service = told(program, clock, systemd)
    program.waiting[0].callback(None)
    assert systemd.received() == [
        "STATUS=not ready, waiting for database",
        "READY=1",
    ]
    service.stopService()


def test_a_program_that_never_becomes_ready_is_not_ready(
    clock: Clock, systemd: Systemd, loggedFailures: list[LogEvent]
) -> None:
    """
    To stop while it starts says so, and the Deferred that waits for readiness
    ends without a word.
    """
    program = Program("database")
    service = told(program, clock, systemd)
    cancelled: list[BaseException | None] = []
    program.waiting[0].addErrback(lambda failure: cancelled.append(failure.value))
    program.become(Status.STARTING)
    clock.advance(0.1)
    service.stopService()
    assert systemd.received() == [
        "STATUS=starting",
        "STATUS=waiting for database",
        "STOPPING=1\nSTATUS=stopping",
    ]
    assert program.waiting[0].called
    assert loggedFailures == []


def test_a_failed_program_names_what_failed(clock: Clock, systemd: Systemd) -> None:
    """
    What is missing only because of it is not named, and its errors are not:
    all users of the system may read them.
    """
    program = Program("configuration", "database", "users")
    service = told(program, clock, systemd)
    program.become(Status.STARTING)
    program.change("database", "failed")
    program.change("users", "skipped")
    program.become(Status.FAILED)
    program.waiting[0].errback(Trouble(INSIDE))
    clock.advance(0.1)
    messages = systemd.received()
    assert messages[-1] == "STATUS=failed: database (failed)"
    assert "READY" not in "".join(messages)
    assert INSIDE not in "".join(messages)
    service.stopService()


def test_a_failed_program_that_was_cured_is_ready(
    clock: Clock, systemd: Systemd
) -> None:
    """
    A program that stays up may be helped by hand; systemd would wait for ever.
    """
    program = Program("database")
    service = told(program, clock, systemd)
    program.become(Status.FAILED)
    program.waiting[0].errback(Trouble())
    clock.advance(0.1)
    assert systemd.received() == ["STATUS=starting", "STATUS=failed"]
    program.change("database", "ready")
    program.become(Status.READY)
    clock.advance(0.1)
    assert systemd.received() == ["READY=1\nSTATUS=ready"]
    service.stopService()


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (Status.NEW, "starting"),
        (Status.STARTING, "starting"),
        (Status.UNREADY, "not ready"),
        (Status.FAILED, "failed"),
        (Status.STOPPING, "stopping"),
        (Status.STOPPED, "stopping"),
    ],
)
def test_every_status_has_a_word(
    clock: Clock, systemd: Systemd, status: Status, text: str
) -> None:
    """
    Where no module is to blame, the status alone is told.
    """
    program = Program()
    program.become(status)
    service = told(program, clock, systemd)
    assert systemd.received() == [f"STATUS={text}"]
    service.stopService()


def test_a_degraded_program_without_a_name_is_degraded(
    clock: Clock, systemd: Systemd
) -> None:
    """
    It is ready, whatever it lacks.
    """
    program = Program()
    program.become(Status.DEGRADED)
    service = told(program, clock, systemd)
    assert systemd.received() == ["READY=1\nSTATUS=degraded"]
    service.stopService()


def test_a_module_that_is_added_later_is_told_of(
    clock: Clock, systemd: Systemd
) -> None:
    """
    Modules may be added after this service was started.
    """
    program = Program()
    service = told(program, clock, systemd)
    program.become(Status.STARTING)
    program.put("late")
    program.change("late", "initializing")
    clock.advance(0.1)
    assert systemd.received()[-1] == "STATUS=waiting for late"
    service.stopService()


def test_a_start_up_is_told_of(clock: Clock, systemd: Systemd) -> None:
    """
    What the other tests decide by hand is what a real one does.
    """
    startup = Startup(clock)
    database, users, cache = Module(), Module(), Module()
    startup.add("database", database, retryPolicy=lambda attempts: 1.0)
    startup.add("users", users, needs=["database"])
    startup.add("cache", cache, required=False, fatal=Trouble)
    service = SystemdService(startup, clock, Notifier({"NOTIFY_SOCKET": systemd.path}))
    service.startService()
    startup.startService()
    clock.advance(0.1)
    database.attempts[0].errback(Trouble(INSIDE))
    cache.attempts[0].errback(Trouble(INSIDE))
    clock.advance(0.1)
    clock.pump([0.9, 0.1])
    database.attempts[1].callback(None)
    clock.pump([0.05, 0.05, 0.1])
    users.attempts[0].callback(None)
    clock.pump([0.05, 0.05, 0.1])
    users.watches[0].callback(None)
    clock.advance(0.1)
    service.stopping()
    startup.stopService()
    for module in (users, cache, database):
        module.closings[0].callback(None)
    service.stopService()
    assert systemd.received() == [
        "STATUS=starting",
        "STATUS=waiting for database, users",
        "STATUS=waiting for database (retrying, attempt 1), users",
        "STATUS=waiting for database (initializing, attempt 2), users",
        "STATUS=waiting for users",
        "READY=1\nSTATUS=degraded: cache (failed)",
        "STATUS=not ready, waiting for users (lost)",
        "STOPPING=1\nSTATUS=stopping",
    ]


# Much to tell.


def test_a_storm_of_changes_is_a_few_messages(clock: Clock, systemd: Systemd) -> None:
    """
    Modules that come and go a thousand times a second cost ten messages, and
    each one is looked at once for each.
    """
    program = Program("database", "other")
    program.become(Status.STARTING)
    service = told(program, clock, systemd)
    systemd.received()
    program.change("other", "initializing")
    for attempt in range(1000):
        program.change("database", "retrying", attempt + 1)
        clock.advance(0.001)
    assert 9 <= len(systemd.received()) <= 10
    # Once more when it began.
    assert 10 <= program.asked.count("database") <= 11
    assert program.asked.count("other") == 2
    service.stopService()


def test_what_has_not_changed_is_not_told_again(clock: Clock, systemd: Systemd) -> None:
    """
    Changes that make no difference to who waits cost no message.
    """
    program = Program("database", "(cache)")
    program.become(Status.STARTING)
    service = told(program, clock, systemd)
    assert systemd.received() == ["STATUS=waiting for database"]
    program.change("cache", "retrying", 2)
    clock.advance(0.1)
    assert systemd.received() == []
    service.stopService()


def test_of_many_modules_the_first_are_named(clock: Clock, systemd: Systemd) -> None:
    """
    A line is for people, and a message has a limit.
    """
    program = Program(*(f"m{number}" for number in range(1000)))
    program.become(Status.STARTING)
    service = told(program, clock, systemd)
    assert systemd.received() == [
        "STATUS=waiting for m0, m1, m2, m3, m4 … and 995 more"
    ]
    for number in range(995):
        program.change(f"m{number}", "ready")
    clock.advance(0.1)
    assert systemd.received() == ["STATUS=waiting for m995, m996, m997, m998, m999"]
    service.stopService()


def test_a_long_name_hides_no_other(clock: Clock, systemd: Systemd) -> None:
    """
    Whatever modules are called, it stays one line in which each has its place.
    """
    program = Program("x" * 10_000, "a\nREADY=1", *"bcdefg")
    program.become(Status.STARTING)
    service = told(program, clock, systemd)
    assert systemd.received() == [
        f"STATUS=waiting for {'x' * 59}…, a READY=1, b, c, d … and 3 more"
    ]
    service.stopService()


# Signs of life.


def test_signs_of_life_are_sent_twice_as_often_as_asked(
    clock: Clock, systemd: Systemd
) -> None:
    """
    They go on from the start to the very end, whatever becomes of the modules:
    to take long to start or to stop is not to hang.
    """
    service = told(Program("database"), clock, systemd, WATCHDOG_USEC="10000000")
    assert systemd.received() == ["WATCHDOG=1", "STATUS=starting"]
    clock.advance(4.9)
    assert systemd.received() == []
    clock.advance(0.1)
    assert systemd.received() == ["WATCHDOG=1"]
    service.stopping()
    systemd.received()
    clock.advance(5)
    assert systemd.received() == ["WATCHDOG=1"]
    service.stopService()
    clock.advance(100)
    assert systemd.received() == []


def test_a_sign_of_life_that_was_not_sent_is_sent_soon(
    clock: Clock, systemd: Systemd
) -> None:
    """
    With one missing, the next would come at the very moment at which systemd
    ends the program.
    """
    service = told(Program(), clock, systemd, WATCHDOG_USEC="10000000")
    systemd.fill()
    clock.advance(5)
    systemd.received()
    clock.advance(1)
    assert systemd.received() == ["WATCHDOG=1"]
    service.stopService()


def test_a_watchdog_of_no_time_is_no_load(clock: Clock, systemd: Systemd) -> None:
    """
    What cannot be fulfilled does not keep the reactor busy.
    """
    service = told(Program(), clock, systemd, WATCHDOG_USEC="1")
    systemd.received()
    clock.pump([0.001] * 105)
    assert len(systemd.received()) == 10
    service.stopService()


# Nobody there, or nobody who reads.


def test_what_matters_is_sent_again_until_it_arrives(
    clock: Clock, systemd: Systemd
) -> None:
    """
    A READY=1 that got lost is a service that systemd ends, although it works.
    """
    program = Program("database")
    service = told(program, clock, systemd)
    systemd.received()
    systemd.fill()
    program.change("database", "ready")
    program.ready()
    clock.pump([1] * 3)
    program.become(Status.READY)
    assert "READY=1" not in "".join(systemd.received())
    clock.advance(1)
    assert systemd.received() == ["READY=1\nSTATUS=ready"]
    clock.advance(10)
    assert systemd.received() == []
    service.stopService()


def test_who_stops_is_not_ready_any_more(clock: Clock, systemd: Systemd) -> None:
    """
    What could not be said in time is not said afterwards.
    """
    program = Program()
    service = told(program, clock, systemd)
    systemd.fill()
    program.ready()
    service.stopping()
    systemd.received()
    clock.advance(1)
    assert systemd.received() == ["STOPPING=1\nSTATUS=stopping"]
    service.stopService()


def test_nobody_who_reads_leaves_no_timer(clock: Clock, systemd: Systemd) -> None:
    """
    A program that cannot tell that it stops, stops.
    """
    program = Program()
    service = told(program, clock, systemd, WATCHDOG_USEC="10000000")
    systemd.fill()
    program.become(Status.STARTING)
    clock.advance(7)
    service.stopService()
    assert clock.getDelayedCalls() == []


def test_without_systemd_a_program_is_not_watched(clock: Clock) -> None:
    """
    Who is not there costs nothing.
    """
    program = Program("database")
    service = SystemdService(program, clock, Notifier({}))
    service.startService()
    assert program.observers == []
    assert program.waiting == []
    service.stopping()
    service.stopService()


# In any order.


def test_stopping_is_said_once(clock: Clock, systemd: Systemd) -> None:
    """
    A second signal, and the service's own end, say nothing new; nor does
    whatever changes while the program stops.
    """
    program = Program("database")
    service = told(program, clock, systemd)
    program.change("database", "ready")
    service.stopping()
    service.stopping()
    service.stopService()
    service.stopService()
    assert systemd.received() == ["STATUS=starting", "STOPPING=1\nSTATUS=stopping"]
    assert program.asked == ["database"]


def test_stopping_before_the_start_is_said(clock: Clock, systemd: Systemd) -> None:
    """
    A signal may come at any time.
    """
    program = Program()
    notifier = Notifier({"NOTIFY_SOCKET": systemd.path})
    service = SystemdService(program, clock, notifier)
    service.stopping()
    service.stopService()
    assert systemd.received() == ["STOPPING=1\nSTATUS=stopping"]


def test_a_service_may_be_started_again(clock: Clock, systemd: Systemd) -> None:
    """
    It tells of what is, and not of what was; but it is ready only once.
    """
    program = Program("database")
    service = told(program, clock, systemd)
    program.ready()
    service.stopService()
    systemd.received()
    program.change("database", "lost")
    program.become(Status.UNREADY)
    service.startService()
    assert systemd.received() == ["STATUS=not ready, waiting for database (lost)"]
    program.change("database", "ready")
    program.become(Status.READY)
    clock.advance(0.1)
    service.stopping()
    service.stopService()
    assert systemd.received() == ["STATUS=ready", "STOPPING=1\nSTATUS=stopping"]


def test_what_was_not_said_at_the_end_is_not_said_at_the_next_start(
    clock: Clock, systemd: Systemd
) -> None:
    """
    A service that was started again does not stop.
    """
    service = told(Program(), clock, systemd)
    systemd.fill()
    service.stopService()
    systemd.received()
    service.startService()
    assert systemd.received() == []
    service.stopService()
    assert systemd.received() == ["STOPPING=1\nSTATUS=stopping"]


def test_a_deferred_that_is_cancelled_otherwise_is_no_error(
    clock: Clock, systemd: Systemd
) -> None:
    """
    A start-up that is stopped before this service ends those that wait for it.
    """
    program = Program()
    service = told(program, clock, systemd)
    program.waiting[0].errback(CancelledError())
    service.stopService()
    assert "READY=1" not in "".join(systemd.received())


# The examples.


def unit(name: str) -> Mapping[str, Mapping[str, str]]:
    """
    @return: The sections of a unit file.
    """
    parser = ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    text = (UNITS / name).read_text().replace("\\\n", " ")
    parser.read_string(text)
    return parser


def test_the_examples_are_valid(tmp_path: Path) -> None:
    """
    systemd itself finds nothing to say against them.
    """
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    program = tmp_path / "twistd"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for name in ("tsrv.service", "tsrv.socket"):
        text = (UNITS / name).read_text()
        text = text.replace("/opt/tsrv/.venv/bin/twistd", str(program))
        (tmp_path / name).write_text(text)
    verified = subprocess.run(  # noqa: S603
        [analyze, "verify", "--man=no", "tsrv.service", "tsrv.socket"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    # What other units of this machine are like is not of interest.
    said = [line for line in verified.stderr.splitlines() if "tsrv" in line]
    assert said == []
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
    Its command line is understood by twistd and by tsrv, in the environment
    that systemd makes for it, and fits what the other file says.
    """
    service, activation = unit("tsrv.service")["Service"], unit("tsrv.socket")["Socket"]
    _, *words = shlex.split(service["ExecStart"])
    environment = {name: os.environ[name] for name in os.environ.keys() - VARIABLES}
    environment["LISTEN_FDS"] = "1"
    environment["LISTEN_FDNAMES"] = activation["FileDescriptorName"]
    parsed = subprocess.run(  # noqa: S603
        [sys.executable, "-c", PARSE, *words],
        env=environment,
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert parsed.returncode == 0, parsed.stderr
    first, second = parsed.stdout.splitlines()
    assert json.loads(first) == [True, "", None]
    options = json.loads(second)
    assert options["listen"] == ["systemd:domain=INET:name=http"]
    assert activation["ListenStream"] == "127.0.0.1:8000"
    assert options["drain-timeout"] < float(service["TimeoutStopSec"])
    assert service["Type"] == "notify"
