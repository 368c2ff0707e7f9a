"""An open round as it stands this minute: agreement so far, where people disagree, and their pace.

Quality assurance measures the same once the round is signed; until then the figures move, and say on how much they
stand.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from itertools import combinations
from typing import Any

from sqlalchemy import exists, func, select

from labeling.agreement import Agreement, Triple, krippendorff_alpha
from labeling.database import statements, tables
from labeling.database.connection import Database
from schemas.review import Action
from schemas.values import canonical_json

RESAMPLES = 200  # enough for an interval that a lead glances at, a few milliseconds
LAST_HOUR = timedelta(hours=1)

_item = tables.queue_items.c
_row = tables.decisions.c


@dataclass(frozen=True)
class Disagreement:
    """Two values that different people gave the same record.

    Attributes:
        records: On how many records.
    """

    first: str
    second: str
    records: int


@dataclass(frozen=True)
class Live:
    """An open round as it stands.

    Attributes:
        agreement: Krippendorff's alpha over records that several people have decided, with its interval; its value is
            None where it is undefined.
        disagreements: Pairs of values, the most frequent first.
        last_hour: Decisions made in the last hour, by everybody.
    """

    agreement: Agreement
    disagreements: tuple[Disagreement, ...]
    last_hour: int


def live(db: Database, number: int) -> Live:
    """The figures of a round now."""
    later = tables.decisions.alias()
    seen_twice = (
        select(_row.record_id, _row.annotator_id, _row.value_json)
        .join(tables.queue_items, _item.id == _row.item_id)
        .where(_row.kind == "decision", ~exists().where(later.c.supersedes == _row.annotation_id))
        .where(_row.round == number, _item.stage == statements.REVIEW, _item.overlap > 1)
        .where(_row.action.in_((Action.ACCEPT.value, Action.CORRECT.value)))
    )
    recent = select(func.count()).where(
        _row.round == number, _row.kind == "decision", _row.decided_at > db.now() - LAST_HOUR
    )
    with db.read() as conn:
        said: list[Triple] = [tuple(row) for row in conn.execute(seen_twice)]
        last_hour = int(conn.execute(recent).scalar_one())
    return Live(krippendorff_alpha(said, resamples=RESAMPLES), disagreements(said), last_hour)


def disagreements(said: Iterable[Triple]) -> tuple[Disagreement, ...]:
    """Which values were given to the same records by different people.

    Args:
        said: (record, annotator, value as canonical JSON).

    >>> disagreements([("r1", "a", '"x"'), ("r1", "b", '"y"'), ("r2", "a", '"y"'), ("r2", "b", '"x"')])
    (Disagreement(first='x', second='y', records=2),)
    """
    by_record: dict[str, set[str]] = {}
    for record, _, value in said:
        by_record.setdefault(record, set()).add(str(value))
    counted = Counter(pair for values in by_record.values() for pair in combinations(sorted(values), 2))
    return tuple(
        Disagreement(_shown(first), _shown(second), records)
        for (first, second), records in sorted(counted.items(), key=lambda entry: (-entry[1], entry[0]))
    )


def _shown(value_json: str) -> str:
    """A value as people read it: a label without its quotation marks."""
    value: Any = json.loads(value_json)
    return value if isinstance(value, str) else canonical_json(value)
