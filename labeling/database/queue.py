"""The review queue: handing records out, taking decisions in, taking them back.

Three promises are kept here. A record is never with more people at once than its overlap asks for. A decision
is durable and told in the audit chain before `decide` returns, and sending it again returns the first answer.
Nothing a person decided is overwritten: undo is a row that supersedes, and whoever comes second learns of it.
"""

import hashlib
import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, exists, func, or_, select

from labeling.database import accounts, chain, statements, tables
from labeling.database.accounts import Right
from labeling.database.connection import Database
from labeling.database.details import made_how
from labeling.database.statements import open_to
from schemas.errors import Forbidden, QueueError, VersionConflict
from schemas.review import Action, DecisionIn, Purpose, RoundState, Seen
from schemas.values import Value, canonical_json

LEASE_S = 900
REVIEW = statements.REVIEW
ADJUDICATION = "adjudication"
LABELLING_STATES = statements.LABELLING_STATES
# Raises a LabelingError (or ValueError) unless the value is legal for this text.
CheckValue = Callable[[Value, str], None]
# The one spelling of a legal value, e.g. a list sorted.
Normal = Callable[[Value], Value]

_CLAIM_TRIES = 5
_LARGEST_ID = 2**31 - 1

_item = tables.queue_items.c
_lease = tables.assignments.c
_row = tables.decisions.c


def _as_it_is(value: Value) -> Value:
    return value


@dataclass(frozen=True)
class Assignment:
    """A record in one person's hands.

    Attributes:
        version: Send it back with the decision; it grows whenever what this person sees changes.
        suggestion: None on blind records and where there is none.
        previous: The person's own last answer, when it came back by undo: {action, value, comment, not_sure}.
        expires_at: UTC; afterwards the record may go to somebody else.
    """

    assignment_id: int
    round: int
    item_id: int
    record_id: str
    purpose: Purpose
    seen: Seen
    priority: float
    text: str
    suggestion: dict[str, Any] | None
    version: int
    expires_at: datetime
    flagged: bool
    previous: dict[str, Any] | None


@dataclass(frozen=True)
class DecisionOut:
    """A decision that is stored.

    Attributes:
        repeated: This key had been sent before; nothing new was stored.
        version: The version of the assignment from now on.
    """

    annotation_id: str
    assignment_id: int
    round: int
    record_id: str
    action: Action
    value: Value
    version: int
    decided_at: datetime
    audit_seq: int
    repeated: bool


@dataclass(frozen=True)
class UndoOut:
    """A decision taken back.

    Attributes:
        assignment: The record, in this person's hands again; None when others have filled its overlap
            meanwhile.
    """

    annotation_id: str
    record_id: str
    audit_seq: int
    assignment: Assignment | None


@dataclass(frozen=True)
class Told:
    """One row of a person's own history."""

    annotation_id: str
    round: int
    record_id: str
    text: str
    action: Action
    value: Value
    comment: str
    not_sure: bool
    decided_at: datetime
    undone: bool
    stage: str


@dataclass(frozen=True)
class Remark:
    """A comment; who wrote it is known to the trail and shown to nobody but the writer."""

    text: str
    at: datetime
    own: bool


@dataclass(frozen=True)
class Card:
    """One decision on the adjudication screen, without a name."""

    annotation_id: str
    action: Action
    value: Value
    seen: Seen
    comment: str
    not_sure: bool
    seconds: float


@dataclass(frozen=True)
class Dispute:
    """A record that waits for an adjudicator (or was settled), with everything said about it.

    Attributes:
        cards: In an order that tells nothing about who decided when.
        settled: The adjudicator's answer {action, value, comment}, None while open.
    """

    round: int
    item_id: int
    record_id: str
    text: str
    reason: str
    suggestion: dict[str, Any] | None
    cards: tuple[Card, ...]
    remarks: tuple[str, ...]
    version: int
    settled: dict[str, Any] | None


class DecisionConflict(VersionConflict):
    """Somebody (perhaps the same person in another window) was faster.

    Attributes:
        sent: The decision that was not stored: {action, value, comment, version}.
        stored: What stands instead, in the same shape. Another annotator's answer is never in it, only that
            there is one: `{"by": "someone else"}`; adjudicators see each other's.
    """

    sent: Mapping[str, Any] = {}
    stored: Mapping[str, Any] = {}

    def with_versions(self, *, sent: Mapping[str, Any], stored: Mapping[str, Any]) -> "DecisionConflict":
        self.sent, self.stored = sent, stored
        return self


def claim(
    db: Database, annotator_id: str, number: int | None = None, *, lease_s: float = LEASE_S
) -> Assignment | None:
    """The record this person should decide now; None when there is nothing left for them.

    An unexpired lease of theirs is given back before a new record is taken.

    Args:
        db: The database.
        annotator_id: Account id (pseudonym).
        number: The round; None takes the first open one that has something.
        lease_s: How long the record stays reserved.

    Raises:
        Forbidden: This account may not label.
    """
    got = prefetch(db, annotator_id, number, count=1, lease_s=lease_s)
    return got[0] if got else None


