"""Reads sources into records, strictly: a row is taken as it is or set aside with a reason, never mended.

One parser for each format, because libraries disagree in silence: Python's json keeps the last duplicate key and
Polars the first; Polars turns a lone surrogate into NUL. Text is never normalised.
"""

import csv
import hashlib
import json
import math
import re
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from labeling.paths import ProjectFolder
from labeling.storage import Table, sha256_of
from labeling.task_types import task_type
from schemas import tables
from schemas.errors import SourceError
from schemas.project import Limits, Project, Source
from schemas.values import Value

PART_ROWS = 16_384
FIRST_LINES = 1000  # fewer than a part: a wrong key is told before anything is stored
MAX_DEPTH = 32
RAW_BYTES = 4096
_ENCODE = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps builds an encoder a call
_SURROGATE = re.compile("[\ud800-\udfff]")
_STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)  # possessive: no backtracking on hostile lines


@dataclass(frozen=True)
class SourceRow:
    """A row as read: the wanted columns, or the reason why it was refused."""

    number: int
    values: Mapping[str, Any] | None
    reason: str = ""
    found: str = ""
    expected: str = ""
    raw: bytes = b""


@dataclass
class IngestCounts:
    """What one ingest did. `without_gold`: records that were read before the source's gold column was named."""

    rows: int = 0
    added: int = 0
    known: int = 0
    duplicates: int = 0
    without_gold: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)


def ingest(
    project: Project, folder: ProjectFolder, *, progress: Callable[[int], None] | None = None
) -> dict[str, IngestCounts]:
    """Adds what is new in the project's sources to the records table; keyed by source path.

    A source file whose bytes were read before is not read again. Rows are handled in parts of 16,384, so memory does
    not grow with the file.

    Raises:
        SourceError: a source is missing, empty, has no text column or is no file of its format. Records of other
            sources and of earlier ingests stay as they are.
    """
    counts: dict[str, IngestCounts] = {}
    records = Table(folder.records, tables.records(project.label_schema.task))
    quarantine = Table(folder.quarantine, tables.quarantine(project.label_schema.task))
    with _SeenTexts(records, quarantine) as seen:
        for source in project.sources:
            path = (folder.root / source.path).resolve()
            counts[source.path] = _ingest_one(
                project, source, path, seen=seen, records=records, quarantine=quarantine, progress=progress
            )
    return counts


def _ingest_one(
    project: Project,
    source: Source,
    path: Path,
    *,
    seen: "_SeenTexts",
    records: Table,
    quarantine: Table,
    progress: Callable[[int], None] | None,
) -> IngestCounts:
    counts = IngestCounts()
    rows = read_rows(path, source, project.limits)
    fingerprint = hashlib.sha256(
        f"{sha256_of(path)}|{source.model_dump_json()}|{project.limits.max_text_bytes}".encode()
    ).hexdigest()
    if any(meta.get("finished") == fingerprint for meta in records.metas() + quarantine.metas()):
        counts.known = _finished_rows(records, quarantine, fingerprint)
        return counts
    kind = task_type(project)
    name = Path(source.path).name
    seen.start_source()
    while batch := list(islice(rows, PART_ROWS)):
        accepted: list[dict[str, Any]] = []
        refused: list[dict[str, Any]] = []
        for row in batch:
            counts.rows += 1
            checked = _record(row, source, name, kind.from_source, project.limits)
            if isinstance(checked, dict):
                accepted.append(checked)
            else:
                refused.append(_refusal(checked, name))
        fresh, again = seen.place(accepted, name)
        counts.known += again
        refused += [row for row in fresh if "reason" in row]
        fresh = [row for row in fresh if "reason" not in row]
        refused = seen.new_refusals(refused)
        counts.added += len(fresh)
        counts.duplicates += sum(row["duplicate_of"] is not None for row in fresh)
        counts.quarantined.update(row["reason"] for row in refused)
        if fresh:
            records.append(sorted(fresh, key=lambda row: row["record_id"]), meta={"source": name})
        if refused:
            quarantine.append(refused, meta={"source": name})
        if progress is not None:
            progress(counts.rows)
    if counts.rows == 0:
        raise SourceError(
            str(path),
            found="no rows",
            expected="at least one record",
            next_step="Check that this is the right file.",
        )
    if source.gold is not None and counts.known:
        counts.without_gold = sum(
            frame.filter((pl.col("source") == name) & pl.col("gold").is_null()).height
            for _, frame in records.stream(["source", "gold"])
        )
    quarantine.append([], meta={"source": name, "finished": fingerprint, "rows": counts.rows})
    return counts


