"""People: invitations, passwords, sessions, and what each role may do.

There is no default user and no open registration. The first person comes through an invitation that the
operator makes on the machine itself; everybody else is invited by a person. An account's id is a pseudonym
(`a-3f2c91`) that is safe to show and export; the login name stays in the accounts table.
"""

import hashlib
import re
import secrets
import unicodedata
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import Connection, RowMapping, select
from sqlalchemy.exc import IntegrityError

from labeling.database import chain, statements, tables
from labeling.database.connection import Database
from schemas.errors import Forbidden, QueueError
from schemas.review import Role

OPERATOR = "operator"  # the command line on the machine: whoever holds the files may invite
INVITATION_LIFE = timedelta(days=7)
SESSION_IDLE = timedelta(minutes=30)
SESSION_LIFE = timedelta(hours=12)
FAILURES_ALLOWED = 5
FAILURES_WINDOW = timedelta(minutes=15)
PASSWORD_LEAST = 10
FIRST_ADMIN = "Administrator"
_PASSWORD_MOST = 1024
_CLOCK_SLACK = timedelta(minutes=1)
_TOUCH_EVERY = timedelta(minutes=1)

_hasher = PasswordHasher()
# Verified when the name is unknown, so that the answer takes as long as for a known one.
_NOBODYS_HASH = _hasher.hash(secrets.token_urlsafe(16))


class Right(StrEnum):
    """One thing a role may be allowed."""

    LABEL = "label"
    ADJUDICATE = "adjudicate"
    FIND_RECORDS = "find records"
    SEE_BOARD = "see the board"
    MANAGE_QUEUE = "manage the queue"
    SIGN = "sign gates"
    EDIT_SCHEMA = "edit the label schema"
    INVITE_LABELLERS = "invite annotators and reviewers"
    MANAGE_ACCOUNTS = "manage accounts"
    READ_AUDIT = "read the audit trail"


RIGHTS: dict[Role, frozenset[Right]] = {
    Role.ANNOTATOR: frozenset({Right.LABEL, Right.FIND_RECORDS}),
    Role.REVIEWER: frozenset({Right.LABEL, Right.FIND_RECORDS, Right.ADJUDICATE}),
    Role.MANAGER: frozenset(
        {
            Right.LABEL,
            Right.FIND_RECORDS,
            Right.ADJUDICATE,
            Right.SEE_BOARD,
            Right.MANAGE_QUEUE,
            Right.SIGN,
            Right.EDIT_SCHEMA,
            Right.INVITE_LABELLERS,
        }
    ),
    Role.ADMIN: frozenset({Right.MANAGE_ACCOUNTS, Right.INVITE_LABELLERS}),
    Role.AUDITOR: frozenset({Right.SEE_BOARD, Right.FIND_RECORDS, Right.READ_AUDIT}),
}


@dataclass(frozen=True)
class Account:
    """A person who may log in (or the local user, who need not).

    Attributes:
        id: Pseudonym; the `annotator_id` of decisions and annotations.
        name: Login name.
    """

    id: str
    name: str
    display_name: str
    role: Role
    local: bool
    active: bool

    def may(self, right: Right) -> bool:
        """Deny by default: inactive accounts and rights not listed get nothing."""
        return self.active and right in RIGHTS[self.role]


@dataclass(frozen=True)
class Invitation:
    """An invitation as the people page lists it; the token itself is stored nowhere."""

    id: int
    role: Role
    display_name: str
    invited_by: str
    created_at: datetime
    expires_at: datetime
    state: str  # open | used | expired | revoked


def invite(db: Database, role: Role, display_name: str, by: str) -> str:
    """Make a single-use invitation for a week and return its token (shown once; only its hash is stored).

    Args:
        db: The database.
        role: What the new person will be.
        display_name: How the invited person is shown until they choose themselves.
        by: Account id of the inviting person, or `OPERATOR` for the command line.

    Raises:
        Forbidden: This person may not invite that role.
    """
    shown = _display_name(display_name)
    token = secrets.token_urlsafe(32)
    with db.write() as conn:
        if by != OPERATOR:
            _require_may_invite(conn, by, role)
        now = db.now()
        invitation_id = conn.execute(
            tables.invitations.insert()
            .returning(tables.invitations.c.id)
            .values(
                token_sha256=_token_hash(token),
                role=role.value,
                display_name=shown,
                invited_by=by,
                created_at=now,
                expires_at=now + INVITATION_LIFE,
            )
        ).scalar_one()
        chain.append(
            conn,
            actor=by,
            action="invitation.made",
            object=f"invitation:{invitation_id}",
            payload={"role": role.value, "expires_at": tables.utc_text(now + INVITATION_LIFE)},
            utc=now,
        )
    return token


