"""Finding records: what fits the filters, in pages, and who may see whose answers."""

from typing import Any

import pytest
from clinic import Clinic

from labeling.database import finding, pools, queue, rounds
from labeling.database.accounts import Account
from labeling.database.finding import Order, Search, Sight, State
from schemas.errors import Forbidden, QueueError
from schemas.review import Purpose, QueueItem, Role, RoundState, Seen, SignOff


def filled(clinic: Clinic, count: int = 6, *, overlap: int = 1) -> None:
    """r0 … with confidence 0.9, 0.8 …; every other one suggested as Billing, the last blind."""
    rounds.open_round(clinic.db, 1, state=RoundState.OPEN, rehearsal=False, actor="flow")
    items, content = [], {}
    for i in range(count):
        blind = i == count - 1
        items.append(
            QueueItem(
                record_id=f"r{i}",
                purpose=Purpose.AUDIT if blind else Purpose.SELECTED,
                seen=Seen.BLIND if blind else Seen.ASSISTED,
                priority=float(-i),
                overlap=overlap,
            )
        )
        value = "Billing" if i % 2 else "Refill"
        content[f"r{i}"] = (f"100% text_{i} of {value}", {"value": value, "confidence": 0.9 - i / 10})
    rounds.add_items(clinic.db, 1, items, content, "flow")


def ids(clinic: Clinic, who: Account, **wanted: Any) -> list[str]:
    return [row.record_id for row in finding.find(clinic.db, who.id, Search(number=1, **wanted)).found]


def test_letters_beyond_ascii_are_found_in_both_cases(clinic: Clinic) -> None:
    lea = clinic.person("Lea", Role.MANAGER)
    rounds.open_round(clinic.db, 1, state=RoundState.OPEN, rehearsal=False, actor="flow")
    texts = {"r0": "Ärztin für die Übelkeit 100%", "r1": "ÜBELKEIT seit gestern", "r2": "nothing of the kind"}
    items = [
        QueueItem(record_id=name, purpose=Purpose.SELECTED, seen=Seen.ASSISTED, priority=0.0, overlap=1)
        for name in texts
    ]
    rounds.add_items(clinic.db, 1, items, {name: (text, None) for name, text in texts.items()}, "flow")

    assert "r0" in ids(clinic, lea, text="Übelkeit 1")
    if clinic.db.engine.dialect.name == "sqlite":  # elsewhere the locale of the database decides
        assert sorted(ids(clinic, lea, text="übelkeit")) == ["r0", "r1"]
        assert ids(clinic, lea, text="ÄRZTIN FÜR") == ["r0"]
        assert ids(clinic, lea, text="ü%") == []


def test_records_are_found_by_label_confidence_text_and_state(clinic: Clinic) -> None:
    ana, lea = clinic.person("Ana"), clinic.person("Lea", Role.MANAGER)
    filled(clinic)
    clinic.decide(ana, "Refill")  # r0
    clinic.decide(ana, "Results")  # r1

    assert ids(clinic, lea) == ["r2", "r3", "r4", "r5", "r0", "r1"]
    assert ids(clinic, lea, label="Billing") == ["r3", "r1"]
    assert ids(clinic, lea, least=0.65, most=0.85) == ["r2", "r1"]
    assert ids(clinic, lea, text="TEXT_3") == ["r3"]
    assert ids(clinic, lea, text="100%") == ["r2", "r3", "r4", "r5", "r0", "r1"]
    assert ids(clinic, lea, text="t%3") == []
    assert ids(clinic, lea, text="r4") == ["r4"]
    assert ids(clinic, lea, state=State.OPEN) == ["r2", "r3", "r4", "r5"]
    assert ids(clinic, lea, state=State.DONE) == ["r0", "r1"]
    assert ids(clinic, ana, state=State.MINE) == ["r0", "r1"]
    assert ids(clinic, lea, answer="Results") == ["r1"]
    assert ids(clinic, lea, annotator=ana.id) == ["r0", "r1"]
    assert ids(clinic, lea, record_ids={"r2", "r9"}) == ["r2"]
    assert ids(clinic, lea, record_ids=[f"r{i}" for i in range(60_000)]) == [
        "r2",
        "r3",
        "r4",
        "r5",
        "r0",
        "r1",
    ]
    assert ids(clinic, lea, order=Order.SURE)[0] == "r0"
    assert ids(clinic, lea, order=Order.UNSURE) == ["r4", "r3", "r2", "r1", "r0"]


