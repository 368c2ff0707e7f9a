"""The records of a project as the phases need them: which are to be labelled, their texts and their vectors."""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from labeling.engines.protocol import Embedder
from labeling.lexical import LEARN_ON_AT_MOST, LexicalModel
from labeling.paths import ProjectFolder
from labeling.selection import simple_random_sample
from labeling.storage import Part, Table, read_json, write_json
from schemas import tables
from schemas.errors import StorageError
from schemas.project import Project

EMBED_ROWS = 1024


def records_table(project: Project, folder: ProjectFolder) -> Table:
    """The table of records."""
    return Table(folder.records, tables.records(project.label_schema.task))


def record_ids(project: Project, folder: ProjectFolder) -> list[str]:
    """Ids of the records to be labelled: exact duplicates of another record are linked, not asked about."""
    ids: list[str] = []
    for _, frame in records_table(project, folder).stream(["record_id", "duplicate_of"]):
        ids.extend(frame.filter(pl.col("duplicate_of").is_null())["record_id"].to_list())
    return ids


def stream_records(
    project: Project, folder: ProjectFolder, columns: Sequence[str]
) -> Iterator[tuple[Part, pl.DataFrame]]:
    """Records to be labelled, part by part."""
    wanted = list(dict.fromkeys(["record_id", *columns, "duplicate_of"]))
    for part, frame in records_table(project, folder).stream(wanted):
        yield part, frame.filter(pl.col("duplicate_of").is_null()).select(["record_id", *columns])


def texts_of(project: Project, folder: ProjectFolder, wanted: Collection[str]) -> dict[str, str]:
    """Texts by record id; a part that holds none of the wanted ids is not unpacked beyond its id column."""
    return dict(rows_of(project, folder, wanted, ["text"]).select("record_id", "text").iter_rows())


def rows_of(
    project: Project, folder: ProjectFolder, wanted: Collection[str], columns: Sequence[str]
) -> pl.DataFrame:
    """The wanted records, in no particular order.

    Raises:
        StorageError: a wanted record does not exist.
    """
    table = records_table(project, folder)
    left = pl.Series("record_id", sorted(set(wanted)), dtype=pl.String)
    found: list[pl.DataFrame] = []
    for part in table.parts():
        ids = table.read_part(part, ["record_id"])
        if ids["record_id"].is_in(left.implode()).any():
            frame = table.read_part(part, ["record_id", *columns])
            found.append(frame.filter(pl.col("record_id").is_in(left.implode())))
    rows = pl.concat(found) if found else table.read(["record_id", *columns]).clear()
    if rows.height != len(left):
        raise StorageError(
            str(folder.records),
            found=f"{rows.height} of {len(left)} records",
            expected="all of them",
            next_step="Run `countersign verify`.",
        )
    return rows


