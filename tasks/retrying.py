"""When a task may be tried again: only where the error itself says that it may help."""

from typing import Any

from schemas.errors import LabelingError


def may_help(_task: Any, _run: Any, state: Any) -> bool:
    """Prefect's retry condition: engines that refused or broke off, never bad input or a failed check."""
    failure = state.result(raise_on_failure=False)
    return isinstance(failure, LabelingError) and failure.retryable


RETRY: dict[str, Any] = {"retries": 2, "retry_delay_seconds": [2, 10], "retry_condition_fn": may_help}
