"""From scores to suggestions: all label scores kept, a failure never a label, the same input the same table."""

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
from rounds_of_work import Loop

from labeling.ingest import ingest
from labeling.record_store import Vectors, record_ids
from labeling.score_store import CHOSEN, ScoreStore
from labeling.screening import _out_of_sample
from labeling.setup import load_plan
from labeling.storage import Table, read_json
from labeling.suggesting import Suggester, load_suggestions, write_suggestions
from labeling.tracing import trace, verify
from schemas import tables
from schemas.errors import ProjectError, StorageError
from schemas.values import TaskType

TASK = TaskType.CLASSIFICATION


def suggestions(loop: Loop, number: int) -> pl.DataFrame:
    return Table(loop.folder.round(number).suggestions, tables.suggestions(TASK)).read()


def test_every_record_has_one_suggestion_with_all_label_scores(worked: Loop) -> None:
    frame = suggestions(worked, 1)

    assert sorted(frame["record_id"]) == sorted(record_ids(worked.project, worked.folder))
    for row in frame.iter_rows(named=True):
        shares = {score["label"]: score["probability"] for score in row["scores"]}
        assert set(shares) == {"alpha", "beta"}
        assert sum(shares.values()) == pytest.approx(1.0)
        assert row["value"] == max(shares, key=lambda label: shares[label])
        assert row["runner_up"] == min(shares, key=lambda label: shares[label])
        assert all(score["log_prob"] < 0 for score in row["scores"]) and 0 < row["label_mass"] <= 1
        assert (row["by"], row["fit"], row["attempts"]) == ("llm", "whole", 1)


def test_a_suggestion_names_the_model_and_the_prompt_it_came_from(worked: Loop) -> None:
    plan = load_plan(worked.folder, 1)
    frame = suggestions(worked, 1)

    assert frame["identity_id"].unique().to_list() == [plan.identity_id]
    assert frame["prompt_id"].unique().to_list() == [plan.prompt_id]
    assert read_json(worked.folder.identities / f"{plan.identity_id}.json")["model"] == "scripted.gguf"
    assert "prefix" in read_json(worked.folder.prompts_used / f"{plan.prompt_id}.json")


def test_confidence_says_what_it_rests_on(worked: Loop) -> None:
    for number in (1, 2):
        plan = load_plan(worked.folder, number)
        frame = suggestions(worked, number)
        if plan.correctness is None:
            assert frame["confidence"].null_count() == frame.height
            assert frame["calibrated_by"].unique().to_list() == ["none"]
        else:
            assert frame["confidence"].is_between(0, 1).all()
            assert frame["calibrated_by"].unique().to_list() == [
                f"correctness model on {plan.reviewed} reviewed records"
            ]


def test_records_the_student_was_trained_on_are_not_suggested_again(worked: Loop) -> None:
    trained = set((load_plan(worked.folder, 2).stack or {})["reference_ids"])

    assert trained and trained.isdisjoint(suggestions(worked, 2)["record_id"])
    assert set(suggestions(worked, 2)["record_id"]) | trained == set(
        record_ids(worked.project, worked.folder)
    )


def test_evidence_of_a_suggestion_is_reviewed_records_outside_the_slice(worked: Loop) -> None:
    drawn = set(read_json(worked.folder.round(1).slice)["slice"])
    shown = {record_id for row in suggestions(worked, 2)["evidence"].to_list() for record_id in row}

    assert shown and shown.isdisjoint(drawn)


def test_suggesting_again_changes_nothing(copy_of_worked: Loop) -> None:
    loop = copy_of_worked
    table = Table(loop.folder.round(1).suggestions, tables.suggestions(TASK))
    before = (table.content_hash(), len(table.parts()))

    counts = write_suggestions(loop.project, loop.folder, load_plan(loop.folder, 1), loop.vectors)

    assert (table.content_hash(), len(table.parts())) == before
    assert counts == {"suggested": 130, "rejected": 0, "records": 130, "student_alone": 0}


