import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labeling.calibration import (
    BatchCalibration,
    CorrectnessModel,
    VectorScaling,
    brier,
    confidence_brier,
    confidence_log_loss,
    correctness_auroc,
    cross_fitted_vector_scaling,
    entropy,
    fit_batch_calibration,
    fit_correctness,
    fit_vector_scaling,
    log_loss,
    margin,
    reliability_bins,
    risk_coverage,
)
from labeling.multinomial import stratified_folds

LABELS = ["a", "b", "c"]


def biased_scores(n: int, *, bias: float, seed: int) -> tuple[np.ndarray, list[str]]:
    """Scores of a model that knows something but likes label a too much; classes balanced."""
    rng = np.random.default_rng(seed)
    gold = [LABELS[i % 3] for i in range(n)]
    scores = rng.normal(size=(n, 3))
    scores[np.arange(n), [i % 3 for i in range(n)]] += 2
    scores[:, 0] += bias
    return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True)), gold


def accuracy(scores: np.ndarray, gold: list[str]) -> float:
    return float(np.mean([LABELS[k] == label for k, label in zip(scores.argmax(axis=1), gold, strict=True)]))


def test_batch_calibration_subtracts_the_mean_score_and_normalises() -> None:
    scores = np.log([[0.8, 0.2], [0.6, 0.4]])
    calibration = fit_batch_calibration(scores, labels=["a", "b"])
    shift = np.log(0.8 * 0.6) / 2 - np.log(0.2 * 0.4) / 2
    odds = np.log(0.8 / 0.2) - shift
    assert calibration.strength == 1
    assert np.exp(calibration.apply(scores))[0, 0] == pytest.approx(1 / (1 + np.exp(-odds)))
    assert calibration.log_loss.value is None and calibration.log_loss.n == 0


def test_batch_calibration_repairs_a_biased_model_on_balanced_classes() -> None:
    scores, gold = biased_scores(600, bias=3, seed=0)
    calibrated = fit_batch_calibration(scores, labels=LABELS).apply(scores)
    assert accuracy(scores, gold) < 0.55
    assert accuracy(calibrated, gold) > 0.8


def test_the_strength_is_large_for_a_biased_model_and_zero_for_truly_skewed_classes() -> None:
    scores, gold = biased_scores(300, bias=3, seed=1)
    assert fit_batch_calibration(scores, labels=LABELS, gold=gold).strength >= 0.75
    rng = np.random.default_rng(2)
    skewed = [LABELS[k] for k in rng.choice(3, size=300, p=[0.9, 0.05, 0.05])]
    honest = np.log(np.tile([0.9, 0.05, 0.05], (300, 1)))
    assert fit_batch_calibration(honest, labels=LABELS, gold=list(skewed)).strength == 0


def test_the_reported_log_loss_uses_reviewed_records_only() -> None:
    scores, gold = biased_scores(100, bias=1, seed=3)
    partly = [label if i < 40 else None for i, label in enumerate(gold)]
    calibration = fit_batch_calibration(scores, labels=LABELS, gold=partly)
    assert calibration.log_loss.n == 40
    assert calibration.log_loss.value is not None and 0 < calibration.log_loss.value < np.log(3)


def test_batch_calibration_survives_json() -> None:
    scores, gold = biased_scores(50, bias=1, seed=3)
    calibration = fit_batch_calibration(scores, labels=LABELS, gold=list(gold))
    again = BatchCalibration.from_json(json.loads(json.dumps(calibration.to_json())))
    assert np.array_equal(again.apply(scores), calibration.apply(scores))
    assert again.log_loss == calibration.log_loss


def test_scores_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        fit_batch_calibration([[np.nan, 0.0]], labels=["a", "b"])
    with pytest.raises(ValueError, match="at least one"):
        fit_batch_calibration(np.zeros((0, 2)), labels=["a", "b"])
    with pytest.raises(ValueError, match="one gold entry"):
        fit_batch_calibration(np.zeros((2, 2)), labels=["a", "b"], gold=["a"])


def test_vector_scaling_lowers_the_log_loss_of_a_biased_model_on_new_records() -> None:
    scores, gold = biased_scores(200, bias=3, seed=4)
    fresh, fresh_gold = biased_scores(400, bias=3, seed=5)
    scaling = fit_vector_scaling(scores, gold, labels=LABELS)
    before = log_loss(np.exp(fresh), fresh_gold, labels=LABELS).value
    after = log_loss(scaling.predict_proba(fresh), fresh_gold, labels=LABELS).value
    assert before is not None and after is not None and after < before - 0.3


