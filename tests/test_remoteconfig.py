"""
Settings come from somewhere else, which may be down, slow or wrong.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone, ResponseFailed
from twisted.web.http_headers import Headers
from twisted.web.server import NOT_DONE_YET, Request

from tsrv.asyncmodule import NotInitialized
from tsrv.settings.kept import (
    Kept,
    KeptFile,
)
from tsrv.settings.remote import (
    ConfigurationRefused,
    ConfigurationUnavailable,
    NotConfigured,
    RemoteConfig,
)
from tsrv.web.responses import (
    AsyncResource,
    Response,
)
from tsrv.web.site import Site

from .support import Trouble, resultOf
from .websupport import asynchronous, errorsIn, logged, reservedPort, serving, textsOf

URL = "http://config.test/c"


class Answer:
    """
    What the source answers.
    """

    def __init__(self, code: int, etag: str | None = None) -> None:
        self.code = code
        self.headers = Headers({} if etag is None else {"ETag": [etag]})
        self.original = self
        self.protocol: Any = None

    def deliverBody(self, protocol: Any) -> None:
        self.protocol = protocol
        protocol.makeConnection(None)

    def send(self, data: bytes, reason: Exception | None = None) -> None:
        """
        Send the body, and end.
        """
        self.protocol.dataReceived(data)
        self.protocol.connectionLost(Failure(reason or ResponseDone()))


class Client:
    """
    Asks the source; the test answers.

    @ivar aborted: How often a connection was to be ended.
    """

    def __init__(self) -> None:
        self.aborted = 0
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.answers: list[Deferred[Any]] = []

    def get(self, url: str, **options: Any) -> Deferred[Any]:
        self.asked.append((url, options))
        self.answers.append(Deferred())
        return self.answers[-1]

    def abort(self) -> None:
        self.aborted += 1

    def answer(
        self, settings: object, code: int = 200, etag: str | None = None
    ) -> Answer:
        """
        Answer the latest question.
        """
        answer = Answer(code, etag)
        self.answers[-1].callback(answer)
        if code == 200:
            answer.send(json.dumps(settings).encode())
        return answer

    def refuse(self) -> None:
        """
        Let nobody be there.
        """
        self.answers[-1].errback(error.ConnectionRefusedError())


class Source:
    """
    A configuration whose every step the test decides.
    """

    def __init__(self, clock: Clock, url: str = URL, **options: Any) -> None:
        self.client = Client()
        options.setdefault("inThread", maybeDeferred)
        self.config = RemoteConfig(
            clock, url, client=self.client, random=lambda: 0.5, **options
        )

    def begin(self, settings: object, **options: Any) -> None:
        """
        Be initialised.
        """
        ready = resultOf(self.config.initialize())
        self.client.answer(settings, **options)
        assert ready.value is None

    def value(self, *path: str) -> Any:
        """
        @return: A setting.
        """
        return resultOf(self.config.value(*path)).value


@pytest.fixture
def source(clock: Clock) -> Source:
    """
    A configuration.
    """
    return Source(clock)


# What there is.


def test_settings_are_there_once_they_were_fetched(source: Source) -> None:
    """
    Before there is nothing to be asked; afterwards there is all.
    """
    early = resultOf(source.config.value("a"))
    assert isinstance(early.error, NotInitialized)
    assert not source.config.initialized
    source.begin({"a": {"b": [1]}, "c": "d"})
    assert source.config.initialized
    assert source.client.asked == [
        (
            URL,
            {
                "headers": {"Accept": "application/json"},
                "auth": None,
                "allow_redirects": False,
                "unbuffered": True,
            },
        )
    ]
    assert source.value() == {"a": {"b": [1]}, "c": "d"}
    assert source.value("a", "b") == [1]
    assert resultOf(source.config.text("c")).value == "d"
    assert resultOf(source.config.initialize()).value is None
    assert not source.config.stale
    assert source.config.note() is None
    source.config.close()


def test_what_one_caller_does_to_a_setting_no_other_sees(source: Source) -> None:
    """
    Settings are shared by all that need them.
    """
    source.begin({"a": [1]})
    source.value("a").append(2)
    source.value()["b"] = 1
    assert source.value() == {"a": [1]}
    with pytest.raises(TypeError):
        source.config.settings["a"] = 1  # type: ignore[index]
    source.config.close()


@pytest.mark.parametrize("path", [("b",), ("a", "b"), ("a", "b", "c")])
def test_what_is_not_there_is_named(path: tuple[str, ...], source: Source) -> None:
    """
    Who runs the server learns what to add, and where.
    """
    source.begin({"a": "secret"})
    wrong = resultOf(source.config.value(*path)).error
    assert isinstance(wrong, NotConfigured)
    expected = f"the setting {'.'.join(path)} of http://config.test/c is not there"
    assert str(wrong) == expected
    source.config.close()


def test_a_text_is_a_text(source: Source) -> None:
    """
    What is something else is told without a word of it.
    """
    source.begin({"a": ["secret"]})
    wrong = resultOf(source.config.text("a")).error
    assert isinstance(wrong, ConfigurationRefused)
    assert str(wrong) == "the setting a of http://config.test/c has to be a string"
    source.config.close()


# Where it comes from.


@pytest.mark.parametrize(
    "url",
    [
        "",
        "secret",
        "ftp://h/c",
        "http://",
        "http:///c",
        "http://h:x/",
        "http://h:99999/",
        "http://[/",
        "http://u:secret/x@h/",
        "http://h/\n",
        " http://h/",
    ],
)
def test_what_is_no_url_is_refused(url: str, clock: Clock) -> None:
    """
    Before anything starts, and without a word of it.
    """
    with pytest.raises(ValueError, match="it has to be http://HOST") as caught:
        RemoteConfig(clock, url)
    assert "secret" not in str(caught.value)


def test_no_password_is_shown(clock: Clock) -> None:
    """
    Neither that in front of the host nor one in the query.
    """
    source = Source(clock, "https://us%40er:hu%3Ash@config.test:81/c?token=hush#x")
    assert repr(source.config) == "<RemoteConfig from https://config.test:81/c>"
    failed = resultOf(source.config.initialize())
    ((url, options),) = source.client.asked
    assert url == "https://config.test:81/c?token=hush"
    assert options["auth"] == ("us@er", "hu:sh")
    source.client.refuse()
    assert "hush" not in str(failed.error)
    assert "https://config.test:81/c failed (ConnectionRefused" in str(failed.error)


# What may go wrong with it.


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (500, ConfigurationUnavailable),
        (503, ConfigurationUnavailable),
        (429, ConfigurationUnavailable),
        (204, ConfigurationUnavailable),
        (304, ConfigurationUnavailable),
        (302, ConfigurationRefused),
        (401, ConfigurationRefused),
        (404, ConfigurationRefused),
    ],
)
def test_another_status_is_an_error(
    code: int, kind: type[Exception], source: Source
) -> None:
    """
    Of which it is told whether to ask again will help; what comes with it is
    not read.
    """
    failed = resultOf(source.config.initialize())
    source.client.answer(None, code)
    assert type(failed.error) is kind
    assert f"status {code}" in str(failed.error)
    assert source.client.aborted == 1
    assert not source.config.initialized


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "sent what is no JSON at line 1, column 1"),
        (b'{"a":\nsecret}', "sent what is no JSON at line 2, column 1"),
        (b"[]", "sent JSON that is no object"),
        (b'"secret"', "sent JSON that is no object"),
        (b"\xff", "sent what is no JSON (UnicodeDecodeError)"),
        (b"[" * 100_000, "sent what is no JSON (RecursionError)"),
    ],
    ids=range(6),
)
def test_what_is_no_object_is_an_error(data: bytes, why: str, source: Source) -> None:
    """
    A page that says that all is well must not be taken for settings.
    """
    failed = resultOf(source.config.initialize())
    answer = Answer(200)
    source.client.answers[-1].callback(answer)
    answer.send(data)
    assert isinstance(failed.error, ConfigurationUnavailable)
    assert str(failed.error) == f"http://config.test/c {why}"


def test_it_may_have_so_many_bytes_and_no_more(clock: Clock) -> None:
    """
    What is longer is not read to its end, and not kept.
    """
    for length, passes in ((10, True), (11, False)):
        source = Source(clock, limit=10)
        done = resultOf(source.config.initialize())
        answer = Answer(200)
        source.client.answers[-1].callback(answer)
        answer.protocol.dataReceived(b"{}")
        answer.protocol.dataReceived(b" " * (length - 2))
        answer.protocol.dataReceived(b"")
        answer.protocol.connectionLost(Failure(ResponseDone()))
        assert source.client.aborted == (not passes)
        if passes:
            assert done.value is None
        else:
            assert str(done.error).endswith("sent more than 10 bytes")
        source.config.close()


def test_an_answer_that_breaks_off_is_none(source: Source) -> None:
    """
    Half of the settings may look like all of them.
    """
    failed = resultOf(source.config.initialize())
    answer = Answer(200)
    source.client.answers[-1].callback(answer)
    answer.send(b"{}", ResponseFailed([Failure(error.TCPTimedOutError())]))
    assert str(failed.error) == "http://config.test/c failed (TCPTimedOutError)"


def test_it_may_take_so_long_and_no_longer(source: Source, clock: Clock) -> None:
    """
    One that sends a byte now and then would keep the start for ever.
    """
    failed = resultOf(source.config.initialize())
    clock.advance(6)
    answer = Answer(200)
    source.client.answers[-1].callback(answer)
    clock.advance(3)
    answer.protocol.dataReceived(b"{")
    clock.advance(1)
    assert isinstance(failed.error, ConfigurationUnavailable)
    assert str(failed.error) == "http://config.test/c took more than 10 s"
    assert source.client.aborted == 1
    answer.protocol.connectionLost(Failure(ResponseDone()))


def test_an_agent_that_wraps_what_it_is_told_changes_nothing(
    source: Source, clock: Clock
) -> None:
    """
    It says of a question that was given up that it failed.
    """
    given = Deferred[Any](
        lambda d: d.errback(ResponseFailed([Failure(CancelledError())]))
    )
    source.client.get = lambda *_, **__: given  # type: ignore[method-assign]
    failed = resultOf(source.config.initialize())
    clock.advance(10)
    assert str(failed.error) == "http://config.test/c took more than 10 s"


def test_a_tag_that_cannot_be_sent_back_is_none(clock: Clock) -> None:
    """
    The settings are good all the same.
    """
    for tag in ("\N{SNOWMAN}", "a" * 2000, "a b"):
        source = Source(clock, refresh=100)
        source.begin({}, etag=tag)
        clock.advance(100)
        assert "If-None-Match" not in source.client.asked[1][1]["headers"]
        source.config.close()


def test_a_source_may_refuse_at_once(source: Source) -> None:
    """
    Then nothing is in progress, and it can be tried again.
    """
    source.client.get = lambda *_, **__: fail(error.ConnectError())  # type: ignore[method-assign]
    for _ in range(2):
        refused = resultOf(source.config.initialize())
        assert isinstance(refused.error, ConfigurationUnavailable)
        assert "failed (ConnectError)" in str(refused.error)


def test_it_may_be_given_up(source: Source) -> None:
    """
    By who waits, and by who closes it.
    """
    for give in ("cancel", "close"):
        waiting = source.config.initialize()
        second = resultOf(source.config.initialize())
        assert isinstance(second.error, ConfigurationUnavailable)
        given = resultOf(waiting)
        if give == "cancel":
            waiting.cancel()
        else:
            source.config.close()
        assert isinstance(given.error, CancelledError)
        assert source.client.answers[-1].called
        assert not source.config.initialized
    source.begin({})
    source.config.close()
    source.config.close()


# Again.


def test_it_is_fetched_again(clock: Clock, loggedFailures: list[Any]) -> None:
    """
    Only if it has been changed is it sent again, and only then is it told.
    """
    source = Source(clock, refresh=100)
    told: list[object] = []

    def tell() -> None:
        told.append(source.value("a"))
        raise Trouble("an observer's own")

    source.config.addObserver(tell)
    source.begin({"a": 1}, etag='"1"')
    assert told == []
    clock.advance(99)
    assert len(source.client.asked) == 1
    clock.advance(1)
    assert source.client.asked[1][1]["headers"]["If-None-Match"] == '"1"'
    clock.advance(1)
    source.client.answer(None, 304)
    assert source.config.fetched == 101
    assert told == []
    clock.advance(100)
    with logged() as events:
        source.client.answer({"a": 2}, etag='"2"')
    changed, failed = textsOf(events)
    assert changed.startswith("The settings of http://config.test/c have changed; ")
    assert failed.startswith("An observer of the settings failed")
    assert loggedFailures.pop()["log_failure"].check(Trouble)
    assert told == [2]
    source.config.removeObserver(tell)
    clock.advance(100)
    assert source.client.asked[3][1]["headers"]["If-None-Match"] == '"2"'
    source.client.answer({"a": 3})
    assert (source.value("a"), told) == (3, [2])
    source.config.close()


def test_closing_ends_a_question(clock: Clock) -> None:
    """
    Nothing goes on when all has been closed.
    """
    source = Source(clock, refresh=100)
    source.begin({})
    clock.advance(100)
    source.config.close()
    assert source.client.answers[-1].called
    assert clock.getDelayedCalls() == []


def test_what_cannot_be_fetched_again_stays_as_it_was(clock: Clock) -> None:
    """
    And is called stale, once for each reason, until it is fresh again.
    """
    source = Source(clock, refresh=100)
    source.begin({"a": 1})
    with logged() as events:
        for wait in (100, 5, 10, 20, 40, 80, 100, 100):
            clock.advance(wait)
            source.client.refuse()
            assert source.value("a") == 1
        clock.advance(100)
        source.client.answer(None, 500)
    assert textsOf(events) == [
        "The settings are stale, those of 1970-01-01 00:00Z: http://config.test/c "
        f"{why}; trying again"
        for why in ("failed (ConnectionRefusedError)", "answered with status 500")
    ]
    assert source.config.stale
    note = "stale: the copy of 1970-01-01 00:00Z, as the source cannot be had"
    assert source.config.note() == note
    clock.advance(100)
    with logged() as events:
        source.client.answer({"a": 2})
    fresh, changed = textsOf(events)
    assert fresh == "The settings of http://config.test/c are fresh again"
    assert "have changed" in changed
    assert (source.value("a"), source.config.note()) == (2, None)
    source.config.close()


class Broken:
    """
    A file that breaks.
    """

    def __call__(self, call: Callable[[], Any]) -> Deferred[Any]:
        raise Trouble("no threads")


def test_a_fault_of_its_own_is_told(
    clock: Clock, tmp_path: Path, loggedFailures: list[Any]
) -> None:
    """
    Settings that are never fetched again without a word would be taken for
    fresh ones.
    """
    source = Source(clock, refresh=100)
    source.begin({})
    source.config._file = KeptFile(str(tmp_path / "c"), URL, 1)
    source.config._inThread = Broken()
    clock.advance(100)
    source.client.answer({"a": 1})
    (event,) = loggedFailures
    assert event["log_failure"].check(Trouble)
    loggedFailures.clear()
    source.config.close()


# The copy.


def test_without_a_source_the_copy_is_taken(clock: Clock, tmp_path: Path) -> None:
    """
    A server has to start while the one that configures it is down; it says of
    what day its settings are, and goes on asking.
    """
    path = tmp_path / "copy"
    clock.advance(1_000_000_000)
    source = Source(clock, copy=str(path))
    source.begin({"a": 1}, etag='"1"')
    source.config.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["copy"]
    clock.advance(86_400)

    source = Source(clock, copy=str(path))
    ready = resultOf(source.config.initialize())
    with logged() as events:
        source.client.refuse()
    assert ready.value is None
    (said,) = textsOf(events)
    assert said.startswith("The settings are stale, those of 2001-09-09 01:46Z: ")
    note = "stale: the copy of 2001-09-09 01:46Z, as the source cannot be had"
    assert source.config.note() == note
    assert source.value("a") == 1
    clock.advance(5)
    assert source.client.asked[1][1]["headers"]["If-None-Match"] == '"1"'
    source.client.answer(None, 304)
    assert source.config.note() is None
    assert clock.getDelayedCalls() == []
    source.config.close()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "is damaged"),
        ("{}", "is damaged"),
        ("[]", "is damaged"),
        ("[" * 100_000, "is damaged"),
        ('{"source": "x", "fetched": 1, "etag": 1, "settings": 1}', "another source"),
        ('{"source": SOURCE, "fetched": 1, "etag": 1, "settings": {}}', "is damaged"),
        ('{"source": SOURCE, "fetched": 1, "etag": null, "settings": 1}', "is damaged"),
        ('{"source": SOURCE, "fetched": "", "etag": "", "settings": {}}', "is damaged"),
        (
            '{"source": SOURCE, "fetched": Infinity, "etag": "", "settings": {}}',
            "is damaged",
        ),
        (" " * 9_000_000, "is too long"),
    ],
    ids=range(10),
)
def test_a_copy_that_is_none_is_not_taken(
    content: str, why: str, clock: Clock, tmp_path: Path
) -> None:
    """
    The server rather does not start than with half of its settings, or with
    another's.
    """
    path = tmp_path / "copy"
    KeptFile(str(path), URL, 100).write(Kept({}, None, 1))
    own = json.loads(path.read_text())["source"]
    path.write_text(content.replace("SOURCE", f'"{own}"'))
    source = Source(clock, copy=str(path))
    failed = resultOf(source.config.initialize())
    with logged() as events:
        source.client.refuse()
    assert isinstance(failed.error, ConfigurationUnavailable)
    (said,) = textsOf(events)
    assert said.startswith("The copy of the settings cannot be used: ")
    assert said.endswith(why)


def test_a_copy_that_cannot_be_written_is_no_reason_to_fail(
    clock: Clock, tmp_path: Path
) -> None:
    """
    A disk that is full keeps nobody from starting.
    """
    path = tmp_path / "nowhere" / "copy"
    source = Source(clock, copy=str(path))
    with logged() as events:
        source.begin({"a": 1})
    (said,) = textsOf(events)
    assert said.startswith("The copy of the settings cannot be written: ")
    source.config.close()


def test_a_disk_that_stays_full_is_told_once(clock: Clock, tmp_path: Path) -> None:
    """
    And again when it is full another time.
    """
    directory = tmp_path / "d"
    source = Source(clock, copy=str(directory / "copy"), refresh=100)
    with logged() as events:
        source.begin({"a": 1})
        clock.advance(100)
        source.client.answer({"a": 1})
    assert len(textsOf(events)) == 1
    directory.mkdir()
    clock.advance(100)
    source.client.answer({"a": 1})
    (directory / "copy").unlink()
    directory.rmdir()
    clock.advance(100)
    with logged() as events:
        source.client.answer({"a": 1})
    assert len(textsOf(events)) == 1
    source.config.close()


def test_the_copy_says_when_it_was_still_true(clock: Clock, tmp_path: Path) -> None:
    """
    But not each second.
    """
    path = tmp_path / "copy"
    source = Source(clock, copy=str(path), refresh=20)
    source.begin({"a": 1}, etag='"1"')
    written = []
    for _ in range(6):
        clock.advance(20)
        source.client.answer(None, 304)
        written.append(json.loads(path.read_text())["fetched"])
    assert written == [0, 0, 60, 60, 60, 120]
    source.config.close()


def test_settings_that_are_of_no_use_replace_nothing(
    clock: Clock, tmp_path: Path
) -> None:
    """
    A page that says that there is maintenance is JSON too.
    """

    def check(settings: Mapping[str, Any]) -> str | None:
        return None if "a" in settings else "a has to be there"

    path = tmp_path / "copy"
    source = Source(clock, copy=str(path), refresh=100, check=check)
    failed = resultOf(source.config.initialize())
    source.client.answer({"error": "maintenance"})
    assert isinstance(failed.error, ConfigurationRefused)
    assert str(failed.error).endswith("of no use: a has to be there")
    source.begin({"a": 1})
    clock.advance(100)
    source.client.answer({"error": "maintenance"})
    assert source.config.stale
    assert source.value("a") == 1
    source.config.close()
    # Nor does a copy that another version has written.
    source = Source(clock, copy=str(path), check=lambda settings: "too old")
    failed = resultOf(source.config.initialize())
    source.client.refuse()
    assert isinstance(failed.error, ConfigurationUnavailable)


def test_a_copy_is_replaced_as_a_whole(tmp_path: Path) -> None:
    """
    What is there is the last good one, whatever goes wrong with the next.
    """
    path = tmp_path / "copy"
    file = KeptFile(str(path), URL, 100)
    assert file.read() is None
    file.write(Kept({"a": 1}, None, 1))
    with pytest.raises(TypeError):
        file.write(Kept({"a": object()}, None, 2))
    assert os.listdir(tmp_path) == ["copy"]
    assert file.read() == Kept({"a": 1}, None, 1)


# The real thing.


class Settings(AsyncResource):
    """
    A source.
    """

    isLeaf = True

    def render_GET(self, request: Request) -> Response:
        if request.path == b"/long":
            return Response(b"x" * 2_000_000, b"application/json")
        user = request.getUser().decode()
        return Response(json.dumps({"user": user}).encode(), b"application/json")

    def render(self, request: Request) -> int:
        """
        Send a part, and no more.
        """
        if request.path == b"/slow":
            request.write(b'{"a"')
            return NOT_DONE_YET
        return super().render(request)


class Endless(Protocol):
    """
    A source that answers as it should not.

    @ivar ended: Fires when the client has ended the connection.
    @ivar asked: What the client has sent.
    """

    asked = b""

    def __init__(self, answer: bytes) -> None:
        self.ended: Deferred[None] = Deferred()
        self._answer = answer

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.asked += data
        self.transport.write(self._answer)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended.callback(None)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "took more than 0.3 s"),
        (b"HTTP/1.1 200 OK\r\n\r\n{", "took more than 0.3 s"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 1_100_000, "sent more than 1048576"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b",
            "sent a body that is compressed",
        ),
        (b"HTTP/1.1 503 No\r\n\r\nwait", "answered with status 503"),
    ],
    ids=range(5),
)
@asynchronous
async def test_nothing_is_left_of_an_answer_that_does_not_end(
    answer: bytes, why: str
) -> None:
    """
    A connection for each attempt would be one too many some day.
    """
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    endless = Endless(answer)
    port = reactor.listenTCP(
        0, Factory.forProtocol(lambda: endless), interface="127.0.0.1"
    )
    url = f"http://127.0.0.1:{port.getHost().port}/"
    config = RemoteConfig(reactor, url, timeout=0.3)
    with logged() as events:
        with pytest.raises(ConfigurationUnavailable, match=why):
            await config.initialize()
        await endless.ended
    # Nor does anybody care what a factory is called.
    assert not any("HTTP11ClientFactory" in text for text in textsOf(events))
    await config.close()
    await port.stopListening()


@asynchronous
async def test_over_https_nothing_is_said_in_the_clear() -> None:
    """
    Before it is known who answers, there is no word of the password.
    """
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    endless = Endless(b"HTTP/1.1 200 OK\r\n\r\n{}")
    port = reactor.listenTCP(
        0, Factory.forProtocol(lambda: endless), interface="127.0.0.1"
    )
    url = f"https://ada:hush@localhost:{port.getHost().port}/"
    config = RemoteConfig(reactor, url)
    with pytest.raises(ConfigurationUnavailable, match=r"failed \(\w+\)"):
        await config.initialize()
    await endless.ended
    # What begins a handshake.
    assert endless.asked.startswith(b"\x16\x03")
    assert b"GET" not in endless.asked
    await config.close()
    await port.stopListening()


@asynchronous
async def test_settings_come_from_a_real_server(tmp_path: Path) -> None:
    """
    With the default client, over a real connection, to a real file.
    """
    from twisted.internet import reactor

    async with serving(Site(Settings(), reactor)) as served:
        url = served.url.replace("http://", "http://ada:hush@")
        path = str(tmp_path / "copy")
        config = RemoteConfig(reactor, url, copy=path)
        await config.initialize()
        assert await config.text("user") == "ada"
        await config.close()
        assert "hush" not in (tmp_path / "copy").read_text()
        for bad, why in (("slow", "took more than 0.2 s"), ("long", "sent more than")):
            config = RemoteConfig(reactor, f"{served.url}/{bad}", timeout=0.2)
            with pytest.raises(ConfigurationUnavailable, match=why):
                await config.initialize()
            await config.close()
    with reservedPort() as port, logged() as events:
        config = RemoteConfig(reactor, f"http://127.0.0.1:{port}/")
        with pytest.raises(ConfigurationUnavailable, match="ConnectionRefusedError"):
            await config.initialize()
    assert errorsIn(events) == []
