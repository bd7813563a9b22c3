"""
The options of C{twistd tsrv}.

L{OPTIONS} has one entry for each option: the command line, the environment,
C{--help} and the table in the README are all made from these entries.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final

from twisted.python.usage import Options as UsageOptions
from twisted.python.usage import UsageError

from ..databases import Location
from .parsers import (
    count,
    database,
    databaseFile,
    endpoint,
    hasPassword,
    network,
    positiveSeconds,
    seconds,
    sessions,
    settings,
    switch,
)

__all__ = ["OPTIONS", "Option", "Options", "markdownTable"]


@dataclass(frozen=True)
class Option:
    """
    One option.

    @ivar name: Name, without dashes.
    @ivar help: Meaning, in Markdown.
    @ivar parse: Parser of the value; L{None} for a flag.
    @ivar default: Default value, as an operator would type it.
    @ivar shownDefault: Description of the default, if there is no default value.
    @ivar variable: Environment variable that is read if the option is not given.
        The option's value may then hold a password.
    @ivar repeatable: Whether the option may be given several times.
    @ivar key: Name of the option whose value this one sets, if not its own.
    """

    name: str
    help: str
    parse: Callable[[str], Any] | None = None
    default: str = ""
    shownDefault: str = ""
    variable: str = ""
    repeatable: bool = False
    key: str = ""

    @property
    def meaning(self) -> str:
        """
        The help, with the environment variable.
        """
        return self.help + (self.variable and f" Environment: `{self.variable}`.")


OPTIONS: Final = (
    Option(
        "listen",
        "[Twisted endpoint](https://docs.twisted.org/en/stable/core/howto/endpoints"
        ".html#servers) to serve on. Repeatable.",
        endpoint,
        "tcp:8000:interface=127.0.0.1:backlog=1024",
        repeatable=True,
    ),
    Option(
        "operations-listen",
        "Endpoint for the operator pages (health, metrics, status). Repeatable.",
        endpoint,
        shownDefault="same as --listen",
        repeatable=True,
    ),
    Option("delay", "Seconds that the clock takes to start.", seconds, "10"),
    Option("direct", "Call the modules without queues, to see the difference."),
    Option("queue-limit", "Queued calls per module.", count(0), "10000"),
    Option("queue-timeout", "Seconds that a call may wait in a queue.", seconds, "30"),
    Option(
        "database",
        "Database of the users: `sqlite:PATH` or `postgresql://USER@HOST:PORT/NAME` "
        "([libpq URL](https://www.postgresql.org/docs/current/libpq-connect.html"
        "#LIBPQ-CONNSTRING-URIS)). With `--config-url`, the default is the setting "
        "`database`.",
        database,
        "sqlite:tsrv.db",
        variable="TSRV_DATABASE",
    ),
    Option(
        "database-file",
        "File whose first line is the URL of the database.",
        databaseFile,
        key="database",
    ),
    Option(
        "database-connections",
        "Maximum number of connections to the database.",
        count(1),
        "4",
    ),
    Option(
        "statement-timeout",
        "Seconds that one statement may take.",
        positiveSeconds,
        "10",
    ),
    Option(
        "connect-timeout",
        "Seconds to connect, to notice that an idle connection is lost, or to wait for "
        "another process that has locked the SQLite file.",
        positiveSeconds,
        "5",
    ),
    Option(
        "config-url",
        "URL of the settings: a JSON object that is fetched before the modules that "
        "need it start.",
        settings,
        variable="TSRV_CONFIG_URL",
    ),
    Option("config-timeout", "Seconds to fetch the settings.", positiveSeconds, "10"),
    Option(
        "config-refresh",
        "Seconds after which the settings are fetched again.",
        positiveSeconds,
        shownDefault="never",
    ),
    Option(
        "config-copy",
        "File for the last good copy of the settings, for when they cannot be fetched.",
        str,
        shownDefault="no copy",
    ),
    Option(
        "sessions",
        "Session store: `sqlite:PATH`, `postgresql://…` (both with `?table=NAME`) or "
        "`redis://HOST:PORT/DB` (also `rediss://` and `unix://PATH`).",
        sessions,
        shownDefault="same as --database",
        variable="TSRV_SESSIONS",
    ),
    Option(
        "session-idle",
        "Seconds after which an unused session expires.",
        positiveSeconds,
        "1800",
    ),
    Option(
        "session-lifetime",
        "Seconds after which every session expires.",
        positiveSeconds,
        "28800",
    ),
    Option(
        "trusted-proxy",
        "Address or network of a proxy whose `X-Forwarded-Proto` and `X-Forwarded-For` "
        "are trusted, or `unix`. Repeatable.",
        network,
        repeatable=True,
    ),
    Option(
        "new-sessions",
        "New sessions per minute, for all clients together; further clients get 429.",
        count(1),
        "6000",
    ),
    Option(
        "new-sessions-per-peer",
        "New sessions per minute and client address.",
        count(1),
        "60",
    ),
    Option("stay-up", "Keep running when a required module has failed for good."),
    Option(
        "drain-timeout",
        "Seconds for requests in progress to finish during a graceful shutdown.",
        seconds,
        "30",
    ),
    Option("access-log", "Log every request: `on` or `off`.", switch, "off"),
    Option("development", "Show tracebacks to clients."),
)
"""
All options, in the order of the README.
"""

_PACKAGES: Final = {
    "server": ("jinja2", "msgspec", "prometheus_client", "treq"),
    "sqlite": ("_sqlite3",),
    "postgresql": ("psycopg",),
    "redis": ("hiredis",),
}
"""
Packages that the server, and each kind of store, imports.
"""


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

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        """
        @param environment: Environment of the process. Variables that are read are
            removed, so that no child process inherits a password.
        """
        super().__init__()
        self._environment = environment
        for option in OPTIONS:
            if not option.key:
                unset = False if option.parse is None else None
                self[option.name] = [] if option.repeatable else unset

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """
        Read the command line and the environment.

        @param options: The arguments of the command line.
        @raise SystemExit: An option is wrong, or an extra is not installed. The
            message is one line.
        """
        if "--help" not in (options or ()):
            _require("server")
        try:
            super().parseOptions(options)
        except UsageError as error:
            # A message may repeat a value that has line breaks.
            line = " ".join(str(error).split())
            raise SystemExit(f"tsrv: {line} (see twistd tsrv --help)") from None

    def postOptions(self) -> None:
        """
        Read the environment, set the defaults, and require the drivers of the stores.
        """
        for option in OPTIONS:
            # A template may set a variable without having a value for it.
            text = self._environment.pop(option.variable, "")
            if text and self[option.name] is None:
                self.setOption(option, text, option.variable)
        for option in OPTIONS:
            isSetting = option.name == "database" and self["config-url"]
            if option.default and not isSetting and self[option.name] in (None, []):
                self.setOption(option, option.default, option.name)
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


def _makeHandler(option: Option) -> Callable[..., None]:
    """
    @return: The method that Twisted calls when an option is on the command line.
    """

    def setFlag(self: Options) -> None:
        self[option.name] = True

    def setValue(self: Options, text: str) -> None:
        self.setOption(option, text, f"--{option.name}")
        if option.variable and hasPassword(text):
            raise UsageError(
                f"--{option.name}: other users of this machine can see the password in "
                f"the list of processes (set the variable {option.variable} instead)"
            )

    handler = setFlag if option.parse is None else setValue
    plain = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", option.meaning).replace("`", "")
    default = option.default or option.shownDefault
    handler.__doc__ = f"{plain} [default: {default}]" if default else plain
    return handler


for _option in OPTIONS:
    setattr(Options, f"opt_{_option.name.replace('-', '_')}", _makeHandler(_option))


def _require(kind: str) -> None:
    missing = [name for name in _PACKAGES[kind] if find_spec(name) is None]
    if missing:
        names = ", ".join(missing)
        cure = f"pip install 'tsrv[{kind}]'"
        if kind == "sqlite":
            cure = "this Python was built without SQLite"
        raise SystemExit(f"tsrv: cannot import {names}: {cure}")


def markdownTable() -> str:
    """
    @return: The table of all options, for the README.
    """
    lines = ["| option | default | meaning |", "|---|---|---|"]
    for each in OPTIONS:
        name = f"`--{each.name}`" if each.parse is None else f"`--{each.name}=`"
        default = f"`{each.default}`" if each.default else each.shownDefault
        lines.append(f"| {name} | {default} | {each.meaning} |")
    return "\n".join(lines)
