"""
The options: each is parsed or refused in one line, and described in one place.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import tsrv
import twisted
from tsrv.server.options import Options
from tsrv.server.optiontable import OPTIONS, SessionLocation

DEFAULTS = {
    "listen": ["tcp:8000:interface=127.0.0.1:backlog=1024"],
    "operations-listen": [],
    "delay": 10.0,
    "direct": False,
    "queue-limit": 10_000,
    "queue-timeout": 30.0,
    "database": "sqlite:tsrv.db",
    "database-connections": 4,
    "statement-timeout": 10.0,
    "connect-timeout": 5.0,
    "config-url": None,
    "config-timeout": 10.0,
    "config-refresh": None,
    "config-copy": None,
    "sessions": None,
    "session-idle": 1800.0,
    "session-lifetime": 28_800.0,
    "trusted-proxy": [],
    "hsts": 31_536_000,
    "new-sessions": 6_000,
    "new-sessions-per-peer": 60,
    "stay-up": False,
    "keep-alive": 75.0,
    "request-timeout": 30.0,
    "drain-timeout": 25.0,
    "shutdown-delay": 0.0,
    "access-log": False,
    "log-format": None,
    "development": False,
}

POSTGRESQL = "postgresql://u@h/n"

WITH_PASSWORD = "postgresql://u:hush@h/n"  # noqa: S105


def parse(*arguments: str, **environment: str) -> dict[str, object]:
    """
    @return: The values of the options on a command line.
    """
    options = Options(environment)
    options.parseOptions(arguments)
    return {**options}


def refuse(*arguments: str, **environment: str) -> str:
    """
    @return: The message with which a command line is refused.
    """
    with pytest.raises(SystemExit) as raised:
        parse(*arguments, **environment)
    message = raised.value.code
    assert isinstance(message, str)
    assert message.startswith("tsrv: ")
    assert "\n" not in message
    assert "hush" not in message
    assert len(message) < 250
    return message.removeprefix("tsrv: ").removesuffix(" (see twistd tsrv --help)")


def test_defaults() -> None:
    """
    Without options the server can be reached from this machine alone, and queues
    longer than its clock takes to start.
    """
    assert parse() == DEFAULTS


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ("--listen=tcp:0 --listen unix:/tmp/x", ["tcp:0", "unix:/tmp/x"]),
        ("--delay=2.5", 2.5),
        ("--direct", True),
        ("--queue-limit=0", 0),
        (f"--database={POSTGRESQL}", POSTGRESQL),
        ("--database-connections=1", 1),
        ("--statement-timeout=0.5", 0.5),
        ("--config-copy=/var/lib/c", "/var/lib/c"),
        (
            "--sessions=sqlite:a?table=visitors",
            SessionLocation("sqlite", "sqlite:a", "visitors"),
        ),
        (
            f"--sessions={POSTGRESQL}?sslmode=require&table=t",
            SessionLocation("postgresql", f"{POSTGRESQL}?sslmode=require", "t"),
        ),
        ("--sessions=redis://h:1/2", SessionLocation("redis", "redis://h:1/2")),
        ("--sessions=rediss://h", SessionLocation("redis", "rediss://h")),
        ("--sessions=unix:/run/r", SessionLocation("redis", "unix:/run/r")),
        ("--trusted-proxy=10.0.0.0/8 --trusted-proxy=unix", ["10.0.0.0/8", "unix"]),
        ("--keep-alive=7.5", 7.5),
        ("--request-timeout=7.5", 7.5),
        ("--access-log=on --access-log=off", False),
        ("--development", True),
    ],
)
def test_an_option_sets_its_own_value(arguments: str, value: object) -> None:
    """
    An option sets its own value and no other.
    """
    words = arguments.split(" ")
    name = words[0].partition("=")[0].lstrip("-")
    assert parse(*words) == DEFAULTS | {name: value}


def test_settings_replace_the_default_database() -> None:
    """
    With C{--config-url} there is no default database: the settings name it.
    """
    url = "https://h/c?a=b"
    expected = DEFAULTS | {"config-url": url, "database": None}
    assert parse(f"--config-url={url}") == expected


SECONDS = [option.name for option in OPTIONS if option.help.startswith("Seconds ")]


@pytest.mark.parametrize("name", SECONDS)
def test_a_bad_duration_is_refused(name: str) -> None:
    """
    A duration is a number of seconds up to a year; most must not be 0.
    """
    minimum = "0" if re.search("delay|queue-t|drain|hsts", name) else "0.001"
    for text in ("ten", "-1", "nan", "inf", "1,5", "31536001"):
        about = f"{text!r} is not a number from {minimum} to 31536000"
        assert refuse(f"--{name}={text}") == f"--{name}: {about}"
    if minimum != "0":
        assert refuse(f"--{name}=0").startswith(f"--{name}: '0' is not a number")


@pytest.mark.parametrize(
    ("argument", "about"),
    [
        ("--listen=8000", "'8000': not a Twisted endpoint, such as tcp:8000"),
        ("--listen=a\nb", "'a\\nb': not a Twisted endpoint"),
        ("--operations-listen=8000", "'8000': not a Twisted endpoint"),
        ("--database-connections=0", "'0' is not a whole number from 1 to 1000000000"),
        ("--database-connections=few", "'few' is not a whole number from 1 to"),
        ("--queue-limit=-1", "'-1' is not a whole number from 0 to 1000000000"),
        ("--queue-limit=1.5", "'1.5' is not a whole number from 0 to"),
        ("--log-format=xml", "'xml' is neither text nor json"),
        ("--access-log=yes", "'yes' is neither on nor off"),
        ("--trusted-proxy=proxy", "'proxy' is neither an address nor a network"),
        ("--config-copy=", "must not be empty"),
        ("--config-url=ftp://h/c", ""),
        ("--database=", "must not be empty"),
        ("--database=mysql://u:hush@h/n", ""),
        ("--database-file=/nonexistent", "cannot read '/nonexistent': No such file"),
        (f"--database-file={sys.executable}", "cannot read"),
        ("--sessions=mysql://u:hush@h/n", ""),
        ("--sessions=redis://h:bad/1", ""),
        ("--sessions=sqlite:a?tabel=b", "sqlite:PATH has no parameter except"),
        ("--sessions=sqlite:a?table=a-b", ""),
        (f"--queue-limit={'9' * 5000}", f"'{'9' * 47}...' is not"),
        (f"--listen={'x' * 5000}", f"'{'x' * 47}...': not a Twisted endpoint"),
    ],
)
def test_a_bad_value_is_refused(argument: str, about: str) -> None:
    """
    A bad value is refused, before anything starts, with one line that names the option.
    """
    name = argument.partition("=")[0]
    assert refuse(argument).startswith(f"{name}: {about}")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--delay", "option --delay requires argument"),
        ("--direct=yes", "option --direct must not have an argument"),
        ("--session-keys=x", "option --session-keys not recognized"),
        ("extra", "Wrong number of arguments."),
    ],
)
def test_a_bad_command_line_is_refused(argument: str, message: str) -> None:
    """
    A bad command line is refused with one line too.
    """
    assert refuse(argument) == message


@pytest.mark.parametrize("arguments", [["--version"], ["--delay=1", "--version"]])
def test_version_names_both_programs(
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    C{--version} displays the versions of tsrv and of Twisted on one line, also without
    the extras.
    """
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(SystemExit) as raised:
        Options({}).parseOptions(arguments)
    assert raised.value.code is None
    expected = f"tsrv {tsrv.__version__}, Twisted {twisted.__version__}\n"
    assert capsys.readouterr().out == expected


