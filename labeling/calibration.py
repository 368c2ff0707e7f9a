"""From scores to probabilities a person can rely on, and the measures of how far they can.

Three steps, each as soon as there is enough to fit it (methods of the project, section 2): batch calibration
needs no labels, vector scaling 50 to 100 reviewed records, the correctness model gives the confidence people
see. Scores are log-probabilities, one row a record, one column a label of the project. A record without
usable scores is left out by the caller: no number here stands for "unknown".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from labeling.engines.protocol import LEAST_REPORTED, UNREPORTED
from labeling.intervals import Interval, wilson
from labeling.multinomial import (
    Multinomial,
    best_inverse_penalty,
    checked_matrix,
    cross_fitted,
    fit_multinomial,
    label_codes,
    log_softmax,
    stratified_folds,
)

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

LEAST_LOG = -30.0
STRENGTHS = tuple(step / 8 for step in range(9))
INVERSE_PENALTIES = (0.01, 0.1, 1.0, 10.0)
FOLDS = 5

FEATURES = (
    "margin",
    "entropy",
    "label_mass",
    "student_agrees",
    "student_margin",
    "neighbour_share",
    "text_length",
)


@dataclass(frozen=True)
class Metric:
    """One figure: value is None where it is undefined, and then `undefined_because` says why."""

    name: str
    value: float | None
    n: int
    undefined_because: str | None = None


def is_reported(scores: Floats) -> Bools:
    """Which scores an engine told; engines that tell a few tokens only mark the others with `UNREPORTED`."""
    return np.asarray(scores > LEAST_REPORTED, dtype=np.bool_)


def summed_scores(scores: Floats) -> tuple[Floats, Floats]:
    """Sum of the normalised (N, K) log-probabilities of each label and how many were told, (K,) each."""
    told = is_reported(scores)
    return np.where(told, log_softmax(scores), 0.0).sum(axis=0), told.sum(axis=0).astype(np.float64)


def _shifted(scores: Floats, by: Floats) -> Floats:
    """Log-probabilities less a shift for each label; a label that was not told stays next to impossible."""
    told = is_reported(scores)
    if told.all():
        return log_softmax(scores - by)
    return np.maximum(log_softmax(np.where(told, scores - by, UNREPORTED)), LEAST_LOG)


@dataclass(frozen=True)
class BatchCalibration:
    """Takes out what the prompt itself says: s'_k(x) = s_k(x) - strength · mean over the batch of s_k.

    Attributes:
        labels: column order of the scores.
        mean_scores: (K,) mean score of each label over the batch.
        strength: lambda, 0 (off) to 1 (the batch is taken to be balanced).
        log_loss: cross-fitted log-loss of the calibrated scores on the reviewed records; undefined without
        any.
    """

    labels: tuple[str, ...]
    mean_scores: Floats
    strength: float
    log_loss: Metric

    def apply(self, scores: npt.ArrayLike) -> Floats:
        """Calibrated log-probabilities, (n, K), rows normalised.

        Raises:
            ValueError: if the width is not K or a score is not finite.
        """
        found = checked_matrix(scores, width=len(self.labels))
        return _shifted(found, self.strength * self.mean_scores)

    def to_json(self) -> dict[str, Any]:
        """The calibration as JSON-able numbers and lists."""
        return {
            "labels": list(self.labels),
            "mean_scores": self.mean_scores.tolist(),
            "strength": self.strength,
            "log_loss": {
                "value": self.log_loss.value,
                "n": self.log_loss.n,
                "undefined_because": self.log_loss.undefined_because,
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The calibration that `to_json` wrote."""
        return cls(
            labels=tuple(data["labels"]),
            mean_scores=np.asarray(data["mean_scores"], dtype=np.float64),
            strength=float(data["strength"]),
            log_loss=Metric(name="log_loss", **data["log_loss"]),
        )


