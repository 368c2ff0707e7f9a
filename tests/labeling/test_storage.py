"""Tables survive kills, full disks and damage, or say exactly what is broken."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_projects import SmallDisk

from labeling import storage
from labeling.storage import (
    MANIFEST,
    Table,
    project_lock,
    read_json,
    write_bytes,
    write_content_addressed,
    write_json,
)
from schemas.errors import BusyError, StorageError
from schemas.tables import TABLES_VERSION

ROOT = Path(__file__).resolve().parent.parent.parent
LAYOUT = pa.schema([pa.field("record_id", pa.string(), nullable=False), pa.field("value", pa.int64())])


def rows(start: int, count: int) -> list[dict[str, object]]:
    return [{"record_id": f"r{number:05d}", "value": number} for number in range(start, start + count)]


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """Three parts of 50 rows."""
    made = Table(tmp_path / "table", LAYOUT)
    for start in (0, 50, 100):
        made.append(rows(start, 50), meta={"from": start})
    return made


def leftovers(folder: Path) -> list[str]:
    listed = {part.path for part in Table(folder, LAYOUT).parts()}
    return sorted(path.name for path in folder.iterdir() if path.name not in listed | {MANIFEST, "filler"})


# -- committing ------------------------------------------------------------------------------------------------------


def test_what_was_appended_is_read_back_in_commit_order(table: Table) -> None:
    assert table.read()["value"].to_list() == list(range(150))
    assert [(part.rows, part.meta["from"]) for part in table.parts()] == [(50, 0), (50, 50), (50, 100)]
    assert table.rows() == 150


def test_a_table_nobody_wrote_is_empty_with_the_right_columns(tmp_path: Path) -> None:
    table = Table(tmp_path / "none", LAYOUT)

    assert not table.exists
    assert table.read().columns == ["record_id", "value"]
    assert table.read(["value"]).columns == ["value"]
    assert table.verify() == []


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(
        st.tuples(st.text(max_size=20), st.none() | st.integers(-(2**63), 2**63 - 1)), max_size=12
    ),
    cuts=st.sets(st.integers(0, 12), max_size=3),
)
def test_the_content_hash_does_not_depend_on_how_rows_were_cut_into_parts(
    tmp_path_factory: pytest.TempPathFactory, values: list[tuple[str, int | None]], cuts: set[int]
) -> None:
    everything = [
        {"record_id": f"{place:02d}{key}", "value": value} for place, (key, value) in enumerate(values)
    ]
    whole, cut = (Table(tmp_path_factory.mktemp("t"), LAYOUT) for _ in range(2))
    whole.append(everything)
    edges = [0, *sorted(cuts), len(everything)]
    for start, end in zip(edges, edges[1:], strict=False):
        cut.append(everything[start:end])

    assert cut.content_hash() == whole.content_hash()
    assert cut.read().rows() == [(row["record_id"], row["value"]) for row in everything]


def test_the_content_hash_can_leave_columns_out(tmp_path: Path) -> None:
    one, two = Table(tmp_path / "1", LAYOUT), Table(tmp_path / "2", LAYOUT)
    one.append([{"record_id": "a", "value": 1}])
    two.append([{"record_id": "a", "value": 2}])

    assert one.content_hash() != two.content_hash()
    assert one.content_hash(leave_out=["value"]) == two.content_hash(leave_out=["value"])


def test_rows_of_another_layout_are_refused(table: Table) -> None:
    with pytest.raises((pa.ArrowException, ValueError, TypeError)):
        table.append([{"record_id": "x", "value": "not a number"}])
    assert table.rows() == 150
    assert leftovers(table.folder) == []


def test_a_part_without_its_manifest_line_does_not_exist(table: Table) -> None:
    pq.write_table(pa.Table.from_pylist(rows(900, 5), LAYOUT), table.folder / "part-stray.parquet")

    assert table.rows() == table.read().height == 150
    assert table.verify() == [
        f"{table.folder / 'part-stray.parquet'}: not listed in the manifest (ignored by readers)"
    ]


@pytest.mark.parametrize("keep", [1, 40, 120])
def test_a_torn_manifest_line_is_a_part_that_was_never_committed(table: Table, keep: int) -> None:
    manifest = table.folder / MANIFEST
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(b"".join(lines[:2]) + lines[2][:keep])

    assert table.rows() == 100
    table.append(rows(500, 5))
    assert table.read()["value"].to_list() == [*range(100), *range(500, 505)]


def test_a_damaged_manifest_line_is_named_and_nothing_is_read(table: Table) -> None:
    manifest = table.folder / MANIFEST
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(lines[0] + b"{rubbish}\n" + lines[2])

    with pytest.raises(StorageError) as caught:
        table.read()

    assert caught.value.path == f"{manifest}, line 2"
    assert "backup" in caught.value.next_step
    assert len(table.verify()) == 1


def test_a_table_of_a_newer_version_is_left_alone(table: Table) -> None:
    manifest = table.folder / MANIFEST
    newer = json.loads(manifest.read_bytes().splitlines()[0]) | {
        "version": TABLES_VERSION + 1,
        "more": "keys",
    }
    manifest.write_bytes(json.dumps(newer).encode() + b"\n")

    with pytest.raises(StorageError) as caught:
        table.read()

    assert (caught.value.found, caught.value.expected) == (
        f"a table of layout version {TABLES_VERSION + 1}",
        f"at most {TABLES_VERSION}",
    )
    assert "newer Countersign" in caught.value.next_step


_APPENDS = """
import sys
from pathlib import Path
import pyarrow as pa
from labeling.storage import Table
layout = pa.schema([pa.field("record_id", pa.string(), nullable=False), pa.field("value", pa.int64())])
table = Table(Path(sys.argv[1]), layout)
print("ready", flush=True)
for number in range(10_000):
    table.append([{"record_id": f"r{number:05d}-{row}", "value": number} for row in range(20)])
    print(number, flush=True)
