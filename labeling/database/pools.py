"""Whose a record is: anybody's, a pool's (the nurses, the lawyers), or one person's."""

import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, exists, func, or_, select

from labeling.database import accounts, chain, tables
from labeling.database.accounts import RIGHTS, Right
from labeling.database.connection import Database
from labeling.database.statements import open_to
from schemas.errors import QueueError
from schemas.review import Role
from schemas.values import content_hash

_MOST_NAME = 80
_BULK = 500

_item = tables.queue_items.c
_lease = tables.assignments.c
_member = tables.pool_members.c
_account = tables.accounts.c


@dataclass(frozen=True)
class Pool:
    """A named group of people; `members` are account ids."""

    id: int
    name: str
    members: frozenset[str]


def pools(db: Database) -> list[Pool]:
    """All pools, by name."""
    with db.read() as conn:
        members: dict[int, set[str]] = {}
        for row in conn.execute(select(_member.pool_id, _member.account_id)):
            members.setdefault(row.pool_id, set()).add(row.account_id)
        rows = conn.execute(select(tables.pools).order_by(tables.pools.c.name_key)).all()
    return [Pool(row.id, row.name, frozenset(members.get(row.id, ()))) for row in rows]


def make_pool(db: Database, name: str, by: str) -> int:
    """Make a pool, or find the one of that name; returns its id.

    Raises:
        QueueError: The name is empty or too long.
        Forbidden: This person does not manage the queue.
    """
    with db.write() as conn:
        accounts.require(conn, by, Right.MANAGE_QUEUE)
        return pool_ids(conn, [name], db, by)[name]


def pool_ids(conn: Connection, names: Collection[str], db: Database, actor: str) -> dict[str, int]:
    """Ids of pools by name, those that are not there yet made; inside a transaction."""
    found: dict[str, int] = {}
    for name in sorted(set(names)):
        shown, key = _pool_name(name)
        known = conn.execute(
            select(tables.pools.c.id).where(tables.pools.c.name_key == key)
        ).scalar_one_or_none()
        if known is None:
            known = conn.execute(
                tables.pools.insert().returning(tables.pools.c.id).values(name=shown, name_key=key)
            ).scalar_one()
            _tell(conn, db, actor, "pool.made", known, {"name": shown})
        found[name] = int(known)
    return found


def set_members(db: Database, pool_id: int, account_ids: Collection[str], by: str) -> None:
    """Who belongs to a pool from now on. What somebody holds already stays with them until it is decided.

    Raises:
        QueueError: No such pool, or somebody who may not label.
        Forbidden: This person does not manage the queue.
    """
    wanted = set(account_ids)
    with db.write() as conn:
        accounts.require(conn, by, Right.MANAGE_QUEUE)
        if conn.execute(select(tables.pools.c.id).where(tables.pools.c.id == pool_id)).first() is None:
            raise _no_pool(pool_id)
        for account_id in wanted:
            _require_labeller(conn, account_id)
        before = set(conn.execute(select(_member.account_id).where(_member.pool_id == pool_id)).scalars())
        if before == wanted:
            return
        conn.execute(tables.pool_members.delete().where(_member.pool_id == pool_id))
        if wanted:
            rows = [{"pool_id": pool_id, "account_id": account_id} for account_id in sorted(wanted)]
            conn.execute(tables.pool_members.insert(), rows)
        _tell(conn, db, by, "pool.members_set", pool_id, {"members": sorted(wanted)})


def give_to(
    db: Database,
    item_ids: Sequence[int],
    *,
    by: str,
    pool_id: int | None = None,
    account_id: str | None = None,
) -> int:
    """Give records to a pool or a person; neither means anybody. Others who held them undecided lose them.

    Returns:
        How many records it changed; what is done stays as it is.

    Raises:
        QueueError: No such pool or labeller, or none of the records is open and under review.
        Forbidden: This person does not manage the queue.
    """
    with db.write() as conn:
        accounts.require(conn, by, Right.MANAGE_QUEUE)
        if pool_id is not None:
            known = conn.execute(select(tables.pools.c.id).where(tables.pools.c.id == pool_id)).first()
            if known is None:
                raise _no_pool(pool_id)
        if account_id is not None:
            _require_labeller(conn, account_id)
        given: list[str] = []
        in_line = sorted(item_ids)  # as `take_chosen` locks them
        for start in range(0, len(in_line), _BULK):
            given += _give(conn, in_line[start : start + _BULK], pool_id, account_id)
        if not given:
            raise QueueError(
                "records",
                found="none that is open and under review",
                expected="records that still wait for an answer",
                next_step="Reload the page.",
            )
        chain.append(
            conn,
            actor=by,
            action="items.given",
            object=f"record:{given[0]}" if len(given) == 1 else "records",
            payload={
                "records": len(given),
                "sha256": content_hash(sorted(given)),
                "pool_id": pool_id,
                "for_account": account_id,
            },
            utc=db.now(),
        )
    return len(given)