def prefetch(
    db: Database, annotator_id: str, number: int | None = None, *, count: int, lease_s: float = LEASE_S
) -> list[Assignment]:
    """Up to `count` records reserved for this person, the next one first; as `claim` otherwise."""
    now = db.now()
    with db.read() as conn:
        accounts.require(conn, annotator_id, Right.LABEL)
        held = _held(conn, annotator_id, number, now)[:count]
        if len(held) == count and all(
            row["expires_at"] - now > timedelta(seconds=lease_s / 2) for row in held
        ):
            return _as_assignments(conn, held, annotator_id)
    until = now + timedelta(seconds=lease_s)

    def lease(conn: Connection) -> list[Assignment]:
        accounts.require(conn, annotator_id, Right.LABEL, lock=True)
        # Rounds before assignments, as whoever signs locks them.
        numbers = _labelling_rounds(conn, number)
        held = _held(conn, annotator_id, number, now)[:count]
        if held:
            mine = [row["assignment_id"] for row in held]
            conn.execute(statements.PROLONG, {"ids": mine, "to": until})
        wanted = count - len(held)
        for round_number in numbers:
            if wanted > 0:
                wanted -= _take(conn, annotator_id, round_number, wanted, now=now, until=until)
        return _as_assignments(conn, _held(conn, annotator_id, number, now)[:count], annotator_id)

    return db.together(lease)


def take_chosen(
    db: Database, annotator_id: str, item_ids: Sequence[int], *, lease_s: float = LEASE_S
) -> list[Assignment]:
    """Reserve exactly these records for this person, as far as they are free for them; in the order given.

    Records they hold already stay theirs; what is done, with others, or not theirs to take is left out.
    """
    with db.write() as conn:
        accounts.require(conn, annotator_id, Right.LABEL, lock=True)
        now = db.now()
        until = now + timedelta(seconds=lease_s)
        free = _free_for(conn, annotator_id, item_ids, _labelling_rounds(conn, None), now)
        _lease_to(conn, annotator_id, free, now=now, until=until)
        rows = {
            row["item_id"]: row
            for row in conn.execute(
                statements.assignments().where(
                    _lease.account_id == annotator_id, _lease.item_id.in_(item_ids), statements.active(now)
                )
            ).mappings()
        }
        return _as_assignments(conn, [rows[item_id] for item_id in item_ids if item_id in rows], annotator_id)


def assignment(db: Database, annotator_id: str, assignment_id: int) -> Assignment | None:
    """A record this person holds undecided; None when it is not (or no longer) with them."""
    with db.read() as conn:
        row = (
            conn.execute(
                statements.assignments().where(
                    _lease.id == assignment_id,
                    _lease.account_id == annotator_id,
                    statements.active(db.now()),
                    _item.stage == REVIEW,
                    tables.rounds.c.state.in_(LABELLING_STATES),
                )
            )
            .mappings()
            .one_or_none()
        )
        return None if row is None else _as_assignments(conn, [row], annotator_id)[0]


def release(db: Database, annotator_id: str) -> int:
    """Give back everything this person holds undecided (logging out); returns how many."""
    with db.write() as conn:
        given = conn.execute(
            tables.assignments.update()
            .where(_lease.account_id == annotator_id, _lease.state == "leased")
            .values(state="released")
        )
    return int(given.rowcount)


def decide(
    db: Database,
    annotator_id: str,
    decision: DecisionIn,
    *,
    check_value: CheckValue,
    normal: Normal = _as_it_is,
    rubric: Sequence[str] = (),
) -> DecisionOut:
    """Store one decision: its row, its audit entry and the item's counts in one transaction.

    A correction to exactly the suggested value is stored as an accept: the table says what happened.

    Args:
        db: The database.
        annotator_id: Account id (pseudonym).
        decision: What the browser sent.
        check_value: Says whether a value is legal for a text.
        normal: The one spelling of a legal value (lists sorted); stored instead of what was sent.
        rubric: What a value of this project is scored on.

    Raises:
        DecisionConflict: The record changed or went to somebody else since it was shown; nothing was stored.
        QueueError: The round takes no decisions, or action and value do not fit.
        Forbidden: This account may not label, or the assignment is not theirs.
    """

    def store(conn: Connection) -> DecisionOut:
        accounts.require(conn, annotator_id, Right.LABEL, lock=True)
        # Locking the account row put this person's acts in line: the assignment cannot change under us.
        held = _assignment_row(conn, decision.assignment_id, annotator_id)
        earlier = _earlier(conn, annotator_id, decision.idempotency_key)
        if earlier is not None:
            return _repeated(conn, earlier, decision, normal)
        if held["stage"] != REVIEW:
            raise _not_yours(decision.assignment_id)
        rehearsal = _require_state(conn, held["round"], LABELLING_STATES)
        item = _lock_item(conn, held["item_id"])
        now = db.now()
        _refuse_if_changed(conn, held, item, decision, now)
        suggested, details = made_how(conn, item, annotator_id, decision, _suggested(item), rubric)
        action, value = _settle_action(decision, suggested, item["text"], check_value, normal)
        return _store(
            conn,
            item,
            held,
            annotator_id=annotator_id,
            action=action,
            value=value,
            suggested=suggested,
            seconds=decision.seconds,
            comment=decision.comment,
            not_sure=decision.not_sure,
            key=decision.idempotency_key,
            now=now,
            rehearsal=rehearsal,
            details=details,
        )

    return db.together(store)


