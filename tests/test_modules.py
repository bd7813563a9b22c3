"""
Operators can pause, resume and reset modules.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.web.server import Site as TwistedSite

from tsrv.web.modules import Modules
from tsrv.web.operations import Operations
from tsrv.web.site import Site

from .operated import Program
from .operated import program as program
from .support import Refused, resultOf
from .websupport import Answer, Peer, ask, logged, textsOf

CURL = {"Sec-Fetch-Site": "none"}

BROWSER = {"Accept": "text/html", "Origin": "http://test"}

ODD = ["a/b", "ü ?#%&", "pause", "<b>"]


def post(program: Program, path: str, headers: Any = CURL) -> Answer:
    """
    Make a request to the pages for operators.
    """
    page = Operations(program.startup, program.clock, operatorsOnly=True)
    return ask(page, f"/modules/{path}", "POST", headers)


def begin(program: Program, path: str, headers: Any = CURL) -> Peer:
    """
    Begin a request whose response comes later.
    """
    resource = Modules(program.startup, program.clock)
    peer = Peer(Site(resource, program.clock), program.clock)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"POST /{path} HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n{lines}\r\n"
    peer.send(head.encode())
    return peer


def states(answer: Answer) -> tuple[int, str, bool]:
    """
    @return: The status, and the state of the module.
    """
    assert answer.headers["content-type"] == "application/json"
    members = json.loads(answer.body)
    return answer.status, members["status"], members["paused"]


def error(answer: Answer) -> tuple[int, str]:
    """
    @return: The status, and the message of the error.
    """
    return answer.status, json.loads(answer.body)["error"]


@pytest.fixture
def ready(program: Program) -> Program:
    """
    A program whose module is ready.
    """
    program.add("database")
    program.start()
    program.succeed("database")
    return program


def test_a_server_is_restarted_without_a_failed_call(ready: Program) -> None:
    """
    An operator pauses the module, resets it, and resumes it; calls wait meanwhile, and
    none fails.
    """
    proxy = ready.startup.wrappers["database"].proxy
    assert states(post(ready, "database/pause")) == (200, "paused", True)
    result = resultOf(proxy.read(1))
    assert states(post(ready, "database/reset")) == (202, "lost", True)
    ready.modules["database"].closings[-1].callback(None)
    ready.succeed("database")
    answer = post(ready, "database/resume")
    assert states(answer) == (200, "ready", False)
    assert json.loads(answer.body) == {
        "module": "database",
        "status": "ready",
        "paused": False,
        "queued": 0,
        "inProgress": 1,
    }
    ready.modules["database"].answers[-1].callback("done")
    assert result.value == "done"


def test_pausing_waits_for_calls_in_progress(ready: Program) -> None:
    """
    The response follows when no call is in progress, or after the time limit. The
    module is paused in either case, and pausing it again waits longer.
    """
    resultOf(ready.startup.wrappers["database"].proxy.read(1))
    peer = begin(ready, "database/pause")
    ready.clock.advance(9.9)
    assert peer.answers == []
    ready.clock.advance(0.1)
    (answer,) = peer.answers
    assert states(answer) == (202, "paused", True)
    assert json.loads(answer.body)["inProgress"] == 1
    again = begin(ready, "database/pause?wait=300")
    short = begin(ready, "database/pause?wait=0")
    assert [each.status for each in short.answers] == [202]
    ready.clock.advance(299)
    ready.modules["database"].answers[-1].callback("done")
    assert [states(each) for each in again.answers] == [(200, "paused", True)]


@pytest.mark.parametrize("wait", ["-1", "301", "nan", "long", "1&wait=2"])
def test_an_invalid_time_pauses_nothing(wait: str, ready: Program) -> None:
    """
    A pause with an invalid waiting time is refused, and not logged as an action.
    """
    with logged() as events:
        for headers in (CURL, BROWSER):
            (answer,) = begin(ready, f"database/pause?wait={wait}", headers).answers
            assert answer.status == 400
    assert textsOf(events) == []
    assert not ready.startup.wrappers["database"].paused


def test_a_client_that_disconnects_does_not_end_the_pause(ready: Program) -> None:
    """
    The module is paused at once, also if the client disconnects. If it is resumed
    before it is idle, the response says so.
    """
    resultOf(ready.startup.wrappers["database"].proxy.read(1))
    gone, waiting = begin(ready, "database/pause"), begin(ready, "database/pause")
    gone.leave()
    assert ready.startup.wrappers["database"].paused
    assert states(post(ready, "database/resume")) == (200, "ready", False)
    (answer,) = waiting.answers
    assert error(answer) == (409, "database was resumed meanwhile")


def test_a_module_that_cannot_tell_whether_it_is_idle(program: Program) -> None:
    """
    If the module cannot tell whether it is idle, its error is logged as a warning, and
    the response says that calls may be in progress.
    """

    def whenIdle() -> Deferred[None]:
        raise Refused("no idea")

    program.add("database", whenIdle=whenIdle)
    program.start()
    program.succeed("database")
    with logged() as events:
        assert states(post(program, "database/pause")) == (202, "paused", True)
    text = "database: cannot determine whether calls are in progress (Refused: no idea)"
    assert text in textsOf(events)


def test_an_operator_is_one_holder(ready: Program) -> None:
    """
    The operator is one holder: pausing or resuming again changes nothing. A module that
    the program itself holds stays paused, and the response says so.
    """
    for _ in range(2):
        assert states(post(ready, "database/pause")) == (200, "paused", True)
    for _ in range(2):
        assert states(post(ready, "database/resume")) == (200, "ready", False)
    ready.pause("database", "Alice")
    post(ready, "database/pause")
    message = "database is still paused: the program itself holds its calls"
    assert error(post(ready, "database/resume")) == (409, message)
    ready.resume("database", "Alice")
    assert not ready.startup.wrappers["database"].paused


def test_what_is_not_possible_is_refused(program: Program) -> None:
    """
    A module that was never started cannot be reset, and a closed one cannot be paused;
    nothing changes.
    """
    program.add("database")
    message = "Cannot reset database: it is new"
    assert error(post(program, "database/reset")) == (409, message)
    program.start()
    program.fail("database", Refused)
    message = "Cannot reset database: it is failed"
    assert error(post(program, "database/reset")) == (409, message)
    program.stop()
    message = "Cannot pause database: it is closed"
    assert error(post(program, "database/pause")) == (409, message)


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("databaze/pause", 404, "there is no module 'databaze'; did you mean 'data"),
        ("%FF/pause", 404, ""),
        ("database/stop", 404, "Route not found"),
        ("database", 404, "Route not found"),
        ("database/pause/", 404, "Route not found"),
        ("", 404, "Route not found"),
    ],
)
def test_unknown_paths(path: str, status: int, message: str, ready: Program) -> None:
    """
    An unknown module or action gets a 404.
    """
    answer = post(ready, path)
    assert answer.status == status
    assert message in error(answer)[1]
    if message == "Route not found":
        assert post(ready, path, {**CURL, "Accept": "text/plain"}).body == b"Not found"


def test_only_post_has_an_effect(ready: Program) -> None:
    """
    Only POST has an effect.
    """
    page = Operations(ready.startup, ready.clock, operatorsOnly=True)
    for method in ("GET", "HEAD", "PUT"):
        answer = ask(page, "/modules/database/pause", method, CURL)
        assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert not ready.startup.wrappers["database"].paused


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://elsewhere"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://test"}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://test"}, 200),
        (CURL, 200),
    ],
)
def test_other_sites_are_refused(headers: Any, status: int, ready: Program) -> None:
    """
    A page of another site cannot pause a module through an operator's browser.
    """
    answer = post(ready, "database/pause", headers)
    assert answer.status == status
    assert (b"a script sends Sec-Fetch-Site: none" in answer.body) is (status == 403)
    assert ready.startup.wrappers["database"].paused is (status == 200)


def test_the_public_cannot_do_anything(ready: Program) -> None:
    """
    Only a site for operators alone has the actions and their buttons.
    """
    page = Operations(ready.startup, ready.clock)
    assert ask(page, "/modules/database/pause", "POST", CURL).status == 404
    assert b"<button" not in ask(page).body


@pytest.mark.parametrize("name", ODD)
def test_names_may_be_any_text(name: str, program: Program) -> None:
    """
    The buttons work for any name of a module, on any site.
    """
    program.add(name)
    program.start()
    page = Operations(program.startup, program.clock, operatorsOnly=True)
    for action in ("pause", "resume", "reset"):
        (path,) = re.findall(f'formaction="([^"]*/{action})"', ask(page).body.decode())
        peer = Peer(TwistedSite(page, reactor=program.clock), program.clock)
        lines = "Host: test\r\nSec-Fetch-Site: same-origin\r\nAccept: text/html"
        peer.send(f"POST /{path} HTTP/1.1\r\n{lines}\r\n\r\n".encode())
        (answer,) = peer.answers
        assert (answer.status, answer.headers["location"]) == (303, "../../")
        peer.leave()
        page = Operations(program.startup, program.clock, operatorsOnly=True)
    assert program.startup.wrappers[name].lastError is not None


def test_browsers_return_to_the_page(ready: Program) -> None:
    """
    A browser does not wait. It gets the page with the calls in progress, or a page with
    the error.
    """
    resultOf(ready.startup.wrappers["database"].proxy.read(1))
    (answer,) = begin(ready, "database/pause", BROWSER).answers
    assert (answer.status, answer.headers["location"]) == (303, "../../")
    answer = post(ready, "databaze/pause", BROWSER)
    assert (answer.status, b"there is no module" in answer.body) == (404, True)


def test_the_page_shows_an_action_at_once(ready: Program) -> None:
    """
    After an action, a page that was rendered before is not shown.
    """
    page = Operations(ready.startup, ready.clock, operatorsOnly=True)
    assert b"Pause database" in ask(page).body
    ask(page, "/modules/database/pause", "POST", CURL)
    assert b"calls held by operator" in ask(page).body


def test_each_action_is_logged_with_its_client(ready: Program) -> None:
    """
    Each action is logged with the address of the client.
    """
    with logged() as events:
        for action in ("pause", "resume", "reset"):
            post(ready, f"database/{action}")
    assert textsOf(events) == [
        "database: pause requested by 192.0.2.1",
        "database: paused by operator",
        "database: resume requested by 192.0.2.1",
        "database: resumed after 0.0 s, 0 calls queued",
        "database: reset requested by 192.0.2.1",
        "database: reset (by operator)",
    ]
