"""Which records people see in a round, in which order and how; and the round's tables once it is signed."""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from labeling.database import rounds
from labeling.database.connection import Database
from labeling.database.queue import decisions_of_round
from labeling.paths import ProjectFolder
from labeling.record_store import Vectors, record_ids, rows_of, texts_of
from labeling.selection import cold_start, simple_random_sample, uncertain_and_diverse
from labeling.storage import Table, discard, read_json, write_json
from labeling.suggesting import load_suggestions
from schemas import tables
from schemas.project import Project
from schemas.review import Purpose, QueueItem, RoundState, Seen
from schemas.values import label_names

CONFIDENCE_SHOWN_FROM = 100  # reviewed records, below which a confidence is "not yet known"
ACTOR = "flow"


def queue_sample(
    project: Project, folder: ProjectFolder, db: Database, sample: Sequence[str], *, rehearsal: bool
) -> None:
    """Puts the setup sample before people: blind, in random order."""
    rounds.open_round(db, 1, state=RoundState.SAMPLING, rehearsal=rehearsal, actor=ACTOR)
    items = [
        QueueItem(
            record_id=record_id, purpose=Purpose.SAMPLE, seen=Seen.BLIND, priority=2.0 - rank / len(sample)
        )
        for rank, record_id in enumerate(sample)
    ]
    texts = texts_of(project, folder, sample)
    rounds.add_items(db, 1, items, {record_id: (texts[record_id], None) for record_id in sample}, ACTOR)


def sample_labels(db: Database) -> dict[str, Any]:
    """What people said about the setup sample, blind; records they could not label are left out."""
    return {
        row["record_id"]: row["value"]
        for row in decisions_of_round(db, 1)
        if row["purpose"] == Purpose.SAMPLE.value and row["value"] is not None
    }


def decided_before(project: Project, folder: ProjectFolder, number: int) -> set[str]:
    """Records with an annotation in an earlier, signed round."""
    task = project.label_schema.task
    seen: set[str] = set()
    for earlier in range(1, number):
        table = Table(folder.round(earlier).annotations, tables.annotations(task))
        seen.update(table.read(["record_id"])["record_id"].to_list())
    return seen


def draw_slice(project: Project, folder: ProjectFolder, taken: Collection[str]) -> list[str]:
    """The random slice that no loop ever sees: drawn once, in round 1, from what the setup sample left."""
    path = folder.round(1).slice
    if path.is_file():
        return list(read_json(path)["slice"])
    ids = [record_id for record_id in record_ids(project, folder) if record_id not in set(taken)]
    seed = project.seed + 1
    drawn = simple_random_sample(ids, min(project.review.blind_slice, len(ids)), seed)
    write_json(
        path, {"population": len(ids), "seed": seed, "slice": drawn, "method": "first by SHA-256(seed|id)"}
    )
    return drawn


def open_review(
    project: Project,
    folder: ProjectFolder,
    db: Database,
    number: int,
    vectors: Vectors | None,
    *,
    rehearsal: bool,
) -> int:
    """Fills the queue of a round; returns how many records are in it. Called again, it changes nothing.

    Least sure first (spread over the data), mixed with random blind records; a share of both goes to several people.
    """
    queued = _queued(folder, number)
    if queued is None:
        queued = _choose(project, folder, number, vectors, set(sample_labels(db)) if number == 1 else set())
        write_json(folder.round(number).queue, {"items": queued})
    items = [QueueItem.model_validate(item) for item in queued]
    suggestions = _suggestions(project, folder, number, {item.record_id for item in items})
    texts = texts_of(project, folder, [item.record_id for item in items])
    content = {
        item.record_id: (
            texts[item.record_id],
            None if item.seen is Seen.BLIND else suggestions.get(item.record_id),
        )
        for item in items
    }
    state = rounds.state_of(db, number)
    if state in (None, RoundState.SAMPLING):
        rounds.open_round(db, number, state=RoundState.OPEN, rehearsal=rehearsal, actor=ACTOR)
    if state in (None, RoundState.SAMPLING, RoundState.OPEN):
        rounds.add_items(db, number, items, content, ACTOR)
    return len(items)


def _queued(folder: ProjectFolder, number: int) -> list[dict[str, Any]] | None:
    path = folder.round(number).queue
    return list(read_json(path)["items"]) if path.is_file() else None


