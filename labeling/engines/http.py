"""One way to talk to an inference server: loopback unless named, no proxies, no redirects, bounded replies."""

import collections
import http.client
import ipaddress
import json
import math
import select
import socket
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from schemas.errors import EngineError, EngineUnavailable, ProjectError

MAX_REPLY_BYTES = 8_000_000
PIECE_BYTES = 1 << 20


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


def says_too_long(error: EngineError) -> bool:
    """Whether this is how a server refuses a prompt that does not fit: each has words of its own, Ollama by version."""
    return "context" in error.found and ("exceed" in error.found or "maximum" in error.found)


class EngineConnection:
    """Kept-alive connections to one server, as many as there are requests at once.

    Made of the standard library's `http.client`: it knows no proxies, follows no redirects and costs a quarter of
    httpx's time per request, which is what decides how many small requests one core can keep in flight.
    """

    def __init__(self, url: str, *, timeout_s: float, api_key: str | None = None) -> None:
        parts = urlsplit(url)
        self.url = url
        self._root = parts.path.rstrip("/")
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._address = (parts.hostname or "", parts.port)
        self._timeout_s = timeout_s
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._idle: collections.deque[http.client.HTTPConnection] = collections.deque()
        self._closed = False

    def call(
        self, method: str, route: str, body: object | None = None, *, most_bytes: int = MAX_REPLY_BYTES
    ) -> Any:
        """One request; the JSON of the reply.

        Raises:
            EngineUnavailable: no connection, no whole reply within `timeout_s`, cut reply, 408, 425, 429 or 5xx.
            EngineError: any other refusal, a reply over `most_bytes`, broken JSON, a key twice or NaN in it.
        """
        content = None if body is None else json.dumps(body, allow_nan=False).encode()
        try:
            status, raw = self._exchange(method, route, content, most_bytes)
        except TimeoutError as error:
            raise self._unavailable(route, f"no answer within {self._timeout_s:g} s") from error
        except (http.client.HTTPException, OSError) as error:
            raise self._unavailable(route, f"{type(error).__name__}: {error}") from error
        if status in (408, 425, 429) or status >= 500:
            raise self._unavailable(route, f"HTTP {status}: {_excerpt(raw)}")
        if status != 200:
            raise self._error(route, f"HTTP {status}: {_excerpt(raw)}", "HTTP 200")
        try:
            return json.loads(raw, object_pairs_hook=unique_keys, parse_constant=no_constant)
        except (ValueError, RecursionError) as error:
            raise self._error(route, f"unreadable JSON ({error}): {_excerpt(raw)}", "strict JSON") from error

    def _exchange(self, method: str, route: str, content: bytes | None, most_bytes: int) -> tuple[int, bytes]:
        deadline = time.monotonic() + self._timeout_s
        connection = self._take()
        whole = False
        try:
            connection.request(method, self._root + route, content, self._headers)
            reply = connection.getresponse()
            raw = self._body(connection, reply, route, deadline, most_bytes)
            whole = not reply.will_close
            return reply.status, raw
        finally:
            # Only a connection whose reply was read to its end can carry another request.
            if whole and not self._closed:
                self._idle.append(connection)
            else:
                connection.close()

    def _take(self) -> http.client.HTTPConnection:
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread was faster
                break
            if not _ended(connection.sock):
                connection.sock.settimeout(self._timeout_s)
                return connection
            connection.close()  # the server ended it while it was idle
        connection = self._kind(*self._address, timeout=min(self._timeout_s, 5.0))
        connection.connect()
        connection.sock.settimeout(self._timeout_s)
        return connection

    def _body(
        self,
        connection: http.client.HTTPConnection,
        reply: http.client.HTTPResponse,
        route: str,
        deadline: float,
        most_bytes: int,
    ) -> bytes:
        if (reply.length or 0) > most_bytes:
            raise self._error(route, f"a reply of {reply.length:,} bytes", f"at most {most_bytes:,}")
        pieces, size = [], 0
        while piece := reply.read1(PIECE_BYTES):
            size += len(piece)
            if size > most_bytes:
                raise self._error(route, f"a reply of over {most_bytes:,} bytes", "a short reply")
            pieces.append(piece)
            if reply.length == 0:
                break
            left = deadline - time.monotonic()
            if left <= 0:  # a server that trickles its reply keeps every single read alive
                raise TimeoutError
            if connection.sock is not None:
                connection.sock.settimeout(left)
        if reply.length:
            raise http.client.IncompleteRead(b"", reply.length)
        if not reply.isclosed():
            reply.close()
        return b"".join(pieces)

    def _unavailable(self, route: str, found: str) -> EngineUnavailable:
        return EngineUnavailable(
            f"{self.url}{route}", found=found, expected="an answer", next_step="Check that the engine runs."
        )

    def _error(self, route: str, found: str, expected: str) -> EngineError:
        return EngineError(
            f"{self.url}{route}", found=found, expected=expected, next_step="See the engine's log."
        )

    def close(self) -> None:
        """Ends all connections; one that is at work is ended when its reply is there."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()


def _ended(link: socket.socket) -> bool:
    """Whether an idle connection has something to read: it can only be its end."""
    readable = select.poll()
    readable.register(link, select.POLLIN)
    return bool(readable.poll(0))


def _excerpt(raw: bytes) -> str:
    return raw[:300].decode("utf-8", "replace")


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads`: an object without a key twice."""
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key twice")
    return value


def no_constant(name: str) -> Any:
    """For `json.loads`: refuses NaN and infinities."""
    raise ValueError(f"{name} is no number")


def finite(value: object) -> float | None:
    """A finite number, or None for anything else (booleans too)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
