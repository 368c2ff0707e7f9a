"""What a killed runner or machine left behind in Prefect: runs that nobody runs any more."""

from typing import Any

from schemas.project import Project

LEFT_BEHIND = ("RUNNING", "PENDING", "CANCELLING")


def start_again(client: Any, project: Project) -> list[str]:
    """Schedules again what was running when the last runner of this project ended; returns the runs' names.

    For the one process that runs this project's deployments, before it takes up work: whatever is "running" then runs
    nowhere. Every flow goes on from what is on disk and in the database, so that running it again repeats nothing.
    """
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName, FlowRunFilter
    from prefect.states import AwaitingRetry, Cancelled, Crashed

    runs = client.read_flow_runs(
        deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[project.name])),
        flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": list(LEFT_BEHIND)}}}),
    )
    started = []
    for run in runs:
        if run.parent_task_run_id is not None:
            continue
        if run.state.type.value == "CANCELLING":
            client.set_flow_run_state(
                run.id, Cancelled(message="Its process ended with the runner."), force=True
            )
            continue
        # By way of Crashed, which gives back the place the run held in its deployment's limit.
        client.set_flow_run_state(run.id, Crashed(message="Its process ended with the runner."), force=True)
        client.set_flow_run_state(run.id, AwaitingRetry(message="Goes on where it stopped."), force=True)
        started.append(run.name)
    return started
