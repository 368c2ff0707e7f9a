"""Parquet tables as folders: a part is written beside, fsynced, renamed, then listed in a manifest with its SHA-256.

Readers open only what the manifest lists and re-hash it first, because a flipped bit in a zstd Parquet file usually
reads back as silently wrong data. The manifest is one JSON line a part, appended and fsynced: committing shard 2,000
costs what committing shard 1 did. A torn last line (power cut) is a part that was never committed.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import BusyError, StorageError
from schemas.tables import TABLES_VERSION
from schemas.values import canonical_json

MANIFEST = "manifest.jsonl"
ROW_GROUP = 65_536
_verified: dict[tuple[str, int, int, int], str] = {}


@dataclass(frozen=True)
class Part:
    """One committed file of a table. `meta` is what the writer wants to find again (shard key, source hash)."""

    path: str
    rows: int
    bytes: int
    sha256: str
    version: int
    meta: Mapping[str, Any]


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file, read in 1 MiB pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def sync_tree(folder: Path) -> None:
    """Makes everything below a folder durable."""
    for path in folder.rglob("*"):
        sync_folder(path)  # files are synced the same way
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def refused(path: Path, error: OSError) -> StorageError:
    """What a disk said no to, in words a person can act on."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        found, expected, step = (
            "a full disk",
            "room for the table",
            "Free space and run the same command again.",
        )
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        found, expected, step = (
            "a folder that cannot be written",
            "write access",
            "Give the project folder write access.",
        )
    else:
        found, expected, step = (
            f"{error.strerror or error}",
            "a working disk",
            "Check the disk, then run again.",
        )
    return StorageError(
        str(path), found=found, expected=expected, next_step=step + " Nothing stored was changed."
    )


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces a small file atomically and durably. Raises StorageError; the old content stays then."""
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise refused(path, error) from error


def write_json(path: Path, value: object) -> None:
    """Writes indented JSON atomically; NaN is refused."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode("utf-8"))


def read_json(path: Path) -> Any:
    """Reads a JSON file of ours. Raises StorageError when missing or broken."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise StorageError(
            str(path),
            found="no such file",
            expected="a file an earlier phase writes",
            next_step="Run that phase first.",
        ) from error
    except (OSError, ValueError) as error:
        raise StorageError(
            str(path), found=str(error), expected="readable JSON", next_step="Restore it from a backup."
        ) from error


def content_id(value: object) -> str:
    """The id under which `write_content_addressed` stores an object: 24 hex digits of the hash of its content."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:24]


def write_content_addressed(folder: Path, value: Mapping[str, Any]) -> str:
    """Stores a small JSON object under the hash of its content and returns that id (24 hex digits)."""
    identifier = content_id(value)
    target = folder / f"{identifier}.json"
    if not target.exists():
        write_bytes(target, canonical_json(value).encode())
    return identifier


