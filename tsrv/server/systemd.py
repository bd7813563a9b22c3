"""
Notifies systemd: the program is ready, what it waits for, that it is alive, that it
stops.

systemd hands a service the name of a socket in its environment. Each message is one
datagram of assignments, one on a line, see C{sd_notify(3)}. Nothing waits for a
message: one that cannot be sent now is sent later, and no error reaches the program.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from socket import AF_UNIX, SOCK_DGRAM, socket
from typing import Final

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from ..starting.report import ModuleReport
from ..startup import Startup

__all__ = ["VARIABLES", "Notifier", "SystemdService"]

_log = Logger("tsrv.server")

VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""
Environment variables of systemd. They are meant for one process alone.
"""

# Changes are collected for one message.
STATUS_DELAY_SECONDS: Final = 0.1
RETRY_SECONDS: Final = 1.0
MIN_KEEP_ALIVE_SECONDS: Final = 0.01

# systemd drops a message of more than 4096 bytes.
MAX_NAMED_MODULES: Final = 5
MAX_NAME_CHARACTERS: Final = 60

# The longest path of a UNIX socket on Linux.
MAX_PATH_BYTES: Final = 107

_PREFIXES: Final = {
    "starting": "waiting for ",
    "unready": "not ready, waiting for ",
    "degraded": "degraded: ",
    "failed": "failed: ",
}


