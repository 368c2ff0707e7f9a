"""A project with people and a round, and short words for what they do."""

from datetime import UTC, datetime, timedelta
from typing import Any

from labeling.database import accounts, queue, rounds
from labeling.database.accounts import Account
from labeling.database.connection import Database
from labeling.database.queue import DecisionOut
from schemas.errors import LabelingError
from schemas.review import DecisionIn, Purpose, QueueItem, Role, RoundState, Seen

LABELS = ("Appointment", "Refill", "Results", "Billing")


class Clock:
    """UTC time that a test moves by hand; it starts at the real one and stands still."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **by: float) -> None:
        self.now += timedelta(**by)


def check_value(value: Any, text: str) -> None:
    """Classification, in small."""
    if value not in LABELS:
        raise LabelingError(
            "value", found=repr(value), expected=f"one of {LABELS}", next_step="Choose one of the labels."
        )


class Clinic:
    """A project with people and a round, and short words for what they do."""

    check_value = staticmethod(check_value)
    labels = LABELS

    def __init__(self, db: Database) -> None:
        self.db = db
        self._keys = 0

    def person(self, name: str, role: Role = Role.ANNOTATOR) -> Account:
        token = accounts.invite(self.db, role, name, accounts.OPERATOR)
        return accounts.accept_invitation(self.db, token, name, f"{name} likes long words")

    def key(self) -> str:
        self._keys += 1
        return f"key-{self._keys:08d}"

    def round(
        self,
        records: int = 4,
        *,
        number: int = 1,
        overlap: int = 1,
        seen: Seen = Seen.ASSISTED,
        purpose: Purpose = Purpose.SELECTED,
        state: RoundState = RoundState.OPEN,
        suggestion: Any = "Refill",
        rehearsal: bool = False,
        prefix: str = "r",
    ) -> None:
        """Records r0 (most urgent), r1, …, suggested as Refill."""
        rounds.open_round(self.db, number, state=state, rehearsal=rehearsal, actor="flow")
        items = [
            QueueItem(
                record_id=f"{prefix}{i}", purpose=purpose, seen=seen, priority=float(-i), overlap=overlap
            )
            for i in range(records)
        ]
        shown = None if suggestion is None else {"value": suggestion, "confidence": 0.7}
        content = {item.record_id: (f"Text of {item.record_id}", shown) for item in items}
        rounds.add_items(self.db, number, items, content, "flow")

    def decide(
        self, person: Account, value: Any = "Refill", action: str | None = None, **more: Any
    ) -> DecisionOut:
        """Claim the next record and decide it."""
        held = queue.claim(self.db, person.id)
        assert held is not None
        return self.send(person, held, value, action, **more)

    def send(
        self,
        person: Account,
        held: queue.Assignment,
        value: Any = "Refill",
        action: str | None = None,
        **more: Any,
    ) -> DecisionOut:
        return queue.decide(
            self.db, person.id, self.decision(held, value, action, **more), check_value=check_value
        )

    def decision(
        self, held: queue.Assignment, value: Any = "Refill", action: str | None = None, **more: Any
    ) -> DecisionIn:
        told = held.suggestion is not None and value == held.suggestion["value"]
        return DecisionIn.model_validate(
            {
                "assignment_id": held.assignment_id,
                "idempotency_key": self.key(),
                "expected_version": held.version,
                "action": action or ("accept" if told else "correct"),
                "value": value,
                "seconds": 2.5,
                **more,
            }
        )