def test_a_label_in_a_list_or_a_span_is_found_and_one_that_is_only_quoted_is_not(clinic: Clinic) -> None:
    lea = clinic.person("Lea", Role.MANAGER)
    clinic.round(3, suggestion=["Billing", "Refill"])
    values = (
        ["Billing", "Refill"],
        [{"start": 0, "end": 4, "label": "Billing", "quote": "Text"}],
        [{"start": 0, "end": 7, "label": "Refill", "quote": '"Billing"'}],
    )
    for value in values:
        held = queue.claim(clinic.db, lea.id)
        assert held is not None
        queue.decide(
            clinic.db,
            lea.id,
            clinic.decision(held, value, "correct" if value != values[0] else "accept"),
            check_value=lambda value, text: None,
        )
    assert ids(clinic, lea, label="Refill") == ["r0", "r1", "r2"]
    assert ids(clinic, lea, label="fill") == []
    assert ids(clinic, lea, answer="Billing") == ["r0", "r1"]


@pytest.mark.parametrize("order", list(Order))
def test_pages_tell_every_record_once(clinic: Clinic, order: Order) -> None:
    lea = clinic.person("Lea", Role.MANAGER)
    filled(clinic, 8)
    seen: list[str] = []
    after = ""
    while True:
        page = finding.find(clinic.db, lea.id, Search(number=1, order=order, after=after), limit=3)
        seen += [row.record_id for row in page.found]
        after = page.after
        if not after:
            break
    everything = [f"r{i}" for i in range(8)]
    assert sorted(seen) == everything if order is Order.QUEUE else everything[:7]


def test_an_annotator_sees_their_own_answers_only_while_the_round_is_open(clinic: Clinic) -> None:
    ana, bob = clinic.person("Ana"), clinic.person("Bob")
    rea, lea = clinic.person("Rea", Role.REVIEWER), clinic.person("Lea", Role.MANAGER)
    filled(clinic, 1, overlap=2)
    clinic.decide(ana, "Billing")
    clinic.decide(bob, "Refill")

    def answers(who: Account) -> list[tuple[str | None, Any]]:
        (row,) = finding.find(clinic.db, who.id, Search(number=1)).found
        return sorted((answer.annotator_id or "", answer.value) for answer in row.answers)

    assert answers(ana) == [(ana.id, "Billing")]
    assert ids(clinic, ana, answer="Refill") == []
    assert ids(clinic, rea) == []
    with pytest.raises(Forbidden, match="answers of somebody else"):
        ids(clinic, ana, annotator=bob.id)
    assert {who for who, _ in answers(lea)} == {ana.id, bob.id}
    rounds.sign(clinic.db, 1, SignOff(verdict="approve", signed_by="Lea"), {})
    assert answers(rea) == [("", "Billing"), ("", "Refill")]
    assert answers(ana) == [(ana.id, "Billing")]
    rounds.close_round(clinic.db, 1)
    assert sorted(answers(ana), key=str) == sorted([("", "Refill"), (ana.id, "Billing")], key=str)


