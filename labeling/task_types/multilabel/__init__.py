"""Any number of labels a record; the empty list means "none of them applies"."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from schemas.project import LabelSchema
from schemas.values import Value


@dataclass(frozen=True)
class MultiLabel:
    """Value: sorted list of label names."""

    labels: tuple[str, ...]
    editor: str = "multilabel"
    one_token: bool = False
    rubric: tuple[str, ...] = ()
    export_names: tuple[str, ...] = ("labels",)

    def check(self, value: Value, text: str) -> None:
        if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
            raise ValueError(f"{value!r} is no list of labels")
        unknown = [part for part in value if part not in self.labels]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is none of the labels {', '.join(self.labels)}")
        if len(set(value)) != len(value):
            raise ValueError(f"{value!r} names a label twice")

    def normal(self, value: Value) -> Value:
        return sorted(value)

    def distance(self, first: Value, second: Value) -> float:
        """Jaccard distance of the two label sets."""
        a, b = set(first), set(second)
        return 1.0 - len(a & b) / len(a | b) if a | b else 0.0

    def parts(self, value: Value) -> Sequence[str]:
        return list(value)

    def from_source(self, cell: object) -> Value:
        if cell is None or cell == "":
            return None
        parts = json.loads(cell) if isinstance(cell, str) and cell.lstrip().startswith("[") else cell
        if isinstance(parts, str):
            parts = [part.strip() for part in parts.split(",") if part.strip()]
        if not isinstance(parts, list):
            raise ValueError(f"{cell!r} is no list of labels")
        self.check(parts, "")
        return self.normal(parts)

    def export_columns(self, value: Value) -> Mapping[str, Any]:
        return {"labels": value}


def build(schema: LabelSchema) -> MultiLabel:
    """The task type object of a multi-label project."""
    return MultiLabel(schema.names)
