"""Which of a few hundred short texts are alike: TF-IDF cosine, computed where it is asked for.

For what must be answered at once and has no vectors yet: retrieving exemplars for the co-pilot among the answers of the
last minutes, and laying alike records of a batch side by side. Settled records use the embedder's vectors instead.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def most_alike(text: str, others: Sequence[str], *, k: int) -> list[int]:
    """Positions of up to `k` texts most alike to `text`, the most alike first; those that share no word are left out.

    >>> most_alike("my pills ran out", ["a bill came", "no more pills", "pills ran out today"], k=2)
    [2, 1]
    """
    if not others or k < 1:
        return []
    similarity = _cosines([text, *others])[0, 1:]
    order = np.argsort(-similarity, kind="stable")[:k]
    return [int(index) for index in order if similarity[index] > 0]


def alike_together(texts: Sequence[str]) -> list[int]:
    """An order of all texts in which each follows the one most alike to it; the first stays first.

    >>> alike_together(["pills ran out", "a bill came", "my pills ran out", "the bill"])
    [0, 2, 1, 3]
    """
    if len(texts) < 2:
        return list(range(len(texts)))
    similarity = _cosines(texts)
    order, left = [0], list(range(1, len(texts)))
    while left:
        nearest = max(left, key=lambda index: (similarity[order[-1], index], -index))
        order.append(nearest)
        left.remove(nearest)
    return order


def _cosines(texts: Sequence[str]) -> npt.NDArray[np.float64]:
    from sklearn.feature_extraction.text import TfidfVectorizer  # a second to import, for what few pages need

    try:
        rows = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b").fit_transform(texts)
    except ValueError:  # not one word in any of them
        return np.zeros((len(texts), len(texts)))
    cosines: npt.NDArray[np.float64] = np.asarray((rows @ rows.T).todense())
    return cosines
