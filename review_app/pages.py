"""The pages: rendered here, brought to life by the modules under static/."""

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.templating import Jinja2Templates

from labeling.database import accounts, pools, queue, rounds
from labeling.database.accounts import PASSWORD_LEAST, Right
from review_app import api, board, copilot
from review_app.access import PRE_LOGIN_COOKIE, Open, csrf_token, needs, new_form_token
from review_app.guard import REPORT_CSP
from review_app.wording import guideline_html, value_words
from schemas.errors import Forbidden, QueueError
from schemas.review import Role, RoundState

HERE = Path(__file__).resolve().parent
templates = Jinja2Templates(directory=HERE / "templates")
router = APIRouter()

ROLE_WORDS = {
    Role.ANNOTATOR: ("Annotator", "labels records"),
    Role.REVIEWER: ("Reviewer", "labels records and settles disputes"),
    Role.MANAGER: ("Lead", "plans rounds, signs gates, settles disputes"),
    Role.ADMIN: ("Admin", "manages accounts, labels nothing"),
    Role.AUDITOR: ("Auditor", "reads and verifies"),
}
OPEN_STATES = (RoundState.SAMPLING, RoundState.OPEN)
COLOURS = 8  # tints in static/app.css; a ninth label starts over, its name tells it apart


def render(request: Request, template: str, status: int = 200, /, **context: Any) -> HTMLResponse:
    """A page with what every page needs."""
    account = getattr(request.state, "account", None)
    project = request.app.state.settings.project
    base = {
        "project": project,
        "title": project.title or project.name,
        "account": account,
        "role_words": ROLE_WORDS,
        "rehearsal": request.app.state.db.rehearsal,
        "csrf": csrf_token(request.state.session_token) if account is not None else "",
        "may": {right.name.lower(): account is not None and account.may(right) for right in Right},
    }
    return templates.TemplateResponse(request, template, {**base, **context}, status_code=status)


def problem_page(request: Request, status: int, found: str, next_step: str) -> Response:
    """An error that says what was found and what to do."""
    if not hasattr(request.state, "session_token"):
        request.state.session_token = ""
    return render(request, "problem.html", status, found=found, next_step=next_step, code=status)


def _form_page(request: Request, template: str, status: int = 200, /, **context: Any) -> HTMLResponse:
    """A page with a form that is sent before the login."""
    token = request.cookies.get(PRE_LOGIN_COOKIE) or new_form_token()
    page = render(request, template, status, **{**context, "csrf": token})
    page.set_cookie(
        PRE_LOGIN_COOKIE,
        token,
        httponly=True,
        samesite="strict",
        secure=request.app.state.settings.https,
        max_age=3600,
    )
    return page


@router.get("/login")
@needs(Open.EVERYBODY)
def login_page(request: Request) -> Response:
    """Name and password; on loopback perhaps the one user without."""
    if request.state.account is not None:
        return RedirectResponse("/", 303)
    return _form_page(request, "login.html", local_user=request.app.state.settings.local_user)


@router.post("/login")
@needs(Open.EVERYBODY)
def login(
    request: Request,
    name: Annotated[str, Form(max_length=200)] = "",
    password: Annotated[str, Form(max_length=2000)] = "",
    local: Annotated[bool, Form()] = False,
) -> Response:
    """Log in and go to the records."""
    try:
        if local:
            _, token = api.open_local_session(request)
        else:
            _, token = accounts.login(request.app.state.db, name, password)
    except Forbidden as error:
        return _form_page(
            request,
            "login.html",
            401,
            problem=error,
            name=name,
            local_user=request.app.state.settings.local_user,
        )
    answer = RedirectResponse("/", 303)
    api.set_session(request, answer, token)
    return answer


@router.post("/logout")
@needs(Open.MEMBERS)
def logout(request: Request) -> Response:
    """Log out."""
    answer = RedirectResponse("/login", 303)
    api.end_session(request, answer)
    return answer


