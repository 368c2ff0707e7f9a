"""llama.cpp inside the process: needs no service, no root, no network; listens on loopback behind a random key."""

import os
import secrets
import socket
from pathlib import Path

from labeling.engines.http import EngineConnection
from labeling.engines.llama_server import LlamaServer, LlamaServerEmbedder
from labeling.engines.model_files import digest_of


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def free_cores() -> int:
    """Cores this process may use. The kernels' threads spin, so more of them than cores slow everything down."""
    return max(1, len(os.sched_getaffinity(0)))


def _start(
    model: Path, *, context: int, slots: int, threads: int, embedding: bool
) -> tuple[object, EngineConnection, str]:
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(model)
    settings.n_ctx = context * slots
    settings.n_parallel = slots
    settings.cpuparams.n_threads = threads
    settings.cpuparams_batch.n_threads = threads
    settings.hostnames = ["127.0.0.1"]
    settings.port = _free_port()
    key = secrets.token_urlsafe(24)
    settings.api_keys = [key]
    settings.offline = True
    settings.ui = False
    settings.endpoint_slots = False
    settings.cache_ram_mib = (
        0  # finished prompts are never asked again: keeping them costs memory for nothing
    )
    settings.verbosity = -1
    settings.n_gpu_layers = 0
    if embedding:
        settings.embedding = True
        settings.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        settings.n_ubatch = settings.n_batch = max(context, 512)
    server = xllamacpp.Server(settings)
    return (
        server,
        EngineConnection(server.listening_address, timeout_s=600, api_key=key),
        xllamacpp.__version__,
    )


class EmbeddedEngine(LlamaServer):
    """A completion model in this process. `close` ends it; so does the end of the process."""

    def __init__(self, model: Path, *, context: int, slots: int, threads: int | None) -> None:
        self._server, connection, version = _start(
            model, context=context, slots=slots, threads=threads or free_cores(), embedding=False
        )
        super().__init__(connection, digest=digest_of(model), engine=f"xllamacpp {version}")

    def close(self) -> None:
        super().close()
        self._server = None


class EmbeddedEmbedder(LlamaServerEmbedder):
    """An embedding model in this process."""

    def __init__(self, model: Path, *, name: str, threads: int | None) -> None:
        self._server, connection, _ = _start(
            model, context=512, slots=1, threads=threads or free_cores(), embedding=True
        )
        super().__init__(connection, model_id=f"{name}-{digest_of(model)[:12]}")

    def close(self) -> None:
        super().close()
        self._server = None
