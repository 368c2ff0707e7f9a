"""Spans of text with a label; offsets in Unicode code points, end exclusive, with the quoted text."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from schemas.project import LabelSchema
from schemas.values import Value


@dataclass(frozen=True)
class Entities:
    """Value: list of spans sorted by start, end, label."""

    labels: tuple[str, ...]
    overlapping: bool
    editor: str = "entities"
    one_token: bool = False
    rubric: tuple[str, ...] = ()
    export_names: tuple[str, ...] = ("spans",)

    def check(self, value: Value, text: str) -> None:
        if not isinstance(value, list):
            raise ValueError(f"{value!r} is no list of spans")
        taken: list[tuple[int, int, str]] = []
        for span in value:
            if not isinstance(span, dict) or set(span) != {"start", "end", "label", "quote"}:
                raise ValueError(f"{span!r} is no span of start, end, label and quote")
            start, end = span["start"], span["end"]
            whole = all(isinstance(edge, int) and not isinstance(edge, bool) for edge in (start, end))
            if not whole or not 0 <= start < end <= len(text):
                raise ValueError(f"span {start}-{end} is not inside a text of {len(text)} characters")
            if text[start:end] != span["quote"]:
                raise ValueError(
                    f"span {start}-{end} quotes {span['quote']!r}; the text has {text[start:end]!r}"
                )
            if span["label"] not in self.labels:
                raise ValueError(f"{span['label']!r} is none of the labels {', '.join(self.labels)}")
            key = (start, end, span["label"])
            if key in taken:
                raise ValueError(f"span {start}-{end} {span['label']} twice")
            if not self.overlapping and any(start < other[1] and other[0] < end for other in taken):
                raise ValueError(f"span {start}-{end} overlaps another; the schema does not allow it")
            taken.append(key)

    def normal(self, value: Value) -> Value:
        return sorted(value, key=lambda span: (span["start"], span["end"], span["label"]))

    def distance(self, first: Value, second: Value) -> float:
        """1 - exact span F1; two empty annotations agree fully."""
        a = {(span["start"], span["end"], span["label"]) for span in first}
        b = {(span["start"], span["end"], span["label"]) for span in second}
        return 1.0 - 2 * len(a & b) / (len(a) + len(b)) if a or b else 0.0

    def parts(self, value: Value) -> Sequence[str]:
        return [span["label"] for span in value]

    def from_source(self, cell: object) -> Value:
        if cell is None or cell == "":
            return None
        spans = json.loads(cell) if isinstance(cell, str) else cell
        if not isinstance(spans, list):
            raise ValueError(f"{cell!r} is no list of spans")
        return self.normal([dict(span) for span in spans])

    def export_columns(self, value: Value) -> Mapping[str, Any]:
        return {"spans": value}


def build(schema: LabelSchema) -> Entities:
    """The task type object of an entity project."""
    return Entities(schema.names, schema.allow_overlapping_spans)
