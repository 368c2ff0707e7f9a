"""Whose a record is: anybody's, a pool's or one person's; claims honour it and the gate says what is stuck."""

import pytest
from clinic import Clinic
from sqlalchemy import select

from labeling.database import accounts, chain, finding, pools, queue, rounds, tables
from labeling.database.accounts import Account
from labeling.database.pace import pace
from schemas.errors import Forbidden, QueueError
from schemas.review import Purpose, QueueItem, Role, RoundState, Seen


def item_id(clinic: Clinic, record_id: str) -> int:
    with clinic.db.read() as conn:
        item = tables.queue_items.c
        return int(conn.execute(select(item.id).where(item.record_id == record_id)).scalar_one())


def routed(clinic: Clinic, **pool_of: str | None) -> None:
    """Records of a round by name, with the pool each goes to."""
    rounds.open_round(clinic.db, 1, state=RoundState.OPEN, rehearsal=False, actor="flow")
    items = [
        QueueItem(
            record_id=name, purpose=Purpose.SELECTED, seen=Seen.ASSISTED, priority=float(-rank), pool=pool
        )
        for rank, (name, pool) in enumerate(pool_of.items())
    ]
    rounds.add_items(clinic.db, 1, items, {name: (f"Text of {name}", None) for name in pool_of}, "flow")


def got(clinic: Clinic, who: Account) -> list[str]:
    return [held.record_id for held in queue.prefetch(clinic.db, who.id, count=9)]


def test_a_pool_s_records_go_to_its_members_and_the_rest_to_everybody(clinic: Clinic) -> None:
    ana, bob, lea = clinic.person("Ana"), clinic.person("Bob"), clinic.person("Lea", Role.MANAGER)
    routed(clinic, a="Nurses", b=None, c="nurses", d="Lawyers")
    nurses, lawyers = sorted(pools.pools(clinic.db), key=lambda pool: pool.name, reverse=True)
    assert (nurses.name, lawyers.name) == ("Nurses", "Lawyers")  # "nurses" is the same pool
    pools.set_members(clinic.db, nurses.id, [ana.id], lea.id)
    pools.set_members(clinic.db, lawyers.id, [lea.id], lea.id)
    assert pace(clinic.db, ana.id).left == 3
    assert pace(clinic.db, bob.id).left == 1
    assert got(clinic, ana) == ["a", "b", "c"]
    assert got(clinic, bob) == []
    assert got(clinic, lea) == ["d"]


def test_a_long_round_is_not_counted_anew_for_every_page(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    ana = clinic.person("Ana")
    clinic.round(2)

    def done_after_one_more() -> tuple[int, int]:
        before = pace(clinic.db, ana.id).done
        clinic.decide(ana)
        return before, pace(clinic.db, ana.id).done

    assert done_after_one_more() == (0, 1)
    monkeypatch.setattr("labeling.database.pace._LONG", 2)
    monkeypatch.setattr("labeling.database.pace._KEPT_FOR", 1e9)
    assert done_after_one_more() == (1, 1)


def test_a_record_given_to_a_person_leaves_the_hands_of_others(clinic: Clinic) -> None:
    ana, bob, lea = clinic.person("Ana"), clinic.person("Bob"), clinic.person("Lea", Role.MANAGER)
    clinic.round(2)
    assert got(clinic, ana) == ["r0", "r1"]
    pools.give_to(clinic.db, [item_id(clinic, "r0")], by=lea.id, account_id=bob.id)
    assert got(clinic, ana) == ["r1"]
    assert got(clinic, bob) == ["r0"]
    pools.give_to(clinic.db, [item_id(clinic, "r0")], by=lea.id)
    assert got(clinic, bob) == ["r0"]
    acts = [entry["action"] for entry in chain.entries(clinic.db)]
    assert acts.count("items.given") == 2
    assert chain.verify_chain(clinic.db) == []


def test_the_gate_says_when_too_few_are_left_for_a_pool_s_record(clinic: Clinic) -> None:
    ana, lea = clinic.person("Ana"), clinic.person("Lea", Role.MANAGER)
    routed(clinic, a="Nurses")
    assert any(
        "a person or pool in which too few" in words and "(a)" in words
        for words in rounds.missing(clinic.db, 1)
    )
    (nurses,) = pools.pools(clinic.db)
    pools.set_members(clinic.db, nurses.id, [ana.id], lea.id)
    assert not any("person or pool" in words for words in rounds.missing(clinic.db, 1))
    accounts.deactivate(clinic.db, ana.id, accounts.OPERATOR)
    assert any("person or pool" in words for words in rounds.missing(clinic.db, 1))


def test_only_who_manages_the_queue_makes_pools_and_gives_records(clinic: Clinic) -> None:
    ana, lea = clinic.person("Ana"), clinic.person("Lea", Role.MANAGER)
    root = clinic.person("Root", Role.ADMIN)
    clinic.round(1)
    for act in (
        lambda: pools.make_pool(clinic.db, "Nurses", ana.id),
        lambda: pools.set_members(clinic.db, 1, [], root.id),
        lambda: pools.give_to(clinic.db, [item_id(clinic, "r0")], by=ana.id),
    ):
        with pytest.raises(Forbidden):
            act()
    nurses = pools.make_pool(clinic.db, "Nurses", lea.id)
    assert pools.make_pool(clinic.db, " NURSES ", lea.id) == nurses
    for wrong in (
        lambda: pools.make_pool(clinic.db, " \n", lea.id),
        lambda: pools.set_members(clinic.db, nurses, [root.id], lea.id),
        lambda: pools.set_members(clinic.db, 99, [], lea.id),
        lambda: pools.give_to(clinic.db, [99], by=lea.id),
        lambda: pools.give_to(clinic.db, [item_id(clinic, "r0")], by=lea.id, pool_id=99),
        lambda: pools.give_to(clinic.db, [item_id(clinic, "r0")], by=lea.id, account_id="a-000000"),
    ):
        with pytest.raises(QueueError):
            wrong()


def test_a_control_record_is_shown_like_any_other_and_told_apart_in_the_table(clinic: Clinic) -> None:
    ana = clinic.person("Ana")
    clinic.round(1, purpose=Purpose.CONTROL)
    held = queue.claim(clinic.db, ana.id)
    assert held is not None and held.suggestion is not None
    clinic.send(ana, held)
    (row,) = queue.decisions_of_round(clinic.db, 1)
    assert row["purpose"] == "control"


def test_everything_that_fits_a_search_is_given_at_once_but_what_is_done(clinic: Clinic) -> None:
    ana, lea = clinic.person("Ana"), clinic.person("Lea", Role.MANAGER)
    clinic.round(1_200)
    clinic.decide(ana)
    nurses = pools.make_pool(clinic.db, "Nurses", lea.id)
    found = finding.all_found(clinic.db, lea.id, finding.Search(number=1, label="Refill"))
    assert pools.give_to(clinic.db, found, by=lea.id, pool_id=nurses) == 1_199
    assert got(clinic, ana) == []
    with pytest.raises(Forbidden):
        finding.all_found(clinic.db, ana.id, finding.Search(number=1))