def fit_batch_calibration(
    scores: npt.ArrayLike,
    *,
    labels: Sequence[str],
    gold: Sequence[str | None] | None = None,
    mean_scores: Floats | None = None,
    default_strength: float = 1.0,
    seed: int = 0,
) -> BatchCalibration:
    """Batch calibration of one batch, its strength chosen by log-loss once records have been reviewed.

    Args:
        scores: (N, K) log-probabilities of the whole batch, N at least 1.
        labels: K labels.
        gold: N settled labels, None where a record has not been reviewed; or None for no reviews at all.
        mean_scores: (K,) of a larger batch that the records are from; None takes theirs.
        default_strength: used below two reviewed records. 1 suits balanced classes; lower it where one class
        rules.
        seed: decides the folds in which the strength is cross-fitted.

    Returns:
        The calibration. Its `log_loss` is out of sample: each fold is scored with the strength chosen on the
        others.

    Raises:
        ValueError: if shapes disagree, a score is not finite, or a gold label is unknown.

    Source: Zhou et al. (2024), Batch Calibration, ICLR, with their strength learned instead of set.
    """
    matrix = checked_matrix(scores, width=len(labels))
    if matrix.shape[0] == 0:
        raise ValueError("expected at least one scored record, found none")
    if mean_scores is None:
        total, told = summed_scores(matrix)
        mean_scores = total / np.maximum(told, 1.0)
    known = [] if gold is None else [index for index, label in enumerate(gold) if label is not None]
    if gold is not None and len(gold) != matrix.shape[0]:
        raise ValueError(f"expected one gold entry a record, found {len(gold)} for {matrix.shape[0]}")
    if len(known) < 2:
        reason = f"strength cannot be chosen on {len(known)} reviewed records"
        return BatchCalibration(
            labels=tuple(labels),
            mean_scores=mean_scores,
            strength=default_strength,
            log_loss=Metric("log_loss", None, len(known), reason),
        )
    reviewed = [label for label in gold or [] if label is not None]
    codes = label_codes(reviewed, labels)
    losses = np.column_stack(
        [
            -_shifted(matrix[known], strength * mean_scores)[np.arange(codes.size), codes]
            for strength in STRENGTHS
        ]
    )
    fold_of = stratified_folds(reviewed, folds=FOLDS, seed=seed)
    held_out = np.empty(codes.size)
    for fold in np.unique(fold_of):
        chosen = int(losses[fold_of != fold].mean(axis=0).argmin())
        held_out[fold_of == fold] = losses[fold_of == fold, chosen]
    return BatchCalibration(
        labels=tuple(labels),
        mean_scores=mean_scores,
        strength=STRENGTHS[int(losses.mean(axis=0).argmin())],
        log_loss=Metric("log_loss", float(held_out.mean()), codes.size),
    )


@dataclass(frozen=True)
class VectorScaling:
    """L2 multinomial logistic regression on the K log-probabilities of the model.

    Attributes:
        model: the regression.
        inverse_penalty: C that was chosen by cross-fitted log-loss.
    """

    model: Multinomial
    inverse_penalty: float

    def predict_proba(self, scores: npt.ArrayLike) -> Floats:
        """Calibrated probabilities, (n, K), from (n, K) log-probabilities.

        Raises:
            ValueError: if the width is not K or a score is not finite.
        """
        return self.model.predict_proba(_scaled(scores, width=self.model.mean.size))

    def to_json(self) -> dict[str, Any]:
        """The model as JSON-able numbers and lists."""
        return {"model": self.model.to_json(), "inverse_penalty": self.inverse_penalty}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The model that `to_json` wrote."""
        return cls(model=Multinomial.from_json(data["model"]), inverse_penalty=float(data["inverse_penalty"]))


def fit_vector_scaling(
    scores: npt.ArrayLike, gold: Sequence[str], *, labels: Sequence[str], seed: int = 0
) -> VectorScaling:
    """Fit vector scaling on reviewed records; from 50 on it beats batch calibration alone.

    Args:
        scores: (n, K) log-probabilities of reviewed records, n at least 2.
        gold: n settled labels.
        labels: K labels, the columns of `scores`.
        seed: decides the folds in which the penalty is chosen.

    Raises:
        ValueError: if shapes disagree, a score is not finite, a gold label is unknown, or n is below 2.
    """
    features = _scaled(scores, width=len(labels))
    inverse_penalty = best_inverse_penalty(
        features,
        gold,
        labels=labels,
        grid=INVERSE_PENALTIES,
        fold_of=stratified_folds(gold, folds=FOLDS, seed=seed),
    )
    model = fit_multinomial(features, gold, labels=labels, inverse_penalty=inverse_penalty)
    return VectorScaling(model=model, inverse_penalty=inverse_penalty)


def cross_fitted_vector_scaling(
    scores: npt.ArrayLike,
    gold: Sequence[str],
    *,
    labels: Sequence[str],
    inverse_penalty: float,
    fold_of: npt.NDArray[np.int64],
) -> Floats:
    """Out-of-sample vector-scaled probabilities, (n, K), of the reviewed records themselves."""
    return cross_fitted(
        _scaled(scores, width=len(labels)),
        gold,
        labels=labels,
        inverse_penalty=inverse_penalty,
        fold_of=fold_of,
    )


def _scaled(scores: npt.ArrayLike, *, width: int) -> Floats:
    """Normalised log-probabilities, floored: a label the engine gave 1e-30 says no more than one it gave
    1e-9.
    """
    return np.maximum(log_softmax(checked_matrix(scores, width=width)), -20.0)


@dataclass(frozen=True)
class CorrectnessModel:
    """P(the suggestion is right): the confidence people see.

    Attributes:
        labels: labels of the project; each is a one-hot feature (which label was suggested).
        columns: numeric features that were present in training, a subset of `FEATURES`.
        mean: (len(columns),) of the known training values.
        scale: (len(columns),) standard deviation of the known training values.
        inverse_penalty: C that was chosen by cross-fitted log-loss.
        model: regression on [standardised features, missing indicators, one-hot label].
    """

    labels: tuple[str, ...]
    columns: tuple[str, ...]
    mean: Floats
    scale: Floats
    inverse_penalty: float
    model: Multinomial

    def predict_proba(self, features: Mapping[str, Floats], suggested: Sequence[str]) -> Floats:
        """P(right) of each suggestion, (n,).

        Args:
            features: columns of length n named as in `FEATURES`; a column that is missing or NaN sets the
                missing indicator, and its standardised value drops out.
            suggested: n suggested labels.

        Raises:
            ValueError: if a name is unknown, lengths differ, or a suggested label is unknown.
        """
        matrix = _correctness_matrix(
            features, suggested, labels=self.labels, columns=self.columns, mean=self.mean, scale=self.scale
        )
        result: Floats = self.model.predict_proba(matrix)[:, 1]
        return result

    def to_json(self) -> dict[str, Any]:
        """The model as JSON-able numbers and lists."""
        return {
            "labels": list(self.labels),
            "columns": list(self.columns),
            "mean": self.mean.tolist(),
            "scale": self.scale.tolist(),
            "inverse_penalty": self.inverse_penalty,
            "model": self.model.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The model that `to_json` wrote."""
        return cls(
            labels=tuple(data["labels"]),
            columns=tuple(data["columns"]),
            mean=np.asarray(data["mean"], dtype=np.float64),
            scale=np.asarray(data["scale"], dtype=np.float64),
            inverse_penalty=float(data["inverse_penalty"]),
            model=Multinomial.from_json(data["model"]),
        )


