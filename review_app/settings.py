"""A person's own page: the goal of the day, how they get on, and whether the co-pilot helps."""

from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response

from labeling.database.accounts import Right
from labeling.database.preferences import Preferences, preferences, set_preferences
from review_app import progress
from review_app.access import needs
from review_app.pages import render

router = APIRouter()


@router.get("/me")
@needs(Right.LABEL)
def my_page(request: Request, saved: bool = False) -> Response:
    """What this person set, and how far they are."""
    db, account = request.app.state.db, request.state.account
    review = request.app.state.settings.project.review
    return render(
        request,
        "me.html",
        mine=preferences(db, account.id),
        project_goal=review.daily_goal,
        has_copilot=review.copilot and request.app.state.copilot.able,
        stands=progress.of_person(db, account.id),
        duration=progress.duration_words,
        saved=saved,
    )


@router.post("/me")
@needs(Right.LABEL)
def set_mine(
    request: Request,
    daily_goal: Annotated[str, Form(pattern=r"^\s*[0-9]{0,5}\s*$")] = "",
    copilot: Annotated[bool, Form()] = False,
    has_copilot: Annotated[bool, Form()] = False,
) -> Response:
    """Keep what this person set; without the co-pilot's switch on the page, its setting stays."""
    db, account = request.app.state.db, request.state.account
    before = preferences(db, account.id)
    goal = daily_goal.strip()
    wanted = Preferences(
        daily_goal=int(goal) if goal else None, copilot=copilot if has_copilot else before.copilot
    )
    set_preferences(db, account.id, wanted)
    return RedirectResponse("/me?saved=true", 303)