def undo(
    db: Database,
    annotator_id: str,
    *,
    annotation_id: str | None = None,
    idempotency_key: str | None = None,
    number: int | None = None,
    stage: str | None = None,
    lease_s: float = LEASE_S,
) -> UndoOut | None:
    """Take back a decision of one's own by a row that supersedes it; the record comes back into this person's
    hands.

    Args:
        db: The database.
        annotator_id: Account id (pseudonym).
        annotation_id: Which decision; None means the newest that still stands, so that calling it again goes
            further back (after a reload too).
        idempotency_key: Makes a repeated request without `annotation_id` harmless.
        number: Only decisions of this round.
        stage: Without `annotation_id`, only what was decided at this stage: an adjudication is not taken back from the
            page where records are labelled.
        lease_s: How long the record is reserved again.

    Returns:
        None when nothing is left to undo.

    Raises:
        QueueError: The round no longer takes changes.
        Forbidden: Not a decision of this person.
    """
    key = idempotency_key or f"undo-{secrets.token_hex(12)}"
    with db.write() as conn:
        accounts.require(conn, annotator_id, Right.LABEL, lock=True)
        earlier = _earlier(conn, annotator_id, key)
        if earlier is not None:
            return _already_undone(conn, earlier, annotator_id)
        target = _to_undo(conn, annotator_id, annotation_id, number, stage)
        if target is None:
            return None
        superseding = (
            conn.execute(select(tables.decisions).where(_row.supersedes == target["annotation_id"]))
            .mappings()
            .one_or_none()
        )
        if superseding is not None:
            return _already_undone(conn, superseding, annotator_id)
        of_stage = conn.execute(select(_item.stage).where(_item.id == target["item_id"])).scalar_one()
        allowed = LABELLING_STATES if of_stage == REVIEW else (RoundState.ADJUDICATING.value,)
        _require_state(conn, target["round"], allowed)
        item = _lock_item(conn, target["item_id"])
        held = _assignment_row(conn, target["assignment_id"], annotator_id)
        now = db.now()
        seq = _supersede(conn, target, held, key=key, now=now)
        counted = 0 if target["action"] == Action.SKIP.value else 1
        decided = item["decided"] - counted
        conn.execute(
            tables.queue_items.update()
            .where(_item.id == item["id"])
            .values(decided=decided, done=decided >= item["overlap"])
        )
        full = _taken_by_others(conn, item["id"], annotator_id, now) >= item["overlap"]
        conn.execute(
            tables.assignments.update()
            .where(_lease.id == held["assignment_id"])
            .values(
                state="released" if full else "leased",
                version=held["version"] + 1,
                expires_at=now + timedelta(seconds=lease_s),
            )
        )
        return UndoOut(
            annotation_id=target["annotation_id"],
            record_id=target["record_id"],
            audit_seq=seq,
            assignment=None if full else _reload(conn, held["assignment_id"], annotator_id),
        )


def history(
    db: Database, annotator_id: str, number: int | None = None, *, limit: int = 50, offset: int = 0
) -> list[Told]:
    """This person's own decisions, newest first, those taken back included and marked."""
    superseding = tables.decisions.alias()
    query = (
        select(
            tables.decisions,
            _item.text,
            _item.stage,
            exists().where(superseding.c.supersedes == _row.annotation_id).label("undone"),
        )
        .join(tables.queue_items, _item.id == _row.item_id)
        .where(_row.annotator_id == annotator_id, _row.kind == "decision")
        .order_by(_row.id.desc())
        .limit(limit)
        .offset(offset)
    )
    if number is not None:
        query = query.where(_row.round == number)
    with db.read() as conn:
        rows = conn.execute(query).mappings().all()
    return [
        Told(
            annotation_id=row["annotation_id"],
            round=row["round"],
            record_id=row["record_id"],
            text=row["text"],
            action=Action(row["action"]),
            value=_loaded(row["value_json"]),
            comment=row["comment"],
            not_sure=row["not_sure"],
            decided_at=row["decided_at"],
            undone=bool(row["undone"]),
            stage=row["stage"],
        )
        for row in rows
    ]


def decisions_of_round(db: Database, number: int) -> list[dict[str, Any]]:
    """The standing decisions of a round as rows of `schemas.tables.annotations`, sorted by audit_seq.

    Adjudications are among them with purpose "recheck". `annotator_id` is the pseudonym; `comment` is None
    where nothing was said; `value` is None for reject and skip.
    """
    query = _standing().where(_row.round == number).order_by(_row.audit_seq)
    with db.read() as conn:
        rows = conn.execute(query).mappings().all()
    return [_as_annotation(row) for row in rows]


def texts_shown(db: Database, number: int) -> dict[str, set[str]]:
    """SHA-256 of every text that people of a round are shown or decided on, by record; one each if all is whole."""
    item, shown = tables.queue_items.c, dict[str, set[str]]()
    texts = select(item.record_id, item.text, item.text_sha256).where(item.round == number)
    decided = select(_row.record_id, _row.text_sha256).where(_row.round == number).distinct()
    with db.read() as conn:
        for record_id, text, told in conn.execute(texts, execution_options={"yield_per": 1000}):
            shown.setdefault(record_id, set()).update((text_sha256(text), told))
        for record_id, told in conn.execute(decided):
            shown.setdefault(record_id, set()).add(told)
    return shown


def comment(db: Database, annotator_id: str, assignment_id: int, text: str) -> int:
    """Write a comment on a record one has been given; adjudicators read it. Returns the audit seq."""
    said = text.strip()
    if not said or len(said) > 4000:
        raise QueueError(
            "comment",
            found=f"{len(said)} characters",
            expected="1 to 4000",
            next_step="Write it shorter." if said else "Write something, or press Escape.",
        )
    _require_storable(said, "comment")
    with db.write() as conn:
        accounts.require(conn, annotator_id, Right.LABEL, lock=True)
        held = _assignment_row(conn, assignment_id, annotator_id)
        now = db.now()
        return chain.record_row(
            conn,
            tables.comments,
            {
                "item_id": held["item_id"],
                "record_id": held["record_id"],
                "annotator_id": annotator_id,
                "text": said,
                "at": now,
            },
            actor=annotator_id,
            object=f"record:{held['record_id']}",
            utc=now,
        )


