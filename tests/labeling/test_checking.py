"""`countersign check` finds everything that would stop a run later."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripted_engine import ScriptedEngine
from small_projects import ProjectFactory, SmallDisk, write_project

from labeling.checking import problems_of
from labeling.storage import project_lock
from schemas.errors import LabelingError

ROWS = [{"text": f"text {number}"} for number in range(5)]


@pytest.fixture
def check(project_folder: ProjectFactory, scripted: ScriptedEngine) -> Callable[..., list[LabelingError]]:
    """Problems of a small project, after `change` was done to its folder."""

    def run(
        rows: list[dict[str, Any]] = ROWS,
        change: Callable[[Path], object] = lambda root: None,
        **settings: Any,
    ) -> list[LabelingError]:
        _, folder = project_folder(rows, engine_url=scripted.url, **settings)
        change(folder.root)
        return problems_of(folder.root)

    return run


def test_a_project_that_can_run_has_no_problems(check: Callable[..., list[LabelingError]]) -> None:
    assert check() == []


def test_several_problems_are_told_together_in_the_order_to_mend_them(
    check: Callable[..., list[LabelingError]], scripted: ScriptedEngine
) -> None:
    scripted.misbehave("telephone", "500")

    def damage(root: Path) -> None:
        (root / "guideline.md").unlink()
        (root / "records.jsonl").write_text("")

    found = check(change=damage)

    assert [problem.path.rsplit("/", 1)[-1] for problem in found] == [
        "schema.guideline",
        "records.jsonl",
        "completion",
    ]
    assert all(set(problem.as_problem()) == {"path", "found", "expected", "next"} for problem in found)


def test_every_problem_of_the_project_file_is_told(check: Callable[..., list[LabelingError]]) -> None:
    def damage(root: Path) -> None:
        with (root / "project.yaml").open("a") as file:
            file.write("seed: -4\nnonsense: 1\n")

    assert [problem.path.rsplit(" ", 1)[-1] for problem in check(change=damage)] == ["seed", "nonsense"]


def test_a_folder_without_a_project_is_one_problem(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path)

    assert problem.found == "no such file"


def test_a_source_without_a_usable_row_is_a_problem(check: Callable[..., list[LabelingError]]) -> None:
    (problem,) = check(change=lambda root: (root / "records.jsonl").write_text("{\n" * 3))

    assert "records.jsonl" in problem.path


def test_a_source_whose_gold_is_no_label_is_a_problem(check: Callable[..., list[LabelingError]]) -> None:
    source = {"path": "records.jsonl", "gold": "truth"}
    rows = [{"text": f"text {number}", "truth": "gamma"} for number in range(5)]

    (problem,) = check(rows, sources=[source])

    assert "unknown gold value" in problem.found and "gamma" in problem.found


def test_a_guideline_that_is_no_text_is_a_problem(check: Callable[..., list[LabelingError]]) -> None:
    (problem,) = check(change=lambda root: (root / "guideline.md").write_bytes(b"\xff\xfe\x00"))

    assert problem.path == "schema.guideline" and "UTF-8" in problem.next_step


def test_a_database_or_an_embedder_that_is_not_there_is_a_problem(
    check: Callable[..., list[LabelingError]],
) -> None:
    found = check(
        storage={"database": "NO_SUCH_VARIABLE"}, embedding={"kind": "embedded", "model": "no-such-model"}
    )

    assert [problem.path.split(" ")[0] for problem in found] == ["storage.database", "model"]


@pytest.mark.parametrize("address", ["postgresql://me:secret@127.0.0.1:9/x", "postgresql://me@host:port/x"])
def test_a_postgresql_that_does_not_answer_is_a_problem(
    address: str, check: Callable[..., list[LabelingError]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMALL_DATABASE", address)

    (problem,) = check(storage={"database": "SMALL_DATABASE"})

    assert "PostgreSQL" in problem.found or problem.path == "storage.database"
    assert "secret" not in str(problem)


def test_an_engine_that_does_not_answer_is_a_problem(
    project_folder: ProjectFactory, scripted: ScriptedEngine
) -> None:
    _, folder = project_folder(ROWS, engine_url="http://127.0.0.1:9")

    (problem,) = problems_of(folder.root)

    assert problem.path == "http://127.0.0.1:9/props"
    assert problem.next_step == "Check that the engine runs."


def test_an_engine_on_another_machine_is_a_problem(project_folder: ProjectFactory) -> None:
    _, folder = project_folder(ROWS, engine_url="http://192.0.2.7:8080")

    (problem,) = problems_of(folder.root)

    assert (problem.path, problem.found) == ("engine.endpoints", "host '192.0.2.7'")


def test_a_missing_model_file_is_a_problem(project_folder: ProjectFactory) -> None:
    _, folder = project_folder(ROWS, engine={"kind": "embedded", "model": "no-such-model"})

    (problem,) = problems_of(folder.root)

    assert problem.path == "model 'no-such-model'"


def test_a_digest_named_for_a_server_is_taken_as_told(
    project_folder: ProjectFactory, scripted: ScriptedEngine
) -> None:
    engine = {"kind": "llama-server", "endpoints": [scripted.url], "digest": "a" * 64}
    _, folder = project_folder(ROWS, engine=engine)

    assert problems_of(folder.root) == []  # a server's weights cannot be hashed from here


def test_a_prompt_that_leaves_no_room_is_a_problem(
    check: Callable[..., list[LabelingError]], scripted: ScriptedEngine
) -> None:
    scripted.context = 64

    (problem,) = check()

    assert problem.path == "prompts.files: builtin:plain"


def test_a_missing_prompt_file_is_a_problem(check: Callable[..., list[LabelingError]]) -> None:
    (problem,) = check(prompts={"files": ["prompts/none.jinja"]})

    assert problem.path == "prompts.files: prompts/none.jinja"


def test_a_project_that_is_at_work_is_a_problem(
    project_folder: ProjectFactory, scripted: ScriptedEngine
) -> None:
    _, folder = project_folder(ROWS, engine_url=scripted.url)

    with project_lock(folder.lock, "pre-annotation"):
        (problem,) = problems_of(folder.root)

    assert "pre-annotation" in problem.found


def test_a_small_and_a_read_only_disk_are_problems(small_disk: SmallDisk, scripted: ScriptedEngine) -> None:
    write_project(small_disk.root / "project", ROWS, engine_url=scripted.url)
    small_disk.read_only()

    found = problems_of(small_disk.root / "project")

    assert ["GB free" in problem.found for problem in found] == [True, False]
    assert found[1].found == "a folder that cannot be written"


def test_a_task_type_the_flows_cannot_run_yet_is_a_problem(check: Callable[..., list[LabelingError]]) -> None:
    def change(root: Path) -> None:
        file = root / "project.yaml"
        file.write_text(file.read_text().replace("task: classification", "task: entities"))

    (problem,) = check(change=change)

    assert (problem.path, problem.found) == ("schema.task", "entities")
