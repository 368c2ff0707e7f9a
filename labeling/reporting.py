"""Fills the report of a round from its tables."""

from collections import Counter
from typing import Any

import polars as pl

from labeling.database.connection import Database
from labeling.flagged import load_findings
from labeling.paths import ProjectFolder
from labeling.report import ReportFigures, render_report
from labeling.reviewing import settled_values
from labeling.setup import load_plan
from labeling.storage import Table, read_json, write_bytes
from labeling.suggesting import load_suggestions
from schemas import tables
from schemas.project import Project


def write_report(project: Project, folder: ProjectFolder, db: Database, number: int) -> None:
    """Writes report.html of a settled round: self-contained, opens offline."""
    figures = report_figures(project, folder, db, number)
    write_bytes(folder.round(number).report, render_report(figures).encode("utf-8"))


def report_figures(project: Project, folder: ProjectFolder, db: Database, number: int) -> ReportFigures:
    """The report's figures, all of them read from what the round stored."""
    task = project.label_schema.task
    here = read_json(folder.round(number).figures)
    history = [read_json(folder.round(done).figures) for done in range(1, number + 1)]
    annotations = Table(folder.round(number).annotations, tables.annotations(task)).read()
    agreement = read_json(folder.round(number).agreement)
    plan = load_plan(folder, number)
    identity = read_json(folder.identities / f"{plan.identity_id}.json")
    counts = Counter(
        value for value in settled_values(project, folder, number + 1).values() if isinstance(value, str)
    )
    pairwise = agreement["pairwise"]
    result = ReportFigures(
        project=project.title or project.name,
        round=number,
        generated_at=db.now().strftime("%Y-%m-%d %H:%M UTC"),
        rehearsal=db.rehearsal,
        summary=[*_summary(here), *plan.sentences],
        facts=[
            ("Task", task.value),
            ("Model", f"{identity['model']} ({identity['quantization']}, {identity['engine']})"),
            ("Weights", identity["digest"][:16] + "…"),
            ("Prompt", f"{plan.template}, id {plan.prompt_id}"),
            ("Seed", str(project.seed)),
        ],
        tiles=[
            {"label": "Drafts right, on the slice no loop sees", "figure": _figure(here["accuracy"])},
            {
                "label": "Suggestions accepted as they were",
                "figure": _share(here["accepted"], here["assisted"]),
                "note": f"{here['accepted']} of {here['assisted']} shown",
            },
            {
                "label": "Decisions by people",
                "figure": {"value": float(here["human_labels"])},
                "kind": "count",
            },
            {
                "label": "Accepted without a person",
                "figure": {"value": 0.0},
                "kind": "count",
                "note": "not available in this version",
            },
        ],
        accuracy_by_round=[_of_round(past) for past in history],
        classes=[
            {"label": label, "count": counts.get(label, 0), "auto_accepted": 0}
            for label in project.label_schema.names
        ],
        calibration={
            "log_loss": _metric(here["calibrated"]["log_loss"]),
            "brier": _metric(here["calibrated"]["brier"]),
            "auroc": _metric(here["calibrated"]["auroc"]),
            "reliability": [
                {"mean_confidence": row["mean_confidence"], "right": row["right"]}
                for row in here["reliability"]
            ],
            "risk_coverage": [
                {"coverage": row["coverage"], "risk": row["risk"]} for row in here["risk_coverage"]
            ],
        },
        confusion=_confusion(project, folder, number),
        agreement=[_agreement(row) for row in agreement["measures"]],
        pairwise={"raters": pairwise["raters"], "cells": _cells(pairwise)},
        seconds_per_record=annotations["seconds"].to_list(),
        annotators=[
            {"name": str(name), "records": rows.height, "median_s": _median(rows)}
            for (name,), rows in annotations.group_by("annotator_id", maintain_order=True)
        ],
        findings=[
            {key: row[key] for key in ("record_id", "kind", "score", "sentence", "evidence", "state")}  # type: ignore[misc]
            for row in load_findings(project, folder, number).iter_rows(named=True)
        ],
    )
    return result


def _summary(here: dict[str, Any]) -> list[str]:
    hows = ", ".join(f"{count} {how}" for how, count in here["how"].items())
    lines = [f"Round {here['round']} is settled: {here['records']} records ({hows})."]
    gain = here["gain"]
    if gain is not None and gain["value"] is not None:
        verb = "rose" if gain["value"] > 0 else "fell" if gain["value"] < 0 else "did not change"
        sure = "" if gain["low"] > 0 or gain["high"] < 0 else "; the interval includes no change"
        lines.append(
            f"Accuracy on the slice {verb} by {abs(gain['value']):.1%} "
            f"({gain['low']:+.1%} to {gain['high']:+.1%}, paired{sure})."
        )
    return lines


def _figure(entry: dict[str, Any]) -> Any:
    figure = {key: entry[key] for key in ("value", "low", "high", "n")}
    return (
        figure
        if figure["value"] is not None
        else {**figure, "undefined_because": "no reviewed records in the slice"}
    )


def _of_round(past: dict[str, Any]) -> Any:
    return {"round": past["round"], **_figure(past["accuracy"])}


def _share(part: int, whole: int) -> Any:
    if whole == 0:
        return {"value": None, "undefined_because": "no suggestion was shown"}
    return {"value": part / whole, "n": whole}


def _metric(entry: dict[str, Any]) -> Any:
    return {"value": entry["value"], "n": entry["n"], "undefined_because": entry["undefined_because"]}


def _agreement(row: dict[str, Any]) -> Any:
    return {key: row[key] for key in ("name", "value", "low", "high", "n", "raters", "undefined_because")}


def _cells(pairwise: dict[str, Any]) -> list[list[float | None]]:
    return [[None if cell is None else cell["value"] for cell in row] for row in pairwise["cells"]]


def _median(rows: pl.DataFrame) -> float | None:
    median = rows["seconds"].median()
    return float(median) if isinstance(median, int | float) else None


def _confusion(project: Project, folder: ProjectFolder, number: int) -> Any:
    labels = project.label_schema.names
    settled = settled_values(project, folder, number + 1)
    counts = [[0] * len(labels) for _ in labels]
    for record_id, value in load_suggestions(project, folder, number, ["record_id", "value"]).iter_rows():
        truth = settled.get(record_id)
        if isinstance(truth, str) and isinstance(value, str):
            counts[labels.index(truth)][labels.index(value)] += 1
    return {"labels": list(labels), "counts": counts}
