"""What a signed round looks like to a sceptic: every screen of `labeling.findings` fed from the round's tables."""

import math
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from labeling.findings import (
    Finding,
    TimedDecision,
    anchoring,
    annotator_disagreement,
    fatigue,
    label_error,
    model_conflict,
    rubber_stamp,
    similar_labelled_differently,
)
from labeling.iterating import STACK_FROM
from labeling.paths import ProjectFolder
from labeling.record_store import Vectors, rows_of
from labeling.reviewing import CONFIDENCE_SHOWN_FROM, settled_values
from labeling.setup import load_plan
from labeling.storage import read_json
from labeling.students import fit_stack
from labeling.suggesting import load_suggestions
from labeling.task_types import task_type
from schemas.project import Project
from schemas.values import canonical_json

SESSION_BREAK = timedelta(minutes=30)
SURE_CONFLICT = 0.1


def find(
    project: Project, folder: ProjectFolder, number: int, annotations: pl.DataFrame, vectors: Vectors | None
) -> list[Finding]:
    """All findings of a round, records first. Screening, never a verdict."""
    labelled = annotations.filter(pl.col("value").is_not_null())
    triples = list(labelled.select("record_id", "annotator_id", "value").iter_rows())
    found = annotator_disagreement(triples)
    first = labelled.unique("record_id", keep="first", maintain_order=True)
    ids, values = first["record_id"].to_list(), first["value"].to_list()
    if vectors is not None and ids:
        found += similar_labelled_differently(ids, vectors.of(ids), values)
    if task_type(project).one_token and len(ids) >= STACK_FROM and len(set(values)) > 1:
        shares = _out_of_sample(project, folder, number, ids, values, vectors)
        rows = np.flatnonzero(np.isfinite(shares).all(axis=1))
        known, given = [ids[row] for row in rows], [values[row] for row in rows]
        if len(set(given)) > 1:
            labels = project.label_schema.names
            found += label_error(known, given, shares[rows], labels=labels)
            found += model_conflict(known, given, shares[rows], labels=labels, below=SURE_CONFLICT)
    return [*found, *_about_people(project, folder, number, annotations)]


def _out_of_sample(
    project: Project,
    folder: ProjectFolder,
    number: int,
    ids: list[str],
    values: list[str],
    vectors: Vectors | None,
) -> npt.NDArray[np.float64]:
    """(n, K) probabilities by a model that has not seen the record's own label; the slice is never trained on."""
    labels = project.label_schema.names
    frame = load_suggestions(project, folder, number, ["record_id", "scores"])
    llm: dict[str, list[float]] = {}
    for record_id, draft in frame.iter_rows():
        told = {score["label"]: score["probability"] for score in draft}
        llm[record_id] = [math.log(max(told.get(label, 0.0), 1e-12)) for label in labels]
    missing = [np.nan] * len(labels)
    scores = np.array([llm.get(record_id, missing) for record_id in ids], dtype=np.float64)
    if vectors is None:
        return np.exp(scores)
    kept_away = set(read_json(folder.round(1).slice)["slice"])
    earlier = {
        record_id: value
        for record_id, value in settled_values(project, folder, number).items()
        if value is not None and record_id not in kept_away and record_id not in set(ids)
    }
    mine = [row for row, record_id in enumerate(ids) if record_id not in kept_away]
    train_ids = [ids[row] for row in mine] + list(earlier)
    train_values = [values[row] for row in mine] + list(earlier.values())
    if len(train_ids) < STACK_FROM or len(set(train_values)) < 2:
        return np.exp(scores)
    train_scores = np.array([llm.get(record_id, missing) for record_id in train_ids], dtype=np.float64)
    fitted = fit_stack(
        vectors.of(train_ids),
        train_values,
        labels=labels,
        llm_scores=train_scores,
        lexical=vectors.lexical_of(train_ids),
        seed=project.seed,
    )
    shares = np.empty(scores.shape)
    shares[mine] = fitted.out_of_sample[: len(mine)]
    away = [row for row in range(len(ids)) if row not in set(mine)]
    if away:
        theirs = [ids[row] for row in away]
        shares[away] = fitted.stack.predict_proba(
            vectors.of(theirs), scores[away], vectors.lexical_of(theirs)
        )
    return shares


def _about_people(
    project: Project, folder: ProjectFolder, number: int, annotations: pl.DataFrame
) -> list[Finding]:
    confidence = dict(load_suggestions(project, folder, number, ["record_id", "confidence"]).iter_rows())
    found: list[Finding] = []
    assisted = [
        row
        for row in annotations.iter_rows(named=True)
        if row["seen"] == "assisted" and confidence.get(row["record_id"]) is not None
    ]
    if assisted and load_plan(folder, number).reviewed >= CONFIDENCE_SHOWN_FROM:
        found += rubber_stamp(
            [row["annotator_id"] for row in assisted],
            np.array([row["action"] == "accept" for row in assisted], dtype=np.bool_),
            np.array([confidence[row["record_id"]] for row in assisted], dtype=np.float64),
        )
    found += _anchored(annotations)
    return found + fatigue(_timed(project, folder, annotations, confidence), seed=project.seed)


def _anchored(annotations: pl.DataFrame) -> list[Finding]:
    """Against the other annotators of the same record, the only truth that does not stem from the person."""
    rows = [row for row in annotations.iter_rows(named=True) if row["value"] is not None]
    by_record: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_record.setdefault(row["record_id"], []).append(row)
    people: list[str] = []
    blind: list[bool] = []
    right: list[bool] = []
    for row in rows:
        others = {
            canonical_json(other["value"])
            for other in by_record[row["record_id"]]
            if other["annotator_id"] != row["annotator_id"]
        }
        if len(others) == 1:
            people.append(row["annotator_id"])
            blind.append(row["seen"] == "blind")
            right.append(canonical_json(row["value"]) in others)
    if not people:
        return []
    return anchoring(people, np.array(blind, dtype=np.bool_), np.array(right, dtype=np.bool_))


def _timed(
    project: Project, folder: ProjectFolder, annotations: pl.DataFrame, confidence: dict[str, float | None]
) -> list[TimedDecision]:
    lengths = dict(
        rows_of(project, folder, annotations["record_id"].to_list(), ["char_count"])
        .select("record_id", "char_count")
        .iter_rows()
    )
    decisions: list[TimedDecision] = []
    last: dict[str, Any] = {}
    session: dict[str, int] = {}
    order: dict[str, int] = {}
    for row in annotations.sort("audit_seq").iter_rows(named=True):
        who = row["annotator_id"]
        if who not in last or row["decided_at"] - last[who] > SESSION_BREAK:
            session[who], order[who] = session.get(who, 0) + 1, 0
        last[who] = row["decided_at"]
        if row["seconds"] <= 0:
            continue
        decisions.append(
            TimedDecision(
                annotator=who,
                session=f"{who}-{session[who]}",
                order=order[who],
                seconds=row["seconds"],
                text_length=lengths[row["record_id"]],
                confidence=confidence.get(row["record_id"]) if row["seen"] == "assisted" else None,
                action=row["action"],
                value=None if row["value"] is None else canonical_json(row["value"]),
            )
        )
        order[who] += 1
    return decisions
