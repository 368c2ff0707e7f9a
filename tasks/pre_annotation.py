"""Tasks of the pre-annotation phase: scores shard by shard, then suggestions."""

import time
from typing import Any

from prefect import get_run_logger, task

from labeling.cascade import left_to_student
from labeling.engines.sharing import shared_engine
from labeling.planned import load_planned
from labeling.record_store import record_ids, stream_records
from labeling.score_store import CHOSEN, register, score_missing
from labeling.setup import keep_self_test, load_plan
from labeling.storage import project_lock
from labeling.suggesting import planned_prompt, planned_vectors, write_suggestions
from schemas.errors import IdentityChanged
from tasks.artifacts import artifact_key
from tasks.progress import Progress
from tasks.retrying import ALWAYS, RETRY

SECONDS_A_TASK = 240.0


@task(name="score records", **RETRY)
def score_for_a_while(project_path: str, round_number: int) -> dict[str, Any]:
    """Scores what has no score yet and is not left to the student, shard by shard, for about four minutes; `left` says
    how many remain.

    A task that handles minutes of work keeps the number of task runs low: Prefect spends 25 ms of server time on each.
    """
    project, folder = load_planned(project_path)
    plan = load_plan(folder, round_number)
    engine = shared_engine(project)
    prompt = planned_prompt(project, folder, plan)
    started = time.monotonic()
    with project_lock(folder.lock, "pre-annotation"):
        store = register(project, folder, engine, prompt)
        if store.identity_id != plan.identity_id:
            planning = "setup" if round_number == 1 else f"iterate --round {round_number - 1}"
            raise IdentityChanged(
                "engine",
                found=f"identity {store.identity_id}",
                expected=f"{plan.identity_id}, on which the plan of round {round_number} was made",
                next_step="Put the old one back, or have the plan made again with the one at hand: `countersign run "
                f"PROJECT --until {planning}`, or that phase in the Prefect UI.",
            )
        # It asks some records too: what is known is read afterwards.
        for warning in keep_self_test(project, folder, engine, prompt, round_number):
            get_run_logger().warning("engine: %s", warning)
        vectors = planned_vectors(project, folder, plan) if plan.cascade is not None else None
        known = store.known() | left_to_student(project, folder, plan, vectors)
        total = len(record_ids(project, folder))
        asked = total - len(known)
        progress = Progress(
            "pre-annotation", total, done=len(known), key=artifact_key(project.name, "pre-annotation")
        )
        engine.warm(engine.tokenize(prompt.prefix))
        fresh = scored = 0
        for part, frame in stream_records(project, folder, ["text"]):
            records = frame.select("record_id", "text").iter_rows()
            for outcome in score_missing(
                engine,
                prompt,
                store,
                records,
                project=project,
                folder=folder,
                known=known,
                origin=part.path or CHOSEN,
                on_record=progress.advance,
            ):
                scored += len(outcome.scored)
                fresh += len(outcome.scored) + len(outcome.set_aside)
                if time.monotonic() - started > SECONDS_A_TASK:
                    progress.finish()
                    return {"left": asked - fresh, "scored": scored, "seconds": time.monotonic() - started}
        progress.finish()
    return {"left": 0, "scored": scored, "seconds": time.monotonic() - started}


@task(name="write suggestions", **ALWAYS)
def suggest(project_path: str, round_number: int) -> dict[str, Any]:
    """Turns scores into the suggestions of the round; returns counts."""
    project, folder = load_planned(project_path)
    with project_lock(folder.lock, "suggestions"):
        started = time.monotonic()
        plan = load_plan(folder, round_number)
        counts = write_suggestions(project, folder, plan, planned_vectors(project, folder, plan))
    return {**counts, "suggest_seconds": time.monotonic() - started}
