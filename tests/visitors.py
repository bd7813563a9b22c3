"""
Who visits a site in memory, over TLS, and keeps its cookie as a browser does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from treq.testing import StubTreq

from tsrv.sessions import Session

from .support import resultOf
from .websupport import Answer

__all__ = ["Do", "Visitor"]

Do = Callable[[Session], Any]

COOKIE = re.compile(r"__Host-session=([^;]*)(.*)")


class Visitor:
    """
    A browser: it keeps its cookie.

    @ivar cookie: The identifier.
    @ivar attributes: What was said of it.
    """

    def __init__(self, page: Any) -> None:
        """
        @param page: The resource that is asked.
        """
        self.page = page
        self.cookie: str | None = None
        self.attributes = ""

    def begin(
        self,
        do: Do | None = None,
        path: str = "/",
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        data: bytes | None = None,
    ) -> tuple[StubTreq, Any]:
        """
        Ask, but do not wait for the answer.

        @param do: What the page is to do to the session, if it is a L{Page}.
        """
        if do is not None:
            self.page.do = do
        stub: Any = StubTreq(self.page)
        sent = dict(headers or {})
        if self.cookie is not None:
            sent["Cookie"] = f"__Host-session={self.cookie}"
        asking = stub.request(
            method,
            f"https://test{path}",
            headers=sent,
            data=data,
            allow_redirects=False,
        )
        asked = resultOf(asking)
        stub.flush()
        return stub, asked

    def end(self, stub: Any, asked: Any) -> Answer:
        """
        Read the answer.
        """
        stub.flush()
        response = asked.value
        received = {
            name.decode("ascii").lower(): b", ".join(values).decode("ascii")
            for name, values in response.headers.getAllRawHeaders()
        }
        found = COOKIE.match(received.get("set-cookie", ""))
        if found is not None:
            self.cookie = found[1] or None
            self.attributes = found[2]
        return Answer(response.code, received, resultOf(stub.content(response)).value)

    def ask(self, do: Do | None = None, **question: Any) -> Answer:
        """
        Ask, and read the answer.
        """
        return self.end(*self.begin(do, **question))

    def says(self, do: Do) -> Any:
        """
        @return: What the page answers.
        """
        answer = self.ask(do)
        assert answer.status == 200, answer
        return json.loads(answer.body)
