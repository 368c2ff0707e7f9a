"""Phase 1: read the sources, label a blind sample, see what the prompts are worth."""

from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.runtime import flow_run

from flows.parameters import SetupRun
from labeling.checking import require_task
from labeling.database import rounds
from labeling.database.opening import project_database
from labeling.project_file import load_project
from labeling.setup import setup_stands
from labeling.status import setup_passed, setup_word
from labeling.storage import read_json
from tasks.artifacts import artifact_key
from tasks.preparation import embed_records, ingest_sources, measure, queue_setup_sample


@flow(name="setup", persist_result=True)
def setup(run: SetupRun) -> dict[str, Any]:
    """Reads what is new in the sources, draws the sample and puts it before people. Once they have labelled it, tries
    every prompt on it; the best is held against the threshold with its interval. After the sample was made larger, a
    prompt changed or another model taken it measures anew: in a pipeline while it has not passed, run by itself until
    there are drafts. What was asked before is not asked again.

    Returns what the phase waits for, if anything: the sample, or a lead's word on a gate that was not passed.
    """
    project, rehearsal = run.project, run.rehearsal
    loaded, folder = load_project(project)
    require_task(loaded)
    counts = ingest_sources(project)
    embed_records(project)
    drafted = setup_stands(loaded, folder)
    # New records would change the sample, which has served its purpose once there are drafts.
    sample = {"missing": 0} if drafted else queue_setup_sample(project, rehearsal)
    if sample["missing"]:
        waiting = f"{sample['missing']} sample records to be labelled blind"
        return {"phase": "setup", "round": 1, "state": "waiting", "waiting_for": [waiting], **counts}
    with project_database(loaded, folder, rehearsal=rehearsal) as db:
        passed = setup_passed(folder, db)
    within_pipeline = flow_run.parent_flow_run_id is not None
    stands = drafted or (passed and within_pipeline)
    figures = read_json(folder.round(1).setup) if stands else measure(project)
    _show(loaded.name, figures)
    with project_database(loaded, folder, rehearsal=rehearsal) as db:
        if figures["verdict"] != "pass" and setup_word(db, figures) is None:
            rounds.open_gate(db, "setup", 1, figures)
        passed = setup_passed(folder, db)
    state = {"phase": "setup", "round": 1, "figures": figures, **counts}
    if passed:
        return {**state, "state": "done", "waiting_for": []}
    return {**state, "state": "waiting", "waiting_for": [f"the setup gate: {figures['sentence']}"]}


def _show(name: str, figures: dict[str, Any]) -> None:
    rows = [
        {key: candidate[key] for key in ("template", "strength", "right", "n", "unusable")}
        for candidate in figures["candidates"]
    ]
    create_table_artifact(rows, key=artifact_key(name, "prompts"), description=figures["sentence"])
