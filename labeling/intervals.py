"""Binomial intervals, and what a sample of reviewed records is allowed to claim.

Every share that Countersign shows a person comes with its interval: 30 right of 50 is "60 %, between 46 and
72", and a gate that ignores this passes or fails by luck. Undefined shares (no records) have value None.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Verdict = Literal["pass", "inconclusive", "fail"]

SEARCH_LIMIT = 100_000


@dataclass(frozen=True)
class Interval:
    """A share, or a difference of two shares, with its confidence interval.

    Attributes:
        value: the estimate; None when there is nothing to estimate it from.
        low: lower end, None together with `value`.
        high: upper end, None together with `value`.
        n: records the estimate rests on.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int


def wilson(successes: int, n: int, *, alpha: float = 0.05) -> Interval:
    """Share of successes with the Wilson score interval, two-sided at level 1 - alpha.

    Args:
        successes: number of records that were right, 0 to n.
        n: number of records looked at; 0 gives an undefined interval.
        alpha: chance that the interval misses the true share, in (0, 1).

    Raises:
        ValueError: if the counts or alpha are out of range.

    Source: E. B. Wilson (1927), JASA 22, 209-212.

    >>> interval = wilson(30, 50)
    >>> round(interval.low, 3), round(interval.high, 3)
    (0.462, 0.724)
    """
    if n < 0 or not 0 <= successes <= n:
        raise ValueError(f"expected 0 <= successes <= n, found {successes} of {n}")
    if not 0 < alpha < 1:
        raise ValueError(f"expected alpha between 0 and 1, found {alpha}")
    if n == 0:
        return Interval(value=None, low=None, high=None, n=0)
    z = _two_sided(alpha)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half_width = z / (1 + z * z / n) * float(np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)))
    # At the ends the formula equals 0 or 1 exactly; floating point leaves 1e-17 outside.
    low = 0.0 if successes == 0 else max(0.0, centre - half_width)
    high = 1.0 if successes == n else min(1.0, centre + half_width)
    return Interval(value=share, low=low, high=high, n=n)


def wilson_for_best_of(successes: int, n: int, *, candidates: int, alpha: float = 0.05) -> Interval:
    """Wilson interval of the best of several prompts or models tried on the same records.

    The winner looks better than it is because it was picked for looking good; with alpha / candidates each
    (Bonferroni) all intervals hold at once, so the winner's does too.

    Args:
        successes: records the winner got right.
        n: records in the sample.
        candidates: how many were compared, at least 1.
        alpha: chance that any of the intervals misses.

    Raises:
        ValueError: if candidates is below 1, or as in `wilson`.
    """
    if candidates < 1:
        raise ValueError(f"expected at least 1 candidate, found {candidates}")
    return wilson(successes, n, alpha=alpha / candidates)


def gate_verdict(
    successes: int, n: int, *, threshold: float, candidates: int = 1, alpha: float = 0.05
) -> Verdict:
    """Whether a sample shows that accuracy is above the threshold, below it, or cannot tell.

    "pass" if the whole interval lies above the threshold, "fail" if it lies below, otherwise "inconclusive".
    At 60 % and n = 50, 37 is the first number of successes that passes. No records at all are inconclusive.

    Args:
        successes: records that were right; an unusable reply counts as wrong.
        n: records in the sample.
        threshold: required share, in [0, 1].
        candidates: how many prompts or models were compared on this sample.
        alpha: level of the interval.
    """
    interval = wilson_for_best_of(successes, n, candidates=candidates, alpha=alpha)
    if interval.low is None or interval.high is None:
        return "inconclusive"
    if interval.low > threshold:
        return "pass"
    if interval.high < threshold:
        return "fail"
    return "inconclusive"


def records_to_conclude(
    successes: int, n: int, *, threshold: float, candidates: int = 1, alpha: float = 0.05
) -> int | None:
    """Smallest number of further records that would settle the gate if the observed rate held.

    Future successes are the observed rate times the larger sample, rounded to whole records towards the
    threshold, so that rounding alone never settles it. 0 when the gate is settled already.

    Returns:
        The number of further records; None when there is no rate yet, the rate equals the threshold, or more
        than 100,000 would be needed.
    """
    if gate_verdict(successes, n, threshold=threshold, candidates=candidates, alpha=alpha) != "inconclusive":
        return 0
    if n == 0 or successes / n == threshold:
        return None
    rate_is_above = successes / n > threshold
    # The Wilson ends are algebraic in n, so all sample sizes are tried at once instead of searching
    # (rounding makes the verdict not monotone in n, which rules out bisection).
    further = np.arange(1, SEARCH_LIMIT + 1)
    total = n + further
    exact = successes * (total / n)
    expected = np.floor(exact + 1e-9) if rate_is_above else np.ceil(exact - 1e-9)
    z = _two_sided(alpha / candidates)
    share = expected / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half_width = z / (1 + z * z / total) * np.sqrt(share * (1 - share) / total + z * z / (4.0 * total**2))
    settled = centre - half_width > threshold if rate_is_above else centre + half_width < threshold
    if not settled.any():
        return None
    return int(further[int(np.argmax(settled))])


