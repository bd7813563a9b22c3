"""
The options of the server.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Final

from twisted.python.usage import Options as UsageOptions
from twisted.python.usage import UsageError

from ..databases import Location
from ..settings import Source
from .optiontypes import (
    configurationOf,
    countOf,
    databaseOf,
    endpointOf,
    firstLineOf,
    keysOf,
    networkOf,
    positiveSecondsOf,
    secondsOf,
    sessionsOf,
    shortened,
)

__all__ = ["Options"]

_SECRETS: Final = ("TSRV_DATABASE", "TSRV_CONFIG_URL", "TSRV_SESSIONS")
"""
What may be said in the environment, where other users cannot read it, in place
of the command line, where they can.
"""


class Options(UsageOptions):
    """
    The options of C{twistd tsrv}.
    """

    synopsis = "[options]"
    longdesc = (
        "A web server that listens before its modules are ready. "
        "Requests that come too early are held, and answered in order."
    )

    def __init__(self) -> None:
        super().__init__()
        self["listen"] = []
        self["delay"] = 10.0
        self["direct"] = False
        self["operations-listen"] = []
        self["stay-up"] = False
        self["queue-limit"] = 10_000
        self["queue-timeout"] = 30.0
        self["drain-timeout"] = 30.0
        self["access-log"] = False
        self["database"] = None
        self["database-connections"] = 4
        self["statement-timeout"] = 10.0
        self["connect-timeout"] = 5.0
        self["config-url"] = None
        self["config-timeout"] = 10.0
        self["config-refresh"] = None
        self["config-copy"] = None
        self["sessions"] = None
        self["session-idle"] = 1800.0
        self["session-lifetime"] = 28_800.0
        self["session-keys"] = None
        self["trusted-proxy"] = []
        self["new-sessions"] = 6_000
        self["new-sessions-per-peer"] = 60
        self["development"] = False

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """
        Read the command line.

        @param options: The words of the command line.
        @raise SystemExit: It cannot be understood; the message is one line.
        """
        try:
            super().parseOptions(options)
        except UsageError as error:
            # What was typed may have lines, and come back in the message.
            line = " ".join(str(error).split())
            raise SystemExit(f"tsrv: {line} (see twistd tsrv --help)") from None

    def opt_listen(self, endpoint: str) -> None:
        """
        Where to listen: a Twisted endpoint; repeatable. [default: port 8000, loopback]
        """
        self["listen"].append(endpointOf("--listen", endpoint))

    def opt_operations_listen(self, endpoint: str) -> None:
        """
        Where to serve the pages for who runs the server. [default: with all others]
        """
        self["operations-listen"].append(endpointOf("--operations-listen", endpoint))

    def opt_stay_up(self) -> None:
        """
        Go on, and report it, when a module has failed for good.
        """
        self["stay-up"] = True

    def opt_delay(self, seconds: str) -> None:
        """
        How many seconds the clock takes to start. [default: 10]
        """
        self["delay"] = secondsOf("--delay", seconds)

    def opt_direct(self) -> None:
        """
        Ask the modules without queues in front of them, to see what that is like.
        """
        self["direct"] = True

    def opt_queue_limit(self, calls: str) -> None:
        """
        How many calls may wait for each module. [default: 10000]
        """
        self["queue-limit"] = countOf("--queue-limit", calls, "calls", 0)

    def opt_queue_timeout(self, seconds: str) -> None:
        """
        How many seconds a call may wait for its module. [default: 30]
        """
        self["queue-timeout"] = secondsOf("--queue-timeout", seconds)

    def opt_drain_timeout(self, seconds: str) -> None:
        """
        How many seconds requests get to end when it stops. [default: 30]
        """
        self["drain-timeout"] = secondsOf("--drain-timeout", seconds)

    def opt_access_log(self, switch: str) -> None:
        """
        Whether to log every request: on or off. [default: off]
        """
        if switch not in ("on", "off"):
            raise UsageError(
                f"--access-log: {shortened(switch)!r} is neither on nor off"
            )
        self["access-log"] = switch == "on"

    def opt_database(self, url: str) -> None:
        """
        sqlite:PATH or postgresql://USER@HOST/NAME. [default: sqlite:tsrv.db]
        """
        self["database"] = databaseOf("--database", url)
        if Location.parse(url).hasPassword:
            raise UsageError(
                "--database: whoever can list the processes would see the password: "
                "put the URL into the environment as TSRV_DATABASE, or into a file "
                "(--database-file)"
            )

    def opt_database_file(self, path: str) -> None:
        """
        A file whose first line is that; or say it in TSRV_DATABASE.
        """
        self["database"] = databaseOf("--database-file", firstLineOf(path))

    def opt_database_connections(self, connections: str) -> None:
        """
        How many connections there may be to the database. [default: 4]
        """
        self["database-connections"] = countOf(
            "--database-connections", connections, "connections", 1
        )

    def opt_statement_timeout(self, seconds: str) -> None:
        """
        How many seconds one statement may take. [default: 10]
        """
        self["statement-timeout"] = positiveSecondsOf("--statement-timeout", seconds)

    def opt_connect_timeout(self, seconds: str) -> None:
        """
        How many seconds to wait for the database's connections. [default: 5]
        """
        self["connect-timeout"] = positiveSecondsOf("--connect-timeout", seconds)

    def opt_config_url(self, url: str) -> None:
        """
        Where settings are fetched, as JSON; or say it in TSRV_CONFIG_URL.
        """
        self["config-url"] = configurationOf("--config-url", url)
        if Source.parse(url).credentials is not None:
            raise UsageError(
                "--config-url: whoever can list the processes would see the "
                "password: put the URL into the environment as TSRV_CONFIG_URL"
            )

    def opt_config_timeout(self, seconds: str) -> None:
        """
        How many seconds it may take to fetch the settings. [default: 10]
        """
        self["config-timeout"] = positiveSecondsOf("--config-timeout", seconds)

    def opt_config_refresh(self, seconds: str) -> None:
        """
        Fetch the settings again, every so many seconds. [default: never]
        """
        self["config-refresh"] = positiveSecondsOf("--config-refresh", seconds)

    def opt_config_copy(self, path: str) -> None:
        """
        A file for the last good copy of the settings. [default: none is kept]
        """
        if not path:
            raise UsageError("--config-copy: it has to be the path of a file")
        self["config-copy"] = path

    def opt_sessions(self, url: str) -> None:
        """
        sqlite:PATH, postgresql:// or redis://. [default: with the users]
        """
        self["sessions"] = sessionsOf("--sessions", url)
        if self["sessions"].hasPassword:
            raise UsageError(
                "--sessions: whoever can list the processes would see the password: "
                "put the URL into the environment as TSRV_SESSIONS"
            )

    def opt_session_idle(self, seconds: str) -> None:
        """
        How many seconds a session lives that nobody uses. [default: 1800]
        """
        self["session-idle"] = positiveSecondsOf("--session-idle", seconds)

    def opt_session_lifetime(self, seconds: str) -> None:
        """
        How many seconds a session lives at most. [default: 28800]
        """
        self["session-lifetime"] = positiveSecondsOf("--session-lifetime", seconds)

    def opt_session_keys(self, path: str) -> None:
        """
        A file with a key on each line, to sign cookies: the first signs.
        """
        self["session-keys"] = keysOf("--session-keys", path)

    def opt_trusted_proxy(self, network: str) -> None:
        """
        An address, a network, or unix, whose X-Forwarded- headers are true.
        """
        self["trusted-proxy"].append(networkOf("--trusted-proxy", network))

    def opt_new_sessions(self, count: str) -> None:
        """
        How many visitors may get a session in a minute. [default: 6000]
        """
        self["new-sessions"] = countOf("--new-sessions", count, "sessions", 1)

    def opt_new_sessions_per_peer(self, count: str) -> None:
        """
        How many of them may have one address. [default: 60]
        """
        self["new-sessions-per-peer"] = countOf(
            "--new-sessions-per-peer", count, "sessions", 1
        )

    def opt_development(self) -> None:
        """
        Show tracebacks to clients. Never where others can reach the server.
        """
        self["development"] = True

    def takeSecrets(self, environment: MutableMapping[str, str]) -> None:
        """
        Read, and remove, what the environment says in place of options. Options
        come first.

        @param environment: The environment of the process.
        @raise SystemExit: It cannot be understood; the message is one line.
        """
        # One that is empty was put there by a template that knows nothing for it.
        database, configuration, sessions = (
            environment.pop(name, "") for name in _SECRETS
        )
        try:
            if database and self["database"] is None:
                self["database"] = databaseOf("TSRV_DATABASE", database)
            if configuration and self["config-url"] is None:
                self["config-url"] = configurationOf("TSRV_CONFIG_URL", configuration)
            if sessions and self["sessions"] is None:
                self["sessions"] = sessionsOf("TSRV_SESSIONS", sessions)
        except UsageError as error:
            raise SystemExit(f"tsrv: {error}") from None
