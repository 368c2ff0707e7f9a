"""Rounds move only forward along their arrows, and nobody signs what is not finished."""

import dataclasses
from typing import Any

import pytest
from clinic import Clinic
from sqlalchemy import select

from labeling.database import accounts, chain, queue, rounds, tables
from labeling.database.connection import Database
from schemas.errors import GateRefused, QueueError
from schemas.review import Purpose, QueueItem, Role, RoundState, Seen, SignOff, Verdict

APPROVE = SignOff(verdict="approve", signed_by="Lea", note="Looked at twenty.")
REJECT = SignOff(verdict="reject", signed_by="lea", note="Refill and Results are mixed up.")


def finish(clinic: Clinic, *people: accounts.Account) -> None:
    for person in people:
        while (held := queue.claim(clinic.db, person.id)) is not None:
            clinic.send(person, held)


def test_opening_a_round_twice_changes_nothing(clinic: Clinic) -> None:
    clinic.round(0)
    before = chain.head(clinic.db)
    clinic.round(0)
    assert chain.head(clinic.db) == before
    assert rounds.state_of(clinic.db, 1) is RoundState.OPEN
    assert rounds.state_of(clinic.db, 2) is None
    assert rounds.round_numbers(clinic.db) == [1]


def test_a_round_goes_from_sampling_to_open_and_not_back(clinic: Clinic) -> None:
    clinic.round(0, state=RoundState.SAMPLING)
    clinic.round(0, state=RoundState.OPEN)
    with pytest.raises(QueueError, match="found open"):
        clinic.round(0, state=RoundState.SAMPLING)
    with pytest.raises(QueueError, match="sampling or open"):
        clinic.round(0, number=2, state=RoundState.CLOSED)


def test_adding_the_same_items_again_adds_only_what_is_new(clinic: Clinic) -> None:
    clinic.round(3)
    items = [QueueItem(record_id=f"r{i}", purpose="audit", seen="blind", priority=9) for i in range(5)]
    content = {f"r{i}": (f"Text {i}", None) for i in range(5)}
    assert rounds.add_items(clinic.db, 1, items, content, "flow") == 2
    assert rounds.add_items(clinic.db, 1, items, content, "flow") == 0
    assert rounds.progress(clinic.db, 1).per_purpose[Purpose.SELECTED].items == 3
    assert rounds.progress(clinic.db, 1).per_purpose[Purpose.AUDIT].items == 2


def test_a_record_listed_twice_in_one_call_is_queued_once(clinic: Clinic) -> None:
    clinic.round(0)
    item = QueueItem(record_id="r1", purpose="audit", seen="blind", priority=9)
    assert rounds.add_items(clinic.db, 1, [item, item], {"r1": ("Text", None)}, "flow") == 1


def test_many_items_are_added_in_several_transactions(clinic: Clinic) -> None:
    clinic.round(4_500)
    assert rounds.progress(clinic.db, 1).items == 4_500
    added = [
        entry["payload"]["items"]
        for entry in chain.entries(clinic.db)
        if entry["action"] == "round.items_added"
    ]
    assert added == [2_000, 2_000, 500]


def test_a_blind_item_s_suggestion_is_not_stored_at_all(clinic: Clinic) -> None:
    clinic.round(2, seen=Seen.BLIND)
    with clinic.db.read() as conn:
        assert conn.execute(select(tables.queue_items.c.suggestion_json)).scalars().all() == [None, None]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "no text for 1 record"),
        ({"r1": ("a\x00b", None)}, "NUL"),
        ({"r1": ("a\ud800b", None)}, "surrogate"),
        ({"r1": ("text", {"value": "a\x00b"})}, "NUL"),
        ({"r1": ("text", {"confidence": 0.5})}, "without a value"),
    ],
)
def test_items_that_cannot_be_shown_are_refused_before_any_is_added(
    clinic: Clinic, content: Any, said: str
) -> None:
    clinic.round(0)
    items = [QueueItem(record_id=f"r{i}", purpose="audit", seen="blind", priority=9) for i in range(2)]
    with pytest.raises(QueueError, match=said):
        rounds.add_items(clinic.db, 1, items, {"r0": ("ok", None), **content}, "flow")
    assert rounds.progress(clinic.db, 1).items == 0