def why_no_record(project: Project, source: Source, path: Path, *, rows: int) -> str | None:
    """None when one of the first rows becomes a record; otherwise what is wrong with the first of them.

    Raises:
        SourceError: as `ingest`.
    """
    read_gold = task_type(project).from_source
    first = "no rows"
    for number, row in enumerate(islice(read_rows(path, source, project.limits), rows)):
        checked = _record(row, source, path.name, read_gold, project.limits)
        if isinstance(checked, dict):
            return None
        if number == 0:
            first = f"row {checked.number}: {checked.reason}: {checked.found}"
    return first


def _finished_rows(records: Table, quarantine: Table, fingerprint: str) -> int:
    for meta in records.metas() + quarantine.metas():
        if meta.get("finished") == fingerprint:
            return int(meta["rows"])
    return 0


def _record(
    row: SourceRow, source: Source, name: str, read_gold: Callable[[object], Value], limits: Limits
) -> dict[str, Any] | SourceRow:
    if row.values is None:
        return row
    text = row.values.get(source.text)

    def refuse(reason: str, found: str, expected: str) -> SourceRow:
        return SourceRow(row.number, None, reason, found, expected, row.raw)

    if not isinstance(text, str):
        found = "nothing" if text is None else type(text).__name__
        return refuse("no text", found, f"text in column {source.text!r}")
    if "\x00" in text:
        return refuse("NUL character", f"NUL at character {text.index(chr(0))}", "text without NUL")
    if lone := _SURROGATE.search(text):
        return refuse(
            "lone surrogate", f"U+{ord(lone[0]):04X} at character {lone.start()}", "whole characters"
        )
    if not text.strip():
        return refuse("empty text", repr(text[:20]), "some text")
    size = len(text.encode("utf-8"))
    if size > limits.max_text_bytes:
        return refuse(
            "text too large", f"{size:,} bytes", f"at most {limits.max_text_bytes:,} (limits.max_text_bytes)"
        )
    others = {key: row.values.get(key) for key in (source.id, source.group, *source.metadata) if key}
    for key, value in others.items():
        if isinstance(value, str) and ("\x00" in value or _SURROGATE.search(value)):
            return refuse("bad character", f"NUL or lone surrogate in column {key!r}", "plain text")
    source_id = None if source.id is None else _as_text(others[source.id])
    if source.id is not None and not source_id:
        return refuse("no id", f"nothing in column {source.id!r}", "an id")
    gold: Value = None
    if source.gold is not None:
        try:
            gold = read_gold(row.values.get(source.gold))
        except (ValueError, KeyError, TypeError) as error:
            return refuse("unknown gold value", str(error)[:300], "a value of the label schema")
    return {
        "source": name,
        "source_row": row.number,
        "source_id": source_id,
        "text": text,
        "text_sha256": hashlib.sha256(text.encode("utf-8")).hexdigest(),
        "char_count": len(text),
        "group": _as_text(others.get(source.group)) if source.group else None,
        "gold": gold,
        "metadata": [(key, _as_text(others[key]) or "") for key in source.metadata],
    }


def _as_text(value: object) -> str | None:
    return None if value is None or value == "" else str(value)


