"""Phase 1: read the sources, label a blind sample, see what the prompts are worth."""

from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows.parameters import SetupRun
from labeling.checking import require_task
from labeling.database import rounds
from labeling.database.opening import project_database
from labeling.project_file import load_project
from labeling.storage import Table, read_json
from schemas import tables
from schemas.review import Verdict
from tasks.preparation import embed_records, ingest_sources, measure, queue_setup_sample


@flow(name="setup", persist_result=True)
def setup(run: SetupRun) -> dict[str, Any]:
    """Reads what is new in the sources, draws the sample and puts it before people. Once they have labelled it, tries
    every prompt on it; the best is held against the threshold with its interval. Run again after the sample was made
    larger, a prompt changed or another model taken, it measures anew, as long as nothing is drafted.

    Returns what the phase waits for, if anything: the sample, or a lead's word on a gate that was not passed.
    """
    project, rehearsal = run.project, run.rehearsal
    loaded, folder = load_project(project)
    require_task(loaded)
    counts = ingest_sources(project)
    embed_records(project)
    sample = queue_setup_sample(project, rehearsal)
    if sample["missing"]:
        waiting = f"{sample['missing']} sample records to be labelled blind"
        return {"phase": "setup", "round": 1, "state": "waiting", "waiting_for": [waiting], **counts}
    here = folder.round(1)
    before = read_json(here.setup) if here.setup.is_file() else None
    # Once the round is drafted its plan stands; until then a larger sample, another prompt or model is measured anew.
    drafted = Table(here.rejected, tables.rejected(loaded.label_schema.task)).exists
    figures = before if before is not None and drafted else measure(project)
    _show(loaded.name, figures)
    with project_database(loaded, folder, rehearsal=rehearsal) as db:
        passed = figures["verdict"] == "pass"
        if not passed:
            record = rounds.gate_record(db, "setup", 1)
            # A signature is for the figures that it was given on.
            if record is None or figures != before:
                rounds.open_gate(db, "setup", 1, figures)
            elif record.verdict is Verdict.APPROVE:
                passed = True
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
