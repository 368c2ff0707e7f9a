import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labeling.students import PARTS, Stack, Student, StudentSettings, fit_stack, fit_student, mix

LABELS = ["a", "b", "c", "d"]


def clouds(n: int, *, spread: float, seed: int) -> tuple[np.ndarray, list[str]]:
    """Embeddings of three labels around three directions; label d never occurs."""
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % 3
    return np.eye(6)[codes] + rng.normal(scale=spread, size=(n, 6)), [LABELS[code] for code in codes]


def scores_of(gold: list[str], *, strength: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(len(gold), 4))
    scores[np.arange(len(gold)), [LABELS.index(label) for label in gold]] += strength
    return scores


def accuracy(probabilities: np.ndarray, gold: list[str]) -> float:
    best = [LABELS[k] for k in probabilities.argmax(axis=1)]
    return float(np.mean([x == y for x, y in zip(best, gold, strict=True)]))


def test_a_student_learns_from_few_records_and_keeps_unseen_labels_possible() -> None:
    embeddings, gold = clouds(30, spread=0.2, seed=0)
    fresh, fresh_gold = clouds(90, spread=0.2, seed=1)
    student = fit_student(embeddings.astype(np.float32), gold, labels=LABELS)
    probabilities = student.predict_proba(fresh)
    assert accuracy(probabilities, fresh_gold) > 0.9
    assert probabilities[:, 3] == pytest.approx(1 / 34)
    assert student.settings == StudentSettings()


def test_from_fifty_records_on_the_settings_are_chosen() -> None:
    embeddings, gold = clouds(60, spread=0.1, seed=0)
    noise = np.random.default_rng(0).normal(size=(60, 6))
    clear = fit_student(embeddings, gold, labels=LABELS).settings
    unsure = fit_student(noise, gold, labels=LABELS).settings
    assert clear.inverse_penalty * clear.sharpening > 100 * unsure.inverse_penalty * unsure.sharpening
    assert unsure.sharpening == 1.0


def test_a_rare_label_that_is_plain_to_see_is_not_drowned_by_the_common_one() -> None:
    rng = np.random.default_rng(0)
    codes = np.where(np.arange(2000) % 10 == 0, 1, 0)
    embeddings = np.eye(32)[codes] + rng.normal(scale=0.35, size=(2000, 32))
    gold = [LABELS[code] for code in codes]
    few = fit_student(embeddings[:40], gold[:40], labels=LABELS[:2])
    assert few.settings.balanced
    assert accuracy(few.predict_proba(embeddings[100:]), gold[100:]) > 0.95


def test_labels_weigh_what_they_have_where_nothing_else_tells_them_apart() -> None:
    noise = np.random.default_rng(0).normal(size=(200, 6))
    gold = ["a"] * 180 + ["b"] * 20
    student = fit_student(noise, gold, labels=LABELS[:2])
    assert not student.settings.balanced
    assert student.predict_proba(noise)[:, 0].mean() == pytest.approx(0.9, abs=0.02)


def test_a_label_with_one_record_and_a_single_record_at_all_are_handled() -> None:
    embeddings, gold = clouds(60, spread=0.1, seed=0)
    rare = np.vstack([embeddings, np.eye(6)[5]])
    student = fit_student(rare, [*gold, "d"], labels=LABELS)
    assert student.predict_proba(np.eye(6)[[5]])[0].argmax() == 3
    lonely = fit_student(np.ones((1, 6)), ["b"], labels=LABELS)
    assert lonely.predict_proba(np.ones((1, 6)))[0] == pytest.approx([0.2, 0.4, 0.2, 0.2])
    with pytest.raises(ValueError, match="at least one"):
        fit_student(np.zeros((0, 6)), [], labels=LABELS)


def test_a_student_survives_json() -> None:
    embeddings, gold = clouds(30, spread=0.2, seed=0)
    student = fit_student(embeddings, gold, labels=LABELS)
    again = Student.from_json(json.loads(json.dumps(student.to_json())))
    assert np.array_equal(again.predict_proba(embeddings), student.predict_proba(embeddings))


