"""One label from several annotators: a majority, or Dawid and Skene's model where there is enough overlap.

Neither settles a dispute on its own authority: a tie has no majority and goes to adjudication, and the model
gives probabilities, not gold.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from labeling.agreement import canonical
from labeling.multinomial import label_codes

Floats = npt.NDArray[np.float64]

MINIMUM_RATERS = 3
MINIMUM_SHARED_ITEMS = 10
PSEUDO_COUNT = 0.1


@dataclass(frozen=True)
class Majority:
    """What most annotators of one item submitted.

    Attributes:
        value: the value with the most votes, as it was first submitted; None where there is a tie for first
            place or nobody annotated, which means adjudication.
        votes: votes for the most frequent value (or each of the tied ones).
        n: annotations.
        tied: whether two or more values share first place.
    """

    value: object | None
    votes: int
    n: int
    tied: bool


def majority(values: Iterable[object]) -> Majority:
    """Most frequent value of one item, compared by canonical form.

    Args:
        values: what annotators submitted for the item: labels, sets, lists of spans; None (not annotated) is
            left out. An empty set or list is a vote for "nothing there".

    Raises:
        TypeError: if a value cannot be compared (see `agreement.canonical`).
    """
    first_written: dict[Hashable, object] = {}
    votes: Counter[Hashable] = Counter()
    for value in values:
        if value is None:
            continue
        key = canonical(value)
        first_written.setdefault(key, value)
        votes[key] += 1
    if not votes:
        return Majority(value=None, votes=0, n=0, tied=False)
    (winner, most), *others = votes.most_common(2)
    tied = bool(others) and others[0][1] == most
    value = None if tied else first_written[winner]
    return Majority(value=value, votes=most, n=votes.total(), tied=tied)


@dataclass(frozen=True)
class DawidSkene:
    """A fitted Dawid-Skene model, or the reason why there is none.

    Attributes:
        items: item ids, row order of `probabilities`.
        probabilities: (items, K) P(true label | all annotations); None where the model is undefined.
        confusion: rater to (K, K), row true label, column given label, rows sum to 1; empty where undefined.
        prior: (K,) share of each true label; None where undefined.
        iterations: EM steps until convergence.
        undefined_because: why there is no model, otherwise None.
    """

    items: tuple[str, ...]
    probabilities: Floats | None
    confusion: dict[str, Floats]
    prior: Floats | None
    iterations: int
    undefined_because: str | None


def dawid_skene(
    triples: Iterable[tuple[str, str, str]],
    *,
    labels: Sequence[str],
    tolerance: float = 1e-6,
    max_iterations: int = 500,
) -> DawidSkene:
    """Estimate true labels and each annotator's confusion matrix together, by EM.

    Starts from the vote shares. Every confusion row and the prior carry 0.1 pseudo-counts a cell, so that a
    label an annotator never gave keeps a probability.

    Args:
        triples: (item_id, rater_id, label), at most one an item and rater.
        labels: K labels, the columns.
        tolerance: largest change of a probability at which EM stops.
        max_iterations: EM steps at most.

    Returns:
        The model. Undefined below 3 annotators, or when an annotator shares fewer than 10 items with
        anybody: their confusion matrix would be the prior and not an estimate.

    Raises:
        ValueError: if a label is unknown, or a rater appears twice for one item.

    Source: A. P. Dawid and A. M. Skene (1979), Applied Statistics 28, 20-28.
    """
    rows = list(triples)
    if len({(item, rater) for item, rater, _ in rows}) != len(rows):
        raise ValueError("expected one annotation per item and annotator, found a repeated pair")
    items = tuple(sorted({item for item, _, _ in rows}))
    raters = sorted({rater for _, rater, _ in rows})
    reason = _too_little(rows, raters)
    if reason is not None:
        return DawidSkene(
            items=items, probabilities=None, confusion={}, prior=None, iterations=0, undefined_because=reason
        )
    item_of = {item: index for index, item in enumerate(items)}
    rater_of = {rater: index for index, rater in enumerate(raters)}
    item_codes = np.asarray([item_of[item] for item, _, _ in rows], dtype=np.int64)
    rater_codes = np.asarray([rater_of[rater] for _, rater, _ in rows], dtype=np.int64)
    given = label_codes([label for _, _, label in rows], labels)
    votes = np.zeros((len(items), len(labels)))
    np.add.at(votes, (item_codes, given), 1)
    probabilities = votes / votes.sum(axis=1, keepdims=True)
    iterations = 0
    change = np.inf
    while change > tolerance and iterations < max_iterations:
        prior, confusion = _maximise(probabilities, item_codes, rater_codes, given, raters=len(raters))
        updated = _expect(prior, confusion, item_codes, rater_codes, given, items=len(items))
        change = float(np.abs(updated - probabilities).max())
        probabilities = updated
        iterations += 1
    prior, confusion = _maximise(probabilities, item_codes, rater_codes, given, raters=len(raters))
    return DawidSkene(
        items=items,
        probabilities=probabilities,
        confusion={rater: confusion[index] for rater, index in rater_of.items()},
        prior=prior,
        iterations=iterations,
        undefined_because=None,
    )


def _too_little(rows: Sequence[tuple[str, str, str]], raters: Sequence[str]) -> str | None:
    if len(raters) < MINIMUM_RATERS:
        return f"needs {MINIMUM_RATERS} annotators, found {len(raters)}"
    annotations = Counter(item for item, _, _ in rows)
    shared = Counter(rater for item, rater, _ in rows if annotations[item] >= 2)
    fewest = min(raters, key=lambda rater: (shared[rater], rater))
    if shared[fewest] < MINIMUM_SHARED_ITEMS:
        needed = f"needs {MINIMUM_SHARED_ITEMS} items shared with another annotator"
        return f"{needed}, found {shared[fewest]} for {fewest}"
    return None


def _maximise(
    probabilities: Floats,
    item_codes: npt.NDArray[np.int64],
    rater_codes: npt.NDArray[np.int64],
    given: npt.NDArray[np.int64],
    *,
    raters: int,
) -> tuple[Floats, Floats]:
    """Prior (K,) and confusion (raters, K true, K given) from the present label probabilities."""
    width = probabilities.shape[1]
    prior = probabilities.sum(axis=0) + PSEUDO_COUNT
    counts = np.full((raters, width, width), PSEUDO_COUNT)
    # Indexed (rater, given) first so that one call adds a whole row of true-label probabilities.
    np.add.at(counts.transpose(0, 2, 1), (rater_codes, given), probabilities[item_codes])
    return prior / prior.sum(), counts / counts.sum(axis=2, keepdims=True)


def _expect(
    prior: Floats,
    confusion: Floats,
    item_codes: npt.NDArray[np.int64],
    rater_codes: npt.NDArray[np.int64],
    given: npt.NDArray[np.int64],
    *,
    items: int,
) -> Floats:
    """(items, K) label probabilities from prior and confusion."""
    logs = np.tile(np.log(prior), (items, 1))
    np.add.at(logs, item_codes, np.log(confusion[rater_codes, :, given]))
    shares = np.exp(logs - logs.max(axis=1, keepdims=True))
    result: Floats = shares / shares.sum(axis=1, keepdims=True)
    return result
