"""
Each event becomes one line of valid JSON, and the log keeps its destination.
"""

from __future__ import annotations

import json
import os
import signal
from enum import IntEnum
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.endpoints import clientFromString, connectProtocol
from twisted.logger import (
    LogEvent,
    Logger,
    LogLevel,
    LogPublisher,
    textFileLogObserver,
)
from twisted.python import log as legacyLog
from twisted.python.failure import Failure

from tsrv.server.logformat import (
    chooseFormat,
    formatAsJSON,
    jsonObserver,
    makeTwistdObserver,
)
from tsrv.server.options import Options
from tsrv.web.requestid import addRequestId, withRequestId

from .processes import running
from .support import Trouble
from .websupport import Wire, asynchronous, reservedPort


def parsed(line: str | None) -> dict[str, Any]:
    """
    @return: The object on a line, which every JSON parser accepts.
    """
    assert line is not None
    assert line.isascii()
    assert line.endswith("\n")
    assert line.count("\n") == 1

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(constant)

    value: dict[str, Any] = json.loads(line, parse_constant=refuse)
    # Half of a surrogate pair cannot be encoded.
    json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def logged(text: str, **fields: object) -> dict[str, Any]:
    """
    @return: The line of an event, as an object.
    """
    lines: list[str | None] = []
    log = Logger("shop", observer=lambda event: lines.append(formatAsJSON(event)))  # type: ignore[arg-type]
    log.warn(text, **fields)
    (line,) = lines
    return parsed(line)


def test_a_line_has_what_an_operator_looks_for() -> None:
    """
    Time, level, namespace and text come first, then request and module, then the other
    fields with their types.
    """
    line = logged(
        "{module}: lost {count} of {items}\nand more",
        count=2,
        items=["tea", 0.5, None, True],
        module="stock",
        requestId="mine",
        more={"a": {"b": (1, 2)}},
    )
    assert list(line)[:6] == [
        *("time", "level", "namespace", "message", "requestId", "module")
    ]
    assert line.pop("time")[10] == "T"
    assert line == {
        "level": "warn",
        "namespace": "shop",
        "message": "stock: lost 2 of ['tea', 0.5, None, True]\nand more",
        "requestId": "mine",
        "module": "stock",
        "count": 2,
        "items": ["tea", 0.5, None, True],
        "more": {"a": {"b": [1, 2]}},
    }


def test_the_time_is_that_of_the_event_with_its_zone() -> None:
    """
    The time is the time of the event, with its zone, so that times of several machines
    can be compared.
    """
    event: LogEvent = {"log_format": "x", "log_time": 1_000_000_000.25}
    line = parsed(formatAsJSON(event))
    assert line["time"] == "2001-09-09T01:46:40.250000+00:00"
    for time in (None, "soon", float("nan"), 1e300, -1):
        assert parsed(formatAsJSON({**event, "log_time": time}))["time"] is None


def test_the_id_of_a_request_is_in_its_lines() -> None:
    """
    The id of the request in the context becomes a field, like an id of the event
    itself.
    """
    event: LogEvent = {"log_format": "x", "log_level": LogLevel.info}
    with withRequestId("mine"):
        addRequestId(event)
    assert parsed(formatAsJSON(event))["requestId"] == "mine"


class Evil:
    """
    An object that fails in every way.
    """

    def __str__(self) -> str:
        raise Trouble("no text")

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        raise SystemExit(1)


class Number(IntEnum):
    """
    An enumeration.
    """

    ONE = 1


Text = type("Text", (str,), {"encode": None, "__str__": lambda self: self})

LOOP: list[object] = []
LOOP.append(LOOP)