def test_an_interrupted_phase_goes_on_and_gives_the_same_table(
    copy_of_worked: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = copy_of_worked
    plan = load_plan(loop.folder, 1)
    expected = Table(loop.folder.round(1).suggestions, tables.suggestions(TASK)).content_hash()
    for folder in (loop.folder.round(1).suggestions, loop.folder.round(1).rejected):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    append = Table.append

    def die(self: Table, *given: object, **named: object) -> object:
        if self.folder.name == "rejected":
            raise SystemExit
        return append(self, *given, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Table, "append", die)
        with pytest.raises(SystemExit):
            write_suggestions(loop.project, loop.folder, plan, loop.vectors)
    write_suggestions(loop.project, loop.folder, plan, loop.vectors)

    assert Table(loop.folder.round(1).suggestions, tables.suggestions(TASK)).content_hash() == expected


def test_the_suggester_gives_the_same_for_the_same(worked: Loop) -> None:
    plan = load_plan(worked.folder, 2)
    store = ScoreStore(worked.project, worked.folder, identity_id=plan.identity_id, prompt_id=plan.prompt_id)
    ids = suggestions(worked, 2)["record_id"].to_list()

    first, second = (
        Suggester(worked.project, plan, store, worked.vectors).propose(ids, [10] * len(ids)) for _ in range(2)
    )

    assert np.array_equal(first.probabilities, second.probabilities)
    assert np.allclose(first.probabilities.sum(axis=1), 1.0)
    assert first.usable.all()


def test_the_order_of_records_does_not_change_their_suggestions(worked: Loop) -> None:
    plan = load_plan(worked.folder, 2)
    store = ScoreStore(worked.project, worked.folder, identity_id=plan.identity_id, prompt_id=plan.prompt_id)
    ids = suggestions(worked, 2)["record_id"].to_list()
    suggester = Suggester(worked.project, plan, store, worked.vectors)

    forward = suggester.propose(ids, [10] * len(ids))
    backward = suggester.propose(ids[::-1], [10] * len(ids))

    assert np.allclose(forward.probabilities, backward.probabilities[::-1])


def test_a_record_without_a_usable_reply_gets_a_reason_and_no_suggestion(new_loop: type[Loop]) -> None:
    from scripted_engine import ScriptedEngine

    with ScriptedEngine() as server:
        loop = new_loop(quality={"max_rejected_share": 0.5})
        loop.engine.close()
        document = (
            (loop.folder.root / "project.yaml")
            .read_text()
            .replace(loop.project.engine.endpoints[0], server.url)
        )
        (loop.folder.root / "project.yaml").write_text(document)
        from labeling.engines.opening import connect_engine
        from labeling.project_file import load_project

        loop.project, _ = load_project(loop.folder.root)
        loop.engine = connect_engine(loop.project)
        loop.setup()
        plan = load_plan(loop.folder, 1)
        sample = set(read_json(loop.folder.sample)["sample"])
        bad = next(row for row in loop.rows if "walnut" in row["text"] and not _in(loop, row["key"], sample))
        server.misbehave(bad["text"], "length stop")

        counts = loop.suggest(1)

        assert (counts["suggested"], counts["rejected"]) == (129, 1)
        rejected = Table(loop.folder.round(1).rejected, tables.rejected(TASK)).read()
        steps = trace(loop.project, loop.folder, loop.db, bad["key"])
        assert rejected["record_id"].to_list() == [steps[0]["record_id"]]
        assert steps[1]["step"] == "no usable suggestion" and steps[1]["reason"].startswith("unusable reply")
        assert steps[0]["record_id"] not in set(
            load_suggestions(loop.project, loop.folder, 1, ["record_id"])["record_id"]
        )
        assert plan.round == 1


def test_a_record_that_came_after_the_drafts_and_was_set_aside_keeps_its_reason_with_the_round(
    copy_of_worked: Loop,
) -> None:
    loop = copy_of_worked
    plan = load_plan(loop.folder, 1)
    with (loop.folder.root / "records.jsonl").open("a") as source:
        source.write('{"key": "late", "text": "came after the drafts of the round", "truth": "alpha"}\n')
    before = set(record_ids(loop.project, loop.folder))
    ingest(loop.project, loop.folder)
    (late,) = set(record_ids(loop.project, loop.folder)) - before
    store = ScoreStore(loop.project, loop.folder, identity_id=plan.identity_id, prompt_id=plan.prompt_id)
    named = {"identity_id": plan.identity_id, "prompt_id": plan.prompt_id}
    store.rejected.append([{"record_id": late, "reason": "unusable reply: x", "attempts": 3, **named}])

    counts = [write_suggestions(loop.project, loop.folder, plan, loop.vectors)["rejected"] for _ in range(2)]

    assert counts == [1, 1]
    assert "no usable suggestion" in {
        step["step"] for step in trace(loop.project, loop.folder, loop.db, "late")
    }
    assert verify(loop.project, loop.folder, loop.db) == []


def test_where_there_is_a_student_a_record_the_model_failed_on_gets_its_word(copy_of_worked: Loop) -> None:
    loop = copy_of_worked
    plan = load_plan(loop.folder, 2)
    store = ScoreStore(loop.project, loop.folder, identity_id=plan.identity_id, prompt_id=plan.prompt_id)
    failed = suggestions(loop, 2)["record_id"][5]
    kept = store.scored.read().filter(pl.col("record_id") != failed).to_arrow()
    for folder in (store.scored.folder, loop.folder.round(2).suggestions, loop.folder.round(2).rejected):
        for file in folder.iterdir():
            file.unlink()
    store.scored.append(kept, meta={"origin": CHOSEN})
    named = {"identity_id": plan.identity_id, "prompt_id": plan.prompt_id}
    store.rejected.append([{"record_id": failed, "reason": "unusable reply: x", "attempts": 3, **named}])

    counts = write_suggestions(loop.project, loop.folder, plan, loop.vectors)

    (row,) = suggestions(loop, 2).filter(pl.col("record_id") == failed).iter_rows(named=True)
    assert (counts["suggested"], counts["rejected"]) == (86, 1)
    assert (row["by"], row["fit"], row["label_mass"], row["attempts"]) == ("student", "none", None, 0)
    assert all(score["log_prob"] == float("-inf") for score in row["scores"])
    assert row["value"] in ("alpha", "beta")


def _in(loop: Loop, key: str, sample: set[str]) -> bool:
    return trace(loop.project, loop.folder, loop.db, key)[0]["record_id"] in sample


def test_vectors_are_made_once_a_record_and_found_by_id(worked: Loop) -> None:
    vectors = worked.vectors
    assert isinstance(vectors, Vectors)
    ids = record_ids(worked.project, worked.folder)

    assert vectors.of(ids[:3]).shape == (3, 16)
    assert np.allclose(np.linalg.norm(vectors.of(ids), axis=1), 1.0, atol=1e-5)
    assert ids[0] in vectors and "nobody" not in vectors


def test_exact_duplicates_are_not_suggested(new_loop: type[Loop]) -> None:
    loop = new_loop()
    with (loop.folder.root / "records.jsonl").open("a") as file:
        file.write(
            (loop.folder.root / "records.jsonl").read_text().splitlines()[0].replace("k0000", "k9999") + "\n"
        )
    ingest(loop.project, loop.folder)
    loop.truth[next(iter(set(_all_ids(loop)) - set(loop.truth)))] = "alpha"

    loop.setup()

    assert loop.suggest(1)["suggested"] == 130
    assert len(_all_ids(loop)) == 131


def _all_ids(loop: Loop) -> list[str]:
    return list(Table(loop.folder.records, tables.records(TASK)).read(["record_id"])["record_id"])


def test_a_record_without_a_vector_is_named_with_what_to_do(copy_of_worked: Loop) -> None:
    loop = copy_of_worked
    with (loop.folder.root / "records.jsonl").open("a") as source:
        source.write('{"key": "new", "text": "nobody made a vector of this one", "truth": "alpha"}\n')
    ingest(loop.project, loop.folder)
    loop.iterate(2)

    with pytest.raises(StorageError, match="run the setup flow: it makes what is missing"):
        loop.suggest(3)


# -- labels that change after the plan was made ----------------------------------------------------------------------


def test_scores_are_not_read_as_those_of_labels_that_stand_in_another_order(
    new_loop: Callable[..., Loop],
) -> None:
    loop = new_loop()
    loop.setup()
    loop.score(1)
    schema = loop.project.label_schema
    turned = schema.model_copy(update={"labels": schema.labels[::-1]})
    plan, project = load_plan(loop.folder, 1), loop.project.model_copy(update={"label_schema": turned})

    with pytest.raises(ProjectError, match=r"found beta, alpha; expected alpha, beta"):
        write_suggestions(project, loop.folder, plan, loop.vectors)

    assert not Table(loop.folder.round(1).suggestions, tables.suggestions(TASK)).exists
    assert write_suggestions(loop.project, loop.folder, plan, loop.vectors)["suggested"] == 130


@pytest.fixture
def turned(copy_of_worked: Loop) -> Loop:
    """Two rounds were worked through; then the labels were written down in another order."""
    schema = copy_of_worked.project.label_schema
    turned = schema.model_copy(update={"labels": schema.labels[::-1]})
    copy_of_worked.project = copy_of_worked.project.model_copy(update={"label_schema": turned})
    return copy_of_worked


def test_a_plan_is_not_made_with_other_labels_than_the_round_before_it(turned: Loop) -> None:
    with pytest.raises(ProjectError, match="Put them back"):
        turned.iterate(2)


def test_drafts_are_screened_by_the_names_of_their_labels_not_by_their_places(
    worked: Loop, turned: Loop
) -> None:
    ids = load_suggestions(worked.project, worked.folder, 2, ["record_id"])["record_id"].to_list()
    values = [worked.truth[record_id] for record_id in ids]

    then = _out_of_sample(worked.project, worked.folder, 2, ids, values, None)
    now = _out_of_sample(turned.project, turned.folder, 2, ids, values, None)

    np.testing.assert_array_equal(now, then[:, ::-1])
