"""Agreement between annotators: raw and chance-corrected, with n, an interval, and "undefined" where it is.

All measures take (item_id, rater_id, value) triples, in any order. A value is whatever an annotator submits:
a label, a number, a set of labels, a list of spans. Values are compared by canonical form (see `canonical`),
so the same set written in another order is the same value. An empty set is a value: that annotator found
nothing. None is not a value: that annotator has not annotated the item, and the triple is left out.
"""

import unicodedata
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

Triple = tuple[str, str, object]
Distance = Callable[[Hashable, Hashable], float]
Weights = npt.NDArray[np.float64]
Statistic = Callable[[Weights], npt.NDArray[np.float64]]

RESAMPLES = 1000
DEFINED_SHARE_NEEDED = 0.95

_ONE_VALUE = "every annotation has the same value, so agreement by chance is already complete"
_NO_OVERLAP = "no item was annotated by two annotators"


@dataclass(frozen=True)
class Agreement:
    """One agreement figure.

    Attributes:
        name: the measure, e.g. "krippendorff_alpha".
        value: the figure; None where it is undefined.
        low: lower end of the 95 % percentile-bootstrap interval over items; None when too few resamples are
        defined.
        high: upper end, None together with `low`.
        n: items with at least two annotations, which are the ones it rests on.
        raters: annotators who annotated at least one of those items.
        undefined_because: the reason in one sentence when value is None, otherwise None.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    raters: int
    undefined_because: str | None


@dataclass(frozen=True)
class PairwiseMatrix:
    """Agreement of every two annotators.

    Attributes:
        raters: annotators in sorted order; row and column order of `cells`.
        cells: (raters, raters), symmetric; None on the diagonal.
    """

    raters: tuple[str, ...]
    cells: tuple[tuple[Agreement | None, ...], ...]


@dataclass(frozen=True)
class _Codes:
    """Items with at least two annotations, as integers: codes is (items, raters), -1 where missing."""

    raters: tuple[str, ...]
    values: tuple[Hashable, ...]
    codes: npt.NDArray[np.int64]

    @property
    def n(self) -> int:
        return int(self.codes.shape[0])

    @property
    def active_raters(self) -> int:
        return int((self.codes >= 0).any(axis=0).sum()) if self.n else 0

    def counts(self) -> npt.NDArray[np.float64]:
        """(items, values): how many annotators gave each item each value."""
        result = np.zeros((self.n, len(self.values)))
        for column in self.codes.T:
            present = column >= 0
            result[np.flatnonzero(present), column[present]] += 1
        return result


def canonical(value: object) -> Hashable:
    """The form in which two submitted values are compared.

    Strings are NFC-normalised; lists become tuples; sets become frozensets; mappings become frozensets of
    their items; all of it recursively. 1, 1.0 and True stay apart from each other, as they do in JSON.

    Raises:
        TypeError: if the value contains something that is none of these and cannot be hashed.
    """
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value)
    if isinstance(value, bool | int | float):
        return (type(value).__name__, value)
    if isinstance(value, Mapping):
        return ("mapping", frozenset((canonical(key), canonical(item)) for key, item in value.items()))
    if isinstance(value, AbstractSet):
        return frozenset(canonical(item) for item in value)
    if isinstance(value, list | tuple):
        return tuple(canonical(item) for item in value)
    if isinstance(value, Hashable):
        return value
    raise TypeError(f"expected a value made of text, numbers, lists, sets and mappings, found {type(value)}")


def nominal_distance(first: Hashable, second: Hashable) -> float:
    """0 for equal values, 1 for different ones."""
    return 0.0 if first == second else 1.0


def jaccard_distance(first: Hashable, second: Hashable) -> float:
    """1 - |intersection| / |union| of two sets (multi-label values); two empty sets are equal.

    Raises:
        TypeError: if a value is not a set.
    """
    if not isinstance(first, AbstractSet) or not isinstance(second, AbstractSet):
        raise TypeError(f"expected two sets, found {type(first)} and {type(second)}")
    union = len(first | second)
    return 0.0 if union == 0 else 1 - len(first & second) / union


def raw_agreement(
    triples: Iterable[Triple], *, seed: int = 0, resamples: int = RESAMPLES, alpha: float = 0.05
) -> Agreement:
    """Share of annotator pairs that gave an item the same value, averaged over items.

    Not corrected for chance: two people who say "no" to everything agree completely.

    Args:
        triples: (item_id, rater_id, value).
        seed: seed of the bootstrap.
        resamples: bootstrap resamples; 0 for no interval.
        alpha: 1 - level of the interval.

    Raises:
        ValueError: if a rater appears twice for one item.
    """
    table = _encode(triples)
    counts = table.counts()
    ratings = counts.sum(axis=1)
    agreeing = (counts * (counts - 1)).sum(axis=1) / np.maximum(ratings * (ratings - 1), 1)

    def statistic(weights: Weights) -> npt.NDArray[np.float64]:
        result: npt.NDArray[np.float64] = weights @ agreeing / weights.sum(axis=1)
        return result

    return _figure(
        "raw_agreement", table, statistic, reason=_ONE_VALUE, seed=seed, resamples=resamples, alpha=alpha
    )


def cohen_kappa(
    triples: Iterable[Triple], *, seed: int = 0, resamples: int = RESAMPLES, alpha: float = 0.05
) -> Agreement:
    """Cohen's kappa of two annotators over the items both annotated.

    Undefined when both gave every item one and the same value, when they share no item, and when the triples
    hold more or fewer than two annotators.

    Args:
        triples: (item_id, rater_id, value).
        seed: seed of the bootstrap.
        resamples: bootstrap resamples; 0 for no interval.
        alpha: 1 - level of the interval.

    Raises:
        ValueError: if a rater appears twice for one item.

    Source: J. Cohen (1960), Educational and Psychological Measurement 20, 37-46.
    """
    kept = list(triples)
    raters = {rater for _, rater, value in kept if value is not None}
    table = _encode(kept)
    if len(raters) != 2:
        reason = f"Cohen's kappa compares two annotators, found {len(raters)}"
        return _undefined("cohen_kappa", table, reason)
    value_count = len(table.values)
    same = (table.codes[:, 0] == table.codes[:, 1]).astype(np.float64) if table.n else np.zeros(0)
    first, second = (_one_hot(column, value_count) for column in table.codes.T)

    def statistic(weights: Weights) -> npt.NDArray[np.float64]:
        total = weights.sum(axis=1)
        observed = weights @ same / total
        expected = ((weights @ first) * (weights @ second)).sum(axis=1) / total**2
        return _above_chance(observed, expected)

    return _figure(
        "cohen_kappa", table, statistic, reason=_ONE_VALUE, seed=seed, resamples=resamples, alpha=alpha
    )


def fleiss_kappa(
    triples: Iterable[Triple], *, seed: int = 0, resamples: int = RESAMPLES, alpha: float = 0.05
) -> Agreement:
    """Fleiss' kappa: a constant number of annotations an item, by any annotators.

    Items with a single annotation are left out. Undefined when the remaining items do not all have the same
    number of annotations (use Krippendorff's alpha), and when every annotation has the same value.

    Args:
        triples: (item_id, rater_id, value).
        seed: seed of the bootstrap.
        resamples: bootstrap resamples; 0 for no interval.
        alpha: 1 - level of the interval.

    Raises:
        ValueError: if a rater appears twice for one item.

    Source: J. L. Fleiss (1971), Psychological Bulletin 76, 378-382.
    """
    table = _encode(triples)
    counts = table.counts()
    ratings = counts.sum(axis=1)
    if table.n and ratings.min() != ratings.max():
        found = f"{int(ratings.min())} to {int(ratings.max())}"
        reason = f"items have {found} annotations; Fleiss' kappa needs a constant number, alpha does not"
        return _undefined("fleiss_kappa", table, reason)
    per_item = float(ratings[0]) if table.n else 2.0
    agreeing = (counts * (counts - 1)).sum(axis=1) / (per_item * (per_item - 1))

    def statistic(weights: Weights) -> npt.NDArray[np.float64]:
        total = weights.sum(axis=1)
        shares = weights @ counts / (total * per_item)[:, None]
        return _above_chance(weights @ agreeing / total, (shares**2).sum(axis=1))

    return _figure(
        "fleiss_kappa", table, statistic, reason=_ONE_VALUE, seed=seed, resamples=resamples, alpha=alpha
    )


def krippendorff_alpha(
    triples: Iterable[Triple],
    *,
    distance: Distance = nominal_distance,
    seed: int = 0,
    resamples: int = RESAMPLES,
    alpha: float = 0.05,
) -> Agreement:
    """Krippendorff's alpha: any number of annotators, annotations may be missing, any distance between
    values.

    Args:
        triples: (item_id, rater_id, value).
        distance: dissimilarity of two canonical values in [0, 1], symmetric, 0 for equal ones. Called once
            for every two distinct values.
        seed: seed of the bootstrap.
        resamples: bootstrap resamples; 0 for no interval.
        alpha: 1 - level of the interval.

    Raises:
        ValueError: if a rater appears twice for one item, or a distance lies outside [0, 1].

    Source: K. Krippendorff (2011), Computing Krippendorff's Alpha-Reliability, section D.
    """
    table = _encode(triples)
    counts = table.counts()
    ratings = counts.sum(axis=1)
    distances = None if distance is nominal_distance else _distance_matrix(table.values, distance)

    def quadratic(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Sum over ordered value pairs of count x count x distance, for each row of value counts."""
        if distances is None:
            nominal: npt.NDArray[np.float64] = rows.sum(axis=1) ** 2 - (rows**2).sum(axis=1)
            return nominal
        weighted: npt.NDArray[np.float64] = ((rows @ distances) * rows).sum(axis=1)
        return weighted

    disagreement = quadratic(counts) / np.maximum(ratings - 1, 1)

    def statistic(weights: Weights) -> npt.NDArray[np.float64]:
        pairable = weights @ ratings
        observed = weights @ disagreement / pairable
        expected = quadratic(weights @ counts) / (pairable * (pairable - 1))
        return _above_chance(1 - observed, 1 - expected)

    return _figure(
        "krippendorff_alpha", table, statistic, reason=_ONE_VALUE, seed=seed, resamples=resamples, alpha=alpha
    )


def pairwise_matrix(triples: Iterable[Triple], *, seed: int = 0, resamples: int = 0) -> PairwiseMatrix:
    """Cohen's kappa of every two annotators, each over the items the two share.

    Args:
        triples: (item_id, rater_id, value).
        seed: seed of the bootstrap.
        resamples: bootstrap resamples a pair; 0, the default, leaves the intervals out.

    Raises:
        ValueError: if a rater appears twice for one item.
    """
    by_rater: dict[str, list[Triple]] = {}
    for triple in triples:
        if triple[2] is not None:
            by_rater.setdefault(triple[1], []).append(triple)
    raters = tuple(sorted(by_rater))
    kappas = {
        frozenset(pair): cohen_kappa(by_rater[pair[0]] + by_rater[pair[1]], seed=seed, resamples=resamples)
        for pair in combinations(raters, 2)
    }
    cells = tuple(tuple(kappas.get(frozenset((row, column))) for column in raters) for row in raters)
    return PairwiseMatrix(raters=raters, cells=cells)


def _encode(triples: Iterable[Triple]) -> _Codes:
    cells: dict[str, dict[str, Hashable]] = {}
    raters: set[str] = set()
    for item, rater, value in triples:
        if value is None:
            continue
        raters.add(rater)
        row = cells.setdefault(item, {})
        if rater in row:
            raise ValueError(
                f"expected one annotation per item and annotator, found two: {rater!r}, {item!r}"
            )
        row[rater] = canonical(value)
    shared = [row for _, row in sorted(cells.items()) if len(row) >= 2]
    ordered = tuple(sorted(raters))
    column_of = {rater: column for column, rater in enumerate(ordered)}
    code_of: dict[Hashable, int] = {}
    codes = np.full((len(shared), len(ordered)), -1, dtype=np.int64)
    for index, row in enumerate(shared):
        for rater, key in row.items():
            codes[index, column_of[rater]] = code_of.setdefault(key, len(code_of))
    return _Codes(raters=ordered, values=tuple(code_of), codes=codes)


def _one_hot(column: npt.NDArray[np.int64], value_count: int) -> npt.NDArray[np.float64]:
    result = np.zeros((column.size, value_count))
    result[np.arange(column.size), column] = 1
    return result


def _distance_matrix(values: Sequence[Hashable], distance: Distance) -> npt.NDArray[np.float64]:
    result = np.zeros((len(values), len(values)))
    for i, j in combinations(range(len(values)), 2):
        found = distance(values[i], values[j])
        if not 0 <= found <= 1:
            pair = f"{values[i]!r} and {values[j]!r}"
            raise ValueError(f"expected a distance in [0, 1], found {found} for {pair}")
        result[i, j] = result[j, i] = found
    return result


def _above_chance(
    observed: npt.NDArray[np.float64], expected: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """(observed - expected) / (1 - expected); NaN where chance agreement is complete."""
    room = 1 - expected
    # Sums of exact fractions that should cancel leave about 1e-16; real data leave at least 1 / pairs.
    defined = room > 1e-12
    result: npt.NDArray[np.float64] = np.full(observed.shape, np.nan)
    result[defined] = (observed[defined] - expected[defined]) / room[defined]
    return result


def _figure(
    name: str,
    table: _Codes,
    statistic: Statistic,
    *,
    reason: str,
    seed: int,
    resamples: int,
    alpha: float,
) -> Agreement:
    if table.n == 0:
        return _undefined(name, table, _NO_OVERLAP)
    value = float(statistic(np.ones((1, table.n)))[0])
    if np.isnan(value):
        return _undefined(name, table, reason)
    low, high = _percentile_interval(statistic, table.n, seed=seed, resamples=resamples, alpha=alpha)
    return Agreement(
        name=name,
        value=value,
        low=low,
        high=high,
        n=table.n,
        raters=table.active_raters,
        undefined_because=None,
    )


def _undefined(name: str, table: _Codes, reason: str) -> Agreement:
    return Agreement(
        name=name,
        value=None,
        low=None,
        high=None,
        n=table.n,
        raters=table.active_raters,
        undefined_because=reason,
    )


def _percentile_interval(
    statistic: Statistic, n: int, *, seed: int, resamples: int, alpha: float
) -> tuple[float | None, float | None]:
    """Percentile bootstrap over items; a resample is a row of item weights, a statistic matrix products."""
    if resamples == 0:
        return None, None
    rng = np.random.default_rng(seed)
    # Blocks keep the weights at 32 MB whatever the number of items.
    block = max(1, 4_000_000 // n)
    figures: list[npt.NDArray[np.float64]] = []
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = rng.integers(0, n, size=(size, n)) + np.arange(size)[:, None] * n
        weights = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)
        figures.append(statistic(weights))
    found = np.concatenate(figures)
    defined = found[~np.isnan(found)]
    if defined.size < DEFINED_SHARE_NEEDED * resamples:
        return None, None
    low, high = np.quantile(defined, [alpha / 2, 1 - alpha / 2])
    return float(low), float(high)