def setup_invitation(db: Database) -> str | None:
    """The token of an invitation for the first admin, who lets everybody else in; None where somebody can already.

    For whoever starts the review app without its local user. An earlier one that nobody used becomes worthless, so
    that only the newest link opens the door. Closed accounts and the local user let nobody in.
    """
    if any(person.may(Right.INVITE_LABELLERS) and not person.local for person in people(db)):
        return None
    for earlier in invitations(db):
        if (earlier.state, earlier.invited_by, earlier.display_name) == ("open", OPERATOR, FIRST_ADMIN):
            revoke_invitation(db, earlier.id, OPERATOR)
    return invite(db, Role.ADMIN, FIRST_ADMIN, OPERATOR)


def setup_link(db: Database, url: str) -> str | None:
    """Where, in the review app at `url`, the first admin makes an account; None where somebody lets others in."""
    token = setup_invitation(db)
    return None if token is None else f"{url}/invitation/{token}"


def invitation_for(db: Database, token: str) -> Invitation | None:
    """The open invitation behind a token; None if it is unknown, used, revoked or too old."""
    with db.read() as conn:
        row = _open_invitation(conn, token, db.now())
    return None if row is None else _as_invitation(row, db.now())


def accept_invitation(db: Database, token: str, name: str, password: str) -> Account:
    """Turn an invitation into an account.

    Raises:
        Forbidden: The invitation is unknown, used, revoked or too old (never said which).
        QueueError: The name is taken or not usable, or the password too short.
    """
    login_name, key = _login_name(name)
    hashed = _hash_password(password)
    with db.write() as conn:
        now = db.now()
        invitation = _open_invitation(conn, token, now, lock=True)
        if invitation is None:
            raise _no_invitation()
        account = _insert_account(
            conn,
            name=login_name,
            key=key,
            display_name=invitation["display_name"] or login_name,
            role=Role(invitation["role"]),
            password_hash=hashed,
            local=False,
            now=now,
        )
        conn.execute(
            tables.invitations.update()
            .where(tables.invitations.c.id == invitation["id"])
            .values(used_at=now, used_by=account.id)
        )
        chain.append(
            conn,
            actor=account.id,
            action="account.created",
            object=f"account:{account.id}",
            payload={"role": account.role.value, "invitation": invitation["id"], "local": False},
            utc=now,
        )
    return account


def revoke_invitation(db: Database, invitation_id: int, by: str) -> None:
    """Make an unused invitation worthless."""
    with db.write() as conn:
        row = (
            conn.execute(select(tables.invitations).where(tables.invitations.c.id == invitation_id))
            .mappings()
            .one_or_none()
            if 1 <= invitation_id < 2**31  # more than that no database takes as an id
            else None
        )
        if row is None or row["used_at"] is not None:
            raise QueueError(
                f"invitation {invitation_id}",
                found="none that is still open",
                expected="an unused invitation",
                next_step="Reload the page; revoke the account instead if it was used.",
            )
        if by != OPERATOR:
            _require_may_invite(conn, by, Role(row["role"]))
        now = db.now()
        conn.execute(
            tables.invitations.update().where(tables.invitations.c.id == invitation_id).values(revoked_at=now)
        )
        chain.append(
            conn,
            actor=by,
            action="invitation.revoked",
            object=f"invitation:{invitation_id}",
            payload={},
            utc=now,
        )


def invitations(db: Database) -> list[Invitation]:
    """All invitations, newest first."""
    with db.read() as conn:
        rows = (
            conn.execute(select(tables.invitations).order_by(tables.invitations.c.id.desc())).mappings().all()
        )
    return [_as_invitation(row, db.now()) for row in rows]


