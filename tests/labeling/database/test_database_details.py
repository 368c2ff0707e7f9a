"""What belongs to a decision beside its value: batch, co-pilot, rubric; stored with it, and in its audit entry."""

import json
from typing import Any

import pytest
from clinic import Clinic, Clock
from sqlalchemy import text

from labeling.database import batches, chain, copilot, queue, tables
from labeling.database.accounts import Account
from schemas.errors import QueueError
from schemas.review import Purpose, Seen

RUBRIC = ("faithfulness", "usefulness")


def scored(clinic: Clinic, who: Account, held: queue.Assignment, **more: Any) -> queue.DecisionOut:
    return queue.decide(
        clinic.db, who.id, clinic.decision(held, **more), check_value=clinic.check_value, rubric=RUBRIC
    )


def test_a_rubric_is_stored_with_the_decision_and_comes_back_by_undo(clinic: Clinic) -> None:
    ana = clinic.person("Ana")
    clinic.round(1)
    held = queue.claim(clinic.db, ana.id)
    assert held is not None
    scored(clinic, ana, held, scores={"usefulness": 2, "faithfulness": 5})
    (row,) = queue.decisions_of_round(clinic.db, 1)
    assert row["details"] == '{"rubric":{"faithfulness":5,"usefulness":2}}'
    undone = queue.undo(clinic.db, ana.id)
    assert undone is not None and undone.assignment is not None and undone.assignment.previous is not None
    assert undone.assignment.previous["scores"] == {"faithfulness": 5, "usefulness": 2}
    assert chain.verify_chain(clinic.db) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"scores": {"beauty": 3}},
        {"scores": {"usefulness": 3}, "action": "reject", "value": None, "comment": "Broken."},
        {"copilot": True},
    ],
)
def test_details_that_do_not_fit_are_refused_and_nothing_is_saved(
    clinic: Clinic, wrong: dict[str, Any]
) -> None:
    ana = clinic.person("Ana")
    clinic.round(1)
    held = queue.claim(clinic.db, ana.id)
    assert held is not None
    with pytest.raises(QueueError, match="Nothing was saved"):
        scored(clinic, ana, held, **wrong)
    assert queue.decisions_of_round(clinic.db, 1) == []


def test_details_that_are_changed_or_put_in_later_are_found(sqlite_clinic: Clinic) -> None:
    ana = sqlite_clinic.person("Ana")
    sqlite_clinic.round(2)
    for scores in ({"usefulness": 2}, {}):
        held = queue.claim(sqlite_clinic.db, ana.id)
        assert held is not None
        scored(sqlite_clinic, ana, held, scores=scores)
    for number, told in ((1, "NULL"), (1, "'{}'"), (2, "'{\"rubric\":{}}'")):
        with sqlite_clinic.db.write() as conn:
            conn.execute(text("DROP TRIGGER IF EXISTS decisions_no_update"))
            kept = conn.execute(text(f"SELECT details_json FROM decisions WHERE id = {number}")).scalar()
            conn.execute(text(f"UPDATE decisions SET details_json = {told} WHERE id = {number}"))
        assert any("was changed" in problem for problem in chain.verify_chain(sqlite_clinic.db))
        with sqlite_clinic.db.write() as conn:
            conn.execute(
                text(f"UPDATE decisions SET details_json = :kept WHERE id = {number}"), {"kept": kept}
            )
    assert chain.verify_chain(sqlite_clinic.db) == []


def test_the_first_suggestion_of_the_co_pilot_counts_for_a_person(clinic: Clinic) -> None:
    ana, bob = clinic.person("Ana"), clinic.person("Bob")
    clinic.round(1, suggestion=None, overlap=2)
    held = queue.claim(clinic.db, ana.id)
    assert held is not None and copilot.wants_help(held)
    first = {"value": "Refill", "made": {"by": "copilot"}}
    assert copilot.keep(clinic.db, held.item_id, ana.id, first) == first
    assert copilot.keep(clinic.db, held.item_id, ana.id, {"value": "Billing", "made": {}}) == first
    assert copilot.shown_before(clinic.db, held.item_id, bob.id) is None
    out = clinic.send(ana, held, "Refill", "accept", copilot=True)
    assert out.action.value == "accept"
    (row,) = queue.decisions_of_round(clinic.db, 1)
    assert (row["suggestion_value"], json.loads(row["details"])) == ("Refill", {"copilot": {"by": "copilot"}})


def test_recent_answers_are_those_of_the_last_hour_that_stand(clinic: Clinic, clock: Clock) -> None:
    ana, bob = clinic.person("Ana"), clinic.person("Bob")
    clinic.round(5)
    clinic.decide(ana, "Refill")
    clock.forward(minutes=50)
    clinic.decide(bob, "Billing")
    clinic.decide(bob, "Results")
    queue.undo(clinic.db, bob.id)
    clock.forward(minutes=15)
    told = [(one.record_id, one.label, who) for one, who in copilot.recent_answers(clinic.db, 1)]
    assert told == [("r1", "Billing", bob.id)]


def test_a_batch_is_what_is_sure_selected_and_free(clinic: Clinic) -> None:
    ana, bob = clinic.person("Ana"), clinic.person("Bob")
    clinic.round(3)
    clinic.round(2, purpose=Purpose.CONTROL, prefix="c")
    clinic.round(2, purpose=Purpose.AUDIT, seen=Seen.BLIND, prefix="a")
    (group,) = batches.groups(clinic.db, ana.id, 0.7)
    assert (group.labels, group.records, group.lowest) == (("Refill",), 3, 0.7)
    assert group.key == tables.joined_labels("Refill")
    assert batches.groups(clinic.db, ana.id, 0.71) == []
    first = batches.take(clinic.db, ana.id, group.key, least=0.7, count=2)
    assert [one.record_id for one in first] == ["r0", "r1"]
    assert [one.record_id for one in batches.take(clinic.db, bob.id, group.key, least=0.7, count=9)] == ["r2"]
    again = batches.take(clinic.db, ana.id, group.key, least=0.7, count=9, without=[first[0].assignment_id])
    assert [one.record_id for one in again] == ["r1"]
