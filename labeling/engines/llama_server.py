"""llama.cpp's server, wherever it runs: as `llama-server`, or inside the process (`labeling.engines.embedded`).

Two routes to the label distribution, both at the one position after the prompt. The raw one gives the model's own
probabilities of its most likely tokens, hence `label_mass`. Labels that are not among those get their share from a
second call on the cached prompt with an equal bias on all label tokens: an equal bias cancels out in the ratios.
"""

import math
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from labeling.engines.http import EngineConnection, finite, says_too_long
from labeling.engines.openai_server import told_of_model
from labeling.engines.protocol import FirstToken, Identity, LabelCode, LabelScores, Tokens
from labeling.engines.structured import Schema, checked_answer
from schemas.errors import EngineError, PromptTooLong
from schemas.values import content_hash

RAW_TOP = 256  # a second call costs more than the answer that is longer by 190 tokens
BIAS = 100.0
ROUNDING = 1e-3
CUE_END = ":"
UNKNOWN = "unknown"
SAMPLING = f"one token; raw log-probabilities; equal-bias ratio for labels outside the top {RAW_TOP}"


def _props(connection: EngineConnection) -> dict[str, Any]:
    props = connection.call("GET", "/props")
    if not isinstance(props, dict):
        raise EngineError(
            f"{connection.url}/props",
            found=str(props)[:200],
            expected="an object",
            next_step="Use a llama-server.",
        )
    return props


def _told_of_model(connection: EngineConnection) -> dict[str, Any]:
    """Size and shape of the model as `/v1/models` tells them; nothing where a server does not."""
    try:
        reply = connection.call("GET", "/v1/models")
    except EngineError as error:
        if error.retryable:
            raise
        return {}
    listed = reply.get("data") if isinstance(reply, dict) else None
    return told_of_model(listed[0] if isinstance(listed, list) and listed else None)


def mark_of_model(connection: EngineConnection) -> str:
    """12 hex digits of what a server tells of its model: file, size and shape. Its folder may be another."""
    file = str(_props(connection).get("model_path") or "").rsplit("/", 1)[-1]
    return content_hash({"file": file, **_told_of_model(connection)})[:12]


def _context(props: dict[str, Any]) -> int:
    settings = props.get("default_generation_settings")
    return int(finite(settings.get("n_ctx")) or 0) if isinstance(settings, dict) else 0


def _cached(reply: dict[str, Any]) -> int:
    timings = reply.get("timings")
    return max(0, int(finite(timings.get("cache_n")) or 0)) if isinstance(timings, dict) else 0


def _with_file(model: str, file: str, size: object) -> str:
    """An alias with the name of the file behind it and its size. Not its folder: servers of a fleet may differ in it
    where the project says by `engine.digest` that their weights are the same."""
    more = [file] if file not in ("", model) else []
    more += [f"{size:,} bytes"] if isinstance(size, int) else []
    return f"{model} ({', '.join(more)})" if more else model


def _biased(codes: Sequence[LabelCode]) -> list[list[float]]:
    return [[code.token_id, BIAS] for code in codes]


