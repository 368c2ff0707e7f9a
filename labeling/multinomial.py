"""L2 multinomial logistic regression over a project's labels, kept as plain numbers.

The one statistical model behind vector scaling, the correctness model and the student. scikit-learn fits it;
what is kept is the weights, so a fitted model is a JSON object and never a pickle.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

Floats = npt.NDArray[np.float64]

MAX_ITERATIONS = 1000


@dataclass(frozen=True)
class Multinomial:
    """A fitted model. Labels without a training record keep a small probability (see `fit_multinomial`).

    Attributes:
        labels: all labels of the project; column order of every probability.
        seen: positions in `labels` of those with training records; row order of `weights`.
        mean: (d,) subtracted from the features.
        scale: (d,) the features are then divided by it.
        weights: (len(seen), d).
        intercepts: (len(seen),).
        n: training records.
    """

    labels: tuple[str, ...]
    seen: tuple[int, ...]
    mean: Floats
    scale: Floats
    weights: Floats
    intercepts: Floats
    n: int

    def predict_proba(self, features: npt.ArrayLike) -> Floats:
        """Probabilities over all labels of the project.

        Args:
            features: (n, d), finite.

        Returns:
            (n, len(labels)), rows sum to 1, every entry above 0.

        Raises:
            ValueError: if the width differs from the training features or a number is not finite.
        """
        found = checked_matrix(features, width=self.mean.size)
        scores = ((found - self.mean) / self.scale) @ self.weights.T + self.intercepts
        result = np.full((found.shape[0], len(self.labels)), 1 / (self.n + len(self.labels)))
        unseen_mass = (len(self.labels) - len(self.seen)) / (self.n + len(self.labels))
        # log-softmax then a floor: exp alone underflows to 0, and log 0 poisons every mix of
        # log-probabilities.
        shares = np.exp(np.maximum(log_softmax(scores), -300.0))
        result[:, list(self.seen)] = shares * (1 - unseen_mass)
        return result

    def sharpened(self, by: float) -> Self:
        """The same model with all scores times `by`: surer above 1, the same order of labels."""
        return replace(self, weights=self.weights * by, intercepts=self.intercepts * by)

    def to_json(self) -> dict[str, Any]:
        """The model as JSON-able numbers and lists."""
        return {
            "labels": list(self.labels),
            "seen": list(self.seen),
            "mean": self.mean.tolist(),
            "scale": self.scale.tolist(),
            "weights": self.weights.tolist(),
            "intercepts": self.intercepts.tolist(),
            "n": self.n,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The model that `to_json` wrote."""
        width = len(data["mean"])
        return cls(
            labels=tuple(data["labels"]),
            seen=tuple(data["seen"]),
            mean=np.asarray(data["mean"], dtype=np.float64),
            scale=np.asarray(data["scale"], dtype=np.float64),
            weights=np.asarray(data["weights"], dtype=np.float64).reshape(len(data["seen"]), width),
            intercepts=np.asarray(data["intercepts"], dtype=np.float64),
            n=int(data["n"]),
        )


def fit_multinomial(
    features: npt.ArrayLike,
    gold: Sequence[str],
    *,
    labels: Sequence[str],
    inverse_penalty: float,
    standardise: bool = False,
    balanced: bool = False,
    sharpening: float = 1.0,
) -> Multinomial:
    """Fit on reviewed records.

    A label without any record among the n gets probability 1 / (n + number of labels), the rule of
    succession; the model shares out the rest. With a single label present that is all there is to know, and
    no regression is fitted.

    Args:
        features: (n, d), finite.
        gold: n settled labels, each one of `labels`.
        labels: all labels of the project.
        inverse_penalty: C of the L2 penalty; larger fits closer.
        standardise: divide the centred features by their standard deviation; constant columns are left at 0.
        balanced: every label present weighs the same in all, however many records it has.
        sharpening: as in `Multinomial.sharpened`.

    Raises:
        ValueError: if there are no records, lengths differ, or a gold label is not a label of the project.
    """
    from sklearn.linear_model import LogisticRegression

    matrix = checked_matrix(features)
    codes = label_codes(gold, labels)
    if matrix.shape[0] != codes.size or codes.size == 0:
        raise ValueError(
            f"expected as many labels as rows and at least one, found {codes.size}, {matrix.shape[0]}"
        )
    mean = matrix.mean(axis=0) if standardise else np.zeros(matrix.shape[1])
    spread = matrix.std(axis=0)
    scale = np.where(spread > 1e-12, spread, 1.0) if standardise else np.ones(matrix.shape[1])
    seen = np.unique(codes)
    weights = np.zeros((seen.size, matrix.shape[1]))
    intercepts = np.zeros(seen.size)
    if seen.size > 1:
        regression = LogisticRegression(
            C=inverse_penalty,
            max_iter=MAX_ITERATIONS,
            tol=1e-4,
            class_weight="balanced" if balanced else None,
        )
        with one_thread():
            regression.fit((matrix - mean) / scale, codes)
        # Two classes come back as one row, the log-odds of the second.
        weights[-regression.coef_.shape[0] :] = regression.coef_
        intercepts[-regression.coef_.shape[0] :] = regression.intercept_
    model = Multinomial(
        labels=tuple(labels),
        seen=tuple(int(code) for code in seen),
        mean=mean,
        scale=scale,
        weights=weights,
        intercepts=intercepts,
        n=int(codes.size),
    )
    return model.sharpened(sharpening)