def test_vector_scaling_survives_json_and_cross_fits() -> None:
    scores, gold = biased_scores(60, bias=3, seed=6)
    scaling = fit_vector_scaling(scores, gold, labels=LABELS)
    again = VectorScaling.from_json(json.loads(json.dumps(scaling.to_json())))
    assert np.array_equal(again.predict_proba(scores), scaling.predict_proba(scores))
    folds = stratified_folds(gold, folds=5, seed=0)
    out = cross_fitted_vector_scaling(
        scores, gold, labels=LABELS, inverse_penalty=scaling.inverse_penalty, fold_of=folds
    )
    assert out.shape == (60, 3) and not np.allclose(out, scaling.predict_proba(scores))


def correctness_case(n: int, seed: int) -> tuple[dict[str, np.ndarray], list[str], np.ndarray]:
    rng = np.random.default_rng(seed)
    chance = rng.uniform(size=n)
    right = rng.uniform(size=n) < 0.2 + 0.75 * chance
    features = {
        "margin": chance,
        "entropy": 1 - chance,
        "text_length": rng.integers(20, 400, n).astype(float),
    }
    return features, [LABELS[i % 3] for i in range(n)], right


def test_the_correctness_model_ranks_right_suggestions_above_wrong_ones() -> None:
    features, suggested, right = correctness_case(400, seed=0)
    fit = fit_correctness(features, suggested, right, labels=LABELS)
    assert fit.model is not None and fit.out_of_sample is not None
    auroc = correctness_auroc(fit.out_of_sample, right).value
    assert auroc is not None and auroc > 0.7
    again = CorrectnessModel.from_json(json.loads(json.dumps(fit.model.to_json())))
    assert np.array_equal(
        again.predict_proba(features, suggested), fit.model.predict_proba(features, suggested)
    )


def test_out_of_sample_confidence_is_honest_on_pure_noise() -> None:
    rng = np.random.default_rng(3)
    noise = {"margin": rng.normal(size=200), "entropy": rng.normal(size=200)}
    right = rng.uniform(size=200) < 0.7
    fit = fit_correctness(noise, [LABELS[int(k)] for k in rng.integers(0, 3, 200)], right, labels=LABELS)
    assert fit.out_of_sample is not None
    loss = confidence_log_loss(fit.out_of_sample, right).value
    rate = right.mean()
    ideal = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    assert loss == pytest.approx(ideal, abs=0.05)


def test_missing_values_get_an_indicator_and_lose_their_influence() -> None:
    features, suggested, right = correctness_case(300, seed=1)
    student = np.where(np.arange(300) % 2 == 0, right * 1.0, np.nan)
    fit = fit_correctness({**features, "student_agrees": student}, suggested, right, labels=LABELS)
    assert fit.model is not None
    assert fit.model.columns == ("margin", "entropy", "student_agrees", "text_length")
    n = 4
    row = {name: np.full(n, values.mean()) for name, values in features.items()}
    known = fit.model.predict_proba(
        {**row, "student_agrees": np.array([1.0, 0.0, np.nan, np.nan])}, ["a"] * n
    )
    absent = fit.model.predict_proba(row, ["a"] * n)
    assert known[0] > known[2] > known[1]
    assert known[2] == absent[0]


def test_a_column_without_any_known_value_is_left_out() -> None:
    features, suggested, right = correctness_case(100, seed=2)
    fit = fit_correctness({**features, "label_mass": np.full(100, np.nan)}, suggested, right, labels=LABELS)
    assert fit.model is not None and "label_mass" not in fit.model.columns


def test_a_correctness_model_is_undefined_when_every_suggestion_was_right() -> None:
    fit = fit_correctness({"margin": np.ones(9)}, ["a"] * 9, np.ones(9, dtype=bool), labels=LABELS)
    assert fit.model is None and fit.out_of_sample is None
    assert "found 9 and 0" in str(fit.undefined_because)


def test_features_with_unknown_names_or_lengths_are_refused() -> None:
    right = np.array([True, False])
    with pytest.raises(ValueError, match="expected features among"):
        fit_correctness({"vibes": np.ones(2)}, ["a", "b"], right, labels=LABELS)
    with pytest.raises(ValueError, match="columns of length 2"):
        fit_correctness({"margin": np.ones(3)}, ["a", "b"], right, labels=LABELS)
    with pytest.raises(ValueError, match="2 outcomes"):
        fit_correctness({"margin": np.ones(2)}, ["a", "b"], np.array([True]), labels=LABELS)