def mcnemar_exact(only_first_right: int, only_second_right: int) -> float:
    """One-sided exact McNemar test that the second of two paired classifiers is better.

    Args:
        only_first_right: records that only the first got right.
        only_second_right: records that only the second got right.

    Returns:
        The chance, if both were equally good, of the second winning at least this many of the records on
        which they differ. 1.0 when they never differ.

    Raises:
        ValueError: if a count is negative.

    Source: McNemar (1947), Psychometrika 12; exact form as a sign test on the discordant pairs.

    >>> mcnemar_exact(0, 5)
    0.03125
    """
    if only_first_right < 0 or only_second_right < 0:
        raise ValueError(f"expected counts of 0 or more, found {only_first_right} and {only_second_right}")
    discordant = only_first_right + only_second_right
    if discordant == 0:
        return 1.0
    from scipy.stats import binom

    return float(binom.sf(only_second_right - 1, discordant, 0.5))


def paired_gain(
    first_right: npt.NDArray[np.bool_], second_right: npt.NDArray[np.bool_], *, alpha: float = 0.05
) -> Interval:
    """How much more accurate the second classifier is on the same records, with Tango's score interval.

    Args:
        first_right: (n,) whether the first was right on each record.
        second_right: (n,) the same for the second, in the same order.
        alpha: chance that the interval misses the true difference.

    Returns:
        Accuracy of the second minus the first, in [-1, 1]; undefined for no records.

    Raises:
        ValueError: if the two arrays have different shapes.

    Source: T. Tango (1998), Statistics in Medicine 17, 891-908. It keeps its level for small samples and few
    discordant pairs, where the Wald interval collapses to a point.
    """
    from scipy.optimize import brentq

    if first_right.shape != second_right.shape or first_right.ndim != 1:
        shapes = f"{first_right.shape} and {second_right.shape}"
        raise ValueError(f"expected two arrays of one length, found {shapes}")
    n = int(first_right.size)
    if n == 0:
        return Interval(value=None, low=None, high=None, n=0)
    only_second = int(np.count_nonzero(second_right & ~first_right))
    only_first = int(np.count_nonzero(first_right & ~second_right))
    value = (only_second - only_first) / n
    z = _two_sided(alpha)

    def excess(difference: float) -> float:
        return _tango_statistic(difference, only_second=only_second, only_first=only_first, n=n)

    edge = 1 - 1e-9
    low = -1.0 if excess(-edge) < z else float(brentq(lambda d: excess(d) - z, -edge, value))
    high = 1.0 if excess(edge) > -z else float(brentq(lambda d: excess(d) + z, value, edge))
    return Interval(value=value, low=min(low, value), high=max(high, value), n=n)


def _two_sided(alpha: float) -> float:
    """Standard deviations that a normal variable exceeds in either direction with chance `alpha`."""
    from scipy.stats import norm

    return float(norm.isf(alpha / 2))


def _tango_statistic(difference: float, *, only_second: int, only_first: int, n: int) -> float:
    """Score statistic for a hypothesised paired difference; its root in `difference` is the observed one."""
    b = -only_second - only_first + (2 * n - only_second + only_first) * difference
    c = -only_first * difference * (1 - difference)
    q21 = (float(np.sqrt(max(b * b - 8 * n * c, 0.0))) - b) / (4 * n)
    variance = n * (2 * q21 + difference * (1 - difference))
    numerator = only_second - only_first - n * difference
    if variance <= 0:
        return 0.0 if numerator == 0 else float(np.sign(numerator) * np.inf)
    return numerator / float(np.sqrt(variance))


def independent_gain(
    first_successes: int, first_n: int, *, second_successes: int, second_n: int, alpha: float = 0.05
) -> Interval:
    """Difference of two shares measured on different records: the second minus the first.

    Args:
        first_successes: successes among the first records.
        first_n: how many they were.
        second_successes: successes among the second records.
        second_n: how many they were.
        alpha: chance that the interval misses the true difference.

    Returns:
        The difference in [-1, 1], n being the records of both; undefined where one side has none.

    Source: R. G. Newcombe (1998), Statistics in Medicine 17, 873-890, method 10 (hybrid score).
    """
    first = wilson(first_successes, first_n, alpha=alpha)
    second = wilson(second_successes, second_n, alpha=alpha)
    n = first_n + second_n
    if first.value is None or first.low is None or first.high is None:
        return Interval(value=None, low=None, high=None, n=n)
    if second.value is None or second.low is None or second.high is None:
        return Interval(value=None, low=None, high=None, n=n)
    value = second.value - first.value
    below = float(np.hypot(second.value - second.low, first.high - first.value))
    above = float(np.hypot(second.high - second.value, first.value - first.low))
    return Interval(value=value, low=max(-1.0, value - below), high=min(1.0, value + above), n=n)
