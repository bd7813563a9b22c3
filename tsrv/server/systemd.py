"""
What a program tells systemd: that it is ready, what it waits for, that it is
alive, that it stops.

systemd gives a socket to a service that is to tell how it does, and says in the
environment where it is. Every message is one datagram of assignments, one in a
line. The protocol is that of C{sd_notify(3)}; others, as Podman, speak it too.

To tell is never more important than to work: what cannot be sent now is tried
again later, nothing waits for it, and no error of it reaches the program.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from errno import EAGAIN, EMFILE, ENFILE, ENOBUFS, ENOMEM
from itertools import islice
from socket import AF_UNIX, SOCK_DGRAM, socket
from typing import Final, Protocol

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from ..starting.report import ModuleReport

__all__ = ["VARIABLES", "Notifier", "Supervised", "SystemdService"]

VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""
What systemd says in the environment. It is meant for one process: who starts
others takes it out before.
"""

_PAUSE: Final = 0.1
"""
How long changes are collected before they are told, in seconds.
"""

_RETRY: Final = 1.0
"""
When it is tried again to send what could not be sent, in seconds.
"""

_SHORTEST: Final = 0.01
"""
The least time between two signs of life, in seconds: more would be a load.
"""

_LONGEST: Final = 500
"""
The most characters of an assignment. What has more than 4096 bytes in all is not
accepted by systemd.
"""

_MOST: Final = 5
"""
How many modules are named.
"""

_LONGEST_NAME: Final = 60
"""
The most characters of the name of a module.
"""

_LONGEST_PATH: Final = 107
"""
The most bytes of the path of a socket, on Linux.
"""

_PASSING: Final = frozenset((EAGAIN, ENOBUFS, ENOMEM, EMFILE, ENFILE))
"""
The errors of a system that has much to do; they are nothing to tell of.
"""


class Notifier:
    """
    Sends messages to systemd, if it is there.

    @ivar watchdogInterval: How long systemd waits for a sign of life before it
        takes this process for dead, in seconds; L{None} if it expects none.
    """

    _log = Logger()

    def __init__(self, environment: Mapping[str, str], pid: int | None = None) -> None:
        """
        @param environment: The environment, as systemd has set it. What makes
            no sense in it is logged, and ignored.
        @param pid: The number of this process, by default what it is.
        """
        self.watchdogInterval: float | None = None
        self._address: bytes | None = None
        self._socket: socket | None = None
        self._warned = False
        path = environment.get("NOTIFY_SOCKET")
        if not path:
            return
        try:
            self._address = _address(path)
            self.watchdogInterval = _interval(
                environment, os.getpid() if pid is None else pid
            )
        except ValueError as error:
            self._log.warn("What systemd asks for is ignored: {error}", error=error)

    @property
    def enabled(self) -> bool:
        """
        Whether there is somebody to send messages to.
        """
        return self._address is not None

    def send(self, *assignments: str) -> bool:
        """
        Send one message, now or not at all.

        @param assignments: The assignments. Each is cut to one line of a
            sensible length, so that a text that came from elsewhere makes no
            further assignments.
        @return: Whether nothing is left to be done. If it is false, the message
            could not be sent, and it may be tried again later.
        """
        if self._address is None:
            return True
        message = "\n".join(_line(each) for each in assignments).encode()
        try:
            if self._socket is None:
                # It stays open: a program that has no more files to open is
                # still alive, and has to be able to say so.
                self._socket = socket(AF_UNIX, SOCK_DGRAM)
                self._socket.setblocking(False)
            self._socket.sendto(message, self._address)
        except OSError as error:
            if error.errno not in _PASSING and not self._warned:
                self._warned = True
                self._log.warn("systemd cannot be told: {error}", error=error)
            return False
        return True

    def close(self) -> None:
        """
        Close the socket. A later message opens another one.
        """
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _address(path: str) -> bytes:
    """
    @param path: What C{NOTIFY_SOCKET} is.
    @return: The address of the socket.
    @raise ValueError: It is none, or one of a kind that is not known here.
    """
    if path[0] not in "/@":
        raise ValueError("NOTIFY_SOCKET is neither a path nor an abstract name")
    address = os.fsencode(path)
    if len(address) > _LONGEST_PATH:
        raise ValueError("NOTIFY_SOCKET is too long")
    return b"\0" + address[1:] if path[0] == "@" else address


