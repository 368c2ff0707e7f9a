"""Models side by side on reviewed records, and the throughput of the hardware, with a scripted engine."""

import re
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from scripted_engine import ScriptedEngine
from small_projects import ProjectFactory

from labeling.benchmarking import bench, bench_row
from labeling.comparing import PACE_RECORDS, _pace, compare, comparison_table, reviewed_sample
from labeling.engines.http import EngineConnection
from labeling.engines.llama_server import LlamaServer
from labeling.engines.ollama_server import OllamaServer
from labeling.engines.opening import connect_engine
from labeling.ingest import ingest
from labeling.record_store import record_ids, texts_of
from labeling.score_store import register
from labeling.setup import Tried, bound_prompts, measure_prompts
from labeling.storage import project_lock
from schemas.errors import BusyError, ProjectError, SourceError

ROWS = [{"text": f"record {number} is {('alpha', 'beta')[number % 2]}"} for number in range(60)]


def project_with(
    scripted: ScriptedEngine, make: ProjectFactory, kind: str = "llama-server"
) -> tuple[Any, Any, Any]:
    engine = {"kind": kind, "model": "scripted.gguf", "context": 512, "slots": 2, "endpoints": [scripted.url]}
    project, folder = make(ROWS, engine=engine)
    ingest(project, folder)
    texts = texts_of(project, folder, record_ids(project, folder))
    truth = {record_id: "alpha" if "alpha" in text else "beta" for record_id, text in texts.items()}
    return project, folder, truth


def test_every_prompt_and_strength_is_a_row_and_the_best_is_first(
    scripted: ScriptedEngine, project_folder: ProjectFactory
) -> None:
    project, folder, truth = project_with(scripted, project_folder)

    answer = compare(project, folder, truth, ["scripted.gguf"])

    rows = answer["models"]
    assert [row["right"] for row in rows] == sorted((row["right"] for row in rows), reverse=True)
    assert rows[0]["right"] == 60 and rows[0]["accuracy"]["low"] > 0.9
    assert {row["batch_calibration"] for row in rows} == {0.0, 1.0}
    assert all(row["records_per_hour"] > 0 and row["n"] == 60 for row in rows)
    assert {row["changed_by_label_order"] for row in rows} == {
        0.0
    }  # the scripted model reads the record only
    assert answer["recommended"]["model"] == "scripted.gguf"
    assert "| scripted.gguf (Q4_0) |" in comparison_table(answer)
    level = sum(row["right"] == 60 for row in rows)
    assert level > 1 and f"(60 of 60 right), as {level - 1} more of the rows" in answer["reason"]


def test_the_sample_to_compare_on_is_looked_up_and_written_nowhere(project_folder: ProjectFactory) -> None:
    rows = [{**row, "gold": "alpha" if "alpha" in row["text"] else "beta"} for row in ROWS]
    project, folder = project_folder(rows, source={"gold": "gold"}, setup={"sample": 20})
    ingest(project, folder)

    assert len(reviewed_sample(project, folder)) == 20
    assert not folder.sample.exists()


def test_the_pace_is_measured_on_texts_that_no_cache_holds_the_start_of(
    scripted: ScriptedEngine, project_folder: ProjectFactory
) -> None:
    project, folder, truth = project_with(scripted, project_folder)
    texts = set(texts_of(project, folder, sorted(truth)).values())

    compare(project, folder, truth, ["scripted.gguf"])
    compare(project, folder, truth, ["scripted.gguf"])

    paced = [asked for asked in scripted.asked if asked not in texts and asked.partition(" ")[2] in texts]
    prompts = len(project.prompts.files)
    assert len(paced) == 2 * PACE_RECORDS * prompts
    assert len({asked.partition(" ")[0] for asked in paced}) == len(paced)
    assert not any(asked.startswith(text) for asked in paced for text in texts)