def test_a_signed_round_takes_no_items(clinic: Clinic) -> None:
    ana, _ = clinic.person("Ana"), clinic.person("Lea", Role.MANAGER)
    clinic.round(1)
    finish(clinic, ana)
    rounds.sign(clinic.db, 1, APPROVE, {})
    with pytest.raises(QueueError, match="found signed"):
        clinic_add(clinic)


def clinic_add(clinic: Clinic) -> int:
    item = QueueItem(record_id="late", purpose="audit", seen="blind", priority=9)
    return rounds.add_items(clinic.db, 1, [item], {"late": ("Text", None)}, "flow")


def test_progress_counts_items_decisions_people_and_purposes(clinic: Clinic) -> None:
    ana, bob = clinic.person("Ana"), clinic.person("Bob")
    clinic.round(3, overlap=2, purpose=Purpose.OVERLAP)
    clinic.round(1, purpose=Purpose.AUDIT, seen=Seen.BLIND, prefix="b")
    clinic.decide(ana, seconds=2)
    clinic.decide(ana, seconds=4)
    clinic.decide(bob, seconds=9)
    clinic.decide(bob, None, "skip", comment="no idea", seconds=100)
    held = queue.claim(clinic.db, ana.id)
    assert held is not None
    queue.flag(clinic.db, ana.id, held.assignment_id, raised=True)
    stands = rounds.progress(clinic.db, 1)
    assert (stands.items, stands.done, stands.open, stands.decisions, stands.skips) == (4, 2, 2, 3, 1)
    assert dataclasses.asdict(stands.per_purpose[Purpose.OVERLAP]) == {
        "items": 3,
        "done": 1,
        "wanted": 6,
        "decisions": 2,
    }
    assert stands.per_annotator == {ana.id: 2, bob.id: 1}
    assert stands.seconds_median == 6.5
    assert stands.flagged == 1
    assert stands.state is RoundState.OPEN and not stands.rehearsal


def test_progress_of_an_empty_round_is_zero_and_has_no_median(clinic: Clinic) -> None:
    clinic.round(0)
    stands = rounds.progress(clinic.db, 1)
    assert (stands.items, stands.done, stands.seconds_median) == (0, 0, None)
    with pytest.raises(QueueError, match="round 7"):
        rounds.progress(clinic.db, 7)


def test_missing_says_in_sentences_what_is_not_finished(clinic: Clinic) -> None:
    ana = clinic.person("Ana")
    clinic.round(3, overlap=2, purpose=Purpose.OVERLAP)
    clinic.round(2, purpose=Purpose.AUDIT, seen=Seen.BLIND, prefix="b")
    clinic.decide(ana)
    assert rounds.missing(clinic.db, 1) == [
        "2 of 2 records of the random slice that no loop sees are not finished (2 decisions missing).",
        "3 of 3 records that several annotators label are not finished (5 decisions missing).",
        "3 records ask for more annotators than the 1 there are: invite more, or ask for fewer "
        "(`countersign gate PROJECT approve --by NAME --overlap 1`).",
    ]
    clinic.person("Bob")
    assert len(rounds.missing(clinic.db, 1)) == 2


def test_missing_says_when_everybody_skipped_a_record(clinic: Clinic) -> None:
    ana, bob = clinic.person("Ana"), clinic.person("Bob")
    clinic.round(1)
    for person in (ana, bob):
        clinic.decide(person, None, "skip", comment="not my field")
    assert rounds.progress(clinic.db, 1).skipped_by_all == 1
    assert rounds.missing(clinic.db, 1)[1] == (
        "1 record was skipped and nobody is left: a reviewer has to undo a skip or another annotator be invited (r0)."
    )
    clinic.person("Cem")
    assert rounds.progress(clinic.db, 1).skipped_by_all == 0


def test_an_empty_queue_is_not_a_finished_round(clinic: Clinic) -> None:
    clinic.round(0)
    assert rounds.missing(clinic.db, 1) == ["Nothing has been put into the queue of round 1."]


def test_a_round_before_anybody_has_an_account_asks_for_the_first_one(clinic: Clinic) -> None:
    clinic.round(2)
    assert rounds.missing(clinic.db, 1)[-1].startswith("Nobody has an account to label with yet")
    clinic.person("Ana")
    assert len(rounds.missing(clinic.db, 1)) == 1


