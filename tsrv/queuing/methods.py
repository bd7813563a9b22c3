"""
The callables that replace a module's methods.

Each L{Method} has two callables. C{enqueue} is right at any time: it queues,
passes or refuses a call, as the moment demands. C{direct} is for the time when
the module is ready. For most methods it is the module's own bound method, so that
nothing of tsrv is in the way. Only two kinds of methods need something in
between:

  - A method that is C{async def} has to return a Deferred.

  - A call of a method that is safe to run twice (C{replay}) is made again when
    the module is lost while working on it. So tsrv has to remember the call:
    from the beginning, or, if the module promises to answer all of its calls
    (L{ISettlesCalls<tsrv.asyncmodule.ISettlesCalls>}), not before it has failed.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import Context, copy_context
from functools import partial
from types import CoroutineType

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.python.failure import Failure

from ..asyncmodule import ISettlesCalls
from .command import Command, Method
from .module import ModuleMethod, copySignature, isAsync
from .queue import CommandQueue

__all__ = ["Methods"]

Arguments = tuple[object, ...]
Keywords = dict[str, object]


class Methods:
    """
    The methods of one module, as its proxy has them.
    """

    def __init__(
        self,
        module: object,
        queue: CommandQueue,
        replay: frozenset[str],
        lifecycle: Mapping[str, ModuleMethod],
    ) -> None:
        """
        @param replay: The names of methods that are safe to run twice.
        @param lifecycle: By name, what is called in place of the methods that
            initialise and close the module.
        """
        self._module = module
        self._queue = queue
        self._replay = replay
        self._lifecycle = lifecycle
        self._settlesCalls = ISettlesCalls.implementedBy(type(module))
        self._methods: dict[str, Method] = {}

    def replacementFor(self, name: str, own: ModuleMethod) -> ModuleMethod:
        """
        @param name: The name of a public method.
        @param own: The module's own method.
        @return: The replacement that the proxy has until the state changes.
        """
        if name in self._lifecycle:
            return self._lifecycle[name]
        if not self._queue.passing:
            return self._find(name, own).enqueue
        if name in self._replay or isAsync(own):
            return self._find(name, own).direct
        return own

    def update(self) -> None:
        """
        Look up the module's own methods again: its initialisation may have
        replaced them.
        """
        # This runs foreign code, which may be the first to use other methods.
        for method in list(self._methods.values()):
            try:
                own = getattr(self._module, method.name)
            except BaseException as error:
                own = partial(fail, error)
            self._connect(method, own)

    def _find(self, name: str, own: ModuleMethod) -> Method:
        method = self._methods.get(name)
        if method is None:
            method = Method(name, name in self._replay, self._queue.cancel, own)
            enqueue = self._queue.makeEnqueue(method)
            method.enqueue = copySignature(enqueue, own)
            self._connect(method, own)
            self._methods[name] = method
        return method

    def _connect(self, method: Method, own: ModuleMethod) -> None:
        method.target = own
        if method.replay and self._settlesCalls:
            method.direct = self._makeRetrying(method)
        elif method.replay:
            method.direct = self._makeRemembering(method)
        elif isAsync(own):
            method.direct = self._makeAsync(method)
        else:
            method.direct = own

    # The callables that are not the module's own. A caller may keep one of them
    # beyond a loss; so each has to look whether the module is ready.

    def _makeAsync(self, method: Method) -> ModuleMethod:
        def call(*arguments: object, **keywords: object) -> object:
            if not self._queue.passing:
                return method.enqueue(*arguments, **keywords)
            result = method.target(*arguments, **keywords)
            if type(result) is CoroutineType:
                return Deferred.fromCoroutine(result)
            return result

        return copySignature(call, method.target)

    def _makeRemembering(self, method: Method) -> ModuleMethod:
        def call(*arguments: object, **keywords: object) -> object:
            if not self._queue.passing:
                return method.enqueue(*arguments, **keywords)
            command = makeCommand(method, arguments, keywords, copy_context())
            self._queue.running.start(command)
            return command

        return copySignature(call, method.target)

    def _makeRetrying(self, method: Method) -> ModuleMethod:
        queue, running, target = self._queue, self._queue.running, method.target

        def call(*arguments: object, **keywords: object) -> object:
            if not queue.passing:
                return method.enqueue(*arguments, **keywords)
            # The module may notice a loss, and report it, while it is called.
            losses = running.losses
            try:
                result = target(*arguments, **keywords)
            except BaseException:
                result = fail(Failure())
            if type(result) is CoroutineType:
                result = Deferred.fromCoroutine(result)
            elif not isinstance(result, Deferred):
                return succeed(result)
            return result.addErrback(
                failed, arguments, keywords, copy_context(), losses
            )

        def failed(
            failure: Failure,
            arguments: Arguments,
            keywords: Keywords,
            context: Context,
            losses: int,
        ) -> object:
            if failure.check(CancelledError) or queue.refusing:
                return failure
            lost = losses != running.losses
            if lost and queue.passing:
                # The module has recovered in the meantime.
                return context.run(call, *arguments, **keywords)
            command = makeCommand(method, arguments, keywords, context)
            if lost:
                command.run = 1
                queue.putBack(command)
            else:
                running.failedDirectly(command, failure)
            return command

        return copySignature(call, target)


def makeCommand(
    method: Method, arguments: Arguments, keywords: Keywords, context: Context
) -> Command:
    """
    @return: A command that does not wait.
    """
    command = Command()
    command.method = method
    command.arguments = arguments
    if keywords:
        command.keywords = keywords
    command.context = context
    command.since = None
    return command
