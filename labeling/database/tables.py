"""The tables of the review database: one schema for SQLite and PostgreSQL.

`decisions`, `gates`, `comments`, `flags`, `settings_versions` and `audit` are append-only: triggers refuse
UPDATE and DELETE, so that a slip in our own code cannot rewrite history (somebody with the file in hand still
can; the audit chain finds that). Everything else is state and may change.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

from schemas.values import label_names

REVISION = "0002"  # the Alembic head this code was written for

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def utc_text(moment: datetime) -> str:
    """A UTC time as fixed-width text, so that text order is time order in both databases.

    >>> utc_text(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    '2026-01-02T03:04:05.000000Z'
    """
    if moment.tzinfo is None:
        raise ValueError("a time without a time zone cannot be stored")
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Utc(TypeDecorator[datetime]):
    """Aware UTC datetimes, stored as `utc_text`. SQLite has no time type; drivers disagree on zones."""

    impl = String(27)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> str | None:
        return None if value is None else utc_text(value)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return datetime.fromisoformat(str(value))


meta = Table(
    "meta",
    metadata,
    Column("key", String(40), primary_key=True),
    Column("value", Text, nullable=False),
)

accounts = Table(
    "accounts",
    metadata,
    # The id is the pseudonym (`a-3f2c91`) that every table and export shows; the login name never leaves this
    # table.
    Column("id", String(16), primary_key=True),
    Column("name", String(80), nullable=False),
    Column("name_key", String(240), nullable=False, unique=True),
    Column("display_name", String(120), nullable=False),
    Column("role", String(16), nullable=False),
    Column("password_hash", Text),
    Column("local", Boolean, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("created_at", Utc, nullable=False),
)

invitations = Table(
    "invitations",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("token_sha256", String(64), nullable=False, unique=True),
    Column("role", String(16), nullable=False),
    Column("display_name", String(120), nullable=False),
    Column("invited_by", String(16), nullable=False),
    Column("created_at", Utc, nullable=False),
    Column("expires_at", Utc, nullable=False),
    Column("used_at", Utc),
    Column("used_by", String(16)),
    Column("revoked_at", Utc),
)

sessions = Table(
    "sessions",
    metadata,
    Column("token_sha256", String(64), primary_key=True),
    Column("account_id", String(16), ForeignKey("accounts.id"), nullable=False, index=True),
    Column("created_at", Utc, nullable=False),
    Column("seen_at", Utc, nullable=False),
    Column("expires_at", Utc, nullable=False),
    Column("ended_at", Utc),
)

login_failures = Table(
    "login_failures",
    metadata,
    # Keyed by the hash of whatever name was typed, so that unknown names are locked exactly like known ones.
    Column("name_sha256", String(64), primary_key=True),
    Column("count", Integer, nullable=False),
    Column("since", Utc, nullable=False),
)

pools = Table(
    "pools",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(80), nullable=False),
    Column("name_key", String(240), nullable=False, unique=True),
)

pool_members = Table(
    "pool_members",
    metadata,
    Column("pool_id", Integer, ForeignKey("pools.id"), primary_key=True),
    Column("account_id", String(16), ForeignKey("accounts.id"), primary_key=True, index=True),
)

preferences = Table(
    "preferences",
    metadata,
    Column("account_id", String(16), ForeignKey("accounts.id"), primary_key=True),
    Column("key", String(40), primary_key=True),
    Column("value", Text, nullable=False),
)

rounds = Table(
    "rounds",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("state", String(16), nullable=False),
    Column("rehearsal", Boolean, nullable=False),
    Column("opened_at", Utc, nullable=False),
)

queue_items = Table(
    "queue_items",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("round", Integer, ForeignKey("rounds.number"), nullable=False),
    Column("stage", String(16), nullable=False),  # review | adjudication
    Column("record_id", String(80), nullable=False),
    Column("purpose", String(16), nullable=False),
    Column("seen", String(16), nullable=False),
    Column("priority", Double, nullable=False),
    Column("overlap", Integer, nullable=False),
    Column("text", Text, nullable=False),
    Column("text_sha256", String(64), nullable=False),
    Column("suggestion_json", Text),  # always null on blind items: what is not stored cannot leak
    Column("reason", Text, nullable=False),  # adjudication: why the record came back
    Column("version", Integer, nullable=False),  # grows when what a person sees of the item changes
    Column("decided", Integer, nullable=False),  # standing decisions that are not skips
    Column("done", Boolean, nullable=False),  # decided >= overlap
    # Copies out of suggestion_json, so that finding and batches need not read every suggestion.
    Column("confidence", Double),
    Column("suggested_labels", Text),  # see `joined_labels`
    # Whose it is: both null means anybody's.
    Column("pool_id", Integer, ForeignKey("pools.id")),
    Column("for_account", String(16), ForeignKey("accounts.id")),
    UniqueConstraint("round", "stage", "record_id"),
    CheckConstraint("overlap >= 1", name="overlap_positive"),
    CheckConstraint("decided >= 0", name="decided_not_negative"),
    CheckConstraint("seen <> 'blind' OR suggestion_json IS NULL", name="blind_without_suggestion"),
)
Index(
    "ix_queue_items_next",
    queue_items.c.round,
    queue_items.c.stage,
    queue_items.c.done,
    queue_items.c.priority.desc(),
    queue_items.c.id,
)

Index(
    "ix_queue_items_sure",
    queue_items.c.round,
    queue_items.c.stage,
    queue_items.c.confidence,
    queue_items.c.id,
)
Index(
    "ix_queue_items_alike",
    queue_items.c.round,
    queue_items.c.stage,
    queue_items.c.suggested_labels,
    queue_items.c.confidence,
    queue_items.c.id,
)

_routed = queue_items.c.pool_id.is_not(None) | queue_items.c.for_account.is_not(None)
Index("ix_queue_items_routed", queue_items.c.round, sqlite_where=_routed, postgresql_where=_routed)

assignments = Table(
    "assignments",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("item_id", Integer, ForeignKey("queue_items.id"), nullable=False),
    Column("account_id", String(16), ForeignKey("accounts.id"), nullable=False),
    Column("state", String(16), nullable=False),  # leased | decided | skipped | released
    Column("assigned_at", Utc, nullable=False),
    Column("expires_at", Utc, nullable=False),
    Column("version", Integer, nullable=False),  # grows with every decision and undo of this person
    UniqueConstraint("item_id", "account_id"),
    Index("ix_assignments_account_id_state", "account_id", "state"),
)

decisions = Table(
    "decisions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("annotation_id", String(40), nullable=False, unique=True),
    Column("kind", String(16), nullable=False),  # decision | undo
    Column("round", Integer, ForeignKey("rounds.number"), nullable=False),
    Column("item_id", Integer, ForeignKey("queue_items.id"), nullable=False, index=True),
    Column("assignment_id", Integer, ForeignKey("assignments.id"), nullable=False),
    Column("record_id", String(80), nullable=False),
    Column("text_sha256", String(64), nullable=False),
    Column("annotator_id", String(16), ForeignKey("accounts.id"), nullable=False),
    Column("action", String(16), nullable=False),
    Column("value_json", Text),
    Column("seen", String(16), nullable=False),
    Column("purpose", String(16), nullable=False),
    Column("suggestion_json", Text),  # the value that was shown, null when none was
    Column("seconds", Double, nullable=False),
    Column("comment", Text, nullable=False),
    Column("not_sure", Boolean, nullable=False),
    Column("idempotency_key", String(64), nullable=False),
    Column("version", Integer, nullable=False),  # what the assignment's version was before this row
    Column("supersedes", String(40), ForeignKey("decisions.annotation_id"), unique=True),
    Column("decided_at", Utc, nullable=False),
    Column("rehearsal", Boolean, nullable=False),
    Column("audit_seq", Integer, ForeignKey("audit.seq"), nullable=False, unique=True),
    Column("details_json", Text),  # what else belongs to it (batch, co-pilot, rubric); null: nothing
    UniqueConstraint("annotator_id", "idempotency_key"),
    Index("ix_decisions_round_annotator_id", "round", "annotator_id"),
)

copilot_suggestions = Table(
    "copilot_suggestions",
    metadata,
    # What the co-pilot showed one person on one record; made once, so that a decision can say what was shown.
    Column("id", Integer, primary_key=True),
    Column("item_id", Integer, ForeignKey("queue_items.id"), nullable=False),
    Column("account_id", String(16), ForeignKey("accounts.id"), nullable=False),
    Column("suggestion_json", Text, nullable=False),
    Column("at", Utc, nullable=False),
    UniqueConstraint("item_id", "account_id"),
)

comments = Table(
    "comments",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("item_id", Integer, ForeignKey("queue_items.id"), nullable=False, index=True),
    Column("record_id", String(80), nullable=False, index=True),
    Column("annotator_id", String(16), ForeignKey("accounts.id"), nullable=False),
    Column("text", Text, nullable=False),
    Column("at", Utc, nullable=False),
    Column("audit_seq", Integer, ForeignKey("audit.seq"), nullable=False, unique=True),
)

flags = Table(
    "flags",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("item_id", Integer, ForeignKey("queue_items.id"), nullable=False, index=True),
    Column("record_id", String(80), nullable=False),
    Column("annotator_id", String(16), ForeignKey("accounts.id"), nullable=False),
    Column("raised", Boolean, nullable=False),  # the newest row of an item and person counts
    Column("at", Utc, nullable=False),
    Column("audit_seq", Integer, ForeignKey("audit.seq"), nullable=False, unique=True),
)

gates = Table(
    "gates",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("phase", String(20), nullable=False),
    Column("round", Integer, nullable=False),
    Column("event", String(16), nullable=False),  # opened | approve | reject | reopened
    Column("account_id", String(16), ForeignKey("accounts.id")),  # null: opened by a flow
    Column("signed_by", String(120), nullable=False),
    Column("note", Text, nullable=False),
    Column("figures_json", Text, nullable=False),
    Column("at", Utc, nullable=False),
    Column("rehearsal", Boolean, nullable=False),
    Column("audit_seq", Integer, ForeignKey("audit.seq"), nullable=False, unique=True),
    Index("ix_gates_phase_round", "phase", "round"),
)

settings_versions = Table(
    "settings_versions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", String(16), nullable=False),  # schema | guideline | policy
    Column("version", Integer, nullable=False),
    Column("content", Text, nullable=False),
    Column("content_sha256", String(64), nullable=False),
    Column("account_id", String(16), nullable=False),
    Column("note", Text, nullable=False),
    Column("at", Utc, nullable=False),
    Column("audit_seq", Integer, ForeignKey("audit.seq"), nullable=False, unique=True),
    UniqueConstraint("kind", "version"),
)

audit = Table(
    "audit",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("utc", String(27), nullable=False),
    Column("actor", String(120), nullable=False),
    Column("action", String(60), nullable=False),
    Column("object", String(200), nullable=False),
    Column("payload", Text, nullable=False),
    Column("payload_sha256", String(64), nullable=False),
    Column("prev", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    Index("ix_audit_object", "object"),
)

audit_head = Table(
    "audit_head",
    metadata,
    # One row, id 1. On PostgreSQL its row lock puts writers in line, so that seq has neither gap nor fork.
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("seq", Integer, nullable=False),
    Column("hash", String(64), nullable=False),
)

APPEND_ONLY = ("decisions", "gates", "comments", "flags", "settings_versions", "audit")
# Columns that rows written before them do not have; left out of an audit entry where they are null.
LATER_COLUMNS = frozenset({"details_json"})


def joined_labels(value: Any) -> str | None:
    """The labels inside a suggested value as one text that can be grouped, and searched for one label.

    Every label is enclosed in unit separators, which no label holds; None where a value has no labels at all (pairs).

    >>> joined_labels(["Billing", "Refill"]) == SEPARATOR + "Billing" + SEPARATOR + "Refill" + SEPARATOR
    True
    """
    names = label_names(value)
    return None if names is None else SEPARATOR + "".join(name + SEPARATOR for name in names)


SEPARATOR = "\x1f"