def remarks(db: Database, annotator_id: str, assignment_id: int) -> list[Remark]:
    """One's own comments on the record of an assignment, oldest first; others' could sway."""
    with db.read() as conn:
        held = _assignment_row(conn, assignment_id, annotator_id)
        rows = conn.execute(
            select(tables.comments)
            .where(
                tables.comments.c.item_id == held["item_id"], tables.comments.c.annotator_id == annotator_id
            )
            .order_by(tables.comments.c.id)
        ).mappings()
        return [Remark(text=row["text"], at=row["at"], own=True) for row in rows]


def flag(db: Database, annotator_id: str, assignment_id: int, *, raised: bool) -> None:
    """Raise or take down this person's flag on a record; the same again changes nothing."""
    with db.write() as conn:
        accounts.require(conn, annotator_id, Right.LABEL, lock=True)
        held = _assignment_row(conn, assignment_id, annotator_id)
        if bool(_flagged(conn, [held["item_id"]], annotator_id)) == raised:
            return
        now = db.now()
        chain.record_row(
            conn,
            tables.flags,
            {
                "item_id": held["item_id"],
                "record_id": held["record_id"],
                "annotator_id": annotator_id,
                "raised": raised,
                "at": now,
            },
            actor=annotator_id,
            object=f"record:{held['record_id']}",
            utc=now,
        )


def disputes(
    db: Database, reviewer_id: str, number: int | None = None, *, only_open: bool = True, limit: int = 200
) -> list[Dispute]:
    """Records that wait for adjudication, those with the most different answers first.

    Raises:
        Forbidden: This account may not adjudicate.
    """
    query = (
        select(tables.queue_items)
        .where(_item.stage == ADJUDICATION)
        .order_by(_item.priority.desc(), _item.id)
    )
    if number is not None:
        query = query.where(_item.round == number)
    if only_open:
        query = query.where(_item.done.is_(False))
    with db.read() as conn:
        accounts.require(conn, reviewer_id, Right.ADJUDICATE)
        rows = conn.execute(query.limit(limit)).mappings().all()
        return [_as_dispute(conn, row) for row in rows]


def adjudicate(
    db: Database,
    reviewer_id: str,
    number: int,
    record_id: str,
    *,
    value: Value,
    comment: str = "",
    expected_version: int,
    idempotency_key: str,
    check_value: CheckValue,
    normal: Normal = _as_it_is,
    seconds: float = 0.0,
) -> DecisionOut:
    """Settle a disputed record. `value` None means it cannot be labelled, and then the comment must say why.

    Args:
        db: The database.
        reviewer_id: Account id of a reviewer or lead.
        number: The round.
        record_id: The record.
        value: The settled value.
        comment: Why; kept with the decision.
        expected_version: As `Dispute.version` was shown.
        idempotency_key: Made by the browser; sending it again returns the first answer.
        check_value: Says whether a value is legal for a text.
        normal: The one spelling of a legal value.
        seconds: Time on the screen.

    Raises:
        DecisionConflict: Another adjudicator settled it meanwhile; both answers are on the error.
        QueueError: No such dispute, or the round is not being adjudicated.
        Forbidden: This account may not adjudicate.
    """
    _require_storable(comment, "comment")
    with db.write() as conn:
        accounts.require(conn, reviewer_id, Right.ADJUDICATE, lock=True)
        earlier = _earlier(conn, reviewer_id, idempotency_key)
        if earlier is not None:
            if earlier["record_id"] != record_id or earlier["value_json"] not in _spellings(value, normal):
                raise _key_reused(idempotency_key)
            return _as_decision(earlier, repeated=True)
        rehearsal = _require_state(conn, number, (RoundState.ADJUDICATING.value,))
        item = (
            conn.execute(
                select(tables.queue_items)
                .where(_item.round == number, _item.stage == ADJUDICATION, _item.record_id == record_id)
                .with_for_update(key_share=True)
            )
            .mappings()
            .one_or_none()
        )
        if item is None:
            raise QueueError(
                f"record {record_id}",
                found=f"no dispute in round {number}",
                expected="a record that was sent to adjudication",
                next_step="Reload the page.",
            )
        now = db.now()
        _refuse_if_settled(conn, item, expected_version, value, comment)
        suggested = _suggested(item)
        if value is None:
            action = Action.REJECT
            _require_reason(comment, action)
        else:
            value = _checked(check_value, normal, value, item["text"])
            action = (
                Action.ACCEPT if suggested is not None and _dumped(value) == suggested else Action.CORRECT
            )
        held = _hand_over(conn, item, reviewer_id, now)
        return _store(
            conn,
            item,
            held,
            annotator_id=reviewer_id,
            action=action,
            value=value,
            suggested=suggested,
            seconds=seconds,
            comment=comment,
            not_sure=False,
            key=idempotency_key,
            now=now,
            rehearsal=rehearsal,
        )


