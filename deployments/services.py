"""The processes of a working installation: Prefect server, the runner of the deployments, the review app.

Everything listens on loopback, keeps its state under `labeling.paths.services()` and is told to phone nobody.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from labeling import paths
from labeling.service_records import forget_service, record_service, service
from labeling.shared_use import Use
from schemas.errors import LabelingError

PREFECT_PORT = 4200
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 8.0  # everything these processes promise is durable before; waiting longer saves nothing
# Set by the product, not left to the user: docs/decisions and reliability notes say why each one.
QUIET_ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_UI_V2_ENABLED": "false",  # the older UI shows Resume as a button; both ask nobody behind the policy
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_RUNNER_HEARTBEAT_FREQUENCY": "30",
    "PREFECT_RUNNER_POLL_FREQUENCY": "2",
    "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
    "GX_ANALYTICS_ENABLED": "False",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HTTPS_PROXY": "http://127.0.0.1:9",  # Prefect's collections page would ask GitHub; nobody answers on port 9
    "NO_PROXY": "127.0.0.1,localhost",
}


class ServiceError(LabelingError):
    """A process of the installation did not start or does not answer."""


def free_port(preferred: int | None = None) -> int:
    """The preferred loopback port if nobody has it, otherwise any free one."""
    for port in (preferred, 0):
        if port is None:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found: int = probe.getsockname()[1]
            return found
    raise ServiceError("loopback", found="no free port", expected="one", next_step="Close other programs.")


def prefect_environment(url: str) -> dict[str, str]:
    """Environment of everything that talks to the Prefect server at `url`."""
    home = paths.services() / "prefect"
    return {
        **QUIET_ENVIRONMENT,
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"{url}/api",
        "PREFECT_LOCAL_STORAGE_PATH": str(home / "results"),
        "PREFECT_UI_API_URL": f"{url}/api",
    }


@dataclass
class Service:
    """A child process and where it listens.

    Attributes:
        process: None where it was running before and belongs to somebody else.
        again: Starts it anew, at the same address.
        use: Held where others may use the process too: it ends with the last of them.
    """

    name: str
    url: str
    process: subprocess.Popen[bytes] | None
    again: "Callable[[], Service]"
    use: Use | None = None

    def runs(self) -> bool:
        """Whether the process lives; of somebody else's, whether the Prefect server still answers."""
        if self.process is None:
            return answers(f"{self.url}/api/health")
        return self.process.poll() is None

    def stop(self) -> None:
        """Ends the process and what it started; one that others use stays until the last of them stops it."""
        if self.use is None:
            self._end()
            return
        use, self.use = self.use, None
        with use.end() as last:
            if last:
                self._end()

    def _end(self) -> None:
        if self.process is None:
            _end_noted(self.name)
            return
        if self.process.poll() is None:
            _signal_group(self.process, signal.SIGTERM)
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                _signal_group(self.process, signal.SIGKILL)
                self.process.wait()
        _signal_group(self.process, signal.SIGKILL)  # grandchildren that outlived it
        forget_service(self.name)


def _end_noted(name: str) -> None:
    """Ends a server that this process did not start and that nobody uses any more."""
    noted = service(name)
    if noted is None or not answers(f"{noted['url']}/api/health"):
        return
    try:
        os.kill(noted["pid"], signal.SIGTERM)
    except ProcessLookupError:
        pass
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while answers(f"{noted['url']}/api/health") and time.monotonic() < deadline:
        time.sleep(0.2)
    forget_service(name)


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass


def _spawn(
    name: str, command: Sequence[str], environment: Mapping[str, str], *, outlives: bool = False
) -> subprocess.Popen[bytes]:
    log = log_path(name)
    log.parent.mkdir(parents=True, exist_ok=True)
    root = str(Path(__file__).resolve().parent.parent)
    with log.open("ab") as out:
        return subprocess.Popen(
            command,
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=None if outlives else _end_with_parent,
            cwd=root,
            env={**os.environ, **environment, "PYTHONPATH": root},
        )


