import csv
import random
import string
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labeling.near_duplicates import Split, jaccard, leakage_safe_split, near_duplicate_groups

DEMO = Path(__file__).parents[2] / "configs" / "demo" / "clinic_messages.csv"


def test_jaccard_of_shingles_worked_by_hand() -> None:
    # abcde bcdef against abcde bcdeg: one of three.
    assert jaccard("abcdef", "abcdeg") == pytest.approx(1 / 3)
    assert jaccard("", "") == 1
    assert jaccard("abc", "abd") == 0


def test_case_and_whitespace_do_not_tell_texts_apart_but_letters_do() -> None:
    groups = near_duplicate_groups(
        ["Please  call ME\nback", "please call me back", "straße", "STRASSE", "no"], ["d", "b", "c", "a", "e"]
    )
    assert groups == {"d": "b", "b": "b", "c": "a", "a": "a", "e": "e"}


def test_a_chain_of_resemblance_is_one_group_named_after_its_smallest_id() -> None:
    base = (
        "I would like to ask for a refill of the blood pressure tablets, the small white ones, thank you much"
    )
    first, second, third = base, base[8:], base[16:]
    assert jaccard(first, third) < 0.88 <= jaccard(first, second)
    groups = near_duplicate_groups([third, first, second], ["m3", "m1", "m2"], threshold=0.88)
    assert set(groups.values()) == {"m1"}


def test_texts_below_the_threshold_stay_apart() -> None:
    texts = ["please refill my metformin today", "please refill my sertraline today"]
    assert jaccard(*texts) < 0.8
    assert near_duplicate_groups(texts, ["a", "b"]) == {"a": "a", "b": "b"}
    assert near_duplicate_groups(texts, ["a", "b"], threshold=0.3) == {"a": "a", "b": "a"}


def test_nothing_gives_nothing_and_bad_input_is_refused() -> None:
    assert near_duplicate_groups([], []) == {}
    assert near_duplicate_groups(["", " "], ["a", "b"]) == {"a": "a", "b": "a"}
    with pytest.raises(ValueError, match="one distinct id"):
        near_duplicate_groups(["x", "y"], ["a", "a"])
    with pytest.raises(ValueError, match="threshold"):
        near_duplicate_groups(["x"], ["a"], threshold=0)


def test_the_resent_messages_of_the_demo_are_found_and_nothing_else() -> None:
    with DEMO.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    label_of = {row["message_id"]: row["label"] for row in rows}
    texts = [row["text"] for row in rows]
    for threshold, expected in ((0.8, 5), (0.25, 8)):
        groups = near_duplicate_groups(texts, list(label_of), threshold=threshold)
        repeated = [group for group, count in Counter(groups.values()).items() if count == 2]
        assert len(repeated) == expected == 340 - len(set(groups.values()))
        for group in repeated:
            assert len({label_of[record] for record, found in groups.items() if found == group}) == 1


words = st.text(alphabet="abc ", min_size=0, max_size=40)


@settings(deadline=None, max_examples=60)
@given(st.lists(words, min_size=2, max_size=8))
def test_every_pair_well_above_the_threshold_is_grouped(texts: list[str]) -> None:
    ids = [f"r{index}" for index in range(len(texts))]
    groups = near_duplicate_groups(texts, ids, threshold=0.6)
    for i, first in enumerate(texts):
        for j, second in enumerate(texts[:i]):
            if jaccard(first, second) >= 0.75:
                assert groups[ids[i]] == groups[ids[j]]
    for group, count in Counter(groups.values()).items():
        inside = [i for i, record in enumerate(ids) if groups[record] == group]
        assert count == 1 or all(
            any(i != j and jaccard(texts[i], texts[j]) >= 0.6 for j in inside) for i in inside
        )


def test_twenty_thousand_texts_take_seconds_and_little_memory() -> None:
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))) for _ in range(3000)]
    texts = [" ".join(rng.choices(vocabulary, k=25)) for _ in range(18_000)]
    texts += [text + " again" for text in texts[:2_000]]
    ids = [f"r{index:05d}" for index in range(len(texts))]
    started = time.perf_counter()
    groups = near_duplicate_groups(texts, ids)
    assert time.perf_counter() - started < 40
    assert Counter(Counter(groups.values()).values()) == {1: 16_000, 2: 2_000}
    tracemalloc.start()
    near_duplicate_groups(texts[:2_000], ids[:2_000])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30_000_000


