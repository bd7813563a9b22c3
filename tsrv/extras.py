"""
Imports of packages that C{pip install tsrv} does not install.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["needs"]


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """
    Name the extra of tsrv that installs what the block imports.

    @param extra: The name of the extra, such as C{"server"}.
    @raise ImportError: A package is not installed.
    """
    try:
        yield
    except ImportError as error:
        package = (error.name or "a package").partition(".")[0]
        message = f"cannot import {package}: pip install 'tsrv[{extra}]'"
        raise ImportError(message, name=error.name) from error
