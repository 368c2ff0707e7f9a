"""Rounds and gates: which round takes decisions, what keeps it from being signed, who signed it and why.

A round moves only along these arrows, each one guarded UPDATE:

    (none) -> sampling -> open -> signed -> adjudicating -> closed
    (none) -> open        open <- signed    signed -> closed

A gate is a fact in the database; Prefect only carries the signal.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, and_, exists, func, select

from labeling.database import accounts, chain, queue, tables
from labeling.database.accounts import RIGHTS, Right
from labeling.database.connection import Database, is_rehearsal
from labeling.database.pools import pool_ids, without_takers
from labeling.database.queue import ADJUDICATION, LABELLING_STATES, REVIEW
from schemas.errors import GateRefused, QueueError
from schemas.review import Action, GateRecord, Purpose, QueueItem, Role, RoundState, Seen, SignOff, Verdict
from schemas.values import canonical_json, content_hash

# A record's text, and what is suggested for it: {"value": …, "confidence": …, "runner_up": …, …} or None.
Content = Mapping[str, tuple[str, dict[str, Any] | None]]

_BULK = 2_000
_NAMED = 5  # record ids named in a sentence

_item = tables.queue_items.c
_lease = tables.assignments.c
_row = tables.decisions.c
_round = tables.rounds.c

PURPOSE_WORDS = {
    Purpose.SAMPLE: "of the setup sample",
    Purpose.AUDIT: "of the random slice that no loop sees",
    Purpose.SELECTED: "selected as least sure",
    Purpose.OVERLAP: "that several annotators label",
    Purpose.CONTROL: "with a known answer",
    Purpose.RECHECK: "sent back by quality assurance",
}


@dataclass(frozen=True)
class PurposeProgress:
    """Counts of one purpose in a round; `wanted` and `decisions` count standing decisions, skips not among
    them.
    """

    items: int
    done: int
    wanted: int
    decisions: int


@dataclass(frozen=True)
class RoundProgress:
    """Where a round stands.

    Attributes:
        items: Records under review (adjudications not counted).
        done: Those with as many decisions as their overlap.
        decisions: Standing decisions, skips not counted.
        per_annotator: Standing decisions by pseudonym, skips not counted.
        skipped_by_all: Open records that nobody who may label has left to look at.
        seconds_median: Median time a record was on the screen; None before the first decision.
        disputes: Records sent to adjudication; `disputes_open` of them wait.
    """

    number: int
    state: RoundState
    rehearsal: bool
    items: int
    done: int
    open: int
    decisions: int
    skips: int
    per_purpose: dict[Purpose, PurposeProgress]
    per_annotator: dict[str, int]
    skipped_by_all: int
    seconds_median: float | None
    flagged: int
    disputes: int
    disputes_open: int


def open_round(db: Database, number: int, *, state: RoundState, rehearsal: bool, actor: str) -> None:
    """Make a round, or move it from sampling to open; asking again for the state it has changes nothing.

    Args:
        db: The database.
        number: 1 is the first (0 may hold the setup sample).
        state: `SAMPLING` or `OPEN`.
        rehearsal: Simulated annotators will decide. A database without rounds is stamped for ever by its
            first rehearsal round; real and simulated rounds never share one.
        actor: Pseudonym or name of the flow, for the audit trail.

    Raises:
        QueueError: The round is past that state, or real and simulated work would mix.
    """
    if state not in (RoundState.SAMPLING, RoundState.OPEN):
        raise _wrong_state(number, state.value, "sampling or open")
    with db.write() as conn:
        stamped = _stamp_rehearsal(conn, db, number, wanted=rehearsal, actor=actor)
        current = _state(conn, number, lock=True)
        if current is state:
            return
        if current is None:
            conn.execute(
                tables.rounds.insert().values(
                    number=number, state=state.value, rehearsal=stamped, opened_at=db.now()
                )
            )
        elif (current, state) == (RoundState.SAMPLING, RoundState.OPEN):
            _move(conn, number, current, state)
        else:
            raise _wrong_state(number, current.value, "none, or sampling")
        _tell(conn, db, number, actor, "round.opened", {"state": state.value, "rehearsal": stamped})


def add_items(db: Database, number: int, items: Sequence[QueueItem], content: Content, actor: str) -> int:
    """Put records before people; returns how many were new. Records already in the round's queue stay as they
    are.

    Done in transactions of a few thousand, so that annotators are not kept waiting; broken off, it is simply
    called again. A blind item's suggestion is not stored at all.

    Args:
        db: The database.
        number: A round that is sampling or open.
        items: What is put before people.
        content: By record_id, the text and the suggestion (at least `value`; also `confidence`, `runner_up`,
            `scores` [{label, probability}], `evidence` [{text, value}], `part_confidence`, `by` are shown).
        actor: Pseudonym or name of the flow.

    Raises:
        QueueError: The round takes no items, or a text is missing or cannot be stored.
    """
    _require_content(number, [item.record_id for item in items], content)
    added = 0
    for start in range(0, len(items), _BULK):
        added += _add_batch(db, number, items[start : start + _BULK], content, actor)
        if start in (0, 10 * _BULK):
            _count_anew(db)
    return added


def state_of(db: Database, number: int) -> RoundState | None:
    """The state of a round; None when there is none of that number."""
    with db.read() as conn:
        return _state(conn, number)


def round_numbers(db: Database) -> list[int]:
    """All rounds, oldest first."""
    with db.read() as conn:
        return list(conn.execute(select(_round.number).order_by(_round.number)).scalars())


def progress(db: Database, number: int) -> RoundProgress:
    """Where a round stands.

    Raises:
        QueueError: No such round.
    """
    with db.read() as conn:
        row = conn.execute(select(tables.rounds).where(_round.number == number)).mappings().one_or_none()
        if row is None:
            raise _no_round(number)
        purposes = _by_purpose(conn, number)
        annotators, skips = _by_annotator(conn, number)
        disputes, disputes_open = _disputes(conn, number)
        return RoundProgress(
            number=number,
            state=RoundState(row["state"]),
            rehearsal=row["rehearsal"],
            items=sum(part.items for part in purposes.values()),
            done=sum(part.done for part in purposes.values()),
            open=sum(part.items - part.done for part in purposes.values()),
            decisions=sum(part.decisions for part in purposes.values()),
            skips=skips,
            per_purpose=purposes,
            per_annotator=annotators,
            skipped_by_all=len(_stuck(conn, number)),
            seconds_median=_seconds_median(conn, number),
            flagged=_flagged(conn, number),
            disputes=disputes,
            disputes_open=disputes_open,
        )


def missing(db: Database, number: int) -> list[str]:
    """What keeps a round from being signed (or, after signing, from being closed), as sentences; empty means
    nothing.

    Raises:
        QueueError: No such round.
    """
    with db.read() as conn:
        return _missing(conn, number)


def sign(db: Database, number: int, sign_off: SignOff, figures: Mapping[str, Any]) -> GateRecord:
    """Decide the review gate of a round.

    Approving signs it: no decision can be added or undone from then on. Rejecting keeps it open, or opens it
    again, and stores the reason. The same verdict again returns what was stored.

    Args:
        db: The database.
        number: The round.
        sign_off: Who, what, and why.
        figures: What the signer was shown; plain JSON data, stored with the verdict.

    Raises:
        GateRefused: Something is missing (all of it is listed), the name is not an account that may sign, a
            rejection has no reason, or the round is past the gate.
    """
    with db.write() as conn:
        account = _signer(conn, sign_off.signed_by)
        state = _state(conn, number, lock=True)
        if state is None:
            raise _no_round(number)
        last = _last_event(conn, "review", number)
        if last is not None and _same_verdict(last, sign_off):
            return _as_gate_record(last)
        if sign_off.verdict == Verdict.REJECT.value:
            _require_reason(number, sign_off.note)
            if state not in (RoundState.OPEN, RoundState.SIGNED):
                raise _gate_refused(number, f"state {state.value}", "a round that is open or signed")
            if state is RoundState.SIGNED:
                _move(conn, number, RoundState.SIGNED, RoundState.OPEN)
        else:
            if state is not RoundState.OPEN:
                raise _gate_refused(number, f"state {state.value}", "an open round")
            lacking = _missing(conn, number)
            if lacking:
                raise _gate_refused(number, " ".join(lacking), "a finished round")
            _move(conn, number, RoundState.OPEN, RoundState.SIGNED)
            _release_all(conn, number)
        row = _record_gate(
            conn, db, "review", number, sign_off.verdict, account=account, note=sign_off.note, figures=figures
        )
    return _as_gate_record(row)


def reopen(db: Database, number: int, *, by: str, note: str) -> None:
    """Take a signature back, before adjudication has begun: the round takes decisions again.

    Args:
        db: The database.
        number: A signed round.
        by: Account name.
        note: Why.

    Raises:
        GateRefused: The round is not signed, the name may not sign, or no reason is given.
    """
    with db.write() as conn:
        account = _signer(conn, by)
        state = _state(conn, number, lock=True)
        if state is not RoundState.SIGNED:
            raise _gate_refused(
                number, "no such round" if state is None else f"state {state.value}", "a signed round"
            )
        _require_reason(number, note)
        _move(conn, number, RoundState.SIGNED, RoundState.OPEN)
        _record_gate(conn, db, "review", number, "reopened", account=account, note=note, figures={})


def open_gate(
    db: Database, phase: str, number: int, figures: Mapping[str, Any], *, actor: str = "flow"
) -> None:
    """Ask for a verdict: store the figures that the signer will be shown. The same figures again change
    nothing.
    """
    with db.write() as conn:
        last = _last_event(conn, phase, number, lock=True)
        if (
            last is not None
            and last["event"] == "opened"
            and last["figures_json"] == _figures(phase, number, figures)
        ):
            return
        _record_gate(conn, db, phase, number, "opened", account=None, note="", figures=figures, actor=actor)


def decide_gate(
    db: Database, phase: str, number: int, sign_off: SignOff, figures: Mapping[str, Any] | None = None
) -> GateRecord:
    """Decide a gate of any phase; "review" is `sign`. `figures` None takes those the gate was opened with.

    Raises:
        GateRefused: No such gate is open, something is missing, or the name may not sign.
    """
    if phase == "review":
        return sign(db, number, sign_off, _opened_figures(db, phase, number) if figures is None else figures)
    with db.write() as conn:
        account = _signer(conn, sign_off.signed_by)
        last = _last_event(conn, phase, number, lock=True)
        if last is not None and _same_verdict(last, sign_off):
            return _as_gate_record(last)
        if last is None:
            raise _gate_refused(number, f"no open gate of phase {phase}", "a gate that asks for a verdict")
        if sign_off.verdict == Verdict.REJECT.value:
            _require_reason(number, sign_off.note)
        elif _state(conn, number) is RoundState.SAMPLING:
            lacking = _missing(conn, number)
            if lacking:
                raise _gate_refused(number, " ".join(lacking), "a finished sample")
        shown = json.loads(last["figures_json"]) if figures is None else figures
        row = _record_gate(
            conn, db, phase, number, sign_off.verdict, account=account, note=sign_off.note, figures=shown
        )
    return _as_gate_record(row)


def gate_record(db: Database, phase: str, number: int) -> GateRecord | None:
    """The verdict that stands; None when nobody decided, the gate was reopened, or was asked again since."""
    with db.read() as conn:
        last = _last_event(conn, phase, number)
    return None if last is None or last["event"] not in ("approve", "reject") else _as_gate_record(last)


def gate_events(db: Database, phase: str, number: int) -> list[dict[str, Any]]:
    """Everything that happened at a gate, oldest first: event, signed_by, note, figures, at, audit_seq."""
    gates = tables.gates
    with db.read() as conn:
        rows = conn.execute(
            select(gates).where(gates.c.phase == phase, gates.c.round == number).order_by(gates.c.audit_seq)
        ).mappings()
        return [
            {
                **{key: row[key] for key in ("event", "signed_by", "note", "at", "audit_seq", "rehearsal")},
                "figures": json.loads(row["figures_json"]),
            }
            for row in rows
        ]


def start_adjudication(
    db: Database,
    number: int,
    reasons: Mapping[str, str],
    *,
    content: Content | None = None,
    actor: str = "qa",
) -> int:
    """Send records of a signed round to an adjudicator; returns how many were new. More may follow until it
    is closed.

    Args:
        db: The database.
        number: A round that is signed or already being adjudicated.
        reasons: By record_id, the sentence that says why; those with most disagreement first is up to the
            caller's order.
        content: Text and suggestion of records that were not under review in this round; others are copied.
        actor: Pseudonym or name of the flow.

    Raises:
        QueueError: The round is in no state for it, or the text of a record is not known.
    """
    with db.write() as conn:
        state = _state(conn, number, lock=True)
        if state not in (RoundState.SIGNED, RoundState.ADJUDICATING):
            raise _wrong_state(
                number, "no such round" if state is None else state.value, "signed or adjudicating"
            )
        known = _reviewed_content(conn, number, list(reasons))
        given = content or {}
        lacking = [record_id for record_id in reasons if record_id not in known and record_id not in given]
        if lacking:
            raise _no_text(number, lacking)
        there = _queued(conn, number, ADJUDICATION, list(reasons))
        new = [record_id for record_id in reasons if record_id not in there]
        rows = []
        for rank, record_id in enumerate(new):
            text, suggestion_json, seen = known.get(record_id) or _given(given[record_id])
            rows.append(
                _item_row(
                    number,
                    ADJUDICATION,
                    record_id,
                    purpose=Purpose.RECHECK,
                    seen=seen,
                    priority=float(len(new) - rank),
                    overlap=1,
                    text=text,
                    suggestion_json=suggestion_json,
                    reason=reasons[record_id],
                )
            )
        if state is RoundState.SIGNED:
            _move(conn, number, RoundState.SIGNED, RoundState.ADJUDICATING)
        if rows:
            conn.execute(tables.queue_items.insert(), rows)
        if rows or state is RoundState.SIGNED:
            _tell(
                conn, db, number, actor, "round.adjudication", {"reasons": {key: reasons[key] for key in new}}
            )
    return len(new)


def close_round(
    db: Database, number: int, *, files: Mapping[str, Any] | None = None, actor: str = "qa"
) -> None:
    """Nothing of the round changes any more; closing a closed one changes nothing.

    Args:
        db: The database.
        number: A round that is signed, or adjudicated to the end.
        files: What `labeling.closing` keeps of the round's files; told in the audit chain.
        actor: Pseudonym or name of the flow.

    Raises:
        QueueError: The round is not signed, or adjudications are open.
    """
    with db.write() as conn:
        state = _state(conn, number, lock=True)
        if state is RoundState.CLOSED:
            return
        if state not in (RoundState.SIGNED, RoundState.ADJUDICATING):
            raise _wrong_state(
                number, "no such round" if state is None else state.value, "signed or adjudicating"
            )
        lacking = _missing(conn, number)
        if lacking:
            raise _wrong_state(number, " ".join(lacking), "every dispute settled")
        _move(conn, number, state, RoundState.CLOSED)
        _tell(conn, db, number, actor, "round.closed", {} if files is None else {"files": files})


def reduce_overlap(db: Database, number: int, overlap: int, *, by: str) -> int:
    """Ask fewer annotators about the records still open (a colleague left); returns how many records it
    changed.

    Records that already have as many decisions become done. Agreement is then measured on fewer records,
    which is why it takes somebody who manages the queue and stands in the audit trail.

    Args:
        db: The database.
        number: A round that is sampling or open.
        overlap: The new, smaller number of annotators.
        by: Account id, or `accounts.OPERATOR`.
    """
    with db.write() as conn:
        if by != accounts.OPERATOR:
            accounts.require(conn, by, Right.MANAGE_QUEUE)
        state = _state(conn, number, lock=True)
        if state is None or state.value not in LABELLING_STATES:
            raise _wrong_state(number, "no such round" if state is None else state.value, "sampling or open")
        if overlap < 1:
            raise QueueError(
                "overlap", found=str(overlap), expected="1 or more", next_step="Give another number."
            )
        changed = conn.execute(
            tables.queue_items.update()
            .where(
                _item.round == number, _item.stage == REVIEW, _item.done.is_(False), _item.overlap > overlap
            )
            .values(overlap=overlap, done=_item.decided >= overlap)
        ).rowcount
        if changed:
            _tell(conn, db, number, by, "round.overlap_reduced", {"overlap": overlap, "records": changed})
    return int(changed)


# Rounds


def _state(conn: Connection, number: int, *, lock: bool = False) -> RoundState | None:
    query = select(_round.state).where(_round.number == number)
    found = conn.execute(query.with_for_update(key_share=True) if lock else query).scalar()
    return None if found is None else RoundState(found)


def _move(conn: Connection, number: int, before: RoundState, after: RoundState) -> None:
    moved = conn.execute(
        tables.rounds.update()
        .where(_round.number == number, _round.state == before.value)
        .values(state=after.value)
    )
    if moved.rowcount != 1:
        raise _wrong_state(number, "another state", before.value)


def _stamp_rehearsal(conn: Connection, db: Database, number: int, *, wanted: bool, actor: str) -> bool:
    stamped = is_rehearsal(conn)
    if stamped or not wanted:
        return stamped
    if conn.execute(select(_round.number).limit(1)).first() is not None:
        raise QueueError(
            f"round {number}",
            found="a rehearsal in a database that holds real rounds",
            expected="a folder of its own",
            next_step="Rehearse in another project folder; simulated decisions never mix with real ones.",
        )
    conn.execute(tables.meta.update().where(tables.meta.c.key == "rehearsal").values(value="true"))
    chain.append(conn, actor=actor, action="database.rehearsal", object="database", payload={}, utc=db.now())
    return True


def _tell(
    conn: Connection, db: Database, number: int, actor: str, action: str, payload: Mapping[str, Any]
) -> None:
    chain.append(conn, actor=actor, action=action, object=f"round:{number}", payload=payload, utc=db.now())


def _release_all(conn: Connection, number: int) -> None:
    of_round = select(_item.id).where(_item.round == number, _item.stage == REVIEW)
    conn.execute(
        tables.assignments.update()
        .where(_lease.state == "leased", _lease.item_id.in_(of_round))
        .values(state="released")
    )


# Items


def _require_content(number: int, record_ids: Sequence[str], content: Content) -> None:
    lacking = [record_id for record_id in record_ids if record_id not in content]
    if lacking:
        raise _no_text(number, lacking)
    for record_id in record_ids:
        text, suggestion = content[record_id]
        if not queue.storable(text) or not queue.storable(suggestion):
            raise QueueError(
                f"record {record_id}",
                found="a text with NUL or half a surrogate pair",
                expected="text that ingest has let through",
                next_step="Ingest again; such rows belong into quarantine.",
            )
        if suggestion is not None and "value" not in suggestion:
            raise QueueError(
                f"record {record_id}",
                found="a suggestion without a value",
                expected="at least `value`, or no suggestion at all",
                next_step="Give None for a record whose reply was unusable.",
            )


def _add_batch(db: Database, number: int, items: Sequence[QueueItem], content: Content, actor: str) -> int:
    with db.write() as conn:
        state = _state(conn, number, lock=True)
        if state is None or state.value not in LABELLING_STATES:
            raise _wrong_state(number, "no such round" if state is None else state.value, "sampling or open")
        there = _queued(conn, number, REVIEW, [item.record_id for item in items])
        new = {item.record_id: item for item in items if item.record_id not in there}
        if not new:
            return 0
        to_pool = pool_ids(conn, [item.pool for item in new.values() if item.pool], db, actor)
        rows = []
        for record_id, item in new.items():
            text, suggestion = content[record_id]
            hidden = suggestion is None or item.seen is Seen.BLIND
            rows.append(
                _item_row(
                    number,
                    REVIEW,
                    record_id,
                    purpose=item.purpose,
                    seen=item.seen,
                    priority=item.priority,
                    overlap=item.overlap,
                    text=text,
                    suggestion_json=None if hidden else canonical_json(suggestion),
                    pool_id=None if item.pool is None else to_pool[item.pool],
                )
            )
        conn.execute(tables.queue_items.insert(), rows)
        committed = sorted(
            [row["record_id"], row["text_sha256"], row["purpose"], row["seen"]] for row in rows
        )
        _tell(
            conn,
            db,
            number,
            actor,
            "round.items_added",
            {"items": len(rows), "sha256": content_hash(committed)},
        )
    return len(rows)


def _count_anew(db: Database) -> None:
    """PostgreSQL plans by what it knows of a table; of one just filled it knows nothing and reads all of it."""
    if db.engine.dialect.name == "postgresql":
        with db.write() as conn:
            conn.exec_driver_sql("ANALYZE queue_items")


def _item_row(
    number: int,
    stage: str,
    record_id: str,
    *,
    purpose: Purpose,
    seen: Seen,
    priority: float,
    overlap: int,
    text: str,
    suggestion_json: str | None,
    reason: str = "",
    pool_id: int | None = None,
) -> dict[str, Any]:
    return {
        "round": number,
        "stage": stage,
        "record_id": record_id,
        "purpose": purpose.value,
        "seen": seen.value,
        "priority": priority,
        "overlap": overlap,
        "text": text,
        "text_sha256": queue.text_sha256(text),
        "suggestion_json": suggestion_json,
        "reason": reason,
        "version": 0,
        "decided": 0,
        "done": False,
        **_found_by(suggestion_json),
        "pool_id": pool_id,
        "for_account": None,
    }


def _found_by(suggestion_json: str | None) -> dict[str, Any]:
    """The columns by which an item is found, out of its suggestion."""
    if suggestion_json is None:
        return {"confidence": None, "suggested_labels": None}
    suggestion = json.loads(suggestion_json)
    return {
        "confidence": suggestion.get("confidence"),
        "suggested_labels": tables.joined_labels(suggestion["value"]),
    }


def _queued(conn: Connection, number: int, stage: str, record_ids: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for start in range(0, len(record_ids), 500):
        part = record_ids[start : start + 500]
        found.update(
            conn.execute(
                select(_item.record_id).where(
                    _item.round == number, _item.stage == stage, _item.record_id.in_(part)
                )
            ).scalars()
        )
    return found


def _reviewed_content(
    conn: Connection, number: int, record_ids: Sequence[str]
) -> dict[str, tuple[str, str | None, Seen]]:
    found: dict[str, tuple[str, str | None, Seen]] = {}
    for start in range(0, len(record_ids), 500):
        part = record_ids[start : start + 500]
        rows = conn.execute(
            select(_item.record_id, _item.text, _item.suggestion_json, _item.seen).where(
                _item.round == number, _item.stage == REVIEW, _item.record_id.in_(part)
            )
        )
        found.update({row.record_id: (row.text, row.suggestion_json, Seen(row.seen)) for row in rows})
    return found


def _given(content: tuple[str, dict[str, Any] | None]) -> tuple[str, str | None, Seen]:
    text, suggestion = content
    return text, None if suggestion is None else canonical_json(suggestion), Seen.ASSISTED


# Figures


def _by_purpose(conn: Connection, number: int) -> dict[Purpose, PurposeProgress]:
    rows = conn.execute(
        select(
            _item.purpose,
            _item.done,
            func.count().label("items"),
            func.sum(_item.overlap).label("wanted"),
            func.sum(_item.decided).label("decisions"),
        )
        .where(_item.round == number, _item.stage == REVIEW)
        .group_by(_item.purpose, _item.done)
    ).all()
    parts: dict[Purpose, PurposeProgress] = {}
    for row in rows:
        before = parts.get(Purpose(row.purpose), PurposeProgress(0, 0, 0, 0))
        parts[Purpose(row.purpose)] = PurposeProgress(
            items=before.items + row.items,
            done=before.done + (row.items if row.done else 0),
            wanted=before.wanted + int(row.wanted),
            decisions=before.decisions + int(row.decisions),
        )
    return {purpose: parts[purpose] for purpose in Purpose if purpose in parts}


def _of_review(number: int) -> Any:
    """Standing decisions on the records under review (not the adjudications) of a round."""
    superseding = tables.decisions.alias()
    return and_(
        _row.round == number,
        _row.kind == "decision",
        _row.purpose != Purpose.RECHECK.value,
        ~exists().where(superseding.c.supersedes == _row.annotation_id),
    )


def _by_annotator(conn: Connection, number: int) -> tuple[dict[str, int], int]:
    rows = conn.execute(
        select(_row.annotator_id, _row.action, func.count().label("n"))
        .where(_of_review(number))
        .group_by(_row.annotator_id, _row.action)
        .order_by(_row.annotator_id)
    ).all()
    counts: dict[str, int] = {}
    skips = 0
    for row in rows:
        counts.setdefault(row.annotator_id, 0)
        if row.action == Action.SKIP.value:
            skips += row.n
        else:
            counts[row.annotator_id] += row.n
    return counts, skips


def _seconds_median(conn: Connection, number: int) -> float | None:
    total = conn.execute(select(func.count()).where(_of_review(number))).scalar_one()
    if not total:
        return None
    middle = conn.execute(
        select(_row.seconds)
        .where(_of_review(number))
        .order_by(_row.seconds)
        .limit(2 - total % 2)
        .offset((total - 1) // 2)
    ).scalars()
    values = [float(value) for value in middle]
    return sum(values) / len(values)


def _flagged(conn: Connection, number: int) -> int:
    """Records on which somebody's newest flag is up."""
    later = tables.flags.alias()
    flags = tables.flags.c
    return int(
        conn.execute(
            select(func.count(func.distinct(flags.item_id)))
            .join(tables.queue_items, _item.id == flags.item_id)
            .where(_item.round == number, flags.raised.is_(True))
            .where(
                ~exists().where(
                    later.c.item_id == flags.item_id,
                    later.c.annotator_id == flags.annotator_id,
                    later.c.id > flags.id,
                )
            )
        ).scalar_one()
    )


