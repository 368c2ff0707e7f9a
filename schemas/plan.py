"""The plan of a round: everything learned that decides how its suggestions are made. Plain JSON, immutable."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Cascade(BaseModel):
    """Which records of a round the student answers without the language model; counts as the plan was made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float = Field(description="Least P(right) at which the student answers alone")
    confidence: dict[str, Any] = Field(description="Model of P(student right), as JSON")
    records: int = Field(description="All records to be labelled")
    alone: int = Field(description="Left to the student: sure, not drawn, and without a score of this prompt")
    to_ask: int = Field(description="Without a score of this prompt and not left to the student")
    at_random: int = Field(description="Records asked whatever the student says; they make the batch's mean")


class Plan(BaseModel):
    """How the suggestions of a round come about. A person can read `sentences`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    round: int
    template: str = Field(description="Name of the prompt file")
    prompt_id: str = Field(description="Content hash of what the engine reads")
    identity_id: str = Field(description="Content hash of the engine's identity")
    strength: float = Field(description="Batch calibration: lambda in [0, 1]")
    exemplar_ids: tuple[str, ...] = ()
    stack: dict[str, Any] | None = Field(default=None, description="Student, neighbours and weights, as JSON")
    correctness: dict[str, Any] | None = Field(
        default=None, description="Model of P(suggestion right), as JSON"
    )
    cascade: Cascade | None = Field(default=None, description="None: every record is asked")
    reviewed: int = Field(default=0, description="Reviewed records the confidence was learned on")
    candidates: tuple[dict[str, Any], ...] = Field(default=(), description="What was tried, with figures")
    sentences: tuple[str, ...] = Field(default=(), description="What changes and why, for people")
