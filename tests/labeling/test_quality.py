"""Agreement, disputes, gold and figures of a signed round; a failure is never a label."""

from collections import Counter
from typing import Any

import polars as pl
import pytest
from rounds_of_work import Loop
from small_projects import ProjectFactory
from sqlalchemy import select

from labeling.database import queue, rounds
from labeling.database import tables as queue_tables
from labeling.database.opening import project_database
from labeling.database.queue import decisions_of_round
from labeling.ingest import ingest
from labeling.project_file import parse_project
from labeling.quality import (
    control_findings,
    dispute_reasons,
    gold_rows,
    load_findings,
    measure_agreement,
    opinions,
    settle,
    start_quality,
    triples,
)
from labeling.reviewing import known_values, open_review, settled_values, write_annotations
from labeling.storage import Table, read_json, write_json
from schemas import tables
from schemas.review import RoundState
from schemas.values import TaskType

TASK = TaskType.CLASSIFICATION


def said(*rows: tuple[str, str, str | None], action: str = "correct") -> pl.DataFrame:
    """Annotations from (record, annotator, value); no value is a rejection unless another action is given."""
    told = [
        {
            "annotation_id": f"n{index}",
            "record_id": record,
            "annotator_id": who,
            "value": value,
            "action": action if value is not None else ("reject" if action == "correct" else action),
            "seen": "assisted",
            "purpose": "selected",
            "seconds": 1.0,
            "rehearsal": False,
            "audit_seq": index,
        }
        for index, (record, who, value) in enumerate(rows)
    ]
    return pl.DataFrame(told, schema_overrides={"value": pl.String})


def settled(
    annotations: pl.DataFrame, judged: dict[str, Any] | None = None
) -> tuple[dict[str, Any], list[str]]:
    rows, left = gold_rows(annotations, judged or {}, number=1, confidence={})
    return {row["record_id"]: (row["value"], row["how"], row["agreement"]) for row in rows}, left


# -- gold ------------------------------------------------------------------------------------------------------------


def test_one_answer_settles_a_record_as_a_persons() -> None:
    assert settled(said(("r1", "ann", "alpha"))) == ({"r1": ("alpha", "person", None)}, [])


def test_a_majority_settles_by_consensus_and_says_how_large_it_was() -> None:
    rows, left = settled(said(("r1", "a", "alpha"), ("r1", "b", "alpha"), ("r1", "c", "beta")))

    assert rows == {"r1": ("alpha", "consensus", pytest.approx(2 / 3))} and left == []


def test_a_tie_is_a_dispute_and_no_label() -> None:
    assert settled(said(("r1", "a", "alpha"), ("r1", "b", "beta"))) == ({}, ["r1"])


def test_an_adjudicator_has_the_last_word() -> None:
    judged = {"r1": {"value": "beta", "annotation_id": "n9"}}
    rows, left = gold_rows(
        said(("r1", "a", "alpha"), ("r1", "b", "alpha")), judged, number=2, confidence={"r1": 0.4}
    )

    assert left == []
    (row,) = rows
    assert (row["value"], row["how"], row["agreement"], row["round"]) == ("beta", "adjudicated", 1.0, 2)
    assert row["annotation_ids"] == ["n0", "n1", "n9"] and row["confidence"] == 0.4


def test_a_rejection_is_an_opinion_and_settles_as_not_labellable() -> None:
    assert settled(said(("r1", "a", None))) == ({"r1": (None, "person", None)}, [])
    assert settled(said(("r1", "a", None), ("r1", "b", "alpha")))[1] == ["r1"]


def test_a_skip_is_no_opinion() -> None:
    skipped = said(("r1", "a", None), action="skip")
    both = pl.concat([skipped, said(("r1", "b", "alpha"))])

    assert opinions(skipped) == {}
    assert settled(both) == ({"r1": ("alpha", "person", None)}, [])


def test_a_record_judged_not_labellable_is_gold_without_a_value() -> None:
    rows, _ = settled(
        said(("r1", "a", "alpha"), ("r1", "b", "beta")), {"r1": {"value": None, "annotation_id": "n9"}}
    )

    assert rows["r1"][:2] == (None, "adjudicated")


# -- agreement and disputes ------------------------------------------------------------------------------------------


def test_agreement_is_measured_on_records_several_people_labelled(worked: Loop) -> None:
    annotations = said(
        *[(f"r{n}", who, "alpha" if n % 2 else "beta") for n in range(10) for who in "ab"],
        ("lone", "a", "alpha"),
    )

    result = measure_agreement(worked.project, annotations)

    assert (result["records"], result["annotators"]) == (10, 2)
    assert [(m["name"], m["value"]) for m in result["measures"]] == [
        (m["name"], pytest.approx(1.0)) for m in result["measures"]
    ]


def test_agreement_of_people_who_only_know_one_label_is_undefined_not_zero(worked: Loop) -> None:
    result = measure_agreement(
        worked.project, said(*[(f"r{n}", who, "alpha") for n in range(5) for who in "ab"])
    )

    by_name = {measure["name"]: measure for measure in result["measures"]}
    chance_corrected = [measure for name, measure in by_name.items() if "raw" not in name]
    assert chance_corrected and all(measure["value"] is None for measure in chance_corrected)
    assert all(measure["undefined_because"] for measure in chance_corrected)


