"""The release: only what passes the checks leaves the project."""

from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.parameters import ExportRun, round_of
from labeling.project_file import load_project
from tasks.artifacts import artifact_key
from tasks.reviewing import release


@flow(name="export", persist_result=True)
def export(run: ExportRun) -> dict[str, Any]:
    """Checks the settled records and writes release v<round>. A failed critical expectation blocks it."""
    round_number = round_of(run, "export")
    outcome = release(run.project, round_number)
    counts = outcome["counts"]
    create_markdown_artifact(
        f"Release `{outcome['release']}`\n\n{counts['settled']} of {counts['records']} records settled.",
        key=artifact_key(load_project(run.project)[0].name, "release"),
    )
    return {"phase": "export", "round": round_number, "state": "done", "waiting_for": [], **outcome}
