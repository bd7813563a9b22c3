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
from . import parsers

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
        variable = f" Environment variable: `{self.variable}`." if self.variable else ""
        return self.help + variable


OPTIONS: Final = (
    Option(
        "listen",
        "[Twisted endpoint](https://docs.twisted.org/en/stable/core/howto/endpoints"
        ".html#servers) to serve on. Repeatable.",
        parsers.endpoint,
        "tcp:8000:interface=127.0.0.1:backlog=1024",
        repeatable=True,
    ),
    Option(
        "operations-listen",
        "Endpoint for the operator pages (health, metrics, status). Repeatable.",
        parsers.endpoint,
        shownDefault="same as --listen",
        repeatable=True,
    ),
    Option("delay", "Seconds that the clock takes to start.", parsers.seconds, "10"),
    Option("direct", "Call the modules without queues, to see the difference."),
    Option("queue-limit", "Queued calls per module.", parsers.count(0), "10000"),
    Option(
        "queue-timeout",
        "Seconds that a call may wait in a queue.",
        parsers.seconds,
        "30",
    ),
    Option(
        "database",
        "Database of the users: `sqlite:PATH` or `postgresql://USER@HOST:PORT/NAME` "
        "([libpq URL](https://www.postgresql.org/docs/current/libpq-connect.html"
        "#LIBPQ-CONNSTRING-URIS)). With `--config-url`, the default is the setting "
        "`database`.",
        parsers.database,
        "sqlite:tsrv.db",
        variable="TSRV_DATABASE",
    ),
    Option(
        "database-file",
        "File whose first line is the URL of the database.",
        parsers.databaseFile,
        key="database",
    ),
    Option(
        "database-connections",
        "Maximum number of connections to the database.",
        parsers.count(1),
        "4",
    ),
    Option(
        "statement-timeout",
        "Seconds that one statement may take.",
        parsers.positiveSeconds,
        "10",
    ),
    Option(
        "connect-timeout",
        "Seconds to connect, to notice that an idle connection is lost, or to wait for "
        "another process that has locked the SQLite file.",
        parsers.positiveSeconds,
        "5",
    ),
    Option(
        "config-url",
        "URL of the settings: a JSON object that is fetched before the modules that "
        "need it start.",
        parsers.settings,
        variable="TSRV_CONFIG_URL",
    ),
    Option(
        "config-timeout",
        "Seconds to fetch the settings.",
        parsers.positiveSeconds,
        "10",
    ),
    Option(
        "config-refresh",
        "Seconds after which the settings are fetched again.",
        parsers.positiveSeconds,
        shownDefault="never",
    ),
    Option(
        "config-copy",
        "File for the last good copy of the settings, for when they cannot be fetched.",
        parsers.path,
        shownDefault="no copy",
    ),
    Option(
        "sessions",
        "Session store: `sqlite:PATH`, `postgresql://…` (both with `?table=NAME`) or "
        "`redis://HOST:PORT/DB`.",
        parsers.sessions,
        shownDefault="same as --database",
        variable="TSRV_SESSIONS",
    ),
    Option(
        "session-idle",
        "Seconds after which an unused session expires.",
        parsers.positiveSeconds,
        "1800",
    ),
    Option(
        "session-lifetime",
        "Seconds after which every session expires.",
        parsers.positiveSeconds,
        "28800",
    ),
    Option(
        "trusted-proxy",
        "Address or network of a proxy whose `X-Forwarded-Proto` and `X-Forwarded-For` "
        "are trusted, or `unix`. Repeatable.",
        parsers.network,
        repeatable=True,
    ),
    Option(
        "new-sessions",
        "New sessions per minute, for all clients together; further clients get 429.",
        parsers.count(1),
        "6000",
    ),
    Option(
        "new-sessions-per-peer",
        "New sessions per minute and client address.",
        parsers.count(1),
        "60",
    ),
    Option("stay-up", "Keep running when a required module has failed for good."),
    Option(
        "drain-timeout",
        "Seconds for requests in progress to finish during a graceful shutdown.",
        parsers.seconds,
        "30",
    ),
    Option("access-log", "Log every request: `on` or `off`.", parsers.switch, "off"),
    Option("development", "Show tracebacks to clients."),
)
"""
All options, in the order of the README.
"""

_EXTRAS: Final = {
    "server": ("jinja2", "msgspec", "prometheus_client", "treq"),
    "postgresql": ("psycopg",),
    "redis": ("hiredis",),
}
"""
Modules that each extra installs.
"""


class Options(UsageOptions):
    """
    The values of the options, by name. What the command line does not say is read
    from the environment; what is said in neither has its default.
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
        self.update((each.name, None) for each in OPTIONS if not each.key)

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """
        Read the command line and the environment.

        @param options: The arguments of the command line.
        @raise SystemExit: An option is wrong, or an extra is not installed. The
            message is one line.
        """
        if "--help" not in (options or ()):
            _requireExtra("server")
        try:
            super().parseOptions(options)
        except UsageError as error:
            # A message may repeat a value that has line breaks.
            line = " ".join(str(error).split())
            raise SystemExit(f"tsrv: {line} (see twistd tsrv --help)") from None

    def postOptions(self) -> None:
        """
        Read the environment, set the defaults, and require the drivers of the chosen
        databases.
        """
        for option in OPTIONS:
            # A template may set a variable for which it has no value.
            text = self._environment.pop(option.variable, "")
            if text and self[option.name] is None:
                self.setOption(option, text, option.variable)
        for option in OPTIONS:
            isSetting = option.name == "database" and self["config-url"] is not None
            if option.key or isSetting or self[option.name] is not None:
                continue
            if option.default:
                self.setOption(option, option.default, option.name)
            elif option.repeatable or option.parse is None:
                self[option.name] = [] if option.repeatable else False
        if self["database"] is not None:
            _requireDriver(Location.parse(self["database"]).kind)
        if self["sessions"] is not None:
            _requireDriver(self["sessions"].kind)

    def setOption(self, option: Option, text: str, source: str) -> None:
        """
        Parse and set the value of an option.

        @param option: The option.
        @param text: The value, as the operator typed it.
        @param source: Where the value comes from, for the message.
        @raise UsageError: The value is invalid.
        """
        assert option.parse is not None
        try:
            value = option.parse(text)
        except ValueError as error:
            raise UsageError(f"{source}: {error}") from None
        if option.repeatable:
            value = [*(self[option.name] or ()), value]
        self[option.key or option.name] = value


def _makeHandler(option: Option) -> Callable[..., None]:
    """
    @return: The method that Twisted calls when an option is on the command line.
    """

    def setFlag(self: Options) -> None:
        self[option.name] = True

    def setValue(self: Options, text: str) -> None:
        self.setOption(option, text, f"--{option.name}")
        if option.variable and parsers.hasPassword(text):
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


def _requireDriver(kind: str) -> None:
    if kind != "sqlite":
        _requireExtra(kind)
    elif find_spec("_sqlite3") is None:
        raise SystemExit("tsrv: this Python was built without SQLite (_sqlite3)")


def _requireExtra(extra: str) -> None:
    missing = [name for name in _EXTRAS[extra] if find_spec(name) is None]
    if missing:
        names = ", ".join(missing)
        raise SystemExit(f"tsrv: cannot import {names}: pip install 'tsrv[{extra}]'")


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