def test_reducing_the_overlap_lets_a_round_finish_after_a_colleague_left(clinic: Clinic) -> None:
    ana, lea = clinic.person("Ana"), clinic.person("Lea", Role.MANAGER)
    clinic.round(2, overlap=3)
    finish(clinic, ana)
    assert rounds.reduce_overlap(clinic.db, 1, 1, by=lea.id) == 2
    assert rounds.missing(clinic.db, 1) == []
    with pytest.raises(Exception, match="manage the queue"):
        rounds.reduce_overlap(clinic.db, 1, 1, by=ana.id)


def test_an_unfinished_round_cannot_be_approved_and_says_what_is_missing(clinic: Clinic) -> None:
    clinic.person("Lea", Role.MANAGER)
    clinic.round(2)
    before = chain.head(clinic.db)
    with pytest.raises(GateRefused, match="2 of 2 records selected as least sure are not finished"):
        rounds.sign(clinic.db, 1, APPROVE, {})
    assert chain.head(clinic.db) == before
    assert rounds.state_of(clinic.db, 1) is RoundState.OPEN


def test_approving_signs_the_round_with_its_figures_and_once(clinic: Clinic) -> None:
    ana, lea = clinic.person("Ana"), clinic.person("Lea", Role.MANAGER)
    clinic.round(2)
    finish(clinic, ana)
    record = rounds.sign(clinic.db, 1, APPROVE, {"accuracy": {"value": 0.8, "n": 2}})
    assert (record.verdict, record.signed_by, record.note, record.round) == (
        Verdict.APPROVE,
        "Lea",
        "Looked at twenty.",
        1,
    )
    assert rounds.state_of(clinic.db, 1) is RoundState.SIGNED
    assert rounds.gate_record(clinic.db, "review", 1) == record
    assert rounds.sign(clinic.db, 1, APPROVE, {"other": "figures"}) == record
    events = rounds.gate_events(clinic.db, "review", 1)
    assert [(event["event"], event["figures"]) for event in events] == [
        ("approve", {"accuracy": {"value": 0.8, "n": 2}})
    ]
    entry = chain.entries(clinic.db, object="gate:review:1")[0]
    assert (entry["seq"], entry["actor"], entry["action"]) == (record.audit_seq, lea.id, "gate.approved")


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.MANAGER])
def test_only_a_lead_signs(clinic: Clinic, role: Role) -> None:
    clinic.person("Lea", role)
    clinic.round(1)
    with pytest.raises(GateRefused, match=f"role {role.value}"):
        rounds.sign(clinic.db, 1, REJECT, {})


def test_a_name_that_is_no_account_or_a_closed_one_does_not_sign(clinic: Clinic) -> None:
    clinic.round(1)
    with pytest.raises(GateRefused, match="no such account"):
        rounds.sign(clinic.db, 1, APPROVE, {})
    lea = clinic.person("Lea", Role.MANAGER)
    accounts.deactivate(clinic.db, lea.id, accounts.OPERATOR)
    with pytest.raises(GateRefused, match="a closed account"):
        rounds.sign(clinic.db, 1, REJECT, {})


def test_the_local_user_signs(clinic: Clinic) -> None:
    me = accounts.local_user(clinic.db)
    clinic.round(1)
    finish(clinic, me)
    assert rounds.sign(clinic.db, 1, SignOff(verdict="approve", signed_by="local"), {}).signed_by == "local"


def test_rejecting_keeps_the_round_open_with_a_reason_and_lets_work_go_on(clinic: Clinic) -> None:
    ana, _ = clinic.person("Ana"), clinic.person("Lea", Role.MANAGER)
    clinic.round(1)
    finish(clinic, ana)
    with pytest.raises(GateRefused, match="why the round goes back"):
        rounds.sign(clinic.db, 1, SignOff(verdict="reject", signed_by="lea", note=" "), {})
    record = rounds.sign(clinic.db, 1, REJECT, {})
    assert rounds.sign(clinic.db, 1, REJECT, {}) == record
    assert rounds.gate_record(clinic.db, "review", 1) == record
    assert rounds.state_of(clinic.db, 1) is RoundState.OPEN
    undone = queue.undo(clinic.db, ana.id)
    assert undone is not None and undone.assignment is not None
    clinic.send(ana, undone.assignment, "Results")
    assert rounds.sign(clinic.db, 1, APPROVE, {}).verdict is Verdict.APPROVE


