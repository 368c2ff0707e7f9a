"""Runs of a project's deployments, seen through Prefect's own interface."""

import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deployments.services import Service, prefect_environment

WAIT_S = 150.0


def with_gold(root: Path, prefix: str) -> str:
    """Lets the setup sample be measured against the gold column; names the project on the shared server."""
    name = f"{prefix}-{secrets.token_hex(4)}"
    file = root / "project.yaml"
    text = file.read_text().replace("  id: id\n", "  id: id\n  gold: label\n")
    file.write_text(text.replace("name: small", f"name: {name}"))
    return name


@contextmanager
def prefect_at(url: str) -> Iterator[None]:
    """An environment in which Prefect's client finds the server."""
    before = dict(os.environ)
    os.environ.update(prefect_environment(url))
    try:
        from prefect.settings import PREFECT_API_URL, temporary_settings

        # Prefect reads the environment once a process; of every further server it must be told.
        with temporary_settings({PREFECT_API_URL: f"{url}/api"}):
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def come_about(what: Callable[[], Any], told: Callable[[], object] = lambda: "it did not come about") -> Any:
    """Waits until `what` is true; returns it."""
    deadline = time.monotonic() + WAIT_S
    while not (found := what()):
        assert time.monotonic() < deadline, told()
        time.sleep(0.1)
    return found


class Deployed:
    """A project's deployments."""

    def __init__(self, name: str, root: Path) -> None:
        self.name, self.root = name, root

    def begin(self, flow: str, **given: Any) -> Any:
        """Starts a run as the UI's form does; returns its id."""
        from prefect.client.orchestration import get_client

        with get_client(sync_client=True) as client:
            deployment = client.read_deployment_by_name(f"{flow}/{self.name}")
            parameters = {"run": {"project": str(self.root), **given}}
            return client.create_flow_run_from_deployment(deployment.id, parameters=parameters).id

    def state(self, run: Any) -> Any:
        from prefect.client.orchestration import get_client

        with get_client(sync_client=True) as client:
            return client.read_flow_run(run).state

    def is_in(self, run: Any, *kinds: str) -> bool:
        return self.state(run).type.value in kinds

    def await_kind(self, run: Any, *kinds: str) -> Any:
        def there() -> Any:
            state = self.state(run)
            return state if state.type.value in kinds else None

        return come_about(there, lambda: f"no {kinds}: {self.state(run)!r}")

    def retry(self, run: Any) -> None:
        """What the UI's Retry does."""
        from prefect.client.orchestration import get_client
        from prefect.states import AwaitingRetry

        with get_client(sync_client=True) as client:
            client.set_flow_run_state(run, AwaitingRetry(), force=True)


def kill(service: Service) -> None:
    """SIGKILL to a service and all it started, as a power cut would."""
    assert service.process is not None
    os.killpg(service.process.pid, signal.SIGKILL)
    service.process.wait()
