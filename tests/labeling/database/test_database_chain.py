"""Whatever is changed afterwards is found, and named by its seq."""

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from clinic import Clinic
from sqlalchemy import Connection, delete, event, insert, select, text, update

from labeling.database import chain, queue, rounds, tables
from labeling.database.connection import Database
from schemas.review import Role, SignOff
from schemas.values import canonical_json

audit = tables.audit


@pytest.fixture
def full(clinic: Clinic) -> Database:
    """A database with a signed round: decisions, an undo, a comment, a flag, gates."""
    return signed_round(clinic)


@pytest.fixture
def full_sqlite(sqlite_clinic: Clinic) -> Database:
    """The same, where the database makes no difference."""
    return signed_round(sqlite_clinic)


def signed_round(clinic: Clinic) -> Database:
    ana = clinic.person("ana")
    clinic.person("lea", Role.MANAGER)
    clinic.round(3)
    clinic.decide(ana, "Refill", comment="sure")
    clinic.decide(ana, "Billing")
    queue.undo(clinic.db, ana.id)
    clinic.decide(ana, "Results")
    held = queue.claim(clinic.db, ana.id)
    assert held is not None
    queue.comment(clinic.db, ana.id, held.assignment_id, "Reads like two requests.")
    queue.flag(clinic.db, ana.id, held.assignment_id, raised=True)
    clinic.send(ana, held, "Refill")
    rounds.open_gate(clinic.db, "review", 1, {"accuracy": 0.8})
    rounds.sign(clinic.db, 1, SignOff(verdict="approve", signed_by="lea"), {"accuracy": 0.8})
    assert chain.verify_chain(clinic.db) == []
    return clinic.db


def tamper(db: Database, change: Callable[[Connection], object]) -> None:
    """As somebody would who holds the file: our triggers do not stop them."""
    with db.write() as conn:
        if conn.dialect.name == "postgresql":
            conn.execute(text("SET session_replication_role = replica"))
        else:
            conn.execute(text("PRAGMA defer_foreign_keys=ON"))
            names = (
                conn.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars().all()
            )
            for name in names:
                conn.execute(text(f"DROP TRIGGER {name}"))
        change(conn)
        if conn.dialect.name == "postgresql":
            conn.execute(text("SET session_replication_role = origin"))


def unguarded(db: Database) -> None:
    """SQLite checks foreign keys at commit; a tamperer switches that off."""
    if db.engine.dialect.name == "sqlite":
        db.close()
        from sqlalchemy import event

        event.listen(db.engine, "connect", lambda raw, _: raw.execute("PRAGMA foreign_keys=OFF"))


def test_an_entry_is_the_hash_of_its_seven_fields_and_the_one_before(full: Database) -> None:
    entries = chain.entries(full)
    assert [entry["seq"] for entry in entries] == list(range(1, len(entries) + 1))
    assert entries[0]["prev"] == chain.GENESIS
    for before, entry in zip(entries, entries[1:], strict=False):
        assert entry["prev"] == before["hash"] == chain.entry_hash(before)
    assert chain.head(full) == (entries[-1]["seq"], entries[-1]["hash"])


def test_the_hash_of_an_entry_can_be_computed_by_hand() -> None:
    entry = {
        "seq": 1,
        "utc": "2026-01-01T00:00:00.000000Z",
        "actor": "a",
        "action": "x.y",
        "object": "o",
        "payload_sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",  # of {}
        "prev": "0" * 64,
    }
    # printf
    # '{"action":"x.y","actor":"a","object":"o","payload_sha256":"4413…","prev":"00…","seq":1,"utc":"…"}' |
    # sha256sum
    assert chain.entry_hash(entry) == HAND_COMPUTED


HAND_COMPUTED = "dac02c4e104d6a7128080987405c2c5210751d6e3ceaba269dec8eea9e9fbe94"


def test_the_payload_tells_what_was_decided(full_sqlite: Database) -> None:
    made = [entry for entry in chain.entries(full_sqlite) if entry["action"] == "decision.made"]
    assert [json.loads(entry["payload"]["value_json"]) for entry in made] == [
        "Refill",
        "Billing",
        "Results",
        "Refill",
    ]
    assert made[0]["payload"]["comment"] == "sure"


def test_a_changed_entry_is_named(full_sqlite: Database) -> None:
    tamper(
        full_sqlite, lambda conn: conn.execute(update(audit).where(audit.c.seq == 5).values(actor="a-000000"))
    )
    assert chain.verify_chain(full_sqlite) == ["audit 5: the entry was changed"]


