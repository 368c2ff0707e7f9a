"""One engine a process: loading weights takes seconds, and two copies would fight over the cores."""

import atexit
import threading

from labeling.engines.opening import connect_embedder, connect_engine
from labeling.engines.protocol import Embedder, Engine
from schemas.project import Embedding, Project
from schemas.project import Engine as EngineSettings

_lock = threading.Lock()
_engines: dict[EngineSettings, Engine] = {}
_embedders: dict[Embedding, Embedder | None] = {}


def shared_engine(project: Project) -> Engine:
    """The engine of a project, opened at the first call in this process."""
    with _lock:
        if project.engine not in _engines:
            _engines[project.engine] = connect_engine(project)
        return _engines[project.engine]


def shared_embedder(project: Project) -> Embedder | None:
    """The embedder of a project, opened at the first call in this process."""
    with _lock:
        if project.embedding not in _embedders:
            _embedders[project.embedding] = connect_embedder(project)
        return _embedders[project.embedding]


@atexit.register
def close_shared() -> None:
    """Frees what this process opened."""
    with _lock:
        for engine in _engines.values():
            engine.close()
        for embedder in _embedders.values():
            if embedder is not None:
                embedder.close()
        _engines.clear()
        _embedders.clear()
