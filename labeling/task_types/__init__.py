"""Everything that differs between the four task types, one folder each, behind one protocol."""

from labeling.task_types.protocol import TaskTypeProtocol, registered_task_type
from schemas.project import LabelSchema, Project

__all__ = ["TaskTypeProtocol", "task_type"]


def task_type(project: Project | LabelSchema) -> TaskTypeProtocol:
    """The task type of a project, bound to its label schema."""
    schema = project if isinstance(project, LabelSchema) else project.label_schema
    return registered_task_type(schema)
