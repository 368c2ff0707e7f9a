"""Ollama: label scores from the top 20 tokens of its native API, and vectors.

Its official Python client is not used: its replies are unbounded, and it cannot send `truncate: false`. What Ollama
does by default and must not: cut an over-long prompt in silence, queue requests one behind the other, and forward
texts to its cloud. The first is forbidden in every request and checked against the engine's own count; the second is
measured and said; the third is asked about before any text is sent, and every answer is looked at for it.
"""

import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

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
from labeling.engines.vocabulary import Vocabulary
from schemas.errors import EngineError, ModelFileError

TOP = 20
SAMPLING = f"one token; raw log-probabilities of the top {TOP}"
SHOW_BYTES = 64_000_000  # a vocabulary of 150,000 tokens with its merges
CONTROL = 3  # token type of control tokens in GGUF
# Ollama tells no probabilities where the token it draws ends the answer or is a part of a character, as it often is
# outside Latin script. They do not depend on the draw, so another one (of the cached prompt) tells the same: out of all
# tokens nearly alike, whatever the model's own settings keep, few of which are of these kinds.
_ANY = {"temperature": 100.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
DRAWS: tuple[dict[str, Any], ...] = ({"temperature": 0.0}, *({**_ANY, "seed": seed} for seed in (1, 2, 3)))
COUNTING = "one two three four five six seven eight nine ten one two three four five six"
LONG_ANSWER = 64
HEAD_START_S = 0.1


def _models(connection: EngineConnection) -> list[dict[str, Any]]:
    reply = connection.call("GET", "/api/tags")
    listed = reply.get("models") if isinstance(reply, dict) else None
    if not isinstance(listed, list):
        raise EngineError(
            f"{connection.url}/api/tags",
            found=str(reply)[:200],
            expected="a list of models",
            next_step="Use an Ollama of 0.12.11 or later.",
        )
    return [entry for entry in listed if isinstance(entry, dict)]


def _refuse_cloud(connection: EngineConnection) -> None:
    try:
        status = connection.call("GET", "/api/status")
    except EngineError as error:
        if not error.found.startswith("HTTP 404"):
            raise
        return  # an older Ollama without the route; the model's own entry is checked all the same
    cloud = status.get("cloud") if isinstance(status, dict) else None
    if not isinstance(cloud, dict) or cloud.get("disabled") is not True:
        raise EngineError(
            f"{connection.url}/api/status",
            found="Ollama's cloud features are on",
            expected="them off: nothing may leave the building",
            next_step="Start it with OLLAMA_NO_CLOUD=1.",
        )


def _is_called(entry: dict[str, Any], model: str) -> bool:
    return entry.get("name") in (model, f"{model}:latest")


def _entry(connection: EngineConnection, model: str, key: str) -> dict[str, Any]:
    """What Ollama lists of a model that `key` of the project names and that runs on this machine."""
    listed = _models(connection)
    for entry in listed:
        if _is_called(entry, model):
            if entry.get("remote_host") or entry.get("remote_model"):
                raise ModelFileError(
                    f"{key} {model!r}",
                    found=f"a model that runs at {entry.get('remote_host') or 'another host'}",
                    expected="a model on this machine",
                    next_step="Nothing may leave the building: choose a local model.",
                )
            return entry
    names = ", ".join(str(entry.get("name")) for entry in listed)
    raise ModelFileError(
        f"{key} {model!r}",
        found=f"Ollama has {names or 'no model'}",
        expected="the model in its list",
        next_step=f"`ollama create {model} -f Modelfile` (or pull it where a network is).",
    )


def _of_this_machine(reply: object, where: str) -> dict[str, Any]:
    """A reply that is an object and was not made by another host."""
    if not isinstance(reply, dict):
        raise EngineError(where, found=str(reply)[:200], expected="an object", next_step="See Ollama's log.")
    if reply.get("remote_host") or reply.get("remote_model"):
        raise ModelFileError(
            where,
            found=f"an answer from {reply.get('remote_host') or 'another host'}",
            expected="an answer of this machine",
            next_step="Stop this Ollama: it forwards texts to another machine.",
        )
    return reply


class OllamaServer:
    """One Ollama and one of its models.

    Args:
        connection: To an address already checked to be loopback or the client's own.
        model: Name as `ollama list` shows it.
        context: Tokens of one request; Ollama loads the model with that much for each of its slots.
        slots: Requests in flight; None measures how many Ollama handles at once.

    Raises:
        ModelFileError: Ollama does not have the model, or it runs somewhere else (cloud, remote host).
        EngineError: Ollama's cloud features are on, or it is too old to answer as this needs it.
    """

    counts = False
    tells: int | None = TOP
    measures_weights = True

    def __init__(self, connection: EngineConnection, *, model: str, context: int, slots: int | None) -> None:
        self._http, self._model = connection, model
        _refuse_cloud_name(model, "engine.model")
        _refuse_cloud(connection)
        self._vocabulary, self.control_marks, trained = self._read_model()
        # Ollama gives a model no more than it was trained with, whatever is asked.
        self.context = min(context, trained or context)
        self.slots = slots or 1
        self.parallel: int | None = None
        if slots is None:
            self.parallel = self._measure_slots()
            # Ollama 0.24 works on a request for 40 to 90 ms before it is computed (it reads the model's header anew for
            # each; 0.34 takes 1 ms): two wait for each that is computed, or slots idle between two.
            self.slots = 3 * self.parallel

    def identity(self) -> Identity:
        entry = _entry(self._http, self._model, "engine.model")
        version = self._http.call("GET", "/api/version")
        details = entry.get("details")
        return Identity(
            engine="ollama",
            engine_version=str(version.get("version")) if isinstance(version, dict) else "?",
            model=self._model,
            digest=str(entry.get("digest") or "unknown").removeprefix("sha256:"),
            quantization=str(details.get("quantization_level")) if isinstance(details, dict) else "?",
            context=self.context,
            sampling=SAMPLING,
        )

    def _read_model(self) -> tuple[Vocabulary | None, Collection[str], int | None]:
        """Vocabulary, control tokens and training context, from the model's own file where Ollama tells them."""
        _entry(self._http, self._model, "engine.model")
        shown = self._http.call(
            "POST", "/api/show", {"model": self._model, "verbose": True}, most_bytes=SHOW_BYTES
        )
        info = shown.get("model_info") if isinstance(shown, dict) else None
        if not isinstance(info, dict):
            return None, COMMON_MARKS, None
        trained = next(
            (finite(value) for key, value in info.items() if key.endswith(".context_length")), None
        )
        tokens, kinds = info.get("tokenizer.ggml.tokens"), info.get("tokenizer.ggml.token_type")
        if not _texts(tokens) or not isinstance(kinds, list):
            return None, COMMON_MARKS, None if trained is None else int(trained)
        marks = [
            token for token, kind in zip(tokens, kinds, strict=False) if kind == CONTROL and len(token) > 1
        ]
        vocabulary = Vocabulary(
            tokens,
            byte_level=info.get("tokenizer.ggml.model") == "gpt2",
            merges=merges if _texts(merges := info.get("tokenizer.ggml.merges")) else None,
            scores=scores if isinstance(scores := info.get("tokenizer.ggml.scores"), list) else None,
        )
        return vocabulary, tuple(marks), None if trained is None else int(trained)

    def tokenize(self, text: str) -> Tokens:
        """The text alone: Ollama has no route that tells its tokens."""
        return Tokens((), text)

    def first_token(self, text: str) -> FirstToken:
        if self._vocabulary is None:
            return FirstToken(-1, "", len(text.strip()) == 1)
        return self._vocabulary.first_token(text)

    def prefill(self, prompt: Tokens, *, slot: int) -> tuple[int, int]:
        return _tokens(self._generate(prompt.text, {"num_predict": 1}))

    def score(self, prompt: Tokens, codes: Sequence[LabelCode], *, slot: int) -> LabelScores:
        started = time.perf_counter()
        where = f"{self._http.url}/api/generate"
        for draw in DRAWS:
            reply = self._generate(prompt.text, {"num_predict": 1, **draw}, top=TOP)
            pairs = self._most_likely(reply, where)
            if pairs:
                break
        log_probs, mass, label_first = label_log_probs(pairs, codes, where=where)
        return LabelScores(log_probs, mass, *_tokens(reply), time.perf_counter() - started, label_first)

    def generate(self, prompt: Tokens, schema: Schema, *, most_tokens: int, slot: int) -> Any:
        reply = self._generate(prompt.text, {"num_predict": most_tokens, "temperature": 0.0}, schema=schema)
        whole = reply.get("done_reason") == "stop"
        return checked_answer(
            reply.get("response"), schema, whole=whole, where=f"{self._http.url}/api/generate"
        )

    @staticmethod
    def _most_likely(reply: dict[str, Any], where: str) -> list[tuple[str, float]]:
        positions = reply.get("logprobs")
        first = positions[0] if isinstance(positions, list) and positions else None
        entries = first.get("top_logprobs") if isinstance(first, dict) else None
        told = entries if isinstance(entries, list) else []
        pairs = [
            (entry.get("token"), entry.get("logprob")) if isinstance(entry, dict) else (None, entry)
            for entry in told
        ]
        return told_pairs(pairs, where=where)

    def _generate(
        self, text: str, options: dict[str, Any], *, top: int = 0, schema: Schema | None = None
    ) -> dict[str, Any]:
        where = f"{self._http.url}/api/generate"
        body = {
            "model": self._model,
            "prompt": text,
            "raw": True,
            "stream": False,
            "truncate": False,
            "shift": False,
            "keep_alive": "1h",
            "options": {"num_ctx": self.context, "seed": 0, "stop": [], **options},
            **({"logprobs": True, "top_logprobs": top} if top else {}),
            **({"format": dict(schema)} if schema is not None else {}),
        }
        try:
            reply = self._http.call("POST", "/api/generate", body)
        except EngineError as error:
            if says_too_long(error):
                raise too_long(where, "a prompt that does not fit", self.context) from error
            raise
        told = _of_this_machine(reply, where)
        check_count(
            told.get("prompt_eval_count"), name="prompt_eval_count", context=self.context, where=where
        )
        return told

    def memory_mb(self) -> int | None:
        reply = self._http.call("GET", "/api/ps")
        loaded = reply.get("models") if isinstance(reply, dict) else None
        for entry in loaded if isinstance(loaded, list) else []:
            if isinstance(entry, dict) and _is_called(entry, self._model):
                size = finite(entry.get("size"))
                return None if size is None else round(size / 1e6)
        return None

    def _measure_slots(self) -> int:
        """How many requests Ollama computes at once (1, 2, 4 or 8, at least): while so many long answers are written,
        does a short one come back before any of them ends?

        The server's setting (OLLAMA_NUM_PARALLEL, 1 unless set) is not told by its API.
        """
        self.warm(Tokens((), ""))
        found = 1
        for busy in (1, 3, 7):
            if not self._answers_beside(busy):
                break
            found = busy + 1
        return found

    def _answers_beside(self, busy: int) -> bool:
        with ThreadPoolExecutor(busy) as pool:
            long = [
                pool.submit(self._generate, f"{number} {COUNTING}", {"num_predict": LONG_ANSWER})
                for number in range(busy)
            ]
            time.sleep(HEAD_START_S)  # so that they have their slots
            self._generate("A short one:", {"num_predict": 1})
            return not any(answer.done() for answer in long)

    def warm(self, prefix: Tokens) -> None:
        """Loads the model; each slot computes the prefix at its first record."""
        self._generate(prefix.text or "Hello", {"num_predict": 1})

    def close(self) -> None:
        self._http.close()


def _texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _tokens(reply: dict[str, Any]) -> tuple[int, int]:
    """Sent, and served by the cache, which a newer Ollama tells (0.34 does, 0.30 does not)."""
    return int(reply["prompt_eval_count"]), int(finite(reply.get("prompt_eval_cached_count")) or 0)


def _refuse_cloud_name(model: str, key: str) -> None:
    if "cloud" in model:
        raise ModelFileError(
            f"{key} {model!r}",
            found="a cloud model",
            expected="a model on this machine",
            next_step="Nothing may leave the building: choose a local model.",
        )


class OllamaEmbedder:
    """An embedding model served by Ollama. The model's digest is part of the vectors' identity.

    Args:
        url: Address, already checked to be loopback or the client's own.
        model: Name as `ollama list` shows it.
        timeout_s: For each batch.

    Raises:
        ModelFileError: Ollama does not have the model, or it runs somewhere else (cloud, remote host).
        EngineError: Ollama's cloud features are on, or its replies are no vectors.
        EngineUnavailable: no answer.
    """

    BATCH = 32

    def __init__(self, url: str, *, model: str, timeout_s: float) -> None:
        _refuse_cloud_name(model, "embedding.model")
        self._http, self._model = EngineConnection(url, timeout_s=timeout_s), model
        _refuse_cloud(self._http)
        digest = str(_entry(self._http, model, "embedding.model").get("digest"))
        self.model_id = f"{model.replace(':', '-').replace('/', '-')}-{digest[:12]}"
        self.width = 0
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

    def _batch(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        where = f"{self._http.url}/api/embed"
        body = {"model": self._model, "input": list(texts), "truncate": True}
        vectors = _of_this_machine(self._http.call("POST", "/api/embed", body), where).get("embeddings")
        if not isinstance(vectors, list) or len(vectors) != len(texts):
            found = f"{len(vectors)} vectors" if isinstance(vectors, list) else "no embeddings"
            raise EngineError(
                where, found=found, expected=f"{len(texts)} vectors", next_step="See Ollama's log."
            )
        try:
            matrix = np.asarray(vectors, dtype=np.float32)
        except (TypeError, ValueError, OverflowError) as error:
            raise self._no_vectors(where, str(error)) from error
        if matrix.ndim != 2 or not matrix.shape[1] or self.width not in (0, matrix.shape[1]):
            raise self._no_vectors(where, f"an array of shape {matrix.shape}")
        if not np.isfinite(matrix).all():
            raise self._no_vectors(where, "a number that is not finite")
        return matrix

    @staticmethod
    def _no_vectors(where: str, found: str) -> EngineError:
        return EngineError(
            where,
            found=f"embeddings that are no vectors ({found})",
            expected="numbers, as many for each text",
            next_step="Check that the model is one for embeddings (`ollama show`), and restart Ollama.",
        )

    def close(self) -> None:
        """Ends the connections; the server is somebody else's."""
        self._http.close()
