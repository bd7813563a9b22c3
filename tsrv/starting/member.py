"""
One module of a program: its wrapper and its place in the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from types import FunctionType, MethodType
from typing import Any, Final, TypedDict, cast

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ..queuing.history import explain
from ..queuing.module import noteOf
from ..queuing.options import checkSeconds
from ..wrapper import (
    QueuingWrapper,
    State,
)
from .report import (
    ModuleReport,
    rounded,
)

__all__ = ["Member", "WrapperOptions", "wrapModule"]

_FACTORIES: Final = (type, FunctionType, MethodType, partial)
"""
The types of what makes a module.
"""

MAX_NAMED_NEEDS: Final = 3
"""
Maximum number of unready needs that a reason names.
"""


class WrapperOptions(TypedDict, total=False):
    """
    The options of L{QueuingWrapper} for a module of a program.
    """

    limit: int
    queueTimeout: float | None
    retryPolicy: Callable[[int], float] | None
    fatal: type[BaseException] | Iterable[type[BaseException]]
    replay: Iterable[str]
    concurrency: int | None
    attemptTimeout: float | None
    closeTimeout: float | None
    initialize: Callable[[], object] | str | None
    close: Callable[[], object] | str | None
    whenLost: Callable[[], object] | str | None


class ModuleOptions(WrapperOptions, total=False):
    """
    All options of a module of a program; see L{tsrv.Startup.add}.
    """

    needs: Iterable[str]
    required: bool
    timeout: float | None


def wrapModule(
    reactor: IReactorTime,
    name: str,
    module: object,
    options: WrapperOptions,
    isReplacement: bool,
) -> QueuingWrapper[Any]:
    """
    Make the wrapper of a module.

    @param reactor: Provides the time.
    @param name: The name of the module.
    @param module: The module, or its factory.
    @param options: The options of the wrapper.
    @param isReplacement: Whether the options are meant for another module.
    @raise TypeError: An option does not exist or has the wrong type.
    @raise ValueError: The name or an option has an invalid value.
    """
    if not (name and name == name.strip() and name.isprintable()):
        raise ValueError(f"{name!r} is not a name for a module")
    if isinstance(module, _FACTORIES):
        module = cast(Callable[[], object], module)()
    wrapperOptions = cast(dict[str, Any], {**options})
    if "queueTimeout" in wrapperOptions:
        wrapperOptions["timeout"] = wrapperOptions.pop("queueTimeout")
    for option in ("initialize", "close", "whenLost"):
        method = wrapperOptions.get(option)
        if isinstance(method, str):
            if not hasattr(module, method):
                raise TypeError(f"{type(module).__name__} has no {method}()")
            wrapperOptions[option] = getattr(module, method)
        elif isReplacement:
            # The method belongs to the replaced module.
            wrapperOptions.pop(option, None)
    if isReplacement and not hasattr(module, "initialize"):
        wrapperOptions.setdefault("initialize", lambda: None)
    return QueuingWrapper(module, reactor, name=name, **wrapperOptions)


class Member:
    """
    One module of a program.

    @ivar name: The name of the module.
    @ivar wrapper: The wrapper of the module.
    @ivar needs: The names of the modules that it needs.
    @ivar required: Whether the program is not ready without it.
    @ivar timeout: Seconds within which it must become ready.
    @ivar dependencies: The modules that it needs, once the start-up has begun.
    @ivar dependents: The modules that need it, likewise.
    @ivar unreadyDependencies: Number of dependencies that are not ready.
    @ivar openDependents: Number of dependents that are not closed, during the
        shutdown.
    @ivar started: Whether the start-up has initialised it.
    @ivar skippedFor: The failed dependency because of which it was skipped.
    @ivar waitedFor: The dependency that became ready last.
    @ivar ready: Whether its last known state was ready.
    @ivar failedOrClosed: Whether its last known state was failed or closed.
    @ivar timer: The timer of C{timeout}.
    @ivar closeError: The error of its close().
    """

    __slots__ = (
        "closeError",
        "dependencies",
        "dependents",
        "failedOrClosed",
        "name",
        "needs",
        "openDependents",
        "ready",
        "required",
        "skippedFor",
        "started",
        "timeout",
        "timer",
        "unreadyDependencies",
        "waitedFor",
        "wrapper",
    )

    def __init__(
        self,
        name: str,
        wrapper: QueuingWrapper[Any],
        needs: Iterable[str],
        required: bool,
        timeout: float | None,
    ) -> None:
        """
        @raise TypeError: C{needs} is one name.
        @raise ValueError: C{timeout} is negative or not a number.
        """
        if isinstance(needs, str):
            raise TypeError("needs must be a collection of names, not one name")
        checkSeconds(timeout=timeout)
        self.name = name
        self.wrapper = wrapper
        self.needs = tuple(dict.fromkeys(needs))
        self.required = required
        self.timeout = timeout
        self.dependencies: list[Member] = []
        self.dependents: list[Member] = []
        self.unreadyDependencies = 0
        self.openDependents = 0
        self.started = False
        self.skippedFor: str | None = None
        self.waitedFor: Member | None = None
        self.ready = False
        self.failedOrClosed = False
        self.timer: IDelayedCall | None = None
        self.closeError: BaseException | None = None

    def stopTimer(self) -> None:
        """
        Cancel the timer of C{timeout}.
        """
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def report(self, began: float | None, now: float) -> ModuleReport:
        """
        Return the entry of the module in the report of the program.

        @param began: The time at which the start-up began.
        @param now: The time now.
        """

        def after(seconds: float | None) -> float | None:
            if seconds is None or began is None:
                return None
            return rounded(seconds - began)

        wrapper, history = self.wrapper, self.wrapper.history
        status, since = wrapper.state.value, wrapper.since
        if self.skippedFor is not None and wrapper.state is State.FAILED:
            status = "skipped"
        elif began is not None and wrapper.state is State.NEW:
            status, since = "waiting", began
        attempts = list(history.attempts)
        following = None
        if wrapper.state in (State.RETRYING, State.LOST):
            following = wrapper.retryAfter()
        return {
            "name": self.name,
            "required": self.required,
            "needs": list(self.needs),
            "status": status,
            "ready": self.ready,
            "since": after(since),
            "reason": self._reason(status),
            "note": noteOf(wrapper.module) if self.ready else None,
            "begun": after(attempts[0].begun) if attempts else None,
            "becameReady": after(history.becameReady),
            "waitedFor": None if self.waitedFor is None else self.waitedFor.name,
            "attempts": [
                {
                    "begun": round(each.begun - (began or 0), 6),
                    "ended": after(each.ended),
                    "kind": each.kind,
                    "error": each.error,
                }
                for each in attempts
            ],
            "attemptCount": history.attempts.count,
            "nextAttempt": None if following is None else after(now + following),
            "losses": [
                {
                    "lost": round(each.lost - (began or 0), 6),
                    "recovered": after(each.recovered),
                    "kind": each.kind,
                    "error": each.error,
                }
                for each in history.losses
            ],
            "lossCount": history.losses.count,
            "closed": after(wrapper.since) if wrapper.state is State.CLOSED else None,
            "closeError": None if self.closeError is None else explain(self.closeError),
        }

    def _reason(self, status: str) -> str | None:
        """
        Say why the module is not ready, without the message of any error.
        """
        wrapper = self.wrapper
        if status == "waiting":
            missing = [each.name for each in self.dependencies if not each.ready]
            more = len(missing) - MAX_NAMED_NEEDS
            named = ", ".join(missing[:MAX_NAMED_NEEDS])
            return f"needs {named}" + (f" and {more} more" if more > 0 else "")
        if status == "skipped":
            return f"needs {self.skippedFor}, which failed"
        error = wrapper.lastError
        because = "" if error is None else f" ({type(error).__name__})"
        return {
            State.NEW: "not started",
            State.INITIALIZING: f"attempt {wrapper.attempts} is in progress",
            State.RETRYING: f"attempt {wrapper.attempts} failed{because}",
            State.DRAINING: None,
            State.READY: None,
            State.LOST: f"lost{because}",
            State.FAILED: f"failed for good{because}",
            State.CLOSING: "is being closed",
            State.CLOSED: "closed",
        }[wrapper.state]