def _choose(
    project: Project, folder: ProjectFolder, number: int, vectors: Vectors | None, sampled: set[str]
) -> list[dict[str, Any]]:
    taken = decided_before(project, folder, number) | sampled
    blind = draw_slice(project, folder, taken) if number == 1 else []
    rest = [record_id for record_id in record_ids(project, folder) if record_id not in taken | set(blind)]
    want = min(project.review.round_records, len(rest))
    if number > 1 and want:
        extra = min(math.ceil(want * project.review.blind_share), want)
        blind = simple_random_sample(rest, extra, project.seed + 10 + number)
        rest = [record_id for record_id in rest if record_id not in set(blind)]
        want -= extra
    control = _draw_control(project, folder, number, rest)
    rest = [record_id for record_id in rest if record_id not in set(control)]
    chosen = _least_sure(project, folder, number, rest, min(want, len(rest)), vectors)
    order = {record_id: rank for rank, record_id in enumerate(chosen)}
    everyone = [*chosen, *blind]
    several = set(
        simple_random_sample(
            everyone, round(len(everyone) * project.review.overlap_share), project.seed + 100 + number
        )
    )
    # Random records are strewn evenly among the selected ones, so that nobody can tell them by their place.
    places = {**_strewn(blind, len(chosen)), **_strewn(control, len(chosen))}
    pool_of = _routed(project, folder, number, [*everyone, *control])
    items = []
    for record_id in [*everyone, *control]:
        overlap = project.review.overlap if record_id in several else 1
        purpose = Purpose.OVERLAP if overlap > 1 else Purpose.SELECTED
        if record_id in set(control):
            purpose = Purpose.CONTROL
        elif record_id in places:
            purpose = Purpose.AUDIT
        place = places.get(record_id, float(order.get(record_id, 0)))
        items.append(
            QueueItem(
                record_id=record_id,
                purpose=purpose,
                seen=Seen.BLIND if purpose is Purpose.AUDIT else Seen.ASSISTED,
                priority=1.0 - place / (len(everyone) + 1),
                overlap=overlap,
                pool=pool_of.get(record_id),
            ).model_dump(mode="json")
        )
    return items


def _strewn(drawn: Sequence[str], among: int) -> dict[str, float]:
    return {record_id: (rank + 0.5) * max(among, 1) / len(drawn) for rank, record_id in enumerate(drawn)}


def _draw_control(project: Project, folder: ProjectFolder, number: int, rest: Sequence[str]) -> list[str]:
    """Records whose label the source knows, drawn anew each round: they check people, and nobody can tell them."""
    if not project.review.control_records:
        return []
    known = set(known_values(project, folder, rest))
    drawable = [record_id for record_id in rest if record_id in known]
    most = min(project.review.control_records, len(drawable))
    return simple_random_sample(drawable, most, project.seed + 200 + number)


def known_values(project: Project, folder: ProjectFolder, wanted: Collection[str]) -> dict[str, Any]:
    """What the sources say about records, where they say something."""
    rows = rows_of(project, folder, wanted, ["gold"]).filter(pl.col("gold").is_not_null())
    return dict(rows.select("record_id", "gold").iter_rows())


def _routed(project: Project, folder: ProjectFolder, number: int, wanted: Sequence[str]) -> dict[str, str]:
    """The pool of each record that one of the project's routes fits."""
    if not project.review.routes:
        return {}
    source_of = dict(rows_of(project, folder, wanted, ["source"]).select("record_id", "source").iter_rows())
    suggested = dict(load_suggestions(project, folder, number, ["record_id", "value"]).iter_rows())
    pool_of: dict[str, str] = {}
    for record_id in wanted:
        labels = label_names(suggested[record_id]) or [] if record_id in suggested else []
        for route in project.review.routes:
            # Records name the file of their source, a route its path.
            of_source = route.source is not None and source_of[record_id] == Path(route.source).name
            if of_source or route.label in labels:
                pool_of[record_id] = route.pool
                break
    return pool_of


