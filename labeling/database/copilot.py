"""What the co-pilot knows and what it showed: the answers of the last hour, and each suggestion as it was made."""

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, exists, select
from sqlalchemy.exc import IntegrityError

from labeling.copilot import Recent
from labeling.database import tables
from labeling.database.connection import Database
from labeling.database.details import copilot_shown
from labeling.database.queue import Assignment
from schemas.review import Action, Purpose, Seen
from schemas.values import canonical_json

RECENT = timedelta(hours=1)
MOST_RECENT = 300

_row = tables.decisions.c
_item = tables.queue_items.c


def wants_help(held: Assignment) -> bool:
    """Whether a suggestion may be made now: none is there, and it is not labelled blind."""
    return held.suggestion is None and held.seen is Seen.ASSISTED


def recent_answers(db: Database, number: int) -> list[tuple[Recent, str]]:
    """Standing answers of the last hour with the account that gave them, the newest first.

    Not those on audit and control records: what everything is measured by teaches nobody.
    """
    superseding = tables.decisions.alias()
    query = (
        select(_row.record_id, _row.value_json, _row.annotator_id, _item.text)
        .join(tables.queue_items, _item.id == _row.item_id)
        .where(
            _row.round == number,
            _row.kind == "decision",
            _row.action.in_((Action.ACCEPT.value, Action.CORRECT.value)),
            _row.purpose.not_in((Purpose.AUDIT.value, Purpose.CONTROL.value)),
            _row.decided_at > db.now() - RECENT,
            ~exists().where(superseding.c.supersedes == _row.annotation_id),
        )
        .order_by(_row.id.desc())
        .limit(MOST_RECENT)
    )
    with db.read() as conn:
        rows = conn.execute(query).all()
    told = [(row, json.loads(row.value_json)) for row in rows]
    return [
        (Recent(row.record_id, row.text, value), row.annotator_id)
        for row, value in told
        if isinstance(value, str)
    ]


def shown_before(db: Database, item_id: int, account_id: str) -> dict[str, Any] | None:
    """What was suggested to this person on this record already; it stays the same for them."""
    with db.read() as conn:
        return copilot_shown(conn, item_id, account_id)


def keep(db: Database, item_id: int, account_id: str, suggestion: Mapping[str, Any]) -> dict[str, Any]:
    """Store a suggestion before it is shown; returns the one that counts, which is the first."""
    with db.write() as conn:
        first = copilot_shown(conn, item_id, account_id)
        if first is not None:
            return first
        try:
            with conn.begin_nested():
                _insert(conn, db, item_id, account_id, suggestion)
        except IntegrityError:  # PostgreSQL: two windows of one person at the same moment
            return copilot_shown(conn, item_id, account_id) or dict(suggestion)
    return dict(suggestion)


def _insert(
    conn: Connection, db: Database, item_id: int, account_id: str, suggestion: Mapping[str, Any]
) -> None:
    conn.execute(
        tables.copilot_suggestions.insert().values(
            item_id=item_id,
            account_id=account_id,
            suggestion_json=canonical_json(suggestion),
            at=db.now(),
        )
    )
