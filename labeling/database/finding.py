"""Finding records of a round: by what is suggested, how sure it is, who said what, what was flagged, what it says.

Who sees what is decided here and nowhere else. While a round is open an annotator sees the answers they gave and no
others', so that nobody is swayed; a lead sees every answer.
"""

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    RowMapping,
    Select,
    and_,
    cast,
    exists,
    func,
    literal,
    or_,
    select,
)

from labeling.database import accounts, tables
from labeling.database.accounts import Account, Right
from labeling.database.connection import Database
from labeling.database.queue import LABELLING_STATES, REVIEW
from labeling.database.statements import open_to
from schemas.errors import Forbidden, QueueError
from schemas.review import Action, RoundState, Seen
from schemas.values import Value, canonical_json

PAGE = 50

_item = tables.queue_items.c
_lease = tables.assignments.c
_row = tables.decisions.c
_flag = tables.flags.c


class Sight(StrEnum):
    """Whose answers a person sees on the records of a round."""

    OWN = "own"
    NAMELESS = "nameless"
    ALL = "all"


class State(StrEnum):
    """Which records of a round are looked for."""

    ALL = "all"
    OPEN = "open"
    DONE = "done"
    MINE = "mine"  # decided or skipped by the person who looks
    FLAGGED = "flagged"


class Order(StrEnum):
    """What comes first. By confidence, only records that have one are listed."""

    QUEUE = "queue"  # what is not finished first, as it comes to people
    UNSURE = "unsure"
    SURE = "sure"


@dataclass(frozen=True)
class Search:
    """What is looked for; empty means that it does not matter.

    Attributes:
        label: Among the suggested labels.
        answer: A label in an answer that the person may see.
        annotator: Account id; only for those who see all answers.
        record_ids: Only these, e.g. those with a finding; None for any.
        text: Part of the text, or a record id. Letters are found in both cases (on PostgreSQL: those whose cases the
            locale of the database knows).
        least, most: Bounds of the confidence, in [0, 1].
        after: Where the last page ended (`Page.after`).
    """

    number: int
    state: State = State.ALL
    label: str = ""
    answer: str = ""
    annotator: str = ""
    record_ids: Collection[str] | None = None
    text: str = ""
    least: float | None = None
    most: float | None = None
    order: Order = Order.QUEUE
    after: str = ""


@dataclass(frozen=True)
class Answer:
    """A standing decision; `annotator_id` is None where names are not for this person."""

    annotation_id: str
    annotator_id: str | None
    action: Action
    value: Value
    comment: str
    not_sure: bool
    seen: Seen
    seconds: float
    decided_at: datetime
    details: dict[str, Any]
    own: bool


@dataclass(frozen=True)
class Found:
    """A record of a round, as far as this person may see it.

    Attributes:
        answers: The person's own first.
        flagged: By this person; by anybody, for those who see all answers.
        free: They could decide it now.
        pool_id, for_account: Whose it is; both None means anybody's.
    """

    item_id: int
    round: int
    record_id: str
    text: str
    suggestion: dict[str, Any] | None
    blind: bool
    done: bool
    decided: int
    overlap: int
    answers: tuple[Answer, ...]
    flagged: bool
    free: bool
    pool_id: int | None
    for_account: str | None


@dataclass(frozen=True)
class Page:
    """Some of what was found; `after` goes into the next search, empty on the last page."""

    found: tuple[Found, ...]
    after: str


@dataclass(frozen=True)
class Looked:
    """One record with everything this person may see of it."""

    record: Found
    state: RoundState
    remarks: tuple[str, ...]


def find(db: Database, viewer_id: str, search: Search, *, limit: int = PAGE) -> Page:
    """A page of the records of a round that fit.

    Raises:
        Forbidden: This account may not look, or asks for answers that are not theirs to see.
        QueueError: No such round, or an `after` that no page has given.
    """
    with db.read() as conn:
        viewer = accounts.require(conn, viewer_id, Right.FIND_RECORDS)
        state = _state_of(conn, search.number)
        sight = sight_of(viewer, state)
        if search.annotator and sight is not Sight.ALL and search.annotator != viewer.id:
            raise Forbidden(
                f"annotator {search.annotator}",
                found="answers of somebody else",
                expected="your own",
                next_step="Leave the filter out.",
            )
        query = _fitting(conn, viewer, sight, state, search)
        ids = list(conn.execute(query.limit(limit + 1)).scalars())
        found = _as_found(conn, ids[:limit], viewer, sight, state, db.now())
        after = _cursor(conn, found[-1], search.order) if len(ids) > limit else ""
    return Page(tuple(found), after)


