import math

import numpy as np
import pytest

from labeling.findings import (
    TimedDecision,
    acceptance_z,
    anchoring,
    anchoring_measures,
    annotator_disagreement,
    fatigue,
    label_error,
    model_conflict,
    rubber_stamp,
    similar_labelled_differently,
)

LABELS = ["refill", "urgent", "billing"]


def test_a_disputed_record_names_who_said_what() -> None:
    (finding,) = annotator_disagreement(
        [("m1", "ana", "refill"), ("m1", "ben", "urgent"), ("m1", "cem", "refill"), ("m2", "ana", "refill")]
    )
    assert finding["record_id"] == "m1" and finding["kind"] == "annotator_disagreement"
    assert finding["score"] == pytest.approx(2 / 3)
    assert finding["sentence"] == "3 people labelled this record and gave 2 different answers."
    assert finding["evidence"] == ['ana: "refill"', 'ben: "urgent"', 'cem: "refill"']


def test_annotators_who_agree_or_work_alone_are_no_finding() -> None:
    same = [("m1", "ana", {"x", "y"}), ("m1", "ben", {"y", "x"}), ("m2", "ana", "a"), ("m2", "ben", None)]
    assert annotator_disagreement(same) == []
    assert annotator_disagreement([]) == []


def test_finding_nothing_disagrees_with_finding_something() -> None:
    (finding,) = annotator_disagreement([("m1", "ana", frozenset()), ("m1", "ben", frozenset({"pain"}))])
    assert finding["evidence"] == ["ana: nothing", "ben: {pain}"]


def test_a_label_the_model_finds_unlikely_is_a_conflict() -> None:
    probabilities = np.array([[0.05, 0.9, 0.05], [0.6, 0.3, 0.1], [0.15, 0.7, 0.15]])
    found = model_conflict(["m1", "m2", "m3"], ["refill"] * 3, probabilities, labels=LABELS)
    assert [finding["record_id"] for finding in found] == ["m1", "m3"]
    assert found[0]["score"] == pytest.approx(0.95)
    assert '"refill"' in found[0]["sentence"] and '"urgent" 90 %' in found[0]["sentence"]
    assert found[0]["evidence"][0] == "urgent: 90 %"


def test_an_unlikely_label_is_no_conflict_when_it_is_still_the_likeliest() -> None:
    even = np.full((1, 3), 1 / 3)
    assert model_conflict(["m1"], ["refill"], even, labels=LABELS, below=0.5) == []


def test_planted_label_errors_are_found_and_clean_labels_are_not() -> None:
    rng = np.random.default_rng(0)
    truth = np.arange(300) % 3
    sure = rng.uniform(0.6, 0.98, size=300)
    planted = [4, 50, 121, 207]
    sure[planted] = 0.95
    probabilities = np.repeat((1 - sure)[:, None] / 2, 3, axis=1)
    probabilities[np.arange(300), truth] = sure
    given = [LABELS[code] for code in truth]
    for row in planted:
        given[row] = LABELS[(truth[row] + 1) % 3]
    ids = [f"m{i}" for i in range(300)]
    found = label_error(ids, given, probabilities, labels=LABELS)
    assert {finding["record_id"] for finding in found} == {f"m{row}" for row in planted}
    assert all(finding["score"] > 0.9 for finding in found)


def test_label_errors_need_two_labels_and_ignore_labels_that_never_occur() -> None:
    assert label_error(["m1"], ["refill"], np.array([[0.1, 0.8, 0.1]]), labels=LABELS) == []
    probabilities = np.tile([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]], (20, 1))
    given = ["refill", "urgent"] * 20
    given[0] = "urgent"
    found = label_error([f"m{i}" for i in range(40)], given, probabilities, labels=LABELS)
    assert [finding["record_id"] for finding in found] == ["m0"]
    with pytest.raises(ValueError, match="expected probabilities of shape"):
        label_error(["m1"], ["refill"], np.ones((1, 2)), labels=LABELS)


def test_similar_records_with_different_labels_flag_each_other() -> None:
    vectors = np.array([[1, 0], [1, 0.05], [0, 1], [0.05, 1]])
    found = similar_labelled_differently(["m1", "m2", "m3", "m4"], vectors, ["a", "b", "a", "a"])
    assert {finding["record_id"] for finding in found} == {"m1", "m2"}
    assert found[0]["score"] > 0.99
    assert 'record m2 is labelled "b"' in found[0]["sentence"]


def test_unlike_or_unsettled_records_are_no_finding() -> None:
    vectors = np.array([[1.0, 0.0], [1.0, 0.01], [0.5, 0.5]])
    assert similar_labelled_differently(["m1", "m2", "m3"], vectors, ["a", None, "b"]) == []
    assert similar_labelled_differently([], np.zeros((0, 2)), []) == []
    with pytest.raises(ValueError, match="as many ids"):
        similar_labelled_differently(["m1"], vectors, ["a"])


def test_the_acceptance_z_of_a_case_worked_by_hand() -> None:
    # (4 - 2) / sqrt(4 * 0.25) = 2
    assert acceptance_z(np.ones(4, dtype=bool), np.full(4, 0.5)) == pytest.approx(2)
    assert acceptance_z(np.ones(4, dtype=bool), np.ones(4)) is None
    assert acceptance_z(np.zeros(0, dtype=bool), np.zeros(0)) is None
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        acceptance_z(np.ones(1, dtype=bool), np.array([np.nan]))


