"""`countersign up`: everything for a day's work, started together."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from deployments.services import (
    Service,
    ServiceError,
    log_path,
    prefect_environment,
    start_prefect_server,
    start_review_app,
    start_runner,
)
from labeling import paths
from labeling.database import accounts, rounds
from labeling.database.opening import project_database
from labeling.paths import ProjectFolder
from labeling.project_file import load_project
from labeling.service_records import service
from labeling.storage import project_lock
from schemas.errors import BusyError, ProjectError
from schemas.project import Project
from schemas.review import RoundState

WAITING_STATES = ("PAUSED", "SCHEDULED", "PENDING", "RUNNING")
REGISTER_TIMEOUT_S = 120.0
RESUME_TRIES = 20
LOOK_EVERY_S = 1.0
MOST_RESTARTS = 5
RESTARTS_WITHIN_S = 600.0


def bring_up(projects: list[Path], *, port: int, local_user: bool) -> tuple[list[Service], dict[str, Any]]:
    """Starts the Prefect server, the review apps and the runner; stops what it started when one of them fails.

    A project whose round is open gets a review run that waits at the gate, so that the lead finds it in the UI.
    """
    loaded = [load_project(path) for path in projects]
    _require_own_names(loaded)
    services: list[Service] = []
    try:
        services.append(start_prefect_server())
        for offset, (project, folder) in enumerate(loaded):
            services.append(
                start_review_app(folder.root, project.name, local_user=local_user, port=port + offset)
            )
        # One runner a project: it has one place, so that no project has two runs at a time.
        services.extend(start_runner(services[0].url, [folder.root]) for _, folder in loaded)
        os.environ.update(prefect_environment(services[0].url))
        for project, folder in loaded:
            wait_for_deployment(f"review/{project.name}")
            ensure_gate(project, folder)
        # Last, when nothing can fail any more: a link counts from the moment it is made.
        links = [
            link
            for (project, folder), app in zip(loaded, services[1:], strict=False)
            if not local_user and (link := setup_link(project, folder, app.url)) is not None
        ]
    except BaseException:
        for started in reversed(services):
            started.stop()
        raise
    urls = [started.url for started in services[1 : 1 + len(loaded)]]
    answer = {"prefect_url": services[0].url, "review_url": urls[0], "review_urls": urls}
    if links:
        answer["setup_urls"] = links
    return services, answer


def _require_own_names(loaded: Sequence[tuple[Project, ProjectFolder]]) -> None:
    """Two projects of one name would share their deployments: a signature could land in the other one."""
    seen: dict[str, ProjectFolder] = {}
    for project, folder in loaded:
        if project.name in seen:
            raise ProjectError(
                f"{folder.root / 'project.yaml'}: name",
                found=f"{project.name!r}, the name of {seen[project.name].root} too",
                expected="a name of its own for every project",
                next_step="Change `name` in one of the two (`title` is what people read), or give each project once.",
            )
        seen[project.name] = folder


def setup_link(project: Project, folder: ProjectFolder, url: str) -> str | None:
    """Where the first admin makes an account; None where there is somebody who lets others in."""
    with project_database(project, folder) as db:
        return accounts.setup_link(db, url)


@contextmanager
def only_one() -> Iterator[None]:
    """Two of them would stop each other's server.

    Raises:
        ServiceError: `countersign up` is running already; says where.
    """
    try:
        with project_lock(paths.services() / "up.lock", "countersign up"):
            yield
    except BusyError as error:
        noted = service("prefect")
        where = f"; Prefect UI: {noted['url']}" if noted is not None else ""
        raise ServiceError(
            "countersign up",
            found=f"{error.found.removesuffix(' at work on this project')} is running{where}",
            expected="one for all projects",
            next_step="Use that one, or stop it with Ctrl-C and start one with all projects named.",
        ) from error


def keep_up(services: list[Service], tell: Callable[[str], None]) -> None:
    """Starts again what has ended, at the same address; never returns by itself.

    `services` is changed in place, so that whoever stops them stops the new ones.

    Raises:
        ServiceError: one ended again and again; the rest is left to the caller to stop.
    """
    ends: dict[str, list[float]] = {}
    while True:
        for index, child in enumerate(services):
            if child.runs():
                continue
            now = time.monotonic()
            recent = [moment for moment in ends.get(child.name, []) if now - moment < RESTARTS_WITHIN_S]
            ends[child.name] = [*recent, now]
            if len(recent) >= MOST_RESTARTS:
                raise ServiceError(
                    child.name,
                    found=f"it ended {len(recent) + 1} times within {RESTARTS_WITHIN_S / 60:g} minutes",
                    expected="a service that stays up",
                    next_step=f"Read {log_path(child.name)}, then start again: nothing that was saved is lost.",
                )
            tell(f"{child.name} has ended; starting it again.")
            child.stop()  # what it started may have outlived it
            try:
                services[index] = child.again()
            except ServiceError as error:
                tell(str(error))
            else:
                tell(f"{child.name} runs again at {services[index].url}.")
        time.sleep(LOOK_EVERY_S)


def wait_for_deployment(name: str, *, patience_s: float = REGISTER_TIMEOUT_S) -> Any:
    """Waits until the runner has registered a deployment; returns it. Raises ServiceError when patience ends."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    deadline = time.monotonic() + patience_s
    with get_client(sync_client=True) as client:
        while True:
            try:
                return client.read_deployment_by_name(name)
            except ObjectNotFound as error:
                if time.monotonic() > deadline:
                    raise ServiceError(
                        f"deployment {name}",
                        found="not registered",
                        expected="the runner to register it",
                        next_step="Read the runner's log under the services folder.",
                    ) from error
                time.sleep(0.3)


