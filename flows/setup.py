"""Phase 1: read the sources, label a blind sample, see what the prompts are worth."""

from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows.parameters import SetupRun
from labeling.database import rounds
from labeling.database.opening import project_database
from labeling.project_file import load_project
from labeling.storage import read_json
from schemas.review import Verdict
from tasks.preparation import embed_records, ingest_sources, measure, queue_setup_sample


@flow(name="setup", persist_result=True)
def setup(run: SetupRun) -> dict[str, Any]:
    """Reads what is new in the sources, draws the sample and puts it before people. Once they have labelled it, tries
    every prompt on it; the best is held against the threshold with its interval.

    Returns what the phase waits for, if anything: the sample, or a lead's word on a gate that was not passed.
    """
    project, rehearsal = run.project, run.rehearsal
    loaded, folder = load_project(project)
    counts = ingest_sources(project)
    embed_records(project)
    sample = queue_setup_sample(project, rehearsal)
    if sample["missing"]:
        waiting = f"{sample['missing']} sample records to be labelled blind"
        return {"phase": "setup", "round": 1, "state": "waiting", "waiting_for": [waiting], **counts}
    figures = read_json(folder.round(1).setup) if folder.round(1).setup.is_file() else measure(project)
    _show(loaded.name, figures)
    with project_database(loaded, folder, rehearsal=rehearsal) as db:
        passed = figures["verdict"] == "pass"
        if not passed:
            record = rounds.gate_record(db, "setup", 1)
            if record is None:
                rounds.open_gate(db, "setup", 1, figures)
            passed = record is not None and record.verdict is Verdict.APPROVE
    state = {"phase": "setup", "round": 1, "figures": figures, **counts}
    if passed:
        return {**state, "state": "done", "waiting_for": []}
    return {**state, "state": "waiting", "waiting_for": [f"the setup gate: {figures['sentence']}"]}


def _show(name: str, figures: dict[str, Any]) -> None:
    rows = [
        {key: candidate[key] for key in ("template", "strength", "right", "n", "unusable")}
        for candidate in figures["candidates"]
    ]
    create_table_artifact(rows, key=f"{name}-prompts", description=figures["sentence"])
