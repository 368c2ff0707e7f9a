"""Servers that speak OpenAI's completions with log-probabilities (vLLM, LM Studio, llama-server's own `/v1` routes).

The protocol has no word against cutting a prompt, so the self-test sends one that is too long and every reply's own
count is checked. Weights are known by name only: `digest` covers what the server says of the model, not its file.
"""

import time
from collections.abc import Collection, Sequence
from typing import Any

from labeling.engines.http import EngineConnection, finite, says_too_long
from labeling.engines.protocol import FirstToken, Identity, LabelCode, LabelScores, Tokens
from labeling.engines.structured import Schema, checked_answer
from labeling.engines.top_tokens import (
    COMMON_MARKS,
    check_count,
    label_log_probs,
    told_pairs,
    too_long,
)
from schemas.errors import EngineError
from schemas.values import content_hash

TOP = 20
SAMPLING = f"one token; raw log-probabilities of the top {TOP}"
DEFAULT_SLOTS = 8
# A token that is a part of a character is often told without probabilities; another draw tells them. At a temperature
# of 1 and no other: some servers tell them after it.
DRAWS: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    *({"temperature": 1, "top_p": 1, "seed": seed} for seed in range(1, 6)),
)
_MOODS = ("created", "permission", "meta")  # differ between two starts of one server, or hold clocks
# Of `meta`; these tell models apart.
_WEIGHTS = ("n_params", "size", "n_vocab", "n_embd", "n_ctx_train", "vocab_type", "ftype")


def told_of_model(entry: object) -> dict[str, Any]:
    """What `meta` of an entry under `/v1/models` tells of the weights and nothing else changes."""
    meta = entry.get("meta") if isinstance(entry, dict) else None
    return {key: meta[key] for key in _WEIGHTS if key in meta} if isinstance(meta, dict) else {}


class OpenAIServer:
    """One model of a server with OpenAI's `/v1/completions`.

    Args:
        connection: To the server's root (without `/v1`).
        model: Name under `/v1/models`.
        context: Tokens one request may use.
        slots: Requests in flight.
    """

    counts = False
    tells: int | None = TOP
    measures_weights = False
    control_marks: Collection[str] = COMMON_MARKS

    def __init__(self, connection: EngineConnection, *, model: str, context: int, slots: int | None) -> None:
        self._http, self._model, self.context = connection, model, context
        self.slots = slots or DEFAULT_SLOTS
        self.identity()

    def identity(self) -> Identity:
        reply = self._http.call("GET", "/v1/models")
        listed = reply.get("data") if isinstance(reply, dict) else None
        entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
        entry = next((entry for entry in entries if entry.get("id") == self._model), None)
        if entry is None:
            names = ", ".join(str(entry.get("id")) for entry in entries)
            raise EngineError(
                f"engine.model {self._model!r}",
                found=f"the server has {names or 'no model'}",
                expected="the model in its list",
                next_step="Start the server with that model, or change engine.model.",
            )
        return Identity(
            engine="openai",
            engine_version=str(entry.get("owned_by") or "?"),
            model=self._model,
            digest=content_hash(
                {key: value for key, value in entry.items() if key not in _MOODS} | told_of_model(entry)
            ),
            quantization="?",
            context=self.context,
            sampling=SAMPLING,
        )

    def tokenize(self, text: str) -> Tokens:
        """The text alone: the protocol has no route that tells tokens."""
        return Tokens((), text)

    def first_token(self, text: str) -> FirstToken:
        """Nothing is known of the vocabulary: a capital after a space is one token in all common ones."""
        return FirstToken(-1, "", len(text.strip()) == 1)

    def score(self, prompt: Tokens, codes: Sequence[LabelCode], *, slot: int) -> LabelScores:
        started = time.perf_counter()
        where = f"{self._http.url}/v1/completions"
        for draw in DRAWS:
            reply = self._complete(prompt.text, {"max_tokens": 1, "logprobs": TOP, **draw})
            top = _first_position(reply, where)
            if top:
                break
        log_probs, mass, label_first = label_log_probs(top, codes, where=where)
        seconds = time.perf_counter() - started
        return LabelScores(log_probs, mass, *_tokens(reply), seconds, label_first)

    def generate(self, prompt: Tokens, schema: Schema, *, most_tokens: int, slot: int) -> Any:
        form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(schema)}}
        # llama-server reads its own key on this route, others OpenAI's.
        wanted = {"response_format": form, "json_schema": dict(schema)}
        reply = self._complete(prompt.text, {"max_tokens": most_tokens, "temperature": 0, **wanted})
        choice, where = _first_choice(reply), f"{self._http.url}/v1/completions"
        return checked_answer(
            choice.get("text"), schema, whole=choice.get("finish_reason") == "stop", where=where
        )

    def _complete(self, text: str, settings: dict[str, Any]) -> dict[str, Any]:
        where = f"{self._http.url}/v1/completions"
        body = {"model": self._model, "prompt": text, "seed": 0, "stream": False, **settings}
        try:
            reply = self._http.call("POST", "/v1/completions", body)
        except EngineError as error:
            if says_too_long(error):
                raise too_long(where, "a prompt that does not fit", self.context) from error
            raise
        usage = reply.get("usage") if isinstance(reply, dict) else None
        counted = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        check_count(counted, name="usage.prompt_tokens", context=self.context, where=where)
        answer: dict[str, Any] = reply
        return answer

    def prefill(self, prompt: Tokens, *, slot: int) -> tuple[int, int]:
        return _tokens(self._complete(prompt.text, {"max_tokens": 1}))

    def warm(self, prefix: Tokens) -> None:
        if prefix.text:
            self._complete(prefix.text, {"max_tokens": 1})

    def memory_mb(self) -> int | None:
        return None

    def close(self) -> None:
        self._http.close()


def _tokens(reply: dict[str, Any]) -> tuple[int, int]:
    """Sent, and served by the cache as far as the server tells."""
    usage = reply["usage"]
    details = usage.get("prompt_tokens_details")
    cached = finite(details.get("cached_tokens")) if isinstance(details, dict) else None
    return int(usage["prompt_tokens"]), int(cached or 0)


def _first_choice(reply: dict[str, Any]) -> dict[str, Any]:
    choices = reply.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else {}


def _first_position(reply: dict[str, Any], where: str) -> list[tuple[str, float]]:
    """The most likely tokens of the one new position, from either of the two spellings in use."""
    told = _first_choice(reply).get("logprobs")
    if not isinstance(told, dict):
        return []
    content, legacy = told.get("content"), told.get("top_logprobs")
    if isinstance(content, list) and content and isinstance(content[0], dict):
        entries = content[0].get("top_logprobs") or content[0].get("top_probs")
        if not isinstance(entries, list):
            return []
        pairs = [(entry.get("token"), entry.get("logprob")) for entry in entries if isinstance(entry, dict)]
    elif isinstance(legacy, list) and legacy and isinstance(legacy[0], dict):
        pairs = list(legacy[0].items())
    else:
        return []
    return told_pairs(pairs, where=where)
