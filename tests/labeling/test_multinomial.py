import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labeling.multinomial import (
    Multinomial,
    best_inverse_penalty,
    cross_fitted,
    fit_multinomial,
    label_codes,
    log_softmax,
    stratified_folds,
)

LABELS = ["a", "b", "c"]


def _two_clouds(n: int, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    gold = ["a" if i % 2 else "b" for i in range(n)]
    centre = np.array([[1.0, 0.0] if label == "a" else [-1.0, 0.0] for label in gold])
    return centre + rng.normal(scale=0.5, size=(n, 2)), gold


def test_an_unseen_label_gets_the_mass_of_the_rule_of_succession() -> None:
    features, gold = _two_clouds(40)
    probabilities = fit_multinomial(features, gold, labels=LABELS, inverse_penalty=1.0).predict_proba(
        features
    )
    assert probabilities[:, 2] == pytest.approx(1 / 43)
    assert probabilities.sum(axis=1) == pytest.approx(1)


def test_with_one_label_only_the_model_says_that_label_without_certainty() -> None:
    model = fit_multinomial(np.zeros((8, 2)), ["b"] * 8, labels=LABELS, inverse_penalty=1.0)
    assert model.predict_proba(np.ones((1, 2)))[0] == pytest.approx([1 / 11, 9 / 11, 1 / 11])


def test_two_labels_reproduce_the_logistic_of_the_log_odds() -> None:
    # Two points at +-1 with C: stationarity gives w = 2 C sigma(-w) for the penalised log-loss, b = 0.
    model = fit_multinomial(np.array([[1.0], [-1.0]]), ["a", "b"], labels=["b", "a"], inverse_penalty=1.0)
    log_odds = float(model.weights[1, 0] - model.weights[0, 0])
    assert log_odds == pytest.approx(2 / (1 + np.exp(log_odds)), abs=1e-3)
    probability = model.predict_proba([[1.0]])[0, 1]
    assert probability == pytest.approx(1 / (1 + np.exp(-log_odds)), abs=1e-3)


def test_a_label_with_a_single_record_is_learned() -> None:
    features, gold = _two_clouds(20)
    features = np.vstack([features, [0.0, 9.0]])
    model = fit_multinomial(features, [*gold, "c"], labels=LABELS, inverse_penalty=10.0)
    assert model.predict_proba([[0.0, 9.0]])[0].argmax() == 2


def test_json_brings_back_the_same_probabilities() -> None:
    features, gold = _two_clouds(30)
    model = fit_multinomial(features, gold, labels=LABELS, inverse_penalty=1.0, standardise=True)
    again = Multinomial.from_json(json.loads(json.dumps(model.to_json())))
    assert np.array_equal(again.predict_proba(features), model.predict_proba(features))


def test_standardising_makes_the_fit_independent_of_units() -> None:
    features, gold = _two_clouds(30)
    constant = np.column_stack([features, np.full(30, 7.0)])
    metres = fit_multinomial(constant, gold, labels=LABELS, inverse_penalty=1.0, standardise=True)
    millimetres = fit_multinomial(constant * 1000, gold, labels=LABELS, inverse_penalty=1.0, standardise=True)
    assert metres.predict_proba(constant) == pytest.approx(
        millimetres.predict_proba(constant * 1000), abs=1e-6
    )


def test_cross_fitted_probabilities_of_noise_do_not_beat_chance() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(60, 40))
    gold = [str(label) for label in rng.choice(["a", "b"], size=60)]
    folds = stratified_folds(gold, folds=5, seed=0)
    out = cross_fitted(features, gold, labels=["a", "b"], inverse_penalty=100.0, fold_of=folds)
    inside = fit_multinomial(features, gold, labels=["a", "b"], inverse_penalty=100.0).predict_proba(features)
    codes = label_codes(gold, ["a", "b"])
    assert (inside.argmax(axis=1) == codes).mean() == 1
    assert (out.argmax(axis=1) == codes).mean() < 0.75


def test_noise_chooses_the_strongest_penalty() -> None:
    rng = np.random.default_rng(2)
    gold = [str(label) for label in rng.choice(["a", "b"], size=60)]
    folds = stratified_folds(gold, folds=5, seed=0)
    chosen = best_inverse_penalty(
        rng.normal(size=(60, 20)), gold, labels=["a", "b"], grid=(100.0, 0.001), fold_of=folds
    )
    assert chosen == 0.001


def test_every_fold_holds_its_share_of_each_label_even_of_rare_ones() -> None:
    gold = ["a"] * 50 + ["b"] * 7 + ["c"]
    folds = stratified_folds(gold, folds=5, seed=4)
    sizes = np.bincount(folds)
    assert sizes.max() - sizes.min() <= 1
    assert set(np.bincount(folds[:50])) == {10}
    assert set(np.bincount(folds[50:57], minlength=5)) == {1, 2}
    assert np.array_equal(folds, stratified_folds(gold, folds=5, seed=4))
    with pytest.raises(ValueError, match="at least 2"):
        stratified_folds(["a"], folds=5, seed=0)


@pytest.mark.parametrize(
    ("features", "gold", "message"),
    [
        ([[1.0]], ["z"], "expected labels among"),
        ([[np.nan]], ["a"], "finite"),
        ([1.0], ["a"], "a matrix"),
        ([[1.0]], ["a", "b"], "as many labels as rows"),
        (np.zeros((0, 1)), [], "at least one"),
    ],
)
def test_unusable_training_data_is_refused(features: object, gold: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_multinomial(np.asarray(features), gold, labels=LABELS, inverse_penalty=1.0)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-500, 500), min_size=2, max_size=6))
def test_log_softmax_sums_to_one_for_any_scores(row: list[float]) -> None:
    assert np.exp(log_softmax(np.array([row]))).sum() == pytest.approx(1)
