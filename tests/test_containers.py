"""
The container file and the manifests of Kubernetes fit the server and each other.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from twisted.scripts.twistd import ServerOptions  # type: ignore[attr-defined]

from .processes import ROOT, Process, spawned
from .websupport import asynchronous, reservedPort

CLOSING_SECONDS = 20
"""
Time that modules may take to close, in seconds, after the drain.
"""


def instructions() -> list[tuple[str, str]]:
    """
    @return: The instructions of the container file.
    """
    text = (ROOT / "examples" / "container" / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line and line[0] != "#"]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


IMAGE = dict(instructions())
"""
The last instruction of each kind.
"""

MANIFESTS: dict[str, Any] = {
    each["kind"]: each
    for each in yaml.safe_load_all(
        (ROOT / "examples" / "kubernetes" / "tsrv.yaml").read_text()
    )
}

POD: dict[str, Any] = MANIFESTS["Deployment"]["spec"]["template"]

(CONTAINER,) = POD["spec"]["containers"]


def command(instruction: str) -> list[str]:
    """
    @return: The words of a command, which is a list and not a line for a shell.
    """
    words: list[str] = json.loads(instruction[instruction.index("[") :])
    return [
        os.path.join(os.path.dirname(sys.executable), word.rpartition("/")[2])
        if word.startswith("/opt/tsrv/bin/")
        else word
        for word in words
    ]


def optionsOf(words: list[str]) -> Any:
    """
    @return: What the server understands of a command line.
    """
    options = ServerOptions()
    options.parseOptions(words)
    assert options["nodaemon"]
    assert options["pidfile"] == ""
    assert options.subCommand == "tsrv"
    return options.subOptions


# The container.


def test_the_image_is_built_from_what_exists() -> None:
    """
    The files that are copied exist.
    """
    for word, rest in instructions():
        if word == "COPY" and not rest.startswith("--from=build "):
            *sources, _ = rest.split()
            assert all((ROOT / source).exists() for source in sources)


def test_the_server_is_not_root() -> None:
    """
    The user is a number, the same for the image and for Kubernetes, and the image makes
    its directory.
    """
    user, _, group = IMAGE["USER"].partition(":")
    made = re.search(r"--uid (\d+) --home-dir (\S+) --create-home", IMAGE["RUN"])
    assert made is not None
    assert made.groups() == (user, IMAGE["WORKDIR"])
    context = POD["spec"]["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"]) == (int(user), int(group))
    assert user == group != "0"


def insideOf(transport: Any) -> int:
    """
    @return: The number that process 1 of a namespace has outside of it.
    """
    (pid,) = (
        Path(f"/proc/{transport.pid}/task/{transport.pid}/children").read_text().split()
    )
    return int(pid)


async def stopped(process: Process) -> int:
    """
    Stop process 1 of a namespace.

    @return: Its exit status.
    """
    os.kill(insideOf(process.transport), SIGTERM)
    return await process.ended


@pytest.fixture
def alone() -> list[str]:
    """
    The arguments with which Python runs a command as process 1.
    """
    words = ["unshare", "--pid", "--fork", "--kill-child"]
    try:
        subprocess.run([*words, "true"], check=True, capture_output=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("unshare cannot make a process 1")
    return ["-c", "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])", *words]


@asynchronous
async def test_the_server_is_process_1(tmp_path: Path, alone: list[str]) -> None:
    """
    A container that was killed starts again in the same directory, is healthy while the
    server runs, and ends with status 0 on SIGTERM.
    """
    with reservedPort() as port:
        words = [*command(IMAGE["ENTRYPOINT"]), *command(IMAGE["CMD"]), "--delay=0"]
        words = [word.replace(":8000:", f":{port}:") for word in words]
        check = [
            word.replace(":8000/", f":{port}/")
            for word in command(IMAGE["HEALTHCHECK"])
        ]
        async with spawned(tmp_path, *alone, *words) as process:
            await process.whenWritten("Async module initialized")
            os.kill(insideOf(process.transport), SIGKILL)
            assert await process.ended != 0
        async with spawned(tmp_path, *alone, *words) as process:
            await process.whenWritten("Async module initialized")
            healthy = subprocess.run(check, check=False)  # noqa: S603
            assert healthy.returncode == 0
            assert await stopped(process) == 0
            assert process.output.endswith("Server Shut Down.\n")
        gone = subprocess.run(check, check=False, capture_output=True)  # noqa: S603
        assert gone.returncode == 1


@asynchronous
async def test_a_pid_file_keeps_process_1_from_starting_again(
    tmp_path: Path, alone: list[str]
) -> None:
    """
    Without C{--pidfile=} the server that was killed stands in the way of the next.
    """
    with reservedPort() as port:
        words = [word for word in command(IMAGE["ENTRYPOINT"]) if word != "--pidfile="]
        words += [f"--listen=tcp:{port}", "--delay=0"]
        async with spawned(tmp_path, *alone, *words) as process:
            await process.whenWritten("Async module initialized")
            os.kill(insideOf(process.transport), SIGKILL)
            await process.ended
        async with spawned(tmp_path, *alone, *words) as process:
            assert await process.ended == 1
            assert "Another twistd server is running" in process.errors


# Kubernetes.


@pytest.mark.parametrize("kind", MANIFESTS)
def test_kubernetes_accepts_the_manifests(kind: str) -> None:
    """
    Each manifest follows the schema of Kubernetes.
    """
    version = kubernetes_validate.latest_version()
    kubernetes_validate.validate(MANIFESTS[kind], version, strict=True)


def test_the_manifests_fit_the_image() -> None:
    """
    The image is the one that is built, its command line is valid, and the ports are
    those on which the server listens.
    """
    options = optionsOf([*command(IMAGE["ENTRYPOINT"])[1:], *CONTAINER["args"]])
    ports = {each["name"]: each["containerPort"] for each in CONTAINER["ports"]}
    assert options["listen"] == [f"tcp:{ports['http']}:backlog=1024"]
    assert options["operations-listen"] == [f"tcp:{ports['operations']}"]
    assert str(ports["http"]) == IMAGE["EXPOSE"]
    for name in ("startup", "liveness", "readiness"):
        assert CONTAINER[f"{name}Probe"]["httpGet"]["port"] == "operations"
    (served,) = MANIFESTS["Service"]["spec"]["ports"]
    assert served["targetPort"] == "http"
    policy = MANIFESTS["NetworkPolicy"]["spec"]
    (anybody, monitoring) = policy["ingress"]
    assert anybody == {"ports": [{"port": "http"}]}
    assert monitoring["ports"] == [{"port": "operations"}]
    deployment, service, budget = (
        MANIFESTS[kind]["spec"]["selector"]
        for kind in ("Deployment", "Service", "PodDisruptionBudget")
    )
    for labels in (
        service,
        *(each["matchLabels"] for each in (deployment, budget, policy["podSelector"])),
    ):
        assert labels == POD["metadata"]["labels"]


def test_the_time_to_stop_suffices() -> None:
    """
    The grace period has room for the delay, the drain and the modules. Probes do not
    kill a server that starts, nor take one away whose calls wait.
    """
    options = optionsOf([*command(IMAGE["ENTRYPOINT"])[1:], *CONTAINER["args"]])
    assert options["statement-timeout"] + 5 < CLOSING_SECONDS
    needed = options["shutdown-delay"] + options["drain-timeout"] + CLOSING_SECONDS
    assert needed <= POD["spec"]["terminationGracePeriodSeconds"]
    # The nodes need a moment to hear of it.
    assert options["shutdown-delay"] >= 5
    ready = CONTAINER["readinessProbe"]
    outage = ready["periodSeconds"] * ready["failureThreshold"]
    assert outage < options["queue-timeout"]
    paths = {
        name: CONTAINER[f"{name}Probe"]["httpGet"]["path"]
        for name in ("startup", "liveness", "readiness")
    }
    assert paths == {"startup": "/livez", "liveness": "/livez", "readiness": "/readyz"}


def test_docker_gets_the_time_to_stop() -> None:
    """
    The commands for Docker give the server as much time.
    """
    pages = "docs/howto/kubernetes.md", "examples/container/README.md"
    text = "".join((ROOT / page).read_text() for page in pages)
    (seconds,) = set(re.findall(r"--stop-timeout (\d+)", text))
    options = optionsOf([*command(IMAGE["ENTRYPOINT"])[1:], *command(IMAGE["CMD"])])
    needed = options["shutdown-delay"] + options["drain-timeout"] + CLOSING_SECONDS
    assert needed <= int(seconds)
