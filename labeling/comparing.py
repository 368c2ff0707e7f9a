"""Candidate models and prompts side by side on the reviewed sample, with a recommendation that says why."""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from labeling.calibration import log_loss
from labeling.database.opening import project_database
from labeling.engines.opening import connect_engine
from labeling.engines.protocol import Engine
from labeling.engines.self_test import Point, require, self_test
from labeling.intervals import mcnemar_exact, wilson_for_best_of
from labeling.label_lists import label_lists
from labeling.paths import ProjectFolder
from labeling.record_store import texts_of
from labeling.reviewing import sample_labels
from labeling.scoring import score_batch
from labeling.setup import (
    STRENGTHS,
    Tried,
    bound_prompts,
    label_numbers,
    sample_gold,
    sample_ids,
    shortlist_figures,
    try_other_order,
    try_prompts,
)
from labeling.storage import project_lock
from schemas.errors import BusyError, LabelingError, ProjectError, SourceError
from schemas.project import Project
from schemas.values import Value

PACE_RECORDS = 16
LEAST_SAMPLE = 10
ALPHA = 0.05


@dataclass(frozen=True)
class _Candidate:
    row: dict[str, Any]
    right: npt.NDArray[np.bool_]


def reviewed_sample(project: Project, folder: ProjectFolder) -> dict[str, Value]:
    """Labels of the setup sample: the source's own where it has a gold column, else what people said."""
    sample = sample_ids(project, folder)
    known = sample_gold(project, folder, sample)
    if len(known) == len(sample):
        return known
    with project_database(project, folder) as db:
        return sample_labels(db)


