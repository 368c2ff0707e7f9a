"""The release's data-quality checks: a Great Expectations suite as code over the release tables.

Great Expectations is imported inside `check` (3 s of CPU). Record texts never enter it, only their lengths and hashes,
so that no result can carry a text out. An expectation that raised is told apart from one that failed.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from schemas.project import Project
from schemas.values import canonical_json, content_hash

MOST_IDS = 20
SPLITS = ("train", "validation", "test")
HOW = ("person", "consensus", "adjudicated", "automatic")
PROVENANCE_COLUMNS = ("text_sha256", "how", "annotators", "decided_at", "audit_seq", "schema_hash", "final")


@dataclass(frozen=True)
class Check:
    """One expectation's outcome. `state` is passed, failed or errored; ids are the first 20 that fail it."""

    name: str
    meaning: str
    state: str
    critical: bool
    found: int
    record_ids: tuple[str, ...]
    detail: str

    def as_dict(self) -> dict[str, Any]:
        """Plain data for validation.json."""
        return {**self.__dict__, "record_ids": list(self.record_ids)}


@dataclass(frozen=True)
class _Rule:
    frame: str
    kind: str
    arguments: Mapping[str, Any]
    meaning: str
    critical: bool = True


def suite(project: Project, records: int) -> list[_Rule]:
    """The rules a release is held against.

    Args:
        project: Bounds come from its labels and `quality`.
        records: Rows the release has to have.
    """
    rules = [
        _Rule(
            "records",
            "ExpectTableRowCountToEqual",
            {"value": records},
            "every settled record is in the release",
        ),
        _Rule("records", "ExpectColumnValuesToBeUnique", {"column": "record_id"}, "each record once"),
        _Rule(
            "records",
            "ExpectColumnValuesToBeInSet",
            {"column": "how", "value_set": list(HOW)},
            "every record settled",
        ),
        _Rule(
            "records",
            "ExpectColumnValuesToNotBeNull",
            {"column": "how"},
            "every record says how it was settled",
        ),
        _Rule("records", "ExpectColumnValuesToNotBeNull", {"column": "value"}, "every record has a value"),
        _Rule(
            "records",
            "ExpectColumnValuesToBeInSet",
            {"column": "illegal_labels", "value_set": [0]},
            "labels are in the schema",
        ),
        _Rule(
            "records",
            "ExpectColumnValuesToBeBetween",
            {"column": "text_length", "min_value": 1},
            "no empty text",
        ),
        _Rule("records", "ExpectColumnValuesToBeUnique", {"column": "text_sha256"}, "no text twice"),
        _Rule(
            "records",
            "ExpectColumnValuesToBeInSet",
            {"column": "split", "value_set": list(SPLITS)},
            "in one split",
        ),
        _Rule(
            "records",
            "ExpectColumnValuesToBeInSet",
            {"column": "splits_of_group", "value_set": [1]},
            "train, validation and test share no near-duplicate group",
        ),
        _Rule(
            "summary",
            "ExpectColumnValuesToBeBetween",
            {
                "column": "auto_accepted_share",
                "min_value": 0.0,
                "max_value": project.quality.max_auto_accepted_share,
            },
            "share of labels no person has seen is within quality.max_auto_accepted_share",
        ),
    ]
    for column in PROVENANCE_COLUMNS:
        rules.append(
            _Rule(
                "provenance",
                "ExpectColumnValuesToNotBeNull",
                {"column": column},
                f"provenance complete: {column}",
            )
        )
    rules.append(
        _Rule(
            "provenance",
            "ExpectTableRowCountToEqual",
            {"value": records},
            "provenance complete: a row a record",
        )
    )
    for label in project.label_schema.labels:
        rules.append(
            _Rule(
                "summary",
                "ExpectColumnValuesToBeBetween",
                {
                    "column": f"share of {label.name}",
                    "min_value": label.min_share,
                    "max_value": label.max_share,
                },
                f"class balance of {label.name}",
            )
        )
    return rules


def suite_hash(rules: Sequence[_Rule]) -> str:
    """SHA-256 of the suite's canonical JSON; goes into the release manifest."""
    return content_hash([[rule.frame, rule.kind, dict(rule.arguments), rule.critical] for rule in rules])


def check(frames: Mapping[str, pl.DataFrame], rules: Sequence[_Rule]) -> list[Check]:
    """Runs the suite over the frames "records", "provenance" and "summary"."""
    os.environ["GX_ANALYTICS_ENABLED"] = "False"
    import great_expectations as gx
    import great_expectations.expectations as gxe

    # It raises its own level to INFO and would tell the user about its scratch folders.
    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    source = context.data_sources.add_pandas("release")
    outcomes: dict[int, Check] = {}
    for name, frame in frames.items():
        mine = [(index, rule) for index, rule in enumerate(rules) if rule.frame == name]
        asset = source.add_dataframe_asset(name)
        pandas_frame = frame.to_pandas()
        batch = asset.add_batch_definition_whole_dataframe(name).get_batch({"dataframe": pandas_frame})
        keyed = "record_id" in frame.columns
        for index, rule in mine:
            expectation = getattr(gxe, rule.kind)(**rule.arguments)
            result_format: dict[str, Any] = {"result_format": "COMPLETE", "exclude_unexpected_values": True}
            if keyed:
                result_format["unexpected_index_column_names"] = ["record_id"]
            outcomes[index] = _outcome(rule, batch.validate(expectation, result_format=result_format))
    return [outcomes[index] for index in range(len(rules))]


def _outcome(rule: _Rule, result: Any) -> Check:
    told: Mapping[str, Any] = result.result or {}
    raised = _raised(result.exception_info)
    ids = _record_ids(told.get("unexpected_index_list") or [])
    found = int(told.get("unexpected_count") or 0)
    detail = raised or (f"observed {told['observed_value']}" if "observed_value" in told else "")
    state = "errored" if raised else "passed" if result.success else "failed"
    name = f"{rule.kind}({canonical_json(dict(rule.arguments))}) on {rule.frame}"
    return Check(name, rule.meaning, state, rule.critical, found, tuple(ids[:MOST_IDS]), detail)


def _record_ids(entries: Sequence[Any]) -> list[str]:
    """Great Expectations lists an entry a row, or one entry with all rows where values are kept out of the result."""
    ids: list[str] = []
    for entry in entries:
        told = entry.get("record_id") if isinstance(entry, Mapping) else None
        ids += [str(one) for one in (told if isinstance(told, list) else [told]) if one is not None]
    return ids


def _raised(information: Mapping[str, Any] | None) -> str:
    """Great Expectations reports an exception either flat or one level down, by metric."""
    if not information:
        return ""
    entries = [information, *(entry for entry in information.values() if isinstance(entry, Mapping))]
    return next((str(entry["exception_message"]) for entry in entries if entry.get("raised_exception")), "")
