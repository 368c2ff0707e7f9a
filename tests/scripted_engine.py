"""A language model that costs nothing: a real HTTP server on loopback that speaks llama-server's protocol.

Its label scores follow from a hash of the prompt and from which label's name the record mentions, so that they are the
same in every process and carry a signal worth learning. It counts what it is asked, and misbehaves on order.

Run as a program it serves until its standard input ends:  python tests/scripted_engine.py alpha,beta
"""

import asyncio
import hashlib
import json
import math
import re
import sys
import threading
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

_PIECES = re.compile(r"\s?[^\s]{1,8}|\s")
_FILLERS = (" the", " a", " it", " of")
_REASONS = {200: "OK", 302: "Found", 404: "Not Found", 429: "Too Many Requests"}
BOS = 1
WIDTH = 16
FAULTS = (
    "refuse",
    "hang",
    "slow",
    "500",
    "503",
    "429",
    "malformed",
    "missing label",
    "cut stream",
    "empty body",
    "length stop",
    "low prompt count",
    "duplicate keys",
    "NaN",
    "50 MB body",
    "remote host",
    "look-alike label",
)


def token_id(piece: str) -> int:
    """The same number for the same piece of text, in every process."""
    return zlib.crc32(piece.encode("utf-8", "surrogatepass")) % 1_000_000_007 + 100


def code_id(label: str) -> int:
    """The token that answers with a label."""
    return token_id(_PIECES.findall(f" {label}")[0])


def record_of(prompt: str) -> str:
    """What stands in the record's place of the shipped prompts."""
    return prompt.rpartition("Text: ")[2].removesuffix("\nLabel:")


@dataclass
class Fault:
    """What happens to prompts whose record holds `marker`, the first `times` times (None: always)."""

    marker: str
    kind: str
    times: int | None = None


