"""What a round taught goes into the next: calibration, student, confidence, and prompts that prove themselves.

Nothing here ever reads the slice: it is what the result is measured on. A candidate prompt ships only if a paired test
on reviewed records says that it is better (exact McNemar, one-sided, p < 0.05); an ungated change is a coin toss.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from labeling.calibration import entropy, fit_batch_calibration, fit_correctness, margin
from labeling.cascade import batch_of, fit_student_confidence, left_to_student, random_share
from labeling.engines.protocol import Engine
from labeling.intervals import mcnemar_exact, paired_gain, wilson
from labeling.label_lists import listing_for
from labeling.paths import ProjectFolder
from labeling.planned import has_drafts
from labeling.prompts import Exemplar, Prompt, bind, only_text, spelled_by
from labeling.record_store import Vectors, record_ids, rows_of, texts_of
from labeling.score_store import ScoreStore, register
from labeling.setup import bound_prompts, load_plan, try_prompts
from labeling.storage import content_id, read_json, write_bytes, write_json
from labeling.students import StackFit, fit_stack
from labeling.suggesting import Suggester, load_suggestions, planned_prompt
from schemas.errors import EngineError, PromptTooLong, StorageError
from schemas.plan import Cascade, Plan
from schemas.project import Project

SHIP_AT_P = 0.05
STACK_FROM = 20  # reviewed records below which a student would only add noise
# Records a candidate prompt is tried on, one engine call each: 60 missed gains of 10 points.
HELD_OUT_MOST = 150
SHORT_RECORD = "word " * 64
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Lesson:
    """Reviewed records that the loop may learn from: sorted ids, their texts and settled labels."""

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    labels: tuple[str, ...]


def lesson(project: Project, folder: ProjectFolder, settled: Mapping[str, Any]) -> Lesson:
    """What may be learned from: settled labels outside the slice."""
    kept_away = set(read_json(folder.round(1).slice)["slice"])
    ids = sorted(
        record_id for record_id, value in settled.items() if value is not None and record_id not in kept_away
    )
    texts = dict(rows_of(project, folder, ids, ["text"]).select("record_id", "text").iter_rows())
    return Lesson(
        tuple(ids),
        tuple(texts[record_id] for record_id in ids),
        tuple(settled[record_id] for record_id in ids),
    )


def make_plan(
    project: Project,
    folder: ProjectFolder,
    engine: Engine,
    vectors: Vectors | None,
    *,
    number: int,
    settled: Mapping[str, Any],
    on_record: Callable[[], None] | None = None,
) -> Plan:
    """The plan of round `number` from everything settled before it; written as plan.json and plan.md.

    Args:
        settled: Gold values of the earlier rounds by record id; None where people found a record not labellable.
        on_record: Called after each reply of the engine, for progress.
    """
    known = lesson(project, folder, settled)
    before = load_plan(folder, number - 1)
    candidates, sentences = [], []
    current, trials = _prompt_trials(project, folder, engine, before, known)
    chosen, tried = _try_prompts(project, folder, engine, current, trials, known, on_record=on_record)
    candidates += tried
    sentences.append(_prompt_sentence(current, chosen, tried))
    _ask_before_learning(project, folder, engine, chosen, known, on_record)
    store = register(project, folder, engine, chosen)
    plan = _learned(project, folder, store, vectors, known, number=number, template=chosen)
    final = plan.model_copy(
        update={"candidates": tuple(candidates), "sentences": (*sentences, *plan.sentences)},
    )
    write_json(folder.round(number).plan, final.model_dump())
    write_bytes(folder.round(number).plan.with_suffix(".md"), plan_text(final).encode())
    return final


def require_no_drafts(project: Project, folder: ProjectFolder, number: int) -> None:
    """A plan stands once drafts were made with it.

    Raises:
        StorageError: round `number` has drafts; under another plan its table and its report would tell of two.
    """
    if has_drafts(project, folder, number):
        raise StorageError(
            f"plan of round {number}",
            found="drafts that were made with it",
            expected="a round without drafts, whose plan can still change",
            next_step=f"Finish round {number}: what was changed since is tried when the round after it is planned.",
        )


def _prompt_trials(
    project: Project, folder: ProjectFolder, engine: Engine, before: Plan, known: Lesson
) -> tuple[Prompt, list[Prompt]]:
    """The prompt in use, and those to try against it: files changed or added since, and the same with exemplars."""
    bound = bound_prompts(project, folder, engine)
    used = planned_prompt(project, folder, before)
    in_use = _for_this_engine(project, engine, used, known)
    if in_use is None:
        in_use = next((prompt for prompt in bound if prompt.template.name == used.template.name), bound[0])
    in_use = next((prompt for prompt in bound if prompt.prompt_id == in_use.prompt_id), in_use)
    plans = [before, *(load_plan(folder, number) for number in range(1, before.round))]
    # What another model made of a prompt says nothing of this one.
    identity_id = content_id(engine.identity().as_dict())
    seen = {
        candidate["prompt_id"]
        for plan in plans
        if plan.identity_id == identity_id
        for candidate in plan.candidates
    } | {in_use.prompt_id}
    trials = [prompt for prompt in bound if prompt.prompt_id not in seen]
    if project.prompts.exemplars and not in_use.exemplars and in_use.template.source:
        exemplars = balanced_exemplars(
            known, project.label_schema.names, project.prompts.exemplars, control_marks=engine.control_marks
        )
        with_exemplars = bind(in_use.template, project, in_use.codes, exemplars, listing=in_use.listing)
        record = SHORT_RECORD
        if project.prompts.over_long == "refuse" and known.texts:  # others are cut to what room there is
            record = sorted(known.texts, key=len)[len(known.texts) * 9 // 10]
        while exemplars and not _leaves_room(engine, with_exemplars, record):  # long texts: half as many
            exemplars = exemplars[: len(exemplars) // 2]
            with_exemplars = bind(in_use.template, project, in_use.codes, exemplars, listing=in_use.listing)
        if (with_exemplars.prefix, with_exemplars.cue) != (
            in_use.prefix,
            in_use.cue,
        ):  # a template may show none
            trials.append(with_exemplars)
    return in_use, trials


def _for_this_engine(project: Project, engine: Engine, used: Prompt, known: Lesson) -> Prompt | None:
    """The prompt in use as the model at hand spells it; None where that one cannot use it.

    Another engine may be at hand than the plan was made for: one whose tokens do not tell the labels apart, that tells
    fewer or more of them, or that reads a command in an exemplar; or another embedding model says which are near.
    """
    listing = listing_for(project, engine)
    if (used.listing.most, used.listing.by) != (listing.most, listing.by):
        return None
    texts = dict(zip(known.ids, known.texts, strict=True))
    shown = [texts.get(exemplar.record_id, "") for exemplar in used.exemplars]
    if not all(only_text(text, engine.control_marks) for text in shown):
        return None
    return spelled_by(used, engine.first_token)


def _leaves_room(engine: Engine, prompt: Prompt, record: str) -> bool:
    """Whether a record fits beside the prompt; asked, since some engines do not count."""
    try:
        engine.score(engine.tokenize(prompt.around(record)), prompt.codes, slot=0)
    except PromptTooLong:
        return False
    except EngineError as error:
        if error.retryable:
            raise
    return True


def balanced_exemplars(
    known: Lesson, labels: Sequence[str], most: int, *, control_marks: Collection[str] = ()
) -> list[Exemplar]:
    """Short reviewed records, one a label in turn: long ones would cost every later record their tokens.

    None that the engine would read a command in (`control_marks`): it would be obeyed in every later record's prompt.
    """
    usable = [index for index, text in enumerate(known.texts) if only_text(text, control_marks)]
    order = sorted(usable, key=lambda index: (len(known.texts[index]), known.ids[index]))
    by_label = {label: [index for index in order if known.labels[index] == label] for label in labels}
    picked: list[int] = []
    rank = 0
    while len(picked) < most and any(len(members) > rank for members in by_label.values()):
        picked += [members[rank] for members in by_label.values() if len(members) > rank]
        rank += 1
    return [Exemplar(known.ids[index], known.texts[index], known.labels[index]) for index in picked[:most]]


def _try_prompts(
    project: Project,
    folder: ProjectFolder,
    engine: Engine,
    current: Prompt,
    trials: Sequence[Prompt],
    known: Lesson,
    *,
    on_record: Callable[[], None] | None,
) -> tuple[Prompt, list[dict[str, Any]]]:
    """Each trial against the prompt in use, on reviewed records that are an exemplar in neither."""
    chosen, report = current, []
    for trial in trials:
        shown = {exemplar.record_id for exemplar in (*trial.exemplars, *chosen.exemplars)}
        held_out = [index for index in range(len(known.ids)) if known.ids[index] not in shown][:HELD_OUT_MOST]
        if not held_out:
            continue
        right_now = _right(project, folder, engine, chosen, known, held_out, on_record)
        right_then = _right(project, folder, engine, trial, known, held_out, on_record)
        p = mcnemar_exact(int((right_now & ~right_then).sum()), int((~right_now & right_then).sum()))
        gain = paired_gain(right_now, right_then)
        ships = p < SHIP_AT_P
        report.append(
            {
                "template": trial.template.name,
                "prompt_id": trial.prompt_id,
                "exemplars": len(trial.exemplars),
                "right": int(right_then.sum()),
                "right_before": int(right_now.sum()),
                "n": len(held_out),
                "gain": {"value": gain.value, "low": gain.low, "high": gain.high},
                "p": p,
                "ships": ships,
            }
        )
        if ships:
            chosen = trial
    return chosen, report


def _right(
    project: Project,
    folder: ProjectFolder,
    engine: Engine,
    prompt: Prompt,
    known: Lesson,
    rows: Sequence[int],
    on_record: Callable[[], None] | None,
) -> npt.NDArray[np.bool_]:
    ids = [known.ids[index] for index in rows]
    texts = {known.ids[index]: known.texts[index] for index in rows}
    (tried,) = try_prompts(project, folder, engine, [prompt], ids, texts, on_record=on_record)
    labels = project.label_schema.names
    gold = np.array([labels.index(known.labels[index]) for index in rows])
    # Both prompts are judged after batch calibration, which needs no labels and removes what a prompt itself says.
    right: npt.NDArray[np.bool_] = tried.predicted(labels, 1.0) == gold
    return right


def _ask_before_learning(
    project: Project,
    folder: ProjectFolder,
    engine: Engine,
    prompt: Prompt,
    known: Lesson,
    on_record: Callable[[], None] | None,
) -> None:
    """Scores the reviewed records and the random share, where the prompt or the model is new to them: what the language
    model is worth is learned on the ones, and the others make the mean that suggestions will see.

    The reviewed records alone are the unsure ones, and their mean is not the data's. Pre-annotation would ask the same
    records with the same prompt and finds their scores.
    """
    wanted = random_share(project, record_ids(project, folder)) | set(known.ids)
    ids = sorted(wanted - register(project, folder, engine, prompt).known())
    if not ids:
        return
    texts = texts_of(project, folder, ids)
    for _ in try_prompts(project, folder, engine, [prompt], ids, texts, on_record=on_record):
        pass


def _prompt_sentence(current: Prompt, chosen: Prompt, tried: Sequence[Mapping[str, Any]]) -> str:
    if not tried:
        return f"Prompt {current.template.name} stays: no other was there to try."
    told = "; ".join(
        f"{trial['template']}{' with exemplars' if trial['exemplars'] else ' (changed file)'} got {trial['right']} of "
        f"{trial['n']} right against {trial['right_before']} (p = {trial['p']:.3f})"
        for trial in tried
    )
    verdict = "stays" if chosen is current else f"is replaced by {chosen.template.name}, a new version"
    return f"Prompt {current.template.name} {verdict}: {told}."


def _learned(
    project: Project,
    folder: ProjectFolder,
    store: ScoreStore,
    vectors: Vectors | None,
    known: Lesson,
    *,
    number: int,
    template: Prompt,
) -> Plan:
    labels = project.label_schema.names
    base = Plan(
        round=number,
        template=template.template.name,
        prompt_id=store.prompt_id,
        identity_id=store.identity_id,
        strength=1.0,
        exemplar_ids=tuple(exemplar.record_id for exemplar in template.exemplars),
        reviewed=len(known.ids),
    )
    scores, mass = store.matrix(known.ids)
    if scores.shape[1] != len(labels):
        scores = np.full((len(known.ids), len(labels)), np.nan)
    # The prompt tells the labels of its exemplars: what the model then says of those records teaches nothing.
    shown = [record_id in base.exemplar_ids for record_id in known.ids]
    scores[shown], mass[shown] = np.nan, np.nan
    have: npt.NDArray[np.bool_] = np.asarray(np.isfinite(scores).all(axis=1), dtype=np.bool_)
    # The mean that the suggestions will use; the reviewed records are the unsure ones, and theirs is another.
    calibration = Suggester(project, base, store, None, batch=batch_of(project, folder, store)).calibration
    words = []
    if have.sum() >= 2:
        calibration = fit_batch_calibration(
            scores[have],
            labels=labels,
            gold=[label for label, there in zip(known.labels, have, strict=True) if there],
            mean_scores=calibration.mean_scores,
            seed=project.seed,
        )
        words.append(
            f"Batch calibration {calibration.strength:g}, chosen on {int(have.sum())} reviewed records."
        )
    base = base.model_copy(update={"strength": calibration.strength, "sentences": tuple(words)})
    lacking = _no_student(project, vectors, known)
    if vectors is None or lacking is not None:
        return base.model_copy(update={"sentences": (*words, f"No student: {lacking}.")})
    llm = np.full(scores.shape, np.nan)
    if have.any():
        llm[have] = calibration.apply(scores[have])
    matrix = vectors.of(known.ids)
    fitted = fit_stack(
        matrix,
        known.labels,
        labels=labels,
        llm_scores=llm,
        lexical=vectors.lexical_of(known.ids),
        seed=project.seed,
    )
    out = fitted.out_of_sample
    chosen = out.argmax(axis=1)
    student = fitted.parts_out_of_sample["student"]
    votes = fitted.parts_out_of_sample["neighbours"]
    features = {
        "margin": margin(out),
        "entropy": entropy(out),
        "label_mass": mass,
        "student_agrees": (student.argmax(axis=1) == chosen).astype(np.float64),
        "student_margin": margin(student),
        "neighbour_share": votes[np.arange(len(chosen)), chosen],
        "text_length": np.array([float(len(text)) for text in known.texts]),
    }
    gold = np.array([labels.index(label) for label in known.labels])
    correctness = fit_correctness(
        features, [labels[index] for index in chosen], chosen == gold, labels=labels, seed=project.seed
    )
    mixed = " / ".join(f"{weight:g}" for weight in fitted.stack.weights)
    words.append(
        f"Student of meaning, student of wording, LLM and neighbours mixed as {mixed}; together right on "
        f"{int((chosen == gold).sum())} of {len(gold)} reviewed records, out of sample."
    )
    if correctness.model is None:
        words.append(f"Confidence is not yet known: {correctness.undefined_because}.")
    plan = base.model_copy(
        update={
            "stack": {
                "model": fitted.stack.to_json(),
                "reference_ids": list(known.ids),
                "vectors": vectors.model_id,
            },
            "correctness": None if correctness.model is None else correctness.model.to_json(),
            "sentences": tuple(words),
        }
    )
    if project.iteration.cascade is None:
        return plan
    return _with_cascade(project, folder, store, vectors, plan, fitted, known, project.iteration.cascade)


def _no_student(project: Project, vectors: Vectors | None, known: Lesson) -> str | None:
    """Why no student can be taught; None where one can."""
    if project.embedding.kind == "none":
        return "the project has no embedding model (embedding.kind: none)"
    if vectors is None:
        return f"no vectors of {project.embedding.model} yet, which the setup flow makes"
    if len(known.ids) < STACK_FROM:
        return f"{len(known.ids)} reviewed records (needs {STACK_FROM})"
    if len(set(known.labels)) < 2:
        return f"all {len(known.ids)} reviewed records have the same label"
    return None


def _with_cascade(
    project: Project,
    folder: ProjectFolder,
    store: ScoreStore,
    vectors: Vectors,
    plan: Plan,
    fitted: StackFit,
    known: Lesson,
    threshold: float,
) -> Plan:
    """The plan with the records of the student's own, or with the reason why there are none."""
    fit = fit_student_confidence(fitted, known.labels, labels=project.label_schema.names, seed=project.seed)
    if fit.model is None:
        sentence = f"No cascade: the student's confidence is not yet known: {fit.undefined_because}."
        return plan.model_copy(update={"sentences": (*plan.sentences, sentence)})
    ids = record_ids(project, folder)
    cascade = Cascade(
        threshold=threshold,
        confidence=fit.model.to_json(),
        records=len(ids),
        alone=0,
        to_ask=0,
        at_random=len(random_share(project, ids)),
    )
    without_score = set(ids) - store.known()
    alone = left_to_student(project, folder, plan.model_copy(update={"cascade": cascade}), vectors)
    alone &= without_score
    cascade = cascade.model_copy(
        update={"alone": len(alone), "to_ask": len(without_score) - len(alone)},
    )
    sentence = (
        f"Cascade: of {len(without_score)} records without a score of this prompt the student answers {len(alone)} "
        f"alone (sure from {threshold:g} on), the language model is asked {cascade.to_ask}."
    )
    return plan.model_copy(update={"cascade": cascade, "sentences": (*plan.sentences, sentence)})


