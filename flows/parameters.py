"""What a person fills in to start a flow: one model a flow, from which the Prefect UI makes its form."""

from pydantic import BaseModel, ConfigDict, Field

from labeling.database.opening import project_database
from labeling.project_file import load_project
from labeling.status import PHASES, position


class ProjectRun(BaseModel):
    """Which project."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    project: str = Field(
        title="Project folder",
        description="The folder that holds project.yaml, on the machine where the flow runs. Leave it as it is.",
    )


class RoundRun(ProjectRun):
    """Which project and which of its rounds."""

    round_number: int = Field(
        default=0, ge=0, title="Round", description="0 takes the round that the project stands at."
    )


REHEARSAL = Field(
    default=False,
    title="Rehearsal",
    description="Stamps everything as simulated, for ever. Only for a project nobody has labelled for real.",
)


class PipelineRun(RoundRun):
    """One round from where it stands to the plan of the next."""


class SetupRun(ProjectRun):
    """Reading the sources and trying the prompts."""

    rehearsal: bool = REHEARSAL


class PreAnnotateRun(RoundRun):
    """Drafts of a round."""


class ReviewRun(RoundRun):
    """The review of a round, up to the lead's signature."""

    rehearsal: bool = REHEARSAL


class QaRun(RoundRun):
    """Quality assurance of a signed round."""


class ExportRun(RoundRun):
    """The release after a round."""


class IterateRun(RoundRun):
    """What a round taught: also after a changed prompt."""


class CompareRun(ProjectRun):
    """Models and prompts side by side."""

    models: list[str] = Field(
        default=[],
        title="Models",
        description="Names as the engine knows them, or paths of .gguf files; none takes the project's own.",
    )


class RemindRun(ProjectRun):
    """Who or what is waited for."""


def round_of(run: RoundRun, phase: str) -> int:
    """The round that was asked for; for 0 the latest one that this phase can be done (or done again) for."""
    if run.round_number:
        return run.round_number
    project, folder = load_project(run.project)
    with project_database(project, folder) as db:
        where = position(project, folder, db)
    reached = PHASES.index(where.phase) >= PHASES.index(phase)
    done_before = phase in ("qa", "export", "iterate") and not reached
    return max(1, where.round - 1) if done_before else where.round