def test_rejecting_a_signed_round_opens_it_again(clinic: Clinic) -> None:
    ana, _ = clinic.person("Ana"), clinic.person("Lea", Role.MANAGER)
    clinic.round(1)
    finish(clinic, ana)
    rounds.sign(clinic.db, 1, APPROVE, {})
    rounds.sign(clinic.db, 1, REJECT, {})
    assert rounds.state_of(clinic.db, 1) is RoundState.OPEN


def test_reopening_takes_a_signature_back_and_is_told(clinic: Clinic) -> None:
    ana, _ = clinic.person("Ana"), clinic.person("Lea", Role.MANAGER)
    clinic.round(1)
    finish(clinic, ana)
    with pytest.raises(GateRefused, match="a signed round"):
        rounds.reopen(clinic.db, 1, by="lea", note="typo")
    rounds.sign(clinic.db, 1, APPROVE, {})
    with pytest.raises(GateRefused, match="why the round goes back"):
        rounds.reopen(clinic.db, 1, by="lea", note="")
    rounds.reopen(clinic.db, 1, by="lea", note="A new guideline came in.")
    assert rounds.gate_record(clinic.db, "review", 1) is None
    assert rounds.state_of(clinic.db, 1) is RoundState.OPEN
    rounds.sign(clinic.db, 1, APPROVE, {})
    assert [event["event"] for event in rounds.gate_events(clinic.db, "review", 1)] == [
        "approve",
        "reopened",
        "approve",
    ]


def test_signing_takes_back_what_people_hold_undecided(clinic: Clinic) -> None:
    ana, bob, _ = clinic.person("Ana"), clinic.person("Bob"), clinic.person("Lea", Role.MANAGER)
    clinic.round(2, overlap=2)
    finish(clinic, ana)
    held = queue.claim(clinic.db, bob.id)
    assert held is not None
    rounds.reduce_overlap(clinic.db, 1, 1, by=accounts.OPERATOR)
    rounds.sign(clinic.db, 1, APPROVE, {})
    with pytest.raises(QueueError, match="Nothing was saved"):
        clinic.send(bob, held)


def test_a_gate_of_another_phase_is_opened_with_figures_and_decided(clinic: Clinic) -> None:
    clinic.person("Lea", Role.MANAGER)
    with pytest.raises(GateRefused, match="no open gate of phase setup"):
        rounds.decide_gate(clinic.db, "setup", 1, APPROVE)
    rounds.open_gate(clinic.db, "setup", 1, {"accuracy": 0.7})
    rounds.open_gate(clinic.db, "setup", 1, {"accuracy": 0.7})
    assert rounds.gate_record(clinic.db, "setup", 1) is None
    rejected = rounds.decide_gate(clinic.db, "setup", 1, REJECT)
    assert rounds.gate_record(clinic.db, "setup", 1) == rejected
    rounds.open_gate(clinic.db, "setup", 1, {"accuracy": 0.8})
    assert rounds.gate_record(clinic.db, "setup", 1) is None
    approved = rounds.decide_gate(clinic.db, "setup", 1, APPROVE)
    assert rounds.decide_gate(clinic.db, "setup", 1, APPROVE) == approved
    events = rounds.gate_events(clinic.db, "setup", 1)
    assert [(event["event"], event["figures"]["accuracy"]) for event in events] == [
        ("opened", 0.7),
        ("reject", 0.7),
        ("opened", 0.8),
        ("approve", 0.8),
    ]


def test_the_setup_gate_waits_for_its_sample(clinic: Clinic) -> None:
    lea = clinic.person("Lea", Role.MANAGER)
    clinic.round(2, purpose=Purpose.SAMPLE, seen=Seen.BLIND, state=RoundState.SAMPLING)
    rounds.open_gate(clinic.db, "setup", 1, {})
    with pytest.raises(GateRefused, match="2 of 2 records of the setup sample"):
        rounds.decide_gate(clinic.db, "setup", 1, APPROVE)
    finish(clinic, lea)
    rounds.decide_gate(clinic.db, "setup", 1, APPROVE)
    rounds.open_round(clinic.db, 1, state=RoundState.OPEN, rehearsal=False, actor="flow")


def test_figures_that_are_no_json_are_refused(clinic: Clinic) -> None:
    with pytest.raises(GateRefused, match="plain JSON data without NaN"):
        rounds.open_gate(clinic.db, "setup", 1, {"kappa": float("nan")})


