"""All phases of a round in their order; suspends wherever people have to act."""

from typing import Any

from prefect import flow

from flows.export import export
from flows.gate import wait_at_gate
from flows.iterate import iterate
from flows.parameters import (
    ExportRun,
    IterateRun,
    PipelineRun,
    PreAnnotateRun,
    QaRun,
    SetupRun,
    round_of,
)
from flows.pre_annotate import pre_annotate
from flows.qa import qa
from flows.review import opened
from flows.setup import setup
from labeling.project_file import load_project
from tasks.reviewing import close_queue


@flow(name="pipeline", persist_result=True)
def pipeline(run: PipelineRun) -> dict[str, Any]:
    """Runs one round from where it stands to the plan of the next one.

    Waits at the review gate for as long as it takes. Where the sample or disputes are still open it ends and says so;
    run it again once they are done: finished phases are not repeated.
    """
    project, number = run.project, round_of(run, "setup")
    if number == 1:
        state = setup(SetupRun(project=project))
        if state["state"] == "waiting":
            return state
    pre_annotate(PreAnnotateRun(project=project, round_number=number))
    opened(project, number, False)
    loaded, folder = load_project(project)
    wait_at_gate(loaded, folder, "review", number)
    close_queue(project, number)
    state = qa(QaRun(project=project, round_number=number))
    if state["state"] == "waiting":
        return state
    export(ExportRun(project=project, round_number=number))
    return iterate(IterateRun(project=project, round_number=number))
