"""A language model that costs nothing: a real HTTP server on loopback that speaks llama-server's protocol, Ollama's
(`/api/...`) and OpenAI's completions (`/v1/...`).

Its label scores follow from a hash of the prompt and from which label's name the record mentions, so that they are the
same in every process and carry a signal worth learning. It counts what it is asked, and misbehaves on order.

Run as a program it serves until its standard input ends; a second argument delays each completion by so many seconds:
    python tests/scripted_engine.py alpha,beta 0.2
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from labeling.engines.self_test import SENTENCES

_PIECES = re.compile(r"\s?[^\s]{1,8}|\s")
_FILLERS = (" the", " a", " it", " of")
_REASONS = {200: "OK", 302: "Found", 404: "Not Found", 429: "Too Many Requests"}
BOS = 1
WIDTH = 16
OLLAMA_0_24_REFUSES = "the input length exceeds the context length"
OLLAMA_0_34_REFUSES = json.dumps(  # its llama-server's answer, as a text
    {
        "error": {
            "code": 400,
            "message": "request (1620 tokens) exceeds the available context size (512 tokens)",
        }
    }
)
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
        self.adds_space = False  # before every text it tokenizes, as SentencePiece models do
        self.written = '{"label": "alpha", "sure": true}'  # what it answers under a schema
        self.writes_whole = True
        self.hidden: dict[str, Any] = {}  # keys laid over every completion reply
        self.props_extra: dict[str, Any] = {}
        self.cloud: dict[str, Any] = {"disabled": True, "source": "env"}
        self.model_entry: dict[str, Any] = {}  # keys laid over the model's entry in both lists
        self.parallel = 4  # requests computed at once on Ollama's routes
        self.cuts_prompts = False  # on Ollama's and OpenAI's routes
        self.ollama_refuses = OLLAMA_0_24_REFUSES  # a prompt that does not fit
        self._busy = 0
        self._waiting: list[Any] = []
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
        for piece in _PIECES.findall(" " * self.adds_space + body["content"]):
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
        if "json_schema" in body:
            stop = "eos" if self.writes_whole else "limit"
            return {**reply, "content": self.written, "stop_type": stop, **self.hidden}
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

    # -- Ollama and OpenAI: the same model, told by the text of its tokens ------------------------------------------

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.model_alias.encode()).hexdigest()

    def told_by_text(self, prompt: str) -> tuple[int, list[tuple[str, float]]] | None:
        """Prompt tokens and the most likely next ones; None where the prompt does not fit and must not be cut."""
        count = 1 + len(_PIECES.findall(prompt))
        if count > self.context:
            if not self.cuts_prompts:
                return None
            count = self.context
        entries = [(piece, math.log(0.1 / len(_FILLERS))) for piece in _FILLERS]
        known = self.label_log_probs(record_of(prompt))
        entries += [(f" {label}", value) for label, value in zip(self.labels, known, strict=True)]
        return count, sorted(entries, key=lambda entry: -entry[1])

    def tags(self) -> dict[str, Any]:
        entry = {
            "name": "scripted.gguf:latest",
            "digest": self.digest,
            "details": {"quantization_level": "Q4_0"},
            **self.model_entry,
        }
        return {"models": [entry]}

    def show(self) -> dict[str, Any]:
        tokens = ["<|im_start|>", "<|im_end|>", *(f"Ġ{label}" for label in self.labels)]
        tokens += [f"Ġ{chr(65 + index)}" for index in range(26)]
        return {
            "model_info": {
                "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.tokens": tokens,
                "tokenizer.ggml.token_type": [3, 3] + [1] * (len(tokens) - 2),
            }
        }

    def generate(self, body: dict[str, Any]) -> tuple[dict[str, Any], int]:
        told = self.told_by_text(body["prompt"])
        if told is None:
            return {"error": self.ollama_refuses}, 400
        count, entries = told
        reply: dict[str, Any] = {"response": "", "done": True, "prompt_eval_count": count, "eval_count": 1}
        if "format" in body:
            reply |= {"response": self.written, "done_reason": "stop" if self.writes_whole else "length"}
        if body.get("logprobs"):
            top = [{"token": token, "logprob": value} for token, value in entries[: body["top_logprobs"]]]
            reply["logprobs"] = [{**top[0], "top_logprobs": top}]
        return {**reply, **self.hidden}, 200

    def legacy_completion(self, body: dict[str, Any]) -> tuple[dict[str, Any], int]:
        told = self.told_by_text(body["prompt"])
        if told is None:
            return {
                "error": {"message": f"This model's maximum context length is {self.context} tokens."}
            }, 400
        count, entries = told
        choice: dict[str, Any] = {"text": "", "finish_reason": "length"}
        if "response_format" in body:
            choice = {"text": self.written, "finish_reason": "stop" if self.writes_whole else "length"}
        if body.get("logprobs"):
            choice["logprobs"] = {"top_logprobs": [dict(entries[: body["logprobs"]])]}
        return {"choices": [choice], "usage": {"prompt_tokens": count}, **self.hidden}, 200

    def embeddings(self, body: dict[str, Any]) -> dict[str, Any]:
        data = []
        for index, text in enumerate(body["input"]):
            told = text if isinstance(text, str) else self.text_of(text)
            data.append({"index": index, "embedding": self.vector(told)})
        return {"data": data}

    def embed(self, body: dict[str, Any]) -> dict[str, Any]:
        """Ollama's way to vectors."""
        return {"embeddings": [self.vector(text) for text in body["input"]], **self.hidden}

    def vector(self, text: str) -> list[float]:
        """Texts that mention a label lie around that label's own axis."""
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=2 * WIDTH).digest()
        values = [(digest[index] - 127.5) / 255 for index in range(WIDTH)]
        for index, label in enumerate(self.labels):
            if label in text:
                values[index % WIDTH] += 1.5
        return values

    def asked_most(self) -> int:
        """How often a record was asked at most; the self-test's own sentences are no records."""
        return max(count for text, count in self.asked.items() if not any(line in text for line in SENTENCES))

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
        elif path == "/api/tags":
            self._send(engine.tags())
        elif path == "/api/ps":
            loaded = [{**entry, "size": 123_400_000} for entry in engine.tags()["models"]]
            self._send({"models": loaded})
        elif path == "/api/version":
            self._send({"version": engine.build_info})
        elif path == "/api/status":
            self._send({"cloud": engine.cloud})
        elif path == "/api/embed":
            self._send(engine.embed(body))
        elif path == "/api/show":
            self._send(engine.show())
        elif path == "/v1/models":
            self._send(
                {"data": [{"id": "scripted.gguf", "owned_by": engine.build_info, **engine.model_entry}]}
            )
        elif path == "/api/generate":
            self._in_turn(body, engine.generate, body.get("logprobs"))
        elif path == "/v1/completions":
            self._in_turn(body, engine.legacy_completion, body.get("logprobs"))
        else:
            self._send({"error": "no such route"}, status=404)

    def _in_turn(
        self,
        body: dict[str, Any],
        answer: Callable[[dict[str, Any]], tuple[dict[str, Any], int]],
        counts: Any,
    ) -> None:
        """At most `parallel` requests at once, the rest in line, as Ollama has it."""
        engine = self._engine
        record = record_of(body["prompt"]) if counts else ""
        if counts:
            engine.served(record)
        fault = engine.fault_for(record) if engine.faults and record else None
        if fault is not None:
            self._misbehave(fault, body, answer(body)[0])
            return

        def finish() -> None:
            reply, status = answer(body)
            self._send(reply, status=status)
            engine._busy -= 1
            if engine._waiting:
                engine._waiting.pop(0)()

        def start() -> None:
            engine._busy += 1
            tokens = body.get("options", {}).get("num_predict", 1)
            engine._loop.call_later(engine.delay_s * (1 if tokens == 1 else 6), finish)

        if engine._busy < engine.parallel:
            start()
        else:
            engine._waiting.append(start)

    def _complete(self, body: dict[str, Any]) -> None:
        engine = self._engine
        if body.get("n_predict") and not body.get("post_sampling_probs"):
            record = record_of(engine.text_of(body["prompt"]))
            engine.served(record)
        else:
            record = record_of(engine.text_of(body["prompt"])) if body.get("n_predict") else ""
        fault = engine.fault_for(record) if engine.faults and record else None
        if fault is not None:
            self._misbehave(fault, body, engine.completion(body))
        elif engine.delay_s:
            engine._loop.call_later(engine.delay_s, self._send, engine.completion(body))
        else:
            self._send(engine.completion(body))

    def _misbehave(self, fault: str, body: dict[str, Any], reply: dict[str, Any]) -> None:
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
        elif fault == "50 MB body":
            self._raw(b'{"content": "' + b"a" * 50_000_000 + b'"}')
        elif fault == "remote host":
            self._transport.write(_message(302, b"", "Location: http://192.0.2.1:8080/completion\r\n"))
        elif "completion_probabilities" in reply:
            self._misbehave_as_llama(fault, body, reply)
        else:
            self._misbehave_by_text(fault, reply)

    def _misbehave_by_text(self, fault: str, reply: dict[str, Any]) -> None:
        """Ollama and OpenAI: what a reply can have wrong inside."""
        text = json.dumps(reply)
        first = " " + self._engine.labels[0]
        if fault == "missing label":
            self._raw(text.replace(json.dumps(first), '" else"').encode())
        elif fault == "cut stream":
            self._transport.write(_message(200, text.encode())[:-40])
            self._transport.close()
        elif fault == "empty body":
            self._raw(b"")
        elif fault == "length stop":
            choices = [{"text": "", "finish_reason": "length"}]
            self._send({**reply, **({"choices": choices} if "choices" in reply else {"logprobs": []})})
        elif fault == "low prompt count":  # a prompt that was cut fills the context
            full = self._engine.context
            self._send({**reply, "prompt_eval_count": full, "usage": {"prompt_tokens": full}})
        elif fault == "duplicate keys":
            self._raw((text[:-1] + ', "usage": {}, "usage": {}}').encode())
        elif fault == "NaN":
            self._raw(re.sub(r"-\d+\.\d+", "NaN", text, count=1).encode())
        elif fault == "look-alike label":
            for label in self._engine.labels:
                text = text.replace(json.dumps(f" {label}"), json.dumps(f" {label.upper()}"))
            self._raw(text.encode())

    def _misbehave_as_llama(self, fault: str, body: dict[str, Any], reply: dict[str, Any]) -> None:
        entries = reply["completion_probabilities"][0]
        inner = "top_probs" if "top_probs" in entries else "top_logprobs"
        text = json.dumps(reply)
        if fault == "missing label":
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
        served.delay_s = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
        print(served.url, flush=True)
        sys.stdin.read()
