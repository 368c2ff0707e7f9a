"""SIGKILL of the server, the runner or a flow's process in any phase: the next start goes on."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from deployed import Deployed, come_about, kill, prefect_at, with_gold
from test_gate import label_everything, person

from deployments.services import Service, start_prefect_server, start_runner
from labeling.database.opening import project_database
from labeling.project_file import load_project
from labeling.storage import read_json
from schemas.review import Role


@pytest.fixture
def at_home(installation: Any) -> Iterator[str]:
    with prefect_at(installation.url):
        yield installation.url


@pytest.fixture
def runners() -> Iterator[list[Service]]:
    started: list[Service] = []
    yield started
    for service in started:
        service.stop()


def served(url: str, root: Path, name: str, runners: list[Service]) -> Deployed:
    from countersign.daily import wait_for_deployment

    runners.append(start_runner(url, [root]))
    wait_for_deployment(f"remind/{name}")
    return Deployed(name, root)


@pytest.mark.campaign
def test_what_a_killed_runner_was_running_goes_on_when_the_next_one_starts(
    at_home: str, installation: Any, lettered: Callable[..., Any], runners: list[Service]
) -> None:
    root, engine = lettered(
        160, setup={"sample": 40, "threshold": 0.5}, embedding={"kind": "none"}, limits={"shard_records": 16}
    )
    name = with_gold(root, "killed")
    installation.command("run", root, "--until", "setup")
    project = served(at_home, root, name, runners)
    engine.delay_s, _ = 0.02, engine.asked.clear()
    run = project.begin("pre_annotate")
    come_about(lambda: sum(engine.asked.values()) > 20, lambda: project.state(run))

    kill(runners[0])
    assert project.is_in(run, "RUNNING"), "nobody told Prefect"
    engine.delay_s = 0.0
    served(at_home, root, name, runners)

    # It is Crashed for a moment, until the runner that found it so has it scheduled again.
    state = project.await_kind(run, "COMPLETED", "FAILED")
    assert state.is_completed(), state
    assert installation.command("status", root)[1]["suggested"] == 160
    assert engine.asked_most() <= 2


def begun(project: Deployed, phase: str, victim: Callable[[], None]) -> Any:
    """Starts a phase, lets `victim` die while it runs, and sees to it that it ends; returns the last state."""
    run = project.begin(phase)
    project.await_kind(run, "RUNNING", "COMPLETED", "PAUSED")
    victim()
    state = project.await_kind(run, "COMPLETED", "PAUSED", "CRASHED", "FAILED")
    if state.type.value in ("CRASHED", "FAILED"):
        project.retry(run)
        state = project.await_kind(run, "COMPLETED", "PAUSED")
    return run


@pytest.mark.campaign
@pytest.mark.parametrize("victim", ["server", "runner", "flow"])
def test_a_kill_in_every_phase_still_ends_in_a_whole_release(
    victim: str, tmp_path: Path, lettered: Callable[..., Any], runners: list[Service], monkeypatch: Any
) -> None:
    from labeling import paths

    home = tmp_path / "home"
    home.mkdir()
    if paths.models().is_dir():
        (home / "models").symlink_to(paths.models())
    monkeypatch.setenv("COUNTERSIGN_HOME", str(home))
    root, _ = lettered(60, setup={"sample": 40, "threshold": 0.5})
    name = with_gold(root, victim)
    server = start_prefect_server(port=8731)
    runners.append(server)
    with prefect_at(server.url):
        project = served(server.url, root, name, runners)

        def die() -> None:
            if victim == "server":
                kill(runners[0])
                runners[0].stop()
                runners[0] = start_prefect_server(port=8731)
            elif victim == "runner":
                kill(runners[-1])
                served(server.url, root, name, runners)
            else:
                for pid in children(runners[-1]):
                    os.kill(pid, signal.SIGKILL)

        begun(project, "setup", die)
        begun(project, "pre_annotate", die)
        review = begun(project, "review", die)
        project.await_kind(review, "PAUSED")
        loaded, folder = load_project(root)
        with project_database(loaded, folder) as db:
            person(db, Role.MANAGER, "lena")
        label_everything(root)
        from countersign.daily import resume

        resume(review, {"verdict": "approve", "signed_by": "lena", "note": "checked"})
        project.await_kind(review, "COMPLETED")
        for phase in ("qa", "export", "iterate"):
            begun(project, phase, die)
    assert read_json(folder.release(1) / "manifest.json")["counts"]["settled"] > 0
    assert folder.round(2).plan.is_file()


def children(runner: Service) -> list[int]:
    """The flow processes of a runner."""
    assert runner.process is not None
    tasks = Path(f"/proc/{runner.process.pid}/task").glob("*/children")
    return [int(pid) for task in tasks for pid in task.read_text().split()]