def all_found(db: Database, viewer_id: str, search: Search) -> list[int]:
    """The item ids of everything that fits, whatever page it would be on; for those who manage the queue.

    Raises:
        Forbidden: This account does not.
        QueueError: No such round.
    """
    with db.read() as conn:
        viewer = accounts.require(conn, viewer_id, Right.MANAGE_QUEUE)
        state = _state_of(conn, search.number)
        query = _fitting(conn, viewer, sight_of(viewer, state), state, replace(search, after=""))
        return list(conn.execute(query).scalars())


def look(db: Database, viewer_id: str, item_id: int) -> Looked:
    """One record.

    Raises:
        Forbidden: Not a record that this person may see (also when there is none of that number).
    """
    with db.read() as conn:
        viewer = accounts.require(conn, viewer_id, Right.FIND_RECORDS)
        number = conn.execute(select(_item.round).where(_item.id == item_id, _item.stage == REVIEW)).scalar()
        if number is None:
            raise _not_theirs(item_id)
        state = _state_of(conn, number)
        sight = sight_of(viewer, state)
        seen = select(_item.id).where(_item.id == item_id, _within_reach(viewer, sight, state))
        if conn.execute(seen).first() is None:
            raise _not_theirs(item_id)
        (record,) = _as_found(conn, [item_id], viewer, sight, state, db.now())
        return Looked(record, state, _remarks(conn, record, viewer, sight))


def sight_of(viewer: Account, state: RoundState) -> Sight:
    """Whose answers a person sees in a round of that state.

    Leads and auditors see all. Reviewers see others' answers without names once the round is signed, annotators once
    nothing of it changes any more.
    """
    if viewer.may(Right.SEE_BOARD):
        return Sight.ALL
    settled = state is RoundState.CLOSED or (
        viewer.may(Right.ADJUDICATE) and state.value not in LABELLING_STATES
    )
    return Sight.NAMELESS if settled else Sight.OWN


def _fitting(
    conn: Connection, viewer: Account, sight: Sight, state: RoundState, search: Search
) -> Select[Any]:
    query = select(_item.id).where(_item.round == search.number, _item.stage == REVIEW)
    own = search.state in (State.MINE, State.FLAGGED) or search.answer or search.annotator
    if not (own and sight is Sight.OWN):  # what a person answered or flagged is within their reach
        query = query.where(_within_reach(viewer, sight, state))
    match search.state:
        case State.OPEN:
            query = query.where(_item.done.is_(False))
        case State.DONE:
            query = query.where(_item.done.is_(True))
        case State.MINE:
            query = query.where(_item.id.in_(_with_lease(viewer.id, ("decided", "skipped"))))
        case State.FLAGGED:
            query = query.where(_item.id.in_(_flagged(None if sight is Sight.ALL else viewer.id)))
    if search.label:
        query = query.where(_holds(_item.suggested_labels, search.label))
    if search.answer or search.annotator:
        query = query.where(_item.id.in_(_answered(viewer, sight, search)))
    if search.record_ids is not None:
        query = query.where(_item.record_id.in_(_listed(conn, search.record_ids)))
    if search.text:
        query = query.where(or_(_says(conn, search.text), _item.record_id == search.text))
    if search.least is not None:
        query = query.where(_item.confidence >= search.least)
    if search.most is not None:
        query = query.where(_item.confidence <= search.most)
    return _ordered(query, search)


def _within_reach(viewer: Account, sight: Sight, state: RoundState) -> ColumnElement[bool]:
    """Others than leads, auditors and (after the signature) reviewers see what they were given or may take."""
    if sight is Sight.ALL or (sight is Sight.NAMELESS and viewer.may(Right.ADJUDICATE)):
        return _item.id.is_not(None)
    theirs = exists().where(
        _lease.item_id == _item.id,
        _lease.account_id == viewer.id,
        _lease.state.in_(("decided", "skipped", "leased")),
    )
    if state.value not in LABELLING_STATES:
        return theirs
    return or_(theirs, and_(_item.done.is_(False), open_to(viewer.id)))


def _with_lease(account_id: str, states: Sequence[str]) -> Select[Any]:
    return select(_lease.item_id).where(_lease.account_id == account_id, _lease.state.in_(states))