class ScriptedEngine:
    """The server and what it remembers.

    Attributes:
        asked: Completions by record text, every try counted.
        routes: Requests by path.
        build_info, model_alias: Who the engine says it is; may be changed while it runs.
        delay_s: How long each completion takes.
    """

    def __init__(
        self, labels: Sequence[str] = ("alpha", "beta"), *, context: int = 512, slots: int = 4
    ) -> None:
        self.labels = tuple(labels)
        self.context, self.slots = context, slots
        self.asked: Counter[str] = Counter()
        self.routes: Counter[str] = Counter()
        self.faults: list[Fault] = []
        self.build_info, self.model_alias = "b1-scripted", "scripted.gguf"
        self.delay_s = 0.0
        self.signal = 2.5
        self.hide_labels_in_raw = False
        self.hidden: dict[str, Any] = {}  # keys laid over every completion reply
        self.props_extra: dict[str, Any] = {}
        self._swap_after: tuple[int, str] | None = None
        self._pieces: dict[int, str] = {}
        self._codes = [code_id(label) for label in self.labels]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._ready = threading.Event()
        self.url = ""

    # -- running ---------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            self._loop.create_server(lambda: _Connection(self), "127.0.0.1", 0, backlog=200)
        )
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    # -- ordering trouble ------------------------------------------------------------------------------------------

    def misbehave(self, marker: str, kind: str, *, times: int | None = None) -> None:
        """Orders a fault for records that hold the marker."""
        assert kind in FAULTS, kind
        self.faults.append(Fault(marker, kind, times))

    def swap_after(self, completions: int, model_alias: str) -> None:
        """Another model answers once so many completions were served."""
        self._swap_after = (completions, model_alias)

    def fault_for(self, record: str) -> str | None:
        for fault in self.faults:
            if fault.marker in record and fault.times != 0:
                if fault.times is not None:
                    fault.times -= 1
                return fault.kind
        return None

    # -- answering -------------------------------------------------------------------------------------------------

    def props(self) -> dict[str, Any]:
        return {
            "default_generation_settings": {"n_ctx": self.context},
            "total_slots": self.slots,
            "model_alias": self.model_alias,
            "model_path": f"/models/{self.model_alias}",
            "model_ftype": "Q4_0",
            "build_info": self.build_info,
            **self.props_extra,
        }

    def tokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        ids = [BOS] if body.get("add_special") else []
        for piece in _PIECES.findall(body["content"]):
            number = token_id(piece)
            self._pieces[number] = piece
            ids.append(number)
        return {"tokens": ids}

    def text_of(self, ids: Sequence[int]) -> str:
        return "".join(self._pieces.get(number, "") for number in ids)

    def label_log_probs(self, record: str) -> list[float]:
        """Natural logs, 0.9 of the mass on the labels."""
        digest = hashlib.blake2b(record.encode("utf-8", "surrogatepass"), digest_size=32).digest()
        logits = [
            digest[index % 32] / 128 + (self.signal if label in record else 0.0)
            for index, label in enumerate(self.labels)
        ]
        top = max(logits)
        total = math.fsum(math.exp(logit - top) for logit in logits)
        return [logit - top - math.log(total) + math.log(0.9) for logit in logits]

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        ids = body["prompt"]
        reply: dict[str, Any] = {
            "content": "",
            "stop_type": "limit",
            "tokens_evaluated": len(ids),
            "truncated": len(ids) + 1 >= self.context,  # as llama.cpp has it
            "timings": {"cache_n": max(len(ids) - 8, 0), "prompt_n": min(len(ids), 8)},
        }
        if not body.get("n_predict"):
            return reply
        record = record_of(self.text_of(ids))
        known = self.label_log_probs(record)
        if body.get("post_sampling_probs"):
            total = math.fsum(math.exp(value) for value in known)
            entries = [
                {"id": code, "token": f" {label}", "prob": math.exp(value) / total}
                for code, label, value in zip(self._codes, self.labels, known, strict=True)
            ]
            reply["completion_probabilities"] = [{"id": entries[0]["id"], "top_probs": entries}]
        else:
            entries = [
                {"id": token_id(piece), "token": piece, "logprob": math.log(0.1 / len(_FILLERS))}
                for piece in _FILLERS
            ]
            if not self.hide_labels_in_raw:
                entries += [
                    {"id": code, "token": f" {label}", "logprob": value}
                    for code, label, value in zip(self._codes, self.labels, known, strict=True)
                ]
            entries.sort(key=lambda entry: -entry["logprob"])
            reply["completion_probabilities"] = [{"id": entries[0]["id"], "top_logprobs": entries}]
        return {**reply, **self.hidden}

    def embeddings(self, body: dict[str, Any]) -> dict[str, Any]:
        data = []
        for index, text in enumerate(body["input"]):
            told = text if isinstance(text, str) else self.text_of(text)
            data.append({"index": index, "embedding": self.vector(told)})
        return {"data": data}

    def vector(self, text: str) -> list[float]:
        """Texts that mention a label lie around that label's own axis."""
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=2 * WIDTH).digest()
        values = [(digest[index] - 127.5) / 255 for index in range(WIDTH)]
        for index, label in enumerate(self.labels):
            if label in text:
                values[index % WIDTH] += 1.5
        return values

    def served(self, record: str) -> None:
        self.asked[record] += 1
        if self._swap_after is not None:
            left, alias = self._swap_after
            self._swap_after = (left - 1, alias) if left > 1 else None
            if left <= 1:
                self.model_alias = alias


