"""
The examples run as they are.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from urllib.request import HTTPCookieProcessor, build_opener

from .processes import ROOT, run


def test_the_example_of_a_client() -> None:
    """
    A client that knows nothing of tsrv works behind a queue.
    """
    program = ROOT / "examples" / "late_echo.py"
    assert run(sys.executable, program).splitlines() == [
        "asked, and nobody listens: "
        "<QueuingWrapper of EchoClient: initializing, 3 queued>",
        "answered: ['line 0', 'line 1', 'line 2']",
        "the connection is lost: <QueuingWrapper of EchoClient: lost>",
        "answered: line 3",
    ]


def test_the_example_of_sessions(tmp_path: Path) -> None:
    """
    The basket counts the visits of a browser.
    """
    source = (ROOT / "examples" / "basket.py").read_text()
    changed = tmp_path / "basket.py"
    changed.write_text(source.replace("listenTCP(8001", "listenTCP(0"))
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, str(changed)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        browser = build_opener(HTTPCookieProcessor())
        for count in (1, 2, 3):
            answer = browser.open(url, timeout=30).read().decode()
            assert answer == f"{count} visits, {['tea'] * count}\n"
    finally:
        process.kill()
        process.communicate(timeout=30)