"""


def test_every_part_told_before_a_kill_is_there_and_whole(tmp_path: Path) -> None:
    dice = random.Random(5)
    for attempt in range(2):
        folder = tmp_path / f"killed-{attempt}"
        process = subprocess.Popen(
            [sys.executable, "-c", _APPENDS, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        told = 0
        for _ in range(dice.randint(5, 60)):
            told = int(process.stdout.readline()) + 1
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate()
        told += len(rest.splitlines())

        table = Table(folder, LAYOUT)
        assert told <= len(table.parts()) <= told + 1
        assert sorted(set(table.read()["value"])) == list(range(len(table.parts())))
        table.append(rows(0, 1))
        assert all("not listed" in problem for problem in table.verify())


# -- damage ----------------------------------------------------------------------------------------------------------


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)


def test_a_flipped_bit_anywhere_is_found_before_a_row_is_read(table: Table) -> None:
    file = table.folder / table.parts()[1].path
    original = file.read_bytes()
    for at in range(0, len(original), max(len(original) // 40, 1)):
        file.write_bytes(original)
        flip(file, at)

        with pytest.raises(StorageError) as caught:
            table.read()
        assert caught.value.path == str(file)
        assert table.verify() == [f"{file}: its content is not what the manifest lists (SHA-256 differs)"]


def test_parquet_alone_would_not_notice_most_flipped_bits(tmp_path: Path) -> None:
    # The control: why the manifest is there. Values are random, as embeddings and scores are.
    dice = random.Random(1)
    layout = pa.schema([("record_id", pa.string()), ("value", pa.float64())])
    table = Table(tmp_path / "random", layout)
    part = table.append([{"record_id": f"r{n}", "value": dice.random()} for n in range(2000)])
    file = tmp_path / "random" / part.path
    original, truth = file.read_bytes(), pq.read_table(file)
    data_pages = range(len(original) // 3, len(original) - 2000)
    silent = 0
    for _ in range(60):
        file.write_bytes(original)
        flip(file, dice.choice(data_pages))
        try:
            silent += not pq.read_table(file).equals(truth)
        except (pa.ArrowException, OSError):
            pass
        with pytest.raises(StorageError):
            table.read()

    assert silent >= 30


@pytest.mark.parametrize("damage", ["cut", "grown", "swapped", "deleted", "emptied"])
def test_a_damaged_part_is_named(table: Table, damage: str) -> None:
    first, second, _ = (table.folder / part.path for part in table.parts())
    if damage == "cut":
        second.write_bytes(second.read_bytes()[:-100])
    elif damage == "grown":
        second.write_bytes(second.read_bytes() + b"\0")
    elif damage == "swapped":
        shutil.copy(first, second)
    elif damage == "deleted":
        second.unlink()
    else:
        second.write_bytes(b"")

    with pytest.raises(StorageError) as caught:
        table.read()

    assert caught.value.path == str(second)
    assert "backup" in caught.value.next_step
    (problem,) = table.verify()
    assert problem.startswith(f"{second}: ")


def test_a_part_is_read_again_after_it_was_restored(table: Table, tmp_path: Path) -> None:
    file = table.folder / table.parts()[0].path
    shutil.copy(file, tmp_path / "backup")
    flip(file, 100)
    with pytest.raises(StorageError):
        table.read()
    shutil.copy(tmp_path / "backup", file)

    assert table.read().height == 150


# -- disks -----------------------------------------------------------------------------------------------------------


def test_a_full_disk_refuses_the_part_and_goes_on_once_there_is_room(small_disk: SmallDisk) -> None:
    table = Table(small_disk.root / "table", LAYOUT)
    table.append(rows(0, 10))
    for leave in range(0, 24_576, 4096):
        small_disk.fill(leave)
        before = len(table.parts())
        try:
            table.append([{"record_id": os.urandom(64).hex(), "value": row} for row in range(80)])
        except StorageError as error:
            assert error.found == "a full disk"
            assert "run the same command again" in error.next_step
            assert len(table.parts()) == before
        small_disk.free()
        assert leftovers(table.folder) == []
        assert table.verify() == []

    table.append(rows(10, 10))
    assert table.read()["value"].to_list()[-1] == 19


def test_a_failed_manifest_line_leaves_neither_a_line_nor_a_part(small_disk: SmallDisk) -> None:
    table = Table(small_disk.root / "table", LAYOUT)
    part = table.append(rows(0, 1))
    size = (table.folder / MANIFEST).stat().st_size
    part_bytes = -(-part.bytes // 4096) * 4096
    small_disk.fill(leave=part_bytes)  # room for the part, not for its line

    with pytest.raises(StorageError) as caught:
        table.append(rows(77, 1), meta={"note": "y" * 8000})

    assert caught.value.found == "a full disk"
    assert (table.folder / MANIFEST).stat().st_size == size
    assert leftovers(table.folder) == []
    small_disk.free()
    table.append(rows(77, 1))
    assert 77 in table.read()["value"]


def test_a_read_only_folder_is_refused_and_what_is_stored_stays_readable(small_disk: SmallDisk) -> None:
    table = Table(small_disk.root / "table", LAYOUT)
    table.append(rows(0, 10))
    small_disk.read_only()

    with pytest.raises(StorageError) as caught:
        table.append(rows(10, 10))

    assert caught.value.found == "a folder that cannot be written"
    assert table.read().height == 10
    with pytest.raises(StorageError), project_lock(small_disk.root / "lock", "test"):
        pass
    small_disk.read_only(on=False)
    assert table.append(rows(10, 10)).rows == 10


def test_a_small_file_keeps_its_old_content_when_the_disk_is_full(small_disk: SmallDisk) -> None:
    write_json(small_disk.root / "plan.json", {"round": 1})
    small_disk.fill()

    with pytest.raises(StorageError) as caught:
        write_json(small_disk.root / "plan.json", {"round": 2, "text": "x" * 9000})

    assert caught.value.found == "a full disk"
    assert read_json(small_disk.root / "plan.json") == {"round": 1}
    assert sorted(path.name for path in small_disk.root.iterdir()) == ["filler", "plan.json"]


def test_the_lock_on_a_full_disk_is_a_clear_refusal(small_disk: SmallDisk) -> None:
    small_disk.fill()

    with pytest.raises(StorageError) as caught, project_lock(small_disk.root / "lock", "test"):
        pass

    assert caught.value.found == "a full disk"


# -- small files -----------------------------------------------------------------------------------------------------


def test_nan_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"value": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_a_missing_json_file_says_that_an_earlier_phase_writes_it(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        read_json(tmp_path / "plan.json")
    assert "earlier phase" in caught.value.expected


def test_broken_json_is_a_storage_error(tmp_path: Path) -> None:
    write_bytes(tmp_path / "x.json", b"{")
    with pytest.raises(StorageError) as caught:
        read_json(tmp_path / "x.json")
    assert caught.value.path == str(tmp_path / "x.json")


def test_equal_content_has_one_id_whatever_the_order_of_its_keys(tmp_path: Path) -> None:
    first = write_content_addressed(tmp_path, {"a": 1, "b": "é"})
    second = write_content_addressed(tmp_path, {"b": "é", "a": 1})

    assert first == second
    assert [path.stem for path in tmp_path.iterdir()] == [first]


# -- one run at a time -----------------------------------------------------------------------------------------------


def _hold(path: Path, held: Event, let_go: Event) -> None:
    with project_lock(path, "pre-annotation"):
        held.set()
        let_go.wait(30)


@pytest.fixture
def other_process(tmp_path: Path) -> Callable[[], tuple[multiprocessing.Process, Event]]:
    def start() -> tuple[multiprocessing.Process, Event]:
        spawn = multiprocessing.get_context("spawn")
        held, let_go = spawn.Event(), spawn.Event()
        process = spawn.Process(target=_hold, args=(tmp_path / "lock", held, let_go))
        process.start()
        assert held.wait(30)
        return process, let_go  # type: ignore[return-value]

    return start


def test_a_second_run_of_a_project_is_refused_and_told_who_is_at_work(
    other_process: Callable[[], tuple[multiprocessing.Process, Event]], tmp_path: Path
) -> None:
    process, let_go = other_process()

    with pytest.raises(BusyError) as caught, project_lock(tmp_path / "lock", "ingest"):
        pass

    assert caught.value.found == f"process {process.pid} (pre-annotation) at work on this project"
    let_go.set()
    process.join()
    with project_lock(tmp_path / "lock", "ingest"):
        pass


def test_the_lock_of_a_killed_run_is_free(
    other_process: Callable[[], tuple[multiprocessing.Process, Event]], tmp_path: Path
) -> None:
    process, _ = other_process()
    process.kill()
    process.join()

    with project_lock(tmp_path / "lock", "ingest"):
        assert f"process {os.getpid()} (ingest)" in (tmp_path / "lock").read_text()


def test_a_run_cannot_take_its_own_lock_twice(tmp_path: Path) -> None:
    with (
        project_lock(tmp_path / "lock", "ingest"),
        pytest.raises(BusyError),
        project_lock(tmp_path / "lock", "qa"),
    ):
        pass


def test_the_cache_of_checked_parts_is_keyed_by_what_the_file_is(table: Table) -> None:
    table.read()
    file = table.folder / table.parts()[0].path
    stat = file.stat()

    assert (
        storage._verified[(str(file), stat.st_mtime_ns, stat.st_size, stat.st_ino)] == table.parts()[0].sha256
    )


def test_a_column_that_came_later_is_null_in_an_older_part(tmp_path: Path) -> None:
    older = Table(tmp_path / "older", LAYOUT)
    older.append(rows(0, 2))
    manifest = older.folder / MANIFEST
    manifest.write_text(manifest.read_text().replace(f'"version":{TABLES_VERSION}', '"version":1'))
    now = Table(older.folder, LAYOUT.append(pa.field("details", pa.string())))
    now.append([{"record_id": "r9", "value": 9, "details": "{}"}])

    assert now.read(["record_id", "details"]).rows() == [("r00000", None), ("r00001", None), ("r9", "{}")]
    assert now.read().columns == ["record_id", "value", "details"]
