"""The one protocol a task type fulfils, and how a new one is found.

A fifth task type is a new folder here and a new `TaskType`; nothing else asks which type a project has.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from schemas.project import LabelSchema
from schemas.values import Value


class TaskTypeProtocol(Protocol):
    """What everything else may ask of a task type."""

    labels: tuple[str, ...]
    editor: str  # name of the review page's editor module
    rubric: tuple[str, ...]  # what a value is scored on, each from 1 to 5; empty: nothing
    one_token: bool  # a suggestion is read from one token's label distribution
    export_names: tuple[str, ...]  # columns of the training table, beside record_id and text

    def check(self, value: Value, text: str) -> None:
        """Raises ValueError with a sentence when `value` (never None) is no legal value for this text."""

    def normal(self, value: Value) -> Value:
        """The canonical spelling of a legal value: sorted, without repetitions."""

    def distance(self, first: Value, second: Value) -> float:
        """How far two values are apart in [0, 1]; 0 only when equal."""

    def parts(self, value: Value) -> Sequence[str]:
        """Label names inside a value, for class balance; empty when there is nothing."""

    def from_source(self, cell: object) -> Value:
        """A value from a gold column's cell (text, JSON text, list); None when the cell is empty."""

    def export_columns(self, value: Value) -> Mapping[str, Any]:
        """The columns `export_names` for a settled value."""


def registered_task_type(schema: LabelSchema) -> TaskTypeProtocol:
    """Builds the task type object of a label schema from its folder."""
    module = importlib.import_module(f"labeling.task_types.{schema.task.value}")
    built: TaskTypeProtocol = module.build(schema)
    return built
