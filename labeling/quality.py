"""Quality assurance of a signed round: agreement, findings, disputes, gold and the figures of the report."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl

from labeling.agreement import (
    Agreement,
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
    pairwise_matrix,
    raw_agreement,
)
from labeling.calibration import (
    confidence_brier,
    confidence_log_loss,
    correctness_auroc,
    reliability_bins,
    risk_coverage,
)
from labeling.closing import closing_files
from labeling.consensus import majority
from labeling.database import rounds
from labeling.database.connection import Database
from labeling.database.queue import decisions_of_round
from labeling.findings import Finding
from labeling.flagged import load_findings
from labeling.iterating import slice_accuracy
from labeling.paths import ProjectFolder
from labeling.record_store import Vectors
from labeling.reviewing import known_values, settled_values
from labeling.screening import find
from labeling.storage import Table, discard, read_json, write_json
from labeling.suggesting import load_suggestions
from labeling.task_types import task_type
from schemas import tables
from schemas.project import Project
from schemas.review import Action, Purpose, RoundState
from schemas.values import Value, canonical_json, content_hash


def triples(annotations: pl.DataFrame) -> list[tuple[str, str, Any]]:
    """(record, annotator, value) of every decision with a value: skips and rejections are not labels."""
    frame = annotations.filter(pl.col("value").is_not_null()).select("record_id", "annotator_id", "value")
    return [(record_id, who, value) for record_id, who, value in frame.iter_rows()]


def measure_agreement(project: Project, annotations: pl.DataFrame) -> dict[str, Any]:
    """Agreement on the records several people labelled; undefined figures say why."""
    counts = annotations.group_by("record_id").len().filter(pl.col("len") > 1)
    several = annotations.filter(pl.col("record_id").is_in(counts["record_id"].implode()))
    said = triples(several)
    kind = task_type(project)
    raters = len({who for _, who, _ in said})
    figures: list[Agreement] = [raw_agreement(said, seed=project.seed)]
    figures.append(krippendorff_alpha(said, distance=kind.distance, seed=project.seed))
    if kind.one_token:
        figures.append(
            cohen_kappa(said, seed=project.seed) if raters == 2 else fleiss_kappa(said, seed=project.seed)
        )
    matrix = pairwise_matrix(said)
    return {
        "records": counts.height,
        "annotators": raters,
        "measures": [asdict(figure) for figure in figures],
        "pairwise": _plain(asdict(matrix)),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return [_plain(entry) for entry in value.tolist()]
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value.item() if isinstance(value, np.generic) else value


def opinions(annotations: pl.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """Decisions by record; skips are left out, and control records, which check people and are no data."""
    by_record: dict[str, list[dict[str, Any]]] = defaultdict(list)
    told = (pl.col("action") != Action.SKIP.value) & (pl.col("purpose") != Purpose.CONTROL.value)
    for row in annotations.filter(told).iter_rows(named=True):
        by_record[row["record_id"]].append(row)
    return by_record


def gold_rows(
    annotations: pl.DataFrame,
    adjudications: Mapping[str, Mapping[str, Any]],
    *,
    number: int,
    confidence: Mapping[str, float],
) -> tuple[list[dict[str, Any]], list[str]]:
    """Settled labels, and the records that no majority settles and no adjudicator has."""
    rows, open_disputes = [], []
    for record_id, decisions in sorted(opinions(annotations).items()):
        judged = adjudications.get(record_id)
        values = [decision["value"] for decision in decisions]
        keys = [canonical_json(value) for value in values]
        top, votes = Counter(keys).most_common(1)[0]
        if judged is not None:
            value, how = judged["value"], "adjudicated"
        elif len(values) == 1:
            value, how = values[0], "person"
        else:
            winner = majority(keys).value
            if winner is None:
                open_disputes.append(record_id)
                continue
            value, how = values[keys.index(str(winner))], "consensus"
        ids = [decision["annotation_id"] for decision in decisions]
        rows.append(
            {
                "record_id": record_id,
                "value": value,
                "how": how,
                "annotation_ids": [*ids, judged["annotation_id"]] if judged is not None else ids,
                "guarantee_id": None,
                "round": number,
                "agreement": votes / len(values) if len(values) > 1 else None,
                "confidence": confidence.get(record_id),
                "rehearsal": bool(decisions[0]["rehearsal"]),
            }
        )
    return rows, open_disputes


def dispute_reasons(
    project: Project,
    annotations: pl.DataFrame,
    findings: Sequence[Mapping[str, Any]],
    most_share: float = 0.05,
) -> dict[str, str]:
    """Which records go back to an adjudicator, and the sentence that says why: those people disagree on first, then
    the strongest other findings, up to a share of the round's records."""
    reasons: dict[str, str] = {}
    for record_id, decisions in opinions(annotations).items():
        if len({canonical_json(decision["value"]) for decision in decisions}) > 1:
            reasons[record_id] = "Annotators labelled this record differently."
    budget = round(most_share * annotations["record_id"].n_unique())
    suspicious = [
        finding
        for finding in findings
        if finding["record_id"] is not None and finding["kind"] != "annotator_disagreement"
    ]
    control = set(annotations.filter(pl.col("purpose") == Purpose.CONTROL.value)["record_id"])
    for finding in sorted(suspicious, key=lambda entry: -(entry["score"] or 0.0)):
        if budget <= 0:
            break
        if finding["record_id"] not in control and finding["record_id"] not in reasons:
            reasons[finding["record_id"]] = finding["sentence"]
            budget -= 1
    return reasons


