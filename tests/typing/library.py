"""
A proxy has the type of its module.

Nothing in this directory is run: mypy and pyright check it. Each line that they must
refuse says with which error, and both complain about a comment that is not needed. The
directory is no package, which would hide C{typing} from programs in its parent.
"""

from __future__ import annotations

from functools import partial
from typing import assert_type

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from tsrv import AsyncModule, QueuingWrapper, Startup, State, madeBy


class Database:
    """
    An ordinary module.
    """

    def __init__(self, url: str = "") -> None:
        self.url = url

    def initialize(self) -> Deferred[None]:
        raise NotImplementedError

    def find(self, key: int, *, old: bool = False) -> Deferred[str]:
        raise NotImplementedError

    async def count(self) -> int:
        raise NotImplementedError


class Client:
    """
    A client that a coroutine makes, with methods of other names.
    """

    async def fetch(self, query: str) -> list[str]:
        raise NotImplementedError

    def terminate(self) -> None: ...


async def connect(url: str) -> Client:
    raise NotImplementedError


async def wrapped(reactor: IReactorTime) -> None:
    wrapper = QueuingWrapper(
        Database(),
        reactor,
        timeout=None,
        replay=["find"],
        fatal=ValueError,
        ping="count",
    )
    database = wrapper.proxy
    assert_type(wrapper, QueuingWrapper[Database])
    assert_type(wrapper.module, Database)
    assert_type(database, Database)
    assert_type(database.find(1), Deferred[str])
    assert_type(await database.find(1, old=True), str)
    assert_type(await database.count(), int)
    assert_type(database.url, str)
    assert_type(wrapper.state, State)
    assert_type(await wrapper.initialize(), None)
    async with wrapper.pausing():
        pass
    await wrapper.close()


async def refused(reactor: IReactorTime) -> None:
    database = QueuingWrapper(Database(), reactor).proxy
    database.fnd(1)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    database.find("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    database.find()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    database.find(1, young=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    number: int = await database.find(1)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    print(number)
    QueuingWrapper(Database(), reactor, limt=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    QueuingWrapper(Database(), reactor, limit="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    QueuingWrapper(Database())  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def made(reactor: IReactorTime) -> None:
    client = madeBy(partial(connect, "url"), Client, close=Client.terminate)
    assert_type(client, Client)
    wrapper = QueuingWrapper(client, reactor, ping=partial(client.fetch, "SELECT 1"))
    assert_type(await wrapper.proxy.fetch("SELECT 2"), list[str])
    await wrapper.proxy.fetch(2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    madeBy(connect, Client)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def started(reactor: IReactorTime) -> None:
    startup = Startup(reactor)
    instance = startup.add("instance", Database("url"), needs=["factory"], timeout=20)
    factory = startup.add("factory", partial(Database, "url"), required=False)
    class_ = startup.add("class", Database, queueTimeout=5.0, ping="count")
    clock = startup.add("clock", AsyncModule(reactor, delay=1.0))
    assert_type(instance, QueuingWrapper[Database])
    assert_type(factory, QueuingWrapper[Database])
    assert_type(class_, QueuingWrapper[Database])
    assert_type(clock.proxy, AsyncModule)
    assert_type(await clock.proxy.tellMeSomething(), str)
    startup.startService()
    assert_type(await startup.whenReady(), None)
    startup.add("database", Database(), neds=["x"])  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    startup.add("database", Database(), required="no")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    startup.add(Database())  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
