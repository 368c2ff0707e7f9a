"""Label values of the four task types: their Arrow type, canonical JSON and hash.

A value is plain data: `str` (classification), sorted `list[str]` (multi-label), sorted `list[span]` (entities, a span
is `{"start", "end", "label", "quote"}` in Unicode code points, end exclusive) or `{"instruction", "input", "output"}`
(pairs). `None` means "no value" (a failure or a skip); an empty list means "there is nothing". The two never mix.
"""

import hashlib
import json
from enum import StrEnum
from typing import Any

import pyarrow as pa

Value = Any  # one of the four shapes above; the task type's `check` says whether it is legal


class TaskType(StrEnum):
    """The four kinds of labelling work."""

    CLASSIFICATION = "classification"
    MULTILABEL = "multilabel"
    ENTITIES = "entities"
    PAIRS = "pairs"


SPAN_TYPE = pa.struct(
    [
        pa.field("start", pa.int32(), nullable=False),
        pa.field("end", pa.int32(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("quote", pa.string(), nullable=False),
    ]
)
PAIR_TYPE = pa.struct(
    [
        pa.field("instruction", pa.string(), nullable=False),
        pa.field("input", pa.string(), nullable=False),
        pa.field("output", pa.string(), nullable=False),
    ]
)
VALUE_TYPES: dict[TaskType, pa.DataType] = {
    TaskType.CLASSIFICATION: pa.string(),
    TaskType.MULTILABEL: pa.list_(pa.string()),
    TaskType.ENTITIES: pa.list_(SPAN_TYPE),
    TaskType.PAIRS: PAIR_TYPE,
}


def canonical_json(value: object) -> str:
    """The one spelling of a value: sorted keys, no spaces, characters as they are, no NaN.

    >>> canonical_json({"b": 1, "a": ["é"]})
    '{"a":["é"],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def content_hash(value: object) -> str:
    """SHA-256 (hex) of the canonical JSON of a value."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def label_names(value: Value) -> list[str] | None:
    """The labels inside a value, sorted, each once; None for a value that has none by its kind (pairs).

    >>> label_names("Refill"), label_names([]), label_names({"instruction": "", "input": "", "output": ""})
    (['Refill'], [], None)
    """
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return sorted({part if isinstance(part, str) else part["label"] for part in value})
    return None