def test_adjudication_runs_from_signed_to_closed(clinic: Clinic) -> None:
    ana, rea = clinic.person("Ana"), clinic.person("Rea", Role.REVIEWER)
    clinic.person("Lea", Role.MANAGER)
    clinic.round(3)
    with pytest.raises(QueueError, match="found open"):
        rounds.start_adjudication(clinic.db, 1, {"r0": "two answers"})
    finish(clinic, ana)
    rounds.sign(clinic.db, 1, APPROVE, {})
    assert rounds.start_adjudication(clinic.db, 1, {"r0": "two answers", "r2": "model disagrees"}) == 2
    assert rounds.start_adjudication(clinic.db, 1, {"r0": "two answers"}) == 0
    assert rounds.state_of(clinic.db, 1) is RoundState.ADJUDICATING
    assert rounds.missing(clinic.db, 1) == ["2 records wait for an adjudicator."]
    with pytest.raises(QueueError, match="2 records wait"):
        rounds.close_round(clinic.db, 1)
    for dispute in queue.disputes(clinic.db, rea.id, 1):
        queue.adjudicate(
            clinic.db,
            rea.id,
            1,
            dispute.record_id,
            value="Results",
            expected_version=dispute.version,
            idempotency_key=clinic.key(),
            check_value=clinic.check_value,
        )
    rounds.close_round(clinic.db, 1)
    rounds.close_round(clinic.db, 1)
    assert rounds.state_of(clinic.db, 1) is RoundState.CLOSED
    for state in RoundState.SAMPLING, RoundState.OPEN:
        with pytest.raises(QueueError):
            rounds.open_round(clinic.db, 1, state=state, rehearsal=False, actor="flow")
    assert chain.verify_chain(clinic.db) == []


def test_adjudicating_a_record_that_was_not_under_review_needs_its_text(clinic: Clinic) -> None:
    ana, rea = clinic.person("Ana"), clinic.person("Rea", Role.REVIEWER)
    clinic.person("Lea", Role.MANAGER)
    clinic.round(1)
    finish(clinic, ana)
    rounds.sign(clinic.db, 1, APPROVE, {})
    with pytest.raises(QueueError, match="no text for 1 record"):
        rounds.start_adjudication(clinic.db, 1, {"other": "likely wrong"})
    content = {"other": ("Another text", {"value": "Refill"})}
    rounds.start_adjudication(clinic.db, 1, {"other": "likely wrong"}, content=content)
    dispute = queue.disputes(clinic.db, rea.id)[0]
    assert (dispute.text, dispute.suggestion, dispute.cards) == ("Another text", {"value": "Refill"}, ())


def test_real_and_simulated_rounds_never_share_a_database(clinic: Clinic) -> None:
    clinic.round(1)
    with pytest.raises(QueueError, match="Rehearse in another project folder"):
        clinic.round(1, number=2, rehearsal=True)


def test_everything_in_a_rehearsal_is_stamped_whatever_is_asked_later(clinic: Clinic) -> None:
    ana, _ = clinic.person("Ana"), clinic.person("Lea", Role.MANAGER)
    clinic.round(1, rehearsal=True)
    clinic.round(1, number=2, rehearsal=False)
    finish(clinic, ana)
    rounds.sign(clinic.db, 2, APPROVE, {})
    assert [row["rehearsal"] for number in (1, 2) for row in queue.decisions_of_round(clinic.db, number)] == [
        True,
        True,
    ]
    assert rounds.gate_events(clinic.db, "review", 2)[0]["rehearsal"] is True
    assert rounds.progress(clinic.db, 2).rehearsal


def test_two_leads_who_approve_at_once_leave_one_signature(clinic: Clinic, another_window: Any) -> None:
    import threading

    ana = clinic.person("Ana")
    clinic.person("Lea", Role.MANAGER), clinic.person("Leo", Role.MANAGER)
    clinic.round(1)
    finish(clinic, ana)
    got = []

    def approve(db: Database, name: str) -> None:
        got.append(rounds.sign(db, 1, SignOff(verdict="approve", signed_by=name), {}))

    threads = [threading.Thread(target=approve, args=(another_window(), name)) for name in ("lea", "leo")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 2 and got[0] == got[1]
    assert len(rounds.gate_events(clinic.db, "review", 1)) == 1
