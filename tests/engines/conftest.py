"""A real Ollama and a real llama-server of the tests' own, built by `make engines`, with the shipped weights."""

from collections.abc import Callable, Iterator

import pytest

from deployments.engine_servers import LocalOllama, built, local_llama_server, local_ollama
from labeling.engines.model_files import model_file

SLOTS = 2
CONTEXT = 512


@pytest.fixture(scope="session")
def real_ollama(
    tmp_path_factory: pytest.TempPathFactory, need: Callable[[object, str], None]
) -> Iterator[LocalOllama]:
    """With the models `smollm2` and `minilm`."""
    need(built("ollama"), "a real Ollama: run `make engines`")
    with local_ollama(tmp_path_factory.mktemp("ollama"), slots=SLOTS) as ollama:
        ollama.create("minilm", model_file("all-minilm-l6-v2"))
        ollama.create("smollm2", model_file("smollm2-135m-instruct"))
        yield ollama


@pytest.fixture(scope="session")
def ollama_url(real_ollama: LocalOllama) -> str:
    return real_ollama.url


@pytest.fixture(scope="session")
def llama_server_url(need: Callable[[object, str], None]) -> Iterator[str]:
    need(built("llama-server"), "a real llama-server: run `make engines`")
    with local_llama_server(model_file("smollm2-135m-instruct"), slots=SLOTS, context=CONTEXT) as url:
        yield url
