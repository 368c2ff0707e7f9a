"""Answers under a JSON Schema: what an engine wrote is parsed strictly and held against the schema once more."""

import json
from collections.abc import Mapping
from typing import Any

import jsonschema

from labeling.engines.http import no_constant, unique_keys
from schemas.errors import EngineError

Schema = Mapping[str, Any]


def checked_answer(text: object, schema: Schema, *, whole: bool, where: str) -> Any:
    """The value an engine wrote.

    Args:
        text: What the engine wrote.
        schema: JSON Schema it was asked to keep.
        whole: Whether it came to its own end (not to the most tokens it was allowed).
        where: Address for the error.

    Raises:
        EngineError: cut short, no strict JSON (a key twice, NaN), or not as the schema has it.
    """
    if not whole or not isinstance(text, str):
        raise _unusable(where, f"an answer that is cut: {str(text)[:100]!r}", "a whole one")
    try:
        value = json.loads(text, object_pairs_hook=unique_keys, parse_constant=no_constant)
        jsonschema.validate(value, schema)
    except (ValueError, RecursionError) as error:
        raise _unusable(where, f"unreadable JSON ({error}): {text[:100]!r}", "strict JSON") from error
    except jsonschema.ValidationError as error:
        raise _unusable(
            where, f"{error.message[:200]} at {error.json_path}", "what the schema says"
        ) from error
    return value


def _unusable(where: str, found: str, expected: str) -> EngineError:
    return EngineError(where, found=found, expected=expected, next_step="The record is set aside.")