def _interval(environment: Mapping[str, str], pid: int) -> float | None:
    """
    @return: How long systemd waits for a sign of life of a process, in seconds,
        if it does.
    @raise ValueError: The environment says something else than a time.
    """
    text = environment.get("WATCHDOG_USEC")
    if text is None or environment.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    # The largest number means that there is no limit.
    microseconds = int(text) if text.isascii() and text.isdigit() else 0
    if not 0 < microseconds < 2**64 - 1:
        raise ValueError("WATCHDOG_USEC is not a number of microseconds")
    return microseconds / 1e6


def _line(text: str) -> str:
    """
    @return: A text as one line, without what cannot be seen.
    """
    visible = "".join(each if each.isprintable() else " " for each in text)
    return _short(" ".join(visible.split()), _LONGEST)


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


class Supervised(Protocol):
    """
    What is told of: what a L{Startup<tsrv.startup.Startup>} does.
    """

    @property
    def status(self) -> Enum:
        """
        The L{Status<tsrv.startup.Status>} of the program.
        """

    @property
    def wrappers(self) -> Iterable[str]:
        """
        The names of the modules, in the order in which they were added.
        """

    def whenReady(self) -> Deferred[None]:
        """
        @return: A Deferred that fires when the program is ready, or fails if it
            will not be.
        """

    def reportModule(self, name: str) -> ModuleReport:
        """
        @return: The state of one module.
        """

    def addObserver(self, observer: Callable[[str], object]) -> None:
        """
        @param observer: Called with the name of a module after it has changed,
            and with an empty one after the status of the program has.
        """

    def removeObserver(self, observer: Callable[[str], object]) -> None:
        """
        @param observer: Is called no longer.
        """


