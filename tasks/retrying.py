"""When a task may be tried again: only where the error itself says that it may help."""

from typing import Any

from prefect.cache_policies import NO_CACHE

from schemas.errors import LabelingError


def may_help(_task: Any, _run: Any, state: Any) -> bool:
    """Prefect's retry condition: engines that refused or broke off, never bad input or a failed check."""
    failure = state.result(raise_on_failure=False)
    return isinstance(failure, LabelingError) and failure.retryable


# Every task here is idempotent by what it finds on disk and in the database. Prefect's cache would answer a second call
# in one run ("score on for a while") with the first one's result.
ALWAYS: dict[str, Any] = {"cache_policy": NO_CACHE}
RETRY: dict[str, Any] = {
    **ALWAYS,
    "retries": 2,
    "retry_delay_seconds": [2, 10],
    "retry_condition_fn": may_help,
}
