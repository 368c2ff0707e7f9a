"""Phase 3: people decide, and a lead signs."""

from typing import Any

from prefect import flow

from flows.gate import wait_at_gate
from flows.parameters import ReviewRun, round_of
from labeling.database import rounds
from labeling.database.opening import project_database
from labeling.project_file import load_project
from schemas.review import RoundState
from tasks.reviewing import close_queue, open_queue


@flow(name="review", persist_result=True)
def review(run: ReviewRun) -> dict[str, Any]:
    """Puts the round before people, suspends until a lead has signed it, and writes the annotations."""
    project, round_number = run.project, round_of(run, "review")
    opened(project, round_number, run.rehearsal)
    loaded, folder = load_project(project)
    record = wait_at_gate(loaded, folder, "review", round_number)
    count = close_queue(project, round_number)
    return {
        "phase": "review",
        "round": round_number,
        "state": "done",
        "waiting_for": [],
        "signed_by": record.signed_by,
        "decisions": count,
    }


def opened(project: str, round_number: int, rehearsal: bool) -> RoundState | None:
    """Opens the queue unless the round is past it; returns the round's state."""
    loaded, folder = load_project(project)
    with project_database(loaded, folder, rehearsal=rehearsal) as db:
        state = rounds.state_of(db, round_number)
    if state in (None, RoundState.SAMPLING, RoundState.OPEN):
        open_queue(project, round_number, rehearsal)
    return state


@flow(name="open_review", persist_result=True)
def open_review(run: ReviewRun) -> dict[str, Any]:
    """Puts the round before people without waiting for them (`countersign run`); says what the gate still lacks."""
    project, round_number, rehearsal = run.project, round_of(run, "review"), run.rehearsal
    loaded, folder = load_project(project)
    state = opened(project, round_number, rehearsal)
    answer: dict[str, Any] = {"phase": "review", "round": round_number}
    with project_database(loaded, folder, rehearsal=rehearsal) as db:
        state = rounds.state_of(db, round_number)
        if state in (RoundState.SIGNED, RoundState.ADJUDICATING, RoundState.CLOSED):
            done = True
        else:
            done = False
            missing = rounds.missing(db, round_number) or ["the lead's signature"]
    if done:
        return {**answer, "state": "done", "waiting_for": [], "decisions": close_queue(project, round_number)}
    return {**answer, "state": "waiting", "waiting_for": missing}