def _least_sure(
    project: Project,
    folder: ProjectFolder,
    number: int,
    rest: Sequence[str],
    want: int,
    vectors: Vectors | None,
) -> list[str]:
    """Cold start while nothing is calibrated, then P(error) x density; without vectors by P(error) alone."""
    if want <= 0:
        return []
    frame = pl.DataFrame({"record_id": list(rest)}, schema={"record_id": pl.String}).join(
        load_suggestions(project, folder, number, ["record_id", "confidence", "scores"]),
        on="record_id",
        how="left",
    )
    ids = frame["record_id"].to_list()
    top = np.array(
        [
            0.0 if scores is None else max(score["probability"] for score in scores)
            for scores in frame["scores"].to_list()
        ]
    )
    confidence = frame["confidence"].cast(pl.Float64).to_numpy()
    known = np.isfinite(confidence)
    sure = np.where(known, confidence, top)
    if vectors is None:
        picked = np.argsort(sure, kind="stable")[:want]
    elif known.any():
        picked = uncertain_and_diverse(vectors.of(ids), 1.0 - sure, k=want, seed=project.seed)
    else:
        picked = cold_start(vectors.of(ids), sure, k=want, seed=project.seed)
    return [ids[index] for index in sorted(picked, key=lambda index: sure[index])]


def _suggestions(
    project: Project, folder: ProjectFolder, number: int, wanted: set[str]
) -> dict[str, dict[str, Any]]:
    columns = ["record_id", "value", "confidence", "calibrated_by", "scores", "evidence", "by"]
    frame = load_suggestions(project, folder, number, columns).filter(pl.col("record_id").is_in(list(wanted)))
    reviewed = read_json(folder.round(number).plan)["reviewed"]
    evidence_ids = {record_id for row in frame["evidence"].to_list() for record_id in row or []}
    texts = texts_of(project, folder, evidence_ids) if evidence_ids else {}
    settled = settled_values(project, folder, number) if evidence_ids else {}
    return {
        row["record_id"]: {
            "value": row["value"],
            "confidence": row["confidence"] if reviewed >= CONFIDENCE_SHOWN_FROM else None,
            "by": row["by"],
            "runner_up": [
                {"label": score["label"], "probability": score["probability"]}
                for score in sorted(row["scores"], key=lambda score: -score["probability"])[1:3]
            ],
            "evidence": [
                {"text": texts[record_id][:200], "label": settled[record_id]}
                for record_id in row["evidence"] or []
                if settled.get(record_id) is not None
            ],
        }
        for row in frame.iter_rows(named=True)
    }


def settled_values(project: Project, folder: ProjectFolder, before: int) -> dict[str, Any]:
    """Gold values of the rounds before `before`."""
    values: dict[str, Any] = {}
    for number in range(1, before):
        table = Table(folder.round(number).gold, tables.gold(project.label_schema.task))
        values.update(table.read(["record_id", "value"]).iter_rows())
    return values


def write_annotations(project: Project, folder: ProjectFolder, db: Database, number: int) -> pl.DataFrame:
    """The signed round's decisions as a table; written once, then immutable (adjudications go with the gold).

    Unless the signature is taken back and decisions change: then the next signature's decisions take their place.
    """
    here = folder.round(number)
    table = Table(here.annotations, tables.annotations(project.label_schema.task))
    if table.exists and rounds.state_of(db, number) is not RoundState.SIGNED:
        return table.read()
    rows = [row for row in decisions_of_round(db, number) if row["purpose"] != Purpose.RECHECK.value]
    written = set(table.read(["annotation_id"])["annotation_id"]) if table.exists else None
    if written != {row["annotation_id"] for row in rows}:
        here.agreement.unlink(missing_ok=True)
        # The annotations last: as long as they are there, an interrupted start over is begun again.
        for made in (here.gold, here.findings, here.annotations):
            discard(made)
        table.append(rows, meta={"round": number})
    return table.read()


def round_figures(project: Project, db: Database, number: int) -> Mapping[str, Any]:
    """What the signer of a round is shown: plain JSON data."""
    progress = rounds.progress(db, number)
    decisions = [row for row in decisions_of_round(db, number) if row["purpose"] != Purpose.RECHECK.value]
    assisted = [
        row
        for row in decisions
        if row["seen"] == Seen.ASSISTED.value
        and row["action"] in ("accept", "correct")
        and row["purpose"] != Purpose.CONTROL.value
    ]
    accepted = sum(row["action"] == "accept" for row in assisted)
    return {
        "round": number,
        "items": progress.items,
        "done": progress.done,
        "decisions": progress.decisions,
        "annotators": len(progress.per_annotator),
        "accepted": accepted,
        "assisted": len(assisted),
        "skips": progress.skips,
        "seconds_median": progress.seconds_median,
        "missing": rounds.missing(db, number),
    }
