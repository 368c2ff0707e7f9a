"""Near-duplicate texts, and splits of a release that they cannot leak across.

The same sender writing again with a word changed is one record for the purpose of a test set. Groups are
found by MinHash with banding over character 5-shingles and verified by the exact Jaccard index of the
shingle sets, so a pair is never grouped on the word of a hash. Shingles are taken from a case-folded,
whitespace-collapsed copy; the text itself is never changed.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

Split = Literal["train", "validation", "test"]
Words = npt.NDArray[np.uint64]
HalfWords = npt.NDArray[np.uint32]

SPLITS: tuple[Split, Split, Split] = ("train", "validation", "test")
SHINGLE_LENGTH = 5
PERMUTATIONS = 128
ACCEPTED_MISS_SHARE = 1e-3

_RNG = np.random.default_rng(20240917)
_MULTIPLIERS: HalfWords = _RNG.integers(0, 2**31, PERMUTATIONS, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
_OFFSETS: HalfWords = _RNG.integers(0, 2**32, PERMUTATIONS, dtype=np.uint32)


def near_duplicate_groups(
    texts: Sequence[str], ids: Sequence[str], *, threshold: float = 0.8
) -> dict[str, str]:
    """Group of every record; two records whose Jaccard index reaches the threshold are in one group.

    Groups are closed under chaining: if a resembles b and b resembles c, all three are together.

    Args:
        texts: n texts.
        ids: their n record ids, unique.
        threshold: Jaccard index of the shingle sets from which two texts count as near-duplicates, in (0,
            1]. A pair exactly at the threshold is missed with probability of at most 0.001.

    Returns:
        Record id to group id, which is the smallest record id of the group; a record on its own is its own
        group.

    Raises:
        ValueError: if lengths differ, ids repeat, or the threshold is out of range.

    Source: A. Z. Broder (1997), On the resemblance and containment of documents.
    """
    if len(texts) != len(ids) or len(set(ids)) != len(ids):
        counts = f"{len(texts)} texts, {len(ids)} ids, {len(set(ids))} of them distinct"
        raise ValueError(f"expected one distinct id a text, found {counts}")
    if not 0 < threshold <= 1:
        raise ValueError(f"expected a threshold in (0, 1], found {threshold}")
    ids_of: dict[str, list[str]] = defaultdict(list)
    for text, record_id in zip(texts, ids, strict=True):
        ids_of[_normalised(text)].append(record_id)
    distinct = list(ids_of)
    groups = _Groups(len(distinct))
    if distinct:
        signatures = np.stack([_signature(text) for text in distinct])
        _join_similar(groups, distinct, signatures, threshold=threshold)
    members: dict[int, list[str]] = defaultdict(list)
    for index, text in enumerate(distinct):
        members[groups.find(index)].extend(ids_of[text])
    return {record_id: min(group) for group in members.values() for record_id in group}


def jaccard(first: str, second: str) -> float:
    """Jaccard index of the shingle sets of two texts, in [0, 1]; 1 for two empty texts."""
    left, right = _shingles(_normalised(first)), _shingles(_normalised(second))
    return len(left & right) / len(left | right)


def leakage_safe_split(
    ids: Sequence[str],
    groups: Mapping[str, str],
    labels: Sequence[str],
    *,
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int,
    prefer_test: Collection[str] = frozenset(),
    earlier: Mapping[str, Split] | None = None,
) -> dict[str, Split]:
    """Split of every record such that no group is divided and labels keep their shares approximately.

    Groups are sorted by label and dealt like cards: each goes to the split that is furthest behind its share
    so far. Dealing along the sorted list stratifies frequent labels to within a record and shares rare ones
    out fairly, where rounding each label on its own would put all of them into training.

    Args:
        ids: n record ids.
        groups: record id to group id, from `near_duplicate_groups`.
        labels: n labels to stratify by; a group counts as its most frequent one.
        shares: of train, validation and test; they sum to 1.
        seed: decides the order within a label.
        prefer_test: ids for the test split (labelled blind), as far as it has room for their label.
        earlier: split of records in the release before. They stay there, so that no model is ever tested on what an
            earlier one learned from; a group that has come together from several goes where most of it was.

    Returns:
        Record id to "train", "validation" or "test".

    Raises:
        ValueError: if lengths differ, shares do not sum to 1 or are negative.
        KeyError: if a record has no group.
    """
    if len(ids) != len(labels):
        raise ValueError(f"expected one label a record, found {len(labels)} for {len(ids)}")
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
        raise ValueError(f"expected shares of 0 or more that sum to 1, found {shares}")
    members: dict[str, list[str]] = defaultdict(list)
    labels_of: dict[str, Counter[str]] = defaultdict(Counter)
    for record_id, label in zip(ids, labels, strict=True):
        members[groups[record_id]].append(record_id)
        labels_of[groups[record_id]][label] += 1
    preferred = {groups[record_id] for record_id in prefer_test if record_id in groups}
    by_label: dict[str, list[str]] = defaultdict(list)
    for group in sorted(members, key=lambda group: _shuffle_key(group, seed)):
        counts = labels_of[group]
        by_label[min(counts, key=lambda label: (-counts[label], label))].append(group)
    kept = _kept(members, earlier or {}, shares)
    result: dict[str, Split] = {
        record_id: split for group, split in kept.items() for record_id in members[group]
    }
    sizes = dict.fromkeys(SPLITS, 0) | Counter(result.values())
    for label in sorted(by_label):
        fresh = [group for group in by_label[label] if group not in kept]
        waiting = {
            "test": [group for group in fresh if group in preferred],
            "anywhere": [group for group in fresh if group not in preferred],
        }
        while waiting["test"] or waiting["anywhere"]:
            split = _furthest_behind(sizes, shares)
            first, second = ("test", "anywhere") if split == "test" else ("anywhere", "test")
            group = (waiting[first] or waiting[second]).pop(0)
            sizes[split] += len(members[group])
            result.update(dict.fromkeys(members[group], split))
    return result


def _kept(
    members: Mapping[str, Sequence[str]], earlier: Mapping[str, Split], shares: tuple[float, float, float]
) -> dict[str, Split]:
    """Split of the groups that were dealt before, but for splits that the project no longer has."""
    open_splits = [split for split, share in zip(SPLITS, shares, strict=True) if share > 0]
    kept: dict[str, Split] = {}
    for group, ids in members.items():
        were = Counter(earlier[record_id] for record_id in ids if earlier.get(record_id) in open_splits)
        if were:
            kept[group] = max(open_splits, key=lambda split: were[split])
    return kept


def _furthest_behind(sizes: Mapping[Split, int], shares: tuple[float, float, float]) -> Split:
    total = sum(sizes.values()) + 1
    lag = {
        split: share * total - sizes[split] for split, share in zip(SPLITS, shares, strict=True) if share > 0
    }
    return max(lag, key=lambda split: lag[split])


def _shuffle_key(group: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}|{group}".encode()).hexdigest()


def _normalised(text: str) -> str:
    return " ".join(text.casefold().split())


def _shingles(text: str) -> set[str]:
    """Character 5-grams of a normalised text; a text shorter than that is its own only shingle."""
    return {text[start : start + SHINGLE_LENGTH] for start in range(max(1, len(text) - SHINGLE_LENGTH + 1))}


def _signature(text: str) -> HalfWords:
    """MinHash signature, (PERMUTATIONS,), of a normalised text."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    padded = np.pad(points, (0, max(0, SHINGLE_LENGTH - points.size)))
    # Collisions cost nothing but a candidate pair more: every pair is verified on the shingles themselves.
    windows = np.lib.stride_tricks.sliding_window_view(padded, SHINGLE_LENGTH)
    powers = np.uint64(0x9E3779B97F4A7C15) ** np.arange(SHINGLE_LENGTH, dtype=np.uint64)
    hashes = (_mixed((windows * powers).sum(axis=1, dtype=np.uint64)) >> np.uint64(32)).astype(np.uint32)
    result: HalfWords = (_MULTIPLIERS[:, None] * hashes + _OFFSETS[:, None]).min(axis=1)
    return result


