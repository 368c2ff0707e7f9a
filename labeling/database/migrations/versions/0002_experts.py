"""Finding, batches, co-pilot, rubric, pools and preferences."""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BATCH = 2_000
SEPARATOR = "\x1f"


def upgrade() -> None:
    op.create_table(
        "pools",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=80), nullable=False),
        sa.Column("name_key", sa.String(length=240), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pools")),
        sa.UniqueConstraint("name_key", name=op.f("uq_pools_name_key")),
    )
    op.create_table(
        "pool_members",
        sa.Column("pool_id", sa.Integer(), nullable=False),
        sa.Column("account_id", sa.String(length=16), nullable=False),
        sa.ForeignKeyConstraint(["pool_id"], ["pools.id"], name=op.f("fk_pool_members_pool_id_pools")),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.id"], name=op.f("fk_pool_members_account_id_accounts")
        ),
        sa.PrimaryKeyConstraint("pool_id", "account_id", name=op.f("pk_pool_members")),
    )
    op.create_index(op.f("ix_pool_members_account_id"), "pool_members", ["account_id"], unique=False)
    op.create_table(
        "preferences",
        sa.Column("account_id", sa.String(length=16), nullable=False),
        sa.Column("key", sa.String(length=40), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.id"], name=op.f("fk_preferences_account_id_accounts")
        ),
        sa.PrimaryKeyConstraint("account_id", "key", name=op.f("pk_preferences")),
    )
    op.create_table(
        "copilot_suggestions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("item_id", sa.Integer(), nullable=False),
        sa.Column("account_id", sa.String(length=16), nullable=False),
        sa.Column("suggestion_json", sa.Text(), nullable=False),
        sa.Column("at", sa.String(length=27), nullable=False),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.id"], name=op.f("fk_copilot_suggestions_account_id_accounts")
        ),
        sa.ForeignKeyConstraint(
            ["item_id"], ["queue_items.id"], name=op.f("fk_copilot_suggestions_item_id_queue_items")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_copilot_suggestions")),
        sa.UniqueConstraint("item_id", "account_id", name=op.f("uq_copilot_suggestions_item_id_account_id")),
    )
    op.add_column("decisions", sa.Column("details_json", sa.Text(), nullable=True))
    op.add_column("queue_items", sa.Column("confidence", sa.Double(), nullable=True))
    op.add_column("queue_items", sa.Column("suggested_labels", sa.Text(), nullable=True))
    # In one statement each: SQLite adds a column with its foreign key, but no foreign key to a column.
    op.execute(
        "ALTER TABLE queue_items ADD COLUMN pool_id INTEGER "
        "CONSTRAINT fk_queue_items_pool_id_pools REFERENCES pools (id)"
    )
    op.execute(
        "ALTER TABLE queue_items ADD COLUMN for_account VARCHAR(16) "
        "CONSTRAINT fk_queue_items_for_account_accounts REFERENCES accounts (id)"
    )
    _copy_out_of_suggestions()
    op.create_index(
        "ix_queue_items_sure", "queue_items", ["round", "stage", "confidence", "id"], unique=False
    )
    op.create_index(
        "ix_queue_items_alike",
        "queue_items",
        ["round", "stage", "suggested_labels", "confidence", "id"],
        unique=False,
    )
    routed = sa.text("pool_id IS NOT NULL OR for_account IS NOT NULL")
    op.create_index(
        "ix_queue_items_routed", "queue_items", ["round"], sqlite_where=routed, postgresql_where=routed
    )


def _copy_out_of_suggestions() -> None:
    connection = op.get_bind()
    after = 0
    while rows := connection.execute(
        sa.text(
            "SELECT id, suggestion_json FROM queue_items "
            "WHERE id > :after AND suggestion_json IS NOT NULL ORDER BY id LIMIT :batch"
        ),
        {"after": after, "batch": BATCH},
    ).all():
        after = rows[-1].id
        connection.execute(
            sa.text(
                "UPDATE queue_items SET confidence = :confidence, suggested_labels = :labels WHERE id = :id"
            ),
            [{"id": row.id, **_told(json.loads(row.suggestion_json))} for row in rows],
        )


def _told(suggestion: dict[str, Any]) -> dict[str, Any]:
    value = suggestion["value"]
    if isinstance(value, str):
        names = [value]
    elif isinstance(value, list):
        names = sorted({part if isinstance(part, str) else part["label"] for part in value})
    else:
        return {"confidence": suggestion.get("confidence"), "labels": None}
    return {
        "confidence": suggestion.get("confidence"),
        "labels": SEPARATOR + "".join(name + SEPARATOR for name in names),
    }
