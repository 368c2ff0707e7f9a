"""The cascade: a changed prompt costs only where the student is not sure, and the batch's mean stays the data's."""

import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rounds_of_work import Loop, reopened
from scripted_engine import ScriptedEngine

from labeling import cascade
from labeling.calibration import CorrectnessModel, log_softmax
from labeling.cascade import batch_of, left_to_student, random_share, student_confidence
from labeling.project_file import parse_project
from labeling.prompts import prompt_of
from labeling.record_store import record_ids, texts_of
from labeling.reviewing import settled_values
from labeling.score_store import ScoreStore, calls_so_far, score_missing
from labeling.setup import load_plan
from labeling.storage import read_json
from labeling.students import Stack
from labeling.suggesting import Suggester, load_suggestions, write_suggestions
from schemas.errors import ManyProblems
from schemas.plan import Plan

THRESHOLD = 0.8
RECORDS = 400
LEAST = 60  # random records here: with 200 of 400 there would be little left to see


@pytest.fixture(autouse=True)
def _small_random_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cascade, "RANDOM_LEAST", LEAST)


def with_a_better_prompt(root: Path, url: str, threshold: float | None, *, changed: bool = True) -> Loop:
    """A project after round 1, whose prompt was then replaced by one that proved better (or stayed)."""
    loop = Loop(
        root,
        url,
        records=RECORDS,
        prompts={"files": ["mine.jinja"], "exemplars": 0},
        review={"round_records": 60, "blind_slice": 40, "overlap_share": 0.1},
        iteration={"cascade": threshold},
    )
    # The engine looks for the record after "Text: "; the first prompt hides it, the second shows it.
    good, poor = "Labels: alpha, beta.\nText: {{ text }}\nLabel:", "{{ text }}\nText: nothing\nLabel:"
    (root / "mine.jinja").write_text(poor if changed else good)
    loop.setup()
    loop.whole_round(1)
    (root / "mine.jinja").write_text(good)
    loop.iterate(1)
    return loop


@pytest.fixture(scope="module")
def _planned(
    tmp_path_factory: pytest.TempPathFactory, session_engine: ScriptedEngine, _quick_passwords: None
) -> Iterator[Loop]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cascade, "RANDOM_LEAST", LEAST)
        loop = with_a_better_prompt(
            tmp_path_factory.mktemp("cascade") / "project", session_engine.url, THRESHOLD
        )
    yield loop
    loop.close()


@pytest.fixture
def planned(_planned: Loop, tmp_path: Path) -> Iterator[Loop]:
    """A project with the plan of round 2 and a cascade, in a folder of the test's own."""
    shutil.copytree(_planned.folder.root, tmp_path / "copy")
    loop = reopened(tmp_path / "copy", _planned)
    yield loop
    loop.close()


def store_of(loop: Loop, plan: Plan) -> ScoreStore:
    return ScoreStore(loop.project, loop.folder, identity_id=plan.identity_id, prompt_id=plan.prompt_id)


def left_in(loop: Loop) -> set[str]:
    return left_to_student(loop.project, loop.folder, load_plan(loop.folder, 2), loop.vectors)


def test_the_student_answers_what_it_is_sure_of_and_every_record_has_a_suggestion(planned: Loop) -> None:
    loop, plan = planned, load_plan(planned.folder, 2)
    left, everyone = left_in(loop), set(record_ids(loop.project, loop.folder))
    known_before = store_of(loop, plan).known()

    counts = loop.suggest(2)

    assert plan.prompt_id != load_plan(loop.folder, 1).prompt_id
    assert left and left - known_before and everyone - left
    assert store_of(loop, plan).known() == (everyone - left) | known_before
    rows = load_suggestions(loop.project, loop.folder, 2, ["record_id", "by", "confidence", "label_mass"])
    by_student = rows.filter(pl.col("by") == "student")
    assert set(by_student["record_id"]) == left - known_before
    assert by_student["confidence"].min() >= THRESHOLD  # type: ignore[operator]
    assert by_student["label_mass"].null_count() == by_student.height
    assert set(rows["record_id"]) == everyone - set((plan.stack or {})["reference_ids"])
    assert counts["student_alone"] == by_student.height
    assert counts["rejected"] == 0