def test_a_student_of_a_round_before_these_settings_is_still_read() -> None:
    embeddings, gold = clouds(30, spread=0.2, seed=0)
    student = fit_student(embeddings, gold, labels=LABELS)
    older = {"model": student.to_json()["model"], "inverse_penalty": 10.0}
    again = Student.from_json(older)
    assert again.settings == StudentSettings(10.0, 1.0, balanced=False)
    assert np.array_equal(again.predict_proba(embeddings), student.predict_proba(embeddings))


def test_the_stack_trusts_the_llm_where_embeddings_are_noise() -> None:
    _, gold = clouds(150, spread=0.1, seed=0)
    noise = np.random.default_rng(1).normal(size=(150, 6))
    fit = fit_stack(noise, gold, labels=LABELS, llm_scores=scores_of(gold, strength=5, seed=2))
    assert fit.stack.weights[PARTS.index("llm")] >= 0.75
    assert fit.reports["llm"].accuracy == pytest.approx(fit.reports["mix"].accuracy, abs=0.05)


def test_the_stack_trusts_the_student_where_the_llm_guesses() -> None:
    embeddings, gold = clouds(150, spread=0.2, seed=0)
    guesses = np.random.default_rng(1).normal(size=(150, 4))
    fit = fit_stack(embeddings, gold, labels=LABELS, llm_scores=guesses)
    assert fit.stack.weights[PARTS.index("llm")] <= 0.25
    report = fit.reports["student"]
    assert report.accuracy is not None and report.accuracy > 0.9 and report.n == 150


def test_two_middling_sources_are_better_together_on_new_records() -> None:
    embeddings, gold = clouds(300, spread=0.55, seed=0)
    fit = fit_stack(embeddings, gold, labels=LABELS, llm_scores=scores_of(gold, strength=1.5, seed=1))
    fresh, fresh_gold = clouds(600, spread=0.55, seed=2)
    fresh_scores = scores_of(fresh_gold, strength=1.5, seed=3)
    parts = fit.stack.parts_proba(fresh, fresh_scores)
    mixed = accuracy(fit.stack.predict_proba(fresh, fresh_scores), fresh_gold)
    told = [name for name in PARTS if name != "lexical"]
    assert mixed > max(accuracy(parts[name], fresh_gold) for name in told)
    reports = fit.reports
    assert reports["mix"].accuracy == pytest.approx(mixed, abs=0.06)
    assert sum(fit.stack.weights) == pytest.approx(1) and sum(w > 0 for w in fit.stack.weights) >= 2
    assert all(
        reports["mix"].log_loss.value < reports[name].log_loss.value  # type: ignore[operator]
        for name in told
    )


def test_out_of_sample_probabilities_do_not_remember_a_random_label() -> None:
    rng = np.random.default_rng(5)
    gold = [LABELS[k] for k in rng.integers(0, 3, 120)]
    fit = fit_stack(rng.normal(size=(120, 6)), gold, labels=LABELS)
    assert accuracy(fit.out_of_sample, gold) < 0.5
    assert fit.out_of_sample.sum(axis=1) == pytest.approx(1)


def test_without_llm_scores_the_other_two_share_the_weight() -> None:
    embeddings, gold = clouds(60, spread=0.3, seed=0)
    fit = fit_stack(embeddings, gold, labels=LABELS)
    assert fit.reports["llm"].n == 0 and fit.reports["llm"].accuracy is None
    assert fit.reports["llm"].log_loss.value is None
    assert fit.stack.predict_proba(embeddings).sum(axis=1) == pytest.approx(1)
    assert np.isnan(fit.parts_out_of_sample["llm"]).all()


def test_a_part_that_said_nothing_gets_no_weight() -> None:
    for seed in range(12):
        embeddings, gold = clouds(44, spread=1.0, seed=seed)
        stack = fit_stack(embeddings, gold, labels=LABELS).stack
        assert stack.weights[PARTS.index("llm")] == 0


def test_a_record_the_llm_failed_on_is_decided_by_the_others() -> None:
    embeddings, gold = clouds(120, spread=0.3, seed=0)
    scores = scores_of(gold, strength=3, seed=1)
    scores[:20] = np.nan
    fit = fit_stack(embeddings, gold, labels=LABELS, llm_scores=scores)
    assert fit.reports["llm"].n == 100 and fit.reports["mix"].n == 120
    fresh, _ = clouds(3, spread=0.1, seed=9)
    silent = fit.stack.predict_proba(fresh, np.full((3, 4), np.nan))
    assert np.array_equal(silent, fit.stack.predict_proba(fresh))
    with pytest.raises(ValueError, match="mixture in row 0"):
        fit.stack.predict_proba(fresh[:1], [[0.0, np.nan, 0.0, 0.0]])