def _mixed(words: Words) -> Words:
    """The finaliser of splitmix64: every input bit changes every output bit."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _rows_per_band(threshold: float) -> int:
    """Most rows a band (fewest false candidates) that still miss a pair at the threshold with p <= 0.001."""
    for rows in range(16, 1, -1):
        if (1 - threshold**rows) ** (PERMUTATIONS // rows) <= ACCEPTED_MISS_SHARE:
            return rows
    return 1


def _join_similar(
    groups: "_Groups", texts: Sequence[str], signatures: HalfWords, *, threshold: float
) -> None:
    rows = _rows_per_band(threshold)
    shingles: dict[int, set[str]] = {}

    def shingles_of(index: int) -> set[str]:
        if index not in shingles:
            shingles[index] = _shingles(texts[index])
        return shingles[index]

    refuted: set[tuple[int, int]] = set()
    for start in range(0, PERMUTATIONS - rows + 1, rows):
        for bucket in _buckets(signatures[:, start : start + rows]):
            for position, index in enumerate(bucket):
                for other in bucket[:position]:
                    pair = (other, index)
                    if pair in refuted or groups.find(index) == groups.find(other):
                        continue
                    left, right = shingles_of(index), shingles_of(other)
                    if len(left & right) >= threshold * len(left | right):
                        groups.join(index, other)
                    else:
                        refuted.add(pair)


def _buckets(band: HalfWords) -> Iterable[list[int]]:
    """Positions of texts that agree in a whole band, where there are at least two."""
    rows = np.ascontiguousarray(band).view(np.dtype((np.void, band.shape[1] * band.itemsize))).ravel()
    order = np.argsort(rows, kind="stable")
    same = rows[order][1:] == rows[order][:-1]
    for run in np.split(order, np.flatnonzero(~same) + 1):
        if run.size > 1:
            yield sorted(run.tolist())


class _Groups:
    """Disjoint sets with path halving."""

    def __init__(self, n: int) -> None:
        self._parent = list(range(n))

    def find(self, index: int) -> int:
        while self._parent[index] != index:
            self._parent[index] = self._parent[self._parent[index]]
            index = self._parent[index]
        return index

    def join(self, first: int, second: int) -> None:
        self._parent[self.find(first)] = self.find(second)
