"""
The contents of the wheel, its needs, and the layers of its modules.
"""

from __future__ import annotations

import ast
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from .processes import ROOT, run

LAYERS = [
    ("tap",),
    ("server", "resources"),
    ("demo", "testing"),
    ("sessions",),
    ("web",),
    ("databases", "settings"),
    ("aio",),
    ("startup",),
    ("starting",),
    ("wrapper", "clients"),
    ("failures",),
    ("queuing",),
    ("errors",),
    ("asyncmodule", "extras"),
]
"""
Each layer may import from itself and from those below.
"""

LIBRARY = """
from twisted.internet.defer import Deferred
from twisted.internet.task import react
from tsrv import AsyncModule, QueuingWrapper, Startup

async def main(reactor):
    wrapper = QueuingWrapper(AsyncModule(reactor, delay=0.0), reactor)
    queued = wrapper.proxy.tellMeSomething()
    wrapper.initialize()
    print(await queued)
    await wrapper.close()
    startup = Startup(reactor)
    startup.add("clock", AsyncModule(reactor, delay=0.0))
    startup.startService()
    await startup.whenReady()
    print(startup.status.value)
    await startup.stopService()

react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
"""


def isListed(directory: Path, program: str = "twistd", **environment: str) -> bool:
    """
    @return: Whether a program of an environment lists C{tsrv}.
    """
    listed = run(directory / program, "--help", status=0, **environment)
    return "\n    tsrv " in listed


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    The wheel, as it would be uploaded.
    """
    directory = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip")
    run(*pip, "wheel", "-q", "--no-deps", "-w", directory, ROOT)
    (built,) = directory.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_alone(wheel: Path) -> None:
    """
    The wheel has no tests, no caches, and no C{twisted/__init__.py}.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tsrv").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == files | {"twisted/plugins/tsrv_plugin.py"}
    assert "tsrv/py.typed" in names


def test_without_extras_the_library_works(wheel: Path, tmp_path: Path) -> None:
    """
    A wheel that is installed without an extra brings Twisted alone. It has the library,
    and a command that names the extra it needs; a checkout has the command without
    being installed.
    """
    venv.create(tmp_path, with_pip=False)
    bin_ = tmp_path / "bin"
    pip = ("-m", "pip", "--python", bin_ / "python", "--disable-pip-version-check")
    run(sys.executable, *pip, "install", "-q", "--no-compile", "twisted")
    before = {path.name for path in tmp_path.rglob("*.dist-info")}
    assert isListed(bin_, PYTHONPATH=str(ROOT))
    run(sys.executable, *pip, "install", "-q", wheel)
    (added,) = {path.name for path in tmp_path.rglob("*.dist-info")} - before
    assert added.startswith("tsrv-")
    said, status = run(bin_ / "python", "-c", LIBRARY).splitlines()
    assert said.startswith("Current time is: ")
    assert status == "ready"
    assert isListed(bin_)
    assert isListed(bin_, "twist")
    assert "--listen=" in run(bin_ / "twistd", "tsrv", "--help")
    assert run(bin_ / "twistd", "-n", "tsrv", status=1) == (
        "tsrv: cannot import httptools, jinja2, msgspec, prometheus_client, treq: "
        "pip install 'tsrv[server]'\n"
    )


def test_the_oldest_packages_are_tested() -> None:
    """
    C{.ci/run} tests with the oldest release of each package that tsrv may be installed
    with, except for psycopg.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needs = [*project["dependencies"], *extras["server"], *extras["redis"]]
    floors = dict(need.split(">=") for need in [*needs, *extras["klein"]])
    pins = (ROOT / "tests" / "oldest.txt").read_text().split()
    oldest = dict(pin.split("==") for pin in pins)
    assert sorted(oldest) == sorted(floors)
    for name, floor in floors.items():
        assert f"{oldest[name]}.".startswith(f"{floor}."), name


def test_importing_installs_no_reactor() -> None:
    """
    A program that imports tsrv still chooses its reactor.
    """
    modules = "tsrv, tsrv.tap, tsrv.server.assembly, tsrv.sessions.redis"
    code = f"import {modules}, sys; sys.exit('twisted.internet.reactor' in sys.modules)"
    run(sys.executable, "-c", code)


def test_imports_run_one_way() -> None:
    """
    A module imports from its own layer and from those below.
    """
    level = {name: number for number, names in enumerate(LAYERS) for name in names}
    for path in (ROOT / "tsrv").rglob("*.py"):
        inside = path.relative_to(ROOT / "tsrv").with_suffix("").parts
        if path.name == "__init__.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = list(inside[: -node.level])
                imported = [*base, *(node.module or "").split(".")][0]
                if imported:
                    assert level[imported] >= level[inside[0]], (inside, imported)


def test_modules_are_short() -> None:
    """
    No module has more lines than a reader can keep in mind.
    """
    lengths = {
        path.name: len(path.read_text().splitlines())
        for path in (ROOT / "tsrv").rglob("*.py")
    }
    assert {name for name, length in lengths.items() if length > 450} == set()