_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """A killed `countersign` must not leave services behind: the kernel ends them (Linux)."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def log_path(name: str) -> Path:
    """Where a service writes its log."""
    return paths.services() / "logs" / f"{name}.log"


def answers(url: str) -> bool:
    """Whether something healthy listens at a health address."""
    try:
        return httpx.get(url, timeout=2.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _wait(name: str, health: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    # Also where something answers: it may be another installation's, which took the port a moment before.
    while process.poll() is not None or not answers(health):
        if process.poll() is not None or time.monotonic() > deadline:
            tail = log_path(name).read_text("utf-8", "replace")[-600:]
            _signal_group(process, signal.SIGKILL)
            raise ServiceError(
                name,
                found=f"no answer at {health}: {tail}",
                expected="a running service",
                next_step=f"Read {log_path(name)}.",
            )
        time.sleep(0.2)


def _listening(
    name: str,
    preferred: int | None,
    command: Sequence[str],
    health: str,
    environment: Callable[[str], Mapping[str, str]],
    *,
    outlives: bool = False,
) -> tuple[str, subprocess.Popen[bytes]]:
    """Starts a service on the preferred port of loopback, or another where somebody has it; returns its address.

    Args:
        command: Of Python, less its port.
        environment: For an address.
    """
    while True:
        port = free_port(preferred)
        url = f"http://127.0.0.1:{port}"
        whole = [sys.executable, *command, "--port", str(port)]
        process = _spawn(name, whole, environment(url), outlives=outlives)
        try:
            _wait(name, url + health, process)
        except ServiceError:
            # Another one that starts at the same time may have taken the port in between.
            if free_port(port) == port:
                raise
        else:
            return url, process


def _port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def start_prefect_server(port: int = PREFECT_PORT) -> Service:
    """The Prefect server of this machine's installation: found running, or started on loopback.

    It does not end with the command that started it while another one uses it, e.g. `up` that came while a `run` was at
    work; it ends by itself when all who used it have ended, however they did.
    """
    users = paths.services() / "prefect.users"
    use = Use(users)
    noted = service("prefect")
    if noted is not None:
        port = _port_of(noted["url"])  # after a crash, too, the address that people know
        if answers(f"{noted['url']}/api/health"):
            return Service("prefect", noted["url"], None, lambda: start_prefect_server(port), use)
    try:
        url, process = _listening(
            "prefect",
            port,
            ["-m", "deployments.prefect_server", "--users", str(users)],
            "/api/health",
            prefect_environment,
            outlives=True,
        )
    except ServiceError:
        with use.end():
            raise
    record_service("prefect", {"url": url, "pid": process.pid})
    return Service("prefect", url, process, lambda: start_prefect_server(_port_of(url)), use)


def start_runner(prefect_url: str, projects: Sequence[Path], *, rehearsal: bool = False) -> Service:
    """The process that runs the deployments of these projects."""
    names = "-".join(sorted(project.name for project in projects))[:80]
    command = [
        sys.executable,
        "-m",
        "deployments.serve",
        *(["--rehearsal"] if rehearsal else []),
        *map(str, projects),
    ]
    process = _spawn(f"runner-{names}", command, prefect_environment(prefect_url))
    record_service(f"runner-{names}", {"url": prefect_url, "pid": process.pid})
    return Service(
        f"runner-{names}",
        prefect_url,
        process,
        lambda: start_runner(prefect_url, projects, rehearsal=rehearsal),
    )


def start_review_app(project: Path, name: str, *, local_user: bool, port: int | None = None) -> Service:
    """The review app of a project on loopback."""
    command = ["-m", "review_app", "--project", str(project), "--host", "127.0.0.1"]
    command += ["--local-user"] if local_user else []
    url, process = _listening(f"review-{name}", port, command, "/healthz", lambda _url: QUIET_ENVIRONMENT)
    record_service(f"review-{name}", {"url": url, "pid": process.pid})
    return Service(
        f"review-{name}",
        url,
        process,
        lambda: start_review_app(project, name, local_user=local_user, port=_port_of(url)),
    )
