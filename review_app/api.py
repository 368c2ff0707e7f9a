"""The JSON interface that the pages use, and simulated annotators too; review_app/README.md documents it."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from labeling.database import accounts, queue, rounds
from labeling.database.accounts import Account, Right
from labeling.database.connection import Database
from labeling.disagreement import spread
from review_app import progress
from review_app.access import Open, csrf_token, needs, session_cookie
from schemas.errors import Forbidden
from schemas.review import DecisionIn, Seen
from schemas.values import Value

router = APIRouter()

Key = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{8,64}$")]
Id = Annotated[int, Field(ge=1, le=2**31 - 1)]
Round = Annotated[int, Field(ge=0, le=2**31 - 1)]
Said = Annotated[str, StringConstraints(max_length=4000)]


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LoginIn(_Body):
    """Name and password, or `local` for the one user without a password."""

    name: Annotated[str, StringConstraints(max_length=200)] = ""
    password: Annotated[str, StringConstraints(max_length=2000)] = ""
    local: bool = False


class InvitationIn(_Body):
    """An invitation and what its owner chose."""

    token: Annotated[str, StringConstraints(max_length=200)]
    name: Annotated[str, StringConstraints(max_length=200)]
    password: Annotated[str, StringConstraints(max_length=2000)]


class UndoIn(_Body):
    """Which decision; without one, the newest that stands."""

    annotation_id: Annotated[str, StringConstraints(max_length=40)] | None = None
    idempotency_key: Key | None = None
    round: Round | None = None
    stage: Literal["review", "adjudication"] | None = None


class CommentIn(_Body):
    """A comment on a record one has been given."""

    assignment_id: Id
    text: Said


class FlagIn(_Body):
    """A flag, up or down."""

    assignment_id: Id
    raised: bool


class AdjudicationIn(_Body):
    """The settled value of a disputed record; null means it cannot be labelled, and the comment says why."""

    round: Round
    record_id: Annotated[str, StringConstraints(max_length=80)]
    value: Value = None
    comment: Said = ""
    expected_version: Annotated[int, Field(ge=0, le=2**31 - 1)]
    idempotency_key: Key
    seconds: Annotated[float, Field(ge=0, le=86_400)] = 0.0


def _db(request: Request) -> Database:
    database: Database = request.app.state.db
    return database


def _who(request: Request) -> Account:
    account: Account = request.state.account
    return account


@router.get("/healthz")
@needs(Open.EVERYBODY)
def healthz(request: Request) -> dict[str, bool]:
    """Whether the app and its database answer."""
    rounds.round_numbers(_db(request))
    return {"ok": True}


@router.post("/api/login")
@needs(Open.EVERYBODY)
def login(request: Request, response: Response, body: LoginIn) -> dict[str, Any]:
    """Open a session; the cookie carries it, `csrf` goes into the X-CSRF-Token header of every later POST."""
    if body.local:
        account, token = open_local_session(request)
    else:
        account, token = accounts.login(_db(request), body.name, body.password)
    set_session(request, response, token)
    return _session(account, token)


@router.post("/api/invitation")
@needs(Open.EVERYBODY)
def accept_invitation(request: Request, response: Response, body: InvitationIn) -> dict[str, Any]:
    """Turn an invitation into an account and log in."""
    accounts.accept_invitation(_db(request), body.token, body.name, body.password)
    account, token = accounts.login(_db(request), body.name, body.password)
    set_session(request, response, token)
    return _session(account, token)


@router.post("/api/logout")
@needs(Open.MEMBERS)
def logout(request: Request, response: Response) -> dict[str, bool]:
    """End the session and give undecided records back."""
    end_session(request, response)
    return {"ok": True}


@router.get("/api/session")
@needs(Open.MEMBERS)
def session(request: Request) -> dict[str, Any]:
    """Who is logged in."""
    return _session(_who(request), request.state.session_token)


@router.get("/api/next")
@needs(Right.LABEL)
def next_records(
    request: Request,
    count: Annotated[int, Query(ge=1, le=50)] = 1,
    round: Annotated[int | None, Query(ge=0, le=2**31 - 1)] = None,
    first: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None,
) -> dict[str, Any]:
    """Up to `count` records reserved for this person, the next one first; an empty list means nothing is
    left. `first`: an assignment that comes before all others, if this person still holds it.
    """
    lease_s = request.app.state.settings.project.review.lease_s
    held = queue.prefetch(_db(request), _who(request).id, round, count=count, lease_s=lease_s)
    chosen = None if first is None else queue.assignment(_db(request), _who(request).id, first)
    if chosen is not None:
        held = [chosen, *(one for one in held if one.assignment_id != first)][:count]
    return {"items": [shown(assignment) for assignment in held]}


@router.post("/api/decisions")
@needs(Right.LABEL)
def decide(request: Request, body: DecisionIn) -> dict[str, Any]:
    """Store one decision; 200 means it is durable. The same key again returns the first answer."""
    out = queue.decide(
        _db(request),
        _who(request).id,
        body,
        check_value=_check(request),
        normal=request.app.state.task.normal,
        rubric=request.app.state.task.rubric,
    )
    return _decided(out)


@router.post("/api/undo")
@needs(Right.LABEL)
def undo(request: Request, body: UndoIn) -> dict[str, Any]:
    """Take a decision back; `item` is the record, in this person's hands again."""
    out = queue.undo(
        _db(request),
        _who(request).id,
        annotation_id=body.annotation_id,
        idempotency_key=body.idempotency_key,
        number=body.round,
        stage=body.stage,
        lease_s=request.app.state.settings.project.review.lease_s,
    )
    if out is None:
        return {"undone": None, "record_id": None, "item": None}
    return {
        "undone": out.annotation_id,
        "record_id": out.record_id,
        "item": None if out.assignment is None else shown(out.assignment),
    }


