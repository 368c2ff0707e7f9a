"""One-token labels from the real Ollama, the real llama-server, its OpenAI routes and the engine in the process."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from small_projects import ProjectFactory, need

from benchmarks.llama_bench_in_wheel import library
from deployments.engine_servers import LocalOllama, built, local_llama_server
from labeling.engines.embedded import EmbeddedEngine
from labeling.engines.http import EngineConnection
from labeling.engines.llama_server import LlamaServer
from labeling.engines.model_files import model_file
from labeling.engines.ollama_server import OllamaServer
from labeling.engines.openai_server import OpenAIServer
from labeling.engines.protocol import Engine
from labeling.engines.self_test import require, self_test
from labeling.multinomial import log_softmax
from labeling.prompts import Prompt, PromptTemplate, label_codes
from labeling.score_store import register, score_missing
from labeling.scoring import score_batch
from schemas.errors import EngineError, IdentityChanged
from schemas.project import Label

pytestmark = pytest.mark.engines

LABELS = [Label(name="Sports"), Label(name="Business"), Label(name="Weather")]
TEXTS = [
    "The home side won the cup after extra time and two late goals.",
    "Shares of the bank fell by four percent after the quarterly report.",
    "Heavy rain and strong wind are expected along the coast tonight.",
    "The coach praised his goalkeeper after the match.",
    "The company will close two factories and cut costs.",
    "Snow is forecast above eight hundred metres, sunshine below.",
]
NEAR = 0.35  # nats: builds with other kernels round differently


@pytest.fixture(scope="module")
def engines(real_ollama: LocalOllama, llama_server_url: str) -> Iterator[dict[str, Engine]]:
    opened: dict[str, Engine] = {
        "ollama": OllamaServer(
            EngineConnection(real_ollama.url, timeout_s=120), model="smollm2", context=512, slots=2
        ),
        "llama-server": LlamaServer(EngineConnection(llama_server_url, timeout_s=120), digest="unknown"),
        "openai": OpenAIServer(
            EngineConnection(llama_server_url, timeout_s=120),
            model="smollm2-135m-instruct.gguf",
            context=512,
            slots=2,
        ),
        "embedded": EmbeddedEngine(model_file("smollm2-135m-instruct"), context=512, slots=2, threads=None),
    }
    yield opened
    for engine in opened.values():
        engine.close()


def prompt_for(engine: Engine) -> Prompt:
    codes = label_codes(LABELS, engine.first_token)
    prefix = "What is this message about: Sports, Business or Weather?\n\nText: "
    return Prompt(PromptTemplate("plain", prefix), codes, (), prefix, "\nLabel:")


def scores(engine: Engine) -> np.ndarray:
    records = [(str(number), text) for number, text in enumerate(TEXTS)]
    outcome = score_batch(engine, prompt_for(engine), records)
    assert not outcome.set_aside
    assert all(0 < row.label_mass <= 1 for row in outcome.scored)
    return log_softmax(np.array([row.log_probs for row in outcome.scored]))


@pytest.mark.parametrize("kind", ["ollama", "llama-server", "openai", "embedded"])
def test_every_server_passes_its_self_test(kind: str, engines: dict[str, Engine]) -> None:
    engine = engines[kind]

    points = self_test(engine, prompt_for(engine))

    require(points)
    assert {point.name for point in points if point.passed is False} <= {"requests at once", "batching"}


@pytest.mark.parametrize("kind", ["ollama", "embedded"])
def test_a_model_takes_at_least_the_memory_of_its_weights(kind: str, engines: dict[str, Engine]) -> None:
    weights = model_file("smollm2-135m-instruct").stat().st_size / 1e6
    engines[kind].warm(engines[kind].tokenize("Ollama frees a model that rests."))

    taken = [engines[kind].memory_mb() for _ in range(2)]

    assert all(found is not None and weights < found < 4 * weights for found in taken), taken
    assert engines["llama-server"].memory_mb() is None


def test_a_llama_server_whose_slots_lose_their_cache_at_rest_is_told() -> None:
    """llama-server's own default, without --parallel."""
    need(built("llama-server"), "a real llama-server: run `make engines`")
    with local_llama_server(model_file("smollm2-135m-instruct"), slots=None, context=2048) as url:
        engine = LlamaServer(EngineConnection(url, timeout_s=300), digest="unknown")
        points = self_test(engine, prompt_for(engine))
        engine.close()

    (point,) = [point for point in points if point.name == "prefix cache"]
    assert point.passed is False and "--parallel" in point.next_step


@pytest.mark.parametrize("kind", ["ollama", "llama-server", "openai"])
def test_labels_agree_with_the_engine_in_the_process_where_the_margin_is_real(
    kind: str, engines: dict[str, Engine]
) -> None:
    here, there = scores(engines["embedded"]), scores(engines[kind])

    assert np.abs(here - there).max() < NEAR
    ordered = np.sort(here, axis=1)
    clear = ordered[:, -1] - ordered[:, -2] > 2 * NEAR
    assert clear.any()
    assert (here.argmax(axis=1) == there.argmax(axis=1))[clear].all()