class LlamaServer:
    """One llama.cpp server over HTTP.

    Args:
        connection: To an address already checked to be loopback or the client's own.
        digest: Of the weights, as the project names it; `UNKNOWN` where it names none. A server does not tell it, so
            that what it does tell of the file stands beside it in the identity, or in its place.
    """

    counts = True
    tells: int | None = None
    control_marks: Collection[str] = ()  # tokenized here, with parse_special off
    measures_weights = False

    def __init__(
        self,
        connection: EngineConnection,
        *,
        digest: str,
        engine: str = "llama-server",
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self._http = connection
        self._digest = digest
        self._engine = engine
        self._on_close = on_close
        props = _props(connection)
        self.context = _context(props)
        self.slots = int(finite(props.get("total_slots")) or 1)
        if self.context <= 0:
            raise EngineError(
                f"{connection.url}/props",
                found="no context size",
                expected="default_generation_settings.n_ctx",
                next_step="Use a llama-server of 2025 or later.",
            )

    def identity(self) -> Identity:
        props = _props(self._http)
        path = str(props.get("model_path") or "")
        model = str(props.get("model_alias") or path or "?").rsplit("/", 1)[-1]
        digest = self._digest
        if not self.measures_weights:
            told = _told_of_model(self._http)
            if digest == UNKNOWN:
                digest = f"{UNKNOWN}-{content_hash({'model_path': path, **told})}"
            else:
                model = _with_file(model, path.rsplit("/", 1)[-1], told.get("size"))
        return Identity(
            engine=self._engine,
            engine_version=str(props.get("build_info") or "?"),
            model=model,
            digest=digest,
            quantization=str(props.get("model_ftype") or "?"),
            context=_context(props),
            sampling=SAMPLING,
        )

    def tokenize(self, text: str) -> Tokens:
        return Tokens(self._tokens(text, special=True), text)

    def token_ids(self, text: str) -> tuple[int, ...]:
        """The tokens of a piece of text, without special ones."""
        return self._tokens(text, special=False)

    def first_token(self, text: str) -> FirstToken:
        # After a colon, as a prompt's cue ends: alone, some models (Llama 2, Mistral 7B) put a space before any text.
        cue, both = self._pieces(CUE_END), self._pieces(CUE_END + text)
        # The colon may be one token with what follows.
        apart = both[: len(cue)] == cue and len(both) > len(cue)
        pieces = both[len(cue) :] if apart else self._pieces(text)
        if not pieces:
            raise self._no_tokens(text, "at least one token")
        token, characters = pieces[0]
        return FirstToken(token, "" if characters else "\ufffd", len(pieces) == 1)

    def _tokens(self, text: str, *, special: bool) -> tuple[int, ...]:
        tokens = self._tokenized(text, {"add_special": special})
        if not all(isinstance(token, int) for token in tokens):
            raise self._no_tokens(tokens, "token ids")
        return tuple(tokens)

    def _pieces(self, text: str) -> list[tuple[int, bool]]:
        """The tokens of a piece of text, and whether each is whole characters (as far as the server tells)."""
        told = []
        for entry in self._tokenized(text, {"add_special": False, "with_pieces": True}):
            entry = entry if isinstance(entry, dict) else {"id": entry}
            if not isinstance(entry.get("id"), int):
                raise self._no_tokens(entry, "a token id")
            told.append(
                (entry["id"], not isinstance(entry.get("piece"), list))
            )  # bytes where it is a part of one
        return told

    def _tokenized(self, text: str, settings: dict[str, Any]) -> list[Any]:
        # parse_special off: "<|im_end|>" inside a record is text, not a control token.
        reply = self._http.call("POST", "/tokenize", {"content": text, "parse_special": False, **settings})
        tokens = reply.get("tokens") if isinstance(reply, dict) else None
        if not isinstance(tokens, list):
            raise self._no_tokens(reply, "tokens")
        return tokens

    def _no_tokens(self, found: object, expected: str) -> EngineError:
        return EngineError(
            f"{self._http.url}/tokenize",
            found=str(found)[:200],
            expected=expected,
            next_step="See the engine's log.",
        )

    def score(self, prompt: Tokens, codes: Sequence[LabelCode], *, slot: int) -> LabelScores:
        started = time.perf_counter()
        raw, reply = self._raw_route(prompt, codes, slot)
        found = [raw.get(code.token_id) for code in codes]
        if all(log_prob is not None for log_prob in found):
            log_probs = [log_prob for log_prob in found if log_prob is not None]
        else:
            log_probs = self._completed(found, self._biased_route(prompt, codes, slot), raw)
        mass = min(1.0, math.fsum(math.exp(log_prob) for log_prob in log_probs))
        seconds = time.perf_counter() - started
        likeliest = max(raw, key=lambda token: raw[token])
        label_first = likeliest in {code.token_id for code in codes}
        return LabelScores(tuple(log_probs), mass, len(prompt.ids), _cached(reply), seconds, label_first)

    def _raw_route(
        self, prompt: Tokens, codes: Sequence[LabelCode], slot: int
    ) -> tuple[dict[int, float], dict[str, Any]]:
        # The bias changes the token that is drawn and not the probabilities, which are told before it. Without it the
        # server tells none where the likeliest token is a part of a character, as it often is in other scripts.
        settings = {"temperature": 0.0, "n_probs": RAW_TOP, "logit_bias": _biased(codes)}
        reply = self._completion(prompt, slot, settings)
        return self._pairs(reply, "top_logprobs", "logprob"), reply

    def _biased_route(self, prompt: Tokens, codes: Sequence[LabelCode], slot: int) -> list[float]:
        count = len(codes)
        body = {
            "temperature": 1.0,
            "samplers": ["top_k"],
            "top_k": count,
            "n_probs": count,
            "post_sampling_probs": True,
            "logit_bias": _biased(codes),
        }
        shares = self._pairs(self._completion(prompt, slot, body), "top_probs", "prob")
        missing = [code.label for code in codes if code.token_id not in shares]
        if missing:
            raise self._unusable(f"no probability for {', '.join(missing[:3])}", "one for every label code")
        return [shares[code.token_id] for code in codes]

    @staticmethod
    def _completed(
        found: Sequence[float | None], shares: Sequence[float], raw: dict[int, float]
    ) -> list[float]:
        """Raw log-probabilities of all labels from the known ones and the ratios.

        Where no label is among the most likely tokens, the least of those bounds them from above: the label mass is
        then an upper bound close to 0, which is what it has to signal.
        """
        tiny = 1e-30
        logs = [math.log(max(share, tiny)) for share in shares]
        anchors = [
            known - log for known, log in zip(found, logs, strict=True) if known is not None and log > -20
        ]
        shift = sum(anchors) / len(anchors) if anchors else min(raw.values()) - max(logs)
        return [known if known is not None else log + shift for known, log in zip(found, logs, strict=True)]

    def _completion(self, prompt: Tokens, slot: int, settings: dict[str, Any]) -> dict[str, Any]:
        body = {
            "prompt": list(prompt.ids),
            "n_predict": 1,
            "cache_prompt": True,
            "id_slot": slot,
            "seed": 0,
            **settings,
        }
        try:
            reply = self._http.call("POST", "/completion", body)
        except EngineError as error:
            if says_too_long(error):
                raise PromptTooLong(
                    error.path,
                    found=f"{len(prompt.ids)} tokens",
                    expected=f"at most {self.context}",
                    next_step="Choose prompts.over_long: head_tail or windows, or a larger engine.context.",
                ) from error
            raise
        if not isinstance(reply, dict):
            raise self._unusable(str(reply)[:200], "a completion object")
        counted = reply.get("tokens_evaluated")
        if reply.get("truncated") is True or counted != len(prompt.ids):
            raise PromptTooLong(
                f"{self._http.url}/completion",
                found=f"the engine read {counted} tokens"
                + (" and cut the prompt" if reply.get("truncated") else ""),
                expected=f"the {len(prompt.ids)} tokens that were sent",
                next_step="No label is taken from a cut prompt; raise engine.context or shorten the record.",
            )
        return reply

    def _pairs(self, reply: dict[str, Any], inner: str, key: str) -> dict[int, float]:
        positions = reply.get("completion_probabilities")
        first = positions[0] if isinstance(positions, list) and positions else None
        entries = first.get(inner) if isinstance(first, dict) else None
        if not isinstance(entries, list) or not entries:
            raise self._unusable(f"no {inner}", "probabilities of one token")
        values: dict[int, float] = {}
        for entry in entries:
            number = finite(entry.get(key)) if isinstance(entry, dict) else None
            if number is None or not isinstance(entry.get("id"), int):
                raise self._unusable(f"{inner} entry {str(entry)[:100]}", "a token id and a finite number")
            if entry["id"] in values:
                raise self._unusable(f"token {entry['id']} twice in {inner}", "each token once")
            if not (number <= ROUNDING if key == "logprob" else 0.0 <= number <= 1.0 + ROUNDING):
                raise self._unusable(f"{key} {number:g}", "a probability")
            values[entry["id"]] = number
        if key == "logprob" and all(value == 0.0 for value in values.values()):
            raise self._unusable(
                "log-probabilities that are all 0", "real ones (is speculative decoding on?)"
            )
        return values

    def _unusable(self, found: str, expected: str) -> EngineError:
        return EngineError(
            f"{self._http.url}/completion",
            found=found,
            expected=expected,
            next_step="The record is set aside.",
        )

    def generate(self, prompt: Tokens, schema: Schema, *, most_tokens: int, slot: int) -> Any:
        settings = {"n_predict": most_tokens, "temperature": 0.0, "json_schema": dict(schema)}
        reply = self._completion(prompt, slot, settings)
        where = f"{self._http.url}/completion"
        whole = reply.get("stop_type") in ("eos", "word")
        return checked_answer(reply.get("content"), schema, whole=whole, where=where)

    def prefill(self, prompt: Tokens, *, slot: int) -> tuple[int, int]:
        body = {"prompt": list(prompt.ids), "n_predict": 0, "cache_prompt": True, "id_slot": slot}
        reply = self._http.call("POST", "/completion", body)
        return len(prompt.ids), _cached(reply if isinstance(reply, dict) else {})

    def warm(self, prefix: Tokens) -> None:
        for slot in range(self.slots if prefix.ids else 0):
            self.prefill(prefix, slot=slot)

    def memory_mb(self) -> int | None:
        return None

    def close(self) -> None:
        self._http.close()
        if self._on_close is not None:
            self._on_close()


class LlamaServerEmbedder:
    """Embeddings from a llama.cpp server that was started for them."""

    BATCH = 32

    def __init__(
        self, connection: EngineConnection, *, model_id: str, on_close: Callable[[], None] | None = None
    ) -> None:
        self._http = connection
        self._on_close = on_close
        self.model_id = model_id
        self._longest = _context(_props(connection)) or 512
        self.width = int(self.embed(["width"]).shape[1])

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        rows: list[npt.NDArray[np.float32]] = []
        for start in range(0, len(texts), self.BATCH):
            rows.extend(self._batch(texts[start : start + self.BATCH]))
        matrix = np.asarray(rows, dtype=np.float32)
        unit: npt.NDArray[np.float32] = matrix / np.maximum(
            np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12
        )
        return unit

    def _batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.float32]]:
        inputs: list[str | list[int]] = [self._fitting(text) for text in texts]
        reply = self._http.call("POST", "/v1/embeddings", {"input": inputs, "encoding_format": "float"})
        data = reply.get("data") if isinstance(reply, dict) else None
        if not isinstance(data, list) or len(data) != len(texts):
            raise EngineError(
                f"{self._http.url}/v1/embeddings",
                found=str(reply)[:200],
                expected=f"{len(texts)} vectors",
                next_step="See the engine's log.",
            )
        try:
            entries = sorted(data, key=lambda entry: entry["index"])
            vectors = [np.asarray(entry["embedding"], dtype=np.float32).reshape(-1) for entry in entries]
        except (TypeError, KeyError, ValueError) as error:
            raise EngineError(
                f"{self._http.url}/v1/embeddings",
                found=f"an entry that is no vector ({error!r})",
                expected="index and embedding",
                next_step="See the engine's log.",
            ) from error
        if len({len(vector) for vector in vectors}) > 1 or not all(np.isfinite(v).all() for v in vectors):
            raise EngineError(
                f"{self._http.url}/v1/embeddings",
                found="NaN in a vector, or vectors of several lengths",
                expected="numbers",
                next_step="Restart it.",
            )
        return vectors

    def _fitting(self, text: str) -> str | list[int]:
        # A token is at least one byte, so a short text needs no counting.
        if len(text.encode("utf-8")) < self._longest - 2:
            return text
        body = {"content": text, "add_special": True}
        tokens: list[int] = self._http.call("POST", "/tokenize", body)["tokens"]
        return tokens if len(tokens) <= self._longest else tokens[: self._longest - 1] + tokens[-1:]

    def close(self) -> None:
        self._http.close()
        if self._on_close is not None:
            self._on_close()