def text_sha256(text: str) -> str:
    """The hash under which decisions commit to the text they were made on."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


# Handing out


def _labelling_rounds(conn: Connection, number: int | None) -> list[int]:
    if number is None:
        return list(conn.execute(statements.LABELLING_ROUNDS).scalars())
    return list(conn.execute(statements.LABELLING_ROUND, {"in_round": number}).scalars())


def _held(conn: Connection, annotator_id: str, number: int | None, now: datetime) -> list[RowMapping]:
    given = {"who": annotator_id, "at": now}
    if number is None:
        return list(conn.execute(statements.HELD, given).mappings())
    return list(conn.execute(statements.HELD_OF_ROUND, {**given, "in_round": number}).mappings())


def _take(
    conn: Connection, annotator_id: str, number: int, wanted: int, *, now: datetime, until: datetime
) -> int:
    """Lease up to `wanted` more records of a round to this person, the most urgent first; returns how many."""
    taken = 0
    for _ in range(_CLAIM_TRIES):
        given = {"in_round": number, "who": annotator_id, "at": now, "wanted": wanted - taken}
        chosen = list(conn.execute(statements.CANDIDATES, given).scalars())
        if not chosen:
            break
        if conn.dialect.name == "postgresql":
            # It locked the rows after it had counted; a lease that was committed in between shows only now.
            still = set(conn.execute(statements.STILL_FREE, {"ids": chosen, "at": now}).scalars())
            chosen = [item_id for item_id in chosen if item_id in still]
        _lease_to(conn, annotator_id, chosen, now=now, until=until)
        taken += len(chosen)
        if taken >= wanted:
            break
    return taken


def _free_for(
    conn: Connection, annotator_id: str, item_ids: Sequence[int], rounds: Sequence[int], now: datetime
) -> list[int]:
    """Those of the items that this person may take or has in hands, in the order given."""
    locked = (
        conn.execute(
            select(_item.id, _item.overlap, _item.done)
            .where(_item.id.in_(item_ids), _item.stage == REVIEW, _item.round.in_(rounds))
            .where(open_to(annotator_id))
            .order_by(_item.id)
            .with_for_update(key_share=True)
        )
        .mappings()
        .all()
    )
    decided = set(
        conn.execute(
            select(_lease.item_id).where(
                _lease.account_id == annotator_id,
                _lease.item_id.in_(item_ids),
                _lease.state.in_(("decided", "skipped")),
            )
        ).scalars()
    )
    free = {
        row["id"]
        for row in locked
        if not row["done"]
        and row["id"] not in decided
        and _taken_by_others(conn, row["id"], annotator_id, now) < row["overlap"]
    }
    return [item_id for item_id in item_ids if item_id in free]


def _lease_to(
    conn: Connection, annotator_id: str, item_ids: Sequence[int], *, now: datetime, until: datetime
) -> None:
    if not item_ids:
        return
    known = set(conn.execute(statements.KNOWN_TO, {"who": annotator_id, "ids": item_ids}).scalars())
    if known:
        again = {"who": annotator_id, "ids": sorted(known), "at": now, "to": until}
        conn.execute(statements.LEASE_AGAIN, again)
    new = [
        {
            "item_id": item_id,
            "account_id": annotator_id,
            "state": "leased",
            "assigned_at": now,
            "expires_at": until,
            "version": 0,
        }
        for item_id in item_ids
        if item_id not in known
    ]
    if new:
        conn.execute(statements.LEASE, new)


def _hand_over(conn: Connection, item: RowMapping, account_id: str, now: datetime) -> RowMapping:
    """The adjudicator's assignment of an item, made if there is none."""
    _lease_to(conn, account_id, [item["id"]], now=now, until=now)
    return (
        conn.execute(
            statements.assignments().where(_lease.item_id == item["id"], _lease.account_id == account_id)
        )
        .mappings()
        .one()
    )


def _reload(conn: Connection, assignment_id: int, annotator_id: str) -> Assignment:
    row = conn.execute(statements.assignments().where(_lease.id == assignment_id)).mappings().one()
    return _as_assignments(conn, [row], annotator_id)[0]


def _as_assignments(conn: Connection, rows: Sequence[RowMapping], annotator_id: str) -> list[Assignment]:
    flagged = _flagged(conn, [row["item_id"] for row in rows], annotator_id)
    return [
        Assignment(
            assignment_id=row["assignment_id"],
            round=row["round"],
            item_id=row["item_id"],
            record_id=row["record_id"],
            purpose=Purpose(row["purpose"]),
            seen=Seen(row["seen"]),
            priority=row["priority"],
            text=row["text"],
            suggestion=_loaded(row["suggestion_json"]),
            version=row["version"] + row["item_version"],
            expires_at=row["expires_at"],
            flagged=row["item_id"] in flagged,
            previous=_previous(conn, row["assignment_id"]) if row["version"] else None,
        )
        for row in rows
    ]


def _previous(conn: Connection, assignment_id: int) -> dict[str, Any] | None:
    row = (
        conn.execute(
            select(tables.decisions)
            .where(_row.assignment_id == assignment_id, _row.kind == "decision")
            .order_by(_row.id.desc())
            .limit(1)
        )
        .mappings()
        .one_or_none()
    )
    if row is None:
        return None
    scores = (_loaded(row["details_json"]) or {}).get("rubric")
    return {
        "action": row["action"],
        "value": _loaded(row["value_json"]),
        "comment": row["comment"],
        "not_sure": row["not_sure"],
        **({"scores": scores} if scores else {}),
    }


def _flagged(conn: Connection, item_ids: Sequence[int], annotator_id: str) -> set[int]:
    """Those items on which this person's flag is up."""
    if not item_ids:
        return set()
    rows = conn.execute(statements.FLAGS, {"ids": item_ids, "who": annotator_id}).all()
    newest = {row.item_id: row.raised for row in rows}
    return {item_id for item_id, raised in newest.items() if raised}