def embed_missing(
    project: Project,
    folder: ProjectFolder,
    embedder: Embedder,
    *,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Computes the vectors of the project's embedding model that are not there yet, once per record; returns how many.

    From the first one on they are those that `Vectors.load` finds.
    """
    write_json(folder.embedding_in_use, {"model_id": embedder.model_id})
    return _embed(project, folder, embedder, progress)


def _embed(
    project: Project, folder: ProjectFolder, embedder: Embedder, progress: Callable[[int], None] | None = None
) -> int:
    table = Table(
        folder.embeddings(embedder.model_id), tables.embeddings(project.label_schema.task, embedder.width)
    )
    have = set(table.read(["record_id"])["record_id"].to_list()) if table.exists else set()
    added = 0
    for _, frame in stream_records(project, folder, ["text"]):
        todo = frame.filter(~pl.col("record_id").is_in(list(have))) if have else frame
        for start in range(0, todo.height, EMBED_ROWS):
            piece = todo.slice(start, EMBED_ROWS)
            vectors = embedder.embed(piece["text"].to_list())
            table.append(
                [
                    {"record_id": record_id, "model_id": embedder.model_id, "vector": vector}
                    for record_id, vector in zip(piece["record_id"], vectors, strict=True)
                ],
                meta={"model_id": embedder.model_id},
            )
            added += piece.height
            if progress is not None:
                progress(added)
    return added


def embed_lexically(project: Project, folder: ProjectFolder) -> int:
    """Computes the lexical vectors that are not there yet; returns how many.

    The model is learned when the project first has enough records, and kept: a stack fitted in one round is used on
    records that come later.
    """
    model = _lexical_model(project, folder)
    if model is None:
        drawn = simple_random_sample(record_ids(project, folder), LEARN_ON_AT_MOST, project.seed + 3)
        texts = texts_of(project, folder, drawn)
        try:
            model = LexicalModel.learn([texts[record_id] for record_id in drawn], seed=project.seed)
        except ValueError:
            return 0  # too few records, or too little in common: the stack does without
        _lexical_table(project, folder).append(model.to_frame().to_arrow(), meta={"model_id": model.model_id})
    return _embed(project, folder, model)


def _lexical_table(project: Project, folder: ProjectFolder) -> Table:
    return Table(folder.lexical, tables.lexical(project.label_schema.task))


def _lexical_model(project: Project, folder: ProjectFolder) -> LexicalModel | None:
    frame = _lexical_table(project, folder).read()
    return LexicalModel.from_frame(frame) if frame.height else None


class Vectors:
    """Vectors of all embedded records, looked up by id.

    Attributes:
        model_id: The embedding model, with the start of its digest where that is known.
        matrix: (n, d) what the embedding model made of each.
    """

    def __init__(
        self,
        ids: Sequence[str],
        matrix: npt.NDArray[np.float32],
        model_id: str,
        lexical: Callable[[], npt.NDArray[np.float32] | None] = lambda: None,
    ) -> None:
        self._row = {record_id: index for index, record_id in enumerate(ids)}
        self.matrix, self.model_id = matrix, model_id
        self._read_lexical = lexical

    @cached_property
    def lexical(self) -> npt.NDArray[np.float32] | None:
        """(n, e) how each is written, in the same order, read when first asked for; None where never computed."""
        return self._read_lexical()

    @classmethod
    def load(cls, project: Project, folder: ProjectFolder, model_id: str | None = None) -> "Vectors | None":
        """The vectors of one embedding model, without `model_id` the project's own.

        None where the project uses none, or none were made yet.
        """
        if model_id is None:
            model_id = _model_in_use(project, folder)
        if model_id is None or not folder.embeddings(model_id).is_dir():
            return None
        frame = _read_vectors(project, folder.embeddings(model_id))
        ids = frame["record_id"].to_list()
        return cls(ids, _as_matrix(frame), model_id, lambda: _lexical_rows(project, folder, ids))

    def of(self, record_ids: Sequence[str]) -> npt.NDArray[np.float32]:
        """(n, d) rows in the order asked for."""
        return self.matrix[self._rows(record_ids)]

    def lexical_of(self, record_ids: Sequence[str]) -> npt.NDArray[np.float32] | None:
        """(n, e) rows in the order asked for, if there are any."""
        return None if self.lexical is None else self.lexical[self._rows(record_ids)]

    def _rows(self, record_ids: Sequence[str]) -> list[int]:
        missing = [record_id for record_id in record_ids if record_id not in self._row]
        if missing:
            raise StorageError(
                f"vectors of {self.model_id}",
                found=f"none of {len(missing)} records, for example {missing[0]}",
                expected="a vector of every record",
                next_step="Let the project name that embedding model and run the setup flow: it makes what is missing.",
            )
        return [self._row[record_id] for record_id in record_ids]

    def __contains__(self, record_id: str) -> bool:
        return record_id in self._row


def _model_in_use(project: Project, folder: ProjectFolder) -> str | None:
    if project.embedding.kind == "none":
        return None
    # The start of the digest follows where it is known.
    mine = re.compile(re.escape(project.embedding.filed_as) + "(-[0-9a-f]{12})?")
    if folder.embedding_in_use.is_file():
        found = str(read_json(folder.embedding_in_use)["model_id"])
        return found if mine.fullmatch(found) else None
    root = folder.embedding_in_use.parent
    models = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
    return next((model for model in reversed(models) if mine.fullmatch(model)), None)


def _read_vectors(project: Project, table: Path) -> pl.DataFrame:
    return Table(table, tables.embeddings(project.label_schema.task)).read(["record_id", "vector"])


def _as_matrix(frame: pl.DataFrame) -> npt.NDArray[np.float32]:
    return frame["vector"].to_numpy().astype(np.float32).reshape(frame.height, -1)


def _lexical_rows(
    project: Project, folder: ProjectFolder, ids: Sequence[str]
) -> npt.NDArray[np.float32] | None:
    """(n, e) lexical vectors of these records; None unless all of them have one."""
    metas = _lexical_table(project, folder).metas()
    if not metas:
        return None
    found = _read_vectors(project, folder.embeddings(metas[-1]["model_id"]))
    frame = pl.DataFrame({"record_id": ids}, schema={"record_id": pl.String}).join(
        found, on="record_id", how="left", maintain_order="left"
    )
    return None if frame["vector"].null_count() else _as_matrix(frame)
