"""What quality assurance flagged in a round, as it stands; light enough for the review app to read."""

import polars as pl

from labeling.paths import ProjectFolder
from labeling.storage import Table
from schemas import tables
from schemas.project import Project


def load_findings(project: Project, folder: ProjectFolder, number: int) -> pl.DataFrame:
    """Findings of a round as they stand: an outcome is a later row of the same finding, and the last one counts."""
    table = Table(folder.round(number).findings, tables.findings(project.label_schema.task))
    return table.read().group_by("finding_id", maintain_order=True).last().select(table.schema.names)
