"""Phase 4: agreement, findings, adjudication, gold."""

from typing import Any

from prefect import flow

from flows.parameters import QaRun, round_of
from tasks.reviewing import check_quality


@flow(name="qa", persist_result=True)
def qa(run: QaRun) -> dict[str, Any]:
    """Measures agreement, flags what looks wrong, sends disputes to an adjudicator; once those are settled, writes the
    round's gold labels and its report."""
    round_number = round_of(run, "qa")
    outcome = check_quality(run.project, round_number)
    missing = outcome["missing"]
    return {
        "phase": "qa",
        "round": round_number,
        "state": "waiting" if missing else "done",
        "waiting_for": missing,
        "findings": outcome["findings"],
        "figures": outcome.get("figures"),
    }
