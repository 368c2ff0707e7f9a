"""Which records people should look at next.

Three ways that must not be confused: a cold start shows the range of the material, active picks go where the
model is likely wrong, and the simple random sample is the only one whose accuracy says something about the
whole batch.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from labeling.multinomial import checked_matrix
from labeling.neighbours import nearest

Floats = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]

CLUSTER_ON_AT_MOST = 10_000
DENSITY_NEIGHBOURS = 10
DENSITY_REFERENCES = 2_000
LEAST_SURE_POOL = 600
SELF_TEST_RECORDS = 20


def cold_start(
    embeddings: npt.ArrayLike, confidence: npt.ArrayLike | None = None, *, k: int, seed: int
) -> Positions:
    """First records to review: typical ones of every region, confident and uncertain mixed.

    The records are clustered into k / 2 groups. Going round the clusters from the largest to the smallest,
    each gives its most typical record (nearest to the centre), then the least confident of its nearer half,
    and so on in turn. The nearer half keeps out the odd texts at the rim, which look uncertain but teach
    little.

    Args:
        embeddings: (n, d).
        confidence: (n,) probability of the suggestion, NaN where there is none (taken as least confident);
            None when nothing has been suggested yet, then only typicality counts.
        k: records wanted.
        seed: seed of the clustering.

    Returns:
        min(k, n) distinct positions, in the order in which they should be shown.

    Raises:
        ValueError: if lengths differ or k is negative.
    """
    vectors = _unit_rows(embeddings)
    n = vectors.shape[0]
    wanted = _wanted(k, n)
    if wanted == 0:
        return np.zeros(0, dtype=np.int64)
    sureness = None if confidence is None else _column(confidence, n)
    cluster_of, distance = _clusters(vectors, min(max(1, (wanted + 1) // 2), n), seed=seed)
    queues = []
    for cluster in np.unique(cluster_of):
        members = np.flatnonzero(cluster_of == cluster)
        typical = members[np.argsort(distance[members], kind="stable")]
        queues.append(typical if sureness is None else _alternating(typical, sureness))
    queues.sort(key=lambda queue: (-queue.size, int(queue[0])))
    return _round_robin(queues, wanted)


def uncertain_and_diverse(
    embeddings: npt.ArrayLike, p_error: npt.ArrayLike, *, k: int, seed: int
) -> Positions:
    """Records where a review teaches most: likely wrong, in a populated region, unlike each other.

    The score is P(error) x density, density being the mean cosine similarity to the nearest 10 records. The
    600 records with the highest scores (a quarter of the batch if that is fewer, 3 k at least) are clustered
    into k groups and the best of each is taken.

    Args:
        embeddings: (n, d) of the records that may be picked.
        p_error: (n,) probability that the suggestion is wrong, in [0, 1].
        k: records wanted.
        seed: seed of the clustering and of the reference sample for the density.

    Returns:
        min(k, n) distinct positions, highest score first.

    Raises:
        ValueError: if lengths differ, k is negative, or a probability is missing or out of range.
    """
    vectors = _unit_rows(embeddings)
    n = vectors.shape[0]
    chance = _column(p_error, n)
    if not ((chance >= 0) & (chance <= 1)).all():
        raise ValueError("expected error probabilities in [0, 1], found others or NaN")
    wanted = _wanted(k, n)
    if wanted == 0:
        return np.zeros(0, dtype=np.int64)
    score = chance * _density(vectors, seed=seed)
    ranked: Positions = np.argsort(-score, kind="stable")
    # A quarter at most: in a small batch a fixed pool would hold every record, the hopeless outliers too.
    pool = ranked[: max(3 * wanted, min(LEAST_SURE_POOL, n // 4))]
    cluster_of, _ = _clusters(vectors[pool], wanted, seed=seed)
    # The pool is sorted by score, so the first of each cluster is its best; k-means may return fewer
    # clusters than asked for (identical vectors), and then the next best records fill up.
    _, best = np.unique(cluster_of, return_index=True)
    chosen = np.sort(best)[:wanted]
    others = np.setdiff1d(np.arange(pool.size), chosen)[: wanted - chosen.size]
    picked: Positions = pool[np.sort(np.concatenate([chosen, others]))]
    return picked


def simple_random_sample(ids: Sequence[str], k: int, seed: int) -> list[str]:
    """Reproducible simple random sample without replacement.

    Records are ordered by sha256(f"{seed}|{id}") in hexadecimal and the first k are taken. Every subset of k
    records is as likely as any other over the choice of seed, the result depends on nothing but the ids and
    the seed (not on their order, the library or the machine), and anybody can recompute it. A sample of k +
    1 contains the sample of k.

    Args:
        ids: distinct record ids of the population.
        k: size of the sample; the whole population if that is smaller.
        seed: written into the audit trail with the sample.

    Returns:
        The sampled ids in the order of their hashes.

    Raises:
        ValueError: if ids repeat or k is negative.
    """
    if len(set(ids)) != len(ids):
        raise ValueError(f"expected distinct ids, found {len(ids) - len(set(ids))} repeated")
    wanted = _wanted(k, len(ids))
    ordered = sorted(ids, key=lambda record_id: hashlib.sha256(f"{seed}|{record_id}".encode()).hexdigest())
    return ordered[:wanted]


def self_test_sample(record_ids: Sequence[str], seed: int) -> list[str]:
    """The records that the engine's self-test asks at the start of each round, whatever the round's plan says."""
    return simple_random_sample(record_ids, SELF_TEST_RECORDS, seed)


def _wanted(k: int, n: int) -> int:
    if k < 0:
        raise ValueError(f"expected k of 0 or more, found {k}")
    return min(k, n)


def _column(values: npt.ArrayLike, n: int) -> Floats:
    column = np.asarray(values, dtype=np.float64)
    if column.shape != (n,):
        raise ValueError(f"expected one number a record ({n}), found shape {column.shape}")
    return column


def _unit_rows(embeddings: npt.ArrayLike) -> Floats:
    matrix = checked_matrix(embeddings)
    length = np.linalg.norm(matrix, axis=1, keepdims=True)
    result: Floats = matrix / np.where(length > 0, length, 1.0)
    return result


def _clusters(vectors: Floats, count: int, *, seed: int) -> tuple[Positions, Floats]:
    """Cluster of each record and its distance to the centre; fitted on a sample where there are very many."""
    from sklearn.cluster import KMeans  # before the limits, which hold what is loaded

    rng = np.random.default_rng(seed)
    n = vectors.shape[0]
    sample = vectors
    if n > CLUSTER_ON_AT_MOST:
        sample = vectors[np.sort(rng.choice(n, CLUSTER_ON_AT_MOST, replace=False))]
    # More clusters than distinct points is a warning in scikit-learn and an empty cluster here.
    distinct = np.unique(sample, axis=0).shape[0]
    with threadpool_limits(limits=1):
        model = KMeans(n_clusters=min(count, distinct), n_init=1, random_state=seed).fit(sample)
        cluster_of = model.predict(vectors).astype(np.int64)
    distance: Floats = np.linalg.norm(vectors - model.cluster_centers_[cluster_of], axis=1)
    return cluster_of, distance


def _density(vectors: Floats, *, seed: int) -> Floats:
    """Mean cosine similarity to the nearest references, floored at 0; references are a sample where there
    are many.
    """
    n = vectors.shape[0]
    rng = np.random.default_rng(seed)
    count = min(n, DENSITY_REFERENCES)
    references = np.sort(rng.choice(n, count, replace=False))
    # One neighbour more, because a record may be its own reference; it is left out of the mean.
    found = nearest(vectors, vectors[references], k=min(DENSITY_NEIGHBOURS + 1, count))
    itself = references[found.indices] == np.arange(n)[:, None]
    similarities = np.where(itself, 0.0, np.maximum(found.similarities, 0.0))
    counted = np.maximum((~itself).sum(axis=1), 1)
    result: Floats = similarities.sum(axis=1) / counted
    # A lone record has no density; without this nothing would rank it at all.
    return np.ones(n) if n == 1 else result


def _alternating(typical: Positions, sureness: Floats) -> Positions:
    """Typical record, least confident of the nearer half, next typical, next least confident, ..."""
    near = typical[: (typical.size + 1) // 2]
    doubtful = near[np.argsort(np.nan_to_num(sureness[near], nan=-1.0), kind="stable")]
    mixed = [position for pair in zip(near, doubtful, strict=True) for position in pair]
    ordered = [*dict.fromkeys(int(position) for position in mixed), *typical[near.size :].tolist()]
    return np.asarray(ordered, dtype=np.int64)


def _round_robin(queues: Sequence[Positions], wanted: int) -> Positions:
    longest = max(queue.size for queue in queues)
    picked = [int(queue[turn]) for turn in range(longest) for queue in queues if turn < queue.size]
    return np.asarray(picked[:wanted], dtype=np.int64)
