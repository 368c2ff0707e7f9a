"""How far a round is, in the words a reviewer reads."""

from datetime import datetime, timedelta
from typing import Any

from labeling.database.connection import Database
from labeling.database.pace import done_since, pace
from labeling.database.preferences import preferences

_LONGEST_DAY = timedelta(hours=50)  # a browser's midnight is never longer ago, whatever its clock says


def of_person(
    db: Database, annotator_id: str, *, since: datetime | None = None, project_goal: int | None = None
) -> dict[str, Any]:
    """Counts, pace and goal as the record page shows them.

    Args:
        db: The database.
        annotator_id: Account id.
        since: When this person's day began, by their browser; None takes the last 24 hours.
        project_goal: Records a day, for those who set no goal of their own.
    """
    now = pace(db, annotator_id)
    own_goal = preferences(db, annotator_id).daily_goal
    # No later than now either: a time at the end of the calendar cannot be told in UTC.
    present = db.now()
    day = present - timedelta(hours=24) if since is None else min(max(since, present - _LONGEST_DAY), present)
    return {
        "round": now.round,
        "state": None if now.state is None else now.state.value,
        "items": now.items,
        "done": now.done,
        "own": now.own,
        "left": now.left,
        "seconds": now.seconds,
        "seconds_total": now.seconds_total,
        "eta_s": None if now.seconds is None else now.seconds * now.share,
        "at_work": now.at_work,
        "today": done_since(db, annotator_id, day),
        "goal": (project_goal if own_goal is None else own_goal) or None,
    }


def duration_words(seconds: float) -> str:
    """A duration as people say it.

    >>> [duration_words(s) for s in (20, 90, 1500, 5400)]
    ['less than a minute', '2 min', '25 min', '1 h 30 min']
    """
    minutes = round(seconds / 60 + 1e-9)
    if seconds < 45:
        return "less than a minute"
    if minutes < 60:
        return f"{max(minutes, 1)} min"
    return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")
