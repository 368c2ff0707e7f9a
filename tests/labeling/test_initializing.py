"""A new project from a file: the guesses are right where they can be, and what is written can be read."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labeling.ingest import ingest
from labeling.initializing import initialize
from labeling.project_file import load_project
from labeling.record_store import record_ids
from schemas.errors import ProjectError, SourceError

ROWS = [
    {
        "uid": str(n),
        "body": f"A longer message about thing number {n}.",
        "topic": ("bill", "visit")[n % 2],
        "n": n,
    }
    for n in range(30)
]


def write(path: Path, rows: list[dict[str, object]] = ROWS) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        names = list(rows[0])
        lines = [",".join(names)] + [",".join(str(row[name]) for name in names) for row in rows]
        path.write_text("\n".join(lines) + "\n", "utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.mark.parametrize("name", ["messages.csv", "messages.jsonl", "messages.parquet"])
def test_text_id_and_labels_are_guessed_from_a_file(name: str, tmp_path: Path) -> None:
    created = initialize(tmp_path / "inbox", task="classification", source=write(tmp_path / name))

    project, folder = load_project(tmp_path / "inbox")
    (source,) = project.sources
    assert [path.name for path in created] == ["project.yaml", "guideline.md", "project.schema.json"]
    assert project.name == "inbox"
    assert (source.text, source.id, source.gold) == ("body", "uid", None)
    assert set(project.label_schema.names) == {"bill", "visit"}
    ingest(project, folder)
    assert len(record_ids(project, folder)) == 30


def test_without_a_file_there_are_places_to_fill_in(tmp_path: Path) -> None:
    initialize(tmp_path / "inbox", task="classification", source=None)

    project, _ = load_project(tmp_path / "inbox")
    assert len(project.label_schema.names) == 2
    assert project.sources[0].text == "text"


@pytest.mark.parametrize("task", ["classification", "multilabel", "entities", "pairs"])
def test_every_task_type_gets_a_project_that_loads(task: str, tmp_path: Path) -> None:
    initialize(tmp_path / "p", task=task, source=write(tmp_path / "messages.csv"))

    assert load_project(tmp_path / "p")[0].label_schema.task.value == task


def test_a_project_that_is_there_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "project.yaml").write_text("mine")

    with pytest.raises(ProjectError) as caught:
        initialize(tmp_path, task="classification", source=None)

    assert caught.value.found == "a project"
    assert (tmp_path / "project.yaml").read_text() == "mine"


@pytest.mark.parametrize("name", ["guideline.md", "project.schema.json"])
def test_a_file_that_is_there_is_kept_and_not_said_to_be_made(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")

    created = initialize(tmp_path, task="classification", source=None)

    assert (tmp_path / name).read_text() == "mine"
    made = {"project.yaml", "guideline.md", "project.schema.json"} - {name}
    assert {path.name for path in created} == made


@pytest.mark.parametrize(
    "folder", ["2024", "true", "null", "1e5", "0x10", "Ünïcode Ördner", "-x-", "a" * 120, "No", "...x"]
)
def test_any_folder_name_gives_a_project_that_loads(folder: str, tmp_path: Path) -> None:
    initialize(tmp_path / folder, task="classification", source=None)

    assert load_project(tmp_path / folder)[0].name


def test_labels_that_read_alike_are_not_guessed(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "label": ("Spam", "spam", "ham")[n % 3]} for n in range(30)]

    initialize(tmp_path / "p", task="classification", source=write(tmp_path / "rows.jsonl", rows))

    assert load_project(tmp_path / "p")[0].label_schema.names == ("first label", "second label")


def test_labels_with_quotes_colons_and_other_scripts_survive(tmp_path: Path) -> None:
    names = ['say "yes": # now', "日本語", "b\u2028c", "emoji 😀"]
    rows = [{"text": f"text {n}", "label": names[n % 3]} for n in range(30)]

    initialize(tmp_path / "p", task="classification", source=write(tmp_path / "rows.jsonl", rows))

    assert set(load_project(tmp_path / "p")[0].label_schema.names) >= {'say "yes": # now', "日本語"}


def test_a_column_without_a_name_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "pandas.csv"  # as pandas writes its index
    file.write_text(",text,label\n" + "".join(f"{n},some text {n},{'ab'[n % 2]}\n" for n in range(30)))

    initialize(tmp_path / "p", task="classification", source=file)

    project, _ = load_project(tmp_path / "p")
    assert project.sources[0].text == "text"
    assert set(project.label_schema.names) == {"a", "b"}


def test_a_broken_first_line_does_not_stop_the_guessing(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("{broken\n" + "".join(json.dumps(row) + "\n" for row in ROWS))

    initialize(tmp_path / "p", task="classification", source=file)

    assert load_project(tmp_path / "p")[0].sources[0].text == "body"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("none.csv", None),
        ("empty.csv", b""),
        ("rows.xlsx", b"PK"),
        ("rows.parquet", b"PAR1"),
        ("rows.jsonl", b"[1]\n[2]\n"),
        ("rows.csv", b",,\n1,2,3\n"),
        ("utf16.csv", "text\nhello\n".encode("utf-16")),
    ],
)
def test_a_file_that_cannot_be_guessed_from_is_a_clear_error_and_writes_nothing(
    name: str, content: bytes | None, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)

    with pytest.raises(SourceError) as caught:
        initialize(tmp_path / "p", task="classification", source=tmp_path / name)

    assert name in caught.value.path
    str(caught.value).encode("utf-8")
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (b"id;text;label\n1;a message;good\n", "semicolons between the columns"),
        (b"id\ttext\tlabel\n1\ta message\tgood\n", "tabs between the columns"),
        ("id,text\n1,a message\n".encode("utf-16"), "a file in UTF-16"),
    ],
)
def test_what_is_no_csv_of_commas_in_utf8_is_not_taken_for_one_column_of_texts(
    raw: bytes, found: str, tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_bytes(raw)

    with pytest.raises(SourceError, match=found) as caught:
        initialize(tmp_path / "project", task="classification", source=tmp_path / "rows.csv")

    assert "CSV UTF-8" in caught.value.next_step
    assert not (tmp_path / "project").exists()