def _disputes(conn: Connection, number: int) -> tuple[int, int]:
    rows = conn.execute(
        select(_item.done, func.count().label("n"))
        .where(_item.round == number, _item.stage == ADJUDICATION)
        .group_by(_item.done)
    ).all()
    return sum(row.n for row in rows), sum(row.n for row in rows if not row.done)


def _labellers(conn: Connection) -> int:
    roles = [role.value for role in Role if Right.LABEL in RIGHTS[role]]
    return int(
        conn.execute(
            select(func.count())
            .select_from(tables.accounts)
            .where(tables.accounts.c.active.is_(True), tables.accounts.c.role.in_(roles))
        ).scalar_one()
    )


def _stuck(conn: Connection, number: int) -> list[str]:
    """Open records that everybody who may label has decided or skipped, and that somebody skipped."""
    labellers = _labellers(conn)
    if not labellers:
        return []
    roles = [role.value for role in Role if Right.LABEL in RIGHTS[role]]
    done_with = (
        select(_lease.item_id)
        .join(tables.accounts, tables.accounts.c.id == _lease.account_id)
        .where(_lease.state.in_(("decided", "skipped")))
        .where(tables.accounts.c.active.is_(True), tables.accounts.c.role.in_(roles))
        .group_by(_lease.item_id)
        .having(func.count() >= labellers)
    )
    skipped = exists().where(_lease.item_id == _item.id, _lease.state == "skipped")
    return list(
        conn.execute(
            select(_item.record_id)
            .where(_item.round == number, _item.stage == REVIEW, _item.done.is_(False))
            .where(skipped, _item.id.in_(done_with))
            .order_by(_item.id)
        ).scalars()
    )


