"""What a legal value is for each of the four task types, and how far two values are apart."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling.task_types import TaskTypeProtocol, task_type
from schemas.project import Label, LabelSchema
from schemas.values import TaskType, canonical_json, content_hash

LABELS = tuple(Label(name=name) for name in ("drug", "dose", "Ärztin"))
TEXT = "Take 5 mg of 😀Aspirin daily"


def kind(task: str, **settings: Any) -> TaskTypeProtocol:
    labels = () if task == "pairs" else LABELS
    return task_type(LabelSchema(task=TaskType(task), labels=labels, **settings))


def span(start: int, end: int, label: str = "drug", quote: str | None = None) -> dict[str, Any]:
    return {"start": start, "end": end, "label": label, "quote": TEXT[start:end] if quote is None else quote}


PAIR = {"instruction": "Summarise.", "input": "", "output": "Short."}
LEGAL: list[tuple[str, Any]] = [
    ("classification", "drug"),
    ("classification", "Ärztin"),
    ("multilabel", []),
    ("multilabel", ["drug"]),
    ("multilabel", ["dose", "drug", "Ärztin"]),
    ("entities", []),
    ("entities", [span(13, 21)]),
    ("entities", [span(5, 9, "dose"), span(13, 21)]),
    ("pairs", PAIR),
    ("pairs", {**PAIR, "input": "x"}),
]
ILLEGAL: list[tuple[str, Any, str]] = [
    ("classification", "Drug", "none of the labels"),
    ("classification", "drug ", "none of the labels"),
    ("classification", "", "none of the labels"),
    ("classification", ["drug"], "none of the labels"),
    ("classification", 1, "none of the labels"),
    ("multilabel", "drug", "no list of labels"),
    ("multilabel", ["drug", "drug"], "twice"),
    ("multilabel", ["pill"], "none of the labels"),
    ("multilabel", [1], "no list of labels"),
    ("entities", {}, "no list of spans"),
    ("entities", [{"start": 0}], "no span"),
    ("entities", [span(13, 13)], "not inside"),
    ("entities", [span(13, 99, quote="x")], "not inside"),
    ("entities", [span(-1, 3, quote="x")], "not inside"),
    ("entities", [{**span(13, 21), "start": 13.0}], "not inside"),
    ("entities", [{**span(0, 1), "start": False}], "not inside"),
    ("entities", [span(13, 21, quote="aspirin")], "quotes 'aspirin'"),
    ("entities", [span(13, 21, "pill")], "none of the labels"),
    ("entities", [span(13, 21), span(13, 21)], "twice"),
    ("entities", [span(5, 14), span(13, 21)], "overlaps"),
    ("pairs", {"instruction": "a", "output": "b"}, "no pair"),
    ("pairs", {**PAIR, "more": 1}, "no pair"),
    ("pairs", {**PAIR, "output": " "}, "output is empty"),
    ("pairs", {**PAIR, "instruction": 5}, "no text"),
    ("pairs", "text", "no pair"),
]


@pytest.mark.parametrize(("task", "value"), LEGAL, ids=str)
def test_a_legal_value_passes_and_is_its_own_normal_form(task: str, value: Any) -> None:
    kind(task).check(value, TEXT)

    assert kind(task).normal(value) == value
    assert kind(task).distance(value, value) == 0.0


@pytest.mark.parametrize(("task", "value", "said"), ILLEGAL, ids=str)
def test_an_illegal_value_is_refused_with_a_sentence(task: str, value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        kind(task).check(value, TEXT)


def test_offsets_count_code_points() -> None:
    assert TEXT[13:21] == "😀Aspirin"
    kind("entities").check([span(14, 21)], TEXT)


def test_spans_may_overlap_where_the_schema_allows_it() -> None:
    kind("entities", allow_overlapping_spans=True).check([span(5, 14), span(13, 21)], TEXT)


@pytest.mark.parametrize(
    ("task", "value", "normal"),
    [
        ("multilabel", ["drug", "dose"], ["dose", "drug"]),
        ("entities", [span(13, 21), span(5, 9)], [span(5, 9), span(13, 21)]),
        (
            "pairs",
            {"output": "b", "input": "", "instruction": "a"},
            {"instruction": "a", "input": "", "output": "b"},
        ),
    ],
)
def test_values_that_mean_the_same_have_one_normal_form(task: str, value: Any, normal: Any) -> None:
    assert canonical_json(kind(task).normal(value)) == canonical_json(normal)


@pytest.mark.parametrize(
    ("task", "first", "second", "distance"),
    [
        ("classification", "drug", "dose", 1.0),
        ("multilabel", ["drug"], ["dose"], 1.0),
        ("multilabel", ["dose", "drug"], ["drug"], 0.5),
        ("multilabel", [], ["drug"], 1.0),
        ("multilabel", [], [], 0.0),
        ("entities", [], [], 0.0),
        ("entities", [], [span(13, 21)], 1.0),
        ("entities", [span(5, 9), span(13, 21)], [span(13, 21)], 1 - 2 / 3),
        ("entities", [span(13, 21)], [span(13, 21, "dose")], 1.0),
    ],
)
def test_distances_by_hand(task: str, first: Any, second: Any, distance: float) -> None:
    assert kind(task).distance(first, second) == pytest.approx(distance)
    assert kind(task).distance(second, first) == pytest.approx(distance)


@given(a=st.text(min_size=1, max_size=20), b=st.text(min_size=1, max_size=20))
def test_two_pairs_are_at_no_distance_only_when_they_are_equal(a: str, b: str) -> None:
    first, second = {**PAIR, "output": a}, {**PAIR, "output": b}

    assert 0.0 <= kind("pairs").distance(first, second) <= 1.0
    assert (kind("pairs").distance(first, second) == 0.0) is (a == b)


@given(
    first=st.lists(st.sampled_from(["drug", "dose", "Ärztin"]), unique=True),
    second=st.lists(st.sampled_from(["drug", "dose", "Ärztin"]), unique=True),
)
def test_label_sets_have_a_symmetric_distance_in_the_unit_interval(
    first: list[str], second: list[str]
) -> None:
    distance = kind("multilabel").distance(first, second)

    assert distance == kind("multilabel").distance(second, first)
    assert 0.0 <= distance <= 1.0 and (distance == 0.0) is (set(first) == set(second))


@pytest.mark.parametrize(
    ("task", "cell", "value"),
    [
        ("classification", " drug ", "drug"),
        ("classification", "", None),
        ("classification", None, None),
        ("multilabel", "drug, dose", ["dose", "drug"]),
        ("multilabel", '["drug"]', ["drug"]),
        ("multilabel", "[]", []),
        ("multilabel", ["drug"], ["drug"]),
        ("multilabel", "", None),
        ("entities", "[]", []),
        ("entities", None, None),
        ("entities", canonical_json([span(13, 21), span(5, 9)]), [span(5, 9), span(13, 21)]),
        ("pairs", canonical_json(PAIR), PAIR),
        ("pairs", "", None),
    ],
)
def test_a_gold_cell_is_read(task: str, cell: object, value: Any) -> None:
    assert kind(task).from_source(cell) == value


@pytest.mark.parametrize(
    ("task", "cell"),
    [
        ("classification", "pill"),
        ("multilabel", "pill"),
        ("multilabel", 5),
        ("entities", "{}"),
        ("pairs", "{}"),
    ],
)
def test_a_gold_cell_that_is_no_value_is_refused(task: str, cell: object) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        kind(task).from_source(cell)


@pytest.mark.parametrize(
    ("task", "value", "parts", "columns"),
    [
        ("classification", "drug", ["drug"], {"label": "drug"}),
        ("multilabel", ["dose", "drug"], ["dose", "drug"], {"labels": ["dose", "drug"]}),
        ("multilabel", [], [], {"labels": []}),
        ("entities", [span(13, 21)], ["drug"], {"spans": [span(13, 21)]}),
        ("pairs", PAIR, [], PAIR),
    ],
)
def test_parts_and_export_columns(task: str, value: Any, parts: list[str], columns: dict[str, Any]) -> None:
    assert list(kind(task).parts(value)) == parts
    assert dict(kind(task).export_columns(value)) == columns


def test_equal_values_have_one_hash_and_empty_is_not_missing() -> None:
    assert content_hash({"b": 1, "a": 2}) == content_hash({"a": 2, "b": 1})
    assert content_hash([]) != content_hash(None)


def test_every_task_type_of_the_schema_is_registered() -> None:
    for task in TaskType:
        built = kind(task.value)
        assert built.editor == task.value
        assert built.one_token is (task is TaskType.CLASSIFICATION)
