"""The release's checks find every planted defect with its exact count and records, and tell an error from a failure."""

from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

from labeling.expectations import MOST_IDS, Check, _Rule, check, suite, suite_hash
from labeling.project_file import parse_project
from schemas.project import Project

COUNT = 60
Frames = dict[str, pl.DataFrame]


def project(extra: str = "") -> Project:
    text = (
        "name: p\nsources: [{path: r.csv}]\nschema:\n  task: classification\n  labels:\n"
        "    - {name: alpha, min_share: 0.3, max_share: 0.7}\n    - {name: beta}\n" + extra
    )
    return parse_project(text.encode(), "project.yaml")


def frames() -> Frames:
    """A release without a fault: 60 records, half of each label."""
    ids = [f"r{number:03d}" for number in range(COUNT)]
    records = pl.DataFrame(
        {
            "record_id": ids,
            "how": ["person"] * COUNT,
            "value": ["alpha", "beta"] * (COUNT // 2),
            "illegal_labels": [0] * COUNT,
            "text_length": [20] * COUNT,
            "text_sha256": [f"{number:064x}" for number in range(COUNT)],
            "split": ["train"] * 40 + ["validation"] * 10 + ["test"] * 10,
            "splits_of_group": [1] * COUNT,
        }
    )
    provenance = pl.DataFrame(
        {
            "record_id": ids,
            "text_sha256": records["text_sha256"],
            "how": records["how"],
            "annotators": [["a-1"]] * COUNT,
            "decided_at": ["2026-01-01"] * COUNT,
            "audit_seq": list(range(COUNT)),
            "schema_hash": ["h"] * COUNT,
            "final": ['"alpha"'] * COUNT,
        }
    )
    summary = pl.DataFrame({"auto_accepted_share": [0.0], "share of alpha": [0.5], "share of beta": [0.5]})
    return {"records": records, "provenance": provenance, "summary": summary}


def broken(changed: Frames) -> list[Check]:
    return [outcome for outcome in check(changed, suite(project(), COUNT)) if outcome.state != "passed"]


def at(column: str, rows: list[int], value: Any) -> pl.Expr:
    return (
        pl.when(pl.int_range(pl.len()).is_in(rows))
        .then(pl.lit(value))
        .otherwise(pl.col(column))
        .alias(column)
    )


def test_a_release_without_a_fault_passes_every_check() -> None:
    outcomes = check(frames(), suite(project(), COUNT))

    assert {outcome.state for outcome in outcomes} == {"passed"}
    assert len({outcome.name for outcome in outcomes}) == len(outcomes) >= 20


DEFECTS: list[tuple[str, str, Callable[[pl.DataFrame], pl.DataFrame], str, list[int]]] = [
    (
        "not settled",
        "records",
        lambda f: f.with_columns(at("how", [3, 7], "open")),
        "every record settled",
        [3, 7],
    ),
    (
        "no way told",
        "records",
        lambda f: f.with_columns(at("how", [5], None)),
        "every record says how it was settled",
        [5],
    ),
    (
        "no value",
        "records",
        lambda f: f.with_columns(at("value", [9], None)),
        "every record has a value",
        [9],
    ),
    (
        "foreign labels",
        "records",
        lambda f: f.with_columns(at("illegal_labels", [1, 2, 50], 1)),
        "labels are in the schema",
        [1, 2, 50],
    ),
    ("empty text", "records", lambda f: f.with_columns(at("text_length", [11], 0)), "no empty text", [11]),
    (
        "text twice",
        "records",
        lambda f: f.with_columns(at("text_sha256", [20, 21], "same")),
        "no text twice",
        [20, 21],
    ),
    (
        "id twice",
        "records",
        lambda f: f.with_columns(at("record_id", [30, 31], "r030")),
        "each record once",
        [30, 30],
    ),
    ("no split", "records", lambda f: f.with_columns(at("split", [4], "dev")), "in one split", [4]),
    (
        "leak",
        "records",
        lambda f: f.with_columns(at("splits_of_group", [8, 48], 2)),
        "train, validation and test share no near-duplicate group",
        [8, 48],
    ),
    (
        "no people",
        "provenance",
        lambda f: f.with_columns(at("annotators", [6], None)),
        "provenance complete: annotators",
        [6],
    ),
    (
        "no audit entry",
        "provenance",
        lambda f: f.with_columns(at("audit_seq", [6, 16, 26], None)),
        "provenance complete: audit_seq",
        [6, 16, 26],
    ),
]


@pytest.mark.parametrize(
    ("frame", "plant", "meaning", "rows"), [row[1:] for row in DEFECTS], ids=[r[0] for r in DEFECTS]
)
def test_a_planted_defect_is_found_with_its_count_and_its_records(
    frame: str, plant: Callable[[pl.DataFrame], pl.DataFrame], meaning: str, rows: list[int]
) -> None:
    release = frames()
    release[frame] = plant(release[frame])

    (outcome,) = broken(release)

    assert (outcome.meaning, outcome.state, outcome.critical) == (meaning, "failed", True)
    assert outcome.found == len(rows)
    assert list(outcome.record_ids) == [f"r{row:03d}" for row in rows]


def test_missing_rows_are_found_in_the_release_and_in_the_provenance() -> None:
    release = frames()
    release["records"] = release["records"].head(58)
    release["provenance"] = release["provenance"].head(59)

    found = {outcome.meaning: outcome.detail for outcome in broken(release)}

    assert found == {
        "every settled record is in the release": "observed 58",
        "provenance complete: a row a record": "observed 59",
    }


@pytest.mark.parametrize(
    ("column", "value", "meaning"),
    [
        ("share of alpha", 0.2, "class balance of alpha"),
        ("share of alpha", 0.8, "class balance of alpha"),
        (
            "auto_accepted_share",
            0.01,
            "share of labels no person has seen is within quality.max_auto_accepted_share",
        ),
    ],
)
def test_a_share_outside_the_projects_bounds_fails(column: str, value: float, meaning: str) -> None:
    release = frames()
    release["summary"] = release["summary"].with_columns(pl.lit(value).alias(column))

    assert [outcome.meaning for outcome in broken(release)] == [meaning]


def test_only_the_first_twenty_of_many_records_are_named_but_all_are_counted() -> None:
    release = frames()
    release["records"] = release["records"].with_columns(pl.lit(0).alias("text_length"))

    (outcome,) = broken(release)

    assert outcome.found == COUNT and len(outcome.record_ids) == MOST_IDS


def test_a_check_that_could_not_be_made_is_errored_not_failed() -> None:
    release = frames()
    release["provenance"] = release["provenance"].drop("final")

    (outcome,) = broken(release)

    assert outcome.state == "errored"
    assert outcome.meaning == "provenance complete: final"
    assert "final" in outcome.detail


def test_no_text_and_no_label_of_a_record_is_in_an_outcome() -> None:
    release = frames()
    release["records"] = release["records"].with_columns(at("how", [3], "a patient's secret"))

    (outcome,) = broken(release)

    assert "secret" not in str(outcome.as_dict())


def test_the_suite_hash_changes_with_every_bound() -> None:
    base = suite_hash(suite(project(), COUNT))

    assert base == suite_hash(suite(project(), COUNT))
    assert base != suite_hash(suite(project(), COUNT + 1))
    assert base != suite_hash(suite(project("quality: {max_auto_accepted_share: 0.5}\n"), COUNT))


def test_an_unknown_expectation_is_a_broken_program() -> None:
    with pytest.raises(AttributeError):
        check(frames(), [_Rule("records", "ExpectNothing", {}, "x")])
