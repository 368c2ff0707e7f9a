"""How far a round is, in the words a reviewer reads."""

from typing import Any

from labeling.database.connection import Database
from labeling.database.pace import pace


def of_person(db: Database, annotator_id: str) -> dict[str, Any]:
    """Counts and the two sentences of the record page's head; `words` never promises more than is known."""
    now = pace(db, annotator_id)
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
