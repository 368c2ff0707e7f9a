"""Many alike records at once, for the end where the suggestion is almost certainly right.

Only what was selected for its suggestion is ever in a batch: blind, audit and control records are what the suggestions
are measured by, and overlap records what people are measured by. Every record of a batch is a decision of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, exists, func, or_, select

from labeling.database import accounts, tables
from labeling.database.accounts import Right
from labeling.database.connection import Database
from labeling.database.queue import LABELLING_STATES, LEASE_S, REVIEW, Assignment, take_chosen
from labeling.database.statements import open_to
from schemas.review import Purpose, Seen

_item = tables.queue_items.c
_lease = tables.assignments.c


@dataclass(frozen=True)
class Group:
    """Records with the same suggested labels that this person could accept together.

    Attributes:
        labels: The suggested labels, empty where nothing is suggested to be there.
        key: What `take` is asked with.
        lowest, highest: Confidence in [0, 1].
    """

    labels: tuple[str, ...]
    key: str
    records: int
    lowest: float
    highest: float


def groups(db: Database, annotator_id: str, least: float, *, without: Sequence[int] = ()) -> list[Group]:
    """What this person could accept together, the largest group first.

    Args:
        db: The database.
        annotator_id: Account id.
        least: Confidence from which a record may be in a batch.
        without: Assignments that this person took out of a batch; they decide them one by one.
    """
    query = (
        select(
            _item.suggested_labels,
            func.count().label("records"),
            func.min(_item.confidence).label("lowest"),
            func.max(_item.confidence).label("highest"),
        )
        .where(_batchable(db, annotator_id, least, without))
        .group_by(_item.suggested_labels)
        .order_by(func.count().desc(), _item.suggested_labels)
    )
    with db.read() as conn:
        accounts.require(conn, annotator_id, Right.LABEL)
        rows = conn.execute(query).all()
    return [
        Group(
            labels=tuple(row.suggested_labels.split(tables.SEPARATOR)[1:-1]),
            key=row.suggested_labels,
            records=row.records,
            lowest=row.lowest,
            highest=row.highest,
        )
        for row in rows
    ]


def take(
    db: Database,
    annotator_id: str,
    key: str,
    *,
    least: float,
    count: int,
    without: Sequence[int] = (),
    lease_s: float = LEASE_S,
) -> list[Assignment]:
    """Reserve up to `count` records of a group for this person, the surest first."""
    query = (
        select(_item.id)
        .where(_batchable(db, annotator_id, least, without), _item.suggested_labels == key)
        .order_by(_item.confidence.desc(), _item.id)
        .limit(count)
    )
    with db.read() as conn:
        accounts.require(conn, annotator_id, Right.LABEL)
        chosen = list(conn.execute(query).scalars())
    return take_chosen(db, annotator_id, chosen, lease_s=lease_s) if chosen else []


def _batchable(db: Database, annotator_id: str, least: float, without: Sequence[int]) -> ColumnElement[bool]:
    labelling = select(tables.rounds.c.number).where(tables.rounds.c.state.in_(LABELLING_STATES))
    others = and_(_lease.state == "leased", _lease.expires_at > db.now(), _lease.account_id != annotator_id)
    taken = exists().where(
        _lease.item_id == _item.id,
        or_(_lease.state.in_(("decided", "skipped")), others, _lease.id.in_(without)),
    )
    return and_(
        _item.round.in_(labelling),
        _item.stage == REVIEW,
        _item.done.is_(False),
        _item.purpose == Purpose.SELECTED.value,
        _item.seen == Seen.ASSISTED.value,
        _item.confidence >= least,
        _item.suggested_labels.is_not(None),
        open_to(annotator_id),
        ~taken,
    )
