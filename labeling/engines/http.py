"""One way to talk to an inference server: loopback unless named, no proxies, no redirects, bounded replies."""

import ipaddress
import json
import math
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx

from schemas.errors import EngineError, EngineUnavailable, ProjectError

MAX_REPLY_BYTES = 8_000_000


def check_address(url: str, allowed_hosts: Sequence[str]) -> None:
    """Refuses an engine address that is neither loopback nor one the project names as the client's own.

    Raises:
        ProjectError: says which address and how to allow it.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not host:
        raise ProjectError(
            "engine.endpoints",
            found=repr(url),
            expected="http://127.0.0.1:PORT",
            next_step="Mend the address.",
        )
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback and host not in allowed_hosts:
        raise ProjectError(
            "engine.endpoints",
            found=f"host {host!r}",
            expected="a loopback address, or a host listed under engine.allowed_hosts",
            next_step="Nothing may leave the building: list the host only if that machine is the client's own.",
        )


class EngineConnection:
    """A connection pool to one server."""

    def __init__(
        self, url: str, *, timeout_s: float, api_key: str | None = None, connections: int = 64
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.url = url
        self._client = httpx.Client(
            base_url=url,
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 5.0)),
            headers=headers,
            trust_env=False,
            follow_redirects=False,
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        )

    def call(self, method: str, route: str, body: object | None = None) -> Any:
        """One request; the JSON of the reply.

        Raises:
            EngineUnavailable: no connection, time-out, cut reply, 408, 425, 429 or 5xx.
            EngineError: any other refusal, a reply over 8 MB, broken JSON, a key twice or NaN in it.
        """
        content = None if body is None else json.dumps(body, allow_nan=False).encode()
        headers = {} if content is None else {"Content-Type": "application/json"}
        try:
            with self._client.stream(method, route, content=content, headers=headers) as reply:
                status = reply.status_code
                pieces, size = [], 0
                for piece in reply.iter_bytes():
                    size += len(piece)
                    if size > MAX_REPLY_BYTES:
                        raise self._error(
                            route, f"a reply of over {MAX_REPLY_BYTES:,} bytes", "a short reply"
                        )
                    pieces.append(piece)
        except httpx.TimeoutException as error:
            raise self._unavailable(route, f"no answer in time ({type(error).__name__})") from error
        except httpx.HTTPError as error:
            raise self._unavailable(route, f"{type(error).__name__}: {error}") from error
        raw = b"".join(pieces)
        if status in (408, 425, 429) or status >= 500:
            raise self._unavailable(route, f"HTTP {status}: {_excerpt(raw)}")
        if status != 200:
            raise self._error(route, f"HTTP {status}: {_excerpt(raw)}", "HTTP 200")
        try:
            return json.loads(raw, object_pairs_hook=_unique, parse_constant=_no_constant)
        except ValueError as error:
            raise self._error(route, f"unreadable JSON ({error}): {_excerpt(raw)}", "strict JSON") from error

    def _unavailable(self, route: str, found: str) -> EngineUnavailable:
        return EngineUnavailable(
            f"{self.url}{route}", found=found, expected="an answer", next_step="Check that the engine runs."
        )

    def _error(self, route: str, found: str, expected: str) -> EngineError:
        return EngineError(
            f"{self.url}{route}", found=found, expected=expected, next_step="See the engine's log."
        )

    def close(self) -> None:
        """Closes the pool."""
        self._client.close()


def _excerpt(raw: bytes) -> str:
    return raw[:300].decode("utf-8", "replace")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key twice")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def finite(value: object) -> float | None:
    """A finite number, or None for anything else (booleans too)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
