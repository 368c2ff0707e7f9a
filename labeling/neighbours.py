"""Exact nearest neighbours by cosine, in blocks of bounded memory.

Exact search over the reviewed records (up to about 10,000) is a matrix product; an index would add a
dependency and an approximation to save seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from labeling.multinomial import label_codes

Floats = npt.NDArray[np.float64]

BLOCK_BYTES = 64_000_000


@dataclass(frozen=True)
class Neighbours:
    """The k most similar references of each query, most similar first.

    Attributes:
        indices: (n, k) positions in the references.
        similarities: (n, k) cosine in [-1, 1]; 0 where a vector is all zeros.
    """

    indices: npt.NDArray[np.int64]
    similarities: Floats


def nearest(
    queries: npt.ArrayLike,
    references: npt.ArrayLike,
    *,
    k: int,
    exclude_self: bool = False,
    block_bytes: int = BLOCK_BYTES,
) -> Neighbours:
    """Most similar references of each query.

    Args:
        queries: (n, d); rows need not be normalised.
        references: (m, d).
        k: neighbours wanted; with fewer references, all of them.
        exclude_self: query i is reference i and must not be its own neighbour.
        block_bytes: size of the similarity block held at one time.

    Returns:
        k columns, or m (m - 1 with `exclude_self`) if that is fewer. Equal similarities are ordered by
        position.

    Raises:
        ValueError: if the widths differ, k is below 1, or `exclude_self` is used with unequal numbers of
        rows.
    """
    query_rows, reference_rows = _unit_rows(queries), _unit_rows(references)
    n, m = query_rows.shape[0], reference_rows.shape[0]
    if query_rows.shape[1] != reference_rows.shape[1] or k < 1:
        widths = f"{query_rows.shape[1]} and {reference_rows.shape[1]}"
        raise ValueError(f"expected vectors of one width and k >= 1, found widths {widths}, k = {k}")
    if exclude_self and n != m:
        raise ValueError(f"expected the queries to be the references, found {n} and {m} rows")
    width = max(0, min(k, m - 1 if exclude_self else m))
    indices = np.empty((n, width), dtype=np.int64)
    similarities = np.empty((n, width), dtype=np.float64)
    block = max(1, block_bytes // (4 * max(m, 1)))
    for start in range(0, n if width else 0, block):
        rows = slice(start, min(start + block, n))
        similarity = query_rows[rows] @ reference_rows.T
        if exclude_self:
            similarity[np.arange(rows.stop - start), np.arange(start, rows.stop)] = -np.inf
        found = np.argpartition(-similarity, width - 1, axis=1)[:, :width]
        scores = np.take_along_axis(similarity, found, axis=1)
        order = np.lexsort((found, -scores), axis=1)
        indices[rows] = np.take_along_axis(found, order, axis=1)
        similarities[rows] = np.take_along_axis(scores, order, axis=1)
    return Neighbours(indices=indices, similarities=np.clip(similarities, -1.0, 1.0))


def vote_shares(neighbours: Neighbours, reference_labels: Sequence[str], *, labels: Sequence[str]) -> Floats:
    """Share of each label among the neighbours, weighted by similarity.

    One pseudo-vote is spread evenly over the labels, so no label has probability 0 and a query without a
    similar reference gets even shares. Neighbours with a similarity of 0 or less do not vote.

    Args:
        neighbours: of n queries.
        reference_labels: label of each reference.
        labels: K labels of the project.

    Returns:
        (n, K), rows sum to 1.

    Raises:
        ValueError: if a reference label is not a label of the project.
    """
    codes = label_codes(reference_labels, labels)
    n = neighbours.indices.shape[0]
    votes = np.full((n, len(labels)), 1 / len(labels))
    rows = np.broadcast_to(np.arange(n)[:, None], neighbours.indices.shape)
    np.add.at(votes, (rows, codes[neighbours.indices]), np.maximum(neighbours.similarities, 0.0))
    result: Floats = votes / votes.sum(axis=1, keepdims=True)
    return result


def _unit_rows(vectors: npt.ArrayLike) -> npt.NDArray[np.float32]:
    matrix = np.asarray(vectors, dtype=np.float32)
    if matrix.ndim != 2:
        raise ValueError(f"expected a matrix of one vector a row, found shape {matrix.shape}")
    length = np.linalg.norm(matrix, axis=1, keepdims=True)
    return np.divide(matrix, np.where(length > 0, length, 1), dtype=np.float32)