DEEP: list[object] = []
for _ in range(5_000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (b"caf\xc3\xa9 \xff", "caf\u00e9 \\xff"),
        ("\ud800 \u2028\x00", "\\ud800 \u2028\x00"),
        (Text("own"), "own"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (2**63, "9223372036854775808"),
        (10**5_000, "<int without text>"),
        (Number.ONE, 1),
        (LogLevel.warn, "<LogLevel=warn>"),
        (ValueError("why"), "ValueError: why"),
        (Failure(ValueError("why")), "ValueError: why"),
        (Evil(), "<Evil without text>"),
        (
            {Evil(): b"x", 1: 2, None: 3},
            {"<Evil without text>": "x", "1": 2, "None": 3},
        ),
        (frozenset([1]), [1]),
        (LOOP, [[[[["[[...]]"]]]]]),
        ("x" * 3_000, "x" * 2_000),
        (object, "<class 'object'>"),
    ],
    ids=range(17),
)
def test_any_value_can_be_written(value: object, written: object) -> None:
    """
    A value that JSON cannot express becomes text of bounded length.
    """
    assert logged("x", value=value)["value"] == written


def test_lines_are_bounded() -> None:
    """
    Very deep and very long values are truncated.
    """
    assert logged("x", value=DEEP, other=1)["other"] == 1
    wide = logged("x", value=[[[0] * 100] * 100] * 100)["value"]
    assert len(json.dumps(wide)) < 3_000


@pytest.mark.parametrize("name", ["time", "level", "namespace", "message"])
def test_a_field_does_not_replace_what_every_line_has(name: str) -> None:
    """
    A field that has the name of a standard field is renamed.
    """
    line = parsed(formatAsJSON({"log_format": "text", name: "forged"}))
    assert line[f"{name}_"] == "forged"
    assert line[name] != "forged"


def test_a_failure_is_written_with_its_traceback() -> None:
    """
    The error and its traceback are fields of the line.
    """
    lines: list[str | None] = []
    log = Logger("shop", observer=lambda event: lines.append(formatAsJSON(event)))  # type: ignore[arg-type]
    try:
        raise Trouble("caf\u00e9\n\ud800")
    except Trouble:
        log.failure("Cannot {do}", do="serve")
    line = parsed(lines[0])
    assert line["message"] == "Cannot serve"
    assert line["level"] == "critical"
    assert line["error"] == "Trouble: caf\u00e9\n\\ud800"
    assert "test_a_failure_is_written" in line["traceback"]


def test_an_event_that_cannot_be_formatted_says_so() -> None:
    """
    If an event cannot be formatted, the line says so and has the remaining fields.
    """
    assert "nable to format" in logged("{value}", value=Evil())["message"]
    broken = Failure(Trouble("no"))
    vars(broken)["getTraceback"] = Evil().__str__
    event = {"log_format": "text", "log_failure": broken, "log_namespace": "shop"}
    line = parsed(formatAsJSON(event))
    assert line["formatError"] == "Trouble"
    assert (line["message"], line["namespace"]) == ("text", "shop")


def test_an_event_without_text_has_no_line() -> None:
    """
    An event without text has no line, as in Twisted's text log.
    """
    assert formatAsJSON({"log_format": None, "count": 1}) is None
    assert formatAsJSON({}) is None