def test_margin_and_entropy_of_known_rows() -> None:
    rows = np.array([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    assert margin(rows) == pytest.approx([0.2, 1, 0])
    assert entropy(rows) == pytest.approx([1.0296530140645737, 0, np.log(3)])
    assert margin(np.ones((2, 1))) == pytest.approx([1, 1])


def test_log_loss_and_brier_of_a_case_worked_by_hand() -> None:
    probabilities = np.array([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]])
    assert log_loss(probabilities, ["a", "c"], labels=LABELS).value == pytest.approx(np.log(2))
    # (0.25 + 0.25 + 0) and (0.0625 + 0.0625 + 0.25)
    assert brier(probabilities, ["a", "c"], labels=LABELS).value == pytest.approx((0.5 + 0.375) / 2)
    assert brier(np.array([[0.0, 1.0, 0.0]]), ["a"], labels=LABELS).value == 2


def test_an_impossible_truth_and_no_records_leave_log_loss_undefined() -> None:
    impossible = log_loss(np.array([[0.0, 1.0, 0.0]]), ["a"], labels=LABELS)
    assert impossible.value is None and "probability 0" in str(impossible.undefined_because)
    empty = log_loss(np.zeros((0, 3)), [], labels=LABELS)
    assert empty.value is None and empty.n == 0
    assert brier(np.zeros((0, 3)), [], labels=LABELS).value is None
    assert confidence_brier(np.zeros(0), np.zeros(0, dtype=bool)).value is None
    with pytest.raises(ValueError, match="shape"):
        log_loss(np.zeros((1, 2)), ["a"], labels=LABELS)


def test_confidence_measures_of_a_case_worked_by_hand() -> None:
    confidence, right = np.array([0.9, 0.6, 0.6, 0.2]), np.array([True, True, False, False])
    # Pairs right over wrong: .9>.6, .9>.2, .6=.6, .6>.2
    assert correctness_auroc(confidence, right).value == pytest.approx(3.5 / 4)
    assert confidence_brier(confidence, right).value == pytest.approx((0.01 + 0.16 + 0.36 + 0.04) / 4)
    assert confidence_log_loss(confidence, right).value == pytest.approx(-np.log(0.9 * 0.6 * 0.4 * 0.8) / 4)


def test_auroc_is_undefined_when_all_suggestions_had_the_same_outcome() -> None:
    for outcome in (True, False):
        metric = correctness_auroc(np.array([0.2, 0.8]), np.array([outcome, outcome]))
        assert metric.value is None and metric.undefined_because is not None
    assert correctness_auroc(np.zeros(0), np.zeros(0, dtype=bool)).n == 0


def test_risk_coverage_keeps_ties_together() -> None:
    points = risk_coverage(np.array([0.5, 0.9, 0.5, 0.1]), np.array([True, True, False, False]))
    assert [(p.threshold, p.coverage, p.n) for p in points] == [(0.9, 0.25, 1), (0.5, 0.75, 3), (0.1, 1.0, 4)]
    assert [p.risk for p in points] == pytest.approx([0, 1 / 3, 0.5])
    assert risk_coverage(np.zeros(0), np.zeros(0, dtype=bool)) == []


def test_risk_coverage_is_thinned_but_keeps_full_coverage() -> None:
    rng = np.random.default_rng(0)
    points = risk_coverage(rng.uniform(size=1000), rng.uniform(size=1000) < 0.5, max_points=50)
    assert len(points) == 50 and points[-1].coverage == 1


def test_reliability_bins_hold_equal_counts_and_show_n() -> None:
    confidence = np.linspace(0.01, 1, 100)
    bins = reliability_bins(confidence, confidence > 0.5, bins=5)
    assert [b.right.n for b in bins] == [20] * 5
    assert [b.right.value for b in bins] == [0, 0, 0.5, 1, 1]
    assert bins[0].mean_confidence == pytest.approx(confidence[:20].mean())
    assert reliability_bins(np.zeros(0), np.zeros(0, dtype=bool)) == []


def test_reliability_of_one_constant_confidence_is_one_bin() -> None:
    (only,) = reliability_bins(np.full(30, 0.7), np.arange(30) < 21)
    assert only.right.value == 0.7 and only.right.n == 30 and only.mean_confidence == pytest.approx(0.7)


def test_confidences_outside_the_unit_interval_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        correctness_auroc(np.array([1.2, np.nan]), np.array([True, False]))


pairs = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60)


@settings(deadline=None, max_examples=100)
@given(pairs)
def test_measures_stay_in_their_bounds_and_bins_hold_every_record(rows: list[tuple[float, bool]]) -> None:
    confidence, right = np.array([c for c, _ in rows]), np.array([r for _, r in rows])
    score = confidence_brier(confidence, right).value
    assert score is not None and 0 <= score <= 1
    auroc = correctness_auroc(confidence, right).value
    assert auroc is None or 0 <= auroc <= 1
    assert sum(b.right.n for b in reliability_bins(confidence, right)) == len(rows)
    last = risk_coverage(confidence, right)[-1]
    assert last.n == len(rows) and last.risk == pytest.approx(1 - right.mean())
