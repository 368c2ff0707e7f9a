"""Phase 4: agreement, findings, adjudication, gold."""

from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.figures import round_text
from flows.parameters import QaRun, round_of
from labeling.project_file import load_project
from labeling.service_records import review_url
from tasks.artifacts import artifact_key
from tasks.reviewing import check_quality


@flow(name="qa", persist_result=True)
def qa(run: QaRun) -> dict[str, Any]:
    """Measures agreement, flags what looks wrong, sends disputes to an adjudicator; once those are settled, writes the
    round's gold labels and its report."""
    round_number = round_of(run, "qa")
    outcome = check_quality(run.project, round_number)
    missing = outcome["missing"]
    if outcome.get("figures"):
        project, _ = load_project(run.project)
        text = round_text(project.title or project.name, outcome["figures"], review_url(project.name))
        create_markdown_artifact(text, key=artifact_key(project.name, "round"))
    return {
        "phase": "qa",
        "round": round_number,
        "state": "waiting" if missing else "done",
        "waiting_for": missing,
        "findings": outcome["findings"],
        "figures": outcome.get("figures"),
    }
