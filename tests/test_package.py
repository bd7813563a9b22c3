"""
What is installed, and what it needs.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LAYERS = [
    ("tap",),
    ("server", "resources"),
    ("demo", "testing"),
    ("sessions",),
    ("web",),
    ("databases", "settings"),
    ("startup",),
    ("starting",),
    ("wrapper",),
    ("queuing",),
    ("errors",),
    ("asyncmodule",),
]
"""
Each may import what is in its own layer and in those below.
"""


def run(*command: str | Path, directory: Path, **environment: str) -> str:
    """
    Run a program, with no Python path but the given one.

    @return: What it prints.
    """
    inherited = {name: os.environ[name] for name in os.environ if "PYTHON" not in name}
    done = subprocess.run(  # noqa: S603
        [str(word) for word in command],
        cwd=directory,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    The wheel, as it would be uploaded.
    """
    directory = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip")
    run(*pip, "wheel", "-q", "--no-deps", "-w", ".", ROOT, directory=directory)
    (built,) = directory.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_alone(wheel: Path) -> None:
    """
    No tests, no caches, and no __init__.py that would make C{twisted} ours.
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
    assert "tsrv/web/static/status.html" in names


def test_twistd_finds_it_wherever_it_is(wheel: Path, tmp_path: Path) -> None:
    """
    C{twistd} and C{twist} list C{tsrv} when the wheel is installed, in a
    checkout that is not, and in one that is.
    """
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    pip = (python, "-m", "pip", "-q", "--disable-pip-version-check")

    def found(directory: Path, **variables: str) -> list[bool]:
        return [
            "\n    tsrv " in run(program, "--help", directory=directory, **variables)
            for program in (
                environment / "bin" / "twistd",
                environment / "bin" / "twist",
            )
        ]

    run(*pip, "install", wheel, directory=tmp_path)
    assert found(tmp_path) == [True, True]
    code = "import tsrv, sys; sys.exit('jinja2' in sys.modules)"
    run(python, "-c", code, directory=tmp_path)

    run(*pip, "uninstall", "-y", "tsrv", directory=tmp_path)
    assert found(tmp_path) == [False, False]
    assert found(ROOT, PYTHONPATH=".") == [True, True]

    run(*pip, "install", "--editable", ROOT, directory=tmp_path)
    assert found(tmp_path) == [True, True]


@pytest.mark.parametrize("module", ["tsrv", "tsrv.tap", "tsrv.resources"])
def test_importing_installs_no_reactor(module: str) -> None:
    """
    Whoever imports the library still chooses the reactor.
    """
    code = f"import {module}, sys; sys.exit('twisted.internet.reactor' in sys.modules)"
    run(sys.executable, "-c", code, directory=ROOT)


def test_the_library_needs_twisted_alone() -> None:
    """
    What only the server needs is not imported by who uses the library.
    """
    others = {"jinja2", "markupsafe", "prometheus_client", "treq"}
    code = f"import tsrv, sys; sys.exit(bool({others} & set(sys.modules)))"
    run(sys.executable, "-c", code, directory=ROOT)


def test_imports_run_one_way() -> None:
    """
    The wrapper knows nothing of the web, and a module nothing of the wrapper.
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
                if imported == "modules":
                    assert level[inside[0]] <= level["web"] or inside[0] == "modules"


def test_modules_are_short() -> None:
    """
    A module that nobody can keep in mind hides something.
    """
    lengths = {
        path.name: len(path.read_text().splitlines())
        for path in (ROOT / "tsrv").rglob("*.py")
    }
    assert {name for name, length in lengths.items() if length > 580} == set()
