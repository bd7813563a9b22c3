"""
One module of a program: its wrapper and its place in the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import FunctionType, MethodType
from typing import Any, Final, TypedDict, cast

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ..queuing.history import explain
from ..queuing.module import noteOf
from ..queuing.options import checkSeconds
from ..wrapper import QueuingWrapper, State
from .report import ModuleReport

__all__ = ["Member", "WrapperOptions", "wrapModule"]

_FACTORY_TYPES: Final = (type, FunctionType, MethodType, partial)

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
    whenIdle: Callable[[], object] | str | None
    ping: Callable[[], object] | str | None
    pingInterval: float
    settles: bool | None
    alwaysDeferred: bool
    lazy: bool


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

    @param module: The module, or its factory.
    @param isReplacement: Whether the options are meant for another module.
    @raise TypeError: An option does not exist or has the wrong type.
    @raise ValueError: The name or an option has an invalid value.
    """
    if not (name and name == name.strip() and name.isprintable()):
        raise ValueError(f"{name!r} is not a name for a module")
    if isinstance(module, _FACTORY_TYPES):
        module = cast(Callable[[], object], module)()
    wrapperOptions: dict[str, Any] = {**options}
    if "queueTimeout" in wrapperOptions:
        wrapperOptions["timeout"] = wrapperOptions.pop("queueTimeout")
    for option in ("initialize", "close", "whenLost", "whenIdle", "ping"):
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


@dataclass(eq=False, slots=True)
class Member:
    """
    One module of a program.

    @ivar required: Whether the program is not ready without it.
    @ivar timeout: Seconds within which it must become ready.
    @ivar dependencies: The modules that it needs, once the start-up has begun.
    @ivar dependents: The modules that need it, likewise.
    @ivar unreadyDependencies: Number of dependencies that are not ready.
    @ivar openDependents: Number of dependents that are not closed, during the
        shutdown.
    @ivar started: Whether the start-up has initialised it.
    @ivar skippedFor: The name of the failed dependency because of which it was
        skipped.
    @ivar waitedFor: The dependency that became ready last.
    @ivar ready: Whether its last known state was ready.
    @ivar failed: Whether its last known state was failed or closed.
    @ivar timer: The timer of C{timeout}.
    """

    name: str
    wrapper: QueuingWrapper[Any]
    needs: Sequence[str]
    required: bool
    timeout: float | None
    dependencies: list[Member] = field(default_factory=list)
    dependents: list[Member] = field(default_factory=list)
    unreadyDependencies: int = 0
    openDependents: int = 0
    started: bool = False
    skippedFor: str | None = None
    waitedFor: Member | None = None
    ready: bool = False
    failed: bool = False
    timer: IDelayedCall | None = None
    closeError: BaseException | None = None

    def __post_init__(self) -> None:
        """
        @raise ValueError: C{timeout} is negative or not a number.
        """
        checkSeconds("timeout", self.timeout)

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
        """
        origin = began or 0.0

        def after(seconds: float | None) -> float | None:
            if seconds is None or began is None:
                return None
            return round(seconds - began, 6)

        wrapper, history = self.wrapper, self.wrapper.history
        attempts = list(history.attempts)
        state, status, since = wrapper.state, wrapper.state.value, wrapper.since
        if self.skippedFor is not None and state is State.FAILED:
            status = "skipped"
        elif began is not None and state is State.NEW:
            status, since = "waiting", began
        isScheduled = state in (State.RETRYING, State.LOST)
        delay = wrapper.retryAfter() if isScheduled else None
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
                    "begun": round(each.begun - origin, 6),
                    "ended": after(each.ended),
                    "kind": each.kind,
                    "error": each.error,
                }
                for each in attempts
            ],
            "attemptCount": history.attempts.count,
            "nextAttempt": None if delay is None else after(now + delay),
            "losses": [
                {
                    "lost": round(each.lost - origin, 6),
                    "recovered": after(each.recovered),
                    "kind": each.kind,
                    "error": each.error,
                }
                for each in history.losses
            ],
            "lossCount": history.losses.count,
            "closed": after(since) if state is State.CLOSED else None,
            "closeError": None if self.closeError is None else explain(self.closeError),
        }

    def _reason(self, status: str) -> str | None:
        """
        Say why the module is not ready, without the message of any error.
        """
        if status == "waiting":
            missing = [each.name for each in self.dependencies if not each.ready]
            more = len(missing) - MAX_NAMED_NEEDS
            named = ", ".join(missing[:MAX_NAMED_NEEDS])
            return f"needs {named}" + (f" and {more} more" if more > 0 else "")
        if status == "skipped":
            return f"needs {self.skippedFor}, which failed"
        wrapper = self.wrapper
        error = wrapper.lastError
        because = "" if error is None else f" ({type(error).__name__})"
        losses = list(wrapper.history.losses)
        isLost = bool(losses) and losses[-1].recovered is None
        attempt = f"attempt {wrapper.attempts}" + (" since the loss" if isLost else "")
        return {
            State.NEW: "not started",
            State.INITIALIZING: f"{attempt} is in progress",
            State.RETRYING: f"{attempt} failed{because}",
            State.LOST: f"lost{because}",
            State.FAILED: f"failed for good{because}",
            State.CLOSING: "is being closed",
            State.CLOSED: "closed",
        }.get(wrapper.state)