def test_agreement_without_overlap_is_undefined(worked: Loop) -> None:
    result = measure_agreement(worked.project, said(("r1", "a", "alpha"), ("r2", "b", "beta")))

    assert result["records"] == 0
    assert all(measure["value"] is None for measure in result["measures"])


def test_skips_and_rejections_are_no_labels_in_the_agreement() -> None:
    assert triples(said(("r1", "a", "alpha"), ("r1", "b", None))) == [("r1", "a", "alpha")]


def test_every_disagreement_goes_back_and_other_findings_up_to_a_share(worked: Loop) -> None:
    annotations = said(*[(f"r{n}", "a", "alpha") for n in range(40)], ("r0", "b", "beta"))
    findings = [
        {"record_id": f"r{n}", "kind": "label_error", "score": n / 40, "sentence": f"strange {n}"}
        for n in range(1, 40)
    ]
    findings += [{"record_id": None, "kind": "fatigue", "score": 1.0, "sentence": "a tired person"}]

    reasons = dispute_reasons(worked.project, annotations, findings)

    assert reasons == {
        "r0": "Annotators labelled this record differently.",
        "r39": "strange 39",
        "r38": "strange 38",
    }


# -- a whole round ---------------------------------------------------------------------------------------------------


def test_gold_of_a_round_is_right_where_two_people_or_an_adjudicator_said_so(worked: Loop) -> None:
    gold = Table(worked.folder.round(1).gold, tables.gold(TASK)).read()

    assert gold["record_id"].is_sorted() and gold["record_id"].n_unique() == gold.height == 64
    for record_id, value, how in gold.select("record_id", "value", "how").iter_rows():
        if how != "person":
            assert value == worked.truth[record_id]
    assert set(gold["how"]) == {"person", "consensus", "adjudicated"}
    assert gold["rehearsal"].all()


def test_disagreements_become_findings_and_disputes(worked: Loop) -> None:
    findings = load_findings(worked.project, worked.folder, 1)
    by_record = opinions(write_annotations(worked.project, worked.folder, worked.db, 1))
    disagreed = {key for key, rows in by_record.items() if len({row["value"] for row in rows}) > 1}
    judged = {row["record_id"] for row in decisions_of_round(worked.db, 1) if row["purpose"] == "recheck"}

    assert disagreed
    assert set(findings.filter(pl.col("kind") == "annotator_disagreement")["record_id"]) == disagreed
    assert disagreed <= judged
    assert findings["finding_id"].n_unique() == findings.height


def test_an_adjudicated_finding_says_what_came_of_it(worked: Loop) -> None:
    findings = load_findings(worked.project, worked.folder, 1)
    gold = dict(
        Table(worked.folder.round(1).gold, tables.gold(TASK)).read().select("record_id", "value").iter_rows()
    )
    by_record = opinions(write_annotations(worked.project, worked.folder, worked.db, 1))
    judged = {
        row["record_id"]: row for row in decisions_of_round(worked.db, 1) if row["purpose"] == "recheck"
    }

    assert findings["finding_id"].n_unique() == findings.height
    outcomes = set()
    for row in findings.iter_rows(named=True):
        if row["record_id"] not in judged:
            assert (row["state"], row["settled_by"]) == ("open", None)
            continue
        outcomes.add(row["state"])
        assert row["settled_by"] == judged[row["record_id"]]["annotation_id"]
        values = {decision["value"] for decision in by_record[row["record_id"]]}
        assert row["state"] == ("kept" if values == {gold[row["record_id"]]} else "changed")
    assert "changed" in outcomes


def test_the_figures_of_a_round_are_counted_from_its_tables(worked: Loop) -> None:
    figures = read_json(worked.folder.round(1).figures)
    annotations = write_annotations(worked.project, worked.folder, worked.db, 1)
    gold = settled_values(worked.project, worked.folder, 2)

    assert figures["human_labels"] == annotations.height
    assert figures["records"] == annotations["record_id"].n_unique() == len(gold)
    assert sum(figures["class_balance"].values()) == len(gold)
    assert figures["auto_accepted"] == 0
    assert figures["accuracy"]["n"] == 20 and figures["gain"] is None
    assert 0 <= figures["accuracy"]["low"] <= figures["accuracy"]["value"] <= figures["accuracy"]["high"] <= 1


def test_quality_started_again_changes_nothing(copy_of_worked: Loop) -> None:
    loop = copy_of_worked
    annotations = write_annotations(loop.project, loop.folder, loop.db, 1)
    table = Table(loop.folder.round(1).findings, tables.findings(TASK))
    before = (table.content_hash(sort_by="finding_id"), read_json(loop.folder.round(1).agreement))

    start_quality(loop.project, loop.folder, loop.db, 1, annotations, loop.vectors)
    settle(loop.project, loop.folder, loop.db, 1, annotations)

    assert (table.content_hash(sort_by="finding_id"), read_json(loop.folder.round(1).agreement)) == before
    assert rounds.state_of(loop.db, 1) is RoundState.CLOSED