def _missing(conn: Connection, number: int) -> list[str]:
    state = _state(conn, number)
    if state is None:
        raise _no_round(number)
    sentences: list[str] = []
    if state.value in LABELLING_STATES:
        sentences += _missing_decisions(conn, number)
    _, disputes_open = _disputes(conn, number)
    if disputes_open:
        sentences.append(f"{_records(disputes_open)} {_waits(disputes_open)} for an adjudicator.")
    return sentences


def _missing_decisions(conn: Connection, number: int) -> list[str]:
    parts = _by_purpose(conn, number)
    if not parts:
        return [f"Nothing has been put into the queue of round {number}."]
    sentences = []
    for purpose, part in parts.items():
        if part.done < part.items:
            lacking = _decisions_lacking(conn, number, purpose)
            sentences.append(
                f"{part.items - part.done} of {_records(part.items)} {PURPOSE_WORDS[purpose]} "
                f"{'is' if part.items - part.done == 1 else 'are'} not finished "
                f"({lacking} decision{'' if lacking == 1 else 's'} missing)."
            )
    stuck = _stuck(conn, number)
    if stuck:
        named = ", ".join(stuck[:_NAMED]) + (" …" if len(stuck) > _NAMED else "")
        sentences.append(
            f"{_records(len(stuck))} {'was' if len(stuck) == 1 else 'were'} skipped and nobody is left: a "
            f"reviewer has to undo a skip or another annotator be invited ({named})."
        )
    lost = without_takers(conn, number)
    if lost:
        named = ", ".join(lost[:_NAMED]) + (" …" if len(lost) > _NAMED else "")
        sentences.append(
            f"{_records(len(lost))} {_waits(len(lost))} for a person or pool in which too few are left to decide: "
            f"add people to the pool, or give the record to somebody else ({named})."
        )
    labellers = _labellers(conn)
    crowded = conn.execute(
        select(func.count()).where(
            _item.round == number, _item.stage == REVIEW, _item.done.is_(False), _item.overlap > labellers
        )
    ).scalar_one()
    if crowded and not labellers:
        sentences.append(
            "Nobody has an account to label with yet: start `countersign review PROJECT`, then log in or invite people."
        )
    elif crowded:
        sentences.append(
            f"{_records(crowded)} {'asks' if crowded == 1 else 'ask'} for more annotators than the "
            f"{labellers} there are: invite more, or ask for fewer "
            "(`countersign gate PROJECT approve --by NAME --overlap 1`)."
        )
    return sentences


