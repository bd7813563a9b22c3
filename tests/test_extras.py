"""
A module that needs an extra says so.
"""

import sys

import pytest

from .processes import run

NEEDS = {
    "tsrv.databases.postgresql": ("psycopg", "postgresql"),
    "tsrv.sessions.klein": ("klein", "klein"),
    "tsrv.sessions.redis": ("hiredis", "redis"),
    "tsrv.settings": ("treq", "server"),
    "tsrv.web.connections": ("httptools", "server"),
    "tsrv.web.content": ("msgspec", "server"),
    "tsrv.web.metrics": ("prometheus_client", "server"),
    "tsrv.web.modules": ("msgspec", "server"),
    "tsrv.web.operations": ("msgspec", "server"),
    "tsrv.web.site": ("httptools", "server"),
    "tsrv.web.status": ("jinja2", "server"),
}

IMPORT_WITHOUT = """
import sys
from importlib import import_module
for argument in sys.argv[1:]:
    module, package = argument.split(":")
    sys.modules[package] = None
    try:
        import_module(module)
    except ImportError as error:
        print(error)
    del sys.modules[package]
    for name in [name for name in sys.modules if name.startswith("tsrv")]:
        del sys.modules[name]
"""


@pytest.fixture(scope="module")
def messages() -> list[str]:
    """
    The error of each module, without its package.
    """
    arguments = [f"{module}:{package}" for module, (package, _) in NEEDS.items()]
    return run(sys.executable, "-c", IMPORT_WITHOUT, *arguments).splitlines()


def test_the_error_names_the_extra(messages: list[str]) -> None:
    """
    If a package is not installed, the error names it, and the extra that installs it.
    """
    assert messages == [
        f"cannot import {package}: pip install 'tsrv[{extra}]'"
        for package, extra in NEEDS.values()
    ]


def test_a_library_of_another_library_is_reported_too() -> None:
    """
    treq brings OpenSSL, so without OpenSSL the extra that installs treq is missing.
    """
    message = run(sys.executable, "-c", IMPORT_WITHOUT, "tsrv.settings:OpenSSL")
    assert message == "cannot import OpenSSL: pip install 'tsrv[server]'\n"