def start_quality(
    project: Project,
    folder: ProjectFolder,
    db: Database,
    number: int,
    annotations: pl.DataFrame,
    vectors: Vectors | None,
) -> dict[str, Any]:
    """Agreement and findings of a signed round; disputes go to an adjudicator. Called again, it changes nothing."""
    if not folder.round(number).agreement.is_file():
        write_json(folder.round(number).agreement, measure_agreement(project, annotations))
    table = Table(folder.round(number).findings, tables.findings(project.label_schema.task))
    if not table.exists:
        found = find(project, folder, number, annotations, vectors)
        found += control_findings(annotations, _known_controls(project, folder, annotations))
        table.append([_finding_row(number, entry) for entry in found], meta={"round": number})
    findings = list(load_findings(project, folder, number).iter_rows(named=True))
    if rounds.state_of(db, number) is RoundState.SIGNED:
        reasons = dispute_reasons(project, annotations, findings)
        if reasons:
            rounds.start_adjudication(db, number, reasons)
    return {"findings": len(findings), "missing": rounds.missing(db, number)}


def _known_controls(project: Project, folder: ProjectFolder, annotations: pl.DataFrame) -> dict[str, Value]:
    control = annotations.filter(pl.col("purpose") == Purpose.CONTROL.value)["record_id"].unique().to_list()
    return known_values(project, folder, control) if control else {}


def control_findings(annotations: pl.DataFrame, known: Mapping[str, Value]) -> list[Finding]:
    """One finding a person who answered control records otherwise than their source knows them; skips do not count."""
    right: Counter[str] = Counter()
    told: Counter[str] = Counter()
    wrong: dict[str, list[str]] = defaultdict(list)
    for row in annotations.filter(pl.col("action") != Action.SKIP.value).iter_rows(named=True):
        if row["purpose"] != Purpose.CONTROL.value or row["record_id"] not in known:
            continue
        who = row["annotator_id"]
        told[who] += 1
        if canonical_json(row["value"]) == canonical_json(known[row["record_id"]]):
            right[who] += 1
        else:
            wrong[who].append(row["record_id"])
    return [
        Finding(
            record_id=None,
            kind="control",
            score=1.0 - right[who] / told[who],
            sentence=f"{who} answered {right[who]} of {told[who]} control records as their source knows them.",
            evidence=wrong[who],
        )
        for who in sorted(wrong)
    ]


def _finding_row(number: int, entry: Mapping[str, Any]) -> dict[str, Any]:
    core = {key: entry[key] for key in ("record_id", "kind", "score", "sentence")}
    evidence = [item if isinstance(item, str) else canonical_json(item) for item in entry["evidence"]]
    score = core["score"]
    return {
        **core,
        "score": None if score is None or not np.isfinite(score) else float(score),
        "finding_id": "f" + content_hash([number, entry["record_id"], entry["kind"], entry["sentence"]])[:20],
        "evidence": evidence,
        "state": "open",
        "settled_by": None,
    }


def _settle_findings(
    project: Project,
    folder: ProjectFolder,
    number: int,
    annotations: pl.DataFrame,
    judged: Mapping[str, Mapping[str, Any]],
) -> None:
    """What the adjudicator's word did to each finding on a record: the label it had was kept, or changed.

    A finding nobody looked at stays open. A tie had no label, so whatever settles it is a change.
    """
    said = opinions(annotations)
    settled = []
    for row in load_findings(project, folder, number).iter_rows(named=True):
        verdict = judged.get(row["record_id"])
        if verdict is None or row["settled_by"] == verdict["annotation_id"]:
            continue
        before = majority([canonical_json(decision["value"]) for decision in said[row["record_id"]]]).value
        kept = before == canonical_json(verdict["value"])
        settled.append(
            {**row, "state": "kept" if kept else "changed", "settled_by": verdict["annotation_id"]}
        )
    if settled:
        table = Table(folder.round(number).findings, tables.findings(project.label_schema.task))
        table.append(settled, meta={"round": number, "settled": len(settled)})