def _flagged(account_id: str | None) -> Select[Any]:
    """Items on which a newest flag is up: anybody's, or one person's."""
    later = tables.flags.alias()
    query = select(_flag.item_id).where(
        _flag.raised.is_(True),
        ~exists().where(
            later.c.item_id == _flag.item_id,
            later.c.annotator_id == _flag.annotator_id,
            later.c.id > _flag.id,
        ),
    )
    return query if account_id is None else query.where(_flag.annotator_id == account_id)


def _answered(viewer: Account, sight: Sight, search: Search) -> Select[Any]:
    """Items with a standing answer that this person may see, that holds the label, by that person."""
    query = _standing().where(_row.round == search.number).with_only_columns(_row.item_id)
    who = search.annotator or (viewer.id if sight is Sight.OWN else "")
    if who:
        query = query.where(_row.annotator_id == who)
    if search.answer:
        # canonical JSON: "A" | ["A","B"] | [{…,"label":"A",…}]; a quote or text that reads alike has its marks escaped
        told = canonical_json(search.answer)
        query = query.where(
            or_(
                _row.value_json == told,
                and_(_row.value_json.startswith('["'), _row.value_json.contains(told, autoescape=True)),
                _row.value_json.contains(f'"label":{told}', autoescape=True),
            )
        )
    return query


def _standing() -> Select[Any]:
    superseding = tables.decisions.alias()
    return select(tables.decisions).where(
        _row.kind == "decision", ~exists().where(superseding.c.supersedes == _row.annotation_id)
    )


def _holds(column: ColumnElement[str | None], label: str) -> ColumnElement[bool]:
    return column.contains(f"{tables.SEPARATOR}{label}{tables.SEPARATOR}", autoescape=True)


def _listed(conn: Connection, record_ids: Collection[str]) -> Select[Any]:
    """A set of any size as one parameter."""
    told = sorted(record_ids)
    if conn.dialect.name == "postgresql":
        return select(func.json_array_elements_text(cast(told, JSON)).column_valued("listed"))
    return select(func.json_each(json.dumps(told)).table_valued("value").c.value)


def _says(conn: Connection, text: str) -> ColumnElement[bool]:
    if conn.dialect.name == "sqlite":
        if text.isascii():
            # LIKE knows no case there, and lower() doubles the time
            return _item.text.contains(text, autoescape=True)
        # SQLite's own functions know the cases of ASCII letters only.
        return func.instr(func.casefold(_item.text), text.casefold()) > 0
    return _item.text.icontains(text, autoescape=True)


def _ordered(query: Select[Any], search: Search) -> Select[Any]:
    """In the order asked for, from where the last page ended; with the id last, so that none is told twice."""
    columns = _ORDERS[search.order]
    if search.order is not Order.QUEUE:
        query = query.where(_item.confidence.is_not(None))
    if search.after:
        query = query.where(_beyond(columns, _parsed(search.after, len(columns))))
    return query.order_by(*(column if rising else column.desc() for column, rising in columns))


# Columns and whether they rise; each is an index of its own, so that a page is read and not sorted.
_ORDERS: dict[Order, tuple[tuple[ColumnElement[Any], bool], ...]] = {
    Order.QUEUE: ((_item.done, True), (_item.priority, False), (_item.id, True)),
    Order.UNSURE: ((_item.confidence, True), (_item.id, True)),
    Order.SURE: ((_item.confidence, False), (_item.id, True)),
}


def _beyond(
    columns: Sequence[tuple[ColumnElement[Any], bool]], values: Sequence[float]
) -> ColumnElement[bool]:
    """Rows that come after the one with these values."""
    (column, rising), value = columns[0], _typed(columns[0][0], values[0])
    after: ColumnElement[bool] = column > value if rising else column < value
    if len(columns) == 1:
        return after
    return or_(after, and_(column == value, _beyond(columns[1:], values[1:])))


def _typed(column: ColumnElement[Any], value: float) -> Any:
    return literal(column.type.python_type(value), column.type)


def _cursor(conn: Connection, last: Found, order: Order) -> str:
    columns = [column for column, _ in _ORDERS[order]]
    values = conn.execute(select(*columns).where(_item.id == last.item_id)).one()
    return "_".join(repr(float(value)) for value in values)


def _parsed(after: str, count: int) -> list[float]:
    try:
        values = [float(part) for part in after.split("_")]
    except ValueError:
        values = []
    if len(values) != count or not all(math.isfinite(value) for value in values):
        raise QueueError(
            "after",
            found="something no page has given",
            expected="the end of a page",
            next_step="Start from the first page.",
        )
    return values


