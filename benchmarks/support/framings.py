"""
Send ambiguous and unusual requests to tsrv, to bare twisted.web and to Node's HTTP
server, and print a table of the requests that they read differently.

Run it in the repository, with Node on the path; without Node, the other two are
compared::

    python -m benchmarks.support.framings

The framings and their expected outcomes are in C{tests/framings.py}. Each framing is
sent as a whole on a connection of its own, followed by a marker request. A cell shows
the outcome: the requests that reached the application, and then C{marker} if the marker
reached it, the status of a refusal, C{closed}, or C{waits} if nothing more came. An
asterisk marks an outcome that is not the expected one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.support.control import QuietSite, serve
from benchmarks.support.processes import MAX_PROCESS_SECONDS, Child
from tests.framings import FRAMINGS, MARKER, Framing
from tests.recorder import Recorder
from tsrv.web.site import Site

__all__: list[str] = []

_SILENCE_SECONDS: Final = 1.0
"""
Time without data after which a server counts as waiting, in seconds.
"""

_MAX_SECONDS: Final = 120
"""
Time limit for all framings at one server, in seconds.
"""

_MAX_CONNECTIONS: Final = 20

_MAX_CELL: Final = 44

_PYTHON = ("tsrv", "twisted.web")

_NODE = r"""
const server = require('http').createServer((request, response) => {
  const parts = [];
  request.on('data', (part) => parts.push(part));
  request.on('end', () => {
    const body = Buffer.concat(parts).toString('latin1');
    const seen = JSON.stringify([request.method, request.url, body]).replace(
      /[^ -~]/g, (char) => '\\u' + char.charCodeAt().toString(16).padStart(4, '0'));
    response.setHeader('Content-Length', seen.length);
    response.setHeader('X-Seen', seen);
    response.end(seen);
  });
});
server.listen(0, '127.0.0.1', () => {
  console.log(JSON.stringify({port: server.address().port}));
});
process.stdin.on('end', () => process.exit()).resume();
setTimeout(() => process.exit(), %d);
"""


@dataclass(frozen=True)
class _Outcome:
    """
    The outcome of a framing at one server.

    @ivar seen: The requests that reached the application, without the marker.
    @ivar end: C{marker}, C{closed}, C{waits}, or the status of the refusal.
    """

    seen: tuple[str, ...]
    end: str

    @property
    def meaning(self) -> tuple[tuple[str, ...], str]:
        """
        The part of the outcome that is compared. A server that stops need not say why.
        """
        return self.seen, self.end if self.end in ("marker", "waits") else "stops"

    def __str__(self) -> str:
        return ", ".join([*self.seen, self.end])


def _shown(method: str, uri: str, body: str) -> str:
    target = ascii(uri)[1:-1]
    return f"{method} {target} {body!a}" if body else f"{method} {target}"


def _expected(framing: Framing) -> _Outcome:
    """
    Return the expected outcome.
    """
    seen = tuple(
        _shown(method, uri, body.decode("latin-1"))
        for method, uri, body in framing.seen
    )
    if framing.refusal:
        return _Outcome(seen, "/".join(map(str, framing.refusal)))
    return _Outcome(seen, "closed" if framing.closes else "marker")


def _outcome(data: bytes, isClosed: bool) -> _Outcome:
    """
    Read responses. A refusal may have no length, and a response to HEAD has no body.
    """
    seen: list[str] = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        start, *lines = head.decode("latin-1").split("\r\n")
        status = start.split(" ")[1]
        fields = {
            name.lower(): value
            for name, _, value in (line.partition(": ") for line in lines)
        }
        if status.startswith("1"):
            continue
        if status != "200":
            return _Outcome(tuple(seen), status)
        if "x-seen" not in fields:
            # The server itself has answered, without the application.
            seen.append(status)
            continue
        method, uri, body = json.loads(fields["x-seen"])
        if method != "HEAD":
            data = data[int(fields["content-length"]) :]
        if (method, uri) == ("GET", "/marker"):
            return _Outcome(tuple(seen), "marker")
        seen.append(_shown(method, uri, body))
    return _Outcome(tuple(seen), "closed" if isClosed else "waits")


async def _send(port: int, framing: Framing) -> _Outcome:
    """
    Send a framing and the marker to a server.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received, isClosed = b"", False
    with closing(writer):
        writer.write(framing.data + MARKER)
        try:
            while b'"/marker"' not in received and not isClosed:
                data = await asyncio.wait_for(reader.read(2**16), _SILENCE_SECONDS)
                received += data
                isClosed = not data
        except TimeoutError:
            pass
        except ConnectionError:
            isClosed = True
        writer.transport.abort()
    return _outcome(received, isClosed)


async def _sendAll(port: int) -> list[_Outcome]:
    """
    Send all framings to a server.
    """
    room = asyncio.Semaphore(_MAX_CONNECTIONS)

    async def send(framing: Framing) -> _Outcome:
        async with room:
            return await _send(port, framing)

    async with asyncio.timeout(_MAX_SECONDS):
        return await asyncio.gather(*map(send, FRAMINGS.values()))


@contextmanager
def _node(program: str) -> Iterator[int]:
    """
    Run a server of Node.

    @return: Its port.
    """
    process = subprocess.Popen(  # noqa: S603
        [program, "-e", _NODE % (MAX_PROCESS_SECONDS * 1000)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["port"]
    finally:
        process.kill()
        process.communicate()


def _table(rows: Sequence[Sequence[str]]) -> str:
    """
    Return rows as a table; the first one has the names of the columns.
    """
    cells = [
        [
            cell if len(cell) <= _MAX_CELL else cell[: _MAX_CELL - 3] + "..."
            for cell in row
        ]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _compare(showAll: bool) -> None:
    """
    Send the framings to all servers, and print the table.
    """
    outcomes: dict[str, list[_Outcome]] = {}
    with ExitStack() as stack:
        ports = {}
        for kind in _PYTHON:
            child = stack.enter_context(Child("benchmarks.support.framings", kind))
            ports[kind] = child.request("port")["port"]
        program = shutil.which("node")
        if program is not None:
            ports["Node"] = stack.enter_context(_node(program))
        else:
            print("Cannot find `node` on the path: no comparison with Node.\n")
        for kind, port in ports.items():
            outcomes[kind] = asyncio.run(_sendAll(port))
    rows = [["framing", "expected", *outcomes]]
    unexpected = dict.fromkeys(outcomes, 0)
    for number, (name, framing) in enumerate(FRAMINGS.items()):
        expected = _expected(framing)
        row, isDifferent = [name, str(expected)], False
        for kind, found in outcomes.items():
            differs = found[number].meaning != expected.meaning
            unexpected[kind] += differs
            isDifferent |= differs
            row.append(f"* {found[number]}" if differs else str(found[number]))
        if isDifferent or showAll:
            rows.append(row)
    print(_table(rows))
    counts = ", ".join(f"{kind} {count}" for kind, count in unexpected.items())
    print(f"\nNot as expected, of {len(FRAMINGS)} framings: {counts}.")


def _serve(kind: str) -> None:
    """
    Serve in a process of its own, until the standard input is closed.
    """
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    site = Site(Recorder(), reactor) if kind == "tsrv" else QuietSite(Recorder())
    serve(reactor, site, dict)


def _main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.support.framings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--all", action="store_true", help="print every framing")
    parser.add_argument("server", nargs="?", choices=_PYTHON, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.server is not None:
        _serve(chosen.server)
    else:
        with suppress(BrokenPipeError):
            _compare(chosen.all)


if __name__ == "__main__":
    _main()
