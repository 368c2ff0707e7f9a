import hashlib
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labeling.selection import cold_start, simple_random_sample, uncertain_and_diverse


def clouds(per_cloud: int, count: int, *, seed: int, spread: float = 0.05) -> np.ndarray:
    """Tight clouds around `count` directions, one after the other."""
    rng = np.random.default_rng(seed)
    return np.repeat(np.eye(count), per_cloud, axis=0) + rng.normal(
        scale=spread, size=(per_cloud * count, count)
    )


def test_a_cold_start_visits_every_region() -> None:
    picked = cold_start(clouds(50, 6, seed=0), k=12, seed=0)
    assert Counter(int(p) // 50 for p in picked) == dict.fromkeys(range(6), 2)


def test_a_cold_start_prefers_typical_records_over_odd_ones() -> None:
    vectors = clouds(30, 3, seed=1)
    vectors[[0, 30, 60]] = np.array([[0.7, 0.7, 0.1], [0.1, 0.7, 0.7], [0.7, 0.1, 0.7]])
    picked = cold_start(vectors, k=6, seed=0)
    assert not {0, 30, 60} & {int(p) for p in picked}


def test_a_cold_start_mixes_confident_and_uncertain_records() -> None:
    vectors = clouds(40, 4, seed=2)
    confidence = np.tile(np.where(np.arange(40) % 4 == 0, 0.3, 0.95), 4)
    picked = cold_start(vectors, confidence, k=8, seed=0)
    uncertain_clouds = {int(p) // 40 for p in picked if confidence[p] < 0.5}
    confident_clouds = {int(p) // 40 for p in picked if confidence[p] > 0.5}
    assert uncertain_clouds == confident_clouds == {0, 1, 2, 3}


def test_a_record_without_a_suggestion_counts_as_least_confident() -> None:
    vectors = clouds(40, 1, seed=3)
    order = cold_start(vectors, k=40, seed=0)
    confidence = np.full(40, 0.9)
    confidence[order[5]] = np.nan
    assert cold_start(vectors, confidence, k=2, seed=0).tolist() == [order[0], order[5]]


def test_active_picks_are_likely_wrong_and_from_different_regions() -> None:
    vectors = clouds(300, 5, seed=4)
    p_error = np.full(1500, 0.05)
    wrong = np.concatenate([np.arange(c * 300, c * 300 + 60) for c in range(5)])
    p_error[wrong] = 0.6
    picked = uncertain_and_diverse(vectors, p_error, k=10, seed=0)
    assert all(p_error[p] == 0.6 for p in picked)
    assert set(Counter(int(p) // 300 for p in picked)) == set(range(5))


def test_an_outlier_is_not_picked_however_uncertain() -> None:
    vectors = clouds(100, 3, seed=5)
    vectors = np.vstack([np.hstack([vectors, np.zeros((300, 1))]), [0, 0, 0, 1.0]])
    p_error = np.append(np.full(300, 0.5), 0.99)
    assert 300 not in uncertain_and_diverse(vectors, p_error, k=5, seed=0)


def test_picks_come_with_the_best_score_first() -> None:
    vectors = clouds(50, 2, seed=6, spread=0.001)
    p_error = np.linspace(0, 1, 100)
    assert uncertain_and_diverse(vectors, p_error, k=2, seed=0)[0] == 99


def test_identical_records_still_fill_the_wanted_number() -> None:
    same = np.ones((20, 4))
    assert len(set(uncertain_and_diverse(same, np.full(20, 0.4), k=7, seed=0).tolist())) == 7
    assert len(set(cold_start(same, k=7, seed=0).tolist())) == 7


def test_picking_is_reproducible_and_nothing_is_picked_from_nothing() -> None:
    vectors = clouds(50, 4, seed=7)
    p_error = np.random.default_rng(0).uniform(size=200)
    first = uncertain_and_diverse(vectors, p_error, k=20, seed=5)
    assert np.array_equal(first, uncertain_and_diverse(vectors, p_error, k=20, seed=5))
    assert cold_start(np.zeros((0, 3)), k=5, seed=0).size == 0
    assert uncertain_and_diverse(vectors, p_error, k=0, seed=0).size == 0
    assert uncertain_and_diverse(np.ones((1, 3)), [0.5], k=3, seed=0).tolist() == [0]


def test_missing_probabilities_and_wrong_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        uncertain_and_diverse(np.ones((2, 2)), [0.5, np.nan], k=1, seed=0)
    with pytest.raises(ValueError, match="one number a record"):
        cold_start(np.ones((2, 2)), [0.5], k=1, seed=0)
    with pytest.raises(ValueError, match="0 or more"):
        cold_start(np.ones((2, 2)), k=-1, seed=0)


def test_the_random_sample_is_the_documented_order_of_hashes() -> None:
    ids = [f"msg-{i:04d}" for i in range(50)]
    by_hash = sorted(ids, key=lambda i: hashlib.sha256(f"17|{i}".encode()).hexdigest())
    assert simple_random_sample(ids, 10, 17) == by_hash[:10]
    assert simple_random_sample(ids[::-1], 10, 17) == by_hash[:10]
    assert simple_random_sample(ids, 11, 17)[:10] == by_hash[:10]
    assert simple_random_sample(ids, 99, 17) == by_hash


def test_every_pair_of_records_is_equally_likely_over_the_seeds() -> None:
    ids = ["a", "b", "c", "d", "e"]
    drawn = Counter(frozenset(simple_random_sample(ids, 2, seed)) for seed in range(6000))
    # Ten pairs, 600 expected each; chi-square with 9 degrees of freedom, 99.9 % point 27.9.
    chi_square = sum((drawn[frozenset(pair)] - 600) ** 2 / 600 for pair in combinations(ids, 2))
    assert chi_square < 27.9


def test_repeated_ids_are_refused_in_a_random_sample() -> None:
    with pytest.raises(ValueError, match="distinct"):
        simple_random_sample(["a", "a"], 1, 0)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 40), st.integers(0, 50), st.integers(0, 1000))
def test_picks_are_distinct_positions_and_as_many_as_there_are(n: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors, chance = rng.normal(size=(n, 3)), rng.uniform(size=n)
    for picked in (
        cold_start(vectors, chance, k=k, seed=seed),
        uncertain_and_diverse(vectors, chance, k=k, seed=seed),
    ):
        assert len(picked) == len(set(picked.tolist())) == min(k, n)
        assert all(0 <= p < n for p in picked)
