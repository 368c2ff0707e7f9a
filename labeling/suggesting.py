"""From raw scores to the suggestions of a round: batch calibration, the stack, a confidence one can trust."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from labeling.calibration import BatchCalibration, CorrectnessModel, Metric, entropy, margin, summed_scores
from labeling.cascade import batch_of, student_confidence
from labeling.neighbours import nearest, vote_shares
from labeling.paths import ProjectFolder
from labeling.prompts import Prompt, prompt_of
from labeling.record_store import Vectors, stream_records
from labeling.score_store import ScoreStore
from labeling.storage import Table, read_json
from labeling.students import Stack
from schemas import tables
from schemas.errors import ProjectError, StorageError
from schemas.plan import Plan
from schemas.project import Project

Floats = npt.NDArray[np.float64]
EVIDENCE = 3
NOTHING_SENT = "none"  # fit of a suggestion without the language model


@dataclass(frozen=True)
class Proposal:
    """Suggestions of n records as arrays; `usable` marks those that have one."""

    probabilities: Floats  # (n, K), rows of NaN where not usable
    raw: Floats  # (n, K) raw log-probabilities
    mass: Floats  # (n,)
    confidence: Floats  # (n,), NaN where not yet known
    usable: npt.NDArray[np.bool_]
    features: dict[str, Floats]
    evidence: list[list[str]]


class Suggester:
    """The suggestions a plan leads to; the same for the same scores, vectors and plan."""

    def __init__(
        self,
        project: Project,
        plan: Plan,
        store: ScoreStore,
        vectors: Vectors | None,
        *,
        batch: Collection[str] | None = None,
    ) -> None:
        """`batch`: the records whose scores make the mean of batch calibration; None for all that were scored."""
        self.labels = project.label_schema.names
        self.plan, self.store, self.vectors = plan, store, vectors
        self.calibration = self._batch_calibration(batch)
        self.stack = None if plan.stack is None else Stack.from_json(plan.stack["model"])
        self.reference_ids: list[str] = [] if plan.stack is None else list(plan.stack["reference_ids"])
        self.correctness = None if plan.correctness is None else CorrectnessModel.from_json(plan.correctness)
        self.student_correctness = (
            None if plan.cascade is None else CorrectnessModel.from_json(plan.cascade.confidence)
        )

    def _batch_calibration(self, batch: Collection[str] | None) -> BatchCalibration:
        """The mean is summed part by part."""
        total, count = np.zeros(len(self.labels)), np.zeros(len(self.labels))
        among = pl.lit(True) if batch is None else pl.col("record_id").is_in(list(batch))
        for _, part in self.store.scored.stream(["record_id", "log_probs"]):
            frame = part.filter(among)
            rows = np.array(frame["log_probs"].to_list(), dtype=np.float64).reshape(-1, len(self.labels))
            summed, told = summed_scores(rows)
            total, count = total + summed, count + told
        mean = total / np.maximum(count, 1.0)
        reason = Metric("log_loss", None, 0, "not measured here")
        return BatchCalibration(self.labels, mean, self.plan.strength, reason)

    def propose(
        self, record_ids: Sequence[str], char_counts: Sequence[int], *, origin: str | None = None
    ) -> Proposal:
        """Suggestions for records, in their order; `origin` is the part of records they are from, if it is one."""
        n, width = len(record_ids), len(self.labels)
        raw, mass = self.store.matrix(record_ids, origin=origin)
        if raw.shape[1] != width:
            raw = np.full((n, width), np.nan)
        scored: npt.NDArray[np.bool_] = np.asarray(np.isfinite(raw).all(axis=1), dtype=np.bool_)
        llm = np.full((n, width), np.nan)
        if scored.any():
            llm[scored] = self.calibration.apply(raw[scored])
        probabilities = np.exp(llm)
        features: dict[str, Floats] = {}
        evidence: list[list[str]] = [[] for _ in record_ids]
        usable = scored.copy()
        by_student = np.full(n, np.nan)
        if self.stack is not None and self.vectors is not None:
            vectors = self.vectors.of(record_ids)
            parts = self.stack.parts_proba(vectors, llm, self.vectors.lexical_of(record_ids))
            probabilities, student = self.stack.mixed(parts), parts["student"]
            neighbours = nearest(vectors, self.stack.references, k=8)
            votes = vote_shares(neighbours, self.stack.reference_labels, labels=self.labels)
            chosen = probabilities.argmax(axis=1)
            features["student_agrees"] = (student.argmax(axis=1) == chosen).astype(np.float64)
            features["student_margin"] = margin(student)
            features["neighbour_share"] = votes[np.arange(n), chosen]
            evidence = [
                [self.reference_ids[index] for index in row[:EVIDENCE]]
                for row in np.asarray(neighbours.indices)
            ]
            usable = np.ones(n, dtype=np.bool_)
            if self.student_correctness is not None and n:
                by_student = student_confidence(self.stack, self.student_correctness, parts)
        known = np.where(usable[:, None], probabilities, 1.0 / width)
        features["margin"] = margin(known)
        features["entropy"] = entropy(known)
        features["label_mass"] = mass
        features["text_length"] = np.asarray(char_counts, dtype=np.float64)
        confidence = np.full(n, np.nan)
        if self.correctness is not None and n:
            suggested = [self.labels[index] for index in known.argmax(axis=1)]
            confidence = self.correctness.predict_proba(features, suggested)
            confidence = np.where(scored | np.isnan(by_student), confidence, by_student)
        confidence[~usable] = np.nan
        probabilities[~usable] = np.nan
        return Proposal(probabilities, raw, mass, confidence, usable, features, evidence)


def planned_prompt(project: Project, folder: ProjectFolder, plan: Plan) -> Prompt:
    """The prompt of a plan.

    Raises:
        ProjectError: the project's labels are not the prompt's, in the same order: its scores would be read as those of
            other labels.
    """
    prompt = prompt_of(read_json(folder.prompts_used / f"{plan.prompt_id}.json"))
    asked = tuple(code.label for code in prompt.codes)
    if asked != project.label_schema.names:
        raise ProjectError(
            "schema.labels",
            found=", ".join(project.label_schema.names),
            expected=f"{', '.join(asked)}, as the plan of round {plan.round} was made with",
            next_step="Put them back. Until round 1 has drafts, a run of the setup flow plans with other labels; "
            "afterwards they need a new project.",
        )
    return prompt


def planned_vectors(project: Project, folder: ProjectFolder, plan: Plan) -> Vectors | None:
    """The vectors that the plan's student was taught with, whatever embedding model the project has by now.

    Raises:
        StorageError: they are gone.
    """
    if plan.stack is None:
        return None
    model_id = plan.stack.get("vectors")  # plans of before 2026-11-29 do not tell
    vectors = Vectors.load(project, folder, model_id)
    if vectors is None:
        raise StorageError(
            f"vectors of {model_id or project.embedding.model}",
            found="none",
            expected=f"those that the student of round {plan.round} was taught with",
            next_step="Let the project name that embedding model again and run the setup flow: it makes them anew.",
        )
    return vectors


def write_suggestions(
    project: Project,
    folder: ProjectFolder,
    plan: Plan,
    vectors: Vectors | None,
    *,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Writes the suggestions and rejected tables of a round from the scores; a part a part of records.

    Interrupted, it goes on after the parts already there: the same scores and plan give the same parts.
    """
    number = plan.round
    planned_prompt(project, folder, plan)
    store = ScoreStore(project, folder, identity_id=plan.identity_id, prompt_id=plan.prompt_id)
    task = project.label_schema.task
    layout = tables.suggestions(task)
    suggestions = Table(folder.round(number).suggestions, layout)
    rejected = Table(folder.round(number).rejected, tables.rejected(task))
    suggester = Suggester(project, plan, store, vectors, batch=batch_of(project, folder, store))
    trained = set() if plan.stack is None else set(plan.stack["reference_ids"])
    done = {meta.get("records_part") for meta in suggestions.metas()}
    set_aside = store.set_aside()
    counted = 0
    for part, frame in stream_records(project, folder, ["char_count"]):
        counted += frame.height
        if part.path not in done:
            # A student's word on a record it was trained on is worth nothing: those are settled already.
            open_ones = frame.filter(~pl.col("record_id").is_in(list(trained)))
            rows = _rows(suggester, open_ones, part.path, layout)
            _nothing_is_missing(open_ones, rows, set_aside, number)
            suggestions.append(rows, meta={"records_part": part.path})
        if progress is not None:
            progress(counted)
    # Made also where it is empty, which says that the drafts are done; it grows where records came later.
    fresh = set_aside.join(rejected.read(["record_id"]), on="record_id", how="anti")
    if fresh.height or not rejected.exists:
        rejected.append(fresh.to_arrow())
    set_aside_ids = rejected.read(["record_id"])
    alone = sum(
        frame.filter(pl.col("by") == "student").join(set_aside_ids, on="record_id", how="anti").height
        for _, frame in suggestions.stream(["record_id", "by"])
    )
    return {
        "suggested": suggestions.rows(),
        "rejected": rejected.rows(),
        "records": counted,
        "student_alone": alone,
    }