def test_who_is_asked_is_decided_by_one_rule_for_all_records(planned: Loop) -> None:
    loop, plan = planned, load_plan(planned.folder, 2)
    assert plan.stack is not None and plan.cascade is not None and loop.vectors is not None
    ids = record_ids(loop.project, loop.folder)
    stack = Stack.from_json(plan.stack["model"])
    confidence = student_confidence(
        stack, CorrectnessModel.from_json(plan.cascade.confidence), stack.parts_proba(loop.vectors.of(ids))
    )
    sure = {record_id for record_id, p in zip(ids, confidence, strict=True) if p >= THRESHOLD}

    left = left_in(loop)

    assert left == sure - random_share(loop.project, ids) - set(plan.stack["reference_ids"])
    # The slice that no loop sees is treated like everything else.
    assert left & set(read_json(loop.folder.round(1).slice)["slice"])


def test_the_students_probability_holds_on_records_nobody_reviewed(planned: Loop) -> None:
    loop = planned
    loop.suggest(2)
    rows = load_suggestions(loop.project, loop.folder, 2, ["record_id", "value", "by"])
    alone = rows.filter(pl.col("by") == "student")

    right = sum(loop.truth[record_id] == value for record_id, value, _ in alone.iter_rows())

    # 0.8 promised; three standard errors below it for these records.
    assert right / alone.height > THRESHOLD - 3 * np.sqrt(THRESHOLD * (1 - THRESHOLD) / alone.height)


def test_the_plan_says_threshold_and_counts(planned: Loop) -> None:
    loop, plan = planned, load_plan(planned.folder, 2)
    assert plan.cascade is not None
    known_before = store_of(loop, plan).known()
    left = left_in(loop) - known_before

    assert (plan.cascade.threshold, plan.cascade.records) == (THRESHOLD, RECORDS)
    assert plan.cascade.alone == len(left)
    assert plan.cascade.to_ask == RECORDS - len(known_before) - len(left)
    assert plan.cascade.at_random == LEAST
    assert f"the student answers {len(left)} alone" in plan.sentences[-1]
    assert loop.score(2) == plan.cascade.to_ask


def test_a_run_that_was_killed_goes_on_with_the_same_records(planned: Loop) -> None:
    loop, plan = planned, load_plan(planned.folder, 2)
    store, left = store_of(loop, plan), left_in(loop)
    known_before = store.known()
    prompt = prompt_of(read_json(loop.folder.prompts_used / f"{plan.prompt_id}.json"))
    texts = texts_of(loop.project, loop.folder, record_ids(loop.project, loop.folder))
    few = loop.project.limits.model_copy(update={"shard_records": 8})
    shards = score_missing(
        loop.engine,
        prompt,
        store,
        iter(texts.items()),
        project=loop.project.model_copy(update={"limits": few}),
        folder=loop.folder,
        known=known_before | left,
    )
    (first,) = islice(shards, 1)

    assert left_in(loop) == left
    again = loop.score(2)

    assert plan.cascade is not None and 0 < again == plan.cascade.to_ask - len(first.scored)
    assert store.known() == (set(texts) - left) | known_before


def test_the_mean_of_the_batch_is_that_of_the_random_records(planned: Loop) -> None:
    loop, plan = planned, load_plan(planned.folder, 2)
    loop.suggest(2)
    store = store_of(loop, plan)
    drawn = random_share(loop.project, record_ids(loop.project, loop.folder))

    batch = batch_of(loop.project, loop.folder, store)

    assert batch == drawn
    suggester = Suggester(loop.project, plan, store, loop.vectors, batch=batch)
    expected = log_softmax(store.matrix(sorted(drawn))[0]).mean(axis=0)
    everything = log_softmax(store.matrix(sorted(store.known()))[0]).mean(axis=0)
    assert np.allclose(suggester.calibration.mean_scores, expected)
    assert not np.allclose(suggester.calibration.mean_scores, everything, atol=1e-3)
    # And the suggestions that were written are those.
    rows = load_suggestions(loop.project, loop.folder, 2, ["record_id", "value"])
    ids = rows["record_id"].to_list()
    proposed = suggester.propose(ids, [10] * len(ids)).probabilities.argmax(axis=1)
    assert [loop.project.label_schema.names[index] for index in proposed] == rows["value"].to_list()


def test_a_new_prompt_is_learned_with_the_mean_that_suggestions_use(planned: Loop) -> None:
    loop, plan = planned, load_plan(planned.folder, 2)
    store = store_of(loop, plan)
    drawn = random_share(loop.project, record_ids(loop.project, loop.folder))
    settled = set(settled_values(loop.project, loop.folder, 2))

    assert drawn <= store.known() <= drawn | settled
    assert batch_of(loop.project, loop.folder, store) == drawn


