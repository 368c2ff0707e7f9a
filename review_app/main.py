"""The review app: `create_app` for tests and servers, `python -m review_app` for the command line."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from labeling.database.opening import own_database
from labeling.database.queue import CheckValue, DecisionConflict
from labeling.paths import ProjectFolder
from review_app import api, batches, copilot, pages, records, schema
from review_app import settings as own_settings
from review_app.access import NotLoggedIn, gatekeeper
from review_app.board import LiveFigures
from review_app.guard import LOOPBACK, Guard
from review_app.serving import serve, stamp_of
from schemas.errors import (
    Forbidden,
    GateRefused,
    LabelingError,
    ProjectError,
    QueueError,
    StorageError,
    VersionConflict,
)
from schemas.project import Project

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class AppSettings:
    """What one review app serves.

    Attributes:
        project: The project as its file said at the start.
        folder: Where it lives; SQLite's file is in it.
        database_url: PostgreSQL address; None means SQLite.
        local_user: Offer the one user without a password. Only on loopback; the login page says so.
        https: Served behind TLS: cookies become `Secure` and `__Host-`.
        allowed_hosts: Host names besides `host` (and loopback's) under which browsers reach it.
        check_value: Says whether a value is legal for a text; None takes the project's task type.
        requests_per_s: Brake on floods, a client.
        logins_per_s: Brake on guessing, a client address (the database locks names on top).
    """

    project: Project
    folder: ProjectFolder
    database_url: str | None = None
    local_user: bool = False
    host: str = "127.0.0.1"
    port: int = 8321
    https: bool = False
    allowed_hosts: tuple[str, ...] = ()
    check_value: CheckValue | None = None
    requests_per_s: float = 300.0
    logins_per_s: float = 1.0


def create_app(settings: AppSettings) -> FastAPI:
    """The app of one project; its database is open while it runs.

    Raises:
        ProjectError: A user without a password was asked for on an address that others can reach.
    """
    if settings.local_user and settings.host not in LOOPBACK:
        raise ProjectError(
            "--local-user",
            found=f"host {settings.host}",
            expected="127.0.0.1, ::1 or localhost",
            next_step="Leave --local-user out and invite people, or serve on loopback only.",
        )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with own_database(settings.project, settings.folder, settings.database_url) as database:
            app.state.db = database
            app.state.figures = LiveFigures(database)
            yield

    app = FastAPI(
        title="Countersign",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=lifespan,
        dependencies=[Depends(gatekeeper)],
    )
    app.state.settings = settings
    app.state.stamp = stamp_of(settings.folder)
    serve(app, settings.project)
    app.include_router(api.router)
    app.include_router(pages.router)
    app.include_router(records.router)
    app.include_router(batches.router)
    app.include_router(copilot.router)
    app.include_router(own_settings.router)
    app.include_router(schema.router)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    app.add_middleware(
        Guard,
        hosts={settings.host, *settings.allowed_hosts, *(LOOPBACK if settings.host in LOOPBACK else ())},
        https=settings.https,
        requests_per_s=settings.requests_per_s,
        logins_per_s=settings.logins_per_s,
    )
    app.add_exception_handler(NotLoggedIn, _not_logged_in)
    app.add_exception_handler(LabelingError, _refused)
    app.add_exception_handler(RequestValidationError, _not_valid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _broken)
    return app


def _status(error: LabelingError) -> int:
    match error:
        case Forbidden():
            return 401 if error.path == "login" else 403
        case VersionConflict() | GateRefused():
            return 409
        case QueueError():
            return 422
        case StorageError():
            return 503
        case _:
            return 422


def _is_api(request: Request) -> bool:
    return request.url.path.startswith("/api/") or request.url.path == "/healthz"


async def _not_logged_in(request: Request, _error: Exception) -> Response:
    if not _is_api(request):
        return RedirectResponse("/login", 303)
    body = {
        "path": "session",
        "found": "none, or one that has ended",
        "expected": "a login",
        "next": "Log in again; answers not yet saved are kept in your browser.",
    }
    return JSONResponse(body, 401)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, LabelingError)
    body: dict[str, object] = dict(error.as_problem())
    if isinstance(error, DecisionConflict):
        body |= {"sent": error.sent, "stored": error.stored}
    if _is_api(request):
        return JSONResponse(body, _status(error))
    return pages.problem_page(request, _status(error), error.found, error.next_step)


async def _not_valid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # Where and why, never the input itself: it may be a patient's text.
    places = [
        f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}" for problem in error.errors()
    ]
    body = {
        "path": "request",
        "found": "; ".join(places)[:1000],
        "expected": "what review_app/README.md describes",
        "next": "Nothing was saved. Correct the request and send it again.",
    }
    if _is_api(request):
        return JSONResponse(body, 422)
    return pages.problem_page(
        request, 422, "a form that was not filled in as asked", "Go back and correct it."
    )


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    found = {404: "no such page", 405: "a request this page does not take"}.get(
        error.status_code, error.detail
    )
    if _is_api(request):
        body = {
            "path": request.url.path,
            "found": found,
            "expected": "an address of this app",
            "next": "Check it.",
        }
        return JSONResponse(body, error.status_code)
    return pages.problem_page(request, error.status_code, found, "Go back to your records.")


async def _broken(request: Request, _error: Exception) -> Response:
    if _is_api(request):
        body = {
            "path": request.url.path,
            "found": "an error of ours",
            "expected": "an answer",
            "next": "Nothing was saved. Try again; if it stays, tell the lead.",
        }
        return JSONResponse(body, 500)
    return pages.problem_page(
        request, 500, "an error of ours", "Nothing was saved. Try again, or tell the lead."
    )