@dataclass(frozen=True)
class CorrectnessFit:
    """Outcome of fitting the correctness model.

    Attributes:
        model: None where the confidence is not yet known.
        out_of_sample: (n,) cross-fitted P(right) of the training suggestions themselves; None together with
        `model`.
        undefined_because: why there is no model, otherwise None.
    """

    model: CorrectnessModel | None
    out_of_sample: Floats | None
    undefined_because: str | None


def fit_correctness(
    features: Mapping[str, Floats],
    suggested: Sequence[str],
    right: Bools,
    *,
    labels: Sequence[str],
    seed: int = 0,
) -> CorrectnessFit:
    """Fit P(suggestion right) on reviewed records.

    Args:
        features: columns of length n named as in `FEATURES`; NaN where a value is not known, columns may be
            missing. `text_length` is in code points and enters as its logarithm.
        suggested: n suggested labels.
        right: (n,) whether the reviewed label equals the suggestion.
        labels: labels of the project.
        seed: decides the folds.

    Returns:
        The model, with cross-fitted probabilities for the training records. No model when fewer than 2
        suggestions
        were right or fewer than 2 wrong: a confidence that is the same for every record is not reported.

    Raises:
        ValueError: if a name is unknown, lengths differ, or a suggested label is unknown.
    """
    _check_columns(features, len(suggested))
    if right.shape != (len(suggested),):
        raise ValueError(f"expected {len(suggested)} outcomes, found shape {right.shape}")
    right_count, wrong_count = int(right.sum()), int((~right).sum())
    if min(right_count, wrong_count) < 2:
        reason = f"needs 2 right and 2 wrong reviewed suggestions, found {right_count} and {wrong_count}"
        return CorrectnessFit(model=None, out_of_sample=None, undefined_because=reason)
    transformed = {name: _transformed(name, features[name]) for name in FEATURES if name in features}
    columns = tuple(name for name, values in transformed.items() if np.isfinite(values).any())
    mean = np.array([np.nanmean(transformed[name]) for name in columns])
    deviation = np.array([np.nanstd(transformed[name]) for name in columns])
    scale = np.where(deviation > 1e-12, deviation, 1.0)
    matrix = _correctness_matrix(features, suggested, labels=labels, columns=columns, mean=mean, scale=scale)
    outcome = ["right" if is_right else "wrong" for is_right in right]
    outcomes = ("wrong", "right")
    fold_of = stratified_folds(outcome, folds=FOLDS, seed=seed)
    inverse_penalty = best_inverse_penalty(
        matrix, outcome, labels=outcomes, grid=INVERSE_PENALTIES, fold_of=fold_of
    )
    out_of_sample = cross_fitted(
        matrix, outcome, labels=outcomes, inverse_penalty=inverse_penalty, fold_of=fold_of
    )[:, 1]
    model = CorrectnessModel(
        labels=tuple(labels),
        columns=columns,
        mean=mean,
        scale=scale,
        inverse_penalty=inverse_penalty,
        model=fit_multinomial(matrix, outcome, labels=outcomes, inverse_penalty=inverse_penalty),
    )
    return CorrectnessFit(model=model, out_of_sample=out_of_sample, undefined_because=None)