def _refusal(row: SourceRow, name: str) -> dict[str, Any]:
    return {
        "source": name,
        "source_row": row.number,
        "reason": row.reason,
        "found": row.found,
        "expected": row.expected,
        "raw": row.raw[:RAW_BYTES],
    }


class _SeenTexts:
    """Which texts and ids exist already: an index on disk, so that a million rows need no memory."""

    def __init__(self, records: Table, quarantine: Table) -> None:
        self._records, self._quarantine = records, quarantine

    def __enter__(self) -> "_SeenTexts":
        self._file = tempfile.NamedTemporaryFile(prefix="countersign-ingest-", suffix=".sqlite")
        self._db = sqlite3.connect(self._file.name)
        self._db.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;"
            "CREATE TABLE texts(sha TEXT PRIMARY KEY, record_id TEXT, copies INT) WITHOUT ROWID;"
            "CREATE TABLE ids(key TEXT PRIMARY KEY, sha TEXT, run INT) WITHOUT ROWID;"
            "CREATE TABLE told(record_id TEXT PRIMARY KEY) WITHOUT ROWID;"  # of rows with an id of the source's own
            "CREATE TABLE refused(key TEXT PRIMARY KEY) WITHOUT ROWID;"
        )
        columns = ["record_id", "source", "source_id", "text_sha256", "duplicate_of"]
        for _, frame in self._records.stream(columns):
            # Parts are sorted by id, so a copy may come before its original: it names the original itself.
            self._db.executemany(
                "INSERT INTO texts VALUES(?,?,1) ON CONFLICT(sha) DO UPDATE SET copies=copies+1",
                frame.select("text_sha256", pl.coalesce("duplicate_of", "record_id")).iter_rows(),
            )
            told = frame.filter(pl.col("source_id").is_not_null())
            self._db.executemany(
                "INSERT OR IGNORE INTO ids VALUES(?,?,0)",
                (
                    (_id_key(source, source_id), sha)
                    for source, source_id, sha in told.select(
                        "source", "source_id", "text_sha256"
                    ).iter_rows()
                ),
            )
            self._db.executemany("INSERT OR IGNORE INTO told VALUES(?)", told.select("record_id").iter_rows())
        for _, frame in self._quarantine.stream(["source", "source_row", "raw"]):
            self._db.executemany(
                "INSERT OR IGNORE INTO refused VALUES(?)",
                ((_refusal_key(*row),) for row in frame.iter_rows()),
            )
        self._run = 0
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()
        self._file.close()

    def start_source(self) -> None:
        self._run += 1
        self._occurrences: Counter[str] = Counter()

    def place(self, rows: list[dict[str, Any]], name: str) -> tuple[list[dict[str, Any]], int]:
        """Gives new rows their id and link; returns them (or their refusals) and how many were known already."""
        fresh: list[dict[str, Any]] = []
        known = 0
        for row in rows:
            sha, source_id = row["text_sha256"], row["source_id"]
            if source_id is not None:
                earlier = self._db.execute(
                    "SELECT sha, run FROM ids WHERE key=?", (_id_key(name, source_id),)
                ).fetchone()
                if earlier and earlier[0] != sha:
                    fresh.append(self._conflict(row, "duplicate id with different text", "one text an id"))
                    continue
                if earlier and earlier[1] == self._run:
                    fresh.append(self._conflict(row, "repeated row", "each row once"))
                    continue
                # Known rows are marked as met in this run too: an ingest that goes on after an interruption has to find
                # the same repetitions as one that was not interrupted.
                self._db.execute(
                    "INSERT INTO ids VALUES(?,?,?) ON CONFLICT(key) DO UPDATE SET run=excluded.run",
                    (_id_key(name, source_id), sha, self._run),
                )
                record_id = _record_id(source_id, sha, 0)
                added = self._db.execute("INSERT OR IGNORE INTO told VALUES(?)", (record_id,)).rowcount
                if earlier or not added:  # the same id and text from another file is the same record
                    known += 1
                    continue
            else:
                copy = self._occurrences[sha]
                self._occurrences[sha] += 1
                existing = self._db.execute("SELECT copies FROM texts WHERE sha=?", (sha,)).fetchone()
                if existing and copy < existing[0]:
                    known += 1
                    continue
                record_id = _record_id(None, sha, copy)
            first, copies = self._db.execute(
                "INSERT INTO texts VALUES(?,?,1) ON CONFLICT(sha) DO UPDATE SET copies=copies+1"
                " RETURNING record_id, copies",
                (sha, record_id),
            ).fetchone()
            fresh.append({**row, "record_id": record_id, "duplicate_of": first if copies > 1 else None})
        return fresh, known

    @staticmethod
    def _conflict(row: dict[str, Any], reason: str, expected: str) -> dict[str, Any]:
        return {
            "source": row["source"],
            "source_row": row["source_row"],
            "reason": reason,
            "found": f"id {row['source_id']!r} again",
            "expected": expected,
            "raw": row["text"].encode("utf-8")[:RAW_BYTES],
        }

    def new_refusals(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Refusals that are not in the quarantine yet."""
        return [
            row
            for row in rows
            if self._db.execute(
                "INSERT OR IGNORE INTO refused VALUES(?)",
                (_refusal_key(row["source"], row["source_row"], row["raw"]),),
            ).rowcount
        ]


def _id_key(source: str, source_id: str) -> str:
    return f"id|{source}|{source_id}"


def _refusal_key(source: str, row: int, raw: bytes | None) -> str:
    return f"{source}|{row}|{hashlib.sha256(raw or b'').hexdigest()}"


def _record_id(source_id: str | None, text_sha256: str, copy: int) -> str:
    """Stable over files, machines and runs: the same source id and text always give the same record id."""
    parts = _ENCODE([source_id, text_sha256, copy])
    return "r" + hashlib.sha256(parts.encode("utf-8", "surrogatepass")).hexdigest()[:23]


def read_rows(path: Path, source: Source, limits: Limits) -> Iterator[SourceRow]:
    """Rows of a CSV, JSONL or Parquet file, in file order, numbered from 1.

    Raises:
        SourceError: the file as a whole cannot be used.
    """
    if not path.is_file():
        raise SourceError(
            str(path),
            found="no such file",
            expected="a source file",
            next_step="Check sources[].path in project.yaml.",
        )
    if path.stat().st_size == 0:
        raise SourceError(
            str(path),
            found="an empty file",
            expected="at least one record",
            next_step="Check the export that made it.",
        )
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows, ".ndjson": _jsonl_rows, ".parquet": _parquet_rows}
    return readers[path.suffix.lower()](path, source, limits)


def _wanted(source: Source) -> list[str]:
    return [name for name in (source.text, source.id, source.gold, source.group, *source.metadata) if name]


def _check_columns(path: Path, present: list[str], source: Source) -> None:
    shown = ", ".join(present[:20]).encode("utf-8", "backslashreplace").decode("utf-8")[:500] or "none"
    for name in _wanted(source):
        if name not in present:
            raise SourceError(
                f"{path}: column {name!r}",
                found=f"columns {shown}",
                expected=f"a column {name!r}",
                next_step="Name the right column under sources[] in project.yaml.",
            )
        if present.count(name) > 1:
            raise SourceError(
                f"{path}: column {name!r}",
                found="it twice",
                expected="it once",
                next_step="Rename one of the two.",
            )


def _lines(file: BinaryIO, longest: int) -> Iterator[tuple[bytes, bool]]:
    """Lines with their ending, and whether each was cut at `longest` bytes (the rest of it is skipped)."""
    while line := file.readline(longest):
        cut = len(line) == longest and not line.endswith(b"\n")
        while cut and (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
            pass
        yield line, cut


class _RecordTooLong(Exception):
    pass


class _CsvLines:
    """Lines for the CSV reader, with the size of the record at hand bounded.

    A longer record is skipped to its end, by the parity of its quotes: the reader's own limit would stop in the middle
    of a quoted cell and take the cell's next lines for rows.
    """

    def __init__(self, file: TextIO, longest: int) -> None:
        self._file, self._longest = file, longest
        self.start_record()

    def start_record(self) -> None:
        self._size = self._quotes = 0

    def __iter__(self) -> "_CsvLines":
        return self

    def __next__(self) -> str:
        line = self._file.readline(self._longest)
        if not line:
            raise StopIteration
        self._size += len(line)
        self._quotes += line.count('"')
        if self._size < self._longest:
            return line
        while (self._quotes % 2 or not line.endswith(("\n", "\r"))) and (
            line := self._file.readline(self._longest)
        ):
            self._size += len(line)
            self._quotes += line.count('"')
        raise _RecordTooLong(f"a row of {self._size:,} characters")


def _csv_rows(path: Path, source: Source, limits: Limits) -> Iterator[SourceRow]:
    longest = limits.max_text_bytes * 2 + 65_536
    csv.field_size_limit(longest)
    with path.open("r", encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = _CsvLines(file, longest)
        reader = csv.reader(lines, strict=True)
        try:
            header = next(reader)
        except (csv.Error, StopIteration, _RecordTooLong) as error:
            raise SourceError(
                str(path),
                found="no readable header line",
                expected="a CSV header",
                next_step="Save it as CSV again.",
            ) from error
        _check_columns(path, header, source)
        number = 0
        while True:
            number += 1
            lines.start_record()
            try:
                cells = next(reader)
            except StopIteration:
                return
            except _RecordTooLong as error:
                yield SourceRow(
                    number, None, "text too large", str(error), f"at most {longest:,} characters a row"
                )
                continue
            except csv.Error as error:
                yield SourceRow(number, None, "broken CSV", str(error), "quoted cells of bounded size")
                continue
            if not cells:
                number -= 1
                continue
            joined = "\x1f".join(cells)
            raw = joined[:RAW_BYTES].encode("utf-8", "surrogateescape")
            if len(cells) != len(header):
                found, expected = f"{len(cells)} cells", f"{len(header)} as in the header"
                yield SourceRow(number, None, "wrong number of cells", found, expected, raw)
            elif _SURROGATE.search(joined):
                at = _SURROGATE.search(joined)
                assert at is not None
                yield SourceRow(
                    number, None, "invalid UTF-8", f"byte 0x{ord(at[0]) & 0xFF:02x}", "UTF-8", raw
                )
            else:
                yield SourceRow(number, dict(zip(header, cells, strict=True)), raw=raw)


def _jsonl_rows(path: Path, source: Source, limits: Limits) -> Iterator[SourceRow]:
    longest = limits.max_text_bytes * 6 + 65_536  # every character may be spelled \\uXXXX
    no_text_yet = True
    with path.open("rb") as file:
        number = 0
        for line, cut in _lines(file, longest):
            if not line.strip():
                continue
            number += 1
            if number == 1 and line.startswith(b"\xef\xbb\xbf"):
                line = line[3:]
            if cut:
                yield SourceRow(
                    number,
                    None,
                    "text too large",
                    f"a line of over {longest:,} bytes",
                    "shorter",
                    line[:RAW_BYTES],
                )
                continue
            row = _json_row(number, line)
            if no_text_yet and row.values is not None:
                no_text_yet = source.text not in row.values
            if number == FIRST_LINES and no_text_yet:
                raise _no_text_key(path, source)
            yield row
        if number and no_text_yet:
            raise _no_text_key(path, source)


def _no_text_key(path: Path, source: Source) -> SourceError:
    return SourceError(
        f"{path}: key {source.text!r}",
        found=f"it on none of the first {FIRST_LINES:,} lines",
        expected="a text on every line",
        next_step="Name the right key under sources[].text in project.yaml.",
    )


class _DuplicateKey(ValueError):
    pass


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _DuplicateKey(next(key for key in keys if keys.count(key) > 1))
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _finite(written: str) -> float:
    number = float(written)
    if math.isinf(number):
        raise ValueError(f"{written[:40]} is beyond every number a computer holds")
    return number


def _json_row(number: int, line: bytes) -> SourceRow:
    raw = line[:RAW_BYTES]
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return SourceRow(number, None, "invalid UTF-8", f"byte 0x{line[error.start]:02x}", "UTF-8", raw)
    if _depth(line) > MAX_DEPTH:
        return SourceRow(number, None, "nested too deep", f"over {MAX_DEPTH} levels", "flat rows", raw)
    try:
        value = json.loads(
            text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite
        )
    except _DuplicateKey as error:
        return SourceRow(number, None, "duplicate key", f"key {str(error)!r} twice", "each key once", raw)
    except ValueError as error:
        return SourceRow(number, None, "broken JSON", str(error)[:200], "one JSON object a line", raw)
    if not isinstance(value, dict):
        return SourceRow(number, None, "no object", type(value).__name__, "one JSON object a line", raw)
    return SourceRow(number, value, raw=raw)


def _depth(line: bytes) -> int:
    """Deepest nesting of brackets outside strings, before any parser recurses into it."""
    if line.count(b"{") + line.count(b"[") <= MAX_DEPTH:
        return 0
    deepest = depth = 0
    for char in _STRINGS.sub(b"", line):
        if char in b"{[":
            depth += 1
            deepest = max(deepest, depth)
        elif char in b"}]":
            depth -= 1
    return deepest


def _parquet_rows(path: Path, source: Source, limits: Limits) -> Iterator[SourceRow]:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(
            str(path), found=str(error)[:200], expected="a Parquet file", next_step="Export the source again."
        ) from error
    _check_columns(path, list(file.schema_arrow.names), source)
    metadata = file.metadata
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        if group.total_byte_size > 64 << 30 or group.total_byte_size > 5_000 * max(
            path.stat().st_size, 1 << 20
        ):
            raise SourceError(
                str(path),
                found=f"a row group that unpacks to {group.total_byte_size:,} bytes",
                expected="a file that unpacks to a size in proportion to its own",
                next_step="Refused as a possible decompression bomb; write the file again with smaller row groups.",
            )
    number = 0
    try:
        for batch in file.iter_batches(batch_size=4096, columns=_wanted(source)):
            columns = {name: _cells(batch.column(name)) for name in batch.schema.names}
            for index in range(batch.num_rows):
                number += 1
                row = {name: cells[index] for name, cells in columns.items()}
                broken = next((name for name, cell in row.items() if isinstance(cell, _BrokenText)), None)
                if broken is not None:
                    raw = row[broken].raw[:RAW_BYTES]
                    yield SourceRow(number, None, "invalid UTF-8", f"column {broken!r}", "UTF-8", raw)
                else:
                    text = row.get(source.text)
                    yield SourceRow(
                        number, row, raw=text[:RAW_BYTES].encode() if isinstance(text, str) else b""
                    )
    except (pa.ArrowException, OSError) as error:
        raise SourceError(
            f"{path}, after row {number:,}",
            found=str(error)[:200],
            expected="a whole Parquet file",
            next_step="The file is damaged: export it again. Rows before the damage are kept and will not repeat.",
        ) from error


@dataclass(frozen=True)
class _BrokenText:
    raw: bytes


def _cells(column: pa.Array) -> list[Any]:
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return list(column.to_pylist())
    binary = column.cast(pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary())
    return [None if value is None else _decoded(value) for value in binary.to_pylist()]


def _decoded(value: bytes) -> str | _BrokenText:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return _BrokenText(value)
