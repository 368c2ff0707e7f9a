"""The student and the stack: what reviewed records teach, and how it is mixed with the LLM.

A student is a logistic regression on vectors of the reviewed records: one on what an embedding model says they mean,
one on how they are written (`labeling.lexical`). The stack mixes the two with the calibrated scores of the LLM and a
vote of the nearest reviewed records, as weighted log-probabilities; the weights are chosen by cross-fitted log-loss.
The stack, not the LLM alone, is what the next round suggests.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from labeling.calibration import (
    Metric,
    VectorScaling,
    cross_fitted_vector_scaling,
    fit_vector_scaling,
    log_loss,
)
from labeling.multinomial import (
    Multinomial,
    checked_matrix,
    cross_fitted,
    fit_multinomial,
    label_codes,
    log_softmax,
    stratified_folds,
)
from labeling.neighbours import nearest, vote_shares

Floats = npt.NDArray[np.float64]
Vectors = npt.NDArray[np.float32]
Weights = tuple[float, float, float, float]

FOLDS = 5
CHOOSE_FROM = 50
SCALE_LLM_FROM = 50
INVERSE_PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0)
SHARPENINGS = (1.0, 1.4, 2.0, 2.8, 4.0, 5.6)
NEIGHBOURS = 8
WEIGHT_STEPS = 8
PARTS = ("student", "lexical", "llm", "neighbours")


@dataclass(frozen=True)
class StudentSettings:
    """How a student is fitted.

    Attributes:
        inverse_penalty: C of the L2 penalty.
        sharpening: factor of the scores afterwards. The penalty that finds the right label most often leaves the
            scores too small: choosing it by log-loss alone would choose another.
        balanced: whether every label weighs the same, however many records it has. The number of records says
            little about how common a label is where they are few or were picked for their doubt, and the penalty
            draws the model to the labels that have most.
    """

    inverse_penalty: float = 3.0
    sharpening: float = 2.8
    balanced: bool = True


@dataclass(frozen=True)
class Student:
    """L2 multinomial logistic regression on unit-length embeddings.

    Attributes:
        model: the regression; labels never seen keep probability 1 / (n + number of labels) each.
        settings: that were used.
    """

    model: Multinomial
    settings: StudentSettings

    def predict_proba(self, embeddings: npt.ArrayLike) -> Floats:
        """Probabilities over all labels of the project, (n, K), from (n, d) embeddings.

        Raises:
            ValueError: if the width differs from the training embeddings or a number is not finite.
        """
        return self.model.predict_proba(_unit_rows(embeddings))

    def to_json(self) -> dict[str, Any]:
        """The student as JSON-able numbers and lists."""
        return {"model": self.model.to_json(), "settings": asdict(self.settings)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The student that `to_json` wrote, now or before it had all of its settings."""
        told = data.get("settings") or {
            "inverse_penalty": data["inverse_penalty"],
            "sharpening": 1.0,
            "balanced": False,
        }
        return cls(model=Multinomial.from_json(data["model"]), settings=StudentSettings(**told))


def fit_student(
    embeddings: npt.ArrayLike, gold: Sequence[str], *, labels: Sequence[str], seed: int = 0
) -> Student:
    """Fit a student on reviewed records.

    From 50 records on the settings are chosen by cross-fitted log-loss: C and sharpening together, then whether labels
    weigh the same. Before, they are the defaults.

    Args:
        embeddings: (n, d), n at least 1; rows are normalised here.
        gold: n settled labels.
        labels: all labels of the project; those without a record get the mass described at `fit_multinomial`.
        seed: decides the folds.

    Raises:
        ValueError: if there are no records, lengths differ, or a label is unknown.
    """
    features = _unit_rows(embeddings)
    settings = StudentSettings()
    if len(gold) >= CHOOSE_FROM:
        settings = _best_settings(
            features, gold, labels=labels, fold_of=stratified_folds(gold, folds=FOLDS, seed=seed)
        )
    model = fit_multinomial(features, gold, labels=labels, **asdict(settings))
    return Student(model=model, settings=settings)


