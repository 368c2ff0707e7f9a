"""The audit chain: who did what to which object, in an order nobody can change unnoticed.

An entry is the canonical JSON of {seq, utc, actor, action, object, payload_sha256, prev}; its hash is SHA-256
over that, and `prev` is the hash of the entry before. It is written in the transaction of the change it tells
of. What the chain alone cannot show is a tail cut off or the whole rebuilt: for that, compare with a head
kept elsewhere (a release manifest, a signed checkpoint).
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, Table, func, select

from labeling.database import statements, tables
from labeling.database.connection import Database
from schemas.errors import StorageError
from schemas.values import canonical_json

GENESIS = "0" * 64
_BATCH = 2_000


def append(
    conn: Connection,
    *,
    actor: str,
    action: str,
    object: str,
    payload: Mapping[str, Any],
    utc: datetime | None = None,
) -> int:
    """Add one entry inside the caller's transaction and return its seq (1 is the first).

    Args:
        conn: A connection from `Database.write`; the entry commits or vanishes with the rest.
        actor: Pseudonym of an account, or "operator", "system", a flow's name.
        action: A dotted verb, e.g. "decision.made".
        object: What it was done to, e.g. "record:r-1f".
        payload: Everything the trail shall tell; plain JSON data without NaN.
        utc: The moment; the present if left out.
    """
    text = canonical_json(payload)
    conn_head = conn.execute(statements.AUDIT_HEAD).one_or_none()
    if conn_head is None:
        raise StorageError(
            "audit_head",
            found="no row",
            expected="the head of the audit chain",
            next_step="Restore the last backup.",
        )
    entry = {
        "seq": conn_head.seq + 1,
        "utc": tables.utc_text(utc or datetime.now(UTC)),
        "actor": actor,
        "action": action,
        "object": object,
        "payload_sha256": _sha256(text),
        "prev": conn_head.hash,
    }
    digest = entry_hash(entry)
    conn.execute(statements.AUDIT_ENTRY, {**entry, "payload": text, "hash": digest})
    conn.execute(statements.MOVE_HEAD, {"to_seq": entry["seq"], "to_hash": digest})
    return int(entry["seq"])


def entry_hash(entry: Mapping[str, Any] | RowMapping) -> str:
    """SHA-256 (hex) of the canonical JSON of the seven fields of an entry."""
    return _sha256(
        canonical_json(
            {key: entry[key] for key in ("seq", "utc", "actor", "action", "object", "payload_sha256", "prev")}
        )
    )


def head(db: Database) -> tuple[int, str]:
    """Seq and hash of the newest entry; keep it outside the database to prove later that nothing was cut or
    rebuilt.
    """
    with db.read() as conn:
        row = conn.execute(select(tables.audit_head.c.seq, tables.audit_head.c.hash)).one()
    return int(row.seq), str(row.hash)


def entries(db: Database, *, object: str | None = None) -> list[dict[str, Any]]:
    """The trail in order, oldest first, with the payload as data; of one object if named."""
    query = select(tables.audit).order_by(tables.audit.c.seq)
    if object is not None:
        query = query.where(tables.audit.c.object == object)
    with db.read() as conn:
        rows = conn.execute(query).mappings().all()
    return [{**row, "payload": json.loads(row["payload"])} for row in rows]


def verify_chain(
    db: Database,
    *,
    expected_head: tuple[int, str] | None = None,
    expected_heads: Sequence[tuple[int, str]] = (),
) -> list[str]:
    """Everything that does not hold together, as sentences naming the seq; an empty list means whole.

    Args:
        db: The database.
        expected_head: A head kept elsewhere; finds a cut tail and a rebuilt chain.
        expected_heads: More of them, e.g. one a release.
    """
    heads = dict(expected_heads)
    if expected_head is not None:
        heads[expected_head[0]] = expected_head[1]
    commitments: dict[int, tuple[str, str]] = {}
    with db.read() as conn:
        kept = conn.execute(select(tables.audit_head.c.seq, tables.audit_head.c.hash)).one_or_none()
        newest = conn.execute(select(func.max(tables.audit.c.seq))).scalar() or 0
        problems = _verify_stamp(conn)
    # Many short reads up to a fixed entry: one long read would hold back writers, and history does not
    # change.
    upto = max(newest, kept.seq if kept is not None else 0)
    last = 0, GENESIS
    for seq, digest, sentences in _verify_links(db, upto, heads, commitments):
        last = seq, digest
        problems += sentences
    for seq in sorted(heads):
        if seq not in commitments:
            problems.append(f"audit {seq}: recorded elsewhere but not here; the end of the chain was cut off")
    if kept is None or (kept.seq, kept.hash) != last:
        told = "nothing" if kept is None else str(kept.seq)
        problems.append(f"audit {last[0]}: the last entry, but the kept head says {told}")
    return problems + _verify_rows(db, upto, commitments)


def _verify_links(
    db: Database, upto: int, heads: Mapping[int, str], commitments: dict[int, tuple[str, str]]
) -> Iterator[tuple[int, str, list[str]]]:
    """Walk the chain; fills `commitments` with {seq: (action, payload hash)}; yields seq, hash and what is
    wrong.
    """
    before_seq, before_hash = 0, GENESIS
    for row in _in_batches(db, tables.audit, tables.audit.c.seq, upto):
        problems: list[str] = []
        seq = int(row["seq"])
        if seq != before_seq + 1:
            problems.append(f"audit {before_seq + 1}: entry missing (the next one is {seq})")
        if row["prev"] != before_hash:
            problems.append(f"audit {seq}: does not continue the entry before it")
        if _sha256(row["payload"]) != row["payload_sha256"]:
            problems.append(f"audit {seq}: the payload was changed")
        if entry_hash(row) != row["hash"]:
            problems.append(f"audit {seq}: the entry was changed")
        if seq in heads and row["hash"] != heads[seq]:
            problems.append(f"audit {seq}: not the entry that was recorded elsewhere; the chain was rebuilt")
        commitments[seq] = (row["action"], row["payload_sha256"])
        before_seq, before_hash = seq, row["hash"]
        yield seq, before_hash, problems


def _verify_rows(db: Database, upto: int, commitments: Mapping[int, tuple[str, str]]) -> list[str]:
    """Every row of the tables that people's acts live in must be what its audit entry committed to, and be
    there.
    """
    problems: list[str] = []
    for table, told_by in COMMITTED.items():
        present: set[int] = set()
        for row in _in_batches(db, table, table.c.audit_seq, upto):
            seq = int(row["audit_seq"])
            present.add(seq)
            action, commitment = commitments.get(seq, ("", ""))
            name = f"audit {seq}: {table.name} row {row['id']}"
            if action not in told_by.values():
                problems.append(f"{name} has no audit entry")
            elif action != told_by.get(_kind(table, row)):
                problems.append(f"{name} is told as {action!r}, which it is not")
            elif _sha256(canonical_json(row_payload(table, row))) != commitment:
                problems.append(f"{name} was changed after it was written")
        for seq, (action, _) in commitments.items():
            if action in told_by.values() and seq not in present:
                problems.append(f"audit {seq}: its {table.name} row was deleted")
        problems += _verify_beyond(db, table, upto)
    return problems


def _verify_beyond(db: Database, table: Table, upto: int) -> list[str]:
    """Rows that claim an audit entry which does not exist at all."""
    orphans = (
        select(table.c.audit_seq, table.c.id)
        .where(table.c.audit_seq > upto)
        .where(~select(tables.audit.c.seq).where(tables.audit.c.seq == table.c.audit_seq).exists())
    )
    with db.read() as conn:
        return [
            f"audit {row[0]}: {table.name} row {row[1]} has no audit entry" for row in conn.execute(orphans)
        ]


def _verify_stamp(conn: Connection) -> list[str]:
    """The mark that tells a rehearsal from real work is checked against the entries that set it."""
    told = conn.execute(select(tables.audit.c.payload).where(tables.audit.c.seq == 1)).scalar()
    flag = conn.execute(select(tables.meta.c.value).where(tables.meta.c.key == "rehearsal")).scalar()
    became = conn.execute(
        select(tables.audit.c.seq).where(tables.audit.c.action == "database.rehearsal")
    ).first()
    if told is None or flag is None:
        return ["audit 1: the entry or the mark that tells a rehearsal from real work is missing"]
    try:
        expected = became is not None or bool(json.loads(told).get("rehearsal"))
    except (ValueError, AttributeError):
        return ["audit 1: the payload was changed"]
    return (
        []
        if (flag == "true") == expected
        else ["audit 1: the mark that tells a rehearsal from real work was changed"]
    )


def row_payload(table: Table, row: Mapping[str, Any] | RowMapping) -> dict[str, Any]:
    """What the audit entry of a row commits to: all its columns but its own number and the entry's.

    A column that came later is told only where it says something: rows older than it committed without it.
    """
    payload: dict[str, Any] = {}
    for column in table.columns:
        if column.name in ("id", "audit_seq"):
            continue
        value = row[column.name]
        if value is None and column.name in tables.LATER_COLUMNS:
            continue
        payload[column.name] = tables.utc_text(value) if isinstance(value, datetime) else value
    return payload


def record_row(
    conn: Connection,
    table: Table,
    values: Mapping[str, Any],
    *,
    actor: str,
    object: str,
    utc: datetime,
) -> int:
    """Insert a row of an audited table together with its audit entry; returns the entry's seq."""
    seq = append(
        conn,
        actor=actor,
        action=COMMITTED[table][_kind(table, values)],
        object=object,
        payload=row_payload(table, values),
        utc=utc,
    )
    conn.execute(table.insert(), {**values, "audit_seq": seq})
    return seq


def _kind(table: Table, row: Mapping[str, Any] | RowMapping) -> str:
    column = {"decisions": "kind", "gates": "event"}.get(table.name)
    return "" if column is None else str(row[column])


# Which action tells of a row, by the row's kind.
COMMITTED: dict[Table, dict[str, str]] = {
    tables.decisions: {"decision": "decision.made", "undo": "decision.undone"},
    tables.gates: {
        "opened": "gate.opened",
        "approve": "gate.approved",
        "reject": "gate.rejected",
        "reopened": "gate.reopened",
    },
    tables.comments: {"": "comment.added"},
    tables.flags: {"": "flag.set"},
    tables.settings_versions: {"": "settings.stored"},
}


def _in_batches(db: Database, table: Table, order: Any, upto: int) -> Iterator[RowMapping]:
    last = -1
    while True:
        query = select(table).where(order > last, order <= upto).order_by(order).limit(_BATCH)
        with db.read() as conn:
            rows = conn.execute(query).mappings().all()
        yield from rows
        if len(rows) < _BATCH:
            return
        last = rows[-1][order.name]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
