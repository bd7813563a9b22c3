"""
Notifies systemd that the program is ready, is alive, needs more time to start, or
stops, and for which modules it waits.

systemd passes the address of a socket in the environment. Each message is one datagram
of assignments, one per line, see C{sd_notify(3)}. The program never waits for systemd:
a failed message is sent again later, and no error reaches the program.
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

__all__ = ["VARIABLES", "SystemdService"]

_log = Logger("tsrv.server")

VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""
Environment variables of systemd. They are for this process only: remove them, so that
no child process inherits them.
"""

EXTENSION_SECONDS: Final = 30
"""
Time that each request for more time asks for while modules start, in seconds. The
program sends three requests within this time; if its reactor hangs, it sends none.
"""

_EXTENSION: Final = f"EXTEND_TIMEOUT_USEC={EXTENSION_SECONDS * 1_000_000}"

# Changes within this time share one message.
STATUS_DELAY_SECONDS: Final = 0.1
RETRY_SECONDS: Final = 1.0

# systemd drops a message of more than 4096 bytes.
MAX_NAMED_MODULES: Final = 5
MAX_NAME_CHARACTERS: Final = 60

_PREFIXES: Final = {
    "starting": "waiting for ",
    "unready": "not ready, waiting for ",
    "degraded": "degraded: ",
    "failed": "failed: ",
}


class SystemdService(Service):
    """
    Notifies systemd of the status of a start-up, if systemd has started the process.
    L{Server<tsrv.server.Server>} has this service. In other programs, add it to the
    application::

        variables = {name: os.environ.pop(name, "") for name in VARIABLES}
        service = SystemdService(startup, reactor, variables)
        service.setServiceParent(application)

    Status texts name modules, but not their errors, because every user of the machine
    can read the texts.
    """

    def __init__(
        self, startup: Startup, reactor: IReactorTime, environment: Mapping[str, str]
    ) -> None:
        """
        @param startup: The modules, and their status.
        @param reactor: Provides the time.
        @param environment: The L{VARIABLES} of the process, without the missing ones.
        """
        self._startup = startup
        self._reactor = reactor
        address = os.fsencode(environment.get("NOTIFY_SOCKET", ""))
        # The name of an abstract socket begins with a zero byte.
        self._address = b"\0" + address[1:] if address[:1] == b"@" else address
        microseconds, pid = environment.get("WATCHDOG_USEC", ""), str(os.getpid())
        isWatched = (environment.get("WATCHDOG_PID") or pid) == pid
        if not (isWatched and microseconds.isdecimal()):
            microseconds = "0"
        self._watchdogSeconds = int(microseconds) / 1e6
        self._socket: socket | None = None
        # Assignments that must arrive: a dictionary keeps order without duplicates.
        self._unsent: dict[str, None] = {}
        self._sentText = ""
        self._isReady = False
        self._stopping = False
        self._warned = False
        self._timer: IDelayedCall | None = None
        self._watchdog = LoopingCall(self._sendOrRetry, "WATCHDOG=1")
        # Before READY=1, only the start timeout of systemd runs, not its watchdog.
        self._extending = LoopingCall(self._sendOrRetry, _EXTENSION)
        for each in self._watchdog, self._extending:
            each.clock = reactor

    def startService(self) -> None:
        """
        Begin to notify. The modules may have started already.
        """
        super().startService()
        if not self._address:
            return
        try:
            # The socket stays open, in case the process runs out of file descriptors.
            self._socket = socket(AF_UNIX, SOCK_DGRAM)
        except OSError as error:
            # RestrictAddressFamilies= of the unit may lack AF_UNIX.
            self._warn(error)
            return
        self._socket.setblocking(False)
        self._startup.addObserver(self._observe)
        if self._watchdogSeconds:
            self._watchdog.start(self._watchdogSeconds / 2)
        if not self._startup.ready:
            self._extending.start(EXTENSION_SECONDS / 3)
        self._notify()

    def stopping(self) -> None:
        """
        Notify that the program stops. A second call has no effect.
        """
        if self._stopping or self._socket is None:
            return
        self._stopping = True
        self._startup.removeObserver(self._observe)
        self._endExtending()
        self._unsent.pop("READY=1", None)
        self._unsent["STOPPING=1"] = None
        self._notify()

    def stopService(self) -> None:
        """
        Notify that the program stops, unless L{stopping} has, and send nothing more.
        """
        super().stopService()
        self.stopping()
        if self._watchdog.running:
            self._watchdog.stop()
        self._cancelTimer()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _observe(self, name: str) -> None:
        self._notifyLater(STATUS_DELAY_SECONDS)

    def _sendOrRetry(self, assignment: str) -> None:
        if not self._send(assignment):
            self._unsent[assignment] = None
            self._notifyLater(RETRY_SECONDS)

    def _endExtending(self) -> None:
        if self._extending.running:
            self._extending.stop()
        self._unsent.pop(_EXTENSION, None)

    def _notifyLater(self, delay: float) -> None:
        if self._timer is None:
            self._timer = self._reactor.callLater(delay, self._notify)

    def _cancelTimer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _notify(self) -> None:
        # One message holds all changes since the last one.
        self._cancelTimer()
        if self._startup.ready and not self._isReady:
            self._isReady = True
            self._endExtending()
            self._unsent["READY=1"] = None
        text = "stopping" if self._stopping else self._describe()
        assignments = list(self._unsent)
        if text != self._sentText:
            assignments.append(f"STATUS={text}")
        if not assignments:
            return
        if self._send(*assignments):
            self._unsent.clear()
            self._sentText = text
        else:
            self._notifyLater(RETRY_SECONDS)

    def _send(self, *assignments: str) -> bool:
        assert self._socket is not None
        try:
            self._socket.sendto("\n".join(assignments).encode(), self._address)
        except OSError as error:
            if not isinstance(error, BlockingIOError):
                self._warn(error)
            return False
        return True

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            _log.warn("Cannot notify systemd: {error}", error=error)

    def _describe(self) -> str:
        report = self._startup.report()
        status = report["status"]
        modules = [
            module
            for module in report["modules"]
            if not module["ready"]
            and module["required"] is (status != "degraded")
            # The other modules are not ready because of the failed ones.
            and (status != "failed" or module["status"] == "failed")
        ]
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
