"""Which labels a record's prompt lists: the nearest ones where the engine tells few tokens, in orders dealt evenly."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from scripted_engine import ScriptedEngine
from small_projects import ProjectFactory

from labeling.checking import problems_of
from labeling.comparing import compare
from labeling.engines.opening import connect_embedder, connect_engine
from labeling.engines.protocol import UNREPORTED, FirstToken
from labeling.engines.sharing import close_shared
from labeling.ingest import ingest
from labeling.label_lists import LabelLists, label_lists, listing_for, nearest_labels, recall
from labeling.paths import configs
from labeling.project_file import parse_project
from labeling.prompts import Listing, Prompt, bind, label_codes, load_template, prompt_of
from labeling.record_store import Vectors, embed_missing, record_ids, texts_of
from labeling.scoring import score_batch
from labeling.setup import bound_prompts, measure_prompts
from labeling.storage import read_json
from schemas.errors import ProjectError, StorageError
from schemas.project import Project

NAMES = [f"{first}{second}" for first in "abcdef" for second in "rstuv"]  # 30 labels
PROJECT: Project = parse_project(
    (
        "name: p\nsources: [{path: r.csv}]\nschema:\n  task: classification\n  labels: ["
        + ", ".join(f"{{name: {name}}}" for name in NAMES)
        + "]\n"
    ).encode(),
    "project.yaml",
)
LABELS = PROJECT.label_schema.labels


def first_token(text: str) -> FirstToken:
    return FirstToken(int.from_bytes(text.encode(), "big"), text, True)


def a_prompt(listing: Listing) -> Prompt:
    codes = label_codes(LABELS, first_token)
    return bind(load_template("builtin:plain", configs()), PROJECT, codes, listing=listing)


def one_axis_each(count: int) -> npt.NDArray[np.float32]:
    return np.eye(count, dtype=np.float32)


def test_the_nearest_labels_come_nearest_first() -> None:
    records = np.array([[0.1, 0.9, 0.4]], dtype=np.float32)

    assert nearest_labels(records, one_axis_each(3), 2).tolist() == [[1, 2]]


def test_a_record_is_asked_about_the_labels_nearest_to_it_in_the_projects_order() -> None:
    vector = np.zeros((1, 30), dtype=np.float32)
    vector[0, [28, 3, 7]] = [0.9, 0.8, 0.7]
    lists = LabelLists(
        a_prompt(Listing(most=3, by="m")),
        LABELS,
        first_token,
        style="auto",
        vectors=Vectors(["r1"], vector, "by-hand"),
        of_labels=one_axis_each(30),
    )

    own = lists.prompt_for("r1")

    assert [code.label for code in own.codes] == [NAMES[3], NAMES[7], NAMES[28]]
    assert NAMES[3] in own.prefix and NAMES[4] not in own.prefix
    assert own.context is None
    assert lists.prompt_for("r1") is own


def test_a_record_without_a_vector_is_not_asked_about_more_labels_than_the_engine_tells() -> None:
    lists = LabelLists(
        a_prompt(Listing(most=3, by="m")),
        LABELS,
        first_token,
        style="auto",
        vectors=Vectors([], np.zeros((0, 30), dtype=np.float32), "by-hand"),
        of_labels=one_axis_each(30),
    )

    with pytest.raises(StorageError, match="run the setup flow"):
        lists.prompt_for("r1")


def test_recall_counts_the_records_whose_label_is_on_their_list() -> None:
    vectors = np.eye(30, dtype=np.float32)[:4]
    lists = LabelLists(
        a_prompt(Listing(most=1, by="m")),
        LABELS,
        first_token,
        style="auto",
        vectors=Vectors(["r0", "r1", "r2", "r3"], vectors, "by-hand"),
        of_labels=one_axis_each(30),
    )

    found = recall(lists, {"r0": NAMES[0], "r1": NAMES[1], "r2": NAMES[2], "r3": NAMES[0]})

    assert (found.value, found.n) == (0.75, 4)


def test_every_label_stands_in_every_quarter_of_the_list_about_equally_often() -> None:
    lists = LabelLists(a_prompt(Listing(orders=4, seed=5)), LABELS, first_token, style="auto")

    places = Counter(
        [code.label for code in lists.prompt_for(f"r{number}").codes].index(NAMES[0]) * 4 // 30
        for number in range(2000)
    )

    assert set(places) == {0, 1, 2, 3}
    assert max(places.values()) < 1.3 * min(places.values())


def test_the_order_follows_from_the_record_and_the_seed_alone() -> None:
    def order(seed: int, record: str) -> Sequence[str]:
        lists = LabelLists(a_prompt(Listing(orders=4, seed=seed)), LABELS, first_token, style="auto")
        return [code.label for code in lists.prompt_for(record).codes]

    assert order(5, "r1") == order(5, "r1")
    assert any(order(5, f"r{number}") != order(6, f"r{number}") for number in range(4))


def test_the_other_way_round_is_that_of_each_records_own_list() -> None:
    prompt = a_prompt(Listing(orders=4, seed=5))
    turned = bind(prompt.template, PROJECT, prompt.codes[::-1], listing=prompt.listing)
    one, other = (LabelLists(each, LABELS, first_token, style="auto") for each in (prompt, turned))

    for record in (f"r{number}" for number in range(8)):
        listed = [code.label for code in one.prompt_for(record).codes]
        assert [code.label for code in other.prompt_for(record).codes] == listed[::-1]


def test_a_prompt_with_a_list_of_its_own_a_record_is_another_version_and_reads_back() -> None:
    listed, plain = a_prompt(Listing(orders=4, seed=5)), a_prompt(Listing())

    again = prompt_of(listed.as_dict())

    assert listed.prompt_id != plain.prompt_id
    assert again.prompt_id == listed.prompt_id
    assert again.listed(again.codes).prefix == plain.prefix


def test_scores_come_back_in_the_projects_order_whatever_the_order_of_the_list(
    scripted: ScriptedEngine, project_folder: ProjectFactory
) -> None:
    engine = {"kind": "llama-server", "model": "scripted", "endpoints": [scripted.url]}
    project, _ = project_folder(
        [{"text": "a"}], labels=scripted.labels, engine=engine, prompts={"label_order": "shuffled"}
    )
    server = connect_engine(project)
    codes = label_codes(project.label_schema.labels, server.first_token)
    template = load_template("builtin:plain", configs())
    prompt = bind(template, project, codes, listing=listing_for(project, server))
    lists = LabelLists(prompt, project.label_schema.labels, server.first_token, style="auto")
    records = [(f"r{number}", f"text {number} alpha") for number in range(40)]

    shuffled = score_batch(server, prompt, records, prompt_for=lists.prompt_for)
    fixed = score_batch(server, bind(template, project, codes), records)

    assert {lists.prompt_for(record_id).prefix for record_id, _ in records} != {prompt.prefix}
    assert [row.record_id for row in shuffled.scored] == [record_id for record_id, _ in records]
    for one, other in zip(shuffled.scored, fixed.scored, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs)


@pytest.fixture
def many_labels() -> Iterator[ScriptedEngine]:
    with ScriptedEngine(NAMES) as server:
        yield server
    close_shared()


def test_an_engine_of_few_tokens_gets_a_shortlist_whose_recall_the_setup_tells(
    many_labels: ScriptedEngine, project_folder: ProjectFactory
) -> None:
    rows = [{"text": f"note {number} about {NAMES[number % 30]}"} for number in range(80)]
    project, folder = project_folder(
        rows,
        labels=NAMES,
        engine={"kind": "ollama", "model": "scripted.gguf", "context": 512, "endpoints": [many_labels.url]},
        embedding={"kind": "llama-server", "model": "scripted", "endpoints": [many_labels.url]},
        setup={"sample": 60},
        quality={"max_rejected_share": 1.0},
    )
    ingest(project, folder)
    embedder = connect_embedder(project)
    assert embedder is not None
    embed_missing(project, folder, embedder)
    engine = connect_engine(project)
    texts = texts_of(project, folder, record_ids(project, folder))
    truth = {record_id: text.rsplit(" ", 1)[1] for record_id, text in texts.items()}

    plan, figures = measure_prompts(project, folder, engine, truth)

    short = figures["shortlist"]
    assert (short["labels"], short["of"]) == (20, 30)
    assert (
        short["recall"]["value"] > 0.9
    )  # the scripted vectors lie around the axis of the label that is named
    assert any("nearest to it" in sentence for sentence in plan.sentences)
    prompt = prompt_of(read_json(folder.prompts_used / f"{plan.prompt_id}.json"))
    lists = label_lists(project, folder, engine, prompt)
    assert lists is not None
    outcome = score_batch(
        engine, prompt, [(next(iter(texts)), next(iter(texts.values())))], prompt_for=lists.prompt_for
    )
    told = [value for value in outcome.scored[0].log_probs if value > UNREPORTED]
    assert 1 <= len(told) <= 20 and len(outcome.scored[0].log_probs) == 30
    other = project.embedding.model_copy(update={"model": "another"})
    with pytest.raises(ProjectError, match="found another; expected scripted, by which the prompt"):
        label_lists(project.model_copy(update={"embedding": other}), folder, engine, prompt)
    # Another model behind the same name, none at all: nobody knows which labels are near.
    many_labels.model_alias = "other.gguf"
    close_shared()
    none = project.embedding.model_copy(update={"kind": "none"})
    for changed in (project, project.model_copy(update={"embedding": none})):
        with pytest.raises(StorageError, match="run the setup flow: it makes them"):
            label_lists(changed, folder, engine, prompt)


def test_a_comparison_asks_about_the_nearest_labels_in_its_self_test_too(
    many_labels: ScriptedEngine, project_folder: ProjectFactory
) -> None:
    project, folder = project_folder(
        [{"text": f"note {number} about {NAMES[number % 30]}"} for number in range(12)],
        labels=NAMES,
        engine={"kind": "ollama", "model": "scripted.gguf", "slots": 2, "endpoints": [many_labels.url]},
        embedding={"kind": "llama-server", "model": "scripted", "endpoints": [many_labels.url]},
        quality={"max_rejected_share": 1.0},
    )
    ingest(project, folder)
    embedder = connect_embedder(project)
    assert embedder is not None
    embed_missing(project, folder, embedder)
    texts = texts_of(project, folder, record_ids(project, folder))
    truth = {record_id: text.rsplit(" ", 1)[1] for record_id, text in texts.items()}

    answer = compare(project, folder, truth, ["scripted.gguf"])

    assert answer["models"][0]["shortlist"]["labels"] == 20
    assert not any("never suggested" in warning for warning in answer["models"][0]["warnings"])


def test_many_labels_that_begin_alike_are_asked_about_by_letters_of_each_records_own_list(
    project_folder: ProjectFactory,
) -> None:
    names = [f"card_{name}" for name in NAMES]
    with ScriptedEngine([chr(65 + index) for index in range(20)]) as server:
        project, folder = project_folder(
            [{"text": f"note {number} about {names[number % 30]}"} for number in range(20)],
            labels=names,
            engine={"kind": "openai", "model": "scripted.gguf", "slots": 2, "endpoints": [server.url]},
            embedding={"kind": "llama-server", "model": "scripted", "endpoints": [server.url]},
        )
        ingest(project, folder)
        embedder = connect_embedder(project)
        assert embedder is not None
        embed_missing(project, folder, embedder)
        engine = connect_engine(project)

        problems = problems_of(folder.root)
        prompt = bound_prompts(project, folder, engine)[0]
        lists = label_lists(project, folder, engine, prompt)

        assert problems == [] and lists is not None
        texts = texts_of(project, folder, record_ids(project, folder))
        outcome = score_batch(engine, prompt, list(texts.items()), prompt_for=lists.prompt_for)
        own = lists.prompt_for(outcome.scored[0].record_id)
    close_shared()
    assert [code.text for code in own.codes] == [f" {chr(65 + index)}" for index in range(20)]
    assert len(outcome.scored) == 20 and len(outcome.scored[0].log_probs) == 30
