"""Lexical vectors: latent semantic analysis of character n-grams, learned on the project's own records.

An embedding model knows what a text means in general; these vectors know how this project's texts are written: numbers,
abbreviations, spelling, names. No label and no network is needed. The model is learned once per project, kept as a
table and used for every record, so that vectors made in different rounds can be compared.
docs/decisions/0016-lexical-student.md says what they add.
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from labeling.multinomial import one_thread

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

# scikit-learn is imported where it is used: that takes a second, which whoever asks for a project's status would wait.

BUCKETS = 1 << 15
WIDTH = 32  # more directions do not help a student that has a few hundred labels: decision 0016
LEARN_FROM = 100
LEARN_ON_AT_MOST = 5_000
CHARACTERS = 4_000  # of a text: with more, learning would take a gigabyte of counts
MODEL_NAME = "lexical"


class LexicalModel:
    """Turns texts into lexical vectors; an `Embedder`.

    Attributes:
        model_id: tells one learned model from another.
        width: of a vector.
        buckets: (b,) hash buckets of n-grams that more than one text had.
        weights: (b,) inverse document frequencies.
        directions: (b, width) float32.
    """

    def __init__(
        self,
        buckets: npt.NDArray[np.int32],
        weights: npt.NDArray[np.float32],
        directions: npt.NDArray[np.float32],
    ) -> None:
        self.buckets, self.weights, self.directions = buckets, weights, directions
        self.width = int(directions.shape[1])
        digest = hashlib.sha256()
        for part in (buckets, weights, directions):
            digest.update(np.ascontiguousarray(part).tobytes())
        self.model_id = f"{MODEL_NAME}-{digest.hexdigest()[:12]}"

    @classmethod
    def learn(cls, texts: Sequence[str], *, seed: int) -> Self:
        """Learns from texts alone.

        Args:
            texts: at least 100; a random sample of the records is enough.
            seed: of the randomised decomposition.

        Raises:
            ValueError: for fewer texts, or texts that have fewer n-grams in common than a vector is wide.
        """
        if len(texts) < LEARN_FROM:
            raise ValueError(f"expected at least {LEARN_FROM} texts, found {len(texts)}")
        from sklearn.decomposition import TruncatedSVD

        counts = _counts(texts)
        documents = np.bincount(counts.indices, minlength=BUCKETS)
        buckets = np.flatnonzero(documents > 1).astype(np.int32)
        if buckets.size <= WIDTH:
            raise ValueError(f"expected more than {WIDTH} shared n-grams, found {buckets.size}")
        weights = np.log((1 + len(texts)) / (1 + documents[buckets])).astype(np.float32) + np.float32(1)
        with one_thread():
            decomposed = TruncatedSVD(WIDTH, n_iter=2, random_state=seed).fit(
                _weighted(counts, buckets, weights)
            )
        return cls(buckets, weights, np.ascontiguousarray(decomposed.components_.T, dtype=np.float32))

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(n, width) unit rows; a row of 0 for a text without a known n-gram."""
        from sklearn.preprocessing import normalize

        with one_thread():
            rows = _weighted(_counts(texts), self.buckets, self.weights) @ self.directions
        return np.asarray(normalize(rows), dtype=np.float32)

    def close(self) -> None:
        """Nothing to free."""

    def to_frame(self) -> pl.DataFrame:
        """The model as a table, a row a bucket."""
        return pl.DataFrame(
            {"bucket": self.buckets, "weight": self.weights, "directions": self.directions},
            schema={
                "bucket": pl.Int32,
                "weight": pl.Float32,
                "directions": pl.Array(pl.Float32, self.width),
            },
        )

    @classmethod
    def from_frame(cls, frame: pl.DataFrame) -> Self:
        """The model that `to_frame` told."""
        return cls(
            frame["bucket"].to_numpy().astype(np.int32),
            frame["weight"].to_numpy().astype(np.float32),
            frame["directions"].to_numpy().astype(np.float32).reshape(frame.height, -1),
        )


def _counts(texts: Sequence[str]) -> "csr_matrix":
    """(n, BUCKETS) counts of character n-grams."""
    from sklearn.feature_extraction.text import HashingVectorizer

    counted = HashingVectorizer(
        analyzer="char_wb",
        ngram_range=(2, 5),
        n_features=BUCKETS,
        alternate_sign=False,
        norm=None,
        dtype=np.float32,
    )
    return counted.transform([text[:CHARACTERS] for text in texts])


def _weighted(
    counts: "csr_matrix", buckets: npt.NDArray[np.int32], weights: npt.NDArray[np.float32]
) -> "csr_matrix":
    """(n, b) unit rows of damped counts times weights."""
    from scipy.sparse import diags_array
    from sklearn.preprocessing import normalize

    kept = counts[:, buckets]
    kept.data = 1 + np.log(kept.data)
    return normalize(kept @ diags_array(weights, format="csr"))