def margin(probabilities: Floats) -> Floats:
    """Largest minus second largest probability of each row, (n,); 1 where there is a single label."""
    if probabilities.shape[1] < 2:
        return np.ones(probabilities.shape[0])
    top = np.partition(probabilities, -2, axis=1)[:, -2:]
    result: Floats = top[:, 1] - top[:, 0]
    return result


def entropy(probabilities: Floats) -> Floats:
    """Shannon entropy of each row in nats, (n,); 0 is certainty."""
    logs = np.log(np.where(probabilities > 0, probabilities, 1.0))
    result: Floats = np.maximum(-(probabilities * logs).sum(axis=1), 0.0)
    return result


def _correctness_matrix(
    features: Mapping[str, Floats],
    suggested: Sequence[str],
    *,
    labels: Sequence[str],
    columns: Sequence[str],
    mean: Floats,
    scale: Floats,
) -> Floats:
    n = len(suggested)
    _check_columns(features, n)
    nowhere = np.full(n, np.nan)
    known = [_transformed(name, features[name]) if name in features else nowhere for name in columns]
    values = np.column_stack(known) if known else np.zeros((n, 0))
    missing = ~np.isfinite(values)
    standardised = np.where(missing, 0.0, (values - mean) / scale)
    one_hot = np.zeros((n, len(labels)))
    one_hot[np.arange(n), label_codes(suggested, labels)] = 1
    return np.hstack([standardised, missing.astype(np.float64), one_hot])


def _check_columns(features: Mapping[str, Floats], n: int) -> None:
    unknown = sorted(set(features) - set(FEATURES))
    if unknown:
        raise ValueError(f"expected features among {FEATURES}, found {unknown}")
    lengths = {name: np.shape(values) for name, values in features.items() if np.shape(values) != (n,)}
    if lengths:
        raise ValueError(f"expected columns of length {n}, found {lengths}")


def _transformed(name: str, values: Floats) -> Floats:
    found = np.asarray(values, dtype=np.float64)
    return np.log1p(found) if name == "text_length" else found


def log_loss(probabilities: Floats, gold: Sequence[str], *, labels: Sequence[str]) -> Metric:
    """Mean of -log p(settled label) in nats.

    Args:
        probabilities: (n, K), rows sum to 1.
        gold: n settled labels.
        labels: K labels, the columns.

    Returns:
        Undefined for no records, and where a settled label was given probability 0 (the mean is infinite).
    """
    codes = label_codes(gold, labels)
    _check_rows(probabilities, codes.size, len(labels))
    return _log_loss(probabilities[np.arange(codes.size), codes])


def brier(probabilities: Floats, gold: Sequence[str], *, labels: Sequence[str]) -> Metric:
    """Mean squared distance of the probabilities from the settled label, summed over labels: 0 best, 2 worst.

    Args:
        probabilities: (n, K), rows sum to 1.
        gold: n settled labels.
        labels: K labels, the columns.

    Source: G. W. Brier (1950), Monthly Weather Review 78.
    """
    codes = label_codes(gold, labels)
    _check_rows(probabilities, codes.size, len(labels))
    if codes.size == 0:
        return Metric("brier", None, 0, "no reviewed records")
    truth = np.zeros(probabilities.shape)
    truth[np.arange(codes.size), codes] = 1
    return Metric("brier", float(((probabilities - truth) ** 2).sum(axis=1).mean()), codes.size)


def confidence_log_loss(confidence: Floats, right: Bools) -> Metric:
    """Log-loss in nats of P(suggestion right) against whether it was; both (n,)."""
    _check_pair(confidence, right)
    return _log_loss(np.where(right, confidence, 1 - confidence))