def login(db: Database, name: str, password: str) -> tuple[Account, str]:
    """Check a password and open a session; returns the account and the session's token.

    An unknown name, a wrong password and a closed account are answered alike and take alike long; five
    failures in 15 minutes lock the name, known or not.

    Raises:
        Forbidden: Not let in.
    """
    key = _key(name)
    name_hash = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
    _count_attempt(db, name_hash)
    with db.read() as conn:
        row = (
            conn.execute(select(tables.accounts).where(tables.accounts.c.name_key == key))
            .mappings()
            .one_or_none()
        )
    known_hash = row["password_hash"] if row is not None else None
    right = _password_fits(known_hash or _NOBODYS_HASH, password) and known_hash is not None
    if row is None or not right or not row["active"]:
        raise Forbidden(
            "login",
            found="a name or password that does not fit",
            expected="the name and password you chose when you accepted the invitation",
            next_step="Try again; who has forgotten theirs asks for a new invitation.",
        )
    account = _as_account(row)
    with db.write() as conn:
        conn.execute(tables.login_failures.delete().where(tables.login_failures.c.name_sha256 == name_hash))
        token = _insert_session(conn, account.id, db.now())
        if known_hash is not None and _hasher.check_needs_rehash(known_hash):
            conn.execute(
                tables.accounts.update()
                .where(tables.accounts.c.id == account.id)
                .values(password_hash=_hasher.hash(password))
            )
        chain.append(
            conn,
            actor=account.id,
            action="session.opened",
            object=f"account:{account.id}",
            payload={},
            utc=db.now(),
        )
    return account, token


def open_local_session(db: Database) -> tuple[Account, str]:
    """A session for the one user without a password; the caller has made sure that this is loopback."""
    account = local_user(db)
    with db.write() as conn:
        token = _insert_session(conn, account.id, db.now())
    return account, token


def session_account(db: Database, token: str) -> Account | None:
    """Whose session this is; None when it is unknown, ended, idle for 30 minutes, or 12 hours old.

    A clock set back does not prolong a session: one that was seen in the future is over.
    """
    if not token or len(token) > 200:
        return None
    digest = _token_hash(token)
    session, account = tables.sessions.c, tables.accounts.c
    now = db.now()
    with db.read() as conn:
        row = (
            conn.execute(
                select(tables.accounts, session.seen_at)
                .join_from(tables.sessions, tables.accounts, session.account_id == account.id)
                .where(
                    session.token_sha256 == digest,
                    session.ended_at.is_(None),
                    session.expires_at > now,
                    session.seen_at > now - SESSION_IDLE,
                    session.seen_at <= now + _CLOCK_SLACK,
                    account.active.is_(True),
                )
            )
            .mappings()
            .one_or_none()
        )
    if row is None:
        return None
    if now - row["seen_at"] >= _TOUCH_EVERY:
        with db.write() as conn:
            conn.execute(tables.sessions.update().where(session.token_sha256 == digest).values(seen_at=now))
    return _as_account(row)


def end_session(db: Database, token: str) -> None:
    """Log out."""
    with db.write() as conn:
        conn.execute(
            tables.sessions.update()
            .where(tables.sessions.c.token_sha256 == _token_hash(token), tables.sessions.c.ended_at.is_(None))
            .values(ended_at=db.now())
        )


def deactivate(db: Database, account_id: str, by: str) -> None:
    """Close an account: its sessions end and its open leases return; what it decided stays."""
    _change_account(db, account_id, by, action="account.closed", values={"active": False})


def change_role(db: Database, account_id: str, role: Role, by: str) -> None:
    """Give somebody else another role; nobody changes their own. Their sessions end, so that the change is at
    once.
    """
    _change_account(db, account_id, by, action="account.role_changed", values={"role": role.value})


def local_user(db: Database) -> Account:
    """The one user without a password, made when first asked for; may do all a lead may. Loopback only."""
    with db.read() as conn:
        row = (
            conn.execute(select(tables.accounts).where(tables.accounts.c.local.is_(True)))
            .mappings()
            .one_or_none()
        )
    if row is not None:
        return _as_account(row)
    with db.write() as conn:
        row = (
            conn.execute(select(tables.accounts).where(tables.accounts.c.local.is_(True)))
            .mappings()
            .one_or_none()
        )
        if row is not None:
            return _as_account(row)
        account = _insert_account(
            conn,
            name="local",
            key="local",
            display_name="You",
            role=Role.MANAGER,
            password_hash=None,
            local=True,
            now=db.now(),
        )
        chain.append(
            conn,
            actor=OPERATOR,
            action="account.created",
            object=f"account:{account.id}",
            payload={"role": account.role.value, "invitation": None, "local": True},
            utc=db.now(),
        )
    return account


