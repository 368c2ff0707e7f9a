import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labeling.neighbours import nearest, vote_shares


def test_neighbours_are_ordered_by_cosine_and_not_by_length() -> None:
    references = np.array([[10.0, 10.0], [0.1, 0.0], [0.0, 5.0], [-1.0, 0.0]])
    found = nearest([[2.0, 0.0]], references, k=4)
    assert found.indices.tolist() == [[1, 0, 2, 3]]
    assert found.similarities[0] == pytest.approx([1, np.sqrt(0.5), 0, -1], abs=1e-6)


def test_small_blocks_give_the_same_neighbours_as_one_large_block() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 16))
    whole = nearest(vectors, vectors, k=5, exclude_self=True)
    pieces = nearest(vectors, vectors, k=5, exclude_self=True, block_bytes=4 * 200 * 7)
    assert np.array_equal(whole.indices, pieces.indices)
    assert not (whole.indices == np.arange(200)[:, None]).any()


def test_neighbours_agree_with_a_full_sort() -> None:
    rng = np.random.default_rng(1)
    queries, references = rng.normal(size=(30, 8)), rng.normal(size=(50, 8))
    cosine = (
        queries @ references.T / np.linalg.norm(queries, axis=1)[:, None] / np.linalg.norm(references, axis=1)
    )
    assert np.array_equal(nearest(queries, references, k=50).indices, np.argsort(-cosine, axis=1))


def test_fewer_references_than_asked_for_are_all_returned() -> None:
    assert nearest(np.ones((2, 3)), np.ones((2, 3)), k=8, exclude_self=True).indices.tolist() == [[1], [0]]
    assert nearest(np.ones((2, 3)), np.zeros((0, 3)), k=8).indices.shape == (2, 0)
    assert nearest(np.zeros((0, 3)), np.ones((2, 3)), k=1).indices.shape == (0, 1)


def test_a_zero_vector_is_similar_to_nothing() -> None:
    found = nearest(np.zeros((1, 2)), [[1.0, 0.0], [0.0, 1.0]], k=2)
    assert found.similarities.tolist() == [[0, 0]] and found.indices.tolist() == [[0, 1]]


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="one width"):
        nearest(np.ones((1, 2)), np.ones((1, 3)), k=1)
    with pytest.raises(ValueError, match="queries to be the references"):
        nearest(np.ones((1, 2)), np.ones((2, 2)), k=1, exclude_self=True)
    with pytest.raises(ValueError, match="one vector a row"):
        nearest(np.ones(2), np.ones((2, 2)), k=1)


def test_vote_shares_of_a_case_worked_by_hand() -> None:
    # Similarities 1, 1, 0: votes a 1 + 1/2, b 1 + 1/2 of 3 in all; the third neighbour does not vote.
    found = nearest([[1.0, 0.0]], [[2.0, 0.0], [1.0, 0.0], [0.0, 1.0]], k=3)
    assert vote_shares(found, ["a", "b", "b"], labels=["a", "b"]) == pytest.approx(np.array([[0.5, 0.5]]))
    found = nearest([[1.0, 0.0]], [[2.0, 0.0]], k=3)
    assert vote_shares(found, ["a"], labels=["a", "b"]) == pytest.approx(np.array([[0.75, 0.25]]))


def test_without_references_the_vote_is_even() -> None:
    found = nearest(np.ones((1, 2)), np.zeros((0, 2)), k=8)
    assert vote_shares(found, [], labels=["a", "b", "c"]) == pytest.approx(np.full((1, 3), 1 / 3))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_similarities_fall_along_each_row_and_votes_sum_to_one(n: int, m: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = nearest(rng.normal(size=(n, 3)), rng.normal(size=(m, 3)), k=k)
    assert (np.diff(found.similarities, axis=1) <= 0).all()
    shares = vote_shares(found, [f"label{i % 2}" for i in range(m)], labels=["label0", "label1"])
    assert shares.sum(axis=1) == pytest.approx(1)
    assert (shares > 0).all()
