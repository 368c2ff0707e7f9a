"""Phase 2: the model drafts a label for every record, with a confidence."""

from typing import Any

from prefect import flow, get_run_logger

from flows.parameters import PreAnnotateRun, round_of
from tasks.pre_annotation import score_for_a_while, suggest


@flow(name="pre_annotate", persist_result=True)
def pre_annotate(run: PreAnnotateRun) -> dict[str, Any]:
    """Scores every record that has no score with the plan's prompt, in shards that survive any interruption, and turns
    the scores into the suggestions of the round."""
    round_number = round_of(run, "pre_annotate")
    scored, seconds = 0, 0.0
    while True:
        step = score_for_a_while(run.project, round_number)
        scored, seconds = scored + step["scored"], seconds + step["seconds"]
        if step["left"] <= 0:
            break
    counts = suggest(run.project, round_number)
    get_run_logger().info(
        "round %d: suggestions for %d of %d records (%d by the student alone), %d set aside",
        round_number,
        counts["suggested"],
        counts["records"],
        counts["student_alone"],
        counts["rejected"],
    )
    return {
        "phase": "pre_annotate",
        "round": round_number,
        "state": "done",
        "waiting_for": [],
        "scored": scored,
        "score_seconds": seconds,
        **counts,
    }
