"""What each person set for themselves: the goal of the day, and whether the co-pilot helps."""

from dataclasses import dataclass

from sqlalchemy import select

from labeling.database import accounts, tables
from labeling.database.accounts import Right
from labeling.database.connection import Database
from schemas.errors import QueueError

MOST_A_DAY = 10_000

_preference = tables.preferences.c


@dataclass(frozen=True)
class Preferences:
    """One person's own settings.

    Attributes:
        daily_goal: Records a day; None takes the project's, 0 means no goal.
        copilot: Suggestions made just now may be shown, where the project has them.
    """

    daily_goal: int | None = None
    copilot: bool = True


def preferences(db: Database, account_id: str) -> Preferences:
    """What this person set; the defaults where they set nothing."""
    with db.read() as conn:
        told = {
            row.key: row.value
            for row in conn.execute(select(tables.preferences).where(_preference.account_id == account_id))
        }
    goal = told.get("daily_goal", "")
    return Preferences(daily_goal=int(goal) if goal else None, copilot=told.get("copilot", "true") == "true")


def set_preferences(db: Database, account_id: str, wanted: Preferences) -> None:
    """Keep what this person set.

    Raises:
        QueueError: A goal that is no number of records.
        Forbidden: This account may not label.
    """
    if wanted.daily_goal is not None and not 0 <= wanted.daily_goal <= MOST_A_DAY:
        raise QueueError(
            "daily_goal",
            found=str(wanted.daily_goal),
            expected=f"0 (no goal) to {MOST_A_DAY}",
            next_step="Give another number, or leave it empty.",
        )
    goal = "" if wanted.daily_goal is None else str(wanted.daily_goal)
    rows = {"daily_goal": goal, "copilot": "true" if wanted.copilot else "false"}
    with db.write() as conn:
        accounts.require(conn, account_id, Right.LABEL, lock=True)
        conn.execute(tables.preferences.delete().where(_preference.account_id == account_id))
        conn.execute(
            tables.preferences.insert(),
            [{"account_id": account_id, "key": key, "value": value} for key, value in rows.items()],
        )
