"""Serves the flows of one or several projects as deployments; each project has one run at a time."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import serve
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.schedules import Cron

from flows.compare import compare
from flows.export import export
from flows.iterate import iterate
from flows.pipeline import pipeline
from flows.pre_annotate import pre_annotate
from flows.qa import qa
from flows.review import review
from flows.setup import setup
from labeling.project_file import load_project
from schemas.project import Project

FLOWS: dict[str, tuple[Any, str]] = {
    "pipeline": (pipeline, "One round from where it stands: waits at the gate for the lead's signature."),
    "setup": (setup, "Read sources, queue the blind sample, try the prompts on it."),
    "pre_annotate": (pre_annotate, "Let the model draft a label for every record of a round."),
    "review": (review, "Open a round for the annotators and wait for the lead's signature."),
    "qa": (qa, "Agreement, findings, adjudication and gold of a signed round."),
    "export": (export, "Check and write the release after a round."),
    "compare": (
        compare,
        "Candidate models and prompts side by side on the reviewed sample; changes nothing.",
    ),
    "iterate": (iterate, "Learn from the settled labels: plan of the next round. Run after a prompt change."),
}


def deployments_of(project: Project, path: Path) -> list[Any]:
    """The deployments of a project, named `FLOW/PROJECT`."""
    limit = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE)
    built = []
    for name, (flow, description) in FLOWS.items():
        cron = project.schedules.pre_annotate if name == "pre_annotate" else None
        built.append(
            flow.to_deployment(
                name=project.name,
                parameters={"project": str(path)},
                description=description,
                tags=["countersign", project.name],
                concurrency_limit=limit,
                schedules=[Cron(cron)] if cron else None,
            )
        )
    return built


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves until it is stopped."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--rehearsal", action="store_true", help="only the gate; the rest runs in the rehearsal itself"
    )
    parser.add_argument("projects", nargs="+", type=Path)
    options = parser.parse_args(arguments)
    built: list[Any] = []
    for path in options.projects:
        project, folder = load_project(path)
        every = deployments_of(project, folder.root)
        built += (
            [entry for entry in every if entry.entrypoint.endswith(":review")] if options.rehearsal else every
        )
    serve(*built, pause_on_shutdown=False)


if __name__ == "__main__":
    main()
