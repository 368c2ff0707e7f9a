"""What happens to every request and response before anything else: host, origin, size, rate, headers."""

import re
import time
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
# A round's report carries its styles inside and no script; `sandbox` without allowances lets it run none, send no form
# and see no cookie, whatever text of a record might have slipped into it.
REPORT_CSP = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; frame-ancestors 'none'; "
    "base-uri 'none'; sandbox"
)
HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not no-referrer: browsers then send `Origin: null` with our own forms too.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
MAX_BODY_BYTES = 2_000_000
_UNSAFE = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_HASHES_A_PASSWORD = re.compile("(/api)?/(login|invitation)(/.*)?")
_REMEMBERED = 10_000


class TooLarge(HTTPException):
    """The body went over the limit while it was read. FastAPI passes only this kind on as it is."""

    def __init__(self) -> None:
        super().__init__(413, "The request is too large.")


class Buckets:
    """Token buckets by client, in memory: a brake on floods, not an account lock (the database keeps those)."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s, self._burst = per_s, burst
        self._levels: dict[str, tuple[float, float]] = {}

    def wait_s(self, key: str) -> float:
        """Take one token; 0 when there was one, otherwise how long until there is."""
        now = time.monotonic()
        level, seen = self._levels.get(key, (self._burst, now))
        level = min(self._burst, level + (now - seen) * self._per_s)
        if level < 1:
            return (1 - level) / self._per_s
        if len(self._levels) > _REMEMBERED:
            self._levels.clear()
        self._levels[key] = (level - 1, now)
        return 0.0


class Guard:
    """Pure ASGI, so that static files and error pages pass through it too."""

    def __init__(
        self, app: ASGIApp, *, hosts: Iterable[str], https: bool, requests_per_s: float, logins_per_s: float
    ) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)
        self._headers = HEADERS | ({"strict-transport-security": "max-age=31536000"} if https else {})
        self._all = Buckets(requests_per_s, requests_per_s * 2)
        self._logins = Buckets(logins_per_s, 30)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    if not (name == "content-security-policy" and answer.get(name) == REPORT_CSP):
                        answer[name] = value
                static = scope["path"].startswith("/static/")
                answer["cache-control"] = "no-cache" if static else "no-store"
            await send(message)

        read = 0

        async def receive_limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > MAX_BODY_BYTES:
                raise TooLarge
            return message

        refused = self._refuse(scope, headers)
        if refused is not None:
            await refused(scope, receive, send_guarded)
            return
        await self._app(scope, receive_limited, send_guarded)

    def _refuse(self, scope: Scope, headers: Headers) -> JSONResponse | None:
        host = headers.get("host", "")
        if _hostname(host) not in self._hosts:
            return _answer(400, "This address does not serve that host name.")
        if scope["method"] in _UNSAFE and not _same_origin(headers, host):
            return _answer(403, "The request came from another site.")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            return _answer(413, "The request is too large.")
        client = scope["client"][0] if scope.get("client") else "unknown"
        wait_s = self._all.wait_s(f"{client} {headers.get('cookie', '')[:80]}")
        if not wait_s and scope["method"] in _UNSAFE and _HASHES_A_PASSWORD.fullmatch(scope["path"]):
            wait_s = self._logins.wait_s(client)
        if wait_s:
            answer = _answer(429, "Too many requests at once. Wait a moment and try again.")
            answer.headers["retry-after"] = str(int(wait_s) + 1)
            return answer
        return None


def _same_origin(headers: Headers, host: str) -> bool:
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        return False
    return headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none")


def _hostname(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _answer(status: int, sentence: str) -> JSONResponse:
    body = {
        "path": "request",
        "found": sentence,
        "expected": "an ordinary request",
        "next": "Nothing was changed.",
    }
    return JSONResponse(body, status)