def slice_accuracy(
    project: Project, folder: ProjectFolder, number: int, settled: Mapping[str, Any]
) -> dict[str, Any]:
    """Accuracy of a round's suggestions on the slice no loop sees, and the gain over the round before, paired.

    Records whose reply was unusable count as wrong; records people found not labellable do not count.
    """
    drawn = [
        record_id
        for record_id in read_json(folder.round(1).slice)["slice"]
        if settled.get(record_id) is not None
    ]
    right = _slice_right(project, folder, number, drawn, settled)
    interval = wilson(int(right.sum()), len(right))
    result: dict[str, Any] = {
        "accuracy": {"value": interval.value, "low": interval.low, "high": interval.high, "n": interval.n},
        "gain": None,
    }
    if number > 1 and len(right):
        gain = paired_gain(_slice_right(project, folder, number - 1, drawn, settled), right)
        result["gain"] = {"value": gain.value, "low": gain.low, "high": gain.high, "n": gain.n}
    return result


def _slice_right(
    project: Project, folder: ProjectFolder, number: int, drawn: Sequence[str], settled: Mapping[str, Any]
) -> npt.NDArray[np.bool_]:
    values = dict(load_suggestions(project, folder, number, ["record_id", "value"]).iter_rows())
    return np.array([values.get(record_id) == settled[record_id] for record_id in drawn], dtype=np.bool_)


def plan_text(plan: Plan) -> str:
    """The plan as a page of Markdown."""
    lines = [f"# Plan of round {plan.round}", "", *(f"- {sentence}" for sentence in plan.sentences), ""]
    lines += [f"Prompt `{plan.template}` (id `{plan.prompt_id}`), engine `{plan.identity_id}`.", ""]
    return "\n".join(lines)