def test_a_stack_survives_json() -> None:
    embeddings, gold = clouds(80, spread=0.3, seed=0)
    scores = scores_of(gold, strength=2, seed=1)
    stack = fit_stack(embeddings, gold, labels=LABELS, llm_scores=scores).stack
    again = Stack.from_json(json.loads(json.dumps(stack.to_json())))
    assert np.array_equal(again.predict_proba(embeddings, scores), stack.predict_proba(embeddings, scores))
    assert again.weights == stack.weights


def test_the_stack_trusts_the_wording_where_the_embeddings_are_noise() -> None:
    lexical, gold = clouds(150, spread=0.2, seed=0)
    fresh, fresh_gold = clouds(90, spread=0.2, seed=1)
    noise = np.random.default_rng(1)
    fit = fit_stack(noise.normal(size=(150, 8)), gold, labels=LABELS, lexical=lexical)
    assert fit.stack.weights[PARTS.index("lexical")] >= 0.75
    assert fit.reports["lexical"].n == 150 and fit.reports["lexical"].weight >= 0.75
    elsewhere = noise.normal(size=(90, 8))
    assert accuracy(fit.stack.predict_proba(elsewhere, lexical=fresh), fresh_gold) > 0.9
    # Without lexical vectors the others speak, for what they are worth.
    assert accuracy(fit.stack.predict_proba(elsewhere), fresh_gold) < 0.6
    again = Stack.from_json(json.loads(json.dumps(fit.stack.to_json())))
    assert np.array_equal(
        again.predict_proba(elsewhere, lexical=fresh), fit.stack.predict_proba(elsewhere, lexical=fresh)
    )


def test_a_stack_of_a_round_before_the_lexical_student_is_still_read() -> None:
    embeddings, gold = clouds(80, spread=0.3, seed=0)
    scores = scores_of(gold, strength=2, seed=1)
    stack = fit_stack(embeddings, gold, labels=LABELS, llm_scores=scores).stack
    older = stack.to_json()
    del older["lexical"], older["weights"][PARTS.index("lexical")]
    again = Stack.from_json(json.loads(json.dumps(older)))
    assert again.weights == stack.weights
    assert np.array_equal(again.predict_proba(embeddings, scores), stack.predict_proba(embeddings, scores))


def test_fewer_than_fifty_scored_records_use_the_scores_as_they_come() -> None:
    embeddings, gold = clouds(20, spread=0.3, seed=0)
    scores = scores_of(gold, strength=2, seed=1)
    fit = fit_stack(embeddings, gold, labels=LABELS, llm_scores=scores)
    assert fit.stack.vector_scaling is None
    softmax = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert fit.parts_out_of_sample["llm"] == pytest.approx(softmax)


def test_shapes_that_disagree_are_refused() -> None:
    embeddings, gold = clouds(6, spread=0.3, seed=0)
    with pytest.raises(ValueError, match="one label a record"):
        fit_stack(embeddings, gold[:-1], labels=LABELS)
    with pytest.raises(ValueError, match="scores of shape"):
        fit_stack(embeddings, gold, labels=LABELS, llm_scores=np.zeros((6, 3)))


def test_a_mix_worked_by_hand_and_a_silent_part() -> None:
    first, second = np.array([[0.8, 0.2]]), np.array([[0.5, 0.5]])
    # sqrt(.4) : sqrt(.1) = 2 : 1
    assert mix([first, second], [0.5, 0.5]) == pytest.approx(np.array([[2 / 3, 1 / 3]]))
    assert mix([first, np.full((1, 2), np.nan)], [0.5, 0.5]) == pytest.approx(first)
    assert mix([first, np.full((1, 2), np.nan)], [0.0, 1.0]) == pytest.approx(first)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_a_mix_of_equal_parts_is_that_part(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    part = rng.dirichlet(np.ones(4), size=n)
    weights = rng.dirichlet(np.ones(3))
    assert mix([part, part, part], list(weights)) == pytest.approx(part)
