"""Starts the real engine servers that `make engines` built, on loopback, for tests and benchmarks."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from deployments.services import free_port
from labeling import paths

START_S = 120.0


def built(name: str) -> Path | None:
    """The binary `make engines` left, if it did."""
    binary = paths.engines() / "bin" / name
    return binary if binary.is_file() else None


def _wait_for(url: str, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"{server.args!r} ended with {server.returncode}")
        try:
            if httpx.get(url, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"no answer from {url} within {START_S:g} s")


@contextmanager
def _running(
    command: list[str | Path], health: str, environment: dict[str, str] | None = None
) -> Iterator[None]:
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(health, server)
        yield
    finally:
        server.terminate()
        server.wait(30)


@dataclass(frozen=True)
class LocalOllama:
    """A running Ollama with its own empty store."""

    url: str
    binary: Path
    root: Path
    environment: dict[str, str]

    def create(self, name: str, weights: Path) -> None:
        """Makes a model of a GGUF file; the same name again swaps it."""
        modelfile = self.root / f"Modelfile-{name}"
        modelfile.write_text(f"FROM {weights}\n", "utf-8")
        command = [self.binary, "create", name, "-f", modelfile]
        subprocess.run(command, env=self.environment, check=True, capture_output=True)


@contextmanager
def local_ollama(root: Path, *, slots: int, prompt_cache: bool = False) -> Iterator[LocalOllama]:
    """An Ollama of the caller's own: cloud off, nothing outside `root`.

    Args:
        root: An empty folder.
        slots: Requests that are computed at once.
        prompt_cache: With llama.cpp's own copies of finished prompts in main memory.
    """
    binary = paths.engines() / "bin" / "ollama"
    address = f"127.0.0.1:{free_port()}"
    environment = {
        **os.environ,
        "HOME": str(root),
        "OLLAMA_HOST": address,
        "OLLAMA_MODELS": str(root / "models"),
        "OLLAMA_NO_CLOUD": "1",
        "OLLAMA_NOPRUNE": "1",
        "OLLAMA_NUM_PARALLEL": str(slots),
        **({} if prompt_cache else {"LLAMA_ARG_CACHE_RAM": "0"}),
    }
    with _running([binary, "serve"], f"http://{address}/api/version", environment):
        yield LocalOllama(f"http://{address}", binary, root, environment)


@contextmanager
def local_llama_server(weights: Path, *, slots: int | None, context: int) -> Iterator[str]:
    """A llama-server of the caller's own, started as the README says, or for None as it starts by itself; yields its
    address.
    """
    port = free_port()
    command: list[str | Path] = [paths.engines() / "bin" / "llama-server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--model", weights, "--alias", weights.name]
    command += ["--ctx-size", str(context * (slots or 1)), "--offline", "--no-webui"]
    command += ["--parallel", str(slots), "--cache-ram", "0"] if slots else []
    with _running(command, f"http://127.0.0.1:{port}/health"):
        yield f"http://127.0.0.1:{port}"
