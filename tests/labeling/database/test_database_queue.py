"""Handing out, taking in, taking back: what one person and two people at once may expect."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from clinic import Clinic, Clock
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import func, select

from labeling.database import accounts, chain, queue, rounds, tables
from labeling.database.connection import Database, open_database
from labeling.paths import ProjectFolder
from schemas.errors import Forbidden, LabelingError, QueueError
from schemas.review import Action, Purpose, QueueItem, Role, RoundState, Seen, SignOff
from schemas.tables import annotations
from schemas.values import TaskType


def test_the_most_urgent_record_comes_first_with_text_and_suggestion(clinic: Clinic) -> None:
    ana = clinic.person("Ana")
    clinic.round(3)
    held = queue.claim(clinic.db, ana.id)
    assert held is not None
    assert (held.record_id, held.text, held.suggestion) == (
        "r0",
        "Text of r0",
        {"value": "Refill", "confidence": 0.7},
    )
    assert (held.round, held.version, held.previous, held.flagged) == (1, 0, None, False)


def test_the_same_unexpired_record_is_given_back(clinic: Clinic, clock: Clock) -> None:
    ana = clinic.person("Ana")
    clinic.round(3)
    first = queue.claim(clinic.db, ana.id)
    clock.forward(seconds=800)
    again = queue.claim(clinic.db, ana.id)
    assert first is not None and again is not None
    assert again.assignment_id == first.assignment_id
    assert again.expires_at > first.expires_at


def test_a_blind_record_comes_without_a_suggestion(clinic: Clinic) -> None:
    ana = clinic.person("Ana")
    clinic.round(1, seen=Seen.BLIND)
    held = queue.claim(clinic.db, ana.id)
    assert held is not None
    assert (held.seen, held.suggestion) == (Seen.BLIND, None)


def test_two_people_get_different_records_and_an_overlap_record_goes_to_both(clinic: Clinic) -> None:
    ana, bob, cem = clinic.person("Ana"), clinic.person("Bob"), clinic.person("Cem")
    clinic.round(1, overlap=2, purpose=Purpose.OVERLAP, prefix="o")
    clinic.round(2)
    got = [queue.claim(clinic.db, person.id) for person in (ana, bob, cem)]
    assert [held.record_id for held in got if held] == ["o0", "o0", "r0"]


def test_nobody_decides_the_same_record_twice(clinic: Clinic) -> None:
    ana = clinic.person("Ana")
    clinic.round(1, overlap=2)
    clinic.decide(ana)
    assert queue.claim(clinic.db, ana.id) is None


def test_a_record_whose_reservation_ran_out_goes_to_somebody_else(clinic: Clinic, clock: Clock) -> None:
    ana, bob = clinic.person("Ana"), clinic.person("Bob")
    clinic.round(1)
    assert queue.claim(clinic.db, ana.id, lease_s=60) is not None
    assert queue.claim(clinic.db, bob.id) is None
    clock.forward(seconds=61)
    held = queue.claim(clinic.db, bob.id)
    assert held is not None and held.record_id == "r0"
    assert queue.claim(clinic.db, ana.id) is None


def test_a_late_answer_counts_when_nobody_else_took_the_record(clinic: Clinic, clock: Clock) -> None:
    ana = clinic.person("Ana")
    clinic.round(1)
    held = queue.claim(clinic.db, ana.id, lease_s=60)
    clock.forward(hours=5)
    assert held is not None
    clinic.send(ana, held)
    assert rounds.missing(clinic.db, 1) == []


def test_a_late_answer_to_a_record_that_somebody_else_took_is_refused_without_telling_theirs(
    clinic: Clinic, clock: Clock
) -> None:
    ana, bob = clinic.person("Ana"), clinic.person("Bob")
    clinic.round(1)
    held = queue.claim(clinic.db, ana.id, lease_s=60)
    assert held is not None
    clock.forward(seconds=61)
    clinic.decide(bob, "Billing")
    with pytest.raises(queue.DecisionConflict) as refused:
        clinic.send(ana, held, "Results")
    assert refused.value.sent["value"] == "Results"
    assert dict(refused.value.stored) == {"version": 0, "by": "someone else"}
    assert "Billing" not in str(refused.value)
    assert [row["value"] for row in queue.decisions_of_round(clinic.db, 1)] == ["Billing"]


def test_prefetching_reserves_the_next_records_in_order(clinic: Clinic) -> None:
    ana, bob = clinic.person("Ana"), clinic.person("Bob")
    clinic.round(5)
    assert [held.record_id for held in queue.prefetch(clinic.db, ana.id, count=3)] == ["r0", "r1", "r2"]
    assert [held.record_id for held in queue.prefetch(clinic.db, bob.id, count=3)] == ["r3", "r4"]
    assert [held.record_id for held in queue.prefetch(clinic.db, ana.id, count=5)] == ["r0", "r1", "r2"]


def test_a_repeated_prefetch_writes_nothing(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    ana = clinic.person("Ana")
    clinic.round(5)
    first = queue.prefetch(clinic.db, ana.id, count=3)
    monkeypatch.setattr(clinic.db, "write", None)
    assert queue.prefetch(clinic.db, ana.id, count=3) == first


def test_logging_out_gives_reserved_records_back(clinic: Clinic) -> None:
    ana, bob = clinic.person("Ana"), clinic.person("Bob")
    clinic.round(2)
    queue.prefetch(clinic.db, ana.id, count=2)
    assert queue.release(clinic.db, ana.id) == 2
    assert len(queue.prefetch(clinic.db, bob.id, count=5)) == 2


def test_the_earliest_open_round_is_served_first_and_a_named_one_alone(clinic: Clinic) -> None:
    ana = clinic.person("Ana")
    clinic.round(1, number=1)
    clinic.round(1, number=2, prefix="s")
    assert [held.record_id for held in queue.prefetch(clinic.db, ana.id, count=3)] == ["r0", "s0"]
    assert [held.record_id for held in queue.prefetch(clinic.db, ana.id, 2, count=3)] == ["s0"]
    assert queue.claim(clinic.db, ana.id, 3) is None


def test_a_decision_is_stored_with_everything_the_annotations_table_wants(
    clinic: Clinic, clock: Clock
) -> None:
    ana = clinic.person("Ana")
    clinic.round(1, seen=Seen.ASSISTED, purpose=Purpose.OVERLAP)
    out = clinic.decide(ana, "Billing", seconds=7, comment="Asks for an invoice.", not_sure=True)
    (row,) = queue.decisions_of_round(clinic.db, 1)
    assert row == {
        "annotation_id": out.annotation_id,
        "record_id": "r0",
        "annotator_id": ana.id,
        "value": "Billing",
        "action": "correct",
        "seen": "assisted",
        "purpose": "overlap",
        "suggestion_value": "Refill",
        "seconds": 7.0,
        "decided_at": clock(),
        "comment": "Asks for an invoice.",
        "not_sure": True,
        "audit_seq": out.audit_seq,
        "rehearsal": False,
        "details": None,
    }
    table = pa.Table.from_pylist([row], schema=annotations(TaskType.CLASSIFICATION))
    assert table.column_names == list(row)


@pytest.mark.parametrize(
    "value",
    [
        ["a", "b"],
        [],
        [{"start": 0, "end": 2, "label": "Drug", "quote": "👩‍⚕️"}],
        {"instruction": "Sum up.", "input": "", "output": "שלום"},
    ],
)
def test_values_of_the_other_task_types_come_back_as_they_went_in(clinic: Clinic, value: Any) -> None:
    ana = clinic.person("Ana")
    clinic.round(1, suggestion=None)
    held = queue.claim(clinic.db, ana.id)
    assert held is not None
    queue.decide(clinic.db, ana.id, clinic.decision(held, value), check_value=lambda value, text: None)
    assert queue.decisions_of_round(clinic.db, 1)[0]["value"] == value


def test_an_empty_list_is_an_answer_and_none_is_not(clinic: Clinic) -> None:
    ana = clinic.person("Ana")
    clinic.round(1, suggestion=[])
    held = queue.claim(clinic.db, ana.id)
    assert held is not None
    out = queue.decide(clinic.db, ana.id, clinic.decision(held, []), check_value=lambda value, text: None)
    assert (out.action, out.value) == (Action.ACCEPT, [])


@pytest.mark.parametrize(
    ("action", "value", "comment", "said"),
    [
        ("accept", "Billing", "", "not the suggested one"),
        ("accept", None, "", "no value"),
        ("correct", None, "", "no value"),
        ("correct", "Weather", "", "one of"),
        ("correct", ["Refill"], "", "one of"),
        ("reject", None, "", "no reason"),
        ("reject", None, "  ", "no reason"),
        ("reject", "Refill", "because", "a value"),
        ("skip", None, "", "no reason"),
        ("skip", "Refill", "because", "a value"),
        ("correct", "Billing", "a\x00b", "cannot be stored"),
        ("correct", "a\x00b", "", "cannot be stored"),
        ("correct", float("inf"), "", "not a number"),
    ],
)
def test_action_and_value_that_do_not_fit_are_refused_and_nothing_is_stored(
    clinic: Clinic, action: str, value: Any, comment: str, said: str
) -> None:
    ana = clinic.person("Ana")
    clinic.round(1)
    held = queue.claim(clinic.db, ana.id)
    assert held is not None
    before = chain.head(clinic.db)
    with pytest.raises(LabelingError, match=said):
        clinic.send(ana, held, value, action, comment=comment)
    assert chain.head(clinic.db) == before
    clinic.send(ana, held)


def test_a_suggestion_nobody_saw_cannot_be_accepted(clinic: Clinic) -> None:
    ana = clinic.person("Ana")
    clinic.round(1, seen=Seen.BLIND)
    with pytest.raises(QueueError, match="no suggestion was shown"):
        clinic.decide(ana, "Refill", "accept")


def test_a_correction_to_the_suggested_value_is_stored_as_the_accept_that_it_is(clinic: Clinic) -> None:
    ana = clinic.person("Ana")
    clinic.round(1)
    held = queue.claim(clinic.db, ana.id)
    assert held is not None
    sent = clinic.decision(held, "Refill", "correct")
    out = queue.decide(clinic.db, ana.id, sent, check_value=clinic.check_value)
    again = queue.decide(clinic.db, ana.id, sent, check_value=clinic.check_value)
    assert out.action is again.action is Action.ACCEPT and again.repeated


def test_a_check_that_raises_a_value_error_is_told_as_a_refusal(clinic: Clinic) -> None:
    ana = clinic.person("Ana")
    clinic.round(1)
    held = queue.claim(clinic.db, ana.id)
    assert held is not None

    def refuse(value: Any, text: str) -> None:
        raise ValueError(f"{value!r} is not in the schema")

    with pytest.raises(QueueError, match="'Billing' is not in the schema"):
        queue.decide(clinic.db, ana.id, clinic.decision(held, "Billing"), check_value=refuse)


def test_sending_again_returns_the_first_answer_and_stores_nothing(clinic: Clinic) -> None:
    ana = clinic.person("Ana")
    clinic.round(1)
    held = queue.claim(clinic.db, ana.id)
    assert held is not None
    sent = clinic.decision(held)
    first = queue.decide(clinic.db, ana.id, sent, check_value=clinic.check_value)
    before = chain.head(clinic.db)
    again = queue.decide(clinic.db, ana.id, sent, check_value=clinic.check_value)
    assert again.repeated and not first.repeated
    assert (again.annotation_id, again.version) == (first.annotation_id, first.version)
    assert chain.head(clinic.db) == before


def test_sending_again_after_the_round_was_signed_still_returns_the_first_answer(clinic: Clinic) -> None:
    ana, _ = clinic.person("Ana"), clinic.person("Lea", Role.MANAGER)
    clinic.round(1)
    held = queue.claim(clinic.db, ana.id)
    assert held is not None
    sent = clinic.decision(held)
    first = queue.decide(clinic.db, ana.id, sent, check_value=clinic.check_value)
    rounds.sign(clinic.db, 1, SignOff(verdict="approve", signed_by="Lea"), {})
    again = queue.decide(clinic.db, ana.id, sent, check_value=clinic.check_value)
    assert again.annotation_id == first.annotation_id


def test_a_key_used_for_another_decision_is_refused_rather_than_reported_as_saved(clinic: Clinic) -> None:
    ana = clinic.person("Ana")
    clinic.round(2)
    clinic.decide(ana, "Refill", idempotency_key="same-key-1")
    with pytest.raises(QueueError, match="already used for another decision"):
        clinic.decide(ana, "Refill", idempotency_key="same-key-1")


def test_two_people_may_use_the_same_key(clinic: Clinic) -> None:
    ana, bob = clinic.person("Ana"), clinic.person("Bob")
    clinic.round(2)
    clinic.decide(ana, idempotency_key="same-key-1")
    clinic.decide(bob, idempotency_key="same-key-1")
    assert len(queue.decisions_of_round(clinic.db, 1)) == 2


def test_a_second_window_learns_what_the_first_one_saved(clinic: Clinic) -> None:
    ana = clinic.person("Ana")
    clinic.round(1)
    held = queue.claim(clinic.db, ana.id)
    assert held is not None
    clinic.send(ana, held, "Billing", comment="from the left window")
    with pytest.raises(queue.DecisionConflict) as refused:
        clinic.send(ana, held, "Results")
    stored = refused.value.stored
    assert (stored["value"], stored["comment"], stored["version"]) == ("Billing", "from the left window", 1)
    assert (refused.value.sent["value"], refused.value.sent["version"]) == ("Results", 0)


def test_two_annotators_of_one_record_do_not_conflict(clinic: Clinic) -> None:
    ana, bob = clinic.person("Ana"), clinic.person("Bob")
    clinic.round(1, overlap=2)
    for_ana, for_bob = queue.claim(clinic.db, ana.id), queue.claim(clinic.db, bob.id)
    assert for_ana is not None and for_bob is not None
    clinic.send(ana, for_ana, "Refill")
    clinic.send(bob, for_bob, "Billing")
    assert rounds.missing(clinic.db, 1) == []


def test_somebody_else_s_assignment_cannot_be_decided_commented_or_flagged(clinic: Clinic) -> None:
    ana, bob = clinic.person("Ana"), clinic.person("Bob")
    clinic.round(1)
    held = queue.claim(clinic.db, ana.id)
    assert held is not None
    with pytest.raises(Forbidden):
        clinic.send(bob, held)
    with pytest.raises(Forbidden):
        queue.comment(clinic.db, bob.id, held.assignment_id, "hello")
    with pytest.raises(Forbidden):
        queue.flag(clinic.db, bob.id, held.assignment_id, raised=True)
    with pytest.raises(Forbidden):
        queue.remarks(clinic.db, bob.id, held.assignment_id)


@pytest.mark.parametrize("role", [Role.ADMIN, Role.AUDITOR])
def test_who_may_not_label_gets_no_record(clinic: Clinic, role: Role) -> None:
    other = clinic.person("Eve", role)
    clinic.round(1)
    with pytest.raises(Forbidden):
        queue.claim(clinic.db, other.id)
    with pytest.raises(Forbidden):
        queue.undo(clinic.db, other.id)
    with pytest.raises(Forbidden):
        queue.claim(clinic.db, "a-ffffff")


def test_skipping_leaves_the_record_to_somebody_else(clinic: Clinic) -> None:
    ana, bob = clinic.person("Ana"), clinic.person("Bob")
    clinic.round(1)
    clinic.decide(ana, None, "skip", comment="not my field")
    assert queue.claim(clinic.db, ana.id) is None
    clinic.decide(bob)
    assert [row["action"] for row in queue.decisions_of_round(clinic.db, 1)] == ["skip", "accept"]


def test_rejecting_settles_the_record_without_a_value(clinic: Clinic) -> None:
    ana = clinic.person("Ana")
    clinic.round(1)
    clinic.decide(ana, None, "reject", comment="not a message at all")
    assert rounds.missing(clinic.db, 1) == []
    assert queue.decisions_of_round(clinic.db, 1)[0]["value"] is None


def test_undo_gives_the_record_back_and_keeps_the_row(clinic: Clinic) -> None:
    ana = clinic.person("Ana")
    clinic.round(2)
    out = clinic.decide(ana, "Billing", comment="hm")
    undone = queue.undo(clinic.db, ana.id)
    assert undone is not None and undone.assignment is not None
    assert (undone.annotation_id, undone.assignment.record_id) == (out.annotation_id, "r0")
    assert undone.assignment.previous == {
        "action": "correct",
        "value": "Billing",
        "comment": "hm",
        "not_sure": False,
    }
    assert queue.decisions_of_round(clinic.db, 1) == []
    with clinic.db.read() as conn:
        kinds = conn.execute(select(tables.decisions.c.kind).order_by(tables.decisions.c.id)).scalars().all()
    assert kinds == ["decision", "undo"]
    held = queue.claim(clinic.db, ana.id)
    assert held == undone.assignment
    clinic.send(ana, held, "Results")
    assert [row["value"] for row in queue.decisions_of_round(clinic.db, 1)] == ["Results"]


def test_undo_goes_back_many_steps(clinic: Clinic) -> None:
    ana = clinic.person("Ana")
    clinic.round(3)
    for value in ("Refill", "Billing", "Results"):
        clinic.decide(ana, value)
    taken_back = [queue.undo(clinic.db, ana.id) for _ in range(4)]
    assert [step.record_id if step else None for step in taken_back] == ["r2", "r1", "r0", None]
    assert rounds.progress(clinic.db, 1).decisions == 0


def test_undo_of_a_named_decision_again_says_the_same(clinic: Clinic) -> None:
    ana = clinic.person("Ana")
    clinic.round(2)
    first, _ = clinic.decide(ana), clinic.decide(ana)
    one = queue.undo(clinic.db, ana.id, annotation_id=first.annotation_id)
    two = queue.undo(clinic.db, ana.id, annotation_id=first.annotation_id)
    assert one == two
    assert rounds.progress(clinic.db, 1).decisions == 1


def test_undo_with_the_same_key_goes_back_only_once(clinic: Clinic) -> None:
    ana = clinic.person("Ana")
    clinic.round(2)
    clinic.decide(ana), clinic.decide(ana)
    one = queue.undo(clinic.db, ana.id, idempotency_key="undo-key-1")
    two = queue.undo(clinic.db, ana.id, idempotency_key="undo-key-1")
    assert one == two
    assert rounds.progress(clinic.db, 1).decisions == 1


def test_somebody_else_s_decision_cannot_be_undone(clinic: Clinic) -> None:
    ana, bob = clinic.person("Ana"), clinic.person("Bob")
    clinic.round(1)
    out = clinic.decide(ana)
    with pytest.raises(Forbidden):
        queue.undo(clinic.db, bob.id, annotation_id=out.annotation_id)
    assert queue.undo(clinic.db, bob.id) is None


def test_undoing_a_skip_after_somebody_else_decided_does_not_exceed_the_overlap(clinic: Clinic) -> None:
    ana, bob = clinic.person("Ana"), clinic.person("Bob")
    clinic.round(1)
    clinic.decide(ana, None, "skip", comment="not my field")
    clinic.decide(bob)
    undone = queue.undo(clinic.db, ana.id)
    assert undone is not None and undone.assignment is None
    assert queue.claim(clinic.db, ana.id) is None
    assert [row["action"] for row in queue.decisions_of_round(clinic.db, 1)] == ["accept"]


def test_nothing_can_be_undone_after_the_round_was_signed(clinic: Clinic) -> None:
    ana, _ = clinic.person("Ana"), clinic.person("Lea", Role.MANAGER)
    clinic.round(1)
    out = clinic.decide(ana)
    rounds.sign(clinic.db, 1, SignOff(verdict="approve", signed_by="Lea"), {})
    assert queue.undo(clinic.db, ana.id) is None
    with pytest.raises(QueueError, match="state signed"):
        queue.undo(clinic.db, ana.id, annotation_id=out.annotation_id)


def test_history_shows_own_decisions_newest_first_with_those_taken_back(clinic: Clinic) -> None:
    ana, bob = clinic.person("Ana"), clinic.person("Bob")
    clinic.round(4)
    clinic.decide(ana, "Refill"), clinic.decide(bob, "Refill"), clinic.decide(ana, "Billing")
    queue.undo(clinic.db, ana.id)
    told = queue.history(clinic.db, ana.id)
    assert [(row.record_id, row.value, row.undone) for row in told] == [
        ("r2", "Billing", True),
        ("r0", "Refill", False),
    ]
    assert [row.record_id for row in queue.history(clinic.db, ana.id, 1, limit=1, offset=1)] == ["r0"]


def test_comments_are_seen_by_their_writer_and_the_adjudicator_only(clinic: Clinic) -> None:
    ana, bob = clinic.person("Ana"), clinic.person("Bob")
    clinic.round(1, overlap=2)
    for_ana, for_bob = queue.claim(clinic.db, ana.id), queue.claim(clinic.db, bob.id)
    assert for_ana is not None and for_bob is not None
    queue.comment(clinic.db, ana.id, for_ana.assignment_id, " Two requests in one. ")
    assert [remark.text for remark in queue.remarks(clinic.db, ana.id, for_ana.assignment_id)] == [
        "Two requests in one."
    ]
    assert queue.remarks(clinic.db, bob.id, for_bob.assignment_id) == []
    for text in ("", "  ", "x" * 4001, "a\x00b"):
        with pytest.raises(QueueError):
            queue.comment(clinic.db, ana.id, for_ana.assignment_id, text)


def test_a_flag_is_raised_once_and_taken_down(clinic: Clinic) -> None:
    ana = clinic.person("Ana")
    clinic.round(1)
    held = queue.claim(clinic.db, ana.id)
    assert held is not None
    for _ in range(2):
        queue.flag(clinic.db, ana.id, held.assignment_id, raised=True)
    again = queue.claim(clinic.db, ana.id)
    assert again is not None and again.flagged
    queue.flag(clinic.db, ana.id, held.assignment_id, raised=False)
    assert [entry["action"] for entry in chain.entries(clinic.db)][-2:] == ["flag.set", "flag.set"]
    assert rounds.progress(clinic.db, 1).flagged == 0


@pytest.fixture
def dispute(clinic: Clinic) -> queue.Dispute:
    """Ana and Bob disagree about r0; the round is signed and the record sent to adjudication."""
    ana, bob, rea = clinic.person("Ana"), clinic.person("Bob"), clinic.person("Rea", Role.REVIEWER)
    clinic.person("Lea", Role.MANAGER)
    clinic.round(1, overlap=2)
    clinic.decide(ana, "Refill", comment="wants more pills")
    clinic.decide(bob, "Billing", not_sure=True)
    rounds.sign(clinic.db, 1, SignOff(verdict="approve", signed_by="lea"), {})
    rounds.start_adjudication(clinic.db, 1, {"r0": "Two annotators disagree."})
    (found,) = queue.disputes(clinic.db, rea.id, 1)
    return found


def adjudicate(
    clinic: Clinic, name: str, dispute: queue.Dispute, value: Any, **more: Any
) -> queue.DecisionOut:
    person = accounts.account_by_name(clinic.db, name)
    assert person is not None
    return queue.adjudicate(
        clinic.db,
        person.id,
        dispute.round,
        dispute.record_id,
        value=value,
        **{
            "expected_version": dispute.version,
            "idempotency_key": clinic.key(),
            "check_value": clinic.check_value,
            **more,
        },
    )


def test_a_dispute_shows_every_answer_and_no_name(clinic: Clinic, dispute: queue.Dispute) -> None:
    assert dispute.reason == "Two annotators disagree."
    assert sorted((card.value, card.comment, card.not_sure) for card in dispute.cards) == [
        ("Billing", "", True),
        ("Refill", "wants more pills", False),
    ]
    for account in accounts.people(clinic.db):
        assert account.id not in repr(dispute)


def test_an_annotator_does_not_see_disputes_or_settle_them(clinic: Clinic, dispute: queue.Dispute) -> None:
    ana = accounts.account_by_name(clinic.db, "ana")
    assert ana is not None
    with pytest.raises(Forbidden):
        queue.disputes(clinic.db, ana.id)
    with pytest.raises(Forbidden):
        adjudicate(clinic, "ana", dispute, "Refill")


def test_settling_a_dispute_is_a_decision_with_purpose_recheck(
    clinic: Clinic, dispute: queue.Dispute
) -> None:
    out = adjudicate(clinic, "rea", dispute, "Results", comment="It asks for a report.")
    rows = queue.decisions_of_round(clinic.db, 1)
    assert [(row["purpose"], row["value"], row["action"]) for row in rows][2:] == [
        ("recheck", "Results", "correct")
    ]
    assert rows[2]["annotation_id"] == out.annotation_id
    rea = accounts.account_by_name(clinic.db, "rea")
    assert rea is not None
    assert queue.disputes(clinic.db, rea.id) == []
    (settled,) = queue.disputes(clinic.db, rea.id, only_open=False)
    assert settled.settled is not None and settled.settled["value"] == "Results"


def test_a_dispute_can_be_settled_as_not_labellable_with_a_reason(
    clinic: Clinic, dispute: queue.Dispute
) -> None:
    with pytest.raises(QueueError, match="no reason"):
        adjudicate(clinic, "rea", dispute, None)
    assert adjudicate(clinic, "rea", dispute, None, comment="two messages in one").action is Action.REJECT


def test_a_second_adjudicator_learns_both_answers(clinic: Clinic, dispute: queue.Dispute) -> None:
    adjudicate(clinic, "rea", dispute, "Results")
    with pytest.raises(queue.DecisionConflict) as refused:
        adjudicate(clinic, "lea", dispute, "Billing")
    assert (refused.value.sent["value"], refused.value.stored["value"]) == ("Billing", "Results")


def test_settling_again_with_the_same_key_returns_the_first_answer(
    clinic: Clinic, dispute: queue.Dispute
) -> None:
    first = adjudicate(clinic, "rea", dispute, "Results", idempotency_key="the-same-key")
    again = adjudicate(clinic, "rea", dispute, "Results", idempotency_key="the-same-key")
    assert again.repeated and again.annotation_id == first.annotation_id
    with pytest.raises(QueueError, match="already used"):
        adjudicate(clinic, "rea", dispute, "Billing", idempotency_key="the-same-key")


def test_an_adjudication_can_be_undone_and_settled_anew(clinic: Clinic, dispute: queue.Dispute) -> None:
    adjudicate(clinic, "rea", dispute, "Results")
    rea = accounts.account_by_name(clinic.db, "rea")
    assert rea is not None
    assert queue.undo(clinic.db, rea.id, stage=queue.REVIEW) is None, "not from the page of records"
    assert queue.undo(clinic.db, rea.id, stage=queue.ADJUDICATION) is not None
    (again,) = queue.disputes(clinic.db, rea.id)
    assert again.version > dispute.version
    adjudicate(clinic, "lea", again, "Billing")
    assert rounds.missing(clinic.db, 1) == []
    assert chain.verify_chain(clinic.db) == []


def test_an_unknown_dispute_or_a_round_that_is_not_adjudicated_is_refused(
    clinic: Clinic, dispute: queue.Dispute
) -> None:
    import dataclasses

    with pytest.raises(QueueError, match="no dispute"):
        adjudicate(clinic, "rea", dataclasses.replace(dispute, record_id="r9"), "Refill")
    adjudicate(clinic, "rea", dispute, "Refill")
    rounds.close_round(clinic.db, 1)
    with pytest.raises(QueueError, match="state closed"):
        adjudicate(clinic, "rea", dispute, "Refill")


def test_a_conflict_survives_being_sent_between_processes() -> None:
    import pickle

    conflict = queue.DecisionConflict("r", found="a", expected="b", next_step="c")
    sent = pickle.dumps(conflict)
    assert str(pickle.loads(sent)) == str(conflict)  # noqa: S301 - what we have just written


class Desk(RuleBasedStateMachine):
    """Three people do whatever they like, in any order; the counts must always agree with the rows."""

    template: bytes

    @initialize()
    def start(self) -> None:
        import tempfile
        from pathlib import Path

        self.folder = tempfile.TemporaryDirectory()
        self.clock = Clock()
        project = ProjectFolder(Path(self.folder.name))
        project.database.write_bytes(self.template)
        self.db = open_database(project, clock=self.clock)
        self.clinic = Clinic(self.db)
        self.people = [self.clinic.person(name) for name in ("Ana", "Bob", "Cem")]
        self.clinic.round(4, overlap=2)
        self.clinic.round(3, prefix="s")
        self.decided: dict[tuple[str, str], str] = {}

    @rule(who=st.integers(0, 2), action=st.sampled_from(["accept", "Billing", "reject", "skip"]))
    def decide(self, who: int, action: str) -> None:
        person = self.people[who]
        held = queue.claim(self.db, person.id)
        if held is None:
            return
        if action in ("reject", "skip"):
            self.clinic.send(person, held, None, action, comment="because")
        else:
            self.clinic.send(person, held, "Refill" if action == "accept" else action)
        self.decided[person.id, held.record_id] = "skip" if action == "skip" else "said"

    @rule(who=st.integers(0, 2))
    def undo(self, who: int) -> None:
        undone = queue.undo(self.db, self.people[who].id)
        if undone is not None:
            del self.decided[self.people[who].id, undone.record_id]

    @rule(who=st.integers(0, 2), count=st.integers(1, 4))
    def prefetch(self, who: int, count: int) -> None:
        queue.prefetch(self.db, self.people[who].id, count=count)

    @rule(minutes=st.sampled_from([1, 16]))
    def wait(self, minutes: int) -> None:
        self.clock.forward(minutes=minutes)

    @rule(who=st.integers(0, 2))
    def log_out(self, who: int) -> None:
        queue.release(self.db, self.people[who].id)

    @invariant()
    def counts_agree_with_rows(self) -> None:
        if not hasattr(self, "db"):
            return
        rows = queue.decisions_of_round(self.db, 1)
        standing = {
            (row["annotator_id"], row["record_id"]): "skip" if row["action"] == "skip" else "said"
            for row in rows
        }
        assert standing == self.decided
        with self.db.read() as conn:
            for item in conn.execute(select(tables.queue_items)).mappings():
                said = sum(
                    1
                    for (_, record), what in standing.items()
                    if record == item["record_id"] and what == "said"
                )
                assert (item["decided"], item["done"]) == (said, said >= item["overlap"])
                held = conn.execute(
                    select(func.count()).where(
                        tables.assignments.c.item_id == item["id"],
                        tables.assignments.c.state == "leased",
                        tables.assignments.c.expires_at > self.clock(),
                    )
                ).scalar_one()
                assert said + held <= item["overlap"]

    def teardown(self) -> None:
        if hasattr(self, "db"):
            assert chain.verify_chain(self.db) == []
            self.db.close()
            self.folder.cleanup()


def test_whatever_people_do_the_counts_agree_with_the_rows(_sqlite_template: Any) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    Desk.template = _sqlite_template.read_bytes()
    run_state_machine_as_test(
        Desk,
        settings=settings(
            max_examples=6,
            stateful_step_count=20,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_round_that_is_not_open_gives_nothing_out(
    clinic: Clinic, another_window: Callable[[], Database]
) -> None:
    ana, _ = clinic.person("Ana"), clinic.person("Lea", Role.MANAGER)
    clinic.round(1)
    clinic.decide(ana)
    rounds.sign(another_window(), 1, SignOff(verdict="approve", signed_by="Lea"), {})
    bob = clinic.person("Bob")
    assert queue.claim(clinic.db, bob.id) is None
    clinic.round(0, number=2, state=RoundState.SAMPLING)
    rounds.add_items(
        clinic.db,
        2,
        [QueueItem(record_id="x", purpose=Purpose.SAMPLE, seen=Seen.BLIND, priority=1.0)],
        {"x": ("Text", None)},
        "flow",
    )
    assert queue.claim(clinic.db, bob.id) is not None
