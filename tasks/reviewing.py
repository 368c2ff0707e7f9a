"""Tasks of the review, quality and release phases."""

from typing import Any

from prefect import task

from labeling.database import rounds
from labeling.database.opening import project_database
from labeling.engines.sharing import shared_engine
from labeling.iterating import make_plan, require_no_drafts
from labeling.planned import load_planned
from labeling.quality import settle, start_quality
from labeling.record_store import Vectors
from labeling.release import export_release
from labeling.reporting import write_report
from labeling.reviewing import open_review, settled_values, write_annotations
from labeling.storage import project_lock
from tasks.artifacts import artifact_key
from tasks.progress import Progress
from tasks.retrying import ALWAYS, RETRY


@task(name="open the queue", **ALWAYS)
def open_queue(project_path: str, round_number: int, rehearsal: bool) -> dict[str, Any]:
    """Chooses the round's records and puts them before people; returns what is missing for the gate."""
    project, folder = load_planned(project_path)
    with (
        project_lock(folder.lock, "opening the queue"),
        project_database(project, folder, rehearsal=rehearsal) as db,
    ):
        items = open_review(
            project, folder, db, round_number, Vectors.load(project, folder), rehearsal=rehearsal
        )
        return {"items": items, "missing": rounds.missing(db, round_number)}


@task(name="write annotations", **ALWAYS)
def close_queue(project_path: str, round_number: int) -> int:
    """Writes the signed round's decisions as a table; returns the number of decisions."""
    project, folder = load_planned(project_path)
    with project_lock(folder.lock, "annotations"), project_database(project, folder) as db:
        return write_annotations(project, folder, db, round_number).height


@task(name="check quality", **ALWAYS)
def check_quality(project_path: str, round_number: int) -> dict[str, Any]:
    """Agreement, findings, disputes; once no dispute is open: gold, figures and the report."""
    project, folder = load_planned(project_path)
    with project_lock(folder.lock, "quality assurance"), project_database(project, folder) as db:
        annotations = write_annotations(project, folder, db, round_number)
        begun = start_quality(project, folder, db, round_number, annotations, Vectors.load(project, folder))
        if begun["missing"]:
            return begun
        settled = settle(project, folder, db, round_number, annotations)
        if settled["missing"]:
            return {**begun, **settled}
        write_report(project, folder, db, round_number)
        return {**begun, **settled}


@task(name="export release", **ALWAYS)
def release(project_path: str, round_number: int) -> dict[str, Any]:
    """Runs the checks and writes the release; raises ReleaseBlocked with what failed."""
    project, folder = load_planned(project_path)
    with project_lock(folder.lock, "export"), project_database(project, folder) as db:
        target, manifest = export_release(project, folder, db, round_number)
        return {"release": str(target), "counts": manifest["counts"]}


@task(name="plan the next round", **RETRY)
def plan_next(project_path: str, round_number: int) -> list[str]:
    """Learns from everything settled so far; writes the plan of the next round; returns it in sentences."""
    project, folder = load_planned(project_path)
    require_no_drafts(project, folder, round_number + 1)
    engine = shared_engine(project)
    progress = Progress(
        "records asked with candidate prompts", None, key=artifact_key(project.name, "iterate")
    )
    with project_lock(folder.lock, "iteration"):
        plan = make_plan(
            project,
            folder,
            engine,
            Vectors.load(project, folder),
            number=round_number + 1,
            settled=settled_values(project, folder, round_number + 1),
            on_record=progress.advance,
        )
    progress.finish()
    return list(plan.sentences)
