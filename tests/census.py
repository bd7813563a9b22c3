"""
A count of the resources of a process, and a file system that is soon full.
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

    @ivar directory: Its mount point.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._ballast = directory / "ballast"

    def fill(self) -> None:
        with suppress(OSError), self._ballast.open("ab", buffering=0) as ballast:
            while True:
                ballast.write(bytes(4096))

    def free(self) -> None:
        self._ballast.unlink()


@contextmanager
def _mounted(directory: Path, size: int) -> Iterator[SmallDisk]:
    prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
    options = f"size={size},mode=1777"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", os.fspath(directory)]
    try:
        subprocess.run([*prefix, *mount], check=True, capture_output=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a file system is not permitted")
    try:
        yield SmallDisk(directory)
    finally:
        # Files that are still open do not keep it mounted.
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
    The resources of a process.

    @ivar threads: Number of threads.
    @ivar files: Number of file descriptors.
    @ivar connections: Number of TCP connections, with those that the other side has
        closed, and without listening sockets.
    @ivar memory: Resident memory, in bytes.
    """

    threads: int
    files: int
    connections: int
    memory: int

    @classmethod
    def of(cls, pid: int | None = None) -> Census:
        process = Path("/proc") / str(os.getpid() if pid is None else pid)
        sockets = set()
        for name in ("tcp", "tcp6"):
            with suppress(FileNotFoundError):
                lines = (process / "net" / name).read_text().splitlines()[1:]
                for words in map(str.split, lines):
                    # 0A is the state of a listening socket.
                    if words[3] != "0A":
                        sockets.add(f"socket:[{words[9]}]")
        files = []
        for path in (process / "fd").iterdir():
            # The descriptor of the directory itself is closed by now.
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
        @param memory: Bytes of memory that do not count as growth.
        @return: How much each resource has grown, for those that have.
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