def _taken_by_others(conn: Connection, item_id: int, annotator_id: str, now: datetime) -> int:
    given = {"item": item_id, "who": annotator_id, "at": now}
    return int(conn.execute(statements.TAKEN_BY_OTHERS, given).scalar_one())


# Taking in


def _assignment_row(conn: Connection, assignment_id: int, annotator_id: str) -> RowMapping:
    if not 1 <= assignment_id <= _LARGEST_ID:
        raise _not_yours(assignment_id)
    given = {"assignment": assignment_id, "who": annotator_id}
    row = conn.execute(statements.ASSIGNMENT, given).mappings().one_or_none()
    if row is None:
        raise _not_yours(assignment_id)
    return row


def _earlier(conn: Connection, annotator_id: str, key: str) -> RowMapping | None:
    given = {"who": annotator_id, "key": key}
    return conn.execute(statements.EARLIER, given).mappings().one_or_none()


def _repeated(conn: Connection, earlier: RowMapping, decision: DecisionIn, normal: Normal) -> DecisionOut:
    """The first answer again; the same key with another decision is a client's mistake that must not pass as
    saved.
    """
    action = decision.action.value
    same_value = earlier["value_json"] in _spellings(decision.value, normal)
    if action == Action.CORRECT.value and earlier["value_json"] == earlier["suggestion_json"]:
        action = Action.ACCEPT.value
    same = (earlier["kind"], earlier["assignment_id"], earlier["action"], earlier["comment"])
    if not same_value or same != ("decision", decision.assignment_id, action, decision.comment):
        raise _key_reused(decision.idempotency_key)
    return _as_decision(earlier, repeated=True, item_version=_item_version(conn, earlier["item_id"]))


def _spellings(value: Value, normal: Normal) -> set[str | None]:
    """How a value that was sent may have been stored; an illegal one (then it was not) has only its own
    spelling.
    """
    try:
        return {_dumped(value), None if value is None else _dumped(normal(value))}
    except (TypeError, KeyError, AttributeError):
        return {_dumped(value)}


def _item_version(conn: Connection, item_id: int) -> int:
    return int(conn.execute(select(_item.version).where(_item.id == item_id)).scalar_one())


def _require_state(conn: Connection, number: int, allowed: Sequence[str]) -> bool:
    """Whether the round is a rehearsal, if it is in a state that allows the change; it stays so until we
    commit.
    """
    found = conn.execute(statements.ROUND, {"in_round": number}).one_or_none()
    if found is None or found.state not in allowed:
        raise QueueError(
            f"round {number}",
            found="no such round" if found is None else f"state {found.state}",
            expected=" or ".join(allowed),
            next_step="Nothing was saved: the round takes no such change now. Ask the lead to reopen it.",
        )
    return bool(found.rehearsal)


def _lock_item(conn: Connection, item_id: int) -> RowMapping:
    return conn.execute(statements.ITEM_LOCKED, {"item": item_id}).mappings().one()


def _refuse_if_changed(
    conn: Connection, held: RowMapping, item: RowMapping, decision: DecisionIn, now: datetime
) -> None:
    sent = {
        "action": decision.action.value,
        "value": decision.value,
        "comment": decision.comment,
        "version": decision.expected_version,
    }
    version = held["version"] + item["version"]
    if version != decision.expected_version:
        own = _previous(conn, held["assignment_id"]) or {}
        raise DecisionConflict(
            f"record {item['record_id']}",
            found=f"version {version}",
            expected=f"version {decision.expected_version}, as it was when it was shown",
            next_step="Your answer was not saved. Look at the record again and decide anew.",
        ).with_versions(sent=sent, stored={**own, "version": version, "by": "you, in another window"})
    if _taken_by_others(conn, item["id"], held["account_id"], now) >= item["overlap"]:
        raise DecisionConflict(
            f"record {item['record_id']}",
            found="the reservation ran out and the record went to someone else",
            expected="a record still reserved for you",
            next_step="Your answer was not saved. Go on with the next record.",
        ).with_versions(sent=sent, stored={"version": version, "by": "someone else"})


def _refuse_if_settled(
    conn: Connection, item: RowMapping, expected_version: int, value: Value, said: str
) -> None:
    version = _dispute_version(conn, item)
    if version == expected_version and not item["done"]:
        return
    standing = _settled(conn, item["id"]) or {}
    raise DecisionConflict(
        f"record {item['record_id']}",
        found=f"version {version}" + (", settled by another adjudicator" if standing else ""),
        expected=f"version {expected_version}, as it was when it was shown",
        next_step="Your answer was not saved. Compare the two; undo the first if yours should stand.",
    ).with_versions(
        sent={"value": value, "comment": said, "version": expected_version},
        stored={**standing, "version": version, "by": "another adjudicator"},
    )


def _settle_action(
    decision: DecisionIn, suggested: str | None, text: str, check_value: CheckValue, normal: Normal
) -> tuple[Action, Value]:
    """Whether action, value and what was shown fit together."""
    _require_storable(decision.comment, "comment")
    value_json = _dumped(decision.value)
    if decision.action in (Action.REJECT, Action.SKIP):
        _require_reason(decision.comment, decision.action)
        if decision.value is not None:
            raise _does_not_fit(decision.action, "a value", "none")
        return decision.action, None
    if decision.value is None:
        raise _does_not_fit(decision.action, "no value", "a value (an empty list says that there is nothing)")
    if decision.action is Action.ACCEPT:
        if suggested is None:
            raise _does_not_fit(
                decision.action, "no suggestion was shown", "a correct with a value of your own"
            )
        if value_json != suggested:
            raise _does_not_fit(
                decision.action, "a value that is not the suggested one", "the suggested value"
            )
        return Action.ACCEPT, decision.value
    value = _checked(check_value, normal, decision.value, text)
    return (Action.ACCEPT if _dumped(value) == suggested else Action.CORRECT), value


