"""Batch review: many alike records at once, for the confident end."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from labeling.alike import alike_together
from labeling.database import batches
from labeling.database.accounts import Right
from labeling.database.tables import joined_labels
from review_app.access import needs
from review_app.api import shown
from review_app.pages import render, schema_context

router = APIRouter()

Labels = Annotated[list[Annotated[str, Query(max_length=100)]], Query(max_length=200)]
Without = Annotated[list[Annotated[int, Query(ge=1, le=2**31 - 1)]], Query(max_length=500)]


@router.get("/batch")
@needs(Right.LABEL)
def batch_page(request: Request) -> Response:
    """Groups of records with the same suggestion, then one group to look through."""
    return render(request, "batch.html", **schema_context(request))


@router.get("/api/batches")
@needs(Right.LABEL)
def groups(request: Request, without: Without = []) -> dict[str, Any]:  # noqa: B006 (FastAPI copies it)
    """What this person could accept together, the largest group first; `without` what they took out before."""
    review = request.app.state.settings.project.review
    if review.batch_from is None:
        return {"least": None, "groups": []}
    found = batches.groups(request.app.state.db, request.state.account.id, review.batch_from, without=without)
    return {
        "least": review.batch_from,
        "groups": [
            {
                "labels": list(group.labels),
                "records": group.records,
                "lowest": group.lowest,
                "highest": group.highest,
            }
            for group in found
        ],
    }


@router.get("/api/batch")
@needs(Right.LABEL)
def batch(
    request: Request,
    labels: Labels = [],  # noqa: B006 (FastAPI copies it)
    without: Without = [],  # noqa: B006
    order: Literal["sure", "alike"] = "sure",
) -> dict[str, Any]:
    """Records of one group, reserved for this person: the surest first, or alike ones beside each other."""
    review = request.app.state.settings.project.review
    if review.batch_from is None:
        return {"items": []}
    held = batches.take(
        request.app.state.db,
        request.state.account.id,
        joined_labels(labels) or "",
        least=review.batch_from,
        count=review.batch_records,
        without=without,
        lease_s=review.lease_s,
    )
    if order == "alike":
        held = [held[index] for index in alike_together([one.text for one in held])]
    return {"items": [shown(one) for one in held]}