def compare(
    project: Project,
    folder: ProjectFolder,
    truth: Mapping[str, Value],
    models: Sequence[str],
    *,
    on_model: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Every model with every prompt of the project on records whose labels people (or the source) gave.

    A model that cannot be opened or fails its self-test is a row with its error; the others are compared all the same.
    Intervals hold for the best of all rows together.

    Args:
        truth: Reviewed label of each record.
        models: Names as `engine.model` takes them.

    Returns:
        `models` (one row a model, prompt and calibration strength, best first), `recommended`, `reason`.

    Raises:
        SourceError: fewer than 10 reviewed records.
        ProjectError: several models for a llama-server, which serves one; a reviewed label that is gone.
        BusyError: a flow is at work on the project.
    """
    if project.engine.kind == "llama-server" and len(models) > 1:
        raise ProjectError(
            "engine.kind",
            found=f"llama-server and {len(models)} models",
            expected="one: a llama-server serves the model it was started with",
            next_step="Compare them with kind: ollama or embedded, or one llama-server after the other.",
        )
    if len(truth) < LEAST_SAMPLE:
        raise SourceError(
            "the reviewed sample",
            found=f"{len(truth)} records",
            expected=f"at least {LEAST_SAMPLE}",
            next_step="Label the setup sample first (`countersign run`), or name a gold column.",
        )
    label_numbers(project.label_schema.names, list(truth.values()))  # told once, not as each model's error
    candidates: list[_Candidate] = []
    failed: list[dict[str, Any]] = []
    for model in models:
        if on_model is not None:
            on_model(model)
        # A llama-server serves one model, whatever it is called here.
        own = model == project.engine.model or project.engine.kind == "llama-server"
        engine = project.engine if own else project.engine.model_copy(update={"model": model, "digest": None})
        try:
            with project_lock(folder.lock, "comparison"):
                candidates += _of_model(project.model_copy(update={"engine": engine}), folder, truth, model)
        except BusyError:
            raise
        except LabelingError as error:
            failed.append({"model": model, "error": f"{error.path}: {error.found}", "next": error.next_step})
    for one in candidates:
        interval = wilson_for_best_of(one.row["right"], one.row["n"], candidates=len(candidates))
        one.row["accuracy"] = {"value": interval.value, "low": interval.low, "high": interval.high}
    candidates.sort(key=lambda one: (-one.row["right"], _loss(one)))
    if not candidates:
        return {"models": failed, "recommended": None, "reason": "No model could be tried."}
    best = candidates[0]
    for one in candidates:
        lost = int((best.right & ~one.right).sum())
        won = int((~best.right & one.right).sum())
        # Both directions count: which one is better was not decided beforehand.
        one.row["p_against_best"] = None if one is best else min(1.0, 2 * mcnemar_exact(won, lost))
    if not best.row["right"]:
        rows = [*(one.row for one in candidates), *failed]
        return {
            "models": rows,
            "recommended": None,
            "reason": "Every model and prompt was right on no record.",
        }
    chosen, reason = _recommended(candidates)
    return {"models": [*(one.row for one in candidates), *failed], "recommended": chosen, "reason": reason}


def _of_model(
    project: Project, folder: ProjectFolder, truth: Mapping[str, Value], model: str
) -> list[_Candidate]:
    engine = connect_engine(project, fetch=True)
    try:
        prompts = bound_prompts(project, folder, engine)
        sample = sorted(truth)
        lists = label_lists(project, folder, engine, prompts[0])
        own = prompts[0] if lists is None else lists.prompt_for(sample[0])
        points = self_test(engine, own, digest=project.engine.digest)
        require(points)  # a model whose answers cannot be trusted is no candidate
        texts = texts_of(project, folder, sample)
        labels = project.label_schema.names
        gold = [str(truth[record_id]) for record_id in sample]
        rows: list[_Candidate] = []
        identity = engine.identity()
        named = identity.model if project.engine.kind == "llama-server" else model
        for tried in try_prompts(project, folder, engine, prompts, sample, texts):
            other = try_other_order(project, folder, engine, tried, sample, texts)
            pace = _pace(project, folder, engine, tried, sample, texts)
            lists = label_lists(project, folder, engine, tried.prompt)
            short = None if lists is None else shortlist_figures(tried.prompt, lists, truth)
            for strength in STRENGTHS:
                row, right = _row(tried, gold, labels, strength)
                row = {"model": named, "quantization": identity.quantization, **row}
                row["records_per_hour"] = pace
                row["shortlist"] = short
                row["changed_by_label_order"] = tried.changed_by_order(other, labels, strength)
                rows.append(_Candidate(row, right))
        memory = engine.memory_mb()
        for one in rows:
            one.row["memory_mb"] = memory
            one.row["warnings"] = _failed(points)
        return rows
    finally:
        engine.close()


def _failed(points: Sequence[Point]) -> list[str]:
    return [point.sentence for point in points if point.passed is False]


def _row(
    tried: Tried, gold: Sequence[str], labels: Sequence[str], strength: float
) -> tuple[dict[str, Any], npt.NDArray[np.bool_]]:
    right = tried.predicted(labels, strength) == np.array([labels.index(label) for label in gold])
    rows = np.flatnonzero(tried.usable)
    shares = np.exp(tried.calibrated(labels, strength)[rows])
    loss = log_loss(shares, [gold[int(row)] for row in rows], labels=labels).value
    return {
        "prompt": tried.prompt.template.name,
        "batch_calibration": strength,
        "right": int(right.sum()),
        "n": len(gold),
        "log_loss": loss,
        "label_mass": float(np.nanmean(tried.mass)) if tried.usable.any() else None,
        "unusable": int((~tried.usable).sum()),
    }, right


def _pace(
    project: Project,
    folder: ProjectFolder,
    engine: Engine,
    tried: Tried,
    sample: Sequence[str],
    texts: Mapping[str, str],
) -> int | None:
    """Records an hour, measured on records asked anew; their replies are not kept.

    Each begins with a word of its own: the engine's cache still holds the same texts from the trial just before.
    """
    records = [
        (record_id, f"{secrets.token_hex(3)} {texts[record_id]}") for record_id in sample[:PACE_RECORDS]
    ]
    lists = label_lists(project, folder, engine, tried.prompt)
    # The trial just before had the labels in another order, so that every slot would read the shared start anew.
    engine.warm(engine.tokenize(tried.prompt.prefix))
    started = time.perf_counter()
    outcome = score_batch(
        engine,
        tried.prompt,
        records,
        over_long=project.prompts.over_long,
        prompt_for=None if lists is None else lists.prompt_for,
    )
    seconds = time.perf_counter() - started
    return round(3600 * len(outcome.scored) / seconds) if outcome.scored else None


def _loss(one: _Candidate) -> float:
    loss = one.row["log_loss"]
    return np.inf if loss is None else float(loss)


def _recommended(candidates: Sequence[_Candidate]) -> tuple[dict[str, Any], str]:
    """The most accurate, and of several the one with the lowest log-loss.

    What is faster and not shown to be worse is named, for a person to weigh.
    """
    best = candidates[0].row
    level = [one for one in candidates if one.row["right"] == best["right"]]
    tie = ""
    if len(level) > 1:
        by = "the lowest log-loss of them" if _loss(level[0]) < _loss(level[1]) else "the first of them"
        tie = f", as {len(level) - 1} more of the rows; {by}"
    reason = (
        f"{best['model']} with {best['prompt']}: most accurate ({best['right']} of {best['n']} right){tie}."
    )
    faster = [
        one.row
        for one in candidates[1:]
        if one.row["model"] != best["model"]
        and one.row["p_against_best"] >= ALPHA
        and (one.row["records_per_hour"] or 0) > 1.5 * (best["records_per_hour"] or 0)
    ]
    if faster:
        row = faster[0]
        reason += (
            f" {row['model']} is faster ({row['records_per_hour']:,} records/h against {best['records_per_hour']:,}) "
            f"with {row['right']} right; {row['n']} records are too few to show that it is worse "
            f"(McNemar p = {row['p_against_best']:.2f}), which does not show that it is as good."
        )
    return {key: best[key] for key in ("model", "prompt", "batch_calibration")}, reason


def comparison_table(answer: Mapping[str, Any]) -> str:
    """The rows as a Markdown table, and the recommendation."""
    head = (
        "| Model | Prompt | Calibration | Right | Accuracy (95 %) | p against best (each alone) | Log-loss "
        "| Label mass | Changed by label order | Records/h | Memory |\n|---|---|---|---|---|---|---|---|---|---|---|\n"
    )
    lines = []
    for row in answer["models"]:
        if "error" in row:
            lines.append(f"| {row['model']} | could not be tried: {row['error']} | | | | | | | | | |")
            continue
        accuracy = row["accuracy"]
        lines.append(
            f"| {row['model']} ({row['quantization']}) | {row['prompt']} | {row['batch_calibration']:g} "
            f"| {row['right']}/{row['n']} | {accuracy['value']:.0%} ({accuracy['low']:.0%} to {accuracy['high']:.0%}) "
            f"| {_number(row['p_against_best'], '.3f')} | {_number(row['log_loss'], '.3f')} "
            f"| {_number(row['label_mass'], '.2f')} | {_number(row['changed_by_label_order'], '.0%')} "
            f"| {_number(row['records_per_hour'], ',')} "
            f"| {_number(row['memory_mb'], ',.0f', unit=' MB')} |"
        )
    warnings = [
        f"- {row['model']}: {sentence}" for row in answer["models"] for sentence in row.get("warnings", ())
    ]
    for row in answer["models"]:
        short = row.get("shortlist")
        if short is not None:
            found = short["recall"]
            warnings.append(
                f"- {row['model']} is asked about the {short['labels']} of {short['of']} labels nearest to a record; "
                f"the right one is among them for {found['value']:.0%} of the sample "
                f"({found['low']:.0%} to {found['high']:.0%})."
            )
    told = "\n" + "\n".join(dict.fromkeys(warnings)) if warnings else ""
    return head + "\n".join(lines) + f"\n\n{answer['reason']}{told}"


def _number(value: float | None, form: str, *, unit: str = "") -> str:
    return "–" if value is None else f"{value:{form}}{unit}"