def _checked(check_value: CheckValue, normal: Normal, value: Value, text: str) -> Value:
    """The one spelling of a legal value; the check comes first, for what is illegal may not have one."""
    try:
        check_value(value, text)
    except ValueError as error:
        raise QueueError(
            "value", found=str(error), expected="a legal value", next_step="Correct it and save again."
        ) from error
    return normal(value)


def _require_reason(said: str, action: Action) -> None:
    if not said.strip():
        raise _does_not_fit(action, "no reason", "a reason in the comment")


def _store(
    conn: Connection,
    item: RowMapping,
    held: RowMapping,
    *,
    annotator_id: str,
    action: Action,
    value: Value,
    suggested: str | None,
    seconds: float,
    comment: str,
    not_sure: bool,
    key: str,
    now: datetime,
    rehearsal: bool,
    details: str | None = None,
) -> DecisionOut:
    row = {
        "annotation_id": f"d-{secrets.token_hex(8)}",
        "kind": "decision",
        "round": item["round"],
        "item_id": item["id"],
        "assignment_id": held["assignment_id"],
        "record_id": item["record_id"],
        "text_sha256": item["text_sha256"],
        "annotator_id": annotator_id,
        "action": action.value,
        "value_json": _dumped(value),
        "seen": item["seen"],
        "purpose": item["purpose"],
        "suggestion_json": suggested,
        "seconds": float(seconds),
        "comment": comment,
        "not_sure": not_sure,
        "idempotency_key": key,
        "version": held["version"],
        "supersedes": None,
        "decided_at": now,
        "rehearsal": rehearsal,
        "details_json": details,
    }
    skipped = action is Action.SKIP
    conn.execute(
        statements.END_LEASE,
        {
            "assignment": held["assignment_id"],
            "to_state": "skipped" if skipped else "decided",
            "to_version": held["version"] + 1,
        },
    )
    if not skipped:
        decided = item["decided"] + 1
        counted = {"item": item["id"], "to_decided": decided, "to_done": decided >= item["overlap"]}
        conn.execute(statements.COUNT_DECISION, counted)
    # Last, because on PostgreSQL the head of the chain is where all writers meet.
    seq = chain.record_row(
        conn, tables.decisions, row, actor=annotator_id, object=f"record:{item['record_id']}", utc=now
    )
    return _as_decision({**row, "audit_seq": seq}, repeated=False, item_version=item["version"])


def _as_decision(
    row: Mapping[str, Any] | RowMapping, *, repeated: bool, item_version: int = 0
) -> DecisionOut:
    return DecisionOut(
        annotation_id=row["annotation_id"],
        assignment_id=row["assignment_id"],
        round=row["round"],
        record_id=row["record_id"],
        action=Action(row["action"]),
        value=_loaded(row["value_json"]),
        version=row["version"] + 1 + item_version,
        decided_at=row["decided_at"],
        audit_seq=row["audit_seq"],
        repeated=repeated,
    )


# Taking back


def _to_undo(
    conn: Connection, annotator_id: str, annotation_id: str | None, number: int | None, stage: str | None
) -> RowMapping | None:
    if annotation_id is not None:
        row = (
            conn.execute(
                select(tables.decisions).where(
                    _row.annotation_id == annotation_id,
                    _row.annotator_id == annotator_id,
                    _row.kind == "decision",
                )
            )
            .mappings()
            .one_or_none()
        )
        if row is None:
            raise Forbidden(
                f"decision {annotation_id}",
                found="not a decision of yours",
                expected="one of your own",
                next_step="Reload the page.",
            )
        return row
    query = (
        _standing()
        .join(tables.rounds, tables.rounds.c.number == _row.round)
        .where(
            _row.annotator_id == annotator_id,
            tables.rounds.c.state.in_((*LABELLING_STATES, RoundState.ADJUDICATING.value)),
            or_(
                tables.rounds.c.state != RoundState.ADJUDICATING.value,
                _row.purpose == Purpose.RECHECK.value,
            ),
        )
        .order_by(_row.id.desc())
        .limit(1)
    )
    if number is not None:
        query = query.where(_row.round == number)
    if stage is not None:
        adjudicated = _row.purpose == Purpose.RECHECK.value
        query = query.where(adjudicated if stage == ADJUDICATION else ~adjudicated)
    return conn.execute(query).mappings().one_or_none()


def _supersede(conn: Connection, target: RowMapping, held: RowMapping, *, key: str, now: datetime) -> int:
    row = {
        **{column.name: target[column.name] for column in tables.decisions.columns},
        "annotation_id": f"u-{secrets.token_hex(8)}",
        "kind": "undo",
        "idempotency_key": key,
        "version": held["version"],
        "supersedes": target["annotation_id"],
        "decided_at": now,
        "seconds": 0.0,
        "comment": "",
        "details_json": None,
    }
    del row["id"], row["audit_seq"]
    return chain.record_row(
        conn,
        tables.decisions,
        row,
        actor=target["annotator_id"],
        object=f"record:{target['record_id']}",
        utc=now,
    )