@router.get("/invitation/{token}")
@needs(Open.EVERYBODY)
def invitation_page(request: Request, token: str) -> Response:
    """Choose a name and a password."""
    offered = accounts.invitation_for(request.app.state.db, token)
    if offered is None:
        return problem_page(
            request, 404, "an invitation that was used, revoked or is older than a week", "Ask for a new one."
        )
    return _form_page(request, "invitation.html", offered=offered, token=token, least=PASSWORD_LEAST)


@router.post("/invitation/{token}")
@needs(Open.EVERYBODY)
def accept_invitation(
    request: Request,
    token: str,
    name: Annotated[str, Form(max_length=200)],
    password: Annotated[str, Form(max_length=2000)],
) -> Response:
    """Make the account and log in."""
    db = request.app.state.db
    offered = accounts.invitation_for(db, token)
    try:
        accounts.accept_invitation(db, token, name, password)
    except QueueError as error:
        return _form_page(
            request,
            "invitation.html",
            422,
            offered=offered,
            token=token,
            least=PASSWORD_LEAST,
            problem=error,
            name=name,
        )
    _, session = accounts.login(db, name, password)
    answer = RedirectResponse("/", 303)
    api.set_session(request, answer, session)
    return answer


@router.get("/")
@needs(Open.MEMBERS)
def home(request: Request) -> Response:
    """Where this person's work is."""
    account = request.state.account
    if account.may(Right.LABEL):
        return RedirectResponse("/review", 303)
    if account.may(Right.SEE_BOARD):
        return RedirectResponse("/board", 303)
    return RedirectResponse("/people", 303)


@router.get("/review")
@needs(Right.LABEL)
def review_page(request: Request) -> Response:
    """The page that people look at six hours a day."""
    return render(request, "review.html", copilot=copilot.wanted(request), **schema_context(request))


@router.get("/adjudication")
@needs(Right.ADJUDICATE)
def adjudication_page(request: Request) -> Response:
    """Disputed records, every answer side by side without names."""
    return render(request, "adjudication.html", **schema_context(request))


@router.get("/history")
@needs(Right.LABEL)
def history_page(request: Request) -> Response:
    """This person's own decisions, to look at and to take back."""
    db = request.app.state.db
    told = queue.history(db, request.state.account.id, limit=200)
    changeable = {number: rounds.state_of(db, number) for number in {row.round for row in told}}
    decisions = [
        {
            "annotation_id": row.annotation_id,
            "text": row.text,
            "said": value_words(row.action, row.value),
            "comment": row.comment,
            "undone": row.undone,
            "at": row.decided_at.strftime("%d %b %H:%M UTC"),
            "changeable": not row.undone
            and row.stage == queue.REVIEW
            and changeable[row.round] in OPEN_STATES,
        }
        for row in told
    ]
    return render(request, "history.html", decisions=decisions)


@router.post("/history/{annotation_id}/undo")
@needs(Right.LABEL)
def take_back(request: Request, annotation_id: str) -> Response:
    """Take one decision back and go to the records, where it comes first."""
    queue.undo(request.app.state.db, request.state.account.id, annotation_id=annotation_id)
    return RedirectResponse("/review", 303)


@router.get("/board")
@needs(Right.SEE_BOARD)
def board_page(request: Request) -> Response:
    """One row a round, and the sentence that says what to do next."""
    settings = request.app.state.settings
    db = request.app.state.db
    # An auditor reads pseudonyms, as in the exports; whoever leads people knows them by name.
    named = request.state.account.may(Right.INVITE_LABELLERS)
    names = {person.id: person.display_name for person in accounts.people(db)} if named else {}
    return render(
        request, "board.html", rows=board.rows(db, settings.folder, request.app.state.figures), names=names
    )


@router.get("/reports/{number}")
@needs(Right.SEE_BOARD)
def report(request: Request, number: int) -> Response:
    """The round's report as quality assurance wrote it."""
    settings = request.app.state.settings
    path = settings.folder.round(number).report
    if number not in rounds.round_numbers(request.app.state.db) or not path.is_file():
        return problem_page(request, 404, "no report of that round yet", "Quality assurance writes it.")
    return HTMLResponse(path.read_text("utf-8"), headers={"content-security-policy": REPORT_CSP})


