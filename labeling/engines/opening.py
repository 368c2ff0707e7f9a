"""Opens the engine and the embedder that a project names."""

from labeling.engines.embedded import EmbeddedEmbedder, EmbeddedEngine, free_cores
from labeling.engines.http import EngineConnection, check_address
from labeling.engines.llama_server import LlamaServer, LlamaServerEmbedder
from labeling.engines.model_files import model_file
from labeling.engines.protocol import Embedder, Engine
from schemas.errors import EngineError, ModelFileError, ProjectError
from schemas.project import Project

DEFAULT_EMBEDDED_SLOTS = 4


def _endpoint(project: Project, endpoints: tuple[str, ...], key: str) -> str:
    if not endpoints:
        raise ProjectError(
            key,
            found="no address",
            expected="the server's address",
            next_step=f"Set {key}: [http://127.0.0.1:8080].",
        )
    for endpoint in endpoints:
        check_address(endpoint, project.engine.allowed_hosts)
    return endpoints[0]


def connect_engine(project: Project, *, fetch: bool = False) -> Engine:
    """The engine of a project, ready and checked against `engine.digest` when that is set.

    Raises:
        ModelFileError: the weights are missing or not the ones the project names.
        EngineUnavailable: the server does not answer.
        ProjectError: an address that is not allowed.
    """
    settings = project.engine
    if settings.kind == "embedded":
        file = model_file(settings.model, fetch=fetch)
        engine: Engine = EmbeddedEngine(
            file,
            context=settings.context,
            slots=settings.slots or DEFAULT_EMBEDDED_SLOTS,
            threads=settings.threads or free_cores(),
        )
    elif settings.kind == "llama-server":
        address = _endpoint(project, settings.endpoints, "engine.endpoints")
        connection = EngineConnection(address, timeout_s=settings.timeout_s)
        engine = LlamaServer(connection, digest=settings.digest or "unknown")
    else:
        raise EngineError(
            "engine.kind",
            found=settings.kind,
            expected="embedded or llama-server",
            next_step="The adapter for this engine is not part of this version.",
        )
    found = engine.identity().digest
    if settings.digest is not None and found != settings.digest:
        engine.close()
        raise ModelFileError(
            "engine.digest",
            found=found,
            expected=settings.digest,
            next_step="Another model is installed than the project names: install that one or change engine.digest.",
        )
    return engine


def connect_embedder(project: Project, *, fetch: bool = False) -> Embedder | None:
    """The embedder of a project; None when it uses none."""
    settings = project.embedding
    if settings.kind == "none":
        return None
    if settings.kind == "embedded":
        file = model_file(settings.model, fetch=fetch)
        return EmbeddedEmbedder(
            file, name=settings.model.rsplit("/", 1)[-1].removesuffix(".gguf"), threads=free_cores()
        )
    if settings.kind == "llama-server":
        address = _endpoint(project, settings.endpoints, "embedding.endpoints")
        connection = EngineConnection(address, timeout_s=project.engine.timeout_s)
        return LlamaServerEmbedder(connection, model_id=settings.model)
    if settings.kind == "ollama":
        from labeling.engines.ollama_server import OllamaEmbedder  # the client costs 0.3 s to import

        address = _endpoint(project, settings.endpoints, "embedding.endpoints")
        return OllamaEmbedder(address, model=settings.model, timeout_s=project.engine.timeout_s)
    raise EngineError(
        "embedding.kind",
        found=settings.kind,
        expected="embedded, llama-server, ollama or none",
        next_step="The adapter for this engine is not part of this version.",
    )
