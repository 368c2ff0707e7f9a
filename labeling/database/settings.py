"""Versions of what a lead may change while people work: the label schema and the guideline. Only ever added to."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, select

from labeling.database import accounts, chain, tables
from labeling.database.connection import Database
from schemas.errors import VersionConflict
from schemas.values import content_hash

SCHEMA, GUIDELINE = "schema", "guideline"
_row = tables.settings_versions.c


@dataclass(frozen=True)
class Version:
    """One version of a setting. `by` is a pseudonym, or the operator for what came from the file."""

    kind: str
    version: int
    content: str
    by: str
    note: str
    at: datetime


def versions(db: Database, kind: str) -> list[Version]:
    """All versions, the newest first."""
    query = select(tables.settings_versions).where(_row.kind == kind).order_by(_row.version.desc())
    with db.read() as conn:
        return [
            Version(row.kind, row.version, row.content, row.account_id, row.note, row.at)
            for row in conn.execute(query)
        ]


def decided(db: Database) -> int:
    """How many decisions were given in this project, with whatever labels it had."""
    with db.read() as conn:
        return int(conn.execute(select(func.count()).select_from(tables.decisions)).scalar_one())


def store(
    conn: Connection,
    db: Database,
    *,
    before: Mapping[str, str],
    after: Mapping[str, str],
    by: str,
    note: str,
    seen: int,
) -> list[str]:
    """Adds a version of every kind that changed; returns those kinds.

    Args:
        before: Content by kind as it stands in the files; what no version holds yet becomes one of the operator's.
        after: Content by kind from now on.
        seen: Number of versions of all kinds that the person had before their eyes.

    Raises:
        VersionConflict: somebody stored a version meanwhile.
    """
    known = int(conn.execute(select(func.count()).select_from(tables.settings_versions)).scalar_one())
    if known != seen:
        raise VersionConflict(
            "the label schema",
            found="a newer version than the one on your page",
            expected="the newest one",
            next_step="Nothing was saved. Open the page again and repeat your change on what stands there now.",
        )
    changed = []
    for kind, content in after.items():
        if content == before[kind]:
            continue
        if _newest(conn, kind) != before[kind]:
            _add(
                conn, db, kind, before[kind], by=accounts.OPERATOR, note="As it stood in the project's files."
            )
        _add(conn, db, kind, content, by=by, note=note)
        changed.append(kind)
    return changed


def _newest(conn: Connection, kind: str) -> str | None:
    query = select(_row.content).where(_row.kind == kind).order_by(_row.version.desc()).limit(1)
    return conn.execute(query).scalar_one_or_none()


def _add(conn: Connection, db: Database, kind: str, content: str, *, by: str, note: str) -> None:
    last = conn.execute(select(func.max(_row.version)).where(_row.kind == kind)).scalar_one_or_none() or 0
    now = db.now()
    values = {
        "kind": kind,
        "version": last + 1,
        "content": content,
        "content_sha256": content_hash(content),
        "account_id": by,
        "note": note,
        "at": now,
    }
    chain.record_row(
        conn, tables.settings_versions, values, actor=by, object=f"settings:{kind}:{last + 1}", utc=now
    )
