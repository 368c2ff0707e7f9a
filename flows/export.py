"""The release: only what passes the checks leaves the project."""

from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from labeling.project_file import load_project
from tasks.reviewing import release


@flow(name="export", persist_result=True)
def export(project: str, round_number: int = 1) -> dict[str, Any]:
    """Checks the settled records and writes release v<round>. A failed critical expectation blocks it."""
    outcome = release(project, round_number)
    counts = outcome["counts"]
    create_markdown_artifact(
        f"Release `{outcome['release']}`\n\n{counts['settled']} of {counts['records']} records settled.",
        key=f"{load_project(project)[0].name}-release",
    )
    return {"phase": "export", "round": round_number, "state": "done", "waiting_for": [], **outcome}