def _decisions_lacking(conn: Connection, number: int, purpose: Purpose) -> int:
    return int(
        conn.execute(
            select(func.sum(_item.overlap - _item.decided)).where(
                _item.round == number,
                _item.stage == REVIEW,
                _item.done.is_(False),
                _item.purpose == purpose.value,
            )
        ).scalar_one()
    )


def _records(count: int) -> str:
    return f"{count} record" if count == 1 else f"{count} records"


def _waits(count: int) -> str:
    return "waits" if count == 1 else "wait"


# Gates


def _signer(conn: Connection, name: str) -> accounts.Account:
    account = accounts.find_named(conn, name)
    if account is None or not account.may(Right.SIGN):
        found = "no such account" if account is None else f"role {account.role.value}"
        raise GateRefused(
            f"signed_by {name!r}",
            found=found if account is None or account.active else "a closed account",
            expected="the account name of a lead (role manager)",
            next_step="Sign with your account name in the review app, or have the lead sign.",
        )
    return account


def _last_event(conn: Connection, phase: str, number: int, *, lock: bool = False) -> RowMapping | None:
    gates = tables.gates.c
    if lock:
        # The chain's head is the one row all writers share; holding it keeps two verdicts from crossing.
        conn.execute(select(tables.audit_head.c.seq).with_for_update()).one()
    return (
        conn.execute(
            select(tables.gates)
            .where(gates.phase == phase, gates.round == number)
            .order_by(gates.audit_seq.desc())
            .limit(1)
        )
        .mappings()
        .one_or_none()
    )


