"""Arrow layouts of the Parquet tables. Columns are the same for all four task types; only the type of `value` differs.

The layouts are versioned together: a change adds a version and a reader for the older one.
"""

import pyarrow as pa

from schemas.values import VALUE_TYPES, TaskType

TABLES_VERSION = 2  # 2: annotations.details

_ID = pa.string()
_TIME = pa.timestamp("us", tz="UTC")
_SCORES = pa.list_(
    pa.struct(
        [
            pa.field("label", pa.string(), nullable=False),
            pa.field("log_prob", pa.float64(), nullable=False),
            pa.field("probability", pa.float64(), nullable=False),
        ]
    )
)


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


def records(task: TaskType) -> pa.Schema:
    """A text to label. Sorted by record_id within a part; a part is one ingest."""
    return pa.schema(
        [
            _required("record_id", _ID),
            _required("source", pa.string()),
            _required("source_row", pa.int64()),
            pa.field("source_id", pa.string()),
            _required("text", pa.string()),
            _required("text_sha256", pa.string()),
            _required("char_count", pa.int32()),
            pa.field("group", pa.string()),
            pa.field("duplicate_of", _ID),
            pa.field("gold", VALUE_TYPES[task]),
            pa.field("metadata", pa.map_(pa.string(), pa.string())),
        ]
    )


def quarantine(_task: TaskType) -> pa.Schema:
    """An input row that was refused; `raw` is bounded to 4 KiB."""
    return pa.schema(
        [
            _required("source", pa.string()),
            _required("source_row", pa.int64()),
            _required("reason", pa.string()),
            _required("found", pa.string()),
            _required("expected", pa.string()),
            pa.field("raw", pa.binary()),
        ]
    )


def embeddings(_task: TaskType, width: int = 384) -> pa.Schema:
    """A vector of a record, L2-normalised float32."""
    return pa.schema(
        [
            _required("record_id", _ID),
            _required("model_id", pa.string()),
            _required("vector", pa.list_(pa.float32(), width)),
        ]
    )


def lexical(_task: TaskType, width: int = 32) -> pa.Schema:
    """The model that makes lexical vectors: a hash bucket of n-grams, its weight and its share in each direction."""
    return pa.schema(
        [
            _required("bucket", pa.int32()),
            _required("weight", pa.float32()),
            _required("directions", pa.list_(pa.float32(), width)),
        ]
    )


def suggestions(task: TaskType) -> pa.Schema:
    """A proposal for a record in a round. Scores: natural-log raw label probabilities and renormalised ones."""
    return pa.schema(
        [
            _required("record_id", _ID),
            _required("value", VALUE_TYPES[task]),
            pa.field("confidence", pa.float64()),
            pa.field("calibrated_by", pa.string()),
            _required("scores", _SCORES),
            pa.field("label_mass", pa.float64()),
            pa.field("runner_up", pa.string()),
            pa.field("evidence", pa.list_(pa.string())),
            pa.field("part_confidence", pa.list_(pa.float64())),
            _required("identity_id", _ID),
            _required("prompt_id", _ID),
            _required("tokens_sent", pa.int32()),
            _required("fit", pa.string()),
            _required("by", pa.string()),
            _required("attempts", pa.int16()),
            _required("duration_s", pa.float64()),
        ]
    )


def rejected(_task: TaskType) -> pa.Schema:
    """A record without a usable suggestion, with the reply that was not usable (bounded to 4 KiB)."""
    return pa.schema(
        [
            _required("record_id", _ID),
            _required("reason", pa.string()),
            pa.field("raw_reply", pa.string()),
            _required("attempts", pa.int16()),
            _required("identity_id", _ID),
            _required("prompt_id", _ID),
        ]
    )


def annotations(task: TaskType) -> pa.Schema:
    """One person's submitted decision, from the signed round. Sorted by audit_seq.

    `details` is JSON: {"batch": {id, size}, "copilot": {…}, "rubric": {name: 1 to 5}}, null where there is nothing.
    """
    return pa.schema(
        [
            _required("annotation_id", _ID),
            _required("record_id", _ID),
            _required("annotator_id", pa.string()),
            pa.field("value", VALUE_TYPES[task]),
            _required("action", pa.string()),
            _required("seen", pa.string()),
            _required("purpose", pa.string()),
            pa.field("suggestion_value", VALUE_TYPES[task]),
            _required("seconds", pa.float64()),
            _required("decided_at", _TIME),
            pa.field("comment", pa.string()),
            _required("not_sure", pa.bool_()),
            _required("audit_seq", pa.int64()),
            _required("rehearsal", pa.bool_()),
            pa.field("details", pa.string()),
        ]
    )


def gold(task: TaskType) -> pa.Schema:
    """A settled label. Sorted by record_id. `value` null: people rejected the record as not labellable."""
    return pa.schema(
        [
            _required("record_id", _ID),
            pa.field("value", VALUE_TYPES[task]),
            _required("how", pa.string()),
            _required("annotation_ids", pa.list_(pa.string())),
            pa.field("guarantee_id", pa.string()),
            _required("round", pa.int32()),
            pa.field("agreement", pa.float64()),
            pa.field("confidence", pa.float64()),
            _required("rehearsal", pa.bool_()),
        ]
    )


def findings(_task: TaskType) -> pa.Schema:
    """Something quality assurance flags. `record_id` is null for findings about a person.

    `state` is open, kept or changed; an outcome is appended as a later row of the same `finding_id`.
    """
    return pa.schema(
        [
            _required("finding_id", _ID),
            pa.field("record_id", _ID),
            _required("kind", pa.string()),
            pa.field("score", pa.float64()),
            _required("sentence", pa.string()),
            _required("evidence", pa.list_(pa.string())),
            _required("state", pa.string()),
            pa.field("settled_by", pa.string()),
        ]
    )