def _nothing_is_missing(frame: pl.DataFrame, rows: pa.Table, set_aside: pl.DataFrame, number: int) -> None:
    """Every record has a suggestion or a reason why not; anything else would be lost in silence."""
    told = pl.concat([pl.Series("record_id", rows["record_id"], dtype=pl.String), set_aside["record_id"]])
    missing = frame.filter(~pl.col("record_id").is_in(told.implode()))["record_id"]
    if len(missing):
        raise StorageError(
            f"suggestions of round {number}",
            found=f"{len(missing)} records with neither a score nor a reason, for example {missing[0]}",
            expected="one of the two for every record",
            next_step="Run pre_annotate again: it asks for what is missing.",
        )


def _rows(suggester: Suggester, frame: pl.DataFrame, origin: str, layout: pa.Schema) -> pa.Table:
    """Suggestions of a part of records, built column by column: a dictionary a row costs three times as much."""
    ids = frame["record_id"].to_list()
    proposal = suggester.propose(ids, frame["char_count"].to_list(), origin=origin)
    details = suggester.store.rows(
        ["record_id", "tokens_sent", "fit", "attempts", "duration_s"], origin=origin
    )
    detail = frame.select("record_id").join(details, on="record_id", how="left", maintain_order="left")
    detail = detail.filter(pl.Series(proposal.usable)).with_columns(
        pl.col("fit").fill_null(NOTHING_SENT), pl.col("tokens_sent", "attempts", "duration_s").fill_null(0)
    )
    rows = np.flatnonzero(proposal.usable)
    plan, labels, count = suggester.plan, suggester.labels, len(rows)
    shares, raw = proposal.probabilities[rows], proposal.raw[rows]
    order = np.argsort(-shares, axis=1, kind="stable")
    scored: npt.NDArray[np.bool_] = np.asarray(np.isfinite(raw).all(axis=1))
    confidence = proposal.confidence[rows]
    names = pa.array(labels)
    calibrated_by = (
        "none" if suggester.correctness is None else f"correctness model on {plan.reviewed} reviewed records"
    )
    score_type = layout.field("scores").type
    scores = pa.StructArray.from_arrays(
        [
            names.take(pa.array(np.tile(np.arange(len(labels)), count))),
            pa.array(np.where(scored[:, None], raw, -np.inf).ravel()),
            pa.array(shares.ravel()),
        ],
        fields=list(score_type.value_type),
    )
    offsets = pa.array(np.arange(count + 1) * len(labels), pa.int32())
    by = "llm" if suggester.stack is None else "stack"
    columns: dict[str, Any] = {
        "record_id": detail["record_id"].to_arrow(),
        "value": names.take(pa.array(order[:, 0])),
        "confidence": pa.array(confidence, mask=~np.isfinite(confidence)),
        "calibrated_by": pa.repeat(calibrated_by, count),
        "scores": pa.ListArray.from_arrays(offsets, scores, type=score_type),
        "label_mass": pa.array(proposal.mass[rows], mask=~scored),
        "runner_up": names.take(pa.array(order[:, 1])),
        "evidence": [proposal.evidence[row] for row in rows],
        "part_confidence": [[]] * count,
        "identity_id": pa.repeat(plan.identity_id, count),
        "prompt_id": pa.repeat(plan.prompt_id, count),
        "by": pa.array(np.where(scored, by, "student").tolist(), pa.string()),
        **{name: detail[name].to_arrow() for name in ("tokens_sent", "fit", "attempts", "duration_s")},
    }
    return pa.table([_as_column(columns[column.name], column.type) for column in layout], schema=layout)


def _as_column(values: Any, kind: pa.DataType) -> pa.Array:
    return values.cast(kind) if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, kind)


def load_suggestions(
    project: Project, folder: ProjectFolder, number: int, columns: Sequence[str]
) -> pl.DataFrame:
    """The suggestions of a round."""
    return Table(folder.round(number).suggestions, tables.suggestions(project.label_schema.task)).read(
        columns
    )
