"""
The resource usage of a process, and a file system that is soon full.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

__all__ = ["ResourceUsage", "SmallDisk", "smallDisk"]


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


@pytest.fixture
def smallDisk(tmp_path: Path) -> Iterator[SmallDisk]:
    """
    A disk of 1 MiB.
    """
    directory = tmp_path / "disk"
    directory.mkdir()
    prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
    options = f"size={2**20},mode=1777"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", os.fspath(directory)]
    try:
        subprocess.run([*prefix, *mount], check=True, capture_output=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a file system is not permitted")
    yield SmallDisk(directory)
    # A file that is still open must not keep the file system mounted.
    subprocess.run([*prefix, "umount", "--lazy", directory], check=True)  # noqa: S603


@dataclass(frozen=True)
class ResourceUsage:
    """
    The resources of a process.

    @ivar threads: Number of threads.
    @ivar files: Number of file descriptors, connections included.
    @ivar memory: Resident memory, in bytes.
    """

    threads: int
    files: int
    memory: int

    @classmethod
    def of(cls, pid: int | None = None) -> ResourceUsage:
        process = Path("/proc") / str(pid or os.getpid())
        pages = int((process / "statm").read_text().split()[1])
        return cls(
            threads=len(list((process / "task").iterdir())),
            files=len(list((process / "fd").iterdir())),
            memory=pages * os.sysconf("SC_PAGE_SIZE"),
        )

    def grownFrom(self, earlier: ResourceUsage, memory: int) -> dict[str, int]:
        """
        @param memory: Bytes of memory that do not count as growth.
        @return: The growth of each resource that has grown.
        """
        before = asdict(earlier)
        before["memory"] += memory
        return {
            name: now - before[name]
            for name, now in asdict(self).items()
            if now > before[name]
        }
