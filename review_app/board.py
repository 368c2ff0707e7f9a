"""The lead's board: one row a round and one sentence that says what to do next."""

import json
import time
from dataclasses import dataclass
from typing import Any

from labeling.database import rounds
from labeling.database.connection import Database
from labeling.database.rounds import RoundProgress
from labeling.live import Live, live
from labeling.paths import ProjectFolder
from review_app.progress import duration_words
from review_app.wording import STATES
from schemas.review import RoundState

KEEP_S = 10.0


@dataclass(frozen=True)
class Row:
    """One round on the board.

    Attributes:
        left: Expected working time left of all people together, in words; empty when unknown or nothing is
            left.
        agreement: As quality assurance wrote it; None before that.
        live: Agreement so far, disagreements and pace while people are at work; None otherwise.
    """

    progress: RoundProgress
    state: str
    next_step: str
    left: str
    agreement: dict[str, Any] | None
    has_report: bool
    missing: list[str]
    live: Live | None


class LiveFigures:
    """What the board shows of open rounds, computed at most every few seconds however many people look."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._kept: dict[int, tuple[float, Live]] = {}

    def of_round(self, number: int) -> Live:
        now = time.monotonic()
        at, kept = self._kept.get(number, (0.0, None))
        if kept is None or now - at > KEEP_S:
            kept = live(self._db, number)
            self._kept[number] = (now, kept)
        return kept


def rows(db: Database, folder: ProjectFolder, figures: LiveFigures) -> list[Row]:
    """The newest round first."""
    return [_row(db, folder, number, figures) for number in reversed(rounds.round_numbers(db))]


def _row(db: Database, folder: ProjectFolder, number: int, figures: LiveFigures) -> Row:
    stands = rounds.progress(db, number)
    missing = rounds.missing(db, number)
    lacking = sum(part.wanted - part.decisions for part in stands.per_purpose.values())
    known = stands.seconds_median is not None and lacking > 0
    return Row(
        progress=stands,
        state=STATES[stands.state.value],
        next_step=_next_step(stands, missing),
        left=duration_words((stands.seconds_median or 0.0) * lacking) if known else "",
        agreement=_agreement(folder, number),
        has_report=folder.round(number).report.is_file(),
        missing=missing,
        live=figures.of_round(number) if stands.state is RoundState.OPEN else None,
    )


def _next_step(stands: RoundProgress, missing: list[str]) -> str:
    name = f"Round {stands.number}"
    match stands.state:
        case RoundState.SAMPLING if not missing:
            return "The setup sample is labelled: look at the setup gate."
        case RoundState.SAMPLING:
            return f"The setup sample has {stands.open} of {stands.items} records to go."
        case RoundState.OPEN if not missing:
            return f"{name} can be signed: 0 of {stands.items} records are open."
        case RoundState.OPEN:
            return f"{name} goes on: {stands.open} of {stands.items} records are open."
        case RoundState.SIGNED:
            return f"{name} is signed: run quality assurance."
        case RoundState.ADJUDICATING if stands.disputes_open:
            return f"{stands.disputes_open} of {stands.disputes} disputes wait for an adjudicator."
        case RoundState.ADJUDICATING:
            return f"Every dispute of round {stands.number} is settled: run quality assurance again."
        case _:
            return f"{name} is closed; nothing of it changes any more."


def _agreement(folder: ProjectFolder, number: int) -> dict[str, Any] | None:
    try:
        found = json.loads(folder.round(number).agreement.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None