def test_a_changed_payload_is_named(full_sqlite: Database) -> None:
    tamper(full_sqlite, lambda conn: conn.execute(update(audit).where(audit.c.seq == 5).values(payload="{}")))
    assert chain.verify_chain(full_sqlite)[0] == "audit 5: the payload was changed"


def test_a_deleted_entry_is_named(full: Database) -> None:
    unguarded(full)
    tamper(full, lambda conn: conn.execute(delete(audit).where(audit.c.seq == 4)))
    problems = chain.verify_chain(full)
    assert "audit 4: entry missing (the next one is 5)" in problems
    assert "audit 5: does not continue the entry before it" in problems


def test_an_inserted_entry_is_named(full_sqlite: Database) -> None:
    seq, digest = chain.head(full_sqlite)
    forged = {
        "seq": seq + 1,
        "utc": "2026-01-01T00:00:00.000000Z",
        "actor": "a-000000",
        "action": "x.y",
        "object": "o",
        "payload_sha256": chain._sha256("{}"),
        "prev": digest,
    }
    row = {**forged, "payload": "{}", "hash": chain.entry_hash(forged)}
    tamper(full_sqlite, lambda conn: conn.execute(insert(audit).values(**row)))
    assert chain.verify_chain(full_sqlite) == [
        f"audit {seq + 1}: the last entry, but the kept head says {seq}"
    ]


def test_swapped_entries_are_named(full_sqlite: Database) -> None:
    def swap(conn: Connection) -> None:
        for old, new in ((3, 9003), (4, 3), (9003, 4)):
            conn.execute(update(audit).where(audit.c.seq == old).values(seq=new))

    tamper(full_sqlite, swap)
    problems = chain.verify_chain(full_sqlite)
    assert "audit 3: the entry was changed" in problems
    assert "audit 4: the entry was changed" in problems


def test_a_cut_tail_is_found_by_a_head_kept_elsewhere(full: Database) -> None:
    kept = chain.head(full)

    def cut(conn: Connection) -> None:
        conn.execute(delete(tables.gates).where(tables.gates.c.audit_seq >= kept[0]))
        conn.execute(delete(audit).where(audit.c.seq == kept[0]))
        before = conn.execute(select(audit.c.hash).where(audit.c.seq == kept[0] - 1)).scalar_one()
        conn.execute(update(tables.audit_head).values(seq=kept[0] - 1, hash=before))

    tamper(full, cut)
    assert chain.verify_chain(full) == []  # the chain alone cannot know
    assert chain.verify_chain(full, expected_head=kept) == [
        f"audit {kept[0]}: recorded elsewhere but not here; the end of the chain was cut off"
    ]


def test_a_rebuilt_chain_is_found_by_a_head_kept_elsewhere(full_sqlite: Database) -> None:
    kept = chain.head(full_sqlite)
    tamper(full_sqlite, lambda conn: rebuild(conn, actor="somebody else"))
    assert chain.verify_chain(full_sqlite) == []
    assert chain.verify_chain(full_sqlite, expected_heads=[kept]) == [
        f"audit {kept[0]}: not the entry that was recorded elsewhere; the chain was rebuilt"
    ]


def rebuild(conn: Connection, actor: str) -> None:
    prev = chain.GENESIS
    for row in conn.execute(select(audit).order_by(audit.c.seq)).mappings().all():
        entry: dict[str, Any] = {**row, "prev": prev}
        if entry["seq"] == 2:
            entry["actor"] = actor
        prev = chain.entry_hash(entry)
        conn.execute(
            update(audit)
            .where(audit.c.seq == entry["seq"])
            .values(actor=entry["actor"], prev=entry["prev"], hash=prev)
        )
    conn.execute(update(tables.audit_head).values(hash=prev))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("value_json", '"Billing"'),
        ("action", "correct"),
        ("annotator_id", None),
        ("seconds", 99.0),
        ("seen", "blind"),
        ("comment", "sure!"),
        ("rehearsal", True),
        ("suggestion_json", None),
    ],
)
def test_a_changed_decision_is_named(full_sqlite: Database, column: str, value: Any) -> None:
    decisions = tables.decisions

    def change(conn: Connection) -> None:
        other = conn.execute(select(tables.accounts.c.id).where(tables.accounts.c.name == "lea")).scalar_one()
        first = conn.execute(select(decisions.c.id).order_by(decisions.c.id)).scalars().first()
        conn.execute(
            update(decisions)
            .where(decisions.c.id == first)
            .values({column: other if column == "annotator_id" else value})
        )

    tamper(full_sqlite, change)
    assert len(chain.verify_chain(full_sqlite)) == 1
    assert chain.verify_chain(full_sqlite)[0].endswith("was changed after it was written")


