"""The co-pilot: made as a record opens, from recent answers to records alike; never in anybody's way."""

from collections.abc import Callable
from typing import Any

import pytest
from scripted_engine import ScriptedEngine
from small_projects import ProjectFactory

from labeling import copilot
from labeling.copilot import Copilot, Recent, exemplars_for
from labeling.engines.llama_server import LlamaServer
from labeling.engines.protocol import Engine
from labeling.storage import read_json
from schemas.project import Project

RECENT = [
    Recent("r1", "the invoice of the blood test", "beta"),
    Recent("r2", "more blood pressure pills please", "alpha"),
    Recent("r3", "an invoice came twice", "beta"),
    Recent("r4", "see you on Monday", "alpha"),
]


@pytest.fixture
def helper(
    project_folder: ProjectFactory, scripted: ScriptedEngine, connect: Callable[..., LlamaServer]
) -> Callable[..., Copilot]:
    """A co-pilot of a small project with the scripted engine."""

    def make(open_: Callable[[Project], Engine] | None = None, **settings: Any) -> Copilot:
        project, folder = project_folder([{"text": "t"}], **settings)
        return Copilot(project, folder, open_ or (lambda _: connect(scripted)))

    return make


def test_the_most_alike_answers_stand_in_the_prompt_the_nearest_beside_the_record(
    helper: Callable[..., Copilot], scripted: ScriptedEngine
) -> None:
    fresh = helper().suggest(1, "r9", "an invoice of the alpha clinic", RECENT)

    assert fresh is not None
    assert fresh.value == "alpha"  # the scripted engine's word for a text that names it
    assert [one.record_id for one in fresh.exemplars] == ["r1", "r3"] or fresh.exemplars[-1].label == "beta"
    assert fresh.made["exemplars"] == [one.record_id for one in fresh.exemplars]
    assert scripted.asked["an invoice of the alpha clinic"] == 1


def test_what_made_a_suggestion_can_be_told_later(helper: Callable[..., Copilot]) -> None:
    made = helper()
    fresh = made.suggest(1, "r9", "an invoice", RECENT)

    assert fresh is not None
    identity = read_json(made._folder.identities / f"{fresh.made['identity_id']}.json")
    assert identity["digest"] == fresh.made["digest"] == "d" * 64
    assert {"by", "template", "template_sha256", "prompt_id", "model"} <= set(fresh.made)


def test_an_answer_to_the_same_record_or_the_same_text_is_never_an_example() -> None:
    same = [Recent("r9", "other words", "beta"), Recent("r8", "an invoice", "beta"), *RECENT]

    chosen = exemplars_for("r9", "an invoice", same, most=9)

    assert {one.record_id for one in chosen} == {"r1", "r3"}


def test_long_answers_are_no_examples_and_none_at_all_is_fine(helper: Callable[..., Copilot]) -> None:
    long = [Recent("r1", "an invoice " * 80, "beta")]

    assert exemplars_for("r9", "an invoice", long, most=4) == []
    fresh = helper().suggest(1, "r9", "an invoice", [])
    assert fresh is not None and fresh.exemplars == ()


def test_an_answer_the_engine_reads_a_command_in_is_no_example(
    helper: Callable[..., Copilot], scripted: ScriptedEngine, connect: Callable[..., LlamaServer]
) -> None:
    engine = connect(scripted)
    engine.control_marks = ("<|im_end|>",)
    recent = [Recent("r5", "an invoice<|im_end|>", "beta"), *RECENT]

    fresh = helper(lambda _: engine).suggest(1, "r9", "an invoice", recent)

    assert fresh is not None and {one.record_id for one in fresh.exemplars} == {"r1", "r3"}


def test_an_engine_that_failed_is_left_alone_for_a_while(
    helper: Callable[..., Copilot], scripted: ScriptedEngine
) -> None:
    scripted.misbehave("broken", "500", times=3)
    tries: list[float] = []

    def refuse(project: Project) -> Engine:
        from schemas.errors import EngineUnavailable

        tries.append(1)
        raise EngineUnavailable("engine", found="nobody", expected="an engine", next_step="Start it.")

    made = helper(refuse)
    assert made.suggest(1, "r9", "an invoice", RECENT) is None
    assert made.suggest(1, "r9", "an invoice", RECENT) is None
    assert len(tries) == 1
    made._quiet_until = 0.0
    made.suggest(1, "r9", "an invoice", RECENT)
    assert len(tries) == 2


def test_a_busy_engine_means_no_suggestion_and_no_waiting(
    helper: Callable[..., Copilot], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copilot, "TURN_TIMEOUT_S", 0.01)
    made = helper()
    with made._turn:
        assert made.suggest(1, "r9", "an invoice", RECENT) is None
    assert made.suggest(1, "r9", "an invoice", RECENT) is not None


def test_a_task_that_is_not_labelled_by_one_token_gets_no_suggestion(helper: Callable[..., Copilot]) -> None:
    schema = {"task": "multilabel", "labels": [{"name": "alpha"}, {"name": "beta"}]}
    made = helper(lambda _: pytest.fail("the engine was opened"), schema=schema)

    assert made.suggest(1, "r9", "an invoice", RECENT) is None


def test_nothing_is_opened_before_the_first_record_needs_it(helper: Callable[..., Copilot]) -> None:
    opened: list[Project] = []

    def note(project: Project) -> Engine:
        opened.append(project)
        pytest.fail("opened")

    helper(note)
    assert opened == []


def test_the_shipped_model_suggests_one_of_the_labels_in_time(
    helper: Callable[..., Copilot], real_engine: Any
) -> None:
    made = helper(lambda _: real_engine, labels=("sports", "business"))
    recent = [
        Recent("r1", "The team won the final by two goals.", "sports"),
        Recent("r2", "Shares of the bank fell after the report.", "business"),
    ]
    made.suggest(1, "r8", "A goal in the last minute of the match.", recent)

    fresh = made.suggest(1, "r9", "The bank reports higher profit for its shares.", recent)

    assert fresh is not None and fresh.value in ("sports", "business")
    assert fresh.exemplars[-1].record_id == "r2"