def _as_found(
    conn: Connection, ids: Sequence[int], viewer: Account, sight: Sight, state: RoundState, now: datetime
) -> list[Found]:
    items = {
        row["id"]: row for row in conn.execute(select(tables.queue_items).where(_item.id.in_(ids))).mappings()
    }
    answers = _answers(conn, ids, viewer, sight)
    flagged = set(
        conn.execute(
            _flagged(None if sight is Sight.ALL else viewer.id).where(_flag.item_id.in_(ids))
        ).scalars()
    )
    free = _free(conn, ids, viewer, state, now)
    return [
        Found(
            item_id=item_id,
            round=items[item_id]["round"],
            record_id=items[item_id]["record_id"],
            text=items[item_id]["text"],
            suggestion=_loaded(items[item_id]["suggestion_json"]),
            blind=items[item_id]["seen"] == Seen.BLIND.value,
            done=items[item_id]["done"],
            decided=items[item_id]["decided"],
            overlap=items[item_id]["overlap"],
            answers=tuple(answers.get(item_id, ())),
            flagged=item_id in flagged,
            free=item_id in free,
            pool_id=items[item_id]["pool_id"],
            for_account=items[item_id]["for_account"],
        )
        for item_id in ids
    ]


def _answers(conn: Connection, ids: Sequence[int], viewer: Account, sight: Sight) -> dict[int, list[Answer]]:
    query = _standing().where(_row.item_id.in_(ids))
    if sight is Sight.OWN:
        query = query.where(_row.annotator_id == viewer.id)
    # By the random id, not the time, where names are hidden: the order must not tell who was first.
    query = query.order_by((_row.annotator_id != viewer.id), _row.annotation_id)
    found: dict[int, list[Answer]] = {}
    for row in conn.execute(query).mappings():
        found.setdefault(row["item_id"], []).append(_as_answer(row, viewer, sight))
    return found


def _as_answer(row: RowMapping, viewer: Account, sight: Sight) -> Answer:
    own = row["annotator_id"] == viewer.id
    return Answer(
        annotation_id=row["annotation_id"],
        annotator_id=row["annotator_id"] if own or sight is Sight.ALL else None,
        action=Action(row["action"]),
        value=_loaded(row["value_json"]),
        comment=row["comment"],
        not_sure=row["not_sure"],
        seen=Seen(row["seen"]),
        seconds=row["seconds"],
        decided_at=row["decided_at"],
        details=_loaded(row["details_json"]) or {},
        own=own,
    )


def _free(
    conn: Connection, ids: Sequence[int], viewer: Account, state: RoundState, now: datetime
) -> set[int]:
    if state.value not in LABELLING_STATES or not viewer.may(Right.LABEL):
        return set()
    others = (
        select(func.count())
        .where(
            _lease.item_id == _item.id,
            _lease.account_id != viewer.id,
            or_(_lease.state == "decided", and_(_lease.state == "leased", _lease.expires_at > now)),
        )
        .scalar_subquery()
    )
    decided = exists().where(
        _lease.item_id == _item.id,
        _lease.account_id == viewer.id,
        _lease.state.in_(("decided", "skipped")),
    )
    return set(
        conn.execute(
            select(_item.id)
            .where(_item.id.in_(ids), _item.done.is_(False), open_to(viewer.id))
            .where(~decided, others < _item.overlap)
        ).scalars()
    )


def _remarks(conn: Connection, record: Found, viewer: Account, sight: Sight) -> tuple[str, ...]:
    said = tables.comments.c
    query = select(said.text).where(said.item_id == record.item_id).order_by(said.id)
    if sight is Sight.OWN or not (viewer.may(Right.ADJUDICATE) or viewer.may(Right.READ_AUDIT)):
        query = query.where(said.annotator_id == viewer.id)
    return tuple(conn.execute(query).scalars())


def _state_of(conn: Connection, number: int) -> RoundState:
    found = conn.execute(select(tables.rounds.c.state).where(tables.rounds.c.number == number)).scalar()
    if found is None:
        raise QueueError(
            f"round {number}", found="none", expected="a round", next_step="Choose another round."
        )
    return RoundState(found)


def _loaded(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def _not_theirs(item_id: int) -> Forbidden:
    return Forbidden(
        f"record {item_id}",
        found="not a record that you may see",
        expected="one you were given or may take",
        next_step="Go back to the records.",
    )