class _Connection(asyncio.Protocol):
    """HTTP/1.1 with keep-alive, as little of it as clients need."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self._engine = engine
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while True:
            head, found, rest = self._buffer.partition(b"\r\n\r\n")
            if not found:
                return
            match = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
            length = int(match[1]) if match else 0
            if len(rest) < length:
                return
            self._buffer = rest[length:]
            path = head.split(b" ", 2)[1].decode()
            self._answer(path, json.loads(rest[:length]) if length else {})

    def _answer(self, path: str, body: dict[str, Any]) -> None:
        engine = self._engine
        engine.routes[path] += 1
        if path == "/props":
            self._send(engine.props())
        elif path == "/health":
            self._send({"status": "ok"})
        elif path == "/tokenize":
            self._send(engine.tokenize(body))
        elif path == "/v1/embeddings":
            self._send(engine.embeddings(body))
        elif path == "/completion":
            self._complete(body)
        else:
            self._send({"error": "no such route"}, status=404)

    def _complete(self, body: dict[str, Any]) -> None:
        engine = self._engine
        if body.get("n_predict") and not body.get("post_sampling_probs"):
            record = record_of(engine.text_of(body["prompt"]))
            engine.served(record)
        else:
            record = record_of(engine.text_of(body["prompt"])) if body.get("n_predict") else ""
        fault = engine.fault_for(record) if engine.faults and record else None
        if fault is not None:
            self._misbehave(fault, body)
        elif engine.delay_s:
            engine._loop.call_later(engine.delay_s, self._send, engine.completion(body))
        else:
            self._send(engine.completion(body))

    def _misbehave(self, fault: str, body: dict[str, Any]) -> None:
        reply = self._engine.completion(body)
        entries = reply["completion_probabilities"][0]
        inner = "top_probs" if "top_probs" in entries else "top_logprobs"
        text = json.dumps(reply)
        if fault == "refuse":
            self._transport.abort()
        elif fault == "hang":
            pass
        elif fault == "slow":
            head, _, rest = _message(200, text.encode()).partition(b"\r\n\r\n")
            self._transport.write(head + b"\r\n\r\n")
            self._trickle(rest)
        elif fault in ("500", "503", "429"):
            self._send({"error": {"code": int(fault), "message": "Loading model"}}, status=int(fault))
        elif fault == "malformed":
            self._raw(text[: len(text) // 2].encode())
        elif fault == "missing label":
            entries[inner] = [entry for entry in entries[inner] if entry["id"] != self._engine._codes[0]]
            self._send(reply)
        elif fault == "cut stream":
            message = _message(200, text.encode())
            self._transport.write(message[:-40])
            self._transport.close()
        elif fault == "empty body":
            self._raw(b"")
        elif fault == "length stop":
            self._send({**reply, "completion_probabilities": [], "stop_type": "limit"})
        elif fault == "low prompt count":
            self._send({**reply, "tokens_evaluated": len(body["prompt"]) - 3})
        elif fault == "duplicate keys":
            self._raw(text.replace('"truncated": false', '"truncated": true, "truncated": false').encode())
        elif fault == "NaN":
            key = "prob" if inner == "top_probs" else "logprob"
            entries[inner][0][key] = float("nan")
            self._send(reply)
        elif fault == "50 MB body":
            self._raw(b'{"content": "' + b"a" * 50_000_000 + b'"}')
        elif fault == "remote host":
            self._transport.write(_message(302, b"", "Location: http://192.0.2.1:8080/completion\r\n"))
        elif fault == "look-alike label":
            for entry in entries[inner]:
                if entry["id"] in self._engine._codes:
                    entry["id"], entry["token"] = entry["id"] + 1, entry["token"].upper()
            self._send(reply)

    def _trickle(self, message: bytes, start: int = 0) -> None:
        """A byte now and then: every single read succeeds, the reply never ends in time."""
        if start < len(message) and not self._transport.is_closing():
            self._transport.write(message[start : start + 1])
            self._engine._loop.call_later(0.05, self._trickle, message, start + 1)

    def _send(self, value: object, status: int = 200) -> None:
        self._raw(json.dumps(value).encode(), status)

    def _raw(self, body: bytes, status: int = 200) -> None:
        self._transport.write(_message(status, body))


def _message(status: int, body: bytes, more: str = "") -> bytes:
    head = f"HTTP/1.1 {status} {_REASONS.get(status, 'Trouble')}\r\nContent-Type: application/json\r\n{more}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


if __name__ == "__main__":
    with ScriptedEngine(sys.argv[1].split(",")) as served:
        print(served.url, flush=True)
        sys.stdin.read()