def _gate_runs(client: Any, project: Project, states: Sequence[str]) -> list[Any]:
    """Runs of a project that come to its review gate (the phase alone, or the pipeline), in one of some state types."""
    from prefect.client.schemas.filters import (
        DeploymentFilter,
        DeploymentFilterName,
        FlowFilter,
        FlowFilterName,
        FlowRunFilter,
    )

    runs: list[Any] = client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=["review", "pipeline"])),
        deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[project.name])),
        flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": list(states)}}}),
    )
    return runs


def ensure_gate(
    project: Project, folder: ProjectFolder, *, patience_s: float = REGISTER_TIMEOUT_S
) -> str | None:
    """A run at the gate of the open round; None when no round is open. Never a second one.

    One that waits at the gate of a round that was signed while no server was up is cancelled: who signed it again would
    take that for the open round's signature.
    """
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelled

    with project_database(project, folder) as db:
        number = next(
            (n for n in rounds.round_numbers(db) if rounds.state_of(db, n) is RoundState.OPEN), None
        )
        rehearsal = db.rehearsal
    if number is None:
        return None
    deployment = wait_for_deployment(f"review/{project.name}", patience_s=patience_s)
    with get_client(sync_client=True) as client:
        runs = _gate_runs(client, project, WAITING_STATES)
        for run in [run for run in runs if _left_behind(run, number)]:
            told = f"Its round was signed elsewhere; round {number} is open."
            client.set_flow_run_state(run.id, Cancelled(message=told), force=True)
            runs.remove(run)
        if runs:
            return str(runs[0].id)
        run = client.create_flow_run_from_deployment(
            deployment.id,
            parameters={"run": {"project": str(folder.root), "round_number": number, "rehearsal": rehearsal}},
        )
    return str(run.id)


def _left_behind(run: Any, number: int) -> bool:
    """Whether a run waits at the gate of another round than the open one."""
    phase, _, rest = (run.state.state_details.pause_key or "").partition("-")
    return phase == "review" and rest.partition("-")[0] != str(number)


def resume(run_id: Any, form: dict[str, str]) -> None:
    """The server answers 503 while it is busy; the form is sent again until it is taken."""
    from prefect.exceptions import PrefectHTTPStatusError
    from prefect.flow_runs import resume_flow_run

    for attempt in range(RESUME_TRIES):
        try:
            # In plain calls, also where the caller's thread has an event loop.
            resume_flow_run(run_id, run_input=form, _sync=True)
            return
        except PrefectHTTPStatusError as error:
            if error.response.status_code != 503 or attempt == RESUME_TRIES - 1:
                raise
            time.sleep(1.0)


def wake_gate(project: Project, *, by: str, note: str) -> bool:
    """Resumes the review run that waits at a gate which was approved elsewhere; whether there was one."""
    form = {"verdict": "approve", "signed_by": by, "note": note}

    def wake() -> bool:
        from prefect.client.orchestration import get_client

        with get_client(sync_client=True) as client:
            runs = _gate_runs(client, project, ("PAUSED",))
        for run in runs:
            resume(run.id, form)
        return bool(runs)

    return _told_server(wake)


def wait_again(project: Project, folder: ProjectFolder) -> bool:
    """Lets a run wait at the gate of a round whose signature was taken back; whether there is one.

    Only a server of `countersign up` that serves this project gets one.
    """
    return _told_server(lambda: ensure_gate(project, folder, patience_s=0) is not None)


def _told_server(tell: Callable[[], bool]) -> bool:
    """What `tell` answers at the Prefect server that is up; false without one.

    A decision stands without it: a server that is down, or one that does not answer, changes nothing.
    """
    noted = service("prefect")
    if noted is None:
        return False
    os.environ.update(prefect_environment(noted["url"]))
    from prefect.exceptions import PrefectException

    try:
        return tell()
    except (PrefectException, httpx.HTTPError, ServiceError, RuntimeError):
        return False