def people(db: Database) -> list[Account]:
    """All accounts, oldest first."""
    with db.read() as conn:
        rows = conn.execute(
            select(tables.accounts).order_by(tables.accounts.c.created_at, tables.accounts.c.id)
        ).mappings()
        return [_as_account(row) for row in rows]


def account_by_id(db: Database, account_id: str) -> Account | None:
    """The account of a pseudonym."""
    with db.read() as conn:
        return find_account(conn, account_id)


def account_by_name(db: Database, name: str) -> Account | None:
    """The account of a login name, however it is capitalised."""
    with db.read() as conn:
        return find_named(conn, name)


def find_named(conn: Connection, name: str) -> Account | None:
    """As `account_by_name`, inside a transaction."""
    row = (
        conn.execute(select(tables.accounts).where(tables.accounts.c.name_key == _key(name)))
        .mappings()
        .one_or_none()
    )
    return None if row is None else _as_account(row)


def find_account(conn: Connection, account_id: str, *, lock: bool = False) -> Account | None:
    """As `account_by_id`, inside a transaction; `lock` puts acts of one person in line on PostgreSQL."""
    query = statements.ACCOUNT_LOCKED if lock else statements.ACCOUNT
    row = conn.execute(query, {"who": account_id}).mappings().one_or_none()
    return None if row is None else _as_account(row)


def require(conn: Connection, account_id: str, right: Right, *, lock: bool = False) -> Account:
    """The account, if it may; Forbidden otherwise."""
    account = find_account(conn, account_id, lock=lock)
    if account is None or not account.may(right):
        raise Forbidden(
            f"account {account_id}",
            found="no active account"
            if account is None or not account.active
            else f"role {account.role.value}",
            expected=f"someone who may {right.value}",
            next_step="Ask the project lead.",
        )
    return account


def _require_may_invite(conn: Connection, by: str, role: Role) -> None:
    account = require(conn, by, Right.INVITE_LABELLERS)
    if role not in (Role.ANNOTATOR, Role.REVIEWER) and not account.may(Right.MANAGE_ACCOUNTS):
        raise Forbidden(
            f"account {by}",
            found=f"role {account.role.value}",
            expected=f"an admin, to invite a new {role.value}",
            next_step="Ask an admin.",
        )


def _change_account(db: Database, account_id: str, by: str, *, action: str, values: dict[str, Any]) -> None:
    if account_id == by:
        raise Forbidden(
            f"account {account_id}",
            found="your own account",
            expected="somebody else's",
            next_step="Another admin can do this.",
        )
    with db.write() as conn:
        if by != OPERATOR:
            require(conn, by, Right.MANAGE_ACCOUNTS)
        now = db.now()
        changed = conn.execute(
            tables.accounts.update().where(tables.accounts.c.id == account_id).values(**values)
        )
        if changed.rowcount != 1:
            raise QueueError(
                f"account {account_id}", found="none", expected="an account", next_step="Reload the page."
            )
        conn.execute(
            tables.sessions.update()
            .where(tables.sessions.c.account_id == account_id, tables.sessions.c.ended_at.is_(None))
            .values(ended_at=now)
        )
        conn.execute(
            tables.assignments.update()
            .where(tables.assignments.c.account_id == account_id, tables.assignments.c.state == "leased")
            .values(state="released")
        )
        chain.append(conn, actor=by, action=action, object=f"account:{account_id}", payload=values, utc=now)


def _insert_account(
    conn: Connection,
    *,
    name: str,
    key: str,
    display_name: str,
    role: Role,
    password_hash: str | None,
    local: bool,
    now: datetime,
) -> Account:
    if find_named(conn, key) is not None:
        raise _name_taken(name)
    account_id = f"a-{secrets.token_hex(3)}"
    while find_account(conn, account_id) is not None:
        account_id = f"a-{secrets.token_hex(3)}"
    try:
        conn.execute(
            tables.accounts.insert().values(
                id=account_id,
                name=name,
                name_key=key,
                display_name=display_name,
                role=role.value,
                password_hash=password_hash,
                local=local,
                active=True,
                created_at=now,
            )
        )
    except IntegrityError as error:
        raise _name_taken(name) from error
    return Account(account_id, name, display_name, role, local, True)


def _insert_session(conn: Connection, account_id: str, now: datetime) -> str:
    token = secrets.token_urlsafe(32)
    conn.execute(
        tables.sessions.insert().values(
            token_sha256=_token_hash(token),
            account_id=account_id,
            created_at=now,
            seen_at=now,
            expires_at=now + SESSION_LIFE,
        )
    )
    return token


