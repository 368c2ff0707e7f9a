"""The whole life of a label can be told, and no later change stays hidden."""

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from rounds_of_work import Loop
from small_projects import RELEASE_FILES, ProjectFactory

from labeling import tracing
from labeling.database import chain
from labeling.database.opening import project_database
from labeling.database.queue import decisions_of_round
from labeling.ingest import ingest
from labeling.paths import ProjectFolder
from labeling.quality import gold_rows
from labeling.storage import MANIFEST, Table
from labeling.tracing import trace, verify
from schemas import tables
from schemas.errors import StorageError
from schemas.values import TaskType

TASK = TaskType.CLASSIFICATION


def problems(loop: Loop, **settings: str) -> list[str]:
    return verify(loop.project, loop.folder, loop.db, **settings)


def edit_database(loop: Loop, *statements: str) -> None:
    """As somebody with a database tool would: the triggers that guard history are dropped first."""
    loop.db.close()
    with sqlite3.connect(loop.folder.database) as raw:
        for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            raw.execute(f'DROP TRIGGER "{name}"')
        for statement in statements:
            assert raw.execute(statement).rowcount != 0, statement
    raw.close()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# -- trace -----------------------------------------------------------------------------------------------------------


def disputed(loop: Loop) -> str:
    """A record of round 1 that an adjudicator settled."""
    gold = Table(loop.folder.round(1).gold, tables.gold(TASK)).read()
    return str(gold.filter(pl.col("how") == "adjudicated")["record_id"][0])


def test_every_step_of_a_label_is_told_in_order(worked: Loop) -> None:
    record_id = disputed(worked)

    steps = trace(worked.project, worked.folder, worked.db, record_id)

    told = [step["step"] for step in steps]
    assert told[0] == "record" and told[1] == "suggestion"
    assert told.count("decision.made") >= 3  # two people and the adjudicator
    assert told.index("decision.made") < told.index("gold") < told.index("release")
    assert "finding" in told
    assert [step["release"] for step in steps if step["step"] == "release"] == ["v1", "v2"]
    record, suggestion = steps[0], steps[1]
    assert hashlib.sha256(record["text"].encode()).hexdigest() == record["text_sha256"]
    assert suggestion["model"] == "scripted.gguf" and suggestion["prompt_id"] and suggestion["engine"]
    decisions = [step for step in steps if step["step"] == "decision.made"]
    assert [step["seq"] for step in decisions] == sorted(step["seq"] for step in decisions)
    assert {step["actor"] for step in decisions} <= {person.id for person in worked.people.values()}
    assert all(step["utc"] and step["value_json"] for step in decisions)
    released = [step for step in steps if step["step"] == "release"][0]
    (gold,) = [step for step in steps if step["step"] == "gold"]
    assert json.loads(released["final"]) == gold["value"] == worked.truth[record_id]
    assert gold["how"] == "adjudicated"


def test_a_record_is_found_by_the_sources_own_id(worked: Loop) -> None:
    by_key = trace(worked.project, worked.folder, worked.db, "k0007")

    assert by_key[0]["source_id"] == "k0007"
    assert by_key == trace(worked.project, worked.folder, worked.db, by_key[0]["record_id"])


def test_an_id_that_two_sources_use_is_told_with_the_records_it_may_mean(
    project_folder: ProjectFactory,
) -> None:
    sources = [{"path": f"{name}.jsonl", "id": "id"} for name in ("records", "more")]
    project, folder = project_folder([{"id": "7", "text": "one"}], sources=sources)
    (folder.root / "more.jsonl").write_text('{"id": "7", "text": "another"}\n')
    ingest(project, folder)
    with project_database(project, folder) as db:
        with pytest.raises(StorageError) as caught:
            trace(project, folder, db, "7")

        told = sorted(part.split()[-1] for part in caught.value.found.split(" (")[:2])
        texts = {trace(project, folder, db, record_id)[0]["text"] for record_id in told}
    assert texts == {"one", "another"}
    assert "more.jsonl, row 1" in caught.value.found


def test_an_unknown_record_is_a_clear_error(worked: Loop) -> None:
    with pytest.raises(StorageError) as caught:
        trace(worked.project, worked.folder, worked.db, "nobody")

    assert caught.value.path == "record 'nobody'"


