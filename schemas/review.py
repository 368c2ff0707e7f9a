"""What people do: queue items, decisions, gates. Words as in the glossary of docs/design.md."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from schemas.values import Value


class Action(StrEnum):
    """What an annotator did with a record."""

    ACCEPT = "accept"  # the suggestion is right
    CORRECT = "correct"  # another value
    REJECT = "reject"  # this record cannot be labelled with the schema (a reason is given)
    SKIP = "skip"  # this person cannot say (a reason is given); someone else should


class Seen(StrEnum):
    """Whether the suggestion was on the screen."""

    ASSISTED = "assisted"
    BLIND = "blind"


class Purpose(StrEnum):
    """Why a record is in the queue."""

    SAMPLE = "sample"  # the setup sample: simple random, blind
    AUDIT = "audit"  # the slice no loop sees: simple random, blind
    SELECTED = "selected"  # least sure first
    OVERLAP = "overlap"  # several annotators, for agreement
    CONTROL = "control"  # known answer
    RECHECK = "recheck"  # flagged by quality assurance: adjudication


class RoundState(StrEnum):
    """Guarded states of a round; only the transitions of `labeling.database.rounds` exist."""

    SAMPLING = "sampling"  # the setup sample is being labelled
    OPEN = "open"  # under review
    SIGNED = "signed"  # the gate was approved; the tables of the round are written
    ADJUDICATING = "adjudicating"  # quality assurance sent disputes back
    CLOSED = "closed"  # gold exists; nothing of the round changes any more


class Verdict(StrEnum):
    """What the lead says at the gate."""

    APPROVE = "approve"
    REJECT = "reject"


class Role(StrEnum):
    """Roles, each allowed what reliability.md lists; nobody changes their own."""

    ANNOTATOR = "annotator"
    REVIEWER = "reviewer"  # annotates and adjudicates
    MANAGER = "manager"  # queues, gates, export
    ADMIN = "admin"  # accounts, no labels
    AUDITOR = "auditor"  # reads and verifies


class QueueItem(BaseModel):
    """One record put before people."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    record_id: str
    purpose: Purpose
    seen: Seen = Field(description="blind: the suggestion must not be shown, nor be derivable from the page.")
    priority: float = Field(description="Higher comes first.")
    overlap: int = Field(default=1, ge=1, description="How many different annotators shall decide.")
    pool: str | None = Field(default=None, description="Only people of this pool get it; none = anybody.")


class BatchIn(BaseModel):
    """The batch a decision was made in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{8,64}$")]
    size: int = Field(ge=1, le=100, description="Records accepted together; seconds is each one's share.")


class DecisionIn(BaseModel):
    """What the browser sends. Durable and idempotent by `idempotency_key`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    assignment_id: int
    idempotency_key: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{8,64}$")]
    expected_version: int = Field(ge=0, description="Version of the item this person saw.")
    action: Action
    value: Value = Field(default=None, description="null for reject and skip.")
    seconds: float = Field(ge=0, le=86_400, description="Time the record was on the screen.")
    comment: Annotated[str, StringConstraints(max_length=4000)] = ""
    not_sure: bool = False
    batch: BatchIn | None = Field(default=None, description="Accepted together with records alike.")
    copilot: bool = Field(default=False, description="The suggestion on the screen was the co-pilot's.")
    scores: dict[str, Annotated[int, Field(ge=1, le=5)]] = Field(
        default_factory=dict, max_length=10, description="Rubric, by what is scored."
    )


class SignOff(BaseModel):
    """The typed form at the gate (also the Prefect run input)."""

    verdict: Literal["approve", "reject"] = Field(description="approve closes the round; reject reopens it")
    signed_by: str = Field(description="Your account name in the review app")
    note: str = Field(default="", description="What you checked, or why the round goes back")


class GateRecord(BaseModel):
    """A gate's decision as stored."""

    model_config = ConfigDict(frozen=True)

    phase: str
    round: int
    verdict: Verdict
    signed_by: str
    note: str
    at: datetime
    audit_seq: int