def _best_settings(
    features: Floats, gold: Sequence[str], *, labels: Sequence[str], fold_of: npt.NDArray[np.int64]
) -> StudentSettings:
    def tried(penalties: Sequence[float], *, balanced: bool) -> list[tuple[float, StudentSettings]]:
        return [
            (float(loss), StudentSettings(penalty, sharpening, balanced))
            for penalty in penalties
            for sharpening, loss in zip(
                SHARPENINGS,
                _losses_by_sharpening(
                    features, gold, labels, StudentSettings(penalty, 1.0, balanced), fold_of
                ),
                strict=True,
            )
        ]

    def least(found: Sequence[tuple[float, StudentSettings]]) -> tuple[float, StudentSettings]:
        return min(found, key=lambda pair: pair[0])

    even = least(tried(INVERSE_PENALTIES, balanced=True))
    counted = tried([even[1].inverse_penalty], balanced=False)
    return least([even, *counted])[1]


def _losses_by_sharpening(
    features: Floats,
    gold: Sequence[str],
    labels: Sequence[str],
    settings: StudentSettings,
    fold_of: npt.NDArray[np.int64],
) -> Floats:
    """(len(SHARPENINGS),) mean cross-fitted log-loss; each fold is fitted once."""
    codes = label_codes(gold, labels)
    losses = np.empty((len(SHARPENINGS), codes.size))
    for fold in np.unique(fold_of):
        held_out = np.flatnonzero(fold_of == fold)
        known = _other_folds(gold, fold_of, fold)
        model = fit_multinomial(features[fold_of != fold], known, labels=labels, **asdict(settings))
        for row, sharpening in enumerate(SHARPENINGS):
            probabilities = model.sharpened(sharpening).predict_proba(features[held_out])
            losses[row, held_out] = -np.log(probabilities[np.arange(held_out.size), codes[held_out]])
    return np.asarray(losses.mean(axis=1), dtype=np.float64)


def _other_folds(gold: Sequence[str], fold_of: npt.NDArray[np.int64], fold: int) -> list[str]:
    return [label for label, own in zip(gold, fold_of, strict=True) if own != fold]