# Passwords.


@pytest.mark.parametrize(
    "argument",
    [
        f"--database={WITH_PASSWORD}",
        "--config-url=https://hush@h/c",
        "--sessions=redis://:hush@h/",
        f"--sessions={WITH_PASSWORD}?table=t",
    ],
)
def test_a_password_on_the_command_line_is_refused(argument: str) -> None:
    """
    Other users could read a password in the list of processes.
    """
    name = argument.partition("=")[0]
    assert refuse(argument).startswith(f"{name}: other users of this machine")


def test_passwords_come_from_the_environment() -> None:
    """
    URLs are taken out of the environment, so that no child process inherits them.
    """
    environment = {
        "TSRV_DATABASE": WITH_PASSWORD,
        "TSRV_CONFIG_URL": "https://u:hush@h/c",
        "TSRV_SESSIONS": "redis://:hush@h/",
        "PATH": "/bin",
    }
    options = Options(environment)
    options.parseOptions([])
    assert options["database"] == WITH_PASSWORD
    assert options["config-url"] == "https://u:hush@h/c"
    assert options["sessions"] == SessionLocation("redis", "redis://:hush@h/")
    assert "hush" not in repr(options["sessions"])
    assert environment == {"PATH": "/bin"}


def test_a_password_comes_from_a_file(tmp_path: Path) -> None:
    """
    The first line of C{--database-file} is the URL of the database.
    """
    path = tmp_path / "url"
    path.write_text(f"  {WITH_PASSWORD} \nmore\n")
    assert parse(f"--database-file={path}")["database"] == WITH_PASSWORD
    path.write_text("mysql://u:hush@h/n")
    assert refuse(f"--database-file={path}").startswith("--database-file: ")