def _count_attempt(db: Database, name_hash: str) -> None:
    """Count the try before checking it, so that tries made at the same moment cannot slip past the limit."""
    failures = tables.login_failures
    with db.write() as conn:
        now = db.now()
        # A clock set back must not lock anyone for longer than the window, hence the second bound.
        conn.execute(
            failures.delete().where(
                (failures.c.since <= now - FAILURES_WINDOW) | (failures.c.since > now + FAILURES_WINDOW)
            )
        )
        row = conn.execute(
            select(failures.c.count).where(failures.c.name_sha256 == name_hash).with_for_update()
        ).one_or_none()
        if row is None:
            try:
                with conn.begin_nested():
                    conn.execute(failures.insert().values(name_sha256=name_hash, count=1, since=now))
                return
            except IntegrityError:  # PostgreSQL: the same name, tried for the first time twice at once
                row = conn.execute(
                    select(failures.c.count).where(failures.c.name_sha256 == name_hash).with_for_update()
                ).one()
        if row[0] >= FAILURES_ALLOWED:
            raise Forbidden(
                "login",
                found=f"{FAILURES_ALLOWED} tries that failed",
                expected="a pause",
                next_step=f"Wait {FAILURES_WINDOW.seconds // 60} minutes, then try again.",
            )
        conn.execute(failures.update().where(failures.c.name_sha256 == name_hash).values(count=row[0] + 1))


def _open_invitation(conn: Connection, token: str, now: datetime, *, lock: bool = False) -> RowMapping | None:
    invitation = tables.invitations.c
    query = select(tables.invitations).where(
        invitation.token_sha256 == _token_hash(token),
        invitation.used_at.is_(None),
        invitation.revoked_at.is_(None),
        invitation.expires_at > now,
        invitation.created_at <= now + _CLOCK_SLACK,
    )
    return conn.execute(query.with_for_update() if lock else query).mappings().one_or_none()


def _as_invitation(row: RowMapping, now: datetime) -> Invitation:
    if row["used_at"] is not None:
        state = "used"
    elif row["revoked_at"] is not None:
        state = "revoked"
    else:
        state = "open" if row["expires_at"] > now else "expired"
    return Invitation(
        row["id"],
        Role(row["role"]),
        row["display_name"],
        row["invited_by"],
        row["created_at"],
        row["expires_at"],
        state,
    )


def _as_account(row: RowMapping) -> Account:
    return Account(
        row["id"],
        row["name"],
        row["display_name"],
        Role(row["role"]),
        bool(row["local"]),
        bool(row["active"]),
    )


def _key(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold().strip()[:240]


def _login_name(name: str) -> tuple[str, str]:
    shown = unicodedata.normalize("NFC", name).strip()
    key = _key(shown)
    if not re.fullmatch(r"[\w][\w.@+ -]{1,39}", shown) or key in ("local", OPERATOR, "system"):
        raise QueueError(
            "name",
            found=f"{len(shown)} characters or a name that is reserved",
            expected="2 to 40 letters, digits, spaces or . _ - @ +",
            next_step="Choose another name.",
        )
    return shown, key


def _display_name(name: str) -> str:
    return "".join(char for char in name if char.isprintable()).strip()[:120]


def _hash_password(password: str) -> str:
    if not PASSWORD_LEAST <= len(password) <= _PASSWORD_MOST:
        raise QueueError(
            "password",
            found=f"{len(password)} characters",
            expected=f"{PASSWORD_LEAST} to {_PASSWORD_MOST}",
            next_step="Choose a longer one; a few words in a row are fine.",
        )
    return _hasher.hash(password.encode("utf-8", "surrogatepass"))


def _password_fits(known_hash: str, password: str) -> bool:
    try:
        return _hasher.verify(known_hash, password[:_PASSWORD_MOST].encode("utf-8", "surrogatepass"))
    except (VerificationError, InvalidHashError):
        return False


def _token_hash(token: str) -> str:
    # Tokens are 256 random bits: a plain hash cannot be searched, and a slow one would cost every request.
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _name_taken(name: str) -> QueueError:
    return QueueError(
        "name", found=f"{name!r} is taken", expected="a name of your own", next_step="Choose another name."
    )


def _no_invitation() -> Forbidden:
    return Forbidden(
        "invitation",
        found="none that is open",
        expected="an unused invitation, not older than a week",
        next_step="Ask the person who invited you for a new one.",
    )