@router.get("/api/progress")
@needs(Right.LABEL)
def own_progress(request: Request, since: datetime | None = None) -> dict[str, Any]:
    """How far the round is, what is left for this person, and what they did `since` their day began."""
    goal = request.app.state.settings.project.review.daily_goal
    day = None if since is None else since if since.tzinfo is not None else since.replace(tzinfo=UTC)
    return progress.of_person(_db(request), _who(request).id, since=day, project_goal=goal)


@router.get("/api/history")
@needs(Right.LABEL)
def history(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> dict[str, Any]:
    """This person's own decisions, newest first."""
    told = queue.history(_db(request), _who(request).id, limit=limit, offset=offset)
    return {
        "decisions": [
            {
                "annotation_id": row.annotation_id,
                "round": row.round,
                "record_id": row.record_id,
                "text": row.text,
                "action": row.action.value,
                "value": row.value,
                "comment": row.comment,
                "not_sure": row.not_sure,
                "decided_at": row.decided_at,
                "undone": row.undone,
            }
            for row in told
        ]
    }


@router.get("/api/comments")
@needs(Right.LABEL)
def comments(request: Request, assignment_id: Annotated[int, Query(ge=1, le=2**31 - 1)]) -> dict[str, Any]:
    """One's own comments on a record."""
    said = queue.remarks(_db(request), _who(request).id, assignment_id)
    return {"comments": [{"text": remark.text, "at": remark.at} for remark in said]}


@router.post("/api/comments")
@needs(Right.LABEL)
def comment(request: Request, body: CommentIn) -> dict[str, Any]:
    """Write a comment; adjudicators read it."""
    return {"audit_seq": queue.comment(_db(request), _who(request).id, body.assignment_id, body.text)}


@router.post("/api/flags")
@needs(Right.LABEL)
def flag(request: Request, body: FlagIn) -> dict[str, bool]:
    """Raise or take down a flag."""
    queue.flag(_db(request), _who(request).id, body.assignment_id, raised=body.raised)
    return {"raised": body.raised}


@router.get("/api/disputes")
@needs(Right.ADJUDICATE)
def disputes(
    request: Request, round: Annotated[int | None, Query(ge=0, le=2**31 - 1)] = None
) -> dict[str, Any]:
    """Records that wait for an adjudicator, those furthest apart first, with every answer and no name."""
    found = queue.disputes(_db(request), _who(request).id, round)
    distance = request.app.state.task.distance

    def apart(dispute: queue.Dispute) -> float:
        return spread([(card.action, card.value) for card in dispute.cards], distance)

    # Sorted is stable: equally hard ones stay in the order quality assurance gave them.
    return {"disputes": [_dispute(dispute) for dispute in sorted(found, key=apart, reverse=True)]}


@router.post("/api/adjudications")
@needs(Right.ADJUDICATE)
def adjudicate(request: Request, body: AdjudicationIn) -> dict[str, Any]:
    """Settle a disputed record."""
    out = queue.adjudicate(
        _db(request),
        _who(request).id,
        body.round,
        body.record_id,
        value=body.value,
        comment=body.comment,
        expected_version=body.expected_version,
        idempotency_key=body.idempotency_key,
        check_value=_check(request),
        normal=request.app.state.task.normal,
        seconds=body.seconds,
    )
    return _decided(out)


def open_local_session(request: Request) -> tuple[Account, str]:
    """A session of the one user without a password, if this app offers one."""
    if not request.app.state.settings.local_user:
        raise Forbidden(
            "login",
            found="no user without a password here",
            expected="a name and a password",
            next_step="Log in with yours, or start the app with --local-user on this computer.",
        )
    return accounts.open_local_session(_db(request))


def set_session(request: Request, response: Response, token: str) -> None:
    """The session cookie: not for scripts, not for other sites."""
    response.set_cookie(
        session_cookie(request),
        token,
        max_age=int(accounts.SESSION_LIFE.total_seconds()),
        httponly=True,
        samesite="strict",
        secure=request.app.state.settings.https,
        path="/",
    )


def end_session(request: Request, response: Response) -> None:
    """Log out."""
    if _who(request).may(Right.LABEL):
        queue.release(_db(request), _who(request).id)
    accounts.end_session(_db(request), request.state.session_token)
    response.delete_cookie(
        session_cookie(request),
        path="/",
        httponly=True,
        samesite="strict",
        secure=request.app.state.settings.https,
    )


def _session(account: Account, token: str) -> dict[str, Any]:
    return {
        "annotator_id": account.id,
        "display_name": account.display_name,
        "role": account.role.value,
        "csrf": csrf_token(token),
    }


def shown(assignment: queue.Assignment) -> dict[str, Any]:
    """What the browser may know of a record: not its purpose, which would tell control and audit items apart."""
    return {
        "assignment_id": assignment.assignment_id,
        "round": assignment.round,
        "record_id": assignment.record_id,
        "text": assignment.text,
        "blind": assignment.seen is Seen.BLIND,
        "suggestion": assignment.suggestion,
        "version": assignment.version,
        "expires_at": assignment.expires_at,
        "flagged": assignment.flagged,
        "previous": assignment.previous,
    }


def _decided(out: queue.DecisionOut) -> dict[str, Any]:
    return {
        "annotation_id": out.annotation_id,
        "assignment_id": out.assignment_id,
        "round": out.round,
        "record_id": out.record_id,
        "action": out.action.value,
        "value": out.value,
        "version": out.version,
        "decided_at": out.decided_at,
        "repeated": out.repeated,
    }


def _dispute(dispute: queue.Dispute) -> dict[str, Any]:
    return {
        "round": dispute.round,
        "record_id": dispute.record_id,
        "text": dispute.text,
        "reason": dispute.reason,
        "suggestion": dispute.suggestion,
        "version": dispute.version,
        "remarks": list(dispute.remarks),
        "cards": [
            {
                "action": card.action.value,
                "value": card.value,
                "blind": card.seen is Seen.BLIND,
                "comment": card.comment,
                "not_sure": card.not_sure,
            }
            for card in dispute.cards
        ],
    }


def _check(request: Request) -> queue.CheckValue:
    check: queue.CheckValue = request.app.state.check_value
    return check