@dataclass(frozen=True)
class Stack:
    """Both students, LLM and neighbours, mixed as weighted log-probabilities.

    Attributes:
        labels: column order of every probability.
        student: fitted on the embeddings of all reviewed records.
        lexical: fitted on their lexical vectors; None where the project has none.
        vector_scaling: turns the LLM's scores into probabilities; None below 50 reviewed records with
            scores, where the (batch-calibrated) scores are used as they come, and where there are no scores
            at all.
        references: (m, d) unit-length embeddings of the reviewed records.
        reference_labels: their m settled labels.
        weights: share of each of `PARTS`, multiples of 1/8 that sum to 1.
    """

    labels: tuple[str, ...]
    student: Student
    lexical: Student | None
    vector_scaling: VectorScaling | None
    references: Vectors
    reference_labels: tuple[str, ...]
    weights: Weights

    def predict_proba(
        self,
        embeddings: npt.ArrayLike,
        llm_scores: npt.ArrayLike | None = None,
        lexical: npt.ArrayLike | None = None,
    ) -> Floats:
        """Probabilities over all labels, (n, K).

        Args:
            embeddings: (n, d) of records that are not among the references.
            llm_scores: (n, K) batch-calibrated log-probabilities; a row of NaN where the LLM gave none.
                Without scores the weights of the other parts are scaled up to 1 for that record.
            lexical: (n, e) lexical vectors; None where there are none, with the same consequence.

        Raises:
            ValueError: if a shape differs from training or a row is partly NaN.
        """
        return self.mixed(self.parts_proba(embeddings, llm_scores, lexical))

    def mixed(self, parts: Mapping[str, Floats]) -> Floats:
        """The mix of what `parts_proba` gave, (n, K)."""
        return mix([parts[name] for name in PARTS], self.weights)

    def parts_proba(
        self,
        embeddings: npt.ArrayLike,
        llm_scores: npt.ArrayLike | None = None,
        lexical: npt.ArrayLike | None = None,
    ) -> dict[str, Floats]:
        """What each part alone says, (n, K) each; rows of NaN for a part that says nothing."""
        vectors = _unit_rows(embeddings)
        neighbours = nearest(vectors, self.references, k=NEIGHBOURS)
        scores = _scores(llm_scores, vectors.shape[0], len(self.labels))
        present = _has_scores(scores)
        llm = np.full(scores.shape, np.nan)
        if present.any():
            found = scores[present]
            scaling = self.vector_scaling
            llm[present] = _softmax(found) if scaling is None else scaling.predict_proba(found)
        by_lexical = np.full(scores.shape, np.nan)
        if self.lexical is not None and lexical is not None:
            by_lexical = self.lexical.predict_proba(lexical)
        return {
            "student": self.student.predict_proba(vectors),
            "lexical": by_lexical,
            "llm": llm,
            "neighbours": vote_shares(neighbours, self.reference_labels, labels=self.labels),
        }

    def to_json(self) -> dict[str, Any]:
        """The stack as JSON-able numbers and lists, with the embeddings of its references."""
        return {
            "labels": list(self.labels),
            "student": self.student.to_json(),
            "lexical": None if self.lexical is None else self.lexical.to_json(),
            "vector_scaling": None if self.vector_scaling is None else self.vector_scaling.to_json(),
            "references": self.references.tolist(),
            "reference_labels": list(self.reference_labels),
            "weights": list(self.weights),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The stack that `to_json` wrote, now or before there was a lexical student."""
        scaling, lexical = data["vector_scaling"], data.get("lexical")
        told = [float(weight) for weight in data["weights"]]
        student, by_lexical, llm, neighbours = told if "lexical" in data else [told[0], 0.0, *told[1:]]
        return cls(
            labels=tuple(data["labels"]),
            student=Student.from_json(data["student"]),
            lexical=None if lexical is None else Student.from_json(lexical),
            vector_scaling=None if scaling is None else VectorScaling.from_json(scaling),
            references=np.asarray(data["references"], dtype=np.float32),
            reference_labels=tuple(data["reference_labels"]),
            weights=(student, by_lexical, llm, neighbours),
        )


@dataclass(frozen=True)
class PartReport:
    """How one part, or the whole mix, did on the reviewed records, out of sample.

    Attributes:
        weight: its share of the mix; 1 for the mix itself.
        log_loss: of its probabilities, over the records it has any for.
        accuracy: share of those records whose most probable label is right; None for no records.
        n: those records.
        only_right: records that this part got right and every other part got wrong.
    """

    weight: float
    log_loss: Metric
    accuracy: float | None
    n: int
    only_right: int


@dataclass(frozen=True)
class StackFit:
    """A fitted stack and what it says about the records it was fitted on, out of sample.

    Attributes:
        stack: fitted on all reviewed records.
        out_of_sample: (n, K) probabilities of the mix; student, scaling, neighbours and weights all come
            from the other folds. For calibration and for finding label errors.
        parts_out_of_sample: (n, K) of each of `PARTS`; rows of NaN for a part that says nothing.
        reports: one for each of `PARTS` and one for "mix".
    """

    stack: Stack
    out_of_sample: Floats
    parts_out_of_sample: dict[str, Floats]
    reports: dict[str, PartReport]


def fit_stack(
    embeddings: npt.ArrayLike,
    gold: Sequence[str],
    *,
    labels: Sequence[str],
    llm_scores: npt.ArrayLike | None = None,
    lexical: npt.ArrayLike | None = None,
    seed: int = 0,
) -> StackFit:
    """Fit students, vector scaling and weights on reviewed records.

    Args:
        embeddings: (n, d) of the reviewed records, n at least 2.
        gold: n settled labels.
        labels: K labels of the project.
        llm_scores: (n, K) batch-calibrated log-probabilities of the LLM; a row of NaN where it gave none.
        lexical: (n, e) lexical vectors of the records; None where the project has none.
        seed: decides the folds.

    Raises:
        ValueError: if n is below 2, shapes disagree, a label is unknown, or a row of scores is partly NaN.
    """
    vectors = _unit_rows(embeddings)
    if vectors.shape[0] != len(gold):
        raise ValueError(f"expected one label a record, found {len(gold)} for {vectors.shape[0]}")
    scores = _scores(llm_scores, len(gold), len(labels))
    codes = label_codes(gold, labels)
    fold_of = stratified_folds(gold, folds=FOLDS, seed=seed)
    student, by_student = _fit_out_of_sample(vectors, gold, labels=labels, fold_of=fold_of, seed=seed)
    lexical_student: Student | None = None
    by_lexical = np.full(scores.shape, np.nan)
    if lexical is not None:
        lexical_student, by_lexical = _fit_out_of_sample(
            _unit_rows(lexical), gold, labels=labels, fold_of=fold_of, seed=seed
        )
    scaling, llm = _llm_out_of_sample(scores, gold, labels=labels, fold_of=fold_of, seed=seed)
    parts = {
        "student": by_student,
        "lexical": by_lexical,
        "llm": llm,
        "neighbours": _votes_out_of_sample(vectors, gold, labels=labels, fold_of=fold_of),
    }
    ordered = [parts[name] for name in PARTS]
    # A part that says nothing of these records has shown nothing, and would come in with any weight.
    silent = [index for index, part in enumerate(ordered) if np.isnan(part).all()]
    possible = [weights for weights in _WEIGHTS if not any(weights[index] for index in silent)]
    losses = _losses_by_weight(ordered, codes, possible)
    out_of_sample = np.empty((len(gold), len(labels)))
    for fold in np.unique(fold_of):
        held_out = fold_of == fold
        chosen = possible[int(losses[:, ~held_out].mean(axis=1).argmin())]
        out_of_sample[held_out] = mix([part[held_out] for part in ordered], chosen)
    weights = possible[int(losses.mean(axis=1).argmin())]
    stack = Stack(
        labels=tuple(labels),
        student=student,
        lexical=lexical_student,
        vector_scaling=scaling,
        references=vectors.astype(np.float32),
        reference_labels=tuple(gold),
        weights=weights,
    )
    return StackFit(
        stack=stack,
        out_of_sample=out_of_sample,
        parts_out_of_sample=parts,
        reports=_reports(parts, out_of_sample, gold, labels=labels, weights=weights),
    )


def mix(parts: Sequence[Floats], weights: Sequence[float]) -> Floats:
    """Probabilities proportional to the product of the parts' probabilities, each to the power of its weight.

    A row of NaN in a part means that the part says nothing about that record: the weights of the others are
    scaled up to the same sum, and count evenly if all of them are 0.

    Args:
        parts: one (n, K) array a part.
        weights: one weight a part.

    Returns:
        (n, K), rows sum to 1.
    """
    silent = np.stack([np.isnan(part).any(axis=1) for part in parts], axis=1)
    shares = np.where(silent, 0.0, np.asarray(weights, dtype=np.float64))
    left = shares.sum(axis=1, keepdims=True)
    even = (~silent) / np.maximum((~silent).sum(axis=1, keepdims=True), 1)
    shares = np.where(left > 0, shares / np.where(left > 0, left, 1.0), even)
    logs = np.zeros(parts[0].shape)
    for column, part in enumerate(parts):
        safe = np.where(silent[:, [column]], 1.0, np.maximum(part, 1e-300))
        logs += shares[:, [column]] * np.log(safe)
    return _softmax(logs)


def _simplex(steps: int) -> tuple[Weights, ...]:
    """All weights in multiples of 1 / steps; among equals the first wins, so the list starts with the
    student.
    """
    grid = [
        (a / steps, b / steps, c / steps, (steps - a - b - c) / steps)
        for a, b, c in product(range(steps, -1, -1), repeat=3)
        if a + b + c <= steps
    ]
    return tuple(grid)


_WEIGHTS = _simplex(WEIGHT_STEPS)


def _losses_by_weight(
    parts: Sequence[Floats], codes: npt.NDArray[np.int64], possible: Sequence[Weights]
) -> Floats:
    """(weights, n) log-loss of each record under each weighting."""
    rows = np.arange(codes.size)
    return np.stack([-np.log(np.maximum(mix(parts, weights)[rows, codes], 1e-300)) for weights in possible])


def _fit_out_of_sample(
    vectors: Floats, gold: Sequence[str], *, labels: Sequence[str], fold_of: npt.NDArray[np.int64], seed: int
) -> tuple[Student, Floats]:
    """A student of all records and, (n, K), what students of the other folds say of each."""
    student = fit_student(vectors, gold, labels=labels, seed=seed)
    return student, cross_fitted(vectors, gold, labels=labels, fold_of=fold_of, **asdict(student.settings))


def _llm_out_of_sample(
    scores: Floats,
    gold: Sequence[str],
    *,
    labels: Sequence[str],
    fold_of: npt.NDArray[np.int64],
    seed: int,
) -> tuple[VectorScaling | None, Floats]:
    result = np.full(scores.shape, np.nan)
    present = _has_scores(scores)
    if not present.any():
        return None, result
    if int(present.sum()) < SCALE_LLM_FROM:
        result[present] = _softmax(scores[present])
        return None, result
    known = [label for label, has_scores in zip(gold, present, strict=True) if has_scores]
    scaling = fit_vector_scaling(scores[present], known, labels=labels, seed=seed)
    result[present] = cross_fitted_vector_scaling(
        scores[present],
        known,
        labels=labels,
        inverse_penalty=scaling.inverse_penalty,
        fold_of=fold_of[present],
    )
    return scaling, result


def _votes_out_of_sample(
    vectors: Floats, gold: Sequence[str], *, labels: Sequence[str], fold_of: npt.NDArray[np.int64]
) -> Floats:
    result = np.empty((vectors.shape[0], len(labels)))
    for fold in np.unique(fold_of):
        held_out = fold_of == fold
        neighbours = nearest(vectors[held_out], vectors[~held_out], k=NEIGHBOURS)
        known = _other_folds(gold, fold_of, fold)
        result[held_out] = vote_shares(neighbours, known, labels=labels)
    return result


def _reports(
    parts: Mapping[str, Floats],
    out_of_sample: Floats,
    gold: Sequence[str],
    *,
    labels: Sequence[str],
    weights: Sequence[float],
) -> dict[str, PartReport]:
    codes = label_codes(gold, labels)
    everyone = {**parts, "mix": out_of_sample}
    silent = {name: np.isnan(part).any(axis=1) for name, part in everyone.items()}
    right = {
        name: ~silent[name] & (np.nan_to_num(part, nan=-1.0).argmax(axis=1) == codes)
        for name, part in everyone.items()
    }
    reports = {}
    for name, weight in zip((*PARTS, "mix"), (*weights, 1.0), strict=True):
        speaking = np.flatnonzero(~silent[name])
        others = [right[other] for other in PARTS if other != name]
        alone = right[name] & ~np.any(others, axis=0)
        reports[name] = PartReport(
            weight=weight,
            log_loss=log_loss(
                everyone[name][speaking], [gold[index] for index in speaking.tolist()], labels=labels
            ),
            accuracy=float(right[name][speaking].mean()) if speaking.size else None,
            n=int(speaking.size),
            only_right=int(alone.sum()),
        )
    return reports


def _scores(llm_scores: npt.ArrayLike | None, n: int, width: int) -> Floats:
    if llm_scores is None:
        return np.full((n, width), np.nan)
    scores = np.asarray(llm_scores, dtype=np.float64)
    if scores.shape != (n, width):
        raise ValueError(f"expected scores of shape {(n, width)}, found {scores.shape}")
    usable = _has_scores(scores) | np.isnan(scores).all(axis=1)
    if not usable.all():
        first = int(np.flatnonzero(~usable)[0])
        raise ValueError(f"expected finite scores or a row of NaN, found a mixture in row {first}")
    return scores


def _has_scores(scores: Floats) -> npt.NDArray[np.bool_]:
    return np.asarray(np.isfinite(scores).all(axis=1), dtype=np.bool_)


def _unit_rows(embeddings: npt.ArrayLike) -> Floats:
    matrix = checked_matrix(embeddings)
    length = np.linalg.norm(matrix, axis=1, keepdims=True)
    result: Floats = matrix / np.where(length > 0, length, 1.0)
    return result


def _softmax(scores: Floats) -> Floats:
    result: Floats = np.exp(log_softmax(scores))
    return result
