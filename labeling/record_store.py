"""The records of a project as the phases need them: which are to be labelled, their texts and their vectors."""

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
from labeling.storage import Part, Table
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
    """Computes the vectors that are not there yet, once per record; returns how many."""
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
    return embed_missing(project, folder, model)


def _lexical_table(project: Project, folder: ProjectFolder) -> Table:
    return Table(folder.lexical, tables.lexical(project.label_schema.task))


def _lexical_model(project: Project, folder: ProjectFolder) -> LexicalModel | None:
    frame = _lexical_table(project, folder).read()
    return LexicalModel.from_frame(frame) if frame.height else None


class Vectors:
    """Vectors of all embedded records, looked up by id.

    Attributes:
        matrix: (n, d) what the embedding model made of each.
    """

    def __init__(
        self,
        ids: Sequence[str],
        matrix: npt.NDArray[np.float32],
        lexical: Callable[[], npt.NDArray[np.float32] | None] = lambda: None,
    ) -> None:
        self._row = {record_id: index for index, record_id in enumerate(ids)}
        self.matrix = matrix
        self._read_lexical = lexical

    @cached_property
    def lexical(self) -> npt.NDArray[np.float32] | None:
        """(n, e) how each is written, in the same order, read when first asked for; None where never computed."""
        return self._read_lexical()

    @classmethod
    def load(cls, project: Project, folder: ProjectFolder) -> "Vectors | None":
        """The vectors of the project's embedding model; None when it uses none or none were made yet."""
        root = folder.root / "embeddings"
        models = sorted(root.iterdir()) if root.is_dir() else []
        name = project.embedding.model.removesuffix(".gguf")
        if project.embedding.kind == "ollama":
            name = name.replace(":", "-").replace("/", "-")
        name = name.rsplit("/", 1)[-1]
        matching = [model for model in models if model.name.startswith(name)]
        if project.embedding.kind == "none" or not matching:
            return None
        frame = _read_vectors(project, matching[-1])
        ids = frame["record_id"].to_list()
        return cls(ids, _as_matrix(frame), lambda: _lexical_rows(project, folder, ids))

    def of(self, record_ids: Sequence[str]) -> npt.NDArray[np.float32]:
        """(n, d) rows in the order asked for."""
        return self.matrix[self._rows(record_ids)]

    def lexical_of(self, record_ids: Sequence[str]) -> npt.NDArray[np.float32] | None:
        """(n, e) rows in the order asked for, if there are any."""
        return None if self.lexical is None else self.lexical[self._rows(record_ids)]

    def _rows(self, record_ids: Sequence[str]) -> list[int]:
        try:
            return [self._row[record_id] for record_id in record_ids]
        except KeyError as error:
            raise StorageError(
                "embeddings",
                found=f"no vector of record {error.args[0]}",
                expected="one of every record",
                next_step="Run the setup flow again: it computes what is missing.",
            ) from error

    def __contains__(self, record_id: str) -> bool:
        return record_id in self._row


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