def test_what_somebody_laid_beside_rounds_and_releases_stops_neither_trace_nor_verify(
    copy_of_worked: Loop,
) -> None:
    loop = copy_of_worked
    before = trace(loop.project, loop.folder, loop.db, "k0007")
    (loop.folder.rounds / "notes.txt").write_text("x")
    (loop.folder.rounds / "old").mkdir()
    (loop.folder.rounds / "7").write_text("x")
    (loop.folder.releases / "v1.zip").write_bytes(b"PK")

    assert trace(loop.project, loop.folder, loop.db, "k0007") == before
    assert problems(loop) == []


@pytest.mark.parametrize("name", ["provenance.parquet", "manifest.json"])
@pytest.mark.parametrize("content", [None, b"", b"{}"])
def test_a_damaged_release_hides_nothing_else_of_a_record(
    name: str, content: bytes | None, copy_of_worked: Loop
) -> None:
    loop = copy_of_worked
    record_id = disputed(loop)
    before = trace(loop.project, loop.folder, loop.db, record_id)
    file = loop.folder.release(1) / name
    file.unlink()
    if content is not None:
        file.write_bytes(content)

    after = trace(loop.project, loop.folder, loop.db, record_id)

    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    ((old, new),) = changed
    assert (old["step"], old["release"]) == (new["step"], new["release"]) == ("release", "v1")
    assert "countersign verify" in new["problem"]


# -- verify ----------------------------------------------------------------------------------------------------------


def test_a_project_nobody_touched_is_whole(worked: Loop) -> None:
    assert problems(worked) == []
    assert problems(worked, release="v1") == []


def test_a_release_that_does_not_exist_is_a_problem(worked: Loop) -> None:
    assert problems(worked, release="v9") == ["release v9: there is none"]


@pytest.mark.parametrize("name", ["", ".", "../releases/v1", "v1/data", "V1"])
def test_only_the_name_of_a_release_names_a_release(name: str, worked: Loop) -> None:
    assert problems(worked, release=name) == [f"release {name or repr('')}: there is none"]


def test_a_release_named_as_the_shell_completes_it_is_verified(copy_of_worked: Loop) -> None:
    file = copy_of_worked.folder.release(1) / "README.md"
    flip(file)

    (problem,) = problems(copy_of_worked, release="v1/")

    assert str(file) in problem


TABLES = [
    "records",
    "quarantine",
    "scores",
    "rounds/01/suggestions",
    "rounds/01/annotations",
    "rounds/01/gold",
]


@pytest.mark.parametrize("name", [*TABLES, "rounds/02/findings", "embeddings"])
def test_a_changed_byte_in_any_table_is_found(name: str, copy_of_worked: Loop) -> None:
    part = next((copy_of_worked.folder.root / name).rglob("part-*.parquet"))
    flip(part)

    (problem,) = problems(copy_of_worked)

    assert problem == f"{part}: its content is not what the manifest lists (SHA-256 differs)"


@pytest.mark.parametrize("change", ["deleted part", "damaged manifest line"])
def test_a_table_that_lost_something_is_found(change: str, copy_of_worked: Loop) -> None:
    folder = copy_of_worked.folder.round(1).annotations
    if change == "deleted part":
        next(folder.glob("part-*")).unlink()
    else:
        (folder / MANIFEST).write_bytes(b"{broken}\n")

    found = problems(copy_of_worked)

    assert found and all(str(folder) in problem for problem in found)


@pytest.mark.parametrize("name", ["records", "rounds/01/gold", "rounds/01/annotations", "releases/v1"])
def test_a_whole_folder_that_is_gone_is_found(name: str, copy_of_worked: Loop) -> None:
    gone = copy_of_worked.folder.root / name
    shutil.rmtree(gone)

    assert any(problem.startswith(f"{gone}: gone;") for problem in problems(copy_of_worked))


@pytest.mark.parametrize("name", sorted(RELEASE_FILES))
def test_a_changed_byte_in_any_file_of_a_release_is_found(name: str, copy_of_worked: Loop) -> None:
    file = copy_of_worked.folder.release(1) / name
    flip(file)

    found = problems(copy_of_worked)

    assert any(str(file) in problem for problem in found)
    assert problems(copy_of_worked, release="v2") == []