@pytest.mark.parametrize("kind", ["ollama", "llama-server", "openai", "embedded"])
def test_an_answer_under_a_schema_keeps_it(kind: str, engines: dict[str, Engine]) -> None:
    schema = {
        "type": "object",
        "properties": {"label": {"enum": ["Sports", "Business"]}, "sure": {"type": "boolean"}},
        "required": ["label", "sure"],
        "additionalProperties": False,
    }
    engine = engines[kind]
    prompt = engine.tokenize(f"{TEXTS[0]}\nAnswer with JSON, label and sure:\n")

    answer = engine.generate(prompt, schema, most_tokens=60, slot=0)

    assert answer["label"] in ("Sports", "Business") and isinstance(answer["sure"], bool)
    with pytest.raises(EngineError, match="cut"):
        engine.generate(prompt, schema, most_tokens=3, slot=0)


@pytest.mark.parametrize("kind", ["ollama", "llama-server", "openai"])
def test_an_over_long_record_is_never_cut_in_silence(kind: str, engines: dict[str, Engine]) -> None:
    engine = engines[kind]
    story = [("long", "The coach spoke of the match again. " * 200), ("short", TEXTS[0])]

    refused = score_batch(engine, prompt_for(engine), story, over_long="refuse")
    fitted = score_batch(engine, prompt_for(engine), story, over_long="head_tail")

    assert [row.record_id for row in refused.scored] == ["short"]
    assert refused.set_aside[0].reason.startswith("prompt too long")
    assert [row.fit for row in fitted.scored] == ["head_tail", "whole"]
    assert all(math.isfinite(value) for row in fitted.scored for value in row.log_probs)


@pytest.mark.parametrize("kind", ["ollama", "llama-server"])
def test_records_in_any_script_are_labelled(kind: str, engines: dict[str, Engine]) -> None:
    """Of whose answers many would begin with a part of a character."""
    engine = engines[kind]
    texts = [
        "Команда выиграла матч",
        "한국어 뉴스 " * 12,
        "👩‍👩‍👧‍👦" * 12,
        "فاز الفريق بالمباراة أمس",
        "今天有大雨",
    ]

    outcome = score_batch(engine, prompt_for(engine), [(text, text) for text in texts])

    assert not outcome.set_aside


def test_ollama_tells_its_slots(real_ollama: LocalOllama) -> None:
    connection = EngineConnection(real_ollama.url, timeout_s=120)

    engine = OllamaServer(connection, model="smollm2", context=512, slots=None)

    assert engine.parallel == 2 and engine.slots == 6


def test_control_tokens_of_the_model_are_known(engines: dict[str, Engine]) -> None:
    assert "<|im_end|>" in engines["ollama"].control_marks


def test_a_digest_swap_in_mid_run_halts_with_no_label_of_the_other_model(
    real_ollama: LocalOllama,
    project_folder: ProjectFactory,
    tmp_path: Path,
) -> None:
    """`ollama create` over the same name while a run is under way."""
    real_ollama.create("worker", model_file("smollm2-135m-instruct"))
    other = tmp_path / "other.gguf"
    other.write_bytes(_renamed(model_file("smollm2-135m-instruct").read_bytes()))
    connection = EngineConnection(real_ollama.url, timeout_s=120)
    engine = OllamaServer(connection, model="worker", context=512, slots=2)
    project, folder = project_folder([{"text": text} for text in TEXTS], limits={"shard_records": 3})
    prompt = prompt_for(engine)
    store = register(project, folder, engine, prompt)
    asked = 0

    def swap() -> None:
        nonlocal asked
        asked += 1
        if asked == 4:  # in the second shard
            real_ollama.create("worker", other)

    records = ((f"r{number}", text) for number, text in enumerate(TEXTS))
    with pytest.raises(IdentityChanged):
        for _ in score_missing(
            engine, prompt, store, records, project=project, folder=folder, known=(), on_record=swap
        ):
            pass

    assert store.known() == {"r0", "r1", "r2"}


def _renamed(weights: bytes) -> bytes:
    """The same model with another byte in its name: other weights to every digest."""
    key = b"general.name"
    at = weights.index(key) + len(key) + 4 + 8  # value type, length
    return weights[:at] + bytes([weights[at] ^ 0x01]) + weights[at + 1 :]


def test_llama_bench_runs_on_the_code_in_the_wheel() -> None:
    need(library() is not None, "llama-bench for the xllamacpp wheel is not built (make engines)")
    weights = model_file("smollm2-135m-instruct")
    command = [sys.executable, "-m", "benchmarks.llama_bench_in_wheel", "-m", str(weights)]
    done = subprocess.run(
        [*command, "-p", "16", "-n", "0", "-r", "2", "-o", "json"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    (row,) = json.loads(done.stdout)
    assert row["n_prompt"] == 16
    assert len(row["samples_ns"]) == 2 and min(row["samples_ns"]) > 0