def test_a_rubber_stamper_is_noticed_and_a_careful_reader_is_not() -> None:
    rng = np.random.default_rng(1)
    p_right = rng.uniform(0.5, 0.95, size=400)
    careful = rng.uniform(size=400) < p_right
    accepted = np.where(np.arange(400) < 200, careful, True)
    found = rubber_stamp(["careful"] * 200 + ["stamper"] * 200, accepted, p_right)
    assert [finding["record_id"] for finding in found] == [None]
    assert found[0]["sentence"].startswith("stamper accepted 100 % of 200")
    assert found[0]["score"] > 3


def test_a_full_stamper_of_coin_flips_is_flagged_from_nine_records_on() -> None:
    # z = n/2 / sqrt(n/4) = sqrt(n) reaches 3 at 9.
    for n, flagged in ((8, 0), (9, 1)):
        assert len(rubber_stamp(["ana"] * n, np.ones(n, dtype=bool), np.full(n, 0.5))) == flagged


def test_anchoring_is_flagged_only_when_the_interval_excludes_no_effect() -> None:
    blind = np.tile(np.repeat([True, False], 100), 2)
    pulled = np.concatenate([np.arange(100) < 92, np.arange(100) < 70])
    steady = np.concatenate([np.arange(100) < 90, np.arange(100) < 88])
    names = ["pulled"] * 200 + ["steady"] * 200
    right = np.concatenate([pulled, steady])
    (finding,) = anchoring(names, blind, right)
    assert finding["score"] == pytest.approx(0.22)
    assert finding["sentence"].startswith("pulled is right on 92 % of records without a suggestion")
    measures = anchoring_measures(names, blind, right)
    assert [measure.annotator for measure in measures] == ["pulled", "steady"]
    assert measures[1].blind.value == 0.9 and measures[1].assisted.n == 100


def test_anchoring_without_blind_records_is_undefined_and_no_finding() -> None:
    blind, right = np.zeros(50, dtype=bool), np.ones(50, dtype=bool)
    (measure,) = anchoring_measures(["ana"] * 50, blind, right)
    assert measure.blind.value is None and measure.difference.value is None
    assert anchoring(["ana"] * 50, blind, right) == []


def session(
    annotator: str, *, slope: float, n: int, seed: int, values: list[str] | None = None, name: str = "s1"
) -> list[TimedDecision]:
    rng = np.random.default_rng(seed)
    result = []
    for order in range(n):
        length = int(rng.integers(50, 400))
        confidence = None if order % 6 == 0 else float(rng.uniform(0.5, 1))
        seconds = math.exp(0.3 * math.log(length) + slope * order + rng.normal(scale=0.3))
        value = LABELS[int(rng.integers(3))] if values is None else values[order]
        action = "accept" if rng.uniform() < 0.8 else "correct"
        result.append(TimedDecision(annotator, name, order, seconds, length, confidence, action, value))
    return result


def test_times_that_fall_within_sessions_are_noticed_and_steady_ones_are_not() -> None:
    tired = session("tired", slope=-0.01, n=120, seed=1) + session(
        "tired", slope=-0.01, n=90, seed=2, name="s2"
    )
    steady = session("steady", slope=0, n=200, seed=30)
    (finding,) = fatigue(tired + steady)
    assert finding["kind"] == "fatigue" and finding["record_id"] is None
    assert finding["sentence"].startswith("Within a session tired gets faster")
    assert "210 in 2 sessions" in finding["evidence"][0]


def test_longer_texts_are_not_mistaken_for_tiring() -> None:
    rng = np.random.default_rng(4)
    growing = [
        TimedDecision(
            "ana",
            "s1",
            i,
            math.exp(0.5 * math.log(50 + 4 * i) + rng.normal(scale=0.2)),
            50 + 4 * i,
            0.9,
            "accept",
            LABELS[int(rng.integers(3))],
        )
        for i in range(150)
    ]
    assert fatigue(growing) == []


def test_a_long_run_of_one_answer_is_noticed() -> None:
    rng = np.random.default_rng(5)
    values = [LABELS[int(k)] for k in rng.integers(0, 3, 150)]
    values[60:75] = ["billing"] * 15
    (finding,) = fatigue(session("ana", slope=0, n=150, seed=6, values=values))
    assert '"billing", 15 times in a row' in finding["sentence"] or "16 times" in finding["sentence"]


def test_always_the_same_answer_is_what_shuffling_gives_too() -> None:
    assert fatigue(session("ana", slope=0, n=60, seed=7, values=["billing"] * 60)) == []


def test_few_decisions_are_not_tested_and_impossible_times_are_refused() -> None:
    assert fatigue(session("ana", slope=-0.5, n=29, seed=8)) == []
    assert fatigue([]) == []
    with pytest.raises(ValueError, match="above 0 s"):
        fatigue([TimedDecision("ana", "s1", 0, 0.0, 10, None, "accept", "a")])


def test_steady_annotators_are_rarely_flagged() -> None:
    teams = [
        [decision for k in range(4) for decision in session(f"p{k}", slope=0, n=40, seed=100 * t + k)]
        for t in range(4)
    ]
    assert sum(len(fatigue(team, seed=t)) > 0 for t, team in enumerate(teams)) <= 1