def test_a_round_with_open_disputes_is_not_settled(new_loop: type[Loop]) -> None:
    loop = new_loop()
    loop.careless = 0.5
    loop.setup()
    loop.suggest(1)
    loop.review(1)
    annotations = write_annotations(loop.project, loop.folder, loop.db, 1)

    begun = start_quality(loop.project, loop.folder, loop.db, 1, annotations, loop.vectors)
    refused = settle(loop.project, loop.folder, loop.db, 1, annotations)

    assert begun["missing"] and refused == {"missing": begun["missing"]}
    assert rounds.state_of(loop.db, 1) is RoundState.ADJUDICATING
    assert not Table(loop.folder.round(1).gold, tables.gold(TASK)).exists
    assert len(queue.disputes(loop.db, loop.people["rex"].id, 1)) > 3
    loop.adjudicate(1)
    assert settle(loop.project, loop.folder, loop.db, 1, annotations)["missing"] == []


# -- control records -------------------------------------------------------------------------------------------------


def test_control_records_check_people_and_never_become_gold_or_disputes() -> None:
    told = said(("c1", "ann", "alpha"), ("c2", "ann", "beta"), ("c1", "bob", "alpha"), ("r1", "ann", "beta"))
    annotations = told.with_columns(
        purpose=pl.when(pl.col("record_id").str.starts_with("c")).then(pl.lit("control")).otherwise("purpose")
    )
    found = control_findings(annotations, {"c1": "alpha", "c2": "alpha"})

    assert set(settled(annotations)[0]) == {"r1"}
    assert [(entry["record_id"], entry["sentence"], entry["evidence"]) for entry in found] == [
        (None, "ann answered 1 of 2 control records as their source knows them.", ["c2"])
    ]
    project = parse_project(
        b"name: p\nschema: {task: classification, labels: [{name: alpha}, {name: beta}]}\nsources: [{path: r.csv}]\n",
        "p",
    )
    flagged = [
        {"record_id": name, "kind": "label_error", "score": 1.0, "sentence": "Odd."} for name in ("c2", "r1")
    ]
    assert set(dispute_reasons(project, annotations, flagged, 1.0)) == {"r1"}


@pytest.mark.parametrize("path", ["records.jsonl", "night/shift/records.jsonl"])
def test_control_records_and_routes_of_a_project_reach_the_queue(
    path: str, project_folder: ProjectFactory
) -> None:
    rows = [
        {"text": f"record number {i} says beta", "known": "beta" if i % 4 == 0 else None} for i in range(40)
    ]
    project, folder = project_folder(
        rows,
        sources=[{"path": path, "gold": "known"}],
        review={
            "control_records": 3,
            "blind_slice": 5,
            "routes": [{"source": path, "pool": "Nurses"}],
        },
    )
    (folder.root / path).parent.mkdir(parents=True, exist_ok=True)
    (folder.root / "records.jsonl").rename(folder.root / path)
    ingest(project, folder)
    write_json(folder.round(1).plan, {"reviewed": 0})
    with project_database(project, folder) as db:
        open_review(project, folder, db, 1, None, rehearsal=False)
        with db.read() as conn:
            item = queue_tables.queue_items.c
            counts = Counter(conn.execute(select(item.purpose)).scalars())
            routed = set(conn.execute(select(item.pool_id)).scalars())
            control = set(conn.execute(select(item.record_id).where(item.purpose == "control")).scalars())
        assert (counts["control"], counts["audit"], sum(counts.values())) == (3, 5, 40)
        assert len(routed) == 1 and None not in routed
        assert set(known_values(project, folder, control).values()) == {"beta"}


def test_an_adjudicator_who_thinks_again_before_the_round_is_closed_is_heard(copy_of_worked: Loop) -> None:
    loop = copy_of_worked
    with loop.db.write() as conn:  # quality assurance broke off when the gold was written
        conn.execute(queue_tables.rounds.update().values(state="adjudicating"))
    judge = loop.people["rex"].id
    assert queue.undo(loop.db, judge, number=1) is not None
    (again,) = queue.disputes(loop.db, judge, 1)
    value = next(label for label in loop.project.label_schema.names if label != loop.truth[again.record_id])
    loop.truth[again.record_id] = value  # the other label, this time

    loop.adjudicate(1)
    settle(
        loop.project,
        loop.folder,
        loop.db,
        1,
        Table(loop.folder.round(1).annotations, tables.annotations(TASK)).read(),
    )

    gold = Table(loop.folder.round(1).gold, tables.gold(TASK)).read()
    assert gold.filter(record_id=again.record_id)["value"].to_list() == [value]
    standing = {row["annotation_id"] for row in decisions_of_round(loop.db, 1)}
    assert {made for row in gold["annotation_ids"].to_list() for made in row} <= standing
    assert set(load_findings(loop.project, loop.folder, 1)["settled_by"].drop_nulls()) <= standing