def test_the_next_round_learns_with_the_mean_of_the_random_records(planned: Loop) -> None:
    loop = planned
    loop.whole_round(2)

    plan = loop.iterate(2)

    assert plan.prompt_id == load_plan(loop.folder, 2).prompt_id
    assert plan.cascade is not None
    counts = loop.suggest(3)
    assert counts["suggested"] + len((plan.stack or {})["reference_ids"]) == RECORDS


def test_off_by_default_every_record_is_asked_with_the_new_prompt(
    tmp_path: Path, session_engine: ScriptedEngine, _quick_passwords: None
) -> None:
    loop = with_a_better_prompt(tmp_path / "off", session_engine.url, None)
    plan = load_plan(loop.folder, 2)

    counts = loop.suggest(2)

    assert plan.cascade is None and left_in(loop) == set()
    assert len(store_of(loop, plan).known()) == RECORDS
    assert counts["student_alone"] == 0
    assert batch_of(loop.project, loop.folder, store_of(loop, plan)) is None
    loop.close()


def test_with_an_unchanged_prompt_nothing_is_asked_and_nothing_is_left_out(
    tmp_path: Path, session_engine: ScriptedEngine, _quick_passwords: None
) -> None:
    loop = with_a_better_prompt(tmp_path / "same", session_engine.url, THRESHOLD, changed=False)
    plan = load_plan(loop.folder, 2)
    assert plan.cascade is not None

    assert (plan.cascade.to_ask, plan.cascade.alone) == (0, 0)
    assert loop.suggest(2)["student_alone"] == 0
    rows = load_suggestions(loop.project, loop.folder, 2, ["record_id", "value", "confidence"])
    for folder in (loop.folder.round(2).suggestions, loop.folder.round(2).rejected):
        shutil.rmtree(folder)
    without = plan.model_copy(update={"cascade": None})
    write_suggestions(loop.project, loop.folder, without, loop.vectors)
    again = load_suggestions(loop.project, loop.folder, 2, ["record_id", "value", "confidence"])
    assert rows.equals(again)
    loop.close()


def test_calls_count_every_record_prompt_and_try(planned: Loop) -> None:
    loop = planned
    before = calls_so_far(loop.project, loop.folder)
    first, second = load_plan(loop.folder, 1), load_plan(loop.folder, 2)

    asked = loop.score(2)

    assert before == len(store_of(loop, first).known()) + len(store_of(loop, second).known()) - asked
    assert calls_so_far(loop.project, loop.folder) == before + asked
    store_of(loop, second).rejected.append(
        [
            {
                "record_id": "x",
                "reason": "unusable reply",
                "attempts": 3,
                "identity_id": second.identity_id,
                "prompt_id": second.prompt_id,
            }
        ]
    )
    assert calls_so_far(loop.project, loop.folder) == before + asked + 3


def test_a_student_whose_errors_nobody_has_seen_gets_no_cascade(
    tmp_path: Path, session_engine: ScriptedEngine, _quick_passwords: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def easy(count: int) -> list[dict[str, str]]:
        names = ["alpha" if number % 2 else "beta" for number in range(count)]
        return [
            {"key": f"k{n}", "text": f"{name} {n} {n * n}", "truth": name} for n, name in enumerate(names)
        ]

    monkeypatch.setattr("rounds_of_work.rows_with_truth", easy)
    monkeypatch.setattr(Loop, "careless", 0.0)
    loop = Loop(
        tmp_path / "easy", session_engine.url, iteration={"cascade": THRESHOLD}, prompts={"exemplars": 0}
    )
    loop.setup()
    loop.whole_round(1)

    plan = loop.iterate(1)

    assert plan.stack is not None and plan.cascade is None
    assert plan.sentences[-1].startswith("No cascade: the student's confidence is not yet known")
    loop.close()


@pytest.mark.parametrize("threshold", [0.5, 1.0, -1, "high"])
def test_a_threshold_that_is_no_probability_of_being_sure_is_refused(threshold: object, worked: Loop) -> None:
    text = (worked.folder.root / "project.yaml").read_text() + f"iteration:\n  cascade: {threshold}\n"

    with pytest.raises(ManyProblems) as caught:
        parse_project(text.encode(), "project.yaml")

    assert "iteration.cascade" in str(caught.value)
