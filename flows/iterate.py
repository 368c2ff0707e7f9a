"""Phase 5: what the round taught goes into the next one."""

from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.parameters import IterateRun, round_of
from labeling.project_file import load_project
from tasks.artifacts import artifact_key
from tasks.reviewing import plan_next


@flow(name="iterate", persist_result=True)
def iterate(run: IterateRun) -> dict[str, Any]:
    """Writes the plan of the next round: student, confidence, calibration, and prompts that proved themselves."""
    round_number = round_of(run, "iterate")
    sentences = plan_next(run.project, round_number)
    create_markdown_artifact(
        "\n".join(f"- {line}" for line in sentences),
        key=artifact_key(load_project(run.project)[0].name, "plan"),
    )
    return {"phase": "iterate", "round": round_number, "state": "done", "waiting_for": [], "plan": sentences}