@pytest.mark.parametrize("name", ["data/train.parquet", "manifest.json"])
def test_a_deleted_file_of_a_release_is_found(name: str, copy_of_worked: Loop) -> None:
    file = copy_of_worked.folder.release(2) / name
    file.unlink()

    (problem,) = problems(copy_of_worked)

    assert str(file) in problem


def test_a_file_that_was_slipped_into_a_release_is_found(copy_of_worked: Loop) -> None:
    (copy_of_worked.folder.release(1) / "data" / "more.parquet").write_bytes(b"x")

    (problem,) = problems(copy_of_worked)

    assert "not part of the release as it was made" in problem


def test_a_release_rewritten_together_with_its_manifest_is_found(copy_of_worked: Loop) -> None:
    release = copy_of_worked.folder.release(1)
    frame = pl.read_parquet(release / "data" / "train.parquet")
    pq.write_table(
        frame.with_columns(pl.lit("alpha").alias("label")).to_arrow(), release / "data" / "train.parquet"
    )
    manifest = json.loads((release / "manifest.json").read_bytes())
    content = (release / "data" / "train.parquet").read_bytes()
    for entry in manifest["files"]:
        if entry["path"] == "data/train.parquet":
            entry.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    (release / "manifest.json").write_text(json.dumps(manifest))

    (problem,) = problems(copy_of_worked)

    assert problem == f"{release / 'manifest.json'}: not the manifest that the audit chain committed to"


def rewritten(
    folder: Path, layout: Callable[[TaskType], object], change: Callable[[pl.DataFrame], pl.DataFrame]
) -> None:
    """A table made anew with a change in it, manifest and all."""
    table = Table(folder, layout(TASK))  # type: ignore[arg-type]
    frame = change(table.read())
    for file in folder.iterdir():
        file.unlink()
    table.append(frame.to_arrow())