def settle(
    project: Project, folder: ProjectFolder, db: Database, number: int, annotations: pl.DataFrame
) -> dict[str, Any]:
    """Writes gold and the figures of the round, and closes it. Every dispute must be settled by then.

    Of a closed round nothing is written any more.
    """
    kept, closed = folder.round(number).figures, rounds.state_of(db, number) is RoundState.CLOSED
    if closed and kept.is_file():
        return {"missing": [], "figures": read_json(kept)}
    judged = {
        row["record_id"]: row
        for row in decisions_of_round(db, number)
        if row["purpose"] == Purpose.RECHECK.value
    }
    confidence = dict(load_suggestions(project, folder, number, ["record_id", "confidence"]).iter_rows())
    rows, still_open = gold_rows(annotations, judged, number=number, confidence=confidence)
    if still_open:
        rounds.start_adjudication(
            db,
            number,
            dict.fromkeys(still_open, "Annotators labelled this record differently."),
        )
        return {"missing": rounds.missing(db, number)}
    table = Table(folder.round(number).gold, tables.gold(project.label_schema.task))
    if not closed and _made_of(table) != {row["record_id"]: row["annotation_ids"] for row in rows}:
        # Of a start that broke off before the round was closed: an adjudicator thought again since.
        discard(table.folder)
    if not table.exists:
        table.append(rows, meta={"round": number})
    _settle_findings(project, folder, number, annotations, judged)
    figures = round_figures(project, folder, number, annotations)
    write_json(folder.round(number).figures, figures)
    rounds.close_round(db, number, files=closing_files(folder, number))
    return {"missing": [], "figures": figures}


def _made_of(gold: Table) -> dict[str, list[str]]:
    """The decisions that each label was made of."""
    return dict(gold.read(["record_id", "annotation_ids"]).iter_rows())


def round_figures(
    project: Project, folder: ProjectFolder, number: int, annotations: pl.DataFrame
) -> dict[str, Any]:
    """What a round came to: accuracy on the slice, confidence against outcomes, how labels were settled."""
    gold = settled_values(project, folder, number + 1)
    suggestions = load_suggestions(project, folder, number, ["record_id", "value", "confidence"])
    slice_figures = slice_accuracy(project, folder, number, gold)
    drawn = set(read_json(folder.round(1).slice)["slice"])
    judged = suggestions.filter(
        pl.col("record_id").is_in(list(drawn & set(gold))) & pl.col("confidence").is_not_null()
    )
    judged = judged.filter(pl.Series([gold[r] is not None for r in judged["record_id"]], dtype=pl.Boolean))
    confidence = judged["confidence"].to_numpy().astype(np.float64)
    right = np.array(
        [value == gold[record_id] for record_id, value in judged.select("record_id", "value").iter_rows()],
        dtype=np.bool_,
    )
    assisted = annotations.filter(
        (pl.col("seen") == "assisted") & pl.col("action").is_in(["accept", "correct"])
    )
    mine = Table(folder.round(number).gold, tables.gold(project.label_schema.task)).read()
    return {
        "round": number,
        **slice_figures,
        "calibrated": {
            "log_loss": _metric(confidence_log_loss(confidence, right)),
            "brier": _metric(confidence_brier(confidence, right)),
            "auroc": _metric(correctness_auroc(confidence, right)),
        },
        "risk_coverage": [asdict(point) for point in risk_coverage(confidence, right)] if len(right) else [],
        "reliability": [asdict(entry) for entry in reliability_bins(confidence, right)] if len(right) else [],
        "human_labels": annotations.height,
        "records": annotations["record_id"].n_unique(),
        "assisted": assisted.height,
        "accepted": int((assisted["action"] == "accept").sum()),
        "seconds_median": _median(annotations["seconds"].to_list()),
        "how": dict(sorted(mine["how"].value_counts().iter_rows())),
        "auto_accepted": 0,
        "class_balance": _balance(project, mine["value"].to_list()),
        "rejected": Table(folder.round(number).rejected, tables.rejected(project.label_schema.task)).rows(),
    }


def _metric(metric: Any) -> dict[str, Any]:
    value = metric.value
    return {"value": value, "n": metric.n, "undefined_because": metric.undefined_because}


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None


def _balance(project: Project, values: Sequence[Value]) -> dict[str, int]:
    kind = task_type(project)
    counts = Counter(part for value in values if value is not None for part in kind.parts(value))
    return {label: counts.get(label, 0) for label in project.label_schema.names}
