"""
The options of C{twistd tsrv}.

L{OPTIONS} defines the command line, the environment variables and C{--help}.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, MutableMapping, Sequence
from importlib.util import find_spec
from typing import ClassVar, Final, NoReturn

from twisted.python.usage import Options as UsageOptions
from twisted.python.usage import UsageError

from twisted import __version__ as twistedVersion

from .. import __version__
from ..databases import Location
from .logformat import chooseFormat
from .optiontable import OPTIONS, Option, hasPassword

__all__ = ["Options"]

# Packages that the server and each kind of store import.
_PACKAGES: Final = {
    "server": ("httptools", "jinja2", "msgspec", "prometheus_client", "treq"),
    "sqlite": ("_sqlite3",),
    "postgresql": ("psycopg",),
    "redis": ("hiredis",),
}


class Options(UsageOptions):
    """
    The values of the options, by name: from the command line, from the environment, or
    by default.
    """

    synopsis = "[options]"
    longdesc = (
        "A web server that listens before its modules are ready. "
        "Early requests wait in a queue and are answered in order."
    )

    optFlags: ClassVar = [
        (option.name, None, option.help) for option in OPTIONS if option.parse is None
    ]

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        """
        @param environment: Environment of the process. The parser removes each variable
            that it reads, so that no child process inherits a password.
        """
        super().__init__()
        self._environment = environment
        for option in OPTIONS:
            if option.parse is not None and not option.key:
                self[option.name] = [] if option.repeatable else None

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """
        Read the command line and the environment.

        @param options: The arguments of the command line.
        @raise SystemExit: An option is wrong, or an extra is not installed. The
            message is one line.
        """
        if not {"--help", "--version"}.intersection(options or ()):
            _require("server")
        try:
            super().parseOptions(options)
        except UsageError as error:
            # The value in a message may have line breaks.
            line = " ".join(str(error).split())
            raise SystemExit(f"tsrv: {line} (see twistd tsrv --help)") from None

    def opt_version(self) -> NoReturn:
        """
        Display the versions of tsrv and Twisted, and exit.
        """
        sys.stdout.write(f"tsrv {__version__}, Twisted {twistedVersion}\n")
        raise SystemExit

    def postOptions(self) -> None:
        """
        Read the environment, set the defaults, and require the drivers of the stores.
        """
        for option in OPTIONS:
            # A deployment template may set a variable to an empty value.
            text = self._environment.pop(option.variable, "")
            if text and self[option.name] is None:
                self.setOption(option, text, option.variable)
        for option in OPTIONS:
            isSetting = option.name == "database" and self["config-url"]
            if option.default and not isSetting and self[option.name] in (None, []):
                self.setOption(option, option.default, option.name)
        program = getattr(self, "parent", None)
        if self["log-format"] and program is not None:
            try:
                chooseFormat(program, self["log-format"])
            except ValueError as error:
                raise UsageError(f"--log-format: {error}") from None
        if self["database"] is not None:
            _require(Location.parse(self["database"]).kind)
        if self["sessions"] is not None:
            _require(self["sessions"].kind)

    def setOption(self, option: Option, text: str, source: str) -> None:
        """
        Parse and set the value of an option.

        @param option: The option.
        @param text: The value, as the operator typed it.
        @param source: Name of the option or the variable, for the message.
        @raise UsageError: The value is invalid.
        """
        assert option.parse is not None
        try:
            if not text:
                raise ValueError("must not be empty")
            value = option.parse(text)
        except ValueError as error:
            raise UsageError(f"{source}: {error}") from None
        if option.repeatable:
            value = [*self[option.name], value]
        self[option.key or option.name] = value


def _makeHandler(option: Option) -> Callable[[Options, str], None]:
    def handle(self: Options, text: str) -> None:
        self.setOption(option, text, f"--{option.name}")
        if option.variable and hasPassword(text):
            raise UsageError(
                f"--{option.name}: other users of this machine can see the password in "
                f"the list of processes (set the variable {option.variable} instead)"
            )

    plain = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", option.meaning).replace("`", "")
    default = option.default or option.shownDefault
    handle.__doc__ = f"{plain} [default: {default}]" if default else plain
    return handle


for _option in OPTIONS:
    if _option.parse is not None:
        setattr(Options, f"opt_{_option.name.replace('-', '_')}", _makeHandler(_option))


def _require(kind: str) -> None:
    missing = [name for name in _PACKAGES[kind] if find_spec(name) is None]
    if missing:
        names = ", ".join(missing)
        cure = f"pip install 'tsrv[{kind}]'"
        if kind == "sqlite":
            cure = "this Python was built without SQLite"
        raise SystemExit(f"tsrv: cannot import {names}: {cure}")
