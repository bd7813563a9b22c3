"""
Runs one client of C{examples/clients} against a server that starts late, is killed, and
starts again.

Run C{python clientdriver.py NAME URL}, with C{--asyncio} for the asyncio reactor, and
with C{--idle} for a client that cannot be closed cleanly in the middle of a call. It
writes what happens in lines: C{made} when it has made its first calls, C{busy} when
calls are in progress all the time, and each state of the wrapper. The test that reads
them starts and kills the server. After a run without an error the last line is C{end}.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Coroutine
from contextlib import suppress
from importlib import import_module
from itertools import count
from pathlib import Path
from traceback import print_exc
from typing import Any

EARLY_CALLS = 30
"""
Number of calls before the first start of the server.
"""

CALLERS = 8
"""
Number of callers at the same time, each of which makes one call after another.
"""

ENOUGH = 100
"""
Number of calls that succeed before the loss, and again afterwards.
"""

MAX_TURNS = 1000
"""
Maximum number of turns of the reactor in which connections and tasks end.
"""

IS_ASYNCIO = "--asyncio" in sys.argv

if IS_ASYNCIO:
    from twisted.internet import asyncioreactor

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    asyncioreactor.install(loop)

from twisted.internet import reactor as theReactor  # noqa: E402
from twisted.internet.defer import Deferred  # noqa: E402
from twisted.internet.task import deferLater  # noqa: E402
from twisted.logger import (  # noqa: E402
    FilteringLogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    globalLogBeginner,
    textFileLogObserver,
)

from tsrv import QueuingWrapper, State  # noqa: E402

reactor: Any = theReactor


def say(text: str) -> None:
    """
    Write a line.
    """
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def spawn(coroutine: Coroutine[Any, Any, Any]) -> Awaitable[Any]:
    """
    Run a coroutine concurrently with the current one.
    """
    if IS_ASYNCIO:
        return asyncio.ensure_future(coroutine)
    return Deferred.fromCoroutine(coroutine)


def turn() -> Awaitable[None]:
    """
    @return: A Deferred that fires in the next turn of the reactor.
    """
    return asyncio.sleep(0) if IS_ASYNCIO else deferLater(reactor, 0)


def leftovers() -> set[str]:
    """
    @return: Everything that a client may forget to release: sockets and files, threads,
        tasks, delayed calls.
    """
    found = {f"delayed call: {each}" for each in reactor.getDelayedCalls()}
    # The reactor keeps its own threads, which have resolved names.
    threads = {*threading.enumerate()} - {*reactor.getThreadPool().threads}
    found |= {f"thread: {each.name}" for each in threads}
    if IS_ASYNCIO:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        found |= {f"task: {each}" for each in tasks}
    for name in os.listdir("/proc/self/fd"):
        # Listing the directory opened the directory itself, too.
        with suppress(FileNotFoundError):
            found.add(f"descriptor {name}: {os.readlink(f'/proc/self/fd/{name}')}")
    return found


class Driver:
    """
    The calls of one client, and their outcomes.
    """

    def __init__(self, example: Any, url: str) -> None:
        self.example = example
        self.url = url
        self.hasPairs = hasattr(example, "writeAll")
        self.isBroker = "pika" in example.__name__
        self.wrapper: QueuingWrapper[Any] = example.wrap(reactor, url)
        self.numbers = count()
        # The items of all calls, by outcome.
        self.made: list[str] = []
        self.acknowledged: list[str] = []
        self.refused: list[str] = []
        self.pairs: list[set[str]] = []
        self.uncertain: Counter[str] = Counter()
        self.succeeded = 0
        self.state: State | None = None
        self.isOver = False
        self.wrapper.addObserver(self.changed)

    def changed(self) -> None:
        state = self.wrapper.state
        if state is self.state:
            return
        self.state = state
        if state is State.LOST:
            self.succeeded = 0
        say(state.value)

    async def write(self, caller: object) -> None:
        """
        Write one item.
        """
        item = f"{caller}:{next(self.numbers)}"
        await self.end(self.example.write(self.wrapper.proxy, item), item)

    async def writeAll(self, caller: object) -> None:
        """
        Write two items: both or neither.
        """
        items = [f"{caller}:{next(self.numbers)}" for _ in range(2)]
        self.pairs.append({*items})
        await self.end(self.example.writeAll(self.wrapper.proxy, items), *items)

    async def end(self, call: Coroutine[Any, Any, None], *items: str) -> None:
        """
        Record the outcome of a write.
        """
        self.made.extend(items)
        try:
            await call
        except getattr(self.example, "REFUSED", ()):
            self.refused.extend(items)
            await turn()
        except self.example.UNCERTAIN as error:
            self.uncertain[type(error).__name__] += len(items)
            # Wait one turn for clients that report the loss.
            await turn()
        else:
            self.acknowledged.extend(items)
            self.succeeded += 1

    async def read(self) -> None:
        """
        Read. A read never fails, and contains every item that was acknowledged before.

        An exception is a message broker that is recovering: browsing takes the messages
        out of the queue, so an item may be missing until the end.
        """
        before = set(self.acknowledged)
        items = await self.example.read(self.wrapper.proxy)
        isKnown = not self.isBroker or not self.wrapper.history.losses.count
        assert not isKnown or before <= set(items), sorted(before - set(items))
        self.succeeded += 1

    async def call(self, caller: int) -> None:
        """
        Call until enough calls have succeeded after the loss.
        """
        for number in count():
            if number % 4 == 3:
                await self.read()
            elif number % 4 == 2 and self.hasPairs:
                await self.writeAll(caller)
            else:
                await self.write(caller)
            if self.succeeded >= ENOUGH:
                if self.wrapper.history.losses.count:
                    return
                if not self.isOver:
                    self.isOver = True
                    say("busy")

    async def run(self) -> None:
        early = [
            spawn(self.read() if number % 3 == 2 else self.write("early"))
            for number in range(EARLY_CALLS)
        ]
        if self.hasPairs:
            early.append(spawn(self.writeAll("early")))
        await turn()
        assert self.wrapper.pending == len(early), self.wrapper
        say("made")
        for each in early:
            await each
        assert self.acknowledged == self.made, self.acknowledged
        assert await self.example.read(self.wrapper.proxy) == self.made
        for caller in [spawn(self.call(number)) for number in range(CALLERS)]:
            await caller
        items = await self.example.read(self.wrapper.proxy)
        self.check(items)
        if hasattr(self.example, "serve"):
            # The example shows another client beside this one.
            service = self.example.serve(reactor, self.url)
            service.startService()
            assert await self.example.readFrom(service) == items
            await service.stopService()
        refused = len(self.refused)
        say(f"{len(items)} items, {refused} refused, uncertain: {dict(self.uncertain)}")

    async def close(self) -> None:
        """
        Close the client in the middle of calls, each of which ends.
        """
        callers = 0 if "--idle" in sys.argv else CALLERS
        calls = [spawn(self.lastCall(number)) for number in range(callers)]
        await turn()
        await self.wrapper.close()
        for call in calls:
            await call

    async def lastCall(self, number: int) -> None:
        """
        Read or write, and accept any result: clients raise all kinds of errors when
        they are closed during a call.
        """
        example, proxy = self.example, self.wrapper.proxy
        with suppress(Exception):
            if number % 2:
                await example.read(proxy)
            elif self.hasPairs:
                await example.writeAll(proxy, ["last", "very last"])
            else:
                await example.write(proxy, "last")

    def check(self, items: list[str]) -> None:
        """
        Check that every acknowledged item exists, that no refused item exists, that no
        item exists twice, and that the items of one caller are in order.
        """
        assert len(set(items)) == len(items)
        assert set(self.acknowledged) <= set(items) <= set(self.made)
        assert all(len(pair & set(items)) != 1 for pair in self.pairs)
        for caller in ["early", *range(CALLERS)]:
            mine = [each for each in items if each.startswith(f"{caller}:")]
            assert mine == [each for each in self.made if each in {*mine}], mine
        assert not set(self.refused) & set(items)
        ended = [*self.acknowledged, *self.refused]
        assert len(self.made) == len(ended) + self.uncertain.total()


async def main(name: str, url: str) -> None:
    """
    Run the calls, close the client, and look for resources that it has not released.
    """
    before = leftovers()
    driver = Driver(import_module(name), url)
    wrapper = driver.wrapper
    ready = wrapper.initialize()
    await driver.run()
    await ready
    await driver.close()
    assert (wrapper.pending, wrapper.inProgress) == (0, 0)
    del driver, wrapper, ready
    # An error refers to the frames that it passed through, and the frames to their
    # variables.
    gc.collect()
    for _ in range(MAX_TURNS):
        if not (left := leftovers() - before):
            break
        await turn()
    gc.collect()
    assert not left, left
    say("end")


async def mainAndStop() -> None:
    """
    Run L{main}, then stop the reactor.
    """
    try:
        await main(sys.argv[1], sys.argv[2])
    except BaseException:
        print_exc()
    reactor.stop()


if __name__ == "__main__":
    # twisted.web logs each connection.
    level = LogLevelFilterPredicate(defaultLogLevel=LogLevel.warn)
    level.setLogLevelForNamespace("tsrv", LogLevel.info)
    observer = FilteringLogObserver(textFileLogObserver(sys.stdout), [level])
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)
    # Clients log a loss with its traceback; asyncio logs abandoned tasks and errors.
    logging.getLogger().addHandler(logging.NullHandler())
    logging.getLogger("asyncio").addHandler(logging.StreamHandler())
    sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "clients"))
    running: list[object] = []
    reactor.callWhenRunning(lambda: running.append(spawn(mainAndStop())))
    reactor.run()