def _already_undone(conn: Connection, undoing: RowMapping, annotator_id: str) -> UndoOut:
    if undoing["kind"] != "undo":
        raise _key_reused(undoing["idempotency_key"])
    held = _assignment_row(conn, undoing["assignment_id"], annotator_id)
    return UndoOut(
        annotation_id=undoing["supersedes"],
        record_id=undoing["record_id"],
        audit_seq=undoing["audit_seq"],
        assignment=_as_assignments(conn, [held], annotator_id)[0] if held["state"] == "leased" else None,
    )


# Reading


def _standing() -> Select[Any]:
    """Decisions that no later row supersedes."""
    superseding = tables.decisions.alias()
    return select(tables.decisions).where(
        _row.kind == "decision", ~exists().where(superseding.c.supersedes == _row.annotation_id)
    )


def _as_annotation(row: RowMapping) -> dict[str, Any]:
    return {
        "annotation_id": row["annotation_id"],
        "record_id": row["record_id"],
        "annotator_id": row["annotator_id"],
        "value": _loaded(row["value_json"]),
        "action": row["action"],
        "seen": row["seen"],
        "purpose": row["purpose"],
        "suggestion_value": _loaded(row["suggestion_json"]),
        "seconds": row["seconds"],
        "decided_at": row["decided_at"],
        "comment": row["comment"] or None,
        "not_sure": row["not_sure"],
        "audit_seq": row["audit_seq"],
        "rehearsal": row["rehearsal"],
        "details": row["details_json"],
    }


def _as_dispute(conn: Connection, item: RowMapping) -> Dispute:
    rows = (
        conn.execute(
            _standing()
            .where(
                _row.round == item["round"], _row.record_id == item["record_id"], _row.item_id != item["id"]
            )
            # The random id, not the time: the order of the cards must not tell who was first.
            .order_by(_row.annotation_id)
        )
        .mappings()
        .all()
    )
    said = conn.execute(
        select(tables.comments.c.text)
        .join(tables.queue_items, _item.id == tables.comments.c.item_id)
        .where(_item.round == item["round"], tables.comments.c.record_id == item["record_id"])
        .order_by(tables.comments.c.id)
    ).scalars()
    return Dispute(
        round=item["round"],
        item_id=item["id"],
        record_id=item["record_id"],
        text=item["text"],
        reason=item["reason"],
        suggestion=_loaded(item["suggestion_json"]),
        cards=tuple(
            Card(
                annotation_id=row["annotation_id"],
                action=Action(row["action"]),
                value=_loaded(row["value_json"]),
                seen=Seen(row["seen"]),
                comment=row["comment"],
                not_sure=row["not_sure"],
                seconds=row["seconds"],
            )
            for row in rows
        ),
        remarks=tuple(said),
        version=_dispute_version(conn, item),
        settled=_settled(conn, item["id"]),
    )


def _dispute_version(conn: Connection, item: RowMapping) -> int:
    """Grows with every adjudication and undo, whoever made it."""
    changes = conn.execute(select(func.count()).where(_row.item_id == item["id"])).scalar_one()
    return int(changes) + int(item["version"])


def _settled(conn: Connection, item_id: int) -> dict[str, Any] | None:
    row = conn.execute(_standing().where(_row.item_id == item_id)).mappings().one_or_none()
    if row is None:
        return None
    return {
        "action": row["action"],
        "value": _loaded(row["value_json"]),
        "comment": row["comment"],
        "annotation_id": row["annotation_id"],
    }


def _suggested(item: RowMapping) -> str | None:
    """Canonical JSON of the value that was shown."""
    suggestion = _loaded(item["suggestion_json"])
    return None if suggestion is None else _dumped(suggestion["value"])


def _loaded(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def _dumped(value: Value) -> str | None:
    if value is None:
        return None
    try:
        text = canonical_json(value)
    except ValueError as error:
        raise QueueError(
            "value", found="not a number", expected="plain JSON data", next_step="Send another value."
        ) from error
    if not storable(value):
        raise _not_storable("value")
    return text


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _strings(key)
            yield from _strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)


def storable(value: Any) -> bool:
    """Whether every text in a value can be stored.

    PostgreSQL cannot hold NUL, and no UTF-8 file can hold half a surrogate pair: refused alike on both
    databases.
    """
    return not any(
        "\x00" in text or any("\ud800" <= char <= "\udfff" for char in text) for text in _strings(value)
    )


def _require_storable(text: str, name: str) -> None:
    if not storable(text):
        raise _not_storable(name)


def _not_storable(name: str) -> QueueError:
    return QueueError(
        name,
        found="a character that cannot be stored (NUL or half a surrogate pair)",
        expected="text",
        next_step="Remove it and save again.",
    )


def _does_not_fit(action: Action, found: str, expected: str) -> QueueError:
    return QueueError(
        f"action {action.value}",
        found=found,
        expected=expected,
        next_step="Nothing was saved. Send it again corrected.",
    )


def _not_yours(assignment_id: int) -> Forbidden:
    return Forbidden(
        f"assignment {assignment_id}",
        found="not one of yours",
        expected="a record that was given to you",
        next_step="Ask for the next record.",
    )


def _key_reused(key: str) -> QueueError:
    return QueueError(
        "idempotency_key",
        found=f"{key!r}, already used for another decision",
        expected="a new key a decision",
        next_step="Nothing was saved. Make a new key.",
    )
