"""Tasks of the setup phase: reading sources, vectors, the sample, what the prompts are worth."""

from typing import Any

from prefect import get_run_logger, task

from labeling.database import rounds
from labeling.database.opening import project_database
from labeling.engines.sharing import shared_embedder, shared_engine
from labeling.ingest import ingest
from labeling.project_file import load_project
from labeling.record_store import embed_lexically, embed_missing, record_ids
from labeling.reviewing import queue_sample, sample_labels
from labeling.setup import draw_sample, kept_figures, measure_prompts, sample_gold, save_setup
from labeling.storage import project_lock
from labeling.task_types import task_type
from tasks.artifacts import artifact_key
from tasks.progress import Progress
from tasks.retrying import ALWAYS, RETRY


@task(name="ingest sources", **ALWAYS)
def ingest_sources(project_path: str) -> dict[str, Any]:
    """Adds what is new in the sources; returns counts."""
    project, folder = load_project(project_path)
    with project_lock(folder.lock, "ingest"):
        counts = ingest(project, folder)
    total = len(record_ids(project, folder))
    for source, count in counts.items():
        get_run_logger().info(
            "%s: %d rows read, %d new records, %d known, %d exact duplicates, quarantined: %s",
            source,
            count.rows,
            count.added,
            count.known,
            count.duplicates,
            dict(count.quarantined) or "none",
        )
        if count.without_gold:
            get_run_logger().warning(
                "%s: %d records were read before their column of known labels was named. What was read never changes: "
                "people are asked about them. To use the column, start a new project.",
                source,
                count.without_gold,
            )
    return {"records": total, "quarantined": sum(sum(c.quarantined.values()) for c in counts.values())}


@task(name="embed records", **RETRY)
def embed_records(project_path: str) -> int:
    """Computes the vectors that are missing; returns how many."""
    project, folder = load_project(project_path)
    embedder = shared_embedder(project)
    if embedder is None:
        return 0
    progress = Progress(
        "embeddings", len(record_ids(project, folder)), key=artifact_key(project.name, "embeddings")
    )
    with project_lock(folder.lock, "embedding"):
        added = embed_missing(project, folder, embedder, progress=progress.at)
        if task_type(project).one_token:
            embed_lexically(project, folder)
    progress.finish()
    return added


@task(name="draw and queue the sample", **ALWAYS)
def queue_setup_sample(project_path: str, rehearsal: bool) -> dict[str, Any]:
    """Draws the sample and puts it before people, unless the source knows its labels; returns what is missing."""
    project, folder = load_project(project_path)
    sample = draw_sample(project, folder)
    known = sample_gold(project, folder, sample)
    if any(source.gold for source in project.sources) and len(known) == len(sample):
        return {"missing": 0, "gold": True}
    with project_database(project, folder, rehearsal=rehearsal) as db:
        queue_sample(project, folder, db, sample, rehearsal=rehearsal)
        return {"missing": rounds.progress(db, 1).open, "gold": False}


@task(name="measure prompts", **RETRY)
def measure(project_path: str) -> dict[str, Any]:
    """Scores the sample with every prompt; writes the plan of round 1; returns the figures.

    Measured before with the same sample, prompts and model, it is not measured again.
    """
    project, folder = load_project(project_path)
    sample = draw_sample(project, folder)
    truth = sample_gold(project, folder, sample)
    if len(truth) < len(sample):
        with project_database(project, folder) as db:
            truth = sample_labels(db)
    engine = shared_engine(project)
    kept = kept_figures(project, folder, engine, truth)
    if kept is not None:
        return kept
    trials = len(project.prompts.files) + 1  # and the best once more with the labels in another order
    progress = Progress("prompt trial", len(truth) * trials, key=artifact_key(project.name, "setup"))
    with project_lock(folder.lock, "setup"):
        plan, figures = measure_prompts(project, folder, engine, truth, on_record=progress.advance)
        save_setup(folder, plan, figures)
    progress.finish()
    return figures
