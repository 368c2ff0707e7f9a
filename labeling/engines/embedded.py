"""llama.cpp inside the process: needs no service, no root, no network; listens on loopback behind a random key."""

import os
import secrets
import socket
import subprocess
import sys
from pathlib import Path

from labeling.engines.http import EngineConnection
from labeling.engines.llama_server import LlamaServer, LlamaServerEmbedder
from labeling.engines.model_files import digest_of
from schemas.errors import ModelFileError

# Turns a kernel thread spins at a barrier before it sleeps. With libgomp's own choice (300,000) it burns the core that
# the other thread waits for when somebody else is busy too (`python -m benchmarks.spinning`).
SPIN_TURNS = "1000"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def all_cores() -> int:
    """Cores this process may use. With `SPIN_TURNS` a shared core costs its share of the pace and no more."""
    return len(os.sched_getaffinity(0))


def _start(
    model: Path, *, context: int, slots: int, threads: int | None, embedding: bool
) -> tuple[object, EngineConnection, str]:
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_TURNS)  # read once, when the library is loaded
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(model)
    settings.n_ctx = context * slots
    settings.n_parallel = slots
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads or all_cores()
    settings.hostnames = ["127.0.0.1"]
    settings.port = _free_port()
    key = secrets.token_urlsafe(24)
    settings.api_keys = [key]
    settings.offline = True
    settings.ui = False
    settings.endpoint_slots = False
    settings.cache_ram_mib = 0  # finished prompts are never asked again
    settings.verbosity = -1
    settings.n_gpu_layers = 0
    if embedding:
        settings.embedding = True
        settings.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        settings.n_ubatch = settings.n_batch = max(context, 512)
    try:
        server = xllamacpp.Server(settings)
    except RuntimeError as error:
        raise ModelFileError(
            str(model),
            found=str(error),
            expected="weights that llama.cpp can load",
            next_step="The file is damaged, of a newer format, or too large for this machine: convert it again or "
            "use a smaller model or engine.context.",
        ) from error
    connection = EngineConnection(server.listening_address, timeout_s=600, api_key=key)
    # Answered by the loop of llama.cpp's server: told to end before that runs, it would wait for itself for ever.
    connection.call("GET", "/lora-adapters")
    return server, connection, xllamacpp.__version__


class EmbeddedEngine(LlamaServer):
    """A completion model in this process. `close` ends it; so does the end of the process."""

    measures_weights = True

    def __init__(self, model: Path, *, context: int, slots: int, threads: int | None) -> None:
        self._server, connection, version = _start(
            model, context=context, slots=slots, threads=threads, embedding=False
        )
        super().__init__(connection, digest=digest_of(model), engine=f"xllamacpp {version}")
        self._model = model

    def memory_mb(self) -> int | None:
        """Measured in a process of its own: in this one nobody can tell what is whose."""
        measure = f"from {__name__} import weigh; weigh()"
        command = [sys.executable, "-c", measure, str(self._model), str(self.context), str(self.slots)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return int(done.stdout) if done.returncode == 0 and done.stdout.strip().isdigit() else None

    def close(self) -> None:
        super().close()
        self._server = None


class EmbeddedEmbedder(LlamaServerEmbedder):
    """An embedding model in this process."""

    def __init__(self, model: Path, *, name: str, threads: int | None) -> None:
        self._server, connection, _ = _start(model, context=512, slots=1, threads=threads, embedding=True)
        super().__init__(connection, model_id=f"{name}-{digest_of(model)[:12]}")

    def close(self) -> None:
        super().close()
        self._server = None


def _resident_mb() -> float:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def weigh() -> None:
    """Prints by how many MB a process grows that loads the model and reads a prompt (Linux): MODEL CONTEXT SLOTS."""
    import xllamacpp  # noqa: F401 (no part of the model)

    model, context, slots = sys.argv[1:]
    before = _resident_mb()
    engine = EmbeddedEngine(Path(model), context=int(context), slots=int(slots), threads=None)
    engine.prefill(engine.tokenize("One sentence makes room for all others."), slot=0)
    sys.stdout.write(f"{_resident_mb() - before:.0f}\n")
    engine.close()
