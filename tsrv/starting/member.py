"""
One module of a program: what is known of it beside its wrapper.
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
What makes a module, and is none.
"""

_NAMED: Final = 3
"""
How many of the modules that one waits for are named.
"""


class WrapperOptions(TypedDict, total=False):
    """
    The options that a module is wrapped with.

    @see: L{QueuingWrapper}
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


def wrapModule(
    reactor: IReactorTime,
    name: str,
    module: object,
    given: WrapperOptions,
    replaced: bool,
) -> QueuingWrapper[Any]:
    """
    Put a wrapper around a module.

    @param reactor: Provides the time.
    @param name: What the module is called.
    @param module: The module, or what makes it.
    @param given: The options.
    @param replaced: Whether the options were meant for another module.
    @raise TypeError: There is no such option, or it is something else than
        described.
    @raise ValueError: The name or an option makes no sense.
    """
    if not (name and name == name.strip() and name.isprintable()):
        raise ValueError(f"{name!r} is no name for a module")
    if isinstance(module, _FACTORIES):
        module = cast(Callable[[], object], module)()
    options = cast(dict[str, Any], {**given})
    if "queueTimeout" in options:
        options["timeout"] = options.pop("queueTimeout")
    for each in ("initialize", "close", "whenLost"):
        named = options.get(each)
        if isinstance(named, str):
            options[each] = _method(module, named)
        elif replaced:
            # It would be the real module's.
            options.pop(each, None)
    if replaced and not hasattr(module, "initialize"):
        options.setdefault("initialize", _readyAtOnce)
    return QueuingWrapper(module, reactor, name=name, **options)


def _method(module: object, name: str) -> object:
    """
    @return: A method of a module.
    @raise TypeError: It has none of that name.
    """
    try:
        return getattr(module, name)
    except AttributeError:
        raise TypeError(f"{type(module).__name__} has no {name}()") from None


def _readyAtOnce() -> None:
    """
    There is nothing to initialise.
    """


class Member:
    """
    One module of a program.

    @ivar name: What it is called.
    @ivar wrapper: Its wrapper.
    @ivar needs: What it needs, by names.
    @ivar required: Whether the program is not ready without it.
    @ivar timeout: How long it may take to become ready, in seconds.
    @ivar suppliers: The modules that it needs, once the start-up has begun.
    @ivar dependents: The modules that need it, likewise.
    @ivar unmet: How many of those that it needs are not ready.
    @ivar using: How many of those that need it are not closed, while the
        program is being stopped.
    @ivar started: Whether its initialisation was asked for.
    @ivar skippedFor: Which of C{needs} is the reason for not starting it.
    @ivar waitedFor: Which of C{suppliers} was ready last.
    @ivar ready: Whether it was ready when that was last looked at.
    @ivar gone: Whether it had failed or was closed then.
    @ivar timer: Ends the time that it may take.
    @ivar closeError: What its closing failed with.
    """

    __slots__ = (
        "closeError",
        "dependents",
        "gone",
        "name",
        "needs",
        "ready",
        "required",
        "skippedFor",
        "started",
        "suppliers",
        "timeout",
        "timer",
        "unmet",
        "using",
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
        @param name: What the module is called.
        @param wrapper: Its wrapper.
        @param needs: What it needs, by names.
        @param required: Whether the program is not ready without it.
        @param timeout: How long it may take to become ready, in seconds.
        @raise TypeError: C{needs} is one name.
        @raise ValueError: C{timeout} makes no sense.
        """
        if isinstance(needs, str):
            raise TypeError("needs must be a collection of names, not one name")
        checkSeconds("timeout", timeout)
        self.name = name
        self.wrapper = wrapper
        self.needs = tuple(dict.fromkeys(needs))
        self.required = required
        self.timeout = timeout
        self.suppliers: list[Member] = []
        self.dependents: list[Member] = []
        self.unmet = 0
        self.using = 0
        self.started = False
        self.skippedFor: str | None = None
        self.waitedFor: Member | None = None
        self.ready = False
        self.gone = False
        self.timer: IDelayedCall | None = None
        self.closeError: BaseException | None = None

    def stopTimer(self) -> None:
        """
        It has not taken too long.
        """
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def report(self, began: float | None, now: float) -> ModuleReport:
        """
        @param began: When the start-up began, by the reactor's time.
        @param now: What time it is by it.
        @return: What there is to be said of this one.
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
            "attemptCount": history.attemptCount,
            "nextAttempt": None if following is None else after(now + following),
            "losses": [
                {
                    "lost": round(each.lost - (began or 0), 6),
                    "healed": after(each.recovered),
                    "kind": each.kind,
                    "error": each.error,
                }
                for each in history.losses
            ],
            "lossCount": history.lossCount,
            "closed": after(wrapper.since) if wrapper.state is State.CLOSED else None,
            "closeError": None if self.closeError is None else explain(self.closeError),
        }

    def _reason(self, status: str) -> str | None:
        """
        @return: Why the module is not ready, in words that are for everybody.
        """
        wrapper = self.wrapper
        if status == "waiting":
            missing = [each.name for each in self.suppliers if not each.ready]
            more = len(missing) - _NAMED
            named = ", ".join(missing[:_NAMED])
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