@pytest.fixture
def closed_before_files_were_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the decisions in the database are left to hold a round against."""
    monkeypatch.setattr(tracing, "changed_since", lambda *_: [])


OF_THE_ROUND = {
    "suggestions": tables.suggestions,
    "annotations": tables.annotations,
    "findings": tables.findings,
    "gold": tables.gold,
}


@pytest.mark.parametrize("name", ["records", *(f"rounds/01/{name}" for name in OF_THE_ROUND)])
def test_any_table_of_a_closed_round_made_anew_is_found(name: str, copy_of_worked: Loop) -> None:
    folder = copy_of_worked.folder.root / name
    layout = OF_THE_ROUND.get(folder.name, tables.records)
    rewritten(folder, layout, lambda frame: frame.reverse().head(max(0, frame.height - 1)))

    found = problems(copy_of_worked)

    assert f"{folder / MANIFEST}: not what it was when round 1 was closed" in found


@pytest.mark.parametrize("name", ["agreement", "figures", "queue", "setup", "slice"])
def test_a_changed_or_deleted_file_of_a_closed_round_is_found(name: str, copy_of_worked: Loop) -> None:
    moments = ["closed"] if name in ("agreement", "figures") else ["signed", "closed"]
    file = copy_of_worked.folder.round(1).root / f"{name}.json"
    told = {**json.loads(file.read_bytes()), "evil": 1}
    file.write_text(json.dumps(told))

    assert problems(copy_of_worked) == [
        f"{file}: not what it was when round 1 was {moment}" for moment in moments
    ]

    file.unlink()

    assert problems(copy_of_worked) == [
        f"{file}: gone; it was there when round 1 was {moment}" for moment in moments
    ]


def test_records_and_suggestions_may_be_added_after_a_round_was_closed(copy_of_worked: Loop) -> None:
    loop = copy_of_worked
    for folder, layout in (
        (loop.folder.records, tables.records),
        (loop.folder.round(1).suggestions, tables.suggestions),
    ):
        table = Table(folder, layout(TASK))
        table.append(table.read().head(1).with_columns(pl.lit("r-new").alias("record_id")).to_arrow())

    assert problems(loop) == []


def test_a_torn_line_after_a_round_was_closed_is_no_change(copy_of_worked: Loop) -> None:
    with (copy_of_worked.folder.round(1).gold / MANIFEST).open("ab") as manifest:
        manifest.write(b'{"path": "part-')

    assert problems(copy_of_worked) == []


def test_suggestions_made_anew_between_signature_and_closing_are_found(new_loop: Callable[..., Loop]) -> None:
    loop = new_loop()
    loop.setup()
    loop.suggest(1)
    loop.review(1)
    folder = loop.folder.round(1).suggestions
    rewritten(folder, tables.suggestions, lambda frame: frame.with_columns(pl.lit(0.5).alias("confidence")))
    loop.assure(1)

    assert problems(loop) == [f"{folder / MANIFEST}: not what it was when round 1 was signed"]


def test_a_round_whose_files_the_chain_never_kept_is_held_against_the_decisions_only(worked: Loop) -> None:
    told = [
        {"action": "gate.approved", "object": "gate:review:1", "payload": {"figures_json": "{}"}},
        {"action": "round.closed", "object": "round:1", "payload": {}},
    ]

    assert tracing._verify_committed(worked.folder, told) == []


VALUES = {
    TaskType.CLASSIFICATION: "alpha",
    TaskType.MULTILABEL: ["alpha", "beta"],
    TaskType.ENTITIES: [{"start": 0, "end": 2, "label": "alpha", "quote": "ab"}],
    TaskType.PAIRS: {"instruction": "i", "input": "", "output": "o"},
}


@pytest.mark.parametrize("task", TaskType)
def test_answers_and_gold_of_every_task_are_read_back_as_they_were_given(
    task: TaskType, tmp_path: Path, worked: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = decisions_of_round(worked.db, 1)[:6]
    nothing = [] if task in (TaskType.MULTILABEL, TaskType.ENTITIES) else VALUES[task]
    for row, value in zip(told, [VALUES[task], None, nothing, *[VALUES[task]] * 3], strict=True):
        row |= {"value": value, "suggestion_value": VALUES[task], "purpose": "audit", "action": "correct"}
    project = worked.project.model_copy(
        update={"label_schema": worked.project.label_schema.model_copy(update={"task": task})}
    )
    folder = ProjectFolder(tmp_path)
    monkeypatch.setattr(tracing, "decisions_of_round", lambda db, number: told)
    answers, gold = tables.annotations(task), tables.gold(task)
    Table(folder.round(1).annotations, answers).append(told)
    annotations = Table(folder.round(1).annotations, answers).read()
    rows, _ = gold_rows(annotations, {}, number=1, confidence={})
    Table(folder.round(1).gold, gold).append(rows)

    assert rows and tracing._verify_decisions(project, folder, worked.db) == []


@pytest.mark.parametrize(
    "change",
    [pl.lit("alpha").alias("value"), pl.lit("a-000000").alias("annotator_id"), pl.lit(9.0).alias("seconds")],
)
def test_annotations_rewritten_together_with_their_manifest_are_found(
    change: pl.Expr, copy_of_worked: Loop, closed_before_files_were_told: None
) -> None:
    folder = copy_of_worked.folder.round(1).annotations
    rewritten(folder, tables.annotations, lambda frame: frame.with_columns(change))

    found = problems(copy_of_worked)

    assert found and all("not what the database has" in problem for problem in found)


def test_annotations_taken_out_together_with_their_manifest_are_found(
    copy_of_worked: Loop, closed_before_files_were_told: None
) -> None:
    folder = copy_of_worked.folder.round(1).annotations
    rewritten(folder, tables.annotations, lambda frame: frame.head(-5))

    found = problems(copy_of_worked)

    assert len(found) == 5 and all("not what the database has" in problem for problem in found)


ADJUDICATED = pl.col("how") == "adjudicated"
FORGED = {
    "value": pl.lit("alpha").alias("value"),
    # What the annotators had said, whom the adjudicator overruled, is among the sources too.
    "adjudicated": pl.when(ADJUDICATED & (pl.col("value") == "alpha"))
    .then(pl.lit("beta"))
    .when(ADJUDICATED)
    .then(pl.lit("alpha"))
    .otherwise("value")
    .alias("value"),
    "how": pl.lit("adjudicated").alias("how"),
    "no sources": pl.lit([], dtype=pl.List(pl.String)).alias("annotation_ids"),
}


@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED)
def test_gold_rewritten_together_with_its_manifest_is_found(
    change: pl.Expr, copy_of_worked: Loop, closed_before_files_were_told: None
) -> None:
    folder = copy_of_worked.folder.round(1).gold
    rewritten(folder, tables.gold, lambda frame: frame.with_columns(change))

    found = problems(copy_of_worked)

    assert found and all("is not what people's decisions come to" in problem for problem in found)


def test_gold_rows_taken_out_or_put_in_are_found(
    copy_of_worked: Loop, closed_before_files_were_told: None
) -> None:
    folder = copy_of_worked.folder.round(1).gold
    rewritten(folder, tables.gold, lambda frame: pl.concat([frame.head(-5), frame.head(1)]))

    found = problems(copy_of_worked)

    assert len(found) == 6 and "is not what people's decisions come to" in found[0]
    assert all("no gold, though people's decisions settle it" in problem for problem in found[1:])


@pytest.mark.parametrize("name", ["identities", "prompts_used"])
def test_a_changed_or_deleted_engine_or_prompt_is_found(name: str, copy_of_worked: Loop) -> None:
    file = sorted((copy_of_worked.folder.root / name).glob("*.json"))[0]
    told = {**json.loads(file.read_bytes()), "evil": 1}
    file.write_text(json.dumps(told))

    (problem,) = problems(copy_of_worked)

    assert problem == f"{file}: changed since it was written (its name is the hash of its content)"

    file.unlink()

    assert f"{file}: gone; there are scores made with it" in problems(copy_of_worked)


def test_an_edited_decision_is_found(copy_of_worked: Loop) -> None:
    edit_database(copy_of_worked, "UPDATE decisions SET value_json = '\"gamma\"' WHERE id = 4")

    assert any("was changed after it was written" in problem for problem in problems(copy_of_worked))


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (
            "UPDATE queue_items SET text = 'Another.' WHERE id = 3",
            "people are shown another text than its own",
        ),
        (
            "UPDATE queue_items SET text_sha256 = 'ab' WHERE id = 3",
            "people are shown another text than its own",
        ),
        (
            "UPDATE queue_items SET record_id = 'r-0' WHERE id = 3",
            "r-0: in the queue, but no record of the project",
        ),
    ],
)
def test_a_text_in_the_queue_that_is_not_the_records_is_found(
    statement: str, said: str, copy_of_worked: Loop
) -> None:
    edit_database(copy_of_worked, statement)

    assert any(said in problem for problem in problems(copy_of_worked))


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE audit SET actor = 'a-000000' WHERE seq = 30", "audit 30: the entry was changed"),
        ("UPDATE audit SET payload = '{}' WHERE seq = 30", "audit 30: the payload was changed"),
        ("UPDATE audit SET payload = 'no json' WHERE seq = 30", "audit 30: the payload was changed"),
        ("DELETE FROM audit WHERE seq = 30", "audit 30: entry missing"),
        ("DELETE FROM decisions WHERE id = 5", "row was deleted"),
        ("UPDATE decisions SET annotator_id = 'a-000000' WHERE id = 5", "was changed after it was written"),
    ],
)
def test_a_changed_history_is_found(statement: str, said: str, copy_of_worked: Loop) -> None:
    edit_database(copy_of_worked, statement)

    assert any(said in problem for problem in problems(copy_of_worked))


def test_a_cut_audit_tail_is_found_by_the_head_in_the_release(copy_of_worked: Loop) -> None:
    seq, _ = chain.head(copy_of_worked.db)
    entry = chain.entries(copy_of_worked.db)[seq - 31]
    edit_database(
        copy_of_worked,
        f"DELETE FROM decisions WHERE audit_seq > {entry['seq']}",
        f"DELETE FROM audit WHERE seq > {entry['seq']}",
        f"UPDATE audit_head SET seq = {entry['seq']}, hash = '{entry['hash']}'",
    )

    found = problems(copy_of_worked)

    assert any("the end of the chain was cut off" in problem for problem in found)