def test_events_of_the_old_log_have_no_fields_of_their_own_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    Events of the old log, which Twisted itself still uses in places, have no internal
    fields.
    """
    events: list[LogEvent] = []
    publisher = legacyLog.LogPublisher(publishPublisher=LogPublisher(events.append))  # type: ignore[arg-type]
    publisher.msg("old", "text", count=1)
    publisher.msg(format="%(count)d", count=2, isError=False)
    first, second = (parsed(formatAsJSON(event)) for event in events)
    assert first["message"] == "old text"
    assert second["message"] == "2"
    for line in (first, second):
        assert set(line) == {"time", "level", "namespace", "message", "count"}


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.text(st.characters(categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
)


@given(st.text(), st.dictionaries(st.text(), VALUES))
def test_any_event_is_one_line_of_json(text: str, fields: dict[str, Any]) -> None:
    """
    Every event becomes one line of valid JSON.
    """
    event = {"log_level": LogLevel.info, **fields, "log_format": text or "x"}
    assert parsed(formatAsJSON(event))["level"] == "info"


def test_a_file_may_take_text_or_bytes() -> None:
    """
    A file takes every line, even if its encoding is ASCII or it takes bytes.
    """
    text, raw, ascii_ = StringIO(), BytesIO(), BytesIO()
    for file in (text, raw, TextIOWrapper(ascii_, "ascii", write_through=True)):
        jsonObserver(file)({"log_format": "\u00e9"})
    assert text.getvalue().encode() == raw.getvalue() == ascii_.getvalue()
    assert parsed(text.getvalue())["message"] == "\u00e9"


# The programs.


def test_a_program_is_configured_to_write_json() -> None:
    """
    C{twist} has its own option for the format; C{twistd} takes the name of a logger.
    The format of a program is replaced only on request.
    """
    twist: dict[str, Any] = {"fileLogObserverFactory": None}
    chooseFormat(twist, "json")
    assert twist["fileLogObserverFactory"] is jsonObserver
    chooseFormat(twist, "text")
    assert twist["fileLogObserverFactory"] is textFileLogObserver
    twistd: dict[str, Any] = {"logger": None}
    chooseFormat(twistd, "text")
    assert twistd == {"logger": None}
    chooseFormat(twistd, "json")
    assert twistd["logger"] == "tsrv.server.logformat.makeTwistdObserver"


@pytest.mark.parametrize("other", ["logger", "syslog"])
def test_another_way_of_logging_is_not_replaced(other: str) -> None:
    """
    Two options that contradict each other are refused in one line.
    """
    options = Options({})
    vars(options)["parent"] = {other: "mine"}
    with pytest.raises(SystemExit) as raised:
        options.parseOptions(["--log-format=json"])
    message = "tsrv: --log-format: cannot be used with --logger or --syslog of twistd"
    assert str(raised.value.code).startswith(message)


def test_the_log_of_a_process_in_the_foreground_is_its_output(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """
    In the foreground the log is the output of the process; a daemon has no output.
    """
    for path in ("-", "", None):
        chooseFormat({"logfile": path, "nodaemon": True}, "json")
        makeTwistdObserver()({"log_format": "text"})
        assert parsed(capsys.readouterr().out)["message"] == "text"
    chooseFormat({"logfile": "-", "nodaemon": False}, "json")
    with pytest.raises(SystemExit, match="a daemon cannot log to stdout"):
        makeTwistdObserver()


@pytest.mark.parametrize("program", ["twistd", "twist"])
@asynchronous
async def test_all_that_a_server_writes_is_json(program: str, tmp_path: Path) -> None:
    """
    All lines of a server are JSON, from the first to the last, including lines of
    Twisted and warnings.
    """
    words = ["-n"] if program == "twistd" else []
    with reservedPort() as port:
        words += ["tsrv", f"--listen=tcp:{port}:interface=127.0.0.1", "--delay=0.1"]
        words.append("--log-format=json")
        async with running(tmp_path, *words, program=program) as process:
            await process.whenWritten('"message": "Async module initialized"')
            process.terminate()
            assert await process.ended == 0
    lines = [parsed(line) for line in process.output.splitlines(keepends=True)]
    assert {"Started", "Stopped"} <= {line["message"] for line in lines}
    assert "log_legacy" in {line["namespace"] for line in lines}


@asynchronous
async def test_the_log_of_a_daemon_is_rotated(tmp_path: Path) -> None:
    """
    The log of a daemon is in its file, and SIGUSR1 rotates it, as without the option.
    """
    from twisted.internet import reactor

    with reservedPort() as port:
        words = ["tsrv", f"--listen=tcp:{port}:interface=127.0.0.1", "--delay=0.1"]
        words.append("--log-format=json")
        async with running(tmp_path, *words) as process:
            await process.exited
            pid = int((tmp_path / "twistd.pid").read_text())
            # The server handles signals once it responds.
            endpoint = clientFromString(reactor, f"tcp:127.0.0.1:{port}")
            wire = await connectProtocol(endpoint, Wire())
            wire.send(b"GET /say HTTP/1.0\r\nHost: h\r\n\r\n")
            await wire.whenClosed()
            os.kill(pid, signal.SIGUSR1)
            os.kill(pid, signal.SIGTERM)
            assert await process.ended == 0
    first, second = (
        [parsed(line)["message"] for line in text.splitlines(keepends=True)]
        for text in map(
            Path.read_text, (tmp_path / "twistd.log.1", tmp_path / "twistd.log")
        )
    )
    assert "Started" in first
    assert "Stopped" in second
