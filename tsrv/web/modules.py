"""
C{POST /modules/NAME/pause}, C{resume} and C{reset}: operators control modules.

All operators together are one holder of a module's calls: a second pause has no effect,
and resuming does not release calls that the program itself holds.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Annotated, Final

from twisted.internet.defer import CancelledError
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.logger import Logger
from twisted.web.server import Request

from ..asyncmodule import ReactorTime
from ..errors import Closed, QueueFull
from ..extras import needs
from ..queuing.history import explain
from ..startup import Startup, UnknownModule
from ..wrapper import IllegalTransition
from .accept import prefersHTML
from .content import readQuery
from .origin import CrossSite, Proxies, checkOrigin
from .problems import HTTPError
from .responses import AsyncResource, Response, routeNotFound

with needs("server"):
    import msgspec

__all__ = ["OPERATOR", "Modules", "OperatorReset"]

_log = Logger("tsrv.web")

OPERATOR: Final = "operator"
"""
The name by which operators hold the calls of a module.
"""

WAIT_SECONDS: Final = 10
"""
Default time that the response to C{pause} waits for calls in progress, in seconds.
"""

BACK: Final = [(b"Location", b"../../")]


class OperatorReset(Exception):
    """
    The reason for a reset by an operator.
    """


class _Query(msgspec.Struct):
    wait: Annotated[int, msgspec.Meta(ge=0, le=300)] = WAIT_SECONDS


class Modules(AsyncResource):
    """
    C{/modules}: pauses, resumes and resets modules. Do not let the public reach these
    routes, because their clients can stop the program's work.

    C{POST /modules/NAME/pause} responds with 200 when no call is in progress, or with
    202 after C{?wait=} seconds (10 by default, at most 300). C{resume} responds with
    200; C{reset} with 202, at once. Unknown modules get 404. The status is 409 if the
    state of the module does not allow the action, or if the program itself holds the
    calls. Browsers are redirected to the status page; other clients get JSON.
    """

    isLeaf = True

    def __init__(
        self,
        startup: Startup,
        reactor: ReactorTime,
        proxies: Proxies | None = None,
        acted: Callable[[], object] = lambda: None,
    ) -> None:
        """
        @param startup: The modules.
        @param reactor: Provides the time.
        @param proxies: The trusted proxies, by default none.
        @param acted: Called after each action, without arguments.
        """
        super().__init__()
        self._startup = startup
        self._reactor = reactor
        self._proxies = Proxies() if proxies is None else proxies
        self._acted = acted
        self._actions: dict[bytes, Callable[[str, int], Awaitable[HTTPStatus]]] = {
            b"pause": self._pause,
            b"resume": self._resume,
            b"reset": self._reset,
        }

    async def render_POST(self, request: Request) -> Response:
        """
        Run the action that the path names.

        @raise CrossSite: Another site may have made the request.
        @raise HTTPError: The module is unknown, or its state does not allow the action.
        """
        try:
            checkOrigin(request, self._proxies.isSecure(request))
        except CrossSite as error:
            raise CrossSite(f"{error}; a script sends Sec-Fetch-Site: none") from None
        path = request.postpath or []
        if len(path) != 2 or path[1] not in self._actions:
            raise routeNotFound()
        name, action = (each.decode("utf-8", "replace") for each in path)
        try:
            self._startup.reportModule(name)
            wait = readQuery(request, _Query).wait if action == "pause" else 0
            # The wrapper logs the outcome.
            _log.info(
                "{module}: {action} requested by {peer}",
                module=name,
                action=action,
                peer=self._proxies.peerOf(request) or "a UNIX socket",
            )
            # Browsers do not wait: the page shows the calls in progress.
            seconds = 0 if prefersHTML(request) else wait
            status = await self._actions[path[1]](name, seconds)
        except UnknownModule as error:
            raise HTTPError(str(error), HTTPStatus.NOT_FOUND) from None
        except (Closed, IllegalTransition):
            state = self._startup.reportModule(name)["status"]
            message = f"Cannot {action} {name}: it is {state}"
            raise HTTPError(message, HTTPStatus.CONFLICT) from None
        self._acted()
        if prefersHTML(request):
            return Response(b"", b"text/html", HTTPStatus.SEE_OTHER, BACK)
        wrapper = self._startup.wrappers[name]
        members = {
            "module": name,
            "status": self._startup.reportModule(name)["status"],
            "paused": wrapper.paused,
            "queued": wrapper.pending,
            "inProgress": wrapper.inProgress,
        }
        return Response(json.dumps(members).encode(), b"application/json", status)

    async def _pause(self, name: str, seconds: int) -> HTTPStatus:
        idle = self._startup.pause(name, OPERATOR)
        try:
            await idle.addTimeout(seconds, self._reactor)
        except TimedOut:
            return HTTPStatus.ACCEPTED
        except CancelledError:
            message = f"{name} was resumed meanwhile"
            raise HTTPError(message, HTTPStatus.CONFLICT) from None
        except (Closed, QueueFull):
            raise
        except Exception as error:
            _log.warn(
                "{module}: cannot determine whether calls are in progress ({error})",
                module=name,
                error=explain(error),
            )
            return HTTPStatus.ACCEPTED
        return HTTPStatus.OK

    async def _resume(self, name: str, seconds: int) -> HTTPStatus:
        self._startup.resume(name, OPERATOR)
        if self._startup.wrappers[name].paused:
            message = f"{name} is still paused: the program itself holds its calls"
            raise HTTPError(message, HTTPStatus.CONFLICT)
        return HTTPStatus.OK

    async def _reset(self, name: str, seconds: int) -> HTTPStatus:
        self._startup.reset(name, OperatorReset("by operator"))
        return HTTPStatus.ACCEPTED