def cross_fitted(
    features: npt.ArrayLike,
    gold: Sequence[str],
    *,
    labels: Sequence[str],
    inverse_penalty: float,
    fold_of: npt.NDArray[np.int64],
    standardise: bool = False,
    balanced: bool = False,
    sharpening: float = 1.0,
) -> Floats:
    """Out-of-sample probabilities of the training records: each fold is predicted by a fit on the others.

    Args:
        features: (n, d).
        gold: n labels.
        labels: all labels of the project.
        inverse_penalty: C of the L2 penalty.
        fold_of: (n,) fold of each record, see `stratified_folds`; at least two folds.
        standardise, balanced, sharpening: as in `fit_multinomial`.

    Returns:
        (n, len(labels)).
    """
    matrix = checked_matrix(features)
    result = np.zeros((matrix.shape[0], len(labels)))
    for fold in np.unique(fold_of):
        held_out = fold_of == fold
        model = fit_multinomial(
            matrix[~held_out],
            [label for label, held in zip(gold, held_out, strict=True) if not held],
            labels=labels,
            inverse_penalty=inverse_penalty,
            standardise=standardise,
            balanced=balanced,
            sharpening=sharpening,
        )
        result[held_out] = model.predict_proba(matrix[held_out])
    return result


def best_inverse_penalty(
    features: npt.ArrayLike,
    gold: Sequence[str],
    *,
    labels: Sequence[str],
    grid: Sequence[float],
    fold_of: npt.NDArray[np.int64],
    standardise: bool = False,
) -> float:
    """The C of the grid with the smallest cross-fitted log-loss; the smaller C on a tie."""
    codes = label_codes(gold, labels)
    rows = np.arange(codes.size)

    def loss(inverse_penalty: float) -> float:
        probabilities = cross_fitted(
            features,
            gold,
            labels=labels,
            inverse_penalty=inverse_penalty,
            fold_of=fold_of,
            standardise=standardise,
        )
        return float(-np.log(probabilities[rows, codes]).mean())

    return min(sorted(grid), key=loss)


def stratified_folds(gold: Sequence[str], *, folds: int, seed: int) -> npt.NDArray[np.int64]:
    """Fold of each record, 0 to folds - 1; labels are dealt evenly, also those with fewer records than folds.

    Args:
        gold: n labels.
        folds: number of folds, at least 2; with fewer records than folds, one record a fold.
        seed: decides which records of a label go where.

    Raises:
        ValueError: for fewer than 2 folds or records.
    """
    if folds < 2 or len(gold) < 2:
        raise ValueError(f"expected at least 2 folds and 2 records, found {folds} and {len(gold)}")
    rng = np.random.default_rng(seed)
    names = np.asarray(gold, dtype=object)
    # One deal over all labels in a row keeps the folds equally large, unlike a new deal for each label.
    order = np.concatenate([rng.permutation(np.flatnonzero(names == name)) for name in sorted(set(gold))])
    result = np.empty(len(gold), dtype=np.int64)
    result[order] = np.arange(len(gold)) % min(folds, len(gold))
    return result


def one_thread() -> AbstractContextManager[object]:
    """One BLAS and OpenMP thread: on cores shared with the engine several spin for each other, 5 to 10 times slower."""
    limited: AbstractContextManager[object] = _thread_pools().limit(limits=1)
    return limited


@cache
def _thread_pools() -> ThreadpoolController:
    """The BLAS and OpenMP libraries; looking for them takes longer than a small fit."""
    # Only what is loaded is found.
    import sklearn.decomposition
    import sklearn.linear_model  # noqa: F401

    return ThreadpoolController()


def label_codes(gold: Sequence[str], labels: Sequence[str]) -> npt.NDArray[np.int64]:
    """Position of each gold label among the labels of the project.

    Raises:
        ValueError: if a gold label is not one of them.
    """
    position = {label: index for index, label in enumerate(labels)}
    unknown = sorted(set(gold) - set(position))
    if unknown:
        raise ValueError(f"expected labels among {list(labels)}, found {unknown[:5]}")
    return np.asarray([position[label] for label in gold], dtype=np.int64)


def checked_matrix(values: npt.ArrayLike, *, width: int | None = None) -> Floats:
    """The values as an (n, d) float matrix.

    Raises:
        ValueError: if it is not a matrix, has another width, or holds NaN or infinity.
    """
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2 or (width is not None and matrix.shape[1] != width):
        raise ValueError(f"expected a matrix of width {width or 'd'}, found shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        rows = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
        raise ValueError(f"expected finite numbers, found others in {rows.size} rows, first row {rows[0]}")
    return matrix


def log_softmax(scores: Floats) -> Floats:
    """Scores shifted row by row so that their exponentials sum to 1."""
    top = scores.max(axis=1, keepdims=True)
    shifted = scores - top
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
