"""Who may call what: deny by default.

Every endpoint is registered here by identity, with what it takes. One gatekeeper runs before all of them; an
endpoint that somebody forgot to register answers 403 to everybody.
"""

import hashlib
import hmac
import secrets
from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from labeling.database import accounts
from labeling.database.accounts import Account, Right
from review_app.serving import serve_what_the_file_says
from schemas.errors import Forbidden

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

UNSAFE = frozenset({"POST", "PUT", "PATCH", "DELETE"})
PRE_LOGIN_COOKIE = "countersign_form"


class Open(Enum):
    """What needs no particular right."""

    EVERYBODY = "everybody"  # no login
    MEMBERS = "members"  # any active account


ACCESS: dict[Callable[..., Any], Right | Open] = {}


class NotLoggedIn(Exception):
    """No session, or one that has ended."""


def needs(what: Right | Open) -> Callable[[Endpoint], Endpoint]:
    """Registers an endpoint; the line that every route carries."""

    def register(endpoint: Endpoint) -> Endpoint:
        ACCESS[endpoint] = what
        return endpoint

    return register


async def gatekeeper(request: Request) -> None:
    """Let the request through, or raise; leaves the account in `request.state.account`.

    Before anything else the app takes what the project file says by now.

    Raises:
        NotLoggedIn: It takes a session and there is none.
        Forbidden: The role may not, or the CSRF token does not fit.
    """
    serve_what_the_file_says(request.app)
    access = ACCESS.get(request.scope["endpoint"])
    if access is None:
        raise _forbidden(request, "a page that nobody was given")
    token = request.cookies.get(session_cookie(request), "")
    account = (
        await run_in_threadpool(accounts.session_account, request.app.state.db, token) if token else None
    )
    request.state.account = account
    request.state.session_token = token if account is not None else ""
    if access is not Open.EVERYBODY:
        if account is None:
            raise NotLoggedIn
        if isinstance(access, Right) and not account.may(access):
            raise _forbidden(request, f"role {account.role.value}")
    if request.method in UNSAFE:
        await _check_csrf(request, account)


async def _check_csrf(request: Request, account: Account | None) -> None:
    is_form = request.headers.get("content-type", "").startswith(
        ("application/x-www-form-urlencoded", "multipart/form-data")
    )
    if account is None:
        if not is_form:
            return  # JSON from another site needs a CORS preflight, which nothing here answers
        expected = request.cookies.get(PRE_LOGIN_COOKIE, "")
    else:
        expected = csrf_token(request.state.session_token)
    sent = request.headers.get("x-csrf-token", "")
    if not sent and is_form:
        sent = str((await request.form()).get("csrf", ""))
    if not expected or not hmac.compare_digest(sent.encode(), expected.encode()):
        raise Forbidden(
            "csrf",
            found="no token, or an old one",
            expected="the token of this session",
            next_step="Reload the page and try again; nothing was changed.",
        )


def csrf_token(session_token: str) -> str:
    """The token that forms and scripts of a session send back; worthless without the session's cookie."""
    return hashlib.sha256(b"csrf:" + session_token.encode()).hexdigest()


def new_form_token() -> str:
    """For forms before the login: the same value goes into a cookie and into the form."""
    return secrets.token_urlsafe(24)


def session_cookie(request: Request) -> str:
    """`__Host-` binds the cookie to this host and HTTPS; plain HTTP (loopback) cannot have it."""
    return "__Host-countersign" if request.app.state.settings.https else "countersign"


def _forbidden(request: Request, found: str) -> Forbidden:
    return Forbidden(
        request.url.path,
        found=found,
        expected="someone who may do this",
        next_step="Ask the project lead, or go back to your records.",
    )
