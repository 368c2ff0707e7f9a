"""The co-pilot's one route: a suggestion made just now, or none."""

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from labeling.copilot import Copilot, Fresh
from labeling.database import copilot, queue
from labeling.database.accounts import Right
from labeling.database.preferences import preferences
from review_app.access import needs

router = APIRouter()


class CopilotIn(BaseModel):
    """The record that has opened, or is about to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    assignment_id: Annotated[int, Field(ge=1, le=2**31 - 1)]


def wanted(request: Request) -> bool:
    """Whether the project has a co-pilot and this person lets it help."""
    if not request.app.state.settings.project.review.copilot or not request.app.state.copilot.able:
        return False
    return preferences(request.app.state.db, request.state.account.id).copilot


@router.post("/api/copilot")
@needs(Right.LABEL)
def suggest(request: Request, body: CopilotIn) -> dict[str, Any]:
    """A suggestion for a record in this person's hands that has none; null whenever there is none to make."""
    db, account = request.app.state.db, request.state.account
    held = queue.assignment(db, account.id, body.assignment_id)
    if held is None or not copilot.wants_help(held) or not wanted(request):
        return {"suggestion": None}
    suggestion = copilot.shown_before(db, held.item_id, account.id)
    if suggestion is None:
        maker: Copilot = request.app.state.copilot
        recent = copilot.recent_answers(db, held.round)
        fresh = maker.suggest(held.round, held.record_id, held.text, [one for one, _ in recent])
        if fresh is None:
            return {"suggestion": None}
        own = {one.record_id for one, who in recent if who == account.id}
        suggestion = copilot.keep(db, held.item_id, account.id, _told(fresh, own))
    return {"suggestion": {key: value for key, value in suggestion.items() if key != "made"}}


def _told(fresh: Fresh, own: set[str]) -> dict[str, Any]:
    """As the page shows it. Of the examples only the person's own answers are shown: another's could sway."""
    return {
        "value": fresh.value,
        "confidence": None,
        "by": "copilot",
        "recent": len(fresh.exemplars),
        "runner_up": [{"label": label, "probability": share} for label, share in fresh.others],
        "evidence": [
            {"text": one.text[:200], "label": one.label}
            for one in reversed(fresh.exemplars)
            if one.record_id in own
        ],
        "made": fresh.made,
    }
