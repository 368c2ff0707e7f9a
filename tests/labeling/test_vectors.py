"""Which vectors are used when an embedding model gives way to another."""

import shutil
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from rounds_of_work import Loop
from scripted_engine import ScriptedEngine
from small_projects import ProjectFactory

from labeling.engines.opening import connect_embedder
from labeling.ingest import ingest
from labeling.record_store import Vectors, embed_missing, record_ids, texts_of
from labeling.suggesting import planned_vectors
from schemas.errors import StorageError


class Embedder:
    """The length of a text, turned by the model."""

    width = 2

    def __init__(self, model_id: str, turn: float) -> None:
        self.model_id, self._turn = model_id, turn

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        angles = np.array([len(text) + self._turn for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    def close(self) -> None:
        """Nothing to free."""


def test_vectors_are_those_of_the_model_that_made_the_last_ones(project_folder: ProjectFactory) -> None:
    rows = [{"text": "short"}, {"text": "not as short"}]
    project, folder = project_folder(
        rows, labels=["a", "b"], embedding={"kind": "ollama", "model": "mine:v1"}
    )
    ingest(project, folder)
    assert Vectors.load(project, folder) is None
    others = ["mine-v1-ffffffffffff", "mine-v1-large-ffffffffffff", "mine-v1-000000000000"]
    for turn, model_id in enumerate(others):
        embed_missing(project, folder, Embedder(model_id, turn))

    vectors = Vectors.load(project, folder)

    assert vectors is not None and vectors.model_id == "mine-v1-000000000000"
    lengths = [len(text) for text in texts_of(project, folder, record_ids(project, folder)).values()]
    assert sorted(vectors.matrix[:, 0]) == pytest.approx(sorted(np.cos(length + 2) for length in lengths))
    embed_missing(project, folder, Embedder(others[1], 0))
    assert Vectors.load(project, folder) is None, "those are another model's"


def test_another_model_behind_the_same_address_is_not_mixed_in(
    project_folder: ProjectFactory, scripted: ScriptedEngine
) -> None:
    settings = {"kind": "llama-server", "model": "mine", "endpoints": [scripted.url]}
    project, folder = project_folder([{"text": "one"}], labels=["a", "b"], embedding=settings)
    ingest(project, folder)
    made = []
    for alias in ("first.gguf", "second.gguf", "first.gguf"):
        scripted.model_alias = alias
        embedder = connect_embedder(project)
        assert embedder is not None
        made.append((embedder.model_id, embed_missing(project, folder, embedder)))
        vectors = Vectors.load(project, folder)
        assert vectors is not None and vectors.model_id == embedder.model_id

    assert [added for _, added in made] == [1, 1, 0]
    assert made[0][0] == made[2][0] != made[1][0]


def test_a_project_that_kept_no_note_of_its_model_finds_its_vectors(project_folder: ProjectFactory) -> None:
    project, folder = project_folder([{"text": "short"}], labels=["a", "b"], embedding={"model": "mine"})
    ingest(project, folder)
    for model_id in ("mine-0123456789ab", "mine-large-0123456789ab", "mine2-0123456789ab"):
        embed_missing(project, folder, Embedder(model_id, 0))
    folder.embedding_in_use.unlink()

    vectors = Vectors.load(project, folder)

    assert vectors is not None and vectors.model_id == "mine-0123456789ab"


def test_a_student_reads_the_vectors_it_was_taught_with_whatever_the_project_names_by_now(
    copy_of_worked: Loop,
) -> None:
    loop = copy_of_worked
    plan = loop.iterate(2)
    assert plan.stack is not None
    taught = loop.vectors
    named = loop.project.embedding.model_copy(update={"model": "other"})
    loop.project = loop.project.model_copy(update={"embedding": named})
    embed_missing(loop.project, loop.folder, Embedder("other", 1))
    assert loop.vectors is not None and loop.vectors.model_id == "other"

    found = planned_vectors(loop.project, loop.folder, plan)

    ids = record_ids(loop.project, loop.folder)
    assert taught is not None and found is not None
    np.testing.assert_array_equal(found.of(ids), taught.of(ids))
    shutil.rmtree(loop.folder.embeddings(taught.model_id))
    with pytest.raises(StorageError, match=f"vectors of {taught.model_id}: found none"):
        planned_vectors(loop.project, loop.folder, plan)


def test_a_server_whose_model_has_a_folder_in_its_name_gets_its_vectors_back(
    project_folder: ProjectFactory, scripted: ScriptedEngine
) -> None:
    project, folder = project_folder(
        [{"text": "short"}],
        labels=["a", "b"],
        embedding={"kind": "llama-server", "model": "org/mine:v1", "endpoints": [scripted.url]},
    )
    ingest(project, folder)
    embedder = connect_embedder(project)
    assert embedder is not None
    embed_missing(project, folder, embedder)

    vectors = Vectors.load(project, folder)

    assert vectors is not None and vectors.model_id.startswith("org-mine-v1-")