def test_what_sight_a_role_has_in_a_state() -> None:
    def sight(role: Role, state: RoundState) -> Sight:
        return finding.sight_of(Account("a-1", "n", "N", role, False, True), state)

    assert sight(Role.ANNOTATOR, RoundState.ADJUDICATING) is Sight.OWN
    assert sight(Role.REVIEWER, RoundState.OPEN) is Sight.OWN
    assert sight(Role.REVIEWER, RoundState.ADJUDICATING) is Sight.NAMELESS
    assert sight(Role.ANNOTATOR, RoundState.CLOSED) is Sight.NAMELESS
    assert sight(Role.AUDITOR, RoundState.OPEN) is sight(Role.MANAGER, RoundState.SAMPLING) is Sight.ALL


def test_a_blind_record_is_listed_without_a_suggestion_and_found_by_none(clinic: Clinic) -> None:
    lea = clinic.person("Lea", Role.MANAGER)
    filled(clinic, 2)
    _, blind = finding.find(clinic.db, lea.id, Search(number=1)).found
    assert (blind.record_id, blind.blind, blind.suggestion) == ("r1", True, None)
    assert ids(clinic, lea, label="Billing") == []


def test_a_record_out_of_reach_is_refused_like_one_that_does_not_exist(clinic: Clinic) -> None:
    ana, bob = clinic.person("Ana"), clinic.person("Bob")
    root = clinic.person("Root", Role.ADMIN)
    filled(clinic, 2)
    done = clinic.decide(ana)
    (row, *_) = finding.find(clinic.db, ana.id, Search(number=1, state=State.MINE)).found
    assert done.record_id == row.record_id
    assert finding.look(clinic.db, ana.id, row.item_id).record.answers[0].own
    for item_id in (row.item_id, 999):
        with pytest.raises(Forbidden, match="not a record that you may see"):
            finding.look(clinic.db, bob.id, item_id)
    with pytest.raises(Forbidden):
        finding.look(clinic.db, root.id, row.item_id)


def test_a_chosen_record_is_reserved_unless_it_is_somebody_else_s(clinic: Clinic) -> None:
    ana, bob = clinic.person("Ana"), clinic.person("Bob")
    filled(clinic, 4)
    rows = finding.find(clinic.db, ana.id, Search(number=1)).found
    wanted = [rows[2].item_id, rows[0].item_id]
    held = queue.take_chosen(clinic.db, ana.id, wanted)
    assert [one.record_id for one in held] == ["r2", "r0"]
    assert queue.take_chosen(clinic.db, bob.id, wanted) == []
    assert queue.assignment(clinic.db, ana.id, held[0].assignment_id) == held[0]
    assert queue.assignment(clinic.db, bob.id, held[0].assignment_id) is None
    clinic.send(ana, held[0])
    assert queue.take_chosen(clinic.db, ana.id, wanted)[0].record_id == "r0"
    free = {row.record_id: row.free for row in finding.find(clinic.db, bob.id, Search(number=1)).found}
    assert free == {"r0": False, "r1": True, "r3": True}


def test_a_pool_s_record_is_found_by_its_members_only(clinic: Clinic) -> None:
    ana, bob, lea = clinic.person("Ana"), clinic.person("Bob"), clinic.person("Lea", Role.MANAGER)
    filled(clinic, 2)
    nurses = pools.make_pool(clinic.db, "Nurses", lea.id)
    pools.set_members(clinic.db, nurses, [ana.id], lea.id)
    (first, _) = finding.find(clinic.db, lea.id, Search(number=1)).found
    pools.give_to(clinic.db, [first.item_id], by=lea.id, pool_id=nurses)
    assert ids(clinic, ana) == ["r0", "r1"]
    assert ids(clinic, bob) == ["r1"]


@pytest.mark.parametrize("after", ["x", "1_2", "0_nan_1", "1.0_y", "'; DROP"])
def test_a_made_up_page_is_refused(clinic: Clinic, after: str) -> None:
    lea = clinic.person("Lea", Role.MANAGER)
    filled(clinic, 1)
    with pytest.raises(QueueError, match="no page has given"):
        ids(clinic, lea, after=after)
    with pytest.raises(QueueError, match="round 7"):
        finding.find(clinic.db, lea.id, Search(number=7))