def confidence_brier(confidence: Floats, right: Bools) -> Metric:
    """Mean squared difference of P(suggestion right) and 1 or 0, in [0, 1]; both (n,)."""
    _check_pair(confidence, right)
    if right.size == 0:
        return Metric("brier", None, 0, "no reviewed records")
    return Metric("brier", float(((confidence - right) ** 2).mean()), int(right.size))


def correctness_auroc(confidence: Floats, right: Bools) -> Metric:
    """Chance that a right suggestion is more confident than a wrong one (ties count half); both (n,).

    Undefined unless there is at least one right and one wrong suggestion.
    """
    _check_pair(confidence, right)
    if right.all() or not right.any():
        kind = "no suggestions" if right.size == 0 else "only right" if right.all() else "only wrong"
        return Metric("auroc", None, int(right.size), f"{kind} reviewed, nothing to tell apart")
    from sklearn.metrics import roc_auc_score

    return Metric("auroc", float(roc_auc_score(right, confidence)), int(right.size))


@dataclass(frozen=True)
class RiskCoveragePoint:
    """Keep the suggestions at or above a confidence: their share, and how many of them are wrong.

    Attributes:
        threshold: lowest confidence that is kept.
        coverage: share of all records kept.
        risk: share of wrong ones among the kept.
        n: records kept.
    """

    threshold: float
    coverage: float
    risk: float
    n: int


def risk_coverage(confidence: Floats, right: Bools, *, max_points: int = 200) -> list[RiskCoveragePoint]:
    """Risk at every coverage, from the most confident record to all of them.

    Records of equal confidence cannot be told apart and are kept together, so there is one point per distinct
    confidence, thinned evenly to at most `max_points` (the last, full coverage, always stays). Empty for no
    records.
    """
    _check_pair(confidence, right)
    if right.size == 0:
        return []
    order = np.argsort(-confidence, kind="stable")
    ranked = confidence[order]
    wrong = np.cumsum(~right[order])
    ends = np.append(np.flatnonzero(np.diff(ranked) != 0), right.size - 1)
    if ends.size > max_points:
        ends = ends[np.unique(np.linspace(0, ends.size - 1, max_points).round().astype(np.int64))]
    return [
        RiskCoveragePoint(
            threshold=float(ranked[end]),
            coverage=float((end + 1) / right.size),
            risk=float(wrong[end] / (end + 1)),
            n=int(end + 1),
        )
        for end in ends
    ]


@dataclass(frozen=True)
class ReliabilityBin:
    """Records of similar confidence: what was promised and what came true.

    Attributes:
        mean_confidence: mean P(right) of the bin.
        right: share that was right, with its Wilson interval and n.
    """

    mean_confidence: float
    right: Interval


def reliability_bins(confidence: Floats, right: Bools, *, bins: int = 10) -> list[ReliabilityBin]:
    """Reliability in bins of (nearly) equal counts, from least to most confident.

    Equal confidences stay in one bin, so there can be fewer bins than asked for. Empty for no records. No
    single calibration error is derived: below 3,000 records it is noise (0.082 for a perfect model at n =
    100).
    """
    _check_pair(confidence, right)
    if right.size == 0:
        return []
    _, inverse, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    middle_rank = np.cumsum(counts) - counts / 2
    bin_of = np.minimum((middle_rank * bins / right.size).astype(np.int64), bins - 1)[inverse]
    result = []
    for number in np.unique(bin_of):
        inside = bin_of == number
        share = wilson(int(right[inside].sum()), int(inside.sum()))
        result.append(ReliabilityBin(mean_confidence=float(confidence[inside].mean()), right=share))
    return result


def _log_loss(probability_of_truth: Floats) -> Metric:
    n = int(probability_of_truth.size)
    if n == 0:
        return Metric("log_loss", None, 0, "no reviewed records")
    impossible = int((probability_of_truth <= 0).sum())
    if impossible:
        return Metric(
            "log_loss", None, n, f"infinite: probability 0 for what came true in {impossible} records"
        )
    return Metric("log_loss", float(-np.log(probability_of_truth).mean()), n)


def _check_rows(probabilities: Floats, n: int, width: int) -> None:
    if probabilities.shape != (n, width):
        raise ValueError(f"expected probabilities of shape {(n, width)}, found {probabilities.shape}")


def _check_pair(confidence: Floats, right: Bools) -> None:
    if confidence.shape != right.shape or right.ndim != 1:
        raise ValueError(f"expected two columns of one length, found {confidence.shape} and {right.shape}")
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise ValueError("expected confidences in [0, 1], found others or NaN")
