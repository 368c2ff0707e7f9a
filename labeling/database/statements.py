"""The SQL that every claim and every decision executes, built once: building a statement costs more than running it.

Parameters never bear a column's name, which SQLAlchemy keeps for values of an UPDATE.

Rows are locked `FOR NO KEY UPDATE`: `FOR UPDATE` holds up whoever inserts a row that only refers to them, and they may
hold the head of the audit chain, which the first one waits for.
"""

from typing import Any

from sqlalchemy import BindParameter, ColumnElement, Select, and_, bindparam, exists, func, or_, select

from labeling.database import tables
from schemas.review import RoundState

REVIEW = "review"
LABELLING_STATES = (RoundState.SAMPLING.value, RoundState.OPEN.value)

_account = tables.accounts.c
_item = tables.queue_items.c
_lease = tables.assignments.c
_row = tables.decisions.c
_member = tables.pool_members.c

_who: BindParameter[Any] = bindparam("who")
_number: BindParameter[Any] = bindparam("in_round")
_now: BindParameter[Any] = bindparam("at")


def assignments() -> Select[Any]:
    """Assignments with their item and round."""
    return (
        select(
            _lease.id.label("assignment_id"),
            _lease.account_id,
            _lease.state,
            _lease.expires_at,
            _lease.version,
            _item.version.label("item_version"),
            _item.id.label("item_id"),
            _item.round,
            _item.stage,
            _item.record_id,
            _item.purpose,
            _item.seen,
            _item.priority,
            _item.text,
            _item.suggestion_json,
        )
        .join(tables.queue_items, _item.id == _lease.item_id)
        .join(tables.rounds, tables.rounds.c.number == _item.round)
    )


def open_to(annotator_id: "str | ColumnElement[str] | BindParameter[Any]") -> ColumnElement[bool]:
    """Of `queue_items`: the record is anybody's, this person's, or a pool's that they belong to."""
    member = exists().where(_member.pool_id == _item.pool_id, _member.account_id == annotator_id)
    return and_(
        or_(_item.for_account.is_(None), _item.for_account == annotator_id),
        or_(_item.pool_id.is_(None), member),
    )


def active(now: Any = _now) -> ColumnElement[bool]:
    """Of `assignments`: in somebody's hands."""
    return and_(_lease.state == "leased", _lease.expires_at > now)


# Parameters: who
ACCOUNT = select(tables.accounts).where(_account.id == _who)
ACCOUNT_LOCKED = ACCOUNT.with_for_update(key_share=True)

# Parameters: who, at[, in_round]. What came back by undo (version > 0) is wanted first.
HELD = (
    assignments()
    .where(_lease.account_id == _who, active())
    .where(_item.stage == REVIEW, tables.rounds.c.state.in_(LABELLING_STATES))
    .order_by((_lease.version > 0).desc(), _item.round, _item.priority.desc(), _item.id)
)
HELD_OF_ROUND = HELD.where(_item.round == _number)

# FOR SHARE: a round cannot be signed between this look and what follows. Parameters: none or in_round
LABELLING_ROUNDS = (
    select(tables.rounds.c.number)
    .where(tables.rounds.c.state.in_(LABELLING_STATES))
    .order_by(tables.rounds.c.number)
    .with_for_update(read=True)
)
LABELLING_ROUND = LABELLING_ROUNDS.where(tables.rounds.c.number == _number)
ROUND = (
    select(tables.rounds.c.state, tables.rounds.c.rehearsal)
    .where(tables.rounds.c.number == _number)
    .with_for_update(read=True)
)

# Parameters: ids, to
PROLONG = (
    tables.assignments.update()
    .where(_lease.id.in_(bindparam("ids", expanding=True)))
    .values(expires_at=bindparam("to"))
)

_leases = (
    select(func.count()).select_from(tables.assignments).where(_lease.item_id == _item.id, active())
).scalar_subquery()
_seen_by_me = (
    exists()
    .where(_lease.item_id == _item.id, _lease.account_id == _who)
    .where(or_(_lease.state.in_(("decided", "skipped")), active()))
)
_free = and_(_item.done.is_(False), _leases + _item.decided < _item.overlap)
# Records that may be leased, the most urgent first. Parameters: in_round, who, at, wanted
CANDIDATES = (
    select(_item.id)
    .where(_item.round == _number, _item.stage == REVIEW, _free, ~_seen_by_me, open_to(_who))
    .order_by(_item.priority.desc(), _item.id)
    .limit(bindparam("wanted"))
    .with_for_update(skip_locked=True, key_share=True)
)
# Those of `ids` that still may. Parameters: ids, at
STILL_FREE = select(_item.id).where(_item.id.in_(bindparam("ids", expanding=True)), _free)
# Parameters: who, ids
KNOWN_TO = select(_lease.item_id).where(
    _lease.account_id == _who, _lease.item_id.in_(bindparam("ids", expanding=True))
)
# Parameters: who, ids, at, to
LEASE_AGAIN = (
    tables.assignments.update()
    .where(_lease.account_id == _who, _lease.item_id.in_(bindparam("ids", expanding=True)))
    .values(state="leased", assigned_at=_now, expires_at=bindparam("to"))
)
LEASE = tables.assignments.insert()

# Parameters: who, ids; the newest row of an item counts
FLAGS = (
    select(tables.flags.c.item_id, tables.flags.c.raised)
    .where(tables.flags.c.item_id.in_(bindparam("ids", expanding=True)), tables.flags.c.annotator_id == _who)
    .order_by(tables.flags.c.id)
)

# Parameters: assignment, who
ASSIGNMENT = assignments().where(_lease.id == bindparam("assignment"), _lease.account_id == _who)
# Parameters: who, key
EARLIER = select(tables.decisions).where(_row.annotator_id == _who, _row.idempotency_key == bindparam("key"))
# Parameters: item
ITEM_LOCKED = select(tables.queue_items).where(_item.id == bindparam("item")).with_for_update(key_share=True)
# Parameters: item, who, at
TAKEN_BY_OTHERS = (
    select(func.count())
    .select_from(tables.assignments)
    .where(_lease.item_id == bindparam("item"), _lease.account_id != _who)
    .where(or_(_lease.state == "decided", active()))
)
# Parameters: assignment, to_state, to_version
END_LEASE = (
    tables.assignments.update()
    .where(_lease.id == bindparam("assignment"))
    .values(state=bindparam("to_state"), version=bindparam("to_version"))
)
# Parameters: item, to_decided, to_done
COUNT_DECISION = (
    tables.queue_items.update()
    .where(_item.id == bindparam("item"))
    .values(decided=bindparam("to_decided"), done=bindparam("to_done"))
)

AUDIT_HEAD = select(tables.audit_head.c.seq, tables.audit_head.c.hash).with_for_update()
AUDIT_ENTRY = tables.audit.insert()
# Parameters: to_seq, to_hash
MOVE_HEAD = tables.audit_head.update().values(seq=bindparam("to_seq"), hash=bindparam("to_hash"))
