"""
Programs of users on top of the server: the example, and all ways to start one.
"""

from __future__ import annotations

import shutil
import sys
import venv
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from twisted.web.client import HTTPConnectionPool

from .processes import ROOT, Process, run, running, spawned
from .services import Service
from .websupport import asynchronous, reservedPort

EXAMPLE = ROOT / "examples" / "own-service"

SHOP = """
from klein import Klein
from tsrv import AsyncModule, Startup
from tsrv.server import Server

def makeServer(reactor):
    app, startup = Klein(), Startup(reactor)
    clock = startup.add("clock", AsyncModule(reactor, 0.5)).proxy

    @app.route("/say")
    def say(request):
        return clock.tellMeSomething()

    # The ports are open when the reactor has had its first turn.
    reactor.callLater(0, print, "listening", flush=True)
    root = app.resource()
    return Server(reactor, startup, root, ["tcp:PORT:interface=127.0.0.1"])
"""

TAC = f"""{SHOP}
from twisted.application.service import Application
from twisted.internet import reactor

application = Application("shop")
makeServer(reactor).setServiceParent(application)
"""

REACT = f"""{SHOP}
from twisted.internet.task import react

react(lambda reactor: makeServer(reactor).run())
"""


def clientOf(process: Process, port: int) -> Service:
    """
    @return: A client that opens a new connection for each request.
    """
    from twisted.internet import reactor

    pool = HTTPConnectionPool(reactor, persistent=False)
    return Service(process, f"http://127.0.0.1:{port}", pool)


async def stop(process: Process) -> None:
    """
    Stop a process with SIGTERM.
    """
    process.terminate()
    assert await process.ended == 0
    assert process.errors == ""
    assert "Traceback" not in process.output


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    The programs of an environment in which the example is installed.
    """
    copy = tmp_path_factory.mktemp("copy") / "shop"
    shutil.copytree(EXAMPLE, copy, ignore=shutil.ignore_patterns("dropin.cache"))
    directory = tmp_path_factory.mktemp("environment")
    venv.create(directory, with_pip=False)
    programs = directory / "bin"
    pip = ("-m", "pip", "--python", programs / "python", "--disable-pip-version-check")
    install = ("install", "-q", "--no-compile", f"{ROOT}[server]", copy)
    run(sys.executable, *pip, *install)
    return programs


def test_the_example_is_short() -> None:
    """
    All files of the example together have at most 150 lines.
    """
    files = [
        path for path in EXAMPLE.rglob("*") if path.suffix in (".md", ".py", ".toml")
    ]
    assert len(files) == 8
    assert sum(len(path.read_text().splitlines()) for path in files) <= 150


def test_the_tests_of_the_example_pass(installed: Path, tmp_path: Path) -> None:
    """
    The tests of the example pass in its own environment.
    """
    tests = EXAMPLE / "tests" / "test_shop.py"
    option = f"--temp-directory={tmp_path / 'trial'}"
    assert "PASSED (successes=1)" in run(installed / "trial", option, tests)


@pytest.mark.parametrize("program", ["twistd", "twist"])
@asynchronous
async def test_the_example_runs_as_a_plugin(
    installed: Path, tmp_path: Path, program: str
) -> None:
    """
    A request that arrives too early waits for the modules, operators see why, and
    SIGTERM ends the program with status 0.
    """
    words = [str(installed / program)]
    words += ["--nodaemon", "--pidfile="] if program == "twistd" else []
    with reservedPort() as port, reservedPort() as operations:
        words += ["shop", f"--listen=tcp:{port}:interface=127.0.0.1"]
        words += [f"--operations=tcp:{operations}:interface=127.0.0.1"]
        python = installed / "python"
        async with spawned(tmp_path, *words, python=python) as process:
            await process.whenWritten("Started")
            ready = await clientOf(process, operations).ask("GET", "/readyz")
            assert ready.body["state"] == "starting"
            client = clientOf(process, port)
            tea, steel = "/price?item=tea", "/price?item=steel"
            assert (await client.ask("GET", tea)).body == "4.00 EUR\n"
            assert (await client.ask("GET", steel)).status == 404
            metrics = await clientOf(process, operations).ask("GET", "/metrics")
            assert 'tsrv_module_commands_total{module="prices"' in metrics.body
            await stop(process)


def runningTac(directory: Path, text: str) -> AbstractAsyncContextManager[Process]:
    """
    Run an application file.
    """
    (directory / "shop.tac").write_text(text)
    return running(directory, "-n", "--pidfile=", "-y", "shop.tac")


def runningScript(directory: Path, text: str) -> AbstractAsyncContextManager[Process]:
    """
    Run a script.
    """
    (directory / "shop.py").write_text(text)
    return spawned(directory, "shop.py")


@pytest.mark.parametrize(("start", "text"), [(runningTac, TAC), (runningScript, REACT)])
@asynchronous
async def test_a_program_without_a_plugin(
    tmp_path: Path, start: Callable[..., Any], text: str
) -> None:
    """
    A request to a Klein application waits for its module, whether the server runs in an
    application file or under C{react()}. SIGTERM ends both with status 0.
    """
    with reservedPort() as port:
        async with start(tmp_path, text.replace("PORT", str(port))) as process:
            await process.whenWritten("listening")
            answer = await clientOf(process, port).ask("GET", "/say")
            assert answer.body.startswith("Current time is: ")
            await stop(process)
