"""`prefect.yaml` deployed to a real server and run by a real worker of a process pool."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments import prefect_file
from deployments.catalogue import CATALOGUE
from deployments.services import prefect_environment

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 150.0


@pytest.fixture
def environment(installation: Any) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(prefect_environment(installation.url))
    yield
    os.environ.clear()
    os.environ.update(before)


def named(root: Path, text: str = "") -> str:
    """Gives the project a name of its own on the shared server; `text` is added to its file."""
    name = f"pool-{secrets.token_hex(4)}"
    file = root / "project.yaml"
    file.write_text(file.read_text().replace("name: small", f"name: {name}") + text)
    return name


@pytest.fixture
def worker(installation: Any, environment: None) -> Iterator[Callable[[Path], "subprocess.Popen[bytes]"]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(root: Path) -> "subprocess.Popen[bytes]":
        log = (root / "worker.log").open("ab")
        command = [sys.executable, "-m", "deployments.worker", str(root)]
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**installation.environment, **prefect_environment(installation.url)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        started.append(child)
        return child

    yield start
    for child in started:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def ended(client: Any, runs: list[Any], worker: "subprocess.Popen[bytes]", root: Path) -> list[Any]:
    """The runs once all have ended."""
    deadline = time.monotonic() + WAIT_S
    while True:
        now = [client.read_flow_run(run.id) for run in runs]
        if all(run.state.is_final() for run in now):
            return now
        assert worker.poll() is None, (root / "worker.log").read_text()
        assert time.monotonic() < deadline, [run.state for run in now]
        time.sleep(0.5)


def test_a_worker_runs_the_deployments_of_prefect_yaml_one_at_a_time(
    installation: Any, lettered: Callable[..., Any], worker: Callable[..., Any]
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags

    from countersign.daily import wait_for_deployment

    root, _ = lettered(60)
    name = named(root, "schedules:\n  gate_reminder: 0 8 * * 1-5\n  timezone: Europe/Vienna\n")
    child = worker(root)
    wait_for_deployment(f"remind/{name}")
    with get_client(sync_client=True) as client:
        runs = [
            client.create_flow_run_from_deployment(
                client.read_deployment_by_name(f"{flow}/{name}").id,
                parameters={"run": {"project": str(root)}},
            )
            for flow in ("setup", "remind")
        ]
        setup, remind = ended(client, runs, child, root)
        registered = client.read_deployments(
            deployment_filter=DeploymentFilter(tags=DeploymentFilterTags(all_=["countersign", name]))
        )
        (schedule,) = client.read_deployment_by_name(f"remind/{name}").schedules

    assert setup.state.is_completed(), setup.state
    assert (remind.state.name, remind.state.type.value) == ("Waiting", "COMPLETED")
    first, second = sorted([setup, remind], key=lambda run: run.start_time)
    assert first.end_time <= second.start_time
    assert {one.work_queue_name for one in registered} == {name}
    assert len(registered) == len(CATALOGUE)
    assert (schedule.schedule.cron, schedule.schedule.timezone) == ("0 8 * * 1-5", "Europe/Vienna")


def test_prefect_yaml_is_what_the_catalogue_says() -> None:
    for path, text in prefect_file.texts().items():
        assert path.read_text("utf-8") == text, f"run `python -m deployments.prefect_file` ({path.name})"
        assert len(yaml.safe_load(text)["deployments"]) == len(CATALOGUE)