def test_the_pace_is_measured_with_the_start_of_the_prompt_in_the_cache(
    scripted: ScriptedEngine, project_folder: ProjectFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, folder, truth = project_with(scripted, project_folder)
    complete, warmed, paced = scripted.completion, [""], []

    def remember(body: dict[str, Any]) -> dict[str, Any]:
        asked = scripted.text_of(body["prompt"])
        if not body.get("n_predict"):
            warmed[0] = asked
        elif re.search(r"Text: [0-9a-f]{6} record", asked):
            paced.append(asked.startswith(warmed[0]))
        return complete(body)

    monkeypatch.setattr(scripted, "completion", remember)

    compare(project, folder, truth, ["scripted.gguf"])

    assert paced == [True] * PACE_RECORDS * len(project.prompts.files)


def test_the_pace_is_that_of_records_fitted_as_the_project_says(
    scripted: ScriptedEngine, project_folder: ProjectFactory
) -> None:
    project, folder, truth = project_with(scripted, project_folder)
    prompts = project.prompts.model_copy(update={"files": ("builtin:plain",), "over_long": "windows"})
    project = project.model_copy(update={"prompts": prompts})
    texts = texts_of(project, folder, sorted(truth))
    long = {record_id: f"{text} " + "word " * 600 for record_id, text in texts.items()}
    with closing(connect_engine(project)) as engine:
        (prompt,) = bound_prompts(project, folder, engine)
        tried = Tried(prompt, register(project, folder, engine, prompt), *[np.zeros(0)] * 3)  # type: ignore[arg-type]

        _pace(project, folder, engine, tried, sorted(truth), long)

    assert scripted.asked.total() >= 2 * PACE_RECORDS


def test_a_model_that_takes_what_is_named_first_is_found_out(
    scripted: ScriptedEngine, project_folder: ProjectFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, folder, truth = project_with(scripted, project_folder)
    asked = scripted.text_of

    def first_named(record: str) -> list[float]:
        prompt = last[0]
        return [-0.2, -2.0] if prompt.index("alpha") < prompt.index("beta") else [-2.0, -0.2]

    last = [""]

    def remember(ids: Any) -> str:
        last[0] = asked(ids)
        return last[0]

    monkeypatch.setattr(scripted, "text_of", remember)
    monkeypatch.setattr(scripted, "label_log_probs", first_named)

    answer = compare(project, folder, truth, ["scripted.gguf"])

    raw = [row for row in answer["models"] if row["batch_calibration"] == 0.0]
    assert {row["changed_by_label_order"] for row in raw} == {1.0}
    assert "| 100% |" in comparison_table(answer)


def test_a_model_that_is_not_there_is_a_row_of_its_own(
    scripted: ScriptedEngine, project_folder: ProjectFactory
) -> None:
    project, folder, truth = project_with(scripted, project_folder, kind="ollama")

    answer = compare(project, folder, truth, ["nothing-like-it", "scripted.gguf"])

    assert answer["recommended"]["model"] == "scripted.gguf"
    assert [row["model"] for row in answer["models"] if "error" in row] == ["nothing-like-it"]
    assert "could not be tried" in comparison_table(answer)
    assert {row["memory_mb"] for row in answer["models"] if "error" not in row} == {123}


def test_a_llama_server_is_compared_with_one_model_only(
    scripted: ScriptedEngine, project_folder: ProjectFactory
) -> None:
    project, folder, truth = project_with(scripted, project_folder)

    with pytest.raises(ProjectError):
        compare(project, folder, truth, ["a", "b"])


def test_a_llama_server_is_called_by_the_model_that_it_serves(
    scripted: ScriptedEngine, project_folder: ProjectFactory
) -> None:
    project, folder, truth = project_with(scripted, project_folder)

    answer = compare(project, folder, truth, ["qwen-72b"])

    assert {row["model"] for row in answer["models"]} == {"scripted.gguf"}
    assert answer["recommended"]["model"] == "scripted.gguf"


def test_a_project_at_work_is_not_compared(scripted: ScriptedEngine, project_folder: ProjectFactory) -> None:
    project, folder, truth = project_with(scripted, project_folder)

    with project_lock(folder.lock, "pre-annotation"), pytest.raises(BusyError):
        compare(project, folder, truth, ["scripted.gguf"])


def test_a_prompt_the_model_does_not_answer_is_no_better_than_wrong_and_stops_no_other(
    scripted: ScriptedEngine, project_folder: ProjectFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, folder, truth = project_with(scripted, project_folder, kind="ollama")
    (folder.root / "odd.jinja").write_text("An odd prompt.\nText: {{ text }}\nLabel:")
    files = project.prompts.model_copy(update={"files": ("builtin:plain", "odd.jinja")})
    project = project.model_copy(update={"prompts": files})
    told = scripted.told_by_text

    def no_label(prompt: str) -> Any:
        found = told(prompt)
        return found if found is None or "odd" not in prompt else (found[0], [("the", -0.1), ("a", -3.0)])

    monkeypatch.setattr(scripted, "told_by_text", no_label)

    answer = compare(project, folder, truth, ["scripted.gguf"])
    with closing(connect_engine(project)) as engine:
        plan, figures = measure_prompts(project, folder, engine, truth)

    odd = [row for row in answer["models"] if row.get("prompt") == "odd.jinja"]
    assert {(row["right"], row["unusable"], row["n"]) for row in odd} == {(0, 60, 60)}
    assert answer["recommended"]["prompt"] == plan.template == "builtin:plain"
    assert {one["unusable"] for one in figures["candidates"]} == {0, 60}
    assert comparison_table(answer)


def test_what_was_never_right_is_not_recommended(
    scripted: ScriptedEngine, project_folder: ProjectFactory
) -> None:
    project, folder, truth = project_with(scripted, project_folder)
    wrong = {record_id: "beta" if label == "alpha" else "alpha" for record_id, label in truth.items()}

    answer = compare(project, folder, wrong, ["scripted.gguf"])

    assert answer["recommended"] is None and "right on no record" in answer["reason"]
    assert "0/60" in comparison_table(answer)


def test_a_reviewed_label_that_is_gone_is_told(
    scripted: ScriptedEngine, project_folder: ProjectFactory
) -> None:
    project, folder, truth = project_with(scripted, project_folder)
    truth[next(iter(truth))] = "gamma"

    with pytest.raises(ProjectError, match="no label 'gamma'"):
        compare(project, folder, truth, ["scripted.gguf"])
    with closing(connect_engine(project)) as engine, pytest.raises(ProjectError, match="no label 'gamma'"):
        measure_prompts(project, folder, engine, truth)


def test_too_few_reviewed_records_are_refused(
    scripted: ScriptedEngine, project_folder: ProjectFactory
) -> None:
    project, folder, truth = project_with(scripted, project_folder)

    with pytest.raises(SourceError) as caught:
        compare(project, folder, dict(list(truth.items())[:9]), ["scripted.gguf"])

    assert "at least 10" in caught.value.expected


def test_the_bench_counts_what_it_did(scripted: ScriptedEngine, connect: Callable[..., LlamaServer]) -> None:
    scripted.labels = ("Question", "Complaint", "Request", "Other")
    scripted.context = 4096
    scripted._codes = [connect(scripted).first_token(f" {label}").id for label in scripted.labels]

    answer = bench(connect(scripted), records=8)

    assert answer["records"] == 8 and answer["set_aside"] == 0
    assert answer["records_per_hour"] > 0 and answer["engine_limit_share"] > 0
    assert answer["hardware"] in bench_row(answer)


def test_a_context_too_small_for_the_bench_is_told(
    scripted: ScriptedEngine, connect: Callable[..., LlamaServer]
) -> None:
    scripted.context = 256

    with pytest.raises(ProjectError, match="Raise engine.context"):
        bench(connect(scripted), records=4)


def test_the_bench_counts_what_ollama_says_it_computed(scripted: ScriptedEngine) -> None:
    scripted.labels, scripted.context = ("Question", "Complaint", "Request", "Other"), 4096
    scripted.hidden = {"prompt_eval_count": 400, "prompt_eval_cached_count": 150}
    connection = EngineConnection(scripted.url, timeout_s=5)

    answer = bench(OllamaServer(connection, model="scripted.gguf", context=4096, slots=2), records=4)

    assert answer["tokens_per_record"] == 250
