"""Sources become records as they are, or are set aside with a reason; nothing already stored is harmed."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_projects import ProjectFactory

from labeling.ingest import IngestCounts, ingest, read_rows
from labeling.paths import ProjectFolder
from labeling.record_store import record_ids, records_table, texts_of
from labeling.storage import Table
from schemas import tables
from schemas.errors import SourceError
from schemas.project import Limits, Project, Source
from schemas.values import TaskType

ROOT = Path(__file__).resolve().parent.parent.parent
Make = Callable[..., tuple[Project, ProjectFolder]]


@pytest.fixture
def source_of(project_folder: ProjectFactory, tmp_path: Path) -> Make:
    """A project whose one source has exactly these bytes."""

    def make(content: bytes, name: str = "records.csv", **settings: Any) -> tuple[Project, ProjectFolder]:
        source = {"path": name, **settings.pop("source", {})}
        project, folder = project_folder([], source=source, **settings)
        (folder.root / name).write_bytes(content)
        return project, folder

    return make


def only(counts: dict[str, IngestCounts]) -> IngestCounts:
    (count,) = counts.values()
    return count


def records_of(project: Project, folder: ProjectFolder) -> pl.DataFrame:
    return records_table(project, folder).read().sort("source_row")


def quarantine_of(folder: ProjectFolder) -> pl.DataFrame:
    return Table(folder.quarantine, tables.quarantine(TaskType.CLASSIFICATION)).read()


def refusals(project: Project, folder: ProjectFolder) -> list[tuple[int, str]]:
    ingest(project, folder)
    return list(quarantine_of(folder).select("source_row", "reason").iter_rows())


def refused_with(make: Make, content: bytes, name: str = "records.csv", **settings: Any) -> SourceError:
    project, folder = make(content, name, **settings)
    with pytest.raises(SourceError) as caught:
        ingest(project, folder)
    assert record_ids(project, folder) == []
    assert quarantine_of(folder).height == 0
    return caught.value


# -- what is taken ---------------------------------------------------------------------------------------------------


def test_rows_become_records_with_their_text_untouched(source_of: Make) -> None:
    text = "  Zoë\u0301 said “hi”\r\n\t\u200band left  "
    project, folder = source_of(
        json.dumps({"key": 7, "text": text, "who": "Ann"}).encode() + b"\n",
        "records.jsonl",
        source={"id": "key", "metadata": ["who"]},
    )

    count = only(ingest(project, folder))

    (row,) = records_of(project, folder).to_dicts()
    assert (count.rows, count.added, sum(count.quarantined.values())) == (1, 1, 0)
    assert row["text"] == text
    assert (row["source"], row["source_row"], row["source_id"], row["char_count"]) == (
        "records.jsonl",
        1,
        "7",
        len(text),
    )
    assert dict(row["metadata"]) == {"who": "Ann"}


def test_the_same_rows_get_the_same_ids_from_csv_jsonl_and_parquet(source_of: Make, tmp_path: Path) -> None:
    rows = [{"key": "1", "text": "first, with comma"}, {"key": "2", "text": 'second "quoted"\nand a line'}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["key", "text"])
        writer.writeheader()
        writer.writerows(rows)
    contents = {
        "a.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode(),
        "a.csv": (tmp_path / "rows.csv").read_bytes(),
        "a.parquet": (tmp_path / "rows.parquet").read_bytes(),
    }
    found = []
    for name, content in contents.items():
        project, folder = source_of(content, name, source={"id": "key"})
        ingest(project, folder)
        found.append(sorted(records_of(project, folder).select("record_id", "text").iter_rows()))
        for file in folder.records.iterdir():
            file.unlink()

    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 2


def test_a_gold_column_that_was_named_too_late_is_told(source_of: Make) -> None:
    project, folder = source_of(b"text,truth\none,alpha\ntwo,beta\n", labels=["alpha", "beta"])
    assert only(ingest(project, folder)).without_gold == 0
    (source,) = project.sources
    named = project.model_copy(update={"sources": (source.model_copy(update={"gold": "truth"}),)})
    with (folder.root / "records.csv").open("a") as file:
        file.write("three,alpha\n")

    count = only(ingest(named, folder))

    assert (count.known, count.added, count.without_gold) == (2, 1, 2)
    assert records_of(named, folder)["gold"].to_list() == [None, None, "alpha"]
    assert only(ingest(named, folder)).without_gold == 0, "told once"


def test_a_text_twice_is_linked_to_its_first_record_and_not_asked_about(source_of: Make) -> None:
    project, folder = source_of(b"text\nsame\nother\nsame\nsame\n")

    count = only(ingest(project, folder))

    rows = records_of(project, folder)
    first = rows["record_id"][0]
    assert (count.added, count.duplicates) == (4, 2)
    assert rows["duplicate_of"].to_list() == [None, None, first, first]
    assert len(record_ids(project, folder)) == 2


def test_texts_that_differ_only_in_composition_stay_two_texts(source_of: Make) -> None:
    project, folder = source_of("text\ncaf\u00e9\ncafe\u0301\n".encode())

    ingest(project, folder)

    assert len(record_ids(project, folder)) == 2


def test_a_byte_order_mark_is_no_part_of_the_first_column(source_of: Make) -> None:
    project, folder = source_of(b"\xef\xbb\xbftext\nhello\n")

    assert only(ingest(project, folder)).added == 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=8))
def test_every_text_of_a_jsonl_file_is_stored_exactly_or_set_aside(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")

    rows = list(read_rows(path, Source(path="rows.jsonl"), Limits()))

    assert [row.values["text"] for row in rows if row.values is not None] == texts


# -- what is refused as a whole --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["records.csv", "records.jsonl", "records.parquet"])
def test_an_empty_file_is_refused(source_of: Make, name: str) -> None:
    error = refused_with(source_of, b"", name)

    assert (error.found, error.expected) == ("an empty file", "at least one record")
    assert error.path.endswith(name)


def test_a_header_without_rows_is_refused(source_of: Make) -> None:
    error = refused_with(source_of, b"text,id\n")

    assert (error.found, error.expected) == ("no rows", "at least one record")


def test_a_missing_file_is_refused(source_of: Make) -> None:
    project, folder = source_of(b"text\na\n")
    (folder.root / "records.csv").unlink()

    with pytest.raises(SourceError) as caught:
        ingest(project, folder)

    assert caught.value.found == "no such file"


def test_a_csv_without_the_text_column_names_the_columns_there_are(source_of: Make) -> None:
    error = refused_with(source_of, b"body,id\nhello,1\n")

    assert error.path.endswith("records.csv: column 'text'")
    assert error.found == "columns body, id"
    assert "sources[]" in error.next_step


def test_a_csv_with_the_text_column_twice_is_refused(source_of: Make) -> None:
    error = refused_with(source_of, b"text,text\na,b\n")

    assert (error.found, error.expected) == ("it twice", "it once")


def test_a_jsonl_file_without_the_text_key_is_refused(source_of: Make) -> None:
    error = refused_with(source_of, b'{"body": "x"}\n' * 20, "records.jsonl")

    assert error.path.endswith("records.jsonl: key 'text'")


def test_a_long_jsonl_file_without_the_text_key_is_refused_before_anything_is_stored(source_of: Make) -> None:
    refused_with(source_of, b'{"body": "x"}\n' * 40_000, "records.jsonl")


def test_a_parquet_file_without_the_text_column_is_refused(source_of: Make, tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "x.parquet")

    error = refused_with(source_of, (tmp_path / "x.parquet").read_bytes(), "records.parquet")

    assert error.found == "columns body"


def test_a_file_that_is_no_parquet_is_refused(source_of: Make) -> None:
    error = refused_with(source_of, b"PAR1 but not really PAR1", "records.parquet")

    assert error.expected == "a Parquet file"


def test_a_utf16_file_is_refused_with_a_message_that_can_be_printed(source_of: Make) -> None:
    error = refused_with(source_of, "text\nhéllo\n".encode("utf-16"))

    str(error).encode("utf-8")
    assert error.path.endswith("column 'text'")


# -- rows that are set aside -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "caf\xe9"}', "invalid UTF-8"),
        (b'{"text": "a \\ud800 b"}', "lone surrogate"),
        (b'{"text": "a \\u0000 b"}', "NUL character"),
        (b'{"text": "a", "text": "b"}', "duplicate key"),
        (b'{"text": NaN}', "broken JSON"),
        (b'{"id": 1e999, "text": "a"}', "broken JSON"),
        (b'{"text": "cut off', "broken JSON"),
        (b'["text"]', "no object"),
        (b'{"text": 5}', "no text"),
        (b'{"text": null}', "no text"),
        (b'{"other": "a"}', "no text"),
        (b'{"text": " \\n\\t "}', "empty text"),
        (b'{"text": ' + b"[" * 40 + b"]" * 40 + b"}", "nested too deep"),
        (b'{"text": "a", "more": ' + b"9" * 5000 + b"}", "broken JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_line_is_set_aside_and_the_file_goes_on(source_of: Make, line: bytes, reason: str) -> None:
    project, folder = source_of(b'{"text": "before"}\n' + line + b'\n{"text": "after"}\n', "records.jsonl")

    assert refusals(project, folder) == [(2, reason)]
    assert records_of(project, folder)["text"].to_list() == ["before", "after"]


def test_a_set_aside_row_says_what_was_found_and_keeps_its_bytes(source_of: Make) -> None:
    project, folder = source_of(b'{"text": "caf\xe9"}\n{"text": "fine"}\n', "records.jsonl")

    ingest(project, folder)

    (row,) = quarantine_of(folder).to_dicts()
    assert (row["found"], row["expected"], row["raw"]) == ("byte 0xe9", "UTF-8", b'{"text": "caf\xe9"}\n')


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"2,caf\xe9", "invalid UTF-8"),
        (b"2,a\x00b", "NUL character"),
        (b"2,a,b", "wrong number of cells"),
        (b"2", "wrong number of cells"),
        (b"2,", "empty text"),
        (b'2,"a"b', "broken CSV"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_csv_row_is_set_aside_and_the_file_goes_on(source_of: Make, row: bytes, reason: str) -> None:
    project, folder = source_of(b"key,text\n1,before\n" + row + b"\n3,after\n", source={"id": "key"})

    assert refusals(project, folder) == [(2, reason)]
    assert records_of(project, folder)["text"].to_list() == ["before", "after"]


def test_invalid_utf8_inside_parquet_is_set_aside(source_of: Make, tmp_path: Path) -> None:
    broken = pa.StringArray.from_buffers(
        2, pa.py_buffer(b"\x00\0\0\0\x02\0\0\0\x04\0\0\0"), pa.py_buffer(b"\xff\xfeok")
    )
    pq.write_table(pa.table({"text": broken}), tmp_path / "x.parquet")
    project, folder = source_of((tmp_path / "x.parquet").read_bytes(), "records.parquet")

    assert refusals(project, folder) == [(1, "invalid UTF-8")]
    assert records_of(project, folder)["text"].to_list() == ["ok"]


@pytest.mark.parametrize("name", ["records.csv", "records.jsonl", "records.parquet"])
def test_a_record_of_ten_megabytes_is_set_aside(source_of: Make, tmp_path: Path, name: str) -> None:
    texts = ["before", "line of words\n" * 700_000, "after"]
    path = tmp_path / name
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"text": texts}), path)
    elif name.endswith(".jsonl"):
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    else:
        path.write_text("text\n" + "".join(f'"{text}"\n' for text in texts), "utf-8")
    project, folder = source_of(path.read_bytes(), name)

    assert refusals(project, folder) == [(2, "text too large")]
    assert records_of(project, folder)["text"].to_list() == ["before", "after"]
    assert len(quarantine_of(folder)["raw"][0]) <= 4096


def test_a_gold_value_outside_the_labels_sets_the_row_aside(source_of: Make) -> None:
    project, folder = source_of(b"text,truth\na,alpha\nb,Alpha\nc,\n", source={"gold": "truth"})

    assert refusals(project, folder) == [(2, "unknown gold value")]
    assert records_of(project, folder)["gold"].to_list() == ["alpha", None]


def test_one_id_with_two_texts_keeps_the_first_and_sets_the_second_aside(source_of: Make) -> None:
    project, folder = source_of(b"key,text\n1,first\n1,second\n1,first\n", source={"id": "key"})

    assert refusals(project, folder) == [(2, "duplicate id with different text"), (3, "repeated row")]
    assert records_of(project, folder)["text"].to_list() == ["first"]


def test_a_row_without_the_id_it_should_have_is_set_aside(source_of: Make) -> None:
    project, folder = source_of(b"key,text\n,first\n2,second\n", source={"id": "key"})

    assert refusals(project, folder) == [(1, "no id")]


def test_a_line_made_to_stall_the_parser_is_read_in_no_time(source_of: Make) -> None:
    # Quadratic time in the length would be hours.
    hostile = b'{"text": "a", "x": ' + b"[" * 33 + b'"' + b'\\"' * 1_500_000 + b"\n"
    project, folder = source_of(hostile + b'{"text": "after"}\n', "records.jsonl")

    assert refusals(project, folder) == [(1, "nested too deep")]


def test_a_parquet_bomb_is_refused_by_its_declared_size(source_of: Make, tmp_path: Path) -> None:
    # 40 million equal strings: dictionary and run-length coding make them 6.4 GB in a few kilobytes.
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 8_000_000, pa.int32()), pa.array(["x" * 800]))
    pq.write_table(
        pa.table({"text": column}), tmp_path / "bomb.parquet", compression="zstd", row_group_size=8_000_000
    )
    content = (tmp_path / "bomb.parquet").read_bytes()
    declared = pq.ParquetFile(tmp_path / "bomb.parquet").metadata.row_group(0).total_byte_size
    if declared <= 5_000 * (1 << 20):
        project, folder = source_of(content, "records.parquet")
        rows = read_rows(folder.root / "records.parquet", project.sources[0], project.limits)
        assert next(rows).number == 1  # streamed, never unpacked at once
        return
    assert "decompression bomb" in refused_with(source_of, content, "records.parquet").next_step


# -- again, and after an interruption --------------------------------------------------------------------------------


def lines(rows: Sequence[tuple[object, str]]) -> bytes:
    return b"".join(json.dumps({"key": key, "text": text}).encode() + b"\n" for key, text in rows)


def test_ingesting_the_same_file_again_adds_nothing_and_reads_nothing(source_of: Make) -> None:
    project, folder = source_of(lines([(1, "a"), (2, "b")]), "records.jsonl", source={"id": "key"})
    ingest(project, folder)
    before = sorted(path.name for path in folder.records.iterdir())

    count = only(ingest(project, folder))

    assert (count.rows, count.added, count.known) == (0, 0, 2)
    assert sorted(path.name for path in folder.records.iterdir()) == before


@pytest.mark.parametrize("source", [{"id": "key"}, {}], ids=["with ids", "without ids"])
def test_a_grown_file_adds_only_its_new_rows(source_of: Make, source: dict[str, str]) -> None:
    old = [(1, "a"), (2, "b"), (3, "a")]
    project, folder = source_of(lines(old) + b"broken\n", "records.jsonl", source=source)
    ingest(project, folder)
    earlier = set(records_of(project, folder)["record_id"])
    (folder.root / "records.jsonl").write_bytes(lines(old) + b"broken\n" + lines([(4, "c"), (5, "a")]))

    count = only(ingest(project, folder))

    assert (count.rows, count.added, count.known, sum(count.quarantined.values())) == (6, 2, 3, 0)
    assert earlier < set(records_of(project, folder)["record_id"])
    assert quarantine_of(folder).height == 1


def test_a_changed_text_under_a_known_id_is_set_aside_and_the_old_record_stays(source_of: Make) -> None:
    project, folder = source_of(lines([(1, "old")]), "records.jsonl", source={"id": "key"})
    ingest(project, folder)
    (folder.root / "records.jsonl").write_bytes(lines([(1, "new")]))

    assert refusals(project, folder) == [(1, "duplicate id with different text")]
    assert records_of(project, folder)["text"].to_list() == ["old"]


def test_rows_that_come_again_in_another_file_are_the_same_records(project_folder: ProjectFactory) -> None:
    project, folder = project_folder([{"key": 1, "text": "a"}, {"key": 2, "text": "b"}], source={"id": "key"})
    ingest(project, folder)
    (folder.root / "march.jsonl").write_bytes(lines([(1, "a"), (2, "b"), (3, "c")]))
    both = (*project.sources, project.sources[0].model_copy(update={"path": "march.jsonl"}))
    project = project.model_copy(update={"sources": both})

    count = ingest(project, folder)["march.jsonl"]

    ids = record_ids(project, folder)
    assert (count.added, count.known) == (1, 2)
    assert len(ids) == len(set(ids)) == 3
    assert set(texts_of(project, folder, ids).values()) == {"a", "b", "c"}


def test_a_copy_found_in_a_later_ingest_is_linked_to_the_first_record_of_all(source_of: Make) -> None:
    project, folder = source_of(lines([(n, "same") for n in range(8)]), "records.jsonl", source={"id": "key"})
    ingest(project, folder)
    (folder.root / "records.jsonl").write_bytes(lines([(n, "same") for n in range(9)]))
    ingest(project, folder)

    rows = records_of(project, folder)

    assert rows["duplicate_of"].to_list() == [None] + [rows["record_id"][0]] * 8


_CHILD = """
import sys
from labeling.ingest import ingest
from labeling.project_file import load_project
import labeling.ingest as module
module.PART_ROWS = 500
project, folder = load_project(sys.argv[1])
print("ready", flush=True)
ingest(project, folder, progress=lambda rows: print(rows, flush=True))
"""


def child(folder: ProjectFolder, code: str = _CHILD) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder.root)], cwd=ROOT, stdout=subprocess.PIPE, text=True, bufsize=1
    )


def test_an_ingest_killed_in_the_middle_and_run_again_gives_the_same_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from small_projects import write_project

    rows = [{"key": n, "text": f"text {n % 2900}" if n % 7 else f"text {n % 50}"} for n in range(6000)]
    rows += [{"key": n * 11 % 6000, "text": rows[n * 11 % 6000]["text"]} for n in range(40)]  # repeated rows
    rows[700] = {"key": 700, "text": ""}
    whole = write_project(tmp_path / "whole", rows, source={"id": "key"})
    killed = write_project(tmp_path / "killed", rows, source={"id": "key"})
    monkeypatch.setattr("labeling.ingest.PART_ROWS", 500)
    ingest(*whole)

    for stop_after in (1, 4):
        process = child(killed[1])
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(stop_after):
            assert process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert 0 < len(record_ids(*killed)) < len(record_ids(*whole))
    ingest(*killed)

    assert records_table(*killed).content_hash() == records_table(*whole).content_hash()
    kept = [
        quarantine_of(folder).sort("source_row").drop("source").to_dicts() for _, folder in (whole, killed)
    ]
    assert kept[0] == kept[1]
    assert [row["reason"] for row in kept[0]] == ["empty text"] + ["repeated row"] * 40


# -- size ------------------------------------------------------------------------------------------------------------

_MEASURED = """
import resource, sys
from labeling.ingest import ingest
from labeling.project_file import load_project
project, folder = load_project(sys.argv[1])
seen = []
def note(rows):
    seen.append((rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
ingest(project, folder, progress=note)
print(seen[len(seen) // 4][1], seen[-1][1], seen[-1][0])
"""


def _grown(tmp_path: Path, rows: int) -> tuple[int, int]:
    """KiB of memory gained over the last three quarters of an ingest, and the rows read."""
    from small_projects import write_project

    project, folder = write_project(tmp_path / "large", [], source={"path": "rows.csv", "id": "key"})
    with (folder.root / "rows.csv").open("w") as file:
        file.write("key,text\n")
        file.writelines(f"{n},a short text number {n}\n" for n in range(rows))
    out, _ = child(folder, _MEASURED).communicate()
    quarter, end, read = map(int, out.split())
    assert len(record_ids(project, folder)) == rows
    return end - quarter, read


def test_memory_does_not_grow_with_two_hundred_thousand_rows(tmp_path: Path) -> None:
    grown_kib, read = _grown(tmp_path, 200_000)

    assert read == 200_000
    assert grown_kib < 40_000


@pytest.mark.campaign
def test_memory_does_not_grow_with_two_million_rows(tmp_path: Path) -> None:
    started = time.monotonic()
    grown_kib, read = _grown(tmp_path, 2_000_000)

    print(f"2,000,000 rows in {time.monotonic() - started:.0f} s, {grown_kib} KiB grown", file=sys.stderr)
    assert read == 2_000_000
    assert grown_kib < 60_000


def test_nothing_is_left_behind_in_the_temporary_folder(
    source_of: Make, monkeypatch: Any, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    project, folder = source_of(b"text\na\n")

    ingest(project, folder)

    assert os.listdir(scratch) == []
