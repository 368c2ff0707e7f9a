"""Instruction, input and output written from a source record."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from schemas.project import LabelSchema
from schemas.values import Value

_FIELDS = ("instruction", "input", "output")


@dataclass(frozen=True)
class Pairs:
    """Value: {"instruction", "input", "output"}; input may be empty, the other two may not."""

    labels: tuple[str, ...]
    editor: str = "pairs"
    one_token: bool = False
    rubric: tuple[str, ...] = ("faithfulness", "usefulness")
    export_names: tuple[str, ...] = ("instruction", "input", "output")

    def check(self, value: Value, text: str) -> None:
        if not isinstance(value, dict) or set(value) != set(_FIELDS):
            raise ValueError(f"{value!r} is no pair of instruction, input and output")
        for field in _FIELDS:
            if not isinstance(value[field], str):
                raise ValueError(f"{field} is {value[field]!r}, no text")
        for field in ("instruction", "output"):
            if not value[field].strip():
                raise ValueError(f"{field} is empty")

    def normal(self, value: Value) -> Value:
        return {field: value[field] for field in _FIELDS}

    def distance(self, first: Value, second: Value) -> float:
        """1 - character-level similarity of the three fields laid end to end."""
        if first == second:
            return 0.0
        a, b = ("\n".join(value[field] for field in _FIELDS) for value in (first, second))
        return max(1.0 - SequenceMatcher(None, a, b, autojunk=False).ratio(), 1e-9)

    def parts(self, value: Value) -> Sequence[str]:
        return []

    def from_source(self, cell: object) -> Value:
        if cell is None or cell == "":
            return None
        pair = json.loads(cell) if isinstance(cell, str) else cell
        self.check(pair, "")
        return self.normal(pair)

    def export_columns(self, value: Value) -> Mapping[str, Any]:
        return dict(value)


def build(schema: LabelSchema) -> Pairs:
    """The task type object of a pairs project."""
    return Pairs(schema.names)
