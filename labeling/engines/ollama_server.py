"""Vectors from an Ollama of the client's own, through its official Python client.

Scoring through Ollama needs its own reading of the top 20 and is not part of this version; its embeddings are.
"""

from collections.abc import Sequence

import httpx
import numpy as np
import numpy.typing as npt
import ollama

from schemas.errors import EngineError, EngineUnavailable, ModelFileError


class OllamaEmbedder:
    """An embedding model served by Ollama. The model's digest is part of the vectors' identity.

    Args:
        url: Address, already checked to be loopback or the client's own.
        model: Name as `ollama list` shows it.
        timeout_s: For each batch.

    Raises:
        ModelFileError: Ollama does not have the model, or it is a cloud model.
        EngineUnavailable: no answer.
    """

    BATCH = 32

    def __init__(self, url: str, *, model: str, timeout_s: float) -> None:
        if "cloud" in model:
            raise ModelFileError(
                f"embedding.model {model!r}",
                found="a cloud model",
                expected="a model on this machine",
                next_step="Nothing may leave the building: choose a local model.",
            )
        self._url, self._model = url, model
        self._client = ollama.Client(host=url, timeout=timeout_s, trust_env=False, follow_redirects=False)
        self.model_id = f"{model.replace(':', '-').replace('/', '-')}-{self._digest()[:12]}"
        self.width = int(self.embed(["width"]).shape[1])

    def _digest(self) -> str:
        try:
            listed = self._client.list().models
        except (httpx.HTTPError, ConnectionError, ollama.ResponseError) as error:
            raise self._unavailable(error) from error
        names = [entry.model or "" for entry in listed]
        for entry in listed:
            if entry.model in (self._model, f"{self._model}:latest"):
                return str(entry.digest)
        raise ModelFileError(
            f"embedding.model {self._model!r}",
            found=f"Ollama has {', '.join(names) or 'no model'}",
            expected="the model in its list",
            next_step=f"`ollama create {self._model} -f Modelfile` (or pull it where a network is).",
        )

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        rows: list[Sequence[float]] = []
        for start in range(0, len(texts), self.BATCH):
            batch = list(texts[start : start + self.BATCH])
            try:
                vectors = self._client.embed(model=self._model, input=batch, truncate=True).embeddings
            except (httpx.HTTPError, ConnectionError, ollama.ResponseError) as error:
                raise self._unavailable(error) from error
            if len(vectors) != len(batch):
                raise EngineError(
                    f"{self._url}/api/embed",
                    found=f"{len(vectors)} vectors",
                    expected=f"{len(batch)}",
                    next_step="See Ollama's log.",
                )
            rows.extend(vectors)
        matrix = np.asarray(rows, dtype=np.float32)
        if not np.isfinite(matrix).all():
            raise EngineError(
                f"{self._url}/api/embed",
                found="NaN in a vector",
                expected="numbers",
                next_step="Restart Ollama.",
            )
        unit: npt.NDArray[np.float32] = matrix / np.maximum(
            np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12
        )
        return unit

    def _unavailable(self, error: Exception) -> EngineUnavailable:
        return EngineUnavailable(
            self._url, found=str(error), expected="an answer", next_step="Check that `ollama serve` runs."
        )

    def close(self) -> None:
        """Nothing to free: the server is somebody else's."""
