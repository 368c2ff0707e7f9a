"""Opens the engine and the embedder that a project names."""

import logging
import os

from labeling.engines.embedded import EmbeddedEmbedder, EmbeddedEngine
from labeling.engines.fleet import Fleet
from labeling.engines.http import EngineConnection, check_address
from labeling.engines.llama_server import UNKNOWN, LlamaServer, LlamaServerEmbedder, mark_of_model
from labeling.engines.model_files import model_file
from labeling.engines.ollama_server import OllamaEmbedder, OllamaServer
from labeling.engines.openai_server import OpenAIServer
from labeling.engines.protocol import Embedder, Engine
from schemas.errors import EngineUnavailable, ModelFileError, ProjectError
from schemas.project import Project

DEFAULT_EMBEDDED_SLOTS = 2  # on a CPU more share what two already use, and need more memory


def _addresses(project: Project, endpoints: tuple[str, ...], key: str) -> tuple[str, ...]:
    if not endpoints:
        raise ProjectError(
            key,
            found="no address",
            expected="the server's address",
            next_step=f"Set {key}: [http://127.0.0.1:8080].",
        )
    for endpoint in endpoints:
        check_address(endpoint, project.engine.allowed_hosts, key=key)
    return endpoints


def _api_key(project: Project) -> str | None:
    name = project.engine.api_key
    if name is None:
        return None
    if not os.environ.get(name):
        raise ProjectError(
            "engine.api_key",
            found=f"environment variable {name} is not set",
            expected="the key of the server",
            next_step=f"Set {name}, or take engine.api_key out if the server asks for none.",
        )
    return os.environ[name]


def _connect(project: Project, address: str) -> Engine:
    settings = project.engine
    if settings.kind == "openai":  # programs are often given the address with it
        address = address.rstrip("/").removesuffix("/v1")
    connection = EngineConnection(address, timeout_s=settings.timeout_s, api_key=_api_key(project))
    if settings.kind == "llama-server":
        return LlamaServer(connection, digest=settings.digest or UNKNOWN)
    if settings.kind == "ollama":
        return OllamaServer(connection, model=settings.model, context=settings.context, slots=settings.slots)
    return OpenAIServer(connection, model=settings.model, context=settings.context, slots=settings.slots)


def _those_that_answer(project: Project, addresses: tuple[str, ...]) -> list[Engine]:
    """Servers that are up; one that is not is left out until the next start, and said so."""
    members: list[Engine] = []
    silent: EngineUnavailable | None = None
    for address in addresses:
        try:
            members.append(_connect(project, address))
        except EngineUnavailable as error:
            silent = error
            logging.getLogger(__name__).warning(
                "%s does not answer and is left out: %s", address, error.found
            )
    if not members and silent is not None:
        raise silent
    return members


def connect_engine(project: Project, *, fetch: bool = False) -> Engine:
    """The engine of a project, ready and checked against `engine.digest` when that is set.

    Raises:
        ModelFileError: the weights are missing or not the ones the project names.
        EngineUnavailable: the server does not answer.
        EngineError: a server that cannot be used, or several that are not alike.
        ProjectError: an address that is not allowed.
    """
    settings = project.engine
    engine: Engine
    if settings.kind == "embedded":
        engine = EmbeddedEngine(
            model_file(settings.model, fetch=fetch),
            context=settings.context,
            slots=settings.slots or DEFAULT_EMBEDDED_SLOTS,
            threads=settings.threads,
        )
    else:
        addresses = _addresses(project, settings.endpoints, "engine.endpoints")
        members = _those_that_answer(project, addresses)
        engine = members[0] if len(addresses) == 1 else Fleet(members)
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
        return EmbeddedEmbedder(file, name=settings.filed_as, threads=None)
    if settings.kind == "llama-server":
        address = _addresses(project, settings.endpoints, "embedding.endpoints")[0]
        connection = EngineConnection(address, timeout_s=project.engine.timeout_s)
        model_id = f"{settings.filed_as}-{mark_of_model(connection)}"  # another model is not mixed in unseen
        return LlamaServerEmbedder(connection, model_id=model_id)
    address = _addresses(project, settings.endpoints, "embedding.endpoints")[0]
    return OllamaEmbedder(address, model=settings.model, timeout_s=project.engine.timeout_s)