class SystemdService(Service):
    """
    Tells systemd how a program does, from its start to its stop.

    It names the modules that are waited for, but tells nothing of their errors.
    """

    def __init__(
        self, startup: Supervised, reactor: IReactorTime, notifier: Notifier
    ) -> None:
        """
        @param startup: What is told of.
        @param reactor: Provides the time.
        @param notifier: Takes the messages. It is closed with this service.
        """
        self._startup = startup
        self._reactor = reactor
        self._notifier = notifier
        # What must arrive, in order, and what was said last.
        self._due: dict[str, None] = {}
        self._said: str | None = None
        self._ready = False
        self._stopping = False
        self._observing = False
        self._waiting: Deferred[None] | None = None
        self._timer: IDelayedCall | None = None
        # Of many modules only those that changed are looked at again. What is
        # noted of one is its status, and how often it was tried.
        self._changed: dict[str, None] = {}
        self._missingRequired: dict[str, tuple[str, int]] = {}
        self._missingOptional: dict[str, tuple[str, int]] = {}
        self._watchdog = LoopingCall(self._beat)
        self._watchdog.clock = reactor

    def startService(self) -> None:
        """
        Begin to tell. It may be started before what it tells of, or after.
        """
        Service.startService(self)
        self._stopping = False
        if not self._notifier.enabled:
            return
        self._observing = True
        self._startup.addObserver(self._observe)
        self._changed.update(dict.fromkeys(self._startup.wrappers))
        if self._notifier.watchdogInterval is not None:
            half = max(self._notifier.watchdogInterval / 2, _SHORTEST)
            self._watchdog.start(half)
        self._waiting = self._startup.whenReady()
        # Why it fails is told by the start-up itself.
        self._waiting.addCallbacks(self._becameReady, lambda failure: None)
        self._say()

    def stopping(self) -> None:
        """
        Tell that the program stops: the first thing to do when it is asked to.
        A second call says nothing.
        """
        if self._stopping or not self._notifier.enabled:
            return
        self._stopping = True
        if self._observing:
            self._observing = False
            self._startup.removeObserver(self._observe)
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.cancel()
        self._changed.clear()
        self._due.pop("READY=1", None)
        self._due["STOPPING=1"] = None
        self._say()

    def stopService(self) -> None:
        """
        Tell that the program stops, if this has not been done, and nothing
        more.
        """
        Service.stopService(self)
        self.stopping()
        if self._watchdog.running:
            self._watchdog.stop()
        self._cancelTimer()
        self._due.clear()
        self._notifier.close()

    def _observe(self, name: str) -> None:
        if name:
            self._changed[name] = None
        self._sayLater(_PAUSE)

    def _becameReady(self, result: object) -> None:
        self._tellReady()
        self._say()

    def _tellReady(self) -> None:
        if not self._ready:
            self._ready = True
            self._due["READY=1"] = None

    def _beat(self) -> None:
        """
        Tell that the reactor turns.
        """
        # It depends on nothing else: what cannot be described is not dead.
        if not self._notifier.send("WATCHDOG=1"):
            self._due["WATCHDOG=1"] = None
            self._sayLater(_RETRY)

    def _sayLater(self, delay: float) -> None:
        if self._timer is None:
            self._timer = self._reactor.callLater(delay, self._say)

    def _say(self) -> None:
        """
        Say what is to be said, in one message.
        """
        self._cancelTimer()
        for name in self._changed:
            self._look(self._startup.reportModule(name))
        self._changed.clear()
        status = "stopping" if self._stopping else self._startup.status.value
        if status in ("ready", "degraded"):
            # One that had failed may have been cured.
            self._tellReady()
        text = self._describe(status)
        assignments = list(self._due)
        if text != self._said:
            assignments.append(f"STATUS={text}")
        if not assignments:
            return
        if self._notifier.send(*assignments):
            self._due.clear()
            self._said = text
        else:
            self._sayLater(_RETRY)

    def _cancelTimer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _look(self, module: ModuleReport) -> None:
        """
        Note whether a module is missing, and why.
        """
        missing = self._missingRequired if module["required"] else self._missingOptional
        if module["ready"]:
            missing.pop(module["name"], None)
        else:
            missing[module["name"]] = module["status"], module["attemptCount"]

    def _describe(self, status: str) -> str:
        """
        @param status: The status of the program.
        @return: How the program does, in a few words.
        """
        required, optional = self._missingRequired, self._missingOptional
        if status == "starting" and required:
            return f"waiting for {_some(required)}"
        if status == "unready" and required:
            return f"not ready, waiting for {_some(required)}"
        if status == "degraded" and optional:
            return f"degraded: {_some(optional)}"
        if status == "failed":
            # The others are only missing because of these.
            failed = {k: v for k, v in required.items() if v[0] == "failed"}
            if failed:
                return f"failed: {_some(failed)}"
        return _WORDS.get(status, status)


_WORDS: Final = {"new": "starting", "unready": "not ready", "stopped": "stopping"}
"""
What some states of a program are called here.
"""


def _some(modules: Mapping[str, tuple[str, int]]) -> str:
    """
    @param modules: The status of some modules, and how often each was tried.
    @return: The first of them, for people.
    """
    first = islice(modules.items(), _MOST)
    shown = ", ".join(_describeModule(name, *about) for name, about in first)
    more = len(modules) - _MOST
    return f"{shown} … and {more} more" if more > 0 else shown


def _describeModule(name: str, status: str, attempts: int) -> str:
    name = _short(name, _LONGEST_NAME)
    if status in ("new", "waiting"):
        return name
    if status == "retrying" or (status == "initializing" and attempts > 1):
        return f"{name} ({status}, attempt {attempts})"
    return name if status == "initializing" else f"{name} ({status})"
