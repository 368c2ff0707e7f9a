"""The deployments of a project: what a lead finds in the Prefect UI, however they are served."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.project import Project

TAG = "countersign"
FROM_YAML = "project-yaml"  # slug of the schedules that the project file asks for; others are the lead's


@dataclass(frozen=True)
class Entry:
    """A deployment as every project has it.

    Attributes:
        name: Of the flow, and of its file in `flows/`.
        description: Markdown for somebody who does not program.
        cron: Where the project's file may say when it runs by itself.
    """

    name: str
    description: str
    cron: Callable[[Project], str | None] = lambda _project: None


CATALOGUE = (
    Entry(
        "pipeline",
        "One round from where it stands to the plan of the next. Waits at the gate for the lead's signature, as long "
        "as it takes. Where the sample or disputes are open it ends and says so: run it again once they are done.",
    ),
    Entry(
        "setup",
        "Reads what is new in the sources, puts a blind sample before the annotators and, once they have labelled it, "
        "says which prompt is best and whether it is good enough.",
    ),
    Entry(
        "pre_annotate",
        "Lets the model draft a label for every record of a round. Broken off, it goes on where it stopped.",
        lambda project: project.schedules.pre_annotate,
    ),
    Entry(
        "review",
        "Puts a round before the annotators and waits for the lead's signature: open the waiting run, press Resume, "
        "read the figures, fill in the form.",
    ),
    Entry("qa", "Agreement, findings, disputes and gold labels of a signed round, with a report."),
    Entry("export", "Checks a round's labels and writes the release. A failed check blocks it and is named."),
    Entry(
        "iterate",
        "Learns from everything settled and plans the next round. Run it again after a prompt was changed: the new "
        "prompt has to prove itself on reviewed records.",
    ),
    Entry(
        "compare",
        "Candidate models and prompts side by side on the reviewed sample, with a recommendation. Changes nothing.",
    ),
    Entry(
        "remind",
        "Says who or what the project waits for. Changes nothing; ends as Waiting where people are waited for.",
        lambda project: project.schedules.gate_reminder,
    ),
)


def flow_of(entry: Entry) -> Any:
    """The flow behind a deployment; imported late, Prefect costs a second."""
    from importlib import import_module

    return getattr(import_module(f"flows.{entry.name}"), entry.name)


def tags_of(project: Project) -> list[str]:
    return [TAG, project.name]


def parameters_of(root: Path) -> dict[str, Any]:
    return {"run": {"project": str(root)}}


def deployments_of(project: Project, root: Path, only: Sequence[str] = ()) -> list[Any]:
    """The deployments of a project, named FLOW/PROJECT; `only` those named, if any are.

    Schedules are not among them: `follow_schedules` sets those of the project file and leaves a lead's own alone.
    """
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy

    limit = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE)
    return [
        flow_of(entry).to_deployment(
            name=project.name,
            parameters=parameters_of(root),
            description=entry.description,
            tags=tags_of(project),
            concurrency_limit=limit,
        )
        for entry in CATALOGUE
        if not only or entry.name in only
    ]


def follow_schedules(client: Any, project: Project) -> None:
    """Makes the registered deployments run when the project file says; schedules made in the UI stay as they are."""
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import CronSchedule

    for entry in CATALOGUE:
        wanted = entry.cron(project)
        deployment = client.read_deployment_by_name(f"{entry.name}/{project.name}")
        ours = [schedule for schedule in deployment.schedules if schedule.slug == FROM_YAML]
        made = CronSchedule(cron=wanted, timezone=zone_of(project)) if wanted else None
        if [schedule.schedule for schedule in ours] == ([made] if made else []):
            continue
        for schedule in ours:
            client.delete_deployment_schedule(deployment.id, schedule.id)
        if made is not None:
            asked = DeploymentScheduleCreate(schedule=made, active=True, slug=FROM_YAML)
            client.create_deployment_schedules(deployment.id, [asked])


def zone_of(project: Project) -> str:
    """The time zone of the schedules: the project's, or this machine's."""
    if project.schedules.timezone is not None:
        return project.schedules.timezone
    local = Path("/etc/localtime").resolve().as_posix()
    return local.partition("/zoneinfo/")[2] or "UTC"