@pytest.mark.parametrize(
    "table", [tables.decisions, tables.gates, tables.comments, tables.flags], ids=lambda t: t.name
)
def test_a_deleted_row_is_named(full_sqlite: Database, table: Any) -> None:
    unguarded(full_sqlite)
    with full_sqlite.read() as conn:
        seq = conn.execute(select(table.c.audit_seq).order_by(table.c.audit_seq)).scalars().first()
    tamper(full_sqlite, lambda conn: conn.execute(delete(table).where(table.c.audit_seq == seq)))
    assert chain.verify_chain(full_sqlite) == [f"audit {seq}: its {table.name} row was deleted"]


@pytest.mark.parametrize("seq", [1, 999])
def test_a_row_without_an_entry_of_its_own_is_named(full_sqlite: Database, seq: int) -> None:
    unguarded(full_sqlite)

    def forge(conn: Connection) -> None:
        row = dict(conn.execute(select(tables.gates).limit(1)).mappings().one())
        del row["id"]
        conn.execute(insert(tables.gates).values(**{**row, "audit_seq": seq}))

    tamper(full_sqlite, forge)
    assert [problem for problem in chain.verify_chain(full_sqlite) if "has no audit entry" in problem]


def test_the_stamp_of_a_rehearsal_cannot_be_wiped(clinic: Clinic) -> None:
    clinic.round(1, rehearsal=True)
    assert clinic.db.rehearsal
    with clinic.db.write() as conn:
        conn.execute(update(tables.meta).where(tables.meta.c.key == "rehearsal").values(value="false"))
    assert chain.verify_chain(clinic.db) == [
        "audit 1: the mark that tells a rehearsal from real work was changed"
    ]


CHANGES = 30


def test_random_changes_of_single_characters_are_all_found(sqlite_clinic: Clinic) -> None:
    ana = sqlite_clinic.person("ana")
    sqlite_clinic.round(8)
    for _ in range(8):
        sqlite_clinic.decide(ana, "Refill")
    db = sqlite_clinic.db
    kept = chain.head(db)
    chance = random.Random(7)
    columns = ["utc", "actor", "action", "object", "payload", "payload_sha256", "prev", "hash"]
    tamper(db, lambda conn: None)
    for _ in range(CHANGES):
        seq, column = chance.randint(1, kept[0]), chance.choice(columns)
        with db.write() as conn:
            old = conn.execute(select(audit.c[column]).where(audit.c.seq == seq)).scalar_one()
            at = chance.randrange(len(old))
            new = old[:at] + chr((ord(old[at]) + 1) % 128 or 65) + old[at + 1 :]
            conn.execute(update(audit).where(audit.c.seq == seq).values({column: new}))
        problems = chain.verify_chain(db, expected_head=kept)
        assert any(f"audit {seq}:" in problem for problem in problems), (seq, column, problems)
        with db.write() as conn:
            conn.execute(update(audit).where(audit.c.seq == seq).values({column: old}))
    assert chain.verify_chain(db, expected_head=kept) == []


def test_a_payload_with_nan_is_refused_and_nothing_is_written(db: Database) -> None:
    before = chain.head(db)
    with pytest.raises(ValueError, match="not JSON compliant"), db.write() as conn:
        chain.append(conn, actor="a", action="x.y", object="o", payload={"x": float("nan")})
    assert chain.head(db) == before


def test_the_clock_does_not_order_the_chain(clinic: Clinic, clock: Any) -> None:
    ana = clinic.person("ana")
    clinic.round(2)
    first = clinic.decide(ana)
    clock.forward(hours=-5)
    second = clinic.decide(ana)
    assert second.decided_at < first.decided_at
    assert second.audit_seq > first.audit_seq
    assert chain.verify_chain(clinic.db) == []


def test_entries_of_one_object_can_be_read_alone(full_sqlite: Database) -> None:
    told = chain.entries(full_sqlite, object="record:r0")
    assert [entry["action"] for entry in told] == ["decision.made"]
    assert canonical_json(told[0]["payload"])


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_people_who_work_while_the_chain_is_verified_raise_no_alarm(clinic: Clinic) -> None:
    """Between two looks of one reading; on SQLite a reader keeps writers out."""
    written: list[str] = []

    def write_in_between(_conn: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        if "FROM audit_head" in statement and "FOR UPDATE" not in statement and not written:
            written.append(statement)
            clinic.person("Ana")

    event.listen(clinic.db.engine, "after_cursor_execute", write_in_between)

    assert chain.verify_chain(clinic.db) == []
    assert written
    assert chain.verify_chain(clinic.db) == []