def test_the_command_line_comes_before_the_environment() -> None:
    """
    An option on the command line overrides its environment variable.
    """
    there = {"TSRV_DATABASE": "sqlite:there", "TSRV_CONFIG_URL": "http://there"}
    values = parse("--database=sqlite:here", "--config-url=http://h/here", **there)
    assert values["database"] == "sqlite:here"
    assert values["config-url"] == "http://h/here"


def test_an_empty_variable_is_ignored() -> None:
    """
    A variable without a value is one that is not set.
    """
    empty = {"TSRV_DATABASE": "", "TSRV_CONFIG_URL": "", "TSRV_SESSIONS": ""}
    assert parse(**empty) == DEFAULTS


@pytest.mark.parametrize("name", ["TSRV_DATABASE", "TSRV_CONFIG_URL", "TSRV_SESSIONS"])
def test_a_bad_variable_is_refused(name: str) -> None:
    """
    The message names the variable, and does not repeat its value.
    """
    assert refuse(**{name: "hush"}).startswith(f"{name}: ")


# Missing packages.


@pytest.mark.parametrize(
    ("missing", "arguments", "message"),
    [
        *(
            (name, (), f"cannot import {name}: pip install 'tsrv[server]'")
            for name in (
                "httptools",
                "jinja2",
                "msgspec",
                "prometheus_client",
                "treq",
            )
        ),
        (
            "psycopg",
            (f"--database={POSTGRESQL}",),
            "cannot import psycopg: pip install 'tsrv[postgresql]'",
        ),
        (
            "hiredis",
            ("--sessions=redis://h/",),
            "cannot import hiredis: pip install 'tsrv[redis]'",
        ),
        (
            "_sqlite3",
            (),
            "cannot import _sqlite3: this Python was built without SQLite",
        ),
    ],
)
def test_a_missing_extra_is_reported(
    monkeypatch: pytest.MonkeyPatch,
    missing: str,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    """
    A package that the options need and that is not installed is named in one line.
    """
    monkeypatch.setitem(sys.modules, missing, None)
    assert refuse(*arguments) == message


# The description.


def test_help_describes_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    """
    C{--help} shows each option with its default, and no Markdown.
    """
    with pytest.raises(SystemExit) as raised:
        parse("--help")
    assert not raised.value.code
    shown = " ".join(capsys.readouterr().out.split())
    for option in OPTIONS:
        assert f"--{option.name}{' ' if option.parse is None else '='}" in shown
    assert "Maximum number of connections to the database. [default: 4]" in shown
    assert "[default: same as --listen]" in shown
    assert "Twisted endpoint to serve on." in shown
    assert "`" not in shown
