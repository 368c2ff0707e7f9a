import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labeling.intervals import (
    Interval,
    gate_verdict,
    independent_gain,
    mcnemar_exact,
    paired_gain,
    records_to_conclude,
    wilson,
    wilson_for_best_of,
)

counts = st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def test_wilson_reproduces_the_interval_of_thirty_in_fifty() -> None:
    interval = wilson(30, 50)
    assert interval.value == 0.6
    assert interval.low == pytest.approx(0.4618, abs=1e-4)
    assert interval.high == pytest.approx(0.7239, abs=1e-4)


def test_wilson_reproduces_newcombes_published_example() -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3: 81/263 gives 0.2553 to 0.3662.
    interval = wilson(81, 263)
    assert (interval.low, interval.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_wilson_at_zero_successes_reproduces_newcombe_and_touches_zero() -> None:
    interval = wilson(0, 20)
    assert interval.low == 0.0
    assert interval.high == pytest.approx(0.1611, abs=5e-5)


def test_no_records_give_an_undefined_interval() -> None:
    assert wilson(0, 0) == Interval(None, None, None, 0)
    assert gate_verdict(0, 0, threshold=0.6) == "inconclusive"


@pytest.mark.parametrize(("successes", "n", "alpha"), [(3, 2, 0.05), (-1, 2, 0.05), (1, 2, 0.0), (1, 2, 1.0)])
def test_impossible_counts_are_refused(successes: int, n: int, alpha: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        wilson(successes, n, alpha=alpha)


@settings(deadline=None)
@given(counts)
def test_wilson_contains_the_share_and_stays_in_the_unit_interval(case: tuple[int, int]) -> None:
    interval = wilson(*case)
    assert interval.low is not None and interval.value is not None and interval.high is not None
    assert 0 <= interval.low <= interval.value <= interval.high <= 1


@settings(deadline=None)
@given(counts)
def test_wilson_is_symmetric_in_right_and_wrong(case: tuple[int, int]) -> None:
    successes, n = case
    right, wrong = wilson(successes, n), wilson(n - successes, n)
    assert right.low is not None and wrong.high is not None
    assert right.low == pytest.approx(1 - wrong.high, abs=1e-12)


def test_picking_the_best_of_several_widens_the_interval_to_the_divided_level() -> None:
    assert wilson_for_best_of(40, 50, candidates=5) == wilson(40, 50, alpha=0.01)
    with pytest.raises(ValueError, match="at least 1 candidate"):
        wilson_for_best_of(40, 50, candidates=0)


def test_thirty_seven_of_fifty_is_the_first_that_passes_sixty_percent() -> None:
    verdicts = [gate_verdict(successes, 50, threshold=0.6) for successes in range(51)]
    assert verdicts.index("pass") == 37
    assert verdicts[36] == "inconclusive"
    assert verdicts[30] == "inconclusive"
    assert set(verdicts[37:]) == {"pass"}


def test_a_rate_clearly_below_the_threshold_fails() -> None:
    assert gate_verdict(15, 50, threshold=0.6) == "fail"
    assert gate_verdict(50, 50, threshold=1.0) == "inconclusive"


def test_more_candidates_make_the_gate_stricter() -> None:
    assert gate_verdict(37, 50, threshold=0.6, candidates=4) == "inconclusive"


def test_a_settled_gate_needs_no_more_records() -> None:
    assert records_to_conclude(37, 50, threshold=0.6) == 0


def test_the_number_of_further_records_is_the_first_that_settles_it() -> None:
    further = records_to_conclude(35, 50, threshold=0.6)
    assert further is not None
    expected = [gate_verdict(int(0.7 * (50 + k) + 1e-9), 50 + k, threshold=0.6) for k in range(further + 1)]
    assert expected.index("pass") == further


def test_the_number_of_further_records_is_found_below_the_threshold_too() -> None:
    further = records_to_conclude(25, 50, threshold=0.6)
    assert further is not None
    total = 50 + further
    assert gate_verdict(-(-total // 2), total, threshold=0.6) == "fail"
    assert gate_verdict(-(-(total - 1) // 2), total - 1, threshold=0.6) == "inconclusive"


def test_a_rate_equal_to_the_threshold_can_never_be_settled() -> None:
    assert records_to_conclude(30, 50, threshold=0.6) is None
    assert records_to_conclude(0, 0, threshold=0.6) is None
    assert records_to_conclude(6001, 10000, threshold=0.6) is None


def test_mcnemar_counts_the_tail_of_a_fair_coin() -> None:
    assert mcnemar_exact(0, 5) == 1 / 32
    assert mcnemar_exact(1, 2) == 0.5
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(5, 0) == 1.0
    with pytest.raises(ValueError, match="0 or more"):
        mcnemar_exact(-1, 0)


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_the_two_one_sided_tests_overlap_in_exactly_the_observed_outcome(first: int, second: int) -> None:
    both = mcnemar_exact(first, second) + mcnemar_exact(second, first)
    assert both >= 1


def _pairs(both: int, only_first: int, only_second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    first = np.repeat([True, True, False, False], [both, only_first, only_second, neither])
    second = np.repeat([True, False, True, False], [both, only_first, only_second, neither])
    return first, second


def test_paired_gain_solves_tangos_equation_worked_by_hand() -> None:
    # One record of 44 that only the second gets right. Below 1/87 the score variance is 1 - 43 d - 44 d^2, so
    # the lower end is the negative root of (1 - 44 d)^2 = z^2 (1 - 43 d - 44 d^2); above it is 44 d (1 - d),
    # which is Wilson's equation for 1 of 44.
    gain = paired_gain(*_pairs(43, 0, 1, 0))
    z_squared = 1.959963984540054**2
    a, b, c = 1936 + 44 * z_squared, -88 + 43 * z_squared, 1 - z_squared
    assert gain.value == pytest.approx(1 / 44)
    assert gain.low == pytest.approx((-b - (b * b - 4 * a * c) ** 0.5) / (2 * a), abs=1e-9)
    assert gain.high == pytest.approx(wilson(1, 44).high, abs=1e-9)


def test_paired_gain_of_two_equal_classifiers_is_zero_with_a_real_interval() -> None:
    gain = paired_gain(*_pairs(30, 0, 0, 20))
    assert gain.value == 0
    assert gain.low is not None and gain.high is not None
    assert -0.2 < gain.low < 0 < gain.high < 0.2


def test_paired_gain_at_total_victory_reaches_one() -> None:
    gain = paired_gain(*_pairs(0, 0, 25, 0))
    assert gain.value == 1 and gain.high == 1
    # With 25 of 25 the equation reduces to 25 (1 - d) = z^2 (1 + d).
    z_squared = 1.959963984540054**2
    assert gain.low == pytest.approx((25 - z_squared) / (25 + z_squared), abs=1e-9)


def test_paired_gain_without_records_is_undefined_and_unequal_lengths_are_refused() -> None:
    assert paired_gain(*_pairs(0, 0, 0, 0)).value is None
    with pytest.raises(ValueError, match="one length"):
        paired_gain(np.array([True]), np.array([True, False]))


@settings(deadline=None)
@given(st.tuples(*[st.integers(0, 40)] * 4).filter(lambda cells: sum(cells) > 0))
def test_paired_gain_contains_the_difference_and_is_antisymmetric(cells: tuple[int, int, int, int]) -> None:
    first, second = _pairs(*cells)
    forward, backward = paired_gain(first, second), paired_gain(second, first)
    assert forward.low is not None and forward.value is not None and forward.high is not None
    assert backward.high is not None
    assert -1 <= forward.low <= forward.value <= forward.high <= 1
    assert forward.low == pytest.approx(-backward.high, abs=1e-6)


def test_the_gain_on_independent_records_reproduces_newcombes_published_example() -> None:
    # Newcombe 1998, Statistics in Medicine 17, 873, table II (a), method 10: 56/70 - 48/80.
    gain = independent_gain(48, 80, second_successes=56, second_n=70)
    assert gain.value == pytest.approx(0.2)
    assert (gain.low, gain.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert gain.n == 150


def test_the_gain_is_undefined_when_one_side_has_no_records() -> None:
    assert independent_gain(0, 0, second_successes=3, second_n=4).value is None
    assert independent_gain(3, 4, second_successes=0, second_n=0).value is None


@settings(deadline=None)
@given(counts, counts)
def test_the_gain_on_independent_records_contains_the_difference_and_is_antisymmetric(
    first: tuple[int, int], second: tuple[int, int]
) -> None:
    forward = independent_gain(*first, second_successes=second[0], second_n=second[1])
    backward = independent_gain(*second, second_successes=first[0], second_n=first[1])
    assert forward.low is not None and forward.value is not None and forward.high is not None
    assert backward.high is not None
    assert -1 <= forward.low <= forward.value <= forward.high <= 1
    assert forward.low == pytest.approx(-backward.high)