def _case(n: int, seed: int) -> tuple[list[str], dict[str, str], list[str]]:
    rng = random.Random(seed)
    ids = [f"r{index:04d}" for index in range(n)]
    groups = {record: ids[rng.randrange(n)] if rng.random() < 0.2 else record for record in ids}
    return ids, groups, rng.choices(["a", "b", "rare"], weights=[60, 35, 5], k=n)


def test_groups_never_cross_splits_and_shares_hold_for_every_label() -> None:
    ids, groups, labels = _case(2000, seed=1)
    split_of = leakage_safe_split(ids, groups, labels, seed=3)
    assert set(split_of) == set(ids)
    for group in set(groups.values()):
        assert len({split_of[record] for record in ids if groups[record] == group}) == 1
    for label in ("a", "b"):
        mine = Counter(split_of[record] for record, found in zip(ids, labels, strict=True) if found == label)
        assert mine["train"] / mine.total() == pytest.approx(0.8, abs=0.04)
        assert mine["test"] / mine.total() == pytest.approx(0.1, abs=0.03)


def test_the_split_depends_on_the_seed_and_on_nothing_else() -> None:
    ids, groups, labels = _case(300, seed=2)
    split_of = leakage_safe_split(ids, groups, labels, seed=3)
    backwards = leakage_safe_split(ids[::-1], groups, labels[::-1], seed=3)
    assert split_of == backwards
    assert split_of != leakage_safe_split(ids, groups, labels, seed=4)


def test_test_takes_the_preferred_records_first_and_no_more_than_its_share() -> None:
    ids = [f"r{index:03d}" for index in range(200)]
    groups, labels = {record: record for record in ids}, ["a", "b"] * 100
    few = set(ids[:10])
    split_of = leakage_safe_split(ids, groups, labels, seed=0, prefer_test=few)
    assert all(split_of[record] == "test" for record in few)
    many = set(ids[:100])
    split_of = leakage_safe_split(ids, groups, labels, seed=0, prefer_test=many)
    in_test = [record for record in ids if split_of[record] == "test"]
    assert len(in_test) == pytest.approx(20, abs=1) and set(in_test) <= many


def test_many_tiny_labels_still_fill_the_test_split() -> None:
    ids = [f"r{index:03d}" for index in range(231)]
    split_of = leakage_safe_split(ids, {r: r for r in ids}, [f"l{i % 77}" for i in range(231)], seed=0)
    assert Counter(split_of.values())["test"] == pytest.approx(23, abs=1)


def test_an_empty_share_stays_empty_and_wrong_shares_are_refused() -> None:
    ids, groups, labels = _case(50, seed=5)
    split_of = leakage_safe_split(ids, groups, labels, shares=(0.5, 0.0, 0.5), seed=0)
    assert set(split_of.values()) == {"train", "test"}
    with pytest.raises(ValueError, match="sum to 1"):
        leakage_safe_split(ids, groups, labels, shares=(0.5, 0.5, 0.5), seed=0)
    with pytest.raises(ValueError, match="one label a record"):
        leakage_safe_split(ids, groups, labels[:-1], seed=0)
    assert leakage_safe_split([], {}, [], seed=0) == {}


def test_records_of_an_earlier_release_stay_in_their_split() -> None:
    ids = [f"r{number}" for number in range(300)]
    labels = [f"l{number % 3}" for number in range(300)]
    groups = {record_id: record_id for record_id in ids}
    first = leakage_safe_split(ids[:150], groups, labels[:150], seed=1)

    grown = leakage_safe_split(ids, groups, labels, seed=1, earlier=first)

    assert {record_id: grown[record_id] for record_id in first} == first
    assert Counter(grown.values()) == {"train": 240, "validation": 30, "test": 30}


def test_a_group_that_came_together_from_two_splits_is_not_divided() -> None:
    ids = ["a", "b", "c", "d"]
    earlier: dict[str, Split] = {"a": "test", "b": "train", "c": "train"}

    split_of = leakage_safe_split(ids, dict.fromkeys(ids, "g"), ["x"] * 4, seed=1, earlier=earlier)

    assert set(split_of.values()) == {"train"}


def test_records_of_a_split_that_is_no_longer_wanted_are_dealt_anew() -> None:
    ids = ["a", "b"]
    earlier: dict[str, Split] = {"a": "validation", "b": "test"}

    split_of = leakage_safe_split(
        ids, {"a": "a", "b": "b"}, ["x", "x"], shares=(0.5, 0.0, 0.5), seed=1, earlier=earlier
    )

    assert split_of == {"a": "train", "b": "test"}
