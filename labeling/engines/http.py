"""One way to talk to an inference server: loopback unless named, no proxies, no redirects, bounded replies."""

import collections
import http.client
import io
import ipaddress
import json
import math
import select
import socket
import time
from collections.abc import Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from schemas.errors import EngineError, EngineUnavailable, ProjectError

MAX_REPLY_BYTES = 8_000_000
PIECE_BYTES = 1 << 20


def check_address(url: str, allowed_hosts: Sequence[str], *, key: str = "engine.endpoints") -> None:
    """Refuses an engine address that is neither loopback nor one the project names as the client's own.

    Args:
        key: Of the project, under which the address stands.

    Raises:
        ProjectError: says which address and how to allow it.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        sound = parts.scheme in ("http", "https") and host != "" and parts.port != 0
    except ValueError:  # no port, or half an IPv6 address
        sound = False
    if not sound:
        raise ProjectError(
            key,
            found=repr(url),
            expected="http://127.0.0.1:PORT",
            next_step="Mend the address.",
        )
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback and host not in [name.lower() for name in allowed_hosts]:
        raise ProjectError(
            key,
            found=f"host {host!r}",
            expected="a loopback address, or a host listed under engine.allowed_hosts",
            next_step="Nothing may leave the building: list the host only if that machine is the client's own.",
        )


def says_too_long(error: EngineError) -> bool:
    """Whether this is how a server refuses a prompt that does not fit: each has words of its own, Ollama by version."""
    if "deadline" in error.found:  # "context deadline exceeded" is how a program in Go says that time ran out
        return False
    return "context" in error.found and ("exceed" in error.found or "maximum" in error.found)


class _Dated(io.RawIOBase):
    """What a server sends, until a deadline: a time-out of the socket alone starts anew with every byte."""

    def __init__(self, link: socket.socket, deadline: float) -> None:
        self._link, self._deadline = link, deadline
        self._raw = link.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._link.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _DatedResponse(http.client.HTTPResponse):
    """A reply whose status line, headers and body all have to be there by one deadline."""

    def __init__(self, sock: socket.socket, *args: Any, deadline: float, **more: Any) -> None:
        super().__init__(sock, *args, **more)
        self.fp.close()
        self.fp = io.BufferedReader(_Dated(sock, deadline))


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
            connection.response_class = partial(_DatedResponse, deadline=deadline)  # type: ignore[assignment]
            connection.request(method, self._root + route, content, self._headers)
            reply = connection.getresponse()
            raw = self._body(reply, route, most_bytes)
            # After an interim answer (102, 103) the real one is still to come: the next request would get it.
            whole = not reply.will_close and reply.status >= 200
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

    def _body(self, reply: http.client.HTTPResponse, route: str, most_bytes: int) -> bytes:
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
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # a whole number of 400 digits
        return None
    return number if math.isfinite(number) else None
