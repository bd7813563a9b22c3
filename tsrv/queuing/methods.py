"""
The callables that replace a module's methods.

Each L{Method} has two callables. C{enqueue} works in every state: it queues, passes
or refuses a call, depending on the state. C{direct} is for the time when the module is
ready. In the simplest case it is the module's own bound method, so that a call does
not pass through any code of tsrv. Otherwise it makes one of these:

  - A tracked call ends even if the module is lost. If the module has not answered when
    its method returns, the call becomes a L{Command}, which is in progress until the
    module answers, or is lost or closed. tsrv tracks the calls of a module that can be
    lost, unless the module promises to end them itself. It always tracks calls of
    methods that are safe to run twice (C{replay}).
  - A converted call returns a Deferred where the module does not: always
    (C{alwaysDeferred}), or if the method is C{async def}.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from .answer import Answer
from .awaiting import fired, runningLoop
from .command import Command, Method
from .foreign import asDeferred, isEnterable, isTaken
from .module import ModuleMethod, copySignature, isAsync
from .queue import CommandQueue

__all__ = ["Methods"]


class Methods:
    """
    Makes the methods of the proxy of one module.
    """

    def __init__(
        self,
        module: object,
        queue: CommandQueue,
        *,
        replay: frozenset[str],
        tracked: bool,
        alwaysDeferred: bool,
        lifecycle: Mapping[str, ModuleMethod],
        queued: Callable[[], None] | None,
        native: bool = False,
    ) -> None:
        """
        @param replay: The names of methods that are safe to run twice.
        @param tracked: Whether calls of the other methods are tracked, too.
        @param alwaysDeferred: Whether every call returns a Deferred.
        @param lifecycle: Callables by name; they replace the methods that
            initialise and close the module.
        @param queued: Called after each call that was queued or refused.
        @param native: Whether callers are asyncio tasks, which can await any result
            of the module.
        """
        self._module = module
        self._native = native
        self._queue = queue
        self._replay = replay
        self._tracked = tracked
        self._alwaysDeferred = alwaysDeferred
        self._lifecycle = lifecycle
        self._queued = queued
        self._methods: dict[str, Method] = {}

    def whileWaiting(self, name: str, own: ModuleMethod) -> ModuleMethod:
        """
        @param name: The name of a public method.
        @param own: The module's own method.
        @return: The proxy's callable while the module is not ready. It works while
            the module is ready, too.
        """
        if name in self._lifecycle:
            return self._lifecycle[name]
        return self._find(name, own).enqueue

    def whileReady(self, name: str, own: ModuleMethod) -> ModuleMethod:
        """
        @return: The proxy's callable while the module is ready.
        """
        if name in self._lifecycle:
            return self._lifecycle[name]
        if self._isTracked(name) or self._isConverted(own):
            return self._find(name, own).direct
        return own

    def update(self) -> None:
        """
        Look up the module's own methods again: its initialisation may have
        replaced them.
        """
        # Reading an attribute runs foreign code, which may add other methods.
        for method in list(self._methods.values()):
            try:
                own = getattr(self._module, method.name)
            except BaseException as error:
                own = _failing(error)
            self._connect(method, own)

    def _find(self, name: str, own: ModuleMethod) -> Method:
        method = self._methods.get(name)
        if method is None:
            method = Method(name, name in self._replay, self._queue.cancel, own)
            enqueue = self._queue.makeEnqueue(method)
            if self._queued is not None:
                enqueue = _followed(enqueue, self._queued)
            method.enqueue = copySignature(enqueue, own)
            self._connect(method, own)
            self._methods[name] = method
        return method

    def _connect(self, method: Method, own: ModuleMethod) -> None:
        method.target = own
        if self._isTracked(method.name):
            method.direct = copySignature(self._makeTracked(method), own)
        elif self._isConverted(own):
            method.direct = copySignature(self._makeConverted(method), own)
        else:
            method.direct = own

    def _isTracked(self, name: str) -> bool:
        if self._tracked or name in self._replay:
            return True
        # Under the asyncio reactor any method may return a coroutine, and any caller
        # may be a task. A task cannot wait for the module's own Deferred.
        return runningLoop() is not None and (self._alwaysDeferred or not self._native)

    def _isConverted(self, own: ModuleMethod) -> bool:
        return self._alwaysDeferred or (isAsync(own) and not self._native)

    # A caller may keep one of these callables beyond a loss, so each of them checks
    # whether the module is ready.

    def _makeTracked(self, method: Method) -> ModuleMethod:
        queue, running = self._queue, self._queue.running
        holder, here, check = queue.home
        isReplayed, alwaysDeferred = method.replay, self._alwaysDeferred
        suspect = running.suspect

        def call(*arguments: object, **keywords: object) -> object:
            if not queue.passing:
                return method.enqueue(*arguments, **keywords)
            if holder.ioThread != here():
                check(method.name)
            # The module may notice a loss, and report it, while it is called.
            interruptions = running.interruptions
            try:
                if keywords:
                    result = method.target(*arguments, **keywords)
                else:
                    # Python copies even an empty dictionary.
                    result = method.target(*arguments)
                if type(result) is not Deferred:
                    answer = None if isEnterable(result) else asDeferred(result)
                    if answer is None:
                        return _answered(result) if alwaysDeferred else result
                    result = answer
            except BaseException:
                if not (isReplayed or alwaysDeferred):
                    if suspect is not None:
                        suspect()
                    raise
                result = fired(Failure())
            if result.called and not result.paused:
                value = result.result
                isHeldBack = isReplayed and isinstance(value, Failure)
                if not isHeldBack and (value is not None or not isTaken(result)):
                    # Comparing types takes half the time of isinstance().
                    if suspect is not None and type(value) is Failure:
                        suspect()
                    return result
            return running.follow(method, arguments, keywords, result, interruptions)

        return call

    def _makeConverted(self, method: Method) -> ModuleMethod:
        queue, alwaysDeferred = self._queue, self._alwaysDeferred

        def call(*arguments: object, **keywords: object) -> object:
            if not queue.passing:
                return method.enqueue(*arguments, **keywords)
            try:
                result = method.target(*arguments, **keywords)
                answer = None if isEnterable(result) else asDeferred(result)
            except BaseException:
                if not alwaysDeferred:
                    raise
                return _answered(Failure())
            if answer is None:
                return _answered(result) if alwaysDeferred else result
            return answer

        return call


def _answered(result: object) -> Answer:
    answer = Answer()
    answer.isEnterable = isEnterable(result)
    answer.callback(result)
    return answer


def _failing(error: BaseException) -> ModuleMethod:
    return lambda *_, **__: fail(error)


def _followed(enqueue: ModuleMethod, queued: Callable[[], None]) -> ModuleMethod:
    def call(*arguments: object, **keywords: object) -> object:
        command: Command = enqueue(*arguments, **keywords)
        queued()
        return command

    return call
