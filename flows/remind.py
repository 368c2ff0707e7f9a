"""The reminder: says who or what a project waits for, where a lead looks for it."""

from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.states import Completed

from flows.parameters import RemindRun
from labeling.database.opening import project_database
from labeling.project_file import load_project
from labeling.service_records import review_url
from labeling.status import status
from tasks.artifacts import artifact_key


@flow(name="remind")
def remind(run: RemindRun) -> Any:
    """Changes nothing. The run ends as "Waiting" where people are waited for, so that it stands out in the list of runs
    and an automation of Prefect can pass it on."""
    project, folder = load_project(run.project)
    with project_database(project, folder) as db:
        state = status(project, folder, db)
    waits = state["waiting_for"]
    create_markdown_artifact(
        reminder(project.title or project.name, state, review_url(project.name)),
        key=artifact_key(project.name, "reminder"),
    )
    said = f"{state['phase']} of round {state['round']}: " + ("; ".join(waits) or "nothing waits for people")
    return Completed(name="Waiting" if waits else "Nothing waits", message=said)


def reminder(title: str, state: dict[str, Any], url: str | None) -> str:
    """The reminder as Markdown."""
    waits = state["waiting_for"]
    lines = [f"### {title}: {state['phase']}, round {state['round']}", ""]
    lines += [f"- {reason}" for reason in waits] or ["Nothing waits for people."]
    if state["queue"] is not None:
        queue = state["queue"]
        lines += ["", f"{queue['items'] - queue['open']} of {queue['items']} records of the round are done."]
    if waits and url:
        lines += ["", f"Review app: <{url}>"]
    return "\n".join(lines)
