"""Candidate models and prompts side by side, before a project's engine or prompts are changed."""

from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact

from flows.parameters import CompareRun
from labeling.comparing import compare as compare_models
from labeling.comparing import comparison_table, reviewed_sample
from labeling.project_file import load_project
from tasks.artifacts import artifact_key


@flow(name="compare", persist_result=True)
def compare(run: CompareRun) -> dict[str, Any]:
    """Tries every model (the project's own where none is named) with every prompt on the reviewed sample; changes
    nothing. The table with its recommendation is the run's artifact."""
    loaded, folder = load_project(run.project)
    truth = reviewed_sample(loaded, folder)
    logger = get_run_logger()
    answer = compare_models(
        loaded,
        folder,
        truth,
        run.models or [loaded.engine.model],
        on_model=lambda name: logger.info("%s: %d records ...", name, len(truth)),
    )
    create_markdown_artifact(
        comparison_table(answer), key=artifact_key(loaded.name, "comparison"), description=answer["reason"]
    )
    return answer