def _same_verdict(last: RowMapping, sign_off: SignOff) -> bool:
    if last["event"] != sign_off.verdict:
        return False
    # Two rejections for different reasons are two acts; a second approval adds nothing to the first.
    return sign_off.verdict == Verdict.APPROVE.value or last["note"] == sign_off.note


def _opened_figures(db: Database, phase: str, number: int) -> dict[str, Any]:
    with db.read() as conn:
        last = _last_event(conn, phase, number)
    return {} if last is None else dict(json.loads(last["figures_json"]))


def _record_gate(
    conn: Connection,
    db: Database,
    phase: str,
    number: int,
    event: str,
    *,
    account: accounts.Account | None,
    note: str,
    figures: Mapping[str, Any],
    actor: str = "",
) -> dict[str, Any]:
    """Write one event of a gate; returns the row as stored."""
    now = db.now()
    row = {
        "phase": phase,
        "round": number,
        "event": event,
        "account_id": None if account is None else account.id,
        "signed_by": "" if account is None else account.name,
        "note": note,
        "figures_json": _figures(phase, number, figures),
        "at": now,
        "rehearsal": is_rehearsal(conn),
    }
    seq = chain.record_row(
        conn,
        tables.gates,
        row,
        actor=actor if account is None else account.id,
        object=f"gate:{phase}:{number}",
        utc=now,
    )
    return {**row, "audit_seq": seq}


