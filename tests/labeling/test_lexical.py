import random

import numpy as np
import pytest
from small_projects import ProjectFactory

from labeling.ingest import ingest
from labeling.lexical import CHARACTERS, LEARN_FROM, WIDTH, LexicalModel
from labeling.record_store import Vectors, embed_lexically, embed_missing, record_ids, texts_of
from labeling.storage import Table
from labeling.students import fit_student
from schemas import tables

PLACES = ["ward", "desk", "kitchen", "garage", "office", "garden", "library", "station"]


class Lengths:
    """An embedder that knows how long a text is and nothing else."""

    model_id, width = "lengths", 384

    def embed(self, texts: list[str]) -> np.ndarray:
        rows = np.zeros((len(texts), self.width), dtype=np.float32)
        rows[:, 0], rows[:, 1] = 1, [len(text) for text in texts]
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def close(self) -> None:
        pass


def written(count: int, *, seed: int) -> list[tuple[str, str]]:
    """Texts and labels: codes like "RX-4821" make the one, dates the other; all else is drawn from the same words."""
    dice = random.Random(seed)
    rows = []
    for number in range(count):
        label = ("order", "visit")[number % 2]
        sign = f"RX-{dice.randrange(10**4):04d}" if label == "order" else f"{dice.randrange(1, 29)}/11/2026"
        words = [*dice.choices(PLACES, k=5), sign]
        dice.shuffle(words)
        rows.append((" ".join(words), label))
    return rows


def test_a_student_learns_from_how_texts_are_written() -> None:
    rows, fresh = written(400, seed=0), written(200, seed=1)
    model = LexicalModel.learn([text for text, _ in rows], seed=0)
    vectors = model.embed([text for text, _ in rows[:40]])
    assert vectors.shape == (40, WIDTH) and vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    student = fit_student(vectors, [label for _, label in rows[:40]], labels=["order", "visit"])
    told = student.predict_proba(model.embed([text for text, _ in fresh])).argmax(axis=1)
    assert (
        np.mean([("order", "visit")[code] == label for code, (_, label) in zip(told, fresh, strict=True)])
        > 0.95
    )


def test_the_same_texts_and_seed_make_the_same_model_and_a_table_keeps_it() -> None:
    texts = [text for text, _ in written(150, seed=0)]
    model = LexicalModel.learn(texts, seed=7)
    assert LexicalModel.learn(texts, seed=7).model_id == model.model_id
    assert LexicalModel.learn(texts[:-1], seed=7).model_id != model.model_id
    again = LexicalModel.from_frame(model.to_frame())
    assert again.model_id == model.model_id
    assert np.array_equal(again.embed(texts), model.embed(texts))


def test_texts_that_share_nothing_and_too_few_of_them_are_refused_and_an_unknown_text_is_all_zero() -> None:
    texts = [text for text, _ in written(LEARN_FROM, seed=0)]
    with pytest.raises(ValueError, match=f"at least {LEARN_FROM} texts, found {LEARN_FROM - 1}"):
        LexicalModel.learn(texts[1:], seed=0)
    with pytest.raises(ValueError, match="shared n-grams"):
        LexicalModel.learn([chr(0x4E00 + number) for number in range(LEARN_FROM)], seed=0)
    model = LexicalModel.learn(texts, seed=0)
    vectors = model.embed(["", "漢字", texts[0]])
    long = texts[0].ljust(CHARACTERS)
    assert np.array_equal(model.embed([long]), model.embed([f"{long}garden 1/11/2026"]))
    assert not vectors[0].any() and np.isfinite(vectors).all() and vectors[2].any()


def test_a_project_learns_once_and_its_later_records_are_read_with_the_same_model(
    project_folder: ProjectFactory,
) -> None:
    rows = [{"text": f"{text} {number}"} for number, (text, _) in enumerate(written(150, seed=0))]
    project, folder = project_folder(rows, labels=["order", "visit"], embedding={"model": "lengths"})
    ingest(project, folder)
    embed_missing(project, folder, Lengths())
    assert Vectors.load(project, folder).lexical_of(record_ids(project, folder)[:3]) is None  # type: ignore[union-attr]
    assert embed_lexically(project, folder) == 150
    assert embed_lexically(project, folder) == 0

    source = folder.root / project.sources[0].path
    source.write_text(source.read_text("utf-8") + '{"text": "garden RX-0001 of another day"}\n', "utf-8")
    ingest(project, folder)
    embed_missing(project, folder, Lengths())
    # One record without a lexical vector: none is used, rather than some.
    assert Vectors.load(project, folder).lexical is None  # type: ignore[union-attr]
    assert embed_lexically(project, folder) == 1

    model = LexicalModel.from_frame(Table(folder.lexical, tables.lexical(project.label_schema.task)).read())
    ids = record_ids(project, folder)
    texts, vectors = texts_of(project, folder, ids), Vectors.load(project, folder)
    assert vectors is not None
    assert np.array_equal(vectors.lexical_of(ids), model.embed([texts[record_id] for record_id in ids]))


def test_a_project_of_few_records_does_without(project_folder: ProjectFactory) -> None:
    project, folder = project_folder(
        [{"text": text} for text, _ in written(40, seed=0)], labels=["order", "visit"]
    )
    ingest(project, folder)
    assert embed_lexically(project, folder) == 0
    assert not folder.lexical.exists()