def _give(
    conn: Connection, item_ids: Sequence[int], pool_id: int | None, account_id: str | None
) -> list[str]:
    """Record ids of those that were open; a lease of somebody who may no longer decide ends."""
    rows = conn.execute(
        select(_item.id, _item.record_id)
        .where(_item.id.in_(item_ids), _item.stage == "review", _item.done.is_(False))
        .order_by(_item.id)
        .with_for_update(key_share=True)
    ).all()
    ids = [row.id for row in rows]
    conn.execute(
        tables.queue_items.update().where(_item.id.in_(ids)).values(pool_id=pool_id, for_account=account_id)
    )
    theirs = exists().where(_item.id == _lease.item_id, open_to(_lease.account_id))
    conn.execute(
        tables.assignments.update()
        .where(_lease.item_id.in_(ids), _lease.state == "leased", ~theirs)
        .values(state="released")
    )
    return [row.record_id for row in rows]


def kept_from(conn: Connection, annotator_id: str, number: int) -> int:
    """Open records of a round that wait for other people or pools than this person's."""
    return int(
        conn.execute(
            select(func.count())
            .where(_item.round == number, _item.stage == "review", _routed(), _item.done.is_(False))
            .where(~open_to(annotator_id))
        ).scalar_one()
    )


def without_takers(conn: Connection, number: int) -> list[str]:
    """Open records given to a person or pool in which too few are left who could decide them."""
    roles = [role.value for role in Role if Right.LABEL in RIGHTS[role]]
    done_with = exists().where(
        _lease.item_id == _item.id,
        _lease.account_id == _account.id,
        _lease.state.in_(("decided", "skipped")),
    )
    left = (
        select(func.count())
        .select_from(tables.accounts)
        .where(_account.active.is_(True), _account.role.in_(roles), open_to(_account.id), ~done_with)
        .scalar_subquery()
    )
    return list(
        conn.execute(
            select(_item.record_id)
            .where(_item.round == number, _item.stage == "review", _routed(), _item.done.is_(False))
            .where(left < _item.overlap - _item.decided)
            .order_by(_item.id)
        ).scalars()
    )


def _routed() -> ColumnElement[bool]:
    return or_(_item.pool_id.is_not(None), _item.for_account.is_not(None))


def _require_labeller(conn: Connection, account_id: str) -> None:
    account = accounts.find_account(conn, account_id)
    if account is None or not account.may(Right.LABEL):
        raise QueueError(
            f"account {account_id}",
            found="no such account" if account is None else f"role {account.role.value}, or a closed account",
            expected="somebody who may label",
            next_step="Choose an active annotator, reviewer or lead.",
        )


def _pool_name(name: str) -> tuple[str, str]:
    shown = "".join(sign for sign in unicodedata.normalize("NFC", name) if sign.isprintable()).strip()
    if not 1 <= len(shown) <= _MOST_NAME:
        raise QueueError(
            "pool",
            found=f"a name of {len(shown)} characters",
            expected=f"1 to {_MOST_NAME}",
            next_step="Choose another name.",
        )
    return shown, unicodedata.normalize("NFKC", shown).casefold()[:240]


def _no_pool(pool_id: int) -> QueueError:
    return QueueError(
        f"pool {pool_id}", found="none", expected="one of the pools", next_step="Reload the page."
    )


def _tell(
    conn: Connection,
    db: Database,
    actor: str,
    action: str,
    pool_id: int,
    payload: dict[str, str | Sequence[str]],
) -> None:
    chain.append(conn, actor=actor, action=action, object=f"pool:{pool_id}", payload=payload, utc=db.now())
