"""The setup phase: a blind random sample, and what each prompt is worth on it.

The sample is the first records by a seeded hash: raising `setup.sample` adds records and keeps those already labelled.
Every prompt is tried with and without batch calibration; the winner's interval is corrected for having been chosen.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from labeling.calibration import fit_batch_calibration, fit_correctness, is_reported
from labeling.engines.protocol import Engine
from labeling.engines.self_test import (
    Point,
    as_json,
    labels_first,
    labels_told,
    require,
    self_test,
    warnings_of,
)
from labeling.intervals import gate_verdict, records_to_conclude, wilson_for_best_of
from labeling.label_lists import LabelLists, label_lists, listing_for, recall
from labeling.paths import ProjectFolder
from labeling.planned import has_drafts
from labeling.prompts import Prompt, bind, label_codes, load_template
from labeling.record_store import record_ids, rows_of, texts_of
from labeling.score_store import ScoreStore, register, score_missing
from labeling.scoring import NO_ANSWER
from labeling.selection import self_test_sample, simple_random_sample
from labeling.storage import read_json, write_json
from labeling.suggesting import Suggester
from schemas.errors import LabelsNotTold, ProjectError, SourceError, TooManyRejected
from schemas.plan import Plan
from schemas.project import Project
from schemas.values import Value, content_hash

STRENGTHS = (0.0, 1.0)


def sample_ids(project: Project, folder: ProjectFolder) -> list[str]:
    """Ids of the setup sample, a simple random sample of the records as they are now.

    Raises:
        SourceError: there are fewer records than the sample asks for.
    """
    return _sample_of(project, record_ids(project, folder))


def _sample_of(project: Project, ids: Sequence[str]) -> list[str]:
    if len(ids) < project.setup.sample + 10:
        raise SourceError(
            "sources",
            found=f"{len(ids)} records to label",
            expected=f"at least {project.setup.sample + 10} (setup.sample and 10 more)",
            next_step="Add records, or lower setup.sample.",
        )
    return simple_random_sample(ids, project.setup.sample, _sample_seed(project))


def draw_sample(project: Project, folder: ProjectFolder) -> list[str]:
    """The setup sample, written to sample.json with its seed.

    Raises:
        SourceError: as `sample_ids`.
    """
    ids = record_ids(project, folder)
    sample = _sample_of(project, ids)
    write_json(
        folder.sample,
        {
            "records": len(ids),
            "seed": _sample_seed(project),
            "sample": sample,
            "method": "first by SHA-256(seed|id)",
        },
    )
    return sample


def _sample_seed(project: Project) -> int:
    return project.seed


def sample_gold(project: Project, folder: ProjectFolder, sample: Sequence[str]) -> dict[str, Value]:
    """Known labels of the sample where the source has a gold column; then nobody is asked."""
    if not any(source.gold for source in project.sources):
        return {}
    rows = rows_of(project, folder, sample, ["gold"])
    return {
        record_id: gold
        for record_id, gold in rows.select("record_id", "gold").iter_rows()
        if gold is not None
    }


def bound_prompts(project: Project, folder: ProjectFolder, engine: Engine) -> list[Prompt]:
    """The project's prompts as this engine's tokenizer spells them."""
    listing = listing_for(project, engine)
    codes = label_codes(
        project.label_schema.labels, engine.first_token, style=project.prompts.codes, most=listing.most
    )
    return [
        bind(load_template(name, folder.root), project, codes, listing=listing)
        for name in project.prompts.files
    ]


def label_numbers(labels: Sequence[str], told: Sequence[Value]) -> npt.NDArray[np.int64]:
    """(n,) place of each label of the sample in the project's list.

    Raises:
        ProjectError: one is no label of the project any more.
    """
    gone = sorted({str(value) for value in told if value not in labels})
    if gone:
        raise ProjectError(
            "schema.labels",
            found=f"no label {gone[0]!r}, which records of the sample were given",
            expected="every label that the sample was labelled with",
            next_step="Put it back; other labels need a new project.",
        )
    return np.array([labels.index(str(value)) for value in told], dtype=np.int64)


@dataclass(frozen=True)
class Tried:
    """A prompt on n records: (n, K) raw log-probabilities, (n,) label mass, and which rows are usable.

    `given_up`: so many replies were not usable that the rest was not asked.
    """

    prompt: Prompt
    store: ScoreStore
    scores: npt.NDArray[np.float64]
    mass: npt.NDArray[np.float64]
    usable: npt.NDArray[np.bool_]
    given_up: TooManyRejected | None = None

    def calibrated(self, labels: Sequence[str], strength: float) -> npt.NDArray[np.float64]:
        """(n, K) log-probabilities after batch calibration; rows of NaN where not usable."""
        logs = np.full((len(self.usable), len(labels)), np.nan)
        if self.usable.any():
            scores = self.scores[self.usable]
            calibration = fit_batch_calibration(scores, labels=labels, default_strength=strength)
            logs[self.usable] = calibration.apply(scores)
        return logs

    def predicted(self, labels: Sequence[str], strength: float) -> npt.NDArray[np.int64]:
        """(n,) number of the most likely label, -1 where not usable."""
        return np.where(self.usable, self.calibrated(labels, strength).argmax(axis=1), -1)

    def changed_by_order(
        self, turned: "Tried | None", labels: Sequence[str], strength: float
    ) -> float | None:
        """Share of the records both could use whose label depends on the order in which the prompt lists the labels.

        Args:
            turned: What `try_other_order` gave.
        """
        if turned is None:
            return 0.0
        both = self.usable & turned.usable
        first = self.predicted(labels, strength)
        second = len(labels) - 1 - turned.predicted(labels[::-1], strength)
        return float((first != second)[both].mean()) if both.any() else None


def try_prompts(
    project: Project,
    folder: ProjectFolder,
    engine: Engine,
    prompts: Sequence[Prompt],
    record_ids: Sequence[str],
    texts: Mapping[str, str],
    *,
    on_record: Callable[[], None] | None = None,
) -> Iterator[Tried]:
    """Scores records with each prompt; what was asked before is read from the store.

    A prompt with too many unusable replies is given up, with all that it was not asked as unusable: to tell that is
    what the trial is for.
    """
    for prompt in prompts:
        store = register(project, folder, engine, prompt)
        engine.warm(engine.tokenize(prompt.prefix))
        given_up = None
        outcomes = score_missing(
            engine,
            prompt,
            store,
            ((record_id, texts[record_id]) for record_id in record_ids),
            project=project,
            folder=folder,
            known=store.known(),
            on_record=on_record,
        )
        try:
            for _ in outcomes:
                pass
        except TooManyRejected as error:
            # Against the prompt; an engine that is away is against none.
            if NO_ANSWER in error.found:
                raise
            given_up = error
        scores, mass = store.matrix(record_ids)
        width = len(project.label_schema.names)
        usable: npt.NDArray[np.bool_] = (
            np.asarray(np.isfinite(scores).all(axis=1))
            if scores.shape[1] == width
            else np.zeros(len(record_ids), dtype=np.bool_)
        )
        yield Tried(prompt, store, scores, mass, usable, given_up)


def try_other_order(
    project: Project,
    folder: ProjectFolder,
    engine: Engine,
    tried: Tried,
    record_ids: Sequence[str],
    texts: Mapping[str, str],
    *,
    on_record: Callable[[], None] | None = None,
) -> Tried | None:
    """The same records with the labels listed the other way round; None for a prompt that lists none."""
    prompt = tried.prompt
    turned = bind(prompt.template, project, prompt.codes[::-1], listing=prompt.listing)
    if (turned.prefix, turned.cue) == (prompt.prefix, prompt.cue):
        return None
    (answer,) = try_prompts(project, folder, engine, [turned], record_ids, texts, on_record=on_record)
    return answer


def measure_prompts(
    project: Project,
    folder: ProjectFolder,
    engine: Engine,
    truth: Mapping[str, Value],
    *,
    on_record: Callable[[], None] | None = None,
) -> tuple[Plan, dict[str, Any]]:
    """Scores the sample with every prompt and picks the best; returns the plan of round 1 and the figures.

    Args:
        truth: Blind labels of the sample; records people found impossible to label are not among them.
        on_record: Called after each reply, for progress.
    """
    sample = sorted(truth)
    texts = texts_of(project, folder, sample)
    labels = project.label_schema.names
    gold = label_numbers(labels, [truth[record_id] for record_id in sample])
    candidates: list[dict[str, Any]] = []
    predictions: list[npt.NDArray[np.int64]] = []
    tries: list[Tried] = []
    prompts = bound_prompts(project, folder, engine)
    basis = _basis(project, engine, prompts, truth)
    keep_self_test(project, folder, engine, prompts[0], 1)
    for tried in try_prompts(project, folder, engine, prompts, sample, texts, on_record=on_record):
        store, usable = tried.store, tried.usable
        tries.append(tried)
        for strength in STRENGTHS:
            predicted = tried.predicted(labels, strength)
            predictions.append(predicted)
            candidates.append(
                {
                    "template": tried.prompt.template.name,
                    "prompt_id": store.prompt_id,
                    "identity_id": store.identity_id,
                    "strength": strength,
                    "right": int((predicted == gold).sum()),
                    "n": len(sample),
                    "unusable": int((~usable).sum()),
                    "label_mass": float(np.nanmean(tried.mass)) if usable.any() else None,
                }
            )
    useless = [tried.given_up for tried in tries if tried.given_up is not None]
    if len(useless) == len(tries):
        raise useless[0]
    best = max(range(len(candidates)), key=lambda index: (candidates[index]["right"], -index))
    winner, chosen = candidates[best], tries[best // len(STRENGTHS)]
    figures = _figures(project, candidates, best, gold, predictions[best])
    turned = try_other_order(project, folder, engine, chosen, sample, texts, on_record=on_record)
    figures["changed_by_label_order"] = chosen.changed_by_order(turned, labels, winner["strength"])
    lists = label_lists(project, folder, engine, chosen.prompt)
    figures["shortlist"] = None if lists is None else shortlist_figures(chosen.prompt, lists, truth)
    figures["basis"] = basis
    correctness = _first_confidence(project, folder, winner, sample, texts, gold)
    plan = Plan(
        round=1,
        template=winner["template"],
        prompt_id=winner["prompt_id"],
        identity_id=winner["identity_id"],
        strength=winner["strength"],
        correctness=correctness,
        reviewed=len(sample),
        candidates=tuple(candidates),
        sentences=(
            f"Prompt {winner['template']} with batch calibration {winner['strength']:g} was right on {winner['right']} "
            f"of {winner['n']} sample records, the best of {len(candidates)} candidates.",
            figures["sentence"],
            *_list_sentences(figures),
        ),
    )
    return plan, figures


def kept_figures(
    project: Project, folder: ProjectFolder, engine: Engine, truth: Mapping[str, Value]
) -> dict[str, Any] | None:
    """The figures of the setup while they are those of this sample, these prompts and this model; None otherwise."""
    if not folder.round(1).setup.is_file():
        return None
    figures: dict[str, Any] = read_json(folder.round(1).setup)
    basis = _basis(project, engine, bound_prompts(project, folder, engine), truth)
    return figures if figures.get("basis") == basis else None


def _basis(project: Project, engine: Engine, prompts: Sequence[Prompt], truth: Mapping[str, Value]) -> str:
    """Content hash of all that the figures of the setup depend on."""
    return content_hash(
        {
            "engine": engine.identity().as_dict(),
            "prompts": [prompt.prompt_id for prompt in prompts],
            "truth": dict(truth),
            "threshold": project.setup.threshold,
            "over_long": project.prompts.over_long,
        }
    )


def shortlist_figures(prompt: Prompt, lists: LabelLists, truth: Mapping[str, Value]) -> dict[str, Any] | None:
    """How many labels a record is asked about and how often the right one is among them; None where all are."""
    if prompt.listing.most is None:
        return None
    found = recall(lists, truth)
    interval = {"value": found.value, "low": found.low, "high": found.high, "n": found.n}
    return {"labels": prompt.listing.most, "of": len(prompt.codes), "recall": interval}


def _list_sentences(figures: Mapping[str, Any]) -> list[str]:
    sentences = []
    changed, short = figures["changed_by_label_order"], figures["shortlist"]
    if changed is not None:
        sentences.append(f"With the labels listed the other way round {changed:.0%} of the drafts change.")
    if short is not None:
        told = short["recall"]
        sentences.append(
            f"This engine tells few tokens, so each record is asked about the {short['labels']} of {short['of']} "
            f"labels nearest to it; the right one is among them for {told['value']:.0%} of the sample "
            f"({told['low']:.0%} to {told['high']:.0%}, n = {told['n']})."
        )
    return sentences


def _first_confidence(
    project: Project,
    folder: ProjectFolder,
    winner: Mapping[str, Any],
    sample: Sequence[str],
    texts: Mapping[str, str],
    gold: npt.NDArray[np.int64],
) -> dict[str, Any] | None:
    """P(suggestion right), learned on the sample alone; people are shown it only once it rests on more records."""
    labels = project.label_schema.names
    store = ScoreStore(project, folder, identity_id=winner["identity_id"], prompt_id=winner["prompt_id"])
    plan = Plan(
        round=1,
        template=winner["template"],
        prompt_id=winner["prompt_id"],
        identity_id=winner["identity_id"],
        strength=winner["strength"],
    )
    proposal = Suggester(project, plan, store, None).propose(
        sample, [len(texts[record_id]) for record_id in sample]
    )
    if not proposal.usable.any():
        return None
    rows = np.flatnonzero(proposal.usable)
    chosen = proposal.probabilities[rows].argmax(axis=1)
    features = {name: values[rows] for name, values in proposal.features.items()}
    fit = fit_correctness(
        features, [labels[index] for index in chosen], chosen == gold[rows], labels=labels, seed=project.seed
    )
    return None if fit.model is None else fit.model.to_json()


def _figures(
    project: Project,
    candidates: list[dict[str, Any]],
    best: int,
    gold: npt.NDArray[np.int64],
    predicted: npt.NDArray[np.int64],
) -> dict[str, Any]:
    labels = project.label_schema.names
    right, n, tried = candidates[best]["right"], len(gold), len(candidates)
    threshold = project.setup.threshold
    interval = wilson_for_best_of(right, n, candidates=tried)
    verdict = gate_verdict(right, n, threshold=threshold, candidates=tried)
    more = (
        records_to_conclude(right, n, threshold=threshold, candidates=tried)
        if verdict == "inconclusive"
        else None
    )
    confusion = [
        [int(((gold == t) & (predicted == p)).sum()) for p in range(len(labels))] for t in range(len(labels))
    ]
    return {
        "accuracy": {"value": interval.value, "low": interval.low, "high": interval.high, "n": n},
        "threshold": threshold,
        "verdict": verdict,
        "more_records": more,
        "candidates": candidates,
        "labels": list(labels),
        "support": [int((gold == index).sum()) for index in range(len(labels))],
        "confusion": confusion,
        "unusable": candidates[best]["unusable"],
        "sentence": _sentence(verdict, interval.low, interval.high, threshold, tried, more),
    }


def _sentence(
    verdict: str, low: float | None, high: float | None, threshold: float, tried: int, more: int | None
) -> str:
    span = f"{low:.0%} to {high:.0%}" if low is not None and high is not None else "undefined"
    start = (
        f"Accuracy of the drafts: {span} (95 %, corrected for choosing among {tried}); "
        f"threshold {threshold:.0%}: {verdict}."
    )
    if verdict == "pass":
        return start
    if verdict == "inconclusive" and more is not None:
        return f"{start} About {more} more sample records would settle it: raise setup.sample by that and run again."
    if verdict == "inconclusive":
        return f"{start} No reasonable number of further records would settle it."
    return f"{start} Improve the prompts or use a larger model; a lead may also sign to go on with weaker drafts."


def keep_self_test(
    project: Project, folder: ProjectFolder, engine: Engine, prompt: Prompt, number: int
) -> list[str]:
    """Tests the engine with a prompt once a round, before its answers count, and keeps what came of it with the round.

    Returns what a person should know of it, a sentence each.

    Raises:
        EngineError: a critical point failed; the points are kept all the same.
    """
    path = folder.round(number).self_test
    if path.is_file():
        told = read_json(path)
        failed = any(point["critical"] and point["passed"] is False for point in told["points"])
        same = (told["engine"], told.get("prompt_id")) == (engine.identity().as_dict(), prompt.prompt_id)
        if same and not failed:
            return warnings_of(told)
    lists = label_lists(project, folder, engine, prompt)
    ids = self_test_sample(record_ids(project, folder), _sample_seed(project))
    own = prompt if lists is None else lists.prompt_for(ids[0])
    points = self_test(engine, own, digest=project.engine.digest)
    if not any(point.critical and point.passed is False for point in points):
        points += _on_the_sample(project, folder, engine, prompt, ids)
    write_json(path, {**as_json(points, engine), "prompt_id": prompt.prompt_id})
    require(points)
    return warnings_of(read_json(path))


def _on_the_sample(
    project: Project, folder: ProjectFolder, engine: Engine, prompt: Prompt, ids: Sequence[str]
) -> tuple[Point, ...]:
    """Asks the first records of the sample, which no plan leaves out; their scores are kept like all others."""
    store = register(project, folder, engine, prompt)
    texts = texts_of(project, folder, ids)
    first = asked = 0
    known = store.known()
    try:
        for outcome in score_missing(
            engine, prompt, store, iter(texts.items()), project=project, folder=folder, known=known
        ):
            first += sum(row.label_first for row in outcome.scored)
            asked += len(outcome.scored) + len(outcome.set_aside)
    except LabelsNotTold as error:
        return (Point("labels come first", False, False, f"{error.found}.", error.next_step),)
    point = labels_first(first, asked)
    # A label that was not listed is not told either.
    if engine.tells is None or prompt.listing.most is not None:
        return (point,)
    scores, _ = store.matrix(ids)
    scores = scores[np.isfinite(scores).all(axis=1)]
    columns = zip(prompt.codes, scores.T, strict=False)
    never = [code.label for code, column in columns if not is_reported(column).any()]
    return point, labels_told(never, len(scores))


def save_setup(folder: ProjectFolder, plan: Plan, figures: dict[str, Any]) -> None:
    """Writes the plan of round 1 and the figures of the setup."""
    write_json(folder.round(1).plan, plan.model_dump())
    write_json(folder.round(1).setup, figures)  # last: where the figures are, the plan is


def setup_stands(project: Project, folder: ProjectFolder) -> bool:
    """Whether the setup can no longer be measured anew: drafts of round 1 were made with its plan."""
    return folder.round(1).setup.is_file() and has_drafts(project, folder, 1)


def load_plan(folder: ProjectFolder, number: int) -> Plan:
    """The plan of a round. Raises StorageError when the phase that writes it has not run."""
    return Plan.model_validate(read_json(folder.round(number).plan))
