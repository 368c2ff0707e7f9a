import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labeling.consensus import Majority, dawid_skene, majority

LABELS = ["a", "b", "c"]


def test_most_votes_win_and_a_tie_needs_adjudication() -> None:
    assert majority(["a", "b", "a"]) == Majority("a", 2, 3, tied=False)
    assert majority(["a", "b"]) == Majority(None, 1, 2, tied=True)
    assert majority(["a", "b", "b", "a", "c"]) == Majority(None, 2, 5, tied=True)
    assert majority(["a"]).value == "a"


def test_nobody_annotated_is_not_a_tie() -> None:
    assert majority([]) == majority([None, None]) == Majority(None, 0, 0, tied=False)


def test_an_empty_set_can_win_and_sets_are_compared_by_content() -> None:
    assert majority([set(), [], set()]).value == set()
    assert majority([{"x", "y"}, {"y", "x"}, {"x"}]).votes == 2


def simulated(
    confusion: dict[str, np.ndarray], *, items: int, seed: int, prior: tuple[float, ...] = (0.5, 0.3, 0.2)
) -> tuple[list[tuple[str, str, str]], list[int]]:
    rng = np.random.default_rng(seed)
    truth = rng.choice(3, size=items, p=prior)
    triples = [
        (f"i{index:04d}", rater, LABELS[rng.choice(3, p=matrix[true])])
        for index, true in enumerate(truth)
        for rater, matrix in confusion.items()
    ]
    return triples, truth.tolist()


def sharp(accuracy: float) -> np.ndarray:
    return np.full((3, 3), (1 - accuracy) / 2) + np.eye(3) * (accuracy - (1 - accuracy) / 2)


def test_dawid_skene_recovers_the_known_confusion_of_simulated_raters() -> None:
    biased = np.array([[0.9, 0.05, 0.05], [0.6, 0.35, 0.05], [0.1, 0.1, 0.8]])
    known = {"ana": sharp(0.9), "ben": sharp(0.75), "cem": biased, "dee": sharp(0.8)}
    triples, _ = simulated(known, items=1500, seed=0)
    model = dawid_skene(triples, labels=LABELS)
    assert model.prior == pytest.approx([0.5, 0.3, 0.2], abs=0.04)
    for rater, matrix in known.items():
        assert model.confusion[rater] == pytest.approx(matrix, abs=0.07)


def test_dawid_skene_beats_the_majority_when_one_rater_is_good_and_two_are_poor() -> None:
    triples, truth = simulated(
        {"ana": sharp(0.97), "ben": sharp(0.55), "cem": sharp(0.55)}, items=800, seed=1
    )
    model = dawid_skene(triples, labels=LABELS)
    assert model.probabilities is not None
    modelled = float((model.probabilities.argmax(axis=1) == truth).mean())
    by_item: dict[str, list[str]] = {}
    for item, _, label in triples:
        by_item.setdefault(item, []).append(label)
    votes = [majority(values).value for _, values in sorted(by_item.items())]
    majority_right = float(np.mean([vote == LABELS[t] for vote, t in zip(votes, truth, strict=True)]))
    assert modelled > 0.93 > majority_right + 0.1


def test_missing_annotations_are_allowed_when_every_rater_still_overlaps() -> None:
    triples, truth = simulated({name: sharp(0.9) for name in ("ana", "ben", "cem", "dee")}, items=400, seed=2)
    rng = np.random.default_rng(3)
    kept = [triple for triple in triples if rng.uniform() < 0.6]
    model = dawid_skene(kept, labels=LABELS)
    assert model.probabilities is not None
    right = [
        LABELS[k] == LABELS[truth[int(item[1:])]]
        for k, item in zip(model.probabilities.argmax(axis=1), model.items, strict=True)
    ]
    assert np.mean(right) > 0.9


def test_complete_agreement_gives_near_certainty() -> None:
    triples = [(f"i{i}", rater, LABELS[i % 3]) for i in range(60) for rater in ("ana", "ben", "cem")]
    model = dawid_skene(triples, labels=LABELS)
    assert model.probabilities is not None and model.probabilities.max(axis=1).min() > 0.99


def test_two_raters_or_too_little_overlap_leave_the_model_undefined() -> None:
    two = [(f"i{i}", rater, "a") for i in range(20) for rater in ("ana", "ben")]
    model = dawid_skene(two, labels=LABELS)
    assert model.probabilities is None and model.undefined_because == "needs 3 annotators, found 2"
    alone = [*two, *[(f"x{i}", "cem", "b") for i in range(50)], ("i0", "cem", "b")]
    assert "found 1 for cem" in str(dawid_skene(alone, labels=LABELS).undefined_because)
    assert dawid_skene([], labels=LABELS).items == ()


def test_unknown_labels_and_repeated_annotations_are_refused() -> None:
    triples = [(f"i{i}", rater, "a") for i in range(20) for rater in ("ana", "ben", "cem")]
    with pytest.raises(ValueError, match="labels among"):
        dawid_skene([*triples, ("i99", "ana", "z")], labels=LABELS)
    with pytest.raises(ValueError, match="repeated pair"):
        dawid_skene([*triples, triples[0]], labels=LABELS)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000))
def test_probabilities_and_confusion_rows_sum_to_one_for_any_annotations(seed: int) -> None:
    rng = np.random.default_rng(seed)
    triples = [(f"i{i}", r, LABELS[int(rng.integers(3))]) for i in range(15) for r in ("ana", "ben", "cem")]
    model = dawid_skene(triples, labels=LABELS)
    assert model.probabilities is not None
    assert model.probabilities.sum(axis=1) == pytest.approx(1)
    for matrix in model.confusion.values():
        assert matrix.sum(axis=1) == pytest.approx(1)
