"""One label a record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from schemas.project import LabelSchema
from schemas.values import Value


@dataclass(frozen=True)
class Classification:
    """Value: the label's name."""

    labels: tuple[str, ...]
    editor: str = "classification"
    one_token: bool = True
    rubric: tuple[str, ...] = ()
    export_names: tuple[str, ...] = ("label",)

    def check(self, value: Value, text: str) -> None:
        if not isinstance(value, str) or value not in self.labels:
            raise ValueError(f"{value!r} is none of the labels {', '.join(self.labels)}")

    def normal(self, value: Value) -> Value:
        return value

    def distance(self, first: Value, second: Value) -> float:
        return 0.0 if first == second else 1.0

    def parts(self, value: Value) -> Sequence[str]:
        return [value]

    def from_source(self, cell: object) -> Value:
        if cell is None:
            return None
        name = str(cell).strip()
        if not name:
            return None
        self.check(name, "")
        return name

    def export_columns(self, value: Value) -> Mapping[str, Any]:
        return {"label": value}


def build(schema: LabelSchema) -> Classification:
    """The task type object of a classification project."""
    return Classification(schema.names)