def _as_gate_record(row: Mapping[str, Any] | RowMapping) -> GateRecord:
    return GateRecord(
        phase=row["phase"],
        round=row["round"],
        verdict=Verdict(row["event"]),
        signed_by=row["signed_by"],
        note=row["note"],
        at=row["at"],
        audit_seq=row["audit_seq"],
    )


def _figures(phase: str, number: int, figures: Mapping[str, Any]) -> str:
    try:
        return canonical_json(figures)
    except (TypeError, ValueError) as error:
        raise GateRefused(
            f"figures of gate {phase} {number}",
            found=str(error),
            expected="plain JSON data without NaN",
            next_step="Give undefined figures as null.",
        ) from error


def _require_reason(number: int, note: str) -> None:
    if not note.strip():
        raise _gate_refused(number, "no note", "why the round goes back")


# Errors


def _no_round(number: int) -> QueueError:
    return QueueError(f"round {number}", found="none", expected="a round", next_step="Open it first.")


def _wrong_state(number: int, found: str, expected: str) -> QueueError:
    return QueueError(
        f"round {number}",
        found=found,
        expected=expected,
        next_step="Nothing was changed. See `countersign status`.",
    )


def _no_text(number: int, record_ids: Sequence[str]) -> QueueError:
    return QueueError(
        f"round {number}",
        found=f"no text for {_records(len(record_ids))} ({', '.join(record_ids[:_NAMED])})",
        expected="the text of every record",
        next_step="Give the content of these records too.",
    )


def _gate_refused(number: int, found: str, expected: str) -> GateRefused:
    return GateRefused(
        f"gate of round {number}",
        found=found,
        expected=expected,
        next_step="Finish what is missing, then sign again; nothing was changed.",
    )