class Notifier:
    """
    Sends messages to systemd, if systemd has started the process.

    @ivar enabled: Whether messages are sent.
    @ivar watchdogInterval: Time after which systemd considers a silent process dead,
        in seconds; L{None} if it does not watch this process.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        """
        @param environment: The environment of the process. An invalid value is logged
            and ignored.
        """
        self.enabled = False
        self.watchdogInterval: float | None = None
        self._socket: socket | None = None
        self._warned = False
        try:
            self._address = _parseAddress(environment.get("NOTIFY_SOCKET", ""))
            self.enabled = bool(self._address)
            if self.enabled:
                self.watchdogInterval = _parseInterval(environment)
        except ValueError as error:
            _log.warn("Invalid variable of systemd: {error}", error=error)

    def send(self, *assignments: str) -> bool:
        """
        Send one message.

        @param assignments: The assignments, without line breaks.
        @return: C{False} if the message must be sent again later.
        """
        if not self.enabled:
            return True
        message = "\n".join(assignments).encode()
        try:
            if self._socket is None:
                # It stays open, in case the process runs out of files.
                self._socket = socket(AF_UNIX, SOCK_DGRAM)
                self._socket.setblocking(False)
            self._socket.sendto(message, self._address)
        except OSError as error:
            if not isinstance(error, BlockingIOError) and not self._warned:
                self._warned = True
                _log.warn("Cannot notify systemd: {error}", error=error)
            return False
        return True

    def close(self) -> None:
        """
        Close the socket. The next message opens it again.
        """
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _parseAddress(path: str) -> bytes:
    if path and path[0] not in "/@":
        raise ValueError("NOTIFY_SOCKET is neither a path nor an abstract name")
    address = os.fsencode(path)
    if len(address) > MAX_PATH_BYTES:
        raise ValueError("NOTIFY_SOCKET is too long")
    return b"\0" + address[1:] if address[:1] == b"@" else address


def _parseInterval(environment: Mapping[str, str]) -> float | None:
    text, pid = environment.get("WATCHDOG_USEC"), str(os.getpid())
    if text is None or environment.get("WATCHDOG_PID", pid) != pid:
        return None
    microseconds = int(text) if text.isascii() and text.isdigit() else 0
    # The largest number means that there is no limit.
    if not 0 < microseconds < 2**64 - 1:
        raise ValueError("WATCHDOG_USEC is not a number of microseconds")
    return microseconds / 1e6


class SystemdService(Service):
    """
    Notifies systemd of the status of a start-up. Status texts name modules, but not
    their errors, since every user of the machine can read them.
    """

    def __init__(
        self, startup: Startup, reactor: IReactorTime, notifier: Notifier
    ) -> None:
        """
        @param startup: The start-up.
        @param reactor: Provides the time.
        @param notifier: Sends the messages; closed with this service.
        """
        self._startup = startup
        self._reactor = reactor
        self._notifier = notifier
        # Assignments that must arrive: a dictionary keeps order without duplicates.
        self._unsent: dict[str, None] = {}
        self._sentText = ""
        self._isReady = False
        self._stopping = False
        self._timer: IDelayedCall | None = None
        # Only changed modules are looked at again, in case there are many.
        self._changed: dict[str, None] = {}
        self._missing: dict[str, ModuleReport] = {}
        self._watchdog = LoopingCall(self._keepAlive)
        self._watchdog.clock = reactor

    def startService(self) -> None:
        """
        Begin to notify, before or after the start-up begins.
        """
        super().startService()
        self._stopping = False
        if not self._notifier.enabled:
            return
        self._startup.addObserver(self._observe)
        self._changed.update(dict.fromkeys(self._startup.wrappers))
        if self._notifier.watchdogInterval is not None:
            interval = self._notifier.watchdogInterval / 2
            self._watchdog.start(max(interval, MIN_KEEP_ALIVE_SECONDS))
        self._notify()

    def stopping(self) -> None:
        """
        Notify that the program stops. A second call has no effect.
        """
        if self._stopping or not self._notifier.enabled:
            return
        self._stopping = True
        self._startup.removeObserver(self._observe)
        self._changed.clear()
        self._unsent.pop("READY=1", None)
        self._unsent["STOPPING=1"] = None
        self._notify()

    def stopService(self) -> None:
        """
        Notify that the program stops, if L{stopping} has not, and be silent.
        """
        super().stopService()
        self.stopping()
        if self._watchdog.running:
            self._watchdog.stop()
        self._cancelTimer()
        self._unsent.clear()
        self._notifier.close()

    def _observe(self, name: str) -> None:
        if name:
            self._changed[name] = None
        if self._startup.ready and not self._isReady:
            self._notify()
        else:
            self._notifyLater(STATUS_DELAY_SECONDS)

    def _keepAlive(self) -> None:
        if not self._notifier.send("WATCHDOG=1"):
            self._unsent["WATCHDOG=1"] = None
            self._notifyLater(RETRY_SECONDS)

    def _notifyLater(self, delay: float) -> None:
        if self._timer is None:
            self._timer = self._reactor.callLater(delay, self._notify)

    def _cancelTimer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _notify(self) -> None:
        """
        Send in one message all that systemd does not know yet.
        """
        self._cancelTimer()
        for name in self._changed:
            module = self._startup.reportModule(name)
            if module["ready"]:
                self._missing.pop(name, None)
            else:
                self._missing[name] = module
        self._changed.clear()
        status = "stopping" if self._stopping else self._startup.status.value
        if self._startup.ready and not self._isReady:
            self._isReady = True
            self._unsent["READY=1"] = None
        text = self._describe(status)
        assignments = list(self._unsent)
        if text != self._sentText:
            assignments.append(f"STATUS={text}")
        if not assignments:
            return
        if self._notifier.send(*assignments):
            self._unsent.clear()
            self._sentText = text
        else:
            self._notifyLater(RETRY_SECONDS)

    def _describe(self, status: str) -> str:
        isRequired = status != "degraded"
        modules = [m for m in self._missing.values() if m["required"] is isRequired]
        if status == "failed":
            # The other modules are missing because of these.
            modules = [module for module in modules if module["status"] == "failed"]
        if status not in _PREFIXES or not modules:
            return "starting" if status == "new" else status
        names = ", ".join(map(_describeModule, modules[:MAX_NAMED_MODULES]))
        more = len(modules) - MAX_NAMED_MODULES
        return f"{_PREFIXES[status]}{names}{f' … and {more} more' if more > 0 else ''}"


def _describeModule(module: ModuleReport) -> str:
    name = module["name"]
    if len(name) > MAX_NAME_CHARACTERS:
        name = f"{name[: MAX_NAME_CHARACTERS - 1]}…"
    status, attempts = module["status"], module["attemptCount"]
    if status == "retrying" or (status == "initializing" and attempts > 1):
        return f"{name} ({status}, attempt {attempts})"
    if status in ("new", "waiting", "initializing"):
        return name
    return f"{name} ({status})"
