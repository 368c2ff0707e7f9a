"""The Ollama adapter against a real Ollama, built by `make engines`, with the shipped MiniLM weights."""

from pathlib import Path

import httpx
import numpy as np
import pytest

from labeling.engines.ollama_server import OllamaEmbedder
from schemas.errors import EngineUnavailable, ModelFileError

pytestmark = pytest.mark.engines


def test_paraphrases_are_near_and_strangers_far(ollama_url: str) -> None:
    embedder = OllamaEmbedder(ollama_url, model="minilm", timeout_s=120)

    rows = embedder.embed(
        ["A cat sits on the mat.", "A feline rests on the rug.", "Quarterly taxes are due."]
    )

    assert rows.shape == (3, embedder.width) == (3, 384)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)
    assert rows[0] @ rows[1] > 0.5 > 0.2 > rows[0] @ rows[2]


def test_identity_holds_the_digest(ollama_url: str) -> None:
    listed = httpx.get(f"{ollama_url}/api/tags", trust_env=False).json()["models"]

    embedder = OllamaEmbedder(ollama_url, model="minilm", timeout_s=120)

    digests = {entry["name"]: entry["digest"] for entry in listed}
    assert embedder.model_id == f"minilm-{digests['minilm:latest'][:12]}"


def test_a_model_ollama_does_not_have_is_named_with_those_it_has(ollama_url: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        OllamaEmbedder(ollama_url, model="nomic", timeout_s=10)

    assert "minilm" in caught.value.found
    assert "ollama create" in caught.value.next_step


def test_a_cloud_model_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(ModelFileError) as caught:
        OllamaEmbedder("http://127.0.0.1:9", model="gpt-oss:120b-cloud", timeout_s=1)

    assert caught.value.found == "a cloud model"


def test_a_server_that_is_not_there_may_be_asked_again(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable) as caught:
        OllamaEmbedder("http://127.0.0.1:9", model="minilm", timeout_s=1)

    assert caught.value.retryable
