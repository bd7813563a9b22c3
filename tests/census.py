"""
A count of what a process holds, and a disk that is soon full.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

__all__ = ["Census", "SmallDisk", "smallDisk"]


class SmallDisk:
    """
    A file system that is soon full.

    @ivar directory: Where it is.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._ballast = directory / "ballast"

    def fill(self) -> None:
        """
        Take all the room that is left.
        """
        with suppress(OSError), self._ballast.open("ab", buffering=0) as ballast:
            while True:
                ballast.write(bytes(4096))

    def free(self) -> None:
        """
        Give back what L{fill} took.
        """
        self._ballast.unlink()


@contextmanager
def _mounted(directory: Path, size: int) -> Iterator[SmallDisk]:
    prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
    options = f"size={size},mode=1777"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", os.fspath(directory)]
    try:
        subprocess.run([*prefix, *mount], check=True, capture_output=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("it is not allowed to mount a file system")
    try:
        yield SmallDisk(directory)
    finally:
        # Whatever is still open there is no reason to keep it.
        subprocess.run([*prefix, "umount", "--lazy", directory], check=True)  # noqa: S603


@pytest.fixture
def smallDisk(tmp_path: Path) -> Iterator[SmallDisk]:
    """
    A disk of 1 MiB.
    """
    directory = tmp_path / "disk"
    directory.mkdir()
    with _mounted(directory, 2**20) as disk:
        yield disk


@dataclass(frozen=True)
class Census:
    """
    What a process holds.

    @ivar threads: Its threads.
    @ivar files: Its file descriptors.
    @ivar connections: The TCP connections among them, those too that the other
        side has closed, but not the ports that it listens on.
    @ivar memory: Its resident memory, in bytes.
    """

    threads: int
    files: int
    connections: int
    memory: int

    @classmethod
    def of(cls, pid: int | None = None) -> Census:
        """
        @param pid: The process, if it is not this one.
        """
        process = Path("/proc") / str(os.getpid() if pid is None else pid)
        sockets = set()
        for name in ("tcp", "tcp6"):
            with suppress(FileNotFoundError):
                lines = (process / "net" / name).read_text().splitlines()[1:]
                for words in map(str.split, lines):
                    if words[3] != _LISTENING:
                        sockets.add(f"socket:[{words[9]}]")
        files = []
        for path in (process / "fd").iterdir():
            # That by which they are counted is gone by now.
            with suppress(FileNotFoundError):
                files.append(os.readlink(path))
        return cls(
            threads=len(list((process / "task").iterdir())),
            files=len(files),
            connections=sum(file in sockets for file in files),
            memory=int((process / "statm").read_text().split()[1])
            * os.sysconf("SC_PAGE_SIZE"),
        )

    def grownFrom(self, earlier: Census, memory: int) -> dict[str, int]:
        """
        @param memory: How many bytes of memory more are no growth.
        @return: What there is more of than there was, and how much more; empty
            if there is nothing.
        """
        grown = {
            name: getattr(self, name) - getattr(earlier, name)
            for name in ("threads", "files", "connections", "memory")
        }
        return {
            name: more
            for name, more in grown.items()
            if more > (memory if name == "memory" else 0)
        }


_LISTENING = "0A"
"""
The state of such a socket in C{/proc/net/tcp}.
"""
