"""How far one person is in the round they label, and how long the rest will take them."""

import threading
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, exists, func, or_, select

from labeling.database import tables
from labeling.database.connection import Database
from labeling.database.pools import kept_from
from labeling.database.queue import LABELLING_STATES, REVIEW
from schemas.review import RoundState

_RECENT = 20  # own decisions the pace is the median of
_AT_WORK = timedelta(minutes=30)
_LONG = 10_000  # records in a round; a shorter one is counted anew every time
_KEPT_FOR = 20  # times as long as counting a long round took

_item = tables.queue_items.c
_lease = tables.assignments.c
_row = tables.decisions.c


@dataclass(frozen=True)
class Pace:
    """One person in the earliest round that is open (the last one, when none is).

    Attributes:
        round: None before the first round; then everything else is zero.
        items: Records under review; `done` of them have all the decisions they need.
        own: Records this person has decided or skipped.
        left: Records that still wait for this person or somebody else, as far as this person may take them.
        share: Of those, how many are likely to be theirs, with everybody who worked in the last half hour.
        seconds: Median time of their last 20 decisions; None before the first.
        seconds_total: Time they have spent on records of this round.
        at_work: People with a decision in the last half hour, this one included.

    In a round of 10,000 records and more, `items`, `done`, `left` and `share` may rest on counts that are 20 times as
    old as counting takes: some seconds at 100,000.
    """

    round: int | None
    state: RoundState | None
    items: int
    done: int
    own: int
    left: int
    share: int
    seconds: float | None
    seconds_total: float
    at_work: int


def pace(db: Database, annotator_id: str) -> Pace:
    """Where this person stands now."""
    with db.read() as conn:
        found = _round(conn)
        if found is None:
            return Pace(None, None, 0, 0, 0, 0, 0, None, 0.0, 0)
        number, state = found
        counted = _counted(conn, db, number)
        own, own_waiting = _own(conn, annotator_id, number)
        elsewhere = kept_from(conn, annotator_id, number)
        recent, total = _seconds(conn, annotator_id, number)
        at_work = _at_work(conn, annotator_id, number, db)
    left = max(0, counted.waiting - own_waiting - elsewhere) if state.value in LABELLING_STATES else 0
    return Pace(
        round=number,
        state=state,
        items=counted.done + counted.waiting,
        done=counted.done,
        own=own,
        left=left,
        share=min(left, -(-counted.wanted // at_work)),
        seconds=median(recent) if recent else None,
        seconds_total=total,
        at_work=at_work,
    )


@dataclass(frozen=True)
class _Counted:
    """Records under review: with all their decisions, without; decisions that these still want."""

    done: int
    waiting: int
    wanted: int


class _Kept:
    """The last counts of one database's rounds and until when each may be shown."""

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self.counts: dict[int, tuple[float, _Counted]] = {}


_kept: WeakKeyDictionary[Database, _Kept] = WeakKeyDictionary()
_kept_turn = threading.Lock()


def _counted(conn: Connection, db: Database, number: int) -> _Counted:
    """Counts a round. A long round's counts are shown for a while: counting takes a twentieth of the time at most.

    Every page asks for it after every decision, and on SQLite a reader holds back whoever commits.
    """
    with _kept_turn:
        kept = _kept.setdefault(db, _Kept())
    with kept.turn:
        until, counted = kept.counts.get(number, (0.0, None))
        begun = time.monotonic()
        if counted is not None and begun < until:
            return counted
        counted = _count(conn, number)
        if counted.done + counted.waiting >= _LONG:
            ended = time.monotonic()
            kept.counts[number] = (ended + (ended - begun) * _KEPT_FOR, counted)
        return counted


def _count(conn: Connection, number: int) -> _Counted:
    counts = {
        bool(row.done): row
        for row in conn.execute(
            select(
                _item.done,
                func.count().label("items"),
                func.sum(_item.overlap - _item.decided).label("wanted"),
            )
            .where(_item.round == number, _item.stage == REVIEW)
            .group_by(_item.done)
        )
    }
    return _Counted(
        done=counts[True].items if True in counts else 0,
        waiting=counts[False].items if False in counts else 0,
        wanted=int(counts[False].wanted) if False in counts else 0,
    )


def done_since(db: Database, annotator_id: str, since: datetime) -> int:
    """Standing decisions of a person since a moment, in every round; skips are not work done."""
    superseding = tables.decisions.alias()
    query = select(func.count()).where(
        _row.annotator_id == annotator_id,
        _row.kind == "decision",
        _row.action != "skip",
        _row.decided_at >= since,
        ~exists().where(superseding.c.supersedes == _row.annotation_id),
    )
    with db.read() as conn:
        return int(conn.execute(query).scalar_one())


def _round(conn: Connection) -> tuple[int, RoundState] | None:
    rows = conn.execute(
        select(tables.rounds.c.number, tables.rounds.c.state).order_by(tables.rounds.c.number)
    ).all()
    labelled = [row for row in rows if row.state in LABELLING_STATES]
    chosen = labelled[0] if labelled else rows[-1] if rows else None
    return None if chosen is None else (chosen.number, RoundState(chosen.state))


def _own(conn: Connection, annotator_id: str, number: int) -> tuple[int, int]:
    rows = conn.execute(
        select(_item.done, func.count().label("n"))
        .join(tables.assignments, _lease.item_id == _item.id)
        .where(_lease.account_id == annotator_id, or_(_lease.state == "decided", _lease.state == "skipped"))
        .where(_item.round == number, _item.stage == REVIEW)
        .group_by(_item.done)
    ).all()
    return sum(row.n for row in rows), sum(row.n for row in rows if not row.done)


def _seconds(conn: Connection, annotator_id: str, number: int) -> tuple[list[float], float]:
    mine = (_row.annotator_id == annotator_id, _row.round == number, _row.kind == "decision")
    recent = conn.execute(select(_row.seconds).where(*mine).order_by(_row.id.desc()).limit(_RECENT)).scalars()
    total = conn.execute(select(func.sum(_row.seconds)).where(*mine)).scalar()
    return [float(value) for value in recent], float(total or 0.0)


def _at_work(conn: Connection, annotator_id: str, number: int, db: Database) -> int:
    others = conn.execute(
        select(func.count(func.distinct(_row.annotator_id))).where(
            _row.round == number, _row.decided_at > db.now() - _AT_WORK, _row.annotator_id != annotator_id
        )
    ).scalar_one()
    return int(others) + 1
