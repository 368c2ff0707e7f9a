"""What belongs to a decision beside its value: the batch it was made in, the co-pilot's suggestion, the rubric.

Kept as one JSON text with the decision (`details_json`, in the audit entry too), because most decisions have none.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, select

from labeling.database import tables
from schemas.errors import QueueError
from schemas.review import Action, DecisionIn, Purpose, Seen
from schemas.values import canonical_json

BEST = 5  # scores of a rubric go from 1 to this


def made_how(
    conn: Connection,
    item: RowMapping,
    annotator_id: str,
    decision: DecisionIn,
    suggested: str | None,
    rubric: Sequence[str],
) -> tuple[str | None, str | None]:
    """The suggested value that was on the screen (canonical JSON), and the details to store with the decision.

    Raises:
        QueueError: A batch that the record may not be in, a co-pilot that showed nothing, or scores for nothing.
    """
    details: dict[str, Any] = {}
    if decision.batch is not None:
        _require_batchable(item, decision)
        details["batch"] = decision.batch.model_dump()
    if decision.copilot:
        shown = copilot_shown(conn, item["id"], annotator_id)
        if shown is None:
            raise _does_not_fit(
                "copilot", "no suggestion of the co-pilot for this record", "one that was shown"
            )
        suggested = canonical_json(shown["value"])
        details["copilot"] = shown["made"]
    if decision.scores:
        details["rubric"] = _checked_scores(decision.scores, decision.action, rubric)
    return suggested, canonical_json(details) if details else None


def copilot_shown(conn: Connection, item_id: int, account_id: str) -> dict[str, Any] | None:
    """What the co-pilot suggested to this person on this record; None when it did not."""
    made = tables.copilot_suggestions.c
    told = conn.execute(
        select(made.suggestion_json).where(made.item_id == item_id, made.account_id == account_id)
    ).scalar_one_or_none()
    return None if told is None else dict(json.loads(told))


def _require_batchable(item: RowMapping, decision: DecisionIn) -> None:
    """Blind, audit and control records are what everything else is measured by: nobody waves them through."""
    if (item["purpose"], item["seen"]) != (Purpose.SELECTED.value, Seen.ASSISTED.value):
        raise _does_not_fit("batch", "a record that is decided by itself", "a record with a shown suggestion")
    if decision.action is not Action.ACCEPT:
        raise _does_not_fit("batch", f"action {decision.action.value}", "accept: what is wrong is unticked")


def _checked_scores(scores: Mapping[str, int], action: Action, rubric: Sequence[str]) -> dict[str, int]:
    if action not in (Action.ACCEPT, Action.CORRECT):
        raise _does_not_fit("scores", f"action {action.value}", "a value to score")
    unknown = sorted(set(scores) - set(rubric))
    if unknown:
        raise _does_not_fit(
            "scores", f"a score for {unknown[0]!r}", f"scores for {', '.join(rubric) or 'nothing'}"
        )
    return {name: scores[name] for name in rubric if name in scores}


def _does_not_fit(thing: str, found: str, expected: str) -> QueueError:
    return QueueError(
        thing, found=found, expected=expected, next_step="Nothing was saved. Send it again corrected."
    )
