import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labeling.agreement import (
    Triple,
    canonical,
    cohen_kappa,
    fleiss_kappa,
    jaccard_distance,
    krippendorff_alpha,
    nominal_distance,
    pairwise_matrix,
    raw_agreement,
)

# Krippendorff (2011), section C: four observers, twelve units, values 1 to 5, missing as None.
KRIPPENDORFF: dict[str, list[int | None]] = {
    "A": [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    "B": [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    "C": [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    "D": [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
}

# Fleiss (1971), table 1: thirty patients, six psychiatrists, five diagnoses; counts of each diagnosis.
FLEISS = """
0 0 0 6 0  0 3 0 0 3  0 1 4 0 1  0 0 0 0 6  0 3 0 3 0  2 0 4 0 0  0 0 4 0 2  2 0 3 1 0  2 0 0 4 0  0 0 0 0 6
1 0 0 5 0  1 1 0 4 0  0 3 3 0 0  1 0 0 5 0  0 2 0 3 1  0 0 5 0 1  3 0 0 1 2  5 1 0 0 0  0 2 0 4 0  1 0 2 0 3
0 0 0 0 6  0 1 0 5 0  0 2 0 1 3  2 0 0 4 0  1 0 0 4 1  0 5 0 1 0  4 0 0 0 2  0 2 0 4 0  1 0 5 0 0  0 0 0 0 6
"""


def triples_of(columns: dict[str, list[int | None]]) -> list[Triple]:
    return [(f"u{i}", rater, value) for rater, values in columns.items() for i, value in enumerate(values)]


def two_raters(pairs: list[tuple[object, object]]) -> list[Triple]:
    triples: list[Triple] = []
    for i, (first, second) in enumerate(pairs):
        triples += [(f"i{i}", "ana", first), (f"i{i}", "ben", second)]
    return triples


def test_krippendorff_alpha_reproduces_the_published_nominal_example() -> None:
    alpha = krippendorff_alpha(triples_of(KRIPPENDORFF))
    assert alpha.value == pytest.approx(0.743, abs=5e-4)
    assert (alpha.n, alpha.raters) == (11, 4)


def test_krippendorff_alpha_reproduces_the_published_interval_example() -> None:
    def squared(first: object, second: object) -> float:
        # Canonical numbers are (type, number); dividing by the largest square does not change alpha.
        assert isinstance(first, tuple) and isinstance(second, tuple)
        return float((first[1] - second[1]) ** 2) / 16

    alpha = krippendorff_alpha(triples_of(KRIPPENDORFF), distance=squared)
    assert alpha.value == pytest.approx(0.849, abs=5e-4)


def test_nominal_alpha_is_the_same_with_and_without_the_shortcut() -> None:
    triples = triples_of(KRIPPENDORFF)
    general = krippendorff_alpha(triples, distance=lambda a, b: nominal_distance(a, b))
    assert general.value == pytest.approx(krippendorff_alpha(triples).value)
    assert general.low == pytest.approx(krippendorff_alpha(triples).low)


def test_cohen_kappa_reproduces_the_published_psychiatric_example() -> None:
    # Cohen (1960) / Fleiss: 200 patients, observed .70, expected .41, kappa .29 / .59.
    table = {
        "pd": {"pd": 88, "n": 14, "p": 18},
        "n": {"pd": 10, "n": 40, "p": 10},
        "p": {"pd": 2, "n": 6, "p": 12},
    }
    pairs: list[tuple[object, object]] = [
        (a, b) for a, row in table.items() for b, count in row.items() for _ in range(count)
    ]
    kappa = cohen_kappa(two_raters(pairs))
    assert kappa.value == pytest.approx(0.29 / 0.59)
    assert raw_agreement(two_raters(pairs)).value == pytest.approx(0.70)
    assert kappa.n == 200 and kappa.raters == 2
    # Fleiss, Cohen and Everitt (1969): asymptotic standard error near .05.
    assert kappa.low == pytest.approx(0.49 - 0.10, abs=0.02)
    assert kappa.high == pytest.approx(0.49 + 0.10, abs=0.02)


def test_fleiss_kappa_reproduces_the_published_diagnoses() -> None:
    numbers = [int(cell) for cell in FLEISS.split()]
    rows = [numbers[i : i + 5] for i in range(0, 150, 5)]
    assert [sum(column) for column in zip(*rows, strict=True)] == [26, 26, 30, 55, 43]
    triples: list[Triple] = []
    for i, row in enumerate(rows):
        given_values = [category for category, count in enumerate(row) for _ in range(count)]
        triples += [(f"patient{i}", f"rater{r}", value) for r, value in enumerate(given_values)]
    kappa = fleiss_kappa(triples)
    assert kappa.value == pytest.approx(0.430, abs=5e-4)
    assert (kappa.n, kappa.raters) == (30, 6)


def test_total_disagreement_of_two_raters_on_two_labels_is_minus_one() -> None:
    triples = two_raters([("a", "b"), ("b", "a")] * 5)
    assert cohen_kappa(triples).value == pytest.approx(-1)
    assert fleiss_kappa(triples).value == pytest.approx(-1)
    # Observed disagreement 1; expected 2 * 10 * 10 / (20 * 19).
    assert krippendorff_alpha(triples).value == pytest.approx(1 - 1 / (200 / 380))
    assert raw_agreement(triples).value == 0


def test_complete_agreement_on_two_labels_is_one() -> None:
    triples = two_raters([("a", "a"), ("b", "b")] * 5)
    assert cohen_kappa(triples).value == pytest.approx(1)
    assert fleiss_kappa(triples).value == pytest.approx(1)
    assert krippendorff_alpha(triples).value == pytest.approx(1)


@pytest.mark.parametrize("measure", [cohen_kappa, fleiss_kappa, krippendorff_alpha])
def test_complete_agreement_on_a_single_label_is_undefined(measure: object) -> None:
    assert callable(measure)
    figure = measure(two_raters([("a", "a")] * 10))
    assert figure.value is None and figure.low is None and figure.high is None
    assert figure.n == 10
    assert "same value" in figure.undefined_because


@pytest.mark.parametrize("measure", [cohen_kappa, fleiss_kappa, krippendorff_alpha, raw_agreement])
def test_annotators_without_a_common_item_are_undefined(measure: object) -> None:
    assert callable(measure)
    figure = measure([("i1", "ana", "a"), ("i2", "ben", "b")])
    assert figure.value is None and figure.n == 0 and figure.raters == 0
    assert "no item" in figure.undefined_because


def test_no_annotations_at_all_are_undefined() -> None:
    assert krippendorff_alpha([]).undefined_because is not None
    assert "found 0" in str(cohen_kappa([]).undefined_because)
    assert pairwise_matrix([]).raters == ()


def test_raw_agreement_on_a_single_label_is_defined() -> None:
    assert raw_agreement(two_raters([("a", "a")] * 3)).value == 1


def test_cohen_kappa_of_three_annotators_is_undefined_with_the_reason() -> None:
    figure = cohen_kappa(triples_of(KRIPPENDORFF))
    assert figure.value is None
    assert figure.undefined_because == "Cohen's kappa compares two annotators, found 4"


def test_fleiss_kappa_with_missing_annotations_is_undefined_with_the_reason() -> None:
    figure = fleiss_kappa(triples_of(KRIPPENDORFF))
    assert figure.value is None and "2 to 4 annotations" in str(figure.undefined_because)


def test_an_empty_set_is_an_annotation_and_none_is_not() -> None:
    found_nothing = two_raters([(set(), set()), ({"pain"}, {"pain"}), (set(), {"pain"})])
    missing = two_raters([(None, set()), ({"pain"}, {"pain"}), (None, {"pain"})])
    assert krippendorff_alpha(found_nothing).n == 3
    assert raw_agreement(found_nothing).value == pytest.approx(2 / 3)
    assert raw_agreement(missing).n == 1


def test_values_are_compared_and_not_their_writing() -> None:
    triples = two_raters([(["a", "b"], ("a", "b")), ({"x": 1, "y": 2}, {"y": 2, "x": 1}), ("é", "e\u0301")])
    assert raw_agreement(triples).value == 1
    assert canonical({"a": [1, {"b"}]}) == canonical({"a": (1, frozenset({"b"}))})
    assert canonical(1) != canonical(True) and canonical(1) != canonical("1")
    with pytest.raises(TypeError, match="expected a value"):
        canonical(bytearray(b"x"))


def test_a_partly_right_set_disagrees_less_under_the_jaccard_distance() -> None:
    triples = two_raters([({"a", "b"}, {"a"}), ({"a"}, {"a"}), ({"c"}, {"c"}), (set(), set())])
    partial = krippendorff_alpha(triples, distance=jaccard_distance).value
    nominal = krippendorff_alpha(triples).value
    assert partial is not None and nominal is not None
    assert nominal < partial < 1
    assert jaccard_distance(frozenset(), frozenset()) == 0
    with pytest.raises(TypeError, match="two sets"):
        jaccard_distance("a", "b")


def test_a_distance_outside_the_unit_interval_is_refused() -> None:
    with pytest.raises(ValueError, match=r"distance in \[0, 1\]"):
        krippendorff_alpha(two_raters([("a", "b")]), distance=lambda a, b: 2.0)


def test_the_same_annotator_twice_on_one_item_is_refused() -> None:
    with pytest.raises(ValueError, match="one annotation per item and annotator"):
        raw_agreement([("i1", "ana", "a"), ("i1", "ana", "b")])


def test_the_pairwise_matrix_uses_only_the_items_two_annotators_share() -> None:
    triples = [*two_raters([("a", "a"), ("b", "b"), ("a", "b")]), ("i0", "cem", "a"), ("i1", "cem", "b")]
    matrix = pairwise_matrix(triples)
    assert matrix.raters == ("ana", "ben", "cem")
    ana_cem, cem_ana, ana_ben = matrix.cells[0][2], matrix.cells[2][0], matrix.cells[0][1]
    assert matrix.cells[1][1] is None
    assert ana_cem is not None and ana_cem == cem_ana and ana_cem.n == 2 and ana_cem.value == pytest.approx(1)
    # Observed 2/3; expected (2*1 + 1*2) / 9.
    assert ana_ben is not None and ana_ben.value == pytest.approx((2 / 3 - 4 / 9) / (5 / 9))


def test_the_interval_is_left_out_when_too_many_resamples_are_undefined() -> None:
    figure = krippendorff_alpha(two_raters([("a", "a"), ("b", "b")]))
    assert figure.value == pytest.approx(1)
    assert figure.low is None and figure.high is None


def test_the_bootstrap_is_reproducible_and_fast_at_a_thousand_items() -> None:
    triples: list[Triple] = [
        (f"i{i}", f"r{r}", f"label{(i * 7 + (i * r) % 5) % 9}") for i in range(1000) for r in range(4)
    ]
    started = time.perf_counter()
    first = krippendorff_alpha(triples, seed=3)
    assert time.perf_counter() - started < 3
    assert first == krippendorff_alpha(triples, seed=3)
    assert first != krippendorff_alpha(triples, seed=4)


labels = st.sampled_from(["a", "b", "c"])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(labels, labels), min_size=1, max_size=30))
def test_agreement_does_not_depend_on_who_is_first_and_is_at_most_one(pairs: list[tuple[str, str]]) -> None:
    forward = two_raters([(a, b) for a, b in pairs])
    backward = two_raters([(b, a) for a, b in pairs])
    for measure in (cohen_kappa, fleiss_kappa, krippendorff_alpha, raw_agreement):
        one, other = measure(forward, resamples=50), measure(backward, resamples=50)
        assert one.value == (None if other.value is None else pytest.approx(other.value))
        if one.value is not None:
            assert -1 - 1e-9 <= one.value <= 1 + 1e-9
        if one.low is not None and one.high is not None:
            assert one.low <= one.high


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(labels, labels), min_size=2, max_size=30))
def test_alpha_is_fleiss_kappa_corrected_for_small_samples(pairs: list[tuple[str, str]]) -> None:
    triples = two_raters([(a, b) for a, b in pairs])
    kappa, alpha = fleiss_kappa(triples, resamples=0).value, krippendorff_alpha(triples, resamples=0).value
    if kappa is None:
        assert alpha is None
        return
    # For complete nominal data 1 - alpha = (1 - kappa)(1 - 1 / number of annotations).
    assert alpha is not None
    assert 1 - alpha == pytest.approx((1 - kappa) * (1 - 1 / (2 * len(pairs))))
