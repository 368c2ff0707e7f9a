"""Phase 4: agreement, findings, adjudication, gold."""

from typing import Any

from prefect import flow

from tasks.reviewing import check_quality


@flow(name="qa", persist_result=True)
def qa(project: str, round_number: int = 1) -> dict[str, Any]:
    """Measures agreement, flags what looks wrong, sends disputes to an adjudicator; once those are settled, writes the
    round's gold labels and its report."""
    outcome = check_quality(project, round_number)
    missing = outcome["missing"]
    return {
        "phase": "qa",
        "round": round_number,
        "state": "waiting" if missing else "done",
        "waiting_for": missing,
        "findings": outcome["findings"],
        "figures": outcome.get("figures"),
    }