class Table:
    """A table in a folder.

    Args:
        folder: Holds the parts and the manifest; created at the first append.
        schema: Arrow layout every part has.
    """

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self.folder = folder
        self.schema = schema

    @property
    def exists(self) -> bool:
        """Whether anything was ever committed."""
        return (self.folder / MANIFEST).is_file()

    def parts(self) -> list[Part]:
        """Committed parts in commit order."""
        manifest = self.folder / MANIFEST
        if not manifest.is_file():
            return []
        parts = []
        lines = manifest.read_bytes().split(b"\n")
        for number, line in enumerate(lines[:-1]):  # what follows the last newline was never committed
            try:
                entry = json.loads(line)
                if entry["version"] > TABLES_VERSION:
                    raise _newer(manifest, number + 1, entry["version"])
                parts.append(Part(**entry))
            except (ValueError, TypeError, KeyError) as error:
                raise StorageError(
                    f"{manifest}, line {number + 1}",
                    found=repr(line[:80]),
                    expected="a manifest line",
                    next_step="The manifest was damaged: restore it from a backup.",
                ) from error
        return parts

    def rows(self) -> int:
        """Committed rows."""
        return sum(part.rows for part in self.parts())

    def metas(self) -> list[Mapping[str, Any]]:
        """What the writers noted with each part."""
        return [part.meta for part in self.parts()]

    def append(
        self, rows: pa.Table | Sequence[Mapping[str, Any]], *, meta: Mapping[str, Any] | None = None
    ) -> Part:
        """Commits one part: after this returns it survives a power cut; before, it does not exist.

        Raises:
            StorageError: disk full or not writable; nothing was committed and no partial file is left.
        """
        table = (
            rows.cast(self.schema)
            if isinstance(rows, pa.Table)
            else pa.Table.from_pylist(list(rows), self.schema)
        )
        temporary: Path | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=".tmp-", suffix=".parquet", dir=self.folder)
            temporary = Path(name)
            with os.fdopen(handle, "wb") as file:
                pq.write_table(
                    table,
                    file,
                    compression="zstd",
                    row_group_size=ROW_GROUP,
                    write_statistics=True,
                    store_schema=True,
                )
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            digest, size = sha256_of(temporary), temporary.stat().st_size
            final = self.folder / f"part-{digest[:20]}.parquet"
            known = final.exists()  # equal content was committed before
            temporary.replace(final)
            temporary = None if known else final
            sync_folder(self.folder)
            part = Part(final.name, table.num_rows, size, digest, TABLES_VERSION, dict(meta or {}))
            self._list(part)
            temporary = None
            sync_folder(self.folder)
        except OSError as error:
            if temporary is not None:
                temporary.unlink(missing_ok=True)
            raise refused(self.folder, error) from error
        return part

    def _list(self, part: Part) -> None:
        line = canonical_json({**part.__dict__, "meta": dict(part.meta)}).encode() + b"\n"
        manifest = self.folder / MANIFEST
        # Unbuffered: a buffered file would try its unwritten rest once more while it is closed after the failure.
        handle = os.open(manifest, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            size = os.fstat(handle).st_size
            if size and not _ends_with_newline(manifest):
                size = _committed_size(manifest)  # a torn line of an earlier crash
                os.ftruncate(handle, size)
            try:
                if os.write(handle, line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(handle)
            except OSError:
                os.ftruncate(handle, size)
                raise
        finally:
            os.close(handle)

    def verify(self) -> list[str]:
        """One sentence a damaged, missing or unlisted part; empty when whole. Reads every byte."""
        problems = []
        listed = set()
        try:
            parts = self.parts()
        except StorageError as error:
            return [str(error)]
        for part in parts:
            listed.add(part.path)
            file = self.folder / part.path
            if not file.is_file():
                problems.append(f"{file}: missing; the manifest lists it with {part.rows} rows")
            elif file.stat().st_size != part.bytes or sha256_of(file) != part.sha256:
                problems.append(f"{file}: its content is not what the manifest lists (SHA-256 differs)")
        if self.folder.is_dir():
            for file in sorted(self.folder.glob("part-*.parquet")):
                if file.name not in listed:
                    problems.append(f"{file}: not listed in the manifest (ignored by readers)")
        return problems

    def _checked(self, part: Part) -> Path:
        file = self.folder / part.path
        try:
            stat = file.stat()
            key = (str(file), stat.st_mtime_ns, stat.st_size, stat.st_ino)
            digest = _verified.get(key) or sha256_of(file)
        except OSError as error:
            raise StorageError(
                str(file),
                found="no readable file",
                expected=f"the {part.rows} rows the manifest lists",
                next_step="Restore it from a backup; `countersign verify` lists everything that is damaged.",
            ) from error
        if digest != part.sha256:
            raise StorageError(
                str(file),
                found=f"SHA-256 {digest[:12]}…",
                expected=f"{part.sha256[:12]}… as the manifest lists",
                next_step="The file was changed or damaged: restore it from a backup.",
            )
        _verified[key] = digest
        return file

    def stream(self, columns: Sequence[str] | None = None) -> Iterator[tuple[Part, pl.DataFrame]]:
        """One verified part at a time, in commit order."""
        for part in self.parts():
            yield part, self.read_part(part, columns)

    def read_part(self, part: Part, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """The rows of one part, verified; columns that came after the part was written are null."""
        wanted = list(columns) if columns else None
        if part.version < TABLES_VERSION:
            return _as_now(self._checked(part), self.schema, wanted)
        table = pq.read_table(self._checked(part), columns=wanted)
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        return frame

    def read(self, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """All rows, verified, in commit order; an empty frame with the right columns when there are none."""
        frames = [frame for _, frame in self.stream(columns)]
        if frames:
            return pl.concat(frames)
        empty = pl.from_arrow(self.schema.empty_table())
        assert isinstance(empty, pl.DataFrame)
        return empty.select(columns) if columns else empty

    def content_hash(self, *, sort_by: str = "record_id", leave_out: Sequence[str] = ()) -> str:
        """SHA-256 over the sorted rows: equal for equal content, however it was cut into parts."""
        digest = hashlib.sha256()
        for row in self.read().drop(*leave_out).sort(sort_by).iter_rows(named=True):
            digest.update(json.dumps(row, sort_keys=True, default=str).encode())
        return digest.hexdigest()


def discard(folder: Path) -> None:
    """Takes a table away; the manifest first, so that a kill in between leaves no table with parts missing."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _as_now(file: Path, schema: pa.Schema, wanted: list[str] | None) -> pl.DataFrame:
    """A part of an older layout, with the columns that came since as nulls."""
    have = set(pq.read_schema(file).names)
    table = pq.read_table(file, columns=None if wanted is None else [name for name in wanted if name in have])
    for field in schema:
        if field.name not in have and field.nullable and (wanted is None or field.name in wanted):
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    frame = pl.from_arrow(table.select(wanted) if wanted else table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _newer(manifest: Path, line: int, version: object) -> StorageError:
    return StorageError(
        f"{manifest}, line {line}",
        found=f"a table of layout version {version}",
        expected=f"at most {TABLES_VERSION}",
        next_step="This project was written by a newer Countersign: update the program; nothing was changed.",
    )


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _committed_size(path: Path) -> int:
    return path.read_bytes().rfind(b"\n") + 1


@contextmanager
def project_lock(path: Path, doing: str) -> Iterator[None]:
    """Only one run writes a project's tables at a time. The kernel frees the lock when the holder dies.

    Raises:
        BusyError: somebody else holds it; says who and what they do.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise refused(path, error) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(handle, 200, 0).decode("utf-8", "replace").strip() or "another process"
            raise BusyError(
                str(path.parent),
                found=f"{holder} at work on this project",
                expected="one run at a time",
                next_step="Wait for it to end, or stop it; then run the same command again.",
            ) from error
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} ({doing})".encode(), 0)
        except OSError as error:
            raise refused(path, error) from error
        yield
    finally:
        os.close(handle)