@router.get("/people")
@needs(Right.INVITE_LABELLERS)
def people_page(request: Request) -> Response:
    """Who is here and who is invited."""
    return _people(request)


def _people(request: Request, status: int = 200, **context: Any) -> Response:
    db = request.app.state.db
    everybody = accounts.people(db)
    names = {person.id: person.display_name for person in everybody}
    invited = [invitation for invitation in accounts.invitations(db) if invitation.state == "open"]
    admin = request.state.account.may(Right.MANAGE_ACCOUNTS)
    roles = list(Role) if admin else [Role.ANNOTATOR, Role.REVIEWER]
    return render(
        request,
        "people.html",
        status,
        people=everybody,
        invited=invited,
        names=names,
        roles=roles,
        admin=admin,
        pools=pools.pools(db),
        labellers=[person for person in everybody if person.may(Right.LABEL)],
        **context,
    )


@router.post("/people/pools")
@needs(Right.MANAGE_QUEUE)
def make_pool(request: Request, name: Annotated[str, Form(max_length=200)]) -> Response:
    """Make a pool; its members are ticked afterwards."""
    pools.make_pool(request.app.state.db, name, request.state.account.id)
    return RedirectResponse("/people", 303)


@router.post("/people/pools/{pool_id}")
@needs(Right.MANAGE_QUEUE)
def set_pool(
    request: Request,
    pool_id: int,
    members: Annotated[list[Annotated[str, Form(max_length=16)]], Form(max_length=1000)] = [],  # noqa: B006
) -> Response:
    """Say who belongs to a pool; nobody ticked empties it."""
    pools.set_members(
        request.app.state.db, min(max(pool_id, 0), 2**31 - 1), members, request.state.account.id
    )
    return RedirectResponse("/people", 303)


@router.post("/people/invitations")
@needs(Right.INVITE_LABELLERS)
def invite(
    request: Request,
    role: Annotated[Role, Form()],
    display_name: Annotated[str, Form(min_length=1, max_length=120)],
) -> Response:
    """Make an invitation; its link is shown once."""
    token = accounts.invite(request.app.state.db, role, display_name, request.state.account.id)
    # Behind TLS the proxy speaks HTTP to us; an invitation sent so would travel in the clear and let nobody in.
    scheme = "https" if request.app.state.settings.https else request.base_url.scheme
    link = f"{request.base_url.replace(scheme=scheme)}invitation/{token}"
    return _people(request, link=link, invited_name=display_name)


@router.post("/people/invitations/{invitation_id}/revoke")
@needs(Right.INVITE_LABELLERS)
def revoke(request: Request, invitation_id: int) -> Response:
    """Make an unused invitation worthless."""
    accounts.revoke_invitation(request.app.state.db, invitation_id, request.state.account.id)
    return RedirectResponse("/people", 303)


@router.post("/people/{account_id}/close")
@needs(Right.MANAGE_ACCOUNTS)
def close_account(request: Request, account_id: str) -> Response:
    """Close somebody else's account."""
    accounts.deactivate(request.app.state.db, account_id, request.state.account.id)
    return RedirectResponse("/people", 303)


@router.post("/people/{account_id}/role")
@needs(Right.MANAGE_ACCOUNTS)
def change_role(request: Request, account_id: str, role: Annotated[Role, Form()]) -> Response:
    """Give somebody else another role."""
    accounts.change_role(request.app.state.db, account_id, role, request.state.account.id)
    return RedirectResponse("/people", 303)


def schema_context(request: Request) -> dict[str, Any]:
    """Labels with their keys and colours, and the guideline: what pages about records need."""
    settings = request.app.state.settings
    schema = settings.project.label_schema
    labels = [
        {
            "name": label.name,
            "definition": label.definition,
            "examples": label.examples,
            "colour": index % COLOURS,
            "key": str(index + 1) if index < 9 else "",
        }
        for index, label in enumerate(schema.labels)
    ]
    return {
        "labels": labels,
        "tints": {label["name"]: label["colour"] for label in labels},
        "schema": schema,
        "editor": request.app.state.task.editor,
        "rubric": request.app.state.task.rubric,
        "guideline": guideline_html(settings.folder.root / schema.guideline),
    }
